//! A mutex that a dead holder does not wedge.
#![expect(unsafe_code, reason = "hands out references to what the lock guards")]

use core::cell::UnsafeCell;
use core::fmt;
use core::ops::{Deref, DerefMut};

use super::lock::{Lock, Taken, WAIT_MAX_NS};
use crate::runtime::{Here, World};
use crate::sync::{AtomicU64, Ordering};

/// Why a lock was not had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockError {
    /// A holder died, panicked or was stopped while it could change the value, which may be half
    /// changed: nobody gets it until `recover` has rebuilt it.
    Broken {
        /// Process of the holder, if it is known.
        pid: u32,
    },
    /// Somebody held it all the time.
    TimedOut {
        /// Process of the holder.
        pid: u32,
        /// Thread of the holder.
        tid: u32,
    },
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken { pid } => {
                write!(f, "process {pid} died while it held the lock: the value must be recovered")
            }
            Self::TimedOut { pid, tid } => {
                write!(f, "thread {tid} of process {pid} holds the lock and does not let go")
            }
        }
    }
}

impl std::error::Error for LockError {}

/// Mutual exclusion between upcalls of all processes.
#[derive(Debug)]
pub struct Mutex<T> {
    lock: Lock,
    /// Pid of the holder that broke it, plus one; 0 while whole.
    broken: AtomicU64,
    value: UnsafeCell<T>,
}

// SAFETY: the lock gives the value to one upcall at a time.
unsafe impl<T: Send> Sync for Mutex<T> {}
// SAFETY: as the value itself.
unsafe impl<T: Send> Send for Mutex<T> {}

/// The value, for as long as it is held.
#[derive(Debug)]
pub struct Guard<'a, T> {
    mutex: &'a Mutex<T>,
}

impl<T> Mutex<T> {
    /// A mutex around `value`.
    pub fn new(value: T) -> Self {
        Self { lock: Lock::new(), broken: AtomicU64::new(0), value: UnsafeCell::new(value) }
    }

    /// Wait for the value, at most a second.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn lock(&self) -> Result<Guard<'_, T>, LockError> {
        self.lock_within(WAIT_MAX_NS)
    }

    /// Wait for the value, at most `wait_ns` nanoseconds.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn lock_within(&self, wait_ns: u64) -> Result<Guard<'_, T>, LockError> {
        let guard = self.take(wait_ns)?;
        match self.broken.load(Ordering::Relaxed) {
            0 => Ok(guard),
            pid => {
                self.lock.free(&Here);
                core::mem::forget(guard);
                Err(LockError::Broken { pid: pid as u32 - 1 })
            }
        }
    }

    /// Rebuild a broken value; a whole one is handed over just the same.
    ///
    /// # Errors
    /// [`LockError::TimedOut`].
    pub fn recover<R>(&self, rebuild: impl FnOnce(&mut T) -> R) -> Result<R, LockError> {
        let mut guard = self.take(WAIT_MAX_NS)?;
        let result = rebuild(&mut guard);
        self.broken.store(0, Ordering::Relaxed);
        Ok(result)
    }

    /// Take the lock, whatever the value is like.
    fn take(&self, wait_ns: u64) -> Result<Guard<'_, T>, LockError> {
        match self.lock.take(&Here, wait_ns) {
            Ok(taken) => {
                if let Taken::FromDead(owner) = taken {
                    self.broken.store(u64::from(Here.ids(owner).0) + 1, Ordering::Relaxed);
                }
                Ok(Guard { mutex: self })
            }
            Err(held) => {
                let (pid, tid) = Here.ids(held.0);
                Err(LockError::TimedOut { pid, tid })
            }
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: a guard exists only while its upcall holds the lock.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed exclusively.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (pid, _) = Here.ids(Here.owner());
            self.mutex.broken.store(u64::from(pid) + 1, Ordering::Relaxed);
        }
        self.mutex.lock.free(&Here);
    }
}
