//! The four rings of an AF_XDP socket, and what has to be said to the kernel to have them.
//!
//! One side produces, the other consumes; each has a position that only grows. Who reads the other's
//! position acquires, who writes its own releases, so that an entry is there before its position.
#![expect(unsafe_code, reason = "memory that is shared with the kernel, and socket options")]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{null_mut, slice_from_raw_parts_mut};
use std::sync::atomic::{AtomicU32, Ordering};

use super::CHUNK_LEN;
use crate::device::{OpenError, Step};

/// Tell the kernel of the memory.
///
/// # Safety
/// It must stay for as long as the socket does.
pub(super) unsafe fn register(
    socket: &OwnedFd,
    name: &str,
    memory: *mut u8,
    len: usize,
) -> Result<(), OpenError> {
    let memory = libc::xdp_umem_reg {
        addr: memory.addr() as u64,
        len: len as u64,
        chunk_size: CHUNK_LEN as u32,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    set(socket, libc::XDP_UMEM_REG, &memory)
        .map_err(|error| OpenError::new(Step::Memory, name, error))
}

fn set<T>(socket: &OwnedFd, option: i32, value: &T) -> io::Result<()> {
    let (fd, len) = (socket.as_raw_fd(), size_of::<T>() as u32);
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the kernel reads a value of that size.
    if unsafe { libc::setsockopt(fd, libc::SOL_XDP, option, value, len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Read a structure of numbers.
fn get<T>(socket: &OwnedFd, option: i32) -> io::Result<T> {
    let (fd, mut len) = (socket.as_raw_fd(), size_of::<T>() as u32);
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let to = value.as_mut_ptr().cast();
    // SAFETY: the kernel writes that many octets at most.
    if unsafe { libc::getsockopt(fd, libc::SOL_XDP, option, to, &raw mut len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeros, or what the kernel wrote: numbers either way.
    Ok(unsafe { value.assume_init() })
}

/// What the kernel counts.
pub(super) fn statistics(socket: &OwnedFd) -> libc::xdp_statistics {
    get(socket, libc::XDP_STATISTICS).unwrap_or(libc::xdp_statistics {
        rx_dropped: 0,
        rx_invalid_descs: 0,
        tx_invalid_descs: 0,
        rx_ring_full: 0,
        rx_fill_ring_empty_descs: 0,
        tx_ring_empty_descs: 0,
    })
}

/// Whether the interface has been removed: the kernel says so once.
pub(super) fn has_lost_its_interface(socket: &OwnedFd) -> bool {
    let (mut error, mut len) = (0i32, size_of::<i32>() as u32);
    let (fd, to) = (socket.as_raw_fd(), (&raw mut error).cast());
    // SAFETY: an integer and its length.
    unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, to, &raw mut len) };
    error == libc::ENETDOWN
}

/// Bind to a queue, for copying.
pub(super) fn bind(socket: &OwnedFd, name: &str, index: u32, queue: u32) -> Result<(), OpenError> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_COPY,
        sxdp_ifindex: index,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let len = size_of_val(&address) as u32;
    // SAFETY: the kernel reads that many octets.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(OpenError::last(Step::Bind, name));
    }
    Ok(())
}

/// Where one ring is in the socket's mapping.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    at: libc::xdp_ring_offset,
    page: i64,
    count: u32,
}

/// Where the rings are.
#[derive(Debug)]
pub(super) struct Offsets {
    all: libc::xdp_mmap_offsets,
    count: u32,
}

impl Offsets {
    /// Have the kernel make four rings of `count` entries.
    pub(super) fn make(socket: &OwnedFd, name: &str, count: u32) -> Result<Self, OpenError> {
        let failed = |error| OpenError::new(Step::Memory, name, error);
        let rings = [
            libc::XDP_UMEM_FILL_RING,
            libc::XDP_UMEM_COMPLETION_RING,
            libc::XDP_RX_RING,
            libc::XDP_TX_RING,
        ];
        for ring in rings {
            set(socket, ring, &count).map_err(failed)?;
        }
        Ok(Self { all: get(socket, libc::XDP_MMAP_OFFSETS).map_err(failed)?, count })
    }

    pub(super) fn fill(&self) -> Place {
        let page = libc::XDP_UMEM_PGOFF_FILL_RING.cast_signed();
        Place { at: self.all.fr, page, count: self.count }
    }

    pub(super) fn complete(&self) -> Place {
        let page = libc::XDP_UMEM_PGOFF_COMPLETION_RING.cast_signed();
        Place { at: self.all.cr, page, count: self.count }
    }

    pub(super) fn receive(&self) -> Place {
        Place { at: self.all.rx, page: libc::XDP_PGOFF_RX_RING, count: self.count }
    }

    pub(super) fn send(&self) -> Place {
        Place { at: self.all.tx, page: libc::XDP_PGOFF_TX_RING, count: self.count }
    }
}

/// A ring, either side of it.
#[derive(Debug)]
pub(super) struct Queue<T> {
    mapping: *mut [u8],
    producer: *const AtomicU32,
    consumer: *const AtomicU32,
    entries: *mut T,
    mask: u32,
    /// Our position: as a producer what has been put, as a consumer what has been taken.
    own: u32,
    of: PhantomData<T>,
}

// SAFETY: a mapping that any thread may use; one at a time does, since it is used through `&mut`.
unsafe impl<T> Send for Queue<T> {}

impl<T: Copy> Queue<T> {
    pub(super) fn map(socket: &OwnedFd, name: &str, place: Place) -> Result<Self, OpenError> {
        let len = place.at.desc as usize + place.count as usize * size_of::<T>();
        let (rights, fd) = (libc::PROT_READ | libc::PROT_WRITE, socket.as_raw_fd());
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping, wherever there is room.
        let start = unsafe { libc::mmap(null_mut(), len, rights, flags, fd, place.page) };
        if start == libc::MAP_FAILED {
            return Err(OpenError::last(Step::Memory, name));
        }
        let start = start.cast::<u8>();
        Ok(Self {
            mapping: slice_from_raw_parts_mut(start, len),
            producer: start.wrapping_add(place.at.producer as usize).cast(),
            consumer: start.wrapping_add(place.at.consumer as usize).cast(),
            entries: start.wrapping_add(place.at.desc as usize).cast(),
            mask: place.count - 1,
            own: 0,
            of: PhantomData,
        })
    }

    const fn producer(&self) -> &AtomicU32 {
        // SAFETY: in the mapping, where the kernel has such a word.
        unsafe { &*self.producer }
    }

    const fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { &*self.consumer }
    }

    const fn entry(&self, position: u32) -> *mut T {
        self.entries.wrapping_add((position & self.mask) as usize)
    }

    /// As a producer: put an entry, which is seen once it is published. There is room, since no more
    /// entries exist than fit.
    pub(super) fn put(&mut self, entry: T) {
        // SAFETY: inside the mapping; the kernel does not read it before it is published.
        unsafe { self.entry(self.own).write(entry) };
        self.own = self.own.wrapping_add(1);
    }

    /// As a producer: let the kernel see what was put.
    pub(super) fn publish(&self) {
        self.producer().store(self.own, Ordering::Release);
    }

    /// As a producer: whether the kernel has taken everything.
    pub(super) fn is_drained(&self) -> bool {
        self.consumer().load(Ordering::Acquire) == self.own
    }

    /// As a consumer: whether there is nothing to take.
    pub(super) fn is_empty(&self) -> bool {
        self.producer().load(Ordering::Acquire) == self.own
    }

    /// As a consumer: the next entry.
    pub(super) fn take(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: inside the mapping, and written before the position that was just acquired.
        let entry = unsafe { self.entry(self.own).read() };
        self.own = self.own.wrapping_add(1);
        Some(entry)
    }

    /// As a consumer: let the kernel have the places of what was taken.
    pub(super) fn release(&self) {
        self.consumer().store(self.own, Ordering::Release);
    }
}

impl<T> Drop for Queue<T> {
    fn drop(&mut self) {
        // SAFETY: our mapping, which nobody else points into.
        unsafe { libc::munmap(self.mapping.cast(), self.mapping.len()) };
    }
}
