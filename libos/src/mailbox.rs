//! A mailbox: a bounded queue of events that any number of threads put in and take out, and that
//! stays right if any of them is killed at any instruction.
//!
//! A cell's one word `turn` says it all: the lap that it is in, and whether it is free, full, or
//! claimed by whom. Every step is one compare-and-swap of that word; the two ends of the queue are
//! hints, which may be behind, and which anybody moves on who finds them so: what lap a cell is in says by
//! how much.
//!
//! ```text
//!          claim             publish             take
//!   free ────────► claimed ────────► full ─────────────► free, one lap later
//!                     └── its claimant is dead: skipped ──────▲
//! ```
//!
//! Events are taken in the order in which their cells were claimed. An event whose poster is
//! killed between claim and publish is not posted; one whose taker is killed behind the take is
//! gone with it.

use crate::sync::{AtomicU64, Ordering, fence};

/// Words that an event carries.
pub const EVENT_WORDS: usize = 4;

/// Names who claims a cell: below 2^32, and neither 0 nor with all of [`KIND`] set.
pub type Claimant = u32;

const FREE: u32 = 0;
const FULL: u32 = KIND;
/// The bits of a claimant that are never all set.
pub const KIND: u32 = 0x1fff;

/// What is posted: a handler and what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Event {
    /// The handler to run.
    pub handle: u64,
    /// Its arguments.
    pub words: [u64; EVENT_WORDS],
    /// For whom, so that nobody gets what was meant for another.
    pub to: u64,
}

/// The mailbox has no room; the event was not posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// What came of an attempt to take an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The oldest.
    Event(Event),
    /// There is none.
    Empty,
    /// The oldest is being posted at this moment.
    Busy,
}

/// One event's place.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Cell {
    turn: AtomicU64,
    handle: AtomicU64,
    words: [AtomicU64; EVENT_WORDS],
    to: AtomicU64,
}

/// One end of the queue, on a line of its own.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct End(AtomicU64);

/// See the module. All zeros is an empty mailbox.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Mailbox<const N: usize> {
    tail: End,
    head: End,
    cells: [Cell; N],
}

const fn turn(lap: u32, state: u32) -> u64 {
    (lap as u64) << 32 | state as u64
}

const fn lap_of(turn: u64) -> u32 {
    (turn >> 32) as u32
}

/// Is `lap` behind `other`? Laps go round, but no two that meet are far apart.
const fn is_behind(lap: u32, other: u32) -> bool {
    (lap.wrapping_sub(other) as i32) < 0
}

impl<const N: usize> Mailbox<N> {
    const LAP: () = assert!(N.is_power_of_two());

    fn cell(&self, position: u64) -> (&Cell, u32) {
        const { Self::LAP };
        let cell = &self.cells[position as usize % N];
        (cell, (position / N as u64) as u32)
    }

    /// Put `event` in, as `own`. The step that does it is an exchange; between the claim and it there is the filling only,
    /// so that who looks all the time has little time to take the cell's line away.
    ///
    /// # Errors
    /// [`Full`].
    pub fn push(&self, own: Claimant, event: Event) -> Result<(), Full> {
        loop {
            let position = self.tail.0.load(Ordering::Acquire);
            let (cell, lap) = self.cell(position);
            let seen = cell.turn.load(Ordering::Acquire);
            if seen == turn(lap, FREE) {
                let claimed = turn(lap, own);
                if !swap(&cell.turn, seen, claimed) {
                    continue;
                }
                cell.fill(event);
                // Unless somebody took us for dead, it is in.
                let is_in = swap(&cell.turn, claimed, turn(lap, FULL));
                self.tail.move_on(position);
                if is_in {
                    return Ok(());
                }
            } else if is_behind(lap_of(seen), lap) {
                return Err(Full);
            } else {
                swap(&self.tail.0, position, next_end::<N>(position, lap, lap_of(seen)));
            }
        }
    }

    /// Take the oldest event out. `is_alive` says whether a claimant may still go on.
    pub fn pop(&self, is_alive: impl Fn(Claimant) -> bool) -> Taken {
        loop {
            let position = self.head.0.load(Ordering::Acquire);
            let (cell, lap) = self.cell(position);
            let seen = cell.turn.load(Ordering::Acquire);
            let (state, next) = (seen as u32, turn(lap.wrapping_add(1), FREE));
            if lap_of(seen) != lap {
                if is_behind(lap_of(seen), lap) {
                    // The tail has not come round to it.
                    return Taken::Empty;
                }
                swap(&self.head.0, position, next_end::<N>(position, lap, lap_of(seen)));
            } else if state == FREE {
                return Taken::Empty;
            } else if state == FULL {
                // As long as it is full nobody writes there.
                let event = cell.read();
                if swap(&cell.turn, seen, next) {
                    self.head.move_on(position);
                    return Taken::Event(event);
                }
            } else if is_alive(state) {
                return Taken::Busy;
            } else if swap(&cell.turn, seen, next) {
                self.head.move_on(position);
            }
        }
    }

    /// Is there nothing to take, nor about to be? What a waiter looks at: one line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let position = self.head.0.load(Ordering::Acquire);
        let (cell, lap) = self.cell(position);
        let seen = cell.turn.load(Ordering::Acquire);
        seen == turn(lap, FREE) || is_behind(lap_of(seen), lap)
    }

    /// Is there something to take at once? What somebody is putting in is not, even if its poster is dead.
    #[must_use]
    pub fn has_first(&self) -> bool {
        let position = self.head.0.load(Ordering::Acquire);
        let (cell, lap) = self.cell(position);
        let seen = cell.turn.load(Ordering::Acquire);
        // In a later lap: the head is behind.
        seen as u32 == FULL || is_behind(lap, lap_of(seen))
    }

    /// Does an event wait of which `is` holds? One that is being put in or taken out meanwhile may count or not.
    pub fn holds(&self, is: impl Fn(&Event) -> bool) -> bool {
        let head = self.head.0.load(Ordering::Acquire);
        for position in head..head + N as u64 {
            let (cell, lap) = self.cell(position);
            let seen = cell.turn.load(Ordering::Acquire);
            if seen == turn(lap, FREE) || is_behind(lap_of(seen), lap) {
                return false;
            }
            let event = cell.read();
            fence(Ordering::Acquire);
            let is_whole = seen as u32 == FULL && cell.turn.load(Ordering::Relaxed) == seen;
            if is_whole && is(&event) {
                return true;
            }
        }
        false
    }

    /// Events that were ever put in, and taken out, about.
    #[must_use]
    pub fn counts(&self) -> [u64; 2] {
        let taken = self.head.0.load(Ordering::Acquire);
        [self.tail.0.load(Ordering::Acquire), taken]
    }
}

/// The first position behind `position` that may be an end of the queue, for who finds its cell in the lap
/// `seen` rather than in `lap`: cells are claimed, and taken, in order.
const fn next_end<const N: usize>(position: u64, lap: u32, seen: u32) -> u64 {
    let laps = seen.wrapping_sub(lap).saturating_sub(1) as u64;
    position + laps * N as u64 + 1
}

impl End {
    /// From `seen` on: by who did it, and need not have been the first.
    #[inline]
    fn move_on(&self, seen: u64) {
        if self.0.load(Ordering::Relaxed) == seen {
            self.0.store(seen + 1, Ordering::Release);
        }
    }
}

#[inline]
fn swap(word: &AtomicU64, seen: u64, new: u64) -> bool {
    word.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

impl Cell {
    #[inline]
    fn fill(&self, event: Event) {
        self.handle.store(event.handle, Ordering::Relaxed);
        for (to, word) in self.words.iter().zip(event.words) {
            to.store(word, Ordering::Relaxed);
        }
        self.to.store(event.to, Ordering::Relaxed);
    }

    #[inline]
    fn read(&self) -> Event {
        Event {
            handle: self.handle.load(Ordering::Relaxed),
            words: self.words.each_ref().map(|word| word.load(Ordering::Relaxed)),
            to: self.to.load(Ordering::Relaxed),
        }
    }
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Mailbox<4>>() == (2 + 4) * 64);

#[cfg(test)]
impl<const N: usize> Mailbox<N> {
    fn new() -> Self {
        let end = || End(AtomicU64::new(0));
        Self { tail: end(), head: end(), cells: core::array::from_fn(|_| Cell::default()) }
    }

    /// What a poster that is killed behind its claim leaves.
    fn claim_and_die(&self, own: Claimant) -> bool {
        let position = self.tail.0.load(Ordering::Acquire);
        let (cell, lap) = self.cell(position);
        swap(&cell.turn, turn(lap, FREE), turn(lap, own))
    }
}

#[cfg(all(test, not(loom)))]
impl<const N: usize> Mailbox<N> {
    /// What threads leave that stop for long just before they move an end on.
    fn set_back(&self, by: u64) {
        for end in [&self.tail, &self.head] {
            let at = end.0.load(Ordering::Relaxed);
            end.0.store(at.saturating_sub(by), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
fn event(number: u64) -> Event {
    Event { handle: number, words: [number; EVENT_WORDS], to: number }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::{Full, Mailbox, Taken, event};

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Push,
        Pop,
        Die,
        SetBack(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![4 => Just(Step::Push), 4 => Just(Step::Pop), 1 => Just(Step::Die),
            1 => (0..20u64).prop_map(Step::SetBack)];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn it_is_a_bounded_queue(steps in steps()) {
            let mailbox = Mailbox::<4>::new();
            // The dead take up a place until somebody comes to it.
            let (mut model, mut next) = (VecDeque::<Option<u64>>::new(), 1);
            for step in steps {
                match step {
                    Step::Push => {
                        let pushed = mailbox.push(7, event(next));
                        prop_assert_eq!(pushed, if model.len() < 4 { Ok(()) } else { Err(Full) });
                        if pushed.is_ok() {
                            model.push_back(Some(next));
                            next += 1;
                        }
                    }
                    Step::Die => {
                        // As the next poster finds the tail.
                        if model.len() < 4 && mailbox.claim_and_die(9) {
                            model.push_back(None);
                        }
                    }
                    Step::SetBack(by) => mailbox.set_back(by),
                    Step::Pop => {
                        while model.front() == Some(&None) {
                            model.pop_front();
                        }
                        let expected = match model.pop_front() {
                            Some(Some(number)) => Taken::Event(event(number)),
                            _ => Taken::Empty,
                        };
                        prop_assert_eq!(mailbox.pop(|claimant| claimant != 9), expected);
                    }
                }
                for number in 1..next {
                    let waits = model.contains(&Some(number));
                    prop_assert_eq!(mailbox.holds(|it| *it == event(number)), waits);
                }
            }
        }
    }

    #[test]
    fn an_event_that_is_being_posted_is_waited_for() {
        let mailbox = Mailbox::<4>::new();
        assert!(mailbox.claim_and_die(9));
        assert_eq!(mailbox.pop(|_| true), Taken::Busy);
        assert!(!mailbox.is_empty());
        assert_eq!(mailbox.pop(|_| false), Taken::Empty);
        assert!(mailbox.is_empty());
    }

    #[test]
    fn many_threads_lose_and_repeat_nothing() {
        const EACH: u64 = if cfg!(miri) { 50 } else { 20_000 };
        let mailbox = Mailbox::<8>::new();
        let mut seen = Vec::new();
        let put = |number: u64, own| {
            while mailbox.push(own, event(number)).is_err() {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            let takers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let mut got = Vec::new();
                        loop {
                            match mailbox.pop(|_| true) {
                                Taken::Event(event) if event.handle == 0 => return got,
                                Taken::Event(event) => {
                                    assert_eq!(event.words, [event.handle; 4]);
                                    got.push(event.handle);
                                }
                                Taken::Empty | Taken::Busy => std::thread::yield_now(),
                            }
                        }
                    })
                })
                .collect();
            let posters: Vec<_> = (1..=2u32)
                .map(|own| {
                    let put = &put;
                    scope.spawn(move || {
                        (0..EACH).for_each(|at| put(u64::from(own) << 32 | at, own));
                    })
                })
                .collect();
            posters.into_iter().for_each(|poster| poster.join().expect("no panic"));
            (0..2).for_each(|_| put(0, 5));
            for taker in takers {
                let got = taker.join().expect("no panic");
                // Each poster's events come in its order.
                for own in 1..=2u64 {
                    assert!(got.iter().filter(|it| *it >> 32 == own).is_sorted());
                }
                seen.extend(got);
            }
        });
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len() as u64, 2 * EACH);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::{Mailbox, Taken, event};
    use loom::sync::Arc;

    fn model(body: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(body);
    }

    #[test]
    fn loom_two_posters_and_a_taker_lose_nothing() {
        model(|| {
            let mailbox = Arc::new(Mailbox::<2>::new());
            let other = mailbox.clone();
            let poster = loom::thread::spawn(move || other.push(1, event(1)).is_ok());
            let mut got = Vec::new();
            assert!(mailbox.push(2, event(2)).is_ok());
            for _ in 0..2 {
                if let Taken::Event(event) = mailbox.pop(|_| true) {
                    got.push(event.handle);
                }
            }
            assert!(poster.join().expect("no panic"));
            while let Taken::Event(event) = mailbox.pop(|_| true) {
                got.push(event.handle);
            }
            got.sort_unstable();
            assert_eq!(got, [1, 2]);
        });
    }

    #[test]
    fn loom_two_takers_share_one_event() {
        model(|| {
            let mailbox = Arc::new(Mailbox::<2>::new());
            assert!(mailbox.push(1, event(1)).is_ok());
            let other = mailbox.clone();
            let taker = loom::thread::spawn(move || matches!(other.pop(|_| true), Taken::Event(_)));
            let own = matches!(mailbox.pop(|_| true), Taken::Event(_));
            assert!(own != taker.join().expect("no panic"));
        });
    }

    #[test]
    fn loom_a_dead_claim_is_skipped_once() {
        model(|| {
            let mailbox = Arc::new(Mailbox::<2>::new());
            assert!(mailbox.claim_and_die(9));
            let other = mailbox.clone();
            let poster = loom::thread::spawn(move || other.push(1, event(1)).is_ok());
            let early = mailbox.pop(|claimant| claimant != 9);
            assert!(poster.join().expect("no panic"));
            let late = mailbox.pop(|claimant| claimant != 9);
            let got = [early, late].into_iter().filter(|it| *it == Taken::Event(event(1))).count();
            assert_eq!(got, 1);
        });
    }
}
