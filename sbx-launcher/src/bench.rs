//! `sbx-launcher bench`: what we cost beside what else there is, in one run.
//!
//! Rows are measured in turns, so that whatever slows the machine slows all of them; each row is
//! the median of its rounds. What runs in a sandbox is measured by a second process (`inside`),
//! which does one row at a time when it is told to; its peers are measured outside, without our
//! filter.

use std::fmt;
use std::io;
use std::path::PathBuf;

mod datagrams;
mod delay;
mod events;
mod faults;
mod inside;
mod interpose;
mod kv;
mod launch;
mod load;
mod net;
mod pages;
mod pairs;
mod peers;
mod pin;
mod report;
mod rivals;
mod round_trip;
mod service;
mod sockets;
mod upcall;

pub use inside::{serve, serve_calls};
pub use net::serve as serve_network;
pub use report::{Goal, Report, Row};
pub use sockets::ask;

/// Names of the benchmarks.
pub const NAMES: [&str; 11] = [
    "upcall",
    "kv",
    "launch",
    "faults",
    "events",
    "delay",
    "service",
    "interpose",
    "sockets",
    "net",
    "engine",
];

/// How to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Rounds per row.
    pub rounds: usize,
    /// A fraction of the usual work: to see that it runs, not for figures.
    pub quick: bool,
    /// Rows in whose names one of these is; all, if there is none.
    pub only: Vec<String>,
}

impl Options {
    fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| row.contains(part.as_str()))
    }
}

/// Why there are no figures.
#[derive(Debug)]
pub enum BenchError {
    /// There is no such benchmark.
    Unknown(String),
    /// A file of the release build is missing.
    NotBuilt(PathBuf),
    /// What was being done, and the kernel's error.
    Io(&'static str, io::Error),
    /// The process in the sandbox said something else than a figure.
    Inside(String),
    /// No row has a name like these; what rows there are.
    NoRow(String, Vec<String>),
}

impl fmt::Display for BenchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => {
                write!(f, "no benchmark named {name:?}; there are {}", NAMES.join(", "))
            }
            Self::NotBuilt(path) => {
                write!(f, "{} is missing: run `cargo build --release` first", path.display())
            }
            Self::Io(doing, error) => write!(f, "{doing}: {error}"),
            Self::NoRow(typed, rows) => {
                write!(
                    f,
                    "--only {typed}: no row with that in its name can be measured alone; there are {}",
                    rows.join(", ")
                )
            }
            Self::Inside(said) => write!(f, "the process in the sandbox failed: {said}"),
        }
    }
}

impl std::error::Error for BenchError {}

/// Run the benchmark `name`.
///
/// # Errors
/// [`BenchError`].
pub fn run(name: &str, options: Options) -> Result<Report, BenchError> {
    let is_part = !options.only.is_empty();
    let mut report = run_all(name, options)?;
    if is_part {
        report.goals.retain(|goal| goal.value.is_some());
    }
    Ok(report)
}

fn run_all(name: &str, options: Options) -> Result<Report, BenchError> {
    match name {
        "upcall" => upcall::run(options),
        "kv" => kv::run(options),
        "launch" => launch::run(options),
        "faults" => faults::run(options),
        "events" => events::run(options),
        "delay" => delay::run(options),
        "service" => service::run(options),
        "interpose" => interpose::run(options),
        "sockets" => sockets::run(options),
        "net" => net::run(options),
        "engine" => net::engine::run(options),
        _ => Err(BenchError::Unknown(name.to_owned())),
    }
}

/// A file beside the launcher.
fn built(name: &str) -> Result<PathBuf, BenchError> {
    let launcher = std::env::current_exe().map_err(|e| BenchError::Io("finding myself", e))?;
    let path = launcher.with_file_name(name);
    if path.is_file() { Ok(path) } else { Err(BenchError::NotBuilt(path)) }
}

/// One row: its name, its unit, and what measures it once.
type Measure<'a> = (String, &'static str, Box<dyn FnMut() -> Result<f64, BenchError> + 'a>);

/// Measure the rows that are wanted in turns.
fn measure(options: &Options, mut rows: Vec<Measure<'_>>) -> Result<Vec<Row>, BenchError> {
    use std::io::IsTerminal;
    let names: Vec<String> = rows.iter().map(|(name, ..)| name.clone()).collect();
    rows.retain(|(name, ..)| options.wants(name));
    let rounds = options.rounds;
    let mut samples = vec![Vec::new(); rows.len()];
    for round in 0..rounds {
        for ((name, _, measure), samples) in rows.iter_mut().zip(&mut samples) {
            if io::stderr().is_terminal() {
                eprint!("\r\x1b[Kround {} of {rounds}: {name}", round + 1);
            }
            samples.push(measure()?);
        }
    }
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    let rows = rows.into_iter().zip(samples);
    // What another row measures is not there without that, and some rows are of what does not occur each time.
    let rows: Vec<Row> = rows
        .map(|(row, samples)| (row, samples.into_iter().filter(|it| !it.is_nan()).collect()))
        .filter(|(_, samples): &(_, Vec<f64>)| !samples.is_empty())
        .map(|((name, unit, _), samples)| Row::of(name, unit, samples))
        .collect();
    if rows.is_empty() {
        return Err(BenchError::NoRow(options.only.join(", --only "), names));
    }
    Ok(rows)
}
