//! Handlers that run by themselves: at a time, and when processes start, execute and end.

use std::thread;
use std::time::{Duration, Instant};

use integration::{Sandbox, built, compile, launcher};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const TICKS: usize = 0;
const MISSED: usize = 1;
const SERVER: usize = 2;
const STARTS: usize = 3;
const EXECS: usize = 4;
const EXITS: usize = 5;
const STATUS: usize = 7;
const STATUSES: usize = 8;

fn watched(test: &str) -> Sandbox {
    let sandbox = Sandbox::up(test);
    sandbox.load(&built("libwatcher.so"));
    sandbox
}

fn figure(sandbox: &Sandbox, which: usize) -> u64 {
    let ended = sandbox.call(&["watcher.figure", &which.to_string()]);
    ended.stdout.trim().parse().unwrap_or_else(|_| panic!("{ended:?}"))
}

/// The figure, once it is at least `least`.
fn reaches(sandbox: &Sandbox, which: usize, least: u64) -> u64 {
    let start = Instant::now();
    loop {
        let now = figure(sandbox, which);
        if now >= least {
            return now;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "figure {which} stays at {now}");
    }
}

#[test]
fn a_timer_goes_on_whoever_is_killed_and_counts_what_it_missed() {
    let sandbox = watched("timer");
    let start = Instant::now();
    reaches(&sandbox, TICKS, 20);
    let periods = |start: Instant| start.elapsed().as_millis() as u64 / 10 + 1;
    let (ticks, missed) = (figure(&sandbox, TICKS), figure(&sandbox, MISSED));
    // Loading took a moment before the clock was read.
    assert!(ticks + missed <= periods(start) + 50, "{ticks} ticks, {missed} missed");
    let listed = launcher(&["ext", "ls", &sandbox.name]).stdout;
    assert!(listed.contains("every 10 ms") && listed.contains("when a process ends"), "{listed}");

    // One that takes longer than its period: every period is either run or counted.
    assert_eq!(sandbox.call(&["watcher.dawdle", "true"]).status, 0);
    reaches(&sandbox, MISSED, missed + 30);
    assert_eq!(sandbox.call(&["watcher.dawdle", "false"]).status, 0);
    thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    let before = figure(&sandbox, TICKS) + figure(&sandbox, MISSED);
    thread::sleep(Duration::from_millis(500));
    let after = figure(&sandbox, TICKS) + figure(&sandbox, MISSED);
    let most = periods(start);
    assert!(after - before + 6 >= 50 && after - before <= most + 6, "{} of {most}", after - before);

    let server = figure(&sandbox, SERVER);
    kill(Pid::from_raw(server as i32), Signal::SIGKILL).expect("it is there");
    let ticks = figure(&sandbox, TICKS);
    reaches(&sandbox, TICKS, ticks + 10);
    assert_ne!(figure(&sandbox, SERVER), server);

    reaches(&sandbox, TICKS, ticks + 20);
    let supervisor = sandbox.json(&["ps"])["supervisor"].as_i64().expect("it has one");
    kill(Pid::from_raw(supervisor as i32), Signal::SIGKILL).expect("it is there");
    let ticks = figure(&sandbox, TICKS);
    reaches(&sandbox, TICKS, ticks + 10);

    assert_eq!(launcher(&["ext", "unload", &sandbox.name, "watcher"]).status, 0);
    sandbox.load(&built("libwatcher.so"));
    reaches(&sandbox, TICKS, 10);
}

#[test]
fn a_start_an_exec_and_an_end_with_its_status_are_told() {
    let sandbox = watched("life");
    let ended = sandbox.run(&["bash", "-c", "exec sh -c 'exit 7'"]);
    assert_eq!(ended.status, 7);
    // bash joins at its exec; then it executes sh.
    assert_eq!(reaches(&sandbox, STARTS, 1), 1);
    assert_eq!(reaches(&sandbox, EXECS, 1), 1);
    assert_eq!(reaches(&sandbox, EXITS, 1), 1);
    assert_eq!(figure(&sandbox, STATUS), 7 << 8);
    // A child that its parent waits for at once, one that is killed, and one after the other.
    for round in 0..20 {
        let ended = sandbox.run(&["bash", "-c", "(exit 3); (kill -9 $BASHPID); :"]);
        assert_eq!(ended.status, 0, "{}", ended.stderr);
        // What ends at about the same time is told in no certain order.
        reaches(&sandbox, EXITS, 4 + 3 * round);
        assert_eq!(figure(&sandbox, STATUSES), (7 << 8) + (round + 1) * ((3 << 8) + 9));
    }
    assert_eq!((reaches(&sandbox, STARTS, 61), reaches(&sandbox, EXITS, 61)), (61, 61));
    let ended = sandbox.run(&["bash", "-c", "(kill -9 $BASHPID) & wait; sleep 0.3; kill -15 $$"]);
    assert_eq!(ended.status, 128 + 15);
    reaches(&sandbox, EXITS, 63);
    assert_eq!(figure(&sandbox, STATUS), 15);
    let ps = sandbox.participants();
    let killed = ps.iter().filter(|row| row["status"].as_i64() == Some(9));
    assert!(killed.count() >= 1, "{ps:?}");
}

#[test]
fn signals_are_seen_by_hooks_and_by_programs_as_ever() {
    let sandbox = watched("signals");
    sandbox.load(&built("libledger.so"));
    let program = compile("cc", "hooked", &[]);
    for _ in 0..5 {
        let ended = sandbox.run(&[program.text()]);
        assert_eq!((ended.status, ended.stdout.as_str()), (0, "as without\n"), "{}", ended.stderr);
        assert_eq!(launcher(&["ext", "unload", &sandbox.name, "watcher"]).status, 0);
        sandbox.load(&built("libwatcher.so"));
    }
    // One in Python: its own handlers run, and interrupt what waits.
    let script = "
import os, signal, time
got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
signal.signal(signal.SIGALRM, lambda *_: got.append(2))
os.kill(os.getpid(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGUSR2)
signal.setitimer(signal.ITIMER_REAL, 0.05)
r, w = os.pipe()
def stop(*_): raise TimeoutError
signal.signal(signal.SIGALRM, stop)
try: os.read(r, 1)
except TimeoutError: got.append(3)
print(got)
";
    let ended = sandbox.run(&["/usr/bin/python3", "-c", script]);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("[1, 3]\n", ""));
}
