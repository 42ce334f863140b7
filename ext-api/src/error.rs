//! What a caller is told when an upcall does not return a result.

use std::fmt;

use crate::abi::Status;

/// Why a call gave no result. Nothing happened if it was refused; a faulted handler may have done
/// a part of its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// This process is not a participant: start it with `sbx-launcher run`.
    NotAttached,
    /// This process is in another sandbox, of this name: it can be in one at most.
    AlreadyIn(String),
    /// A late attach failed: where, why, and what to do.
    Attach(String),
    /// The superblock of the region does not fit this program.
    Incompatible(String),
    /// There is no handler of this name.
    NotFound(String),
    /// The call was refused before the handler ran.
    Refused(Status),
    /// The handler began and did not finish; what it said last.
    Fault(Status, String),
    /// The handler returned an error: its text.
    Failed(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAttached => {
                f.write_str("not in a sandbox: start this program with `sbx-launcher run`")
            }
            Self::AlreadyIn(name) => {
                write!(f, "this process is in the sandbox {name}; a process is in one at most")
            }
            Self::Attach(why) => write!(f, "cannot attach: {why}"),
            Self::Incompatible(why) => write!(f, "the sandbox does not fit this program: {why}"),
            Self::NotFound(name) => {
                write!(f, "no handler {name}: load its extension (`sbx-launcher ext load`)")
            }
            Self::Refused(status) => write!(f, "refused ({status:?}): {status}"),
            Self::Fault(status, text) => write!(f, "fault ({status:?}): {status}: {text}"),
            Self::Failed(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for CallError {}
