//! The rings by themselves: what connections are made of, without calls, descriptors or anybody who sleeps.
#![expect(unsafe_code, reason = "copies bytes in and out of rings that a child shares")]

use std::arch::x86_64::{_mm_sfence, _mm_stream_si64};
use std::hint::spin_loop;
use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use libos::sockets::copying::LARGE_COPY;
use libos::sockets::{Direction, LARGE_RING};

use super::super::pin::{pin, time};
use super::super::round_trip::{Peer, spin_from};
use crate::clock::now_ns;

/// Both directions of a connection, and their rings.
#[repr(C)]
struct Shared {
    there: Ring,
    back: Ring,
}

#[repr(C, align(4096))]
struct Ring {
    direction: Direction,
    bytes: std::cell::UnsafeCell<[u8; LARGE_RING]>,
}

/// How to wait.
#[derive(Clone, Copy)]
pub(super) enum Wait {
    /// For the other core.
    Spin,
    /// For whoever shares this one.
    Yield,
}

impl Wait {
    fn once(self) {
        match self {
            Self::Spin => spin_loop(),
            Self::Yield => std::thread::yield_now(),
        }
    }
}

fn shared() -> io::Result<&'static Shared> {
    let (prot, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    let len = size_of::<Shared>();
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, page-aligned, mapped until the process ends; atomics, and bytes behind a cell.
    let shared: &Shared = unsafe { &*at.cast() };
    for ring in [&shared.there, &shared.back] {
        // A large ring, from the first byte on.
        ring.direction.large.store(1, Relaxed);
    }
    Ok(shared)
}

impl Ring {
    /// Put all of it in, waiting for room.
    fn write(&self, mut bytes: &[u8], wait: Wait) {
        while !bytes.is_empty() {
            let (tail, room) = self.direction.room_for(bytes.len());
            let piece = self.direction.piece(tail, room.min(bytes.len()));
            if piece.len == 0 {
                wait.once();
                continue;
            }
            // SAFETY: within the ring, as `piece` says of any position.
            let to = unsafe { self.bytes.get().cast::<u8>().add(piece.offset) };
            // SAFETY: room that the reader has left; the source has as much.
            unsafe { self.copy_in(to, bytes.as_ptr(), piece.len) };
            self.direction.publish(tail + piece.len as u64, || {
                self.direction.waiting.parked.load(Acquire) != 0
            });
            bytes = &bytes[piece.len..];
        }
    }

    /// As connections do.
    ///
    /// # Safety
    /// `len` bytes are readable at `from` and writable at `to`.
    unsafe fn copy_in(&self, to: *mut u8, from: *const u8, len: usize) {
        if len < LARGE_COPY {
            // SAFETY: by contract.
            return unsafe { to.copy_from_nonoverlapping(from, len) };
        }
        let copying = &self.direction.writing.copying;
        let (is_past, began) = (copying.is_past_caches(), now_ns());
        if is_past {
            // SAFETY: by contract.
            unsafe { copy_past(to, from, len) };
        } else {
            // SAFETY: by contract.
            unsafe { to.copy_from_nonoverlapping(from, len) };
        }
        copying.note(is_past, len, now_ns().saturating_sub(began));
    }

    /// Take out as many as there are room for.
    fn read(&self, mut bytes: &mut [u8], wait: Wait) {
        while !bytes.is_empty() {
            let (head, filled) = self.direction.filled();
            let piece = self.direction.piece(head, filled.min(bytes.len()));
            if piece.len == 0 {
                wait.once();
                continue;
            }
            // SAFETY: within the ring, as `piece` says of any position.
            let from = unsafe { self.bytes.get().cast::<u8>().add(piece.offset) };
            // SAFETY: bytes that the writer has published; there is room for as many.
            unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(from, piece.len) };
            if self.direction.take(head, piece.len) {
                bytes = &mut bytes[piece.len..];
            }
        }
    }
}

/// Copy with stores past the caches, of whole lines.
///
/// # Safety
/// `len` bytes are readable at `from` and writable at `to`.
unsafe fn copy_past(to: *mut u8, from: *const u8, len: usize) {
    const LINE: usize = 64;
    const WORD: usize = 8;
    let before = to.align_offset(LINE).min(len);
    let behind = before + (len - before) / LINE * LINE;
    // SAFETY: by contract, as all below.
    unsafe { to.copy_from_nonoverlapping(from, before) };
    for at in (before..behind).step_by(WORD) {
        let (to, from) = (to.wrapping_add(at), from.wrapping_add(at));
        // SAFETY: within both, of any alignment.
        let word = unsafe { from.cast::<i64>().read_unaligned() };
        // SAFETY: within, and aligned.
        unsafe { _mm_stream_si64(to.cast(), word) };
    }
    // SAFETY: of no memory of ours; those stores are seen before what follows.
    unsafe { _mm_sfence() };
    let (to, from) = (to.wrapping_add(behind), from.wrapping_add(behind));
    // SAFETY: the rest of both.
    unsafe { to.copy_from_nonoverlapping(from, len - behind) };
}

/// Nanoseconds that `len` bytes take there and back, between the caller's core `own` and `cpu`.
pub(super) fn round_trip(
    [own, cpu]: [usize; 2],
    len: usize,
    count: u64,
    wait: Wait,
) -> io::Result<f64> {
    let shared = shared()?;
    pin(0, own);
    let _peer = Peer::start(cpu, || {
        let mut bytes = vec![0; len];
        loop {
            shared.there.read(&mut bytes, wait);
            shared.back.write(&bytes, wait);
        }
    })?;
    let mut bytes = vec![1; len];
    let mut there_and_back = |count| {
        time(count, || {
            for _ in 0..count {
                shared.there.write(&bytes, wait);
                shared.back.read(&mut bytes, wait);
            }
        })
    };
    there_and_back(count / 10 + 1);
    Ok(there_and_back(count))
}

/// Gigabytes per second by writes of `len` bytes.
pub(super) fn bandwidth([own, cpu]: [usize; 2], len: usize, count: u64) -> io::Result<f64> {
    let shared = shared()?;
    pin(0, own);
    let _peer = Peer::start(cpu, || {
        let mut bytes = vec![0; len];
        loop {
            shared.there.read(&mut bytes, Wait::Spin);
            // The last of a run says that all have come.
            if bytes[0] == 1 {
                shared.back.write(&[1], Wait::Spin);
            }
        }
    })?;
    let mut bytes = vec![0; len];
    let mut run = |count: u64| {
        time(count, || {
            for left in (0..count).rev() {
                bytes[0] = u8::from(left == 0);
                shared.there.write(&bytes, Wait::Spin);
            }
            shared.back.read(&mut [0], Wait::Spin);
        })
    };
    run(count / 10 + 1);
    Ok(len as f64 / run(count))
}

/// Are two cores near each other? What the machine says of its caches is no help: below a hypervisor it may be wrong, and
/// change by the minute.
pub(super) fn are_near([own, cpu]: [usize; 2]) -> io::Result<bool> {
    const NEAR_NS: f64 = 200.0;
    const TURNS: u64 = 5_000;
    // Whoever was interrupted was not far away.
    let trips = (0..5).map(|_| spin_from(own, cpu, TURNS));
    let fastest =
        trips.collect::<io::Result<Vec<f64>>>()?.into_iter().fold(f64::INFINITY, f64::min);
    Ok(fastest < NEAR_NS)
}

/// The first core with one that is said to share its last cache, and with one that is not, as far as there are any.
pub(super) fn pairs() -> Vec<[usize; 2]> {
    let cores: Vec<usize> = (0..1024).filter(|cpu| shared_with(*cpu).is_some()).collect();
    let first = |shares: bool| {
        cores.iter().skip(1).find_map(|&cpu| {
            let with = shared_with(cpu)?;
            (with.contains(&cores[0]) == shares).then_some([cores[0], cpu])
        })
    };
    [first(true), first(false)].into_iter().flatten().collect()
}

/// The cores that share this one's last cache.
fn shared_with(cpu: usize) -> Option<Vec<usize>> {
    let last = (0..8).rev().find_map(|index| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/cache/index{index}/shared_cpu_list");
        std::fs::read_to_string(path).ok()
    })?;
    let part = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(from.parse().ok()?..=to.parse().ok()?)
    };
    Some(last.trim().split(',').filter_map(part).flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::{Wait, copy_past, round_trip};

    #[test]
    fn what_is_copied_past_the_caches_is_the_same() {
        let from: Vec<u8> = (0..5000).map(|at| at as u8).collect();
        for (offset, len) in [(0, 4096), (1, 4096), (7, 64), (63, 1), (5, 0), (9, 4999), (64, 63)] {
            let mut to = vec![0u8; 6000];
            // SAFETY: `len` bytes of both.
            unsafe { copy_past(to.as_mut_ptr().wrapping_add(offset), from.as_ptr(), len) };
            assert_eq!(to[offset..offset + len], from[..len]);
            assert!(to[..offset].iter().chain(&to[offset + len..]).all(|byte| *byte == 0));
        }
    }

    #[test]
    fn bytes_come_back_from_the_same_core() {
        let ns = round_trip([0, 0], 9000, 100, Wait::Yield).expect("a child");
        assert!(ns > 0.0);
    }
}
