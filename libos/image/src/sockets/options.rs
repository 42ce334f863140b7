//! Options and modes of carried sockets that libos has to know, or that are for its own channel.

use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use libos::sockets::{Direction, LARGE_RING};

use super::fds::{self, End};
use super::{bells, counters, inlets, meet, native, pipes, records, stream, user};
use crate::sys::{EFAULT, ENOENT, nr};

pub(super) const F_DUPFD: usize = 0;
pub(super) const F_DUPFD_CLOEXEC: usize = 1030;
const F_GETFL: usize = 3;
pub(super) const F_SETFL: usize = 4;
pub(super) const O_NONBLOCK: usize = 0o4000;
pub(super) const O_ASYNC: usize = 0o20000;
pub(super) const FIONREAD: usize = 0x541b;
pub(super) const FIONBIO: usize = 0x5421;
const SIOCOUTQ: usize = 0x5411;
pub(super) const FIOASYNC: usize = 0x5452;
/// In [`libos::sockets::Side::options`], as the program has set it.
const UNDELAYED: u32 = 1;
const CORKED: u32 = 2;
/// In the same: it has no large ring, since its program wants little under way.
const LITTLE: u32 = 4;
/// `SOL_SOCKET`.
pub(super) const SOCKET: usize = 1;
const SO_SNDBUF: usize = 7;
const SO_PASSCRED: usize = 16;
const SO_RCVLOWAT: usize = 18;
const SO_ATTACH_FILTER: usize = 26;
const SO_SNDBUFFORCE: usize = 32;
const SO_PEEK_OFF: usize = 42;
const SO_ATTACH_BPF: usize = 50;
/// Options that have messages come with more than their bytes: credentials, labels, times, counts.
const TELLING: [usize; 11] = [SO_PASSCRED, 29, 34, 35, 37, 40, 63, 64, 65, 76, 84];
/// `IPPROTO_TCP`.
pub(super) const TCP: usize = 6;
const TCP_NODELAY: usize = 1;
const TCP_CORK: usize = 3;
const TCP_INFO: usize = 11;
const TCP_ULP: usize = 31;
const TCP_INQ: usize = 36;

/// `fcntl` and `ioctl`.
pub(super) fn control(number: usize, args: [usize; 6]) -> isize {
    let [fd, request, value, ..] = args;
    let Some(end) = fds::end_of(fd) else {
        let result = native(number, args);
        if result == 0 && asks_for_signals(number, request, value) {
            fds::leave(fd);
        }
        return result;
    };
    if end.connection.is_pipe() {
        return pipes::control(&end, number, args);
    }
    if end.connection.is_counter() {
        return counters::control(&end, number, args);
    }
    if end.connection.is_inlet() {
        return inlets::control(&end, number, args);
    }
    if (number, request as u32 as usize) == (nr::IOCTL, FIONREAD) {
        bells::hear(&end, end.incoming());
    }
    let result = native(number, args);
    if result < 0 {
        return result;
    }
    match (number, request as u32 as usize) {
        (nr::FCNTL, F_SETFL) => {
            note_nonblock(&end, value & O_NONBLOCK != 0);
            if value & O_ASYNC != 0 {
                // The kernel sends the signals.
                stream::leave_to_kernel(&end);
            }
        }
        (nr::IOCTL, FIONBIO) => {
            note_nonblock(&end, user::read::<u32>(value).unwrap_or(0) != 0);
        }
        (nr::IOCTL, FIOASYNC) => stream::leave_to_kernel(&end),
        (nr::IOCTL, FIONREAD) => {
            let direction = end.incoming();
            let ring = direction.filled().1 as u32;
            let kernels = user::read::<u32>(value).unwrap_or(0);
            let all = if end.connection.has_records() {
                records::waiting(&end, kernels)
            } else {
                ring.saturating_add(kernels.saturating_sub(direction.bells()))
            };
            if !user::write(value, &all) {
                return -(EFAULT as isize);
            }
        }
        // What has not been read; of TCP, what has not come, and what is in a ring has.
        (nr::IOCTL, SIOCOUTQ) if end.connection.is_unix() => {
            let direction = end.outgoing();
            let kernels = user::read::<u32>(value).unwrap_or(0);
            let ring = direction.filled().1 as u32;
            let others = if direction.is_in_kernel() { kernels } else { 0 };
            if !user::write(value, &ring.saturating_add(others)) {
                return -(EFAULT as isize);
            }
        }
        _ => {}
    }
    result
}

/// Does the call have the kernel send signals of what comes?
fn asks_for_signals(number: usize, request: usize, value: usize) -> bool {
    match (number, request as u32 as usize) {
        (nr::FCNTL, F_SETFL) => value & O_ASYNC != 0,
        (nr::IOCTL, FIOASYNC) => user::read::<u32>(value).is_some_and(|value| value != 0),
        _ => false,
    }
}

/// Calls on it wait from now on, or do not.
pub(super) fn note_nonblock(end: &End, is_on: bool) {
    end.connection.sides[end.side].nonblock.store(u32::from(is_on), Relaxed);
}

/// `setsockopt` of a socket's own option. Some make the kernel do what rings do not.
pub(super) fn set_of_socket(args: [usize; 6]) -> isize {
    let [fd, _, option, value, ..] = args;
    let result = native(nr::SETSOCKOPT, args);
    if result != 0 {
        return result;
    }
    let value = user::read::<i32>(value).unwrap_or(1);
    let Some(end) = fds::end_of(fd) else {
        // What is not asked for when it is connected.
        if option != SO_RCVLOWAT && option != SO_PASSCRED && is_kernels(option, value) {
            fds::leave(fd);
        }
        return result;
    };
    if [SO_SNDBUF, SO_SNDBUFFORCE].contains(&option) {
        records::note_limit(&end);
    }
    if is_kernels(option, value) {
        stream::shut(end.incoming());
    }
    result
}

/// Does this option make the kernel do what rings do not?
fn is_kernels(option: usize, value: i32) -> bool {
    match option {
        SO_RCVLOWAT => value > 1,
        SO_PEEK_OFF => value >= 0,
        SO_ATTACH_FILTER | SO_ATTACH_BPF => true,
        _ => TELLING.contains(&option) && value != 0,
    }
}

/// Has `fd` an option already that makes the kernel do what rings do not?
pub(super) fn is_for_kernel(fd: usize, is_unix: bool) -> bool {
    let has = |name: usize, least: u64| meet::option(fd, name).is_some_and(|value| value >= least);
    has(SO_RCVLOWAT, 2) || is_unix && has(SO_PASSCRED, 1)
}

/// How much the kernel lets wait of what `fd` has sent.
pub(super) fn send_buffer(fd: usize) -> Option<u64> {
    meet::option(fd, SO_SNDBUF)
}

/// Is `fd` in non-blocking mode, as the kernel has it?
pub(super) fn is_nonblocking(fd: usize) -> bool {
    let flags = super::ask(nr::FCNTL, [fd, F_GETFL]);
    flags >= 0 && flags as usize & O_NONBLOCK != 0
}

/// What has gone wrong with a connection that ends, told once.
pub(super) fn take_error(end: &End) -> Option<isize> {
    const SO_ERROR: usize = 4;
    if !end.connection.is_ending() {
        return None;
    }
    let error = meet::option(end.fd, SO_ERROR).unwrap_or(0);
    (error != 0).then_some(-(error as isize))
}

/// Has the program set how much may be under way, and less than a large ring holds? Asked once, when such a
/// ring would be of use.
pub(super) fn wants_little(end: &End) -> bool {
    const SO_BUF_LOCK: usize = 72;
    const SEND_IS_SET: u64 = 1;
    let options = &end.connection.sides[end.side].options;
    if options.load(Relaxed) & LITTLE != 0 {
        return true;
    }
    let ask = |option: usize| meet::option(end.fd, option).unwrap_or(0);
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
    let end = fds::socket_of(fd);
    if option == TCP_ULP && end.is_some() {
        // What is in a ring no protocol of the kernel's has been through.
        return -(ENOENT as isize);
    }
    if option == TCP_INQ {
        return set_telling(fd, end, value, args);
    }
    let (Some(end), Some(bit)) = (end, bit_of(option)) else { return native(nr::SETSOCKOPT, args) };
    if (args[4] as i32) < 4 {
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

/// `setsockopt` of an option of TCP's that has messages come with more than their bytes.
fn set_telling(fd: usize, end: Option<End>, value: usize, args: [usize; 6]) -> isize {
    let result = native(nr::SETSOCKOPT, args);
    if result == 0 && user::read::<u32>(value).is_none_or(|value| value != 0) {
        match end {
            Some(end) => stream::shut(end.incoming()),
            None => fds::leave(fd),
        }
    }
    result
}

/// `getsockopt` of a TCP option.
pub(super) fn get(fd: usize, option: usize, args: [usize; 6]) -> isize {
    let result = native(nr::GETSOCKOPT, args);
    let end = fds::end_of(fd);
    if let (Some(end), TCP_INFO, 0) = (end, option, result) {
        return add_rings(&end, args[3], args[4]);
    }
    let (Some(end), Some(bit), 0) = (end, bit_of(option), result) else { return result };
    let is_set = end.connection.sides[end.side].options.load(Relaxed) & bit != 0;
    // As much of it as the kernel has written.
    let (value, len) = (u32::from(is_set), user::read::<u32>(args[4]).unwrap_or(0));
    let len = (len as usize).min(size_of_val(&value));
    if len != 0 && !user::copy(args[3], &raw const value as usize, len) {
        return -(EFAULT as isize);
    }
    result
}

/// What `struct tcp_info` at `at` says of bytes is to be what it would be without rings, and without bells.
fn add_rings(end: &End, at: usize, len_at: usize) -> isize {
    /// What has been acknowledged, what has come, and what has been sent.
    const ACKNOWLEDGED: usize = 120;
    const RECEIVED: usize = 128;
    const SENT: usize = 200;
    let ring = |direction: &Direction| {
        let bells = u64::from(direction.writing.bells.load(Relaxed));
        direction.tail.load(Relaxed).wrapping_sub(bells)
    };
    let (sent, received) = (ring(end.outgoing()), ring(end.incoming()));
    let Some(len) = user::read::<u32>(len_at) else { return -(EFAULT as isize) };
    for (offset, more) in [(ACKNOWLEDGED, sent), (RECEIVED, received), (SENT, sent)] {
        if len as usize >= offset + size_of::<u64>() {
            let Some(count) = user::read::<u64>(at + offset) else { return -(EFAULT as isize) };
            if !user::write(at + offset, &count.wrapping_add(more)) {
                return -(EFAULT as isize);
            }
        }
    }
    0
}
