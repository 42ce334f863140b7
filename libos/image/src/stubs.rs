//! Where the loader sends imports that the region does not have.

use ext_api::abi::{Reply, Status};

use crate::fault;

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
