//! One CPU for a launch.
//!
//! Until a command has joined, it and its supervisor take turns: each waits while the other runs. On two CPUs
//! every turn wakes one that has just gone to sleep, which takes longer than most turns do. So the supervisor
//! keeps to the CPU that it is on, and with it the command that it forks, until the command is let go. It forks
//! nothing else meanwhile: that would stay there.
#![expect(unsafe_code, reason = "asks which CPU this is")]

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Where this process may run again once the launch is over, and the command with it.
#[derive(Debug)]
pub struct OneCpu {
    before: CpuSet,
}

impl OneCpu {
    /// Keep to this CPU from now on. None if that would change nothing, or cannot be done.
    #[must_use]
    pub fn hold() -> Option<Self> {
        let before = sched_getaffinity(Pid::from_raw(0)).ok()?;
        let allowed = (0..CpuSet::count()).filter(|cpu| before.is_set(*cpu).unwrap_or(false));
        if allowed.take(2).count() < 2 {
            return None;
        }
        let mut one = CpuSet::new();
        // SAFETY: takes nothing.
        let cpu = usize::try_from(unsafe { libc::sched_getcpu() }).ok()?;
        one.set(cpu).ok()?;
        sched_setaffinity(Pid::from_raw(0), &one).ok()?;
        Some(Self { before })
    }

    /// Let this process, and `command` if there is one, run wherever this one could before.
    pub fn release(self, command: Option<i32>) {
        for pid in command.into_iter().chain([0]) {
            // A command that has ended runs nowhere.
            let _ = sched_setaffinity(Pid::from_raw(pid), &self.before);
        }
    }
}
