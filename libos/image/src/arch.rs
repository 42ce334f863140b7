//! Everything that is written in assembly: the gate, its recovery path, and the two stubs where
//! the launcher lets a process start. Each architecture defines the same names.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{
    cache_index, copy_backwards, copy_forwards, early_call, fill, leave_upcall, stack_pointer,
    syscall6,
};
