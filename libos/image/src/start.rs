//! How a process becomes a participant: after exec, after fork, and late.
//!
//! After exec nothing of the program has run. The launcher has mapped the code half of slot 0 and
//! nothing else, so that until the zones are mapped this module uses its stack and its sealed
//! half only: no static of the data half, no context.

use core::ffi::CStr;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use ext_api::abi::{MapRecord, Status, Superblock, ZONE_CODE, ZONE_CONTROL, ZONE_DATA};
use ext_api::limits::{PAGE_LEN, PROCESSES_MAX};
use libos::clamps::{self, ProcessName};
use libos::data::{Joined, Process};
use libos::layout::{self, NAME_OFFSET, PROCESS_OFFSET, Place, WIPED_LEN};
use libos::signals::SIGSYS;

use crate::arch::early_call;
use crate::sys::{
    EINVAL, Errno, MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_NORESERVE, MAP_PRIVATE,
    MAP_SHARED, PROT_READ, PROT_WRITE,
};
use crate::{boot, context, copies, events, fault, left, log, patch, signals, sockets, sys, text};

/// What a process knows of itself; private, and zero in a forked child. The pid is written last. Behind it lies the
/// tid of the thread that joins such a child, or has.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct ThisProcess {
    pub(crate) pid: u32,
    pub(crate) row: usize,
    pub(crate) generation: u32,
    /// Its pid namespace, as [`Process::pid_space`] has it.
    pub(crate) space: u64,
    /// Address of the vDSO's clock_gettime: 0 not looked for, 1 absent.
    pub(crate) clock_gettime: usize,
}

/// This process's own block, joined now if it is a child that nobody has joined yet.
pub(crate) fn this_process() -> Option<ThisProcess> {
    if !has_joined() {
        join_once().ok()?;
    }
    // SAFETY: the block is mapped, private, and was whole before it had a pid.
    Some(unsafe { private_block().read_volatile() })
}

fn has_joined() -> bool {
    // SAFETY: the block is mapped and private, and begins with the pid, which changes by whole stores.
    unsafe { &*private_block().cast::<AtomicU32>() }.load(Acquire) != 0
}

/// Join a forked child: one thread of it does, the others wait.
fn join_once() -> Result<(), Errno> {
    // What interrupts whoever joins may need it as well.
    let mask = sys::block_all();
    let result = take_turn_to_join(sys::gettid());
    sys::set_mask(mask);
    result
}

fn take_turn_to_join(tid: u32) -> Result<(), Errno> {
    // SAFETY: behind the block, and like it; nothing else is there.
    let turn = unsafe { &*private_block().add(1).cast::<AtomicU32>() };
    while let Err(holder) = turn.compare_exchange(0, tid, Acquire, Relaxed) {
        if has_joined() {
            return Ok(());
        }
        if !sys::task_exists(holder) {
            let _ = turn.compare_exchange(holder, 0, Relaxed, Relaxed);
        }
        sys::sched_yield();
    }
    patch::forked();
    let result = join(Joined::Fork);
    if result.is_err() {
        turn.store(0, Release);
    }
    result
}

/// Are two pid namespaces the same, as far as is known?
const fn is_same(one: u64, other: u64) -> bool {
    one == other || one == 0 || other == 0
}

/// Does the process in `row` have its pid from the namespace that this one is in? If not, the number is another's.
pub(crate) fn shares_pids(row: usize) -> bool {
    // SAFETY: mapped, and private; zero in a child that has not joined.
    let own = unsafe { private_block().read_volatile() }.space;
    is_same(context::common().process(row).pid_space.load(Relaxed), own)
}

/// As [`shares_pids`], of the process that holds context `index`.
pub(crate) fn context_shares_pids(index: usize) -> bool {
    // SAFETY: as above.
    let own = unsafe { private_block().read_volatile() }.space;
    is_same(context::common().pid_space_of(index), own)
}

/// May the thread that holds context `index` go on? One of another pid namespace may, until the supervisor has swept.
pub(crate) fn may_live(index: usize) -> bool {
    let common = context::common();
    let (pid, tid) = (common.claim(index).load().pid, common.context(index).tid.load(Relaxed));
    pid != 0 && (!context_shares_pids(index) || sys::thread_exists(pid, tid))
}

/// Remember the vDSO's clock.
pub(crate) fn remember_clock(address: usize) {
    let block = private_block();
    // SAFETY: the block is mapped and private; racing threads store the same word.
    unsafe { (&raw mut (*block).clock_gettime).write_volatile(address) };
}

fn private_block() -> *mut ThisProcess {
    (boot::place().cache() + PROCESS_OFFSET) as *mut ThisProcess
}

/// After exec: map the zones, join, say so with one upcall. Ends the process if the region
/// cannot be had: a program that was started in a sandbox must not run outside of it.
pub(crate) extern "C" fn join_after_exec(control: i32, code: i32, data: i32, armed: u64) {
    let result = map_zones(boot::place(), [control, code, data]);
    for fd in [control, code, data] {
        let _ = sys::close(fd);
    }
    if let Err(errno) =
        result.and_then(|()| prepare_private(armed)).and_then(|()| join(Joined::Exec))
    {
        refuse(errno);
    }
    if sockets::is_on() {
        sockets::adopt_after_exec();
    }
    hello();
}

/// After fork: the mappings are inherited; the private block was wiped.
pub(crate) extern "C" fn join_after_fork() {
    let is_within_upcall = left::end_copy();
    if signals::is_handled(SIGSYS) {
        copies::end();
    }
    if this_process().is_some() {
        if sockets::is_on() {
            sockets::hold_after_fork();
        }
        if !is_within_upcall {
            hello();
        }
    }
}

/// [`ext_api::abi::Entry::join`]: the zones are mapped already, by the process itself.
#[unsafe(no_mangle)]
pub extern "C" fn sbx_join() -> i32 {
    join_mapped(Joined::Late)
}

/// As [`sbx_join`], for the supervisor's worker.
#[unsafe(no_mangle)]
pub extern "C" fn sbx_join_worker() -> i32 {
    join_mapped(Joined::Worker)
}

fn join_mapped(how: Joined) -> i32 {
    match prepare_private(0).and_then(|()| join(how)) {
        Ok(()) => {
            hello();
            0
        }
        Err(errno) => -errno,
    }
}

/// [`ext_api::abi::Entry::touch`].
#[unsafe(no_mangle)]
pub extern "C" fn sbx_touch() -> u64 {
    hello();
    0
}

/// The first upcall of a process: handler 0, which is ours and does nothing. It makes the
/// thread's context, so that the sandbox's tables show a participant that works.
pub(crate) fn hello() {
    let Some(entry) = context::handler(0) else { return };
    let handle = u64::from(entry.generation.load(Acquire)) << 32;
    // SAFETY: the handler takes no arguments and leaves the reply alone.
    let status = unsafe { early_call(handle, core::ptr::null(), core::ptr::null_mut()) };
    debug_assert!(status != Status::Stale as u32);
}

/// Handler 0.
#[unsafe(no_mangle)]
pub extern "C" fn sbx_hello(_: *const u64, _: *mut ext_api::abi::Reply) -> u32 {
    Status::Ok as u32
}

/// Map everything that a participant has, around the code half that the launcher mapped.
fn map_zones(place: Place, fds: [i32; 3]) -> Result<(), Errno> {
    let hole = place.code_half(0);
    for (index, record) in layout::maps(place).enumerate() {
        if index >= layout::MAPS_BEFORE_SLOTS && index >= map_count() {
            break;
        }
        let (start, end) = (record.addr as usize, (record.addr + record.len) as usize);
        if start == hole.start && record.zone == ZONE_CODE {
            continue;
        }
        if start < hole.start && hole.end < end {
            map_piece(&record, start, hole.start, fds)?;
            map_piece(&record, hole.end, end, fds)?;
        } else {
            map_piece(&record, start, end, fds)?;
        }
    }
    Ok(())
}

/// Mappings of a participant in this sandbox, once the control zone is mapped.
fn map_count() -> usize {
    let superblock = boot::place().base as *const Superblock;
    // SAFETY: the control zone begins with it.
    unsafe { (*superblock).map_count as usize }
}

fn map_piece(record: &MapRecord, start: usize, end: usize, fds: [i32; 3]) -> Result<(), Errno> {
    let (flags, fd) = match record.zone {
        ZONE_CONTROL => (MAP_SHARED | MAP_FIXED, fds[0]),
        ZONE_CODE => (MAP_SHARED | MAP_FIXED, fds[1]),
        ZONE_DATA => (MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fds[2]),
        _ => (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1),
    };
    let offset = record.offset as usize + (start - record.addr as usize);
    // SAFETY: the first record reserves the span without replacing anything; what follows lies
    // within that reservation and is not in use yet.
    let at = unsafe { sys::mmap(start, end - start, record.prot as usize, flags, fd, offset) }?;
    // A kernel that does not know MAP_FIXED_NOREPLACE takes the address for a hint.
    if at == start { Ok(()) } else { Err(EINVAL) }
}

/// The private part: a writable front that fork wipes; the rest stays reserved. Then nothing of
/// the shared part may change any more.
fn prepare_private(armed: u64) -> Result<(), Errno> {
    let place = boot::place();
    // SAFETY: the front of the reservation, which nobody uses before this.
    unsafe { sys::mprotect(place.cache(), WIPED_LEN, PROT_READ | PROT_WRITE) }?;
    // SAFETY: made to be wiped.
    unsafe { sys::wipe_on_fork(place.cache(), WIPED_LEN) }?;
    let kept = place.cache() + layout::KEPT_OFFSET;
    // SAFETY: as above.
    unsafe { sys::mprotect(kept, layout::KEPT_LEN, PROT_READ | PROT_WRITE) }?;
    if sockets::is_on() {
        sockets::prepare()?;
    }
    signals::take_over(armed);
    sys::register_membarrier();
    if armed >> SIGSYS & 1 == 1 {
        sys::register_sync_cores();
    }
    // SAFETY: the shared part is complete. A kernel without mseal leaves it to the filter.
    let _ = unsafe { sys::mseal(place.base, place.len) };
    Ok(())
}

/// Take a row of the process table and write the private block.
fn join(how: Joined) -> Result<(), Errno> {
    let (pid, space) = (sys::getpid(), sys::pid_space());
    let former = row_of(pid, space);
    let (row, generation) = former.or_else(|| new_row(pid)).ok_or(sys::EAGAIN)?;
    let process = context::common().process(row);
    end_former_contexts(pid, space);
    let unread = events::begin(row);
    if former.is_some() && unread != 0 {
        note_unread(pid, unread);
    }
    process.parent.store(sys::getppid(), Relaxed);
    process.pid_space.store(space, Relaxed);
    note_name(process, how);
    process.joined.store(how as u32, Release);
    let own = ThisProcess { pid: 0, row, generation, space, clock_gettime: 0 };
    // SAFETY: mapped, private, and nobody reads it while it has no pid, or this is the only thread.
    unsafe { private_block().write_volatile(own) };
    // SAFETY: as above; it begins with the pid.
    unsafe { &*private_block().cast::<AtomicU32>() }.store(pid, Release);
    Ok(())
}

/// What came for the program that has executed this one, and was not read, is for nobody.
fn note_unread(pid: u32, unread: u64) {
    let mut line = text::Line::<80>::new();
    line.push(b"pid ");
    line.push_decimal(pid);
    line.push(b" executed a program before ");
    line.push_decimal(unread as u32);
    line.push(b" events reached it");
    log::line(b"sbx", line.bytes());
}

/// The row that this pid has from before an exec, under a new generation.
fn row_of(pid: u32, space: u64) -> Option<(usize, u32)> {
    let common = context::common();
    common.rows().find_map(|row| {
        let seen = common.process(row).claim.load();
        (seen.pid == pid && is_same(common.process(row).pid_space.load(Relaxed), space))
            .then(|| common.process(row).claim.swap(seen, pid))
            .flatten()
            .map(|g| (row, g))
    })
}

/// A row that nobody has had yet, or else one whose holder has ended.
fn new_row(pid: u32) -> Option<(usize, u32)> {
    let common = context::common();
    let take = |row| {
        let generation = common.take_row(row, pid)?;
        common.process(row).upcalls_ended.store(0, Relaxed);
        Some((row, generation))
    };
    // A row that has ended stays readable for as long as there are others.
    (common.rows().end..PROCESSES_MAX).find_map(take).or_else(|| (0..PROCESSES_MAX).find_map(take))
}

/// What this pid's threads held before an exec is free again: they are gone.
fn end_former_contexts(pid: u32, space: u64) {
    let common = context::common();
    for index in common.contexts() {
        let seen = common.claim(index).load();
        if seen.pid == pid
            && is_same(common.pid_space_of(index), space)
            && let Some(code) = common.end_context(index, seen)
        {
            fault::died_inside(code);
        }
    }
}

/// Say in the table what the process is called. By the name that it was executed under clamps know it, and
/// the children that it forks.
fn note_name(process: &Process, how: Joined) {
    let mut name = [0; 16];
    let len = sys::read_file(c"/proc/self/comm", &mut name).unwrap_or(0);
    // Behind the name there is a newline; there may be some in it.
    name[len.saturating_sub(1)..].fill(0);
    process.comm.iter().zip(name).for_each(|(to, byte)| to.store(byte, Relaxed));
    if how != Joined::Fork {
        // SAFETY: mapped, private, and no other thread of this process runs region code yet.
        unsafe { kept_name().write_volatile(clamps::process_name(&name)) };
    }
}

/// The name that this process, or one that it was forked by, was executed under.
pub(crate) fn process_name() -> ProcessName {
    // SAFETY: written before there was a second thread, and not changed since.
    unsafe { kept_name().read_volatile() }
}

fn kept_name() -> *mut ProcessName {
    (boot::place().cache() + NAME_OFFSET) as *mut ProcessName
}

/// Say why the program cannot start here, and end it.
fn refuse(errno: Errno) -> ! {
    let why: &CStr = match errno {
        17 => c"its address range is in use by this program (EEXIST)",
        sys::ENOMEM => c"RLIMIT_AS or the machine's memory leaves no room for it (ENOMEM)",
        sys::EAGAIN => c"the process table is full (1024 participants)",
        sys::EINVAL => c"this kernel does not map at a given address",
        sys::EPERM => c"this kernel or a policy forbids it (EPERM)",
        _ => c"the kernel refused a mapping",
    };
    sys::write_all(2, b"sbx: this program cannot join the sandbox: ");
    sys::write_all(2, why.to_bytes());
    sys::write_all(2, b". Run `sbx-launcher doctor`.\n");
    sys::exit_group(125);
}

const _: () = assert!(PROCESS_OFFSET + size_of::<ThisProcess>() + size_of::<u32>() <= WIPED_LEN);
const _: () = assert!(core::mem::offset_of!(ThisProcess, pid) == 0);
const _: () = assert!(WIPED_LEN.is_multiple_of(PAGE_LEN));
