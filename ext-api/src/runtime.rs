//! What a shared structure asks of the world: who am I, is that one alive, sleep, wake.
//!
//! In a region libos answers. Elsewhere (unit tests, a program that links an extension's client)
//! there is one process, and threads answer for themselves.

#[cfg(not(loom))]
use crate::abi::Runtime;
#[cfg(not(loom))]
use crate::arch::stack_pointer;
#[cfg(not(loom))]
use crate::limits::{CONTEXTS_MAX, STACK_LEN};
use crate::sync::AtomicU64;
#[cfg(not(loom))]
use crate::sync::Ordering;

/// Names the upcall that holds something: context, its generation and its sequence in one word.
/// Never 0, and bit 63 is never set. An owner is alive until its upcall has ended.
pub(crate) type Owner = u64;

/// The world of a lock; loom's models have one of their own.
pub(crate) trait World {
    /// The calling upcall.
    fn owner(&self) -> Owner;
    /// Can this one still run?
    fn is_alive(&self, owner: Owner) -> bool;
    /// Sleep for a moment, unless `word` is no longer `seen`.
    fn wait(&self, word: &AtomicU64, seen: u64);
    /// Wake whoever sleeps on `word`.
    fn wake(&self, word: &AtomicU64);
    /// Monotonic time in nanoseconds.
    fn now_ns(&self) -> u64;
    /// Process and thread of an owner, for messages; 0 if unknown.
    fn ids(&self, owner: Owner) -> (u32, u32);
}

/// The region that this code runs in, if it does.
#[cfg(not(loom))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Here;

#[cfg(not(loom))]
impl Here {
    /// Number of the calling context, by the upcall stack that this thread is on; None outside of a
    /// region. A context has the number of a former one only when whoever had that can never run again.
    #[inline]
    pub(crate) fn context(self) -> Option<usize> {
        let stacks = STACKS.load(Ordering::Relaxed) as usize;
        let number = stack_pointer().wrapping_sub(stacks) / STACK_LEN;
        (number < CONTEXTS_MAX).then_some(number)
    }

    /// Does memory stay readable when it has been given back? In a region it does, until the
    /// extension has left.
    #[inline]
    pub(crate) fn keeps_memory(self) -> bool {
        crate::extension::runtime().is_some()
    }
}

/// Address of the first upcall stack; 0 outside of a region, where no stack is found.
#[cfg(not(loom))]
static STACKS: AtomicU64 = AtomicU64::new(0);

/// Learn what never changes, before anything runs that asks.
#[cfg(not(loom))]
pub(crate) fn learn(runtime: &Runtime) {
    STACKS.store((runtime.stacks)(), Ordering::Relaxed);
}

#[cfg(not(loom))]
impl World for Here {
    #[inline]
    fn owner(&self) -> Owner {
        match crate::extension::runtime() {
            Some(runtime) => (runtime.owner)(),
            None => outside::owner(),
        }
    }

    fn is_alive(&self, owner: Owner) -> bool {
        crate::extension::runtime().is_none_or(|runtime| (runtime.owner_alive)(owner) != 0)
    }

    #[expect(unsafe_code, reason = "hands the address of a live word to the kernel")]
    fn wait(&self, word: &AtomicU64, seen: u64) {
        const MOMENT_NS: u64 = 1_000_000;
        let Some(runtime) = crate::extension::runtime() else {
            std::thread::yield_now();
            return;
        };
        // The high half, which holds the bit that says that somebody waits.
        let high = std::ptr::from_ref(word).cast::<u32>().wrapping_add(1);
        // SAFETY: half of a word that is borrowed for the call.
        unsafe { (runtime.futex_wait)(high, (seen >> 32) as u32, MOMENT_NS) };
    }

    #[expect(unsafe_code, reason = "hands the address of a live word to the kernel")]
    fn wake(&self, word: &AtomicU64) {
        let Some(runtime) = crate::extension::runtime() else { return };
        let high = std::ptr::from_ref(word).cast::<u32>().wrapping_add(1);
        // SAFETY: half of a word that is borrowed for the call.
        unsafe { (runtime.futex_wake)(high, i32::MAX as u32) };
    }

    fn now_ns(&self) -> u64 {
        match crate::extension::runtime() {
            Some(runtime) => (runtime.now_ns)(),
            None => outside::now_ns(),
        }
    }

    fn ids(&self, owner: Owner) -> (u32, u32) {
        let Some(runtime) = crate::extension::runtime() else { return (0, 0) };
        let ids = (runtime.owner_ids)(owner);
        ((ids >> 32) as u32, ids as u32)
    }
}

#[cfg(not(loom))]
mod outside {
    use std::sync::OnceLock;
    use std::time::Instant;

    use crate::sync::{AtomicU64, Ordering};

    static NEXT: AtomicU64 = AtomicU64::new(1);
    static START: OnceLock<Instant> = OnceLock::new();

    thread_local! {
        static OWN: u64 = NEXT.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn owner() -> u64 {
        OWN.with(|own| *own)
    }

    pub(super) fn now_ns() -> u64 {
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}
