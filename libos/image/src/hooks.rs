//! Handlers of extensions that are asked about a signal before the program sees it.
//!
//! ```text
//!  signal ──► in an upcall? ── yes ──► blocked and queued again; the gate unblocks it on its way out
//!                  │ no
//!                  ▼
//!             each hook in turn, as an upcall ── true ──► the program does not see it
//!                  │ false, or the upcall failed
//!                  ▼
//!             what the program asked for
//! ```

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use ext_api::abi::{Reply, Status};
use ext_api::limits::STACK_LEN;
use libos::data::Context;
use libos::layout::{ALT_STACK_LEN, HOOKS_OFFSET, SECOND_STACK_OFFSET};
use libos::signals::{DEFERRED_TIMER, HookTable, OURS, SIGNALS};

use crate::arch::{self, sbx_call};
use crate::signals::{AltStack, Info, UserContext, is_fault, table};
use crate::{boot, context, events, left, start, sys, timers};

fn hook_table() -> &'static HookTable {
    let at = (boot::place().base + HOOKS_OFFSET) as *const HookTable;
    // SAFETY: in the control zone, which is mapped in every participant; all atomics.
    unsafe { &*at }
}

/// Is this process to ask about `signal`?
fn is_armed(signal: i32) -> bool {
    // SAFETY: our private table; the word is written before the process has a second thread.
    let armed = unsafe { (&raw const (*table()).armed).read() };
    (signal as usize) < SIGNALS && armed >> signal & 1 == 1
}

/// Ask the hooks of a signal that has interrupted code of the program. True: it is dealt with.
pub(crate) fn offer(signal: i32, info: &Info, user: &mut UserContext) -> bool {
    if !is_armed(signal) {
        return false;
    }
    let (tid, pid) = (sys::gettid(), sys::getpid());
    // A child of vfork runs in its parent's memory.
    let Some(own) = start::this_process().filter(|own| own.pid == pid) else { return false };
    let known = context::of_tid(own.pid, tid);
    if let Some(context) = known {
        left::end_if_interrupted_outside(context, user);
    }
    let on_upcall_stack = context::index_of_stack(user.regs.rsp as usize).is_some();
    let open = known.is_some_and(|context| !context.sequence.load(Relaxed).is_multiple_of(2));
    if open || on_upcall_stack || arch::is_between_upcalls(&mut user.regs) {
        return known.is_some_and(|context| defer(context, signal, info, user));
    }
    match upcalls_here(&own, tid, user, |_| ask(signal, info)) {
        Some(taken) => taken,
        None => known.is_some_and(|context| defer(context, signal, info, user)),
    }
}

fn ask(signal: i32, info: &Info) -> bool {
    let sender = info.address & u64::from(u32::MAX);
    let from = if is_fault(signal) && info.code > 0 { info.address } else { sender };
    let words = [signal as u64, from, info.code as u64, info.value];
    hook_table().signals[signal as usize]
        .iter()
        .map(|hook| hook.load(Acquire))
        .take_while(|&handle| handle != 0)
        .any(|handle| {
            let mut reply = Reply::empty();
            // SAFETY: hooks take numbers only, four at most, and return a bool; the reply is ours.
            let status = unsafe { sbx_call(handle, words.as_ptr(), &raw mut reply) };
            status == Status::Ok as u32 && reply.word == 1
        })
}

/// What a signal handler changes to make upcalls, and puts right again.
struct Room {
    context: &'static Context,
    former: AltStack,
}

/// Run `first`, which makes upcalls, in a signal handler, and then what has come meanwhile: faults must
/// be able to come, and find a stack that is not this handler's. None if a handler further out is at
/// it: that one runs what has come.
pub(crate) fn upcalls_here<T>(
    own: &start::ThisProcess,
    tid: u32,
    user: &UserContext,
    first: impl FnOnce(&'static Context) -> T,
) -> Option<T> {
    let context = context::of_tid(own.pid, tid).or_else(|| new_context(own, tid, user))?;
    let mut room = Room::make(context, user)?;
    let result = first(context);
    while room.give_back() {
        room = Room::make(context, user)?;
        events::deliver_here();
        timers::run_due(context);
    }
    Some(result)
}

/// The context of thread `tid`, which had none. No upcall makes it: that would deliver what has come on this stack,
/// from whose top the next signal would begin.
fn new_context(own: &start::ThisProcess, tid: u32, user: &UserContext) -> Option<&'static Context> {
    context::find(arch::fs_base(), user.regs.rsp as usize);
    // Making a context unblocks what faults need.
    sys::set_mask(!0);
    context::of_tid(own.pid, tid)
}

impl Room {
    fn make(context: &'static Context, user: &UserContext) -> Option<Self> {
        let further_out = context.room.load(Relaxed);
        if further_out != 0 && is_within(context, further_out, user.regs.rsp) {
            context.room_again.store(1, Relaxed);
            return None;
        }
        context.room.store(arch::stack_pointer() as u64, Relaxed);
        let index = context::index_of(context);
        let second = boot::place().stacks() + index * STACK_LEN + SECOND_STACK_OFFSET;
        let second = AltStack { address: second as u64, flags: 0, len: ALT_STACK_LEN as u64 };
        let mut former = AltStack::default();
        // SAFETY: the second stack is this context's and not in use: its thread is in no upcall, and
        // no other handler makes any. Every signal is blocked.
        unsafe { sys::exchange_alt_stack(elsewhere(context), &second, &mut former) };
        let ours = OURS.iter().fold(0, |mask, &signal| mask | 1 << (signal - 1));
        sys::set_mask(user.mask & !ours);
        Some(Self { context, former })
    }

    /// As before, with every signal blocked. True if something has come meanwhile.
    fn give_back(self) -> bool {
        sys::set_mask(!0);
        let mut second = AltStack::default();
        // SAFETY: what was set before, and every signal is blocked.
        unsafe { sys::exchange_alt_stack(elsewhere(self.context), &self.former, &mut second) };
        self.context.room.store(0, Relaxed);
        self.context.room_again.swap(0, Relaxed) != 0
    }
}

/// An address on none of the signal stacks.
fn elsewhere(context: &Context) -> usize {
    context.stack_top.load(Relaxed) as usize
}

/// Does code with this stack pointer run within the handler that has made room, whose own stack pointer
/// was `handler`? If not, it was jumped out of.
fn is_within(context: &Context, handler: u64, rsp: u64) -> bool {
    const NEAR: u64 = 16 << 10;
    context::index_of_room(rsp as usize) == Some(context::index_of(context))
        || handler.abs_diff(rsp) < NEAR
}

/// Have the kernel keep a signal until the upcalls of this thread are over. False if it cannot wait.
fn defer(context: &Context, signal: i32, info: &Info, user: &mut UserContext) -> bool {
    if is_fault(signal) && info.code > 0 {
        return false;
    }
    user.mask |= 1 << (signal - 1);
    // SAFETY: what the kernel gave us, whole.
    unsafe { sys::queue_again(signal, core::ptr::from_ref(info).cast()) };
    context.deferred.fetch_or(1 << signal, Relaxed);
    context.pending.store(context.deferred.as_ptr() as u64, Relaxed);
    true
}

/// Timers are due: look at them when the upcalls of this thread are over.
pub(crate) fn defer_timers(context: &Context) {
    context.deferred.fetch_or(DEFERRED_TIMER, Relaxed);
    context.pending.store(context.deferred.as_ptr() as u64, Relaxed);
}

/// The signals that wait for the end of this thread's upcalls, as a signal mask; they wait no more.
fn take_deferred(context: &Context) -> u64 {
    if context.deferred.load(Relaxed) == 0 {
        return 0;
    }
    let row = context.process.load(Relaxed) as usize;
    let bell = &context::common().inbox(row).bell;
    context.pending.store(bell.pending.as_ptr() as u64, Relaxed);
    let deferred = context.deferred.swap(0, Relaxed);
    if deferred & DEFERRED_TIMER != 0 {
        timers::look_again(context);
    }
    u64::from(deferred & !DEFERRED_TIMER) >> 1
}

/// The context has another holder.
pub(crate) fn forget(context: &Context) {
    take_deferred(context);
}

/// The upcalls of this thread are over.
pub(crate) fn come_now(context: &Context) {
    let mask = take_deferred(context);
    if mask != 0 {
        sys::unblock(mask);
    }
}

/// As [`come_now`], of a thread that a signal has interrupted, once it goes on.
pub(crate) fn come_afterwards(context: &Context, user: &mut UserContext) {
    user.mask &= !take_deferred(context);
}
