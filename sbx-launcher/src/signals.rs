//! `sigaction` and `sigaltstack` of participants, for the signals and stacks that libos uses
//! itself: the kernel keeps libos's, and the program finds what it has set.
//!
//! A program's actions lie in its own private memory (`libos::signals`), where libos looks them
//! up when a signal is the program's. A child of vfork has the memory but not the signal handlers
//! of its parent: its calls go to the kernel.

use std::io;
use std::sync::atomic::Ordering::Relaxed;

use libos::data::{Common, Context, NOWHERE};
use libos::layout::{KEPT_OFFSET, OWN_STACK_MIN, PROCESS_OFFSET, Place};
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
        let put_back_at = at(std::mem::offset_of!(SignalTable, put_back));
        let [put_back] = memory::read_words::<1>(tid, put_back_at)?;
        memory::write_words(tid, put_back_at, &[put_back | bit])?;
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

/// Answer `sigaltstack(new, old)` of thread `tid` in process `pid`: while the kernel has a stack of libos for the
/// thread, the thread is told of its own, if it has one. What libos has to see to then, it does at the next upcall.
#[must_use]
pub fn sigaltstack(common: Common, ids: [i32; 2], [new, old]: [u64; 2]) -> Answer {
    let Some(context) = context_of(common, ids) else { return Answer::Continue };
    let is_ours = context.alt_stack.load(Relaxed) == 1;
    let [.., former_len] = own_stack(context);
    if new != 0 {
        let Ok(given) = memory::read_words::<3>(ids[0], new) else {
            return Answer::Failed(libc::EFAULT);
        };
        let [_, flags, len] = given;
        if is_refused(given) {
            return Answer::Continue;
        }
        let is_none = flags as i32 & SS_DISABLE != 0;
        // It serves libos as well; or the kernel may have it again, after the return of a signal handler.
        if !is_ours
            || !is_none && len as usize >= OWN_STACK_MIN
            || is_none && former_len != 0 && old == 0
        {
            note_own(context, given);
            if is_ours {
                context.alt_stack.store(0, Relaxed);
            }
            context.window.store(NOWHERE, Relaxed);
            return Answer::Continue;
        }
        return tell(ids[0], old, context, Some(given));
    }
    if is_ours { tell(ids[0], old, context, None) } else { Answer::Continue }
}

/// Say which stack the thread has itself, and note what it has from now on. The kernel is not asked.
fn tell(tid: i32, old: u64, context: &Context, given: Option<Stack>) -> Answer {
    if old != 0 && memory::write_words(tid, old, &own_stack(context)).is_err() {
        return Answer::Failed(libc::EFAULT);
    }
    if let Some(given) = given {
        note_own(context, given);
    }
    Answer::Done
}

/// `stack_t`.
type Stack = [u64; 3];

const SS_DISABLE: i32 = libc::SS_DISABLE;
const SS_AUTODISARM: i32 = 1 << 31;

/// Does the kernel refuse it, whatever it has?
const fn is_refused([_, flags, len]: Stack) -> bool {
    match flags as i32 & !SS_AUTODISARM {
        SS_DISABLE => false,
        0 | libc::SS_ONSTACK => len < libc::MINSIGSTKSZ as u64,
        _ => true,
    }
}

/// The stack that the thread thinks it has.
fn own_stack(context: &Context) -> Stack {
    match context.own_stack.each_ref().map(|word| word.load(Relaxed)) {
        [.., 0] => [0, SS_DISABLE as u64, 0],
        [address, flags, len] => [address, flags & u64::from(SS_AUTODISARM.cast_unsigned()), len],
    }
}

fn note_own(context: &Context, given: Stack) {
    let is_none = given[1] as i32 & SS_DISABLE != 0;
    let own = if is_none { [0; 3] } else { given };
    context.own_stack.iter().zip(own).for_each(|(to, word)| to.store(word, Relaxed));
}

/// The context of this thread.
fn context_of(common: Common, [tid, pid]: [i32; 2]) -> Option<&'static Context> {
    common
        .contexts()
        .filter(|&index| common.claim(index).load().pid == pid as u32)
        .map(|index| common.context(index))
        .find(|context| context.tid.load(Relaxed) == tid as u32)
}
