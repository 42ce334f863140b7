//! All that an extension may import: name and address. The loader reads this table.

use libos::image_abi::Export;

use crate::{files, heap, memory, stubs, threads, time, tls, unwind};

/// Rows of the table, from `name => function`.
macro_rules! exports {
    ($($name:literal => $function:expr,)*) => {
        &[$(Export::new($name, $function as *const ()),)*]
    };
}

unsafe extern "C" {
    fn _Unwind_Backtrace();
    fn _Unwind_DeleteException();
    fn _Unwind_GetCFA();
    fn _Unwind_GetDataRelBase();
    fn _Unwind_GetIP();
    fn _Unwind_GetIPInfo();
    fn _Unwind_GetLanguageSpecificData();
    fn _Unwind_GetRegionStart();
    fn _Unwind_GetTextRelBase();
    fn _Unwind_RaiseException();
    fn _Unwind_Resume();
    fn _Unwind_SetGR();
    fn _Unwind_SetIP();
}

static EXPORTS: &[Export] = exports! {
    "_Unwind_Backtrace" => _Unwind_Backtrace,
    "_Unwind_DeleteException" => _Unwind_DeleteException,
    "_Unwind_GetCFA" => _Unwind_GetCFA,
    "_Unwind_GetDataRelBase" => _Unwind_GetDataRelBase,
    "_Unwind_GetIP" => _Unwind_GetIP,
    "_Unwind_GetIPInfo" => _Unwind_GetIPInfo,
    "_Unwind_GetLanguageSpecificData" => _Unwind_GetLanguageSpecificData,
    "_Unwind_GetRegionStart" => _Unwind_GetRegionStart,
    "_Unwind_GetTextRelBase" => _Unwind_GetTextRelBase,
    "_Unwind_RaiseException" => _Unwind_RaiseException,
    "_Unwind_Resume" => _Unwind_Resume,
    "_Unwind_SetGR" => _Unwind_SetGR,
    "_Unwind_SetIP" => _Unwind_SetIP,
    "_dl_find_object" => unwind::_dl_find_object,
    "dl_iterate_phdr" => unwind::dl_iterate_phdr,
    "environ" => &raw const threads::ENVIRON,
    "abort" => unwind::abort,
    "__cxa_finalize" => threads::succeed,
    "__cxa_thread_atexit_impl" => threads::succeed,
    "__errno_location" => threads::errno_location,
    "__tls_get_addr" => tls::tls_get_addr,
    "__xpg_strerror_r" => memory::strerror_r,
    "memcpy" => memory::memcpy,
    "memmove" => memory::memmove,
    "memset" => memory::memset,
    "memcmp" => memory::memcmp,
    "bcmp" => memory::bcmp,
    "memchr" => memory::memchr,
    "memrchr" => memory::memrchr,
    "strlen" => memory::strlen,
    "strcmp" => memory::strcmp,
    "malloc" => heap::malloc,
    "calloc" => heap::calloc,
    "realloc" => heap::realloc,
    "free" => heap::free,
    "posix_memalign" => heap::posix_memalign,
    "aligned_alloc" => heap::aligned_alloc,
    "clock_gettime" => time::clock_gettime,
    "clock_nanosleep" => files::clock_nanosleep,
    "nanosleep" => files::nanosleep,
    "open" => files::open,
    "open64" => files::open,
    "openat" => files::openat,
    "openat64" => files::openat,
    "close" => files::close,
    "read" => files::read,
    "readv" => files::readv,
    "pread64" => files::pread,
    "pwrite64" => files::pwrite,
    "write" => files::write,
    "writev" => files::writev,
    "lseek" => files::lseek,
    "lseek64" => files::lseek,
    "fstat" => files::fstat,
    "fstat64" => files::fstat,
    "fsync" => files::fsync,
    "fdatasync" => files::fdatasync,
    "ftruncate64" => files::ftruncate,
    "stat" => files::stat,
    "stat64" => files::stat,
    "statx" => files::statx,
    "unlink" => files::unlink,
    "rename" => files::rename,
    "mkdir" => files::mkdir,
    "rmdir" => files::rmdir,
    "readlink" => files::readlink,
    "realpath" => files::realpath,
    "getcwd" => files::getcwd,
    "getrandom" => files::getrandom,
    "poll" => files::poll,
    "mmap" => files::mmap,
    "mmap64" => files::mmap,
    "munmap" => files::munmap,
    "mprotect" => files::mprotect,
    "mremap" => files::mremap,
    "mincore" => files::mincore,
    "syscall" => files::syscall,
    "getpid" => threads::getpid,
    "getppid" => threads::getppid,
    "setpriority" => threads::setpriority,
    "gettid" => threads::gettid,
    "getenv" => threads::getenv,
    "getauxval" => threads::getauxval,
    "sysconf" => threads::sysconf,
    "dlsym" => threads::dlsym,
    "exit" => threads::exit,
    "_exit" => threads::exit,
    "fork" => threads::fork,
    "vfork" => threads::fork,
    "execve" => threads::exec,
    "execvp" => threads::exec,
    "posix_spawn" => threads::posix_spawn,
    "posix_spawnp" => threads::posix_spawn,
    "pthread_create" => threads::pthread_create,
    "pthread_self" => threads::pthread_self,
    "pthread_attr_init" => threads::succeed,
    "pthread_attr_destroy" => threads::succeed,
    "pthread_attr_setstacksize" => threads::succeed,
    "pthread_attr_setguardsize" => threads::succeed,
    "pthread_setname_np" => threads::succeed,
    "pthread_key_create" => threads::pthread_key_create,
    "pthread_key_delete" => threads::succeed,
    "pthread_setspecific" => threads::succeed,
    "pthread_getspecific" => threads::getspecific,
    "sched_yield" => threads::sched_yield,
    "sbx_missing_import" => stubs::sbx_missing_import,
};

/// The table's address and length, under a name that the launcher looks for.
#[unsafe(no_mangle)]
pub static SBX_EXPORTS: &[Export] = EXPORTS;
