//! One descriptor that gives a frame per read, read through io_uring: one multishot request, whose frames
//! the kernel puts into buffers of a ring. While frames come, none costs a system call.
//!
//! The ring is a plain one (no SINGLE_ISSUER): the thread that reads may change. A request ends with the
//! thread that made it, when the buffers have run out, and at its own choice; it is made anew then.
#![expect(unsafe_code, reason = "hands buffers to the kernel and copies out of them")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::BufRingEntry;
use io_uring::{IoUring, cqueue, opcode, types};

/// Frames that may lie there unread; more wait in the kernel's own queue.
const BUFFERS: u16 = 128;
/// The group that the buffers are in; each ring has groups of its own.
const GROUP: u16 = 0;
/// What completions of the reading request carry.
const READING: u64 = 1;
/// What completions of its cancellation carry.
const CANCELLING: u64 = 2;
const PAGE_LEN: usize = 4096;
/// The entries lie in the first page, the buffers after it.
const ENTRIES_LEN: usize = PAGE_LEN;
const _: () = assert!(BUFFERS as usize * size_of::<BufRingEntry>() <= ENTRIES_LEN);
const _: () = assert!(BUFFERS.is_power_of_two());
/// Longest that the end of a cancelled request is waited for.
const CANCEL_LIMIT: Duration = Duration::from_millis(200);

/// Reads frames of one descriptor.
pub(crate) struct FrameReader {
    ring: IoUring,
    from: Arc<OwnedFd>,
    memory: Option<Memory>,
    is_reading: bool,
    /// The interface was down when this was last heard of.
    pub(super) was_down: bool,
    tail: u16,
}

/// What [`FrameReader::next`] found.
#[derive(Debug)]
pub(crate) enum Found {
    /// A frame of so many octets, of which as many are in the caller's memory as it has.
    Frame(usize),
    /// Nothing now.
    Nothing,
    /// The read failed.
    Failed(io::Error),
}

impl std::fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameReader").field("is_reading", &self.is_reading).finish_non_exhaustive()
    }
}

impl AsFd for FrameReader {
    /// Readable when there is something to find.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open for as long as the ring is.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl FrameReader {
    /// Begin to read frames of at most `frame_max` octets.
    pub(crate) fn new(from: Arc<OwnedFd>, frame_max: usize) -> io::Result<Self> {
        let ring = IoUring::builder().setup_cqsize(4 * u32::from(BUFFERS)).build(4)?;
        let memory = Memory::new(frame_max).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a page of zeros that outlives the group (see `drop`), and is written by us alone.
        unsafe {
            let entries = memory.entries().addr() as u64;
            ring.submitter().register_buf_ring_with_flags(entries, BUFFERS, GROUP, 0)?;
        }
        let memory = Some(memory);
        let mut reader = Self { ring, from, memory, is_reading: false, was_down: false, tail: 0 };
        for buffer in 0..BUFFERS {
            reader.give(buffer);
        }
        reader.read()?;
        Ok(reader)
    }

    /// The next frame.
    pub(crate) fn next(&mut self, into: &mut [u8]) -> Found {
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return match self.read() {
                    Ok(()) => Found::Nothing,
                    Err(error) => Found::Failed(error),
                };
            };
            if entry.user_data() != READING {
                continue;
            }
            self.is_reading = cqueue::more(entry.flags());
            let buffer = cqueue::buffer_select(entry.flags());
            self.was_down = entry.result() == -libc::ENETDOWN;
            match entry.result() {
                len if len > 0 && buffer.is_some_and(|buffer| buffer < BUFFERS) => {
                    let buffer = buffer.unwrap_or(0);
                    self.copy(buffer, len as usize, into);
                    self.give(buffer);
                    return Found::Frame(len as usize);
                }
                code if code < 0 && !is_passing(-code) => {
                    return Found::Failed(io::Error::from_raw_os_error(-code));
                }
                _ => {
                    if let Some(buffer) = buffer.filter(|buffer| *buffer < BUFFERS) {
                        self.give(buffer);
                    }
                }
            }
        }
    }

    /// Whether a completion waits.
    pub(crate) fn has_more(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Make the reading request, if there is none.
    pub(crate) fn read(&mut self) -> io::Result<()> {
        if self.is_reading {
            return Ok(());
        }
        let from = types::Fd(self.from.as_raw_fd());
        let request = opcode::ReadMulti::new(from, 0, GROUP).build().user_data(READING);
        self.submit(&request)?;
        self.is_reading = true;
        Ok(())
    }

    fn submit(&mut self, request: &io_uring::squeue::Entry) -> io::Result<()> {
        // SAFETY: the descriptor outlives the request (it is awaited in `drop`); it names no memory but
        // the group's.
        unsafe { self.ring.submission().push(request) }.map_err(io::Error::other)?;
        self.ring.submit().map(drop)
    }

    fn copy(&self, buffer: u16, len: usize, into: &mut [u8]) {
        let Some(memory) = &self.memory else { return };
        let len = len.min(memory.buffer_len).min(into.len());
        // SAFETY: the buffer is that long and is not the kernel's until it is given back.
        unsafe { memory.buffer(buffer).copy_to_nonoverlapping(into.as_mut_ptr(), len) };
    }

    /// Give a buffer to the kernel.
    fn give(&mut self, buffer: u16) {
        let Some(memory) = &self.memory else { return };
        let slot = usize::from(self.tail % BUFFERS);
        // SAFETY: inside the page of entries; the kernel reads an entry only once the tail is past it.
        let entry = unsafe { &mut *memory.entries().wrapping_add(slot) };
        entry.set_addr(memory.buffer(buffer).addr() as u64);
        entry.set_len(memory.buffer_len as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the first entry, in a page of zeros.
        let tail = unsafe { BufRingEntry::tail(memory.entries()) };
        // SAFETY: aligned, in our page; the kernel reads it with acquire.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// End the reading request; whether it has ended.
    fn cancel(&mut self) -> bool {
        let request = opcode::AsyncCancel::new(READING).build().user_data(CANCELLING);
        if self.is_reading && self.submit(&request).is_err() {
            return false;
        }
        let limit = types::Timespec::from(CANCEL_LIMIT);
        while self.is_reading {
            let limit = types::SubmitArgs::new().timespec(&limit);
            if self.ring.submitter().submit_with_args(1, &limit).is_err() {
                return false;
            }
            for entry in self.ring.completion() {
                self.is_reading &= entry.user_data() != READING || cqueue::more(entry.flags());
            }
        }
        true
    }
}

/// Errors after which the same request is simply made again.
fn is_passing(code: i32) -> bool {
    // The last one: the interface is down for now.
    [libc::ENOBUFS, libc::ECANCELED, libc::EAGAIN, libc::EINTR, libc::ENETDOWN].contains(&code)
}

impl Drop for FrameReader {
    fn drop(&mut self) {
        let is_over = self.cancel() && self.ring.submitter().unregister_buf_ring(GROUP).is_ok();
        if !is_over {
            // The kernel may still write there.
            std::mem::forget(self.memory.take());
        }
    }
}

/// The entries, and the buffers after them.
struct Memory {
    start: *mut u8,
    layout: Layout,
    buffer_len: usize,
}

// SAFETY: memory of its own, which no thread in particular has.
unsafe impl Send for Memory {}

impl Memory {
    fn new(frame_max: usize) -> Option<Self> {
        let buffer_len = frame_max.next_multiple_of(64);
        let len = ENTRIES_LEN + usize::from(BUFFERS) * buffer_len;
        let layout = Layout::from_size_align(len, PAGE_LEN).ok()?;
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        (!start.is_null()).then_some(Self { start, layout, buffer_len })
    }

    const fn entries(&self) -> *mut BufRingEntry {
        self.start.cast()
    }

    fn buffer(&self, index: u16) -> *mut u8 {
        self.start.wrapping_add(ENTRIES_LEN + usize::from(index) * self.buffer_len)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout, and given back once.
        unsafe { dealloc(self.start, self.layout) };
    }
}
