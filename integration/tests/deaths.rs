//! Processes killed anywhere, and what they leave.

use std::io::{BufRead, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use integration::{Sandbox, built, compile, full, launcher, run, talk_with};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const DEATHS: u64 = 1_000;
const UPCALLS: u64 = 100_000;

fn program(name: &str) -> String {
    built(name).to_str().expect("a UTF-8 path").to_owned()
}

fn used(ps: &Value, of: &str) -> u64 {
    let uses = ps["uses"].as_array().expect("uses");
    let one = uses.iter().find(|one| one["of"] == of).expect("a known limit");
    one["used"].as_u64().expect("a number")
}

/// What is in use once everybody has gone: nothing may be left.
fn settled(sandbox: &Sandbox, slots: u64) -> Value {
    let start = Instant::now();
    loop {
        let ps = sandbox.json(&["ps"]);
        let extensions = sandbox.json(&["ext", "ls"]);
        let live = extensions["extensions"]
            .as_array()
            .is_some_and(|all| all.iter().all(|one| one["state"] == "live"));
        let now = (used(&ps, "participants"), used(&ps, "contexts"), used(&ps, "slots"), live);
        if now == (0, 0, slots, true) {
            return ps;
        }
        let left = start.elapsed() < Duration::from_secs(30);
        assert!(left, "left behind: {} {}", ps["uses"], extensions["extensions"][0]["state"]);
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn nothing_is_wrong_after_a_thousand_deaths() {
    for seed in 0..if full() { 20 } else { 1 } {
        let sandbox = Sandbox::up(&format!("chaos{seed}"));
        for image in ["libkv_cache.so", "librate_limit.so", "libfaulty.so"] {
            sandbox.load(&built(image));
        }
        let ended = sandbox.run(&[&program("chaos"), &seed.to_string(), &DEATHS.to_string()]);
        assert_eq!(ended.status, 0, "seed {seed}: {}", ended.stderr);
        println!("seed {seed}: {}", ended.stdout.trim());
        let said: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        assert!(said["deaths"].as_u64() >= Some(DEATHS));
        assert!(said["gets"].as_u64() >= Some(UPCALLS));
        let points = said["points"].as_object().expect("points");
        assert!(points.len() == 8 && points.values().all(|count| count.as_u64() >= Some(10)));
        let ps = settled(&sandbox, 4);
        let inside = ps["ended_inside"].as_u64().expect("a number");
        println!("{inside} inside");
        assert!(inside * 10 >= DEATHS * 3, "only {inside} died inside an upcall");
    }
}

/// Each operation and how many of its instructions lie between two that are tried.
const OPERATIONS: [(&str, usize); 10] = [
    ("count", 1),
    ("push", 1),
    ("pop", 1),
    ("mutex", 1),
    ("read", 1),
    ("rwlock", 13),
    ("delete", 7),
    ("allow", 23),
    ("insert", 37),
    ("replace", 37),
];

#[test]
fn an_upcall_may_be_killed_at_every_instruction() {
    let sandbox = Sandbox::up("anywhere");
    for image in ["libkv_cache.so", "librate_limit.so", "libledger.so"] {
        sandbox.load(&built(image));
    }
    for (operation, stride) in OPERATIONS {
        let stride = if full() { 1 } else { stride };
        let ended = sandbox.run(&[&program("kill-anywhere"), operation, &stride.to_string()]);
        assert_eq!(ended.status, 0, "{operation}: {}", ended.stderr);
        println!("{}", ended.stdout.trim());
        let words: Vec<&str> = ended.stdout.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        let (before, after) = (number(7), number(9));
        assert!(before >= 10, "{}", ended.stdout);
        // A reader changes nothing, and what a limit has given out comes back meanwhile; a long operation's
        // last instructions may fall between two.
        let shows = !["read", "allow"].contains(&operation) && stride == 1;
        assert!(after > 0 || !shows, "{}", ended.stdout);
    }
    settled(&sandbox, 4);
}

#[test]
fn a_process_may_be_killed_at_every_instruction_of_attaching() {
    let sandbox = Sandbox::up("attaching");
    let stride = if full() { 31 } else { 1_999 };
    let ended = run(Command::new(program("kill-anywhere"))
        .args(["attach", &stride.to_string()])
        .arg(&sandbox.name));
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    println!("{}", ended.stdout.trim());
    let words: Vec<&str> = ended.stdout.split(' ').collect();
    assert!(words[2].parse::<u64>().expect("a number") >= 10, "{}", ended.stdout);
    settled(&sandbox, 1);
    // And the next one gets in.
    sandbox.load_hello();
    let ended = run(Command::new(program("late-caller")).arg(&sandbox.name));
    assert_eq!(ended.status, 0, "{}", ended.stderr);
}

/// A sandbox with two extensions, and a program whose signal handlers run on top of upcalls.
fn with_handlers(test: &str) -> (Sandbox, integration::Scratch) {
    let sandbox = Sandbox::up(test);
    sandbox.load_hello();
    sandbox.load(&built("libledger.so"));
    (sandbox, compile("cc", "handlers", &[]))
}

#[test]
fn a_signal_handler_may_jump_out_of_an_upcall() {
    let (sandbox, program) = with_handlers("jumps");
    for (what, times) in [("jump", 100), ("hold", 5)] {
        // On the upcall's stack an upcall is one within another; on an alternate stack it is refused.
        for (stack, within) in [(None, 0), (Some("alt"), 19)] {
            let mut argv = vec![program.text(), what];
            argv.extend(stack);
            let ended = sandbox.run(&argv);
            let expected = format!("left {times}, within {within}\n");
            assert_eq!((ended.status, ended.stdout), (0, expected), "{argv:?}: {}", ended.stderr);
        }
    }
    settled(&sandbox, 3);
}

#[test]
fn an_upcall_that_was_jumped_out_of_is_ended_if_no_other_follows() {
    let (sandbox, program) = with_handlers("rests");
    let mut command = Command::new(built("sbx-launcher"));
    command.args(["run", "--sandbox", &sandbox.name, "--", program.text(), "rest"]);
    let (mut child, mut lines) = talk_with(&mut command);
    let mut line = String::new();
    lines.read_line(&mut line).expect("it writes");
    assert_eq!(line, "left\n");
    let log = launcher(&["log", &sandbox.name]).stdout;
    assert!(log.contains("an upcall was left by a jump"), "{log}");
    drop(child.stdin.take());
    lines.read_line(&mut line).expect("it writes");
    assert_eq!(line, "left\nleft 1, within 0\n");
    assert!(child.wait().expect("it was started").success());
}

#[test]
fn a_child_of_vfork_may_be_killed_inside_an_upcall() {
    let (sandbox, program) = with_handlers("vforks");
    let mut command = Command::new(built("sbx-launcher"));
    command.args(["run", "--sandbox", &sandbox.name, "--", program.text(), "vfork"]);
    let (mut child, mut lines) = talk_with(&mut command);
    let mut line = String::new();
    lines.read_line(&mut line).expect("it writes");
    assert_eq!(line, "twenty\n");
    // Their parent is still there, and has its own thread's places only.
    let used = used(&sandbox.json(&["ps"]), "contexts");
    assert!(used <= 2, "{used} contexts");
    drop(child.stdin.take());
    assert!(child.wait().expect("it was started").success());
    settled(&sandbox, 3);
}

#[test]
fn a_signal_handler_may_fork_on_top_of_an_upcall() {
    let (sandbox, program) = with_handlers("forks");
    for what in ["fork", "forkhold"] {
        for stack in [None, Some("alt")] {
            let mut argv = vec![program.text(), what];
            argv.extend(stack);
            // The parent's upcall goes on, and has its locks; the child's copy ends with an error.
            let ended = sandbox.run(&argv);
            assert_eq!(
                (ended.status, ended.stdout.as_str()),
                (0, "0 0 0\n"),
                "{argv:?}: {}",
                ended.stderr
            );
        }
    }
    settled(&sandbox, 3);
}

/// A participant that makes one call from Python and may be stopped in it.
fn caller(sandbox: &Sandbox, call: &str) -> std::process::Child {
    let script = format!("import sbx; sbx.current().call({call})");
    Command::new(built("sbx-launcher"))
        .args(["run", "--sandbox", &sandbox.name, "--", "/usr/bin/python3", "-c", &script])
        .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/../ext-api/python"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the launcher is built")
}

fn python_of(sandbox: &Sandbox) -> i32 {
    let start = Instant::now();
    loop {
        let rows = sandbox.participants();
        let python = rows.iter().find(|row| {
            row["name"].as_str().is_some_and(|name| name.starts_with("python"))
                && row["state"] == "live"
                && row["contexts"] != 0
        });
        if let Some(pid) = python.and_then(|row| row["pid"].as_i64()) {
            return pid as i32;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{rows:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_wait_for_a_stopped_holder_ends_and_names_it() {
    let sandbox = Sandbox::up("holder");
    sandbox.load(&built("libledger.so"));
    let mut child = caller(&sandbox, "'ledger.hold', 4000");
    let holder = python_of(&sandbox);
    thread::sleep(Duration::from_millis(200));
    kill(Pid::from_raw(holder), Signal::SIGSTOP).expect("it lives");
    let ended = sandbox.call(&["ledger.mutex_add"]);
    kill(Pid::from_raw(holder), Signal::SIGCONT).expect("it lives");
    assert_ne!(ended.status, 0);
    assert!(ended.stderr.contains(&holder.to_string()), "{}", ended.stderr);
    assert!(child.wait().expect("it was started").success());
    let ended = sandbox.call(&["ledger.mutex_add"]);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
}

#[test]
fn what_a_thread_holds_that_ends_inside_an_upcall_is_a_dead_ones() {
    let program = compile("cc", "ends", &[]);
    for which in ["first", "other"] {
        let sandbox = Sandbox::up(&format!("ends-{which}"));
        sandbox.load(&built("libledger.so"));
        let ended = sandbox.run(&[program.text(), which]);
        let text = (ended.status, ended.stdout.as_str());
        assert_eq!(text, (0, "2 broken\n"), "{which}: {}", ended.stderr);
        settled(&sandbox, 2);
    }
}

#[test]
fn a_launcher_that_is_killed_at_once_leaves_no_command_waiting() {
    // Before there is a keeper. All have one pipe, which ends with the last of them.
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let kills = if full() { 4_000 } else { 400 };
    let groups: Vec<Pid> = (0..kills)
        .map(|turn| {
            let mut command = Command::new(built("sbx-launcher"));
            command.args(["run", "--", "/bin/true"]).process_group(0);
            let output = writer.try_clone().expect("a descriptor");
            let mut child = command.stdout(output).spawn().expect("the launcher is built");
            thread::sleep(Duration::from_micros(turn % 50 * 100));
            child.kill().expect("it is not reaped");
            child.wait().expect("it was started");
            Pid::from_raw(-(child.id() as i32))
        })
        .collect();
    drop(writer);
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || tell.send(reader.read_to_end(&mut Vec::new()).is_ok()));
    let ended = told.recv_timeout(Duration::from_secs(10));
    // Who waits for ever would do so at a core's cost.
    let left = groups.into_iter().filter(|group| kill(*group, Signal::SIGKILL).is_ok()).count();
    assert_eq!(ended, Ok(true), "{left} wait");
}
