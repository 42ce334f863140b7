//! `bench events`: what it takes until an event has reached a handler, beside what else wakes.
#![expect(unsafe_code, reason = "forks, and signals the child")]

use std::io;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use ext_api::abi::Status;
use ext_api::client::Sandbox;
use ext_api::error::CallError;
use ext_api::post::{Peer, To};

use crate::clock;

use super::inside::Inside;
use super::pages::{self, PageFile};
use super::pin::{pin, time, unpin};
use super::round_trip::{self, shared_words};
use super::{BenchError, Measure, Options, Report, built, measure};

/// A child of the process in the sandbox; ends with the value.
pub(super) struct Child(i32);

impl Child {
    pub(super) fn start(cpu: Option<usize>, body: impl FnOnce()) -> io::Result<Self> {
        // SAFETY: a benchmark has one thread.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                // SAFETY: takes no pointer. Whoever stops the benchmark stops it.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                match cpu {
                    Some(cpu) => pin(0, cpu),
                    None => unpin(),
                }
                body();
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) }
            }
            child => Ok(Self(child)),
        }
    }

    pub(super) const fn pid(&self) -> i32 {
        self.0
    }

    /// CPU time that it has used.
    pub(super) fn cpu_ns(&self) -> u64 {
        let mut number = 0;
        // SAFETY: our own child; the kernel's C library writes a clock's number.
        if unsafe { libc::clock_getcpuclockid(self.0, &raw mut number) } != 0 {
            return 0;
        }
        clock::ns(number)
    }

    fn peer(&self, sandbox: &Sandbox) -> Peer {
        loop {
            if let Ok(peer) = sandbox.peer(self.0 as u32) {
                return peer;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        // SAFETY: as above.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
    }
}

/// As the bare futexes beside it wait.
const FOR_EVER: Duration = Duration::MAX;

/// The process in the sandbox, which runs on CPU 0: one figure.
pub(super) fn inside(sandbox: &Sandbox, what: &str, count: u64) -> Result<f64, String> {
    let run = || -> Result<f64, CallError> {
        let null = sandbox.find("hello.null")?;
        let own = sandbox.peer(std::process::id())?;
        match what {
            "event-self" => {
                let mut failed = None;
                let ns = time(count, || {
                    for _ in 0..count {
                        if let Err(error) = sandbox.post(To::peer(own), null, &[]) {
                            failed = Some(error);
                        }
                    }
                });
                failed.map_or(Ok(ns), Err)
            }
            "event-urgent" | "event-urgent-apart" => {
                let apart = if what == "event-urgent" { Duration::ZERO } else { APART };
                let child = child(0, 1, || {
                    loop {
                        std::hint::spin_loop();
                    }
                })?;
                let to = To::peer(child.peer(sandbox)).urgent();
                round_trips(sandbox, own, to, count, apart)
            }
            "event-futex" => {
                let [ping, pong] = [0, 16].map(|at| &shared()[at]);
                let _child = child(0, 0, || {
                    for round in 0.. {
                        while !sandbox.wait_on(ping, round, FOR_EVER) {}
                        pong.store(round + 1, SeqCst);
                        sandbox.wake_on(pong, 1);
                    }
                })?;
                let first = pong.load(SeqCst);
                Ok(time(count, || {
                    for round in first..first + count as u32 {
                        ping.store(round + 1, SeqCst);
                        sandbox.wake_on(ping, 1);
                        while !sandbox.wait_on(pong, round, FOR_EVER) {}
                    }
                }))
            }
            "event-alone" => work_off(sandbox, count),
            "event-shared" => {
                let word = &shared()[0];
                let _child = child(0, 1, || while !sandbox.wait_on(word, 0, FOR_EVER) {})?;
                work_off(sandbox, count)
            }
            "event-rate" => {
                let child = child(0, 1, || {
                    loop {
                        let _ = sandbox.wait(FOR_EVER);
                    }
                })?;
                rate(sandbox, child.peer(sandbox), count)
            }
            _ => {
                let cpu = usize::from(what == "event-cross");
                let child = child(0, cpu, || {
                    loop {
                        let _ = sandbox.wait(FOR_EVER);
                    }
                })?;
                let to = To::peer(child.peer(sandbox));
                round_trips(sandbox, own, to, count, Duration::ZERO)
            }
        }
    };
    run().map_err(|error| error.to_string())
}

fn child(own_cpu: usize, cpu: usize, body: impl FnOnce()) -> Result<Child, CallError> {
    pin(0, own_cpu);
    Child::start(Some(cpu), body).map_err(|error| CallError::Attach(error.to_string()))
}

/// Fresh words that this process shares with its children.
fn shared() -> &'static [AtomicU32] {
    shared_words().expect("a page")
}

/// Thousands per second of pieces of work, each of some microseconds, that are posted to any process
/// and done by this one and whoever else is idle.
fn work_off(sandbox: &Sandbox, count: u64) -> Result<f64, CallError> {
    const SPINS: u64 = 500;
    let (work, noted) = (sandbox.find("ledger.work")?, sandbox.find("ledger.noted")?);
    let before = sandbox.invoke::<u64>(noted, &[0])?;
    let mut left = count;
    let ns = time(count, || {
        while sandbox.invoke::<u64>(noted, &[0]).is_ok_and(|noted| noted < before + count) {
            while left != 0 && sandbox.post(To::any(), work, &[SPINS]).is_ok() {
                left -= 1;
            }
            let _ = sandbox.wait(Duration::ZERO);
        }
    });
    Ok(1e6 / ns)
}

/// Nanoseconds from a post until the answer that its handler posts has been delivered.
fn round_trips(
    sandbox: &Sandbox,
    own: Peer,
    to: To,
    count: u64,
    apart: Duration,
) -> Result<f64, CallError> {
    let (bounce, add) = (sandbox.find("ledger.bounce")?, sandbox.find("ledger.add_to")?);
    let (mut result, mut sent) = (Ok(0), 0);
    let got = std::sync::atomic::AtomicU64::new(0);
    let words = [own.to_raw(), add, got.as_ptr() as u64];
    let mut once = || {
        result = sandbox.post(to, bounce, &words);
        sent += 1;
        // The answer may be there before we wait: it is delivered on the way out of the post.
        while result.is_ok() && got.load(SeqCst) < sent {
            let _ = sandbox.wait(FOR_EVER);
        }
    };
    (0..100).for_each(|_| once());
    let ns = each(count, apart, once);
    result.map(|_| ns)
}

/// Nanoseconds that `once` takes, of which there are `count`: one right after the other, or so far apart that each comes
/// as if it were the only one.
fn each(count: u64, apart: Duration, mut once: impl FnMut()) -> f64 {
    if apart.is_zero() {
        return time(count, || (0..count).for_each(|_| once()));
    }
    let one = |_| {
        let start = Instant::now();
        while start.elapsed() < apart {
            std::hint::spin_loop();
        }
        time(1, &mut once)
    };
    (0..count).map(one).sum::<f64>() / count as f64
}

/// Millions of events per second that one process posts and another one handles.
fn rate(sandbox: &Sandbox, to: Peer, count: u64) -> Result<f64, CallError> {
    let work = sandbox.find("ledger.work")?;
    let noted = sandbox.find("ledger.noted")?;
    let before = sandbox.invoke::<u64>(noted, &[0])?;
    let mut result = Ok(());
    let ns = time(count, || {
        let mut left = count;
        while left != 0 {
            match sandbox.post(To::peer(to), work, &[0]) {
                Ok(_) => left -= 1,
                Err(CallError::Refused(Status::Full)) => std::hint::spin_loop(),
                Err(error) => {
                    result = Err(error);
                    return;
                }
            }
        }
        while sandbox.invoke::<u64>(noted, &[0]).is_ok_and(|noted| noted < before + count) {}
    });
    result.map(|()| 1e3 / ns)
}

/// Nanoseconds from a queued signal until its handler's answer is seen: without us.
fn signal_round_trip(count: u64, apart: Duration) -> io::Result<f64> {
    static WORD: std::sync::OnceLock<&'static AtomicU32> = std::sync::OnceLock::new();
    extern "C" fn handler(_: i32) {
        if let Some(word) = WORD.get() {
            word.fetch_add(1, SeqCst);
        }
    }
    let word = WORD.get_or_init(|| &shared_words().expect("a page")[0]);
    let before = word.load(SeqCst);
    let child = Child::start(Some(0), || {
        // SAFETY: the handler touches one atomic.
        unsafe { libc::signal(libc::SIGUSR1, handler as *const () as libc::sighandler_t) };
        word.fetch_add(1, SeqCst);
        loop {
            std::hint::spin_loop();
        }
    })?;
    while word.load(SeqCst) == before {}
    let mut info = [0i32; 32];
    info[2] = libc::SI_QUEUE;
    Ok(each(count, apart, || {
        let seen = word.load(SeqCst);
        let number = libc::SYS_rt_tgsigqueueinfo;
        // SAFETY: the kernel reads a siginfo.
        unsafe { libc::syscall(number, child.0, child.0, libc::SIGUSR1, info.as_ptr()) };
        while word.load(SeqCst) == seen {
            std::hint::spin_loop();
        }
    }))
}

/// Between events of which each is to be the only one.
const APART: Duration = Duration::from_micros(200);
const URGENT_APART: &str = "urgent event, each alone";
const SIGNAL_APART: &str = "queued signal, each alone";
const WAIT_ON: &str = "futex that works meanwhile, same core";
const ALONE: &str = "queued work, done by one process";
const SHARED: &str = "queued work, and another waits on a futex";
const PAGE_BY_HOOK: &str = "page filled on demand, SIGSEGV hook";
const PAGE_BY_THREAD: &str = "page filled on demand, userfaultfd thread";

pub(super) fn run(options: Options) -> Result<Report, BenchError> {
    let images = [built("libhello_upcall.so")?, built("libledger.so")?];
    let inside = std::cell::RefCell::new(Inside::start(&images, "")?);
    // In a sandbox of its own: it has a server, which would take a part in all work.
    let pager = std::cell::RefCell::new(Inside::start(&[built("libpager.so")?], "")?);
    let scale = if options.quick { 20 } else { 1 };
    pin(0, 1);
    let mut rows: Vec<Measure<'_>> = Vec::new();
    for (name, unit, what, count) in [
        ("null upcall", "ns", "null", 1_000_000 / scale),
        ("post to oneself, and its delivery", "ns", "event-self", 1_000_000 / scale),
        ("event there and back, other core", "ns", "event-cross", 200_000 / scale),
        ("event there and back, same core", "ns", "event-same", 50_000 / scale),
        ("urgent event there and back, other core", "ns", "event-urgent", 50_000 / scale),
        (URGENT_APART, "ns", "event-urgent-apart", 5_000 / scale),
        ("events to another process", "M/s", "event-rate", 1_000_000 / scale),
        (WAIT_ON, "ns", "event-futex", 50_000 / scale),
        (ALONE, "k/s", "event-alone", 100_000 / scale),
        (SHARED, "k/s", "event-shared", 100_000 / scale),
    ] {
        let inside = &inside;
        rows.push((name.into(), unit, Box::new(move || inside.borrow_mut().measure(what, count))));
    }
    let pages = 4000 / scale;
    let file = PageFile::new(pages).map_err(|error| BenchError::Io("writing a file", error))?;
    let what = format!("pages:{}", file.path());
    let by_hook = &pager;
    let hook = move || by_hook.borrow_mut().measure(&what, pages);
    rows.push((PAGE_BY_HOOK.into(), "ns", Box::new(hook)));
    let no_thread = pages::without_thread();
    if no_thread.is_none() {
        let doing = |error| BenchError::Io("userfaultfd", error);
        let thread = move || pages::by_thread(pages).map_err(doing);
        rows.push((PAGE_BY_THREAD.into(), "ns", Box::new(thread)));
    }
    let doing = |error| BenchError::Io("a round trip without us", error);
    let (spins, wakes) = (500_000 / scale, 50_000 / scale);
    rows.push((
        "shared line there and back, other core".into(),
        "ns",
        Box::new(move || round_trip::spin_from(1, 0, spins).map_err(doing)),
    ));
    rows.push((
        "futex there and back, same core".into(),
        "ns",
        Box::new(move || round_trip::futexes(1, wakes).map_err(doing)),
    ));
    rows.push((
        "queued signal there, shared line back".into(),
        "ns",
        Box::new(move || signal_round_trip(wakes, Duration::ZERO).map_err(doing)),
    ));
    let alone = move || signal_round_trip(wakes / 10, APART).map_err(doing);
    rows.push((SIGNAL_APART.into(), "ns", Box::new(alone)));
    let mut report = Report::new("events", options.rounds, measure(&options, rows)?);
    report.goal(
        "post and delivery beyond an upcall, ns",
        ["post to oneself, and its delivery", "null upcall"],
        |[post, null]| post - null,
        ("<=", 50.0),
    );
    for (name, of, beside, most) in [
        (
            "spinning waiter / shared line",
            "event there and back, other core",
            "shared line there and back, other core",
            1.5,
        ),
        (
            "parked / futex, same core",
            "event there and back, same core",
            "futex there and back, same core",
            1.0,
        ),
        (
            "urgent / queued signal",
            "urgent event there and back, other core",
            "queued signal there, shared line back",
            1.0,
        ),
        ("urgent / queued signal, each alone", URGENT_APART, SIGNAL_APART, 1.0),
    ] {
        report.goal(name, [of, beside], |[ours, theirs]| ours / theirs, ("<=", most));
    }
    let fills = [PAGE_BY_HOOK, PAGE_BY_THREAD];
    report.goal("page by hook / userfaultfd", fills, |[ours, theirs]| ours / theirs, ("<=", 1.0));
    if let Some(why) = no_thread {
        report.explain(PAGE_BY_THREAD, &why);
    }
    report.goal(
        "work with a waiter / without",
        [SHARED, ALONE],
        |[shared, alone]| shared / alone,
        (">=", 1.5),
    );
    let waits = [WAIT_ON, "futex there and back, same core"];
    report.goal("futex that works / futex", waits, |[ours, theirs]| ours / theirs, ("<=", 1.1));
    report.goal("events per second, M", ["events to another process"], |[rate]| rate, (">=", 1.0));
    Ok(report)
}
