//! The network path of a sandbox.
//!
//! What is here: the question which io_uring this kernel grants; devices that take and give raw frames;
//! TCP, UDP and IP over these, in the program itself.
//!
//! 1. All io_uring of the project is in this crate.
//! 2. Nothing here decides policy: a capability is reported, what to make of it is the caller's.

pub mod device;
mod engine_frames;
pub mod pcap;
pub mod probe;
pub mod stack;
