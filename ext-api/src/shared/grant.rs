//! State of each process, made when it first asks and freed when it has ended.
#![expect(unsafe_code, reason = "hands out references into cells that one process owns")]

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

use crate::error::CallError;
use crate::extension::Cx;
use crate::limits::PROCESSES_MAX;
use crate::post::Peer;
use crate::sync::{AtomicU64, Ordering};

/// A value per process of the sandbox. Threads of one process share theirs; no other process sees it.
///
/// A process that executes another program begins anew. Have [`Grant::free`] called when a process
/// ends (`#[on(process = "exit")]`): values of the dead are dropped there, or when another process
/// comes in the dead one's place.
///
/// ```
/// use std::sync::atomic::AtomicU64;
/// use ext_api::prelude::*;
/// use ext_api::shared::Grant;
///
/// struct State { calls: Grant<AtomicU64> }
///
/// fn handler(state: &State) -> Result<u64, CallError> {
///     let own = state.calls.own(AtomicU64::default)?;
///     Ok(own.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
/// }
/// ```
#[derive(Debug)]
pub struct Grant<T> {
    cells: Box<[Cell<T>]>,
}

#[derive(Debug)]
struct Cell<T> {
    /// The process whose value it is, as a [`Peer`]; with [`BUSY`] while the value is made or dropped.
    owner: AtomicU64,
    value: UnsafeCell<MaybeUninit<T>>,
}

/// The low half of a peer is a row of the process table, which leaves this bit free.
const BUSY: u64 = 1 << 31;
const _: () = assert!(PROCESSES_MAX < BUSY as usize);

// SAFETY: a value is shared by the threads of the process that owns its cell, and made and dropped by
// whoever has marked the cell busy.
unsafe impl<T: Send + Sync> Sync for Grant<T> {}

impl<T> Default for Grant<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Grant<T> {
    /// Nobody has a value yet.
    #[must_use]
    pub fn new() -> Self {
        let cell =
            |_| Cell { owner: AtomicU64::new(0), value: UnsafeCell::new(MaybeUninit::uninit()) };
        Self { cells: (0..PROCESSES_MAX).map(cell).collect() }
    }

    /// The value of the process that this runs in, which `make` makes if it has none.
    ///
    /// # Errors
    /// [`CallError::NotAttached`] outside of a region; [`crate::abi::Status::Restarting`] while another
    /// thread of the process is making it: try again.
    pub fn own(&self, make: impl FnOnce() -> T) -> Result<&T, CallError> {
        self.of(Cx::peer(Cx::pid())?, make)
    }

    fn of(&self, peer: Peer, make: impl FnOnce() -> T) -> Result<&T, CallError> {
        let own = peer.to_raw();
        let gone = || CallError::Refused(crate::abi::Status::Gone);
        let cell = self.cells.get(own as u32 as usize).ok_or_else(gone)?;
        let seen = cell.owner.load(Ordering::Acquire);
        if seen != own {
            let busy = own | BUSY;
            let take = |seen| {
                cell.owner.compare_exchange(seen, busy, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            };
            if seen == busy || !take(seen) {
                return Err(CallError::Refused(crate::abi::Status::Restarting));
            }
            if seen != 0 && seen & BUSY == 0 {
                // SAFETY: the value of a process that has ended, whose row we have now; nobody has a
                // reference to it, and the cell is busy.
                unsafe { cell.value.get().cast::<T>().drop_in_place() };
            }
            // SAFETY: the cell is busy: nobody else touches the value.
            unsafe { cell.value.get().cast::<T>().write(make()) };
            cell.owner.store(own, Ordering::Release);
        }
        // SAFETY: made by this process, and dropped only after its end.
        Ok(unsafe { &*cell.value.get().cast::<T>() })
    }

    /// Drop the values of processes that have ended; how many there were.
    pub fn free(&self) -> usize {
        self.free_but(Cx::is_live)
    }

    fn free_but(&self, is_live: impl Fn(Peer) -> bool) -> usize {
        let ended = |cell: &&Cell<T>| {
            let seen = cell.owner.load(Ordering::Acquire);
            if seen == 0 || seen & BUSY != 0 || is_live(Peer::from_raw(seen)) {
                return false;
            }
            let (taken, kept) = (Ordering::AcqRel, Ordering::Relaxed);
            if cell.owner.compare_exchange(seen, seen | BUSY, taken, kept).is_err() {
                return false;
            }
            // SAFETY: its process has ended, and the cell is busy.
            unsafe { cell.value.get().cast::<T>().drop_in_place() };
            cell.owner.store(0, Ordering::Release);
            true
        };
        self.cells.iter().filter(ended).count()
    }
}

impl<T> Drop for Grant<T> {
    fn drop(&mut self) {
        for cell in &mut self.cells {
            let owner = *cell.owner.get_mut();
            if owner != 0 && owner & BUSY == 0 {
                // SAFETY: a value that was made, and nobody else has the cell any more.
                unsafe { cell.value.get().cast::<T>().drop_in_place() };
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::Grant;
    use crate::post::Peer;

    const fn peer(row: u64, generation: u64) -> Peer {
        Peer::from_raw(generation << 32 | row)
    }

    #[test]
    fn each_process_has_its_own_and_the_dead_have_none() {
        let grant = Grant::new();
        let values: Vec<Arc<u64>> = (0..3).map(Arc::new).collect();
        let own = |at: usize, row| {
            let value = values[at].clone();
            **grant.of(peer(row, 1), || value).expect("there is room")
        };
        assert_eq!([own(0, 5), own(1, 6), own(2, 5)], [0, 1, 0]);
        // Another process in the row of one that has ended.
        assert_eq!(**grant.of(peer(5, 2), || values[2].clone()).expect("there is room"), 2);
        assert_eq!(Arc::strong_count(&values[0]), 1);
        assert_eq!(grant.free_but(|known| known == peer(5, 2)), 1);
        assert_eq!(values.iter().map(Arc::strong_count).collect::<Vec<_>>(), [1, 1, 2]);
        assert!(grant.of(peer(5000, 1), || values[0].clone()).is_err());
    }

    #[test]
    fn a_value_whose_maker_was_killed_is_made_anew() {
        let grant = Grant::<u64>::new();
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = grant.of(peer(1, 1), || panic!("killed here"));
        }));
        assert!(killed.is_err());
        assert!(grant.of(peer(1, 1), || 3).is_err());
        assert_eq!(grant.of(peer(1, 2), || 4).copied().ok(), Some(4));
    }
}
