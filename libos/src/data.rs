//! The common area of the data zone: who takes part, and each thread's place for upcalls.
//!
//! ```text
//! 0        Process  x PROCESSES_MAX
//! 128 KiB  state words of the contexts (dense, so that a scan stays within 32 KiB)
//! 160 KiB  log ring
//! 240 KiB  Trouble  x SLOTS_MAX
//! 248 KiB  Marks
//! 256 KiB  Context  x CONTEXTS_MAX
//! 5 MiB    Inbox    x PROCESSES_MAX
//! 10 MiB   Pool
//! 11 MiB   Timers
//! 12 MiB   Sockets
//! ```
//!
//! Every participant can write all of this: nothing here is trusted by the supervisor beyond
//! what it can verify with the kernel. Slots and contexts are claimed by one compare-and-swap of
//! a word that names the claimant, so that what a killed process held can be taken back.

use core::ops::Range;
use core::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};

use ext_api::limits::{CONTEXTS_MAX, FAULT_TEXT_LEN_MAX, LOG_LEN, PROCESSES_MAX, SLOTS_MAX};

use crate::bell::Bell;
pub use crate::claim::{Claim, Claimed};
use crate::layout::{COMMON_LEN, COMMON_OFFSET, Place};
use crate::mailbox::Mailbox;
use crate::sockets::Sockets;
use crate::timers::Timers;

const STATES_OFFSET: usize = COMMON_OFFSET + (128 << 10);
const LOG_OFFSET: usize = COMMON_OFFSET + (160 << 10);
const TROUBLE_OFFSET: usize = COMMON_OFFSET + (240 << 10);
const MARKS_OFFSET: usize = COMMON_OFFSET + (248 << 10);
/// Offset of the first [`Context`] in the region.
pub const CONTEXTS_OFFSET: usize = COMMON_OFFSET + (256 << 10);

/// Offset of the first [`Inbox`] in the region.
pub const INBOXES_OFFSET: usize = COMMON_OFFSET + (5 << 20);
const POOL_OFFSET: usize = COMMON_OFFSET + (10 << 20);
const TIMERS_OFFSET: usize = COMMON_OFFSET + (11 << 20);
const SOCKETS_OFFSET: usize = COMMON_OFFSET + (12 << 20);

/// How a process became a participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Joined {
    /// The launcher injected it at exec.
    Exec = 1,
    /// Its parent was a participant.
    Fork = 2,
    /// It attached by itself.
    Late = 3,
    /// The supervisor's own worker.
    Worker = 4,
}

impl Joined {
    /// The variant with this number.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Exec),
            2 => Some(Self::Fork),
            3 => Some(Self::Late),
            4 => Some(Self::Worker),
            _ => None,
        }
    }
}

/// One row of the process table.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Process {
    /// Who holds the row.
    pub claim: Claim,
    /// [`Joined`], written after the claim.
    pub joined: AtomicU32,
    /// Pid of the parent at that time.
    pub parent: AtomicU32,
    /// The pid namespace that its pid is of, as the number of its file; 0 if it cannot be seen.
    pub pid_space: AtomicU64,
    /// Upcalls made by contexts that have ended since.
    pub upcalls_ended: AtomicU64,
    /// Exit status as `waitid` gives it; valid once `ended` is not 0.
    pub status: AtomicI32,
    /// Generation of the claim that has ended, 0 if the row never had one. The row stays
    /// readable (for `ps`) until somebody claims it anew.
    pub ended: AtomicU32,
    /// Pid of the claim that has ended.
    pub ended_pid: AtomicU32,
    /// Goes up before each fork that the supervisor is told of, and before a child of vfork is a program of its own;
    /// begins anywhere.
    pub forks: AtomicU32,
    /// `comm` of the process, padded with zeros.
    pub comm: [AtomicU8; 16],
}

/// One thread's place for upcalls. The gate's assembly knows the first seven fields by offset.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Context {
    /// Odd while the thread is inside an upcall; half of it is the number of upcalls made.
    pub sequence: AtomicU64,
    /// FS base of the thread.
    pub fs_base: AtomicU64,
    /// Lowest stack pointer that the fast path believes; see [`crate::layout::WINDOW_BELOW`].
    pub window: AtomicU64,
    /// Where the outermost frame lies; the upcall stack grows down from there.
    pub stack_top: AtomicU64,
    /// Innermost recovery frame, an address on the upcall stack; meaningful while inside.
    pub frame: AtomicU64,
    /// Address of [`Bell::pending`] of the process: the gate looks there on its way out.
    pub pending: AtomicU64,
    /// Address of the code that was called last, outermost: says whose code it is even when the
    /// handler has been given other code since.
    pub code: AtomicU64,
    /// Address of a word of the thread's own that has its tid for as long as it lives, and that of the next one there
    /// afterwards; of [`Self::tid`] if none is known.
    pub mark: AtomicU64,
    /// System calls of the program's that came from patched sites.
    pub calls_patched: AtomicU64,
    /// Thread that holds the context.
    pub tid: AtomicU32,
    /// Row of the process table.
    pub process: AtomicU32,
    /// Generation of that row, for descriptors.
    pub process_generation: AtomicU32,
    /// `errno` of the region libc.
    pub errno: AtomicI32,
    /// What names the context and its life in an owner word.
    pub life: AtomicU64,
    /// 1 once an allocation failed in the current upcall: tells an abort's cause.
    pub starved: AtomicU32,
    /// Bit per slot: the block in `tls` is initialised for this holder.
    pub tls_live: AtomicU32,
    /// Generation of the extension that each block in `tls` belongs to.
    pub tls_generation: [AtomicU32; SLOTS_MAX],
    /// Thread-local blocks, one per slot; kept from holder to holder.
    pub tls: [AtomicU64; SLOTS_MAX],
    /// Bit per signal: what came during an upcall and is blocked until it ends. Meanwhile `pending`
    /// is this word's address.
    pub deferred: AtomicU32,
    /// What the program thinks it has blocked of the signals that it cannot block.
    pub kept_blocked: AtomicU32,
    /// 1 while the call room is in use.
    pub call_room: AtomicU32,
    /// System calls of the program's that came by a trap.
    pub calls_trapped: AtomicU64,
    /// Pid of the process whose call an upcall is about, once it has been asked for; 0 otherwise.
    pub caller: AtomicU32,
    /// That of the last call that was timed, if it was asked for.
    pub last_caller: AtomicU32,
    /// When the kernel was through with that call.
    pub last_call_ns: AtomicU64,
    /// Stack pointer of the signal handler that makes upcalls on this thread; 0 if none does.
    pub room: AtomicU64,
    /// 1 if events or timers have come to it meanwhile.
    pub room_again: AtomicU32,
    /// The kernel's number of the timer that interrupts the thread for others' timers, and 1; 0 if it
    /// does not lend itself.
    pub lent: AtomicU32,
    /// 1 while the holder's alternate signal stack is the context's, not one of its own. 2 as long as only a child of
    /// vfork has come on the holder's behalf, which has not been given any.
    pub alt_stack: AtomicU32,
    /// The program's own alternate signal stack, when it was last seen, as `sigaltstack` has it: address, flags and
    /// length, which is 0 for none. The kernel may have one of the context's in its place.
    pub own_stack: [AtomicU64; 3],
    /// Of which upcall the thread has said what CPU time it had used: its sequence then.
    pub cpu_sequence: AtomicU64,
    /// That time, in nanoseconds since the thread began.
    pub cpu_ns: AtomicU64,
    /// Bytes used of `text`.
    pub text_len: AtomicU32,
    /// What the last fault said.
    pub text: [AtomicU8; FAULT_TEXT_LEN_MAX],
}

/// Events for one process; its row of the process table has the same index.
#[derive(Debug)]
#[repr(C)]
pub struct Inbox {
    /// Who is told of them.
    pub bell: Bell,
    /// What became of them.
    pub tally: Tally,
    /// Which thread delivers them: its tid, and where its stack was; 0 if none does.
    pub turn: AtomicU64,
    /// 1 while the process takes no events, by its own wish.
    pub masked: AtomicU32,
    /// How long a waiter looks before it sleeps, in nanoseconds, as far as that has paid lately; 0
    /// before anybody has waited.
    pub patience_ns: AtomicU32,
    /// How often threads have found that another one delivers.
    pub turned_away: AtomicU32,
    /// When a signal last came for an event, in nanoseconds.
    pub signalled_ns: AtomicU64,
    /// The events.
    pub mail: Mailbox<{ ext_api::limits::INBOX_EVENTS_MAX }>,
}

/// The supervisor as a claimant of a mailbox's cell, below its pid's lowest bits. More than any
/// context's number.
pub const SUPERVISOR_CLAIMANT: u32 = 0x1ffe;
/// The server as a claimant, in the same way.
pub const SERVER_CLAIMANT: u32 = 0x1ffd;
const _: () = assert!(CONTEXTS_MAX < SERVER_CLAIMANT as usize);

/// Events for any process: whoever has nothing else to do takes them.
#[derive(Debug)]
#[repr(C)]
pub struct Pool {
    /// What became of them.
    pub tally: Tally,
    /// Bit per row of the process table: a thread of it sleeps.
    pub idle: [AtomicU64; PROCESSES_MAX / 64],
    /// The events.
    pub mail: Mailbox<{ ext_api::limits::POOL_EVENTS_MAX }>,
}

/// What became of the events of one mailbox.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Tally {
    /// Their handlers ran to the end.
    pub delivered: AtomicU64,
    /// Their handlers failed, or were there no longer.
    pub failed: AtomicU64,
    /// Refused, since there was no room.
    pub refused: AtomicU64,
    /// Not delivered when the process ended.
    pub lost: AtomicU64,
}

/// What went wrong in one slot. Written by whoever meets it, read by the supervisor.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Trouble {
    /// Faults since the sandbox was made.
    pub faults: AtomicU64,
    /// Generation of the extension whose state can no longer be trusted, or 0.
    pub tainted: AtomicU32,
    /// [`ext_api::abi::Status`] of the last fault.
    pub status: AtomicU32,
}

/// How far the tables were ever used: whoever searches them need not touch the rest.
#[derive(Debug)]
#[repr(C)]
struct Marks {
    processes: AtomicU32,
    contexts: AtomicU32,
    /// Pid of the supervisor, in its own pid namespace.
    supervisor: AtomicU32,
    sites: AtomicU32,
    sites_trapped: AtomicU32,
    /// 1 while the watchdog is at rest.
    resting: AtomicU32,
}

/// What tells the supervisor to look at once. Ignored by whoever does not expect it.
pub const DOORBELL: i32 = 23;

/// A [`Context::window`] that no stack lies in: none is as far up.
pub const NOWHERE: u64 = u64::MAX;

/// Bytes of one context.
pub const CONTEXT_LEN: usize = 1024;

/// The log: extension output and faults, overwritten when full.
#[derive(Debug)]
#[repr(C)]
pub struct Log {
    /// Bytes ever written.
    pub written: AtomicU64,
    /// The ring.
    pub bytes: [AtomicU8; LOG_LEN],
}

impl Log {
    /// Append bytes. A writer never waits, so that text of two may interleave.
    pub fn append(&self, bytes: &[u8]) {
        let at = self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed) as usize;
        for (offset, byte) in bytes.iter().enumerate().skip(bytes.len().saturating_sub(LOG_LEN)) {
            self.bytes[(at + offset) % LOG_LEN].store(*byte, Ordering::Relaxed);
        }
    }
}

const _: () = assert!(size_of::<Process>() == 128 && PROCESSES_MAX * 128 <= 128 << 10);
const _: () = assert!(size_of::<Context>() <= CONTEXT_LEN);
const _: () = assert!(CONTEXTS_MAX * 8 <= 32 << 10);
const _: () = assert!(LOG_OFFSET + size_of::<Log>() <= TROUBLE_OFFSET);
const _: () = assert!(TROUBLE_OFFSET + SLOTS_MAX * size_of::<Trouble>() <= MARKS_OFFSET);
const _: () = assert!(MARKS_OFFSET + size_of::<Marks>() <= CONTEXTS_OFFSET);
const _: () = assert!(CONTEXTS_OFFSET + CONTEXTS_MAX * CONTEXT_LEN <= COMMON_OFFSET + COMMON_LEN);
const _: () = assert!(CONTEXTS_OFFSET + CONTEXTS_MAX * CONTEXT_LEN <= INBOXES_OFFSET);
const _: () = assert!(INBOXES_OFFSET + PROCESSES_MAX * size_of::<Inbox>() <= POOL_OFFSET);
const _: () = assert!(POOL_OFFSET + size_of::<Pool>() <= TIMERS_OFFSET);
const _: () = assert!(TIMERS_OFFSET + size_of::<Timers>() <= SOCKETS_OFFSET);
#[cfg(not(loom))]
const _: () = assert!(SOCKETS_OFFSET + size_of::<Sockets>() <= COMMON_OFFSET + COMMON_LEN);
const _: () = assert!(SLOTS_MAX <= 32, "tls_live is one 32-bit word");

/// The common area, seen from any process that has the data zone mapped.
#[derive(Debug, Clone, Copy)]
pub struct Common {
    /// Address of the region's offset 0, even where only the data zone is mapped.
    origin: usize,
}

impl Common {
    /// The common area of the region at `place`, in a participant.
    ///
    /// # Safety
    /// The data zone is mapped there for as long as the value is used.
    #[must_use]
    #[expect(unsafe_code, reason = "the caller vouches for the mapping")]
    pub const unsafe fn at(place: Place) -> Self {
        Self { origin: place.base }
    }

    /// The common area through an alias of the data zone whose offset 0 would lie at `origin`.
    ///
    /// # Safety
    /// As [`Common::at`].
    #[must_use]
    #[expect(unsafe_code, reason = "the caller vouches for the mapping")]
    pub const unsafe fn at_alias(origin: usize) -> Self {
        Self { origin }
    }

    /// Rows of the process table that were ever claimed.
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        0..(self.marks().processes.load(Ordering::Acquire) as usize).min(PROCESSES_MAX)
    }

    /// Contexts that were ever claimed.
    #[must_use]
    pub fn contexts(&self) -> Range<usize> {
        0..(self.marks().contexts.load(Ordering::Acquire) as usize).min(CONTEXTS_MAX)
    }

    /// Take row `index` for `pid` if it is free; the new generation.
    #[must_use]
    pub fn take_row(&self, index: usize, pid: u32) -> Option<u32> {
        // Marked first: who dies between the two must be found.
        self.marks().processes.fetch_max(index as u32 + 1, Ordering::AcqRel);
        self.process(index).claim.take(pid)
    }

    /// Take context `index` for `pid` if it is free; the new generation.
    #[must_use]
    pub fn take_context(&self, index: usize, pid: u32) -> Option<u32> {
        self.marks().contexts.fetch_max(index as u32 + 1, Ordering::AcqRel);
        self.claim(index).take(pid)
    }

    /// The process that [`DOORBELL`] is for; 0 if there is none.
    #[must_use]
    pub fn supervisor(&self) -> &'static AtomicU32 {
        &self.marks().supervisor
    }

    /// The watchdog is at rest from now on: whoever makes the next upcall takes the slow way into the gate
    /// and wakes it. An upcall that is on its way in meanwhile wakes nobody.
    pub fn rest(&self) {
        self.marks().resting.store(1, Ordering::SeqCst);
        let taken = self.contexts().filter(|&index| self.claim(index).load().pid != 0);
        taken.for_each(|index| self.context(index).window.store(NOWHERE, Ordering::Relaxed));
    }

    /// Is the watchdog at rest?
    #[must_use]
    pub fn is_resting(&self) -> bool {
        self.marks().resting.load(Ordering::Relaxed) != 0
    }

    /// It is not any more. True: it was.
    pub fn end_rest(&self) -> bool {
        self.marks().resting.swap(0, Ordering::SeqCst) != 0
    }

    /// Sites of system calls that participants have patched so far, and those that they could not.
    #[must_use]
    pub fn sites(&self) -> [&'static AtomicU32; 2] {
        [&self.marks().sites, &self.marks().sites_trapped]
    }

    fn marks(&self) -> &'static Marks {
        self.get(MARKS_OFFSET)
    }

    /// Row `index` of the process table.
    #[must_use]
    #[inline]
    pub fn process(&self, index: usize) -> &'static Process {
        assert!(index < PROCESSES_MAX);
        self.get(COMMON_OFFSET + index * size_of::<Process>())
    }

    /// State word of context `index`.
    #[must_use]
    pub fn claim(&self, index: usize) -> &'static Claim {
        assert!(index < CONTEXTS_MAX);
        self.get(STATES_OFFSET + index * 8)
    }

    /// Context `index`.
    #[must_use]
    #[inline]
    pub fn context(&self, index: usize) -> &'static Context {
        assert!(index < CONTEXTS_MAX);
        self.get(CONTEXTS_OFFSET + index * CONTEXT_LEN)
    }

    /// The pid namespace of the process that holds context `index`; 0 if it is not known.
    #[must_use]
    pub fn pid_space_of(&self, index: usize) -> u64 {
        let row = self.context(index).process.load(Ordering::Relaxed) as usize;
        if row < PROCESSES_MAX { self.process(row).pid_space.load(Ordering::Relaxed) } else { 0 }
    }

    /// What went wrong in slot `slot`.
    #[must_use]
    pub fn trouble(&self, slot: usize) -> &'static Trouble {
        assert!(slot < SLOTS_MAX);
        self.get(TROUBLE_OFFSET + slot * size_of::<Trouble>())
    }

    /// Events for the process in row `index` of the process table.
    #[must_use]
    #[inline]
    pub fn inbox(&self, index: usize) -> &'static Inbox {
        assert!(index < PROCESSES_MAX);
        self.get(INBOXES_OFFSET + index * size_of::<Inbox>())
    }

    /// Events for whoever is idle.
    #[must_use]
    #[inline]
    pub fn pool(&self) -> &'static Pool {
        self.get(POOL_OFFSET)
    }

    /// The timers.
    #[must_use]
    pub fn timers(&self) -> &'static Timers {
        self.get(TIMERS_OFFSET)
    }

    /// The connections that are carried.
    #[must_use]
    #[inline]
    pub fn sockets(&self) -> &'static Sockets {
        self.get(SOCKETS_OFFSET)
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> &'static Log {
        self.get(LOG_OFFSET)
    }

    /// End context `index` if its claim still is `seen`: count its upcalls for the process and
    /// make it free. Where its holder died inside an upcall, the address of the code.
    pub fn end_context(&self, index: usize, seen: Claimed) -> Option<u64> {
        let context = self.context(index);
        let sequence = context.sequence.load(Ordering::Acquire);
        let row = context.process.load(Ordering::Relaxed) as usize;
        if !self.claim(index).free(seen) {
            return None;
        }
        if row < PROCESSES_MAX {
            self.process(row).upcalls_ended.fetch_add(sequence / 2, Ordering::Relaxed);
        }
        (sequence % 2 == 1).then(|| context.code.load(Ordering::Relaxed))
    }

    #[expect(unsafe_code, reason = "the one place that turns an offset into a reference")]
    #[inline]
    fn get<T>(&self, offset: usize) -> &'static T {
        // SAFETY: the mapping is there (contract of the constructors), offsets are those of the
        // map above, aligned for `T` by its assertions, and every field of `T` is an atomic, so
        // that whatever others write there is a valid value.
        unsafe { &*((self.origin + offset) as *const T) }
    }
}

/// The protocol of a row of the handler table: what the gate (`arch/` of the image, in assembly) and the
/// supervisor (`sandbox/extensions.rs` of the launcher) do to its generation, the code behind it, and the
/// sequence of a context. The supervisor's global barrier stands between every two steps of the gate.
#[cfg(all(test, loom))]
mod models {
    use crate::sync::Ordering::{Acquire, Relaxed, Release, SeqCst};
    use crate::sync::{AtomicU64, fence};
    use loom::sync::Arc;

    struct Row {
        generation: AtomicU64,
        code: AtomicU64,
        sequence: AtomicU64,
        /// What lies in the room: the image whose code it is, or 0 once it is cleared.
        room: AtomicU64,
    }

    fn row() -> Arc<Row> {
        Arc::new(Row {
            generation: AtomicU64::new(1),
            code: AtomicU64::new(10),
            sequence: AtomicU64::new(0),
            room: AtomicU64::new(10),
        })
    }

    /// An upcall by a handle of generation 1: the image that it ran, if it was let in.
    fn upcall(row: &Row) -> Option<u64> {
        row.sequence.store(1, Relaxed);
        fence(SeqCst);
        let live = row.generation.load(Acquire) == 1;
        let ran = live.then(|| {
            let code = row.code.load(Acquire);
            assert_eq!(row.room.load(Relaxed), code, "its room was cleared under it");
            code
        });
        row.sequence.store(2, Release);
        ran
    }

    #[test]
    fn loom_a_room_is_cleared_only_when_nobody_can_be_in_it() {
        loom::model(|| {
            let shared = row();
            let other = shared.clone();
            let caller = loom::thread::spawn(move || upcall(&other));
            // Unload: stale, the barrier, then whoever is inside is waited for.
            shared.generation.store(2, Release);
            fence(SeqCst);
            if shared.sequence.load(Acquire).is_multiple_of(2) {
                shared.room.store(0, Relaxed);
            }
            let _ = caller.join().expect("no panic");
        });
    }

    #[test]
    fn loom_a_caller_runs_the_old_code_or_what_it_was_pointed_at_next() {
        loom::model(|| {
            let shared = row();
            let other = shared.clone();
            let caller = loom::thread::spawn(move || {
                other.sequence.store(1, Relaxed);
                fence(SeqCst);
                assert_eq!(other.generation.load(Acquire), 1, "a restart keeps handles good");
                let code = other.code.load(Acquire);
                // What says `Restarting` lies in libos, which is never cleared.
                assert!(code == 5 || other.room.load(Relaxed) == code);
                other.sequence.store(2, Release);
            });
            shared.code.store(5, Release);
            fence(SeqCst);
            if shared.sequence.load(Acquire).is_multiple_of(2) {
                shared.room.store(0, Relaxed);
            }
            caller.join().expect("no panic");
        });
    }
}
