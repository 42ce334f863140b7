//! Round trips of datagrams between two processes: sockets of UDP that are connected to each other.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;

use super::Measure;
use super::pairs::rate;

/// The kind of pair, by name.
pub(super) const UDP: &str = "udp";

/// Two sockets, each of which hears the other.
pub(super) fn pair() -> io::Result<[OwnedFd; 2]> {
    let one = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let two = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    one.connect(two.local_addr()?)?;
    two.connect(one.local_addr()?)?;
    Ok([one.into(), two.into()])
}

/// Round trips per second by the kernel's and in `sandbox`.
pub(super) fn rows<'a>(launcher: &'a Path, sandbox: &'a str, scale: u64) -> Vec<Measure<'a>> {
    let ways = [(None, "kernel"), (Some(sandbox), "region")];
    let row = |(within, way)| {
        let rate = move || rate(launcher, within, UDP, 200_000 / scale);
        (format!("UDP, 64 bytes, round trips, {way}"), "1/s", Box::new(rate) as Box<_>)
    };
    ways.into_iter().map(row).collect()
}
