//! A process's place at a port that it serves itself: a queue from the pool's owner to it.
//!
//! The owner puts in less at a time than there is room for. An owner that is killed leaves what nobody has taken,
//! so the next one passes over that before it puts in anything: then an item is written over only when all
//! before it have been passed over, and a process that was reading it sees that and goes on behind.

use crate::limits::{BUFFERS_MAX, NET_CONNECTIONS_MAX};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// What a process that serves a port itself is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// The packet: [`Name::to_raw`](super::Name::to_raw).
    pub packet: u64,
    /// Of which connection, and what it is; 0 for a datagram.
    pub connection: Piece,
}

/// A piece of a connection, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece(pub u64);

impl Piece {
    /// The connection has begun; no bytes are in it.
    pub const BEGIN: u64 = 1 << 56;
    /// No more will come.
    pub const END: u64 = 1 << 57;
    /// The other side, or the network, has cut it.
    pub const CUT: u64 = 1 << 58;
    /// An empty buffer, to write into, that the process has asked for.
    pub const ROOM: u64 = 1 << 59;
    /// All connections of before are gone, with the worker that had them. There is no packet.
    pub const RESET: u64 = 1 << 61;
    /// It is of a connection.
    pub const STREAM: u64 = 1 << 60;

    /// The connection's number.
    #[must_use]
    pub const fn connection(self) -> u32 {
        self.0 as u32
    }

    /// Is it this, too?
    #[must_use]
    pub const fn is(self, what: u64) -> bool {
        self.0 & what != 0
    }
}

/// Items that wait for one process: at least as many as there are buffers, so that there is always room. Numbers
/// of items begin anew at a multiple of it.
const SEAT_ITEMS: usize = if cfg!(loom) { 2 } else { BUFFERS_MAX.next_power_of_two() };

/// A process's place at a port that it serves itself: a queue from the pool's owner to it, and what it asks
/// the owner for.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Seat {
    tail: AtomicU32,
    asleep: AtomicU32,
    /// Changes with each item: what the process sleeps on.
    pub word: AtomicU32,
    asks: AtomicU32,
    /// Number of the first item that is for anybody: what came before was of a process that has left, or of a
    /// worker that is gone.
    first: AtomicU32,
    /// The process takes no more connections, and goes on with those that it has.
    is_shut: AtomicU32,
    items: [[AtomicU64; 2]; SEAT_ITEMS],
    /// Of each [`Ask`], a bit per connection.
    wanted: [[AtomicU64; NET_CONNECTIONS_MAX / 64]; 3],
}

/// What a process asks for a connection that it serves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Room to write into.
    Room,
    /// Tell the other side that no more will be written.
    End,
    /// Close it once all is sent.
    Close,
}

impl Seat {
    /// The owner puts an item in. True: wake who sleeps on `word`.
    #[must_use]
    pub fn push(&self, item: Item) -> bool {
        let at = self.tail.load(Ordering::Relaxed);
        let [packet, connection] = &self.items[at as usize % SEAT_ITEMS];
        packet.store(item.packet, Ordering::Relaxed);
        connection.store(item.connection.0, Ordering::Relaxed);
        self.tail.store(at.wrapping_add(1), Ordering::Release);
        self.word.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) != 0
    }

    /// The next item for a process that has seen those before `at`, and the number of the one behind it; None if it
    /// has not come yet.
    #[must_use]
    pub fn item(&self, at: u32) -> Option<(Item, u32)> {
        let mut at = self.reach(at);
        while self.tail.load(Ordering::Acquire) != at {
            let [packet, connection] = &self.items[at as usize % SEAT_ITEMS];
            let packet = packet.load(Ordering::Relaxed);
            let connection = Piece(connection.load(Ordering::Relaxed));
            // Written over meanwhile is only what has been passed over before.
            fence(Ordering::Acquire);
            match self.reach(at) {
                same if same == at => {
                    return Some((Item { packet, connection }, at.wrapping_add(1)));
                }
                later => at = later,
            }
        }
        None
    }

    /// Where a process goes on that was at `at`.
    fn reach(&self, at: u32) -> u32 {
        let first = self.first.load(Ordering::Acquire);
        if first.wrapping_sub(at).cast_signed() > 0 { first } else { at }
    }

    /// The owner's: what has come so far is for nobody any more, be it that the process has left, or that the worker
    /// that put it there is gone. One worker has less under way than there is room for; of several that nobody looks
    /// at the room would run out.
    pub fn pass_over(&self) {
        self.first.store(self.tail.load(Ordering::Relaxed), Ordering::Release);
        fence(Ordering::Release);
    }

    /// The number of the first item that a process which has just been given the seat looks at. What is of
    /// its predecessor there is refused when it is taken.
    #[must_use]
    pub fn first(&self) -> u32 {
        let (tail, first) = (self.tail.load(Ordering::Acquire), self.first.load(Ordering::Acquire));
        let kept = tail.wrapping_sub(first).min(SEAT_ITEMS as u32);
        tail.wrapping_sub(kept)
    }

    /// A thread is about to sleep, unless there is an item `at`: what `word` must be still then.
    #[must_use]
    pub fn lie_down(&self, at: u32) -> Option<u32> {
        let seen = self.word.load(Ordering::Acquire);
        self.asleep.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.tail.load(Ordering::Relaxed) != self.reach(at) {
            self.get_up();
            return None;
        }
        Some(seen)
    }

    /// It is awake.
    pub fn get_up(&self) {
        self.asleep.fetch_sub(1, Ordering::Relaxed);
    }

    /// Is there something that was asked for?
    #[must_use]
    pub fn has_asks(&self) -> bool {
        self.asks.load(Ordering::Relaxed) != 0
    }

    /// Ask something for a connection; [`Done::ring`](super::Done::ring) follows. What the process was through with before is
    /// so for the owner, too.
    pub fn ask(&self, ask: Ask, connection: u32) {
        let connection = connection as usize % NET_CONNECTIONS_MAX;
        let word = &self.wanted[ask as usize][connection / 64];
        word.fetch_or(1 << (connection % 64), Ordering::Release);
        self.asks.store(1, Ordering::Release);
    }

    /// What has been asked for since the last time.
    pub fn asked(&self, mut each: impl FnMut(Ask, u32)) {
        if self.asks.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.asks.swap(0, Ordering::AcqRel);
        for ask in [Ask::Room, Ask::End, Ask::Close] {
            for (word, bits) in self.wanted[ask as usize].iter().enumerate() {
                let mut bits = match bits.load(Ordering::Relaxed) {
                    0 => continue,
                    _ => bits.swap(0, Ordering::Acquire),
                };
                while bits != 0 {
                    each(ask, (word * 64) as u32 + bits.trailing_zeros());
                    bits &= bits - 1;
                }
            }
        }
    }

    /// Take no more connections.
    pub fn shut(&self) {
        self.is_shut.store(1, Ordering::Relaxed);
    }

    /// Does the process take no more connections?
    #[must_use]
    pub fn is_shut(&self) -> bool {
        self.is_shut.load(Ordering::Relaxed) != 0
    }

    /// As new: the process that has been given it begins so.
    pub fn reset(&self) {
        self.asleep.store(0, Ordering::Relaxed);
        self.asks.store(0, Ordering::Relaxed);
        self.is_shut.store(0, Ordering::Relaxed);
        self.wanted.iter().flatten().for_each(|bits| bits.store(0, Ordering::Relaxed));
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::{Item, Piece, Seat};
    use loom::sync::Arc;

    fn seat() -> Seat {
        use crate::sync::{AtomicU32, AtomicU64};
        let [tail, asleep, word, asks, first, is_shut] = [0; 6].map(AtomicU32::new);
        let items = core::array::from_fn(|_| [0; 2].map(AtomicU64::new));
        let wanted = core::array::from_fn(|_| core::array::from_fn(|_| AtomicU64::new(0)));
        Seat { tail, asleep, word, asks, first, is_shut, items, wanted }
    }

    #[test]
    fn loom_a_process_sees_no_item_of_two_workers_in_one() {
        loom::model(|| {
            let seat = Arc::new(seat());
            let other = seat.clone();
            // Three workers, each with less than there is room for: the last one writes over what is of the first.
            let workers = loom::thread::spawn(move || {
                for worker in 1..4 {
                    other.pass_over();
                    let _ = other.push(Item { packet: worker, connection: Piece(worker) });
                }
            });
            let (mut at, mut last) = (0, 0);
            if let Some((item, next)) = seat.item(at) {
                assert_eq!(item.packet, item.connection.0);
                (at, last) = (next, item.packet);
            }
            workers.join().expect("no panic");
            while let Some((item, next)) = seat.item(at) {
                assert!(item.packet == item.connection.0 && item.packet > last);
                (at, last) = (next, item.packet);
            }
            assert_eq!(last, 3);
        });
    }
}
