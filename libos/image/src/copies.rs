//! Calls that libos was making for a thread when a signal handler of the program's forked on top of them.
//!
//! The child has a copy of the stack, and its handler would return into the copy of such a call: with a turn that is
//! the parent's, and positions of rings that the parent changes meanwhile. Natively the call is the parent's alone,
//! and the child's is interrupted. So the kernel's frame, by which the handler will return, is made to return to the
//! call's end instead, with EINTR.

use core::mem::offset_of;
use core::ops::Range;

use ext_api::limits::PAGE_LEN;

use crate::arch::{self, Registers};
use crate::signals::UserContext;
use crate::{boot, calls, left, sys};

/// As much of a stack as signal handlers, and calls below them, take up.
const REACH: usize = 64 << 10;

/// In a forked child, on the stack that it was forked on.
pub(crate) fn end() {
    for at in words(arch::stack_pointer()).filter(|&at| may_be_rip(at) && left::is_rip_of_frame(at))
    {
        let user = at - offset_of!(UserContext, regs) - offset_of!(Registers, rip);
        // SAFETY: the kernel's frame, whole, on this thread's own stack.
        let user = unsafe { &mut *(user as *mut UserContext) };
        if is_by_region(&user.regs) {
            end_below(user);
        }
    }
}

/// Does the word at `at` have above it what it would have if it were a program's position in a kernel's frame? One that
/// has not need not be looked at more closely, by a system call.
fn may_be_rip(at: usize) -> bool {
    let segment = at + arch::SEGMENT_ABOVE_RIP;
    let value = if segment % PAGE_LEN > at % PAGE_LEN {
        word(segment)
    } else {
        calls::copy_in::<u64>(segment).unwrap_or(0)
    };
    arch::is_user_segment(value)
}

/// Was it code of the region that a signal has interrupted, or the vDSO's clock that this had asked?
pub(crate) fn is_by_region(regs: &Registers) -> bool {
    /// Words of the stack that the vDSO's functions take up.
    const CLOCK_WORDS: usize = 64;
    let in_region = boot::place().shared().contains(&(regs.rip as usize));
    let mut marks = words(regs.rsp as usize).take(CLOCK_WORDS);
    in_region || marks.any(|at| arch::is_clock_asked(word(at)))
}

/// End the innermost call that `user` will return into. Where one has been, what it left may still say so.
fn end_below(user: &mut UserContext) {
    let mut found = words(user.regs.rsp as usize).filter(|&at| arch::is_under_way(word(at)));
    found.any(|at| {
        // SAFETY: its stack can be read for so long: it is less than a page.
        let mut leave = || unsafe { arch::leave_copy(at, &mut user.regs, -i64::from(sys::EINTR)) };
        is_readable(at + arch::COPY_LEN_MAX) && leave()
    });
}

/// Where the words of this thread's stack are, from `stack` up, for as long as it can be read.
fn words(stack: usize) -> impl Iterator<Item = usize> {
    let first = stack.next_multiple_of(8);
    let pages = (first & !(PAGE_LEN - 1)..first + REACH).step_by(PAGE_LEN);
    let words = move |page: usize| -> Range<usize> { page.max(first)..page + PAGE_LEN };
    pages.take_while(|&page| is_readable(page)).flat_map(move |page| words(page).step_by(8))
}

fn is_readable(at: usize) -> bool {
    calls::copy_in::<u8>(at).is_some()
}

fn word(at: usize) -> u64 {
    // SAFETY: on a page of this thread's stack that can be read.
    unsafe { (at as *const u64).read_volatile() }
}
