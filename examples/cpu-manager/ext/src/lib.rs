//! A CPU service manager: tasks say how far they are, and whatever delays one that is behind gets a
//! worse nice value until it is in time again.

#![expect(unsafe_code, reason = "sets nice values")]

use ext_api::prelude::*;

/// The extension `manager`.
#[extension(name = "manager", kill_safe)]
pub mod manager {
    use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};
    use std::time::Duration;

    use ext_api::prelude::*;
    use ext_api::timer::{Timer, TimerId};

    /// Tasks, and programs that are in their way.
    const TASKS_MAX: usize = 16;
    const OTHERS_MAX: usize = 64;
    /// How far a task may be behind, in nanoseconds of its work.
    const BEHIND_NS: u64 = 300_000;
    /// A task is to be through with its work in this part of its period.
    const PLAN_PERCENT: u64 = 75;
    /// Nice value of the others while a task is behind.
    const NICE: i32 = 19;
    /// No nice value: what it is is not known.
    const UNKNOWN: i32 = i32::MAX;

    /// A periodic task.
    #[derive(Debug, Default)]
    struct Task {
        period_ns: AtomicU64,
        need_ns: AtomicU64,
        /// When its period began, or 0 before it has reported, and how much of its work is done since.
        released_ns: AtomicU64,
        done_ns: AtomicU64,
        periods: AtomicU64,
        violations: AtomicU64,
        /// The process that has reported last.
        pid: AtomicU32,
    }

    /// A program that is in the way of tasks.
    #[derive(Debug, Default)]
    struct Other {
        pid: AtomicU32,
        nice: AtomicI32,
    }

    /// What all processes share.
    #[derive(Debug)]
    pub struct State {
        tasks: [Task; TASKS_MAX],
        others: [Other; OTHERS_MAX],
        /// Does every report of a task adapt?
        in_context: AtomicBool,
        changes: AtomicU64,
        timer: AtomicU64,
    }

    #[init]
    fn init(_cx: &Cx) -> Result<State, String> {
        Ok(State {
            tasks: std::array::from_fn(|_| Task::default()),
            others: std::array::from_fn(|_| Other::default()),
            in_context: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            timer: AtomicU64::new(0),
        })
    }

    fn task(state: &State, index: u64) -> Result<&Task, String> {
        let none = || format!("there is no task {index}; the last one is {}", TASKS_MAX - 1);
        state.tasks.get(index as usize).ok_or_else(none)
    }

    /// Task `index` needs so much CPU time in each period.
    #[handler]
    fn add_task(state: &State, index: u64, period_ns: u64, need_ns: u64) -> Result<(), String> {
        let task = task(state, index)?;
        for word in [&task.periods, &task.violations, &task.released_ns, &task.done_ns] {
            word.store(0, Relaxed);
        }
        task.pid.store(0, Relaxed);
        task.need_ns.store(need_ns, Relaxed);
        task.period_ns.store(period_ns, Relaxed);
        Ok(())
    }

    /// The process `pid` is in the way of tasks.
    #[handler]
    fn add_other(state: &State, pid: u64) -> Result<(), String> {
        let is_known = |other: &Other| other.pid.load(Relaxed) == pid as u32;
        let take =
            |other: &Other| other.pid.compare_exchange(0, pid as u32, Relaxed, Relaxed).is_ok();
        let found = state.others.iter().any(is_known) || state.others.iter().any(take);
        found.then_some(()).ok_or_else(|| format!("{OTHERS_MAX} others are known already"))
    }

    /// Forget tasks and others, which are as nice as ever.
    #[handler]
    fn forget(state: &State) {
        state.tasks.iter().for_each(|task| task.need_ns.store(0, Relaxed));
        for other in &state.others {
            let (pid, nice) = (other.pid.swap(0, Relaxed), other.nice.swap(0, Relaxed));
            if pid != 0 && nice != 0 {
                set_nice(pid, 0);
            }
        }
        state.changes.store(0, Relaxed);
    }

    /// A process has ended: its tasks are behind no more, and its pid will be another one's.
    #[on(process = "exit")]
    fn gone(state: &State, pid: u64) {
        let is_gone = |word: &AtomicU32| word.load(Relaxed) == pid as u32;
        for task in state.tasks.iter().filter(|task| is_gone(&task.pid)) {
            task.need_ns.store(0, Relaxed);
        }
        for other in &state.others {
            if is_gone(&other.pid) {
                other.nice.store(0, Relaxed);
                other.pid.store(0, Relaxed);
            } else if other.pid.load(Relaxed) != 0 {
                // It may have been killed between a change and the note of it.
                other.nice.store(UNKNOWN, Relaxed);
            }
        }
        adapt_to(state, Cx::now_ns());
    }

    /// A task says how far it is. This is where the manager runs, if it runs in the tasks' context.
    #[handler]
    fn progress(state: &State, index: u64, released_ns: u64, done_ns: u64) -> Result<(), String> {
        let task = task(state, index)?;
        task.pid.store(Cx::pid(), Relaxed);
        task.released_ns.store(released_ns, Relaxed);
        task.done_ns.store(done_ns, Relaxed);
        if state.in_context.load(Relaxed) {
            adapt_to(state, Cx::now_ns());
        }
        Ok(())
    }

    /// A period is over.
    #[handler]
    fn over(state: &State, index: u64, too_late: bool) -> Result<(), String> {
        let task = task(state, index)?;
        task.periods.fetch_add(1, Relaxed);
        task.violations.fetch_add(u64::from(too_late), Relaxed);
        Ok(())
    }

    /// Run the policy where the tasks run: at each of their reports, and every millisecond in whichever
    /// of those that lend themselves runs.
    #[handler]
    fn manage_in_context(state: &State, on: bool) -> Result<(), CallError> {
        let former = TimerId::from_raw(state.timer.swap(0, Relaxed));
        Cx::stop_timer(former);
        state.in_context.store(on, Relaxed);
        if on {
            let each = Duration::from_millis(1);
            let timer = Timer::after(each).every(each).to(To::running());
            let started = Cx::start_timer(timer, Cx::find("manager.adapt")?, [0; 2])?;
            state.timer.store(started.to_raw(), Relaxed);
        }
        Ok(())
    }

    /// Run the policy once.
    #[handler]
    fn adapt(state: &State) {
        adapt_to(state, Cx::now_ns());
    }

    /// The policy: the others are nice while a task is behind.
    fn adapt_to(state: &State, now: u64) {
        let is_behind = |task: &Task| {
            let (need, done) = (task.need_ns.load(Relaxed), task.done_ns.load(Relaxed));
            let released = task.released_ns.load(Relaxed);
            let since = now.saturating_sub(released);
            let period = task.period_ns.load(Relaxed).max(1);
            // To be through before the end of the period: what is late cannot be mended.
            let time = period / 100 * PLAN_PERCENT;
            let planned = u128::from(need) * u128::from(since.min(time)) / u128::from(time.max(1));
            released != 0 && done < need && planned as u64 > done + BEHIND_NS
        };
        let nice = if state.tasks.iter().any(is_behind) { NICE } else { 0 };
        // This may run in one of the others, which may have to wait for long once it is nice, and would
        // be at this meanwhile: that one is left to whoever comes next.
        let own = Cx::pid();
        for other in &state.others {
            let pid = other.pid.load(Relaxed);
            if pid == 0 || pid == own || other.nice.load(Relaxed) == nice {
                continue;
            }
            state.changes.fetch_add(1, Relaxed);
            set_nice(pid, nice);
            // Not before it is so: whoever does this may have to wait for a CPU in between.
            other.nice.store(nice, Relaxed);
        }
    }

    fn set_nice(pid: u32, nice: i32) {
        // SAFETY: takes numbers only.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, pid, nice) };
    }

    /// Of all tasks: 0 periods, 1 those that ended too late, 2 how often the policy changed something.
    #[handler]
    fn figure(state: &State, which: u64) -> u64 {
        let sum = |of: fn(&Task) -> &AtomicU64| {
            state.tasks.iter().map(|task| of(task).load(Relaxed)).sum()
        };
        match which {
            0 => sum(|task| &task.periods),
            1 => sum(|task| &task.violations),
            _ => state.changes.load(Relaxed),
        }
    }
}
