//! A bounded ring of items between two ends, each with a lock: what the queue is made of.
//!
//! Producers and consumers wait for their own kind only. Each end lies in lines of the cache of its own, with what its
//! side last saw of the other: who pushes looks at the consumers' end once the ring looks full, and who pops at the
//! producers' once it looks empty.
#![expect(unsafe_code, reason = "moves items through uninitialised cells")]

use core::mem::{MaybeUninit, replace};

use super::lock::{Held, Lock, WAIT_MAX_NS};
use crate::runtime::World;
use crate::sync::{AtomicU64, Ordering, UnsafeCell};

/// First in, first out, for items that can be copied.
#[derive(Debug)]
pub(crate) struct Fifo<T> {
    /// Where producers put the next item.
    tail: End,
    /// Where consumers take the next item from.
    head: End,
    cells: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

/// One end of a queue.
#[derive(Debug)]
#[repr(align(128))]
struct End {
    lock: Lock,
    /// Only grows. Changed under the lock.
    position: AtomicU64,
    /// Where the other end was. Read and changed under the lock.
    seen: AtomicU64,
}

impl End {
    fn new() -> Self {
        Self { lock: Lock::new(), position: AtomicU64::new(0), seen: AtomicU64::new(0) }
    }

    fn turn<'a, W: World>(&'a self, world: &'a W) -> Result<Turn<'a, W>, Held> {
        // What a dead holder leaves is right as it is.
        self.lock.take(world, WAIT_MAX_NS)?;
        Ok(Turn(&self.lock, world))
    }

    /// Where it is, under its lock.
    fn here(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Where the other end is, at least, under this one's lock.
    fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// The same, by looking there. What is on this side of it has been written, or been read, for good.
    fn look(&self, other: &Self) -> u64 {
        let now = other.position.load(Ordering::Acquire);
        self.seen.store(now, Ordering::Relaxed);
        now
    }

    /// All before `position` is for the other side.
    fn move_to(&self, position: u64) {
        self.position.store(position, Ordering::Release);
    }
}

/// One end's lock, taken.
struct Turn<'a, W: World>(&'a Lock, &'a W);

impl<W: World> Drop for Turn<'_, W> {
    fn drop(&mut self) {
        self.0.free(self.1);
    }
}

// SAFETY: a cell is touched under one end's lock, and is between the ends for that side alone.
unsafe impl<T: Copy + Send> Sync for Fifo<T> {}
// SAFETY: as its items.
unsafe impl<T: Copy + Send> Send for Fifo<T> {}

impl<T: Copy> Fifo<T> {
    /// For `capacity` items, at least one.
    pub(crate) fn new(capacity: usize) -> Self {
        let cells = (0..capacity.max(1)).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
        Self { tail: End::new(), head: End::new(), cells }
    }

    pub(crate) fn len(&self) -> usize {
        let head = self.head.position.load(Ordering::Acquire);
        self.tail.position.load(Ordering::Acquire).saturating_sub(head) as usize
    }

    pub(crate) const fn capacity(&self) -> usize {
        self.cells.len()
    }

    /// Put all of them at the end, or none. False if there is no room.
    pub(crate) fn push(&self, world: &impl World, items: &[T]) -> Result<bool, Held> {
        let _turn = self.tail.turn(world)?;
        let tail = self.tail.here();
        let has_room = |head| tail - head + items.len() as u64 <= self.cells.len() as u64;
        if !has_room(self.tail.seen()) && !has_room(self.tail.look(&self.head)) {
            return Ok(false);
        }
        for (position, item) in (tail..).zip(items) {
            // SAFETY: under the producers' lock, and outside of head..tail, so that nobody else is there.
            self.cell(position).with_mut(|cell| unsafe { cell.cast::<T>().write(*item) });
        }
        self.tail.move_to(tail + items.len() as u64);
        Ok(true)
    }

    /// Take items from the front as long as `then` wants more after each; how many there were.
    pub(crate) fn pop(
        &self,
        world: &impl World,
        mut then: impl FnMut(T) -> bool,
    ) -> Result<usize, Held> {
        let _turn = self.head.turn(world)?;
        let head = self.head.here();
        let (mut position, mut tail) = (head, self.head.seen());
        let mut has_looked = false;
        loop {
            if position == tail && !replace(&mut has_looked, true) {
                tail = self.head.look(&self.tail);
            }
            if position == tail {
                break;
            }
            // SAFETY: within head..tail, so that it was written whole; under the consumers' lock.
            let item = self.cell(position).with(|cell| unsafe { cell.cast::<T>().read() });
            position += 1;
            self.head.move_to(position);
            if !then(item) {
                break;
            }
        }
        Ok((position - head) as usize)
    }

    fn cell(&self, position: u64) -> &UnsafeCell<MaybeUninit<T>> {
        &self.cells[(position % self.cells.len() as u64) as usize]
    }
}

#[cfg(all(test, loom))]
mod models {
    use std::sync::Arc;

    use super::super::lock::models::{Model, bounded};
    use super::*;

    /// Put them in, one after the other.
    fn push(fifo: &Fifo<u64>, own: u64, items: core::ops::Range<u64>) {
        for item in items {
            while !fifo.push(&Model { own }, &[item]).unwrap() {
                loom::thread::yield_now();
            }
        }
    }

    /// Take so many out.
    fn pop(fifo: &Fifo<u64>, own: u64, count: usize) -> Vec<u64> {
        let mut items = Vec::new();
        while items.len() < count {
            let take = |item| {
                items.push(item);
                items.len() < count
            };
            if fifo.pop(&Model { own }, take).unwrap() == 0 {
                loom::thread::yield_now();
            }
        }
        items
    }

    #[test]
    fn loom_what_one_puts_in_the_other_takes_whole_and_in_order() {
        bounded(|| {
            let fifo = Arc::new(Fifo::new(2));
            let other = fifo.clone();
            let thread = loom::thread::spawn(move || push(&other, 1, 0..4));
            assert_eq!(pop(&fifo, 2, 4), [0, 1, 2, 3]);
            thread.join().unwrap();
        });
    }

    #[test]
    fn loom_two_consumers_take_each_item_once() {
        bounded(|| {
            let fifo = Arc::new(Fifo::new(2));
            push(&fifo, 1, 0..2);
            let other = fifo.clone();
            let thread = loom::thread::spawn(move || pop(&other, 1, 1));
            let mut items = pop(&fifo, 2, 1);
            items.extend(thread.join().unwrap());
            items.sort_unstable();
            assert_eq!(items, [0, 1]);
        });
    }

    #[test]
    fn loom_a_producer_that_has_died_with_the_lock_keeps_nobody() {
        bounded(|| {
            let fifo = Arc::new(Fifo::new(1));
            fifo.tail.lock.take(&Model { own: 9 }, 0).expect("it is free");
            let other = fifo.clone();
            let thread = loom::thread::spawn(move || push(&other, 1, 0..2));
            assert_eq!(pop(&fifo, 2, 2), [0, 1]);
            thread.join().unwrap();
        });
    }
}
