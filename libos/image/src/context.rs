//! Which context a thread uses, when the gate's cache does not know.
//!
//! A thread is known by its tid; the cache by FS base. The two disagree in four cases, all
//! settled here: a new thread; a thread that reuses the FS base of one that has ended; a thread
//! that changed its FS base (the first one of every program does); and raw clones that share
//! their parent's FS base. The last never enter the cache while the other lives: each of their
//! upcalls comes here.
//!
//! That a thread is the one that a context was made for is told by its *mark*, a word that its own C library keeps its tid
//! in, and that of the next thread with the same stack and FS base.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::Release};

use ext_api::abi::{HandlerEntry, Status};
use ext_api::limits::{CONTEXTS_MAX, HANDLERS_MAX, NESTING_MAX, PAGE_LEN, SLOTS_MAX, STACK_LEN};
use libos::data::{CONTEXT_LEN, CONTEXTS_OFFSET, Claimed, Common, Context, DOORBELL, NOWHERE};
use libos::layout::{
    ALT_STACK_LEN, ALT_STACK_OFFSET, CACHE_ENTRIES, GUARD_OFFSET, SECOND_STACK_OFFSET, WINDOW_LEN,
};

use crate::arch::{cache_index, stack_pointer};
use crate::{boot, calls, hooks, left, scratch, signals, stacks, start, sys};

/// Stack that a nested upcall must find free.
const NESTED_STACK_MIN: usize = 24 << 10;

/// In [`Context::alt_stack`]: the thread has not been made ready for faults.
const UNREADY: u32 = 2;

/// Owner words: from the lowest bit, index of the context + 1 (13 bits), generation of its claim
/// (19 bits), sequence (31 bits). Bit 63 stays clear.
pub(crate) const INDEX_BITS: u32 = 13;
const _: () = assert!(CONTEXTS_MAX < 1 << INDEX_BITS);
/// Index and generation.
pub(crate) const LIFE: u64 = (1 << 32) - 1;

/// A frame of the gate on an upcall stack; `arch` writes it.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Frame {
    pub(crate) previous: *const Frame,
    pub(crate) handler: *const HandlerEntry,
    pub(crate) saved_stack: usize,
    pub(crate) reply: *mut ext_api::abi::Reply,
    pub(crate) depth: u64,
    /// The code that was called; of an outermost frame it is in the context instead.
    code: u64,
}

/// Bytes between a context's outermost frame and the end of its room.
pub(crate) const FRAME_LEN: usize = size_of::<Frame>().next_multiple_of(16);

/// The slot whose code runs in the innermost upcall of `context`, which is that of `frame`. What
/// libos runs itself (`init`), it runs for the slot of the handler's row.
pub(crate) fn slot_of(context: &Context, frame: &Frame) -> usize {
    let outermost = frame.previous.is_null();
    let code = if outermost { context.code.load(Relaxed) } else { frame.code };
    // SAFETY: a frame's handler is a row of the handler table.
    let row = || unsafe { (*frame.handler).slot } as usize % SLOTS_MAX;
    boot::place().slot_of(code as usize).filter(|&slot| slot != 0).unwrap_or_else(row)
}

/// The common area of this region.
pub(crate) fn common() -> Common {
    // SAFETY: code of the image runs only where the region is mapped, except in `start`, which
    // maps it before it comes here.
    unsafe { Common::at(boot::place()) }
}

/// The context whose upcall stack this thread is on.
pub(crate) fn current() -> Option<&'static Context> {
    index_of_stack(stack_pointer()).map(|index| common().context(index))
}

/// Index of the context that owns the upcall stack with this address on it.
pub(crate) fn index_of_stack(address: usize) -> Option<usize> {
    let offset = address.wrapping_sub(boot::place().stacks()) % STACK_LEN;
    index_of_room(address).filter(|_| offset >= GUARD_OFFSET)
}

/// Index of the context with this address on its upcall stack or on one of its signal stacks.
pub(crate) fn index_of_room(address: usize) -> Option<usize> {
    let index = address.checked_sub(boot::place().stacks())? / STACK_LEN;
    (index < CONTEXTS_MAX).then_some(index)
}

/// Index of a context of the table.
pub(crate) fn index_of(context: &Context) -> usize {
    let first = boot::place().base + CONTEXTS_OFFSET;
    (core::ptr::from_ref(context) as usize - first) / CONTEXT_LEN
}

/// The innermost frame of a context that is inside an upcall.
pub(crate) fn frame(context: &Context) -> Option<&'static Frame> {
    if context.sequence.load(Relaxed).is_multiple_of(2) {
        return None;
    }
    // SAFETY: the gate stored the address of a frame on this thread's own upcall stack, which
    // stays until the gate leaves.
    Some(unsafe { &*(context.frame.load(Relaxed) as *const Frame) })
}

/// For the gate: the calling thread's context, or a status below 64.
pub(crate) extern "C" fn sbx_context_slow(fs: u64, stack: usize) -> usize {
    wake_watchdog();
    let found = find(fs, stack);
    let context = at(found).filter(|context| {
        !is_at_home(context, stack) && context.sequence.load(Relaxed).is_multiple_of(2)
    });
    // SAFETY: the gate has put its arguments there, and the thread is in no upcall.
    let done = context.and_then(|context| unsafe { hooks::call_on_alternate(context, stack) });
    done.map_or(found, |status| status as usize)
}

/// Would the gate believe that this thread is the one that has the context, by its stack?
pub(crate) fn is_at_home(context: &Context, stack: usize) -> bool {
    stack.wrapping_sub(context.window.load(Relaxed) as usize) < WINDOW_LEN
}

/// An upcall is about to be made, after a time without any: the watchdog looks from now on.
pub(crate) fn wake_watchdog() {
    let common = common();
    if common.is_resting() && common.end_rest() {
        sys::kill(common.supervisor().load(Relaxed), DOORBELL);
    }
}

/// The calling thread's context, or a status below 64.
pub(crate) fn find(fs: u64, stack: usize) -> usize {
    let Some(own) = start::this_process() else {
        return Status::NotAttached as usize;
    };
    // A child of vfork, in its parent's memory, borrows the context of the thread that waits for it.
    let is_child = own.pid != sys::getpid();
    let tid = if is_child { calls::lender(&own) } else { Some(sys::gettid()) };
    let Some(tid) = tid else { return Status::NoContext as usize };
    // One that is made for that thread gives it what faults need when it comes itself, which it then has to.
    let is_unready = is_child && of_tid(own.pid, tid).is_none_or(is_unready);
    let address = find_of(&own, tid, fs, stack);
    if is_unready && let Some(context) = of_tid(own.pid, tid) {
        context.alt_stack.store(UNREADY, Relaxed);
        context.window.store(NOWHERE, Relaxed);
    }
    address
}

/// The context of thread `tid`, or a status below 64. It is noted in the cache, if that has no other's there.
fn find_of(own: &start::ThisProcess, tid: u32, fs: u64, stack: usize) -> usize {
    let entry = cache_entry(fs);
    let known = cached(entry).filter(|context| context.fs_base.load(Relaxed) == fs);
    let is_its =
        |context: &Context| context.tid.load(Relaxed) == tid || take_over(context, own.pid, tid);
    let (context, has_other) = match known {
        Some(context) if is_its(context) => (Some(context), false),
        other => (of_tid(own.pid, tid).or_else(|| new(own, tid)), other.is_some()),
    };
    let Some(context) = context else {
        return Status::NoContext as usize;
    };
    if is_successor(context, fs) {
        renew(context);
    }
    if is_unready(context) && tid == sys::gettid() {
        context.alt_stack.store(0, Relaxed);
        signals::prepare_thread();
    }
    let address = settle(context, fs, stack);
    if !has_other {
        entry.store(address as u64, Release);
    }
    address
}

/// The context of the calling thread `tid`, one of `own`, which has it or gets it now; it goes on at `stack`.
/// And whether it can be told by the FS base alone from now on, from this stack.
pub(crate) fn settle_here(
    own: &start::ThisProcess,
    tid: u32,
    stack: usize,
) -> Option<(&'static Context, bool)> {
    let fs = crate::arch::fs_base();
    let entry = cache_entry(fs);
    let address = find_of(own, tid, fs, stack);
    let context = at(address)?;
    let is_known = cached(entry).is_some_and(|known| core::ptr::eq(known, context));
    Some((context, is_known))
}

/// The tid of the calling thread, without a system call if it has a context that the cache knows.
pub(crate) fn own_tid() -> u32 {
    if let Some(context) = known_here() {
        return context.tid.load(Relaxed);
    }
    let (tid, fs) = (sys::gettid(), crate::arch::fs_base());
    // Its stack is elsewhere since its last upcall, or the watchdog has gone to rest.
    let is_ready = |context: &&Context| context.tid.load(Relaxed) == tid && !is_unready(context);
    if let Some(context) = of_fs(fs).filter(is_ready) {
        settle(context, fs, stack_pointer());
    }
    tid
}

/// The calling thread's context, if that can be told without asking anybody.
pub(crate) fn known_here() -> Option<&'static Context> {
    known_by(crate::arch::fs_base())
}

/// As [`known_here`], of a thread whose FS base may be `fs`.
#[inline]
pub(crate) fn known_by(fs: u64) -> Option<&'static Context> {
    of_fs(fs).filter(|context| {
        is_at_home(context, stack_pointer()) && has_mark(context, context.tid.load(Relaxed))
    })
}

/// The context of the thread with this FS base, or of one that has it as well.
#[inline]
pub(crate) fn of_fs(fs: u64) -> Option<&'static Context> {
    cached(cache_entry(fs)).filter(|context| context.fs_base.load(Relaxed) == fs)
}

/// Note where the thread is now.
fn settle(context: &Context, fs: u64, stack: usize) -> usize {
    let tid = context.tid.load(Relaxed);
    let is_here = context.fs_base.load(Relaxed) == fs;
    let is_marked = context.mark.load(Relaxed) != no_mark(context);
    if !is_here || !is_marked || !has_mark(context, tid) {
        let mark = mark_of(fs, tid).map_or_else(|| no_mark(context), |at| at as u64);
        context.mark.store(mark, Relaxed);
    }
    context.fs_base.store(fs, Relaxed);
    if let Some(above) = stacks::see_to(context, stack) {
        context.window.store((stack + above).saturating_sub(WINDOW_LEN) as u64, Relaxed);
    }
    core::ptr::from_ref(context) as usize
}

/// Does the thread with this context have this tid, as far as can be told without the kernel?
fn has_mark(context: &Context, tid: u32) -> bool {
    let mark = context.mark.load(Relaxed) as *const AtomicU32;
    // SAFETY: in the calling thread's own block, which has its FS base, or the context's.
    tid == unsafe { &*mark }.load(Relaxed)
}

/// The mark of one that has none.
fn no_mark(context: &Context) -> u64 {
    &raw const context.tid as u64
}

/// Where the calling thread, which has this FS base, has its tid for as long as it lives.
fn mark_of(fs: u64, tid: u32) -> Option<usize> {
    const BLOCK_LEN: usize = 4 << 10;
    // glibc has the kernel clear it when the thread ends.
    let cleared = sys::tid_address().filter(|at| at.wrapping_sub(fs as usize) < BLOCK_LEN);
    let mut known = cleared.into_iter().chain(places_of_tid(fs));
    known.find(|at| at.is_multiple_of(4) && calls::copy_in::<u32>(*at) == Some(tid))
}

/// Where C libraries have a thread's tid, if its FS base is this.
fn places_of_tid(fs: u64) -> impl Iterator<Item = usize> {
    /// In the thread blocks of glibc, where debuggers look, and of musl, and before Go's.
    const PLACES: [isize; 3] = [0x2d0, 0x30, -72];
    PLACES.into_iter().map(move |offset| (fs as usize).wrapping_add_signed(offset))
}

/// The threads of process `pid` that the block at `fs` may say it is of: in a child of vfork, its parent's thread.
pub(crate) fn names_of(pid: u32, fs: u64) -> impl Iterator<Item = u32> {
    let is_marked = |context: &&Context| context.mark.load(Relaxed) != no_mark(context);
    let marked = of_block(pid, fs).filter(is_marked).map(|context| context.tid.load(Relaxed));
    let words = places_of_tid(fs).filter_map(calls::copy_in::<u32>);
    marked.chain(words).filter(|&tid| tid != 0)
}

/// The threads of process `pid` with this FS base whose block does not say who they are.
pub(crate) fn nameless(pid: u32, fs: u64) -> impl Iterator<Item = u32> {
    let is_bare = |context: &&Context| context.mark.load(Relaxed) == no_mark(context);
    of_block(pid, fs).filter(is_bare).map(|context| context.tid.load(Relaxed))
}

/// The contexts of process `pid` with this FS base, but for those that the block there says are another's.
fn of_block(pid: u32, fs: u64) -> impl Iterator<Item = &'static Context> {
    of_process(pid).filter(move |context| {
        let mark = context.mark.load(Relaxed) as usize;
        context.fs_base.load(Relaxed) == fs
            && calls::copy_in::<u32>(mark) == Some(context.tid.load(Relaxed))
    })
}

/// Give the idle context of a thread that has ended to this one, which has its FS base.
fn take_over(context: &Context, pid: u32, tid: u32) -> bool {
    let holder = context.tid.load(Relaxed);
    let idle = context.sequence.load(Relaxed).is_multiple_of(2);
    let is_free = idle
        && !sys::thread_exists(pid, holder)
        && context.tid.compare_exchange(holder, tid, Relaxed, Relaxed).is_ok();
    if is_free {
        renew(context);
    }
    is_free
}

/// The context is another thread's from now on, the calling one's.
fn renew(context: &Context) {
    context.tls_live.store(0, Relaxed);
    context.alt_stack.store(0, Relaxed);
    hooks::forget(context);
    context.lent.store(0, Relaxed);
    context.room.store(0, Relaxed);
    context.kept_blocked.store(0, Relaxed);
    scratch::forget(context);
    context.call_room.store(0, Relaxed);
    context.caller.store(0, Relaxed);
    context.last_caller.store(0, Relaxed);
    signals::prepare_thread();
}

/// Is the calling thread, with this FS base, another one than that which had its tid, and this context, before? Threads
/// begin without a signal stack.
fn is_successor(context: &Context, fs: u64) -> bool {
    context.fs_base.load(Relaxed) != fs
        && context.sequence.load(Relaxed).is_multiple_of(2)
        && context.tid.load(Relaxed) == sys::gettid()
        && !left::has_alternate_stack()
}

/// The contexts of a process.
pub(crate) fn of_process(pid: u32) -> impl Iterator<Item = &'static Context> {
    let common = common();
    common
        .contexts()
        .filter(move |&index| {
            common.claim(index).load().pid == pid && start::context_shares_pids(index)
        })
        .map(move |index| common.context(index))
}

/// The context that `tid` has already.
pub(crate) fn of_tid(pid: u32, tid: u32) -> Option<&'static Context> {
    of_process(pid).find(|context| context.tid.load(Relaxed) == tid)
}

/// Was the context made by a child of vfork for its thread, which has not come itself since?
pub(crate) fn is_unready(context: &Context) -> bool {
    context.alt_stack.load(Relaxed) == UNREADY
}

/// A free context, made ready for `tid`.
fn new(own: &start::ThisProcess, tid: u32) -> Option<&'static Context> {
    let common = common();
    let first = own.row * 4;
    for offset in 0..CONTEXTS_MAX {
        let index = (first + offset) % CONTEXTS_MAX;
        let Some(generation) = common.take_context(index, own.pid) else {
            continue;
        };
        if make_stack(index).is_err() {
            common.claim(index).free(Claimed { generation, pid: own.pid });
            return None;
        }
        let context = common.context(index);
        let frame = outermost_frame(index);
        context.sequence.store(0, Relaxed);
        context.stack_top.store(frame as u64, Relaxed);
        context.frame.store(frame as u64, Relaxed);
        let bell = &common.inbox(own.row).bell;
        context.pending.store(bell.pending.as_ptr() as u64, Relaxed);
        context.process.store(own.row as u32, Relaxed);
        context.process_generation.store(own.generation, Relaxed);
        context
            .life
            .store(u64::from(generation) << INDEX_BITS & LIFE | (index as u64 + 1), Relaxed);
        context.errno.store(0, Relaxed);
        context.tls_live.store(0, Relaxed);
        context.deferred.store(0, Relaxed);
        context.lent.store(0, Relaxed);
        context.room.store(0, Relaxed);
        context.kept_blocked.store(0, Relaxed);
        context.call_room.store(0, Relaxed);
        context.caller.store(0, Relaxed);
        context.last_caller.store(0, Relaxed);
        context.alt_stack.store(0, Relaxed);
        context.mark.store(no_mark(context), Relaxed);
        context.window.store(NOWHERE, Relaxed);
        scratch::forget(context);
        context.tid.store(tid, Release);
        signals::prepare_thread();
        return Some(context);
    }
    None
}

/// Make a stack usable but for its guard pages.
fn make_stack(index: usize) -> Result<usize, sys::Errno> {
    let lowest = boot::place().stacks() + index * STACK_LEN;
    let above_guard = GUARD_OFFSET + PAGE_LEN;
    let usable = [
        (ALT_STACK_OFFSET, ALT_STACK_LEN),
        (SECOND_STACK_OFFSET, GUARD_OFFSET - SECOND_STACK_OFFSET),
        (above_guard, STACK_LEN - above_guard),
    ];
    for (offset, len) in usable {
        // SAFETY: the stack of a context that this thread has just claimed.
        unsafe { sys::mprotect(lowest + offset, len, sys::PROT_READ | sys::PROT_WRITE) }?;
    }
    Ok(lowest)
}

/// Write the outermost frame of a stack, as far as it is the same for every upcall; its address.
fn outermost_frame(index: usize) -> usize {
    let top = boot::place().stacks() + (index + 1) * STACK_LEN;
    let at = top - FRAME_LEN;
    let frame = Frame {
        previous: core::ptr::null(),
        handler: core::ptr::null(),
        saved_stack: 0,
        reply: core::ptr::null_mut(),
        depth: 1,
        code: 0,
    };
    // SAFETY: the top of a stack that was just made for a context of this thread.
    unsafe { (at as *mut Frame).write(frame) };
    at
}

fn cache_entry(fs: u64) -> &'static AtomicU64 {
    let index = cache_index(fs) % CACHE_ENTRIES;
    let address = boot::place().cache() + index * size_of::<AtomicU64>();
    // SAFETY: the cache is mapped in every participant, and the index is within it.
    unsafe { &*(address as *const AtomicU64) }
}

fn cached(entry: &AtomicU64) -> Option<&'static Context> {
    at(entry.load(Relaxed) as usize)
}

/// The context at this address, if there is one.
fn at(address: usize) -> Option<&'static Context> {
    let offset = address.checked_sub(boot::place().base + CONTEXTS_OFFSET)?;
    let index = offset / CONTEXT_LEN;
    (index < CONTEXTS_MAX).then(|| common().context(index))
}

/// Two registers: a context's address or a status below 64, and the handler's entry.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Nested {
    context: usize,
    handler: *const HandlerEntry,
}

/// For the gate: may the handler `handle` run within the upcall that is open on this stack?
pub(crate) extern "C" fn nested_check(handle: u64, stack: usize) -> Nested {
    let refuse = |status: Status| Nested { context: status as usize, handler: core::ptr::null() };
    let Some(index) = index_of_stack(stack) else {
        return refuse(Status::NotAttached);
    };
    let context = common().context(index);
    // Of a forked child's parent it is that one's.
    let is_own =
        start::this_process().is_some_and(|own| common().claim(index).load().pid == own.pid);
    let Some(open) = frame(context).filter(|_| is_own) else {
        return refuse(Status::Reentered);
    };
    let lowest = boot::place().stacks() + index * STACK_LEN + GUARD_OFFSET + PAGE_LEN;
    if open.depth >= NESTING_MAX as u64 || stack < lowest + NESTED_STACK_MIN {
        return refuse(Status::TooDeep);
    }
    match live_handler(handle) {
        Some(handler) => Nested { context: core::ptr::from_ref(context) as usize, handler },
        None => refuse(Status::Stale),
    }
}

/// The entry of a live handler.
pub(crate) fn live_handler(handle: u64) -> Option<&'static HandlerEntry> {
    let handler = handler(handle as u32 as usize)?;
    let generation = handler.generation.load(core::sync::atomic::Ordering::Acquire);
    (u64::from(generation) == handle >> 32 && generation % 2 == 1).then_some(handler)
}

/// Row `index` of the handler table.
pub(crate) fn handler(index: usize) -> Option<&'static HandlerEntry> {
    if index >= HANDLERS_MAX {
        return None;
    }
    let first = boot::boot().handlers as *const HandlerEntry;
    // SAFETY: the table has this many rows, in the control zone, mapped in every participant.
    let row = unsafe { first.add(index) };
    // SAFETY: a row is all integers and atomics; only the supervisor writes it.
    Some(unsafe { &*row })
}
