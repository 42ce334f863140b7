//! The keeper: a copy of the supervisor that sleeps until that one dies, and then is the supervisor.
//!
//! It is made anew whenever the supervisor's state has changed, before anybody is told of the
//! change. What changes between two keepers and was promised to nobody is undone by the next
//! supervisor: it makes the tables say what its own state says.
#![expect(unsafe_code, reason = "forks, waits for a process and ends one")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::follow::pidfd;
use crate::hand::Hand;
use crate::run::detach;

/// The keeper, as its supervisor knows it; ends with this value.
#[derive(Debug)]
pub struct Keeper {
    pid: i32,
}

/// What came of a fork.
#[derive(Debug)]
pub enum Side {
    /// The supervisor goes on, with a keeper.
    Supervisor(Keeper),
    /// The supervisor has died; the caller is what it was.
    Successor,
}

impl Keeper {
    /// Make a keeper from the calling process as it is now. Of several, the last that was named in the
    /// page takes over; one that its supervisor did not live to name is nobody's.
    ///
    /// # Errors
    /// The kernel's; then there is none.
    pub fn make(hand: &Hand) -> io::Result<Side> {
        let number = hand.number_keeper();
        let own = std::process::id();
        let supervisor = pidfd(own).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the supervisor has one thread, so the child may do anything.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                detach();
                wait_for(&supervisor);
                if hand.keeper() != number {
                    // SAFETY: ends this copy, which another one has replaced.
                    unsafe { libc::_exit(0) }
                }
                Ok(Side::Successor)
            }
            pid => {
                hand.set_keeper(number);
                Ok(Side::Supervisor(Self { pid }))
            }
        }
    }

    /// Its pid.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // SAFETY: our own child, not reaped unless somebody killed it.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // SAFETY: as above.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// Sleep until the process behind a pidfd has ended.
fn wait_for(process: &OwnedFd) {
    let mut polled = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry. Signals that interrupt it are of no concern here.
    while unsafe { libc::poll(&raw mut polled, 1, -1) } != 1 {}
}
