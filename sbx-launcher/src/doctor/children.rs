//! What can only be tried with another process.
#![expect(unsafe_code, reason = "forks, and asks a listener with an ioctl")]

use std::io;
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm, fork, pause};

use super::Found;
use crate::bpf::Assembler;
use crate::filter::{InstallError, install};

/// When a child that is to be traced ends by itself, should nobody end it; in seconds.
const CHILD_SECONDS_MAX: u32 = 10;

/// How long a child may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether a child of this process may be traced: really seizes one.
pub(super) fn ptrace() -> Found {
    // SAFETY: the child only waits for its end.
    match unsafe { fork() } {
        Err(error) => Found::new(false, format!("fork: {error}")),
        Ok(ForkResult::Child) => {
            alarm::set(CHILD_SECONDS_MAX);
            loop {
                pause();
            }
        }
        Ok(ForkResult::Parent { child }) => {
            let seized = ptrace::seize(child, ptrace::Options::empty()).map_err(io::Error::from);
            end(child);
            Found::from_result(&seized)
        }
    }
}

/// Kills a child of ours and takes it off the table.
fn end(child: Pid) {
    if kill(child, Signal::SIGKILL).is_ok() {
        // A traced child may show a stop first.
        while waitpid(child, None).is_ok_and(|status| status.pid().is_some() && !ended(status)) {}
    }
}

const fn ended(status: WaitStatus) -> bool {
    matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..))
}

/// Whether a listener can be installed, and hands over descriptors.
pub(super) fn addfd() -> Found {
    let mut asm = Assembler::new();
    asm.ret(libc::SECCOMP_RET_ALLOW);
    let Ok(program) = asm.finish() else { return Found::new(false, "no program") };
    // SAFETY: the child makes system calls and ends; it neither allocates nor takes a lock.
    match unsafe { fork() } {
        Err(error) => Found::new(false, format!("fork: {error}")),
        Ok(ForkResult::Child) => {
            let answer = match install(&program) {
                Ok(listener) => refusal_of_nobody(listener.as_raw_fd()),
                Err(InstallError::ListenerExists) => libc::EBUSY,
                Err(InstallError::Kernel(errno)) => errno,
            };
            // SAFETY: ends the child without running what belongs to its parent.
            unsafe { libc::_exit(answer) }
        }
        Ok(ForkResult::Parent { child }) => match answer(child) {
            // Asked about a notification that does not exist, a kernel that can says so.
            Some(libc::ENOENT) => Found::new(true, "works"),
            Some(libc::EBUSY) => Found::new(false, "another seccomp listener watches this process"),
            Some(errno) => Found::new(false, io::Error::from_raw_os_error(errno).to_string()),
            None => Found::new(false, "the trial did not end"),
        },
    }
}

/// The errno with which `listener` refuses to hand a descriptor to notification 0.
fn refusal_of_nobody(listener: i32) -> i32 {
    let mut request =
        libc::seccomp_notif_addfd { id: 0, flags: 0, srcfd: 0, newfd: 0, newfd_flags: 0 };
    // The descriptor that is handed over must be open; the listener is.
    request.srcfd = listener.cast_unsigned();
    // SAFETY: the kernel reads one request.
    unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw mut request) };
    io::Error::last_os_error().raw_os_error().unwrap_or_default()
}

/// The exit status of `child`, if it ends by itself and in time.
fn answer(child: Pid) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)).ok()? {
            WaitStatus::Exited(_, code) => return Some(code),
            WaitStatus::StillAlive => sleep(Duration::from_millis(1)),
            _ => return None,
        }
    }
    end(child);
    None
}
