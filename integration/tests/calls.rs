//! System calls of unmodified programs, seen and changed by extensions.

use std::process::Command;

use integration::{Ended, Sandbox, Scratch, built, compile, launcher, run};
use serde_json::Value;

fn through(test: &str) -> Sandbox {
    let sandbox = Sandbox::up(test);
    sandbox.load(&built("libthrough.so"));
    sandbox
}

fn count(sandbox: &Sandbox, number: u64) -> u64 {
    let ended = sandbox.call(&["through.count", &number.to_string()]);
    ended.stdout.trim().parse().unwrap_or_else(|_| panic!("{ended:?}"))
}

const ALL: u64 = 512;

/// Run a command with a handler on every call that lets it through, and without: same end, same output.
fn same(sandbox: &Sandbox, argv: &[&str]) -> Ended {
    let before = count(sandbox, ALL);
    let inside = sandbox.run(argv);
    let outside = run(Command::new(argv[0]).args(&argv[1..]));
    assert_eq!(inside, outside, "{argv:?}");
    assert!(count(sandbox, ALL) > before, "{argv:?} made no call");
    inside
}

#[test]
fn programs_do_not_notice_a_handler_that_lets_every_call_through() {
    let sandbox = through("through-all");
    let exact = compile("cc", "exact", &[]);
    let exact_static = compile("cc", "exact", &["-static"]);
    let exact_musl = compile("musl-gcc", "exact", &["-static"]);
    for program in [&exact, &exact_static, &exact_musl] {
        let ended = same(&sandbox, &[program.text()]);
        assert_eq!((ended.status, ended.stdout.as_str()), (0, "as without\n"));
    }
    let shell = "ls /usr/bin | sort | md5sum; for i in 1 2 3; do (echo $i; exit 3); done; \
                 trap 'echo got' USR1; kill -USR1 $$; sleep 0.1 & wait; echo $?; \
                 seq 50000 | awk '{s+=$1} END {print s}' | tee /dev/null";
    same(&sandbox, &["/bin/bash", "-c", shell]);
    let python = "
import multiprocessing, os, signal, subprocess, threading, time
print(subprocess.check_output(['uname']))
def square(x): return x * x
with multiprocessing.get_context('fork').Pool(2) as pool: print(pool.map(square, range(10)))
threads = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(50)]
[t.start() for t in threads]; [t.join() for t in threads]
signal.signal(signal.SIGALRM, lambda *_: print('alarm'))
signal.setitimer(signal.ITIMER_REAL, 0.05)
time.sleep(0.2)
r, w = os.pipe()
pid = os.fork()
if not pid: os.write(w, b'hi'); os._exit(4)
print(os.read(r, 2), os.waitpid(pid, 0)[1])
";
    same(&sandbox, &["/usr/bin/python3", "-c", python]);
    let node = "const {execSync} = require('child_process'); \
                console.log(execSync('echo hi').toString()); \
                const {Worker} = require('worker_threads'); \
                new Worker('require(\"fs\").readFileSync(\"/etc/passwd\")', {eval: true}) \
                .on('exit', code => console.log('exit', code))";
    same(&sandbox, &["/usr/bin/node", "-e", node]);
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    same(&sandbox, &["git", "-C", root, "log", "--oneline", "-n", "20"]);
    let object = Scratch::new("exact.o");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/exact.c");
    same(&sandbox, &["gcc", "-O1", "-c", "-o", object.text(), source]);
}

/// A static Go program made from `text` in `folder`; its path.
fn go_program(folder: &Scratch, text: &str) -> String {
    let (source, program) = (folder.0.join("main.go"), folder.0.join("program"));
    std::fs::write(&source, text).expect("a scratch file");
    let mut go = Command::new("go");
    go.args(["build", "-o"]).arg(&program).arg(&source).env("CGO_ENABLED", "0");
    go.env("GOCACHE", folder.0.join("cache")).env("GOFLAGS", "-mod=mod").current_dir(&folder.0);
    let ended = run(&mut go);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    program.to_str().expect("a UTF-8 path").to_owned()
}

#[test]
fn a_static_go_program_is_seen_as_well() {
    let folder = Scratch::new("go-calls");
    std::fs::create_dir(&folder.0).expect("a scratch folder");
    let text = "package main\nimport (\"fmt\"; \"os\"; \"os/exec\"; \"sync\")\nfunc main() {\n\
                var wait sync.WaitGroup\nfor i := 0; i < 100; i++ {\nwait.Add(1)\n\
                go func() { defer wait.Done(); os.ReadFile(\"/etc/passwd\") }()\n}\nwait.Wait()\n\
                out, _ := exec.Command(\"echo\", \"hi\").Output()\nfmt.Print(string(out))\n}\n";
    let program = go_program(&folder, text);
    let sandbox = through("through-go");
    same(&sandbox, &[&program]);
    assert!(count(&sandbox, 257) >= 100, "openat: {}", count(&sandbox, 257));
}

/// How often the calls of a program and its children were made, as strace counts them.
fn as_strace_counts(argv: &[&str]) -> impl Fn(&str) -> u64 {
    let table = Scratch::new("strace");
    let ended = run(Command::new("strace").args(["-f", "-c", "-o", table.text()]).args(argv));
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    let table = std::fs::read_to_string(&table.0).expect("strace wrote it");
    move |name| {
        let row = table.lines().find(|line| line.split_whitespace().last() == Some(name));
        let words: Vec<&str> = row.map_or_else(Vec::new, |row| row.split_whitespace().collect());
        words.get(3).and_then(|word| word.parse().ok()).unwrap_or(0)
    }
}

#[test]
fn as_many_calls_are_seen_as_strace_sees() {
    let sandbox = through("through-strace");
    let spawner = compile("gcc", "spawner", &[]);
    let script = "for i in 1 2 3; do cat /etc/passwd | wc -l; done; (exit 3); echo $?";
    let programs: [&[&str]; 3] = [
        &["/bin/cat", "/etc/passwd", "/etc/group", "/etc/passwd"],
        // Its children run in its own memory at first.
        &[spawner.text()],
        &["/bin/dash", "-c", script],
    ];
    for argv in programs {
        let theirs = as_strace_counts(argv);
        assert_eq!(sandbox.call(&["through.forget"]).status, 0);
        assert_eq!(sandbox.run(argv).status, 0);
        for (name, number) in [
            ("read", 0),
            ("write", 1),
            ("close", 3),
            ("fstat", 5),
            ("mmap", 9),
            ("mprotect", 10),
            ("munmap", 11),
            ("brk", 12),
            ("access", 21),
            ("dup2", 33),
            ("openat", 257),
        ] {
            assert_eq!(count(&sandbox, number), theirs(name), "{name} of {argv:?}");
        }
        assert!(theirs("openat") >= 2 && theirs("mmap") >= 4, "{argv:?}");
    }
}

#[test]
fn calls_are_audited_and_refused() {
    let sandbox = Sandbox::up("audit");
    let image = built("libaudit.so");
    let image = image.to_str().expect("a UTF-8 path");
    let load = ["ext", "load", &sandbox.name, image, "--config", "deny=/etc/shadow"];
    assert_eq!(launcher(&load).status, 0);
    let ended = sandbox.run(&["cat", "/etc/hostname", "/etc/shadow"]);
    assert_eq!(ended.stderr, "cat: /etc/shadow: Permission denied\n");
    assert_eq!(ended.stdout, std::fs::read_to_string("/etc/hostname").expect("it is there"));
    let log = launcher(&["log", &sandbox.name]).stdout;
    let lines: Vec<Value> =
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |path: &str| {
        let found: Vec<&Value> = lines.iter().filter(|line| line["path"] == path).collect();
        assert_eq!(found.len(), 1, "{path}: {log}");
        (found[0]["call"].clone(), found[0]["refused"].clone())
    };
    assert_eq!(of("/etc/hostname"), ("openat".into(), false.into()));
    assert_eq!(of("/etc/shadow"), ("openat".into(), true.into()));
    assert_eq!(sandbox.call(&["audit.calls", "1"]).stdout, "1\n");
    let listed = launcher(&["ext", "ls", &sandbox.name]).stdout;
    assert!(listed.contains("before the system calls open "), "{listed}");
    for command in [&["call", "audit.touched", "16"][..], &["post", "audit.touched", "16", "--all"]]
    {
        let ended = launcher(&[&command[..1], &[&sandbox.name], &command[1..]].concat());
        assert!(ended.status == 125 && ended.stderr.contains("system calls"), "{}", ended.stderr);
    }
    // With the extension its hooks are gone; programs go on as before.
    assert_eq!(launcher(&["ext", "unload", &sandbox.name, "audit"]).status, 0);
    assert_eq!(sandbox.run(&["cat", "/etc/shadow"]).status, 0);
}

#[test]
fn one_folder_appears_as_another() {
    let folder = Scratch::new("elsewhere");
    std::fs::create_dir(&folder.0).expect("a scratch folder");
    std::fs::write(folder.0.join("one"), "here\n").expect("a scratch file");
    let sandbox = Sandbox::up("redirect");
    let image = built("libredirect.so");
    let config = format!("from=/no/such/place,to={}", folder.text());
    let image = image.to_str().expect("a UTF-8 path");
    let load = ["ext", "load", &sandbox.name, image, "--config", &config];
    assert_eq!(launcher(&load).status, 0);
    let script = "cat /no/such/place/one; echo two > /no/such/place/two; ls /no/such/place; \
                  cd /no/such/place && mv two three && stat -c %n one three; test -e /no/such/placebo";
    let ended = sandbox.run(&["/bin/bash", "-c", script]);
    let said = "here\none\ntwo\none\nthree\n";
    assert_eq!((ended.stdout.as_str(), ended.status), (said, 1), "{}", ended.stderr);
    assert_eq!(std::fs::read_to_string(folder.0.join("three")).expect("it is there"), "two\n");
}

#[test]
fn children_of_several_threads_at_once_are_asked_about_in_their_own_parents_names() {
    let folder = Scratch::new("spawned");
    std::fs::create_dir(&folder.0).expect("a scratch folder");
    for (from, to) in [("/bin/true", "program"), ("/bin/false", "file")] {
        std::fs::copy(from, folder.0.join(to)).expect("a scratch file");
    }
    let program = compile("gcc", "spawns", &[]);
    let program_static = compile("musl-gcc", "spawns", &["-static"]);
    let sandbox = Sandbox::up("spawned");
    let image = built("libredirect.so");
    let config = format!("from=/no/such/place,to={}", folder.text());
    assert_eq!(load(&sandbox, image.to_str().expect("a UTF-8 path"), &config).status, 0);
    for program in [&program, &program_static] {
        for threads in ["2", "7"] {
            let argv =
                [program.text(), threads, "20", "/no/such/place/program", "/no/such/place/file"];
            let ended = sandbox.run(&argv);
            assert_eq!((ended.status, ended.stdout.as_str()), (0, "0 failed\n"), "{ended:?}");
        }
    }
}

#[test]
fn children_of_a_process_that_cannot_look_into_proc_are_asked_about() {
    const RMDIR: u64 = 84;
    let folder = Scratch::new("root");
    std::fs::create_dir(&folder.0).expect("a scratch folder");
    let program = compile("gcc", "unseen", &[]);
    let sandbox = through("through-unseen");
    let ended = sandbox.run(&[program.text()]);
    assert_eq!((ended.status, count(&sandbox, RMDIR)), (0, 15), "{ended:?}");
    let ended = sandbox.run(&[program.text(), folder.text()]);
    assert_eq!((ended.status, count(&sandbox, RMDIR)), (0, 30), "{ended:?}");
}

#[test]
fn what_is_wrong_with_a_hook_is_said() {
    let sandbox = Sandbox::up("bad-hook");
    let ended = launcher(&[
        "ext",
        "load",
        &sandbox.name,
        built("libredirect.so").to_str().expect("a path"),
    ]);
    assert!(ended.status == 125 && ended.stderr.contains("from=/one/folder"), "{}", ended.stderr);
}

#[test]
fn no_way_to_make_a_call_escapes() {
    let sandbox = through("through-escapes");
    for flags in [&[][..], &["-static"]] {
        let program = compile("gcc", "escapes", flags);
        assert_eq!(sandbox.call(&["through.forget"]).status, 0);
        let ended = sandbox.run(&[program.text()]);
        assert_eq!(ended.status, 0, "{}{}", ended.stdout, ended.stderr);
        let made: u64 = ended.stdout.trim().parse().expect("a number");
        assert_eq!(count(&sandbox, 110), made);
    }
    // Code that comes and goes, and filters of the program's own.
    let program = compile("gcc", "later", &["-w"]);
    let made = run(&mut Command::new(&program.0)).stdout;
    assert_eq!(sandbox.call(&["through.forget"]).status, 0);
    let ended = sandbox.run(&[program.text()]);
    assert_eq!((ended.status, &ended.stdout), (0, &made), "{}", ended.stderr);
    assert_eq!(count(&sandbox, 110).to_string(), made.trim());
    // What libos does for a program it does not do to itself.
    let program = compile("gcc", "region", &[]);
    let unhooked = Sandbox::up("unhooked");
    for sandbox in [&sandbox, &unhooked] {
        let ended = sandbox.run(&[program.text()]);
        assert_eq!((ended.status, ended.stdout.as_str()), (0, "all refused\n"), "{}", ended.stderr);
    }
    // By another architecture's entry there is no way in at all.
    let source = Scratch::new("old.c");
    let text = "int main(void) { long r; __asm__ volatile(\"int $0x80\" : \"=a\"(r) : \"a\"(64)); return 0; }";
    std::fs::write(&source.0, text).expect("a scratch file");
    let program = Scratch::new("old");
    let ended = run(Command::new("gcc").args(["-x", "c", source.text(), "-o", program.text()]));
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    assert_eq!(sandbox.run(&[program.text()]).status, 128 + 31);
}

#[test]
fn a_child_that_a_handler_forks_in_the_middle_of_a_carried_write_leaves_it_to_its_parent() {
    let program = compile("gcc", "forked_sends", &[]);
    // Without a random layout, the stack ends a few KiB above the call.
    for (layout, kind) in [("", "pair"), ("", "pipe"), ("-R", "pair"), ("-R", "pipe")] {
        let sandbox = Sandbox::up_with(&format!("forked{layout}-{kind}"), &["--sockets"]);
        let plain = [program.text(), kind, "1000"];
        let ended = match layout {
            "" => sandbox.run(&plain),
            _ => sandbox.run(&[&["setarch", layout][..], &plain].concat()),
        };
        let words = ended.stdout.split_whitespace().map(|word| word.parse().expect("a number"));
        let words: Vec<u64> = words.collect();
        let [1, wrong, forks, wrote] = words[..] else { panic!("{ended:?}") };
        // A child whose handler came just before its write began makes that, beside its parent's; no other does.
        let is_own = wrong == 0 || wrote != 0;
        let few = forks > 20 && wrote * 10 < forks && wrong <= wrote * 16;
        assert!(few && is_own, "{layout} {kind}: {ended:?}");
    }
}

/// Calls from patched sites, and by a trap.
fn came(sandbox: &Sandbox) -> (u64, u64) {
    let stats: Value = serde_json::from_str(&launcher(&["stats", &sandbox.name, "--json"]).stdout)
        .expect("stats prints JSON");
    let number = |how: &str| stats["calls"][how].as_u64().expect("a number");
    (number("patched"), number("trapped"))
}

#[test]
fn sites_are_patched_while_threads_execute_them() {
    for kind in ["-DTHREADED", "-static", "-DVFORKED"] {
        let program = compile("gcc", "sites", &["-O1", "-w", "-pthread", kind]);
        let made: u64 = run(&mut Command::new(&program.0)).stdout.trim().parse().expect("a number");
        let sandbox = through("through-sites");
        for turn in 1..=20 {
            let ended = sandbox.run(&[program.text()]);
            assert_eq!(ended.stdout.trim(), made.to_string(), "{ended:?}");
            assert_eq!(count(&sandbox, 110), made * turn);
        }
        let (patched, trapped) = came(&sandbox);
        // Until the last site is patched the threads trap each other's turns.
        assert!(patched > trapped, "{patched} patched, {trapped} trapped");
    }
}

#[test]
fn threads_that_meet_a_site_at_once_patch_it_once() {
    let program = compile("gcc", "rush", &["-O1", "-pthread"]);
    let native = run(&mut Command::new(&program.0));
    assert_eq!((native.status, native.stdout.as_str()), (0, "24000\n"));
    let sandbox = through("through-rush");
    for _ in 0..20 {
        assert_eq!(sandbox.run(&[program.text()]), native);
    }
}

#[test]
fn a_handler_that_interrupts_the_first_call_of_a_site_has_the_programs_stack() {
    let program = compile("gcc", "deep", &[]);
    let native = run(&mut Command::new(&program.0));
    assert!(native.stdout.ends_with("9 9\n"), "{native:?}");
    assert_eq!(through("through-deep").run(&[program.text()]), native);
    let carrying = Sandbox::up_with("carried-deep", &["--sockets"]);
    assert_eq!(carrying.run(&[program.text()]), native);
}

/// Four threads that read files.
const JAVA: &str = "import java.nio.file.*;
class Share {
    static void work() {
        try {
            for (int n = 0; n < 5000; n++) Files.readString(Path.of(\"/etc/hostname\"));
        } catch (java.io.IOException error) { System.exit(1); }
    }
    public static void main(String[] words) throws Exception {
        Thread[] threads = new Thread[4];
        for (int i = 0; i < 4; i++) (threads[i] = new Thread(Share::work)).start();
        for (Thread thread : threads) thread.join();
    }
}";

#[test]
fn most_calls_come_from_patched_sites() {
    let sandbox = through("through-share");
    let python = "import os, threading
def work():
    for i in range(3000):
        with open('/etc/hostname') as f: f.read()
        os.stat('/'); os.getppid()
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]";
    let folder = Scratch::new("go-share");
    std::fs::create_dir(&folder.0).expect("a scratch folder");
    let go = go_program(
        &folder,
        "package main\nimport (\"os\"; \"sync\")\nfunc main() {\nvar wait sync.WaitGroup\n\
         for i := 0; i < 8; i++ {\nwait.Add(1)\ngo func() { defer wait.Done()\n\
         for i := 0; i < 3000; i++ { os.ReadFile(\"/etc/hostname\"); os.Getppid() } }()\n}\n\
         wait.Wait()\n}\n",
    );
    let java = folder.0.join("Share.java");
    std::fs::write(&java, JAVA).expect("a scratch file");
    let java = java.to_str().expect("a UTF-8 path");
    let programs: [(&str, &[&str]); 6] = [
        ("python", &["/usr/bin/python3", "-c", python]),
        ("go", &[&go]),
        ("java", &["java", java]),
        ("find", &["find", "/usr/share", "-xdev", "-size", "-0"]),
        ("dd", &["dd", "if=/dev/zero", "of=/dev/null", "bs=512", "count=50000"]),
        ("node", &["/usr/bin/node", "-e", "for (let i = 0; i < 20000; i++) fs.statSync('/')"]),
    ];
    for (name, argv) in programs {
        let before = came(&sandbox);
        assert_eq!(sandbox.run(argv).status, 0, "{name}");
        let after = came(&sandbox);
        let (patched, trapped) = (after.0 - before.0, after.1 - before.1);
        let share = patched as f64 / (patched + trapped) as f64;
        println!("{name}: {patched} from patched sites, {trapped} by a trap");
        assert!(share > 0.99, "{name}: {patched} from patched sites, {trapped} by a trap");
    }
}

#[test]
fn trace_prints_what_strace_prints() {
    let calls = "openat,read,write,close,connect";
    let file = Scratch::new("trace");
    let argv = ["/usr/bin/env", "-i", "/bin/sh", "-c", "cat /etc/hostname /nope; exit 3"];
    let trace = ["trace", "--calls", calls, "--out", file.text(), "--"];
    let ended = launcher(&[&trace[..], &argv].concat());
    assert_eq!(ended.status, 3, "{}", ended.stderr);
    let ours = std::fs::read_to_string(&file.0).expect("trace wrote it");
    let strace = ["-f", "-e", &format!("trace={calls}"), "-o", file.text()];
    assert_eq!(run(Command::new("strace").args(strace).args(argv)).status, 3);
    let theirs = std::fs::read_to_string(&file.0).expect("strace wrote it");
    // Without pids and times.
    let line = |line: &str| {
        let call = line.split_once(' ').map_or("", |(_, call)| call.trim());
        let call = call.split(" <").next().unwrap_or("");
        call.split(" (").next().unwrap_or("").split_whitespace().collect::<String>()
    };
    let of = |text: &str, start: &str| -> Vec<String> {
        text.lines().map(line).filter(|call| call.starts_with(start)).collect()
    };
    for start in ["openat", "close", "write"] {
        assert_eq!(of(&ours, start), of(&theirs, start), "{start} {}", ended.stderr);
    }
    assert!(ours.contains("openat(AT_FDCWD, \"/nope\", O_RDONLY) = -1 ENOENT <"), "{ours}");
    assert!(ours.contains("+++ ended with status 3 +++"), "{ours}");
    // Words that are made of names.
    let calls = "mmap,mprotect,access";
    let names = |text: &str| -> Vec<String> {
        let is_name = |letter: &char| letter.is_ascii_uppercase() || "_|".contains(*letter);
        let args = text.lines().map(|line| line.split(" = ").next().unwrap_or(""));
        args.map(|line| line.chars().filter(is_name).collect()).collect()
    };
    assert_eq!(
        launcher(&["trace", "-e", calls, "-o", file.text(), "--", "/bin/cat", "/dev/null"]).status,
        0
    );
    let ours = std::fs::read_to_string(&file.0).expect("trace wrote it");
    let strace = ["-e", &format!("trace={calls}"), "-o", file.text(), "/bin/cat", "/dev/null"];
    assert_eq!(run(Command::new("strace").args(strace)).status, 0);
    let theirs = std::fs::read_to_string(&file.0).expect("strace wrote it");
    let is_call = |line: &String| line.contains("PROT_") || line.contains("_OK");
    let [ours, theirs] =
        [ours, theirs].map(|text| names(&text).into_iter().filter(is_call).collect::<Vec<_>>());
    assert!(ours.len() > 5 && ours == theirs, "{ours:?}\n{theirs:?}");
    // A path that takes several pieces of the queue.
    let long = format!("/no{}", "/such-folder".repeat(15));
    let trace = ["trace", "-e", "openat", "-o", file.text(), "--", "/bin/cat", &long];
    assert_eq!(launcher(&trace).status, 1);
    let text = std::fs::read_to_string(&file.0).expect("trace wrote it");
    assert!(text.contains(&format!("\"{long}\", O_RDONLY) = -1 ENOENT <")), "{text}");
    // Into a file: on standard error the program's own text comes between.
    let trace = ["trace", "-e", "openat", "--json", "-o", file.text(), "--", "/bin/cat", "/nope"];
    assert_eq!(launcher(&trace).status, 1);
    let json = std::fs::read_to_string(&file.0).expect("trace wrote it");
    let seen = json.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let nope = seen.into_iter().find(|call| call["args"][1] == "\"/nope\"");
    assert_eq!(nope.map(|call| call["result"].clone()), Some(Value::from(-2)), "{json}");
    let table = launcher(&["trace", "--count", "--json", "--", "cat", "/etc/hostname"]).stderr;
    let table: Value = serde_json::from_str(&table).expect("a table in JSON");
    let of = |name| table.as_array()?.iter().find(|row| row["call"] == name)?["calls"].as_u64();
    assert_eq!(of("write"), Some(1), "{table}");
    let ended = launcher(&["trace", "--calls", "openat,nope", "--", "true"]);
    assert!(ended.status == 125 && ended.stderr.contains("nope"), "{}", ended.stderr);
}

#[test]
fn trace_and_its_command_write_to_one_file_and_over_nobody() {
    let both = Scratch::new("trace-both");
    let file = std::fs::File::create(&both.0).expect("a scratch file");
    let says = "for n in 1 2 3; do echo says$n >&2; cd /; sleep 0.05; done";
    let mut command = Command::new(built("sbx-launcher"));
    command.args(["trace", "-e", "chdir", "--", "/bin/sh", "-c", says]).stderr(file);
    assert!(command.status().expect("it starts").success());
    let text = std::fs::read_to_string(&both.0).expect("both wrote it");
    let is_whole =
        |line: &str| line.starts_with("says") && line.len() == 5 || line.starts_with('[');
    assert!(text.lines().all(is_whole), "{text}");
    let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
    assert_eq!((count("says"), count("chdir(\"/\") = 0")), (3, 3), "{text}");
    // Files that a configuration, or another process, has no name for.
    let named = Scratch::new("trace,named");
    assert_eq!(launcher(&["trace", "-e", "openat", "-o", named.text(), "--", "true"]).status, 0);
    let script = format!(
        "'{}' trace -e openat -o /dev/fd/9 -- true 9>'{}'",
        built("sbx-launcher").display(),
        both.text()
    );
    assert_eq!(run(Command::new("sh").args(["-c", &script])).status, 0);
    for file in [&named, &both] {
        let text = std::fs::read_to_string(&file.0).expect("trace wrote it");
        assert!(text.contains("openat(") && text.contains("+++ ended"), "{text}");
    }
}

#[test]
fn what_is_traced_is_written_when_trace_says_that_it_is() {
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;
    const O_NONBLOCK: i32 = 0o4000;
    let pipe = Scratch::new("trace-pipe");
    assert_eq!(run(Command::new("mkfifo").arg(&pipe.0)).status, 0);
    let sandbox = Sandbox::up("trace-pipe");
    let config = format!("print=chdir,out={}", pipe.text());
    let mut options = std::fs::OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(O_NONBLOCK);
    let pipe = options.open(&pipe.0).expect("a pipe");
    assert_eq!(load(&sandbox, "libtrace.so", &config).status, 0);
    let mut room = [0; 4096];
    let mut read = || (&pipe).read(&mut room).map(|len| room[..len].to_vec()).ok();
    let pause = || std::thread::sleep(std::time::Duration::from_millis(200));
    let python = "import os, time; os.chdir('/'); time.sleep(0.6); os.chdir('/tmp'); time.sleep(1)";
    let text = std::thread::scope(|scope| {
        scope.spawn(|| sandbox.run(&["/usr/bin/python3", "-c", python]));
        // It has begun, and is written of.
        while read().is_none() {}
        while (&pipe).write(b"\n").is_ok() {}
        // What it does next, one process takes from the queue, and waits for room to write it.
        (0..5).for_each(|_| pause());
        let flush = scope.spawn(|| sandbox.call(&["trace.flush"]));
        pause();
        assert!(!flush.is_finished(), "it says that all is written");
        let mut text = Vec::new();
        while !flush.is_finished() {
            text.extend(read().unwrap_or_default());
        }
        let ended = flush.join().expect("it ends");
        assert_eq!((ended.status, ended.stdout.as_str()), (0, "0\n"), "{}", ended.stderr);
        text.extend(std::iter::from_fn(read).flatten());
        text
    });
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("chdir(\"/tmp\") = 0 <"), "{text}");
}

/// Load an extension with a configuration.
fn load(sandbox: &Sandbox, image: &str, config: &str) -> Ended {
    let image = built(image);
    let image = image.to_str().expect("a UTF-8 path");
    launcher(&["ext", "load", &sandbox.name, image, "--config", config])
}

#[test]
fn calls_fail_when_they_are_told_to() {
    let shell = |rules: &str, script: &str| {
        let sandbox = Sandbox::up("faults");
        assert_eq!(load(&sandbox, "libfaults.so", rules).status, 0);
        let ended = sandbox.run(&["/bin/bash", "-c", script]);
        (ended, sandbox.call(&["faults.hits", "0"]).stdout.trim().to_owned())
    };
    let (ended, hits) = shell("rules=write:2:ENOSPC", "echo one; echo two; echo three");
    assert_eq!((ended.stdout.as_str(), hits.as_str()), ("one\nthree\n", "1"), "{}", ended.stderr);
    // Each rule counts what the one before has failed: the second write is the shell's complaint about the first.
    let (ended, _) = shell("rules=write:1:EIO+write:2:ENOSPC", "echo one; echo two; echo three");
    assert_eq!(ended.stdout, "two\nthree\n", "{}", ended.stderr);
    // A program that is right goes on after each short transfer.
    let copy = "head -c 100000 /dev/urandom > a; cp a b; cmp a b && md5sum < a > c; md5sum -c - < \
                <(sed 's/-/b/' c)";
    let folder = Scratch::new("faults");
    std::fs::create_dir(&folder.0).expect("a scratch folder");
    let script = format!("cd {}; {copy}", folder.text());
    let (ended, hits) = shell("rules=read:~30:short100+write:~30:short77", &script);
    assert_eq!((ended.stdout.as_str(), ended.status), ("b: OK\n", 0), "{}", ended.stderr);
    assert!(hits.parse::<u64>().is_ok_and(|hits| hits > 0), "{hits}");
    // Nothing is refused but what the rule names.
    let (ended, _) =
        shell("rules=openat:*:EACCES,path=/services", "cat /etc/services /etc/hostname");
    assert!(ended.stderr.contains("/etc/services: Permission denied"), "{}", ended.stderr);
    assert_eq!(ended.stdout, std::fs::read_to_string("/etc/hostname").expect("it is there"));
    let began = std::time::Instant::now();
    let (_, hits) = shell("rules=unlinkat:*:200ms", "rm -f /tmp/sbx-nothing");
    assert_eq!(hits, "1");
    assert!(began.elapsed() >= std::time::Duration::from_millis(200));
    let sandbox = Sandbox::up("faults-bad");
    for rules in ["", "rules=write", "rules=none:1:EIO", "rules=read:x:EIO", "rules=read:1:ENOWAY"]
    {
        let ended = load(&sandbox, "libfaults.so", rules);
        assert!(ended.status == 125 && ended.stderr.contains("rules"), "{rules}: {}", ended.stderr);
    }
}

#[test]
fn a_fleet_asks_once() {
    let folder = Scratch::new("fleet");
    std::fs::create_dir(&folder.0).expect("a scratch folder");
    let sandbox = Sandbox::up("fleet");
    assert_eq!(load(&sandbox, "libread_cache.so", "ttl=20s").status, 0);
    let python = "import json, asyncio, email; print(len(json.dumps(list(range(99)))))";
    let hits = || -> u64 {
        sandbox.call(&["read_cache.count", "0"]).stdout.trim().parse().expect("a number")
    };
    let first = sandbox.run(&["/usr/bin/python3", "-c", python]);
    let before = hits();
    assert_eq!(sandbox.run(&["/usr/bin/python3", "-c", python]), first);
    assert!(hits() > before + 50, "{before}, then {}", hits());
    // What a participant changes is seen at once.
    let script = format!(
        "cd {}; f=$PWD/f; stat -c %s $f; stat -c %s $f; echo hello > $f; stat -c %s $f; stat -c %a $f; \
         chmod 600 $f; stat -c %a $f; mv $f $PWD/g; [ -e $f ] || echo gone; stat -c %s $PWD/g; rm $PWD/g; \
         [ -e $PWD/g ] || echo gone",
        folder.text()
    );
    let inside = sandbox.run(&["/bin/bash", "-c", &script]);
    let outside = run(Command::new("/bin/bash").args(["-c", &script]));
    assert_eq!(inside, outside);
}

#[test]
fn hooked_programs_can_be_traced_from_outside() {
    let sandbox = through("through-traced");
    let flag = Scratch::new("traced");
    let program = format!(
        "import os, time; n = 0
while not os.path.exists('{}'): os.stat('/'); os.getppid(); n += 1
print('went on', n > 100)",
        flag.text()
    );
    let pids = || -> Vec<u64> {
        let rows = sandbox.participants();
        let python = rows.iter().filter(|row| row["name"] == "python3" && row["state"] == "live");
        python.filter_map(|row| row["pid"].as_u64()).collect()
    };
    let name = sandbox.name.clone();
    let running = std::thread::spawn(move || {
        launcher(&["run", "--sandbox", &name, "--", "/usr/bin/python3", "-c", &program])
    });
    let pid = loop {
        match pids().first() {
            Some(pid) => break pid.to_string(),
            None => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    };
    let strace = run(Command::new("timeout").args(["1", "strace", "-f", "-c", "-p", &pid]));
    assert!(strace.stderr.contains("newfstatat"), "{}", strace.stderr);
    let gdb = run(Command::new("gdb").args(["-q", "-batch", "-p", &pid, "-ex", "bt 3"]));
    assert!(gdb.stdout.contains("detached"), "{} {}", gdb.stdout, gdb.stderr);
    std::fs::write(&flag.0, "").expect("a scratch file");
    let ended = running.join().expect("the program ran");
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "went on True\n"), "{}", ended.stderr);
    // From inside it is refused: what is traced cannot be joined to the sandbox.
    let ended = sandbox.run(&["strace", "-o", "/dev/null", "/bin/true"]);
    assert!(ended.status != 0 && ended.stderr.contains("not permitted"), "{ended:?}");
}

#[test]
fn a_policy_has_a_handler_decide() {
    let rule = |names: &str, action: &str| {
        format!(
            "version = 1\n[[syscall]]\nnames = [{names}]\naction = \"{action}\"\nreason = \"r\"\n"
        )
    };
    let policy = Scratch::new("policy.toml");
    let folder = Scratch::new("decided");
    let script = format!(
        "mkdir {0} {0}/allowed {0}/forbidden {0}/panics; ls {0}; cat /etc/hostname > /dev/null && echo read",
        folder.text()
    );
    let through = built("libthrough.so");
    let through = through.to_str().expect("a UTF-8 path");
    let text = rule("\"mkdir\", \"mkdirat\"", "upcall:through.judge");
    std::fs::write(&policy.0, text).expect("a scratch file");
    let run = ["run", "--ext", through, "--policy", policy.text(), "--", "/bin/sh", "-c", &script];
    let ended = launcher(&run);
    // A handler that fails has not allowed it.
    assert_eq!(ended.stdout, "allowed\nread\n", "{}", ended.stderr);
    assert!(
        ended.stderr.contains("forbidden’: Permission denied")
            || ended.stderr.contains("Permission denied")
    );
    assert!(ended.stderr.contains("not permitted"), "{}", ended.stderr);
    let shown = launcher(&["policy", "show", policy.text()]).stdout;
    assert!(shown.contains("upcall:through.judge"), "{shown}");
    let sandbox = Sandbox::up("decided");
    let named = ["run", "--sandbox", &sandbox.name, "--policy", policy.text(), "--", "/bin/true"];
    assert!(launcher(&named).stderr.contains("through.judge is not loaded"));
    sandbox.load(&built("libthrough.so"));
    assert_eq!(launcher(&named).status, 0);
    let ended = launcher(&["ext", "unload", &sandbox.name, "through"]);
    assert!(ended.status == 125 && ended.stderr.contains("policy"), "{}", ended.stderr);
    for (names, action, why) in [
        ("\"fork\"", "upcall:through.judge", "no handler can be asked about fork"),
        ("\"mkdir\"", "upcall:judge", "EXTENSION.HANDLER"),
        ("\"mkdir\"", "upcall:through.count", "no handler for system calls"),
    ] {
        std::fs::write(&policy.0, rule(names, action)).expect("a scratch file");
        let run = ["run", "--ext", through, "--policy", policy.text(), "--", "/bin/true"];
        let ended = launcher(&run);
        assert!(ended.status == 125 && ended.stderr.contains(why), "{}", ended.stderr);
    }
}

#[test]
fn programs_that_are_executed_are_seen_and_refused() {
    let sandbox = Sandbox::up("execs");
    assert_eq!(load(&sandbox, "libaudit.so", "deny=/bin/ls").status, 0);
    let spawner = compile("gcc", "spawner", &[]);
    let script = format!("/bin/ls /; echo $?; /bin/echo hi; {}; /bin/ls | cat", spawner.text());
    let ended = sandbox.run(&["/usr/bin/env", "-i", "/bin/bash", "-c", &script]);
    assert_eq!((ended.stdout.as_str(), ended.status), ("126\nhi\nall started\n", 0));
    let log = launcher(&["log", &sandbox.name]).stdout;
    let executed = |path: &str| {
        let line = format!("\"call\":\"execve\",\"path\":\"{path}\"");
        log.lines().filter(|text| text.contains(&line)).count()
    };
    // Five by posix_spawn, five by vfork.
    assert_eq!(
        (executed("/bin/true"), executed("/bin/echo"), executed("/bin/ls")),
        (10, 1, 2),
        "{log}"
    );
    let file = Scratch::new("execs");
    let trace = [
        "trace",
        "-e",
        "execve",
        "-o",
        file.text(),
        "--",
        "/bin/bash",
        "-c",
        "env true; ./no; true",
    ];
    assert_eq!(launcher(&trace).status, 0);
    let text = std::fs::read_to_string(&file.0).expect("trace wrote it");
    assert!(text.contains("execve(\"/usr/bin/env\", "), "{text}");
    assert!(text.contains(") = ?\n") && text.contains("= -1 ENOENT"), "{text}");
    // A script without a first line, a name that is looked for, one that is not there.
    let script = Scratch::new("script");
    std::fs::write(&script.0, "echo from $0 $1\n").expect("a scratch file");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script.0, mode).expect("a scratch file");
    let ended = sandbox.run(&[script.text(), "one"]);
    assert_eq!(ended.stdout, format!("from {} one\n", script.text()), "{}", ended.stderr);
    assert_eq!(sandbox.run(&["no-such-program"]).status, 127);
    assert_eq!(sandbox.run(&["/etc/services"]).status, 126);
}
