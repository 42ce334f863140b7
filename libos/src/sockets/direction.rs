//! The bytes from one side of a connection to the other: what writers and readers tell each other.
//!
//! Who writes what decides which cache line it is on. While bytes go by the ring each piece moves two lines
//! between the cores, that of the tail and that of the bytes:
//!
//! ```text
//!             written                            looked at by the other side
//!  Direction  by writers, once a piece           always: readers wait for the tail
//!  Writing    by writers, around that            never
//!  Reading    by readers, once a piece           when the ring may be full
//!  Waiting    by readers, when they sleep        with each piece
//! ```

use super::copying::Copying;
use super::{LARGE_RING, SMALL_RING, zero, zero64};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// The bytes from one side to the other.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Direction {
    /// Bytes ever put into the ring; of a counter, its count.
    pub tail: AtomicU64,
    /// Bytes ever given to the kernel, or about to be; of records, how many; of a counter, the sum.
    pub kernel_sent: AtomicU64,
    /// Bytes from this one on are in the large ring; of a counter, what [`Direction::moving_onto`] says.
    pub large_from: AtomicU64,
    /// That ring's number and 1; 0 if there is none.
    pub large: AtomicU32,
    /// Bells that are on their way: [`Direction::bells`].
    pub bell: AtomicU32,
    /// Not 0 once nothing goes by the ring any more, since a side has shut it down, or reads or writes in ways
    /// of its own: [`SHUT`](super::SHUT), or [`SOON_SHUT`](super::SOON_SHUT).
    pub shut: AtomicU32,
    /// What writers keep to themselves.
    pub writing: Writing,
    /// What readers write all the time.
    pub reading: Reading,
    /// What readers write now and then.
    pub waiting: Waiting,
}

/// The part of a direction that writers write before and after they publish a piece: a cache line of its own,
/// so that a reader that waits for the tail does not take it away each time.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Writing {
    /// Tid of the thread that is putting bytes into the ring.
    pub writer: AtomicU32,
    /// The core of whoever wrote last.
    pub core: AtomicU32,
    /// Of a pipe, where on its stack the thread that has the turn is.
    pub frame: AtomicU64,
    /// What the head was when a writer last had to look: so much has been taken out at least.
    pub seen_head: AtomicU64,
    /// Bytes given to the kernel that were for a reader that slept, was busy or had not accepted yet, or came
    /// behind such.
    pub asleep: AtomicU64,
    /// Bells ever sent, and bytes that have gone by the kernel after they had been in the ring (of a pipe, how often).
    pub bells: AtomicU32,
    /// How large pieces are copied.
    pub copying: Copying,
}

/// The part of a direction that readers write with each piece: a cache line of its own, which writers do not
/// look at unless the ring may be full.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Reading {
    /// Bytes ever taken out of the ring.
    pub head: AtomicU64,
    /// Tid of the thread that is receiving from the kernel.
    pub reader: AtomicU32,
    /// As of a [`Watcher`](super::Watcher).
    pub patience_ns: AtomicU32,
    /// Bytes of records ever taken out of the ring.
    pub record_bytes: AtomicU64,
}

/// The part that readers write when they wait, or receive from the kernel: a cache line of its own, which
/// writers look at with each piece.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Waiting {
    /// Bytes ever received from the kernel; of records, how many.
    pub kernel_read: AtomicU64,
    /// Where readers wait: number of a [`Watcher`](super::Watcher) and 1, and of the socket there; 0 for nowhere; or
    /// [`MANY`](super::MANY).
    pub watch: AtomicU32,
    /// Threads that sleep on this socket itself.
    pub parked: AtomicU32,
    /// Bytes of records ever received from the kernel.
    pub kernel_bytes: AtomicU64,
}

/// In [`Direction::bell`]: none is sent any more.
const NO_BELLS: u32 = 1 << 31;
/// There: a reader sleeps in its program's own call, which would give it a bell's byte; as many as there are.
const REFUSAL: u32 = 1 << 16;
const REFUSALS: u32 = NO_BELLS - REFUSAL;
/// There: the number of bells.
const BELLS: u32 = REFUSAL - 1;

/// Where the bytes at a position of a ring lie, and how many follow in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// In the large ring.
    pub in_large: bool,
    /// From the ring's start.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

impl Direction {
    /// Bytes that can be taken out now, from which position.
    #[must_use]
    #[inline]
    pub fn filled(&self) -> (u64, usize) {
        let head = self.reading.head.load(Ordering::Acquire);
        let tail = self.tail.load(Ordering::Acquire);
        // Anybody could have written there: never more than a ring. Of a counter, one bit is none.
        (head, (tail.wrapping_sub(head) << 1 >> 1).min(LARGE_RING as u64) as usize)
    }

    /// Is there anything in the ring?
    #[must_use]
    #[inline]
    pub fn has_bytes(&self) -> bool {
        self.filled().1 != 0
    }

    /// Are there, or will there be soon, bytes in the kernel?
    #[must_use]
    #[inline]
    pub fn is_in_kernel(&self) -> bool {
        self.kernel_sent.load(Ordering::Acquire) != self.waiting.kernel_read.load(Ordering::Acquire)
    }

    /// Bytes that can be put in now, from which position.
    #[must_use]
    #[inline]
    pub fn room(&self) -> (u64, usize) {
        self.room_behind(self.reading.head.load(Ordering::Acquire))
    }

    /// As [`Self::room`], if that is enough for `least` bytes; it may be more by now. Readers are not
    /// disturbed while it is.
    #[must_use]
    #[inline]
    pub fn room_for(&self, least: usize) -> (u64, usize) {
        let (tail, room) = self.room_behind(self.writing.seen_head.load(Ordering::Acquire));
        if room >= least {
            return (tail, room);
        }
        let head = self.reading.head.load(Ordering::Acquire);
        self.writing.seen_head.store(head, Ordering::Release);
        self.room_behind(head)
    }

    fn room_behind(&self, head: u64) -> (u64, usize) {
        let tail = self.tail.load(Ordering::Acquire);
        let used = tail.wrapping_sub(head);
        let large_from = self.large_from.load(Ordering::Acquire);
        let has_large = self.large.load(Ordering::Acquire) != 0;
        let (len, used) = if has_large && tail >= large_from {
            (LARGE_RING as u64, used.min(tail - large_from))
        } else {
            (SMALL_RING as u64, used)
        };
        (tail, len.saturating_sub(used) as usize)
    }

    /// Where the bytes at `position` lie; `len` of them are asked for.
    #[must_use]
    #[inline]
    pub fn piece(&self, position: u64, len: usize) -> Piece {
        let large_from = self.large_from.load(Ordering::Acquire);
        let has_large = self.large.load(Ordering::Acquire) != 0;
        let in_large = has_large && position >= large_from;
        let ring = if in_large { LARGE_RING } else { SMALL_RING };
        let offset = position as usize % ring;
        let mut len = len.min(ring - offset);
        if has_large && !in_large {
            len = len.min((large_from - position) as usize);
        }
        Piece { in_large, offset, len }
    }

    /// The bytes up to `tail` are there. True if the one who waits for them may be asleep now.
    #[inline]
    pub fn publish(&self, tail: u64, is_parked: impl FnOnce() -> bool) -> bool {
        self.tail.store(tail, Ordering::Release);
        fence(Ordering::SeqCst);
        is_parked()
    }

    /// Go to sleep on the socket itself, unless there are bytes.
    #[must_use]
    pub fn park(&self) -> bool {
        self.waiting.parked.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let may_sleep = !self.has_bytes();
        if !may_sleep {
            self.unpark();
        }
        may_sleep
    }

    /// Awake again.
    pub fn unpark(&self) {
        // A row that was given to others meanwhile has its count from 0.
        let less = |count: u32| count.checked_sub(1);
        let _ = self.waiting.parked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// The bytes before `position` have been taken, if they were there still.
    #[must_use]
    #[inline]
    pub fn take(&self, head: u64, len: usize) -> bool {
        let next = head + len as u64;
        self.reading.head.compare_exchange(head, next, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Bells that are on their way.
    #[must_use]
    #[inline]
    pub fn bells(&self) -> u32 {
        self.bell.load(Ordering::Acquire) & BELLS
    }

    /// One is about to be sent. False if none may be.
    #[must_use]
    pub fn add_bell(&self) -> bool {
        self.change_bells(|word| (word < BELLS).then_some(word + 1))
    }

    /// So many have been heard, or have not been sent.
    pub fn less_bells(&self, count: u32) {
        self.change_bells(|word| (word & BELLS >= count).then(|| word - count));
    }

    /// None is sent from now on. False if that cannot be, since some are on their way.
    #[must_use]
    pub fn forgo_bells(&self) -> bool {
        self.change_bells(|word| (word & BELLS == 0).then_some(word | NO_BELLS))
    }

    /// None is sent until [`Self::allow_bells`], by the same caller. False if some are on their way.
    #[must_use]
    pub fn refuse_bells(&self) -> bool {
        self.change_bells(|word| {
            (word & BELLS == 0 && word & REFUSALS != REFUSALS).then_some(word + REFUSAL)
        })
    }

    /// The end of a refusal.
    pub fn allow_bells(&self) {
        self.change_bells(|word| (word & REFUSALS != 0).then(|| word - REFUSAL));
    }

    fn change_bells(&self, next: impl Fn(u32) -> Option<u32>) -> bool {
        self.bell.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).is_ok()
    }

    pub(super) fn reset(&self) {
        let (writing, reading, waiting) = (&self.writing, &self.reading, &self.waiting);
        let ours = [&self.tail, &self.kernel_sent, &self.large_from];
        let writers = [&writing.asleep, &writing.seen_head, &writing.frame];
        writers.into_iter().for_each(zero64);
        ours.into_iter().chain([&reading.head, &waiting.kernel_read]).for_each(zero64);
        [&reading.record_bytes, &waiting.kernel_bytes].into_iter().for_each(zero64);
        let ours = [&self.large, &self.bell, &self.shut];
        let words = [&writing.writer, &writing.bells, &writing.core];
        let readers = [&waiting.watch, &waiting.parked, &reading.reader, &reading.patience_ns];
        ours.into_iter().chain(words).chain(readers).for_each(zero);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Direction;

    #[test]
    fn once_bells_are_forgone_none_is_added_and_before_that_all_have_to_be_heard() {
        let one = Direction::default();
        assert!(one.add_bell() && one.add_bell());
        assert!(!one.forgo_bells());
        one.less_bells(2);
        assert!(one.forgo_bells() && one.forgo_bells());
        assert!(!one.add_bell());
        // Who has heard one too many takes nothing away.
        one.less_bells(1);
        assert_eq!((one.bells(), one.add_bell()), (0, false));
        one.reset();
        assert!(one.add_bell());
    }

    #[test]
    fn while_bells_are_refused_none_is_added_and_some_on_their_way_cannot_be() {
        let one = Direction::default();
        assert!(one.refuse_bells() && one.refuse_bells());
        one.allow_bells();
        assert!(!one.add_bell() && one.bells() == 0);
        one.allow_bells();
        // One time too many, as if the row had been given to others meanwhile.
        one.allow_bells();
        assert!(one.add_bell() && !one.refuse_bells());
        one.less_bells(1);
        assert!(one.forgo_bells() && one.refuse_bells());
        one.allow_bells();
        assert!(!one.add_bell());
    }
}

#[cfg(all(test, loom))]
mod models {
    #![expect(unsafe_code, reason = "a byte that loom watches")]

    use super::Direction;
    use crate::sockets::SMALL_RING;
    use crate::sync::Ordering::{AcqRel, Relaxed};
    use loom::sync::Arc;

    #[test]
    fn loom_no_reader_sleeps_while_bytes_come_that_it_is_not_told_of() {
        loom::model(|| {
            let direction = Arc::new(Direction::default());
            let other = direction.clone();
            let writer = loom::thread::spawn(move || {
                other.publish(1, || other.waiting.parked.load(Relaxed) != 0)
            });
            let sleeps = direction.park();
            let told = writer.join().expect("no panic");
            assert!(!sleeps || told);
        });
    }

    #[test]
    fn loom_what_was_put_in_for_a_reader_that_sleeps_is_taken_out_again() {
        loom::model(|| {
            let direction = Arc::new(Direction::default());
            let other = direction.clone();
            // As the writer of a pipe, to whom nobody rings.
            let writer = loom::thread::spawn(move || {
                let asleep = other.publish(1, || other.waiting.parked.load(Relaxed) != 0);
                let (head, len) = other.filled();
                if asleep && len == 1 {
                    other.kernel_sent.fetch_add(1, AcqRel);
                    return other.take(head, len);
                }
                false
            });
            let sleeps = direction.park();
            let taken = !sleeps && {
                let (head, len) = direction.filled();
                len == 1 && direction.take(head, len)
            };
            let is_handed_over = writer.join().expect("no panic");
            // In a ring that nobody sleeps for, or to the kernel, or read: one of them.
            assert!(!sleeps || is_handed_over);
            assert!(!(taken && is_handed_over));
            assert_eq!(direction.has_bytes(), !taken && !is_handed_over);
        });
    }

    #[test]
    fn loom_who_sleeps_in_its_own_call_gets_no_bell_and_is_given_what_is_put_in() {
        loom::model(|| {
            let direction = Arc::new(Direction::default());
            let other = direction.clone();
            // What the kernel has at the end: a bell, or bytes.
            let writer = loom::thread::spawn(move || {
                let asleep = other.publish(1, || other.waiting.parked.load(Relaxed) != 0);
                if !asleep {
                    return (false, false);
                }
                if other.add_bell() {
                    return (true, false);
                }
                let (head, len) = other.filled();
                (false, len == 1 && other.take(head, len))
            });
            let sleeps = direction.park();
            let in_own_call = sleeps && direction.refuse_bells();
            let (has_bell, has_bytes) = writer.join().expect("no panic");
            if in_own_call {
                assert!(!has_bell && has_bytes);
            } else if sleeps {
                assert!(has_bell);
            }
        });
    }

    #[test]
    fn loom_what_is_in_the_ring_is_seen_before_what_went_to_the_kernel_later() {
        loom::model(|| {
            let direction = Arc::new(Direction::default());
            let other = direction.clone();
            let writer = loom::thread::spawn(move || {
                other.publish(1, || false);
                other.kernel_sent.fetch_add(1, AcqRel);
            });
            if direction.is_in_kernel() {
                assert!(direction.has_bytes());
            }
            writer.join().expect("no panic");
        });
    }

    #[test]
    fn loom_of_two_readers_one_takes_the_bytes() {
        loom::model(|| {
            let direction = Arc::new(Direction::default());
            direction.publish(1, || false);
            let other = direction.clone();
            let take = |direction: &Direction| {
                let (head, len) = direction.filled();
                len == 1 && direction.take(head, len)
            };
            let second = loom::thread::spawn(move || take(&other));
            let first = take(&direction);
            assert!(first != second.join().expect("no panic"));
        });
    }

    #[test]
    fn loom_no_byte_is_overwritten_before_it_has_been_copied() {
        loom::model(|| {
            let direction = Arc::new(Direction::default());
            // One byte of the ring, which is full of it.
            let byte = Arc::new(loom::cell::UnsafeCell::new(1));
            direction.publish(SMALL_RING as u64, || false);
            let (other, written) = (direction.clone(), byte.clone());
            let writer = loom::thread::spawn(move || {
                // By what it remembers there is no room. Another writer, or the same one again, goes by what
                // this one sees.
                if other.room_for(1).1 > 0 && other.room_for(1).1 > 0 {
                    // SAFETY: loom fails if it is not.
                    written.with_mut(|byte| unsafe { *byte = 2 });
                }
            });
            let (head, len) = direction.filled();
            // SAFETY: as above.
            let read = byte.with(|byte| unsafe { *byte });
            assert_eq!(read, 1);
            assert!(direction.take(head, len));
            writer.join().expect("no panic");
        });
    }
}
