//! Debuggers, terminals, users, other sandboxes: what a program may meet beside us.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use integration::{Sandbox, Scratch, built, compile, launcher, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn python(sandbox: Option<&Sandbox>, script: &str) -> Command {
    let mut command = match sandbox {
        Some(sandbox) => {
            let mut command = Command::new(built("sbx-launcher"));
            command.args(["run", "--sandbox", &sandbox.name, "--", "/usr/bin/python3"]);
            command
        }
        None => Command::new("/usr/bin/python3"),
    };
    command.args(["-c", script]);
    command.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/../ext-api/python"));
    command
}

/// Wait until nobody takes part any more.
fn empty(sandbox: &Sandbox) {
    let start = Instant::now();
    while sandbox.json(&["ps"])["uses"][0]["used"] != 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", sandbox.participants());
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_program_attaches_by_itself() {
    let sandbox = Sandbox::up("late");
    sandbox.load_hello();
    let ended = run(Command::new(built("late-caller")).arg(&sandbox.name));
    let expected = format!("{}: 1\nwith its children: 5\n", sandbox.name);
    assert_eq!((ended.status, ended.stdout.as_str()), (0, expected.as_str()), "{}", ended.stderr);
    let script = format!(
        "import sbx\nbox = sbx.attach('{}')\nprint(box.name, box.call('hello.add', 1))",
        sandbox.name
    );
    let ended = run(&mut python(None, &script));
    assert_eq!(ended.stdout, format!("{} 6\n", sandbox.name), "{}", ended.stderr);
    let how: Vec<_> = sandbox.participants().iter().map(|row| row["how"].clone()).collect();
    assert!(how.iter().filter(|how| *how == "late").count() == 2, "{how:?}");
    // Its children are found though nobody told of them.
    empty(&sandbox);
    let missing = run(Command::new(built("late-caller")).arg("no-such-sandbox"));
    assert!(missing.stderr.contains("sbx-launcher up no-such-sandbox"), "{}", missing.stderr);
}

#[test]
fn python_is_told_what_an_argument_cannot_be() {
    let sandbox = Sandbox::up("types");
    sandbox.load_hello();
    let script = "import sbx\n\
        box = sbx.current()\n\
        def said(name, *args):\n\
        \ttry: return box.call(name, *args)\n\
        \texcept Exception as error: return type(error).__name__\n\
        for n in (-1, 1 << 64, 0.5, 'x', None): print('add', said('hello.add', n))\n\
        for data in (5, [1, 2], 'text', None): print('echo', said('hello.echo', data))\n\
        print(said('hello.add', (1 << 64) - 1), said('hello.add', 2), said('hello.add', True))\n\
        for data in (b'a\\0b', bytearray(b'ba'), memoryview(b'mv'), b''): print(said('hello.echo', data))\n\
        try: box.wait(-1)\n\
        except ValueError: print(box.wait(0))";
    let ended = run(&mut python(Some(&sandbox), script));
    let expected = "add OverflowError\nadd OverflowError\nadd TypeError\nadd TypeError\nadd TypeError\n\
        echo TypeError\necho TypeError\necho TypeError\necho TypeError\n\
        18446744073709551615 1 2\nb'a\\x00b'\nb'ba'\nb'mv'\nb''\n0\n";
    assert_eq!(ended.stdout, expected, "{}", ended.stderr);
}

#[test]
fn a_program_whose_addresses_are_taken_is_told() {
    let sandbox = Sandbox::up("taken");
    sandbox.load_hello();
    let script = format!(
        "import ctypes, sbx\n\
         libc = ctypes.CDLL(None)\n\
         libc.mmap.restype = ctypes.c_void_p\n\
         args = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]\n\
         libc.mmap.argtypes = args\n\
         libc.mmap(0x554000000000, 0x1400000000, 0, 0x104022, -1, 0)\n\
         try: sbx.attach('{}')\n\
         except sbx.Error as error: print(error)",
        sandbox.name
    );
    let ended = run(&mut python(None, &script));
    assert!(ended.stdout.contains("mapping 0x55"), "{} {}", ended.stdout, ended.stderr);
    let upcall = sandbox.call(&["hello.add", "1"]);
    assert_eq!(upcall.stdout, "1\n");
}

#[test]
fn a_policy_file_refuses_and_allows() {
    let policy = Scratch::new("policy.toml");
    let rules = "version = 1\n[[syscall]]\nnames = [\"mkdir\", \"mkdirat\"]\n\
                 action = \"errno:EDQUOT\"\nreason = \"nothing is made here\"\n";
    std::fs::write(&policy.0, rules).expect("a scratch file");
    let script = "import errno, os\ntry: os.mkdir('/tmp/sbx-never')\n\
                  except OSError as error: print(errno.errorcode[error.errno])";
    let ended =
        launcher(&["run", "--policy", policy.text(), "--", "/usr/bin/python3", "-c", script]);
    assert_eq!(ended.stdout, "EDQUOT\n", "{}", ended.stderr);
    std::fs::write(&policy.0, rules.replace("mkdirat", "mkdirr")).expect("a scratch file");
    let ended = launcher(&["run", "--policy", policy.text(), "--", "/bin/true"]);
    assert_eq!(ended.status, 125);
    assert!(ended.stderr.contains("mkdirr"), "{}", ended.stderr);
    let image = built("libhello_upcall.so");
    let image = image.to_str().expect("a UTF-8 path");
    let asks = rules.replace("errno:EDQUOT", "upcall:hello.nobody");
    std::fs::write(&policy.0, asks).expect("a scratch file");
    let args = ["run", "--policy", policy.text(), "--ext", image, "--", "/bin/true"];
    let refused = launcher(&args).stderr;
    assert!(refused.contains("hello.nobody is no handler of that extension"), "{refused}");
}

#[test]
fn a_debugger_inside_works() {
    let sandbox = Sandbox::up("gdb");
    sandbox.load_hello();
    let caller = built("hello-caller");
    let caller = caller.to_str().expect("a UTF-8 path");
    // What gdb starts is traced by gdb, so that it runs beside the sandbox: it is told so.
    let gdb = ["gdb", "-q", "-batch", "-ex", "run", "-ex", "info registers rip", "--args"];
    let ended = sandbox.run(&[&gdb[..], &["/bin/echo", "from gdb"]].concat());
    assert!(ended.stdout.contains("from gdb\n"), "{} {}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("exited normally"), "{}", ended.stdout);
    let log = launcher(&["log", &sandbox.name]).stdout;
    assert!(log.contains("is traced by another process"), "{log}");
    let native = run(Command::new("strace").args([
        "-f",
        "-o",
        "/dev/null",
        "/bin/sh",
        "-c",
        "echo $(echo a)",
    ]));
    let ended =
        sandbox.run(&["strace", "-f", "-o", "/dev/null", "/bin/sh", "-c", "echo $(echo a)"]);
    assert_eq!((ended.status, &ended.stdout), (native.status, &native.stdout), "{}", ended.stderr);
    // And without a debugger all is as ever.
    assert_eq!(sandbox.run(&[caller]).stdout, "hello, rust (1)\ntotal 1\n");
}

#[test]
fn a_level_of_hardening_is_enforced_or_refused_by_name() {
    let run = |level: &str| launcher(&["run", "--harden", level, "--", "/bin/echo", "ran"]);
    let coop = run("coop");
    assert_eq!((coop.status, coop.stdout.as_str()), (0, "ran\n"), "{}", coop.stderr);
    for (level, missing) in [("guard", "Landlock scope"), ("strict", "extensions in Wasm")] {
        let ended = run(level);
        assert_eq!((ended.status, ended.stdout.as_str()), (125, ""));
        let said = format!("--harden {level} cannot be enforced here: ");
        assert!(ended.stderr.contains(&said) && ended.stderr.contains(missing), "{}", ended.stderr);
    }
    assert_eq!(run("hard").status, 125);
}

/// The launcher, to which the kernel refuses the system call `number`.
fn refused(refuse: &Scratch, number: i64, args: &[&str]) -> Command {
    let mut command = Command::new(&refuse.0);
    command.arg(number.to_string()).arg(built("sbx-launcher")).args(args);
    command.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/../ext-api/python"));
    command
}

#[test]
fn where_tracing_is_refused_programs_join_by_a_library() {
    const PTRACE: i64 = 101;
    const PIDFD_GETFD: i64 = 438;
    let refuse = compile("cc", "refuse", &[]);
    let hello = built("libhello_upcall.so");
    let script = "import os, subprocess, sys\nimport sbx\nbox = sbx.current()\n\
                  print(box.call('hello.add', 1), flush=True)\n\
                  if os.fork() == 0: box.call('hello.add', 1); os._exit(0)\n\
                  os.wait()\n\
                  again = 'import sbx; print(sbx.current().call(\"hello.add\", 1))'\n\
                  print(subprocess.check_output([sys.executable, '-c', again]))";
    let ext = ["run", "--ext", hello.to_str().expect("a UTF-8 path"), "--"];
    let python = [&ext[..], &["/usr/bin/python3", "-c", script]].concat();
    for number in [PTRACE, PIDFD_GETFD] {
        let ended = run(&mut refused(&refuse, number, &python));
        assert_eq!(ended.stdout, "1\nb'3\\n'\n", "{}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        assert!(ended.stderr.contains("so they join by a preloaded library"), "{}", ended.stderr);
    }
    // A sandbox that is up, whose supervisor may trace: its client may not.
    let sandbox = Sandbox::up("refused");
    sandbox.load_hello();
    let in_named = ["run", "--sandbox", &sandbox.name, "--"];
    let ended = run(&mut refused(&refuse, PTRACE, &[&in_named[..], &python[4..]].concat()));
    assert_eq!(ended.stdout, "1\nb'3\\n'\n", "{}", ended.stderr);
    assert_eq!(sandbox.call(&["hello.add", "1"]).stdout, "4\n");
    let how: Vec<_> = sandbox.participants().iter().map(|row| row["how"].clone()).collect();
    assert!(how.iter().all(|how| how != "exec") && how.len() >= 3, "{how:?}");
    // A static program runs, and is said to be outside.
    let fixed = compile("cc", "region", &["-static"]);
    let ended = run(&mut refused(&refuse, PTRACE, &["run", "--", fixed.text()]));
    assert_eq!((ended.status, ended.stdout.as_str()), (2, "0 mappings\n"));
    let said = format!("{} is static: it runs outside of the sandbox", fixed.text());
    assert!(ended.stderr.contains(&said), "{}", ended.stderr);
    // What cannot be had without tracing is refused by name.
    let trace = run(&mut refused(&refuse, PTRACE, &["trace", "--", "/bin/true"]));
    assert_eq!(trace.status, 125);
    assert!(trace.stderr.contains("ptrace"), "{}", trace.stderr);
}

#[test]
fn somebody_elses_sandbox_cannot_be_entered() {
    if !nix::unistd::getuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let sandbox = Sandbox::up("uid");
    let program = Scratch::new("launcher");
    std::fs::copy(built("sbx-launcher"), &program.0).expect("a copy");
    let asked = format!("ps {}", sandbox.name);
    let ended = run(Command::new(&program.0).args(asked.split(' ')).uid(65_534).gid(65_534));
    assert_eq!(ended.status, 125);
    assert!(ended.stderr.contains("no sandbox named"), "{}", ended.stderr);
    let script = "import socket, sys\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
                  try: s.connect(sys.argv[1])\nexcept OSError as error: print(error.strerror)";
    let path = format!("/run/sbx/{}/control", sandbox.name);
    let ended = run(Command::new("/usr/bin/python3").args(["-c", script, &path]).uid(65_534));
    assert_eq!(ended.stdout, "Permission denied\n", "{}", ended.stderr);
}

#[test]
fn of_two_that_want_a_name_one_gets_it() {
    let name = format!("t{}-two", std::process::id());
    let children: Vec<_> = (0..4)
        .map(|_| {
            Command::new(built("sbx-launcher"))
                .args(["up", &name])
                .stderr(Stdio::null())
                .spawn()
                .expect("the launcher is built")
        })
        .collect();
    let won = children
        .into_iter()
        .filter_map(|mut child| child.wait().ok())
        .filter(std::process::ExitStatus::success)
        .count();
    let _sandbox = Sandbox { name: name.clone() };
    assert_eq!(won, 1);
    assert_eq!(launcher(&["ps", &name]).status, 0);
}

#[test]
fn the_terminal_is_the_commands() {
    // A terminal of our own: its interrupt key reaches the command, and the launcher waits for it. Who runs
    // these tests in the background may have the signal ignored, which bash would not change.
    let script = "import os, pty, signal, sys, time\n\
        pid, terminal = pty.fork()\n\
        if pid == 0: signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])\n\
        text = b''\n\
        while b'ready' not in text: text += os.read(terminal, 100)\n\
        os.write(terminal, b'\\x03')\n\
        try:\n\
        \twhile True:\n\
        \t\tmore = os.read(terminal, 100)\n\
        \t\tif not more: break\n\
        \t\ttext += more\n\
        except OSError: pass\n\
        print('interrupted' in text.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))";
    let inner = "trap 'echo interrupted; exit 7' INT; echo ready; while :; do sleep 0.1; done";
    let launcher = built("sbx-launcher");
    let ended = run(Command::new("/usr/bin/python3").args(["-c", script]).arg(&launcher).args([
        "run",
        "--",
        "/bin/bash",
        "-c",
        inner,
    ]));
    assert_eq!(ended.stdout, "True 7\n", "{}", ended.stderr);
    // Stopped and continued from outside.
    let mut child = Command::new(&launcher)
        .args(["run", "--", "/bin/cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("the launcher is built");
    let group = Pid::from_raw(-(child.id() as i32));
    for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
        thread::sleep(Duration::from_millis(100));
        kill(group, signal).expect("it lives");
    }
    child.stdin.take().expect("piped").write_all(b"still here").expect("it reads");
    assert_eq!(child.wait_with_output().expect("it ends").stdout, b"still here");
}

#[test]
fn what_the_terminal_has_stopped_goes_on_in_the_foreground() {
    let sandbox = Sandbox::up("stopped");
    // An interactive shell on a terminal of its own: ^Z and fg, several times, with the launcher told by name.
    let script = "import os, pty, sys\n\
        pid, terminal = pty.fork()\n\
        if pid == 0: os.environ['PS1'] = 'shell> '; os.execvp('bash', ['bash', '--norc', '-i'])\n\
        text = b''\n\
        def until(mark):\n\
        \tglobal text\n\
        \twhile mark not in text: text += os.read(terminal, 1000)\n\
        \ttext = text.split(mark, 1)[1]\n\
        def say(what): os.write(terminal, what)\n\
        command = ' '.join(sys.argv[1:]).encode()\n\
        until(b'shell> ')\n\
        say(command + b\" -- sh -c 'echo begun; exec cat'\\n\")\n\
        until(b'begun\\r\\n')\n\
        for turn in range(8):\n\
        \tsay(b'\\x1a'); until(b'Stopped'); until(b'shell> ')\n\
        \tsay(b'fg\\n'); until(b'exec cat'); until(b'\\n')\n\
        \tsay(b'turn %d\\n' % turn); until(b'turn %d\\r\\nturn %d' % (turn, turn))\n\
        say(b'\\x04'); until(b'shell> ')\n\
        say(b'echo $((40 + $?))\\n'); until(b'40\\r\\n'); print('done')";
    let launcher = built("sbx-launcher");
    for options in [&["--sandbox", &sandbox.name][..], &[]] {
        let mut command = Command::new("/usr/bin/timeout");
        command.args(["-k", "1", "20", "/usr/bin/python3", "-c", script]).arg(&launcher).arg("run");
        let ended = run(command.args(options));
        assert_eq!(ended.stdout, "done\n", "{options:?}: {}", ended.stderr);
    }
}

#[test]
fn what_the_launcher_is_told_the_command_hears() {
    let sandbox = Sandbox::up("told");
    // It does not fork: a fork that such a signal meets may fail with EINTR (README).
    let script = "trap 'exit 5' TERM; trap 'exit 6' HUP; echo ready; while :; do :; done";
    for named in [true, false] {
        for (signal, status) in [(Signal::SIGTERM, 5), (Signal::SIGHUP, 6)] {
            // Who runs these tests in the background may have them ignored, which bash would not change.
            let mut command = Command::new("/usr/bin/env");
            command.arg("--default-signal=HUP,TERM").arg(built("sbx-launcher")).arg("run");
            if named {
                command.args(["--sandbox", &sandbox.name]);
            }
            command.args(["--", "/bin/bash", "-c", script]).stdout(Stdio::piped());
            let mut child = command.spawn().expect("the launcher is built");
            let mut ready = [0; 6];
            let from = child.stdout.as_mut().expect("piped");
            std::io::Read::read_exact(from, &mut ready).expect("it says so");
            kill(Pid::from_raw(child.id() as i32), signal).expect("it lives");
            assert_eq!(child.wait().expect("it was started").code(), Some(status), "{named}");
        }
    }
}

#[test]
fn gdb_names_functions_of_the_region() {
    let sandbox = Sandbox::up("symbols");
    sandbox.load(&built("libledger.so"));
    let script = "import sbx; sbx.current().call('ledger.hold', 4000)";
    let mut child = python(Some(&sandbox), script).spawn().expect("the launcher is built");
    let start = Instant::now();
    let pid = loop {
        let rows = sandbox.participants();
        let inside = |row: &&serde_json::Value| {
            row["name"].as_str().is_some_and(|name| name.starts_with("python"))
                && row["upcalls"].as_u64() > Some(1)
        };
        if let Some(row) = rows.iter().find(inside) {
            break row["pid"].to_string();
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{rows:?}");
        thread::sleep(Duration::from_millis(10));
    };
    let commands = Scratch::new("symbols.gdb");
    std::fs::write(&commands.0, launcher(&["symbols", &sandbox.name]).stdout).expect("a file");
    let gdb = run(Command::new("gdb").args([
        "-q",
        "-batch",
        "-p",
        &pid,
        "-x",
        commands.text(),
        "-ex",
        "bt",
    ]));
    assert!(gdb.stdout.contains("ledger"), "{} {}", gdb.stdout, gdb.stderr);
    assert!(gdb.stdout.contains("sbx_call"), "{}", gdb.stdout);
    assert!(child.wait().expect("it was started").success());
}

#[test]
fn perf_names_functions_of_the_region() {
    let sandbox = Sandbox::up("perf");
    sandbox.load(&built("libfaulty.so"));
    let (record, names) = (Scratch::new("perf.data"), Scratch::new("perf.names"));
    let perf = |args: &[&str]| run(Command::new("perf").args(args));
    let probe = ["record", "-q", "-e", "cpu-clock", "-o", record.text(), "--", "/bin/true"];
    if Command::new("perf").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: no perf here (Debian package linux-perf)");
        return;
    }
    let probed = perf(&probe);
    if probed.status != 0 {
        println!("skipped: perf cannot record here: {}", probed.stderr);
        return;
    }
    let script = "import sbx\nbox = sbx.current()\n\
                  for _ in range(20): box.call('faulty.work', 20000000)";
    let child = python(Some(&sandbox), script);
    let mut recorded = Command::new("perf");
    recorded.args(&probe[..6]).arg("--").arg(child.get_program()).args(child.get_args());
    recorded.envs(child.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let recorded = run(&mut recorded);
    assert_eq!(recorded.status, 0, "{}", recorded.stderr);
    let named = launcher(&["symbols", &sandbox.name, "--perf", names.text()]);
    assert_eq!((named.status, named.stderr.as_str()), (0, ""));
    let symfs = ["report", "--stdio", "--sort", "dso,sym", "-i", record.text(), "--symfs"];
    let report = perf(&[&symfs[..], &[names.text()]].concat());
    let of_ours = report.stdout.lines().find(|line| line.contains("sbx-code"));
    let of_ours = of_ours.unwrap_or_else(|| panic!("{} {}", report.stdout, report.stderr));
    assert!(of_ours.contains("faulty::"), "{}", report.stdout);
}

#[test]
fn of_threads_that_execute_at_once_one_wins_and_stays_inside() {
    let sandbox = Sandbox::up("exec-race");
    let program = compile("cc", "exec_race", &[]);
    for time in 0..25 {
        let ended = sandbox.run(&[program.text()]);
        let expected = "inside 1, descriptors 0, then inside 1\n";
        assert_eq!(
            (ended.status, ended.stdout.as_str(), ended.stderr.as_str()),
            (0, expected, ""),
            "time {time}"
        );
    }
    let log = launcher(&["log", &sandbox.name]).stdout;
    assert!(!log.contains("outside") && !log.contains("could not join"), "{log}");
}

#[test]
fn a_process_of_another_pid_namespace_is_not_taken_for_one_outside() {
    let sandbox = Sandbox::up("pid-spaces");
    sandbox.load(&built("libfaulty.so"));
    let caller = built("faulty-caller");
    let mut outsider =
        Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("it starts");
    // A process has the outsider's pid there, and runs for too long in an upcall.
    let before = outsider.id() - 1;
    let script = format!(
        "echo {before} >/proc/sys/kernel/ns_last_pid; '{}' spin & echo pid $!; wait $!",
        caller.display()
    );
    let ended = sandbox.run(&["unshare", "-pf", "--mount-proc", "bash", "-c", &script]);
    let lives = outsider.try_wait().expect("a child").is_none();
    outsider.kill().expect("ours");
    outsider.wait().expect("ours");
    let expected = format!("pid {}\nOverrun\n", outsider.id());
    assert_eq!((ended.status, ended.stdout), (0, expected), "{}", ended.stderr);
    assert!(lives, "the process outside was ended");
    // Two of different namespaces have the same pid, and neither is taken for the other.
    let script = format!(
        "for i in 1 2 3; do unshare -pf '{}' count & done; wait; unshare -pf '{}' lock",
        caller.display(),
        caller.display()
    );
    let ended = sandbox.run(&["bash", "-c", &script]);
    assert_eq!(ended.status, 0, "{} {}", ended.stdout, ended.stderr);
    // And nothing of them is left.
    empty(&sandbox);
}
