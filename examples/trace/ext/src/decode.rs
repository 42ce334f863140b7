//! What system calls look like when they are printed.

use std::fmt::Write;

use ext_api::calls::{Address, Arg};

/// Is an argument an address of something that is shown?
pub(crate) const fn points(kind: Arg) -> bool {
    matches!(kind, Arg::Path | Arg::Text | Arg::Out | Arg::In | Arg::Address)
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
pub(crate) fn number(line: &mut String, kind: Arg, value: u64) {
    let _ = match kind {
        Arg::Fd if value as i32 == -100 => write!(line, "AT_FDCWD"),
        Arg::Fd => write!(line, "{}", value as i32),
        // Most are of 32 bits, whose upper half may be anything.
        Arg::Int if value >> 32 == 0 => write!(line, "{}", value as i32),
        Arg::Int => write!(line, "{}", value as i64),
        Arg::Size => write!(line, "{value}"),
        Arg::Mode if value == 0 => write!(line, "0"),
        Arg::Mode => write!(line, "0{value:03o}"),
        Arg::OpenFlags => {
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
    let _ = match Address::read(bytes) {
        Some(address) => write!(line, "{address}"),
        None => write!(line, "family {family}"),
    };
}

#[cfg(test)]
mod tests {
    use super::{Arg, address, number, quoted, result};

    #[test]
    fn values_look_as_in_their_headers() {
        let mut line = String::new();
        number(&mut line, Arg::Fd, -100_i64 as u64);
        number(&mut line, Arg::OpenFlags, 0o2_000_101);
        result(&mut line, -2);
        result(&mut line, -111);
        result(&mut line, -3000);
        quoted(&mut line, b"a\"\n\xff", true);
        address(&mut line, &[2, 0, 0, 80, 127, 0, 0, 1]);
        address(&mut line, b"\x01\0/run/x\0\0");
        let expected = "AT_FDCWDO_WRONLY|O_CREAT|O_CLOEXEC-1 ENOENT-1 ECONNREFUSED-1 errno 3000\
                        \"a\\\"\\n\\xff\"...127.0.0.1:80unix:/run/x";
        assert_eq!(line, expected);
    }
}
