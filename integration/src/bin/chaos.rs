//! Kills processes of a sandbox at any moment, and then looks whether all is right.
//!
//! `chaos SEED DEATHS` runs in a sandbox with kv-cache, rate-limit and faulty loaded. Eight
//! workers, forked or executed, use all three at random; some upcalls fault. Workers are killed at
//! random until so many have died, and enough of them at each *point*: what a worker is about stands on a
//! board that all share. Every value says whose it is, so that a wrong answer is seen.
#![expect(unsafe_code, reason = "forks, and shares memory with the children")]

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, RawFd};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use ext_api::abi::Status;
use ext_api::client::Sandbox;
use ext_api::error::CallError;
use faulty::faulty::Client as Faulty;
use integration::Random;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use serde_json::Value;

const WORKERS: usize = 8;
const KEYS: u64 = 400;
const VALUE_LEN_MAX: u64 = 6_000;
/// A worker that saw what must not be.
const WRONG: i32 = 99;
/// How many are killed at each point at least.
const EACH: u64 = 10;
/// Longest that anything may refuse to work after all have died.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<u64> = args.iter().filter_map(|text| text.parse().ok()).collect();
    let result = match (args.first().map(String::as_str), &numbers[..]) {
        (Some("worker"), &[seed, fd, place]) => Board::at(fd as RawFd)
            .and_then(|board| Worker::new(seed, board.mark(place as usize)))
            .and_then(|mut worker| worker.work()),
        (_, &[seed, deaths]) => drive(seed, deaths),
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

/// Where a worker can be killed: forked and joining, becoming another program, or in a call.
const POINTS: [&str; 8] = ["fork", "exec", "get", "put", "delete", "allow", "count", "fault"];

/// Says of each worker what it is about, in memory that outlives it.
#[derive(Clone, Copy)]
struct Board {
    fd: RawFd,
    places: &'static [AtomicU32; WORKERS],
}

/// A worker's own place there.
#[derive(Clone, Copy)]
struct Mark(&'static AtomicU32);

impl Mark {
    fn set(self, point: &str) {
        let at = POINTS.iter().position(|name| *name == point).expect("a known point");
        self.0.store(at as u32, Relaxed);
    }
}

impl Board {
    fn new() -> Result<Self, String> {
        let text = |error: nix::Error| error.to_string();
        // Workers inherit it when they are executed, too.
        let file = memfd_create(c"points", MFdFlags::empty()).map_err(text)?;
        nix::unistd::ftruncate(&file, size_of::<[AtomicU32; WORKERS]>() as i64).map_err(text)?;
        Self::at(file.into_raw_fd())
    }

    fn at(fd: RawFd) -> Result<Self, String> {
        let len = NonZeroUsize::new(size_of::<[AtomicU32; WORKERS]>()).expect("not empty");
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: open for as long as this program runs.
        let file = unsafe { BorrowedFd::borrow_raw(fd) };
        // SAFETY: a new mapping, wherever there is room.
        let at = unsafe { mmap(None, len, rights, MapFlags::MAP_SHARED, file, 0) };
        let at = at.map_err(|error| error.to_string())?;
        // SAFETY: mapped for good, all atomics.
        Ok(Self { fd: file.as_raw_fd(), places: unsafe { at.cast().as_ref() } })
    }

    fn mark(self, place: usize) -> Mark {
        Mark(&self.places[place % WORKERS])
    }
}

fn drive(seed: u64, deaths: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let board = Board::new()?;
    let mut workers: Vec<(Pid, usize)> = Vec::new();
    let (mut died, mut points) = (0, [0u64; POINTS.len()]);
    let start = Instant::now();
    while died < deaths || points.iter().any(|count| *count < EACH) {
        while workers.len() < WORKERS {
            let is_free = |place: &usize| workers.iter().all(|(_, taken)| taken != place);
            let place = (0..WORKERS).find(is_free).expect("one that nobody has");
            let worker = start_worker(random.next(), random.below(4) == 0, board, place)?;
            workers.push((worker, place));
        }
        // The youngest ones die before they have joined, or become what they are to be.
        let is_young = random.below(20) == 0;
        thread::sleep(Duration::from_micros(random.below(if is_young { 800 } else { 5_000 })));
        let which = if is_young { WORKERS - 1 } else { random.below(WORKERS as u64) as usize };
        let (victim, place) = workers.swap_remove(which);
        kill(victim, Signal::SIGKILL).map_err(|error| error.to_string())?;
        match waitpid(victim, None).map_err(|error| error.to_string())? {
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => died += 1,
            other => return Err(format!("a worker ended by itself: {other:?}")),
        }
        points[board.places[place].load(Relaxed) as usize % POINTS.len()] += 1;
    }
    for (worker, _) in workers {
        let _ = kill(worker, Signal::SIGKILL);
        let _ = waitpid(worker, None);
        died += 1;
    }
    let took = start.elapsed();
    // While the dead are found, whatever they held may refuse for a moment; never for long.
    let mut worker = Worker::new(random.next(), board.mark(0))?;
    let stats = worker.stats()?;
    let (before, found) = (stats["entries"].as_u64(), worker.found()?);
    let before = before.ok_or("no entries in the statistics")?;
    if before < found || before > found + died {
        return Err(format!("{before} entries are counted, {found} found, {died} died"));
    }
    worker.look_after()?;
    let points: serde_json::Map<String, Value> =
        POINTS.iter().zip(points).map(|(name, count)| ((*name).to_owned(), count.into())).collect();
    let number = |key: &str| stats[key].as_u64().unwrap_or(0);
    let said = serde_json::json!({
        "deaths": died, "gets": number("hits") + number("misses"), "entries": before, "found": found,
        "points": points, "seconds": took.as_secs(),
    });
    println!("{said}");
    Ok(())
}

fn start_worker(seed: u64, exec: bool, board: Board, place: usize) -> Result<Pid, String> {
    let mark = board.mark(place);
    mark.set("fork");
    // SAFETY: this process has one thread.
    match unsafe { fork() }.map_err(|error| error.to_string())? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let result = if exec {
                use std::os::unix::process::CommandExt;
                mark.set("exec");
                let program = std::env::current_exe().unwrap_or_default();
                let numbers =
                    [seed, board.fd as u64, place as u64].map(|number| number.to_string());
                Err(Command::new(program).arg("worker").args(numbers).exec().to_string())
            } else {
                Worker::new(seed, mark).and_then(|mut worker| worker.work())
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
    mark: Mark,
}

impl Worker {
    fn new(seed: u64, mark: Mark) -> Result<Self, String> {
        let text = |error: CallError| error.to_string();
        let (sandbox, faulty) =
            (Sandbox::current().map_err(text)?, Faulty::attach().map_err(text)?);
        Ok(Self { sandbox, faulty, random: Random::new(seed), mark })
    }

    /// Use everything until killed.
    fn work(&mut self) -> Result<(), String> {
        loop {
            let key = self.random.below(KEYS);
            match self.random.below(1_000) {
                0..350 => self.get(key).map(drop)?,
                350..600 => self.put(key)?,
                600..750 => self.delete(key)?,
                750..850 => self.allow(key)?,
                850..990 => (0..16).try_for_each(|_| self.count())?,
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
        self.mark.set("get");
        let name = name_of(key);
        let found = self.call("kv.get", &[name.as_ptr() as u64, name.len() as u64]);
        match found.map_err(|error| format!("kv.get: {error}"))? {
            Some(value) => check(key, &value).map(|()| true),
            None => Ok(false),
        }
    }

    fn put(&mut self, key: u64) -> Result<(), String> {
        self.mark.set("put");
        let (name, len) = (name_of(key), self.random.below(VALUE_LEN_MAX));
        let value = value_of(key, self.random.next(), len as usize);
        let words =
            [name.as_ptr() as u64, name.len() as u64, value.as_ptr() as u64, value.len() as u64, 0];
        self.call("kv.put", &words).map(drop).map_err(|error| format!("kv.put: {error}"))
    }

    fn delete(&self, key: u64) -> Result<(), String> {
        self.mark.set("delete");
        let name = name_of(key);
        let words = [name.as_ptr() as u64, name.len() as u64];
        self.call("kv.delete", &words).map(drop).map_err(|error| format!("kv.delete: {error}"))
    }

    fn allow(&self, key: u64) -> Result<(), String> {
        self.mark.set("allow");
        let name = name_of(key);
        let words = [name.as_ptr() as u64, name.len() as u64, 1];
        self.call("limit.allow", &words).map(drop).map_err(|error| format!("limit.allow: {error}"))
    }

    fn count(&self) -> Result<(), String> {
        self.mark.set("count");
        allowed("count", self.faulty.count().map(drop), &[])?;
        allowed("lock", self.faulty.lock().map(drop), &[Status::Stuck])
    }

    /// Have it fail, and wait for a moment until it works again.
    fn fault(&mut self) -> Result<(), String> {
        self.mark.set("fault");
        self.fail()?;
        let until = Instant::now() + Duration::from_micros(8);
        while self.faulty.count().is_err() && Instant::now() < until {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn fail(&mut self) -> Result<(), String> {
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

/// The words of a value, which say which key and which writer it is of. Quick to make and to check: workers are
/// to be killed inside upcalls.
fn words_of(key: u64, nonce: u64) -> impl Iterator<Item = [u8; 8]> {
    let mut random = Random::new(nonce ^ key.rotate_left(32));
    std::iter::once(nonce)
        .chain(std::iter::repeat_with(move || random.next()))
        .map(u64::to_le_bytes)
}

fn value_of(key: u64, nonce: u64, len: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(len + 16);
    value.extend(words_of(key, nonce).take(1 + len.div_ceil(8)).flatten());
    value.truncate(len + 8);
    value
}

fn check(key: u64, value: &[u8]) -> Result<(), String> {
    let nonce = value.first_chunk().ok_or("a value without a nonce")?;
    let mut words = words_of(key, u64::from_le_bytes(*nonce));
    let mut chunks = value.chunks(8);
    let is_right = chunks.all(|chunk| words.next().is_some_and(|word| word.starts_with(chunk)));
    if is_right { Ok(()) } else { Err(format!("key {key} has a wrong value")) }
}
