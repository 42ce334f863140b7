//! The launcher's parts: zones, loading, following execs and forks, the supervisor, the CLI.
//!
//! 1. The supervisor runs no extension code and follows no pointer out of the data zone.
//! 2. A program is injected before any of its own instructions have run, or not at all.
//! 3. Filters are installed once per launched command, before its first exec.

#[macro_use]
pub mod say;

pub mod about;
pub mod bench;
pub mod bpf;
pub mod cli;
pub mod clock;
pub mod control;
pub mod demo;
pub mod doctor;
pub mod ear;
pub mod failpoint;
pub mod filter;
pub mod follow;
pub mod hand;
pub mod hooks;
pub mod keeper;
pub mod memory;
pub mod net;
pub mod one_cpu;
pub mod perf;
pub mod policy;
pub mod preload;
pub mod run;
pub mod sandbox;
pub mod serve;
pub mod signals;
pub mod slot_zero;
pub mod sockets;
pub mod spaces;
pub mod start;
pub mod supervisor;
pub mod trace;
pub mod tracee;
pub mod watchdog;
pub mod worker;
pub mod zones;
