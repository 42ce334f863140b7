//! `bench launch`: what starting programs costs, and what a sandbox that does nothing holds.
#![expect(unsafe_code, reason = "forks")]

use std::io;
use std::process::{Command, Stdio};

use super::inside::Inside;
use super::pin::{pin, time};
use super::{BenchError, Measure, Options, Report, built, measure};
use crate::control::{self, Request};

/// Microseconds to run a program to its end, mean of `count`.
pub(super) fn spawn(program: &str, args: &[&str], count: u64) -> io::Result<f64> {
    let mut result = Ok(());
    let ns = time(count, || {
        for _ in 0..count {
            let status = Command::new(program).args(args).stdin(Stdio::null()).status();
            match status {
                Ok(status) if status.success() => {}
                Ok(status) => result = Err(io::Error::other(format!("{program}: {status}"))),
                Err(error) => result = Err(error),
            }
        }
    });
    result.map(|()| ns / 1e3)
}

/// Microseconds to fork a child that ends at once, mean of `count`.
pub(super) fn fork(count: u64) -> io::Result<f64> {
    let mut result = Ok(());
    let ns = time(count, || {
        for _ in 0..count {
            // SAFETY: one thread; the child ends at once.
            match unsafe { libc::fork() } {
                -1 => result = Err(io::Error::last_os_error()),
                // SAFETY: ends the child.
                0 => unsafe { libc::_exit(0) },
                child => {
                    // SAFETY: our own child.
                    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
                }
            }
        }
    });
    result.map(|()| ns / 1e3)
}

/// KiB of the region's code that are a copy of this process's own.
pub(super) fn private_code(base: u64) -> io::Result<f64> {
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    let (mut in_code, mut kib) = (false, 0.0);
    for line in smaps.lines() {
        if let Some((range, rest)) = line.split_once(' ').filter(|(range, _)| range.contains('-')) {
            let start = range.split('-').next().map(|start| u64::from_str_radix(start, 16));
            in_code =
                rest.contains("/memfd:sbx-code") && matches!(start, Some(Ok(at)) if at > base);
        } else if in_code && line.starts_with("Anonymous:") {
            kib += kib_of(line);
        }
    }
    Ok(kib)
}

fn kib_of(line: &str) -> f64 {
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0.0)
}

pub(super) fn run(options: Options) -> Result<Report, BenchError> {
    let count = if options.quick { 3 } else { 40 };
    // As the process in the sandbox is. On two idle CPUs each wake-up of the other one counts as well.
    pin(0, 0);
    let launcher = std::env::current_exe().map_err(|e| BenchError::Io("finding myself", e))?;
    let launcher = launcher.to_string_lossy().into_owned();
    let inside = std::cell::RefCell::new(Inside::start(&[built("libhello_upcall.so")?], "")?);
    let io = |error| BenchError::Io("starting /bin/true", error);
    let ours = ["run", "--", "/bin/true"];
    let bwrap = ["--ro-bind", "/", "/", "--unshare-all", "/bin/true"];
    let has_bwrap = spawn("bwrap", &bwrap, 1).is_ok();
    let mut rows: Vec<Measure<'_>> = vec![
        ("/bin/true".into(), "us", Box::new(|| spawn("/bin/true", &[], count).map_err(io))),
        (
            "sbx-launcher run -- /bin/true".into(),
            "us",
            Box::new(|| spawn(&launcher, &ours, count).map_err(io)),
        ),
        (
            "/bin/true inside a sandbox".into(),
            "us",
            Box::new(|| inside.borrow_mut().measure("spawn", count)),
        ),
        ("fork".into(), "us", Box::new(|| fork(count).map_err(io))),
        (
            "fork inside a sandbox".into(),
            "us",
            Box::new(|| inside.borrow_mut().measure("fork", count)),
        ),
        ("idle sandbox".into(), "KiB", Box::new(idle_kib)),
        (
            "code of the region private to a process".into(),
            "KiB",
            Box::new(|| inside.borrow_mut().measure("private-code", 1)),
        ),
    ];
    if has_bwrap {
        let measure = || spawn("bwrap", &bwrap, count).map_err(io);
        rows.insert(2, ("bwrap /bin/true".into(), "us", Box::new(measure)));
    }
    let mut report = Report::new("launch", options.rounds, measure(&options, rows)?);
    let over = |[ours, plain]: [f64; 2]| (ours - plain) / 1e3;
    let run = ["sbx-launcher run -- /bin/true", "/bin/true"];
    report.goal("run over fork+exec, ms", run, over, ("<=", 2.0));
    let exec = ["/bin/true inside a sandbox", "/bin/true"];
    report.goal("exec inside over outside, ms", exec, over, ("<=", 1.5));
    report.goal("idle sandbox, MiB", ["idle sandbox"], |[kib]| kib / 1024.0, ("<=", 10.0));
    let code = ["code of the region private to a process"];
    report.goal("code pages per process, KiB", code, |[kib]| kib, ("<=", 0.0));
    let beside = ["sbx-launcher run -- /bin/true", "bwrap /bin/true"];
    report.goal("run / bwrap", beside, |[ours, bwrap]| ours / bwrap, ("<=", 1.0));
    report.explain("bwrap", "bwrap does not run here (Debian package bubblewrap)");
    Ok(report)
}

/// KiB that a sandbox without extensions takes in all: its supervisor's memory, and what the
/// kernel holds for the zones.
fn idle_kib() -> Result<f64, BenchError> {
    let doing = |error| BenchError::Io("measuring an idle sandbox", error);
    let name = format!("bench-{}", std::process::id());
    let launcher = std::env::current_exe().map_err(doing)?;
    let status = Command::new(launcher).args(["up", &name]).status().map_err(doing)?;
    if !status.success() {
        return Err(BenchError::Inside("up failed".into()));
    }
    let figure = supervisor_kib(&name).map_err(doing);
    let _ = control::ask(&name, &Request::Down, &[]);
    figure
}

fn supervisor_kib(name: &str) -> io::Result<f64> {
    let place = control::ask(name, &Request::Place, &[])?;
    let pid = place["supervisor"].as_u64().unwrap_or(0);
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut zone = false;
    let mut kib = place["zones_kib"].as_f64().unwrap_or(0.0);
    for line in smaps.lines() {
        if line.split(' ').next().is_some_and(|range| range.contains('-')) {
            // The zones are counted by what the kernel holds for them.
            zone = line.contains("/memfd:sbx-") || line.contains("(deleted)");
        } else if !zone && line.starts_with("Pss:") {
            kib += kib_of(line);
        }
    }
    Ok(kib)
}
