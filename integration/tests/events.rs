//! Events by every route: delivered once, in order, refused when there is no room or nobody.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use integration::{Sandbox, built, compile, launcher, run};

fn route(which: &str) -> Sandbox {
    let sandbox = Sandbox::up(&format!("events-{which}"));
    sandbox.load_hello();
    sandbox.load(&built("libledger.so"));
    let program = built("events");
    let ended = sandbox.run(&[program.to_str().expect("a UTF-8 path"), which]);
    assert_eq!(ended.status, 0, "{}{}", ended.stdout, ended.stderr);
    println!("{}", ended.stdout.trim());
    sandbox
}

#[test]
fn a_waiting_process_gets_every_event_in_order() {
    route("waiting");
}

#[test]
fn a_process_that_makes_upcalls_gets_them_on_its_way_out() {
    route("leaving");
}

#[test]
fn a_handler_posts_to_the_process_that_it_runs_in() {
    route("oneself");
}

#[test]
fn an_urgent_event_interrupts_a_program() {
    route("urgent");
}

#[test]
fn a_full_mailbox_refuses_and_loses_nothing() {
    route("full");
}

#[test]
fn what_is_for_nobody_is_refused_and_what_was_not_read_is_reported() {
    let sandbox = route("gone");
    let log = launcher(&["log", &sandbox.name]).stdout;
    assert!(log.contains("ended before 3 events reached it"), "{log}");
}

#[test]
fn killed_posters_leave_a_mailbox_that_works() {
    route("killed");
}

#[test]
fn everybody_can_be_told() {
    route("all");
}

#[test]
fn whoever_is_idle_takes_work() {
    route("any");
}

#[test]
fn whoever_waits_on_a_futex_works_meanwhile() {
    route("futex");
}

#[test]
fn python_and_c_programs_and_operators_post_and_wait() {
    let sandbox = Sandbox::up("events-others");
    sandbox.load_hello();
    sandbox.load(&built("libledger.so"));
    let script = "
import os, sbx, sys
box = sbx.current()
child = os.fork()
if not child:
    while box.call('ledger.noted', 0) < 3: box.wait(5)
    os._exit(0)
while True:
    try:
        if box.call('libos.peer', child): break
    except sbx.Refused: pass
print([box.post('ledger.note', 1, n, pid=child) for n in (1, 2)], box.post('ledger.work', 1, pid='any'))
os.waitpid(child, 0)
# Until somebody has noticed its end.
while True:
    try: box.post('ledger.linger', 0, pid=child)
    except sbx.Refused as error:
        if 'full' in str(error): continue
        print(error)
        break
print([box.call('ledger.noted', which) for which in (0, 1)])
";
    let mut command = Command::new(built("sbx-launcher"));
    command.args(["run", "--sandbox", &sandbox.name, "--", "/usr/bin/python3", "-c", script]);
    command.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/../ext-api/python"));
    let ended = run(&mut command);
    assert_eq!(
        ended.stdout, "[1, 1] 1\nthe target is no participant, or no longer\n[3, 0]\n",
        "{}",
        ended.stderr
    );

    let program = compile("cc", "waits", &[]);
    let mut waiting = Command::new(built("sbx-launcher"))
        .args(["run", "--sandbox", &sandbox.name, "--", program.text()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    let mut out = BufReader::new(waiting.stdout.take().expect("piped"));
    out.read_line(&mut line).expect("it writes");
    let posted = launcher(&["post", &sandbox.name, "ledger.work", "1", "--pid", line.trim()]);
    assert_eq!(posted.stdout, "posted to 1\n", "{}", posted.stderr);
    line.clear();
    out.read_line(&mut line).expect("it writes");
    assert_eq!(line, "one for us, one to ourselves\n");
    assert!(waiting.wait().expect("it ends").success());
    // What an operator may get wrong.
    for (args, said) in [
        (["ledger.none", "1", "--all"], "no handler named ledger.none"),
        (["hello.greet", "me", "--all"], "an event carries up to four numbers"),
        (["ledger.work", "one", "--all"], "is not of type u64"),
        (["ledger.work", "1", "--pid=1"], "no participant"),
    ] {
        let ended = launcher(&[&["post", &sandbox.name], &args[..]].concat());
        assert!(ended.status == 125 && ended.stderr.contains(said), "{}", ended.stderr);
    }
}

/// Urgent events for processes whose threads have ended, or gone elsewhere: see `left_events.c`.
fn left(what: &[&str], expected: &str) {
    let program = compile("cc", "left_events", &["-pthread"]);
    let sandbox = Sandbox::up(&format!("events-{}", what[0]));
    sandbox.load(&built("libledger.so"));
    sandbox.load(&built("libfaulty.so"));
    let ended = sandbox.run(&[&[program.text()], what].concat());
    assert_eq!((ended.status, ended.stdout.as_str()), (0, expected), "{}", ended.stderr);
}

#[test]
fn an_urgent_event_finds_a_process_whose_first_thread_has_ended() {
    left(&["leader"], "50\n");
}

#[test]
fn an_urgent_event_finds_a_process_of_which_a_thread_ended_as_it_waited() {
    left(&["waiter"], "50\n");
}

#[test]
fn an_urgent_event_finds_a_process_that_has_jumped_out_of_its_wait() {
    left(&["jumped"], "50\n");
}

#[test]
fn events_come_to_a_process_of_which_a_thread_ended_as_it_delivered_one() {
    left(&["delivering"], "50\n");
}

#[test]
fn urgent_events_meet_children_that_have_never_made_an_upcall() {
    left(&["forks", "40"], "2000\n");
}

#[test]
fn an_urgent_event_that_fails_harms_nobody() {
    let sandbox = Sandbox::up("events-failing");
    sandbox.load_hello();
    sandbox.load(&built("libledger.so"));
    // Neither program has a signal stack of its own; the first one's never looks for events.
    let spins = "import os, time\nprint(os.getpid(), flush=True)\nend = time.time() + 20\n\
                 while not os.path.exists(f'/tmp/sbx-stop-{os.getpid()}') and time.time() < end: pass\n\
                 print('whole')";
    let mut spinning = Command::new(built("sbx-launcher"))
        .args(["run", "--sandbox", &sandbox.name, "--", "/usr/bin/python3", "-c", spins])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut out = BufReader::new(spinning.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("it writes");
    let pid = line.trim().to_owned();
    let noted = |which: &str| sandbox.call(&["ledger.noted", which]).stdout.trim().to_owned();
    let post = |args: &[&str]| {
        let ended =
            launcher(&[&["post", &sandbox.name], args, &["--pid", &pid, "--urgent"]].concat());
        assert_eq!(ended.stdout, "posted to 1\n", "{}", ended.stderr);
    };
    for round in 1..=20 {
        post(&["ledger.fault"]);
        post(&["ledger.note", "1", &round.to_string()]);
        let start = std::time::Instant::now();
        while noted("0") != round.to_string() {
            assert!(start.elapsed() < std::time::Duration::from_secs(10), "round {round}");
        }
    }
    assert_eq!((noted("1"), noted("2")), ("0".to_owned(), pid.clone()));
    let stop = format!("/tmp/sbx-stop-{pid}");
    std::fs::write(&stop, "").expect("a scratch file");
    line.clear();
    out.read_line(&mut line).expect("it writes");
    let _ = std::fs::remove_file(stop);
    assert_eq!(line, "whole\n");
    assert!(spinning.wait().expect("it ends").success());
}

#[test]
fn an_urgent_event_does_not_end_who_executes_a_program() {
    let sandbox = Sandbox::up("events-execs");
    sandbox.load_hello();
    let program = compile("cc", "execs", &[]);
    let ended = sandbox.run(&[program.text(), "150"]);
    let text = (ended.status, ended.stdout.as_str());
    assert_eq!(text, (0, "killed 0, failed 0\n"), "{}", ended.stderr);
}

#[test]
fn an_urgent_event_that_has_others_follow_leaves_its_program_some_time() {
    let sandbox = Sandbox::up("events-follow");
    sandbox.load(&built("libledger.so"));
    let spins = "import os, time\nprint(os.getpid(), flush=True)\nend = time.monotonic() + 2\n\
                 while time.monotonic() < end: pass\nprint('whole')";
    let mut spinning = Command::new(built("sbx-launcher"))
        .args(["run", "--sandbox", &sandbox.name, "--", "timeout", "-s", "KILL", "15"])
        .args(["/usr/bin/python3", "-c", spins])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut out = BufReader::new(spinning.stdout.take().expect("piped")).lines();
    let pid = out.next().expect("it writes").expect("text");
    for _ in 0..3 {
        let posted = launcher(&["post", &sandbox.name, "ledger.again", "--pid", &pid, "--urgent"]);
        assert_eq!(posted.stdout, "posted to 1\n", "{}", posted.stderr);
    }
    let said = out.next().map(|line| line.expect("text"));
    assert!(spinning.wait().expect("it ends").success());
    assert_eq!(said.as_deref(), Some("whole"));
}

#[test]
fn what_an_exec_leaves_unread_is_reported() {
    let sandbox = Sandbox::up("events-exec");
    sandbox.load(&built("libledger.so"));
    let script = "
import os, sbx
box = sbx.current()
ready, go = os.pipe()
child = os.fork()
if not child:
    os.read(ready, 1)
    os.execv('/bin/true', ['true'])
while True:
    try:
        if box.call('libos.peer', child): break
    except sbx.Refused: pass
for n in (1, 2, 3): box.post('ledger.note', 1, n, pid=child)
os.write(go, b'x')
os.waitpid(child, 0)
print(child, box.call('ledger.noted', 0))
";
    let mut command = Command::new(built("sbx-launcher"));
    command.args(["run", "--sandbox", &sandbox.name, "--", "/usr/bin/python3", "-c", script]);
    command.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/../ext-api/python"));
    let ended = run(&mut command);
    let (pid, noted) = ended.stdout.trim().split_once(' ').expect("two words");
    assert_eq!(noted, "0", "{}", ended.stderr);
    let log = launcher(&["log", &sandbox.name]).stdout;
    let said = format!("sbx: pid {pid} executed a program before 3 events reached it\n");
    assert!(log.contains(&said), "{log}");
}
