//! Instructions by which a stopped participant makes a call that the launcher wants of it. They are libos's, so that no
//! handler is asked about the call, and nobody else's: no thread of the program meets them.

use core::arch::naked_asm;

/// A jump to itself, the call, and another one, behind which the task waits: `sbx-launcher/src/follow/inject.rs` knows
/// these bytes.
///
/// # Safety
/// Only the launcher sends a task here, and from here.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sbx_lent_call() {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        ".byte 0xeb, 0xfe, 0x0f, 0x05, 0xeb, 0xfe, 0xcc, 0xcc",
        ".cfi_endproc",
    )
}
