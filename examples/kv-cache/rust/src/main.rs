//! Uses the cache that other processes use as well.

use kv_cache::kv;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cache = kv::Client::attach()?;
    let mut value = Vec::new();
    match cache.get(b"from-python", &mut value)? {
        Some(()) => println!("from python: {}", String::from_utf8_lossy(&value)),
        None => println!("from python: nothing"),
    }
    cache.put(b"from-rust", b"a value that rust stored", 0)?;
    cache.put(b"short", b"gone in a moment", 1)?;
    std::thread::sleep(std::time::Duration::from_millis(5));
    println!("expired: {}", cache.get(b"short", &mut value)?.is_none());
    cache.delete(b"short")?;
    println!("entries: {}", cache.len()?);
    Ok(())
}
