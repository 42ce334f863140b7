//! The region of an sbx sandbox: where everything lies, and the mechanism that the launcher and
//! the image in slot 0 share.
//!
//! 1. The layout is a function of the base alone; nothing in the region says where it lies
//!    except the superblock, and that is checked on every attach.
//! 2. What a participant may write is never a Rust value here: areas of the data zone are
//!    reached through atomics at computed addresses.
//! 3. No module of this crate executes extension code.
#![cfg_attr(not(feature = "loader"), no_std)]

pub mod arena;
#[cfg(feature = "loader")]
pub mod bare;
pub mod bell;
pub mod claim;
pub mod clamps;
pub mod data;
#[cfg(feature = "loader")]
pub mod image;
pub mod image_abi;
pub mod layout;
pub mod mailbox;
#[cfg(feature = "loader")]
pub mod manifest;
pub mod signals;
pub mod sockets;
mod sync;
pub mod timers;
pub mod wheel;
