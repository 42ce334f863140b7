//! The code of slot 0: the gate, contexts, and the region's own small libc.
//!
//! 1. The image imports nothing: whatever it needs from the kernel it asks for itself (`sys`).
//! 2. Extensions bind to it, and never to a process's libc: [`exports`] lists all they may use.
//! 3. It runs on three kinds of stack: the caller's (only `join` and the slow path of
//!    `context`, a few hundred bytes), an upcall stack, and a forked child's.
//! 4. Nothing here unwinds; a broken invariant ends the upcall, or the process if there is none.
#![no_std]
#![expect(unsafe_code, reason = "this crate is the mechanism below every safe interface")]

mod arch;
mod asked;
mod boot;
mod calls;
mod clamps;
mod context;
mod copies;
mod events;
mod exports;
mod fault;
mod files;
mod heap;
mod hooks;
mod left;
mod log;
mod memory;
mod patch;
mod runtime;
mod scratch;
mod signals;
mod sockets;
mod stacks;
mod start;
mod stubs;
mod sys;
mod text;
mod threads;
mod time;
mod timers;
mod tls;
mod unwind;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    fault::abort(ext_api::abi::Status::Aborted, b"libos reached a state that it must not reach")
}
