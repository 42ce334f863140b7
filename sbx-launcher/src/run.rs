//! Starting commands and sandboxes.
#![expect(unsafe_code, reason = "forks, and executes the command")]

use std::ffi::{CString, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use crate::control::{self, Request, Server};
use crate::failpoint;
use crate::filter::{self, Armed};
use crate::follow::{Listener, pidfd};
use crate::one_cpu::OneCpu;
use crate::policy::Policy;
use crate::preload;
use crate::sandbox::Sandbox;
use crate::sandbox::ports::Waits;
use crate::sandbox::terms::Terms;
use crate::supervisor::{End, Supervisor};
use crate::worker;
use crate::zones::{Pages, random};

/// Exit status for errors of the launcher itself.
pub const LAUNCHER_FAILED: i32 = 125;

/// A command to start in a sandbox.
#[derive(Debug)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// Extensions to load first.
    pub extensions: Vec<PathBuf>,
    /// On what terms they are loaded.
    pub terms: Terms,
    /// Length of the shared part of the region.
    pub len: usize,
    /// Rules for its system calls.
    pub policy: Policy,
    /// Carry the local sockets of what runs.
    pub sockets: bool,
}

/// Run a command in a sandbox of its own, and then `finish`; its exit status.
///
/// # Errors
/// The sandbox or the command could not be started.
pub fn in_own_sandbox(
    command: Command,
    finish: impl FnOnce(&mut Supervisor),
) -> Result<i32, Box<dyn std::error::Error>> {
    // A worker of ours could not join another one.
    if !command.extensions.is_empty() && ext_api::client::Sandbox::current().is_ok() {
        return Err(INSIDE.into());
    }
    // Nothing can be loaded later: it has no name to be called by.
    let only_tables = command.extensions.is_empty() && !command.sockets;
    let pages = if only_tables { Pages::Small } else { Pages::Huge };
    let mut supervisor = Supervisor::new(Sandbox::create("run", command.len, pages)?, None)?;
    if command.sockets {
        supervisor.sandbox.carry_sockets()?;
    }
    for file in &command.extensions {
        supervisor.load(file, &command.terms)?;
    }
    supervisor.sandbox.check_terms(&command.terms)?;
    for (handler, set) in command.policy.upcalls() {
        supervisor.sandbox.hook_by_policy(handler, set)?;
    }
    supervisor.sandbox.publish_hooks();
    let region = supervisor.sandbox.zones.place.shared();
    let armed = supervisor.sandbox.armed();
    let start = Start::new(command.argv)?;
    let started = if let Some(why) = preload::refused() {
        let server = Server::bind(&format!("run-{}", std::process::id()))?;
        let library = preload::write(server.directory())?;
        supervisor.answer_by(server);
        preload::start(start, &region, armed, command.policy, (&why, &library))?
    } else {
        let (started, fd) = start_own(&mut supervisor, start, &region, armed, command.policy)?;
        supervisor.add_listener(Listener::new(fd, armed)?);
        started
    };
    supervisor.set_command(started.pid);
    leave_stops_to_the_command();
    allow_many_descriptors();
    let End::Command(status) = supervisor.serve() else {
        supervisor.end();
        return Ok(0);
    };
    started.explain();
    finish(&mut supervisor);
    // What the command left behind still needs a supervisor; the shell wants its status now.
    supervisor.dismiss_keeper();
    if supervisor.alive() > 0 {
        // SAFETY: one thread; the child goes on with the same state.
        if unsafe { libc::fork() } == 0 {
            // A caller that reads the command's output to its end must not wait for us.
            detach();
            supervisor.forget_ears();
            supervisor.serve();
            supervisor.end();
            drop(supervisor);
            std::process::exit(0);
        }
        // What is to be cleared away is the other's now.
        std::mem::forget(supervisor);
    } else {
        supervisor.end_network();
    }
    Ok(exit_status(status))
}

/// Run a command in the sandbox `name`, which is up.
///
/// # Errors
/// There is no such sandbox, or the command could not be started.
pub fn in_named_sandbox(
    name: &str,
    argv: Vec<OsString>,
    policy: Policy,
) -> Result<i32, Box<dyn std::error::Error>> {
    for (handler, calls) in policy.upcalls() {
        control::ask(name, &Request::HookCalls { handler: handler.to_owned(), calls }, &[])?;
    }
    // The region's place is needed for the filter before there is a listener to hand over.
    let place = control::ask(name, &Request::Place, &[])?;
    let number = |key: &str| place[key].as_u64().unwrap_or(0) as usize;
    let region = number("base")..number("base") + number("len");
    let armed: Armed = serde_json::from_value(place["armed"].clone())?;
    let start = Start::new(argv)?;
    let refused = preload::refused().or_else(|| place["refused"].as_str().map(str::to_owned));
    let started = if let Some(why) = refused {
        let library = preload::write(&control::runtime_dir()?.join(name))?;
        preload::start(start, &region, armed, policy, (&why, &library))?
    } else {
        // The supervisor's listener is the only one: it is to be closed when that dies.
        let take = |_, fd| control::ask(name, &Request::Follow { armed }, &[fd]).map(|_| ());
        start_held(start, &region, armed, policy, &[], take)?.0
    };
    let pid = started.pid;
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    pass_on_to(pid);
    leave_stops_to_the_command();
    let mut status = 0;
    // SAFETY: our own child.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) } == pid {
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            break;
        }
        if is_job_control(status) {
            // SAFETY: stops ourselves with the command, until the shell continues both.
            unsafe { libc::raise(libc::SIGSTOP) };
        }
    }
    started.explain();
    Ok(exit_status(status))
}

/// Why nothing can be started here.
const INSIDE: &str = "this process is in a sandbox already, or another seccomp listener watches it: a process \
                      is in one sandbox at most";

/// Pid of the command that gets what is sent to this process.
static COMMAND: AtomicI32 = AtomicI32::new(0);

extern "C" fn pass_on(signal: i32) {
    // SAFETY: takes numbers only, and may be called in a signal handler.
    unsafe { libc::kill(COMMAND.load(SeqCst), signal) };
}

/// Have the command end when this process is told to, unless whoever started this one ignores that.
fn pass_on_to(command: i32) {
    COMMAND.store(command, SeqCst);
    for signal in [libc::SIGTERM, libc::SIGHUP] {
        let handler = pass_on as extern "C" fn(i32) as libc::sighandler_t;
        // SAFETY: the handler does nothing that a handler may not.
        if unsafe { libc::signal(signal, handler) } == libc::SIG_IGN {
            // SAFETY: as it was.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }
}

/// Have the terminal stop the command, and this process when that is seen. If the terminal stopped both, it
/// could be this one that is continued first, which would find the other stopped and stop again.
fn leave_stops_to_the_command() {
    for signal in [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// True if the terminal stopped the command: whoever it was that stopped it with SIGSTOP stopped it
/// alone, and will continue it alone.
#[must_use]
pub const fn is_job_control(status: i32) -> bool {
    libc::WIFSTOPPED(status)
        && matches!(libc::WSTOPSIG(status), libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
}

/// The shell's convention: the status, or 128 and the signal.
const fn exit_status(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

/// What the launcher and the command's process say to each other before its exec, in memory that they
/// share: from the filter on, each of its system calls may be one that extensions are hooked to, and
/// there is no extension yet.
#[derive(Debug)]
#[repr(C)]
struct Words {
    /// Number of the listener in the child and 1, or [`FAILED`]; 0 before.
    listener: AtomicU32,
    /// 1: the child may execute the command.
    go: AtomicU32,
    /// Why there is no filter, or why the command could not be executed; 0 if it could.
    errno: AtomicU32,
}

const FAILED: u32 = u32::MAX;

impl Words {
    fn new() -> io::Result<&'static Self> {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping wherever the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: mapped for good, zero, and all atomics.
        Ok(unsafe { &*at.cast() })
    }

    /// Say a word.
    fn set(word: &AtomicU32, value: u32) {
        word.store(value, SeqCst);
    }

    /// What has been said, or 0 if nothing was for a while. On a machine with one CPU to spare the
    /// other side runs meanwhile.
    fn get(word: &AtomicU32) -> u32 {
        const LOOKS: u32 = 1000;
        for _ in 0..LOOKS {
            if word.load(SeqCst) != 0 {
                break;
            }
            std::thread::yield_now();
        }
        if word.load(SeqCst) == 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
        word.load(SeqCst)
    }

    /// Wait until something is said, by a call that no handler can be hooked to.
    fn await_unhooked(word: &AtomicU32) {
        // SAFETY: a set is plain bits.
        let none: libc::sigset_t = unsafe { std::mem::zeroed() };
        let moment = libc::timespec { tv_sec: 0, tv_nsec: 10_000 };
        while word.load(SeqCst) == 0 {
            // SAFETY: waits for none of the signals, for a moment.
            unsafe { libc::sigtimedwait(&raw const none, std::ptr::null_mut(), &raw const moment) };
        }
    }
}

/// A command that has been started.
#[derive(Debug)]
pub(crate) struct Started {
    pid: i32,
    start: Start,
    words: &'static Words,
}

impl Started {
    /// Say why the command could not be executed, if it could not.
    fn explain(&self) {
        let errno = self.words.errno.load(SeqCst);
        if errno != 0 {
            let error = io::Error::from_raw_os_error(errno as i32);
            let program = self.start.argv.first().map(|name| name.to_string_lossy());
            let program = program.unwrap_or_default();
            eprintln!("sbx-launcher: {program}: {error}{}", self.start.hint(errno as i32));
        }
    }
}

/// As [`start_held`], for a command that this process supervises: it keeps the zones' descriptors, which
/// saves giving it some, if nobody else traces what we fork.
fn start_own(
    supervisor: &mut Supervisor,
    start: Start,
    region: &std::ops::Range<usize>,
    armed: Armed,
    policy: Policy,
) -> io::Result<(Started, OwnedFd)> {
    let zones = supervisor.sandbox.zones.fds();
    let (again, same_policy) = (start.clone(), policy.clone());
    // With extensions there are workers to be forked meanwhile, which may run anywhere.
    let is_alone = supervisor.sandbox.zones.pages == Pages::Small;
    let cpu = is_alone.then(OneCpu::hold).flatten();
    let take = |pid, _| supervisor.expect_command(pid, armed).map_err(|_| TRACED.into());
    let result = start_held(start, region, armed, policy, &zones, take);
    match (&result, cpu) {
        (Ok((started, _)), Some(cpu)) => supervisor.share_cpu(started.pid, cpu),
        (_, cpu) => cpu.into_iter().for_each(|cpu| cpu.release(None)),
    }
    if result.as_ref().is_err_and(|error| error.kind() == TRACED) {
        return start_held(again, region, armed, same_policy, &[], |_, _| Ok(()));
    }
    result
}

/// What [`start_own`] says to itself when it cannot trace its child.
const TRACED: io::ErrorKind = io::ErrorKind::ResourceBusy;

/// Fork; in the child install the filter and execute, with `keeps` left open. The child waits until
/// `take` has seen to it and the filter's listener.
fn start_held(
    mut start: Start,
    region: &std::ops::Range<usize>,
    armed: Armed,
    policy: Policy,
    keeps: &[i32],
    take: impl FnOnce(i32, i32) -> io::Result<()>,
) -> io::Result<(Started, OwnedFd)> {
    let is_hooked = armed.calls != [0; 8];
    let policy = if is_hooked { policy.for_hooked().map_err(io::Error::other)? } else { policy };
    // Not 0, which is nobody's.
    let first_exec = random()? as u32 | 1;
    let program = filter::build(region, armed, first_exec, policy).map_err(io::Error::other)?;
    start.first_exec = first_exec;
    let words = Words::new()?;
    let launcher = std::process::id();
    // SAFETY: one thread, so the child may do anything.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        become_command(&program, &start, words, launcher, keeps);
    }
    if pid < 0 {
        return Err(no_process());
    }
    let refused = |error: io::Error| {
        // SAFETY: our own child, which is not reaped yet.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        // SAFETY: as above.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        error
    };
    let listener = listener_of(pid, words).map_err(refused)?;
    take(pid, listener.as_raw_fd()).map_err(refused)?;
    Words::set(&words.go, 1);
    Ok((Started { pid, start, words }, listener))
}

/// The error of a fork.
fn no_process() -> io::Error {
    let error = io::Error::last_os_error();
    io::Error::new(error.kind(), format!("starting a process: {error}"))
}

/// As [`start_held`], under a filter that notifies nobody and with this environment.
pub(crate) fn start_unfollowed(
    program: &[seccompiler::sock_filter],
    start: Start,
    environment: &[CString],
) -> io::Result<Started> {
    let words = Words::new()?;
    let environment = array(environment);
    // SAFETY: one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            reset_signals();
            let pointers = Pointers { environment: environment.as_ptr(), ..start.pointers() };
            match filter::install_without_listener(program) {
                Ok(()) => execute(&start, pointers, words),
                Err(error) => {
                    Words::set(&words.errno, error.raw_os_error().unwrap_or(libc::EIO) as u32);
                    // SAFETY: ends the child.
                    unsafe { libc::_exit(LAUNCHER_FAILED) }
                }
            }
        }
        pid => Ok(Started { pid, start, words }),
    }
}

/// The listener of the filter that the child `pid` installs.
fn listener_of(pid: i32, words: &Words) -> io::Result<OwnedFd> {
    let number = loop {
        match Words::get(&words.listener) {
            // SAFETY: looks at our own child, which stays to be waited for.
            0 if unsafe { libc::kill(pid, 0) } != 0 || has_ended(pid) => {
                return Err(io::Error::other("the child died"));
            }
            0 => {}
            FAILED => {
                let errno = words.errno.load(SeqCst) as i32;
                return Err(if errno == libc::EBUSY {
                    io::Error::other(INSIDE)
                } else {
                    let error = io::Error::from_raw_os_error(errno);
                    io::Error::other(format!("installing the seccomp filter: {error}"))
                });
            }
            number => break number - 1,
        }
    };
    let process = pidfd(pid as u32).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return Err(io::Error::other(format!("taking over the seccomp listener: {error}")));
    }
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Has our child `pid` ended? It stays to be waited for.
fn has_ended(pid: i32) -> bool {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: plain numbers.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: our own child, and room for what is said of it.
    let done = unsafe { libc::waitid(libc::P_PID, pid as u32, &raw mut info, options) };
    // SAFETY: filled in by the kernel, or zero.
    done == 0 && unsafe { info.si_pid() } != 0
}

/// What the child executes, made before it may not ask for memory any more.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    argv: Vec<CString>,
    /// Where the program may be.
    candidates: Vec<CString>,
    /// What the filter lets this exec through by.
    first_exec: u32,
}

unsafe extern "C" {
    /// The environment that the launcher was started with, as exec takes it.
    static environ: *const *const libc::c_char;
}

/// The arrays that exec takes.
#[derive(Debug)]
struct Pointers {
    argv: Vec<*const libc::c_char>,
    /// For a shell: its name, room for a path, the arguments.
    shell: Vec<*const libc::c_char>,
    environment: *const *const libc::c_char,
}

fn array(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}

const SHELL: &std::ffi::CStr = c"/bin/sh";

impl Start {
    fn new(argv: Vec<OsString>) -> io::Result<Self> {
        let argv = argv
            .into_iter()
            .map(|arg| CString::new(arg.into_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| {
                io::Error::new(io::ErrorKind::InvalidInput, "an argument contains a NUL")
            })?;
        let text = |bytes: Vec<u8>| {
            CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
        };
        let name = argv.first().map_or(&[][..], |name| name.as_bytes());
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
        let candidates: Vec<Vec<u8>> = if name.contains(&b'/') || name.is_empty() {
            vec![name.to_vec()]
        } else {
            let folders = path.as_bytes().split(|byte| *byte == b':');
            let folder =
                |folder: &[u8]| if folder.is_empty() { b".".to_vec() } else { folder.to_vec() };
            folders.map(|at| [&folder(at)[..], b"/", name].concat()).collect()
        };
        Ok(Self {
            candidates: candidates.into_iter().map(text).collect::<io::Result<_>>()?,
            argv,
            first_exec: 0,
        })
    }

    /// Where the program may be.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = &std::ffi::CStr> {
        self.candidates.iter().map(CString::as_c_str)
    }

    /// What an error that says that something is missing does not say.
    fn hint(&self, errno: i32) -> &'static str {
        let exists = |at: &CString| Path::new(std::ffi::OsStr::from_bytes(at.to_bytes())).is_file();
        if errno == libc::ENOENT && self.candidates.iter().any(exists) {
            return ": it is there, and the interpreter that it names is missing";
        }
        ""
    }

    fn pointers(&self) -> Pointers {
        let argv = array(&self.argv);
        let mut shell = vec![SHELL.as_ptr(), std::ptr::null()];
        shell.extend(argv.iter().skip(1));
        // SAFETY: the C library's; one thread, so nobody changes it meanwhile.
        Pointers { argv, shell, environment: unsafe { environ } }
    }

    /// As `execvp`, which has no fourth argument; why it could not.
    fn execute(&self, pointers: &mut Pointers) -> i32 {
        let execute = |path: &std::ffi::CStr, argv: &[*const libc::c_char]| {
            let (argv, environment) = (argv.as_ptr(), pointers.environment);
            let number = libc::SYS_execve;
            // SAFETY: a text that ends with a zero, and arrays of such that end with a null.
            unsafe { libc::syscall(number, path.as_ptr(), argv, environment, self.first_exec) };
            io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
        };
        let mut why = libc::ENOENT;
        for candidate in &self.candidates {
            match execute(candidate, &pointers.argv) {
                libc::ENOEXEC => {
                    pointers.shell[1] = candidate.as_ptr();
                    return execute(SHELL, &pointers.shell);
                }
                libc::EACCES => why = libc::EACCES,
                libc::ENOENT | libc::ENOTDIR => {}
                other => return other,
            }
        }
        why
    }
}

/// The child, until exec.
fn become_command(
    program: &[seccompiler::sock_filter],
    start: &Start,
    words: &Words,
    launcher: u32,
    keeps: &[i32],
) -> ! {
    reset_signals();
    for &fd in keeps {
        // SAFETY: takes numbers only.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
    let pointers = start.pointers();
    // Waits are to take as long as they say; it starts with the launcher's own slack.
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    // Nobody would follow the exec.
    worker::end_with(launcher);
    // From here on this process makes no call that a handler can be hooked to.
    match filter::install(program) {
        Ok(listener) => Words::set(&words.listener, listener.into_raw_fd() as u32 + 1),
        Err(error) => {
            words.errno.store(error.raw_os_error().unwrap_or(libc::EIO) as u32, SeqCst);
            Words::set(&words.listener, FAILED);
            // SAFETY: ends the child.
            unsafe { libc::_exit(LAUNCHER_FAILED) }
        }
    }
    Words::await_unhooked(&words.go);
    // SAFETY: takes numbers only; 0 is what it was.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 0) };
    // SAFETY: takes numbers only: the command outlives the launcher.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
    execute(start, pointers, words)
}

/// Signals as a command finds them.
fn reset_signals() {
    // SAFETY: a set is plain bits.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the command starts with no signal blocked by us.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    // Rust ignores SIGPIPE in its own programs; the command has it as usual.
    // SAFETY: the default action runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// The end of the child: the command, or the reason why not.
fn execute(start: &Start, mut pointers: Pointers, words: &Words) -> ! {
    let errno = start.execute(&mut pointers);
    words.errno.store(errno as u32, SeqCst);
    // SAFETY: ends the child, as a shell would.
    unsafe { libc::_exit(if errno == libc::ENOENT { 127 } else { 126 }) }
}

/// What a named sandbox does that others do not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Choices {
    /// Carry the local sockets of what runs.
    pub sockets: bool,
    /// How the network's worker waits.
    pub network_waits: Waits,
}

/// Make a named sandbox and leave its supervisor behind.
///
/// # Errors
/// The name is taken or the sandbox cannot be made.
pub fn up(
    name: &str,
    len: usize,
    restore: Option<&Path>,
    Choices { sockets, network_waits }: Choices,
) -> Result<(), Box<dyn std::error::Error>> {
    failpoint::ready();
    control::check_name(name)?;
    let server = Server::bind(name)?;
    let mut sandbox = match restore {
        None => Sandbox::create(name, len, Pages::Huge)?,
        Some(file) => {
            Sandbox::restore(name, file).map_err(|error| format!("{}: {error}", file.display()))?
        }
    };
    sandbox.network_waits = network_waits;
    if sockets {
        sandbox.carry_sockets()?;
    }
    let (mut told, mut tells) = io::pipe()?;
    // SAFETY: one thread; the child is the supervisor, with everything made so far.
    match unsafe { libc::fork() } {
        -1 => Err(no_process().into()),
        0 => {
            detach();
            allow_many_descriptors();
            drop(told);
            let served = Supervisor::new(sandbox, Some(server)).map(|mut supervisor| {
                supervisor.prepare();
                // Whoever asked may have gone.
                let _ = tells.write_all(b"up");
                drop(tells);
                supervisor.serve();
                supervisor.end();
            });
            std::process::exit(i32::from(served.is_err()));
        }
        supervisor => {
            std::mem::forget(server);
            drop(tells);
            // A supervisor that dies leaves the other end to its keeper.
            let ended = pidfd(supervisor as u32).ok_or_else(io::Error::last_os_error)?;
            let mut polled = [told.as_raw_fd(), ended.as_raw_fd()].map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            });
            // SAFETY: an array of two.
            while unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) } < 0 {}
            if polled[0].revents & libc::POLLIN != 0 && told.read_exact(&mut [0; 2]).is_ok() {
                return Ok(());
            }
            Err(format!("the supervisor, pid {supervisor}, ended before {name} was up").into())
        }
    }
}

/// For commands that only print: end quietly when the reader of the output has gone.
pub fn end_when_nobody_reads() {
    // SAFETY: the default action runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// A participant takes one, a connection of the network as well: as many as the administrator allows.
pub(crate) fn allow_many_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes a limit.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: a limit of ours. If it is refused, it stays as it is.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}

/// Leave the terminal and the caller's pipes.
pub fn detach() {
    // SAFETY: takes nothing.
    unsafe { libc::setsid() };
    // SAFETY: nobody may read a supervisor's memory or trace it.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        for fd in 0..3 {
            // SAFETY: replaces the standard descriptors.
            unsafe { libc::dup2(null.as_raw_fd(), fd) };
        }
    }
}
