//! Connections of local sockets whose bytes go through the region.
//!
//! Each keeps its two kernel sockets. A direction has two channels, and at any time all bytes in the
//! ring are older than all bytes in the kernel:
//!
//! ```text
//!            ring has room, nothing is in the kernel, the reader is awake
//!  writer ──────────────────────────────► ring ───────────────────────────► first ── reader
//!         ──────────────────────────────► kernel's socket ────────────────► then  ──
//!            the reader sleeps, the ring is full, or the bytes cannot go by the ring
//! ```
//!
//! So whoever sleeps does it in the kernel, on the socket itself, and is woken as ever; back-pressure, end
//! of file, resets and errors are the kernel's own; and what libos does not know how to carry it leaves
//! to the kernel at any time. The one thing that the kernel's channel may contain besides the program's
//! bytes are *bells*: a byte each, sent when a reader went to sleep just as the writer put bytes into the
//! ring. They are taken out when the ring is empty.
//!
//! The two ends find each other by what both kernel sockets say: the addresses and ports of both, or the
//! inode of the connecting one. The side that connects *offers*, before its `connect` returns, and treats
//! its socket as one that may be carried from then on; the side that accepts *takes the offer*, and both
//! are *joined*. What they have sent until then has been counted. An offer that is not taken costs a row.

pub mod copying;
pub mod counters;
mod direction;
pub mod inlets;
mod linger;
pub mod pipes;
pub mod records;

pub use direction::{Direction, Piece, Reading, Waiting, Writing};

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Rows of the table.
pub const CONNECTIONS_MAX: usize = 16 << 10;
/// Rows in which a connection may be, from the one that its name leads to.
pub const PROBES: usize = 16;
/// Bytes of a ring that every direction has.
pub const SMALL_RING: usize = 4 << 10;
/// Bytes of one that it gets when a write does not fit.
pub const LARGE_RING: usize = 256 << 10;
/// How many of these there are.
pub const LARGE_RINGS: usize = 512;
/// What all rings take at the end of the region's shared part, if its sockets are carried at all.
pub const RINGS_LEN: usize = CONNECTIONS_MAX * 2 * SMALL_RING + LARGE_RINGS * LARGE_RING;
/// Sets of sockets that threads of the sandbox can wait for (epoll instances).
pub const WATCHERS_MAX: usize = 512;
/// Sockets of one of them. More are left to the kernel.
pub const WATCHED_MAX: usize = 4096;
/// Processes that share an end of a connection and are known by name.
pub const HOLDERS_MAX: usize = 17;

/// Nobody's row.
pub const FREE: u32 = 0;
/// It is being filled.
pub const TAKEN: u32 = 1;
/// The side that connected waits for the other.
pub const OFFERED: u32 = 2;
/// The side that accepted has found the offer, and makes itself ready.
pub const ACCEPTED: u32 = 3;
/// Both know of each other.
pub const JOINED: u32 = 4;

/// Numbers of the calls that are looked at, as bits.
pub const CALLS: [u64; 8] = {
    // read, write, open, close, poll, ioctl, readv, writev, pipe, select, dup, dup2, sendfile, socket, connect,
    // accept, sendto, recvfrom, sendmsg, recvmsg, shutdown, bind, socketpair, setsockopt, getsockopt, fcntl, creat,
    // io_submit, epoll_create, epoll_wait, epoll_ctl, openat, pselect6, ppoll, splice, tee, vmsplice,
    // epoll_pwait, eventfd, accept4, eventfd2, epoll_create1, dup3, pipe2, recvmmsg, sendmmsg, preadv2,
    // pwritev2, close_range, openat2, epoll_pwait2
    const NUMBERS: [usize; 51] = [
        0, 1, 2, 3, 7, 16, 19, 20, 22, 23, 32, 33, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 53, 54,
        55, 72, 85, 209, 213, 232, 233, 257, 270, 271, 275, 276, 278, 281, 284, 288, 290, 291, 292,
        293, 299, 307, 327, 328, 436, 437, 441,
    ];
    let mut bits = [0; 8];
    let mut index = 0;
    while index < NUMBERS.len() {
        bits[NUMBERS[index] / 64] |= 1 << (NUMBERS[index] % 64);
        index += 1;
    }
    bits
};

/// In [`Waiting::watch`]: several wait for it in ways that cannot all be told. It goes by the kernel.
pub const MANY: u32 = u32::MAX;

/// In the first word of a name: the connection is of AF_UNIX sockets.
pub const UNIX: u64 = 1 << 63;

/// In [`Direction::shut`]: set by who had the turn to write, so that nobody is about to put something in.
pub const SHUT: u32 = 1;
/// Whoever has the turn to write may still put something in.
pub const SOON_SHUT: u32 = 2;

/// In [`Connection::kind`], beside the sockets' type: they were made as a pair.
pub const PAIR: u32 = 1 << 16;

/// What names a connection: kind and ports, then the addresses of who connects and who accepts.
pub type Name = [u64; 5];

/// Everything that is kept of carried sockets.
#[derive(Debug)]
#[repr(C)]
pub struct Sockets {
    /// Connections that are being made now: an offer may be about to appear.
    pub connecting: AtomicU32,
    /// When the last of them began, in nanoseconds: a process may be killed in the middle of one.
    pub connecting_ns: AtomicU64,
    /// Offers of AF_UNIX sockets that nobody has taken yet.
    pub unix_offers: AtomicU32,
    /// Rows that were ever used.
    pub used: AtomicU32,
    /// What a bell consists of where records are carried.
    pub bell: [AtomicU64; records::BELL_WORDS],
    /// A bit per row that is not free.
    pub live: [AtomicU64; CONNECTIONS_MAX / 64],
    /// Connections that both sides knew of.
    pub carried: AtomicU64,
    /// Pipes among them.
    pub pipes: AtomicU64,
    /// Counters among them.
    pub counters: AtomicU64,
    /// Bytes that ended connections had carried.
    pub carried_bytes: AtomicU64,
    /// Bytes of theirs that went by the kernel.
    pub kernel_bytes: AtomicU64,
    /// Of these, the ones for readers that slept.
    pub asleep_bytes: AtomicU64,
    /// Not carried, since no row was free near the one that the name leads to.
    pub no_row: AtomicU64,
    /// Accepted connections between local addresses for which there was no offer.
    pub no_offer: AtomicU64,
    /// Offers that nobody took.
    pub not_taken: AtomicU64,
    /// Large rings in use.
    pub large: [AtomicU64; LARGE_RINGS / 64],
    /// The sets that threads wait for.
    pub watchers: [Watcher; WATCHERS_MAX],
    /// The table.
    pub connections: [Connection; CONNECTIONS_MAX],
    /// What datagram sockets have besides.
    pub inlets: inlets::Inlets,
}

/// An epoll instance with carried sockets.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Watcher {
    /// Process that has it, or 0.
    pub pid: AtomicU32,
    /// How long looking has been worth while lately, in nanoseconds.
    pub patience_ns: AtomicU32,
    /// Its own line: threads of the process that sleep on it.
    pub parked: Line<AtomicU32>,
    /// Its own line: a bit per word of `ready` that has any.
    pub summary: Line<AtomicU64>,
    /// The core of whoever set a bit last.
    pub core: AtomicU32,
    /// A bit per socket: bytes have been put into its ring.
    pub ready: [AtomicU64; WATCHED_MAX / 64],
}

/// A value with a cache line of its own.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Line<T>(pub T);

/// One connection.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Connection {
    /// [`FREE`] and the others.
    pub state: AtomicU32,
    /// Counts the lives of the row.
    pub generation: AtomicU32,
    /// What names it.
    pub name: [AtomicU64; 5],
    /// Type of its sockets, and [`PAIR`]; or [`pipes::PIPE`], or [`counters::COUNTER`].
    pub kind: AtomicU32,
    /// Bytes of the longest record that goes by a ring; of a pipe, how many may be under way by it.
    pub record_max: AtomicU32,
    /// When the last process that is known to have an end let go of it.
    pub ended_ns: AtomicU64,
    /// Who connected, and who accepted.
    pub sides: [Side; 2],
    /// By which of them writes.
    pub directions: [Direction; 2],
}

/// One end.
#[derive(Debug, Default)]
#[repr(C, align(32))]
pub struct Side {
    /// The kernel's number of the socket, which no other ever has (`SO_COOKIE`), or of an end of a pipe.
    pub cookie: AtomicU64,
    /// Processes that have it, by pid; 0 for none.
    pub holders: [AtomicU32; HOLDERS_MAX],
    /// More had it than there was room for: nobody can tell when the last one is gone.
    pub crowded: AtomicU32,
    /// 1 while calls on it do not wait (`O_NONBLOCK`).
    pub nonblock: AtomicU32,
    /// 1 once nobody has it.
    pub gone: AtomicU32,
    /// What the program set of `TCP_NODELAY` and `TCP_CORK`, and whether it wants little under way.
    pub options: AtomicU32,
    /// Descriptors of it that are under way in messages (`SCM_RIGHTS`): who receives one has it as well.
    pub passed: AtomicU32,
}

/// A place in [`Waiting::watch`].
#[must_use]
pub const fn watch_word(watcher: usize, socket: usize) -> u32 {
    ((watcher + 1) * WATCHED_MAX + socket) as u32
}

/// What [`watch_word`] was made of.
#[must_use]
pub const fn watched(word: u32) -> Option<(usize, usize)> {
    let (watcher, socket) = (word as usize / WATCHED_MAX, word as usize % WATCHED_MAX);
    if watcher == 0 || watcher > WATCHERS_MAX { None } else { Some((watcher - 1, socket)) }
}

/// Row from which a name is looked for.
#[must_use]
pub fn first_row(name: &Name) -> usize {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed =
        name.iter().fold(0u64, |sum, word| (sum ^ word).wrapping_mul(SPREAD).rotate_left(29));
    (mixed >> 17) as usize % CONNECTIONS_MAX
}

impl Side {
    /// `pid` has it too.
    pub fn hold(&self, pid: u32) {
        if self.holders.iter().any(|holder| holder.load(Ordering::Acquire) == pid) {
            return;
        }
        let take = |holder: &AtomicU32| {
            holder.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        if !self.holders.iter().any(take) {
            self.crowded.store(1, Ordering::Release);
        }
        fence(Ordering::SeqCst);
        self.gone.store(0, Ordering::Release);
    }

    /// `pid` has it no longer. True if nobody has.
    #[must_use]
    pub fn let_go(&self, pid: u32) -> bool {
        for holder in &self.holders {
            let _ = holder.compare_exchange(pid, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
        if self.is_held() {
            return false;
        }
        self.gone.store(1, Ordering::Release);
        fence(Ordering::SeqCst);
        // A child may have come to hold it in between.
        let is_held = self.is_held();
        if is_held {
            self.gone.store(0, Ordering::Release);
        }
        !is_held
    }

    /// Has anybody it?
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.crowded.load(Ordering::Acquire) != 0
            || self.holders.iter().any(|holder| holder.load(Ordering::Acquire) != 0)
    }

    /// One of its descriptors that were under way has come.
    pub fn received(&self) {
        let less = |passed: u32| passed.checked_sub(1);
        let _ = self.passed.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less);
    }

    fn reset(&self) {
        zero64(&self.cookie);
        self.holders.iter().for_each(zero);
        [&self.crowded, &self.nonblock, &self.gone, &self.options, &self.passed]
            .into_iter()
            .for_each(zero);
    }
}

impl Connection {
    /// Has this row this name?
    #[must_use]
    pub fn is_named(&self, name: &Name) -> bool {
        self.name.iter().zip(name).all(|(word, named)| word.load(Ordering::Relaxed) == *named)
    }

    /// Is it one of AF_UNIX sockets, rather than of TCP?
    #[must_use]
    pub fn is_unix(&self) -> bool {
        self.name[0].load(Ordering::Relaxed) & UNIX != 0
    }

    /// Has either side closed it, or shut it down?
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.sides.iter().any(|side| side.gone.load(Ordering::Relaxed) != 0)
            || self.directions.iter().any(|way| way.shut.load(Ordering::Relaxed) != 0)
    }

    /// Is there nobody at the other end of `side` any more?
    #[must_use]
    pub fn other_is_gone(&self, side: usize) -> bool {
        self.sides[1 - side].gone.load(Ordering::Acquire) != 0
    }
}

impl Sockets {
    /// Rows that were ever used.
    fn used(&self) -> usize {
        (self.used.load(Ordering::Acquire) as usize).min(CONNECTIONS_MAX)
    }

    /// Rows that are in use.
    pub fn rows(&self) -> impl Iterator<Item = usize> {
        let words = self.used().div_ceil(64);
        self.live[..words].iter().enumerate().flat_map(|(index, word)| {
            let bits = word.load(Ordering::Acquire);
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| index * 64 + bit)
        })
    }

    /// A row for a connection of this name, from the side that connects: nobody finds it before
    /// [`Sockets::offer`].
    #[must_use]
    pub fn take_row(&self, name: &Name) -> Option<usize> {
        let first = first_row(name);
        let row = (0..PROBES).map(|probe| (first + probe) % CONNECTIONS_MAX).find(|&row| {
            let state = &self.connections[row].state;
            state.load(Ordering::Relaxed) == FREE
                && state.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
        });
        let Some(row) = row else {
            self.no_row.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        self.used.fetch_max(row as u32 + 1, Ordering::AcqRel);
        self.live[row / 64].fetch_or(1 << (row % 64), Ordering::AcqRel);
        let connection = &self.connections[row];
        connection.generation.fetch_add(1, Ordering::Relaxed);
        connection.sides.iter().for_each(Side::reset);
        connection.directions.iter().for_each(Direction::reset);
        zero(&connection.kind);
        connection.record_max.store(records::RECORD_MAX as u32, Ordering::Relaxed);
        zero64(&connection.ended_ns);
        for (word, part) in connection.name.iter().zip(name) {
            word.store(*part, Ordering::Relaxed);
        }
        Some(row)
    }

    /// Have the other side find it.
    pub fn offer(&self, row: usize) {
        if self.connections[row].is_unix() {
            self.unix_offers.fetch_add(1, Ordering::AcqRel);
        }
        self.connections[row].state.store(OFFERED, Ordering::Release);
    }

    /// The offer of this name, for the side that accepts.
    #[must_use]
    pub fn take_offer(&self, name: &Name) -> Option<usize> {
        let first = first_row(name);
        let mut rows = (0..PROBES).map(|probe| (first + probe) % CONNECTIONS_MAX);
        let found = rows.find(|&row| {
            let connection = &self.connections[row];
            connection.state.load(Ordering::Acquire) == OFFERED
                && connection.is_named(name)
                && connection.sides[0].gone.load(Ordering::Acquire) == 0
                && connection
                    .state
                    .compare_exchange(OFFERED, ACCEPTED, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
        })?;
        self.no_longer_offered(found);
        Some(found)
    }

    fn no_longer_offered(&self, row: usize) {
        if self.connections[row].is_unix() {
            let less = |count: u32| count.checked_sub(1);
            let _ = self.unix_offers.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less);
        }
    }

    /// Both sides know of each other: bytes may go by the rings.
    pub fn join(&self, row: usize) {
        self.carried.fetch_add(1, Ordering::Relaxed);
        self.connections[row].state.store(JOINED, Ordering::Release);
    }

    /// Nobody takes the offer any more. False if somebody has.
    #[must_use]
    pub fn withdraw(&self, row: usize) -> bool {
        let state = &self.connections[row].state;
        let done =
            state.compare_exchange(OFFERED, TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if done {
            self.not_taken.fetch_add(1, Ordering::Relaxed);
            self.no_longer_offered(row);
            // What it sent and received was never to be carried.
            self.connections[row].directions.iter().for_each(Direction::reset);
            self.free(row);
        }
        done
    }

    /// `pid` no longer has `side` of the connection in `row`; who is the last frees the row, or leaves that
    /// to [`Sockets::reap`].
    pub fn let_go(&self, row: usize, side: usize, pid: u32, now_ns: u64) {
        let connection = &self.connections[row];
        if !connection.sides[side].let_go(pid) {
            return;
        }
        if connection.state.load(Ordering::Acquire) == OFFERED && side == 0 {
            let _ = self.withdraw(row);
            return;
        }
        connection.ended_ns.store(now_ns, Ordering::Release);
        let _ = self.close_inlet(row);
        if !connection.has_unread() && !self.lingers(row) {
            self.free_if_over(row);
        }
    }

    fn free(&self, row: usize) {
        let connection = &self.connections[row];
        if connection.is_inlet() {
            self.end_inlet(row);
        }
        for direction in &connection.directions {
            let carried = connection.carried(direction);
            self.carried_bytes.fetch_add(carried, Ordering::Relaxed);
            let by_kernel = connection.by_kernel(direction);
            self.kernel_bytes.fetch_add(by_kernel, Ordering::Relaxed);
            let asleep = direction.writing.asleep.load(Ordering::Relaxed);
            self.asleep_bytes.fetch_add(asleep, Ordering::Relaxed);
            let large = direction.large.swap(0, Ordering::AcqRel) as usize;
            if (1..=LARGE_RINGS).contains(&large) {
                self.large[(large - 1) / 64]
                    .fetch_and(!(1 << ((large - 1) % 64)), Ordering::AcqRel);
            }
        }
        connection.generation.fetch_add(1, Ordering::Relaxed);
        self.live[row / 64].fetch_and(!(1 << (row % 64)), Ordering::AcqRel);
        connection.state.store(FREE, Ordering::Release);
    }

    /// A large ring; its number.
    #[must_use]
    pub fn take_large(&self) -> Option<usize> {
        self.large.iter().enumerate().find_map(|(index, word)| {
            let mut seen = word.load(Ordering::Relaxed);
            while seen != u64::MAX {
                let bit = (!seen).trailing_zeros();
                match word.compare_exchange_weak(
                    seen,
                    seen | 1 << bit,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => return Some(index * 64 + bit as usize),
                    Err(now) => seen = now,
                }
            }
            None
        })
    }

    /// Nobody has anything any more.
    pub fn clear(&self) {
        for row in 0..self.used() {
            let state = &self.connections[row].state;
            if state.swap(TAKEN, Ordering::AcqRel) != FREE {
                self.free(row);
            } else {
                state.store(FREE, Ordering::Release);
            }
        }
        for count in [&self.connecting, &self.unix_offers] {
            zero(count);
        }
    }

    /// A process has ended: what it had, nobody has.
    pub fn end_process(&self, pid: u32, now_ns: u64) {
        for row in self.rows() {
            let connection = &self.connections[row];
            if connection.state.load(Ordering::Acquire) < OFFERED {
                continue;
            }
            for side in 0..2 {
                let had = |holder: &AtomicU32| holder.load(Ordering::Relaxed) == pid;
                if connection.sides[side].holders.iter().any(had) {
                    self.let_go(row, side, pid, now_ns);
                }
            }
        }
        self.end_turns(pid);
        self.reap(now_ns);
        for watcher in &self.watchers {
            if watcher.pid.load(Ordering::Relaxed) == pid {
                watcher.pid.store(0, Ordering::Release);
            }
        }
    }
}

fn zero(word: &AtomicU32) {
    word.store(0, Ordering::Relaxed);
}

fn zero64(word: &AtomicU64) {
    word.store(0, Ordering::Relaxed);
}

impl Watcher {
    /// The socket `index` has bytes.
    #[inline]
    pub fn mark(&self, index: usize) {
        let (word, bit) = (index / 64 % self.ready.len(), 1 << (index % 64));
        if self.ready[word].load(Ordering::Relaxed) & bit == 0 {
            self.ready[word].fetch_or(bit, Ordering::AcqRel);
            self.summary.0.fetch_or(1 << word, Ordering::AcqRel);
        }
    }

    /// It has none, as far as is known.
    #[inline]
    pub fn unmark(&self, index: usize) {
        let (word, bit) = (index / 64 % self.ready.len(), 1 << (index % 64));
        if self.ready[word].fetch_and(!bit, Ordering::AcqRel) & !bit == 0 {
            self.summary.0.fetch_and(!(1 << word), Ordering::AcqRel);
            // Somebody may have set a bit in between.
            if self.ready[word].load(Ordering::Acquire) != 0 {
                self.summary.0.fetch_or(1 << word, Ordering::AcqRel);
            }
        }
    }

    /// Is any marked? Asked before a thread sleeps: the summary of a word is gone for a moment when one of the word is
    /// unmarked.
    #[must_use]
    pub fn has_marks(&self) -> bool {
        self.ready.iter().any(|word| word.load(Ordering::Acquire) != 0)
    }

    /// As new.
    pub fn reset(&self) {
        [&self.parked.0, &self.patience_ns, &self.core].into_iter().for_each(zero);
        self.ready.iter().chain([&self.summary.0]).for_each(zero64);
    }
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<Connection>() == 768);
    assert!(WATCHED_MAX / 64 <= 64, "the summary is one word");
    assert!((WATCHERS_MAX + 1) * WATCHED_MAX < MANY as usize);
    assert!(RINGS_LEN.is_multiple_of(ext_api::limits::HUGE_PAGE_LEN));
};
