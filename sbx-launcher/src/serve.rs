//! A participant that serves the port of a handler at an address of its own.
//!
//! ```text
//!  others on the host ─── the kernel ──┐
//!                                      ├──► the engine over epoll, in this process ──► upcalls
//!  participants' clients ─── rings ────┘
//! ```
//!
//! It is a program like any other: its system calls are hooked, so that in a sandbox with `--sockets` its
//! connections to other participants go through the region. The worker's go by the kernel, since the
//! supervisor, whose child it is, is no participant. The buffers are the process's own: handlers run
//! here, and nobody else can be handed what has come.
#![expect(unsafe_code, reason = "calls the gate")]

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use ext_api::abi::{PacketBlock, Reply, Status};
use ext_api::client::Sandbox;
use ext_api::error::CallError;
use ext_api::pool::Holder;
use libos::manifest::Port;
use netio::buffers::Buffers;
use netio::engine::epoll::Epoll;
use netio::engine::{self, Engine, Kind};
use netio::listen;

use crate::clock::now_ns;
use crate::control::{self, Request};
use crate::sandbox::ports::advice;

/// How often is looked whether the handler is still the same.
const LOOK: Duration = Duration::from_secs(1);

/// Why nothing is served.
#[derive(Debug)]
pub enum ServeError {
    /// This process is in no sandbox, or in one of another version.
    Outside(CallError),
    /// The supervisor does not answer.
    Control(io::Error),
    /// No handler of the sandbox is hooked to this port.
    NoHandler(Port),
    /// It cannot be listened at this address.
    Listening(SocketAddr, io::Error),
    /// What failed, and why.
    Io(&'static str, io::Error),
}

impl std::fmt::Display for ServeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Outside(error) => write!(
                f,
                "{error}; serve is run in a sandbox: sbx-launcher run --sandbox NAME -- sbx-launcher \
                 serve ..."
            ),
            Self::Control(error) => error.fmt(f),
            Self::NoHandler(port) => {
                write!(
                    f,
                    "no handler is hooked to {port} (sbx-launcher net NAME lists those that are)"
                )
            }
            Self::Listening(at, error) => {
                write!(f, "listening at {at}: {error}{}", advice(error, "--at ADDRESS:PORT"))
            }
            Self::Io(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for ServeError {}

/// Serve the handler that is hooked to `port` at `at`, until this process is ended.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(port: u16, at: SocketAddr) -> Result<i32, ServeError> {
    let sandbox = Sandbox::current().map_err(ServeError::Outside)?;
    let (name, handler) = handler_of(&sandbox, Port::Tcp(port))?;
    let listener = listen::tcp(at).map_err(|error| ServeError::Listening(at, error))?;
    let buffers =
        Buffers::of_own(now_ns()).map_err(|error| ServeError::Io("making buffers", error))?;
    let epoll = Epoll::new().map_err(|error| ServeError::Io("epoll", error))?;
    let mut engine = Engine::new(epoll, Here { sandbox, is_stale: Cell::new(false) }, buffers);
    open(&mut engine, handler, &listener)?;
    println!("{name} serves {at}");
    let mut served = Served { port, name, handler, looked: Instant::now() };
    loop {
        turn(&mut engine, LOOK)?;
        served.follow(&mut engine, &listener)?;
    }
}

type Serving = Engine<Epoll, Here>;

fn turn(engine: &mut Serving, most: Duration) -> Result<(), ServeError> {
    engine.turn(Some(most)).map(drop).map_err(|error| ServeError::Io("waiting", error))
}

fn open(engine: &mut Serving, handler: u64, listener: &OwnedFd) -> Result<(), ServeError> {
    let listener = listener.try_clone();
    let opened = listener.and_then(|fd| engine.open(0, Kind::Tcp, handler, Some(fd)));
    opened.map_err(|error| ServeError::Io("serving the port", error))
}

/// What is served now.
struct Served {
    port: u16,
    name: String,
    handler: u64,
    looked: Instant,
}

impl Served {
    /// If the handler's extension was unloaded and another one is there for the port, serve that. What the former
    /// one had begun is cut, as the worker does.
    fn follow(&mut self, engine: &mut Serving, listener: &OwnedFd) -> Result<(), ServeError> {
        if !engine.sandbox().is_stale.take() && self.looked.elapsed() < LOOK {
            return Ok(());
        }
        self.looked = Instant::now();
        let sandbox = &engine.sandbox().sandbox;
        if sandbox.find(&self.name).is_ok_and(|handler| handler == self.handler) {
            return Ok(());
        }
        let Ok((name, handler)) = handler_of(sandbox, Port::Tcp(self.port)) else { return Ok(()) };
        engine.close(0);
        while engine.is_open(0) {
            turn(engine, Duration::from_millis(1))?;
        }
        (self.name, self.handler) = (name, handler);
        open(engine, handler, listener)
    }
}

/// The handler of a port: its name, and what it is called by.
fn handler_of(sandbox: &Sandbox, port: Port) -> Result<(String, u64), ServeError> {
    // That it is hooked to a port says that it takes what the engine gives it.
    let table = control::ask(sandbox.name(), &Request::Net, &[]).map_err(|error| {
        ServeError::Control(io::Error::new(
            error.kind(),
            format!("{error}; serve is run in a sandbox that has a name"),
        ))
    })?;
    let rows = table["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let row = rows.iter().find(|row| row["port"] == port.to_string());
    let name = row.and_then(|row| row["handler"].as_str()).ok_or(ServeError::NoHandler(port))?;
    let handler = sandbox.find(name).map_err(|_| ServeError::NoHandler(port))?;
    Ok((name.to_owned(), handler))
}

/// The sandbox, as the engine sees it from within a participant.
#[derive(Debug)]
struct Here {
    sandbox: Sandbox,
    /// The handler is not there any more.
    is_stale: Cell<bool>,
}

impl engine::Sandbox for Here {
    fn upcall(&mut self, handler: u64, block: &mut PacketBlock, reply: &mut Reply) -> u32 {
        let args = [std::ptr::from_mut(block).expose_provenance() as u64];
        // SAFETY: handlers that are hooked to the network take the address of a block.
        let status = unsafe { self.sandbox.call_raw(handler, &args, reply) };
        self.is_stale.set(self.is_stale.get() || status == Status::Stale as u32);
        status
    }

    fn release(&mut self, spill: *mut u8) {
        self.sandbox.release(&mut Reply { spill, ..Reply::empty() });
    }

    fn spilled(&self, _spill: u64, _len: usize) -> Option<*const u8> {
        None
    }

    /// Nobody else has these buffers.
    fn post(&mut self, _hand: [u64; 3], _word: u64) -> Status {
        Status::Gone
    }

    fn wake(&mut self, _word: &'static AtomicU32) {}

    fn is_over(&self, _holder: Holder, _upcall: u64) -> bool {
        true
    }

    fn now_ns(&self) -> u64 {
        now_ns()
    }
}
