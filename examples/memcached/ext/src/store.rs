//! The entries of kv-cache, by upcalls from within our own: both run in this process, at this moment.

use std::sync::atomic::{AtomicU64, Ordering};

use ext_api::abi::Status;
use ext_api::client::Sandbox;
use ext_api::error::CallError;
use ext_api::wire::Arg;

use crate::session::Entries;

/// Handles of its handlers, each 0 until it is needed.
#[derive(Debug, Default)]
pub(crate) struct Store {
    get: AtomicU64,
    put: AtomicU64,
    delete: AtomicU64,
    clear: AtomicU64,
    stats: AtomicU64,
}

/// Words of byte strings and numbers, in the order of a handler's arguments.
fn words<const N: usize>(strings: &[&[u8]], number: Option<u64>) -> [u64; N] {
    let (mut all, mut at) = ([0; N], 0);
    for string in strings {
        at += string.give(&mut all[at..]);
    }
    if let Some(number) = number {
        all[at] = number;
    }
    all
}

/// Call a handler by its handle, which is looked up anew when kv-cache was loaded anew.
fn call<R>(
    kept: &AtomicU64,
    name: &str,
    mut with: impl FnMut(&Sandbox, u64) -> Result<R, CallError>,
) -> Result<R, String> {
    let sandbox = Sandbox::current().map_err(|error| error.to_string())?;
    let known = kept.load(Ordering::Relaxed);
    let result = match known {
        0 => Err(CallError::Refused(Status::Stale)),
        handle => with(&sandbox, handle),
    };
    if !matches!(result, Err(CallError::Refused(Status::Stale))) {
        return result.map_err(|error| error.to_string());
    }
    let handle = sandbox.find(name).map_err(|error| error.to_string())?;
    kept.store(handle, Ordering::Relaxed);
    with(&sandbox, handle).map_err(|error| error.to_string())
}

impl Entries for Store {
    fn get(&self, key: &[u8], into: &mut Vec<u8>) -> Result<bool, String> {
        let words: [u64; 2] = words(&[key], None);
        call(&self.get, "kv.get", |sandbox, handle| {
            sandbox.invoke_into::<Option<()>>(handle, &words, into).map(|found| found.is_some())
        })
    }

    fn put(&self, key: &[u8], value: &[u8], ttl_ms: u64) -> Result<(), String> {
        let words: [u64; 5] = words(&[key, value], Some(ttl_ms));
        call(&self.put, "kv.put", |sandbox, handle| sandbox.invoke::<()>(handle, &words))
    }

    fn delete(&self, key: &[u8]) -> Result<bool, String> {
        let words: [u64; 2] = words(&[key], None);
        call(&self.delete, "kv.delete", |sandbox, handle| sandbox.invoke::<bool>(handle, &words))
    }

    fn clear(&self) -> Result<(), String> {
        call(&self.clear, "kv.clear", |sandbox, handle| sandbox.invoke::<()>(handle, &[]))
    }

    fn stats(&self) -> Result<String, String> {
        call(&self.stats, "kv.stats", |sandbox, handle| sandbox.invoke::<String>(handle, &[]))
    }

    fn now_ns(&self) -> u64 {
        ext_api::extension::Cx::now_ns()
    }

    fn unix_s(&self) -> i64 {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
        since.map_or(0, |since| since.as_secs() as i64)
    }
}
