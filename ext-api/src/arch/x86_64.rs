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

/// Copy words that others may change meanwhile: whatever is there is copied, in any order.
/// Instructions of our own, because a compiler may take it that nobody writes what it reads.
///
/// # Safety
/// `words` of them can be read at `from` and written at `to`, where nobody else reads or writes.
#[inline]
pub(crate) unsafe fn copy_racing(mut from: *const AtomicU64, to: *mut u8, words: usize) {
    let mut to = to.cast::<u64>();
    #[cfg(not(miri))]
    for _ in 0..words / 8 {
        // SAFETY: by contract there are eight words more.
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
        (from, to) = (from.wrapping_add(8), to.wrapping_add(8));
    }
    #[cfg(not(miri))]
    for _ in 0..words % 8 / 2 {
        // SAFETY: by contract there are two words more.
        unsafe {
            core::arch::asm!(
                "movdqu {0}, [{from}]",
                "movdqu [{to}], {0}",
                out(xmm_reg) _, from = in(reg) from, to = in(reg) to,
                options(nostack, preserves_flags),
            );
        }
        (from, to) = (from.wrapping_add(2), to.wrapping_add(2));
    }
    for _ in 0..if cfg!(miri) { words } else { words % 2 } {
        // SAFETY: by contract there is one word more.
        let word = unsafe { &*from }.load(core::sync::atomic::Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { to.write_unaligned(word) };
        (from, to) = (from.wrapping_add(1), to.wrapping_add(1));
    }
}
