//! Who may come to a value: many readers or one writer, each known by name.
//!
//! A reader puts its name down, then looks whether anybody has the writers' lock; a writer takes that
//! lock, then waits until no name of a living reader is left. Readers that find the lock taken queue
//! behind it, so that whoever dies with the lock need not have been a writer: the value is broken
//! only if `changing` says that the dead one had come to it.

use super::lock::{Lock, WAIT_MAX_NS, pause};
use crate::runtime::{Owner, World};
use crate::sync::{AtomicU64, Ordering, fence};

/// Readers at one time; more wait.
const READERS_MAX: usize = if cfg!(loom) { 2 } else { 32 };
/// How often a writer looks at a reader between two looks whether that lives still.
const LOOKS: u32 = if cfg!(loom) { 2 } else { 256 };

/// Why nobody is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// By a writer of this process, who left the value half changed.
    Broken { pid: u32 },
    /// By this one, all the time.
    Held(Owner),
}

/// The turns of readers and writers.
#[derive(Debug)]
pub(crate) struct Turns {
    writer: Lock,
    /// The writer that may be changing the value, or 0. It has the lock, or died with it.
    changing: AtomicU64,
    /// Pid of the writer that broke the value, plus one; 0 while it is whole.
    broken: AtomicU64,
    readers: [AtomicU64; READERS_MAX],
}

impl Turns {
    pub(crate) fn new() -> Self {
        Self {
            writer: Lock::new(),
            changing: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            readers: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Become a reader, after at most a second. The place to give back.
    #[inline]
    pub(crate) fn read(&self, world: &impl World) -> Result<usize, Kept> {
        let own = world.owner();
        if let Some(place) = self.read_at_once(own) {
            return Ok(place);
        }
        // Behind the writer, or too many readers: take turns with the writers.
        let turn = self.turn(world)?;
        self.whole()?;
        let place = self.enter(world, own)?;
        drop(turn);
        Ok(place)
    }

    #[inline]
    fn read_at_once(&self, own: Owner) -> Option<usize> {
        let (taken, kept) = (Ordering::SeqCst, Ordering::Relaxed);
        let from = own as usize;
        let free =
            |place: &usize| self.readers[*place].compare_exchange(0, own, taken, kept).is_ok();
        let place = (from..from + READERS_MAX).map(|at| at % READERS_MAX).find(free)?;
        // Loom takes sequentially consistent accesses for weaker ones, but knows fences.
        #[cfg(loom)]
        fence(Ordering::SeqCst);
        // Our name is down before we look for a writer; a writer's before it looks for us.
        if self.writer.holder() == 0 && self.broken.load(Ordering::Relaxed) == 0 {
            return Some(place);
        }
        self.leave(place);
        None
    }

    /// A reader has left its place.
    #[inline]
    pub(crate) fn leave(&self, place: usize) {
        self.readers[place].store(0, Ordering::Release);
    }

    /// Become the writer of a whole value, after at most a second.
    pub(crate) fn write(&self, world: &impl World) -> Result<(), Kept> {
        self.write_if(world, || self.whole())
    }

    /// Become the writer, whatever the value is like. It is whole when [`Turns::mend`] says so.
    pub(crate) fn recover(&self, world: &impl World) -> Result<(), Kept> {
        self.write_if(world, || Ok(()))
    }

    fn write_if(
        &self,
        world: &impl World,
        may: impl FnOnce() -> Result<(), Kept>,
    ) -> Result<(), Kept> {
        let turn = self.turn(world)?;
        may()?;
        self.wait_for_readers(world)?;
        self.changing.store(world.owner(), Ordering::Relaxed);
        // What is changed is changed after that, whoever is killed in between.
        fence(Ordering::Release);
        core::mem::forget(turn);
        Ok(())
    }

    /// The writer has left the value whole, unless it has said otherwise.
    pub(crate) fn end_write(&self, world: &impl World) {
        self.changing.store(0, Ordering::Release);
        self.writer.free(world);
    }

    /// Say that `owner` has left the value half changed.
    pub(crate) fn break_as(&self, world: &impl World, owner: Owner) {
        self.broken.store(u64::from(world.ids(owner).0) + 1, Ordering::Relaxed);
    }

    /// Say that the caller, the writer, has made the value whole.
    pub(crate) fn mend(&self) {
        self.broken.store(0, Ordering::Relaxed);
    }

    fn whole(&self) -> Result<(), Kept> {
        match self.broken.load(Ordering::Relaxed) {
            0 => Ok(()),
            pid => Err(Kept::Broken { pid: pid as u32 - 1 }),
        }
    }

    /// The writers' lock; readers that find it taken wait for it as well.
    fn turn<'a, W: World>(&'a self, world: &'a W) -> Result<Turn<'a, W>, Kept> {
        self.writer.take(world, WAIT_MAX_NS).map_err(|held| Kept::Held(held.0))?;
        let died = self.changing.load(Ordering::Relaxed);
        if died != 0 {
            self.break_as(world, died);
            self.changing.store(0, Ordering::Relaxed);
        }
        Ok(Turn { lock: &self.writer, world })
    }

    /// Put our name down as a reader while no writer can be there.
    fn enter(&self, world: &impl World, own: Owner) -> Result<usize, Kept> {
        let start = world.now_ns();
        loop {
            if let Some(place) = (0..READERS_MAX).find(|&place| self.take_place(world, place, own))
            {
                return Ok(place);
            }
            if world.now_ns() - start > WAIT_MAX_NS {
                return Err(Kept::Held(self.readers[0].load(Ordering::Relaxed)));
            }
            pause();
        }
    }

    /// Take a reader's place that is free, or a dead one's.
    fn take_place(&self, world: &impl World, place: usize, own: Owner) -> bool {
        let place = &self.readers[place];
        let seen = place.load(Ordering::Relaxed);
        (seen == 0 || !world.is_alive(seen))
            && place.compare_exchange(seen, own, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    fn wait_for_readers(&self, world: &impl World) -> Result<(), Kept> {
        // The lock was not taken in the one order that the readers' accesses keep; now it is: who
        // is not seen here sees us.
        fence(Ordering::SeqCst);
        let start = world.now_ns();
        self.readers.iter().try_for_each(|reader| wait_for(world, reader, start))
    }
}

/// Wait until nobody alive has this place.
fn wait_for(world: &impl World, reader: &AtomicU64, start: u64) -> Result<(), Kept> {
    let mut looks = 0u32;
    loop {
        let seen = reader.load(Ordering::SeqCst);
        if seen == 0 {
            return Ok(());
        }
        looks += 1;
        if looks.is_multiple_of(LOOKS) {
            if !world.is_alive(seen) {
                let _ = reader.compare_exchange(seen, 0, Ordering::SeqCst, Ordering::Relaxed);
            } else if world.now_ns() - start > WAIT_MAX_NS {
                return Err(Kept::Held(seen));
            } else {
                world.wait(reader, seen);
            }
        }
        pause();
    }
}

/// Frees the writers' lock.
struct Turn<'a, W: World> {
    lock: &'a Lock,
    world: &'a W,
}

impl<W: World> Drop for Turn<'_, W> {
    fn drop(&mut self) {
        self.lock.free(self.world);
    }
}

#[cfg(all(test, loom))]
mod models {
    use std::sync::Arc;

    use loom::cell::UnsafeCell;

    use super::{Kept, Turns};
    use crate::lock::models::{Model, bounded};

    const DEAD: Model = Model { own: 9 };

    /// Loom sees who comes to the cell, and fails if a writer is not alone.
    struct Shared(Turns, UnsafeCell<u64>);

    #[expect(unsafe_code, reason = "loom's cell leaves it to its owner")]
    // SAFETY: what the model is about; loom says if two come to the cell at once.
    unsafe impl Sync for Shared {}

    impl Shared {
        fn read(&self, own: u64) -> Result<(), Kept> {
            let place = self.0.read(&Model { own })?;
            self.1.with(|_| ());
            self.0.leave(place);
            Ok(())
        }

        fn write(&self, own: u64) -> Result<(), Kept> {
            self.0.write(&Model { own })?;
            self.1.with_mut(|_| ());
            self.0.end_write(&Model { own });
            Ok(())
        }
    }

    /// Two at once, where somebody has died.
    fn two(
        died: impl Fn(&Turns) + Sync + Send + 'static,
        one: impl Fn(&Shared) -> Result<(), Kept> + Copy + Sync + Send + 'static,
        other: impl Fn(&Shared) -> Result<(), Kept> + Sync + Send + 'static,
        outcome: Result<(), Kept>,
    ) {
        bounded(move || {
            let turns = Turns::new();
            died(&turns);
            let shared = Arc::new(Shared(turns, UnsafeCell::new(0)));
            let theirs = shared.clone();
            let thread = loom::thread::spawn(move || one(&theirs));
            assert_eq!(other(&shared), outcome);
            assert_eq!(thread.join().expect("it ends"), outcome);
        });
    }

    #[test]
    fn loom_a_writer_is_alone() {
        two(|_| (), |shared| shared.read(1), |shared| shared.write(2), Ok(()));
        two(|_| (), |shared| shared.write(1), |shared| shared.write(2), Ok(()));
    }

    #[test]
    fn loom_a_dead_reader_is_forgotten() {
        let died = |turns: &Turns| assert!(turns.read(&DEAD).is_ok());
        two(died, |shared| shared.read(1), |shared| shared.write(2), Ok(()));
    }

    #[test]
    fn loom_who_only_waited_for_its_turn_breaks_nothing() {
        let died = |turns: &Turns| core::mem::forget(turns.turn(&DEAD).ok().expect("it is free"));
        two(died, |shared| shared.read(1), |shared| shared.write(2), Ok(()));
        two(died, |shared| shared.write(1), |shared| shared.write(2), Ok(()));
    }

    #[test]
    fn loom_a_writer_that_died_with_the_value_broke_it_for_all() {
        let died = |turns: &Turns| turns.write(&DEAD).expect("it is free");
        let broken = Err(Kept::Broken { pid: 0 });
        two(died, |shared| shared.read(1), |shared| shared.write(2), broken);
    }

    #[test]
    fn loom_what_was_recovered_is_whole() {
        bounded(|| {
            let shared = Shared(Turns::new(), UnsafeCell::new(0));
            shared.0.write(&DEAD).expect("it is free");
            shared.0.recover(&Model { own: 1 }).expect("its writer is dead");
            shared.0.mend();
            shared.0.end_write(&Model { own: 1 });
            assert_eq!((shared.read(1), shared.write(2)), (Ok(()), Ok(())));
        });
    }
}
