//! A device as the protocol code sees it.

use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use smoltcp::phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, PacketMeta};
use smoltcp::time::Instant;

use crate::device::{Checksums, Device, Medium, PACKET_MAX};

/// Octets that the headers of a frame are in. Memory for a frame is used again; these are zeros each time,
/// so that no field has what an earlier frame had.
const HEADERS_MAX: usize = 128;

/// A device, and memory for a frame each way.
pub(super) struct Port {
    pub(super) device: Box<dyn Device>,
    inbox: Vec<u8>,
    /// Length of the frame that is in the inbox, and that the protocols have not seen yet.
    fetched: Option<usize>,
    outbox: Vec<u8>,
    capabilities: DeviceCapabilities,
    /// The time as the device sees it: the protocols' clock is another one.
    pub(super) now: Duration,
    /// Something could not be sent for want of room since this was last cleared.
    pub(super) was_full: bool,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("counters", &self.device.counters()).finish_non_exhaustive()
    }
}

impl Port {
    pub(super) fn new(device: Box<dyn Device>) -> Self {
        let mut capabilities = DeviceCapabilities::default();
        let header_len = device.medium().header_len();
        capabilities.medium = match device.medium() {
            Medium::Ethernet => phy::Medium::Ethernet,
            Medium::Ip => phy::Medium::Ip,
        };
        capabilities.max_transmission_unit = device.mtu() + header_len;
        capabilities.checksum = checksums(device.checksums());
        if device.finishes() {
            capabilities.checksum.tcp = match device.checksums() {
                Checksums::Full => Checksum::Rx,
                Checksums::SendOnly | Checksums::None => Checksum::None,
            };
            // Not over IPv6: there smoltcp 0.14 drops what is longer than the MTU.
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(PACKET_MAX + header_len);
        }
        let [inbox, outbox] = [device.frame_max(), PACKET_MAX + header_len].map(|len| vec![0; len]);
        Self {
            device,
            inbox,
            fetched: None,
            outbox,
            capabilities,
            now: Duration::ZERO,
            was_full: false,
        }
    }
}

impl Port {
    /// Take the next frame from the device, for the protocols to see.
    pub(super) fn fetch(&mut self) -> Option<&[u8]> {
        self.fetched = self.device.receive(self.now, &mut self.inbox);
        self.fetched.map(|len| &self.inbox[..len])
    }

    /// Forget the frame that was fetched.
    pub(super) fn forget(&mut self) {
        self.fetched = None;
    }
}

fn checksums(of: Checksums) -> ChecksumCapabilities {
    let mut all = ChecksumCapabilities::ignored();
    let each = match of {
        Checksums::Full => Checksum::Both,
        Checksums::SendOnly => Checksum::Tx,
        Checksums::None => return all,
    };
    (all.ipv4, all.udp, all.tcp, all.icmpv4, all.icmpv6) = (each, each, each, each, each);
    all
}

/// A frame that has come.
pub(super) struct Received<'a>(&'a [u8]);

/// A frame that is to be made and sent.
pub(super) struct Sending<'a> {
    device: &'a mut dyn Device,
    outbox: &'a mut Vec<u8>,
    now: Duration,
    segment_len: u16,
}

impl phy::Device for Port {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let (now, len) = (self.now, self.fetched.take()?);
        let Self { device, inbox, outbox, .. } = self;
        let sending = Sending { device: &mut **device, outbox, now, segment_len: 0 };
        Some((Received(&inbox[..len]), sending))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        if !self.device.has_room() {
            self.was_full = true;
            return None;
        }
        let Self { device, outbox, now, .. } = self;
        Some(Sending { device: &mut **device, outbox, now: *now, segment_len: 0 })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        if len > self.outbox.len() {
            // The device will say that it is too long.
            self.outbox.resize(len, 0);
        }
        let frame = &mut self.outbox[..len];
        frame[..len.min(HEADERS_MAX)].fill(0);
        let result = f(frame);
        if self.device.finishes() {
            self.device.send_unfinished(self.now, frame, self.segment_len);
        } else {
            self.device.send(self.now, frame);
        }
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment_len = meta.segmentation_offload_size.map_or(0, |len| len.get());
    }
}
