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

/// A bit for each of the first five words whose highest byte is `tag`, which is not 0, the first word's the
/// lowest; the sixth word's is 0. Others may change the words meanwhile: each was as it is taken to be at some
/// moment.
#[inline]
pub(crate) fn with_high_byte(words: &[AtomicU64; 6], tag: u8) -> u32 {
    #[cfg(not(miri))]
    // SAFETY: reads the six words, as atomics are read: a load of two aligned words does not tear either of
    // them.
    unsafe {
        let bits: u32;
        core::arch::asm!(
            "movd {tags}, {tag:e}",
            "movdqu {low}, [{words}]",
            "movdqu {high}, [{words} + 16]",
            "movdqu {last}, [{words} + 32]",
            "pshufd {tags}, {tags}, 0",
            "pxor {none}, {none}",
            "shufps {low}, {high}, 0xdd",
            "psrld {low}, 24",
            "psrlq {last}, 56",
            "pcmpeqd {low}, {tags}",
            "pcmpeqd {last}, {tags}",
            "packssdw {low}, {last}",
            "packsswb {low}, {none}",
            "pmovmskb {bits:e}, {low}",
            words = in(reg) words, tag = in(reg) u32::from(tag), bits = lateout(reg) bits,
            tags = out(xmm_reg) _, low = out(xmm_reg) _, high = out(xmm_reg) _,
            last = out(xmm_reg) _, none = out(xmm_reg) _,
            options(nostack, readonly, preserves_flags),
        );
        // Of the last two words there are halves, every other of which is 0.
        bits
    }
    #[cfg(miri)]
    words[..5].iter().rev().fold(0, |bits, word| {
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
/// that whoever reads the copy at once gets it from the writes that are still under way. Addresses do not
/// depend on `words`, which may be what is waited for.
///
/// # Safety
/// `words` of them can be read at `from` and written at `to`, where nobody else reads or writes.
#[inline]
pub(crate) unsafe fn copy_racing(from: *const AtomicU64, to: *mut u8, words: usize) {
    let (mut at, len) = (0, words * 8);
    #[cfg(not(miri))]
    while at + 64 <= len {
        // SAFETY: by contract there are 64 bytes more.
        unsafe {
            core::arch::asm!(
                "movdqu {0}, [{from} + {at}]",
                "movdqu {1}, [{from} + {at} + 16]",
                "movdqu {2}, [{from} + {at} + 32]",
                "movdqu {3}, [{from} + {at} + 48]",
                "movdqu [{to} + {at}], {0}",
                "movdqu [{to} + {at} + 16], {1}",
                "movdqu [{to} + {at} + 32], {2}",
                "movdqu [{to} + {at} + 48], {3}",
                out(xmm_reg) _, out(xmm_reg) _, out(xmm_reg) _, out(xmm_reg) _,
                from = in(reg) from, to = in(reg) to, at = in(reg) at,
                options(nostack, preserves_flags),
            );
        }
        at += 64;
    }
    #[cfg(not(miri))]
    if len & 32 != 0 {
        // SAFETY: by contract there are 32 bytes more.
        unsafe {
            core::arch::asm!(
                "movdqu {0}, [{from} + {at}]",
                "movdqu {1}, [{from} + {at} + 16]",
                "movdqu [{to} + {at}], {0}",
                "movdqu [{to} + {at} + 16], {1}",
                out(xmm_reg) _, out(xmm_reg) _,
                from = in(reg) from, to = in(reg) to, at = in(reg) at,
                options(nostack, preserves_flags),
            );
        }
        at += 32;
    }
    #[cfg(not(miri))]
    if len & 16 != 0 {
        // SAFETY: by contract there are 16 bytes more.
        unsafe {
            core::arch::asm!(
                "movdqu {0}, [{from} + {at}]",
                "movdqu [{to} + {at}], {0}",
                out(xmm_reg) _,
                from = in(reg) from, to = in(reg) to, at = in(reg) at,
                options(nostack, preserves_flags),
            );
        }
        at += 16;
    }
    let copy_word = |at: usize| {
        // SAFETY: by contract there is a word there.
        let word = unsafe { &*from.wrapping_byte_add(at) };
        // SAFETY: as above.
        unsafe {
            to.wrapping_add(at)
                .cast::<u64>()
                .write_unaligned(word.load(core::sync::atomic::Ordering::Relaxed));
        }
    };
    #[cfg(not(miri))]
    if len & 8 != 0 {
        copy_word(at);
    }
    #[cfg(miri)]
    while at < len {
        copy_word(at);
        at += 8;
    }
}
