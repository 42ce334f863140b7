//! Options and modes of carried sockets that libos has to know, or that are for its own channel.

use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use libos::sockets::LARGE_RING;

use super::fds::{self, End};
use super::{native, stream, user};
use crate::sys::{EFAULT, nr};

pub(super) const F_DUPFD: usize = 0;
pub(super) const F_DUPFD_CLOEXEC: usize = 1030;
const F_GETFL: usize = 3;
const F_SETFL: usize = 4;
const O_NONBLOCK: usize = 0o4000;
const O_ASYNC: usize = 0o20000;
pub(super) const FIONREAD: usize = 0x541b;
const FIONBIO: usize = 0x5421;
const FIOASYNC: usize = 0x5452;
/// In [`libos::sockets::Side::options`], as the program has set it.
const UNDELAYED: u32 = 1;
const CORKED: u32 = 2;
/// In the same: it has no large ring, since its program wants little under way.
const LITTLE: u32 = 4;
/// `IPPROTO_TCP`.
pub(super) const TCP: usize = 6;
const TCP_NODELAY: usize = 1;
const TCP_CORK: usize = 3;

/// `fcntl` and `ioctl`.
pub(super) fn control(number: usize, args: [usize; 6]) -> isize {
    let [fd, request, value, ..] = args;
    let Some(end) = fds::end_of(fd) else { return native(number, args) };
    let result = native(number, args);
    if result < 0 {
        return result;
    }
    let nonblock = &end.connection.sides[end.side].nonblock;
    match (number, request as u32 as usize) {
        (nr::FCNTL, F_SETFL) => {
            nonblock.store(u32::from(value & O_NONBLOCK != 0), Relaxed);
            if value & O_ASYNC != 0 {
                // The kernel sends the signals.
                stream::leave_to_kernel(&end);
            }
        }
        (nr::IOCTL, FIONBIO) => {
            let is_on = user::read::<u32>(value).unwrap_or(0) != 0;
            nonblock.store(u32::from(is_on), Relaxed);
        }
        (nr::IOCTL, FIOASYNC) => stream::leave_to_kernel(&end),
        (nr::IOCTL, FIONREAD) => {
            let direction = end.incoming();
            let ring = direction.filled().1 as u32;
            let kernels = user::read::<u32>(value).unwrap_or(0);
            let others = kernels.saturating_sub(direction.bell.load(Relaxed));
            if !user::write(value, &ring.saturating_add(others)) {
                return -(EFAULT as isize);
            }
        }
        _ => {}
    }
    result
}

/// Is `fd` in non-blocking mode, as the kernel has it?
pub(super) fn is_nonblocking(fd: usize) -> bool {
    let flags = super::ask(nr::FCNTL, [fd, F_GETFL]);
    flags >= 0 && flags as usize & O_NONBLOCK != 0
}

/// What has gone wrong with a connection that ends, told once.
pub(super) fn take_error(end: &End) -> Option<isize> {
    const SOCKET: usize = 1;
    const SO_ERROR: usize = 4;
    if !end.connection.is_ending() {
        return None;
    }
    let (mut error, mut len) = (0u32, 4u32);
    let at = [&raw mut error as usize, &raw mut len as usize];
    super::ask(nr::GETSOCKOPT, [end.fd, SOCKET, SO_ERROR, at[0], at[1]]);
    (error != 0).then_some(-(error as isize))
}

/// Has the program set how much may be under way, and less than a large ring holds? Asked once, when such a
/// ring would be of use.
pub(super) fn wants_little(end: &End) -> bool {
    const SOCKET: usize = 1;
    const SO_SNDBUF: usize = 7;
    const SO_BUF_LOCK: usize = 72;
    const SEND_IS_SET: u32 = 1;
    let options = &end.connection.sides[end.side].options;
    if options.load(Relaxed) & LITTLE != 0 {
        return true;
    }
    let ask = |option: usize| {
        let (mut value, mut len) = (0u32, 4u32);
        let at = [&raw mut value as usize, &raw mut len as usize];
        super::ask(nr::GETSOCKOPT, [end.fd, SOCKET, option, at[0], at[1]]);
        value
    };
    let is_little = ask(SO_BUF_LOCK) & SEND_IS_SET != 0 && (ask(SO_SNDBUF) as usize) < LARGE_RING;
    if is_little {
        options.fetch_or(LITTLE, AcqRel);
    }
    is_little
}

/// The kernel's channel of a carried connection must not hold a bell back.
pub(super) fn prepare(end: &End) {
    let on = 1u32;
    if end.connection.is_unix() {
        return;
    }
    let mut set = 0u32;
    for (bit, option) in [TCP_NODELAY, TCP_CORK].into_iter().enumerate() {
        let (mut value, mut len) = (0u32, 4u32);
        let at = [&raw mut value as usize, &raw mut len as usize];
        super::ask(nr::GETSOCKOPT, [end.fd, TCP, option, at[0], at[1]]);
        set |= u32::from(value != 0) << bit;
    }
    end.connection.sides[end.side].options.store(set, Relaxed);
    let off = 0u32;
    if set & CORKED != 0 {
        super::ask(nr::SETSOCKOPT, [end.fd, TCP, TCP_CORK, &raw const off as usize, 4]);
    }
    if set & UNDELAYED == 0 {
        super::ask(nr::SETSOCKOPT, [end.fd, TCP, TCP_NODELAY, &raw const on as usize, 4]);
    }
}

/// The kernel's channel is all there is, and as the program wants it.
pub(super) fn give_back(end: &End) {
    if end.connection.is_unix() {
        return;
    }
    let set = end.connection.sides[end.side].options.load(Relaxed);
    for (bit, option) in [TCP_NODELAY, TCP_CORK].into_iter().enumerate() {
        let value = set >> bit & 1;
        super::ask(nr::SETSOCKOPT, [end.fd, TCP, option, &raw const value as usize, 4]);
    }
}

fn bit_of(option: usize) -> Option<u32> {
    match option {
        TCP_NODELAY => Some(UNDELAYED),
        TCP_CORK => Some(CORKED),
        _ => None,
    }
}

/// `setsockopt` of a TCP option.
pub(super) fn set(fd: usize, option: usize, value: usize, args: [usize; 6]) -> isize {
    let end = fds::end_of(fd);
    let (Some(end), Some(bit)) = (end, bit_of(option)) else { return native(nr::SETSOCKOPT, args) };
    if args[4] < 4 {
        return native(nr::SETSOCKOPT, args);
    }
    let Some(value) = user::read::<u32>(value) else { return -(EFAULT as isize) };
    let options = &end.connection.sides[end.side].options;
    if value == 0 {
        options.fetch_and(!bit, AcqRel)
    } else {
        options.fetch_or(bit, AcqRel)
    };
    0
}

/// `getsockopt` of a TCP option.
pub(super) fn get(fd: usize, option: usize, args: [usize; 6]) -> isize {
    let result = native(nr::GETSOCKOPT, args);
    let end = fds::end_of(fd);
    let (Some(end), Some(bit), 0) = (end, bit_of(option), result) else { return result };
    let is_set = end.connection.sides[end.side].options.load(Relaxed) & bit != 0;
    if !user::write(args[3], &u32::from(is_set)) {
        return -(EFAULT as isize);
    }
    result
}
