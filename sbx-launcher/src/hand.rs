//! What the supervisor has in hand: a page that it shares with its keeper, so that no task waits
//! for an answer that nobody gives any more.
//!
//! There is one notification at a time, which the kernel writes here itself: between the moment in
//! which it is ours and the one in which it is noted, there is none (what an ear takes lies in the ear's
//! own ring). And there are the tasks that
//! are on their way through an exec, with what is needed to let them in.
#![expect(unsafe_code, reason = "shares a page with the keeper")]

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};

/// Execs that can be under way at one time and be finished by the keeper. One more than these goes
/// on, but outside of the sandbox's extensions, if the supervisor dies in the middle of it.
const EXECS_MAX: usize = 64;

/// A task on its way through an exec.
#[derive(Debug, Default)]
pub struct Exec {
    /// The task; 0 for none.
    tid: AtomicI32,
    fds: [AtomicI32; 3],
    /// Signals that are hooked in it.
    armed: AtomicU64,
    /// Where its first instructions are others' for the moment, or 0; and what belongs there.
    entry: AtomicU64,
    saved: AtomicU64,
}

/// The page.
#[derive(Debug)]
#[repr(C)]
struct Page {
    request: std::cell::UnsafeCell<libc::seccomp_notif>,
    /// Number of the request that an ear has taken and that is being answered.
    answering: AtomicU64,
    /// Descriptors that the task of the request has been given, or -1.
    given: [AtomicI32; 3],
    /// Number of the keeper that is to take over.
    keeper: AtomicU32,
    execs: [Exec; EXECS_MAX],
}

/// A task that was found in the page: its number, its descriptors, its first instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The task.
    pub tid: i32,
    /// Descriptors of the zones in its table.
    pub fds: [i32; 3],
    /// Signals that are hooked in it.
    pub armed: u64,
    /// Address and bytes to be put back, if any.
    pub patched: Option<(u64, u64)>,
}

/// What the supervisor has in hand.
#[derive(Debug)]
pub struct Hand {
    page: &'static Page,
}

// SAFETY: the request is touched by the one supervisor, and by its keeper once that is dead; the
// rest are atomics.
unsafe impl Sync for Page {}

impl Hand {
    /// An empty page.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        const _: () = assert!(size_of::<Page>() <= 8192);
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping wherever the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 8192, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: mapped for good, zero, and every field may be zero.
        let page = unsafe { &*at.cast::<Page>() };
        Ok(Self { page })
    }

    /// Where the kernel is to write the next notification.
    #[expect(
        clippy::mut_from_ref,
        reason = "the page is shared memory; the supervisor alone writes it"
    )]
    pub fn empty(&self) -> &mut libc::seccomp_notif {
        self.answer(0);
        // SAFETY: nobody else touches it (see `Sync`), and it is plain numbers.
        unsafe { &mut *self.page.request.get() }
    }

    /// The request `id` is about to be answered, by this supervisor or another that it had before.
    pub fn answer(&self, id: u64) {
        if id == 0 || self.page.answering.load(SeqCst) != id {
            self.page.given.iter().for_each(|fd| fd.store(-1, SeqCst));
            self.page.answering.store(id, SeqCst);
        }
    }

    /// The notification that has no answer yet, if there is one.
    #[must_use]
    pub fn request(&self) -> Option<libc::seccomp_notif> {
        // SAFETY: as above; plain numbers.
        let request = unsafe { self.page.request.get().read() };
        (request.id != 0).then_some(request)
    }

    /// A descriptor that the request's task has been given already.
    #[must_use]
    pub fn given(&self, which: usize) -> Option<i32> {
        Some(self.page.given[which].load(SeqCst)).filter(|&fd| fd >= 0)
    }

    /// Note what its task has been given.
    pub fn give(&self, which: usize, fd: i32) {
        self.page.given[which].store(fd, SeqCst);
    }

    /// A task begins its exec.
    pub fn begin(&self, tid: i32, fds: [i32; 3], armed: u64) {
        let Some(free) = self.page.execs.iter().find(|exec| exec.tid.load(SeqCst) == 0) else {
            return;
        };
        for (to, fd) in free.fds.iter().zip(fds) {
            to.store(fd, SeqCst);
        }
        free.armed.store(armed, SeqCst);
        free.entry.store(0, SeqCst);
        free.tid.store(tid, SeqCst);
    }

    /// Its first instructions are about to be others'.
    pub fn patch(&self, tid: i32, entry: u64, saved: u64) {
        if let Some(exec) = self.page.execs.iter().find(|exec| exec.tid.load(SeqCst) == tid) {
            exec.saved.store(saved, SeqCst);
            exec.entry.store(entry, SeqCst);
        }
    }

    /// Its exec is over.
    pub fn end(&self, tid: i32) {
        if let Some(exec) = self.page.execs.iter().find(|exec| exec.tid.load(SeqCst) == tid) {
            exec.tid.store(0, SeqCst);
        }
    }

    /// The tasks that are on their way; the page forgets them.
    #[must_use]
    pub fn take(&self) -> Vec<Found> {
        let found = |exec: &Exec| {
            let tid = exec.tid.swap(0, SeqCst);
            let fds = exec.fds.each_ref().map(|fd| fd.load(SeqCst));
            let entry = exec.entry.load(SeqCst);
            let patched = (entry != 0).then(|| (entry, exec.saved.load(SeqCst)));
            let armed = exec.armed.load(SeqCst);
            (tid != 0).then_some(Found { tid, fds, armed, patched })
        };
        self.page.execs.iter().filter_map(found).collect()
    }

    /// Which keeper is to take over.
    #[must_use]
    pub fn keeper(&self) -> u32 {
        self.page.keeper.load(SeqCst)
    }

    /// Name the keeper that is to take over.
    pub fn set_keeper(&self, number: u32) {
        self.page.keeper.store(number, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::{EXECS_MAX, Found, Hand};

    #[test]
    fn what_is_in_hand_is_found_once() {
        let hand = Hand::new().expect("a page");
        hand.begin(7, [3, 4, 5], 0);
        hand.begin(8, [6, 7, 8], 2);
        hand.patch(8, 0x1000, 0x90);
        hand.end(7);
        let expected = Found { tid: 8, fds: [6, 7, 8], armed: 2, patched: Some((0x1000, 0x90)) };
        assert_eq!(hand.take(), [expected]);
        assert_eq!(hand.take(), []);
    }

    #[test]
    fn a_full_page_forgets_none_of_those_that_it_has() {
        let hand = Hand::new().expect("a page");
        (1..=EXECS_MAX as i32 + 1).for_each(|tid| hand.begin(tid, [0; 3], 0));
        assert_eq!(hand.take().len(), EXECS_MAX);
    }
}
