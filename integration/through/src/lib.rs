//! An extension that lets every system call through that can be hooked, and counts them.

use ext_api::prelude::*;

#[extension(name = "through", kill_safe)]
#[expect(missing_docs, missing_debug_implementations, reason = "for tests only")]
pub mod through {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use ext_api::prelude::*;

    pub struct State {
        counts: [AtomicU64; 512],
        answer: u64,
    }

    /// `answer`: the number of a call that is answered with 7, and not counted.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, ConfigError> {
        let answer = config.get("answer", u64::MAX)?;
        Ok(State { counts: std::array::from_fn(|_| AtomicU64::new(0)), answer })
    }

    #[on(syscall = "all")]
    fn seen(state: &State, call: &mut Call) -> Verdict {
        if call.number() == state.answer {
            return Verdict::Answer(7);
        }
        if let Some(count) = state.counts.get(call.number() as usize) {
            count.fetch_add(1, Relaxed);
        }
        Verdict::Pass
    }

    /// Asked by policies only.
    #[on(syscall = "")]
    fn judge(_state: &State, call: &mut Call) -> Verdict {
        let at = usize::from(call.name().ends_with("at"));
        match call.path(at) {
            Some(path) if path.ends_with(b"/forbidden") => Verdict::Refuse(13),
            Some(path) if path.ends_with(b"/panics") => panic!("asked about it"),
            _ => Verdict::Pass,
        }
    }

    /// How often the call `number` was made; of 512, all of them.
    #[handler]
    fn count(state: &State, number: u64) -> u64 {
        let all = || state.counts.iter().map(|count| count.load(Relaxed)).sum();
        state.counts.get(number as usize).map_or_else(all, |count| count.load(Relaxed))
    }

    /// Nanoseconds per call of libos itself, which no hook sees.
    #[handler]
    fn own_calls(_state: &State, count: u64) -> f64 {
        let began = Cx::now_ns();
        for _ in 0..count {
            std::hint::black_box(std::os::unix::process::parent_id());
        }
        (Cx::now_ns() - began) as f64 / count.max(1) as f64
    }

    #[handler]
    fn forget(state: &State) {
        state.counts.iter().for_each(|count| count.store(0, Relaxed));
    }
}
