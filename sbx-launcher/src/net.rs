//! The network of a sandbox: ports that handlers are hooked to, served by a worker of its own.
//!
//! ```text
//!  supervisor: makes and keeps the sockets ──► worker: io_uring, buffers in the region, upcalls
//!              "open 3 udp", a descriptor        │ hands packets on
//!              "close 3"                         ▼
//!                                            other participants
//! ```
//!
//! The worker outlives its supervisor if a keeper takes over, and is made anew if it is killed: the
//! sockets are the supervisor's, so that what waits in them is not lost.
#![expect(unsafe_code, reason = "ends the worker")]

mod worker;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use libos::manifest::Port;
use netio::engine::Kind;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::control;
use crate::follow::pidfd;
use crate::sandbox::Sandbox;
use crate::sandbox::ports::Opened;

/// A worker that died is made anew after so long.
const AGAIN: Duration = Duration::from_millis(50);

/// What the worker is told; with the descriptor, if the port has one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
enum Order {
    /// Serve a port.
    Open {
        /// Its row of the tallies.
        number: usize,
        /// What it is.
        kind: Kind,
        /// The handler's handle.
        handler: u64,
        /// The name of its interface, if it is one.
        interface: Option<String>,
    },
    /// A process serves a port itself, too.
    Sit {
        /// The port's row of the tallies.
        number: usize,
        /// The process's seat.
        seat: usize,
    },
    /// A process serves no longer.
    Leave {
        /// Its seat.
        seat: usize,
    },
    /// Serve it no longer.
    Close {
        /// Its row of the tallies.
        number: usize,
    },
    /// Serve none but these: a successor knows no others, whatever its predecessor has ordered since.
    Only {
        /// Their rows.
        numbers: Vec<usize>,
        /// The seats of processes that still serve.
        seats: Vec<usize>,
    },
}

/// A port as the worker knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    number: usize,
    handler: u64,
    fd: RawFd,
}

#[derive(Debug)]
struct Worker {
    pid: u32,
    pidfd: OwnedFd,
    control: OwnedFd,
    told: Vec<Told>,
    /// Seats, and the ports that they are at.
    seats: Vec<(usize, usize)>,
    /// A predecessor gave it orders that are not known.
    is_inherited: bool,
}

/// The supervisor's side of it.
#[derive(Debug, Default)]
pub struct Net {
    worker: Option<Worker>,
    /// The sandbox's changes that the worker knows.
    seen: Option<u64>,
    died: Option<Instant>,
}

impl Net {
    /// Is this the worker?
    #[must_use]
    pub fn is_worker(&self, pid: u32) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.pid == pid)
    }

    /// Is there one, whose upcalls somebody has to look after?
    #[must_use]
    pub const fn has_worker(&self) -> bool {
        self.worker.is_some()
    }

    /// It has ended.
    pub fn forget_worker(&mut self) {
        self.worker = None;
        self.seen = None;
        self.died = Some(Instant::now());
    }

    /// End it: one that is in a handler does not hear that there is nobody to give it orders.
    pub fn end_worker(&mut self) {
        if let Some(worker) = self.worker.take() {
            kill(&worker.pidfd);
        }
    }

    /// The supervisor that gave the worker its orders has died, and the caller takes its place.
    pub fn take_over(&mut self) {
        self.seen = None;
        if let Some(worker) = &mut self.worker {
            worker.is_inherited = true;
        }
    }

    /// How long until there is something to do; None if there is nothing.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        self.died.map(|when| AGAIN.saturating_sub(when.elapsed()))
    }

    /// Have the worker serve what is hooked now. True: there is something that the keeper has to know.
    #[must_use]
    pub fn run(&mut self, sandbox: &Sandbox) -> bool {
        if self.left().is_some_and(|left| !left.is_zero()) {
            return false;
        }
        self.died = None;
        if self.seen == Some(sandbox.changes) {
            return false;
        }
        self.seen = Some(sandbox.changes);
        let is_new = self.worker.is_none() && has_ports(sandbox);
        if is_new && let Err(error) = self.start(sandbox) {
            let text = format!("sbx: the network's worker cannot be started: {error}\n");
            sandbox.common().log().append(text.as_bytes());
            self.forget_worker();
            return false;
        }
        let Some(worker) = &mut self.worker else { return false };
        let told = worker.tell(sandbox);
        if told.is_err() {
            // It has died, or is about to: the next one is told everything.
            self.seen = None;
        }
        is_new || told.unwrap_or(true)
    }

    fn start(&mut self, sandbox: &Sandbox) -> io::Result<()> {
        let (pid, control) = worker::start(sandbox)?;
        // Our own child: it is there until it is waited for.
        let pidfd = pidfd(pid).ok_or_else(io::Error::last_os_error)?;
        self.worker = Some(Worker {
            pid,
            pidfd,
            control,
            told: Vec::new(),
            seats: Vec::new(),
            is_inherited: false,
        });
        Ok(())
    }
}

impl Worker {
    /// Tell it what has changed; false if nothing has.
    fn tell(&mut self, sandbox: &Sandbox) -> io::Result<bool> {
        let wanted: Vec<(Told, Kind, Option<String>)> = all_ports(sandbox)
            .map(|(port, handler)| (told(port, handler), kind_of(port.port), name_of(port.port)))
            .collect();
        let seats: Vec<(usize, usize)> = sandbox
            .shared()
            .iter()
            .flat_map(|port| port.seats.iter().map(|(seat, _)| (**seat, *port.opened.number)))
            .collect();
        let before = (self.told.clone(), self.seats.clone());
        if std::mem::take(&mut self.is_inherited) {
            let numbers = wanted.iter().map(|(told, ..)| told.number).collect();
            let seats = seats.iter().map(|(seat, _)| *seat).collect();
            self.order(&Order::Only { numbers, seats }, None)?;
            self.told.clear();
            self.seats.clear();
        }
        for (seat, _) in self.seats.iter().filter(|known| !seats.contains(known)) {
            self.order(&Order::Leave { seat: *seat }, None)?;
        }
        self.seats.retain(|known| seats.contains(known));
        let (kept, gone): (Vec<Told>, Vec<Told>) =
            self.told.iter().partition(|known| wanted.iter().any(|(told, ..)| told == *known));
        for known in gone {
            self.order(&Order::Close { number: known.number }, None)?;
        }
        self.told = kept;
        for (told, kind, interface) in wanted {
            if self.told.contains(&told) {
                continue;
            }
            let Told { number, handler, .. } = told;
            let order = Order::Open { number, kind, handler, interface };
            self.order(&order, (told.fd >= 0).then_some(told.fd))?;
            self.told.push(told);
        }
        for known in seats {
            if !self.seats.contains(&known) {
                let (seat, number) = known;
                self.order(&Order::Sit { number, seat }, None)?;
                self.seats.push(known);
            }
        }
        Ok((&self.told, &self.seats) != (&before.0, &before.1))
    }

    fn order(&self, order: &Order, fd: Option<RawFd>) -> io::Result<()> {
        control::send(&self.control, &serde_json::to_string(order)?, fd.as_slice())
    }
}

/// The ports of handlers and their handles, and those that processes serve themselves.
fn all_ports(sandbox: &Sandbox) -> impl Iterator<Item = (&Opened, u64)> {
    sandbox.ports().chain(sandbox.shared().iter().map(|port| (&port.opened, 0)))
}

fn has_ports(sandbox: &Sandbox) -> bool {
    all_ports(sandbox).next().is_some()
}

fn kill(process: &OwnedFd) {
    let (fd, none) = (process.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: takes numbers and no information. One that has ended needs no end.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, none, 0) };
}

fn told(port: &Opened, handler: u64) -> Told {
    let fd = port.fd.as_ref().map_or(-1, |fd| fd.as_raw_fd());
    Told { number: *port.number, handler, fd }
}

const fn kind_of(port: Port) -> Kind {
    match port {
        Port::Udp(0) => Kind::AnyUdp,
        Port::Udp(_) => Kind::Udp,
        Port::Tcp(_) => Kind::Tcp,
        Port::Interface(_) => Kind::Interface,
    }
}

/// The name of a port's interface, if it is one.
fn name_of(port: Port) -> Option<String> {
    let Port::Interface(name) = port else { return None };
    Some(String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned())
}

/// The ports of a sandbox and what they have seen, for people and scripts.
#[must_use]
pub fn table(sandbox: &Sandbox, net: &Net) -> Value {
    let of_handlers = sandbox.ports().map(|(port, _)| row(sandbox, port, port.handler.clone()));
    let shared = sandbox.shared().iter().map(|port| {
        let pids: Vec<String> = port.seats.iter().map(|(_, pid)| pid.to_string()).collect();
        row(sandbox, &port.opened, format!("pid {}", pids.join(" ")))
    });
    let ports: Vec<Value> = of_handlers.chain(shared).collect();
    json!({
        "ports": ports,
        "worker": net.worker.as_ref().map(|worker| worker.pid),
        "buffers_out": sandbox.buffers_out(),
    })
}

fn row(sandbox: &Sandbox, port: &Opened, handler: String) -> Value {
    let mut row = json!({
        "port": port.port.to_string(),
        "at": port.at.map(|at| at.to_string()),
        "handler": handler,
    });
    for (name, count) in sandbox.tally(*port.number).iter().flat_map(|tally| tally.counts()) {
        row[name] = count.load(Relaxed).into();
    }
    row
}

/// The table as text; with what came since `former`, a second ago.
#[must_use]
pub fn text(now: &Value, former: Option<&Value>) -> String {
    const COLUMNS: [&str; 6] = ["received", "replied", "forwarded", "handed", "dropped", "failed"];
    let mut text = format!("{:<14} {:<22} {:<24}", "PORT", "AT", "HANDLER");
    let unit = if former.is_some() { "/S" } else { "" };
    COLUMNS.iter().for_each(|name| text += &format!(" {:>12}", name.to_uppercase() + unit));
    text += &format!(" {:>10} {:>8} {:>8}\n", "OPEN", "BUFFERS", "LOST");
    let ports = |table: &Value| table["ports"].as_array().cloned().unwrap_or_default();
    let before = former.map(ports).unwrap_or_default();
    for (index, port) in ports(now).iter().enumerate() {
        let word = |key: &str| port[key].as_str().unwrap_or("-").to_owned();
        let count = |port: &Value, key: &str| port[key].as_u64().unwrap_or(0);
        text += &format!("{:<14} {:<22} {:<24}", word("port"), word("at"), word("handler"));
        for name in COLUMNS {
            let since = before.get(index).map_or(0, |port| count(port, name));
            text += &format!(" {:>12}", count(port, name).saturating_sub(since));
        }
        let lost = ["lost", "unsent", "too_long"].map(|key| count(port, key)).iter().sum::<u64>();
        let (open, buffers) = (count(port, "open"), count(port, "buffers"));
        text += &format!(" {open:>10} {buffers:>8} {lost:>8}\n");
    }
    text
}
