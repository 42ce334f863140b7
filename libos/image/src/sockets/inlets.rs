//! Datagram sockets whose datagrams go through the region: [`libos::sockets::inlets`] says how.
//!
//! ```text
//!  socket ──► one that may be carried ──► bind, connect, or sends again to a port that is known: a row
//!                     │                                   │
//!                     └── copied, sent away, or told to do what rings do not: the kernel's for good
//! ```
//!
//! A row of UDP is found by its port. Who hears what is sent to an address the table can tell alone, since nobody else
//! can have the port of a socket that does not share it. One of AF_UNIX is found by what leads to it: `local.rs`.

mod known;
mod local;
mod receive;
mod send;

pub(super) use known::Table as Known;
pub(super) use receive::{receive, receive_message};
pub(super) use send::{first, is_first, may_have_failed, send, send_message};

use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use libos::sockets::inlets::local::Address as LocalAddress;
use libos::sockets::inlets::{
    Heard, INLET, Inlet, LEFT, LOCAL, ONE_FAMILY, Place, RECEIVER, SHARED, SIX, of_port,
};
use libos::sockets::records::{DATAGRAM, SEQPACKET, STREAM};

use super::fds::{self, Alone, End};
use super::meet::{self, Address, SO_COOKIE, SO_NETNS_COOKIE, option};
use super::options::{self, F_SETFL, FIOASYNC, FIONBIO, FIONREAD, O_ASYNC, O_NONBLOCK, SOCKET};
use super::{ask, epoll, native, own_pid, sockets, stream, user};
use crate::sys::{EFAULT, nr};

const AF_INET: usize = 2;
const AF_INET6: usize = 10;
/// The part of a socket's type that is no flag.
const TYPE: usize = 0xf;
const UDP: usize = 17;
const IP: usize = 0;
const IPV6: usize = 41;
const IPV6_V6ONLY: usize = 26;
const SO_REUSEADDR: usize = 2;
const SO_SNDBUF: usize = 7;
const SO_RCVBUF: usize = 8;
const SO_REUSEPORT: usize = 15;
const SO_SNDBUFFORCE: usize = 32;
const SO_RCVBUFFORCE: usize = 33;
/// Options of sockets that change nothing about what is received, and from where: modes, buffers, times.
const PLAIN: [usize; 18] = [1, 6, 7, 8, 9, 10, 11, 12, 13, 18, 20, 21, 32, 33, 46, 49, 66, 67];
/// The same, of IPv4 and of IPv6: how what is sent is marked, and multicasts are sent.
const PLAIN_IP: [usize; 9] = [1, 2, 10, 15, 24, 32, 33, 34, 49];
const PLAIN_IPV6: [usize; 8] = [16, 17, 18, 19, 23, 26, 29, 67];
const ENOTCONN: isize = 107;

/// What is kept of the datagram socket `end`.
fn inlet_of(end: &End) -> &'static Inlet {
    &sockets().inlets.all[end.row]
}

/// The end that `fd` stands for, if that is a datagram socket's.
pub(super) fn end_of(fd: usize) -> Option<End> {
    fds::end_of(fd).filter(|end| end.connection.is_inlet())
}

/// `socket`.
#[inline(never)]
pub(super) fn made(args: [usize; 6]) -> isize {
    let [family, kind, protocol, ..] = args;
    // Of forks that come after this nothing is missed.
    fds::look_for_forks();
    let result = native(nr::SOCKET, args);
    let is_local = family == local::AF_UNIX;
    let is_udp = [AF_INET, AF_INET6].contains(&family) && [0, UDP].contains(&protocol);
    let what = match (kind & TYPE) as u32 {
        DATAGRAM if is_local => Some(Alone::LocalDatagrams),
        DATAGRAM if is_udp => Some(Alone::Datagrams),
        STREAM | SEQPACKET => Some(Alone::Connects),
        _ => None,
    };
    match (usize::try_from(result), what) {
        (Ok(fd), Some(what)) if own_pid().is_some() => fds::note_alone(fd, what),
        _ => {}
    }
    result
}

/// `bind`.
#[inline(never)]
pub(super) fn bind(args: [usize; 6]) -> isize {
    let result = native(nr::BIND, args);
    if result == 0 && fds::has_datagrams(args[0]) {
        begin(args[0]);
    } else if result == 0
        && let Some(end) = end_of(args[0])
    {
        // One of AF_UNIX that has sent already: its row has another name.
        leave(&end);
    }
    result
}

/// `connect` of a datagram socket, whether it has a row or not.
#[inline(never)]
pub(super) fn connect(args: [usize; 6]) -> isize {
    let fd = args[0];
    let result = native(nr::CONNECT, args);
    if result != 0 {
        return result;
    }
    match end_of(fd) {
        Some(end) => changed(&end),
        // Most send no more than one. `send::first` sees those that do.
        None if local::is_given(args[1]) => {}
        None => {
            let is_near = read(fd).is_some_and(|heard| {
                heard.peer.port != 0 && send::is_same_host(&heard.own, &heard.peer)
            });
            if is_near {
                begin(fd);
            }
        }
    }
    result
}

/// A socket has another peer, or none.
fn changed(end: &End) {
    let inlet = inlet_of(end);
    if is_local(end) {
        return changed_locally(end);
    }
    let port = end.connection.name[0].load(Relaxed) as u16;
    // One of IPv6 that had a peer may hear less without it than it says.
    let was_connected = inlet.heard().is_none_or(|former| former.peer.port != 0);
    let is_certain = |heard: &Heard| {
        heard.own.port == port && (heard.flags & SIX == 0 || heard.peer.port != 0 || !was_connected)
    };
    match read(end.fd).filter(is_certain) {
        Some(heard) => {
            let flags = heard.flags | inlet.flags.load(Relaxed) & LEFT;
            inlet.change(&sockets().inlets, heard.own, heard.peer, flags, heard.space);
        }
        // Or it has lost its port.
        None => leave(end),
    }
}

/// The same, of one of AF_UNIX.
fn changed_locally(end: &End) {
    let inlet = inlet_of(end);
    let former = inlet.heard().map(|former| former.peer).unwrap_or_default();
    let Some(heard) = local::read(end.fd) else { return leave(end) };
    inlet.change(&sockets().inlets, heard.own, heard.peer, heard.flags, heard.space);
    if former.port != 0 && former != heard.peer {
        local::left_peer(end, former);
    }
}

/// Is it one of AF_UNIX?
pub(super) fn is_local(end: &End) -> bool {
    end.connection.is_inlet() && inlet_of(end).flags.load(Relaxed) & LOCAL != 0
}

fn place_of(fd: usize, number: usize) -> Option<Place> {
    match Address::of(fd, number)? {
        Address::Ip(address, port) => Some(Place { address, port }),
        _ => None,
    }
}

/// What the kernel says of `fd`, if that is bound.
fn read(fd: usize) -> Option<Heard> {
    const SO_DOMAIN: usize = 39;
    let is_set = |name: usize| option(fd, name).is_some_and(|value| value as u32 != 0);
    let own = place_of(fd, nr::GETSOCKNAME).filter(|own| own.port != 0)?;
    let is_six = option(fd, SO_DOMAIN)? as usize == AF_INET6;
    let (mut only, mut len) = (1u32, 4u32);
    if is_six {
        let at = [&raw mut only as usize, &raw mut len as usize];
        ask(nr::GETSOCKOPT, [fd, IPV6, IPV6_V6ONLY, at[0], at[1]]);
    }
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    let is_shared = is_set(SO_REUSEADDR) || is_set(SO_REUSEPORT);
    Some(Heard {
        stamp: 0,
        own,
        peer: place_of(fd, nr::GETPEERNAME).unwrap_or_default(),
        flags: flag(is_six, SIX) | flag(only != 0, ONE_FAMILY) | flag(is_shared, SHARED),
        space: option(fd, SO_NETNS_COOKIE)?,
    })
}

/// The datagram socket `fd`, which is bound, has a row from now on, unless none is free.
#[inline(never)]
fn begin(fd: usize) {
    let _ = take_row(fd);
}

fn take_row(fd: usize) -> Option<()> {
    let is_local = fds::is_local(fd);
    let forks = fds::take_alone(fd)?;
    let pid = own_pid()?;
    let heard = if is_local { local::read(fd)? } else { read(fd)? };
    let limit = option(fd, if is_local { SO_SNDBUF } else { SO_RCVBUF })?;
    let (name, bound, file) = if is_local {
        local::bound(fd, &heard)?
    } else {
        (of_port(heard.own.port), LocalAddress::NONE, [0; 2])
    };
    let row = meet::take_row(&name)?;
    let connection = &sockets().connections[row];
    sockets().inlets.all[row].bound.set(&bound, file);
    connection.kind.store(DATAGRAM | INLET, Relaxed);
    let side = &connection.sides[RECEIVER];
    side.cookie.store(option(fd, SO_COOKIE).unwrap_or(0), Relaxed);
    side.nonblock.store(u32::from(options::is_nonblocking(fd)), Relaxed);
    side.hold(pid);
    // Known here, and to children that are yet to come, before anybody finds it.
    if !fds::carry(fd, row, RECEIVER) || fds::forks() != forks {
        sockets().give_up(row);
        return None;
    }
    if let Some(end) = fds::end_of(fd).filter(|_| fds::is_watched(fd)) {
        epoll::watch(&end);
    }
    sockets().begin_inlet(row, &heard, limit as u32, known::pid_space());
    Some(())
}

/// It sends and hears by the kernel from now on; what is in its ring comes first.
pub(super) fn leave(end: &End) {
    inlet_of(end).add_flags(&sockets().inlets, LEFT);
}

/// `fd` goes to somebody who may know nothing of rings.
pub(super) fn pass(fd: usize) {
    let _ = fds::not_alone(fd);
    if let Some(end) = end_of(fd) {
        leave(&end);
    }
}

/// Is `fd` a datagram socket of which options are to be known?
#[inline]
pub(super) fn concerns(fd: usize) -> bool {
    fds::has_datagrams(fd) || end_of(fd).is_some()
}

/// `setsockopt` of such.
#[inline(never)]
pub(super) fn set_option(args: [usize; 6]) -> isize {
    let [fd, level, name, value, len, _] = args;
    let result = native(nr::SETSOCKOPT, args);
    if result != 0 {
        return result;
    }
    let value = if len < 4 { None } else { user::read::<u32>(value) };
    let is_off = value == Some(0);
    match (level, name) {
        (SOCKET, SO_RCVBUF | SO_RCVBUFFORCE) => note_limit(fd, false),
        (SOCKET, SO_SNDBUF | SO_SNDBUFFORCE) => note_limit(fd, true),
        (SOCKET, SO_REUSEADDR | SO_REUSEPORT) => {
            if let Some(end) = end_of(fd).filter(|_| !is_off) {
                inlet_of(&end).add_flags(&sockets().inlets, SHARED);
            }
        }
        (SOCKET, _) if PLAIN.contains(&name) => {}
        (IP, _) if PLAIN_IP.contains(&name) => {}
        (IPV6, _) if PLAIN_IPV6.contains(&name) => {}
        _ if is_off => {}
        _ => pass(fd),
    }
    result
}

/// Of one of AF_UNIX it is the buffer for what it sends that says how much it may, of others that for what they receive.
fn note_limit(fd: usize, is_for_sending: bool) {
    let Some(end) = end_of(fd).filter(|end| is_local(end) == is_for_sending) else { return };
    if let Some(limit) = option(fd, if is_for_sending { SO_SNDBUF } else { SO_RCVBUF }) {
        inlet_of(&end).limit.store(limit as u32, Relaxed);
    }
}

/// `fcntl` and `ioctl`.
#[inline(never)]
pub(super) fn control(end: &End, number: usize, args: [usize; 6]) -> isize {
    let [_, request, value, ..] = args;
    let request = request as u32 as usize;
    if (number, request) == (nr::IOCTL, FIONREAD)
        && let Some(len) = receive::next_len(end)
    {
        return if user::write(value, &(len as u32)) { 0 } else { -(EFAULT as isize) };
    }
    let result = native(number, args);
    if result < 0 {
        return result;
    }
    match (number, request) {
        (nr::FCNTL, F_SETFL) => {
            options::note_nonblock(end, value & O_NONBLOCK != 0);
            if value & O_ASYNC != 0 {
                leave(end);
            }
        }
        (nr::IOCTL, FIONBIO) => {
            options::note_nonblock(end, user::read::<u32>(value).unwrap_or(0) != 0);
        }
        (nr::IOCTL, FIOASYNC) => leave(end),
        (nr::IOCTL, FIONREAD) if user::read::<u32>(value) != Some(0) => {
            inlet_of(end).peeked.store(1, Relaxed);
        }
        _ => {}
    }
    result
}

/// `shutdown`, which a socket without a peer says to have refused, and carries out.
#[inline(never)]
pub(super) fn shutdown(end: &End, args: [usize; 6]) -> isize {
    const READ: usize = 0;
    const WRITE: usize = 1;
    let result = native(nr::SHUTDOWN, args);
    if result == 0 || result == -ENOTCONN {
        if args[1] != READ {
            stream::shut(end.outgoing());
        }
        if args[1] != WRITE {
            stream::shut(end.incoming());
        }
        epoll::look_again(end);
    }
    result
}

/// A call that moves pages to or from a datagram socket.
#[inline(never)]
pub(super) fn spliced(end: &End, number: usize, args: [usize; 6]) -> isize {
    leave(end);
    let result = native(number, args);
    inlet_of(end).strays.fetch_add(1, AcqRel);
    result
}
