//! `bench delay`: how late a handler runs that is to run every millisecond, on an idle machine and
//! beside programs that want all of it. Everybody has the same nice value and may run on every CPU.
#![expect(unsafe_code, reason = "reads a timer descriptor")]

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use ext_api::client::Sandbox;
use ext_api::error::CallError;
use ext_api::post::To;
use ext_api::timer::Timer;

use crate::clock::now_ns;

use super::events::Child;
use super::inside::Inside;
use super::pin::{pin, unpin};
use super::{BenchError, Measure, Options, Report, built, measure};

const PERIOD: Duration = Duration::from_millis(1);
const PERIOD_NS: u64 = PERIOD.as_nanos() as u64;
/// Of a thousand; the last is the worst.
const SHARES: [(u64, &str); 4] = [(500, "p50"), (990, "p99"), (999, "p99.9"), (1000, "max")];
const HOGS: [usize; 2] = [0, 4];

fn hogs(count: usize, begin: impl Fn()) -> io::Result<Vec<Child>> {
    let spin = || {
        begin();
        loop {
            std::hint::spin_loop();
        }
    };
    (0..count).map(|_| Child::start(None, spin)).collect()
}

/// The process in the sandbox: `delay-WHERE-HOGS` measures, `delay-read-PERMILLE` says a share.
pub(super) fn inside(sandbox: &Sandbox, what: &str, count: u64) -> Result<f64, String> {
    let words: Vec<&str> = what.split('-').collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
    let result = match words.get(1) {
        Some(&"read") => read(sandbox, number(2)),
        Some(place) => run_timer(sandbox, place, number(2) as usize, count),
        None => Ok(0.0),
    };
    result.map_err(|error| error.to_string())
}

fn read(sandbox: &Sandbox, permille: u64) -> Result<f64, CallError> {
    let late_by = sandbox.find("ledger.late_by")?;
    sandbox.invoke::<u64>(late_by, &[permille]).map(|ns| ns as f64 / 1e3)
}

/// Have a timer come `count` times, in this process or in the server.
fn run_timer(
    sandbox: &Sandbox,
    place: &str,
    hog_count: usize,
    count: u64,
) -> Result<f64, CallError> {
    unpin();
    let failed = |error: io::Error| CallError::Attach(error.to_string());
    let lend = || {
        if place == "running" {
            let _ = sandbox.lend();
        }
    };
    let _hogs = hogs(hog_count, lend).map_err(failed)?;
    sandbox.invoke::<()>(sandbox.find("ledger.late_forget")?, &[])?;
    let first = now_ns() + 20 * PERIOD_NS;
    let here = place == "waiting";
    let to = match place {
        "waiting" => To::peer(sandbox.peer(std::process::id())?),
        "running" => To::running(),
        _ => To::server(),
    };
    let timer = Timer::at(first).every(PERIOD).to(to);
    let timer = sandbox.start_timer(timer, sandbox.find("ledger.late")?, [first, PERIOD_NS])?;
    let count_of = || read(sandbox, 1001).map_or(0, |thousands| (thousands * 1e3) as u64);
    while count_of() < count {
        if here {
            for _ in 0..20 {
                let _ = sandbox.wait(PERIOD * 20);
            }
        } else {
            std::thread::sleep(PERIOD * 20);
        }
    }
    sandbox.stop_timer(timer)?;
    pin(0, 0);
    read(sandbox, SHARES[0].0)
}

/// The same with timerfd and epoll, in this process; microseconds, sorted.
fn timerfd(hog_count: usize, count: u64) -> io::Result<Vec<f64>> {
    let checked = |done: i32| if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) };
    unpin();
    let _hogs = hogs(hog_count, || ())?;
    // SAFETY: takes numbers only.
    let timer = checked(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) })?;
    // SAFETY: takes a number only.
    let epoll = checked(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
    // SAFETY: two descriptors of ours and an event.
    checked(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, timer, &raw mut event) })?;
    let first = now_ns() + 20 * PERIOD_NS;
    let time = |ns: u64| libc::timespec {
        tv_sec: (ns / 1_000_000_000) as i64,
        tv_nsec: (ns % 1_000_000_000) as i64,
    };
    let plan = libc::itimerspec { it_interval: time(PERIOD_NS), it_value: time(first) };
    let flags = libc::TFD_TIMER_ABSTIME;
    // SAFETY: a plan; the former one is not asked for.
    checked(unsafe { libc::timerfd_settime(timer, flags, &raw const plan, std::ptr::null_mut()) })?;
    let mut samples = Vec::new();
    while (samples.len() as u64) < count {
        // SAFETY: room for one event.
        checked(unsafe { libc::epoll_wait(epoll, &raw mut event, 1, -1) })?;
        let mut periods = 0u64;
        // SAFETY: the kernel writes 8 bytes.
        unsafe { libc::read(timer, (&raw mut periods).cast(), 8) };
        let since = now_ns().saturating_sub(first);
        samples
            .extend((0..periods).map(|back| (since % PERIOD_NS + back * PERIOD_NS) as f64 / 1e3));
    }
    for fd in [timer, epoll] {
        // SAFETY: ours.
        unsafe { libc::close(fd) };
    }
    pin(0, 1);
    samples.sort_unstable_by(f64::total_cmp);
    Ok(samples)
}

fn row(place: &str, hogs: usize, share: &str) -> String {
    format!("{place}, {hogs} hogs, {share}")
}

const SERVER: &str = "timer in the server";
const WAITING: &str = "timer in a process that waits";
const RUNNING: &str = "timer in whoever runs";
const TIMERFD: &str = "timerfd and epoll";

pub(super) fn run(options: Options) -> Result<Report, BenchError> {
    let images = [built("libledger.so")?];
    let inside = RefCell::new(Inside::start(&images, "")?);
    let (inside, samples) = (&inside, &RefCell::new(Vec::new()));
    let count = if options.quick { 50 } else { 1000 };
    let mut rows: Vec<Measure<'_>> = Vec::new();
    for hogs in HOGS {
        for (place, what) in [(SERVER, "server"), (WAITING, "waiting"), (RUNNING, "running")] {
            for (permille, share) in SHARES {
                let what = match share {
                    "p50" => format!("delay-{what}-{hogs}"),
                    _ => format!("delay-read-{permille}"),
                };
                let measure = move || inside.borrow_mut().measure(&what, count);
                rows.push((row(place, hogs, share), "us", Box::new(measure)));
            }
        }
        for (permille, share) in SHARES {
            let measure = move || {
                if share == "p50" {
                    let doing = |error| BenchError::Io("a timer descriptor", error);
                    *samples.borrow_mut() = timerfd(hogs, count).map_err(doing)?;
                }
                let samples = samples.borrow();
                let at = (samples.len() * permille as usize).div_ceil(1000).saturating_sub(1);
                Ok(samples.get(at).copied().unwrap_or(0.0))
            };
            rows.push((row(TIMERFD, hogs, share), "us", Box::new(measure)));
        }
    }
    let mut report = Report::new("delay", options.rounds, measure(&options, rows)?);
    for (hogs, share) in [(0, "p99"), (4, "p50"), (4, "p99"), (4, "p99.9")] {
        let names = [row(RUNNING, hogs, share), row(TIMERFD, hogs, share)];
        let name = format!("whoever runs / timerfd, {hogs} hogs, {share}");
        report.goal(&name, [&names[0], &names[1]], |[ours, theirs]| ours / theirs, ("<=", 1.0));
    }
    Ok(report)
}
