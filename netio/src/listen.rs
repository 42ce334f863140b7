//! Sockets, made ready to be served.
#![expect(unsafe_code, reason = "makes sockets that the standard library has no words for")]

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::address::Address;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Receive buffer of a datagram socket: what comes while the worker is busy.
const RECEIVE_LEN: i32 = 4 << 20;

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set(fd: impl AsFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let len = size_of::<i32>() as u32;
    // SAFETY: an integer and its length.
    let done = unsafe {
        libc::setsockopt(fd.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), len)
    };
    check(done).map(drop)
}

/// For what comes while the worker is busy: as much as the administrator allows.
fn make_room(fd: &OwnedFd) -> io::Result<()> {
    let forced = set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_LEN);
    forced.or_else(|_| set(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_LEN))
}

fn family_of(address: SocketAddr) -> i32 {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

fn bind(fd: &OwnedFd, address: &Address) -> io::Result<()> {
    // SAFETY: an address of this length.
    check(unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr(), address.len() as u32) }).map(drop)
}

/// A socket that gets the datagrams to `address`.
///
/// # Errors
/// The kernel's.
pub fn udp(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = socket(family_of(address), libc::SOCK_DGRAM, 0)?;
    make_room(&fd)?;
    bind(&fd, &Address::of(address))?;
    Ok(fd)
}

/// A socket that listens for connections to `address`.
///
/// # Errors
/// The kernel's.
pub fn tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = socket(family_of(address), libc::SOCK_STREAM, 0)?;
    set(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    bind(&fd, &Address::of(address))?;
    // SAFETY: takes numbers only.
    check(unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) })?;
    Ok(fd)
}

/// A socket that gets all frames that come in by the interface `name`, and none that go out.
///
/// # Errors
/// The kernel's: there is no such interface, or the right to its frames is missing (CAP_NET_RAW).
pub fn interface(name: &str) -> io::Result<OwnedFd> {
    // Of no protocol until it is bound: it must not see other interfaces' frames meanwhile.
    let fd = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    // Answers would come back as frames, and so would what the kernel itself sends.
    set(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    make_room(&fd)?;
    take_interface(&fd, name)?;
    Ok(fd)
}

/// Have such a socket get the frames of the interface `name` from now on.
///
/// # Errors
/// The kernel's: there is no such interface.
pub fn take_interface(fd: &OwnedFd, name: &str) -> io::Result<()> {
    let text = std::ffi::CString::new(name).map_err(io::Error::other)?;
    // SAFETY: a text that ends in a zero.
    let index = unsafe { libc::if_nametoindex(text.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: plain numbers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index as i32;
    let len = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: an address of this length.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
}

/// Have a socket of UDP give out datagrams of one sender together, where the kernel has them so (UDP_GRO, from Linux
/// 5.0). False: it does not, or it is none of UDP.
#[must_use]
pub fn gather(fd: BorrowedFd<'_>) -> bool {
    set(fd, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok()
}

/// How long each of the datagrams is that were received together, from what the kernel says beside them; None if it
/// says nothing: there is one.
#[must_use]
pub fn gathered(control: &[u8]) -> Option<usize> {
    // A length, which is as long as an address, then three numbers.
    let number = |index: usize| {
        let at = size_of::<usize>() + index * size_of::<i32>();
        let bytes = control.get(at..at + size_of::<i32>())?;
        bytes.try_into().ok().map(i32::from_ne_bytes)
    };
    let is_it = number(0) == Some(libc::SOL_UDP) && number(1) == Some(libc::UDP_GRO);
    number(2).filter(|_| is_it).and_then(|len| usize::try_from(len).ok())
}

/// Has the interface of such a socket been removed?
#[must_use]
pub fn has_lost_its(fd: &OwnedFd) -> bool {
    // SAFETY: plain numbers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: room for as many bytes.
    let done =
        unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut len) };
    done == 0 && address.sll_ifindex < 0
}

/// A socket whose datagrams go to `server`, and that gets what comes from there.
///
/// # Errors
/// The kernel's.
pub fn connected_udp(server: SocketAddr) -> io::Result<OwnedFd> {
    let any: SocketAddr = if server.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    Ok(socket.into())
}

/// A socket that is about to connect to `server`.
///
/// # Errors
/// The kernel's.
pub fn connecting_tcp(server: SocketAddr) -> io::Result<OwnedFd> {
    socket(family_of(server), libc::SOCK_STREAM, 0)
}

/// Small answers go at once.
pub fn send_at_once(fd: &OwnedFd) {
    // A connection that has gone already says so when it is used.
    let _ = set(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
}

/// Send no more; what comes is still received.
pub fn end_sending(fd: &OwnedFd) {
    // SAFETY: takes numbers only. A connection that has gone needs no end.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) };
}

/// End both directions now: whoever receives is told.
pub fn end_both(fd: &OwnedFd) {
    // SAFETY: takes numbers only. A connection that has gone needs no end.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) };
}

/// The other side is told by a reset when it is closed.
pub fn reset_on_close(fd: &OwnedFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let len = size_of::<libc::linger>() as u32;
    let at = (&raw const linger).cast();
    // SAFETY: a linger and its length. A connection that has gone needs none.
    unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, at, len) };
}

/// Bytes that the other side of a connection has acknowledged so far; 0 if the kernel does not say.
#[must_use]
pub fn acknowledged(fd: &OwnedFd) -> u64 {
    /// Where the count lies in `struct tcp_info` (from Linux 4.1).
    const AT: usize = 120;
    let mut info = [0u8; AT + 8];
    let (mut len, at) = (info.len() as u32, info.as_mut_ptr().cast());
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: room for as many bytes.
    unsafe { libc::getsockopt(fd.as_raw_fd(), level, option, at, &raw mut len) };
    u64::from_ne_bytes(std::array::from_fn(|byte| info[AT + byte]))
}

/// Bytes that the kernel still has for the other side of a connection, its end counted as one; 0 if it does not
/// say.
#[must_use]
pub fn unacknowledged(fd: &OwnedFd) -> usize {
    let mut count = 0i32;
    // SAFETY: an integer.
    unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    usize::try_from(count).unwrap_or(0)
}

/// Is this a socket that datagrams, or connections, to `at` come to?
#[must_use]
pub fn is_ready(fd: &OwnedFd, udp: bool, at: SocketAddr) -> bool {
    let ask = |option: i32| {
        let (mut value, mut len) = (0i32, size_of::<i32>() as u32);
        let to = (&raw mut value).cast();
        // SAFETY: an integer and its length.
        let done =
            unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, to, &raw mut len) };
        (done == 0).then_some(value)
    };
    let kind = if udp { libc::SOCK_DGRAM } else { libc::SOCK_STREAM };
    at.port() != 0
        && ask(libc::SO_TYPE) == Some(kind)
        && (udp || ask(libc::SO_ACCEPTCONN) == Some(1))
        && Address::of_socket(fd.as_raw_fd(), false).net().socket() == Some(at)
}
