//! Threads, processes and their keys, as far as region code has them: it has none of its own.
//!
//! What would make a thread or a process fails with an error number that `strerror_r` spells
//! out, so that `thread::spawn` panics with the reason instead of doing the impossible.

use core::ffi::{c_char, c_int, c_long, c_void};
use core::ptr::{null, null_mut};

use crate::context;

/// Error numbers of our own, above all of the kernel's.
pub(crate) const NO_THREADS: c_int = 1001;
/// See [`NO_THREADS`].
pub(crate) const NO_FORK: c_int = 1002;
/// See [`NO_THREADS`].
pub(crate) const NO_EXEC: c_int = 1003;

/// `__errno_location(3)`: one per context.
pub(crate) extern "C" fn errno_location() -> *mut c_int {
    match context::current() {
        Some(context) => context.errno.as_ptr(),
        None => null_mut(),
    }
}

/// Set `errno` and return -1.
pub(crate) fn fail(errno: c_int) -> c_int {
    if let Some(context) = context::current() {
        context.errno.store(errno, core::sync::atomic::Ordering::Relaxed);
    }
    -1
}

pub(crate) extern "C" fn pthread_create(
    _: *mut u64,
    _: *const c_void,
    _: *const c_void,
    _: *mut c_void,
) -> c_int {
    NO_THREADS
}

pub(crate) extern "C" fn fork() -> c_int {
    fail(NO_FORK)
}

pub(crate) extern "C" fn exec(_: *const c_char) -> c_int {
    fail(NO_EXEC)
}

pub(crate) extern "C" fn posix_spawn() -> c_int {
    NO_EXEC
}

/// A thread's identity: its context.
pub(crate) extern "C" fn pthread_self() -> usize {
    context::current().map_or(0, |context| core::ptr::from_ref(context) as usize)
}

pub(crate) extern "C" fn gettid() -> c_int {
    crate::sys::gettid() as c_int
}

pub(crate) extern "C" fn getpid() -> c_int {
    crate::sys::getpid() as c_int
}

/// Nice values of processes, whatever this one may do to them.
pub(crate) extern "C" fn setpriority(which: c_int, who: u32, nice: c_int) -> c_int {
    match crate::sys::setpriority(which as usize, who as usize, nice as isize as usize) {
        Ok(_) => 0,
        Err(errno) => fail(errno),
    }
}

pub(crate) extern "C" fn getppid() -> c_int {
    crate::sys::getppid() as c_int
}

/// For calls that may be done or not without anyone telling the difference.
pub(crate) extern "C" fn succeed() -> c_int {
    0
}

/// Keys exist only so that std can ask for destructors at thread exit, which contexts do not
/// have: their thread-locals live until the context does.
pub(crate) extern "C" fn pthread_key_create(key: *mut u32, _: *const c_void) -> c_int {
    // SAFETY: writable by the contract of pthread_key_create.
    unsafe { key.write(1) };
    0
}

pub(crate) extern "C" fn getspecific(_: u32) -> *mut c_void {
    null_mut()
}

/// `environ(7)`: no variable.
pub(crate) static ENVIRON: usize = 0;

/// The environment is empty.
pub(crate) extern "C" fn getenv(_: *const c_char) -> *const c_char {
    null()
}

pub(crate) extern "C" fn getauxval(_: usize) -> usize {
    0
}

/// `sysconf(3)`: the page size, and one processor.
pub(crate) extern "C" fn sysconf(name: c_int) -> c_long {
    const SC_PAGESIZE: c_int = 30;
    const SC_NPROCESSORS_ONLN: c_int = 84;
    match name {
        SC_PAGESIZE => 4096,
        SC_NPROCESSORS_ONLN => 1,
        _ => -1,
    }
}

pub(crate) extern "C" fn dlsym(_: *mut c_void, _: *const c_char) -> *mut c_void {
    null_mut()
}

pub(crate) extern "C" fn exit(_: c_int) -> ! {
    crate::fault::abort(ext_api::abi::Status::Forbidden, b"an extension must not call exit")
}

pub(crate) extern "C" fn sched_yield() -> c_int {
    crate::sys::sched_yield();
    0
}
