//! Answers what programs ask about paths again and again (is it there, how large is it) from one table for
//! all of them.

use ext_api::prelude::*;

/// The extension `read_cache`.
#[extension(name = "read_cache", heap = "64M", kill_safe)]
pub mod read_cache {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::Duration;

    use ext_api::errno;
    use ext_api::limits::{CONTEXTS_MAX, STACK_LEN};
    use ext_api::prelude::*;
    use ext_api::shared::{Counter, Map};

    /// `struct stat`.
    const STAT_LEN: usize = 144;
    /// Paths that are remembered.
    const ENTRIES: usize = 64 << 10;
    /// Longest of them.
    const PATH_LEN: usize = 512;
    /// A kind, a generation, flags, then the path.
    const HEAD_LEN: usize = 1 + 8 + 8;
    const ENOENT: i64 = -2;

    /// What all processes share.
    #[derive(Debug)]
    pub struct State {
        table: Map,
        /// Counts the changes to folders that participants have made.
        generation: AtomicU64,
        /// What it was when a thread's question went to the kernel, and a hash of that question: what has changed
        /// since, the answer may not know.
        asked: Vec<[AtomicU64; 2]>,
        ttl_ns: u64,
        under: String,
        hits: Counter,
        misses: Counter,
    }

    /// `ttl`: how long what another process than a participant changes may go unseen; `under`: only
    /// paths that begin like this.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, String> {
        let text = |error: ConfigError| error.to_string();
        let ttl = config.duration("ttl", Duration::from_secs(1)).map_err(text)?;
        Ok(State {
            table: Map::new(ENTRIES).map_err(|error| error.to_string())?,
            generation: AtomicU64::new(0),
            asked: (0..CONTEXTS_MAX).map(|_| [0; 2].map(AtomicU64::new)).collect(),
            ttl_ns: u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX),
            under: config.get("under", String::from("/")).map_err(text)?,
            hits: Counter::new(),
            misses: Counter::new(),
        })
    }

    /// What a call asks, and of which of its arguments.
    struct Question {
        kind: u8,
        path: usize,
        /// Where the answer goes.
        to: Option<usize>,
        flags: u64,
    }

    fn question(call: &Call) -> Option<Question> {
        const AT_EMPTY_PATH: u64 = 0x1000;
        const CHANGES: u64 = 0o3 | 0o100 | 0o1000 | 0o20_000_000;
        let ask = |kind, path, to, flags| Some(Question { kind, path, to, flags });
        match call.name() {
            "stat" => ask(b's', 0, Some(1), 0),
            "lstat" => ask(b's', 0, Some(1), 0x100),
            "newfstatat" if call.arg(3) & AT_EMPTY_PATH == 0 => ask(b's', 1, Some(2), call.arg(3)),
            "access" => ask(b'a', 0, None, call.arg(1)),
            "faccessat" => ask(b'a', 1, None, call.arg(2)),
            // Of opens only those are answered that fail.
            "open" if call.arg(1) & CHANGES == 0 => ask(b'o', 0, None, call.arg(1)),
            "openat" if call.arg(2) & CHANGES == 0 => ask(b'o', 1, None, call.arg(2)),
            _ => None,
        }
    }

    /// The place of the calling thread, by the stack that the upcall runs on.
    fn place(state: &State) -> &[AtomicU64; 2] {
        let here = 0u8;
        &state.asked[(&raw const here).addr() / STACK_LEN % CONTEXTS_MAX]
    }

    /// A hash of what is asked, whatever has changed.
    fn hash(key: &[u8]) -> u64 {
        let bytes = key[..1].iter().chain(&key[9..]);
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        })
    }

    /// The key of what is asked; None if the answer depends on more than the path.
    fn key(
        state: &State,
        call: &Call,
        question: &Question,
    ) -> Option<([u8; HEAD_LEN + PATH_LEN], usize)> {
        let mut key = [0; HEAD_LEN + PATH_LEN];
        key[0] = question.kind;
        key[1..9].copy_from_slice(&state.generation.load(Relaxed).to_le_bytes());
        key[9..17].copy_from_slice(&question.flags.to_le_bytes());
        let len = call.peek_text(question.path, &mut key[HEAD_LEN..])?;
        let path = &key[HEAD_LEN..HEAD_LEN + len];
        let usable = path.starts_with(b"/") && path.starts_with(state.under.as_bytes());
        // What the kernel makes up there differs from process to process.
        let has = |name: &[u8]| path.windows(name.len()).any(|part| part == name);
        let made_up = has(b"/proc") || has(b"/dev");
        (usable && !made_up).then_some((key, HEAD_LEN + len))
    }

    /// A program asks.
    #[on(syscall = "stat lstat newfstatat access faccessat open openat")]
    fn asked(state: &State, call: &mut Call) -> Verdict {
        let Some(question) = question(call) else { return Verdict::Pass };
        let Some((key, len)) = key(state, call, &question) else { return Verdict::Pass };
        let mut answer = [0; STAT_LEN];
        let read = |value: &[u8]| {
            answer[..value.len()].copy_from_slice(value);
            value.len()
        };
        match (state.table.get(&key[..len], Cx::now_ns, read), question.to) {
            (Ok(Some(0)), _) => {
                state.hits.add(1);
                errno::number("ENOENT").map_or(Verdict::Pass, Verdict::Refuse)
            }
            (Ok(Some(STAT_LEN)), Some(to)) if call.fill(to, &answer) => {
                state.hits.add(1);
                Verdict::Answer(0)
            }
            _ => {
                state.misses.add(1);
                let [of, generation] = place(state);
                generation
                    .store(u64::from_le_bytes(key[1..9].try_into().unwrap_or([0; 8])), Relaxed);
                of.store(hash(&key[..len]), Relaxed);
                Verdict::Pass
            }
        }
    }

    /// The kernel has answered.
    #[on(syscall_exit = "stat lstat newfstatat access faccessat open openat")]
    fn answered(state: &State, call: &mut Call) -> Verdict {
        let Some(question) = question(call) else { return Verdict::Pass };
        let result = call.result();
        let mut value = [0; STAT_LEN];
        let len = match (result, question.to) {
            (ENOENT, _) => 0,
            (0, Some(to)) if call.peek(to, STAT_LEN, &mut value) == Some(STAT_LEN) => STAT_LEN,
            _ => return Verdict::Pass,
        };
        if let Some((mut key, key_len)) = key(state, call, &question) {
            let [of, generation] = place(state);
            // A signal handler may have asked something else meanwhile.
            if of.swap(0, Relaxed) != hash(&key[..key_len]) {
                return Verdict::Pass;
            }
            key[1..9].copy_from_slice(&generation.load(Relaxed).to_le_bytes());
            let expires = Cx::now_ns().saturating_add(state.ttl_ns);
            if state.table.stats().entries >= ENTRIES as u64 {
                let _ = state.table.evict(8);
            }
            let _ = state.table.insert(&key[..key_len], &value[..len], expires);
        }
        Verdict::Pass
    }

    /// A participant has changed a folder, or what is said of a file.
    #[on(
        syscall_exit = "open openat openat2 creat unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir link \
                         linkat symlink symlinkat mknod mknodat bind chmod fchmod fchmodat fchmodat2 chown fchown \
                         lchown fchownat truncate ftruncate utime utimes futimesat utimensat fallocate"
    )]
    fn changed(state: &State, call: &mut Call) -> Verdict {
        let opens = matches!(call.name(), "open" | "openat");
        if call.result() >= 0 && !(opens && question(call).is_some()) {
            state.generation.fetch_add(1, Relaxed);
        }
        Verdict::Pass
    }

    /// How often there was an answer (0), and how often not (1).
    #[handler]
    fn count(state: &State, which: u64) -> u64 {
        if which == 0 { state.hits.sum() } else { state.misses.sum() }
    }
}
