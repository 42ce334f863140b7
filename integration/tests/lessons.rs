//! What other systems' bug lists teach: things that work once and then cost too much, or leak.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command};
use std::thread;
use std::time::{Duration, Instant};

use integration::{Sandbox, built, compile, full, launcher, talk_with};

/// Run a script in Python in the sandbox; `box` is that.
fn python(sandbox: &Sandbox, script: &str) -> Command {
    let mut command = Command::new(built("sbx-launcher"));
    let script = format!("import os, sbx, sys, time\nbox = sbx.current()\n{script}");
    command.args(["run", "--sandbox", &sandbox.name, "--", "/usr/bin/python3", "-c", &script]);
    command.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/../ext-api/python"));
    command
}

fn said(sandbox: &Sandbox, script: &str) -> String {
    let ended = integration::run(&mut python(sandbox, script));
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    ended.stdout
}

fn supervisor(sandbox: &Sandbox) -> u64 {
    sandbox.json(&["ps"])["supervisor"].as_u64().expect("a pid")
}

/// Descriptors and mappings of a process.
fn held(pid: u64) -> (usize, usize) {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").count();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it lives").lines().count();
    (fds, maps)
}

#[test]
fn a_thousand_handlers_cost_no_descriptors() {
    let flags = ["-shared", "-fPIC", "-nostdlib", "-ffreestanding", "-fno-stack-protector"];
    let image = compile("cc", "thousand", &flags);
    let sandbox = Sandbox::up("thousand");
    sandbox.load(&image.0);
    let script = "
fds = lambda: len(os.listdir('/proc/self/fd'))
before = fds()
total = sum(box.call('thousand.h%d' % n) for n in range(1000, 2000))
print(total, fds() - before)
";
    assert_eq!(said(&sandbox, script), "1499500 0\n");
}

#[test]
fn one_large_call_does_not_slow_later_ones() {
    let sandbox = Sandbox::up("large");
    sandbox.load(&built("libkv_cache.so"));
    let heap_used = || sandbox.json(&["ext", "ls"])["extensions"][0]["heap_used"].as_u64();
    said(&sandbox, "box.call('kv.put', b'small', b'x', 0)");
    let before = heap_used();
    let script = "
def fastest():
    times = []
    for n in range(3000):
        start = time.perf_counter_ns()
        box.call('kv.get', b'small')
        times.append(time.perf_counter_ns() - start)
    return min(times)
before = fastest()
box.call('kv.put', b'large', bytes(50_000_000), 0)
assert len(box.call('kv.get', b'large')) == 50_000_000
assert box.call('kv.delete', b'large')
print(fastest() / before < 3)
";
    assert_eq!(said(&sandbox, script), "True\n");
    // What it took has been given back.
    assert_eq!(heap_used(), before);
}

#[test]
fn a_map_that_was_made_too_small_forgets_nothing() {
    let sandbox = Sandbox::up("small-map");
    let image = built("libkv_cache.so");
    let (name, image) = (&sandbox.name, image.display().to_string());
    let loaded = launcher(&["ext", "load", name, &image, "--config", "entries=9,limit=8M"]);
    assert_eq!(loaded.status, 0, "{}", loaded.stderr);
    // Some 250 keys in a bucket, so that most lie in overflow buckets, and many have another's tag.
    let script = "
key = lambda n: b'%d:' % n + b'k' * (n % 30)
value = lambda n: b'%d' % (n * n) * (n % 50)
for n in range(2000): box.call('kv.put', key(n), value(n), 0)
for n in range(0, 2000, 3): assert box.call('kv.delete', key(n))
for n in range(1, 2000, 3): box.call('kv.put', key(n), value(n + 1), 0)
wrong = [n for n in range(2000)
         if box.call('kv.get', key(n)) != [None, value(n + 1), value(n)][n % 3]]
print(box.call('kv.len'), wrong, [n for n in range(2000, 4000) if box.call('kv.get', key(n))])
";
    assert_eq!(said(&sandbox, script), "1333 [] []\n");
}

/// A process that makes upcalls for as long as it is there.
struct Caller(Child, BufReader<ChildStdout>);

impl Caller {
    fn start(sandbox: &Sandbox, script: &str) -> (Self, u64) {
        let (child, mut lines) = talk_with(&mut python(sandbox, script));
        let mut pid = String::new();
        lines.read_line(&mut pid).expect("it says its pid");
        (Self(child, lines), pid.trim().parse().expect("a pid"))
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, kill};
        let _ = kill(nix::unistd::Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
        let _ = self.1.buffer();
    }
}

#[test]
fn replacing_an_extension_again_and_again_leaks_nothing() {
    let sandbox = Sandbox::up("replaced");
    let ledger = built("libledger.so");
    sandbox.load(&ledger);
    let script = "
print(os.getpid(), flush=True)
while True: box.call('ledger.count'); time.sleep(0.001)
";
    let (_caller, pid) = Caller::start(&sandbox, script);
    let ledger = ledger.to_str().expect("a UTF-8 path");
    let replace = |times: usize| {
        for _ in 0..times {
            let ended = launcher(&["ext", "upgrade", &sandbox.name, ledger]);
            assert_eq!(ended.status, 0, "{}", ended.stderr);
        }
        // The last one's old room is cleared a moment later.
        let until = Instant::now() + Duration::from_secs(10);
        while sandbox.json(&["ps"])["uses"][2]["used"] != 2 {
            assert!(Instant::now() < until, "{}", sandbox.json(&["ps"])["uses"]);
            thread::sleep(Duration::from_millis(20));
        }
        let heap = sandbox.json(&["ext", "ls"])["extensions"][0]["heap_used"].as_u64();
        (held(pid), held(supervisor(&sandbox)), heap)
    };
    let before = replace(5);
    let after = replace(if full() { 1_000 } else { 60 });
    assert_eq!(after, before);
}

#[test]
fn the_first_upcall_after_a_quiet_second_wakes_the_watchdog() {
    let sandbox = Sandbox::up("woken");
    sandbox.load(&built("libledger.so"));
    let script = "
box.call('ledger.count')
print(os.getpid(), flush=True)
for line in sys.stdin: box.call('ledger.count'); print(line, end='', flush=True)
";
    let (mut caller, _) = Caller::start(&sandbox, script);
    let watchdog = || sandbox.json(&["ps"])["watchdog"].clone();
    for _ in 0..3 {
        let until = Instant::now() + Duration::from_secs(20);
        while watchdog()["rests"] != true {
            assert!(Instant::now() < until, "it never rests: {}", watchdog());
            thread::sleep(Duration::from_millis(20));
        }
        let woken = watchdog()["woken"].as_u64().expect("a number");
        caller.0.stdin.as_mut().expect("piped").write_all(b"again\n").expect("it reads");
        caller.1.read_line(&mut String::new()).expect("it answers");
        // It has been told before the upcall began.
        let now = watchdog();
        assert_eq!(now["rests"], false, "{now}");
        assert_eq!(now["woken"], woken + 1, "{now}");
    }
}

#[test]
fn a_watchdog_with_nothing_to_watch_costs_nothing() {
    let sandbox = Sandbox::up("watched");
    sandbox.load(&built("libledger.so"));
    let script = "box.call('ledger.count'); print(os.getpid(), flush=True); time.sleep(60)";
    let (_caller, _) = Caller::start(&sandbox, script);
    // It looks more often for a second after the last upcall.
    thread::sleep(Duration::from_millis(1_500));
    let pid = supervisor(&sandbox);
    let used_ns = || -> u64 {
        let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("it lives");
        text.split(' ').next().and_then(|word| word.parse().ok()).expect("a number")
    };
    let share = || {
        let (before, start) = (used_ns(), Instant::now());
        thread::sleep(Duration::from_secs(2));
        (used_ns() - before) as f64 / start.elapsed().as_nanos() as f64
    };
    // On a machine that others use each look takes longer: one quiet moment is enough.
    let shares: Vec<f64> = (0..5).map(|_| share()).collect();
    assert!(shares.iter().any(|share| *share < 0.001), "{shares:?} of a CPU");
}
