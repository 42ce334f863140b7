//! Every capacity that both sides of the ABI must agree on, with the reason for it.
//!
//! Sizes are bytes unless the name says otherwise. Relations between limits are asserted at
//! compile time below, so that a change to one that breaks another does not build.

/// Pages of the kernel's own granularity.
pub const PAGE_LEN: usize = 4096;

/// What the base and every large area of the region are aligned to: a huge page.
pub const HUGE_PAGE_LEN: usize = 2 << 20;

/// Lowest base of a region. Together with [`BASE_MAX`] this is the one range that no loader,
/// sanitizer, JIT or `mmap_base` was seen to use on x86-64 Linux.
pub const BASE_MIN: usize = 0x5540_0000_0000;

/// No region reaches beyond this address.
pub const BASE_MAX: usize = 0x5554_0000_0000;

/// Longest name of a sandbox or an extension. Names are ASCII letters, digits, `-` and `_`.
pub const NAME_LEN_MAX: usize = 31;

/// Longest `extension.handler` name, with its dot.
pub const HANDLER_NAME_LEN_MAX: usize = 64;

/// Longest signature text of a handler.
pub const SIGNATURE_LEN_MAX: usize = 120;

/// Handlers of all extensions together. A thousand services is what users of comparable
/// systems ask for; twice that is 512 KiB of the control zone.
pub const HANDLERS_MAX: usize = 2048;

/// Words that a handler's arguments may take in all (a byte string takes two).
pub const ARG_WORDS_MAX: usize = 16;

/// Participants alive at one time.
pub const PROCESSES_MAX: usize = 1024;

/// Contexts (threads that have made an upcall) alive at one time, over all participants.
pub const CONTEXTS_MAX: usize = 4096;

/// An upcall stack with its guard pages and what else a context has, 200 KiB of it for handlers. Power of two: the
/// context is found by its address.
pub const STACK_LEN: usize = 512 << 10;

/// Upcalls within upcalls, on one context.
pub const NESTING_MAX: usize = 8;

/// Slots with 4 MiB of code and 4 MiB of data each. Slot 0 holds libos.
pub const SMALL_SLOTS: usize = 28;

/// Slots with 32 MiB of code and 32 MiB of data each, for images that carry a runtime.
pub const LARGE_SLOTS: usize = 4;

/// All slots.
pub const SLOTS_MAX: usize = SMALL_SLOTS + LARGE_SLOTS;

/// Code half and data half of a small slot.
pub const SMALL_HALF_LEN: usize = 4 << 20;

/// Code half and data half of a large slot.
pub const LARGE_HALF_LEN: usize = 32 << 20;

/// Heap of an extension that does not ask for a size.
pub const HEAP_LEN_DEFAULT: usize = 16 << 20;

/// Time budget of one upcall that does not ask for one, in nanoseconds of CPU time.
pub const BUDGET_NS_DEFAULT: u64 = 200_000_000;

/// CPU time that an extension's `init` may take, in nanoseconds.
pub const INIT_BUDGET_NS: u64 = 10_000_000_000;

/// How long an upcall may sleep or stand still in all, in milliseconds. What it waits for then is
/// taken for lost.
pub const STUCK_MS: u64 = 5_000;

/// Shortest period of a timer, in nanoseconds.
pub const TIMER_NS_MIN: u64 = 1_000_000;

/// Timers at one time.
pub const TIMERS_MAX: usize = 1024;

/// Events that wait for one process at a time.
pub const INBOX_EVENTS_MAX: usize = 64;

/// Events that wait for any process at a time.
pub const POOL_EVENTS_MAX: usize = 1024;

/// Buffers for what comes from the network and what goes there: as many packets and pieces of
/// connections can be under way at one time.
pub const BUFFERS_MAX: usize = NARROW_BUFFERS + WIDE_BUFFERS;

/// Those that are [`BUFFER_LEN`] long.
pub const NARROW_BUFFERS: usize = 1024;

/// Those behind them, [`WIDE_LEN`] long: the kernel receives many datagrams of one sender into one at a time.
pub const WIDE_BUFFERS: usize = 256;

/// One of them. The longest datagram, and the longest request that a handler gets in one piece, is
/// [`PACKET_LEN_MAX`].
pub const BUFFER_LEN: usize = 32 << 10;

/// Front of a buffer that the kernel writes addresses into.
pub const BUFFER_FRONT_LEN: usize = 64;

/// A wide buffer: room for as much as one datagram of UDP can be, which is what many come as at most.
pub const WIDE_LEN: usize = (64 << 10) + BUFFER_FRONT_LEN;

/// Longest datagram or piece of a connection that a handler gets.
pub const PACKET_LEN_MAX: usize = BUFFER_LEN - BUFFER_FRONT_LEN;

/// Ports and interfaces that handlers of one sandbox are hooked to.
pub const PORTS_MAX: usize = 64;

/// Processes that serve a port themselves, each counted for each of its ports.
pub const SEATS_MAX: usize = 32;

/// Connections of all ports of a sandbox at one time, forwarded ones counted twice.
pub const NET_CONNECTIONS_MAX: usize = 16 << 10;

/// Extensions that are clamped at one time: as many as there are slots.
pub const CLAMPS_MAX: usize = SLOTS_MAX;

/// The paths of one clamp, with a zero behind each: one that is as long as can be, or some dozens.
pub const CLAMP_PATHS_LEN: usize = 4096;

/// Ranges of descriptors of one clamp.
pub const CLAMP_DESCRIPTORS_MAX: usize = 16;

/// Names of processes of one clamp, and pids besides.
pub const CLAMP_PROCESSES_MAX: usize = 16;

/// Longest text that a fault leaves for its caller.
pub const FAULT_TEXT_LEN_MAX: usize = 240;

/// Bytes of log text kept in the region; older text is overwritten.
pub const LOG_LEN: usize = 64 << 10;

const _: () = assert!(STACK_LEN.is_power_of_two());
const _: () =
    assert!(BASE_MIN.is_multiple_of(HUGE_PAGE_LEN) && BASE_MAX.is_multiple_of(HUGE_PAGE_LEN));
const _: () = assert!(HANDLER_NAME_LEN_MAX >= NAME_LEN_MAX + 1 + NAME_LEN_MAX);
const _: () = assert!(SLOTS_MAX <= 64, "slot sets are one 64-bit word");
const _: () = assert!(LOG_LEN.is_power_of_two());
const _: () = assert!(BUFFERS_MAX <= 1 << 11, "a buffer's name has eleven bits for its number");
const _: () = assert!(BUFFER_LEN.is_power_of_two() && BUFFER_FRONT_LEN < BUFFER_LEN);
