//! What an operator narrows an extension to, of the system calls that its handlers are hooked to.
//!
//! A *clamp* says which calls its handlers are asked about, before and after: those with a path below a
//! folder, on some descriptors, of some processes. Of several of one kind one has to hold, of each kind that
//! there is one. A *tee* is asked and not listened to.
//!
//! Clamps lie in the control zone, which no participant can write, and so do the words of the
//! [call table](crate::signals::CallTable), which name a handler and what it is narrowed to:
//!
//! ```text
//!  63        32 31          30   29      28        20..16        15..0
//!  generation | must decide | tee | clamp | narrowed | which clamp | row of the handler table
//! ```
//!
//! A clamp is written before the words that name it, and stays as it is for as long as the handles in these
//! are good: who reads one that is being written for another extension has a handle that is stale.
//!
//! Paths are compared part by part, once `.`, `..` and empty parts have been worked out as text: `/srv` is not
//! above `/srv2`, and is above `/srv/a/../b`. Links are not followed.

use core::sync::atomic::{
    AtomicU8, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use ext_api::limits::{
    CLAMP_DESCRIPTORS_MAX, CLAMP_PATHS_LEN, CLAMP_PROCESSES_MAX, CLAMPS_MAX, HANDLERS_MAX,
};

/// In a word of the call table: its handler is asked and not listened to.
pub const TEE: u64 = 1 << 30;
/// Its handler is asked within a clamp only.
pub const CLAMPED: u64 = 1 << 29;
/// In the first word of a row: one of its handlers is a tee, or clamped.
pub const NARROWED: u64 = 1 << 28;

const CLAMP_SHIFT: u32 = 16;
const ROW_MASK: u64 = (1 << CLAMP_SHIFT) - 1;
const _: () = assert!(HANDLERS_MAX <= 1 << CLAMP_SHIFT);
const _: () = assert!(CLAMPS_MAX <= 1 << (28 - CLAMP_SHIFT));

/// The handle in a word of the call table.
#[must_use]
pub const fn handle_of(word: u64) -> u64 {
    word & !0xffff_ffff | word & ROW_MASK
}

/// What a word says besides, for clamp `number`.
#[must_use]
pub const fn clamp_word(number: usize) -> u64 {
    CLAMPED | (number as u64) << CLAMP_SHIFT
}

/// The number of the clamp that a word names.
#[must_use]
pub const fn clamp_of(word: u64) -> Option<usize> {
    let number = (word >> CLAMP_SHIFT) as usize % CLAMPS_MAX;
    if word & CLAMPED == 0 { None } else { Some(number) }
}

/// A name of a process as the kernel has it: 15 bytes at most, then zeros.
pub type ProcessName = [u64; 2];

/// The name of a process that was executed by this one.
#[must_use]
pub fn process_name(text: &[u8]) -> ProcessName {
    const LEN_MAX: usize = 15;
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(text.iter().take(LEN_MAX)).for_each(|(to, byte)| *to = *byte);
    [0, 8].map(|at| u64::from_le_bytes(core::array::from_fn(|index| bytes[at + index])))
}

/// All clamps, in the control zone.
#[derive(Debug)]
#[repr(C)]
pub struct ClampTable {
    /// By number.
    pub clamps: [Clamp; CLAMPS_MAX],
}

/// One clamp. Of what it has none of any will do.
#[derive(Debug)]
#[repr(C)]
pub struct Clamp {
    /// Absolute paths, a zero behind each.
    paths: [AtomicU8; CLAMP_PATHS_LEN],
    paths_len: AtomicU32,
    /// The first in the upper half, one more than the last in the lower; 0 ends them.
    descriptors: [AtomicU64; CLAMP_DESCRIPTORS_MAX],
    /// 0 ends them.
    names: [[AtomicU64; 2]; CLAMP_PROCESSES_MAX],
    /// 0 ends them.
    pids: [AtomicU32; CLAMP_PROCESSES_MAX],
}

impl Default for Clamp {
    fn default() -> Self {
        Self {
            paths: core::array::from_fn(|_| AtomicU8::new(0)),
            paths_len: AtomicU32::new(0),
            descriptors: core::array::from_fn(|_| AtomicU64::new(0)),
            names: core::array::from_fn(|_| [AtomicU64::new(0), AtomicU64::new(0)]),
            pids: core::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

impl Clamp {
    /// Have it hold for everything.
    pub fn clear(&self) {
        self.paths_len.store(0, Release);
        self.descriptors.iter().for_each(|range| range.store(0, Relaxed));
        self.names.iter().flatten().for_each(|word| word.store(0, Relaxed));
        self.pids.iter().for_each(|pid| pid.store(0, Relaxed));
    }

    /// Add the paths at and below an absolute one. False if there is no room.
    #[must_use]
    pub fn add_path(&self, path: &[u8]) -> bool {
        let from = self.paths_len.load(Relaxed) as usize;
        let Some(room) = self.paths.get(from..).filter(|room| room.len() > path.len()) else {
            return false;
        };
        room.iter().zip(path.iter().chain([&0])).for_each(|(to, byte)| to.store(*byte, Relaxed));
        self.paths_len.store((from + path.len() + 1) as u32, Release);
        true
    }

    /// Add descriptors, the first and the last of them. False if there is no room.
    #[must_use]
    pub fn add_descriptors(&self, first: u32, last: u32) -> bool {
        let range = u64::from(first) << 32 | u64::from(last.saturating_add(1));
        put(
            &self.descriptors,
            range,
            |place| place.load(Relaxed) == 0,
            |place, range| {
                place.store(range, Relaxed);
            },
        )
    }

    /// Add processes by name. False if there is no room.
    #[must_use]
    pub fn add_name(&self, name: ProcessName) -> bool {
        let is_free = |place: &[AtomicU64; 2]| place.iter().all(|word| word.load(Relaxed) == 0);
        put(&self.names, name, is_free, |place, name| {
            place.iter().zip(name).for_each(|(to, word)| to.store(word, Relaxed));
        })
    }

    /// Add a process. False if there is no room.
    #[must_use]
    pub fn add_pid(&self, pid: u32) -> bool {
        put(
            &self.pids,
            pid,
            |place| place.load(Relaxed) == 0,
            |place, pid| {
                place.store(pid, Relaxed);
            },
        )
    }

    /// Does it say anything of paths?
    #[must_use]
    pub fn has_paths(&self) -> bool {
        self.paths_len.load(Acquire) != 0
    }

    /// Is one of its paths `path`, or above it? What is relative begins in `folder`, which is absolute.
    #[must_use]
    pub fn holds_path(&self, folder: &[u8], path: &[u8]) -> bool {
        let len = (self.paths_len.load(Acquire) as usize).min(CLAMP_PATHS_LEN);
        let mut paths = self.paths[..len].split_inclusive(|byte| byte.load(Relaxed) == 0);
        paths.any(|above| is_below(&above[..above.len() - 1], folder, path))
    }

    /// Does it say anything of descriptors?
    #[must_use]
    pub fn has_descriptors(&self) -> bool {
        self.descriptors[0].load(Relaxed) != 0
    }

    /// Is `descriptor` one of its own?
    #[must_use]
    pub fn holds_descriptor(&self, descriptor: u32) -> bool {
        let ranges = self.descriptors.iter().map(|range| range.load(Relaxed));
        let mut ranges = ranges.take_while(|range| *range != 0);
        ranges.any(|range| (range >> 32..range & 0xffff_ffff).contains(&u64::from(descriptor)))
    }

    /// Is this a process of its own, or does it say nothing of any?
    #[must_use]
    pub fn holds_process(&self, pid: u32, name: ProcessName) -> bool {
        let names = self.names.iter().map(|[low, high]| [low.load(Relaxed), high.load(Relaxed)]);
        let mut names = names.take_while(|known| *known != [0, 0]).peekable();
        let pids = self.pids.iter().map(|known| known.load(Relaxed));
        let mut pids = pids.take_while(|known| *known != 0).peekable();
        let says_nothing = names.peek().is_none() && pids.peek().is_none();
        says_nothing || names.any(|known| known == name) || pids.any(|known| known == pid)
    }
}

/// Put `value` in the first place that is free. False if none is.
fn put<P, V>(
    places: &[P],
    value: V,
    is_free: impl Fn(&P) -> bool,
    store: impl FnOnce(&P, V),
) -> bool {
    let place = places.iter().find(|place| is_free(place));
    place.map(|place| store(place, value)).is_some()
}

/// Is `above` the path that `path` stands for in `folder`, or a folder above it?
///
/// Nothing is copied: it is enough to know how deep the path is so far, and how many of its first parts are
/// those of `above`.
fn is_below(above: &[AtomicU8], folder: &[u8], path: &[u8]) -> bool {
    let (mut depth, mut same) = (0, 0);
    let begin = if path.first() == Some(&b'/') { &[] } else { folder };
    for part in parts_of(begin).chain(parts_of(path)) {
        if part == b".." {
            depth = usize::saturating_sub(depth, 1);
            same = usize::min(same, depth);
        } else {
            same += usize::from(same == depth && is_part(above, same, part));
            depth += 1;
        }
    }
    parts_above(above).count() == same
}

/// The parts of a path, without those that mean nothing.
fn parts_of(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let parts = path.split(|byte| *byte == b'/');
    parts.filter(|part| !part.is_empty() && *part != b".")
}

/// The parts of a clamp's path, which is written without any that mean nothing.
fn parts_above(path: &[AtomicU8]) -> impl Iterator<Item = &[AtomicU8]> {
    path.split(|byte| byte.load(Relaxed) == b'/').filter(|part| !part.is_empty())
}

fn is_part(above: &[AtomicU8], index: usize, part: &[u8]) -> bool {
    let known = parts_above(above).nth(index);
    known.is_some_and(|known| known.iter().map(|byte| byte.load(Relaxed)).eq(part.iter().copied()))
}
