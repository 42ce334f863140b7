//! Patching the sites of hooked system calls, so that the next call comes here without a trap.
//!
//! A site is patched when it has been trapped, if it lies in a private, read-only mapping of a file and
//! is of one of two forms; a jump of five bytes to a stub nearby takes the place of
//!
//! ```text
//!  mov $nr, %eax             the first instruction; the `syscall` stays for whoever is before or
//!  syscall                   behind it, or jumps there
//!
//!  syscall                   both; whoever comes back from the kernel behind the `syscall` meets a byte
//!  cmp $imm32, %rax          that is no instruction, and is sent on to the stub by the fault. (Or some
//!                            other instruction that means the same in the stub.)
//! ```
//!
//! For the second form the stub is put where the jump's distance has such a byte in its second place.
//! While a process has its memory for itself, and one thread, which is here, nobody executes what is written:
//! it goes there as a debugger's breakpoints do, and the mapping stays as it is. Otherwise the page is made
//! writable for a moment. One aligned store does it where the five bytes fit; where they do not, the first byte
//! becomes one that is no instruction as well, and all cores are made to see each step before the next. Whoever
//! meets it is sent to the stub.
//!
//! Stubs lie in shared memory that is mapped twice, to be executed near the sites and to be written to elsewhere,
//! so that no page of them ever is both. A forked child executes its parent's, and writes to areas of its own.
//!
//! Every other site stays on the trap.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU8, AtomicU64};

use ext_api::limits::PAGE_LEN;
use libos::signals::{FOLLOWED, Patches, STAYS, STUBS_PER_AREA, Site, StubArea};

use crate::arch::patched::{Form, JUMP_LEN, NO_INSTRUCTIONS, STUB_LEN, form_of, jump, stub};
use crate::signals::table;
use crate::{boot, context, sys};

const REACH: usize = (2 << 30) - (1 << 20);
const AREA_LEN: usize = STUBS_PER_AREA * STUB_LEN;
/// Places that are looked at for a site.
const PROBES: usize = 32;

fn patches() -> &'static Patches {
    // SAFETY: our private table; all atomics.
    unsafe { &(*table()).patches }
}

/// Patch the site whose call ends at `behind`, and has not been made, if it can be: its stub.
pub(crate) fn consider(behind: usize, number: u32) -> Option<usize> {
    let call = behind.wrapping_sub(2);
    if boot::place().shared().contains(&call) || is_stub(call) {
        return None;
    }
    if is_settled(call) {
        // It stays on the trap, or has been patched since this thread met it.
        return known(call).map(|(stub, _)| stub);
    }
    let lock = &patches().lock;
    if patches().over.load(Relaxed) != 0 || lock.compare_exchange(0, 1, Acquire, Relaxed).is_err() {
        // The program's filter may not let this process do what it takes. Or another thread is at it: the next time, then.
        return None;
    }
    // Whoever had the lock before may have dealt with this very site since it was looked at.
    let stub = if is_settled(call) { known(call) } else { deal_with(call, number) };
    lock.store(0, Release);
    stub.map(|(stub, _)| stub)
}

/// Is the site whose call this is known, and what it was?
fn is_settled(call: usize) -> bool {
    find(call).is_some() && !is_other_code(call)
}

/// Patch the site, or have it stay on the trap; by who has the lock.
fn deal_with(call: usize, number: u32) -> Option<(usize, Form)> {
    let site = find(call).or_else(|| free_site(call));
    let patched = site.and_then(|site| patch(site, call, number));
    if let Some(site) = site {
        site.stub.store(patched.map_or(STAYS, word_of), Release);
    }
    let [sites, trapped] = context::common().sites();
    if patched.is_some() { sites } else { trapped }.fetch_add(1, Relaxed);
    patched
}

/// After fork: whoever was patching in the parent does not do it here. A site that is half done here leads
/// to its stub by the fault, each time. The areas are shared with the parent, which goes on filling them.
pub(crate) fn forked() {
    for area in patches().areas.iter().filter(|area| area.at.load(Relaxed) != 0) {
        area.used.iter().for_each(|word| word.store(!0, Relaxed));
    }
    patches().lock.store(0, Release);
}

/// The program sets a filter on its own calls: no more sites are patched.
pub(crate) fn end() {
    patches().over.store(1, Relaxed);
}

/// The site whose call ends at `behind` stays on the trap.
pub(crate) fn leave(behind: usize) {
    let call = behind.wrapping_sub(2);
    let lock = &patches().lock;
    if find(call).is_none() && lock.compare_exchange(0, 1, Acquire, Relaxed).is_ok() {
        if find(call).is_none() && free_site(call).is_some() {
            context::common().sites()[1].fetch_add(1, Relaxed);
        }
        lock.store(0, Release);
    }
}

/// Where a thread goes on that has met a byte of ours that is no instruction.
pub(crate) fn goes_on_at(rip: usize) -> Option<usize> {
    let call = rip.wrapping_sub(2);
    if let Some((stub, Form::Followed(_))) = known(call)
        && first_byte(rip) == jump(call, stub)[2]
    {
        return Some(Form::behind_in(stub));
    }
    let at_call = known(rip).filter(|(_, form)| matches!(form, Form::Followed(_)));
    let at_mov =
        || known(rip.wrapping_add(JUMP_LEN)).filter(|(_, form)| *form == Form::Numbered(0));
    let (stub, _) = at_call.or_else(at_mov)?;
    match first_byte(rip) {
        byte if byte == NO_INSTRUCTIONS[0] => Some(stub),
        // The jump is there now.
        byte if byte == jump(rip, stub)[0] => Some(rip),
        _ => None,
    }
}

fn first_byte(at: usize) -> u8 {
    // SAFETY: the thread has just tried to execute it.
    unsafe { (at as *const u8).read_volatile() }
}

/// The stub of a site, and its form, as far as it is kept.
fn known(call: usize) -> Option<(usize, Form)> {
    let word = find(call)?.stub.load(Acquire);
    let form = if word & FOLLOWED == 0 { Form::Numbered(0) } else { Form::Followed(0) };
    (word != STAYS).then_some(((word & !FOLLOWED) as usize, form))
}

const fn word_of((stub, form): (usize, Form)) -> u64 {
    stub as u64 | if matches!(form, Form::Followed(_)) { FOLLOWED } else { 0 }
}

/// Is there other code now where a site was patched? What was there has been unmapped.
fn is_other_code(call: usize) -> bool {
    known(call).is_some_and(|(stub, form)| {
        let start = form.start(call);
        // SAFETY: at or just before a call that was just made. It ends on the same page.
        let bytes = unsafe { (start as *const [u8; JUMP_LEN]).read_unaligned() };
        bytes[0] != NO_INSTRUCTIONS[0] && bytes != jump(start, stub)
    })
}

fn find(call: usize) -> Option<&'static Site> {
    places(call).find(|site| site.call.load(Acquire) == call as u64)
}

fn free_site(call: usize) -> Option<&'static Site> {
    let site = places(call).find(|site| site.call.load(Relaxed) == 0)?;
    site.stub.store(STAYS, Relaxed);
    site.call.store(call as u64, Release);
    Some(site)
}

fn places(call: usize) -> impl Iterator<Item = &'static Site> {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let sites = &patches().sites;
    let first = ((call as u64).wrapping_mul(SPREAD) >> 32) as usize;
    (0..PROBES).map(move |probe| &sites[(first + probe) % sites.len()])
}

fn patch(site: &Site, call: usize, number: u32) -> Option<(usize, Form)> {
    let form = form_of(call, number)?;
    let start = form.start(call);
    sys::mapping_at(call).filter(sys::Mapping::is_program_text)?;
    let former = known(call).map(|(former, _)| former);
    // SAFETY: a stub of ours, whole.
    let same = |at: &usize| unsafe { *(*at as *const [u8; STUB_LEN]) } == stub(form, *at, call);
    let stub_at = match former.filter(same) {
        Some(at) => at,
        None => {
            let (at, alias) = stub_near(start, form)?;
            // SAFETY: room for a stub that no jump leads to yet, by its second address.
            unsafe { (alias as *mut [u8; STUB_LEN]).write(stub(form, at, call)) };
            at
        }
    };
    site.stub.store(word_of((stub_at, form)), Release);
    put(start, form, jump(start, stub_at)).then_some((stub_at, form))
}

/// Who is alone writes as debuggers do, which leaves the mapping as it is.
fn put(start: usize, form: Form, jump: [u8; JUMP_LEN]) -> bool {
    let is_alone = sys::is_alone();
    if is_alone && sys::write_text(start, &jump).is_ok() {
        return true;
    }
    let page = start & !(PAGE_LEN - 1);
    let writable = sys::PROT_READ | sys::PROT_WRITE | sys::PROT_EXEC;
    // SAFETY: text of the program, which stays readable and executable meanwhile.
    if unsafe { sys::mprotect(page, PAGE_LEN, writable) }.is_err() {
        return false;
    }
    let done = write(start, form, jump, is_alone);
    // SAFETY: as it was.
    let _ = unsafe { sys::mprotect(page, PAGE_LEN, sys::PROT_READ | sys::PROT_EXEC) };
    done
}

/// Put a jump where others may execute at this moment. False if that cannot be done safely here.
fn write(start: usize, form: Form, jump: [u8; JUMP_LEN], is_alone: bool) -> bool {
    if start % 8 + JUMP_LEN <= 8 {
        // SAFETY: eight aligned bytes on a page that is writable now; nobody else changes them (lock).
        let word = unsafe { AtomicU64::from_ptr((start & !7) as *mut u64) };
        let mut bytes = word.load(Relaxed).to_le_bytes();
        bytes[start % 8..start % 8 + JUMP_LEN].copy_from_slice(&jump);
        word.store(u64::from_le_bytes(bytes), Release);
        return true;
    }
    let put = |offset: usize, byte: u8| {
        // SAFETY: on that page, writable now.
        unsafe { AtomicU8::from_ptr((start + offset) as *mut u8) }.store(byte, Release);
    };
    if is_alone {
        (0..JUMP_LEN).for_each(|offset| put(offset, jump[offset]));
        return true;
    }
    // So far nothing has changed that a thread could meet.
    if !sys::sync_cores() {
        return false;
    }
    put(0, NO_INSTRUCTIONS[0]);
    sys::sync_cores();
    if matches!(form, Form::Followed(_)) {
        // Behind the call: no instruction either, from now on.
        put(2, jump[2]);
        sys::sync_cores();
    }
    (1..JUMP_LEN).for_each(|offset| put(offset, jump[offset]));
    sys::sync_cores();
    put(0, jump[0]);
    true
}

fn is_stub(address: usize) -> bool {
    patches().areas.iter().any(|area| {
        let at = area.at.load(Relaxed) as usize;
        at != 0 && address.wrapping_sub(at) < AREA_LEN
    })
}

/// Room for a stub that can be reached from `start`, and from which it can; and where it is written to.
fn stub_near(start: usize, form: Form) -> Option<(usize, usize)> {
    let areas = &patches().areas;
    let made = areas.iter().filter(|area| area.at.load(Relaxed) != 0);
    made.filter(|area| is_near(area.at.load(Relaxed) as usize, start))
        .find_map(|area| take_stub(area, start, form))
        .or_else(|| {
            let area = areas.iter().find(|area| area.at.load(Relaxed) == 0)?;
            let (at, alias) = area_near(start)?;
            area.at.store(at as u64, Relaxed);
            area.alias.store(alias as u64, Relaxed);
            take_stub(area, start, form)
        })
}

const fn is_near(at: usize, start: usize) -> bool {
    at.abs_diff(start) < REACH
}

fn take_stub(area: &StubArea, start: usize, form: Form) -> Option<(usize, usize)> {
    let first = area.at.load(Relaxed) as usize;
    let words = area.used.iter().enumerate().map(|(at, word)| (at * 64, word.load(Relaxed)));
    // Most are full, or free: a word of them at a time.
    let with_room = words.filter(|(_, used)| *used != !0);
    let mut free = with_room.flat_map(|(from, used)| {
        (used.trailing_ones() as usize..64)
            .filter_map(move |bit| (used >> bit & 1 == 0).then_some(from + bit))
    });
    let index = free.find(|index| form.can_jump(jump(start, first + index * STUB_LEN)))?;
    area.used[index / 64].fetch_or(1 << (index % 64), Relaxed);
    let offset = index * STUB_LEN;
    Some((first + offset, area.alias.load(Relaxed) as usize + offset))
}

/// A fresh area within reach of `start`, and where it can be written to: no address can be both written to and executed.
/// Below `start` first: programs' heaps grow upwards.
fn area_near(start: usize) -> Option<(usize, usize)> {
    const SMALL_STEP: usize = 1 << 20;
    const STEP: usize = 16 << 20;
    const LOWEST: usize = 128 << 10;
    let page = start & !(PAGE_LEN - 1);
    let below = (1..16).map(|steps| page.checked_sub(steps * SMALL_STEP / 4));
    let around = (1..REACH / STEP)
        .flat_map(|steps| [page.checked_sub(steps * STEP), page.checked_add(steps * STEP)]);
    let at = below
        .chain(around)
        .flatten()
        .filter(|at| *at >= LOWEST && is_near(*at, start) && is_near(*at + AREA_LEN, start))
        .find(|&at| {
            let flags = sys::MAP_SHARED | sys::MAP_ANONYMOUS | sys::MAP_FIXED_NOREPLACE;
            let protection = sys::PROT_READ | sys::PROT_EXEC;
            // SAFETY: replaces nothing.
            let made = unsafe { sys::mmap(at, AREA_LEN, protection, flags, -1, 0) };
            made == Ok(at)
        })?;
    let alias = alias_of(at);
    if alias.is_none() {
        // SAFETY: the fresh area.
        let _ = unsafe { sys::munmap(at, AREA_LEN) };
    }
    Some((at, alias?))
}

fn alias_of(area: usize) -> Option<usize> {
    // SAFETY: a fresh area, of which only stubs that nobody executes yet are written.
    let alias = unsafe { sys::alias(area, AREA_LEN) }.ok()?;
    // SAFETY: the fresh mapping, which nobody executes.
    unsafe { sys::mprotect(alias, AREA_LEN, sys::PROT_READ | sys::PROT_WRITE) }.ok()?;
    Some(alias)
}
