//! Datagrams that go out by one call, and those of one length to one receiver as one that the kernel cuts up
//! last of all (UDP_SEGMENT): they go through its layers once.
#![expect(unsafe_code, reason = "hands many buffers to one call")]

use std::os::fd::RawFd;

use crate::address::Address;

/// Most of one call.
pub(super) const BATCH: usize = 64;
/// Fewer than these go one by one, with the next wait.
pub(super) const BATCH_MIN: usize = 2;
/// Longest datagram that is sent as a part of a larger one, and most bytes of such a one: less than any
/// usual path carries, and than the kernel takes.
pub(super) const SEGMENT_MAX: usize = 1200;
pub(super) const SEGMENTS_LEN_MAX: usize = 60_000;
/// Most parts of one.
pub(super) const SEGMENTS_MAX: usize = 64;
/// After a refusal so many calls are without.
const WITHOUT: u32 = 10_000;

/// What says how long the parts are: a header and a number of 16 bits, padded.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Segment {
    header: libc::cmsghdr,
    len: u16,
}

/// A datagram that is to go, or several that lie one behind the other.
#[derive(Clone, Copy)]
pub(super) struct Datagram {
    pub(super) bytes: *const [u8],
    /// How long each is, but for the last; 1 at least.
    pub(super) each: usize,
    pub(super) to: Option<Address>,
    /// It is one of UDP.
    pub(super) is_udp: bool,
}

/// What the call is given; made once.
pub(super) struct Batch {
    names: Vec<Address>,
    parts: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
    segments: Vec<Segment>,
    /// Calls that are to be made without segments.
    without: u32,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Batch")
    }
}

impl Batch {
    pub(super) fn new() -> Self {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: plain numbers and null pointers.
        let empty: libc::mmsghdr = unsafe { std::mem::zeroed() };
        let header = libc::cmsghdr {
            // SAFETY: takes a number only.
            cmsg_len: unsafe { libc::CMSG_LEN(size_of::<u16>() as u32) } as usize,
            cmsg_level: libc::SOL_UDP,
            cmsg_type: libc::UDP_SEGMENT,
        };
        Self {
            names: vec![Address::new(&[]); BATCH],
            parts: vec![none; BATCH],
            messages: vec![empty; BATCH],
            segments: vec![Segment { header, len: 0 }; BATCH],
            without: 0,
        }
    }

    /// May datagrams that lie one behind the other go together?
    pub(super) const fn takes_segments(&self) -> bool {
        self.without == 0
    }

    /// In the place of one that is in use.
    pub(super) const fn none() -> Self {
        Self {
            names: Vec::new(),
            parts: Vec::new(),
            messages: Vec::new(),
            segments: Vec::new(),
            without: 0,
        }
    }

    /// Send as many as the kernel takes now, in order; how many that is. An error counts as one that was
    /// taken: it will not be better later. Several that lie one behind the other are not taken then, since some of them
    /// may go by themselves.
    ///
    /// # Safety
    /// The bytes of each can be read.
    pub(super) unsafe fn send(
        &mut self,
        fd: RawFd,
        datagrams: impl Iterator<Item = Datagram> + Clone,
    ) -> (usize, bool) {
        self.without = self.without.saturating_sub(1);
        let messages = self.fill(datagrams.clone());
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let at = self.messages.as_mut_ptr();
        // SAFETY: as many messages, whose names and parts are this value's and whose bytes can be read.
        let sent = unsafe { libc::sendmmsg(fd, at, messages as u32, flags) };
        if let Ok(sent) = usize::try_from(sent) {
            return (self.messages[..sent].iter().map(|it| it.msg_hdr.msg_iovlen).sum(), true);
        }
        let error = std::io::Error::last_os_error().raw_os_error();
        let has_parts = self.messages[0].msg_hdr.msg_controllen != 0;
        if has_parts && matches!(error, Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE)) {
            // Not this way: its path is too narrow, or its device cannot.
            self.without = WITHOUT;
            if datagrams.clone().any(|one| one.bytes.len() > one.each) {
                return (0, false);
            }
            // SAFETY: the same contract.
            let (count, is_sent) = unsafe { self.send(fd, datagrams) };
            // Or nothing can be sent where the first is to go.
            self.without = if is_sent { WITHOUT } else { 0 };
            return (count, is_sent);
        }
        let is_full = matches!(error, Some(libc::EAGAIN | libc::ENOBUFS));
        let is_one = datagrams.take(1).all(|one| one.bytes.len() <= one.each);
        (usize::from(is_one && !is_full), false)
    }

    /// Make messages of them; how many.
    fn fill(&mut self, datagrams: impl Iterator<Item = Datagram>) -> usize {
        let (mut count, mut whole, mut segments, mut is_open) = (0, 0, 0, false);
        for (index, Datagram { bytes, each, to, is_udp }) in datagrams.take(BATCH).enumerate() {
            let (len, pieces) = (bytes.len(), bytes.len().div_ceil(each).max(1));
            self.parts[index].iov_base = bytes.cast::<libc::c_void>().cast_mut();
            self.parts[index].iov_len = len;
            let name = to.unwrap_or(Address::new(&[]));
            let fits = whole + len <= SEGMENTS_LEN_MAX && segments + pieces <= SEGMENTS_MAX;
            let fits = fits && is_open && self.names[count - 1] == name;
            let first = usize::from(if fits { self.segments[count - 1].len } else { 0 });
            // One that is shorter is the last.
            let is_alike = if pieces > 1 { each == first } else { (1..=first).contains(&len) };
            if fits && is_alike {
                self.append(count - 1);
                (whole, segments) = (whole + len, segments + pieces);
                is_open = len.is_multiple_of(first);
                continue;
            }
            self.begin(count, index, name);
            let own = if pieces > 1 { each } else { len };
            self.segments[count].len = own.min(SEGMENT_MAX) as u16;
            if pieces > 1 {
                self.cut_up(count);
            }
            is_open = is_udp && self.without == 0 && (1..=SEGMENT_MAX).contains(&own);
            is_open &= len.is_multiple_of(own);
            (count, whole, segments) = (count + 1, len, pieces);
        }
        count
    }

    /// Begin a message with one part.
    fn begin(&mut self, message: usize, part: usize, name: Address) {
        self.names[message] = name;
        let header = &mut self.messages[message].msg_hdr;
        header.msg_iov = &raw mut self.parts[part];
        header.msg_iovlen = 1;
        (header.msg_control, header.msg_controllen) = (std::ptr::null_mut(), 0);
        (header.msg_name, header.msg_namelen) = match name.len() {
            0 => (std::ptr::null_mut(), 0),
            len => (self.names[message].as_ptr().cast_mut().cast(), len as u32),
        };
    }

    /// The next part belongs to it, too.
    fn append(&mut self, message: usize) {
        let header = &mut self.messages[message].msg_hdr;
        header.msg_iovlen += 1;
        self.cut_up(message);
    }

    /// The kernel is to cut it up.
    fn cut_up(&mut self, message: usize) {
        let header = &mut self.messages[message].msg_hdr;
        header.msg_control = (&raw mut self.segments[message]).cast();
        header.msg_controllen = size_of::<Segment>();
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use super::{Batch, Datagram, WITHOUT};
    use crate::address::Address;

    fn socket() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        socket
    }

    /// What `to` gets of these when they are sent by as few calls as that takes.
    fn gets(batch: &mut Batch, to: &[UdpSocket], datagrams: &[(usize, Vec<u8>)]) {
        let from = socket();
        let addresses: Vec<Address> =
            to.iter().map(|it| Address::of(it.local_addr().expect("bound"))).collect();
        let all = datagrams.iter().map(|(to, bytes)| Datagram {
            bytes: std::ptr::from_ref(&bytes[..]),
            each: bytes.len().max(1),
            to: Some(addresses[*to]),
            is_udp: true,
        });
        // SAFETY: they stay.
        let (sent, went) = unsafe { batch.send(from.as_raw_fd(), all) };
        assert_eq!((sent, went), (datagrams.len(), true));
        for (to_which, bytes) in datagrams {
            let mut got = vec![0; 4096];
            let len = to[*to_which].recv(&mut got).expect("a datagram");
            assert_eq!(&got[..len], &bytes[..]);
        }
    }

    #[test]
    fn each_arrives_as_it_was_whatever_it_went_with() {
        let to = [socket(), socket()];
        let of = |len: usize, seed: usize| vec![(len * 7 + seed) as u8; len];
        let mixed = [0, 64, 64, 64, 10, 64, 1200, 1200, 1300, 1300, 0, 5, 5, 6];
        let one: Vec<_> = mixed.iter().enumerate().map(|(at, len)| (0, of(*len, at))).collect();
        let two: Vec<_> = (0..64).map(|at| (at / 3 % 2, of(100, at))).collect();
        let long: Vec<_> = (0..60).map(|at| (1, of(1200, at))).collect();
        let mut batch = Batch::new();
        for datagrams in [&one, &two, &long] {
            gets(&mut batch, &to, datagrams);
            assert_eq!(batch.without, 0, "the kernel refuses segments");
        }
        // Several that lie one behind the other, beside others.
        let bytes: Vec<u8> = (0..7_000).map(|at| (at % 251) as u8).collect();
        let cuts = [
            (0..640, 64),
            (640..700, 60),
            (700..1_340, 64),
            (1_340..1_400, 64),
            (1_400..7_000, 1_000),
        ];
        let name = Some(Address::of(to[0].local_addr().expect("bound")));
        let runs = cuts.iter().map(|(cut, each)| {
            let bytes = std::ptr::from_ref(&bytes[cut.clone()]);
            Datagram { bytes, each: *each, to: name, is_udp: true }
        });
        assert_eq!(batch.fill(runs.clone()), 3);
        // SAFETY: they stay.
        assert_eq!(unsafe { batch.send(socket().as_raw_fd(), runs) }, (cuts.len(), true));
        for piece in cuts.iter().flat_map(|(cut, each)| bytes[cut.clone()].chunks(*each)) {
            let mut got = [0; 4096];
            let len = to[0].recv(&mut got).expect("a datagram");
            assert_eq!(&got[..len], piece);
        }
        let segments = |datagrams: &[(usize, Vec<u8>)], batch: &mut Batch| {
            let all = datagrams.iter().map(|(_, bytes)| Datagram {
                bytes: std::ptr::from_ref(&bytes[..]),
                each: bytes.len().max(1),
                to: None,
                is_udp: true,
            });
            batch.fill(all)
        };
        assert_eq!(segments(&one, &mut batch), 9);
        assert_eq!(segments(&long, &mut batch), 2);
        batch.without = WITHOUT;
        gets(&mut batch, &to, &two);
        assert_eq!(segments(&two, &mut batch), 64);
    }
}
