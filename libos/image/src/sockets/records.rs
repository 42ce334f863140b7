//! Records of carried sockets, in and out: AF_UNIX seqpacket, and pairs of datagram sockets.
//!
//! The two channels are those of a stream. A record goes by one of them whole; in the kernel's, records are
//! counted, since one may be empty. Whoever receives from the kernel has the reader's turn, and has looked
//! that the ring is empty and that what is next is no bell: bells always precede what the kernel has of the
//! program's, because nothing is put into the ring while that is not all received.
//!
//! An end looks like an empty record, in both. It is one if nothing has been counted; what a ring has then
//! was put there before the end, and comes first.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use libos::sockets::records::{BELL_WORDS, DATAGRAM, HEADER, RECORD_MAX, record_len};
use libos::sockets::{Direction, OFFERED};

use super::fds::End;
use super::messages::{self, Message};
use super::stream::{
    self, MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, MSG_PEEK, MSG_TRUNC, Source, address,
};
use super::turns::{self, Turn};
use super::user::{self, Pieces};
use super::{ask, bells, meet, native, options, pipes, sockets, wait};
use crate::sys::{EAGAIN, EFAULT, Errno, nr};
use crate::time;

/// Bytes of a bell.
const BELL_LEN: usize = BELL_WORDS * size_of::<u64>();
const MSG_OOB: usize = 1;
const MSG_EOR: usize = 0x80;
const MSG_CMSG_CLOEXEC: usize = stream::MSG_CMSG_CLOEXEC;
const ECONNREFUSED: isize = 111;
/// Flags that change nothing about a record.
const TO_SEND: usize = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE | MSG_EOR;

/// A call that sends on a carried socket.
pub(super) fn send(end: End, number: usize, args: [usize; 6]) -> isize {
    let [_, second, third, fourth, fifth, _] = args;
    match number {
        nr::WRITE => put(&end, number, args, Pieces::one(second, third), 0),
        // Of nothing in pieces the kernel makes no record.
        nr::WRITEV if Pieces::many(second, third).total() == Some(0) => native(number, args),
        nr::WRITEV => put(&end, number, args, Pieces::many(second, third), 0),
        nr::SENDTO if fifth != 0 => addressed(&end, number, args),
        nr::SENDTO => put(&end, number, args, Pieces::one(second, third), fourth),
        _ => {
            // How many records the kernel makes of it nobody knows.
            stream::shut(end.outgoing());
            native(number, args)
        }
    }
}

/// `sendmsg`.
pub(super) fn send_message(end: &End, args: [usize; 6]) -> isize {
    let [_, at, flags, ..] = args;
    let Some(message) = user::read::<Message>(at) else { return -(EFAULT as isize) };
    if message.name != 0 {
        return messages::send_passing(args, || addressed(end, nr::SENDMSG, args));
    }
    if message.control_len != 0 {
        return messages::send_passing(args, || by_kernel(end, nr::SENDMSG, args));
    }
    put(end, nr::SENDMSG, args, Pieces::many(message.vectors, message.count), flags)
}

/// Something is sent to an address: of a datagram that may be another's.
fn addressed(end: &End, number: usize, args: [usize; 6]) -> isize {
    if end.connection.socket_type() == DATAGRAM {
        stream::shut(end.outgoing());
        return native(number, args);
    }
    by_kernel(end, number, args)
}

/// The program's own call, of one record.
fn by_kernel(end: &End, number: usize, args: [usize; 6]) -> isize {
    let direction = end.outgoing();
    let turn = turns::to_send(end);
    told(end, give(direction, turn, || native(number, args)))
}

/// Whoever is told that a datagram's receiver is gone has lost what that had sent, as the kernel has it.
fn told(end: &End, sent: isize) -> isize {
    if sent == -ECONNREFUSED && end.connection.socket_type() == DATAGRAM {
        reconnected(end);
    }
    sent
}

/// Whoever has the turn, or cannot have it, has a record go by the kernel.
fn give(direction: &Direction, turn: Option<Turn<'_>>, send: impl FnOnce() -> isize) -> isize {
    direction.kernel_sent.fetch_add(1, AcqRel);
    drop(turn);
    let sent = send();
    if sent < 0 {
        direction.kernel_sent.fetch_sub(1, AcqRel);
    }
    sent
}

/// Send one record.
fn put(end: &End, number: usize, args: [usize; 6], pieces: Pieces, flags: usize) -> isize {
    let direction = end.outgoing();
    let most = (end.connection.record_max.load(Relaxed) as usize).min(RECORD_MAX);
    let total = pieces.total().filter(|total| *total <= most && flags & !TO_SEND == 0);
    let Some(total) = total.filter(|_| stream::is_open(end)) else {
        return by_kernel(end, number, args);
    };
    stream::note_core(direction);
    let turn = turns::to_send(end);
    let is_asleep = stream::is_parked(direction) && !direction.has_bytes();
    let is_shut = turn.is_none() || direction.shut.load(Acquire) != 0;
    if is_shut || direction.is_in_kernel() || is_asleep {
        return told(end, to_sleeper(direction, turn, || native(number, args)));
    }
    loop {
        let needed = record_len(total);
        let (tail, room) = direction.room_for(needed);
        if room < needed {
            if stream::upgrade(end, direction, tail) {
                continue;
            }
            let may_fit = needed <= direction.ring_len(tail);
            if may_fit && stream::wait_for_room(direction, needed) {
                continue;
            }
            return told(end, to_sleeper(direction, turn, || native(number, args)));
        }
        match fill(end, direction, pieces, tail, total) {
            Err(errno) => return -(errno as isize),
            // A signal handler of the program wrote to it meanwhile, and over this record.
            Ok(_) if direction.tail.load(Relaxed) != tail => continue,
            Ok(filled) => {
                let asleep = direction.publish(tail + record_len(filled) as u64, || {
                    stream::mark(direction);
                    stream::is_parked(direction)
                });
                if asleep {
                    bells::ring(end, direction);
                }
                return filled as isize;
            }
        }
    }
}

fn to_sleeper(
    direction: &Direction,
    turn: Option<Turn<'_>>,
    send: impl FnOnce() -> isize,
) -> isize {
    let sent = give(direction, turn, send);
    direction.writing.asleep.fetch_add(sent.max(0) as u64, Relaxed);
    sent
}

/// Write a record at `tail`; how long it is.
fn fill(
    end: &End,
    direction: &Direction,
    pieces: Pieces,
    tail: u64,
    total: usize,
) -> Result<usize, Errno> {
    let mut source = Source::Memory { pieces, flags: 0 };
    let filled = stream::fill(end, direction, &mut source, tail + HEADER as u64, total)?;
    let (at, len) = address(end.row, end.side, direction, tail, HEADER);
    let header = filled as u64;
    if len != HEADER || !user::write(at, &header) {
        return Err(EFAULT);
    }
    Ok(filled)
}

/// Where a record has come from.
enum Taken {
    /// The ring; so long it is, whatever there was room for.
    Ring(usize),
    /// The kernel, which has said this.
    Kernel(isize),
}

/// A call that receives one record.
#[derive(Clone, Copy)]
struct Receive {
    end: End,
    number: usize,
    args: [usize; 6],
    pieces: Pieces,
    total: usize,
    flags: usize,
}

/// A call that receives on a carried socket.
pub(super) fn receive(end: End, number: usize, args: [usize; 6]) -> isize {
    let [_, second, third, fourth, fifth, sixth] = args;
    let (pieces, flags) = match number {
        nr::READ => (Pieces::one(second, third), 0),
        nr::READV => (Pieces::many(second, third), 0),
        nr::RECVFROM => (Pieces::one(second, third), fourth),
        _ => return native(number, args),
    };
    let Some(total) = pieces.total().filter(|_| flags & MSG_OOB == 0) else {
        return native(number, args);
    };
    if total == 0 && number != nr::RECVFROM {
        return native(number, args);
    }
    let call = Receive { end, number, args, pieces, total, flags };
    match call.run() {
        Taken::Kernel(result) => result,
        Taken::Ring(len) if number == nr::RECVFROM && fifth != 0 => {
            match messages::say_sender(&end, fifth, sixth) {
                Ok(()) => call.result(len),
                Err(errno) => -(errno as isize),
            }
        }
        Taken::Ring(len) => call.result(len),
    }
}

/// `recvmsg`.
pub(super) fn receive_message(end: End, args: [usize; 6]) -> isize {
    let [_, at, flags, ..] = args;
    let Some(message) = user::read::<Message>(at) else { return -(EFAULT as isize) };
    let pieces = Pieces::many(message.vectors, message.count);
    let Some(total) = pieces.total().filter(|_| flags & MSG_OOB == 0) else {
        return native(nr::RECVMSG, args);
    };
    let call = Receive { end, number: nr::RECVMSG, args, pieces, total, flags };
    match call.run() {
        Taken::Kernel(result) => {
            if result >= 0 {
                meet::adopt_passed(at);
            }
            result
        }
        Taken::Ring(len) => {
            let cut = if len > total { MSG_TRUNC } else { 0 };
            match messages::answer(&end, at, message, 1, cut | flags & MSG_CMSG_CLOEXEC) {
                Ok(()) => call.result(len),
                Err(errno) => -(errno as isize),
            }
        }
    }
}

impl Receive {
    /// What the call returns of a record that was so long.
    fn result(&self, len: usize) -> isize {
        let most = if self.flags & MSG_TRUNC != 0 { len } else { len.min(self.total) };
        most as isize
    }

    fn waits(&self) -> bool {
        let side = &self.end.connection.sides[self.end.side];
        self.flags & MSG_DONTWAIT == 0 && side.nonblock.load(Relaxed) == 0
    }

    fn run(&self) -> Taken {
        let (end, direction) = (&self.end, self.end.incoming());
        if stream::is_left(direction) {
            return Taken::Kernel(self.counted(native(self.number, self.args)));
        }
        let waits = self.waits();
        let mut has_looked = false;
        loop {
            match self.out_of_ring() {
                Some(Ok(len)) => return Taken::Ring(len),
                Some(Err(errno)) => return Taken::Kernel(-(errno as isize)),
                None => bells::hear(end, direction),
            }
            if direction.is_in_kernel()
                && let Some(result) = self.out_of_kernel(waits)
            {
                return Taken::Kernel(result);
            }
            // Who has not accepted yet has to be woken first.
            if waits && !has_looked && stream::is_joined(end) {
                has_looked = true;
                if stream::look(end) {
                    continue;
                }
            }
            // Sleep, or learn that there is nothing to sleep for.
            if waits && !direction.park() {
                continue;
            }
            let seen = self.sleep(waits);
            if direction.has_bytes() {
                continue;
            }
            if seen < 0 {
                return Taken::Kernel(seen);
            }
            // A bell, a record, or the end.
            if let Some(result) = self.out_of_kernel(waits) {
                return Taken::Kernel(result);
            }
            if waits
                && seen == 0
                && wait::kernels_events(end.fd, wait::READ_HUP) & wait::READ_HUP != 0
            {
                // Of a datagram socket that has been shut, only who waits is told.
                return Taken::Ring(0);
            }
            has_looked = false;
        }
    }

    /// In the kernel, until there is something.
    fn sleep(&self, waits: bool) -> isize {
        let direction = self.end.incoming();
        let began = time::now_ns();
        let mut byte = 0u8;
        let flags = if waits { MSG_PEEK } else { MSG_PEEK | MSG_DONTWAIT };
        let seen = ask(nr::RECVFROM, [self.end.fd, &raw mut byte as usize, 1, flags]);
        if waits {
            direction.unpark();
            stream::note_wait(&direction.reading.patience_ns, time::now_ns() - began);
        }
        seen
    }

    /// The record that is next in the ring, how long it was; None if there is none.
    fn out_of_ring(&self) -> Option<Result<usize, Errno>> {
        let direction = self.end.incoming();
        loop {
            let (head, filled) = direction.filled();
            if filled == 0 {
                return None;
            }
            let Some(len) = self.len_at(head, filled) else {
                // Either another has taken it meanwhile, or nobody knows what this is.
                let _ = direction.take(head, filled);
                continue;
            };
            let is_copied = self.copy(head + HEADER as u64, len.min(self.total));
            if self.flags & MSG_PEEK == 0 {
                if !direction.take(head, record_len(len)) {
                    continue;
                }
                direction.reading.record_bytes.fetch_add(len as u64, Relaxed);
                bells::hear(&self.end, direction);
            }
            // The kernel takes it away as well where it cannot be written.
            return Some(if is_copied { Ok(len) } else { Err(EFAULT) });
        }
    }

    fn len_at(&self, head: u64, filled: usize) -> Option<usize> {
        let direction = self.end.incoming();
        let (at, len) = address(self.end.row, 1 - self.end.side, direction, head, HEADER);
        let header = user::read::<u64>(at).filter(|_| len == HEADER)?;
        Direction::checked_len(header, filled)
    }

    /// Give the program `len` bytes of the ring. False if they cannot be written.
    fn copy(&self, position: u64, len: usize) -> bool {
        let (row, side, direction) = (self.end.row, 1 - self.end.side, self.end.incoming());
        let mut to = self.pieces;
        let mut done = 0;
        while done < len {
            let (from, part) = address(row, side, direction, position + done as u64, len - done);
            let Some(next) = to.next_up_to(part) else { return false };
            let Some((at, part)) = next else { break };
            if !user::copy(at, from, part) {
                return false;
            }
            done += part;
        }
        true
    }

    /// Receive what is next in the kernel. None if the ring has to be looked at first, or what was counted is
    /// not there yet.
    fn out_of_kernel(&self, waits: bool) -> Option<isize> {
        let (end, direction) = (&self.end, self.end.incoming());
        let turn = turns::to_receive(end);
        if direction.has_bytes() {
            return None;
        }
        // A bell may be sent at any time, but not to before what is there already.
        let next = if turn.is_some() { peek(end) } else { Peeked::Record };
        let result = match next {
            Peeked::Bell => {
                hear(end, direction);
                return None;
            }
            Peeked::Error(error) => error,
            Peeked::Record => self.ask(),
        };
        let is_end = result == 0 && !direction.is_in_kernel();
        if is_end && direction.has_bytes() {
            return None;
        }
        let result = self.counted(result);
        drop(turn);
        if result >= 0 && end.connection.state.load(Relaxed) == OFFERED {
            // Whoever accepted it has sent something, and has not taken the offer.
            let _ = sockets().withdraw(end.row);
        }
        (!waits || result != -(EAGAIN as isize)).then_some(result)
    }

    /// The call as it is, without waiting.
    fn ask(&self) -> isize {
        let [fd, at, len, ..] = self.args;
        let mut args = self.args;
        match self.number {
            nr::RECVFROM => {
                args[3] |= MSG_DONTWAIT;
                native(nr::RECVFROM, args)
            }
            nr::RECVMSG => {
                args[2] |= MSG_DONTWAIT;
                native(nr::RECVMSG, args)
            }
            nr::READ => ask(nr::RECVFROM, [fd, at, len, MSG_DONTWAIT]),
            _ => {
                let message = core::cell::UnsafeCell::new(Message::of(at, len));
                ask(nr::RECVMSG, [fd, message.get() as usize, MSG_DONTWAIT])
            }
        }
    }

    /// The kernel has said `result`: if that is a record, it is received.
    fn counted(&self, result: isize) -> isize {
        let direction = self.end.incoming();
        if result >= 0 && self.flags & MSG_PEEK == 0 && direction.is_in_kernel() {
            direction.waiting.kernel_read.fetch_add(1, AcqRel);
            direction.waiting.kernel_bytes.fetch_add(result as u64, Relaxed);
        }
        result
    }
}

/// What the ring still has goes by the kernel after all, since nobody rings any more. By who has the turn to write.
pub(super) fn hand_over(end: &End) {
    let direction = end.outgoing();
    while let (head, filled @ 1..) = direction.filled() {
        let (at, part) = address(end.row, end.side, direction, head, HEADER);
        let header = user::read::<u64>(at).filter(|_| part == HEADER);
        let len = header.and_then(|header| Direction::checked_len(header, filled));
        // Before it is taken: who finds the ring empty is to know that there is something.
        direction.kernel_sent.fetch_add(1, AcqRel);
        let is_taken = direction.take(head, len.map_or(filled, record_len));
        let is_sent =
            is_taken && len.is_some_and(|len| pipes::give(end, head + HEADER as u64, len).is_ok());
        if !is_sent {
            direction.kernel_sent.fetch_sub(1, AcqRel);
        }
    }
}

/// Take a bell out of the kernel, if one is next there; by who has the reader's turn.
pub(super) fn take_bell(end: &End, direction: &Direction) -> bool {
    // What has gone wrong is for the program to hear.
    if wait::kernels_events(end.fd, wait::IN) & (wait::IN | wait::ERR) != wait::IN {
        return false;
    }
    let is_bell = matches!(peek(end), Peeked::Bell);
    if is_bell {
        hear(end, direction);
    }
    is_bell
}

/// What is next in the kernel.
enum Peeked {
    Bell,
    /// Or the end.
    Record,
    /// Nothing, or what has gone wrong.
    Error(isize),
}

fn peek(end: &End) -> Peeked {
    let mut words = [0u64; BELL_WORDS];
    let flags = MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT;
    let seen = ask(nr::RECVFROM, [end.fd, words.as_mut_ptr() as usize, BELL_LEN, flags]);
    match seen {
        ..0 => Peeked::Error(seen),
        _ if seen == BELL_LEN as isize && words == sockets().bell() => Peeked::Bell,
        _ => Peeked::Record,
    }
}

/// Take the bell out that is next.
fn hear(end: &End, direction: &Direction) {
    ask(nr::RECVFROM, [end.fd, 0, 0, MSG_DONTWAIT]);
    direction.less_bells(1);
}

/// Bytes that are there to be received, as the kernel counts: of all records, or of the first.
pub(super) fn waiting(end: &End, kernels: u32) -> u32 {
    let direction = end.incoming();
    let (mut position, filled) = direction.filled();
    if filled == 0 {
        return kernels;
    }
    let end_at = position + filled as u64;
    let bells = direction.bells().saturating_mul(BELL_LEN as u32);
    let mut sum = 0u32;
    while position < end_at {
        let (at, part) = address(end.row, 1 - end.side, direction, position, HEADER);
        let header = user::read::<u64>(at).filter(|_| part == HEADER);
        let left = (end_at - position) as usize;
        let Some(len) = header.and_then(|header| Direction::checked_len(header, left)) else {
            break;
        };
        if end.connection.socket_type() == DATAGRAM {
            return len as u32;
        }
        sum = sum.saturating_add(len as u32);
        position += record_len(len) as u64;
    }
    sum.saturating_add(kernels.saturating_sub(bells))
}

/// Records that the kernel would not take are not for the ring either.
pub(super) fn note_limit(end: &End) {
    /// What the kernel keeps of a socket's buffer for itself.
    const KEPT: u64 = 32;
    if let Some(room) = options::send_buffer(end.fd) {
        let most = room.saturating_sub(KEPT).min(RECORD_MAX as u64) as u32;
        end.connection.record_max.fetch_min(most, AcqRel);
    }
}

/// A datagram socket has another peer, or none: what it has not received of its former one's is lost.
pub(super) fn reconnected(end: &End) {
    let direction = end.incoming();
    let (head, filled) = direction.filled();
    let _ = direction.take(head, filled);
    direction.less_bells(direction.bells());
}

/// `splice` from or to a socket with records.
#[inline(never)]
pub(super) fn splice(end: &End, args: [usize; 6]) -> isize {
    let [from, _, to, _, len, _] = args;
    if to == end.fd {
        stream::shut(end.outgoing());
        return native(nr::SPLICE, args);
    }
    stream::shut(end.incoming());
    bells::hear(end, end.incoming());
    if !end.incoming().has_bytes() {
        return native(nr::SPLICE, args);
    }
    // Of a record, as much as there is asked for; the kernel forgets the rest, too.
    let mut piece = [0u8; 4096];
    let args = [from, piece.as_mut_ptr() as usize, piece.len().min(len), MSG_DONTWAIT, 0, 0];
    match receive(*end, nr::RECVFROM, args) {
        got @ 1.. => ask(nr::WRITE, [to, piece.as_ptr() as usize, got as usize]),
        other => other,
    }
}
