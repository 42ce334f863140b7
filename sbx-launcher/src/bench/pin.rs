//! Where to run, and what it takes.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;

/// Keep a process (0: the calling thread) on one CPU. A machine with fewer runs where it can.
pub(super) fn pin(pid: i32, cpu: usize) {
    let mut set = CpuSet::new();
    if set.set(cpu).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(pid), &set);
    }
}

/// Let the calling thread run anywhere.
pub(super) fn unpin() {
    let mut set = CpuSet::new();
    for cpu in 0..CpuSet::count() {
        let _ = set.set(cpu);
    }
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}

/// Nanoseconds that `work` takes per operation, of which it does `count`.
pub(super) fn time(count: u64, work: impl FnOnce()) -> f64 {
    let start = std::time::Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / count as f64
}

/// Of this process, or of its children that have ended.
pub(super) fn cpu_seconds(of: UsageWho) -> f64 {
    let time = |at: TimeVal| at.tv_sec() as f64 + at.tv_usec() as f64 / 1e6;
    getrusage(of).map_or(0.0, |usage| time(usage.user_time()) + time(usage.system_time()))
}
