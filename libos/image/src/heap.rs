//! `malloc` and its family: each extension allocates from its own arena, whoever calls it.
//!
//! Which extension runs is in the gate's frame. A block given back goes to the arena that its
//! address lies in, so that one extension may free what another handed to it.

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::Ordering::Relaxed;

use ext_api::abi::Status;
use ext_api::limits::SLOTS_MAX;
use libos::arena::Arena;

use crate::{context, fault, sys, tls};

/// What C promises of `malloc`.
const ALIGN: usize = 16;

/// Allocate from the arena of the extension in `slot`; null when it is full.
pub(crate) fn alloc_for(slot: usize, len: usize, align: usize) -> *mut u8 {
    let (Some(arena), Some(context)) = (arena_of_slot(slot), context::current()) else {
        return null_mut();
    };
    match arena.alloc(len, align, context::index_of(context)) {
        Some(block) => block.as_ptr(),
        None => {
            context.starved.store(1, Relaxed);
            null_mut()
        }
    }
}

fn arena_of_slot(slot: usize) -> Option<Arena> {
    let extension = tls::extension(slot)?;
    // SAFETY: the supervisor formatted the arena before it published the extension, and takes it
    // away only once no upcall is inside.
    (extension.arena != 0).then(|| unsafe { Arena::at_unchecked(extension.arena as *mut u8) })
}

/// The slot whose handler runs on this thread.
fn current_slot() -> usize {
    let open = context::current().and_then(|context| Some((context, context::frame(context)?)));
    open.map_or(0, |(context, frame)| context::slot_of(context, frame))
}

/// The arena that `block` lies in: that of the running extension, or any.
fn arena_of(block: *mut u8) -> Option<Arena> {
    let holds = |slot: usize| {
        tls::extension(slot).is_some_and(|extension| {
            (block as u64).wrapping_sub(extension.arena) < extension.arena_len
        })
    };
    let current = current_slot();
    let slot = if holds(current) { current } else { (0..SLOTS_MAX).find(|&slot| holds(slot))? };
    arena_of_slot(slot)
}

/// `malloc(3)`; the unwinder links to it by name.
#[unsafe(no_mangle)]
pub extern "C" fn malloc(len: usize) -> *mut u8 {
    alloc_for(current_slot(), len.max(1), ALIGN)
}

/// `calloc(3)`.
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, len: usize) -> *mut u8 {
    let Some(len) = count.checked_mul(len) else { return null_mut() };
    let block = malloc(len);
    if !block.is_null() {
        // SAFETY: just allocated with this length.
        unsafe { block.write_bytes(0, len) };
    }
    block
}

/// `free(3)`. A pointer that is no block of any arena ends the upcall instead of the heap.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(block: *mut u8) {
    if block.is_null() {
        return;
    }
    // SAFETY: the caller gives the block up.
    let freed = arena_of(block).is_some_and(|arena| unsafe { arena.free(block) }.is_ok());
    if !freed {
        fault::abort(Status::Aborted, b"free of a pointer that is not an allocated block");
    }
}

/// `realloc(3)`.
///
/// # Safety
/// As in C.
pub(crate) unsafe extern "C" fn realloc(block: *mut u8, len: usize) -> *mut u8 {
    if block.is_null() {
        return malloc(len);
    }
    let Some(arena) = arena_of(block) else {
        fault::abort(Status::Aborted, b"realloc of a pointer that is not an allocated block");
    };
    let lane = context::current().map_or(0, context::index_of);
    // SAFETY: the block is the caller's, in this arena.
    match unsafe { arena.realloc(block, len.max(1), lane) } {
        Some(moved) => moved.as_ptr(),
        None => {
            if let Some(context) = context::current() {
                context.starved.store(1, Relaxed);
            }
            null_mut()
        }
    }
}

/// `posix_memalign(3)`.
///
/// # Safety
/// As in C.
pub(crate) unsafe extern "C" fn posix_memalign(
    to: *mut *mut c_void,
    align: usize,
    len: usize,
) -> c_int {
    if !align.is_power_of_two() {
        return sys::EINVAL;
    }
    let block = alloc_for(current_slot(), len.max(1), align.max(ALIGN));
    if block.is_null() {
        return sys::ENOMEM;
    }
    // SAFETY: `to` is writable by contract.
    unsafe { to.write(block.cast()) };
    0
}

/// `aligned_alloc(3)`.
pub(crate) extern "C" fn aligned_alloc(align: usize, len: usize) -> *mut u8 {
    if !align.is_power_of_two() {
        return null_mut();
    }
    alloc_for(current_slot(), len.max(1), align.max(ALIGN))
}

/// [`ext_api::abi::Entry::release`]: called outside of an upcall, so it makes one.
///
/// # Safety
/// `block` is a reply's spill, given back once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_release(block: *mut u8) {
    if block.is_null() {
        return;
    }
    if let Some(arena) = arena_of(block) {
        // SAFETY: by contract. A pointer that is none is refused by the arena and ignored here.
        let _ = unsafe { arena.free(block) };
    }
}
