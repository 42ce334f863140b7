//! Datagrams for a linked program.

use std::io::{self, Error};
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::desk::{Desk, Lent, after};
use crate::listen;

/// A UDP port that this process serves, alone or with others of its sandbox.
#[derive(Debug)]
pub struct UdpEndpoint {
    desk: Arc<Desk>,
    socket: UdpSocket,
    timeout: Mutex<Option<Duration>>,
}

/// A datagram, where the kernel has put it. Dropped, its buffer is free again.
#[derive(Debug)]
pub struct Datagram(Lent);

impl Datagram {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// Who has sent it.
    #[must_use]
    pub fn from(&self) -> Option<SocketAddr> {
        self.0.from
    }

    /// Answer it: from the same buffer, by the worker.
    ///
    /// # Errors
    /// There is no room for as many bytes behind it ([`ext_api::limits::BUFFER_LEN`] for both);
    /// nothing is sent.
    pub fn reply(mut self, bytes: &[u8]) -> io::Result<()> {
        let room = self.0.room();
        if bytes.len() > room {
            return Err(Error::other(format!("{} bytes; there is room for {room}", bytes.len())));
        }
        self.0.answer(bytes);
        Ok(())
    }
}

/// The first of the addresses that `to` stands for.
pub(super) fn first(to: impl ToSocketAddrs) -> io::Result<SocketAddr> {
    to.to_socket_addrs()?.next().ok_or_else(|| Error::other("no address"))
}

impl UdpEndpoint {
    /// Serve `at`. Others of the sandbox that do so, too, share it.
    ///
    /// # Errors
    /// The program is in no named sandbox, or the kernel's for the socket.
    pub fn bind(at: impl ToSocketAddrs) -> io::Result<Self> {
        let at = first(at)?;
        let desk = Desk::sit(true, at, || {
            let fd = listen::udp(at)?;
            let socket = UdpSocket::from(fd.try_clone()?);
            Ok((fd, socket.local_addr()?))
        })?;
        let socket = UdpSocket::from(OwnedFd::try_clone(&desk.fd)?);
        Ok(Self { desk: Arc::new(desk), socket, timeout: Mutex::new(None) })
    }

    /// The address that it serves.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// How long to wait for a datagram: for ever if there is none.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) {
        *self.timeout.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = timeout;
    }

    /// The next datagram for this process.
    ///
    /// # Errors
    /// `WouldBlock`: none came in time.
    pub fn recv(&self) -> io::Result<Datagram> {
        let timeout = *self.timeout.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.desk.wait(after(timeout), |state| state.datagrams.pop_front()).map(Datagram)
    }

    /// As [`UdpEndpoint::recv`], for a task.
    #[cfg(feature = "tokio")]
    pub(super) fn poll_recv(&self, cx: &std::task::Context<'_>) -> std::task::Poll<Datagram> {
        self.desk.poll(cx, |state| state.datagrams.pop_front()).map(Datagram)
    }

    /// As [`std::net::UdpSocket::recv_from`]: copies.
    ///
    /// # Errors
    /// As [`UdpEndpoint::recv`].
    pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let datagram = self.recv()?;
        let len = datagram.bytes().len().min(buffer.len());
        buffer[..len].copy_from_slice(&datagram.bytes()[..len]);
        let from = datagram.from().ok_or_else(|| Error::other("a datagram from nowhere"))?;
        Ok((len, from))
    }

    /// Send a datagram, by the port's own socket.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send_to(&self, bytes: &[u8], to: impl ToSocketAddrs) -> io::Result<usize> {
        self.socket.send_to(bytes, to)
    }
}
