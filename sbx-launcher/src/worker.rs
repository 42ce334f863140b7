//! The worker: a confined child that runs extension code for the supervisor, which runs none.
#![expect(unsafe_code, reason = "forks, maps the region and calls the gate")]

use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use ext_api::abi::{CallFn, Reply, ZONE_CODE, ZONE_CONTROL, ZONE_DATA};
use libos::layout;

use crate::sandbox::Sandbox;
use crate::zones::Zones;

/// Most bytes of a reply that the worker hands on.
pub const REPLY_LEN_MAX: usize = 1 << 20;

/// What an upcall in the worker came to.
#[derive(Debug)]
pub struct Outcome {
    /// The [`ext_api::abi::Status`] as a number.
    pub status: u32,
    /// The reply's scalar.
    pub word: u64,
    /// The reply's bytes.
    pub bytes: Vec<u8>,
}

/// An upcall that a worker is running.
#[derive(Debug)]
pub struct Job {
    /// Readable once there is an outcome, or the worker has died.
    pub from: std::fs::File,
    /// The worker.
    pub pid: u32,
}

/// Run handler `handle` in a new worker. Addresses in `args` are of this process, which the worker
/// is a copy of.
///
/// # Errors
/// The kernel's.
pub fn start(zones: &Zones, gate: u64, join: u64, handle: u64, args: &[u64]) -> io::Result<Job> {
    let mut pipe = [0; 2];
    // SAFETY: the kernel writes two descriptors.
    if unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just made for us.
    let [from, to] = pipe.map(|fd| unsafe { std::fs::File::from(OwnedFd::from_raw_fd(fd)) });
    let supervisor = std::process::id();
    // SAFETY: the supervisor has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(from);
            end_with(supervisor);
            let sent = serve(zones, [gate, join], handle, args, to);
            // SAFETY: ends the child without running the supervisor's exit handlers.
            unsafe { libc::_exit(i32::from(sent.is_err())) }
        }
        child => Ok(Job { from, pid: child as u32 }),
    }
}

/// Start the worker that stays: it runs what is posted to it until its supervisor ends. Its pid.
///
/// # Errors
/// The kernel's.
pub fn start_server(sandbox: &Sandbox) -> io::Result<u32> {
    let [join, serve] = sandbox.server_entries();
    let supervisor = std::process::id();
    // SAFETY: the supervisor has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            end_with(supervisor);
            let entered = enter(&sandbox.zones, join);
            // Of the supervisor's descriptors it needs none.
            // SAFETY: takes numbers only; nothing of this copy uses them again.
            unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
            // SAFETY: the address of libos's entry.
            let serve: extern "C" fn() = unsafe { std::mem::transmute(serve) };
            if entered.is_ok() {
                serve();
            }
            // SAFETY: ends the child without running the supervisor's exit handlers.
            unsafe { libc::_exit(1) }
        }
        child => Ok(child as u32),
    }
}

impl Job {
    /// The outcome, which is there or will be at once.
    ///
    /// # Errors
    /// The worker died, with `status` of `waitpid` if it is known already.
    pub fn outcome(mut self, status: Option<i32>) -> io::Result<Outcome> {
        let mut head = [0; 24];
        let received = self.from.read_exact(&mut head).and_then(|()| {
            let word = |at| u64::from_le_bytes(std::array::from_fn(|byte| head[at + byte]));
            let mut bytes = vec![0; (word(16) as usize).min(REPLY_LEN_MAX)];
            self.from.read_exact(&mut bytes)?;
            Ok(Outcome { status: word(0) as u32, word: word(8), bytes })
        });
        let status = status.unwrap_or_else(|| {
            let mut status = 0;
            // SAFETY: our own child, which ends after its answer.
            unsafe { libc::waitpid(self.pid as i32, &raw mut status, 0) };
            status
        });
        received.map_err(|error| {
            if libc::WIFSIGNALED(status) {
                let signal = libc::WTERMSIG(status);
                io::Error::other(format!("it was killed by signal {signal}"))
            } else if error.kind() == io::ErrorKind::UnexpectedEof {
                io::Error::other(
                    "it ended before it had answered: with its supervisor, or for want of memory",
                )
            } else {
                error
            }
        })
    }
}

/// Make this copy of the supervisor a participant.
pub(crate) fn enter(zones: &Zones, join: u64) -> io::Result<()> {
    map_region(zones)?;
    // The supervisor takes its signals by descriptor; extension code has them as usual.
    // SAFETY: a set is plain bits.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: of this thread only.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    // SAFETY: the address of libos's entry, mapped just now.
    let join: extern "C" fn() -> i32 = unsafe { std::mem::transmute(join) };
    let joined = join();
    if joined != 0 {
        return Err(io::Error::from_raw_os_error(-joined));
    }
    // The supervisor's writable views of code and tables end here, before foreign code runs.
    for zone in [&zones.control, &zones.code, &zones.data] {
        // SAFETY: this copy of the process never uses its aliases again.
        unsafe { libc::munmap(zone.alias().cast(), zone.len()) };
    }
    Ok(())
}

/// The child's life.
fn serve(
    zones: &Zones,
    [gate, join]: [u64; 2],
    handle: u64,
    args: &[u64],
    mut to: std::fs::File,
) -> io::Result<()> {
    enter(zones, join)?;
    let mut buffer = vec![0; 64 << 10];
    let mut reply = Reply { buf: buffer.as_mut_ptr(), cap: buffer.len(), ..Reply::empty() };
    // SAFETY: the address of libos's gate.
    let gate: CallFn = unsafe { std::mem::transmute(gate) };
    // SAFETY: the caller made the words for this handler.
    let status = unsafe { gate(handle, args.as_ptr(), &raw mut reply) };
    let bytes = if reply.spill.is_null() {
        &buffer[..reply.len.min(buffer.len())]
    } else {
        // SAFETY: a spill has `len` bytes.
        unsafe { std::slice::from_raw_parts(reply.spill, reply.len.min(REPLY_LEN_MAX)) }
    };
    to.write_all(&u64::from(status).to_le_bytes())?;
    to.write_all(&reply.word.to_le_bytes())?;
    to.write_all(&(bytes.len() as u64).to_le_bytes())?;
    to.write_all(bytes)
}

/// Whoever supervises next begins anew what this worker was doing.
pub(crate) fn end_with(supervisor: u32) {
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: takes nothing.
    if unsafe { libc::getppid() } as u32 != supervisor {
        // SAFETY: it died before we asked.
        unsafe { libc::_exit(1) }
    }
}

fn map_region(zones: &Zones) -> io::Result<()> {
    let fds = zones.fds();
    for record in layout::maps(zones.place) {
        let shared = libc::MAP_SHARED | libc::MAP_FIXED;
        let (flags, fd) = match record.zone {
            ZONE_CONTROL => (shared, fds[0]),
            ZONE_CODE => (shared, fds[1]),
            ZONE_DATA => (shared | libc::MAP_NORESERVE, fds[2]),
            _ => (
                libc::MAP_PRIVATE
                    | libc::MAP_ANONYMOUS
                    | libc::MAP_NORESERVE
                    | libc::MAP_FIXED_NOREPLACE,
                -1,
            ),
        };
        // SAFETY: the first record reserves the span; the others lie within it.
        let at = unsafe {
            libc::mmap(
                record.addr as *mut libc::c_void,
                record.len as usize,
                record.prot as i32,
                flags,
                fd,
                record.offset as i64,
            )
        };
        if at as u64 != record.addr {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
