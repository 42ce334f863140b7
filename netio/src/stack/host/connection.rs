//! Connections and listeners of a host.

use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{self, State};

use super::{
    BACKLOG_MAX, Congestion, Error, Host, Id, Kind, Listener, ORPHAN_LIMIT, Protocol, listen_at,
    tick,
};

/// How long a connection that has not been accepted by its peer yet is waited for.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// This host's.
    pub local: SocketAddr,
    /// The other's.
    pub remote: SocketAddr,
}

impl Host {
    fn make_socket(&self, give_up_after: Duration) -> tcp::Socket<'static> {
        let buffer = || tcp::SocketBuffer::new(vec![0; self.config.buffer_len]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_timeout(Some(self.clock.span(give_up_after)));
        // An acknowledgement that is put off would need somebody to poll in time. One poll takes many
        // frames, and acknowledges them by one.
        socket.set_ack_delay(None);
        socket.set_congestion_control(match self.config.congestion {
            Congestion::Unlimited => tcp::CongestionControl::None,
            Congestion::Cubic => tcp::CongestionControl::Cubic,
        });
        socket
    }

    fn tcp(&mut self, id: Id) -> Result<&mut tcp::Socket<'static>, Error> {
        match *self.kind(id)? {
            Kind::Connection(handle) => Ok(self.sockets.get_mut(handle)),
            _ => Err(Error::NoSuch),
        }
    }

    /// Listen for connections. `backlog` of them may wait to be accepted, between 1 and [`BACKLOG_MAX`];
    /// more are refused.
    ///
    /// # Errors
    /// The port is taken, the address is not this host's, or there are too many sockets.
    pub fn listen(&mut self, local: SocketAddr, backlog: usize) -> Result<Id, Error> {
        if !self.can_have(local) {
            return Err(Error::Unaddressable);
        }
        let port = match local.port() {
            0 => self.any_port(Protocol::Tcp)?,
            port if self.is_taken(port, Protocol::Tcp) => return Err(Error::PortTaken),
            port => port,
        };
        let at = listen_at(local, port);
        let id = self.name(Kind::Listener(Listener { at, backlog: Vec::new() }))?;
        for _ in 0..backlog.clamp(1, BACKLOG_MAX) {
            let handle = self.add_listening();
            if let Some(Kind::Listener(listener)) = &mut self.entries[usize::from(id.index)].kind {
                listener.backlog.push(handle);
            }
        }
        self.listen_again(id.index.into());
        Ok(id)
    }

    fn add_listening(&mut self) -> SocketHandle {
        let socket = self.make_socket(HANDSHAKE_LIMIT);
        self.sockets.add(socket)
    }

    /// Have those of a listener's sockets that are closed listen.
    pub(super) fn listen_again(&mut self, index: usize) {
        let Some(Kind::Listener(listener)) = &self.entries[index].kind else { return };
        for handle in &listener.backlog {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            if !socket.is_open() {
                // The port is not 0, and the socket is not open.
                let _ = socket.listen(listener.at);
            }
        }
    }

    /// Where a listener is.
    ///
    /// # Errors
    /// It is none.
    pub fn listens_at(&self, id: Id) -> Result<u16, Error> {
        match self.kind(id)? {
            Kind::Listener(listener) => Ok(listener.at.port),
            _ => Err(Error::NoSuch),
        }
    }

    /// A connection that has come to a listener.
    ///
    /// # Errors
    /// None has: [`Error::Later`]; it is none; there are too many sockets.
    pub fn accept(&mut self, id: Id) -> Result<(Id, Ends), Error> {
        let Kind::Listener(listener) = self.kind(id)? else { return Err(Error::NoSuch) };
        let is_made = |handle: &SocketHandle| {
            let state = self.sockets.get::<tcp::Socket<'_>>(*handle).state();
            matches!(state, State::Established | State::CloseWait)
        };
        let place = listener.backlog.iter().position(is_made).ok_or(Error::Later)?;
        let handle = listener.backlog[place];
        let accepted = self.name(Kind::Connection(handle))?;
        let next = self.add_listening();
        if let Some(Kind::Listener(listener)) = &mut self.entries[usize::from(id.index)].kind {
            listener.backlog[place] = next;
        }
        self.listen_again(id.index.into());
        let give_up_after = self.clock.span(self.config.give_up_after);
        self.tcp(accepted)?.set_timeout(Some(give_up_after));
        Ok((accepted, self.ends(accepted)?))
    }

    /// Begin to connect.
    ///
    /// # Errors
    /// It cannot be reached, or there are too many sockets or connections.
    pub fn connect(&mut self, remote: SocketAddr) -> Result<Id, Error> {
        let port = self.any_port(Protocol::Tcp)?;
        let mut socket = self.make_socket(self.config.give_up_after);
        socket.connect(self.interface.context(), remote, port).map_err(|_| Error::Unaddressable)?;
        let handle = self.sockets.add(socket);
        self.name(Kind::Connection(handle)).inspect_err(|_| {
            self.sockets.remove(handle);
        })
    }

    /// Whether a connection that was begun has come about.
    ///
    /// # Errors
    /// Not yet: [`Error::Later`]; it will not: [`Error::Refused`].
    pub fn connected(&mut self, id: Id) -> Result<Ends, Error> {
        match self.tcp(id)?.state() {
            State::SynSent | State::SynReceived => Err(Error::Later),
            State::Closed => Err(Error::Refused),
            _ => self.ends(id),
        }
    }

    fn ends(&mut self, id: Id) -> Result<Ends, Error> {
        let socket = self.tcp(id)?;
        let both = socket.local_endpoint().zip(socket.remote_endpoint());
        let (local, remote) = both.ok_or(Error::Reset)?;
        Ok(Ends { local: local.into(), remote: remote.into() })
    }

    /// Take octets that have come; none if the other side has ended its sending.
    ///
    /// # Errors
    /// None are there: [`Error::Later`]; or the connection is broken.
    pub fn receive(&mut self, id: Id, into: &mut [u8]) -> Result<usize, Error> {
        let socket = self.tcp(id)?;
        match socket.recv_slice(into) {
            Ok(0) if !into.is_empty() => Err(Error::Later),
            Ok(len) => Ok(len),
            Err(tcp::RecvError::Finished) => Ok(0),
            Err(tcp::RecvError::InvalidState) => match socket.state() {
                State::SynSent | State::SynReceived => Err(Error::Later),
                _ => Err(Error::Reset),
            },
        }
    }

    /// Give octets to be sent; how many there was room for.
    ///
    /// # Errors
    /// There is no room: [`Error::Later`]; or the connection is broken, or this side shut down.
    pub fn send(&mut self, id: Id, from: &[u8]) -> Result<usize, Error> {
        let socket = self.tcp(id)?;
        match socket.send_slice(from) {
            Ok(0) if !from.is_empty() => Err(Error::Later),
            Ok(len) => Ok(len),
            Err(tcp::SendError::InvalidState) => Err(match socket.state() {
                State::SynSent | State::SynReceived => Error::Later,
                State::Closed => Error::Reset,
                _ => Error::Closed,
            }),
        }
    }

    /// Octets that were given to be sent and are not acknowledged.
    ///
    /// # Errors
    /// It is no connection.
    pub fn unacknowledged(&mut self, id: Id) -> Result<usize, Error> {
        Ok(self.tcp(id)?.send_queue())
    }

    /// Whether nothing goes either way any more.
    ///
    /// # Errors
    /// It is no connection.
    pub fn is_broken(&mut self, id: Id) -> Result<bool, Error> {
        Ok(self.tcp(id)?.state() == State::Closed)
    }

    /// End this side's sending, once everything is sent.
    ///
    /// # Errors
    /// It is no connection.
    pub fn shut_down(&mut self, id: Id) -> Result<(), Error> {
        self.tcp(id)?.close();
        Ok(())
    }

    /// Break the connection off: the other side is told by a reset.
    ///
    /// # Errors
    /// It is no connection.
    pub fn abort(&mut self, id: Id) -> Result<(), Error> {
        self.tcp(id)?.abort();
        Ok(())
    }

    /// Whether small pieces are sent at once, or wait for an acknowledgement of those before (as at first).
    ///
    /// # Errors
    /// It is no connection.
    pub fn set_nodelay(&mut self, id: Id, nodelay: bool) -> Result<(), Error> {
        self.tcp(id)?.set_nagle_enabled(!nodelay);
        Ok(())
    }

    /// Give a socket back. A connection ends by itself, in the polls that follow: what was given is sent.
    /// If octets have come that nobody took, it is broken off.
    pub fn close(&mut self, id: Id, now: Duration) {
        let Ok(kind) = self.kind(id) else { return };
        match kind {
            Kind::Connection(handle) => self.orphan(id, *handle, now),
            Kind::Listener(_) => self.close_listener(id, now),
            Kind::Datagrams(handle) => {
                self.sockets.remove(*handle);
                self.free(id.index.into());
            }
            Kind::Orphan(_) => {}
        }
    }

    fn orphan(&mut self, id: Id, handle: SocketHandle, now: Duration) {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket.recv_queue() > 0 {
            socket.abort();
        } else {
            socket.close();
        }
        let index = usize::from(id.index);
        // Whoever still has the name has nothing.
        self.free(index);
        self.entries[index].kind = Some(Kind::Orphan(handle));
        self.wheel.set(index + 1, tick(now + ORPHAN_LIMIT));
        self.is_busy = true;
    }

    fn close_listener(&mut self, id: Id, now: Duration) {
        let entry = &mut self.entries[usize::from(id.index)];
        let Some(Kind::Listener(listener)) = entry.kind.take() else { return };
        self.free(id.index.into());
        for handle in listener.backlog {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            if socket.state() == State::Listen || !socket.is_open() {
                self.sockets.remove(handle);
                continue;
            }
            // Nobody will accept it.
            socket.abort();
            match self.name(Kind::Connection(handle)) {
                Ok(id) => self.orphan(id, handle, now),
                Err(_) => {
                    self.sockets.remove(handle);
                }
            }
        }
    }
}
