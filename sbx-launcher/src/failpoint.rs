//! Failpoints: named moments at which a test has the supervisor die, or the program that it deals with.
//! Builds without debug assertions have none.
//!
//! In the environment of `up`, `SBX_FAILPOINT=NAME:N` kills the first N supervisors that pass the point,
//! one after the other. `NAME:N:FIRST:STRIDE` kills the first N programs instead: the first of them FIRST
//! instructions later, the second after STRIDE more, the third after twice as many, and so on, but none
//! that has come back to its own code by then.

use clap::ValueEnum;

/// A moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Point {
    /// A program calls exec, and waits for an answer.
    ExecNotified,
    /// Its task is traced.
    ExecSeized,
    /// It has been given one descriptor of three.
    ExecGiven,
    /// What it has been given is noted, and it still waits.
    ExecNoted,
    /// It has its answer.
    ExecAnswered,
    /// It has its new program, of which nothing has run.
    ExecStopped,
    /// What is about to be put into the program is noted.
    JoinNoted,
    /// It is in the program.
    JoinPatched,
    /// The registers are set for it.
    JoinSet,
    /// The program is within the call that maps libos.
    JoinCalls,
    /// It returns from that to libos.
    JoinSent,
    /// The program has its own bytes back.
    JoinRestored,
    /// libos is mapped.
    JoinMapped,
    /// The program is traced no longer.
    JoinLeft,
    /// As with a join, of a program whose descriptors are to be closed.
    CloseNoted,
    /// As above.
    ClosePatched,
    /// As above.
    CloseSet,
    /// One is closed.
    CloseClosed,
    /// The program's registers are its own.
    CloseBack,
    /// So are its bytes.
    CloseRestored,
    /// A program forks, and waits for an answer.
    ForkNotified,
    /// Its task is traced.
    ForkSeized,
    /// It has its answer.
    ForkAnswered,
    /// It has a child, of which nothing has run.
    ForkStopped,
    /// The child has stopped.
    ChildStopped,
    /// It is to go on in libos.
    ChildSent,
    /// A successor is about to take over.
    TakingOver,
    /// It traces the tasks that were under way.
    TakenOver,
    /// A participant has ended, and what it held is about to be taken back.
    SweepBegun,
    /// All is taken back.
    SweepDone,
    /// An extension is placed, and nobody knows of it.
    LoadPlaced,
    /// It is live, and who asked has no answer.
    LoadDone,
    /// An extension is about to be unloaded.
    UnloadBegun,
    /// It is unloaded, and who asked has no answer.
    UnloadDone,
}

#[cfg(debug_assertions)]
mod armed {
    #![expect(unsafe_code, reason = "shares counts with the keepers, and kills")]

    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use clap::ValueEnum;

    use super::Point;
    use crate::tracee;

    /// What is to happen.
    struct Armed {
        point: Point,
        deaths: u64,
        /// After how many instructions the first program dies, and how many later each next one, if it
        /// is programs that die.
        steps: Option<(u64, u64)>,
        /// Shared with the keepers.
        passed: &'static AtomicU64,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    fn arm() -> Option<Armed> {
        let text = std::env::var("SBX_FAILPOINT").ok()?;
        let mut words = text.split(':');
        let point = words.next().and_then(|name| Point::from_str(name, false).ok());
        let deaths = words.next().and_then(|count| count.parse().ok());
        let rest: Result<Vec<u64>, _> = words.map(str::parse).collect();
        let steps = match rest.as_deref() {
            Ok([]) => Some(None),
            Ok(&[first, stride]) => Some(Some((first, stride))),
            _ => None,
        };
        let (Some(point), Some(deaths), Some(steps)) = (point, deaths, steps) else {
            let names = Point::value_variants().iter().filter_map(ValueEnum::to_possible_value);
            let names: Vec<String> = names.map(|name| name.get_name().to_owned()).collect();
            eprintln!(
                "SBX_FAILPOINT={text} is not NAME:N or NAME:N:FIRST:STRIDE; there are: {}",
                names.join(" ")
            );
            std::process::exit(2);
        };
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping wherever the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) };
        assert!(at != libc::MAP_FAILED, "SBX_FAILPOINT: no memory");
        // SAFETY: mapped for good, and any eight bytes are a count.
        Some(Armed { point, deaths, steps, passed: unsafe { &*at.cast() } })
    }

    /// Read the environment, once, before there is a keeper.
    pub fn ready() {
        ARMED.get_or_init(arm);
    }

    /// Die if this is the point.
    pub fn pass(point: Point) {
        pass_with(point, 0, 0);
    }

    /// Die if this is the point, or have the stopped program `tid` die, on its way to `end`.
    pub fn pass_with(point: Point, tid: i32, end: u64) {
        let Some(Some(armed)) = ARMED.get() else { return };
        if armed.point != point || (tid == 0 && armed.steps.is_some()) {
            return;
        }
        let before = armed.passed.fetch_add(1, SeqCst);
        if before >= armed.deaths {
            return;
        }
        let victim = match armed.steps {
            Some((first, stride)) => is_under_way(tid, end, first + before * stride).then_some(tid),
            None => Some(std::process::id() as i32),
        };
        if let Some(victim) = victim {
            // SAFETY: ends this process, or one that it traces.
            unsafe { libc::kill(victim, libc::SIGKILL) };
        }
    }

    /// Let a program execute `steps` instructions; is it not at `end` by then?
    fn is_under_way(tid: i32, end: u64, steps: u64) -> bool {
        const TRAP_FLAG: u64 = 0x100;
        (0..steps).all(|_| {
            let stepped = tracee::step(tid).and_then(|lives| Ok((lives, tracee::registers(tid)?)));
            let Ok((true, regs)) = stepped else { return false };
            if regs.rip == end {
                // libos has saved the flag with the others, and put it back.
                let eflags = regs.eflags & !TRAP_FLAG;
                let _ = tracee::set_registers(tid, &libc::user_regs_struct { eflags, ..regs });
            }
            regs.rip != end
        })
    }
}

#[cfg(debug_assertions)]
pub use armed::{pass, pass_with, ready};

/// Nothing: without debug assertions there are no failpoints.
#[cfg(not(debug_assertions))]
pub const fn ready() {}

/// As above.
#[cfg(not(debug_assertions))]
pub const fn pass(_point: Point) {}

/// As above.
#[cfg(not(debug_assertions))]
pub const fn pass_with(_point: Point, _tid: i32, _end: u64) {}
