//! What a program puts into its epoll instances.
//!
//! A socket has one *place*, in the set of the instance that it was added to first, and writers mark it there. In the
//! sets of others that it is added to it is as well, under words of ours, but nobody can mark it in all of them: so
//! from then on it goes by the kernel, which tells all. What is in its ring by then is marked in each.

use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release, SeqCst};
use core::sync::atomic::fence;

use libos::sockets::{MANY, WATCHED_MAX, watch_word};

use super::super::fds::{self, End};
use super::super::wait::{IN, OUT, READ_NORMAL};
use super::super::{ask, native, stream, user};
use super::noted::noted;
use super::{ADD, DELETE, Event, MODIFY, OURS, Socket};
use crate::sys::{ENOMEM, nr};

/// Where `fd` is among the sockets of the instance `epoll`, if that is known.
fn place_in(epoll: usize, fd: usize) -> Option<(usize, usize)> {
    let number = fds::set_of(epoll)?;
    places(fd).find(|place| place.0 == number)
}

/// All places of `fd`.
fn places(fd: usize) -> impl Iterator<Item = (usize, usize)> {
    let first = fds::place_of(fd);
    let others = if fds::is_elsewhere(fd) { 0..fds::SETS_MAX } else { 0..0 };
    let others = others.filter(move |number| first.is_none_or(|place| place.0 != *number));
    let index_in = move |number: usize| {
        let set = fds::set(number);
        let is_it = |socket: &Socket| socket.fd.load(Relaxed) == fd as u32 + 1;
        let index =
            if set.pid.load(Relaxed) == 0 { None } else { set.sockets.iter().position(is_it) };
        index.map(|index| (number, index))
    };
    first.into_iter().chain(others.filter_map(index_in))
}

/// The socket at this place may be known by other descriptors soon: the kernel is to know of it.
pub(in super::super) fn tell((set, index): (usize, usize)) {
    if let Some(epoll) = fds::fd_of_set(set) {
        fds::set(set).tell_of(epoll, index % WATCHED_MAX);
    }
}

/// The same, of all places of `fd`, which nobody marks there any more.
pub(in super::super) fn tell_all(fd: usize) {
    for place in places(fd) {
        tell(place);
        if let Some(end) = fds::end_of(fd) {
            unwatch(&end, watch_word(fds::set(place.0).watcher.load(Relaxed) as usize, place.1));
        }
    }
}

/// Something has changed about an end that may have bytes: that is an event.
pub(in super::super) fn look_again(end: &End) {
    if !end.incoming().has_bytes() {
        return;
    }
    let same = fds::ends().filter(|other| other.is_same(end));
    for (set, index) in same.flat_map(|other| places(other.fd)) {
        fds::set(set).watcher().mark(index);
    }
}

pub(super) fn unwatch(end: &End, word: u32) {
    let _ = end.incoming().waiting.watch.compare_exchange(word, 0, AcqRel, Relaxed);
}

/// `fd` is about to be closed, and may not be all there is of its file: the kernel goes on to report that, under the
/// program's own word. What is in the ring already the descriptor `heir` of the same tells.
pub(in super::super) fn leave_behind(fd: usize, heir: Option<usize>) {
    for (number, index) in places(fd) {
        let set = fds::set(number);
        let epoll = fds::fd_of_set(number).filter(|_| fds::is_own_set(set));
        let Some(epoll) = epoll else { continue };
        let socket = &set.sockets[index % WATCHED_MAX];
        socket.end().iter().for_each(cannot_watch);
        fence(SeqCst);
        set.tell_of(epoll, index % WATCHED_MAX);
        let event = Event { events: socket.events.load(Relaxed), data: socket.data.load(Relaxed) };
        if socket.present.load(Relaxed) == 0 {
            continue;
        }
        // One that has been reported once for all nobody can wake any more.
        let what = if event.events == 0 && socket.is_asleep() { DELETE } else { MODIFY };
        ask(nr::EPOLL_CTL, [epoll, what, fd, &raw const event as usize]);
        if let Some(heir) = heir.filter(|_| socket.has_bytes()) {
            let _ = fds::late().note(epoll, heir, event);
        }
    }
}

/// `fd` is closed.
pub(in super::super) fn forget_all(fd: usize) {
    places(fd).for_each(|place| forget(place, fd));
}

/// The socket at this place is in the set no longer.
fn forget((number, index): (usize, usize), fd: usize) {
    let set = fds::set(number);
    if !fds::is_own_set(set) {
        return;
    }
    set.sockets[index % WATCHED_MAX].fd.store(0, Release);
    if let Some(end) = fds::end_of(fd) {
        unwatch(&end, watch_word(set.watcher.load(Relaxed) as usize, index));
    }
    if fds::place_of(fd) == Some((number, index)) {
        fds::put_in_place(fd, None);
    }
}

/// `epoll_ctl`.
pub(in super::super) fn control(args: [usize; 6]) -> isize {
    let [epoll, what, fd, at, ..] = args;
    if what == ADD
        && let Some(nested) = fds::set_of(fd)
    {
        fds::set(nested).leave_to_kernel(fd);
    }
    let Some(end) = fds::end_of(fd) else { return plain(args) };
    let place = place_in(epoll, fd);
    if let Some(place) = place {
        if let Some(result) = noted(&end, epoll, what, at, place) {
            return result;
        }
        fds::set(place.0).tell_of(epoll, place.1);
    }
    if what == DELETE {
        let result = native(nr::EPOLL_CTL, args);
        fds::late().forget(epoll, end.fd);
        if let (0, Some(place)) = (result, place) {
            forget(place, end.fd);
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
        None => return by_kernel(&end, args),
    };
    let result = put(args, event, place, is_new);
    if result != 0 {
        return result;
    }
    if is_new {
        watch(&end);
    }
    let set = fds::set(place.0);
    if end.incoming().has_bytes() {
        set.watcher().mark(place.1);
        set.rouse(epoll, place.1, &end);
    }
    result
}

/// As [`control`], of a descriptor that is not carried, or not yet.
fn plain(args: [usize; 6]) -> isize {
    let [epoll, what, fd, at, ..] = args;
    let place = place_in(epoll, fd);
    let (place, is_new) = match (what, place) {
        (DELETE, Some(place)) => {
            let result = native(nr::EPOLL_CTL, args);
            if result == 0 {
                forget(place, fd);
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
    match user::read::<Event>(at) {
        Some(event) => put(args, event, place, is_new),
        None => {
            if is_new {
                fds::set(place.0).sockets[place.1].fd.store(0, Release);
            }
            native(nr::EPOLL_CTL, args)
        }
    }
}

/// Have the kernel put it there under a word of ours, or change it. Whoever sleeps may be woken before that returns, and
/// has to find what is asked for.
fn put(args: [usize; 6], event: Event, place: (usize, usize), is_new: bool) -> isize {
    let [epoll, what, fd, ..] = args;
    let socket = &fds::set(place.0).sockets[place.1];
    let ours = Event { events: event.events, data: OURS | place.1 as u64 };
    let former = socket.note(event);
    let result = ask(nr::EPOLL_CTL, [epoll, what, fd, &raw const ours as usize]);
    match (result, is_new) {
        (0, true) if fds::place_of(fd).is_none() => fds::put_in_place(fd, Some(place)),
        (0, true) => fds::note_elsewhere(fd),
        (0, false) => {}
        (_, true) => socket.fd.store(0, Release),
        (_, false) => socket.set_noted(former),
    }
    result
}

/// Have writers mark an end in the set that it is in; or, if that cannot be, leave it to the kernel.
pub(in super::super) fn watch(end: &End) {
    let direction = end.incoming();
    places(end.fd).for_each(|place| fds::set(place.0).used.store(1, Relaxed));
    let taken = fds::place_of(end.fd).is_some_and(|(number, index)| {
        let set = fds::set(number);
        let word = watch_word(set.watcher.load(Relaxed) as usize, index);
        set.is_watched()
            && !fds::is_elsewhere(end.fd)
            && direction.waiting.watch.compare_exchange(0, word, AcqRel, Relaxed).is_ok()
    });
    if !taken {
        cannot_watch(end);
    }
    fence(SeqCst);
}

/// Who waits for it cannot be told: it goes by the kernel.
pub(super) fn cannot_watch(end: &End) {
    end.incoming().waiting.watch.store(MANY, Release);
    if end.connection.is_counter() {
        stream::leave_to_kernel(end);
    }
}

/// It is in an instance that is not known. What is in its ring already is kept apart.
fn by_kernel(end: &End, args: [usize; 6]) -> isize {
    let [epoll, _, fd, at, ..] = args;
    if end.connection.is_counter() {
        return super::super::counters::waited_for_elsewhere(end, args);
    }
    end.incoming().waiting.watch.store(MANY, Release);
    fence(SeqCst);
    let result = native(nr::EPOLL_CTL, args);
    fds::late().forget(epoll, end.fd);
    let Some(event) = user::read::<Event>(at).filter(|_| result == 0) else { return result };
    let is_late = event.events & (IN | READ_NORMAL) != 0 && end.incoming().has_bytes();
    if is_late && !fds::late().note(epoll, end.fd, event) {
        ask(nr::EPOLL_CTL, [epoll, DELETE, fd, 0]);
        return -(ENOMEM as isize);
    }
    result
}

/// A place for `fd` in the set of `epoll`, in which it is not.
fn new_place(epoll: usize, fd: usize) -> Option<(usize, usize)> {
    let number = fds::set_of(epoll)?;
    let set = fds::set(number);
    if !fds::is_known(fd) || !fds::is_own_set(set) {
        return None;
    }
    let word = fd as u32 + 1;
    let take = |socket: &Socket| socket.fd.compare_exchange(0, word, AcqRel, Relaxed).is_ok();
    set.sockets.iter().position(take).map(|index| (number, index))
}
