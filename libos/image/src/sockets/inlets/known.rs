//! Whom this process sends to: what was found out about a destination of a socket, and is worth keeping.
//!
//! An *entry* says which inlet hears what a socket sends to an address. A *way*, from a socket to an inlet by
//! whatever address, says which number the last datagram has that went there by the kernel. Both are right as long as
//! the sockets are what they were, by their stamps; a way, too, as long as nothing has been sent in a manner that
//! takes no number. Private to the process; threads that fill one at the same moment do without it.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64, fence};

use libos::sockets::inlets::Place;

use super::super::fds::{self, End};
use super::super::{ask, sockets};
use crate::start;

/// Destinations of a process, by all its sockets. Others are found out each time.
const KNOWN_MAX: usize = 256;
/// Ways from its sockets to inlets: sets of a few places in which one may be. What goes by others goes by the kernel.
const WAY_SETS: usize = 256;
const WAYS: usize = 4;
/// In the place of a row: [`Found::Stranger`].
const STRANGER: u64 = u64::MAX;
/// The same: [`Found::Kernels`].
const KERNELS: u64 = u64::MAX - 1;

const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Where a socket sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Destination {
    /// The row of the inlet there.
    pub(super) row: usize,
    /// What that was.
    pub(super) stamp: u64,
    /// The sender's address, as it is told there.
    pub(super) source: Place,
}

/// What is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Inlet(Destination),
    /// Nobody in the sandbox.
    Stranger,
    /// Whom the kernel finds, who may be anybody.
    Kernels,
}

/// What a destination is kept under: the sender and its stamp, and the place.
pub(super) type Key = [u64; 5];

/// All of a process.
#[derive(Debug)]
#[repr(C)]
pub(in super::super) struct Table {
    entries: [Entry; KNOWN_MAX],
    ways: [[Way; WAYS]; WAY_SETS],
    /// Counts ways that have been put in others' places.
    replaced: AtomicU32,
    /// The pid namespace of the process with this pid: that in the upper half.
    pids: AtomicU64,
}

#[derive(Debug)]
#[repr(C)]
struct Entry {
    /// Odd while it is being filled.
    version: AtomicU32,
    key: [AtomicU64; 5],
    /// The row, [`STRANGER`] or [`KERNELS`]; the stamp, or how often everything had changed; the source.
    words: [AtomicU64; 5],
}

/// From a socket to an inlet.
#[derive(Debug)]
#[repr(C)]
struct Way {
    /// Odd while it is being filled.
    version: AtomicU32,
    /// Of who sends, when it was filled.
    strays: AtomicU32,
    /// Both rows, and both stamps.
    key: [AtomicU64; 3],
    /// The number.
    after: AtomicU64,
}

/// The key of what `end`, which has this stamp, sends to `to`; to its peer if that is nowhere.
pub(super) fn key(end: &End, stamp: u64, to: &Place) -> Key {
    let own = (end.row as u64) << 16 | u64::from(to.port);
    // Nothing is zero that has never been filled.
    [own, stamp, to.address[0], to.address[1], !0]
}

fn entry(key: &Key) -> &'static Entry {
    let mixed =
        key.iter().fold(0u64, |sum, word| (sum ^ word).wrapping_mul(SPREAD).rotate_left(31));
    &fds::known().entries[(mixed >> 20) as usize % KNOWN_MAX]
}

/// What is known under `key`.
pub(super) fn find(key: &Key) -> Option<Found> {
    let entry = entry(key);
    let version = entry.version.load(Acquire);
    let is_it = entry.key.iter().zip(key).all(|(word, part)| word.load(Relaxed) == *part);
    let words = entry.words.each_ref().map(|word| word.load(Relaxed));
    fence(Acquire);
    if version & 1 != 0 || !is_it || entry.version.load(Relaxed) != version {
        return None;
    }
    let [row, stamp, high, low, port] = words;
    if row >= KERNELS {
        let found = if row == STRANGER { Found::Stranger } else { Found::Kernels };
        return (stamp == sockets().inlets.changes.load(Acquire)).then_some(found);
    }
    let row = row as usize % libos::sockets::CONNECTIONS_MAX;
    let source = Place { address: [high, low], port: port as u16 };
    let is_same = sockets().inlets.all[row].stamp.load(Acquire) == stamp;
    is_same.then_some(Found::Inlet(Destination { row, stamp, source }))
}

/// Keep this under `key`. `changes` was read before it was found out.
pub(super) fn keep(key: &Key, found: &Found, changes: u64) {
    let entry = entry(key);
    let words = match found {
        Found::Stranger => [STRANGER, changes, 0, 0, 0],
        Found::Kernels => [KERNELS, changes, 0, 0, 0],
        Found::Inlet(one) => {
            let [high, low] = one.source.address;
            [one.row as u64, one.stamp, high, low, u64::from(one.source.port)]
        }
    };
    fill(&entry.version, || {
        for (word, part) in entry.key.iter().zip(key) {
            word.store(*part, Relaxed);
        }
        for (word, part) in entry.words.iter().zip(words) {
            word.store(part, Relaxed);
        }
    });
}

/// Fill what has this version, unless another thread does: then false.
fn fill(version: &AtomicU32, write: impl FnOnce()) -> bool {
    let seen = version.load(Relaxed);
    let is_ours =
        seen & 1 == 0 && version.compare_exchange(seen, seen + 1, AcqRel, Relaxed).is_ok();
    if is_ours {
        fence(Release);
        write();
        version.store(seen.wrapping_add(2), Release);
    }
    is_ours
}

/// The ways from `end`, which has this stamp, to `to` are kept under this.
fn way_key(end: &End, stamp: u64, to: &Destination) -> [u64; 3] {
    // Nothing is zero that has ever been filled.
    [(end.row as u64 + 1) << 32 | to.row as u64, stamp, to.stamp]
}

fn ways(key: &[u64; 3]) -> &'static [Way; WAYS] {
    let mixed = key[0].wrapping_mul(SPREAD);
    &fds::known().ways[(mixed >> 40) as usize % WAY_SETS]
}

/// The number that the last datagram has that went from `end`, which has this stamp, to `to` by the kernel. None if that
/// is not known.
pub(super) fn after(end: &End, stamp: u64, to: &Destination) -> Option<u64> {
    let key = way_key(end, stamp, to);
    let way = ways(&key).iter().find(|way| way.is_it(&key))?;
    let version = way.version.load(Acquire);
    let (after, strays) = (way.after.load(Relaxed), way.strays.load(Relaxed));
    let is_it = way.is_it(&key);
    fence(Acquire);
    let is_right = version & 1 == 0 && is_it && way.version.load(Relaxed) == version;
    let is_same = strays == super::inlet_of(end).strays.load(Acquire);
    (is_right && is_same).then_some(after)
}

/// It is this from now on.
pub(super) fn note_after(end: &End, stamp: u64, to: &Destination, after: u64) {
    let key = way_key(end, stamp, to);
    let all = ways(&key);
    let own = all.iter().find(|way| way.is_it(&key));
    let way = own.or_else(|| all.iter().find(|way| way.key[0].load(Relaxed) == 0));
    let way =
        way.unwrap_or_else(|| &all[fds::known().replaced.fetch_add(1, Relaxed) as usize % WAYS]);
    let strays = &super::inlet_of(end).strays;
    let seen = strays.load(Acquire);
    let is_noted = fill(&way.version, || {
        // Another thread may have noted a later one.
        let former = if way.is_it(&key) { way.after.load(Relaxed) } else { 0 };
        for (word, part) in way.key.iter().zip(key) {
            word.store(part, Relaxed);
        }
        way.after.store(after.max(former), Relaxed);
        way.strays.store(seen, Relaxed);
    });
    if !is_noted {
        // Nothing that was noted is known to be the last.
        strays.fetch_add(1, AcqRel);
    }
}

impl Way {
    fn is_it(&self, key: &[u64; 3]) -> bool {
        self.key.iter().zip(key).all(|(word, part)| word.load(Relaxed) == *part)
    }
}

/// The number of the pid namespace that this process is in. Whoever is in another cannot tell whether it lives.
#[inline(never)]
pub(super) fn pid_space() -> u64 {
    let Some(pid) = start::this_process().map(|own| u64::from(own.pid)) else { return 0 };
    let cell = &fds::known().pids;
    let kept = cell.load(Relaxed);
    if kept >> 32 == pid {
        return kept & u64::from(u32::MAX);
    }
    const STAT: usize = 4;
    const INODE_WORD: usize = 1;
    let mut stat = [0u64; 18];
    let path = c"/proc/self/ns/pid".as_ptr() as usize;
    let asked = ask(STAT, [path, stat.as_mut_ptr() as usize]);
    let number = if asked == 0 { stat[INODE_WORD] & u64::from(u32::MAX) } else { 0 };
    cell.store(pid << 32 | number, Relaxed);
    number
}

const _: () = assert!(size_of::<Table>() <= 64 << 10);
