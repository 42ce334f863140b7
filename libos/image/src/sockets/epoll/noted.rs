//! Changes of what a set's sockets are waited for, of which the kernel is told later.

use core::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use core::sync::atomic::fence;

use libos::sockets::watch_word;

use super::super::fds::{self, End};
use super::super::wait::OUT;
use super::super::{stream, user};
use super::{ADD, DELETE, Event, MODIFY, PLAIN};
use crate::sys::{EEXIST, ENOENT};

/// A change that the kernel need not be told of now; None if it is not one.
pub(super) fn noted(
    end: &End,
    epoll: usize,
    what: usize,
    at: usize,
    place: (usize, usize),
) -> Option<isize> {
    let set = fds::set(place.0);
    let socket = &set.sockets[place.1];
    let is_present = socket.present.load(Relaxed) != 0;
    let is_plain = socket.events.load(Relaxed) & !PLAIN == 0 && !socket.is_asleep();
    let word = watch_word(set.watcher.load(Relaxed) as usize, place.1);
    let is_watched = set.is_watched() && end.incoming().waiting.watch.load(Relaxed) == word;
    let is_steady =
        stream::is_joined(end) && !end.connection.is_ending() && !end.incoming().is_in_kernel();
    let is_socket = !end.connection.has_no_bells();
    if !is_plain || !is_watched || !is_steady || !is_socket || fds::is_copied(end.fd) {
        return None;
    }
    let event = match what {
        DELETE => Event { events: 0, data: 0 },
        ADD | MODIFY => user::read::<Event>(at)?,
        _ => return None,
    };
    let events = event.events;
    let writes = events & OUT != 0;
    if events & !PLAIN != 0 || writes && end.outgoing().is_in_kernel() {
        return None;
    }
    match (what, is_present) {
        (ADD, true) => return Some(-(EEXIST as isize)),
        (MODIFY | DELETE, false) => return Some(-(ENOENT as isize)),
        _ => {}
    }
    socket.data.store(event.data, Relaxed);
    socket.events.store(events, Release);
    socket.present.store(u32::from(what != DELETE), Relaxed);
    set.is_untold(place.1);
    fence(SeqCst);
    if writes || end.incoming().has_bytes() {
        set.watcher().mark(place.1);
    }
    set.rouse(epoll, place.1, end);
    Some(0)
}
