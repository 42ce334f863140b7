//! Bytes of carried connections, in and out.

use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::fence;

use libos::sockets::pipes::{CAPACITY, unbroken};
use libos::sockets::{
    Direction, JOINED, LARGE_RING, LARGE_RINGS, MANY, OFFERED, SHUT, SMALL_RING, SOON_SHUT, watched,
};

use super::behind::{self, Behind};
use super::fds::{self, End};
use super::turns::{self, Turn};
use super::user::{self, Pieces};
use super::{ask, base, bells, native, pipes, sockets};
use crate::sys::{self, EAGAIN, EFAULT, EINTR, EINVAL, nr};
use crate::time;

pub(super) const MSG_PEEK: usize = 2;
pub(super) const MSG_TRUNC: usize = 0x20;
pub(super) const MSG_DONTWAIT: usize = 0x40;
pub(super) const MSG_WAITALL: usize = 0x100;
pub(super) const MSG_NOSIGNAL: usize = 0x4000;
pub(super) const MSG_MORE: usize = 0x8000;
pub(super) const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;

/// Less than it takes to wake a thread on another core.
pub(super) const PATIENCE_NS: u32 = 40_000;
const PATIENCE_NS_MIN: u32 = 1_000;
/// How long a writer looks for room in a ring.
const ROOM_NS: u64 = 50_000;
/// Bytes that are put into a ring before the reader is told of them.
pub(super) const STRETCH: usize = 32 << 10;

/// Where bytes that are sent come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    Memory {
        pieces: Pieces,
        flags: usize,
    },
    /// A file, from its own position or from one at this address.
    File {
        fd: usize,
        position: usize,
    },
}

/// The bytes of a piece of a ring.
pub(super) fn address(
    row: usize,
    side: usize,
    direction: &Direction,
    position: u64,
    len: usize,
) -> (usize, usize) {
    let piece = direction.piece(position, len);
    let start = if piece.in_large {
        let large = direction.large.load(Relaxed).saturating_sub(1) as usize % LARGE_RINGS;
        base() + libos::sockets::CONNECTIONS_MAX * 2 * SMALL_RING + large * LARGE_RING
    } else {
        base() + (row * 2 + side) * SMALL_RING
    };
    (start + piece.offset, piece.len)
}

/// Does whoever would read from `direction` sleep, as far as can be told?
pub(super) fn is_parked(direction: &Direction) -> bool {
    let watch = direction.waiting.watch.load(Acquire);
    direction.waiting.parked.load(Acquire) != 0
        || watch == MANY
        || watched(watch)
            .is_some_and(|(watcher, _)| sockets().watchers[watcher].parked.0.load(Acquire) != 0)
}

/// Do both sides know of each other?
pub(super) fn is_joined(end: &End) -> bool {
    end.connection.state.load(Acquire) == JOINED
}

/// May anything go by the ring?
pub(super) fn is_open(end: &End) -> bool {
    is_joined(end)
        && end.outgoing().shut.load(Acquire) == 0
        && !end.connection.other_is_gone(end.side)
}

/// Is there nothing any more, nor ever will be, but what the kernel has?
pub(super) fn is_left(direction: &Direction) -> bool {
    // In this order: nothing is put in after it has been shut, and no bell sent.
    direction.shut.load(Acquire) == SHUT && !direction.has_bytes() && direction.bells() == 0
}

/// Send `total` bytes; `number` and `args` are the program's own call.
pub(super) fn send(
    end: End,
    number: usize,
    args: [usize; 6],
    source: Source,
    total: usize,
) -> isize {
    let direction = end.outgoing();
    let is_joined = is_joined(&end);
    if !is_open(&end) || total == 0 {
        let sent = by_kernel(&end, number, args, total);
        if !is_joined {
            // Nobody reads what has not been accepted yet.
            direction.writing.asleep.fetch_add(sent.max(0) as u64, Relaxed);
        }
        return sent;
    }
    note_core(direction);
    let turn = turns::to_send(&end);
    let is_shut = turn.is_none() || direction.shut.load(Acquire) != 0;
    if is_shut || direction.is_in_kernel() || is_parked(direction) && !direction.has_bytes() {
        direction.kernel_sent.fetch_add(total as u64, AcqRel);
        drop(turn);
        let sent = counted(direction, total, native(number, args));
        direction.writing.asleep.fetch_add(sent.max(0) as u64, Relaxed);
        return sent;
    }
    let mut source = source;
    let (mut done, least) = (0, unbroken(total));
    while done < total {
        let left = total - done;
        let (tail, room) = direction.room_for(left);
        if room < left && upgrade(&end, direction, tail) {
            continue;
        }
        if room < least.min(left) {
            if wait_for_room(direction, least.min(left)) {
                continue;
            }
            // Nobody reads: what is left waits in the kernel, or in the program.
            direction.kernel_sent.fetch_add(left as u64, AcqRel);
            drop(turn);
            let sent = if done == 0 { native(number, args) } else { rest(&end, &mut source, left) };
            counted(direction, left, sent);
            direction.writing.asleep.fetch_add(sent.max(0) as u64, Relaxed);
            return match sent {
                0.. => done as isize + sent,
                _ if done > 0 => done as isize,
                error => error,
            };
        }
        let before = source;
        let filled = match fill(&end, direction, &mut source, tail, room.min(left).min(STRETCH)) {
            Ok(filled) => filled,
            Err(_) if done > 0 => return done as isize,
            Err(errno) => return -(errno as isize),
        };
        if filled == 0 {
            break;
        }
        if direction.tail.load(Relaxed) != tail {
            // A signal handler of the program wrote to it meanwhile, and over these bytes.
            if matches!(before, Source::Memory { .. }) {
                source = before;
                continue;
            }
            return if done > 0 { done as isize } else { -(EINTR as isize) };
        }
        done += filled;
        let asleep = direction.publish(tail + filled as u64, || {
            mark(direction);
            is_parked(direction)
        });
        if asleep {
            bells::ring(&end, direction);
        }
    }
    done as isize
}

/// Put bytes into the ring at `tail`; how many.
pub(super) fn fill(
    end: &End,
    direction: &Direction,
    source: &mut Source,
    tail: u64,
    most: usize,
) -> Result<usize, sys::Errno> {
    let mut done = 0;
    while done < most {
        let (at, len) = address(end.row, end.side, direction, tail + done as u64, most - done);
        match source {
            Source::Memory { pieces, .. } => {
                let Some((from, len)) = pieces.next_up_to(len).ok_or(EFAULT)? else { break };
                if !user::copy_in(direction, at, from, len) {
                    return Err(EFAULT);
                }
                done += len;
            }
            Source::File { fd, position } => {
                let read = if *position == 0 {
                    ask(nr::READ, [*fd, at, len])
                } else {
                    let from = user::read::<i64>(*position).ok_or(EFAULT)?;
                    let read = ask(nr::PREAD64, [*fd, at, len, from as usize]);
                    let to = from + read.max(0) as i64;
                    if read > 0 && !user::write(*position, &to) {
                        return Err(EFAULT);
                    }
                    read
                };
                match read {
                    0 => break,
                    1.. => done += read as usize,
                    _ if done > 0 => break,
                    error => return Err(-error as sys::Errno),
                }
            }
        }
    }
    Ok(done)
}

/// The rest of what is to be sent, through the kernel.
pub(super) fn rest(end: &End, source: &mut Source, left: usize) -> isize {
    let mut done = 0isize;
    match source {
        Source::File { fd, position } => ask(nr::SENDFILE, [end.fd, *fd, *position, left]),
        Source::Memory { pieces, flags } => {
            while let Some(Some((from, len))) = pieces.next_up_to(left) {
                let sent = if end.connection.is_pipe() {
                    ask(nr::WRITE, [end.fd, from, len])
                } else {
                    ask(nr::SENDTO, [end.fd, from, len, *flags])
                };
                if sent < 0 {
                    return if done > 0 { done } else { sent };
                }
                done += sent;
                if (sent as usize) < len {
                    break;
                }
            }
            done
        }
    }
}

/// The kernel was given `sent` of `asked` bytes, all of which have been counted.
pub(super) fn counted(direction: &Direction, asked: usize, sent: isize) -> isize {
    direction.kernel_sent.fetch_sub((asked - sent.max(0) as usize) as u64, AcqRel);
    sent
}

/// The program's own call to send something, which may always go through the kernel.
pub(super) fn by_kernel(end: &End, number: usize, args: [usize; 6], total: usize) -> isize {
    let direction = end.outgoing();
    let turn = turns::to_send(end);
    direction.kernel_sent.fetch_add(total as u64, AcqRel);
    drop(turn);
    counted(direction, total, native(number, args))
}

/// A large ring from here on, if there is none yet and one is free.
pub(super) fn upgrade(end: &End, direction: &Direction, tail: u64) -> bool {
    let is_socket = !end.connection.is_pipe();
    if direction.large.load(Relaxed) != 0 || is_socket && super::options::wants_little(end) {
        return false;
    }
    take_large(direction, tail)
}

/// The same, whatever its program wants.
pub(super) fn take_large(direction: &Direction, tail: u64) -> bool {
    if direction.large.load(Relaxed) != 0 {
        return false;
    }
    let Some(large) = sockets().take_large() else { return false };
    direction.large_from.store(tail, Release);
    direction.large.store(large as u32 + 1, Release);
    true
}

/// Look for room for so many bytes for as long as a reader that is awake may need. False if there is none.
pub(super) fn wait_for_room(direction: &Direction, least: usize) -> bool {
    let began = time::now_ns();
    let core = super::core();
    loop {
        if direction.room().1 >= least {
            return true;
        }
        if time::now_ns() - began > ROOM_NS {
            return false;
        }
        if core == super::core() {
            sys::sched_yield();
        }
        core::hint::spin_loop();
    }
}

/// Tell those who wait for the direction in a set.
pub(super) fn mark(direction: &Direction) {
    if let Some((watcher, socket)) = watched(direction.waiting.watch.load(Acquire)) {
        sockets().watchers[watcher].mark(socket);
    }
}

/// Tell those who wait where the bytes come from: on their own core looking for them is no use.
pub(super) fn note_core(direction: &Direction) {
    let core = super::core();
    let note = |word: &core::sync::atomic::AtomicU32| {
        if word.load(Relaxed) != core {
            word.store(core, Relaxed);
        }
    };
    note(&direction.writing.core);
    if let Some((watcher, _)) = watched(direction.waiting.watch.load(Acquire)) {
        note(&sockets().watchers[watcher].core);
    }
}

/// Receive up to `total` bytes; `number` and `args` are the program's own call, `flags` its flags.
pub(super) fn receive(
    end: End,
    number: usize,
    args: [usize; 6],
    pieces: Pieces,
    total: usize,
    flags: usize,
) -> isize {
    let direction = end.incoming();
    if is_left(direction) {
        let received = native(number, args);
        if received > 0 && flags & MSG_PEEK == 0 {
            direction.waiting.kernel_read.fetch_add(received as u64, AcqRel);
        }
        return received;
    }
    let mut pieces = pieces;
    let mut done = 0usize;
    let waits =
        flags & MSG_DONTWAIT == 0 && end.connection.sides[end.side].nonblock.load(Relaxed) == 0;
    let is_peek = flags & MSG_PEEK != 0;
    // Looking is over; the kernel has been asked for what it was said to have, and has shown something.
    let (mut has_looked, mut has_asked, mut was_seen) = (false, false, false);
    let mut behind = None;
    loop {
        if is_peek && behind::is_needed(&end, total, flags, waits) {
            let seen = behind::look(&end, (number, args), pieces, total, flags, waits);
            return seen.unwrap_or_else(|errno| -(errno as isize));
        }
        match from_ring(&end, direction, &mut pieces, total - done, flags) {
            Err(errno) => return if done > 0 { done as isize } else { -(errno as isize) },
            Ok(0) => {}
            Ok(taken) => {
                done += taken;
                // Who gets less than there was room for takes it that there is no more.
                let goes_on = !is_peek && (flags & MSG_WAITALL != 0 || direction.is_in_kernel());
                if done == total || !goes_on {
                    return done as isize;
                }
                continue;
            }
        }
        bells::hear(&end, direction);
        let asks = direction.is_in_kernel() && !has_asked;
        let is_whole = flags & MSG_WAITALL != 0 && !is_peek;
        if asks && done == 0 && !is_whole {
            has_asked = true;
            if let Some(result) = from_kernel(&end, direction, number, args, flags) {
                return result;
            }
            continue;
        } else if asks {
            has_asked = true;
            // More of it, by a call of its own. An error is for the next call.
            let mut there = 0u32;
            let asked = ask(nr::IOCTL, [end.fd, super::options::FIONREAD, &raw mut there as usize]);
            if asked != 0 || there == 0 {
                if was_seen && done > 0 {
                    // Up to where urgent data was.
                    return done as isize;
                }
                if !was_seen {
                    continue;
                }
            }
            let Some(Some((to, len))) = pieces.next_up_to(total - done) else {
                return done as isize;
            };
            let own = *behind.get_or_insert_with(|| Behind::new(number, args));
            let piece = [to, len];
            let message = UnsafeCell::new(own.message(piece.as_ptr() as usize, 1));
            let args = [end.fd, message.get() as usize, flags, 0, 0, 0];
            match from_kernel(&end, direction, nr::RECVMSG, args, flags) {
                Some(more @ 1..) => {
                    (done, has_asked, was_seen) = (done + more as usize, false, false);
                    if own.note(message.into_inner()) || (more as usize) < len && !is_whole {
                        return done as isize;
                    }
                    pieces.unread(len - more as usize);
                }
                Some(_) if done > 0 => return done as isize,
                Some(result) => return result,
                None => pieces.unread(len),
            }
            if done == total {
                return done as isize;
            }
            continue;
        }
        if done > 0 && flags & MSG_WAITALL == 0 {
            return done as isize;
        }
        // Who has not accepted yet has to be woken first.
        if waits && !has_looked && !has_asked && is_joined(&end) {
            has_looked = true;
            if look(&end) {
                continue;
            }
        }
        // Sleep, or learn that there is nothing to sleep for.
        if waits && !direction.park() {
            continue;
        }
        let began = time::now_ns();
        let is_plain = done == 0 && flags & !MSG_CMSG_CLOEXEC == 0;
        let own = waits && is_plain && is_joined(&end) && direction.refuse_bells();
        let seen = if own {
            bells::sleep_without(direction, number, args)
        } else {
            let mut byte = 0u8;
            let how = if waits { MSG_PEEK } else { MSG_PEEK | MSG_DONTWAIT };
            ask(nr::RECVFROM, [end.fd, &raw mut byte as usize, 1, how])
        };
        if waits {
            direction.unpark();
            note_wait(&direction.reading.patience_ns, time::now_ns() - began);
        }
        if own && seen > 0 {
            return seen;
        }
        if direction.has_bytes() {
            continue;
        }
        if seen <= 0 {
            return if done > 0 { done as isize } else { seen };
        }
        was_seen = direction.bells() == 0;
        if direction.bells() == 0 && !direction.is_in_kernel() {
            // Bytes that nobody has counted: from before the connection was carried.
            direction.kernel_sent.fetch_add(1, AcqRel);
            let result = from_kernel(&end, direction, number, args, flags);
            direction.kernel_sent.fetch_add(result.unwrap_or(0).max(0) as u64, AcqRel);
            direction.kernel_sent.fetch_sub(1, AcqRel);
            if let Some(result) = result {
                return result;
            }
        }
        (has_looked, has_asked) = (false, false);
    }
}

/// Take bytes out of the ring; how many.
#[inline]
pub(super) fn from_ring(
    end: &End,
    direction: &Direction,
    pieces: &mut Pieces,
    most: usize,
    flags: usize,
) -> Result<usize, sys::Errno> {
    // To AF_UNIX that says nothing.
    let is_cut = flags & MSG_TRUNC != 0 && !end.connection.is_unix();
    loop {
        let (head, filled) = direction.filled();
        let len = filled.min(most);
        if len == 0 {
            return Ok(0);
        }
        let mut to = *pieces;
        let mut done = 0;
        while done < len {
            let position = head + done as u64;
            let (from, part) = address(end.row, 1 - end.side, direction, position, len - done);
            if is_cut {
                done += part;
                continue;
            }
            let Some((at, part)) = to.next_up_to(part).ok_or(EFAULT)? else { break };
            if !user::copy(at, from, part) {
                return Err(EFAULT);
            }
            done += part;
        }
        if flags & MSG_PEEK != 0 {
            return Ok(done);
        }
        if direction.take(head, done) {
            *pieces = to;
            if direction.bells() != 0 {
                bells::hear(end, direction);
            }
            return Ok(done);
        }
    }
}

/// Receive what is next in the kernel. None if the ring has to be looked at first.
fn from_kernel(
    end: &End,
    direction: &Direction,
    number: usize,
    mut args: [usize; 6],
    flags: usize,
) -> Option<isize> {
    let waits = end.connection.sides[end.side].nonblock.load(Relaxed) == 0;
    let turn = turns::to_receive(end);
    // Whatever is in the ring now was sent before what is in the kernel.
    if direction.has_bytes() || direction.bells() != 0 || !direction.is_in_kernel() {
        return None;
    }
    let result = match number {
        nr::RECVFROM => {
            args[3] |= MSG_DONTWAIT;
            native(number, args)
        }
        nr::RECVMSG => {
            args[2] |= MSG_DONTWAIT;
            native(number, args)
        }
        nr::READ => {
            let [fd, at, len, ..] = args;
            ask(nr::RECVFROM, [fd, at, len, MSG_DONTWAIT])
        }
        // Of several pieces: there is something, so that it does not wait, or the program wants no waiting.
        _ => {
            let mut byte = 0u8;
            let seen = [end.fd, &raw mut byte as usize, 1, MSG_PEEK | MSG_DONTWAIT];
            match ask(nr::RECVFROM, seen) {
                1 => native(number, args),
                other => other,
            }
        }
    };
    if result > 0 && flags & MSG_PEEK == 0 {
        direction.waiting.kernel_read.fetch_add(result as u64, AcqRel);
    }
    drop(turn);
    if result > 0 && end.connection.state.load(Relaxed) == OFFERED {
        // Whoever accepted it has sent something, and has not taken the offer.
        super::options::give_back(end);
        let _ = sockets().withdraw(end.row);
    }
    if result == -(EAGAIN as isize) && waits && flags & MSG_DONTWAIT == 0 {
        // It was counted, and is not there yet.
        return None;
    }
    Some(result)
}

/// Look for bytes or an end, for as long as that has been worth while. True if there is something.
pub(super) fn look(end: &End) -> bool {
    let direction = end.incoming();
    let patience = patience(&direction.reading.patience_ns);
    look_until(patience, &direction.writing.core, || {
        direction.has_bytes() || direction.is_in_kernel() || end.connection.other_is_gone(end.side)
    })
}

/// Look for something until it is there, or so many nanoseconds have passed. `core` is where it will come
/// from: 0 if nobody knows.
pub(super) fn look_until(
    patience_ns: u64,
    core: &core::sync::atomic::AtomicU32,
    is_there: impl Fn() -> bool,
) -> bool {
    if is_vain(patience_ns, core) {
        return is_there();
    }
    let began = time::now_ns();
    loop {
        for _ in 0..8 {
            if is_there() {
                return true;
            }
            core::hint::spin_loop();
        }
        if super::may_be_here(core) {
            sys::sched_yield();
        }
        if time::now_ns() - began > patience_ns {
            return is_there();
        }
    }
}

/// Is looking no use? It has not been, and what is to come may come from this core: sleeping lets that run as well.
pub(super) fn is_vain(patience_ns: u64, core: &core::sync::atomic::AtomicU32) -> bool {
    patience_ns <= u64::from(PATIENCE_NS_MIN) && super::may_be_here(core)
}

/// How long to look.
pub(super) fn patience(word: &core::sync::atomic::AtomicU32) -> u64 {
    match word.load(Relaxed) {
        0 => u64::from(PATIENCE_NS),
        ns => u64::from(ns.min(PATIENCE_NS)),
    }
}

/// Looking has not been enough, and sleeping took so long.
pub(super) fn note_wait(word: &core::sync::atomic::AtomicU32, slept_ns: u64) {
    let now = patience(word) as u32;
    // Waking itself takes as long as it was worth to look.
    let next = if slept_ns < 2 * u64::from(PATIENCE_NS) {
        PATIENCE_NS
    } else {
        (now / 2).max(PATIENCE_NS_MIN)
    };
    if next != now {
        word.store(next, Relaxed);
    }
}

/// After `shutdown`: nothing goes by the ring towards whom it has been shut for.
pub(super) fn shutdown(fd: usize, how: usize, result: isize) -> isize {
    const READ: usize = 0;
    const WRITE: usize = 1;
    if result == 0
        && let Some(end) = fds::end_of(fd)
    {
        if how != READ {
            shut(end.outgoing());
        }
        if how != WRITE {
            shut(end.incoming());
        }
        // The kernel has whoever waits look again.
        super::epoll::look_again(&end);
    }
    result
}

/// Nothing is put into the ring from now on.
pub(super) fn shut(direction: &Direction) {
    if direction.shut.load(Acquire) == SHUT {
        return;
    }
    let turn = Turn::take_soon(&direction.writing.writer);
    direction.shut.store(if turn.is_some() { SHUT } else { SOON_SHUT }, Release);
}

/// Both directions go by the kernel from now on, but for what is in the rings.
pub(super) fn leave_to_kernel(end: &End) {
    if end.connection.is_counter() {
        return super::counters::leave_end(end);
    }
    if end.connection.is_inlet() {
        // Whoever puts something in just now takes it out again.
        end.incoming().waiting.watch.store(MANY, Release);
        fence(SeqCst);
        super::inlets::leave(end);
    }
    shut(end.outgoing());
    shut(end.incoming());
}

/// It may go to a stranger, to whom the kernel's is all there is: what is in the ring for it goes there before, if this
/// process has the other end.
pub(super) fn pass(end: &End) {
    let direction = end.incoming();
    let is_other = |other: &End| other.row == end.row && other.side != end.side;
    // To who has shut it down the kernel takes nothing any more.
    let other = fds::ends().find(is_other).filter(is_open);
    leave_to_kernel(end);
    let Some(other) = other.filter(|_| !end.connection.has_records()) else { return };
    // What the kernel has is younger, and more than this it may not have room for.
    let can_go = || !direction.is_in_kernel() && direction.filled().1 <= CAPACITY;
    if let Some(_turn) = turns::to_send(&other).filter(|_| can_go()) {
        let _ = pipes::hand_over(&other);
    }
    bells::hear(end, direction);
}

/// The last descriptor of this process for an end is about to be closed. If nobody else has it, and there
/// is something that nobody will read, the other side is told as the kernel would: by a reset.
pub(super) fn about_to_close(end: &End) {
    const SO_LINGER: usize = 13;
    let others = |holder: &core::sync::atomic::AtomicU32| {
        let pid = holder.load(Relaxed);
        pid != 0 && Some(pid) != super::own_pid()
    };
    let side = &end.connection.sides[end.side];
    let is_last = side.crowded.load(Relaxed) == 0 && !side.holders.iter().any(others);
    let is_passed = side.passed.load(Acquire) != 0;
    let joined = end.connection.state.load(Acquire) == JOINED && !end.connection.is_inlet();
    if !joined || !is_last || is_passed {
        return;
    }
    if end.connection.is_counter() {
        // A child that has it may not be known yet.
        return super::counters::leave_end(end);
    }
    // A bell that nobody has taken out is unread to the kernel, too, which would say so by a reset.
    for _ in 0..bells::LOOKS {
        bells::hear(end, end.incoming());
        if end.incoming().bells() == 0 || end.incoming().has_bytes() {
            break;
        }
        sys::sched_yield();
    }
    if end.incoming().has_bytes() && !end.connection.is_unix() {
        let linger = [1u32, 0];
        ask(
            nr::SETSOCKOPT,
            [end.fd, super::options::SOCKET, SO_LINGER, linger.as_ptr() as usize, 8],
        );
    }
}

/// `splice` from a carried socket whose ring has bytes: a few of them.
pub(super) fn splice(args: [usize; 6]) -> isize {
    let [from, _, to, _, len, _] = args;
    if let Some(end) = [to, from].into_iter().find_map(super::inlets::end_of) {
        return super::inlets::spliced(&end, nr::SPLICE, args);
    }
    if let Some(end) =
        [to, from].into_iter().filter_map(fds::end_of).find(|end| end.connection.has_records())
    {
        return super::records::splice(&end, args);
    }
    if let Some(end) = fds::socket_of(to) {
        return by_kernel(&end, nr::SPLICE, args, len);
    }
    let Some(end) = fds::socket_of(from) else { return native(nr::SPLICE, args) };
    let direction = end.incoming();
    bells::hear(&end, direction);
    let (head, filled) = direction.filled();
    if filled == 0 {
        let moved = native(nr::SPLICE, args);
        direction.waiting.kernel_read.fetch_add(moved.max(0) as u64, AcqRel);
        return moved;
    }
    let (at, part) = address(end.row, 1 - end.side, direction, head, filled.min(len).min(4096));
    let written = ask(nr::WRITE, [to, at, part]);
    if written > 0 && !direction.take(head, written as usize) {
        return -(EINVAL as isize);
    }
    written
}
