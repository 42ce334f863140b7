//! What libos offers to extensions beyond the region libc: [`ext_api::abi::Runtime`].

use core::ffi::c_void;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use ext_api::abi::{Handle, HandlerFn, Reply, Runtime, Superblock, UpgradeFn};
use ext_api::limits::{CONTEXTS_MAX, HANDLERS_MAX};
use libos::data::Context;

use crate::{boot, calls, context, events, fault, heap, start, sys, time, timers};

/// Handed to every extension's `init`.
#[unsafe(no_mangle)]
pub static SBX_RUNTIME: Runtime = Runtime {
    size: size_of::<Runtime>() as u64,
    owner,
    owner_alive,
    owner_ids,
    futex_wait: sys_futex_wait,
    futex_wake: sys_futex_wake,
    now_ns: time::now_ns,
    pid: sys_pid,
    alloc,
    fault_text,
    find: sbx_find,
    peer: events::peer,
    post: events::post,
    timer: timers::timer,
    cancel: timers::cancel,
    mask: events::mask,
    is_live: events::is_live,
    own,
    pool,
    superblock,
    stacks,
};

/// [`Runtime::own`].
extern "C" fn own() -> u64 {
    start::this_process().map_or(0, |own| events::peer_of(own.row, own.generation))
}

/// [`Runtime::pool`].
extern "C" fn pool() -> u64 {
    let superblock = boot::place().base as *const Superblock;
    // SAFETY: the control zone begins with it, and stays mapped.
    unsafe { &*superblock }.pool.load(Acquire)
}

/// [`Runtime::superblock`].
extern "C" fn superblock() -> u64 {
    boot::place().base as u64
}

/// [`Runtime::stacks`].
extern "C" fn stacks() -> u64 {
    boot::place().stacks() as u64
}

/// Names the upcall that the calling thread is in; 0 outside of one.
extern "C" fn owner() -> u64 {
    context::current().map_or(0, owner_of)
}

fn owner_of(context: &Context) -> u64 {
    (context.sequence.load(Relaxed) & 0x7fff_ffff) << 32 | context.life.load(Relaxed)
}

fn index_of_owner(owner: u64) -> Option<usize> {
    let index = (owner as usize & ((1 << context::INDEX_BITS) - 1)).checked_sub(1)?;
    (index < CONTEXTS_MAX).then_some(index)
}

extern "C" fn owner_alive(owner: u64) -> u32 {
    let Some(index) = index_of_owner(owner) else { return 0 };
    // The claim outlives a killed process until the supervisor sweeps; the kernel knows sooner,
    // unless the dead process has not been waited for yet.
    u32::from(owner_of(context::common().context(index)) == owner && start::may_live(index))
}

fn owner_thread(index: usize) -> (u32, u32) {
    let tid = context::common().context(index).tid.load(Relaxed);
    (context::common().claim(index).load().pid, tid)
}

extern "C" fn owner_ids(owner: u64) -> u64 {
    let Some(index) = index_of_owner(owner) else { return 0 };
    let (pid, tid) = owner_thread(index);
    u64::from(pid) << 32 | u64::from(tid)
}

unsafe extern "C" fn sys_futex_wait(word: *const u32, expected: u32, timeout_ns: u64) -> i32 {
    // SAFETY: same contract.
    unsafe { sys::futex_wait(word, expected, timeout_ns) }
}

unsafe extern "C" fn sys_futex_wake(word: *const u32, count: u32) -> i32 {
    // SAFETY: same contract.
    unsafe { sys::futex_wake(word, count) }
}

extern "C" fn sys_pid() -> u32 {
    context::current().map_or_else(sys::getpid, calls::caller)
}

unsafe extern "C" fn alloc(len: usize) -> *mut c_void {
    heap::malloc(len).cast()
}

unsafe extern "C" fn fault_text(text: *const u8, len: usize) {
    if let Some(context) = context::current() {
        // SAFETY: `len` bytes are readable by contract.
        fault::keep(context, unsafe { core::slice::from_raw_parts(text, len) });
    }
}

/// [`ext_api::abi::FindFn`].
///
/// # Safety
/// `name` has `len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_find(name: *const u8, len: usize) -> Handle {
    // SAFETY: by contract.
    let name = unsafe { core::slice::from_raw_parts(name, len) };
    (1..HANDLERS_MAX)
        .find_map(|index| {
            let row = context::handler(index)?;
            let generation = row.generation.load(core::sync::atomic::Ordering::Acquire);
            let live = generation % 2 == 1 && row.name.get(..row.name_len as usize) == Some(name);
            live.then_some(u64::from(generation) << 32 | index as u64)
        })
        .unwrap_or(0)
}

/// Runs an image's constructors, then its `init`, inside an upcall. The argument words are: first
/// constructor, their number, `init` (or 0), configuration text, its length.
///
/// # Safety
/// Only the worker calls it, with words that the loader made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_run_init(args: *const u64, reply: *mut Reply) -> u32 {
    // SAFETY: five words, by contract.
    let [first, count, init, config, config_len] = unsafe { args.cast::<[u64; 5]>().read() };
    // SAFETY: by contract.
    unsafe { construct(first, count) };
    // SAFETY: 0 or the address of an InitFn, which is what an Option of one is.
    let init: Option<ext_api::abi::InitFn> = unsafe { core::mem::transmute(init as usize) };
    match init {
        // SAFETY: the text is readable, the runtime is ours, the reply is the caller's.
        Some(init) => unsafe {
            init(config as *const u8, config_len as usize, &raw const SBX_RUNTIME, reply)
        },
        None => 0,
    }
}

/// Run an image's constructors.
///
/// # Safety
/// The loader relocated an array of `count` function pointers at `first`.
unsafe fn construct(first: u64, count: u64) {
    type Constructor = extern "C" fn(i32, *const *const u8, *const *const u8);
    for index in 0..count as usize {
        // SAFETY: by contract.
        let constructor = unsafe { (first as *const Option<Constructor>).add(index).read() };
        if let Some(constructor) = constructor {
            constructor(0, core::ptr::null(), core::ptr::null());
        }
    }
}

/// Hands the state of an extension to its next version, inside one upcall. The argument words are:
/// first constructor of the new image, their number, the old `save`, the new `upgrade`, version of
/// what `save` writes, configuration text, its length.
///
/// # Safety
/// Only the worker calls it, with words that the loader made, while nobody is inside the old
/// image.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_run_upgrade(args: *const u64, reply: *mut Reply) -> u32 {
    // SAFETY: seven words, by contract.
    let [first, count, save, upgrade, version, config, config_len] =
        unsafe { args.cast::<[u64; 7]>().read() };
    // SAFETY: by contract.
    unsafe { construct(first, count) };
    // SAFETY: the address of a function of this type, by contract.
    let save: HandlerFn = unsafe { core::mem::transmute(save as usize) };
    // SAFETY: as above.
    let upgrade: UpgradeFn = unsafe { core::mem::transmute(upgrade as usize) };
    let mut saved = Reply::empty();
    // SAFETY: it takes no arguments, and the reply is ours.
    let status = unsafe { save(core::ptr::null(), &raw mut saved) };
    if status != 0 {
        return status;
    }
    let (text, runtime) = (config as *const u8, &raw const SBX_RUNTIME);
    // SAFETY: both texts are readable, the runtime is ours, the reply is the caller's.
    let status = unsafe {
        upgrade(text, config_len as usize, runtime, version, saved.spill, saved.len, reply)
    };
    // SAFETY: null, or what `save` took from the heap for us.
    unsafe { heap::free(saved.spill.cast()) };
    status
}
