//! The launcher as its users meet it.

use std::process::Command;

use integration::{Sandbox, built, launcher, run};

#[test]
fn output_and_exit_status_are_the_commands_own() {
    let echoed = launcher(&["run", "--", "/bin/sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((echoed.status, echoed.stdout.as_str()), (3, "out\n"));
    assert_eq!(echoed.stderr, "err\n");
    assert_eq!(launcher(&["run", "--", "/bin/true"]).status, 0);
    assert_eq!(launcher(&["run", "--", "/bin/sh", "-c", "kill -9 $$"]).status, 128 + 9);
    assert_eq!(launcher(&["run", "--", "/no/such/program"]).status, 127);
    assert_eq!(launcher(&["run", "--", "/etc/passwd"]).status, 126);
    assert_eq!(launcher(&["nonsense"]).status, 125);
}

#[test]
fn an_unprivileged_user_needs_nothing_more() {
    let dir = std::env::temp_dir().join(format!("sbx-unprivileged-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for file in ["sbx-launcher", "libhello_upcall.so", "hello-caller"] {
        std::fs::copy(built(file), dir.join(file)).unwrap();
    }
    assert_eq!(run(Command::new("chmod").args(["-R", "a+rX"]).arg(&dir)).status, 0);
    // As root this becomes nobody; anybody else is unprivileged already.
    let script = "cd \"$1\"; set --; \
        [ \"$(id -u)\" = 0 ] && set -- setpriv --reuid 65534 --regid 65534 --clear-groups; \
        \"$@\" ./sbx-launcher run --ext libhello_upcall.so -- \
        bash -c './hello-caller; (./hello-caller) | cat'";
    let ended = run(Command::new("bash").args(["-c", script, "bash"]).arg(&dir));
    let expected = "hello, rust (1)\ntotal 1\nhello, rust (2)\ntotal 2\n";
    assert_eq!((ended.status, ended.stdout.as_str()), (0, expected), "{}", ended.stderr);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_command_runs_where_its_launcher_may() {
    let asked = ["grep", "Cpus_allowed_list", "/proc/self/status"];
    let native = run(Command::new(asked[0]).args(&asked[1..]));
    let launched = [&["run", "--"][..], &asked].concat();
    for _ in 0..20 {
        assert_eq!(launcher(&launched).stdout, native.stdout);
    }
    // The launcher shares a CPU with the command only until that has joined; what it executes next as well.
    let of_both = "exec sh -c 'grep -h Cpus_allowed_list /proc/$PPID/status /proc/self/status'";
    let both = launcher(&["run", "--", "sh", "-c", of_both]).stdout;
    assert_eq!(both, native.stdout.repeat(2));
    // And so may whatever else the launcher has forked: the server of an extension with timers, the keeper.
    let of_all = "sleep 0.3; for pid in $PPID $(cat /proc/$PPID/task/$PPID/children); do \
        grep -h Cpus_allowed_list /proc/$pid/status; done";
    let image = built("libwatcher.so");
    for extension in [vec![], vec!["--ext", image.to_str().expect("UTF-8")]] {
        let argv = [&["run"][..], &extension, &["--", "sh", "-c", of_all]].concat();
        let all = launcher(&argv).stdout;
        assert!(all.lines().count() >= 3, "{all}");
        assert!(all.lines().all(|line| line == native.stdout.trim_end()), "{all}");
    }
}

#[test]
fn a_pipe_reaches_the_command() {
    let script = format!("printf abc | {} run -- cat", built("sbx-launcher").display());
    assert_eq!(run(Command::new("sh").args(["-c", &script])).stdout, "abc");
}

#[test]
fn what_is_wrong_is_said_by_name() {
    let missing = launcher(&["ps", "no-such-sandbox"]);
    assert_eq!(missing.status, 125);
    assert!(
        missing.stderr.contains("no sandbox named no-such-sandbox is up"),
        "{}",
        missing.stderr
    );
    let sandbox = Sandbox::up("errors");
    let twice = launcher(&["up", &sandbox.name]);
    assert!(twice.stderr.contains("exists already"), "{}", twice.stderr);
    let text = launcher(&["ext", "load", &sandbox.name, "/etc/passwd"]);
    assert!(text.stderr.contains("not a usable ELF image"), "{}", text.stderr);
    let program = launcher(&["ext", "load", &sandbox.name, "/bin/true"]);
    assert_eq!(program.status, 125);
    assert!(launcher(&["up", "bad/name"]).stderr.contains("letters, digits"));
}

#[test]
fn a_second_sandbox_around_a_process_is_refused() {
    let inner = built("sbx-launcher");
    let ended = launcher(&["run", "--", inner.to_str().unwrap(), "run", "--", "/bin/true"]);
    assert_eq!(ended.status, 125);
    assert!(ended.stderr.contains("in one sandbox at most"), "{}", ended.stderr);
}

#[test]
fn processes_share_one_state() {
    let sandbox = Sandbox::up("share");
    sandbox.load_hello();
    let caller = built("hello-caller");
    for turn in 1..=3 {
        let ended = sandbox.run(&[caller.to_str().unwrap()]);
        assert_eq!(ended.stdout, format!("hello, rust ({turn})\ntotal {turn}\n"));
    }
    assert_eq!(sandbox.call(&["hello.add", "10"]).stdout, "13\n");
    assert_eq!(sandbox.call(&["hello.times", "nobody"]).stdout, "(none)\n");
    assert!(sandbox.call(&["hello.add", "x"]).stderr.contains("not of type u64"));
}

#[test]
fn a_failing_handler_fails_its_caller_only() {
    let sandbox = Sandbox::up("fail");
    sandbox.load_hello();
    assert!(sandbox.call(&["hello.fail", "panic"]).stderr.contains("asked to panic"));
    assert!(sandbox.call(&["hello.fail", "this"]).stderr.contains("this"));
    assert!(sandbox.call(&["hello.spawn"]).stdout.contains("pthread_create is refused"));
    let filled: u64 = sandbox.call(&["hello.fill"]).stdout.trim().parse().unwrap();
    assert!((10..=16).contains(&filled), "a 16 MiB heap gave {filled} MiB");
    assert_eq!(sandbox.call(&["hello.add", "1"]).stdout, "1\n");
    let log = launcher(&["log", &sandbox.name]).stdout;
    assert!(log.contains("asked to panic"), "{log}");
}

#[test]
fn unload_makes_names_and_handles_stale_and_load_brings_fresh_state() {
    let sandbox = Sandbox::up("unload");
    for _ in 0..20 {
        sandbox.load_hello();
        assert_eq!(sandbox.call(&["hello.add", "1"]).stdout, "1\n");
        assert_eq!(launcher(&["ext", "unload", &sandbox.name, "hello"]).status, 0);
        assert!(sandbox.call(&["hello.add", "1"]).stderr.contains("no handler named hello.add"));
    }
}

#[test]
fn the_configuration_is_checked() {
    let sandbox = Sandbox::up("config");
    let image = built("libhello_upcall.so");
    let load = |config: &str| {
        launcher(&["ext", "load", &sandbox.name, image.to_str().unwrap(), "--config", config])
    };
    assert!(load("greting=hi").stderr.contains("unknown configuration key \"greting\""));
    assert_eq!(load("greeting=hi").status, 0);
    assert_eq!(sandbox.call(&["hello.greet", "you"]).stdout, "hi, you (1)\n");
}

#[test]
fn a_participant_cannot_change_its_sandbox() {
    let sandbox = Sandbox::up("rights");
    let inner = built("sbx-launcher");
    let ended = sandbox.run(&[inner.to_str().unwrap(), "down", &sandbox.name]);
    assert!(ended.stderr.contains("cannot change its own sandbox"), "{}", ended.stderr);
    assert_eq!(launcher(&["ps", &sandbox.name]).status, 0);
}
