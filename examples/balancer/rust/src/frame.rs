//! Frames: what they are, and how they are written anew.

use std::net::Ipv4Addr;

use balancer::{TCP, UDP};

/// A hardware address.
pub(crate) type Hardware = [u8; 6];

/// Where parts of a frame lie.
const SENDER: usize = 6;
const PROTOCOL: usize = 12;
const BODY: usize = 14;
const IPV4: [u8; 2] = [8, 0];
const ARP: [u8; 2] = [8, 6];
/// What an ARP packet of IPv4 over Ethernet begins with.
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
pub(crate) const ARP_LEN: usize = 42;
const ICMP: u8 = 1;
const ICMP_LEN: usize = 8;
const UNREACHABLE: u8 = 3;
const IP_LEN_MIN: usize = 20;
/// The flag of TCP that ends a connection at once.
const RESET: u8 = 4;

/// One end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) hardware: Hardware,
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
}

/// What matters of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Who asks who has an address.
    ArpRequest {
        asker: (Hardware, Ipv4Addr),
        wanted: Ipv4Addr,
    },
    /// Who has it.
    ArpAnswer {
        from: (Hardware, Ipv4Addr),
    },
    /// A packet of TCP or UDP.
    Packet(Packet),
    /// A packet from this port has not arrived at `by`.
    Unreachable {
        by: Ipv4Addr,
        port: u16,
    },
    Other,
}

/// A packet of TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) from: End,
    pub(crate) to: (Ipv4Addr, u16),
    pub(crate) protocol: u8,
    /// It ends a connection.
    pub(crate) resets: bool,
    /// Where the header of TCP or UDP lies, and the packet's end.
    payload: usize,
    end: usize,
}

fn octets<const LEN: usize>(frame: &[u8], at: usize) -> Option<[u8; LEN]> {
    frame.get(at..)?.first_chunk().copied()
}

fn word(frame: &[u8], at: usize) -> Option<u16> {
    octets(frame, at).map(u16::from_be_bytes)
}

fn address(frame: &[u8], at: usize) -> Option<Ipv4Addr> {
    octets::<4>(frame, at).map(Ipv4Addr::from)
}

/// What a frame is; whoever sent it may have written anything.
pub(crate) fn read(frame: &[u8]) -> Frame {
    let read = match octets(frame, PROTOCOL) {
        Some(ARP) => arp(frame),
        Some(IPV4) => packet(frame),
        _ => None,
    };
    read.unwrap_or(Frame::Other)
}

fn arp(frame: &[u8]) -> Option<Frame> {
    let is_known = octets(frame, BODY)? == ARP_HEAD;
    let from = (octets(frame, BODY + 8)?, address(frame, BODY + 14)?);
    let wanted = address(frame, BODY + 24)?;
    match word(frame, BODY + 6)? {
        1 if is_known => Some(Frame::ArpRequest { asker: from, wanted }),
        2 if is_known => Some(Frame::ArpAnswer { from }),
        _ => None,
    }
}

fn packet(frame: &[u8]) -> Option<Frame> {
    let (payload, end) = extent(frame, BODY)?;
    // Only the first fragment has ports; others could not follow it.
    let is_fragment = word(frame, BODY + 6)? & 0x3fff != 0;
    let (protocol, from) = (*frame.get(BODY + 9)?, address(frame, BODY + 12)?);
    let smallest = match protocol {
        TCP => 20,
        UDP => 8,
        ICMP => ICMP_LEN,
        _ => return None,
    };
    if is_fragment || payload + smallest > end {
        return None;
    }
    if protocol == ICMP {
        return unreachable(frame, payload, from);
    }
    Some(Frame::Packet(Packet {
        from: End { hardware: octets(frame, SENDER)?, address: from, port: word(frame, payload)? },
        to: (address(frame, BODY + 16)?, word(frame, payload + 2)?),
        protocol,
        resets: protocol == TCP && frame.get(payload + 13)? & RESET != 0,
        payload,
        end,
    }))
}

/// Where the payload of the IP packet at `at` lies, and the packet's end; None if these cannot be.
fn extent(frame: &[u8], at: usize) -> Option<(usize, usize)> {
    let first = *frame.get(at)?;
    let (header, len) = (usize::from(first & 0xf) * 4, usize::from(word(frame, at + 2)?));
    let is_sound = first >> 4 == 4 && header >= IP_LEN_MIN && header <= len;
    (is_sound && at + len <= frame.len()).then_some((at + header, at + len))
}

/// What an ICMP message says has not arrived: it ends with the beginning of that.
fn unreachable(frame: &[u8], icmp: usize, by: Ipv4Addr) -> Option<Frame> {
    let quoted = icmp + ICMP_LEN;
    let header = usize::from(*frame.get(quoted)? & 0xf) * 4;
    let is_it = *frame.get(icmp)? == UNREACHABLE && header >= IP_LEN_MIN;
    let port = word(frame, quoted + header)?;
    is_it.then_some(Frame::Unreachable { by, port })
}

/// Send a packet from one end to another: addresses, ports and checksums are written anew. The whole sums
/// are made: who sends over a virtual interface leaves them to hardware that is not there.
pub(crate) fn rewrite(frame: &mut [u8], packet: &Packet, from: End, to: End) {
    frame[..SENDER].copy_from_slice(&to.hardware);
    frame[SENDER..PROTOCOL].copy_from_slice(&from.hardware);
    frame[BODY + 12..BODY + 16].copy_from_slice(&from.address.octets());
    frame[BODY + 16..BODY + 20].copy_from_slice(&to.address.octets());
    let Packet { payload, end, protocol, .. } = *packet;
    frame[payload..payload + 2].copy_from_slice(&from.port.to_be_bytes());
    frame[payload + 2..payload + 4].copy_from_slice(&to.port.to_be_bytes());
    put_sum(frame, BODY + 10, (BODY, payload), 0);
    let at = payload + if protocol == TCP { 16 } else { 6 };
    let pseudo = sum(&frame[BODY + 12..BODY + 20]) + u64::from(protocol) + (end - payload) as u64;
    put_sum(frame, at, (payload, end), pseudo);
    if protocol == UDP && frame[at..at + 2] == [0, 0] {
        // Which would mean that there is none.
        frame[at..at + 2].copy_from_slice(&[0xff, 0xff]);
    }
}

/// Words, added up; an odd octet is the first of a word.
fn sum(octets: &[u8]) -> u64 {
    let (pairs, rest) = octets.as_chunks::<2>();
    let whole: u64 = pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum();
    whole + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

/// Write the sum of a part, and of what is no part of it, to `at`.
fn put_sum(frame: &mut [u8], at: usize, (start, end): (usize, usize), more: u64) {
    frame[at..at + 2].fill(0);
    let mut total = sum(&frame[start..end]) + more;
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    frame[at..at + 2].copy_from_slice(&(!(total as u16)).to_be_bytes());
}

/// A frame of ARP: a request if it goes to all.
pub(crate) fn arp_frame(
    from: (Hardware, Ipv4Addr),
    to: (Option<Hardware>, Ipv4Addr),
) -> [u8; ARP_LEN] {
    let mut frame = [0; ARP_LEN];
    let operation = if to.0.is_none() { 1 } else { 2 };
    frame[..SENDER].copy_from_slice(&to.0.unwrap_or([0xff; 6]));
    frame[SENDER..PROTOCOL].copy_from_slice(&from.0);
    frame[PROTOCOL..BODY].copy_from_slice(&ARP);
    frame[BODY..BODY + 6].copy_from_slice(&ARP_HEAD);
    frame[BODY + 7] = operation;
    frame[BODY + 8..BODY + 14].copy_from_slice(&from.0);
    frame[BODY + 14..BODY + 18].copy_from_slice(&from.1.octets());
    frame[BODY + 18..BODY + 24].copy_from_slice(&to.0.unwrap_or([0; 6]));
    frame[BODY + 24..].copy_from_slice(&to.1.octets());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: End =
        End { hardware: [2, 0, 0, 0, 0, 1], address: Ipv4Addr::new(10, 0, 0, 1), port: 77 };
    const OTHER: End =
        End { hardware: [2, 0, 0, 0, 0, 2], address: Ipv4Addr::new(10, 0, 0, 2), port: 99 };

    /// A datagram that says "odd", behind which the frame goes on.
    fn datagram() -> Vec<u8> {
        let mut frame = vec![0; BODY + IP_LEN_MIN + 8 + 3 + 5];
        frame[PROTOCOL..BODY].copy_from_slice(&IPV4);
        frame[BODY] = 0x45;
        frame[BODY + 3] = 31;
        frame[BODY + 8] = 64;
        frame[BODY + 9] = UDP;
        frame[BODY + 25] = 11;
        frame[BODY + 28..BODY + 31].copy_from_slice(b"odd");
        frame
    }

    fn as_packet(frame: &[u8]) -> Packet {
        let Frame::Packet(packet) = read(frame) else { panic!("{frame:?}") };
        packet
    }

    #[test]
    fn what_is_written_is_read() {
        let mut frame = datagram();
        let packet = as_packet(&frame);
        rewrite(&mut frame, &packet, ONE, OTHER);
        let packet = as_packet(&frame);
        assert_eq!((packet.from, packet.to), (ONE, (OTHER.address, OTHER.port)));
        // A part with its right sum adds up to nothing.
        let folded = |mut total: u64| {
            while total > 0xffff {
                total = (total & 0xffff) + (total >> 16);
            }
            total
        };
        assert_eq!(folded(sum(&frame[BODY..BODY + 20])), 0xffff);
        let pseudo = sum(&frame[BODY + 12..BODY + 20]) + u64::from(UDP) + 11;
        assert_eq!(folded(sum(&frame[BODY + 20..BODY + 31]) + pseudo), 0xffff);
        let asks = arp_frame((ONE.hardware, ONE.address), (None, OTHER.address));
        let asker = (ONE.hardware, ONE.address);
        assert_eq!(read(&asks), Frame::ArpRequest { asker, wanted: OTHER.address });
        let answers = arp_frame(asker, (Some(OTHER.hardware), OTHER.address));
        assert_eq!(read(&answers), Frame::ArpAnswer { from: asker });
    }

    #[test]
    fn whatever_comes_is_something() {
        let frame = datagram();
        for len in 0..frame.len() {
            for at in 0..len {
                for value in [0, 1, 0x41, 0x4f, 0x7f, 0xff] {
                    let mut changed = frame[..len].to_vec();
                    changed[at] = value;
                    if let Frame::Packet(packet) = read(&changed) {
                        rewrite(&mut changed, &packet, ONE, OTHER);
                    }
                }
            }
        }
        assert_eq!(read(&frame[..BODY + 30]), Frame::Other, "its end is missing");
    }
}
