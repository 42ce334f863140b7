//! Starting commands and sandboxes.
#![expect(unsafe_code, reason = "forks, and executes the command")]

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::control::{self, Request, Server};
use crate::filter::{self, Armed};
use crate::follow::Listener;
use crate::policy::Policy;
use crate::sandbox::Sandbox;
use crate::supervisor::{End, Supervisor};

/// Exit status for errors of the launcher itself.
pub const LAUNCHER_FAILED: i32 = 125;

/// A command to start in a sandbox.
#[derive(Debug)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// Extensions to load first.
    pub extensions: Vec<PathBuf>,
    /// Their configuration.
    pub config: String,
    /// Length of the shared part of the region.
    pub len: usize,
    /// Rules for its system calls.
    pub policy: Policy,
}

/// Run a command in a sandbox of its own; its exit status.
///
/// # Errors
/// The sandbox or the command could not be started.
pub fn in_own_sandbox(command: Command) -> Result<i32, Box<dyn std::error::Error>> {
    let mut supervisor = Supervisor::new(Sandbox::create("run", command.len)?, None)?;
    for file in &command.extensions {
        supervisor.load(file, &command.config)?;
    }
    let region = supervisor.sandbox.zones.place.shared();
    let armed = supervisor.sandbox.armed();
    let (pid, fd) = start(command.argv, &region, armed, command.policy)?;
    supervisor.add_listener(Listener { fd, armed });
    supervisor.set_command(pid);
    let End::Command(status) = supervisor.serve() else {
        return Ok(0);
    };
    // What the command left behind still needs a supervisor; the shell wants its status now.
    supervisor.dismiss_keeper();
    if supervisor.alive() > 0 {
        // SAFETY: one thread; the child goes on with the same state.
        if unsafe { libc::fork() } == 0 {
            // A caller that reads the command's output to its end must not wait for us.
            detach();
            supervisor.serve();
            std::process::exit(0);
        }
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
    // The region's place is needed for the filter before there is a listener to hand over.
    let place = control::ask(name, &Request::Place, &[])?;
    let number = |key: &str| place[key].as_u64().unwrap_or(0) as usize;
    let region = number("base")..number("base") + number("len");
    let armed: Armed = serde_json::from_value(place["armed"].clone())?;
    let (pid, listener) = start_held(argv, &region, armed, policy, |listener| {
        control::ask(name, &Request::Follow { armed }, &[listener]).map(|_| ())
    })?;
    drop(listener);
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
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
    Ok(exit_status(status))
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

fn start(
    argv: Vec<OsString>,
    region: &std::ops::Range<usize>,
    armed: Armed,
    policy: Policy,
) -> io::Result<(i32, OwnedFd)> {
    start_held(argv, region, armed, policy, |_| Ok(()))
}

/// Fork; in the child install the filter, hand its listener over, execute. The child waits until
/// `take` has seen to the listener.
fn start_held(
    argv: Vec<OsString>,
    region: &std::ops::Range<usize>,
    armed: Armed,
    policy: Policy,
    take: impl FnOnce(i32) -> io::Result<()>,
) -> io::Result<(i32, OwnedFd)> {
    let program = filter::build(region, armed, policy).map_err(io::Error::other)?;
    let argv = argv
        .into_iter()
        .map(|arg| CString::new(arg.into_vec()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "an argument contains a NUL"))?;
    let mut pair = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two descriptors.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just made for us.
    let [ours, theirs] = pair.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: one thread, so the child may do anything.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop(ours);
        become_command(&program, &argv, &theirs);
    }
    drop(theirs);
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let received = control::receive(&ours);
    let (text, mut fds) = received.unwrap_or_else(|_| ("the child died".into(), Vec::new()));
    let Some(listener) = fds.pop() else {
        let mut status = 0;
        // SAFETY: our own child, which ends at once.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        return Err(io::Error::other(text));
    };
    if let Err(error) = take(listener.as_raw_fd()) {
        drop(ours);
        let mut status = 0;
        // SAFETY: our own child, which ends at once.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        return Err(error);
    }
    control::send(&ours, "go", &[])?;
    Ok((pid, listener))
}

/// The child, until exec.
fn become_command(program: &[seccompiler::sock_filter], argv: &[CString], to: &OwnedFd) -> ! {
    // SAFETY: a set is plain bits.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the command starts with no signal blocked by us.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    // Rust ignores SIGPIPE in its own programs; the command has it as usual.
    // SAFETY: the default action runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let listener = match filter::install(program) {
        Ok(listener) => listener,
        Err(error) => {
            let text = if error.raw_os_error() == Some(libc::EBUSY) {
                "this process is in a sandbox already, or another seccomp listener watches it: a \
                 process is in one sandbox at most"
                    .to_owned()
            } else {
                format!("installing the seccomp filter: {error}")
            };
            let _ = control::send(to, &text, &[]);
            // SAFETY: ends the child.
            unsafe { libc::_exit(LAUNCHER_FAILED) }
        }
    };
    let _ = control::send(to, "listener", &[listener.as_raw_fd()]);
    drop(listener);
    if control::receive(to).is_err() {
        // SAFETY: ends the child: nobody will follow its exec.
        unsafe { libc::_exit(LAUNCHER_FAILED) }
    }
    let mut pointers: Vec<_> = argv.iter().map(|arg| arg.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: texts that end with zeros, and an array that ends with a null.
    unsafe { libc::execvp(pointers[0], pointers.as_ptr()) };
    let error = io::Error::last_os_error();
    eprintln!("sbx-launcher: {}: {error}", argv[0].to_string_lossy());
    let missing = error.raw_os_error() == Some(libc::ENOENT);
    // SAFETY: ends the child, as a shell would.
    unsafe { libc::_exit(if missing { 127 } else { 126 }) }
}

/// Make a named sandbox and leave its supervisor behind.
///
/// # Errors
/// The name is taken or the sandbox cannot be made.
pub fn up(
    name: &str,
    len: usize,
    restore: Option<&Path>,
) -> Result<(), Box<dyn std::error::Error>> {
    libos::manifest::check_name(name)?;
    let server = Server::bind(name)?;
    let sandbox = match restore {
        None => Sandbox::create(name, len)?,
        Some(file) => Sandbox::restore(name, file)?,
    };
    // SAFETY: one thread; the child is the supervisor, with everything made so far.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error().into()),
        0 => {
            detach();
            let served = Supervisor::new(sandbox, Some(server)).map(|mut s| s.serve());
            std::process::exit(i32::from(served.is_err()));
        }
        _ => {
            std::mem::forget(server);
            Ok(())
        }
    }
}

/// For commands that only print: end quietly when the reader of the output has gone.
pub fn end_when_nobody_reads() {
    // SAFETY: the default action runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
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
