//! Which stack signal handlers run on, in threads that make upcalls.
//!
//! While an upcall runs the stack pointer is on the upcall stack, and the kernel begins a handler at the top of
//! the alternate one. That has to be there, large enough, and have nothing on it that is still needed:
//!
//! | the program's own | what the kernel has |
//! |---|---|
//! | none, or a small one | one of the context's |
//! | a large one | that |
//! | any, and a handler on it makes an upcall | the context's second one, until that is over |
//!
//! The return of a handler puts back what the kernel had before it, so that what was set meanwhile is lost. Who
//! has just been given a stack is therefore believed to be where it was only up to the kernel's frame of such a
//! handler. What it has interrupted is further up, and is looked at again.

use core::sync::atomic::Ordering::Relaxed;

use ext_api::limits::STACK_LEN;
use libos::data::Context;
use libos::layout::{ALT_STACK_LEN, ALT_STACK_OFFSET, OWN_STACK_MIN, WINDOW_BELOW, WINDOW_LEN};

use crate::arch::stack_pointer;
use crate::signals::{AltStack, SS_DISABLE, UserContext, ours_in_mask};
use crate::{boot, context, hooks, sys};

/// How far up the stack of a thread is believed to be its own.
const ABOVE: usize = WINDOW_LEN - WINDOW_BELOW;
/// As [`ABOVE`], if it may be a handler: the kernel's frame is larger, with the least of vector state.
const ABOVE_IN_HANDLER: usize = 1 << 10;

impl AltStack {
    /// Does an address lie on it?
    pub(crate) fn has(&self, at: usize) -> bool {
        at.wrapping_sub(self.address as usize) < self.len as usize
    }
}

/// See to the alternate stack of the calling thread, which has this context and goes on at `stack`: how far up from
/// there its upcalls need not come here again. None for a handler on a signal stack: all of them have to.
pub(crate) fn see_to(context: &Context, stack: usize) -> Option<usize> {
    if context::index_of_room(stack).is_some() || hooks::is_in_room(context, stack) {
        return None;
    }
    let Some(now) = of_thread() else { return Some(ABOVE) };
    let is_none = now.flags & SS_DISABLE != 0;
    match context::index_of_room(now.address as usize).filter(|_| !is_none) {
        Some(room) if room == context::index_of(context) => return keeps_ours(context, stack),
        // A forked child has its parent's, which belongs to another context here.
        Some(room) => note_own(context, &own_of(context::common().context(room))),
        None if is_none => note_own(context, &AltStack::default()),
        None => {
            note_own(context, &now);
            if now.has(stack) || now.len as usize >= OWN_STACK_MIN {
                context.alt_stack.store(0, Relaxed);
                return (!now.has(stack)).then_some(ABOVE);
            }
        }
    }
    let is_set = set(context, &now, &ours_of(context));
    context.alt_stack.store(u32::from(is_set), Relaxed);
    Some(ABOVE_IN_HANDLER)
}

/// As [`see_to`], if the kernel has one of the context's. The program's own comes back if it had to make room for
/// an upcall that was jumped out of.
fn keeps_ours(context: &Context, stack: usize) -> Option<usize> {
    let own = own_of(context);
    if own.has(stack) {
        return None;
    }
    let is_back = own.len as usize >= OWN_STACK_MIN && set(context, &AltStack::default(), &own);
    context.alt_stack.store(u32::from(!is_back), Relaxed);
    Some(ABOVE)
}

/// A handler of libos's that has interrupted `user` has given its thread a stack: it keeps that, and the signals
/// that upcalls need, once the handler has returned.
pub(crate) fn keep(context: &Context, user: &mut UserContext) {
    if context.alt_stack.load(Relaxed) == 1 {
        user.stack = ours_of(context);
    }
    user.mask &= !ours_in_mask();
}

/// The calling thread's alternate stack, as the kernel knows it.
pub(crate) fn of_thread() -> Option<AltStack> {
    let mut now = AltStack::default();
    // SAFETY: the kernel writes a stack_t.
    let asked = unsafe { sys::sigaltstack(core::ptr::null(), (&raw mut now).cast()) };
    asked.is_ok().then_some(now)
}

/// The program's own, as far as is known.
pub(crate) fn own_of(context: &Context) -> AltStack {
    let [address, flags, len] = context.own_stack.each_ref().map(|word| word.load(Relaxed));
    AltStack { address, flags, len }
}

/// The program has this one.
pub(crate) fn note_own(context: &Context, own: &AltStack) {
    let words = [own.address, own.flags, own.len];
    context.own_stack.iter().zip(words).for_each(|(to, word)| to.store(word, Relaxed));
}

fn ours_of(context: &Context) -> AltStack {
    let room = boot::place().stacks() + context::index_of(context) * STACK_LEN;
    AltStack { address: (room + ALT_STACK_OFFSET) as u64, flags: 0, len: ALT_STACK_LEN as u64 }
}

/// Have the kernel use another one than `now`. A handler of libos's may run on that.
fn set(context: &Context, now: &AltStack, to: &AltStack) -> bool {
    if !now.has(stack_pointer()) {
        // SAFETY: a part of this context's stacks that is used for nothing else, or the program's own.
        return unsafe { sys::sigaltstack(core::ptr::from_ref(to).cast(), core::ptr::null_mut()) }
            .is_ok();
    }
    let elsewhere = context.stack_top.load(Relaxed) as usize;
    // SAFETY: as above; handlers of libos's run with every signal blocked.
    unsafe { sys::exchange_alt_stack(elsewhere, to, &mut AltStack::default()) };
    true
}
