//! Where the loader sends imports that the region does not have.

use core::sync::atomic::Ordering::Acquire;

use ext_api::abi::{Reply, Status};

use crate::{context, fault, sys};

/// What the handlers of an extension run while it is being restarted.
#[unsafe(no_mangle)]
pub extern "C" fn sbx_restarting(_: *const u64, _: *mut Reply) -> u32 {
    Status::Restarting as u32
}

/// What they run while it is in quarantine.
#[unsafe(no_mangle)]
pub extern "C" fn sbx_quarantined(_: *const u64, _: *mut Reply) -> u32 {
    Status::Quarantined as u32
}

/// What they run while their extension is being upgraded: the call waits, and then is the new
/// version's, or the old one's if there is no new one.
///
/// # Safety
/// `args` and `reply` fit the handler whose row the gate came by.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_upgrading(args: *const u64, reply: *mut Reply) -> u32 {
    const MOMENT_NS: u64 = 200_000;
    const MOMENTS_MAX: u32 = 15_000;
    let frame = context::current().and_then(context::frame);
    // SAFETY: a frame's handler is a row of the handler table.
    let Some(row) = frame.and_then(|frame| unsafe { frame.handler.as_ref() }) else {
        return Status::Stale as u32;
    };
    let generation = row.generation.load(Acquire);
    let own = sbx_upgrading as *const () as u64;
    for _ in 0..MOMENTS_MAX {
        let code = row.code.load(Acquire);
        if row.generation.load(Acquire) != generation {
            return Status::Stale as u32;
        }
        if code != own {
            // SAFETY: the code of this very handler, for which the words were made.
            let code: ext_api::abi::HandlerFn = unsafe { core::mem::transmute(code as usize) };
            // SAFETY: by contract.
            return unsafe { code(args, reply) };
        }
        let nobody_wakes = 0u32;
        // SAFETY: a word of ours.
        let _ = unsafe { sys::futex_wait(&raw const nobody_wakes, 0, MOMENT_NS) };
    }
    Status::Restarting as u32
}

/// Ends the upcall that used a missing import. The loader makes one small stub per symbol, which
/// comes here with the symbol's name.
///
/// # Safety
/// `name` has `len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_missing_import(name: *const u8, len: usize) -> ! {
    // SAFETY: by contract.
    let name = unsafe { core::slice::from_raw_parts(name, len) };
    fault::abort(Status::MissingImport, name)
}
