//! Values that have not come whole. A connection's word names its own; one that is cut says nothing, so
//! what was begun longest ago makes room when there are too many.

use std::collections::BTreeMap;

use ext_api::shared::Mutex;

use crate::protocol::{How, Set};

/// Values that are being received at one time: 32 MiB at most.
const PARTIALS_MAX: usize = 32;

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// A line.
    Line,
    /// The end of a value that is not wanted.
    Swallow(usize),
    /// The rest of this value.
    Partial(u64),
}

impl Word {
    const SWALLOW: u64 = 1 << 63;

    pub(crate) const fn of(raw: u64) -> Self {
        match raw {
            0 | Self::SWALLOW => Self::Line,
            raw if raw & Self::SWALLOW != 0 => Self::Swallow((raw & !Self::SWALLOW) as usize),
            name => Self::Partial(name),
        }
    }

    pub(crate) const fn to_raw(self) -> u64 {
        match self {
            Self::Line => 0,
            Self::Swallow(left) => Self::SWALLOW | left as u64,
            Self::Partial(name) => name,
        }
    }
}

/// A value, as far as it has come, and the line's end behind it.
#[derive(Debug)]
pub(crate) struct Partial {
    how: How,
    key: Vec<u8>,
    flags: u32,
    exptime: i64,
    noreply: bool,
    value: Vec<u8>,
    whole: usize,
}

impl Partial {
    pub(crate) fn new(set: &Set<'_>, len: usize) -> Self {
        let Set { how, key, flags, exptime, noreply } = *set;
        let (key, value) = (key.to_vec(), Vec::new());
        Self { how, key, flags, exptime, noreply, value, whole: len + 2 }
    }

    pub(crate) fn set(&self) -> Set<'_> {
        let Self { how, ref key, flags, exptime, noreply, .. } = *self;
        Set { how, key, flags, exptime, noreply }
    }

    /// Take what is missing; how much that was.
    pub(crate) fn fill(&mut self, bytes: &[u8]) -> usize {
        let len = bytes.len().min(self.whole - self.value.len());
        self.value.reserve_exact(self.whole - self.value.len());
        self.value.extend(&bytes[..len]);
        len
    }

    pub(crate) const fn is_whole(&self) -> bool {
        self.value.len() == self.whole
    }

    pub(crate) fn value(&self) -> &[u8] {
        &self.value
    }
}

/// All of them, by a name that is given once: the smallest is the oldest.
#[derive(Debug)]
pub(crate) struct Partials(Mutex<(u64, BTreeMap<u64, Partial>)>);

impl Partials {
    /// Names begin at `now_ns`, so that after a restart none means another's value.
    pub(crate) fn new(now_ns: u64) -> Self {
        Self(Mutex::new((now_ns.max(1) & !(1 << 63), BTreeMap::new())))
    }

    /// Keep one; its name.
    pub(crate) fn put(&self, partial: Partial) -> Option<u64> {
        let mut guard = self.0.lock().ok()?;
        let (next, known) = &mut *guard;
        while known.len() >= PARTIALS_MAX {
            known.pop_first();
        }
        *next += 1;
        known.insert(*next, partial);
        Some(*next)
    }

    /// It has not come whole yet.
    pub(crate) fn put_back(&self, name: u64, partial: Partial) {
        if let Ok(mut guard) = self.0.lock() {
            guard.1.insert(name, partial);
        }
    }

    /// None: it had to make room.
    pub(crate) fn take(&self, name: u64) -> Option<Partial> {
        self.0.lock().ok()?.1.remove(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::{PARTIALS_MAX, Partial, Partials, Word};
    use crate::protocol::{How, Set};

    #[test]
    fn words_are_what_they_were() {
        for word in [Word::Line, Word::Swallow(5), Word::Partial(7)] {
            assert_eq!(Word::of(word.to_raw()), word);
        }
        assert_eq!(Word::of(Word::Swallow(0).to_raw()), Word::Line);
    }

    #[test]
    fn the_oldest_makes_room() {
        let set = Set { how: How::Set, key: b"k", flags: 0, exptime: 0, noreply: false };
        let partials = Partials::new(5);
        let put = || partials.put(Partial::new(&set, 3)).expect("room");
        let names: Vec<u64> = (0..=PARTIALS_MAX).map(|_| put()).collect();
        assert!(partials.take(names[0]).is_none());
        let mut partial = partials.take(names[1]).expect("the second");
        assert_eq!((partial.fill(b"ab"), partial.is_whole()), (2, false));
        assert_eq!((partial.fill(b"c\r\nget"), partial.is_whole()), (3, true));
        assert_eq!(partial.value(), b"abc\r\n");
    }
}
