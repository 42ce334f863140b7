//! Which frames open a connection.
//!
//! smoltcp gives a SYN to the first of its sockets that takes it, and one that listens takes any: one that
//! came twice, or late, would open a second connection beside the first between the same ends, whose
//! answers break the first one off. So the host looks at each SYN before. The price: a peer that has
//! forgotten a connection and opens another from the same port waits until the first is given up.

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpEndpoint, IpProtocol, Ipv4Packet, Ipv6Packet,
    TcpPacket,
};

use crate::device::Medium;

/// The ends between which a frame is to open a connection: where it goes, and where it comes from. None if
/// it is to do something else, or makes no sense.
pub(super) fn opens(medium: Medium, frame: &[u8]) -> Option<(IpEndpoint, IpEndpoint)> {
    let packet = match medium {
        Medium::Ip => frame,
        Medium::Ethernet => {
            let frame = EthernetFrame::new_checked(frame).ok()?;
            if !matches!(frame.ethertype(), EthernetProtocol::Ipv4 | EthernetProtocol::Ipv6) {
                return None;
            }
            frame.payload()
        }
    };
    match packet.first()? >> 4 {
        4 => {
            let packet = Ipv4Packet::new_checked(packet).ok()?;
            let is_tcp = packet.next_header() == IpProtocol::Tcp;
            let ends = (packet.dst_addr().into(), packet.src_addr().into());
            if is_tcp { ports(ends, packet.payload()) } else { None }
        }
        6 => {
            let packet = Ipv6Packet::new_checked(packet).ok()?;
            let is_tcp = packet.next_header() == IpProtocol::Tcp;
            let ends = (packet.dst_addr().into(), packet.src_addr().into());
            if is_tcp { ports(ends, packet.payload()) } else { None }
        }
        _ => None,
    }
}

fn ports((to, from): (IpAddress, IpAddress), segment: &[u8]) -> Option<(IpEndpoint, IpEndpoint)> {
    let segment = TcpPacket::new_checked(segment).ok()?;
    let is_opening = segment.syn() && !segment.ack();
    is_opening.then(|| {
        (IpEndpoint::new(to, segment.dst_port()), IpEndpoint::new(from, segment.src_port()))
    })
}
