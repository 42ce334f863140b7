//! Pipes: connections of one direction, from side [`WRITER`] to side [`READER`].
//!
//! What names an end is the pipe's inode and the way in which it is open. As many bytes may be under way by the
//! ring as the program lets be in the pipe, and a write that the kernel would not break apart is in the ring
//! whole, or in the pipe.

use super::{Connection, Direction, LARGE_RING};
use crate::sync::Ordering;

/// In [`Connection::kind`], in the place of a type of sockets.
pub const PIPE: u32 = 8;
/// The side that writes.
pub const WRITER: usize = 0;
/// The side that reads.
pub const READER: usize = 1;
/// Bytes that are written as one (`PIPE_BUF`).
pub const WHOLE_MAX: usize = 4096;
/// What a pipe holds unless the program says otherwise.
pub const CAPACITY: usize = 64 << 10;

/// In [`Side::cookie`](super::Side::cookie): of an end of a pipe. No socket has such a number.
const COOKIE: u64 = 1 << 63;
const READER_BIT: u32 = 62;
const DEVICE_BIT: u32 = 32;
const DEVICE: u64 = (1 << (READER_BIT - DEVICE_BIT)) - 1;

/// What stands for a socket's cookie, of an end of the pipe that `device` and `inode` name.
#[must_use]
pub const fn cookie(device: u64, inode: u64, side: usize) -> u64 {
    let side = (side as u64 & 1) << READER_BIT;
    COOKIE | side | (device & DEVICE) << DEVICE_BIT | inode as u32 as u64
}

impl Connection {
    /// Is it a pipe?
    #[must_use]
    #[inline]
    pub fn is_pipe(&self) -> bool {
        self.kind.load(Ordering::Relaxed) == PIPE
    }

    /// Of `direction`'s ring, bytes that stay free since the pipe would not hold so many.
    #[must_use]
    pub fn kept_free(&self, direction: &Direction) -> usize {
        if !self.is_pipe() || direction.large.load(Ordering::Acquire) == 0 {
            return 0;
        }
        LARGE_RING.saturating_sub(self.record_max.load(Ordering::Relaxed) as usize)
    }
}

/// How many of the next bytes, of a write of `total`, have to go the same way. Of sockets, too: the kernel promises
/// nothing there, but does not break so few apart, and programs that write to one together, as to a log, rely on it.
#[must_use]
pub const fn unbroken(total: usize) -> usize {
    if total <= WHOLE_MAX { total } else { 1 }
}

const _: () = assert!(WHOLE_MAX <= super::SMALL_RING);
const _: () = assert!(CAPACITY == super::records::RECORD_MAX, "rows begin with that");
const _: () = assert!(CAPACITY <= LARGE_RING);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{CAPACITY, LARGE_RING, PIPE, READER, WHOLE_MAX, WRITER, cookie, unbroken};
    use crate::sockets::{Connection, Direction};
    use crate::sync::Ordering::Relaxed;

    fn pipe() -> Connection {
        let connection = Connection::default();
        connection.kind.store(PIPE, Relaxed);
        connection.record_max.store(CAPACITY as u32, Relaxed);
        connection
    }

    #[test]
    fn ends_of_pipes_differ_in_side_inode_and_device() {
        let one = cookie(14, 77, WRITER);
        assert_eq!(one, cookie(14, 77, WRITER));
        for other in [cookie(14, 77, READER), cookie(15, 77, WRITER), cookie(14, 78, WRITER)] {
            assert_ne!(one, other);
        }
        assert!(one > u64::from(u32::MAX) << 24, "no socket has such a cookie");
    }

    #[test]
    fn no_more_is_under_way_by_a_large_ring_than_the_pipe_holds() {
        let pipe = pipe();
        let direction = Direction::default();
        assert_eq!(pipe.kept_free(&direction), 0);
        direction.large.store(1, Relaxed);
        assert_eq!(direction.room().1 - pipe.kept_free(&direction), CAPACITY);
        direction.tail.store(CAPACITY as u64, Relaxed);
        assert_eq!(direction.room().1, pipe.kept_free(&direction));
        pipe.record_max.store(LARGE_RING as u32 * 4, Relaxed);
        assert_eq!(pipe.kept_free(&direction), 0);
    }

    #[test]
    fn what_the_kernel_writes_as_one_is_not_broken_apart() {
        assert_eq!(unbroken(WHOLE_MAX), WHOLE_MAX);
        assert_eq!(unbroken(WHOLE_MAX + 1), 1);
    }
}
