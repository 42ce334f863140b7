//! A cache of byte strings that all processes of a sandbox share: least recently used entries make
//! room for new ones, entries may expire, and the bytes that it keeps have a limit.

use ext_api::prelude::*;

/// The extension `kv`.
#[extension(name = "kv", heap = "384M", budget = "1s", kill_safe)]
pub mod kv {
    use ext_api::prelude::*;
    use ext_api::shared::{Counter, Map, MapError};

    /// Entries looked at to find one that was not used for long.
    const SAMPLE: usize = 12;
    /// Entries that make room for one at most: a tenth of the budget.
    const EVICTIONS_MAX: usize = 1 << 16;

    /// What all processes share.
    #[derive(Debug)]
    pub struct Cache {
        map: Map,
        limit: u64,
        hits: Counter,
        misses: Counter,
        evictions: Counter,
    }

    impl Cache {
        /// Take out what was used longest ago; false if there is nothing.
        fn evict(&self) -> Result<bool, String> {
            let bytes = self.map.evict(SAMPLE).map_err(|error| error.to_string())?;
            self.evictions.add(u64::from(bytes > 0));
            Ok(bytes > 0)
        }
    }

    /// `limit`: bytes of entries; `entries`: how many are expected.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<Cache, String> {
        let text = |error: ConfigError| error.to_string();
        let limit = config.bytes("limit", 256 << 20).map_err(text)? as u64;
        let entries = config.get("entries", 1usize << 20).map_err(text)?;
        let map = Map::new(entries).map_err(|_| format!("no room for {entries} entries"))?;
        Ok(Cache {
            map,
            limit,
            hits: Counter::new(),
            misses: Counter::new(),
            evictions: Counter::new(),
        })
    }

    /// The value of `key`.
    #[handler]
    fn get(cache: &Cache, key: &[u8], out: &mut Out<'_>) -> Option<()> {
        // A bucket that cannot be had is a miss: a cache may forget.
        let found = cache.map.copy(key, Cx::now_ns, out).unwrap_or(false);
        let count = if found { &cache.hits } else { &cache.misses };
        count.add(1);
        found.then_some(())
    }

    /// Keep `value` for `ttl_ms` milliseconds, or for as long as there is room if that is 0.
    #[handler]
    fn put(cache: &Cache, key: &[u8], value: &[u8], ttl_ms: u64) -> Result<(), String> {
        let len = Map::entry_len(key, value);
        if len > cache.limit {
            return Err(format!("{len} bytes are more than the cache's limit, {}", cache.limit));
        }
        let expires = match ttl_ms {
            0 => 0,
            ms => Cx::now_ns().saturating_add(ms.saturating_mul(1_000_000)),
        };
        let mut turn = 0;
        // If there is nothing to evict, the count is too high: a kill may leave it so.
        while cache.map.stats().bytes + len > cache.limit && cache.evict()? {
            turn += 1;
            if turn == EVICTIONS_MAX {
                return Err(format!("{turn} entries made no room for {len} bytes; put it again"));
            }
        }
        loop {
            match cache.map.insert(key, value, expires) {
                Ok(_) => return Ok(()),
                Err(MapError::Full) if turn < EVICTIONS_MAX && cache.evict()? => turn += 1,
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Forget `key`; true if it was there.
    #[handler]
    fn delete(cache: &Cache, key: &[u8]) -> Result<bool, String> {
        cache.map.remove(key).map_err(|error| error.to_string())
    }

    /// Number of entries, those that have expired but still take room included.
    #[handler]
    fn len(cache: &Cache) -> u64 {
        cache.map.stats().entries
    }

    /// Forget everything.
    #[handler(budget = "10s")]
    fn clear(cache: &Cache) -> Result<(), String> {
        cache.map.clear().map_err(|error| error.to_string())
    }

    /// Figures, as JSON.
    #[handler]
    fn stats(cache: &Cache) -> String {
        let stats = cache.map.stats();
        format!(
            "{{\"entries\":{},\"bytes\":{},\"limit\":{},\"hits\":{},\"misses\":{},\"evictions\":{}}}",
            stats.entries,
            stats.bytes,
            cache.limit,
            cache.hits.sum(),
            cache.misses.sum(),
            cache.evictions.sum()
        )
    }
}
