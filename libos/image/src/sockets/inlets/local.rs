//! Datagram sockets of AF_UNIX: what the kernel says of them, and of what leads to them.

use core::sync::atomic::Ordering::Relaxed;

use libos::sockets::Name;
use libos::sockets::inlets::local::{Address, File, GIVEN_MAX, Way, name_of, place};
use libos::sockets::inlets::{Heard, Inlet, LOCAL, NAME_MAX, Place};

use super::super::fds::End;
use super::super::meet::{SO_NETNS_COOKIE, inode_of, option, peer_of_unix, vfs_of_unix};
use super::super::{ask, sockets, user};
use crate::sys::nr;

/// `AF_UNIX`.
pub(super) const AF_UNIX: usize = 1;

/// The address that the program gives; None if it is for the kernel to judge.
pub(super) fn given(at: usize, len: usize) -> Option<Address> {
    let mut raw = [0u8; GIVEN_MAX];
    let part = raw.get_mut(..len)?;
    if !user::copy(part.as_mut_ptr() as usize, at, len) || family(part) != Some(AF_UNIX) {
        return None;
    }
    Address::given(part)
}

fn family(raw: &[u8]) -> Option<usize> {
    raw.first_chunk().map(|family| usize::from(u16::from_ne_bytes(*family)))
}

/// Is the address that the program gives one of AF_UNIX?
pub(super) fn is_given(at: usize) -> bool {
    user::read::<u16>(at).is_some_and(|family| usize::from(family) == AF_UNIX)
}

/// What the kernel says of `fd`, which need not be bound.
pub(super) fn read(fd: usize) -> Option<Heard> {
    let inode = u64::from(inode_of(fd)?);
    let peer = match asked(fd, nr::GETPEERNAME) {
        Some(_) => place(u64::from(peer_of_unix(inode as u32)?)),
        None => Place::default(),
    };
    let space = option(fd, SO_NETNS_COOKIE)?;
    Some(Heard { stamp: 0, own: place(inode), peer, flags: LOCAL, space })
}

/// What `fd`, which is `heard`, is bound to, and the name of its row.
pub(super) fn bound(fd: usize, heard: &Heard) -> Option<(Name, Address, File)> {
    let inode = heard.own.address[0];
    let name = asked(fd, nr::GETSOCKNAME)?;
    let file = match name.path() {
        // Another may have come to be there since, and a path that is as long as can be may have been cut off.
        Some(path) => {
            file_at(path).filter(|file| Some(file[1] as u32) == vfs_of_unix(inode as u32))?
        }
        None => [0; 2],
    };
    Some((name_of(inode, &name, file, heard.space), name, file))
}

/// What `getsockname` or `getpeername` says.
fn asked(fd: usize, number: usize) -> Option<Address> {
    let mut raw = [0u8; NAME_MAX];
    let mut len = NAME_MAX as u32;
    let asked = ask(number, [fd, raw.as_mut_ptr() as usize, &raw mut len as usize]);
    (asked == 0).then(|| Address::told(&raw[..(len as usize).min(NAME_MAX)]))
}

/// The file at `path`, which a zero follows.
fn file_at(path: &[u8]) -> Option<File> {
    const STAT: usize = 4;
    let mut stat = [0u64; 18];
    let asked = ask(STAT, [path.as_ptr() as usize, stat.as_mut_ptr() as usize]);
    (asked == 0).then_some([stat[0], stat[1]])
}

/// The socket file that `name`, a path, leads this thread to, if it may write there.
pub(super) fn file_of(name: &Address) -> Option<File> {
    const FACCESSAT2: usize = 439;
    const AT_FDCWD: isize = -100;
    const WRITE: usize = 2;
    const AT_EACCESS: usize = 0x200;
    let path = name.path()?;
    let at = path.as_ptr() as usize;
    let file = file_at(path)?;
    let may = ask(FACCESSAT2, [AT_FDCWD as usize, at, WRITE, AT_EACCESS]) == 0;
    may.then_some(file)
}

/// Does `name` still lead to this inlet, which is what it was?
pub(super) fn leads_to(name: &Address, inlet: &Inlet) -> bool {
    if name.is_abstract() {
        return inlet.bound.name() == *name;
    }
    file_of(name).is_some_and(|file| inlet.bound.is_at(file))
}

/// `end` has another peer than `former`, or none. What it had not received is forgotten, as the kernel does, and tells
/// the former peer.
pub(super) fn left_peer(end: &End, former: Place) {
    let direction = end.incoming();
    let (head, filled) = direction.filled();
    let _ = filled != 0 && direction.take(head, filled);
    if let Some((row, _)) = sockets().find_local(Way::Socket(former.address[0])) {
        sockets().inlets.all[row].failed.store(1, Relaxed);
    }
}
