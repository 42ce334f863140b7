//! Memory of the program's, which may not be there.

use core::mem::MaybeUninit;

use libos::sockets::Direction;
use libos::sockets::copying::LARGE_COPY;

use crate::arch::{copy_or_fail, copy_past_or_fail};
use crate::time;

/// A value of the program's, if it can be read.
pub(super) fn read<T: Copy>(at: usize) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    copy(value.as_mut_ptr() as usize, at, size_of::<T>()).then(|| {
        // SAFETY: all of it has been copied; every `T` here is made of integers.
        unsafe { value.assume_init() }
    })
}

/// Give a value to the program. False if it cannot be written.
pub(super) fn write<T: Copy>(at: usize, value: &T) -> bool {
    copy(at, core::ptr::from_ref(value) as usize, size_of::<T>())
}

/// Copy bytes, one side of which is the program's. False if not all could be.
pub(super) fn copy(to: usize, from: usize, len: usize) -> bool {
    // SAFETY: one side is memory of ours of this length; the other is the program's, which if it is not
    // there or is anything else of the region's fails or is what the program could do itself.
    unsafe { copy_or_fail(to, from, len) == 0 }
}

/// The same with stores past the caches, of a cache line at least.
fn copy_past(to: usize, from: usize, len: usize) -> bool {
    // SAFETY: as above.
    unsafe { copy_past_or_fail(to, from, len) }
}

/// Copy bytes of the program's into a ring. False if not all could be.
pub(super) fn copy_in(direction: &Direction, to: usize, from: usize, len: usize) -> bool {
    if len < LARGE_COPY {
        return copy(to, from, len);
    }
    let copying = &direction.writing.copying;
    let (is_past, began) = (copying.is_past_caches(), time::now_ns());
    let is_done = if is_past { copy_past(to, from, len) } else { copy(to, from, len) };
    copying.note(is_past, len, time::now_ns().saturating_sub(began));
    is_done
}

/// What a call reads from or writes to, piece by piece.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pieces {
    at: usize,
    len: usize,
    vectors: usize,
    left: usize,
}

/// `IOV_MAX`.
const VECTORS_MAX: usize = 1024;

impl Pieces {
    pub(super) const fn one(at: usize, len: usize) -> Self {
        Self { at, len, vectors: 0, left: 0 }
    }

    pub(super) const fn many(vectors: usize, count: usize) -> Self {
        Self { at: 0, len: 0, vectors, left: count }
    }

    /// Bytes of all; None if that is for the kernel to judge.
    pub(super) fn total(mut self) -> Option<usize> {
        if self.left > VECTORS_MAX {
            return None;
        }
        let mut sum = 0usize;
        while let Some((_, len)) = self.next_up_to(usize::MAX)? {
            sum = sum.checked_add(len)?;
        }
        isize::try_from(sum).ok().map(|_| sum)
    }

    /// The next so many bytes, at most; `Some(None)` at the end; None where vectors cannot be read.
    pub(super) fn next_up_to(&mut self, most: usize) -> Option<Option<(usize, usize)>> {
        while self.len == 0 {
            if self.left == 0 {
                return Some(None);
            }
            let [at, len] = read::<[usize; 2]>(self.vectors)?;
            (self.at, self.len) = (at, len);
            (self.vectors, self.left) = (self.vectors + 16, self.left - 1);
        }
        let len = self.len.min(most);
        let piece = (self.at, len);
        (self.at, self.len) = (self.at.wrapping_add(len), self.len - len);
        Some(Some(piece))
    }

    /// The last so many bytes of the piece that was given last are next again.
    pub(super) const fn unread(&mut self, len: usize) {
        (self.at, self.len) = (self.at.wrapping_sub(len), self.len + len);
    }
}
