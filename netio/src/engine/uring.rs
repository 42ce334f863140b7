//! The engine's way to the kernel by io_uring: one request receives until it is stopped, and the kernel
//! picks the buffers, which lie in the region.
#![expect(unsafe_code, reason = "hands buffers and requests to the kernel")]

mod lent;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use ext_api::limits::{BUFFER_FRONT_LEN, BUFFER_LEN, NARROW_BUFFERS};
use io_uring::types::{CancelBuilder, Fd, Fixed, RecvMsgOut, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::driver::{Doorbell, Driver, Event, Source};
use crate::address::{ADDRESS_LEN, Address};
use crate::buffers::Lease;
use crate::listen;
use lent::Lent;

/// Requests that can wait to be submitted together.
const ENTRIES: u32 = 1024;
/// Results that can wait for us: every buffer and every connection at once.
const RESULTS: u32 = 8192;
/// The groups that our buffers are: narrow and wide ones.
const GROUP: u16 = 1;
const WIDE_GROUP: u16 = 2;
/// What the kernel puts before datagrams: a header, an address, and a number by itself (a length, two numbers of
/// what it is, and it).
const FRONT: usize = 16 + ADDRESS_LEN + CONTROL_LEN;
const CONTROL_LEN: usize = size_of::<usize>() + 3 * size_of::<i32>();
const _: () = assert!(FRONT == BUFFER_FRONT_LEN);

/// Kinds of requests, in the highest byte of what names them.
const ACCEPT: u64 = 1;
const DATAGRAMS: u64 = 2;
const STREAM: u64 = 3;
const SEND: u64 = 4;
const CONNECT: u64 = 5;
const DOORBELL: u64 = 6;
/// Of which nobody wants to hear.
const NOTHING: u64 = 7;
const WATCH: u64 = 8;

const fn name(kind: u64, index: u32) -> u64 {
    kind << 56 | index as u64
}

const fn name_of(source: Source) -> u64 {
    match source {
        Source::Listener(index) => name(ACCEPT, index),
        Source::Datagrams(index) => name(DATAGRAMS, index),
        Source::Stream(index) => name(STREAM, index),
    }
}

/// What a ring can do besides. On this kernel nothing of it wins over the default: `bench engine` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// A thread of the kernel's takes requests, for which it looks all the time, instead of our calls.
    pub sqpoll: bool,
    /// Answers of connections from so many bytes on are sent from where they lie, without a copy, if the
    /// device can do that.
    pub zero_copy_from: Option<usize>,
    /// Where those lie, from here on as many bytes: the kernel has the pages for good.
    pub registered: Option<[usize; 2]>,
    /// The kernel has the files of connections for good, not for each request.
    pub files: bool,
    /// One result for as many buffers as a connection's bytes have filled.
    pub bundles: bool,
    /// A buffer is filled bit by bit, by whatever connections have bytes; there is no room behind them for what
    /// handlers write, which is spilled. No datagrams are received so.
    pub incremental: bool,
}

/// Files that the kernel may have for good: as many as this process may have descriptors.
fn files_max() -> usize {
    const MOST: libc::rlim_t = 1 << 16;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes a limit.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur.min(MOST) as usize
}

/// How long the kernel's thread looks for requests before it sleeps.
const SQPOLL_IDLE_MS: u32 = 10;

/// The ring.
pub struct Uring {
    ring: IoUring,
    options: Options,
    /// What sends without a copy have come to whose bytes are not free yet, by place.
    copied_later: HashMap<u32, i32>,
    lent: Lent,
    wide: Lent,
    /// Which descriptors the kernel has for good, under their own numbers.
    files: Vec<bool>,
    /// What has not come from the kernel.
    told: Vec<Event>,
    /// What is asked of the kernel for datagrams: room for an address, and for how long each of many is.
    message: Box<libc::msghdr>,
    /// Requests for which the queue had no room.
    later: VecDeque<squeue::Entry>,
    /// The kernel waits for the doorbell.
    is_listening: bool,
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").field("lent", &self.lent.count()).finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring of this thread's.
    ///
    /// # Errors
    /// The kernel refuses io_uring, or is too old for what is needed here (Linux 6.7).
    pub fn new() -> io::Result<Self> {
        Self::with(Options::default())
    }

    /// One that does `options` besides.
    ///
    /// # Errors
    /// As [`Uring::new`].
    pub fn with(options: Options) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        if options.sqpoll {
            builder.setup_sqpoll(SQPOLL_IDLE_MS);
        } else {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        }
        let ring = builder.setup_cqsize(RESULTS).build(ENTRIES)?;
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::FutexWait::CODE) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel's io_uring cannot wait for a futex (Linux 6.7)",
            ));
        }
        let files = vec![false; if options.files { files_max() } else { 0 }];
        if options.files {
            ring.submitter().register_files_sparse(files.len() as u32)?;
        }
        if let Some([start, len]) = options.registered {
            let all = libc::iovec { iov_base: start as *mut libc::c_void, iov_len: len };
            // SAFETY: the kernel refuses what is not mapped there, and only reads it.
            unsafe { ring.submitter().register_buffers(&[all]) }?;
        }
        // SAFETY: plain numbers and null pointers.
        let mut message: Box<libc::msghdr> = unsafe { Box::new(std::mem::zeroed()) };
        (message.msg_namelen, message.msg_controllen) = (ADDRESS_LEN as u32, CONTROL_LEN);
        // From here on both buffer rings go after the ring: fields are dropped in the order of their declaration.
        let made = Self {
            ring,
            options,
            copied_later: HashMap::new(),
            lent: Lent::new()?,
            wide: Lent::new()?,
            files,
            told: Vec::new(),
            message,
            later: VecDeque::new(),
            is_listening: false,
        };
        made.lent.register(&made.ring, GROUP, options.incremental)?;
        made.wide.register(&made.ring, WIDE_GROUP, false)?;
        Ok(made)
    }

    fn push(&mut self, entry: squeue::Entry, name: u64) {
        self.later.push_back(entry.user_data(name));
        self.fill();
    }

    /// Put into the queue what there is room for; the rest goes with a later wait.
    fn fill(&mut self) {
        while let Some(entry) = self.later.front() {
            // SAFETY: what the requests name stays until they are through: the callers of `Driver` see to
            // the descriptors, bytes and addresses, this value keeps the message.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.later.pop_front();
            } else if self.ring.submit().is_err() {
                return;
            }
        }
    }

    fn submit_all(&mut self) {
        self.fill();
        if self.ring.submission().is_empty() {
            return;
        }
        // What cannot be submitted now is, with the next wait.
        let _ = self.ring.submit();
    }

    fn listen(&mut self, doorbell: Doorbell) {
        const SIZE_U32: u32 = 2;
        const ANY: u64 = u32::MAX as u64;
        let seen = u64::from(doorbell.seen);
        let entry = opcode::FutexWait::new(doorbell.word.as_ptr(), seen, ANY, SIZE_U32).build();
        self.push(entry, name(DOORBELL, 0));
        self.is_listening = true;
    }

    /// The kernel's own name of a connection's file, if it has it.
    fn file(&mut self, fd: BorrowedFd<'_>) -> Option<Fixed> {
        let number = fd.as_raw_fd();
        let known = self.files.get_mut(usize::try_from(number).ok()?)?;
        if !*known {
            *known = self.ring.submitter().register_files_update(number as u32, &[number]).is_ok();
        }
        known.then_some(Fixed(number as u32))
    }

    /// A request of a connection, by whichever name the kernel has its file.
    fn push_of(
        &mut self,
        fd: BorrowedFd<'_>,
        name: u64,
        by_file: impl FnOnce(Fixed) -> squeue::Entry,
        by_fd: impl FnOnce(Fd) -> squeue::Entry,
    ) {
        let entry = match self.file(fd) {
            Some(file) => by_file(file),
            None => by_fd(Fd(fd.as_raw_fd())),
        };
        self.push(entry, name);
    }

    fn tell(&mut self, entry: &cqueue::Entry, events: &mut Vec<Event>) {
        let (kind, index) = (entry.user_data() >> 56, entry.user_data() as u32);
        let (result, flags) = (entry.result(), entry.flags());
        let source = match kind {
            ACCEPT => Source::Listener(index),
            DATAGRAMS => Source::Datagrams(index),
            STREAM => Source::Stream(index),
            SEND => return events.extend(self.sent(index, result, flags)),
            CONNECT => return events.push(Event::Connected(index, result)),
            WATCH => return events.push(Event::Readable),
            DOORBELL => {
                self.is_listening = false;
                return;
            }
            _ => return,
        };
        self.received(source, result, flags, events);
        if !cqueue::more(flags) {
            // One that ends although it has received something had no room to say so.
            let why = if result > 0 { -libc::ENOBUFS } else { result };
            events.push(Event::Stopped(source, why));
        }
    }

    /// A send has come to an end, or its bytes are free.
    fn sent(&mut self, place: u32, result: i32, flags: u32) -> Option<Event> {
        if cqueue::more(flags) {
            self.copied_later.insert(place, result);
            return None;
        }
        let before = cqueue::notif(flags).then(|| self.copied_later.remove(&place)).flatten();
        Some(Event::Sent(place, before.unwrap_or(result)))
    }

    fn received(&mut self, source: Source, result: i32, flags: u32, events: &mut Vec<Event>) {
        if let Source::Listener(listener) = source {
            // SAFETY: the kernel just made it for us.
            let fd = (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) });
            return events.extend(fd.map(|fd| Event::Accepted(listener, fd)));
        }
        let Some(first) = cqueue::buffer_select(flags).map(usize::from) else { return };
        let len = usize::try_from(result).unwrap_or(0);
        match source {
            Source::Stream(connection) if len > 0 => {
                let more = cqueue::buffer_more(flags);
                self.lent.filled(first, len, more, |filled, start, len| {
                    events.push(Event::Piece { connection, filled, start, len });
                });
            }
            Source::Datagrams(socket) => events.extend(self.datagrams(socket, first, len)),
            _ => self.lent_of(first).untouched(first),
        }
    }

    /// The ring that a buffer is given out by.
    const fn lent_of(&mut self, index: usize) -> &mut Lent {
        if index < NARROW_BUFFERS { &mut self.lent } else { &mut self.wide }
    }

    fn datagrams(&mut self, socket: u32, index: usize, len: usize) -> Option<Event> {
        let lent = self.lent_of(index);
        if len < FRONT {
            lent.untouched(index);
            return None;
        }
        let (lease, at) = (lent.whole(index)?, lent.address(index));
        let len = len.min(lease.room());
        // SAFETY: the kernel has written `len` bytes there, and the buffer is ours again.
        let bytes = unsafe { std::slice::from_raw_parts(at, len) };
        let Ok(message) = RecvMsgOut::parse(bytes, &self.message) else {
            self.lent_of(index).put(lease, at);
            return None;
        };
        let len = message.payload_data().len();
        let each = listen::gathered(message.control_data()).unwrap_or(len);
        let is_whole = !message.is_payload_truncated();
        let from = Address::new(message.name_data());
        Some(Event::Datagrams { socket, lease, start: FRONT, len, each, is_whole, from })
    }

    /// Call the kernel, if there is anything to tell it or to hear.
    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let sleeps = timeout.is_none_or(|timeout| !timeout.is_zero()) && self.told.is_empty();
        // SAFETY: nothing is taken out by this view.
        let sleeps = sleeps && unsafe { self.ring.completion_shared() }.is_empty();
        // SAFETY: nothing is put in by this view.
        let requests = unsafe { self.ring.submission_shared() };
        if !sleeps && requests.is_empty() && !requests.taskrun() && !requests.cq_overflow() {
            return Ok(());
        }
        let time = timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(time) = time.as_ref().filter(|_| sleeps) {
            args = args.timespec(time);
        }
        let waited = self.ring.submitter().submit_with_args(usize::from(sleeps), &args);
        match waited.map_err(|error| error.raw_os_error().unwrap_or(0)) {
            Ok(_) | Err(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
            Err(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Driver for Uring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn accept(&mut self, listener: u32, fd: BorrowedFd<'_>) {
        let entry = opcode::AcceptMulti::new(Fd(fd.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
        self.push(entry, name(ACCEPT, listener));
    }

    fn receive_from(&mut self, socket: u32, fd: BorrowedFd<'_>) {
        if self.options.incremental {
            let source = Source::Datagrams(socket);
            return self.told.push(Event::Stopped(source, -libc::EOPNOTSUPP));
        }
        let message = &raw const *self.message;
        let group = if listen::gather(fd) { WIDE_GROUP } else { GROUP };
        let entry = opcode::RecvMsgMulti::new(Fd(fd.as_raw_fd()), message, group).build();
        self.push(entry, name(DATAGRAMS, socket));
    }

    fn receive(&mut self, connection: u32, fd: BorrowedFd<'_>) {
        let name = name(STREAM, connection);
        if self.options.bundles {
            let by_file = |file| opcode::RecvMultiBundle::new(file, GROUP).build();
            let by_fd = |fd| opcode::RecvMultiBundle::new(fd, GROUP).build();
            return self.push_of(fd, name, by_file, by_fd);
        }
        let by_file = |file| opcode::RecvMulti::new(file, GROUP).build();
        self.push_of(fd, name, by_file, |fd| opcode::RecvMulti::new(fd, GROUP).build());
    }

    fn receive_once(&mut self, connection: u32, fd: BorrowedFd<'_>) {
        // The kernel chooses the buffer.
        let (none, len) = (std::ptr::null_mut(), BUFFER_LEN as u32);
        let chosen = |entry: squeue::Entry| entry.flags(squeue::Flags::BUFFER_SELECT);
        let by_file = |file| chosen(opcode::Recv::new(file, none, len).buf_group(GROUP).build());
        self.push_of(fd, name(STREAM, connection), by_file, |fd| {
            chosen(opcode::Recv::new(fd, none, len).buf_group(GROUP).build())
        });
    }

    fn stop(&mut self, source: Source) {
        let which = CancelBuilder::user_data(name_of(source));
        self.push(opcode::AsyncCancel2::new(which).build(), name(NOTHING, 0));
    }

    unsafe fn send(
        &mut self,
        place: u32,
        fd: BorrowedFd<'_>,
        bytes: *const [u8],
        to: Option<&'static Address>,
    ) {
        let (at, len, name) = (bytes.cast(), bytes.len() as u32, name(SEND, place));
        if let Some(to) = to {
            let request = opcode::Send::new(Fd(fd.as_raw_fd()), at, len).flags(libc::MSG_NOSIGNAL);
            let to = request.dest_addr(to.as_ptr()).dest_addr_len(to.len() as u32);
            return self.push(to.build(), name);
        }
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        if self.options.zero_copy_from.is_some_and(|from| bytes.len() >= from) {
            let within = |[start, whole]: [usize; 2]| {
                let first = bytes.cast::<u8>().addr();
                first >= start && first + bytes.len() <= start + whole
            };
            let of = self.options.registered.filter(|all| within(*all)).map(|_| 0);
            let request = opcode::SendZc::new(Fd(fd.as_raw_fd()), at, len);
            return self.push(request.flags(flags).buf_index(of).build(), name);
        }
        let by_file = |file| opcode::Send::new(file, at, len).flags(flags).build();
        self.push_of(fd, name, by_file, |fd| opcode::Send::new(fd, at, len).flags(flags).build());
    }

    unsafe fn connect(&mut self, connection: u32, fd: BorrowedFd<'_>, to: &'static Address) {
        let fd = Fd(fd.as_raw_fd());
        let entry = opcode::Connect::new(fd, to.as_ptr(), to.len() as u32).build();
        self.push(entry, name(CONNECT, connection));
    }

    fn release(&mut self, fd: BorrowedFd<'_>) {
        // A request has its file from the moment that the kernel has the request: with SQPOLL when its thread
        // has taken it.
        self.submit_all();
        while self.options.sqpoll
            && !self.ring.submission().is_empty()
            && self.ring.submit().is_ok()
        {
            std::thread::yield_now();
        }
        let number = fd.as_raw_fd();
        let known = usize::try_from(number).ok().and_then(|number| self.files.get_mut(number));
        if known.is_some_and(std::mem::take) {
            // It cannot fail: there is such a place.
            let _ = self.ring.submitter().register_files_update(number as u32, &[-1]);
        }
    }

    fn watch(&mut self, fd: BorrowedFd<'_>) {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), libc::POLLIN as u32).build();
        self.push(entry, name(WATCH, 0));
    }

    unsafe fn lend(&mut self, lease: Lease, at: *mut u8) {
        self.lent_of(lease.index()).put(lease, at);
    }

    fn lent(&self) -> usize {
        self.lent.count()
    }

    fn lent_wide(&self) -> usize {
        self.wide.count()
    }

    fn has_news(&mut self) -> bool {
        // SAFETY: nothing is taken out or put in by these views.
        let taskrun = unsafe { self.ring.submission_shared() }.taskrun();
        // SAFETY: as above.
        taskrun || !unsafe { self.ring.completion_shared() }.is_empty()
    }

    fn wait(
        &mut self,
        timeout: Option<Duration>,
        doorbell: Option<Doorbell>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        if let Some(doorbell) = doorbell.filter(|_| !self.is_listening) {
            self.listen(doorbell);
        }
        self.lent.publish();
        self.wide.publish();
        self.fill();
        self.enter(timeout)?;
        events.append(&mut self.told);
        while let Some(entry) = { self.ring.completion().next() } {
            self.tell(&entry, events);
        }
        Ok(())
    }
}
