//! Datagrams out: into the ring of whoever hears them, or by the program's own call.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use libos::sockets::Direction;
use libos::sockets::inlets::local::{Address as LocalAddress, Way};
use libos::sockets::inlets::{
    DATAGRAM_MAX, HEAD, Head, Heard, Inlet, LEFT, LOCAL, Place, SENDERS, SIX, charge, datagram_len,
};

use super::super::fds::{self, End};
use super::super::meet::{Address, Raw, SO_NETNS_COOKIE, option};
use super::super::messages::Message;
use super::super::stream::{self, MSG_DONTWAIT, MSG_NOSIGNAL, Source};
use super::super::user::{self, Pieces};
use super::super::wait::{ERR, kernels_events};
use super::super::{ask, messages, native, sockets, turns};
use super::known::{self, Destination, Found};
use super::{AF_INET, AF_INET6, begin, changed_locally, end_of, inlet_of, local};
use crate::arch::stack_pointer;
use crate::sys::{self, EFAULT, Errno, nr};
use crate::{context, start};

const ECONNREFUSED: isize = 111;
const MSG_CONFIRM: usize = 0x800;
/// Flags that change nothing about a datagram.
const TO_SEND: usize = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_CONFIRM;
/// What the kernel of AF_UNIX wants of a sender's buffer besides a datagram.
const SKB_MIN: usize = 32;
/// Bytes of an address of IPv4, and of one of IPv6.
const FOUR_LEN: usize = 16;
const SIX_LEN: usize = 28;
/// How often to look for a turn, and whether who has it is alive. Who is stopped with it has others use the kernel.
const TURN_LOOKS: u32 = 256;
const ALIVE_LOOKS: u32 = 64;

/// What addresses are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Four,
    Six,
    Local,
}

impl Family {
    const fn of(flags: u32) -> Self {
        if flags & LOCAL != 0 {
            Self::Local
        } else if flags & SIX != 0 {
            Self::Six
        } else {
            Self::Four
        }
    }
}

/// What a call sends.
#[derive(Debug, Clone, Copy)]
struct Letter {
    pieces: Pieces,
    total: usize,
    /// May the call wait?
    waits: bool,
    /// Where to; to the socket's peer if that is nowhere. Of AF_UNIX: what `name` is kept under.
    to: Place,
    name: Option<LocalAddress>,
}

impl Letter {
    /// What `number` with `args` sends, if a ring could take it.
    fn of(number: usize, args: [usize; 6], family: Family) -> Option<Self> {
        let [_, second, third, fourth, fifth, sixth] = args;
        let (pieces, flags, name) = match number {
            nr::WRITE => (Pieces::one(second, third), 0, (0, 0)),
            nr::WRITEV => (Pieces::many(second, third), 0, (0, 0)),
            nr::SENDTO => (Pieces::one(second, third), fourth, (fifth, sixth)),
            nr::SENDMSG => {
                let message = user::read::<Message>(second)?;
                if message.control_len != 0 {
                    return None;
                }
                let pieces = Pieces::many(message.vectors, message.count);
                (pieces, third, message.named())
            }
            _ => return None,
        };
        let total = pieces.total().filter(|total| *total <= DATAGRAM_MAX)?;
        // Of nothing in pieces the kernel makes no datagram.
        let is_none = number == nr::WRITEV && total == 0;
        let (to, name) = match family {
            Family::Local if name.0 != 0 => {
                let name = local::given(name.0, name.1)?;
                (Place { address: name.mixed(), port: 1 }, Some(name))
            }
            _ => (place(name.0, name.1, family == Family::Six)?, None),
        };
        let waits = flags & MSG_DONTWAIT == 0;
        (flags & !TO_SEND == 0 && !is_none).then_some(Self { pieces, total, waits, to, name })
    }
}

/// The address of the program's at `at`; nowhere if that is 0. None if it is for the kernel to judge.
fn place(at: usize, len: usize, is_six: bool) -> Option<Place> {
    if at == 0 {
        return Some(Place::default());
    }
    let least = if is_six { SIX_LEN } else { FOUR_LEN };
    let mut raw: Raw = [0; SIX_LEN];
    if len < least || len > 128 || !user::copy(raw.as_mut_ptr() as usize, at, least) {
        return None;
    }
    let family = usize::from(u16::from_ne_bytes([raw[0], raw[1]]));
    let is_plain = raw[4..8] == [0; 4] && raw[24..] == [0; 4];
    let is_known = if is_six { family == AF_INET6 && is_plain } else { family == AF_INET };
    match Address::from_raw(&raw) {
        Address::Ip(address, port) if is_known && port != 0 => Some(Place { address, port }),
        _ => None,
    }
}

/// Are both on this host, as far as they say?
pub(super) fn is_same_host(one: &Place, other: &Place) -> bool {
    one.address == other.address || is_loopback(one) && is_loopback(other)
}

const fn is_loopback(place: &Place) -> bool {
    let [high, low] = place.address;
    high == 0 && (low == 1 || low >> 24 == 0x00ff_ff7f)
}

/// A call that sends on `fd`, a datagram socket that may be carried, and has no row.
#[inline(never)]
pub(in super::super) fn first(fd: usize, number: usize, args: [usize; 6]) -> isize {
    let sent = if number == nr::SENDMSG {
        messages::send_passing(args, || native(number, args))
    } else {
        native(number, args)
    };
    // The first one has the kernel give it a port. Most are asked for one answer.
    if sent >= 0 && !fds::has_spoken(fd) {
        fds::note_spoken(fd);
    } else if sent >= 0 {
        let is_local = fds::is_local(fd);
        let families: &[Family] =
            if is_local { &[Family::Local] } else { &[Family::Four, Family::Six] };
        let letter = families.iter().find_map(|family| Letter::of(number, args, *family));
        let may_be_heard = |letter: Letter| {
            if is_local { sockets().any_local() } else { sockets().may_hear(letter.to.port) }
        };
        if letter.is_some_and(may_be_heard) {
            begin(fd);
        }
    }
    sent
}

/// A call that sends on a datagram socket.
#[inline(never)]
pub(in super::super) fn send(end: &End, number: usize, args: [usize; 6]) -> isize {
    let own = inlet_of(end);
    let family = Family::of(own.flags.load(Relaxed));
    // The kernel knows what to say of one that is longer than its sender's buffer.
    let fits = |letter: &Letter| {
        family != Family::Local || letter.total + SKB_MIN <= own.limit.load(Relaxed) as usize
    };
    let sent = match Letter::of(number, args, family).filter(fits) {
        Some(letter) => Sending { end: *end, own, number, args, letter }.run(),
        None => {
            let sent = native(number, args);
            if sent >= 0 {
                own.strays.fetch_add(1, AcqRel);
            }
            sent
        }
    };
    if sent == -ECONNREFUSED && family == Family::Local {
        // It may have had a peer that has gone, and has none now.
        changed_locally(end);
    }
    sent
}

/// `sendmsg`.
#[inline(never)]
pub(in super::super) fn send_message(end: &End, args: [usize; 6]) -> isize {
    messages::send_passing(args, || send(end, nr::SENDMSG, args))
}

/// One call that sends.
struct Sending {
    end: End,
    own: &'static Inlet,
    number: usize,
    args: [usize; 6],
    letter: Letter,
}

/// What has become of a datagram.
enum Put {
    /// It is in the ring, or its receiver had no room for it; this is what the call comes to.
    Done(isize),
    /// It has to go by the kernel, since the receiver sleeps.
    Asleep,
    /// The ring is full.
    Full,
    /// It has to go by the kernel for other reasons.
    Kernel,
}

impl Sending {
    fn run(&self) -> isize {
        let is_open = self.own.flags.load(Acquire) & LEFT == 0
            && self.end.outgoing().shut.load(Relaxed) == 0
            && !has_failed(&self.end);
        let stamp = self.own.stamp.load(Acquire);
        let to = &self.letter.to;
        if to.port != 0 && !self.may_be_heard() {
            return self.by_kernel();
        }
        let key = known::key(&self.end, stamp, to);
        let changes = sockets().inlets.changes.load(Acquire);
        match known::find(&key).filter(|found| self.still_leads_to(found)) {
            Some(Found::Inlet(to)) if is_open => self.to_inlet(stamp, &to),
            Some(Found::Inlet(to)) => self.numbered(stamp, &to, false),
            Some(Found::Stranger) => self.by_kernel(),
            Some(Found::Kernels) => self.stray(),
            None => {
                // The first one always goes by the kernel, which says whether it may.
                let found = self.find_out();
                let sent = match &found {
                    Found::Inlet(to) => self.numbered(stamp, to, true),
                    Found::Stranger => self.by_kernel(),
                    Found::Kernels => self.stray(),
                };
                if sent >= 0 {
                    known::keep(&key, &found, changes);
                }
                sent
            }
        }
    }

    fn is_local(&self) -> bool {
        self.own.flags.load(Relaxed) & LOCAL != 0
    }

    /// May somebody in the sandbox hear it?
    fn may_be_heard(&self) -> bool {
        let port = self.letter.to.port;
        if self.is_local() { sockets().any_local() } else { sockets().may_hear(port) }
    }

    /// Is what was found out still so? Of a path it may not be.
    fn still_leads_to(&self, found: &Found) -> bool {
        match (found, &self.letter.name) {
            (Found::Inlet(to), Some(name)) => local::leads_to(name, &sockets().inlets.all[to.row]),
            _ => true,
        }
    }

    /// By the kernel, to whomever that finds.
    fn stray(&self) -> isize {
        let sent = self.by_kernel();
        if sent >= 0 {
            self.own.strays.fetch_add(1, AcqRel);
        }
        sent
    }

    fn by_kernel(&self) -> isize {
        let sent = native(self.number, self.args);
        let is_connected =
            || self.letter.to.port == 0 || self.own.heard().is_some_and(|own| own.peer.port != 0);
        if !self.is_local() && is_connected() {
            // Whoever is connected hears of errors.
            self.own.failed.store(1, Relaxed);
        }
        sent
    }

    fn to_inlet(&self, stamp: u64, to: &Destination) -> isize {
        let inlet = &sockets().inlets.all[to.row];
        let after = known::after(&self.end, stamp, to);
        if !after.is_some_and(|after| inlet.is_emptied(after)) {
            return self.numbered(stamp, to, true);
        }
        loop {
            match self.put(inlet, to) {
                Put::Done(result) => return result,
                Put::Asleep => return self.numbered(stamp, to, true),
                Put::Full if self.waits_for_room(to) => {}
                Put::Full | Put::Kernel => return self.numbered(stamp, to, false),
            }
        }
    }

    /// The ring of this inlet, which is full, may soon have room. True if it has. Of AF_UNIX only: others' datagrams are
    /// dropped.
    fn waits_for_room(&self, to: &Destination) -> bool {
        let side = &self.end.connection.sides[self.end.side];
        let waits = self.letter.waits && side.nonblock.load(Relaxed) == 0;
        let direction = &sockets().connections[to.row].directions[SENDERS];
        let needed = datagram_len(self.letter.total, self.own.bound.name().bytes().len());
        self.is_local() && waits && stream::wait_for_room(direction, needed)
    }

    /// By the kernel, to an inlet: with a number, behind which is the next.
    fn numbered(&self, stamp: u64, to: &Destination, is_asleep: bool) -> isize {
        let inlet = &sockets().inlets.all[to.row];
        inlet.begun.fetch_add(1, AcqRel);
        let sent = self.by_kernel();
        if sent < 0 {
            inlet.begun.fetch_sub(1, AcqRel);
        } else {
            known::note_after(&self.end, stamp, to, inlet.number());
            inlet.by_kernel.fetch_add(sent as u64, Relaxed);
            if is_asleep {
                inlet.asleep.fetch_add(sent as u64, Relaxed);
            }
        }
        sent
    }

    /// Who hears it.
    #[inline(never)]
    fn find_out(&self) -> Found {
        let Some(own) = self.own.heard() else { return Found::Kernels };
        if own.flags & LOCAL != 0 {
            return self.find_locally(&own);
        }
        let to = if self.letter.to.port == 0 { own.peer } else { self.letter.to };
        if to.port == 0 || !sockets().may_hear(to.port) {
            return Found::Stranger;
        }
        let source = match source_of(&own, &to) {
            Ok(source) => source,
            Err(found) => return found,
        };
        match sockets().who_hears(&source, &to, own.space) {
            // Whoever is killed in the middle of it has to be one whose death others see.
            Some((row, heard))
                if sockets().inlets.all[row].pids.load(Relaxed) == known::pid_space() =>
            {
                Found::Inlet(Destination { row, stamp: heard.stamp, source })
            }
            _ => Found::Kernels,
        }
    }

    /// Who hears it, of AF_UNIX.
    fn find_locally(&self, own: &Heard) -> Found {
        let found = match &self.letter.name {
            None => sockets().find_local(Way::Socket(own.peer.address[0])),
            Some(name) if name.is_abstract() => {
                sockets().find_local(Way::Abstract(name, own.space))
            }
            Some(name) => {
                local::file_of(name).and_then(|file| sockets().find_local(Way::File(file)))
            }
        };
        let Some((row, heard)) = found else { return Found::Stranger };
        let is_near = sockets().inlets.all[row].pids.load(Relaxed) == known::pid_space();
        if !is_near || !heard.hears_locally(own.own.address[0]) {
            return Found::Kernels;
        }
        Found::Inlet(Destination { row, stamp: heard.stamp, source: own.own })
    }

    fn put(&self, inlet: &Inlet, to: &Destination) -> Put {
        let connection = &sockets().connections[to.row];
        let direction = &connection.directions[SENDERS];
        if stream::is_parked(direction) {
            return Put::Asleep;
        }
        let Some(_turn) = Turn::take(inlet, direction, to) else { return Put::Kernel };
        if inlet.has_void() {
            return Put::Asleep;
        }
        if !inlet.is_still(to.stamp) || direction.shut.load(Acquire) != 0 {
            return Put::Kernel;
        }
        stream::note_core(direction);
        let place = End { fd: self.end.fd, row: to.row, side: SENDERS, connection };
        let flags = inlet.flags.load(Relaxed);
        if flags & LOCAL != 0 {
            return self.fill(inlet, &place, self.own.bound.name().bytes(), 0);
        }
        let (name, len) = told(&to.source, flags & SIX != 0);
        let charge = charge(self.letter.total, to.source.is_four());
        self.fill(inlet, &place, &name[..len], charge)
    }

    /// Put it into the ring of `place`, from who has this name; by who has the turn.
    fn fill(&self, inlet: &Inlet, place: &End, name: &[u8], charge: u32) -> Put {
        let (direction, total) = (place.outgoing(), self.letter.total);
        let in_use = inlet.in_use(!direction.has_bytes());
        if in_use != 0 && in_use + u64::from(charge) > u64::from(inlet.limit.load(Relaxed)) {
            inlet.dropped.fetch_add(1, Relaxed);
            return Put::Done(total as isize);
        }
        let needed = datagram_len(total, name.len());
        let Some(tail) = room(direction, needed) else { return Put::Full };
        let head = Head { len: total, name: name.len(), charge };
        if let Err(errno) = self.write(place, tail, &head, name) {
            return Put::Done(-(errno as isize));
        }
        inlet.charged.fetch_add(u64::from(charge), Relaxed);
        let is_asleep = direction.publish(tail + needed as u64, || {
            stream::mark(direction);
            stream::is_parked(direction)
        });
        if !is_asleep {
            return Put::Done(total as isize);
        }
        // Taken out again, if nobody has it.
        if direction.take(tail, needed) {
            inlet.freed.fetch_add(u64::from(charge), Relaxed);
            return Put::Asleep;
        }
        let is_taken = || direction.filled().0 > tail;
        let is_void = inlet.make_void(tail, is_taken);
        if is_void { Put::Asleep } else { Put::Done(total as isize) }
    }

    /// Write it at `tail`.
    fn write(&self, place: &End, tail: u64, head: &Head, name: &[u8]) -> Result<(), Errno> {
        let (direction, mut position) = (place.outgoing(), tail);
        for word in head.words() {
            put_bytes(place, position, &word.to_ne_bytes())?;
            position += 8;
        }
        put_bytes(place, position, name)?;
        position = tail + (HEAD + head.name.next_multiple_of(8)) as u64;
        let mut source = Source::Memory { pieces: self.letter.pieces, flags: 0 };
        let filled = stream::fill(place, direction, &mut source, position, head.len)?;
        if filled == head.len { Ok(()) } else { Err(EFAULT) }
    }
}

/// Where in the ring there is room for so much.
fn room(direction: &Direction, needed: usize) -> Option<u64> {
    loop {
        let (tail, room) = direction.room_for(needed);
        if room >= needed {
            return Some(tail);
        }
        if !stream::take_large(direction, tail) {
            return None;
        }
    }
}

/// Write bytes of ours into the ring.
fn put_bytes(place: &End, position: u64, bytes: &[u8]) -> Result<(), Errno> {
    let mut source =
        Source::Memory { pieces: Pieces::one(bytes.as_ptr() as usize, bytes.len()), flags: 0 };
    stream::fill(place, place.outgoing(), &mut source, position, bytes.len()).map(|_| ())
}

/// An address as the receiver is told it, and its length.
fn told(place: &Place, is_six: bool) -> (Raw, usize) {
    let mut raw: Raw = [0; SIX_LEN];
    raw[2..4].copy_from_slice(&place.port.to_be_bytes());
    if is_six {
        raw[..2].copy_from_slice(&(AF_INET6 as u16).to_ne_bytes());
        raw[8..16].copy_from_slice(&place.address[0].to_be_bytes());
        raw[16..24].copy_from_slice(&place.address[1].to_be_bytes());
        return (raw, SIX_LEN);
    }
    raw[..2].copy_from_slice(&(AF_INET as u16).to_ne_bytes());
    raw[4..8].copy_from_slice(&(place.address[1] as u32).to_be_bytes());
    (raw, FOUR_LEN)
}

/// May the kernel have an error to tell about what a socket sent by it?
pub(in super::super) fn may_have_failed(end: &End) -> bool {
    end.connection.is_inlet() && inlet_of(end).failed.load(Relaxed) != 0
}

/// Has it one, of a socket that is connected?
pub(super) fn has_failed(end: &End) -> bool {
    let failed = &inlet_of(end).failed;
    if failed.load(Relaxed) == 0 {
        return false;
    }
    failed.store(0, Relaxed);
    let has = kernels_events(end.fd, 0) & ERR != 0;
    if has {
        failed.store(1, Relaxed);
    }
    has
}

/// From which address the kernel sends to `to`, if that is on this host; or what that is instead.
fn source_of(own: &Heard, to: &Place) -> Result<Place, Found> {
    let is_bound = !own.own.is_any();
    if is_bound && own.own.is_four() != to.is_four() {
        return Err(Found::Kernels);
    }
    if is_bound && is_same_host(&own.own, to) {
        return Ok(own.own);
    }
    let source = ask_route(own.space, to).ok_or(Found::Kernels)?;
    if !is_same_host(&source, to) {
        return Err(Found::Stranger);
    }
    let address = if is_bound { own.own.address } else { source.address };
    Ok(Place { address, port: own.own.port })
}

/// From which address a socket of nobody's would send to `to`.
#[inline(never)]
fn ask_route(space: u64, to: &Place) -> Option<Place> {
    const DATAGRAM_CLOEXEC: usize = 2 | 0o2000000;
    let is_six = !to.is_four();
    let family = if is_six { AF_INET6 } else { AF_INET };
    let fd = usize::try_from(ask(nr::SOCKET, [family, DATAGRAM_CLOEXEC, 0])).ok()?;
    let (name, len) = told(to, is_six);
    let is_there = option(fd, SO_NETNS_COOKIE) == Some(space)
        && ask(nr::CONNECT, [fd, name.as_ptr() as usize, len]) == 0;
    let source = is_there.then(|| super::place_of(fd, nr::GETSOCKNAME)).flatten();
    ask(nr::CLOSE, [fd]);
    source
}

/// The turn to put something into an inlet that was found to be what it is.
struct Turn<'a> {
    inlet: &'a Inlet,
    own: u64,
    row: usize,
    stamp: u64,
}

impl<'a> Turn<'a> {
    /// None if somebody has it for long, or this has interrupted who has it.
    fn take(inlet: &'a Inlet, direction: &Direction, to: &Destination) -> Option<Self> {
        let pid = start::this_process()?.pid;
        let own = u64::from(pid) << 32 | u64::from(context::own_tid());
        let (here, frame) = (stack_pointer(), &direction.writing.frame);
        let turn = Self { inlet, own, row: to.row, stamp: to.stamp };
        for look in 0..TURN_LOOKS {
            let is_taken = match inlet.take_turn(own) {
                Ok(()) => true,
                Err(holder) if holder == own => {
                    if turns::is_on_top(here, frame.load(Relaxed) as usize) {
                        break;
                    }
                    true
                }
                Err(holder) => {
                    if look % ALIVE_LOOKS == ALIVE_LOOKS - 1 && !sys::task_lives(holder as u32) {
                        let _ = inlet.pass_turn(holder, 0);
                    } else if look > 32 {
                        sys::sched_yield();
                    }
                    false
                }
            };
            if is_taken {
                frame.store(here as u64, Relaxed);
                // A handler that came before that took it for one that was left, and has given it up.
                if inlet.turn.load(Acquire) == own {
                    return Some(turn);
                }
            }
            core::hint::spin_loop();
        }
        core::mem::forget(turn);
        None
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = self.inlet.pass_turn(self.own, 0);
        // Closed meanwhile: nobody else could free it.
        if !self.inlet.is_still(self.stamp) {
            sockets().free_inlet(self.row);
        }
    }
}

/// The kernel's or ours, of a descriptor that is no end: see [`first`].
pub(in super::super) fn is_first(fd: usize) -> bool {
    fds::has_datagrams(fd) && end_of(fd).is_none()
}
