//! System calls of the programs in the sandbox, as handlers see them before the kernel does.
//!
//! ```
//! # mod example {
//! use ext_api::prelude::*;
//!
//! #[extension(name = "quiet")]
//! pub mod quiet {
//!     use ext_api::prelude::*;
//!
//!     #[on(syscall = "open openat creat")]
//!     fn opened(call: &mut Call) -> Verdict {
//!         match call.path(if call.name() == "openat" { 1 } else { 0 }) {
//!             Some(path) if path.starts_with(b"/etc/secret") => Verdict::Refuse(13),
//!             _ => Verdict::Pass,
//!         }
//!     }
//! }
//! # }
//! ```

use core::fmt;
use core::net::SocketAddr;
use core::sync::atomic::Ordering::Relaxed;

use crate::abi::{CALL_PASS, CALL_TAKEN, CallBlock, ScratchMark};
use crate::touch;

/// What becomes of a call. After it, [`Verdict::Answer`] and [`Verdict::Refuse`] change what it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The next handler is asked, then the kernel, with the arguments as they are now.
    Pass,
    /// It returns this value; the kernel never sees it.
    Answer(i64),
    /// It fails with this error number; the kernel never sees it.
    Refuse(i32),
}

/// A call that a program is about to make.
#[derive(Debug)]
#[repr(transparent)]
pub struct Call {
    block: CallBlock,
}

impl Call {
    /// The call that a wrapper is given.
    ///
    /// # Safety
    /// libos made the block, for this upcall; it is used by nobody else until that is over.
    #[doc(hidden)]
    #[must_use]
    #[expect(unsafe_code, reason = "libos vouches for the block")]
    pub unsafe fn from_word<'a>(word: u64) -> &'a mut Self {
        // SAFETY: by contract; a block and nothing else.
        unsafe { &mut *(word as *mut Self) }
    }

    /// The verdict, for libos.
    #[doc(hidden)]
    pub const fn decide(&mut self, verdict: Verdict) -> u64 {
        match verdict {
            Verdict::Pass => CALL_PASS,
            Verdict::Answer(value) => {
                self.block.value = value as u64;
                CALL_TAKEN
            }
            Verdict::Refuse(errno) => {
                self.block.value = -(errno as i64) as u64;
                CALL_TAKEN
            }
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.block.number
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        name_of(self.block.number).unwrap_or("?")
    }

    /// What its arguments are, in order.
    pub fn args(&self) -> impl Iterator<Item = Arg> + use<> {
        args_of(self.block.number)
    }

    /// Which of its arguments are paths.
    pub fn paths(&self) -> impl Iterator<Item = usize> + use<> {
        self.args().enumerate().filter(|(_, kind)| *kind == Arg::Path).map(|(at, _)| at)
    }

    /// The descriptor that it is about, if it is about one: the first, and not that of a folder.
    #[must_use]
    pub fn descriptor(&self) -> Option<i32> {
        let mut kinds = self.args();
        let first = kinds.next() == Some(Arg::Fd) && kinds.next() != Some(Arg::Path);
        first.then_some(self.arg(0) as i32)
    }

    /// The address of a socket that it is given: of `connect`, `bind` and `sendto`. None if it has none,
    /// or one of a family that is neither the internet's nor Unix's, or one where nothing is.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        let at = self.args().position(|kind| kind == Arg::Address)?;
        let mut bytes = [0; ADDRESS_LEN_MAX];
        let len = (self.arg(at + 1) as usize).min(ADDRESS_LEN_MAX);
        let is_there = self.peek(at, len, &mut bytes) == Some(len);
        is_there.then(|| Address::read(&bytes[..len]))?
    }

    /// What it has returned, in a handler that runs [afterwards](crate::abi::HOOK_CALLS_AFTER): a negated
    /// errno is a failure. 0 before.
    #[must_use]
    pub const fn result(&self) -> i64 {
        self.block.value as i64
    }

    /// How long it took in the kernel, in nanoseconds; 0 before.
    #[must_use]
    pub const fn took_ns(&self) -> u64 {
        self.block.took_ns
    }

    /// Argument `index`, from 0 to 5, as the register has it.
    #[must_use]
    pub fn arg(&self, index: usize) -> u64 {
        self.block.args.get(index).copied().unwrap_or(0)
    }

    /// Change an argument.
    pub fn set_arg(&mut self, index: usize, value: u64) {
        if let Some(arg) = self.block.args.get_mut(index) {
            *arg = value;
        }
    }

    /// The path that argument `index` points to, without its final zero. It is copied, once: the kernel
    /// gets the copy, whatever the program does to its own meanwhile. None if it is longer than a path
    /// can be. Empty if there is none, as of `futimens`, and of an address where nothing is, for which the
    /// kernel will say EFAULT.
    #[must_use]
    #[expect(unsafe_code, reason = "reads and writes the scratch room")]
    pub fn path(&mut self, index: usize) -> Option<&[u8]> {
        let from = self.arg(index) as *const u8;
        if from.is_null() {
            return Some(&[]);
        }
        if self.is_ours(from) {
            // SAFETY: a copy that was made before, which ends with a zero.
            return Some(unsafe { core::ffi::CStr::from_ptr(from.cast()) }.to_bytes());
        }
        let room = self.block.scratch_len.saturating_sub(self.block.scratch_used).min(PATH_LEN_MAX);
        let to = self.block.scratch.wrapping_add(self.block.scratch_used);
        for len in 0..room {
            let Some(byte) = touch::load(from.wrapping_add(len)) else {
                // Nor is the kernel to find anything there, whatever the program maps meanwhile.
                self.block.args[index] = NOWHERE;
                return Some(&[]);
            };
            // SAFETY: within the scratch room, which is ours for this call.
            unsafe { to.wrapping_add(len).write(byte) };
            if byte == 0 {
                self.use_scratch(len + 1);
                self.block.args[index] = to as u64;
                // SAFETY: just written.
                return Some(unsafe { core::slice::from_raw_parts(to, len) });
            }
        }
        None
    }

    /// Have argument `index` point to another path. False if there is no room for it.
    #[expect(unsafe_code, reason = "writes the kernel's copy")]
    pub fn set_path(&mut self, index: usize, path: &[u8]) -> bool {
        let left = self.block.scratch_len.saturating_sub(self.block.scratch_used);
        if path.len() >= left.min(PATH_LEN_MAX) || index > 5 || path.contains(&0) {
            return false;
        }
        let to = self.block.scratch.wrapping_add(self.block.scratch_used);
        // SAFETY: within the scratch room, which is ours for this call; `path` may lie in it as well.
        unsafe { core::ptr::copy(path.as_ptr(), to, path.len()) };
        // SAFETY: as above.
        unsafe { to.wrapping_add(path.len()).write(0) };
        self.use_scratch(path.len() + 1);
        self.block.args[index] = to as u64;
        true
    }

    /// So many more bytes of the scratch room are in use: also for calls that a signal handler of the program
    /// makes before this one is over.
    #[expect(unsafe_code, reason = "writes the mark behind the scratch room")]
    fn use_scratch(&mut self, len: usize) {
        self.block.scratch_used += len;
        let end = self.block.scratch.wrapping_add(self.block.scratch_used) as u64;
        let mark = self.block.scratch.wrapping_add(self.block.scratch_len).cast::<ScratchMark>();
        // SAFETY: libos has it there, for this thread.
        let mark = unsafe { &*mark };
        mark.end.store(end, Relaxed);
        if mark.at.load(Relaxed) == 0 {
            mark.at.store(core::ptr::from_ref(self) as u64, Relaxed);
        }
    }

    /// Look at `len` bytes that argument `index` points to: how many of them were copied into `to`, which is
    /// fewer if nothing is behind these. What the program does to them afterwards, the kernel sees as well.
    /// None if `to` is too short: it is full then.
    pub fn peek(&self, index: usize, len: usize, to: &mut [u8]) -> Option<usize> {
        let from = self.arg(index) as *const u8;
        if from.is_null() {
            return Some(0);
        }
        for (offset, place) in to.iter_mut().take(len).enumerate() {
            let Some(byte) = touch::load(from.wrapping_add(offset)) else { return Some(offset) };
            *place = byte;
        }
        (len <= to.len()).then_some(len)
    }

    /// As [`peek`](Self::peek), of a text up to its final zero, which is not counted. None also of one that ends
    /// without a zero, where nothing is: what `to` has behind it is zeros then.
    pub fn peek_text(&self, index: usize, to: &mut [u8]) -> Option<usize> {
        let from = self.arg(index) as *const u8;
        if from.is_null() {
            return Some(0);
        }
        for offset in 0..to.len() {
            let Some(byte) = touch::load(from.wrapping_add(offset)) else {
                to[offset..].fill(0);
                return None;
            };
            to[offset] = byte;
            if byte == 0 {
                return Some(offset);
            }
        }
        None
    }

    /// Write what argument `index` points to, as the kernel would for a call that it answers. False if
    /// there is an address where nothing can be written: who passes the call on then has the kernel say EFAULT.
    #[must_use]
    #[expect(unsafe_code, reason = "writes the program's memory")]
    pub fn fill(&mut self, index: usize, bytes: &[u8]) -> bool {
        let to = self.arg(index) as *mut u8;
        let mut bytes = bytes.iter().enumerate();
        // SAFETY: the program has asked for it.
        bytes.all(|(offset, byte)| unsafe { touch::store(to.wrapping_add(offset), *byte) })
    }

    fn is_ours(&self, address: *const u8) -> bool {
        let offset = (address as usize).wrapping_sub(self.block.scratch as usize);
        offset < self.block.scratch_used
    }
}

/// What an argument of a system call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// A descriptor, or AT_FDCWD.
    Fd,
    /// A path that is looked up.
    Path,
    /// Another text.
    Text,
    /// A signed number.
    Int,
    /// An unsigned one.
    Size,
    /// An address, or bits.
    Word,
    /// Flags of `open`.
    OpenFlags,
    /// Permissions.
    Mode,
    /// Bytes that the program hands over; their number follows.
    Out,
    /// Bytes that it gets: as many as the call returns.
    In,
    /// An address of a socket; its length follows.
    Address,
}

impl Arg {
    /// What a letter of [`HOOKABLE_CALLS`] stands for.
    #[must_use]
    pub const fn of(letter: u8) -> Self {
        match letter {
            b'd' => Self::Fd,
            b'p' => Self::Path,
            b't' => Self::Text,
            b'i' => Self::Int,
            b'u' => Self::Size,
            b'o' => Self::OpenFlags,
            b'm' => Self::Mode,
            b'w' => Self::Out,
            b'r' => Self::In,
            b'a' => Self::Address,
            _ => Self::Word,
        }
    }
}

fn known(number: u64) -> Option<&'static (&'static str, u64, &'static str)> {
    /// By number: where in the list it is; what is not there has a place behind its end.
    static PLACES: [u8; SET_WORDS * 64] = {
        assert!(HOOKABLE_CALLS.len() < u8::MAX as usize);
        let (mut places, mut at) = ([u8::MAX; SET_WORDS * 64], 0);
        while at < HOOKABLE_CALLS.len() {
            places[HOOKABLE_CALLS[at].1 as usize] = at as u8;
            at += 1;
        }
        places
    };
    HOOKABLE_CALLS.get(usize::from(*PLACES.get(number as usize)?))
}

/// The name of a call that can be hooked.
#[must_use]
pub fn name_of(number: u64) -> Option<&'static str> {
    known(number).map(|(name, ..)| *name)
}

/// What the arguments of a call are.
pub fn args_of(number: u64) -> impl Iterator<Item = Arg> {
    known(number).map_or("", |(.., args)| args).bytes().map(Arg::of)
}

/// The longest address of a socket that is read: a Unix one.
const ADDRESS_LEN_MAX: usize = 110;

/// An address of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// TCP or UDP.
    Internet(SocketAddr),
    /// Of AF_UNIX: its bytes, and how many there are. The first is zero of an abstract one.
    Unix([u8; 108], usize),
}

impl Address {
    /// From the kernel's form; None for other families, and for one that is cut short.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        const UNIX: u16 = 1;
        const INTERNET: u16 = 2;
        const INTERNET_6: u16 = 10;
        let family = u16::from_ne_bytes(*bytes.first_chunk()?);
        let port = || Some(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?));
        match family {
            UNIX => {
                let name = &bytes[2..];
                let is_abstract = name.first() == Some(&0);
                let end = if is_abstract { None } else { name.iter().position(|byte| *byte == 0) };
                let len = end.unwrap_or(name.len()).min(108);
                let mut path = [0; 108];
                path[..len].copy_from_slice(&name[..len]);
                Some(Self::Unix(path, len))
            }
            INTERNET => {
                let address: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
                Some(Self::Internet(SocketAddr::from((address, port()?))))
            }
            INTERNET_6 => {
                let address: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
                Some(Self::Internet(SocketAddr::from((address, port()?))))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internet(address) => address.fmt(f),
            Self::Unix(path, len) => match path.get(..*len).unwrap_or(&[]) {
                [0, name @ ..] => write!(f, "unix:@{}", name.escape_ascii()),
                name => write!(f, "unix:{}", name.escape_ascii()),
            },
        }
    }
}

/// Where nothing of a program's ever is.
const NOWHERE: u64 = u64::MAX;

/// Longest path, with its zero: the kernel's.
pub const PATH_LEN_MAX: usize = 4096;

/// Words of a set of calls: a bit per number.
pub const SET_WORDS: usize = 8;

/// The numbers of the calls named in `names`, which are separated by spaces: `@file` for those that take
/// a path, `@network` for those on sockets, `all` for all that handlers can be hooked to.
///
/// # Panics
/// At compile time, for a name that is none.
#[must_use]
pub const fn set(names: &str) -> [u64; SET_WORDS] {
    match find(names) {
        Ok(set) => set,
        Err(_) => {
            panic!("handlers can be hooked to the calls of ext_api::calls::HOOKABLE_CALLS only")
        }
    }
}

/// As [`set`], at run time.
///
/// # Errors
/// Where in `names` one begins that is none.
pub const fn find(names: &str) -> Result<[u64; SET_WORDS], usize> {
    let (mut set, bytes) = ([0; SET_WORDS], names.as_bytes());
    let mut start = 0;
    while start < bytes.len() {
        let mut end = start;
        while end < bytes.len() && bytes[end] != b' ' {
            end += 1;
        }
        if end != start && !add(&mut set, bytes, start, end) {
            return Err(start);
        }
        start = end + 1;
    }
    Ok(set)
}

/// False if there is no such name.
const fn add(set: &mut [u64; SET_WORDS], names: &[u8], start: usize, end: usize) -> bool {
    let mut found = false;
    let mut at = 0;
    while at < HOOKABLE_CALLS.len() {
        let (name, number, args) = HOOKABLE_CALLS[at];
        let mut wanted = is(names, start, end, name) || is(names, start, end, "all");
        wanted |= is(names, start, end, "@file") && has_path(args);
        let mut member = 0;
        while member < NETWORK.len() {
            let same = is(name.as_bytes(), 0, name.len(), NETWORK[member]);
            wanted |= same && is(names, start, end, "@network");
            member += 1;
        }
        if wanted {
            set[number as usize / 64] |= 1 << (number % 64);
            found = true;
        }
        at += 1;
    }
    found
}

const fn has_path(args: &str) -> bool {
    let args = args.as_bytes();
    let mut at = 0;
    while at < args.len() {
        if args[at] == b'p' {
            return true;
        }
        at += 1;
    }
    false
}

const fn is(bytes: &[u8], start: usize, end: usize, name: &str) -> bool {
    let name = name.as_bytes();
    let mut at = 0;
    while at < name.len() && start + at < end {
        if bytes[start + at] != name[at] {
            return false;
        }
        at += 1;
    }
    at == name.len() && start + at == end
}

const NETWORK: [&str; 18] = [
    "socket",
    "connect",
    "accept",
    "accept4",
    "bind",
    "listen",
    "sendto",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "sendmmsg",
    "recvmmsg",
    "shutdown",
    "getsockname",
    "getpeername",
    "socketpair",
    "setsockopt",
    "getsockopt",
];

/// Calls that handlers can be hooked to, by number; what their arguments are, a letter each, as
/// [`Arg::of`] reads them. Not among them: those that return twice or never (fork, exit, sigreturn), and those by which libos and the launcher live (signal masks, alternate
/// stacks, FS base, prctl).
pub const HOOKABLE_CALLS: [(&str, u64, &str); 187] = [
    ("read", 0, "dru"),
    ("write", 1, "dwu"),
    ("open", 2, "pom"),
    ("close", 3, "d"),
    ("stat", 4, "px"),
    ("fstat", 5, "dx"),
    ("lstat", 6, "px"),
    ("poll", 7, "xui"),
    ("lseek", 8, "dii"),
    ("mmap", 9, "xuxxdi"),
    ("mprotect", 10, "xux"),
    ("munmap", 11, "xu"),
    ("brk", 12, "x"),
    ("ioctl", 16, "dxx"),
    ("pread64", 17, "drui"),
    ("pwrite64", 18, "dwui"),
    ("readv", 19, "dxu"),
    ("writev", 20, "dxu"),
    ("access", 21, "pi"),
    ("pipe", 22, "x"),
    ("select", 23, "ixxxx"),
    ("sched_yield", 24, ""),
    ("mremap", 25, "xuuxx"),
    ("madvise", 28, "xui"),
    ("dup", 32, "d"),
    ("dup2", 33, "dd"),
    ("nanosleep", 35, "xx"),
    ("getitimer", 36, "ix"),
    ("alarm", 37, "u"),
    ("setitimer", 38, "ixx"),
    ("getpid", 39, ""),
    ("sendfile", 40, "ddxu"),
    ("socket", 41, "iii"),
    ("connect", 42, "dau"),
    ("accept", 43, "dxx"),
    ("sendto", 44, "dwuxau"),
    ("recvfrom", 45, "druxxx"),
    ("sendmsg", 46, "dxx"),
    ("recvmsg", 47, "dxx"),
    ("shutdown", 48, "di"),
    ("bind", 49, "dau"),
    ("listen", 50, "di"),
    ("getsockname", 51, "dxx"),
    ("getpeername", 52, "dxx"),
    ("socketpair", 53, "iiix"),
    ("setsockopt", 54, "diixu"),
    ("getsockopt", 55, "diixx"),
    ("execve", 59, "pxx"),
    ("wait4", 61, "ixxx"),
    ("kill", 62, "ii"),
    ("uname", 63, "x"),
    ("fcntl", 72, "dix"),
    ("flock", 73, "di"),
    ("fsync", 74, "d"),
    ("fdatasync", 75, "d"),
    ("truncate", 76, "pi"),
    ("ftruncate", 77, "di"),
    ("getdents", 78, "dxu"),
    ("getcwd", 79, "xu"),
    ("chdir", 80, "p"),
    ("fchdir", 81, "d"),
    ("rename", 82, "pp"),
    ("mkdir", 83, "pm"),
    ("rmdir", 84, "p"),
    ("creat", 85, "pm"),
    ("link", 86, "pp"),
    ("unlink", 87, "p"),
    ("symlink", 88, "tp"),
    ("readlink", 89, "pru"),
    ("chmod", 90, "pm"),
    ("fchmod", 91, "dm"),
    ("chown", 92, "pii"),
    ("fchown", 93, "dii"),
    ("lchown", 94, "pii"),
    ("umask", 95, "m"),
    ("gettimeofday", 96, "xx"),
    ("getrlimit", 97, "ix"),
    ("getrusage", 98, "ix"),
    ("sysinfo", 99, "x"),
    ("times", 100, "x"),
    ("getuid", 102, ""),
    ("getgid", 104, ""),
    ("setuid", 105, "i"),
    ("setgid", 106, "i"),
    ("geteuid", 107, ""),
    ("getegid", 108, ""),
    ("setpgid", 109, "ii"),
    ("getppid", 110, ""),
    ("getpgrp", 111, ""),
    ("setsid", 112, ""),
    ("getgroups", 115, "ix"),
    ("getresuid", 118, "xxx"),
    ("getresgid", 120, "xxx"),
    ("getpgid", 121, "i"),
    ("getsid", 124, "i"),
    ("utime", 132, "px"),
    ("mknod", 133, "pmx"),
    ("statfs", 137, "px"),
    ("fstatfs", 138, "dx"),
    ("getpriority", 140, "ii"),
    ("setpriority", 141, "iii"),
    ("chroot", 161, "p"),
    ("sync", 162, ""),
    ("gettid", 186, ""),
    ("readahead", 187, "diu"),
    ("setxattr", 188, "ptxux"),
    ("lsetxattr", 189, "ptxux"),
    ("fsetxattr", 190, "dtxux"),
    ("getxattr", 191, "ptxu"),
    ("lgetxattr", 192, "ptxu"),
    ("fgetxattr", 193, "dtxu"),
    ("listxattr", 194, "pxu"),
    ("llistxattr", 195, "pxu"),
    ("flistxattr", 196, "dxu"),
    ("removexattr", 197, "pt"),
    ("lremovexattr", 198, "pt"),
    ("fremovexattr", 199, "dt"),
    ("tkill", 200, "ii"),
    ("time", 201, "x"),
    ("futex", 202, "xiixxi"),
    ("sched_setaffinity", 203, "iux"),
    ("sched_getaffinity", 204, "iux"),
    ("epoll_create", 213, "i"),
    ("getdents64", 217, "dxu"),
    ("fadvise64", 221, "diii"),
    ("clock_gettime", 228, "ix"),
    ("clock_getres", 229, "ix"),
    ("clock_nanosleep", 230, "iixx"),
    ("epoll_wait", 232, "dxii"),
    ("epoll_ctl", 233, "didx"),
    ("tgkill", 234, "iii"),
    ("utimes", 235, "px"),
    ("waitid", 247, "iixxx"),
    ("inotify_add_watch", 254, "dpx"),
    ("openat", 257, "dpom"),
    ("mkdirat", 258, "dpm"),
    ("mknodat", 259, "dpmx"),
    ("fchownat", 260, "dpiix"),
    ("futimesat", 261, "dpx"),
    ("newfstatat", 262, "dpxx"),
    ("unlinkat", 263, "dpx"),
    ("renameat", 264, "dpdp"),
    ("linkat", 265, "dpdpx"),
    ("symlinkat", 266, "tdp"),
    ("readlinkat", 267, "dpru"),
    ("fchmodat", 268, "dpm"),
    ("faccessat", 269, "dpi"),
    ("set_robust_list", 273, "xu"),
    ("splice", 275, "dxdxux"),
    ("tee", 276, "ddux"),
    ("sync_file_range", 277, "diix"),
    ("vmsplice", 278, "dxux"),
    ("utimensat", 280, "dpxx"),
    ("timerfd_create", 283, "ix"),
    ("eventfd", 284, "u"),
    ("fallocate", 285, "diii"),
    ("timerfd_settime", 286, "dxxx"),
    ("timerfd_gettime", 287, "dx"),
    ("accept4", 288, "dxxx"),
    ("signalfd4", 289, "dxux"),
    ("eventfd2", 290, "ux"),
    ("epoll_create1", 291, "x"),
    ("dup3", 292, "ddx"),
    ("pipe2", 293, "xx"),
    ("inotify_init1", 294, "x"),
    ("preadv", 295, "dxuii"),
    ("pwritev", 296, "dxuii"),
    ("recvmmsg", 299, "dxuxx"),
    ("prlimit64", 302, "iixx"),
    ("name_to_handle_at", 303, "dpxxx"),
    ("syncfs", 306, "d"),
    ("sendmmsg", 307, "dxux"),
    ("getcpu", 309, "xxx"),
    ("renameat2", 316, "dpdpx"),
    ("getrandom", 318, "xux"),
    ("memfd_create", 319, "tx"),
    ("execveat", 322, "dpxxx"),
    ("copy_file_range", 326, "dxdxux"),
    ("preadv2", 327, "dxuiix"),
    ("pwritev2", 328, "dxuiix"),
    ("statx", 332, "dpxxx"),
    ("pidfd_send_signal", 424, "dixx"),
    ("pidfd_open", 434, "ix"),
    ("close_range", 436, "uux"),
    ("openat2", 437, "dpxu"),
    ("faccessat2", 439, "dpix"),
    ("fchmodat2", 452, "dpmx"),
];

#[cfg(test)]
mod tests {
    use super::{Address, Arg, HOOKABLE_CALLS, SET_WORDS, args_of, find, name_of, set};

    const fn has(set: [u64; SET_WORDS], number: u64) -> bool {
        set[number as usize / 64] >> (number % 64) & 1 == 1
    }

    #[test]
    fn sets_are_what_their_names_say() {
        const TWO: [u64; SET_WORDS] = set("openat  close");
        assert!(has(TWO, 257) && has(TWO, 3) && !has(TWO, 2));
        assert_eq!(TWO.iter().map(|word| word.count_ones()).sum::<u32>(), 2);
        const NETWORK: [u64; SET_WORDS] = set("@network");
        assert!(has(NETWORK, 42) && has(NETWORK, 307) && !has(NETWORK, 0));
        assert_eq!(NETWORK.iter().map(|word| word.count_ones()).sum::<u32>(), 18);
        let files = set("@file");
        assert!(has(files, 257) && has(files, 268) && has(files, 86) && !has(files, 0));
        let all = set("all").iter().map(|word| word.count_ones()).sum::<u32>();
        assert_eq!(all as usize, HOOKABLE_CALLS.len());
        assert!(HOOKABLE_CALLS.is_sorted_by_key(|(_, number, _)| *number));
        assert!(HOOKABLE_CALLS.iter().all(|(_, _, args)| args.len() <= 6));
        assert_eq!(find("read  nope"), Err(6));
        assert_eq!((name_of(0), name_of(59)), (Some("read"), Some("execve")));
        assert!(args_of(257).eq([Arg::Fd, Arg::Path, Arg::OpenFlags, Arg::Mode]));
    }

    #[test]
    fn addresses_are_read_as_the_kernel_does() {
        let text = |bytes: &[u8]| Address::read(bytes).map(|address| address.to_string());
        let four = text(&[2, 0, 0, 80, 127, 0, 0, 1, 0, 0]);
        assert_eq!(four.as_deref(), Some("127.0.0.1:80"));
        let mut six = [0; 28];
        (six[0], six[3], six[23]) = (10, 9, 1);
        assert_eq!(text(&six).as_deref(), Some("[::1]:9"));
        assert_eq!(text(b"\x01\0/run/x\0junk").as_deref(), Some("unix:/run/x"));
        assert_eq!(text(b"\x01\0\0hidden").as_deref(), Some("unix:@hidden"));
        for len in 0..8 {
            assert_eq!(text(&[2, 0, 0, 80, 127, 0, 0, 1][..len]), None);
        }
        assert_eq!(text(&[99, 0, 1]), None);
    }
}
