//! Timers: handlers that run later, once or again and again.
//!
//! A timer's handler takes up to three numbers: the two words that it was started with, and how many
//! periods have gone by without it. It runs in the sandbox's server, a worker that does nothing else,
//! or wherever an event can be posted to, or in whatever runs at that moment ([`To::running`]). It is never early; a period for which it is too late is
//! counted, not caught up on. One that comes once, to [all](To::all), does not come to those whose mailbox
//! is full at that moment.

use core::time::Duration;

use crate::abi::{
    CANCEL_HANDLE, HOW_SERVER, Handle, LEND_HANDLE, Status, TIMER_ABSOLUTE, TIMER_HANDLE,
};
use crate::error::CallError;
use crate::extension::{Cx, runtime};
use crate::post::To;

/// When and where a handler is to run.
///
/// ```
/// use std::time::Duration;
/// use ext_api::prelude::*;
/// use ext_api::timer::Timer;
///
/// let every_second = Timer::after(Duration::from_secs(1)).every(Duration::from_secs(1));
/// let once_in_a_waiting_process = Timer::after(Duration::from_millis(20)).to(To::any());
/// # let _ = (every_second, once_in_a_waiting_process);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer {
    first_ns: u64,
    flags: u64,
    period_ns: u64,
    slack_ns: u64,
    to: To,
}

/// Names a timer that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimerId(u64);

impl TimerId {
    /// As a number, to be handed on.
    #[must_use]
    pub const fn to_raw(self) -> u64 {
        self.0
    }

    /// From [`TimerId::to_raw`].
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
}

impl Timer {
    const fn new(first_ns: u64, flags: u64) -> Self {
        Self { first_ns, flags, period_ns: 0, slack_ns: 0, to: To { how: HOW_SERVER, target: 0 } }
    }

    /// Once, so long from now.
    #[must_use]
    pub const fn after(delay: Duration) -> Self {
        Self::new(nanoseconds(delay), 0)
    }

    /// Once, when [`Cx::now_ns`] says so.
    #[must_use]
    pub const fn at(now_ns: u64) -> Self {
        Self::new(now_ns, TIMER_ABSOLUTE)
    }

    /// And again so often from then on: every millisecond at most.
    #[must_use]
    pub const fn every(self, period: Duration) -> Self {
        Self { period_ns: nanoseconds(period), ..self }
    }

    /// So much later is early enough: timers with slack are served together.
    #[must_use]
    pub const fn slack(self, slack: Duration) -> Self {
        Self { slack_ns: nanoseconds(slack), ..self }
    }

    /// Where, if not in the server.
    #[must_use]
    pub const fn to(self, to: To) -> Self {
        Self { to, ..self }
    }

    /// The words of `libos.timer`.
    const fn words(self, handler: Handle, [a, b]: [u64; 2]) -> [u64; 9] {
        let Self { first_ns, flags, period_ns, slack_ns, to } = self;
        [first_ns, flags, period_ns, slack_ns, to.how, to.target, handler, a, b]
    }
}

/// As many as fit: what is longer is for ever.
const fn nanoseconds(time: Duration) -> u64 {
    let all = time.as_nanos();
    if all > u64::MAX as u128 { u64::MAX } else { all as u64 }
}

fn outcome(status: u32, id: u64) -> Result<TimerId, CallError> {
    match Status::from_raw(status) {
        Some(Status::Ok) => Ok(TimerId(id)),
        other => Err(CallError::Refused(other.unwrap_or(Status::BadArgs))),
    }
}

/// For handlers.
impl Cx {
    /// Start a timer: have `handler` run with these words and the periods missed.
    ///
    /// # Errors
    /// [`Status::Full`] if [`crate::limits::TIMERS_MAX`] are running; [`Status::Stale`];
    /// [`Status::BadArgs`] if the handler takes something else than up to three numbers, or the
    /// period is less than a millisecond.
    #[expect(unsafe_code, reason = "asks libos")]
    pub fn start_timer(
        timer: Timer,
        handler: Handle,
        words: [u64; 2],
    ) -> Result<TimerId, CallError> {
        let runtime = runtime().ok_or(CallError::NotAttached)?;
        let (words, mut id) = (timer.words(handler, words), 0);
        // SAFETY: nine words, and room for a name.
        let status = unsafe { (runtime.timer)(words.as_ptr(), &raw mut id) };
        outcome(status, id)
    }

    /// Stop a timer. False: it has come for the last time, or was stopped before. A handler that has
    /// been posted already may still run once.
    pub fn stop_timer(timer: TimerId) -> bool {
        runtime().is_some_and(|runtime| (runtime.cancel)(timer.0) != 0)
    }
}

/// For programs.
#[cfg(not(loom))]
impl crate::client::Sandbox {
    /// As [`Cx::start_timer`], from a program.
    ///
    /// # Errors
    /// As [`Cx::start_timer`].
    pub fn start_timer(
        &self,
        timer: Timer,
        handler: Handle,
        words: [u64; 2],
    ) -> Result<TimerId, CallError> {
        let mut reply = crate::abi::Reply::empty();
        // SAFETY: the words of `libos.timer`.
        #[expect(unsafe_code, reason = "calls libos's own handler with its own words")]
        let status =
            unsafe { self.call_raw(TIMER_HANDLE, &timer.words(handler, words), &mut reply) };
        outcome(status, reply.word)
    }

    /// Have the calling thread run timers of [`To::running`] from now on: each of them interrupts it by
    /// a signal when it is due, whatever the thread does. Calls that cannot be restarted (`poll`,
    /// `nanosleep`) fail with EINTR then.
    ///
    /// # Errors
    /// The call's.
    pub fn lend(&self) -> Result<(), CallError> {
        self.invoke::<()>(LEND_HANDLE, &[])
    }

    /// As [`Cx::stop_timer`], from a program.
    ///
    /// # Errors
    /// The call's.
    pub fn stop_timer(&self, timer: TimerId) -> Result<bool, CallError> {
        self.invoke::<bool>(CANCEL_HANDLE, &[timer.0])
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::time::Duration;

    use super::Timer;

    #[test]
    fn what_is_too_long_for_the_clock_is_for_ever() {
        let timer = Timer::after(Duration::MAX).every(Duration::MAX).slack(Duration::MAX);
        assert_eq!([timer.first_ns, timer.period_ns, timer.slack_ns], [u64::MAX; 3]);
        // 2^64 nanoseconds and a bit more, which would be the bit.
        let long = Timer::after(Duration::from_secs(18_446_744_074));
        assert_eq!(long.first_ns, u64::MAX);
    }
}
