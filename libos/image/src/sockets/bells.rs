//! Bells: a byte through the kernel tells a reader that sleeps there of bytes in the ring.
//!
//! A reader that sleeps in its program's own call would give the program a bell's byte. It refuses bells
//! meanwhile, which it can if none is on its way; a writer that finds it asleep takes what it has put into the ring
//! out again, and has it go by the kernel, as to a pipe.
//!
//! ```text
//!  reader   parked ──► a bell on its way? ── no ──► refuse them ──► recv, the program's own
//!                               └── yes ──► look what the kernel has (MSG_PEEK) ──► hear the bell
//!  writer   into the ring ──► anybody parked? ── yes ──► refused? ── no ──► ring
//!                                                           └── yes ──► out of it again ──► send
//! ```

use core::sync::atomic::Ordering::Relaxed;

use libos::sockets::Direction;

use super::fds::End;
use super::stream::{MSG_DONTWAIT, MSG_NOSIGNAL};
use super::turns::Turn;
use super::wait::{ERR, IN, kernels_events};
use super::{ask, native, pipes, records, sockets};
use crate::sys::nr;

/// How often whoever closes looks for a bell that is on its way.
pub(super) const LOOKS: usize = 64;

/// Bells that may be on their way at a time: one for each write that comes while nobody reads.
pub(super) const MOST: usize = 1024;

/// One byte through the kernel wakes whoever sleeps there, and is an edge for who waits for that.
pub(super) fn ring(end: &End, direction: &Direction) {
    if direction.bells() as usize >= MOST {
        return;
    }
    if !direction.add_bell() {
        // While this thread was stopped others have had theirs go by the kernel, behind which nobody knows a bell; or
        // a reader sleeps in its program's own call.
        return if end.connection.has_records() {
            records::hand_over(end);
        } else {
            let _ = pipes::hand_over(end);
        };
    }
    let bell = sockets().bell();
    let len = if end.connection.has_records() { size_of_val(&bell) } else { 1 };
    let args = [end.fd, bell.as_ptr() as usize, len, MSG_DONTWAIT | MSG_NOSIGNAL];
    if ask(nr::SENDTO, args) == len as isize {
        direction.writing.bells.fetch_add(1, Relaxed);
    } else {
        direction.less_bells(1);
    }
}

/// Take the bells out of the kernel that have come. While there are bytes in the ring they stay there:
/// others may see by them that the socket is readable.
pub(super) fn hear(end: &End, direction: &Direction) {
    if direction.bells() == 0 || direction.has_bytes() {
        return;
    }
    let _turn = Turn::take(&direction.reading.reader);
    // What has gone wrong is for the program to hear.
    if kernels_events(end.fd, IN) & ERR != 0 {
        return;
    }
    let mut bytes = [0u8; 64];
    loop {
        let bells = (direction.bells() as usize).min(bytes.len());
        if bells == 0 || direction.has_bytes() {
            return;
        }
        if end.connection.has_records() {
            if records::take_bell(end, direction) {
                continue;
            }
            return;
        }
        let heard = ask(nr::RECVFROM, [end.fd, bytes.as_mut_ptr() as usize, bells, MSG_DONTWAIT]);
        if heard <= 0 {
            return;
        }
        direction.less_bells(heard as u32);
    }
}

/// Sleep in the program's own call, of a reader that has refused bells and is parked; its result.
pub(super) fn sleep_without(direction: &Direction, number: usize, args: [usize; 6]) -> isize {
    let received = native(number, args);
    pipes::note_read(direction, received);
    direction.allow_bells();
    received
}
