//! `bench kv`: a cache as an extension, beside redis and memcached.
#![expect(unsafe_code, reason = "calls through the gate, and forks")]

use std::cell::RefCell;
use std::io::{self, Read, Write};

use ext_api::abi::{Handle, Reply};
use ext_api::client::Sandbox;

use super::inside::Inside;
use super::peers::{Kind, Server};
use super::pin::{pin, time};
use super::{BenchError, Measure, Options, Report, built, measure};

const KEYS: u64 = 1 << 20;
const KEYS_QUICK: u64 = 1 << 12;
/// Bytes of a value.
const VALUE_LEN: usize = 100;

/// Numbers that look random: xorshift.
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new() -> Self {
        Self(0x2545_f491_4f6c_dd1d)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

pub(super) fn value_of(key: u64) -> [u8; VALUE_LEN] {
    let mut value = [b'v'; VALUE_LEN];
    value[..8].copy_from_slice(&key.to_le_bytes());
    value
}

/// The sum of a value's words: [`value_of`] makes that of a key `key` more than that of key 0.
pub(super) fn checksum(value: &[u8]) -> u64 {
    let (words, _) = value.as_chunks::<8>();
    words.iter().fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

fn text_key(key: u64) -> [u8; 16] {
    let mut text = [0; 16];
    let _ = write!(&mut text[..], "{key:016}");
    text
}

/// Random keys, and as text: made before the clock runs.
fn random_keys(count: u64, keys: u64, seed: u64) -> (Vec<u64>, Vec<[u8; 16]>) {
    let mut random = Random(Random::new().0 ^ seed);
    let keys: Vec<u64> = (0..count).map(|_| random.next() % keys).collect();
    let texts = keys.iter().map(|&key| text_key(key)).collect();
    (keys, texts)
}

/// The process in the sandbox: `fill`, or `get`, `set`, `get2` with the number of keys behind.
pub(super) fn inside(sandbox: &Sandbox, what: &str, count: u64) -> Result<f64, String> {
    let (what, keys) = what.split_once(':').unwrap_or((what, "1"));
    let keys: u64 = keys.parse().unwrap_or(1);
    let find = |name: &str| sandbox.find(name).map_err(|error| error.to_string());
    let (get, put) = (find("kv.get")?, find("kv.put")?);
    match what {
        "fill" => (0..count).try_for_each(|key| store(sandbox, put, key)).map(|()| count as f64),
        "get" => gets(sandbox, get, count, keys, 0).map(|ns| 1e9 / ns),
        "get2" => two(|seed| gets(sandbox, get, count, keys, seed)).map_err(|e| e.to_string())?,
        // Other keys than those asked for: a cache that was filled in the order in which it is asked
        // answers faster than any.
        "set" => sets(sandbox, put, count, keys, 3).map(|ns| 1e9 / ns),
        _ => Err("what is that?".into()),
    }
}

fn store(sandbox: &Sandbox, put: Handle, key: u64) -> Result<(), String> {
    let (text, value) = (text_key(key), value_of(key));
    put_raw(sandbox, put, &text, &value)
}

fn put_raw(sandbox: &Sandbox, put: Handle, key: &[u8], value: &[u8]) -> Result<(), String> {
    let words =
        [key.as_ptr() as u64, key.len() as u64, value.as_ptr() as u64, value.len() as u64, 0];
    sandbox.invoke::<()>(put, &words).map_err(|error| error.to_string())
}

/// Nanoseconds per random GET, each value copied out and added up.
fn gets(sandbox: &Sandbox, get: Handle, count: u64, keys: u64, seed: u64) -> Result<f64, String> {
    let (numbers, texts) = random_keys(count, keys, seed);
    let mut buffer = [0u8; 256];
    let (mut sum, mut missing) = (0u64, 0u64);
    let ns = time(count, || {
        for key in &texts {
            let mut reply = Reply { buf: buffer.as_mut_ptr(), cap: 256, ..Reply::empty() };
            let words = [key.as_ptr() as u64, key.len() as u64];
            // SAFETY: `kv.get` takes one byte string, and the reply's buffer is ours.
            let status = unsafe { sandbox.call_raw(get, &words, &mut reply) };
            missing += u64::from(status != 0 || reply.len != VALUE_LEN);
            sum = sum.wrapping_add(checksum(&buffer[..VALUE_LEN]));
        }
    });
    let expected =
        numbers.iter().fold(0u64, |sum, &key| sum.wrapping_add(checksum(&value_of(key))));
    match (missing, sum == expected) {
        (0, true) => Ok(ns),
        (0, false) => Err("the values' checksum is wrong".into()),
        _ => Err(format!("{missing} of {count} keys were missing")),
    }
}

fn sets(sandbox: &Sandbox, put: Handle, count: u64, keys: u64, seed: u64) -> Result<f64, String> {
    let (numbers, texts) = random_keys(count, keys, seed);
    let mut result = Ok(());
    let ns = time(count, || {
        for (key, text) in numbers.iter().zip(&texts) {
            if let Err(error) = put_raw(sandbox, put, text, &value_of(*key)) {
                result = Err(error);
            }
        }
    });
    result.map(|()| ns)
}

/// Two processes do the same at once, on two CPUs; operations per second of both.
fn two(work: impl Fn(u64) -> Result<f64, String>) -> io::Result<Result<f64, String>> {
    let ((mut go, mut start), (mut from, mut to)) = (io::pipe()?, io::pipe()?);
    // SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        pin(0, 1);
        // The first round brings the child's own page tables up.
        let _ = work(1);
        let _ = to.write_all(&[1]).and_then(|()| go.read_exact(&mut [0]));
        let ns = work(1).unwrap_or(f64::NAN);
        let _ = to.write_all(&ns.to_le_bytes());
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    from.read_exact(&mut [0])?;
    start.write_all(&[1])?;
    let ours = work(2);
    let mut theirs = [0; 8];
    from.read_exact(&mut theirs)?;
    // SAFETY: our own child, which ends by itself.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    Ok(ours.map(|ns| 1e9 / ns + 1e9 / f64::from_le_bytes(theirs)))
}

pub(super) fn run(options: Options) -> Result<Report, BenchError> {
    let (keys, scale) = if options.quick { (KEYS_QUICK, 50) } else { (KEYS, 1) };
    let config = format!("entries={keys},limit=320M");
    let inside = RefCell::new(Inside::start(&[built("libkv_cache.so")?], &config)?);
    inside.borrow_mut().measure("fill", keys)?;
    let servers: Vec<(Kind, RefCell<Server>)> = [Kind::Redis, Kind::Memcached]
        .into_iter()
        .filter_map(|kind| {
            let mut server = Server::start(kind).ok()?;
            server.fill(keys).ok()?;
            Some((kind, RefCell::new(server)))
        })
        .collect();
    pin(0, 0);
    let mut rows: Vec<Measure<'_>> = Vec::new();
    for (name, what) in [
        ("sbx GET, 1 process", "get"),
        ("sbx GET, 2 processes", "get2"),
        ("sbx SET, 1 process", "set"),
    ] {
        let (inside, what) = (&inside, format!("{what}:{keys}"));
        let count = 1_000_000 / scale;
        rows.push((name.into(), "/s", Box::new(move || inside.borrow_mut().measure(&what, count))));
    }
    for (kind, server) in &servers {
        for (set, batch, cpu, name) in [
            (false, 1, 1, "GET, cross core"),
            (false, 1, 0, "GET, same core"),
            (false, 16, 1, "GET -P 16, cross core"),
            (true, 1, 1, "SET, cross core"),
        ] {
            let count = 20_000 * if batch > 1 { 4 } else { 1 } / scale;
            let measure = move || {
                let mut server = server.borrow_mut();
                server.pin(cpu);
                let rate = server.rate(set, batch, count, keys);
                rate.map_err(|error| BenchError::Io("talking to a server", error))
            };
            rows.push((format!("{kind:?} {name}"), "/s", Box::new(measure)));
        }
    }
    let mut report = Report::new("kv", options.rounds, measure(&options, rows)?);
    goals(&mut report);
    Ok(report)
}

fn goals(report: &mut Report) {
    let one = "sbx GET, 1 process";
    let over = |[ours, theirs]: [f64; 2]| ours / theirs;
    for (name, row, goal) in [
        ("GET / redis GET, cross core", "Redis GET, cross core", 300.0),
        ("GET / redis GET, same core", "Redis GET, same core", 80.0),
        ("GET / redis GET -P 16", "Redis GET -P 16, cross core", 10.0),
    ] {
        report.goal(name, [one, row], over, (">=", goal));
    }
    report.goal("2 processes / 1 process", ["sbx GET, 2 processes", one], over, (">=", 1.8));
    report.explain("Redis", "redis-server does not run here (Debian package redis-server)");
}
