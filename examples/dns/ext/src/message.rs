//! Messages: a query is read once, with every length checked, and an answer is made of it.
//!
//! What has no sense as a query is answered with the code that says so, or not at all if it is an answer
//! itself or has no header: two servers must never talk to each other for ever.

use crate::zone::{NAME_LEN_MAX, Name, Record, Zone, kind};

/// How a query has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// What is too long is said to be so.
    Udp,
    /// Up to 64 KiB.
    Tcp,
}

/// Outcomes, as the header has them.
mod code {
    pub(super) const NO_ERROR: u16 = 0;
    pub(super) const FORM_ERR: u16 = 1;
    pub(super) const NX_DOMAIN: u16 = 3;
    pub(super) const NOT_IMP: u16 = 4;
    pub(super) const REFUSED: u16 = 5;
    /// Its upper bits are in OPT.
    pub(super) const BAD_VERS: u16 = 16;
}

const HEADER_LEN: usize = 12;
/// Bits of the header's second word.
const IS_ANSWER: u16 = 1 << 15;
const OPCODE: u16 = 0xf << 11;
const IS_AUTHORITY: u16 = 1 << 10;
const IS_CUT: u16 = 1 << 9;
const RECURSION_WANTED: u16 = 1 << 8;
const CLASS_IN: u16 = 1;
/// Longest answer over UDP without EDNS.
const UDP_LEN: usize = 512;
/// With it: what goes through every path in one piece.
const UDP_LEN_MAX: usize = 1232;
/// Aliases that are followed.
const ALIASES_MAX: usize = 8;
/// The name of the question, where it stands in every message that has one.
const NAME_OF_QUESTION: [u8; 2] = [0xc0, HEADER_LEN as u8];

/// What a client says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edns {
    udp_len: u16,
    version: u8,
    /// The one flag there is, and those to come.
    flags: u16,
}

/// A query.
#[derive(Debug)]
struct Query<'a> {
    name: Name,
    kind: u16,
    class: u16,
    /// The question as it has come.
    question: &'a [u8],
    edns: Option<Edns>,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn word(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn skip(&mut self, len: usize) -> Option<()> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len())?;
        self.at = end;
        Some(())
    }

    /// A name in small letters. A pointer must lead to before the name that it is in: so none goes round.
    fn name(&mut self) -> Option<Name> {
        let (mut name, mut start, mut after) = (Vec::new(), self.at, None);
        loop {
            let len = self.byte()?;
            match len >> 6 {
                0 => {
                    let label = self.bytes.get(self.at..self.at + usize::from(len))?;
                    name.push(len);
                    name.extend(label.iter().map(u8::to_ascii_lowercase));
                    self.at += usize::from(len);
                    if name.len() > NAME_LEN_MAX {
                        return None;
                    }
                    if len == 0 {
                        self.at = after.unwrap_or(self.at);
                        return Some(name);
                    }
                }
                3 => {
                    let to = usize::from(len & 0x3f) << 8 | usize::from(self.byte()?);
                    if to >= start {
                        return None;
                    }
                    after = after.or(Some(self.at));
                    (start, self.at) = (to, to);
                }
                _ => return None,
            }
        }
    }
}

/// Read a query whose header was looked at already.
fn read(bytes: &[u8]) -> Option<Query<'_>> {
    let mut reader = Reader { bytes, at: 4 };
    let [questions, answers, authorities, others] =
        [reader.word()?, reader.word()?, reader.word()?, reader.word()?];
    if questions != 1 {
        return None;
    }
    let name = reader.name()?;
    let (kind, class) = (reader.word()?, reader.word()?);
    let question = &bytes[HEADER_LEN..reader.at];
    let mut edns = None;
    let before = u32::from(answers) + u32::from(authorities);
    for index in 0..before + u32::from(others) {
        let owner = reader.name()?;
        let (of, udp_len) = (reader.word()?, reader.word()?);
        let [version, flags] = [reader.word()?, reader.word()?];
        let len = reader.word()?;
        reader.skip(usize::from(len))?;
        if of == kind::OPT {
            let is_first = edns.is_none() && index >= before && owner == [0];
            edns = Some(Edns { udp_len, version: version as u8, flags }).filter(|_| is_first);
            edns?;
        }
    }
    Some(Query { name, kind, class, question, edns })
}

/// An answer in the making.
#[derive(Default)]
struct Answer {
    code: u16,
    is_authority: bool,
    /// Records with their names in full, or by a pointer.
    answers: Vec<u8>,
    answer_count: u16,
    authorities: Vec<u8>,
    authority_count: u16,
}

impl Answer {
    fn add(&mut self, name: &[u8], record: &Record) {
        put(&mut self.answers, name, record, record.ttl);
        self.answer_count += 1;
    }
}

fn put(to: &mut Vec<u8>, name: &[u8], record: &Record, ttl: u32) {
    to.extend(name);
    to.extend(record.kind.to_be_bytes());
    to.extend(CLASS_IN.to_be_bytes());
    to.extend(ttl.to_be_bytes());
    to.extend((record.data.len() as u16).to_be_bytes());
    to.extend(&record.data);
}

/// The answer to what has come; None if it deserves none.
#[must_use]
pub fn answer(bytes: &[u8], zone: &Zone, transport: Transport) -> Option<Vec<u8>> {
    let mut reader = Reader { bytes, at: 0 };
    let (id, flags) = (reader.word()?, reader.word()?);
    if bytes.len() < HEADER_LEN || flags & IS_ANSWER != 0 {
        return None;
    }
    let query = if flags & OPCODE == 0 { read(bytes) } else { None };
    let made = match &query {
        None => {
            let code = if flags & OPCODE == 0 { code::FORM_ERR } else { code::NOT_IMP };
            Answer { code, ..Answer::default() }
        }
        Some(query) => look_up(query, zone),
    };
    let edns = query.as_ref().and_then(|query| query.edns);
    let limit = match (transport, edns) {
        (Transport::Tcp, _) => usize::from(u16::MAX),
        (Transport::Udp, None) => UDP_LEN,
        (Transport::Udp, Some(edns)) => usize::from(edns.udp_len).clamp(UDP_LEN, UDP_LEN_MAX),
    };
    let kept = flags & (OPCODE | RECURSION_WANTED);
    let whole = write(id, kept, query.as_ref(), &made);
    if whole.len() <= limit {
        return Some(whole);
    }
    let cut = Answer { code: made.code, is_authority: made.is_authority, ..Answer::default() };
    Some(write(id, kept | IS_CUT, query.as_ref(), &cut))
}

fn look_up(query: &Query<'_>, zone: &Zone) -> Answer {
    let refused = |code| Answer { code, ..Answer::default() };
    if query.edns.is_some_and(|edns| edns.version != 0) {
        return refused(code::BAD_VERS);
    }
    if query.class != CLASS_IN || !zone.answers_for(&query.name) {
        return refused(code::REFUSED);
    }
    let mut answer = Answer { code: code::NO_ERROR, is_authority: true, ..Answer::default() };
    let (mut name, mut owner) = (query.name.clone(), NAME_OF_QUESTION.to_vec());
    for _ in 0..=ALIASES_MAX {
        let found = zone.records(&name, query.kind);
        found.iter().for_each(|record| answer.add(&owner, record));
        let alias = zone.records(&name, kind::CNAME).first();
        let Some(alias) = alias.filter(|_| found.is_empty()) else { break };
        answer.add(&owner, alias);
        name.clone_from(&alias.data);
        owner.clone_from(&alias.data);
        if !zone.answers_for(&name) {
            return answer;
        }
    }
    if !zone.has(&name) {
        answer.code = code::NX_DOMAIN;
    }
    if zone.records(&name, query.kind).is_empty() {
        say_where_it_is_not(&mut answer, &name, zone);
    }
    answer
}

/// The zone's SOA, whose last number says for how long there will be no such record.
fn say_where_it_is_not(answer: &mut Answer, name: &[u8], zone: &Zone) {
    let Some(origin) = zone.origin(name) else { return };
    let Some(record) = zone.records(origin, kind::SOA).first() else { return };
    let least = record.data.last_chunk().map_or(0, |last| u32::from_be_bytes(*last));
    put(&mut answer.authorities, origin, record, record.ttl.min(least));
    answer.authority_count += 1;
}

fn write(id: u16, kept: u16, query: Option<&Query<'_>>, answer: &Answer) -> Vec<u8> {
    let authority = if answer.is_authority { IS_AUTHORITY } else { 0 };
    let flags = IS_ANSWER | kept | authority | answer.code & 0xf;
    let edns = query.and_then(|query| query.edns);
    let counts = [
        u16::from(query.is_some()),
        answer.answer_count,
        answer.authority_count,
        u16::from(edns.is_some()),
    ];
    let mut bytes = Vec::with_capacity(UDP_LEN);
    for word in [id, flags].iter().chain(&counts) {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(query.map_or(&[][..], |query| query.question));
    bytes.extend(&answer.answers);
    bytes.extend(&answer.authorities);
    if let Some(edns) = edns {
        bytes.push(0);
        bytes.extend(kind::OPT.to_be_bytes());
        bytes.extend((UDP_LEN_MAX as u16).to_be_bytes());
        bytes.extend([(answer.code >> 4) as u8, 0]);
        bytes.extend((edns.flags & 1 << 15).to_be_bytes());
        bytes.extend(0u16.to_be_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use proptest::{collection, sample};

    use super::{HEADER_LEN, Transport, UDP_LEN, UDP_LEN_MAX, answer, code, read};
    use crate::zone::{Zone, kind, name_of};

    fn zone() -> Zone {
        let mut zone = Zone::default();
        let lines = "example 300 SOA ns.example mail.example 1 2 3 4 60\n\
            www.example 60 A 192.0.2.1\nwww.example 60 A 192.0.2.2\nwww.example 60 AAAA 2001:db8::1\n\
            alias.example 60 CNAME www.example\nloop.example 60 CNAME loop.example\n\
            deep.below.example 60 TXT \"x\"";
        zone.add_lines(lines).expect("records");
        let long = format!("long.example 60 TXT {}\n", "x".repeat(250));
        zone.add_lines(&long.repeat(8)).expect("records");
        zone
    }

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(name_of(name).expect("a name"));
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        bytes
    }

    fn with_edns(name: &str, kind: u16, [udp_len, version]: [u16; 2]) -> Vec<u8> {
        let mut bytes = query(name, kind);
        bytes[11] = 1;
        bytes.extend([0, 0, 41]);
        bytes.extend(udp_len.to_be_bytes());
        bytes.extend([0, version as u8, 0x80, 0, 0, 0]);
        bytes
    }

    /// Outcome, answers, authorities, others.
    fn head(bytes: &[u8]) -> [u16; 4] {
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        assert_eq!((word(0), word(2) >> 15), (0x1234, 1));
        [word(2) & 0xf, word(6), word(8), word(10)]
    }

    fn ask(name: &str, kind: u16) -> [u16; 4] {
        head(&answer(&query(name, kind), &zone(), Transport::Udp).expect("an answer"))
    }

    #[test]
    fn questions_are_answered() {
        assert_eq!(ask("WWW.example", kind::A), [code::NO_ERROR, 2, 0, 0]);
        assert_eq!(ask("www.example", kind::AAAA), [code::NO_ERROR, 1, 0, 0]);
        assert_eq!(ask("alias.example", kind::A), [code::NO_ERROR, 3, 0, 0]);
        assert_eq!(ask("alias.example", kind::CNAME), [code::NO_ERROR, 1, 0, 0]);
        assert_eq!(ask("www.example", kind::MX), [code::NO_ERROR, 0, 1, 0]);
        assert_eq!(ask("below.example", kind::A), [code::NO_ERROR, 0, 1, 0]);
        assert_eq!(ask("none.example", kind::A), [code::NX_DOMAIN, 0, 1, 0]);
        assert_eq!(ask("elsewhere.test", kind::A), [code::REFUSED, 0, 0, 0]);
        assert_eq!(ask("loop.example", kind::A)[0], code::NO_ERROR);
    }

    #[test]
    fn long_answers_are_cut_over_udp_only() {
        for (bytes, transport, count) in [
            (query("long.example", kind::TXT), Transport::Udp, 0),
            (with_edns("long.example", kind::TXT, [4096, 0]), Transport::Udp, 0),
            (query("long.example", kind::TXT), Transport::Tcp, 8),
        ] {
            let bytes = answer(&bytes, &zone(), transport).expect("an answer");
            assert_eq!((head(&bytes)[1], bytes[2] & 2 != 0), (count, count == 0));
        }
    }

    #[test]
    fn edns_is_answered_with_its_own() {
        let ask = |udp_len, version| {
            let query = with_edns("www.example", kind::A, [udp_len, version]);
            answer(&query, &zone(), Transport::Udp).expect("an answer")
        };
        assert_eq!(head(&ask(1400, 0)), [code::NO_ERROR, 2, 0, 1]);
        let newer = ask(1400, 1);
        assert_eq!((head(&newer), newer[newer.len() - 6]), ([0, 0, 0, 1], 1), "BADVERS");
        let mut twice = with_edns("www.example", kind::A, [1400, 0]);
        twice.extend_from_within(twice.len() - 11..);
        twice[11] = 2;
        assert_eq!(head(&answer(&twice, &zone(), Transport::Udp).expect("one"))[0], code::FORM_ERR);
    }

    #[test]
    fn what_is_no_query_is_refused_or_dropped() {
        let ask = |bytes: &[u8]| answer(bytes, &zone(), Transport::Udp);
        let good = query("www.example", kind::A);
        assert_eq!(ask(&good[..HEADER_LEN - 1]), None);
        let mut answered = good.clone();
        answered[2] |= 0x80;
        assert_eq!(ask(&answered), None);
        assert_eq!(head(&ask(&good[..good.len() - 1]).expect("an answer"))[0], code::FORM_ERR);
        let mut update = good.clone();
        update[2] = 5 << 3;
        assert_eq!(head(&ask(&update).expect("an answer"))[0], code::NOT_IMP);
        // A pointer to itself, and one that leads ahead.
        for to in [12, 14] {
            let bytes = [&good[..HEADER_LEN], &[0xc0, to, 0, 1, 0, 1]].concat();
            assert_eq!(head(&ask(&bytes).expect("an answer"))[0], code::FORM_ERR);
        }
    }

    proptest! {
        #[test]
        fn nothing_that_comes_breaks_it(bytes in collection::vec(any::<u8>(), 0..600)) {
            for transport in [Transport::Udp, Transport::Tcp] {
                let _ = answer(&bytes, &zone(), transport);
            }
        }

        #[test]
        fn a_query_that_was_changed_is_answered_within_bounds(
            name in sample::select(vec!["www.example", "long.example", "alias.example", "a.b"]),
            kind in sample::select(vec![1u16, 5, 6, 16, 28, 255]),
            changes in collection::vec((any::<sample::Index>(), any::<u8>()), 0..6),
            end in any::<sample::Index>(),
        ) {
            let mut bytes = with_edns(name, kind, [4096, 0]);
            for (index, byte) in changes {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(1 + end.index(bytes.len()));
            if let Some(answer) = answer(&bytes, &zone(), Transport::Udp) {
                let limit = read(&bytes).and_then(|it| it.edns).map_or(UDP_LEN, |_| UDP_LEN_MAX);
                prop_assert!(answer.len() <= limit);
                prop_assert_eq!(&answer[..2], &bytes[..2]);
                prop_assert!(answer[2] & 0x80 != 0);
            }
        }
    }
}
