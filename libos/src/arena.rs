//! The heap of one extension: an allocator whose state is correct at every instruction.
//!
//! A participant may be killed between any two instructions, so there is no lock and no list.
//! An arena is cut into chunks of 64 KiB. A word per chunk says what it is; in a chunk of small
//! blocks, bitmap words say which blocks are in use. Every change is one compare-and-swap of one
//! word, so that a kill leaks at most the block that was being handed out.
//!
//! ```text
//! | header | chunk words | bitmap words of every chunk | (pad to 64 KiB) | chunk | chunk | ...
//! ```
//!
//! Each bitmap word carries the size class and a generation beside its 32 bits: a thread that was
//! about to take a bit while the chunk was retired and given to another class fails its swap.
//! Large blocks are runs of whole chunks, claimed one word after the other with the claimant's
//! tag, and published by the first word.
//!
//! A chunk whose last block comes back is given to other classes at once, unless it is where some lane
//! looks first: one block that is taken and given back again and again would have it made anew each time.
//! Such chunks are given up when there is no other.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const MAGIC: u64 = u64::from_le_bytes(*b"SBXarena");
/// Bytes of a chunk.
pub const CHUNK_LEN: usize = 64 << 10;
const BITS: usize = 32;
const SMALLEST: usize = 16;
/// Largest block that shares a chunk with others.
pub const SMALL_LEN_MAX: usize = 16 << 10;
/// Bitmap words of a chunk of the smallest blocks.
const WORDS_PER_CHUNK: usize = CHUNK_LEN / SMALLEST / BITS;
/// Lanes that keep threads from starting their search at the same chunk.
const LANES: usize = 8;
const CLASSES: usize = 41;

/// Block length of each class: four steps per doubling.
const CLASS_LEN: [usize; CLASSES] = class_lens();

const fn class_lens() -> [usize; CLASSES] {
    let mut lens = [0; CLASSES];
    let mut class = 0;
    while class < 4 {
        lens[class] = SMALLEST * (class + 1);
        class += 1;
    }
    while class < CLASSES {
        let step = 16 << ((class - 4) / 4);
        lens[class] = lens[class - 1] + step;
        class += 1;
    }
    lens
}

const _: () = assert!(CLASS_LEN[3] == 64 && CLASS_LEN[7] == 128 && CLASS_LEN[11] == 256);
const LAST_CLASS: usize = 35;
const _: () = assert!(CLASS_LEN[LAST_CLASS] == SMALL_LEN_MAX);

/// What a chunk word says: kind in the low byte, then 24 bits of detail, then a 32-bit value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    /// Nobody's. The value is the generation that its next bitmap words must exceed.
    Free,
    /// Blocks of one class.
    Small { class: usize },
    /// Being claimed or given back, by the holder of this tag.
    Claimed { tag: u32 },
    /// First of a run.
    Head { chunks: u32 },
    /// Any other of a run.
    Tail,
}

impl Chunk {
    const fn word(self) -> u64 {
        match self {
            Self::Free => 0,
            Self::Small { class } => 1 | (class as u64) << 8,
            Self::Claimed { tag } => 2 | (tag as u64) << 32,
            Self::Head { chunks } => 3 | (chunks as u64) << 32,
            Self::Tail => 4,
        }
    }

    const fn from_word(word: u64) -> Self {
        match word & 0xff {
            1 => Self::Small { class: (word >> 8 & 0xff) as usize },
            2 => Self::Claimed { tag: (word >> 32) as u32 },
            3 => Self::Head { chunks: (word >> 32) as u32 },
            4 => Self::Tail,
            _ => Self::Free,
        }
    }
}

/// Bits of a bitmap word, and who they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bits {
    used: u32,
    class: u8,
    generation: u32,
}

impl Bits {
    const fn from_word(word: u64) -> Self {
        Self { used: word as u32, class: (word >> 32) as u8, generation: (word >> 40) as u32 }
    }

    const fn word(self) -> u64 {
        self.used as u64 | (self.class as u64) << 32 | (self.generation as u64 & 0xff_ffff) << 40
    }
}

/// Front of an arena.
#[derive(Debug)]
#[repr(C)]
struct Header {
    magic: AtomicU64,
    len: AtomicU64,
    chunks: AtomicU64,
    first_chunk: AtomicU64,
    used: AtomicU64,
    /// Per lane and class, the chunk that last had room.
    hints: [[AtomicU32; CLASSES]; LANES],
}

/// Why a pointer could not be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadFree {
    /// It does not point at a block of this arena.
    NotABlock,
    /// The block is free already.
    AlreadyFree,
}

/// These bytes are no arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAnArena;

/// A handle on an arena: its address. Copies are the same arena.
#[derive(Debug, Clone, Copy)]
pub struct Arena {
    base: NonNull<u8>,
}

/// Smallest arena: one chunk beside its metadata.
pub const LEN_MIN: usize = 4 * CHUNK_LEN;

#[expect(unsafe_code, reason = "an allocator hands out raw memory")]
impl Arena {
    /// Make `len` zeroed bytes at `base` an arena. None if that is too little, or unaligned.
    ///
    /// # Safety
    /// The bytes are writable, zero, nobody else's, and stay for as long as the arena is used.
    pub unsafe fn format(base: *mut u8, len: usize) -> Option<Self> {
        let chunk_total = len / CHUNK_LEN;
        let metadata = size_of::<Header>() + chunk_total * (8 + WORDS_PER_CHUNK * 8);
        let first = metadata.div_ceil(CHUNK_LEN);
        let fits = len >= LEN_MIN && first < chunk_total && chunk_total < u32::MAX as usize;
        if !fits || !(base as usize).is_multiple_of(CHUNK_LEN) {
            return None;
        }
        let arena = Self { base: NonNull::new(base)? };
        let header = arena.header();
        header.len.store(len as u64, Ordering::Relaxed);
        header.chunks.store((chunk_total - first) as u64, Ordering::Relaxed);
        header.first_chunk.store((first * CHUNK_LEN) as u64, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Some(arena)
    }

    /// The arena at `base`.
    ///
    /// # Safety
    /// The header's bytes are readable and writable.
    ///
    /// # Errors
    /// The bytes there were never made an arena.
    pub unsafe fn at(base: *mut u8) -> Result<Self, NotAnArena> {
        let arena = Self { base: NonNull::new(base).ok_or(NotAnArena)? };
        let known = arena.header().magic.load(Ordering::Acquire) == MAGIC;
        known.then_some(arena).ok_or(NotAnArena)
    }

    /// The arena at `base`, without a look.
    ///
    /// # Safety
    /// [`Arena::format`] made it, and it is still mapped.
    #[must_use]
    pub const unsafe fn at_unchecked(base: *mut u8) -> Self {
        // SAFETY: the address of an arena is not null.
        Self { base: unsafe { NonNull::new_unchecked(base) } }
    }

    fn header(&self) -> &'static Header {
        // SAFETY: mapped by the constructors' contracts; every field is an atomic.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    /// Chunks in all.
    fn chunks(&self) -> usize {
        self.header().chunks.load(Ordering::Relaxed) as usize
    }

    fn word_at(&self, offset: usize) -> &'static AtomicU64 {
        // SAFETY: callers compute offsets within the metadata.
        let word = unsafe { self.base.add(offset) }.cast::<AtomicU64>();
        // SAFETY: the metadata is mapped, and all of it is 8-aligned words.
        unsafe { word.as_ref() }
    }

    fn chunk_word(&self, chunk: usize) -> &'static AtomicU64 {
        self.word_at(size_of::<Header>() + chunk * 8)
    }

    fn bits(&self, chunk: usize, word: usize) -> &'static AtomicU64 {
        let words = size_of::<Header>() + self.chunks() * 8;
        self.word_at(words + (chunk * WORDS_PER_CHUNK + word) * 8)
    }

    fn kind(&self, chunk: usize) -> Chunk {
        Chunk::from_word(self.chunk_word(chunk).load(Ordering::Acquire))
    }

    fn change(&self, chunk: usize, from: Chunk, to: Chunk) -> bool {
        self.chunk_word(chunk)
            .compare_exchange(from.word(), to.word(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    fn address(&self, chunk: usize, offset: usize) -> NonNull<u8> {
        let first = self.header().first_chunk.load(Ordering::Relaxed) as usize;
        // SAFETY: within the arena, for chunks below `chunks()`.
        unsafe { self.base.add(first + chunk * CHUNK_LEN + offset) }
    }

    /// Chunk that `address` lies in, and its offset there.
    fn locate(&self, address: *const u8) -> Option<(usize, usize)> {
        let first = self.header().first_chunk.load(Ordering::Relaxed) as usize;
        let offset = (address as usize).checked_sub(self.base.as_ptr() as usize + first)?;
        let chunk = offset / CHUNK_LEN;
        (chunk < self.chunks()).then_some((chunk, offset % CHUNK_LEN))
    }

    /// Bytes of memory in use, as blocks take it.
    #[must_use]
    pub fn used(&self) -> usize {
        self.header().used.load(Ordering::Relaxed) as usize
    }

    /// Bytes that blocks can take in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.chunks() * CHUNK_LEN
    }

    /// A block of at least `len` bytes at a multiple of `align` (a power of two, at most a chunk).
    /// `lane` spreads threads: any number that differs between them. None when the arena is full.
    #[must_use]
    pub fn alloc(&self, len: usize, align: usize, lane: usize) -> Option<NonNull<u8>> {
        if align > CHUNK_LEN || len > self.capacity() {
            return None;
        }
        // A class whose length is a multiple of `align` keeps all its blocks aligned.
        let len = len.max(1).next_multiple_of(align.min(SMALL_LEN_MAX));
        let attempt = || match class_of(len, align) {
            Some(class) => self.alloc_small(class, lane % LANES),
            None => self.alloc_run(len.div_ceil(CHUNK_LEN), lane),
        };
        attempt().or_else(|| if self.give_up_empty() { attempt() } else { None })
    }

    /// Make chunks free none of whose blocks is in use; true if there were any.
    fn give_up_empty(&self) -> bool {
        let given_up = (0..self.chunks()).filter(|&chunk| match self.kind(chunk) {
            Chunk::Small { class } => self.retire(chunk, class),
            _ => false,
        });
        given_up.count() != 0
    }

    fn alloc_small(&self, class: usize, lane: usize) -> Option<NonNull<u8>> {
        let hint = &self.header().hints[lane][class];
        let start = hint.load(Ordering::Relaxed) as usize;
        let total = self.chunks();
        if let Some(block) = self.take_block(start, class) {
            return Some(block);
        }
        // One pass over the chunks of this class and the free ones, from the hint on, with that itself: its
        // last block may have been given back, and whoever took the next free one instead would walk through
        // the whole arena. A hint is only where to begin: any chunk found there is checked like any other.
        for step in 0..total {
            let chunk = (start + step) % total;
            let found = match self.kind(chunk) {
                Chunk::Small { class: found } if found == class => self.take_block(chunk, class),
                Chunk::Free => self.open(chunk, class).then(|| self.take_block(chunk, class))?,
                _ => None,
            };
            if found.is_some() {
                hint.store(chunk as u32, Ordering::Relaxed);
                return found;
            }
        }
        None
    }

    /// Make a free chunk one of `class`. True also if another thread just did.
    fn open(&self, chunk: usize, class: usize) -> bool {
        let claim = Chunk::Claimed { tag: u32::MAX };
        if !self.change(chunk, Chunk::Free, claim) {
            return true;
        }
        for word in 0..words_of(class) {
            let at = self.bits(chunk, word);
            let old = Bits::from_word(at.load(Ordering::Relaxed));
            let fresh = Bits {
                used: spare_bits(class, word),
                class: class as u8 + 1,
                generation: old.generation.wrapping_add(1),
            };
            at.store(fresh.word(), Ordering::Relaxed);
        }
        self.change(chunk, claim, Chunk::Small { class })
    }

    fn take_block(&self, chunk: usize, class: usize) -> Option<NonNull<u8>> {
        if self.kind(chunk) != (Chunk::Small { class }) {
            return None;
        }
        (0..words_of(class)).find_map(|word| self.take_bit(chunk, class, word))
    }

    fn take_bit(&self, chunk: usize, class: usize, word: usize) -> Option<NonNull<u8>> {
        let at = self.bits(chunk, word);
        let mut seen = at.load(Ordering::Relaxed);
        loop {
            let bits = Bits::from_word(seen);
            if bits.class != class as u8 + 1 || bits.used == u32::MAX {
                return None;
            }
            let bit = bits.used.trailing_ones();
            let taken = Bits { used: bits.used | 1 << bit, ..bits };
            match at.compare_exchange_weak(seen, taken.word(), Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => {
                    self.header().used.fetch_add(CLASS_LEN[class] as u64, Ordering::Relaxed);
                    let index = word * BITS + bit as usize;
                    return Some(self.address(chunk, index * CLASS_LEN[class]));
                }
                Err(now) => seen = now,
            }
        }
    }

    /// Claim `count` chunks in a row; `tag` says whose they are until they are published.
    fn alloc_run(&self, count: usize, lane: usize) -> Option<NonNull<u8>> {
        let claim = Chunk::Claimed { tag: lane as u32 };
        let total = self.chunks();
        let mut start = 0;
        while start + count <= total {
            // From the top, so that runs and small chunks grow towards each other.
            let first = total - start - count;
            let claimed = (0..count)
                .rev()
                .take_while(|&i| self.change(first + i, Chunk::Free, claim))
                .count();
            if claimed == count {
                for i in 1..count {
                    self.change(first + i, claim, Chunk::Tail);
                }
                self.change(first, claim, Chunk::Head { chunks: count as u32 });
                self.header().used.fetch_add((count * CHUNK_LEN) as u64, Ordering::Relaxed);
                return Some(self.address(first, 0));
            }
            for i in count - claimed..count {
                self.change(first + i, claim, Chunk::Free);
            }
            start += claimed + 1;
        }
        None
    }

    /// Give a block back.
    ///
    /// # Safety
    /// The caller owns the block, if it is one, and uses it no more.
    ///
    /// # Errors
    /// The pointer is not a block in use; nothing was changed.
    pub unsafe fn free(&self, block: *mut u8) -> Result<(), BadFree> {
        let (chunk, offset) = self.locate(block).ok_or(BadFree::NotABlock)?;
        match self.kind(chunk) {
            Chunk::Small { class } => self.free_small(chunk, class, offset),
            Chunk::Head { chunks } if offset == 0 => self.free_run(chunk, chunks),
            Chunk::Free => Err(BadFree::AlreadyFree),
            _ => Err(BadFree::NotABlock),
        }
    }

    fn free_small(&self, chunk: usize, class: usize, offset: usize) -> Result<(), BadFree> {
        let index = offset / CLASS_LEN[class];
        if !offset.is_multiple_of(CLASS_LEN[class]) || index >= blocks_of(class) {
            return Err(BadFree::NotABlock);
        }
        let (at, bit) = (self.bits(chunk, index / BITS), 1u64 << (index % BITS));
        let before = at.fetch_and(!bit, Ordering::AcqRel);
        if before & bit == 0 {
            return Err(BadFree::AlreadyFree);
        }
        self.header().used.fetch_sub(CLASS_LEN[class] as u64, Ordering::Relaxed);
        let is_empty = Bits::from_word(before & !bit).used == spare_bits(class, index / BITS);
        if is_empty && !self.is_hinted(chunk, class) {
            self.retire(chunk, class);
        }
        Ok(())
    }

    /// Does any lane look there first?
    fn is_hinted(&self, chunk: usize, class: usize) -> bool {
        let hints = &self.header().hints;
        hints.iter().any(|lane| lane[class].load(Ordering::Relaxed) as usize == chunk)
    }

    /// Make a chunk free again if all its blocks are: take them all, word by word, or none. True if it is
    /// free now.
    fn retire(&self, chunk: usize, class: usize) -> bool {
        let words = words_of(class);
        let taken = (0..words)
            .take_while(|&word| {
                let at = self.bits(chunk, word);
                let seen = at.load(Ordering::Relaxed);
                let bits = Bits::from_word(seen);
                let empty = bits.class == class as u8 + 1 && bits.used == spare_bits(class, word);
                let closed = Bits { used: u32::MAX, ..bits };
                empty
                    && at
                        .compare_exchange(seen, closed.word(), Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
            })
            .count();
        if taken == words {
            let closed =
                |word: usize| Bits::from_word(self.bits(chunk, word).load(Ordering::Relaxed));
            for word in 0..words {
                let bits = Bits { class: 0, ..closed(word) };
                self.bits(chunk, word).store(bits.word(), Ordering::Relaxed);
            }
            return self.change(chunk, Chunk::Small { class }, Chunk::Free);
        }
        for word in 0..taken {
            let clear = u64::from(!spare_bits(class, word));
            self.bits(chunk, word).fetch_and(!clear, Ordering::AcqRel);
        }
        false
    }

    fn free_run(&self, chunk: usize, count: u32) -> Result<(), BadFree> {
        let claim = Chunk::Claimed { tag: u32::MAX };
        if !self.change(chunk, Chunk::Head { chunks: count }, claim) {
            return Err(BadFree::AlreadyFree);
        }
        for i in 1..count as usize {
            self.change(chunk + i, Chunk::Tail, Chunk::Free);
        }
        self.change(chunk, claim, Chunk::Free);
        self.header().used.fetch_sub(count as u64 * CHUNK_LEN as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes that the owner of `block` may use; None if it is no block in use.
    #[must_use]
    pub fn usable_len(&self, block: *const u8) -> Option<usize> {
        let (chunk, offset) = self.locate(block)?;
        match self.kind(chunk) {
            Chunk::Small { class } => {
                let index = offset / CLASS_LEN[class];
                let in_use = index < blocks_of(class)
                    && Bits::from_word(self.bits(chunk, index / BITS).load(Ordering::Relaxed)).used
                        >> (index % BITS)
                        & 1
                        == 1;
                (in_use && offset.is_multiple_of(CLASS_LEN[class])).then_some(CLASS_LEN[class])
            }
            Chunk::Head { chunks } if offset == 0 => Some(chunks as usize * CHUNK_LEN),
            _ => None,
        }
    }

    /// A block of at least `len` bytes with the bytes of `block`, which is given up if this
    /// succeeds. None, and nothing changed, when `block` is no block, or too short in a full arena.
    ///
    /// # Safety
    /// The caller owns `block`.
    #[must_use]
    pub unsafe fn realloc(&self, block: *mut u8, len: usize, lane: usize) -> Option<NonNull<u8>> {
        let old = self.usable_len(block)?;
        if len <= old && len >= old / 2 {
            return NonNull::new(block);
        }
        let Some(new) = self.alloc(len, SMALLEST, lane) else {
            // Who wants less keeps what there is: std aborts when a block does not shrink.
            return NonNull::new(block).filter(|_| len <= old);
        };
        // SAFETY: both blocks have this many bytes and are different blocks.
        unsafe { core::ptr::copy_nonoverlapping(block, new.as_ptr(), old.min(len)) };
        // SAFETY: the caller's block, just copied.
        let _ = unsafe { self.free(block) };
        Some(new)
    }
}

/// The class for blocks of `len` bytes aligned to `align`, if they are small.
fn class_of(len: usize, align: usize) -> Option<usize> {
    if len > SMALL_LEN_MAX || align > SMALL_LEN_MAX {
        return None;
    }
    let mut class = if len <= 64 {
        len.div_ceil(SMALLEST) - 1
    } else {
        let doubling = (len - 1).ilog2() as usize;
        let step = doubling - 2;
        4 + (doubling - 6) * 4 + ((len - 1) >> step) % 4
    };
    while class <= LAST_CLASS {
        if CLASS_LEN[class] >= len && CLASS_LEN[class].is_multiple_of(align) {
            return Some(class);
        }
        class += 1;
    }
    None
}

/// Blocks of a chunk of `class`.
const fn blocks_of(class: usize) -> usize {
    CHUNK_LEN / CLASS_LEN[class]
}

const fn words_of(class: usize) -> usize {
    blocks_of(class).div_ceil(BITS)
}

/// Bits of a word that stand for no block.
const fn spare_bits(class: usize, word: usize) -> u32 {
    let blocks = blocks_of(class) - word * BITS;
    if blocks >= BITS { 0 } else { u32::MAX << blocks }
}

#[cfg(all(test, not(loom)))]
#[expect(unsafe_code, reason = "makes an arena of memory of its own")]
mod tests {
    use std::alloc::{Layout, alloc_zeroed};

    use super::{Arena, CHUNK_LEN, Chunk, LEN_MIN, class_of};

    fn arena() -> Arena {
        let layout = Layout::from_size_align(LEN_MIN, CHUNK_LEN).expect("a layout");
        // SAFETY: not empty; never given back.
        let memory = unsafe { alloc_zeroed(layout) };
        // SAFETY: zeroed, and nobody else's.
        unsafe { Arena::format(memory, LEN_MIN) }.expect("large enough")
    }

    #[test]
    fn a_chunk_that_is_used_again_and_again_is_not_made_anew() {
        let arena = arena();
        let class = class_of(100, 16).expect("small");
        let take = || arena.alloc(100, 16, 3).expect("there is room");
        let first = take();
        // SAFETY: taken just now.
        assert!(unsafe { arena.free(first.as_ptr()) }.is_ok());
        assert_eq!(arena.kind(0), Chunk::Small { class });
        assert_eq!(take(), first);
        // SAFETY: as above.
        assert!(unsafe { arena.free(first.as_ptr()) }.is_ok());
        // Others get it when there is nothing else.
        let all = arena.alloc(arena.capacity(), 16, 0).expect("nothing is in use");
        // SAFETY: as above.
        assert!(unsafe { arena.free(all.as_ptr()) }.is_ok());
        assert_eq!((arena.kind(0), arena.used()), (Chunk::Free, 0));
    }
}
