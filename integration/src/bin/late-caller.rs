//! Attaches to a named sandbox by itself, and has its children make upcalls as well: one each, or, if it is told how many
//! children to have, many from several threads at once.
#![expect(unsafe_code, reason = "forks")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use ext_api::client::Sandbox;
use ext_api::error::CallError;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let children = std::env::args().nth(2).and_then(|count| count.parse().ok());
    match children.map_or_else(|| attached(&name), |count| with_threads(&name, count)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("late-caller: {why}");
            ExitCode::FAILURE
        }
    }
}

fn add(sandbox: &Sandbox) -> Result<u64, CallError> {
    sandbox.invoke::<u64>(sandbox.find("hello.add")?, &[1])
}

fn attached(name: &str) -> Result<(), String> {
    let text = |error: CallError| error.to_string();
    let sandbox = Sandbox::attach(name).map_err(text)?;
    println!("{}: {}", sandbox.name(), add(&sandbox).map_err(text)?);
    // The same again is the same; another is refused.
    Sandbox::attach(name).map_err(text)?;
    match Sandbox::attach("another") {
        Err(CallError::AlreadyIn(known)) if known == name => {}
        other => return Err(format!("a second sandbox: {other:?}")),
    }
    for _ in 0..3 {
        // SAFETY: this process has one thread.
        match unsafe { fork() }.map_err(|error| error.to_string())? {
            ForkResult::Parent { child } => match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, 0)) => {}
                other => return Err(format!("the child: {other:?}")),
            },
            ForkResult::Child => std::process::exit(i32::from(add(&sandbox).is_err())),
        }
    }
    println!("with its children: {}", add(&sandbox).map_err(text)?);
    Ok(())
}

/// Children whose first upcalls come from several threads at once.
fn with_threads(name: &str, children: u32) -> Result<(), String> {
    let sandbox = Sandbox::attach(name).map_err(|error| error.to_string())?;
    for _ in 0..children {
        // SAFETY: this process has one thread.
        match unsafe { fork() }.map_err(|error| error.to_string())? {
            ForkResult::Parent { child } => match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, 0)) => {}
                other => return Err(format!("the child: {other:?}")),
            },
            ForkResult::Child => std::process::exit(i32::from(!all_at_once(&sandbox))),
        }
    }
    println!("with its children: {}", add(&sandbox).map_err(|error| error.to_string())?);
    Ok(())
}

fn all_at_once(sandbox: &Sandbox) -> bool {
    const THREADS: usize = 3;
    let there = AtomicUsize::new(0);
    let upcalls = || {
        there.fetch_add(1, Relaxed);
        while there.load(Relaxed) < THREADS {}
        (0..50).all(|_| add(sandbox).is_ok())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(upcalls)).collect();
        threads.into_iter().all(|thread| thread.join().unwrap_or(false))
    })
}
