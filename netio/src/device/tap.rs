//! TUN and TAP: an interface of this host's kernel whose other end is here.
#![expect(unsafe_code, reason = "configured by ioctl")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use super::descriptor::Descriptor;
pub use super::descriptor::Reads;
use super::interface::{Interface, request};
use super::{Counters, Device, Medium, OpenError, PACKET_MAX, Step, Waiter, once_free};

/// The end of a TUN or TAP interface.
#[derive(Debug)]
pub struct Tap {
    name: String,
    descriptor: Descriptor,
    medium: Medium,
    mtu: usize,
}

impl Tap {
    /// The interface `name`, which is made if there is none, and then goes with the value: TAP for
    /// [`Medium::Ethernet`], TUN for [`Medium::Ip`]. A `%d` in the name stands for the next free number.
    /// Addresses and whether it is up are for `ip` to say. The MTU is looked up here, once.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn open(name: &str, medium: Medium) -> Result<Self, OpenError> {
        Self::open_with(name, medium, Reads::IoUring)
    }

    /// The same, with a wish how frames are read. io_uring is not insisted on: see [`Tap::reads`].
    ///
    /// # Errors
    /// The kernel refused.
    pub fn open_with(name: &str, medium: Medium, reads: Reads) -> Result<Self, OpenError> {
        let file: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(|error| OpenError::new(Step::TunFile, name, error))?
            .into();
        let name = once_free(|| join(&file, name, medium))?;
        let mtu = Interface::find(&name)?.mtu.min(PACKET_MAX);
        let descriptor = Descriptor::new(file, &name, medium.header_len(), reads)?;
        Ok(Self { name, descriptor, medium, mtu })
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How frames are read.
    #[must_use]
    pub const fn reads(&self) -> Reads {
        self.descriptor.reads()
    }
}

/// Make the interface, or join it; its name.
fn join(file: &OwnedFd, name: &str, medium: Medium) -> Result<String, OpenError> {
    let kind = match medium {
        Medium::Ethernet => libc::IFF_TAP,
        Medium::Ip => libc::IFF_TUN,
    };
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = (kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: reads name and flags, writes the name.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(OpenError::last(Step::TunInterface, name));
    }
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    // A kernel without them hands over shorter frames that are whole.
    // SAFETY: takes a number.
    let _ = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) };
    let letters = request.ifr_name.iter().map(|letter| letter.cast_unsigned());
    let name: Vec<u8> = letters.take_while(|letter| *letter != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

impl Device for Tap {
    fn medium(&self) -> Medium {
        self.medium
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn frame_max(&self) -> usize {
        self.medium.header_len() + PACKET_MAX
    }

    fn receive(&mut self, _now: Duration, into: &mut [u8]) -> Option<usize> {
        self.descriptor.receive(into)
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
        self.descriptor.counters()
    }

    fn arm(&mut self) -> io::Result<bool> {
        self.descriptor.arm()
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        self.descriptor.waiter()
    }
}
