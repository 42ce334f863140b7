//! What the engine asks of the kernel, so that there can be two ways of asking.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use crate::address::Address;
use crate::buffers::Lease;

/// The buffer that bytes have come into.
#[derive(Debug)]
pub enum Filled {
    /// All of it is ours.
    Whole(Lease),
    /// The driver has it, and puts what comes next behind these bytes.
    Part(usize),
}

/// Something that receives until it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Connections of a listening socket.
    Listener(u32),
    /// Datagrams or frames.
    Datagrams(u32),
    /// Bytes of a connection.
    Stream(u32),
}

/// Something that has happened.
#[derive(Debug)]
pub enum Event {
    /// A connection has been accepted.
    Accepted(u32, OwnedFd),
    /// Datagrams of one sender have come, one behind the other.
    Datagrams {
        /// Of this source.
        socket: u32,
        /// Their buffer.
        lease: Lease,
        /// Where in the buffer the first begins.
        start: usize,
        /// Bytes of all.
        len: usize,
        /// Bytes of each; of the last what is left.
        each: usize,
        /// The last was not cut short.
        is_whole: bool,
        /// Who has sent them.
        from: Address,
    },
    /// Bytes of a connection have come.
    Piece {
        /// The connection.
        connection: u32,
        /// Their buffer.
        filled: Filled,
        /// Where in the buffer they begin.
        start: usize,
        /// How many.
        len: usize,
    },
    /// A source receives no longer: end of a connection (0), or a negated errno. `ENOBUFS`: it had no
    /// buffer; `ECANCELED`: it was stopped.
    Stopped(Source, i32),
    /// What was sent from this place is: how many bytes, or a negated errno.
    Sent(u32, i32),
    /// A connection is made, or not.
    Connected(u32, i32),
    /// What [`Driver::watch`] watches can be read, or has ended. It is watched no longer.
    Readable,
}

/// A word that another process changes and wakes, and what it was.
#[derive(Debug, Clone, Copy)]
pub struct Doorbell {
    /// The word.
    pub word: &'static AtomicU32,
    /// The engine sleeps only while it is this.
    pub seen: u32,
}

/// A way of asking the kernel. What is asked for is under way after the next [`Driver::wait`] at the
/// latest; what comes of it is told by that. A descriptor must stay open until its sources have stopped
/// and what is sent on it has been told.
pub trait Driver: fmt::Debug {
    /// For people.
    fn name(&self) -> &'static str;

    /// Accept connections.
    fn accept(&mut self, listener: u32, fd: BorrowedFd<'_>);

    /// Receive datagrams: of UDP, into wide buffers, many at a time where the kernel has them so.
    fn receive_from(&mut self, socket: u32, fd: BorrowedFd<'_>);

    /// Receive the bytes of a connection.
    fn receive(&mut self, connection: u32, fd: BorrowedFd<'_>);

    /// Receive some bytes of a connection, of which one buffer is full at most, if the driver can do that: then
    /// it has stopped for want of a buffer.
    fn receive_once(&mut self, connection: u32, fd: BorrowedFd<'_>);

    /// Receive no more; [`Event::Stopped`] follows.
    fn stop(&mut self, source: Source);

    /// Send all of `bytes`.
    ///
    /// # Safety
    /// The bytes and the address stay as they are until [`Event::Sent`] tells of `place`.
    #[expect(unsafe_code, reason = "the kernel reads the bytes later")]
    unsafe fn send(
        &mut self,
        place: u32,
        fd: BorrowedFd<'_>,
        bytes: *const [u8],
        to: Option<&'static Address>,
    );

    /// Connect.
    ///
    /// # Safety
    /// The address stays as it is until [`Event::Connected`] tells of `connection`.
    #[expect(unsafe_code, reason = "the kernel reads the address later")]
    unsafe fn connect(&mut self, connection: u32, fd: BorrowedFd<'_>, to: &'static Address);

    /// `fd` is about to be closed: what is to be sent on it goes now, or is told not to have been. None of its
    /// sources is under way. Connections are told of here as well, when nothing is to be sent on them.
    fn release(&mut self, fd: BorrowedFd<'_>);

    /// Tell once when `fd` can be read; of one descriptor at a time.
    fn watch(&mut self, fd: BorrowedFd<'_>);

    /// A buffer to receive into, and where it lies.
    ///
    /// # Safety
    /// `at` is the lease's.
    #[expect(unsafe_code, reason = "the kernel writes there later")]
    unsafe fn lend(&mut self, lease: Lease, at: *mut u8);

    /// How many narrow ones it has.
    fn lent(&self) -> usize;

    /// How many wide ones it has.
    fn lent_wide(&self) -> usize;

    /// Would [`Driver::wait`] find something at once? To be asked again and again.
    fn has_news(&mut self) -> bool;

    /// Wait until something happens, or the doorbell is rung, at most `timeout`; all of it goes into
    /// `events`.
    ///
    /// # Errors
    /// The kernel's.
    fn wait(
        &mut self,
        timeout: Option<Duration>,
        doorbell: Option<Doorbell>,
        events: &mut Vec<Event>,
    ) -> io::Result<()>;
}
