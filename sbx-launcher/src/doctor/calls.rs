//! Single system calls that ask the kernel whether it has something, and change nothing.
#![expect(unsafe_code, reason = "system calls that no library wraps")]

/// Whether this kernel seals mappings (from Linux 6.10, on 64 bits).
#[must_use]
pub fn has_mseal() -> bool {
    // SAFETY: sealing nothing at address 0 has no effect.
    unsafe { libc::syscall(libc::SYS_mseal, 0, 0, 0) == 0 }
}
