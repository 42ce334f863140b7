//! Token buckets that all workers of a fleet share: a limit holds for the fleet, not per worker.

use ext_api::prelude::*;

/// The extension `limit`.
#[extension(name = "limit", heap = "32M", kill_safe)]
pub mod limit {
    use std::sync::atomic::Ordering;

    use ext_api::prelude::*;
    use ext_api::shared::{AtomicWord, Map, MapError};

    /// Keys kept at most; those used longest ago go first, and begin with a full bucket again.
    const KEYS_DEFAULT: usize = 100_000;
    const SAMPLE: usize = 12;
    /// What a token is counted in.
    const PARTS: u64 = 1_000;

    /// What all processes share.
    #[derive(Debug)]
    pub struct Limits {
        buckets: Map,
        keys: u64,
        /// Tokens that come back per second.
        rate: u64,
        /// Tokens that a bucket holds.
        burst: u64,
    }

    /// Parts of tokens in a bucket (32 bits) and when that was (milliseconds, 32 bits): one word,
    /// so that a change is there whole or not at all. 0 is a bucket that was never used.
    #[derive(Debug, Clone, Copy)]
    struct Level {
        parts: u64,
        at_ms: u64,
    }

    impl Level {
        const fn from_word(word: u64) -> Self {
            Self { parts: word >> 32, at_ms: word & 0xffff_ffff }
        }

        const fn word(self) -> u64 {
            self.parts << 32 | (self.at_ms & 0xffff_ffff)
        }
    }

    impl Limits {
        /// What is in the bucket now.
        fn level(&self, word: &AtomicWord, now_ms: u64) -> Level {
            let full = Level { parts: self.burst * PARTS, at_ms: now_ms };
            match word.load(Ordering::Relaxed) {
                0 => full,
                known => {
                    let known = Level::from_word(known);
                    let passed = (now_ms & 0xffff_ffff).wrapping_sub(known.at_ms) & 0xffff_ffff;
                    // A millisecond of one token per second is a part of a token.
                    let parts = known.parts.saturating_add(passed.saturating_mul(self.rate));
                    Level { parts: parts.min(full.parts), ..full }
                }
            }
        }

        fn with<R>(&self, key: &[u8], change: impl Fn(&AtomicWord, u64) -> R) -> Result<R, String> {
            // 1 at least: a word of 0 would be a new bucket.
            let now_ms = Cx::now_ns() / 1_000_000 + 1;
            let change = |words: &[AtomicWord; 1]| change(&words[0], now_ms);
            let evict = || self.buckets.evict(SAMPLE).map_err(|error| error.to_string());
            for _turn in 0..64 {
                if self.buckets.stats().entries > self.keys {
                    evict()?;
                }
                match self.buckets.words(key, change) {
                    Err(MapError::Full) => {
                        evict()?;
                    }
                    result => return result.map_err(|error| error.to_string()),
                }
            }
            Err("no room for this key".into())
        }
    }

    /// `rate`: tokens per second; `burst`: tokens at once; `keys`: how many are kept.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<Limits, String> {
        let text = |error: ConfigError| error.to_string();
        let (rate, burst) = (config.get("rate", 100), config.get("burst", 100));
        let keys = config.get("keys", KEYS_DEFAULT).map_err(text)?;
        let (rate, burst) = (rate.map_err(text)?, burst.map_err(text)?);
        let burst_max = u64::from(u32::MAX) / PARTS;
        if burst == 0 || burst > burst_max {
            return Err(format!("burst={burst}: expected 1 to {burst_max}"));
        }
        if rate > u64::from(u32::MAX) {
            return Err(format!("rate={rate}: expected at most {}", u32::MAX));
        }
        // Without a bucket that is kept everybody's is always full.
        if keys == 0 {
            return Err("keys=0: expected 1 at least".into());
        }
        let buckets = Map::new(keys).map_err(|_| format!("keys={keys}: the heap has no room"))?;
        Ok(Limits { buckets, keys: keys as u64, rate, burst })
    }

    /// Take `cost` tokens from the bucket of `key`; false, and nothing taken, if it has fewer.
    #[handler]
    fn allow(limits: &Limits, key: &[u8], cost: u64) -> Result<bool, String> {
        limits.with(key, |word, now_ms| {
            let level = limits.level(word, now_ms);
            let left = cost.checked_mul(PARTS).and_then(|cost| level.parts.checked_sub(cost));
            let after = left.map_or(level, |parts| Level { parts, ..level });
            word.store(after.word(), Ordering::Relaxed);
            left.is_some()
        })
    }

    /// Tokens in the bucket of `key`.
    #[handler]
    fn peek(limits: &Limits, key: &[u8]) -> Result<u64, String> {
        limits.with(key, |word, now_ms| limits.level(word, now_ms).parts / PARTS)
    }
}
