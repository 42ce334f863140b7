//! The supervisor: one thread that owns a sandbox and waits for what concerns it.
#![expect(unsafe_code, reason = "polls, reaps and watches processes")]

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use libos::data::DOORBELL;
use libos::manifest::Hook;
use serde_json::Value;

use crate::about::about;
use crate::control::{self, Answer, Server};
use crate::filter::Armed;
use crate::follow::{Followed, Follower, Listener, Started, has_ended, pidfd, take_turns};
use crate::hooks::{Happened, Hooks};
use crate::keeper::{Keeper, Side};
use crate::net::Net;
use crate::one_cpu::OneCpu;
use crate::run::is_job_control;
use crate::sandbox::extensions::Loading;
use crate::sandbox::ports::Whose;
use crate::sandbox::terms::Terms;
use crate::sandbox::{Sandbox, SandboxError};
use crate::watchdog::{Watchdog, wake_promptly};
use crate::worker::Job;

/// The status of a process of which nobody can tell it.
const UNKNOWN: i32 = -1;

/// How long processes may go on ending in the upcalls that a snapshot waits for.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(1);

/// How the supervisor's loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The command that it was started for has ended, with this status of `waitpid`.
    Command(i32),
    /// Somebody asked for it.
    Asked,
    /// Nothing is left to supervise.
    Empty,
}

/// A sandbox and what is being watched for it.
#[derive(Debug)]
pub struct Supervisor {
    /// The sandbox.
    pub sandbox: Sandbox,
    follower: Follower,
    listeners: Vec<Listener>,
    watched: HashMap<u32, OwnedFd>,
    server: Option<Server>,
    children: OwnedFd,
    command: Option<i32>,
    stays: bool,
    watchdog: Watchdog,
    looked: Instant,
    jobs: Vec<Pending>,
    /// What came of the last extension that nobody has asked about.
    loaded: Option<Result<(), SandboxError>>,
    /// Who asked for the upgrade that is going on.
    upgrade: Option<OwnedFd>,
    /// What is to be told once the keeper knows it.
    answers: Vec<Answer>,
    farewells: Vec<Answer>,
    keeper: Option<Keeper>,
    hooks: Hooks,
    net: Net,
    /// It was a keeper: what its predecessor started are not its children.
    is_successor: bool,
}

/// An upcall in a worker, and what it is for.
#[derive(Debug)]
struct Pending {
    job: Job,
    /// Of `waitpid`, once the worker has been reaped.
    status: Option<i32>,
    then: Then,
}

/// What to do with the outcome of a worker.
#[derive(Debug)]
enum Then {
    /// Answer a `call`: who asked, and the handler's signature.
    Answer(OwnedFd, String),
    /// Make the extension live, and tell who asked, if anybody did.
    Load(Box<Loading>, Option<OwnedFd>),
}

impl Supervisor {
    /// A supervisor of `sandbox`. A named one has a `server` and stays until it is asked to end.
    ///
    /// # Errors
    /// The kernel's, for the descriptor that tells of children.
    pub fn new(sandbox: Sandbox, server: Option<Server>) -> std::io::Result<Self> {
        let follower = Follower::new(sandbox.entry, sandbox.zones.place, sandbox.zones.fds())?;
        let stays = server.is_some();
        Ok(Self {
            sandbox,
            follower,
            listeners: Vec::new(),
            watched: HashMap::new(),
            server,
            children: child_signals()?,
            command: None,
            stays,
            watchdog: Watchdog::default(),
            looked: Instant::now(),
            jobs: Vec::new(),
            loaded: None,
            upgrade: None,
            answers: Vec::new(),
            farewells: Vec::new(),
            keeper: None,
            hooks: Hooks::default(),
            net: Net::default(),
            is_successor: false,
        })
    }

    /// Take over the notifications of a launched command.
    pub fn add_listener(&mut self, listener: Listener) {
        self.sandbox.changed();
        take_turns(listener.fd.as_fd());
        self.listeners.push(listener);
    }

    /// The command shares our only CPU until it has joined.
    pub fn share_cpu(&mut self, pid: i32, cpu: OneCpu) {
        self.follower.share_cpu(pid, cpu);
    }

    /// A child of ours waits to execute the command, with the zones' descriptors as we have them.
    ///
    /// # Errors
    /// Another process traces it.
    pub fn expect_command(&mut self, pid: i32, armed: Armed) -> std::io::Result<()> {
        self.follower.expect_exec(pid, armed)
    }

    /// Answer what comes by `server`, for as long as there is something to supervise.
    pub fn answer_by(&mut self, server: Server) {
        self.server = Some(server);
    }

    /// The child whose end ends the loop.
    pub fn set_command(&mut self, pid: i32) {
        self.command = Some(pid);
    }

    /// Run a handler once, in a worker, and wait for it: what it returns, as `call` prints it.
    ///
    /// # Errors
    /// There is no such handler, or it fails.
    pub fn call(&self, handler: &str, args: &[String]) -> Result<Value, String> {
        let (job, signature) = control::call(self, handler, args)?;
        let outcome = job.outcome(None).map_err(|error| error.to_string())?;
        control::call_answer(&outcome, &signature)
    }

    /// Have hooks run for what has happened so far, for `patience` at most.
    pub fn run_hooks(&mut self, patience: Duration) {
        let began = Instant::now();
        loop {
            let happened = std::mem::take(&mut self.sandbox.happened);
            self.hooks.run(&self.sandbox, happened);
            if self.hooks.are_idle(&self.sandbox) || began.elapsed() > patience {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Participants that are alive, as far as the supervisor watches them.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.watched.len()
    }

    /// Have a keeper before anybody is told that there is a sandbox.
    pub fn prepare(&mut self) {
        self.sandbox.set_supervisor();
        self.settle(false);
    }

    /// Serve until there is a reason to end.
    pub fn serve(&mut self) -> End {
        wake_promptly();
        self.sandbox.set_supervisor();
        // What was done to get here is not idleness, of which a keeper is made.
        self.looked = Instant::now();
        loop {
            if let Some(end) = self.turn() {
                return end;
            }
            if !self.stays && self.command.is_none() && self.watched.is_empty() {
                return End::Empty;
            }
        }
    }

    /// Have the keeper know what has changed, then tell it to whoever asked.
    ///
    /// The keeper of a sandbox that lives for one command is made when there is nothing else to do:
    /// most commands have ended by then. It is not made on a CPU that is shared with the command, where
    /// it would stay.
    fn settle(&mut self, idle: bool) {
        self.sandbox.publish_hooks();
        let wanted = self.stays || self.keeper.is_some() || (idle && self.command.is_some());
        let may = !self.follower.shares_cpu();
        if wanted && may && (self.sandbox.is_unkept() || self.keeper.is_none()) {
            self.renew_keeper();
        }
        self.answers.drain(..).for_each(Answer::send);
    }

    fn renew_keeper(&mut self) {
        let changes = self.sandbox.kept.replace(self.sandbox.changes);
        match Keeper::make(self.follower.hand()) {
            // The former one ends here.
            Ok(Side::Supervisor(keeper)) => self.keeper = Some(keeper),
            Ok(Side::Successor) => self.succeed(),
            Err(error) => {
                self.sandbox.kept = changes;
                self.say(format!("without a keeper for now: {error}"));
            }
        }
        self.follower.is_kept = self.keeper.is_some();
    }

    /// The process is the keeper, and the supervisor whose copy it is has died.
    fn succeed(&mut self) -> ! {
        std::mem::forget(self.keeper.take());
        // Its children are not ours.
        self.is_successor = true;
        self.command = None;
        self.say(format!(
            "pid {} has taken the place of a supervisor that died",
            std::process::id()
        ));
        // It may die in the middle of taking over.
        self.renew_keeper();
        self.sandbox.kept = None;
        self.hooks.forget_server();
        self.net.take_over();
        self.forget_ears();
        self.sandbox.set_supervisor();
        self.sandbox.restore_tables();
        // Those that have joined since the keeper was made.
        self.adopt();
        let (watched, common) = (&self.watched, self.sandbox.common());
        let participant = |pid: u32| watched.contains_key(&pid);
        let events = self.follower.take_over(&self.listeners, common, participant);
        self.note(events);
        self.look_now();
        self.serve();
        self.end();
        std::process::exit(0)
    }

    /// Go on without a keeper, and with another server: those of this process end with it.
    pub fn dismiss_keeper(&mut self) {
        self.keeper = None;
        self.follower.is_kept = false;
        self.hooks.forget_server();
    }

    /// The sandbox goes down: nobody serves its ports any more.
    pub fn end_network(&mut self) {
        self.net.end_worker();
    }

    /// The sandbox is no more, and its name is free; then tell it to whoever asked for that.
    pub fn end(&mut self) {
        self.dismiss_keeper();
        self.end_network();
        self.server = None;
        self.farewells.drain(..).for_each(Answer::send);
    }

    /// Whether the watchdog is at rest, and how often it was woken.
    #[must_use]
    pub fn watchdog(&self) -> Value {
        let (rests, woken) = (self.watchdog.rests(), self.watchdog.woken());
        serde_json::json!({ "rests": rests, "woken": woken })
    }

    /// Pid of the keeper, if there is one.
    #[must_use]
    pub fn keeper(&self) -> Option<i32> {
        self.keeper.as_ref().map(Keeper::pid)
    }

    /// Have `answer` sent at the end of this turn.
    pub fn tell(&mut self, answer: Answer) {
        self.answers.push(answer);
    }

    /// Have `answer` sent when the sandbox is no more.
    pub fn tell_at_end(&mut self, answer: Answer) {
        self.farewells.push(answer);
    }

    /// Wait for events and handle them.
    fn turn(&mut self) -> Option<End> {
        let mut fds = vec![self.children.as_raw_fd()];
        fds.extend(self.server.as_ref().map(|server| server.as_raw_fd()));
        let first_listener = fds.len();
        fds.extend(self.listeners.iter().map(|listener| listener.fd.as_raw_fd()));
        let first_ear = fds.len();
        // The kernel passes over an ear that is closed.
        let bell = |listener: &Listener| listener.ear.bell().map_or(-1, |bell| bell.as_raw_fd());
        fds.extend(self.listeners.iter().map(bell));
        let first_process = fds.len();
        let pids: Vec<u32> = self.watched.keys().copied().collect();
        fds.extend(pids.iter().filter_map(|pid| self.watched.get(pid)).map(AsRawFd::as_raw_fd));
        let first_job = fds.len();
        fds.extend(self.jobs.iter().map(|pending| pending.job.from.as_raw_fd()));
        let mut polled: Vec<libc::pollfd> = fds
            .into_iter()
            .map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 })
            .collect();
        for (polled, listener) in polled[first_listener..].iter_mut().zip(&self.listeners) {
            // What it has is the ear's to take.
            polled.events = if listener.ear.pid().is_some() { 0 } else { libc::POLLIN };
        }
        let ready = poll(&mut polled, self.timeout());
        let idle = ready.is_empty();
        self.answer_taken();
        self.follower.look_after_late();
        self.answer_deferred();
        let happened = std::mem::take(&mut self.sandbox.happened);
        self.hooks.run(&self.sandbox, happened);
        if self.net.run(&self.sandbox) {
            // A keeper that knows nothing of the worker would make another.
            self.sandbox.kept = None;
        }
        self.look_after_upcalls();
        let done: Vec<u32> = ready
            .iter()
            .filter_map(|&(index, _)| self.jobs.get(index.checked_sub(first_job)?))
            .map(|pending| pending.job.pid)
            .collect();
        done.into_iter().for_each(|pid| self.job_done(pid));
        let mut end = None;
        let mut hung_up = Vec::new();
        for (index, events) in ready {
            if index == 0 {
                end = end.or(self.reap());
            } else if index < first_listener {
                end = end.or(self.answer());
            } else if index < first_ear {
                if events & libc::POLLIN != 0 {
                    end = end.or(self.notified(index - first_listener));
                } else {
                    hung_up.push(index - first_listener);
                }
            } else if let Some(at) = index.checked_sub(first_process)
                && let Some(&pid) = pids.get(at)
                && index < first_job
            {
                self.ended(pid);
            }
        }
        for index in hung_up.into_iter().rev() {
            self.listeners.remove(index);
        }
        self.settle(idle);
        end
    }

    /// Until when to sleep, if nothing happens: somebody has to look after upcalls while there is
    /// anybody to make them.
    fn timeout(&self) -> Option<Duration> {
        let hooks =
            if self.sandbox.happened.is_empty() { self.hooks.left() } else { Some(Duration::ZERO) };
        let others = [self.net.left(), self.timeout_without_hooks()].into_iter().flatten().min();
        hooks.map_or(others, |hooks| Some(others.map_or(hooks, |others| others.min(hooks))))
    }

    fn timeout_without_hooks(&self) -> Option<Duration> {
        let has_workers = self.net.has_worker() || self.hooks.has_server();
        if self.watched.is_empty()
            && !has_workers
            && self.jobs.is_empty()
            && !self.sandbox.is_busy()
        {
            return self.follower.busy().then_some(Duration::from_millis(50));
        }
        let period = self.watchdog.period();
        let left = period.saturating_sub(self.looked.elapsed());
        Some(if self.sandbox.is_busy() { left.min(Duration::from_millis(1)) } else { left })
    }

    /// Watch the time of upcalls and the state of extensions.
    fn look_after_upcalls(&mut self) {
        if self.looked.elapsed() < self.watchdog.period() && !self.sandbox.is_busy() {
            return;
        }
        self.look_now();
    }

    /// See how upcalls and extensions are.
    fn look_now(&mut self) {
        self.looked = Instant::now();
        self.adopt();
        self.watchdog.look(&self.sandbox);
        let (begun, stop) = self.sandbox.look_after_extensions();
        self.watchdog.condemn(&stop);
        for (job, loading) in begun {
            let asker = if loading.is_upgrade() { self.upgrade.take() } else { None };
            self.start_load(job, loading, asker);
        }
        if let Some(why) = self.sandbox.upgrade_failed.take()
            && let Some(connection) = self.upgrade.take()
        {
            self.tell(Answer::new(connection, Err(why)));
        }
    }

    /// Watch participants that nobody told us of: children of a process that attached by itself.
    /// Pids of another namespace mean nothing here.
    fn adopt(&mut self) {
        let common = self.sandbox.common();
        for row in common.rows() {
            let process = common.process(row);
            let pid = process.claim.load().pid;
            let known = pid == 0
                || process.joined.load(Relaxed) == 0
                || process.pid_space.load(Relaxed) != self.sandbox.spaces.own()
                || self.watched.contains_key(&pid)
                || self.jobs.iter().any(|pending| pending.job.pid == pid)
                || self.hooks.is_server(pid)
                || (self.net.is_worker(pid) && !self.is_successor);
            if known {
                continue;
            }
            match pidfd(pid) {
                Some(fd) => {
                    self.watched.insert(pid, fd);
                    self.sandbox.tell_of(Happened::came(pid, process));
                }
                None => self.sandbox.sweep(pid, UNKNOWN),
            }
        }
    }

    /// Wait for the `init` of an extension, in the loop.
    pub fn start_load(&mut self, job: Job, loading: Loading, connection: Option<OwnedFd>) {
        let then = Then::Load(Box::new(loading), connection);
        self.jobs.push(Pending { job, status: None, then });
    }

    /// Answer `connection` when the upgrade that has begun is over.
    pub fn await_upgrade(&mut self, connection: OwnedFd) {
        self.upgrade = Some(connection);
        self.look_now();
    }

    /// Wait for an upcall in a worker, in the loop, and answer it.
    pub fn start_call(&mut self, job: Job, connection: OwnedFd, signature: String) {
        self.jobs.push(Pending { job, status: None, then: Then::Answer(connection, signature) });
    }

    /// Load an extension and wait until it is live.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn load(&mut self, file: &Path, terms: &Terms) -> Result<(), SandboxError> {
        let (job, loading) = self.sandbox.begin_load(file, terms, Whose::Any)?;
        self.start_load(job, loading, None);
        self.loaded = None;
        loop {
            // A launch that is to be ended while its extensions load ends with the signal's error.
            let end = self.turn();
            if let Some(result) = self.loaded.take() {
                return result;
            }
            if end.is_some() {
                return Err(SandboxError::Refused("ended while an extension was loaded".into()));
            }
        }
    }

    /// The worker `pid` has an outcome, or has died.
    fn job_done(&mut self, pid: u32) {
        let Some(at) = self.jobs.iter().position(|pending| pending.job.pid == pid) else { return };
        let Pending { job, status, then } = self.jobs.swap_remove(at);
        let outcome =
            job.outcome(status).map_err(|error| SandboxError::Kernel("the worker", error));
        match then {
            Then::Answer(connection, signature) => {
                let answer = outcome
                    .map_err(|error| error.to_string())
                    .and_then(|outcome| control::call_answer(&outcome, &signature));
                self.tell(Answer::new(connection, answer));
            }
            Then::Load(loading, connection) => {
                let result = self.sandbox.finish_load(*loading, outcome);
                match connection {
                    Some(connection) => {
                        let result = result
                            .map(|index| control::load_answer(&self.sandbox.loaded[index]))
                            .map_err(|error| error.to_string());
                        self.tell(Answer::new(connection, result));
                    }
                    None => self.loaded = Some(result.map(|_| ())),
                }
            }
        }
        self.sandbox.sweep(pid, status.unwrap_or(0));
        self.look_now();
    }

    fn notified(&mut self, index: usize) -> Option<End> {
        if self.follower.take(&self.listeners[index]) {
            // The next one may come at once, and the first child's end with it.
            let Listener { fd, ear, .. } = &mut self.listeners[index];
            if let Err(error) = ear.open(fd.as_fd()) {
                self.say(format!("signals may interrupt forks: {error}"));
            }
        }
        let (watched, listener) = (&self.watched, &self.listeners[index]);
        let common = self.sandbox.common();
        let events = self.follower.answer_it(listener, common, |pid| watched.contains_key(&pid));
        self.note(events);
        self.reap_stops()
    }

    /// Answer what ears have taken.
    fn answer_taken(&mut self) {
        for index in 0..self.listeners.len() {
            let (watched, listener) = (&self.watched, &self.listeners[index]);
            let (common, participant) =
                (self.sandbox.common(), |pid: u32| watched.contains_key(&pid));
            let events = self.follower.answer_taken(listener, common, participant);
            self.note(events);
        }
    }

    /// Answer those that have waited for another thread's exec.
    fn answer_deferred(&mut self) {
        let (watched, common) = (&self.watched, self.sandbox.common());
        let participant = |pid: u32| watched.contains_key(&pid);
        let events = self.follower.answer_deferred(&self.listeners, common, participant);
        self.note(events);
    }

    /// The ears of this copy are another process's children, and end with that.
    pub fn forget_ears(&mut self) {
        self.listeners.iter_mut().for_each(|listener| listener.ear.forget());
    }

    fn note(&mut self, events: Vec<Followed>) {
        for event in events {
            match event {
                Followed::Started(Started { pid, fd, how, parent }) => {
                    let known = self.watched.insert(pid, fd).is_some();
                    self.sandbox.spaces.learn(pid);
                    let what = if known { Hook::Exec } else { how };
                    self.sandbox.tell_of(Happened::started(what, pid, parent));
                }
                // Nobody may send it the signal by which libos is told of things.
                Followed::Outside(pid) => self.sandbox.sweep(pid, UNKNOWN),
                Followed::Note(text) => {
                    eprintln!("sbx: {text}");
                    self.say(text);
                }
            }
        }
    }

    /// For the sandbox's log.
    fn say(&self, text: String) {
        self.sandbox.common().log().append(format!("sbx: {text}\n").as_bytes());
    }

    fn ended(&mut self, pid: u32) {
        let fd = self.watched.remove(&pid);
        if self.net.is_worker(pid) {
            return self.net_worker_ended(pid, UNKNOWN);
        }
        self.sandbox.sweep(pid, fd.and_then(|fd| exit_code(fd.as_fd(), pid)).unwrap_or(UNKNOWN));
        self.look_now();
    }

    fn reap(&mut self) -> Option<End> {
        let mut info = [0u8; 128];
        let (mut rung, mut asked) = (false, None);
        // SAFETY: the kernel writes at most 128 bytes of signal information.
        while unsafe { libc::read(self.children.as_raw_fd(), info.as_mut_ptr().cast(), 128) } > 0 {
            let signal = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            rung |= signal == DOORBELL;
            // Sent to the launcher, meant for the command. What a terminal sends has reached the
            // command already: it is in the same group.
            if signal == libc::SIGTERM || signal == libc::SIGHUP {
                match self.command {
                    // SAFETY: our own child, not reaped yet.
                    Some(command) => drop(unsafe { libc::kill(command, signal) }),
                    None => asked = Some(End::Asked),
                }
            }
        }
        if rung {
            self.look_now();
        }
        self.reap_stops().or(asked)
    }

    fn reap_stops(&mut self) -> Option<End> {
        let mut end = None;
        loop {
            let mut status = 0;
            let options = libc::__WALL | libc::WNOHANG | libc::WUNTRACED;
            // SAFETY: any child or tracee of ours.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, options) };
            if pid <= 0 {
                return end;
            }
            if self.keeper() == Some(pid) {
                // Somebody killed it; it is reaped, and the next one is made at the turn's end.
                std::mem::forget(self.keeper.take());
                continue;
            }
            if self.net.is_worker(pid as u32) {
                if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                    self.net_worker_ended(pid as u32, status);
                }
                continue;
            }
            let has_ear = |listener: &&mut Listener| listener.ear.pid() == Some(pid);
            if let Some(listener) = self.listeners.iter_mut().find(has_ear) {
                if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                    listener.ear.forget();
                }
                continue;
            }
            if self.hooks.is_server(pid as u32) {
                if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                    self.hooks.forget_server();
                    self.sandbox.sweep(pid as u32, status);
                }
                continue;
            }
            if let Some(pending) = self.jobs.iter_mut().find(|known| known.job.pid == pid as u32) {
                if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                    pending.status = Some(status);
                }
                continue;
            }
            if self.watchdog.stopped(&self.sandbox, pid, status) {
                continue;
            }
            let mut events = Vec::new();
            let traced = self.follower.stopped(pid, status, &mut events);
            self.note(events);
            if Some(pid) != self.command {
                continue;
            }
            if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                self.command = None;
                self.ended(pid as u32);
                end = Some(End::Command(status));
            } else if is_job_control(status) && !traced {
                // The command was stopped by job control: so is its launcher.
                // SAFETY: stops ourselves until the shell continues the group.
                unsafe { libc::raise(libc::SIGSTOP) };
            }
        }
    }

    fn net_worker_ended(&mut self, pid: u32, status: i32) {
        self.net.forget_worker();
        self.sandbox.sweep(pid, status);
        self.say(format!("the network's worker, pid {pid}, has ended; another is made"));
    }

    /// The network's side of it.
    #[must_use]
    pub const fn net(&self) -> &Net {
        &self.net
    }

    fn answer(&mut self) -> Option<End> {
        let request = self.server.as_ref()?.accept().ok()?;
        control::answer(self, request)
    }

    /// Write the state of all extensions to `file`.
    ///
    /// # Errors
    /// As [`Sandbox::snapshot`].
    pub fn snapshot(&mut self, file: &Path) -> Result<usize, SandboxError> {
        let start = Instant::now();
        loop {
            let is_over = |pid: u32| self.watched.get(&pid).is_some_and(has_ended);
            match self.sandbox.snapshot(file, is_over) {
                // What it held is taken back first, and its extension restarted if it must be.
                Err(SandboxError::Ended(pid)) if start.elapsed() < SNAPSHOT_PATIENCE => {
                    self.ended(pid);
                }
                result => return result,
            }
        }
    }

    /// Watch a process that attached by itself.
    pub fn watch(&mut self, pid: u32) {
        if let Some(fd) = pidfd(pid) {
            let is_known = self.watched.insert(pid, fd).is_some();
            self.sandbox.spaces.learn(pid);
            if !is_known {
                self.sandbox.tell_of(Happened::started(Hook::Start, pid, 0));
            }
        }
    }

    /// True if `pid` takes part.
    #[must_use]
    pub fn is_participant(&self, pid: u32) -> bool {
        self.watched.contains_key(&pid)
    }
}

/// Status of a process that has ended, as `waitpid` gives it, whether its parent has waited for it or
/// not.
fn exit_code(fd: BorrowedFd<'_>, pid: u32) -> Option<i32> {
    /// `struct pidfd_info`, its first version; `mask` says what the kernel has filled in.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        status: i32,
    }
    const STATUS: u64 = 1 << 3;
    const GET_INFO: u64 = 3 << 30 | (size_of::<Info>() as u64) << 16 | 0xff << 8 | 11;
    let zombie = || {
        let text = about(format_args!("{pid}/stat"))?;
        let (_, rest) = text.rsplit_once(") ")?;
        rest.starts_with(['Z', 'X']).then(|| rest.split_whitespace().last()?.parse().ok()).flatten()
    };
    // The kernel says it once it has been waited for, which may be happening now.
    let reaped = || {
        let mut info = Info { mask: STATUS, ..Info::default() };
        // SAFETY: the kernel reads and writes a structure of this size; older ones refuse.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), GET_INFO, &raw mut info) };
        (done == 0 && info.mask & STATUS != 0).then_some(info.status)
    };
    (0..100).find_map(|_| zombie().or_else(reaped))
}

/// A descriptor that tells of children and of what is sent to the launcher.
fn child_signals() -> std::io::Result<OwnedFd> {
    // SAFETY: a set is plain bits.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    let ours = [libc::SIGCHLD, libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, DOORBELL];
    for signal in ours {
        // SAFETY: a set of ours.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // SAFETY: blocks signals of this thread only.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    // SAFETY: makes a new descriptor for the set.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Indices of the descriptors that have something, and what.
fn poll(polled: &mut [libc::pollfd], timeout: Option<Duration>) -> Vec<(usize, i16)> {
    let timeout = timeout.map(|left| libc::timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: i64::from(left.subsec_nanos()),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: an array of this many entries, a time or none, and no signal mask.
    unsafe { libc::ppoll(polled.as_mut_ptr(), polled.len() as u64, timeout, std::ptr::null()) };
    polled
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.revents != 0)
        .map(|(index, entry)| (index, entry.revents))
        .collect()
}
