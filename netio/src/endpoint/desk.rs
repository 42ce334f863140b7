//! A process's side of its seat: what the worker has put there, sorted by what it is for.
#![expect(unsafe_code, reason = "reads and fills buffers of the region")]

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{self, Error, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ext_api::abi::{ABI_VERSION, PEER_HANDLE};
use ext_api::client::Sandbox;
use ext_api::limits::BUFFER_LEN;
use ext_api::pool::{Ask, BY_PROCESS, Holder, Item, Name, Outcome, Piece, Pool, Seat, bytes_of};

/// Longest time that a wait sleeps before it looks whether it still has a reason to.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// A buffer that this process has taken.
pub(super) struct Lent {
    desk: Arc<Shared>,
    name: Name,
    /// First byte that has not been used yet, and the end.
    start: usize,
    end: usize,
    pub(super) from: Option<SocketAddr>,
    outcome: Outcome,
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lent({} bytes)", self.bytes().len())
    }
}

impl Lent {
    fn take(desk: &Arc<Shared>, packet: u64) -> Option<Self> {
        let name = Name::from_raw(packet);
        let buffer = desk.pool.buffers.get(name.index)?;
        if !buffer.take(name.turn, desk.holder, BY_PROCESS) {
            return None;
        }
        let ([start, len], from) = (buffer.extent(), buffer.from().socket());
        let outcome = Outcome::default();
        Some(Self { desk: desk.clone(), name, start, end: start + len, from, outcome })
    }

    fn at(&self, offset: usize) -> *mut u8 {
        let pool = std::ptr::from_ref(self.desk.pool).cast::<u8>().cast_mut();
        pool.with_addr(bytes_of(pool.addr(), self.name.index) + offset)
    }

    /// What has not been used yet.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: within the buffer, which this process alone has.
        unsafe { std::slice::from_raw_parts(self.at(self.start), self.end - self.start) }
    }

    /// Be through with the first `len` bytes.
    pub(super) fn consume(&mut self, len: usize) {
        self.start += len.min(self.end - self.start);
    }

    /// Bytes of an answer that there is room for.
    pub(super) const fn room(&self) -> usize {
        BUFFER_LEN - self.end - self.outcome.answer as usize
    }

    /// Put an answer behind the packet; how much of it there is room for.
    pub(super) fn answer(&mut self, bytes: &[u8]) -> usize {
        let at = self.end + self.outcome.answer as usize;
        let len = bytes.len().min(self.room());
        // SAFETY: room for as many in the buffer, which this process alone has.
        unsafe { self.at(at).copy_from_nonoverlapping(bytes.as_ptr(), len) };
        self.outcome.answer += len as u32;
        self.outcome.flags |= Outcome::REPLY;
        len
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let buffer = &self.desk.pool.buffers[self.name.index];
        if buffer.finish(self.name.turn, self.desk.holder, self.outcome)
            && self.desk.pool.done.push(&self.desk.pool.buffers, self.name.index)
        {
            self.desk.wake_owner();
        }
    }
}

/// What names a connection here: the worker that has it, and its number there.
pub(super) type Key = (u32, u32);

/// What a connection has for this process.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    pub(super) from: Option<SocketAddr>,
    pub(super) pieces: VecDeque<Lent>,
    /// Buffers to write into.
    pub(super) room: Option<Lent>,
    /// Somebody has asked for it and not taken it yet.
    pub(super) room_asked: bool,
    pub(super) has_ended: bool,
    pub(super) is_cut: bool,
}

/// All that has come and nobody has asked for yet.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Number of the next item.
    at: u32,
    pub(super) datagrams: VecDeque<Lent>,
    pub(super) accepted: VecDeque<Key>,
    pub(super) streams: HashMap<Key, Incoming>,
    /// Counts the workers that this process has had.
    worker: u32,
    /// Tasks that wait for something to come.
    #[cfg(feature = "tokio")]
    wakers: Vec<std::task::Waker>,
    #[cfg(feature = "tokio")]
    is_watched: bool,
}

/// What buffers need to know of their desk.
#[derive(Debug)]
struct Shared {
    sandbox: Sandbox,
    pool: &'static Pool,
    holder: Holder,
}

impl Shared {
    fn wake_owner(&self) {
        self.sandbox.wake_on(&self.pool.done.word, 1);
    }
}

/// When so much time has gone by; None is never.
pub(super) fn after(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// A seat of this process.
#[derive(Debug)]
pub(super) struct Desk {
    shared: Arc<Shared>,
    seat: &'static Seat,
    number: usize,
    /// The port's socket.
    pub(super) fd: OwnedFd,
    state: Mutex<State>,
}

impl Desk {
    /// A seat at the port of `at`: at one that others serve, or with the socket that `open` makes.
    pub(super) fn sit(
        udp: bool,
        at: SocketAddr,
        open: impl Fn() -> io::Result<(OwnedFd, SocketAddr)>,
    ) -> io::Result<Self> {
        let sandbox = Sandbox::current().map_err(Error::other)?;
        let known = if at.port() == 0 { None } else { ask(&sandbox, udp, at, None)? };
        let (number, fd) = match known {
            Some(known) => known,
            None => {
                let (socket, at) = open()?;
                let fd = std::os::fd::AsFd::as_fd(&socket);
                ask(&sandbox, udp, at, Some(fd))?
                    .ok_or_else(|| Error::other("no seat was given"))?
            }
        };
        let own = sandbox.invoke::<u64>(PEER_HANDLE, &[u64::from(std::process::id())]);
        let holder = Holder::of_peer(own.map_err(Error::other)?);
        let pool = std::ptr::with_exposed_provenance::<Pool>(sandbox.pool());
        // SAFETY: 0, or the pool's front, which stays mapped for good; all atomics.
        let pool: &'static Pool = unsafe { pool.as_ref() }.ok_or_else(|| {
            Error::other(format!("the sandbox has no packet buffers (ABI {ABI_VERSION})"))
        })?;
        let seat = pool.seats.get(number).ok_or_else(|| Error::other("no such seat"))?;
        seat.reset();
        let state = Mutex::new(State { at: seat.first(), ..State::default() });
        let shared = Arc::new(Shared { sandbox, pool, holder });
        Ok(Self { shared, seat, number, fd, state })
    }

    /// What is there, sorted.
    pub(super) fn look(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((item, next)) = self.seat.item(state.at) {
            state.at = next;
            self.sort(&mut state, item);
        }
        state
    }

    fn sort(&self, state: &mut State, Item { packet, connection: piece }: Item) {
        if piece.is(Piece::RESET) {
            state.worker += 1;
            state.accepted.clear();
            // Whoever reads or writes one of them finds it gone.
            return state.streams.clear();
        }
        let Some(lent) = Lent::take(&self.shared, packet) else { return };
        if !piece.is(Piece::STREAM) {
            return state.datagrams.push_back(lent);
        }
        let index = (state.worker, piece.connection());
        if piece.is(Piece::BEGIN) && self.seat.is_shut() {
            drop(lent);
            return self.ask(Ask::Close, index);
        }
        if piece.is(Piece::BEGIN) {
            let from = lent.from;
            state.streams.insert(index, Incoming { from, room: Some(lent), ..Incoming::default() });
            return state.accepted.push_back(index);
        }
        let Some(known) = state.streams.get_mut(&index) else { return };
        if piece.is(Piece::END) {
            known.has_ended = true;
            known.is_cut |= piece.is(Piece::CUT);
        } else if piece.is(Piece::ROOM) {
            known.room = Some(lent);
        } else {
            known.pieces.push_back(lent);
        }
    }

    /// Wait until `ready` finds something, at most until `until`.
    pub(super) fn wait<T>(
        &self,
        until: Option<Instant>,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> io::Result<T> {
        loop {
            let mut state = self.look();
            if let Some(found) = ready(&mut state) {
                return Ok(found);
            }
            let at = state.at;
            drop(state);
            let left =
                until.map_or(WAIT_MAX, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(Error::from(ErrorKind::WouldBlock));
            }
            if let Some(seen) = self.seat.lie_down(at) {
                let _ = self.shared.sandbox.wait_on(&self.seat.word, seen, left);
                self.seat.get_up();
            }
        }
    }

    /// As [`Desk::wait`], for a task: it is woken when something has come.
    #[cfg(feature = "tokio")]
    pub(super) fn poll<T>(
        self: &Arc<Self>,
        cx: &std::task::Context<'_>,
        ready: impl FnOnce(&mut State) -> Option<T>,
    ) -> std::task::Poll<T> {
        let mut state = self.look();
        if let Some(found) = ready(&mut state) {
            return std::task::Poll::Ready(found);
        }
        if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.wakers.push(cx.waker().clone());
        }
        if !std::mem::replace(&mut state.is_watched, true) {
            let desk = Arc::downgrade(self);
            std::thread::spawn(move || while desk.upgrade().is_some_and(|desk| desk.watch()) {});
        }
        std::task::Poll::Pending
    }

    /// Wait for a moment at most, and wake the tasks if something has come.
    #[cfg(feature = "tokio")]
    fn watch(&self) -> bool {
        const MOMENT: Duration = Duration::from_millis(500);
        let mut state = self.look();
        std::mem::take(&mut state.wakers).into_iter().for_each(std::task::Waker::wake);
        let at = state.at;
        drop(state);
        if let Some(seen) = self.seat.lie_down(at) {
            let _ = self.shared.sandbox.wait_on(&self.seat.word, seen, MOMENT);
            self.seat.get_up();
        }
        true
    }

    /// Ask the worker something for a connection.
    pub(super) fn ask(&self, ask: Ask, (_, connection): Key) {
        self.seat.ask(ask, connection);
        if self.shared.pool.done.ring() {
            self.shared.wake_owner();
        }
    }

    /// The program has no more use for a connection.
    pub(super) fn leave(&self, connection: Key) {
        let mut state = self.look();
        let is_known = state.streams.remove(&connection).is_some();
        // What had come is given back before the worker hears of it.
        drop(state);
        if is_known {
            self.ask(Ask::Close, connection);
        }
    }

    /// The program accepts no more connections: those that it has not accepted are closed, and others serve the
    /// next ones.
    pub(super) fn shut(&self) {
        self.seat.shut();
        let accepted = std::mem::take(&mut self.look().accepted);
        accepted.into_iter().for_each(|connection| self.leave(connection));
    }

    /// The program reads no more of a connection.
    pub(super) fn end_reading(&self, connection: Key) {
        if let Some(known) = self.look().streams.get_mut(&connection) {
            known.pieces.clear();
            known.has_ended = true;
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let mut state = self.look();
        *state = State { at: state.at, ..State::default() };
        drop(state);
        let request = format!(r#"{{"request":"leave","seat":{}}}"#, self.number);
        // A supervisor that is gone has no seats.
        let _ = self.shared.sandbox.ask_supervisor(&request, None);
    }
}

/// Ask the supervisor for a seat: its number and the port's socket.
fn ask(
    sandbox: &Sandbox,
    udp: bool,
    at: SocketAddr,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<Option<(usize, OwnedFd)>> {
    let request = format!(r#"{{"request":"serve","udp":{udp},"at":"{at}"}}"#);
    let (answer, mut fds) = sandbox.ask_supervisor(&request, fd).map_err(Error::other)?;
    let number = answer.strip_prefix(r#"{"ok":{"seat":"#).and_then(|rest| rest.strip_suffix("}}"));
    match number {
        Some("null") => Ok(None),
        Some(number) => {
            let number = number.parse().map_err(Error::other)?;
            Ok(fds.pop().map(|fd| (number, fd)))
        }
        None => Err(Error::other(format!("the supervisor refuses to serve {at}: {answer}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, Instant, after};

    #[test]
    fn a_time_that_never_comes_is_never() {
        assert_eq!(after(None), None);
        assert_eq!(after(Some(Duration::MAX)), None);
        assert!(after(Some(Duration::ZERO)).is_some_and(|at| at <= Instant::now()));
    }
}
