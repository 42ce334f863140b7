//! Several messages in one call: `recvmmsg` and `sendmmsg`.

use super::fds::{self, End};
use super::messages::{self, LEN_AT};
use super::stream::MSG_DONTWAIT;
use super::user;
use super::wait::{Timespec, Until};
use super::{meet, native, options};
use crate::sys::{EFAULT, nr};

/// `struct mmsghdr`: a message, the bytes that were moved, and what makes it a multiple of 8.
const ONE_LEN: usize = LEN_AT + 8;
const MSG_WAITFORONE: usize = 0x1_0000;
/// `UIO_MAXIOV`: as many as are sent at a time.
const SENT_MAX: usize = 1024;

/// `sendmmsg`.
pub(super) fn send(args: [usize; 6]) -> isize {
    let [fd, at, count, flags, ..] = args;
    let count = (count as u32 as usize).min(SENT_MAX);
    let Some(end) = fds::socket_of(fd) else { return send_uncarried(args, at, count) };
    let mut done = 0;
    while done < count {
        let one = at + done * ONE_LEN;
        let sent = messages::send_message(end, [fd, one, flags, 0, 0, 0]);
        if sent < 0 {
            return if done > 0 { done as isize } else { sent };
        }
        if !user::write(one + LEN_AT, &(sent as u32)) {
            return if done > 0 { done as isize } else { -(EFAULT as isize) };
        }
        done += 1;
        if messages::len_of(one).is_some_and(|len| (sent as usize) < len) {
            break;
        }
    }
    done as isize
}

/// On a socket that is not carried: descriptors that go by it may be.
fn send_uncarried(args: [usize; 6], at: usize, count: usize) -> isize {
    let each = || (0..count).map(|index| at + index * ONE_LEN);
    each().for_each(|at| meet::about_to_pass(args[0], at));
    let sent = native(nr::SENDMMSG, args);
    each().skip(sent.max(0) as usize).for_each(meet::not_passed);
    sent
}

/// `recvmmsg`.
pub(super) fn receive(args: [usize; 6]) -> isize {
    let [fd, at, count, flags, limit, _] = args;
    let Some(end) = fds::socket_of(fd) else { return receive_uncarried(args) };
    let until = match Timespec::read(limit, 1) {
        Ok(ns) => Until::after(ns),
        Err(errno) => return errno,
    };
    // This call tells of errors first.
    if let Some(error) = options::take_error(&end) {
        return error;
    }
    let done = receive_all(end, at, count as u32 as usize, flags, until);
    if let (1.., Some(left)) = (done, until.left()) {
        // As the kernel does.
        if !user::write(limit, &[left / 1_000_000_000, left % 1_000_000_000]) {
            return -(EFAULT as isize);
        }
    }
    done
}

fn receive_all(end: End, at: usize, count: usize, flags: usize, until: Until) -> isize {
    let mut now = flags & !MSG_WAITFORONE;
    let mut done = 0;
    while done < count {
        let one = at + done * ONE_LEN;
        let got = messages::receive_message(end, [end.fd, one, now, 0, 0, 0]);
        if got < 0 {
            return if done > 0 { done as isize } else { got };
        }
        if !user::write(one + LEN_AT, &(got as u32)) {
            return if done > 0 { done as isize } else { -(EFAULT as isize) };
        }
        done += 1;
        if flags & MSG_WAITFORONE != 0 {
            now |= MSG_DONTWAIT;
        }
        if until.is_over() {
            break;
        }
    }
    done as isize
}

/// On a socket that is not carried: descriptors that come by it may be.
fn receive_uncarried(args: [usize; 6]) -> isize {
    let received = native(nr::RECVMMSG, args);
    for index in 0..received.max(0) as usize {
        meet::adopt_passed(args[1] + index * ONE_LEN);
    }
    received
}
