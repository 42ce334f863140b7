//! The lock under all others: one word that names its holder.
//!
//! A holder that has died is replaced by the next taker, who is told. Waiting is bounded: a moment
//! of spinning, then sleeps that end often enough to look whether the holder still lives.

use crate::runtime::{Owner, World};
use crate::sync::{AtomicU64, Ordering};

/// Set while somebody sleeps.
const WAITED_FOR: u64 = 1 << 63;
const SPINS: u32 = 100;
/// Longest wait when nobody says otherwise, in nanoseconds.
pub(crate) const WAIT_MAX_NS: u64 = 1_000_000_000;

/// A lock that knows its holder.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Lock(AtomicU64);

/// How a lock was had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It was free.
    Free,
    /// From this one, who died with it.
    FromDead(Owner),
}

/// Who has the lock all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held(pub(crate) Owner);

impl Lock {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Take it, waiting at most `wait_ns`.
    #[inline]
    pub(crate) fn take(&self, world: &impl World, wait_ns: u64) -> Result<Taken, Held> {
        let own = world.owner();
        match self.0.compare_exchange(0, own, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(Taken::Free),
            Err(_) => self.take_slowly(world, own, wait_ns),
        }
    }

    #[cold]
    fn take_slowly(&self, world: &impl World, own: Owner, wait_ns: u64) -> Result<Taken, Held> {
        let mut start = None;
        let mut spins = 0;
        loop {
            let seen = self.0.load(Ordering::Relaxed);
            let holder = seen & !WAITED_FOR;
            let dead = holder != 0 && spins >= SPINS && !world.is_alive(holder);
            if holder == 0 || dead {
                // Sleepers are still there if the bit is set, and whoever frees the lock wakes them.
                let own = own | seen & WAITED_FOR;
                let got = self.0.compare_exchange(seen, own, Ordering::Acquire, Ordering::Relaxed);
                if got.is_ok() {
                    return Ok(if dead { Taken::FromDead(holder) } else { Taken::Free });
                }
                continue;
            }
            spins += 1;
            if spins < SPINS {
                pause();
                continue;
            }
            let now = world.now_ns();
            if now - *start.get_or_insert(now) > wait_ns {
                return Err(Held(holder));
            }
            let waited_for = seen | WAITED_FOR;
            let told = seen == waited_for
                || self
                    .0
                    .compare_exchange(seen, waited_for, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            if told {
                world.wait(&self.0, waited_for);
            }
        }
    }

    /// Give it back.
    #[inline]
    pub(crate) fn free(&self, world: &impl World) {
        if self.0.swap(0, Ordering::Release) & WAITED_FOR != 0 {
            world.wake(&self.0);
        }
    }

    /// Who holds it, or 0.
    #[inline]
    pub(crate) fn holder(&self) -> Owner {
        self.0.load(Ordering::SeqCst) & !WAITED_FOR
    }
}

pub(crate) fn pause() {
    #[cfg(not(loom))]
    core::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}

#[cfg(all(test, loom))]
pub(crate) mod models {
    use std::sync::Arc;

    use super::{Lock, Taken};
    use crate::runtime::{Owner, World};
    use crate::sync::{AtomicU64, Ordering};

    /// Owner `own`; 9 is dead.
    pub(crate) struct Model {
        pub(crate) own: Owner,
    }

    impl World for Model {
        fn owner(&self) -> Owner {
            self.own
        }
        fn is_alive(&self, owner: Owner) -> bool {
            owner != 9
        }
        fn wait(&self, _: &AtomicU64, _: u64) {
            loom::thread::yield_now();
        }
        fn wake(&self, _: &AtomicU64) {}
        fn now_ns(&self) -> u64 {
            0
        }
        fn ids(&self, _: Owner) -> (u32, u32) {
            (0, 0)
        }
    }

    pub(crate) fn bounded(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.max_branches = 100_000;
        builder.check(model);
    }

    fn add(lock: &Lock, value: &AtomicU64, own: Owner) -> Taken {
        let world = Model { own };
        let taken = lock.take(&world, u64::MAX).expect("it waits for ever");
        let seen = value.load(Ordering::Relaxed);
        value.store(seen + 1, Ordering::Relaxed);
        lock.free(&world);
        taken
    }

    #[test]
    fn loom_two_never_hold_it_at_once() {
        bounded(|| {
            let shared = Arc::new((Lock::new(), AtomicU64::new(0)));
            let other = shared.clone();
            let thread = loom::thread::spawn(move || add(&other.0, &other.1, 1));
            add(&shared.0, &shared.1, 2);
            thread.join().unwrap();
            assert_eq!(shared.1.load(Ordering::Relaxed), 2);
        });
    }

    #[test]
    fn loom_one_of_two_takes_it_from_the_dead() {
        bounded(|| {
            let lock = Lock::new();
            lock.take(&Model { own: 9 }, 0).expect("it is free");
            let shared = Arc::new((lock, AtomicU64::new(0)));
            let other = shared.clone();
            let thread = loom::thread::spawn(move || add(&other.0, &other.1, 1));
            let ours = add(&shared.0, &shared.1, 2);
            let theirs = thread.join().unwrap();
            assert_eq!(shared.1.load(Ordering::Relaxed), 2);
            let from_dead = [ours, theirs].iter().filter(|&&t| t == Taken::FromDead(9)).count();
            assert_eq!(from_dead, 1);
        });
    }
}
