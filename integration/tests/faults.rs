//! What an extension can do wrong, and what it does not take down with it.

use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use integration::{Ended, Sandbox, Scratch, built, compile, launcher, run};

fn with_faulty(test: &str) -> Sandbox {
    let sandbox = Sandbox::up(test);
    load_faulty(&sandbox);
    sandbox
}

fn load_faulty(sandbox: &Sandbox) {
    sandbox.load(&built("libfaulty.so"));
}

fn caller(sandbox: &Sandbox, what: &str) -> Ended {
    let program = built("faulty-caller");
    sandbox.run(&[program.to_str().expect("a UTF-8 path"), what])
}

/// A call, tried again while the extension restarts.
fn count(sandbox: &Sandbox) -> String {
    let start = Instant::now();
    loop {
        let ended = sandbox.call(&["faulty.count"]);
        if ended.status == 0 {
            return ended.stdout;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{}", ended.stderr);
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn every_fault_is_an_error_of_its_caller_and_the_process_goes_on() {
    let sandbox = with_faulty("every");
    let ended = caller(&sandbox, "every");
    let expected = "read: MemoryFault\nwrite: MemoryFault\njump: MemoryFault\n\
                    overflow: StackOverflow\nillegal: IllegalInstruction\n\
                    trap: IllegalInstruction\ndivide: Arithmetic\nabort: Aborted\n\
                    panic: Panicked\nthen: ok\n";
    assert_eq!((ended.status, ended.stdout.as_str()), (0, expected), "{}", ended.stderr);
}

#[test]
fn a_program_keeps_its_own_signal_handlers_and_stacks() {
    let program = compile("cc", "own_signals", &[]);
    let native = run(&mut Command::new(&program.0));
    assert_eq!(native.status, 128 + 11);
    let path = program.text();
    let sandbox = with_faulty("own");
    for argv in [vec![path], vec![path, "upcalls"]] {
        let ended = sandbox.run(&argv);
        assert_eq!(ended.stdout, native.stdout, "{}", ended.stderr);
        assert_eq!(ended.status, native.status);
    }
}

#[test]
fn an_overrun_is_stopped_even_if_its_thread_blocks_every_signal() {
    let sandbox = with_faulty("overrun");
    assert_eq!(caller(&sandbox, "spin").stdout, "Overrun\n");
    count(&sandbox);
    assert_eq!(caller(&sandbox, "blocked-spin").stdout, "Overrun\n");
}

#[test]
fn a_thread_that_gets_no_cpu_is_stopped_once_it_has_one() {
    let hog = ["-c", "0", "chrt", "-f", "10", "sh", "-c", "ulimit -t 6; while :; do :; done"];
    if run(Command::new("chrt").args(["-f", "10", "true"])).status != 0 {
        return println!("skipped: no real-time priorities here");
    }
    let sandbox = with_faulty("no-cpu");
    let program = built("faulty-caller");
    let argv = ["taskset", "-c", "0", program.to_str().expect("a UTF-8 path"), "blocked-spin"];
    let hogs = thread::spawn(move || {
        thread::sleep(Duration::from_millis(60));
        let _hog = Hog(Command::new("taskset").args(hog).spawn().expect("taskset"));
        thread::sleep(Duration::from_secs(4));
    });
    let ended = sandbox.run(&argv);
    hogs.join().expect("no panic");
    assert_eq!(ended.stdout, "Overrun\n", "{}", ended.stderr);
}

#[test]
fn an_upcall_that_sleeps_for_too_long_is_stopped() {
    let sandbox = with_faulty("stuck");
    assert_eq!(caller(&sandbox, "sleep").stdout, "Stuck\n");
}

struct Hog(Child);

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_overloaded_machine_kills_no_innocent_upcall() {
    let hog = |_| Hog(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("sh"));
    let _hogs: Vec<Hog> = (0..4).map(hog).collect();
    let sandbox = with_faulty("hogs");
    let ended = caller(&sandbox, "work");
    assert_eq!(ended.stdout, "0 failed\n", "{}", ended.stderr);
}

#[test]
fn a_lock_of_std_that_died_with_its_holder_is_gone_after_the_restart() {
    let sandbox = with_faulty("lock");
    assert_eq!(caller(&sandbox, "lock").stdout, "Aborted\nok\n");
}

#[test]
fn a_restarted_extension_begins_anew_and_one_that_fails_again_and_again_is_kept_away() {
    let sandbox = with_faulty("restart");
    assert_eq!((count(&sandbox).as_str(), count(&sandbox).as_str()), ("1\n", "2\n"));
    assert_ne!(sandbox.call(&["faulty.abort"]).status, 0);
    assert_eq!(count(&sandbox), "1\n");
    let mut said = String::new();
    for _ in 0..200 {
        said = sandbox.call(&["faulty.abort"]).stderr;
        if said.contains("Quarantined") {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    assert!(said.contains("Quarantined"), "{said}");
    let list = launcher(&["ext", "ls", &sandbox.name, "--json"]).stdout;
    assert!(list.contains("\"state\":\"quarantined\""), "{list}");
    assert_eq!(count(&sandbox), "1\n");
}

#[test]
fn an_extension_is_unloaded_under_an_upcall_and_its_name_is_free_at_once() {
    let sandbox = with_faulty("unload");
    let inside = thread::scope(|scope| {
        let inside = scope.spawn(|| caller(&sandbox, "sleep"));
        thread::sleep(Duration::from_millis(200));
        assert_eq!(launcher(&["ext", "unload", &sandbox.name, "faulty"]).status, 0);
        assert!(sandbox.call(&["faulty.count"]).stderr.contains("no handler named"));
        load_faulty(&sandbox);
        assert_eq!(count(&sandbox), "1\n");
        inside.join().expect("the caller does not panic")
    });
    assert_eq!(inside.stdout, "Restarting\n", "what was inside is told to try again");
}

#[test]
fn what_an_extension_must_not_do_is_refused_by_name() {
    let sandbox = with_faulty("forbidden");
    let said = |handler: &str| sandbox.call(&[handler]).stderr;
    assert!(said("faulty.spawn").contains("pthread_create is refused"), "{}", said("faulty.spawn"));
    assert_eq!(sandbox.call(&["faulty.environment"]).stdout, "0\n");
    let missing = said("faulty.missing");
    assert!(missing.contains("MissingImport") && missing.contains("chroot"), "{missing}");
    count(&sandbox);
    let command = said("faulty.command");
    assert!(command.contains("MissingImport") || command.contains("is refused"), "{command}");
}

#[test]
fn a_file_belongs_to_the_process_that_opened_it() {
    let sandbox = with_faulty("files");
    let program = built("faulty-caller");
    let ended = sandbox.run(&[program.to_str().expect("a UTF-8 path"), "file"]);
    let expected = "Ok(4)\nchild: bad file descriptor (it belongs to the process that opened it) \
                    (os error 9)\n";
    assert_eq!(ended.stdout, expected, "{}", ended.stderr);
}

#[test]
fn paths_are_resolved() {
    let sandbox = Sandbox::up("paths");
    sandbox.load(&built("libledger.so"));
    let said = sandbox.call(&["ledger.real_path", "/usr/./bin/../lib/"]);
    assert_eq!(said.stdout, "/usr/lib\n", "{}", said.stderr);
    let said = sandbox.call(&["ledger.real_path", "/not/there"]);
    assert!(said.status != 0 && said.stderr.to_lowercase().contains("no such file"), "{said:?}");
}

/// `contained.c`, which has an extension fail somewhere.
struct Contained(Scratch);

impl Contained {
    fn new() -> Self {
        Self(compile("cc", "contained", &[]))
    }

    /// It in a sandbox of its own: an extension that fails often is kept away.
    fn alone(&self, argv: &[&str]) -> Ended {
        self.run(&sandbox_to_fail_in(), argv)
    }

    /// As [`Self::alone`], where every system call is hooked, and a handler fails that is asked about one.
    fn asked(&self, argv: &[&str]) -> Ended {
        let sandbox = sandbox_to_fail_in();
        let image = built("libunsteady.so");
        let image = image.to_str().expect("a UTF-8 path");
        let loaded = launcher(&["ext", "load", &sandbox.name, image, "--config", "fail=121"]);
        assert_eq!(loaded.status, 0, "{}", loaded.stderr);
        self.run(&sandbox, argv)
    }

    fn run(&self, sandbox: &Sandbox, argv: &[&str]) -> Ended {
        sandbox.run(&[&[self.0.text()], argv].concat())
    }
}

fn sandbox_to_fail_in() -> Sandbox {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let sandbox = with_faulty(&format!("contained-{}", COUNT.fetch_add(1, Relaxed)));
    sandbox.load_hello();
    sandbox
}

/// It ends as a status of its caller each time, and the program goes on to its end.
fn is_contained(ended: &Ended, lines: &[&str]) {
    let expected: String = lines.iter().chain(&["end"]).map(|line| format!("{line}\n")).collect();
    assert_eq!((ended.status, ended.stdout.as_str()), (0, expected.as_str()), "{}", ended.stderr);
}

const READ: [&str; 2] = ["faulty.read_at", "16"];
const OVERFLOW: [&str; 2] = ["faulty.overflow", "1000000"];
const READ_FAILS: &str = "faulty.read_at 37";
const OVERFLOWS: &str = "faulty.overflow 40";
/// The handler has failed, and the call is the kernel's.
const ASKED: &str = "asked -3";

#[test]
fn a_thread_goes_on_making_calls_with_masks_when_the_first_one_has_ended() {
    let contained = Contained::new();
    let ended = contained.asked(&["after-main", "9000001"]);
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "0 0 0 0\n"), "{}", ended.stderr);
}

#[test]
fn a_program_that_lets_no_page_become_code_is_left_on_the_trap() {
    let contained = Contained::new();
    let ended = contained.asked(&["no-new-code", "9000001"]);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    assert!(ended.stdout.ends_with("asked -3\nend\n"), "{}", ended.stdout);
}

#[test]
fn where_no_signal_can_be_queued_an_upcall_is_stopped_all_the_same_and_no_other() {
    let contained = Contained::new();
    let lines = ["works 0", "faulty.spin 41"];
    is_contained(&contained.alone(&["unqueued", "faulty.spin"]), &lines);
}

#[test]
fn a_child_of_vfork_survives_a_fault() {
    let contained = Contained::new();
    for (argv, line) in [(READ, READ_FAILS), (OVERFLOW, OVERFLOWS)] {
        is_contained(&contained.alone(&["vfork", argv[0], argv[1]]), &[line, "4", line]);
    }
    is_contained(&contained.asked(&["vfork", "9000001"]), &[ASKED, "4", ASKED]);
}

#[test]
fn a_thread_that_blocks_all_signals_survives_a_fault_where_calls_are_hooked() {
    let contained = Contained::new();
    for place in ["blocked", "masked"] {
        is_contained(&contained.asked(&[place, "9000001"]), &[ASKED]);
        is_contained(&contained.asked(&[place, READ[0], READ[1]]), &[READ_FAILS]);
    }
}

#[test]
fn a_thread_whose_context_was_made_in_a_signal_handler_survives_an_overflow() {
    let contained = Contained::new();
    is_contained(&contained.alone(&["after-handler", OVERFLOW[0], OVERFLOW[1]]), &[OVERFLOWS]);
    for place in ["thread", "after-handler"] {
        is_contained(&contained.asked(&[place, "9000002"]), &[ASKED]);
        is_contained(&contained.asked(&[place, OVERFLOW[0], OVERFLOW[1]]), &[OVERFLOWS]);
    }
}

#[test]
fn an_upcall_of_a_handler_on_the_alternate_stack_may_be_interrupted_and_may_fail() {
    let contained = Contained::new();
    for place in ["alternate", "no-alternate"] {
        let times = if place == "alternate" { 3 } else { 2 };
        for (argv, line) in [
            (["faulty.work", "20000000"], "faulty.work 0"),
            (["faulty.spin", ""], "faulty.spin 41"),
            (READ, READ_FAILS),
            (OVERFLOW, OVERFLOWS),
        ] {
            let ended = contained.alone(&[place, argv[0], argv[1]]);
            is_contained(&ended, &[line; 3][..times]);
        }
        for (call, line) in [("9000001", ASKED), ("9000002", ASKED), ("9000003", "asked 78")] {
            is_contained(&contained.asked(&[place, call]), &[line; 3][..times]);
        }
    }
}

#[test]
fn a_handler_on_a_stack_that_lies_where_goroutines_have_theirs_is_asked_about_elsewhere() {
    let contained = Contained::new();
    for (call, line) in [("9000001", ASKED), ("9000002", ASKED), ("9000003", "asked 78")] {
        is_contained(&contained.asked(&["go-alternate", call]), &[line; 3]);
    }
}

#[test]
fn a_program_may_give_its_alternate_stack_back() {
    let contained = Contained::new();
    let ended = contained.alone(&["disarmed", OVERFLOW[0], OVERFLOW[1]]);
    is_contained(&ended, &[OVERFLOWS; 2]);
    is_contained(&contained.asked(&["disarmed", "9000002"]), &[ASKED; 2]);
}

#[test]
fn an_alternate_stack_that_is_too_small_for_libos_is_not_overrun() {
    let contained = Contained::new();
    is_contained(&contained.alone(&["small", READ[0], READ[1]]), &[READ_FAILS; 2]);
    is_contained(&contained.asked(&["small", "9000001"]), &[ASKED; 2]);
}

#[test]
fn a_handler_that_asked_for_an_alternate_stack_without_having_one_has_room() {
    let contained = Contained::new();
    is_contained(&contained.alone(&["much", READ[0], READ[1]]), &["much 1", READ_FAILS]);
}

#[test]
fn a_program_that_has_restricted_itself_is_not_killed_for_what_patching_takes() {
    let contained = Contained::new();
    for call in ["9000001", "9000002"] {
        is_contained(&contained.asked(&["restricted", call]), &[ASKED]);
    }
}
