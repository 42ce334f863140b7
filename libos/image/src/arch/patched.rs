//! Where patched system calls of a program arrive, on x86-64.
//!
//! ```text
//!  program             stub nearby                entry, in libos
//!  mov $nr, %eax  ──►  mov $nr, %eax         ──►  below the red zone: keep what a call must not change
//!  (now a jump)        lea site+7, %rcx           ask (Rust)
//!  syscall             jmp entry                  pass: everything as it was, syscall, back behind
//!  ...            ◄───────────────────────────────      the site's own, which is still there for those
//!                                                       that jump to it
//! ```

use core::arch::naked_asm;

/// What the entry has kept of the program's registers.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct PatchedCall {
    pub(crate) r9: u64,
    pub(crate) r8: u64,
    pub(crate) r10: u64,
    pub(crate) rdx: u64,
    pub(crate) rsi: u64,
    pub(crate) rdi: u64,
    /// The call's number, then its result.
    pub(crate) rax: u64,
    flags: u64,
    back: u64,
}

/// The call is made with the registers as they were.
pub(crate) const PASS: u32 = 0;
/// It has a result.
pub(crate) const DONE: u32 = 1;
/// The program's own instruction makes it, and is trapped.
pub(crate) const TRAP: u32 = 2;

/// Bytes of a stub.
pub(crate) const STUB_LEN: usize = 32;

/// The stub for a site whose call is at `call` and has this number.
pub(crate) fn stub(at: usize, call: usize, number: u32) -> [u8; STUB_LEN] {
    let mut bytes = [0xcc; STUB_LEN];
    let behind = (call + 2).wrapping_sub(at + 12) as u32;
    let entry = sbx_patched_entry as *const () as u64;
    bytes[0] = 0xb8;
    bytes[1..5].copy_from_slice(&number.to_le_bytes());
    bytes[5..8].copy_from_slice(&[0x48, 0x8d, 0x0d]);
    bytes[8..12].copy_from_slice(&behind.to_le_bytes());
    bytes[12..18].copy_from_slice(&[0xff, 0x25, 0, 0, 0, 0]);
    bytes[18..26].copy_from_slice(&entry.to_le_bytes());
    bytes
}

/// The jump that takes the place of `mov $nr, %eax` at `site`.
pub(crate) fn jump(site: usize, to: usize) -> [u8; 5] {
    let mut bytes = [0xe9; 5];
    bytes[1..].copy_from_slice(&(to.wrapping_sub(site + 5) as u32).to_le_bytes());
    bytes
}

/// The number in `mov $nr, %eax; syscall`, if the bytes are that.
pub(crate) fn number_in(bytes: [u8; 7]) -> Option<u32> {
    let [0xb8, a, b, c, d, 0x0f, 0x05] = bytes else { return None };
    Some(u32::from_le_bytes([a, b, c, d]))
}

/// Where stubs jump to, with the address to go back to in rcx, which a system call does not keep.
///
/// # Safety
/// For stubs only.
#[unsafe(naked)]
unsafe extern "C" fn sbx_patched_entry() {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        "lea rsp, [rsp - 128]",
        "push rcx",
        "pushfq",
        "push rax",
        "push rdi",
        "push rsi",
        "push rdx",
        "push r10",
        "push r8",
        "push r9",
        "push rbp",
        "mov rbp, rsp",
        "lea rdi, [rsp + 8]",
        // The vector registers as far as code without AVX can change them: the upper parts stay.
        "sub rsp, 272",
        "and rsp, -16",
        "stmxcsr [rsp + 256]",
        "movaps [rsp + 0], xmm0",
        "movaps [rsp + 16], xmm1",
        "movaps [rsp + 32], xmm2",
        "movaps [rsp + 48], xmm3",
        "movaps [rsp + 64], xmm4",
        "movaps [rsp + 80], xmm5",
        "movaps [rsp + 96], xmm6",
        "movaps [rsp + 112], xmm7",
        "movaps [rsp + 128], xmm8",
        "movaps [rsp + 144], xmm9",
        "movaps [rsp + 160], xmm10",
        "movaps [rsp + 176], xmm11",
        "movaps [rsp + 192], xmm12",
        "movaps [rsp + 208], xmm13",
        "movaps [rsp + 224], xmm14",
        "movaps [rsp + 240], xmm15",
        "cld",
        "call {ask}",
        "movaps xmm0, [rsp + 0]",
        "movaps xmm1, [rsp + 16]",
        "movaps xmm2, [rsp + 32]",
        "movaps xmm3, [rsp + 48]",
        "movaps xmm4, [rsp + 64]",
        "movaps xmm5, [rsp + 80]",
        "movaps xmm6, [rsp + 96]",
        "movaps xmm7, [rsp + 112]",
        "movaps xmm8, [rsp + 128]",
        "movaps xmm9, [rsp + 144]",
        "movaps xmm10, [rsp + 160]",
        "movaps xmm11, [rsp + 176]",
        "movaps xmm12, [rsp + 192]",
        "movaps xmm13, [rsp + 208]",
        "movaps xmm14, [rsp + 224]",
        "movaps xmm15, [rsp + 240]",
        "ldmxcsr [rsp + 256]",
        "mov rsp, rbp",
        "pop rbp",
        "mov r11d, eax",
        "pop r9",
        "pop r8",
        "pop r10",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "pop rax",
        "cmp r11d, {done}",
        "ja 30f",
        "je 20f",
        "popfq",
        "syscall",
        "mov rcx, [rsp]",
        "lea rsp, [rsp + 136]",
        "jmp rcx",
        "20:",
        "mov r11, [rsp]",
        "popfq",
        "mov rcx, [rsp]",
        "lea rsp, [rsp + 136]",
        "jmp rcx",
        "30:",
        "popfq",
        "mov rcx, [rsp]",
        "lea rsp, [rsp + 136]",
        "lea rcx, [rcx - 2]",
        "jmp rcx",
        ".cfi_endproc",
        ask = sym crate::calls::sbx_patched,
        done = const DONE,
    )
}
