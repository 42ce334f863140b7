//! System calls of a program that extensions are hooked to.
//!
//! ```text
//!  program ── syscall ──► filter: not from libos ──► SIGSYS ──► each hook in turn, as an upcall
//!                                                                  │ pass          │ answer, refuse
//!  program ◄── result ── kernel ◄── policy ◄── the same call, from libos           ▼
//!                                                                               program
//! ```
//!
//! A thread that has SIGSYS blocked when it makes such a call is killed by the kernel. So the calls
//! that change signal masks come here as well, and what the program says of SIGSYS (and of the signals that end
//! upcalls, among them SIGILL, which patching needs) is kept apart.

use core::sync::atomic::Ordering::Relaxed;

use ext_api::abi::CallBlock;
use libos::data::Context;
use libos::layout::{CALLS_OFFSET, SCRATCH_LEN};
use libos::signals::{Action, CallTable, OURS, SIGNALS, SIGSYS, UNBLOCKABLE, is_looked_at};

use crate::arch::patched::{DONE, PASS, PatchedCall, TRAP};
use crate::arch::{fs_base, stack_pointer, syscall6};
use crate::asked::{Later, Row};
use crate::scratch::Scratch;
use crate::signals::{Info, UserContext, is_handled, ours_in_mask, table};
use crate::sys::{EFAULT, EPERM, Errno, nr};
use crate::{
    asked, boot, context, hooks, left, patch, scratch, signals, sockets, stacks, start, sys, time,
};

/// `si_code` of a call that the filter has sent here.
pub(crate) const SYS_SECCOMP: i32 = 1;
/// SIGSYS, and what ends upcalls. A thread that meets a site while it is patched, or comes back to one afterwards,
/// gets SIGILL.
pub(crate) const NEVER_BLOCKED: u64 = 1 << (SIGSYS - 1) | ours_in_mask();

pub(crate) fn call_table() -> &'static CallTable {
    let at = (boot::place().base + CALLS_OFFSET) as *const CallTable;
    // SAFETY: in the control zone, which is mapped in every participant; all atomics.
    unsafe { &*at }
}

/// A call has been trapped: do what it was to do, and put its result where the program looks for it.
pub(crate) fn trapped(info: &Info, user: &mut UserContext) {
    let number = info.value as u32 as usize;
    let args = user.regs.call_args().map(|arg| arg as usize);
    let result = match number {
        nr::RT_SIGACTION => sigaction(args),
        nr::RT_SIGPROCMASK => sigprocmask(args, user),
        _ => match stub_of_site(number, user) {
            Some(at) => {
                user.regs.rip = at as u64;
                return;
            }
            None if has_mask(number, args) => {
                with_own_mask(number, args, |args| perform(number, args, user))
            }
            None => hooked(number, args, user),
        },
    };
    user.regs.set_result(result as u64);
}

/// The stub of the site that has been trapped, if it can have one. The call is made from there, this time
/// as well: on the program's own stack, where a signal handler of the program's that interrupts it has
/// room, and from where a child that this forks may never come back.
fn stub_of_site(number: usize, user: &mut UserContext) -> Option<usize> {
    let (own, tid) = (start::this_process()?, sys::gettid());
    let former = context::of_fs(fs_base());
    // A child of vfork has no context that the cache knows.
    let has_one = former.is_some_and(|context| context.tid.load(Relaxed) == tid);
    if !has_one && own.pid != sys::getpid() {
        return None;
    }
    let is_ready = has_one && !former.is_some_and(context::is_unready);
    let stack = user.regs.rsp as usize;
    let (context, is_known) = context::settle_here(&own, tid, stack)?;
    if !is_ready {
        // Making a context, or making it ready, unblocks what faults need.
        sys::set_mask(!0);
    }
    context.calls_trapped.fetch_add(1, Relaxed);
    if context::is_at_home(context, stack) {
        stacks::keep(context, user);
    }
    if hooks_of(number).iter().any(Option::is_some) {
        context::wake_watchdog();
    }
    if !is_known {
        // Code that runs with another thread's FS base would be taken for that thread.
        patch::leave(user.regs.rip as usize);
        return None;
    }
    // A handler of the program's on a signal stack: who is asked needs another one.
    let is_at_home = context::is_at_home(context, stack);
    patch::consider(user.regs.rip as usize, number as u32).filter(|_| is_at_home)
}

/// Does the call come with a signal mask, or set one?
fn has_mask(number: usize, args: [usize; 6]) -> bool {
    match number {
        nr::RT_SIGACTION | nr::RT_SIGPROCMASK | nr::RT_SIGSUSPEND => true,
        nr::PPOLL => args[3] != 0,
        nr::EPOLL_PWAIT | nr::EPOLL_PWAIT2 => args[4] != 0,
        // A pointer to the mask and its length.
        nr::PSELECT6 => args[5] != 0 && copy_in::<usize>(args[5]) != Some(0),
        _ => false,
    }
}

/// Make a call that waits with a signal mask, with one that leaves alone what is never blocked.
fn with_own_mask(
    number: usize,
    mut args: [usize; 6],
    make: impl FnOnce([usize; 6]) -> isize,
) -> isize {
    let at = match number {
        nr::RT_SIGSUSPEND => 0,
        nr::PPOLL => 3,
        nr::PSELECT6 => 5,
        _ => 4,
    };
    let is_block = number == nr::PSELECT6;
    let block = if is_block { copy_in::<[usize; 2]>(args[at]) } else { Some([args[at], 8]) };
    let mask = block.and_then(|[mask, len]| Some((copy_in::<u64>(mask)?, len)));
    let Some((mask, len)) = mask else { return -(EFAULT as isize) };
    let own_mask = mask & !NEVER_BLOCKED;
    let own_block = [&raw const own_mask as usize, len];
    args[at] = if is_block { own_block.as_ptr() as usize } else { own_block[0] };
    make(args)
}

/// Make the call for the program: signals come as if it made it.
fn perform(number: usize, args: [usize; 6], user: &UserContext) -> isize {
    sys::set_mask(user.mask & !NEVER_BLOCKED);
    let result = make_for_program(number, args);
    sys::set_mask(!0);
    result
}

/// Make a call of the program's, unless it reaches for the region.
fn make_for_program(number: usize, args: [usize; 6]) -> isize {
    if reaches_region(number, args) {
        return -(EPERM as isize);
    }
    if sockets::may_carry(number) {
        return sockets::call(number, args);
    }
    // SAFETY: the program's own call; what it does to the program's memory is the program's wish.
    unsafe { syscall6(number, args) }
}

/// Would the call change the region's own memory? The filter leaves that to libos for calls that libos
/// makes.
fn reaches_region(number: usize, args: [usize; 6]) -> bool {
    const MREMAP_FIXED: usize = 2;
    let region = boot::place().shared();
    let touches = |start: usize, len: usize| {
        let end = start.saturating_add(len.max(1));
        start < region.end && end > region.start
    };
    match number {
        nr::MMAP => args[3] & sys::MAP_FIXED != 0 && touches(args[0], args[1]),
        nr::MUNMAP | nr::MPROTECT | nr::MADVISE => touches(args[0], args[1]),
        nr::MREMAP => {
            let moved = args[3] & MREMAP_FIXED != 0 && touches(args[4], args[2]);
            moved || touches(args[0], args[1].max(args[2]))
        }
        _ => false,
    }
}

/// Ask the hooks; the call's result.
fn hooked(number: usize, args: [usize; 6], user: &mut UserContext) -> isize {
    see_filter(number, args);
    let Some(own) = start::this_process() else { return unasked(number, args, user) };
    // A child of vfork, in its parent's memory, borrows the context of the thread that waits for it.
    let tid = if own.pid == sys::getpid() { Some(sys::gettid()) } else { lender(&own) };
    let Some(tid) = tid else { return unasked(number, args, user) };
    let mut block = CallBlock {
        number: number as u64,
        args: args.map(|arg| arg as u64),
        value: 0,
        took_ns: 0,
        scratch: core::ptr::null_mut(),
        scratch_len: 0,
        scratch_used: 0,
    };
    let open = context::of_tid(own.pid, tid).is_some_and(|context| {
        left::end_if_interrupted_outside(context, user);
        !context.sequence.load(Relaxed).is_multiple_of(2)
    });
    // A signal handler of the program on top of an upcall, or of the gate, which has the upcall's stack before
    // and after it: nobody can be asked.
    if open || context::index_of_stack(user.regs.rsp as usize).is_some() {
        return unasked(number, args, user);
    }
    let [before, after] = hooks_of(number);
    let (mut later, mut scratch, at) = (None, None, user.regs.rsp as usize);
    if before.is_some() || after.is_some_and(asked::is_narrowed) {
        let taken = hooks::upcalls_here(&own, tid, user, |context| {
            scratch = Some(Scratch::lend(context, at, &mut block));
            asked::before(context, [before, after], &mut block, &mut later)
        });
        if taken.is_none() && asked::must_decide(before) {
            return -(EPERM as isize);
        }
        let taken = taken == Some(true);
        // From an exec of a child of vfork nobody comes back to give it back.
        let is_borrowed = own.pid != sys::getpid() && matches!(number, nr::EXECVE | nr::EXECVEAT);
        if taken || block.scratch_used == 0 || is_borrowed {
            scratch.take().into_iter().for_each(Scratch::give_back);
        }
        if taken {
            return block.value as isize;
        }
    }
    let after = after.filter(|_| later.as_ref().is_none_or(Later::has_any));
    let began = after.map(|_| time::now_ns());
    let mut result = perform(number, block.args.map(|arg| arg as usize), user);
    if let (Some(row), Some(began)) = (after, began) {
        (block.value, block.took_ns) = (result as u64, time::now_ns() - began);
        hooks::upcalls_here(&own, tid, user, |context| {
            scratch.get_or_insert_with(|| Scratch::lend(context, at, &mut block));
            asked::after(context, row, later.as_ref(), &mut block);
        });
        result = block.value as isize;
    }
    scratch.into_iter().for_each(Scratch::give_back);
    result
}

/// Make a call for the program that nobody can be asked about: a signal handler of the program's has interrupted an upcall,
/// or there are more threads than contexts. Not one that a policy has somebody decide on.
fn unasked(number: usize, args: [usize; 6], user: &UserContext) -> isize {
    let [before, _] = hooks_of(number);
    if asked::must_decide(before) { -(EPERM as isize) } else { perform(number, args, user) }
}

/// Who is to be asked before a call, and after it.
fn hooks_of(number: usize) -> [Option<&'static Row>; 2] {
    let table = call_table();
    [&table.before, &table.after]
        .map(|rows| rows.get(number).filter(|row| row[0].load(Relaxed) != 0))
}

/// The thread of the parent that waits until its child of vfork, which calls this, has executed a program. The
/// child has that thread's block, which says who it is; threads by a raw clone, of which none says that, may have
/// another's. If it cannot be told, it is nobody.
pub(crate) fn lender(own: &start::ThisProcess) -> Option<u32> {
    let fs = fs_base();
    let waits = |tid: &u32| waits_for_child(own.pid, *tid);
    let named = context::names_of(own.pid, fs).find(waits);
    let mut others =
        context::nameless(own.pid, fs).filter(|&tid| Some(tid) != named && waits(&tid));
    match (named, others.next()) {
        (None, Some(one)) => others.next().is_none().then_some(one),
        (named, None) => named,
        _ => None,
    }
}

/// Does thread `tid` of process `pid` wait for a child of vfork?
fn waits_for_child(pid: u32, tid: u32) -> bool {
    sys::waits_for_vfork(pid, tid).unwrap_or_else(|| {
        // The kernel leaves its parent's signal stack to a child of vfork, and to no other that has its memory.
        sys::thread_exists(pid, tid) && sys::getppid() == pid && left::has_alternate_stack()
    })
}

/// For the entry of patched calls: ask the hooks of a call that the program is about to make. [`PASS`],
/// [`DONE`] or [`TRAP`].
///
/// Of a thread whose stack is elsewhere now the entry has found the context.
pub(crate) extern "C" fn sbx_patched(
    call: &mut PatchedCall,
    fs: u64,
    found: Option<&'static Context>,
) -> u32 {
    let number = call.number();
    if is_looked_at(number)
        && let Some(outcome) = look_at(number, call)
    {
        return outcome;
    }
    let [before, after] = hooks_of(number);
    if before.is_none() && after.is_none() {
        return pass(number, call);
    }
    // A handler on an alternate stack that is where those of goroutines are, as Go's: who is asked needs another.
    let at = core::ptr::from_ref(call) as usize;
    let found = found.filter(|context| !stacks::own_of(context).has(at));
    let Some(context) = found.or_else(|| context::known_by(fs)) else { return TRAP };
    if !context.sequence.load(Relaxed).is_multiple_of(2)
        && !left::end_if_left(context, stack_pointer())
    {
        // A signal handler of the program on top of an upcall: nobody can be asked.
        if asked::must_decide(before) {
            call.rax = -i64::from(EPERM) as u64;
            return DONE;
        }
        return pass(number, call);
    }
    let made = &context.calls_patched;
    made.store(made.load(Relaxed) + 1, Relaxed);
    let (mut block, mut later) = (call.block(), None);
    let scratch = Scratch::lend(context, core::ptr::from_ref(call) as usize, &mut block);
    let is_taken = asked::before(context, [before, after], &mut block, &mut later);
    let after = after.filter(|_| later.as_ref().is_none_or(Later::has_any));
    if !is_taken && after.is_none() && call.is_that(&block) {
        scratch.give_back();
        return pass(number, call);
    }
    match after {
        _ if is_taken => {}
        None => block.value = make(&block, Some(&scratch)) as u64,
        Some(row) => make_and_tell(context, (row, later.as_ref()), &mut block, &scratch),
    }
    call.rax = block.value;
    scratch.give_back();
    DONE
}

/// What libos does about a call of [`libos::signals::LOOKED_AT`], if it is to be made in another way than by
/// itself.
fn look_at(number: usize, call: &mut PatchedCall) -> Option<u32> {
    let args = call.args();
    let mut result = |result: isize| {
        call.rax = result as u64;
        Some(DONE)
    };
    match number {
        // They look at the stack pointer, or come back with another: from the stub, as from the site.
        nr::RT_SIGRETURN | nr::CLONE | nr::FORK | nr::VFORK | nr::CLONE3 => Some(TRAP),
        // What it would unblock or block is looked at there.
        nr::RT_SIGACTION | nr::RT_SIGPROCMASK => Some(TRAP),
        nr::PRCTL | nr::SECCOMP => {
            see_filter(number, args);
            None
        }
        _ if reaches_region(number, args) => result(-(EPERM as isize)),
        _ if has_mask(number, args) => {
            result(with_own_mask(number, args, |args| make_for_program(number, args)))
        }
        _ => None,
    }
}

/// If the call sets a filter on those of the program, libos does no more than it must.
fn see_filter(number: usize, args: [usize; 6]) {
    const PR_SET_SECCOMP: usize = 22;
    const SECCOMP_SET_MODE_FILTER: usize = 1;
    let sets_one = match number {
        nr::PRCTL => args[0] == PR_SET_SECCOMP,
        nr::SECCOMP => args[0] == SECCOMP_SET_MODE_FILTER,
        _ => false,
    };
    // Some ask by a null pointer whether they could.
    if sets_one && args[2] != 0 {
        patch::end();
    }
}

/// Nobody is asked.
fn pass(number: usize, call: &mut PatchedCall) -> u32 {
    if !sockets::may_carry(number) {
        return PASS;
    }
    call.rax = sockets::call(number, call.args()) as u64;
    DONE
}

/// Make a call, and tell the hooks of `row`, or those of them that were decided on, what became of it.
fn make_and_tell(
    context: &Context,
    (row, later): (&Row, Option<&Later>),
    block: &mut CallBlock,
    scratch: &Scratch,
) {
    let began = time::now_ns();
    let caller = last_caller(context, began);
    let result = make(block, Some(scratch));
    let ended = time::now_ns();
    (block.value, block.took_ns) = (result as u64, ended - began);
    context.caller.store(caller, Relaxed);
    asked::after(context, row, later, block);
    context.last_caller.store(context.caller.load(Relaxed), Relaxed);
    context.caller.store(0, Relaxed);
    context.last_call_ns.store(ended, Relaxed);
}

/// In [`Context::caller`]: nobody has asked yet.
const UNASKED: u32 = u32::MAX;

/// Who makes a call that has begun at `began`, as far as is known. A context is that of one thread, and of its
/// children of vfork one after the other. To make or to end such a child takes much longer than what is
/// taken for the same one's next call here.
fn last_caller(context: &Context, began: u64) -> u32 {
    const MOMENT_NS: u64 = 1000;
    let last = context.last_caller.load(Relaxed);
    let is_next = began.wrapping_sub(context.last_call_ns.load(Relaxed)) < MOMENT_NS;
    if is_next && last != 0 { last } else { UNASKED }
}

/// Pid of the process that an upcall on this context runs in. The kernel says that, since a child of vfork has
/// its parent's memory.
pub(crate) fn caller(context: &Context) -> u32 {
    match context.caller.load(Relaxed) {
        0 => sys::getpid(),
        UNASKED => {
            let pid = sys::getpid();
            context.caller.store(pid, Relaxed);
            pid
        }
        known => known,
    }
}

/// [`make`], for the entry.
pub(crate) extern "C" fn sbx_make(block: &CallBlock) -> isize {
    make(block, None)
}

/// Make a call with the arguments that hooks have left. What they point to in the scratch room goes to
/// this stack first: a signal handler may need the room meanwhile. It comes back if the room has been lent by
/// [`Scratch`], for those who are asked now.
fn make(block: &CallBlock, scratch: Option<&Scratch>) -> isize {
    let args = block.args.map(|arg| arg as usize);
    if block.scratch_used != 0 {
        return make_with_copies(block, args, scratch);
    }
    scratch.into_iter().for_each(Scratch::rest);
    let result = make_for_program(block.number as usize, args);
    scratch.into_iter().for_each(|scratch| scratch.resume(block));
    result
}

#[inline(never)]
fn make_with_copies(block: &CallBlock, mut args: [usize; 6], scratch: Option<&Scratch>) -> isize {
    // Only as much of it is used, and written, as lies in the room.
    let mut copy = core::mem::MaybeUninit::<[u8; SCRATCH_LEN]>::uninit();
    let copy = copy.as_mut_ptr().cast::<u8>();
    let (from, used) = (block.scratch as usize, block.scratch_used.min(SCRATCH_LEN));
    // SAFETY: so much of the scratch room is in use, and the copy has room for all of it.
    unsafe { core::ptr::copy_nonoverlapping(from as *const u8, copy, used) };
    scratch.map_or_else(|| scratch::clear(block), Scratch::rest);
    for arg in &mut args {
        if (from..from + used).contains(arg) {
            *arg = copy as usize + (*arg - from);
        }
    }
    let result = make_for_program(block.number as usize, args);
    if let Some(scratch) = scratch {
        scratch.resume(block);
        // SAFETY: as above.
        unsafe { core::ptr::copy_nonoverlapping(copy, from as *mut u8, used) };
    }
    result
}

/// `rt_sigaction`, for every signal: SIGSYS is never blocked by a handler's mask, and what libos handles
/// the program finds as it has set it. A child of vfork has the memory of its parent, not the actions: what it
/// sets there is for the kernel only, and so for what it executes.
fn sigaction([signal, new, old, len, ..]: [usize; 6]) -> isize {
    let result = (|| -> Result<(), Errno> {
        let action = match new {
            0 => None,
            at => Some(copy_in::<Action>(at).ok_or(EFAULT)?),
        };
        let mut former = Action::default();
        if signal < SIGNALS && is_handled(signal as i32) && len == 8 {
            // SAFETY: our private table; `signal` fits.
            let entry = unsafe { &raw mut (*table()).actions[signal] };
            // SAFETY: whole words.
            former = unsafe { entry.read_volatile() };
            if let Some(mut action) = action {
                action.mask &= !UNBLOCKABLE;
                if start::this_process().is_none_or(|own| own.pid == sys::getpid()) {
                    // SAFETY: as above.
                    unsafe { entry.write_volatile(action) };
                }
                signals::install(signal as i32, &action);
            }
        } else {
            let kernels =
                action.map(|action| Action { mask: action.mask & !NEVER_BLOCKED, ..action });
            let at = kernels.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
            let args = [signal, at as usize, &raw mut former as usize, len];
            // SAFETY: an action of the program's or none, and room for the former one.
            unsafe { sys::call(nr::RT_SIGACTION, args) }?;
        }
        if old != 0 && !copy_out(old, &former) {
            return Err(EFAULT);
        }
        Ok(())
    })();
    result.err().map_or(0, |errno| -(errno as isize))
}

/// `rt_sigprocmask`: what it sets is set when the handler returns.
fn sigprocmask([how, new, old, len, ..]: [usize; 6], user: &mut UserContext) -> isize {
    const EINVAL: isize = -(sys::EINVAL as isize);
    const BLOCK: usize = 0;
    const UNBLOCK: usize = 1;
    const SET: usize = 2;
    if len != 8 {
        return EINVAL;
    }
    let context = start::this_process().and_then(|own| context::of_tid(own.pid, sys::gettid()));
    let kept = context.map_or(0, |context| context.kept_blocked.load(Relaxed));
    let former = user.mask & !NEVER_BLOCKED | u64::from(kept);
    if new != 0 {
        let Some(given) = copy_in::<u64>(new) else { return -(EFAULT as isize) };
        let mask = match how {
            BLOCK => former | given,
            UNBLOCK => former & !given,
            SET => given,
            _ => return EINVAL,
        };
        if let Some(context) = context {
            context.kept_blocked.store((mask & NEVER_BLOCKED) as u32, Relaxed);
        }
        user.mask = mask & !NEVER_BLOCKED & !UNBLOCKABLE;
    }
    if old != 0 && !copy_out(old, &former) {
        return -(EFAULT as isize);
    }
    0
}

/// A value of the program's, if it can be read.
pub(crate) fn copy_in<T: Copy>(at: usize) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    let copied =
        sys::copy_between(nr::PROCESS_VM_READV, value.as_mut_ptr() as usize, at, size_of::<T>());
    // SAFETY: the kernel has written it whole; every `T` here is made of integers.
    copied.then(|| unsafe { value.assume_init() })
}

/// Give a value to the program. False if it cannot be written.
fn copy_out<T: Copy>(at: usize, value: &T) -> bool {
    let from = core::ptr::from_ref(value) as usize;
    sys::copy_between(nr::PROCESS_VM_WRITEV, from, at, size_of::<T>())
}

const _: () = assert!(OURS.len() < SIGNALS);
