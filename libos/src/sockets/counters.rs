//! Counters: eventfds, whose count is in the region as long as all who have it are known.
//!
//! The count is one word, in the place of a ring's tail. What is in the kernel's counter counts as well: writers
//! go by that one while somebody sleeps on it, and while it has something that nobody has read. So there is nothing
//! to tell apart, and nobody to be rung for.
//!
//! ```text
//!  writer   add to the word ──► anybody parked? ── yes ──► subtract it again ──► write, to the kernel
//!  reader   the word, and the kernel's if that has something ──► neither ──► parked ──► read, in the kernel
//! ```
//!
//! Once it is *left*, by a bit of the same word, nothing is added to it any more; what it has is moved to the kernel
//! by who has the turn, who says so before. Whoever comes after one that was killed meanwhile sees by what the kernel
//! has whether it had come to that.

use super::{Connection, Direction};
use crate::sync::{Ordering, fence};

/// In [`Connection::kind`], in the place of a type of sockets.
pub const COUNTER: u32 = 32;
/// Beside that: each read takes one (`EFD_SEMAPHORE`).
pub const ONE_BY_ONE: u32 = 64;
/// Bytes of what is written and read.
pub const COUNT_LEN: usize = 8;
/// More is not added at a time: how much fits is for the kernel to say.
pub const MORE_MAX: u64 = 1 << 32;

/// In the word: nothing is added to it.
const LEFT: u64 = 1 << 63;
/// In [`Side::cookie`](super::Side::cookie). No socket, and no pipe, has such a number.
const COOKIE: u64 = 0b011 << 61;

/// What stands for a socket's cookie, of the counter that the kernel has given this number.
#[must_use]
pub const fn cookie(number: u32) -> u64 {
    COOKIE | number as u64
}

/// What became of what was to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// It is there for who reads next.
    There,
    /// Somebody sleeps: so much of it has been taken out again, and counted as the kernel's.
    Asleep(u64),
    /// Somebody sleeps, and it has been left meanwhile.
    Moving,
    /// It had been left, or there was no room. Nothing was added.
    Not,
}

impl Connection {
    /// Is it a counter?
    #[must_use]
    #[inline]
    pub fn is_counter(&self) -> bool {
        self.kind.load(Ordering::Relaxed) & !ONE_BY_ONE == COUNTER
    }

    /// Does each read take one?
    #[must_use]
    pub fn is_one_by_one(&self) -> bool {
        self.kind.load(Ordering::Relaxed) & ONE_BY_ONE != 0
    }

    /// Is nothing but the program's own in the kernel's channel?
    #[must_use]
    #[inline]
    pub fn has_no_bells(&self) -> bool {
        !self.is_socket() || self.is_inlet()
    }

    /// Is it what its program knows as a socket?
    #[must_use]
    #[inline]
    pub fn is_socket(&self) -> bool {
        !self.is_pipe() && !self.is_counter()
    }
}

impl Direction {
    /// Add to the count.
    pub fn add(&self, more: u64, is_parked: impl FnOnce() -> bool) -> Added {
        let sum = |word: u64| word.checked_add(more).filter(|sum| sum & LEFT == 0);
        if more >= MORE_MAX || self.change(sum).is_none() {
            return Added::Not;
        }
        fence(Ordering::SeqCst);
        if !is_parked() {
            return Added::There;
        }
        // Before it is taken: who finds nothing is to know that there will be something.
        self.kernel_sent.fetch_add(more, Ordering::AcqRel);
        // What has been read since is through.
        let less = |word: u64| (word & LEFT == 0).then(|| word.saturating_sub(more));
        let back = self.change(less).map(|word| word.min(more));
        self.kernel_sent.fetch_sub(more - back.unwrap_or(0), Ordering::AcqRel);
        back.map_or(Added::Moving, Added::Asleep)
    }

    /// Take all of the count, or one: how much. None once it has been left.
    #[must_use]
    pub fn take_count(&self, one: bool) -> Option<u64> {
        let taken = |word: u64| if one { word.min(1) } else { word };
        if self.tail.load(Ordering::Acquire) == 0 {
            return Some(0);
        }
        let rest = |word: u64| (word & LEFT == 0).then(|| word - taken(word));
        self.change(rest).map(taken)
    }

    /// Would so much more be more than an eventfd has, whatever the kernel has of it?
    #[must_use]
    pub fn overflows(&self, more: u64) -> bool {
        let word = self.tail.load(Ordering::Acquire);
        word & LEFT == 0 && word.checked_add(more).is_none_or(|sum| sum == u64::MAX)
    }

    /// Nothing is added from now on.
    pub fn leave_count(&self) {
        self.tail.fetch_or(LEFT, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// Has it been left, and what does it still have?
    #[must_use]
    pub fn left_count(&self) -> Option<u64> {
        let word = self.tail.load(Ordering::Acquire);
        (word & LEFT != 0).then_some(word & !LEFT)
    }

    /// After it has been left, by who has the turn.
    pub fn set_left_count(&self, count: u64) {
        self.tail.store(count | LEFT, Ordering::Release);
    }

    /// What the kernel had when what is left was about to be moved there; None if it is not.
    #[must_use]
    pub fn moving_onto(&self) -> Option<u64> {
        self.large_from.load(Ordering::Acquire).checked_sub(1)
    }

    /// It is about to be, or is, by who has the turn.
    pub fn set_moving_onto(&self, kernels: Option<u64>) {
        let word = kernels.map_or(0, |count| count.saturating_add(1));
        self.large_from.store(word, Ordering::Release);
    }

    /// The former word, if it was changed.
    fn change(&self, next: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        self.tail.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Added, COUNTER, LEFT, MORE_MAX, ONE_BY_ONE, cookie};
    use crate::sockets::{Connection, Direction, pipes};
    use crate::sync::Ordering::Relaxed;

    #[test]
    fn a_count_is_what_was_added_and_not_taken() {
        let one = Direction::default();
        assert_eq!((one.add(5, || false), one.add(0, || false)), (Added::There, Added::There));
        assert_eq!((one.take_count(true), one.take_count(false)), (Some(1), Some(4)));
        assert_eq!((one.take_count(true), one.take_count(false)), (Some(0), Some(0)));
        assert!(!one.has_bytes());
    }

    #[test]
    fn what_is_added_for_who_sleeps_is_the_kernels() {
        let one = Direction::default();
        assert_eq!(one.add(2, || false), Added::There);
        assert_eq!(one.add(3, || true), Added::Asleep(3));
        assert_eq!((one.take_count(false), one.kernel_sent.load(Relaxed)), (Some(2), 3));
        // Read before it was taken out again.
        assert_eq!(one.add(4, || one.take_count(true) == Some(1)), Added::Asleep(3));
        assert_eq!(one.kernel_sent.load(Relaxed), 6);
    }

    #[test]
    fn once_it_has_been_left_nothing_is_added_and_what_there_is_can_be_seen() {
        let one = Direction::default();
        assert_eq!((one.left_count(), one.add(MORE_MAX, || false)), (None, Added::Not));
        let moving = one.add(7, || {
            one.leave_count();
            true
        });
        assert_eq!((moving, one.kernel_sent.load(Relaxed)), (Added::Moving, 0));
        assert_eq!((one.left_count(), one.has_bytes()), (Some(7), true));
        assert_eq!((one.take_count(false), one.add(1, || false)), (None, Added::Not));
        one.set_left_count(0);
        assert_eq!((one.left_count(), one.has_bytes()), (Some(0), false));
        assert_eq!(one.moving_onto(), None);
        one.set_moving_onto(Some(0));
        assert_eq!(one.moving_onto(), Some(0));
        one.set_moving_onto(None);
        assert_eq!(one.moving_onto(), None);
    }

    #[test]
    fn no_sum_says_that_it_has_been_left() {
        let one = Direction::default();
        one.tail.store(LEFT - 1, Relaxed);
        assert_eq!(one.add(1, || false), Added::Not);
        assert_eq!((one.add(0, || false), one.take_count(false)), (Added::There, Some(LEFT - 1)));
    }

    #[test]
    fn counters_are_neither_sockets_nor_pipes() {
        let one = Connection::default();
        for (kind, counter, by_one) in [
            (COUNTER, true, false),
            (COUNTER | ONE_BY_ONE, true, true),
            (pipes::PIPE, false, false),
        ] {
            one.kind.store(kind, Relaxed);
            assert_eq!((one.is_counter(), one.is_one_by_one()), (counter, by_one));
            assert!(one.has_no_bells() && !one.has_records());
        }
        assert!(cookie(u32::MAX) < pipes::cookie(0, 0, 0), "no pipe has such a cookie");
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::Added;
    use crate::sockets::Direction;
    use crate::sync::Ordering::{AcqRel, Acquire, Relaxed};
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64;
    use loom::thread::spawn;

    /// A counter, and the kernel's.
    #[derive(Default)]
    struct Both {
        region: Direction,
        kernel: AtomicU64,
    }

    impl Both {
        fn write(&self, more: u64) {
            let region = &self.region;
            let parked = || region.waiting.parked.load(Acquire) != 0;
            match region.add(more, parked) {
                Added::There => {}
                Added::Asleep(back) => _ = self.kernel.fetch_add(back, AcqRel),
                Added::Moving => self.move_left(),
                Added::Not => _ = self.kernel.fetch_add(more, AcqRel),
            }
        }

        /// One at a time, as by who has the turn; here, who takes it out first.
        fn move_left(&self) {
            let left = self.region.left_count().unwrap_or(0);
            let taken = self.region.tail.fetch_sub(left, AcqRel) & !super::LEFT;
            assert_eq!(taken, left);
            self.kernel.fetch_add(left, AcqRel);
        }

        fn all(&self) -> u64 {
            let region = self.region.left_count().or(self.region.take_count(false));
            region.unwrap_or(0) + self.kernel.load(Acquire)
        }
    }

    #[test]
    fn loom_no_reader_sleeps_on_a_counter_that_has_something() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let both = Arc::new(Both::default());
            let writers = [1, 2].map(|more| {
                let both = both.clone();
                spawn(move || both.write(more))
            });
            let sleeps = both.region.park();
            let read = if sleeps { 0 } else { both.region.take_count(false).unwrap_or(0) };
            writers.into_iter().for_each(|writer| writer.join().expect("no panic"));
            // Who sleeps is woken by the kernel's counter for whatever is not there.
            assert!(!sleeps || both.kernel.load(Relaxed) != 0);
            assert_eq!(read + both.all(), 3);
        });
    }

    #[test]
    fn loom_of_two_readers_and_a_writer_nothing_is_lost_or_read_twice() {
        loom::model(|| {
            let both = Arc::new(Both::default());
            both.write(1);
            let other = both.clone();
            let writer = spawn(move || other.write(2));
            let other = both.clone();
            let reader = spawn(move || other.region.take_count(true).unwrap_or(0));
            let own = both.region.take_count(false).unwrap_or(0);
            writer.join().expect("no panic");
            let others = reader.join().expect("no panic");
            assert_eq!(own + others + both.all(), 3);
        });
    }

    #[test]
    fn loom_what_is_added_while_it_is_left_is_counted_once() {
        loom::model(|| {
            let both = Arc::new(Both::default());
            let other = both.clone();
            let sleeps = both.region.park();
            let writer = spawn(move || {
                // As in `write`, but that the other moves what has been left.
                let parked = || other.region.waiting.parked.load(Acquire) != 0;
                match other.region.add(2, parked) {
                    Added::Asleep(back) => _ = other.kernel.fetch_add(back, AcqRel),
                    Added::Not => _ = other.kernel.fetch_add(2, AcqRel),
                    Added::There | Added::Moving => {}
                }
            });
            both.region.leave_count();
            writer.join().expect("no panic");
            both.move_left();
            assert!(sleeps);
            assert_eq!((both.kernel.load(Relaxed), both.region.left_count()), (2, Some(0)));
        });
    }
}
