//! A descriptor that gives and takes one frame per call, each after a virtio header: what TAP and packet
//! sockets have in common.
#![expect(unsafe_code, reason = "read and writev are system calls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use super::frame_reader::{Found, FrameReader};
use super::virtio::{self, HEADER_LEN};
use super::waiting::DescriptorWaiter;
use super::{Counters, OpenError, PACKET_MAX, Step, Waiter};

/// How frames are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// By one lasting request of io_uring.
    IoUring,
    /// By a system call each: io_uring is refused, or cannot do it here.
    Calls,
}

/// The descriptor.
#[derive(Debug)]
pub(crate) struct Descriptor {
    fd: Arc<OwnedFd>,
    reader: Option<FrameReader>,
    waiter: Arc<DescriptorWaiter>,
    /// Where a frame and its header lie until the header is looked at.
    scratch: Vec<u8>,
    header_len: usize,
    counters: Counters,
    fault: Option<io::Error>,
    /// As [`FrameReader`] has it, for reads by calls.
    was_down: bool,
}

impl Descriptor {
    /// Frames of `fd`, whose IP header comes after `header_len` octets.
    pub(crate) fn new(
        fd: OwnedFd,
        interface: &str,
        header_len: usize,
        reads: Reads,
    ) -> Result<Self, OpenError> {
        let fd = Arc::new(fd);
        let longest = HEADER_LEN + header_len + PACKET_MAX;
        let reader = match reads {
            Reads::IoUring => FrameReader::new(Arc::clone(&fd), longest).ok(),
            Reads::Calls => None,
        };
        let waiter = Self::waits(&fd, reader.as_ref(), interface)?;
        Ok(Self {
            fd,
            reader,
            waiter: Arc::new(waiter),
            scratch: vec![0; longest],
            header_len,
            counters: Counters::default(),
            fault: None,
            was_down: false,
        })
    }

    fn waits(
        fd: &Arc<OwnedFd>,
        reader: Option<&FrameReader>,
        interface: &str,
    ) -> Result<DescriptorWaiter, OpenError> {
        let watched = match reader {
            // A descriptor of its own: a waiter may outlive the device.
            Some(reader) => reader
                .as_fd()
                .try_clone_to_owned()
                .map(Arc::new)
                .map_err(|error| OpenError::new(Step::Bell, interface, error))?,
            None => Arc::clone(fd),
        };
        DescriptorWaiter::new(watched, interface)
    }

    pub(crate) const fn reads(&self) -> Reads {
        if self.reader.is_some() { Reads::IoUring } else { Reads::Calls }
    }

    pub(crate) const fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn waiter(&self) -> Arc<dyn Waiter> {
        Arc::<DescriptorWaiter>::clone(&self.waiter)
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    fn read(&mut self) -> Found {
        if let Some(reader) = &mut self.reader {
            return reader.next(&mut self.scratch);
        }
        let (to, len) = (self.scratch.as_mut_ptr(), self.scratch.len());
        // SAFETY: as many octets as are ours to write.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), to.cast(), len) };
        match usize::try_from(read) {
            Ok(len) => {
                self.was_down = false;
                Found::Frame(len)
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                self.was_down |= error.raw_os_error() == Some(libc::ENETDOWN);
                let passing = [libc::EAGAIN, libc::EINTR, libc::ENETDOWN];
                if error.raw_os_error().is_some_and(|code| passing.contains(&code)) {
                    Found::Nothing
                } else {
                    Found::Failed(error)
                }
            }
        }
    }

    pub(crate) fn receive(&mut self, into: &mut [u8]) -> Option<usize> {
        loop {
            let len = match self.read() {
                Found::Frame(len) => len,
                Found::Nothing => return None,
                Found::Failed(error) => {
                    self.fault = Some(error);
                    return None;
                }
            };
            let tally = &mut self.counters.received;
            let Some((header, frame)) =
                self.scratch.get_mut(..len).and_then(<[u8]>::split_first_chunk_mut::<HEADER_LEN>)
            else {
                tally.dropped.malformed += 1;
                continue;
            };
            let Some(to) = into.get_mut(..frame.len()) else {
                tally.dropped.too_long += 1;
                continue;
            };
            if virtio::complete(*header, frame).is_err() {
                tally.dropped.malformed += 1;
                continue;
            }
            to.copy_from_slice(frame);
            tally.add(to.len());
            return Some(to.len());
        }
    }

    /// Send a frame of at most `frame_max` octets.
    pub(crate) fn send(&mut self, frame: &[u8], frame_max: usize) {
        if frame.len() > frame_max {
            self.counters.sent.dropped.too_long += 1;
            return;
        }
        self.write(virtio::WHOLE, frame);
    }

    pub(crate) fn send_unfinished(&mut self, frame: &mut [u8], segment_len: u16) {
        if frame.len() > self.header_len + PACKET_MAX {
            self.counters.sent.dropped.too_long += 1;
            return;
        }
        let header = virtio::unfinished(frame, self.header_len, segment_len);
        self.write(header.unwrap_or(virtio::WHOLE), frame);
    }

    fn write(&mut self, header: [u8; HEADER_LEN], frame: &[u8]) {
        let part =
            |of: &[u8]| libc::iovec { iov_base: of.as_ptr().cast_mut().cast(), iov_len: of.len() };
        let both = [part(&header), part(frame)];
        // SAFETY: two parts, which the kernel only reads.
        let written = unsafe { libc::writev(self.fd.as_raw_fd(), both.as_ptr(), 2) };
        let tally = &mut self.counters.sent;
        if written >= 0 {
            tally.add(frame.len());
        } else if is_full(&io::Error::last_os_error()) {
            tally.dropped.no_room += 1;
        } else {
            tally.dropped.refused += 1;
        }
    }

    /// Whether the interface was down when this was last heard of.
    pub(crate) fn was_down(&self) -> bool {
        self.was_down || self.reader.as_ref().is_some_and(|reader| reader.was_down)
    }

    pub(crate) fn arm(&mut self) -> io::Result<bool> {
        if let Some(error) = &self.fault {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        match &mut self.reader {
            Some(reader) => reader.read().map(|()| !reader.has_more()),
            None => Ok(true),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    [libc::EAGAIN, libc::ENOBUFS].map(Some).contains(&error.raw_os_error())
}
