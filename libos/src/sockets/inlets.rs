//! Inlets: datagram sockets of participants, and what comes to them without the kernel.
//!
//! An inlet is a row of the table of connections with one direction, into which every participant puts datagrams,
//! each whole, and only while it has the inlet's *turn*: what has not been published when its writer is killed
//! was never there, and whoever comes next takes the turn of a dead one.
//!
//! ```text
//!            seen empty since its last one went there, the receiver is awake
//!  sender ──────────────────────────────► ring ───────────────────────────► first ── receiver
//!         ──────────────────────────────► kernel's socket ────────────────► then  ──
//!            its first one, the receiver sleeps, the ring is full, or anything is out of the ordinary
//! ```
//!
//! The kernel's queue has strangers' datagrams, too, and loses some, so that nobody can count what is in it. So a
//! sender that has had one go by the kernel takes a number *after* that, and waits with using the ring until the
//! receiver, having read the numbers *before*, has found the kernel's queue empty. Until then its next ones go
//! by the kernel as well: of one sender nothing is overtaken.
//!
//! There are no bells. A receiver says that it is about to ask the kernel, and looks at the ring once more; a
//! sender that has put something into the ring and finds that somebody has said so takes it out again, and has
//! it go by the kernel. So whoever sleeps is woken by the datagram itself, and strangers get nothing else. What lies
//! behind others that are unread, as who waits for edges may leave them, cannot be taken out: it becomes *void*, and
//! whoever comes to it leaves it to the kernel. If it has been received at that very moment, one exchange says so.
//!
//! Who sends does not hold the row. It takes the turn and then looks whether the inlet is what it was, by its
//! *stamp*; who frees the row changes the stamp and then looks whether anybody has the turn.

pub mod local;
#[cfg(all(test, loom))]
mod models;

use super::{Connection, JOINED, Sockets, zero, zero64};
use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence, fence_after_exchange};

/// In [`Connection::kind`]: it is an inlet.
pub const INLET: u32 = 1 << 17;
/// The side of such a row that senders are on. Nobody has it.
pub const SENDERS: usize = 0;
/// The side of the socket itself.
pub const RECEIVER: usize = 1;
/// Ports that there are.
pub const PORTS: usize = 1 << 16;
/// Bytes of the longest datagram that goes by a ring: what IPv4 has room for.
pub const DATAGRAM_MAX: usize = 65_507;
/// Closed sockets whose rows are kept for a while, at a time.
pub const LINGERING_MAX: u32 = 256;
/// Bytes of the longest address: of AF_UNIX, with a zero behind its path, in words.
pub const NAME_MAX: usize = 112;
/// What precedes a datagram in a ring: its length, that of its sender's address, what it counts for, nothing.
pub const HEAD: usize = 16;

/// In [`Inlet::flags`]: others may have its port or address as well.
pub const SHARED: u32 = 1;
/// IPv4 only, or IPv6 only.
pub const ONE_FAMILY: u32 = 2;
/// Its addresses are told as those of IPv6.
pub const SIX: u32 = 4;
/// It sends and hears by the kernel only, for good.
pub const LEFT: u32 = 8;
/// It is one of AF_UNIX.
pub const LOCAL: u32 = 16;

/// An address and a port. IPv4 is a part of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// The address.
    pub address: [u64; 2],
    /// The port, 0 if there is none.
    pub port: u16,
}

impl Place {
    /// Is it one of IPv4?
    #[must_use]
    pub const fn is_four(&self) -> bool {
        self.address[0] == 0 && self.address[1] >> 32 == 0xffff
    }

    /// Does a socket that is bound here hear at every address of its family?
    #[must_use]
    pub const fn is_any(&self) -> bool {
        self.address[0] == 0 && (self.address[1] == 0 || self.address[1] == 0xffff_0000_0000)
    }
}

/// What is kept of a datagram socket, beside its row.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Inlet {
    /// Counts what it has been: odd while that changes.
    pub stamp: AtomicU64,
    /// Who puts something into the ring, or is about to: pid, and tid in the lower half.
    pub turn: AtomicU64,
    /// Where it hears.
    address: [AtomicU64; 2],
    /// Whom it hears, if it is connected.
    peer: [AtomicU64; 2],
    /// The ports of both: the peer's in the upper half.
    ports: AtomicU32,
    /// [`SHARED`] and the others.
    pub flags: AtomicU32,
    /// The number of its network namespace.
    pub space: AtomicU64,
    /// The number of the pid namespace of who made it.
    pub pids: AtomicU64,
    /// Numbers that senders have taken whose datagrams had gone by the kernel.
    pub sent: AtomicU64,
    /// Datagrams that are about to take one, or have.
    pub begun: AtomicU64,
    /// The last number that was there when the kernel was found to have nothing.
    pub emptied: AtomicU64,
    /// What datagrams in the ring have counted for, ever; and those that were taken out.
    pub charged: AtomicU64,
    /// See [`Self::charged`].
    pub freed: AtomicU64,
    /// What they may count for at a time; of AF_UNIX, where nothing is dropped, how much it may send at a time.
    pub limit: AtomicU32,
    /// 1 if the kernel may have an error to tell.
    pub failed: AtomicU32,
    /// 1 if the kernel's next datagram has been looked at, so that it comes next.
    pub peeked: AtomicU32,
    /// 1 if the last one that was received had come from a participant, as far as can be told.
    pub is_near: AtomicU32,
    /// 1 once nobody had it for a moment.
    lingers: AtomicU32,
    /// Counts datagrams that its program has sent in ways that take no numbers.
    pub strays: AtomicU32,
    /// Bytes that participants have sent to it by the kernel.
    pub by_kernel: AtomicU64,
    /// Of these, the ones for who slept.
    pub asleep: AtomicU64,
    /// Datagrams for which there was no room.
    pub dropped: AtomicU64,
    /// The position in the ring of the one that goes by the kernel after all, and 1, until it is taken out; or 0.
    void: AtomicU64,
    /// Of AF_UNIX.
    pub bound: local::Bound,
}

/// What [`Inlet`] says of a socket at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Which moment.
    pub stamp: u64,
    /// Where it hears.
    pub own: Place,
    /// Whom it hears; all if the port is 0.
    pub peer: Place,
    /// [`SHARED`] and the others.
    pub flags: u32,
    /// Its network namespace.
    pub space: u64,
}

impl Heard {
    /// How well what is sent from `source` to `to` fits, as the kernel has it; None if it does not.
    fn fit(&self, source: &Place, to: &Place) -> Option<u32> {
        let own = &self.own;
        if own.port != to.port {
            return None;
        }
        let is_one_family = self.flags & ONE_FAMILY != 0;
        let hears = if own.is_any() {
            own.is_four() == to.is_four() || !is_one_family && to.is_four()
        } else {
            own.address == to.address
        };
        let is_peer = self.peer == *source;
        if !hears || self.peer.port != 0 && !is_peer {
            return None;
        }
        Some(u32::from(is_peer) * 2 + u32::from(!own.is_any()))
    }
}

impl Inlet {
    /// As it is from now on. `all` is told of it.
    pub fn change(&self, all: &Inlets, own: Place, peer: Place, flags: u32, space: u64) {
        self.begin_change();
        for (word, part) in self.address.iter().zip(own.address) {
            word.store(part, Ordering::Relaxed);
        }
        for (word, part) in self.peer.iter().zip(peer.address) {
            word.store(part, Ordering::Relaxed);
        }
        self.ports.store(u32::from(peer.port) << 16 | u32::from(own.port), Ordering::Relaxed);
        // Another thread may have left it meanwhile.
        let keep = |former: u32| Some(flags | former & LEFT);
        let _ = self.flags.fetch_update(Ordering::AcqRel, Ordering::Relaxed, keep);
        self.space.store(space, Ordering::Relaxed);
        self.stamp.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        all.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Nobody who knows of it may put anything in from now on.
    fn begin_change(&self) {
        let stamp = self.stamp.load(Ordering::Relaxed) & !1;
        self.stamp.store(stamp + 1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// It has these flags as well from now on.
    pub fn add_flags(&self, all: &Inlets, flags: u32) {
        self.flags.fetch_or(flags, Ordering::AcqRel);
        self.stamp.fetch_add(2, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        all.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// As it is, if that does not change just now.
    #[must_use]
    pub fn heard(&self) -> Option<Heard> {
        let stamp = self.stamp.load(Ordering::Acquire);
        let pair =
            |words: &[AtomicU64; 2]| words.each_ref().map(|word| word.load(Ordering::Relaxed));
        let (own, peer) = (pair(&self.address), pair(&self.peer));
        let ports = self.ports.load(Ordering::Relaxed);
        let heard = Heard {
            stamp,
            own: Place { address: own, port: ports as u16 },
            peer: Place { address: peer, port: (ports >> 16) as u16 },
            flags: self.flags.load(Ordering::Relaxed),
            space: self.space.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        (stamp & 1 == 0 && self.stamp.load(Ordering::Relaxed) == stamp).then_some(heard)
    }

    /// The turn to put something in, for the thread that `own` names: pid, and tid in the lower half. Or who has it.
    pub fn take_turn(&self, own: u64) -> Result<(), u64> {
        self.pass_turn(0, own)
    }

    /// The turn of `former`, who is known not to come back, is `own`'s.
    pub fn pass_turn(&self, former: u64, own: u64) -> Result<(), u64> {
        self.turn.compare_exchange(former, own, Ordering::SeqCst, Ordering::SeqCst).map(drop)
    }

    /// Is it what it was when its stamp was `stamp`? Asked by who has the turn, so that it stays.
    #[must_use]
    pub fn is_still(&self, stamp: u64) -> bool {
        fence(Ordering::SeqCst);
        self.stamp.load(Ordering::SeqCst) == stamp
    }

    /// May who has this number use the ring?
    #[must_use]
    #[inline]
    pub fn is_emptied(&self, number: u64) -> bool {
        self.emptied.load(Ordering::Acquire).wrapping_sub(number) <= u64::MAX / 2
    }

    /// A datagram has gone by the kernel: its number.
    pub fn number(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.sent.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Is somebody about to take a number?
    #[must_use]
    #[inline]
    pub fn is_numbering(&self) -> bool {
        self.begun.load(Ordering::Acquire) > self.sent.load(Ordering::Acquire)
    }

    /// Whoever was to take a number was killed before.
    pub fn forget_begun(&self) {
        self.begun.store(self.sent.load(Ordering::Acquire), Ordering::Release);
    }

    /// Does anybody wait for the kernel's queue to be empty?
    #[must_use]
    #[inline]
    pub fn is_awaited(&self) -> bool {
        self.sent.load(Ordering::Acquire) != self.emptied.load(Ordering::Acquire)
    }

    /// The kernel has nothing, asked after `sent` was read.
    pub fn found_empty(&self, sent: u64) {
        self.emptied.fetch_max(sent, Ordering::AcqRel);
    }

    /// The datagram at `position` of the ring, behind others that nobody has received, is to go by the kernel, since
    /// somebody has gone to sleep as it was put in. By who has the turn; false if it was received first, as
    /// `is_taken` says.
    pub fn make_void(&self, position: u64, is_taken: impl FnOnce() -> bool) -> bool {
        self.void.store(position + 1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        !is_taken() || !self.take_void(position)
    }

    /// Is there one that still lies in the ring? There is never another.
    #[must_use]
    #[inline]
    pub fn has_void(&self) -> bool {
        self.void.load(Ordering::Relaxed) != 0
    }

    /// Asked of what has been taken out: is it for the kernel to deliver?
    #[must_use]
    #[inline]
    pub fn is_void(&self, position: u64) -> bool {
        fence_after_exchange();
        self.void.load(Ordering::Relaxed) == position + 1 && self.take_void(position)
    }

    /// Of its sender, who finds it taken, and whoever has taken it, one comes first.
    fn take_void(&self, position: u64) -> bool {
        let (seen, order) = (position + 1, Ordering::SeqCst);
        self.void.compare_exchange(seen, 0, order, order).is_ok()
    }

    /// What counts of what is in the ring; nothing if that `is_empty`.
    #[must_use]
    pub fn in_use(&self, is_empty: bool) -> u64 {
        let (charged, freed) = (&self.charged, self.freed.load(Ordering::Acquire));
        if is_empty {
            // Whoever was killed may have counted what it never put in.
            charged.store(freed, Ordering::Relaxed);
            return 0;
        }
        // What is counted as freed may be more for a moment: it is taken first.
        (charged.load(Ordering::Relaxed).wrapping_sub(freed) as i64).max(0) as u64
    }

    fn reset(&self) {
        let words = [&self.sent, &self.begun, &self.emptied, &self.charged, &self.freed];
        words.into_iter().chain([&self.turn, &self.void]).for_each(zero64);
        [&self.by_kernel, &self.asleep, &self.dropped].into_iter().for_each(zero64);
        [&self.failed, &self.peeked, &self.is_near, &self.strays, &self.flags]
            .into_iter()
            .for_each(zero);
    }
}

/// What is kept of all datagram sockets.
#[derive(Debug)]
#[repr(C)]
pub struct Inlets {
    /// Counts what may have others hear what is sent.
    pub changes: AtomicU64,
    /// Datagram sockets that ever had a row.
    pub begun: AtomicU64,
    /// Closed ones that a child may still turn out to have.
    pub lingering: AtomicU32,
    /// Bytes that ended ones had received by rings.
    pub carried_bytes: AtomicU64,
    /// Bytes that participants had sent to them by the kernel.
    pub kernel_bytes: AtomicU64,
    /// Of these, the ones for who slept.
    pub asleep_bytes: AtomicU64,
    /// Datagrams that they had no room for.
    pub dropped: AtomicU64,
    /// How many are of AF_UNIX.
    pub locals: AtomicU32,
    /// How many have each port.
    pub ports: [AtomicU8; PORTS],
    /// By row.
    pub all: [Inlet; super::CONNECTIONS_MAX],
}

/// In the first word of an inlet's name.
const NAMED: u64 = 1 << 62;

/// What names inlets with this port.
#[must_use]
pub const fn of_port(port: u16) -> super::Name {
    [NAMED | port as u64, 0, 0, 0, 0]
}

/// What the kernel takes a datagram of UDP for, of a receiver's buffer: the memory that it is in.
#[must_use]
pub const fn charge(len: usize, is_four: bool) -> u32 {
    /// Headers, and what is kept behind the bytes.
    const OVERHEAD: usize = 379;
    const OVERHEAD_SIX: usize = 392;
    /// What describes it.
    const KEPT: usize = 256;
    const SMALL: usize = 576;
    const LARGE: usize = 16 << 10;
    let memory = len + if is_four { OVERHEAD } else { OVERHEAD_SIX };
    let taken = if memory <= SMALL {
        SMALL
    } else if memory <= LARGE {
        memory.next_power_of_two()
    } else {
        SMALL + len
    };
    (taken + KEPT) as u32
}

/// What a datagram takes of a ring, with so many bytes of address.
#[must_use]
pub const fn datagram_len(len: usize, name: usize) -> usize {
    HEAD + name.next_multiple_of(8) + len.next_multiple_of(8)
}

/// What precedes a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its bytes.
    pub len: usize,
    /// Its sender's address.
    pub name: usize,
    /// What it counts for.
    pub charge: u32,
}

impl Head {
    /// In a ring.
    #[must_use]
    pub const fn words(&self) -> [u64; 2] {
        [self.len as u64 | (self.name as u64) << 32, self.charge as u64]
    }

    /// What a ring has that is `filled` from there on. None if there is no such datagram.
    #[must_use]
    pub const fn checked(words: [u64; 2], filled: usize) -> Option<Self> {
        let [lens, charge] = words;
        let (len, name) = (lens as u32 as usize, (lens >> 32) as usize);
        if len > DATAGRAM_MAX || name > NAME_MAX || datagram_len(len, name) > filled {
            return None;
        }
        Some(Self { len, name, charge: charge as u32 })
    }

    /// Bytes of the ring from its head on.
    #[must_use]
    pub const fn taken(&self) -> usize {
        datagram_len(self.len, self.name)
    }
}

impl Connection {
    /// Is it a datagram socket?
    #[must_use]
    #[inline]
    pub fn is_inlet(&self) -> bool {
        self.kind.load(Ordering::Relaxed) & INLET != 0
    }
}

impl Sockets {
    /// Make `row`, which has been taken under the name of its port, an inlet. Others find it as soon as
    /// its connection is joined.
    pub fn begin_inlet(&self, row: usize, heard: &Heard, limit: u32, pids: u64) {
        let (connection, inlet) = (&self.connections[row], &self.inlets.all[row]);
        inlet.reset();
        inlet.limit.store(limit, Ordering::Relaxed);
        inlet.pids.store(pids, Ordering::Relaxed);
        inlet.flags.store(0, Ordering::Relaxed);
        inlet.change(&self.inlets, heard.own, heard.peer, heard.flags, heard.space);
        if heard.flags & LOCAL != 0 {
            self.inlets.locals.fetch_add(1, Ordering::AcqRel);
        } else {
            self.inlets.ports[usize::from(heard.own.port)].fetch_add(1, Ordering::AcqRel);
        }
        self.inlets.begun.fetch_add(1, Ordering::Relaxed);
        connection.state.store(JOINED, Ordering::Release);
        self.inlets.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// May anybody have this port?
    #[must_use]
    #[inline]
    pub fn may_hear(&self, port: u16) -> bool {
        self.inlets.ports[usize::from(port)].load(Ordering::Acquire) != 0
    }

    /// Has it an inlet, of a socket that somebody has?
    fn is_inlet_row(&self, row: usize) -> bool {
        let one = &self.connections[row];
        one.state.load(Ordering::Acquire) == JOINED
            && one.is_inlet()
            && one.sides[RECEIVER].gone.load(Ordering::Acquire) == 0
    }

    /// Rows of inlets of this name.
    fn named(&self, name: super::Name) -> impl Iterator<Item = usize> {
        let first = super::first_row(&name);
        (0..super::PROBES)
            .map(move |probe| (first + probe) % super::CONNECTIONS_MAX)
            .filter(move |&row| self.is_inlet_row(row) && self.connections[row].is_named(&name))
    }

    /// The row of the inlet that hears what is sent from `source` to `to` in this network namespace, and what it
    /// said then. None if that is not certain, or if it is one that the kernel alone knows how to send to.
    #[must_use]
    pub fn who_hears(&self, source: &Place, to: &Place, space: u64) -> Option<(usize, Heard)> {
        let mut best: Option<(u32, usize, Heard)> = None;
        let mut is_certain = true;
        for row in self.named(of_port(to.port)) {
            let heard = self.inlets.all[row].heard()?;
            let Some(fit) = heard.fit(source, to).filter(|_| heard.space == space) else {
                continue;
            };
            if best.is_some_and(|(other, ..)| other >= fit) {
                is_certain &= best.is_some_and(|(other, ..)| other != fit);
                continue;
            }
            (best, is_certain) = (Some((fit, row, heard)), true);
        }
        let (_, row, heard) = best.filter(|_| is_certain)?;
        // Who shares its port with others may share it with strangers, unless it hears this sender only.
        let is_shared = heard.flags & SHARED != 0 && heard.peer.port == 0;
        (!is_shared && heard.flags & LEFT == 0).then_some((row, heard))
    }

    /// Nobody is to put anything into the inlet of `row` any more. False if somebody may be doing so, who has to
    /// free it then.
    pub(super) fn close_inlet(&self, row: usize) -> bool {
        let (connection, inlet) = (&self.connections[row], &self.inlets.all[row]);
        if !connection.is_inlet() {
            return true;
        }
        inlet.stamp.fetch_add(2, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        inlet.turn.load(Ordering::SeqCst) == 0
    }

    /// The last one that is known to have the socket of `row` has it no longer. A child of fork's that is not known yet
    /// may have it: is there room to wait for that?
    pub(super) fn lingers(&self, row: usize) -> bool {
        let lingering = &self.inlets.lingering;
        if !self.connections[row].is_inlet() || lingering.load(Ordering::Relaxed) >= LINGERING_MAX {
            return false;
        }
        if self.inlets.all[row].lingers.swap(1, Ordering::AcqRel) == 0 {
            lingering.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// The row of an inlet becomes free.
    pub(super) fn end_inlet(&self, row: usize) {
        let (connection, inlet) = (&self.connections[row], &self.inlets.all[row]);
        let all = &self.inlets;
        inlet.stamp.fetch_add(2, Ordering::SeqCst);
        if inlet.lingers.swap(0, Ordering::AcqRel) != 0 {
            all.lingering.fetch_sub(1, Ordering::Relaxed);
        }
        let name = connection.name[0].load(Ordering::Relaxed);
        let (order, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        if name & local::LOCALLY != 0 {
            let _ = all.locals.fetch_update(order, relaxed, |count| count.checked_sub(1));
        } else {
            let of_port = &all.ports[usize::from(name as u16)];
            let _ = of_port.fetch_update(order, relaxed, |count| count.checked_sub(1));
        }
        let carried = connection.directions[SENDERS].reading.record_bytes.load(Ordering::Relaxed);
        all.carried_bytes.fetch_add(carried, Ordering::Relaxed);
        for (sum, part) in [
            (&all.kernel_bytes, &inlet.by_kernel),
            (&all.asleep_bytes, &inlet.asleep),
            (&all.dropped, &inlet.dropped),
        ] {
            sum.fetch_add(part.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// A process has ended that may have had turns.
    pub(super) fn end_turns(&self, pid: u32) {
        for row in self.rows().filter(|&row| self.connections[row].is_inlet()) {
            let turn = &self.inlets.all[row].turn;
            let holder = turn.load(Ordering::Acquire);
            if holder >> 32 == u64::from(pid) {
                let _ = turn.compare_exchange(holder, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }
}

const _: () = assert!(datagram_len(DATAGRAM_MAX, NAME_MAX) <= super::LARGE_RING);
const _: () = assert!(HEAD.is_multiple_of(8) && super::SMALL_RING.is_multiple_of(8));

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{
        DATAGRAM_MAX, HEAD, Head, Heard, Inlet, NAME_MAX, ONE_FAMILY, Place, charge, datagram_len,
    };
    use crate::sync::Ordering::Relaxed;

    const fn four(last: u64, port: u16) -> Place {
        Place { address: [0, 0xffff_0000_0000 | last], port }
    }

    const fn heard(own: Place, peer: Place, flags: u32) -> Heard {
        Heard { stamp: 0, own, peer, flags, space: 1 }
    }

    const NOBODY: Place = Place { address: [0, 0], port: 0 };
    const LOOPBACK: u64 = 0x7f00_0001;

    #[test]
    fn who_is_connected_hears_before_who_is_bound_and_that_before_who_hears_everywhere() {
        let (source, to) = (four(LOOPBACK, 7), four(LOOPBACK, 9));
        let fit = |own, peer, flags| heard(own, peer, flags).fit(&source, &to);
        let everywhere = fit(four(0, 9), NOBODY, ONE_FAMILY);
        let here = fit(to, NOBODY, ONE_FAMILY);
        let only_him = fit(four(0, 9), source, ONE_FAMILY);
        assert!(None < everywhere && everywhere < here && here < only_him);
        for (own, peer) in
            [(four(LOOPBACK + 1, 9), NOBODY), (four(LOOPBACK, 8), NOBODY), (to, four(LOOPBACK, 8))]
        {
            assert_eq!(fit(own, peer, ONE_FAMILY), None);
        }
    }

    #[test]
    fn ipv6_hears_ipv4_unless_it_is_told_not_to() {
        let (source, to) = (four(LOOPBACK, 7), four(LOOPBACK, 9));
        let every_six = Place { address: [0, 0], port: 9 };
        assert!(heard(every_six, NOBODY, 0).fit(&source, &to).is_some());
        assert!(heard(every_six, NOBODY, ONE_FAMILY).fit(&source, &to).is_none());
        let six = Place { address: [0, 1], port: 9 };
        assert!(heard(four(0, 9), NOBODY, ONE_FAMILY).fit(&source, &six).is_none());
    }

    /// As counted on Linux 6.18: so many of a length fit into 212,992 bytes.
    #[test]
    fn datagrams_count_for_what_the_kernel_takes_for_them() {
        for (len, is_four, fit) in [
            (0, true, 256),
            (197, true, 256),
            (198, true, 166),
            (184, false, 256),
            (185, false, 166),
            (645, true, 166),
            (646, true, 92),
            (1670, true, 48),
            (3718, true, 25),
            (7814, true, 12),
            (16_917, true, 12),
            (16_918, true, 11),
            (18_531, true, 10),
            (29_595, true, 7),
            (29_596, true, 6),
            (65_507, true, 3),
        ] {
            assert_eq!(212_992 / charge(len, is_four), fit, "{len}");
        }
    }

    #[test]
    fn nothing_that_a_ring_cannot_hold_is_a_datagram() {
        let head = Head { len: 10, name: 16, charge: 832 };
        assert_eq!(head.taken(), HEAD + 16 + 16);
        assert_eq!(Head::checked(head.words(), head.taken()), Some(head));
        assert_eq!(Head::checked(head.words(), head.taken() - 8), None);
        let long = Head { len: DATAGRAM_MAX + 1, ..head };
        assert_eq!(Head::checked(long.words(), 1 << 20), None);
        let named = Head { name: NAME_MAX + 1, ..head };
        assert_eq!(Head::checked(named.words(), 1 << 20), None);
        assert_eq!(Head::checked([u64::MAX; 2], 1 << 20), None);
        assert_eq!(datagram_len(0, 0), HEAD);
    }

    #[test]
    fn what_a_killed_sender_has_counted_is_forgotten_when_the_ring_is_empty() {
        let inlet = Inlet::default();
        inlet.charged.store(900, Relaxed);
        inlet.freed.store(100, Relaxed);
        assert_eq!(inlet.in_use(false), 800);
        assert_eq!(inlet.in_use(true), 0);
        assert_eq!(inlet.in_use(false), 0);
    }

    #[test]
    fn who_has_a_number_waits_until_the_kernel_was_empty_after_it() {
        let inlet = Inlet::default();
        let number = inlet.number();
        assert!(!inlet.is_emptied(number) && inlet.is_awaited());
        inlet.found_empty(number);
        assert!(inlet.is_emptied(number) && !inlet.is_awaited());
        assert!(!inlet.is_emptied(inlet.number()));
    }
}
