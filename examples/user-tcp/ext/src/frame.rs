//! As much of Ethernet and IPv4 as the guard looks at. Whatever comes is looked at through `get`: a handler must
//! not fail for it.

use std::net::Ipv4Addr;

const ETHERNET_LEN: usize = 14;
const IPV4: [u8; 2] = [8, 0];
const ICMP: u8 = 1;
const TCP: u8 = 6;
const ECHO_REQUEST: [u8; 2] = [8, 0];
const SYN: u8 = 2;
const ACK: u8 = 16;

/// What a frame is.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// An echo request, whose IP header has no options.
    Ping {
        /// For whom.
        to: Ipv4Addr,
    },
    /// The first segment of a connection over IPv4.
    Opening {
        /// To which port.
        port: u16,
    },
    /// Nothing that the guard cares for.
    Other,
}

/// What `frame` is.
#[must_use]
pub fn read(frame: &[u8]) -> Frame {
    look(frame).unwrap_or(Frame::Other)
}

fn look(frame: &[u8]) -> Option<Frame> {
    let (head, packet) = frame.split_at_checked(ETHERNET_LEN)?;
    let (first, is_first_piece) =
        (*packet.first()?, packet.get(6..8)? == [0, 0] || packet[6..8] == [0x40, 0]);
    if head[12..] != IPV4 || first >> 4 != 4 || !is_first_piece {
        return None;
    }
    let body = packet.get(usize::from(first & 15) * 4..)?;
    match *packet.get(9)? {
        ICMP if first == 0x45 && body.get(..2)? == ECHO_REQUEST && body.len() >= 8 => {
            let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            Some(Frame::Ping { to: to.into() })
        }
        TCP if body.get(13)? & (SYN | ACK) == SYN => {
            Some(Frame::Opening { port: u16::from_be_bytes([body[2], body[3]]) })
        }
        _ => None,
    }
}

/// Turn a ping into its answer where it lies. Swapping addresses leaves the header's checksum as it is.
///
/// # Panics
/// It is none.
pub fn answer_ping(frame: &mut [u8]) {
    let (hardware, packet) = frame.split_at_mut(ETHERNET_LEN);
    swap(&mut hardware[..12]);
    swap(&mut packet[12..20]);
    let icmp = &mut packet[20..];
    icmp[0] = 0;
    // The word with the type is smaller by 0x0800 now: its sum's complement is as much larger.
    let sum = u16::from_be_bytes([icmp[2], icmp[3]]);
    let (sum, carry) = sum.overflowing_add(0x0800);
    icmp[2..4].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
}

/// Let both halves change places.
fn swap(both: &mut [u8]) {
    let (one, other) = both.split_at_mut(both.len() / 2);
    one.swap_with_slice(other);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ping from 10.0.0.1 to 10.0.0.2, with a sum over its eight octets.
    fn ping() -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        frame.extend([0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([8, 0, 0xf7, 0xf8, 0, 1, 0, 6]);
        frame
    }

    #[test]
    fn a_ping_becomes_its_answer() {
        let mut frame = ping();
        assert_eq!(read(&frame), Frame::Ping { to: [10, 0, 0, 2].into() });
        answer_ping(&mut frame);
        assert_eq!(frame[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        assert_eq!(frame[26..34], [10, 0, 0, 2, 10, 0, 0, 1]);
        assert_eq!(frame[34..], [0, 0, 0xff, 0xf8, 0, 1, 0, 6]);
        assert_eq!(read(&frame), Frame::Other, "an answer is not answered");
    }

    #[test]
    fn what_is_cut_off_or_a_later_piece_is_nothing_of_ours() {
        let frame = ping();
        for len in 0..frame.len() {
            assert_eq!(read(&frame[..len]), Frame::Other, "{len}");
        }
        let mut piece = ping();
        piece[21] = 9;
        assert_eq!(read(&piece), Frame::Other);
    }

    #[test]
    fn only_what_opens_a_connection_is_an_opening() {
        let mut frame = ping();
        frame[23] = TCP;
        frame.truncate(34);
        frame.extend([0x12, 0x34, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, SYN, 0, 0, 0, 0, 0, 0]);
        assert_eq!(read(&frame), Frame::Opening { port: 81 });
        frame[47] = SYN | ACK;
        assert_eq!(read(&frame), Frame::Other);
        frame[47] = ACK;
        assert_eq!(read(&frame), Frame::Other);
    }
}
