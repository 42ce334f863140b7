//! Clocks: the process's own vDSO, found once per process.

use core::ffi::c_int;

use crate::{arch, start, sys};

const CLOCK_MONOTONIC: usize = 1;
const CLOCK_THREAD_CPUTIME_ID: usize = 3;

/// Monotonic time in nanoseconds.
pub(crate) extern "C" fn now_ns() -> u64 {
    let mut time = [0; 2];
    // SAFETY: `time` is a timespec.
    unsafe { clock_gettime(CLOCK_MONOTONIC as c_int, &raw mut time) };
    time[0] * 1_000_000_000 + time[1]
}

/// CPU time of this thread in nanoseconds, as it is now. Not by the vDSO: that would make the call itself,
/// which may be hooked, where no signal can come.
pub(crate) fn thread_cpu_ns() -> u64 {
    sys::clock_ns(CLOCK_THREAD_CPUTIME_ID)
}

/// `clock_gettime(3)`.
///
/// # Safety
/// As in C.
pub(crate) unsafe extern "C" fn clock_gettime(clock: c_int, to: *mut [u64; 2]) -> c_int {
    let known = start::this_process().map_or(1, |own| own.clock_gettime);
    let address = if known == 0 { find() } else { known };
    if address > 1 {
        // SAFETY: same contract; `find` took the address from the vDSO's symbol of this name.
        return unsafe { arch::ask_clock(clock as usize, to, address) };
    }
    let ns = sys::clock_ns(clock as usize);
    // SAFETY: by contract.
    unsafe { to.write([ns / 1_000_000_000, ns % 1_000_000_000]) };
    0
}

/// Look for the vDSO's function and remember the answer for this process.
fn find() -> usize {
    let address = vdso_base().and_then(|base| {
        // SAFETY: the auxiliary vector says that the kernel mapped an ELF image there.
        unsafe { symbol(base, b"__vdso_clock_gettime") }
    });
    let address = address.unwrap_or(1);
    start::remember_clock(address);
    address
}

/// AT_SYSINFO_EHDR of this process.
fn vdso_base() -> Option<usize> {
    const AT_SYSINFO_EHDR: u64 = 33;
    let mut bytes = [0; 512];
    let len = sys::read_file(c"/proc/self/auxv", &mut bytes).ok()?;
    bytes[..len].chunks_exact(16).find_map(|pair| {
        let key = u64::from_le_bytes(pair[..8].try_into().ok()?);
        let value = u64::from_le_bytes(pair[8..].try_into().ok()?);
        (key == AT_SYSINFO_EHDR).then_some(value as usize)
    })
}

/// Address of a symbol in the image that the kernel mapped at `base`.
///
/// # Safety
/// A well-formed ELF image with a dynamic section lies there.
unsafe fn symbol(base: usize, name: &[u8]) -> Option<usize> {
    const PT_LOAD: u32 = 1;
    const PT_DYNAMIC: u32 = 2;
    // SAFETY: within the image, by contract; reads are of plain integers.
    let at = |address: usize| unsafe { (address as *const u64).read_unaligned() };
    let half = |address: usize| (at(address) & 0xffff) as usize;
    let (headers, count) = (base + at(base + 32) as usize, half(base + 56));
    let find =
        |kind: u32| (0..count).map(|i| headers + i * 56).find(|&header| at(header) as u32 == kind);
    let bias = base.wrapping_sub(at(find(PT_LOAD)? + 16) as usize);
    let dynamic = bias.wrapping_add(at(find(PT_DYNAMIC)? + 16) as usize);
    let tag = |wanted: u64| {
        (0..64)
            .map(|i| dynamic + i * 16)
            .take_while(|&entry| at(entry) != 0)
            .find(|&entry| at(entry) == wanted)
            .map(|entry| bias.wrapping_add(at(entry + 8) as usize))
    };
    let (hash, strings, symbols) = (tag(4), tag(5)?, tag(6)?);
    let symbol_count = hash.map_or(64, |hash| (at(hash) >> 32) as usize).min(64);
    (0..symbol_count).map(|i| symbols + i * 24).find_map(|entry| {
        let text = (strings + (at(entry) as u32 as usize)) as *const u8;
        // SAFETY: names end with a zero, so the comparison stops within the table.
        let same = name.iter().enumerate().all(|(i, &byte)| unsafe { text.add(i).read() } == byte);
        (same && at(entry + 8) != 0).then(|| bias.wrapping_add(at(entry + 8) as usize))
    })
}
