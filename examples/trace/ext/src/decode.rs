//! What system calls look like when they are printed.

use std::fmt::Write;

/// What an argument is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A descriptor, or AT_FDCWD.
    Fd,
    /// A path that is read.
    Path,
    /// A signed number.
    Int,
    /// An unsigned one.
    Size,
    /// An address, or bits.
    Hex,
    /// Flags of `open`.
    Open,
    /// Permissions.
    Mode,
    /// Bytes that the program hands over; their number follows.
    Out,
    /// Bytes that it gets: as many as the call returns.
    In,
    /// An address of a socket; its length follows.
    Address,
}

impl Kind {
    /// Is it an address of something that is shown?
    pub(crate) const fn points(self) -> bool {
        matches!(self, Self::Path | Self::Out | Self::In | Self::Address)
    }
}

/// The arguments of each call, a letter each.
const ARGS: [(&str, &str); 118] = [
    ("read", "dru"),
    ("write", "dwu"),
    ("open", "pom"),
    ("close", "d"),
    ("stat", "px"),
    ("fstat", "dx"),
    ("lstat", "px"),
    ("poll", "xui"),
    ("lseek", "dii"),
    ("ioctl", "dxx"),
    ("pread64", "drui"),
    ("pwrite64", "dwui"),
    ("readv", "dxu"),
    ("writev", "dxu"),
    ("access", "pi"),
    ("pipe", "x"),
    ("select", "ixxxx"),
    ("sched_yield", ""),
    ("dup", "d"),
    ("dup2", "dd"),
    ("nanosleep", "xx"),
    ("getpid", ""),
    ("sendfile", "ddxu"),
    ("socket", "iii"),
    ("connect", "dau"),
    ("accept", "dxx"),
    ("sendto", "dwuxau"),
    ("recvfrom", "druxxx"),
    ("sendmsg", "dxx"),
    ("recvmsg", "dxx"),
    ("shutdown", "di"),
    ("bind", "dau"),
    ("listen", "di"),
    ("getsockname", "dxx"),
    ("getpeername", "dxx"),
    ("socketpair", "iiix"),
    ("setsockopt", "diixu"),
    ("getsockopt", "diixx"),
    ("wait4", "ixxx"),
    ("kill", "ii"),
    ("uname", "x"),
    ("fcntl", "dix"),
    ("flock", "di"),
    ("fsync", "d"),
    ("fdatasync", "d"),
    ("truncate", "pi"),
    ("ftruncate", "di"),
    ("getdents", "dxu"),
    ("getcwd", "xu"),
    ("chdir", "p"),
    ("fchdir", "d"),
    ("rename", "pp"),
    ("mkdir", "pm"),
    ("rmdir", "p"),
    ("creat", "pm"),
    ("link", "pp"),
    ("unlink", "p"),
    ("symlink", "pp"),
    ("readlink", "pru"),
    ("chmod", "pm"),
    ("fchmod", "dm"),
    ("chown", "pii"),
    ("fchown", "dii"),
    ("lchown", "pii"),
    ("umask", "m"),
    ("gettimeofday", "xx"),
    ("getrlimit", "ix"),
    ("getrusage", "ix"),
    ("sysinfo", "x"),
    ("getuid", ""),
    ("getgid", ""),
    ("geteuid", ""),
    ("getegid", ""),
    ("getppid", ""),
    ("utime", "px"),
    ("statfs", "px"),
    ("fstatfs", "dx"),
    ("getpriority", "ii"),
    ("setpriority", "iii"),
    ("gettid", ""),
    ("time", "x"),
    ("getdents64", "dxu"),
    ("clock_gettime", "ix"),
    ("clock_nanosleep", "iixx"),
    ("epoll_wait", "dxii"),
    ("epoll_ctl", "didx"),
    ("tgkill", "iii"),
    ("waitid", "iixxx"),
    ("openat", "dpom"),
    ("mkdirat", "dpm"),
    ("mknodat", "dpmx"),
    ("fchownat", "dpiix"),
    ("newfstatat", "dpxx"),
    ("unlinkat", "dpx"),
    ("renameat", "dpdp"),
    ("linkat", "dpdpx"),
    ("symlinkat", "pdp"),
    ("readlinkat", "dpru"),
    ("fchmodat", "dpm"),
    ("faccessat", "dpi"),
    ("splice", "dxdxux"),
    ("utimensat", "dpxx"),
    ("eventfd", "u"),
    ("fallocate", "diii"),
    ("accept4", "dxxx"),
    ("eventfd2", "ux"),
    ("epoll_create1", "x"),
    ("dup3", "ddx"),
    ("pipe2", "xx"),
    ("preadv", "dxuii"),
    ("pwritev", "dxuii"),
    ("prlimit64", "iixx"),
    ("renameat2", "dpdpx"),
    ("getrandom", "xux"),
    ("copy_file_range", "dxdxux"),
    ("statx", "dpxxx"),
    ("openat2", "dpxu"),
    ("faccessat2", "dpix"),
];

/// What the arguments of the call `name` are.
pub(crate) fn kinds(name: &str) -> impl Iterator<Item = Kind> {
    let letters = ARGS.iter().find(|(known, _)| *known == name).map_or("xxxxxx", |(_, args)| args);
    letters.bytes().map(|letter| match letter {
        b'd' => Kind::Fd,
        b'p' => Kind::Path,
        b'i' => Kind::Int,
        b'u' => Kind::Size,
        b'o' => Kind::Open,
        b'm' => Kind::Mode,
        b'w' => Kind::Out,
        b'r' => Kind::In,
        b'a' => Kind::Address,
        _ => Kind::Hex,
    })
}

const OPEN_FLAGS: [(u64, &str); 12] = [
    (0o100, "O_CREAT"),
    (0o200, "O_EXCL"),
    (0o400, "O_NOCTTY"),
    (0o1000, "O_TRUNC"),
    (0o2000, "O_APPEND"),
    (0o4000, "O_NONBLOCK"),
    (0o10000, "O_DSYNC"),
    (0o40000, "O_DIRECT"),
    (0o200_000, "O_DIRECTORY"),
    (0o400_000, "O_NOFOLLOW"),
    (0o2_000_000, "O_CLOEXEC"),
    (0o10_000_000, "O_PATH"),
];

/// Does a call with these flags take a mode as well?
pub(crate) fn has_mode(name: &str, flags: u64) -> bool {
    const CREATES: u64 = 0o100 | 0o20_000_000;
    !matches!(name, "open" | "openat") || flags & CREATES != 0
}

/// Print a result into `line`.
pub(crate) fn result(line: &mut String, result: i64) {
    let errno = if (-4095..0).contains(&result) { -result as i32 } else { 0 };
    let _ = match ext_api::errno::name(errno) {
        Some(name) => write!(line, "-1 {name}"),
        None if errno != 0 => write!(line, "-1 errno {errno}"),
        None if result > 1 << 32 => write!(line, "{result:#x}"),
        None => write!(line, "{result}"),
    };
}

/// Print a number that is an argument of this kind.
pub(crate) fn number(line: &mut String, kind: Kind, value: u64) {
    let _ = match kind {
        Kind::Fd if value as i32 == -100 => write!(line, "AT_FDCWD"),
        Kind::Fd => write!(line, "{}", value as i32),
        // Most are of 32 bits, whose upper half may be anything.
        Kind::Int if value >> 32 == 0 => write!(line, "{}", value as i32),
        Kind::Int => write!(line, "{}", value as i64),
        Kind::Size => write!(line, "{value}"),
        Kind::Mode if value == 0 => write!(line, "0"),
        Kind::Mode => write!(line, "0{value:03o}"),
        Kind::Open => {
            line.push_str(["O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"][value as usize & 3]);
            OPEN_FLAGS.iter().filter(|(bit, _)| value & bit != 0).for_each(|(_, name)| {
                line.push('|');
                line.push_str(name);
            });
            Ok(())
        }
        _ if value == 0 => write!(line, "NULL"),
        _ => write!(line, "{value:#x}"),
    };
}

/// Print bytes in quotes; `more` if there were more of them.
pub(crate) fn quoted(line: &mut String, bytes: &[u8], more: bool) {
    line.push('"');
    for byte in bytes {
        let _ = match byte {
            b'"' | b'\\' => write!(line, "\\{}", char::from(*byte)),
            b'\n' => write!(line, "\\n"),
            b'\r' => write!(line, "\\r"),
            b'\t' => write!(line, "\\t"),
            b' '..=b'~' => write!(line, "{}", char::from(*byte)),
            other => write!(line, "\\x{other:02x}"),
        };
    }
    line.push_str(if more { "\"..." } else { "\"" });
}

/// Print an address of a socket.
pub(crate) fn address(line: &mut String, bytes: &[u8]) {
    let family = bytes.first_chunk().map_or(0, |bytes| u16::from_ne_bytes(*bytes));
    let port = |bytes: &[u8]| {
        bytes.get(2..4).map_or(0, |port| u16::from(port[0]) << 8 | u16::from(port[1]))
    };
    let _ = match (family, bytes.len()) {
        (1, _) => {
            let name = &bytes[2..];
            let is_abstract = name.first() == Some(&0);
            let name = if is_abstract { &name[1..] } else { name };
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            line.push_str(if is_abstract { "unix:@" } else { "unix:" });
            quoted(line, &name[..end], false);
            Ok(())
        }
        (2, 8..) => {
            write!(line, "{}.{}.{}.{}:{}", bytes[4], bytes[5], bytes[6], bytes[7], port(bytes))
        }
        (10, 24..) => {
            let mut address = [0; 16];
            address.copy_from_slice(&bytes[8..24]);
            write!(line, "[{}]:{}", std::net::Ipv6Addr::from(address), port(bytes))
        }
        _ => write!(line, "family {family}"),
    };
}

#[cfg(test)]
mod tests {
    use super::{ARGS, Kind, address, number, quoted, result};

    #[test]
    fn every_call_that_can_be_hooked_is_known() {
        let hookable = ext_api::calls::HOOKABLE_CALLS;
        assert!(ARGS.iter().map(|(name, _)| *name).eq(hookable.iter().map(|(name, _)| *name)));
        assert!(ARGS.iter().all(|(_, args)| args.len() <= 6));
    }

    #[test]
    fn values_look_as_in_their_headers() {
        let mut line = String::new();
        number(&mut line, Kind::Fd, -100_i64 as u64);
        number(&mut line, Kind::Open, 0o2_000_101);
        result(&mut line, -2);
        result(&mut line, -111);
        result(&mut line, -3000);
        quoted(&mut line, b"a\"\n\xff", true);
        address(&mut line, &[2, 0, 0, 80, 127, 0, 0, 1]);
        address(&mut line, b"\x01\0/run/x\0\0");
        let expected = "AT_FDCWDO_WRONLY|O_CREAT|O_CLOEXEC-1 ENOENT-1 ECONNREFUSED-1 errno 3000\
                        \"a\\\"\\n\\xff\"...127.0.0.1:80unix:\"/run/x\"";
        assert_eq!(line, expected);
    }
}
