//! What the descriptors of this process stand for.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use core::sync::atomic::{AtomicU32, AtomicU64};

use libos::layout::SOCKETS_PRIVATE_OFFSET;
use libos::sockets::{CONNECTIONS_MAX, Connection, Direction, FREE};

use super::epoll::{self, Set};
use super::{ask, inlets, late, native, own_pid, sockets};
use crate::sys::{self, nr};
use crate::{boot, context, start, time};

/// Descriptors from here on are not carried.
const FDS_MAX: usize = 32 << 10;
/// Epoll instances with carried sockets that a process can have; others' sockets go by the kernel.
pub(super) const SETS_MAX: usize = 64;

/// Private to the process; a forked child gets a copy.
#[repr(C)]
struct Table {
    /// Descriptors that have ever been anything: those below.
    used: AtomicU64,
    /// What each descriptor stands for: [`Entry`].
    fds: [AtomicU64; FDS_MAX],
    sets: [Set; SETS_MAX],
    late: late::Table,
    known: inlets::Known,
    /// As of the process when it was last looked for.
    forks: AtomicU32,
}

pub(crate) const TABLE_LEN: usize = size_of::<Table>();
const _: () = assert!(TABLE_LEN <= libos::layout::SOCKETS_PRIVATE_LEN);
const _: () = assert!(SETS_MAX < 0xff);

fn table() -> &'static Table {
    // SAFETY: made writable when the process joined, private to it, and all atomics.
    unsafe { &*((boot::place().cache() + SOCKETS_PRIVATE_OFFSET) as *const Table) }
}

/// What was late for its epoll instance.
pub(super) fn late() -> &'static late::Table {
    &table().late
}

/// Whom datagram sockets send to.
pub(super) fn known() -> &'static inlets::Known {
    &table().known
}

/// Make the table usable.
pub(crate) fn prepare() -> Result<usize, sys::Errno> {
    let (at, len) =
        (boot::place().cache() + SOCKETS_PRIVATE_OFFSET, TABLE_LEN.next_multiple_of(4096));
    // SAFETY: a part of the process's reservation that is used for nothing else.
    unsafe { sys::mprotect(at, len, sys::PROT_READ | sys::PROT_WRITE) }?;
    // Most processes touch a few pages. A kernel without huge pages needs not be told.
    // SAFETY: as above.
    let _ = unsafe { sys::by_small_pages(at, len) };
    Ok(at)
}

/// An end of a connection, and the descriptor that it is known by.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) fd: usize,
    pub(super) row: usize,
    pub(super) side: usize,
    pub(super) connection: &'static Connection,
}

impl End {
    /// What this end writes.
    pub(super) fn outgoing(&self) -> &'static Direction {
        &self.connection.directions[self.side]
    }

    /// Does whoever receives it by a message have to know of it? Of a pipe or a counter that has nothing in the
    /// region, the kernel has everything.
    pub(super) fn is_needed(&self) -> bool {
        !self.connection.has_no_bells() || self.connection.has_unread()
    }

    /// Is it the same end, by whatever descriptor?
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.row, self.side) == (other.row, other.side)
    }

    /// What it reads.
    pub(super) fn incoming(&self) -> &'static Direction {
        &self.connection.directions[1 - self.side]
    }
}

// An entry, from the lowest bit: row (14 bits), side, CARRIED, low half of the row's generation, then the
// number of a set and 1 (8 bits) and of the socket there (12 bits). Of an epoll instance: its set.
const ROW: u64 = CONNECTIONS_MAX as u64 - 1;
const SIDE_BIT: u32 = 14;
const CARRIED: u64 = 1 << 15;
const GENERATION_BIT: u32 = 16;
const SET_BIT: u32 = 32;
const SOCKET_BIT: u32 = 40;
/// There may be other descriptors for the same.
const COPIED: u64 = 1 << 62;
const EPOLL: u64 = 1 << 63;
/// It is in an epoll instance besides the one of its place, or in one that is not known.
const ELSEWHERE: u64 = 1 << 61;
/// It is a socket that may be carried, and has no row yet; nothing else stands for the same.
const ALONE: u64 = 1 << 60;
/// Of such a one: it is of datagrams.
const DATAGRAMS: u64 = 1 << 59;
/// Of such a one: it has sent something.
const SPOKEN: u64 = 1 << 58;
/// Of what has no row yet: once it has, it goes by the kernel, as what is accepted from it.
const LEFT: u64 = 1 << 57;

/// Of datagrams: it is one of AF_UNIX.
const LOCAL: u64 = 1 << 56;

const WHAT: u64 = (1 << SET_BIT) - 1;
const PLACE: u64 = ((1 << 52) - 1) & !WHAT;

/// Descriptors that may stand for something.
fn used() -> usize {
    (table().used.load(Relaxed) as usize).min(FDS_MAX)
}

/// `fd` stands for what `word` says from now on. False if it cannot.
fn put(fd: usize, word: u64) -> bool {
    let Some(entry) = entry(fd) else { return false };
    table().used.fetch_max(u64::from(fd as u32) + 1, AcqRel);
    entry.store(word, Relaxed);
    true
}

fn entry(fd: usize) -> Option<&'static AtomicU64> {
    // As the kernel has it, a descriptor is 32 bits.
    table().fds.get(fd as u32 as usize)
}

/// The end that `fd` stands for, if it is carried.
#[inline]
pub(super) fn end_of(fd: usize) -> Option<End> {
    let fd = fd as u32 as usize;
    let word = entry(fd)?.load(Relaxed);
    if word & CARRIED == 0 {
        return None;
    }
    let (row, side) = ((word & ROW) as usize, (word >> SIDE_BIT & 1) as usize);
    let connection = &sockets().connections[row];
    let generation = connection.generation.load(Relaxed) as u16;
    let is_same =
        generation == (word >> GENERATION_BIT) as u16 && connection.state.load(Relaxed) != FREE;
    is_same.then_some(End { fd, row, side, connection })
}

/// The same, if it is a socket.
pub(super) fn socket_of(fd: usize) -> Option<End> {
    end_of(fd).filter(|end| end.connection.is_socket())
}

/// `fd` stands for this end from now on. False if it cannot.
pub(super) fn carry(fd: usize, row: usize, side: usize) -> bool {
    let generation = sockets().connections[row].generation.load(Relaxed) as u16;
    let word = row as u64 | (side as u64) << SIDE_BIT | CARRIED;
    let place = entry(fd).map_or(0, |entry| entry.load(Relaxed) & (PLACE | ELSEWHERE | LEFT));
    put(fd, word | place | u64::from(generation) << GENERATION_BIT)
}

/// `fd`, which is new, stands for nothing yet.
pub(super) fn is_new(fd: usize) {
    if let Some(entry) = entry(fd).filter(|entry| entry.load(Relaxed) != 0) {
        entry.store(0, Relaxed);
    }
}

/// Is it a datagram socket that may be carried, and has no row yet?
#[inline]
pub(super) fn has_datagrams(fd: usize) -> bool {
    entry(fd).is_some_and(|entry| entry.load(Relaxed) & DATAGRAMS != 0)
}

/// It has sent something.
pub(super) fn note_spoken(fd: usize) {
    if let Some(entry) = entry(fd) {
        entry.fetch_or(SPOKEN, AcqRel);
    }
}

/// Has it?
pub(super) fn has_spoken(fd: usize) -> bool {
    entry(fd).is_some_and(|entry| entry.load(Relaxed) & SPOKEN != 0)
}

/// Which sockets may be carried, and have no row yet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Alone {
    Connects,
    Datagrams,
    LocalDatagrams,
}

/// `fd`, which is new, is such a one.
pub(super) fn note_alone(fd: usize, what: Alone) {
    let more = match what {
        Alone::Connects => 0,
        Alone::Datagrams => DATAGRAMS,
        Alone::LocalDatagrams => DATAGRAMS | LOCAL,
    };
    put(fd, ALONE | more);
}

/// Is it one of AF_UNIX, if it is of datagrams and has no row yet?
pub(super) fn is_local(fd: usize) -> bool {
    entry(fd).is_some_and(|entry| entry.load(Relaxed) & LOCAL != 0)
}

/// A socket is about to have a row, which somebody else who had it would not know of: nobody has, and of threads that
/// ask at once one is told so. The count of forks by which [`forks`] says, once `fd` stands for the row, whether there
/// was one meanwhile.
pub(super) fn take_alone(fd: usize) -> Option<u32> {
    let count = forks();
    look_for_forks();
    not_alone(fd).then_some(count)
}

/// The socket `fd`, which has no row yet, has an option that makes the kernel do what rings do not.
pub(super) fn leave(fd: usize) {
    put(fd, entry(fd).map_or(0, |entry| entry.load(Relaxed)) | LEFT);
}

/// Has it?
pub(super) fn is_left(fd: usize) -> bool {
    entry(fd).is_some_and(|entry| entry.load(Relaxed) & LEFT != 0)
}

/// The connection of `end` has been dissolved, and its socket may have another: no descriptor stands for it any more.
pub(super) fn dissolved(end: &End, pid: u32) {
    for other in ends().filter(|other| other.is_same(end)) {
        epoll::tell_all(other.fd);
        if let Some(entry) = entry(other.fd) {
            entry.fetch_and(!WHAT, AcqRel);
        }
    }
    sockets().let_go(end.row, end.side, pid, time::now_ns());
}

/// Somebody else has it, or may get it, or it has a row. False if that was so.
pub(super) fn not_alone(fd: usize) -> bool {
    let clear = |entry: &AtomicU64| entry.fetch_and(!(ALONE | DATAGRAMS | LOCAL | SPOKEN), AcqRel);
    let is_alone = |entry: &&AtomicU64| entry.load(Relaxed) & ALONE != 0;
    entry(fd).filter(is_alone).is_some_and(|entry| clear(entry) & ALONE != 0)
}

/// Somebody else has all there are.
pub(super) fn none_is_alone() {
    (0..used()).for_each(|fd| _ = not_alone(fd));
}

/// Goes up before anybody else has what this process has, by a fork or as a program that it spawns.
pub(super) fn forks() -> u32 {
    let row = start::this_process().map(|own| own.row);
    row.map_or(0, |row| context::common().process(row).forks.load(Acquire))
}

/// What was alone before a fork is no longer.
pub(super) fn look_for_forks() {
    let forks = forks();
    if table().forks.swap(forks, AcqRel) != forks {
        none_is_alone();
    }
}

/// `fd` is added to an epoll instance that is not the one of its place.
pub(super) fn note_elsewhere(fd: usize) {
    let word = entry(fd).map_or(0, |entry| entry.load(Relaxed));
    put(fd, word | ELSEWHERE);
}

/// Is it in such a one?
pub(super) fn is_elsewhere(fd: usize) -> bool {
    entry(fd).is_some_and(|entry| entry.load(Relaxed) & ELSEWHERE != 0)
}

/// Is it in one, of some kind?
pub(super) fn is_watched(fd: usize) -> bool {
    entry(fd).is_some_and(|entry| entry.load(Relaxed) & (PLACE | ELSEWHERE) != 0)
}

/// Is there room for what `fd` stands for?
pub(super) fn is_known(fd: usize) -> bool {
    entry(fd).is_some()
}

/// As [`carry`], of an end that other descriptors may stand for already.
pub(super) fn carry_too(fd: usize, row: usize, side: usize) -> bool {
    for end in ends().filter(|end| (end.row, end.side) == (row, side)) {
        if let Some(entry) = entry(end.fd) {
            entry.fetch_or(COPIED, AcqRel);
        }
    }
    let is_carried = carry(fd, row, side);
    if let Some(entry) = entry(fd).filter(|_| is_carried) {
        entry.fetch_or(COPIED, AcqRel);
    }
    is_carried
}

/// The number of an epoll instance's set.
pub(super) fn set_of(fd: usize) -> Option<usize> {
    let word = entry(fd)?.load(Relaxed);
    (word & EPOLL != 0).then_some((word & 0xff) as usize % SETS_MAX)
}

/// A call has made an epoll instance. It has a set from the beginning, since a thread that sleeps on it is
/// to be known before another adds a socket.
pub(super) fn made_epoll(result: isize) -> isize {
    let (Ok(fd), Some(pid)) = (usize::try_from(result), own_pid()) else { return result };
    if let Some(number) = table().sets.iter().position(|set| set.begin(pid))
        && !put(fd, EPOLL | number as u64)
    {
        set(number).end(pid);
    }
    result
}

pub(super) fn set(number: usize) -> &'static Set {
    &table().sets[number % SETS_MAX]
}

/// Its descriptor.
pub(super) fn fd_of_set(number: usize) -> Option<usize> {
    (0..used()).find(|&fd| set_of(fd) == Some(number))
}

/// May other descriptors stand for the same?
pub(super) fn is_copied(fd: usize) -> bool {
    entry(fd).is_some_and(|entry| entry.load(Relaxed) & COPIED != 0)
}

/// Where among the sockets of which set `fd` is.
pub(super) fn place_of(fd: usize) -> Option<(usize, usize)> {
    let word = entry(fd)?.load(Relaxed);
    let set = (word >> SET_BIT & 0xff) as usize;
    (set != 0).then(|| (set - 1, (word >> SOCKET_BIT & 0xfff) as usize))
}

/// `fd` is that socket of that set, or of none.
pub(super) fn put_in_place(fd: usize, place: Option<(usize, usize)>) {
    let Some(entry) = entry(fd) else { return };
    table().used.fetch_max(u64::from(fd as u32) + 1, AcqRel);
    let word = entry.load(Relaxed) & !PLACE;
    let place = place
        .map_or(0, |(set, socket)| (set as u64 + 1) << SET_BIT | (socket as u64) << SOCKET_BIT);
    entry.store(word | place, Relaxed);
}

/// `close`.
pub(super) fn close(fd: usize) -> isize {
    if entry(fd).is_some_and(|entry| entry.load(Relaxed) != 0)
        && let Some(pid) = own_pid()
    {
        let_go(fd, pid);
    }
    late().closed(fd as u32 as usize);
    ask(nr::CLOSE, [fd])
}

/// This process has `fd` no longer.
fn let_go(fd: usize, pid: u32) {
    let Some(cell) = entry(fd) else { return };
    let end = end_of(fd);
    if is_watched(fd) && (is_copied(fd) || forks() != 0) {
        let is_same =
            |other: &End| end.is_some_and(|end| other.is_same(&end) && other.fd != end.fd);
        epoll::leave_behind(fd as u32 as usize, ends().find(is_same).map(|other| other.fd));
    }
    epoll::forget_all(fd as u32 as usize);
    let word = cell.swap(0, AcqRel);
    let what = word & WHAT;
    let others = || table().fds[..used()].iter();
    let has_other = || others().any(|other| other.load(Relaxed) & WHAT == what);
    if what == 0 || word & COPIED != 0 && has_other() {
        return;
    }
    if word & EPOLL != 0 {
        set((word & 0xff) as usize).end(pid);
    } else if let Some(end) = end {
        // Of a child that has ended the supervisor may not know yet.
        for holder in &end.connection.sides[end.side].holders {
            let other = holder.load(Relaxed);
            if other != 0 && other != pid && !sys::task_exists(other) {
                sockets().let_go(end.row, end.side, other, time::now_ns());
            }
        }
        super::stream::about_to_close(&end);
        sockets().let_go(end.row, end.side, pid, time::now_ns());
    }
}

/// `close_range`.
pub(super) fn close_range(args: [usize; 6]) -> isize {
    const UNSHARE: usize = 2;
    let [first, last, flags, ..] = args;
    let (first, last) = (first as u32 as usize, last as u32 as usize);
    if flags as u32 as usize & !UNSHARE == 0
        && let Some(pid) = own_pid()
    {
        for fd in first..(last + 1).min(used()) {
            if entry(fd).is_some_and(|entry| entry.load(Relaxed) != 0) {
                let_go(fd, pid);
            }
        }
    }
    native(nr::CLOSE_RANGE, args)
}

/// A call has copied `fd` to `result`.
pub(super) fn copied(fd: usize, result: isize) -> isize {
    if result >= 0 {
        copy_entry(fd, result as usize);
    }
    result
}

fn copy_entry(from: usize, to: usize) {
    let _ = not_alone(from);
    let Some(word) = entry(from).map(|entry| entry.load(Relaxed)).filter(|word| *word != 0) else {
        return;
    };
    if own_pid().is_none() {
        return;
    }
    if let Some(place) = place_of(from) {
        epoll::tell(place);
    }
    // The copy is in no set of its own.
    if let Some(entry) = entry(from) {
        entry.fetch_or(COPIED, AcqRel);
    }
    // Of one that stands for nothing yet, all that is known is that others wait for it.
    let copy = if word & WHAT == 0 { ELSEWHERE | word & LEFT } else { word & !PLACE };
    if !put(to, copy | COPIED)
        && let Some(end) = end_of(from)
    {
        // Nobody knows what is done with the copy.
        super::stream::leave_to_kernel(&end);
    }
}

/// `dup2`, `dup3`: what was in the place is closed before something else is there.
pub(super) fn replace(number: usize, args: [usize; 6]) -> isize {
    const F_GETFD: usize = 1;
    const O_CLOEXEC: usize = 0o2_000_000;
    let [fd, other, flags, ..] = args;
    let is_same = |end: End| end_of(other).is_some_and(|other| other.is_same(&end));
    // What stands for the same already stays where it is, in epoll instances as well.
    if fd as u32 == other as u32 || end_of(fd).is_some_and(is_same) {
        return native(number, args);
    }
    let is_right = number == nr::DUP2 || flags as u32 as usize & !O_CLOEXEC == 0;
    if entry(other).is_some_and(|entry| entry.load(Relaxed) != 0)
        && let Some(pid) = own_pid()
        && is_right
        && ask(nr::FCNTL, [fd, F_GETFD]) >= 0
    {
        let_go(other, pid);
    }
    copied(fd, native(number, args))
}

/// Every end that this process has descriptors for.
pub(super) fn ends() -> impl Iterator<Item = End> {
    (0..used()).filter_map(end_of)
}

/// The process, after a fork: what it has inherited of sets is its parent's.
pub(super) fn is_own_set(set: &Set) -> bool {
    start::this_process().is_some_and(|own| set.pid.load(Acquire) == own.pid)
}
