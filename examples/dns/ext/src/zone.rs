//! Records, and the lines that they are read from.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A name as messages have it: labels, each behind its length, the last of them empty. Small letters.
pub type Name = Vec<u8>;

/// Types of records.
pub mod kind {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// A name server.
    pub const NS: u16 = 2;
    /// Another name for it.
    pub const CNAME: u16 = 5;
    /// Where a zone begins.
    pub const SOA: u16 = 6;
    /// Of an address, its name.
    pub const PTR: u16 = 12;
    /// Where mail goes.
    pub const MX: u16 = 15;
    /// Text.
    pub const TXT: u16 = 16;
    /// An IPv6 address.
    pub const AAAA: u16 = 28;
    /// Where a service is.
    pub const SRV: u16 = 33;
    /// What a message says about itself.
    pub const OPT: u16 = 41;
    /// A question for any type.
    pub const ANY: u16 = 255;
}

/// Longest name, in a message.
pub const NAME_LEN_MAX: usize = 255;
const LABEL_LEN_MAX: usize = 63;

/// A record, but for its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// One of [`kind`].
    pub kind: u16,
    /// Seconds that it may be kept.
    pub ttl: u32,
    /// As a message has it, with names in full.
    pub data: Vec<u8>,
}

/// A line that is no record: which, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct LineError(usize, String);

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.0, self.1)
    }
}

/// All records, by name and type.
#[derive(Debug, Default)]
pub struct Zone {
    /// Names that have nothing but names below them are there without records.
    names: HashMap<Name, BTreeMap<u16, Vec<Record>>>,
    origins: Vec<Name>,
}

impl Zone {
    /// Add the records of `text`: lines "name ttl type value". Empty ones, and those that begin with `#`
    /// or `;`, say nothing.
    ///
    /// # Errors
    /// The first line that is no record.
    pub fn add_lines(&mut self, text: &str) -> Result<(), LineError> {
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with(['#', ';']) {
                self.add(line).map_err(|why| LineError(index + 1, why))?;
            }
        }
        Ok(())
    }

    fn add(&mut self, line: &str) -> Result<(), String> {
        let mut words = line.splitn(2, char::is_whitespace);
        let mut word = || -> &str {
            let Some(word) = words.next() else { return "" };
            word.trim()
        };
        let (name, rest) = (word(), word());
        let (ttl, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let (kind, value) = rest.trim().split_once(char::is_whitespace).unwrap_or((rest, ""));
        let name = name_of(name)?;
        let ttl = ttl.parse().map_err(|_| format!("ttl {ttl:?}: expected seconds, as in 300"))?;
        let (kind, data) = data_of(kind, value.trim())?;
        if kind == kind::SOA {
            self.origins.push(name.clone());
        }
        let mut above = name.as_slice();
        while let Some(len) = above.first().filter(|len| **len != 0) {
            above = &above[usize::from(*len) + 1..];
            self.names.entry(above.to_vec()).or_default();
        }
        let records = self.names.entry(name).or_default().entry(kind).or_default();
        records.push(Record { kind, ttl, data });
        Ok(())
    }

    /// Has it no records?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Is there such a name?
    #[must_use]
    pub fn has(&self, name: &[u8]) -> bool {
        self.names.contains_key(name)
    }

    /// Its records of this type; of the first type that it has, if asked for any.
    #[must_use]
    pub fn records(&self, name: &[u8], kind: u16) -> &[Record] {
        let Some(kinds) = self.names.get(name) else { return &[] };
        let found = if kind == kind::ANY { kinds.values().next() } else { kinds.get(&kind) };
        found.map_or(&[], Vec::as_slice)
    }

    /// Where the zone begins that a name is in: the longest name of those with a SOA.
    #[must_use]
    pub fn origin(&self, name: &[u8]) -> Option<&[u8]> {
        let within = self.origins.iter().filter(|origin| is_within(name, origin));
        within.max_by_key(|origin| origin.len()).map(Vec::as_slice)
    }

    /// Does it answer for this name? For all, if it has no SOA.
    #[must_use]
    pub fn answers_for(&self, name: &[u8]) -> bool {
        self.origins.is_empty() || self.origin(name).is_some()
    }
}

fn is_within(name: &[u8], origin: &[u8]) -> bool {
    let mut rest = name;
    loop {
        if rest == origin {
            return true;
        }
        match rest.first() {
            Some(len) if *len != 0 => rest = rest.get(usize::from(*len) + 1..).unwrap_or(&[]),
            _ => return false,
        }
    }
}

/// A name as messages have it, from text with or without the last dot.
///
/// # Errors
/// It is too long, or a label is empty or too long.
pub fn name_of(text: &str) -> Result<Name, String> {
    let mut name = Vec::new();
    let text = text.strip_suffix('.').unwrap_or(text);
    for label in text.split('.').filter(|_| !text.is_empty()) {
        if label.is_empty() || label.len() > LABEL_LEN_MAX {
            return Err(format!("name {text:?}: a label has 1 to {LABEL_LEN_MAX} letters"));
        }
        name.push(label.len() as u8);
        name.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    name.push(0);
    if name.len() > NAME_LEN_MAX {
        return Err(format!("name {text:?}: longer than {NAME_LEN_MAX} bytes"));
    }
    Ok(name)
}

fn data_of(kind: &str, value: &str) -> Result<(u16, Vec<u8>), String> {
    let wrong = |what: &str| format!("{kind} {value:?}: expected {what}");
    let words: Vec<&str> = value.split_whitespace().collect();
    Ok(match (kind.to_ascii_uppercase().as_str(), words.as_slice()) {
        ("A", [at]) => {
            let at: Ipv4Addr = at.parse().map_err(|_| wrong("an IPv4 address"))?;
            (kind::A, at.octets().to_vec())
        }
        ("AAAA", [at]) => {
            let at: Ipv6Addr = at.parse().map_err(|_| wrong("an IPv6 address"))?;
            (kind::AAAA, at.octets().to_vec())
        }
        ("NS", [name]) => (kind::NS, name_of(name)?),
        ("CNAME", [name]) => (kind::CNAME, name_of(name)?),
        ("PTR", [name]) => (kind::PTR, name_of(name)?),
        ("TXT", [_, ..]) => (kind::TXT, texts(value)),
        ("MX", [number, name]) => (kind::MX, numbers_and_name(&[number], name, &wrong)?),
        ("SRV", [a, b, c, name]) => (kind::SRV, numbers_and_name(&[a, b, c], name, &wrong)?),
        ("SOA", [server, mail, numbers @ ..]) if numbers.len() == 5 => {
            let mut data = [name_of(server)?, name_of(mail)?].concat();
            for number in numbers {
                let number: u32 = number.parse().map_err(|_| wrong("five numbers at the end"))?;
                data.extend(number.to_be_bytes());
            }
            (kind::SOA, data)
        }
        ("A" | "AAAA" | "NS" | "CNAME" | "PTR" | "TXT" | "MX" | "SRV" | "SOA", _) => {
            return Err(wrong("another number of words"));
        }
        _ => {
            let all = "A, AAAA, NS, CNAME, PTR, TXT, MX, SRV and SOA";
            return Err(format!("type {kind:?}: known are {all}"));
        }
    })
}

fn numbers_and_name(
    numbers: &[&str],
    name: &str,
    wrong: &impl Fn(&str) -> String,
) -> Result<Vec<u8>, String> {
    let mut data = Vec::new();
    for number in numbers {
        let number: u16 = number.parse().map_err(|_| wrong("numbers, and a name"))?;
        data.extend(number.to_be_bytes());
    }
    data.extend(name_of(name)?);
    Ok(data)
}

/// Texts in quotes, or all of `value` as one: in pieces of 255 bytes.
fn texts(value: &str) -> Vec<u8> {
    let quoted = value.len() > 1 && value.starts_with('"') && value.ends_with('"');
    let parts: Vec<&str> =
        if quoted { value.split('"').skip(1).step_by(2).collect() } else { vec![value] };
    let mut data = Vec::new();
    for part in parts {
        let mut pieces: Vec<&[u8]> = part.as_bytes().chunks(255).collect();
        if pieces.is_empty() {
            pieces.push(&[]);
        }
        for piece in pieces {
            data.push(piece.len() as u8);
            data.extend(piece);
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use super::{Zone, data_of, kind, name_of, texts};

    #[test]
    fn lines_become_records() {
        let mut zone = Zone::default();
        let lines = "# nothing\nWWW.Example. 60  A   192.0.2.1\n\na.b.example 5 TXT \"x y\" \"z\"";
        zone.add_lines(lines).expect("records");
        let www = name_of("www.example").expect("a name");
        assert_eq!(zone.records(&www, kind::A)[0].data, [192, 0, 2, 1]);
        assert_eq!(zone.records(&www, kind::ANY)[0].ttl, 60);
        let between = name_of("b.example").expect("a name");
        assert!(zone.has(&between) && zone.records(&between, kind::ANY).is_empty());
        assert_eq!(texts("\"x y\" \"z\""), b"\x03x y\x01z");
    }

    #[test]
    fn lines_that_are_none_are_named() {
        for (line, why) in [
            ("www.example x A 1.2.3.4", "line 2: ttl \"x\""),
            ("www.example 5 A 1.2.3", "line 2: A \"1.2.3\": expected an IPv4 address"),
            ("www.example 5 HINFO x", "line 2: type \"HINFO\": known are A"),
            ("www..example 5 A 1.2.3.4", "line 2: name"),
            ("www.example 5 MX mail", "line 2: MX \"mail\""),
        ] {
            let error = Zone::default().add_lines(&format!("\n{line}")).expect_err(line);
            assert!(error.to_string().starts_with(why), "{error}");
        }
        assert!(data_of("SOA", "a b 1 2 3 4 x").is_err());
    }
}
