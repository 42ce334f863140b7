//! The timers of a sandbox, in the data zone: whoever starts one writes it here, and the server looks
//! at it when its time comes.
//!
//! ```text
//!  FREE ── take ──► its filler ── publish ──► ACTIVE ── cancel, or its last time ──► ENDED ──► FREE
//!                      └── it was killed: the next one takes it
//! ```
//!
//! Who fills a timer is named in the very word by which it is taken, and publishes by an exchange of that
//! word: so nobody takes a timer for one whose filler is unknown, and two never publish the same.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use ext_api::abi::{HOW_KIND, HOW_RUNNING};
use ext_api::limits::TIMERS_MAX;

use crate::mailbox::{Claimant, KIND};

/// What a timer is at the moment, in the low half of its word; its generation is in the high half. While it
/// is filled that is its filler, for which these are never taken.
const FREE: u32 = 0;
const ACTIVE: u32 = KIND | 1 << KIND.count_ones();
const ENDED: u32 = KIND | 2 << KIND.count_ones();

/// How long until it is seen whether what was to run a timer is at it still.
pub const LOOK_NS: u64 = 1_000_000_000;

/// All timers.
#[derive(Debug)]
#[repr(C)]
pub struct Timers {
    /// The process that serves them, as a peer; 0 if none does yet.
    pub server: AtomicU64,
    /// The generation that its timers begin at: at random, so that a name which a snapshot carries into
    /// another sandbox names nothing there.
    pub first_life: AtomicU32,
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
    /// Of one for whoever runs: who runs its handler.
    pub runner: AtomicU32,
    /// When that began.
    pub began_ns: AtomicU64,
    /// When it was posted, until its handler begins; else 0.
    pub queued_ns: AtomicU64,
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
        loop {
            let (index, taken) = self.take(own, &is_alive)?;
            self.fill(index, plan);
            // Unless somebody took us for dead, it is ours.
            if let Some(id) = self.publish(index, taken) {
                return Some(id);
            }
        }
    }

    fn fill(&self, index: usize, plan: &Plan) {
        let timer = &self.timers[index];
        for (to, word) in [
            (&timer.queued_ns, 0),
            (&timer.missed, 0),
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
        timer.runner.store(0, Relaxed);
        let bit = 1 << (index % 64);
        let running = &self.running[index / 64];
        if plan.how & HOW_KIND == HOW_RUNNING {
            running.fetch_or(bit, Relaxed);
        } else {
            running.fetch_and(!bit, Relaxed);
        }
    }

    /// A free timer, for `own` to fill; its index, and its word from now on.
    fn take(&self, own: Claimant, is_alive: impl Fn(Claimant) -> bool) -> Option<(usize, u64)> {
        (0..TIMERS_MAX).find_map(|index| {
            let state = &self.timers[index].state;
            let seen = state.load(Acquire);
            let is_free = match seen as u32 {
                FREE => true,
                ACTIVE | ENDED => false,
                filler => !is_alive(filler),
            };
            // A new life, so that nobody's name of the former one is good for it.
            let new = self.life_after((seen >> 32) as u32) << 32 | u64::from(own);
            let taken = is_free && state.compare_exchange(seen, new, AcqRel, Relaxed).is_ok();
            taken.then_some((index, new))
        })
    }

    /// The generation after `life`, which is 0 of a timer that was never taken. Never 0.
    fn life_after(&self, life: u32) -> u64 {
        let former = if life == 0 { self.first_life.load(Relaxed) } else { life };
        u64::from(former.wrapping_add(1).max(1))
    }

    /// The timer `index`, which was `taken`, is filled; its name. None: somebody else has taken it since.
    fn publish(&self, index: usize, taken: u64) -> Option<TimerId> {
        let life = taken >> 32 << 32;
        let active = life | u64::from(ACTIVE);
        self.timers[index].state.compare_exchange(taken, active, AcqRel, Relaxed).ok()?;
        self.wanted.store(1, Relaxed);
        self.note(index);
        Some(life | index as u64)
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
        if seen as u32 == ENDED {
            let free = seen >> 32 << 32 | u64::from(FREE);
            let _ = state.compare_exchange(seen, free, AcqRel, Relaxed);
        }
        (seen as u32 == ACTIVE).then_some(seen >> 32 << 32 | index as u64)
    }

    fn note(&self, index: usize) {
        self.changed[index / 64].fetch_or(1 << (index % 64), Release);
    }

    /// Of a timer that is due: take this time for the caller. How many periods have gone by before it,
    /// if nobody else was first. One that comes once is over with its handler; should its taker be killed
    /// before, it is due again.
    pub fn claim(&self, index: usize, now_ns: u64) -> Option<u64> {
        let timer = &self.timers[index];
        let (due, period) = (timer.due_ns.load(Acquire), timer.period_ns.load(Relaxed));
        let late = now_ns.checked_sub(due)?;
        let gone_by = late.checked_div(period).unwrap_or(0);
        let next = if period == 0 {
            now_ns.saturating_add(LOOK_NS)
        } else {
            following(due, period, gone_by)
        };
        timer.due_ns.compare_exchange(due, next, AcqRel, Relaxed).is_ok().then_some(gone_by)
    }

    /// Timers that are active.
    pub fn active(&self) -> usize {
        let is_active = |timer: &&Timer| timer.state.load(Relaxed) as u32 == ACTIVE;
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
    use super::{LOOK_NS, Plan, Timers, following, rounded};
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
        let (index, taken) = timers.take(1, |_| true).expect("all are free");
        let id = timers.publish(index, taken).expect("nobody else has it");
        assert_eq!(timers.look(index), Some(id));
        assert!(timers.cancel(id) && !timers.cancel(id));
        assert_eq!((timers.look(index), timers.active()), (None, 0));
        let (again, taken) = timers.take(1, |_| true).expect("it is free");
        assert_eq!(again, index);
        let next = timers.publish(index, taken).expect("nobody else has it");
        assert!(next != id && timers.live(id).is_none() && timers.live(next).is_some());
    }

    #[test]
    fn lives_begin_where_they_are_told_to_and_are_never_0() {
        let timers = timers();
        timers.first_life.store(u32::MAX - 1, Relaxed);
        let lives = [1, 2, 3].map(|own| {
            let (index, taken) = timers.take(own, |_| false).expect("the former filler is dead");
            assert_eq!(index, 0);
            taken >> 32
        });
        assert_eq!(lives, [u64::from(u32::MAX), 1, 2]);
    }

    #[test]
    fn what_a_killed_filler_left_is_taken_and_a_full_table_says_so() {
        let timers = timers();
        for own in 1..=TIMERS_MAX as u32 {
            assert!(timers.take(own, |_| true).is_some());
        }
        assert_eq!(timers.take(5000, |_| true), None);
        let taken = timers.take(5000, |filler| filler != 7).expect("that of 7");
        assert_eq!(taken.0, 6);
        // Should 7 go on all the same, it has no timer any more.
        assert_eq!(timers.publish(6, 1 << 32 | 7), None);
        assert!(timers.publish(taken.0, taken.1).is_some());
    }

    #[test]
    fn a_timer_that_comes_once_is_due_again_until_its_handler_has_begun() {
        let timers = timers();
        let (index, _) = timers.take(1, |_| true).expect("all are free");
        timers.timers[index].due_ns.store(1000, Relaxed);
        assert_eq!((timers.claim(index, 2000), timers.claim(index, 2000)), (Some(0), None));
        assert_eq!(timers.claim(index, 2000 + LOOK_NS), Some(0));
    }

    #[test]
    fn two_that_start_at_once_have_a_timer_each() {
        let timers = timers();
        let plan = Plan {
            due_ns: 0,
            period_ns: 0,
            slack_ns: 0,
            how: 0,
            target: 0,
            handle: 0,
            words: [0; 2],
            word_count: 0,
        };
        let is_alive = |own| (1..=4).contains(&own);
        std::thread::scope(|scope| {
            for own in 1..=4 {
                let (timers, plan) = (&timers, &plan);
                scope.spawn(move || {
                    for _ in 0..2_000_000 {
                        let id = timers.start(own, is_alive, plan).expect("few are there at once");
                        assert!(timers.cancel(id), "{own} shares its timer");
                        timers.look(id as u32 as usize);
                    }
                });
            }
        });
        assert_eq!(timers.active(), 0);
    }

    #[test]
    fn what_lies_beyond_the_end_of_the_clock_is_its_end() {
        assert_eq!(rounded(u64::MAX - 3, 1_000_000), u64::MAX);
        assert_eq!(following(1000, u64::MAX, 0), u64::MAX);
        assert_eq!(following(1000, 1 << 40, 1 << 30), u64::MAX);
        assert_eq!(following(1000, 10, 2), 1030);
        let timers = timers();
        let (index, _) = timers.take(1, |_| true).expect("all are free");
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
