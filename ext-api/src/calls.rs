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

use crate::abi::{CALL_PASS, CALL_TAKEN, CallBlock};

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
        let known = HOOKABLE_CALLS.iter().find(|(_, number)| *number == self.block.number);
        known.map_or("?", |(name, _)| name)
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
    /// can be. An address where nothing is ends the handler, and the kernel says EFAULT.
    #[must_use]
    #[expect(unsafe_code, reason = "reads the program's memory")]
    pub fn path(&mut self, index: usize) -> Option<&[u8]> {
        let from = self.arg(index) as *const u8;
        if self.is_ours(from) {
            // SAFETY: a copy that was made before, which ends with a zero.
            return Some(unsafe { core::ffi::CStr::from_ptr(from.cast()) }.to_bytes());
        }
        let room = self.block.scratch_len.saturating_sub(self.block.scratch_used).min(PATH_LEN_MAX);
        let to = self.block.scratch.wrapping_add(self.block.scratch_used);
        for len in 0..room {
            // SAFETY: as a path it is readable up to its zero; if not, this upcall ends here.
            let byte = unsafe { from.wrapping_add(len).read_volatile() };
            // SAFETY: within the scratch room, which is ours for this call.
            unsafe { to.wrapping_add(len).write(byte) };
            if byte == 0 {
                self.block.scratch_used += len + 1;
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
        self.block.scratch_used += path.len() + 1;
        self.block.args[index] = to as u64;
        true
    }

    /// Look at `len` bytes that argument `index` points to: how many of them were copied into `to`. What
    /// the program does to them afterwards, the kernel sees as well. None if `to` is too short: it is
    /// full then. An address where nothing is ends the handler.
    #[expect(unsafe_code, reason = "reads the program's memory")]
    pub fn peek(&self, index: usize, len: usize, to: &mut [u8]) -> Option<usize> {
        let from = self.arg(index) as *const u8;
        if from.is_null() {
            return Some(0);
        }
        for (offset, byte) in to.iter_mut().take(len).enumerate() {
            // SAFETY: the kernel reads or has written it for the same call; if not, this upcall ends.
            *byte = unsafe { from.wrapping_add(offset).read_volatile() };
        }
        (len <= to.len()).then_some(len)
    }

    /// As [`peek`](Self::peek), of a text up to its final zero, which is not counted.
    #[expect(unsafe_code, reason = "reads the program's memory")]
    pub fn peek_text(&self, index: usize, to: &mut [u8]) -> Option<usize> {
        let from = self.arg(index) as *const u8;
        if from.is_null() {
            return Some(0);
        }
        for (offset, byte) in to.iter_mut().enumerate() {
            // SAFETY: as a text it is readable up to its zero; if not, this upcall ends here.
            *byte = unsafe { from.wrapping_add(offset).read_volatile() };
            if *byte == 0 {
                return Some(offset);
            }
        }
        None
    }

    /// Write what argument `index` points to, as the kernel would for a call that it answers. An address
    /// where nothing can be written ends the handler, and the kernel says EFAULT.
    #[expect(unsafe_code, reason = "writes the program's memory")]
    pub fn fill(&mut self, index: usize, bytes: &[u8]) {
        let to = self.arg(index) as *mut u8;
        for (offset, byte) in bytes.iter().enumerate() {
            // SAFETY: the program has asked for it; if it cannot be written, this upcall ends here.
            unsafe { to.wrapping_add(offset).write_volatile(*byte) };
        }
    }

    fn is_ours(&self, address: *const u8) -> bool {
        let offset = (address as usize).wrapping_sub(self.block.scratch as usize);
        offset < self.block.scratch_used
    }
}

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
    let groups: [(&str, &[&str]); 2] = [("@file", &FILE), ("@network", &NETWORK)];
    let mut found = false;
    let mut at = 0;
    while at < HOOKABLE_CALLS.len() {
        let (name, number) = HOOKABLE_CALLS[at];
        let mut wanted = is(names, start, end, name) || is(names, start, end, "all");
        let mut group = 0;
        while group < groups.len() {
            let (group_name, members) = groups[group];
            let mut member = 0;
            while member < members.len() {
                let same = is(name.as_bytes(), 0, name.len(), members[member]);
                wanted |= same && is(names, start, end, group_name);
                member += 1;
            }
            group += 1;
        }
        if wanted {
            set[number as usize / 64] |= 1 << (number % 64);
            found = true;
        }
        at += 1;
    }
    found
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

const FILE: [&str; 25] = [
    "open",
    "openat",
    "openat2",
    "creat",
    "stat",
    "lstat",
    "newfstatat",
    "statx",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "unlink",
    "unlinkat",
    "rename",
    "renameat",
    "renameat2",
    "mkdir",
    "mkdirat",
    "rmdir",
    "chmod",
    "chown",
    "truncate",
    "chdir",
];
const NETWORK: [&str; 14] = [
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
    "shutdown",
    "getsockname",
    "getpeername",
    "setsockopt",
];

/// Calls that handlers can be hooked to. Not among them: those that never return or return twice (exec,
/// fork, exit, sigreturn), those by which libos itself lives (signal masks, alternate stacks, threads'
/// own words), and those on address ranges, by which the region could be reached.
pub const HOOKABLE_CALLS: [(&str, u64); 118] = [
    ("read", 0),
    ("write", 1),
    ("open", 2),
    ("close", 3),
    ("stat", 4),
    ("fstat", 5),
    ("lstat", 6),
    ("poll", 7),
    ("lseek", 8),
    ("ioctl", 16),
    ("pread64", 17),
    ("pwrite64", 18),
    ("readv", 19),
    ("writev", 20),
    ("access", 21),
    ("pipe", 22),
    ("select", 23),
    ("sched_yield", 24),
    ("dup", 32),
    ("dup2", 33),
    ("nanosleep", 35),
    ("getpid", 39),
    ("sendfile", 40),
    ("socket", 41),
    ("connect", 42),
    ("accept", 43),
    ("sendto", 44),
    ("recvfrom", 45),
    ("sendmsg", 46),
    ("recvmsg", 47),
    ("shutdown", 48),
    ("bind", 49),
    ("listen", 50),
    ("getsockname", 51),
    ("getpeername", 52),
    ("socketpair", 53),
    ("setsockopt", 54),
    ("getsockopt", 55),
    ("wait4", 61),
    ("kill", 62),
    ("uname", 63),
    ("fcntl", 72),
    ("flock", 73),
    ("fsync", 74),
    ("fdatasync", 75),
    ("truncate", 76),
    ("ftruncate", 77),
    ("getdents", 78),
    ("getcwd", 79),
    ("chdir", 80),
    ("fchdir", 81),
    ("rename", 82),
    ("mkdir", 83),
    ("rmdir", 84),
    ("creat", 85),
    ("link", 86),
    ("unlink", 87),
    ("symlink", 88),
    ("readlink", 89),
    ("chmod", 90),
    ("fchmod", 91),
    ("chown", 92),
    ("fchown", 93),
    ("lchown", 94),
    ("umask", 95),
    ("gettimeofday", 96),
    ("getrlimit", 97),
    ("getrusage", 98),
    ("sysinfo", 99),
    ("getuid", 102),
    ("getgid", 104),
    ("geteuid", 107),
    ("getegid", 108),
    ("getppid", 110),
    ("utime", 132),
    ("statfs", 137),
    ("fstatfs", 138),
    ("getpriority", 140),
    ("setpriority", 141),
    ("gettid", 186),
    ("time", 201),
    ("getdents64", 217),
    ("clock_gettime", 228),
    ("clock_nanosleep", 230),
    ("epoll_wait", 232),
    ("epoll_ctl", 233),
    ("tgkill", 234),
    ("waitid", 247),
    ("openat", 257),
    ("mkdirat", 258),
    ("mknodat", 259),
    ("fchownat", 260),
    ("newfstatat", 262),
    ("unlinkat", 263),
    ("renameat", 264),
    ("linkat", 265),
    ("symlinkat", 266),
    ("readlinkat", 267),
    ("fchmodat", 268),
    ("faccessat", 269),
    ("splice", 275),
    ("utimensat", 280),
    ("eventfd", 284),
    ("fallocate", 285),
    ("accept4", 288),
    ("eventfd2", 290),
    ("epoll_create1", 291),
    ("dup3", 292),
    ("pipe2", 293),
    ("preadv", 295),
    ("pwritev", 296),
    ("prlimit64", 302),
    ("renameat2", 316),
    ("getrandom", 318),
    ("copy_file_range", 326),
    ("statx", 332),
    ("openat2", 437),
    ("faccessat2", 439),
];

#[cfg(test)]
mod tests {
    use super::{HOOKABLE_CALLS, SET_WORDS, set};

    const fn has(set: [u64; SET_WORDS], number: u64) -> bool {
        set[number as usize / 64] >> (number % 64) & 1 == 1
    }

    #[test]
    fn sets_are_what_their_names_say() {
        const TWO: [u64; SET_WORDS] = set("openat  close");
        assert!(has(TWO, 257) && has(TWO, 3) && !has(TWO, 2));
        assert_eq!(TWO.iter().map(|word| word.count_ones()).sum::<u32>(), 2);
        const NETWORK: [u64; SET_WORDS] = set("@network");
        assert!(has(NETWORK, 42) && !has(NETWORK, 0));
        assert_eq!(NETWORK.iter().map(|word| word.count_ones()).sum::<u32>(), 14);
        let files = set("@file").iter().map(|word| word.count_ones()).sum::<u32>();
        assert_eq!(files, 25);
        let all = set("all").iter().map(|word| word.count_ones()).sum::<u32>();
        assert_eq!(all as usize, HOOKABLE_CALLS.len());
        assert!(HOOKABLE_CALLS.is_sorted_by_key(|(_, number)| *number));
    }
}
