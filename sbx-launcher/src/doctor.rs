//! What this kernel can do for a sandbox.

mod calls;

pub use calls::has_mseal;
