//! Many readers or one writer, each known by name.
#![expect(unsafe_code, reason = "hands out references to what the lock guards")]

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

use super::lock::{Lock, Taken, WAIT_MAX_NS};
use super::mutex::LockError;
use crate::runtime::{Here, World};
use crate::sync::{AtomicU64, Ordering};

/// Readers at one time; more wait.
const READERS_MAX: usize = 32;

/// A reader-writer lock between upcalls of all processes. A dead reader is forgotten; a dead
/// writer leaves the value [`LockError::Broken`].
#[derive(Debug)]
pub struct RwLock<T> {
    writer: Lock,
    broken: AtomicU64,
    readers: [AtomicU64; READERS_MAX],
    value: UnsafeCell<T>,
}

// SAFETY: readers share the value, a writer has it alone.
unsafe impl<T: Send + Sync> Sync for RwLock<T> {}
// SAFETY: as the value itself.
unsafe impl<T: Send> Send for RwLock<T> {}

/// Shared access.
#[derive(Debug)]
pub struct ReadGuard<'a, T> {
    lock: &'a RwLock<T>,
    place: usize,
}

/// Exclusive access.
#[derive(Debug)]
pub struct WriteGuard<'a, T> {
    lock: &'a RwLock<T>,
}

impl<T> RwLock<T> {
    /// A lock around `value`.
    pub fn new(value: T) -> Self {
        Self {
            writer: Lock::new(),
            broken: AtomicU64::new(0),
            readers: [const { AtomicU64::new(0) }; READERS_MAX],
            value: UnsafeCell::new(value),
        }
    }

    /// Wait for shared access, at most a second.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn read(&self) -> Result<ReadGuard<'_, T>, LockError> {
        let own = Here.owner();
        for turn in 0..READERS_MAX {
            let place = (own as usize + turn) % READERS_MAX;
            let free =
                self.readers[place].compare_exchange(0, own, Ordering::SeqCst, Ordering::Relaxed);
            if free.is_err() {
                continue;
            }
            // Our name is down before we look for a writer; a writer's before it looks for us.
            if self.writer.holder() == 0 && self.broken.load(Ordering::Relaxed) == 0 {
                return Ok(ReadGuard { lock: self, place });
            }
            self.readers[place].store(0, Ordering::Release);
            break;
        }
        // Behind the writer, or too many readers: take turns with the writers.
        let guard = self.write_turn()?;
        self.whole()?;
        let place = self.enter(own)?;
        drop(guard);
        Ok(ReadGuard { lock: self, place })
    }

    /// Wait for exclusive access, at most a second.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn write(&self) -> Result<WriteGuard<'_, T>, LockError> {
        let turn = self.write_turn()?;
        self.whole()?;
        self.wait_for_readers()?;
        core::mem::forget(turn);
        Ok(WriteGuard { lock: self })
    }

    /// Rebuild a broken value; a whole one is handed over just the same.
    ///
    /// # Errors
    /// [`LockError::TimedOut`].
    pub fn recover<R>(&self, rebuild: impl FnOnce(&mut T) -> R) -> Result<R, LockError> {
        let turn = self.write_turn()?;
        self.wait_for_readers()?;
        core::mem::forget(turn);
        let mut guard = WriteGuard { lock: self };
        let result = rebuild(&mut guard);
        self.broken.store(0, Ordering::Relaxed);
        Ok(result)
    }

    fn whole(&self) -> Result<(), LockError> {
        match self.broken.load(Ordering::Relaxed) {
            0 => Ok(()),
            pid => Err(LockError::Broken { pid: pid as u32 - 1 }),
        }
    }

    /// The writers' lock; readers that find it taken wait for it as well.
    fn write_turn(&self) -> Result<Turn<'_>, LockError> {
        match self.writer.take(&Here, WAIT_MAX_NS) {
            Ok(taken) => {
                if let Taken::FromDead(owner) = taken {
                    self.broken.store(u64::from(Here.ids(owner).0) + 1, Ordering::Relaxed);
                }
                Ok(Turn(&self.writer))
            }
            Err(held) => Err(timed_out(held.0)),
        }
    }

    /// Put our name down as a reader while no writer can be there.
    fn enter(&self, own: u64) -> Result<usize, LockError> {
        let start = Here.now_ns();
        loop {
            for place in 0..READERS_MAX {
                let seen = self.readers[place].load(Ordering::Relaxed);
                let free = seen == 0 || !Here.is_alive(seen);
                let taken = free
                    && self.readers[place]
                        .compare_exchange(seen, own, Ordering::SeqCst, Ordering::Relaxed)
                        .is_ok();
                if taken {
                    return Ok(place);
                }
            }
            if Here.now_ns() - start > WAIT_MAX_NS {
                return Err(timed_out(self.readers[0].load(Ordering::Relaxed)));
            }
            core::hint::spin_loop();
        }
    }

    fn wait_for_readers(&self) -> Result<(), LockError> {
        let start = Here.now_ns();
        for reader in &self.readers {
            let mut spins = 0u32;
            loop {
                let seen = reader.load(Ordering::SeqCst);
                if seen == 0 {
                    break;
                }
                spins += 1;
                if spins.is_multiple_of(256) {
                    if !Here.is_alive(seen) {
                        let _ =
                            reader.compare_exchange(seen, 0, Ordering::SeqCst, Ordering::Relaxed);
                    } else if Here.now_ns() - start > WAIT_MAX_NS {
                        return Err(timed_out(seen));
                    } else {
                        Here.wait(reader, seen);
                    }
                }
                core::hint::spin_loop();
            }
        }
        Ok(())
    }
}

fn timed_out(owner: u64) -> LockError {
    let (pid, tid) = Here.ids(owner);
    LockError::TimedOut { pid, tid }
}

/// Frees the writers' lock.
struct Turn<'a>(&'a Lock);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.free(&Here);
    }
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: our name is among the readers, so that no writer has the value.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.readers[self.place].store(0, Ordering::Release);
    }
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: this upcall holds the writers' lock, and all readers have left.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (pid, _) = Here.ids(Here.owner());
            self.lock.broken.store(u64::from(pid) + 1, Ordering::Relaxed);
        }
        self.lock.writer.free(&Here);
    }
}
