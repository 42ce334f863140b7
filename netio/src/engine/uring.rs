//! The engine's way to the kernel by io_uring: one request receives until it is stopped, and the kernel
//! picks the buffers, which lie in the region.
#![expect(unsafe_code, reason = "hands buffers and requests to the kernel")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use ext_api::limits::{BUFFER_FRONT_LEN, BUFFER_LEN, BUFFERS_MAX, PACKET_LEN_MAX};
use io_uring::types::{BufRingEntry, CancelBuilder, Fd, RecvMsgOut, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::driver::{Doorbell, Driver, Event, Source};
use crate::address::{ADDRESS_LEN, Address};
use crate::buffers::Lease;

/// Requests that can wait to be submitted together.
const ENTRIES: u32 = 1024;
/// Results that can wait for us: every buffer and every connection at once.
const RESULTS: u32 = 8192;
/// The group that our buffers are.
const GROUP: u16 = 1;
/// Entries of the ring of buffers: room for all.
const BUFFER_ENTRIES: u16 = BUFFERS_MAX as u16;
/// What the kernel puts before a datagram: a header and an address.
const FRONT: usize = 16 + NAME_LEN;
const NAME_LEN: usize = 32;
const _: () = assert!(FRONT <= BUFFER_FRONT_LEN && ADDRESS_LEN <= NAME_LEN);

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

/// What a ring can do besides. On this kernel nothing of it wins over the default: `bench net` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// A thread of the kernel's takes requests, for which it looks all the time, instead of our calls.
    pub sqpoll: bool,
    /// Answers of connections from so many bytes on are sent from where they lie, without a copy, if the
    /// device can do that.
    pub zero_copy_from: Option<usize>,
}

/// How long the kernel's thread looks for requests before it sleeps.
const SQPOLL_IDLE_MS: u32 = 10;

/// The ring.
pub struct Uring {
    ring: IoUring,
    options: Options,
    /// What sends without a copy have come to whose bytes are not free yet, by place.
    copied_later: HashMap<u32, i32>,
    buffers: BufferRing,
    lent: Vec<Option<Lease>>,
    lent_count: usize,
    /// What is asked of the kernel for datagrams: room for an address.
    message: Box<libc::msghdr>,
    /// Requests for which the queue had no room.
    later: VecDeque<squeue::Entry>,
    /// The kernel waits for the doorbell.
    is_listening: bool,
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").field("lent", &self.lent_count).finish_non_exhaustive()
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
        let buffers = BufferRing::register(&ring)?;
        // SAFETY: plain numbers and null pointers.
        let mut message: Box<libc::msghdr> = unsafe { Box::new(std::mem::zeroed()) };
        message.msg_namelen = NAME_LEN as u32;
        let lent = (0..BUFFERS_MAX).map(|_| None).collect();
        Ok(Self {
            ring,
            options,
            copied_later: HashMap::new(),
            buffers,
            lent,
            lent_count: 0,
            message,
            later: VecDeque::new(),
            is_listening: false,
        })
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

    /// The lease of the buffer that a result says it has filled.
    fn filled(&mut self, flags: u32) -> Option<Lease> {
        let lease = self.lent.get_mut(usize::from(cqueue::buffer_select(flags)?))?.take()?;
        self.lent_count -= 1;
        Some(lease)
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
        if let Some(event) = self.received(source, result, flags) {
            events.push(event);
        }
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

    fn received(&mut self, source: Source, result: i32, flags: u32) -> Option<Event> {
        if let Source::Listener(listener) = source {
            // SAFETY: the kernel just made it for us.
            let fd = (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) });
            return fd.map(|fd| Event::Accepted(listener, fd));
        }
        let lease = self.filled(flags)?;
        let len = usize::try_from(result).unwrap_or(0).min(BUFFER_LEN);
        match source {
            Source::Stream(connection) if len > 0 => {
                Some(Event::Piece { connection, lease, start: 0, len })
            }
            Source::Datagrams(socket) if len >= FRONT => {
                let at = self.buffers.address(lease.index());
                // SAFETY: the kernel has written `len` bytes there, and the buffer is ours again.
                let bytes = unsafe { std::slice::from_raw_parts(at, len) };
                let message = RecvMsgOut::parse(bytes, &self.message).ok()?;
                let len = message.payload_data().len();
                let whole = !message.is_payload_truncated() && len <= PACKET_LEN_MAX;
                let from = Address::new(message.name_data());
                Some(Event::Datagram { socket, lease, start: FRONT, len, whole, from })
            }
            _ => {
                // Nothing is in it: the next one gets it.
                let at = self.buffers.address(lease.index());
                // SAFETY: the address that it was lent with.
                unsafe { self.lend_at(lease, at) };
                None
            }
        }
    }

    /// # Safety
    /// As [`Driver::lend`].
    unsafe fn lend_at(&mut self, lease: Lease, at: *mut u8) {
        let index = lease.index();
        self.lent[index] = Some(lease);
        self.lent_count += 1;
        self.buffers.put(index, at);
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
        let message = &raw const *self.message;
        let entry = opcode::RecvMsgMulti::new(Fd(fd.as_raw_fd()), message, GROUP).build();
        self.push(entry, name(DATAGRAMS, socket));
    }

    fn receive(&mut self, connection: u32, fd: BorrowedFd<'_>) {
        let entry = opcode::RecvMulti::new(Fd(fd.as_raw_fd()), GROUP).build();
        self.push(entry, name(STREAM, connection));
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
        let fd = Fd(fd.as_raw_fd());
        if to.is_none() && self.options.zero_copy_from.is_some_and(|from| bytes.len() >= from) {
            let request = opcode::SendZc::new(fd, bytes.cast(), bytes.len() as u32);
            let entry = request.flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).build();
            return self.push(entry, name(SEND, place));
        }
        let request = opcode::Send::new(fd, bytes.cast(), bytes.len() as u32);
        let entry = match to {
            Some(to) => request
                .flags(libc::MSG_NOSIGNAL)
                .dest_addr(to.as_ptr())
                .dest_addr_len(to.len() as u32)
                .build(),
            None => request.flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).build(),
        };
        self.push(entry, name(SEND, place));
    }

    unsafe fn connect(&mut self, connection: u32, fd: BorrowedFd<'_>, to: &'static Address) {
        let fd = Fd(fd.as_raw_fd());
        let entry = opcode::Connect::new(fd, to.as_ptr(), to.len() as u32).build();
        self.push(entry, name(CONNECT, connection));
    }

    fn release(&mut self, _: BorrowedFd<'_>) {
        // A request has its file from the moment that the kernel has the request.
        self.submit_all();
    }

    fn watch(&mut self, fd: BorrowedFd<'_>) {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), libc::POLLIN as u32).build();
        self.push(entry, name(WATCH, 0));
    }

    unsafe fn lend(&mut self, lease: Lease, at: *mut u8) {
        // SAFETY: the same contract.
        unsafe { self.lend_at(lease, at) };
    }

    fn lent(&self) -> usize {
        self.lent_count
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
        self.buffers.publish();
        self.fill();
        let time = timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(time) = &time {
            args = args.timespec(time);
        }
        let want = usize::from(timeout.is_none_or(|timeout| !timeout.is_zero()));
        let waited = self.ring.submitter().submit_with_args(want, &args);
        match waited.map_err(|error| error.raw_os_error().unwrap_or(0)) {
            Ok(_) | Err(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
            Err(errno) => return Err(io::Error::from_raw_os_error(errno)),
        }
        while let Some(entry) = { self.ring.completion().next() } {
            self.tell(&entry, events);
        }
        Ok(())
    }
}

/// The ring by which the kernel gets buffers. Its memory is ours alone.
struct BufferRing {
    entries: *mut BufRingEntry,
    tail: u16,
    addresses: Vec<*mut u8>,
}

impl BufferRing {
    const LAYOUT: Layout =
        match Layout::from_size_align(BUFFER_ENTRIES as usize * size_of::<BufRingEntry>(), 4096) {
            Ok(layout) => layout,
            Err(_) => panic!("a page is a valid alignment"),
        };

    fn register(ring: &IoUring) -> io::Result<Self> {
        // SAFETY: the layout is not empty.
        let entries = unsafe { alloc_zeroed(Self::LAYOUT) }.cast::<BufRingEntry>();
        if entries.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let made = Self { entries, tail: 0, addresses: vec![std::ptr::null_mut(); BUFFERS_MAX] };
        let at = entries.addr() as u64;
        // SAFETY: as many entries lie there, and they stay until the value is dropped, which is after
        // the ring: fields are dropped in the order of their declaration.
        unsafe { ring.submitter().register_buf_ring_with_flags(at, BUFFER_ENTRIES, GROUP, 0) }?;
        Ok(made)
    }

    fn address(&self, index: usize) -> *mut u8 {
        self.addresses[index]
    }

    /// Buffer `index` lies at `at`; the kernel knows when it is published.
    fn put(&mut self, index: usize, at: *mut u8) {
        self.addresses[index] = at;
        let place = usize::from(self.tail % BUFFER_ENTRIES);
        let entry = self.entries.wrapping_add(place);
        // SAFETY: within the ring; the kernel reads it once the tail is beyond it. The tail of the ring
        // lies in a field of the first entry that is not written here.
        let entry = unsafe { &mut *entry };
        entry.set_addr(at.addr() as u64);
        entry.set_len(BUFFER_LEN as u32);
        entry.set_bid(index as u16);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        // SAFETY: the first entry is there.
        let tail = unsafe { BufRingEntry::tail(self.entries) };
        // SAFETY: the kernel only reads it; aligned to two bytes.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: made with the same layout; the kernel's ring is gone.
        unsafe { dealloc(self.entries.cast(), Self::LAYOUT) };
    }
}
