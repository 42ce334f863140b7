//! An extension that is a host of its own on the interface `sbxtest0`: it answers ARP requests and pings
//! for one address that no kernel has.

use ext_api::prelude::*;

#[extension(name = "frames", heap = "2M", kill_safe)]
#[expect(missing_docs, missing_debug_implementations, reason = "for tests only")]
pub mod frames {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use ext_api::net::{Packet, Verdict};
    use ext_api::prelude::*;

    const ADDRESS: [u8; 4] = [10, 88, 0, 9];
    const HARDWARE: [u8; 6] = [2, 0, 0, 88, 0, 9];
    /// Where a frame's protocol lies, and what follows.
    const PROTOCOL: usize = 12;
    const BODY: usize = 14;
    const IPV4: [u8; 2] = [8, 0];
    const ARP: [u8; 2] = [8, 6];

    #[derive(Default)]
    pub struct State {
        /// ARP requests, pings, pings that are to be lost, our own frames, others.
        counts: [AtomicU64; 5],
    }

    /// What a frame is, by its place in the counts.
    #[derive(Clone, Copy, PartialEq)]
    #[repr(u64)]
    enum Seen {
        Arp,
        Ping,
        Unwanted,
        Own,
        Other,
    }

    #[init]
    fn init(_cx: &Cx, _config: Config) -> Result<State, ConfigError> {
        Ok(State::default())
    }

    #[on(packet = "sbxtest0")]
    fn frame(state: &State, packet: &mut Packet<'_>) -> Verdict {
        let seen = what(packet.bytes());
        state.counts[seen as usize].fetch_add(1, Relaxed);
        match seen {
            Seen::Arp => {
                let answer = arp_answer(packet.bytes());
                packet.reply(&answer)
            }
            Seen::Ping => {
                answer_ping(packet.bytes_mut());
                packet.reply_in_place(packet.bytes().len())
            }
            Seen::Unwanted => Verdict::Drop,
            Seen::Own | Seen::Other => Verdict::Pass,
        }
    }

    /// How many frames of a kind have come.
    #[handler]
    fn count(state: &State, kind: u64) -> u64 {
        state.counts.get(kind as usize).map_or(0, |count| count.load(Relaxed))
    }

    /// A handler must not fail whatever comes: everything is looked at through `get`.
    fn what(frame: &[u8]) -> Seen {
        let at = |start: usize, len: usize| frame.get(start..start + len).unwrap_or(&[]);
        if at(6, 6) == HARDWARE {
            return Seen::Own;
        }
        // A request for our address, in words of IPv4 over Ethernet.
        let asks = at(BODY, 8) == [0, 1, 8, 0, 6, 4, 0, 1] && at(BODY + 24, 4) == ADDRESS;
        // A header without options, of ICMP, to us; an echo request.
        let is_icmp = at(BODY, 1) == [0x45] && at(BODY + 9, 1) == [1];
        let pings = is_icmp && at(BODY + 16, 4) == ADDRESS && at(BODY + 20, 2) == [8, 0];
        match at(PROTOCOL, 2) {
            protocol if protocol == ARP && asks => Seen::Arp,
            // With this time to live they are to get no answer.
            protocol if protocol == IPV4 && pings && at(BODY + 8, 1) == [7] => Seen::Unwanted,
            protocol if protocol == IPV4 && pings => Seen::Ping,
            _ => Seen::Other,
        }
    }

    fn arp_answer(request: &[u8]) -> [u8; 42] {
        let mut answer = [0; 42];
        let (hardware, asker) = (&request[6..12], &request[BODY + 8..BODY + 18]);
        answer[..6].copy_from_slice(hardware);
        answer[6..12].copy_from_slice(&HARDWARE);
        answer[PROTOCOL..BODY].copy_from_slice(&ARP);
        answer[BODY..BODY + 8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
        answer[BODY + 8..BODY + 14].copy_from_slice(&HARDWARE);
        answer[BODY + 14..BODY + 18].copy_from_slice(&ADDRESS);
        answer[BODY + 18..].copy_from_slice(asker);
        answer
    }

    /// Turn a ping into its answer where it lies. Swapping addresses leaves the header's checksum as it is.
    fn answer_ping(frame: &mut [u8]) {
        let (to, from) = frame.split_at_mut(6);
        to.copy_from_slice(&from[..6]);
        from[..6].copy_from_slice(&HARDWARE);
        let (from, to) = frame[BODY + 12..BODY + 20].split_at_mut(4);
        from.swap_with_slice(to);
        let icmp = BODY + 20;
        frame[icmp] = 0;
        // The word with the type is smaller by 0x0800 now: its sum's complement is as much larger.
        let sum = u16::from_be_bytes([frame[icmp + 2], frame[icmp + 3]]);
        let (sum, carry) = sum.overflowing_add(0x0800);
        frame[icmp + 2..icmp + 4].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    }
}
