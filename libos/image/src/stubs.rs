//! Where the loader sends imports that the region does not have.

use ext_api::abi::Status;

use crate::fault;

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
