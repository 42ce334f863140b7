//! The supervisor killed at every moment that has a name: whoever follows finishes what it had begun.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use integration::{Ended, built, built_for_tests, full, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where the supervisors of a sandbox die, how many of them, and what is done meanwhile.
struct Doomed {
    name: String,
    deaths: usize,
}

impl Doomed {
    /// A sandbox whose first `deaths` supervisors that pass `point` die there.
    fn up(point: &str, deaths: usize) -> Self {
        Self::up_with(point, &format!("{point}:{deaths}"), deaths)
    }

    /// A sandbox in which `programs` programs die, `first` instructions behind `point`, each `stride`
    /// later than the one before.
    fn up_for_programs(point: &str, programs: usize, first: usize, stride: usize) -> Self {
        Self::up_with(point, &format!("{point}:{programs}:{first}:{stride}"), 0)
    }

    fn up_with(point: &str, failpoint: &str, deaths: usize) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}-{point}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let mut up = Command::new(built_for_tests("sbx-launcher"));
        let ended = run(up.args(["up", &name]).env("SBX_FAILPOINT", failpoint));
        assert_eq!((ended.status, ended.stderr.as_str()), (0, ""), "{failpoint}");
        Self { name, deaths }
    }

    fn ask(&self, words: &[&str], args: &[&str]) -> Ended {
        let mut command = Command::new(built_for_tests("sbx-launcher"));
        run(command.args(words).arg(&self.name).args(args))
    }

    fn run(&self, argv: &[&str]) -> Ended {
        self.ask(&["run", "--sandbox"], &[&["--"], argv].concat())
    }

    /// As [`Self::ask`], again and again while whoever is asked dies of it.
    fn ask_until_answered(&self, words: &[&str], args: &[&str]) -> Ended {
        let mut ended = self.ask(words, args);
        for _ in 0..self.deaths {
            if ended.status == 0 {
                break;
            }
            ended = self.ask(words, args);
        }
        ended
    }

    /// A program says "all" meanwhile, and afterwards all is well.
    fn says_all(&self, point: &str, argv: &[&str]) {
        let ended = self.run(argv);
        let said = (ended.status, ended.stdout.as_str());
        assert_eq!(said, (0, "all\n"), "{point}: {}", ended.stderr);
        self.is_well(point);
    }

    /// They have died, there is one more, and it does all that a supervisor does.
    fn is_well(&self, point: &str) {
        let begun = Instant::now();
        let deaths = loop {
            let log = self.ask(&["log"], &[]).stdout;
            let deaths = log.matches("has taken the place of a supervisor that died").count();
            if deaths >= self.deaths || begun.elapsed() > Duration::from_secs(10) {
                break deaths;
            }
        };
        assert_eq!(deaths, self.deaths, "{point}: so many have died");
        let hello = built("libhello_upcall.so");
        let hello = hello.to_str().expect("a UTF-8 path");
        if !self.ask(&["ext", "ls"], &[]).stdout.contains("hello") {
            let loaded = self.ask(&["ext", "load"], &[hello]);
            assert_eq!(loaded.status, 0, "{point}: {}", loaded.stderr);
        }
        assert_eq!(self.ask(&["call"], &["hello.greet", "me"]).status, 0, "{point}");
        assert_eq!(self.run(&["/bin/echo", "on"]).stdout, "on\n", "{point}");
        let nobody = |ps: &str| ps.contains("in use: 0 of");
        let begun = Instant::now();
        let mut ps = self.ask(&["ps"], &[]).stdout;
        while !nobody(&ps) && begun.elapsed() < Duration::from_secs(10) {
            ps = self.ask(&["ps"], &[]).stdout;
        }
        assert!(nobody(&ps), "{point}: what the dead held is taken back:\n{ps}");
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.ask(&["down"], &[]);
    }
}

/// The names of all points that begin with one of these words, as the launcher knows them.
fn points(of: &[&str]) -> Vec<String> {
    let mut up = Command::new(built_for_tests("sbx-launcher"));
    let ended = run(up.args(["up", "points"]).env("SBX_FAILPOINT", "none"));
    let (_, list) = ended.stderr.split_once("there are: ").expect("it lists them");
    let known = list.split_whitespace().map(str::to_owned);
    known.filter(|name| of.iter().any(|word| name.starts_with(word))).collect()
}

/// How many supervisors die one after the other.
const DEATHS: [usize; 2] = [1, 3];

#[test]
fn every_point_is_tested() {
    let tested =
        ["exec", "join", "close", "fork", "child", "taking", "taken", "sweep", "load", "unload"];
    assert_eq!(points(&tested), points(&[""]));
}

#[test]
fn a_program_that_starts_meanwhile_starts() {
    // What it prints, and that it has no descriptor of ours.
    let script = "for i in 1 2 3 4 5 6; do x=$(/bin/echo $i) || exit 3; [ $x = $i ] || exit 4; done; \
        x=$(ls -l /proc/self/fd) || exit 5; case $x in *memfd*) echo \"$x\" >&2; exit 6;; esac; echo all";
    let points = points(&["exec", "join", "fork", "child"]);
    assert!(points.len() > 15, "{points:?}");
    for point in points {
        for deaths in DEATHS {
            let doomed = Doomed::up(&point, deaths);
            doomed.says_all(&point, &["/bin/bash", "-c", script]);
        }
    }
}

/// Moments at which a program is executed or forked, and whether it is on its way through libos then.
const OF_PROGRAMS: [(&str, bool); 15] = [
    ("exec-notified", false),
    ("exec-seized", false),
    ("exec-noted", false),
    ("exec-stopped", false),
    ("join-noted", false),
    ("join-patched", false),
    ("join-set", false),
    ("join-calls", false),
    ("join-sent", false),
    ("join-restored", false),
    ("join-mapped", true),
    ("fork-notified", false),
    ("fork-seized", false),
    ("fork-stopped", false),
    ("child-sent", true),
];

#[test]
fn a_program_that_is_killed_while_it_joins_leaves_nothing() {
    const TIMES: usize = 10;
    // It is killed after more and more instructions, until it is through: some 3,500, and more in a
    // sandbox that has seen many processes.
    const STRIDE: usize = 499;
    let between = if full() { 1 } else { 83 };
    // One that is executed, executes a program and forks.
    let script = "import os, sys\n\
        pid = os.fork()\n\
        if pid == 0: os._exit(0)\n\
        sys.exit(0 if os.waitpid(pid, 0)[1] == 0 else 9)";
    for (point, goes_through_libos) in OF_PROGRAMS {
        let mut killed = 0;
        let firsts = if goes_through_libos { STRIDE } else { 1 };
        for first in (0..firsts).step_by(between) {
            let (programs, stride) = if goes_through_libos { (1_000, STRIDE) } else { (TIMES, 0) };
            let doomed = Doomed::up_for_programs(point, programs, first, stride);
            let (mut times, mut through) = (0, 0);
            while through < 3 {
                let ended = doomed.run(&["/usr/bin/python3", "-Sc", script]);
                match ended.status {
                    0 => through += 1,
                    9 | 137 => times += 1,
                    other => panic!("{point}: status {other} after {times}: {}", ended.stderr),
                }
                assert!(times < programs || !goes_through_libos, "{point}: it is never through");
            }
            killed += times;
            doomed.is_well(point);
        }
        println!("{point}: killed {killed} times");
        assert!(killed >= TIMES, "{point}: {killed}");
    }
}

#[test]
fn a_program_whose_exec_failed_goes_on_as_ever() {
    // It sleeps, waits for bytes or computes while its descriptors are taken back.
    let script = "import os, sys, threading, time\n\
        def fail():\n\
        \ttry: os.execv('/etc/passwd', ['x'])\n\
        \texcept PermissionError: pass\n\
        before = sorted(os.listdir('/proc/self/fd'))\n\
        for i in range(2):\n\
        \tfail()\n\
        \tbegun = time.monotonic()\n\
        \ttime.sleep(0.3)\n\
        \tassert time.monotonic() - begun >= 0.3\n\
        \tfail()\n\
        \tpipe = os.pipe()\n\
        \tthreading.Timer(0.3, os.write, (pipe[1], b'bytes')).start()\n\
        \tassert os.read(pipe[0], 10) == b'bytes'\n\
        \tos.close(pipe[0]); os.close(pipe[1])\n\
        \tfail()\n\
        \twhile time.monotonic() - begun < 0.9: pass\n\
        assert sorted(os.listdir('/proc/self/fd')) == before, os.listdir('/proc/self/fd')\n\
        print('all')";
    let points = points(&["close", "taking", "taken"]);
    assert!(points.len() > 6, "{points:?}");
    for point in points {
        for deaths in DEATHS {
            let mut doomed = Doomed::up(&point, deaths);
            if point.starts_with("tak") {
                // It is one who follows another that takes over.
                let ps = doomed.ask(&["ps"], &["--json"]).stdout;
                let ps: serde_json::Value = serde_json::from_str(&ps).expect("JSON");
                let first = Pid::from_raw(ps["supervisor"].as_i64().expect("a pid") as i32);
                kill(first, Signal::SIGKILL).expect("it is there");
                doomed.deaths += 1;
            }
            doomed.says_all(&point, &["/usr/bin/python3", "-c", script]);
        }
    }
}

#[test]
fn what_the_dead_held_is_taken_back() {
    for point in points(&["sweep"]) {
        for deaths in DEATHS {
            let doomed = Doomed::up(&point, deaths);
            for _ in 0..4 {
                let ended = doomed.run(&["/bin/bash", "-c", "/bin/true; kill -9 $$"]);
                assert_eq!(ended.status, 128 + 9, "{point}: {}", ended.stderr);
            }
            doomed.is_well(&point);
        }
    }
}

#[test]
fn an_extension_is_loaded_whole_or_not_at_all() {
    let hello = built("libhello_upcall.so");
    let hello = hello.to_str().expect("a UTF-8 path");
    for point in points(&["load", "unload"]) {
        for deaths in DEATHS {
            let doomed = Doomed::up(&point, deaths);
            let loaded = doomed.ask_until_answered(&["ext", "load"], &[hello]);
            assert_eq!(loaded.status, 0, "{point}: {}", loaded.stderr);
            assert_eq!(doomed.ask(&["call"], &["hello.greet", "me"]).status, 0, "{point}");
            // What was being unloaded is unloaded, whether it could still be said or not.
            let unloaded = doomed.ask_until_answered(&["ext", "unload"], &["hello"]);
            let is_gone = unloaded.stderr.contains("no extension named hello is loaded");
            assert!(unloaded.status == 0 || is_gone, "{point}: {}", unloaded.stderr);
            doomed.is_well(&point);
        }
    }
}
