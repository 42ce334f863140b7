//! `bench net`: what comes from the network, served in the region and by every other way.
//!
//! The server on one core, the client on the other. Each server is a process of its own; ours is the
//! network's worker of a sandbox.
#![expect(unsafe_code, reason = "has the kernel end what it starts")]

pub(super) mod engine;
mod forward;
mod left;
mod memcached;
mod servers;
mod stack;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::events::Child as Process;
use super::load::{self, Figures};
use super::pin::{pin, unpin};
use super::{BenchError, Measure, Options, Report, built, measure};
use crate::control::{self, Request};

const SERVER_CPU: usize = 1;
const CLIENT_CPU: usize = 0;

/// Serve for `bench net`, or ask; the exit status.
#[must_use]
pub fn serve(what: &str, port: u16) -> i32 {
    let done = if what.starts_with("ask:") {
        memcached::ask(what, port).map(|rate| println!("{rate}"))
    } else {
        servers::serve(what, port)
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{what}: {error}");
            1
        }
    }
}

/// A server on a core of its own.
struct Server {
    at: SocketAddr,
    pid: u32,
    child: Option<Child>,
}

impl Server {
    /// One of our rivals.
    fn rival(what: &str, port: u16) -> io::Result<Self> {
        Self::rival_on(what, port, SERVER_CPU)
    }

    fn rival_on(what: &str, port: u16, cpu: usize) -> io::Result<Self> {
        let launcher = std::env::current_exe()?;
        let port_text = port.to_string();
        let core = cpu.to_string();
        Self::program(
            &["taskset", "-c", &core, &launcher.to_string_lossy(), "bench-serve", what, &port_text],
            port,
            what.starts_with("tcp"),
        )
    }

    /// A program that listens on `port`.
    fn program(argv: &[&str], port: u16, is_tcp: bool) -> io::Result<Self> {
        let silent = || Stdio::null();
        let mut command = Command::new(argv[0]);
        let end_with_it = || {
            // SAFETY: takes no pointer.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
            Ok(())
        };
        // SAFETY: it allocates nothing. Whoever kills the benchmark ends what that measures.
        unsafe { command.pre_exec(end_with_it) };
        let child =
            command.args(&argv[1..]).stdin(silent()).stdout(silent()).stderr(silent()).spawn()?;
        let at: SocketAddr = ([127, 0, 0, 1], port).into();
        let until = Instant::now() + Duration::from_secs(10);
        while is_tcp && std::net::TcpStream::connect(at).is_err() {
            if Instant::now() > until {
                return Err(io::Error::other(format!("{} does not listen", argv[0])));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(if is_tcp { 0 } else { 200 }));
        Ok(Self { at, pid: child.id(), child: Some(child) })
    }

    fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.pid)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // A launcher ends when what it has started does.
            let list = format!("/proc/{0}/task/{0}/children", child.id());
            let children = std::fs::read_to_string(list).unwrap_or_default();
            let started = children.split_whitespace().filter_map(|pid| pid.parse().ok());
            for pid in started.map(nix::unistd::Pid::from_raw) {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Seconds that a process and its children have computed, with threads and children that have ended.
fn cpu_seconds(pid: u32) -> f64 {
    const TICKS: f64 = 100.0;
    const OF_CHILDREN: std::ops::Range<usize> = 13..15;
    let process = nix::unistd::Pid::from_raw(pid as i32);
    let own = nix::time::clock_getcpuclockid(process).and_then(nix::time::clock_gettime);
    let own = own.map_or(0.0, |time| Duration::from(time).as_secs_f64());
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may contain anything: state, then numbers.
    let words = stat.rsplit(')').next().unwrap_or("").split_whitespace();
    let of_children = words.skip(OF_CHILDREN.start).take(OF_CHILDREN.len());
    let ticks: f64 = of_children.filter_map(|word| word.parse::<f64>().ok()).sum();
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = list.unwrap_or_default();
    let living = children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(cpu_seconds);
    own + ticks / TICKS + living.sum::<f64>()
}

/// A sandbox with extensions that serve ports.
struct Ours {
    name: String,
    launcher: PathBuf,
}

impl Ours {
    fn start() -> Result<Self, BenchError> {
        let doing = |error| BenchError::Io("starting a sandbox", error);
        let launcher = std::env::current_exe().map_err(doing)?;
        let name = format!("{}-{}", left::SANDBOXES[0], std::process::id());
        let ours = Self { name, launcher };
        ours.launcher(&["up", &ours.name]).map_err(doing)?;
        let upstream = format!("to=127.0.0.1:{}", forward::UPSTREAM);
        for (image, port, config) in [
            ("libnet_echo.so", "9000", ""),
            ("libhand_over.so", "9100", ""),
            ("libforward.so", "8000", &upstream),
        ] {
            let file = built(image)?.to_string_lossy().into_owned();
            let listen = format!("{port}=127.0.0.1:0");
            let load = ["ext", "load", &ours.name, &file, "--listen", &listen, "--config", config];
            ours.launcher(&load).map_err(doing)?;
        }
        let until = Instant::now() + Duration::from_secs(10);
        while ours.table().map_err(doing)?["worker"].is_null() {
            if Instant::now() > until {
                return Err(doing(io::Error::other("the network's worker does not start")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        pin(ours.worker().map_err(doing)? as i32, SERVER_CPU);
        Ok(ours)
    }

    /// A participant that answers what it is handed, on the client's core.
    fn answerer(&self) -> Result<Server, BenchError> {
        let core = CLIENT_CPU.to_string();
        let worker = built("hand-worker")?.to_string_lossy().into_owned();
        let launcher = self.launcher.to_string_lossy();
        let run =
            ["taskset", "-c", &core, &launcher, "run", "--sandbox", &self.name, "--", &worker];
        let doing = |error| BenchError::Io("starting a participant", error);
        Server::program(&run, 0, false).map_err(doing)
    }

    fn launcher(&self, args: &[&str]) -> io::Result<()> {
        let output = Command::new(&self.launcher).args(args).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    fn table(&self) -> io::Result<Value> {
        control::ask(&self.name, &Request::Net, &[])
    }

    fn worker(&self) -> io::Result<u32> {
        Ok(self.table()?["worker"].as_u64().unwrap_or(0) as u32)
    }

    /// Our server of the port of that name.
    fn server(&self, port: &str) -> io::Result<Server> {
        let table = self.table()?;
        let row = table["ports"].as_array().into_iter().flatten().find(|row| row["port"] == port);
        let at = row.and_then(|row| row["at"].as_str()?.parse().ok());
        let at = at.ok_or_else(|| io::Error::other(format!("nothing listens for {port}")))?;
        Ok(Server { at, pid: self.worker()?, child: None })
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = self.launcher(&["down", &self.name]);
    }
}

/// How a server is loaded.
#[derive(Debug, Clone, Copy)]
struct Load {
    name: &'static str,
    is_tcp: bool,
    /// Datagrams go, and come back, together.
    is_together: bool,
    /// Connections, or datagrams under way.
    count: usize,
    len: usize,
}

impl Load {
    /// Answers per second, the time that they took, and the server's CPU time for each.
    fn run(&self, server: &Server, time: Duration) -> io::Result<(Figures, f64)> {
        pin(0, CLIENT_CPU);
        let before = server.cpu_seconds();
        let run = match (self.is_tcp, self.is_together) {
            (true, _) => load::tcp,
            (_, true) => load::udp_together,
            _ => load::udp,
        };
        let figures = run(server.at, self.count, self.len, time);
        let took = server.cpu_seconds() - before;
        unpin();
        figures.map(|figures| {
            let each = took * 1e6 / figures.count.max(1.0);
            (figures, each)
        })
    }
}

const C1: Load =
    Load { name: "TCP echo 64 B c1", is_tcp: true, is_together: false, count: 1, len: 64 };
const C50: Load = Load { name: "TCP echo 64 B c50", count: 50, ..C1 };
const UDP1: Load = Load { name: "UDP echo 64 B, 1 under way", is_tcp: false, ..C1 };
const LOADS: [Load; 7] = [
    C1,
    C50,
    Load { name: "TCP echo 16 KiB c50", len: 16 << 10, ..C50 },
    UDP1,
    Load { name: "UDP echo 64 B, 64 under way", count: 64, ..UDP1 },
    Load { name: "UDP echo 64 B, 64 together", count: 64, is_together: true, ..UDP1 },
    Load { name: "UDP echo 1200 B, 50 together", count: 50, len: 1200, is_together: true, ..UDP1 },
];

/// The ways to serve, by what is asked for.
const TCP_WAYS: [&str; 3] = ["tcp-threads", "tcp-epoll", "tcp-io_uring"];
const UDP_WAYS: [&str; 5] =
    ["udp-blocking", "udp-mmsg", "udp-segments", "udp-together", "udp-io_uring"];
/// Programs that want all of the machine.
const HOGS: [usize; 2] = [0, 4];

type Rows<'a> = Vec<Measure<'a>>;

/// What is measured once for several rows.
#[derive(Default)]
struct Last {
    cpu_us: Cell<f64>,
    figures: RefCell<Figures>,
}

fn doing(error: io::Error) -> BenchError {
    BenchError::Io("serving the network", error)
}

/// Rows of one server under one load: its rate, and its CPU time.
fn rate_rows<'a>(
    rows: &mut Rows<'a>,
    (load, name): (Load, String),
    server: &'a Server,
    last: &'a Last,
    time: Duration,
) {
    let rate = move || {
        let (figures, each) = load.run(server, time).map_err(doing)?;
        last.cpu_us.set(each);
        let rate = figures.rate;
        last.figures.replace(figures);
        Ok(rate)
    };
    rows.push((name.clone(), "1/s", Box::new(rate)));
    rows.push((format!("{name}: CPU"), "us", Box::new(|| Ok(last.cpu_us.get()))));
}

/// Rows of one forwarder: small messages at once, and how long one takes, beside hogs.
fn forward_rows<'a>(
    rows: &mut Rows<'a>,
    name: &str,
    server: &'a Server,
    last: &'a Last,
    time: Duration,
) {
    rate_rows(rows, (C50, format!("forward 64 B c50, {name}")), server, last, time);
    for hogs in HOGS {
        let prefix = format!("forward 64 B c1, {hogs} hogs, {name}");
        let run = move || {
            let spin = || loop {
                std::hint::spin_loop();
            };
            let hogs =
                (0..hogs).map(|_| Process::start(None, spin)).collect::<io::Result<Vec<_>>>();
            let _hogs = hogs.map_err(doing)?;
            let (figures, _) = C1.run(server, time * 2).map_err(doing)?;
            let p50 = figures.quantile(0.5);
            last.figures.replace(figures);
            Ok(p50)
        };
        rows.push((format!("{prefix}: p50"), "us", Box::new(run)));
        let share = |share: f64| move || Ok(last.figures.borrow().quantile(share));
        rows.push((format!("{prefix}: p99.9"), "us", Box::new(share(0.999))));
        let spread = || {
            let figures = last.figures.borrow();
            Ok(figures.quantile(0.999) - figures.quantile(0.5))
        };
        rows.push((format!("{prefix}: p99.9 - p50"), "us", Box::new(spread)));
    }
}

pub(super) fn run(options: Options) -> Result<Report, BenchError> {
    let time = Duration::from_millis(if options.quick { 50 } else { 400 });
    let _left = left::Left::watch().map_err(doing)?;
    let ours = Ours::start()?;
    let _answerer = ours.answerer()?;
    let mut ways: Vec<(&str, Server)> = Vec::new();
    for (port, way) in (7510..).zip(TCP_WAYS.into_iter().chain(UDP_WAYS)) {
        ways.push((way, Server::rival(way, port).map_err(doing)?));
    }
    ways.push(("tcp-region", ours.server("tcp 9000").map_err(doing)?));
    ways.push(("udp-region", ours.server("udp 9000").map_err(doing)?));
    let hops = [
        ("epoll, Unix sockets", Server::rival("tcp-two-hops", 7518).map_err(doing)?),
        ("region", ours.server("tcp 9100").map_err(doing)?),
    ];
    let folder = left::folder(std::process::id());
    std::fs::create_dir_all(&folder).map_err(doing)?;
    // Beside the client, so that a forwarder has its core for itself.
    let upstream = Server::rival_on("tcp-epoll", forward::UPSTREAM, CLIENT_CPU).map_err(doing)?;
    let mut forwarders = vec![("region", ours.server("tcp 8000").map_err(doing)?)];
    for (port, rival) in (forward::UPSTREAM + 1..).zip(&forward::RIVALS) {
        let server = rival.serve(&folder, port).map_err(doing)?;
        forwarders.extend(server.map(|server| (rival.name, server)));
    }
    // What all of them have in common: nobody can be faster.
    forwarders.push(("nothing between", upstream));
    let stacks = stack::Ways::start().map_err(doing)?;
    let caches = memcached::Caches::start()?;
    let last = Last::default();
    let mut rows: Rows<'_> = Vec::new();
    for load in LOADS {
        let kind = if load.is_tcp { "tcp-" } else { "udp-" };
        for (way, server) in ways.iter().filter(|(way, _)| way.starts_with(kind)) {
            let name = format!("{}, {}", load.name, &way[4..]);
            rate_rows(&mut rows, (load, name), server, &last, time);
        }
    }
    for load in [C1, C50] {
        for (way, server) in &hops {
            // A line each: what is handed over is whole lines.
            let name = format!("two hops, {}, {way}", &load.name[4..]);
            rate_rows(&mut rows, (load, name), server, &last, time);
        }
    }
    for (name, server) in &forwarders {
        forward_rows(&mut rows, name, server, &last, time);
    }
    stacks.rows(&mut rows, time);
    caches.rows(&mut rows, &last, time);
    let mut report = Report::new("net", options.rounds, measure(&options, rows)?);
    goals(&mut report);
    stacks.goals(&mut report);
    memcached::goals(&mut report);
    drop(forwarders);
    let _ = std::fs::remove_dir_all(folder);
    Ok(report)
}

fn goals(report: &mut Report) {
    for load in LOADS {
        let rows: Vec<String> = std::iter::once("region")
            .chain(if load.is_tcp { &TCP_WAYS[..] } else { &UDP_WAYS }.iter().map(|way| &way[4..]))
            .map(|way| format!("{}, {way}", load.name))
            .collect();
        let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
        let name = format!("{}: region / best", load.name);
        if let [ours, a, b, c] = rows[..] {
            let best = |[ours, a, b, c]: [f64; 4]| ours / a.max(b).max(c);
            report.goal(&name, [ours, a, b, c], best, (">=", 0.97));
        } else if let [ours, a, b, c, d, e] = rows[..] {
            let best = |[ours, a, b, c, d, e]: [f64; 6]| ours / a.max(b).max(c).max(d).max(e);
            report.goal(&name, [ours, a, b, c, d, e], best, (">=", 0.95));
        }
    }
    let ratio = |[ours, theirs]: [f64; 2]| ours / theirs;
    for load in ["echo 64 B c1", "echo 64 B c50"] {
        let rows = ["region", "epoll, Unix sockets"].map(|way| format!("two hops, {load}, {way}"));
        let name = format!("two hops, {load}: region / Unix sockets");
        report.goal(&name, [&*rows[0], &*rows[1]], ratio, (">=", 1.5));
    }
    // What the second hop adds to one answer: the time with it, less the time without.
    let hop = |[two, one, their_two, their_one]: [f64; 4]| {
        (1.0 / their_two - 1.0 / their_one) / (1.0 / two - 1.0 / one)
    };
    let rows = [
        "two hops, echo 64 B c1, region",
        "TCP echo 64 B c1, region",
        "two hops, echo 64 B c1, epoll, Unix sockets",
        "TCP echo 64 B c1, epoll",
    ];
    report.goal("the second hop alone: Unix sockets / region", rows, hop, (">=", 5.0));
    let best = |[ours, a, b, c]: [f64; 4]| ours / a.max(b).max(c);
    let least = |[ours, a, b, c]: [f64; 4]| ours / a.min(b).min(c);
    let named = |what: &str| {
        let names = ["region", "nginx stream", "haproxy", "socat"];
        names.map(|name| format!("forward 64 B {}", what.replace("NAME", name)))
    };
    let rows = named("c50, NAME");
    let names = [&rows[0], &rows[1], &rows[2], &rows[3]].map(String::as_str);
    report.goal("forward 64 B c50: region / best", names, best, (">=", 1.2));
    for hogs in HOGS {
        for share in ["p99.9", "p99.9 - p50"] {
            let rows = named(&format!("c1, {hogs} hogs, NAME: {share}"));
            let names = [&rows[0], &rows[1], &rows[2], &rows[3]].map(String::as_str);
            let name = format!("forward 64 B c1, {hogs} hogs, {share}: region / best");
            report.goal(&name, names, least, ("<=", 0.5));
        }
    }
    for rival in &forward::RIVALS {
        let why = format!("{} is not installed (Debian: {})", rival.name, rival.package);
        report.explain(rival.name, &why);
    }
}
