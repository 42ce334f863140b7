//! Requests, read from the bytes as they came: nothing is copied, every length has a bound.

use std::ops::Range;

/// Longest head: the request line and all fields.
pub const HEAD_LEN_MAX: usize = 16 << 10;
/// Fields of one head.
const FIELDS_MAX: usize = 100;
/// Longest body that is skipped; no request here needs one.
const BODY_LEN_MAX: usize = 8 << 10;

/// What the bytes begin with.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// The rest has not come.
    Partial,
    /// A request.
    Whole(Request<'a>),
    /// Something else: the status that says so. Where the next one begins is not known.
    Refused(u16),
}

/// A request for a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// Only the head of the answer is wanted.
    pub is_head: bool,
    /// What is asked for.
    pub target: &'a str,
    /// The connection stays.
    pub keeps: bool,
    /// Only these bytes are wanted.
    pub range: Option<Wanted>,
    /// Nothing is wanted if the file is one of these.
    pub if_none_match: Option<&'a str>,
    /// The range is wanted only if the file is still this one.
    pub if_range: Option<&'a str>,
    /// Its bytes.
    pub len: usize,
}

/// Bytes of a file, whose length is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// From here on.
    From(u64),
    /// From the first to the last.
    Between(u64, u64),
    /// So many at the end.
    Last(u64),
}

impl Wanted {
    /// As `bytes=1-5` says; None if it says something else, which is as if it were not there.
    fn read(text: &str) -> Option<Self> {
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            if digits { text.parse().ok() } else { None }
        };
        match (first.trim(), last.trim()) {
            ("", last) => number(last).map(Self::Last),
            (first, "") => number(first).map(Self::From),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// Of a file that is so long; None if it has none of these.
    #[must_use]
    pub fn within(self, len: usize) -> Option<Range<usize>> {
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let range = match self {
            Self::From(first) => at(first)..len,
            Self::Between(first, last) => at(first)..at(last).saturating_add(1).min(len),
            Self::Last(count) => len - at(count).min(len)..len,
        };
        (range.start < range.end).then_some(range)
    }
}

/// Fields that say how the request ends, and whether others follow.
#[derive(Default)]
struct Seen {
    hosts: usize,
    body: Option<usize>,
    closes: bool,
    keeps: bool,
}

/// Read the first request of `bytes`.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed<'_> {
    // Empty lines between requests are allowed.
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    let Some(len) = head_len(&bytes[start..]) else {
        return if bytes.len() > HEAD_LEN_MAX { Parsed::Refused(431) } else { Parsed::Partial };
    };
    if len > HEAD_LEN_MAX {
        return Parsed::Refused(431);
    }
    let head = std::str::from_utf8(&bytes[start..start + len]).map_err(|_| 400);
    match head.and_then(read) {
        Err(code) => Parsed::Refused(code),
        Ok((_, body)) if body > BODY_LEN_MAX => Parsed::Refused(413),
        Ok((_, body)) if bytes.len() < start + len + body => Parsed::Partial,
        Ok((request, body)) => Parsed::Whole(Request { len: start + len + body, ..request }),
    }
}

/// How long the head is, with the empty line that ends it.
fn head_len(bytes: &[u8]) -> Option<usize> {
    let mut line = 0;
    for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
        if matches!(&bytes[line..at], b"" | b"\r") {
            return Some(at + 1);
        }
        line = at + 1;
    }
    None
}

fn read(head: &str) -> Result<(Request<'_>, usize), u16> {
    let mut lines = head.lines();
    let mut words = lines.next().ok_or(400u16)?.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(400);
    };
    if target.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(400);
    }
    let is_new = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ if version.starts_with("HTTP/") => return Err(505),
        _ => return Err(400),
    };
    let is_head = match method {
        "GET" => false,
        "HEAD" => true,
        _ if is_token(method) => return Err(405),
        _ => return Err(400),
    };
    let target = if target.starts_with('/') { target } else { after_host(target).ok_or(400u16)? };
    let mut request = Request { is_head, target, ..Request::default() };
    let mut seen = Seen::default();
    for (index, line) in lines.take_while(|line| !line.is_empty()).enumerate() {
        if index >= FIELDS_MAX {
            return Err(431);
        }
        field(line, &mut request, &mut seen)?;
    }
    if seen.hosts > 1 || (is_new && seen.hosts == 0) {
        return Err(400);
    }
    request.keeps = !seen.closes && (is_new || seen.keeps);
    Ok((request, seen.body.unwrap_or(0)))
}

/// The path of `http://host/path`.
fn after_host(target: &str) -> Option<&str> {
    let rest = target.strip_prefix("http://")?;
    Some(rest.find('/').map_or("/", |at| &rest[at..]))
}

fn field<'a>(line: &'a str, request: &mut Request<'a>, seen: &mut Seen) -> Result<(), u16> {
    let (name, value) = line.split_once(':').ok_or(400u16)?;
    let value = value.trim_matches([' ', '\t']);
    let has_control = value.bytes().any(|byte| byte < b' ' && byte != b'\t');
    if !is_token(name) || has_control {
        return Err(400);
    }
    match name.to_ascii_lowercase().as_str() {
        "host" => seen.hosts += 1,
        "connection" => {
            let has =
                |wanted: &str| value.split(',').any(|it| it.trim().eq_ignore_ascii_case(wanted));
            seen.closes |= has("close");
            seen.keeps |= has("keep-alive");
        }
        "content-length" => {
            let digits = value.bytes().all(|byte| byte.is_ascii_digit()) && !value.is_empty();
            let len = if digits { value.parse().unwrap_or(usize::MAX) } else { return Err(400) };
            if seen.body.is_some_and(|known| known != len) {
                return Err(400);
            }
            seen.body = Some(len);
        }
        "transfer-encoding" => return Err(501),
        "range" => request.range = Wanted::read(value),
        "if-none-match" => request.if_none_match = Some(value),
        "if-range" => request.if_range = Some(value),
        _ => {}
    }
    Ok(())
}

fn is_token(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_part)
}

/// The file that a target means, below the root: never above it, and nothing whose name begins with a
/// dot. None if it can be none.
#[must_use]
pub fn path_of(target: &str) -> Option<String> {
    let end = target.find(['?', '#']).unwrap_or(target.len());
    let bytes = decoded(&target.as_bytes()[..end])?;
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))?;
    let mut path = String::new();
    for part in text.split('/').filter(|part| !part.is_empty()) {
        if part.starts_with('.') {
            return None;
        }
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(part);
    }
    if text.ends_with('/') {
        path.push_str(if path.is_empty() { "index.html" } else { "/index.html" });
    }
    Some(path)
}

/// With `%20` and the like as what they stand for.
fn decoded(bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut all, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%' {
            let digits = std::str::from_utf8(bytes.get(at + 1..at + 3)?).ok()?;
            let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            all.push(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?);
            at += 3;
        } else {
            all.push(byte);
            at += 1;
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::{HEAD_LEN_MAX, Parsed, Wanted, parse, path_of};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use proptest::{collection, sample};

    const GET: &str = "GET /a%20b?x=1 HTTP/1.1\r\nHost: h\r\nRange: bytes=2-5\r\n\r\n";

    #[test]
    fn requests_are_read_one_after_the_other() {
        let two = format!("\r\n{GET}HEAD / HTTP/1.0\nConnection: x, Keep-Alive\n\n");
        let Parsed::Whole(first) = parse(two.as_bytes()) else { panic!("a request") };
        assert!(first.keeps && !first.is_head && first.len == GET.len() + 2);
        assert_eq!((first.target, first.range), ("/a%20b?x=1", Some(Wanted::Between(2, 5))));
        let Parsed::Whole(second) = parse(&two.as_bytes()[first.len..]) else { panic!("another") };
        assert!(second.keeps && second.is_head && second.len + first.len == two.len());
    }

    #[test]
    fn what_is_no_request_has_a_status() {
        let long = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(HEAD_LEN_MAX));
        let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: y\r\n".repeat(101));
        for (text, code) in [
            ("GET /\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            ("GET x HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            ("GET /x\ry HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: h\r\n\r\n", 405),
            ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999\r\n\r\n", 413),
            ("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
            ("GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
            (&long, 431),
            (&long[..HEAD_LEN_MAX + 10], 431),
            (&many, 431),
        ] {
            let shown = &text[..text.len().min(80)];
            assert_eq!(parse(text.as_bytes()), Parsed::Refused(code), "{shown:?}");
        }
    }

    #[test]
    fn paths_stay_below_the_root() {
        for (target, path) in [
            ("/", Some("index.html")),
            ("/a//b/", Some("a/b/index.html")),
            ("/a%2Fb.txt?../x", Some("a/b.txt")),
            ("/../etc/passwd", None),
            ("/%2e%2e/etc/passwd", None),
            ("/a/..%2f..%2fetc", None),
            ("/.git/config", None),
            ("/a%00b", None),
            ("/a%zz", None),
            ("/a%+1", None),
            ("/%ff", None),
        ] {
            assert_eq!(path_of(target).as_deref(), path, "{target}");
        }
    }

    #[test]
    fn ranges_are_cut_to_the_file() {
        let within = |text, len| Wanted::read(text).and_then(|wanted| wanted.within(len));
        assert_eq!(within("bytes=0-0", 10), Some(0..1));
        assert_eq!(within("bytes=5-99", 10), Some(5..10));
        assert_eq!(within("bytes=5-", 10), Some(5..10));
        assert_eq!(within("bytes=-3", 10), Some(7..10));
        assert_eq!(within("bytes=-30", 10), Some(0..10));
        assert_eq!(within("bytes=10-", 10), None);
        assert_eq!(within("bytes=-0", 10), None);
        assert_eq!(within("bytes=0-18446744073709551615", 10), Some(0..10));
        for text in ["bytes=1-2,4-5", "bytes=5-2", "lines=1-2", "bytes=+1-2", "bytes=-", "bytes=1"]
        {
            assert_eq!(Wanted::read(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_are_not(bytes in collection::vec(any::<u8>(), 0..2000)) {
            if let Parsed::Whole(request) = parse(&bytes) {
                prop_assert!(request.len <= bytes.len());
            }
        }

        #[test]
        fn a_request_that_was_changed_stays_within_bounds(
            changes in collection::vec((any::<sample::Index>(), any::<u8>()), 0..5),
            end in any::<sample::Index>(),
        ) {
            let mut bytes = format!("{GET}{GET}").into_bytes();
            for (index, byte) in changes {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(end.index(bytes.len()));
            if let Parsed::Whole(request) = parse(&bytes) {
                prop_assert!(request.len <= bytes.len() && request.len > 0);
                let _ = path_of(request.target);
            }
        }

        #[test]
        fn no_path_leads_out(target in "/[a-z./%25]{0,40}") {
            if let Some(path) = path_of(&target) {
                let up = path.split('/').any(|part| part.starts_with('.') || part.is_empty());
                prop_assert!(!path.starts_with('/') && (!up || path.is_empty()), "{}", path);
            }
        }

        #[test]
        fn every_beginning_is_partial(end in 0..GET.len()) {
            prop_assert_eq!(parse(&GET.as_bytes()[..end]), Parsed::Partial);
        }
    }
}
