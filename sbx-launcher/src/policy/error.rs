//! What can be wrong with a policy file.

use std::fmt;
use std::io;

use super::rule::OPS;

/// Something in a policy file that its author has to change.
#[derive(Debug)]
pub struct PolicyError {
    /// The file, as the user named it.
    pub file: String,
    /// Line, from 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// What it is.
    pub problem: Problem,
}

/// What is wrong with a line of a policy.
#[derive(Debug)]
pub enum Problem {
    /// The file could not be read.
    Unreadable(io::Error),
    /// It is not TOML, or has keys that a policy has not; the parser's words.
    Syntax(String),
    /// It is of a version that this launcher does not know.
    Version(i64),
    /// A rule without names.
    NoNames,
    /// A rule without a reason.
    NoReason,
    /// No system call or set has this name.
    UnknownSyscall {
        /// As written.
        name: String,
        /// One that exists.
        nearest: &'static str,
    },
    /// No action is written so.
    UnknownAction(String),
    /// No error has this name.
    UnknownErrno {
        /// As written.
        name: String,
        /// One that exists.
        nearest: String,
    },
    /// No comparison is written so.
    UnknownOp(String),
    /// No constant has this name.
    UnknownConstant {
        /// As written.
        name: String,
        /// One that exists.
        nearest: &'static str,
    },
    /// System calls have arguments 0 to 5.
    NoSuchArg(i64),
    /// `bits` is 32 or 64.
    NoSuchWidth(i64),
    /// The value has more bits than are compared.
    TooWide(i64),
    /// `upcall:` without EXTENSION.HANDLER.
    NoHandler(String),
    /// A call that no handler can be asked about.
    NotHookable(String),
    /// Conditions of a rule whose handler sees the arguments itself.
    UpcallWithConditions,
    /// A rule has more conditions than arguments can make useful.
    TooManyConditions(usize),
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.problem),
            line => write!(f, "{}:{line}: {}", self.file, self.problem),
        }
    }
}

impl std::error::Error for PolicyError {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "the policy cannot be read: {error}"),
            Self::Syntax(text) => f.write_str(text),
            Self::Version(found) => {
                write!(f, "the policy is of version {found}, this launcher knows version 1")
            }
            Self::NoNames => {
                f.write_str("the rule names no system call: give `names` at least one")
            }
            Self::NoReason => f.write_str(
                "the rule has no reason: say in `reason` what would go wrong without it",
            ),
            Self::UnknownSyscall { name, nearest } => {
                write!(f, "no system call or set is called {name:?}; is it {nearest:?}?")
            }
            Self::UnknownAction(name) => write!(
                f,
                "no action is called {name:?}: there are \"allow\", \"log\", \"kill\", \
                 \"errno:NAME\" and \"upcall:EXTENSION.HANDLER\""
            ),
            Self::NoHandler(name) => {
                write!(f, "{name:?} is no handler: say \"upcall:EXTENSION.HANDLER\"")
            }
            Self::NotHookable(name) => {
                write!(f, "no handler can be asked about {name}: use another action for it")
            }
            Self::UpcallWithConditions => f.write_str(
                "an upcall has no conditions: its handler sees the arguments, and passes the others",
            ),
            Self::UnknownErrno { name, nearest } => {
                write!(f, "no error is called {name:?}; is it {nearest:?}?")
            }
            Self::UnknownOp(name) => {
                write!(f, "no comparison is written {name:?}: there are")?;
                OPS.iter().try_for_each(|(text, _)| write!(f, " {text:?}"))
            }
            Self::UnknownConstant { name, nearest } => {
                write!(f, "no constant is called {name:?}; is it {nearest:?}? A number works too")
            }
            Self::NoSuchArg(arg) => {
                write!(f, "there is no argument {arg}: a system call has arguments 0 to 5")
            }
            Self::NoSuchWidth(bits) => write!(f, "`bits` is 32 or 64, not {bits}"),
            Self::TooWide(value) => write!(f, "{value} does not fit the 32 bits that are compared"),
            Self::TooManyConditions(count) => {
                write!(f, "{count} conditions in one rule: 12 are enough for two on each argument")
            }
        }
    }
}
