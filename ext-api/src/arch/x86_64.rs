//! What has to be said in instructions: one of them, or ones that a compiler would not choose.
#![expect(unsafe_code, reason = "assembly")]

use core::sync::atomic::{AtomicU32, AtomicU64};

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

/// The stack pointer, about; 0 where that cannot be said.
#[inline]
pub(crate) fn stack_pointer() -> usize {
    let at: usize;
    #[cfg(not(miri))]
    // SAFETY: copies a register.
    unsafe {
        core::arch::asm!("mov {}, rsp", out(reg) at, options(nomem, nostack, preserves_flags));
    }
    #[cfg(miri)]
    let at = 0;
    at
}

/// A bit for each of five words whose highest byte is `tag`, the first word's the lowest. Others may
/// change the words meanwhile: each was as it is taken to be at some moment.
#[inline]
pub(crate) fn with_high_byte(words: &[AtomicU64; 5], tag: u8) -> u32 {
    #[cfg(not(miri))]
    // SAFETY: reads the five words, as atomics are read: a load of two aligned words does not tear
    // either of them.
    unsafe {
        let (first_four, last): (u32, u32);
        core::arch::asm!(
            "movd {tag_x4}, {tag:e}",
            "movdqu {low}, [{words}]",
            "movdqu {high}, [{words} + 16]",
            "pshufd {tag_x4}, {tag_x4}, 0",
            "shufps {low}, {high}, 0xdd",
            "psrld {low}, 24",
            "pcmpeqd {low}, {tag_x4}",
            "movmskps {bits:e}, {low}",
            "xor {last:e}, {last:e}",
            "cmp byte ptr [{words} + 39], {tag:l}",
            "sete {last:l}",
            words = in(reg) words, tag = in(reg) u32::from(tag),
            tag_x4 = out(xmm_reg) _, low = out(xmm_reg) _, high = out(xmm_reg) _,
            bits = out(reg) first_four, last = out(reg) last,
            options(nostack, readonly),
        );
        first_four | last << 4
    }
    #[cfg(miri)]
    words.iter().rev().fold(0, |bits, word| {
        bits << 1 | u32::from(word.load(core::sync::atomic::Ordering::Acquire) >> 56 == tag.into())
    })
}

/// A bit for each of four words whose seven highest bits are `tag`, the first word's the lowest. Others may
/// change the words meanwhile.
#[inline]
pub(crate) fn with_high_bits(words: &[AtomicU32; 4], tag: u32) -> u32 {
    #[cfg(not(miri))]
    // SAFETY: reads the four words, as atomics are read: a load of four aligned words does not tear any of
    // them.
    unsafe {
        let bits: u32;
        core::arch::asm!(
            "movd {tag_x4}, {tag:e}",
            "movdqu {all}, [{words}]",
            "pshufd {tag_x4}, {tag_x4}, 0",
            "psrld {all}, 25",
            "pcmpeqd {all}, {tag_x4}",
            "movmskps {bits:e}, {all}",
            words = in(reg) words, tag = in(reg) tag,
            tag_x4 = out(xmm_reg) _, all = out(xmm_reg) _, bits = lateout(reg) bits,
            options(nostack, readonly, preserves_flags),
        );
        bits
    }
    #[cfg(miri)]
    words.iter().rev().fold(0, |bits, word| {
        bits << 1 | u32::from(word.load(core::sync::atomic::Ordering::Relaxed) >> 25 == tag)
    })
}

/// Begin to fetch the two cache lines from `at` on, wherever that is.
#[inline]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(not(miri))]
    // SAFETY: a hint, which never faults.
    unsafe {
        core::arch::asm!("prefetcht0 [{at}]", "prefetcht0 [{at} + 64]", at = in(reg) at,
            options(nostack, preserves_flags, readonly));
    }
    #[cfg(miri)]
    let _ = at;
}

/// Load eight bytes, aligned or not, that others may change meanwhile: whatever is there.
///
/// # Safety
/// They can be read.
#[inline]
pub(crate) unsafe fn load_racing(from: *const u8) -> u64 {
    #[cfg(not(miri))]
    {
        let bytes;
        // SAFETY: by contract.
        unsafe {
            core::arch::asm!("mov {}, [{}]", out(reg) bytes, in(reg) from,
                options(nostack, preserves_flags, readonly));
        }
        bytes
    }
    // SAFETY: by contract; nobody changes them in what miri runs.
    #[cfg(miri)]
    unsafe {
        from.cast::<u64>().read_unaligned()
    }
}

/// Copy words that others may change meanwhile: whatever is there is copied, in any order. Instructions of
/// our own, because a compiler may take it that nobody writes what it reads. No word is written twice, so
/// that whoever reads the copy at once gets it from the writes that are still under way.
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
