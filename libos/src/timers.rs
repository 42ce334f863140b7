//! The timers of a sandbox, in the data zone: whoever starts one writes it here, and the server looks
//! at it when its time comes.
//!
//! ```text
//!  FREE ── take ──► FILLING ── publish ──► ACTIVE ── cancel, or its last time ──► ENDED ──► FREE
//!                      └── its filler was killed: the next one takes it
//! ```

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use ext_api::abi::{HOW_KIND, HOW_RUNNING};
use ext_api::limits::TIMERS_MAX;

use crate::mailbox::Claimant;

/// What a timer is at the moment; its generation is in the high half of the word.
const FREE: u32 = 0;
const FILLING: u32 = 1;
const ACTIVE: u32 = 2;
const ENDED: u32 = 3;
const PHASE: u64 = 3;

/// All timers.
#[derive(Debug)]
#[repr(C)]
pub struct Timers {
    /// The process that serves them, as a peer; 0 if none does yet.
    pub server: AtomicU64,
    /// Not 0: somebody has started a timer, so that there must be a server.
    pub wanted: AtomicU32,
    /// Bit per timer: the server is to look at it.
    pub changed: [AtomicU64; TIMERS_MAX / 64],
    /// Bit per timer: it is for whoever runs.
    pub running: [AtomicU64; TIMERS_MAX / 64],
    /// The timers.
    pub timers: [Timer; TIMERS_MAX],
}

/// One timer.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Timer {
    state: AtomicU64,
    /// Who fills it; then, of one for whoever runs, who runs its handler.
    pub filler: AtomicU32,
    /// When that began.
    pub began_ns: AtomicU64,
    /// 1 from its post until its handler begins.
    pub queued: AtomicU32,
    /// When it is due next, in monotonic nanoseconds.
    pub due_ns: AtomicU64,
    /// How often it comes again; 0 for once.
    pub period_ns: AtomicU64,
    /// How much later it may come, to be served together with others.
    pub slack_ns: AtomicU64,
    /// Periods that have gone by without the handler.
    pub missed: AtomicU64,
    /// Where its handler is to run: `HOW_*` and the target.
    pub how: AtomicU64,
    /// See `how`.
    pub target: AtomicU64,
    /// The handler.
    pub handle: AtomicU64,
    /// Its words; behind them it is given the periods missed.
    pub words: [AtomicU64; 2],
    /// How many of the words it is given.
    pub word_count: AtomicU32,
}

/// What a timer is to do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// See [`Timer::due_ns`].
    pub due_ns: u64,
    /// See [`Timer::period_ns`].
    pub period_ns: u64,
    /// See [`Timer::slack_ns`].
    pub slack_ns: u64,
    /// See [`Timer::how`].
    pub how: u64,
    /// See [`Timer::target`].
    pub target: u64,
    /// See [`Timer::handle`].
    pub handle: u64,
    /// See [`Timer::words`].
    pub words: [u64; 2],
    /// See [`Timer::word_count`].
    pub word_count: u32,
}

/// Names a timer: its index and generation. Never 0.
pub type TimerId = u64;

impl Timers {
    /// Start a timer; its name. The server is to be told. None: there are as many as there can be.
    pub fn start(
        &self,
        own: Claimant,
        is_alive: impl Fn(Claimant) -> bool,
        plan: &Plan,
    ) -> Option<TimerId> {
        let index = self.take(own, is_alive)?;
        let timer = &self.timers[index];
        for (to, word) in [
            (&timer.due_ns, plan.due_ns),
            (&timer.period_ns, plan.period_ns),
            (&timer.slack_ns, plan.slack_ns),
            (&timer.how, plan.how),
            (&timer.target, plan.target),
            (&timer.handle, plan.handle),
            (&timer.words[0], plan.words[0]),
            (&timer.words[1], plan.words[1]),
        ] {
            to.store(word, Relaxed);
        }
        timer.word_count.store(plan.word_count, Relaxed);
        let bit = 1 << (index % 64);
        let running = &self.running[index / 64];
        if plan.how & HOW_KIND == HOW_RUNNING {
            running.fetch_or(bit, Relaxed);
        } else {
            running.fetch_and(!bit, Relaxed);
        }
        Some(self.publish(index))
    }

    /// A free timer, for `own` to fill; its index.
    fn take(&self, own: Claimant, is_alive: impl Fn(Claimant) -> bool) -> Option<usize> {
        (0..TIMERS_MAX).find(|&index| {
            let timer = &self.timers[index];
            let seen = timer.state.load(Acquire);
            let is_free = match (seen & PHASE) as u32 {
                FREE => true,
                FILLING => !is_alive(timer.filler.load(Relaxed)),
                _ => false,
            };
            // A new life, so that nobody's name of the former one is good for it.
            let new = ((seen >> 32) + 1) << 32 | u64::from(FILLING);
            let taken = is_free && timer.state.compare_exchange(seen, new, AcqRel, Relaxed).is_ok();
            if taken {
                timer.filler.store(own, Relaxed);
            }
            taken
        })
    }

    /// The timer `index` is filled; its name.
    fn publish(&self, index: usize) -> TimerId {
        let timer = &self.timers[index];
        for word in [&timer.queued, &timer.filler] {
            word.store(0, Relaxed);
        }
        timer.missed.store(0, Relaxed);
        let life = timer.state.load(Relaxed) >> 32;
        timer.state.store(life << 32 | u64::from(ACTIVE), Release);
        self.wanted.store(1, Relaxed);
        self.note(index);
        life << 32 | index as u64
    }

    /// Stop a timer. False: it has come for the last time, or was stopped before.
    pub fn cancel(&self, id: TimerId) -> bool {
        let Some((index, timer)) = self.live(id) else { return false };
        let (active, ended) =
            (id >> 32 << 32 | u64::from(ACTIVE), id >> 32 << 32 | u64::from(ENDED));
        let done = timer.state.compare_exchange(active, ended, AcqRel, Relaxed).is_ok();
        if done {
            self.note(index);
        }
        done
    }

    /// The timer with this name, while it is active.
    pub fn live(&self, id: TimerId) -> Option<(usize, &Timer)> {
        let index = id as u32 as usize;
        let timer = self.timers.get(index)?;
        (timer.state.load(Acquire) == id >> 32 << 32 | u64::from(ACTIVE)).then_some((index, timer))
    }

    /// The name of the timer `index`, while it is active. One that has ended is free from now on.
    pub fn look(&self, index: usize) -> Option<TimerId> {
        let state = &self.timers[index].state;
        let seen = state.load(Acquire);
        if seen & PHASE == u64::from(ENDED) {
            let free = seen & !PHASE | u64::from(FREE);
            let _ = state.compare_exchange(seen, free, AcqRel, Relaxed);
        }
        (seen & PHASE == u64::from(ACTIVE)).then_some(seen >> 32 << 32 | index as u64)
    }

    fn note(&self, index: usize) {
        self.changed[index / 64].fetch_or(1 << (index % 64), Release);
    }

    /// Of a timer that is due: take this time for the caller. How many periods have gone by before it,
    /// if nobody else was first.
    pub fn claim(&self, index: usize, now_ns: u64) -> Option<u64> {
        let timer = &self.timers[index];
        let (due, period) = (timer.due_ns.load(Acquire), timer.period_ns.load(Relaxed));
        let late = now_ns.checked_sub(due)?;
        let gone_by = late.checked_div(period).unwrap_or(0);
        let next = if period == 0 { u64::MAX } else { following(due, period, gone_by) };
        timer.due_ns.compare_exchange(due, next, AcqRel, Relaxed).is_ok().then_some(gone_by)
    }

    /// Timers that are active.
    pub fn active(&self) -> usize {
        let is_active = |timer: &&Timer| timer.state.load(Relaxed) & PHASE == u64::from(ACTIVE);
        self.timers.iter().filter(is_active).count()
    }
}

/// When a timer comes again that was due at `due_ns` and has missed `gone_by` periods since. What lies
/// beyond the end of the clock is its end: never.
#[must_use]
pub const fn following(due_ns: u64, period_ns: u64, gone_by: u64) -> u64 {
    due_ns.saturating_add(gone_by.saturating_add(1).saturating_mul(period_ns))
}

/// When to look at a timer that is due at `due_ns`: rounded up as far as its slack allows, so that
/// timers with slack come at the same moments.
#[must_use]
pub const fn rounded(due_ns: u64, slack_ns: u64) -> u64 {
    if slack_ns == 0 {
        return due_ns;
    }
    match due_ns.checked_next_multiple_of(1 << slack_ns.ilog2()) {
        Some(at) => at,
        None => u64::MAX,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Timers, following, rounded};
    use core::sync::atomic::Ordering::Relaxed;
    use ext_api::limits::TIMERS_MAX;

    fn timers() -> Box<Timers> {
        // SAFETY: all fields are atomics, which may be zero.
        #[expect(unsafe_code, reason = "a table of zeros, as in the region")]
        unsafe {
            Box::<Timers>::new_zeroed().assume_init()
        }
    }

    #[test]
    fn a_name_is_good_for_one_life() {
        let timers = timers();
        let index = timers.take(1, |_| true).expect("all are free");
        let id = timers.publish(index);
        assert_eq!(timers.look(index), Some(id));
        assert!(timers.cancel(id) && !timers.cancel(id));
        assert_eq!((timers.look(index), timers.active()), (None, 0));
        assert_eq!(timers.take(1, |_| true), Some(index));
        let next = timers.publish(index);
        assert!(next != id && timers.live(id).is_none() && timers.live(next).is_some());
    }

    #[test]
    fn what_a_killed_filler_left_is_taken_and_a_full_table_says_so() {
        let timers = timers();
        for own in 0..TIMERS_MAX as u32 {
            assert!(timers.take(own, |_| true).is_some());
        }
        assert_eq!(timers.take(5000, |_| true), None);
        assert_eq!(timers.take(5000, |filler| filler != 7), Some(7));
    }

    #[test]
    fn what_lies_beyond_the_end_of_the_clock_is_its_end() {
        assert_eq!(rounded(u64::MAX - 3, 1_000_000), u64::MAX);
        assert_eq!(following(1000, u64::MAX, 0), u64::MAX);
        assert_eq!(following(1000, 1 << 40, 1 << 30), u64::MAX);
        assert_eq!(following(1000, 10, 2), 1030);
        let timers = timers();
        let index = timers.take(1, |_| true).expect("all are free");
        timers.timers[index].due_ns.store(1000, Relaxed);
        timers.timers[index].period_ns.store(u64::MAX, Relaxed);
        assert_eq!(timers.claim(index, 2000), Some(0));
        assert_eq!(timers.claim(index, u64::MAX - 1), None);
    }

    #[test]
    fn slack_is_never_exceeded_and_never_early() {
        for due in (0..50_000_000).step_by(777) {
            for slack in [0, 1, 999, 50_000, 1_000_000, 3_000_000] {
                let at = rounded(due, slack);
                assert!(at >= due && at <= due + slack, "{due} {slack} {at}");
            }
        }
    }
}
