//! Datagram sockets that are connected to each other, in pairs: of UDP, and of AF_UNIX with names.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Kinds of pairs, by name.
pub(super) const UDP: &str = "udp";
pub(super) const NAMED: &str = "named";

/// Two sockets, each of which hears the other.
pub(super) fn udp() -> io::Result<[OwnedFd; 2]> {
    let one = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let two = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    one.connect(two.local_addr()?)?;
    two.connect(one.local_addr()?)?;
    Ok([one.into(), two.into()])
}

/// The same of AF_UNIX, with abstract names.
pub(super) fn named() -> io::Result<[OwnedFd; 2]> {
    let name =
        |which| SocketAddr::from_abstract_name(format!("sbx-bench-{}-{which}", std::process::id()));
    let (one, two) = (UnixDatagram::bind_addr(&name(1)?)?, UnixDatagram::bind_addr(&name(2)?)?);
    one.connect_addr(&name(2)?)?;
    two.connect_addr(&name(1)?)?;
    Ok([one.into(), two.into()])
}
