//! Structures for the state that an extension shares with all processes.
//!
//! A process may be killed between any two instructions of a handler, and an upcall may be ended
//! by a fault or for its time. The structures here are right all the same: each change becomes
//! visible by one store, and whatever a dead upcall held is taken over by the next that wants it.
//! std's locks are not: an extension that holds one when an upcall is ended is restarted.
//!
//! | structure | if its holder dies |
//! |---|---|
//! | [`Mutex`]; [`RwLock`], its writer | [`LockError::Broken`] until [`Mutex::recover`] |
//! | [`RwLock`], a reader or whoever waits | nothing: it is forgotten |
//! | [`Queue`] | an item that was not yet pushed is lost; one that was not yet popped stays |
//! | [`Map`] | an entry that was not yet linked is lost, with its memory |
//! | [`Counter`] | nothing |
//! | [`Grant`] | its value is dropped, by [`Grant::free`] or by the next process in its place |

mod counter;
mod fifo;
#[cfg(not(loom))]
mod grant;
mod guesses;
mod lock;
mod map;
mod mutex;
mod queue;
mod rwlock;
mod turns;

pub use counter::Counter;
#[cfg(not(loom))]
pub use grant::Grant;
pub use map::{AtomicWord, Map, MapError, MapStats};
pub use mutex::{Guard, LockError, Mutex};
pub use queue::{Full, Queue};
pub use rwlock::{ReadGuard, RwLock, WriteGuard};
