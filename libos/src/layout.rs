//! The map of the region, as offsets from its base.
//!
//! ```text
//! 0        control zone RO       superblock, handler table, extension table
//! 2 MiB    data zone RW          process table, contexts, log        (the common area)
//! 32 MiB   slots                 [code RX | data RW] each; slot 0 is libos
//! 512 MiB  data zone RW          arenas
//! len      private to a process  context cache, then one upcall stack per context
//! span     end
//! ```
//!
//! Offsets of the data zone's file equal offsets in the region, so that one mapping covers it and
//! the code halves are laid over it. The last part is reserved in every process but private: a
//! fork inside an upcall must not share a stack.

use core::ops::Range;

use ext_api::abi::{MAPS_MAX, MapRecord, ZONE_CODE, ZONE_CONTROL, ZONE_DATA, ZONE_PRIVATE};
use ext_api::limits::{
    BASE_MAX, BASE_MIN, CONTEXTS_MAX, HUGE_PAGE_LEN, LARGE_HALF_LEN, LARGE_SLOTS, PAGE_LEN,
    SLOTS_MAX, SMALL_HALF_LEN, SMALL_SLOTS, STACK_LEN,
};

use crate::clamps::{ClampTable, ProcessName};
use crate::signals::CallTable;

/// Length of the control zone.
pub const CONTROL_LEN: usize = HUGE_PAGE_LEN;
/// Offset of the handler table in the control zone.
pub const HANDLERS_OFFSET: usize = 64 << 10;
/// Offset of the extension table in the control zone.
pub const EXTENSIONS_OFFSET: usize = 16 << 10;

/// Offset of the hook table in the control zone: [`crate::signals::HookTable`].
pub const HOOKS_OFFSET: usize = 1 << 20;

/// Offset of the call table in the control zone: [`crate::signals::CallTable`].
pub const CALLS_OFFSET: usize = HOOKS_OFFSET + (64 << 10);

/// Offset of the clamps in the control zone: [`crate::clamps::ClampTable`].
pub const CLAMPS_OFFSET: usize = HOOKS_OFFSET + (256 << 10);
const _: () = assert!(CALLS_OFFSET + size_of::<CallTable>() <= CLAMPS_OFFSET);
const _: () = assert!(CLAMPS_OFFSET + size_of::<ClampTable>() <= CONTROL_LEN);

/// Offset of the common area: [`crate::data`].
pub const COMMON_OFFSET: usize = CONTROL_LEN;
/// Length of the common area.
pub const COMMON_LEN: usize = SLOTS_OFFSET - COMMON_OFFSET;

/// Offset of slot 0.
pub const SLOTS_OFFSET: usize = 32 << 20;
const SMALL_LEN: usize = 2 * SMALL_HALF_LEN;
const LARGE_OFFSET: usize = SLOTS_OFFSET + SMALL_SLOTS * SMALL_LEN;
const SLOTS_END: usize = LARGE_OFFSET + LARGE_SLOTS * 2 * LARGE_HALF_LEN;

/// Offset of the first arena.
pub const ARENAS_OFFSET: usize = 512 << 20;

/// Length of the shared part when nobody asks for another.
pub const LEN_DEFAULT: usize = 2 << 30;
/// Smallest shared part: a few arenas of default size.
pub const LEN_MIN: usize = 576 << 20;
/// Largest shared part.
pub const LEN_MAX: usize = 64 << 30;

/// Length of the private part: context cache, then stacks.
pub const PRIVATE_LEN: usize = CACHE_AREA_LEN + CONTEXTS_MAX * STACK_LEN;
/// What the context cache takes of the private part, and what a process knows of its sockets; whole huge pages keep the
/// stacks aligned.
pub const CACHE_AREA_LEN: usize = 4 * HUGE_PAGE_LEN;
/// Entries of the context cache. Threads of one process that make upcalls rarely exceed it.
pub const CACHE_ENTRIES: usize = 1024;
/// Bytes of one entry: the address of a context.
pub const CACHE_ENTRY_LEN: usize = 8;

/// What a process keeps for itself behind the cache: see `process` in the image.
pub const PROCESS_OFFSET: usize = 32 << 10;
/// Bytes at the front of the private part that are writable and wiped on fork.
pub const WIPED_LEN: usize = 64 << 10;

/// Offset in the private part of what a forked child inherits.
pub const KEPT_OFFSET: usize = WIPED_LEN;
/// Bytes of it.
pub const KEPT_LEN: usize = 64 << 10;

/// Offset in the private part of the name that the process was executed under, at the end of that.
pub const NAME_OFFSET: usize = KEPT_OFFSET + KEPT_LEN - size_of::<ProcessName>();

/// Offset in the private part of what a process knows of its carried sockets.
pub const SOCKETS_PRIVATE_OFFSET: usize = KEPT_OFFSET + KEPT_LEN;
/// Bytes of it.
pub const SOCKETS_PRIVATE_LEN: usize = CACHE_AREA_LEN - SOCKETS_PRIVATE_OFFSET;

/// What lies in an upcall stack's room of [`STACK_LEN`], from its lowest address: a guard page,
/// the alternate signal stack, another guard page, a second one, another guard page, the upcall
/// stack. The second one is for signals that come while a handler of the first one makes an upcall.
pub const ALT_STACK_OFFSET: usize = PAGE_LEN;
/// Length of an alternate signal stack: the kernel's largest frame (11 KiB with AMX) and what an
/// application's own handler may need that runs there. One that asks for an alternate stack (SA_ONSTACK) in a program
/// that has none expects what is left of the thread's own.
pub const ALT_STACK_LEN: usize = 128 << 10;
/// An alternate stack of a program's that libos's own handlers run on as well has this length at least: the kernel's
/// frame and what they need.
pub const OWN_STACK_MIN: usize = 16 << 10;
/// The guard page below the upcall stack.
pub const GUARD_OFFSET: usize = CALL_ROOM_OFFSET + CALL_ROOM_LEN;
/// A stack for calls from stacks that have no room for them: those of goroutines.
pub const CALL_ROOM_LEN: usize = (32 << 10) - SCRATCH_MARK_LEN;
/// See [`CALL_ROOM_LEN`].
pub const CALL_ROOM_OFFSET: usize = SCRATCH_OFFSET + SCRATCH_LEN + SCRATCH_MARK_LEN;
/// Behind the scratch room: its [`ScratchMark`](ext_api::abi::ScratchMark), and nothing else in its line of the cache.
const SCRATCH_MARK_LEN: usize = 64;
const _: () = assert!(size_of::<ext_api::abi::ScratchMark>() <= SCRATCH_MARK_LEN);
/// What arguments of a system call point to, as the kernel gets it: three paths.
pub const SCRATCH_LEN: usize = 3 * PAGE_LEN;
/// See [`SCRATCH_LEN`].
pub const SCRATCH_OFFSET: usize = SECOND_STACK_OFFSET + ALT_STACK_LEN;
/// The second alternate stack.
pub const SECOND_STACK_OFFSET: usize = ALT_STACK_OFFSET + ALT_STACK_LEN + PAGE_LEN;

/// How far below and above the place of its first upcall a thread's stack pointer may be for the
/// fast path to believe that it is the same thread. Only raw clones that share their parent's FS
/// base need it; anything outside of the window is settled by `gettid`.
pub const WINDOW_BELOW: usize = 128 << 10;
/// See [`WINDOW_BELOW`].
pub const WINDOW_LEN: usize = 160 << 10;

/// A region's place: base and length of the shared part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Address of the control zone.
    pub base: usize,
    /// Length of the shared part.
    pub len: usize,
}

impl Place {
    /// A place, if base and length are ones that a region may have.
    #[must_use]
    pub fn new(base: usize, len: usize) -> Option<Self> {
        let aligned = base.is_multiple_of(HUGE_PAGE_LEN) && len.is_multiple_of(HUGE_PAGE_LEN);
        let fits = (LEN_MIN..=LEN_MAX).contains(&len)
            && base >= BASE_MIN
            && base.checked_add(len + PRIVATE_LEN).is_some_and(|end| end <= BASE_MAX);
        (aligned && fits).then_some(Self { base, len })
    }

    /// Everything a participant reserves, shared and private.
    #[must_use]
    pub const fn span(&self) -> usize {
        self.len + PRIVATE_LEN
    }

    /// The shared part.
    #[must_use]
    pub const fn shared(&self) -> Range<usize> {
        self.base..self.base + self.len
    }

    /// Address of the context cache.
    #[must_use]
    pub const fn cache(&self) -> usize {
        self.base + self.len
    }

    /// Address of the first upcall stack.
    #[must_use]
    pub const fn stacks(&self) -> usize {
        self.base + self.len + CACHE_AREA_LEN
    }

    /// Code half of slot `slot`.
    #[must_use]
    pub const fn code_half(&self, slot: usize) -> Range<usize> {
        let (offset, half) = slot_offset(slot);
        self.base + offset..self.base + offset + half
    }

    /// The slot that `address` lies in.
    #[must_use]
    #[inline]
    pub const fn slot_of(&self, address: usize) -> Option<usize> {
        let offset = address.wrapping_sub(self.base);
        if offset < SLOTS_OFFSET || offset >= SLOTS_END {
            None
        } else if offset < LARGE_OFFSET {
            Some((offset - SLOTS_OFFSET) / SMALL_LEN)
        } else {
            Some(SMALL_SLOTS + (offset - LARGE_OFFSET) / (2 * LARGE_HALF_LEN))
        }
    }

    /// Data half of slot `slot`.
    #[must_use]
    pub const fn data_half(&self, slot: usize) -> Range<usize> {
        let (offset, half) = slot_offset(slot);
        self.base + offset + half..self.base + offset + 2 * half
    }
}

/// Offset of slot `slot`, and the length of one of its halves.
#[must_use]
pub const fn slot_offset(slot: usize) -> (usize, usize) {
    if slot < SMALL_SLOTS {
        (SLOTS_OFFSET + slot * SMALL_LEN, SMALL_HALF_LEN)
    } else {
        (LARGE_OFFSET + (slot - SMALL_SLOTS) * 2 * LARGE_HALF_LEN, LARGE_HALF_LEN)
    }
}

/// Offset of slot `slot`'s code half in the code zone's file, which holds nothing else.
#[must_use]
pub const fn code_file_offset(slot: usize) -> usize {
    if slot < SMALL_SLOTS {
        slot * SMALL_HALF_LEN
    } else {
        SMALL_SLOTS * SMALL_HALF_LEN + (slot - SMALL_SLOTS) * LARGE_HALF_LEN
    }
}

/// Length of the code zone's file.
pub const CODE_FILE_LEN: usize = code_file_offset(SLOTS_MAX);

/// Mappings of a participant before those of slots.
pub const MAPS_BEFORE_SLOTS: usize = 3;

/// What a participant maps, in order: reservation, control, data, then each slot's code half. Of a sandbox
/// that nothing can be loaded into, no slot but that of libos.
pub fn maps(place: Place) -> impl Iterator<Item = MapRecord> {
    const READ: u32 = 1;
    const READ_WRITE: u32 = 3;
    const READ_EXECUTE: u32 = 5;
    let record = move |offset: usize, len: usize, prot, zone, file_offset: usize| MapRecord {
        addr: (place.base + offset) as u64,
        len: len as u64,
        prot,
        zone,
        offset: file_offset as u64,
    };
    [
        record(0, place.span(), 0, ZONE_PRIVATE, 0),
        record(0, CONTROL_LEN, READ, ZONE_CONTROL, 0),
        record(COMMON_OFFSET, place.len - COMMON_OFFSET, READ_WRITE, ZONE_DATA, COMMON_OFFSET),
    ]
    .into_iter()
    .chain((0..SLOTS_MAX).map(move |slot| {
        let (offset, half) = slot_offset(slot);
        record(offset, half, READ_EXECUTE, ZONE_CODE, code_file_offset(slot))
    }))
}

const _: () = assert!(MAPS_BEFORE_SLOTS + SLOTS_MAX <= MAPS_MAX);
const _: () = assert!(SLOTS_END <= ARENAS_OFFSET);
const _: () = assert!(LARGE_OFFSET.is_multiple_of(HUGE_PAGE_LEN));
const _: () = assert!(LEN_MIN > ARENAS_OFFSET);
const _: () = assert!(CACHE_ENTRIES.is_power_of_two());
const _: () = assert!(CACHE_ENTRIES * CACHE_ENTRY_LEN <= PROCESS_OFFSET);
const _: () = assert!(PROCESS_OFFSET < WIPED_LEN && KEPT_OFFSET + KEPT_LEN <= CACHE_AREA_LEN);
const _: () = assert!(BASE_MAX - BASE_MIN >= LEN_MAX + PRIVATE_LEN);
const _: () = assert!(STACK_LEN < HUGE_PAGE_LEN && HUGE_PAGE_LEN.is_multiple_of(STACK_LEN));

#[cfg(test)]
mod tests {
    use super::{Place, code_file_offset, slot_offset};
    use ext_api::limits::{BASE_MAX, BASE_MIN, SLOTS_MAX};

    #[test]
    fn slots_neither_overlap_nor_leave_their_area() {
        let mut end = super::SLOTS_OFFSET;
        let mut file_end = 0;
        for slot in 0..SLOTS_MAX {
            let (offset, half) = slot_offset(slot);
            assert_eq!(offset, end);
            assert_eq!(code_file_offset(slot), file_end);
            end = offset + 2 * half;
            file_end += half;
        }
        assert!(end <= super::ARENAS_OFFSET);
    }

    #[test]
    fn a_place_outside_of_the_range_is_refused() {
        assert!(Place::new(BASE_MIN, super::LEN_DEFAULT).is_some());
        assert!(Place::new(BASE_MIN - (2 << 20), super::LEN_DEFAULT).is_none());
        assert!(Place::new(BASE_MAX - (2 << 20), super::LEN_DEFAULT).is_none());
        assert!(Place::new(BASE_MIN + 4096, super::LEN_DEFAULT).is_none());
        assert!(Place::new(BASE_MIN, super::LEN_MIN - (2 << 20)).is_none());
        assert!(Place::new(usize::MAX & !((2 << 20) - 1), super::LEN_DEFAULT).is_none());
    }
}
