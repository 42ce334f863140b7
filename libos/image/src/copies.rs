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
    let region = boot::place().shared();
    for at in words(arch::stack_pointer()) {
        if region.contains(&(word(at) as usize)) && left::is_rip_of_frame(at) {
            let user = at - offset_of!(UserContext, regs) - offset_of!(Registers, rip);
            // SAFETY: the kernel's frame, whole, on this thread's own stack.
            end_below(unsafe { &mut *(user as *mut UserContext) });
        }
    }
}

/// End the innermost call that `user` will return into.
fn end_below(user: &mut UserContext) {
    let found = words(user.regs.rsp as usize).find(|&at| arch::is_under_way(word(at)));
    if let Some(at) = found.filter(|at| is_readable(at + PAGE_LEN)) {
        // SAFETY: this page of the stack can be read, and the next.
        unsafe { arch::leave_copy(at, &mut user.regs, -i64::from(sys::EINTR)) };
    }
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
