//! An extension that looks at system calls, before and after, and meddles with them as it is told.
#![expect(unsafe_code, reason = "faults on purpose")]

use ext_api::prelude::*;

#[extension(name = "meddler")]
#[expect(missing_docs, missing_debug_implementations, reason = "for tests only")]
pub mod meddler {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use ext_api::prelude::*;

    /// What it does to calls with a path that contains a word.
    pub struct State {
        word: String,
        refuse: bool,
        to: String,
        answer: i64,
        before: AtomicU64,
        after: AtomicU64,
    }

    /// `word`: of calls with another path it takes no notice. `refuse`: with EACCES, which it does to paths that
    /// end with `/refused` anyway. `to`: another path for
    /// it. `answer`: another result, afterwards.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, ConfigError> {
        Ok(State {
            word: config.get("word", "/".to_owned())?,
            refuse: config.get("refuse", false)?,
            to: config.get("to", String::new())?,
            answer: config.get("answer", 0)?,
            before: AtomicU64::new(0),
            after: AtomicU64::new(0),
        })
    }

    #[save(version = 1)]
    fn save(state: &State) -> Vec<u8> {
        state.before.load(Relaxed).to_le_bytes().to_vec()
    }

    #[upgrade]
    fn upgrade(cx: &Cx, config: Config, old: Saved<'_>) -> Result<State, String> {
        let before = old.bytes.try_into().map_err(|_| "eight bytes were expected")?;
        let state = init(cx, config).map_err(|error| error.to_string())?;
        Ok(State { before: AtomicU64::new(u64::from_le_bytes(before)), ..state })
    }

    /// The path of the call that it takes notice of, in the log, and which argument it is.
    fn noticed(state: &State, when: &str, call: &mut Call) -> Option<usize> {
        let name = call.name();
        let at = call.paths().next()?;
        let path = String::from_utf8_lossy(call.path(at)?).into_owned();
        path.contains(&state.word).then(|| {
            println!("{when} {name} {path} {}", call.result());
            at
        })
    }

    #[on(syscall = "@file")]
    fn before(state: &State, call: &mut Call) -> Verdict {
        let Some(at) = noticed(state, "before", call) else { return Verdict::Pass };
        state.before.fetch_add(1, Relaxed);
        if call.path(at).is_some_and(|path| path.ends_with(b"faults")) {
            // SAFETY: none; the upcall is to end here.
            unsafe { std::ptr::without_provenance_mut::<u64>(8).write_volatile(1) }
        }
        if !state.to.is_empty() {
            call.set_path(at, state.to.as_bytes());
        }
        let refuse = state.refuse || call.path(at).is_some_and(|path| path.ends_with(b"/refused"));
        if refuse { Verdict::Refuse(13) } else { Verdict::Pass }
    }

    #[on(syscall_exit = "@file")]
    fn after(state: &State, call: &mut Call) -> Verdict {
        if noticed(state, "after", call).is_none() {
            return Verdict::Pass;
        }
        state.after.fetch_add(1, Relaxed);
        if state.answer == 0 { Verdict::Pass } else { Verdict::Answer(state.answer) }
    }

    /// How often it has taken notice: before calls, or after them.
    #[handler]
    fn seen(state: &State, after: bool) -> u64 {
        if after { state.after.load(Relaxed) } else { state.before.load(Relaxed) }
    }
}
