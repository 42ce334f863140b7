//! Looking a key up without a lock.
//!
//! Everything is read as it is at that moment, and counts only if the bucket's version says afterwards that
//! nothing was changed meanwhile. A wrong tag, or an entry in an overflow bucket, is no reason to lock either: a
//! lock waits for all reads before it, and the next look-up with it.
#![expect(unsafe_code, reason = "follows links that others may change meanwhile")]

use core::sync::atomic::fence;

use super::{ADDRESS, Bucket, Entry, Head, place_of, tag};
use crate::arch::{load_racing, with_high_byte};
use crate::sync::{AtomicU64, Ordering};

/// A look at a chain without its lock: what was seen counts if nothing has changed by then.
pub(super) struct Look<'a> {
    first: &'a Bucket,
    version: u64,
}

/// A link, and the entry that it led to when the link was this word.
pub(super) struct Seen<'a> {
    pub(super) link: &'a AtomicU64,
    pub(super) word: u64,
    pub(super) entry: &'a Entry,
    pub(super) head: Head,
}

impl<'a> Look<'a> {
    /// None while somebody may be changing it.
    #[inline]
    pub(super) fn begin(first: &'a Bucket) -> Option<Self> {
        let version = first.version.load(Ordering::Acquire);
        (first.lock.holder() == 0).then_some(Self { first, version })
    }

    /// Has nothing changed?
    #[inline]
    pub(super) fn is_right(&self) -> bool {
        fence(Ordering::Acquire);
        self.first.version.load(Ordering::Relaxed) == self.version
    }

    /// What leads to `key`, if anything does. None if something has changed.
    #[inline]
    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Option<Option<Seen<'a>>> {
        for bucket in self.first.chain() {
            let mut matching = with_high_byte(&bucket.links, tag(hash));
            while matching != 0 {
                let link = bucket.links.get(place_of(matching))?;
                let word = link.load(Ordering::Acquire);
                // SAFETY: null, or an entry, or what was one a moment ago: readable, and 8-aligned.
                let entry = unsafe { ((word & ADDRESS) as *const Entry).as_ref() }?;
                let head = entry.head();
                // If nothing has changed by now, it is the front of an entry that there was, so that its
                // bytes are readable whatever becomes of it.
                if !self.is_right() {
                    return None;
                }
                if head.key_len() == key.len() && is_same(key, entry.words()) {
                    return Some(Some(Seen { link, word, entry, head }));
                }
                matching &= matching - 1;
            }
        }
        self.is_right().then_some(None)
    }
}

/// Does `key` lie at `words`, filled up by zeros?
#[inline]
fn is_same(key: &[u8], words: *const AtomicU64) -> bool {
    // SAFETY: within the words of a key of this length, as the caller has checked.
    let load = |at: usize| unsafe { load_racing(words.cast::<u8>().wrapping_add(at)) };
    let (Some(first), Some(last)) = (key.first_chunk::<8>(), key.last_chunk::<8>()) else {
        let short = key.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        return key.is_empty() || load(0) == short;
    };
    // The ends, which meet or overlap if there are no more than 16 bytes.
    if load(0) != u64::from_le_bytes(*first) || load(key.len() - 8) != u64::from_le_bytes(*last) {
        return false;
    }
    let (inner, _) = key[8..].as_chunks::<8>();
    let mut inner = (8..).step_by(8).zip(inner);
    key.len() <= 16 || inner.all(|(at, word)| load(at) == u64::from_le_bytes(*word))
}
