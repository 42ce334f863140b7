//! A hierarchical timing wheel: which of many deadlines is next, at a cost that does not depend on how
//! many there are. Pure: it knows no clock and no memory but its own.
//!
//! ```text
//!  level 0   64 slots of one tick       the next 64 ticks
//!  level 1   64 slots of 64 ticks       when their time comes they are spread over level 0
//!  …
//! ```
//!
//! An item lies on the level of the highest digit (of 6 bits) in which its tick differs from now. So
//! everything on one level comes before everything on the next, and lower slots before higher ones.

const DIGIT: u32 = 6;
const SLOTS: usize = 1 << DIGIT;
const LEVELS: usize = 8;
/// Ticks from here on are taken for this one.
pub const TICK_MAX: u64 = (1 << (DIGIT * LEVELS as u32)) - 1;
/// No item.
const NONE: u16 = u16::MAX;

/// A wheel of the items `0..N`.
#[derive(Debug)]
pub struct Wheel<const N: usize> {
    now: u64,
    /// Bit per slot that is not empty.
    used: [u64; LEVELS],
    first: [[u16; SLOTS]; LEVELS],
    items: [Item; N],
}

#[derive(Debug, Clone, Copy)]
struct Item {
    tick: u64,
    next: u16,
    previous: u16,
    /// Where it lies; [`NONE`] if it does not.
    place: u16,
}

impl<const N: usize> Wheel<N> {
    /// An empty wheel at the tick `now`.
    #[must_use]
    pub const fn new(now: u64) -> Self {
        assert!(N < NONE as usize);
        let item = Item { tick: 0, next: NONE, previous: NONE, place: NONE };
        Self { now, used: [0; LEVELS], first: [[NONE; SLOTS]; LEVELS], items: [item; N] }
    }

    /// Have `item` come at `tick`, and no more when it was to come. A tick that has passed comes with
    /// the next [`Wheel::advance`].
    pub fn set(&mut self, item: usize, tick: u64) {
        self.clear(item);
        let tick = tick.clamp(self.now, TICK_MAX);
        let differs = tick ^ self.now;
        let level = (differs.checked_ilog2().unwrap_or(0) / DIGIT) as usize;
        let slot = (tick >> (DIGIT * level as u32)) as usize % SLOTS;
        let next = self.first[level][slot];
        if next != NONE {
            self.items[next as usize].previous = item as u16;
        }
        let place = (level * SLOTS + slot) as u16;
        self.items[item] = Item { tick, next, previous: NONE, place };
        self.first[level][slot] = item as u16;
        self.used[level] |= 1 << slot;
    }

    /// Take `item` out, if it is in.
    pub fn clear(&mut self, item: usize) {
        let Item { next, previous, place, .. } = self.items[item];
        if place == NONE {
            return;
        }
        let (level, slot) = (place as usize / SLOTS, place as usize % SLOTS);
        if next != NONE {
            self.items[next as usize].previous = previous;
        }
        if previous == NONE {
            self.first[level][slot] = next;
        } else {
            self.items[previous as usize].next = next;
        }
        if self.first[level][slot] == NONE {
            self.used[level] &= !(1 << slot);
        }
        self.items[item].place = NONE;
    }

    /// A tick before which nothing comes; None if nothing is in.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        self.earliest().map(|(_, _, tick)| tick)
    }

    fn earliest(&self) -> Option<(usize, usize, u64)> {
        let level = self.used.iter().position(|used| *used != 0)?;
        let slot = self.used[level].trailing_zeros() as usize;
        let shift = DIGIT * level as u32;
        let above = self.now >> shift >> DIGIT << DIGIT;
        Some((level, slot, ((above | slot as u64) << shift).max(self.now)))
    }

    /// Go on to the tick `to`: what comes until then is taken out and told, in order.
    pub fn advance(&mut self, to: u64, mut comes: impl FnMut(usize)) {
        while let Some((level, slot, tick)) = self.earliest().filter(|(_, _, tick)| *tick <= to) {
            self.now = tick;
            while self.first[level][slot] != NONE {
                let item = self.first[level][slot] as usize;
                let due = self.items[item].tick;
                self.clear(item);
                if due <= tick {
                    comes(item);
                } else {
                    self.set(item, due);
                }
            }
        }
        self.now = self.now.max(to.min(TICK_MAX));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::Wheel;

    #[derive(Debug, Clone)]
    enum Op {
        Set(usize, u64),
        Clear(usize),
        Advance(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let span = prop_oneof![0..100u64, 0..10_000u64, 0..100_000_000u64, 0..1u64 << 47];
        prop_oneof![
            4 => (0..20usize, span.clone()).prop_map(|(item, after)| Op::Set(item, after)),
            1 => (0..20usize).prop_map(Op::Clear),
            3 => span.prop_map(Op::Advance),
        ]
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_sorted_list(start in 0..1u64 << 40, ops in prop::collection::vec(op(), 1..200)) {
            let (mut wheel, mut model, mut now) = (Wheel::<20>::new(start), BTreeMap::new(), start);
            for op in ops {
                match op {
                    Op::Set(item, after) => {
                        let tick = (now + after).min(super::TICK_MAX);
                        wheel.set(item, tick);
                        model.insert(item, tick);
                    }
                    Op::Clear(item) => {
                        wheel.clear(item);
                        model.remove(&item);
                    }
                    Op::Advance(by) => {
                        now = (now + by).min(super::TICK_MAX);
                        let mut came = Vec::new();
                        wheel.advance(now, |item| came.push(item));
                        let ticks: Vec<u64> = came.iter().map(|item| model[item]).collect();
                        prop_assert!(ticks.is_sorted(), "{ticks:?}");
                        came.sort_unstable();
                        let due: Vec<usize> =
                            model.iter().filter(|(_, tick)| **tick <= now).map(|(item, _)| *item).collect();
                        prop_assert_eq!(&came, &due);
                        model.retain(|item, _| !due.contains(item));
                    }
                }
                let least = model.values().min().copied();
                prop_assert_eq!(wheel.next().is_some(), least.is_some());
                prop_assert!(wheel.next() <= least);
            }
        }
    }
}
