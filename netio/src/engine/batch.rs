//! Datagrams that go out by one call.
#![expect(unsafe_code, reason = "hands many buffers to one call")]

use std::os::fd::RawFd;

use crate::address::Address;

/// Most of one call.
pub(super) const BATCH: usize = 64;
/// Fewer than these go one by one, with the next wait.
pub(super) const BATCH_MIN: usize = 3;

/// What the call is given; made once.
pub(super) struct Batch {
    names: Vec<Address>,
    parts: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
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
        Self {
            names: vec![Address::new(&[]); BATCH],
            parts: vec![none; BATCH],
            messages: vec![empty; BATCH],
        }
    }

    /// In the place of one that is in use.
    pub(super) const fn none() -> Self {
        Self { names: Vec::new(), parts: Vec::new(), messages: Vec::new() }
    }

    /// Send as many as the kernel takes now, in order; how many that is. An error counts as one that was
    /// taken: it will not be better later.
    ///
    /// # Safety
    /// The bytes of each can be read.
    pub(super) unsafe fn send(
        &mut self,
        fd: RawFd,
        datagrams: impl Iterator<Item = (*const [u8], Option<Address>)>,
    ) -> (usize, bool) {
        let mut count = 0;
        for (index, (bytes, to)) in datagrams.take(BATCH).enumerate() {
            self.parts[index].iov_base = bytes.cast::<libc::c_void>().cast_mut();
            self.parts[index].iov_len = bytes.len();
            let header = &mut self.messages[index].msg_hdr;
            header.msg_iov = &raw mut self.parts[index];
            header.msg_iovlen = 1;
            let to = to.unwrap_or(Address::new(&[]));
            self.names[index] = to;
            (header.msg_name, header.msg_namelen) = match to.len() {
                0 => (std::ptr::null_mut(), 0),
                len => (self.names[index].as_ptr().cast_mut().cast(), len as u32),
            };
            count = index + 1;
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: as many messages, whose names and parts are this value's and whose bytes can be read.
        let sent = unsafe { libc::sendmmsg(fd, self.messages.as_mut_ptr(), count as u32, flags) };
        match usize::try_from(sent) {
            Ok(sent) => (sent, true),
            Err(_) => {
                let error = std::io::Error::last_os_error();
                let full = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS));
                (usize::from(!full), false)
            }
        }
    }
}
