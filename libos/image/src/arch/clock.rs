//! Code that is not ours and that ours calls: the vDSO's clock. It is called with a mark on the stack, so that a thread
//! that a signal meets there can be told from one whose program reads the clock.

use core::arch::naked_asm;

unsafe extern "C" {
    /// Label behind the call.
    static sbx_clock_asked: u8;
}

/// `clock_gettime` at `address`, with the mark there for as long as it takes.
///
/// # Safety
/// The vDSO's function of this name is at `address`; `to` is a timespec.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn ask_clock(clock: usize, to: *mut [u64; 2], address: usize) -> i32 {
    naked_asm!(
        ".cfi_startproc",
        "sub rsp, 8",
        ".cfi_adjust_cfa_offset 8",
        "call rdx",
        ".hidden sbx_clock_asked",
        ".globl sbx_clock_asked",
        "sbx_clock_asked:",
        // Who looks later finds no mark of what is over.
        "mov qword ptr [rsp - 8], 0",
        "add rsp, 8",
        ".cfi_adjust_cfa_offset -8",
        "ret",
        ".cfi_endproc",
    )
}

/// Is a word of a stack such a mark?
pub(crate) fn is_clock_asked(word: u64) -> bool {
    word == &raw const sbx_clock_asked as u64
}
