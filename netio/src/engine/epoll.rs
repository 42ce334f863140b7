//! The engine's way to the kernel where io_uring is refused: each call is made when epoll says that it
//! will not wait. The same buffers, the same events; a call each instead of one for many. It cannot wait
//! for another process's word as well, so it looks at that every millisecond while there is reason to.
#![expect(unsafe_code, reason = "makes the kernel's calls on buffers of the region")]

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use ext_api::limits::{BUFFER_FRONT_LEN, BUFFER_LEN};

use super::driver::{Doorbell, Driver, Event, Filled, Source};
use crate::address::{ADDRESS_LEN, Address};
use crate::buffers::Lease;
use crate::listen;

/// What one source may receive before others are looked at.
const BATCH: usize = 16;
/// Descriptors that one wait tells of.
const READY: usize = 256;
/// What the kernel says beside datagrams: a length, what it is, and a number.
const CONTROL_LEN: usize = 32;
/// How often the doorbell is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// Something to be sent when there is room.
struct Send {
    place: u32,
    bytes: *const [u8],
    to: Option<&'static Address>,
}

/// What is under way on a descriptor; there is one entry for each on which anything is.
#[derive(Default)]
struct Watch {
    source: Option<Source>,
    /// Datagrams come together, into wide buffers.
    is_gathered: bool,
    /// It receives once.
    is_once: bool,
    sends: VecDeque<Send>,
    connecting: Option<u32>,
    /// What epoll knows.
    interest: u32,
}

impl Watch {
    fn wanted(&self) -> u32 {
        let reads = if self.source.is_some() { libc::EPOLLIN as u32 } else { 0 };
        let writes = !self.sends.is_empty() || self.connecting.is_some();
        reads | if writes { libc::EPOLLOUT as u32 } else { 0 }
    }
}

/// An epoll instance.
pub struct Epoll {
    fd: OwnedFd,
    lent: Vec<(Lease, *mut u8)>,
    wide: Vec<(Lease, *mut u8)>,
    watches: HashMap<RawFd, Watch>,
    /// What is told by the next wait.
    told: Vec<Event>,
    /// What epoll has said and nobody has looked at yet.
    ready: Vec<libc::epoll_event>,
    /// What is watched besides.
    watched: Option<RawFd>,
}

impl fmt::Debug for Epoll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoll").field("lent", &self.lent.len()).finish_non_exhaustive()
    }
}

/// What a call returned, or the negated errno.
fn outcome(result: isize) -> i32 {
    if result >= 0 {
        return i32::try_from(result).unwrap_or(i32::MAX);
    }
    -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn must_wait(outcome: i32) -> bool {
    matches!(-outcome, libc::EAGAIN | libc::EINTR)
}

impl Epoll {
    /// An instance of this process's.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes a number.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            fd,
            lent: Vec::new(),
            wide: Vec::new(),
            watches: HashMap::new(),
            told: Vec::new(),
            ready: Vec::with_capacity(READY),
            watched: None,
        })
    }

    /// Tell epoll what is wanted of `fd` now.
    fn settle(&mut self, fd: RawFd) {
        let Some(watch) = self.watches.get_mut(&fd) else { return };
        let wanted = watch.wanted();
        let operation = match (watch.interest, wanted) {
            (seen, wanted) if seen == wanted && wanted != 0 => return,
            (0, 0) => {
                self.watches.remove(&fd);
                return;
            }
            (0, _) => libc::EPOLL_CTL_ADD,
            (_, 0) => libc::EPOLL_CTL_DEL,
            _ => libc::EPOLL_CTL_MOD,
        };
        watch.interest = wanted;
        let mut event = libc::epoll_event { events: wanted, u64: fd as u64 };
        // SAFETY: an event of ours.
        let done = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &raw mut event) };
        if done != 0 && operation == libc::EPOLL_CTL_ADD {
            // It cannot be watched: what was to happen on it does not.
            let errno = outcome(-1);
            let watch = self.watches.remove(&fd).unwrap_or_default();
            self.told.extend(watch.source.map(|source| Event::Stopped(source, errno)));
            self.told.extend(watch.sends.iter().map(|send| Event::Sent(send.place, errno)));
            self.told.extend(watch.connecting.map(|index| Event::Connected(index, errno)));
        } else if wanted == 0 {
            self.watches.remove(&fd);
        }
    }

    /// Wait until something can be done, for so long.
    fn ask(&mut self, ms: i32) -> io::Result<()> {
        let (fd, room) = (self.fd.as_raw_fd(), self.ready.spare_capacity_mut());
        // SAFETY: room for as many events.
        let count =
            unsafe { libc::epoll_wait(fd, room.as_mut_ptr().cast(), room.len() as i32, ms) };
        match outcome(count as isize) {
            // SAFETY: so many have been written there.
            count if count >= 0 => unsafe { self.ready.set_len(count as usize) },
            errno if must_wait(errno) => {}
            errno => return Err(io::Error::from_raw_os_error(-errno)),
        }
        Ok(())
    }

    fn watch(&mut self, source: Source, is_once: bool, fd: BorrowedFd<'_>) {
        let watch = self.watches.entry(fd.as_raw_fd()).or_default();
        (watch.source, watch.is_once) = (Some(source), is_once);
        self.settle(fd.as_raw_fd());
    }

    /// Receive what there is.
    fn receive_on(&mut self, fd: RawFd) {
        for _ in 0..BATCH {
            let Some(watch) = self.watches.get(&fd) else { return };
            let (Some(source), is_once) = (watch.source, watch.is_once) else { return };
            let got = match source {
                Source::Listener(index) => self.accept_one(index, fd),
                Source::Stream(index) => self.receive_piece(index, fd),
                Source::Datagrams(index) => self.receive_datagrams(index, fd),
            };
            if must_wait(got) {
                return;
            }
            let is_stream = matches!(source, Source::Stream(_));
            let ends = got == 0 && is_stream;
            if got < 0 || ends || is_once {
                let why = if got > 0 { -libc::ENOBUFS } else { got };
                self.told.push(Event::Stopped(source, why));
                if let Some(watch) = self.watches.get_mut(&fd) {
                    watch.source = None;
                }
                return;
            }
            // Less than there was room for: if more comes, epoll says so.
            if is_stream && (got as usize) < BUFFER_LEN {
                return;
            }
        }
    }

    fn accept_one(&mut self, index: u32, fd: RawFd) -> i32 {
        let none = std::ptr::null_mut();
        // SAFETY: no address is asked for.
        let got = unsafe { libc::accept4(fd, none, none.cast(), libc::SOCK_CLOEXEC) };
        if got < 0 {
            return outcome(-1);
        }
        // SAFETY: the kernel just made it for us.
        self.told.push(Event::Accepted(index, unsafe { OwnedFd::from_raw_fd(got) }));
        1
    }

    fn receive_piece(&mut self, connection: u32, fd: RawFd) -> i32 {
        let Some((lease, at)) = self.lent.pop() else { return -libc::ENOBUFS };
        // SAFETY: room for as many bytes in a buffer that is ours.
        let got = unsafe { libc::recv(fd, at.cast(), BUFFER_LEN, libc::MSG_DONTWAIT) };
        let got = outcome(got);
        if got <= 0 {
            self.lent.push((lease, at));
            return got;
        }
        let (filled, len) = (Filled::Whole(lease), got as usize);
        self.told.push(Event::Piece { connection, filled, start: 0, len });
        got
    }

    fn receive_datagrams(&mut self, socket: u32, fd: RawFd) -> i32 {
        let is_gathered = self.watches.get(&fd).is_some_and(|watch| watch.is_gathered);
        let lent = if is_gathered { &mut self.wide } else { &mut self.lent };
        let Some((lease, at)) = lent.pop() else { return -libc::ENOBUFS };
        let room = lease.room() - BUFFER_FRONT_LEN;
        let to = at.wrapping_add(BUFFER_FRONT_LEN).cast();
        let mut part = libc::iovec { iov_base: to, iov_len: room };
        let (mut name, mut control) = ([0u8; ADDRESS_LEN], [0u8; CONTROL_LEN]);
        // SAFETY: plain numbers and null pointers.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        (message.msg_name, message.msg_namelen) = (name.as_mut_ptr().cast(), ADDRESS_LEN as u32);
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), CONTROL_LEN);
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: room for as many bytes in a buffer that is ours, for an address, and for a number.
        let got = outcome(unsafe { libc::recvmsg(fd, &raw mut message, flags) });
        if got < 0 {
            lent.push((lease, at));
            return got;
        }
        let (whole, len) = (got as usize, (got as usize).min(room));
        let each = control.get(..message.msg_controllen).and_then(listen::gathered);
        let (each, is_whole) = (each.unwrap_or(len), whole <= room);
        let from = Address::new(name.get(..message.msg_namelen as usize).unwrap_or(&[]));
        let start = BUFFER_FRONT_LEN;
        self.told.push(Event::Datagrams { socket, lease, start, len, each, is_whole, from });
        1
    }

    /// Send what waits, as far as there is room.
    fn send_on(&mut self, fd: RawFd) {
        let Some(watch) = self.watches.get_mut(&fd) else { return };
        if let Some(index) = watch.connecting.take() {
            self.told.push(Event::Connected(index, -error_of(fd)));
        }
        while let Some(send) = watch.sends.front() {
            let (at, len) = (send.bytes.cast(), send.bytes.len());
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            let to = send.to.map_or((std::ptr::null(), 0), |to| (to.as_ptr(), to.len() as u32));
            // SAFETY: bytes and address stay until it is told that they are sent.
            let sent = outcome(unsafe { libc::sendto(fd, at, len, flags, to.0, to.1) });
            if must_wait(sent) {
                return;
            }
            self.told.push(Event::Sent(send.place, sent));
            watch.sends.pop_front();
        }
    }
}

/// What has gone wrong on a socket; 0 if nothing has.
fn error_of(fd: RawFd) -> i32 {
    let (mut error, mut len) = (0i32, size_of::<i32>() as u32);
    let at = (&raw mut error).cast();
    // SAFETY: an integer and its length.
    unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, at, &raw mut len) };
    error
}

fn never_wait(fd: BorrowedFd<'_>) {
    // SAFETY: takes numbers only.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: takes numbers only.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
}

impl Driver for Epoll {
    fn name(&self) -> &'static str {
        "epoll"
    }

    fn accept(&mut self, listener: u32, fd: BorrowedFd<'_>) {
        never_wait(fd);
        self.watch(Source::Listener(listener), false, fd);
    }

    fn receive_from(&mut self, socket: u32, fd: BorrowedFd<'_>) {
        self.watches.entry(fd.as_raw_fd()).or_default().is_gathered = listen::gather(fd);
        self.watch(Source::Datagrams(socket), false, fd);
    }

    fn receive(&mut self, connection: u32, fd: BorrowedFd<'_>) {
        self.watch(Source::Stream(connection), false, fd);
    }

    fn receive_once(&mut self, connection: u32, fd: BorrowedFd<'_>) {
        self.watch(Source::Stream(connection), true, fd);
    }

    fn stop(&mut self, source: Source) {
        let is_it = |(fd, watch): (&RawFd, &Watch)| (watch.source == Some(source)).then_some(*fd);
        let Some(fd) = self.watches.iter().find_map(is_it) else { return };
        if let Some(watch) = self.watches.get_mut(&fd) {
            watch.source = None;
        }
        self.settle(fd);
        self.told.push(Event::Stopped(source, -libc::ECANCELED));
    }

    unsafe fn send(
        &mut self,
        place: u32,
        fd: BorrowedFd<'_>,
        bytes: *const [u8],
        to: Option<&'static Address>,
    ) {
        let fd = fd.as_raw_fd();
        self.watches.entry(fd).or_default().sends.push_back(Send { place, bytes, to });
        self.send_on(fd);
        self.settle(fd);
    }

    unsafe fn connect(&mut self, connection: u32, fd: BorrowedFd<'_>, to: &'static Address) {
        never_wait(fd);
        let fd = fd.as_raw_fd();
        // SAFETY: an address of this length.
        let got = outcome(unsafe { libc::connect(fd, to.as_ptr(), to.len() as u32) } as isize);
        if got == -libc::EINPROGRESS {
            self.watches.entry(fd).or_default().connecting = Some(connection);
            self.settle(fd);
        } else {
            self.told.push(Event::Connected(connection, got));
        }
    }

    fn release(&mut self, fd: BorrowedFd<'_>) {
        let fd = fd.as_raw_fd();
        let Some(watch) = self.watches.get_mut(&fd) else { return };
        let sends = std::mem::take(&mut watch.sends);
        let canceled = |send: Send| Event::Sent(send.place, -libc::ECANCELED);
        self.told.extend(sends.into_iter().map(canceled));
        watch.source = None;
        self.settle(fd);
    }

    fn watch(&mut self, fd: BorrowedFd<'_>) {
        let fd = fd.as_raw_fd();
        let events = (libc::EPOLLIN | libc::EPOLLONESHOT) as u32;
        let mut event = libc::epoll_event { events, u64: fd as u64 };
        let known = self.watched.replace(fd) == Some(fd);
        let operation = if known { libc::EPOLL_CTL_MOD } else { libc::EPOLL_CTL_ADD };
        // SAFETY: an event of ours. What cannot be watched is never told of.
        unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &raw mut event) };
    }

    unsafe fn lend(&mut self, lease: Lease, at: *mut u8) {
        let lent = if lease.is_wide() { &mut self.wide } else { &mut self.lent };
        lent.push((lease, at));
    }

    fn lent(&self) -> usize {
        self.lent.len()
    }

    fn lent_wide(&self) -> usize {
        self.wide.len()
    }

    fn has_news(&mut self) -> bool {
        // What fails here fails in the wait as well.
        !self.told.is_empty()
            || !self.ready.is_empty()
            || self.ask(0).is_ok_and(|()| !self.ready.is_empty())
    }

    fn wait(
        &mut self,
        timeout: Option<Duration>,
        doorbell: Option<Doorbell>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let most = doorbell.map(|_| LOOK);
        let timeout = [timeout, most].into_iter().flatten().min();
        let timeout = if self.told.is_empty() { timeout } else { Some(Duration::ZERO) };
        let ms = timeout.map_or(-1, |time| time.as_nanos().div_ceil(1_000_000) as i32);
        if self.ready.is_empty() {
            self.ask(ms)?;
        }
        let mut ready = std::mem::take(&mut self.ready);
        for event in ready.drain(..) {
            let (fd, what) = (event.u64 as RawFd, event.events);
            if self.watched == Some(fd) {
                self.told.push(Event::Readable);
                continue;
            }
            let failed = what & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0;
            if failed || what & libc::EPOLLOUT as u32 != 0 {
                self.send_on(fd);
            }
            if failed || what & libc::EPOLLIN as u32 != 0 {
                self.receive_on(fd);
            }
            self.settle(fd);
        }
        self.ready = ready;
        events.append(&mut self.told);
        Ok(())
    }
}
