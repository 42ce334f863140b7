//! Thread-locals of extensions: one block per context and image, made at first use.
//!
//! The general-dynamic model calls `__tls_get_addr` with the module number that the loader put
//! into the image: its slot. The context is found from the stack pointer, so that no register of
//! the application is involved, whatever its own thread library does.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use ext_api::abi::{ExtensionEntry, Status};
use ext_api::limits::SLOTS_MAX;
use libos::data::Context;

use crate::{boot, context, fault, heap};

/// What the compiler passes: module and offset.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct TlsIndex {
    module: usize,
    offset: usize,
}

/// `__tls_get_addr` of the x86-64 ABI.
///
/// # Safety
/// `index` is a pair that the loader relocated.
pub(crate) unsafe extern "C" fn tls_get_addr(index: *const TlsIndex) -> *mut u8 {
    // SAFETY: by contract.
    let index = unsafe { &*index };
    let Some(context) = context::current() else {
        fault::abort(Status::Aborted, b"a thread-local was used outside of an upcall");
    };
    let live = context.tls_live.load(Relaxed) & 1 << (index.module % SLOTS_MAX) != 0;
    let block = if live {
        context.tls[index.module % SLOTS_MAX].load(Relaxed) as *mut u8
    } else {
        make_block(context, index.module % SLOTS_MAX)
    };
    block.wrapping_add(index.offset)
}

/// The block of `slot`, as a new thread finds it.
fn make_block(context: &Context, slot: usize) -> *mut u8 {
    let Some(extension) = extension(slot) else {
        fault::abort(Status::Aborted, b"a thread-local of an image that is not loaded");
    };
    let generation = extension.generation.load(Acquire);
    let kept = context.tls[slot].load(Relaxed) as *mut u8;
    let same = context.tls_generation[slot].load(Relaxed) == generation;
    let block = if same && !kept.is_null() {
        kept
    } else {
        let (len, align) = (extension.tls_len as usize, extension.tls_align as usize);
        heap::alloc_for(slot, len.max(1), align.max(16))
    };
    if block.is_null() {
        fault::abort(Status::OutOfMemory, b"no room in the heap for a thread-local block");
    }
    let (init, init_len) = (extension.tls_init as *const u8, extension.tls_init_len as usize);
    // SAFETY: the block has room for `tls_len`, and `.tdata` is a part of that in the image.
    unsafe { core::ptr::copy_nonoverlapping(init, block, init_len) };
    let rest = extension.tls_len as usize - init_len;
    // SAFETY: as above.
    unsafe { core::ptr::write_bytes(block.add(init_len), 0, rest) };
    context.tls_generation[slot].store(generation, Relaxed);
    context.tls[slot].store(block as u64, Relaxed);
    context.tls_live.fetch_or(1 << slot, Relaxed);
    block
}

/// Row `slot` of the extension table.
pub(crate) fn extension(slot: usize) -> Option<&'static ExtensionEntry> {
    if slot >= SLOTS_MAX {
        return None;
    }
    let first = boot::boot().extensions as *const ExtensionEntry;
    // SAFETY: the table has this many rows, in the control zone.
    let row = unsafe { first.add(slot) };
    // SAFETY: a row is integers and atomics; only the supervisor writes it.
    Some(unsafe { &*row })
}
