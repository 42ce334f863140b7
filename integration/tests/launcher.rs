//! The launcher as its users meet it.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use integration::{Sandbox, Scratch, built, launcher, run};
use serde_json::Value;

#[test]
fn output_and_exit_status_are_the_commands_own() {
    let echoed = launcher(&["run", "--", "/bin/sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((echoed.status, echoed.stdout.as_str()), (3, "out\n"));
    assert_eq!(echoed.stderr, "err\n");
    assert_eq!(launcher(&["run", "--", "/bin/true"]).status, 0);
    assert_eq!(launcher(&["run", "--", "/bin/sh", "-c", "kill -9 $$"]).status, 128 + 9);
    assert_eq!(launcher(&["run", "--", "/no/such/program"]).status, 127);
    assert_eq!(launcher(&["run", "--", "/etc/passwd"]).status, 126);
    let script = Scratch::new("script");
    std::fs::write(&script.0, "#!/no/such/interpreter\n").expect("written");
    assert_eq!(run(Command::new("chmod").args(["+x", script.text()])).status, 0);
    let ended = launcher(&["run", "--", script.text()]);
    assert_eq!(ended.status, 127);
    assert!(ended.stderr.contains("it names is missing"), "{}", ended.stderr);
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
        bash -c './hello-caller; (./hello-caller) | cat' && \
        exec \"$@\" ./sbx-launcher run -- python3 -Sc \
        'import ctypes, os; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); os.system(\"exit 3\")'";
    let ended = run(Command::new("bash").args(["-c", script, "bash"]).arg(&dir));
    let expected = "hello, rust (1)\ntotal 1\nhello, rust (2)\ntotal 2\n";
    assert_eq!((ended.status, ended.stdout.as_str()), (0, expected), "{}", ended.stderr);
    // Whom it may not trace it cannot follow.
    assert!(ended.stderr.contains("lets nobody trace it (PR_SET_DUMPABLE)"), "{}", ended.stderr);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_program_joins_whatever_bytes_its_name_is_of() {
    let folder = Scratch::new("bytes");
    std::fs::create_dir(&folder.0).expect("a scratch folder");
    // The shell makes them: they are no UTF-8.
    let script = "cd \"$1\" && name=$(printf 'caller-\\377') && cp \"$2\" \"$name\" && \
        \"$3\" run --ext \"$4\" -- bash -c './\"$1\"; true' bash \"$name\"";
    let paths = ["hello-caller", "sbx-launcher", "libhello_upcall.so"].map(built);
    let args = ["-c", script, "bash"];
    let ended = run(Command::new("bash").args(args).arg(&folder.0).args(&paths));
    assert_eq!(
        (ended.status, ended.stdout.as_str()),
        (0, "hello, rust (1)\ntotal 1\n"),
        "{ended:?}"
    );
}

#[test]
fn ps_tells_a_name_whole_and_prints_it_on_one_line() {
    let folder = Scratch::new("lines");
    std::fs::create_dir(&folder.0).expect("a scratch folder");
    let named = folder.0.join("two\n\x1blines");
    std::fs::copy("/bin/cat", &named).expect("a copy");
    let sandbox = Sandbox::up("name-lines");
    let argv = ["run", "--sandbox", &sandbox.name, "--", named.to_str().expect("a UTF-8 path")];
    let mut command = Command::new(built("sbx-launcher"));
    let command = command.args(argv).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = command.spawn().expect("it starts");
    // What it gives back it has joined before.
    let (mut to, mut from) =
        (running.stdin.take().expect("in"), running.stdout.take().expect("out"));
    to.write_all(b"x").expect("write");
    from.read_exact(&mut [0]).expect("read");
    let [json, table] =
        [&["ps", &sandbox.name, "--json"][..], &["ps", &sandbox.name]].map(launcher);
    drop(to);
    assert!(running.wait().expect("an end").success());
    let json: Value = serde_json::from_str(&json.stdout).expect("JSON");
    let names = json["participants"].as_array().expect("a list").iter().map(|it| &it["name"]);
    assert!(names.into_iter().any(|name| name == "two\n\x1blines"), "{json}");
    assert!(table.stdout.contains(" two??lines "), "{}", table.stdout);
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
    let rule =
        "\"bad/name\" is no name of a sandbox: use 1 to 31 ASCII letters, digits, '-' and '_'";
    for command in [&["up", "bad/name"][..], &["down", "bad/name"], &["ext", "ls", "bad/name"]] {
        assert_eq!(launcher(command).stderr, format!("sbx-launcher: {rule}\n"));
    }
    for size in ["0", "575", "65537", "18446744073709551615"] {
        let sized = launcher(&["run", "--size", size, "--", "/bin/true"]);
        assert!(sized.stderr.contains("576 to 65536 MiB"), "{}", sized.stderr);
    }
    let nobody = launcher(&["post", &sandbox.name, "hello.null"]).stderr;
    assert!(nobody.contains("--pid <PID>|--any|--all"), "{nobody}");
    let loaded = launcher(&["run", "--config", "a=b", "--", "/bin/true"]);
    assert!(loaded.status == 125 && loaded.stderr.contains("add --ext"), "{}", loaded.stderr);
    for option in [["--size", "600"], ["--config", "a=b"]] {
        let both =
            [&["run", "--sandbox", &sandbox.name][..], &option, &["--", "/bin/true"]].concat();
        assert!(launcher(&both).stderr.contains("cannot be used with"), "{option:?}");
    }
    let starved =
        format!("ulimit -n 3; exec {} ps {}", built("sbx-launcher").display(), sandbox.name);
    let starved = run(Command::new("sh").args(["-c", &starved]));
    assert!(starved.stderr.contains("Too many open files"), "{}", starved.stderr);
}

#[test]
fn what_cannot_be_printed_is_said_or_left_unsaid_and_nothing_panics() {
    let sandbox = Sandbox::up("full");
    sandbox.load_hello();
    let launcher = built("sbx-launcher").display().to_string();
    let shell = |command: &str, to: &str| {
        run(Command::new("sh").args(["-c", &format!("{launcher} {command} {to}")]))
    };
    let name = &sandbox.name;
    for command in [
        "ls --json".to_owned(),
        format!("ps {name}"),
        format!("log {name}"),
        format!("call {name} hello.greet you"),
        "policy show".to_owned(),
        "--help".to_owned(),
    ] {
        // Something has to be printed by each.
        assert_eq!(shell(&format!("call {name} hello.fail panic"), "").status, 125);
        let full = shell(&command, ">/dev/full");
        assert_eq!(full.status, 125, "{command}: {}", full.stderr);
        let said = full.stderr.contains("No space left") || command == "--help";
        assert!(said && !full.stderr.contains("panicked"), "{command}: {}", full.stderr);
    }
    assert_eq!(shell("ps no-such-sandbox", "2>/dev/full").status, 125);
    assert_eq!(shell("run -- /no/such/program", "2>/dev/full").status, 127);
    let traced = shell("trace --out /dev/full -- /bin/sh -c 'exit 3'", "");
    assert_eq!(traced.status, 3);
    assert!(traced.stderr.contains("calls were not printed"), "{}", traced.stderr);
    let drawn = shell("bench upcall --plot /no/such/folder/plot.svg", "");
    assert!(drawn.status == 125 && drawn.stderr.contains("/no/such/folder"), "{}", drawn.stderr);
}

#[test]
fn a_file_that_is_none_does_not_stop_the_supervisor() {
    let sandbox = Sandbox::up("files");
    let pipe = Scratch::new("pipe");
    assert_eq!(run(Command::new("mkfifo").arg(&pipe.0)).status, 0);
    for file in [pipe.text(), "/tmp"] {
        let refused = launcher(&["ext", "load", &sandbox.name, file]);
        assert_eq!(refused.status, 125);
        assert!(refused.stderr.contains("no regular file"), "{}", refused.stderr);
        // Nor is it replaced, as a device would be.
        let refused = launcher(&["snapshot", &sandbox.name, file]);
        assert!(refused.stderr.contains("no regular file"), "{}", refused.stderr);
    }
    assert_eq!(launcher(&["ps", &sandbox.name]).status, 0);
    let endless = format!(
        "ulimit -v 1000000; exec {} policy check /dev/zero",
        built("sbx-launcher").display()
    );
    let endless = run(Command::new("sh").args(["-c", &endless]));
    assert!(endless.stderr.contains("a policy has at most"), "{}", endless.stderr);
}

#[test]
fn a_snapshot_replaces_the_file_that_a_link_leads_to_and_no_other() {
    let sandbox = Sandbox::up("link");
    sandbox.load_hello();
    let folder = Scratch::new("snapshots");
    std::fs::create_dir(&folder.0).expect("a new folder");
    let [file, link, other] = ["state.1", "link", "state.partial"].map(|name| folder.0.join(name));
    for old in [&file, &other] {
        std::fs::write(old, "old").expect("written");
    }
    std::os::unix::fs::symlink("state.1", &link).expect("a new link");
    let written = launcher(&["snapshot", &sandbox.name, link.to_str().expect("UTF-8")]);
    assert_eq!(written.status, 0, "{}", written.stderr);
    assert!(link.is_symlink() && std::fs::metadata(&file).is_ok_and(|about| about.len() > 1000));
    assert_eq!(std::fs::read(&other).expect("it is there"), b"old");
    assert_eq!(std::fs::read_dir(&folder.0).expect("it is there").count(), 3);
    let nowhere = launcher(&["up", "nowhere", "--restore", "/no/such/snapshot"]).stderr;
    assert!(nowhere.contains("/no/such/snapshot: "), "{nowhere}");
}

#[test]
fn more_programs_take_part_than_descriptors_are_usual() {
    let name = format!("t{}-many", std::process::id());
    let up = format!("ulimit -Sn 64; exec {} up {name}", built("sbx-launcher").display());
    assert_eq!(run(Command::new("sh").args(["-c", &up])).status, 0);
    let sandbox = Sandbox { name };
    let script =
        "for i in $(seq 100); do sleep 100 & done; echo $(jobs -p | wc -l); kill $(jobs -p); wait";
    let ended = sandbox.run(&["bash", "-c", script]);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("100\n", ""));
    let log = launcher(&["log", &sandbox.name]).stdout;
    assert!(!log.contains("cannot be watched"), "{log}");
}

#[test]
fn a_second_sandbox_around_a_process_is_refused() {
    let inner = built("sbx-launcher");
    let ended = launcher(&["run", "--", inner.to_str().unwrap(), "run", "--", "/bin/true"]);
    assert_eq!(ended.status, 125);
    assert!(ended.stderr.contains("in one sandbox at most"), "{}", ended.stderr);
    let sandbox = Sandbox::up("around");
    let trace = sandbox.run(&[inner.to_str().unwrap(), "trace", "--", "/bin/true"]);
    assert!(trace.stderr.contains("in one sandbox at most"), "{}", trace.stderr);
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
    assert!(sandbox.call(&["hello.add", "-1"]).stderr.contains("not of type u64"));
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
