//! Counters: eventfds. [`libos::sockets::counters`] says how.
//!
//! The kernel's eventfd is the one that others wait on, and its count counts. Whoever moves the count without reading
//! or writing, or may, has to find all of it there: so a counter is *left* for good before it is sent in a message,
//! named to the kernel by `io_submit` or by an `ioctl` that is not known to be harmless, looked at in /proc, or waited
//! for in ways of which not all can be told (room to write, a second epoll instance).
//!
//! No lock is taken but by who moves what has been left. So handlers of the program's can write to what they have
//! interrupted, and a process that is killed leaves nothing half done.

use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use libos::sockets::counters::{Added, COUNT_LEN, COUNTER, ONE_BY_ONE, cookie};
use libos::sockets::pipes::READER;
use libos::sockets::{Name, UNIX};

use super::fds::{self, End};
use super::options::{self, F_SETFL, FIONBIO, O_NONBLOCK};
use super::stream::{self, MSG_DONTWAIT};
use super::turns::Turn;
use super::user::{self, Pieces};
use super::wait::{IN, kernels_events};
use super::{ask, meet, native, own_pid, sockets};
use crate::sys::{self, EAGAIN, EFAULT, nr};
use crate::{context, text, time};

const EFD_SEMAPHORE: usize = 1;
const NO_POSITION: usize = usize::MAX;
const RWF_NOWAIT: usize = 8;
/// `EOPNOTSUPP`.
const UNKNOWN: isize = -95;
const NOTHING: isize = -(EAGAIN as isize);
/// How often who reads all looks whether more has come meanwhile.
const PASSES: usize = 4;
/// How long to wait for what somebody is about to give to the kernel.
const SOON_NS: u64 = 50_000;

/// `eventfd` and `eventfd2`.
pub(super) fn eventfd(number: usize, args: [usize; 6]) -> isize {
    let result = native(number, args);
    let flags = if number == nr::EVENTFD2 { args[1] } else { 0 };
    if let Ok(fd) = usize::try_from(result)
        && let Some(pid) = own_pid()
    {
        fds::is_new(fd);
        let _ = carry(fd, args[0] as u32, flags, pid);
    }
    result
}

fn carry(fd: usize, begins_with: u32, flags: usize, pid: u32) -> Option<()> {
    if !fds::is_known(fd) {
        return None;
    }
    let number = said_of(fd)?.number;
    forget_others(cookie(number));
    let name: Name = [UNIX | u64::from(number), 0, 0, 0, 0];
    let row = meet::take_row(&name)?;
    let connection = &sockets().connections[row];
    let by_one = if flags & EFD_SEMAPHORE == 0 { 0 } else { ONE_BY_ONE };
    connection.kind.store(COUNTER | by_one, Relaxed);
    let side = &connection.sides[READER];
    side.cookie.store(cookie(number), Relaxed);
    side.nonblock.store(u32::from(flags & O_NONBLOCK != 0), Relaxed);
    side.hold(pid);
    fds::carry(fd, row, READER);
    if let Some(end) = counter_of(fd) {
        end.incoming().kernel_sent.store(u64::from(begins_with), Relaxed);
    }
    sockets().join(row);
    sockets().counters.fetch_add(1, Relaxed);
    Some(())
}

/// The kernel gives a number again: whatever else has it is no more.
fn forget_others(cookie: u64) {
    for row in sockets().rows() {
        let side = &sockets().connections[row].sides[READER];
        let _ = side.cookie.compare_exchange(cookie, 0, AcqRel, Relaxed);
    }
}

/// What /proc says of an eventfd.
struct Said {
    number: u32,
    count: u64,
}

/// None if it is no eventfd, or nobody says.
#[inline(never)]
fn said_of(fd: usize) -> Option<Said> {
    let mut path = text::Line::<40>::new();
    path.push(b"/proc/self/fdinfo/");
    path.push_decimal(fd as u32);
    path.push(&[0]);
    const CLOEXEC: usize = 0o2000000;
    let file = ask(nr::OPEN, [path.bytes().as_ptr() as usize, CLOEXEC, 0]);
    let file = usize::try_from(file).ok()?;
    let mut said = [0u8; 256];
    let got = ask(nr::READ, [file, said.as_mut_ptr() as usize, said.len()]);
    ask(nr::CLOSE, [file]);
    let said = core::str::from_utf8(said.get(..usize::try_from(got).ok()?)?).ok()?;
    let value = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    Some(Said {
        number: value("eventfd-id:")?.parse().ok()?,
        count: u64::from_str_radix(value("eventfd-count:")?, 16).ok()?,
    })
}

/// What `fd` has in the place of a socket's cookie, if it may be a carried counter that has been inherited. (What
/// comes by a message has been left.)
pub(super) fn cookie_of(fd: usize) -> Option<u64> {
    const TYPE: u64 = 0o170000;
    let is_any = sockets().counters.load(Relaxed) != 0;
    // What has no name has no type either.
    let may_be = is_any && meet::stat_of(fd)?[3] & TYPE == 0;
    may_be.then(|| said_of(fd)).flatten().map(|said| cookie(said.number))
}

fn counter_of(fd: usize) -> Option<End> {
    fds::end_of(fd).filter(|end| end.connection.is_counter())
}

/// If `fd` is a counter, that is the kernel's alone from now on.
pub(super) fn leave(fd: usize) {
    if let Some(end) = counter_of(fd) {
        leave_end(&end);
    }
}

/// The same, of any descriptor of it.
pub(super) fn leave_end(end: &End) {
    end.incoming().leave_count();
    move_left(end);
}

/// `epoll_ctl` for an instance that is not the one by which the counter is watched.
pub(super) fn waited_for_elsewhere(end: &End, args: [usize; 6]) -> isize {
    let result = native(nr::EPOLL_CTL, args);
    if result == 0 {
        leave_end(end);
    }
    result
}

fn leave_all() {
    fds::ends().filter(|end| end.connection.is_counter()).for_each(|end| leave_end(&end));
}

/// Whatever a counter that has been left still has goes to the kernel.
#[inline(never)]
fn move_left(end: &End) {
    let direction = end.incoming();
    let mover = &direction.writing.writer;
    // A handler has interrupted this very thing: that goes on.
    if mover.load(Relaxed) == context::own_tid() {
        return;
    }
    let _turn = Turn::take(mover);
    let left = direction.left_count().unwrap_or(0);
    if left != 0 {
        let kernels = said_of(end.fd).map_or(0, |said| said.count);
        let is_moved = direction.moving_onto().is_some_and(|before| before != kernels);
        direction.set_moving_onto(Some(kernels));
        if is_moved || give(end, left) {
            direction.set_left_count(0);
        }
    }
    direction.set_moving_onto(None);
}

/// Add to the kernel's counter. False if it has no room.
fn give(end: &End, more: u64) -> bool {
    let given = ask(nr::WRITE, [end.fd, &raw const more as usize, COUNT_LEN]);
    given == COUNT_LEN as isize
}

/// After it has been left: `call` is the program's own.
fn of_left(end: &End, left: u64, call: impl FnOnce() -> isize) -> isize {
    if left != 0 || end.incoming().moving_onto().is_some() {
        move_left(end);
    }
    call()
}

/// A call that writes to what is a counter.
pub(super) fn send(end: &End, number: usize, args: [usize; 6]) -> isize {
    let [fd, second, third, ..] = args;
    match number {
        nr::WRITE => write_piece(end, fd, [second, third]),
        nr::WRITEV if Pieces::many(second, third).total().is_some_and(|total| total != 0) => {
            write_pieces(end, fd, second, third)
        }
        _ => native(number, args),
    }
}

/// Each is a write of its own.
fn write_pieces(end: &End, fd: usize, vectors: usize, count: usize) -> isize {
    const VECTOR_LEN: usize = size_of::<[usize; 2]>();
    let mut done = 0;
    for index in 0..count {
        let piece = user::read::<[usize; 2]>(vectors + index * VECTOR_LEN);
        match piece.map_or(-(EFAULT as isize), |piece| write_piece(end, fd, piece)) {
            written @ 0.. => done += written,
            error => return if done > 0 { done } else { error },
        }
    }
    done
}

fn write_piece(end: &End, fd: usize, [at, len]: [usize; 2]) -> isize {
    let kernel = || ask(nr::WRITE, [fd, at, len]);
    match Some(at).filter(|_| len == COUNT_LEN).and_then(user::read::<u64>) {
        // For the kernel to refuse.
        Some(u64::MAX) | None => kernel(),
        // Nothing more, but news of what there is, which the kernel may have.
        Some(0) => {
            write(end, 0, kernel);
            kernel()
        }
        Some(more) => write(end, more, kernel),
    }
}

fn is_nonblocking(end: &End) -> bool {
    end.connection.sides[READER].nonblock.load(Relaxed) != 0
}

fn write(end: &End, more: u64, kernel: impl FnOnce() -> isize) -> isize {
    let direction = end.incoming();
    if let Some(left) = direction.left_count() {
        return of_left(end, left, kernel);
    }
    stream::note_core(direction);
    if stream::is_parked(direction) {
        direction.kernel_sent.fetch_add(more, AcqRel);
        let written = kernel();
        if written < 0 {
            direction.kernel_sent.fetch_sub(more, AcqRel);
        }
        return written;
    }
    let added = direction.add(more, || {
        stream::mark(direction);
        stream::is_parked(direction)
    });
    match added {
        Added::There => {}
        Added::Asleep(back) => wake(end, back),
        Added::Moving => move_left(end),
        Added::Not if is_nonblocking(end) && direction.overflows(more) => return NOTHING,
        Added::Not => {
            leave_end(end);
            return kernel();
        }
    }
    COUNT_LEN as isize
}

/// Somebody has gone to sleep while so much was added: that goes by the kernel after all.
fn wake(end: &End, back: u64) {
    let direction = end.incoming();
    direction.writing.bells.fetch_add(1, Relaxed);
    if !give(end, back) {
        // So much that the kernel has no room: who sleeps is awake.
        direction.kernel_sent.fetch_sub(back, AcqRel);
        let _ = direction.add(back, || false);
    }
}

/// A call that reads from it.
pub(super) fn receive(end: End, number: usize, args: [usize; 6], flags: usize) -> isize {
    let [_, second, third, ..] = args;
    let pieces = match number {
        nr::READ => Pieces::one(second, third),
        nr::READV | nr::PREADV2 => Pieces::many(second, third),
        _ => return native(number, args),
    };
    if pieces.total().is_none_or(|total| total < COUNT_LEN) {
        return native(number, args);
    }
    let waits = flags & MSG_DONTWAIT == 0 && !is_nonblocking(&end);
    match (Read { end, number, args, waits }).count() {
        Ok(count) => deliver(count, pieces),
        Err(answer) => answer,
    }
}

fn deliver(count: u64, mut pieces: Pieces) -> isize {
    let (bytes, mut done) = (count.to_ne_bytes(), 0);
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        let Some(Some((at, len))) = pieces.next_up_to(rest.len()) else { break };
        if !user::copy(at, rest.as_ptr() as usize, len) {
            break;
        }
        done += len;
    }
    if done == COUNT_LEN { done as isize } else { -(EFAULT as isize) }
}

/// One call that reads.
struct Read {
    end: End,
    number: usize,
    args: [usize; 6],
    waits: bool,
}

impl Read {
    /// What there is, or the kernel's answer.
    fn count(&self) -> Result<u64, isize> {
        let direction = self.end.incoming();
        let (mut has_looked, mut began) = (false, None);
        loop {
            let there = self.there()?;
            if there != 0 {
                return Ok(there);
            }
            if !self.waits && direction.is_in_kernel() {
                let now = time::now_ns();
                if now - *began.get_or_insert(now) > SOON_NS {
                    // Whoever was about to was killed.
                    leave_end(&self.end);
                }
                sys::sched_yield();
                continue;
            }
            if !self.waits {
                return self.of_kernel(true);
            }
            if !has_looked {
                has_looked = true;
                if stream::look(&self.end) && direction.has_bytes() {
                    continue;
                }
            }
            // From here on all that is written goes by the kernel.
            if !direction.park() {
                continue;
            }
            let began = time::now_ns();
            let kernels = self.of_kernel(false);
            direction.unpark();
            stream::note_wait(&direction.reading.patience_ns, time::now_ns() - began);
            return match kernels {
                Ok(kernels) if !self.end.connection.is_one_by_one() => {
                    // What is moved by who leaves it has woken this thread, or is for the next.
                    Ok(kernels.wrapping_add(direction.take_count(false).unwrap_or(0)))
                }
                Err(_) if direction.has_bytes() => continue,
                kernels => kernels,
            };
        }
    }

    /// What there is now; the kernel's answer, if all is the kernel's.
    fn there(&self) -> Result<u64, isize> {
        let (direction, one) = (self.end.incoming(), self.end.connection.is_one_by_one());
        let mut sum = 0u64;
        for _ in 0..PASSES {
            let Some(count) = direction.take_count(one) else { break };
            sum = sum.wrapping_add(count);
            if count != 0 {
                direction.reading.record_bytes.fetch_add(COUNT_LEN as u64, Relaxed);
            }
            if one && sum != 0 || !direction.is_in_kernel() {
                return Ok(sum);
            }
            // What is written now may be more than what was in either when that was taken.
            let Ok(kernels) = self.of_kernel(true) else { return Ok(sum) };
            sum = sum.wrapping_add(kernels);
            if one {
                return Ok(sum);
            }
        }
        match direction.left_count() {
            Some(left) if sum == 0 => {
                let read = of_left(&self.end, left, || native(self.number, self.args));
                direction.waiting.kernel_bytes.fetch_add(read.max(0) as u64, Relaxed);
                Err(read)
            }
            _ => Ok(sum),
        }
    }

    /// What the kernel has; to wait for it is up to the descriptor's mode, if at all.
    fn of_kernel(&self, at_once: bool) -> Result<u64, isize> {
        let (direction, mut count) = (self.end.incoming(), 0u64);
        let at = &raw mut count as usize;
        let read = || ask(nr::READ, [self.end.fd, at, COUNT_LEN]);
        let got = if at_once {
            let piece = [at, COUNT_LEN];
            let at_piece = piece.as_ptr() as usize;
            match ask(nr::PREADV2, [self.end.fd, at_piece, 1, NO_POSITION, 0, RWF_NOWAIT]) {
                UNKNOWN if kernels_events(self.end.fd, IN) & IN != 0 => read(),
                UNKNOWN => NOTHING,
                other => other,
            }
        } else {
            read()
        };
        if got < 0 {
            return Err(got);
        }
        direction.waiting.kernel_read.fetch_add(count, AcqRel);
        direction.waiting.kernel_bytes.fetch_add(COUNT_LEN as u64, Relaxed);
        direction.writing.asleep.fetch_add(COUNT_LEN as u64, Relaxed);
        Ok(count)
    }
}

/// `preadv2` and `pwritev2`, at no position.
pub(super) fn by_position(end: End, number: usize, args: [usize; 6]) -> isize {
    match (number, args[5]) {
        (nr::PREADV2, 0) => receive(end, nr::READV, args, 0),
        (nr::PREADV2, RWF_NOWAIT) => receive(end, number, args, MSG_DONTWAIT),
        (nr::PWRITEV2, 0) => send(&end, nr::WRITEV, args),
        _ => {
            leave_end(&end);
            native(number, args)
        }
    }
}

/// `fcntl` and `ioctl`.
pub(super) fn control(end: &End, number: usize, args: [usize; 6]) -> isize {
    let [_, request, value, ..] = args;
    let result = native(number, args);
    match (number, request as u32 as usize) {
        _ if result < 0 => {}
        (nr::FCNTL, F_SETFL) => options::note_nonblock(end, value & O_NONBLOCK != 0),
        (nr::IOCTL, FIONBIO) => {
            options::note_nonblock(end, user::read::<u32>(value).unwrap_or(0) != 0);
        }
        _ => {}
    }
    result
}

/// Is about to be carried out: an `ioctl` by which a driver may be told of counters, as KVM, vhost and VFIO are.
pub(super) fn before_ioctl(request: usize) {
    /// Of terminals and descriptors, sockets, files (three), and block devices.
    const HARMLESS: [u8; 6] = [0x54, 0x89, 0x94, 0x66, 0x58, 0x12];
    let kind = (request >> 8) as u8;
    if sockets().counters.load(Relaxed) != 0 && !HARMLESS.contains(&kind) {
        leave_all();
    }
}

/// The same, of `io_submit`: counters that are told of what has ended, or are read, written or waited for.
pub(super) fn before_submit([_, count, at, ..]: [usize; 6]) {
    /// What is looked at; others are for the kernel to judge.
    const REQUESTS_MAX: usize = 4096;
    const FD_AT: usize = 20;
    const FLAGS_AT: usize = 56;
    const TELLS: u32 = 1;
    for index in 0..count.min(REQUESTS_MAX) {
        let Some(request) = user::read::<usize>(at + index * size_of::<usize>()) else { return };
        if let Some(fd) = user::read::<u32>(request + FD_AT) {
            leave(fd as usize);
            super::pipes::pass(fd as usize);
            super::inlets::pass(fd as usize);
            fds::socket_of(fd as usize).iter().for_each(stream::leave_to_kernel);
        }
        if let Some([flags, told]) = user::read::<[u32; 2]>(request + FLAGS_AT)
            && flags & TELLS != 0
        {
            leave(told as usize);
        }
    }
}

/// The same, of a call that opens what this path names: what says how much counters have, or is told of them.
pub(super) fn before_open(path: usize) {
    const LEN_MAX: usize = 64;
    if sockets().counters.load(Relaxed) == 0 {
        return;
    }
    let begins = user::read::<[u8; 5]>(path);
    if begins != Some(*b"/proc") && begins != Some(*b"/sys/") {
        return;
    }
    let (mut name, mut len) = ([0u8; LEN_MAX], 0);
    while let Some(byte) = user::read::<u8>(path + len).filter(|byte| *byte != 0)
        && let Some(place) = name.get_mut(len)
    {
        *place = byte;
        len += 1;
    }
    let names = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    if names(b"/fdinfo") || names(b"event_control") {
        leave_all();
    }
}
