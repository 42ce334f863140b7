//! How the launcher starts: without what Rust's start would do for it.
//!
//! That reads `/proc/self/maps` to find the stack's guard page, and maps a stack for the handler that
//! says "stack overflow": a twentieth of a launch, for a message. What the launcher relies on of the rest
//! is done here.
#![expect(unsafe_code, reason = "looks after descriptors and a signal")]

use std::io::ErrorKind::BrokenPipe;
use std::panic::catch_unwind;

use crate::cli;
use crate::run::LAUNCHER_FAILED;

/// Exit status of a panic, as Rust's own start has it.
const PANICKED: i32 = 101;

/// What Rust's start does for programs: descriptors 0 to 2 are open, lest a zone's become one of them,
/// and a pipe that nobody reads is an error of the write.
pub fn begin() {
    for fd in 0..3 {
        // SAFETY: takes numbers only.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            // SAFETY: a text that ends with a zero; the lowest number that is free is this one.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        }
    }
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Do what was typed; the exit status.
#[must_use]
pub fn main() -> i32 {
    catch_unwind(|| match cli::parse() {
        Ok(cli) => cli::main(cli),
        Err(error) => {
            let unsaid = error.print().is_err_and(|why| why.kind() != BrokenPipe);
            if error.use_stderr() || unsaid { LAUNCHER_FAILED } else { 0 }
        }
    })
    .unwrap_or(PANICKED)
}
