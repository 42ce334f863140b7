//! The watchdog: ends upcalls that use up their CPU time, or sleep for too long.
//!
//! It samples the sequences of the contexts. An upcall that is seen twice becomes a *suspect*:
//! from then on its thread's CPU time is read. What it has used counts, not how long it took, so
//! that an overloaded machine does not kill innocent upcalls; time in which the thread slept or
//! was stopped counts against a second, longer limit.
//!
//! First it asks, by a signal to that thread; if that is blocked, it lets the thread go on at the
//! gate's way out itself.
#![expect(unsafe_code, reason = "queues a signal with a value, and uses ptrace")]

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ext_api::abi::Status;
use ext_api::limits::{STACK_LEN, STUCK_MS};
use libos::data::{CONTEXT_LEN, CONTEXTS_OFFSET};
use libos::signals::{STOP, WHY_BUDGET, WHY_RESTART, WHY_STUCK};

use crate::sandbox::Sandbox;

/// Between samples while upcalls are being made.
const ACTIVE: Duration = Duration::from_millis(2);
/// Between samples while none are.
const IDLE: Duration = Duration::from_millis(50);
/// Between looks at a suspect, at least and at most.
const LOOK_MIN: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(20);
/// How long after the last upcall the short period is kept.
const STAYS_ACTIVE: Duration = Duration::from_secs(1);
/// How long a thread has to follow the signal before it is made to.
const PATIENCE: Duration = Duration::from_millis(20);

/// An upcall that lasts.
#[derive(Debug)]
struct Suspect {
    sequence: u64,
    /// CPU time of the thread when it became a suspect, and at the last look.
    cpu: Option<[u64; 2]>,
    asleep: Duration,
    looked: Instant,
    told: Option<Instant>,
    /// Why it has to end, decided by somebody else.
    verdict: Option<i32>,
}

/// What has been seen so far.
#[derive(Debug)]
pub struct Watchdog {
    suspects: HashMap<usize, Suspect>,
    sum: u64,
    active_until: Instant,
    next: Duration,
}

impl Default for Watchdog {
    fn default() -> Self {
        let now = Instant::now();
        Self { suspects: HashMap::new(), sum: 0, active_until: now, next: ACTIVE }
    }
}

impl Watchdog {
    /// When to look again.
    #[must_use]
    pub const fn period(&self) -> Duration {
        self.next
    }

    /// Have these upcalls ended, since their extension is restarted.
    pub fn condemn(&mut self, upcalls: &[(usize, u64)]) {
        for &(index, sequence) in upcalls {
            let suspect = self.suspects.entry(index).or_insert_with(|| Suspect::new(sequence));
            if suspect.sequence == sequence {
                suspect.verdict = Some(WHY_RESTART);
            }
        }
    }

    /// Take a sample, and end what has to end.
    pub fn look(&mut self, sandbox: &Sandbox) {
        let common = sandbox.common();
        let now = Instant::now();
        let mut sum = 0u64;
        self.next = IDLE;
        for index in common.contexts() {
            if common.claim(index).load().pid == 0 {
                if !self.suspects.is_empty() {
                    self.suspects.remove(&index);
                }
                continue;
            }
            let sequence = common.context(index).sequence.load(Ordering::Acquire);
            sum = sum.wrapping_add(sequence);
            if sequence.is_multiple_of(2) {
                self.suspects.remove(&index);
                continue;
            }
            match self.suspects.get_mut(&index) {
                Some(suspect) if suspect.sequence == sequence => {
                    let wait = suspect.look(sandbox, index, now);
                    self.next = self.next.min(wait);
                }
                _ => {
                    let mut suspect = Suspect::new(sequence);
                    // Its time counts from here.
                    self.next = self.next.min(suspect.look(sandbox, index, now).min(LOOK_MAX / 4));
                    self.suspects.insert(index, suspect);
                }
            }
        }
        if sum != self.sum {
            self.sum = sum;
            self.active_until = now + STAYS_ACTIVE;
        }
        if now < self.active_until {
            self.next = self.next.min(ACTIVE);
        }
    }
}

impl Suspect {
    fn new(sequence: u64) -> Self {
        let looked = Instant::now();
        Self { sequence, cpu: None, asleep: Duration::ZERO, looked, told: None, verdict: None }
    }

    /// Look at an upcall that still is open; when to look again.
    fn look(&mut self, sandbox: &Sandbox, index: usize, now: Instant) -> Duration {
        let common = sandbox.common();
        let (pid, tid) = (
            common.claim(index).load().pid as i32,
            common.context(index).tid.load(Ordering::Relaxed) as i32,
        );
        let Some(cpu) = cpu_ns(pid, tid) else { return LOOK_MAX };
        let [first, last] = *self.cpu.get_or_insert([cpu, cpu]);
        if cpu == last && !runs(pid, tid) {
            self.asleep += now - self.looked;
        }
        self.looked = now;
        self.cpu = Some([first, cpu]);
        let frames = sandbox.frames_of(index);
        let budget = frames.first().map_or(0, |frame| sandbox.budget_of(frame.row));
        let used = cpu.saturating_sub(first);
        let why = self.verdict.or(if used > budget {
            Some(WHY_BUDGET)
        } else if self.asleep > Duration::from_millis(STUCK_MS) {
            Some(WHY_STUCK)
        } else {
            None
        });
        let Some(why) = why else {
            let left = Duration::from_nanos(budget - used);
            return (left / 2).clamp(LOOK_MIN, LOOK_MAX);
        };
        match self.told {
            None => {
                self.told = Some(now);
                ask(pid, tid, self.sequence, why);
            }
            Some(when) if now - when > PATIENCE => {
                self.told = Some(now);
                let _ = make(sandbox, index, tid, self.sequence, why);
            }
            Some(_) => {}
        }
        LOOK_MIN
    }
}

/// Have the scheduler run this thread soon after it wakes, whoever else has the CPU: by a short
/// slice, which any process may ask for. A kernel before 6.12 pays no heed.
pub fn wake_promptly() {
    const SLICE_NS: u64 = 100_000;
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    /// Leave the policy as it is, and children with what is usual.
    const FLAGS: u64 = 0x08 | 0x01;
    let size = size_of::<Attributes>() as u32;
    // SAFETY: takes numbers only.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attributes =
        Attributes { size, flags: FLAGS, nice, runtime: SLICE_NS, ..Attributes::default() };
    // SAFETY: the kernel reads a structure of the size that it names.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// CPU time of a thread.
fn cpu_ns(pid: i32, tid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
    text.split(' ').next()?.parse().ok()
}

/// Is the thread running, or would it if there were a CPU for it?
fn runs(pid: i32, tid: i32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).unwrap_or_default();
    let state = text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state == Some('R')
}

/// Queue the stop signal, which names the upcall that it is for.
fn ask(pid: i32, tid: i32, sequence: u64, why: i32) {
    #[repr(C)]
    struct Info {
        signal: i32,
        errno: i32,
        code: i32,
        pad: i32,
        sender: [i32; 2],
        value: u64,
        rest: [u64; 12],
    }
    const _: () = assert!(size_of::<Info>() == 128);
    let sender = [std::process::id() as i32, 0];
    let code = libc::SI_QUEUE;
    let info =
        Info { signal: STOP, errno: why, code, pad: 0, sender, value: sequence, rest: [0; 12] };
    // SAFETY: the kernel reads a siginfo. If the thread is gone there is nobody to stop.
    unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, STOP, &raw const info) };
}

/// Let a thread that blocks the signal, or is stopped, go on at the gate's way out.
fn make(sandbox: &Sandbox, index: usize, tid: i32, sequence: u64, why: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SEIZE, tid, 0)?;
    let redirected = ptrace(libc::PTRACE_INTERRUPT, tid, 0)
        .and_then(|()| wait_for_stop(tid))
        .and_then(|()| redirect(sandbox, index, tid, sequence, why));
    ptrace(libc::PTRACE_DETACH, tid, 0)?;
    redirected
}

fn wait_for_stop(tid: i32) -> io::Result<()> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let mut status = 0;
        // SAFETY: our own tracee.
        let got = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
        if got == tid {
            return if libc::WIFSTOPPED(status) {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            };
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Err(io::Error::from_raw_os_error(libc::ETIMEDOUT))
}

fn redirect(sandbox: &Sandbox, index: usize, tid: i32, sequence: u64, why: i32) -> io::Result<()> {
    // SAFETY: registers are plain numbers.
    let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    ptrace(libc::PTRACE_GETREGS, tid, &raw mut regs as u64)?;
    let place = sandbox.zones.place;
    let stack = place.stacks() + index * STACK_LEN;
    let context = sandbox.common().context(index);
    let whole = place.shared().contains(&(regs.rip as usize))
        && (stack..stack + STACK_LEN).contains(&(regs.rsp as usize))
        && !sandbox.gate.ranges.iter().any(|range| range.contains(&regs.rip))
        && context.sequence.load(Ordering::Acquire) == sequence;
    if !whole {
        return Err(io::Error::from(io::ErrorKind::WouldBlock));
    }
    let status = match why {
        WHY_BUDGET => Status::Overrun,
        WHY_RESTART => Status::Restarting,
        _ => Status::Stuck,
    };
    regs.rip = sandbox.gate.leave;
    regs.rdi = (place.base + CONTEXTS_OFFSET + index * CONTEXT_LEN) as u64;
    regs.rsi = status as u64;
    // No system call is to be restarted.
    regs.orig_rax = u64::MAX;
    ptrace(libc::PTRACE_SETREGS, tid, &raw const regs as u64)?;
    sandbox.note_fault(index, status);
    Ok(())
}

fn ptrace(request: u32, tid: i32, data: u64) -> io::Result<()> {
    // SAFETY: requests of this module take numbers, or registers of the type that they name.
    let got = unsafe { libc::ptrace(request, tid, 0, data) };
    if got == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
