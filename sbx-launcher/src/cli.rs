//! What is typed, and what is printed.

mod ext;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, Parser, Subcommand};
use ext_api::abi::{HOW_ALL, HOW_ANY, HOW_PID, HOW_URGENT};
use libos::layout::Place;
use serde_json::Value;

use crate::control::{self, Request};
use crate::policy::Policy;
use crate::sandbox::ports::{Listen, Waits};
use crate::sandbox::terms::{Clamp, Terms};
use crate::{bench, doctor, perf, policy, run, say, trace};

/// Run programs in a sandbox whose extensions they share at function-call cost.
#[derive(Debug, Parser)]
#[command(name = "sbx-launcher", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What was typed.
///
/// `run -- COMMAND` is known without a parser, to which all commands and options have to be described
/// first: that takes a twentieth of a launch.
///
/// # Errors
/// What is to be printed instead.
pub fn parse() -> std::result::Result<Cli, clap::Error> {
    let mut words = std::env::args_os().skip(1);
    let begins = ["run", "--"].iter().all(|word| words.next().is_some_and(|typed| typed == *word));
    let argv: Vec<OsString> = words.collect();
    if begins && !argv.is_empty() {
        return Ok(Cli { command: Command::Run(Run { argv, ..Run::default() }) });
    }
    Cli::try_parse()
}

/// Length of a region's shared part, in MiB.
const SIZE_DEFAULT: usize = 2048;

/// What `--clamp` takes.
const CLAMP: &str = "[EXTENSION:]KIND=VALUE";

/// What is run, and where.
#[derive(Debug, PartialEq, Eq, Args)]
struct Run {
    /// Use the named sandbox that is up, instead of one of its own.
    #[arg(long, value_name = "NAME")]
    sandbox: Option<String>,
    /// Load this extension first (repeatable).
    #[arg(long = "ext", value_name = "FILE", conflicts_with = "sandbox")]
    ext: Vec<PathBuf>,
    /// Configuration for the extensions: key=value,key=value; for one of them with EXTENSION: before each key.
    #[arg(long, default_value = "", conflicts_with = "sandbox")]
    config: String,
    /// Size of the region's shared part in MiB.
    #[arg(long, value_name = "MIB", default_value_t = SIZE_DEFAULT, conflicts_with = "sandbox")]
    size: usize,
    /// Rules for its system calls (TOML), looked at before the base policy: see `policy show`.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Have its local connections, pipes and eventfds go through the region.
    #[arg(long, conflicts_with = "sandbox")]
    sockets: bool,
    /// Listen elsewhere than at PORT of 127.0.0.1 for a handler that is hooked to PORT (repeatable).
    #[arg(long, value_name = "PORT=ADDRESS:PORT", conflicts_with = "sandbox")]
    listen: Vec<Listen>,
    /// Ask the extensions' handlers about some system calls only: about paths below a folder
    /// (path=/srv/www), descriptors (fd=0-2), processes (process=nginx, or a pid); of one extension with
    /// EXTENSION: before it. Repeatable: of each kind one has to hold.
    #[arg(long, value_name = CLAMP, conflicts_with = "sandbox")]
    clamp: Vec<Clamp>,
    /// Ask the extensions' handlers about system calls, or those of one, and have them change nothing.
    #[arg(long, value_name = "EXTENSION", num_args = 0..=1, require_equals = true,
          default_missing_value = "", conflicts_with = "sandbox")]
    tee: Vec<String>,
    /// Run it at this level of hardening, or not at all: see `doctor`.
    #[arg(long, value_name = "LEVEL", value_parser = ["coop", "guard", "strict"])]
    harden: Option<String>,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    argv: Vec<OsString>,
}

impl Default for Run {
    /// As the parser fills it in when no option is given.
    fn default() -> Self {
        Self {
            sandbox: None,
            ext: Vec::new(),
            config: String::new(),
            size: SIZE_DEFAULT,
            policy: None,
            sockets: false,
            listen: Vec::new(),
            clamp: Vec::new(),
            tee: Vec::new(),
            harden: None,
            argv: Vec::new(),
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a sandbox.
    #[command(
        after_help = "Example: sbx-launcher run --ext target/release/libhello_upcall.so -- python3 app.py
         sbx-launcher run --ext libaudit.so --ext libredirect.so --tee=audit \\
             --config redirect:from=/srv/www,redirect:to=/srv/new \\
             --clamp redirect:path=/srv/www --clamp redirect:process=nginx -- nginx"
    )]
    Run(Run),
    /// Make a named sandbox that outlives one command.
    #[command(
        after_help = "Example: sbx-launcher up web && sbx-launcher run --sandbox web -- bash"
    )]
    Up {
        /// Its name.
        name: String,
        /// Size of the region's shared part in MiB.
        #[arg(long, value_name = "MIB", default_value_t = SIZE_DEFAULT)]
        size: usize,
        /// Begin with the extensions of this snapshot, as they were.
        #[arg(long, value_name = "FILE", conflicts_with = "size")]
        restore: Option<PathBuf>,
        /// Have local connections, pipes and eventfds of its programs go through the region.
        #[arg(long)]
        sockets: bool,
        /// How the worker that serves the network waits; all but the first cost a core, `sqpoll` with traffic only.
        #[arg(long, value_name = "HOW", default_value = "sleep")]
        network_waits: Waits,
    },
    /// Write the extensions of a sandbox, with all their state, to a file. Calls wait meanwhile.
    #[command(after_help = "Example: sbx-launcher snapshot web web.snapshot
Restore: sbx-launcher up web --restore web.snapshot")]
    Snapshot {
        /// Sandbox.
        name: String,
        /// The file.
        file: PathBuf,
    },
    /// End a named sandbox. Its participants go on; nothing new can be loaded or started in it.
    #[command(after_help = "Example: sbx-launcher down web")]
    Down {
        /// Its name.
        name: String,
    },
    /// List the named sandboxes.
    #[command(after_help = "Example: sbx-launcher ls --json")]
    Ls {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Load, unload and list extensions.
    #[command(subcommand)]
    Ext(Ext),
    /// Run a handler once, in the sandbox's worker.
    #[command(after_help = "Example: sbx-launcher call web hello.greet world")]
    Call {
        /// Sandbox.
        name: String,
        /// EXTENSION.HANDLER.
        handler: String,
        /// Its arguments.
        #[arg(allow_negative_numbers = true)]
        args: Vec<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Post an event: have a handler run in other processes, as soon as they come by.
    #[command(
        group(ArgGroup::new("whom").required(true).args(["pid", "any", "all"])),
        after_help = "Example: sbx-launcher post web cache.clear --all"
    )]
    Post {
        /// Sandbox.
        name: String,
        /// EXTENSION.HANDLER; it takes up to four numbers.
        handler: String,
        /// Its arguments.
        #[arg(allow_negative_numbers = true)]
        args: Vec<String>,
        /// To this participant.
        #[arg(long, value_name = "PID")]
        pid: Option<u32>,
        /// To whichever waits first.
        #[arg(long)]
        any: bool,
        /// To every participant.
        #[arg(long)]
        all: bool,
        /// Interrupt those that run code of their own.
        #[arg(long)]
        urgent: bool,
    },
    /// List the participants of a sandbox.
    #[command(after_help = "Example: sbx-launcher ps web --json")]
    Ps {
        /// Sandbox.
        name: String,
        /// The connections, pipes and eventfds of theirs that are carried, instead.
        #[arg(long)]
        sockets: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Serve a handler's TCP port at another address, as a participant: with --sockets other participants
    /// reach it through the region.
    #[command(after_help = "Example: sbx-launcher run --sandbox web -- \\
    sbx-launcher serve 11211 --at 127.0.0.1:11311")]
    Serve {
        /// The port that the handler is hooked to.
        port: u16,
        /// Where to listen.
        #[arg(long, value_name = "ADDRESS:PORT")]
        at: std::net::SocketAddr,
    },
    /// Say which ports handlers are hooked to, and what has come there.
    #[command(after_help = "Example: sbx-launcher net web --top")]
    Net {
        /// Sandbox.
        name: String,
        /// Print JSON.
        #[arg(long, conflicts_with = "top")]
        json: bool,
        /// Print the table anew every second, with rates, until it is interrupted.
        #[arg(long)]
        top: bool,
    },
    /// Say how the system calls that extensions are hooked to come from programs.
    #[command(after_help = "Example: sbx-launcher stats web --json")]
    Stats {
        /// Sandbox.
        name: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print or count the system calls of a command and of its children.
    #[command(
        after_help = "Example: sbx-launcher trace --calls openat,@network -- curl -s localhost
         sbx-launcher trace --count -- git status"
    )]
    Trace {
        /// Which calls to print: names, @file, @network or all, separated by commas.
        #[arg(short = 'e', long, value_name = "CALLS", default_value = "all")]
        calls: String,
        /// Print a table of all calls at the end, and nothing before.
        #[arg(short, long)]
        count: bool,
        /// Into this file rather than to standard error.
        #[arg(short, long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Print JSON: a line for each call, or the table.
        #[arg(long)]
        json: bool,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        argv: Vec<OsString>,
    },
    /// Measure what things cost, beside what else there is.
    #[command(after_help = "Example: sbx-launcher bench upcall --json
Benchmarks: upcall (a call), kv (a cache), launch (starting programs), faults (what goes wrong), \
events (telling another process), delay and service (beside hogs), interpose (system calls that \
somebody looks at), sockets (servers and clients on one host), net (what comes from the network), engine (how it \
asks the kernel).")]
    Bench {
        /// upcall, kv, launch, faults, events, delay, service, interpose, sockets, net or engine.
        name: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Draw a bar chart into this file (SVG).
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
        /// A little of everything: shows that it runs, not how fast.
        #[arg(long)]
        quick: bool,
        /// Measure only rows with this in their names; may be given several times.
        #[arg(long, value_name = "ROW")]
        only: Vec<String>,
        /// Rounds per row, of which the median is shown.
        #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..))]
        rounds: Option<u8>,
    },
    /// What runs inside the sandbox for `bench`.
    #[command(hide = true)]
    BenchInside {
        /// Make so many system calls and say what one takes.
        calls: Option<u64>,
        /// While somebody looks by this means.
        #[arg(long, default_value = "nothing")]
        by: String,
    },
    /// A server that `bench net` measures us beside.
    #[command(hide = true)]
    BenchServe {
        /// Which.
        what: String,
        /// Where.
        port: u16,
    },
    /// A client of `bench sockets`.
    #[command(hide = true)]
    BenchAsk {
        /// What it asks.
        what: String,
        /// Where.
        port: u16,
        /// For how long.
        ms: u64,
    },
    /// Say what this machine has, and what is lost without the rest.
    #[command(after_help = "Example: sbx-launcher doctor")]
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check and show policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Show four kinds of programs sharing one extension.
    #[command(after_help = "Example: sbx-launcher demo   (after cargo build --release)")]
    Demo,
    /// Print commands that have gdb name functions of libos and the extensions, or have perf name them.
    #[command(after_help = "Examples: sbx-launcher symbols web > web.gdb; gdb -p PID -x web.gdb
          perf record -p PID; sbx-launcher symbols web --perf names; perf report --symfs names")]
    Symbols {
        /// Sandbox.
        name: String,
        /// Write a file for perf into this folder, for its --symfs.
        #[arg(long, value_name = "DIR", conflicts_with = "json")]
        perf: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print what the extensions of a sandbox wrote and how they failed.
    #[command(after_help = "Example: sbx-launcher log web")]
    Log {
        /// Sandbox.
        name: String,
    },
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Say whether a policy file is sound.
    #[command(after_help = "Example: sbx-launcher policy check my.toml, with this in my.toml:
    version = 1
    [[syscall]]
    names = [\"mkdir\", \"mkdirat\"]
    action = \"errno:EPERM\"
    reason = \"nothing is made here\"
Actions: allow, errno:NAME, kill, log, upcall:EXTENSION.HANDLER.")]
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print the rules in force: the built-in ones, and those of a file.
    #[command(after_help = "Example: sbx-launcher policy show my.toml")]
    Show {
        /// The file.
        file: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum Ext {
    /// Load an extension.
    #[command(after_help = "Example: sbx-launcher ext load web target/release/libhello_upcall.so
         sbx-launcher ext load web libaudit.so --clamp path=/srv/www --clamp process=nginx --tee")]
    Load {
        /// Sandbox.
        name: String,
        /// The image.
        file: PathBuf,
        /// Configuration: key=value,key=value.
        #[arg(long, default_value = "")]
        config: String,
        /// Listen elsewhere than at PORT of 127.0.0.1 for a handler that is hooked to PORT (repeatable).
        #[arg(long, value_name = "PORT=ADDRESS:PORT")]
        listen: Vec<Listen>,
        /// Ask its handlers about some system calls only: about paths below a folder (path=/srv/www),
        /// descriptors (fd=0-2), processes (process=nginx, or a pid). Repeatable: of each kind one has to hold.
        #[arg(long, value_name = CLAMP)]
        clamp: Vec<Clamp>,
        /// Ask its handlers about system calls, and have them change nothing.
        #[arg(long)]
        tee: bool,
    },
    /// Put another version in the place of a loaded extension: it takes the state over, and calls
    /// that arrive meanwhile wait. If it cannot, the loaded one stays.
    #[command(after_help = "Example: sbx-launcher ext upgrade web target/release/libhello.so")]
    Upgrade {
        /// Sandbox.
        name: String,
        /// The image of the other version.
        file: PathBuf,
        /// Configuration: key=value,key=value; as before if it is not given.
        #[arg(long)]
        config: Option<String>,
    },
    /// Unload an extension. Upcalls that are inside it are ended.
    #[command(after_help = "Example: sbx-launcher ext unload web hello")]
    Unload {
        /// Sandbox.
        name: String,
        /// Name of the extension.
        extension: String,
    },
    /// List the loaded extensions and their handlers.
    #[command(after_help = "Example: sbx-launcher ext ls web --json")]
    Ls {
        /// Sandbox.
        name: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Do what was typed; the exit status.
#[must_use]
pub fn main(cli: Cli) -> i32 {
    let supervises =
        matches!(cli.command, Command::Run(_) | Command::Up { .. } | Command::Trace { .. });
    if !supervises && !matches!(cli.command, Command::Bench { .. } | Command::BenchInside { .. }) {
        run::end_when_nobody_reads();
    }
    let status = carry_out(cli.command).unwrap_or_else(|error| {
        eprintln!("sbx-launcher: {error}");
        run::LAUNCHER_FAILED
    });
    say::finish();
    status
}

fn carry_out(command: Command) -> Result<i32> {
    match command {
        Command::Run(run) => start(run),
        Command::Up { name, size, restore, sockets, network_waits } => {
            let len = size.saturating_mul(1 << 20);
            let choices = run::Choices { sockets, network_waits };
            run::up(&name, len, restore.as_deref(), choices).map(|()| 0)
        }
        Command::Snapshot { name, file } => {
            let file = absolute(file)?;
            let written = ask(&name, Request::Snapshot { file })?;
            println!("wrote {} extensions", written["extensions"]);
            Ok(0)
        }
        Command::Down { name } => ask(&name, Request::Down).map(|_| 0),
        Command::Ls { json } => list(json),
        Command::Ext(ext) => ext::carry_out(ext),
        Command::Call { name, handler, args, json } => call(&name, handler, args, json),
        Command::Post { name, handler, args, pid, any, urgent, .. } => {
            let kind = match (pid, any) {
                (Some(_), _) => HOW_PID,
                (None, true) => HOW_ANY,
                (None, false) => HOW_ALL,
            };
            let how = kind | if urgent { HOW_URGENT } else { 0 };
            let target = u64::from(pid.unwrap_or(0));
            let answer = ask(&name, Request::Post { handler, how, target, args })?;
            println!("posted to {}", answer["value"]);
            Ok(0)
        }
        Command::Ps { name, json, sockets: true } => connections(&name, json),
        Command::Ps { name, json, .. } => participants(&name, json),
        Command::Serve { port, at } => Ok(crate::serve::serve(port, at)?),
        Command::Net { name, json, top } => network(&name, json, top),
        Command::Stats { name, json } => stats(&name, json),
        Command::Trace { calls, count, out, json, argv } => {
            trace::run(trace::Trace { calls, count, json, out, argv })
        }
        Command::Bench { name, json, plot, quick, only, rounds } => {
            let quick_rounds = if name == "sockets" { 1 } else { 3 };
            let rounds = rounds.unwrap_or(if quick { quick_rounds } else { 7 }).into();
            measure(&name, bench::Options { rounds, quick, only }, json, plot)
        }
        Command::BenchInside { calls: Some(count), by } => Ok(bench::serve_calls(count, &by)),
        Command::BenchInside { .. } => Ok(bench::serve()),
        Command::BenchServe { what, port } => Ok(bench::serve_network(&what, port)),
        Command::BenchAsk { what, port, ms } => Ok(bench::ask(&what, port, ms)),
        Command::Doctor { json } => diagnose(json),
        Command::Policy(command) => policy(command),
        Command::Demo => crate::demo::run(),
        Command::Symbols { name, perf, json } => symbols(&name, perf.as_deref(), json),
        Command::Log { name } => {
            print!("{}", ask(&name, Request::Log)?["text"].as_str().unwrap_or(""));
            Ok(0)
        }
    }
}

fn start(
    Run { sandbox, ext, config, size, policy, sockets, listen, clamp, tee, harden, argv }: Run,
) -> Result<i32> {
    if let Some(level) = harden {
        let missing = doctor::missing_for(&level);
        if !missing.is_empty() {
            let missing = missing.join("; ");
            return Err(format!("--harden {level} cannot be enforced here: {missing}").into());
        }
    }
    let policy = Policy::in_force(policy.as_deref())?;
    if let Some(name) = sandbox {
        return run::in_named_sandbox(&name, argv, policy);
    }
    if !config.is_empty() && ext.is_empty() {
        return Err(
            "--config is for what this command loads, which is nothing: add --ext FILE".into()
        );
    }
    let len = size.saturating_mul(1 << 20);
    let terms = Terms { config, listen, clamps: clamp, tees: tee };
    let command = run::Command { argv, extensions: ext, terms, len, policy, sockets };
    run::in_own_sandbox(command, |_| ())
}

fn measure(name: &str, options: bench::Options, json: bool, plot: Option<PathBuf>) -> Result<i32> {
    // What takes minutes is not to be lost for want of a folder.
    let picture = plot.map(|file| picture(&file)).transpose()?;
    let report = bench::run(name, options)?;
    if let Some(mut picture) = picture {
        picture.set_len(0)?;
        picture.write_all(report.svg().as_bytes())?;
    }
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", report.table());
    }
    Ok(0)
}

fn picture(file: &Path) -> Result<File> {
    let opened = File::options().append(true).create(true).open(file);
    opened.map_err(|error| format!("{}: {error}", file.display()).into())
}

fn diagnose(json: bool) -> Result<i32> {
    let report = doctor::probe();
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", doctor::table(&report));
    }
    Ok(0)
}

fn policy(command: PolicyCommand) -> Result<i32> {
    let text = match command {
        PolicyCommand::Check { file } => policy::check(&file)?,
        PolicyCommand::Show { file } => policy::show_file(file.as_deref())?,
    };
    println!("{}", text.trim_end());
    Ok(0)
}

/// The file as a supervisor finds it, whose working directory is another.
fn absolute(file: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&file)
        .map_err(|error| format!("{}: the working directory: {error}", file.display()).into())
}

fn ask(name: &str, request: Request) -> Result<Value> {
    Ok(control::ask(name, &request, &[])?)
}

fn list(json: bool) -> Result<i32> {
    let (mut names, mut silent) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(control::runtime_dir()?)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        match control::answers(&name) {
            Some(true) => names.push(name),
            Some(false) => silent.push(name),
            None => {}
        }
    }
    names.sort();
    silent.sort();
    if json {
        println!("{}", serde_json::json!({ "sandboxes": names, "silent": silent }));
    } else {
        names.iter().for_each(|name| println!("{name}"));
        silent.iter().for_each(|name| println!("{name} (its supervisor does not answer)"));
    }
    Ok(0)
}

fn symbols(name: &str, perf: Option<&Path>, json: bool) -> Result<i32> {
    let answer = ask(name, Request::Symbols)?;
    if json {
        println!("{answer}");
        return Ok(0);
    }
    let files = answer["files"].as_array().into_iter().flatten();
    let files: Vec<(PathBuf, u64)> = files
        .map(|file| {
            (file["file"].as_str().unwrap_or("").into(), file["bias"].as_u64().unwrap_or(0))
        })
        .collect();
    let Some(folder) = perf else {
        for (path, bias) in files {
            println!("add-symbol-file {} -o {bias:#x}", path.display());
        }
        return Ok(0);
    };
    let place = ask(name, Request::Place)?;
    let number = |key: &str| place[key].as_u64().unwrap_or(0) as usize;
    let place =
        Place::new(number("base"), number("len")).ok_or("the supervisor names no region")?;
    perf::write(folder, place, &files)?;
    Ok(0)
}

fn call(name: &str, handler: String, args: Vec<String>, json: bool) -> Result<i32> {
    let answer = ask(name, Request::Call { handler, args })?;
    if json {
        println!("{answer}");
    } else if answer.get("none").is_some() {
        println!("(none)");
    } else {
        match &answer["value"] {
            Value::String(text) => println!("{text}"),
            Value::Null => {}
            other => println!("{other}"),
        }
    }
    Ok(0)
}

/// The ports of a sandbox; with `top` again and again, beside what has come since the last time.
fn network(name: &str, json: bool, top: bool) -> Result<i32> {
    let mut former = ask(name, Request::Net)?;
    if json {
        println!("{former}");
        return Ok(0);
    }
    print!("{}", crate::net::text(&former, None));
    if !top {
        return Ok(0);
    }
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let now = ask(name, Request::Net)?;
        // Clears the screen, and begins at its top.
        print!("\x1b[2J\x1b[H{}", crate::net::text(&now, Some(&former)));
        former = now;
    }
}

fn stats(name: &str, json: bool) -> Result<i32> {
    let answer = ask(name, Request::Stats)?;
    if json {
        println!("{answer}");
        return Ok(0);
    }
    let figures = |of: &str| {
        let number = |how: &str| answer[of][how].as_u64().unwrap_or(0);
        (number("patched"), number("trapped"))
    };
    let ((patched, trapped), (sites, left)) = (figures("calls"), figures("sites"));
    let share = patched as f64 * 100.0 / (patched + trapped).max(1) as f64;
    println!(
        "calls: {patched} from patched sites, {trapped} by a trap ({share:.2} % from patched sites)"
    );
    println!("sites: {sites} patched, {left} left on the trap (each process counts its own)");
    Ok(0)
}

fn connections(name: &str, json: bool) -> Result<i32> {
    let answer = ask(name, Request::Sockets)?;
    if json {
        println!("{answer}");
        return Ok(0);
    }
    println!(
        "{:<48} {:>8} {:>8} {:<9} {:>14} {:>14} {:>14} {:>14} {:>7}",
        "CONNECTION", "FROM", "TO", "STATE", "SENT", "BY KERNEL", "RECEIVED", "BY KERNEL", "WAKES"
    );
    for row in answer["connections"].as_array().into_iter().flatten() {
        let text = |key: &str| row[key].as_str().unwrap_or("").to_owned();
        let of = |way: &str, key: &str| row[way][key].as_u64().unwrap_or(0);
        println!(
            "{:<48} {:>8} {:>8} {:<9} {:>14} {:>14} {:>14} {:>14} {:>7}",
            text("name"),
            row["from"][0].as_u64().unwrap_or(0),
            row["to"][0].as_u64().unwrap_or(0),
            text("state"),
            of("sent", "carried"),
            of("sent", "by_kernel"),
            of("received", "carried"),
            of("received", "by_kernel"),
            of("sent", "wakes") + of("received", "wakes"),
        );
    }
    println!(
        "carried: {} bytes of {} connections so far; by the kernel: {} bytes of theirs, {} of them since \
         their reader slept or had not accepted yet",
        answer["carried_bytes"], answer["carried"], answer["kernel_bytes"], answer["asleep_bytes"]
    );
    println!(
        "not carried: {} whose other end is no participant, {} accepted from none, {} for want of a row",
        answer["not_taken"], answer["no_offer"], answer["no_row"]
    );
    crate::sockets::print_datagrams(&answer);
    Ok(0)
}

fn participants(name: &str, json: bool) -> Result<i32> {
    let answer = ask(name, Request::Ps)?;
    if json {
        println!("{answer}");
        return Ok(0);
    }
    println!(
        "{:>8} {:<16} {:>8} {:<7} {:<6} {:>8} {:>12} {:>8}",
        "PID", "NAME", "PARENT", "STATE", "HOW", "CONTEXTS", "UPCALLS", "EVENTS"
    );
    for row in answer["participants"].as_array().into_iter().flatten() {
        // A name may have anything in it: an end of a line, or what a terminal obeys.
        let text = |key: &str| row[key].as_str().unwrap_or("").replace(char::is_control, "?");
        let number = |key: &str| row[key].as_u64().unwrap_or(0);
        println!(
            "{:>8} {:<16} {:>8} {:<7} {:<6} {:>8} {:>12} {:>8}",
            number("pid"),
            text("name"),
            number("parent"),
            text("state"),
            text("how"),
            number("contexts"),
            number("upcalls"),
            row["events"]["delivered"]
        );
    }
    let uses = answer["uses"].as_array().into_iter().flatten();
    let uses: Vec<String> = uses
        .map(|of| format!("{} of {} {}", of["used"], of["limit"], of["of"].as_str().unwrap_or("")))
        .collect();
    println!("in use: {}", uses.join(", "));
    println!("ended: {}, of which {} inside an upcall", answer["ended"], answer["ended_inside"]);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Cli, Command, Run};

    #[test]
    fn the_shortcut_says_what_the_parser_would() {
        let parsed = Cli::try_parse_from(["sbx-launcher", "run", "--", "true", "--size", "1"]);
        let argv = ["true", "--size", "1"].map(Into::into).into();
        let Command::Run(run) = parsed.unwrap().command else { panic!("another command") };
        assert_eq!(run, Run { argv, ..Run::default() });
    }
}
