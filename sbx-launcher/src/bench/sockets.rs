//! `bench sockets`: servers and clients on one host, by the kernel's sockets and through the region.
//!
//! The same programs, unchanged, in and outside of a sandbox; the server on one core, the client on the
//! other, or both on one. And the rings by themselves.

mod ask;
mod bare;
mod loads;

use std::cell::Cell;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use loads::{BOTH, LOADS};
use nix::sys::resource::UsageWho;

use super::{BenchError, Measure, Options, Report, measure, pairs, pin, round_trip};

/// By which way a client reaches its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Tcp,
    Unix,
    /// TCP, both in the sandbox.
    Region,
    /// AF_UNIX, both in the sandbox.
    RegionUnix,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Unix => "Unix",
            Self::Region => "region",
            Self::RegionUnix => "region, Unix",
        }
    }

    const fn is_region(self) -> bool {
        matches!(self, Self::Region | Self::RegionUnix)
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

/// A server's name, and its port outside of the sandbox; the one inside has the next.
const SERVERS: [(&str, u16); 9] = [
    ("redis", 7481),
    ("nginx", 7483),
    ("iperf3", 7485),
    ("memcached", 7487),
    ("postgres", 7489),
    ("node", 7491),
    ("tcp-close", 7493),
    ("tcp-threads", 7495),
    ("tcp-looks", 7497),
];
const BULK: &str = "iperf3, writes of 16 KiB";

impl Servers {
    fn start() -> io::Result<Self> {
        let sandbox = format!("bench-sockets-{}", std::process::id());
        let folder = std::env::temp_dir().join(&sandbox);
        std::fs::create_dir_all(&folder)?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))?;
        let launcher = std::env::current_exe()?;
        let up = Command::new(&launcher).args(["up", &sandbox, "--sockets"]).status()?;
        if !up.success() {
            return Err(io::Error::other("the sandbox did not come up"));
        }
        let mut servers = Self { sandbox, folder, launcher, running: Vec::new(), pids: Vec::new() };
        std::fs::write(servers.folder.join("16k"), [b'x'; 16 << 10])?;
        for way in [Way::Tcp, Way::Region] {
            servers.start_all(way)?;
        }
        Ok(servers)
    }

    fn start_all(&mut self, way: Way) -> io::Result<()> {
        let port = |name| self.port(name, way);
        let (folder, in_sandbox) = (self.folder.clone(), way.is_region());
        let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let (redis, socket) = (port("redis"), self.socket("redis", way));
        let (conf, prefix) = (path(&format!("conf{}", port("nginx"))), path(""));
        std::fs::write(&conf, nginx_conf(&folder, &port("nginx")))?;
        let node = format!(
            "require('http').createServer((_, r) => r.end('ok')).listen({}, '127.0.0.1')",
            port("node")
        );
        let (iperf3, memcached) = (port("iperf3"), port("memcached"));
        let [close, threads, looks] = ["tcp-close", "tcp-threads", "tcp-looks"].map(port);
        let own = self.launcher();
        let all: [(&str, &[&str]); 8] = [
            ("redis", &["redis-server", "--port", &redis, "--save", "", "--unixsocket", &socket]),
            ("nginx", &["nginx", "-c", &conf, "-p", &prefix]),
            ("iperf3", &["iperf3", "-s", "-B", "127.0.0.1", "-p", &iperf3]),
            (
                "memcached",
                &["memcached", "-u", "nobody", "-l", "127.0.0.1", "-t", "1", "-p", &memcached],
            ),
            ("node", &["node", "-e", &node]),
            ("tcp-close", &[&own, "bench-serve", "tcp-close", &close]),
            ("tcp-threads", &[&own, "bench-serve", "tcp-threads", &threads]),
            ("tcp-looks", &[&own, "bench-serve", "tcp-looks", &looks]),
        ];
        for (name, argv) in all.into_iter().filter(|(_, argv)| is_there(argv[0])) {
            self.serve(name, in_sandbox, argv)?;
        }
        self.start_postgres(way)?;
        for (db, len) in [("0", "64"), ("1", "16384")] {
            let set = ["-p", &redis, "--dbnum", db, "-t", "set", "-n", "1", "-d", len, "-q"];
            until("redis-server does not answer", || {
                Ok(quiet(Command::new("redis-benchmark").args(set)).status()?.success())
            })?;
        }
        Ok(())
    }

    /// With tables of pgbench's, if it is installed. It refuses to run as root.
    fn start_postgres(&mut self, way: Way) -> io::Result<()> {
        let Some(programs) = postgres() else { return Ok(()) };
        let (port, folder) = (self.port("postgres", way), self.folder());
        let data = format!("{folder}/postgres{port}");
        let as_other = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"];
        let as_other = if nix::unistd::geteuid().is_root() { &as_other[..] } else { &[] };
        let [initdb, server] = ["initdb", "postgres"].map(|name| format!("{programs}/{name}"));
        let make = [&initdb, "-D", &data, "-A", "trust", "-U", "postgres", "--no-sync"];
        let make = [as_other, &make].concat();
        if !quiet(Command::new(make[0]).args(&make[1..])).status()?.success() {
            return Err(io::Error::other("initdb fails"));
        }
        let fixed = [&server, "-D", &data, "-k", &folder, "-h", "127.0.0.1", "-p", &port];
        let argv = [as_other, &fixed, &["-c", "fsync=off"]].concat();
        self.serve("postgres", way.is_region(), &argv)?;
        let tables = ["-i", "-q", "-s", "4", "-U", "postgres", "-h", "127.0.0.1", "-p", &port];
        until("postgres does not answer", || {
            let mut command = Command::new("pgbench");
            Ok(quiet(command.args(tables).arg("postgres")).status()?.success())
        })
    }

    fn port(&self, name: &str, way: Way) -> String {
        let port = SERVERS.iter().find(|one| one.0 == name).map_or(0, |one| one.1);
        (port + u16::from(way.is_region())).to_string()
    }

    fn socket(&self, name: &str, way: Way) -> String {
        format!("{}/{name}{}", self.folder(), self.port(name, way))
    }

    fn folder(&self) -> String {
        self.folder.to_string_lossy().into_owned()
    }

    fn launcher(&self) -> String {
        self.launcher.to_string_lossy().into_owned()
    }

    fn has(&self, name: &str) -> bool {
        self.pids.iter().any(|one| one.0 == name)
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

    /// Requests per second of a client, CPU seconds of both sides, and how many requests.
    fn rate(
        &self,
        server: &str,
        way: Way,
        cpu: usize,
        argv: &[&str],
        read: impl Fn(&str) -> Option<(f64, f64)>,
    ) -> io::Result<(f64, f64, f64)> {
        // What a server's process for a connection has computed is told when that has ended.
        const ENDED: Duration = Duration::from_millis(20);
        let in_sandbox = way.is_region();
        let before = (self.cpu_of(server, in_sandbox), pin::cpu_seconds(UsageWho::RUSAGE_CHILDREN));
        let output = self.command(in_sandbox, cpu, argv).output()?;
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "\n");
        std::thread::sleep(ENDED);
        let after = (self.cpu_of(server, in_sandbox), pin::cpu_seconds(UsageWho::RUSAGE_CHILDREN));
        let Some((rate, count)) = read(&text).filter(|_| output.status.success()) else {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(io::Error::other(format!("{argv:?}: {text} {said}")));
        };
        Ok((rate, after.0 - before.0 + after.1 - before.1, count))
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

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    program.starts_with('/')
        || std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Where PostgreSQL's programs are, of the newest version.
fn postgres() -> Option<String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let all = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    let newest = all.filter(|path| path.join("initdb").is_file() && is_there("pgbench")).max()?;
    Some(newest.to_string_lossy().into_owned())
}

/// Try until it is so, for 10 s.
fn until(else_error: &str, is_so: impl Fn() -> io::Result<bool>) -> io::Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while !is_so()? {
        if Instant::now() > end {
            return Err(io::Error::other(else_error.to_owned()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Gigabytes per second of one connection, and CPU seconds per million writes.
fn bulk(servers: &Servers, way: Way) -> io::Result<(f64, f64)> {
    let port = servers.port("iperf3", way);
    let fixed = ["iperf3", "-c", "127.0.0.1", "-l", "16K", "-t", "1", "-J", "-p", &port];
    let (rate, seconds, count) = servers.rate("iperf3", way, CLIENT_CPU, &fixed, |text| {
        let report: serde_json::Value = serde_json::from_str(text).ok()?;
        let sum = &report["end"]["sum_received"];
        Some((sum["bits_per_second"].as_f64()? / 8e9, sum["bytes"].as_f64()? / 16384.0))
    })?;
    Ok((rate, seconds * 1e6 / count))
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

fn nginx_conf(folder: &Path, port: &str) -> String {
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {folder}/{kind}; "))
        .concat();
    format!(
        "worker_processes 1; daemon off; pid {folder}/pid{port}; error_log {folder}/error{port};
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

/// Of a process and its children that have ended.
fn cpu_seconds(pid: u32) -> f64 {
    const PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let behind_name = stat.rsplit(')').next().unwrap_or("");
    let ticks = behind_name.split(' ').skip(12).take(4).filter_map(|word| word.parse::<f64>().ok());
    ticks.sum::<f64>() / PER_SECOND
}

/// Ask the server at `port` for so many milliseconds, and print requests per second and how many; the exit
/// status.
#[must_use]
pub fn ask(what: &str, port: u16, ms: u64) -> i32 {
    match ask::ask(what, port, Duration::from_millis(ms)) {
        Ok((rate, count)) => println!("{rate} {count}"),
        Err(error) => {
            eprintln!("{what}: {error}");
            return 1;
        }
    }
    0
}

/// A load, what it is compared with, the least ratio, and the way of ours.
const GOALS: [(&str, Way, f64, Way); 27] = [
    ("redis GET c1", Way::Tcp, 15.0, Way::Region),
    ("redis GET c1", Way::Unix, 10.0, Way::Region),
    ("redis GET c50", Way::Tcp, 6.0, Way::Region),
    ("redis GET c50", Way::Unix, 4.0, Way::Region),
    ("redis GET c50 P16", Way::Tcp, 1.4, Way::Region),
    ("redis GET c50 P16", Way::Unix, 1.0, Way::Region),
    ("redis GET 16 KiB c1", Way::Tcp, 6.0, Way::Region),
    ("redis GET c1, one core", Way::Tcp, 2.5, Way::Region),
    ("redis GET c50, one core", Way::Tcp, 6.0, Way::Region),
    ("nginx reply c1", Way::Tcp, 15.0, Way::Region),
    ("nginx reply c50", Way::Tcp, 5.0, Way::Region),
    ("nginx 16 KiB file c50", Way::Tcp, 1.5, Way::Region),
    ("nginx, a connection each, c10", Way::Tcp, 1.0 / 1.3, Way::Region),
    ("memcached GET c1", Way::Tcp, 1.0, Way::Region),
    ("memcached GET c50", Way::Tcp, 1.0, Way::Region),
    ("pgbench -S c1", Way::Tcp, 1.0, Way::Region),
    ("pgbench -S c1", Way::Unix, 1.0, Way::RegionUnix),
    ("pgbench -S c8", Way::Tcp, 1.0, Way::Region),
    ("pgbench -S c8", Way::Unix, 1.0, Way::RegionUnix),
    ("node http c1", Way::Tcp, 1.0, Way::Region),
    ("node http c50", Way::Tcp, 1.0, Way::Region),
    ("connect, accept, close", Way::Tcp, 1.0 / 1.3, Way::Region),
    ("connect, accept, close, one core", Way::Tcp, 1.0 / 1.3, Way::Region),
    ("1 byte there and back", Way::Tcp, 1.0, Way::Region),
    ("1 byte there and back, looking", Way::Tcp, 1.0, Way::Region),
    ("1 byte there and back, asleep", Way::Tcp, 1.0 / 1.05, Way::Region),
    ("1 byte there and back, asleep, one core", Way::Tcp, 1.0 / 1.05, Way::Region),
];

/// A figure, and CPU seconds per million of what it counts, which the row behind it prints.
type Rate<'a> = Box<dyn Fn() -> Result<(f64, f64), BenchError> + 'a>;

/// A row, and another for what it takes of CPUs.
fn with_cpu<'a>(
    rows: &mut Vec<Measure<'a>>,
    name: String,
    unit: &'static str,
    cpu: &'a Cell<f64>,
    rate: Rate<'a>,
) {
    let measure = move || {
        let (rate, seconds) = rate()?;
        cpu.set(seconds);
        Ok(rate)
    };
    rows.push((name.clone(), unit, Box::new(measure)));
    // Measured by the row before.
    rows.push((format!("{name}: CPU"), "s/M", Box::new(move || Ok(cpu.get()))));
}

pub(super) fn run(options: Options) -> Result<Report, BenchError> {
    let doing = |error| BenchError::Io("running servers and clients", error);
    let servers = &Servers::start().map_err(doing)?;
    // Some clients run for a second at least.
    let scale = if options.quick { 20 } else { 1 };
    let mut rows: Vec<Measure<'_>> = Vec::new();
    let cpu = &Cell::new(f64::NAN);
    for load in LOADS.iter().filter(|load| servers.has(load.server)) {
        for &way in load.ways {
            let rate: Rate<'_> = Box::new(move || load.measure(servers, way, scale));
            with_cpu(&mut rows, format!("{}, {}", load.name, way.name()), "1/s", cpu, rate);
        }
    }
    for way in BOTH.iter().copied().filter(|_| servers.has("iperf3")) {
        let rate: Rate<'_> = Box::new(move || bulk(servers, way).map_err(doing));
        with_cpu(&mut rows, format!("{BULK}, {}", way.name()), "GB/s", cpu, rate);
    }
    bare_rows(&mut rows, scale);
    for kind in pairs::all(scale) {
        for (within, way) in [(None, "kernel"), (Some(servers.sandbox.as_str()), "region")] {
            let rate: Rate<'_> = Box::new(move || kind.rate(&servers.launcher, within));
            with_cpu(&mut rows, format!("{}, {way}", kind.name), kind.unit, cpu, rate);
        }
    }
    let mut report = Report::new("sockets", options.rounds, measure(&options, rows)?);
    goals(&mut report);
    Ok(report)
}

const PLACES: [&str; 2] = ["near caches", "far caches"];

/// The rings by themselves, in each placement that there is at that moment.
fn bare_rows(rows: &mut Vec<Measure<'_>>, scale: u64) {
    const LEN: usize = 16 << 10;
    type Bare = fn([usize; 2], u64) -> io::Result<f64>;
    const ROWS: [(&str, &str, Bare); 3] = [
        ("bare shared line", "us", |[own, cpu], count| {
            round_trip::spin_from(own, cpu, count).map(|ns| ns / 1e3)
        }),
        ("ring there and back", "us", |cores, count| {
            bare::round_trip(cores, 1, count, bare::Wait::Spin).map(|ns| ns / 1e3)
        }),
        ("ring, writes of 16 KiB", "GB/s", |cores, count| bare::bandwidth(cores, LEN, count)),
    ];
    let doing = |error| BenchError::Io("a ring by itself", error);
    for place in PLACES {
        for (name, unit, bare) in ROWS {
            let measure = move || {
                for cores in bare::pairs() {
                    if bare::are_near(cores).map_err(doing)? == (place == PLACES[0]) {
                        return bare(cores, 500_000 / scale).map_err(doing);
                    }
                }
                Ok(f64::NAN)
            };
            rows.push((format!("{name}, {place}"), unit, Box::new(measure)));
        }
    }
    let us = |ns: f64| ns / 1e3;
    let one_core = move || {
        let cores = [SERVER_CPU, SERVER_CPU];
        let trip = bare::round_trip(cores, 1, 100_000 / scale, bare::Wait::Yield);
        trip.map(us).map_err(doing)
    };
    rows.push(("ring there and back, one core".into(), "us", Box::new(one_core)));
}

fn goals(report: &mut Report) {
    for (name, than, goal, ours) in GOALS {
        let (than, ours) = (than.name(), ours.name());
        let rows = [format!("{name}, {ours}"), format!("{name}, {than}")];
        let named = format!("{name}: {ours} / {than}");
        let ratio = |[ours, theirs]: [f64; 2]| ours / theirs;
        report.goal(&named, [&rows[0], &rows[1]], ratio, (">=", goal));
    }
    let (ours, theirs) = (format!("{BULK}, region"), format!("{BULK}, TCP"));
    report.goal("iperf3, region, GB/s", [&ours], |[rate]| rate, (">=", 10.0));
    let ratio = |[ours, theirs]: [f64; 2]| ours / theirs;
    report.goal("iperf3: region / TCP", [&ours, &theirs], ratio, (">=", 1.0));
    for (place, most) in [("near caches", 0.3), ("far caches", 0.8), ("one core", 3.0)] {
        let row = format!("ring there and back, {place}");
        report.goal(&format!("{row}, us"), [&row], |[us]| us, ("<=", most));
    }
    for place in PLACES {
        let row = format!("ring, writes of 16 KiB, {place}");
        report.goal(&format!("{row}, GB/s"), [&row], |[rate]| rate, (">=", 10.0));
        let why = if place == PLACES[0] { "more" } else { "less" };
        let why = format!("a line went there and back in {why} than 200 ns, each time");
        report.explain(place, &why);
    }
    let packages = [
        ("memcached", "memcached"),
        ("pgbench", "postgresql"),
        ("node", "nodejs"),
        (BULK, "iperf3"),
    ];
    for (row, package) in packages {
        report.explain(row, &format!("it is not installed (package {package})"));
    }
}
