//! A hash map of byte strings, made for caches.
//!
//! ```text
//!  buckets: one cache line each                           entry: one block of the heap
//!  ┌──────┬─────────┬─────────────────┬─────┬──────┐      ┌───────┬─────┬───────┬────────┐
//!  │ lock │ version │ tag age address │ ... │ next │ ───► │ front │ key │ value │ expiry │
//!  └──────┴─────────┴─────────────────┴─────┴──┬───┘      └───────┴─────┴───────┴────────┘
//!                                              └─► overflow bucket, never given back
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
//! While it waits for the bucket it fetches what is probably the entry already, by a guess.
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
use super::guesses::Guesses;
use super::lock::{Lock, WAIT_MAX_NS};
use super::mutex::LockError;
use crate::arch::{copy_racing, prefetch, with_high_byte};
use crate::extension::Out;
use crate::runtime::{Here, World};
use crate::sync::{AtomicU64, Ordering};

mod look;

use look::{Look, Seen};

const LINKS: usize = 5;
/// Addresses have 47 bits; above them lie the age, and a tag of the hash.
const ADDRESS: u64 = (1 << 48) - 1;
const AGE_SHIFT: u32 = 48;
const TAG_SHIFT: u32 = 56;
const TAG: u64 = 0xff << TAG_SHIFT;
/// Set in every tag, so that a link that leads nowhere has none.
const TAG_SET: u8 = 1 << 7;
/// Buckets per entry that is expected: three of five links in use at most.
const ENTRIES_PER_BUCKET: usize = 3;
/// Steps of age in which as many entries are made as are expected. Ages wrap after four times as
/// many steps: what nobody used for so long looks new again.
const AGE_STEPS: usize = 64;
/// An entry's age is brought up to date when it is as many steps behind.
const AGE_SLACK: u8 = 2;
/// Buckets looked at for one more entry than the first, at most: all of a table would be, again and
/// again, while the last of many entries are taken out of it.
const EVICT_BUCKETS: u64 = 64;

/// Why an entry was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapError {
    /// The heap has no room for it.
    Full,
    /// A key of 16 MiB or more, or a value of 4 GiB or more.
    TooLong,
    /// Its bucket could not be had.
    Lock(LockError),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the extension's heap is full"),
            Self::TooLong => f.write_str("a key must be below 16 MiB, a value below 4 GiB"),
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
    /// Bytes of entries: keys and values in whole words, and 8 or 16 more each.
    pub bytes: u64,
}

#[derive(Debug)]
#[repr(C, align(64))]
struct Bucket {
    lock: Lock,
    /// Counts changes, of the whole chain if it is the first. Raised under the lock before each.
    version: AtomicU64,
    /// The last leads to the overflow bucket and has no tag, the others to entries.
    links: [AtomicU64; LINKS + 1],
}

impl Bucket {
    fn entries(&self) -> &[AtomicU64] {
        &self.links[..LINKS]
    }

    fn next(&self) -> &AtomicU64 {
        &self.links[LINKS]
    }

    /// It and its overflow buckets.
    #[inline]
    fn chain(&self) -> impl Iterator<Item = &Self> {
        core::iter::successors(Some(self), |bucket| {
            let next = bucket.next().load(Ordering::Acquire) as *const Self;
            // SAFETY: null, or an overflow bucket, which is never given back while the map is shared.
            unsafe { next.as_ref() }
        })
    }
}

/// Front of an entry. Key and value follow, each filled up by zeros to whole words, and then the
/// time when it expires, if it does.
#[derive(Debug)]
#[repr(transparent)]
struct Entry {
    head: AtomicU64,
}

/// What the front of an entry says: from the lowest bit, length of the value (32 bits), length of
/// the key (24 bits), nothing (7 bits), whether it expires.
#[derive(Debug, Clone, Copy)]
struct Head(u64);

impl Head {
    const EXPIRES: u64 = 1 << 63;

    fn new(key: &[u8], value: &[u8], expires: u64) -> Option<Self> {
        let key_len = u64::try_from(key.len()).ok().filter(|&len| len < 1 << 24)?;
        let value_len = u64::from(u32::try_from(value.len()).ok()?);
        Some(Self(value_len | key_len << 32 | if expires == 0 { 0 } else { Self::EXPIRES }))
    }

    const fn value_len(self) -> usize {
        self.0 as u32 as usize
    }

    const fn key_len(self) -> usize {
        (self.0 >> 32) as usize & 0xff_ffff
    }

    const fn expires(self) -> bool {
        self.0 & Self::EXPIRES != 0
    }

    /// Where the words of the value begin, in words behind the front.
    const fn value_at(self) -> usize {
        words_of(self.key_len())
    }

    /// Where the value ends and the time to expire is, in words behind the front.
    const fn expiry_at(self) -> usize {
        self.value_at() + words_of(self.value_len())
    }
}

const _: () = assert!(size_of::<Bucket>() == 64 && size_of::<Entry>() == 8);

/// Counts entries made and evicted: the clock of ages.
#[derive(Debug)]
#[repr(align(64))]
struct Clock {
    count: AtomicU64,
    /// Counts of a step of age, as a power of two.
    shift: u32,
    /// How many steps there were. Behind by one at times.
    age: AtomicU64,
    /// Where the next search for an entry to evict begins: a walk through a nearly empty table takes what it meets, where
    /// one from anywhere would cross the same empty buckets again and again.
    hand: AtomicU64,
}

impl Clock {
    fn tick(&self) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        self.age.store(count >> self.shift, Ordering::Relaxed);
    }
}

/// A map from byte strings to byte strings, shared by all processes.
#[derive(Debug)]
pub struct Map {
    buckets: NonNull<Bucket>,
    mask: u64,
    guesses: Guesses,
    hasher: FixedState,
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
        let guesses = Guesses::new(expected).ok_or(MapError::Full)?;
        // SAFETY: at least one bucket long.
        let block = unsafe { std::alloc::alloc_zeroed(layout) };
        Ok(Self {
            buckets: NonNull::new(block.cast()).ok_or(MapError::Full)?,
            guesses,
            mask: count as u64 - 1,
            hasher: FixedState::with_seed(Here.now_ns()),
            clock: Clock {
                count: AtomicU64::new(0),
                shift: (expected / AGE_STEPS).max(1).ilog2(),
                age: AtomicU64::new(0),
                hand: AtomicU64::new(0),
            },
            entries: Counter::new(),
            bytes: Counter::new(),
        })
    }

    /// Bytes that an entry takes which does not expire.
    #[must_use]
    pub const fn entry_len(key: &[u8], value: &[u8]) -> u64 {
        (size_of::<Entry>() + key.len().next_multiple_of(8) + value.len().next_multiple_of(8))
            as u64
    }

    /// Entries and bytes.
    #[must_use]
    pub fn stats(&self) -> MapStats {
        MapStats { entries: self.entries.sum(), bytes: self.bytes.sum() }
    }

    /// The clock of ages, now.
    #[inline]
    fn age(&self) -> u8 {
        self.clock.age.load(Ordering::Relaxed) as u8
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
        if entry.expires().is_some_and(|expires| now() >= expires) {
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

    /// The common case of [`Map::copy`]: nobody changes the bucket meanwhile, and the value fits the caller's
    /// buffer. None if it is another.
    #[inline]
    fn try_copy(&self, key: &[u8], now: impl Fn() -> u64, out: &mut Out<'_>) -> Option<bool> {
        let hash = self.hash(key);
        prefetch(self.guesses.of(hash));
        let look = Look::begin(self.bucket(hash & self.mask))?;
        let Some(Seen { link, word, entry, head }) = look.find(hash, key)? else {
            return Some(false);
        };
        if head.expires() && now() >= entry.word(head.expiry_at()).load(Ordering::Relaxed) {
            return look.is_right().then_some(false);
        }
        let value_len = head.value_len();
        let len = words_of(value_len);
        let to = out.room_for(len * 8)?;
        // By the key that was asked for: its length need not be waited for.
        let from = entry.words().wrapping_add(words_of(key.len()));
        // SAFETY: room for as many words, and `from` has them.
        unsafe { copy_racing(from, to, len) };
        if !look.is_right() {
            return None;
        }
        out.extend(value_len);
        touch(link, word, self.age());
        Some(true)
    }

    /// Store a value; true if it replaced one.
    ///
    /// # Errors
    /// No room, or the bucket could not be had; the former value stays.
    pub fn insert(&self, key: &[u8], value: &[u8], expires: u64) -> Result<bool, MapError> {
        let hash = self.hash(key);
        let entry = Entry::make(key, value, expires)?;
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
        self.guesses.note(hash, entry.0.as_ptr().cast());
        drop(bucket);
        if former == 0 {
            self.clock.tick();
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
                // Not of the heap: an allocation that fails there would abort, with the bucket locked.
                let entry = Entry::make(key, [[0; 8]; N].as_flattened(), 0)?;
                self.count_in(&entry);
                link.store(entry.link(hash, self.age()), Ordering::Release);
                self.clock.tick();
                link
            }
        };
        touch(link, link.load(Ordering::Relaxed), self.age());
        let entry = bucket.entry(link);
        let head = entry.head();
        if head.value_len() < N * 8 {
            return Err(MapError::Full);
        }
        let words = entry.words().wrapping_add(head.value_at()).cast::<[AtomicWord; N]>();
        // SAFETY: aligned, long enough, in memory that is only ever reached through the map, and
        // atomics may change behind a shared reference.
        Ok(change(unsafe { &*words }))
    }

    /// Take out the entry that was used longest ago among `sample` or a few more, beginning behind
    /// those of the last time; among fewer where the map is nearly empty. The bytes it had; 0 if
    /// there is none at all.
    ///
    /// # Errors
    /// A bucket could not be had.
    pub fn evict(&self, sample: usize) -> Result<u64, LockError> {
        while let Some((index, word)) = self.oldest(sample) {
            let len = self.take_out(index, word)?;
            if len != 0 {
                return Ok(len);
            }
        }
        Ok(0)
    }

    /// The entry of [`Map::evict`]: its bucket, and the link to it. Without locks: what it finds may be gone already.
    fn oldest(&self, sample: usize) -> Option<(u64, u64)> {
        let age = self.age();
        let mut oldest: Option<(u8, u64, u64)> = None;
        let mut seen = 0;
        let hand = self.clock.hand.load(Ordering::Relaxed);
        for step in 0..=self.mask {
            let index = hand.wrapping_add(step) & self.mask;
            for link in self.bucket(index).chain().flat_map(Bucket::entries) {
                let word = link.load(Ordering::Relaxed);
                if word != 0 {
                    let unused = age.wrapping_sub(age_of(word));
                    seen += 1;
                    if oldest.is_none_or(|(most, ..)| unused > most) {
                        oldest = Some((unused, index, word));
                    }
                }
            }
            if seen >= sample || (seen > 0 && step >= EVICT_BUCKETS) {
                self.clock.hand.store(index + 1, Ordering::Relaxed);
                break;
            }
        }
        oldest.map(|(_, index, word)| (index, word))
    }

    /// Take out the entry that `word` leads to; its bytes. 0 if another has taken or replaced it meanwhile.
    fn take_out(&self, index: u64, word: u64) -> Result<u64, LockError> {
        let bucket = self.lock_at(index)?;
        bucket.raise_version();
        let mut taken = 0;
        bucket.each(|link| {
            if taken == 0 && (link.load(Ordering::Relaxed) ^ word) & (TAG | ADDRESS) == 0 {
                taken = link.swap(0, Ordering::Release);
            }
        });
        drop(bucket);
        self.clock.tick();
        let len = Owned::of(taken).map_or(0, |entry| entry.len() as u64);
        self.forget(taken);
        Ok(len)
    }

    /// Take everything out.
    ///
    /// # Errors
    /// A bucket could not be had, the first of them if there are several; the rest is gone.
    pub fn clear(&self) -> Result<(), LockError> {
        let failed = (0..=self.mask).filter_map(|index| self.clear_bucket(index).err());
        failed.reduce(|first, _| first).map_or(Ok(()), Err)
    }

    fn clear_bucket(&self, index: u64) -> Result<(), LockError> {
        let bucket = self.lock_at(index)?;
        bucket.raise_version();
        bucket.each(|link| {
            self.forget(link.swap(0, Ordering::Release));
        });
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
                for link in one.entries() {
                    if let Some(entry) = Owned::of(link.load(Ordering::Relaxed)) {
                        entry.give_back();
                    }
                }
                at = one.next().load(Ordering::Relaxed) as *const Bucket;
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

    /// The link that leads to `key`.
    fn find(&self, hash: u64, key: &[u8]) -> Option<&'a AtomicU64> {
        for bucket in self.bucket.chain() {
            let mut matching = with_high_byte(&bucket.links, tag(hash));
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
        let free = |bucket: &'a Bucket| {
            bucket.entries().iter().find(|link| link.load(Ordering::Relaxed) == 0)
        };
        if let Some(link) = self.bucket.chain().find_map(free) {
            return Some(link);
        }
        let last = self.bucket.chain().last()?;
        // SAFETY: a bucket has a size.
        let fresh = unsafe { std::alloc::alloc_zeroed(Layout::new::<Bucket>()) };
        last.next().store(fresh as u64, Ordering::Release);
        // SAFETY: null, or a zeroed and therefore empty bucket.
        unsafe { fresh.cast::<Bucket>().as_ref() }.map(|bucket| &bucket.links[0])
    }

    fn each(&self, mut visit: impl FnMut(&AtomicU64)) {
        self.bucket.chain().for_each(|bucket| bucket.entries().iter().for_each(&mut visit));
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

/// The tag of a key with this hash, never 0.
const fn tag(hash: u64) -> u8 {
    (hash >> TAG_SHIFT) as u8 | TAG_SET
}

/// Place of the link that the lowest bit of `matching` stands for.
#[inline]
const fn place_of(matching: u32) -> usize {
    matching.trailing_zeros() as usize
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

/// Words that so many bytes take, which are less than 2^32.
#[inline]
const fn words_of(len: usize) -> usize {
    (len + 7) >> 3
}

impl Entry {
    /// Write a new entry.
    fn make(key: &[u8], value: &[u8], expires: u64) -> Result<Owned, MapError> {
        let head = Head::new(key, value, expires).ok_or(MapError::TooLong)?;
        let entry = Self { head: AtomicU64::new(head.0) };
        let layout = entry.layout().ok_or(MapError::TooLong)?;
        // SAFETY: at least a front long.
        let block = unsafe { alloc(layout) };
        let at = NonNull::new(block.cast::<Self>()).ok_or(MapError::Full)?;
        // SAFETY: room for a front, aligned for it.
        unsafe { at.write(entry) };
        // SAFETY: the key follows the front.
        let mut words = unsafe { at.add(1) }.cast::<u64>();
        for bytes in [key, value, &expires.to_le_bytes()[..if head.expires() { 8 } else { 0 }]] {
            if !bytes.len().is_multiple_of(8) {
                // SAFETY: the layout has room for whole words of each.
                unsafe { words.as_ptr().wrapping_add(bytes.len() / 8).write(0) };
            }
            let from = NonNull::from(bytes).cast::<u8>();
            // SAFETY: as above.
            unsafe { words.cast::<u8>().copy_from_nonoverlapping(from, bytes.len()) };
            // SAFETY: as above.
            words = unsafe { words.add(bytes.len().div_ceil(8)) };
        }
        Ok(Owned(at))
    }

    #[inline]
    fn head(&self) -> Head {
        Head(self.head.load(Ordering::Relaxed))
    }

    fn layout(&self) -> Option<Layout> {
        let head = self.head();
        let words = 1 + head.expiry_at() + usize::from(head.expires());
        Layout::array::<u64>(words).ok()
    }

    /// Key, value and expiry.
    #[inline]
    fn words(&self) -> *const AtomicU64 {
        core::ptr::from_ref(self).wrapping_add(1).cast()
    }

    /// One of [`Entry::words`].
    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: callers stay within the entry, which its front has told them the length of.
        unsafe { &*self.words().wrapping_add(at) }
    }

    /// When it expires, in the caller's clock.
    fn expires(&self) -> Option<u64> {
        let head = self.head();
        head.expires().then(|| self.word(head.expiry_at()).load(Ordering::Relaxed))
    }

    fn key(&self) -> &[u8] {
        // SAFETY: written whole by `make`, and never changed.
        unsafe { core::slice::from_raw_parts(self.words().cast(), self.head().key_len()) }
    }

    fn value(&self) -> &[u8] {
        let head = self.head();
        let at = self.words().wrapping_add(head.value_at()).cast();
        // SAFETY: as the key.
        unsafe { core::slice::from_raw_parts(at, head.value_len()) }
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
        self.0.as_ptr() as u64 | u64::from(age) << AGE_SHIFT | u64::from(tag(hash)) << TAG_SHIFT
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
