//! Contexts are right for threads of every kind, in programs of every kind.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use ext_api::abi::Status;
use integration::{Sandbox, Scratch, built, compile, launcher, run};

fn sandbox(test: &str) -> Sandbox {
    let sandbox = Sandbox::up(test);
    sandbox.load_hello();
    sandbox
}

/// Upcalls that a process of this name has made.
fn upcalls(sandbox: &Sandbox, name: &str) -> u64 {
    let rows = sandbox.participants();
    let row = rows.iter().find(|row| row["name"] == name);
    row.and_then(|row| row["upcalls"].as_u64()).unwrap_or(0)
}

/// Every kind of thread in a program made by this compiler.
fn threads(test: &str, compiler: &str, flags: &[&str], short: u64) {
    let program = compile(compiler, "upcalls", flags);
    let sandbox = sandbox(test);
    let path = program.text();
    assert_eq!(sandbox.run(&[path, "once"]).stdout, "1\n");
    assert_eq!(sandbox.run(&[path, "raw"]).stdout, "2001\n", "both threads, and no upcall lost");
    let ended = sandbox.run(&[path, "vfork"]);
    assert_eq!(ended.stdout, "0 2003\n", "{}", ended.stderr);
    let ended = sandbox.run(&[path, "short", &short.to_string()]);
    assert_eq!(ended.stdout, format!("{}\n", short + 2003), "{}", ended.stderr);
}

#[test]
fn threads_of_a_dynamic_program_a_hundred_thousand_short_ones_among_them() {
    threads("dynamic", "cc", &[], 100_000);
}

#[test]
fn threads_of_a_static_program() {
    threads("static", "cc", &["-static"], 2_000);
}

#[test]
fn threads_of_a_static_musl_program() {
    threads("musl", "musl-gcc", &["-static"], 2_000);
}

#[test]
fn a_thread_in_the_place_of_one_that_has_ended_is_another_one() {
    for (compiler, flags) in [("cc", None), ("cc", Some("-static")), ("musl-gcc", Some("-static"))]
    {
        let program = compile(compiler, "upcalls", flags.as_slice());
        let sandbox = sandbox("reused");
        sandbox.load(&built("libfaulty.so"));
        for (handler, status) in [
            ("read_at", Status::MemoryFault),
            ("overflow", Status::StackOverflow),
            ("spin", Status::Overrun),
        ] {
            let name = format!("faulty.{handler}");
            let ended = until_restarted(&sandbox, &[program.text(), "reused", &name]);
            assert_eq!(ended, format!("same {}\n", status as u32), "{compiler} {handler}");
        }
    }
}

#[test]
fn a_thread_with_the_number_of_one_that_has_ended_is_another_one() {
    let last = std::fs::OpenOptions::new().write(true).open("/proc/sys/kernel/ns_last_pid");
    if last.is_err() {
        return println!("skipped: the next thread's number cannot be chosen here");
    }
    let program = compile("cc", "upcalls", &[]);
    let sandbox = sandbox("again");
    sandbox.load(&built("libfaulty.so"));
    for (handler, status) in [("read_at", Status::MemoryFault), ("overflow", Status::StackOverflow)]
    {
        let name = format!("faulty.{handler}");
        let ended = until_restarted(&sandbox, &[program.text(), "again", &name]);
        assert_eq!(ended, format!("same {}\n", status as u32), "{handler}");
    }
}

#[test]
fn a_fault_in_a_child_of_vfork_is_an_error_of_that_child() {
    for (compiler, flags) in [("cc", None), ("musl-gcc", Some("-static"))] {
        let program = compile(compiler, "upcalls", flags.as_slice());
        let sandbox = sandbox("borrowed");
        sandbox.load(&built("libfaulty.so"));
        for (handler, status) in
            [("read_at", Status::MemoryFault), ("overflow", Status::StackOverflow)]
        {
            let name = format!("faulty.{handler}");
            let ended = until_restarted(&sandbox, &[program.text(), "borrowed", &name]);
            assert_eq!(ended, format!("same {}\n", status as u32), "{compiler} {handler}");
        }
    }
}

/// What a program prints that begins when no extension restarts any more.
fn until_restarted(sandbox: &Sandbox, argv: &[&str]) -> String {
    let refused = format!("same {}\n", Status::Restarting as u32);
    for _ in 0..200 {
        let ended = sandbox.run(argv);
        assert_eq!(ended.status, 0, "{argv:?}: {}", ended.stderr);
        if ended.stdout != refused {
            return ended.stdout;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    refused
}

#[test]
fn a_process_in_anothers_memory_has_no_context_of_that_one() {
    let program = compile("cc", "upcalls", &[]);
    let sandbox = sandbox("shared");
    let ended = sandbox.run(&[program.text(), "shared"]);
    let expected = format!("{} 1\n", Status::NoContext as u32);
    assert_eq!(ended.stdout, expected, "{}", ended.stderr);
}

#[test]
fn a_hundred_threads_of_a_static_go_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/goroutines");
    let program = Scratch::new("goroutines");
    let built = run(Command::new("go")
        .args(["build", "-o", program.text(), "."])
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", std::env::temp_dir().join("sbx-go-cache"))
        .env("GOFLAGS", "-mod=mod")
        .current_dir(folder));
    assert_eq!(built.status, 0, "{}", built.stderr);
    let sandbox = sandbox("go");
    let ended = sandbox.run(&[program.text()]);
    assert_eq!(ended.stdout, "100000 true <nil>\n", "{}", ended.stderr);
}

#[test]
fn a_forked_child_whose_threads_all_come_at_once_joins_once() {
    let sandbox = sandbox("at-once");
    let ended = run(Command::new(built("late-caller")).args([&sandbox.name, "300"]));
    // Three threads of each make 50, and the program itself one.
    let expected = "with its children: 45001\n";
    assert_eq!((ended.status, ended.stdout.as_str()), (0, expected), "{}", ended.stderr);
    let pids = sandbox.participants().into_iter().filter_map(|row| row["pid"].as_u64());
    let mut pids: Vec<u64> = pids.collect();
    let rows = pids.len();
    pids.sort_unstable();
    pids.dedup();
    assert!(rows > 300 && pids.len() == rows, "{rows} rows for {} processes", pids.len());
}

#[test]
fn exec_while_another_thread_is_inside_an_upcall() {
    let program = compile("cc", "upcalls", &[]);
    let sandbox = sandbox("exec");
    sandbox.load(&built("libfaulty.so"));
    let ended = sandbox.run(&[program.text(), "exec"]);
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "after exec\n"), "{}", ended.stderr);
    assert!(upcalls(&sandbox, "echo") >= 1);
    // What the thread held died with it.
    let list = launcher(&["ext", "ls", &sandbox.name, "--json"]).stdout;
    assert!(list.contains("\"restarts\":1"), "{list}");
}

#[test]
fn a_handle_that_is_kept_over_an_unload_is_stale() {
    let program = compile("cc", "upcalls", &[]);
    let sandbox = sandbox("stale");
    let mut child = Command::new(built("sbx-launcher"))
        .args(["run", "--sandbox", &sandbox.name, "--", program.text(), "stale"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the launcher starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("a text"), "1");
    assert_eq!(launcher(&["ext", "unload", &sandbox.name, "hello"]).status, 0);
    // Another extension takes its place in the table.
    sandbox.load(&built("libkv_cache.so"));
    sandbox.load_hello();
    writeln!(child.stdin.take().expect("piped"), "go on").expect("it reads");
    assert_eq!(lines.next().expect("a line").expect("a text"), "status 16");
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn an_extension_in_c_without_a_c_library() {
    let flags = ["-shared", "-fPIC", "-nostdlib", "-ffreestanding", "-fno-stack-protector"];
    let image = compile("cc", "cext", &flags);
    let sandbox = Sandbox::up("cext");
    let load = ["ext", "load", &sandbox.name, image.text(), "--config", "5"];
    assert_eq!(launcher(&load).status, 0);
    assert_eq!(sandbox.call(&["cext.add", "2"]).stdout, "7\n");
    assert_eq!(sandbox.call(&["cext.twice", "abc"]).stdout, "abcabc\n");
    assert_eq!(sandbox.call(&["cext.twice", ""]).stdout, "(none)\n");
    let long = "x".repeat(50_000);
    assert_eq!(sandbox.call(&["cext.twice", &long]).stdout.len(), 100_001);
    let long = "x".repeat(100_000);
    assert_eq!(sandbox.call(&["cext.twice", &long]).stdout.len(), 200_001);
    let ended = sandbox.call(&["cext.twice", &long, &long, &long]);
    assert!(ended.status == 125 && ended.stderr.contains("too long"), "{}", ended.stderr);
}

#[test]
fn an_extension_of_a_debug_build() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = Scratch::new("debug-target");
    let cargo = run(Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--offline",
            "-p",
            "hello-upcall",
            "--target-dir",
            target.text(),
        ])
        .current_dir(root));
    assert_eq!(cargo.status, 0, "{}", cargo.stderr);
    let sandbox = Sandbox::up("debug");
    sandbox.load(&target.0.join("debug/libhello_upcall.so"));
    assert_eq!(sandbox.call(&["hello.greet", "debug"]).stdout, "hello, debug (1)\n");
    assert_ne!(sandbox.call(&["hello.fail", "why not"]).status, 0);
    assert_eq!(sandbox.call(&["hello.add", "3"]).stdout, "3\n");
}

#[test]
fn too_little_address_space_is_said() {
    let sandbox = sandbox("limit");
    let ended = sandbox.run(&["sh", "-c", "ulimit -v 1000000; exec /bin/true"]);
    assert_eq!(ended.status, 125);
    assert!(ended.stderr.contains("RLIMIT_AS"), "{}", ended.stderr);
}
