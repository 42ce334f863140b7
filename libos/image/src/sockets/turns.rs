//! Whose turn it is to write to a pipe, where the thread that has it may be interrupted by a handler of the program's
//! that writes to the same. Such a handler does not get the turn; a thread that was jumped out of has it no longer.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use libos::sockets::Direction;

use super::stream::Turn;
use crate::arch::stack_pointer;
use crate::signals::{AltStack, SS_ONSTACK};
use crate::{context, sys};

/// What the kernel puts on a stack for a signal takes more: without vectors, 1.4 KiB.
const SIGNAL_FRAME: usize = 1 << 10;
/// What is further apart is not on one stack.
const NEAR: usize = 256 << 10;

/// The turn to write. True if it is that of what this has interrupted, and stays so.
pub(super) fn to_write(direction: &Direction) -> (Turn<'_>, bool) {
    let (tid, here) = (context::own_tid(), stack_pointer());
    let (writer, frame) = (&direction.writing.writer, &direction.writing.frame);
    if writer.load(Acquire) == tid && is_on_top(here, frame.load(Relaxed) as usize) {
        return (Turn::of_interrupted(writer, tid), true);
    }
    loop {
        let turn = Turn::take(writer);
        frame.store(here as u64, Relaxed);
        // A handler that came before that took the turn for one that was left, and has given it up.
        if writer.load(Acquire) == tid {
            return (turn, false);
        }
        core::mem::forget(turn);
    }
}

/// Does what is at `here` of the stack interrupt what is at `frame`, which has not been left?
pub(super) fn is_on_top(here: usize, frame: usize) -> bool {
    if here.abs_diff(frame) < NEAR {
        return frame.saturating_sub(here) > SIGNAL_FRAME;
    }
    let mut has = AltStack::default();
    // SAFETY: the kernel writes a stack_t.
    let asked = unsafe { sys::sigaltstack(core::ptr::null(), (&raw mut has).cast()) };
    asked.is_ok() && has.flags & SS_ONSTACK != 0
}
