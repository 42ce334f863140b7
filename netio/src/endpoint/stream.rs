//! Connections for a linked program.

use std::io::{self, BufRead, Error, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ext_api::pool::Ask;

use super::desk::{Desk, Key, Lent, State, after};
use super::udp::first;
use crate::address::Address;
use crate::listen;

/// A TCP port that this process serves, alone or with others of its sandbox.
#[derive(Debug)]
pub struct TcpListener {
    desk: Arc<Desk>,
    at: SocketAddr,
}

impl TcpListener {
    /// Serve `at`. Others of the sandbox that do so, too, share it.
    ///
    /// # Errors
    /// The program is in no named sandbox, or the kernel's for the socket.
    pub fn bind(at: impl ToSocketAddrs) -> io::Result<Self> {
        let at = first(at)?;
        let local = |fd: i32| {
            let address = Address::of_socket(fd, false).net().socket();
            address.ok_or_else(|| Error::other("the socket has no address"))
        };
        let desk = Desk::sit(false, at, || {
            let fd = listen::tcp(at)?;
            let at = local(fd.as_raw_fd())?;
            Ok((fd, at))
        })?;
        let at = local(desk.fd.as_raw_fd())?;
        Ok(Self { desk: Arc::new(desk), at })
    }

    /// The address that it serves.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.at
    }

    /// The next connection for this process.
    ///
    /// # Errors
    /// `ConnectionAborted`: one came and has gone again.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.accept_for(None)
    }

    /// The next connection, if one comes in time.
    ///
    /// # Errors
    /// `WouldBlock`: none came.
    pub fn accept_timeout(&self, timeout: Duration) -> io::Result<(TcpStream, SocketAddr)> {
        self.accept_for(after(Some(timeout)))
    }

    fn accept_for(&self, until: Option<Instant>) -> io::Result<(TcpStream, SocketAddr)> {
        self.made(self.desk.wait(until, accepted)?)
    }

    /// As [`TcpListener::accept`], for a task.
    #[cfg(feature = "tokio")]
    pub(super) fn poll_accept(
        &self,
        cx: &std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<(TcpStream, SocketAddr)>> {
        self.desk.poll(cx, accepted).map(|found| self.made(found))
    }

    fn made(
        &self,
        (index, from): (Key, Option<SocketAddr>),
    ) -> io::Result<(TcpStream, SocketAddr)> {
        let Some(from) = from else {
            self.desk.leave(index);
            return Err(Error::from(ErrorKind::ConnectionAborted));
        };
        let desk = self.desk.clone();
        let timeouts = [None; 2];
        let (reading, writing, is_write_shut) = (None, None, false);
        Ok((TcpStream { desk, index, from, timeouts, reading, writing, is_write_shut }, from))
    }
}

impl Drop for TcpListener {
    /// Connections that it has accepted go on.
    fn drop(&mut self) {
        self.desk.shut();
    }
}

fn accepted(state: &mut State) -> Option<(Key, Option<SocketAddr>)> {
    let index = state.accepted.pop_front()?;
    Some((index, state.streams.get(&index).and_then(|known| known.from)))
}

/// A connection that this process serves. Reading by [`BufRead`] copies nothing.
#[derive(Debug)]
pub struct TcpStream {
    desk: Arc<Desk>,
    index: Key,
    from: SocketAddr,
    /// For reading and for writing.
    timeouts: [Option<Duration>; 2],
    reading: Option<Lent>,
    /// A buffer that has been read: there is room behind what was in it.
    writing: Option<Lent>,
    is_write_shut: bool,
}

impl TcpStream {
    /// The other side.
    #[must_use]
    pub const fn peer_addr(&self) -> SocketAddr {
        self.from
    }

    /// How long to wait for bytes.
    pub const fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.timeouts[0] = timeout;
    }

    /// How long to wait for room to write.
    pub const fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.timeouts[1] = timeout;
    }

    /// End a direction. What has been written is sent first.
    ///
    /// # Errors
    /// None.
    pub fn shutdown(&mut self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Write {
            self.reading = None;
            self.desk.end_reading(self.index);
        }
        if how != Shutdown::Read {
            (self.writing, self.is_write_shut) = (None, true);
            self.desk.ask(Ask::End, self.index);
        }
        Ok(())
    }

    fn until(&self, which: usize) -> Option<Instant> {
        after(self.timeouts[which])
    }

    /// A buffer to write into.
    fn room(&mut self) -> io::Result<Lent> {
        if self.is_write_shut {
            return Err(Error::from(ErrorKind::BrokenPipe));
        }
        if let Some(lent) = self.writing.take() {
            return Ok(lent);
        }
        let (index, desk) = (self.index, &self.desk);
        desk.wait(self.until(1), |state| room_in(desk, state, index))?
    }

    /// As [`TcpStream::room`], for a task.
    #[cfg(feature = "tokio")]
    pub(super) fn poll_room(
        &mut self,
        cx: &std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<Lent>> {
        if self.is_write_shut {
            return std::task::Poll::Ready(Err(Error::from(ErrorKind::BrokenPipe)));
        }
        if let Some(lent) = self.writing.take() {
            return std::task::Poll::Ready(Ok(lent));
        }
        let (index, desk) = (self.index, &self.desk);
        desk.poll(cx, |state| room_in(desk, state, index))
    }

    /// Is there nothing left of what is being read? What has been read is a place to write the answer
    /// into, until there is more to read.
    fn wants_more(&mut self) -> bool {
        if self.reading.as_ref().is_some_and(|lent| !lent.bytes().is_empty()) {
            return false;
        }
        if let Some(read) = self.reading.take() {
            self.writing = Some(read);
        }
        true
    }

    /// What is being read.
    pub(super) fn filled(&self) -> &[u8] {
        self.reading.as_ref().map_or(&[], Lent::bytes)
    }

    /// As [`BufRead::fill_buf`], for a task.
    #[cfg(feature = "tokio")]
    pub(super) fn poll_fill(
        &mut self,
        cx: &std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        if self.wants_more() {
            let (index, spare) = (self.index, &mut self.writing);
            let next = self.desk.poll(cx, |state| next_piece(state, index, spare));
            self.reading = std::task::ready!(next)?;
        }
        std::task::Poll::Ready(Ok(()))
    }
}

/// Room to write for connection `index`, which is asked for if there is none.
fn room_in(desk: &Desk, state: &mut State, index: Key) -> Option<io::Result<Lent>> {
    let known = state.streams.get_mut(&index).filter(|known| !known.is_cut);
    let Some(known) = known else { return Some(Err(Error::from(ErrorKind::BrokenPipe))) };
    if let Some(room) = known.room.take() {
        known.room_asked = false;
        return Some(Ok(room));
    }
    if !std::mem::replace(&mut known.room_asked, true) {
        desk.ask(Ask::Room, index);
    }
    None
}

/// What has come next for connection `index`: None inside if it has ended. Whoever waits keeps no buffer.
fn next_piece(
    state: &mut State,
    index: Key,
    spare: &mut Option<Lent>,
) -> Option<io::Result<Option<Lent>>> {
    let Some(known) = state.streams.get_mut(&index) else {
        return Some(Err(Error::from(ErrorKind::ConnectionReset)));
    };
    if let Some(piece) = known.pieces.pop_front() {
        return Some(Ok(Some(piece)));
    }
    if known.is_cut {
        return Some(Err(Error::from(ErrorKind::ConnectionReset)));
    }
    if known.has_ended {
        return Some(Ok(None));
    }
    *spare = None;
    // Another task may wait for room to write.
    if !known.room_asked {
        known.room = None;
    }
    None
}

impl BufRead for TcpStream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.wants_more() {
            let (index, until, spare) = (self.index, self.until(0), &mut self.writing);
            self.reading = self.desk.wait(until, |state| next_piece(state, index, spare))??;
        }
        Ok(self.filled())
    }

    fn consume(&mut self, len: usize) {
        if let Some(lent) = &mut self.reading {
            lent.consume(len);
            if lent.bytes().is_empty() {
                self.writing = self.reading.take();
            }
        }
    }
}

impl Read for TcpStream {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let len = bytes.len().min(to.len());
        to[..len].copy_from_slice(&bytes[..len]);
        self.consume(len);
        Ok(len)
    }
}

impl Write for TcpStream {
    /// Sends at once as much as there is room for in a buffer.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        // A buffer that is full of what was read has no room.
        loop {
            let mut room = self.room()?;
            let len = room.answer(bytes);
            if len > 0 {
                return Ok(len);
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        (self.reading, self.writing) = (None, None);
        self.desk.leave(self.index);
    }
}
