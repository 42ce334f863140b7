//! `sigaction` and `sigaltstack` of participants, for the signals and stacks that libos uses
//! itself: the kernel keeps libos's, and the program finds what it has set.
//!
//! A program's actions lie in its own private memory (`libos::signals`), where libos looks them
//! up when a signal is the program's. A child of vfork has the memory but not the signal handlers
//! of its parent: its calls go to the kernel.

use std::io;

use libos::data::{Common, Context};
use libos::layout::{KEPT_OFFSET, PROCESS_OFFSET, Place};
use libos::signals::{Action, OURS, SignalTable};

use crate::memory;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel carries it out.
    Continue,
    /// It returns 0.
    Done,
    /// It fails with this error.
    Failed(i32),
}

const ACTION_WORDS: usize = size_of::<Action>() / 8;
const UNBLOCKABLE: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);
const MASK_LEN: u64 = 8;

/// Answer `rt_sigaction(signal, new, old, len)` of thread `tid` in process `pid`.
#[must_use]
pub fn sigaction(place: Place, [tid, pid]: [i32; 2], args: [u64; 4]) -> Answer {
    if !owns_its_memory(place, tid, pid) {
        return Answer::Continue;
    }
    let [signal, new, old, len] = args;
    if len != MASK_LEN {
        return Answer::Failed(libc::EINVAL);
    }
    let table = (place.cache() + KEPT_OFFSET) as u64;
    if !OURS.iter().any(|&ours| ours as u64 == signal) {
        match is_the_kernels(tid, table, signal, new) {
            Ok(false) => {}
            Ok(true) | Err(_) => return Answer::Continue,
        }
    }
    let entry = table + signal * size_of::<Action>() as u64;
    match exchange(tid, entry, new, old) {
        Ok(()) => Answer::Done,
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Answer::Failed(libc::EFAULT),
        // We may not reach into it (another user, not dumpable): faults there are its own.
        Err(_) => Answer::Continue,
    }
}

/// A signal that is hooked: is the call one that the kernel has to carry out?
///
/// What a program ignores, the kernel ignores in ways that libos cannot: over exec, and children
/// that need no waiting for. From then on the signal is the kernel's, until the program puts back
/// what it had found: libos's handler.
fn is_the_kernels(tid: i32, table: u64, signal: u64, new: u64) -> io::Result<bool> {
    const NO_WAIT: u64 = libc::SA_NOCLDWAIT as u64;
    let at = |offset: usize| table + offset as u64;
    let released_at = at(std::mem::offset_of!(SignalTable, released));
    let [released] = memory::read_words::<1>(tid, released_at)?;
    let bit = 1 << signal;
    if new == 0 {
        return Ok(released & bit != 0);
    }
    let [ours] = memory::read_words::<1>(tid, at(std::mem::offset_of!(SignalTable, handler)))?;
    let [handler, flags, ..] = memory::read_words::<ACTION_WORDS>(tid, new)?;
    let is_ignored =
        handler == libc::SIG_IGN as u64 || signal == libc::SIGCHLD as u64 && flags & NO_WAIT != 0;
    if handler == ours {
        memory::write_words(tid, released_at, &[released & !bit])?;
    } else if is_ignored {
        memory::write_words(tid, released_at, &[released | bit])?;
    }
    Ok(handler == ours || is_ignored || released & bit != 0)
}

fn exchange(tid: i32, entry: u64, new: u64, old: u64) -> io::Result<()> {
    let former = memory::read_words::<ACTION_WORDS>(tid, entry)?;
    if new != 0 {
        let mut action = memory::read_words::<ACTION_WORDS>(tid, new)?;
        action[ACTION_WORDS - 1] &= !UNBLOCKABLE;
        memory::write_words(tid, entry, &action)?;
    }
    if old != 0 {
        memory::write_words(tid, old, &former)?;
    }
    Ok(())
}

/// False for a child of vfork, which runs in its parent's memory.
fn owns_its_memory(place: Place, tid: i32, pid: i32) -> bool {
    let mut block = [0; 4];
    let at = (place.cache() + PROCESS_OFFSET) as u64;
    memory::read(tid, at, &mut block).is_ok() && i32::from_le_bytes(block) == pid
}

/// Answer `sigaltstack(new, old)` of thread `tid` in process `pid`: while the kernel has a stack
/// of libos for the thread, the thread is told that it has none.
#[must_use]
pub fn sigaltstack(common: Common, [tid, pid]: [i32; 2], [new, old]: [u64; 2]) -> Answer {
    const DISABLED: [u64; 3] = [0, libc::SS_DISABLE as u64, 0];
    let Some(context) = with_our_stack(common, tid, pid) else { return Answer::Continue };
    if new != 0 {
        let Ok([_, flags, _]) = memory::read_words::<3>(tid, new) else {
            return Answer::Failed(libc::EFAULT);
        };
        if flags as i32 & libc::SS_DISABLE == 0 {
            // A stack of its own serves libos as well.
            context.alt_stack.store(0, std::sync::atomic::Ordering::Relaxed);
            return Answer::Continue;
        }
    }
    if old != 0 && memory::write_words(tid, old, &DISABLED).is_err() {
        return Answer::Failed(libc::EFAULT);
    }
    Answer::Done
}

/// The context of this thread, if the kernel has the context's alternate stack for it.
fn with_our_stack(common: Common, tid: i32, pid: i32) -> Option<&'static Context> {
    use std::sync::atomic::Ordering::Relaxed;
    common
        .contexts()
        .filter(|&index| common.claim(index).load().pid == pid as u32)
        .map(|index| common.context(index))
        .find(|context| {
            context.tid.load(Relaxed) == tid as u32 && context.alt_stack.load(Relaxed) == 1
        })
}
