//! Ports that a linked program serves itself, in the region: the sandbox's worker receives, and the program
//! reads in place what is for it.
//!
//! ```no_run
//! use std::io::{BufRead, Write};
//! use netio::endpoint::{TcpListener, UdpEndpoint};
//!
//! # fn main() -> std::io::Result<()> {
//! let endpoint = UdpEndpoint::bind("127.0.0.1:9000")?;
//! let datagram = endpoint.recv()?;
//! datagram.reply(b"got it")?;
//!
//! let listener = TcpListener::bind("127.0.0.1:9001")?;
//! let (mut stream, _) = listener.accept()?;
//! let len = stream.fill_buf()?.len();
//! stream.consume(len);
//! stream.write_all(b"got it")?;
//! # Ok(())
//! # }
//! ```
//!
//! Several processes that bind the same address share it, and the buffers: datagrams go to them in turn,
//! and a connection stays with the one that was given it. What a process has is given up when it ends.
//! With the feature `tokio`, connections are tokio's `AsyncRead` and `AsyncWrite`, and there are
//! `UdpEndpoint::recv_async` and `TcpListener::accept_async`; a thread of netio's own then waits for all.
//! The sandbox must have a name (`sbx-launcher up`). A buffer that is kept is not there for others: a
//! stream that waits for bytes keeps none, but for one to write into that was asked for and not used.

mod desk;
#[cfg(feature = "tokio")]
mod future;
mod stream;
mod udp;

pub use stream::{TcpListener, TcpStream};
pub use udp::{Datagram, UdpEndpoint};
