//! UDP sockets of a host.

use std::net::SocketAddr;

use smoltcp::socket::udp::{self, PacketBuffer, PacketMetadata};
use smoltcp::wire::IpAddress;

use super::{Error, Host, Id, Kind, Protocol, listen_at};

/// Octets per datagram that a socket's buffers are made for.
const DATAGRAM_LEN: usize = 512;
const UDP_HEADER_LEN: usize = 8;

impl Host {
    fn udp(&mut self, id: Id) -> Result<&mut udp::Socket<'static>, Error> {
        match *self.kind(id)? {
            Kind::Datagrams(handle) => Ok(self.sockets.get_mut(handle)),
            _ => Err(Error::NoSuch),
        }
    }

    /// A UDP socket; port 0 stands for any that is free.
    ///
    /// # Errors
    /// The port is taken, the address is not this host's, or there are too many sockets.
    pub fn bind(&mut self, local: SocketAddr) -> Result<Id, Error> {
        if !self.can_have(local) {
            return Err(Error::Unaddressable);
        }
        let port = match local.port() {
            0 => self.any_port(Protocol::Udp)?,
            port if self.is_taken(port, Protocol::Udp) => return Err(Error::PortTaken),
            port => port,
        };
        let len = self.config.datagrams_len;
        let buffer =
            || PacketBuffer::new(vec![PacketMetadata::EMPTY; len / DATAGRAM_LEN], vec![0; len]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(listen_at(local, port)).map_err(|_| Error::Unaddressable)?;
        let handle = self.sockets.add(socket);
        self.name(Kind::Datagrams(handle)).inspect_err(|_| {
            self.sockets.remove(handle);
        })
    }

    /// The port of a UDP socket.
    ///
    /// # Errors
    /// It is none.
    pub fn bound_at(&mut self, id: Id) -> Result<u16, Error> {
        Ok(self.udp(id)?.endpoint().port)
    }

    /// Send a datagram.
    ///
    /// # Errors
    /// It is too long for one packet, nobody can have the address, or there is no room:
    /// [`Error::Later`].
    pub fn send_to(&mut self, id: Id, from: &[u8], to: SocketAddr) -> Result<(), Error> {
        let ip_header_len = if to.is_ipv4() { 20 } else { 40 };
        let longest = self.port.device.mtu() - ip_header_len - UDP_HEADER_LEN;
        if from.len() > longest.min(self.config.datagrams_len) {
            return Err(Error::TooLong);
        }
        let remote: IpAddress = to.ip().into();
        if self.interface.get_source_address(&remote).is_none() {
            return Err(Error::Unaddressable);
        }
        self.udp(id)?.send_slice(from, to).map_err(|error| match error {
            udp::SendError::Unaddressable => Error::Unaddressable,
            udp::SendError::BufferFull => Error::Later,
        })
    }

    /// Take a datagram that has come; its length, and whose it is. One that is longer than `into` is cut.
    ///
    /// # Errors
    /// None is there: [`Error::Later`].
    pub fn receive_from(&mut self, id: Id, into: &mut [u8]) -> Result<(usize, SocketAddr), Error> {
        let (found, about) = self.udp(id)?.recv().map_err(|_| Error::Later)?;
        let len = found.len().min(into.len());
        into[..len].copy_from_slice(&found[..len]);
        Ok((len, about.endpoint.into()))
    }
}
