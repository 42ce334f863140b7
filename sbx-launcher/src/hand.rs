//! What the supervisor has in hand: a page that it shares with its keeper, so that no task waits
//! for an answer that nobody gives any more.
//!
//! There is one notification at a time, which the kernel writes here itself: between the moment in
//! which it is ours and the one in which it is noted, there is none (what an ear takes lies in the ear's
//! own ring). And there are the tasks that are on their way through an exec, with what is needed to let
//! them in. A task stays here until its exec is over, whoever of several supervisors dies meanwhile.
#![expect(unsafe_code, reason = "shares pages with the keeper")]

use std::cell::UnsafeCell;
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};

/// Execs that can be under way at one time and be finished by the keeper. One more than these goes
/// on, but outside of the sandbox's extensions, if the supervisor dies in the middle of it.
const EXECS_MAX: usize = 64;

/// Threads that can wait for another's exec at one time.
const DEFERRED_MAX: usize = 64;

/// A task on its way through an exec.
#[derive(Debug)]
struct Exec {
    /// The task; 0 for none.
    tid: AtomicI32,
    fds: [AtomicI32; 3],
    /// Signals that are hooked in it.
    armed: AtomicU64,
    /// For what some of its instructions are others' for the moment, or were; 0 if they never were.
    purpose: AtomicU32,
    patch: UnsafeCell<Patch>,
}

/// Instructions of a task that are others' for the moment, and what belongs there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch {
    /// Their address.
    pub at: u64,
    /// The program's own bytes.
    pub saved: u64,
    /// The registers that the program goes on with.
    pub regs: libc::user_regs_struct,
    /// The signals that it blocks then, if others are blocked meanwhile.
    pub mask: u64,
}

/// What instructions of ours are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// To let a program in, which has not begun.
    Join = 1,
    /// To close descriptors in a program that runs.
    Close = 2,
}

/// What is shared.
#[derive(Debug)]
#[repr(C)]
struct Page {
    request: UnsafeCell<libc::seccomp_notif>,
    /// Number of the request that an ear has taken and that is being answered.
    answering: AtomicU64,
    /// Descriptors that the task of the request has been given, or -1.
    given: [AtomicI32; 3],
    /// Number of the keeper that is to take over, and the last that any has.
    keeper: AtomicU32,
    keepers: AtomicU32,
    execs: [Exec; EXECS_MAX],
    deferred: [Deferred; DEFERRED_MAX],
}

/// A notification whose answer waits for another thread's exec.
#[derive(Debug)]
struct Deferred {
    /// Its number; 0 for none.
    id: AtomicU64,
    request: UnsafeCell<libc::seccomp_notif>,
}

/// A task that was found in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The task.
    pub tid: i32,
    /// Descriptors of the zones in its table.
    pub fds: [i32; 3],
    /// Signals that are hooked in it.
    pub armed: u64,
    /// The last instructions of ours that were put into it, if any ever were. They may be gone again.
    pub patched: Option<(Purpose, Patch)>,
}

/// What the supervisor has in hand.
#[derive(Debug)]
pub struct Hand {
    page: &'static Page,
}

// SAFETY: the requests and the patches are touched by the one supervisor, and by its keeper once that is
// dead; the rest are atomics.
unsafe impl Sync for Page {}

const LEN: usize = size_of::<Page>().next_multiple_of(4096);

impl Hand {
    /// An empty page.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping wherever the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), LEN, prot, flags, -1, 0) };
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

    /// The answer to this one has to wait. False: there are too many.
    pub fn defer(&self, request: libc::seccomp_notif) -> bool {
        let Some(free) = self.page.deferred.iter().find(|one| one.id.load(SeqCst) == 0) else {
            return false;
        };
        // SAFETY: the supervisor alone writes it (see `Sync`).
        unsafe { free.request.get().write(request) };
        free.id.store(request.id, SeqCst);
        true
    }

    /// Those that wait.
    #[must_use]
    pub fn deferred(&self) -> Vec<libc::seccomp_notif> {
        let waits = self.page.deferred.iter().filter(|one| one.id.load(SeqCst) != 0);
        // SAFETY: written before its number was, by nobody else (see `Sync`).
        waits.map(|one| unsafe { one.request.get().read() }).collect()
    }

    /// This one waits no longer.
    pub fn end_deferred(&self, id: u64) {
        let of = self.page.deferred.iter().filter(|one| one.id.load(SeqCst) == id);
        of.for_each(|one| one.id.store(0, SeqCst));
    }

    /// A task begins its exec.
    pub fn begin(&self, tid: i32, fds: [i32; 3], armed: u64) {
        self.end(tid);
        let Some(free) = self.page.execs.iter().find(|exec| exec.tid.load(SeqCst) == 0) else {
            return;
        };
        for (to, fd) in free.fds.iter().zip(fds) {
            to.store(fd, SeqCst);
        }
        free.armed.store(armed, SeqCst);
        free.purpose.store(0, SeqCst);
        free.tid.store(tid, SeqCst);
    }

    /// Some of its instructions are about to be others'.
    pub fn patch(&self, tid: i32, purpose: Purpose, patch: Patch) {
        if let Some(exec) = self.page.execs.iter().find(|exec| exec.tid.load(SeqCst) == tid) {
            exec.purpose.store(0, SeqCst);
            // SAFETY: the supervisor alone writes it (see `Sync`).
            unsafe { exec.patch.get().write(patch) };
            exec.purpose.store(purpose as u32, SeqCst);
        }
    }

    /// It has another number: a thread that calls exec gets its process's.
    pub fn rename(&self, tid: i32, now: i32) {
        if let Some(exec) = self.page.execs.iter().find(|exec| exec.tid.load(SeqCst) == tid) {
            exec.tid.store(now, SeqCst);
        }
    }

    /// Its exec is over.
    pub fn end(&self, tid: i32) {
        if let Some(exec) = self.page.execs.iter().find(|exec| exec.tid.load(SeqCst) == tid) {
            exec.tid.store(0, SeqCst);
        }
    }

    /// The tasks that are on their way, which they stay.
    #[must_use]
    pub fn found(&self) -> Vec<Found> {
        let found = |exec: &Exec| {
            let tid = exec.tid.load(SeqCst);
            let fds = exec.fds.each_ref().map(|fd| fd.load(SeqCst));
            let purpose = match exec.purpose.load(SeqCst) {
                0 => None,
                which if which == Purpose::Join as u32 => Some(Purpose::Join),
                _ => Some(Purpose::Close),
            };
            // SAFETY: written before the purpose was, by nobody else (see `Sync`).
            let patched = purpose.map(|purpose| (purpose, unsafe { exec.patch.get().read() }));
            let armed = exec.armed.load(SeqCst);
            (tid != 0).then_some(Found { tid, fds, armed, patched })
        };
        self.page.execs.iter().filter_map(found).collect()
    }

    /// A number for a keeper, which no other has or had.
    #[must_use]
    pub fn number_keeper(&self) -> u32 {
        self.page.keepers.fetch_add(1, SeqCst).wrapping_add(1)
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
    use super::{DEFERRED_MAX, EXECS_MAX, Found, Hand, Patch, Purpose};

    #[test]
    fn what_is_in_hand_is_found_until_it_is_over() {
        let hand = Hand::new().expect("a page");
        hand.begin(7, [3, 4, 5], 0);
        hand.begin(8, [6, 7, 8], 2);
        // SAFETY: registers are plain numbers.
        let regs = libc::user_regs_struct { rip: 0x1000, ..unsafe { std::mem::zeroed() } };
        let patch = Patch { at: 0x1000, saved: 0x90, regs, mask: 0 };
        hand.patch(8, Purpose::Join, patch);
        hand.end(7);
        let patched = Some((Purpose::Join, patch));
        let expected = Found { tid: 8, fds: [6, 7, 8], armed: 2, patched };
        // Whoever finds it may die as well.
        assert_eq!(hand.found(), [expected]);
        assert_eq!(hand.found(), [expected]);
        hand.end(8);
        assert_eq!(hand.found(), []);
        hand.begin(9, [3, 4, 5], 0);
        assert_eq!(hand.found()[0].patched, None);
    }

    #[test]
    fn whoever_waits_is_found_until_it_has_its_answer() {
        let hand = Hand::new().expect("a page");
        // SAFETY: plain numbers.
        let request = |id| libc::seccomp_notif { id, ..unsafe { std::mem::zeroed() } };
        let ids = || hand.deferred().iter().map(|one| one.id).collect::<Vec<_>>();
        assert!(hand.defer(request(5)) && hand.defer(request(6)));
        assert_eq!(ids(), [5, 6]);
        hand.end_deferred(5);
        assert_eq!(ids(), [6]);
        assert!(!(0..DEFERRED_MAX as u64).all(|id| hand.defer(request(10 + id))));
    }

    #[test]
    fn a_full_page_forgets_none_of_those_that_it_has() {
        let hand = Hand::new().expect("a page");
        (1..=EXECS_MAX as i32 + 1).for_each(|tid| hand.begin(tid, [0; 3], 0));
        assert_eq!(hand.found().len(), EXECS_MAX);
    }
}
