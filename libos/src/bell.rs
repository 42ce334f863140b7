//! Who is told of an event: nobody if a thread of the target is looking anyway, the one that sleeps
//! otherwise, and whoever leaves libos next in any case.
//!
//! The poster puts the event in and then looks who waits; the waiter says that it waits and then
//! looks for events. In between each of them passes a fence, by an exchange that it makes anyway: whoever
//! comes second sees what the first one did before.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence_after_exchange};

/// The bell of one mailbox. All zeros is a bell that nobody waits for.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Bell {
    /// Not 0: there may be events. The gate looks at it on its way out.
    pub pending: AtomicU32,
    /// Changes with each ring: what sleepers sleep on.
    pub word: AtomicU32,
    sleepers: AtomicU32,
    spinners: AtomicU32,
    signalled: AtomicU32,
    /// The thread that began to look last.
    spinner: AtomicU32,
}

/// Whom the poster has to wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Nobody sleeps: the event is found by who runs.
    Nobody,
    /// A sleeper on [`Bell::word`].
    Sleeper,
    /// Somebody looks at the mailbox all the time.
    Spinner,
}

impl Bell {
    /// An event has been put in, by an exchange.
    #[inline]
    pub fn ring(&self) -> Wake {
        fence_after_exchange();
        self.pending.store(1, Ordering::Release);
        // One of them first: who looks may have jumped out of that, which nobody says.
        if self.sleepers.load(Ordering::Relaxed) != 0 {
            self.word.fetch_add(1, Ordering::Release);
            return Wake::Sleeper;
        }
        if self.spinners.load(Ordering::Relaxed) != 0 { Wake::Spinner } else { Wake::Nobody }
    }

    /// What has been said so far is seen by every poster whose event the caller does not see now.
    /// True if there may be events.
    pub fn answer(&self) -> bool {
        self.pending.swap(0, Ordering::AcqRel) != 0
    }

    /// The caller has the turn, and takes what there is until [`Bell::leave`], and looks once more behind that. One that
    /// it has seen it may have taken before.
    #[inline]
    pub fn begin(&self) {
        self.pending.store(0, Ordering::Relaxed);
    }

    /// Give `turn` back. True if there may be events again: what is put in from now on is seen by its
    /// poster not to be the caller's any more.
    #[inline]
    pub fn leave(&self, turn: &AtomicU64) -> bool {
        turn.swap(0, Ordering::AcqRel);
        fence_after_exchange();
        self.pending.load(Ordering::Relaxed) != 0
    }

    /// Thread `tid` begins to look at the mailbox all the time.
    pub fn begin_to_spin(&self, tid: u32) {
        self.spinner.store(tid, Ordering::Relaxed);
        self.spinners.fetch_add(1, Ordering::Relaxed);
    }

    /// The thread that began to look last. It may have ended since.
    pub fn spinner(&self) -> u32 {
        self.spinner.load(Ordering::Relaxed)
    }

    /// It does so no longer, and looks for the last time.
    pub fn end_to_spin(&self) {
        self.spinners.fetch_sub(1, Ordering::Relaxed);
        fence_after_exchange();
    }

    /// A thread is about to sleep: what [`Bell::word`] must be still when it does. It looks for
    /// events once more before.
    pub fn lie_down(&self) -> u32 {
        let seen = self.word.load(Ordering::Acquire);
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        fence_after_exchange();
        seen
    }

    /// It is awake.
    pub fn get_up(&self) {
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Is the caller the one to send a signal, since none is on its way?
    pub fn may_signal(&self) -> bool {
        self.signalled.swap(1, Ordering::AcqRel) == 0
    }

    /// Is one on its way?
    pub fn is_signalled(&self) -> bool {
        self.signalled.load(Ordering::Acquire) != 0
    }

    /// The signal has come.
    pub fn signal_came(&self) {
        self.signalled.store(0, Ordering::Release);
    }

    /// Does any thread sleep on it or look at it?
    pub fn has_waiter(&self) -> bool {
        self.sleepers.load(Ordering::Relaxed) + self.spinners.load(Ordering::Relaxed) != 0
    }

    /// As new: the process that had it has ended.
    pub fn reset(&self) {
        for word in [&self.pending, &self.sleepers, &self.spinners, &self.signalled] {
            word.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::{Bell, Wake};
    use crate::sync::{AtomicU64, Ordering::AcqRel, Ordering::Relaxed};
    use loom::sync::Arc;

    /// A mailbox that holds one event.
    type Mail = AtomicU64;

    #[test]
    fn loom_no_sleeper_misses_an_event() {
        loom::model(|| {
            let shared = Arc::new((Bell::default(), Mail::new(0)));
            let other = shared.clone();
            let poster = loom::thread::spawn(move || {
                other.1.swap(1, AcqRel);
                other.0.ring()
            });
            let (bell, mail) = (&shared.0, &shared.1);
            let seen = bell.lie_down();
            let sleeps = mail.load(Relaxed) == 0;
            let told = poster.join().expect("no panic");
            // The kernel compares the word before it lets anybody sleep.
            let woken = told == Wake::Sleeper && bell.word.load(Relaxed) != seen;
            assert!(!sleeps || woken);
        });
    }

    #[test]
    fn loom_no_spinner_leaves_an_event_behind() {
        loom::model(|| {
            let shared = Arc::new((Bell::default(), Mail::new(0)));
            shared.0.begin_to_spin(1);
            let other = shared.clone();
            let poster = loom::thread::spawn(move || {
                other.1.swap(1, AcqRel);
                other.0.ring()
            });
            let (bell, mail) = (&shared.0, &shared.1);
            bell.end_to_spin();
            let found = mail.load(Relaxed) == 1;
            let told = poster.join().expect("no panic");
            assert!(found || (told == Wake::Nobody && bell.pending.load(Relaxed) == 1));
        });
    }

    #[test]
    fn loom_who_takes_what_it_has_seen_before_it_begins_leaves_nothing_behind() {
        loom::model(|| {
            // One event is in, and seen; another comes.
            let shared = Arc::new((Bell::default(), Mail::new(1), AtomicU64::new(1)));
            let other = shared.clone();
            let poster = loom::thread::spawn(move || {
                other.1.fetch_add(1, AcqRel);
                other.0.ring();
            });
            let (bell, mail, turn) = (&shared.0, &shared.1, &shared.2);
            let taken = mail.swap(0, AcqRel);
            bell.begin();
            let found = bell.leave(turn) || mail.load(Relaxed) != 0;
            poster.join().expect("no panic");
            assert!(taken == 2 || found || bell.pending.load(Relaxed) == 1);
        });
    }

    #[test]
    fn loom_an_event_is_seen_by_who_has_the_turn_or_by_its_poster() {
        loom::model(|| {
            let shared = Arc::new((Bell::default(), Mail::new(0), AtomicU64::new(1)));
            let other = shared.clone();
            let poster = loom::thread::spawn(move || {
                other.1.swap(1, AcqRel);
                other.0.ring();
                // A signal's handler that finds the turn taken leaves the event to its holder.
                other.2.load(Relaxed) == 0
            });
            let (bell, mail, turn) = (&shared.0, &shared.1, &shared.2);
            let found = bell.leave(turn) || mail.load(Relaxed) == 1;
            assert!(poster.join().expect("no panic") || found);
        });
    }
}
