//! A pair of devices in one process, with loss, duplicates, reorder and delay from a seed. What comes of
//! the same frames, times and seed is always the same.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Counters, Device, Medium, Waiter};

/// Frames on their way in one direction; more are dropped, as a switch would.
const QUEUE_MAX: usize = 4096;
/// What chances are out of.
pub const OUT_OF: u32 = 1000;

/// What happens to frames on their way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// How many in [`OUT_OF`] never arrive.
    pub lost: u32,
    /// How many in [`OUT_OF`] arrive twice.
    pub duplicated: u32,
    /// How many in [`OUT_OF`] arrive after up to four times the delay, and a millisecond.
    pub reordered: u32,
    /// How long each is on its way.
    pub delay: Duration,
}

/// What has become of the frames of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fate {
    /// Sent, and never to arrive.
    pub lost: u64,
    /// Copies beyond the frames that were sent.
    pub duplicated: u64,
    /// On their way.
    pub under_way: u64,
}

/// One end.
#[derive(Debug)]
pub struct Memory {
    link: Arc<Link>,
    side: usize,
    medium: Medium,
    mtu: usize,
    counters: Counters,
}

#[derive(Debug)]
struct Link {
    state: Mutex<State>,
    came: Condvar,
}

#[derive(Debug)]
struct State {
    random: Random,
    faults: Faults,
    /// By the side that they go to.
    towards: [Towards; 2],
}

#[derive(Debug, Default)]
struct Towards {
    /// By when they arrive, and in order of their sending.
    frames: BTreeMap<(Duration, u64), Vec<u8>>,
    next: u64,
    fate: Fate,
    is_rung: bool,
}

impl Link {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two ends: what one sends the other receives, unless `faults` from `seed` have it otherwise.
#[must_use]
pub fn pair(medium: Medium, mtu: usize, faults: Faults, seed: u64) -> [Memory; 2] {
    let state = State { random: Random(seed), faults, towards: Default::default() };
    let link = Arc::new(Link { state: Mutex::new(state), came: Condvar::new() });
    [0, 1].map(|side| Memory {
        link: Arc::clone(&link),
        side,
        medium,
        mtu,
        counters: Counters::default(),
    })
}

impl Memory {
    /// What has become of the frames that this end has sent.
    #[must_use]
    pub fn fate(&self) -> Fate {
        let state = self.link.state();
        let towards = &state.towards[1 - self.side];
        Fate { under_way: towards.frames.len() as u64, ..towards.fate }
    }

    /// From now on, these.
    pub fn set_faults(&self, faults: Faults) {
        self.link.state().faults = faults;
    }
}

impl State {
    fn chance(&mut self, of: u32) -> bool {
        self.random.below(OUT_OF.into()) < of.into()
    }

    /// When a frame that is sent now arrives; twice; or never.
    fn arrivals(&mut self, now: Duration) -> Vec<Duration> {
        let faults = self.faults;
        if self.chance(faults.lost) {
            return Vec::new();
        }
        let copies = 1 + usize::from(self.chance(faults.duplicated));
        (0..copies)
            .map(|_| {
                let is_late = self.chance(faults.reordered);
                let longest = if is_late {
                    faults.delay * 4 + Duration::from_millis(1)
                } else {
                    Duration::ZERO
                };
                let extra = self.random.below(longest.as_micros() as u64 + 1);
                now + faults.delay + Duration::from_micros(extra)
            })
            .collect()
    }
}

impl Device for Memory {
    fn medium(&self) -> Medium {
        self.medium
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn receive(&mut self, now: Duration, into: &mut [u8]) -> Option<usize> {
        let mut state = self.link.state();
        let frames = &mut state.towards[self.side].frames;
        while let Some(first) = frames.first_entry().filter(|first| first.key().0 <= now) {
            let frame = first.remove();
            match into.get_mut(..frame.len()) {
                Some(to) => {
                    to.copy_from_slice(&frame);
                    self.counters.received.add(frame.len());
                    return Some(frame.len());
                }
                None => self.counters.received.dropped.too_long += 1,
            }
        }
        None
    }

    fn has_room(&mut self) -> bool {
        self.link.state().towards[1 - self.side].frames.len() < QUEUE_MAX
    }

    fn send(&mut self, now: Duration, frame: &[u8]) {
        if frame.len() > self.mtu + self.medium.header_len() {
            self.counters.sent.dropped.too_long += 1;
            return;
        }
        if !self.has_room() {
            self.counters.sent.dropped.no_room += 1;
            return;
        }
        self.counters.sent.add(frame.len());
        let mut state = self.link.state();
        let arrivals = state.arrivals(now);
        let towards = &mut state.towards[1 - self.side];
        towards.fate.lost += u64::from(arrivals.is_empty());
        towards.fate.duplicated += arrivals.len().saturating_sub(1) as u64;
        for at in arrivals {
            towards.frames.insert((at, towards.next), frame.to_vec());
            towards.next += 1;
        }
        drop(state);
        self.link.came.notify_all();
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn next_at(&self) -> Option<Duration> {
        let state = self.link.state();
        state.towards[self.side].frames.first_key_value().map(|((at, _), _)| *at)
    }

    fn arm(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        let seen = self.link.state().towards[self.side].next;
        Arc::new(MemoryWaiter {
            link: Arc::clone(&self.link),
            side: self.side,
            seen: Mutex::new(seen),
        })
    }
}

/// Waits, in real time, for a frame that is sent after the last wait began.
#[derive(Debug)]
struct MemoryWaiter {
    link: Arc<Link>,
    side: usize,
    seen: Mutex<u64>,
}

impl Waiter for MemoryWaiter {
    fn wait(&self, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.unwrap_or(Duration::from_secs(1));
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_quiet = |state: &mut State| {
            let towards = &state.towards[self.side];
            towards.next == seen && !towards.is_rung
        };
        let waited = self.link.came.wait_timeout_while(self.link.state(), limit, is_quiet);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let towards = &mut state.towards[self.side];
        towards.is_rung = false;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = towards.next;
        Ok(())
    }

    fn wake(&self) {
        self.link.state().towards[self.side].is_rung = true;
        self.link.came.notify_all();
    }
}

/// Numbers that look random and are the same for the same seed (splitmix64).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
