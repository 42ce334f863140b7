//! `bench engine`: what the ways of io_uring are worth to the engine. The same echo server without a region, each
//! time with one of them, beside the plain one and beside epoll.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use netio::buffers::Buffers;
use netio::engine::Kind;
use netio::engine::epoll::Epoll;
use netio::engine::uring::Options;

use super::super::{BenchError, Options as Wanted, Report, measure};
use super::{Load, Rows, Server, doing, servers};
use crate::clock::now_ns;

/// What the names of its servers begin with.
pub(super) const KIND: &str = "tcp-engine:";

/// What is compared with the first.
const WAYS: [&str; 9] = [
    "plain",
    "epoll",
    "incremental",
    "bundles",
    "files",
    "zero-copy",
    "registered",
    "sqpoll",
    // Once more: how much two of a kind differ.
    "plain again",
];

const LENGTHS: [(&str, usize); 3] = [("64 B", 64), ("16 KiB", 16 << 10), ("64 KiB", 64 << 10)];
const COUNTS: [usize; 2] = [1, 50];

fn options(way: &str, buffers: &Buffers) -> Options {
    let none = Options::default();
    match way {
        "incremental" => Options { incremental: true, ..none },
        "bundles" => Options { bundles: true, ..none },
        "files" => Options { files: true, ..none },
        "zero-copy" => Options { zero_copy_from: Some(0), ..none },
        "registered" => {
            Options { zero_copy_from: Some(0), registered: Some(buffers.span()), ..none }
        }
        "sqpoll" => Options { sqpoll: true, ..none },
        _ => none,
    }
}

pub(super) fn serve(what: &str, fd: OwnedFd) -> io::Result<()> {
    match what.trim_start_matches(KIND) {
        "epoll" => servers::on(Epoll::new()?, Buffers::of_own(now_ns())?, Kind::Tcp, fd),
        way => servers::uring(Kind::Tcp, fd, |buffers| options(way, buffers)),
    }
}

/// Rows of one load: each way's rate, CPU time, and rate beside that of the plain one in the same round.
fn rows<'a>(
    rows: &mut Rows<'a>,
    (name, load): (&str, Load),
    servers: &'a [(&str, Server)],
    [plain, rate, cpu_us]: [&'a Cell<f64>; 3],
    time: Duration,
) {
    for (way, server) in servers {
        let measure = move || {
            let (figures, each) = load.run(server, time).map_err(doing)?;
            rate.set(figures.rate);
            cpu_us.set(each);
            if *way == WAYS[0] {
                plain.set(figures.rate);
            }
            Ok(figures.rate)
        };
        rows.push((format!("{name}, {way}"), "1/s", Box::new(measure)));
        rows.push((format!("{name}, {way}: CPU"), "us", Box::new(|| Ok(cpu_us.get()))));
        let ratio = || Ok(rate.get() / plain.get());
        rows.push((format!("{name}, {way}: beside plain"), "x", Box::new(ratio)));
    }
}

pub(in super::super) fn run(wanted: Wanted) -> Result<Report, BenchError> {
    let time = Duration::from_millis(if wanted.quick { 30 } else { 150 });
    let mut servers: Vec<(&str, Server)> = Vec::new();
    for (port, way) in (7540..).zip(WAYS) {
        servers.push((way, Server::rival(&format!("{KIND}{way}"), port).map_err(doing)?));
    }
    let cells = [const { Cell::new(f64::NAN) }; 3];
    let mut all: Rows<'_> = Vec::new();
    for (length, len) in LENGTHS {
        for count in COUNTS {
            let name = format!("TCP echo {length} c{count}");
            let load = Load { name: "", count, len, ..super::C1 };
            rows(&mut all, (&name, load), &servers, cells.each_ref(), time);
        }
    }
    Ok(Report::new("engine", wanted.rounds, measure(&wanted, all)?))
}
