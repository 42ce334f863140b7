//! State of each process, made when it first asks and freed when it has ended.
//!
//! A cell's value is made and dropped under the cell's lock, which is had from an upcall that died or
//! failed there, and never from one that is still at it. The cell is marked busy meanwhile, so that
//! whoever has the lock next knows that there is no whole value to drop.
#![expect(unsafe_code, reason = "hands out references into cells that one process owns")]

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

use super::lock::Lock;
use crate::abi::Status;
use crate::error::CallError;
use crate::extension::Cx;
use crate::limits::PROCESSES_MAX;
use crate::post::Peer;
use crate::runtime::Here;
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
    lock: Lock,
    /// The process whose value it is, as a [`Peer`]; with [`BUSY`] while the value is made or dropped.
    /// Changed under the lock.
    owner: AtomicU64,
    value: UnsafeCell<MaybeUninit<T>>,
}

/// A cell whose lock this upcall holds.
struct Locked<'a, T>(&'a Cell<T>);

impl<T> Cell<T> {
    fn new() -> Self {
        Self {
            lock: Lock::new(),
            owner: AtomicU64::new(0),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// None while an upcall that is not over has it.
    fn lock(&self) -> Option<Locked<'_, T>> {
        self.lock.take(&Here, 0).is_ok().then_some(Locked(self))
    }
}

impl<T> Locked<'_, T> {
    fn owner(&self) -> u64 {
        self.0.owner.load(Ordering::Relaxed)
    }

    /// Drop the value, if it is whole: what its maker or dropper did not come to the end of is lost.
    ///
    /// # Safety
    /// Its process has ended.
    unsafe fn empty(&self) {
        let owner = self.owner();
        if owner != 0 && owner & BUSY == 0 {
            self.0.owner.store(owner | BUSY, Ordering::Relaxed);
            // SAFETY: a whole value, to which nobody has a reference as its process has ended; and
            // the lock is ours.
            unsafe { self.0.value.get().cast::<T>().drop_in_place() };
        }
        self.0.owner.store(0, Ordering::Relaxed);
    }

    /// Make the value of a cell that has none.
    fn fill(&self, own: u64, make: impl FnOnce() -> T) {
        self.0.owner.store(own | BUSY, Ordering::Relaxed);
        // SAFETY: the lock is ours, and no reference to a value leaves the cell before its owner is
        // written below.
        unsafe { self.0.value.get().cast::<T>().write(make()) };
        self.0.owner.store(own, Ordering::Release);
    }
}

impl<T> Drop for Locked<'_, T> {
    fn drop(&mut self) {
        self.0.lock.free(&Here);
    }
}

/// The low half of a peer is a row of the process table, which leaves this bit free.
const BUSY: u64 = 1 << 31;
const _: () = assert!(PROCESSES_MAX < BUSY as usize);

// SAFETY: a value is shared by the threads of the process that owns its cell, and made and dropped by
// whoever has the cell's lock.
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
        Self { cells: (0..PROCESSES_MAX).map(|_| Cell::new()).collect() }
    }

    /// The value of the process that this runs in, which `make` makes if it has none.
    ///
    /// # Errors
    /// [`CallError::NotAttached`] outside of a region; [`Status::Restarting`] while another thread of
    /// the process is making it, or somebody drops that of the former process in its place: try again.
    pub fn own(&self, make: impl FnOnce() -> T) -> Result<&T, CallError> {
        self.of(Cx::peer(Cx::pid())?, make)
    }

    fn of(&self, peer: Peer, make: impl FnOnce() -> T) -> Result<&T, CallError> {
        let own = peer.to_raw();
        let refused = CallError::Refused;
        let cell = self.cells.get(own as u32 as usize).ok_or(refused(Status::Gone))?;
        if cell.owner.load(Ordering::Acquire) != own {
            let locked = cell.lock().ok_or(refused(Status::Restarting))?;
            // Another thread may have made it meanwhile.
            if locked.owner() != own {
                // SAFETY: that of a process that has ended, as this one has its row now; or one that
                // a thread of this process did not come to the end of making.
                unsafe { locked.empty() };
                locked.fill(own, make);
            }
        }
        // SAFETY: made by this process, and dropped only after its end.
        Ok(unsafe { &*cell.value.get().cast::<T>() })
    }

    /// Drop the values of processes that have ended; how many there were.
    pub fn free(&self) -> usize {
        self.free_but(Cx::is_live)
    }

    fn free_but(&self, is_live: impl Fn(Peer) -> bool) -> usize {
        let is_ended = |owner| owner != 0 && owner & BUSY == 0 && !is_live(Peer::from_raw(owner));
        let ended = |cell: &&Cell<T>| {
            if !is_ended(cell.owner.load(Ordering::Relaxed)) {
                return false;
            }
            let Some(locked) = cell.lock() else { return false };
            // Another process may have come in its place meanwhile.
            let found = is_ended(locked.owner());
            if found {
                // SAFETY: its process has ended.
                unsafe { locked.empty() };
            }
            found
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
    use std::sync::{Arc, Barrier};

    use super::Grant;
    use crate::post::Peer;
    use crate::sync::{AtomicU64, Ordering};

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
        assert_eq!(grant.free_but(|_| false), 0);
        assert_eq!(grant.of(peer(1, 1), || 3).copied().ok(), Some(3));
        assert_eq!(grant.of(peer(1, 2), || 4).copied().ok(), Some(4));
    }

    /// Runs its function when it is dropped.
    struct AtEnd<F: Fn()>(F);

    impl<F: Fn()> Drop for AtEnd<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    #[test]
    fn nobody_takes_the_cell_of_one_whose_value_is_being_dropped() {
        let (begun, end) = (&Barrier::new(2), &Barrier::new(2));
        let grant = Grant::new();
        let value = |number: u64| {
            let wait = move || {
                if number == 1 {
                    begun.wait();
                    end.wait();
                }
            };
            (number, AtEnd(wait))
        };
        let own = |generation| grant.of(peer(1, generation), || value(generation)).map(|own| own.0);
        assert_eq!(own(1).ok(), Some(1));
        std::thread::scope(|scope| {
            let freed = scope.spawn(|| grant.free_but(|_| false));
            begun.wait();
            let early = own(2);
            end.wait();
            assert_eq!(freed.join().expect("no panic"), 1);
            assert!(early.is_err());
        });
        assert_eq!(own(2).ok(), Some(2));
        // And it is the owner's still.
        assert_eq!(grant.of(peer(1, 2), || value(9)).map(|own| own.0).ok(), Some(2));
    }

    #[test]
    fn a_value_that_fails_when_it_is_dropped_is_not_dropped_again() {
        let drops = AtomicU64::new(0);
        let end = || assert!(drops.fetch_add(1, Ordering::Relaxed) > 0, "on purpose");
        let grant = Grant::new();
        assert!(grant.of(peer(1, 1), || AtEnd(end)).is_ok());
        let freed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            grant.free_but(|_| false);
        }));
        assert!(freed.is_err());
        assert!(grant.of(peer(1, 2), || AtEnd(end)).is_ok());
        drop(grant);
        assert_eq!(drops.load(Ordering::Relaxed), 2);
    }
}
