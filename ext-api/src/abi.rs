//! The binary interface between participants, extensions, libos and the launcher.
//!
//! Everything here is `repr(C)`, fixed in size, and versioned by [`ABI_VERSION`]. It is the only
//! thing that code from different builds shares: Rust's own layouts never cross a build.
//!
//! Three parties read it:
//! * a **caller** finds the [`Superblock`] in the control zone and calls through [`Entry`];
//! * an **extension** image exports one [`Manifest`] under a name that starts with
//!   [`MANIFEST_SYMBOL_PREFIX`];
//! * **libos** hands each extension a [`Runtime`] before its `init` runs.

use core::ffi::c_void;

use crate::limits::{HANDLER_NAME_LEN_MAX, SIGNATURE_LEN_MAX};

/// Raised whenever anything in this file changes meaning. Both sides must agree exactly.
pub const ABI_VERSION: u32 = 6;

/// First eight bytes of every control zone.
pub const SUPERBLOCK_MAGIC: u64 = u64::from_le_bytes(*b"SBXsuper");

/// First eight bytes of every extension's manifest.
pub const MANIFEST_MAGIC: u64 = u64::from_le_bytes(*b"SBXextn1");

/// An extension image exports exactly one symbol that starts so: its [`Manifest`]. The rest is
/// the extension's name, so that a program may link the clients of several extensions.
pub const MANIFEST_SYMBOL_PREFIX: &str = "SBX_EXTENSION_";

/// Name of the control zone's memfd, as `/proc/PID/maps` shows it. This is how a participant
/// finds out that it is one, and where the region lies.
pub const CONTROL_MAPPING: &str = "/memfd:sbx-control (deleted)";

/// What an upcall came to. Passed as `u32`; see [`Status::from_raw`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// The handler ran; the reply holds its result.
    Ok = 0,
    /// The handler ran and returned `None`.
    None = 1,
    /// The handler ran and returned `Err`; the reply's bytes are the message.
    Failed = 2,

    // Refused: the handler did not run, nothing happened.
    /// The handle is not live: the extension was unloaded, restarted or never there.
    Stale = 16,
    /// Every context of the sandbox is in use.
    NoContext = 17,
    /// [`crate::limits::NESTING_MAX`] upcalls are open on this context already.
    TooDeep = 18,
    /// A signal handler made an upcall while its thread was inside one.
    Reentered = 19,
    /// The arguments do not fit the handler's signature.
    BadArgs = 20,
    /// This process is not a participant.
    NotAttached = 21,
    /// The extension failed in a way that leaves its state in doubt, and is being restarted with
    /// a fresh one. Try again in a few milliseconds.
    Restarting = 22,
    /// The extension failed too often in a row; the supervisor tries again later.
    Quarantined = 23,
    /// The mailbox of the event's target has no room: it takes events more slowly than they come.
    Full = 24,
    /// The process that the event is for takes no part, or no longer.
    Gone = 25,

    // Fault: the handler started and did not finish.
    /// The handler panicked; the reply's bytes are the message.
    Panicked = 32,
    /// The handler called `abort`, or its runtime did.
    Aborted = 33,
    /// The handler used an imported symbol that the region does not have.
    MissingImport = 34,
    /// The extension's heap is full and the handler could not go on without more.
    OutOfMemory = 35,
    /// The handler asked for something that region code must not do (a thread, fork, exec).
    Forbidden = 36,
    /// The handler touched memory that it must not or that is not there (SIGSEGV, SIGBUS).
    MemoryFault = 37,
    /// The handler ran into something that is no instruction, or a trap (SIGILL, SIGTRAP).
    IllegalInstruction = 38,
    /// The handler divided by zero (SIGFPE).
    Arithmetic = 39,
    /// The upcall stack is used up.
    StackOverflow = 40,
    /// The upcall used more CPU time than its budget.
    Overrun = 41,
    /// The upcall slept or stood still for too long.
    Stuck = 42,
}

impl Status {
    /// The status with this number, if there is one.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::Ok,
            1 => Self::None,
            2 => Self::Failed,
            16 => Self::Stale,
            17 => Self::NoContext,
            18 => Self::TooDeep,
            19 => Self::Reentered,
            20 => Self::BadArgs,
            21 => Self::NotAttached,
            22 => Self::Restarting,
            23 => Self::Quarantined,
            24 => Self::Full,
            25 => Self::Gone,
            32 => Self::Panicked,
            33 => Self::Aborted,
            34 => Self::MissingImport,
            35 => Self::OutOfMemory,
            36 => Self::Forbidden,
            37 => Self::MemoryFault,
            38 => Self::IllegalInstruction,
            39 => Self::Arithmetic,
            40 => Self::StackOverflow,
            41 => Self::Overrun,
            42 => Self::Stuck,
            _ => return None,
        })
    }
}

impl core::fmt::Display for Status {
    /// What happened, and what to do about it.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Ok => "the handler ran",
            Self::None => "the handler returned nothing",
            Self::Failed => "the handler returned an error",
            Self::Stale => "the extension was unloaded; look the handler up again",
            Self::NoContext => "every context of the sandbox is in use by a thread",
            Self::TooDeep => "too many upcalls within upcalls",
            Self::Reentered => "a signal handler made an upcall while its thread was inside one",
            Self::BadArgs => "the arguments do not fit the handler's signature",
            Self::NotAttached => "this process is not in the sandbox",
            Self::Restarting => {
                "the extension is being restarted, or was unloaded meanwhile; try again"
            }
            Self::Quarantined => "the extension failed too often in a row; it is tried again later",
            Self::Full => "the target's mailbox is full; post again later",
            Self::Gone => "the target is no participant, or no longer",
            Self::Panicked => "the handler panicked",
            Self::Aborted => "the handler aborted",
            Self::MissingImport => "the handler used a function that the region does not have",
            Self::OutOfMemory => "the extension's heap is full",
            Self::Forbidden => "the handler did what region code must not do",
            Self::MemoryFault => "the handler touched memory that is not its own",
            Self::IllegalInstruction => "the handler ran into an illegal instruction",
            Self::Arithmetic => "the handler divided by zero",
            Self::StackOverflow => "the handler used up the upcall stack",
            Self::Overrun => "the upcall used more CPU time than its budget",
            Self::Stuck => "the upcall slept or stood still for too long",
        })
    }
}

/// Names one loaded handler: index in the low 32 bits, generation in the high 32.
///
/// A generation is odd while the handler is live, and is never used again after unload, so a
/// stale handle is refused instead of reaching another extension's handler. 0 is no handle.
pub type Handle = u64;

/// Where a handler's result goes. The caller owns it; the handler fills it.
#[derive(Debug)]
#[repr(C)]
pub struct Reply {
    /// A scalar result (integer, bool as 0 or 1, the bits of a float).
    pub word: u64,
    /// The caller's buffer for a result of bytes. May be null when `cap` is 0.
    pub buf: *mut u8,
    /// Capacity of `buf`.
    pub cap: usize,
    /// Bytes that the handler produced.
    pub len: usize,
    /// Null when the bytes are in `buf`; else they did not fit and lie here, in the region.
    /// The caller copies them and gives them back with [`Entry::release`].
    pub spill: *mut u8,
}

impl Reply {
    /// A reply without a buffer: enough for scalars.
    #[must_use]
    pub const fn empty() -> Self {
        Self { word: 0, buf: core::ptr::null_mut(), cap: 0, len: 0, spill: core::ptr::null_mut() }
    }
}

/// A handler as the gate calls it: argument words, then the reply; returns a [`Status`].
///
/// How arguments become words: an integer, bool or float is one word (its bits, zero- or
/// sign-extended); a byte string is two, address and length, valid in the caller's process for
/// the length of the call.
pub type HandlerFn = unsafe extern "C" fn(args: *const u64, reply: *mut Reply) -> u32;

/// Gate: run handler `handle`. See [`HandlerFn`] for `args`; returns a [`Status`].
pub type CallFn = unsafe extern "C" fn(handle: Handle, args: *const u64, reply: *mut Reply) -> u32;

/// Find the handler named `extension.handler`; 0 if there is none.
pub type FindFn = unsafe extern "C" fn(name: *const u8, len: usize) -> Handle;

/// Wait for events, at most this many nanoseconds; how many were delivered meanwhile. Delivers those
/// that wait already and does not sleep then; 0 never sleeps.
pub type WaitFn = extern "C" fn(timeout_ns: u64) -> u64;

/// Wait until `*word` is no longer `expected`, at most this many nanoseconds, and run what comes for
/// the process, or for any process, meanwhile. 1 if it has changed, 0 if not.
pub type WaitOnFn = unsafe extern "C" fn(word: *const u32, expected: u32, timeout_ns: u64) -> u64;

/// Wake at most this many that sleep in a [`WaitOnFn`] on `word`; how many did.
pub type WakeOnFn = unsafe extern "C" fn(word: *const u32, count: u32) -> u64;

/// [`HandlerEntry::event_words`]: events cannot be posted to this handler.
pub const NO_EVENT: u32 = u32::MAX;
/// The handle of `libos.post`: how, to whom, which handler, four words; the reply's word is how
/// many mailboxes have the event.
pub const POST_HANDLE: Handle = 1 << 32 | 1;
/// The handle of `libos.peer`: a pid; the reply's word names that process in `libos.post`.
pub const PEER_HANDLE: Handle = 1 << 32 | 2;
/// The handle of `libos.hello`, which does nothing.
pub const HELLO_HANDLE: Handle = 1 << 32;
/// The handle of `libos.timer`: nanoseconds until it is due, [`TIMER_ABSOLUTE`] or 0, period, slack,
/// how and to whom, which handler, two words; the reply's word names the timer.
pub const TIMER_HANDLE: Handle = 1 << 32 | 3;
/// The handle of `libos.cancel`: a timer's name; the reply's word is 1 if it was stopped.
pub const CANCEL_HANDLE: Handle = 1 << 32 | 4;
/// The handle of `libos.expire`, by which a timer's handler is called.
pub const EXPIRE_HANDLE: Handle = 1 << 32 | 5;
/// The handle of `libos.lend`: the calling thread runs timers of [`HOW_RUNNING`] from now on.
pub const LEND_HANDLE: Handle = 1 << 32 | 6;
/// A timer's first word is a time of the monotonic clock.
pub const TIMER_ABSOLUTE: u64 = 1;

/// How an event is posted: bits of `how`, of which these say what the target is.
pub const HOW_KIND: u64 = 0xff;
/// The target is a process, as `libos.peer` names it.
pub const HOW_PEER: u64 = 0;
/// The target is a pid, of the poster's pid namespace.
pub const HOW_PID: u64 = 1;
/// Any process that has nothing else to do.
pub const HOW_ANY: u64 = 2;
/// Every process of the sandbox.
pub const HOW_ALL: u64 = 3;
/// The worker that stays.
pub const HOW_SERVER: u64 = 4;
/// For timers: the first of the server and of the threads that have called `libos.lend`. One that runs
/// at that moment is interrupted.
pub const HOW_RUNNING: u64 = 5;
/// Interrupt the target if it runs code of its own.
pub const HOW_URGENT: u64 = 1 << 8;

/// Give back a reply's `spill`.
pub type ReleaseFn = unsafe extern "C" fn(spill: *mut u8);

/// Addresses of libos's entry points, equal in every participant.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Entry {
    /// [`CallFn`].
    pub call: u64,
    /// [`FindFn`].
    pub find: u64,
    /// [`ReleaseFn`].
    pub release: u64,
    /// `extern "C" fn() -> u64`: bits of [`Superblock::flags`] that hold for this thread; also
    /// makes the calling thread's context, so that its first real upcall is fast.
    pub touch: u64,
    /// `extern "C" fn() -> i32`: makes the calling process a participant once the zones are
    /// mapped (a late attach). 0, or a negated errno.
    pub join: u64,
    /// Where the launcher lets a process start after exec: joins, then goes on to the program.
    pub exec_stub: u64,
    /// Where the launcher lets a forked child start: joins, then goes back to the program.
    pub fork_stub: u64,
    /// [`CallFn`] with its arguments in a block (`extern "C" fn(*const [u64; 3]) -> u32`: handle,
    /// args, reply), for languages to which each argument costs more than the call.
    pub call_block: u64,
}

/// One mapping of the region in a participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct MapRecord {
    /// Address.
    pub addr: u64,
    /// Length.
    pub len: u64,
    /// `PROT_*` bits.
    pub prot: u32,
    /// Which descriptor: one of the `ZONE_*` constants.
    pub zone: u32,
    /// Offset in that zone's file.
    pub offset: u64,
}

/// [`MapRecord::zone`]: the control zone's memfd.
pub const ZONE_CONTROL: u32 = 0;
/// [`MapRecord::zone`]: the code zone's memfd.
pub const ZONE_CODE: u32 = 1;
/// [`MapRecord::zone`]: the data zone's file.
pub const ZONE_DATA: u32 = 2;
/// [`MapRecord::zone`]: private anonymous memory of the process.
pub const ZONE_PRIVATE: u32 = 3;

/// Most mappings that a region is made of.
pub const MAPS_MAX: usize = 48;

/// What lies at the very start of the control zone, read-only in every participant.
#[derive(Debug)]
#[repr(C)]
pub struct Superblock {
    /// [`SUPERBLOCK_MAGIC`].
    pub magic: u64,
    /// [`ABI_VERSION`] of the launcher that made the sandbox.
    pub abi_version: u32,
    /// Bytes of this structure, for readers of another version.
    pub size: u32,
    /// Address of this structure, and of the region.
    pub base: u64,
    /// Length of the shared part of the region.
    pub len: u64,
    /// Drawn at random per sandbox.
    pub sandbox_id: u64,
    /// What holds in this sandbox; no bit is defined yet.
    pub flags: u64,
    /// Pid of the process that made the sandbox, for people; nothing trusts it.
    pub supervisor_pid: u32,
    /// Mappings used of `maps`.
    pub map_count: u32,
    /// Entry points of libos.
    pub entry: Entry,
    /// Name of the sandbox, padded with zeros.
    pub name: [u8; 32],
    /// What a participant maps, in this order: the first is a reservation of the whole span and
    /// must not replace anything (`MAP_FIXED_NOREPLACE`); the others go over it (`MAP_FIXED`).
    pub maps: [MapRecord; MAPS_MAX],
    /// Address of the handler table: [`crate::limits::HANDLERS_MAX`] of [`HandlerEntry`].
    pub handlers: u64,
    /// Address of the extension table: [`crate::limits::SLOTS_MAX`] of [`ExtensionEntry`].
    pub extensions: u64,
    /// Address of libos's [`WaitFn`].
    pub wait: u64,
    /// Address of libos's [`WaitOnFn`].
    pub wait_on: u64,
    /// Address of libos's [`WakeOnFn`].
    pub wake_on: u64,
    /// Address of the [`crate::pool::Pool`]; 0 until an extension is hooked to the network.
    pub pool: core::sync::atomic::AtomicU64,
}

/// One row of the handler table. Written by the supervisor alone.
#[derive(Debug)]
#[repr(C)]
pub struct HandlerEntry {
    /// Odd while live. Changes with `Release` after the other fields are in place.
    pub generation: core::sync::atomic::AtomicU32,
    /// Slot of the extension.
    pub slot: u32,
    /// Address of the [`HandlerFn`].
    pub code: core::sync::atomic::AtomicU64,
    /// Bytes used of `name`.
    pub name_len: u32,
    /// Bytes used of `signature`.
    pub signature_len: u32,
    /// `extension.handler`.
    pub name: [u8; HANDLER_NAME_LEN_MAX],
    /// As [`HandlerDecl::signature`].
    pub signature: [u8; SIGNATURE_LEN_MAX],
    /// Argument words, if they are numbers only and an event can carry them; else [`NO_EVENT`].
    pub event_words: u32,
    /// As `code`, if that is known to leave the vector registers alone; else 0. Cleared before `code`
    /// changes.
    pub bare: core::sync::atomic::AtomicU64,
    reserved: [u8; 32],
}

/// One row of the extension table, indexed by slot. Written by the supervisor alone.
#[derive(Debug)]
#[repr(C)]
pub struct ExtensionEntry {
    /// Odd while the slot holds a live image.
    pub generation: core::sync::atomic::AtomicU32,
    /// Bytes used of `name`.
    pub name_len: u32,
    /// Name of the extension.
    pub name: [u8; 32],
    /// First and last-but-one address of the image's code, for the unwinder.
    pub text: [u64; 2],
    /// Address of `.eh_frame_hdr`, or 0.
    pub eh_frame_hdr: u64,
    /// Address of the image's lowest byte.
    pub image: u64,
    /// Address and length of the initial thread-local block (`.tdata`), and its full size.
    pub tls_init: u64,
    /// Bytes of `.tdata`.
    pub tls_init_len: u64,
    /// Bytes of a thread-local block.
    pub tls_len: u64,
    /// Alignment of a thread-local block.
    pub tls_align: u64,
    /// Address of the extension's arena in the data zone.
    pub arena: u64,
    /// Length of the arena.
    pub arena_len: u64,
    reserved: [u8; 136],
}

/// Text in an image, as address and length.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Text {
    /// First byte; UTF-8.
    pub ptr: *const u8,
    /// Bytes.
    pub len: usize,
}

impl Text {
    /// The text of a literal.
    #[must_use]
    pub const fn new(text: &'static str) -> Self {
        Self { ptr: text.as_ptr(), len: text.len() }
    }
}

// SAFETY: a `Text` in a manifest points at the image's own immutable bytes.
#[expect(unsafe_code, reason = "a manifest is a static, and statics must be Sync")]
unsafe impl Sync for Text {}

/// What an extension image says of itself: the static that [`MANIFEST_SYMBOL_PREFIX`] finds.
#[derive(Debug)]
#[repr(C)]
pub struct Manifest {
    /// [`MANIFEST_MAGIC`].
    pub magic: u64,
    /// [`ABI_VERSION`] that the image was built for.
    pub abi_version: u32,
    /// Bytes of this structure.
    pub size: u32,
    /// Name of the extension.
    pub name: Text,
    /// Heap that it wants, or 0 for [`crate::limits::HEAP_LEN_DEFAULT`].
    pub heap_len: u64,
    /// CPU time one upcall may take in nanoseconds, or 0 for the default.
    pub budget_ns: u64,
    /// Runs once, in the worker, before any handler is live.
    pub init: Option<InitFn>,
    /// The handlers.
    pub handlers: *const HandlerDecl,
    /// How many.
    pub handler_count: usize,
    /// [`KILL_SAFE`], or 0.
    pub flags: u64,
    /// Writes the state into its reply, for a later version to begin with. Takes no arguments.
    pub save: Option<HandlerFn>,
    /// Runs instead of `init` when an earlier version hands its state over.
    pub upgrade: Option<UpgradeFn>,
    /// Version of what `save` writes.
    pub state_version: u64,
}

/// `upgrade` of an extension: as [`InitFn`], with the version of the saved state and its bytes
/// behind the runtime.
pub type UpgradeFn = unsafe extern "C" fn(
    config: *const u8,
    config_len: usize,
    runtime: *const Runtime,
    version: u64,
    saved: *const u8,
    saved_len: usize,
    reply: *mut Reply,
) -> u32;

/// [`Manifest::flags`]: every handler changes nothing but structures of `ext_api::shared`, so that
/// an upcall that ends in the middle leaves the state right and the extension goes on.
pub const KILL_SAFE: u64 = 1;

// SAFETY: a manifest is immutable after relocation.
#[expect(unsafe_code, reason = "a manifest is a static, and statics must be Sync")]
unsafe impl Sync for Manifest {}

/// `init` of an extension: configuration text, runtime, reply (the message on failure).
pub type InitFn = unsafe extern "C" fn(
    config: *const u8,
    config_len: usize,
    runtime: *const Runtime,
    reply: *mut Reply,
) -> u32;

/// One handler in a manifest.
#[derive(Debug)]
#[repr(C)]
pub struct HandlerDecl {
    /// Name without the extension's.
    pub name: Text,
    /// For people and for clients without types, e.g. `(key: bytes, value: bytes) -> u64`.
    /// The words of the grammar are in `docs` of [`crate`]: `u64 i64 f64 bool bytes str`, with
    /// `option<T>` and `result<T>` around a return type.
    pub signature: Text,
    /// The code.
    pub code: HandlerFn,
    /// CPU time one upcall may take in nanoseconds, or 0 for the extension's.
    pub budget_ns: u64,
    /// When it runs by itself: one of the `HOOK_*` constants, or 0.
    pub hook: u64,
    /// What belongs to `hook`.
    pub hook_value: u64,
    /// Of [`HOOK_CALLS`]: a bit per number; else null.
    pub hook_set: *const [u64; 8],
}

/// [`HandlerDecl::hook`]: periodically, every `hook_value` nanoseconds. Its first argument, if it
/// takes one, is how many periods it has missed since it ran last.
pub const HOOK_TIMER: u64 = 1;
/// [`HandlerDecl::hook`]: a process has begun to take part. Argument: its pid.
pub const HOOK_START: u64 = 2;
/// [`HandlerDecl::hook`]: a participant executes another program. Argument: its pid.
pub const HOOK_EXEC: u64 = 3;
/// [`HandlerDecl::hook`]: a participant has ended. Arguments: its pid, its status as `waitpid` gives
/// it (2^32 - 1 if nobody can tell), and how many events did not reach it.
pub const HOOK_EXIT: u64 = 4;
/// [`HandlerDecl::hook`]: the signal `hook_value`, in a process that was launched since. Arguments:
/// its number, the address of a fault or the sender's pid, `si_code`, the value of a queued signal or what the
/// processor says of a fault.
/// Result: true if the program is not to see it.
pub const HOOK_SIGNAL: u64 = 5;
/// [`HandlerDecl::hook`]: a participant has forked. Arguments: the child's pid and its parent's.
pub const HOOK_FORK: u64 = 6;
/// [`HandlerDecl::hook`]: the system calls of `hook_set`, in a process that was launched since.
/// Argument: address of a [`CallBlock`]. Result: [`CALL_PASS`] or [`CALL_TAKEN`].
pub const HOOK_CALLS: u64 = 7;
/// [`HandlerDecl::hook`]: the same, once the kernel has carried them out.
pub const HOOK_CALLS_AFTER: u64 = 8;

/// [`HandlerDecl::hook`]: what comes to the UDP port `hook_value`, in the worker that serves the
/// network; port 0 stands for what other handlers pass. Argument: address of a [`PacketBlock`].
pub const HOOK_UDP: u64 = 9;
/// [`HandlerDecl::hook`]: the same for connections to a TCP port.
pub const HOOK_TCP: u64 = 10;
/// [`HandlerDecl::hook`]: the same for all frames of the interface whose name `hook_set` holds.
pub const HOOK_PACKET: u64 = 11;

/// Longest name of an interface.
pub const INTERFACE_LEN_MAX: usize = 15;

/// An interface's name where a set of calls would be.
///
/// # Panics
/// It is none: the extension does not build.
#[must_use]
pub const fn interface_set(name: &str) -> [u64; 8] {
    let name = name.as_bytes();
    assert!(!name.is_empty() && name.len() <= INTERFACE_LEN_MAX, "no name of an interface");
    let mut set = [0; 8];
    let mut at = 0;
    while at < name.len() {
        set[at / 8] |= (name[at] as u64) << (at % 8 * 8);
        at += 1;
    }
    set
}

/// An address of the network: 4 or 6 as `version`, the port as a number, 4 or 16 bytes of `ip`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NetAddress {
    /// 4, 6, or 0: there is none.
    pub version: u16,
    /// Port.
    pub port: u16,
    /// Of a link-local address of version 6: which link.
    pub scope: u32,
    /// The bytes, in their usual order.
    pub ip: [u8; 16],
}

/// [`PacketBlock::flags`], of a connection: it has just been accepted.
pub const NET_BEGINS: u64 = 1;
/// [`PacketBlock::flags`], of a connection: no more bytes will come than these.
pub const NET_ENDED: u64 = 2;
/// [`PacketBlock::flags`], of a connection, beside [`NET_ENDED`]: it was cut. What the handler says is not
/// carried out.
pub const NET_CUT: u64 = 8;
/// [`PacketBlock::flags`], set by the handler: close it once all is sent.
pub const NET_CLOSE: u64 = 4;

/// [`PacketBlock::verdict`]: ask the handler of what others pass; a connection goes on.
pub const NET_PASS: u64 = 0;
/// [`PacketBlock::verdict`]: what the reply holds goes back.
pub const NET_REPLY: u64 = 1;
/// [`PacketBlock::verdict`]: the first `in_place` bytes of `data` go back.
pub const NET_REPLY_IN_PLACE: u64 = 2;
/// [`PacketBlock::verdict`]: to the address `next`.
pub const NET_FORWARD: u64 = 3;
/// [`PacketBlock::verdict`]: nothing goes anywhere; a connection is cut.
pub const NET_DROP: u64 = 4;
/// [`PacketBlock::verdict`]: another process answers it, as the event `hand`.
pub const NET_HAND: u64 = 5;

/// What has come from the network, for a handler. The reply's buffer is the room behind it.
#[derive(Debug)]
#[repr(C)]
pub struct PacketBlock {
    /// First byte.
    pub data: *mut u8,
    /// Bytes.
    pub len: usize,
    /// Bytes, from the first, that the handler is through with: of a connection, what is left comes
    /// again with what comes next.
    pub used: usize,
    /// Bytes for [`NET_REPLY_IN_PLACE`].
    pub in_place: usize,
    /// Who has sent it.
    pub from: NetAddress,
    /// To whom.
    pub to: NetAddress,
    /// For [`NET_FORWARD`].
    pub next: NetAddress,
    /// `NET_BEGINS`, `NET_ENDED`, `NET_CLOSE`.
    pub flags: u64,
    /// A word of the handler's own that stays with a connection; 0 at first.
    pub word: u64,
    /// What becomes of it.
    pub verdict: u64,
    /// For [`NET_HAND`]: how, to whom, which handler.
    pub hand: [u64; 3],
}

/// The next hook is asked, or the kernel.
pub const CALL_PASS: u64 = 0;
/// The call returns the block's `value`.
pub const CALL_TAKEN: u64 = 1;

/// A system call that a program is about to make.
#[derive(Debug)]
#[repr(C)]
pub struct CallBlock {
    /// Its number.
    pub number: u64,
    /// What the kernel will be given.
    pub args: [u64; 6],
    /// What it returns, if the kernel never sees it, or has returned: a negated errno is a failure.
    pub value: u64,
    /// How long it took, in nanoseconds, once it is over.
    pub took_ns: u64,
    /// Memory for what arguments point to, until the call is over.
    pub scratch: *mut u8,
    /// Bytes of it; behind them lies a [`ScratchMark`].
    pub scratch_len: usize,
    /// Bytes that are in use.
    pub scratch_used: usize,
}

/// What of a thread's scratch memory is in use, by a call that a signal handler of the program may have
/// interrupted. Nobody but the thread writes it.
#[derive(Debug)]
#[repr(C)]
pub struct ScratchMark {
    /// Where the call is on a stack; 0 if nothing is in use.
    pub at: core::sync::atomic::AtomicU64,
    /// Address up to which it is.
    pub end: core::sync::atomic::AtomicU64,
}

/// Signals that a handler can be hooked to.
pub const HOOKABLE_SIGNALS: [(&str, u64); 23] = [
    ("SIGHUP", 1),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGILL", 4),
    ("SIGTRAP", 5),
    ("SIGABRT", 6),
    ("SIGBUS", 7),
    ("SIGFPE", 8),
    ("SIGUSR1", 10),
    ("SIGSEGV", 11),
    ("SIGUSR2", 12),
    ("SIGPIPE", 13),
    ("SIGALRM", 14),
    ("SIGTERM", 15),
    ("SIGCHLD", 17),
    ("SIGURG", 23),
    ("SIGXCPU", 24),
    ("SIGXFSZ", 25),
    ("SIGVTALRM", 26),
    ("SIGPROF", 27),
    ("SIGWINCH", 28),
    ("SIGIO", 29),
    ("SIGPWR", 30),
];

/// Number of a signal of [`HOOKABLE_SIGNALS`], at compile time.
///
/// # Panics
/// There is none of that name: the extension does not build.
#[must_use]
pub const fn signal_number(name: &str) -> u64 {
    let mut at = 0;
    while at < HOOKABLE_SIGNALS.len() {
        let (known, number) = HOOKABLE_SIGNALS[at];
        let (known, name) = (known.as_bytes(), name.as_bytes());
        let mut same = known.len() == name.len();
        let mut byte = 0;
        while same && byte < known.len() {
            same = known[byte] == name[byte];
            byte += 1;
        }
        if same {
            return number;
        }
        at += 1;
    }
    panic!("handlers can be hooked to the signals of ext_api::abi::HOOKABLE_SIGNALS only")
}

// SAFETY: as `Manifest`.
#[expect(unsafe_code, reason = "a manifest is a static, and statics must be Sync")]
unsafe impl Sync for HandlerDecl {}

/// What libos offers to extension code, beyond the region libc.
///
/// An *owner* is an upcall that can hold locks, in one word: never 0, and bit 63 is clear.
#[derive(Debug)]
#[repr(C)]
pub struct Runtime {
    /// Bytes of this structure.
    pub size: u64,
    /// The calling context's owner word; 0 outside of an upcall.
    pub owner: extern "C" fn() -> u64,
    /// 1 while that owner may still run; 0 once it is dead for certain.
    pub owner_alive: extern "C" fn(owner: u64) -> u32,
    /// Pid and tid behind an owner, for messages: pid in the high half.
    pub owner_ids: extern "C" fn(owner: u64) -> u64,
    /// Sleep while `*word == expected`, at most `timeout_ns`. 0, or a negated errno.
    pub futex_wait: unsafe extern "C" fn(word: *const u32, expected: u32, timeout_ns: u64) -> i32,
    /// Wake at most `count` sleepers. The number woken, or a negated errno.
    pub futex_wake: unsafe extern "C" fn(word: *const u32, count: u32) -> i32,
    /// Monotonic time in nanoseconds.
    pub now_ns: extern "C" fn() -> u64,
    /// Pid of the process that this upcall runs in.
    pub pid: extern "C" fn() -> u32,
    /// Memory of the extension's arena (for replies that spill); null when full.
    pub alloc: unsafe extern "C" fn(len: usize) -> *mut c_void,
    /// Leave text for the caller of the current upcall (used with a fault status).
    pub fault_text: unsafe extern "C" fn(text: *const u8, len: usize),
    /// Find a handler by its name; 0 if there is none.
    pub find: unsafe extern "C" fn(name: *const u8, len: usize) -> Handle,
    /// What names the process with this pid in `post`; 0 if it takes no part.
    pub peer: extern "C" fn(pid: u32) -> u64,
    /// Post an event: how ([`HOW_KIND`]), to whom, which handler, four words. A [`Status`] in the
    /// low half, in the high half how many mailboxes have it.
    pub post: unsafe extern "C" fn(how: u64, to: u64, handle: Handle, words: *const u64) -> u64,
    /// Start a timer: the words of [`TIMER_HANDLE`]. A [`Status`], and the timer's name.
    pub timer: unsafe extern "C" fn(words: *const u64, id: *mut u64) -> u32,
    /// Stop a timer; 0 if it has come for the last time or was stopped before.
    pub cancel: extern "C" fn(id: u64) -> u32,
    /// Deliver no events to this process from now on (1), or again (0).
    pub mask: extern "C" fn(on: u32),
    /// 1 if what `peer` has named still takes part.
    pub is_live: extern "C" fn(peer: u64) -> u32,
    /// What names the calling process, as `peer` does.
    pub own: extern "C" fn() -> u64,
    /// Address of the [`crate::pool::Pool`], or 0.
    pub pool: extern "C" fn() -> u64,
    /// Address of the [`Superblock`]: what handlers call other extensions by.
    pub superblock: extern "C" fn() -> u64,
    /// Address of the first upcall stack: that of context 0. Each is [`crate::limits::STACK_LEN`] long.
    pub stacks: extern "C" fn() -> u64,
}

const _: () = assert!(size_of::<Superblock>() <= 4096);
const _: () = assert!(size_of::<HandlerEntry>() == 256);
const _: () = assert!(size_of::<ExtensionEntry>() == 256);
const _: () = assert!(size_of::<Reply>() == 40);
