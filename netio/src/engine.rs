//! The engine: receives into buffers of the region, asks handlers, and does what they say.
//!
//! ```text
//!  kernel ──► driver ──► buffer ──► upcall ──┬─► answer, from the same buffer ──► driver ──► kernel
//!                                            ├─► on to another address
//!                                            └─► another process, which gives it back with an answer
//! ```
//!
//! The driver is io_uring, or epoll where that is refused; the engine is the same. A packet's bytes are
//! never copied here, and a connection's only where a handler leaves some until more have come (counted
//! as `joined`). Every buffer is counted for the port that it came by: one that has its share out
//! receives no more until some come back.
#![expect(unsafe_code, reason = "shows buffers to handlers and hands them to the driver")]

mod batch;
mod datagrams;
pub mod driver;
pub mod epoll;
mod joined;
mod patience;
mod ports;
mod scarce;
mod seats;
mod streams;
pub mod uring;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ext_api::abi::{NET_PASS, NetAddress, PacketBlock, Reply, Status};
use ext_api::limits::{
    BUFFER_LEN, BUFFERS_MAX, NARROW_BUFFERS, PORTS_MAX, SEATS_MAX, WIDE_BUFFERS,
};
use ext_api::pool::{Holder, Outcome, Piece, Tally};
use serde::{Deserialize, Serialize};
use slab::Slab;

use crate::address::Address;
use crate::buffers::{Buffers, Lease, Returned};
use batch::Batch;
use datagrams::{FlowKey, Outgoing, Socket};
use driver::{Doorbell, Driver, Event, Filled, Source};
use patience::Patience;
use seats::Seated;
use streams::Connection;

/// Buffers that wait for what comes next, and how many do when there are few.
const LENT: usize = 128;
const LENT_FEW: usize = 32;
/// Wide ones that do, as long as datagrams are received; half of them are left for what is answered.
const LENT_WIDE: usize = WIDE_BUFFERS / 2;
/// Buffers that a port may have out in handlers, other processes and answers at one time.
const SHARE: usize = NARROW_BUFFERS / 2;
/// Buffers that all ports together may have out: some are left to hear with.
const OUT_MAX: usize = NARROW_BUFFERS / 4 * 3;
/// Answers under way at one time; each is of a buffer or of a handler's own memory.
const SENDS_MAX: usize = 4 * BUFFERS_MAX;
/// From so many answers under way on is looked whether their readers still read.
const SENDS_MANY: usize = 64;
/// How long a packet may wait for a process to take it.
const PATIENCE_NS: u64 = 5_000_000_000;
/// How often is looked for what the dead held, while anything is elsewhere.
const SWEEP_NS: u64 = 5_000_000;
/// How often is looked for what has waited for too long.
const EXPIRE_NS: u64 = 1_000_000_000;
/// How often a packet that no process had room for is offered again.
const AGAIN_NS: u64 = 200_000;

/// What the engine asks of the sandbox that it is in.
pub trait Sandbox: fmt::Debug {
    /// Run `handler` on `block`: a [`Status`].
    fn upcall(&mut self, handler: u64, block: &mut PacketBlock, reply: &mut Reply) -> u32;
    /// Give a reply's spill back.
    fn release(&mut self, spill: *mut u8);
    /// The bytes of a spill that another process names; None if it cannot be one.
    fn spilled(&self, spill: u64, len: usize) -> Option<*const u8>;
    /// Post an event: how, to whom, which handler; its one word.
    fn post(&mut self, hand: [u64; 3], word: u64) -> Status;
    /// Wake who sleeps on that word.
    fn wake(&mut self, word: &'static AtomicU32);
    /// Is that process gone, or the upcall over, if it is one?
    fn is_over(&self, holder: Holder, upcall: u64) -> bool;
    /// Monotonic time.
    fn now_ns(&self) -> u64;
}

/// What a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A UDP socket.
    Udp,
    /// A listening TCP socket.
    Tcp,
    /// A packet socket of an interface.
    Interface,
    /// What handlers of UDP ports pass: no socket.
    AnyUdp,
}

/// A port that a handler is hooked to. Its number is its row of the tallies.
#[derive(Debug)]
struct Port {
    kind: Kind,
    /// 0: processes serve it themselves.
    handler: u64,
    /// Those that do, and whose turn it is.
    seats: VecDeque<u32>,
    fd: Option<OwnedFd>,
    /// The address that it is bound to.
    local: NetAddress,
    tally: &'static Tally,
    /// The name of its interface.
    interface: Option<String>,
    /// Number of its socket among those that receive datagrams.
    socket: Option<u32>,
    /// Buffers that are out for it.
    out: usize,
    /// It has its share out and does not receive.
    is_paused: bool,
    /// The kernel accepts connections for it.
    is_armed: bool,
    /// It is being taken away.
    is_closing: bool,
}

/// What is being sent.
#[derive(Debug)]
struct Sending {
    bytes: Bytes,
    start: usize,
    len: usize,
    /// Of several datagrams, one behind the other, how long each is but for the last.
    each: usize,
    port: u32,
    /// The connection that it is of; none: a datagram's.
    connection: Option<u32>,
    to: Option<Address>,
}

/// Where bytes to be sent lie.
#[derive(Debug)]
enum Bytes {
    /// In a buffer.
    Buffer(Lease),
    /// In an extension's heap, which gets them back.
    Spill(*mut u8),
}

/// A packet that another process is to be given.
#[derive(Debug, Clone, Copy)]
struct Handed {
    port: u32,
    /// Of this connection; none: a datagram.
    connection: Option<u32>,
    from: Address,
    start: usize,
    len: usize,
    /// The process that serves the port itself, and what this is of its connection.
    seat: Option<(u32, Piece)>,
}

/// A packet for which no process had room. It is out, as one is that a process has.
#[derive(Debug)]
struct Waiting {
    lease: Lease,
    handed: Handed,
    hand: [u64; 3],
    since_ns: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Engine<D, S> {
    driver: D,
    sandbox: S,
    buffers: Buffers,
    ports: Vec<Option<Port>>,
    sockets: Slab<Socket>,
    flows: HashMap<FlowKey, u32>,
    connections: Slab<Connection>,
    /// Answers under way, by place. There is room for all from the start, so that they do not move: the
    /// kernel has their addresses.
    sends: Slab<Sending>,
    /// Datagrams that are to be sent at the end of this turn.
    outgoing: Vec<Outgoing>,
    batch: Batch,
    patience: Patience,
    /// Ports that do not receive for want of buffers.
    paused: usize,
    lingering: usize,
    /// Somebody had to wait since the last look for what takes too long: readers that read nothing have less time.
    is_pressed: bool,
    /// Ports whose interface was down when that was last heard of; those whose interface has been removed, until
    /// there is one of its name again; and those of them that nobody has asked for yet.
    down: Vec<u32>,
    gone: Vec<u32>,
    removed: Vec<u32>,
    /// By number of the buffer.
    handed: Vec<Option<Handed>>,
    waiting: Vec<Waiting>,
    /// Sources that had no buffer.
    starved: Vec<Source>,
    /// Those that cannot receive, for a reason that lasts.
    failed: Vec<Source>,
    /// What all ports have out.
    out: usize,
    /// Pieces of connections that have come.
    pieces_seen: u64,
    /// Connections that could not be shown.
    retries: Vec<u32>,
    /// Connections that may be over.
    over: Vec<u32>,
    events: Vec<Event>,
    returned: Vec<Returned>,
    /// Processes that serve ports themselves, by seat.
    seated: Vec<Option<Seated>>,
    seats_taken: usize,
    swept_ns: u64,
    expired_ns: u64,
    /// What is watched can be read.
    is_readable: bool,
}

fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
}

impl<D: Driver, S: Sandbox> Engine<D, S> {
    /// An engine with nothing to do.
    pub fn new(driver: D, sandbox: S, buffers: Buffers) -> Self {
        let swept_ns = sandbox.now_ns();
        Self {
            driver,
            sandbox,
            buffers,
            ports: (0..PORTS_MAX).map(|_| None).collect(),
            sockets: Slab::new(),
            flows: HashMap::new(),
            connections: Slab::new(),
            sends: Slab::with_capacity(SENDS_MAX),
            outgoing: Vec::new(),
            batch: Batch::new(),
            patience: Patience::default(),
            paused: 0,
            lingering: 0,
            is_pressed: false,
            down: Vec::new(),
            gone: Vec::new(),
            removed: Vec::new(),
            handed: vec![None; BUFFERS_MAX],
            waiting: Vec::new(),
            starved: Vec::new(),
            failed: Vec::new(),
            out: 0,
            pieces_seen: 0,
            retries: Vec::new(),
            over: Vec::new(),
            events: Vec::new(),
            returned: Vec::new(),
            seated: (0..SEATS_MAX).map(|_| None).collect(),
            seats_taken: 0,
            swept_ns,
            expired_ns: swept_ns,
            is_readable: false,
        }
    }

    /// Connections that are open, those to other servers included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Buffers that nobody uses: those that are free, and those that wait for what comes next.
    #[must_use]
    pub fn idle_buffers(&self) -> usize {
        let lent = self.driver.lent() + self.driver.lent_wide();
        self.buffers.free() + self.buffers.wide_free() + lent
    }

    /// Have [`Engine::turn`] say when `fd` can be read, once.
    pub fn watch(&mut self, fd: BorrowedFd<'_>) {
        self.driver.watch(fd);
    }

    /// The sandbox that it was given.
    pub const fn sandbox(&self) -> &S {
        &self.sandbox
    }

    /// Look for what comes all the time, and never sleep: it costs a core.
    pub const fn look_always(&mut self) {
        self.patience.is_endless = true;
    }

    /// How the kernel is asked, for people.
    #[must_use]
    pub fn way(&self) -> &'static str {
        self.driver.name()
    }

    /// Wait for something to do, at most `timeout`, and do it. True: what is watched can be read.
    ///
    /// # Errors
    /// The kernel's: the engine cannot go on.
    pub fn turn(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.lend_buffers();
        let mut events = std::mem::take(&mut self.events);
        let waited = self.wait(timeout, &mut events);
        for event in events.drain(..) {
            self.handle(event);
            self.forget_those_over();
        }
        self.events = events;
        self.take_returned();
        self.take_asks();
        self.offer_again();
        self.retry();
        self.expire();
        self.resume();
        self.flush();
        self.forget_those_over();
        waited.map(|()| std::mem::take(&mut self.is_readable))
    }

    /// Look for a while, if that pays, then sleep.
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let look_ns = self.patience.look_ns();
        if look_ns != 0 && timeout != Some(Duration::ZERO) {
            self.driver.wait(Some(Duration::ZERO), None, events)?;
            if events.is_empty() {
                let found = self.look(look_ns);
                self.patience.looked(found);
                if found || self.patience.is_endless {
                    return self.driver.wait(Some(Duration::ZERO), None, events);
                }
            } else {
                return Ok(());
            }
        }
        let (timeout, doorbell) = self.how_to_wait(timeout);
        let began = self.sandbox.now_ns();
        let waited = self.driver.wait(timeout, doorbell, events);
        if doorbell.is_some() {
            self.buffers.done().get_up();
        }
        self.patience.slept(self.sandbox.now_ns().saturating_sub(began));
        waited
    }

    /// Look for news, at most so long.
    fn look(&mut self, ns: u64) -> bool {
        const LOOKS: usize = 64;
        let until = self.sandbox.now_ns() + ns;
        loop {
            for _ in 0..LOOKS {
                if self.driver.has_news() || !self.buffers.done().is_empty() || self.has_asks() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if self.sandbox.now_ns() >= until {
                return false;
            }
        }
    }

    /// For how long to wait, and for what besides the kernel.
    fn how_to_wait(&self, timeout: Option<Duration>) -> (Option<Duration>, Option<Doorbell>) {
        let has_to_try = !self.waiting.is_empty() || !self.retries.is_empty();
        let expires = !self.flows.is_empty() || self.lingering != 0 || !self.failed.is_empty();
        // Readers that are slow are cut before they take all there is.
        let expires = expires || self.is_pressed || self.sends.len() >= SENDS_MANY;
        let expires = expires || !self.down.is_empty() || !self.gone.is_empty();
        let is_elsewhere = self.buffers.elsewhere() != 0;
        let is_given = self.buffers.given() != 0 || self.has_seats();
        let reasons = [
            (has_to_try, AGAIN_NS),
            (is_elsewhere, SWEEP_NS),
            (expires || self.buffers.given() != 0, EXPIRE_NS),
        ];
        let most = reasons.iter().filter(|(holds, _)| *holds).map(|(_, ns)| *ns).min();
        let timeout = [most.map(Duration::from_nanos), timeout].into_iter().flatten().min();
        if !is_elsewhere && !is_given {
            return (timeout, None);
        }
        let done = self.buffers.done();
        match done.lie_down(|| self.has_asks()) {
            None => (Some(Duration::ZERO), None),
            Some(seen) => (timeout, Some(Doorbell { word: &done.word, seen })),
        }
    }

    fn lend_buffers(&mut self) {
        let most = if self.has_few_buffers() { LENT_FEW } else { LENT };
        while self.driver.lent() < most {
            let Some(lease) = self.buffers.take() else { break };
            let at = self.buffers.at(&lease);
            // SAFETY: the lease's own address.
            unsafe { self.driver.lend(lease, at) };
        }
        while self.driver.lent_wide() < LENT_WIDE {
            let Some(lease) = self.buffers.take_wide() else { return };
            let at = self.buffers.at(&lease);
            // SAFETY: the lease's own address.
            unsafe { self.driver.lend(lease, at) };
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Datagrams { socket, lease, start, len, each, is_whole, from } => {
                self.datagrams(socket, lease, [start, len], each, is_whole, from);
            }
            Event::Piece { connection, filled, start, len } => {
                let lease = match filled {
                    Filled::Whole(lease) => lease,
                    Filled::Part(index) => self.buffers.share(index),
                };
                self.piece(connection, lease, start, len);
            }
            Event::Accepted(port, fd) => self.accepted(port, fd),
            Event::Connected(connection, result) => self.connected(connection, result),
            Event::Sent(place, result) => self.sent(place, result),
            Event::Stopped(source, result) => {
                // Its descriptor may be closed now.
                self.flush();
                self.stopped(source, result);
            }
            Event::Readable => self.is_readable = true,
        }
    }

    /// End what has waited for too long.
    fn expire(&mut self) {
        let has_none = self.flows.is_empty() && self.connections.is_empty();
        let has_all = self.down.is_empty() && self.gone.is_empty();
        if has_none && self.failed.is_empty() && has_all {
            return;
        }
        let now_ns = self.sandbox.now_ns();
        if now_ns.saturating_sub(self.expired_ns) >= EXPIRE_NS {
            self.expired_ns = now_ns;
            self.expire_flows(now_ns);
            self.expire_connections(now_ns);
            self.try_failed();
            self.look_for_removed();
            self.look_for_returned();
        }
    }

    fn tally(&self, number: u32) -> &'static Tally {
        self.buffers.tally(number as usize)
    }

    /// Ask the handlers about what lies at `start` of `lease`: what the last of them said.
    fn ask(&mut self, number: u32, piece: &Asked<'_>) -> Option<Answer> {
        let port = self.ports[number as usize].as_ref()?;
        let (handler, kind, tally) = (port.handler, port.kind, port.tally);
        let answer = self.ask_one(handler, tally, piece)?;
        let passed = answer.block.verdict == NET_PASS && !answer.is_again;
        if kind != Kind::Udp || !passed {
            return Some(answer);
        }
        let others = self.ports.iter().flatten().find(|port| port.kind == Kind::AnyUdp);
        let Some((handler, tally)) = others.map(|port| (port.handler, port.tally)) else {
            return Some(answer);
        };
        self.sandbox.release(answer.reply.spill);
        self.ask_one(handler, tally, piece)
    }

    fn ask_one(&mut self, handler: u64, tally: &Tally, piece: &Asked<'_>) -> Option<Answer> {
        let [start, len] = piece.extent;
        let at = self.buffers.at(piece.lease);
        let mut block = PacketBlock {
            data: at.wrapping_add(start),
            len,
            used: 0,
            in_place: 0,
            from: piece.from,
            to: piece.to,
            next: NetAddress::default(),
            flags: piece.flags,
            word: piece.word,
            verdict: NET_PASS,
            hand: [0; 3],
        };
        // Behind the bytes of one that is shared lie others'.
        let is_shared = self.buffers.is_shared(piece.lease);
        let room = if is_shared { 0 } else { piece.lease.room() - start - len };
        let buf = at.wrapping_add(start + len);
        let mut reply = Reply { buf, cap: room, ..Reply::empty() };
        add(&tally.upcalls, 1);
        let status = self.sandbox.upcall(handler, &mut block, &mut reply);
        if status != Status::Ok as u32 {
            add(&tally.failed, 1);
            let again =
                matches!(Status::from_raw(status), Some(Status::Restarting | Status::NoContext));
            return again.then_some(Answer { block, reply, is_again: true });
        }
        // The handler's process is this one, but its extension's memory is not only its own.
        block.used = block.used.min(len);
        block.in_place = block.in_place.min(len);
        reply.len = if reply.spill.is_null() { reply.len.min(room) } else { reply.len };
        Some(Answer { block, reply, is_again: false })
    }

    /// Send bytes; what they lie in comes back when they are sent.
    fn send(&mut self, sending: Sending) -> Option<u32> {
        if self.sends.len() >= SENDS_MAX {
            add(&self.tally(sending.port).unsent, 1);
            self.put_away(sending);
            return None;
        }
        self.go_out(sending.port);
        let place = self.sends.insert(sending) as u32;
        Some(place)
    }

    /// Where the bytes of what is being sent lie.
    fn bytes_at(&self, sending: &Sending) -> *const [u8] {
        let first = match &sending.bytes {
            Bytes::Buffer(lease) => self.buffers.at(lease).cast_const(),
            Bytes::Spill(spill) => spill.cast_const(),
        };
        std::ptr::slice_from_raw_parts(first.wrapping_add(sending.start), sending.len)
    }

    /// It is over, or not to be.
    fn put_away(&mut self, sending: Sending) {
        match sending.bytes {
            Bytes::Buffer(lease) => self.buffers.put(lease),
            Bytes::Spill(spill) => self.sandbox.release(spill),
        }
    }

    fn sent(&mut self, place: u32, result: i32) {
        let Some(sending) = self.sends.get(place as usize) else { return };
        match sending.connection {
            Some(connection) => self.stream_sent(place, connection, result),
            None => {
                let (tally, whole) = (self.tally(sending.port), sending.len);
                if result < 0 {
                    add(&tally.unsent, 1);
                } else {
                    add(&tally.bytes_out, whole as u64);
                }
                self.finish_send(place);
            }
        }
    }

    fn finish_send(&mut self, place: u32) {
        let sending = self.sends.remove(place as usize);
        let port = sending.port;
        self.put_away(sending);
        self.come_in(port);
    }

    /// Give a packet to another process.
    fn hand(&mut self, lease: Lease, mut handed: Handed, hand: [u64; 3]) {
        let (lease, start) = match self.buffers.alone(lease, [handed.start, handed.len]) {
            Ok(alone) => alone,
            Err(lease) => return self.lose(lease, &handed),
        };
        handed.start = start;
        self.go_out(handed.port);
        let since_ns = self.sandbox.now_ns();
        let _ = self.offer(Waiting { lease, handed, hand, since_ns });
    }

    /// Post a packet to whom it is for. False: there is no room, it waits.
    fn offer(&mut self, offered: Waiting) -> bool {
        let Waiting { lease, handed, hand, since_ns } = offered;
        let extent = [handed.start as u16, handed.len as u16];
        let (index, now_ns) = (lease.index(), self.sandbox.now_ns());
        let name = self.buffers.hand(lease, extent, handed.from.net(), now_ns);
        self.handed[index] = Some(handed);
        let status = self.sandbox.post(hand, name.to_raw());
        if status == Status::Ok {
            add(&self.tally(handed.port).handed, 1);
            return true;
        }
        let Some(lease) = self.buffers.take_back(name) else { return true };
        self.handed[index] = None;
        if matches!(status, Status::Full | Status::Restarting) {
            self.waiting.push(Waiting { lease, handed, hand, since_ns });
            return false;
        }
        self.come_in(handed.port);
        add(&self.tally(handed.port).failed, 1);
        self.lose(lease, &handed);
        true
    }

    /// Offer again what has waited: the first to each first, and no more of it once one has to wait.
    fn offer_again(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let (now_ns, mut full) = (self.sandbox.now_ns(), None);
        for waiting in std::mem::take(&mut self.waiting) {
            if now_ns.saturating_sub(waiting.since_ns) > PATIENCE_NS {
                self.come_in(waiting.handed.port);
                add(&self.tally(waiting.handed.port).lost, 1);
                self.lose(waiting.lease, &waiting.handed);
            } else if full == Some(waiting.hand) {
                self.waiting.push(waiting);
            } else {
                let hand = waiting.hand;
                full = (!self.offer(waiting)).then_some(hand).or(full);
            }
        }
    }

    /// What other processes are through with, and what the dead held.
    fn take_returned(&mut self) {
        let any = self.buffers.elsewhere() + self.buffers.given() != 0;
        if !any && self.buffers.done().is_empty() {
            return;
        }
        let mut returned = std::mem::take(&mut self.returned);
        self.buffers.returned(&mut returned);
        let now_ns = self.sandbox.now_ns();
        if now_ns.saturating_sub(self.swept_ns) >= SWEEP_NS {
            self.swept_ns = now_ns;
            let sandbox = &self.sandbox;
            let is_over = |holder, upcall| sandbox.is_over(holder, upcall);
            self.buffers.sweep(now_ns, PATIENCE_NS, is_over, &mut returned);
        }
        for Returned { lease, outcome } in returned.drain(..) {
            match self.handed[lease.index()].take() {
                Some(handed) => self.answered(lease, handed, outcome),
                // A former owner's.
                None => self.buffers.put(lease),
            }
        }
        self.returned = returned;
    }

    fn answered(&mut self, lease: Lease, handed: Handed, outcome: Option<Outcome>) {
        self.come_in(handed.port);
        if let Some((_, piece)) = handed.seat {
            return self.seat_answered(lease, handed, piece, outcome);
        }
        let outcome = outcome.inspect(|outcome| {
            if outcome.flags & Outcome::DROP != 0 {
                self.release_spill(*outcome);
            }
        });
        let outcome = outcome.filter(|it| it.flags & Outcome::DROP == 0);
        let Some(outcome) = outcome else {
            add(&self.tally(handed.port).lost, 1);
            return self.lose(lease, &handed);
        };
        match handed.connection {
            Some(connection) => self.stream_answered(connection, lease, &handed, outcome),
            None => self.datagram_answered(lease, &handed, outcome),
        }
    }

    /// There is no answer.
    fn lose(&mut self, lease: Lease, handed: &Handed) {
        self.buffers.put(lease);
        if let Some(connection) = handed.connection {
            self.is_no_longer_handed(connection);
            self.cut(connection);
        }
    }

    /// Give back what another process had written, if it is not to be sent.
    fn release_spill(&mut self, outcome: Outcome) {
        let spilled = self.sandbox.spilled(outcome.spill, outcome.answer as usize);
        if let Some(spill) = spilled.filter(|_| outcome.spill != 0) {
            self.sandbox.release(spill.cast_mut());
        }
    }

    /// The bytes of another process's answer, and the buffer if they do not lie in it.
    fn answer_bytes(
        &self,
        lease: Lease,
        handed: &Handed,
        outcome: Outcome,
    ) -> Result<(Bytes, [usize; 2], Option<Lease>), Lease> {
        let len = outcome.answer as usize;
        let behind = handed.start + handed.len;
        if outcome.spill == 0 {
            let fits = len <= BUFFER_LEN - behind;
            return if fits { Ok((Bytes::Buffer(lease), [behind, len], None)) } else { Err(lease) };
        }
        match self.sandbox.spilled(outcome.spill, len) {
            Some(at) => Ok((Bytes::Spill(at.cast_mut()), [0, len], Some(lease))),
            None => Err(lease),
        }
    }
}

/// What handlers are asked about.
struct Asked<'a> {
    lease: &'a Lease,
    extent: [usize; 2],
    from: NetAddress,
    to: NetAddress,
    flags: u64,
    word: u64,
}

/// What a handler said.
struct Answer {
    block: PacketBlock,
    reply: Reply,
    /// It could not be asked now.
    is_again: bool,
}
