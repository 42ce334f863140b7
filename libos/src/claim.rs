//! A word that says who holds a row of a table: so that what a killed process held can be taken back, by
//! one, and never from whoever has it next.

use crate::sync::{AtomicU64, Ordering};

/// A word that says who holds something: a generation and a pid, 0 when free.
#[derive(Debug)]
#[repr(transparent)]
pub struct Claim(AtomicU64);

/// What a [`Claim`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    /// Counts the claimants; never goes back.
    pub generation: u32,
    /// Pid of the claimant, or 0.
    pub pid: u32,
}

impl Claimed {
    const fn from_word(word: u64) -> Self {
        Self { generation: (word >> 32) as u32, pid: (word & 0xffff_ffff) as u32 }
    }

    const fn word(self) -> u64 {
        (self.generation as u64) << 32 | self.pid as u64
    }
}

impl Claim {
    /// Who holds it now.
    #[inline]
    pub fn load(&self) -> Claimed {
        Claimed::from_word(self.0.load(Ordering::Acquire))
    }

    /// Take it for `pid` if it is free; the new generation.
    pub fn take(&self, pid: u32) -> Option<u32> {
        let seen = self.load();
        (seen.pid == 0).then(|| self.swap(seen, pid)).flatten()
    }

    /// Replace exactly `seen` by a claim of `pid`; the new generation.
    pub fn swap(&self, seen: Claimed, pid: u32) -> Option<u32> {
        let new = Claimed { generation: seen.generation.wrapping_add(1), pid };
        self.0
            .compare_exchange(seen.word(), new.word(), Ordering::AcqRel, Ordering::Relaxed)
            .ok()
            .map(|_| new.generation)
    }

    /// Free it if it still is exactly `seen`. The generation stays, so that a name made from it
    /// is never good for the next holder.
    pub fn free(&self, seen: Claimed) -> bool {
        let new = Claimed { pid: 0, ..seen };
        self.0
            .compare_exchange(seen.word(), new.word(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::Claim;
    use crate::sync::AtomicU64;
    use loom::sync::Arc;

    fn free() -> Claim {
        Claim(AtomicU64::new(0))
    }

    #[test]
    fn loom_a_row_is_taken_by_one() {
        loom::model(|| {
            let row = Arc::new(free());
            let other = row.clone();
            let first = loom::thread::spawn(move || other.take(1));
            let second = row.take(2);
            let first = first.join().expect("no panic");
            assert!(first.is_some() != second.is_some());
            assert_eq!(row.load().pid, if first.is_some() { 1 } else { 2 });
        });
    }

    #[test]
    fn loom_the_sweeper_frees_what_the_dead_held_and_nothing_else() {
        loom::model(|| {
            let row = Arc::new(free());
            assert_eq!(row.take(1), Some(1));
            let dead = row.load();
            let other = row.clone();
            // Process 1 is dead; its row is swept twice, and process 2 takes it as soon as it can.
            let sweeper = loom::thread::spawn(move || [other.free(dead), other.free(dead)]);
            let mine = row.take(2);
            let freed = sweeper.join().expect("no panic");
            assert!(freed[0] && !freed[1], "it is freed once");
            if mine.is_some() {
                assert_eq!(row.load().pid, 2, "the next one keeps it");
            }
        });
    }
}
