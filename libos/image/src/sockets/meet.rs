//! How the two ends of a connection find each other, and how a process comes by ends of others.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use libos::sockets::records::{DATAGRAM, STREAM};
use libos::sockets::{ACCEPTED, MANY, Name, Side, UNIX, watched};

use super::fds::{self, End};
use super::options::SOCKET;
use super::{
    ask, counters, epoll, inlets, messages, native, open, options, own_pid, pipes, records,
    sockets, stream, user,
};
use crate::sys::{self, nr};
use crate::{start, time};

const SO_TYPE: usize = 3;
const SO_PROTOCOL: usize = 38;
pub(super) const SO_COOKIE: usize = 57;
pub(super) const SO_NETNS_COOKIE: usize = 71;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const EINPROGRESS: isize = 115;
pub(super) const SOCK_NONBLOCK: usize = 0o4000;
/// How long to look for an offer that is about to appear: who makes it may have to wait for a core.
const OFFER_NS: u64 = 20_000_000;
/// The same for addresses for which nobody says that one is about to.
const UNTOLD_NS: u64 = 30_000;
/// How long to look without letting others run: less than that takes.
const ALONE_NS: u64 = 500;

/// An address of a socket, as far as it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Address {
    Unix,
    /// IPv6, or IPv4 as part of it, and the port.
    Ip([u64; 2], u16),
    Other,
}

pub(super) type Raw = [u8; 28];

impl Address {
    pub(super) fn from_raw(raw: &Raw) -> Self {
        let word = |at: usize| {
            let bytes = raw.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            u64::from_be_bytes(bytes.unwrap_or_default())
        };
        let port = u16::from_be_bytes([raw[2], raw[3]]);
        match u16::from_ne_bytes([raw[0], raw[1]]) {
            AF_UNIX => Self::Unix,
            AF_INET => {
                let v4 = u32::from_be_bytes([raw[4], raw[5], raw[6], raw[7]]);
                Self::Ip([0, 0xffff_0000_0000 | u64::from(v4)], port)
            }
            AF_INET6 => Self::Ip([word(8), word(16)], port),
            _ => Self::Other,
        }
    }

    /// What `getsockname` or `getpeername` says.
    pub(super) fn of(fd: usize, number: usize) -> Option<Self> {
        let mut raw: Raw = [0; 28];
        let mut len = 28u32;
        let asked = ask(number, [fd, raw.as_mut_ptr() as usize, &raw mut len as usize]);
        (asked == 0).then(|| Self::from_raw(&raw))
    }

    const fn is_loopback(self) -> bool {
        match self {
            Self::Unix => true,
            Self::Ip([0, low], _) => low == 1 || low >> 24 == 0x00ff_ff7f,
            _ => false,
        }
    }

    fn is_same_host(self, other: Self) -> bool {
        match (self, other) {
            (Self::Ip(one, _), Self::Ip(two, _)) => {
                one == two || self.is_loopback() && other.is_loopback()
            }
            _ => false,
        }
    }
}

pub(super) fn option(fd: usize, name: usize) -> Option<u64> {
    let (mut value, mut len) = (0u64, 8u32);
    let at = [&raw mut value as usize, &raw mut len as usize];
    (ask(nr::GETSOCKOPT, [fd, SOCKET, name, at[0], at[1]]) == 0).then_some(value)
}

/// What names the connection of the socket `fd`, of the side that connected.
fn name(fd: usize, side: usize) -> Option<Name> {
    let kind = option(fd, SO_TYPE)? as u32;
    let own = Address::of(fd, nr::GETSOCKNAME)?;
    if own == Address::Unix {
        if kind == DATAGRAM {
            return None;
        }
        let inode = if side == 0 { inode_of(fd)? } else { peer_of_unix(inode_of(fd)?)? };
        return Some([UNIX | u64::from(inode), 0, 0, 0, 0]);
    }
    if kind != STREAM || option(fd, SO_PROTOCOL)? as u32 != options::TCP as u32 {
        return None;
    }
    let space = option(fd, SO_NETNS_COOKIE)?;
    // While it is connecting, the kernel does not tell the other side's address: the caller has it.
    let other = Address::of(fd, nr::GETPEERNAME)?;
    named(own, other, side, space)
}

fn named(own: Address, other: Address, side: usize, space: u64) -> Option<Name> {
    if !own.is_same_host(other) {
        return None;
    }
    let (from, to) = if side == 0 { (own, other) } else { (other, own) };
    let (Address::Ip(from, from_port), Address::Ip(to, to_port)) = (from, to) else { return None };
    let ports = u64::from(from_port) << 16 | u64::from(to_port);
    Some([(space << 32 | ports) & !UNIX, from[0], from[1], to[0], to[1]])
}

/// `connect`.
pub(super) fn connect(args: [usize; 6]) -> isize {
    let [fd, at, len, ..] = args;
    let Some(pid) = own_pid() else { return native(nr::CONNECT, args) };
    let mut raw: Raw = [0; 28];
    let is_read =
        (2..=110).contains(&len) && user::copy(raw.as_mut_ptr() as usize, at, len.min(raw.len()));
    let to = if is_read { Address::from_raw(&raw) } else { Address::Other };
    if let Some(end) = fds::end_of(fd) {
        return reconnect(&end, args, u16::from_ne_bytes([raw[0], raw[1]]), pid);
    }
    if to == Address::Other {
        return native(nr::CONNECT, args);
    }
    let is_near = to.is_loopback();
    if is_near {
        sockets().connecting_ns.store(time::now_ns(), Relaxed);
        sockets().connecting.fetch_add(1, AcqRel);
    }
    let result = native(nr::CONNECT, args);
    if result == 0 || result == -EINPROGRESS {
        let _ = offer(fd, to, pid);
    }
    if is_near {
        sockets().connecting.fetch_sub(1, AcqRel);
    }
    result
}

/// `connect` of an end. What a datagram socket hears then may be from others; a stream of TCP that is dissolved so may
/// be connected to others, and is the kernel's then.
fn reconnect(end: &End, args: [usize; 6], family: u16, pid: u32) -> isize {
    const AF_UNSPEC: u16 = 0;
    if family == AF_UNSPEC && !end.connection.is_unix() {
        let result = native(nr::CONNECT, args);
        if result == 0 {
            options::give_back(end);
            stream::leave_to_kernel(end);
            let (head, filled) = end.incoming().filled();
            let _ = end.incoming().take(head, filled);
            fds::dissolved(end, pid);
        }
        return result;
    }
    let is_datagram = end.connection.socket_type() == DATAGRAM;
    if is_datagram {
        stream::leave_to_kernel(end);
    }
    let result = native(nr::CONNECT, args);
    if result == 0 && is_datagram {
        records::reconnected(end);
    }
    result
}

/// A row for a connection of this name.
pub(super) fn take_row(name: &Name) -> Option<usize> {
    sockets().take_row(name).or_else(|| {
        sockets().reap(time::now_ns());
        sockets().take_row(name)
    })
}

/// Have the side that accepts find this connection.
fn offer(fd: usize, to: Address, pid: u32) -> Option<()> {
    let forks = fds::take_alone(fd)?;
    let name = match to {
        Address::Unix => name(fd, 0)?,
        _ => {
            if option(fd, SO_TYPE)? as u32 != STREAM
                || option(fd, SO_PROTOCOL)? as u32 != options::TCP as u32
            {
                return None;
            }
            let own = Address::of(fd, nr::GETSOCKNAME)?;
            named(own, to, 0, option(fd, SO_NETNS_COOKIE)?)?
        }
    };
    let (kind, cookie) = (option(fd, SO_TYPE)? as u32, option(fd, SO_COOKIE)?);
    let row = take_row(&name)?;
    let connection = &sockets().connections[row];
    connection.kind.store(kind, Relaxed);
    let side = &connection.sides[0];
    side.cookie.store(cookie, Relaxed);
    side.nonblock.store(u32::from(options::is_nonblocking(fd)), Relaxed);
    side.hold(pid);
    // Known here before anybody takes it: what is sent from now on is counted.
    let is_known = fds::carry(fd, row, 0);
    if fds::forks() != forks {
        sockets().give_up(row);
        return None;
    }
    if let Some(end) = fds::end_of(fd) {
        stream::note_core(end.outgoing());
        if fds::is_watched(fd) {
            epoll::watch(&end);
        }
    }
    if let Some(end) = fds::end_of(fd) {
        note_options(&end);
    }
    sockets().offer(row);
    if is_known {
        options::prepare(&fds::end_of(fd)?);
    } else {
        let _ = sockets().withdraw(row);
    }
    Some(())
}

/// `accept` and `accept4`.
pub(super) fn accept(number: usize, args: [usize; 6]) -> isize {
    let result = native(number, args);
    if result >= 0
        && let Some(pid) = own_pid()
    {
        let flags = if number == nr::ACCEPT4 { args[3] } else { 0 };
        fds::is_new(result as usize);
        if fds::is_left(args[0]) {
            fds::leave(result as usize);
        }
        let _ = take_offer(result as usize, flags & SOCK_NONBLOCK != 0, pid);
    }
    result
}

fn take_offer(fd: usize, nonblock: bool, pid: u32) -> Option<()> {
    let own = Address::of(fd, nr::GETSOCKNAME)?;
    let all = sockets();
    let is_unix = own == Address::Unix;
    let may_come = || {
        all.connecting.load(Acquire) != 0
            && time::now_ns().saturating_sub(all.connecting_ns.load(Relaxed)) < OFFER_NS
    };
    if is_unix && all.unix_offers.load(Acquire) == 0 && !may_come() {
        return None;
    }
    let name = name(fd, 1)?;
    let began = time::now_ns();
    let row = loop {
        // Asked before the look: who offers does so first, and says that it has afterwards.
        let (told, untold) = (may_come(), !is_unix && !own.is_loopback());
        if let Some(row) = all.take_offer(&name) {
            break row;
        }
        let looked_ns = time::now_ns() - began;
        if !(told || untold && looked_ns < UNTOLD_NS) {
            all.no_offer.fetch_add(1, Relaxed);
            return None;
        }
        // Who offers may be waiting for this core.
        if looked_ns > ALONE_NS {
            sys::sched_yield();
        }
        core::hint::spin_loop();
    };
    let side = &all.connections[row].sides[1];
    side.cookie.store(option(fd, SO_COOKIE).unwrap_or(0), Relaxed);
    side.nonblock.store(u32::from(nonblock), Relaxed);
    side.hold(pid);
    let other = all.connections[row].sides[0].holders[0].load(Relaxed);
    if !sys::task_exists(other) || !fds::carry(fd, row, 1) {
        all.let_go(row, 1, pid, time::now_ns());
        return None;
    }
    let end = fds::end_of(fd)?;
    note_options(&end);
    options::prepare(&end);
    stream::note_core(end.outgoing());
    all.join(row);
    Some(())
}

/// What its own options have to say of how a socket that begins to be carried may be.
fn note_options(end: &End) {
    if fds::is_left(end.fd) {
        stream::leave_to_kernel(end);
    } else if options::is_for_kernel(end.fd, end.connection.is_unix()) {
        stream::shut(end.incoming());
    }
    if end.connection.has_records() {
        records::note_limit(end);
    }
}

/// What the kernel says of the file behind a descriptor: its device, its inode, its links, then its mode.
pub(super) fn stat_of(fd: usize) -> Option<[u64; 18]> {
    let mut stat = [0u64; 18];
    (ask(nr::FSTAT, [fd, stat.as_mut_ptr() as usize]) == 0).then_some(stat)
}

/// The number of a socket's inode.
pub(super) fn inode_of(fd: usize) -> Option<u32> {
    stat_of(fd).map(|stat| stat[1] as u32)
}

/// The inode of the socket at the other end of an AF_UNIX socket's connection.
pub(super) fn peer_of_unix(inode: u32) -> Option<u32> {
    const SHOW_PEER: u32 = 4;
    const PEER: u16 = 2;
    asked_of_unix(inode, SHOW_PEER, PEER)
}

/// The inode of the file that an AF_UNIX socket is bound to.
pub(super) fn vfs_of_unix(inode: u32) -> Option<u32> {
    const SHOW_VFS: u32 = 2;
    const VFS: u16 = 1;
    asked_of_unix(inode, SHOW_VFS, VFS)
}

/// What the kernel's tables have of an AF_UNIX socket: the first word of what is asked for.
fn asked_of_unix(inode: u32, show: u32, attribute: u16) -> Option<u32> {
    const AF_NETLINK: usize = 16;
    const RAW_CLOEXEC: usize = 3 | 0o2000000;
    const SOCK_DIAG: usize = 4;
    const BY_FAMILY: u32 = 20;
    const REQUEST: u32 = 1;
    const ATTRIBUTES_AT: usize = 32;
    let fd = ask(nr::SOCKET, [AF_NETLINK, RAW_CLOEXEC, SOCK_DIAG]);
    let fd = usize::try_from(fd).ok()?;
    // A netlink header, then what is asked: family, all states, the inode, what to show, any cookie.
    let request =
        [40u32, BY_FAMILY | REQUEST << 16, 1, 0, u32::from(AF_UNIX), !0, inode, show, !0, !0];
    let mut answer = [0u8; 256];
    let sent = ask(nr::SENDTO, [fd, request.as_ptr() as usize, 40]);
    let got = ask(nr::RECVFROM, [fd, answer.as_mut_ptr() as usize, answer.len(), 0]);
    ask(nr::CLOSE, [fd]);
    let mut rest = answer.get(ATTRIBUTES_AT..usize::try_from(got).ok()?).filter(|_| sent == 40)?;
    while let [a, b, c, d, ..] = *rest {
        let (len, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        if kind == attribute {
            let value = rest.get(4..8)?.try_into().ok()?;
            return Some(u32::from_ne_bytes(value));
        }
        rest = rest.get(len.max(4).next_multiple_of(4)..)?;
    }
    None
}

/// `fd` has come from elsewhere: if it is an end of a carried connection, it stands for that here as well.
pub(super) fn adopt(fd: usize, pid: u32, is_passed: bool) {
    fds::is_new(fd);
    let cookie = option(fd, SO_COOKIE)
        .or_else(|| pipes::cookie_of(fd))
        .or_else(|| if is_passed { None } else { counters::cookie_of(fd) });
    if let Some(cookie) = cookie.filter(|cookie| *cookie != 0)
        && let Some(side) = adopt_known(fd, cookie, pid)
        && is_passed
    {
        side.received();
    }
}

/// The same, of a descriptor with this cookie; of which side it is an end.
pub(super) fn adopt_known(fd: usize, cookie: u64, pid: u32) -> Option<&'static Side> {
    for row in sockets().rows() {
        let connection = &sockets().connections[row];
        let has_ends = connection.state.load(Acquire) >= ACCEPTED;
        let is_it = |side: &usize| connection.sides[*side].cookie.load(Relaxed) == cookie;
        let Some(side) = (0..2).find(is_it).filter(|_| has_ends) else { continue };
        connection.sides[side].hold(pid);
        if connection.is_inlet() {
            // Whoever has been told that nobody hears there asks again.
            sockets().inlets.changes.fetch_add(1, AcqRel);
        }
        if !fds::carry_too(fd, row, side) {
            stream::leave_to_kernel(&End { fd, row, side, connection });
        }
        return Some(&connection.sides[side]);
    }
    None
}

/// Descriptors may have come with the message at `at`.
pub(super) fn adopt_passed(at: usize) {
    if let Some(pid) = own_pid().filter(|_| sockets().used.load(Relaxed) != 0) {
        each_passed(at, |fd| adopt(fd, pid, true));
    }
}

/// Descriptors are about to go by the socket `by` with the message at `at`: until they are received, those of carried
/// connections are nobody's, and yet not closed. Whoever hears that may be a stranger, unless `by` is carried.
pub(super) fn about_to_pass(by: usize, at: usize) {
    // Who receives what goes to a name may be anybody.
    let is_known = |by: End| stream::is_joined(&by) && !by.connection.is_inlet();
    let is_known = fds::end_of(by).is_some_and(is_known);
    each_passed(at, |fd| {
        // Pipes go to strangers more often than sockets do.
        pipes::pass(fd);
        counters::leave(fd);
        inlets::pass(fd);
        if let Some(end) = fds::end_of(fd).filter(End::is_needed) {
            end.connection.sides[end.side].passed.fetch_add(1, AcqRel);
            if !is_known && end.connection.is_socket() && !end.connection.is_inlet() {
                stream::pass(&end);
            }
        }
    });
}

/// They have not gone.
pub(super) fn not_passed(at: usize) {
    each_passed(at, |fd| {
        if let Some(end) = fds::end_of(fd) {
            end.connection.sides[end.side].received();
        }
    });
}

/// The descriptors that go or come with the message at `at`. What is more than the kernel takes is not read.
pub(super) fn each_passed(at: usize, mut on: impl FnMut(usize)) {
    const RIGHTS: [u32; 2] = [SOCKET as u32, 1];
    const HEADER: usize = 16;
    const RIGHTS_MAX: usize = 253;
    const CONTROL_MAX: usize = 1 << 20;
    let Some((mut at, len)) = messages::control_of(at) else { return };
    let mut len = len.min(CONTROL_MAX);
    while len >= HEADER {
        let Some(size) = user::read::<usize>(at).filter(|size| (HEADER..=len).contains(size))
        else {
            return;
        };
        if user::read::<[u32; 2]>(at + 8) == Some(RIGHTS) {
            for offset in (HEADER..size).step_by(4).take(RIGHTS_MAX) {
                let Some(fd) = user::read::<u32>(at + offset) else { return };
                on(fd as usize);
            }
        }
        let step = size.next_multiple_of(8).min(len);
        (at, len) = (at + step, len - step);
    }
}

/// A program begins that may have inherited ends of carried connections.
pub(crate) fn adopt_after_exec() {
    let Some(pid) = own_pid() else { return };
    if sockets().rows().next().is_some() {
        adopt_inherited(pid);
    }
    // What the program before it waited by is no more.
    for watcher in &sockets().watchers {
        let _ = watcher.pid.compare_exchange(pid, 0, AcqRel, Relaxed);
    }
}

/// What the process had and has no longer is let go; what it still has is taken up again.
fn adopt_inherited(pid: u32) {
    let had: bool = sockets().rows().any(|row| {
        let holds = |holder: &core::sync::atomic::AtomicU32| holder.load(Relaxed) == pid;
        sockets().connections[row].sides.iter().any(|side| side.holders.iter().any(holds))
    });
    let mut any = false;
    open::each(|fd| {
        adopt(fd, pid, false);
        any |= fds::end_of(fd).is_some();
    });
    if any {
        wait_anew(pid);
    }
    if !had {
        return;
    }
    for row in sockets().rows() {
        for side in 0..2 {
            let is_held = fds::ends().any(|end| (end.row, end.side) == (row, side));
            let holders = &sockets().connections[row].sides[side].holders;
            if !is_held && holders.iter().any(|holder| holder.load(Relaxed) == pid) {
                sockets().let_go(row, side, pid, time::now_ns());
            }
        }
    }
}

/// If others wait for what has been inherited in a set of theirs, they still do. How the process itself does
/// by an epoll instance that it has inherited, too, nobody knows.
fn wait_anew(pid: u32) {
    let way = if open::any_epoll() { MANY } else { 0 };
    for end in fds::ends() {
        let watch = &end.incoming().waiting.watch;
        let word = watch.load(Acquire);
        let is_own = |watcher: usize| sockets().watchers[watcher].pid.load(Relaxed) == pid;
        if word == 0 || watched(word).is_some_and(|(watcher, _)| is_own(watcher)) {
            let _ = watch.compare_exchange(word, way, AcqRel, Relaxed);
        }
    }
}

/// A forked child has what its parent had.
pub(crate) fn hold_after_fork() {
    let Some(own) = start::this_process() else { return };
    fds::none_is_alone();
    for end in fds::ends() {
        end.connection.sides[end.side].hold(own.pid);
    }
    sockets().inlets.changes.fetch_add(1, AcqRel);
}
