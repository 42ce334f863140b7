//! The pool's buffers, on the side of the process that owns them.
//!
//! A [`Lease`] is a buffer that nobody else has: it can be lent to the kernel, sent, handed to another
//! process, or put back, each once, since each takes it. (A driver that fills a buffer bit by bit has it
//! shared: then each lease is of other bytes of it.) Buffers that are put back last are used first:
//! their lines are still in the cache.
#![expect(unsafe_code, reason = "maps a pool, and turns a buffer's number into its address")]

use std::io;

use ext_api::abi::NetAddress;
use ext_api::limits::{BUFFER_LEN, BUFFERS_MAX, NARROW_BUFFERS, WIDE_BUFFERS, WIDE_LEN};
use ext_api::pool::{
    BY_PROCESS, Done, Holder, Name, Outcome, POOL_LEN, Place, Pool, Seat, State, TURN_MASK, Tally,
    bytes_of,
};

/// A buffer that is ours alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Lease(u16);

impl Lease {
    /// Its number.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.0 as usize
    }

    /// How many bytes it has.
    #[must_use]
    pub const fn room(&self) -> usize {
        if self.is_wide() { WIDE_LEN } else { BUFFER_LEN }
    }

    /// Is it one of those that many datagrams can be received into at a time?
    #[must_use]
    pub const fn is_wide(&self) -> bool {
        self.index() >= NARROW_BUFFERS
    }
}

/// See [`Buffers::hand`].
pub const FOR_GOOD: u64 = u64::MAX;

/// A buffer that has come back from another process.
#[derive(Debug)]
pub struct Returned {
    /// The buffer.
    pub lease: Lease,
    /// What was said of it; None if its holder is gone, or nobody took it.
    pub outcome: Option<Outcome>,
}

/// When fewer wide buffers than this are free, what leaves the worker for a while goes in a narrow one.
const WIDE_FEW: usize = WIDE_BUFFERS / 2;

/// All buffers of a pool.
#[derive(Debug)]
pub struct Buffers {
    pool: &'static Pool,
    free: Vec<Lease>,
    wide: Vec<Lease>,
    /// How many leases there are of each besides the first.
    shares: Vec<u16>,
    /// Since when buffers are elsewhere, by number; 0 if they are not.
    since_ns: Vec<u64>,
    /// How many are elsewhere for a while, and for good.
    elsewhere: usize,
    given: usize,
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
            free: Vec::with_capacity(NARROW_BUFFERS),
            wide: Vec::with_capacity(WIDE_BUFFERS),
            shares: vec![0; BUFFERS_MAX],
            since_ns: vec![0; BUFFERS_MAX],
            elsewhere: 0,
            given: 0,
            turn,
        };
        for (index, state) in states.enumerate().rev() {
            let held = matches!(state.place, Place::Held(_));
            if held || !pool.buffers[index].take_back(state) {
                let by_process = pool.buffers[index].upcall() == BY_PROCESS;
                own.since_ns[index] = if by_process { FOR_GOOD } else { now_ns.max(1) };
                *own.count_of(own.since_ns[index]) += 1;
            } else {
                own.give_back(Lease(index as u16));
            }
        }
        own
    }

    /// Those of a pool that no other process has.
    ///
    /// # Errors
    /// The kernel's: there is no memory.
    pub fn of_own(now_ns: u64) -> io::Result<Self> {
        let (rights, none) = (libc::PROT_READ | libc::PROT_WRITE, std::ptr::null_mut());
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, wherever there is room.
        let at = unsafe { libc::mmap(none, POOL_LEN, rights, kind, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: made just now, all zeros, mapped for good, and nobody else's.
        Ok(unsafe { Self::own(at.cast::<Pool>(), now_ns) })
    }

    /// A narrow one that is free.
    pub fn take(&mut self) -> Option<Lease> {
        self.free.pop()
    }

    /// A wide one that is free.
    pub fn take_wide(&mut self) -> Option<Lease> {
        self.wide.pop()
    }

    fn give_back(&mut self, lease: Lease) {
        if lease.is_wide() { self.wide.push(lease) } else { self.free.push(lease) }
    }

    /// Put one back: it is free when all of its leases are.
    pub fn put(&mut self, lease: Lease) {
        match &mut self.shares[lease.index()] {
            0 => self.give_back(lease),
            others => *others -= 1,
        }
    }

    /// One more lease of a buffer of which there is one: of other bytes of it.
    pub fn share(&mut self, index: usize) -> Lease {
        self.shares[index] += 1;
        Lease(index as u16)
    }

    /// Does anybody else have a lease of the same buffer?
    #[must_use]
    pub fn is_shared(&self, lease: &Lease) -> bool {
        self.shares[lease.index()] != 0
    }

    /// A buffer in which bytes of `lease` are alone, so that another process can have it, and where: it, or a copy.
    ///
    /// # Errors
    /// None is free: the lease.
    pub fn alone(
        &mut self,
        lease: Lease,
        [start, len]: [usize; 2],
    ) -> Result<(Lease, usize), Lease> {
        let is_needed = lease.is_wide() && self.wide.len() < WIDE_FEW;
        if !self.is_shared(&lease) && start + len <= BUFFER_LEN && !is_needed {
            return Ok((lease, start));
        }
        let Some(own) = self.take() else { return Err(lease) };
        self.copy(&lease, [start, len], &own, 0);
        self.put(lease);
        Ok((own, 0))
    }

    /// How many narrow ones are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// How many wide ones are.
    #[must_use]
    pub fn wide_free(&self) -> usize {
        self.wide.len()
    }

    /// How many other processes have for a while, or are about to.
    #[must_use]
    pub const fn elsewhere(&self) -> usize {
        self.elsewhere
    }

    /// How many they have for as long as they like.
    #[must_use]
    pub const fn given(&self) -> usize {
        self.given
    }

    /// Where the bytes of `lease` are: [`Lease::room`] of them.
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
        assert!(start + len <= from.room() && to + len <= into.room());
        let from = self.at(from).wrapping_add(start);
        let into = self.at(into).wrapping_add(to);
        // SAFETY: both lie in buffers (asserted) that nobody else has; they may overlap.
        unsafe { into.copy_from(from, len) };
    }

    /// Hand it to whichever process takes what the name says, now; [`FOR_GOOD`] if it may take as long as
    /// it likes.
    pub fn hand(&mut self, lease: Lease, extent: [u16; 2], from: NetAddress, now_ns: u64) -> Name {
        self.turn = (self.turn + 1) & TURN_MASK;
        let name = Name { index: lease.index(), turn: self.turn };
        self.pool.buffers[name.index].hand(name.turn, extent, from);
        self.since_ns[name.index] = now_ns.max(1);
        *self.count_of(now_ns) += 1;
        name
    }

    /// Have back what was handed and nobody has taken. None: somebody has.
    pub fn take_back(&mut self, name: Name) -> Option<Lease> {
        let buffer = &self.pool.buffers[name.index];
        let seen = buffer.state();
        let ours = seen.turn == name.turn && seen.place == Place::Handed;
        (ours && buffer.take_back(seen)).then(|| self.is_back(name.index))
    }

    /// Have buffer `index` back if it was handed and nobody has taken it.
    pub fn take_back_any(&mut self, index: usize) -> Option<Lease> {
        let buffer = &self.pool.buffers[index];
        let seen = buffer.state();
        let ours = seen.place == Place::Handed && self.since_ns[index] != 0;
        (ours && buffer.take_back(seen)).then(|| self.is_back(index))
    }

    fn is_back(&mut self, index: usize) -> Lease {
        let since = std::mem::take(&mut self.since_ns[index]);
        *self.count_of(since) -= 1;
        Lease(index as u16)
    }

    const fn count_of(&mut self, since_ns: u64) -> &mut usize {
        if since_ns == FOR_GOOD { &mut self.given } else { &mut self.elsewhere }
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
                into.extend(self.come_back(index, seen, true));
            }
        }
        into[first..].reverse();
    }

    /// Have a buffer back that is still as it was `seen`.
    fn come_back(&mut self, index: usize, seen: State, done: bool) -> Option<Returned> {
        let buffer = &self.pool.buffers[index];
        let outcome = done.then(|| buffer.outcome());
        if self.since_ns[index] == 0 || !buffer.take_back(seen) {
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
        let mut done = Vec::new();
        for index in 0..BUFFERS_MAX {
            let since = self.since_ns[index];
            if since == 0 {
                continue;
            }
            let buffer = &self.pool.buffers[index];
            let (seen, late) = (buffer.state(), now_ns.saturating_sub(since) > patience_ns);
            let lost = match seen.place {
                Place::Owned => true,
                Place::Handed => late,
                // One that has not said which upcall it is may be about to: it has it while it lives.
                Place::Held(holder) => is_over(holder, buffer.upcall()),
                Place::Done(holder) => {
                    // On no list although it is done for so long: something was written over it.
                    if is_over(holder, 0) || late {
                        done.push((index, seen));
                    }
                    false
                }
            };
            // A holder that has come to its end meanwhile, as it should, is through with it.
            if lost {
                into.extend(self.come_back(index, seen, false));
            }
        }
        // What the dead have put on the list is on it now; the rest they did not come to put there.
        if !done.is_empty() {
            self.returned(into);
            into.extend(
                done.into_iter().filter_map(|(index, seen)| self.come_back(index, seen, true)),
            );
        }
    }

    /// Where all of it lies, and how long it is.
    #[must_use]
    pub fn span(&self) -> [usize; 2] {
        [std::ptr::from_ref(self.pool).addr(), POOL_LEN]
    }

    /// What the owner sleeps on while buffers are elsewhere.
    #[must_use]
    pub const fn done(&self) -> &'static Done {
        &self.pool.done
    }

    /// A process's place at a port; None if there is no such number.
    #[must_use]
    pub fn seat(&self, number: usize) -> Option<&'static Seat> {
        self.pool.seats.get(number)
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

    #[test]
    fn who_finishes_while_it_is_looked_at_has_finished() {
        let pool = pool();
        // SAFETY: made just now, for this test alone.
        let mut own = unsafe { Buffers::own(pool, 1) };
        let lease = own.take().expect("they are all free");
        let name = own.hand(lease, [64, 3], NetAddress::default(), 1);
        let buffer = &pool.buffers[name.index];
        assert!(buffer.take(name.turn, WHO, 9));
        let mut back = Vec::new();
        let outcome = Outcome { answer: 4, ..Outcome::default() };
        // Its upcall comes to its end between the look at the buffer and the one at the upcall.
        let is_over = |_, _| {
            assert!(buffer.finish(name.turn, WHO, outcome));
            let _ = pool.done.push(&pool.buffers, name.index);
            true
        };
        own.sweep(2, 5, is_over, &mut back);
        assert!(back.is_empty(), "it is on the list");
        own.returned(&mut back);
        assert_eq!(back[0].outcome, Some(outcome));
    }

    #[test]
    fn what_a_dead_one_put_on_the_list_comes_back_once() {
        let pool = pool();
        // SAFETY: made just now, for this test alone.
        let mut own = unsafe { Buffers::own(pool, 1) };
        let lease = own.take().expect("they are all free");
        let name = own.hand(lease, [64, 3], NetAddress::default(), 1);
        let buffer = &pool.buffers[name.index];
        assert!(
            buffer.take(name.turn, WHO, 9) && buffer.finish(name.turn, WHO, Outcome::default())
        );
        let mut back = Vec::new();
        // It does so just before it dies, behind the last look at the list.
        let is_over = |_, _| {
            let _ = pool.done.push(&pool.buffers, name.index);
            true
        };
        own.sweep(2, 5, is_over, &mut back);
        assert!(back.len() == 1 && back[0].outcome.is_some());
        own.returned(&mut back);
        assert_eq!(back.len(), 1);
    }

    #[test]
    fn a_buffer_is_free_when_the_last_of_its_leases_is_put_back() {
        let mut own = Buffers::of_own(1).expect("memory");
        let (first, free) = (own.take().expect("they are all free"), own.free());
        let at = own.at(&first);
        // SAFETY: the first bytes of a buffer that this test has.
        unsafe { at.copy_from_nonoverlapping(b"onetwo".as_ptr(), 6) };
        let second = own.share(first.index());
        assert!(own.is_shared(&first) && own.is_shared(&second));
        let (copy, start) = own.alone(second, [3, 3]).expect("one is free");
        assert!(copy.index() != first.index() && start == 0);
        // SAFETY: three bytes have been copied there.
        assert_eq!(unsafe { std::slice::from_raw_parts(own.at(&copy), 3) }, b"two");
        let (same, start) = own.alone(first, [0, 3]).expect("it is alone");
        assert_eq!((own.at(&same), start), (at, 0));
        own.put(same);
        own.put(copy);
        assert_eq!(own.free(), free + 1);
    }

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
                        let lease = if handed.len() % 2 == 0 { own.take() } else { own.take_wide() };
                        let Some(lease) = lease else { continue };
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
                for lease in own.free.iter().chain(&own.wide) {
                    let again = std::mem::replace(&mut seen[lease.index()], true);
                    assert!(!again, "one was had twice");
                }
                assert_eq!(
                    own.free() + own.wide_free() + own.elsewhere(),
                    BUFFERS_MAX,
                    "one was lost"
                );
            }
            own.returned(&mut back);
            own.sweep(10, 5, |_, _| true, &mut back);
            back.drain(..).for_each(|returned| own.put(returned.lease));
            assert_eq!(own.free() + own.wide_free(), BUFFERS_MAX);
        }
    }
}
