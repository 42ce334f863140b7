//! Whose turn it is to write, or to receive from the kernel: a lock that names its thread.
//!
//! To a pipe, the thread that has it may be interrupted by a handler of the program's that writes to the same. Such a
//! handler does not get the turn; a thread that was jumped out of has it no longer.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use libos::sockets::{Direction, SOON_SHUT};

use super::ask;
use super::fds::End;
use super::wait::{ERR, HUP, OUT, kernels_events};
use crate::arch::stack_pointer;
use crate::signals::{AltStack, SS_ONSTACK};
use crate::sys::nr;
use crate::{context, sys, time};

/// So often a turn is looked for without letting others run.
const LOOKS: u32 = 64;
/// How often it is asked what becomes of the thread that has it.
const ASKED_NS: u64 = 1_000_000;
/// How long not to look, while that one is stopped.
const STOPPED_MS: usize = 1;
/// A thread that has had a turn for so long is taken for stopped: by a freezer, or since whoever waits has the core.
const LONG_NS: u64 = 1_000_000_000;
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
        loop {
            if let Some(turn) = Self::take_unless(word, || false) {
                return turn;
            }
        }
    }

    /// The same; None if whoever has it is stopped, and it can be done without.
    fn take_unless(word: &'a AtomicU32, can_do_without: impl Fn() -> bool) -> Option<Self> {
        let tid = context::own_tid();
        let (mut looks, mut had) = (0u32, Had::default());
        loop {
            match word.compare_exchange(0, tid, Acquire, Relaxed) {
                Ok(_) => return Some(Self { word, former: 0 }),
                Err(holder) if holder == tid => return Some(Self { word, former: 0 }),
                Err(_) if looks < LOOKS => looks += 1,
                Err(holder) => match had.becomes_of(holder) {
                    Fate::Ended => _ = word.compare_exchange(holder, 0, AcqRel, Relaxed),
                    Fate::Stopped if can_do_without() => return None,
                    Fate::Stopped => _ = ask(nr::POLL, [0, 0, STOPPED_MS]),
                    Fate::Runs => sys::sched_yield(),
                },
            }
            core::hint::spin_loop();
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

/// Who has had a turn, since when, and when that was asked last.
#[derive(Default)]
struct Had {
    holder: u32,
    since_ns: u64,
    asked_ns: u64,
}

/// What becomes of a thread that has a turn, as far as can be told.
enum Fate {
    Ended,
    Stopped,
    Runs,
}

impl Had {
    fn becomes_of(&mut self, holder: u32) -> Fate {
        let now = time::now_ns();
        if self.holder != holder {
            *self = Self { holder, since_ns: now, asked_ns: now };
        }
        if now - self.asked_ns < ASKED_NS {
            return Fate::Runs;
        }
        self.asked_ns = now;
        if !sys::task_lives(holder) {
            Fate::Ended
        } else if sys::task_is_stopped(holder) || now - self.since_ns > LONG_NS {
            Fate::Stopped
        } else {
            Fate::Runs
        }
    }
}

/// The turn to send. None if a thread is stopped with it, of another process perhaps: what is sent goes by the kernel
/// then, as everything from now on.
pub(super) fn to_send(end: &End) -> Option<Turn<'static>> {
    Turn::take_unless(&end.outgoing().writing.writer, || passes(end))
}

/// Whoever has the turn to write is stopped with it, and may yet put something in the ring, or see that the reader
/// sleeps: may others have theirs go by the kernel? It is to know no bell behind that; what is in the ring goes there
/// in place of one, and so there must be nothing older.
fn passes(end: &End) -> bool {
    let direction = end.outgoing();
    leave(direction);
    if end.connection.has_records() || kernels_events(end.fd, OUT) & (ERR | HUP) != 0 {
        return true;
    }
    !direction.has_bytes() && (end.connection.is_pipe() || direction.forgo_bells())
}

/// The turn to receive from the kernel. None if a thread is stopped with it, but there is no bell and none will come:
/// whatever the kernel has is the program's then, for good.
pub(super) fn to_receive(end: &End) -> Option<Turn<'static>> {
    let direction = end.incoming();
    Turn::take_unless(&direction.reading.reader, || {
        leave(direction);
        direction.forgo_bells()
    })
}

/// Nothing is put into the ring any more, but by who has the turn to write.
fn leave(direction: &Direction) {
    let _ = direction.shut.compare_exchange(0, SOON_SHUT, AcqRel, Relaxed);
}

/// The turn to write to a pipe, as [`to_send`]. True if it is that of what this has interrupted, and stays so.
pub(super) fn to_write(end: &End) -> (Option<Turn<'static>>, bool) {
    let (tid, here) = (context::own_tid(), stack_pointer());
    let writing = &end.outgoing().writing;
    let (writer, frame) = (&writing.writer, &writing.frame);
    if writer.load(Acquire) == tid && is_on_top(here, frame.load(Relaxed) as usize) {
        return (Some(Turn::of_interrupted(writer, tid)), true);
    }
    loop {
        let Some(turn) = to_send(end) else { return (None, false) };
        frame.store(here as u64, Relaxed);
        // A handler that came before that took the turn for one that was left, and has given it up.
        if writer.load(Acquire) == tid {
            return (Some(turn), false);
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
