//! A task that is traced: its registers, its memory, and how it goes on.
#![expect(unsafe_code, reason = "ptrace")]

use std::io;

/// Trace a task without stopping it.
///
/// # Errors
/// The kernel's: it is gone, or traced by somebody else.
pub fn seize(tid: i32, options: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SEIZE, tid, 0, options as u64)
}

/// Have it stop, soon.
///
/// # Errors
/// The kernel's.
pub fn interrupt(tid: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Let a stopped task go on, with a signal or 0.
///
/// # Errors
/// The kernel's.
pub fn go_on(tid: i32, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_CONT, tid, 0, signal as u64)
}

/// Trace it no longer: it goes on, with a signal or 0.
///
/// # Errors
/// The kernel's.
pub fn let_go(tid: i32, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_DETACH, tid, 0, signal as u64)
}

/// Let it go on until it enters or leaves a system call. False: it has ended.
///
/// Of all ways to get a task back this is the one that does it no harm if we die meanwhile: a trap
/// that nobody takes is a signal to the task.
///
/// # Errors
/// The kernel's.
pub fn to_system_call(tid: i32) -> io::Result<bool> {
    go_on_to(tid, libc::PTRACE_SYSCALL, libc::SIGTRAP | 0x80)
}

/// Let it execute one instruction. False: it has ended.
///
/// # Errors
/// The kernel's.
#[cfg(debug_assertions)]
pub fn step(tid: i32) -> io::Result<bool> {
    go_on_to(tid, libc::PTRACE_SINGLESTEP, libc::SIGTRAP)
}

fn go_on_to(tid: i32, request: u32, stop: i32) -> io::Result<bool> {
    let mut signal = 0;
    loop {
        ptrace(request, tid, 0, signal)?;
        let mut status = 0;
        // SAFETY: waits for our own tracee.
        unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
        if !libc::WIFSTOPPED(status) {
            return Ok(false);
        }
        if libc::WSTOPSIG(status) == stop && status >> 16 == 0 {
            return Ok(true);
        }
        // A signal that came meanwhile is the task's own; an event is not one.
        signal = if status >> 16 == 0 { libc::WSTOPSIG(status) as u64 } else { 0 };
    }
}

/// Registers of a stopped task.
///
/// # Errors
/// The kernel's.
pub fn registers(tid: i32) -> io::Result<libc::user_regs_struct> {
    // SAFETY: registers are plain numbers.
    let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    ptrace(libc::PTRACE_GETREGS, tid, 0, &raw mut regs as u64)?;
    Ok(regs)
}

/// Set the registers of a stopped task.
///
/// # Errors
/// The kernel's.
pub fn set_registers(tid: i32, regs: &libc::user_regs_struct) -> io::Result<()> {
    ptrace(libc::PTRACE_SETREGS, tid, 0, std::ptr::from_ref(regs) as u64)
}

/// The signals that a stopped task blocks, a bit for each.
///
/// # Errors
/// The kernel's.
pub fn mask(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    ptrace(libc::PTRACE_GETSIGMASK, tid, 8, &raw mut mask as u64).map(|()| mask)
}

/// Have a stopped task block these signals.
///
/// # Errors
/// The kernel's.
pub fn set_mask(tid: i32, mask: u64) -> io::Result<()> {
    ptrace(libc::PTRACE_SETSIGMASK, tid, 8, &raw const mask as u64)
}

/// Eight bytes of a stopped task.
///
/// # Errors
/// The kernel's.
pub fn peek(tid: i32, address: u64) -> io::Result<u64> {
    // SAFETY: the thread's own errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above; it is reset since every word is a valid result.
    unsafe { *errno = 0 };
    // SAFETY: takes numbers only in this libc.
    let word = unsafe { libc::ptrace(libc::PTRACE_PEEKTEXT, tid, address, 0) };
    match io::Error::last_os_error() {
        error if word == -1 && error.raw_os_error() != Some(0) => Err(error),
        _ => Ok(word as u64),
    }
}

/// Write eight bytes of a stopped task, into read-only memory as well.
///
/// # Errors
/// The kernel's.
pub fn poke(tid: i32, address: u64, word: u64) -> io::Result<()> {
    ptrace(libc::PTRACE_POKETEXT, tid, address, word)
}

/// What a stop's event says: a child's pid, or the number that a task had before its exec.
#[must_use]
pub fn event_message(tid: i32) -> Option<u64> {
    let mut message = 0u64;
    ptrace(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut message as u64).ok().map(|()| message)
}

fn ptrace(request: u32, tid: i32, address: u64, data: u64) -> io::Result<()> {
    // SAFETY: requests of this module take numbers, or point to a value of the type that they name.
    let got = unsafe { libc::ptrace(request, tid, address, data) };
    if got == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
