//! Connections that begin as pairs: both ends are here, and carried from the beginning.

use core::sync::atomic::Ordering::Relaxed;

use libos::sockets::records::{DATAGRAM, SEQPACKET, STREAM};
use libos::sockets::{JOINED, Name, PAIR, UNIX};

use super::fds;
use super::meet::{self, SO_COOKIE, SOCK_NONBLOCK, option};
use super::{native, own_pid, records, sockets, user};
use crate::sys::nr;

const AF_UNIX: usize = 1;
/// The part of a socket's type that is no flag.
const TYPE: usize = 0xf;

/// `socketpair`.
pub(super) fn socketpair(args: [usize; 6]) -> isize {
    let [family, kind, _, at, ..] = args;
    let result = native(nr::SOCKETPAIR, args);
    if result == 0
        && let Some(made) = user::read::<[u32; 2]>(at)
        && let Some(pid) = own_pid()
    {
        let made = made.map(|fd| fd as usize);
        made.iter().for_each(|fd| fds::is_new(*fd));
        let is_kind = [STREAM, DATAGRAM, SEQPACKET].contains(&((kind & TYPE) as u32));
        if family == AF_UNIX && is_kind {
            let _ = carry(made, kind, pid);
        }
    }
    result
}

/// Both of `made` are ends of one connection.
fn carry(made: [usize; 2], kind: usize, pid: u32) -> Option<()> {
    let name: Name = [UNIX | u64::from(meet::inode_of(made[0])?), 0, 0, 0, 0];
    let cookies = [option(made[0], SO_COOKIE)?, option(made[1], SO_COOKIE)?];
    let nonblock = kind & SOCK_NONBLOCK != 0;
    join(made, &name, (kind & TYPE) as u32 | PAIR, cookies, nonblock, pid)
}

/// `made` are the two ends of something that has just been made.
pub(super) fn join(
    made: [usize; 2],
    name: &Name,
    kind: u32,
    cookies: [u64; 2],
    nonblock: bool,
    pid: u32,
) -> Option<()> {
    if !made.iter().all(|fd| fds::is_known(*fd)) {
        return None;
    }
    let row = meet::take_row(name)?;
    let connection = &sockets().connections[row];
    connection.kind.store(kind, Relaxed);
    for (side, cookie) in connection.sides.iter().zip(cookies) {
        side.cookie.store(cookie, Relaxed);
        side.nonblock.store(u32::from(nonblock), Relaxed);
        side.hold(pid);
    }
    for (side, fd) in made.into_iter().enumerate() {
        fds::carry(fd, row, side);
    }
    if let Some(end) = fds::end_of(made[0]).filter(|end| end.connection.has_records()) {
        records::note_limit(&end);
    }
    sockets().join(row);
    debug_assert_eq!(connection.state.load(Relaxed), JOINED);
    Some(())
}
