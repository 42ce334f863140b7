//! mem* and str*: what compilers and std take for granted.
//!
//! Short copies are two overlapping loads and stores; long ones are `rep movsb`, which is at full
//! speed on every CPU that has FSRM. Written with the string instructions and unaligned vector
//! moves, so that the compiler cannot turn a loop here into a call to itself.

use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128};
use core::ffi::{c_char, c_int, c_void};

use crate::arch::{copy_backwards, copy_forwards, fill};

/// `memcpy(3)`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: memmove asks for less.
    unsafe { memmove(to, from, len) }
}

/// `memmove(3)`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: by contract `len` bytes are readable and writable; each branch stays within them,
    // and loads everything before it stores anything.
    unsafe {
        match len {
            0 => {}
            1..=3 => {
                let (first, middle, last) =
                    (from.read(), from.add(len / 2).read(), from.add(len - 1).read());
                to.write(first);
                to.add(len / 2).write(middle);
                to.add(len - 1).write(last);
            }
            4..=7 => ends::<u32>(to, from, len),
            8..=16 => ends::<u64>(to, from, len),
            17..=32 => ends::<__m128i>(to, from, len),
            33..=64 => quarters(to, from, len),
            65..=128 => eighths(to, from, len),
            _ if (to as usize).wrapping_sub(from as usize) >= len => copy_forwards(to, from, len),
            _ => copy_backwards(to, from, len),
        }
    }
    to
}

/// Copy `len` bytes, at least one and at most two `T`.
unsafe fn ends<T: Copy>(to: *mut u8, from: *const u8, len: usize) {
    let tail = len - size_of::<T>();
    // SAFETY: both places lie within the `len` bytes of the caller's contract.
    unsafe {
        let (a, b) =
            (from.cast::<T>().read_unaligned(), from.add(tail).cast::<T>().read_unaligned());
        to.cast::<T>().write_unaligned(a);
        to.add(tail).cast::<T>().write_unaligned(b);
    }
}

/// Copy 33 to 64 bytes.
unsafe fn quarters(to: *mut u8, from: *const u8, len: usize) {
    let at = [0, 16, len - 32, len - 16];
    // SAFETY: 16 bytes at each place lie within `len`.
    unsafe {
        let parts = at.map(|offset| _mm_loadu_si128(from.add(offset).cast()));
        for (offset, part) in at.into_iter().zip(parts) {
            _mm_storeu_si128(to.add(offset).cast(), part);
        }
    }
}

/// Copy 65 to 128 bytes.
unsafe fn eighths(to: *mut u8, from: *const u8, len: usize) {
    let at = [0, 16, 32, 48, len - 64, len - 48, len - 32, len - 16];
    // SAFETY: 16 bytes at each place lie within `len`.
    unsafe {
        let parts = at.map(|offset| _mm_loadu_si128(from.add(offset).cast()));
        for (offset, part) in at.into_iter().zip(parts) {
            _mm_storeu_si128(to.add(offset).cast(), part);
        }
    }
}

/// `memset(3)`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, byte: c_int, len: usize) -> *mut u8 {
    // SAFETY: by contract.
    unsafe { fill(to, byte as u8, len) };
    to
}

/// `memcmp(3)`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> c_int {
    let mut at = 0;
    while at + 8 <= len {
        // SAFETY: eight bytes at `at` lie within both.
        let (x, y) = unsafe {
            (a.add(at).cast::<u64>().read_unaligned(), b.add(at).cast::<u64>().read_unaligned())
        };
        if x != y {
            let (x, y) = (x.swap_bytes(), y.swap_bytes());
            return if x < y { -1 } else { 1 };
        }
        at += 8;
    }
    while at < len {
        // SAFETY: `at` lies within both.
        let (x, y) = unsafe { (a.add(at).read(), b.add(at).read()) };
        if x != y {
            return c_int::from(x) - c_int::from(y);
        }
        at += 1;
    }
    0
}

/// `bcmp(3)`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> c_int {
    // SAFETY: same contract.
    unsafe { memcmp(a, b, len) }
}

/// `strlen(3)`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn strlen(text: *const c_char) -> usize {
    let mut len = 0;
    // SAFETY: the text ends with a zero; `black_box` keeps the loop from becoming a call to us.
    while unsafe { core::hint::black_box(text).add(len).read() } != 0 {
        len += 1;
    }
    len
}

/// `memchr(3)`.
///
/// # Safety
/// As in C.
pub(crate) unsafe extern "C" fn memchr(from: *const u8, byte: c_int, len: usize) -> *const u8 {
    for offset in 0..len {
        // SAFETY: within `len`.
        let at = unsafe { from.add(offset) };
        // SAFETY: as above.
        if unsafe { at.read() } == byte as u8 {
            return at;
        }
    }
    core::ptr::null()
}

/// `memrchr(3)`.
///
/// # Safety
/// As in C.
pub(crate) unsafe extern "C" fn memrchr(from: *const u8, byte: c_int, len: usize) -> *const u8 {
    for offset in (0..len).rev() {
        // SAFETY: within `len`.
        let at = unsafe { from.add(offset) };
        // SAFETY: as above.
        if unsafe { at.read() } == byte as u8 {
            return at;
        }
    }
    core::ptr::null()
}

/// `strcmp(3)`.
///
/// # Safety
/// As in C.
pub(crate) unsafe extern "C" fn strcmp(a: *const u8, b: *const u8) -> c_int {
    let mut at = 0;
    loop {
        // SAFETY: neither text has ended before `at`.
        let (x, y) = unsafe { (a.add(at).read(), b.add(at).read()) };
        if x != y || x == 0 {
            return c_int::from(x) - c_int::from(y);
        }
        at += 1;
    }
}

/// `__xpg_strerror_r(3)`: names what region code most often meets.
///
/// # Safety
/// As in C.
pub(crate) unsafe extern "C" fn strerror_r(errno: c_int, to: *mut c_void, len: usize) -> c_int {
    let text: &[u8] = match errno {
        1 => b"operation not permitted\0",
        2 => b"no such file or directory\0",
        4 => b"interrupted system call\0",
        9 => b"bad file descriptor (it belongs to the process that opened it)\0",
        11 => b"resource temporarily unavailable\0",
        12 => b"cannot allocate memory\0",
        13 => b"permission denied\0",
        17 => b"file exists\0",
        22 => b"invalid argument\0",
        28 => b"no space left on device\0",
        38 => b"function not implemented in the region\0",
        110 => b"connection timed out\0",
        crate::threads::NO_THREADS => {
            b"pthread_create is refused: an extension runs in its callers' threads\0"
        }
        crate::threads::NO_FORK => b"fork is refused in an extension\0",
        crate::threads::NO_EXEC => b"exec is refused in an extension\0",
        _ => b"error of the kernel\0",
    };
    let len = text.len().min(len);
    // SAFETY: `len` bytes are writable by contract.
    unsafe { core::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), len) };
    0
}
