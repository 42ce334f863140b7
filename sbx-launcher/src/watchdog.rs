//! The watchdog: ends upcalls that use up their CPU time, or sleep for too long.
//!
//! It samples the sequences of the contexts. An upcall that is seen twice becomes a *suspect*:
//! from then on its thread's CPU time counts, not how long it took, so that an overloaded machine
//! does not kill innocent upcalls; time in which the thread slept or was stopped counts against a
//! second, longer limit.
//!
//! ```text
//!  seen open ─1 ms─► seen again: what does your clock say? ─budget─► and now? ─► stopped
//!                        └── it has begun by then: counts from here
//! ```
//!
//! After a second without upcalls it goes to rest. It then takes from every thread what it enters the gate
//! by: the next upcall comes the slow way, and wakes it.
//!
//! The kernel brings a running thread's time up to date for others at its ticks only, so the thread
//! itself is asked, by a signal. It is stopped by a signal as well; if that is blocked, the watchdog
//! goes by the ticks, and lets the thread go on at the gate's way out itself.
#![expect(unsafe_code, reason = "queues a signal with a value, and waits for a stop")]

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ext_api::abi::Status;
use ext_api::limits::{STACK_LEN, STUCK_MS};
use libos::data::{CONTEXT_LEN, CONTEXTS_OFFSET, Context};
use libos::signals::{Queued, STOP, WHY_BUDGET, WHY_CLOCK, WHY_RESTART, WHY_STUCK};

use crate::about::about;
use crate::follow::{self, pidfd};
use crate::sandbox::Sandbox;
use crate::tracee;

/// Between samples while upcalls are being made.
const ACTIVE: Duration = Duration::from_millis(2);
/// Between samples while none are: each takes some 60 us, with caches that are cold by then.
const IDLE: Duration = Duration::from_millis(100);
/// Between looks at a suspect, at least and at most.
const LOOK_MIN: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(20);
/// How long a thread that runs takes to say what its clock says.
const ANSWER: Duration = Duration::from_micros(100);
/// By how much the kernel may be behind with a thread's time, which the thread has not said itself: a tick.
const TICK: Duration = Duration::from_millis(10);
/// How long after the last upcall the short period is kept.
const STAYS_ACTIVE: Duration = Duration::from_secs(1);
/// How long a thread has to follow the signal before it is made to.
const PATIENCE: Duration = Duration::from_millis(20);

/// An upcall that lasts.
#[derive(Debug)]
struct Suspect {
    sequence: u64,
    clock: Option<Clock>,
    asleep: Duration,
    looked: Instant,
    told: Option<Instant>,
    /// Why it has to end, decided by somebody else.
    verdict: Option<i32>,
}

/// The upcall that a thread is to be got out of.
#[derive(Debug, Clone, Copy)]
struct Target {
    index: usize,
    sequence: u64,
    why: i32,
}

/// Why a thread is not stopped.
#[derive(Debug)]
enum Unstopped {
    /// It will be, as soon as it has a CPU.
    Late,
    /// It has ended, is traced by somebody else, or in no upcall any more.
    Refused,
}

/// What is known of a thread's CPU time.
#[derive(Debug)]
struct Clock {
    /// From where it counts.
    first_ns: u64,
    /// What it was at least, and when that was.
    last_ns: u64,
    at: Instant,
    /// The thread has said it, rather than the kernel.
    is_told: bool,
    /// What its last word was when it was asked again.
    asked: Option<u64>,
}

/// What has been seen so far.
#[derive(Debug)]
pub struct Watchdog {
    suspects: HashMap<usize, Suspect>,
    /// Threads that are to stop, but have not had a CPU yet.
    stopping: HashMap<i32, Target>,
    sum: u64,
    active_until: Instant,
    next: Duration,
    /// It has gone to rest: the next upcall wakes it. And how often one has.
    rests: bool,
    woken: u64,
}

impl Default for Watchdog {
    fn default() -> Self {
        let now = Instant::now();
        let (suspects, stopping) = (HashMap::new(), HashMap::new());
        Self { suspects, stopping, sum: 0, active_until: now, next: ACTIVE, rests: false, woken: 0 }
    }
}

impl Watchdog {
    /// When to look again.
    #[must_use]
    pub const fn period(&self) -> Duration {
        self.next
    }

    /// Has it gone to rest?
    #[must_use]
    pub const fn rests(&self) -> bool {
        self.rests
    }

    /// How often an upcall has woken it.
    #[must_use]
    pub const fn woken(&self) -> u64 {
        self.woken
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

    /// Handle a status of `waitpid`, if it is of a thread that was to stop. False: it is not.
    pub fn stopped(&mut self, sandbox: &Sandbox, tid: i32, status: i32) -> bool {
        let Some(target) = self.stopping.remove(&tid) else { return false };
        if !libc::WIFSTOPPED(status) {
            return false;
        }
        // If it has ended the upcall by itself, it only goes on.
        let _ = redirect(sandbox, tid, target);
        let _ = let_go(tid, status);
        true
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
                    let wait = suspect.look(sandbox, index, now, &mut self.stopping);
                    self.next = self.next.min(wait);
                }
                _ => {
                    self.suspects.insert(index, Suspect::new(sequence));
                    self.next = self.next.min(LOOK_MIN);
                }
            }
        }
        let is_woken = self.rests && !common.is_resting();
        self.woken += u64::from(is_woken);
        if sum != self.sum || is_woken {
            self.sum = sum;
            self.active_until = now + STAYS_ACTIVE;
            self.rests = false;
        }
        if now < self.active_until {
            self.next = self.next.min(ACTIVE);
        } else if self.suspects.is_empty() && !self.rests {
            // Once more soon, for those that were on their way in.
            common.rest();
            (self.rests, self.next) = (true, ACTIVE);
        }
    }
}

impl Suspect {
    fn new(sequence: u64) -> Self {
        let looked = Instant::now();
        Self { sequence, clock: None, asleep: Duration::ZERO, looked, told: None, verdict: None }
    }

    /// Look at an upcall that still is open; when to look again.
    fn look(
        &mut self,
        sandbox: &Sandbox,
        index: usize,
        now: Instant,
        stopping: &mut HashMap<i32, Target>,
    ) -> Duration {
        let common = sandbox.common();
        let context = common.context(index);
        // Of another pid namespace, and not started by anybody that we follow: the number is another's here.
        let Some((pid, tid)) = sandbox.thread_of(index) else { return LOOK_MAX };
        let state = state(pid, tid);
        if has_ended(pid, tid, state) {
            // All that a process leaves that has ended is swept.
            if lives(pid) {
                sandbox.end_upcall_of_dead(index, self.sequence);
            }
            return LOOK_MAX;
        }
        let Some(cpu_ns) = cpu_ns(pid, tid) else { return LOOK_MAX };
        let runs = state == Some('R');
        let clock = self.clock.get_or_insert_with(|| Clock::new(cpu_ns, now));
        let heard = clock.hear(context, self.sequence, now);
        if !clock.see(cpu_ns, now) && !heard && !runs {
            self.asleep += now - self.looked;
        }
        self.looked = now;
        let frames = sandbox.frames_of(index);
        let budget = frames.first().map_or(0, |frame| sandbox.budget_of(frame.row));
        let left = clock.left(Duration::from_nanos(budget));
        let why = self.verdict.or(if left.is_none() {
            Some(WHY_BUDGET)
        } else if self.asleep > Duration::from_millis(STUCK_MS) {
            Some(WHY_STUCK)
        } else {
            None
        });
        match (why, left) {
            (Some(why), _) => {
                let is_told = self.told.is_some_and(|when| now - when <= PATIENCE);
                if is_told || stopping.contains_key(&tid) {
                    return LOOK_MIN;
                }
                let target = Target { index, sequence: self.sequence, why };
                if self.told.replace(now).is_none() {
                    queue(pid, tid, self.sequence, why);
                } else if let Err(Unstopped::Late) = make(sandbox, tid, target) {
                    stopping.insert(tid, target);
                }
                LOOK_MIN
            }
            (None, Some(left)) if runs => {
                // It may have run ever since its clock was known.
                let left = left.saturating_sub(now - clock.at);
                if clock.is_told && left > ANSWER {
                    return left.min(LOOK_MAX);
                }
                if !clock.asks(context) {
                    return LOOK_MIN;
                }
                queue(pid, tid, self.sequence, WHY_CLOCK);
                ANSWER
            }
            _ => (left.unwrap_or(LOOK_MAX) / 2).clamp(LOOK_MIN, LOOK_MAX),
        }
    }
}

impl Clock {
    const fn new(cpu_ns: u64, at: Instant) -> Self {
        Self { first_ns: cpu_ns, last_ns: cpu_ns, at, is_told: false, asked: None }
    }

    /// What the kernel says. True if it is news.
    fn see(&mut self, cpu_ns: u64, now: Instant) -> bool {
        let is_news = cpu_ns > self.last_ns;
        if is_news {
            (self.last_ns, self.at) = (cpu_ns, now);
        }
        is_news
    }

    /// What the thread has said meanwhile of this upcall. True if it has.
    fn hear(&mut self, context: &Context, sequence: u64, now: Instant) -> bool {
        let said = context.cpu_ns.load(Ordering::Acquire);
        let has_said = self.asked.is_some_and(|before| before != said)
            && context.cpu_sequence.load(Ordering::Acquire) == sequence;
        if has_said {
            self.asked = None;
            if !self.is_told {
                (self.is_told, self.first_ns) = (true, said);
            }
            self.see(said, now);
        }
        has_said
    }

    /// Is the thread to be asked? Not while it has not answered.
    fn asks(&mut self, context: &Context) -> bool {
        let is_first = self.asked.is_none();
        self.asked.get_or_insert_with(|| context.cpu_ns.load(Ordering::Acquire));
        is_first
    }

    /// What is left of `budget`; None once it has used more.
    fn left(&self, budget: Duration) -> Option<Duration> {
        let unsure = if self.is_told { Duration::ZERO } else { TICK };
        let used = Duration::from_nanos(self.last_ns.saturating_sub(self.first_ns));
        (used <= budget + unsure).then(|| (budget + unsure) - used)
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

/// What the thread does, by the kernel's letter: `R` if it runs, or would if there were a CPU for it.
fn state(pid: i32, tid: i32) -> Option<char> {
    let text = about(format_args!("{pid}/task/{tid}/stat"))?;
    text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
}

/// Has the thread ended? The first one of a process stays there until all others have.
fn has_ended(pid: i32, tid: i32, state: Option<char>) -> bool {
    // SAFETY: takes numbers only, and sends nothing.
    let missing = || unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, 0) } != 0
        && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH);
    matches!(state, Some('Z' | 'X')) || state.is_none() && missing()
}

/// Is any thread of the process left?
fn lives(pid: i32) -> bool {
    pidfd(pid as u32).is_some_and(|fd| !follow::has_ended(&fd))
}

/// Queue the stop signal, which names the upcall that it is for.
fn queue(pid: i32, tid: i32, sequence: u64, why: i32) {
    let info = Queued::new(std::process::id(), why, sequence);
    // SAFETY: the kernel reads a siginfo. If the thread is gone there is nobody to stop.
    unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, STOP, &raw const info) };
}

/// Let a thread that blocks the signal, or is stopped, go on at the gate's way out.
fn make(sandbox: &Sandbox, tid: i32, target: Target) -> Result<(), Unstopped> {
    tracee::seize(tid, 0).and_then(|()| tracee::interrupt(tid)).map_err(|_| Unstopped::Refused)?;
    let status = wait_for_stop(tid)?;
    let redirected = redirect(sandbox, tid, target);
    let_go(tid, status).and(redirected).map_err(|_| Unstopped::Refused)
}

/// The status with which a seized thread has stopped.
fn wait_for_stop(tid: i32) -> Result<i32, Unstopped> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let mut status = 0;
        // SAFETY: our own tracee.
        let got = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
        if got == tid && libc::WIFSTOPPED(status) {
            return Ok(status);
        }
        if got != 0 {
            return Err(Unstopped::Refused);
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Err(Unstopped::Late)
}

/// Trace it no longer. If it is a signal that it has stopped for, it gets it.
fn let_go(tid: i32, status: i32) -> io::Result<()> {
    let signal = if status >> 16 == 0 { libc::WSTOPSIG(status) } else { 0 };
    tracee::let_go(tid, signal)
}

fn redirect(sandbox: &Sandbox, tid: i32, target: Target) -> io::Result<()> {
    let Target { index, sequence, why } = target;
    let mut regs = tracee::registers(tid)?;
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
    tracee::set_registers(tid, &regs)?;
    sandbox.note_fault(index, status);
    Ok(())
}
