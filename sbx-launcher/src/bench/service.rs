//! `bench service`: periodic tasks with a deadline beside programs that want all of the CPUs, and a
//! manager that makes these nice while a task is behind. The same policy code runs in the context of
//! whatever runs, in a process of its own, or not at all. Everybody begins with the same nice value, may run
//! on every CPU, and is in the same scheduling class.
#![expect(unsafe_code, reason = "sleeps, and reads the clock of a thread")]

use std::cell::RefCell;
use std::io;

use ext_api::client::Sandbox;
use ext_api::error::CallError;

use crate::clock;

use super::events::Child;
use super::inside::Inside;
use super::pin::{pin, unpin};
use super::{BenchError, Measure, Options, Report, built, measure};

const TASKS: u64 = 2;
const OTHERS: usize = 4;
const PERIOD_NS: u64 = 20_000_000;
/// CPU time that a task needs in each period: more than its fair share among all.
const NEED_NS: u64 = 11_000_000;
/// A task reports so often.
const CHUNK_NS: u64 = 500_000;
/// How often the manager looks that is a process of its own.
const LOOK_NS: u64 = 1_000_000;

fn sleep_until(at_ns: u64) {
    let at = libc::timespec {
        tv_sec: (at_ns / 1_000_000_000) as i64,
        tv_nsec: (at_ns % 1_000_000_000) as i64,
    };
    let (clock, how) = (libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME);
    // SAFETY: a timespec; what is left of it is not asked for. A signal ends it early.
    while unsafe { libc::clock_nanosleep(clock, how, &raw const at, std::ptr::null_mut()) } != 0 {}
}

/// A task's life.
fn task(sandbox: &Sandbox, index: u64, lends: bool) -> Result<(), CallError> {
    let (progress, over) = (sandbox.find("manager.progress")?, sandbox.find("manager.over")?);
    if lends {
        sandbox.lend()?;
    }
    let mut released = clock::now_ns();
    loop {
        let began = clock::ns(libc::CLOCK_THREAD_CPUTIME_ID);
        let mut done = 0;
        while done < NEED_NS {
            sandbox.invoke::<()>(progress, &[index, released, done])?;
            let until = began + (done + CHUNK_NS).min(NEED_NS);
            while clock::ns(libc::CLOCK_THREAD_CPUTIME_ID) < until {}
            done = clock::ns(libc::CLOCK_THREAD_CPUTIME_ID) - began;
        }
        sandbox.invoke::<()>(progress, &[index, released, done])?;
        let now = clock::now_ns();
        // A period that has gone by altogether was missed as well.
        let periods = (now - released) / PERIOD_NS;
        for _ in 0..periods.max(1) {
            sandbox.invoke::<()>(over, &[index, u64::from(periods != 0)])?;
        }
        released += (periods + 1) * PERIOD_NS;
        sleep_until(released);
    }
}

/// The process in the sandbox: `service-WHO` measures, `service-hogs` says what was left for others.
pub(super) fn inside(sandbox: &Sandbox, what: &str, count: u64) -> Result<f64, String> {
    thread_local! { static LEFT: RefCell<f64> = const { RefCell::new(0.0) }; }
    let run = || -> Result<f64, CallError> {
        if what == "service-hogs" {
            return Ok(LEFT.with_borrow(|left| *left));
        }
        let (violations, left) = serve(sandbox, what, count)?;
        LEFT.set(left);
        Ok(violations)
    };
    let result = run().map_err(|error| error.to_string());
    pin(0, 0);
    result
}

/// Percent of periods that ended too late, and percent of the CPUs that the others had.
fn serve(sandbox: &Sandbox, what: &str, count: u64) -> Result<(f64, f64), CallError> {
    unpin();
    let failed = |error: io::Error| CallError::Attach(error.to_string());
    let figure = sandbox.find("manager.figure")?;
    sandbox.invoke::<()>(sandbox.find("manager.forget")?, &[])?;
    let (in_context, alone) = (what == "service-context", what == "service-process");
    let spin = || {
        // The policy runs in whatever runs, and that may be one of these.
        let _ = in_context.then(|| sandbox.lend());
        loop {
            std::hint::spin_loop();
        }
    };
    let others: Vec<Child> =
        (0..OTHERS).map(|_| Child::start(None, spin)).collect::<io::Result<_>>().map_err(failed)?;
    for other in &others {
        sandbox.invoke::<()>(sandbox.find("manager.add_other")?, &[other.pid() as u64])?;
    }
    let mut running = Vec::new();
    for index in 0..TASKS {
        let add = sandbox.find("manager.add_task")?;
        sandbox.invoke::<()>(add, &[index, PERIOD_NS, NEED_NS])?;
        let body = || drop(task(sandbox, index, in_context));
        running.push(Child::start(None, body).map_err(failed)?);
    }
    let manage = sandbox.find("manager.manage_in_context")?;
    sandbox.invoke::<()>(manage, &[u64::from(in_context)])?;
    if alone {
        let adapt = sandbox.find("manager.adapt")?;
        let body = || {
            let mut at = clock::now_ns();
            while sandbox.invoke::<()>(adapt, &[]).is_ok() {
                at = clock::now_ns().max(at + LOOK_NS);
                sleep_until(at);
            }
        };
        running.push(Child::start(None, body).map_err(failed)?);
    }
    let began = clock::now_ns();
    let used = || others.iter().map(Child::cpu_ns).sum::<u64>();
    let before = used();
    while sandbox.invoke::<u64>(figure, &[0])? < count {
        sleep_until(clock::now_ns() + PERIOD_NS);
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let wall = (clock::now_ns() - began) as f64 * cpus;
    let left = (used() - before) as f64 / wall;
    let [periods, late] = [0, 1].map(|which| sandbox.invoke::<u64>(figure, &[which]));
    sandbox.invoke::<()>(manage, &[0])?;
    Ok((100.0 * late? as f64 / periods? as f64, 100.0 * left))
}

const CONTEXT: &str = "too late, manager in whatever runs";
const PROCESS: &str = "too late, manager in a process of its own";
const NONE: &str = "too late, no manager";

/// May we take nice values back?
fn may_adapt() -> bool {
    // SAFETY: takes numbers only, and asks for what is so already.
    let now = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    // SAFETY: as above; undone at once.
    let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, now - 1) } == 0;
    // SAFETY: as above.
    done && unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, now) } == 0
}

pub(super) fn run(options: Options) -> Result<Report, BenchError> {
    let inside = RefCell::new(Inside::start(&[built("libcpu_manager.so")?], "")?);
    let inside = &inside;
    let count = if options.quick { 10 } else { 200 };
    let mut rows: Vec<Measure<'_>> = Vec::new();
    let may = may_adapt();
    for (name, what, left) in [
        (CONTEXT, "service-context", "CPUs left for others, in whatever runs"),
        (PROCESS, "service-process", "CPUs left for others, in a process"),
        (NONE, "service-none", "CPUs left for others, no manager"),
    ] {
        if may || name == NONE {
            let measure = move || inside.borrow_mut().measure(what, count);
            rows.push((name.into(), "%", Box::new(measure)));
            let measure = move || inside.borrow_mut().measure("service-hogs", 0);
            rows.push((left.into(), "%", Box::new(measure)));
        }
    }
    let mut report = Report::new("service", options.rounds, measure(&options, rows)?);
    report.goal(
        "too late in context less those in a process",
        [CONTEXT, PROCESS],
        |[context, process]| context - process,
        ("<=", 0.0),
    );
    if !may {
        report.explain(CONTEXT, "needs the right to lower nice values (CAP_SYS_NICE)");
    }
    Ok(report)
}
