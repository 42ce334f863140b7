//! Ports that processes serve themselves: each has a *seat*, a queue of what is for it, and takes the
//! buffers by their names. A datagram goes to one of them in turn; a connection stays with the one that
//! it was given to when it was accepted, and ends with it.

use ext_api::pool::{Ask, Item, Outcome, Piece, Seat};

use super::driver::Driver;
use super::scarce::PIECES_MAX;
use super::streams::Life;
use super::{Engine, Handed, SHARE, Sandbox, add};
use crate::address::Address;
use crate::buffers::{FOR_GOOD, Lease};

/// Buffers that one process may have of a port.
const SEAT_SHARE: usize = SHARE / 2;

/// A process that serves a port itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seated {
    port: u32,
    /// Buffers that the process has, or is about to.
    out: usize,
}

impl<D: Driver, S: Sandbox> Engine<D, S> {
    /// Have the process that has seat `seat` serve port `number`, too.
    pub fn sit(&mut self, number: usize, seat: usize) {
        // A successor says once more what its predecessor has said.
        if self.seated.get(seat).is_some_and(Option::is_some) {
            return;
        }
        let (Some(Some(port)), Some(place)) = (self.ports.get_mut(number), self.buffers.seat(seat))
        else {
            return;
        };
        // Whatever it has asked of a worker before this one, that one's connections are gone.
        place.asked(|_, _| {});
        place.pass_over();
        if place.push(Item { packet: 0, connection: Piece(Piece::STREAM | Piece::RESET) }) {
            self.sandbox.wake(&place.word);
        }
        port.seats.push_back(seat as u32);
        self.seated[seat] = Some(Seated { port: number as u32, out: 0 });
        self.seats_taken += 1;
        self.begin(number as u32);
    }

    /// The process of a seat serves no longer, or has ended: its connections are cut.
    pub fn leave(&mut self, seat: usize) {
        let Some(seated) = self.seated.get_mut(seat).and_then(Option::take) else { return };
        self.seats_taken -= 1;
        if let Some(port) = &mut self.ports[seated.port as usize] {
            port.seats.retain(|known| *known as usize != seat);
        }
        let its = |(index, one): (usize, &super::Connection)| {
            (one.seat == Some(seat as u32)).then_some(index as u32)
        };
        let all: Vec<u32> = self.connections.iter().filter_map(its).collect();
        for index in 0..self.handed.len() {
            let seat_of = |handed: Handed| handed.seat.map(|(seat, _)| seat as usize);
            if self.handed[index].and_then(seat_of) != Some(seat) {
                continue;
            }
            if let Some(lease) = self.buffers.take_back_any(index)
                && let Some(handed) = self.handed[index].take()
            {
                self.answered(lease, handed, None);
            }
        }
        for index in all {
            self.connections[index as usize].process_left = true;
            self.cut(index);
            self.forget_if_over(index);
        }
        if let Some(place) = self.buffers.seat(seat) {
            place.pass_over();
        }
        // What a dead one has comes back at the next look.
        self.swept_ns = 0;
        self.forget_those_over();
    }

    pub(super) const fn has_seats(&self) -> bool {
        self.seats_taken != 0
    }

    pub(super) fn has_asks(&self) -> bool {
        if !self.has_seats() {
            return false;
        }
        let seats = self.seated.iter().enumerate().filter(|(_, seated)| seated.is_some());
        let mut seats = seats.filter_map(|(seat, _)| self.buffers.seat(seat));
        seats.any(|seat| seat.has_asks())
    }

    pub(super) fn is_served_by_processes(&self, number: u32) -> bool {
        self.ports[number as usize].as_ref().is_some_and(|port| port.handler == 0)
    }

    /// Whose turn it is; None if nobody takes what it is given.
    pub(super) fn next_seat(&mut self, number: u32) -> Option<u32> {
        let port = self.ports[number as usize].as_mut()?;
        for _ in 0..port.seats.len() {
            port.seats.rotate_left(1);
            let seat = port.seats.back().copied()?;
            // One that takes nothing, or no more, gets no more: the others go on.
            let is_shut = self.buffers.seat(seat as usize).is_none_or(Seat::is_shut);
            if !is_shut && self.seated[seat as usize].is_some_and(|it| it.out < SEAT_SHARE) {
                return Some(seat);
            }
        }
        None
    }

    pub(super) fn seat_datagram(
        &mut self,
        number: u32,
        lease: Lease,
        [start, len]: [usize; 2],
        from: Address,
    ) {
        let Some(seat) = self.next_seat(number) else {
            add(&self.tally(number).dropped, 1);
            return self.buffers.put(lease);
        };
        let seat = Some((seat, Piece(0)));
        self.give(lease, Handed { port: number, connection: None, from, start, len, seat });
    }

    /// Put a buffer into the queue of a seat.
    fn give(&mut self, lease: Lease, mut handed: Handed) {
        let (lease, start) = match self.buffers.alone(lease, [handed.start, handed.len]) {
            Ok(alone) => alone,
            Err(lease) => return self.lose(lease, &handed),
        };
        handed.start = start;
        let Some((seat, piece)) = handed.seat else { return self.buffers.put(lease) };
        let Some(place) = self.buffers.seat(seat as usize) else { return self.buffers.put(lease) };
        let extent = [handed.start as u16, handed.len as u16];
        let index = lease.index();
        let name = self.buffers.hand(lease, extent, handed.from.net(), FOR_GOOD);
        self.handed[index] = Some(handed);
        if let Some(seated) = &mut self.seated[seat as usize] {
            seated.out += 1;
        }
        self.go_out(handed.port);
        add(&self.tally(handed.port).handed, 1);
        if place.push(Item { packet: name.to_raw(), connection: piece }) {
            self.sandbox.wake(&place.word);
        }
    }

    /// Tell the process of a connection what there is to tell.
    pub(super) fn show_seated(&mut self, index: u32) {
        loop {
            let Some(known) = self.connections.get(index as usize) else { return };
            let Some(seat) = known.seat else { return };
            let Some(what) = self.next_for_process(known, seat) else { return };
            // What ends it is always told; the rest waits while the port has its share out.
            if what & Piece::END == 0 && self.is_at_its_share(known.port) {
                return self.wait_for_the_share(index);
            }
            let Some(known) = self.connections.get_mut(index as usize) else { return };
            let piece = if what == 0 { known.pieces.pop_front() } else { self.empty_piece() };
            let Some(piece) = piece else { return self.retry_later(index) };
            let Some(known) = self.connections.get_mut(index as usize) else { return };
            known.is_new &= what & Piece::BEGIN == 0;
            known.room_asked &= what & Piece::ROOM == 0;
            known.end_told |= what & Piece::END != 0;
            known.cut_told |= what & Piece::CUT != 0;
            known.with_process += 1;
            let (port, from) = (known.port, known.from.socket().map(Address::of));
            let from = from.unwrap_or(Address::new(&[]));
            let seat = Some((seat, Piece(u64::from(index) | what | Piece::STREAM)));
            let (start, len) = (piece.start, piece.len);
            let handed = Handed { port, connection: Some(index), from, start, len, seat };
            self.give(piece.lease, handed);
        }
    }

    /// What the process of a connection is to be given next; None as well while it has as much of it as it may:
    /// it goes on when it has given one back. Room to write does not wait for what it has not read, nor does a
    /// connection that it reads for others that it does not.
    fn next_for_process(&self, known: &super::Connection, seat: u32) -> Option<u64> {
        // It has ended: there is nobody to tell.
        let seated = self.seated[seat as usize].filter(|_| !known.process_left)?;
        let most = if seated.out < SEAT_SHARE / 2 { PIECES_MAX } else { 1 };
        let has_room = known.has_room(self.limits(known.port));
        match known.life {
            Life::Cut => (!known.cut_told).then_some(Piece::END | Piece::CUT),
            Life::Open if known.is_new => Some(Piece::BEGIN),
            Life::Open if known.room_asked && has_room && known.with_process <= PIECES_MAX => {
                Some(Piece::ROOM)
            }
            Life::Open if !known.pieces.is_empty() => (known.with_process < most).then_some(0),
            _ => (known.has_ended && !known.end_told).then_some(Piece::END),
        }
    }

    /// A process has given back a buffer of this connection; false if that is another one by now.
    pub(super) fn is_back_from_process(&mut self, index: u32, seat: u32) -> bool {
        if let Some(seated) = &mut self.seated[seat as usize] {
            seated.out = seated.out.saturating_sub(1);
        }
        let known = self.connections.get_mut(index as usize);
        let Some(known) = known.filter(|known| known.seat == Some(seat)) else { return false };
        known.with_process = known.with_process.saturating_sub(1);
        true
    }

    /// A process is through with a buffer that it was given, or dead.
    pub(super) fn seat_answered(
        &mut self,
        lease: Lease,
        handed: Handed,
        piece: Piece,
        outcome: Option<Outcome>,
    ) {
        let lost = outcome.is_none();
        if lost {
            add(&self.tally(handed.port).lost, 1);
        }
        let outcome = outcome.unwrap_or_default();
        let seat = handed.seat.map_or(u32::MAX, |(seat, _)| seat);
        let Some(index) = handed.connection.filter(|_| piece.is(Piece::STREAM)) else {
            if let Some(seated) = self.seated.get_mut(seat as usize).and_then(Option::as_mut) {
                seated.out = seated.out.saturating_sub(1);
            }
            if outcome.answer == 0 && outcome.flags & Outcome::REPLY == 0 {
                return self.buffers.put(lease);
            }
            return self.datagram_answered(lease, &handed, outcome);
        };
        if !self.is_back_from_process(index, seat) {
            self.release_spill(outcome);
            return self.buffers.put(lease);
        }
        if outcome.answer == 0 {
            self.buffers.put(lease);
        } else {
            match self.answer_bytes(lease, &handed, outcome) {
                Ok((bytes, extent, rest)) => {
                    rest.into_iter().for_each(|lease| self.buffers.put(lease));
                    self.answer(index, bytes, extent);
                }
                Err(lease) => self.buffers.put(lease),
            }
        }
        if lost || outcome.flags & Outcome::DROP != 0 {
            self.cut(index);
        } else if outcome.flags & Outcome::CLOSE != 0 {
            self.close_stream(index);
        }
        self.go_on(index);
        self.forget_if_over(index);
    }

    /// What processes have asked for.
    pub(super) fn take_asks(&mut self) {
        if !self.has_asks() {
            return;
        }
        let mut asked = Vec::new();
        for (number, _) in self.seated.iter().enumerate().filter(|(_, it)| it.is_some()) {
            let Some(seat) = self.buffers.seat(number) else { continue };
            seat.asked(|ask, connection| asked.push((number as u32, ask, connection)));
        }
        // What they were through with before they asked comes first.
        self.take_returned();
        for (seat, ask, index) in asked {
            let known = self.connections.get_mut(index as usize);
            let Some(known) = known.filter(|known| known.seat == Some(seat)) else { continue };
            match ask {
                Ask::Room => known.room_asked = true,
                Ask::End => known.end_wanted = true,
                Ask::Close => {
                    known.process_left = true;
                    self.close_stream(index);
                }
            }
            self.go_on(index);
            self.close_when_sent(index);
            self.forget_if_over(index);
        }
    }
}
