//! Connections that are sent on: each is joined to a new one, and what comes of either goes out by the other,
//! from the buffers that it came in.
#![expect(unsafe_code, reason = "hands an address to the driver")]

use std::os::fd::AsFd;

use ext_api::abi::NetAddress;
use ext_api::limits::NET_CONNECTIONS_MAX;

use super::driver::Driver;
use super::streams::{Connection, Life, Piece};
use super::{Bytes, Engine, Sandbox, Sending, add};
use crate::address::Address;
use crate::listen;

impl<D: Driver, S: Sandbox> Engine<D, S> {
    /// Join it to a new connection to `next`.
    pub(super) fn join(&mut self, index: u32, piece: Piece, next: NetAddress) {
        self.keep(index, Some(piece));
        let number = self.connections[index as usize].port;
        let made = next.socket().and_then(|server| {
            let fd = listen::connecting_tcp(server).ok()?;
            Some((fd, Box::new(Address::of(server))))
        });
        let Some((fd, target)) = made.filter(|_| self.connections.len() < NET_CONNECTIONS_MAX)
        else {
            add(&self.tally(number).unsent, 1);
            return self.cut(index);
        };
        let mut other = Connection::new(fd, number, Life::Connecting);
        (other.partner, other.is_joined) = (Some(index), true);
        let address = std::ptr::from_ref(&*target);
        other.target = Some(target);
        let made = self.connections.insert(other) as u32;
        let known = &mut self.connections[index as usize];
        (known.partner, known.is_joined) = (Some(made), true);
        let fd = self.connections[made as usize].fd.as_fd();
        // SAFETY: boxed, and kept by the connection, which is not forgotten while it connects.
        let address = unsafe { &*address };
        // SAFETY: as above.
        unsafe { self.driver.connect(made, fd, address) };
    }

    pub(super) fn connected(&mut self, index: u32, result: i32) {
        let Some(known) = self.connections.get_mut(index as usize) else { return };
        known.is_connecting = false;
        if known.life != Life::Connecting {
            return self.forget_if_over(index);
        }
        if result < 0 {
            add(&self.buffers.tally(known.port as usize).unsent, 1);
            return self.cut(index);
        }
        known.life = Life::Open;
        listen::send_at_once(&known.fd);
        let partner = known.partner;
        self.receive_stream(index);
        partner.into_iter().for_each(|partner| self.go_on(partner));
    }

    /// What has come of `index` goes out by `partner`.
    pub(super) fn pass_on(&mut self, index: u32, partner: u32) {
        let has_room = |engine: &Self| {
            let limits = engine.limits_of(partner);
            let other = engine.connections.get(partner as usize);
            other.is_some_and(|other| other.life == Life::Open && other.has_room(limits))
        };
        while has_room(self) {
            let known = &mut self.connections[index as usize];
            let Some(Piece { lease, start, len }) = known.pieces.pop_front() else { break };
            let port = known.port;
            add(&self.tally(port).forwarded, 1);
            let bytes = Bytes::Buffer(lease);
            let connection = Some(partner);
            self.queue(
                partner,
                Sending { bytes, start, len, each: len, port, connection, to: None },
            );
        }
        let Some(known) = self.connections.get(index as usize) else { return };
        if known.has_ended && known.pieces.is_empty() {
            if let Some(other) = self.connections.get_mut(partner as usize) {
                other.end_wanted = true;
            }
            self.close_when_sent(partner);
            // The other side may have ended first.
            self.close_when_sent(index);
        }
    }
}
