//! `bench interpose`: system calls of a program that somebody looks at, beside those of one that
//! nobody does and one under strace.
#![expect(unsafe_code, reason = "makes system calls")]

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::inside::Inside;
use super::pin::{pin, time, unpin};
use super::{BenchError, Measure, Options, Report, built, measure, rivals};

/// Nanoseconds per `getppid` of this process.
pub(super) fn calls(count: u64) -> f64 {
    time(count, || {
        for _ in 0..count {
            // SAFETY: takes nothing.
            unsafe { libc::getppid() };
        }
    })
}

/// A process outside of any sandbox that makes calls while somebody looks `by` some means; nanoseconds
/// each.
fn outside(by: &str, count: u64, preload: Option<&Path>) -> io::Result<f64> {
    let launcher = std::env::current_exe()?;
    let mut command = if by == "strace" {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-c", "-o", "/dev/null", "--"]).arg(launcher);
        strace
    } else {
        Command::new(launcher)
    };
    let means = if by == "strace" { "nothing" } else { by };
    command.args(["bench-inside", &count.to_string(), "--by", means]);
    command.envs(preload.map(|library| ("LD_PRELOAD", library)));
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    text.trim().parse().map_err(|_| io::Error::other(said.trim().to_owned()))
}

/// What a command is run under.
#[derive(Debug, Clone)]
enum Under {
    Nothing,
    /// strace, which counts.
    Strace,
    /// strace, which prints every call.
    StracePrinting,
    Extension(PathBuf),
    /// `sbx-launcher trace`, which prints every call.
    Trace,
}

/// Two that make many calls and compute little.
const FIND_ARGS: [&str; 6] = ["find", "/usr/share", "/usr/include", "-xdev", "-size", "-0"];
const STATUS_ARGS: [&str; 3] = ["git", "status", "--porcelain"];

/// A command in `folder` under something; milliseconds.
fn program(under: &Under, argv: &[&str], folder: &Path) -> io::Result<f64> {
    let mut command = match under {
        Under::Nothing => Command::new(argv[0]),
        Under::Strace => with_args("strace", &["-f", "-c", "-o", "/dev/null", "--", argv[0]]),
        Under::StracePrinting => with_args("strace", &["-f", "-o", "/dev/null", "--", argv[0]]),
        Under::Trace => {
            let launcher = std::env::current_exe()?;
            with_args(launcher, &["trace", "--out", "/dev/null", "--", argv[0]])
        }
        Under::Extension(image) => {
            let mut launcher = with_args(std::env::current_exe()?, &["run", "--ext"]);
            launcher.arg(image).args(["--", argv[0]]);
            launcher
        }
    };
    command.args(&argv[1..]).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
    let began = Instant::now();
    let status = command.status()?;
    let ms = began.elapsed().as_secs_f64() * 1e3;
    if status.success() { Ok(ms) } else { Err(io::Error::other(format!("{}: {status}", argv[0]))) }
}

fn with_args(program: impl AsRef<OsStr>, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// A folder of many files under git, which is removed with this value.
#[derive(Debug)]
struct Tree(PathBuf);

impl Tree {
    fn new(folders: usize) -> io::Result<Self> {
        const FILES: usize = 100;
        let tree = Self(std::env::temp_dir().join(format!("sbx-tree-{}", std::process::id())));
        for folder in 0..folders {
            let folder = tree.0.join(format!("folder-{folder}"));
            std::fs::create_dir_all(&folder)?;
            for file in 0..FILES {
                std::fs::write(folder.join(format!("file-{file}")), b"x")?;
            }
        }
        let as_somebody = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"];
        for args in [&["init", "-q"][..], &["add", "."], &["commit", "-q", "-m", "all"]] {
            let mut git = with_args("git", &as_somebody);
            let status = git.args(args).current_dir(&tree.0).stdout(Stdio::null()).status()?;
            if !status.success() {
                return Err(io::Error::other(format!("git {}: {status}", args[0])));
            }
        }
        Ok(tree)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const NATIVE: &str = "getppid, no sandbox";
const FILTERED: &str = "getppid in a sandbox, nobody looks";
const OWN: &str = "getppid by libos itself: the tax of the filter";
const ANSWERED: &str = "getppid, answered by a handler";
const PASSED: &str = "getppid, passed by a handler";
const TRAPPED: &str = "getppid in code made at run time, passed";
const FIRST: &str = "getppid, first from its site, passed";
const TRAP: &str = "getppid, seccomp trap, passed";
const DISPATCH: &str = "getppid, Syscall User Dispatch, passed";
const NOTIFY: &str = "getppid, USER_NOTIF, passed";
const PRELOAD: &str = "getppid, LD_PRELOAD, passed";
const STRACE: &str = "getppid, under strace -c";
const FIND: &str = "find, nobody looks";
const FIND_TRACE: &str = "find, every call counted by trace";
const FIND_PRINT: &str = "find, every call printed by trace";
const FIND_STRACE: &str = "find, under strace -c";
const STATUS: &str = "git status, nobody looks";
const STATUS_PRINT: &str = "git status, every call printed by trace";
const STATUS_STRACE: &str = "git status, every call printed by strace";
const REDIS: &str = "redis GET c50, nobody looks";
const REDIS_PASSED: &str = "redis GET c50, every call passed";
const REDIS_TRACE: &str = "redis GET c50, every call counted by trace";

pub(super) fn run(options: Options) -> Result<Report, BenchError> {
    let through = built("libthrough.so")?;
    let (trace, hello) = (built("libtrace.so")?, built("libhello_upcall.so")?);
    let inside = |image: &PathBuf, config: &str| -> Result<_, BenchError> {
        Ok(RefCell::new(Inside::start(std::slice::from_ref(image), config)?))
    };
    let (alone, passes) = (inside(&hello, "")?, inside(&through, "")?);
    let answers = inside(&through, "answer=110")?;
    let scale = if options.quick { 20 } else { 1 };
    pin(0, 1);
    let preload = rivals::preload();
    let library = preload.as_ref().ok();
    let doing = |error| BenchError::Io("running a program", error);
    let in_sandbox = |what: &'static str, of: &'static str, count: u64| -> Measure<'_> {
        let process = if of == FILTERED {
            &alone
        } else if of == ANSWERED {
            &answers
        } else {
            &passes
        };
        (of.into(), "ns", Box::new(move || process.borrow_mut().measure(what, count)))
    };
    let beside = |name: &str, by: &'static str, count: u64| -> Measure<'_> {
        (name.into(), "ns", Box::new(move || outside(by, count, None).map_err(doing)))
    };
    let of = |argv: &'static [&'static str], folder: &Path, name: &str, under: Under| {
        let folder = folder.to_path_buf();
        let measure = move || {
            // Whoever looks may have a CPU of its own; strace is several times slower with one.
            if !matches!(under, Under::Strace | Under::StracePrinting) {
                unpin();
            }
            let ms = program(&under, argv, &folder).map_err(doing);
            pin(0, 1);
            ms
        };
        let measure: Measure<'_> = (name.into(), "ms", Box::new(measure));
        measure
    };
    let find = |name: &str, under: Under| of(&FIND_ARGS, Path::new("/"), name, under);
    let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let tree = has("git").then(|| Tree::new(if options.quick { 50 } else { 800 })).transpose();
    let tree = tree.map_err(|error| BenchError::Io("making a tree for git", error))?;
    let redis = |name: &str, under: Vec<&'_ Path>| -> Measure<'_> {
        let under: Vec<PathBuf> = under.into_iter().map(Path::to_path_buf).collect();
        let measure = move || {
            let under: Vec<&Path> = under.iter().map(PathBuf::as_path).collect();
            rivals::redis(&under, 200_000 / scale).map_err(doing)
        };
        (name.into(), "1/s", Box::new(measure))
    };
    let mut rows: Vec<Measure<'_>> = vec![
        beside(NATIVE, "nothing", 1_000_000 / scale),
        in_sandbox("calls", FILTERED, 1_000_000 / scale),
        in_sandbox("calls-own", OWN, 500_000 / scale),
        in_sandbox("calls", ANSWERED, 1_000_000 / scale),
        in_sandbox("calls", PASSED, 1_000_000 / scale),
        in_sandbox("calls-trapped", TRAPPED, 100_000 / scale),
        in_sandbox("calls-first", FIRST, 64),
        beside(TRAP, "trap", 200_000 / scale),
        beside(DISPATCH, "dispatch", 200_000 / scale),
        beside(NOTIFY, "notify", 50_000 / scale),
        find(FIND, Under::Nothing),
        find(FIND_TRACE, Under::Extension(trace.clone())),
        find(FIND_PRINT, Under::Trace),
    ];
    if let Some(Tree(folder)) = &tree {
        rows.push(of(&STATUS_ARGS, folder, STATUS, Under::Nothing));
        rows.push(of(&STATUS_ARGS, folder, STATUS_PRINT, Under::Trace));
        if has("strace") {
            rows.push(of(&STATUS_ARGS, folder, STATUS_STRACE, Under::StracePrinting));
        }
    }
    if let Some(library) = library {
        let calls = move || outside("nothing", 1_000_000 / scale, Some(library)).map_err(doing);
        rows.push((PRELOAD.into(), "ns", Box::new(calls)));
    }
    if has("strace") {
        rows.push(beside(STRACE, "strace", 20_000 / scale));
        rows.push(find(FIND_STRACE, Under::Strace));
    }
    let has_redis = has("redis-server") && has("redis-benchmark");
    if has_redis {
        rows.push(redis(REDIS, vec![]));
        rows.push(redis(REDIS_PASSED, vec![&through]));
        rows.push(redis(REDIS_TRACE, vec![&trace]));
    }
    let mut report = Report::new("interpose", options.rounds, measure(&options, rows)?);
    report.goal("an answered call, ns", [ANSWERED], |[ns]| ns, ("<=", 12.0));
    report.goal(
        "a passed call beyond one of libos itself, ns",
        [PASSED, OWN],
        |[passed, own]| passed - own,
        ("<=", 15.0),
    );
    report.goal(
        "what a trap costs / what a passed call does",
        [TRAP, PASSED, NATIVE],
        |[trap, passed, native]| (trap - native) / (passed - native),
        (">=", 30.0),
    );
    report.goal("first from a site, us", [FIRST], |[ns]| ns / 1000.0, ("<=", 10.0));
    let ratio = |[looked, native]: [f64; 2]| looked / native;
    report.goal("find counted / find", [FIND_TRACE, FIND], ratio, ("<=", 1.3));
    report.goal("find printed / find", [FIND_PRINT, FIND], ratio, ("<=", 1.3));
    report.goal("find under strace / find", [FIND_STRACE, FIND], ratio, (">=", 1.3));
    report.goal("git status printed / git status", [STATUS_PRINT, STATUS], ratio, ("<=", 1.3));
    report.goal(
        "git status under strace / git status",
        [STATUS_STRACE, STATUS],
        ratio,
        (">=", 1.3),
    );
    report.goal("redis with every call passed / redis", [REDIS_PASSED, REDIS], ratio, (">=", 0.85));
    let inverse = |[looked, native]: [f64; 2]| native / looked;
    report.goal("redis / redis counted", [REDIS_TRACE, REDIS], inverse, ("<=", 1.3));
    if let Err(error) = &preload {
        report.explain(PRELOAD, &format!("no library: {error} (package gcc)"));
    }
    if !has("strace") {
        report.explain(STRACE, "strace is not installed (package strace)");
        report.explain(FIND_STRACE, "strace is not installed (package strace)");
        report.explain(STATUS_STRACE, "strace is not installed (package strace)");
    }
    if tree.is_none() {
        report.explain(STATUS, "git is not installed (package git)");
    }
    if !has_redis {
        for row in [REDIS, REDIS_PASSED, REDIS_TRACE] {
            report.explain(row, "redis is not installed (packages redis-server, redis-tools)");
        }
    }
    let _ = library.map(std::fs::remove_file);
    Ok(report)
}
