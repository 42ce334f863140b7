//! Patching the sites of hooked system calls, so that the next call comes here without a trap.
//!
//! A site is patched when it has been trapped: `mov $nr, %eax; syscall` in a private, read-only mapping of
//! a file becomes a jump to a stub nearby, by one store. The five bytes must lie within eight aligned
//! ones: such a store is seen whole or not at all by whoever executes them at that moment, and the
//! instruction that they were begins and ends where the new one does. While a process has one thread,
//! which is here, nobody executes them, and they may lie anywhere. The `syscall` behind stays, for
//! threads that are about to execute it, for those that come back behind it, and for whoever jumps there.
//! Every other site stays on the trap.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use ext_api::limits::PAGE_LEN;
use libos::signals::{Patches, REFUSED_MAX};

use crate::arch::patched::{STUB_LEN, jump, number_in, stub};
use crate::signals::table;
use crate::{boot, sys};

const REACH: usize = (2 << 30) - (1 << 20);
const SITE_LEN: usize = 7;

fn patches() -> &'static Patches {
    // SAFETY: our private table; all atomics.
    unsafe { &(*table()).patches }
}

/// Patch the site whose call ends at `behind`, if it can be.
pub(crate) fn consider(behind: usize, number: u32) {
    let site = behind.wrapping_sub(SITE_LEN);
    let is_one_page = site / PAGE_LEN == (behind - 1) / PAGE_LEN;
    if !is_one_page || boot::place().shared().contains(&site) {
        return;
    }
    // SAFETY: seven bytes on a page of which the kernel has just executed two.
    let bytes = unsafe { (site as *const [u8; SITE_LEN]).read_unaligned() };
    let refused = &patches().refused[site / 8 % REFUSED_MAX];
    if number_in(bytes) != Some(number) || refused.load(Relaxed) == site as u64 {
        return;
    }
    let lock = &patches().lock;
    if lock.compare_exchange(0, 1, Acquire, Relaxed).is_err() {
        // Another thread is at it. The next time, then.
        return;
    }
    if patch(site, number).is_none() {
        refused.store(site as u64, Relaxed);
    }
    lock.store(0, Release);
}

fn patch(site: usize, number: u32) -> Option<()> {
    let is_one_word = site % 8 <= 3;
    if !is_one_word && !sys::is_alone() {
        return None;
    }
    sys::mapping_at(site).filter(sys::Mapping::is_program_text)?;
    let at = stub_near(site)?;
    let page = site & !(PAGE_LEN - 1);
    // SAFETY: text of the program, which stays readable and executable meanwhile.
    unsafe { sys::mprotect(page, PAGE_LEN, sys::PROT_READ | sys::PROT_WRITE | sys::PROT_EXEC) }
        .ok()?;
    put_stub(at, &stub(at, site + 5, number));
    if is_one_word {
        // SAFETY: eight aligned bytes on that page, writable now; nobody else changes them (lock).
        let word = unsafe { AtomicU64::from_ptr((site & !7) as *mut u64) };
        let mut bytes = word.load(Relaxed).to_le_bytes();
        bytes[site % 8..site % 8 + 5].copy_from_slice(&jump(site, at));
        word.store(u64::from_le_bytes(bytes), Release);
    } else {
        // SAFETY: on that page, writable now; no other thread can execute them.
        unsafe { (site as *mut [u8; 5]).write_unaligned(jump(site, at)) };
    }
    // SAFETY: as it was.
    let _ = unsafe { sys::mprotect(page, PAGE_LEN, sys::PROT_READ | sys::PROT_EXEC) };
    patches().count.fetch_add(1, Relaxed);
    Some(())
}

/// Room for a stub that can be reached from `site`, and from which it can.
fn stub_near(site: usize) -> Option<usize> {
    let (page, used) =
        (patches().page.load(Relaxed) as usize, patches().used.load(Relaxed) as usize);
    if page != 0 && page.abs_diff(site) < REACH && used + STUB_LEN <= PAGE_LEN {
        patches().used.store((used + STUB_LEN) as u32, Relaxed);
        return Some(page + used);
    }
    let page = page_near(site)?;
    patches().page.store(page as u64, Relaxed);
    patches().used.store(STUB_LEN as u32, Relaxed);
    Some(page)
}

/// A fresh page within reach of `site`.
fn page_near(site: usize) -> Option<usize> {
    const STEP: usize = 16 << 20;
    const LOWEST: usize = 1 << 20;
    let from = site & !(STEP - 1);
    (1..REACH / STEP)
        .flat_map(|steps| [from.checked_sub(steps * STEP), from.checked_add(steps * STEP)])
        .flatten()
        .filter(|at| *at >= LOWEST && at.abs_diff(site) < REACH)
        .find(|&at| {
            let flags = sys::MAP_PRIVATE | sys::MAP_ANONYMOUS | sys::MAP_FIXED_NOREPLACE;
            let protection = sys::PROT_READ | sys::PROT_EXEC;
            // SAFETY: replaces nothing.
            let made = unsafe { sys::mmap(at, PAGE_LEN, protection, flags, -1, 0) };
            made == Ok(at)
        })
}

fn put_stub(at: usize, bytes: &[u8; STUB_LEN]) {
    let page = at & !(PAGE_LEN - 1);
    let writable = sys::PROT_READ | sys::PROT_WRITE | sys::PROT_EXEC;
    // SAFETY: a page of stubs, which stay executable meanwhile.
    let _ = unsafe { sys::mprotect(page, PAGE_LEN, writable) };
    // SAFETY: room on that page that no jump leads to yet.
    unsafe { (at as *mut [u8; STUB_LEN]).write_unaligned(*bytes) };
    // SAFETY: as before.
    let _ = unsafe { sys::mprotect(page, PAGE_LEN, sys::PROT_READ | sys::PROT_EXEC) };
}
