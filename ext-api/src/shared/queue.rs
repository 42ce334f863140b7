//! A bounded queue for many producers and consumers.

use core::fmt;

use super::fifo::Fifo;
use super::lock::Held;
use super::mutex::LockError;
use crate::runtime::{Here, World};

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
pub struct Queue<T>(Fifo<T>);

impl<T: Copy> Queue<T> {
    /// A queue for `capacity` items, at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self(Fifo::new(capacity))
    }

    /// Items in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Nothing in it?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Items it has room for.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Put an item at the end.
    ///
    /// # Errors
    /// The lock's, or [`Full`] with the item.
    pub fn push(&self, item: T) -> Result<Result<(), Full<T>>, LockError> {
        Ok(if self.push_all(&[item])? { Ok(()) } else { Err(Full(item)) })
    }

    /// Put items at the end that belong together: all of them are there, or none. False if there is no room
    /// for them.
    ///
    /// # Errors
    /// The lock's.
    pub fn push_all(&self, items: &[T]) -> Result<bool, LockError> {
        self.0.push(&Here, items).map_err(timed_out)
    }

    /// Take the item at the front.
    ///
    /// # Errors
    /// The lock's.
    pub fn pop(&self) -> Result<Option<T>, LockError> {
        let mut taken = None;
        self.pop_while(|item| {
            taken = Some(item);
            false
        })?;
        Ok(taken)
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
    pub fn pop_while(&self, then: impl FnMut(T) -> bool) -> Result<usize, LockError> {
        self.0.pop(&Here, then).map_err(timed_out)
    }
}

/// Somebody has held an end all the time.
fn timed_out(held: Held) -> LockError {
    let (pid, tid) = Here.ids(held.0);
    LockError::TimedOut { pid, tid }
}
