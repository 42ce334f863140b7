//! The signals that the region needs for itself, and where an application's own wishes for them
//! are kept. The supervisor writes the table on behalf of a participant that calls `sigaction`.

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

/// An application's actions for the signals of [`OURS`], by number.
#[derive(Debug)]
#[repr(C)]
pub struct SignalTable {
    /// Indexed by signal.
    pub actions: [Action; 65],
}
