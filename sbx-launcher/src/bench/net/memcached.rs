//! memcached's protocol, served from kv-cache by a handler, beside memcached itself; for clients that take
//! part, served by a participant; and the same entries by upcalls. Everybody asks for one key of 16 octets,
//! whose value has 100.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use super::super::inside::Inside;
use super::super::load;
use super::super::pin::{pin, unpin};
use super::super::{BenchError, Report, built};
use super::{CLIENT_CPU, Last, Ours, Rows, SERVER_CPU, Server, doing, left};

const KEY: &str = "0000000000000001";
const VALUE_LEN: usize = 100;
/// Keys of the cache that upcalls ask for.
const KEYS: u64 = 1 << 12;
const REQUEST: &[u8] = b"get 0000000000000001\r\n";
const WARM: Duration = Duration::from_millis(500);
/// Names, and connections.
const LOADS: [(&str, usize); 2] = [("memcached GET c1", 1), ("memcached GET c50", 50)];

/// Ours, theirs if it is installed, ours for participants, and a process that makes upcalls.
pub(super) struct Caches {
    ours: Server,
    theirs: Option<Server>,
    near: Server,
    inside: RefCell<Inside>,
    sandbox: Ours,
}

impl Caches {
    pub(super) fn start() -> Result<Self, BenchError> {
        let launcher = std::env::current_exe().map_err(doing)?;
        let sandbox =
            Ours { name: format!("{}-{}", left::SANDBOXES[1], std::process::id()), launcher };
        sandbox.launcher(&["up", "--sockets", &sandbox.name]).map_err(doing)?;
        let images = [built("libkv_cache.so")?, built("libmemcached.so")?];
        let [cache, protocol] = images.map(|image| image.to_string_lossy().into_owned());
        sandbox.launcher(&["ext", "load", &sandbox.name, &cache]).map_err(doing)?;
        let listen = ["--listen", "11211=127.0.0.1:0"];
        let load = [&["ext", "load", &sandbox.name, &protocol][..], &listen].concat();
        sandbox.launcher(&load).map_err(doing)?;
        let until = Instant::now() + Duration::from_secs(10);
        while sandbox.table().map_err(doing)?["worker"].is_null() {
            if Instant::now() > until {
                return Err(doing(io::Error::other("the network's worker does not start")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        pin(sandbox.worker().map_err(doing)? as i32, SERVER_CPU);
        let ours = sandbox.server("tcp 11211").map_err(doing)?;
        store(ours.at).map_err(doing)?;
        let theirs = real().map_err(doing)?;
        theirs.iter().try_for_each(|it| store(it.at)).map_err(doing)?;
        let near = near(&sandbox).map_err(doing)?;
        // Until the heap's memory has been used once: its first use takes longer than an answer.
        let warm = |it: &Server| load::asking(it.at, 1, REQUEST, WARM).map(drop);
        std::iter::once(&ours).chain(&theirs).try_for_each(warm).map_err(doing)?;
        let inside = RefCell::new(Inside::start(&[built("libkv_cache.so")?], "")?);
        inside.borrow_mut().measure("fill", KEYS)?;
        Ok(Self { ours, theirs, near, inside, sandbox })
    }

    pub(super) fn rows<'a>(&'a self, rows: &mut Rows<'a>, last: &'a Last, time: Duration) {
        for (load, count) in LOADS {
            let theirs = self.theirs.iter().map(|server| ("memcached", server));
            for (way, server) in std::iter::once(("region", &self.ours)).chain(theirs) {
                let name = format!("{load}, {way}");
                let rate = move || {
                    pin(0, CLIENT_CPU);
                    let before = server.cpu_seconds();
                    let figures = load::asking(server.at, count, REQUEST, time);
                    let took = server.cpu_seconds() - before;
                    unpin();
                    let figures = figures.map_err(doing)?;
                    last.cpu_us.set(took * 1e6 / figures.count.max(1.0));
                    Ok(figures.rate)
                };
                rows.push((name.clone(), "1/s", Box::new(rate)));
                rows.push((format!("{name}: CPU"), "us", Box::new(|| Ok(last.cpu_us.get()))));
            }
        }
        for (load, count) in LOADS {
            let name = format!("{load}, participants");
            let rate = move || {
                let before = self.near.cpu_seconds();
                let rate = ask_as_participant(&self.sandbox, self.near.at, count, time);
                let rate = rate.map_err(doing)?;
                let took = self.near.cpu_seconds() - before;
                last.cpu_us.set(took * 1e6 / (rate * time.as_secs_f64()).max(1.0));
                Ok(rate)
            };
            rows.push((name.clone(), "1/s", Box::new(rate)));
            rows.push((format!("{name}: CPU"), "us", Box::new(|| Ok(last.cpu_us.get()))));
        }
        // Some 150 ns each.
        let count = time.as_micros() as u64 * 2;
        let direct = move || self.inside.borrow_mut().measure(&format!("get:{KEYS}"), count);
        rows.push(("kv.get by an upcall, 1 process".into(), "1/s", Box::new(direct)));
    }
}

/// What it is to reach.
pub(super) fn goals(report: &mut Report) {
    for (load, _) in LOADS {
        let rows = ["region", "memcached"].map(|way| format!("{load}, {way}"));
        let ratio = |[ours, theirs]: [f64; 2]| ours / theirs;
        let name = format!("{load}: region / memcached");
        report.goal(&name, [&*rows[0], &*rows[1]], ratio, (">=", 1.0));
        let near = format!("{load}, participants");
        let name = format!("{load}: participants / memcached");
        report.goal(&name, [&*near, &*rows[1]], ratio, (">=", 5.0));
        report.explain(&rows[1], "memcached does not run here (Debian package memcached)");
    }
}

/// A participant that serves the protocol, on a core of its own.
fn near(sandbox: &Ours) -> io::Result<Server> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let (core, at) = (SERVER_CPU.to_string(), format!("127.0.0.1:{port}"));
    let launcher = sandbox.launcher.to_string_lossy();
    let run = ["taskset", "-c", &core, &launcher, "run", "--sandbox", &sandbox.name, "--"];
    Server::program(&[&run[..], &[&launcher, "serve", "11211", "--at", &at]].concat(), port, true)
}

/// Answers per second to a client in the sandbox, a program of its own.
fn ask_as_participant(
    sandbox: &Ours,
    at: SocketAddr,
    count: usize,
    time: Duration,
) -> io::Result<f64> {
    let (core, what) = (CLIENT_CPU.to_string(), format!("ask:{count}:{}", time.as_millis()));
    let launcher = sandbox.launcher.as_os_str();
    let output = Command::new("taskset")
        .args(["-c", &core])
        .arg(launcher)
        .args(["run", "--sandbox", &sandbox.name, "--"])
        .arg(launcher)
        .args(["bench-serve", &what, &at.port().to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let failed = || io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned());
    text.trim().parse().map_err(|_| failed())
}

/// Be such a client, of `what`: `ask:CONNECTIONS:MILLISECONDS`.
pub(super) fn ask(what: &str, port: u16) -> io::Result<f64> {
    let mut numbers = what.split(':').filter_map(|number| number.parse::<u64>().ok());
    let (Some(count), Some(millis)) = (numbers.next(), numbers.next()) else {
        return Err(io::Error::other(format!("{what} is not ask:CONNECTIONS:MILLISECONDS")));
    };
    let at = ([127, 0, 0, 1], port).into();
    let time = Duration::from_millis(millis);
    load::asking(at, count as usize, REQUEST, time).map(|figures| figures.rate)
}

/// memcached with one thread, on a core of its own; None if it is not installed.
fn real() -> io::Result<Option<Server>> {
    let installed = Command::new("which").arg("memcached").output()?.status.success();
    if !installed {
        return Ok(None);
    }
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let (core, text) = (SERVER_CPU.to_string(), port.to_string());
    let argv = ["taskset", "-c", &core, "memcached", "-u", "root", "-l", "127.0.0.1", "-t", "1"];
    Server::program(&[&argv[..], &["-p", &text]].concat(), port, true).map(Some)
}

fn store(server: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let value = "v".repeat(VALUE_LEN);
    stream.write_all(format!("set {KEY} 0 0 {VALUE_LEN}\r\n{value}\r\n").as_bytes())?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    if answer == *b"STORED\r\n" { Ok(()) } else { Err(io::Error::other("it was not stored")) }
}
