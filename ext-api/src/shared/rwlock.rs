//! A value that many read or one changes.
#![expect(unsafe_code, reason = "hands out references to what the lock guards")]

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

use super::mutex::LockError;
use super::turns::{Kept, Turns};
use crate::runtime::{Here, World};

/// A reader-writer lock between upcalls of all processes. Whoever dies while it reads or waits is
/// forgotten; a writer that dies with the value leaves it [`LockError::Broken`].
#[derive(Debug)]
pub struct RwLock<T> {
    turns: Turns,
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
        Self { turns: Turns::new(), value: UnsafeCell::new(value) }
    }

    /// Wait for shared access, at most a second.
    ///
    /// # Errors
    /// [`LockError`].
    #[inline]
    pub fn read(&self) -> Result<ReadGuard<'_, T>, LockError> {
        let place = self.turns.read(&Here).map_err(error)?;
        Ok(ReadGuard { lock: self, place })
    }

    /// Wait for exclusive access, at most a second.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn write(&self) -> Result<WriteGuard<'_, T>, LockError> {
        self.turns.write(&Here).map_err(error)?;
        Ok(WriteGuard { lock: self })
    }

    /// Rebuild a broken value; a whole one is handed over just the same.
    ///
    /// # Errors
    /// [`LockError::TimedOut`].
    pub fn recover<R>(&self, rebuild: impl FnOnce(&mut T) -> R) -> Result<R, LockError> {
        self.turns.recover(&Here).map_err(error)?;
        let mut guard = WriteGuard { lock: self };
        let result = rebuild(&mut guard);
        self.turns.mend();
        Ok(result)
    }
}

fn error(kept: Kept) -> LockError {
    match kept {
        Kept::Broken { pid } => LockError::Broken { pid },
        Kept::Held(owner) => {
            let (pid, tid) = Here.ids(owner);
            LockError::TimedOut { pid, tid }
        }
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
        self.lock.turns.leave(self.place);
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
            self.lock.turns.break_as(&Here, Here.owner());
        }
        self.lock.turns.end_write(&Here);
    }
}
