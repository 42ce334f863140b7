//! The ten octets that the kernel puts before a frame of a TAP or packet socket: what is left to be done
//! with it. With them the kernel hands over up to 64 KiB of one connection at once, and leaves checksums
//! of local traffic unmade.

/// Length of the header.
pub const HEADER_LEN: usize = 10;
/// The checksum field holds the pseudo header's sum only.
const NEEDS_CHECKSUM: u8 = 1;
/// Segments of TCP over IPv4, and over IPv6.
const TCP_V4: u8 = 1;
const TCP_V6: u8 = 4;

/// The number of TCP, and where its checksum lies.
const TCP: u8 = 6;
const CHECKSUM_AT: u16 = 16;

/// The header of a frame that is whole as it is.
pub const WHOLE: [u8; HEADER_LEN] = [0; HEADER_LEN];

/// A header that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Do what `header` says is left to be done with `frame`.
///
/// # Errors
/// The header speaks of octets that the frame does not have.
pub fn complete(header: [u8; HEADER_LEN], frame: &mut [u8]) -> Result<(), Malformed> {
    let [flags, _, _, _, _, _, start @ .., offset_low, offset_high] = header;
    if flags & NEEDS_CHECKSUM == 0 {
        return Ok(());
    }
    let start = usize::from(u16::from_le_bytes(start));
    let field = start + usize::from(u16::from_le_bytes([offset_low, offset_high]));
    if field + 2 > frame.len() {
        return Err(Malformed);
    }
    let sum = !sum(&frame[start..], 0);
    // Zero stands for a UDP datagram without a checksum; for the sum both are the same.
    let sum = if sum == 0 { 0xffff } else { sum };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// The header for a frame of TCP without its checksum: the kernel is to make it, and to take the frame for
/// segments with `segment_len` octets each if it has more than these. The checksum field is made to hold
/// what the kernel expects there. None if it is no such frame.
pub fn unfinished(frame: &mut [u8], ip_at: usize, segment_len: u16) -> Option<[u8; HEADER_LEN]> {
    let ip = frame.get_mut(ip_at..)?;
    let (kind, ip_len, protocol) = match ip.first()? >> 4 {
        4 => (TCP_V4, usize::from(ip[0] & 15) * 4, *ip.get(9)?),
        6 => (TCP_V6, 40, *ip.get(6)?),
        _ => return None,
    };
    let tcp_len = ip.len().checked_sub(ip_len)?;
    if protocol != TCP || ip_len < 20 || tcp_len < 20 {
        return None;
    }
    let (head, tcp) = ip.split_at_mut(ip_len);
    let addresses = if kind == TCP_V4 { &head[12..20] } else { &head[8..40] };
    let pseudo = sum(addresses, u64::from(TCP) + tcp_len as u64);
    tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
    let tcp_header_len = usize::from(tcp[12] >> 4) * 4;
    let is_one = segment_len == 0 || tcp_len.saturating_sub(tcp_header_len) <= segment_len.into();
    let (kind, segment_len) = if is_one { (0, 0) } else { (kind, segment_len) };
    let headers = ((ip_at + ip_len + tcp_header_len) as u16).to_le_bytes();
    let size = segment_len.to_le_bytes();
    let start = ((ip_at + ip_len) as u16).to_le_bytes();
    let offset = CHECKSUM_AT.to_le_bytes();
    let [a, b, c, d] = [headers, size, start, offset];
    Some([NEEDS_CHECKSUM, kind, a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]])
}

/// The Internet's checksum, not inverted, with `start` added in.
fn sum(bytes: &[u8], start: u64) -> u16 {
    let mut total = start;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_be_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_be_bytes(last));
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the definition has it.
    fn slow(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn the_sum_is_the_definition_s() {
        let bytes: Vec<u8> = (0..999u32).map(|at| ((at * 7919) >> 3) as u8).collect();
        for len in 0..bytes.len() {
            assert_eq!(sum(&bytes[..len], 0), slow(&bytes[..len]), "{len}");
        }
    }

    #[test]
    fn a_header_never_reaches_beyond_its_frame() {
        let mut frame = [7u8; 40];
        for start in [0u16, 20, 39, 40, 41, 65_535] {
            for offset in [0u16, 16, 19, 20, 65_535] {
                let [s, o] = [start.to_le_bytes(), offset.to_le_bytes()];
                let header = [1, 0, 0, 0, 0, 0, s[0], s[1], o[0], o[1]];
                let fits = usize::from(start) + usize::from(offset) + 2 <= frame.len();
                assert_eq!(complete(header, &mut frame).is_ok(), fits);
            }
        }
    }

    #[test]
    fn a_completed_checksum_sums_up() {
        let mut frame: Vec<u8> = (0..61).collect();
        complete([1, 0, 0, 0, 0, 0, 20, 0, 16, 0], &mut frame).expect("inside");
        let mut pseudo_taken_out = frame[20..].to_vec();
        // What was in the field before was the pseudo header's sum: here 36, 37.
        pseudo_taken_out.extend([0, 36, 37]);
        assert_eq!(slow(&pseudo_taken_out), 0xffff);
    }

    #[test]
    fn what_is_no_tcp_is_not_segmented() {
        assert_eq!(unfinished(&mut [], 0, 1460), None);
        assert_eq!(unfinished(&mut [0x45; 60], 0, 1460), None);
        let mut tcp = [0x45; 60];
        tcp[9] = TCP;
        assert!(unfinished(&mut tcp, 0, 1460).is_some());
        for len in 0..40 {
            assert_eq!(unfinished(&mut tcp[..len], 0, 1460), None);
        }
        assert_eq!(unfinished(&mut tcp, 14, 1460), None);
        assert_eq!(unfinished(&mut tcp, 61, 1460), None);
    }

    #[test]
    fn a_short_frame_stays_one() {
        let mut tcp = [0x45; 60];
        (tcp[9], tcp[32]) = (TCP, 0x50);
        let kind = |len| unfinished(&mut tcp.clone(), 0, len).expect("TCP")[1];
        assert_eq!([kind(0), kind(20), kind(19)], [0, 0, TCP_V4]);
    }
}
