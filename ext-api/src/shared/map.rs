//! A hash map of byte strings, made for caches.
//!
//! ```text
//!  buckets: one cache line each                      entry: one block of the heap
//!  ┌──────┬─────────┬──────┬─────────────────┬─────┐      ┌─────────────────┬─────┬───────┐
//!  │ lock │ version │ next │ tag age address │ ... │ ───► │ expiry, lengths │ key │ value │
//!  └──────┴─────────┴──┬───┴─────────────────┴─────┘      └─────────────────┴─────┴───────┘
//!                      └─► overflow bucket, never given back
//! ```
//!
//! A bucket is locked for each change. An entry is written whole, then linked by one store, and a
//! value is not changed in place. So a kill leaves the bucket right; the block that was being linked
//! or unlinked then is lost to the heap.
//!
//! [`Map::copy`] takes no lock, writes nothing and has no branch that depends on where in the
//! bucket an entry lies, so that a processor begins the next look-up while it waits for the memory
//! of this one. It copies a value by words, and takes the copy only if the bucket's version says
//! that nothing was changed meanwhile (a sequence lock). An entry may be given back while it is
//! read: in a region its memory stays readable, and what was read then is thrown away.
//!
//! How long an entry was not used is known in steps, kept beside the link.
#![expect(unsafe_code, reason = "entries are blocks of bytes with a header")]

use core::fmt;
use core::hash::{BuildHasher, Hasher};
use core::ptr::NonNull;
use core::sync::atomic::fence;
use std::alloc::{Layout, alloc, dealloc};

use foldhash::fast::FixedState;

use super::counter::Counter;
use super::lock::{Lock, WAIT_MAX_NS};
use super::mutex::LockError;
use crate::arch::copy_racing;
use crate::extension::Out;
use crate::runtime::{Here, World};
use crate::sync::{AtomicU64, Ordering};

const LINKS: usize = 5;
/// Addresses have 47 bits; above them lie the age, and a tag of the hash.
const ADDRESS: u64 = (1 << 48) - 1;
const AGE_SHIFT: u32 = 48;
const TAG_SHIFT: u32 = 56;
const TAG: u64 = 0xff << TAG_SHIFT;
/// Set in every tag, so that a link that leads nowhere has none.
const TAG_SET: u64 = 1 << 63;
/// Values are copied by blocks.
const BLOCK_LEN: usize = 16;
/// Buckets per entry that is expected: three of five links in use at most.
const ENTRIES_PER_BUCKET: usize = 3;
/// Steps of age in which as many entries are made as are expected. Ages wrap after four times as
/// many steps: what nobody used for so long looks new again.
const AGE_STEPS: usize = 64;
/// An entry's age is brought up to date when it is as many steps behind.
const AGE_SLACK: u8 = 2;

/// Why an entry was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapError {
    /// The heap has no room for it.
    Full,
    /// Its bucket could not be had.
    Lock(LockError),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the extension's heap is full"),
            Self::Lock(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for MapError {}

impl From<LockError> for MapError {
    fn from(error: LockError) -> Self {
        Self::Lock(error)
    }
}

/// How full a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapStats {
    /// Entries.
    pub entries: u64,
    /// Bytes of entries: keys, values and headers.
    pub bytes: u64,
}

#[derive(Debug)]
#[repr(C, align(64))]
struct Bucket {
    lock: Lock,
    /// Counts changes, of the whole chain if it is the first. Raised under the lock before each.
    version: AtomicU64,
    next: AtomicU64,
    links: [AtomicU64; LINKS],
}

/// Front of an entry; key and value follow, filled up to whole words (by zeros) and whole blocks.
#[derive(Debug)]
#[repr(C)]
struct Entry {
    /// When it stops to count, in the caller's clock; 0 never.
    expires: AtomicU64,
    /// Length of the key in the low half, of the value in the high half.
    lens: AtomicU64,
}

const _: () = assert!(size_of::<Bucket>() == 64 && size_of::<Entry>() == 16);

/// Counts entries made and evicted: the clock of ages.
#[derive(Debug)]
#[repr(align(64))]
struct Clock(AtomicU64);

/// A map from byte strings to byte strings, shared by all processes.
#[derive(Debug)]
pub struct Map {
    buckets: NonNull<Bucket>,
    mask: u64,
    hasher: FixedState,
    age_shift: u32,
    clock: Clock,
    entries: Counter,
    bytes: Counter,
}

// SAFETY: buckets are locked for every change, and copies without the lock are checked.
unsafe impl Sync for Map {}
// SAFETY: it owns what it points at.
unsafe impl Send for Map {}

impl Map {
    /// A map that is fast up to `expected` entries. It takes more, but does not grow.
    ///
    /// # Errors
    /// [`MapError::Full`].
    pub fn new(expected: usize) -> Result<Self, MapError> {
        let count = (expected / ENTRIES_PER_BUCKET + 1)
            .checked_next_power_of_two()
            .filter(|&count| count <= 1 << 40)
            .ok_or(MapError::Full)?;
        let layout = Layout::array::<Bucket>(count).map_err(|_| MapError::Full)?;
        // SAFETY: at least one bucket long.
        let block = unsafe { std::alloc::alloc_zeroed(layout) };
        Ok(Self {
            buckets: NonNull::new(block.cast()).ok_or(MapError::Full)?,
            mask: count as u64 - 1,
            hasher: FixedState::with_seed(Here.now_ns()),
            age_shift: (expected / AGE_STEPS).max(1).ilog2(),
            clock: Clock(AtomicU64::new(0)),
            entries: Counter::new(),
            bytes: Counter::new(),
        })
    }

    /// Entries and bytes.
    #[must_use]
    pub fn stats(&self) -> MapStats {
        MapStats { entries: self.entries.sum(), bytes: self.bytes.sum() }
    }

    /// The clock of ages, now.
    #[inline]
    fn age(&self) -> u8 {
        (self.clock.0.load(Ordering::Relaxed) >> self.age_shift) as u8
    }

    /// Look `key` up and hand its value to `read`, under the bucket's lock. `now` is asked only
    /// about entries that expire.
    ///
    /// # Errors
    /// The bucket could not be had.
    pub fn get<R>(
        &self,
        key: &[u8],
        now: impl FnOnce() -> u64,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, LockError> {
        let hash = self.hash(key);
        let bucket = self.lock(hash)?;
        let Some(link) = bucket.find(hash, key) else { return Ok(None) };
        let entry = bucket.entry(link);
        if entry.has_expired(now) {
            return Ok(None);
        }
        touch(link, link.load(Ordering::Relaxed), self.age());
        Ok(Some(read(entry.value())))
    }

    /// Append the value of `key` to `out`, without a lock if nobody changes its bucket; true if
    /// there is one. `now` as in [`Map::get`].
    ///
    /// # Errors
    /// The bucket could not be had.
    #[inline]
    pub fn copy(
        &self,
        key: &[u8],
        now: impl Fn() -> u64,
        out: &mut Out<'_>,
    ) -> Result<bool, LockError> {
        if Here.keeps_memory()
            && let Some(found) = self.try_copy(key, &now, out)
        {
            return Ok(found);
        }
        self.copy_locked(key, now, out)
    }

    #[cold]
    #[inline(never)]
    fn copy_locked(
        &self,
        key: &[u8],
        now: impl Fn() -> u64,
        out: &mut Out<'_>,
    ) -> Result<bool, LockError> {
        Ok(self.get(key, now, |value| out.write(value))?.is_some())
    }

    /// The common case of [`Map::copy`]: nobody changes the bucket meanwhile, no second tag fits,
    /// the entry is in no overflow bucket, the value fits the caller's buffer. None if it is
    /// another.
    #[inline]
    fn try_copy(&self, key: &[u8], now: impl Fn() -> u64, out: &mut Out<'_>) -> Option<bool> {
        let hash = self.hash(key);
        let bucket = self.bucket(hash & self.mask);
        let version = bucket.version.load(Ordering::Acquire);
        let unchanged = || {
            fence(Ordering::Acquire);
            bucket.version.load(Ordering::Relaxed) == version
        };
        if bucket.lock.holder() != 0 {
            return None;
        }
        let words = bucket.links.each_ref().map(|link| link.load(Ordering::Acquire));
        let matching = matching(&words, hash);
        if matching == 0 {
            return (bucket.next.load(Ordering::Relaxed) == 0 && unchanged()).then_some(false);
        }
        let at = place_of(matching);
        // SAFETY: an entry, or what was one a moment ago: readable, and 8-aligned.
        let entry = unsafe { &*((words[at] & ADDRESS) as *const Entry) };
        let (key_len, value_len) = entry.lens();
        let expires = entry.expires.load(Ordering::Relaxed);
        // If nothing has changed by now, they are the lengths of an entry that there was, so that
        // its bytes are readable whatever becomes of it.
        if key_len != key.len() || !unchanged() || !is_same(key, entry.words()) {
            return None;
        }
        let blocks = value_len.div_ceil(BLOCK_LEN);
        let to = out.room_for(blocks * BLOCK_LEN)?;
        if expires != 0 && now() >= expires {
            return unchanged().then_some(false);
        }
        // By the key that was asked for: its length need not be waited for.
        let from = entry.words().wrapping_add(key.len().div_ceil(8)).cast();
        // SAFETY: room for as many, and `from` has them: values are filled up to whole blocks.
        unsafe { copy_racing(from, to, blocks) };
        if !unchanged() {
            return None;
        }
        out.extend(value_len);
        touch(&bucket.links[at], words[at], self.age());
        Some(true)
    }

    /// Store a value; true if it replaced one.
    ///
    /// # Errors
    /// No room, or the bucket could not be had; the former value stays.
    pub fn insert(&self, key: &[u8], value: &[u8], expires: u64) -> Result<bool, MapError> {
        let hash = self.hash(key);
        let entry = Entry::make(key, value, expires).ok_or(MapError::Full)?;
        let bucket = match self.lock_to_change(hash) {
            Ok(bucket) => bucket,
            Err(error) => {
                entry.give_back();
                return Err(error.into());
            }
        };
        let Some(link) = bucket.find(hash, key).or_else(|| bucket.vacant()) else {
            entry.give_back();
            return Err(MapError::Full);
        };
        // Counted first: a kill in between leaves too high a count, never one below what there is.
        self.count_in(&entry);
        let former = link.swap(entry.link(hash, self.age()), Ordering::Release);
        drop(bucket);
        if former == 0 {
            self.clock.0.fetch_add(1, Ordering::Relaxed);
        }
        Ok(self.forget(former))
    }

    /// Take an entry out; true if there was one.
    ///
    /// # Errors
    /// The bucket could not be had.
    pub fn remove(&self, key: &[u8]) -> Result<bool, LockError> {
        let hash = self.hash(key);
        let bucket = self.lock_to_change(hash)?;
        let former = bucket.find(hash, key).map_or(0, |link| link.swap(0, Ordering::Release));
        drop(bucket);
        Ok(self.forget(former))
    }

    /// Words that belong to `key`, all zero when it is new, for `change` to work on under the
    /// bucket's lock. One word changes at a time: that is what a kill leaves.
    ///
    /// # Errors
    /// No room, or the bucket could not be had.
    pub fn words<const N: usize, R>(
        &self,
        key: &[u8],
        change: impl FnOnce(&[AtomicWord; N]) -> R,
    ) -> Result<R, MapError> {
        let hash = self.hash(key);
        let bucket = self.lock_to_change(hash)?;
        let link = match bucket.find(hash, key) {
            Some(link) => link,
            None => {
                let link = bucket.vacant().ok_or(MapError::Full)?;
                let entry = Entry::make(key, &vec![0; N * 8], 0).ok_or(MapError::Full)?;
                self.count_in(&entry);
                link.store(entry.link(hash, self.age()), Ordering::Release);
                self.clock.0.fetch_add(1, Ordering::Relaxed);
                link
            }
        };
        touch(link, link.load(Ordering::Relaxed), self.age());
        let entry = bucket.entry(link);
        let (key_len, value_len) = entry.lens();
        if value_len < N * 8 {
            return Err(MapError::Full);
        }
        let words = entry.words().wrapping_add(key_len.div_ceil(8)).cast::<[AtomicWord; N]>();
        // SAFETY: aligned, long enough, in memory that is only ever reached through the map, and
        // atomics may change behind a shared reference.
        Ok(change(unsafe { &*words }))
    }

    /// Take out the entry that was used longest ago among `sample` or a few more, beginning
    /// wherever `random` says. The bytes it had; 0 if nothing was found there.
    ///
    /// # Errors
    /// A bucket could not be had.
    pub fn evict(&self, random: u64, sample: usize) -> Result<u64, LockError> {
        let age = self.age();
        let mut oldest: Option<(u8, u64, u64)> = None;
        let mut seen = 0;
        for step in 0..=self.mask {
            let index = random.wrapping_add(step) & self.mask;
            let bucket = self.lock_at(index)?;
            bucket.each(|link| {
                let word = link.load(Ordering::Relaxed);
                if word != 0 {
                    let unused = age.wrapping_sub(age_of(word));
                    seen += 1;
                    if oldest.is_none_or(|(most, ..)| unused > most) {
                        oldest = Some((unused, index, word));
                    }
                }
            });
            if seen >= sample || step >= 1 << 16 {
                break;
            }
        }
        let Some((_, index, word)) = oldest else { return Ok(0) };
        let bucket = self.lock_at(index)?;
        bucket.raise_version();
        let mut taken = 0;
        bucket.each(|link| {
            // Another may have replaced it meanwhile; then nothing is evicted.
            if taken == 0 && (link.load(Ordering::Relaxed) ^ word) & (TAG | ADDRESS) == 0 {
                taken = link.swap(0, Ordering::Release);
            }
        });
        drop(bucket);
        self.clock.0.fetch_add(1, Ordering::Relaxed);
        let len = Owned::of(taken).map_or(0, |entry| entry.len() as u64);
        self.forget(taken);
        Ok(len)
    }

    /// Take everything out.
    ///
    /// # Errors
    /// A bucket could not be had; the rest is gone.
    pub fn clear(&self) -> Result<(), LockError> {
        for index in 0..=self.mask {
            let bucket = self.lock_at(index)?;
            bucket.raise_version();
            bucket.each(|link| {
                self.forget(link.swap(0, Ordering::Release));
            });
        }
        Ok(())
    }

    fn count_in(&self, entry: &Owned) {
        self.entries.add(1);
        self.bytes.add(entry.len() as u64);
    }

    /// Count an entry out that is no longer linked, and give its block back.
    fn forget(&self, word: u64) -> bool {
        let Some(entry) = Owned::of(word) else { return false };
        self.entries.subtract(1);
        self.bytes.subtract(entry.len() as u64);
        entry.give_back();
        true
    }

    #[inline]
    fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key);
        hasher.finish()
    }

    #[inline]
    fn lock(&self, hash: u64) -> Result<Locked<'_>, LockError> {
        self.lock_at(hash & self.mask)
    }

    /// Locked, and known to be about to change.
    fn lock_to_change(&self, hash: u64) -> Result<Locked<'_>, LockError> {
        let bucket = self.lock(hash)?;
        bucket.raise_version();
        Ok(bucket)
    }

    #[inline]
    fn bucket(&self, index: u64) -> &Bucket {
        // SAFETY: an index below the number of buckets.
        let bucket = unsafe { self.buckets.add(index as usize) };
        // SAFETY: allocated, zeroed (which is an empty bucket), and never given back while shared.
        unsafe { bucket.as_ref() }
    }

    #[inline]
    fn lock_at(&self, index: u64) -> Result<Locked<'_>, LockError> {
        let bucket = self.bucket(index);
        match bucket.lock.take(&Here, WAIT_MAX_NS) {
            // What a dead holder leaves is right as it is.
            Ok(_) => Ok(Locked { bucket }),
            Err(held) => {
                let (pid, tid) = Here.ids(held.0);
                Err(LockError::TimedOut { pid, tid })
            }
        }
    }
}

/// A word that may change behind a shared reference.
pub type AtomicWord = AtomicU64;

impl Drop for Map {
    fn drop(&mut self) {
        for index in 0..=self.mask {
            let bucket = self.bucket(index);
            let mut chain = vec![];
            let mut at = core::ptr::from_ref(bucket);
            while !at.is_null() {
                // SAFETY: a bucket of the chain.
                let one = unsafe { &*at };
                for link in &one.links {
                    if let Some(entry) = Owned::of(link.load(Ordering::Relaxed)) {
                        entry.give_back();
                    }
                }
                at = one.next.load(Ordering::Relaxed) as *const Bucket;
                chain.push(at);
            }
            for overflow in chain.into_iter().filter(|at| !at.is_null()) {
                // SAFETY: allocated with this layout, and unreachable now.
                unsafe { dealloc(overflow.cast_mut().cast(), Layout::new::<Bucket>()) };
            }
        }
        if let Ok(layout) = Layout::array::<Bucket>(self.mask as usize + 1) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { dealloc(self.buckets.as_ptr().cast(), layout) };
        }
    }
}

/// A bucket whose lock this upcall holds.
struct Locked<'a> {
    bucket: &'a Bucket,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.bucket.lock.free(&Here);
    }
}

impl<'a> Locked<'a> {
    /// Say that the chain is about to change, before it does.
    fn raise_version(&self) {
        let version = self.bucket.version.load(Ordering::Relaxed);
        self.bucket.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
    }

    fn chain(&self) -> impl Iterator<Item = &'a Bucket> + use<'a> {
        core::iter::successors(Some(self.bucket), |bucket| {
            let next = bucket.next.load(Ordering::Relaxed) as *const Bucket;
            // SAFETY: null, or an overflow bucket, which is never given back.
            unsafe { next.as_ref() }
        })
    }

    /// The link that leads to `key`.
    fn find(&self, hash: u64, key: &[u8]) -> Option<&'a AtomicU64> {
        for bucket in self.chain() {
            let words = bucket.links.each_ref().map(|link| link.load(Ordering::Relaxed));
            let mut matching = matching(&words, hash);
            while matching != 0 {
                let link = &bucket.links[place_of(matching)];
                matching &= matching - 1;
                if self.entry(link).key() == key {
                    return Some(link);
                }
            }
        }
        None
    }

    /// A link that leads nowhere, in an overflow bucket if there is no other.
    fn vacant(&self) -> Option<&'a AtomicU64> {
        let free =
            |bucket: &'a Bucket| bucket.links.iter().find(|link| link.load(Ordering::Relaxed) == 0);
        if let Some(link) = self.chain().find_map(free) {
            return Some(link);
        }
        let last = self.chain().last()?;
        // SAFETY: a bucket has a size.
        let fresh = unsafe { std::alloc::alloc_zeroed(Layout::new::<Bucket>()) };
        last.next.store(fresh as u64, Ordering::Release);
        // SAFETY: null, or a zeroed and therefore empty bucket.
        unsafe { fresh.cast::<Bucket>().as_ref() }.map(|bucket| &bucket.links[0])
    }

    fn each(&self, mut visit: impl FnMut(&AtomicU64)) {
        self.chain().for_each(|bucket| bucket.links.iter().for_each(&mut visit));
    }

    /// The entry that a link leads to.
    fn entry(&self, link: &AtomicU64) -> &'a Entry {
        let word = link.load(Ordering::Relaxed);
        debug_assert!(word & ADDRESS != 0);
        // SAFETY: a link that is not 0 leads to a whole entry, which is unlinked under the lock
        // that this value holds before it is given back.
        unsafe { &*((word & ADDRESS) as *const Entry) }
    }
}

/// The tag of a key with this hash.
const fn tag(hash: u64) -> u64 {
    (hash | TAG_SET) & TAG
}

/// One bit for each link that may lead to a key with this hash, the first link's the highest.
#[inline]
fn matching(words: &[u64; LINKS], hash: u64) -> u32 {
    let tag = tag(hash);
    words.iter().fold(0, |bits, word| bits << 1 | u32::from((word ^ tag) < 1 << TAG_SHIFT))
}

/// Place of the link that the lowest bit of `matching` stands for.
#[inline]
const fn place_of(matching: u32) -> usize {
    LINKS - 1 - matching.trailing_zeros() as usize
}

const fn age_of(link: u64) -> u8 {
    (link >> AGE_SHIFT) as u8
}

/// Say that the entry behind `link`, which was seen as `word`, has been used. Another that changes
/// the link at the same time goes first.
#[inline]
fn touch(link: &AtomicU64, word: u64, age: u8) {
    if age.wrapping_sub(age_of(word)) >= AGE_SLACK {
        let fresh = word & !(0xff << AGE_SHIFT) | u64::from(age) << AGE_SHIFT;
        let _ = link.compare_exchange(word, fresh, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Does `key` lie at `words`, filled up by zeros?
#[inline]
fn is_same(key: &[u8], words: *const AtomicU64) -> bool {
    let (chunks, rest) = key.as_chunks::<8>();
    let word_at = |at: usize| {
        // SAFETY: within the words of a key of this length, as the caller has checked.
        unsafe { &*words.wrapping_add(at) }.load(Ordering::Relaxed)
    };
    // Differences are added up instead of branched upon: there seldom is one.
    let mut differs = 0;
    for (at, chunk) in chunks.iter().enumerate() {
        differs |= word_at(at) ^ u64::from_le_bytes(*chunk);
    }
    if !rest.is_empty() {
        let last = rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        differs |= word_at(chunks.len()) ^ last;
    }
    differs == 0
}

impl Entry {
    /// Write a new entry; None if there is no room.
    fn make(key: &[u8], value: &[u8], expires: u64) -> Option<Owned> {
        let key_len = u32::try_from(key.len()).ok()?;
        let lens = u64::from(u32::try_from(value.len()).ok()?) << 32 | u64::from(key_len);
        let entry = Self { expires: AtomicU64::new(expires), lens: AtomicU64::new(lens) };
        // SAFETY: at least a header long.
        let block = unsafe { alloc(entry.layout()?) };
        let at = NonNull::new(block.cast::<Self>())?;
        // SAFETY: room for a header, aligned for it.
        unsafe { at.write(entry) };
        // SAFETY: the key follows the header.
        let mut words = unsafe { at.add(1) }.cast::<u64>();
        for bytes in [key, value] {
            if !bytes.len().is_multiple_of(8) {
                // SAFETY: the layout has room for whole words of both.
                unsafe { words.as_ptr().wrapping_add(bytes.len() / 8).write(0) };
            }
            // SAFETY: as above.
            unsafe {
                words
                    .cast::<u8>()
                    .copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len())
            };
            // SAFETY: as above.
            words = unsafe { words.add(bytes.len().div_ceil(8)) };
        }
        Some(Owned(at))
    }

    /// Lengths of key and value.
    fn lens(&self) -> (usize, usize) {
        let lens = self.lens.load(Ordering::Relaxed);
        (lens as u32 as usize, (lens >> 32) as usize)
    }

    fn layout(&self) -> Option<Layout> {
        let (key_len, value_len) = self.lens();
        let len = key_len.next_multiple_of(8) + value_len.next_multiple_of(BLOCK_LEN);
        Layout::from_size_align(size_of::<Self>() + len, align_of::<Self>()).ok()
    }

    /// Key and value.
    fn words(&self) -> *const AtomicU64 {
        core::ptr::from_ref(self).wrapping_add(1).cast()
    }

    fn has_expired(&self, now: impl FnOnce() -> u64) -> bool {
        let expires = self.expires.load(Ordering::Relaxed);
        expires != 0 && now() >= expires
    }

    fn key(&self) -> &[u8] {
        // SAFETY: written whole by `make`, and never changed.
        unsafe { core::slice::from_raw_parts(self.words().cast(), self.lens().0) }
    }

    fn value(&self) -> &[u8] {
        let (key_len, value_len) = self.lens();
        let at = self.words().wrapping_add(key_len.div_ceil(8)).cast();
        // SAFETY: as the key.
        unsafe { core::slice::from_raw_parts(at, value_len) }
    }
}

/// An entry that no link leads to yet, or any more.
struct Owned(NonNull<Entry>);

impl Owned {
    /// The entry that a link led to.
    fn of(word: u64) -> Option<Self> {
        NonNull::new((word & ADDRESS) as *mut Entry).map(Self)
    }

    /// What a link to it says.
    fn link(&self, hash: u64, age: u8) -> u64 {
        self.0.as_ptr() as u64 | u64::from(age) << AGE_SHIFT | tag(hash)
    }

    fn len(&self) -> usize {
        // SAFETY: an entry that is ours.
        unsafe { self.0.as_ref() }.layout().map_or(0, |layout| layout.size())
    }

    fn give_back(self) {
        // SAFETY: an entry that is ours.
        let layout = unsafe { self.0.as_ref() }.layout();
        if let Some(layout) = layout {
            // SAFETY: allocated with this layout, and nobody else knows it.
            unsafe { dealloc(self.0.as_ptr().cast(), layout) };
        }
    }
}
