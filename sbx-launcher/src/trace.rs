//! `sbx-launcher trace`: the system calls of a command and of its children, by an extension.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    let path = match out {
        None => PathBuf::from("/proc/self/fd/2"),
        Some(path) => {
            let failed = |error| format!("{}: {error}", path.display());
            File::create(path).map_err(failed)?;
            std::path::absolute(path).map_err(failed)?
        }
    };
    let file = std::fs::OpenOptions::new().append(true).open(&path);
    let file = file.map_err(|error| format!("{}: {error} (try --out FILE)", path.display()))?;
    match path.to_str() {
        Some(text) if !text.contains([',', '=']) => Ok((text.to_owned(), file)),
        _ => Err(format!("{}: a name with , or = cannot be written to", path.display())),
    }
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
