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

mod control;
mod noted;

pub(super) use control::{control, forget_all, leave_behind, look_again, tell, tell_all, watch};

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64, fence};

use libos::sockets::{WATCHED_MAX, Watcher, watch_word};

use super::fds::{self, End};
use super::stream;
use super::wait::{
    ERR, HUP, IN, OUT, PRI, READ_HUP, READ_NORMAL, Timespec, Until, is_readable, kernels_events,
};
use super::{ask, inlets, late, native, sockets, user};
use crate::sys::{EFAULT, nr};
use crate::time;

const ADD: usize = 1;
const DELETE: usize = 2;
const MODIFY: usize = 3;
pub(super) const EDGE: u32 = 1 << 31;
pub(super) const ONCE: u32 = 1 << 30;
/// Events of which the kernel need not be told at once.
const PLAIN: u32 = IN | OUT | READ_NORMAL | READ_HUP | HUP | ERR | PRI;
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

/// What is kept of a socket.
#[derive(Debug, Clone, Copy)]
struct Noted {
    data: u64,
    events: u32,
    present: u32,
    kernel: u32,
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
            if fds::place_of(fd).is_some_and(|place| self.is_at(place, index)) {
                fds::put_in_place(fd, None);
            }
            if let Some(end) = fds::end_of(fd) {
                control::unwatch(&end, watch_word(number as usize, index));
            }
        }
        self.watcher().pid.store(0, Release);
        self.pid.store(0, Release);
    }

    fn watcher(&self) -> &'static Watcher {
        let watchers = &sockets().watchers;
        &watchers[self.watcher.load(Relaxed) as usize % watchers.len()]
    }

    /// Is `place` that of its socket `index`?
    fn is_at(&self, place: (usize, usize), index: usize) -> bool {
        core::ptr::eq(fds::set(place.0), self) && place.1 == index
    }

    /// All its sockets, of the instance `epoll`, go by the kernel from now on. What is in their rings already stays
    /// marked, and is shown.
    pub(super) fn leave_to_kernel(&self, epoll: usize) {
        if self.left.swap(1, AcqRel) == 0 {
            self.ends().for_each(|end| control::cannot_watch(&end));
            fence(SeqCst);
            for (index, socket) in self.sockets.iter().enumerate() {
                let is_level = socket.events.load(Acquire) & (EDGE | ONCE) == 0;
                if socket.has_bytes() && (is_level || self.is_marked(index)) {
                    self.watcher().mark(index);
                    socket.end().iter().for_each(|end| self.show(epoll, index, end));
                }
            }
        }
    }

    /// Would a wait for it find bytes in rings?
    pub(super) fn has_bytes(&self) -> bool {
        let has = |(index, socket): (usize, &Socket)| self.is_marked(index) && socket.has_bytes();
        self.watcher().summary.0.load(Acquire) != 0 && self.sockets.iter().enumerate().any(has)
    }

    fn is_marked(&self, index: usize) -> bool {
        self.watcher().ready[index / 64].load(Acquire) >> (index % 64) & 1 == 1
    }

    /// The set, as the kernel has it for others who wait for the instance `epoll`: has it something?
    pub(super) fn is_shown(&self, epoll: usize) -> bool {
        self.tell(epoll);
        kernels_events(epoll, IN) & IN != 0 || self.has_bytes()
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
    pub(super) fn tell(&self, epoll: usize) {
        for (at, word) in self.untold.iter().enumerate() {
            let mut bits = if word.load(Relaxed) == 0 { 0 } else { word.swap(0, AcqRel) };
            while bits != 0 {
                let index = at * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                self.tell_of(epoll, index);
            }
        }
    }

    /// Have the kernel know what the program asks for of one.
    fn tell_of(&self, epoll: usize, index: usize) {
        let socket = &self.sockets[index];
        let is_shown = self.left.load(Acquire) != 0 && self.is_marked(index) && socket.has_bytes();
        if is_shown {
            self.is_untold(index);
        }
        socket.tell(epoll, index, is_shown);
    }

    /// The kernel is to be told of it later.
    fn is_untold(&self, index: usize) {
        let (word, bit) = (&self.untold[index / 64], 1 << (index % 64));
        if word.load(Relaxed) & bit == 0 {
            word.fetch_or(bit, AcqRel);
        }
    }

    /// Tell the kernel what has changed of connections that end, which is for it to say.
    fn tell_ends(&self, epoll: usize) {
        for (at, word) in self.untold.iter().enumerate() {
            let mut bits = word.load(Relaxed);
            while bits != 0 {
                let index = at * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if self.sockets[index].end().is_some_and(|end| end.connection.is_ending()) {
                    self.tell_of(epoll, index);
                }
            }
        }
    }

    /// What is asked for of a socket has changed: whoever sleeps already is to be woken by what there is, and by
    /// what comes.
    fn rouse(&self, epoll: usize, index: usize, end: &End) {
        fence(SeqCst);
        if self.watcher().parked.0.load(Acquire) == 0 && self.left.load(Acquire) == 0 {
            return;
        }
        self.tell_of(epoll, index);
        if self.sockets[index].has_bytes() {
            self.show(epoll, index, end);
        }
    }

    /// Have the kernel wake whoever waits, in whatever way, since a ring has bytes.
    fn show(&self, epoll: usize, index: usize, end: &End) {
        if end.connection.is_pipe() {
            return super::pipes::pass(end.fd);
        }
        self.sockets[index].tell(epoll, index, true);
        self.is_untold(index);
    }

    /// Is it this process's own, and does it wait by its watcher?
    fn is_watched(&self) -> bool {
        self.left.load(Relaxed) == 0 && fds::is_own_set(self)
    }
}

impl Socket {
    /// The program asks for this, and the kernel knows. What was before.
    fn note(&self, event: Event) -> Noted {
        let former = Noted {
            data: self.data.load(Relaxed),
            events: self.events.load(Relaxed),
            present: self.present.load(Relaxed),
            kernel: self.kernel.load(Relaxed),
        };
        let Event { events, data } = event;
        self.set_noted(Noted { data, events, present: 1, kernel: events | KNOWN });
        former
    }

    fn set_noted(&self, noted: Noted) {
        self.data.store(noted.data, Relaxed);
        self.kernel.store(noted.kernel, Relaxed);
        self.present.store(noted.present, Relaxed);
        self.events.store(noted.events, Release);
    }

    /// What its descriptor stands for.
    fn end(&self) -> Option<End> {
        (self.fd.load(Acquire) as usize).checked_sub(1).and_then(fds::end_of)
    }

    /// Are there bytes in its ring that the program waits for?
    fn has_bytes(&self) -> bool {
        self.events.load(Acquire) & (IN | READ_NORMAL) != 0
            && self.end().is_some_and(|end| end.incoming().has_bytes())
    }

    /// Has it been reported, once for all?
    fn is_asleep(&self) -> bool {
        self.kernel.load(Relaxed) & ONCE != 0
    }

    /// Have the kernel know what the program asks for; and, if its ring's bytes are to be shown, wake a thread by what
    /// is no event for the program: that there is room to write.
    fn tell(&self, epoll: usize, index: usize, is_shown: bool) {
        let Some(fd) = (self.fd.load(Acquire) as usize).checked_sub(1) else { return };
        let (asked, known) = (self.events.load(Acquire), self.kernel.load(Relaxed));
        let events = if is_shown { asked | OUT } else { asked };
        let wanted = if self.present.load(Relaxed) == 0 { 0 } else { events | KNOWN };
        let what = match (known & KNOWN, wanted & KNOWN) {
            _ if known == wanted => return,
            // It has been reported once for all: any other word would wake it.
            (_, 1..) if asked == 0 && self.is_asleep() => return,
            (0, _) => ADD,
            (_, 0) => DELETE,
            _ => MODIFY,
        };
        let event = Event { events, data: OURS | index as u64 };
        if ask(nr::EPOLL_CTL, [epoll, what, fd, &raw const event as usize]) == 0 {
            self.kernel.store(wanted, Relaxed);
        }
    }
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
        set.leave_to_kernel(epoll);
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
            if self.set.used.load(Relaxed) == 0 || Self::sleeps_at_once(watcher, until) {
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

    /// Is there nothing, and looking for it no use?
    fn sleeps_at_once(watcher: &Watcher, until: Until) -> bool {
        let is_vain = stream::is_vain(stream::patience(&watcher.patience_ns), &watcher.core);
        is_vain && watcher.summary.0.load(Acquire) == 0 && !until.is_over()
    }

    /// Sleep in the kernel, if there is still nothing: what it has, or None if all of it was bells.
    fn sleep(&self, watcher: &Watcher, until: Until) -> Result<Option<isize>, isize> {
        watcher.parked.0.fetch_add(1, AcqRel);
        fence(SeqCst);
        // What another thread changes from now on, it tells the kernel itself.
        self.set.tell(self.args[0]);
        let began = time::now_ns();
        let nothing = !watcher.has_marks();
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
        let kept = self.translate(0, 0, result as usize)?;
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
        let asked = count;
        loop {
            let kernels = self.kernel(count, Some(0));
            if kernels < 0 && count == 0 {
                return Err(kernels);
            }
            let (former, room) = (count, self.most - count);
            count = self.translate(asked, former, kernels.max(0) as usize)?;
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
        let Some(end) = socket.end().filter(|_| events & (IN | READ_NORMAL | OUT) != 0) else {
            // It is marked again when that changes.
            watcher.unmark(index);
            return None;
        };
        let (incoming, outgoing) = (end.incoming(), end.outgoing());
        let readable = || if incoming.has_bytes() { events & (IN | READ_NORMAL) } else { 0 };
        // Of a pipe the kernel says, and of AF_UNIX whether the peer has room for a datagram.
        let is_pipe = end.connection.is_pipe();
        let is_socket = end.connection.is_socket() && !inlets::is_local(&end);
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
                self.set.tell_of(self.args[0], index);
            }
        }
        // The kernel has something to add.
        let has_more = || {
            is_pipe
                || events & OUT != writable
                || events & PRI != 0 && incoming.is_in_kernel()
                || end.connection.is_ending()
                || inlets::may_have_failed(&end)
        };
        if got != 0 && has_more() {
            got |= kernels_events(end.fd, events);
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

    /// Make the program's events of the `more` that the kernel has put behind the first `count`, of which those from
    /// `asked` on it has told before; how many there are then.
    fn translate(&self, asked: usize, count: usize, more: usize) -> Result<usize, isize> {
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
                if late::joined_to_former(self.args[1], 0..count, event)? {
                    continue;
                }
            } else if late::joined_to_former(self.args[1], asked..count, event)? {
                continue;
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
        let Some(end) = socket.end().filter(|end| end.connection.is_counter()) else { return };
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
        // An instance in this one may have shown what has been taken since.
        if reads != 0
            && let Some(nested) = fds::set_of(fd)
            && !fds::set(nested).is_shown(fd)
        {
            events &= !reads;
        }
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
