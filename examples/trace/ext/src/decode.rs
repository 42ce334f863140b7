//! What system calls look like when they are printed.

use std::fmt::Write;

use ext_api::calls::{Address, Arg};

use super::words::Words;

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

/// An argument, as it is printed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shown<'a> {
    /// A number.
    Number(Arg, u64),
    /// One that is made of names.
    Words(Words, u64),
    /// Bytes; true if there were more of them.
    Text(&'a [u8], bool),
    /// An address of a socket.
    Address(&'a [u8]),
}

impl Shown<'_> {
    /// Print it into `line`.
    pub(crate) fn write(self, line: &mut String) {
        match self {
            Self::Number(kind, value) => number(line, kind, value),
            Self::Words(words, value) => words.write(line, value),
            Self::Text(bytes, more) => quoted(line, bytes, more),
            Self::Address(bytes) => address(line, bytes),
        }
    }
}

/// Print digits of a number to a base, at least `least` of them. Every call has several numbers; `write!`
/// takes ten times as long.
fn digits(line: &mut String, mut value: u64, base: u64, least: usize) {
    const LEN: usize = 22;
    let mut text = [b'0'; LEN];
    let mut first = LEN;
    while value != 0 || LEN - first < least {
        first -= 1;
        text[first] = b"0123456789abcdef"[(value % base) as usize];
        value /= base;
    }
    line.push_str(str::from_utf8(&text[first..]).unwrap_or(""));
}

/// Print a number.
pub(crate) fn decimal(line: &mut String, value: u64) {
    digits(line, value, 10, 1);
}

/// The same, to the base of 16.
pub(crate) fn hexadecimal(line: &mut String, value: u64) {
    line.push_str("0x");
    digits(line, value, 16, 1);
}

fn signed(line: &mut String, value: i64) {
    if value < 0 {
        line.push('-');
    }
    decimal(line, value.unsigned_abs());
}

/// Print thousandths with a point.
pub(crate) fn thousandths(line: &mut String, value: u64) {
    decimal(line, value / 1000);
    line.push('.');
    digits(line, value % 1000, 10, 3);
}

/// Print a result into `line`.
pub(crate) fn result(line: &mut String, result: i64) {
    let errno = if (-4095..0).contains(&result) { -result as i32 } else { 0 };
    match ext_api::errno::name(errno) {
        Some(name) => {
            line.push_str("-1 ");
            line.push_str(name);
        }
        None if errno != 0 => {
            line.push_str("-1 errno ");
            signed(line, i64::from(errno));
        }
        None if result > 1 << 32 => hexadecimal(line, result as u64),
        None => signed(line, result),
    }
}

/// Print a number that is an argument of this kind.
fn number(line: &mut String, kind: Arg, value: u64) {
    match kind {
        Arg::Fd if value as i32 == -100 => line.push_str("AT_FDCWD"),
        Arg::Fd => signed(line, i64::from(value as i32)),
        // Most are of 32 bits, whose upper half may be anything.
        Arg::Int if value >> 32 == 0 => signed(line, i64::from(value as i32)),
        Arg::Int => signed(line, value as i64),
        Arg::Size => decimal(line, value),
        Arg::Mode if value == 0 => line.push('0'),
        Arg::Mode => {
            line.push('0');
            digits(line, value, 8, 3);
        }
        Arg::OpenFlags => open_flags(line, value),
        _ if value == 0 => line.push_str("NULL"),
        _ => hexadecimal(line, value),
    }
}

fn open_flags(line: &mut String, value: u64) {
    line.push_str(["O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"][value as usize & 3]);
    OPEN_FLAGS.iter().filter(|(bit, _)| value & bit != 0).for_each(|(_, name)| {
        line.push('|');
        line.push_str(name);
    });
}

/// Print bytes in quotes; `more` if there were more of them.
fn quoted(line: &mut String, mut bytes: &[u8], more: bool) {
    line.push('"');
    while !bytes.is_empty() {
        let is_itself = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
        let len = bytes.iter().position(|byte| !is_itself(byte)).unwrap_or(bytes.len());
        let (text, rest) = bytes.split_at(len);
        line.push_str(str::from_utf8(text).unwrap_or(""));
        bytes = rest;
        if let Some((byte, rest)) = rest.split_first() {
            escaped(line, *byte);
            bytes = rest;
        }
    }
    line.push_str(if more { "\"..." } else { "\"" });
}

fn escaped(line: &mut String, byte: u8) {
    line.push('\\');
    match byte {
        b'\n' => line.push('n'),
        b'\r' => line.push('r'),
        b'\t' => line.push('t'),
        b'"' | b'\\' => line.push(char::from(byte)),
        other => {
            line.push('x');
            digits(line, u64::from(other), 16, 2);
        }
    }
}

/// Print an address of a socket.
fn address(line: &mut String, bytes: &[u8]) {
    let family = bytes.first_chunk().map_or(0, |bytes| u16::from_ne_bytes(*bytes));
    let _ = match Address::read(bytes) {
        Some(address) => write!(line, "{address}"),
        None => write!(line, "family {family}"),
    };
}

#[cfg(test)]
mod tests {
    use super::{Arg, address, number, quoted, result, thousandths};

    #[test]
    fn values_look_as_in_their_headers() {
        let mut line = String::new();
        number(&mut line, Arg::Fd, -100_i64 as u64);
        number(&mut line, Arg::OpenFlags, 0o2_000_101);
        result(&mut line, -2);
        result(&mut line, -111);
        result(&mut line, -3000);
        quoted(&mut line, b"a\"\n\xff", true);
        result(&mut line, i64::MAX);
        number(&mut line, Arg::Mode, 0o644);
        number(&mut line, Arg::Mode, 0o4);
        number(&mut line, Arg::Int, u64::MAX);
        number(&mut line, Arg::Size, u64::MAX);
        thousandths(&mut line, 12_034);
        address(&mut line, &[2, 0, 0, 80, 127, 0, 0, 1]);
        address(&mut line, b"\x01\0/run/x\0\0");
        let expected = "AT_FDCWDO_WRONLY|O_CREAT|O_CLOEXEC-1 ENOENT-1 ECONNREFUSED-1 errno 3000\
                        \"a\\\"\\n\\xff\"...0x7fffffffffffffff06440004-1\
                        1844674407370955161512.034127.0.0.1:80unix:/run/x";
        assert_eq!(line, expected);
    }
}
