//! What the kernel has behind the bytes of a ring, for a call that gets both.
//!
//! It is asked for by `recvmsg` with what the program's own call names: descriptors may come with these bytes, and the
//! kernel ends a call behind those.

use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::Release;

use libos::sockets::SHUT;

use super::fds::End;
use super::messages::Message;
use super::stream::{self, MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC, MSG_WAITALL};
use super::turns::Turn;
use super::user::{self, Pieces};
use super::{ask, bells, meet};
use crate::sys::{Errno, nr};

const MSG_CTRUNC: usize = 8;
/// Pieces of the program's that are looked into.
const PIECES_MAX: usize = 8;

/// The program's own message, if its call has one: what the kernel says of it goes there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Behind {
    at: usize,
    given: Message,
}

impl Behind {
    pub(super) fn new(number: usize, args: [usize; 6]) -> Self {
        let at = if number == nr::RECVMSG { args[1] } else { 0 };
        let given = user::read::<Message>(at).filter(|_| at != 0);
        Self { at, given: given.unwrap_or(Message::of(0, 0)) }
    }

    /// The same message, for these pieces.
    pub(super) const fn message(&self, vectors: usize, count: usize) -> Message {
        Message { vectors, count, ..self.given }
    }

    /// The kernel has filled `told`. True if descriptors have come, or would have, which ends the call.
    pub(super) fn note(&self, told: Message) -> bool {
        let mut any = told.flags & MSG_CTRUNC != 0;
        if self.at != 0 {
            let Message { vectors, count, .. } = self.given;
            let _ = user::write(self.at, &Message { vectors, count, ..told });
            meet::each_passed(self.at, |_| any = true);
        }
        any
    }
}

/// Does a call that only looks have to see more than the ring, or than the kernel, has?
pub(super) fn is_needed(end: &End, total: usize, flags: usize, waits: bool) -> bool {
    let (direction, filled) = (end.incoming(), end.incoming().filled().1);
    let is_in_both = filled != 0 && direction.is_in_kernel();
    filled < total && (is_in_both || looks_at_all(end, flags, waits))
}

/// Does a call with these flags look at all that it asks for, and wait for that? AF_UNIX shows what is there.
fn looks_at_all(end: &End, flags: usize, waits: bool) -> bool {
    let both = MSG_PEEK | MSG_WAITALL;
    flags & both == both && waits && !end.connection.is_unix()
}

/// Look at what comes first of the ring, and then at what the kernel has, or will have if that is waited for; from
/// then on all comes by the kernel, so that it can be.
pub(super) fn look(
    end: &End,
    call: (usize, [usize; 6]),
    pieces: Pieces,
    total: usize,
    flags: usize,
    waits: bool,
) -> Result<isize, Errno> {
    let direction = end.incoming();
    let is_whole = looks_at_all(end, flags, waits);
    if is_whole {
        // Whoever is writing to the ring comes to an end before it is looked at.
        let _turn = Turn::take(&direction.writing.writer);
        direction.shut.store(SHUT, Release);
    }
    let first = stream::from_ring(end, direction, &mut { pieces }, total, flags)?;
    if first == total || !is_whole && !direction.is_in_kernel() {
        return Ok(first as isize);
    }
    let (mut bells, mut rest) = ([0u8; bells::MOST], pieces);
    let bell = (direction.bells() as usize).min(bells::MOST);
    let mut vectors = [[0usize; 2]; PIECES_MAX];
    vectors[0] = [bells.as_mut_ptr() as usize, bell];
    let mut skipped = first;
    while let Some(Some((_, len))) = rest.next_up_to(skipped).filter(|_| skipped != 0) {
        skipped -= len;
    }
    let (mut left, mut count) = (total - first, 1);
    while let Some(Some((at, len))) = rest.next_up_to(left).filter(|_| count < PIECES_MAX) {
        vectors[count] = [at, len];
        (left, count) = (left - len, count + 1);
        if left == 0 {
            break;
        }
    }
    let how = MSG_PEEK | if is_whole { MSG_WAITALL } else { MSG_DONTWAIT } | flags & MSG_TRUNC;
    let behind = Behind::new(call.0, call.1);
    let message = UnsafeCell::new(behind.message(vectors.as_ptr() as usize, count));
    let seen = ask(nr::RECVMSG, [end.fd, message.get() as usize, how]);
    if seen < 0 {
        return if first > 0 { Ok(first as isize) } else { Ok(seen) };
    }
    behind.note(message.into_inner());
    Ok((first + (seen as usize).saturating_sub(bell)) as isize)
}
