//! Counts the system calls of all programs in the sandbox, their failures and their time, and prints
//! those that are asked for.

use ext_api::prelude::*;

/// The extension `trace`.
#[extension(name = "trace", kill_safe)]
pub mod trace {
    use std::fmt::Write;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use ext_api::calls::{HOOKABLE_CALLS, SET_WORDS};
    use ext_api::prelude::*;

    const CALLS: usize = SET_WORDS * 64;
    /// Times are counted by the power of two of their nanoseconds.
    const BUCKETS: usize = 40;

    /// What is known of one call.
    #[derive(Debug)]
    struct Figures {
        count: AtomicU64,
        failed: AtomicU64,
        ns: AtomicU64,
        by_time: [AtomicU64; BUCKETS],
    }

    /// What all processes share.
    #[derive(Debug)]
    pub struct State {
        calls: Vec<Figures>,
        print: Vec<String>,
    }

    /// `print`: calls that are written to the log, separated by colons.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, ConfigError> {
        let print: String = config.get("print", String::new())?;
        let zero = || AtomicU64::new(0);
        let figures = |_| Figures {
            count: zero(),
            failed: zero(),
            ns: zero(),
            by_time: std::array::from_fn(|_| zero()),
        };
        Ok(State {
            calls: (0..CALLS).map(figures).collect(),
            print: print.split(':').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        })
    }

    /// The kernel has carried out a call.
    #[on(syscall_exit = "all")]
    fn done(state: &State, call: &mut Call) -> Verdict {
        let Some(figures) = state.calls.get(call.number() as usize) else { return Verdict::Pass };
        let (result, ns) = (call.result(), call.took_ns());
        figures.count.fetch_add(1, Relaxed);
        figures.failed.fetch_add(u64::from(result < 0), Relaxed);
        figures.ns.fetch_add(ns, Relaxed);
        figures.by_time[(ns.max(1).ilog2() as usize).min(BUCKETS - 1)].fetch_add(1, Relaxed);
        if state.print.iter().any(|name| name == call.name()) {
            print(call);
        }
        Verdict::Pass
    }

    fn print(call: &mut Call) {
        let args: Vec<String> = (0..4).map(|at| format!("{:#x}", call.arg(at))).collect();
        let (name, result, us) = (call.name(), call.result(), call.took_ns() / 1000);
        println!("{} {name}({}) = {result} <{us} us>", Cx::pid(), args.join(", "));
    }

    /// A table of the calls that were made, those that took longest first.
    #[handler]
    fn summary(state: &State) -> String {
        let mut rows: Vec<_> = HOOKABLE_CALLS
            .iter()
            .map(|(name, number)| (*name, &state.calls[*number as usize]))
            .filter(|(_, figures)| figures.count.load(Relaxed) != 0)
            .collect();
        rows.sort_by_key(|(_, figures)| std::cmp::Reverse(figures.ns.load(Relaxed)));
        let mut text = format!(
            "{:>12} {:>10} {:>8} {:>10} {:>10} {:>10} call\n",
            "total us", "calls", "failed", "mean ns", "half ns <", "99% ns <"
        );
        for (name, figures) in rows {
            let [count, failed, ns] =
                [&figures.count, &figures.failed, &figures.ns].map(|word| word.load(Relaxed));
            let below = |percent: u64| {
                let mut seen = 0;
                let bucket = figures.by_time.iter().position(|bucket| {
                    seen += bucket.load(Relaxed);
                    seen * 100 >= count * percent
                });
                2u64 << bucket.unwrap_or(BUCKETS - 1)
            };
            let _ = writeln!(
                text,
                "{:>12} {count:>10} {failed:>8} {:>10} {:>10} {:>10} {name}",
                ns / 1000,
                ns / count.max(1),
                below(50),
                below(99)
            );
        }
        text
    }

    /// Begin anew.
    #[handler]
    fn forget(state: &State) {
        for figures in &state.calls {
            let words = [&figures.count, &figures.failed, &figures.ns];
            words.into_iter().chain(&figures.by_time).for_each(|word| word.store(0, Relaxed));
        }
    }
}
