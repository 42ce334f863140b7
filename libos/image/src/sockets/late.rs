//! Sockets that were added to an epoll instance of which nobody knows who waits there (it has no set, is full, or not
//! this process's own), when their rings had bytes already: what comes later is the kernel's to tell, but of these bytes
//! it knows nothing. Whoever comes to wait there is told of them from here until they have been taken.

use core::ops::Range;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use super::epoll::{EDGE, EVENT_LEN, Event, ONCE};
use super::fds;
use super::wait::{IN, READ_NORMAL};
use super::{ask, user};
use crate::sys::{EFAULT, nr};

/// Such sockets at a time.
const LATE_MAX: usize = 1024;
const MODIFY: usize = 3;

/// All of a process.
#[repr(C)]
pub(super) struct Table {
    /// How many there are.
    count: AtomicU32,
    all: [Late; LATE_MAX],
}

/// One of them.
#[repr(C)]
struct Late {
    /// The descriptor and 1; 0 if this is free, [`TAKEN`] while it is being filled.
    fd: AtomicU32,
    epoll: AtomicU32,
    events: AtomicU32,
    data: AtomicU64,
}

const TAKEN: u32 = u32::MAX;

impl Table {
    /// Is there any?
    #[inline]
    pub(super) fn is_used(&self) -> bool {
        self.count.load(Relaxed) != 0
    }

    /// The socket `fd`, which is in `epoll` under this event, has bytes in its ring. False if there is no room.
    pub(super) fn note(&self, epoll: usize, fd: usize, event: Event) -> bool {
        self.forget(epoll, fd);
        let take = |late: &&Late| late.fd.compare_exchange(0, TAKEN, AcqRel, Relaxed).is_ok();
        let Some(late) = self.all.iter().find(take) else { return false };
        self.count.fetch_add(1, AcqRel);
        late.epoll.store(epoll as u32, Relaxed);
        late.events.store(event.events, Relaxed);
        late.data.store(event.data, Relaxed);
        late.fd.store(fd as u32 + 1, Release);
        true
    }

    /// `fd` is asked for in another way in `epoll`, or is there no longer.
    pub(super) fn forget(&self, epoll: usize, fd: usize) {
        self.drop_all(|late, of| of == fd && late.epoll.load(Relaxed) == epoll as u32);
    }

    /// `fd` is closed, which may be an instance.
    pub(super) fn closed(&self, fd: usize) {
        self.drop_all(|late, of| of == fd || late.epoll.load(Relaxed) == fd as u32);
    }

    fn drop_all(&self, is_it: impl Fn(&Late, usize) -> bool) {
        if !self.is_used() {
            return;
        }
        for late in &self.all {
            let fd = late.socket();
            if let Some(fd) = fd.filter(|fd| is_it(late, *fd)) {
                self.drop_one(late, fd);
            }
        }
    }

    fn drop_one(&self, late: &Late, fd: usize) {
        if late.fd.compare_exchange(fd as u32 + 1, 0, AcqRel, Relaxed).is_ok() {
            self.count.fetch_sub(1, AcqRel);
        }
    }

    /// Put the events of those in `epoll` at `at`, `most` at most; how many.
    pub(super) fn collect(&self, epoll: usize, at: usize, most: usize) -> Result<usize, isize> {
        let mut count = 0;
        for late in self.all.iter().filter(|late| late.epoll.load(Relaxed) == epoll as u32) {
            let Some(fd) = late.socket() else { continue };
            if count == most {
                break;
            }
            let (asked, data) = (late.events.load(Relaxed), late.data.load(Relaxed));
            let has_bytes = fds::end_of(fd).is_some_and(|end| end.incoming().has_bytes());
            if !has_bytes || asked & (EDGE | ONCE) != 0 {
                self.drop_one(late, fd);
            }
            if !has_bytes {
                continue;
            }
            if asked & ONCE != 0 {
                let none = Event { events: EDGE | ONCE, data };
                ask(nr::EPOLL_CTL, [epoll, MODIFY, fd, &raw const none as usize]);
            }
            let event = Event { events: asked & (IN | READ_NORMAL), data };
            if !user::write(at + count * EVENT_LEN, &event) {
                return Err(-(EFAULT as isize));
            }
            count += 1;
        }
        Ok(count)
    }
}

impl Late {
    fn socket(&self) -> Option<usize> {
        let fd = self.fd.load(Acquire);
        fd.checked_sub(1).filter(|_| fd != TAKEN).map(|fd| fd as usize)
    }
}

/// Add the kernel's events of a socket to those of its ring, if they are among `these` at `at`.
pub(super) fn joined_to_former(
    at: usize,
    these: Range<usize>,
    event: Event,
) -> Result<bool, isize> {
    const FAULT: isize = -(EFAULT as isize);
    let data = event.data;
    for place in these.map(|index| at + index * EVENT_LEN) {
        let former = user::read::<Event>(place).ok_or(FAULT)?;
        if { former.data } == data {
            let both = Event { events: former.events | event.events, data };
            return if user::write(place, &both) { Ok(true) } else { Err(FAULT) };
        }
    }
    Ok(false)
}

/// Of `count` events at `at` and `more` behind them, those of the same socket are made one; how many are left.
pub(super) fn join(at: usize, count: usize, more: usize) -> Result<usize, isize> {
    const FAULT: isize = -(EFAULT as isize);
    let place = |index: usize| at + index * EVENT_LEN;
    let mut kept = count;
    for index in count..count + more {
        let event = user::read::<Event>(place(index)).ok_or(FAULT)?;
        let mut to = (place(kept), event);
        for former in 0..count {
            let first = user::read::<Event>(place(former)).ok_or(FAULT)?;
            if { first.data } == { event.data } {
                to = (place(former), Event { events: first.events | event.events, ..event });
            }
        }
        if !user::write(to.0, &to.1) {
            return Err(FAULT);
        }
        kept += usize::from(to.0 == place(kept));
    }
    Ok(kept)
}
