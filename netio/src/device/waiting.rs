//! Waits for a descriptor, or for somebody who rings.
#![expect(unsafe_code, reason = "eventfd and poll are system calls")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use super::{OpenError, Step, Waiter};

/// Waits until a descriptor can be read.
#[derive(Debug)]
pub(crate) struct DescriptorWaiter {
    /// Kept open by whoever else uses it, and by this.
    watched: Arc<OwnedFd>,
    bell: OwnedFd,
}

impl DescriptorWaiter {
    pub(crate) fn new(watched: Arc<OwnedFd>, interface: &str) -> Result<Self, OpenError> {
        // SAFETY: takes no memory.
        let bell = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if bell < 0 {
            return Err(OpenError::last(Step::Bell, interface));
        }
        // SAFETY: made above, and nobody else's.
        Ok(Self { watched, bell: unsafe { OwnedFd::from_raw_fd(bell) } })
    }

    fn silence(&self) {
        let mut count = 0u64;
        // SAFETY: eight octets, as an eventfd wants; it does not block.
        unsafe { libc::read(self.bell.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl Waiter for DescriptorWaiter {
    fn wait(&self, limit: Option<Duration>) -> io::Result<()> {
        let interest = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut both = [interest(self.watched.as_raw_fd()), interest(self.bell.as_raw_fd())];
        let limit = limit.map(|limit| libc::timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: two entries, and a time that lives, or none.
        let ready = unsafe { libc::ppoll(both.as_mut_ptr(), 2, limit, std::ptr::null()) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        if both[1].revents != 0 {
            self.silence();
        }
        Ok(())
    }

    fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight octets, as an eventfd wants; a full one has rung already.
        unsafe { libc::write(self.bell.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}
