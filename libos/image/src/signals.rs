//! Signals that end an upcall, and what the application sees of them.
//!
//! Every participant has one handler of ours for the signals of [`OURS`]. A fault in region code
//! ends that upcall; any other goes to the application, whose actions the supervisor keeps in a
//! private table instead of handing them to the kernel (`sbx-launcher/src/signals.rs`).
//!
//! ```text
//!            fault in region code ──► registers of the interrupted code := leave_upcall
//!  signal ──►
//!            anything else ──► the application's action: default, ignore, or its handler, on the
//!                              frame that the kernel made (or a copy on the stack it asked for)
//! ```
//!
//! The handler needs a stack when the upcall's has run out: each context has an alternate stack,
//! given to threads that have none of their own, and hidden from them ([`crate::stacks`]).

use core::sync::atomic::Ordering::{Relaxed, Release};

use ext_api::abi::Status;
use ext_api::limits::{FAULT_TEXT_LEN_MAX, STACK_LEN};
use libos::data::Context;
use libos::layout::{GUARD_OFFSET, KEPT_OFFSET, NAME_OFFSET};
use libos::signals::{
    Action, OURS, SIGSYS, STOP, SignalTable, WHY_BUDGET, WHY_CLOCK, WHY_EVENT, WHY_RESTART,
    WHY_TIMER, in_mask,
};

use crate::arch::{self, Jump, Registers};
use crate::start::ThisProcess;
use crate::{
    boot, calls, context, events, fault, hooks, left, patch, start, sys, text, time, timers,
};

const SIGILL: i32 = 4;
const SIGTRAP: i32 = 5;
const SIGFPE: i32 = 8;
const SIGCHLD: i32 = 17;
const SIGURG: i32 = 23;
const SIGWINCH: i32 = 28;
const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;
const SA_NOCLDSTOP: u64 = 1;
/// SA_NOCLDSTOP and SA_NOCLDWAIT.
const SA_NOCLD: u64 = 3;
const SA_SIGINFO: u64 = 4;
const SA_RESTORER: u64 = 0x0400_0000;
const SA_ONSTACK: u64 = 0x0800_0000;
const SA_RESTART: u64 = 0x1000_0000;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESETHAND: u64 = 0x8000_0000;
pub(crate) const SS_ONSTACK: u64 = 1;
pub(crate) const SS_DISABLE: u64 = 2;

/// `siginfo_t`, as far as this module reads it.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Info {
    signal: i32,
    errno: i32,
    pub(crate) code: i32,
    pad: i32,
    /// Faulting address, or pid and uid of a sender.
    pub(crate) address: u64,
    /// Value of a queued signal.
    pub(crate) value: u64,
    rest: [u64; 12],
}

/// `stack_t`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct AltStack {
    pub(crate) address: u64,
    pub(crate) flags: u64,
    pub(crate) len: u64,
}

/// The kernel's `ucontext`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct UserContext {
    flags: u64,
    link: u64,
    pub(crate) stack: AltStack,
    pub(crate) regs: Registers,
    fpstate: u64,
    reserved: [u64; 8],
    pub(crate) mask: u64,
}

impl UserContext {
    /// May these bytes be one that the kernel made?
    pub(crate) const fn is_plausible(&self) -> bool {
        const KNOWN_FLAGS: u64 = 7;
        self.flags & !KNOWN_FLAGS == 0 && self.link == 0 && self.regs.is_of_user()
    }
}

/// Return address, user context and information: what lies on the stack below the vector state.
const FRAME_LEN: usize = 8 + size_of::<UserContext>() + 128;

/// Take over the signals of [`OURS`] and those that are `armed`, by bit; the application's actions
/// so far go into its table.
pub(crate) fn take_over(armed: u64) {
    let ours = our_action();
    let mut released = 0;
    for signal in OURS.into_iter().chain(in_mask(armed)) {
        let mut theirs = Action::default();
        if armed >> signal & 1 == 1 {
            // SAFETY: asks only.
            let _ = unsafe { sys::sigaction(signal, core::ptr::null(), &raw mut theirs) };
            if theirs.handler == SIG_IGN && !is_fault(signal) {
                released |= 1 << signal;
                // SAFETY: our private table; no other thread of this process runs yet.
                unsafe { (&raw mut (*table()).actions[signal as usize]).write(theirs) };
                continue;
            }
        }
        // SAFETY: the handler is made for it.
        let done = unsafe { sys::sigaction(signal, &raw const ours, &raw mut theirs) };
        // A forked child has them already, and the table with them.
        if done.is_ok() && theirs.handler != ours.handler {
            // SAFETY: our private table; no other thread of this process runs yet.
            unsafe { (&raw mut (*table()).actions[signal as usize]).write(theirs) };
        }
    }
    // SAFETY: as above.
    unsafe { (&raw mut (*table()).handler).write(ours.handler) };
    // SAFETY: as above.
    unsafe { (&raw mut (*table()).released).write(released) };
    // SAFETY: as above.
    unsafe { (&raw mut (*table()).put_back).write(0) };
    // SAFETY: as above.
    unsafe { (&raw mut (*table()).armed).write(armed) };
}

fn our_action() -> Action {
    Action {
        handler: arch::sbx_signal_entry as *const () as u64,
        flags: SA_SIGINFO | SA_ONSTACK | SA_RESTORER | SA_RESTART,
        restorer: arch::sbx_restorer as *const () as u64,
        mask: !0,
    }
}

/// Does libos handle this signal?
pub(crate) fn is_handled(signal: i32) -> bool {
    // SAFETY: our private table.
    let armed = unsafe { (&raw const (*table()).armed).read() };
    OURS.contains(&signal) || armed >> signal & 1 == 1
}

/// The program has set `action` for a signal that libos handles: what it ignores the kernel ignores, as
/// only the kernel can.
pub(crate) fn install(signal: i32, action: &Action) {
    let ignored = action.handler == SIG_IGN && !is_fault(signal) && signal != SIGSYS;
    let kernels = if ignored { *action } else { our_action() };
    let with_childrens = Action { flags: kernels.flags | action.flags & SA_NOCLD, ..kernels };
    let kernels = if signal == SIGCHLD { with_childrens } else { kernels };
    // SAFETY: our handler, which is made for it, or none.
    let _ = unsafe { sys::sigaction(signal, &raw const kernels, core::ptr::null_mut()) };
}

/// Has the program put back libos's handler since as if it were its own? Then that is the kernel's action as libos wants it
/// from now on.
fn set_right(signal: i32) -> bool {
    // SAFETY: our private table.
    let put_back = unsafe { &raw mut (*table()).put_back };
    // SAFETY: as above; the supervisor writes it while a thread waits for its sigaction.
    let seen = unsafe { put_back.read_volatile() };
    if seen >> signal & 1 == 0 {
        return false;
    }
    // SAFETY: as above; `signal` is one that is hooked, which fit.
    let action = unsafe { (&raw const (*table()).actions[signal as usize]).read_volatile() };
    install(signal, &action);
    // SAFETY: as above.
    unsafe { put_back.write_volatile(seen & !(1 << signal)) };
    true
}

/// Is this the signal of an instruction that failed?
pub(crate) fn is_fault(signal: i32) -> bool {
    OURS.contains(&signal) && signal != STOP
}

/// [`OURS`], in a signal mask.
pub(crate) const fn ours_in_mask() -> u64 {
    let (mut mask, mut at) = (0, 0);
    while at < OURS.len() {
        mask |= 1 << (OURS[at] - 1);
        at += 1;
    }
    mask
}

/// Where the application's actions are kept: private memory that a forked child inherits.
pub(crate) fn table() -> *mut SignalTable {
    (boot::place().cache() + KEPT_OFFSET) as *mut SignalTable
}

/// Unblock what ends upcalls, in the calling thread, which makes the first one. What that is handled on
/// [`crate::stacks`] sees to.
pub(crate) fn prepare_thread() {
    sys::unblock(ours_in_mask());
}

/// The handler, called by [`arch::sbx_signal_entry`]. True: go on as `jump` says; false: return
/// to the interrupted code, as `context` has it now.
///
/// # Safety
/// The kernel made `info` and `user` for this signal; `jump.frame` is the frame they lie in.
pub(crate) unsafe extern "C" fn sbx_on_signal(
    signal: i32,
    info: *const Info,
    user: *mut UserContext,
    jump: *mut Jump,
) -> bool {
    if set_right(signal) {
        let unknown =
            Info { signal, errno: 0, code: 0, pad: 0, address: 0, value: 0, rest: [0; 12] };
        // SAFETY: room in the frame, where without SA_SIGINFO the kernel writes nothing.
        unsafe { info.cast_mut().write(unknown) };
    }
    // SAFETY: by contract.
    let (info, user, jump) = unsafe { (&*info, &mut *user, &mut *jump) };
    if arch::mend_gate(&mut user.regs) {
        return false;
    }
    if matches!(signal, sys::SIGSEGV | sys::SIGBUS)
        && info.code > 0
        && (arch::mend_copy(&mut user.regs.rip) || arch::mend_touch(&mut user.regs))
    {
        return false;
    }
    if signal == SIGILL
        && info.code > 0
        && let Some(at) = patch::goes_on_at(user.regs.rip as usize)
    {
        user.regs.rip = at as u64;
        return false;
    }
    // What comes from libos's own call is from a filter of the program's, and for the program.
    let by_libos = boot::place().shared().contains(&(user.regs.rip as usize));
    if signal == SIGSYS && info.code == calls::SYS_SECCOMP && !by_libos {
        calls::trapped(info, user);
        return false;
    }
    if signal == STOP && asks(info) {
        answer(info, user);
        return false;
    }
    match interrupted(&user.regs, signal, info) {
        Some((context, status)) => {
            events::signal_came();
            end_upcall(context, status, signal, info, user);
            false
        }
        None if signal == STOP && info.code == sys::SI_QUEUE && sent_by_supervisor(info) => {
            if let Some(own) = start::this_process()
                && let Some(context) = context::of_tid(own.pid, sys::gettid())
            {
                left::end_if_interrupted_outside(context, user);
            }
            answer_both(false, false, user);
            false
        }
        None if signal == STOP && has_lost_its_reason(info) => {
            on_any_reason(user);
            false
        }
        None if hooks::offer(signal, info, user) => false,
        None => deliver(signal, info, user, jump),
    }
}

/// Does libos ask itself for something by this [`STOP`], rather than end an upcall?
fn asks(info: &Info) -> bool {
    let is_queued = info.code == sys::SI_QUEUE;
    let is_asked = [WHY_EVENT, WHY_CLOCK, WHY_TIMER].contains(&info.errno);
    info.code == sys::SI_TIMER || is_queued && is_asked
}

/// Do what is asked for.
fn answer(info: &Info, user: &mut UserContext) {
    if info.code == sys::SI_QUEUE && info.errno == WHY_CLOCK {
        tell_clock(info.value, user);
    }
    let for_timers = info.code == sys::SI_TIMER || info.errno == WHY_TIMER;
    answer_both(for_timers, info.errno == WHY_EVENT, user);
}

/// Look at timers and events, if that is asked for. The kernel keeps one signal of a kind: what was sent while this one
/// was on its way is answered with it.
fn answer_both(for_timers: bool, for_events: bool, user: &mut UserContext) {
    let Some(own) = &start::this_process() else { return };
    let tid = sys::gettid();
    if for_timers || is_lent(own, tid) {
        on_timer(own, tid, user);
    }
    if for_events || events::is_signalled() {
        on_event(own, tid, user);
    }
}

/// Does this thread run timers of others?
fn is_lent(own: &ThisProcess, tid: u32) -> bool {
    context::of_tid(own.pid, tid).is_some_and(|context| context.lent.load(Relaxed) != 0)
}

/// Deliver events, if the interrupted code is the program's own. An upcall does it on its way out.
fn on_event(own: &ThisProcess, tid: u32, user: &mut UserContext) {
    events::signal_came();
    let on_upcall_stack = context::index_of_stack(user.regs.rsp as usize).is_some();
    if on_upcall_stack || arch::is_between_upcalls(&mut user.regs) {
        return;
    }
    // On top of an upcall, in a handler of the program's: what has come waits for the gate.
    let is_open = context::of_tid(own.pid, tid).is_some_and(|context| {
        left::end_if_interrupted_outside(context, user);
        !context.sequence.load(Relaxed).is_multiple_of(2)
    });
    if is_open {
        return;
    }
    let until = events::stays_until(own);
    while hooks::upcalls_here(own, tid, user, events::deliver_here).is_some()
        && events::stays(own, tid, until)
    {}
}

/// Say what CPU time this thread has used, if it is still in the upcall that `sequence` names.
fn tell_clock(sequence: u64, user: &UserContext) {
    let Some(own) = start::this_process() else { return };
    let Some(context) = context::of_tid(own.pid, sys::gettid()) else { return };
    left::end_if_interrupted_outside(context, user);
    if context.sequence.load(Relaxed) == sequence {
        context.cpu_sequence.store(sequence, Relaxed);
        context.cpu_ns.store(time::thread_cpu_ns(), Release);
    }
}

/// Run timers that are due, if the thread is in no upcall; else on its way out.
fn on_timer(own: &ThisProcess, tid: u32, user: &mut UserContext) {
    let Some(context) = context::of_tid(own.pid, tid) else { return };
    let open = !context.sequence.load(Relaxed).is_multiple_of(2);
    if open || arch::is_between_upcalls(&mut user.regs) {
        hooks::defer_timers(context);
    } else {
        hooks::upcalls_here(own, tid, user, timers::run_due);
    }
}

/// The supervisor's own signals name a sequence; one that came too late is nobody's business.
fn sent_by_supervisor(info: &Info) -> bool {
    info.errno >= WHY_BUDGET && info.errno <= WHY_RESTART
}

/// With as many signals queued as the user may have (RLIMIT_SIGPENDING) the kernel forgets what was queued with
/// this one, and says that nobody has sent it.
const fn has_lost_its_reason(info: &Info) -> bool {
    info.code == 0 && info.address == 0
}

/// Whatever it was to say, but for the end of an upcall: the supervisor looks whether that has come, and sees to
/// it otherwise.
fn on_any_reason(user: &mut UserContext) {
    let Some(own) = &start::this_process() else { return };
    let tid = sys::gettid();
    if let Some(context) = context::of_tid(own.pid, tid) {
        tell_clock(context.sequence.load(Relaxed), user);
    }
    on_event(own, tid, user);
    on_timer(own, tid, user);
}

/// The context whose upcall this signal ends, and how.
fn interrupted(regs: &Registers, signal: i32, info: &Info) -> Option<(&'static Context, Status)> {
    let region = boot::place().shared();
    let inside = |address: u64| region.contains(&(address as usize));
    let index = context::index_of_room(regs.rsp as usize)?;
    let context = context::common().context(index);
    let open = context.sequence.load(Relaxed) % 2 == 1 && !arch::in_gate(regs.rip);
    if !open || !is_held_here(context) {
        return None;
    }
    if signal == STOP {
        let meant = info.code == sys::SI_QUEUE
            && sent_by_supervisor(info)
            && info.value == context.sequence.load(Relaxed)
            && inside(regs.rip);
        let why = match info.errno {
            WHY_BUDGET => Status::Overrun,
            WHY_RESTART => Status::Restarting,
            _ => Status::Stuck,
        };
        return meant.then_some((context, why));
    }
    // What kill() sent is for the application.
    if info.code <= 0 || !is_fault(signal) {
        return None;
    }
    let jumped = info.address == regs.rip && inside(word_on_stack(index, regs.rsp).unwrap_or(0));
    if !inside(regs.rip) && !jumped {
        return None;
    }
    let guard = boot::place().stacks() + index * STACK_LEN + GUARD_OFFSET;
    let overflow = signal == sys::SIGSEGV
        && (guard..guard + ext_api::limits::PAGE_LEN).contains(&(info.address as usize));
    Some((
        context,
        match signal {
            _ if overflow => Status::StackOverflow,
            SIGILL | SIGTRAP => Status::IllegalInstruction,
            SIGFPE => Status::Arithmetic,
            _ => Status::MemoryFault,
        },
    ))
}

/// Is the context the calling thread's, or lent to it as to a child of vfork?
fn is_held_here(context: &Context) -> bool {
    let tid = context.tid.load(Relaxed);
    tid == sys::gettid()
        || start::this_process()
            .filter(|own| own.pid != sys::getpid())
            .is_some_and(|own| calls::lender(&own) == Some(tid))
}

/// The word at `address`, if that lies on the usable part of stack `index`.
fn word_on_stack(index: usize, address: u64) -> Option<u64> {
    let start = boot::place().stacks() + index * STACK_LEN;
    let usable = start + GUARD_OFFSET + ext_api::limits::PAGE_LEN..start + STACK_LEN - 8;
    if !usable.contains(&(address as usize)) || !address.is_multiple_of(8) {
        return None;
    }
    // SAFETY: within the stack of the thread that this runs on.
    Some(unsafe { (address as *const u64).read() })
}

/// Have the interrupted code go on at the gate's way out.
fn end_upcall(
    context: &'static Context,
    status: Status,
    signal: i32,
    info: &Info,
    user: &mut UserContext,
) {
    let mut line = text::Line::<FAULT_TEXT_LEN_MAX>::new();
    match status {
        Status::Overrun => line.push(b"the upcall used up its CPU time and was stopped"),
        Status::Stuck => line.push(b"the upcall waited for too long and was stopped"),
        Status::Restarting => line.push(b"the extension is being restarted, or was unloaded"),
        _ => {
            line.push(signal_name(signal));
            line.push(b" at ");
            line.push_hex(user.regs.rip);
            if signal == sys::SIGSEGV || signal == sys::SIGBUS {
                line.push(b", address ");
                line.push_hex(info.address);
            }
        }
    }
    let slot = boot::place().slot_of(user.regs.rip as usize).filter(|&slot| slot != 0);
    fault::report(context, status, line.bytes(), slot);
    hooks::come_afterwards(context, user);
    arch::redirect(&mut user.regs, context, status);
}

const fn signal_name(signal: i32) -> &'static [u8] {
    match signal {
        SIGILL => b"SIGILL",
        SIGTRAP => b"SIGTRAP",
        SIGFPE => b"SIGFPE",
        sys::SIGBUS => b"SIGBUS",
        _ => b"SIGSEGV",
    }
}

/// Does SIGCHLD say that a child has stopped, or goes on?
const fn is_stop(info: &Info) -> bool {
    const CLD_TRAPPED_TO_CONTINUED: core::ops::RangeInclusive<i32> = 4..=6;
    info.code >= *CLD_TRAPPED_TO_CONTINUED.start() && info.code <= *CLD_TRAPPED_TO_CONTINUED.end()
}

/// Do with a signal what the application asked for. True: enter its handler as `jump` says.
fn deliver(signal: i32, info: &Info, user: &mut UserContext, jump: &mut Jump) -> bool {
    // SAFETY: our private table; `signal` is one of OURS, which fit.
    let entry = unsafe { &raw mut (*table()).actions[signal as usize] };
    // SAFETY: whole words; the supervisor writes them while a thread waits for its sigaction.
    let action = unsafe { entry.read_volatile() };
    let sent = info.code <= 0 || !is_fault(signal);
    let nothing = action.handler == SIG_IGN
        || action.handler == SIG_DFL && matches!(signal, SIGCHLD | SIGURG | SIGWINCH);
    if nothing && sent || signal == SIGCHLD && is_stop(info) && action.flags & SA_NOCLDSTOP != 0 {
        return false;
    }
    if action.handler == SIG_DFL || action.handler == SIG_IGN {
        let default = Action::default();
        // SAFETY: the default action needs nothing.
        let _ = unsafe { sys::sigaction(signal, &raw const default, core::ptr::null_mut()) };
        if sent {
            sys::kill_self(signal);
        }
        // Back to the instruction that faulted, which now has its natural end.
        return false;
    }
    if action.flags & SA_RESETHAND != 0 {
        // SAFETY: as above.
        unsafe { (&raw mut (*entry).handler).write_volatile(SIG_DFL) };
    }
    if action.flags & SA_RESTART == 0 {
        arch::fail_with_eintr(&mut user.regs);
    }
    let own = if action.flags & SA_NODEFER == 0 { 1 << (signal - 1) } else { 0 };
    let kept = if is_handled(SIGSYS) { calls::NEVER_BLOCKED } else { 0 };
    sys::set_mask((user.mask | action.mask | own) & !kept);
    let on_alternate = jump.frame.abs_diff(user.regs.rsp as usize) > 64 << 10
        || context::index_of_room(jump.frame).is_some();
    if on_alternate && action.flags & SA_ONSTACK == 0 {
        // SAFETY: the kernel's frame, whole.
        unsafe { move_frame(jump, user) };
    }
    let restorer = if action.flags & SA_RESTORER == 0 {
        arch::sbx_restorer as *const () as u64
    } else {
        action.restorer
    };
    // SAFETY: the frame begins with the handler's return address.
    unsafe { (jump.frame as *mut u64).write(restorer) };
    jump.handler = action.handler;
    jump.signal = signal as u64;
    jump.info = (jump.frame + 8 + size_of::<UserContext>()) as u64;
    jump.user = (jump.frame + 8) as u64;
    true
}

/// Copy the kernel's frame to the stack that was interrupted: the handler did not ask for the
/// alternate one.
///
/// # Safety
/// `jump.frame` is the frame of this signal, and the interrupted stack is one.
unsafe fn move_frame(jump: &mut Jump, user: &UserContext) {
    const RED_ZONE: usize = 128;
    const LEGACY_LEN: usize = 512;
    const EXTENDED_AT: usize = 464;
    const EXTENDED: u32 = 0x4650_5853;
    let from = user.fpstate as usize;
    let extended = (from + EXTENDED_AT) as *const [u32; 2];
    // SAFETY: the software-reserved bytes of the vector state, which the kernel filled.
    let len = match unsafe { extended.read() } {
        [EXTENDED, len] => len as usize,
        _ => LEGACY_LEN,
    };
    let state = (user.regs.rsp as usize - RED_ZONE - len) & !63;
    let frame = ((state - FRAME_LEN) & !15) - 8;
    // SAFETY: free stack of the interrupted code; natively the kernel would write there.
    unsafe { core::ptr::copy_nonoverlapping(from as *const u8, state as *mut u8, len) };
    // SAFETY: as above.
    unsafe {
        core::ptr::copy_nonoverlapping(jump.frame as *const u8, frame as *mut u8, FRAME_LEN);
    };
    let moved = (frame + 8) as *mut UserContext;
    // SAFETY: just copied.
    unsafe { (&raw mut (*moved).fpstate).write(state as u64) };
    jump.frame = frame;
}

const _: () = assert!(size_of::<UserContext>() == 304 && size_of::<Info>() == 128);
const _: () = assert!(KEPT_OFFSET + size_of::<SignalTable>() <= NAME_OFFSET);
