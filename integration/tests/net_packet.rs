//! A handler that is asked about the frames of an interface: the sandbox is in one namespace, at one end of
//! a veth pair, and the kernel that pings it in another.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use integration::{Ended, PATIENCE, built, run};
use serde_json::Value;

/// Where the handler is hooked to, and the address that only it answers for.
const INTERFACE: &str = "sbxtest0";
const ADDRESS: &str = "10.88.0.9";
/// What the handler counts.
const ARP: &str = "0";
const PING: &str = "1";
const UNWANTED: &str = "2";
const OWN: &str = "3";
const OTHER: &str = "4";

/// Two namespaces; a sandbox in the first.
struct Net {
    sandbox: String,
    ours: String,
    kernel: String,
}

fn ip(arguments: &str) -> Ended {
    run(Command::new("ip").args(arguments.split(' ')))
}

fn must(arguments: &str) {
    let ended = ip(arguments);
    assert_eq!(ended.status, 0, "ip {arguments}: {}", ended.stderr);
}

impl Net {
    /// None, and why, if there can be no namespaces.
    fn new(test: &str) -> Option<Self> {
        if !nix::unistd::getuid().is_root() {
            println!("skipped: only root can make network namespaces");
            return None;
        }
        let id = format!("sbx-{}-{test}", std::process::id());
        let made = ip(&format!("netns add {id}o"));
        if made.status != 0 {
            println!("skipped: no network namespaces: {}", made.stderr.trim());
            return None;
        }
        // From here on they go with the value.
        let net = Self { sandbox: id.clone(), ours: format!("{id}o"), kernel: format!("{id}k") };
        must(&format!("netns add {}", net.kernel));
        let ended = net.launcher(&["up", &net.sandbox]);
        assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
        Some(net)
    }

    /// A line, and somebody at the other end of it.
    fn make_line(&self) {
        let Self { ours, kernel, .. } = self;
        // The ends say nothing by themselves, so that every frame is known.
        for namespace in [ours, kernel] {
            let key = "net.ipv6.conf.default.disable_ipv6=1";
            let ended = run(in_namespace(namespace).args(["sysctl", "-qw", key]));
            assert_eq!(ended.status, 0, "{}", ended.stderr);
        }
        must(&format!("-n {ours} link add {INTERFACE} type veth peer name line netns {kernel}"));
        must(&format!("-n {kernel} addr add 10.88.0.1/24 dev line"));
        must(&format!("-n {ours} link set {INTERFACE} up"));
        must(&format!("-n {kernel} link set line up"));
    }

    fn launcher(&self, args: &[&str]) -> Ended {
        run(in_namespace(&self.ours).arg(built("sbx-launcher")).args(args))
    }

    fn load(&self) -> Ended {
        let image: PathBuf = built("libframes.so");
        self.launcher(&["ext", "load", &self.sandbox, image.to_str().expect("text")])
    }

    fn load_well(&self) {
        let ended = self.load();
        assert_eq!(ended.status, 0, "{}", ended.stderr);
    }

    fn ping(&self, options: &[&str]) -> Ended {
        run(in_namespace(&self.kernel).arg("ping").args(options).arg(ADDRESS))
    }

    /// Ping until an answer comes: a line carries nothing for a while after it was set up.
    fn wait_for_answer(&self) {
        until("it answers a ping", || self.ping(&["-c", "1", "-W", "1"]).status == 0);
    }

    fn table(&self) -> Value {
        let ended = self.launcher(&["net", &self.sandbox, "--json"]);
        serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stderr))
    }

    /// The interface's row of `net`.
    fn row(&self) -> Value {
        let row = self.table()["ports"][0].clone();
        assert_eq!(row["port"], format!("packet {INTERFACE}"), "{row}");
        row
    }

    /// The interface's row, what the handler has counted, and the other end's counters, of one moment: the
    /// kernel asks who its neighbours are whenever it likes.
    fn quiet(&self) -> (Value, [u64; 5], Value) {
        let late = Instant::now() + PATIENCE;
        loop {
            let row = self.row();
            let counts = [ARP, PING, UNWANTED, OWN, OTHER].map(|kind| self.count(kind));
            let show = ["ip", "-j", "-s", "link", "show", "line"];
            let line = run(in_namespace(&self.kernel).args(show));
            if row == self.row() {
                return (row, counts, serde_json::from_str(&line.stdout).expect("JSON"));
            }
            assert!(Instant::now() < late, "it is never quiet");
        }
    }

    /// Kill it, and wait for the next one.
    fn replace_worker(&self) {
        use nix::sys::signal::{Signal, kill};
        let former = self.worker();
        kill(nix::unistd::Pid::from_raw(former as i32), Signal::SIGKILL).expect("it is there");
        until("another worker", || {
            self.table()["worker"].as_u64().is_some_and(|now| now != former)
        });
    }

    fn worker(&self) -> u64 {
        self.table()["worker"].as_u64().expect("a worker")
    }

    /// What the handler has counted.
    fn count(&self, kind: &str) -> u64 {
        let ended = self.launcher(&["call", &self.sandbox, "frames.count", kind]);
        ended.stdout.trim().parse().unwrap_or_else(|_| panic!("{}", ended.stderr))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.launcher(&["down", &self.sandbox]);
        for namespace in [&self.ours, &self.kernel] {
            let _ = ip(&format!("netns del {namespace}"));
        }
    }
}

fn in_namespace(name: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", name]);
    command
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let late = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < late, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn field(row: &Value, name: &str) -> u64 {
    row[name].as_u64().unwrap_or_else(|| panic!("no {name} in {row}"))
}

#[test]
fn an_address_that_only_a_handler_answers_for() {
    let Some(net) = Net::new("ping") else { return };
    net.make_line();
    net.load_well();
    net.wait_for_answer();
    let answered = |options: &[&str], count: &str| {
        let ended = net.ping(options);
        assert_eq!(ended.status, 0, "{}{}", ended.stdout, ended.stderr);
        assert!(ended.stdout.contains(&format!(" {count} received")), "{}", ended.stdout);
    };
    answered(&["-c", "20", "-i", "0.01", "-W", "5"], "20");
    // Contents, too: ping compares them.
    answered(&["-c", "5", "-i", "0.01", "-s", "1400", "-p", "5a", "-W", "5"], "5");
    // So many at once that they are sent in batches.
    answered(&["-c", "2000", "-l", "64", "-i", "0", "-q", "-W", "5"], "2000");
    // Who is dropped gets none.
    let lost = net.ping(&["-c", "3", "-i", "0.01", "-t", "7", "-W", "1"]);
    assert!(lost.stdout.contains(" 0 received"), "{}", lost.stdout);
    // Somebody else's address: a request that is passed, and that no kernel answers.
    let other = run(in_namespace(&net.kernel).args(["ping", "-c", "1", "-W", "1", "10.88.0.10"]));
    assert_ne!(other.status, 0);

    let (row, counts, line) = net.quiet();
    println!("{row}");
    let [arp, ping, unwanted, own, others] = counts;
    // Those of the tests above, and of waiting for the first.
    assert!(ping >= 2026 && arp >= 1 && others >= 1, "{ping} {arp} {others}");
    assert_eq!((unwanted, own), (3, 0), "our own answers do not come back");
    // Every frame is accounted for.
    assert_eq!(field(&row, "received"), arp + ping + unwanted + others);
    assert_eq!(field(&row, "upcalls"), field(&row, "received"));
    assert_eq!(field(&row, "replied"), arp + ping);
    assert_eq!(field(&row, "dropped"), unwanted + others);
    for none in ["failed", "unsent", "lost", "too_long", "buffers"] {
        assert_eq!(field(&row, none), 0, "{none}");
    }
    // As the other end has counted them.
    let stats = &line[0]["stats64"];
    assert_eq!(stats["tx"]["bytes"], row["bytes_in"], "{stats} {row}");
    assert_eq!(stats["rx"]["bytes"], row["bytes_out"], "{stats} {row}");
}

#[test]
fn an_interface_that_goes_down_or_away() {
    let Some(net) = Net::new("gone") else { return };
    net.make_line();
    net.load_well();
    net.wait_for_answer();
    must(&format!("-n {} link set {INTERFACE} down", net.ours));
    assert_ne!(net.ping(&["-c", "1", "-W", "1"]).status, 0);
    must(&format!("-n {} link set {INTERFACE} up", net.ours));
    net.wait_for_answer();
    // The worker is made anew, and the interface stays served.
    net.replace_worker();
    net.wait_for_answer();
    // What has gone costs nothing: the worker sleeps.
    must(&format!("-n {} link del {INTERFACE}", net.ours));
    until("the worker sleeps", || {
        let before = cpu_ns(net.worker());
        std::thread::sleep(Duration::from_millis(200));
        cpu_ns(net.worker()) - before < 20_000_000
    });
    until("it is said", || {
        net.launcher(&["log", &net.sandbox]).stdout.contains("has been removed")
    });
    // Once there is one again, it is served, by whichever worker there is then.
    net.make_line();
    net.wait_for_answer();
    must(&format!("-n {} link del {INTERFACE}", net.ours));
    net.replace_worker();
    net.make_line();
    net.wait_for_answer();
}

/// What a process has computed.
fn cpu_ns(pid: u64) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("it is there");
    text.split(' ').next().and_then(|word| word.parse().ok()).expect("a number")
}

#[test]
fn an_interface_that_is_not_there_is_refused() {
    let Some(net) = Net::new("none") else { return };
    let ended = net.load();
    assert_ne!(ended.status, 0);
    for part in ["frames.frame", "packet sbxtest0", "No such device", "ip link"] {
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }
    assert_eq!(net.table()["ports"], serde_json::json!([]));
    // It is no worse for it.
    net.make_line();
    net.load_well();
    net.wait_for_answer();
}
