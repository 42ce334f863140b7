//! How large payloads are copied into a ring: by ordinary stores, or past the caches.
//!
//! Where writer and reader have a cache in common, ordinary stores are twice as fast. Where they have not, each line is
//! fetched from the reader's cache before it is written, and stores past the caches are several times as fast. What the
//! machine says of its caches is no help: below a hypervisor it may be wrong, and change by the minute. So the writer
//! takes the time, and now and then tries the other way.

use crate::sync::{AtomicU64, Ordering};

/// Bytes from which on it is worth while to look at the clock.
pub const LARGE_COPY: usize = 4096;
/// How often the way that is not used is tried.
const TRIED_EVERY: u64 = 64;
/// What a cost is of, in bytes.
const UNIT: u64 = 16 << 10;

const BITS: u32 = 24;
const COST: u64 = (1 << BITS) - 1;

/// What both ways have taken of late, in ns per 16 KiB, and how many copies there were. Zeroed, it is of a new ring.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Copying(AtomicU64);

impl Copying {
    /// Is the next copy to go past the caches? By who has the turn to write.
    #[must_use]
    pub fn is_past_caches(&self) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        let (ordinary, past, count) = parts(word);
        self.0.store(packed(ordinary, past, count + 1), Ordering::Relaxed);
        if ordinary == 0 || past == 0 {
            return ordinary != 0;
        }
        // What the reader has to fetch from memory then is not in these times.
        let is_better = past + past / 4 < ordinary;
        is_better != count.is_multiple_of(TRIED_EVERY)
    }

    /// A copy of `len` bytes has taken so long.
    pub fn note(&self, is_past: bool, len: usize, ns: u64) {
        let (ordinary, past, count) = parts(self.0.load(Ordering::Relaxed));
        let sample = (ns * UNIT / len.max(1) as u64).max(1);
        let next = |former: u64| match former {
            0 => sample,
            // Whoever was interrupted has not been slow.
            _ => former - former / 4 + sample.min(4 * former) / 4,
        };
        let (ordinary, past) =
            if is_past { (ordinary, next(past)) } else { (next(ordinary), past) };
        self.0.store(packed(ordinary, past, count), Ordering::Relaxed);
    }
}

const fn parts(word: u64) -> (u64, u64, u64) {
    (word & COST, word >> BITS & COST, word >> (2 * BITS))
}

fn packed(ordinary: u64, past: u64, count: u64) -> u64 {
    ordinary.min(COST) | past.min(COST) << BITS | (count & (u64::MAX >> (2 * BITS))) << (2 * BITS)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Copying, TRIED_EVERY, UNIT};

    /// How many of `count` copies went past the caches, where the ways take this long.
    fn past(copying: &Copying, ordinary: u64, past: u64, count: u64) -> u64 {
        (0..count)
            .filter(|_| {
                let is_past = copying.is_past_caches();
                copying.note(is_past, UNIT as usize, if is_past { past } else { ordinary });
                is_past
            })
            .count() as u64
    }

    #[test]
    fn the_cheaper_way_is_used_and_the_other_tried() {
        let (near, far) = ((700, 1300), (5000, 900));
        let copying = Copying::default();
        let tried = |count: u64| count / TRIED_EVERY + 2;
        assert!(past(&copying, near.0, near.1, 10_000) <= tried(10_000));
        // After a move it is found out within some copies; back it takes until it has been tried some times.
        assert!(past(&copying, far.0, far.1, 10_000) >= 10_000 - tried(10_000) - 20);
        let back = past(&copying, near.0, near.1, 10_000);
        assert!(back <= tried(10_000) + 20 * TRIED_EVERY, "{back}");
    }

    #[test]
    fn one_that_was_interrupted_changes_little() {
        let copying = Copying::default();
        assert!(past(&copying, 700, 1300, 1000) < 30);
        copying.note(false, UNIT as usize, 50_000_000);
        assert!(past(&copying, 700, 1300, 100) < 10);
    }

    #[test]
    fn any_time_and_any_length_are_taken() {
        let copying = Copying::default();
        for (len, ns) in [(0, 0), (1, u64::from(u32::MAX)), (usize::MAX >> 1, 1)] {
            let is_past = copying.is_past_caches();
            copying.note(is_past, len, ns);
        }
    }
}
