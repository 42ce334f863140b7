//! Datagrams and frames: each is asked about once, and answered, sent on, handed over or dropped.
//!
//! One that is sent on goes by a *flow*, a socket of its own for its sender, so that what comes back
//! finds the way: flows end when nothing has used them for a while.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use ext_api::abi::{NET_FORWARD, NET_HAND, NET_REPLY, NET_REPLY_IN_PLACE, NetAddress};
use ext_api::limits::PACKET_LEN_MAX;
use ext_api::pool::Outcome;

use super::batch::{
    BATCH, BATCH_MIN, Batch, Datagram, SEGMENT_MAX, SEGMENTS_LEN_MAX, SEGMENTS_MAX,
};
use super::driver::{Driver, Source};
use super::{Answer, Asked, Bytes, Engine, Handed, Kind, Sandbox, Sending, add};
use crate::address::Address;
use crate::buffers::Lease;
use crate::listen;

/// Flows of one port at one time; the one that was used longest ago makes room.
const FLOWS_MAX: usize = 1024;
/// One that nothing has used for so long ends.
const FLOW_NS: u64 = 60_000_000_000;

/// A socket that receives datagrams.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) port: u32,
    /// The kernel receives for it.
    pub(super) is_armed: bool,
    flow: Option<Flow>,
}

/// Whose datagrams go where.
#[derive(Debug)]
struct Flow {
    fd: OwnedFd,
    client: Address,
    used_ns: u64,
    is_closing: bool,
}

/// A datagram that is to be sent when the turn ends.
#[derive(Debug)]
pub(super) struct Outgoing {
    place: u32,
    fd: RawFd,
    is_udp: bool,
}

/// Whose flow, of which port, to where.
pub(super) type FlowKey = (u32, Address, SocketAddr);

impl Socket {
    pub(super) const fn of_port(port: u32) -> Self {
        Self { port, is_armed: false, flow: None }
    }

    pub(super) const fn is_flow(&self) -> bool {
        self.flow.is_some()
    }

    pub(super) fn flow_fd(&self) -> Option<&OwnedFd> {
        self.flow.as_ref().filter(|flow| !flow.is_closing).map(|flow| &flow.fd)
    }
}

impl Sending {
    /// How many datagrams.
    fn count(&self) -> usize {
        self.len.div_ceil(self.each.max(1)).max(1)
    }

    /// May `next` be one more of its datagrams?
    fn goes_on_with(&self, next: &Self) -> bool {
        let is_behind = match (&self.bytes, &next.bytes) {
            (Bytes::Buffer(own), Bytes::Buffer(its)) => {
                own == its && self.start + self.len == next.start
            }
            _ => false,
        };
        is_behind
            && self.to == next.to
            && (1..=self.each.min(SEGMENT_MAX)).contains(&next.len)
            && self.each <= SEGMENT_MAX
            && self.len.is_multiple_of(self.each)
            && self.count() < SEGMENTS_MAX
            && self.len + next.len <= SEGMENTS_LEN_MAX
    }
}

impl<D: Driver, S: Sandbox> Engine<D, S> {
    /// Datagrams of one sender that have come together, `each` long but for the last. Each has its bytes of the
    /// buffer, which is free again when the last of them is through.
    pub(super) fn datagrams(
        &mut self,
        socket: u32,
        lease: Lease,
        [start, len]: [usize; 2],
        each: usize,
        is_whole: bool,
        from: Address,
    ) {
        let each = each.max(1);
        let last = len.saturating_sub(1) / each * each;
        for at in (0..last).step_by(each) {
            let own = self.buffers.share(lease.index());
            self.datagram(socket, own, [start + at, each], true, from);
        }
        self.datagram(socket, lease, [start + last, len - last], is_whole, from);
        if self.outgoing.len() >= BATCH {
            self.flush();
        }
    }

    fn datagram(
        &mut self,
        socket: u32,
        lease: Lease,
        extent: [usize; 2],
        whole: bool,
        from: Address,
    ) {
        let Some(known) = self.sockets.get(socket as usize) else {
            return self.buffers.put(lease);
        };
        let (number, is_flow) = (known.port, known.is_flow());
        let tally = self.tally(number);
        add(&tally.received, 1);
        add(&tally.bytes_in, extent[1] as u64);
        if !whole || extent[1] > PACKET_LEN_MAX {
            add(&tally.too_long, 1);
            return self.buffers.put(lease);
        }
        if is_flow {
            return self.datagram_back(socket, lease, extent);
        }
        self.down.retain(|down| *down != number);
        let port = self.ports[number as usize].as_ref();
        if port.is_some_and(|port| port.handler == 0) {
            return self.seat_datagram(number, lease, extent, from);
        }
        let to = port.map_or(NetAddress::default(), |port| port.local);
        let asked = Asked { lease: &lease, extent, from: from.net(), to, flags: 0, word: 0 };
        let answer = self.ask(number, &asked);
        self.decide_datagram(number, lease, extent, from, answer);
    }

    fn decide_datagram(
        &mut self,
        number: u32,
        lease: Lease,
        [start, len]: [usize; 2],
        from: Address,
        answer: Option<Answer>,
    ) {
        let tally = self.tally(number);
        let Some(Answer { block, reply, is_again: false }) = answer else {
            return self.buffers.put(lease);
        };
        if block.verdict != NET_REPLY && !reply.spill.is_null() {
            self.sandbox.release(reply.spill);
        }
        match block.verdict {
            NET_REPLY if reply.spill.is_null() => {
                self.reply(number, Bytes::Buffer(lease), [start + len, reply.len], from);
            }
            NET_REPLY => {
                self.buffers.put(lease);
                self.reply(number, Bytes::Spill(reply.spill), [0, reply.len], from);
            }
            NET_REPLY_IN_PLACE => {
                self.reply(number, Bytes::Buffer(lease), [start, block.in_place], from);
            }
            NET_FORWARD => match block.next.socket() {
                Some(server) => self.forward(number, lease, [start, len], from, server),
                None => self.buffers.put(lease),
            },
            NET_HAND => {
                let handed =
                    Handed { port: number, connection: None, from, start, len, seat: None };
                self.hand(lease, handed, block.hand);
            }
            _ => {
                add(&tally.dropped, 1);
                self.buffers.put(lease);
            }
        }
    }

    /// Answer a datagram, or a frame.
    pub(super) fn reply(
        &mut self,
        number: u32,
        bytes: Bytes,
        [start, len]: [usize; 2],
        to: Address,
    ) {
        let is_frame =
            self.ports[number as usize].as_ref().is_some_and(|port| port.kind == Kind::Interface);
        let to = (!is_frame).then_some(to);
        let each = len;
        let sending = Sending { bytes, start, len, each, port: number, connection: None, to };
        add(&self.tally(number).replied, 1);
        self.send_by(None, sending);
    }

    /// Send by a flow's socket, or by the port's own, when this turn ends.
    fn send_by(&mut self, flow: Option<u32>, sending: Sending) {
        let port = self.ports[sending.port as usize].as_ref();
        let own = port.and_then(|port| port.fd.as_ref());
        let other = flow.and_then(|flow| self.sockets.get(flow as usize)?.flow.as_ref());
        let fd = if flow.is_some() { other.map(|flow| &flow.fd) } else { own };
        let Some(fd) = fd.map(AsRawFd::as_raw_fd) else { return self.put_away(sending) };
        let is_udp = port.is_some_and(|port| port.kind != Kind::Interface);
        let Some(sending) = self.go_with_last(fd, sending) else { return };
        if let Some(place) = self.send(sending) {
            self.outgoing.push(Outgoing { place, fd, is_udp });
        }
    }

    /// Have it go together with the one before, if that is of the same buffer, just before it, and to the same: as one
    /// that the kernel cuts up. If not, it is given back.
    fn go_with_last(&mut self, fd: RawFd, sending: Sending) -> Option<Sending> {
        let last = self.outgoing.last().filter(|last| last.is_udp && last.fd == fd);
        let last = last.filter(|_| self.batch.takes_segments());
        let before = last.and_then(|last| self.sends.get_mut(last.place as usize));
        let Some(before) = before.filter(|before| before.goes_on_with(&sending)) else {
            return Some(sending);
        };
        before.len += sending.len;
        self.put_away(sending);
        None
    }

    /// Send what this turn has answered: many datagrams of one socket by one call.
    pub(super) fn flush(&mut self) {
        let outgoing = std::mem::take(&mut self.outgoing);
        let mut rest = &outgoing[..];
        while let Some(first) = rest.first() {
            let together = if self.batch.takes_segments() { usize::MAX } else { 1 };
            let goes =
                |one: &&Outgoing| one.fd == first.fd && self.datagrams_of(one.place) <= together;
            let same = rest.iter().take_while(goes).count().min(BATCH);
            let is_worth_it = same >= BATCH_MIN || same == 1 && self.datagrams_of(first.place) > 1;
            let sent = if is_worth_it { self.send_many(&rest[..same]) } else { 0 };
            if sent == 0 {
                self.send_apart(first);
            }
            rest = &rest[sent.max(1)..];
        }
        self.outgoing = outgoing;
        self.outgoing.clear();
    }

    /// How many datagrams what is being sent is.
    fn datagrams_of(&self, place: u32) -> usize {
        self.sends[place as usize].count()
    }

    /// Have each datagram sent with the next wait.
    fn send_apart(&mut self, outgoing: &Outgoing) {
        let Sending { start, len, each, port, to, .. } = self.sends[outgoing.place as usize];
        let first = &mut self.sends[outgoing.place as usize];
        first.len = len.min(each);
        let Bytes::Buffer(lease) = &first.bytes else {
            return self.send_one(outgoing.place, outgoing.fd);
        };
        let buffer = lease.index();
        self.send_one(outgoing.place, outgoing.fd);
        for at in (each.max(1)..len).step_by(each.max(1)) {
            let bytes = Bytes::Buffer(self.buffers.share(buffer));
            let (start, len) = (start + at, each.min(len - at));
            let one = Sending { bytes, start, len, each: len, port, connection: None, to };
            if let Some(place) = self.send(one) {
                self.send_one(place, outgoing.fd);
            }
        }
    }

    /// How many have gone; none if they have to wait for room.
    fn send_many(&mut self, outgoing: &[Outgoing]) -> usize {
        let mut batch = std::mem::replace(&mut self.batch, Batch::none());
        let datagrams = outgoing.iter().map(|one| {
            let sending = &self.sends[one.place as usize];
            let each = sending.each.max(1);
            Datagram { bytes: self.bytes_at(sending), each, to: sending.to, is_udp: one.is_udp }
        });
        let fd = outgoing.first().map_or(-1, |one| one.fd);
        // SAFETY: the bytes are in buffers and spills that are put away below at the earliest.
        let (sent, went) = unsafe { batch.send(fd, datagrams) };
        self.batch = batch;
        for one in &outgoing[..sent] {
            let sending = &self.sends[one.place as usize];
            let tally = self.tally(sending.port);
            if went {
                add(&tally.bytes_out, sending.len as u64);
            } else {
                add(&tally.unsent, sending.count() as u64);
            }
            self.finish_send(one.place);
        }
        sent
    }

    /// Have it sent with the next wait.
    fn send_one(&mut self, place: u32, fd: RawFd) {
        let sending = &self.sends[place as usize];
        let bytes = self.bytes_at(sending);
        let to = sending.to.as_ref().map(|to| {
            let to = std::ptr::from_ref(to);
            // SAFETY: what is being sent does not move, and stays until the driver says that it is sent.
            unsafe { &*to }
        });
        // SAFETY: a port's or a flow's, which is not closed within a turn.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        // SAFETY: the bytes are in a buffer, or a spill, that is put away when the driver has told of this
        // place; so is the address.
        unsafe { self.driver.send(place, fd, bytes, to) };
    }

    /// Another process has answered.
    pub(super) fn datagram_answered(&mut self, lease: Lease, handed: &Handed, outcome: Outcome) {
        match self.answer_bytes(lease, handed, outcome) {
            Err(lease) => {
                add(&self.tally(handed.port).failed, 1);
                self.buffers.put(lease);
            }
            Ok((bytes, extent, rest)) => {
                rest.into_iter().for_each(|lease| self.buffers.put(lease));
                self.reply(handed.port, bytes, extent, handed.from);
            }
        }
    }

    /// Send a datagram on.
    fn forward(
        &mut self,
        number: u32,
        lease: Lease,
        [start, len]: [usize; 2],
        from: Address,
        server: SocketAddr,
    ) {
        let tally = self.tally(number);
        let Some(flow) = self.flow_for(number, from, server) else {
            add(&tally.unsent, 1);
            return self.buffers.put(lease);
        };
        add(&tally.forwarded, 1);
        let bytes = Bytes::Buffer(lease);
        let (each, port) = (len, number);
        let sending = Sending { bytes, start, len, each, port, connection: None, to: None };
        self.send_by(Some(flow), sending);
    }

    /// What has come back by a flow goes to its client.
    fn datagram_back(&mut self, socket: u32, lease: Lease, extent: [usize; 2]) {
        let now_ns = self.sandbox.now_ns();
        let known = &mut self.sockets[socket as usize];
        let number = known.port;
        let Some(flow) = &mut known.flow else { return self.buffers.put(lease) };
        flow.used_ns = now_ns;
        let client = flow.client;
        self.reply(number, Bytes::Buffer(lease), extent, client);
    }

    fn flow_for(&mut self, number: u32, client: Address, server: SocketAddr) -> Option<u32> {
        let now_ns = self.sandbox.now_ns();
        let flows = &mut self.flows;
        if let Some(&socket) = flows.get(&(number, client, server)) {
            self.sockets[socket as usize].flow.as_mut()?.used_ns = now_ns;
            return Some(socket);
        }
        if flows.len() >= FLOWS_MAX {
            self.end_oldest_flow();
        }
        let fd = listen::connected_udp(server).ok()?;
        let flow = Flow { fd, client, used_ns: now_ns, is_closing: false };
        let socket =
            self.sockets.insert(Socket { port: number, is_armed: false, flow: Some(flow) }) as u32;
        self.flows.insert((number, client, server), socket);
        self.arm_socket(socket);
        Some(socket)
    }

    fn end_oldest_flow(&mut self) {
        let used = |socket: u32| self.sockets[socket as usize].flow.as_ref().map(|it| it.used_ns);
        let oldest = self.flows.iter().min_by_key(|(_, socket)| used(**socket));
        if let Some((key, socket)) = oldest.map(|(key, socket)| (*key, *socket)) {
            self.end_flow(key, socket);
        }
    }

    /// End the flows that nothing has used lately.
    pub(super) fn expire_flows(&mut self, now_ns: u64) {
        let sockets = &self.sockets;
        let is_old = |_, socket: u32| {
            let flow = sockets[socket as usize].flow.as_ref();
            flow.is_none_or(|flow| now_ns.saturating_sub(flow.used_ns) > FLOW_NS)
        };
        let old = chosen(&self.flows, is_old);
        old.into_iter().for_each(|(key, socket)| self.end_flow(key, socket));
    }

    pub(super) fn close_flows_of(&mut self, number: u32) {
        let its = chosen(&self.flows, |key: FlowKey, _| key.0 == number);
        its.into_iter().for_each(|(key, socket)| self.end_flow(key, socket));
    }

    fn end_flow(&mut self, key: FlowKey, socket: u32) {
        self.flows.remove(&key);
        let source = Source::Datagrams(socket);
        if let Some(flow) = &mut self.sockets[socket as usize].flow {
            flow.is_closing = true;
        }
        if self.sockets[socket as usize].is_armed {
            self.driver.stop(source);
        } else {
            self.starved.retain(|starved| *starved != source);
            self.forget_flow(socket);
        }
    }

    /// A flow receives no more. A server that is not there says so by an error, which is read once.
    pub(super) fn flow_stopped(&mut self, socket: u32) {
        let flow = self.sockets[socket as usize].flow.as_ref();
        if flow.is_none_or(|flow| flow.is_closing) {
            self.forget_flow(socket);
        } else {
            self.starved.push(Source::Datagrams(socket));
        }
    }

    fn forget_flow(&mut self, socket: u32) {
        self.flush();
        if let Some(flow) = self.sockets.remove(socket as usize).flow {
            self.driver.release(flow.fd.as_fd());
        }
    }
}

fn chosen(
    flows: &HashMap<FlowKey, u32>,
    which: impl Fn(FlowKey, u32) -> bool,
) -> Vec<(FlowKey, u32)> {
    let all = flows.iter().map(|(key, socket)| (*key, *socket));
    all.filter(|(key, socket)| which(*key, *socket)).collect()
}
