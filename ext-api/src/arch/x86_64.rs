//! What has to be one instruction.
#![expect(unsafe_code, reason = "assembly")]

use core::sync::atomic::AtomicU64;

/// Add to a word that only the calling thread adds to; wraps. One instruction, so that neither a
/// signal handler that adds to the same word nor a kill comes in between, and without the bus
/// lock, which would wait for every load before it.
#[inline]
pub(crate) fn add_own(word: &AtomicU64, n: u64) {
    #[cfg(not(miri))]
    // SAFETY: adds to a live, aligned word that may change behind a shared reference.
    unsafe {
        core::arch::asm!("add qword ptr [{}], {}", in(reg) word.as_ptr(), in(reg) n,
            options(nostack));
    }
    #[cfg(miri)]
    word.fetch_add(n, core::sync::atomic::Ordering::Relaxed);
}

/// Copy whole blocks of 16 bytes that others may change meanwhile: whatever is there is copied, in
/// any order. Instructions of our own, because a compiler may take it that nobody writes what it
/// reads.
///
/// # Safety
/// `blocks` times 16 bytes can be read at `from` and written at `to`, where nobody else reads or
/// writes.
#[inline]
pub(crate) unsafe fn copy_racing(mut from: *const u8, mut to: *mut u8, blocks: usize) {
    #[cfg(not(miri))]
    for _ in 0..blocks / 4 {
        // SAFETY: by contract there are four blocks more.
        unsafe {
            core::arch::asm!(
                "movdqu {0}, [{from}]",
                "movdqu {1}, [{from} + 16]",
                "movdqu {2}, [{from} + 32]",
                "movdqu {3}, [{from} + 48]",
                "movdqu [{to}], {0}",
                "movdqu [{to} + 16], {1}",
                "movdqu [{to} + 32], {2}",
                "movdqu [{to} + 48], {3}",
                out(xmm_reg) _, out(xmm_reg) _, out(xmm_reg) _, out(xmm_reg) _,
                from = in(reg) from, to = in(reg) to,
                options(nostack, preserves_flags),
            );
        }
        (from, to) = (from.wrapping_add(64), to.wrapping_add(64));
    }
    #[cfg(not(miri))]
    for _ in 0..blocks % 4 {
        // SAFETY: by contract there is one block more.
        unsafe {
            core::arch::asm!(
                "movdqu {0}, [{from}]",
                "movdqu [{to}], {0}",
                out(xmm_reg) _, from = in(reg) from, to = in(reg) to,
                options(nostack, preserves_flags),
            );
        }
        (from, to) = (from.wrapping_add(16), to.wrapping_add(16));
    }
    #[cfg(miri)]
    for _ in 0..blocks * 2 {
        // SAFETY: by contract there is one word more, and blocks are made of aligned words.
        let word =
            unsafe { &*from.cast::<AtomicU64>() }.load(core::sync::atomic::Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { to.cast::<u64>().write_unaligned(word) };
        (from, to) = (from.wrapping_add(8), to.wrapping_add(8));
    }
}
