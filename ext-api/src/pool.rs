//! The buffers that packets lie in, and who has which.
//!
//! They lie in the data zone, so that a packet is received once and read in place by any process. One
//! process *owns* the pool: the worker that serves the network. A buffer that it hands on belongs to
//! whoever takes it, until that process is through with it or dead.
//!
//! ```text
//!            hand               take                finish
//!   OWNED ────────► HANDED ──────────────► HELD ──────────────► DONE ──► the owner's list of them
//!     ▲               │ nobody comes         │ the holder dies   │ it dies before it is on the list
//!     └───────────────┴──────────────────────┴───────────────────┘
//! ```
//!
//! Each arrow is one compare-and-swap of the buffer's one word `state`, which names the holder and the
//! *turn*, a number that the owner never uses twice. So two never hold one buffer, a name that was made
//! for an earlier turn is refused, and whatever a killed process held is found by looking at the words.
//! Others can write the lengths that are kept here: the owner bounds each where it uses it.

mod seat;

pub use seat::{Ask, Item, Piece, Seat};

use crate::abi::NetAddress;
use crate::limits::{
    BUFFER_LEN, BUFFERS_MAX, HUGE_PAGE_LEN, NARROW_BUFFERS, PORTS_MAX, SEATS_MAX, WIDE_BUFFERS,
    WIDE_LEN,
};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Bits of a name that are the buffer's number.
const INDEX_BITS: u32 = 11;
/// Bits of a holder: ten of its row, the rest of the row's generation.
const HOLDER_BITS: u32 = 28;
const ROW_BITS: u32 = 10;
const PLACE_BITS: u32 = 2;
/// Turns from here on begin anew.
pub const TURN_MASK: u64 = (1 << (64 - HOLDER_BITS - PLACE_BITS)) - 1;

/// Where a buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// With the owner of the pool.
    Owned,
    /// On its way to whoever takes it.
    Handed,
    /// With this process.
    Held(Holder),
    /// This process is through with it.
    Done(Holder),
}

/// A process, as far as a buffer's word has room for its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder(u32);

impl Holder {
    /// From what names a process in `libos.post`.
    #[must_use]
    pub const fn of_peer(peer: u64) -> Self {
        let row = peer as u32 & ((1 << ROW_BITS) - 1);
        Self((((peer >> 32) as u32) << ROW_BITS | row) & ((1 << HOLDER_BITS) - 1))
    }

    /// Its row of the process table.
    #[must_use]
    pub const fn row(self) -> usize {
        (self.0 & ((1 << ROW_BITS) - 1)) as usize
    }

    /// Is it the one in that row while the row's generation is `generation`?
    #[must_use]
    pub const fn is_of(self, generation: u32) -> bool {
        self.0 >> ROW_BITS == generation & ((1 << (HOLDER_BITS - ROW_BITS)) - 1)
    }
}

/// A buffer's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Where it is.
    pub place: Place,
    /// Since which turn.
    pub turn: u64,
}

impl State {
    const fn word(self) -> u64 {
        let (place, holder) = match self.place {
            Place::Owned => (0, 0),
            Place::Handed => (1, 0),
            Place::Held(holder) => (2, holder.0),
            Place::Done(holder) => (3, holder.0),
        };
        self.turn << (HOLDER_BITS + PLACE_BITS) | (holder as u64) << PLACE_BITS | place
    }

    const fn from_word(word: u64) -> Self {
        let holder = Holder((word >> PLACE_BITS) as u32 & ((1 << HOLDER_BITS) - 1));
        let place = match word & ((1 << PLACE_BITS) - 1) {
            0 => Place::Owned,
            1 => Place::Handed,
            2 => Place::Held(holder),
            _ => Place::Done(holder),
        };
        Self { place, turn: word >> (HOLDER_BITS + PLACE_BITS) }
    }
}

/// What names a packet that is handed on: a buffer and its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// The buffer.
    pub index: usize,
    /// Its turn.
    pub turn: u64,
}

impl Name {
    /// As a number, to be handed on.
    #[must_use]
    pub const fn to_raw(self) -> u64 {
        self.turn << INDEX_BITS | self.index as u64
    }

    /// From [`Name::to_raw`].
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        let index = raw as usize & ((1 << INDEX_BITS) - 1);
        Self { index, turn: raw >> INDEX_BITS & TURN_MASK }
    }
}

/// What a process that held a buffer says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Bytes of the packet that it is through with.
    pub used: u16,
    /// Bytes of the answer.
    pub answer: u32,
    /// Where the answer lies, if not behind the packet: a block of the extension's heap.
    pub spill: u64,
    /// [`Outcome::CLOSE`], [`Outcome::DROP`].
    pub flags: u16,
}

/// In place of an upcall: the process itself holds it, for as long as it lives.
pub const BY_PROCESS: u64 = 1 << 63;

impl Outcome {
    /// The connection is to be closed when the answer is sent.
    pub const CLOSE: u16 = 1;
    /// There is no answer.
    pub const DROP: u16 = 2;
    /// There is an answer, though it be empty: a datagram of no bytes.
    pub const REPLY: u16 = 4;
}

/// One buffer's words; its bytes lie elsewhere.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Buffer {
    state: AtomicU64,
    /// The upcall that holds it; 0 if that has not been said yet.
    upcall: AtomicU64,
    next: AtomicU32,
    /// Start and length, 16 bits each.
    extent: AtomicU32,
    /// Bytes used and flags, 16 bits each.
    used: AtomicU32,
    answer: AtomicU32,
    spill: AtomicU64,
    from: [AtomicU64; 3],
}

impl Buffer {
    /// Where it is.
    #[must_use]
    pub fn state(&self) -> State {
        State::from_word(self.state.load(Ordering::Acquire))
    }

    fn go(&self, seen: State, place: Place) -> bool {
        let new = State { place, ..seen }.word();
        let order = (Ordering::AcqRel, Ordering::Relaxed);
        self.state.compare_exchange(seen.word(), new, order.0, order.1).is_ok()
    }

    /// The owner hands `len` bytes from `start` on to whoever takes them.
    pub fn hand(&self, turn: u64, [start, len]: [u16; 2], from: NetAddress) {
        self.extent.store(u32::from(start) << 16 | u32::from(len), Ordering::Relaxed);
        self.upcall.store(0, Ordering::Relaxed);
        self.from
            .iter()
            .zip(words_of(from))
            .for_each(|(to, word)| to.store(word, Ordering::Relaxed));
        let state = State { place: Place::Handed, turn: turn & TURN_MASK };
        self.state.store(state.word(), Ordering::Release);
    }

    /// Take it for an upcall of the process `holder`; false if somebody else has, or it was of another
    /// turn.
    #[must_use]
    pub fn take(&self, turn: u64, holder: Holder, upcall: u64) -> bool {
        let taken = self.go(State { place: Place::Handed, turn }, Place::Held(holder));
        if taken {
            self.upcall.store(upcall, Ordering::Release);
        }
        taken
    }

    /// The upcall that holds it; 0 if that has not been said yet.
    #[must_use]
    pub fn upcall(&self) -> u64 {
        self.upcall.load(Ordering::Acquire)
    }

    /// Be through with it; false if it has been taken back meanwhile. Then comes [`Done::push`].
    #[must_use]
    pub fn finish(&self, turn: u64, holder: Holder, outcome: Outcome) -> bool {
        let used = u32::from(outcome.used) << 16 | u32::from(outcome.flags);
        self.used.store(used, Ordering::Relaxed);
        self.answer.store(outcome.answer, Ordering::Relaxed);
        self.spill.store(outcome.spill, Ordering::Relaxed);
        self.go(State { place: Place::Held(holder), turn }, Place::Done(holder))
    }

    /// The owner has it again; false if it is no longer as it was `seen`.
    #[must_use]
    pub fn take_back(&self, seen: State) -> bool {
        self.go(seen, Place::Owned)
    }

    /// What whoever held it said. Others can write this: bound it.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let used = self.used.load(Ordering::Relaxed);
        Outcome {
            used: (used >> 16) as u16,
            flags: used as u16,
            answer: self.answer.load(Ordering::Relaxed),
            spill: self.spill.load(Ordering::Relaxed),
        }
    }

    /// Where its packet begins, and how long it is: within the buffer, whatever is written there.
    #[must_use]
    pub fn extent(&self) -> [usize; 2] {
        let extent = self.extent.load(Ordering::Relaxed) as usize;
        let start = (extent >> 16).min(BUFFER_LEN);
        [start, (extent & 0xffff).min(BUFFER_LEN - start)]
    }

    /// Who has sent its packet.
    #[must_use]
    pub fn from(&self) -> NetAddress {
        let [head, high, low] =
            [0, 1, 2].map(|index: usize| self.from[index].load(Ordering::Relaxed));
        let mut ip = [0; 16];
        ip[..8].copy_from_slice(&high.to_ne_bytes());
        ip[8..].copy_from_slice(&low.to_ne_bytes());
        let (version, port) = (head as u16, (head >> 16) as u16);
        NetAddress { version, port, scope: (head >> 32) as u32, ip }
    }
}

fn words_of(address: NetAddress) -> [u64; 3] {
    let half = |at: usize| u64::from_ne_bytes(core::array::from_fn(|byte| address.ip[at + byte]));
    let head = u64::from(address.version) | u64::from(address.port) << 16;
    [head | u64::from(address.scope) << 32, half(0), half(8)]
}

/// The list of buffers that their holders are through with, and the owner that sleeps until there are
/// any.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Done {
    /// Number of the one put in last, and 1; 0 if there is none.
    top: AtomicU32,
    asleep: AtomicU32,
    /// What the owner sleeps on.
    pub word: AtomicU32,
}

impl Done {
    /// Put in buffer `index` of `buffers`. True: wake the owner, which sleeps on `word`.
    #[must_use]
    pub fn push(&self, buffers: &[Buffer], index: usize) -> bool {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            buffers[index].next.store(top, Ordering::Relaxed);
            let own = index as u32 + 1;
            match self.top.compare_exchange(top, own, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(seen) => top = seen,
            }
        }
        self.ring()
    }

    /// Something is there for the owner. True: wake it.
    #[must_use]
    pub fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        let wakes =
            self.asleep.load(Ordering::Relaxed) != 0 && self.asleep.swap(0, Ordering::AcqRel) != 0;
        if wakes {
            self.word.fetch_add(1, Ordering::Release);
        }
        wakes
    }

    /// Take out all: their numbers, the latest first. What is no buffer's number ends the list.
    pub fn take_all(&self, buffers: &[Buffer], mut each: impl FnMut(usize)) {
        if self.top.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut next = self.top.swap(0, Ordering::AcqRel);
        for _ in 0..buffers.len() {
            let Some(index) = (next as usize).checked_sub(1) else { return };
            let Some(buffer) = buffers.get(index) else { return };
            next = buffer.next.load(Ordering::Relaxed);
            each(index);
        }
    }

    /// The owner is about to sleep: what `word` must be still when it does. None: there are some, or
    /// something else is there.
    #[must_use]
    pub fn lie_down(&self, is_else: impl Fn() -> bool) -> Option<u32> {
        let seen = self.word.load(Ordering::Acquire);
        self.asleep.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.top.load(Ordering::Relaxed) != 0 || is_else() {
            self.get_up();
            return None;
        }
        Some(seen)
    }

    /// It is awake.
    pub fn get_up(&self) {
        self.asleep.store(0, Ordering::Relaxed);
    }

    /// Is there anything in it?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.top.load(Ordering::Relaxed) == 0
    }
}

/// What has come to a port, and what became of it. Written by the owner alone.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Tally {
    /// Packets, or connections.
    pub received: AtomicU64,
    /// Bytes of theirs.
    pub bytes_in: AtomicU64,
    /// Upcalls of the handler.
    pub upcalls: AtomicU64,
    /// Answers that were sent.
    pub replied: AtomicU64,
    /// Bytes of theirs.
    pub bytes_out: AtomicU64,
    /// Packets, or pieces of connections, that were sent on.
    pub forwarded: AtomicU64,
    /// Those that another process was given.
    pub handed: AtomicU64,
    /// Dropped by the handler, or passed and nobody else's.
    pub dropped: AtomicU64,
    /// The handler failed.
    pub failed: AtomicU64,
    /// Too long for a buffer.
    pub too_long: AtomicU64,
    /// The process that held one ended, or nobody took it.
    pub lost: AtomicU64,
    /// What could not be sent.
    pub unsent: AtomicU64,
    /// Connections that are open now.
    pub open: AtomicU64,
    /// Buffers that are with others, or wait to be sent.
    pub buffers: AtomicU64,
    /// How often receiving paused for want of buffers.
    pub paused: AtomicU64,
    /// Bytes that were copied to stand beside those that came next.
    pub joined: AtomicU64,
}

impl Tally {
    /// What is counted, by name.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, &AtomicU64); 16] {
        [
            ("received", &self.received),
            ("bytes_in", &self.bytes_in),
            ("upcalls", &self.upcalls),
            ("replied", &self.replied),
            ("bytes_out", &self.bytes_out),
            ("forwarded", &self.forwarded),
            ("handed", &self.handed),
            ("dropped", &self.dropped),
            ("failed", &self.failed),
            ("too_long", &self.too_long),
            ("lost", &self.lost),
            ("unsent", &self.unsent),
            ("open", &self.open),
            ("buffers", &self.buffers),
            ("paused", &self.paused),
            ("joined", &self.joined),
        ]
    }

    /// Begin anew.
    pub fn reset(&self) {
        self.counts().iter().for_each(|(_, count)| count.store(0, Ordering::Relaxed));
    }
}

/// The front of the pool. All zeros is a pool whose buffers are all owned.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Pool {
    /// What its holders are through with.
    pub done: Done,
    /// What each port has seen.
    pub tallies: [Tally; PORTS_MAX],
    /// Processes that serve ports themselves.
    pub seats: [Seat; SEATS_MAX],
    /// Who has which buffer.
    pub buffers: [Buffer; BUFFERS_MAX],
}

/// Where the buffers' bytes begin, behind the front.
pub const BYTES_OFFSET: usize = 2 << 20;
/// From one buffer to the next. Five lines more than a buffer: were they a power of two apart, their first
/// lines, which every packet touches, would all compete for the same few places in the cache.
const STRIDE: usize = BUFFER_LEN + 5 * 64;
/// And from one wide one to the next.
const WIDE_STRIDE: usize = WIDE_LEN + 5 * 64;
/// Everything.
pub const POOL_LEN: usize = (BYTES_OFFSET + NARROW_BUFFERS * STRIDE + WIDE_BUFFERS * WIDE_STRIDE)
    .next_multiple_of(HUGE_PAGE_LEN);

#[cfg(not(loom))]
const _: () = assert!(size_of::<Pool>() <= BYTES_OFFSET && size_of::<Buffer>() == 64);
const _: () = assert!(BUFFERS_MAX <= 1 << INDEX_BITS && BUFFER_LEN <= 1 << 15);

/// Where a buffer's bytes are in the pool at `pool`.
#[must_use]
pub const fn bytes_of(pool: usize, index: usize) -> usize {
    let wide = index.saturating_sub(NARROW_BUFFERS);
    pool + BYTES_OFFSET + (index - wide) * STRIDE + wide * WIDE_STRIDE
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Buffer, Done, Holder, Name, NetAddress, Outcome, Place, State, TURN_MASK};

    const WHO: Holder = Holder::of_peer(7 << 32 | 3);

    #[test]
    fn names_and_states_are_what_they_were_made_of() {
        for (turn, index) in [(0, 0), (1, 1023), (TURN_MASK, 5)] {
            let name = Name { index, turn };
            assert_eq!(Name::from_raw(name.to_raw()), name);
            for place in [Place::Owned, Place::Handed, Place::Held(WHO), Place::Done(WHO)] {
                let state = State { place, turn };
                assert_eq!(State::from_word(state.word()), state);
            }
        }
        assert_eq!(WHO.row(), 3);
        assert!(WHO.is_of(7) && !WHO.is_of(8));
    }

    #[test]
    fn one_turn_is_taken_once_and_never_again() {
        let (buffer, address) = (Buffer::default(), NetAddress { port: 9, ..Default::default() });
        buffer.hand(4, [64, 10], address);
        assert!(!buffer.take(3, WHO, 1), "an earlier turn");
        assert!(buffer.take(4, WHO, 77));
        assert!(!buffer.take(4, WHO, 1), "held already");
        assert_eq!((buffer.extent(), buffer.from(), buffer.upcall()), ([64, 10], address, 77));
        let outcome = Outcome { used: 10, answer: 3, ..Default::default() };
        assert!(!buffer.finish(4, Holder::of_peer(8 << 32 | 3), outcome), "of another's life");
        assert!(buffer.finish(4, WHO, outcome));
        assert!(!buffer.finish(4, WHO, outcome));
        let seen = buffer.state();
        assert_eq!(buffer.outcome(), outcome);
        assert!(buffer.take_back(seen) && !buffer.take_back(seen));
    }

    #[test]
    fn what_is_done_comes_out_once() {
        let buffers: Vec<Buffer> = (0..4).map(|_| Buffer::default()).collect();
        let (done, mut seen) = (Done::default(), Vec::new());
        for index in [2, 0, 3] {
            assert!(!done.push(&buffers, index));
        }
        done.take_all(&buffers, |index| seen.push(index));
        assert_eq!(seen, [3, 0, 2]);
        done.take_all(&buffers, |_| panic!("it was empty"));
        let word = done.lie_down(|| false);
        assert_eq!(word, Some(0));
        assert!(done.push(&buffers, 1), "the owner sleeps");
        assert!(!done.push(&buffers, 2), "it was woken already");
        assert_eq!(done.lie_down(|| false), None);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::{Buffer, Done, Holder, NetAddress, Outcome, Place};
    use crate::sync::Ordering::Acquire;
    use loom::sync::Arc;

    const WHO: Holder = Holder::of_peer(1);

    #[test]
    fn loom_a_buffer_has_one_holder() {
        loom::model(|| {
            let buffer = Arc::new(Buffer::default());
            buffer.hand(1, [0, 0], NetAddress::default());
            let other = buffer.clone();
            let taker = loom::thread::spawn(move || other.take(1, WHO, 1));
            // The owner gives up waiting.
            let seen = buffer.state();
            let back = seen.place == Place::Handed && buffer.take_back(seen);
            assert_ne!(taker.join().expect("no panic"), back);
        });
    }

    #[test]
    fn loom_the_owner_misses_no_buffer_that_is_done() {
        loom::model(|| {
            let shared = Arc::new(([Buffer::default(), Buffer::default()], Done::default()));
            shared.0[0].hand(1, [0, 0], NetAddress::default());
            let other = shared.clone();
            let holder = loom::thread::spawn(move || {
                let outcome = Outcome { answer: 5, ..Outcome::default() };
                assert!(other.0[0].take(1, WHO, 1) && other.0[0].finish(1, WHO, outcome));
                other.1.push(&other.0, 0)
            });
            let (buffers, done) = (&shared.0, &shared.1);
            let slept = done.lie_down(|| false);
            let woken = holder.join().expect("no panic");
            if let Some(seen) = slept {
                assert!(woken && done.word.load(Acquire) != seen);
            }
            let mut found = 0;
            done.take_all(buffers, |index| found += buffers[index].outcome().answer);
            assert_eq!(found, 5);
        });
    }

    #[test]
    fn loom_what_is_asked_for_reaches_the_owner() {
        loom::model(|| {
            let shared = Arc::new((Done::default(), crate::sync::AtomicU32::new(0)));
            let other = shared.clone();
            let process = loom::thread::spawn(move || {
                other.1.store(1, crate::sync::Ordering::Release);
                other.0.ring()
            });
            let (done, asks) = (&shared.0, &shared.1);
            let slept = done.lie_down(|| asks.load(crate::sync::Ordering::Relaxed) != 0);
            let woken = process.join().expect("no panic");
            if let Some(seen) = slept {
                assert!(woken && done.word.load(Acquire) != seen);
            }
        });
    }

    #[test]
    fn loom_two_can_be_done_at_once() {
        loom::model(|| {
            let shared = Arc::new(([Buffer::default(), Buffer::default()], Done::default()));
            let other = shared.clone();
            let holder = loom::thread::spawn(move || other.1.push(&other.0, 0));
            let _ = shared.1.push(&shared.0, 1);
            let mut found = 0;
            shared.1.take_all(&shared.0, |index| found += index + 1);
            let _ = holder.join().expect("no panic");
            shared.1.take_all(&shared.0, |index| found += index + 1);
            assert_eq!(found, 3);
        });
    }
}
