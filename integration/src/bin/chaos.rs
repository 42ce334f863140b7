//! Kills processes of a sandbox at any moment, and then looks whether all is right.
//!
//! `chaos SEED DEATHS` runs in a sandbox with kv-cache, rate-limit and faulty loaded. Eight
//! workers, forked or executed, use all three at random; some upcalls fault. Workers are killed at
//! random until so many have died. Every value says whose it is, so that a wrong answer is seen.
#![expect(unsafe_code, reason = "forks")]

use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use ext_api::abi::Status;
use ext_api::client::Sandbox;
use ext_api::error::CallError;
use faulty::faulty::Client as Faulty;
use integration::Random;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use serde_json::Value;

const WORKERS: usize = 8;
const KEYS: u64 = 400;
const VALUE_LEN_MAX: u64 = 6_000;
/// A worker that saw what must not be.
const WRONG: i32 = 99;
/// Longest that anything may refuse to work after all have died.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args.get(at).and_then(|text| text.parse::<u64>().ok());
    let result = match (args.first().map(String::as_str), number(0), number(1)) {
        (Some("worker"), _, Some(seed)) => Worker::new(seed).and_then(|mut worker| worker.work()),
        (_, Some(seed), Some(deaths)) => drive(seed, deaths),
        _ => Err("usage: chaos SEED DEATHS".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("chaos: {why}");
            ExitCode::from(WRONG as u8)
        }
    }
}

fn drive(seed: u64, deaths: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut workers: Vec<Pid> = Vec::new();
    let mut died = 0;
    let start = Instant::now();
    while died < deaths {
        while workers.len() < WORKERS {
            workers.push(start_worker(random.next(), random.below(4) == 0)?);
        }
        thread::sleep(Duration::from_micros(random.below(5_000)));
        let victim = workers.swap_remove(random.below(WORKERS as u64) as usize);
        kill(victim, Signal::SIGKILL).map_err(|error| error.to_string())?;
        match waitpid(victim, None).map_err(|error| error.to_string())? {
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => died += 1,
            other => return Err(format!("a worker ended by itself: {other:?}")),
        }
    }
    for worker in workers {
        let _ = kill(worker, Signal::SIGKILL);
        let _ = waitpid(worker, None);
        died += 1;
    }
    let took = start.elapsed();
    // While the dead are found, whatever they held may refuse for a moment; never for long.
    let mut worker = Worker::new(random.next())?;
    let stats = worker.stats()?;
    let (before, found) = (stats["entries"].as_u64(), worker.found()?);
    let before = before.ok_or("no entries in the statistics")?;
    if before < found || before > found + died {
        return Err(format!("{before} entries are counted, {found} found, {died} died"));
    }
    worker.look_after()?;
    println!(
        "{{\"deaths\":{died},\"gets\":{},\"entries\":{before},\"found\":{found},\"seconds\":{:.1}}}",
        stats["hits"].as_u64().unwrap_or(0) + stats["misses"].as_u64().unwrap_or(0),
        took.as_secs_f64()
    );
    Ok(())
}

fn start_worker(seed: u64, exec: bool) -> Result<Pid, String> {
    // SAFETY: this process has one thread.
    match unsafe { fork() }.map_err(|error| error.to_string())? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let result = if exec {
                use std::os::unix::process::CommandExt;
                let program = std::env::current_exe().unwrap_or_default();
                Err(Command::new(program).args(["worker", &seed.to_string()]).exec().to_string())
            } else {
                Worker::new(seed).and_then(|mut worker| worker.work())
            };
            let status = result.map_or_else(
                |why| {
                    eprintln!("chaos: {why}");
                    WRONG
                },
                |()| 0,
            );
            std::process::exit(status)
        }
    }
}

struct Worker {
    sandbox: Sandbox,
    faulty: Faulty,
    random: Random,
}

impl Worker {
    fn new(seed: u64) -> Result<Self, String> {
        let text = |error: CallError| error.to_string();
        let (sandbox, faulty) =
            (Sandbox::current().map_err(text)?, Faulty::attach().map_err(text)?);
        Ok(Self { sandbox, faulty, random: Random::new(seed) })
    }

    /// Use everything until killed.
    fn work(&mut self) -> Result<(), String> {
        loop {
            let key = self.random.below(KEYS);
            match self.random.below(1_000) {
                0..400 => self.get(key).map(drop)?,
                400..700 => self.put(key)?,
                700..750 => self.delete(key)?,
                750..850 => self.allow(key)?,
                850..990 => self.count()?,
                _ => self.fault()?,
            }
        }
    }

    fn call(&self, name: &str, words: &[u64]) -> Result<Option<Vec<u8>>, CallError> {
        let handle = self.sandbox.find(name)?;
        self.sandbox.invoke::<Option<Vec<u8>>>(handle, words)
    }

    /// True if the key was there.
    fn get(&self, key: u64) -> Result<bool, String> {
        let name = name_of(key);
        let found = self.call("kv.get", &[name.as_ptr() as u64, name.len() as u64]);
        match found.map_err(|error| format!("kv.get: {error}"))? {
            Some(value) => check(key, &value).map(|()| true),
            None => Ok(false),
        }
    }

    fn put(&mut self, key: u64) -> Result<(), String> {
        let (name, len) = (name_of(key), self.random.below(VALUE_LEN_MAX));
        let value = value_of(key, self.random.next(), len as usize);
        let words =
            [name.as_ptr() as u64, name.len() as u64, value.as_ptr() as u64, value.len() as u64, 0];
        self.call("kv.put", &words).map(drop).map_err(|error| format!("kv.put: {error}"))
    }

    fn delete(&self, key: u64) -> Result<(), String> {
        let name = name_of(key);
        let words = [name.as_ptr() as u64, name.len() as u64];
        self.call("kv.delete", &words).map(drop).map_err(|error| format!("kv.delete: {error}"))
    }

    fn allow(&self, key: u64) -> Result<(), String> {
        let name = name_of(key);
        let words = [name.as_ptr() as u64, name.len() as u64, 1];
        self.call("limit.allow", &words).map(drop).map_err(|error| format!("limit.allow: {error}"))
    }

    fn count(&self) -> Result<(), String> {
        allowed("count", self.faulty.count().map(drop), &[])?;
        allowed("lock", self.faulty.lock().map(drop), &[Status::Stuck])
    }

    fn fault(&mut self) -> Result<(), String> {
        let faulty = &self.faulty;
        match self.random.below(200) {
            0 => allowed("spin", faulty.spin(), &[Status::Overrun]),
            1..40 => allowed("panic", faulty.panic("on purpose"), &[Status::Panicked]),
            40..60 => allowed("read_at", faulty.read_at(8).map(drop), &[Status::MemoryFault]),
            60..80 => {
                allowed("abort_locked", faulty.abort_locked(), &[Status::Aborted, Status::Stuck])
            }
            80..100 => {
                allowed("overflow", faulty.overflow(1 << 20).map(drop), &[Status::StackOverflow])
            }
            // Keeps the lock of std for a while, for somebody to be killed with it.
            _ => allowed(
                "keep",
                faulty.keep(self.random.below(50), 5_000).map(drop),
                &[Status::Stuck],
            ),
        }
    }

    fn stats(&self) -> Result<Value, String> {
        let text = self.call("kv.stats", &[]).map_err(|error| error.to_string())?;
        serde_json::from_slice(&text.unwrap_or_default()).map_err(|error| error.to_string())
    }

    /// Entries that can be found, each with a value of its own.
    fn found(&self) -> Result<u64, String> {
        (0..KEYS).try_fold(0, |found, key| Ok(found + u64::from(self.get(key)?)))
    }

    /// All three work as if nothing had happened.
    fn look_after(&mut self) -> Result<(), String> {
        for key in 0..KEYS {
            self.put(key)?;
            if !self.get(key)? {
                return Err(format!("key {key} was stored and is not there"));
            }
            self.allow(key)?;
        }
        let start = Instant::now();
        loop {
            match (self.faulty.count(), self.faulty.keep(1, 100)) {
                (Ok(_), Ok(_)) => return Ok(()),
                (Err(error), _) | (_, Err(error)) if start.elapsed() > PATIENCE => {
                    return Err(format!("faulty does not come back: {error}"));
                }
                _ => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// A call of the extension that fails may be refused while it restarts, or end as `faults` say,
/// or be stopped with the rest of a room that is to be cleared.
fn allowed(what: &str, result: Result<(), CallError>, faults: &[Status]) -> Result<(), String> {
    const REFUSALS: [Status; 3] = [Status::Restarting, Status::Quarantined, Status::OutOfMemory];
    match result {
        Ok(()) => Ok(()),
        Err(CallError::Refused(status) | CallError::Fault(status, _))
            if REFUSALS.contains(&status)
                || faults.contains(&status)
                || status == Status::Stuck
                || status == Status::Overrun =>
        {
            Ok(())
        }
        Err(error) => Err(format!("faulty.{what}: {error:?}")),
    }
}

fn name_of(key: u64) -> String {
    format!("key-{key:0width$}", width = (key % 40) as usize)
}

/// A value that says which key and which writer it is of, in every word.
fn value_of(key: u64, nonce: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(nonce ^ key.rotate_left(32));
    let mut value = nonce.to_le_bytes().to_vec();
    while value.len() < len + 8 {
        value.extend(random.next().to_le_bytes());
    }
    value.truncate(len + 8);
    value
}

fn check(key: u64, value: &[u8]) -> Result<(), String> {
    let nonce = value.first_chunk::<8>().ok_or("a value without a nonce")?;
    let expected = value_of(key, u64::from_le_bytes(*nonce), value.len() - 8);
    if expected == value { Ok(()) } else { Err(format!("key {key} has a wrong value")) }
}
