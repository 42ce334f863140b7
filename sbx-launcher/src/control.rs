//! The control socket of a named sandbox: one request and one answer per connection, as JSON.
//!
//! It lies in a directory that only its owner can enter. A peer of another user is refused; a
//! participant may ask, but not change anything.
#![expect(unsafe_code, reason = "passes descriptors")]

mod extensions;
mod request;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ext_api::abi::NO_EVENT;
use ext_api::limits::NAME_LEN_MAX;
use libos::data::{Context, Joined, Tally};
use libos::manifest::Port;
use netio::listen;
use serde_json::{Value, json};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::follow::Listener;
use crate::sandbox::Sandbox;
use crate::sandbox::extensions::Loaded;
use crate::sandbox::ports::Whose;
use crate::sandbox::{event_words, status_text};
use crate::supervisor::{End, Supervisor};
use crate::worker::{Job, Outcome};

pub use request::Request;

/// Longest request. A longer answer comes as a file.
const MESSAGE_LEN_MAX: usize = 128 << 10;
/// What is sent with the file that has the answer.
const IN_FILE: &str = "in-file";

/// A request that has been received.
#[derive(Debug)]
pub struct Received {
    connection: OwnedFd,
    request: Result<Request, String>,
    fd: Option<OwnedFd>,
    pid: u32,
}

/// The listening socket of a named sandbox; its directory goes with it.
#[derive(Debug)]
pub struct Server {
    fd: OwnedFd,
    directory: PathBuf,
    owner: u32,
}

/// Where this user's sandboxes are.
///
/// # Errors
/// The directory is not ours alone.
pub fn runtime_dir() -> io::Result<PathBuf> {
    // SAFETY: takes nothing.
    let uid = unsafe { libc::getuid() };
    let per_user = PathBuf::from(format!("/run/user/{uid}"));
    let dir = match uid {
        0 => PathBuf::from("/run/sbx"),
        _ if per_user.is_dir() => per_user.join("sbx"),
        _ => PathBuf::from(format!("/tmp/sbx-{uid}")),
    };
    make_private(&dir, uid)?;
    Ok(dir)
}

fn make_private(dir: &Path, uid: u32) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let named = |error: io::Error| {
        let why = format!("{}, where sandboxes with a name are found: {error}", dir.display());
        io::Error::new(error.kind(), why)
    };
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(named(error)),
        _ => {}
    }
    let found = std::fs::symlink_metadata(dir).map_err(named)?;
    if !found.is_dir() || found.uid() != uid || found.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!(
            "{} must be a directory of yours that nobody else can enter (mode 0700)",
            dir.display()
        )));
    }
    Ok(())
}

/// A directory that nobody else has locked, until the value is dropped.
fn locked(directory: &Path) -> io::Result<File> {
    let directory = File::open(directory)?;
    directory.lock()?;
    Ok(directory)
}

impl Server {
    /// Claim the name.
    ///
    /// # Errors
    /// `AddrInUse` when a live supervisor has it.
    pub fn bind(name: &str) -> io::Result<Self> {
        let all = runtime_dir()?;
        // Of several that look whether the name is free, one after the other looks and takes it.
        let _one_at_a_time = locked(&all)?;
        let directory = all.join(name);
        // SAFETY: takes nothing.
        make_private(&directory, unsafe { libc::getuid() })?;
        let path = directory.join("control");
        if connect(name).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("a sandbox named {name} exists already (sbx-launcher ls)"),
            ));
        }
        let _ = std::fs::remove_file(&path);
        let fd = socket()?;
        let (address, len) = address(&path)?;
        // SAFETY: an address of this length.
        if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) } != 0
            // SAFETY: takes numbers only.
            || unsafe { libc::listen(fd.as_raw_fd(), 64) } != 0
        {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: takes nothing.
        Ok(Self { fd, directory, owner: unsafe { libc::getuid() } })
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The socket.
    #[must_use]
    pub fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Take one request.
    ///
    /// # Errors
    /// The kernel's; the connection is dropped.
    pub fn accept(&self) -> io::Result<Received> {
        // SAFETY: no address is asked for.
        let fd = unsafe {
            libc::accept4(
                self.fd.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made it for us.
        let connection = unsafe { OwnedFd::from_raw_fd(fd) };
        let peer = peer(&connection)?;
        // A peer that connects and says nothing must not stop the supervisor.
        limit(&connection, libc::SO_RCVTIMEO, 1);
        let (text, mut fds) = receive(&connection)?;
        let request = if peer.uid == self.owner || peer.uid == 0 {
            serde_json::from_str(&text).map_err(|error| format!("bad request: {error}"))
        } else {
            Err(format!("this sandbox belongs to uid {}, you are uid {}", self.owner, peer.uid))
        };
        Ok(Received { connection, request, fd: fds.pop(), pid: peer.pid as u32 })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _one_at_a_time = self.directory.parent().map(locked);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Carry a request out and answer it. Some: the supervisor should end.
pub fn answer(supervisor: &mut Supervisor, mut received: Received) -> Option<End> {
    let mut served = None;
    let changes = matches!(
        received.request,
        Ok(Request::Down
            | Request::Load { .. }
            | Request::Upgrade { .. }
            | Request::Snapshot { .. }
            | Request::Unload { .. }
            | Request::HookCalls { .. }
            | Request::Follow { .. })
    );
    let result = match &received.request {
        Err(why) => Err(why.clone()),
        Ok(_) if changes && supervisor.is_participant(received.pid) => {
            Err("a participant cannot change its own sandbox".to_owned())
        }
        Ok(Request::Load { file, terms }) => {
            match supervisor.sandbox.begin_load(file, terms, Whose::One) {
                Ok((job, loading)) => {
                    supervisor.start_load(job, loading, Some(received.connection));
                    return None;
                }
                Err(error) => Err(error.to_string()),
            }
        }
        Ok(Request::Upgrade { file, config }) => {
            match supervisor.sandbox.begin_upgrade(file, config.clone()) {
                Ok(()) => {
                    supervisor.await_upgrade(received.connection);
                    return None;
                }
                Err(error) => Err(error.to_string()),
            }
        }
        Ok(Request::Call { handler, args }) => match call(supervisor, handler, args) {
            Ok((job, signature)) => {
                supervisor.start_call(job, received.connection, signature);
                return None;
            }
            Err(why) => Err(why),
        },
        Ok(Request::Post { handler, how, target, args }) => {
            match post(supervisor, handler, [*how, *target], args) {
                Ok((job, signature)) => {
                    supervisor.start_call(job, received.connection, signature);
                    return None;
                }
                Err(why) => Err(why),
            }
        }
        Ok(Request::Serve { udp, at }) => {
            let fd = received.fd.take();
            serve_port(&mut supervisor.sandbox, received.pid, (*udp, *at), fd).map(
                |(seat, socket)| {
                    served = socket;
                    json!({ "seat": seat })
                },
            )
        }
        Ok(request) => carry_out(supervisor, request, &received),
    };
    let fds = match (&received.request, &result) {
        (Ok(Request::Serve { .. }), Ok(_)) => served.iter().map(AsRawFd::as_raw_fd).collect(),
        (Ok(Request::Attach), Ok(_)) => supervisor.sandbox.zones.fds().to_vec(),
        _ => Vec::new(),
    };
    let down = matches!(received.request, Ok(Request::Down)) && result.is_ok();
    let answer = Answer { fds, ..Answer::new(received.connection, result) };
    if down {
        supervisor.tell_at_end(answer);
        return Some(End::Asked);
    }
    supervisor.tell(answer);
    None
}

/// A seat at a port, and the port's socket; neither if nobody serves it and no socket came.
fn serve_port(
    sandbox: &mut Sandbox,
    pid: u32,
    (udp, at): (bool, SocketAddr),
    fd: Option<OwnedFd>,
) -> Result<(Option<usize>, Option<Rc<OwnedFd>>), String> {
    let port = if udp { Port::Udp(at.port()) } else { Port::Tcp(at.port()) };
    if let Some(fd) = &fd
        && !listen::is_ready(fd, udp, at)
    {
        let kind = if udp { "a UDP socket" } else { "a listening TCP socket" };
        return Err(format!("what came with the request is not {kind} at {at}"));
    }
    let seat = sandbox.take_seat(pid, port, at, fd).map_err(|error| error.to_string())?;
    Ok(seat.map_or((None, None), |(seat, fd)| (Some(seat), Some(fd))))
}

/// An answer that has not been sent yet: the keeper must know first what it promises.
#[derive(Debug)]
pub struct Answer {
    connection: OwnedFd,
    text: String,
    fds: Vec<RawFd>,
}

impl Answer {
    /// To be sent on `connection`.
    #[must_use]
    pub fn new(connection: OwnedFd, result: Result<Value, String>) -> Self {
        let text = match result {
            Ok(value) => json!({ "ok": value }),
            Err(why) => json!({ "error": why }),
        };
        Self { connection, text: text.to_string(), fds: Vec::new() }
    }

    /// Send it. If the peer has gone there is nobody to tell.
    pub fn send(self) {
        if self.text.len() <= MESSAGE_LEN_MAX / 2 {
            let _ = send(&self.connection, &self.text, &self.fds);
            return;
        }
        // Too long for a message: as a file.
        let file = memfd::MemfdOptions::new().create("sbx-answer").map_err(io::Error::other);
        let sent = file.and_then(|file| {
            file.as_file().write_all_at(self.text.as_bytes(), 0)?;
            send(&self.connection, IN_FILE, &[file.as_file().as_raw_fd()])
        });
        if let Err(error) = sent {
            let text = json!({ "error": format!("handing the answer over: {error}") });
            let _ = send(&self.connection, &text.to_string(), &[]);
        }
    }
}

/// What a `load` is answered.
#[must_use]
pub fn load_answer(loaded: &Loaded) -> Value {
    let slot = loaded.room.map(|room| room.slot);
    let at = loaded.ports.iter().filter_map(|port| Some(format!("{} at {}", port.port, port.at?)));
    let at: Vec<String> = at.collect();
    json!({ "name": loaded.name, "slot": slot, "missing": loaded.missing, "ports": at })
}

fn carry_out(
    supervisor: &mut Supervisor,
    request: &Request,
    received: &Received,
) -> Result<Value, String> {
    let text = |error: crate::sandbox::SandboxError| error.to_string();
    match request {
        Request::Attach => {
            supervisor.watch(received.pid);
            Ok(json!({ "base": supervisor.sandbox.zones.place.base }))
        }
        Request::Follow { armed } => {
            let fd = received.fd.as_ref().ok_or("no descriptor came with the request")?;
            let fd = fd.try_clone().map_err(|error| error.to_string())?;
            let listener = Listener::new(fd, *armed).map_err(|error| error.to_string())?;
            supervisor.add_listener(listener);
            Ok(Value::Null)
        }
        Request::Place => Ok(json!({ "base": supervisor.sandbox.zones.place.base,
                                     "len": supervisor.sandbox.zones.place.len,
                                     "armed": supervisor.sandbox.armed(),
                                     "refused": crate::preload::refused(),
                                     "supervisor": std::process::id(),
                                     "zones_kib": supervisor.sandbox.zones.held_kib() })),
        Request::HookCalls { handler, calls } => {
            supervisor.sandbox.hook_by_policy(handler, *calls).map(|()| Value::Null).map_err(text)
        }
        Request::Down => Ok(json!({ "participants": supervisor.alive() })),
        Request::Ps => Ok(json!({ "participants": participants(supervisor),
                                  "uses": uses(supervisor),
                                  "supervisor": std::process::id(),
                                  "keeper": supervisor.keeper(),
                                  "watchdog": supervisor.watchdog(),
                                  "ended": supervisor.sandbox.ended.processes,
                                  "ended_inside": supervisor.sandbox.ended.inside })),
        Request::Unload { name } => {
            supervisor.sandbox.unload(name).map(|()| Value::Null).map_err(text)
        }
        Request::Snapshot { file } => {
            let written = supervisor.snapshot(file);
            let written = written.map_err(|error| format!("{}: {error}", file.display()))?;
            Ok(json!({ "extensions": written }))
        }
        Request::Extensions => Ok(extensions::list(supervisor)),
        Request::Stats => Ok(stats(supervisor)),
        Request::Net => Ok(crate::net::table(&supervisor.sandbox, supervisor.net())),
        Request::Leave { seat } => {
            supervisor.sandbox.leave_seat(received.pid, Some(*seat));
            Ok(Value::Null)
        }
        Request::Sockets => {
            let sockets = supervisor.sandbox.common().sockets();
            sockets.reap(crate::clock::now_ns());
            Ok(crate::sockets::table(sockets))
        }
        Request::Symbols => symbols(supervisor),
        Request::Load { .. }
        | Request::Upgrade { .. }
        | Request::Call { .. }
        | Request::Post { .. }
        | Request::Serve { .. } => Err("answered later".to_owned()),
        Request::Log => Ok(json!({ "text": log_text(supervisor) })),
    }
}

/// Rows of `ps`.
fn participants(supervisor: &Supervisor) -> Vec<Value> {
    let common = supervisor.sandbox.common();
    common
        .rows()
        .filter_map(|row| {
            let process = common.process(row);
            let claimed = process.claim.load();
            let live = claimed.pid != 0;
            let pid = if live { claimed.pid } else { process.ended_pid.load(Relaxed) };
            if pid == 0 {
                return None;
            }
            let own = |&index: &usize| live && common.claim(index).load().pid == pid;
            let contexts: Vec<usize> = common.contexts().filter(own).collect();
            let open: u64 = contexts
                .iter()
                .map(|&index| common.context(index).sequence.load(Relaxed).div_ceil(2))
                .sum();
            let name: Vec<u8> = process.comm.iter().map(|byte| byte.load(Relaxed)).collect();
            let how = Joined::from_raw(process.joined.load(Relaxed));
            Some(json!({
                "pid": pid,
                "slot": row,
                "name": String::from_utf8_lossy(&name).trim_end_matches('\0'),
                "parent": process.parent.load(Relaxed),
                "state": if live { "live" } else { "exited" },
                "status": (!live).then(|| process.status.load(Relaxed)).filter(|it| *it >= 0),
                "upcalls": open + process.upcalls_ended.load(Relaxed),
                "contexts": contexts.len(),
                "events": events(&common.inbox(row).tally),
                "how": match how {
                    Some(Joined::Exec) => "exec",
                    Some(Joined::Fork) => "fork",
                    Some(Joined::Late) => "late",
                    Some(Joined::Worker) => "worker",
                    None => "joining",
                },
            }))
        })
        .collect()
}

/// How the system calls of all programs came so far, and the sites that they came from.
fn stats(supervisor: &Supervisor) -> Value {
    let common = supervisor.sandbox.common();
    let sum = |of: fn(&Context) -> &AtomicU64| -> u64 {
        common.contexts().map(|index| of(common.context(index)).load(Relaxed)).sum()
    };
    let [patched, trapped] = common.sites().map(|sites| sites.load(Relaxed));
    json!({ "calls": { "patched": sum(|context| &context.calls_patched),
                       "trapped": sum(|context| &context.calls_trapped) },
            "sites": { "patched": patched, "trapped": trapped } })
}

/// What became of the events for one process.
fn events(tally: &Tally) -> Value {
    json!({
        "delivered": tally.delivered.load(Relaxed),
        "failed": tally.failed.load(Relaxed),
        "refused": tally.refused.load(Relaxed),
        "lost": tally.lost.load(Relaxed),
    })
}

fn uses(supervisor: &Supervisor) -> Vec<Value> {
    let uses = supervisor.sandbox.uses().into_iter();
    uses.map(|(what, used, limit)| json!({ "of": what, "used": used, "limit": limit })).collect()
}

/// Files and what their address 0 has become; libos is written to a file for it.
fn symbols(supervisor: &Supervisor) -> Result<Value, String> {
    let (libos, bias) = supervisor.sandbox.libos();
    let path = runtime_dir().map(|dir| dir.join(&supervisor.sandbox.name).join("libos.so"));
    let path = path.map_err(|error| error.to_string())?;
    std::fs::write(&path, libos).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut files = vec![json!({ "file": path, "bias": bias })];
    let loaded = supervisor.sandbox.loaded.iter().filter(|known| known.room.is_some());
    files.extend(loaded.map(|known| json!({ "file": known.file, "bias": known.bias })));
    Ok(json!({ "files": files }))
}

/// Turn typed text into words by the handler's signature, and call it in a worker.
///
/// # Errors
/// There is no such handler, or the text does not fit it.
pub fn call(
    supervisor: &Supervisor,
    handler: &str,
    args: &[String],
) -> Result<(Job, String), String> {
    let (handle, signature) =
        supervisor.sandbox.find(handler).ok_or_else(|| format!("no handler named {handler}"))?;
    let words = words(&signature, args)?;
    let job = supervisor.sandbox.start_worker(handle, &words).map_err(|error| error.to_string())?;
    Ok((job, signature))
}

/// Turn typed text into words by the handler's signature, and post them in a worker.
fn post(
    supervisor: &Supervisor,
    handler: &str,
    [how, target]: [u64; 2],
    args: &[String],
) -> Result<(Job, String), String> {
    let find = |name: &str| {
        supervisor.sandbox.find(name).ok_or_else(|| format!("no handler named {name}"))
    };
    let (handle, signature) = find(handler)?;
    let given = words(&signature, args)?;
    if event_words(&signature) == NO_EVENT {
        return Err(format!("{handler} takes {signature}: an event carries up to four numbers"));
    }
    let mut event = [how, target, handle, 0, 0, 0, 0];
    event[3..][..given.len()].copy_from_slice(&given);
    let (post, signature) = find("libos.post")?;
    let job = supervisor.sandbox.start_worker(post, &event).map_err(|error| error.to_string())?;
    Ok((job, signature))
}

/// The outcome of a call, as JSON.
///
/// # Errors
/// The handler's, or what ended it.
pub fn call_answer(outcome: &Outcome, signature: &str) -> Result<Value, String> {
    let bytes = String::from_utf8_lossy(&outcome.bytes).into_owned();
    match outcome.status {
        0 if signature.contains("bytes") && signature.contains("->")
            || signature.contains("-> str")
            || signature.contains("<str>") =>
        {
            Ok(json!({ "value": bytes }))
        }
        0 if signature.contains("->") => Ok(json!({ "value": outcome.word })),
        0 => Ok(json!({ "value": Value::Null })),
        1 => Ok(json!({ "none": true })),
        2 => Err(bytes),
        status if bytes.is_empty() => Err(status_text(status)),
        status => Err(format!("{}: {bytes}", status_text(status))),
    }
}

/// Typed text as the words of a call, by the handler's signature.
///
/// # Errors
/// Which text does not fit.
pub fn words(signature: &str, args: &[String]) -> Result<Vec<u64>, String> {
    let inside = signature.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    let declared = inside.map_or("", |(inside, _)| inside);
    let types: Vec<&str> = declared
        .split(',')
        .filter_map(|parameter| parameter.split_once(':').map(|(_, kind)| kind.trim()))
        .collect();
    if types.len() != args.len() {
        return Err(format!("{} arguments given; the handler takes {signature}", args.len()));
    }
    let mut words = Vec::new();
    for (kind, arg) in types.into_iter().zip(args) {
        let wrong = || format!("{arg:?} is not of type {kind}");
        match kind {
            "bytes" | "str" => words.extend([arg.as_ptr() as u64, arg.len() as u64]),
            "call" => return Err("it runs by system calls of programs only".to_owned()),
            "bool" => words.push(u64::from(arg.parse::<bool>().map_err(|_| wrong())?)),
            "f64" => words.push(arg.parse::<f64>().map_err(|_| wrong())?.to_bits()),
            "i64" => words.push(arg.parse::<i64>().map_err(|_| wrong())? as u64),
            _ => words.push(arg.parse().map_err(|_| wrong())?),
        }
    }
    Ok(words)
}

fn log_text(supervisor: &Supervisor) -> String {
    let common = supervisor.sandbox.common();
    let log = common.log();
    let written = log.written.load(Relaxed) as usize;
    let start = written.saturating_sub(log.bytes.len());
    let bytes: Vec<u8> =
        (start..written).map(|at| log.bytes[at % log.bytes.len()].load(Relaxed)).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Ask the supervisor of `name`.
///
/// # Errors
/// No such sandbox, or its refusal.
pub fn ask(name: &str, request: &Request, fds: &[RawFd]) -> io::Result<Value> {
    // A supervisor may die with the request unanswered; another one is there by then. What only looks, or
    // comes with the descriptor that it is about, may be asked again.
    let attempts = if request.is_repeatable() { ATTEMPTS } else { 1 };
    for _ in 0..attempts {
        match ask_once(name, request, fds) {
            Err(error) if is_hang_up(&error) => {}
            other => return other,
        }
    }
    Err(io::Error::other(format!(
        "the supervisor of {name} ended before it answered; see what holds now (sbx-launcher ls)"
    )))
}

/// How many supervisors may die one after the other before somebody who asks gives up.
const ATTEMPTS: u32 = 10;

fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

fn ask_once(name: &str, request: &Request, fds: &[RawFd]) -> io::Result<Value> {
    let connection = connect(name).map_err(|error| unreachable(name, &error))?;
    send(&connection, &serde_json::to_string(request)?, fds).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::EMSGSIZE) => io::Error::other("the arguments are too long for one request"),
            _ => error,
        }
    })?;
    let (mut text, mut fds) = receive(&connection)?;
    if let (IN_FILE, Some(file)) = (text.as_str(), fds.pop()) {
        let (file, mut bytes) = (File::from(file), Vec::new());
        // Its offset is where the writer left it.
        bytes.resize(file.metadata()?.len() as usize, 0);
        file.read_exact_at(&mut bytes, 0)?;
        text = String::from_utf8_lossy(&bytes).into_owned();
    }
    let mut answer: Value = serde_json::from_str(&text)?;
    match answer.get("error").and_then(Value::as_str) {
        Some(why) => Err(io::Error::other(why.to_owned())),
        None => Ok(answer["ok"].take()),
    }
}

/// Why the supervisor of `name` cannot be asked.
fn unreachable(name: &str, error: &io::Error) -> io::Error {
    use io::ErrorKind::{ConnectionRefused, NotADirectory, NotFound};
    let why = match check_name(name) {
        Err(why) => why,
        Ok(()) if matches!(error.kind(), ConnectionRefused | NotADirectory | NotFound) => {
            format!("no sandbox named {name} is up (sbx-launcher ls; sbx-launcher up {name})")
        }
        Ok(()) => format!("asking the supervisor of {name}: {error}"),
    };
    io::Error::new(error.kind(), why)
}

/// May a sandbox have this name?
///
/// # Errors
/// The rule, if it may not.
pub fn check_name(name: &str) -> Result<(), String> {
    let rule = format!("use 1 to {NAME_LEN_MAX} ASCII letters, digits, '-' and '_'");
    libos::manifest::check_name(name)
        .map_err(|_| format!("{name:?} is no name of a sandbox: {rule}"))
}

/// Does the supervisor of `name` answer within some seconds? None if there is none.
#[must_use]
pub fn answers(name: &str) -> Option<bool> {
    // One that dies meanwhile has a keeper.
    for _ in 0..ATTEMPTS {
        match answers_once(name) {
            Ok(()) => return Some(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(false),
            Err(error) if is_hang_up(&error) => {}
            Err(_) => return None,
        }
    }
    None
}

fn answers_once(name: &str) -> io::Result<()> {
    const SECONDS: i64 = 3;
    let fd = socket()?;
    for option in [libc::SO_SNDTIMEO, libc::SO_RCVTIMEO] {
        limit(&fd, option, SECONDS);
    }
    connect_by(&fd, name)?;
    send(&fd, &serde_json::to_string(&Request::Ps)?, &[])?;
    receive(&fd).map(drop)
}

/// Give up sending or receiving after so long.
fn limit(fd: &OwnedFd, option: i32, seconds: i64) {
    let patience = libc::timeval { tv_sec: seconds, tv_usec: 0 };
    let (at, len) = ((&raw const patience).cast(), size_of::<libc::timeval>() as u32);
    // SAFETY: a timeval.
    unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, at, len) };
}

fn connect(name: &str) -> io::Result<OwnedFd> {
    let fd = socket()?;
    connect_by(&fd, name).map(|()| fd)
}

fn connect_by(fd: &OwnedFd, name: &str) -> io::Result<()> {
    let (address, len) = address(&runtime_dir()?.join(name).join("control"))?;
    // SAFETY: an address of this length.
    match unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, u32)> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as u16, sun_path: [0; 108] };
    if bytes.len() >= address.sun_path.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket's path is too long"));
    }
    for (to, &from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from as libc::c_char;
    }
    Ok((address, size_of::<libc::sockaddr_un>() as u32))
}

fn peer(connection: &OwnedFd) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: 0 };
    let mut len = size_of::<libc::ucred>() as u32;
    // SAFETY: a ucred and its length.
    let got = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if got == 0 { Ok(peer) } else { Err(io::Error::last_os_error()) }
}

/// Send one message with descriptors.
///
/// # Errors
/// The kernel's.
pub fn send(to: &OwnedFd, text: &str, fds: &[RawFd]) -> io::Result<()> {
    if text.len() > MESSAGE_LEN_MAX {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let rights = [ControlMessage::ScmRights(fds)];
    let rights: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let parts = [io::IoSlice::new(text.as_bytes())];
    sendmsg::<()>(to.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receive one message with descriptors.
///
/// # Errors
/// The kernel's, or that the peer is gone.
pub fn receive(from: &OwnedFd) -> io::Result<(String, Vec<OwnedFd>)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut buffer = vec![0; MESSAGE_LEN_MAX];
    let mut rights = nix::cmsg_space!([RawFd; 4]);
    let mut parts = [io::IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut rights), flags)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            // SAFETY: the kernel just made these descriptors for us.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let len = message.bytes;
    if len == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    buffer.truncate(len);
    Ok((String::from_utf8_lossy(&buffer).into_owned(), fds))
}
