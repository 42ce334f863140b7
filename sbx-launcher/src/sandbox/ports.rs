//! Ports that handlers are hooked to: their sockets, which the supervisor makes and keeps, so that none
//! is lost with the worker that serves them; and the pool of buffers that this worker owns.
#![expect(unsafe_code, reason = "writes the superblock through the supervisor's alias")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::str::FromStr;
use std::sync::atomic::Ordering::{Relaxed, Release};

use clap::ValueEnum;
use ext_api::abi::Superblock;
use ext_api::limits::{PORTS_MAX, SEATS_MAX};
use ext_api::pool::{POOL_LEN, Pool, Tally};
use libos::manifest::{Hook, Port};
use netio::address::Address;
use netio::listen;
use serde::{Deserialize, Serialize};

use super::terms::Terms;
use super::{Sandbox, SandboxError};

/// How the worker that serves the network waits for what comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Waits {
    /// It looks for a moment if that has paid lately, then sleeps.
    #[default]
    Sleep,
    /// It looks all the time: costs a core.
    Look,
    /// It sleeps, and a thread of the kernel's looks for what it asks for (SQPOLL): costs a core
    /// while there is traffic, and 10 ms after.
    Sqpoll,
}

/// Where a port is listened to, if not at its own number of 127.0.0.1: `9000=0.0.0.0:53`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// The port that a handler names.
    pub port: u16,
    /// Where.
    pub at: SocketAddr,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rule = || format!("{text:?}: expected PORT=ADDRESS:PORT, as in 9000=0.0.0.0:53");
        let (port, at) = text.split_once('=').ok_or_else(rule)?;
        Ok(Self { port: port.parse().map_err(|_| rule())?, at: at.parse().map_err(|_| rule())? })
    }
}

/// Whose ports the places to listen at are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Those of the extension that is loaded: one that it has no port for is an error.
    One,
    /// Those of any that are loaded together; see [`Sandbox::check_terms`].
    Any,
}

/// A port that a handler of a loaded extension is hooked to.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Its row of the tallies, free again when the last copy of this goes.
    pub number: Rc<usize>,
    /// What the handler names.
    pub port: Port,
    /// `extension.handler`.
    pub handler: String,
    /// The socket; none of `udp *`.
    pub fd: Option<Rc<OwnedFd>>,
    /// Where it listens; none of an interface.
    pub at: Option<SocketAddr>,
}

/// A port that processes serve themselves.
#[derive(Debug)]
pub struct Shared {
    /// The port.
    pub opened: Opened,
    /// Who serves it: seat and pid.
    pub seats: Vec<(Rc<usize>, u32)>,
}

/// Is each of `listen` for one of `ports`?
fn check_used(listen: &[Listen], ports: impl Iterator<Item = Port>) -> Result<(), SandboxError> {
    let is_for =
        |port, one: &Listen| matches!(port, Port::Udp(at) | Port::Tcp(at) if at == one.port);
    let ports: Vec<Port> = ports.collect();
    let unused = listen.iter().find(|one| !ports.iter().any(|port| is_for(*port, one)));
    let again =
        |(index, one): &(usize, &Listen)| listen[..*index].iter().any(|it| it.port == one.port);
    if let Some((_, Listen { port, at })) = listen.iter().enumerate().find(again) {
        let what =
            format!("--listen {port}={at}: port {port} has a place already; name one for each");
        return Err(SandboxError::Refused(what));
    }
    unused.map_or(Ok(()), |Listen { port, at }| {
        Err(SandboxError::Refused(format!(
            "--listen {port}={at}: no handler is hooked to port {port}"
        )))
    })
}

/// Numbers that are in use, of ports, of seats or of clamps.
pub(super) type Numbers = Vec<Weak<usize>>;

/// One of `count` numbers that is free: the first from `from` on, round and round.
pub(super) fn free_number(numbers: &mut Numbers, count: usize, from: usize) -> Option<Rc<usize>> {
    numbers.resize(count, Weak::new());
    let mut all = (0..count).map(|at| (from + at) % count);
    let free = all.find(|&at| numbers[at].strong_count() == 0)?;
    let number = Rc::new(free);
    numbers[free] = Rc::downgrade(&number);
    Some(number)
}

impl Sandbox {
    /// Open the ports that `handlers` are hooked to; those that are among `kept` stay as they are.
    pub(super) fn open_ports(
        &mut self,
        handlers: &[(Hook, String)],
        listen: &[Listen],
        kept: &[Opened],
    ) -> Result<Vec<Opened>, SandboxError> {
        let wanted = handlers.iter().filter_map(|(hook, handler)| match hook {
            Hook::Network(port) if !port.is_brought() => Some((*port, handler)),
            _ => None,
        });
        let mut opened: Vec<Opened> = Vec::new();
        for (port, handler) in wanted {
            let same = |known: &&Opened| known.port == port && known.handler == *handler;
            let known = kept.iter().find(same).cloned();
            opened.push(match known {
                Some(known) => known,
                None => self.open_port(port, handler, listen)?,
            });
        }
        Ok(opened)
    }

    /// Is each of these for a port that one of `handlers` is hooked to?
    pub(super) fn check_listen_of(
        handlers: &[(Hook, String)],
        listen: &[Listen],
    ) -> Result<(), SandboxError> {
        let port = |(hook, _): &(Hook, String)| match hook {
            Hook::Network(port) => Some(*port),
            _ => None,
        };
        check_used(listen, handlers.iter().filter_map(port))
    }

    /// Is each place of these for a port that a handler of a loaded extension is hooked to, and each name that of
    /// a loaded extension?
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_terms(&self, terms: &Terms) -> Result<(), SandboxError> {
        check_used(&terms.listen, self.ports().map(|(port, _)| port.port))?;
        let names = self.loaded.iter().map(|known| &known.name[..]);
        terms.check_names(names).map_err(SandboxError::Refused)
    }

    fn open_port(
        &mut self,
        port: Port,
        handler: &str,
        listen: &[Listen],
    ) -> Result<Opened, SandboxError> {
        self.make_pool()?;
        let place = |port: u16| {
            let asked = listen.iter().find(|one| one.port == port).map(|one| one.at);
            asked.unwrap_or_else(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
        };
        let (made, at) = match port {
            Port::Udp(0) => (Ok(None), None),
            Port::Udp(number) => (listen::udp(place(number)).map(Some), Some(place(number))),
            Port::Tcp(number) => (listen::tcp(place(number)).map(Some), Some(place(number))),
            Port::Interface(name) => {
                let name = String::from_utf8_lossy(&name);
                (listen::interface(name.trim_end_matches('\0')).map(Some), None)
            }
        };
        let fd = made.map_err(|error| {
            let place = at.map_or(String::new(), |at| format!(" at {at}"));
            let advice = advice_for(port, &error);
            SandboxError::Refused(format!("handler {handler} on {port}{place}: {error}{advice}"))
        })?;
        // The kernel's choice, if it was left to it.
        let chosen =
            fd.as_ref().and_then(|fd| Address::of_socket(fd.as_raw_fd(), false).net().socket());
        let number = self.port_number()?;
        Ok(Opened {
            number,
            port,
            handler: handler.to_owned(),
            fd: fd.map(Rc::new),
            at: chosen.or(at),
        })
    }

    /// Give the process `pid` a seat at a port: at the one of this address that others serve already, or at
    /// a new one with this socket. The seat's number, and the socket; None if there is neither.
    pub fn take_seat(
        &mut self,
        pid: u32,
        port: Port,
        at: SocketAddr,
        fd: Option<OwnedFd>,
    ) -> Result<Option<(usize, Rc<OwnedFd>)>, SandboxError> {
        if self.joined_as(pid).is_none() {
            return Err(SandboxError::Refused(format!("pid {pid} takes no part in the sandbox")));
        }
        let same = |one: &Shared| one.opened.at == Some(at) && kind(one.opened.port) == kind(port);
        let index = match (self.shared.iter().position(same), fd) {
            (Some(index), _) => index,
            (None, None) => return Ok(None),
            (None, Some(fd)) => {
                self.make_pool()?;
                let number = self.port_number()?;
                let opened = Opened {
                    number,
                    port,
                    handler: String::new(),
                    fd: Some(Rc::new(fd)),
                    at: Some(at),
                };
                self.shared.push(Shared { opened, seats: Vec::new() });
                self.shared.len() - 1
            }
        };
        let seat =
            free_number(&mut self.seat_numbers, SEATS_MAX, self.next_seat).ok_or_else(|| {
                let what =
                    format!("{SEATS_MAX} processes serve ports already; wait until one ends");
                SandboxError::Refused(what)
            })?;
        self.changed();
        let number = *seat;
        // Not the same again soon: what is on its way to its last process is not for the next.
        self.next_seat = number + 1;
        let shared = &mut self.shared[index];
        shared.seats.push((seat, pid));
        Ok(shared.opened.fd.clone().map(|fd| (number, fd)))
    }

    /// The process `pid` gives a seat up; all of its seats if it does not say which.
    pub fn leave_seat(&mut self, pid: u32, seat: Option<usize>) {
        let leaves =
            |known: &(Rc<usize>, u32)| known.1 == pid && seat.is_none_or(|seat| seat == *known.0);
        if !self.shared.iter().any(|one| one.seats.iter().any(leaves)) {
            return;
        }
        self.changed();
        self.shared.iter_mut().for_each(|one| one.seats.retain(|known| !leaves(known)));
        self.shared.retain(|one| !one.seats.is_empty());
    }

    /// Ports that processes serve themselves.
    #[must_use]
    pub fn shared(&self) -> &[Shared] {
        &self.shared
    }

    fn port_number(&mut self) -> Result<Rc<usize>, SandboxError> {
        let number = free_number(&mut self.port_numbers, PORTS_MAX, 0).ok_or_else(|| {
            SandboxError::Refused(format!(
                "{PORTS_MAX} ports are served already; unload an extension first"
            ))
        })?;
        if let Some(tally) = self.tally(*number) {
            tally.reset();
        }
        Ok(number)
    }

    /// Make room for the pool, if there is none yet.
    fn make_pool(&mut self) -> Result<(), SandboxError> {
        if self.pool.is_some() {
            return Ok(());
        }
        let offset = self.free_arena(POOL_LEN)?;
        self.zones
            .commit(offset, POOL_LEN)
            .map_err(|error| SandboxError::Kernel("reserving memory for packets", error))?;
        self.pool = Some(offset);
        let superblock = self.zones.control.alias().cast::<Superblock>();
        // SAFETY: the control zone begins with the superblock.
        let word = unsafe { &(*superblock).pool };
        word.store((self.zones.place.base + offset) as u64, Release);
        Ok(())
    }

    /// Address of the pool in participants; None if there is none.
    #[must_use]
    pub fn pool(&self) -> Option<usize> {
        self.pool.map(|offset| self.zones.place.base + offset)
    }

    /// What port `number` has seen.
    #[must_use]
    pub fn tally(&self, number: usize) -> Option<&Tally> {
        let pool = self.zones.data.alias().wrapping_add(self.pool?).cast::<Pool>();
        // SAFETY: within the data zone's alias, aligned, and all atomics.
        let pool = unsafe { &*pool };
        pool.tallies.get(number)
    }

    /// The ports that handlers are hooked to, and their handlers' handles.
    pub fn ports(&self) -> impl Iterator<Item = (&Opened, u64)> {
        self.loaded.iter().flat_map(|one| &one.ports).filter_map(|port| {
            let handlers = self.loaded.iter().flat_map(|one| &one.handlers);
            let row = handlers.filter(|it| it.name == port.handler).map(|it| it.row).next()?;
            Some((port, self.handle_of(row)))
        })
    }

    /// Buffers of the pool that its owner does not have, and all.
    #[must_use]
    pub fn buffers_out(&self) -> u64 {
        let numbers = 0..PORTS_MAX;
        numbers.filter_map(|it| self.tally(it)).map(|it| it.buffers.load(Relaxed)).sum()
    }
}

/// What to do about an error of a socket that was to be at an address, which `option` says.
pub(crate) fn advice(error: &io::Error, option: &str) -> String {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            format!("; end what has it (ss -lntup), or name another place by {option}")
        }
        Some(libc::EADDRNOTAVAIL) => {
            format!("; name an address of this host (ip addr) by {option}, or 0.0.0.0 for all")
        }
        Some(libc::EACCES) => {
            format!("; be root, have CAP_NET_BIND_SERVICE, or name another port by {option}")
        }
        _ => String::new(),
    }
}

/// What to do about an error of a port, where it does not say so itself.
fn advice_for(port: Port, error: &io::Error) -> String {
    match (port, error.raw_os_error()) {
        (Port::Interface(_), Some(libc::ENODEV)) => {
            "; make it first, in the network namespace that the sandbox was brought up in (ip link)"
                .to_owned()
        }
        (Port::Interface(_), Some(libc::EPERM)) => {
            "; bring the sandbox up with CAP_NET_RAW".to_owned()
        }
        (Port::Udp(number) | Port::Tcp(number), _) => {
            advice(error, &format!("--listen {number}=ADDRESS:PORT"))
        }
        _ => String::new(),
    }
}

/// Is it a datagram port?
const fn kind(port: Port) -> bool {
    matches!(port, Port::Udp(_))
}
