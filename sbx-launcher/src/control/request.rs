//! What a supervisor can be asked.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::filter::Armed;
use crate::sandbox::terms::Terms;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Descriptors of the zones, to attach late.
    Attach,
    /// Have a handler decide system calls, as a policy wants.
    HookCalls {
        /// `extension.handler`.
        handler: String,
        /// Bit per number.
        calls: [u64; 8],
    },
    /// Where the region lies.
    Place,
    /// Take over the notifications of a command that is about to start; comes with a descriptor.
    Follow {
        /// What is hooked in it.
        armed: Armed,
    },
    /// End the sandbox.
    Down,
    /// Who takes part.
    Ps,
    /// Load an extension.
    Load {
        /// File, as the supervisor sees it.
        file: PathBuf,
        /// On what terms.
        terms: Terms,
    },
    /// Put another version in the place of a loaded extension.
    Upgrade {
        /// File, as the supervisor sees it.
        file: PathBuf,
        /// Configuration text; as before if there is none.
        config: Option<String>,
    },
    /// Write the state of all extensions to a file.
    Snapshot {
        /// File, as the supervisor sees it.
        file: PathBuf,
    },
    /// Unload an extension.
    Unload {
        /// Its name.
        name: String,
    },
    /// What is loaded.
    Extensions,
    /// How system calls of programs came.
    Stats,
    /// Which connections are carried.
    Sockets,
    /// Which ports handlers are hooked to, and what they have seen.
    Net,
    /// Have the asking participant serve a port itself; comes with the socket, unless another does already.
    Serve {
        /// Datagrams, rather than connections?
        udp: bool,
        /// Where the socket is bound.
        at: SocketAddr,
    },
    /// Have it serve that no longer.
    Leave {
        /// Its seat.
        seat: usize,
    },
    /// Which file's code lies where.
    Symbols,
    /// Run a handler in the worker.
    Call {
        /// `extension.handler`.
        handler: String,
        /// Arguments as typed.
        args: Vec<String>,
    },
    /// Post an event, in the worker.
    Post {
        /// `extension.handler`.
        handler: String,
        /// As [`ext_api::abi::HOW_KIND`].
        how: u64,
        /// A pid, if that is what `how` says.
        target: u64,
        /// Arguments as typed.
        args: Vec<String>,
    },
    /// The log of the sandbox.
    Log,
}

impl Request {
    pub(super) const fn is_repeatable(&self) -> bool {
        !matches!(
            self,
            Self::Down
                | Self::Load { .. }
                | Self::Upgrade { .. }
                | Self::Snapshot { .. }
                | Self::Unload { .. }
                | Self::Call { .. }
                | Self::Post { .. }
        )
    }
}
