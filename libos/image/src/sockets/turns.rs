//! Whose turn it is to write, or to receive from the kernel: a lock that names its thread.
//!
//! To a pipe, the thread that has it may be interrupted by a handler of the program's that writes to the same. Such a
//! handler does not get the turn; a thread that was jumped out of has it no longer.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use libos::sockets::Direction;

use crate::arch::stack_pointer;
use crate::signals::{AltStack, SS_ONSTACK};
use crate::{context, sys};

/// Looks for a turn by who can do without.
const TURN_LOOKS: usize = 256;

/// What the kernel puts on a stack for a signal takes more: without vectors, 1.4 KiB.
const SIGNAL_FRAME: usize = 1 << 10;
/// What is further apart is not on one stack.
const NEAR: usize = 256 << 10;

/// A lock that names the thread that has it: who finds that this thread has it was interrupted with it, or
/// jumped out.
pub(super) struct Turn<'a> {
    word: &'a AtomicU32,
    former: u32,
}

impl<'a> Turn<'a> {
    pub(super) fn take(word: &'a AtomicU32) -> Self {
        let tid = context::own_tid();
        let mut looks = 0u32;
        loop {
            match word.compare_exchange(0, tid, Acquire, Relaxed) {
                Ok(_) => return Self { word, former: 0 },
                Err(holder) if holder == tid => return Self { word, former: 0 },
                Err(holder) => {
                    looks += 1;
                    if looks.is_multiple_of(1024) && !sys::task_lives(holder) {
                        let _ = word.compare_exchange(holder, 0, AcqRel, Relaxed);
                    }
                    if looks > 64 {
                        sys::sched_yield();
                    }
                    core::hint::spin_loop();
                }
            }
        }
    }

    /// Thread `tid` has it, and keeps it.
    pub(super) const fn of_interrupted(word: &'a AtomicU32, tid: u32) -> Self {
        Self { word, former: tid }
    }

    /// If nobody has it for long: whoever does may have been stopped, or be what this has interrupted.
    pub(super) fn take_soon(word: &'a AtomicU32) -> Option<Self> {
        let tid = context::own_tid();
        for _ in 0..TURN_LOOKS {
            match word.compare_exchange(0, tid, Acquire, Relaxed) {
                Ok(_) => return Some(Self { word, former: 0 }),
                Err(holder) if holder == tid => return None,
                Err(_) => sys::sched_yield(),
            }
        }
        None
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // A child that was forked in the middle has a copy of this, and not the turn, which nobody takes from one that
        // lives.
        if self.word.load(Relaxed) == context::own_tid() {
            self.word.store(self.former, Release);
        }
    }
}

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
