//! The system calls that the image makes, by name, with the kernel's own errors.
//!
//! This is the only module of the image that talks to the kernel.

use libos::signals::{Action, Queued, STOP};

use crate::arch::{syscall2_on, syscall6};
use crate::text::Line;

/// A negated error number as the kernel returns it.
pub(crate) type Errno = i32;

pub(crate) const EPERM: Errno = 1;
pub(crate) const ENOENT: Errno = 2;
pub(crate) const ESRCH: Errno = 3;
pub(crate) const EINTR: Errno = 4;
pub(crate) const EBADF: Errno = 9;
pub(crate) const EAGAIN: Errno = 11;
pub(crate) const EBUSY: Errno = 16;
pub(crate) const ENOMEM: Errno = 12;
pub(crate) const EFAULT: Errno = 14;
pub(crate) const EEXIST: Errno = 17;
pub(crate) const EINVAL: Errno = 22;
pub(crate) const EMFILE: Errno = 24;
pub(crate) const ENOSYS: Errno = 38;

pub(crate) const SIGBUS: i32 = 7;
pub(crate) const SIGSEGV: i32 = 11;
/// `si_code` of a signal that was queued with a value.
pub(crate) const SI_QUEUE: i32 = -1;
/// `si_code` of a timer's signal.
pub(crate) const SI_TIMER: i32 = -2;

pub(crate) const PROT_READ: usize = 1;
pub(crate) const PROT_WRITE: usize = 2;
pub(crate) const PROT_EXEC: usize = 4;
pub(crate) const MAP_SHARED: usize = 1;
pub(crate) const MAP_PRIVATE: usize = 2;
pub(crate) const MAP_FIXED: usize = 0x10;
pub(crate) const MAP_ANONYMOUS: usize = 0x20;
pub(crate) const MAP_NORESERVE: usize = 0x4000;
pub(crate) const MAP_FIXED_NOREPLACE: usize = 0x10_0000;

/// Numbers of the calls that the region libc forwards or treats by name.
pub(crate) mod nr {
    pub(crate) const READ: usize = 0;
    pub(crate) const OPEN: usize = 2;
    pub(crate) const PIPE: usize = 22;
    pub(crate) const SELECT: usize = 23;
    pub(crate) const DUP: usize = 32;
    pub(crate) const DUP2: usize = 33;
    pub(crate) const SENDFILE: usize = 40;
    pub(crate) const SOCKET: usize = 41;
    pub(crate) const CONNECT: usize = 42;
    pub(crate) const ACCEPT: usize = 43;
    pub(crate) const SENDTO: usize = 44;
    pub(crate) const RECVFROM: usize = 45;
    pub(crate) const SENDMSG: usize = 46;
    pub(crate) const RECVMSG: usize = 47;
    pub(crate) const SHUTDOWN: usize = 48;
    pub(crate) const BIND: usize = 49;
    pub(crate) const GETSOCKNAME: usize = 51;
    pub(crate) const GETPEERNAME: usize = 52;
    pub(crate) const SOCKETPAIR: usize = 53;
    pub(crate) const SETSOCKOPT: usize = 54;
    pub(crate) const GETSOCKOPT: usize = 55;
    pub(crate) const FCNTL: usize = 72;
    pub(crate) const TKILL: usize = 200;
    pub(crate) const EPOLL_CREATE: usize = 213;
    pub(crate) const EPOLL_CREATE1: usize = 291;
    pub(crate) const EPOLL_WAIT: usize = 232;
    pub(crate) const EPOLL_CTL: usize = 233;
    pub(crate) const SPLICE: usize = 275;
    pub(crate) const TEE: usize = 276;
    pub(crate) const VMSPLICE: usize = 278;
    pub(crate) const ACCEPT4: usize = 288;
    pub(crate) const IO_SUBMIT: usize = 209;
    pub(crate) const EVENTFD: usize = 284;
    pub(crate) const EVENTFD2: usize = 290;
    pub(crate) const DUP3: usize = 292;
    pub(crate) const PIPE2: usize = 293;
    pub(crate) const RECVMMSG: usize = 299;
    pub(crate) const SENDMMSG: usize = 307;
    pub(crate) const PREADV2: usize = 327;
    pub(crate) const PWRITEV2: usize = 328;
    pub(crate) const CLOSE_RANGE: usize = 436;
    pub(crate) const OPENAT2: usize = 437;
    pub(crate) const WRITE: usize = 1;
    pub(crate) const CLOSE: usize = 3;
    pub(crate) const FSTAT: usize = 5;
    pub(crate) const POLL: usize = 7;
    pub(crate) const LSEEK: usize = 8;
    pub(crate) const IOCTL: usize = 16;
    pub(crate) const MMAP: usize = 9;
    pub(crate) const MPROTECT: usize = 10;
    pub(crate) const MUNMAP: usize = 11;
    pub(crate) const RT_SIGACTION: usize = 13;
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const RT_SIGRETURN: usize = 15;
    pub(crate) const PREAD64: usize = 17;
    pub(crate) const PWRITE64: usize = 18;
    pub(crate) const READV: usize = 19;
    pub(crate) const WRITEV: usize = 20;
    pub(crate) const SCHED_YIELD: usize = 24;
    pub(crate) const MREMAP: usize = 25;
    pub(crate) const MINCORE: usize = 27;
    pub(crate) const MADVISE: usize = 28;
    pub(crate) const NANOSLEEP: usize = 35;
    pub(crate) const GETPID: usize = 39;
    pub(crate) const CLONE: usize = 56;
    pub(crate) const FORK: usize = 57;
    pub(crate) const VFORK: usize = 58;
    pub(crate) const EXECVE: usize = 59;
    pub(crate) const KILL: usize = 62;
    pub(crate) const FSYNC: usize = 74;
    pub(crate) const FDATASYNC: usize = 75;
    pub(crate) const FTRUNCATE: usize = 77;
    pub(crate) const GETCWD: usize = 79;
    pub(crate) const RENAME: usize = 82;
    pub(crate) const CREAT: usize = 85;
    pub(crate) const MKDIR: usize = 83;
    pub(crate) const RMDIR: usize = 84;
    pub(crate) const UNLINK: usize = 87;
    pub(crate) const READLINK: usize = 89;
    pub(crate) const GETPPID: usize = 110;
    pub(crate) const RT_SIGSUSPEND: usize = 130;
    pub(crate) const SIGALTSTACK: usize = 131;
    pub(crate) const SETPRIORITY: usize = 141;
    pub(crate) const PRCTL: usize = 157;
    pub(crate) const GETTID: usize = 186;
    pub(crate) const GETDENTS64: usize = 217;
    pub(crate) const FUTEX: usize = 202;
    pub(crate) const TIMER_CREATE: usize = 222;
    pub(crate) const TIMER_SETTIME: usize = 223;
    pub(crate) const CLOCK_GETTIME: usize = 228;
    pub(crate) const CLOCK_NANOSLEEP: usize = 230;
    pub(crate) const EXIT_GROUP: usize = 231;
    pub(crate) const TGKILL: usize = 234;
    pub(crate) const OPENAT: usize = 257;
    pub(crate) const PSELECT6: usize = 270;
    pub(crate) const PPOLL: usize = 271;
    pub(crate) const EPOLL_PWAIT: usize = 281;
    pub(crate) const PROCESS_VM_READV: usize = 310;
    pub(crate) const PROCESS_VM_WRITEV: usize = 311;
    pub(crate) const EPOLL_PWAIT2: usize = 441;
    pub(crate) const RT_SIGQUEUEINFO: usize = 129;
    pub(crate) const RT_TGSIGQUEUEINFO: usize = 297;
    pub(crate) const SECCOMP: usize = 317;
    pub(crate) const GETRANDOM: usize = 318;
    pub(crate) const EXECVEAT: usize = 322;
    pub(crate) const MEMBARRIER: usize = 324;
    pub(crate) const STATX: usize = 332;
    pub(crate) const NEWFSTATAT: usize = 262;
    pub(crate) const UNSHARE: usize = 272;
    pub(crate) const CLONE3: usize = 435;
    pub(crate) const FUTEX_WAITV: usize = 449;
    pub(crate) const MSEAL: usize = 462;
}

/// Any call; arguments beyond those given are zero.
///
/// # Safety
/// As the call itself.
pub(crate) unsafe fn call<const N: usize>(
    number: usize,
    given: [usize; N],
) -> Result<usize, Errno> {
    let mut args = [0; 6];
    for (to, from) in args.iter_mut().zip(given) {
        *to = from;
    }
    // SAFETY: passed on to the caller.
    let result = unsafe { syscall6(number, args) };
    if (-4095..0).contains(&result) { Err(-result as Errno) } else { Ok(result as usize) }
}

/// A call whose arguments no memory depends on.
macro_rules! harmless {
    ($number:expr $(, $arg:expr)*) => {
        // SAFETY: the call takes no pointer and maps nothing.
        unsafe { call($number, [$($arg),*]) }
    };
}

pub(crate) fn getpid() -> u32 {
    harmless!(nr::GETPID).unwrap_or(0) as u32
}

pub(crate) fn getppid() -> u32 {
    harmless!(nr::GETPPID).unwrap_or(0) as u32
}

pub(crate) fn gettid() -> u32 {
    harmless!(nr::GETTID).unwrap_or(0) as u32
}

/// The word that the kernel clears when the calling thread ends, as its program has asked.
pub(crate) fn tid_address() -> Option<usize> {
    const PR_GET_TID_ADDRESS: usize = 40;
    let mut address = 0usize;
    // SAFETY: the kernel writes a word.
    let asked = unsafe { call(nr::PRCTL, [PR_GET_TID_ADDRESS, &raw mut address as usize]) };
    asked.ok().map(|_| address)
}

/// False only if the kernel says that there is no such thread.
pub(crate) fn thread_exists(pid: u32, tid: u32) -> bool {
    harmless!(nr::TGKILL, pid as usize, tid as usize, 0) != Err(ESRCH)
}

/// False only if the kernel says that there is no such thread in any process.
pub(crate) fn task_exists(tid: u32) -> bool {
    harmless!(nr::TKILL, tid as usize, 0) != Err(ESRCH)
}

/// Is there such a thread, and has it not ended? One that has stays until its parent has asked how.
pub(crate) fn task_lives(tid: u32) -> bool {
    task_exists(tid) && !matches!(state_of(tid, tid), Some(b'Z' | b'X'))
}

/// Is it stopped, by a signal or a tracer?
pub(crate) fn task_is_stopped(tid: u32) -> bool {
    matches!(state_of(tid, tid), Some(b'T' | b't'))
}

/// Does thread `tid` of process `pid` sleep in a way that no signal ends, as one that has called vfork? None if that
/// cannot be seen, as without /proc.
pub(crate) fn waits_for_vfork(pid: u32, tid: u32) -> Option<bool> {
    /// More than it takes to come from a child's start to waiting for it.
    const LOOKS: usize = 64;
    for _ in 0..LOOKS {
        match state_of(pid, tid) {
            Some(b'R') => sched_yield(),
            state => return state.map(|state| state == b'D'),
        }
    }
    Some(false)
}

/// What thread `tid` of process `pid` is doing, by the kernel's letter.
fn state_of(pid: u32, tid: u32) -> Option<u8> {
    let mut path = Line::<64>::new();
    path.push(b"/proc/");
    path.push_decimal(pid);
    path.push(b"/task/");
    path.push_decimal(tid);
    path.push(b"/stat\0");
    let path = core::ffi::CStr::from_bytes_until_nul(path.bytes()).ok()?;
    let mut stat = [0; 64];
    let len = read_file(path, &mut stat).unwrap_or(0);
    // The name, in parentheses, may have any bytes in it.
    let name_end = stat[..len].iter().rposition(|byte| *byte == b')');
    name_end.and_then(|at| stat.get(at + 2)).copied()
}

pub(crate) fn sched_yield() {
    let _ = harmless!(nr::SCHED_YIELD);
}

pub(crate) fn close(fd: i32) -> Result<usize, Errno> {
    harmless!(nr::CLOSE, fd as usize)
}

pub(crate) fn exit_group(status: usize) -> ! {
    loop {
        let _ = harmless!(nr::EXIT_GROUP, status);
    }
}

/// Bytes to a descriptor of the process; what cannot be written is dropped.
pub(crate) fn write_all(fd: i32, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the kernel reads `bytes`.
        let written =
            unsafe { call(nr::WRITE, [fd as usize, bytes.as_ptr() as usize, bytes.len()]) };
        match written {
            Ok(n) if n > 0 => bytes = bytes.get(n..).unwrap_or(&[]),
            _ => return,
        }
    }
}

/// Have expedited global barriers of others reach this process.
pub(crate) fn register_membarrier() {
    const REGISTER_GLOBAL_EXPEDITED: usize = 1 << 2;
    // The supervisor falls back to the slow barrier for processes that could not register.
    let _ = harmless!(nr::MEMBARRIER, REGISTER_GLOBAL_EXPEDITED, 0);
}

/// Have this process able to [`sync_cores`]; best before it has a second thread.
pub(crate) fn register_sync_cores() {
    const REGISTER_PRIVATE_EXPEDITED_SYNC_CORE: usize = 1 << 6;
    let _ = harmless!(nr::MEMBARRIER, REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0);
}

/// Every other thread of this process executes what is in memory now. False if the kernel cannot see to
/// it.
pub(crate) fn sync_cores() -> bool {
    const PRIVATE_EXPEDITED_SYNC_CORE: usize = 1 << 5;
    harmless!(nr::MEMBARRIER, PRIVATE_EXPEDITED_SYNC_CORE, 0).is_ok()
}

/// Set a signal's action; the former one into `old`.
///
/// # Safety
/// The handler that `new` names may run at any instruction of any thread; `old` is writable or
/// null.
pub(crate) unsafe fn sigaction(
    signal: i32,
    new: *const Action,
    old: *mut Action,
) -> Result<usize, Errno> {
    // SAFETY: passed on to the caller.
    unsafe { call(nr::RT_SIGACTION, [signal as usize, new as usize, old as usize, 8]) }
}

/// Set or ask for the thread's alternate signal stack.
///
/// # Safety
/// `new` is null or a `stack_t` whose memory is used for nothing else; `old` is null or writable.
pub(crate) unsafe fn sigaltstack(new: *const u8, old: *mut u8) -> Result<usize, Errno> {
    // SAFETY: passed on to the caller.
    unsafe { call(nr::SIGALTSTACK, [new as usize, old as usize]) }
}

/// Set the thread's alternate signal stack and learn the former one, while it is that one's handler
/// that runs: the kernel looks at the stack pointer, which is `elsewhere` meanwhile.
///
/// # Safety
/// Every signal is blocked; `new` is a `stack_t` whose memory is used for nothing else, and `old` has
/// room for one.
pub(crate) unsafe fn exchange_alt_stack<T>(elsewhere: usize, new: &T, old: &mut T) {
    let args = [core::ptr::from_ref(new) as usize, core::ptr::from_mut(old) as usize];
    // SAFETY: by contract. It can fail for a stack that is too small only, and these are not.
    let _ = unsafe { syscall2_on(elsewhere, nr::SIGALTSTACK, args) };
}

/// Queue a signal that has come to this thread once more.
///
/// # Safety
/// `info` is a whole `siginfo_t`.
pub(crate) unsafe fn queue_again(signal: i32, info: *const u8) {
    let (pid, tid) = (getpid() as usize, gettid() as usize);
    // SAFETY: by contract.
    let _ = unsafe { call(nr::RT_TGSIGQUEUEINFO, [pid, tid, signal as usize, info as usize]) };
}

pub(crate) fn setpriority(which: usize, who: usize, nice: usize) -> Result<usize, Errno> {
    harmless!(nr::SETPRIORITY, which, who, nice)
}

/// How late the kernel may wake this thread, in nanoseconds.
pub(crate) fn set_timer_slack(ns: usize) {
    const PR_SET_TIMERSLACK: usize = 29;
    let _ = harmless!(nr::PRCTL, PR_SET_TIMERSLACK, ns);
}

/// A timer of the monotonic clock that sends [`STOP`] to the calling thread; its number.
pub(crate) fn create_timer() -> Result<u32, Errno> {
    const CLOCK_MONOTONIC: usize = 1;
    const SIGEV_THREAD_ID: u64 = 4;
    // struct sigevent: value, signal and kind, thread; 64 bytes.
    let event = [0, SIGEV_THREAD_ID << 32 | STOP as u64, u64::from(gettid()), 0, 0, 0, 0, 0];
    let mut number = 0u32;
    let args = [CLOCK_MONOTONIC, event.as_ptr() as usize, &raw mut number as usize];
    // SAFETY: a sigevent, and room for a number.
    unsafe { call(nr::TIMER_CREATE, args) }.map(|_| number)
}

/// Have a timer come once at a time of its clock, which may have passed.
pub(crate) fn set_timer(number: u32, at_ns: u64) {
    const ABSOLUTE: usize = 1;
    let at_ns = at_ns.max(1);
    let plan = [0, 0, at_ns / 1_000_000_000, at_ns % 1_000_000_000];
    // SAFETY: an itimerspec; the former one is not asked for.
    let _ =
        unsafe { call(nr::TIMER_SETTIME, [number as usize, ABSOLUTE, plan.as_ptr() as usize, 0]) };
}

/// Copy between memory of ours and memory that may not be there, by the call `number` for one's own
/// process. False if not all of it could be had. The thread is named, since the first one may have ended, and
/// has no memory then.
pub(crate) fn copy_between(number: usize, ours: usize, theirs: usize, len: usize) -> bool {
    let (ours, theirs) = ([ours, len], [theirs, len]);
    let args = [gettid() as usize, ours.as_ptr() as usize, 1, theirs.as_ptr() as usize, 1, 0];
    // SAFETY: one piece on each side; ours is memory of this size, theirs is checked by the kernel.
    let copied = unsafe { call(number, args) };
    copied == Ok(len)
}

/// Has nobody else the calling thread's memory? To have it for itself is what the kernel grants to who has it already.
pub(crate) fn is_alone() -> bool {
    const CLONE_VM: usize = 0x100;
    // SAFETY: changes nothing.
    match unsafe { call(nr::UNSHARE, [CLONE_VM]) } {
        Ok(_) => true,
        Err(EINVAL) => false,
        // A filter from outside.
        Err(_) => is_only_thread(),
    }
}

/// Has this process one thread?
fn is_only_thread() -> bool {
    const STAT_WORDS: usize = 18;
    const LINKS: usize = 2;
    const AT_FDCWD: usize = -100_isize as usize;
    let mut stat = [0u64; STAT_WORDS];
    let path = c"/proc/self/task".as_ptr() as usize;
    // SAFETY: a path that ends with a zero, and room for a stat structure (144 bytes).
    let asked = unsafe { call(nr::NEWFSTATAT, [AT_FDCWD, path, stat.as_mut_ptr() as usize, 0]) };
    // A folder has two links, and one for each folder in it.
    asked.is_ok() && stat[LINKS] == 3
}

/// A mapping of the process.
#[derive(Debug)]
pub(crate) struct Mapping {
    flags: u64,
    inode: u64,
}

impl Mapping {
    /// A private mapping of a file that can be read and executed, and not written.
    pub(crate) const fn is_program_text(&self) -> bool {
        const READ_EXECUTE: u64 = 1 | 4;
        self.flags == READ_EXECUTE && self.inode != 0
    }
}

/// The mapping at `address`, where the kernel can be asked for it (from Linux 6.11).
pub(crate) fn mapping_at(address: usize) -> Option<Mapping> {
    /// `struct procmap_query`.
    #[derive(Default)]
    #[repr(C)]
    struct Query {
        size: u64,
        flags: u64,
        address: u64,
        range: [u64; 2],
        mapping_flags: u64,
        page_len: u64,
        offset: u64,
        inode: u64,
        rest: [u64; 4],
    }
    const LEN: usize = size_of::<Query>();
    const NUMBER: usize = 3 << 30 | LEN << 16 | 0x66 << 8 | 17;
    const AT_FDCWD: usize = -100_isize as usize;
    const CLOEXEC: usize = 0x8_0000;
    let path = c"/proc/thread-self/maps".as_ptr() as usize;
    // SAFETY: a path that ends with a zero.
    let fd = unsafe { call(nr::OPENAT, [AT_FDCWD, path, CLOEXEC]) }.ok()?;
    let mut query = Query { size: LEN as u64, address: address as u64, ..Query::default() };
    // SAFETY: a query of this size, which the kernel fills in.
    let asked = unsafe { call(nr::IOCTL, [fd, NUMBER, &raw mut query as usize]) };
    let _ = close(fd as i32);
    asked.ok()?;
    Some(Mapping { flags: query.mapping_flags, inode: query.inode })
}

/// Write to text of this process, whatever its protection, which stays as it is.
pub(crate) fn write_text(at: usize, bytes: &[u8]) -> Result<(), Errno> {
    const AT_FDCWD: usize = -100_isize as usize;
    const WRITE_ONLY: usize = 1;
    const CLOEXEC: usize = 0x8_0000;
    let path = c"/proc/self/mem".as_ptr() as usize;
    // SAFETY: a path that ends with a zero.
    let fd = unsafe { call(nr::OPENAT, [AT_FDCWD, path, WRITE_ONLY | CLOEXEC]) }?;
    // SAFETY: so many bytes.
    let done = unsafe { call(nr::PWRITE64, [fd, bytes.as_ptr() as usize, bytes.len(), at]) };
    let _ = close(fd as i32);
    if done? == bytes.len() { Ok(()) } else { Err(0) }
}

/// Unblock the signals of `mask` in this thread.
pub(crate) fn unblock(mask: u64) {
    let _ = change_mask(1, mask);
}

/// Block exactly the signals of `mask` in this thread.
pub(crate) fn set_mask(mask: u64) {
    let _ = change_mask(2, mask);
}

/// Block every signal in this thread; what was blocked before.
pub(crate) fn block_all() -> u64 {
    change_mask(0, !0)
}

/// The former mask.
fn change_mask(how: usize, mask: u64) -> u64 {
    let mut former = 0u64;
    let args = [how, &raw const mask as usize, &raw mut former as usize, 8];
    // SAFETY: the kernel reads eight bytes, and writes as many.
    let _ = unsafe { call(nr::RT_SIGPROCMASK, args) };
    former
}

/// Send this thread a signal.
pub(crate) fn kill_self(signal: i32) {
    let _ = harmless!(nr::TGKILL, getpid() as usize, gettid() as usize, signal as usize);
}

/// Map `fd` (or nothing, -1) at exactly `addr`.
///
/// # Safety
/// With `MAP_FIXED`, nothing that is in use lies at `addr..addr + len`.
pub(crate) unsafe fn mmap(
    addr: usize,
    len: usize,
    prot: usize,
    flags: usize,
    fd: i32,
    offset: usize,
) -> Result<usize, Errno> {
    // SAFETY: passed on to the caller.
    unsafe { call(nr::MMAP, [addr, len, prot, flags, fd as usize, offset]) }
}

/// # Safety
/// Nothing in the range is in use.
pub(crate) unsafe fn munmap(addr: usize, len: usize) -> Result<usize, Errno> {
    // SAFETY: passed on to the caller.
    unsafe { call(nr::MUNMAP, [addr, len]) }
}

/// # Safety
/// As `mprotect(2)`: nothing in the range relies on the access it loses.
pub(crate) unsafe fn mprotect(addr: usize, len: usize, prot: usize) -> Result<usize, Errno> {
    // SAFETY: passed on to the caller.
    unsafe { call(nr::MPROTECT, [addr, len, prot]) }
}

/// Map shared memory of this process once more, somewhere, with the same protection; forked children do not have it.
///
/// # Safety
/// Shared memory lies at `addr..addr + len`, and what is written there by its second address harms nobody.
pub(crate) unsafe fn alias(addr: usize, len: usize) -> Result<usize, Errno> {
    const MREMAP_MAYMOVE: usize = 1;
    const MADV_DONTFORK: usize = 10;
    // SAFETY: a length of 0 leaves the mapping where it is.
    let at = unsafe { call(nr::MREMAP, [addr, 0, len, MREMAP_MAYMOVE]) }?;
    // SAFETY: the fresh mapping.
    unsafe { call(nr::MADVISE, [at, len, MADV_DONTFORK]) }?;
    Ok(at)
}

/// Have a forked child find this range zeroed.
///
/// # Safety
/// The range is private memory of this process that is made to be wiped.
pub(crate) unsafe fn wipe_on_fork(addr: usize, len: usize) -> Result<usize, Errno> {
    const MADV_WIPEONFORK: usize = 18;
    // SAFETY: passed on to the caller.
    unsafe { call(nr::MADVISE, [addr, len, MADV_WIPEONFORK]) }
}

/// Have a range take memory by small pages only.
///
/// # Safety
/// The range is memory of this process.
pub(crate) unsafe fn by_small_pages(addr: usize, len: usize) -> Result<usize, Errno> {
    const MADV_NOHUGEPAGE: usize = 15;
    // SAFETY: passed on to the caller.
    unsafe { call(nr::MADVISE, [addr, len, MADV_NOHUGEPAGE]) }
}

/// Make the mappings of a range unchangeable, where the kernel can.
///
/// # Safety
/// Nothing will ever need to change these mappings.
pub(crate) unsafe fn mseal(addr: usize, len: usize) -> Result<usize, Errno> {
    // SAFETY: passed on to the caller.
    unsafe { call(nr::MSEAL, [addr, len, 0]) }
}

/// Sleep while `*word == expected`, at most `timeout_ns`; works between processes.
///
/// # Safety
/// `word` is readable.
pub(crate) unsafe fn futex_wait(word: *const u32, expected: u32, timeout_ns: u64) -> Errno {
    let timeout = timespec(timeout_ns);
    const WAIT: usize = 0;
    let args = [word as usize, WAIT, expected as usize, address(&timeout)];
    // SAFETY: `word` by contract; the timeout is a timespec.
    unsafe { call(nr::FUTEX, args) }.err().map_or(0, |errno| -errno)
}

/// Sleep while both words are what they are expected to be, at most until a time of the monotonic
/// clock; works between processes. May come back early.
///
/// # Safety
/// Both words are readable.
pub(crate) unsafe fn futex_wait_any(words: [(*mut u32, u32); 2], until_ns: u64) {
    const SIZE_32: u64 = 2;
    const CLOCK_MONOTONIC: usize = 1;
    let waiters = words.map(|(word, expected)| [u64::from(expected), word as u64, SIZE_32]);
    let until = timespec(until_ns);
    let (at, until) = (waiters.as_ptr() as usize, address(&until));
    // SAFETY: two `struct futex_waitv` and a timespec; the words by contract.
    let _ = unsafe { call(nr::FUTEX_WAITV, [at, words.len(), 0, until, CLOCK_MONOTONIC]) };
}

/// As the kernel takes a time to wait; None for ever, and for longer than anything lives: the timer is a
/// tenth of a sleep's cost.
fn timespec(ns: u64) -> Option<[u64; 2]> {
    const FOR_EVER: u64 = 1 << 59;
    (ns < FOR_EVER).then_some([ns / 1_000_000_000, ns % 1_000_000_000])
}

/// Where a time lies, for the kernel; 0 for none.
fn address(time: &Option<[u64; 2]>) -> usize {
    time.as_ref().map_or(0, |words| words.as_ptr() as usize)
}

/// Wake sleepers of `word`; how many, or a negated error.
///
/// # Safety
/// `word` is an address that may be waited on.
pub(crate) unsafe fn futex_wake(word: *const u32, count: u32) -> Errno {
    const WAKE: usize = 1;
    // SAFETY: by contract.
    match unsafe { call(nr::FUTEX, [word as usize, WAKE, count as usize]) } {
        Ok(woken) => woken as Errno,
        Err(errno) => -errno,
    }
}

/// Time of a clock by system call, in nanoseconds.
pub(crate) fn clock_ns(clock: usize) -> u64 {
    let mut time = [0u64; 2];
    // SAFETY: `time` is a timespec.
    let _ = unsafe { call(nr::CLOCK_GETTIME, [clock, time.as_mut_ptr() as usize]) };
    time[0] * 1_000_000_000 + time[1]
}

/// The first bytes of a file; how many.
pub(crate) fn read_file(path: &core::ffi::CStr, into: &mut [u8]) -> Result<usize, Errno> {
    const AT_FDCWD: isize = -100;
    const O_CLOEXEC: usize = 0x8_0000;
    // SAFETY: `path` ends with a zero.
    let fd =
        unsafe { call(nr::OPENAT, [AT_FDCWD as usize, path.as_ptr() as usize, O_CLOEXEC]) }? as i32;
    let mut len = 0;
    while let Some(rest) = into.get_mut(len..).filter(|rest| !rest.is_empty()) {
        // SAFETY: the kernel writes into `rest`.
        match unsafe { call(nr::READ, [fd as usize, rest.as_mut_ptr() as usize, rest.len()]) } {
            Ok(n) if n > 0 => len += n,
            _ => break,
        }
    }
    let _ = close(fd);
    Ok(len)
}

/// The path of what a descriptor stands for; how many bytes that is, or as many as there is room for.
pub(crate) fn path_of(fd: u32, into: &mut [u8]) -> Result<usize, Errno> {
    // 21 bytes, ten digits and a zero at most.
    let mut link = Line::<32>::new();
    link.push(b"/proc/thread-self/fd/");
    link.push_decimal(fd);
    link.push(b"\0");
    let args = [link.bytes().as_ptr() as usize, into.as_mut_ptr() as usize, into.len()];
    // SAFETY: a path with its zero; the kernel writes into `into`.
    unsafe { call(nr::READLINK, args) }
}

/// The working directory; how many bytes its name has.
pub(crate) fn working_folder(into: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes into `into`.
    let len = unsafe { call(nr::GETCWD, [into.as_mut_ptr() as usize, into.len()]) }?;
    Ok(len.saturating_sub(1))
}

/// Send a signal to a process, if there is one; it may have gone.
pub(crate) fn kill(pid: u32, signal: i32) {
    if pid != 0 {
        // SAFETY: takes numbers only.
        unsafe { syscall6(nr::KILL, [pid as usize, signal as usize, 0, 0, 0, 0]) };
    }
}

/// Queue the signal [`STOP`] to a thread, with a reason and a value.
pub(crate) fn queue_stop(pid: u32, tid: u32, why: i32, value: u64) -> Result<usize, Errno> {
    let info = Queued::new(getpid(), why, value);
    let at = (&raw const info) as usize;
    // SAFETY: the kernel reads a siginfo.
    unsafe { call(nr::RT_TGSIGQUEUEINFO, [pid as usize, tid as usize, STOP as usize, at]) }
}

/// The same, to whichever of a process's threads the kernel finds.
pub(crate) fn queue_stop_to_any(pid: u32, why: i32) -> Result<usize, Errno> {
    let info = Queued::new(getpid(), why, 0);
    let at = (&raw const info) as usize;
    // SAFETY: the kernel reads a siginfo.
    unsafe { call(nr::RT_SIGQUEUEINFO, [pid as usize, STOP as usize, at]) }
}

/// The pid namespace of this process: the number of its file under /proc, or 0.
pub(crate) fn pid_space() -> u64 {
    const STAT_WORDS: usize = 18;
    const INODE: usize = 1;
    const AT_FDCWD: usize = -100_isize as usize;
    let mut stat = [0u64; STAT_WORDS];
    let path = c"/proc/self/ns/pid".as_ptr() as usize;
    // SAFETY: a path that ends with a zero, and room for a stat structure (144 bytes).
    let result =
        unsafe { syscall6(nr::NEWFSTATAT, [AT_FDCWD, path, stat.as_mut_ptr() as usize, 0, 0, 0]) };
    if result == 0 { stat[INODE] } else { 0 }
}
