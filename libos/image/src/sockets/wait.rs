//! `poll` and `select` with carried sockets among the descriptors.
//!
//! ```text
//!  rings ──► the kernel, without waiting ──► look at the rings for a while ──► sleep in the kernel
//!    ▲                                                                              │
//!    └─────────────────────────── woken by the kernel ◄─────────────────────────────┘
//! ```

use core::sync::atomic::AtomicU32;

use super::fds::{self, End};
use super::stream::{self, MSG_DONTWAIT, MSG_PEEK};
use super::{ask, bells, native, open, user};
use crate::sys::{EFAULT, EINVAL, nr};
use crate::time;

pub(super) const IN: u32 = 1;
pub(super) const PRI: u32 = 2;
pub(super) const OUT: u32 = 4;
pub(super) const ERR: u32 = 8;
pub(super) const HUP: u32 = 0x10;
pub(super) const READ_NORMAL: u32 = 0x40;
pub(super) const READ_HUP: u32 = 0x2000;

/// Carried sockets of one call that are looked after; a call with more has them go by the kernel.
const ENDS_MAX: usize = 64;

/// `struct pollfd`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct PollFd {
    fd: i32,
    events: u16,
    returned: u16,
}

/// Is what the kernel has to read of a carried socket there for the program, rather than a bell? `returned` is all that
/// it says: who only looks for an error takes it away.
pub(super) fn is_readable(end: &End, returned: u32) -> bool {
    let direction = end.incoming();
    if stream::is_left(direction) || end.connection.has_no_bells() {
        return true;
    }
    bells::hear(end, direction);
    // Looked at in the order in which bytes move.
    if direction.has_bytes() || direction.is_in_kernel() || returned & (HUP | READ_HUP | ERR) != 0 {
        return true;
    }
    let mut byte = 0u8;
    let seen = ask(nr::RECVFROM, [end.fd, &raw mut byte as usize, 1, MSG_PEEK | MSG_DONTWAIT]);
    seen != -(crate::sys::EAGAIN as isize)
}

/// What the kernel has to say of a descriptor now.
pub(super) fn kernels_events(fd: usize, wanted: u32) -> u32 {
    let one = PollFd { fd: fd as i32, events: wanted as u16, returned: 0 };
    let one = core::cell::UnsafeCell::new(one);
    ask(nr::POLL, [one.get() as usize, 1, 0]);
    u32::from(one.into_inner().returned)
}

/// When a call is over that may wait.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    Never,
    At(u64),
}

impl Until {
    pub(super) fn after(ns: Option<u64>) -> Self {
        ns.map_or(Self::Never, |ns| Self::At(time::now_ns().saturating_add(ns)))
    }

    /// Nanoseconds left, None for no end.
    pub(super) fn left(self) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::At(at) => Some(at.saturating_sub(time::now_ns())),
        }
    }

    pub(super) fn is_over(self) -> bool {
        self.left() == Some(0)
    }
}

/// A time as the kernel takes it, in an argument.
#[derive(Debug)]
pub(super) struct Timespec([u64; 2]);

impl Timespec {
    pub(super) const fn of(ns: u64) -> Self {
        Self([ns / 1_000_000_000, ns % 1_000_000_000])
    }

    pub(super) fn at(&self) -> usize {
        self.0.as_ptr() as usize
    }

    /// One of the program's, in nanoseconds; its second word counts `unit` of them.
    pub(super) fn read(at: usize, unit: u64) -> Result<Option<u64>, isize> {
        if at == 0 {
            return Ok(None);
        }
        let [seconds, rest] = user::read::<[i64; 2]>(at).ok_or(-(EFAULT as isize))?;
        if seconds < 0 || rest < 0 || unit == 1 && rest >= 1_000_000_000 {
            return Err(-(EINVAL as isize));
        }
        let ns = (seconds as u64).saturating_mul(1_000_000_000);
        Ok(Some(ns.saturating_add((rest as u64).saturating_mul(unit))))
    }
}

/// The carried sockets that one call waits for.
struct Waiting {
    ends: [Option<End>; ENDS_MAX],
    count: usize,
    /// The core of several writers: none that there is.
    several: AtomicU32,
}

impl Waiting {
    const fn new() -> Self {
        Self { ends: [None; ENDS_MAX], count: 0, several: AtomicU32::new(u32::MAX) }
    }

    fn add(&mut self, end: End) {
        match self.ends.get_mut(self.count) {
            Some(place) => {
                *place = Some(end);
                self.count += 1;
            }
            None => stream::leave_to_kernel(&end),
        }
    }

    fn ends(&self) -> impl Iterator<Item = &End> {
        self.ends[..self.count].iter().flatten()
    }

    fn any_bytes(&self) -> bool {
        self.ends().any(|end| end.incoming().has_bytes())
    }

    /// Look for bytes for a while.
    fn look(&self) -> bool {
        let Some(first) = self.ends().next().map(End::incoming) else { return false };
        let patience = stream::patience(&first.reading.patience_ns);
        let core = if self.count == 1 { &first.writing.core } else { &self.several };
        let is_there =
            || self.ends().any(|end| end.incoming().has_bytes() || end.incoming().is_in_kernel());
        stream::look_until(patience, core, is_there)
    }

    /// Sleep in `kernel`, if there is still nothing.
    fn sleep(&self, kernel: impl FnOnce() -> isize) -> Option<isize> {
        let mut parked = 0;
        for end in self.ends() {
            if !end.incoming().park() {
                break;
            }
            parked += 1;
        }
        let began = time::now_ns();
        let result = (parked == self.count).then(kernel);
        for end in self.ends().take(parked) {
            end.incoming().unpark();
        }
        if let Some(first) = self.ends().next() {
            stream::note_wait(&first.incoming().reading.patience_ns, time::now_ns() - began);
        }
        result
    }
}

/// `poll` and `ppoll`.
#[inline(never)]
pub(super) fn poll(number: usize, args: [usize; 6]) -> isize {
    let [at, count, timeout, ..] = args;
    let (mut waiting, mut any_bytes) = (Waiting::new(), false);
    let one = |index: usize| user::read::<PollFd>(at + index * size_of::<PollFd>());
    for index in 0..count {
        let Some(one) = one(index) else { return native(number, args) };
        if one.fd < 0 {
            continue;
        }
        let fd = one.fd as usize;
        let reads = u32::from(one.events) & (IN | READ_NORMAL) != 0;
        any_bytes |= reads && leaves_bytes(fd);
        if let Some(end) = fds::end_of(fd).filter(|_| reads) {
            waiting.add(end);
        }
    }
    if waiting.count == 0 && !any_bytes {
        return native(number, args);
    }
    let ns = if number == nr::POLL {
        Ok(u64::try_from(timeout as i32).ok().map(|ms| ms * 1_000_000))
    } else {
        Timespec::read(timeout, 1)
    };
    let ns = match ns {
        Ok(ns) => ns,
        Err(errno) => return errno,
    };
    let until = Until::after(ns);
    let mask = if number == nr::PPOLL { [args[3], args[4]] } else { [0, 0] };
    let kernel = |ns: Option<u64>, mask: [usize; 2]| {
        let time = ns.map(Timespec::of);
        let time_at = time.as_ref().map_or(0, Timespec::at);
        ask(nr::PPOLL, [at, count, time_at, mask[0], mask[1]])
    };
    let mut has_looked = false;
    loop {
        // What is there comes before a signal that the call would let through.
        let has_bytes = any_bytes || waiting.any_bytes();
        let result = kernel(Some(0), if has_bytes { [0, 0] } else { mask });
        if result < 0 {
            return result;
        }
        let ready = merge_poll(at, count);
        if ready != 0 || until.is_over() {
            return ready;
        }
        if !has_looked {
            has_looked = true;
            if waiting.look() {
                continue;
            }
        }
        match waiting.sleep(|| kernel(until.left(), mask)) {
            Some(result) if result < 0 && !waiting.any_bytes() => return result,
            Some(0) if !waiting.any_bytes() => return 0,
            _ => {}
        }
    }
}

/// If `fd` is an epoll instance, it is waited for by other means than its own: the kernel has to see what comes.
/// True if it has bytes in rings already.
fn leaves_bytes(fd: usize) -> bool {
    fds::set_of(fd).map(fds::set).is_some_and(|set| {
        set.leave_to_kernel(fd);
        set.tell(fd);
        set.has_bytes()
    })
}

/// Put together what the kernel has said of descriptors, and what the rings have; how many are ready.
fn merge_poll(at: usize, count: usize) -> isize {
    let mut ready = 0;
    for index in 0..count {
        let place = at + index * size_of::<PollFd>();
        let Some(mut one) = user::read::<PollFd>(place) else { return -(EFAULT as isize) };
        if let Some(end) = usize::try_from(one.fd).ok().and_then(fds::end_of) {
            let wanted = u32::from(one.events) & (IN | READ_NORMAL);
            let mut returned = u32::from(one.returned);
            if wanted != 0 && end.incoming().has_bytes() {
                returned |= wanted;
            } else if returned & wanted != 0 && !is_readable(&end, returned) {
                returned &= !wanted;
            }
            if returned != u32::from(one.returned) {
                one.returned = returned as u16;
                if !user::write(place, &one) {
                    return -(EFAULT as isize);
                }
            }
        } else if let Some(set) = usize::try_from(one.fd).ok().and_then(fds::set_of) {
            let wanted = one.events & (IN | READ_NORMAL) as u16;
            if wanted & !one.returned != 0 && fds::set(set).has_bytes() {
                one.returned |= wanted;
                if !user::write(place, &one) {
                    return -(EFAULT as isize);
                }
            }
        }
        ready += isize::from(one.returned != 0);
    }
    ready
}

/// Descriptors that a set of `select` has room for here; the kernel's own has no limit.
const SELECT_MAX: usize = 4096;
type Bits = [u64; SELECT_MAX / 64];
/// Of so many every program's sets have bits (`FD_SETSIZE`).
const SELECT_LEAST: usize = 1024;

/// Of `count` descriptors, those that the kernel looks at: some programs name as many as they might ever open, and have
/// smaller sets.
fn as_looked_at(count: usize) -> usize {
    if !(SELECT_LEAST + 1..=i32::MAX as usize).contains(&count) {
        return count;
    }
    open::room().map_or(count, |room| count.min(room.max(SELECT_LEAST)))
}

/// `select` and `pselect6`. What they need of the stack other calls have to do without: these may come from a signal
/// handler, on a stack of a few KiB.
#[inline(never)]
pub(super) fn select(number: usize, args: [usize; 6]) -> isize {
    let [count, sets @ .., timeout, mask] = args;
    let [reads, ..] = sets;
    let count = as_looked_at(count);
    let len = count.div_ceil(64) * 8;
    if count > SELECT_MAX || reads == 0 {
        return native(number, args);
    }
    let mut asked: [Bits; 3] = [[0; SELECT_MAX / 64]; 3];
    for (bits, at) in asked.iter_mut().zip(sets).filter(|(_, at)| *at != 0) {
        if !user::copy(bits.as_mut_ptr() as usize, at, len) {
            return -(EFAULT as isize);
        }
    }
    // Epoll instances with bytes in rings.
    let mut left: Bits = [0; SELECT_MAX / 64];
    let mut waiting = Waiting::new();
    let has = |bits: &Bits, fd: usize| bits[fd / 64] >> (fd % 64) & 1 == 1;
    for fd in (0..count).filter(|&fd| has(&asked[0], fd)) {
        if leaves_bytes(fd) {
            left[fd / 64] |= 1 << (fd % 64);
        }
        if let Some(end) = fds::end_of(fd) {
            waiting.add(end);
        }
    }
    if waiting.count == 0 && left.iter().all(|word| *word == 0) {
        return native(number, args);
    }
    let unit = if number == nr::SELECT { 1000 } else { 1 };
    let ns = match Timespec::read(timeout, unit) {
        Ok(ns) => ns,
        Err(errno) => return errno,
    };
    let until = Until::after(ns);
    let mask = if number == nr::PSELECT6 { mask } else { 0 };
    let mut got = asked;
    let mut kernel = |ns: Option<u64>, mask: usize| {
        got = asked;
        let time = ns.map(Timespec::of);
        let at = |index: usize| if sets[index] == 0 { 0 } else { got[index].as_ptr() as usize };
        let time_at = time.as_ref().map_or(0, Timespec::at);
        let result = ask(nr::PSELECT6, [count, at(0), at(1), at(2), time_at, mask]);
        (result, got)
    };
    let mut has_looked = false;
    let (ready, got) = loop {
        let has_bytes = left.iter().any(|word| *word != 0) || waiting.any_bytes();
        let (result, mut got) = kernel(Some(0), if has_bytes { 0 } else { mask });
        if result < 0 {
            return result;
        }
        // Of what is beyond all descriptors the kernel leaves the bits as they are, and does not count them.
        let mut ready = result;
        for (got, left) in got[0].iter_mut().zip(&left) {
            ready += (left & !*got).count_ones() as isize;
            *got |= left;
        }
        for end in waiting.ends() {
            let (word, bit) = (end.fd / 64, 1 << (end.fd % 64));
            let is_told = got[0][word] & bit != 0;
            if end.incoming().has_bytes() {
                got[0][word] |= bit;
                ready += isize::from(!is_told);
            } else if is_told && !is_readable(end, kernels_events(end.fd, IN | READ_HUP)) {
                got[0][word] &= !bit;
                ready -= 1;
            }
        }
        if ready != 0 || until.is_over() {
            break (ready, got);
        }
        if !has_looked {
            has_looked = true;
            if waiting.look() {
                continue;
            }
        }
        match waiting.sleep(|| kernel(until.left(), mask).0) {
            Some(result) if result < 0 && !waiting.any_bytes() => return result,
            _ => {}
        }
    };
    for (bits, at) in got.iter().zip(sets).filter(|(_, at)| *at != 0) {
        if !user::copy(at, bits.as_ptr() as usize, len) {
            return -(EFAULT as isize);
        }
    }
    if let (nr::SELECT, Some(left)) = (number, until.left()) {
        // As the kernel does; a program that cannot be told has not asked.
        let _ = user::write(timeout, &[left / 1_000_000_000, left % 1_000_000_000 / 1000]);
    }
    ready
}
