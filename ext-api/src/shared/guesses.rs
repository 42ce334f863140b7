//! Where entries of a map are likely to lie.
//!
//! Bucket and entry are two waits for memory, one after the other. So a table that is small enough for the
//! processor's cache says where the entry probably is, and both are fetched at once. A wrong guess costs a
//! fetch and nothing else, so that nothing here is ordered, locked, or ever taken out.

use crate::arch::with_high_bits;
use crate::sync::{AtomicU32, Ordering};

/// Guesses in a set: keys that look into the same one.
const WAYS: usize = 4;
/// Cache lines that a guess can tell apart: 1 GiB on either side of the table.
const LINE_BITS: u32 = 25;
const LINE_SHIFT: u32 = 6;
const BEFORE: usize = 1 << 30;
/// Bits of the hash that buckets do not need, as long as there are not too many.
const HASH_SHIFT: u32 = 24;

/// Each: a line in the low bits, a tag of the key's hash above it.
#[derive(Debug)]
#[repr(C, align(16))]
struct Set([AtomicU32; WAYS]);

/// One guess for most of the keys.
#[derive(Debug)]
pub(super) struct Guesses {
    sets: Box<[Set]>,
    /// Address of the first line that can be guessed.
    origin: usize,
}

impl Guesses {
    /// Room for so many keys; None if the heap has none.
    pub(super) fn new(expected: usize) -> Option<Self> {
        let count = expected.checked_next_power_of_two()?.div_ceil(WAYS);
        let mut sets = Vec::new();
        sets.try_reserve_exact(count).ok()?;
        sets.resize_with(count, || Set([const { AtomicU32::new(0) }; WAYS]));
        let sets = sets.into_boxed_slice();
        let origin = sets.as_ptr().addr().wrapping_sub(BEFORE) >> LINE_SHIFT << LINE_SHIFT;
        Some(Self { sets, origin })
    }

    /// Perhaps the entry of a key with this hash, or of another.
    #[inline]
    pub(super) fn of(&self, hash: u64) -> *const u8 {
        let set = self.set(hash);
        let ours = with_high_bits(&set.0, tag(hash));
        let guess = set.0[(ours | 1 << (WAYS - 1)).trailing_zeros() as usize % WAYS]
            .load(Ordering::Relaxed);
        let line = guess as usize % (1 << LINE_BITS);
        core::ptr::without_provenance(self.origin.wrapping_add(line << LINE_SHIFT))
    }

    /// The entry of a key with this hash lies here.
    pub(super) fn note(&self, hash: u64, entry: *const u8) {
        let set = self.set(hash);
        let line = (entry.addr().wrapping_sub(self.origin) >> LINE_SHIFT) as u32;
        let guess = (tag(hash) << LINE_BITS) | (line % (1 << LINE_BITS));
        let ours = with_high_bits(&set.0, tag(hash));
        let vacant = || set.0.iter().position(|way| way.load(Ordering::Relaxed) == 0);
        let way = match ours {
            0 => vacant().unwrap_or(guess as usize % WAYS),
            _ => ours.trailing_zeros() as usize % WAYS,
        };
        set.0[way].store(guess, Ordering::Relaxed);
    }

    #[inline]
    fn set(&self, hash: u64) -> &Set {
        &self.sets[(hash >> HASH_SHIFT) as usize & (self.sets.len() - 1)]
    }
}

/// Of a hash, for its guess.
#[inline]
const fn tag(hash: u64) -> u32 {
    (hash >> (u64::BITS - (u32::BITS - LINE_BITS))) as u32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Guesses, LINE_SHIFT};

    /// As keys' hashes are.
    fn hash(key: usize) -> u64 {
        (key as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    }

    #[test]
    fn most_guesses_are_right() {
        const KEYS: usize = if cfg!(miri) { 256 } else { 4096 };
        let guesses = Guesses::new(KEYS).unwrap();
        let entry = |key: usize| guesses.sets.as_ptr().cast::<u8>().wrapping_add(key << LINE_SHIFT);
        (0..KEYS).for_each(|key| guesses.note(hash(key), entry(key)));
        let line = |at: *const u8| at.addr() >> LINE_SHIFT;
        let is_right = |key: &usize| line(guesses.of(hash(*key))) == line(entry(*key));
        let right = (0..KEYS).filter(is_right).count();
        assert!(right > KEYS * 3 / 4 && right < KEYS, "{right} of {KEYS}");
    }

    #[test]
    fn the_last_entry_of_a_key_is_the_guess() {
        let guesses = Guesses::new(1).unwrap();
        for at in [1, 7, 2] {
            let entry = guesses.sets.as_ptr().cast::<u8>().wrapping_add(at << LINE_SHIFT);
            guesses.note(hash(5), entry);
            assert_eq!(guesses.of(hash(5)), entry.map_addr(|at| at & !((1 << LINE_SHIFT) - 1)));
        }
    }
}
