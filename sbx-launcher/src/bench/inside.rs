//! The process in the sandbox: does one measurement per line of its input, and prints the figure.
#![expect(unsafe_code, reason = "calls through the gate")]

use std::hint::black_box;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use ext_api::abi::{CallFn, Handle, Reply};
use ext_api::client::Sandbox;
use libos::layout::HANDLERS_OFFSET;

use super::pin::{pin, time};
use super::{BenchError, delay, events, faults, interpose, kv, pages, pairs, rivals, service};

/// A process in a sandbox of its own, as seen from outside.
#[derive(Debug)]
pub(super) struct Inside {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Inside {
    /// Start one with extensions.
    pub(super) fn start(images: &[PathBuf], config: &str) -> Result<Self, BenchError> {
        let doing = |error| BenchError::Io("starting a sandbox", error);
        let launcher = std::env::current_exe().map_err(doing)?;
        let mut command = Command::new(&launcher);
        let end_with_it = || {
            // SAFETY: takes no pointer.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
            Ok(())
        };
        // SAFETY: it allocates nothing. Whoever kills the benchmark ends what that measures.
        unsafe { command.pre_exec(end_with_it) };
        let mut child = command
            .args(["run", "--config", config])
            .args(images.iter().map(|image| format!("--ext={}", image.display())))
            .arg("--")
            .arg(&launcher)
            .arg("bench-inside")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(doing)?;
        let (to, from) = (child.stdin.take(), child.stdout.take());
        let (Some(to), Some(from)) = (to, from) else {
            return Err(BenchError::Inside("no pipes".into()));
        };
        Ok(Self { child, to, from: BufReader::new(from) })
    }

    /// Have it measure `what`, `count` times.
    pub(super) fn measure(&mut self, what: &str, count: u64) -> Result<f64, BenchError> {
        let doing = |error| BenchError::Io("asking the process in the sandbox", error);
        writeln!(self.to, "{what} {count}").map_err(doing)?;
        let mut answer = String::new();
        self.from.read_line(&mut answer).map_err(doing)?;
        answer.trim().parse().map_err(|_| BenchError::Inside(format!("{what}: {answer:?}")))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // Its input ends with this value, so that it ends by itself; this is for one that does not.
        let _ = writeln!(self.to, "end 0");
        let _ = self.to.flush();
        let _ = self.child.wait();
    }
}

/// Make so many system calls while somebody looks by some means, or round trips by a pair; the exit status.
#[must_use]
pub fn serve_calls(count: u64, by: &str) -> i32 {
    let said = match pairs::by(by, count) {
        Some(figures) => figures.map(|(rate, seconds)| format!("{rate} {seconds}")),
        None => rivals::by(by, count).map(|figure| figure.to_string()),
    };
    match said {
        Ok(said) => println!("{said}"),
        Err(error) => {
            eprintln!("{by}: {error}");
            return 1;
        }
    }
    0
}

/// Serve the lines of standard input; the exit status.
#[must_use]
pub fn serve() -> i32 {
    let sandbox = match Sandbox::current() {
        Ok(sandbox) => sandbox,
        Err(error) => {
            println!("{error}");
            return 1;
        }
    };
    pin(0, 0);
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let (what, count) = line.split_once(' ').unwrap_or((&line, "0"));
        if what == "end" {
            break;
        }
        match figure(&sandbox, what, count.parse().unwrap_or(0)) {
            Ok(figure) => println!("{figure}"),
            Err(why) => println!("{what}: {why}"),
        }
        let _ = io::stdout().flush();
    }
    0
}

fn figure(sandbox: &Sandbox, what: &str, count: u64) -> Result<f64, String> {
    let find = |name: &str| sandbox.find(name).map_err(|error| error.to_string());
    match what {
        "region" => Ok(region_call(sandbox, find("hello.null")?, count)),
        "null" => {
            let (handle, mut reply) = (find("hello.null")?, Reply::empty());
            Ok(time(count, || {
                for _ in 0..count {
                    black_box(sandbox.call_null(handle, &mut reply));
                }
            }))
        }
        "typed" => {
            let handle = find("hello.add")?;
            Ok(time(count, || {
                for index in 0..count {
                    if let Ok(sum) = sandbox.invoke::<u64>(handle, &[black_box(index & 1)]) {
                        black_box(sum);
                    }
                }
            }))
        }
        "spawn" => super::launch::spawn("/bin/true", &[], count).map_err(|e| e.to_string()),
        "fork" => super::launch::fork(count).map_err(|error| error.to_string()),
        "private-code" => super::launch::private_code(sandbox.base()).map_err(|e| e.to_string()),
        "python" | "python-empty" => python(what == "python", count),
        "overrun" | "late-overrun" | "restart" | "holder" | "places" | "panic" | "segv" | "die" => {
            faults::inside(sandbox, what, count)
        }
        what if what.starts_with("pages:") => pages::by_hook(sandbox, &what[6..], count),
        "calls-own" => {
            // In parts, each of which is within an upcall's budget on a slow machine as well.
            const PART: u64 = 20_000;
            let (handle, parts) = (find("through.own_calls")?, count.div_ceil(PART));
            let part = || sandbox.invoke::<f64>(handle, &[PART]).map_err(|error| error.to_string());
            (0..parts).try_fold(0.0, |sum, _| Ok(sum + part()? / parts as f64))
        }
        "calls" => Ok(interpose::calls(count)),
        "calls-trapped" | "calls-first" => {
            rivals::new_sites(count, what == "calls-first").map_err(|error| error.to_string())
        }
        what if what.starts_with("service-") => service::inside(sandbox, what, count),
        what if what.starts_with("delay-") => delay::inside(sandbox, what, count),
        what if what.starts_with("event-") => events::inside(sandbox, what, count),
        _ => kv::inside(sandbox, what, count),
    }
}

/// Call the handler's own code, without the gate.
fn region_call(sandbox: &Sandbox, handle: Handle, count: u64) -> f64 {
    const ROW_LEN: usize = size_of::<ext_api::abi::HandlerEntry>();
    let row = sandbox.base() as usize + HANDLERS_OFFSET + (handle as u32 as usize) * ROW_LEN;
    let at = (row + core::mem::offset_of!(ext_api::abi::HandlerEntry, code)) as *const u64;
    // SAFETY: a row of the handler table, which is mapped read-only.
    let code = unsafe { at.read() };
    // SAFETY: the code of a handler that looks at none of its arguments.
    let code: CallFn = unsafe { std::mem::transmute(code) };
    indirect(code, count)
}

/// The cost of a call through a pointer to `code`, which takes no arguments that matter.
pub(super) fn indirect(code: CallFn, count: u64) -> f64 {
    let code = black_box(code);
    let mut reply = Reply::empty();
    let words = [0u64; 2];
    time(count, || {
        for _ in 0..count {
            // SAFETY: words and a reply that outlive the call, which looks at neither.
            black_box(unsafe { code(0, words.as_ptr(), &raw mut reply) });
        }
    })
}

/// Nanoseconds per call from Python: a handler's, or that of an empty C function.
fn python(handler: bool, count: u64) -> Result<f64, String> {
    const SCRIPT: &str = r"
import ctypes, sys, time
sys.path.insert(0, sys.argv[1])
import sbx
count = int(sys.argv[3])
if sys.argv[2] == 'python':
    call = sbx.current().handler('hello.null')
else:
    call = ctypes.CDLL(None).__errno_location
    call.restype = None
for _ in range(1000): call()
start = time.perf_counter_ns()
for _ in range(count): call()
print((time.perf_counter_ns() - start) / count)
";
    let module = concat!(env!("CARGO_MANIFEST_DIR"), "/../ext-api/python");
    let kind = if handler { "python" } else { "python-empty" };
    let output = Command::new("python3")
        .args(["-c", SCRIPT, module, kind, &count.to_string()])
        .output()
        .map_err(|error| format!("python3: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    text.trim().parse().map_err(|_| format!("python3: {}", said.trim().replace('\n', " | ")))
}
