//! What extension authors and client programs of an sbx sandbox link.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod abi;
pub mod limits;
