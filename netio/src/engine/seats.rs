//! Ports that processes serve themselves: each has a *seat*, a queue of what is for it, and takes the
//! buffers by their names. A datagram goes to one of them in turn; a connection stays with the one that
//! it was given to when it was accepted, and ends with it.

use ext_api::pool::{Ask, Item, Outcome, Piece};

use super::driver::Driver;
use super::streams::{Life, PIECES_MAX};
use super::{Bytes, Engine, Handed, Sandbox, add};
use crate::address::Address;
use crate::buffers::{FOR_GOOD, Lease};

/// A process that serves a port itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seated {
    port: u32,
}

impl<D: Driver, S: Sandbox> Engine<D, S> {
    /// Have the process that has seat `seat` serve port `number`, too.
    pub fn sit(&mut self, number: usize, seat: usize) {
        // A successor says once more what its predecessor has said.
        if self.seated.get(seat).is_some_and(Option::is_some) {
            return;
        }
        let is_first = matches!(self.ports.get(number), Some(Some(port)) if port.seats.is_empty());
        let (Some(Some(port)), Some(_)) = (self.ports.get_mut(number), self.buffers.seat(seat))
        else {
            return;
        };
        port.seats.push_back(seat as u32);
        self.seated[seat] = Some(Seated { port: number as u32 });
        if is_first {
            self.begin(number as u32);
        }
    }

    /// The process of a seat serves no longer, or has ended: its connections are cut.
    pub fn leave(&mut self, seat: usize) {
        let Some(seated) = self.seated.get_mut(seat).and_then(Option::take) else { return };
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
        all.into_iter().for_each(|index| self.cut(index));
        // What a dead one has comes back at the next look.
        self.swept_ns = 0;
        self.forget_those_over();
    }

    pub(super) fn has_seats(&self) -> bool {
        self.seated.iter().any(Option::is_some)
    }

    pub(super) fn has_asks(&self) -> bool {
        let seats = self.seated.iter().enumerate().filter(|(_, seated)| seated.is_some());
        let mut seats = seats.filter_map(|(seat, _)| self.buffers.seat(seat));
        seats.any(|seat| seat.has_asks())
    }

    pub(super) fn is_served_by_processes(&self, number: u32) -> bool {
        self.ports[number as usize].as_ref().is_some_and(|port| port.handler == 0)
    }

    /// Whose turn it is.
    pub(super) fn next_seat(&mut self, number: u32) -> Option<u32> {
        let port = self.ports[number as usize].as_mut()?;
        port.seats.rotate_left(usize::from(!port.seats.is_empty()));
        port.seats.back().copied()
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
    fn give(&mut self, lease: Lease, handed: Handed) {
        let Some((seat, piece)) = handed.seat else { return self.buffers.put(lease) };
        let Some(place) = self.buffers.seat(seat as usize) else { return self.buffers.put(lease) };
        let extent = [handed.start as u16, handed.len as u16];
        let index = lease.index();
        let name = self.buffers.hand(lease, extent, handed.from.net(), FOR_GOOD);
        self.handed[index] = Some(handed);
        self.go_out(handed.port);
        add(&self.tally(handed.port).handed, 1);
        if place.push(Item { packet: name.to_raw(), connection: piece }) {
            self.sandbox.wake(&place.word);
        }
    }

    /// Tell the process of a connection what there is to tell.
    pub(super) fn show_seated(&mut self, index: u32) {
        loop {
            let Some(known) = self.connections.get_mut(index as usize) else { return };
            let Some(seat) = known.seat else { return };
            // It has ended: there is nobody to tell.
            known.end_told |= self.seated[seat as usize].is_none();
            let is_open = matches!(known.life, Life::Open);
            let has_room = known.has_room();
            let what = if known.is_new && is_open {
                Piece::BEGIN
            } else if is_open && !known.pieces.is_empty() {
                0
            } else if is_open && known.room_asked && has_room {
                Piece::ROOM
            } else if (known.has_ended || known.life == Life::Cut) && !known.end_told {
                if known.life == Life::Cut { Piece::END | Piece::CUT } else { Piece::END }
            } else {
                return;
            };
            if what == 0 && known.with_process >= PIECES_MAX {
                return;
            }
            let piece = if what == 0 { known.pieces.pop_front() } else { self.empty_piece() };
            let Some(piece) = piece else { return self.retries.push(index) };
            let Some(known) = self.connections.get_mut(index as usize) else { return };
            known.is_new &= what & Piece::BEGIN == 0;
            known.room_asked &= what & Piece::ROOM == 0;
            known.end_told |= what & Piece::END != 0;
            known.with_process += 1;
            let (port, from) = (known.port, known.from.socket().map(Address::of));
            let from = from.unwrap_or(Address::new(&[]));
            let seat = Some((seat, Piece(u64::from(index) | what | Piece::STREAM)));
            let (start, len) = (piece.start, piece.len);
            let handed = Handed { port, connection: Some(index), from, start, len, seat };
            self.give(piece.lease, handed);
        }
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
        let Some(index) = handed.connection.filter(|_| piece.is(Piece::STREAM)) else {
            if outcome.answer == 0 && outcome.flags & Outcome::REPLY == 0 {
                return self.buffers.put(lease);
            }
            return self.datagram_answered(lease, &handed, outcome);
        };
        if let Some(known) = self.connections.get_mut(index as usize) {
            known.with_process -= 1;
        }
        if outcome.answer == 0 {
            self.buffers.put(lease);
        } else {
            match self.answer_bytes(lease, &handed, outcome) {
                Ok((bytes, extent, rest)) => {
                    rest.into_iter().for_each(|lease| self.buffers.put(lease));
                    self.answer_seated(index, bytes, extent);
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

    fn answer_seated(&mut self, index: u32, bytes: Bytes, extent: [usize; 2]) {
        if self.connections.contains(index as usize) {
            self.answer(index, bytes, extent);
        } else if let Bytes::Buffer(lease) = bytes {
            self.buffers.put(lease);
        }
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
                Ask::Close => self.close_stream(index),
            }
            self.go_on(index);
            self.close_when_sent(index);
        }
    }
}
