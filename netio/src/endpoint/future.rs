//! The same for tasks: tokio's traits, and futures of our own for the rest.

use std::future::poll_fn;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::{TcpListener, TcpStream};
use super::udp::{Datagram, UdpEndpoint};

impl UdpEndpoint {
    /// The next datagram for this process.
    pub async fn recv_async(&self) -> Datagram {
        poll_fn(|cx| self.poll_recv(cx)).await
    }
}

impl TcpListener {
    /// The next connection for this process.
    ///
    /// # Errors
    /// It had gone before it was accepted.
    pub async fn accept_async(&self) -> io::Result<(TcpStream, SocketAddr)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_fill(cx))?;
        let bytes = self.filled();
        let len = bytes.len().min(to.remaining());
        to.put_slice(&bytes[..len]);
        io::BufRead::consume(&mut *self, len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            let mut room = ready!(self.poll_room(cx))?;
            let len = room.answer(bytes);
            if len > 0 {
                return Poll::Ready(Ok(len));
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shutdown(Shutdown::Write))
    }
}
