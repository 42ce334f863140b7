//! A hash map of byte strings, made for caches.
//!
//! ```text
//!  buckets: one cache line each                      entry: one block of the heap
//!  ┌──────┬──────┬─────────┬─────────┬─────┐        ┌──────────────────────────────┬─────┬───────┐
//!  │ lock │ next │ tag+ptr │ tag+ptr │ ... │ ─────► │ hash, lengths, expiry, stamp │ key │ value │
//!  └──────┴──┬───┴─────────┴─────────┴─────┘        └──────────────────────────────┴─────┴───────┘
//!            └─► overflow bucket, never given back
//! ```
//!
//! A bucket is locked for each access: the lock lies in the line that has to be read anyway. An
//! entry is written whole, then linked by one store; values are never changed in place. So a kill
//! leaves the bucket right; the block that was being linked or unlinked then is lost to the heap.
#![expect(unsafe_code, reason = "entries are blocks of bytes with a header")]

use core::fmt;
use core::hash::BuildHasher;
use core::ptr::NonNull;
use std::alloc::{Layout, alloc, dealloc};

use foldhash::fast::FixedState;

use super::counter::Counter;
use super::lock::{Lock, WAIT_MAX_NS};
use super::mutex::LockError;
use crate::runtime::{Here, World};
use crate::sync::{AtomicU64, Ordering};

const LINKS: usize = 6;
/// Addresses have 47 bits; a tag of the hash takes the rest.
const ADDRESS: u64 = (1 << 48) - 1;
/// Buckets per entry that is expected: three of six links in use on average.
const ENTRIES_PER_BUCKET: usize = 3;

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
    next: AtomicU64,
    links: [AtomicU64; LINKS],
}

/// Front of an entry; key and value follow.
#[derive(Debug)]
#[repr(C)]
struct Entry {
    hash: u64,
    /// When it stops to count, in the caller's clock; 0 never.
    expires: u64,
    /// When it was last used, in the caller's clock.
    used: AtomicU64,
    key_len: u32,
    value_len: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64 && size_of::<Entry>() == 32);

/// A map from byte strings to byte strings, shared by all processes.
#[derive(Debug)]
pub struct Map {
    buckets: NonNull<Bucket>,
    mask: u64,
    hasher: FixedState,
    entries: Counter,
    bytes: Counter,
}

// SAFETY: buckets are locked for every access to what they lead to.
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
            entries: Counter::new(),
            bytes: Counter::new(),
        })
    }

    /// Entries and bytes.
    #[must_use]
    pub fn stats(&self) -> MapStats {
        MapStats { entries: self.entries.sum(), bytes: self.bytes.sum() }
    }

    /// Look `key` up and hand its value to `read`, under the bucket's lock. `now` is asked only
    /// about entries that expire; `stamp` says when the entry was used.
    ///
    /// # Errors
    /// The bucket could not be had.
    #[inline]
    pub fn get<R>(
        &self,
        key: &[u8],
        now: impl FnOnce() -> u64,
        stamp: u64,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, LockError> {
        let hash = self.hash(key);
        let bucket = self.lock(hash)?;
        let Some(entry) = bucket.find(hash, key).map(|link| bucket.entry(link)) else {
            return Ok(None);
        };
        if entry.expires != 0 && now() >= entry.expires {
            return Ok(None);
        }
        if entry.used.load(Ordering::Relaxed) != stamp {
            entry.used.store(stamp, Ordering::Relaxed);
        }
        Ok(Some(read(entry.value())))
    }

    /// Store a value; true if it replaced one.
    ///
    /// # Errors
    /// No room, or the bucket could not be had; the former value stays.
    pub fn insert(
        &self,
        key: &[u8],
        value: &[u8],
        expires: u64,
        stamp: u64,
    ) -> Result<bool, MapError> {
        let hash = self.hash(key);
        let entry = Entry::make(hash, key, value, expires, stamp).ok_or(MapError::Full)?;
        let bucket = match self.lock(hash) {
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
        let former = link.swap(entry.word(), Ordering::Release);
        self.entries.add(u64::from(former == 0));
        self.bytes.add(entry.len() as u64);
        drop(bucket);
        if let Some(former) = Owned::of(former) {
            self.bytes.subtract(former.len() as u64);
            former.give_back();
        }
        Ok(former != 0)
    }

    /// Take an entry out; true if there was one.
    ///
    /// # Errors
    /// The bucket could not be had.
    pub fn remove(&self, key: &[u8]) -> Result<bool, LockError> {
        let hash = self.hash(key);
        let bucket = self.lock(hash)?;
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
        stamp: u64,
        change: impl FnOnce(&[AtomicWord; N]) -> R,
    ) -> Result<R, MapError> {
        let hash = self.hash(key);
        let bucket = self.lock(hash)?;
        let link = match bucket.find(hash, key) {
            Some(link) => link,
            None => {
                let link = bucket.vacant().ok_or(MapError::Full)?;
                // The value begins at the next multiple of eight: the key is padded by zeros.
                let zeros = vec![0; N * 8 + 8];
                let entry = Entry::make(hash, key, &zeros, 0, stamp).ok_or(MapError::Full)?;
                link.store(entry.word(), Ordering::Release);
                self.entries.add(1);
                self.bytes.add(entry.len() as u64);
                link
            }
        };
        let entry = bucket.entry(link);
        entry.used.store(stamp, Ordering::Relaxed);
        let value = entry.value();
        let skip = value.as_ptr().align_offset(8);
        let words = value.get(skip..).filter(|rest| rest.len() >= N * 8).ok_or(MapError::Full)?;
        let words = words.as_ptr().cast::<[AtomicWord; N]>();
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
        let mut oldest: Option<(u64, u64, u64)> = None;
        let mut seen = 0;
        for step in 0..=self.mask {
            let index = random.wrapping_add(step) & self.mask;
            let bucket = self.lock_at(index)?;
            bucket.each(|link| {
                if link.load(Ordering::Relaxed) != 0 {
                    let entry = bucket.entry(link);
                    let used = entry.used.load(Ordering::Relaxed);
                    seen += 1;
                    if oldest.is_none_or(|(least, ..)| used < least) {
                        oldest = Some((used, index, link.load(Ordering::Relaxed)));
                    }
                }
            });
            if seen >= sample || step >= 1 << 16 {
                break;
            }
        }
        let Some((_, index, word)) = oldest else { return Ok(0) };
        let bucket = self.lock_at(index)?;
        let mut taken = 0;
        bucket.each(|link| {
            // Another may have replaced it meanwhile; then nothing is evicted.
            if taken == 0 && link.load(Ordering::Relaxed) == word {
                link.store(0, Ordering::Release);
                taken = word;
            }
        });
        drop(bucket);
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
            bucket.each(|link| {
                self.forget(link.swap(0, Ordering::Release));
            });
        }
        Ok(())
    }

    /// Count an entry out that is no longer linked, and give its block back.
    fn forget(&self, word: u64) -> bool {
        let Some(entry) = Owned::of(word) else { return false };
        self.entries.subtract(1);
        self.bytes.subtract(entry.len() as u64);
        entry.give_back();
        true
    }

    fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    #[inline]
    fn lock(&self, hash: u64) -> Result<Locked<'_>, LockError> {
        self.lock_at(hash & self.mask)
    }

    #[inline]
    fn lock_at(&self, index: u64) -> Result<Locked<'_>, LockError> {
        // SAFETY: an index below the number of buckets.
        let bucket = unsafe { self.buckets.add(index as usize) };
        // SAFETY: allocated, zeroed (which is an empty bucket), and never given back while shared.
        let bucket = unsafe { bucket.as_ref() };
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
            // SAFETY: below the number of buckets.
            let bucket = unsafe { self.buckets.add(index as usize) };
            // SAFETY: an allocated bucket; nobody else has the map any more.
            let bucket = unsafe { bucket.as_ref() };
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
    fn chain(&self) -> impl Iterator<Item = &'a Bucket> + use<'a> {
        core::iter::successors(Some(self.bucket), |bucket| {
            let next = bucket.next.load(Ordering::Relaxed) as *const Bucket;
            // SAFETY: null, or an overflow bucket, which is never given back.
            unsafe { next.as_ref() }
        })
    }

    /// The link that leads to `key`.
    #[inline]
    fn find(&self, hash: u64, key: &[u8]) -> Option<&'a AtomicU64> {
        for bucket in self.chain() {
            for link in &bucket.links {
                let word = link.load(Ordering::Relaxed);
                if word & !ADDRESS == tag(hash) && word & ADDRESS != 0 {
                    let entry = self.entry(link);
                    if entry.hash == hash && entry.key() == key {
                        return Some(link);
                    }
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

const fn tag(hash: u64) -> u64 {
    hash & !ADDRESS
}

impl Entry {
    /// Write a new entry; None if there is no room.
    fn make(hash: u64, key: &[u8], value: &[u8], expires: u64, stamp: u64) -> Option<Owned> {
        let (key_len, value_len) = (u32::try_from(key.len()), u32::try_from(value.len()));
        let entry = Self {
            hash,
            expires,
            used: AtomicU64::new(stamp),
            key_len: key_len.ok()?,
            value_len: value_len.ok()?,
        };
        let layout = entry.layout()?;
        // SAFETY: at least a header long.
        let block = unsafe { alloc(layout) };
        let at = NonNull::new(block.cast::<Self>())?;
        // SAFETY: room for a header, aligned for it.
        unsafe { at.write(entry) };
        // SAFETY: the key follows the header.
        let bytes = unsafe { at.add(1) }.cast::<u8>();
        // SAFETY: the layout has room for both behind the header.
        unsafe { bytes.copy_from_nonoverlapping(NonNull::from(key).cast(), key.len()) };
        // SAFETY: as above.
        let bytes = unsafe { bytes.add(key.len()) };
        // SAFETY: as above.
        unsafe { bytes.copy_from_nonoverlapping(NonNull::from(value).cast(), value.len()) };
        Some(Owned(at))
    }

    fn layout(&self) -> Option<Layout> {
        let len = size_of::<Self>() + self.key_len as usize + self.value_len as usize;
        Layout::from_size_align(len, align_of::<Self>()).ok()
    }

    fn bytes(&self) -> *const u8 {
        core::ptr::from_ref(self).wrapping_add(1).cast()
    }

    fn key(&self) -> &[u8] {
        // SAFETY: written whole by `make`, and never changed.
        unsafe { core::slice::from_raw_parts(self.bytes(), self.key_len as usize) }
    }

    fn value(&self) -> &[u8] {
        let at = self.bytes().wrapping_add(self.key_len as usize);
        // SAFETY: as the key.
        unsafe { core::slice::from_raw_parts(at, self.value_len as usize) }
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
    fn word(&self) -> u64 {
        // SAFETY: an entry that is ours.
        let hash = unsafe { self.0.as_ref() }.hash;
        self.0.as_ptr() as u64 | tag(hash)
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
