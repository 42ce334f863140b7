//! `bench interpose`: system calls of a program that somebody looks at, beside those of one that
//! nobody does and one under strace.
#![expect(unsafe_code, reason = "makes system calls")]

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::inside::Inside;
use super::pin::{pin, time};
use super::{BenchError, Measure, Options, Report, built, measure};

/// Nanoseconds per `getppid` of this process, from the C library's function for it, or from the one for
/// every call, which cannot be patched.
pub(super) fn calls(count: u64, patched: bool) -> f64 {
    time(count, || {
        for _ in 0..count {
            if patched {
                // SAFETY: takes nothing.
                unsafe { libc::getppid() };
            } else {
                // SAFETY: takes nothing.
                unsafe { libc::syscall(libc::SYS_getppid) };
            }
        }
    })
}

/// A process outside of any sandbox that makes calls, under strace or not; nanoseconds each.
fn outside(strace: bool, count: u64) -> io::Result<f64> {
    let launcher = std::env::current_exe()?;
    let mut command = if strace {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-c", "-o", "/dev/null", "--"]).arg(launcher);
        strace
    } else {
        Command::new(launcher)
    };
    let output = command.args(["bench-inside", &count.to_string()]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    text.trim().parse().map_err(|_| io::Error::other(said.trim().to_owned()))
}

/// What a command is run under.
#[derive(Debug, Clone)]
enum Under {
    Nothing,
    Strace,
    Extension(PathBuf),
}

/// A program that makes many calls and computes little; milliseconds.
fn program(under: &Under) -> io::Result<f64> {
    const ARGS: [&str; 5] = ["/usr/share", "/usr/include", "-xdev", "-size", "-0"];
    let mut command = match under {
        Under::Nothing => Command::new("find"),
        Under::Strace => {
            let mut strace = Command::new("strace");
            strace.args(["-f", "-c", "-o", "/dev/null", "--", "find"]);
            strace
        }
        Under::Extension(image) => {
            let mut launcher = Command::new(std::env::current_exe()?);
            launcher.args(["run", "--ext"]).arg(image).args(["--", "find"]);
            launcher
        }
    };
    let began = Instant::now();
    let status = command.args(ARGS).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    let ms = began.elapsed().as_secs_f64() * 1e3;
    if status.success() { Ok(ms) } else { Err(io::Error::other(format!("find: {status}"))) }
}

const NATIVE: &str = "getppid, nobody looks";
const ANSWERED: &str = "getppid, answered by a handler";
const PASSED: &str = "getppid, passed by a handler";
const TRAPPED: &str = "getppid by syscall(), passed after a trap";
const STRACE: &str = "getppid, under strace -c";
const FIND: &str = "find, nobody looks";
const FIND_TRACE: &str = "find, every call counted by trace";
const FIND_STRACE: &str = "find, under strace -c";

pub(super) fn run(options: Options) -> Result<Report, BenchError> {
    let through = built("libthrough.so")?;
    let passes = RefCell::new(Inside::start(std::slice::from_ref(&through), "")?);
    let answers = RefCell::new(Inside::start(&[through], "answer=110")?);
    let (passes, answers) = (&passes, &answers);
    let trace = Under::Extension(built("libtrace.so")?);
    let scale = if options.quick { 20 } else { 1 };
    pin(0, 1);
    let doing = |error| BenchError::Io("running a program", error);
    let has_strace = Command::new("strace").arg("-V").output().is_ok();
    let mut rows: Vec<Measure<'_>> = vec![
        (NATIVE.into(), "ns", Box::new(move || outside(false, 1_000_000 / scale).map_err(doing))),
        (
            ANSWERED.into(),
            "ns",
            Box::new(move || answers.borrow_mut().measure("calls", 1_000_000 / scale)),
        ),
        (
            PASSED.into(),
            "ns",
            Box::new(move || passes.borrow_mut().measure("calls", 1_000_000 / scale)),
        ),
        (
            TRAPPED.into(),
            "ns",
            Box::new(move || passes.borrow_mut().measure("calls-trapped", 100_000 / scale)),
        ),
        (FIND.into(), "ms", Box::new(move || program(&Under::Nothing).map_err(doing))),
        (FIND_TRACE.into(), "ms", Box::new(move || program(&trace).map_err(doing))),
    ];
    if has_strace {
        let calls = move || outside(true, 20_000 / scale).map_err(doing);
        rows.push((STRACE.into(), "ns", Box::new(calls)));
        rows.push((
            FIND_STRACE.into(),
            "ms",
            Box::new(move || program(&Under::Strace).map_err(doing)),
        ));
    }
    let mut report = Report::new("interpose", options.rounds, measure(options.rounds, rows)?);
    report.goal("an answered call, ns", [ANSWERED], |[ns]| ns, ("<=", 12.0));
    report.goal(
        "a passed call beyond one that nobody looks at, ns",
        [PASSED, NATIVE],
        |[passed, native]| passed - native,
        ("<=", 60.0),
    );
    let finds = [FIND_TRACE, FIND];
    report.goal("find counted / find", finds, |[traced, native]| traced / native, ("<=", 1.3));
    let finds = [FIND_STRACE, FIND];
    report.goal("find under strace / find", finds, |[traced, native]| traced / native, (">=", 1.3));
    if !has_strace {
        report.explain(STRACE, "strace is not installed (package strace)");
        report.explain(FIND_STRACE, "strace is not installed (package strace)");
    }
    Ok(report)
}
