//! The network path of a sandbox.
//!
//! What is here: the question which io_uring this kernel grants. The engine, devices and endpoints
//! are not built yet.
//!
//! 1. All io_uring of the project is in this crate.
//! 2. Nothing here decides policy: a capability is reported, what to make of it is the caller's.

pub mod probe;
