//! Which client is served by which backend: flows, and what was counted for them.
//!
//! A flow's place in the table is also the port that it has towards its backend, so that the way back needs
//! no table of its own. Who it is, and where it goes, is one word: it is there whole or not at all, whenever
//! the process that writes it is killed.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Flows whose clients have the same hash; the one that was used longest ago makes room.
const WAYS: usize = 8;
const SETS: usize = 1024;
/// The port of the first flow.
pub const PORT_FIRST: u16 = 32_768;
/// Ports of flows.
pub const PORTS: u16 = (SETS * WAYS) as u16;
/// Backends at most: one octet of a flow's word.
pub const BACKENDS_MAX: usize = 254;
/// A backend that has refused a flow gets no new ones for so long.
const REST_NS: u64 = 1_000_000_000;
/// Where the backend lies in a flow's word, plus one; below is the client.
const BACKEND_SHIFT: u32 = 56;
const CLIENT: u64 = (1 << BACKEND_SHIFT) - 1;

/// A client's address, port and protocol in a word.
#[must_use]
pub fn client_word(address: Ipv4Addr, port: u16, protocol: u8) -> u64 {
    u64::from(address.to_bits()) << 24 | u64::from(port) << 8 | u64::from(protocol)
}

/// The other way.
#[must_use]
pub fn client_of(word: u64) -> (Ipv4Addr, u16, u8) {
    (Ipv4Addr::from_bits((word >> 24) as u32), (word >> 8) as u16, word as u8)
}

/// See the module.
#[derive(Debug, Default)]
struct Flow {
    /// Client and backend; 0: free.
    word: AtomicU64,
    used_ns: AtomicU64,
    /// The hardware address that its frames come from, and go back to.
    hardware: AtomicU64,
    /// Frames that have come back.
    back: AtomicU64,
}

/// One who serves.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) address: Ipv4Addr,
    is_up: AtomicBool,
    rests_until_ns: AtomicU64,
    there: Count,
    back: Count,
    /// Flows that were to go to it and went elsewhere, or that it has refused.
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Count {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    fn add(&self, len: u64) {
        self.frames.fetch_add(1, Relaxed);
        self.bytes.fetch_add(len, Relaxed);
    }
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Table {
    flows: Box<[Flow]>,
    pub(crate) backends: Box<[Backend]>,
    turn: AtomicU64,
}

impl Table {
    pub(crate) fn new(backends: impl Iterator<Item = Ipv4Addr>) -> Self {
        let backend = |address| Backend {
            address,
            is_up: AtomicBool::new(false),
            rests_until_ns: AtomicU64::new(0),
            there: Count::default(),
            back: Count::default(),
            lost: AtomicU64::new(0),
        };
        Self {
            flows: (0..SETS * WAYS).map(|_| Flow::default()).collect(),
            backends: backends.map(backend).collect(),
            turn: AtomicU64::new(0),
        }
    }

    fn backend_of(&self, word: u64) -> Option<(usize, &Backend)> {
        let index = ((word >> BACKEND_SHIFT) as usize).checked_sub(1)?;
        self.backends.get(index).map(|backend| (index, backend))
    }

    /// The flow at a port.
    fn flow(&self, port: u64) -> Option<&Flow> {
        self.flows.get(usize::try_from(port.checked_sub(u64::from(PORT_FIRST))?).ok()?)
    }

    /// Where a client's frame goes: port and backend.
    pub(crate) fn steer(
        &self,
        client: u64,
        hardware: u64,
        len: u64,
        now_ns: u64,
    ) -> Option<(u16, usize)> {
        let client = client & CLIENT;
        let set = (client.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % SETS;
        let ways = &self.flows[set * WAYS..(set + 1) * WAYS];
        let known = ways.iter().position(|flow| flow.word.load(Relaxed) & CLIENT == client);
        let oldest = || (0..WAYS).min_by_key(|&way| ways[way].used_ns.load(Relaxed));
        let way = known.or_else(oldest)?;
        let flow = &ways[way];
        let word = flow.word.load(Relaxed);
        let former = known.and_then(|_| self.backend_of(word));
        let index = match former.filter(|(_, backend)| backend.is_up.load(Relaxed)) {
            Some((index, _)) => index,
            None => {
                former.iter().for_each(|(_, it)| _ = it.lost.fetch_add(1, Relaxed));
                let index = self.choose(now_ns)?;
                flow.back.store(0, Relaxed);
                flow.word.store((index as u64 + 1) << BACKEND_SHIFT | client, Relaxed);
                index
            }
        };
        flow.hardware.store(hardware, Relaxed);
        flow.used_ns.store(now_ns, Relaxed);
        self.backends[index].there.add(len);
        Some((PORT_FIRST + (set * WAYS + way) as u16, index))
    }

    /// The next backend in turn that takes new flows.
    fn choose(&self, now_ns: u64) -> Option<usize> {
        let turn = self.turn.fetch_add(1, Relaxed) as usize;
        let count = self.backends.len();
        let takes = |index: &usize| {
            let backend = &self.backends[*index];
            backend.is_up.load(Relaxed) && backend.rests_until_ns.load(Relaxed) <= now_ns
        };
        (0..count).map(|more| (turn + more) % count).find(takes)
    }

    /// Whose flow is at `port`, which `backend` answers.
    pub(crate) fn back(&self, port: u64, backend: u64, len: u64, now_ns: u64) -> Option<u64> {
        let flow = self.flow(port)?;
        let word = flow.word.load(Relaxed);
        let (_, known) = self.backend_of(word).filter(|(index, _)| *index as u64 == backend)?;
        known.back.add(len);
        flow.back.fetch_add(1, Relaxed);
        flow.used_ns.store(now_ns, Relaxed);
        Some(word & CLIENT)
    }

    /// The hardware address of that client; 0 if there is no such port.
    pub(crate) fn hardware(&self, port: u64) -> u64 {
        self.flow(port).map_or(0, |flow| flow.hardware.load(Relaxed))
    }

    /// `backend` wants nothing of the flow at `port`. True: it never did, so that the flow is to go
    /// elsewhere with its client's next attempt, and the client need not know.
    pub(crate) fn refused(&self, port: u64, backend: u64, now_ns: u64) -> bool {
        let Some(flow) = self.flow(port) else { return false };
        let word = flow.word.load(Relaxed);
        let known = self.backend_of(word).filter(|(index, _)| *index as u64 == backend);
        let Some((_, known)) = known else { return false };
        // Whoever serves datagrams has no connection that ends so.
        let (_, _, protocol) = client_of(word & CLIENT);
        if protocol == super::TCP && flow.back.load(Relaxed) > 0 {
            return false;
        }
        known.rests_until_ns.store(now_ns + REST_NS, Relaxed);
        known.lost.fetch_add(1, Relaxed);
        flow.word.store(0, Relaxed);
        true
    }

    pub(crate) fn set_up(&self, backend: u64, is_up: bool) {
        let known = usize::try_from(backend).ok().and_then(|index| self.backends.get(index));
        known.iter().for_each(|known| known.is_up.store(is_up, Relaxed));
    }

    /// A line for each backend.
    pub(crate) fn show(&self) -> String {
        let line = |(index, backend): (usize, &Backend)| {
            let its = |flow: &&Flow| {
                self.backend_of(flow.word.load(Relaxed)).is_some_and(|(known, _)| known == index)
            };
            let Backend { address, there, back, lost, .. } = backend;
            format!(
                "{address} {}: {} flows; frames there {}, back {}; bytes there {}, back {}; lost {}",
                if backend.is_up.load(Relaxed) { "up" } else { "down" },
                self.flows.iter().filter(its).count(),
                there.frames.load(Relaxed),
                back.frames.load(Relaxed),
                there.bytes.load(Relaxed),
                back.bytes.load(Relaxed),
                lost.load(Relaxed),
            )
        };
        let lines: Vec<String> = self.backends.iter().enumerate().map(line).collect();
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HARDWARE: u64 = 0x0200_0000_0001;

    fn table() -> Table {
        let table = Table::new([1, 2].into_iter().map(|last| Ipv4Addr::new(10, 0, 0, last)));
        (0..2).for_each(|backend| table.set_up(backend, true));
        table
    }

    fn client(port: u16) -> u64 {
        client_word(Ipv4Addr::new(10, 0, 0, 9), port, super::super::TCP)
    }

    #[test]
    fn a_flow_stays_and_finds_back() {
        let table = table();
        let (port, backend) = table.steer(client(7), HARDWARE, 60, 1).expect("a way");
        assert_eq!(table.steer(client(7), HARDWARE, 60, 2), Some((port, backend)));
        let (other_port, other) = table.steer(client(8), HARDWARE, 60, 3).expect("a way");
        assert_ne!((port, backend), (other_port, other));
        let back = table.back(port.into(), backend as u64, 60, 4);
        assert_eq!((back, table.hardware(port.into())), (Some(client(7)), HARDWARE));
        assert_eq!(table.back(port.into(), other as u64, 60, 4), None, "it is not whose");
        assert_eq!(table.back(1, 0, 60, 4), None);
        assert_eq!(client_of(client(7)), (Ipv4Addr::new(10, 0, 0, 9), 7, super::super::TCP));
    }

    #[test]
    fn who_is_down_or_refuses_gets_nothing() {
        let table = table();
        let (port, backend) = table.steer(client(7), HARDWARE, 60, 1).expect("a way");
        assert!(table.refused(port.into(), backend as u64, 1));
        for index in 0..10 {
            let (_, other) = table.steer(client(index), HARDWARE, 60, 2).expect("a way");
            assert_ne!(other, backend);
        }
        let (port, other) = table.steer(client(7), HARDWARE, 60, 2).expect("a way");
        assert!(table.back(port.into(), other as u64, 60, 2).is_some());
        assert!(!table.refused(port.into(), other as u64, 2), "a connection's end is its own");
        (0..2).for_each(|backend| table.set_up(backend, false));
        assert_eq!(table.steer(client(7), HARDWARE, 60, 2 * REST_NS), None);
        table.set_up(backend as u64, true);
        let moved = table.steer(client(7), HARDWARE, 60, 2 * REST_NS);
        assert_eq!(moved.map(|(_, index)| index), Some(backend));
    }

    #[test]
    fn many_flows_make_room() {
        let table = table();
        for port in 0..u16::MAX {
            let (at, backend) =
                table.steer(client(port), HARDWARE, 60, port.into()).expect("a way");
            let back = table.back(at.into(), backend as u64, 60, port.into());
            assert_eq!(back, Some(client(port)));
        }
    }
}
