//! The ear: a process that does nothing but take the notifications of one listener.
//!
//! Until a notification has been taken, any signal interrupts the call that waits behind it, and a
//! program whose handler does not restart calls sees a fork that failed with EINTR; afterwards only a
//! deadly signal does. The supervisor may be busy with another task, or have used up its share of the
//! CPU; the ear has slept all the time, so that it runs as soon as it is woken.
//!
//! ```text
//!  program      kernel                          ear                    supervisor
//!  clone ─────► notification ─────────────────► takes it
//!               writes it into the ring ──────► counts it, rings ────► answers it
//! ```
//!
//! The ring is shared with supervisor and keeper, and the kernel writes into it, so that what has been
//! taken is answered whoever dies.
#![expect(unsafe_code, reason = "shares a page with a child, which it forks and ends")]

use std::cell::UnsafeCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use crate::follow::receive;
use crate::run::detach;
use crate::watchdog::wake_promptly;
use crate::worker::end_with;

/// Notifications that can be taken and not answered; more of them wait in the kernel.
const TAKEN_MAX: u32 = 32;

/// What has been taken.
#[derive(Debug)]
#[repr(C)]
struct Ring {
    /// Counts what was taken, and what was answered.
    taken: AtomicU32,
    answered: AtomicU32,
    /// Pid of the ear, once it listens.
    ear: AtomicU32,
    /// Zero where nothing waits for an answer.
    requests: [UnsafeCell<libc::seccomp_notif>; TAKEN_MAX as usize],
}

// SAFETY: a request is the kernel's and the ear's until it is counted, then the one supervisor's.
unsafe impl Sync for Ring {}

const RING_LEN: usize = 4096;
/// Longer than anything takes that is waited for so.
const MOMENT: std::time::Duration = std::time::Duration::from_micros(100);
const _: () = assert!(size_of::<Ring>() <= RING_LEN);

/// The ear of a listener: closed, until there is a reason to open it.
#[derive(Debug)]
pub struct Ear {
    ring: &'static Ring,
    /// The process, and the descriptor that becomes readable when it has taken something.
    open: Option<(i32, OwnedFd)>,
}

impl Ear {
    /// A closed one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping wherever the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), RING_LEN, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: mapped until this value is dropped, zero, and every field may be zero.
        Ok(Self { ring: unsafe { &*at.cast() }, open: None })
    }

    /// The process, if it is open.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.open.as_ref().map(|(pid, _)| *pid)
    }

    /// What becomes readable when something has been taken.
    #[must_use]
    pub fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.open.as_ref().map(|(_, bell)| bell.as_fd())
    }

    /// Have a process take what `listener` has from now on, and wait a moment until it does; nothing if
    /// one does already.
    ///
    /// # Errors
    /// The kernel's; then it stays closed.
    pub fn open(&mut self, listener: BorrowedFd<'_>) -> io::Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        // SAFETY: takes numbers only.
        let bell = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if bell < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made it for us.
        let bell = unsafe { OwnedFd::from_raw_fd(bell) };
        let supervisor = std::process::id();
        self.ring.wait_for_the_end_of_the_last();
        // SAFETY: the supervisor has one thread, so the child may do anything.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                // Neither a terminal nor a pipe of the command's is to be kept by it.
                detach();
                end_with(supervisor);
                run_first();
                self.ring.take_all(listener, bell.as_fd());
                // SAFETY: ends the child without running the supervisor's exit handlers.
                unsafe { libc::_exit(0) }
            }
            pid => {
                self.open = Some((pid, bell));
                self.ring.wait_until_it_listens();
                Ok(())
            }
        }
    }

    /// The oldest notification that has been taken and has no answer.
    #[must_use]
    pub fn first(&self) -> Option<libc::seccomp_notif> {
        let at = self.ring.answered.load(SeqCst);
        if self.open.is_none() && at == self.ring.taken.load(SeqCst) {
            self.ring.count_what_is_left();
        }
        // SAFETY: counted as taken, so that only we touch it; plain numbers.
        (at != self.ring.taken.load(SeqCst)).then(|| unsafe { self.ring.request(at).read() })
    }

    /// It has been answered.
    pub fn answered(&self) {
        let at = self.ring.answered.load(SeqCst);
        // SAFETY: as above; zeros are plain numbers.
        unsafe { self.ring.request(at).write_bytes(0, 1) };
        self.ring.answered.store(at.wrapping_add(1), SeqCst);
    }

    /// Wait for the bell no more, until it rings again.
    pub fn hush(&self) {
        if let Some((_, bell)) = &self.open {
            let mut count = [0u8; 8];
            // SAFETY: room for what the kernel writes.
            unsafe { libc::read(bell.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        }
    }

    /// The process is gone, or belongs to a supervisor that is: what it took stays to be answered.
    pub fn forget(&mut self) {
        self.open = None;
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        if let Some((pid, _)) = self.open.take() {
            // SAFETY: our own child, which is forgotten when it is reaped.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            // SAFETY: as above.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
        let at = std::ptr::from_ref(self.ring).cast_mut();
        // SAFETY: our own mapping, which only this value refers to.
        unsafe { libc::munmap(at.cast(), RING_LEN) };
    }
}

impl Ring {
    const fn request(&self, at: u32) -> *mut libc::seccomp_notif {
        self.requests[(at % TAKEN_MAX) as usize].get()
    }

    /// Not for long: without it all goes on, only less promptly.
    fn wait_until_it_listens(&self) {
        const LOOKS: u32 = 2000;
        for _ in 0..LOOKS {
            if self.ear.load(SeqCst) != 0 {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// The ear that was a dead supervisor's ends with it, a moment later; two must not take at once.
    fn wait_for_the_end_of_the_last(&self) {
        const LOOKS: u32 = 50;
        let last = self.ear.swap(0, SeqCst) as i32;
        for _ in 0..LOOKS {
            // SAFETY: asks whether there is such a process.
            if last == 0 || unsafe { libc::kill(last, 0) } != 0 {
                return;
            }
            std::thread::sleep(MOMENT);
        }
    }

    /// Count what the kernel had written when the ear ended, before it could.
    fn count_what_is_left(&self) {
        let at = self.taken.load(SeqCst);
        // SAFETY: within the ring.
        let id = unsafe { &raw const (*self.request(at)).id };
        // SAFETY: a plain number; what else the kernel writes has been written a moment later.
        if unsafe { id.read_volatile() } != 0 {
            std::thread::sleep(MOMENT);
            self.taken.store(at.wrapping_add(1), SeqCst);
        }
    }

    /// What the ear does, until nobody is left under the filter.
    fn take_all(&self, listener: BorrowedFd<'_>, bell: BorrowedFd<'_>) {
        self.ear.store(std::process::id(), SeqCst);
        while !is_over(listener) {
            let at = self.taken.load(SeqCst);
            if at.wrapping_sub(self.answered.load(SeqCst)) >= TAKEN_MAX {
                std::thread::sleep(MOMENT);
                continue;
            }
            // SAFETY: not counted, so that only we and the kernel touch it.
            if receive(listener, unsafe { &mut *self.request(at) }) {
                self.taken.store(at.wrapping_add(1), SeqCst);
                let one = 1u64.to_ne_bytes();
                // SAFETY: eight bytes of ours.
                unsafe { libc::write(bell.as_raw_fd(), one.as_ptr().cast(), one.len()) };
            } else if io::Error::last_os_error().raw_os_error() != Some(libc::ENOENT) {
                // Not that the caller has gone; whatever it is must not keep a CPU busy.
                std::thread::sleep(MOMENT);
            }
        }
    }
}

/// Run before all others, if we may: for some microseconds each time.
fn run_first() {
    wake_promptly();
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: a structure of ours; without the right to it all stays as it is.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) };
}

/// Has everybody gone whom `listener` would tell of?
fn is_over(listener: BorrowedFd<'_>) -> bool {
    let mut polled = libc::pollfd { fd: listener.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one entry.
    unsafe { libc::poll(&raw mut polled, 1, 0) == 1 }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use super::{Ear, TAKEN_MAX};

    /// What the ear does when it has taken a notification.
    fn take(ear: &Ear, id: u64) {
        let at = ear.ring.taken.load(SeqCst);
        // SAFETY: nobody else has the ring.
        unsafe { (*ear.ring.request(at)).id = id };
        ear.ring.taken.store(at + 1, SeqCst);
    }

    #[test]
    fn what_was_taken_is_answered_in_turn_and_once() {
        let ear = Ear::new().expect("a page");
        assert!(ear.first().is_none());
        for round in 0..3 {
            (1..=TAKEN_MAX.into()).for_each(|id| take(&ear, round * 100 + id));
            for id in 1..=TAKEN_MAX.into() {
                assert_eq!(ear.first().map(|request| request.id), Some(round * 100 + id));
                ear.answered();
            }
            assert!(ear.first().is_none());
        }
        // The ear was killed when the kernel had written one, and nobody had counted it.
        // SAFETY: nobody else has the ring.
        unsafe { (*ear.ring.request(ear.ring.taken.load(SeqCst))).id = 7 };
        assert_eq!(ear.first().map(|request| request.id), Some(7));
        ear.answered();
        assert!(ear.first().is_none());
    }
}
