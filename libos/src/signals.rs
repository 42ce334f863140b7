//! The signals that the region needs for itself, and where an application's own wishes for them
//! are kept. The supervisor writes the table on behalf of a participant that calls `sigaction`.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Signals that libos handles: faults, and the supervisor's [`STOP`].
pub const OURS: [i32; 6] = [4, 5, 7, 8, 11, STOP];

/// By this signal (SIGSTKFLT, which Linux never raises) the supervisor ends one upcall. It is
/// queued with the upcall's sequence as value and one of the `WHY_*` reasons as errno.
pub const STOP: i32 = 16;

/// The upcall's CPU time is used up.
pub const WHY_BUDGET: i32 = 1;
/// The upcall has waited for too long.
pub const WHY_STUCK: i32 = 2;
/// The extension is being restarted.
pub const WHY_RESTART: i32 = 3;

/// There are events for the process: nothing is stopped.
pub const WHY_EVENT: i32 = 4;

/// Look at the timers.
pub const WHY_TIMER: i32 = 5;
/// The supervisor wants to know what CPU time the thread has used: see `Context::cpu_ns`.
pub const WHY_CLOCK: i32 = 6;

/// The `siginfo` of a [`STOP`] that is queued.
#[derive(Debug)]
#[repr(C)]
pub struct Queued {
    signal: i32,
    errno: i32,
    code: i32,
    pad: i32,
    sender: [u32; 2],
    value: u64,
    rest: [u64; 12],
}

const _: () = assert!(size_of::<Queued>() == 128);

impl Queued {
    /// From process `sender`, with a reason and a value.
    #[must_use]
    pub const fn new(sender: u32, why: i32, value: u64) -> Self {
        const SI_QUEUE: i32 = -1;
        let sender = [sender, 0];
        Self { signal: STOP, errno: why, code: SI_QUEUE, pad: 0, sender, value, rest: [0; 12] }
    }
}

/// In a context's deferred signals: to look at the timers.
pub const DEFERRED_TIMER: u32 = 1 << 31;

/// The kernel's `struct sigaction`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Action {
    /// Address of the handler; 0 default, 1 ignore.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: u64,
    /// Signals blocked while it runs.
    pub mask: u64,
}

/// An application's actions for the signals that libos handles, by number.
#[derive(Debug)]
#[repr(C)]
pub struct SignalTable {
    /// Indexed by signal.
    pub actions: [Action; SIGNALS],
    /// Bit per signal, from bit 1: hooks of extensions are called for it.
    pub armed: u64,
    /// Of these, the ones that the kernel has the application's own action for at present: it
    /// ignores them, in ways that only the kernel can.
    pub released: u64,
    /// And the ones of which the application has put back libos's handler, with flags and a mask of its own: libos sets
    /// these right when the next one comes.
    pub put_back: u64,
    /// Address of libos's handler.
    pub handler: u64,
    /// Sites of system calls that lead to libos.
    pub patches: Patches,
}

/// What a process has patched of its program. A forked child inherits it with the program's text.
#[derive(Debug)]
#[repr(C)]
pub struct Patches {
    /// 1 while a thread patches a site.
    pub lock: AtomicU32,
    /// 1 once the program has set a filter on its own calls: no site is patched any more.
    pub over: AtomicU32,
    /// Where stubs lie.
    pub areas: [StubArea; AREAS_MAX],
    /// Sites, found by hashing.
    pub sites: [Site; SITES_MAX],
}

/// Room for the stubs of sites within reach.
#[derive(Debug)]
#[repr(C)]
pub struct StubArea {
    /// Address, or 0.
    pub at: AtomicU64,
    /// Where the same memory can be written to, by the process that has made the area.
    pub alias: AtomicU64,
    /// Bit per stub: in use.
    pub used: [AtomicU64; STUBS_PER_AREA / 64],
}

/// A system call of the program that has been trapped.
#[derive(Debug)]
#[repr(C)]
pub struct Site {
    /// Address of its `syscall`, or 0.
    pub call: AtomicU64,
    /// Its stub (with [`FOLLOWED`] or not), or [`STAYS`]: it cannot be patched.
    pub stub: AtomicU64,
}

/// See [`Site::stub`].
pub const STAYS: u64 = 1;
/// In [`Site::stub`]: the jump has taken the place of the `syscall` itself and of what follows it.
pub const FOLLOWED: u64 = 2;
/// Sites that a process remembers. What comes later stays on the trap.
pub const SITES_MAX: usize = 2048;
/// Areas of a process: of neighbourhoods of 2 GiB that it has sites in, and of processes that it was forked from by one
/// another, each of which has patched sites.
pub const AREAS_MAX: usize = 24;
/// Stubs of one area.
pub const STUBS_PER_AREA: usize = 1024;

/// Signals that `SignalTable` and `HookTable` have room for, from 0.
pub const SIGNALS: usize = 32;

/// Hooks of one signal.
pub const HOOKS_MAX: usize = 8;

/// Handles of the handlers that are hooked to signals, in the order in which they are asked. Lies in
/// the control zone.
#[derive(Debug)]
#[repr(C)]
pub struct HookTable {
    /// By signal; 0 ends a row that is not full.
    pub signals: [[AtomicU64; HOOKS_MAX]; SIGNALS],
}

/// Handles of the handlers that are hooked to system calls, by number, and what they are narrowed to
/// ([`crate::clamps`]). Lies in the control zone.
#[derive(Debug)]
#[repr(C)]
pub struct CallTable {
    /// By number; 0 ends a row that is not full.
    pub before: [[AtomicU64; HOOKS_MAX]; CALLS],
    /// As `before`, once the kernel has carried the call out.
    pub after: [[AtomicU64; HOOKS_MAX]; CALLS],
    /// 1 if local sockets are carried: see [`crate::sockets`].
    pub sockets: AtomicU32,
    /// By number: the handle of the only handler to be asked, before a call that libos does not look at
    /// itself; else 0.
    pub only: [AtomicU64; CALLS],
}

/// Calls that libos looks at itself, whoever is hooked to them: those that reach for memory, set or have
/// signal masks, look at the stack pointer, or set filters on calls. Beside them, where sockets are carried, [`crate::sockets::CALLS`].
pub const LOOKED_AT: [usize; 19] =
    [9, 10, 11, 13, 14, 15, 25, 28, 56, 57, 58, 130, 157, 270, 271, 281, 317, 435, 441];

/// Is `number` one of [`LOOKED_AT`]?
#[must_use]
pub const fn is_looked_at(number: usize) -> bool {
    const SET: [u64; CALLS / 64] = {
        let (mut set, mut at) = ([0; CALLS / 64], 0);
        while at < LOOKED_AT.len() {
            set[LOOKED_AT[at] / 64] |= 1 << (LOOKED_AT[at] % 64);
            at += 1;
        }
        set
    };
    number < CALLS && SET[number / 64] >> (number % 64) & 1 == 1
}

/// In a handle of [`CallTable::before`]: a policy asks. If the handler fails, so does the call.
pub const MUST_DECIDE: u64 = 1 << 31;

/// Numbers of system calls that [`CallTable`] has room for.
pub const CALLS: usize = 512;

/// SIGKILL and SIGSTOP, in a signal mask.
pub const UNBLOCKABLE: u64 = 1 << 8 | 1 << 18;

/// Raised by the filter for calls that are hooked: armed with the first of them.
pub const SIGSYS: i32 = 31;

/// The signals of a mask, as bits from bit 1 on.
pub fn in_mask(mask: u64) -> impl Iterator<Item = i32> {
    (1..SIGNALS as i32).filter(move |signal| mask >> signal & 1 == 1)
}
