//! Datagrams in: the ring's first, then the kernel's.
//!
//! Whoever asks the kernel for one says so before, as one does who goes to sleep: what is sent from then on is behind
//! what the kernel has. A length that the program has been told, by looking at the kernel's next one, is that of the
//! one it gets next.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use libos::sockets::Direction;
use libos::sockets::inlets::{HEAD, Head, Inlet, NAME_MAX, SENDERS};

use super::super::fds::End;
use super::super::messages::{self, Message};
use super::super::stream::{self, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC, address};
use super::super::user::{self, Pieces};
use super::super::wait::{IN, kernels_events};
use super::super::{ask, meet, native};
use super::inlet_of;
use super::send::has_failed;
use crate::sys::{EAGAIN, EFAULT, nr};
use crate::time;

const MSG_OOB: usize = 1;
const MSG_ERRQUEUE: usize = 0x2000;
/// How long to wait for the end of a sender's call: less than another datagram by the kernel takes.
const NUMBER_NS: u64 = 5_000;
const NOTHING: isize = -(EAGAIN as isize);

/// One that has come by the ring: how long it was, and who has sent it.
struct Got {
    len: usize,
    name: [u8; NAME_MAX],
    name_len: usize,
}

/// Where a datagram has come from.
enum Taken {
    Ring(Got),
    /// The kernel, which has said this.
    Kernel(isize),
}

/// A call that receives.
struct Receiving {
    end: End,
    inlet: &'static Inlet,
    number: usize,
    args: [usize; 6],
    pieces: Pieces,
    total: usize,
    flags: usize,
}

/// A call that receives on a datagram socket.
#[inline(never)]
pub(in super::super) fn receive(end: &End, number: usize, args: [usize; 6]) -> isize {
    let [_, second, third, fourth, fifth, sixth] = args;
    let (pieces, flags) = match number {
        nr::READ => (Pieces::one(second, third), 0),
        nr::READV => (Pieces::many(second, third), 0),
        nr::RECVFROM => (Pieces::one(second, third), fourth),
        _ => return native(number, args),
    };
    let total = pieces.total().filter(|_| flags & (MSG_OOB | MSG_ERRQUEUE) == 0);
    let Some(total) = total.filter(|total| *total != 0 || number == nr::RECVFROM) else {
        return native(number, args);
    };
    let call = Receiving { end: *end, inlet: inlet_of(end), number, args, pieces, total, flags };
    match call.run() {
        Taken::Kernel(result) => result,
        Taken::Ring(got) if number == nr::RECVFROM && fifth != 0 => {
            match messages::say_name(&got.name[..got.name_len], fifth, sixth) {
                Ok(()) => call.result(got.len),
                Err(errno) => -(errno as isize),
            }
        }
        Taken::Ring(got) => call.result(got.len),
    }
}

/// `recvmsg`.
#[inline(never)]
pub(in super::super) fn receive_message(end: &End, args: [usize; 6]) -> isize {
    let [_, at, flags, ..] = args;
    let Some(message) = user::read::<Message>(at) else { return -(EFAULT as isize) };
    let pieces = Pieces::many(message.vectors, message.count);
    let number = nr::RECVMSG;
    let total = pieces.total().filter(|_| flags & (MSG_OOB | MSG_ERRQUEUE) == 0);
    let Some(total) = total else { return native(number, args) };
    let call = Receiving { end: *end, inlet: inlet_of(end), number, args, pieces, total, flags };
    match call.run() {
        Taken::Kernel(result) => {
            if result >= 0 {
                meet::adopt_passed(at);
            }
            result
        }
        Taken::Ring(got) => {
            let cut = if got.len > total { MSG_TRUNC } else { 0 };
            let name = &got.name[..got.name_len];
            match messages::answer_named(at, message, name, cut | flags & MSG_CMSG_CLOEXEC) {
                Ok(()) => call.result(got.len),
                Err(errno) => -(errno as isize),
            }
        }
    }
}

/// Bytes of the datagram that is next in the ring, if there is one.
pub(super) fn next_len(end: &End) -> Option<usize> {
    let (head, filled) = end.incoming().filled();
    head_at(end, head, filled).map(|head| head.len)
}

fn head_at(end: &End, head: u64, filled: usize) -> Option<Head> {
    if filled < HEAD {
        return None;
    }
    let word = |position: u64| {
        let (at, len) = address(end.row, SENDERS, end.incoming(), position, 8);
        user::read::<u64>(at).filter(|_| len == 8)
    };
    Head::checked([word(head)?, word(head + 8)?], filled)
}

impl Receiving {
    /// What the call returns of a datagram that was so long.
    fn result(&self, len: usize) -> isize {
        let most = if self.flags & MSG_TRUNC != 0 { len } else { len.min(self.total) };
        most as isize
    }

    fn direction(&self) -> &'static Direction {
        self.end.incoming()
    }

    fn waits(&self) -> bool {
        let side = &self.end.connection.sides[self.end.side];
        self.flags & MSG_DONTWAIT == 0 && side.nonblock.load(Relaxed) == 0
    }

    fn run(&self) -> Taken {
        // What has been looked at there, or gone wrong, comes first.
        let is_first = self.inlet.peeked.load(Relaxed) != 0 || has_failed(&self.end);
        if is_first {
            self.inlet.peeked.store(0, Relaxed);
            let result = self.without_waiting();
            if result != NOTHING {
                return Taken::Kernel(self.noted(result));
            }
        }
        let (waits, mut has_looked) = (self.waits(), false);
        loop {
            match self.out_of_ring() {
                Some(Ok(got)) => return Taken::Ring(got),
                Some(Err(errno)) => return Taken::Kernel(errno),
                None => {}
            }
            // Nobody in the sandbox has ever sent anything to it.
            if self.inlet.sent.load(Acquire) == 0 {
                // Somebody may meanwhile, and another thread find that out.
                match self.parked(|| native(self.number, self.args)) {
                    Some(result) => return Taken::Kernel(result),
                    None => continue,
                }
            }
            let asked = if waits { self.sleep(&mut has_looked) } else { self.ask() };
            if let Some(result) = asked {
                return Taken::Kernel(self.noted(result));
            }
        }
    }

    /// What the kernel has, by a call that does not wait; None if the ring has to be looked at.
    fn ask(&self) -> Option<isize> {
        let sent = self.inlet.sent.load(Acquire);
        if kernels_events(self.end.fd, IN) == 0 {
            self.inlet.found_empty(sent);
            return (!self.direction().has_bytes()).then_some(NOTHING);
        }
        // Who does not receive any more is said to have something, though there is nothing.
        let is_new = |result: &isize| *result != NOTHING || !self.direction().has_bytes();
        self.parked(|| native(self.number, self.args)).filter(is_new)
    }

    /// The same, by one that waits.
    fn sleep(&self, has_looked: &mut bool) -> Option<isize> {
        let sent = self.inlet.sent.load(Acquire);
        let is_wanted = self.inlet.is_awaited() || self.inlet.is_near.load(Relaxed) != 0;
        if !*has_looked && is_wanted && kernels_events(self.end.fd, IN) == 0 {
            *has_looked = true;
            self.inlet.found_empty(sent);
            if self.look() {
                return None;
            }
        }
        let began = time::now_ns();
        let result = self.parked(|| native(self.number, self.args))?;
        if *has_looked {
            let patience = &self.direction().reading.patience_ns;
            stream::note_wait(patience, time::now_ns() - began);
        }
        let is_over = result == NOTHING && self.direction().has_bytes();
        (!is_over).then_some(result)
    }

    /// Look for something for as long as that has been worth while. True if the ring has something.
    fn look(&self) -> bool {
        let (direction, sent) = (self.direction(), self.inlet.sent.load(Acquire));
        let patience = stream::patience(&direction.reading.patience_ns);
        stream::look_until(patience, &direction.writing.core, || {
            direction.has_bytes() || self.inlet.sent.load(Acquire) != sent
        });
        direction.has_bytes()
    }

    /// Ask the kernel while all that is sent goes there; None if there is something in the ring.
    fn parked(&self, ask: impl FnOnce() -> isize) -> Option<isize> {
        let direction = self.direction();
        if !direction.park() {
            return None;
        }
        let result = ask();
        direction.unpark();
        Some(result)
    }

    /// The kernel has said this.
    fn noted(&self, result: isize) -> isize {
        if result < 0 {
            return result;
        }
        if self.flags & MSG_PEEK != 0 {
            self.inlet.peeked.store(1, Relaxed);
            return result;
        }
        self.wait_for_numbers();
        let is_near = self.inlet.is_awaited();
        self.inlet.is_near.store(u32::from(is_near), Relaxed);
        if is_near {
            let sent = self.inlet.sent.load(Acquire);
            if kernels_events(self.end.fd, IN) == 0 {
                self.inlet.found_empty(sent);
            }
        }
        result
    }

    /// What has come may be here before its sender has its number, which comes with the end of that one's call.
    fn wait_for_numbers(&self) {
        let inlet = self.inlet;
        if !inlet.is_numbering() {
            return;
        }
        let began = time::now_ns();
        while inlet.is_numbering() {
            if time::now_ns() - began > NUMBER_NS {
                inlet.forget_begun();
                return;
            }
            core::hint::spin_loop();
        }
    }

    /// The call as it is, without waiting.
    fn without_waiting(&self) -> isize {
        let [fd, at, len, ..] = self.args;
        let mut args = self.args;
        match self.number {
            nr::RECVFROM => args[3] |= MSG_DONTWAIT,
            nr::RECVMSG => args[2] |= MSG_DONTWAIT,
            nr::READ => return ask(nr::RECVFROM, [fd, at, len, MSG_DONTWAIT]),
            _ => {
                let message = core::cell::UnsafeCell::new(Message::of(at, len));
                return ask(nr::RECVMSG, [fd, message.get() as usize, MSG_DONTWAIT]);
            }
        }
        native(self.number, args)
    }

    /// The datagram that is next in the ring; None if there is none, an error if it cannot be given.
    fn out_of_ring(&self) -> Option<Result<Got, isize>> {
        let direction = self.direction();
        loop {
            let (at, filled) = direction.filled();
            if filled == 0 {
                return None;
            }
            let Some(head) = head_at(&self.end, at, filled) else {
                // Either another has taken it meanwhile, or nobody knows what this is.
                let _ = direction.take(at, filled);
                continue;
            };
            let mut got = Got { len: head.len, name: [0; NAME_MAX], name_len: head.name };
            let name = Pieces::one(got.name.as_mut_ptr() as usize, head.name);
            let body = at + (HEAD + head.name.next_multiple_of(8)) as u64;
            let is_copied = self.copy(at + HEAD as u64, name, head.name)
                && self.copy(body, self.pieces, head.len.min(self.total));
            if self.flags & MSG_PEEK == 0 {
                if !direction.take(at, head.taken()) {
                    continue;
                }
                self.inlet.freed.fetch_add(u64::from(head.charge), Relaxed);
                if self.inlet.is_void(at) {
                    continue;
                }
                direction.reading.record_bytes.fetch_add(head.len as u64, Relaxed);
                self.inlet.is_near.store(1, Relaxed);
            }
            // The kernel takes it away as well where it cannot be written.
            return Some(if is_copied { Ok(got) } else { Err(-(EFAULT as isize)) });
        }
    }

    /// Copy `len` bytes of the ring. False if they cannot be written.
    fn copy(&self, position: u64, mut to: Pieces, len: usize) -> bool {
        let direction = self.direction();
        let mut done = 0;
        while done < len {
            let from = position + done as u64;
            let (from, part) = address(self.end.row, SENDERS, direction, from, len - done);
            let Some(next) = to.next_up_to(part) else { return false };
            let Some((at, part)) = next else { break };
            if !user::copy(at, from, part) {
                return false;
            }
            done += part;
        }
        true
    }
}
