//! `bench faults`: how long it takes until what went wrong is over.
#![expect(unsafe_code, reason = "forks, and looks into the region")]

use std::io;
use std::time::{Duration, Instant};

use ext_api::abi::Status;
use ext_api::client::Sandbox;
use ext_api::error::CallError;
use libos::data::Common;
use libos::layout::{LEN_MIN, Place};

use super::inside::Inside;
use super::pin::{pin, time};
use super::{BenchError, Measure, Options, Report, built, measure};

/// What `faulty` may use of the CPU per upcall: its declaration.
const BUDGET: Duration = Duration::from_millis(100);
/// Longest that anything may take to work again.
const PATIENCE: Duration = Duration::from_secs(30);

/// The process in the sandbox: one figure, in the unit of its row.
pub(super) fn inside(sandbox: &Sandbox, what: &str, count: u64) -> Result<f64, String> {
    match what {
        "panic" => {
            let text = "on purpose";
            repeated(sandbox, "faulty.panic", &[text.as_ptr() as u64, text.len() as u64], count)
        }
        "segv" => repeated(sandbox, "ledger.fault", &[], count),
        "restart" => restart(sandbox),
        "overrun" => overrun(sandbox),
        "late-overrun" => {
            // The watchdog has gone to rest by then.
            std::thread::sleep(Duration::from_millis(1_500));
            overrun(sandbox)
        }
        "holder" => holder(sandbox),
        "places" => places(sandbox),
        _ => die(count).map_err(|error| error.to_string()),
    }
}

fn call(sandbox: &Sandbox, name: &str, words: &[u64]) -> Result<u64, CallError> {
    sandbox.invoke::<u64>(sandbox.find(name)?, words)
}

/// Microseconds per upcall that fails, mean of `count`.
fn repeated(sandbox: &Sandbox, name: &str, words: &[u64], count: u64) -> Result<f64, String> {
    let handle = sandbox.find(name).map_err(|error| error.to_string())?;
    let mut faults = 0;
    let ns = time(count, || {
        for _ in 0..count {
            let result = sandbox.invoke::<u64>(handle, words);
            faults += u64::from(matches!(result, Err(CallError::Fault(..))));
        }
    });
    if faults == count { Ok(ns / 1e3) } else { Err(format!("{faults} of {count} faulted")) }
}

/// Wait until `faulty` works with fresh state; true if it only had to be restarted. Until the
/// supervisor has seen what happened, the old state goes on to answer.
fn works_again(sandbox: &Sandbox) -> Result<bool, String> {
    let start = Instant::now();
    let mut only_restarted = true;
    loop {
        match call(sandbox, "faulty.count", &[]) {
            Ok(1) => return Ok(only_restarted),
            Ok(_) if start.elapsed() > PATIENCE => return Err("it is not restarted".into()),
            Ok(_) => {}
            Err(error) if start.elapsed() > PATIENCE => return Err(error.to_string()),
            Err(CallError::Refused(Status::Quarantined)) => only_restarted = false,
            Err(_) => {}
        }
        // Callers poll as they like; this one sees the restart to 50 us.
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Milliseconds from a fault that taints the extension to its next good answer.
fn restart(sandbox: &Sandbox) -> Result<f64, String> {
    // From here on the first count of a fresh state is 1, and no other.
    call(sandbox, "faulty.count", &[]).map_err(|error| error.to_string())?;
    loop {
        let start = Instant::now();
        match call(sandbox, "faulty.read_at", &[16]) {
            Err(CallError::Fault(Status::MemoryFault, _)) => {}
            other => return Err(format!("it does not fault: {other:?}")),
        }
        if works_again(sandbox)? {
            return Ok(start.elapsed().as_secs_f64() * 1e3);
        }
    }
}

/// Milliseconds beyond its budget that an upcall without end is let run.
fn overrun(sandbox: &Sandbox) -> Result<f64, String> {
    let start = Instant::now();
    match call(sandbox, "faulty.spin", &[]) {
        Err(CallError::Fault(Status::Overrun, _)) => {}
        other => return Err(format!("it does not overrun: {other:?}")),
    }
    let took = start.elapsed();
    works_again(sandbox)?;
    Ok(took.saturating_sub(BUDGET).as_secs_f64() * 1e3)
}

/// A child that sleeps with a lock, killed just now.
fn killed_holder(sandbox: &Sandbox) -> Result<i32, String> {
    // SAFETY: this process has one thread.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error().to_string()),
        0 => {
            let _ = call(sandbox, "ledger.hold", &[4_000]);
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        child => child,
    };
    std::thread::sleep(Duration::from_millis(20));
    // SAFETY: our own child.
    unsafe { libc::kill(child, libc::SIGKILL) };
    Ok(child)
}

/// Milliseconds from the death of a process inside an upcall until its places in the tables are free.
fn places(sandbox: &Sandbox) -> Result<f64, String> {
    let child = killed_holder(sandbox)?;
    let start = Instant::now();
    let place = Place::new(sandbox.base() as usize, LEN_MIN).ok_or("no region lies there")?;
    // SAFETY: the region of this process, which stays mapped.
    let common = unsafe { Common::at(place) };
    let is_there = || {
        let pid = child as u32;
        common.contexts().any(|index| common.claim(index).load().pid == pid)
            || common.rows().any(|row| common.process(row).claim.load().pid == pid)
    };
    while is_there() {
        if start.elapsed() > PATIENCE {
            return Err("its places are not taken back".into());
        }
        std::thread::sleep(Duration::from_micros(20));
    }
    let took = start.elapsed();
    // SAFETY: our own child.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    // The lock is a dead one's.
    let _ = call(sandbox, "ledger.mutex_add", &[]);
    call(sandbox, "ledger.mutex_recover", &[]).map_err(|error| error.to_string())?;
    Ok(took.as_secs_f64() * 1e3)
}

/// Milliseconds from the death of a lock's holder until a waiter is told.
fn holder(sandbox: &Sandbox) -> Result<f64, String> {
    let child = killed_holder(sandbox)?;
    let start = Instant::now();
    let result = call(sandbox, "ledger.mutex_add", &[]);
    let took = start.elapsed();
    // SAFETY: our own child.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    match result {
        Err(CallError::Failed(text)) if text == "broken" => {}
        other => return Err(format!("the lock is not broken: {other:?}")),
    }
    call(sandbox, "ledger.mutex_recover", &[]).map_err(|error| error.to_string())?;
    Ok(took.as_secs_f64() * 1e3)
}

/// Microseconds to fork a process, have it die of SIGSEGV and find that out: what isolation by
/// processes pays for a fault at least.
fn die(count: u64) -> io::Result<f64> {
    let mut result = Ok(());
    let ns = time(count, || {
        for _ in 0..count {
            // SAFETY: one thread; the child ends at once.
            match unsafe { libc::fork() } {
                -1 => result = Err(io::Error::last_os_error()),
                0 => {
                    // SAFETY: the default action, and the signal to oneself.
                    unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
                    // SAFETY: ends the child.
                    unsafe { libc::raise(libc::SIGSEGV) };
                    // SAFETY: ends the child.
                    unsafe { libc::_exit(0) }
                }
                child => {
                    // SAFETY: our own child.
                    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
                }
            }
        }
    });
    result.map(|()| ns / 1e3)
}

pub(super) fn run(options: Options) -> Result<Report, BenchError> {
    let images = [built("libhello_upcall.so")?, built("libfaulty.so")?, built("libledger.so")?];
    let inside = std::cell::RefCell::new(Inside::start(&images, "")?);
    let scale = if options.quick { 20 } else { 1 };
    pin(0, 1);
    let mut rows: Vec<Measure<'_>> = Vec::new();
    for (name, unit, what, count) in [
        ("null upcall", "ns", "null", 1_000_000 / scale),
        ("panic to error", "us", "panic", 2_000 / scale),
        ("SIGSEGV to error", "us", "segv", 10_000 / scale),
        ("SIGSEGV to restarted", "ms", "restart", 1),
        ("overrun, beyond its budget", "ms", "overrun", 1),
        ("the first upcall after a second", "ms", "late-overrun", 1),
        ("dead holder's lock to its waiter", "ms", "holder", 1),
        ("dead process's places in the tables", "ms", "places", 1),
    ] {
        let inside = &inside;
        rows.push((name.into(), unit, Box::new(move || inside.borrow_mut().measure(what, count))));
    }
    let deaths = 200 / scale;
    let outside = move || die(deaths).map_err(|error| BenchError::Io("a process that dies", error));
    rows.push(("a process: fork, SIGSEGV, wait".into(), "us", Box::new(outside)));
    let mut report = Report::new("faults", options.rounds, measure(&options, rows)?);
    for (name, row, goal) in [
        ("SIGSEGV to error, us", "SIGSEGV to error", 10.0),
        ("overrun beyond its budget, ms", "overrun, beyond its budget", 5.0),
        ("overrun after a second without upcalls, ms", "the first upcall after a second", 5.0),
        ("dead holder's lock, ms", "dead holder's lock to its waiter", 2.0),
        ("dead process's places, ms", "dead process's places in the tables", 10.0),
        ("restart, ms", "SIGSEGV to restarted", 10.0),
        ("null upcall, ns", "null upcall", 5.0),
    ] {
        report.goal(name, [row], |[value]| value, ("<=", goal));
    }
    Ok(report)
}
