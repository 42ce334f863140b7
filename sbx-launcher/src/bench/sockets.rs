//! `bench sockets`: servers and clients on one host, by the kernel's sockets and through the region.
//!
//! The same programs, unchanged, in and outside of a sandbox; the server on one core, the client on the
//! other, or both on one.

use std::cell::Cell;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{BenchError, Measure, Options, Report, measure, pairs};

/// By which way a client reaches its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Tcp,
    Unix,
    /// TCP, both in the sandbox.
    Region,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Unix => "Unix",
            Self::Region => "region",
        }
    }
}

const SERVER_CPU: usize = 1;
const CLIENT_CPU: usize = 0;

/// Servers of both kinds, natively and in a sandbox.
struct Servers {
    sandbox: String,
    folder: PathBuf,
    launcher: PathBuf,
    running: Vec<(Child, bool)>,
    pids: Vec<(&'static str, bool, u32)>,
}

const REDIS: [&str; 2] = ["7481", "7482"];
const NGINX: [&str; 2] = ["7483", "7484"];
const IPERF: [&str; 2] = ["7485", "7486"];
const BULK: &str = "iperf3, writes of 16 KiB";

impl Servers {
    fn start() -> io::Result<Self> {
        let sandbox = format!("bench-sockets-{}", std::process::id());
        let folder = std::env::temp_dir().join(&sandbox);
        std::fs::create_dir_all(&folder)?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755))?;
        let launcher = std::env::current_exe()?;
        let up = Command::new(&launcher).args(["up", &sandbox, "--sockets"]).status()?;
        if !up.success() {
            return Err(io::Error::other("the sandbox did not come up"));
        }
        let mut servers = Self { sandbox, folder, launcher, running: Vec::new(), pids: Vec::new() };
        std::fs::write(servers.folder.join("16k"), [b'x'; 16 << 10])?;
        for in_sandbox in [false, true] {
            let which = usize::from(in_sandbox);
            let folder = servers.folder.clone();
            let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
            let socket = path(REDIS[which]);
            let redis =
                ["redis-server", "--port", REDIS[which], "--save", "", "--unixsocket", &socket];
            servers.serve("redis", in_sandbox, &redis)?;
            let conf = path(&format!("conf{which}"));
            std::fs::write(&conf, nginx_conf(&folder, NGINX[which], which))?;
            if has_iperf() {
                let iperf = ["iperf3", "-s", "-B", "127.0.0.1", "-p", IPERF[which]];
                servers.serve("iperf3", in_sandbox, &iperf)?;
            }
            let prefix = path("");
            servers.serve("nginx", in_sandbox, &["nginx", "-c", &conf, "-p", &prefix])?;
            for (db, len) in [("0", "64"), ("1", "16384")] {
                let set =
                    ["-p", REDIS[which], "--dbnum", db, "-t", "set", "-n", "1", "-d", len, "-q"];
                let until = Instant::now() + Duration::from_secs(10);
                while !quiet(Command::new("redis-benchmark").args(set)).status()?.success() {
                    if Instant::now() > until {
                        return Err(io::Error::other("redis-server does not answer"));
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
        Ok(servers)
    }

    /// `argv` pinned to `cpu`, in the sandbox or not.
    fn command(&self, in_sandbox: bool, cpu: usize, argv: &[&str]) -> Command {
        let mut command = Command::new("taskset");
        command.args(["-c", &cpu.to_string()]);
        if in_sandbox {
            command.arg(&self.launcher).args(["run", "--sandbox", &self.sandbox, "--"]);
        }
        command.args(argv).stdin(Stdio::null());
        command
    }

    fn serve(&mut self, name: &'static str, in_sandbox: bool, argv: &[&str]) -> io::Result<()> {
        let mut child = quiet(&mut self.command(in_sandbox, SERVER_CPU, argv)).spawn()?;
        std::thread::sleep(Duration::from_millis(400));
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("{}: {status}", argv[0])));
        }
        // The server itself: the launcher's child, and of nginx the worker.
        let mut pid = child.id();
        let steps = usize::from(in_sandbox) + usize::from(name == "nginx");
        for _ in 0..steps {
            pid = child_of(pid).unwrap_or(pid);
        }
        self.pids.push((name, in_sandbox, pid));
        self.running.push((child, in_sandbox));
        Ok(())
    }

    /// Seconds that a server has computed.
    fn cpu_of(&self, name: &str, in_sandbox: bool) -> f64 {
        let found = self.pids.iter().find(|one| (one.0, one.1) == (name, in_sandbox));
        found.map_or(0.0, |one| cpu_seconds(one.2))
    }

    /// Requests per second of a client, and CPU seconds of both sides per million.
    fn rate(
        &self,
        server: &str,
        way: Way,
        cpu: usize,
        argv: &[&str],
        read: impl Fn(&str) -> Option<(f64, f64)>,
    ) -> io::Result<(f64, f64)> {
        let in_sandbox = way == Way::Region;
        let before = (self.cpu_of(server, in_sandbox), children_seconds());
        let output = self.command(in_sandbox, cpu, argv).output()?;
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "\n");
        let after = (self.cpu_of(server, in_sandbox), children_seconds());
        let Some((rate, count)) = read(&text).filter(|_| output.status.success()) else {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(io::Error::other(format!("{argv:?}: {text} {said}")));
        };
        Ok((rate, (after.0 - before.0 + after.1 - before.1) * 1e6 / count))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for (mut child, in_sandbox) in self.running.drain(..) {
            let inner = child_of(child.id()).filter(|_| in_sandbox).unwrap_or(child.id());
            let _ = quiet(Command::new("kill").arg(inner.to_string())).status();
            let until = Instant::now() + Duration::from_secs(5);
            while child.try_wait().is_ok_and(|status| status.is_none()) {
                if Instant::now() > until {
                    let _ = child.kill();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = Command::new(&self.launcher).args(["down", &self.sandbox]).status();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn has_iperf() -> bool {
    quiet(Command::new("iperf3").arg("--version")).status().is_ok()
}

/// Gigabytes per second of one connection, and CPU seconds per million writes.
fn bulk(servers: &Servers, way: Way) -> io::Result<(f64, f64)> {
    let which = usize::from(way == Way::Region);
    let fixed = ["iperf3", "-c", "127.0.0.1", "-l", "16K", "-t", "1", "-J", "-p", IPERF[which]];
    servers.rate("iperf3", way, CLIENT_CPU, &fixed, |text| {
        let report: serde_json::Value = serde_json::from_str(text).ok()?;
        let sum = &report["end"]["sum_received"];
        Some((sum["bits_per_second"].as_f64()? / 8e9, sum["bytes"].as_f64()? / 16384.0))
    })
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

fn nginx_conf(folder: &Path, port: &str, which: usize) -> String {
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {folder}/{kind}; "))
        .concat();
    format!(
        "worker_processes 1; daemon off; pid {folder}/pid{which}; error_log {folder}/error{which};
         events {{ worker_connections 1024; }}
         http {{ access_log off; sendfile on; keepalive_requests 100000000; {temporary}
           server {{ listen 127.0.0.1:{port} backlog=4096; root {folder};
             location /reply {{ return 200 ok; }} }} }}"
    )
}

fn child_of(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split(' ').next()?.parse().ok()
}

fn cpu_seconds(pid: u32) -> f64 {
    const PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let behind_name = stat.rsplit(')').next().unwrap_or("");
    let ticks = behind_name.split(' ').skip(12).take(2).filter_map(|word| word.parse::<f64>().ok());
    ticks.sum::<f64>() / PER_SECOND
}

/// Of children that have ended.
fn children_seconds() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    getrusage(UsageWho::RUSAGE_CHILDREN).map_or(0.0, |usage| {
        let time = |at: nix::sys::time::TimeVal| at.tv_sec() as f64 + at.tv_usec() as f64 / 1e6;
        time(usage.user_time()) + time(usage.system_time())
    })
}

/// A kind of load.
struct Load {
    name: &'static str,
    ways: &'static [Way],
    cpu: usize,
    /// For `redis-benchmark`: requests, connections, and more; else for wrk: connections, path and more.
    redis: Option<(u64, &'static str, &'static [&'static str])>,
    wrk: (&'static str, &'static str, &'static [&'static str]),
}

const ALL: &[Way] = &[Way::Tcp, Way::Unix, Way::Region];
const BOTH: &[Way] = &[Way::Tcp, Way::Region];
const NO_WRK: (&str, &str, &[&str]) = ("", "", &[]);

const LOADS: [Load; 10] = [
    redis("redis GET c1", ALL, CLIENT_CPU, (40_000, "1", &[])),
    redis("redis GET c50", ALL, CLIENT_CPU, (200_000, "50", &[])),
    redis("redis GET c50 P16", ALL, CLIENT_CPU, (1_000_000, "50", &["-P", "16"])),
    redis("redis GET 16 KiB c1", BOTH, CLIENT_CPU, (20_000, "1", &["--dbnum", "1"])),
    redis("redis GET c1, one core", BOTH, SERVER_CPU, (40_000, "1", &[])),
    redis("redis GET c50, one core", BOTH, SERVER_CPU, (100_000, "50", &[])),
    wrk("nginx reply c1", ("1", "reply", &[])),
    wrk("nginx reply c50", ("50", "reply", &[])),
    wrk("nginx 16 KiB file c50", ("50", "16k", &[])),
    wrk("nginx, a connection each, c10", ("10", "reply", &["-H", "Connection: close"])),
];

const fn redis(
    name: &'static str,
    ways: &'static [Way],
    cpu: usize,
    what: (u64, &'static str, &'static [&'static str]),
) -> Load {
    Load { name, ways, cpu, redis: Some(what), wrk: NO_WRK }
}

const fn wrk(
    name: &'static str,
    what: (&'static str, &'static str, &'static [&'static str]),
) -> Load {
    Load { name, ways: BOTH, cpu: CLIENT_CPU, redis: None, wrk: what }
}

impl Load {
    /// Requests per second, and CPU seconds of client and server per million of them.
    fn measure(&self, servers: &Servers, way: Way, scale: u64) -> io::Result<(f64, f64)> {
        let which = usize::from(way == Way::Region);
        if let Some((count, clients, more)) = self.redis {
            let count = (count / scale).max(1000);
            let (number, socket) = (count.to_string(), servers.folder.join(REDIS[0]));
            let socket = socket.to_string_lossy();
            let to = if way == Way::Unix { ["-s", &*socket] } else { ["-p", REDIS[which]] };
            let fixed = ["-t", "get", "-q", "-c", clients, "-n", &number];
            let argv = [&["redis-benchmark"][..], &to, &fixed, more].concat();
            return servers.rate("redis", way, self.cpu, &argv, |text| {
                let line = text.lines().rev().find(|line| line.contains("requests per second"))?;
                let words: Vec<&str> = line.split_whitespace().collect();
                let at = words.iter().position(|word| *word == "requests")?;
                Some((words.get(at.checked_sub(1)?)?.parse().ok()?, count as f64))
            });
        }
        let (clients, path, more) = self.wrk;
        let url = format!("http://127.0.0.1:{}/{path}", NGINX[which]);
        let fixed = ["wrk", "-t1", "-d1", "-c", clients];
        let argv = [&fixed[..], more, &[&*url]].concat();
        servers.rate("nginx", way, self.cpu, &argv, |text| {
            let figure = |key: &str, at: usize| {
                let line = text.lines().find(|line| line.contains(key))?;
                line.split_whitespace().nth(at)?.parse::<f64>().ok()
            };
            Some((figure("Requests/sec:", 1)?, figure("requests in", 0)?))
        })
    }
}

pub(super) fn run(options: Options) -> Result<Report, BenchError> {
    let doing = |error| BenchError::Io("running servers and clients", error);
    let servers = Servers::start().map_err(doing)?;
    let scale = if options.quick { 20 } else { 1 };
    let mut rows: Vec<Measure<'_>> = Vec::new();
    let cpu = Cell::new(0.0);
    for load in &LOADS {
        for &way in load.ways {
            let (servers, cpu) = (&servers, &cpu);
            let name = format!("{}, {}", load.name, way.name());
            let rate = move || {
                let (rate, seconds) = load.measure(servers, way, scale).map_err(doing)?;
                cpu.set(seconds);
                Ok(rate)
            };
            rows.push((name.clone(), "1/s", Box::new(rate)));
            // Measured by the row before.
            rows.push((format!("{name}: CPU"), "s/M", Box::new(move || Ok(cpu.get()))));
        }
    }
    for way in BOTH.iter().copied().filter(|_| has_iperf()) {
        let (servers, cpu) = (&servers, &cpu);
        let name = format!("{BULK}, {}", way.name());
        let rate = move || {
            let (rate, seconds) = bulk(servers, way).map_err(doing)?;
            cpu.set(seconds);
            Ok(rate)
        };
        rows.push((name.clone(), "GB/s", Box::new(rate)));
        rows.push((format!("{name}: CPU"), "s/M", Box::new(move || Ok(cpu.get()))));
    }
    rows.extend(pairs::rows(&servers.launcher, &servers.sandbox, scale));
    let mut report = Report::new("sockets", options.rounds, measure(options.rounds, rows)?);
    let goals = [
        (0, Way::Tcp, 15.0),
        (0, Way::Unix, 10.0),
        (1, Way::Tcp, 6.0),
        (1, Way::Unix, 4.0),
        (2, Way::Tcp, 1.4),
        (2, Way::Unix, 1.0),
        (3, Way::Tcp, 6.0),
        (4, Way::Tcp, 2.5),
        (5, Way::Tcp, 6.0),
        (6, Way::Tcp, 15.0),
        (7, Way::Tcp, 5.0),
        (8, Way::Tcp, 1.5),
        (9, Way::Tcp, 1.0 / 1.3),
    ];
    for (load, than, goal) in goals {
        let (name, than) = (LOADS[load].name, than.name());
        let rows = [format!("{name}, region"), format!("{name}, {than}")];
        let named = format!("{name}: region / {than}");
        let ratio = |[ours, theirs]: [f64; 2]| ours / theirs;
        report.goal(&named, [&rows[0], &rows[1]], ratio, (">=", goal));
    }
    let (ours, theirs) = (format!("{BULK}, region"), format!("{BULK}, TCP"));
    report.goal("iperf3, region, GB/s", [&ours], |[rate]| rate, (">=", 10.0));
    let ratio = |[ours, theirs]: [f64; 2]| ours / theirs;
    report.goal("iperf3: region / TCP", [&ours, &theirs], ratio, (">=", 1.0));
    report.explain(BULK, "iperf3 is not installed (package iperf3)");
    Ok(report)
}
