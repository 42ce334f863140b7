//! AF_PACKET: what an interface of the kernel's receives, and what it is to send. The kernel sees the same
//! frames: an interface that is only for us should have no address.
#![expect(unsafe_code, reason = "configured by socket options")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::descriptor::Descriptor;
pub use super::descriptor::Reads;
use super::interface::{Interface, socket};
use super::{Counters, Device, Medium, OpenError, PACKET_MAX, Step, Waiter};
use crate::listen;

/// An interface, through a packet socket.
#[derive(Debug)]
pub struct Packet {
    descriptor: Descriptor,
    medium: Medium,
    mtu: usize,
    hardware: [u8; 6],
    /// Frames that the kernel had no room for. It forgets them when it is asked.
    overrun: AtomicU64,
    /// When to look whether the interface, which was down, has been removed: the kernel does not say so.
    look_at: Option<Duration>,
}

/// How long until then.
const LOOK_AFTER: Duration = Duration::from_secs(1);

impl Packet {
    /// The interface of this name, which must be up to send anything.
    ///
    /// # Errors
    /// The kernel refused, or there is no such interface.
    pub fn open(name: &str) -> Result<Self, OpenError> {
        Self::open_with(name, Reads::IoUring)
    }

    /// The same, with a wish how frames are read. io_uring is not insisted on: see [`Packet::reads`].
    ///
    /// # Errors
    /// The kernel refused, or there is no such interface.
    pub fn open_with(name: &str, reads: Reads) -> Result<Self, OpenError> {
        let Interface { index, mtu, medium, hardware } = Interface::find(name)?;
        // Without a protocol, so that nothing comes before it is bound.
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
        let socket = socket(name, libc::AF_PACKET, kind, 0)?;
        set(&socket, name, libc::PACKET_VNET_HDR, 1)?;
        set(&socket, name, libc::PACKET_IGNORE_OUTGOING, 1)?;
        bind(&socket, name, index)?;
        hear_all(&socket, name, index)?;
        make_room(&socket);
        let descriptor = Descriptor::new(socket, name, medium.header_len(), reads)?;
        let mtu = mtu.min(PACKET_MAX);
        let overrun = AtomicU64::new(0);
        Ok(Self { descriptor, medium, mtu, hardware, overrun, look_at: None })
    }

    /// The interface's own address on Ethernet. A host at this device may have another one.
    #[must_use]
    pub const fn hardware(&self) -> [u8; 6] {
        self.hardware
    }

    /// How frames are read.
    #[must_use]
    pub const fn reads(&self) -> Reads {
        self.descriptor.reads()
    }
}

fn set<T>(socket: &OwnedFd, name: &str, option: i32, value: T) -> Result<(), OpenError> {
    let (fd, len) = (socket.as_raw_fd(), size_of::<T>() as u32);
    let value = (&raw const value).cast();
    // SAFETY: the kernel reads a value of that size.
    if unsafe { libc::setsockopt(fd, libc::SOL_PACKET, option, value, len) } < 0 {
        return Err(OpenError::last(Step::Option, name));
    }
    Ok(())
}

fn bind(socket: &OwnedFd, name: &str, index: u32) -> Result<(), OpenError> {
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    let len = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: the kernel reads that many octets.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(OpenError::last(Step::Bind, name));
    }
    Ok(())
}

/// Have the interface pass on what is addressed to others, while the socket is open.
fn hear_all(socket: &OwnedFd, name: &str, index: u32) -> Result<(), OpenError> {
    let membership = libc::packet_mreq {
        mr_ifindex: index.cast_signed(),
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set(socket, name, libc::PACKET_ADD_MEMBERSHIP, membership)
}

/// Let as much wait as a few connections send at once. The kernel counts the pages that frames lie in.
fn make_room(socket: &OwnedFd) {
    let octets: i32 = 32 << 20;
    let (value, len) = ((&raw const octets).cast(), size_of::<i32>() as u32);
    // Beyond the system's limit, if we may; else up to it.
    for option in [libc::SO_RCVBUFFORCE, libc::SO_RCVBUF] {
        // SAFETY: the kernel reads one number.
        let set =
            unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, len) };
        if set == 0 {
            break;
        }
    }
}

/// Frames that were dropped since this was last asked.
fn overrun(socket: &OwnedFd) -> u64 {
    let mut found = [0u32; 2];
    let mut len = size_of_val(&found) as u32;
    let (fd, to) = (socket.as_raw_fd(), (&raw mut found).cast());
    let option = libc::PACKET_STATISTICS;
    // SAFETY: the kernel writes two numbers: of packets, and of those dropped.
    unsafe { libc::getsockopt(fd, libc::SOL_PACKET, option, to, &raw mut len) };
    found[1].into()
}

impl Device for Packet {
    fn medium(&self) -> Medium {
        self.medium
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn frame_max(&self) -> usize {
        self.medium.header_len() + PACKET_MAX
    }

    fn receive(&mut self, now: Duration, into: &mut [u8]) -> Option<usize> {
        let received = self.descriptor.receive(into);
        self.look_at = self.descriptor.was_down().then(|| now + LOOK_AFTER);
        received
    }

    fn next_at(&self) -> Option<Duration> {
        self.look_at
    }

    fn send(&mut self, _now: Duration, frame: &[u8]) {
        self.descriptor.send(frame, self.medium.header_len() + self.mtu);
    }

    fn finishes(&self) -> bool {
        true
    }

    fn send_unfinished(&mut self, _now: Duration, frame: &mut [u8], segment_len: u16) {
        self.descriptor.send_unfinished(frame, segment_len);
    }

    fn counters(&self) -> Counters {
        let now = overrun(self.descriptor.fd());
        let mut counters = self.descriptor.counters();
        counters.received.dropped.no_room += now + self.overrun.fetch_add(now, Ordering::Relaxed);
        counters
    }

    fn arm(&mut self) -> io::Result<bool> {
        if self.descriptor.was_down() && listen::has_lost_its(self.descriptor.fd()) {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        self.descriptor.arm()
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        self.descriptor.waiter()
    }
}
