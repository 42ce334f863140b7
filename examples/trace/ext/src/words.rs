//! Arguments of system calls that are made of names: which, and of what names.

use super::decode::{decimal, hexadecimal};

/// A value and its name.
type Names = &'static [(u64, &'static str)];

/// How a word is made of names.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Words {
    /// It is one of them.
    One(Names),
    /// Bits, and what none of them is called.
    Bits(Names, &'static str),
    /// One of them in the bits of this mask, and bits beside it.
    Both(u64, Names, Names),
    /// What is asked of a futex.
    Futex,
}

use Words::{Bits, Both, One};

const PROT: Words = Bits(
    &[(1, "PROT_READ"), (2, "PROT_WRITE"), (4, "PROT_EXEC"), (1 << 24, "PROT_GROWSDOWN")],
    "PROT_NONE",
);
const MAP: Words = Both(
    0xf,
    &[(1, "MAP_SHARED"), (2, "MAP_PRIVATE"), (3, "MAP_SHARED_VALIDATE")],
    &[
        (0x10, "MAP_FIXED"),
        (0x20, "MAP_ANONYMOUS"),
        (0x40, "MAP_32BIT"),
        (0x100, "MAP_GROWSDOWN"),
        (0x800, "MAP_DENYWRITE"),
        (0x1000, "MAP_EXECUTABLE"),
        (0x2000, "MAP_LOCKED"),
        (0x4000, "MAP_NORESERVE"),
        (0x8000, "MAP_POPULATE"),
        (0x1_0000, "MAP_NONBLOCK"),
        (0x2_0000, "MAP_STACK"),
        (0x4_0000, "MAP_HUGETLB"),
        (0x8_0000, "MAP_SYNC"),
        (0x10_0000, "MAP_FIXED_NOREPLACE"),
    ],
);
const ADVICE: Words = One(&[
    (0, "MADV_NORMAL"),
    (1, "MADV_RANDOM"),
    (2, "MADV_SEQUENTIAL"),
    (3, "MADV_WILLNEED"),
    (4, "MADV_DONTNEED"),
    (8, "MADV_FREE"),
    (9, "MADV_REMOVE"),
    (10, "MADV_DONTFORK"),
    (14, "MADV_HUGEPAGE"),
    (15, "MADV_NOHUGEPAGE"),
    (16, "MADV_DONTDUMP"),
    (21, "MADV_PAGEOUT"),
    (23, "MADV_POPULATE_WRITE"),
]);
const ACCESS: Words = Bits(&[(4, "R_OK"), (2, "W_OK"), (1, "X_OK")], "F_OK");
const AT: Words = Bits(
    &[
        (0x100, "AT_SYMLINK_NOFOLLOW"),
        (0x400, "AT_SYMLINK_FOLLOW"),
        (0x800, "AT_NO_AUTOMOUNT"),
        (0x1000, "AT_EMPTY_PATH"),
        (0x2000, "AT_STATX_FORCE_SYNC"),
        (0x4000, "AT_STATX_DONT_SYNC"),
    ],
    "0",
);
const REMOVE: Words = Bits(&[(0x200, "AT_REMOVEDIR")], "0");
const EFFECTIVE: Words =
    Bits(&[(0x100, "AT_SYMLINK_NOFOLLOW"), (0x200, "AT_EACCESS"), (0x1000, "AT_EMPTY_PATH")], "0");
const RENAME: Words =
    Bits(&[(1, "RENAME_NOREPLACE"), (2, "RENAME_EXCHANGE"), (4, "RENAME_WHITEOUT")], "0");
const WHENCE: Words =
    One(&[(0, "SEEK_SET"), (1, "SEEK_CUR"), (2, "SEEK_END"), (3, "SEEK_DATA"), (4, "SEEK_HOLE")]);
const FAMILY: Words = One(&[
    (0, "AF_UNSPEC"),
    (1, "AF_UNIX"),
    (2, "AF_INET"),
    (10, "AF_INET6"),
    (16, "AF_NETLINK"),
    (17, "AF_PACKET"),
    (40, "AF_VSOCK"),
]);
const SOCKET_FLAGS: Names = &[(0o4000, "SOCK_NONBLOCK"), (0o2_000_000, "SOCK_CLOEXEC")];
const SOCKET_TYPE: Words = Both(
    0xf,
    &[(1, "SOCK_STREAM"), (2, "SOCK_DGRAM"), (3, "SOCK_RAW"), (5, "SOCK_SEQPACKET")],
    &[(0o2_000_000, "SOCK_CLOEXEC"), (0o4000, "SOCK_NONBLOCK")],
);
const ACCEPT: Words = Bits(SOCKET_FLAGS, "0");
const SHUT: Words = One(&[(0, "SHUT_RD"), (1, "SHUT_WR"), (2, "SHUT_RDWR")]);
const LEVEL: Words =
    One(&[(0, "SOL_IP"), (1, "SOL_SOCKET"), (6, "SOL_TCP"), (17, "SOL_UDP"), (41, "SOL_IPV6")]);
const MSG: Words = Bits(
    &[
        (1, "MSG_OOB"),
        (2, "MSG_PEEK"),
        (4, "MSG_DONTROUTE"),
        (8, "MSG_CTRUNC"),
        (0x20, "MSG_TRUNC"),
        (0x40, "MSG_DONTWAIT"),
        (0x80, "MSG_EOR"),
        (0x100, "MSG_WAITALL"),
        (0x2000, "MSG_ERRQUEUE"),
        (0x4000, "MSG_NOSIGNAL"),
        (0x8000, "MSG_MORE"),
        (0x1_0000, "MSG_WAITFORONE"),
        (0x400_0000, "MSG_ZEROCOPY"),
        (0x2000_0000, "MSG_FASTOPEN"),
        (0x4000_0000, "MSG_CMSG_CLOEXEC"),
    ],
    "0",
);
const OPEN_BITS: Words =
    Bits(&[(0o4000, "O_NONBLOCK"), (0o40000, "O_DIRECT"), (0o2_000_000, "O_CLOEXEC")], "0");
const EVENTFD: Words =
    Bits(&[(1, "EFD_SEMAPHORE"), (0o4000, "EFD_NONBLOCK"), (0o2_000_000, "EFD_CLOEXEC")], "0");
const TIMERFD: Words = Bits(&[(0o4000, "TFD_NONBLOCK"), (0o2_000_000, "TFD_CLOEXEC")], "0");
const EPOLL: Words = Bits(&[(0o2_000_000, "EPOLL_CLOEXEC")], "0");
const EPOLL_CONTROL: Words =
    One(&[(1, "EPOLL_CTL_ADD"), (2, "EPOLL_CTL_DEL"), (3, "EPOLL_CTL_MOD")]);
const FCNTL: Words = One(&[
    (0, "F_DUPFD"),
    (1, "F_GETFD"),
    (2, "F_SETFD"),
    (3, "F_GETFL"),
    (4, "F_SETFL"),
    (5, "F_GETLK"),
    (6, "F_SETLK"),
    (7, "F_SETLKW"),
    (8, "F_SETOWN"),
    (9, "F_GETOWN"),
    (36, "F_OFD_GETLK"),
    (37, "F_OFD_SETLK"),
    (38, "F_OFD_SETLKW"),
    (1030, "F_DUPFD_CLOEXEC"),
    (1031, "F_SETPIPE_SZ"),
    (1032, "F_GETPIPE_SZ"),
    (1033, "F_ADD_SEALS"),
    (1034, "F_GET_SEALS"),
]);
const CLOCK: Words = One(&[
    (0, "CLOCK_REALTIME"),
    (1, "CLOCK_MONOTONIC"),
    (2, "CLOCK_PROCESS_CPUTIME_ID"),
    (3, "CLOCK_THREAD_CPUTIME_ID"),
    (4, "CLOCK_MONOTONIC_RAW"),
    (7, "CLOCK_BOOTTIME"),
]);
const TIMER: Words = Bits(&[(1, "TIMER_ABSTIME")], "0");
const LIMIT: Words = One(&[
    (0, "RLIMIT_CPU"),
    (1, "RLIMIT_FSIZE"),
    (2, "RLIMIT_DATA"),
    (3, "RLIMIT_STACK"),
    (4, "RLIMIT_CORE"),
    (6, "RLIMIT_NPROC"),
    (7, "RLIMIT_NOFILE"),
    (8, "RLIMIT_MEMLOCK"),
    (9, "RLIMIT_AS"),
]);
const RANDOM: Words = Bits(&[(1, "GRND_NONBLOCK"), (2, "GRND_RANDOM")], "0");
const LOCK: Words = Bits(&[(1, "LOCK_SH"), (2, "LOCK_EX"), (4, "LOCK_NB"), (8, "LOCK_UN")], "0");
const MEMFD: Words = Bits(&[(1, "MFD_CLOEXEC"), (2, "MFD_ALLOW_SEALING"), (4, "MFD_HUGETLB")], "0");
const FUTEX: [&str; 14] = [
    "FUTEX_WAIT",
    "FUTEX_WAKE",
    "FUTEX_FD",
    "FUTEX_REQUEUE",
    "FUTEX_CMP_REQUEUE",
    "FUTEX_WAKE_OP",
    "FUTEX_LOCK_PI",
    "FUTEX_UNLOCK_PI",
    "FUTEX_TRYLOCK_PI",
    "FUTEX_WAIT_BITSET",
    "FUTEX_WAKE_BITSET",
    "FUTEX_WAIT_REQUEUE_PI",
    "FUTEX_CMP_REQUEUE_PI",
    "FUTEX_LOCK_PI2",
];

/// What argument `at` of call `number` is made of, if it is of names.
pub(crate) const fn of(number: u32, at: usize) -> Option<Words> {
    Some(match (number, at) {
        // mmap, mprotect, pkey_mprotect, madvise
        (9 | 10 | 329, 2) => PROT,
        (9, 3) => MAP,
        (28, 2) => ADVICE,
        // access, faccessat, faccessat2
        (21, 1) | (269 | 439, 2) => ACCESS,
        (439, 3) => EFFECTIVE,
        // newfstatat, statx, linkat, fchownat, utimensat, execveat, fchmodat2
        (262 | 280 | 452, 3) | (332, 2) | (260 | 265 | 322, 4) => AT,
        // unlinkat, renameat2, lseek
        (263, 2) => REMOVE,
        (316, 4) => RENAME,
        (8, 2) => WHENCE,
        // socket, socketpair, accept4, shutdown, setsockopt, getsockopt
        (41 | 53, 0) => FAMILY,
        (41 | 53, 1) => SOCKET_TYPE,
        (288, 3) => ACCEPT,
        (48, 1) => SHUT,
        (54 | 55, 1) => LEVEL,
        // sendto, recvfrom, sendmsg, recvmsg, recvmmsg, sendmmsg
        (44 | 45 | 299 | 307, 3) | (46 | 47, 2) => MSG,
        // pipe2, dup3, eventfd2, timerfd_create, epoll_create1, epoll_ctl, fcntl
        (293, 1) | (292, 2) => OPEN_BITS,
        (290, 1) => EVENTFD,
        (283, 0) => CLOCK,
        (283, 1) => TIMERFD,
        (291, 0) => EPOLL,
        (233, 1) => EPOLL_CONTROL,
        (72, 1) => FCNTL,
        // futex, clock_nanosleep, prlimit64, getrlimit, setrlimit
        (202, 1) => Words::Futex,
        (230, 0) => CLOCK,
        (230, 1) => TIMER,
        (302, 1) | (97 | 160, 0) => LIMIT,
        // getrandom, flock, memfd_create
        (318, 2) => RANDOM,
        (73, 1) => LOCK,
        (319, 1) => MEMFD,
        _ => return None,
    })
}

impl Words {
    /// Print a word, of which the kernel looks at the lower half.
    pub(crate) fn write(self, line: &mut String, value: u64) {
        let value = value & 0xffff_ffff;
        match self {
            One(names) => one(line, names, value),
            Bits(_, none) if value == 0 => line.push_str(none),
            Bits(names, _) => bits(line, names, value, ""),
            Both(mask, names, beside) => {
                one(line, names, value & mask);
                if value & !mask != 0 {
                    bits(line, beside, value & !mask, "|");
                }
            }
            Words::Futex => futex(line, value),
        }
    }
}

fn one(line: &mut String, names: Names, value: u64) {
    match names.iter().find(|(known, _)| *known == value) {
        Some((_, name)) => line.push_str(name),
        None => decimal(line, value),
    }
}

fn bits(line: &mut String, names: Names, value: u64, mut before: &str) {
    let mut rest = value;
    for (bit, name) in names.iter().filter(|(bit, _)| value & bit != 0) {
        line.push_str(before);
        line.push_str(name);
        (rest, before) = (rest & !bit, "|");
    }
    if rest != 0 {
        line.push_str(before);
        hexadecimal(line, rest);
    }
}

fn futex(line: &mut String, value: u64) {
    const PRIVATE: u64 = 128;
    const REALTIME: u64 = 256;
    let Some(name) = FUTEX.get((value & !(PRIVATE | REALTIME)) as usize) else {
        return hexadecimal(line, value);
    };
    line.push_str(name);
    line.push_str(if value & PRIVATE != 0 { "_PRIVATE" } else { "" });
    line.push_str(if value & REALTIME != 0 { "|FUTEX_CLOCK_REALTIME" } else { "" });
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn words_look_as_in_their_headers() {
        let shown = |number, at, value| {
            let mut line = String::new();
            of(number, at).expect("names").write(&mut line, value);
            line
        };
        assert_eq!(shown(9, 2, 0), "PROT_NONE");
        assert_eq!(shown(9, 2, 3), "PROT_READ|PROT_WRITE");
        assert_eq!(shown(9, 3, 0x22), "MAP_PRIVATE|MAP_ANONYMOUS");
        assert_eq!(shown(9, 3, 0x8000_0001), "MAP_SHARED|0x80000000");
        assert_eq!(shown(21, 1, 0), "F_OK");
        assert_eq!(shown(262, 3, 0), "0");
        assert_eq!(shown(262, 3, 0x1100), "AT_SYMLINK_NOFOLLOW|AT_EMPTY_PATH");
        assert_eq!(shown(41, 1, 0o2_000_001), "SOCK_STREAM|SOCK_CLOEXEC");
        assert_eq!(shown(72, 1, 999), "999");
        assert_eq!(shown(202, 1, 129), "FUTEX_WAKE_PRIVATE");
        assert_eq!(shown(202, 1, 393), "FUTEX_WAIT_BITSET_PRIVATE|FUTEX_CLOCK_REALTIME");
        assert_eq!(shown(202, 1, 77), "0x4d");
        assert!(of(0, 0).is_none());
    }
}
