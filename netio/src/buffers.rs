//! The pool's buffers, on the side of the process that owns them.
//!
//! A [`Lease`] is a buffer that nobody else has: it can be lent to the kernel, sent, handed to another
//! process, or put back, each once, since each takes it. Buffers that are put back last are used first:
//! their lines are still in the cache.
#![expect(unsafe_code, reason = "turns a buffer's number into its address")]

use ext_api::abi::NetAddress;
use ext_api::limits::{BUFFER_LEN, BUFFERS_MAX};
use ext_api::pool::{Done, Holder, Name, Outcome, Place, Pool, TURN_MASK, Tally, bytes_of};

/// A buffer that is ours alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Lease(u16);

impl Lease {
    /// Its number.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.0 as usize
    }
}

/// A buffer that has come back from another process.
#[derive(Debug)]
pub struct Returned {
    /// The buffer.
    pub lease: Lease,
    /// What was said of it; None if its holder is gone, or nobody took it.
    pub outcome: Option<Outcome>,
}

/// All buffers of a pool.
#[derive(Debug)]
pub struct Buffers {
    pool: &'static Pool,
    free: Vec<Lease>,
    /// Since when buffers are elsewhere, by number; 0 if they are not.
    since_ns: Vec<u64>,
    elsewhere: usize,
    turn: u64,
}

impl Buffers {
    /// The buffers of the pool at `pool`. Those that a former owner had handed to processes which have
    /// them still come back from these first.
    ///
    /// # Safety
    /// A pool of [`ext_api::pool::POOL_LEN`] bytes is mapped there for good, all zeros when it was made,
    /// and nobody else owns it.
    #[must_use]
    pub unsafe fn own(pool: *const Pool, now_ns: u64) -> Self {
        // SAFETY: by contract; all atomics.
        let pool = unsafe { &*pool };
        pool.done.take_all(&pool.buffers, |_| {});
        let states = pool.buffers.iter().map(|buffer| buffer.state());
        let turn = states.clone().map(|state| state.turn).max().unwrap_or(0);
        let mut own = Self {
            pool,
            free: Vec::with_capacity(BUFFERS_MAX),
            since_ns: vec![0; BUFFERS_MAX],
            elsewhere: 0,
            turn,
        };
        for (index, state) in states.enumerate().rev() {
            let held = matches!(state.place, Place::Held(_));
            if held || !pool.buffers[index].take_back(state) {
                own.since_ns[index] = now_ns.max(1);
                own.elsewhere += 1;
            } else {
                own.free.push(Lease(index as u16));
            }
        }
        own
    }

    /// One that is free.
    pub fn take(&mut self) -> Option<Lease> {
        self.free.pop()
    }

    /// Put one back.
    pub fn put(&mut self, lease: Lease) {
        self.free.push(lease);
    }

    /// How many are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// How many other processes have, or are about to.
    #[must_use]
    pub const fn elsewhere(&self) -> usize {
        self.elsewhere
    }

    /// Where the bytes of `lease` are: [`BUFFER_LEN`] of them.
    #[must_use]
    pub fn at(&self, lease: &Lease) -> *mut u8 {
        let pool = std::ptr::from_ref(self.pool).cast::<u8>().cast_mut();
        pool.with_addr(bytes_of(pool.addr(), lease.index()))
    }

    /// Copy bytes of one buffer to `to` of another, or of the same.
    ///
    /// # Panics
    /// They do not lie in the one, or do not fit into the other.
    pub fn copy(&mut self, from: &Lease, [start, len]: [usize; 2], into: &Lease, to: usize) {
        assert!(start + len <= BUFFER_LEN && to + len <= BUFFER_LEN);
        let from = self.at(from).wrapping_add(start);
        let into = self.at(into).wrapping_add(to);
        // SAFETY: both lie in buffers (asserted) that nobody else has; they may overlap.
        unsafe { into.copy_from(from, len) };
    }

    /// Hand it to whichever process takes what the name says.
    pub fn hand(&mut self, lease: Lease, extent: [u16; 2], from: NetAddress, now_ns: u64) -> Name {
        self.turn = (self.turn + 1) & TURN_MASK;
        let name = Name { index: lease.index(), turn: self.turn };
        self.pool.buffers[name.index].hand(name.turn, extent, from);
        self.since_ns[name.index] = now_ns.max(1);
        self.elsewhere += 1;
        name
    }

    /// Have back what was handed and nobody has taken. None: somebody has.
    pub fn take_back(&mut self, name: Name) -> Option<Lease> {
        let buffer = &self.pool.buffers[name.index];
        let seen = buffer.state();
        let ours = seen.turn == name.turn && seen.place == Place::Handed;
        (ours && buffer.take_back(seen)).then(|| self.is_back(name.index))
    }

    fn is_back(&mut self, index: usize) -> Lease {
        self.since_ns[index] = 0;
        self.elsewhere -= 1;
        Lease(index as u16)
    }

    /// What processes are through with, the first first.
    pub fn returned(&mut self, into: &mut Vec<Returned>) {
        if self.pool.done.is_empty() {
            return;
        }
        let first = into.len();
        let mut done = Vec::new();
        self.pool.done.take_all(&self.pool.buffers, |index| done.push(index));
        for index in done {
            let seen = self.pool.buffers[index].state();
            // A list that others have written into may name what is ours already.
            if matches!(seen.place, Place::Done(_)) {
                into.extend(self.come_back(index, true));
            }
        }
        into[first..].reverse();
    }

    fn come_back(&mut self, index: usize, done: bool) -> Option<Returned> {
        let buffer = &self.pool.buffers[index];
        let outcome = done.then(|| buffer.outcome());
        if self.since_ns[index] == 0 || !buffer.take_back(buffer.state()) {
            return None;
        }
        Some(Returned { lease: self.is_back(index), outcome })
    }

    /// Take back what the dead held, and what nobody has taken for `patience_ns`. To be called when
    /// [`Buffers::returned`] has just been.
    pub fn sweep(
        &mut self,
        now_ns: u64,
        patience_ns: u64,
        is_over: impl Fn(Holder, u64) -> bool,
        into: &mut Vec<Returned>,
    ) {
        for index in 0..BUFFERS_MAX {
            let since = self.since_ns[index];
            if since == 0 {
                continue;
            }
            let buffer = &self.pool.buffers[index];
            let late = now_ns.saturating_sub(since) > patience_ns;
            let (lost, done) = match buffer.state().place {
                Place::Owned => (true, false),
                Place::Handed => (late, false),
                Place::Held(holder) => match buffer.upcall() {
                    // Killed, or ended, before it said which upcall it is.
                    0 => (late || is_over(holder, 0), false),
                    upcall => (is_over(holder, upcall), false),
                },
                Place::Done(holder) => (is_over(holder, 0), true),
            };
            if lost {
                into.extend(self.come_back(index, done));
            }
        }
    }

    /// What the owner sleeps on while buffers are elsewhere.
    #[must_use]
    pub const fn done(&self) -> &'static Done {
        &self.pool.done
    }

    /// What a port has seen.
    #[must_use]
    pub const fn tally(&self, port: usize) -> &'static Tally {
        &self.pool.tallies[port]
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffers, Returned};
    use ext_api::abi::NetAddress;
    use ext_api::limits::BUFFERS_MAX;
    use ext_api::pool::{Holder, Outcome, Place, Pool};
    use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
    use std::alloc::{Layout, alloc_zeroed};

    /// The front of a pool, that stays for good: no byte of a buffer is touched here.
    fn pool() -> &'static Pool {
        let layout = Layout::new::<Pool>();
        // SAFETY: not empty.
        let pool = unsafe { alloc_zeroed(layout) };
        assert!(!pool.is_null(), "no memory");
        // SAFETY: zeros are a pool, and nobody frees it.
        unsafe { &*pool.cast::<Pool>() }
    }

    const WHO: Holder = Holder::of_peer(5 << 32 | 2);

    #[derive(Debug, Clone)]
    enum Step {
        Hand,
        Take(usize),
        Finish(usize),
        Return,
        Sweep,
        Die,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Hand),
            any::<usize>().prop_map(Step::Take),
            any::<usize>().prop_map(Step::Finish),
            Just(Step::Return),
            Just(Step::Sweep),
            Just(Step::Die),
        ]
    }

    proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(64))]
        #[test]
        fn no_buffer_is_lost_or_had_twice(steps in proptest::collection::vec(step(), 1..200)) {
            let pool = pool();
            // SAFETY: made just now, for this test alone.
            let mut own = unsafe { Buffers::own(pool, 1) };
            let (mut handed, mut held, mut dead) = (Vec::new(), Vec::new(), 0u64);
            let mut back: Vec<Returned> = Vec::new();
            for step in steps {
                match step {
                    Step::Hand => {
                        let Some(lease) = own.take() else { continue };
                        handed.push(own.hand(lease, [64, 3], NetAddress::default(), 1));
                    }
                    Step::Take(which) if !handed.is_empty() => {
                        let name = handed.swap_remove(which % handed.len());
                        // The sweeper gave up on it.
                        if pool.buffers[name.index].take(name.turn, WHO, dead + 1) {
                            held.push((name, dead + 1));
                        }
                    }
                    Step::Finish(which) if !held.is_empty() => {
                        let (name, upcall) = held.swap_remove(which % held.len());
                        let buffer = &pool.buffers[name.index];
                        let done = buffer.finish(name.turn, WHO, Outcome::default());
                        assert_eq!(done, upcall > dead || matches!(
                            buffer.state().place, Place::Done(_)));
                        if done {
                            let _ = pool.done.push(&pool.buffers, name.index);
                        }
                    }
                    Step::Return => own.returned(&mut back),
                    Step::Sweep => {
                        own.returned(&mut back);
                        own.sweep(10, 5, |_, upcall| upcall != 0 && upcall <= dead, &mut back);
                        handed.clear();
                    }
                    // Every upcall that holds one dies with it.
                    Step::Die => {
                        dead += 1;
                        held.clear();
                    }
                    _ => {}
                }
                back.drain(..).for_each(|returned| own.put(returned.lease));
                let mut seen = [false; BUFFERS_MAX];
                for lease in &own.free {
                    let again = std::mem::replace(&mut seen[lease.index()], true);
                    assert!(!again, "one was had twice");
                }
                assert_eq!(own.free() + own.elsewhere(), BUFFERS_MAX, "one was lost");
            }
            own.returned(&mut back);
            own.sweep(10, 5, |_, _| true, &mut back);
            back.drain(..).for_each(|returned| own.put(returned.lease));
            assert_eq!(own.free(), BUFFERS_MAX);
        }
    }
}
