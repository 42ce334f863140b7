//! What the unwinder asks: which image does this address belong to, and where are its tables?
//!
//! The unwinder itself is the compiler's own, linked into this image.

use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::Acquire;

use ext_api::abi::Status;

use crate::{boot, fault, tls};

/// `struct dl_find_object` of glibc 2.35 on x86-64.
#[derive(Debug)]
#[repr(C)]
pub struct FoundObject {
    flags: u64,
    map_start: u64,
    map_end: u64,
    link_map: u64,
    eh_frame: u64,
    reserved: [u64; 7],
}

/// `_dl_find_object(3)`: 0 and `*found` filled, or -1.
///
/// # Safety
/// `found` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _dl_find_object(address: *const c_void, found: *mut FoundObject) -> c_int {
    let Some(slot) = boot::place().slot_of(address as usize) else { return -1 };
    let Some(image) = tls::extension(slot) else { return -1 };
    let live = image.generation.load(Acquire) % 2 == 1;
    if !live || image.eh_frame_hdr == 0 {
        return -1;
    }
    let object = FoundObject {
        flags: 0,
        map_start: image.image,
        map_end: image.text[1],
        link_map: 0,
        eh_frame: image.eh_frame_hdr,
        reserved: [0; 7],
    };
    // SAFETY: by contract.
    unsafe { found.write(object) };
    0
}

/// `dl_iterate_phdr(3)`: nothing to iterate; the unwinder uses [`_dl_find_object`].
#[unsafe(no_mangle)]
pub extern "C" fn dl_iterate_phdr(_: *const c_void, _: *mut c_void) -> c_int {
    0
}

/// `abort(3)`.
#[unsafe(no_mangle)]
pub extern "C" fn abort() -> ! {
    fault::abort(Status::Aborted, b"the handler called abort")
}

/// Called if the unwinder meets a frame of this image, which never unwinds.
#[unsafe(no_mangle)]
pub extern "C" fn rust_eh_personality() -> ! {
    fault::abort(Status::Aborted, b"a panic reached libos")
}
