//! `bench net`: what comes from the network, served in the region and by every other way.
//!
//! The server on one core, the client on the other. Each server is a process of its own; ours is the
//! network's worker of a sandbox.

mod load;
mod servers;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::pin::{pin, unpin};
use super::{BenchError, Measure, Options, Report, built, measure};
use crate::control::{self, Request};
use load::Figures;

const SERVER_CPU: usize = 1;
const CLIENT_CPU: usize = 0;

/// Serve for `bench net`; the exit status.
#[must_use]
pub fn serve(what: &str, port: u16) -> i32 {
    match servers::serve(what, port) {
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
        let launcher = std::env::current_exe()?;
        let port_text = port.to_string();
        let core = SERVER_CPU.to_string();
        Self::program(
            &["taskset", "-c", &core, &launcher.to_string_lossy(), "bench-serve", what, &port_text],
            port,
            what.starts_with("tcp"),
        )
    }

    /// A program that listens on `port`.
    fn program(argv: &[&str], port: u16, is_tcp: bool) -> io::Result<Self> {
        let silent = || Stdio::null();
        let child = Command::new(argv[0])
            .args(&argv[1..])
            .stdin(silent())
            .stdout(silent())
            .stderr(silent())
            .spawn()?;
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
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Seconds that a process has computed, to the nanosecond.
fn cpu_seconds(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    let ns = text.split(' ').next().and_then(|word| word.parse::<f64>().ok());
    ns.unwrap_or(0.0) / 1e9
}

/// A sandbox with extensions that serve ports.
struct Ours {
    name: String,
    launcher: PathBuf,
}

impl Ours {
    fn start(images: &[&str]) -> Result<Self, BenchError> {
        let doing = |error| BenchError::Io("starting a sandbox", error);
        let launcher = std::env::current_exe().map_err(doing)?;
        let name = format!("bench-net-{}", std::process::id());
        let ours = Self { name, launcher };
        ours.launcher(&["up", &ours.name]).map_err(doing)?;
        for image in images {
            let file = built(image)?.to_string_lossy().into_owned();
            let listen = ["9000", "9100"].map(|port| format!("{port}=127.0.0.1:0"));
            let which = usize::from(image.contains("hand_over"));
            ours.launcher(&["ext", "load", &ours.name, &file, "--listen", &listen[which]])
                .map_err(doing)?;
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
    /// Connections, or datagrams under way.
    count: usize,
    len: usize,
}

impl Load {
    fn run(&self, server: &Server, time: Duration) -> io::Result<(Figures, f64)> {
        pin(0, CLIENT_CPU);
        let before = server.cpu_seconds();
        let run = if self.is_tcp { load::tcp } else { load::udp };
        let figures = run(server.at, self.count, self.len, time);
        let took = server.cpu_seconds() - before;
        unpin();
        figures.map(|figures| {
            let each = took * 1e6 / figures.count.max(1.0);
            (figures, each)
        })
    }
}

const LOADS: [Load; 5] = [
    Load { name: "TCP echo 64 B c1", is_tcp: true, count: 1, len: 64 },
    Load { name: "TCP echo 64 B c50", is_tcp: true, count: 50, len: 64 },
    Load { name: "TCP echo 16 KiB c50", is_tcp: true, count: 50, len: 16 << 10 },
    Load { name: "UDP echo 64 B, 1 under way", is_tcp: false, count: 1, len: 64 },
    Load { name: "UDP echo 64 B, 64 under way", is_tcp: false, count: 64, len: 64 },
];

/// The ways to serve, by what is asked for.
const TCP_WAYS: [&str; 3] = ["tcp-threads", "tcp-epoll", "tcp-io_uring"];
const UDP_WAYS: [&str; 3] = ["udp-blocking", "udp-mmsg", "udp-io_uring"];

pub(super) fn run(options: Options) -> Result<Report, BenchError> {
    let doing = |error| BenchError::Io("serving the network", error);
    let time = Duration::from_millis(if options.quick { 50 } else { 400 });
    let ours = Ours::start(&["libnet_echo.so"])?;
    let mut all: Vec<(&str, Server)> = Vec::new();
    for (port, way) in (7510..).zip(TCP_WAYS.into_iter().chain(UDP_WAYS)) {
        all.push((way, Server::rival(way, port).map_err(doing)?));
    }
    all.push(("tcp-region", ours.server("tcp 9000").map_err(doing)?));
    all.push(("udp-region", ours.server("udp 9000").map_err(doing)?));
    let all = RefCell::new(all);
    let cpu = Cell::new(0.0);
    let mut rows: Vec<Measure<'_>> = Vec::new();
    for load in LOADS {
        let kind = if load.is_tcp { "tcp-" } else { "udp-" };
        let ways: Vec<&str> = all.borrow().iter().map(|(way, _)| *way).collect();
        for (index, way) in ways.into_iter().enumerate().filter(|(_, way)| way.starts_with(kind)) {
            let (all, cpu) = (&all, &cpu);
            let name = format!("{}, {}", load.name, &way[4..]);
            let rate = move || {
                let (figures, each) = load.run(&all.borrow()[index].1, time).map_err(doing)?;
                cpu.set(each);
                Ok(figures.rate)
            };
            rows.push((name.clone(), "1/s", Box::new(rate)));
            rows.push((format!("{name}: CPU"), "us", Box::new(move || Ok(cpu.get()))));
        }
    }
    let mut report = Report::new("net", options.rounds, measure(options.rounds, rows)?);
    for load in LOADS {
        let ways = if load.is_tcp { TCP_WAYS } else { UDP_WAYS };
        let rows: Vec<String> = std::iter::once("region")
            .chain(ways.iter().map(|way| &way[4..]))
            .map(|way| format!("{}, {way}", load.name))
            .collect();
        let best = |[ours, a, b, c]: [f64; 4]| ours / a.max(b).max(c);
        let goal = if load.is_tcp { 0.97 } else { 0.95 };
        let names = [&rows[0], &rows[1], &rows[2], &rows[3]].map(String::as_str);
        report.goal(&format!("{}: region / best", load.name), names, best, (">=", goal));
    }
    Ok(report)
}
