//! Copying on x86-64: what the region libc copies, and from and to memory of a program, which may not be there.

use core::arch::{asm, naked_asm};

use ext_api::touch;

use super::x86_64::Registers;
use crate::{boot, calls};

unsafe extern "C" {
    /// Labels within [`sbx_copy`] and [`sbx_copy_past`].
    static sbx_copy_failed: u8;
    static sbx_copy_end: u8;
    static sbx_copy_past_failed: u8;
    static sbx_copy_past_end: u8;
}

/// Copy `len` bytes; how many were not.
///
/// # Safety
/// `to` and `from` do not overlap. Either is memory of ours, or an address that the program has given: if
/// nothing is there, the copy ends.
pub(crate) unsafe fn copy_or_fail(to: usize, from: usize, len: usize) -> usize {
    // SAFETY: by contract.
    unsafe { sbx_copy(to, from, len) }
}

/// See [`copy_or_fail`]. A fault within leads to its end.
#[unsafe(naked)]
unsafe extern "C" fn sbx_copy(to: usize, from: usize, len: usize) -> usize {
    naked_asm!(
        ".cfi_startproc",
        "mov rcx, rdx",
        "cmp rdx, 32",
        "ja 40f",
        "cmp rdx, 16",
        "jae 30f",
        "cmp rdx, 8",
        "jae 20f",
        "cmp rdx, 4",
        "jae 10f",
        "rep movsb",
        "xor eax, eax",
        "ret",
        "10:",
        "mov r8d, [rsi]",
        "mov r9d, [rsi + rdx - 4]",
        "mov [rdi], r8d",
        "mov [rdi + rdx - 4], r9d",
        "xor eax, eax",
        "ret",
        "20:",
        "mov r8, [rsi]",
        "mov r9, [rsi + rdx - 8]",
        "mov [rdi], r8",
        "mov [rdi + rdx - 8], r9",
        "xor eax, eax",
        "ret",
        "30:",
        "movups xmm0, [rsi]",
        "movups xmm1, [rsi + rdx - 16]",
        "movups [rdi], xmm0",
        "movups [rdi + rdx - 16], xmm1",
        "xor eax, eax",
        "ret",
        "40:",
        "rep movsb",
        "xor eax, eax",
        "ret",
        ".hidden sbx_copy_failed",
        ".globl sbx_copy_failed",
        "sbx_copy_failed:",
        "mov rax, rcx",
        "ret",
        ".hidden sbx_copy_end",
        ".globl sbx_copy_end",
        "sbx_copy_end:",
        ".cfi_endproc",
    )
}

/// As [`copy_or_fail`], with stores past the caches; whether all were copied.
///
/// # Safety
/// As of that, and `len` is a cache line at least.
pub(crate) unsafe fn copy_past_or_fail(to: usize, from: usize, len: usize) -> bool {
    // SAFETY: by contract.
    unsafe { sbx_copy_past(to, from, len) == 0 }
}

/// See [`copy_past_or_fail`]. What is before and behind whole lines of the cache goes by ordinary stores.
#[unsafe(naked)]
unsafe extern "C" fn sbx_copy_past(to: usize, from: usize, len: usize) -> usize {
    naked_asm!(
        ".cfi_startproc",
        "mov rcx, rdi",
        "neg rcx",
        "and ecx, 63",
        "sub rdx, rcx",
        "rep movsb",
        "mov rcx, rdx",
        "shr rcx, 6",
        "jz 20f",
        "10:",
        "mov rax, [rsi]",
        "mov r8, [rsi + 8]",
        "mov r9, [rsi + 16]",
        "mov r10, [rsi + 24]",
        "movnti [rdi], rax",
        "movnti [rdi + 8], r8",
        "movnti [rdi + 16], r9",
        "movnti [rdi + 24], r10",
        "mov rax, [rsi + 32]",
        "mov r8, [rsi + 40]",
        "mov r9, [rsi + 48]",
        "mov r10, [rsi + 56]",
        "movnti [rdi + 32], rax",
        "movnti [rdi + 40], r8",
        "movnti [rdi + 48], r9",
        "movnti [rdi + 56], r10",
        "add rsi, 64",
        "add rdi, 64",
        "dec rcx",
        "jnz 10b",
        "20:",
        // They are seen by others before what is stored next.
        "sfence",
        "mov ecx, edx",
        "and ecx, 63",
        "rep movsb",
        "xor eax, eax",
        "ret",
        ".hidden sbx_copy_past_failed",
        ".globl sbx_copy_past_failed",
        "sbx_copy_past_failed:",
        "sfence",
        "mov eax, 1",
        "ret",
        ".hidden sbx_copy_past_end",
        ".globl sbx_copy_past_end",
        "sbx_copy_past_end:",
        ".cfi_endproc",
    )
}

/// Have a copy end that has met an address where nothing is. True if it was that.
pub(crate) fn mend_copy(rip: &mut u64) -> bool {
    let copies = [
        (sbx_copy as *const (), &raw const sbx_copy_failed, &raw const sbx_copy_end),
        (sbx_copy_past as *const (), &raw const sbx_copy_past_failed, &raw const sbx_copy_past_end),
    ];
    let met = copies.iter().find(|(first, _, end)| (*first as u64..*end as u64).contains(rip));
    if let Some((_, failed, _)) = met {
        *rip = *failed as u64;
    }
    met.is_some()
}

/// Have code of an extension go on that has met an address of the program's where nothing is, at a pair of
/// instructions that [`ext_api::touch`] has for that. True if it was that.
pub(crate) fn mend_touch(regs: &mut Registers) -> bool {
    let at = regs.rip as usize;
    let is_pair = || calls::copy_in(at).is_some_and(|bytes| touch::is_pair(&bytes));
    let is_that = boot::place().shared().contains(&at) && is_pair();
    if is_that {
        regs.set_result(touch::NOTHING);
        regs.rip += touch::LEN as u64;
    }
    is_that
}

/// The number of the core that this thread runs on.
pub(crate) fn core() -> u32 {
    const NUMBER: u32 = 0xfff;
    let word: u32;
    // SAFETY: reads the time stamp counter, and the word that Linux keeps beside it.
    unsafe {
        asm!("rdtscp", out("eax") _, out("edx") _, out("ecx") word, options(nomem, nostack));
    }
    word & NUMBER
}

/// Copy upwards; right for any overlap in which `to` is not inside `from..from + len`.
///
/// # Safety
/// `len` bytes are readable at `from` and writable at `to`.
pub(crate) unsafe fn copy_forwards(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: by contract; the direction flag is clear in all code.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
}

/// Copy downwards; right for the other overlaps.
///
/// # Safety
/// `len` bytes, at least one, are readable at `from` and writable at `to`.
pub(crate) unsafe fn copy_backwards(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: by contract; the last bytes lie at `len - 1`.
    let (last_to, last_from) = unsafe { (to.add(len - 1), from.add(len - 1)) };
    // SAFETY: by contract; the direction flag is clear again afterwards.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _, inout("rdi") last_to => _,
            inout("rsi") last_from => _, options(nostack));
    }
}

/// Set `len` bytes.
///
/// # Safety
/// `len` bytes are writable at `to`.
pub(crate) unsafe fn fill(to: *mut u8, byte: u8, len: usize) {
    // SAFETY: by contract.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte,
            options(nostack, preserves_flags));
    }
}
