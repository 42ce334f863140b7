//! The buffers that the kernel has to fill, and the ring by which it gets them. The ring's memory is ours
//! alone; the kernel takes from it in order.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use ext_api::limits::{BUFFER_LEN, BUFFERS_MAX};
use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use crate::buffers::Lease;
use crate::engine::driver::Filled;

/// Entries of the ring: room for all, and a power of two.
const ENTRIES: u16 = BUFFERS_MAX.next_power_of_two() as u16;
/// Fill a buffer bit by bit (IOU_PBUF_RING_INC).
const INCREMENTAL: u16 = 2;

/// See the module.
pub(super) struct Lent {
    entries: *mut BufRingEntry,
    tail: u16,
    addresses: Vec<*mut u8>,
    leases: Vec<Option<Lease>>,
    /// In the order in which the kernel takes them.
    order: VecDeque<u16>,
    count: usize,
    /// How many bytes of each are filled, if that is done bit by bit.
    taken: Vec<usize>,
}

impl Lent {
    const LAYOUT: Layout =
        match Layout::from_size_align(ENTRIES as usize * size_of::<BufRingEntry>(), 4096) {
            Ok(layout) => layout,
            Err(_) => panic!("a page is a valid alignment"),
        };

    /// A ring that no kernel knows yet.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: the layout is not empty.
        let entries = unsafe { alloc_zeroed(Self::LAYOUT) }.cast::<BufRingEntry>();
        if entries.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Self {
            entries,
            tail: 0,
            addresses: vec![std::ptr::null_mut(); BUFFERS_MAX],
            leases: (0..BUFFERS_MAX).map(|_| None).collect(),
            order: VecDeque::with_capacity(BUFFERS_MAX),
            count: 0,
            taken: vec![0; BUFFERS_MAX],
        })
    }

    /// Have it give out the buffers of `group`; it must not be dropped before `ring`.
    pub(super) fn register(&self, ring: &IoUring, group: u16, incremental: bool) -> io::Result<()> {
        let (at, flags) = (self.entries.addr() as u64, if incremental { INCREMENTAL } else { 0 });
        // SAFETY: as many entries lie there, and they stay until the value is dropped, which is after
        // the ring, by contract.
        unsafe { ring.submitter().register_buf_ring_with_flags(at, ENTRIES, group, flags) }
    }

    pub(super) const fn count(&self) -> usize {
        self.count
    }

    pub(super) fn address(&self, index: usize) -> *mut u8 {
        self.addresses[index]
    }

    /// The kernel may fill it, which lies at `at`, when that is published.
    pub(super) fn put(&mut self, lease: Lease, at: *mut u8) {
        let (index, len) = (lease.index(), lease.room());
        self.addresses[index] = at;
        self.leases[index] = Some(lease);
        self.taken[index] = 0;
        self.order.push_back(index as u16);
        self.count += 1;
        let entry = self.entries.wrapping_add(usize::from(self.tail % ENTRIES));
        // SAFETY: within the ring; the kernel reads it once the tail is beyond it. The tail of the ring
        // lies in a field of the first entry that is not written here.
        let entry = unsafe { &mut *entry };
        entry.set_addr(at.addr() as u64);
        entry.set_len(len as u32);
        entry.set_bid(index as u16);
        self.tail = self.tail.wrapping_add(1);
    }

    pub(super) fn publish(&self) {
        // SAFETY: the first entry is there.
        let tail = unsafe { BufRingEntry::tail(self.entries) };
        // SAFETY: the kernel only reads it; aligned to two bytes.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// The kernel has no use for this one any more.
    pub(super) fn whole(&mut self, index: usize) -> Option<Lease> {
        let lease = self.leases.get_mut(index)?.take()?;
        let place = self.order.iter().position(|one| usize::from(*one) == index);
        place.and_then(|place| self.order.remove(place));
        self.count -= 1;
        Some(lease)
    }

    /// Nothing is in it: the next one gets it.
    pub(super) fn untouched(&mut self, index: usize) {
        let at = self.addresses.get(index).copied();
        if let Some((lease, at)) = self.whole(index).zip(at) {
            self.put(lease, at);
        }
    }

    /// `len` bytes have come, from buffer `first` on; the kernel puts `more` into it. Tell of each buffer
    /// where in it they begin, and how many they are.
    pub(super) fn filled(
        &mut self,
        first: usize,
        len: usize,
        more: bool,
        mut tell: impl FnMut(Filled, usize, usize),
    ) {
        let Some(start) = self.taken.get(first).copied() else { return };
        if more {
            self.taken[first] = start + len;
            return tell(Filled::Part(first), start, len);
        }
        let (mut index, mut start, mut left) = (first, start, len);
        while left > 0 {
            let next = self.after(index);
            let Some(lease) = self.whole(index) else { return };
            let here = left.min(BUFFER_LEN - start);
            tell(Filled::Whole(lease), start, here);
            left -= here;
            let Some(next) = next else { return };
            (index, start) = (next, 0);
        }
    }

    /// The one that the kernel takes next.
    fn after(&self, index: usize) -> Option<usize> {
        let place = self.order.iter().position(|one| usize::from(*one) == index)?;
        self.order.get(place + 1).map(|next| usize::from(*next))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: made with the same layout; the kernel's ring is gone.
        unsafe { dealloc(self.entries.cast(), Self::LAYOUT) };
    }
}
