//! Connections, as those of `std::net`.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::host::{Ends, Id};
use super::{Error, Limit, Shared};

/// Waits for connections.
#[derive(Debug)]
pub struct TcpListener {
    shared: Arc<Shared>,
    id: Id,
    limit: Limit,
}

impl TcpListener {
    pub(super) fn new(shared: &Arc<Shared>, local: SocketAddr, backlog: usize) -> io::Result<Self> {
        let id = shared.once(|host, _| host.listen(local, backlog))?;
        Ok(Self { shared: Arc::clone(shared), id, limit: Limit::none() })
    }

    /// The next connection.
    ///
    /// # Errors
    /// None came within the time limit, there are too many, or the device has gone.
    pub fn accept(&self) -> io::Result<TcpStream> {
        let (id, ends) = self.shared.block(self.limit.get(), |host, _| host.accept(self.id))?;
        Ok(TcpStream::made(&self.shared, id, ends))
    }

    /// The port that it listens at.
    ///
    /// # Errors
    /// None while the value lives.
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.shared.lock().host.listens_at(self.id)?)
    }

    /// How long [`TcpListener::accept`] waits; for ever at first.
    pub fn set_timeout(&self, limit: Option<Duration>) {
        self.limit.set(limit);
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        self.shared.once(|host, now| host.close(self.id, now));
    }
}

/// A connection. Reading and writing need no `&mut`, so that two threads can do one each. When it is
/// dropped, what was written is still sent, by whoever uses the stack next: see
/// [`Stack::finish`](super::Stack::finish).
#[derive(Debug)]
pub struct TcpStream {
    shared: Arc<Shared>,
    id: Id,
    ends: Ends,
    read_limit: Limit,
    write_limit: Limit,
    /// Shut down for reading.
    is_deaf: AtomicBool,
}

impl TcpStream {
    fn made(shared: &Arc<Shared>, id: Id, ends: Ends) -> Self {
        let [read_limit, write_limit] = [Limit::none(), Limit::none()];
        let (shared, is_deaf) = (Arc::clone(shared), AtomicBool::new(false));
        Self { shared, id, ends, read_limit, write_limit, is_deaf }
    }

    pub(super) fn connect(
        shared: &Arc<Shared>,
        remote: SocketAddr,
        limit: Duration,
    ) -> io::Result<Self> {
        let id = shared.once(|host, _| host.connect(remote))?;
        let ends = shared.block(Some(limit), |host, _| host.connected(id)).inspect_err(|_| {
            shared.once(|host, now| host.close(id, now));
        })?;
        Ok(Self::made(shared, id, ends))
    }

    /// This host's end.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.ends.local
    }

    /// The other host's end.
    #[must_use]
    pub const fn peer_addr(&self) -> SocketAddr {
        self.ends.remote
    }

    /// How long a read waits; for ever at first.
    pub fn set_read_timeout(&self, limit: Option<Duration>) {
        self.read_limit.set(limit);
    }

    /// How long a write waits for room; for ever at first.
    pub fn set_write_timeout(&self, limit: Option<Duration>) {
        self.write_limit.set(limit);
    }

    /// Whether small pieces are sent at once.
    ///
    /// # Errors
    /// None while the value lives.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        Ok(self.shared.once(|host, _| host.set_nodelay(self.id, nodelay))?)
    }

    /// End this side's sending, once everything is sent; or its reading: what comes is refused no more than
    /// before, but reads say that there is nothing.
    ///
    /// # Errors
    /// None while the value lives.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if matches!(how, Shutdown::Read | Shutdown::Both) {
            self.is_deaf.store(true, Ordering::Relaxed);
        }
        if matches!(how, Shutdown::Write | Shutdown::Both) {
            self.shared.once(|host, _| host.shut_down(self.id))?;
        }
        // Those who wait in a read are to see it.
        self.shared.once(|_, _| ());
        self.shared.waiter.wake();
        Ok(())
    }

    /// Wait until everything that was written is acknowledged.
    ///
    /// # Errors
    /// The connection is broken, or that takes longer than the time limit of writes.
    pub fn wait_acknowledged(&self) -> io::Result<()> {
        self.shared.block(self.write_limit.get(), |host, _| match host.unacknowledged(self.id)? {
            0 => Ok(()),
            _ if host.is_broken(self.id)? => Err(Error::Reset),
            _ => Err(Error::Later),
        })
    }
}

impl Read for &TcpStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.shared.block(self.read_limit.get(), |host, _| {
            if self.is_deaf.load(Ordering::Relaxed) {
                return Ok(0);
            }
            host.receive(self.id, into)
        })
    }
}

impl Write for &TcpStream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.shared.block(self.write_limit.get(), |host, _| host.send(self.id, from))
    }

    /// What was written is sent at once, or when the window lets it: there is nothing to flush.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for TcpStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&*self).read(into)
    }
}

impl Write for TcpStream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        (&*self).write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.shared.once(|host, now| host.close(self.id, now));
    }
}
