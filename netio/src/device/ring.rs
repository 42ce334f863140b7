//! A pair of devices over shared memory, so that two processes of a sandbox speak IP to each other.
//!
//! ```text
//!    0  tail  ┐ frames of the first,     where the writer is; the writer's
//!  128  head  ┘ for the second           where the reader is; the reader's
//!  256  tail  ┐ frames of the second
//!  384  head  ┘
//!  512  sleep   of the first   0: awake   1: sleeps until there is a frame   2: … or room
//!  640  sleep   of the second
//! 1024  frames of the first, as many octets as the largest power of two that fits
//!       frames of the second
//! ```
//!
//! A frame is its length in eight octets, then itself, then up to seven of nothing; positions only ever
//! grow, and are masked. Zeros are an empty pair. Nothing that the peer writes is believed: a position
//! that cannot be empties the ring, or counts as a full one, a length that cannot be empties it as well,
//! and each is read once. So a peer can harm what it sends and what it is sent, and nothing else.
#![expect(unsafe_code, reason = "reads and writes memory that another process has too")]

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use super::{Checksums, Counters, Device, Medium, Waiter};

/// The MTU, unless the memory is too small for it: less than the longest IP packet by the head of an IPv6
/// one, whose length field does not count it.
pub const MTU: usize = 65_500;
/// Octets before the frames; each word is on lines of its own, with the one that is fetched beside it.
const HEADER_LEN: usize = 1024;
const WAY_LEN: usize = 256;
const HEAD_AT: usize = 128;
const SLEEP_AT: usize = 512;
const SLEEP_LEN: usize = 128;
/// Octets of a frame's length.
const LENGTH_LEN: u64 = 8;
/// Smallest packet size that IPv6 can do with.
const MTU_MIN: usize = 1280;

const AWAKE: u32 = 0;
const FOR_FRAMES: u32 = 1;
const FOR_ROOM: u32 = 2;

/// Which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// One.
    First,
    /// The other.
    Second,
}

/// The memory is too short, or not aligned to 64 octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfit {
    /// How long it has to be at least.
    pub len_min: usize,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "memory for a ring must be aligned to 64 octets, and {} long at least",
            self.len_min
        )
    }
}

impl std::error::Error for Unfit {}

/// One end of the pair.
#[derive(Debug)]
pub struct Ring {
    sending: Way,
    receiving: Way,
    own_sleep: Sleep,
    peer_sleep: Sleep,
    waiter: Arc<RingWaiter>,
    mtu: usize,
    wants_room: bool,
    /// Something was put or taken that the peer may wait for.
    is_changed: bool,
    counters: Counters,
}

/// One direction.
#[derive(Debug)]
struct Way {
    tail: *const AtomicU64,
    head: *const AtomicU64,
    frames: *mut u8,
    /// A power of two.
    capacity: u64,
    /// The position that is ours.
    own: u64,
    /// What the peer's was when it was last looked at, if that made sense.
    seen: u64,
}

/// A word that says whether its side sleeps.
#[derive(Debug, Clone, Copy)]
struct Sleep(*const AtomicU32);

// SAFETY: points to memory that outlives it and that any thread may use (see `Ring::new`).
unsafe impl Send for Way {}
// SAFETY: as above.
unsafe impl Send for Sleep {}
// SAFETY: as above; it is used through atomics.
unsafe impl Sync for Sleep {}

impl Ring {
    /// Octets of memory for two rings of `capacity` each, a power of two.
    #[must_use]
    pub const fn memory_len(capacity: usize) -> usize {
        HEADER_LEN + 2 * capacity
    }

    /// This side of the pair in the `len` octets at `memory`.
    ///
    /// # Errors
    /// The memory is too short or not aligned.
    ///
    /// # Safety
    /// The memory must stay readable and writable for as long as the device or one of its waiters lives,
    /// and hold zeros or such a pair. Each side is at one place at a time.
    pub unsafe fn new(memory: *mut u8, len: usize, side: Side) -> Result<Self, Unfit> {
        let unfit = Unfit { len_min: Self::memory_len((2 * MTU_MIN).next_power_of_two()) };
        if len < unfit.len_min || memory.is_null() || !memory.addr().is_multiple_of(64) {
            return Err(unfit);
        }
        let each = (len - HEADER_LEN) / 2;
        let capacity = 1usize << each.ilog2();
        let way = |index: usize| Way {
            tail: memory.wrapping_add(index * WAY_LEN).cast(),
            head: memory.wrapping_add(index * WAY_LEN + HEAD_AT).cast(),
            frames: memory.wrapping_add(HEADER_LEN + index * capacity),
            capacity: capacity as u64,
            own: 0,
            seen: 0,
        };
        let sleep = |index: usize| Sleep(memory.wrapping_add(SLEEP_AT + index * SLEEP_LEN).cast());
        let own = usize::from(side == Side::Second);
        let (mut sending, mut receiving) = (way(own), way(1 - own));
        sending.own = sending.tail().load(Ordering::Relaxed);
        sending.seen = sending.own;
        receiving.own = receiving.head().load(Ordering::Relaxed);
        receiving.seen = receiving.own;
        let waiter = RingWaiter { sleep: sleep(own), is_rung: AtomicBool::new(false) };
        Ok(Self {
            sending,
            receiving,
            own_sleep: sleep(own),
            peer_sleep: sleep(1 - own),
            waiter: Arc::new(waiter),
            mtu: MTU.min(capacity / 2),
            wants_room: false,
            is_changed: false,
            counters: Counters::default(),
        })
    }

    /// Whether a frame can be there: looks at the peer's position again.
    fn has_frame(&mut self) -> bool {
        let way = &mut self.receiving;
        if way.seen != way.own {
            return true;
        }
        way.seen = way.tail().load(Ordering::Acquire);
        if way.seen.wrapping_sub(way.own) > way.capacity {
            self.give_up();
        }
        self.receiving.seen != self.receiving.own
    }

    /// What lies there makes no sense: go on with what comes next.
    fn give_up(&mut self) {
        self.counters.received.dropped.malformed += 1;
        let way = &mut self.receiving;
        way.own = way.tail().load(Ordering::Acquire);
        way.seen = way.own;
        way.head().store(way.own, Ordering::Release);
        self.is_changed = true;
    }

    /// Octets that can be written.
    fn room(&mut self, wanted: u64) -> u64 {
        let way = &mut self.sending;
        let of = |way: &Way| way.capacity.saturating_sub(way.own.wrapping_sub(way.seen));
        if of(way) < wanted {
            way.seen = way.head().load(Ordering::Acquire);
        }
        of(way)
    }
}

/// Octets that a frame takes up.
const fn taken(len: u64) -> u64 {
    LENGTH_LEN + len.next_multiple_of(LENGTH_LEN)
}

impl Way {
    const fn tail(&self) -> &AtomicU64 {
        // SAFETY: aligned, and readable and writable for as long as we live (see `Ring::new`).
        unsafe { &*self.tail }
    }

    const fn head(&self) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { &*self.head }
    }

    /// The word that a frame at `position` begins with; positions are multiples of eight, whatever the
    /// peer says, since only ours are used.
    fn length(&self, position: u64) -> &AtomicU64 {
        let at = (position & (self.capacity - 1) & !(LENGTH_LEN - 1)) as usize;
        // SAFETY: aligned, and inside: `at` is at most the capacity less eight.
        unsafe { &*self.frames.wrapping_add(at).cast() }
    }

    /// How many of `len` octets at `position` lie before the ring's end.
    fn before_end(&self, position: u64, len: usize) -> (usize, usize) {
        let at = (position & (self.capacity - 1)) as usize;
        (at, len.min(self.capacity as usize - at))
    }

    fn copy_out(&self, position: u64, into: &mut [u8]) {
        let (at, first) = self.before_end(position, into.len());
        let (one, two) = into.split_at_mut(first);
        // SAFETY: `at` and `first` octets from there are inside. A peer that writes meanwhile changes
        // which octets are copied.
        unsafe { self.frames.wrapping_add(at).copy_to_nonoverlapping(one.as_mut_ptr(), one.len()) };
        // SAFETY: no more than the capacity is copied in all, so that the rest is inside.
        unsafe { self.frames.copy_to_nonoverlapping(two.as_mut_ptr(), two.len()) };
    }

    fn copy_in(&self, position: u64, from: &[u8]) {
        let (at, first) = self.before_end(position, from.len());
        let (one, two) = from.split_at(first);
        // SAFETY: as in `copy_out`.
        unsafe { self.frames.wrapping_add(at).copy_from_nonoverlapping(one.as_ptr(), one.len()) };
        // SAFETY: as in `copy_out`.
        unsafe { self.frames.copy_from_nonoverlapping(two.as_ptr(), two.len()) };
    }
}

impl Device for Ring {
    fn medium(&self) -> Medium {
        Medium::Ip
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn checksums(&self) -> Checksums {
        Checksums::None
    }

    fn receive(&mut self, _now: Duration, into: &mut [u8]) -> Option<usize> {
        while self.has_frame() {
            let way = &self.receiving;
            let len = way.length(way.own).load(Ordering::Relaxed);
            let there = way.seen.wrapping_sub(way.own);
            if len > way.capacity || taken(len) > there {
                self.give_up();
                continue;
            }
            let to = into.get_mut(..len as usize);
            let tally = &mut self.counters.received;
            match to {
                Some(to) => {
                    way.copy_out(way.own.wrapping_add(LENGTH_LEN), to);
                    tally.add(to.len());
                }
                None => tally.dropped.too_long += 1,
            }
            let (is_whole, way) = (len as usize <= into.len(), &mut self.receiving);
            way.own = way.own.wrapping_add(taken(len));
            way.head().store(way.own, Ordering::Release);
            self.is_changed = true;
            if is_whole {
                return Some(len as usize);
            }
        }
        None
    }

    fn has_room(&mut self) -> bool {
        let wanted = taken(self.mtu as u64);
        self.wants_room = self.room(wanted) < wanted;
        !self.wants_room
    }

    fn send(&mut self, _now: Duration, frame: &[u8]) {
        let len = frame.len() as u64;
        if frame.len() > self.mtu {
            self.counters.sent.dropped.too_long += 1;
            return;
        }
        if self.room(taken(len)) < taken(len) {
            self.counters.sent.dropped.no_room += 1;
            return;
        }
        let way = &mut self.sending;
        way.length(way.own).store(len, Ordering::Relaxed);
        way.copy_in(way.own.wrapping_add(LENGTH_LEN), frame);
        way.own = way.own.wrapping_add(taken(len));
        way.tail().store(way.own, Ordering::Release);
        self.is_changed = true;
        self.counters.sent.add(frame.len());
    }

    fn flush(&mut self) {
        if std::mem::take(&mut self.is_changed) {
            // The peer says that it sleeps and looks once more; we publish and look whether it sleeps.
            fence(Ordering::SeqCst);
            if self.peer_sleep.word().load(Ordering::Relaxed) != AWAKE {
                self.peer_sleep.end();
            }
        }
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn arm(&mut self) -> io::Result<bool> {
        let reason = if self.wants_room { FOR_ROOM } else { FOR_FRAMES };
        self.own_sleep.word().store(reason, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let may_sleep = !self.has_frame() && (!self.wants_room || !self.has_room());
        if !may_sleep {
            self.own_sleep.word().store(AWAKE, Ordering::Relaxed);
        }
        Ok(may_sleep)
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        Arc::<RingWaiter>::clone(&self.waiter)
    }
}

impl Sleep {
    const fn word(&self) -> &AtomicU32 {
        // SAFETY: aligned, and readable and writable for as long as we live (see `Ring::new`).
        unsafe { &*self.0 }
    }

    /// End it.
    fn end(self) {
        self.word().store(AWAKE, Ordering::SeqCst);
        // SAFETY: wakes whoever waits for this word; not a private one, since processes share it.
        unsafe { libc::syscall(libc::SYS_futex, self.0, libc::FUTEX_WAKE, i32::MAX) };
    }
}

/// Waits at this side's word.
#[derive(Debug)]
struct RingWaiter {
    sleep: Sleep,
    is_rung: AtomicBool,
}

impl Waiter for RingWaiter {
    fn wait(&self, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.map(|limit| libc::timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let reason = self.sleep.word().load(Ordering::SeqCst);
        if !self.is_rung.swap(false, Ordering::SeqCst) && reason != AWAKE {
            let word = self.sleep.0;
            // SAFETY: a word and a time that live, or none. It may return for any reason.
            unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, reason, limit) };
        }
        self.sleep.word().store(AWAKE, Ordering::Relaxed);
        Ok(())
    }

    fn wake(&self) {
        self.is_rung.store(true, Ordering::SeqCst);
        self.sleep.end();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Memory of words, so that it is aligned.
    #[derive(Debug)]
    pub(crate) struct Shared(Vec<[u64; 8]>);

    impl Shared {
        pub(crate) fn new(capacity: usize) -> Self {
            Self(vec![[0; 8]; Ring::memory_len(capacity) / 64 + 1])
        }

        pub(crate) fn sides(&mut self) -> [Ring; 2] {
            let start = self.0.as_mut_ptr().cast::<u8>();
            let pad = start.align_offset(64);
            let (start, len) = (start.wrapping_add(pad), self.0.len() * 64 - pad);
            [Side::First, Side::Second].map(|side| {
                // SAFETY: the tests keep the memory for longer than the devices.
                unsafe { Ring::new(start, len, side) }.expect("fits")
            })
        }

        fn word(&mut self, at: usize) -> &mut u64 {
            let pad = self.0.as_ptr().cast::<u8>().align_offset(64);
            &mut self.0.as_flattened_mut()[(pad + at) / 8]
        }
    }

    #[test]
    fn memory_that_does_not_fit_is_refused() {
        let mut memory = Shared::new(8192);
        let start = memory.0.as_mut_ptr().cast::<u8>();
        // SAFETY: refused before it is looked at.
        let ring = unsafe { Ring::new(start, 4096, Side::First) };
        assert_eq!(ring.err(), Some(Unfit { len_min: Ring::memory_len(4096) }));
    }

    #[test]
    fn a_full_ring_says_so_and_has_room_again() {
        let mut memory = Shared::new(1 << 14);
        let [mut one, mut other] = memory.sides();
        let frame = vec![7; one.mtu()];
        let mut into = vec![0; one.mtu()];
        for _ in 0..100 {
            while one.has_room() {
                one.send(Duration::ZERO, &frame);
            }
            one.send(Duration::ZERO, &frame);
            while let Some(len) = other.receive(Duration::ZERO, &mut into) {
                assert_eq!(into[..len], frame);
            }
        }
        assert_eq!(one.counters().sent.dropped.no_room, 100);
        assert_eq!(one.counters().sent.frames, other.counters().received.frames);
    }

    #[test]
    fn sleepers_are_woken_for_frames_and_for_room() {
        let mut memory = Shared::new(1 << 14);
        let [mut one, mut other] = memory.sides();
        const ROUNDS: usize = 20_000;
        let far = Some(Duration::from_secs(20));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    while !one.has_room() {
                        one.wait(far).expect("waits");
                    }
                    one.send(Duration::ZERO, &[round as u8; 4000]);
                    one.flush();
                }
            });
            let mut into = [0; 4096];
            for round in 0..ROUNDS {
                while other.receive(Duration::ZERO, &mut into) != Some(4000) {
                    other.flush();
                    other.wait(far).expect("waits");
                }
                assert_eq!(into[..4000], [round as u8; 4000]);
            }
            other.flush();
        });
    }

    proptest! {
        #[test]
        fn whatever_a_peer_writes_is_bounded(
            words in prop::collection::vec((0..2100usize, any::<u64>(), 0..4u8), 1..60),
        ) {
            let mut memory = Shared::new(8192);
            let [mut one, mut other] = memory.sides();
            let (mut sends, mut into) = (0, vec![0; 9000]);
            for (at, value, what) in words {
                let at = [at * 8, 0, 128, 1024][usize::from(what)];
                *memory.word(at) = if value % 3 == 0 { value } else { value % 20_000 };
                one.send(Duration::ZERO, &[1; 700]);
                sends += 1;
                prop_assert_eq!(one.counters().sent.total(), sends);
                // Ends: every round takes up octets, or gives the ring up.
                for _ in 0..3000 {
                    if other.receive(Duration::ZERO, &mut into).is_none() {
                        break;
                    }
                }
                one.flush();
                other.arm().expect("no fault");
            }
        }
    }
}
