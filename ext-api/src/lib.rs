//! What extension authors and client programs of an sbx sandbox link.
//!
//! An extension is an ordinary library crate (`crate-type = ["cdylib", "rlib"]`) with one module:
//!
//! ```
//! use ext_api::prelude::*;
//!
//! #[extension(name = "count", heap = "16M")]
//! pub mod count {
//!     use ext_api::prelude::*;
//!     use std::sync::atomic::{AtomicU64, Ordering};
//!
//!     pub struct State { total: AtomicU64, step: u64 }
//!
//!     #[init]
//!     fn init(_cx: &Cx, config: Config) -> Result<State, ConfigError> {
//!         Ok(State { total: AtomicU64::new(0), step: config.get("step", 1)? })
//!     }
//!
//!     /// Called by any participant, in its own context.
//!     #[handler]
//!     fn add(state: &State, n: u64) -> u64 {
//!         state.total.fetch_add(n * state.step, Ordering::Relaxed) + n * state.step
//!     }
//!
//!     #[handler]
//!     fn greet(_state: &State, name: &str) -> String { format!("hello, {name}") }
//! }
//! ```
//!
//! A program in the sandbox calls it through the client that the same source makes:
//! `count::Client::attach()?.add(2)`.
//!
//! Extensions are trusted: see the README for what is and is not protected from what.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod abi;
#[cfg(all(feature = "std", not(loom)))]
#[path = "arch/x86_64.rs"]
mod arch;
#[cfg(all(feature = "std", not(loom)))]
mod attach;
pub mod calls;
#[cfg(all(feature = "std", not(loom)))]
pub mod client;
#[cfg(feature = "std")]
pub mod config;
pub mod errno;
#[cfg(feature = "std")]
pub mod error;
#[cfg(feature = "std")]
pub mod extension;
#[cfg(all(feature = "std", loom))]
#[path = "shared/fifo.rs"]
mod fifo;
pub mod limits;
#[cfg(all(feature = "std", loom))]
#[path = "shared/lock.rs"]
mod lock;
#[cfg(all(feature = "std", not(loom)))]
pub mod net;
pub mod pool;
#[cfg(feature = "std")]
pub mod post;
#[cfg(feature = "std")]
mod runtime;
#[cfg(all(feature = "std", not(loom)))]
pub mod shared;
mod sync;
#[cfg(feature = "std")]
pub mod timer;
#[doc(hidden)]
#[path = "arch/touch.rs"]
pub mod touch;
#[cfg(all(feature = "std", loom))]
#[path = "shared/turns.rs"]
mod turns;
#[cfg(feature = "std")]
pub mod wire;

#[cfg(feature = "std")]
pub use ext_api_macros::extension;

/// All that an extension's module needs.
#[cfg(feature = "std")]
pub mod prelude {
    pub use crate::calls::{Call, Verdict};
    pub use crate::config::{Config, ConfigError};
    pub use crate::error::CallError;
    pub use crate::extension;
    pub use crate::extension::{Cx, Out, Saved};
    pub use crate::post::{Peer, To};
}
