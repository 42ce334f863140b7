//! Datagrams, as those of `std::net`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::host::Id;
use super::{Limit, Shared};

/// Sends and receives datagrams.
#[derive(Debug)]
pub struct UdpSocket {
    shared: Arc<Shared>,
    id: Id,
    limit: Limit,
}

impl UdpSocket {
    pub(super) fn new(shared: &Arc<Shared>, local: SocketAddr) -> io::Result<Self> {
        let id = shared.once(|host, _| host.bind(local))?;
        Ok(Self { shared: Arc::clone(shared), id, limit: Limit::none() })
    }

    /// The port that it is bound to.
    ///
    /// # Errors
    /// None while the value lives.
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.shared.lock().host.bound_at(self.id)?)
    }

    /// How long sending and receiving wait; for ever at first.
    pub fn set_timeout(&self, limit: Option<Duration>) {
        self.limit.set(limit);
    }

    /// Send a datagram.
    ///
    /// # Errors
    /// It is too long for a packet, the address is none's, there was no room within the time limit, or the
    /// device has gone.
    pub fn send_to(&self, from: &[u8], to: SocketAddr) -> io::Result<()> {
        self.shared.block(self.limit.get(), |host, _| host.send_to(self.id, from, to))
    }

    /// The next datagram; its length, and whose it is. One that is longer than `into` is cut.
    ///
    /// # Errors
    /// None came within the time limit, or the device has gone.
    pub fn recv_from(&self, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.shared.block(self.limit.get(), |host, _| host.receive_from(self.id, into))
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.shared.once(|host, now| host.close(self.id, now));
    }
}
