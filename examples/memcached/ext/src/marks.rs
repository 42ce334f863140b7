//! What a client says of an entry that kv-cache does not keep: its flags, and when it goes. Most entries
//! have neither. When there is no room for all, the marks that were used longest ago go: their entries
//! then have no flags.

use ext_api::shared::{Map, MapError};

/// Marks that are expected.
const MARKS: usize = 128 << 10;
/// Bytes that they may take.
const BYTES_MAX: u64 = 24 << 20;
/// Marks looked at to find an old one.
const SAMPLE: usize = 8;
/// Attempts to make room for one.
const EVICTIONS_MAX: usize = 64;

/// Of one entry.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The client's own.
    pub flags: u32,
    /// When it goes, in monotonic nanoseconds; 0 if it does not.
    pub expires_ns: u64,
}

/// Of all entries.
#[derive(Debug)]
pub struct Marks {
    map: Map,
}

impl Marks {
    /// None yet.
    ///
    /// # Errors
    /// The heap is too small.
    pub fn new() -> Result<Self, String> {
        let map = Map::new(MARKS).map_err(|_| format!("no room for {MARKS} marks"))?;
        Ok(Self { map })
    }

    /// What was said of `key`. One that cannot be had was not.
    pub(crate) fn get(&self, key: &[u8], now_ns: u64) -> Mark {
        let read = |bytes: &[u8]| {
            let (flags, expires) = bytes.split_first_chunk()?;
            let expires_ns = u64::from_le_bytes(*expires.first_chunk()?);
            Some(Mark { flags: u32::from_le_bytes(*flags), expires_ns })
        };
        self.map.get(key, || now_ns, read).ok().flatten().flatten().unwrap_or_default()
    }

    /// Say it.
    pub(crate) fn set(&self, key: &[u8], mark: Mark) {
        if mark == Mark::default() {
            // Most have none: this is a look, and no lock, then.
            let _ = self.map.remove(key);
            return;
        }
        let bytes = [&mark.flags.to_le_bytes()[..], &mark.expires_ns.to_le_bytes()].concat();
        for _ in 0..EVICTIONS_MAX {
            if self.map.stats().bytes < BYTES_MAX {
                match self.map.insert(key, &bytes, mark.expires_ns) {
                    Err(MapError::Full) => {}
                    _ => return,
                }
            }
            let _ = self.map.evict(SAMPLE);
        }
    }

    pub(crate) fn clear(&self) {
        // A bucket that cannot be had keeps its marks, of entries that are gone.
        let _ = self.map.clear();
    }
}
