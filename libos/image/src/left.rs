//! Upcalls that are left otherwise than by the gate: by a signal handler of the program's that ran on top of
//! one and jumped out (`siglongjmp`), or forked.
//!
//! A handler that runs on top of an upcall has its stack in the context's room, or on the alternate signal
//! stack. A thread that is on neither, and whose context says that it is in an upcall, has left that: it
//! ends as if the thread had died in it, and the thread goes on with its context. Unless a signal has
//! interrupted the gate, which is on the caller's stack for some instructions of an upcall that is open: the
//! kernel's frame further up says so.
//!
//! A forked child has a copy of the upcall's stack, but context and locks are the parent's. Its copy of
//! the upcall must not go on: the kernel's frame, by which the handler will return into it, is made to
//! return to the upcall's caller instead, with an error.

use core::mem::{MaybeUninit, offset_of};
use core::ops::Range;
use core::sync::atomic::Ordering::{Relaxed, Release};

use ext_api::abi::Status;
use ext_api::limits::STACK_LEN;
use libos::data::{Context, NOWHERE};

use crate::arch::{self, Registers};
use crate::context::{self, Frame};
use crate::signals::{AltStack, SS_ONSTACK, UserContext};
use crate::sys::nr;
use crate::{boot, copies, events, fault, log, scratch, stacks, sys};

/// For the gate, from the stack at `stack`: `context` is in an upcall already. The context, if that one has
/// been left; else [`Status::Reentered`].
pub(crate) extern "C" fn sbx_reentered(context: &'static Context, stack: usize) -> usize {
    if end_if_left(context, stack) {
        core::ptr::from_ref(context) as usize
    } else {
        Status::Reentered as usize
    }
}

/// End the upcall of `context`, which is the calling thread's, if that has left it. It makes a call from the
/// stack at `stack`.
pub(crate) fn end_if_left(context: &Context, stack: usize) -> bool {
    let left = context.tid.load(Relaxed) == sys::gettid()
        && stacks::of_thread().is_some_and(|alternate| is_outside(stack, &alternate))
        && !is_above_gate(stack);
    if left {
        end(context);
    }
    left
}

/// A signal has interrupted the thread with this context: end its upcall if it has left it.
pub(crate) fn end_if_interrupted_outside(context: &Context, user: &UserContext) {
    let in_region = boot::place().shared().contains(&(user.regs.rip as usize));
    if !context.sequence.load(Relaxed).is_multiple_of(2)
        && !in_region
        && is_outside(user.regs.rsp as usize, &user.stack)
        && !is_above_gate(user.regs.rsp as usize)
    {
        end(context);
    }
}

/// Does an address lie neither in a context's room nor on this alternate stack? One that is disarmed while a
/// handler runs on it, so that it has no length, cannot be told from others.
fn is_outside(stack: usize, alternate: &AltStack) -> bool {
    let first = alternate.address as usize;
    context::index_of_room(stack).is_none()
        && alternate.len != 0
        && !(first..first + alternate.len as usize).contains(&stack)
}

/// Does code with its stack at `stack` run in a signal handler that has interrupted the gate?
fn is_above_gate(stack: usize) -> bool {
    /// As much of a stack as signal handlers take up.
    const REACH: usize = 64 << 10;
    const PIECE: usize = 1024;
    let first = stack.next_multiple_of(PIECE);
    let begin = stack.next_multiple_of(8);
    let pieces = (first..first + REACH).step_by(PIECE).map(|at| at..at + PIECE);
    core::iter::once(begin..first).chain(pieces).map_while(read_words).any(|(at, words, count)| {
        let mut rips = words.iter().take(count).zip((at..).step_by(8));
        rips.any(|(rip, at)| arch::in_gate(*rip) && is_rip_of_frame(at))
    })
}

/// Words of the program's stack; None where it has ended. Every signal may be blocked, so that the kernel copies.
fn read_words(range: Range<usize>) -> Option<(usize, [u64; 128], usize)> {
    let mut words = [0; 128];
    let to = words.as_mut_ptr() as usize;
    let len = range.len();
    let read = len == 0 || sys::copy_between(nr::PROCESS_VM_READV, to, range.start, len);
    read.then_some((range.start, words, len / 8))
}

/// Is the word at `at` where the kernel's frame says what a signal has interrupted, on this stack?
pub(crate) fn is_rip_of_frame(at: usize) -> bool {
    /// The frame lies no further below what it has interrupted, with all vector state.
    const FRAME_REACH: usize = 16 << 10;
    let frame = at - offset_of!(UserContext, regs) - offset_of!(Registers, rip);
    let mut user = MaybeUninit::<UserContext>::uninit();
    let to = user.as_mut_ptr() as usize;
    if !sys::copy_between(nr::PROCESS_VM_READV, to, frame, size_of::<UserContext>()) {
        return false;
    }
    // SAFETY: all of it has been copied; it is made of integers.
    let user = unsafe { user.assume_init() };
    let interrupted = user.regs.rsp as usize;
    user.is_plausible() && (1..FRAME_REACH).contains(&interrupted.wrapping_sub(frame))
}

/// Has the calling thread an alternate signal stack?
pub(crate) fn has_alternate_stack() -> bool {
    stacks::of_thread().is_some_and(|it| it.len != 0)
}

/// Does an address lie on the thread's alternate signal stack?
pub(crate) fn is_on_alternate(at: usize) -> bool {
    stacks::of_thread().is_none_or(|it| it.has(at))
}

fn end(context: &Context) {
    let code = context.code.load(Relaxed);
    log::line(b"fault", b"an upcall was left by a jump, or by the end of a child of vfork");
    context.frame.store(context.stack_top.load(Relaxed), Relaxed);
    context.starved.store(0, Relaxed);
    context.caller.store(0, Relaxed);
    // If a handler had made room for it, that is over as well, and the next upcall sees to the signal stack.
    context.room.store(0, Relaxed);
    context.window.store(NOWHERE, Relaxed);
    scratch::forget(context);
    // From here on nobody takes it for alive, and its locks are a dead upcall's.
    context.sequence.fetch_add(1, Release);
    events::has_left(context.tid.load(Relaxed));
    fault::died_inside(code);
}

/// In a forked child, on the stack that it was forked on: if that was on top of an upcall, have its copy end
/// with an error. True: it was.
pub(crate) fn end_copy() -> bool {
    let stack = arch::stack_pointer();
    let (parent, fs) = (sys::getppid(), arch::fs_base());
    let is_open = |context: &&Context| {
        context.fs_base.load(Relaxed) == fs && !context.sequence.load(Relaxed).is_multiple_of(2)
    };
    let Some(open) = context::of_process(parent).find(is_open) else { return false };
    let room = boot::place().stacks() + context::index_of(open) * STACK_LEN;
    let top = open.stack_top.load(Relaxed) as usize;
    let end_of_alternate = || {
        let it = stacks::of_thread()?;
        Some((it.address + it.len) as usize).filter(|_| it.flags & SS_ONSTACK != 0)
    };
    // The parent goes on meanwhile, and may be in another upcall by now.
    let mut is_within = (room..top).contains(&stack);
    let end = if is_within { Some(top) } else { end_of_alternate() };
    let returns_into_it = |regs: &Registers| {
        (room..room + STACK_LEN).contains(&(regs.rsp as usize)) && copies::is_by_region(regs)
    };
    let mut at = stack.next_multiple_of(8);
    while end.is_some_and(|end| at + size_of::<UserContext>() <= end) {
        // SAFETY: whole words of this thread's own stack, between its pointer and its end.
        let user = unsafe { &mut *(at as *mut UserContext) };
        if user.is_plausible() && returns_into_it(&user.regs) {
            // SAFETY: the top of the room has the outermost frame of the upcall that is open there.
            let frame = unsafe { &*(top as *const Frame) };
            // SAFETY: the caller's reply, of which the child has a copy as well.
            unsafe { fault::answer(frame.reply, b"its thread has forked inside of it") };
            arch::redirect_to_caller(&mut user.regs, frame, Status::Aborted);
            is_within = true;
        }
        at += 8;
    }
    is_within
}
