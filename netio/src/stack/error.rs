//! Why something on a connection cannot be done.

use std::fmt;
use std::io;

/// Why something on a connection or socket cannot be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// Not now; after a poll that says that something has changed, perhaps.
    Later,
    /// The other host refused the connection.
    Refused,
    /// The other host broke the connection off, or has not answered for too long.
    Reset,
    /// This side has ended its sending.
    Closed,
    /// The port is taken by another listener or socket of this host, or all are.
    PortTaken,
    /// There are as many sockets as there may be.
    Full,
    /// The address is no host's, or this host has none of its version.
    Unaddressable,
    /// A datagram longer than the buffer that it is to go to.
    TooLong,
    /// The socket was closed, or is of another kind.
    NoSuch,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Later => "not now: poll and try again",
            Self::Refused => "the other host refuses connections to that port",
            Self::Reset => "the other host broke the connection off, or is gone",
            Self::Closed => "this side of the connection was shut down for writing",
            Self::PortTaken => "the port is in use: name another one",
            Self::Full => "the stack has as many sockets as it can have: close some",
            Self::Unaddressable => "that address cannot be reached from the addresses of this host",
            Self::TooLong => "the datagram is longer than the buffer",
            Self::NoSuch => "the socket has been closed",
        })
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::Later => io::ErrorKind::WouldBlock,
            Error::Refused => io::ErrorKind::ConnectionRefused,
            Error::Reset => io::ErrorKind::ConnectionReset,
            Error::Closed => io::ErrorKind::BrokenPipe,
            Error::PortTaken => io::ErrorKind::AddrInUse,
            Error::Full => io::ErrorKind::OutOfMemory,
            Error::Unaddressable => io::ErrorKind::AddrNotAvailable,
            Error::TooLong => io::ErrorKind::InvalidInput,
            Error::NoSuch => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}
