//! Handlers that run by themselves: at a time, and when processes start, execute and end.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use integration::{Ended, Sandbox, built, compile, launcher};
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
    // 40 of them are forks.
    assert_eq!((reaches(&sandbox, STARTS, 21), reaches(&sandbox, EXITS, 61)), (21, 61));
    assert_eq!(reaches(&sandbox, 12, 40), 40);
    let before = figure(&sandbox, STATUSES);
    let ended = sandbox.run(&["bash", "-c", "(kill -9 $BASHPID) & wait; sleep 0.3; kill -15 $$"]);
    assert_eq!(ended.status, 128 + 15);
    // The killed one, sleep, and bash, which ends a moment after sleep has.
    reaches(&sandbox, EXITS, 64);
    assert_eq!(figure(&sandbox, STATUSES), before + 9 + 15);
    let ps = sandbox.participants();
    let killed = ps.iter().filter(|row| row["status"].as_i64() == Some(9));
    assert!(killed.count() >= 1, "{ps:?}");
}

#[test]
fn the_end_of_a_process_that_was_killed_before_it_joined_is_told() {
    let sandbox = watched("killed-early");
    let script = "
before = [figure(which) for which in (12, 5)]
for turn in range(50):
    child = os.fork()
    if not child:
        while True: time.sleep(1)
    time.sleep(turn % 5 * 0.0002)
    os.kill(child, 9)
    os.waitpid(child, 0)
told = lambda: [figure(which) - was for which, was in zip((12, 5), before)]
since = time.time()
while told() != [50, 50] and time.time() - since < 10: time.sleep(0.01)
print(told())
";
    assert_eq!(scripted(&sandbox, script), "[50, 50]\n");
}

#[test]
fn who_attaches_is_told_of_with_its_children_as_often_as_their_ends() {
    let sandbox = watched("attached");
    let script = "
import os, sbx, sys
box = sbx.attach(sys.argv[1])
for _ in range(5):
    child = os.fork()
    if not child:
        box.call('watcher.own_calls')
        os._exit(0)
    os.waitpid(child, 0)
";
    for _ in 0..2 {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", script, &sandbox.name]);
        command.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/../ext-api/python"));
        let ended = integration::run(&mut command);
        assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
    }
    reaches(&sandbox, 5, 12);
    assert_eq!([3, 12, 5].map(|which| figure(&sandbox, which)), [2, 10, 12]);
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

#[test]
fn a_hooked_fault_that_somebody_sends_leaves_those_of_upcalls_alone() {
    let sandbox = Sandbox::up("sent-fault");
    sandbox.load(&built("libpager.so"));
    sandbox.load(&built("libledger.so"));
    let program = compile("cc", "sent_fault", &["-pthread"]);
    let ended = sandbox.run(&[program.text()]);
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "1 1 0\n"), "{}", ended.stderr);
}

const RUNS: usize = 16;
const MISSED_RUNS: usize = 17;
const RAN_IN: usize = 18;
const TOO_EARLY: usize = 19;
const PERIODS: usize = 20;

/// What a command in the sandbox prints first.
fn first_line(sandbox: &Sandbox, argv: &[&str]) -> (Child, String) {
    let mut command = Command::new(built("sbx-launcher"));
    command.args(["run", "--sandbox", &sandbox.name, "--"]).args(argv);
    command.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/../ext-api/python"));
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    out.read_line(&mut line).expect("it writes");
    (child, line.trim().to_owned())
}

fn number(ended: &Ended) -> u64 {
    ended.stdout.trim().parse().unwrap_or_else(|_| panic!("{ended:?}"))
}

#[test]
fn timers_come_once_or_often_where_they_are_told_to_and_never_early() {
    let sandbox = watched("timers");
    let start = |args: [&str; 4]| number(&sandbox.call(&[&["watcher.start"], &args[..]].concat()));
    // Once.
    let once = start(["0", "20000", "0", "0"]);
    reaches(&sandbox, RUNS, 1);
    assert_eq!(sandbox.call(&["watcher.stop", &once.to_string()]).stdout, "0\n");
    // Many at once, with and without slack; one that is stopped never comes.
    let never = start(["0", "1000000", "0", "0"]);
    assert_eq!(sandbox.call(&["watcher.stop", &never.to_string()]).stdout, "1\n");
    for after in (12_000..=50_000).step_by(2000) {
        start(["0", &after.to_string(), "0", "3000"]);
    }
    assert_eq!(reaches(&sandbox, RUNS, 21), 21);
    // Often: what did not run is counted.
    assert_eq!(sandbox.call(&["watcher.forget"]).status, 0);
    let often = start(["0", "0", "2000", "0"]);
    reaches(&sandbox, RUNS, 50);
    let server = figure(&sandbox, SERVER);
    assert_eq!(figure(&sandbox, RAN_IN), server);
    kill(Pid::from_raw(server as i32), Signal::SIGKILL).expect("it is there");
    let runs = figure(&sandbox, RUNS);
    reaches(&sandbox, RUNS, runs + 50);
    assert_ne!(figure(&sandbox, RAN_IN), server);
    assert_eq!(sandbox.call(&["watcher.stop", &often.to_string()]).stdout, "1\n");
    thread::sleep(Duration::from_millis(20));
    let (runs, missed) = (figure(&sandbox, RUNS), figure(&sandbox, MISSED_RUNS));
    // The period in which the server was killed may be lost with it, and its run as well.
    let periods = figure(&sandbox, PERIODS);
    assert!(runs + missed + 2 >= periods, "{runs} runs, {missed} missed, {periods} periods");
    assert_eq!(figure(&sandbox, TOO_EARLY), 0);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(figure(&sandbox, RUNS), runs);

    // In a process that waits; it is over with that.
    assert_eq!(sandbox.call(&["watcher.forget"]).status, 0);
    let script = "
import os, sbx
box = sbx.current()
print(os.getpid(), flush=True)
while True: box.wait(1)
";
    let (mut child, pid) = first_line(&sandbox, &["/usr/bin/python3", "-c", script]);
    start([&pid, "1000", "2000", "0"]);
    reaches(&sandbox, RUNS, 50);
    assert_eq!(figure(&sandbox, RAN_IN).to_string(), pid);
    assert_eq!(figure(&sandbox, TOO_EARLY), 0);
    kill(Pid::from_raw(pid.parse().expect("a pid")), Signal::SIGKILL).expect("it is there");
    child.wait().expect("it is ours");
    let timers = || {
        let ps = sandbox.json(&["ps"]);
        let uses = ps["uses"].as_array().cloned().unwrap_or_default();
        let of = uses.iter().find(|of| of["of"] == "timers").expect("timers are listed").clone();
        of["used"].as_u64()
    };
    let since = Instant::now();
    while timers() != Some(1) {
        assert!(since.elapsed() < Duration::from_secs(10), "{:?} timers", timers());
    }
    // What it may not be.
    for (args, said) in
        [(["0", "0", "500", "0"], "arguments do not fit"), (["1", "x", "0", "0"], "is not of type")]
    {
        let ended = sandbox.call(&[&["watcher.start"], &args[..]].concat());
        assert!(ended.status == 125 && ended.stderr.contains(said), "{}", ended.stderr);
    }
    let script = "
import sbx
box, ids = sbx.current(), []
try:
    while True: ids.append(box.call('watcher.start', 0, 60000000, 0, 0))
except sbx.Error as error: why = error
print(len(ids), all(box.call('watcher.stop', it) for it in ids), why)
";
    let (mut child, line) = first_line(&sandbox, &["/usr/bin/python3", "-c", script]);
    assert!(line.starts_with("1023 True ") && line.contains("full"), "{line}");
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn timers_interrupt_whoever_runs() {
    let sandbox = watched("running");
    sandbox.load(&built("libledger.so"));
    // One that computes, and one that is inside an upcall for most of its time.
    let lends = "
import os, sbx, sys
box = sbx.current()
box.call('libos.lend')
print(os.getpid(), flush=True)
linger = box.handler('ledger.linger')
while True:
    if sys.argv[1] == 'upcalls': linger(3000)
";
    for what in ["computing", "upcalls"] {
        let (mut child, pid) = first_line(&sandbox, &["/usr/bin/python3", "-c", lends, what]);
        assert_eq!(sandbox.call(&["watcher.forget"]).status, 0);
        let timer = number(&sandbox.call(&["watcher.start", "2", "1000", "2000", "0"])).to_string();
        reaches(&sandbox, RUNS, 10);
        // Without the server there is nobody else.
        let server = Pid::from_raw(figure(&sandbox, SERVER) as i32);
        kill(server, Signal::SIGSTOP).expect("it is there");
        thread::sleep(Duration::from_millis(20));
        let runs = figure(&sandbox, RUNS);
        reaches(&sandbox, RUNS, runs + 100);
        assert_eq!(figure(&sandbox, RAN_IN).to_string(), pid, "{what}");
        kill(server, Signal::SIGCONT).expect("it is there");
        assert_eq!(sandbox.call(&["watcher.stop", &timer]).stdout, "1\n");
        assert_eq!(figure(&sandbox, TOO_EARLY), 0, "{what}");
        let (told, periods) =
            (figure(&sandbox, RUNS) + figure(&sandbox, MISSED_RUNS), figure(&sandbox, PERIODS));
        assert!(told <= periods && told + 2 >= periods, "{what}: {told} of {periods}");
        kill(Pid::from_raw(pid.parse().expect("a pid")), Signal::SIGKILL).expect("it is there");
        child.wait().expect("it is ours");
    }
}

/// What a script prints in the sandbox; it finds `box`, `timer` as `libos.timer`, and `figure`.
fn scripted(sandbox: &Sandbox, script: &str) -> String {
    let preamble = "
import os, sbx, sys, time
box = sbx.current()
timer = lambda *words: box.call('libos.timer', *words)
raw = b'watcher.timed'
timed = box._find(raw, len(raw))
figure = lambda which: box.call('watcher.figure', which)
most = (1 << 64) - 1
";
    let script = format!("{preamble}{script}");
    let mut command = Command::new(built("sbx-launcher"));
    command.args(["run", "--sandbox", &sandbox.name, "--", "/usr/bin/python3", "-c", &script]);
    command.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/../ext-api/python"));
    let ended = integration::run(&mut command);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    ended.stdout
}

#[test]
fn a_time_beyond_the_end_of_the_clock_never_comes() {
    let sandbox = watched("beyond");
    let script = "
for server_or_running in (4, 5):
    box.call('watcher.forget')
    never = timer(most, 0, 0, 1000000, server_or_running, 0, timed, most, 0)
    once = timer(1000000, 0, most, 0, server_or_running, 0, timed, 0, 0)
    time.sleep(0.3)
    print(figure(16), box.call('libos.cancel', never), box.call('libos.cancel', once))
for how in (6, 255, 4 | 512, most):
    try: timer(1000000, 0, 0, 0, how, 0, timed, 0, 0)
    except sbx.Error as error: print(error)
";
    let refused = "the arguments do not fit the handler's signature\n";
    assert_eq!(scripted(&sandbox, script), "1 True True\n".repeat(2) + &refused.repeat(4));
}

#[test]
fn a_timer_for_a_pid_goes_on_when_an_exec_has_lost_what_waited() {
    let sandbox = watched("exec-lost");
    // The child looks at no event before its exec.
    let script = "
wait = 'import sbx\\nbox = sbx.current()\\nwhile True: box.wait(0.1)'
child = os.fork()
if not child:
    time.sleep(0.5)
    os.execv('/usr/bin/python3', ['python3', '-c', wait])
box.call('watcher.start', child, 10000, 50000, 0)
since = time.time()
while figure(16) < 10 and time.time() - since < 10: time.sleep(0.01)
print(figure(16) >= 10, figure(17) > 5, figure(18) == child)
os.kill(child, 9)
os.waitpid(child, 0)
";
    assert_eq!(scripted(&sandbox, script), "True True True\n");
}

#[test]
fn a_timer_for_a_pid_outlives_the_moment_at_which_an_exec_takes_no_part() {
    let sandbox = watched("exec-moment");
    let script = "
for period in (1000, 20000, 1000):
    ready, tell = os.pipe()
    os.set_inheritable(tell, True)
    wait = 'import os, sbx\\nbox = sbx.current()\\nos.write(%d, b\"x\")\\nwhile True: box.wait(0.1)' % tell
    child = os.fork()
    if not child:
        for _ in range(3): box.wait(0.02)
        os.execv('/usr/bin/python3', ['python3', '-c', wait])
    os.close(tell)
    often = box.call('watcher.start', child, 0, period, 0)
    os.read(ready, 1)
    time.sleep(1.3)
    box.call('watcher.forget')
    since = time.time()
    while figure(16) < 10 and time.time() - since < 5: time.sleep(0.01)
    print(figure(16) >= 10, figure(18) == child)
    os.kill(child, 9)
    os.waitpid(child, 0)
    # It is over with the process.
    time.sleep(0.5)
    print(box.call('libos.cancel', often))
";
    assert_eq!(scripted(&sandbox, script), "True True\nFalse\n".repeat(3));
}

#[test]
fn a_timer_for_all_that_comes_once_comes_to_each() {
    let sandbox = watched("for-all");
    let script = "
children = []
for _ in range(3):
    ready, tell = os.pipe()
    children.append(os.fork())
    if not children[-1]:
        box.wait(0)
        os.write(tell, b'x')
        while True: box.wait(0.1)
    os.read(ready, 1)
first = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
once = timer(50000000, 0, 0, 0, 3, 0, timed, first, 0)
since = time.time()
# The children, the server, and this process.
while figure(16) < 5 and time.time() - since < 10: box.wait(0.01)
box.wait(0.2)
print(figure(16), box.call('libos.cancel', once))
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
";
    assert_eq!(scripted(&sandbox, script), "5 False\n");
}

#[test]
fn a_timer_for_all_that_comes_again_fills_no_mailbox() {
    let sandbox = watched("for-all-again");
    // The child looks at no event until it is told to.
    let script = "
(ready, tell), (go, let) = os.pipe(), os.pipe()
child = os.fork()
if not child:
    os.write(tell, b'x')
    os.read(go, 1)
    print(box.wait(0), flush=True)
    os._exit(0)
os.read(ready, 1)
often = timer(1000000, 0, 1000000, 0, 3, 0, timed, 0, 0)
while figure(16) < 400: box.wait(0.01)
print(box.call('libos.cancel', often), box.post('watcher.forget', pid=child), flush=True)
os.write(let, b'x')
os.waitpid(child, 0)
";
    // One of the timer's, and that which was posted.
    assert_eq!(scripted(&sandbox, script), "True 1\n2\n");
}

#[test]
fn the_name_of_a_timer_is_no_other_ones_in_another_sandbox() {
    let [one, other] = ["named-here", "named-there"].map(watched);
    let start =
        |sandbox: &Sandbox| number(&sandbox.call(&["watcher.start", "0", "60000000", "0", "0"]));
    let [here, there] = [&one, &other].map(start).map(|name| name.to_string());
    assert_eq!(other.call(&["watcher.stop", &here]).stdout, "0\n");
    assert_eq!(other.call(&["watcher.stop", &there]).stdout, "1\n");
    assert_eq!(one.call(&["watcher.stop", &here]).stdout, "1\n");
}

#[test]
fn masked_events_wait_and_forks_are_told() {
    let sandbox = watched("masked");
    sandbox.load(&built("libledger.so"));
    let script = "
import os, sbx, sys, time
box = sbx.current()
box.call('watcher.mask', True)
own = os.getpid()
for n in range(1, 11): box.post('ledger.note', 1, n, pid=own)
start = time.time()
waited = box.wait(0.05)
print(waited, time.time() - start > 0.04, box.call('ledger.noted', 0))
try:
    for n in range(100): box.post('ledger.work', 0, pid=own)
except sbx.Refused as error: print(error)
box.call('watcher.mask', False)
print(box.call('ledger.noted', 0), box.call('ledger.noted', 1))
calls = [box.call('watcher.own_calls') for _ in range(4)]
for _ in range(3):
    if not os.fork(): os._exit(box.call('watcher.own_calls') + box.call('watcher.own_calls'))
    calls.append(os.waitstatus_to_exitcode(os.wait()[1]))
print(calls)
";
    let mut command = Command::new(built("sbx-launcher"));
    command.args(["run", "--sandbox", &sandbox.name, "--", "/usr/bin/python3", "-c", script]);
    command.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/../ext-api/python"));
    let ended = integration::run(&mut command);
    let said = "0 True 0\nthe target's mailbox is full; post again later\n64 0\n\
                [1, 2, 3, 4, 3, 3, 3]\n";
    assert_eq!(ended.stdout, said, "{}", ended.stderr);
    assert_eq!(reaches(&sandbox, 12, 3), 3);
    assert_eq!(figure(&sandbox, STARTS), 1);
    // What was granted to the four of them is freed.
    assert_eq!(reaches(&sandbox, 13, 4), 4);
}

#[test]
fn an_upcall_without_end_is_stopped_when_the_server_is_alone() {
    let sandbox = watched("alone");
    sandbox.load(&built("libfaulty.so"));
    // A call would be one more to look after.
    let live = sandbox.participants().into_iter().find(|row| row["state"] == "live");
    let server = live.expect("the server")["pid"].to_string();
    let posted = launcher(&["post", &sandbox.name, "faulty.spin", "--pid", &server]);
    assert_eq!(posted.status, 0, "{}", posted.stderr);
    let start = Instant::now();
    loop {
        let table = sandbox.json(&["ext", "ls"]);
        let all = table["extensions"].as_array().cloned().unwrap_or_default();
        if all.iter().any(|one| one["name"] == "faulty" && one["restarts"] == 1) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "it goes on: {table}");
        thread::sleep(Duration::from_millis(10));
    }
}
