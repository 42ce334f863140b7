//! Who is asked about a system call, and what becomes of the answer.
//!
//! Tees are asked first, so that they see a call as the program has made it: what one changes is put back, its
//! verdict is dropped. The others come one after the other, each with what those before it have left, until one
//! has dealt with the call. In a row handlers of policies, which are never unloaded, stand before all others: so
//! none is missed by who is in the row while others go. A clamped one is asked if its clamp holds for the call as it
//! would see it.
//!
//! Who is asked once a call is over is decided before it is made: by then its paths may be gone, and the
//! folder that they begin in may be another.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use ext_api::abi::{CALL_TAKEN, CallBlock, Reply, Status};
use libos::clamps::{CLAMPED, NARROWED, TEE, handle_of};
use libos::data::Context;
use libos::signals::{HOOKS_MAX, MUST_DECIDE};

use crate::arch::sbx_call_in;
use crate::clamps;
use crate::sys::EPERM;

/// Who is hooked to one call.
pub(crate) type Row = [AtomicU64; HOOKS_MAX];

/// Is one of them a tee, or clamped?
pub(crate) fn is_narrowed(row: &Row) -> bool {
    row[0].load(Relaxed) & NARROWED != 0
}

/// Is one of them a policy's? A call that it cannot be asked about is not made.
pub(crate) fn must_decide(row: Option<&Row>) -> bool {
    row.is_some_and(|row| words(row).any(|word| word & MUST_DECIDE != 0))
}

/// Ask before a call; `later` is who is to be asked afterwards, if that is to be decided now. True if a hook
/// has dealt with the call.
pub(crate) fn before(
    context: &Context,
    [before, after]: [Option<&Row>; 2],
    block: &mut CallBlock,
    later: &mut Option<Later>,
) -> bool {
    let narrowed = after.filter(|row| is_narrowed(row));
    *later = narrowed.map(|row| Later::begin(row, block));
    if before.is_some_and(|row| ask(context, row, block)) {
        return true;
    }
    if let (Some(row), Some(later)) = (narrowed, later) {
        later.add(row, block, 0);
    }
    false
}

/// Ask once a call is over: of `row` those that `later` names, if it was decided before.
pub(crate) fn after(context: &Context, row: &Row, later: Option<&Later>, block: &mut CallBlock) {
    match later {
        None => drop(ask(context, row, block)),
        Some(later) => later.ask(context, block),
    }
}

/// True if a hook has dealt with the call.
fn ask(context: &Context, row: &Row, block: &mut CallBlock) -> bool {
    if is_narrowed(row) {
        words(row).filter(|word| word & TEE != 0).for_each(|word| ask_tee(context, word, block));
    }
    words(row).any(|word| match word & (TEE | CLAMPED) {
        0 => ask_one(context, word, block),
        CLAMPED => clamps::holds(word, block) && ask_one(context, word, block),
        _ => false,
    })
}

fn words(row: &Row) -> impl Iterator<Item = u64> {
    row.iter().map(|hook| hook.load(Acquire)).take_while(|&word| word != 0)
}

/// As [`ask`], of one hook.
fn ask_one(context: &Context, word: u64, block: &mut CallBlock) -> bool {
    let (words, mut reply) = ([core::ptr::from_mut(block) as u64], Reply::empty());
    // What a handler that fails has changed is nobody's wish.
    let before = (block.args, block.value);
    // SAFETY: hooks on calls take a block and return a word; the reply is ours, and the context is
    // this thread's.
    let status = unsafe { sbx_call_in(handle_of(word), words.as_ptr(), &raw mut reply, context) };
    if status != Status::Ok as u32 {
        (block.args, block.value) = before;
        if word & MUST_DECIDE == 0 {
            return false;
        }
        block.value = -i64::from(EPERM) as u64;
        return true;
    }
    reply.word == CALL_TAKEN
}

#[cold]
#[inline(never)]
fn ask_tee(context: &Context, word: u64, block: &mut CallBlock) {
    // What it looks at is what the kernel gets.
    clamps::copy_paths(block);
    if clamps::holds(word, block) {
        show(context, word, block);
    }
}

/// Ask a hook that may change nothing.
fn show(context: &Context, word: u64, block: &mut CallBlock) {
    let before = (block.args, block.value, block.scratch_used);
    ask_one(context, word, block);
    (block.args, block.value, block.scratch_used) = before;
}

/// Who is to be asked once a call is over, of a row in which somebody is narrowed.
#[derive(Debug)]
pub(crate) struct Later {
    /// The arguments as the program made them.
    made: [u64; 6],
    /// Tees, then the others; 0 ends them.
    words: [u64; HOOKS_MAX],
    count: usize,
}

impl Later {
    /// Of a call that nobody has been asked about yet: the tees.
    #[cold]
    #[inline(never)]
    fn begin(row: &Row, block: &mut CallBlock) -> Self {
        if words(row).any(|word| word & TEE != 0) {
            clamps::copy_paths(block);
        }
        let mut later = Self { made: block.args, words: [0; HOOKS_MAX], count: 0 };
        later.add(row, block, TEE);
        later
    }

    /// Is anybody?
    pub(crate) fn has_any(&self) -> bool {
        self.count != 0
    }

    /// Add the tees of `row`, or the others, for which their clamps hold.
    fn add(&mut self, row: &Row, block: &mut CallBlock, tee: u64) {
        for word in words(row).filter(|word| word & TEE == tee) {
            if clamps::holds(word, block)
                && let Some(place) = self.words.get_mut(self.count)
            {
                *place = word;
                self.count += 1;
            }
        }
    }

    /// Ask them, with the result in the block.
    fn ask(&self, context: &Context, block: &mut CallBlock) {
        for &word in self.words.iter().take(self.count) {
            if word & TEE != 0 {
                let args = core::mem::replace(&mut block.args, self.made);
                show(context, word, block);
                block.args = args;
            } else if ask_one(context, word, block) {
                return;
            }
        }
    }
}
