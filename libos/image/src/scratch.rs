//! Room for what the arguments of a system call point to, as handlers look at it and the kernel gets it.
//!
//! Every context has one room, and a signal handler of the program may interrupt a call between two upcalls
//! and make another. So a *mark* behind the room says for which call something lies there, by where that is on
//! the program's stack, and up to where: the other one has the rest.
//!
//! ```text
//!  | texts of a call | texts of one that has interrupted it |        | mark: at, end |
//! ```
//!
//! [`Call::path`](ext_api::calls::Call::path) makes the mark for a call that comes the short way, which is for
//! rooms without one, and [`Scratch`] for the others. It is taken back when the texts are on the program's
//! stack, or the call is over. One that a handler's refusal leaves behind, or a jump out of a signal handler, is
//! found to be that by the first call from further up the stack; until then calls come the long way.

use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::compiler_fence;

use ext_api::abi::{CallBlock, ScratchMark};
use ext_api::limits::STACK_LEN;
use libos::data::Context;
use libos::layout::{SCRATCH_LEN, SCRATCH_OFFSET};

use crate::{boot, context, left};

/// The room, lent to a call.
pub(crate) struct Scratch {
    mark: &'static ScratchMark,
    at: usize,
    former: [u64; 2],
}

impl Scratch {
    /// Lend the room of `context` to a call that the program makes with its stack at `at`.
    pub(crate) fn lend(context: &Context, at: usize, block: &mut CallBlock) -> Self {
        let (room, mark) = (room_of(context), mark_of(context));
        let [outer, end] = read(mark);
        let is_live = outer != 0 && !is_over(context, outer as usize, at);
        let begin = if is_live { (end as usize).clamp(room, room + SCRATCH_LEN) } else { room };
        block.scratch = begin as *mut u8;
        (block.scratch_len, block.scratch_used) = (room + SCRATCH_LEN - begin, 0);
        let scratch = Self { mark, at, former: if is_live { [outer, end] } else { [0, 0] } };
        scratch.resume(block);
        scratch
    }

    /// Nothing of the call's lies there for now.
    pub(crate) fn rest(&self) {
        write(self.mark, self.former);
    }

    /// Something lies there again.
    pub(crate) fn resume(&self, block: &CallBlock) {
        let end = block.scratch as usize + block.scratch_used;
        write(self.mark, [self.at as u64, end as u64]);
    }

    /// The call is over.
    pub(crate) fn give_back(self) {
        self.rest();
    }
}

/// So many bytes of the call's room are about to be written, beyond those that are in use.
pub(crate) fn reserve(block: &CallBlock, len: usize) {
    let (room, used) = (block.scratch as usize, block.scratch_used);
    // SAFETY: libos has lent the room to the call.
    let mark = unsafe { &*((room + block.scratch_len) as *const ScratchMark) };
    mark.end.store((room + used + len) as u64, Relaxed);
    compiler_fence(SeqCst);
}

/// The texts of a call that came the short way are elsewhere.
pub(crate) fn clear(block: &CallBlock) {
    // SAFETY: the entry has lent the room to the call.
    let mark = unsafe { &*(block.scratch.wrapping_add(block.scratch_len) as *const ScratchMark) };
    write(mark, [0, 0]);
}

/// The thread that has this context begins anew.
pub(crate) fn forget(context: &Context) {
    write(mark_of(context), [0, 0]);
}

fn room_of(context: &Context) -> usize {
    boot::place().stacks() + context::index_of(context) * STACK_LEN + SCRATCH_OFFSET
}

fn mark_of(context: &Context) -> &'static ScratchMark {
    // SAFETY: behind the room of a context of this process, whose stacks are mapped; all atomics.
    unsafe { &*((room_of(context) + SCRATCH_LEN) as *const ScratchMark) }
}

fn read(mark: &ScratchMark) -> [u64; 2] {
    [&mark.at, &mark.end].map(|word| word.load(Relaxed))
}

/// Only this thread looks, if a signal interrupts it. The end comes first: without a call it means nothing, and it
/// is less than that of the call that is there only when nothing of that one's is needed any more.
fn write(mark: &ScratchMark, [at, end]: [u64; 2]) {
    compiler_fence(SeqCst);
    mark.end.store(end, Relaxed);
    compiler_fence(SeqCst);
    mark.at.store(at, Relaxed);
    compiler_fence(SeqCst);
}

/// Is a call that was made with the stack at `outer` over, when one is made at `at`? What is further down may
/// be within it, and so may a signal handler on a stack of its own.
fn is_over(context: &Context, outer: usize, at: usize) -> bool {
    at >= outer && context.room.load(Relaxed) == 0 && !left::is_on_alternate(at)
}
