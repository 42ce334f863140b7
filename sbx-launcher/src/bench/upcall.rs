//! `bench upcall`: what a call costs, beside everything else that crosses a boundary.

use std::hint::black_box;

use ext_api::abi::Reply;

use super::inside::{Inside, indirect};
use super::pin::{pin, time};
use super::{BenchError, Measure, Options, Report, built, measure, round_trip};

extern "C" fn plain(_: u64, _: *const u64, _: *mut Reply) -> u32 {
    black_box(0)
}

pub(super) fn run(options: Options) -> Result<Report, BenchError> {
    let inside = Inside::start(&[built("libhello_upcall.so")?], "")?;
    let inside = std::cell::RefCell::new(inside);
    let scale = if options.quick { 100 } else { 1 };
    let (calls, trips) = (5_000_000 / scale, 20_000 / scale);
    pin(0, 0);
    let io = |error| BenchError::Io("a round trip", error);
    let mut rows: Vec<Measure<'_>> =
        vec![("plain indirect call".into(), "ns", Box::new(|| Ok(indirect(plain, calls))))];
    for (name, what, count) in [
        ("indirect call into the region", "region", calls),
        ("null upcall, full gate", "null", calls),
        ("typed client call", "typed", calls),
        ("python: empty ctypes call", "python-empty", 200_000 / scale),
        ("python: null upcall", "python", 200_000 / scale),
    ] {
        let inside = &inside;
        rows.push((name.into(), "ns", Box::new(move || inside.borrow_mut().measure(what, count))));
    }
    rows.push(("getppid".into(), "ns", Box::new(|| Ok(getppid(calls / 10)))));
    let signal = || Ok(round_trip::self_signal(trips * 5));
    rows.push(("signal to oneself".into(), "ns", Box::new(signal)));
    for (cpu, place) in [(0, "same core"), (1, "cross core")] {
        let row = |name: &str, trip: fn(usize, u64) -> std::io::Result<f64>| -> Measure<'_> {
            let name = format!("{name}, {place}");
            (name, "ns", Box::new(move || trip(cpu, trips).map_err(io)))
        };
        rows.push(row("futex", round_trip::futexes));
        rows.push(row("pipe", round_trip::pipe));
        rows.push(row("Unix socket", round_trip::unix));
        rows.push(row("TCP loopback", round_trip::tcp));
    }
    let spin = || round_trip::spin(trips * 10).map_err(io);
    rows.push(("spinning on shared memory, cross core".into(), "ns", Box::new(spin)));
    let mut report = Report::new("upcall", options.rounds, measure(&options, rows)?);
    let null = "null upcall, full gate";
    report.goal("null upcall, ns", [null], |[ns]| ns, ("<=", 5.0));
    let over = |[ours, plain]: [f64; 2]| ours / plain;
    report.goal(
        "null upcall / plain indirect call",
        [null, "plain indirect call"],
        over,
        ("<=", 4.0),
    );
    report.goal("typed client call, ns", ["typed client call"], |[ns]| ns, ("<=", 12.0));
    let python = ["python: null upcall", "python: empty ctypes call"];
    report.goal("python upcall / empty ctypes call", python, over, ("<=", 2.0));
    Ok(report)
}

fn getppid(count: u64) -> f64 {
    time(count, || {
        for _ in 0..count {
            black_box(std::os::unix::process::parent_id());
        }
    })
}
