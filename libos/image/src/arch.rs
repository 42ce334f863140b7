//! Everything that is written in assembly: the gate, its recovery path, and the two stubs where
//! the launcher lets a process start. Each architecture defines the same names.

#[cfg(target_arch = "x86_64")]
mod clock;
#[cfg(target_arch = "x86_64")]
mod copy;
#[cfg(target_arch = "x86_64")]
mod lent;
#[cfg(target_arch = "x86_64")]
pub(crate) mod patched;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub(crate) use clock::{ask_clock, is_clock_asked};
#[cfg(target_arch = "x86_64")]
pub(crate) use copy::{
    copy_backwards, copy_forwards, copy_or_fail, copy_past_or_fail, core, fill, mend_copy,
    mend_touch,
};
#[cfg(target_arch = "x86_64")]
pub(crate) use patched::{COPY_LEN_MAX, is_under_way, leave_copy};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{
    Jump, Registers, SEGMENT_ABOVE_RIP, cache_index, early_call, fail_with_eintr, fs_base, in_gate,
    is_between_upcalls, is_user_segment, leave_upcall, mend_gate, redirect, redirect_to_caller,
    sbx_call, sbx_call_in, sbx_restorer, sbx_signal_entry, stack_pointer, syscall2_on, syscall6,
};
