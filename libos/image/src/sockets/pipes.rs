//! Pipes: connections of one direction, whose ends are made together and mostly inherited.
//!
//! A pipe's kernel channel has the program's bytes only: there are no bells. A reader says that it is about to
//! sleep, looks at the ring once more, and then makes the program's own call; from that moment on all bytes go by
//! the kernel. A writer that has put bytes into the ring and finds that somebody sleeps takes them out again and
//! has them go by the kernel, too. So whoever sleeps is woken by the bytes themselves.
//!
//! ```text
//!  reader   ring empty ──► look ──► parked ──► ring still empty? ──► read, in the kernel
//!  writer   into the ring ──► anybody parked? ── yes ──► out of it again ──► write, to the kernel
//! ```
//!
//! A signal handler that writes to the pipe that its own thread is writing to, in the code that it has interrupted,
//! has that go by the kernel, since the ring's next bytes may be half written.
//!
//! A write asks the kernel first whether anybody can still read, since a process that has ended reads no more
//! from that moment on: the error and SIGPIPE come as ever. Whoever moves bytes without copying them (`splice`
//! and the like), sends an end in a message, opens a pipe anew by its name, or wants packets, has it go by the
//! kernel from then on; what is in the ring by then comes first.

use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use libos::sockets::pipes::{PIPE, READER, WHOLE_MAX, WRITER, cookie, unbroken};
use libos::sockets::{Direction, LARGE_RING, Name, SHUT, UNIX};

use super::fds::{self, End};
use super::messages::Message;
use super::options::{self, F_SETFL, FIOASYNC, FIONBIO, FIONREAD, O_ASYNC, O_NONBLOCK};
use super::stream::{self, MSG_DONTWAIT, MSG_NOSIGNAL, Source};
use super::turns::Turn;
use super::user::{self, Pieces};
use super::wait::{ERR, IN, OUT, kernels_events};
use super::{ask, meet, native, own_pid, pair, sockets, turns};
use crate::sys::{self, EAGAIN, EBUSY, EFAULT, EINTR, EINVAL, Errno, nr};
use crate::{text, time};

const O_WRONLY: usize = 1;
const O_ACCMODE: usize = 3;
const O_APPEND: usize = 0o2000;
const O_DIRECT: usize = 0o40000;
const O_PATH: usize = 0o10000000;
const O_CLOEXEC: usize = 0o2000000;
const F_GETFL: usize = 3;
const F_SETPIPE_SZ: usize = 1031;
const F_GETPIPE_SZ: usize = 1032;
const PAGE_LEN: usize = 4096;
const SPLICE_NONBLOCK: usize = 2;
const SPLICE_FLAGS: usize = 15;
const NO_POSITION: usize = usize::MAX;
const RWF_NOWAIT: usize = 8;
/// `EOPNOTSUPP`.
const UNKNOWN: isize = -95;
/// Pieces that what is in a ring may lie in: round the end of one, and on in the large one, and round that.
const PIECES_MAX: usize = 4;

/// `pipe` and `pipe2`.
pub(super) fn pipe(number: usize, args: [usize; 6]) -> isize {
    let result = native(number, args);
    let flags = if number == nr::PIPE2 { args[1] } else { 0 };
    if result == 0
        && let Some([reader, writer]) = user::read::<[u32; 2]>(args[0])
        && let Some(pid) = own_pid()
    {
        let made = [writer, reader].map(|fd| fd as usize);
        made.iter().for_each(|fd| fds::is_new(*fd));
        if flags & !(O_NONBLOCK | O_CLOEXEC) == 0 {
            let _ = carry(made, flags & O_NONBLOCK != 0, pid);
        }
    }
    result
}

fn carry(made: [usize; 2], nonblock: bool, pid: u32) -> Option<()> {
    let (device, inode) = place_of(made[READER])?;
    let capacity = usize::try_from(ask(nr::FCNTL, [made[READER], F_GETPIPE_SZ])).ok()?;
    let name: Name = [UNIX | u64::from(inode as u32), 0, 0, 0, 0];
    let cookies = [WRITER, READER].map(|side| cookie(device, inode, side));
    pair::join(made, &name, PIPE, cookies, nonblock, pid)?;
    if let Some(end) = pipe_of(made[READER]) {
        note_capacity(&end, capacity);
    }
    sockets().pipes.fetch_add(1, Relaxed);
    Some(())
}

/// Device and inode, if `fd` is a pipe, or a file that acts as one.
fn place_of(fd: usize) -> Option<(u64, u64)> {
    const TYPE: u64 = 0o170000;
    const FIFO: u64 = 0o010000;
    let stat = meet::stat_of(fd)?;
    (stat[3] & TYPE == FIFO).then_some((stat[0], stat[1]))
}

/// What `fd` has in the place of a socket's cookie, if it may be an end of a carried pipe.
pub(super) fn cookie_of(fd: usize) -> Option<u64> {
    if sockets().pipes.load(Relaxed) == 0 {
        return None;
    }
    let (device, inode) = place_of(fd)?;
    let mode =
        usize::try_from(ask(nr::FCNTL, [fd, F_GETFL])).ok().filter(|mode| mode & O_PATH == 0)?;
    let side = if mode & O_ACCMODE == O_WRONLY { WRITER } else { READER };
    Some(cookie(device, inode, side))
}

/// A call has opened a file: by a name in /proc, that may be a pipe.
pub(super) fn opened(result: isize) -> isize {
    if let Ok(fd) = usize::try_from(result)
        && sockets().pipes.load(Relaxed) != 0
        && place_of(fd).is_some()
        && let Some(pid) = own_pid()
    {
        meet::adopt(fd, pid, false);
        leave(fd);
    }
    result
}

/// The pipe that `fd` is an end of, if it is carried.
fn pipe_of(fd: usize) -> Option<End> {
    fds::end_of(fd).filter(|end| end.connection.is_pipe())
}

/// If `fd` is an end of a pipe, that goes by the kernel from now on.
pub(super) fn leave(fd: usize) {
    if let Some(end) = pipe_of(fd) {
        stream::shut(&end.connection.directions[WRITER]);
    }
}

/// Does nobody read any more what is written to `fd`? Of a process that has ended the kernel knows first.
fn is_broken(fd: usize) -> bool {
    kernels_events(fd, OUT) & ERR != 0
}

/// `fd` is about to go to somebody who may know nothing of rings: what is in one goes to the kernel before.
pub(super) fn pass(fd: usize) {
    leave(fd);
    let Some(end) = pipe_of(fd) else { return };
    let direction = &end.connection.directions[WRITER];
    let mut kernels = 0u32;
    ask(nr::IOCTL, [fd, FIONREAD, &raw mut kernels as usize]);
    // What the kernel has is younger.
    if !direction.has_bytes() || kernels != 0 {
        return;
    }
    let is_writer = |other: &End| (other.row, other.side) == (end.row, WRITER);
    let own = fds::ends().find(is_writer);
    let again = if own.is_none() { open_to_write(fd) } else { None };
    let by = own.or(again.map(|fd| End { fd, side: WRITER, ..end }));
    if let Some(by) = by.filter(|by| !is_broken(by.fd)) {
        let (turn, is_on_top) = turns::to_write(&by);
        if turn.is_some() && !is_on_top {
            let _ = hand_over(&by);
        }
    }
    again.into_iter().for_each(|fd| _ = ask(nr::CLOSE, [fd]));
}

/// The pipe that `fd` reads from, to write to.
fn open_to_write(fd: usize) -> Option<usize> {
    let mut path = text::Line::<40>::new();
    path.push(b"/proc/self/fd/");
    path.push_decimal(fd as u32);
    path.push(&[0]);
    let at = path.bytes().as_ptr() as usize;
    let opened = ask(nr::OPEN, [at, O_WRONLY | O_NONBLOCK | O_CLOEXEC, 0]);
    usize::try_from(opened).ok()
}

/// A call that writes to what is an end of a pipe.
pub(super) fn send(end: End, number: usize, args: [usize; 6]) -> isize {
    let [fd, second, third, ..] = args;
    let pieces = match number {
        nr::WRITE => Pieces::one(second, third),
        nr::WRITEV => Pieces::many(second, third),
        nr::SENDFILE => {
            leave(fd);
            return native(number, args);
        }
        // Not for pipes.
        _ => return native(number, args),
    };
    match pieces.total() {
        Some(total) if end.side == WRITER && total != 0 => {
            Write { end, number, args, total }.run(pieces)
        }
        _ => native(number, args),
    }
}

/// One call that writes.
struct Write {
    end: End,
    number: usize,
    args: [usize; 6],
    total: usize,
}

impl Write {
    fn run(&self, pieces: Pieces) -> isize {
        let direction = self.end.outgoing();
        stream::note_core(direction);
        let (turn, is_on_top) = turns::to_write(&self.end);
        if turn.is_none() || is_on_top || !self.may_use_ring() {
            return self.by_kernel(turn, None, 0);
        }
        let mut source = Source::Memory { pieces, flags: 0 };
        let mut done = 0;
        while done < self.total {
            let Some((tail, room)) = self.room(self.total - done) else {
                return self.by_kernel(turn, Some(source), done);
            };
            let most = room.min(self.total - done).min(stream::STRETCH);
            let filled = match stream::fill(&self.end, direction, &mut source, tail, most) {
                Ok(filled) => filled,
                Err(_) if done > 0 => return done as isize,
                Err(errno) => return -(errno as isize),
            };
            let asleep = direction.publish(tail + filled as u64, || {
                stream::mark(direction);
                stream::is_parked(direction)
            });
            if asleep && let Err(errno) = hand_over(&self.end) {
                return if done > 0 { done as isize } else { errno };
            }
            done += filled;
            if asleep && done < self.total {
                return self.by_kernel(turn, Some(source), done);
            }
        }
        done as isize
    }

    /// Is nothing in the kernel, and is there somebody who reads and is awake? By who has the turn.
    fn may_use_ring(&self) -> bool {
        let direction = self.end.outgoing();
        if !stream::is_open(&self.end) || direction.is_in_kernel() {
            return false;
        }
        if stream::is_parked(direction) {
            // What a writer that was killed had not handed over comes first.
            if direction.has_bytes() && !is_broken(self.end.fd) {
                let _ = hand_over(&self.end);
            }
            return false;
        }
        !is_broken(self.end.fd)
    }

    /// Where in the ring there is room for what is next of `left` bytes, and how much; None if nobody makes any.
    fn room(&self, left: usize) -> Option<(u64, usize)> {
        let (end, direction) = (&self.end, self.end.outgoing());
        let least = unbroken(self.total);
        loop {
            let kept_free = end.connection.kept_free(direction);
            let (tail, room) = direction.room_for(left + kept_free);
            let room = room.saturating_sub(kept_free);
            if room < left && stream::upgrade(end, direction, tail) {
                continue;
            }
            if room >= least {
                return Some((tail, room));
            }
            if !stream::wait_for_room(direction, least + kept_free) {
                return None;
            }
        }
    }

    /// What is left after `done` bytes by the kernel: the program's own call, if that is all.
    fn by_kernel(&self, turn: Option<Turn<'_>>, source: Option<Source>, done: usize) -> isize {
        let (direction, left) = (self.end.outgoing(), self.total - done);
        direction.kernel_sent.fetch_add(left as u64, AcqRel);
        drop(turn);
        let sent = match source.filter(|_| done > 0) {
            Some(mut source) => stream::rest(&self.end, &mut source, left),
            None => native(self.number, self.args),
        };
        stream::counted(direction, left, sent);
        direction.writing.asleep.fetch_add(sent.max(0) as u64, Relaxed);
        if done > 0 { done as isize + sent.max(0) } else { sent }
    }
}

/// Somebody has gone to sleep while bytes were put into the ring: they go by the kernel after all, where there is
/// room for them, since it has nothing else. By who has the turn; an error is the kernel's. Of sockets, too, where
/// nobody rings.
pub(super) fn hand_over(end: &End) -> Result<(), isize> {
    let direction = end.outgoing();
    loop {
        let (head, filled) = direction.filled();
        if filled == 0 {
            return Ok(());
        }
        // Before they are taken: who finds the ring empty is to know that there is something.
        direction.kernel_sent.fetch_add(filled as u64, AcqRel);
        if !direction.take(head, filled) {
            direction.kernel_sent.fetch_sub(filled as u64, AcqRel);
            continue;
        }
        let given = give(end, head, filled);
        // To TCP_INFO, what comes by both counts once.
        let twice = if end.connection.is_pipe() { 1 } else { filled as u32 };
        direction.writing.bells.fetch_add(twice, Relaxed);
        return given.inspect_err(|_| {
            direction.kernel_sent.fetch_sub(filled as u64, AcqRel);
        });
    }
}

/// Write what lies in the ring from `head` on to the kernel. Nobody writes over it while the turn is this
/// thread's. Nothing is a record, too.
pub(super) fn give(end: &End, head: u64, len: usize) -> Result<(), isize> {
    let mut done = 0;
    loop {
        let (mut pieces, mut count, mut upto) = ([[0usize; 2]; PIECES_MAX], 0, done);
        while upto < len && count < PIECES_MAX {
            let position = head + upto as u64;
            let (at, part) =
                stream::address(end.row, end.side, end.outgoing(), position, len - upto);
            pieces[count] = [at, part];
            (count, upto) = (count + 1, upto + part);
        }
        match write(end, &pieces[..count]) {
            written @ 0.. if done + written as usize >= len => return Ok(()),
            written @ 0.. => done += written as usize,
            // The pipe has bytes that nobody knows of, or holds less by now. The program has been told that these
            // are written: somebody will read.
            error if [EAGAIN, EINTR].contains(&(-error as Errno)) => sys::sched_yield(),
            error => return Err(error),
        }
    }
}

fn write(end: &End, pieces: &[[usize; 2]]) -> isize {
    let at = pieces.as_ptr() as usize;
    if end.connection.is_pipe() {
        return ask(nr::WRITEV, [end.fd, at, pieces.len()]);
    }
    let message = UnsafeCell::new(Message::of(at, pieces.len()));
    ask(nr::SENDMSG, [end.fd, message.get() as usize, MSG_NOSIGNAL])
}

/// A call that reads from it.
pub(super) fn receive(end: End, number: usize, args: [usize; 6], flags: usize) -> isize {
    let [_, second, third, ..] = args;
    let pieces = match number {
        nr::READ => Pieces::one(second, third),
        nr::READV | nr::PREADV2 => Pieces::many(second, third),
        _ => return native(number, args),
    };
    match pieces.total() {
        Some(total) if end.side == READER && total != 0 => {
            Read { end, number, args, total, flags }.run(pieces)
        }
        _ => native(number, args),
    }
}

/// One call that reads.
struct Read {
    end: End,
    number: usize,
    args: [usize; 6],
    total: usize,
    flags: usize,
}

impl Read {
    fn run(&self, mut pieces: Pieces) -> isize {
        let direction = self.end.incoming();
        if direction.shut.load(Acquire) & !SHUT != 0 {
            // Whoever was writing then has come to an end.
            stream::shut(direction);
        }
        let nonblock = &self.end.connection.sides[READER].nonblock;
        let mut waits = self.flags & MSG_DONTWAIT == 0 && nonblock.load(Relaxed) == 0;
        let mut has_looked = false;
        loop {
            match stream::from_ring(&self.end, direction, &mut pieces, self.total, 0) {
                Ok(0) => {}
                Ok(taken) => return self.and_more(pieces, taken),
                Err(errno) => return -(errno as isize),
            }
            let is_left = stream::is_left(direction);
            if !is_left && !direction.is_in_kernel() {
                if waits && !has_looked {
                    has_looked = true;
                    if stream::look(&self.end) {
                        continue;
                    }
                }
                if !waits && kernels_events(self.end.fd, IN) == 0 {
                    if self.would_not_wait() {
                        return -(EAGAIN as isize);
                    }
                    waits = true;
                    continue;
                }
            }
            // From here on all that is written goes by the kernel, behind what it has.
            if !direction.park() {
                continue;
            }
            let began = time::now_ns();
            let received = native(self.number, self.args);
            direction.unpark();
            if has_looked {
                stream::note_wait(&direction.reading.patience_ns, time::now_ns() - began);
            }
            note_read(direction, received);
            let is_nothing = received == 0 || received == -(EAGAIN as isize);
            if !(is_nothing && direction.has_bytes()) {
                return received;
            }
        }
    }

    /// Is the descriptor in a mode, or the call of a kind, that does not wait? A pipe that was opened anew has a
    /// mode of its own.
    fn would_not_wait(&self) -> bool {
        self.flags & MSG_DONTWAIT != 0 || options::is_nonblocking(self.end.fd)
    }

    /// So many bytes have come from the ring. Who gets less than there was room for takes it that there is no
    /// more: it has what the kernel has as well.
    fn and_more(&self, mut pieces: Pieces, taken: usize) -> isize {
        let direction = self.end.incoming();
        let mut done = taken;
        // What is moved without being written is not counted.
        let may_have = || direction.is_in_kernel() || direction.shut.load(Acquire) != 0;
        while done < self.total && may_have() {
            if !direction.park() {
                match stream::from_ring(&self.end, direction, &mut pieces, self.total - done, 0) {
                    Ok(more) => done += more,
                    Err(_) => break,
                }
                continue;
            }
            let Some(Some((at, len))) = pieces.next_up_to(self.total - done) else {
                direction.unpark();
                break;
            };
            let received = take(self.end.fd, at, len);
            direction.unpark();
            note_read(direction, received);
            done += received.max(0) as usize;
            if received < len as isize {
                break;
            }
        }
        done as isize
    }
}

/// What the kernel has, without waiting. A pipe that was spliced, or opened anew, does not know such calls.
fn take(fd: usize, at: usize, len: usize) -> isize {
    let piece = [at, len];
    let at_piece = piece.as_ptr() as usize;
    match ask(nr::PREADV2, [fd, at_piece, 1, NO_POSITION, 0, RWF_NOWAIT]) {
        UNKNOWN if kernels_events(fd, IN) & IN != 0 => ask(nr::READ, [fd, at, len]),
        other => other,
    }
}

/// The kernel has given so many bytes. Some may have come from who does not know of the ring.
pub(super) fn note_read(direction: &Direction, received: isize) {
    let (Ok(received), sent) = (u64::try_from(received), &direction.kernel_sent) else { return };
    let next = |read: u64| Some((read + received).min(sent.load(Acquire)));
    let _ = direction.waiting.kernel_read.fetch_update(AcqRel, Relaxed, next);
}

/// `preadv2` and `pwritev2`, at no position.
pub(super) fn by_position(end: End, number: usize, args: [usize; 6]) -> isize {
    let flags = args[5];
    let total = || Pieces::many(args[1], args[2]).total().unwrap_or(0);
    match (number, flags) {
        (nr::PREADV2, 0) => receive(end, nr::READV, args, 0),
        (nr::PREADV2, RWF_NOWAIT) => receive(end, number, args, MSG_DONTWAIT),
        (nr::PWRITEV2, 0) => send(end, nr::WRITEV, args),
        (nr::PWRITEV2, _) if end.side == WRITER => {
            let (turn, _) = turns::to_write(&end);
            Write { end, number, args, total: total() }.by_kernel(turn, None, 0)
        }
        _ => {
            leave(end.fd);
            native(number, args)
        }
    }
}

/// `fcntl` and `ioctl`.
pub(super) fn control(end: &End, number: usize, args: [usize; 6]) -> isize {
    let [_, request, value, ..] = args;
    let request = request as u32 as usize;
    let direction = &end.connection.directions[WRITER];
    // The size as the kernel rounds it.
    let rounded = || (value as u32 as usize).next_power_of_two().max(PAGE_LEN);
    if (number, request) == (nr::FCNTL, F_SETPIPE_SZ) && rounded() < direction.filled().1 {
        return -(EBUSY as isize);
    }
    let result = native(number, args);
    if result < 0 {
        return result;
    }
    match (number, request) {
        (nr::FCNTL, F_SETPIPE_SZ) => {
            note_capacity(end, result as usize);
        }
        (nr::FCNTL, F_SETFL) => {
            options::note_nonblock(end, value & O_NONBLOCK != 0);
            if value & (O_ASYNC | O_DIRECT) != 0 {
                leave(end.fd);
            }
        }
        (nr::IOCTL, FIONBIO) => {
            options::note_nonblock(end, user::read::<u32>(value).unwrap_or(0) != 0);
        }
        (nr::IOCTL, FIOASYNC) => leave(end.fd),
        (nr::IOCTL, FIONREAD) => {
            let kernels = user::read::<u32>(value).unwrap_or(0);
            if !user::write(value, &kernels.saturating_add(direction.filled().1 as u32)) {
                return -(EFAULT as isize);
            }
        }
        _ => {}
    }
    result
}

/// As many bytes may be under way by the ring.
fn note_capacity(end: &End, capacity: usize) {
    end.connection.record_max.store(capacity.min(LARGE_RING) as u32, Relaxed);
}

/// `splice`.
pub(super) fn splice(args: [usize; 6]) -> isize {
    let [from, _, to, offset, len, flags] = args;
    leave(from);
    leave(to);
    let end = pipe_of(from).filter(|end| end.incoming().has_bytes());
    let Some(end) = end.filter(|end| !is_refused(end, args)) else { return stream::splice(args) };
    let most = match at_once(to, len, flags) {
        Ok(most) => most,
        Err(errno) => return -(errno as isize),
    };
    let Some((at, head, part)) = next_piece(&end, most) else { return stream::splice(args) };
    let written = put(to, at, part, offset);
    if written > 0 && !end.incoming().take(head, written as usize) {
        return -(EINVAL as isize);
    }
    written
}

/// Of `len` bytes, those that can be moved to `to` without waiting, if that is asked for.
fn at_once(to: usize, len: usize, flags: usize) -> Result<usize, Errno> {
    if flags & SPLICE_NONBLOCK == 0 || place_of(to).is_none() {
        return Ok(len);
    }
    if kernels_events(to, OUT) & (OUT | ERR) == 0 { Err(EAGAIN) } else { Ok(len.min(PAGE_LEN)) }
}

/// Would the kernel not splice from `end` so, whatever there is?
fn is_refused(end: &End, [_, from_at, to, to_at, _, flags]: [usize; 6]) -> bool {
    let mode = ask(nr::FCNTL, [to, F_GETFL]);
    let is_writable =
        mode >= 0 && mode as usize & (O_APPEND | O_PATH) == 0 && mode as usize & O_ACCMODE != 0;
    !is_writable
        || from_at != 0
        || flags & !SPLICE_FLAGS != 0
        || to_at != 0 && place_of(to).is_some()
        || pipe_of(to).is_some_and(|other| other.row == end.row)
}

/// `tee`: what is in the ring is copied first, and stays.
pub(super) fn tee(args: [usize; 6]) -> isize {
    let [from, to, len, flags, ..] = args;
    leave(from);
    leave(to);
    let is_moved = |end: &End| !is_refused(end, [from, 0, to, 0, len, flags]);
    let end = pipe_of(from).filter(|end| place_of(to).is_some() && is_moved(end));
    let Some(end) = end.filter(|end| end.incoming().has_bytes()) else {
        return native(nr::TEE, args);
    };
    match at_once(to, len, flags).map(|most| next_piece(&end, most)) {
        Ok(Some((at, _, part))) => ask(nr::WRITE, [to, at, part]),
        Ok(None) => native(nr::TEE, args),
        Err(errno) => -(errno as isize),
    }
}

/// `vmsplice`: to a pipe, or from one, as a read does.
pub(super) fn vmsplice(args: [usize; 6]) -> isize {
    leave(args[0]);
    match pipe_of(args[0]).filter(|end| end.side == READER && end.incoming().has_bytes()) {
        Some(end) => receive(end, nr::READV, [args[0], args[1], args[2], 0, 0, 0], 0),
        None => native(nr::VMSPLICE, args),
    }
}

/// What is next in the ring of a pipe that is read from: where it lies, from which position, how much.
fn next_piece(end: &End, len: usize) -> Option<(usize, u64, usize)> {
    let direction = end.incoming();
    let (head, filled) = direction.filled();
    let most = filled.min(len).min(WHOLE_MAX);
    if most == 0 || end.side != READER {
        return None;
    }
    let (at, part) = stream::address(end.row, WRITER, direction, head, most);
    Some((at, head, part))
}

/// Write to any descriptor, at its own position or at the one that is given.
fn put(to: usize, at: usize, len: usize, offset: usize) -> isize {
    if offset == 0 {
        return super::call(nr::WRITE, [to, at, len, 0, 0, 0]);
    }
    let Some(position) = user::read::<i64>(offset) else { return -(EFAULT as isize) };
    let written = ask(nr::PWRITE64, [to, at, len, position as usize]);
    if written > 0 && !user::write(offset, &(position + written as i64)) {
        return -(EFAULT as isize);
    }
    written
}
