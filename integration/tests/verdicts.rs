//! Verdicts on system calls hold, whatever a program gives them, and whatever it does meanwhile.

use std::process::Command;

use integration::{Ended, Sandbox, Scratch, built, compile, launcher, run};
use serde_json::Value;

/// Load an extension with a configuration.
fn load(sandbox: &Sandbox, image: &str, config: &str) -> Ended {
    let image = built(image);
    let image = image.to_str().expect("a UTF-8 path");
    launcher(&["ext", "load", &sandbox.name, image, "--config", config])
}

#[test]
fn a_path_that_is_not_there_when_it_is_looked_at_is_not_there_for_the_kernel_either() {
    let program = compile("gcc", "nowhere", &[]);
    let sandbox = Sandbox::up("nowhere");
    assert_eq!(load(&sandbox, "libaudit.so", "deny=/etc/hostname").status, 0);
    assert_eq!(load(&sandbox, "libtrace.so", "print=open:openat:write:execve").status, 0);
    let ended = sandbox.run(&[program.text(), "/etc/hostname"]);
    assert_eq!(ended.stdout, "0 opened, 0 wrong\n", "{}", ended.stderr);
    // Nor has a handler failed.
    let log = launcher(&["log", &sandbox.name]).stdout;
    assert!(!log.contains("fault"), "{log}");
    let ended = sandbox.run(&[program.text(), "/etc/services"]);
    let opened = ended.stdout.strip_suffix(" opened, 0 wrong\n").map(str::parse::<u64>);
    assert!(opened.is_some_and(|opened| opened.is_ok_and(|n| n >= 50_000)), "{}", ended.stdout);
}

#[test]
fn an_exec_that_fails_leaves_nothing_behind() {
    let program = compile("gcc", "execs_fail", &[]);
    let secret = "/etc/hostname";
    let sandbox = Sandbox::up("execs-fail");
    assert_eq!(load(&sandbox, "libthrough.so", "").status, 0);
    let denied = Sandbox::up("execs-denied");
    assert_eq!(load(&denied, "libaudit.so", &format!("deny={secret}")).status, 0);
    let bare = Sandbox::up_with("execs-carried", &["--sockets"]);
    let in_folder = |run: &dyn Fn(&[&str]) -> Ended| {
        let folder = Scratch::new("execs-fail");
        std::fs::create_dir(&folder.0).expect("a scratch folder");
        run(&[program.text(), folder.text(), secret])
    };
    let outside = in_folder(&|argv| run(Command::new(argv[0]).args(&argv[1..])));
    assert!(outside.stdout.ends_with("hello\nchild: 0\n"), "{outside:?}");
    assert_eq!(in_folder(&|argv| sandbox.run(argv)), outside);
    assert_eq!(in_folder(&|argv| bare.run(argv)), outside);
    // Nor are children past their handlers that are forked at once.
    let ended = in_folder(&|argv| denied.run(argv));
    assert_eq!(ended.stdout, outside.stdout.replace("child 100", "child 0"));
    // A handler sees no call but the program's.
    let closes = |sandbox: &Sandbox| sandbox.call(&["through.count", "3"]).stdout;
    let script = "import os\nfor i in range(9):\n try: os.execv('/etc/passwd', ['x'])\n except PermissionError: pass";
    let tries = |times: &str| {
        assert_eq!(sandbox.call(&["through.forget"]).status, 0);
        let script = script.replace('9', times);
        assert_eq!(sandbox.run(&["/usr/bin/python3", "-Sc", &script]).status, 0);
        closes(&sandbox)
    };
    assert_eq!(tries("0"), tries("9"));
}

#[test]
fn what_a_cache_answers_is_never_what_was() {
    let program = compile("gcc", "stale", &[]);
    let sandbox = Sandbox::up("stale");
    assert_eq!(load(&sandbox, "libread_cache.so", "ttl=20s").status, 0);
    let folder = Scratch::new("stale");
    std::fs::create_dir(&folder.0).expect("a scratch folder");
    let ended = sandbox.run(&[program.text(), folder.text()]);
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "0 wrong\n"), "{}", ended.stderr);
    let hits = sandbox.call(&["read_cache.count", "0"]).stdout;
    assert!(hits.trim().parse::<u64>().is_ok_and(|hits| hits > 0), "{hits}");
    // What the kernel makes up for each process is nobody else's, however it is named.
    let script =
        "for i in 1 2; do stat -L -c %i /usr/../proc/self/exe; done; ls -iL /usr/../proc/self/exe";
    let outside = run(Command::new("/bin/bash").args(["-c", script]));
    assert_eq!(sandbox.run(&["/bin/bash", "-c", script]), outside);
}

#[test]
fn audit_prints_json_of_every_path_that_a_call_has() {
    let sandbox = Sandbox::up("audited");
    assert_eq!(load(&sandbox, "libaudit.so", "deny=/etc/hostname").status, 0);
    let script = "import os, socket
for name in [b'\\0a\"b\\nc\\\\d\\xff', b'/no\\x01such\\xff\"']:
    try: socket.socket(socket.AF_UNIX).connect(name)
    except OSError: pass
def refused(call, *args, **named):
    try: call(*args, **named)
    except PermissionError: return 1
    except OSError: return 0
here = os.open('/', os.O_RDONLY)
print(refused(os.rename, '/no/such', '/etc/hostname'), refused(os.rename, '/etc/hostname', '/no/such', src_dir_fd=here),
      refused(os.link, '/etc/hostname', '/no/such'), refused(os.link, '/etc/hostnam', '/no/such'),
      refused(os.removexattr, '/etc/hostname', b'user.none', follow_symlinks=False))
";
    let ended = sandbox.run(&["/usr/bin/python3", "-Sc", script]);
    assert_eq!(ended.stdout, "1 1 1 0 1\n", "{}", ended.stderr);
    let log = launcher(&["log", &sandbox.name]).stdout;
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    let lines: Vec<Value> = lines.collect();
    let of = |call: &str| lines.iter().filter(|line| line["call"] == call).count();
    assert_eq!((of("connect"), of("rename"), of("renameat")), (2, 2, 2), "{log}");
}

#[test]
fn what_a_policy_has_nobody_to_decide_on_is_not_made() {
    let program = compile("gcc", "unasked", &[]);
    let (folder, policy) = (Scratch::new("unasked"), Scratch::new("unasked.toml"));
    std::fs::create_dir(&folder.0).expect("a scratch folder");
    let rule = "version = 1\n[[syscall]]\nnames = [\"mkdir\"]\naction = \"upcall:through.judge\"\nreason = \"r\"\n";
    std::fs::write(&policy.0, rule).expect("a scratch file");
    let through = built("libthrough.so").display().to_string();
    let run = ["run", "--ext", &through, "--policy", policy.text(), "--"];
    let ended = launcher(&[&run[..], &[program.text(), folder.text()]].concat());
    assert_eq!(
        (ended.status, ended.stdout.as_str()),
        (0, "0 in handlers, 0 in a shared memory, 0 in threads\n"),
        "{}",
        ended.stderr
    );
}

/// Stubs lie in memory that a child shares with its parent; both go on patching.
#[test]
fn each_generation_of_processes_patches_sites_of_its_own_and_mappings_stay_as_they_are() {
    let program = compile("gcc", "generations", &[]);
    let outside = run(&mut Command::new(&program.0));
    assert_eq!((outside.status, outside.stdout.as_str()), (0, "1 mappings\n"));
    let sandbox = Sandbox::up("generations");
    assert_eq!(load(&sandbox, "libthrough.so", "").status, 0);
    let ended = sandbox.run(&[program.text()]);
    assert_eq!((ended.status, &ended.stdout), (0, &outside.stdout), "{}", ended.stderr);
    let stats: Value = serde_json::from_str(&launcher(&["stats", &sandbox.name, "--json"]).stdout)
        .expect("stats prints JSON");
    // Of 60 sites each of 30 processes has inherited some, and met all; the last few generations have no areas.
    let patched = stats["sites"]["patched"].as_u64().expect("a number");
    assert!(patched > 600, "{stats}");
}
