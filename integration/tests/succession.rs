//! The supervisor killed, the keeper killed, both killed: who goes on, and what is lost.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use integration::{Sandbox, built, full, launcher};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Pids of the supervisor and of its keeper, once there are both.
fn pair(sandbox: &Sandbox) -> [i32; 2] {
    let start = Instant::now();
    loop {
        let ps = sandbox.json(&["ps"]);
        let pid = |who: &str| ps[who].as_i64().map(|pid| pid as i32);
        if let [Some(supervisor), Some(keeper)] = [pid("supervisor"), pid("keeper")] {
            return [supervisor, keeper];
        }
        assert!(start.elapsed() < Duration::from_secs(5), "no keeper: {ps}");
    }
}

fn shoot(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it is there");
}

/// A process of the sandbox that works until it is told to end.
struct Working(Child);

impl Working {
    fn start(sandbox: &Sandbox, script: &str) -> Self {
        let mut command = Command::new(built("sbx-launcher"));
        command.args(["run", "--sandbox", &sandbox.name, "--", "bash", "-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().expect("it starts"))
    }

    /// What it has printed when it has ended well.
    fn finish(self) -> String {
        let output = self.0.wait_with_output().expect("it ends");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{:?}: {error}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[test]
fn a_keeper_takes_over_and_nothing_is_lost() {
    let sandbox = Sandbox::up("succession");
    sandbox.load_hello();
    sandbox.load(&built("libledger.so"));
    let counts = built("counts");
    let counts = counts.to_str().expect("a UTF-8 path");
    let caller = Working::start(&sandbox, &format!("{counts} 2"));
    thread::sleep(Duration::from_millis(200));
    let [supervisor, keeper] = pair(&sandbox);
    shoot(supervisor);
    let died = Instant::now();
    let [next, its_keeper] = pair(&sandbox);
    println!("after {:?} the keeper answers", died.elapsed());
    assert_eq!(next, keeper);
    assert_ne!(its_keeper, keeper);
    // Everything that a supervisor does.
    sandbox.load(&built("libkv_cache.so"));
    assert_eq!(sandbox.call(&["hello.greet", "me"]).status, 0);
    let ended = sandbox.run(&[counts, "1"]);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    caller.finish();
    let log = launcher(&["log", &sandbox.name]).stdout;
    assert!(log.contains("has taken the place of a supervisor that died"), "{log}");
}

#[test]
fn a_keeper_that_is_killed_is_replaced() {
    let sandbox = Sandbox::up("keeper");
    let [supervisor, keeper] = pair(&sandbox);
    shoot(keeper);
    let start = Instant::now();
    loop {
        let [same, another] = pair(&sandbox);
        assert_eq!(same, supervisor);
        if another != keeper {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    shoot(supervisor);
    assert_ne!(pair(&sandbox)[0], supervisor);
}

#[test]
fn without_either_upcalls_go_on_and_programs_cannot_be_started() {
    let sandbox = Sandbox::up("both");
    sandbox.load(&built("libledger.so"));
    let counts = built("counts");
    let counts = counts.to_str().expect("a UTF-8 path");
    let caller = Working::start(&sandbox, &format!("exec {counts} 2"));
    let starter = Working::start(&sandbox, "read; /bin/true; echo $?");
    thread::sleep(Duration::from_millis(300));
    let [supervisor, keeper] = pair(&sandbox);
    // It must not see its keeper's end before its own.
    kill(Pid::from_raw(supervisor), Signal::SIGSTOP).expect("it is there");
    shoot(keeper);
    shoot(supervisor);
    caller.finish();
    let mut starter = starter;
    drop(starter.0.stdin.take());
    let output = starter.0.wait_with_output().expect("it ends");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("not implemented"), "{error}");
    // The name is free again.
    let again = launcher(&["up", &sandbox.name]);
    assert_eq!((again.status, again.stderr.as_str()), (0, ""));
}

#[test]
fn programs_that_are_starting_while_supervisors_die_start() {
    let sandbox = Sandbox::up("starting");
    sandbox.load_hello();
    let (rounds, deaths) = if full() { (2_000, 300) } else { (300, 40) };
    let script = format!(
        "for i in $(seq {rounds}); do x=$(/bin/echo $i) || {{ echo \"$i: status $?\" >&2; exit 3; }}; \
         [ \"$x\" = $i ] || {{ echo \"$i: $x\"; exit 4; }}; done; echo all"
    );
    let workers = [Working::start(&sandbox, &script), Working::start(&sandbox, &script)];
    for _ in 0..deaths {
        let [supervisor, _] = pair(&sandbox);
        shoot(supervisor);
    }
    for worker in workers {
        assert_eq!(worker.finish(), "all\n");
    }
}

#[test]
fn a_command_goes_on_when_its_launcher_is_killed() {
    let mut command = Command::new(built("sbx-launcher"));
    command.args(["run", "--", "bash", "-c", "echo ready; read; /bin/echo still here"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut launcher = command.spawn().expect("it starts");
    let mut out = std::io::BufReader::new(launcher.stdout.take().expect("piped"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).expect("it writes");
    assert_eq!(line, "ready\n");
    // Its keeper is made when there is nothing else to do.
    thread::sleep(Duration::from_millis(300));
    launcher.kill().expect("it is there");
    drop(launcher.stdin.take());
    launcher.wait().expect("it is ours");
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut out, &mut rest).expect("it writes");
    assert_eq!(rest, "still here\n");
}

#[test]
fn a_supervisor_that_does_not_answer_does_not_hold_up_the_list() {
    let sandbox = Sandbox::up("silent");
    let [supervisor, _] = pair(&sandbox);
    kill(Pid::from_raw(supervisor), Signal::SIGSTOP).expect("it is there");
    let (text, json) = (launcher(&["ls"]), launcher(&["ls", "--json"]).stdout);
    kill(Pid::from_raw(supervisor), Signal::SIGCONT).expect("it is there");
    let line = format!("{} (its supervisor does not answer)", sandbox.name);
    assert!(text.stdout.lines().any(|one| one == line), "{text:?}");
    let listed: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let silent = listed["silent"].as_array().expect("a list");
    assert!(silent.contains(&sandbox.name.as_str().into()), "{json}");
    let again = launcher(&["ls"]).stdout;
    assert!(again.lines().any(|one| one == sandbox.name), "{again}");
}
