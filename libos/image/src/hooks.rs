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
use libos::layout::{ALT_STACK_LEN, ALT_STACK_OFFSET, HOOKS_OFFSET, SECOND_STACK_OFFSET};
use libos::signals::{DEFERRED_TIMER, HookTable, SIGNALS};

use crate::arch::{self, sbx_call, sbx_call_in};
use crate::signals::{AltStack, Info, SS_DISABLE, UserContext, is_fault, ours_in_mask, table};
use crate::{boot, context, events, left, stacks, start, sys, timers};

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
    if known.is_some_and(|context| is_in_room(context, user.regs.rsp as usize)) {
        return hold(signal, info, user);
    }
    let fault_code = user.regs.fault_code();
    match upcalls_here(&own, tid, user, |_| ask(signal, info, fault_code)) {
        Some(taken) => taken,
        None => known.is_some_and(|context| defer(context, signal, info, user)),
    }
}

fn ask(signal: i32, info: &Info, fault_code: u64) -> bool {
    let sender = info.address & u64::from(u32::MAX);
    let is_own = is_fault(signal) && info.code > 0;
    let (from, value) = if is_own { (info.address, fault_code) } else { (sender, info.value) };
    let words = [signal as u64, from, info.code as u64, value];
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

/// For the gate: code at `stack` makes an upcall, and its thread has no other open. If it is a handler of the program's on
/// the alternate stack, it is made here: its status.
///
/// # Safety
/// The gate's arguments lie at `stack`: reply, arguments, handle. The calling thread holds `context`.
pub(crate) unsafe fn call_on_alternate(context: &'static Context, stack: usize) -> Option<u32> {
    if !left::is_on_alternate(stack) {
        return None;
    }
    // SAFETY: by contract.
    let [reply, args, handle] = unsafe { (stack as *const [u64; 3]).read() };
    let mask = sys::block_all();
    let status = within_room(context, stack as u64, mask, |context| {
        // SAFETY: the caller's own upcall.
        unsafe { sbx_call_in(handle, args as *const u64, reply as *mut Reply, context) }
    });
    sys::set_mask(mask);
    Some(status.unwrap_or(Status::Reentered as u32))
}

/// Run `first`, which makes upcalls, in a signal handler, and then what has come meanwhile: faults must
/// be able to come, and find a stack that is not this handler's. None if a handler further out is at
/// it: that one runs what has come.
pub(crate) fn upcalls_here<T>(
    own: &start::ThisProcess,
    tid: u32,
    user: &mut UserContext,
    first: impl FnOnce(&'static Context) -> T,
) -> Option<T> {
    // One that another thread had, or that its child of vfork has made for it, is made ready first.
    let is_ready = |context: &&Context| {
        context.fs_base.load(Relaxed) == arch::fs_base() && !context::is_unready(context)
    };
    let context = context::of_tid(own.pid, tid).filter(is_ready).or_else(|| {
        let context = new_context(own, tid, user)?;
        stacks::keep(context, user);
        Some(context)
    })?;
    within_room(context, user.regs.rsp, user.mask, first)
}

/// Run `first` with room for upcalls, and then what has come meanwhile: in a handler on the stack at `rsp`, or that
/// has interrupted code there. Signals are blocked as `mask` says, and before and afterwards all.
fn within_room<T>(
    context: &'static Context,
    rsp: u64,
    mask: u64,
    first: impl FnOnce(&'static Context) -> T,
) -> Option<T> {
    let mut room = Room::make(context, rsp, mask)?;
    let result = first(context);
    while room.give_back() {
        room = Room::make(context, rsp, mask)?;
        events::deliver_here(context);
        timers::run_due(context);
    }
    Some(result)
}

/// The context of thread `tid`, which had none that was ready. No upcall makes it: that would deliver what has come on this stack,
/// from whose top the next signal would begin.
fn new_context(own: &start::ThisProcess, tid: u32, user: &UserContext) -> Option<&'static Context> {
    context::find(arch::fs_base(), user.regs.rsp as usize);
    // Making a context unblocks what faults need.
    sys::set_mask(!0);
    context::of_tid(own.pid, tid)
}

impl Room {
    fn make(context: &'static Context, rsp: u64, mask: u64) -> Option<Self> {
        if is_in_room(context, rsp as usize) {
            context.room_again.store(1, Relaxed);
            return None;
        }
        context.room.store(arch::stack_pointer() as u64, Relaxed);
        let mut second = stack_of(context, SECOND_STACK_OFFSET);
        // A handler that made room was jumped out of: the kernel has that one since.
        if second.has(arch::stack_pointer()) {
            second = stack_of(context, ALT_STACK_OFFSET);
        }
        let mut former = AltStack::default();
        // SAFETY: the second stack is this context's and not in use: its thread is in no upcall, and
        // no other handler makes any. Every signal is blocked.
        unsafe { sys::exchange_alt_stack(elsewhere(context), &second, &mut former) };
        if former.flags & SS_DISABLE == 0
            && context::index_of_room(former.address as usize).is_none()
        {
            stacks::note_own(context, &former);
        }
        sys::set_mask(mask & !ours_in_mask());
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

fn stack_of(context: &Context, offset: usize) -> AltStack {
    let room = boot::place().stacks() + context::index_of(context) * STACK_LEN;
    AltStack { address: (room + offset) as u64, flags: 0, len: ALT_STACK_LEN as u64 }
}

/// Does code at `stack` run within a handler that has made room for upcalls?
pub(crate) fn is_in_room(context: &Context, stack: usize) -> bool {
    let further_out = context.room.load(Relaxed);
    further_out != 0 && is_within(context, further_out, stack as u64)
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

/// Have the kernel keep a signal for as long as the mask holds that the interrupted code goes on with. Of a handler
/// that has made room that is until it returns: if it looked again for what has come meanwhile, it would meet the
/// same signal. False if it cannot wait: faults, also if somebody has sent them, since while they are blocked one in an
/// upcall would be the end of the process.
fn hold(signal: i32, info: &Info, user: &mut UserContext) -> bool {
    if is_fault(signal) {
        return false;
    }
    user.mask |= 1 << (signal - 1);
    // SAFETY: what the kernel gave us, whole.
    unsafe { sys::queue_again(signal, core::ptr::from_ref(info).cast()) };
    true
}

/// Have the kernel keep a signal until the upcalls of this thread are over. False if it cannot wait.
fn defer(context: &Context, signal: i32, info: &Info, user: &mut UserContext) -> bool {
    if !hold(signal, info, user) {
        return false;
    }
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
