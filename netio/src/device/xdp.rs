//! AF_XDP: the frames of one queue of an interface, before the kernel's stack has seen them, in memory that
//! the caller gives. The kernel copies between that and its own; it is the same for every driver.
//!
//! ```text
//!  memory   │ frames to receive into … │ frames to send from … │      one chunk each
//!                │            ▲                │           ▲
//!           fill ▼   receive  │           send ▼  complete │          four rings, shared with the kernel
//! ```
//!
//! Half of the chunks are for each way and stay so. A frame that the kernel has put into the first half is
//! copied out and its chunk goes back to *fill* at once. Whatever another process writes to the memory
//! changes the contents of frames at most. Frames by the million are the fewest calls for an interface that
//! gathers what comes in a moment (`napi_defer_hard_irqs`, `gro_flush_timeout`), which is the administrator's to say.
#![expect(unsafe_code, reason = "hands memory to the kernel, and copies frames in and out of it")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use self::program::Program;
use self::rings::{Offsets, Queue};
use super::interface::{Interface, socket};
use super::waiting::DescriptorWaiter;
use super::{Checksums, Counters, Device, Medium, OpenError, Step, Waiter, once_free};

mod program;
mod rings;

/// Length of a chunk; a frame lies in one, after some room that the kernel wants.
pub const CHUNK_LEN: usize = 4096;
/// What the kernel leaves before a frame that it receives.
const HEADROOM: usize = 256;
/// Longest frame.
const FRAME_MAX: usize = CHUNK_LEN - HEADROOM;
/// Chunks each way at most: what the rings hold.
const CHUNKS_MAX: u32 = 4096;
/// Fewest chunks each way that it makes sense with.
const CHUNKS_MIN: u32 = 16;
/// System calls in a row that ask the kernel to send; it takes 32 frames with each.
const KICKS_MAX: u32 = 2 * CHUNKS_MAX / 32;
const PAGE_LEN: usize = 4096;

/// What a device is to be.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Which queue of the interface. Frames of the others go to the kernel.
    pub queue: u32,
    /// [`Checksums::SendOnly`] on an interface, like veth, whose other end leaves checksums to hardware.
    pub checksums: Checksums,
}

impl Default for Config {
    fn default() -> Self {
        Self { queue: 0, checksums: Checksums::Full }
    }
}

/// A queue of an interface.
#[derive(Debug)]
pub struct Xdp {
    /// Detaches before the socket goes.
    program: Program,
    socket: Arc<OwnedFd>,
    fill: Queue<u64>,
    receive: Queue<libc::xdp_desc>,
    send: Queue<libc::xdp_desc>,
    complete: Queue<u64>,
    memory: Chunks,
    /// Chunks that can be sent from.
    free: Vec<u64>,
    waiter: Arc<DescriptorWaiter>,
    config: Config,
    mtu: usize,
    hardware: [u8; 6],
    to_kick: bool,
    /// The interface has been removed.
    has_gone: bool,
    counters: Counters,
}

/// The caller's memory.
#[derive(Debug)]
struct Chunks {
    start: *mut u8,
    /// Each way.
    count: u32,
}

// SAFETY: memory that any thread may use (see `Xdp::open`).
unsafe impl Send for Chunks {}

impl Xdp {
    /// A queue of the interface `name`, whose frames lie in the `len` octets at `memory`.
    ///
    /// # Errors
    /// The kernel refused, there is no such interface, or the memory does not fit ([`Step::Memory`]).
    ///
    /// # Safety
    /// The memory must stay readable and writable for as long as the device or one of its waiters lives.
    /// Whoever else writes there changes frames.
    pub unsafe fn open(
        name: &str,
        memory: *mut u8,
        len: usize,
        config: Config,
    ) -> Result<Self, OpenError> {
        let interface = Interface::find(name)?;
        let each = (len / CHUNK_LEN / 2).min(CHUNKS_MAX as usize) as u32;
        if each < CHUNKS_MIN || !memory.addr().is_multiple_of(PAGE_LEN) {
            let error = io::Error::from_raw_os_error(libc::EINVAL);
            return Err(OpenError::new(Step::Memory, name, error));
        }
        let count = 1 << each.ilog2();
        let socket = socket(name, libc::AF_XDP, libc::SOCK_RAW, 0)?;
        // SAFETY: the caller's memory.
        unsafe { rings::register(&socket, name, memory, 2 * count as usize * CHUNK_LEN) }?;
        let offsets = Offsets::make(&socket, name, count)?;
        let mut fill = Queue::map(&socket, name, offsets.fill())?;
        let [receive, send] =
            [offsets.receive(), offsets.send()].map(|at| Queue::map(&socket, name, at));
        let complete = Queue::map(&socket, name, offsets.complete())?;
        for chunk in 0..count {
            fill.put(u64::from(chunk) * CHUNK_LEN as u64);
        }
        fill.publish();
        once_free(|| rings::bind(&socket, name, interface.index, config.queue))?;
        let program = once_free(|| Program::attach(name, interface.index, config.queue, &socket))?;
        let socket = Arc::new(socket);
        Ok(Self {
            waiter: Arc::new(DescriptorWaiter::new(Arc::clone(&socket), name)?),
            program,
            socket,
            fill,
            receive: receive?,
            send: send?,
            complete,
            free: (count..2 * count).map(|chunk| u64::from(chunk) * CHUNK_LEN as u64).collect(),
            memory: Chunks { start: memory, count },
            config,
            mtu: interface.mtu.min(FRAME_MAX - Medium::Ethernet.header_len()),
            hardware: interface.hardware,
            to_kick: false,
            has_gone: false,
            counters: Counters::default(),
        })
    }

    /// Whether the driver itself hands frames over; otherwise the kernel does, a little later.
    #[must_use]
    pub const fn is_native(&self) -> bool {
        self.program.is_native()
    }

    /// The interface's own address on Ethernet: a host of another one hears only what goes to all, unless
    /// the interface passes everything on, as veth does.
    #[must_use]
    pub const fn hardware(&self) -> [u8; 6] {
        self.hardware
    }

    /// Take back what has been sent.
    fn reap(&mut self) {
        while let Some(address) = self.complete.take() {
            self.free.push(address - address % CHUNK_LEN as u64);
        }
        self.complete.release();
    }

    /// Give the chunk of a received frame back.
    fn give_back(&mut self, address: u64) {
        self.fill.put(address - address % CHUNK_LEN as u64);
        self.fill.publish();
        self.receive.release();
    }
}

impl Chunks {
    /// Where `len` octets of frame lie, if that is inside a chunk.
    fn frame(&self, address: u64, len: usize) -> Option<*mut u8> {
        let (address, all) = (address as usize, 2 * self.count as usize * CHUNK_LEN);
        let is_inside = address < all && address % CHUNK_LEN + len <= CHUNK_LEN;
        is_inside.then(|| self.start.wrapping_add(address))
    }
}

impl Device for Xdp {
    fn medium(&self) -> Medium {
        Medium::Ethernet
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn frame_max(&self) -> usize {
        FRAME_MAX
    }

    fn checksums(&self) -> Checksums {
        self.config.checksums
    }

    fn receive(&mut self, _now: Duration, into: &mut [u8]) -> Option<usize> {
        while let Some(found) = self.receive.take() {
            let len = found.len as usize;
            let tally = &mut self.counters.received;
            let Some(from) = self.memory.frame(found.addr, len) else {
                tally.dropped.malformed += 1;
                self.receive.release();
                continue;
            };
            let Some(to) = into.get_mut(..len) else {
                tally.dropped.too_long += 1;
                self.give_back(found.addr);
                continue;
            };
            // SAFETY: inside the caller's memory, which is not `into`.
            unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), len) };
            tally.add(len);
            self.give_back(found.addr);
            return Some(len);
        }
        None
    }

    fn has_room(&mut self) -> bool {
        if self.free.is_empty() {
            self.reap();
        }
        !self.free.is_empty()
    }

    fn send(&mut self, _now: Duration, frame: &[u8]) {
        if frame.len() > self.mtu + Medium::Ethernet.header_len() {
            self.counters.sent.dropped.too_long += 1;
            return;
        }
        if !self.has_room() {
            self.flush();
            self.reap();
        }
        let chunk = self.free.pop();
        let place = chunk.and_then(|at| Some((at, self.memory.frame(at, frame.len())?)));
        let Some((addr, to)) = place else {
            self.counters.sent.dropped.no_room += 1;
            return;
        };
        // SAFETY: inside the caller's memory; the chunk is not the kernel's.
        unsafe { to.copy_from_nonoverlapping(frame.as_ptr(), frame.len()) };
        self.send.put(libc::xdp_desc { addr, len: frame.len() as u32, options: 0 });
        self.send.publish();
        self.to_kick = true;
        self.counters.sent.add(frame.len());
    }

    fn flush(&mut self) {
        if !std::mem::take(&mut self.to_kick) {
            return;
        }
        for _ in 0..KICKS_MAX {
            let (fd, nothing) = (self.socket.as_raw_fd(), std::ptr::null());
            // SAFETY: sends no memory of its own.
            let sent =
                unsafe { libc::sendto(fd, nothing, 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
            // A batch at a time: EAGAIN says that there is more. Other errors say that the interface is
            // busy or down: what is in the ring goes with the next kick.
            let again = sent < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
            if !again || self.send.is_drained() {
                break;
            }
        }
        self.to_kick = !self.send.is_drained();
        self.reap();
    }

    fn counters(&self) -> Counters {
        let mut counters = self.counters;
        let kernel = rings::statistics(&self.socket);
        let dropped = &mut counters.received.dropped;
        dropped.no_room +=
            kernel.rx_dropped + kernel.rx_ring_full + kernel.rx_fill_ring_empty_descs;
        dropped.malformed += kernel.rx_invalid_descs;
        counters
    }

    fn arm(&mut self) -> io::Result<bool> {
        self.has_gone |= rings::has_lost_its_interface(&self.socket);
        if self.has_gone {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        self.flush();
        Ok(self.receive.is_empty())
    }

    fn waiter(&self) -> Arc<dyn Waiter> {
        Arc::<DescriptorWaiter>::clone(&self.waiter)
    }
}
