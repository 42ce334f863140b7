//! Epoll instances with carried sockets in them.
//!
//! The kernel's instance has the same sockets, so that it wakes for everything that comes by the kernel; a
//! socket that may be carried is there under a word of ours instead of the program's. What comes by rings
//! is in the [`Watcher`] of the instance, which writers mark.
//!
//! So is everything else that a program adds to it: a socket may be added before it is connected.
//!
//! Programs change what they wait for more often than they wait. So a change for a carried socket that is
//! level-triggered is only noted; the kernel is told before a thread sleeps in it, and now and then.

mod noted;

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64, fence};

use libos::sockets::{MANY, WATCHED_MAX, Watcher, watch_word};

use noted::noted;

use super::fds::{self, End};
use super::stream;
use super::wait::{ERR, HUP, IN, OUT, READ_HUP, READ_NORMAL, Timespec, Until, is_readable};
use super::{ask, late, native, sockets, user};
use crate::sys::{EFAULT, ENOMEM, nr};
use crate::time;

const ADD: usize = 1;
const DELETE: usize = 2;
const MODIFY: usize = 3;
pub(super) const EDGE: u32 = 1 << 31;
pub(super) const ONCE: u32 = 1 << 30;
/// Events of which the kernel need not be told at once.
const PLAIN: u32 = IN | OUT | READ_NORMAL | READ_HUP | HUP | ERR | 2;
/// Upper part of a word of ours. A program's own word is taken for it once in 2^52.
const OURS: u64 = 0x5b78_f0c3_9a1d_e000;
/// How often the kernel is asked while rings have bytes.
const KERNEL_NS: u64 = 20_000;
/// How long the kernel may not be told of changes while nobody sleeps.
const UNTOLD_NS: u64 = 1_000_000;
/// In [`Socket::kernel`]: it has it. (`EPOLLEXCLUSIVE`, which comes with no socket of which that is said.)
const KNOWN: u32 = 1 << 28;
/// Events that come from rings at a time.
const RING_EVENTS_MAX: usize = 128;

/// `struct epoll_event`.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed)]
pub(super) struct Event {
    pub(super) events: u32,
    pub(super) data: u64,
}

pub(super) const EVENT_LEN: usize = size_of::<Event>();

/// An epoll instance of this process.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Set {
    /// The process that made it, or 0.
    pub(super) pid: AtomicU32,
    /// Number of its watcher.
    watcher: AtomicU32,
    /// 1 once all its sockets are left to the kernel: others wait for it in ways of their own.
    left: AtomicU32,
    /// 1 once it has had a carried socket.
    used: AtomicU32,
    /// When the kernel was asked last.
    asked_ns: AtomicU64,
    /// When it was told last.
    told_ns: AtomicU64,
    /// A bit per socket of which the kernel has not been told.
    untold: [AtomicU64; WATCHED_MAX / 64],
    sockets: [Socket; WATCHED_MAX],
}

/// A socket of a set.
#[derive(Debug)]
#[repr(C)]
struct Socket {
    /// The descriptor and 1, or 0.
    fd: AtomicU32,
    /// What the program asked for; 0 if it is asleep after an event (`EPOLLONESHOT`), or not there.
    events: AtomicU32,
    data: AtomicU64,
    /// What the kernel knows of it: events, and [`KNOWN`].
    kernel: AtomicU32,
    /// 1 while the program has it there.
    present: AtomicU32,
}

impl Set {
    /// Take it for an instance of `pid`, if it is free.
    pub(super) fn begin(&self, pid: u32) -> bool {
        if pid == 0 || self.pid.compare_exchange(0, pid, AcqRel, Relaxed).is_err() {
            return false;
        }
        let free =
            |watcher: &Watcher| watcher.pid.compare_exchange(0, pid, AcqRel, Relaxed).is_ok();
        let Some(watcher) = sockets().watchers.iter().position(free) else {
            self.pid.store(0, Release);
            return false;
        };
        sockets().watchers[watcher].reset();
        self.watcher.store(watcher as u32, Relaxed);
        self.left.store(0, Relaxed);
        self.used.store(0, Relaxed);
        self.asked_ns.store(0, Relaxed);
        self.told_ns.store(0, Relaxed);
        self.untold.iter().for_each(|word| word.store(0, Relaxed));
        self.sockets.iter().for_each(|socket| {
            // Untouched memory stays so.
            if socket.fd.load(Relaxed) != 0 {
                socket.fd.store(0, Relaxed);
            }
        });
        true
    }

    /// The instance is closed.
    pub(super) fn end(&self, pid: u32) {
        if self.pid.load(Relaxed) != pid {
            return;
        }
        let number = self.watcher.load(Relaxed);
        for (index, socket) in self.sockets.iter().enumerate() {
            let fd = socket.fd.swap(0, AcqRel);
            let Some(fd) = (fd as usize).checked_sub(1) else { continue };
            fds::put_in_place(fd, None);
            if let Some(end) = fds::end_of(fd) {
                unwatch(&end, watch_word(number as usize, index));
            }
        }
        self.watcher().pid.store(0, Release);
        self.pid.store(0, Release);
    }

    fn watcher(&self) -> &'static Watcher {
        let watchers = &sockets().watchers;
        &watchers[self.watcher.load(Relaxed) as usize % watchers.len()]
    }

    /// All its sockets go by the kernel from now on. What is in their rings already stays marked.
    pub(super) fn leave_to_kernel(&self) {
        if self.left.swap(1, AcqRel) == 0 {
            for end in self.ends() {
                end.incoming().waiting.watch.store(MANY, Release);
                if end.connection.is_counter() {
                    stream::leave_to_kernel(&end);
                }
            }
            fence(SeqCst);
            for (index, socket) in self.sockets.iter().enumerate() {
                if socket.has_bytes() {
                    self.watcher().mark(index);
                }
            }
        }
    }

    /// Would a wait for it find bytes in rings?
    pub(super) fn has_bytes(&self) -> bool {
        self.watcher().summary.0.load(Acquire) != 0 && self.sockets.iter().any(Socket::has_bytes)
    }

    fn ends(&self) -> impl Iterator<Item = End> {
        let fd = |socket: &Socket| (socket.fd.load(Relaxed) as usize).checked_sub(1);
        self.sockets.iter().filter_map(fd).filter_map(fds::end_of)
    }

    /// The socket that the kernel has under this word, if it is one of ours; and there is one.
    fn socket_of(&self, data: u64) -> Option<Option<&Socket>> {
        let socket = &self.sockets[(data & (WATCHED_MAX as u64 - 1)) as usize];
        let is_there = socket.fd.load(Relaxed) != 0;
        (data & !(WATCHED_MAX as u64 - 1) == OURS).then(|| is_there.then_some(socket))
    }

    /// Tell the kernel what has changed.
    fn tell(&self, epoll: usize) {
        for (at, word) in self.untold.iter().enumerate() {
            let mut bits = if word.load(Relaxed) == 0 { 0 } else { word.swap(0, AcqRel) };
            while bits != 0 {
                let index = at * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                self.sockets[index].tell(epoll, index);
            }
        }
    }

    /// Tell the kernel what has changed of connections that end, which is for it to say.
    fn tell_ends(&self, epoll: usize) {
        for (at, word) in self.untold.iter().enumerate() {
            let mut bits = word.load(Relaxed);
            while bits != 0 {
                let index = at * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let socket = &self.sockets[index];
                let end = (socket.fd.load(Relaxed) as usize).checked_sub(1).and_then(fds::end_of);
                if end.is_some_and(|end| end.connection.is_ending()) {
                    socket.tell(epoll, index);
                }
            }
        }
    }

    /// What is asked for of a socket has changed: whoever sleeps already is to be woken by what there is, and by
    /// what comes.
    fn rouse(&self, epoll: usize, index: usize, end: &End) {
        fence(SeqCst);
        if self.watcher().parked.0.load(Acquire) == 0 {
            return;
        }
        let socket = &self.sockets[index];
        socket.tell(epoll, index);
        if !socket.has_bytes() {
            return;
        }
        if end.connection.is_pipe() {
            return super::pipes::pass(end.fd);
        }
        socket.wake_by_room(epoll, index);
        self.untold[index / 64].fetch_or(1 << (index % 64), AcqRel);
    }

    /// Is it this process's own, and does it wait by its watcher?
    fn is_watched(&self) -> bool {
        self.left.load(Relaxed) == 0 && fds::is_own_set(self)
    }
}

impl Socket {
    /// The program has asked for this, and the kernel knows.
    fn note(&self, event: Event) {
        self.data.store(event.data, Relaxed);
        self.events.store(event.events, Release);
        self.present.store(1, Relaxed);
        self.kernel.store(event.events | KNOWN, Relaxed);
    }

    /// Are there bytes in its ring that the program waits for?
    fn has_bytes(&self) -> bool {
        let fd = (self.fd.load(Relaxed) as usize).checked_sub(1);
        self.events.load(Acquire) & (IN | READ_NORMAL) != 0
            && fd.and_then(fds::end_of).is_some_and(|end| end.incoming().has_bytes())
    }

    /// Has it been reported, once for all?
    fn is_asleep(&self) -> bool {
        self.kernel.load(Relaxed) & ONCE != 0
    }

    /// Have the kernel know what the program asks for.
    fn tell(&self, epoll: usize, index: usize) {
        let Some(fd) = (self.fd.load(Acquire) as usize).checked_sub(1) else { return };
        let (events, known) = (self.events.load(Acquire), self.kernel.load(Relaxed));
        let wanted = if self.present.load(Relaxed) == 0 { 0 } else { events | KNOWN };
        let what = match (known & KNOWN, wanted & KNOWN) {
            _ if known == wanted => return,
            // It has been reported once for all: any other word would wake it.
            (_, 1..) if events == 0 && self.is_asleep() => return,
            (0, _) => ADD,
            (_, 0) => DELETE,
            _ => MODIFY,
        };
        let event = Event { events, data: OURS | index as u64 };
        if ask(nr::EPOLL_CTL, [epoll, what, fd, &raw const event as usize]) == 0 {
            self.kernel.store(wanted, Relaxed);
        }
    }

    /// Have the kernel wake a thread, by what is no event for the program: that there is room to write.
    fn wake_by_room(&self, epoll: usize, index: usize) {
        let Some(fd) = (self.fd.load(Acquire) as usize).checked_sub(1) else { return };
        let events = self.events.load(Acquire) | OUT;
        let event = Event { events, data: OURS | index as u64 };
        if ask(nr::EPOLL_CTL, [epoll, MODIFY, fd, &raw const event as usize]) == 0 {
            self.kernel.store(events | KNOWN, Relaxed);
        }
    }
}

/// The socket at this place may be known by other descriptors soon: the kernel is to know of it.
pub(super) fn tell((set, index): (usize, usize)) {
    if let Some(epoll) = fds::fd_of_set(set) {
        fds::set(set).sockets[index % WATCHED_MAX].tell(epoll, index);
    }
}

/// Something has changed about an end that may have bytes: that is an event.
pub(super) fn look_again(end: &End) {
    let same = |other: &End| (other.row, other.side) == (end.row, end.side);
    let place = fds::ends().filter(same).find_map(|other| fds::place_of(other.fd));
    if let Some((set, index)) = place.filter(|_| end.incoming().has_bytes()) {
        fds::set(set).watcher().mark(index);
    }
}

fn unwatch(end: &End, word: u32) {
    let _ = end.incoming().waiting.watch.compare_exchange(word, 0, AcqRel, Relaxed);
}

/// The socket at this place is in the set no longer.
pub(super) fn forget((set, index): (usize, usize), fd: usize) {
    let set = fds::set(set);
    if !fds::is_own_set(set) {
        return;
    }
    set.sockets[index % WATCHED_MAX].fd.store(0, Release);
    if let Some(end) = fds::end_of(fd) {
        unwatch(&end, watch_word(set.watcher.load(Relaxed) as usize, index));
    }
}

/// `epoll_ctl`.
pub(super) fn control(args: [usize; 6]) -> isize {
    let [epoll, what, fd, at, ..] = args;
    if what == ADD
        && let Some(nested) = fds::set_of(fd)
    {
        let nested = fds::set(nested);
        nested.leave_to_kernel();
        let result = plain(args);
        let event = user::read::<Event>(at).filter(|_| result == 0 && nested.has_bytes());
        if let Some(event) = event {
            // Nobody else says so. Without room it is told when more comes.
            let _ = fds::late().note(epoll, fd, event);
        }
        return result;
    }
    let Some(end) = fds::end_of(fd) else { return plain(args) };
    let place = fds::place_of(fd).filter(|place| fds::set_of(epoll) == Some(place.0));
    if let Some(place) = place
        && let Some(result) = noted(&end, epoll, what, at, place)
    {
        return result;
    }
    if let Some(place) = place {
        fds::set(place.0).sockets[place.1].tell(epoll, place.1);
    }
    if what == DELETE {
        let result = native(nr::EPOLL_CTL, args);
        fds::late().forget(end.fd);
        if let (0, Some(place)) = (result, place) {
            forget(place, end.fd);
            fds::put_in_place(end.fd, None);
        }
        return result;
    }
    let Some(event) = user::read::<Event>(at) else { return native(nr::EPOLL_CTL, args) };
    if event.events & OUT != 0 && end.connection.is_counter() {
        // Each read is an edge for who waits for room.
        stream::leave_to_kernel(&end);
    }
    let (place, is_new) = match place {
        Some(place) => (place, false),
        None if what == ADD => match new_place(epoll, fd) {
            Some(place) => (place, true),
            None => return by_kernel(&end, args),
        },
        // In a second set, or in one that is not watched.
        None => return by_kernel(&end, args),
    };
    let set = fds::set(place.0);
    let socket = &set.sockets[place.1];
    let events = event.events;
    let ours = Event { events, data: OURS | place.1 as u64 };
    let result = ask(nr::EPOLL_CTL, [epoll, what, fd, &raw const ours as usize]);
    if result != 0 {
        if is_new {
            socket.fd.store(0, Release);
        }
        return result;
    }
    socket.note(event);
    let direction = end.incoming();
    if is_new {
        fds::put_in_place(end.fd, Some(place));
        watch(&end);
    }
    if direction.has_bytes() {
        set.watcher().mark(place.1);
        set.rouse(epoll, place.1, &end);
    }
    result
}

/// As [`control`], of a descriptor that is not carried, or not yet.
fn plain(args: [usize; 6]) -> isize {
    let [epoll, what, fd, at, ..] = args;
    let place = fds::place_of(fd).filter(|place| fds::set_of(epoll) == Some(place.0));
    let (place, is_new) = match (what, place) {
        (DELETE, Some(place)) => {
            let result = native(nr::EPOLL_CTL, args);
            if result == 0 {
                forget(place, fd);
                fds::put_in_place(fd, None);
            }
            return result;
        }
        (MODIFY, Some(place)) => (place, false),
        (ADD, None) => match new_place(epoll, fd) {
            Some(place) => (place, true),
            None => {
                fds::note_elsewhere(fd);
                return native(nr::EPOLL_CTL, args);
            }
        },
        _ => return native(nr::EPOLL_CTL, args),
    };
    let socket = &fds::set(place.0).sockets[place.1];
    let Some(event) = user::read::<Event>(at) else {
        if is_new {
            socket.fd.store(0, Release);
        }
        return native(nr::EPOLL_CTL, args);
    };
    let ours = Event { events: event.events, data: OURS | place.1 as u64 };
    let result = ask(nr::EPOLL_CTL, [epoll, what, fd, &raw const ours as usize]);
    if result == 0 {
        socket.note(event);
        if is_new {
            fds::put_in_place(fd, Some(place));
        }
    } else if is_new {
        socket.fd.store(0, Release);
    }
    result
}

/// Have writers mark an end in the set that it is in; or, if that cannot be, leave it to the kernel.
pub(super) fn watch(end: &End) {
    let direction = end.incoming();
    let taken = fds::place_of(end.fd).is_some_and(|(number, index)| {
        let set = fds::set(number);
        let word = watch_word(set.watcher.load(Relaxed) as usize, index);
        set.used.store(1, Relaxed);
        set.is_watched()
            && direction.waiting.watch.compare_exchange(0, word, AcqRel, Relaxed).is_ok()
    });
    if !taken {
        direction.waiting.watch.store(MANY, Release);
    }
    fence(SeqCst);
}

/// It goes by the kernel: who waits for it cannot be told. What is in its ring already is kept apart.
fn by_kernel(end: &End, args: [usize; 6]) -> isize {
    let [epoll, _, fd, at, ..] = args;
    if end.connection.is_counter() {
        return super::counters::waited_for_elsewhere(end, args);
    }
    end.incoming().waiting.watch.store(MANY, Release);
    fence(SeqCst);
    let result = native(nr::EPOLL_CTL, args);
    fds::late().forget(end.fd);
    let Some(event) = user::read::<Event>(at).filter(|_| result == 0) else { return result };
    let is_late = event.events & (IN | READ_NORMAL) != 0 && end.incoming().has_bytes();
    if is_late && !fds::late().note(epoll, end.fd, event) {
        ask(nr::EPOLL_CTL, [epoll, DELETE, fd, 0]);
        return -(ENOMEM as isize);
    }
    result
}

/// A place for `fd` in the set of `epoll`, if it is in none.
fn new_place(epoll: usize, fd: usize) -> Option<(usize, usize)> {
    let number = fds::set_of(epoll)?;
    let set = fds::set(number);
    if !fds::is_known(fd) || fds::place_of(fd).is_some() || !fds::is_own_set(set) {
        return None;
    }
    let word = fd as u32 + 1;
    let take = |socket: &Socket| socket.fd.compare_exchange(0, word, AcqRel, Relaxed).is_ok();
    set.sockets.iter().position(take).map(|index| (number, index))
}

/// `epoll_wait` and the others.
pub(super) fn wait(number: usize, args: [usize; 6]) -> isize {
    let [epoll, at, most, timeout, ..] = args;
    let set = fds::set_of(epoll).map(fds::set);
    let most = most as i32;
    if most <= 0 || user::read::<u8>(at).is_none() {
        return native(number, args);
    }
    if fds::late().is_used() {
        match fds::late().collect(epoll, at, most as usize) {
            Ok(0) => {}
            Ok(count) => return with_late(set, args, count),
            Err(errno) => return errno,
        }
    }
    let Some(set) = set else { return native(number, args) };
    if !set.is_watched() {
        set.leave_to_kernel();
    }
    let ns = if number == nr::EPOLL_PWAIT2 {
        Timespec::read(timeout, 1)
    } else {
        Ok(u64::try_from(timeout as i32).ok().map(|ms| ms * 1_000_000))
    };
    match ns {
        Ok(ns) => Wait { set, number, args, most: most as usize }.run(Until::after(ns)),
        Err(errno) => errno,
    }
}

/// The first `count` events are there, from those that were late: what else there is goes behind them.
fn with_late(set: Option<&'static Set>, args: [usize; 6], count: usize) -> isize {
    let [epoll, at, most, ..] = args;
    let (behind, left) = (at + count * EVENT_LEN, most as u32 as usize - count);
    let rest = [epoll, behind, left, 0, 0, 0];
    let number = nr::EPOLL_WAIT;
    let more = match set {
        _ if left == 0 => 0,
        Some(set) => Wait { set, number, args: rest, most: left }.run(Until::after(Some(0))),
        None => native(number, rest),
    };
    late::join(at, count, more.max(0) as usize).map_or_else(|errno| errno, |all| all as isize)
}

/// One call that waits.
struct Wait {
    set: &'static Set,
    number: usize,
    args: [usize; 6],
    most: usize,
}

impl Wait {
    fn run(&self, until: Until) -> isize {
        let watcher = self.set.watcher();
        let mut looked_ns = 0;
        loop {
            if self.set.used.load(Relaxed) == 0 {
                match self.sleep(watcher, until) {
                    Ok(Some(count)) => return count,
                    Ok(None) => continue,
                    Err(errno) => return errno,
                }
            }
            let from_rings = match self.collect() {
                Ok(count) => count,
                Err(errno) => return errno,
            };
            let now = time::now_ns();
            let due = now.saturating_sub(self.set.asked_ns.load(Relaxed)) > KERNEL_NS;
            if from_rings > 0 && (!due || from_rings == self.most) {
                return from_rings as isize;
            }
            self.set.asked_ns.store(now, Relaxed);
            let is_old = now.saturating_sub(self.set.told_ns.load(Relaxed)) > UNTOLD_NS;
            if is_old || from_rings == 0 && until.is_over() {
                self.set.told_ns.store(now, Relaxed);
                self.set.tell(self.args[0]);
            }
            self.set.tell_ends(self.args[0]);
            let all = match self.with_kernels(from_rings) {
                Ok(all) => all,
                Err(errno) => return errno,
            };
            if all > 0 || until.is_over() {
                return all as isize;
            }
            // The kernel is asked in between.
            let stretch =
                stream::patience(&watcher.patience_ns).saturating_sub(looked_ns).min(KERNEL_NS);
            if stretch != 0 {
                looked_ns += stretch;
                stream::look_until(stretch, &watcher.core, || watcher.summary.0.load(Acquire) != 0);
                continue;
            }
            match self.sleep(watcher, until) {
                Ok(Some(count)) => return count,
                Ok(None) => looked_ns = 0,
                Err(errno) => return errno,
            }
        }
    }

    /// Sleep in the kernel, if there is still nothing: what it has, or None if all of it was bells.
    fn sleep(&self, watcher: &Watcher, until: Until) -> Result<Option<isize>, isize> {
        watcher.parked.0.fetch_add(1, AcqRel);
        fence(SeqCst);
        // What another thread changes from now on, it tells the kernel itself.
        self.set.tell(self.args[0]);
        let began = time::now_ns();
        let nothing = watcher.summary.0.load(Acquire) == 0;
        let result = if nothing { self.kernel(0, until.left()) } else { 0 };
        let less = |count: u32| count.checked_sub(1);
        let _ = watcher.parked.0.fetch_update(AcqRel, Relaxed, less);
        let now = time::now_ns();
        self.set.asked_ns.store(now, Relaxed);
        if nothing {
            stream::note_wait(&watcher.patience_ns, now - began);
        }
        if result < 0 {
            return if watcher.summary.0.load(Acquire) == 0 { Err(result) } else { Ok(None) };
        }
        let kept = self.translate(0, result as usize)?;
        let is_over = kept == 0 && until.is_over() && watcher.summary.0.load(Acquire) == 0;
        Ok((kept > 0 || is_over).then_some(kept as isize))
    }

    /// Ask the kernel for events, behind those that there are.
    fn kernel(&self, count: usize, ns: Option<u64>) -> isize {
        let [epoll, at, _, _, mask, mask_len] = self.args;
        let (at, most) = (at + count * EVENT_LEN, self.most - count);
        if most == 0 {
            return 0;
        }
        let mask = if self.number == nr::EPOLL_WAIT { [0, 0] } else { [mask, mask_len] };
        if ns == Some(0) {
            return ask(nr::EPOLL_PWAIT, [epoll, at, most, 0, mask[0], mask[1]]);
        }
        let time = ns.map(Timespec::of);
        let time_at = time.as_ref().map_or(0, Timespec::at);
        ask(nr::EPOLL_PWAIT2, [epoll, at, most, time_at, mask[0], mask[1]])
    }

    /// The kernel's events behind the `count` that there are; how many there are then.
    fn with_kernels(&self, mut count: usize) -> Result<usize, isize> {
        loop {
            let kernels = self.kernel(count, Some(0));
            if kernels < 0 && count == 0 {
                return Err(kernels);
            }
            let (former, room) = (count, self.most - count);
            count = self.translate(former, kernels.max(0) as usize)?;
            // Some took the places of others, and were one with what was there.
            if (kernels as usize) != room || count == former || count == self.most {
                return Ok(count);
            }
        }
    }

    fn event_at(&self, index: usize) -> usize {
        self.args[1] + index * EVENT_LEN
    }

    /// Events of sockets whose rings have bytes; how many.
    fn collect(&self) -> Result<usize, isize> {
        let watcher = self.set.watcher();
        let most = self.most.min(RING_EVENTS_MAX);
        let mut count = 0;
        let mut summary = watcher.summary.0.load(Acquire);
        while summary != 0 && count < most {
            let word = summary.trailing_zeros() as usize;
            summary &= summary - 1;
            let mut ready = watcher.ready[word].load(Acquire);
            while ready != 0 && count < most {
                let index = word * 64 + ready.trailing_zeros() as usize;
                ready &= ready - 1;
                if let Some(event) = self.event_of_ring(watcher, index) {
                    if !user::write(self.event_at(count), &event) {
                        return Err(-(EFAULT as isize));
                    }
                    count += 1;
                }
            }
        }
        Ok(count)
    }

    /// The event of a marked socket, if it is one for the program.
    fn event_of_ring(&self, watcher: &Watcher, index: usize) -> Option<Event> {
        let socket = &self.set.sockets[index];
        let events = socket.events.load(Acquire);
        let end = (socket.fd.load(Acquire) as usize).checked_sub(1).and_then(fds::end_of);
        let Some(end) = end.filter(|_| events & (IN | READ_NORMAL | OUT) != 0) else {
            // It is marked again when that changes.
            watcher.unmark(index);
            return None;
        };
        let (incoming, outgoing) = (end.incoming(), end.outgoing());
        let readable = || if incoming.has_bytes() { events & (IN | READ_NORMAL) } else { 0 };
        // Of a pipe the kernel says.
        let is_pipe = end.connection.is_pipe();
        let is_socket = end.connection.is_socket();
        let writable = if is_socket && !outgoing.is_in_kernel() { events & OUT } else { 0 };
        let is_level = events & (EDGE | ONCE) == 0;
        let mut got = readable();
        if got != 0 || is_level {
            got |= writable;
        }
        if !is_level || got == 0 {
            watcher.unmark(index);
            fence(SeqCst);
            // Bytes may have come before it was unmarked.
            got |= readable();
            if got != 0 && is_level {
                watcher.mark(index);
            } else if events & OUT != 0 {
                // When there is room the kernel says.
                socket.tell(self.args[0], index);
            }
        }
        // The kernel has something to add.
        if got != 0 && (is_pipe || events & OUT != writable || end.connection.is_ending()) {
            got |= super::wait::kernels_events(end.fd, events);
        }
        if got != 0 && events & ONCE != 0 {
            self.put_to_sleep(socket, index);
        }
        (got != 0).then(|| Event { events: got, data: socket.data.load(Relaxed) })
    }

    /// After an event of a socket with `EPOLLONESHOT`.
    fn put_to_sleep(&self, socket: &Socket, index: usize) {
        socket.events.store(0, Release);
        let none = Event { events: EDGE | ONCE, data: OURS | index as u64 };
        let fd = socket.fd.load(Relaxed).saturating_sub(1) as usize;
        ask(nr::EPOLL_CTL, [self.args[0], MODIFY, fd, &raw const none as usize]);
    }

    /// Make the program's events of the `more` that the kernel has put behind the first `count`; how many
    /// there are then.
    fn translate(&self, count: usize, more: usize) -> Result<usize, isize> {
        const FAULT: isize = -(EFAULT as isize);
        let mut kept = count;
        for index in count..count + more {
            let mut event = user::read::<Event>(self.event_at(index)).ok_or(FAULT)?;
            if let Some(socket) = self.set.socket_of(event.data) {
                // It is not the program's any more.
                let Some(socket) = socket else { continue };
                if event.events & (IN | READ_NORMAL) != 0 {
                    self.cover(event.data, socket);
                }
                let Some(events) = Self::of_kernel(socket, event.events) else { continue };
                event = Event { events, data: socket.data.load(Relaxed) };
                // One of these may be there already, from its ring.
                if late::joined_to_former(self.args[1], count, event)? {
                    continue;
                }
            } else if kept == index {
                kept += 1;
                continue;
            }
            if !user::write(self.event_at(kept), &event) {
                return Err(FAULT);
            }
            kept += 1;
        }
        Ok(kept)
    }

    /// The kernel's event of a counter stands for all that has been added to it before: there is no other for that.
    fn cover(&self, data: u64, socket: &Socket) {
        let fd = (socket.fd.load(Relaxed) as usize).checked_sub(1);
        let Some(end) = fd.and_then(fds::end_of).filter(|end| end.connection.is_counter()) else {
            return;
        };
        let (watcher, index) = (self.set.watcher(), (data & (WATCHED_MAX as u64 - 1)) as usize);
        watcher.unmark(index);
        fence(SeqCst);
        if socket.events.load(Acquire) & (EDGE | ONCE) == 0 && end.incoming().has_bytes() {
            watcher.mark(index);
        }
    }

    /// What of the kernel's events of a carried socket is for the program.
    fn of_kernel(socket: &Socket, events: u32) -> Option<u32> {
        let asked = socket.events.load(Acquire);
        let mut events = events & (asked | ERR | HUP);
        if socket.present.load(Relaxed) == 0 || asked == 0 && socket.is_asleep() {
            return None;
        }
        let fd = socket.fd.load(Relaxed).saturating_sub(1) as usize;
        let reads = events & (IN | READ_NORMAL);
        let end = fds::end_of(fd);
        if reads != 0
            && let Some(end) = &end
            && !is_readable(end, events)
        {
            // What came with it may be an edge of its own: it stays.
            events &= !reads;
        }
        // The kernel does not say that there is something to read if it has no bells.
        if events != 0
            && end.is_some_and(|end| end.connection.has_no_bells() && end.incoming().has_bytes())
        {
            events |= asked & (IN | READ_NORMAL);
        }
        if events != 0 && asked & ONCE != 0 {
            socket.events.store(0, Release);
        }
        (events != 0).then_some(events)
    }
}
