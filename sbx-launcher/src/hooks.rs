//! Hooks: handlers that run by themselves, at a time or when a process starts or ends.
//!
//! They run in the *server*, a worker that stays, serves the sandbox's timers and waits for events.
//! The supervisor posts to it as to any other process; it never waits for it. The server is made when
//! the first hook is loaded or the first timer started, and anew if it is killed.
#![expect(unsafe_code, reason = "wakes the server by a futex")]

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ext_api::abi::{HELLO_HANDLE, HOW_SERVER};
use libos::bell::Wake;
use libos::data::{Inbox, Joined, Process, SUPERVISOR_CLAIMANT};
use libos::mailbox::{Claimant, Event, KIND};
use libos::manifest::Hook;
use libos::timers::{Plan, TimerId, Timers};

use crate::clock::now_ns;
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

impl Happened {
    /// A process has come: a start, an exec or a fork, by `parent`.
    #[must_use]
    pub const fn started(what: Hook, pid: u32, parent: u64) -> Self {
        Self { what, pid, words: [parent, 0] }
    }

    /// This one, which has joined.
    #[must_use]
    pub fn came(pid: u32, process: &Process) -> Self {
        let is_fork = process.joined.load(Relaxed) == Joined::Fork as u32;
        let what = if is_fork { Hook::Fork } else { Hook::Start };
        Self::started(what, pid, u64::from(process.parent.load(Relaxed)))
    }

    /// A process has ended with this status, and so many events did not reach it.
    #[must_use]
    pub const fn went(pid: u32, status: i32, unread: u64) -> Self {
        Self { what: Hook::Exit, pid, words: [status as u32 as u64, unread] }
    }
}

/// A timer of a hook.
#[derive(Debug, Clone, Copy)]
struct Timer {
    handle: u64,
    period_ns: u64,
    id: TimerId,
}

/// The worker that runs hooks.
#[derive(Debug, Clone, Copy)]
struct Server {
    pid: u32,
    /// Its row and the row's generation, once it has joined.
    peer: Option<(usize, u32)>,
}

/// What runs by itself.
#[derive(Debug, Default)]
pub struct Hooks {
    server: Option<Server>,
    /// By row of the handler table.
    timers: HashMap<usize, Timer>,
    queue: VecDeque<Event>,
    dropped: u64,
    /// Events that the server was given.
    told: u64,
    /// The sandbox's changes that the timers are of.
    seen: Option<u64>,
}

impl Hooks {
    /// Is there one, whose upcalls somebody has to look after?
    #[must_use]
    pub const fn has_server(&self) -> bool {
        self.server.is_some()
    }

    /// Is this the server?
    #[must_use]
    pub fn is_server(&self, pid: u32) -> bool {
        self.server.is_some_and(|server| server.pid == pid)
    }

    /// The server has ended, or is another supervisor's.
    pub fn forget_server(&mut self) {
        self.server = None;
        self.told = 0;
    }

    /// How long until there is something to do; None if there is nothing.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        // What waits for the server to join, or for room in its mailbox, is tried again.
        (!self.queue.is_empty()).then_some(Duration::from_millis(1))
    }

    /// Has the server run all that it was told?
    #[must_use]
    pub fn are_idle(&self, sandbox: &Sandbox) -> bool {
        let peer = self.server.and_then(|server| server.peer);
        let ran = |(row, _)| {
            let inbox = sandbox.common().inbox(row);
            let tally = &inbox.tally;
            tally.delivered.load(Relaxed) + tally.failed.load(Relaxed) >= self.told
        };
        self.queue.is_empty() && peer.is_none_or(ran)
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
        let wanted = sandbox.common().timers().wanted.load(Relaxed) != 0;
        if self.server.is_none() && (wanted || !self.queue.is_empty()) {
            self.server = worker::start_server(sandbox).ok().map(|pid| Server { pid, peer: None });
        }
        let Some(server) = &mut self.server else { return };
        if self.queue.is_empty() {
            return;
        }
        if server.peer.is_none() {
            server.peer = sandbox.joined_as(server.pid);
        }
        let Some((row, generation)) = server.peer else { return };
        let inbox = sandbox.common().inbox(row);
        let to = u64::from(generation) << 32 | row as u64;
        while let Some(&event) = self.queue.front() {
            if !put(inbox, Event { to, ..event }) {
                break;
            }
            self.queue.pop_front();
            self.told += 1;
        }
    }

    /// Timers of what is loaded now; those that go on keep their time.
    fn note_changes(&mut self, sandbox: &Sandbox) {
        if self.seen == Some(sandbox.changes) {
            return;
        }
        self.seen = Some(sandbox.changes);
        let timers = sandbox.common().timers();
        let mut former = std::mem::take(&mut self.timers);
        for (hook, handler) in sandbox.hooked(|hook| matches!(hook, Hook::Timer { .. })) {
            let Hook::Timer { period_ns } = hook else { continue };
            let same =
                |known: &Timer| (known.handle, known.period_ns) == (handler.handle, period_ns);
            let known = former.get(&handler.row).copied().filter(same);
            let timer = match known {
                Some(known) => former.remove(&handler.row).or(Some(known)),
                None => start(timers, handler.handle, period_ns),
            };
            match timer {
                Some(timer) => drop(self.timers.insert(handler.row, timer)),
                None => sandbox.common().log().append(b"sbx: no timer is free for a hook\n"),
            }
        }
        let gone = former.into_values().filter(|timer| timers.cancel(timer.id)).count();
        if gone != 0 || !self.timers.is_empty() {
            self.tell_server(sandbox);
        }
    }

    /// Have the server look at the timers.
    fn tell_server(&mut self, sandbox: &Sandbox) {
        if self.server.is_some() && sandbox.loaded.iter().any(|one| !one.handlers.is_empty()) {
            self.queue.push_back(Event { handle: HELLO_HANDLE, words: [0; 4], to: 0 });
        }
    }
}

/// A periodic timer that the server runs itself.
fn start(timers: &Timers, handle: u64, period_ns: u64) -> Option<Timer> {
    let plan = Plan {
        due_ns: now_ns() + period_ns,
        period_ns,
        slack_ns: 0,
        how: HOW_SERVER,
        target: 0,
        handle,
        words: [0; 2],
        word_count: 0,
    };
    // Who else is filling a timer at this moment is left alone.
    timers.start(claimant(), |_| true, &plan).map(|id| Timer { handle, period_ns, id })
}

/// The supervisor, as one who fills a cell.
fn claimant() -> Claimant {
    std::process::id() << KIND.count_ones() | SUPERVISOR_CLAIMANT
}

/// Put an event into the server's mailbox. False: it is full.
fn put(inbox: &Inbox, event: Event) -> bool {
    if inbox.mail.push(claimant(), event).is_err() {
        return false;
    }
    if inbox.bell.ring() == Wake::Sleeper {
        let word = inbox.bell.word.as_ptr();
        // SAFETY: a word of the data zone, which is mapped here as well.
        unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, 1) };
    }
    true
}
