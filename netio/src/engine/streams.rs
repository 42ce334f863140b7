//! Connections: their bytes are shown to the handler in the buffers that they came in, and what it writes
//! is sent in order.
//!
//! ```text
//!  pieces ──► input (what the handler left) ──► upcall ──► output ──► driver
//!     │                                            │          ▲
//!     │ joined to another connection               │ handed   │ answer of another process
//!     └──────────────► output of that one          └──────────┘
//! ```
//!
//! While a piece is with another process, or as much waits to be sent as may (`scarce`), nothing more is
//! shown, and soon nothing more received: the kernel holds the sender back. A connection is forgotten
//! when it neither receives, sends, connects nor waits for a process.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

use ext_api::abi::{
    NET_BEGINS, NET_CLOSE, NET_CUT, NET_DROP, NET_ENDED, NET_FORWARD, NET_HAND, NET_REPLY_IN_PLACE,
    NetAddress,
};
use ext_api::limits::{BUFFER_LEN, NET_CONNECTIONS_MAX};
use ext_api::pool::Outcome;

use super::driver::{Driver, Source};
use super::scarce::{LINGER_NS, Limits};
use super::{Answer, Asked, Bytes, Engine, Handed, Sandbox, Sending, add};
use crate::address::Address;
use crate::buffers::Lease;
use crate::listen;

/// Bytes that have come.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) lease: Lease,
    pub(super) start: usize,
    pub(super) len: usize,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It is being made.
    Connecting,
    /// Bytes go both ways.
    Open,
    /// What waits is sent, then our end of it is closed.
    Closing,
    /// Our end is closed; what comes is dropped until the other's is too, or this time has come.
    Lingering(u64),
    /// Nothing goes on but what the kernel has under way.
    Cut,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) fd: OwnedFd,
    pub(super) port: u32,
    pub(super) life: Life,
    pub(super) from: NetAddress,
    to: NetAddress,
    word: u64,
    /// It has not been shown yet.
    pub(super) is_new: bool,
    pub(super) pieces: VecDeque<Piece>,
    pub(super) output: VecDeque<u32>,
    pub(super) is_sending: bool,
    is_receiving: bool,
    is_stopping: bool,
    pub(super) has_ended: bool,
    is_handed: bool,
    pub(super) is_connecting: bool,
    /// It came by a listening socket.
    is_accepted: bool,
    /// It is one of two whose bytes go to each other.
    pub(super) is_joined: bool,
    /// The other one, while there is one.
    pub(super) partner: Option<u32>,
    /// What the other one has sent is all there is.
    pub(super) end_wanted: bool,
    /// Our end is closed.
    end_sent: bool,
    /// The process that serves it itself, and how many buffers of it that one has.
    pub(super) seat: Option<u32>,
    pub(super) with_process: usize,
    /// The handler, or the process, has been told that nothing more comes.
    pub(super) end_told: bool,
    /// The process has been told that it was cut.
    pub(super) cut_told: bool,
    /// The process has dropped its stream, or is gone: nothing of its is taken for another's that gets this
    /// number next.
    pub(super) process_left: bool,
    /// The process wants room to write.
    pub(super) room_asked: bool,
    /// It waits for a buffer to receive into.
    pub(super) is_starved: bool,
    /// It is among those that are tried again; and is it since its port had its share out?
    pub(super) is_retried: bool,
    pub(super) waits_for_share: bool,
    /// Number of the piece that came last, of all pieces.
    pub(super) last_piece: u64,
    /// When something of it was sent last, or begun to be.
    pub(super) progress_ns: u64,
    /// Bytes that the other side had acknowledged when that was last looked at.
    pub(super) acknowledged: u64,
    /// It is one of those that linger, or was.
    lingers: bool,
    /// Where it connects to. It does not move: the kernel has its address.
    pub(super) target: Option<Box<Address>>,
}

impl Connection {
    pub(super) fn new(fd: OwnedFd, port: u32, life: Life) -> Self {
        Self {
            fd,
            port,
            life,
            from: NetAddress::default(),
            to: NetAddress::default(),
            word: 0,
            is_new: true,
            pieces: VecDeque::new(),
            output: VecDeque::new(),
            is_sending: false,
            is_receiving: false,
            is_stopping: false,
            has_ended: false,
            is_handed: false,
            is_connecting: life == Life::Connecting,
            is_accepted: life == Life::Open,
            is_joined: false,
            partner: None,
            end_wanted: false,
            end_sent: false,
            seat: None,
            with_process: 0,
            end_told: false,
            cut_told: false,
            process_left: false,
            room_asked: false,
            is_starved: false,
            is_retried: false,
            waits_for_share: false,
            last_piece: 0,
            progress_ns: 0,
            acknowledged: 0,
            lingers: false,
            target: None,
        }
    }

    /// Nobody has anything of it.
    const fn is_over(&self) -> bool {
        let is_ended = match self.life {
            Life::Cut => true,
            Life::Lingering(_) => !self.is_starved,
            _ => false,
        };
        let is_with_kernel = self.is_receiving || self.is_sending || self.is_connecting;
        let is_served = self.is_handed || self.with_process != 0;
        let has_process = self.seat.is_some() && !self.process_left;
        is_ended && !is_with_kernel && !is_served && !has_process
    }

    /// May more be sent by it?
    pub(super) fn has_room(&self, limits: Limits) -> bool {
        self.output.len() < limits.outputs
    }

    /// Does enough wait to be shown?
    fn is_full(&self, limits: Limits) -> bool {
        self.pieces.len() >= limits.pieces
    }
}

impl<D: Driver, S: Sandbox> Engine<D, S> {
    pub(super) fn accepted(&mut self, number: u32, fd: OwnedFd) {
        let is_served = self.ports[number as usize].as_ref().is_some_and(|port| !port.is_closing);
        let tally = self.tally(number);
        if !is_served || self.connections.len() >= NET_CONNECTIONS_MAX {
            add(&tally.dropped, 1);
            return;
        }
        listen::send_at_once(&fd);
        let mut connection = Connection::new(fd, number, Life::Open);
        connection.from = Address::of_socket(connection.fd.as_raw_fd(), true).net();
        connection.to = Address::of_socket(connection.fd.as_raw_fd(), false).net();
        if self.is_served_by_processes(number) {
            connection.seat = self.next_seat(number);
            if connection.seat.is_none() {
                add(&tally.dropped, 1);
                return;
            }
        }
        let index = self.connections.insert(connection) as u32;
        add(&tally.received, 1);
        tally.open.store(tally.open.load(Relaxed) + 1, Relaxed);
        self.go_on(index);
        self.receive_stream(index);
    }

    /// Receive, unless it does, or has no use for more.
    pub(super) fn receive_stream(&mut self, index: u32) {
        let limits = self.limits_of(index);
        let Some(known) = self.connections.get_mut(index as usize) else { return };
        let wanted = matches!(known.life, Life::Open | Life::Closing | Life::Lingering(_));
        if !wanted || known.is_receiving || known.has_ended || known.is_full(limits) {
            return self.forget_if_over(index);
        }
        let goes_on_later = known.life == Life::Open && (known.is_joined || known.is_sending);
        if goes_on_later && limits.has_reserve_only {
            // What it has sent before goes on first. If there is nothing of it, it waits for others' readers.
            let known = &self.connections[index as usize];
            self.is_pressed |= !self.waits_for_a_reader(known);
            return self.starve(index);
        }
        known.is_receiving = true;
        known.is_stopping = false;
        if limits.is_few {
            self.driver.receive_once(index, known.fd.as_fd());
        } else {
            self.driver.receive(index, known.fd.as_fd());
        }
    }

    /// There may be a buffer for it now.
    pub(super) fn is_fed(&mut self, index: u32) {
        if let Some(known) = self.connections.get_mut(index as usize) {
            known.is_starved = false;
            self.receive_stream(index);
        }
    }

    /// Try it again soon.
    pub(super) fn retry_later(&mut self, index: u32) {
        let Some(known) = self.connections.get_mut(index as usize) else { return };
        if !std::mem::replace(&mut known.is_retried, true) {
            self.retries.push(index);
        }
    }

    /// Try it again when something of its port's has come back.
    pub(super) fn wait_for_the_share(&mut self, index: u32) {
        self.is_pressed = true;
        if let Some(known) = self.connections.get_mut(index as usize) {
            known.waits_for_share = true;
        }
        self.retry_later(index);
    }

    pub(super) fn piece(&mut self, index: u32, lease: Lease, start: usize, len: usize) {
        let Some(known) = self.connections.get_mut(index as usize) else {
            return self.buffers.put(lease);
        };
        if !matches!(known.life, Life::Open) {
            return self.buffers.put(lease);
        }
        known.pieces.push_back(Piece { lease, start, len });
        self.pieces_seen += 1;
        known.last_piece = self.pieces_seen;
        self.keep_a_reserve();
        let limits = self.limits_of(index);
        let Some(known) = self.connections.get_mut(index as usize) else { return };
        let (number, is_full) = (known.port, known.is_full(limits));
        if is_full && !known.is_stopping {
            known.is_stopping = true;
            self.driver.stop(Source::Stream(index));
            add(&self.tally(number).paused, 1);
        }
        add(&self.tally(number).bytes_in, len as u64);
        self.go_on(index);
    }

    pub(super) fn stream_stopped(&mut self, index: u32, result: i32) {
        let Some(known) = self.connections.get_mut(index as usize) else { return };
        known.is_receiving = false;
        match -result {
            0 => {
                known.has_ended = true;
                self.go_on(index);
            }
            libc::ENOBUFS => self.starve(index),
            // It was stopped, and goes on when there is room, or to hear of its end.
            libc::ECANCELED => {
                let ends = matches!(known.life, Life::Closing | Life::Lingering(_));
                self.go_on(index);
                if ends {
                    self.receive_stream(index);
                }
            }
            _ => {
                known.has_ended = true;
                self.cut(index);
            }
        }
        self.forget_if_over(index);
    }

    /// Do what can be done for it now.
    pub(super) fn go_on(&mut self, index: u32) {
        let Some(known) = self.connections.get(index as usize) else { return };
        if known.seat.is_some() {
            self.show_seated(index);
        }
        let Some(known) = self.connections.get(index as usize) else { return };
        if known.life != Life::Open {
            return self.close_when_sent(index);
        }
        match known.partner {
            Some(partner) => self.pass_on(index, partner),
            None if known.is_joined || known.seat.is_some() => {}
            None => self.show(index),
        }
        self.take_up(index);
    }

    /// Receive again, if it was stopped for want of room and there is some.
    fn take_up(&mut self, index: u32) {
        let limits = self.limits_of(index);
        let idle = self.connections.get(index as usize).is_some_and(|known| {
            let has_room = known.pieces.len() < limits.pieces_resume;
            known.life == Life::Open && !known.is_receiving && !known.is_starved && has_room
        });
        if idle {
            self.receive_stream(index);
        }
    }

    /// Show the handler what has come, for as long as it uses it up.
    fn show(&mut self, index: u32) {
        loop {
            let limits = self.limits_of(index);
            let Some(known) = self.connections.get_mut(index as usize) else { return };
            let ready = known.life == Life::Open
                && !known.is_handed
                && !known.is_joined
                && known.has_room(limits);
            let (number, is_last) = (known.port, known.has_ended && known.pieces.len() <= 1);
            if !ready {
                return;
            }
            if self.is_at_its_share(number) {
                return self.wait_for_the_share(index);
            }
            let Some(known) = self.connections.get_mut(index as usize) else { return };
            let piece = known.pieces.pop_front();
            if piece.is_none() && !known.is_new && !is_last {
                return;
            }
            let Some(piece) = piece.or_else(|| self.empty_piece()) else {
                return self.retry_later(index);
            };
            if !self.show_piece(index, piece, is_last) {
                return;
            }
        }
    }

    /// Something to show when nothing has come: that it begins, or has ended.
    pub(super) fn empty_piece(&mut self) -> Option<Piece> {
        self.buffers.take().map(|lease| Piece { lease, start: 0, len: 0 })
    }

    /// False: it does not go on now.
    fn show_piece(&mut self, index: u32, piece: Piece, is_last: bool) -> bool {
        let known = &mut self.connections[index as usize];
        let number = known.port;
        let mut flags = if known.is_new { NET_BEGINS } else { 0 };
        flags |= if is_last { NET_ENDED } else { 0 };
        let (from, to, word) = (known.from, known.to, known.word);
        let extent = [piece.start, piece.len];
        let asked = Asked { lease: &piece.lease, extent, from, to, flags, word };
        let Some(answer) = self.ask(number, &asked) else {
            self.buffers.put(piece.lease);
            self.cut(index);
            return false;
        };
        let known = &mut self.connections[index as usize];
        if answer.is_again {
            self.keep(index, Some(piece));
            self.retry_later(index);
            return false;
        }
        known.is_new = false;
        known.end_told |= is_last;
        known.word = answer.block.word;
        self.decide(index, piece, answer, is_last)
    }

    fn decide(&mut self, index: u32, piece: Piece, answer: Answer, is_last: bool) -> bool {
        let number = self.connections[index as usize].port;
        let Answer { block, reply, .. } = answer;
        if matches!(block.verdict, NET_DROP | NET_HAND | NET_FORWARD) {
            self.sandbox.release(reply.spill);
            match block.verdict {
                NET_FORWARD => self.join(index, piece, block.next),
                NET_HAND if piece.len > 0 => self.hand_piece(index, piece, block.hand),
                _ => {
                    self.buffers.put(piece.lease);
                    add(&self.tally(number).dropped, 1);
                    self.cut(index);
                }
            }
            return false;
        }
        let (used, left) = if block.verdict == NET_REPLY_IN_PLACE {
            self.answer_in_place(index, piece, block.in_place)
        } else {
            let spill = (!reply.spill.is_null()).then_some(reply.spill);
            self.answer_written(index, piece, block.used, spill, reply.len)
        };
        let closes = block.flags & NET_CLOSE != 0 || (is_last && (used == 0 || left == 0));
        if closes {
            self.close_stream(index);
        }
        // What is left is shown again at once if the handler goes piece by piece, and else with more.
        !closes && (left == 0 || used > 0 || self.join_pieces(index))
    }

    fn hand_piece(&mut self, index: u32, piece: Piece, hand: [u64; 3]) {
        let known = &mut self.connections[index as usize];
        known.is_handed = true;
        let (port, connection, from) = (known.port, Some(index), Address::new(&[]));
        let Piece { lease, start, len } = piece;
        self.hand(lease, Handed { port, connection, from, start, len, seat: None }, hand);
    }

    /// Send the first bytes of a piece back; how many, and how many are left.
    fn answer_in_place(&mut self, index: u32, piece: Piece, used: usize) -> (usize, usize) {
        let Piece { lease, start, len } = piece;
        let rest = self.put_apart(index, &lease, start + used, len - used);
        self.answer(index, Bytes::Buffer(lease), [start, used]);
        self.keep(index, rest);
        (used, len - used)
    }

    /// Send what was written behind a piece, or in a spill, and keep what is not used up of it.
    fn answer_written(
        &mut self,
        index: u32,
        piece: Piece,
        used: usize,
        spill: Option<*mut u8>,
        written: usize,
    ) -> (usize, usize) {
        let Piece { lease, start, len } = piece;
        let left = len - used;
        match spill {
            None if written > 0 => {
                let rest = self.put_apart(index, &lease, start + used, left);
                self.answer(index, Bytes::Buffer(lease), [start + len, written]);
                self.keep(index, rest);
            }
            _ => {
                if let Some(spill) = spill {
                    self.answer(index, Bytes::Spill(spill), [0, written]);
                }
                self.keep(index, Some(Piece { lease, start: start + used, len: left }));
            }
        }
        (used, left)
    }

    /// Copy what is left of a piece whose buffer is about to be sent from into one of its own.
    fn put_apart(&mut self, index: u32, from: &Lease, start: usize, len: usize) -> Option<Piece> {
        if len == 0 {
            return None;
        }
        let Some(lease) = self.buffers.take() else {
            self.cut(index);
            return None;
        };
        self.buffers.copy(from, [start, len], &lease, 0);
        add(&self.tally(self.connections[index as usize].port).joined, len as u64);
        Some(Piece { lease, start: 0, len })
    }

    /// It is to be shown again.
    pub(super) fn keep(&mut self, index: u32, piece: Option<Piece>) {
        let Some(piece) = piece else { return };
        let known = &mut self.connections[index as usize];
        if piece.len == 0 || known.life != Life::Open {
            return self.buffers.put(piece.lease);
        }
        known.pieces.push_front(piece);
    }

    /// The handler has left all of the first piece: put it and the next into one buffer. False: the next
    /// has not come.
    fn join_pieces(&mut self, index: u32) -> bool {
        let known = &mut self.connections[index as usize];
        let tally = self.buffers.tally(known.port as usize);
        if known.pieces.len() < 2 {
            if known.pieces.front().is_some_and(|piece| piece.len == BUFFER_LEN) {
                add(&tally.too_long, 1);
                self.cut(index);
            }
            return false;
        }
        let first = known.pieces.pop_front();
        let Some((first, mut next)) = first.zip(known.pieces.pop_front()) else { return false };
        let Piece { lease, start, len } = first;
        let mut first = match self.buffers.alone(lease, [start, len]) {
            Ok((lease, start)) => Piece { lease, start, len },
            Err(lease) => {
                self.buffers.put(lease);
                self.buffers.put(next.lease);
                self.cut(index);
                return false;
            }
        };
        let taken = next.len.min(BUFFER_LEN - first.len);
        if first.start + first.len + taken > BUFFER_LEN {
            self.buffers.copy(&first.lease, [first.start, first.len], &first.lease, 0);
            first.start = 0;
        }
        let end = first.start + first.len;
        self.buffers.copy(&next.lease, [next.start, taken], &first.lease, end);
        add(&tally.joined, taken as u64);
        (first.len, next.start, next.len) =
            (first.len + taken, next.start + taken, next.len - taken);
        let is_full = taken == 0;
        self.keep(index, Some(next));
        self.keep(index, Some(first));
        if is_full {
            add(&tally.too_long, 1);
            self.cut(index);
        }
        !is_full
    }

    /// Send, behind what waits already.
    pub(super) fn answer(&mut self, index: u32, bytes: Bytes, [start, len]: [usize; 2]) {
        let known = &self.connections[index as usize];
        let (port, connection) = (known.port, Some(index));
        let sending = Sending { bytes, start, len, each: len, port, connection, to: None };
        if len == 0 || matches!(known.life, Life::Cut) {
            return self.put_away(sending);
        }
        add(&self.tally(port).replied, 1);
        self.queue(index, sending);
    }

    pub(super) fn queue(&mut self, index: u32, sending: Sending) {
        match self.send(sending) {
            None => self.cut(index),
            Some(place) => {
                self.connections[index as usize].output.push_back(place);
                self.send_next(index);
            }
        }
    }

    fn send_next(&mut self, index: u32) {
        let known = &self.connections[index as usize];
        let ready = !known.is_sending && !matches!(known.life, Life::Cut | Life::Connecting);
        let Some(&place) = known.output.front().filter(|_| ready) else { return };
        let bytes = self.bytes_at(&self.sends[place as usize]);
        // Not the time itself: to ask for it costs as much as a short answer.
        let now_ns = self.expired_ns;
        let known = &mut self.connections[index as usize];
        known.is_sending = true;
        known.progress_ns = now_ns;
        // SAFETY: the bytes are in a buffer, or a spill, that is put away when the driver has told of this
        // place.
        unsafe { self.driver.send(place, known.fd.as_fd(), bytes, None) };
    }

    pub(super) fn stream_sent(&mut self, place: u32, index: u32, result: i32) {
        let Some(known) = self.connections.get_mut(index as usize) else { return };
        known.is_sending = false;
        let sending = &mut self.sends[place as usize];
        let sent = usize::try_from(result).unwrap_or(0).min(sending.len);
        (sending.start, sending.len) = (sending.start + sent, sending.len - sent);
        let is_whole = sending.len == 0;
        let tally = self.buffers.tally(known.port as usize);
        add(&tally.bytes_out, sent as u64);
        if is_whole || result <= 0 || known.life == Life::Cut {
            known.output.pop_front();
            self.finish_send(place);
        }
        if result <= 0 {
            add(&tally.unsent, 1);
            self.cut(index);
        }
        if self.connections.contains(index as usize) {
            self.send_next(index);
            self.after_sending(index);
        }
    }

    /// There may be room for more, or nothing left to send.
    fn after_sending(&mut self, index: u32) {
        let limits = self.limits_of(index);
        let known = &self.connections[index as usize];
        let source = if known.is_joined { known.partner } else { Some(index) };
        if let Some(source) = source.filter(|_| known.has_room(limits)) {
            self.go_on(source);
        }
        self.close_when_sent(index);
    }

    /// Another process has answered a piece.
    pub(super) fn stream_answered(
        &mut self,
        index: u32,
        lease: Lease,
        handed: &Handed,
        outcome: Outcome,
    ) {
        self.is_no_longer_handed(index);
        let used = usize::from(outcome.used).min(handed.len);
        let (start, left) = (handed.start + used, handed.len - used);
        if left > 0 && outcome.spill == 0 {
            let rest = self.put_apart(index, &lease, start, left);
            self.keep(index, rest);
        }
        match self.answer_bytes(lease, handed, outcome) {
            Err(lease) => {
                add(&self.tally(handed.port).failed, 1);
                self.buffers.put(lease);
                self.cut(index);
            }
            Ok((bytes, extent, rest)) => {
                self.answer(index, bytes, extent);
                if let Some(lease) = rest {
                    self.keep(index, Some(Piece { lease, start, len: left }));
                }
                if outcome.flags & Outcome::CLOSE != 0 {
                    self.close_stream(index);
                }
            }
        }
        // What was left whole is given out again with more only.
        if used > 0 || left == 0 || self.join_pieces(index) {
            self.go_on(index);
        } else if self.connections.get(index as usize).is_some_and(|known| known.has_ended) {
            self.close_stream(index);
        } else {
            self.take_up(index);
        }
        self.forget_if_over(index);
    }

    pub(super) fn is_no_longer_handed(&mut self, index: u32) {
        if let Some(known) = self.connections.get_mut(index as usize) {
            known.is_handed = false;
        }
    }

    /// Close our end once all that was written is sent.
    pub(super) fn close_stream(&mut self, index: u32) {
        let Some(known) = self.connections.get_mut(index as usize) else { return };
        if known.life != Life::Open {
            return;
        }
        known.life = Life::Closing;
        let pieces = std::mem::take(&mut known.pieces);
        pieces.into_iter().for_each(|piece| self.buffers.put(piece.lease));
        self.close_when_sent(index);
    }

    pub(super) fn close_when_sent(&mut self, index: u32) {
        let now_ns = self.sandbox.now_ns();
        let Some(known) = self.connections.get_mut(index as usize) else { return };
        if !known.output.is_empty() {
            return;
        }
        if known.life == Life::Closing {
            listen::end_sending(&known.fd);
            known.life = Life::Lingering(now_ns + LINGER_NS);
            known.lingers = true;
            self.lingering += 1;
            let is_last = known.has_ended;
            if !is_last {
                self.receive_stream(index);
            }
        } else if known.life == Life::Open && known.end_wanted && !known.end_sent {
            listen::end_sending(&known.fd);
            known.end_sent = true;
        }
        let Some(known) = self.connections.get_mut(index as usize) else { return };
        if known.end_sent && known.has_ended && known.pieces.is_empty() {
            known.life = Life::Cut;
        }
        self.forget_if_over(index);
    }

    /// End it at once, and the one that it is joined to.
    pub(super) fn cut(&mut self, index: u32) {
        let Some(known) = self.connections.get_mut(index as usize) else { return };
        if known.life == Life::Cut {
            return;
        }
        known.life = Life::Cut;
        listen::reset_on_close(&known.fd);
        // Wakes what is under way.
        listen::end_both(&known.fd);
        let pieces = std::mem::take(&mut known.pieces);
        let under_way = usize::from(known.is_sending);
        let output = known.output.split_off(under_way.min(known.output.len()));
        let partner = known.partner;
        pieces.into_iter().for_each(|piece| self.buffers.put(piece.lease));
        output.into_iter().for_each(|place| self.finish_send(place));
        partner.into_iter().for_each(|partner| self.cut(partner));
        self.show_seated(index);
        self.forget_if_over(index);
    }

    pub(super) fn cut_connections_of(&mut self, number: u32) {
        let of = |(index, one): (usize, &Connection)| (one.port == number).then_some(index as u32);
        let all: Vec<u32> = self.connections.iter().filter_map(of).collect();
        all.into_iter().for_each(|index| self.cut(index));
    }

    /// Try those again that could not be shown.
    pub(super) fn retry(&mut self) {
        for index in std::mem::take(&mut self.retries) {
            if let Some(known) = self.connections.get_mut(index as usize) {
                (known.is_retried, known.waits_for_share) = (false, false);
                self.go_on(index);
            }
        }
    }

    /// It may be over: looked at when the event that is being handled is through.
    pub(super) fn forget_if_over(&mut self, index: u32) {
        self.over.push(index);
    }

    pub(super) fn forget_those_over(&mut self) {
        while let Some(index) = self.over.pop() {
            self.forget(index);
        }
    }

    /// Show the handler that a connection was cut, if it has not seen its end.
    fn tell_end(&mut self, known: &Connection) {
        let is_served =
            self.ports[known.port as usize].as_ref().is_some_and(|port| !port.is_closing);
        if known.end_told || !is_served {
            return;
        }
        // All buffers are out: it is not told then.
        let Some(Piece { lease, start, len }) = self.empty_piece() else { return };
        let (from, to, word) = (known.from, known.to, known.word);
        let flags = NET_ENDED | NET_CUT;
        let asked = Asked { lease: &lease, extent: [start, len], from, to, flags, word };
        if let Some(answer) = self.ask(known.port, &asked) {
            self.sandbox.release(answer.reply.spill);
        }
        self.buffers.put(lease);
    }

    fn forget(&mut self, index: u32) {
        if !self.connections.get(index as usize).is_some_and(Connection::is_over) {
            return;
        }
        let known = self.connections.remove(index as usize);
        if known.is_accepted && known.seat.is_none() && !known.is_joined && !known.is_new {
            self.tell_end(&known);
        }
        self.driver.release(known.fd.as_fd());
        self.lingering -= usize::from(known.lingers);
        known.pieces.into_iter().for_each(|piece| self.buffers.put(piece.lease));
        known.output.into_iter().for_each(|place| self.finish_send(place));
        if let Some(other) = known.partner.and_then(|it| self.connections.get_mut(it as usize)) {
            other.partner = None;
        }
        if known.is_accepted {
            let open = &self.tally(known.port).open;
            open.store(open.load(Relaxed).saturating_sub(1), Relaxed);
        }
        // Its port may have waited for it.
        let number = known.port;
        if self.ports[number as usize].as_ref().is_some_and(|port| port.fd.is_none()) {
            self.forget_port(number);
        }
    }
}
