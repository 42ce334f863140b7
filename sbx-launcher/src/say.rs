//! What is printed: `print!`, `println!` and `eprintln!` of this crate.
//!
//! Those of the standard library panic where nothing can be written, as on a full disk. Here a command that
//! cannot print what it has found says so, and has the status of a failure. What cannot be written to
//! standard error stays unsaid, since there is nobody to tell.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};

use crate::run::LAUNCHER_FAILED;

/// To standard output.
macro_rules! print {
    ($($text:tt)*) => { $crate::say::out(format_args!($($text)*)) };
}

/// To standard output, as a line.
macro_rules! println {
    () => { print!("\n") };
    ($($text:tt)*) => { print!("{}\n", format_args!($($text)*)) };
}

/// To standard error, as a line.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::say::error(format_args!("{}\n", format_args!($($text)*))) };
}

/// Print, or end.
pub fn out(text: Arguments<'_>) {
    let written = io::stdout().write_fmt(text);
    written.unwrap_or_else(|error| end(&error));
}

/// Print what is still to be, or end.
pub fn finish() {
    let written = io::stdout().flush();
    written.unwrap_or_else(|error| end(&error));
}

/// Print to standard error, if that can be.
pub fn error(text: Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
}

fn end(why: &io::Error) -> ! {
    // Who reads no further is told nothing, as by SIGPIPE.
    if why.kind() == ErrorKind::BrokenPipe {
        std::process::exit(128 + libc::SIGPIPE);
    }
    eprintln!("sbx-launcher: standard output: {why}");
    std::process::exit(LAUNCHER_FAILED)
}
