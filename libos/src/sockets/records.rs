//! Records in a direction's ring: sockets that keep the bounds of what is sent.
//!
//! ```text
//!  position, a multiple of 8 ──► | length: 8 bytes | bytes ... | up to 7 of nothing |
//! ```
//!
//! A record is in the ring whole, or goes by the kernel. There, records are counted, not their bytes: one may
//! be empty. A bell is a record as well, of words that were drawn when the sandbox was made; a program's own
//! is taken for it once in 2^256.

use super::{Connection, Direction, PAIR, Sockets};
use crate::sync::Ordering;

/// What precedes a record's bytes.
pub const HEADER: usize = 8;
/// Bytes of the longest record that goes by a ring.
pub const RECORD_MAX: usize = 64 << 10;
/// Words of a bell.
pub const BELL_WORDS: usize = 4;

/// Types of sockets.
pub const STREAM: u32 = 1;
/// Without an end.
pub const DATAGRAM: u32 = 2;
/// With connections and their ends.
pub const SEQPACKET: u32 = 5;

/// What a record takes of a ring.
#[must_use]
pub const fn record_len(len: usize) -> usize {
    HEADER + len.next_multiple_of(HEADER)
}

impl Connection {
    /// Type of its sockets.
    #[must_use]
    #[inline]
    pub fn socket_type(&self) -> u32 {
        self.kind.load(Ordering::Relaxed) & !PAIR
    }

    /// Do its sockets keep the bounds of what is sent?
    #[must_use]
    #[inline]
    pub fn has_records(&self) -> bool {
        matches!(self.socket_type(), DATAGRAM | SEQPACKET)
    }

    /// Bytes of the program's that `direction` of it has carried.
    #[must_use]
    pub fn carried(&self, direction: &Direction) -> u64 {
        let reading = &direction.reading;
        if self.is_inlet() {
            // Counted apart.
            return 0;
        }
        let is_apart = self.has_records() || self.is_counter();
        let of = if is_apart { &reading.record_bytes } else { &reading.head };
        of.load(Ordering::Relaxed)
    }

    /// Bytes of the program's that have come by the kernel instead.
    #[must_use]
    pub fn by_kernel(&self, direction: &Direction) -> u64 {
        let waiting = &direction.waiting;
        let is_apart = self.has_records() || self.is_counter();
        let of = if is_apart { &waiting.kernel_bytes } else { &waiting.kernel_read };
        of.load(Ordering::Relaxed)
    }
}

impl Direction {
    /// Bytes of the ring that `position` is in.
    #[must_use]
    pub fn ring_len(&self, position: u64) -> usize {
        let has_large = self.large.load(Ordering::Acquire) != 0;
        let in_large = has_large && position >= self.large_from.load(Ordering::Acquire);
        if in_large { super::LARGE_RING } else { super::SMALL_RING }
    }

    /// Bytes of the record with this header, of a ring that has `filled` bytes from there on. None if there is
    /// no such record.
    #[must_use]
    pub const fn checked_len(header: u64, filled: usize) -> Option<usize> {
        let len = header as usize;
        if header > RECORD_MAX as u64 || filled < HEADER || record_len(len) > filled {
            return None;
        }
        Some(len)
    }
}

impl Sockets {
    /// What a bell consists of.
    #[must_use]
    pub fn bell(&self) -> [u64; BELL_WORDS] {
        self.bell.each_ref().map(|word| word.load(Ordering::Relaxed))
    }
}

const _: () = assert!(record_len(RECORD_MAX) <= super::LARGE_RING);
const _: () = assert!(super::SMALL_RING.is_multiple_of(HEADER));
