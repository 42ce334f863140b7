//! Kills an upcall at every one of its instructions, and looks what it left.
//!
//! `kill-anywhere OPERATION [STRIDE]` runs in a sandbox with kv-cache, rate-limit and ledger
//! loaded. For n = 0, STRIDE, 2 STRIDE, ... a forked child makes the upcall under ptrace, is killed
//! after n instructions, and what the parent finds then has to be what was there before or what
//! the upcall makes of it.
//!
//! `kill-anywhere attach STRIDE SANDBOX` runs in none, and kills children that attach to that one; what
//! they leave, the caller sees.
#![expect(unsafe_code, reason = "forks")]

use std::process::ExitCode;

use ext_api::client::Sandbox;
use ext_api::error::CallError;
use ledger::ledger::Client as Ledger;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

const KEY: &[u8] = b"the key";
const OLD: &[u8] = &[b'o'; 100];
const NEW: &[u8] = &[b'n'; 90];
const OPERATIONS: [&str; 10] =
    ["replace", "insert", "delete", "allow", "mutex", "rwlock", "read", "push", "pop", "count"];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let stride = args.get(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let done = match (args.first(), args.get(2)) {
        (Some(name), Some(sandbox)) if name == "attach" => attach(stride, sandbox),
        (Some(name), _) if OPERATIONS.contains(&name.as_str()) => {
            Bench::new(name, stride).and_then(|mut bench| bench.run())
        }
        _ => Err(format!("usage: kill-anywhere OPERATION [STRIDE], with one of {OPERATIONS:?}")),
    };
    match done {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("kill-anywhere: {why}");
            ExitCode::FAILURE
        }
    }
}

struct Bench {
    operation: String,
    stride: usize,
    sandbox: Sandbox,
    ledger: Ledger,
    /// What the operation's structure said last.
    last: u64,
}

/// What was found: nothing happened, or all of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Before,
    After,
}

impl Bench {
    fn new(operation: &str, stride: usize) -> Result<Self, String> {
        let text = |error: CallError| error.to_string();
        let (sandbox, ledger) =
            (Sandbox::current().map_err(text)?, Ledger::attach().map_err(text)?);
        Ok(Self { operation: operation.to_owned(), stride, sandbox, ledger, last: 0 })
    }

    fn run(&mut self) -> Result<String, String> {
        stay_on_one_cpu()?;
        let (mut before, mut after) = (0, 0);
        for steps in (0..).step_by(self.stride) {
            self.prepare().map_err(|error| format!("at {steps}, preparing: {error}"))?;
            if killed_after(steps, || self.act().is_ok())? {
                let found = self.found().map_err(|error| format!("at {steps}: {error}"))?;
                (before, after) = match found {
                    Found::Before => (before + 1, after),
                    Found::After => (before, after + 1),
                };
            } else {
                let op = &self.operation;
                return Ok(format!(
                    "{op}: killed {} times in {steps} instructions, {before} before, {after} after",
                    before + after
                ));
            }
        }
        Err("it does not end".into())
    }

    fn put(&self, value: &[u8]) -> Result<(), CallError> {
        let words =
            [KEY.as_ptr() as u64, KEY.len() as u64, value.as_ptr() as u64, value.len() as u64, 0];
        self.sandbox.invoke::<()>(self.sandbox.find("kv.put")?, &words)
    }

    fn get(&self) -> Result<Option<Vec<u8>>, CallError> {
        self.sandbox.invoke::<Option<Vec<u8>>>(self.sandbox.find("kv.get")?, &key_words())
    }

    fn delete(&self) -> Result<bool, CallError> {
        self.sandbox.invoke::<bool>(self.sandbox.find("kv.delete")?, &key_words())
    }

    fn peek(&self) -> Result<u64, CallError> {
        self.sandbox.invoke::<u64>(self.sandbox.find("limit.peek")?, &key_words())
    }

    /// What the child does.
    fn act(&self) -> Result<(), CallError> {
        match self.operation.as_str() {
            "replace" | "insert" => self.put(NEW),
            "delete" => self.delete().map(drop),
            "allow" => {
                let words = [KEY.as_ptr() as u64, KEY.len() as u64, 1];
                self.sandbox.invoke::<bool>(self.sandbox.find("limit.allow")?, &words).map(drop)
            }
            "mutex" => self.ledger.mutex_add().map(drop),
            "rwlock" => self.ledger.rwlock_add().map(drop),
            "read" => self.ledger.rwlock_read().map(drop),
            "push" => self.ledger.push(7).map(drop),
            "pop" => self.ledger.pop().map(drop),
            _ => self.ledger.count().map(drop),
        }
    }

    fn prepare(&mut self) -> Result<(), CallError> {
        match self.operation.as_str() {
            "replace" | "delete" => self.put(OLD)?,
            "insert" => drop(self.delete()?),
            "allow" => self.last = self.peek()?,
            "mutex" => self.last = self.recovered(Ledger::mutex_add, Ledger::mutex_recover)?.1,
            "rwlock" | "read" => {
                self.last = self.recovered(Ledger::rwlock_add, Ledger::rwlock_recover)?.1;
            }
            "push" => while self.ledger.pop()?.is_some() {},
            "pop" => {
                while self.ledger.pop()?.is_some() {}
                self.ledger.push(1)?;
                self.ledger.push(2)?;
            }
            _ => self.last = self.ledger.count()?,
        }
        Ok(())
    }

    /// Change a pair, after repairing it if it is broken; whether it was, and the figure then.
    fn recovered(
        &self,
        change: impl Fn(&Ledger) -> Result<u64, CallError>,
        recover: impl Fn(&Ledger) -> Result<(), CallError>,
    ) -> Result<(bool, u64), CallError> {
        match change(&self.ledger) {
            Err(CallError::Failed(text)) if text == "broken" => {
                recover(&self.ledger)?;
                change(&self.ledger).map(|figure| (true, figure))
            }
            result => result.map(|figure| (false, figure)),
        }
    }

    /// What the kill left. An error is what must never be.
    fn found(&mut self) -> Result<Found, String> {
        let text = |error: CallError| error.to_string();
        let after = |is_after| if is_after { Found::After } else { Found::Before };
        match self.operation.as_str() {
            "replace" | "insert" | "delete" => {
                let found = self.get().map_err(text)?;
                let before = if self.operation == "insert" { None } else { Some(OLD) };
                let wanted = if self.operation == "delete" { None } else { Some(NEW) };
                // The bucket can be locked, and the allocator can be used.
                self.put(OLD).map_err(text)?;
                self.delete().map_err(text)?;
                match found.as_deref() {
                    found if found == wanted => Ok(Found::After),
                    found if found == before => Ok(Found::Before),
                    found => Err(format!("found {found:?}")),
                }
            }
            // What the limit has given out comes back by and by.
            "allow" => match self.peek().map_err(text)? {
                level if level + 1 < self.last => Err(format!("{level} after {}", self.last)),
                level => Ok(after(level < self.last)),
            },
            "mutex" => {
                let (_, figure) =
                    self.recovered(Ledger::mutex_add, Ledger::mutex_recover).map_err(text)?;
                one_more(figure, self.last + 1).map(after)
            }
            "rwlock" => {
                let (_, figure) =
                    self.recovered(Ledger::rwlock_add, Ledger::rwlock_recover).map_err(text)?;
                self.ledger.rwlock_read().map_err(text)?;
                one_more(figure, self.last + 1).map(after)
            }
            "read" => {
                // A dead reader must keep nobody from writing.
                let figure = self.ledger.rwlock_add().map_err(text)?;
                one_more(figure, self.last + 1).map(after)
            }
            "push" => {
                let popped = (self.ledger.pop().map_err(text)?, self.ledger.pop().map_err(text)?);
                // Who puts something in waits until the dead one has nothing any more; who takes something out does not.
                self.ledger.push(8).map_err(text)?;
                let behind = self.ledger.pop().map_err(text)?;
                match (popped, behind) {
                    ((None, None), Some(8)) => Ok(Found::Before),
                    ((Some(7), None), Some(8)) => Ok(Found::After),
                    other => Err(format!("popped {other:?}")),
                }
            }
            "pop" => {
                let (first, second) =
                    (self.ledger.pop().map_err(text)?, self.ledger.pop().map_err(text)?);
                match (first, second) {
                    (Some(1), Some(2)) => Ok(Found::Before),
                    (Some(2), None) => Ok(Found::After),
                    other => Err(format!("popped {other:?}")),
                }
            }
            _ => one_more(self.ledger.count().map_err(text)?, self.last + 1).map(after),
        }
    }
}

/// Kill children on their way into `sandbox`.
fn attach(stride: usize, sandbox: &str) -> Result<String, String> {
    stay_on_one_cpu()?;
    let killed = (0..).step_by(stride);
    for (times, steps) in killed.enumerate() {
        if !killed_after(steps, || Sandbox::attach(sandbox).is_ok())? {
            return Ok(format!("attach: killed {times} times in {steps} instructions"));
        }
    }
    Err("it does not end".into())
}

/// A step is two switches between parent and child: on one CPU they cost a tenth.
fn stay_on_one_cpu() -> Result<(), String> {
    let mut here = CpuSet::new();
    here.set(0).and_then(|()| sched_setaffinity(Pid::from_raw(0), &here)).map_err(text)
}

/// Have a child act and kill it after so many instructions. False: it had done by then.
fn killed_after(steps: usize, act: impl FnOnce() -> bool) -> Result<bool, String> {
    // SAFETY: this process has one thread.
    let child = match unsafe { fork() }.map_err(text)? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // Between the two signals lies the upcall, and little else.
            let ready = ptrace::traceme().and_then(|()| raise(Signal::SIGSTOP));
            let done = ready.is_ok() && act();
            let _ = raise(if done { Signal::SIGUSR1 } else { Signal::SIGUSR2 });
            std::process::exit(0)
        }
    };
    let mut status = waitpid(child, None).map_err(text)?;
    if status != WaitStatus::Stopped(child, Signal::SIGSTOP) {
        return Err(format!("the child begins with {status:?}"));
    }
    for _ in 0..steps {
        status = step(child)?;
        match status {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, Signal::SIGUSR1) => {
                kill(child, Signal::SIGKILL).map_err(text)?;
                waitpid(child, None).map_err(text)?;
                return Ok(false);
            }
            other => return Err(format!("the child ends with {other:?}")),
        }
    }
    kill(child, Signal::SIGKILL).map_err(text)?;
    waitpid(child, None).map_err(text)?;
    Ok(true)
}

fn text(error: nix::Error) -> String {
    error.to_string()
}

/// Have it execute one instruction. That the watchdog asks what its clock says is no part of it.
fn step(child: Pid) -> Result<WaitStatus, String> {
    loop {
        ptrace::step(child, None).map_err(text)?;
        match waitpid(child, None).map_err(text)? {
            WaitStatus::Stopped(_, Signal::SIGSTKFLT) => {}
            status => return Ok(status),
        }
    }
}

fn key_words() -> [u64; 2] {
    [KEY.as_ptr() as u64, KEY.len() as u64]
}

/// True if `figure` is one more than `least`, false if it is `least`.
fn one_more(figure: u64, least: u64) -> Result<bool, String> {
    match figure.checked_sub(least) {
        Some(0) => Ok(false),
        Some(1) => Ok(true),
        _ => Err(format!("{figure} after {least}")),
    }
}
