//! What a benchmark that is killed would leave: sandboxes, namespaces and a folder. A process of its own waits for
//! the benchmark's end and takes them away; all of them have its pid in their names. Programs that it has started
//! are ended by the kernel (`Server::program`).
#![expect(unsafe_code, reason = "forks, and waits for its parent by a pidfd")]

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::follow::pidfd;

/// The kinds of sandboxes that a benchmark of the network has.
pub(super) const SANDBOXES: [&str; 2] = ["bench-net", "bench-memcached"];
/// What its namespaces are called, before its pid and behind it.
pub(super) const NAMESPACE: &str = "sbx-bench";
pub(super) const ENDS: [&str; 2] = ["s", "r"];

/// The folder that a benchmark keeps files in.
pub(super) fn folder(pid: u32) -> PathBuf {
    std::env::temp_dir().join(format!("bench-net-{pid}"))
}

/// The process that waits. It goes with the value, when nothing is left.
pub(super) struct Left(i32);

impl Left {
    /// Begin to wait for this process's end.
    pub(super) fn watch() -> io::Result<Self> {
        let launcher = std::env::current_exe()?;
        let pid = std::process::id();
        let parent = pidfd(pid).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: a benchmark has one thread.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                // SAFETY: takes nothing. What a terminal interrupts is the benchmark, not this.
                unsafe { libc::setsid() };
                wait(parent.as_raw_fd());
                take_away(&launcher, pid);
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) }
            }
            child => Ok(Self(child)),
        }
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        // SAFETY: our own child.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        // SAFETY: as above.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
    }
}

/// Sleep until that process has ended.
fn wait(pidfd: i32) {
    let mut watched = libc::pollfd { fd: pidfd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry. A signal that ends this wait ends the next one no sooner.
    while unsafe { libc::poll(&raw mut watched, 1, -1) } != 1 {}
}

/// Take away what the benchmark `pid` had; what is not there needs nothing.
fn take_away(launcher: &std::path::Path, pid: u32) {
    let quietly = |command: &mut Command| {
        let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = silent.status();
    };
    for kind in SANDBOXES {
        quietly(Command::new(launcher).args(["down", &format!("{kind}-{pid}")]));
    }
    for end in ENDS {
        quietly(Command::new("ip").args(["netns", "del", &format!("{NAMESPACE}-{pid}{end}")]));
    }
    let _ = std::fs::remove_dir_all(folder(pid));
}
