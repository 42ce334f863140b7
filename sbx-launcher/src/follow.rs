//! Following execs and forks: how a new program becomes a participant before it runs.
//!
//! ```text
//!  program            kernel                    supervisor
//!  execve ──────────► notification ───────────► seize, hand over 3 descriptors, "continue"
//!                     exec stop ──────────────► map libos's code, point rip at its exec stub
//!  exec stub: maps the zones, joins, jumps to the program's entry        (detached already)
//! ```
//!
//! A fork is the same with the child's first stop, where nothing needs mapping. A task that is
//! traced already (by a debugger) cannot be seized: it goes on as it is, outside of the sandbox's
//! extensions but under its filter.
#![expect(unsafe_code, reason = "seccomp notifications")]

pub mod inject;

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ext_api::abi::Entry;
use libos::data::{Common, Process};
use libos::layout::Place;
use libos::manifest::Hook;
use libos::signals::STOP;

use crate::about::about;
use crate::ear::Ear;
use crate::failpoint::{Point, pass, pass_with};
use crate::filter::Armed;
use crate::follow::inject::{Given, Injector};
use crate::hand::{Found, Hand};
use crate::memory;
use crate::one_cpu::OneCpu;
use crate::signals::{self, Answer};
use crate::slot_zero::SlotZero;
use crate::spaces;
use crate::tracee::{self, event_message, let_go, registers, to_system_call};

/// How long a seized exec may take before it is looked at again: it may have failed.
const PATIENCE: Duration = Duration::from_millis(100);

/// The code segment of a 64-bit program.
const USER_CODE_64: u64 = 0x33;

/// What is to stop a task that executes a program, and one that forks.
const EXEC_OPTIONS: i32 = libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACESYSGOOD;
const FORK_OPTIONS: i32 =
    libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEVFORK;

/// What a seized task is about to do.
#[derive(Debug)]
enum Expected {
    /// Exec, with these descriptors of the zones in its table. It may have been begun with by a supervisor
    /// that died.
    Exec { process: u32, fds: [i32; 3], armed: u64, since: Instant, is_found: bool },
    /// Fork.
    Fork { since: Instant, participant: bool },
    /// Its first stop as a forked child.
    Child,
}

/// What happened that the supervisor should know.
#[derive(Debug)]
pub enum Followed {
    /// A process is, or soon will be, a participant, by an exec or a fork: watch it.
    Started(Started),
    /// A participant executes a program that runs outside of the sandbox's extensions.
    Outside(u32),
    /// Something that an operator wants to read.
    Note(String),
}

/// A process that was stopped when this was found out: once it runs it may be gone before anybody looks.
#[derive(Debug)]
pub struct Started {
    /// It.
    pub pid: u32,
    /// Its pidfd.
    pub fd: OwnedFd,
    /// By what.
    pub how: Hook,
    /// Who has forked it; 0 if nobody has.
    pub parent: u64,
}

/// Where the notifications of a launched command come from.
#[derive(Debug)]
pub struct Listener {
    /// The kernel's descriptor.
    pub fd: OwnedFd,
    /// What is hooked in the command and what it starts.
    pub armed: Armed,
    /// Who takes the notifications of a command that forks.
    pub ear: Ear,
}

impl Listener {
    /// A listener that the supervisor listens to itself.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(fd: OwnedFd, armed: Armed) -> io::Result<Self> {
        Ok(Self { fd, armed, ear: Ear::new()? })
    }
}

/// The tasks that are seized at the moment.
#[derive(Debug)]
pub struct Follower {
    injector: Injector,
    seized: HashMap<i32, Expected>,
    /// Children whose first stop came before their parent's event.
    early: Vec<i32>,
    /// The command that shares this process's only CPU until it has joined.
    launched: Option<(i32, OneCpu)>,
    /// Is there a keeper to finish what is begun here?
    pub is_kept: bool,
}

impl Follower {
    /// A follower that injects the libos with these entry points.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(entry: Entry, place: Place, fds: [i32; 3]) -> io::Result<Self> {
        let lent_call = SlotZero::at(place).symbol("sbx_lent_call");
        let injector = Injector { entry, lent_call, place, fds, hand: Hand::new()? };
        let (seized, early) = (HashMap::new(), Vec::new());
        Ok(Self { injector, seized, early, launched: None, is_kept: false })
    }

    /// How a task that executes a program is traced. One that waits to be let in, by whoever follows, would wait
    /// for ever if nobody does: it ends with this process then.
    const fn exec_options(&self) -> i32 {
        EXEC_OPTIONS | if self.is_kept { 0 } else { libc::PTRACE_O_EXITKILL }
    }

    /// What is in hand.
    #[must_use]
    pub const fn hand(&self) -> &Hand {
        &self.injector.hand
    }

    /// The supervisor whose copy this is has died: finish what it had in hand.
    pub fn take_over(
        &mut self,
        listeners: &[Listener],
        common: Common,
        participant: impl Fn(u32) -> bool,
    ) -> Vec<Followed> {
        let mut events = Vec::new();
        // What it traced has been let go.
        self.seized.clear();
        self.early.clear();
        pass(Point::TakingOver);
        for found in self.hand().found() {
            let Found { tid, fds, armed, .. } = found;
            let process = thread_group(tid).unwrap_or(tid as u32);
            if tracee::seize(tid, self.exec_options()).is_err() {
                // It has ended, or is a debugger's.
                self.hand().end(tid);
                continue;
            }
            let (since, is_found) = (Instant::now(), true);
            self.seized.insert(tid, Expected::Exec { process, fds, armed, since, is_found });
            let _ = tracee::interrupt(tid);
        }
        pass(Point::TakenOver);
        if let Some(request) = self.hand().request() {
            // The number is good for the filter that it came from, and for no other.
            let from = listeners.iter().find(|listener| valid(listener.fd.as_fd(), request.id));
            if let Some(from) = from {
                events = self.answer(from, common, request, &participant);
            }
        }
        for listener in listeners {
            events.extend(self.answer_taken(listener, common, &participant));
        }
        events.extend(self.answer_deferred(listeners, common, participant));
        events
    }

    /// Answer what an ear has taken.
    pub fn answer_taken(
        &mut self,
        listener: &Listener,
        common: Common,
        participant: impl Fn(u32) -> bool,
    ) -> Vec<Followed> {
        let mut events = Vec::new();
        listener.ear.hush();
        while let Some(request) = listener.ear.first() {
            self.hand().answer(request.id);
            events.extend(self.answer(listener, common, request, &participant));
            listener.ear.answered();
        }
        events
    }

    /// True while a stop is expected, so that the caller should look again soon.
    #[must_use]
    pub fn busy(&self) -> bool {
        !self.seized.is_empty()
    }

    /// Take one notification of `listener`. True: it is of a fork.
    pub fn take(&self, listener: &Listener) -> bool {
        receive(listener.fd.as_fd(), self.hand().empty());
        let number = self.hand().request().map(|request| i64::from(request.data.nr));
        matches!(number, Some(libc::SYS_clone | libc::SYS_fork))
    }

    /// Answer the notification of `listener` that was taken, if any. `participant` says whether a pid is
    /// one.
    pub fn answer_it(
        &mut self,
        listener: &Listener,
        common: Common,
        participant: impl Fn(u32) -> bool,
    ) -> Vec<Followed> {
        let request = self.hand().request();
        request.map_or_else(Vec::new, |it| self.answer(listener, common, it, participant))
    }

    fn answer(
        &mut self,
        from: &Listener,
        common: Common,
        request: libc::seccomp_notif,
        participant: impl Fn(u32) -> bool,
    ) -> Vec<Followed> {
        let listener = from.fd.as_fd();
        let mut events = Vec::new();
        let tid = request.pid as i32;
        let number = i64::from(request.data.nr);
        if number == libc::SYS_rt_sigaction || number == libc::SYS_sigaltstack {
            self.answer_signals(from, common, &request);
            return events;
        }
        let is_exec = number == libc::SYS_execve || number == libc::SYS_execveat;
        let process = thread_group(tid).unwrap_or(request.pid);
        let still_there = || valid(listener, request.id);
        if is_exec && number == libc::SYS_execve && !executable(tid, request.data.args[0]) {
            resume(listener, request.id);
            return events;
        }
        pass_with(if is_exec { Point::ExecNotified } else { Point::ForkNotified }, tid, 0);
        if !is_exec {
            note_fork(common, process);
        } else if !participant(process) {
            // A child of vfork, of which nobody was told: its parent waits until it has executed this.
            note_fork(common, parent_of(process as i32) as u32);
        }
        // A signal came in the middle of a fork, which begins anew; or a supervisor died that had begun
        // to answer. Only if it still is traced: another may have the number of one that has ended.
        let is_known = match self.seized.get(&tid) {
            Some(Expected::Fork { .. }) => !is_exec,
            Some(Expected::Exec { .. }) => is_exec,
            _ => false,
        };
        if !is_known && self.is_overtaken(tid, process) {
            if self.hand().defer(request) {
                return events;
            }
            events
                .push(Followed::Note(format!("pid {process}: too many threads wait for an exec")));
        }
        let options = if is_exec { self.exec_options() } else { FORK_OPTIONS };
        if still_there() && tracee::seize(tid, options).is_ok() {
            if is_exec {
                pass_with(Point::ExecSeized, tid, 0);
                match [0, 1, 2].map(|which| self.hand_over(listener, request.id, which)) {
                    [Some(a), Some(b), Some(c)] => {
                        self.begin_exec(tid, process, [a, b, c], from.armed);
                        // If it fails, it stops before the program can tell: fork, or open a file. If not, it
                        // stops at the exec, and for no other reason.
                        let _ = tracee::interrupt(tid);
                    }
                    // It has been killed.
                    _ if !still_there() => {}
                    _ => events.push(Followed::Note(format!(
                        "pid {process}: its descriptor table is full; it runs outside of the \
                         sandbox"
                    ))),
                }
            } else {
                pass_with(Point::ForkSeized, tid, 0);
                let (since, participant) = (Instant::now(), participant(process));
                self.seized.insert(tid, Expected::Fork { since, participant });
            }
        } else if !is_known && still_there() {
            let why = if is_traced(tid) {
                "is traced by another process"
            } else {
                "lets nobody trace it (PR_SET_DUMPABLE) who is not privileged"
            };
            events.push(Followed::Note(format!(
                "pid {process} {why}; its next program is not injected"
            )));
        }
        resume(listener, request.id);
        pass(if is_exec { Point::ExecAnswered } else { Point::ForkAnswered });
        events
    }

    /// Is another thread of `process` than `tid` on its way to a program of its own? If it comes there, all others end. Those that
    /// call us meanwhile wait, as the kernel would have them: it takes who traces one of the others to reap it before the
    /// exec goes on, and lets nobody trace one until it has.
    fn is_overtaken(&self, tid: i32, process: u32) -> bool {
        self.seized.iter().any(|(&other, expected)| match expected {
            Expected::Exec { process: of, .. } => other != tid && *of == process,
            Expected::Fork { .. } | Expected::Child => false,
        })
    }

    /// Answer those that have waited for another thread's exec, which has failed, and forget those that have ended.
    pub fn answer_deferred(
        &mut self,
        listeners: &[Listener],
        common: Common,
        participant: impl Fn(u32) -> bool,
    ) -> Vec<Followed> {
        let mut events = Vec::new();
        for request in self.hand().deferred() {
            let from = listeners.iter().find(|listener| valid(listener.fd.as_fd(), request.id));
            let tid = request.pid as i32;
            let process = thread_group(tid).unwrap_or(request.pid);
            if from.is_some() && self.is_overtaken(tid, process) {
                continue;
            }
            if let Some(from) = from {
                self.hand().answer(request.id);
                events.extend(self.answer(from, common, request, &participant));
            }
            self.hand().end_deferred(request.id);
        }
        events
    }

    /// A task that is about to execute a program has what it is let in with.
    fn begin_exec(&mut self, tid: i32, process: u32, fds: [i32; 3], armed: Armed) {
        let armed = armed.at_join();
        self.hand().begin(tid, fds, armed);
        pass_with(Point::ExecNoted, tid, 0);
        let (since, is_found) = (Instant::now(), false);
        self.seized.insert(tid, Expected::Exec { process, fds, armed, since, is_found });
    }

    /// Trace a child of ours that waits to execute a program, with the zones' descriptors as we have them.
    ///
    /// # Errors
    /// Another process traces it.
    pub fn expect_exec(&mut self, pid: i32, armed: Armed) -> io::Result<()> {
        tracee::seize(pid, self.exec_options())?;
        self.begin_exec(pid, pid as u32, self.injector.fds, armed);
        Ok(())
    }

    /// Command `pid` shares our only CPU until it has joined, or ended.
    pub fn share_cpu(&mut self, pid: i32, cpu: OneCpu) {
        self.launched = Some((pid, cpu));
    }

    /// Does a command share our only CPU?
    #[must_use]
    pub const fn shares_cpu(&self) -> bool {
        self.launched.is_some()
    }

    /// A task has joined, or ended.
    fn launch_is_over(&mut self, pid: i32) {
        if let Some((_, cpu)) = self.launched.take_if(|(command, _)| *command == pid) {
            cpu.release(Some(pid));
        }
    }

    /// Put a copy of the descriptor of a zone into the notifying task; its number there.
    fn hand_over(&self, listener: BorrowedFd<'_>, id: u64, which: usize) -> Option<i32> {
        if let Some(given) = self.hand().given(which) {
            return Some(given);
        }
        let fd = hand_over(listener, id, self.injector.fds[which])?;
        self.hand().give(which, fd);
        pass(Point::ExecGiven);
        Some(fd)
    }

    /// Answer a call about the signals that libos handles.
    fn answer_signals(&self, from: &Listener, common: Common, request: &libc::seccomp_notif) {
        let listener = from.fd.as_fd();
        let tid = request.pid as i32;
        let ids = [tid, thread_group(tid).map_or(tid, |pid| pid as i32)];
        let [a, b, c, d, ..] = request.data.args;
        let answer = if !valid(listener, request.id) {
            return;
        } else if i64::from(request.data.nr) == libc::SYS_sigaltstack {
            signals::sigaltstack(common, ids, [a, b])
        } else {
            signals::sigaction(self.injector.place, ids, [a, b, c, d])
        };
        match answer {
            Answer::Continue => resume(listener, request.id),
            Answer::Done => respond(listener, request.id, 0),
            Answer::Failed(errno) => respond(listener, request.id, errno),
        }
    }

    /// Handle one status of `waitpid`. False: the task is none of ours.
    pub fn stopped(&mut self, pid: i32, status: i32, events: &mut Vec<Followed>) -> bool {
        let event = status >> 16;
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            self.hand().end(pid);
            self.launch_is_over(pid);
            return self.seized.remove(&pid).is_some();
        }
        if !libc::WIFSTOPPED(status) {
            return false;
        }
        match event {
            libc::PTRACE_EVENT_EXEC => self.exec_stop(pid, events),
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                self.fork_stop(pid, events);
            }
            libc::PTRACE_EVENT_STOP => self.first_stop(pid, events),
            _ if self.seized.contains_key(&pid) => {
                let _ = tracee::go_on(pid, libc::WSTOPSIG(status));
            }
            _ => return false,
        }
        true
    }

    fn exec_stop(&mut self, pid: i32, events: &mut Vec<Followed>) {
        // If another thread called exec, the task has the leader's number now.
        let former = event_message(pid).map_or(pid, |tid| tid as i32);
        let expected = self.seized.remove(&former);
        // Nobody says that the leader has ended.
        self.seized.remove(&pid);
        let Some(Expected::Exec { fds, armed, .. }) = expected else {
            let _ = let_go(pid, 0);
            self.launch_is_over(pid);
            return;
        };
        pass_with(Point::ExecStopped, pid, 0);
        start_watch(pid, Hook::Start, events);
        self.hand().rename(former, pid);
        let given = Given { fds, armed };
        if let Err(error) = self.let_in(pid, given) {
            events.push(Followed::Outside(pid as u32));
            events.push(Followed::Note(format!("pid {pid} could not join the sandbox: {error}")));
        }
        self.launch_is_over(pid);
        pass(Point::JoinLeft);
        self.hand().end(pid);
    }

    /// Have a task that has stopped at its new program join. What the sandbox says to the process that it was by a signal
    /// waits until libos has a handler for that, which unblocks it.
    fn let_in(&self, pid: i32, given: Given) -> io::Result<()> {
        let mask = tracee::mask(pid)?;
        tracee::set_mask(pid, mask | 1 << (STOP - 1))?;
        // Out of execve, whose result would go over the registers that we set.
        let regs = to_system_call(pid).and_then(|_| registers(pid))?;
        if regs.cs != USER_CODE_64 {
            tracee::set_mask(pid, mask)?;
            return let_go(pid, 0).and(Err(io::Error::other("it is not a 64-bit program")));
        }
        self.injector.let_in(pid, regs, given)
    }

    fn fork_stop(&mut self, pid: i32, events: &mut Vec<Followed>) {
        let expected = self.seized.remove(&pid);
        let child = event_message(pid).map(|child| child as i32);
        let (Some(child), Some(Expected::Fork { participant, .. })) = (child, expected) else {
            let _ = let_go(pid, 0);
            return;
        };
        pass_with(Point::ForkStopped, child, 0);
        if participant {
            start_watch(child, Hook::Fork, events);
            self.seized.insert(child, Expected::Child);
        }
        // Not before the child is watched: its parent may kill and reap it.
        let _ = let_go(pid, 0);
        let early = self.early.iter().position(|&early| early == child);
        if !participant {
            self.seized.insert(child, Expected::Fork { since: Instant::now(), participant });
        }
        if let Some(at) = early {
            self.early.swap_remove(at);
            self.first_stop(child, events);
        }
    }

    /// A stop without an event: a child's first, or one that we asked for.
    fn first_stop(&mut self, pid: i32, events: &mut Vec<Followed>) {
        match self.seized.remove(&pid) {
            Some(Expected::Child) => {
                pass_with(Point::ChildStopped, pid, 0);
                if self.injector.start_child(pid).is_err() {
                    let _ = let_go(pid, 0);
                }
            }
            Some(Expected::Exec { is_found: true, .. }) => {
                let found = self.hand().found().into_iter().find(|found| found.tid == pid);
                found.into_iter().for_each(|found| self.let_in_late(found, events));
            }
            Some(Expected::Exec { fds, .. }) => {
                let _ = self.injector.take_back(pid, fds);
                self.hand().end(pid);
                let _ = let_go(pid, 0);
                self.launch_is_over(pid);
            }
            Some(Expected::Fork { .. }) => {
                let _ = let_go(pid, 0);
            }
            None => self.early.push(pid),
        }
    }

    /// The supervisor died while this task was executing a program: finish what it had begun.
    fn let_in_late(&self, found: Found, events: &mut Vec<Followed>) {
        let pid = found.tid;
        let result = self.injector.finish(found);
        let _ = let_go(pid, 0);
        self.hand().end(pid);
        let is_inside = match result {
            Ok(is_inside) => is_inside,
            // It has ended, or could not be let in.
            Err(error) => {
                let why = format!("pid {pid} could not join the sandbox: {error}");
                return events.push(Followed::Note(why));
            }
        };
        if !is_inside {
            events.push(Followed::Outside(pid as u32));
            events.push(Followed::Note(format!(
                "pid {pid} runs outside of the sandbox's extensions: it was executing a program \
                 when the supervisor died"
            )));
        }
    }

    /// Interrupt what has been expected for too long: the exec or fork failed.
    pub fn look_after_late(&mut self) {
        for (&pid, expected) in &mut self.seized {
            let (Expected::Exec { since, .. } | Expected::Fork { since, .. }) = expected else {
                continue;
            };
            if since.elapsed() > PATIENCE {
                *since = Instant::now();
                let _ = tracee::interrupt(pid);
            }
        }
    }
}

/// Watch a process that is stopped by us, so that it cannot be gone.
fn start_watch(pid: i32, how: Hook, events: &mut Vec<Followed>) {
    let parent = if how == Hook::Fork { parent_of(pid) } else { 0 };
    events.push(match pidfd(pid as u32) {
        Some(fd) => Followed::Started(Started { pid: pid as u32, fd, how, parent }),
        None => Followed::Note(format!(
            "pid {pid} cannot be watched ({}); what it holds when it ends is not taken back",
            io::Error::last_os_error()
        )),
    });
}

/// Pid of the parent of a process that is stopped by us.
fn parent_of(pid: i32) -> u64 {
    let text = about(format_args!("{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Have the process know, by the time that its fork is done, that another may have its descriptors.
fn note_fork(common: Common, pid: u32) {
    let named = spaces::named(pid);
    let is_its = |process: &&Process| {
        let space = process.pid_space.load(Ordering::Acquire);
        process.claim.load().pid == named.pid && [0, named.space].contains(&space)
    };
    let rows = common.rows().map(|row| common.process(row));
    for process in rows.filter(is_its) {
        process.forks.fetch_add(1, Ordering::AcqRel);
    }
}

/// May there be a file that exec would take? One that fails need not be followed. Where it cannot be told, as of a process
/// that lets nobody look, there may be.
fn executable(tid: i32, address: u64) -> bool {
    let path = match read_text(tid, address) {
        Ok(path) => path,
        Err(error) => return error.raw_os_error() == Some(libc::EPERM),
    };
    let root: &[u8] = if path.starts_with(b"/") { b"root" } else { b"cwd" };
    let path = [format!("/proc/{tid}/").as_bytes(), root, b"/", &path].concat();
    let Ok(path) = CString::new(path) else { return false };
    // SAFETY: the path ends with a zero.
    let is_there = unsafe { libc::access(path.as_ptr(), libc::F_OK) == 0 };
    is_there || io::Error::last_os_error().raw_os_error() == Some(libc::EACCES)
}

fn read_text(tid: i32, address: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut at = address;
    while text.len() < 4096 {
        // Page by page: what follows the text may not be mapped.
        let mut piece = [0u8; 256];
        let len = piece.len().min(4096 - (at as usize & 4095));
        memory::read(tid, at, &mut piece[..len])?;
        let got = &piece[..len];
        if let Some(end) = got.iter().position(|&byte| byte == 0) {
            text.extend_from_slice(&got[..end]);
            return Ok(text);
        }
        text.extend_from_slice(got);
        at += got.len() as u64;
    }
    Err(io::ErrorKind::InvalidFilename.into())
}

/// Process that a thread belongs to.
fn thread_group(tid: i32) -> Option<u32> {
    // Only a process can be opened so: mostly it is the one thread of its process, and to have the
    // kernel write out its status takes ten times as long.
    if pidfd(tid as u32).is_some() {
        return Some(tid as u32);
    }
    status_of(tid, "Tgid:")
}

fn is_traced(tid: i32) -> bool {
    status_of(tid, "TracerPid:").is_some_and(|tracer| tracer != 0)
}

/// A number of a task's status.
fn status_of(tid: i32, what: &str) -> Option<u32> {
    let status = about(format_args!("{tid}/status"))?;
    status.lines().find_map(|line| line.strip_prefix(what)?.trim().parse().ok())
}

/// A descriptor that becomes readable when the process ends.
#[must_use]
pub fn pidfd(pid: u32) -> Option<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: the kernel just made it for us.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Has the process of a [`pidfd`] ended?
#[must_use]
pub fn has_ended(fd: &OwnedFd) -> bool {
    let mut polled = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, and no waiting.
    unsafe { libc::poll(&raw mut polled, 1, 0) == 1 }
}

const fn ioctl_number(direction: u64, number: u64, len: usize) -> u64 {
    direction << 30 | (len as u64) << 16 | (b'!' as u64) << 8 | number
}

/// Have notifications of `listener` wake the supervisor on the notifier's own CPU: they take turns,
/// and waking an idle CPU costs more than all the rest. Kernels before 6.6 do without.
pub fn take_turns(listener: BorrowedFd<'_>) {
    const SET_FLAGS: u64 = ioctl_number(1, 4, 8);
    const SYNC_WAKE_UP: u64 = 1;
    // SAFETY: takes numbers only.
    let _ = unsafe { libc::ioctl(listener.as_raw_fd(), SET_FLAGS as _, SYNC_WAKE_UP) };
}

/// Have the kernel write the next notification to `into`, which is made zero first and stays so if
/// there is none. True: there was one.
pub fn receive(listener: BorrowedFd<'_>, into: &mut libc::seccomp_notif) -> bool {
    const RECEIVE: u64 = ioctl_number(3, 0, size_of::<libc::seccomp_notif>());
    // SAFETY: plain numbers.
    *into = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which is the caller's.
    unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, std::ptr::from_mut(into)) == 0 }
}

fn valid(listener: BorrowedFd<'_>, id: u64) -> bool {
    const VALID: u64 = ioctl_number(1, 2, 8);
    // SAFETY: the kernel reads eight bytes.
    unsafe { libc::ioctl(listener.as_raw_fd(), VALID as _, &raw const id) == 0 }
}

/// Let the notified call go on.
fn resume(listener: BorrowedFd<'_>, id: u64) {
    const CONTINUE: u32 = 1;
    send(listener, libc::seccomp_notif_resp { id, val: 0, error: 0, flags: CONTINUE });
}

/// Have the notified call return 0, or fail with `errno`.
fn respond(listener: BorrowedFd<'_>, id: u64, errno: i32) {
    send(listener, libc::seccomp_notif_resp { id, val: 0, error: -errno, flags: 0 });
}

fn send(listener: BorrowedFd<'_>, response: libc::seccomp_notif_resp) {
    const SEND: u64 = ioctl_number(3, 1, size_of::<libc::seccomp_notif_resp>());
    // SAFETY: the kernel reads the structure. If the task is gone there is nobody to tell.
    let _ = unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw const response) };
}

/// Put a copy of our descriptor into the notifying task; its number there.
fn hand_over(listener: BorrowedFd<'_>, id: u64, fd: i32) -> Option<i32> {
    #[repr(C)]
    struct AddFd {
        id: u64,
        flags: u32,
        from: u32,
        to: u32,
        to_flags: u32,
    }
    const ADD: u64 = ioctl_number(1, 3, size_of::<AddFd>());
    let add = AddFd { id, flags: 0, from: fd as u32, to: 0, to_flags: 0 };
    // SAFETY: the kernel reads the structure.
    let got = unsafe { libc::ioctl(listener.as_raw_fd(), ADD as _, &raw const add) };
    (got >= 0).then_some(got)
}
