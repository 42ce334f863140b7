//! An extension that runs by itself, and says how often it did.

#![expect(unsafe_code, reason = "faults on purpose")]

use ext_api::prelude::*;

#[extension(name = "watcher", kill_safe)]
#[expect(missing_docs, missing_debug_implementations, reason = "for tests only")]
pub mod watcher {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::time::Duration;

    use ext_api::prelude::*;
    use ext_api::shared::Grant;
    use ext_api::timer::{Timer, TimerId};

    const FIGURES: usize = 64;

    pub struct State {
        figures: [AtomicU64; FIGURES],
        /// Calls of each process.
        calls: Grant<AtomicU64>,
    }

    impl State {
        fn add(&self, at: usize, count: u64) {
            self.figures[at].fetch_add(count, SeqCst);
        }

        fn set(&self, at: usize, value: u64) {
            self.figures[at].store(value, SeqCst);
        }
    }

    #[init]
    fn init(_cx: &Cx) -> Result<State, String> {
        Ok(State { figures: std::array::from_fn(|_| AtomicU64::new(0)), calls: Grant::new() })
    }

    /// Figures 0 to 2: how often, periods missed, in which process.
    #[on(timer = "10ms")]
    fn tick(state: &State, missed: u64) {
        state.add(0, 1);
        state.add(1, missed);
        state.set(2, u64::from(Cx::pid()));
        // While it is told to, it takes longer than its period.
        if state.figures[9].load(SeqCst) != 0 {
            std::thread::sleep(Duration::from_millis(35));
        }
    }

    /// Figure 3.
    #[on(process = "start")]
    fn started(state: &State, _pid: u64) {
        state.add(3, 1);
    }

    /// Figure 4.
    #[on(process = "exec")]
    fn executed(state: &State, _pid: u64) {
        state.add(4, 1);
    }

    /// Figures 5 to 8: how often, pid and status of the last one, sum of all statuses.
    #[on(process = "exit")]
    fn ended(state: &State, pid: u64, status: u64, _unread: u64) {
        state.set(6, pid);
        state.set(7, status);
        state.add(8, status);
        // Figure 13: values of the dead.
        state.add(13, state.calls.free() as u64);
        state.add(5, 1);
    }

    /// Figure 12: children that were told of with their parent.
    #[on(process = "fork")]
    fn forked(state: &State, pid: u64, parent: u64) {
        state.add(12, u64::from(pid != 0 && parent != 0 && pid != parent));
    }

    /// Start a timer of `timed`: where it runs is a pid, 0 for the server, 1 for any process, 2 for
    /// whoever runs.
    #[handler]
    fn start(to: u64, after_us: u64, period_us: u64, slack_us: u64) -> Result<u64, CallError> {
        let first = Cx::now_ns() + after_us * 1000;
        let to = match to {
            0 => To::server(),
            1 => To::any(),
            2 => To::running(),
            pid => To::pid(pid as u32),
        };
        let timer = Timer::at(first).slack(Duration::from_micros(slack_us)).to(to);
        let timer = timer.every(Duration::from_micros(period_us));
        Cx::start_timer(timer, Cx::find("watcher.timed")?, [first, period_us * 1000])
            .map(TimerId::to_raw)
    }

    #[handler]
    fn stop(timer: u64) -> bool {
        Cx::stop_timer(TimerId::from_raw(timer))
    }

    /// Figures 16 to 20: how often, periods missed, in which process, how often too early, the
    /// periods that must have gone by in all.
    #[handler]
    fn timed(state: &State, first: u64, period: u64, missed: u64) {
        let now = Cx::now_ns();
        state.add(17, missed);
        state.set(18, u64::from(Cx::pid()));
        state.add(16, 1);
        let told = state.figures[16].load(SeqCst) + state.figures[17].load(SeqCst);
        state.set(20, now.saturating_sub(first).checked_div(period).unwrap_or(0) + 1);
        state.add(19, u64::from(now < first || told > state.figures[20].load(SeqCst)));
    }

    /// Forget what timers have done.
    #[handler]
    fn forget(state: &State) {
        (16..=20).for_each(|at| state.set(at, 0));
    }

    /// How often the calling process has called this.
    #[handler]
    fn own_calls(state: &State) -> Result<u64, CallError> {
        state.calls.own(AtomicU64::default).map(|own| own.fetch_add(1, SeqCst) + 1)
    }

    #[handler]
    fn mask(on: bool) {
        if on { Cx::mask_events() } else { Cx::unmask_events() }
    }

    /// Figure 32 and up, by signal: how often. It is the program's.
    fn seen(state: &State, signal: u64) -> bool {
        state.add(32 + signal as usize, 1);
        false
    }

    #[on(signal = "SIGUSR1")]
    fn observe(state: &State, signal: u64, sender: u64) -> bool {
        state.set(6, sender);
        seen(state, signal)
    }

    #[on(signal = "SIGHUP")]
    fn hang_up(state: &State, signal: u64) -> bool {
        seen(state, signal)
    }

    #[on(signal = "SIGALRM")]
    fn alarm(state: &State, signal: u64) -> bool {
        seen(state, signal)
    }

    #[on(signal = "SIGCHLD")]
    fn child(state: &State, signal: u64) -> bool {
        seen(state, signal)
    }

    /// The program never sees it.
    #[on(signal = "SIGUSR2")]
    fn answer(state: &State, signal: u64) -> bool {
        seen(state, signal);
        true
    }

    /// Fails: the program sees it all the same.
    #[on(signal = "SIGIO")]
    fn fail(state: &State, signal: u64) -> bool {
        seen(state, signal);
        // SAFETY: none; the upcall is to end here.
        unsafe { std::hint::black_box(16 as *const u64).read_volatile() == 0 }
    }

    #[handler]
    fn figure(state: &State, which: u64) -> u64 {
        state.figures.get(which as usize).map_or(0, |figure| figure.load(SeqCst))
    }

    #[handler]
    fn dawdle(state: &State, on: bool) {
        state.set(9, u64::from(on));
    }
}
