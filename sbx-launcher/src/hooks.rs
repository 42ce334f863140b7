//! Hooks: handlers that run by themselves, at a time or when a process starts or ends.
//!
//! They run in the *server*, a worker that stays and waits for events. The supervisor posts to it as
//! to any other process; it never waits for it. The server is made when the first hook is loaded,
//! and anew if it is killed.
#![expect(unsafe_code, reason = "wakes the server by a futex")]

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use libos::bell::Wake;
use libos::data::{Inbox, SUPERVISOR_CLAIMANT};
use libos::mailbox::{Claimant, Event, KIND};
use libos::manifest::Hook;

use crate::sandbox::Sandbox;
use crate::worker;

/// Ends and starts of processes that wait for the server; more are dropped, and counted in the log.
const QUEUE_MAX: usize = 4096;

/// Something that happened to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Happened {
    /// What.
    pub what: Hook,
    /// Its pid.
    pub pid: u32,
    /// Of an exit: the status as `waitpid` gives it, and how many events did not reach it.
    pub words: [u64; 2],
}

/// A periodic handler.
#[derive(Debug, Clone, Copy)]
struct Timer {
    handle: u64,
    period: Duration,
    due: Instant,
    /// Periods that went by since it was posted last, because the server was not through with that.
    missed: u64,
    /// Number of the last post among all to this server.
    posted: Option<u64>,
}

/// The worker that runs hooks.
#[derive(Debug, Clone, Copy)]
struct Server {
    pid: u32,
    /// Its row and the row's generation, once it has joined.
    peer: Option<(usize, u32)>,
    /// Events put into its mailbox.
    posted: u64,
}

/// What runs by itself.
#[derive(Debug, Default)]
pub struct Hooks {
    server: Option<Server>,
    /// By row of the handler table.
    timers: HashMap<usize, Timer>,
    queue: VecDeque<Event>,
    dropped: u64,
    /// The sandbox's changes that the timers are of.
    seen: Option<u64>,
}

impl Hooks {
    /// Is this the server?
    #[must_use]
    pub fn is_server(&self, pid: u32) -> bool {
        self.server.is_some_and(|server| server.pid == pid)
    }

    /// The server has ended, or is another supervisor's.
    pub fn forget_server(&mut self) {
        self.server = None;
        self.timers.values_mut().for_each(|timer| timer.posted = None);
    }

    /// How long until there is something to do; None if there is nothing.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        const SOON: Duration = Duration::from_millis(1);
        let next = self.timers.values().map(|timer| timer.due).min();
        let next = next.map(|due| due.saturating_duration_since(Instant::now()));
        // What waits for the server to join, or for room in its mailbox, is tried again.
        if self.queue.is_empty() { next } else { Some(next.map_or(SOON, |next| next.min(SOON))) }
    }

    /// Do what is due. `happened` is what has come to pass since.
    pub fn run(&mut self, sandbox: &Sandbox, happened: Vec<Happened>) {
        self.note_changes(sandbox);
        for one in happened {
            let event = |handle| Event {
                handle,
                words: [u64::from(one.pid), one.words[0], one.words[1], 0],
                to: 0,
            };
            self.queue
                .extend(sandbox.hooked(|hook| hook == one.what).map(|(_, it)| event(it.handle)));
        }
        while self.queue.len() > QUEUE_MAX {
            self.queue.pop_front();
            self.dropped += 1;
        }
        if self.dropped != 0 && self.queue.is_empty() {
            let text = format!("sbx: {} events of processes were dropped\n", self.dropped);
            sandbox.common().log().append(text.as_bytes());
            self.dropped = 0;
        }
        if self.timers.is_empty() && self.queue.is_empty() {
            return;
        }
        if self.server.is_none() {
            self.server =
                worker::start_server(sandbox).ok().map(|pid| Server { pid, peer: None, posted: 0 });
        }
        let Some(server) = &mut self.server else { return };
        if server.peer.is_none() {
            server.peer = sandbox.joined_as(server.pid);
        }
        let Some((row, generation)) = server.peer else { return };
        let inbox = sandbox.common().inbox(row);
        let to = u64::from(generation) << 32 | row as u64;
        let mut post = |event: Event| {
            let done = put(inbox, Event { to, ..event });
            server.posted += u64::from(done);
            done.then_some(server.posted)
        };
        while let Some(&event) = self.queue.front() {
            if post(event).is_none() {
                break;
            }
            self.queue.pop_front();
        }
        let handled = inbox.tally.delivered.load(Relaxed) + inbox.tally.failed.load(Relaxed);
        let now = Instant::now();
        for timer in self.timers.values_mut().filter(|timer| timer.due <= now) {
            let periods = now.duration_since(timer.due).as_nanos() / timer.period.as_nanos() + 1;
            timer.due += timer.period * periods as u32;
            timer.missed += periods as u64 - 1;
            let busy = timer.posted.is_some_and(|number| number > handled);
            let event = Event { handle: timer.handle, words: [timer.missed, 0, 0, 0], to: 0 };
            match if busy { None } else { post(event) } {
                None => timer.missed += 1,
                posted => (timer.posted, timer.missed) = (posted, 0),
            }
        }
    }

    /// Timers of what is loaded now; those that go on keep their time.
    fn note_changes(&mut self, sandbox: &Sandbox) {
        if self.seen == Some(sandbox.changes) {
            return;
        }
        self.seen = Some(sandbox.changes);
        let now = Instant::now();
        let former = std::mem::take(&mut self.timers);
        for (hook, handler) in sandbox.hooked(|hook| matches!(hook, Hook::Timer { .. })) {
            let Hook::Timer { period_ns } = hook else { continue };
            let period = Duration::from_nanos(period_ns);
            let known = former.get(&handler.row).filter(|known| known.handle == handler.handle);
            let fresh = Timer {
                handle: handler.handle,
                period,
                due: now + period,
                missed: 0,
                posted: None,
            };
            let timer = known.filter(|known| known.period == period).copied().unwrap_or(fresh);
            self.timers.insert(handler.row, timer);
        }
    }
}

/// Put an event into the server's mailbox. False: it is full.
fn put(inbox: &Inbox, event: Event) -> bool {
    let own: Claimant = std::process::id() << KIND.count_ones() | SUPERVISOR_CLAIMANT;
    if inbox.mail.push(own, event).is_err() {
        return false;
    }
    if inbox.bell.ring() == Wake::Sleeper {
        let word = inbox.bell.word.as_ptr();
        // SAFETY: a word of the data zone, which is mapped here as well.
        unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, 1) };
    }
    true
}
