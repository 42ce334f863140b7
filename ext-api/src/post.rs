//! Posting events: calls that are made later, in the context of another process.
//!
//! An event names a handler that takes numbers only, and up to four of them. It is delivered to a
//! process as an upcall of its own, never inside another one:
//! * at once, if a thread of the process waits ([`Sandbox::wait`](crate::client::Sandbox::wait));
//! * when a thread of it leaves the upcall that it is in;
//! * or, if the event is [urgent](To::urgent) and no thread does either, by a signal to one of them.
//!
//! Events of one poster reach one process in the order in which they were posted, one after the
//! other. Nothing is ordered between posters, between processes, or in [`To::any`]. An event is
//! delivered once, or not at all if the process ends first; a handler's result goes nowhere.

use crate::abi::{
    HOW_ALL, HOW_ANY, HOW_PEER, HOW_PID, HOW_RUNNING, HOW_SERVER, HOW_URGENT, Handle, PEER_HANDLE,
    POST_HANDLE, Status,
};
use crate::error::CallError;
use crate::extension::{Cx, runtime};

/// Most words that an event carries.
pub const WORDS_MAX: usize = 4;

/// A participant, so that no later process with the same pid is taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer(u64);

impl Peer {
    /// As a number, to be handed on.
    #[must_use]
    pub const fn to_raw(self) -> u64 {
        self.0
    }

    /// From [`Peer::to_raw`]. A number that names no process is one that has gone.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
}

/// Whom an event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct To {
    pub(crate) how: u64,
    pub(crate) target: u64,
}

impl To {
    /// One process.
    #[must_use]
    pub const fn peer(peer: Peer) -> Self {
        Self { how: HOW_PEER, target: peer.0 }
    }

    /// The process with this pid; slower than [`To::peer`], which need not look for it.
    #[must_use]
    pub const fn pid(pid: u32) -> Self {
        Self { how: HOW_PID, target: pid as u64 }
    }

    /// The sandbox's server: a worker that runs timers and what is posted to it.
    #[must_use]
    pub const fn server() -> Self {
        Self { how: HOW_SERVER, target: 0 }
    }

    /// For timers only: whichever of the threads that [lend](crate::client::Sandbox::lend) themselves
    /// runs at that moment, or the server. A handler that has not come to its end after a period does
    /// not hold up the next run, which may then be at the same time.
    #[must_use]
    pub const fn running() -> Self {
        Self { how: HOW_RUNNING, target: 0 }
    }

    /// Whoever waits first.
    #[must_use]
    pub const fn any() -> Self {
        Self { how: HOW_ANY, target: 0 }
    }

    /// Every process that takes part now.
    #[must_use]
    pub const fn all() -> Self {
        Self { how: HOW_ALL, target: 0 }
    }

    /// Interrupt the target if it runs code of its own: one signal for all events that it has not
    /// taken yet. A system call of the program that cannot be restarted (`poll`, `nanosleep`) then
    /// fails with EINTR.
    #[must_use]
    pub const fn urgent(self) -> Self {
        Self { how: self.how | HOW_URGENT, ..self }
    }
}

/// The words of an event, the rest zero.
fn padded(words: &[u64]) -> Result<[u64; WORDS_MAX], CallError> {
    let mut all = [0; WORDS_MAX];
    let to = all.get_mut(..words.len()).ok_or(CallError::Refused(Status::BadArgs))?;
    to.copy_from_slice(words);
    Ok(all)
}

/// How many mailboxes have it, or why none has.
const fn outcome(status: u32, count: u64) -> Result<u64, CallError> {
    match Status::from_raw(status) {
        Some(Status::Ok) => Ok(count),
        Some(status) => Err(CallError::Refused(status)),
        None => Err(CallError::Refused(Status::BadArgs)),
    }
}

/// For handlers.
impl Cx {
    /// The handler named `extension.handler`.
    ///
    /// # Errors
    /// [`CallError::NotFound`]; [`CallError::NotAttached`] outside of a region.
    #[expect(unsafe_code, reason = "asks libos")]
    pub fn find(name: &str) -> Result<Handle, CallError> {
        let runtime = runtime().ok_or(CallError::NotAttached)?;
        // SAFETY: a text and its length.
        match unsafe { (runtime.find)(name.as_ptr(), name.len()) } {
            0 => Err(CallError::NotFound(name.to_owned())),
            handle => Ok(handle),
        }
    }

    /// The participant with this pid.
    ///
    /// # Errors
    /// [`Status::Gone`]; [`CallError::NotAttached`] outside of a region.
    pub fn peer(pid: u32) -> Result<Peer, CallError> {
        match (runtime().ok_or(CallError::NotAttached)?.peer)(pid) {
            0 => Err(CallError::Refused(Status::Gone)),
            peer => Ok(Peer(peer)),
        }
    }

    /// Does this process take part still?
    #[must_use]
    pub fn is_live(peer: Peer) -> bool {
        runtime().is_some_and(|runtime| (runtime.is_live)(peer.0) != 0)
    }

    /// Post an event: have `handler` run with these words. How many mailboxes have it now.
    ///
    /// # Errors
    /// [`Status::Full`], [`Status::Gone`], [`Status::Stale`]; [`Status::BadArgs`] if the handler
    /// takes something else than up to four numbers. Of [`To::all`], [`Status::Full`] means that
    /// some have it and some do not.
    #[expect(unsafe_code, reason = "asks libos")]
    pub fn post(to: To, handler: Handle, words: &[u64]) -> Result<u64, CallError> {
        let runtime = runtime().ok_or(CallError::NotAttached)?;
        let words = padded(words)?;
        // SAFETY: four words.
        let done = unsafe { (runtime.post)(to.how, to.target, handler, words.as_ptr()) };
        outcome(done as u32, done >> 32)
    }
}

/// For handlers.
impl Cx {
    /// Have no events delivered to the process that this runs in, until [`Cx::unmask_events`]. They
    /// wait; a full mailbox refuses more. Signals that are hooked come all the same.
    pub fn mask_events() {
        if let Some(runtime) = runtime() {
            (runtime.mask)(1);
        }
    }

    /// Have them delivered again, beginning when this upcall is over.
    pub fn unmask_events() {
        if let Some(runtime) = runtime() {
            (runtime.mask)(0);
        }
    }
}

/// For programs.
#[cfg(not(loom))]
impl crate::client::Sandbox {
    /// The participant with this pid.
    ///
    /// # Errors
    /// [`Status::Gone`].
    pub fn peer(&self, pid: u32) -> Result<Peer, CallError> {
        self.invoke::<u64>(PEER_HANDLE, &[u64::from(pid)]).map(Peer)
    }

    /// As [`Cx::post`], from a program.
    ///
    /// # Errors
    /// As [`Cx::post`].
    pub fn post(&self, to: To, handler: Handle, words: &[u64]) -> Result<u64, CallError> {
        let [a, b, c, d] = padded(words)?;
        let words = [to.how, to.target, handler, a, b, c, d];
        let mut reply = crate::abi::Reply::empty();
        // SAFETY: the words of `libos.post`.
        #[expect(unsafe_code, reason = "calls libos's own handler with its own words")]
        let status = unsafe { self.call_raw(POST_HANDLE, &words, &mut reply) };
        outcome(status, reply.word)
    }

    /// As a futex: wait until `word` is no longer `expected`, at most for `timeout`. Meanwhile the
    /// thread runs the events of its process, and work for [any](To::any) process, one at a time.
    /// True if the word has changed. Works between processes that share the word's memory.
    /// [`Duration::MAX`](std::time::Duration::MAX) waits for as long as it takes, without a timer.
    #[must_use = "false says that the word is what it was"]
    pub fn wait_on(
        &self,
        word: &core::sync::atomic::AtomicU32,
        expected: u32,
        timeout: std::time::Duration,
    ) -> bool {
        let ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).min(1 << 60);
        // SAFETY: the word outlives the call.
        #[expect(unsafe_code, reason = "calls libos's entry")]
        let changed = unsafe { (self.wait_on_entry())(word.as_ptr(), expected, ns) };
        changed == 1
    }

    /// Wake up to `count` of those that [wait on](Self::wait_on) `word`, which has been changed.
    pub fn wake_on(&self, word: &core::sync::atomic::AtomicU32, count: u32) {
        // SAFETY: a word that may be waited on.
        #[expect(unsafe_code, reason = "calls libos's entry")]
        unsafe {
            (self.wake_on_entry())(word.as_ptr(), count)
        };
    }

    /// Wait until events have been delivered to this process, at most for `timeout`; how many. Those
    /// that wait already are delivered at once. What is delivered on the way out of an upcall is
    /// not counted: have the handler say that it ran. Work for [any](To::any) process is taken, too. May
    /// come back early with 0. [`Duration::MAX`](std::time::Duration::MAX) waits for as long as it takes,
    /// without a timer.
    #[must_use = "0 says that nothing came"]
    pub fn wait(&self, timeout: std::time::Duration) -> u64 {
        (self.wait_entry())(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).min(1 << 60))
    }
}
