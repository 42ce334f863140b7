//! `sbx-launcher trace`: the system calls of a command and of its children, by an extension.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{FileStat, fstat};

use crate::policy::Policy;
use crate::run;
use crate::sandbox::terms::Terms;
use crate::supervisor::Supervisor;

/// The extension, in the file of the launcher.
static IMAGE: &[u8] = include_bytes!(env!("SBX_TRACE_IMAGE"));

/// What to trace, and how.
#[derive(Debug)]
pub struct Trace {
    /// Calls to print, separated by commas.
    pub calls: String,
    /// A table at the end, and nothing before.
    pub count: bool,
    /// JSON, not text.
    pub json: bool,
    /// Where to print; standard error if there is none.
    pub out: Option<PathBuf>,
    /// The command.
    pub argv: Vec<OsString>,
}

/// Run the command; its exit status.
///
/// # Errors
/// What is asked for is no call, the file cannot be written, or the command cannot be started.
pub fn run(trace: Trace) -> Result<i32, Box<dyn std::error::Error>> {
    let names = trace.calls.replace(',', " ");
    if let Err(at) = ext_api::calls::find(&names) {
        let name = names[at..].split(' ').next().unwrap_or("");
        let why = "is no call that can be seen; see the list in the README of examples/trace, or use \
                   @file, @network or all";
        return Err(format!("--calls: {name} {why}").into());
    }
    if let Some(why) = crate::preload::refused() {
        return Err(format!("trace has to make programs participants by ptrace ({why})").into());
    }
    let (out, mut file) = output(trace.out.as_deref())?;
    let print = if trace.count { String::new() } else { names.trim().replace(' ', ":") };
    let config = format!("print={print},out={out},json={}", u8::from(trace.json));
    let image = memfd::MemfdOptions::new().create("sbx-trace")?;
    image.as_file().write_all(IMAGE)?;
    let command = run::Command {
        argv: trace.argv,
        extensions: vec![format!("/proc/self/fd/{}", image.as_file().as_raw_fd()).into()],
        terms: Terms { config, ..Terms::default() },
        len: libos::layout::LEN_DEFAULT,
        policy: Policy::base()?,
        sockets: false,
    };
    run::in_own_sandbox(command, |supervisor| {
        if let Err(why) = finish(supervisor, trace.count, &mut file) {
            eprintln!("sbx-launcher: trace: {why}");
        }
    })
}

/// Where to write, by a name that every process of ours can open, and opened.
fn output(out: Option<&Path>) -> Result<(String, File), String> {
    let path = out.unwrap_or(Path::new("/proc/self/fd/2"));
    let failed = |error| format!("{}: {error}", path.display());
    if out.is_some() {
        File::create(path).map_err(failed)?;
    }
    let file = File::options().append(true).open(path);
    let file = file.map_err(|error| format!("{} (try --out FILE)", failed(error)))?;
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    [stdout.as_fd(), stderr.as_fd()].iter().for_each(|stream| share_the_end(*stream, &file));
    let whole = std::path::absolute(path).map_err(failed)?;
    let is_ours = ["/proc/self", "/dev/fd"].iter().any(|ours| whole.starts_with(ours));
    let name = match whole.to_str() {
        // What the extension's configuration can say, and is the same file in the worker.
        Some(name) if out.is_none() || !is_ours && !name.contains([',', '=']) => name.to_owned(),
        _ => format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()),
    };
    Ok((name, file))
}

/// Have what the command writes to this same file go to its end, as what we write to it does: else each is
/// written over the other.
fn share_the_end(stream: BorrowedFd<'_>, file: &File) {
    let which = |stat: FileStat| (stat.st_dev, stat.st_ino, stat.st_mode & libc::S_IFMT);
    let Ok(ours) = fstat(file).map(which) else { return };
    if ours.2 != libc::S_IFREG || fstat(stream).map(which) != Ok(ours) {
        return;
    }
    let Ok(flags) = fcntl(stream, FcntlArg::F_GETFL) else { return };
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_APPEND;
    // Without that it is as it was.
    let _ = fcntl(stream, FcntlArg::F_SETFL(flags));
}

/// The command has ended: what is still to be written.
fn finish(supervisor: &mut Supervisor, count: bool, file: &mut File) -> Result<(), String> {
    if count {
        let table = supervisor.call("trace.summary", &[])?;
        let text = table["value"].as_str().unwrap_or("");
        return writeln!(file, "{}", text.trim_end()).map_err(|error| error.to_string());
    }
    // The end of the last process is a line as well.
    supervisor.run_hooks(Duration::from_secs(1));
    let lost = supervisor.call("trace.flush", &[])?;
    if lost["value"] != 0 {
        let why = "not read in time, or what they were written to took no more";
        eprintln!("sbx-launcher: trace: {} calls were not printed: {why}", lost["value"]);
    }
    Ok(())
}
