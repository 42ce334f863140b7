//! Sandboxes that carry local connections, servers that run in them, and what went which way.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Ended, Sandbox, built, run};

/// A sandbox whose local connections go through the region.
#[must_use]
pub fn carrying(test: &str) -> Sandbox {
    Sandbox::up_with(test, &["--sockets"])
}

/// What `ps --sockets` says.
#[must_use]
pub fn sockets(sandbox: &Sandbox) -> Value {
    sandbox.json(&["ps", "--sockets"])
}

/// A number of it.
///
/// # Panics
/// It is none.
#[must_use]
pub fn number(of: &Value, key: &str) -> u64 {
    of[key].as_u64().unwrap_or_else(|| panic!("{key} of {of}"))
}

/// The share that went through the region of the connections' bytes whose reader did not sleep, and how
/// many those were.
///
/// # Panics
/// No connection was carried.
#[must_use]
pub fn carried(sandbox: &Sandbox) -> (f64, u64) {
    let table = sockets(sandbox);
    let (carried, by_kernel) = (number(&table, "carried_bytes"), number(&table, "kernel_bytes"));
    assert!(number(&table, "carried") > 0, "{table}");
    let awake = by_kernel.saturating_sub(number(&table, "asleep_bytes"));
    (carried as f64 / (carried + awake).max(1) as f64, carried)
}

/// At least 95 in a hundred of the bytes that could be carried were, and these were more than `fewest`.
///
/// # Panics
/// They were not.
pub fn mostly_carried(sandbox: &Sandbox, fewest: u64) {
    let (share, bytes) = carried(sandbox);
    assert!(share > 0.95 && bytes > fewest, "{share} of {bytes}");
}

/// No connection is left, a little after all processes have let go of theirs.
///
/// # Panics
/// Some are left after 5 s.
pub fn wait_for_none(sandbox: &Sandbox) {
    let until = Instant::now() + Duration::from_secs(5);
    while sockets(sandbox)["connections"].as_array().is_some_and(|rows| !rows.is_empty()) {
        assert!(Instant::now() < until, "{}", sockets(sandbox));
        sleep(Duration::from_millis(20));
    }
}

/// In Python, of a parent that has the end `one` of a stream whose other end its `child` has: read and write
/// until the child, which is killed at some moment, has come to its end.
pub const UNTIL_KILLED: &str = "
killed, end, got = False, time.monotonic() + random.random() * 0.05, 0
try:
    while piece := one.recv(random.randrange(1, 70000)):
        got += len(piece)
        one.send(piece[:1000])
        if not killed and time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed = True
except (ConnectionResetError, BrokenPipeError):
    pass
assert killed and got
print('an end')
";

/// Where a script of `integration/programs` is.
///
/// # Panics
/// Its path is no text.
#[must_use]
pub fn program(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name);
    path.to_str().expect("a UTF-8 path").to_owned()
}

/// A command that is killed with the value.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Start it, in the sandbox or outside.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start(sandbox: Option<&Sandbox>, argv: &[&str]) -> Self {
        let launcher = built("sbx-launcher");
        let mut command = match sandbox {
            None => Command::new(argv[0]),
            Some(sandbox) => {
                let mut command = Command::new(launcher);
                command.args(["run", "--sandbox", &sandbox.name, "--", argv[0]]);
                command
            }
        };
        let silent = command.args(&argv[1..]).stdout(Stdio::null()).stderr(Stdio::null());
        Self(
            silent.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{argv:?}: {error}")),
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The launcher ends with the command that it has started.
        let own = self.0.id().to_string();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
        let command = children.unwrap_or_default().split(' ').next().unwrap_or_default().to_owned();
        let target = if command.is_empty() { own } else { command };
        let _ = run(Command::new("kill").arg(target));
        let until = Instant::now() + Duration::from_secs(5);
        while self.0.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() > until {
                let _ = self.0.kill();
            }
            sleep(Duration::from_millis(5));
        }
    }
}

/// Run a command outside of any sandbox.
#[must_use]
pub fn outside(argv: &[&str]) -> Ended {
    run(Command::new(argv[0]).args(&argv[1..]))
}

/// Until `argv` succeeds.
///
/// # Panics
/// It does not within 20 s.
pub fn wait_for(argv: &[&str]) {
    let until = Instant::now() + Duration::from_secs(20);
    while outside(argv).status != 0 {
        assert!(Instant::now() < until, "{argv:?} does not succeed");
        sleep(Duration::from_millis(30));
    }
}

/// Run a program of random steps, by each seed, in the sandbox and beside it: both say the same, at least in one of
/// `tries` runs, for the kernel may hand a packet over a little later than usual.
///
/// # Panics
/// They do not.
pub fn same_steps(sandbox: &Sandbox, steps: &str, seeds: u64, count: &str, tries: u32) {
    for seed in 1..=seeds {
        let seed = seed.to_string();
        let native = outside(&[steps, &seed, count]);
        assert_eq!(native.status, 0, "{native:?}");
        let is_same = (0..tries).any(|_| {
            let carried = sandbox.run(&[steps, &seed, count]);
            let lines = native.stdout.lines().zip(carried.stdout.lines());
            let first = lines.enumerate().find(|(_, (one, other))| one != other);
            if carried != native {
                eprintln!("seed {seed}, once: {first:?} {}", carried.stderr);
            }
            carried == native
        });
        assert!(is_same, "seed {seed}: never the same in {tries} runs");
    }
}
