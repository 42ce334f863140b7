//! Makes system calls of programs fail, take long, or do less than they were asked to: what a test cannot
//! easily have happen otherwise.

use ext_api::prelude::*;

/// The extension `faults`.
#[extension(name = "faults", kill_safe)]
pub mod faults {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::Duration;

    use ext_api::calls::{SET_WORDS, find};
    use ext_api::errno;
    use ext_api::prelude::*;

    /// Which of the calls that a rule is for.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Which {
        /// The one with this number, from 1.
        Nth(u64),
        /// Every one whose number can be divided by this.
        Every(u64),
        /// This many of a million, by chance.
        Of(u64),
    }

    /// What becomes of it.
    #[derive(Debug, Clone, Copy)]
    enum What {
        Fail(i32),
        Delay(Duration),
        Short(u64),
    }

    /// One rule.
    #[derive(Debug)]
    struct Rule {
        calls: [u64; SET_WORDS],
        which: Which,
        what: What,
        seen: AtomicU64,
        hit: AtomicU64,
    }

    /// What all processes share.
    #[derive(Debug)]
    pub struct State {
        rules: Vec<Rule>,
        /// Paths that contain this, if it is not empty.
        path: String,
        random: AtomicU64,
    }

    /// `rules`: `CALL:WHICH:WHAT`, several with `+` between them. CALL is a name, `@file`, `@network` or
    /// `all`; WHICH is 3 (the third), `*` (all), `%5` (every fifth) or `~2` (two of a hundred, by chance);
    /// WHAT is the name of an error, a time such as 10ms, or `short4` (4 bytes at most are read or
    /// written). `path`: only calls with a path that contains this. `seed`: of the chance.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, String> {
        let text = |error: ConfigError| error.to_string();
        let rules: String = config.get("rules", String::new()).map_err(text)?;
        let path = config.get("path", String::new()).map_err(text)?;
        let random = AtomicU64::new(config.get("seed", 1u64).map_err(text)?.max(1));
        let rules = rules.split('+').filter(|rule| !rule.is_empty()).map(rule);
        let rules: Vec<Rule> = rules.collect::<Result<_, _>>()?;
        if rules.is_empty() {
            return Err("say rules=CALL:WHICH:WHAT, as in rules=write:3:ENOSPC".into());
        }
        Ok(State { rules, path, random })
    }

    fn rule(text: &str) -> Result<Rule, String> {
        let wrong = |what: &str| format!("rules: {text}: {what}");
        let parts: Vec<&str> = text.split(':').collect();
        let [call, which, what] = parts[..] else {
            return Err(wrong("a rule is CALL:WHICH:WHAT"));
        };
        let calls = find(call).map_err(|_| wrong("no call can be hooked by that name"))?;
        let number = |text: &str| text.parse::<u64>().ok().filter(|number| *number > 0);
        let which = match (which, which.strip_prefix('%'), which.strip_prefix('~')) {
            ("*", ..) => Some(Which::Every(1)),
            (_, Some(every), _) => number(every).map(Which::Every),
            (_, _, Some(of)) => of.parse::<f64>().ok().map(|of| Which::Of((of * 1e4) as u64)),
            _ => number(which).map(Which::Nth),
        };
        let which = which.ok_or_else(|| wrong("WHICH is 3, *, %3 or ~3"))?;
        let time = |text: &str| {
            let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
            let number = digits.parse::<u64>().ok()?;
            match &text[digits.len()..] {
                "us" => Some(Duration::from_micros(number)),
                "ms" => Some(Duration::from_millis(number)),
                "s" => Some(Duration::from_secs(number)),
                _ => None,
            }
        };
        let what = match what.strip_prefix("short") {
            Some(bytes) => number(bytes).map(What::Short),
            None => errno::number(what).map(What::Fail).or_else(|| time(what).map(What::Delay)),
        };
        let what =
            what.ok_or_else(|| wrong("WHAT is an error (ENOSPC), a time (10ms) or short4"))?;
        let (seen, hit) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Rule { calls, which, what, seen, hit })
    }

    /// A program is about to make a call.
    #[on(syscall = "all")]
    fn made(state: &State, call: &mut Call) -> Verdict {
        let number = call.number() as usize;
        let mut said = Verdict::Pass;
        for rule in &state.rules {
            if rule.calls[number / 64] >> (number % 64) & 1 == 0 || !is_meant(state, call) {
                continue;
            }
            let seen = rule.seen.fetch_add(1, Relaxed) + 1;
            let hit = match rule.which {
                Which::Nth(nth) => seen == nth,
                Which::Every(every) => seen.is_multiple_of(every),
                Which::Of(of) => random(state) % 1_000_000 < of,
            };
            // What one has failed the others count as well.
            if !hit || said != Verdict::Pass {
                continue;
            }
            rule.hit.fetch_add(1, Relaxed);
            match rule.what {
                What::Fail(errno) => said = Verdict::Refuse(errno),
                What::Delay(time) => std::thread::sleep(time),
                What::Short(bytes) if is_transfer(call.name()) => {
                    call.set_arg(2, call.arg(2).min(bytes));
                }
                What::Short(_) => {}
            }
        }
        said
    }

    /// Calls whose third argument is how many bytes.
    fn is_transfer(name: &str) -> bool {
        matches!(name, "read" | "write" | "pread64" | "pwrite64" | "sendto" | "recvfrom")
    }

    fn is_meant(state: &State, call: &mut Call) -> bool {
        let wanted = state.path.as_bytes();
        let contains = |path: &[u8]| path.windows(wanted.len()).any(|part| part == wanted);
        wanted.is_empty() || call.paths().any(|at| call.path(at).is_some_and(contains))
    }

    /// Xorshift: processes that come at once may get the same number.
    fn random(state: &State) -> u64 {
        let mut word = state.random.load(Relaxed);
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        state.random.store(word, Relaxed);
        word
    }

    /// How often rule `index`, from 0, has done its work.
    #[handler]
    fn hits(state: &State, index: u64) -> Option<u64> {
        Some(state.rules.get(index as usize)?.hit.load(Relaxed))
    }
}
