//! A bounded queue for many producers and consumers.
#![expect(unsafe_code, reason = "moves items through uninitialised cells")]

use core::cell::UnsafeCell;
use core::fmt;
use core::mem::MaybeUninit;

use super::lock::{Lock, WAIT_MAX_NS};
use super::mutex::LockError;
use crate::runtime::{Here, World};
use crate::sync::{AtomicU64, Ordering};

/// The queue has no room for this item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full<T>(pub T);

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the queue is full")
    }
}

/// First in, first out, for items that can be copied. An item is in the queue from the one store
/// that moves the tail until the one store that moves the head: a killed producer's is there whole
/// or not at all, and a killed consumer's is there still or gone with it.
#[derive(Debug)]
pub struct Queue<T> {
    lock: Lock,
    head: AtomicU64,
    tail: AtomicU64,
    cells: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: cells are touched under the lock only.
unsafe impl<T: Copy + Send> Sync for Queue<T> {}
// SAFETY: as its items.
unsafe impl<T: Copy + Send> Send for Queue<T> {}

impl<T: Copy> Queue<T> {
    /// A queue for `capacity` items, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let cells = (0..capacity.max(1)).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
        Self { lock: Lock::new(), head: AtomicU64::new(0), tail: AtomicU64::new(0), cells }
    }

    /// Items in it.
    #[must_use]
    pub fn len(&self) -> usize {
        let head = self.head.load(Ordering::Acquire);
        self.tail.load(Ordering::Acquire).saturating_sub(head) as usize
    }

    /// Nothing in it?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Items it has room for.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.cells.len()
    }

    /// Put an item at the end.
    ///
    /// # Errors
    /// The lock's, or [`Full`] with the item.
    pub fn push(&self, item: T) -> Result<Result<(), Full<T>>, LockError> {
        let _turn = self.turn()?;
        let (head, tail) = self.ends();
        if tail - head == self.cells.len() as u64 {
            return Ok(Err(Full(item)));
        }
        // SAFETY: under the lock, and outside of head..tail, so that nobody reads it.
        unsafe { self.cell(tail).cast::<T>().write(item) };
        self.tail.store(tail + 1, Ordering::Release);
        Ok(Ok(()))
    }

    /// Put items at the end that belong together: all of them are there, or none. False if there is no room
    /// for them.
    ///
    /// # Errors
    /// The lock's.
    pub fn push_all(&self, items: &[T]) -> Result<bool, LockError> {
        let _turn = self.turn()?;
        let (head, tail) = self.ends();
        if tail - head + items.len() as u64 > self.cells.len() as u64 {
            return Ok(false);
        }
        for (position, item) in (tail..).zip(items) {
            // SAFETY: under the lock, and outside of head..tail, so that nobody reads it.
            unsafe { self.cell(position).cast::<T>().write(*item) };
        }
        self.tail.store(tail + items.len() as u64, Ordering::Release);
        Ok(true)
    }

    /// Take the item at the front.
    ///
    /// # Errors
    /// The lock's.
    pub fn pop(&self) -> Result<Option<T>, LockError> {
        let _turn = self.turn()?;
        let (head, tail) = self.ends();
        if head == tail {
            return Ok(None);
        }
        // SAFETY: within head..tail, so that it was written whole; under the lock.
        let item = unsafe { self.cell(head).cast::<T>().read() };
        self.head.store(head + 1, Ordering::Release);
        Ok(Some(item))
    }

    /// Take up to `count` items from the front, under one lock; how many there were.
    ///
    /// # Errors
    /// The lock's.
    pub fn pop_many(&self, count: usize, mut then: impl FnMut(T)) -> Result<usize, LockError> {
        if count == 0 {
            return Ok(0);
        }
        let mut left = count;
        self.pop_while(|item| {
            left -= 1;
            then(item);
            left != 0
        })
    }

    /// Take items from the front, under one lock, as long as `then` wants more after each; how many there
    /// were.
    ///
    /// # Errors
    /// The lock's.
    pub fn pop_while(&self, mut then: impl FnMut(T) -> bool) -> Result<usize, LockError> {
        let _turn = self.turn()?;
        let (head, tail) = self.ends();
        let mut position = head;
        while position != tail {
            // SAFETY: within head..tail, so that it was written whole; under the lock.
            let item = unsafe { self.cell(position).cast::<T>().read() };
            position += 1;
            self.head.store(position, Ordering::Release);
            if !then(item) {
                break;
            }
        }
        Ok((position - head) as usize)
    }

    fn ends(&self) -> (u64, u64) {
        (self.head.load(Ordering::Relaxed), self.tail.load(Ordering::Relaxed))
    }

    fn cell(&self, position: u64) -> *mut MaybeUninit<T> {
        self.cells[(position % self.cells.len() as u64) as usize].get()
    }

    fn turn(&self) -> Result<Turn<'_>, LockError> {
        // What a dead holder leaves is right as it is.
        match self.lock.take(&Here, WAIT_MAX_NS) {
            Ok(_) => Ok(Turn(&self.lock)),
            Err(held) => {
                let (pid, tid) = Here.ids(held.0);
                Err(LockError::TimedOut { pid, tid })
            }
        }
    }
}

struct Turn<'a>(&'a Lock);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.free(&Here);
    }
}
