//! The network path of a sandbox.
//!
//! The worker that serves the network receives into buffers of the region, asks the handlers that are
//! hooked to a port, and sends what they say, or has another process answer ([`engine`]). Linked programs can
//! serve ports of their own from the same buffers ([`endpoint`]). Beside that: devices that take and give raw
//! frames ([`device`]), and TCP, UDP and IP over these, in the program itself ([`stack`]).
//!
//! 1. All io_uring of the project is in `engine/uring.rs`, `device/frame_reader.rs` and `probe.rs`.
//! 2. Nothing here decides policy: what becomes of a packet is its handler's to say.
//! 3. The engine knows neither the region nor the clock but by what it is given, so that it runs in a test.

pub mod address;
pub mod buffers;
pub mod device;
pub mod endpoint;
pub mod engine;
pub mod listen;
pub mod pcap;
pub mod probe;
pub mod stack;
