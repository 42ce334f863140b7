//! The harness: runs the launcher as its users do, with a time limit on every wait.
//!
//! The launcher and the example extension must be built in release (`integration/test.sh` does).

pub mod carried;
pub mod iperf3;

use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest that any program of the tests may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// True if the long suites are to run whole: `integration/test.sh --full`.
#[must_use]
pub fn full() -> bool {
    std::env::var_os("SBX_TEST_FULL").is_some()
}

/// A file of the release build.
///
/// # Panics
/// It is not built.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    built_as("release", name)
}

/// A file of the build for tests, which has failpoints.
///
/// # Panics
/// It is not built.
#[must_use]
pub fn built_for_tests(name: &str) -> PathBuf {
    built_as("debug", name)
}

fn built_as(profile: &str, name: &str) -> PathBuf {
    limit_lifetime();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = option_env!("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let path = target.join(profile).join(name);
    let option = if profile == "release" { " --release" } else { "" };
    assert!(path.is_file(), "{} is missing: cargo build{option} --workspace", path.display());
    path
}

/// End this test program, with a picture of what it waits for, once it has taken ten times as long as any
/// does: one that hangs must not keep all others from being run.
fn limit_lifetime() {
    static BEGUN: Once = Once::new();
    let minutes = if full() { 240 } else { 10 };
    BEGUN.call_once(|| {
        thread::spawn(move || {
            thread::sleep(Duration::from_secs(minutes * 60));
            eprintln!(
                "the tests have taken {minutes} minutes and end; meanwhile:\n{}",
                processes()
            );
            std::process::exit(1)
        });
    });
}

/// How a program ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// Exit status, or 128 and the signal.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// What runs on this machine, where each process waits, and the signals that wait for it.
fn processes() -> String {
    let columns = "pid,ppid,pgid,stat,wchan:24,pending,blocked,args";
    let shown =
        Command::new("ps").args(["-N", "--ppid", "2", "--forest", "-ww", "-o", columns]).output();
    shown.map_or_else(|error| error.to_string(), |ps| String::from_utf8_lossy(&ps.stdout).into())
}

/// Run a program to its end.
///
/// # Panics
/// It cannot be started, or takes longer than [`PATIENCE`] (twenty times as long if [`full`]).
#[must_use]
pub fn run(command: &mut Command) -> Ended {
    use std::os::unix::process::ExitStatusExt;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let reader = |mut from: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = from.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let stdout = reader(Box::new(child.stdout.take().expect("piped")));
    let stderr = reader(Box::new(child.stderr.take().expect("piped")));
    let patience = if full() { PATIENCE * 20 } else { PATIENCE };
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if start.elapsed() > patience {
            let processes = processes();
            let _ = child.kill();
            panic!("{command:?} did not end within {patience:?}; meanwhile:\n{processes}");
        }
        thread::sleep(Duration::from_millis(2));
    };
    Ended {
        status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        stdout: stdout.join().expect("the reader does not panic"),
        stderr: stderr.join().expect("the reader does not panic"),
    }
}

/// Start a program that is talked with: it, and the lines that it says.
///
/// # Panics
/// It cannot be started.
#[must_use]
pub fn talk_with(command: &mut Command) -> (Child, BufReader<ChildStdout>) {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let lines = BufReader::new(child.stdout.take().expect("piped"));
    (child, lines)
}

/// The launcher with arguments.
#[must_use]
pub fn launcher(args: &[&str]) -> Ended {
    run(Command::new(built("sbx-launcher")).args(args))
}

/// A named sandbox that goes down with the value.
#[derive(Debug)]
pub struct Sandbox {
    /// Its name.
    pub name: String,
}

impl Sandbox {
    /// Bring one up.
    ///
    /// # Panics
    /// It does not come up.
    #[must_use]
    pub fn up(test: &str) -> Self {
        Self::up_with(test, &[])
    }

    /// Bring one up, with options.
    ///
    /// # Panics
    /// It does not come up.
    #[must_use]
    pub fn up_with(test: &str, options: &[&str]) -> Self {
        let name = format!("t{}-{test}", std::process::id());
        let ended = launcher(&[&["up", name.as_str()], options].concat());
        assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
        Self { name }
    }

    /// Load the hello extension.
    ///
    /// # Panics
    /// It does not load.
    pub fn load_hello(&self) {
        self.load(&built("libhello_upcall.so"));
    }

    /// Load an image.
    ///
    /// # Panics
    /// It does not load.
    pub fn load(&self, image: &std::path::Path) {
        let image = image.to_str().expect("a UTF-8 path");
        let ended = launcher(&["ext", "load", &self.name, image]);
        assert_eq!(ended.status, 0, "{}", ended.stderr);
    }

    /// Run a command in it.
    #[must_use]
    pub fn run(&self, argv: &[&str]) -> Ended {
        let mut args = vec!["run", "--sandbox", &self.name, "--"];
        args.extend(argv);
        launcher(&args)
    }

    /// Call a handler in the worker.
    #[must_use]
    pub fn call(&self, args: &[&str]) -> Ended {
        let mut all = vec!["call", &self.name];
        all.extend(args);
        launcher(&all)
    }

    /// What a command of the launcher prints about it, as JSON.
    ///
    /// # Panics
    /// It prints no JSON.
    #[must_use]
    pub fn json(&self, command: &[&str]) -> Value {
        let mut args = command.to_vec();
        args.extend([self.name.as_str(), "--json"]);
        serde_json::from_str(&launcher(&args).stdout).expect("--json prints JSON")
    }

    /// The rows of `ps --json`.
    ///
    /// # Panics
    /// It prints no JSON.
    #[must_use]
    pub fn participants(&self) -> Vec<Value> {
        self.json(&["ps"])["participants"].as_array().cloned().unwrap_or_default()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = launcher(&["down", &self.name]);
    }
}

/// Numbers that look random and are the same for the same seed (splitmix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Those of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    #[must_use]
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next one, below `bound`.
    #[must_use]
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Block every signal of this thread that can be blocked.
pub fn block_all_signals() {
    use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
}

/// A file or folder that goes with the value.
#[derive(Debug)]
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// A path that nobody else has.
    #[must_use]
    pub fn new(name: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = (std::process::id(), NEXT.fetch_add(1, Relaxed));
        Self(std::env::temp_dir().join(format!("sbx-{}-{}-{name}", id.0, id.1)))
    }

    /// As text.
    ///
    /// # Panics
    /// It is no text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.to_str().expect("a UTF-8 path")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0).or_else(|_| std::fs::remove_dir_all(&self.0));
    }
}

/// Compile a C program of `integration/programs`; where it is.
///
/// # Panics
/// The compiler refuses it.
#[must_use]
pub fn compile(compiler: &str, name: &str, flags: &[&str]) -> Scratch {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let to = Scratch::new(&format!("{compiler}-{name}"));
    let ended = run(Command::new(compiler)
        .args(["-O1", "-Wall", "-pthread", "-I"])
        .arg(root.join("../ext-api/c"))
        .args(flags)
        .arg("-o")
        .arg(&to.0)
        .arg(root.join("programs").join(format!("{name}.c"))));
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    to
}
