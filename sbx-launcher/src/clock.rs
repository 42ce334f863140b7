//! Clocks by their numbers, in nanoseconds.
#![expect(unsafe_code, reason = "reads a clock")]

/// Time of a clock.
#[must_use]
pub fn ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a timespec.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The monotonic clock.
#[must_use]
pub fn now_ns() -> u64 {
    ns(libc::CLOCK_MONOTONIC)
}
