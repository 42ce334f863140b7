//! A host of TCP, UDP and IP at a device, without threads or a clock: it does what is to be done when it is
//! polled, and says when that has to be next. With a simulated device it is a function of times and seed.
//!
//! The protocols are smoltcp's. What is added: names with a generation, listeners with a backlog, the end
//! of connections that nobody holds, and one wheel of timers for all of it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libos::wheel::Wheel;
use smoltcp::iface::{
    Config as InterfaceConfig, Interface, PollIngressSingleResult, PollResult, SocketHandle,
    SocketSet,
};
use smoltcp::socket::{Socket, tcp, udp};
use smoltcp::time::{Duration as Span, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpListenEndpoint};

use super::config::{Config, ConfigError, Congestion};
use super::error::Error;
use super::opening::opens;
use super::port::Port;
use crate::device::memory::Random;
use crate::device::{Counters, Device, Medium};

pub use self::connection::Ends;

mod connection;
mod datagrams;

/// Sockets and listeners of a host. Each poll looks at all of them.
pub const SOCKETS_MAX: usize = 1024;
/// Connections of a listener that wait to be accepted, or for the first packet of one.
pub const BACKLOG_MAX: usize = 128;
/// Frames that one poll takes or gives; then the caller has its turn.
const BATCH: usize = 256;
/// The item of the wheel that stands for the protocols' own timers; that of entry `n` is `n + 1`.
const PROTOCOLS: usize = 0;
/// How long a connection that nobody holds may take to end.
const ORPHAN_LIMIT: Duration = Duration::from_secs(60);
/// When to try again to send if a device that was full does not say when it has room.
const ROOM_RETRY: Duration = Duration::from_millis(1);
/// Ports that connections are made from.
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// A socket of a host. One that was closed is never another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id {
    index: u16,
    generation: u32,
}

/// What a name is of.
#[derive(Debug)]
enum Kind {
    Connection(SocketHandle),
    /// Nobody holds it, and it has not ended yet.
    Orphan(SocketHandle),
    Listener(Listener),
    Datagrams(SocketHandle),
}

#[derive(Debug)]
struct Listener {
    at: IpListenEndpoint,
    backlog: Vec<SocketHandle>,
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    kind: Option<Kind>,
}

/// The host.
pub struct Host {
    interface: Interface,
    port: Port,
    sockets: SocketSet<'static>,
    entries: Vec<Entry>,
    /// In microseconds.
    wheel: Box<Wheel<{ SOCKETS_MAX + 1 }>>,
    config: Config,
    clock: Clock,
    random: Random,
    /// The last poll has left something to do.
    is_busy: bool,
    /// Frames that the last poll took.
    taken: usize,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("port", &self.port).finish_non_exhaustive()
    }
}

/// A clock that goes `haste` times as fast as time.
#[derive(Debug, Clone, Copy)]
struct Clock {
    haste: u32,
}

impl Clock {
    fn at(self, now: Duration) -> Instant {
        let micros = now.as_micros().saturating_mul(self.haste.into());
        Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// When it will be `at`, at the earliest.
    fn reaches(self, at: Instant) -> Duration {
        let micros = at.total_micros().unsigned_abs();
        Duration::from_micros(micros.div_ceil(self.haste.into()))
    }

    fn span(self, of: Duration) -> Span {
        let micros = of.as_micros().saturating_mul(self.haste.into());
        Span::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

const fn tick(of: Duration) -> u64 {
    of.as_micros() as u64
}

impl Host {
    /// A host at `device`.
    ///
    /// # Errors
    /// There can be no such host.
    pub fn new(
        device: Box<dyn Device>,
        config: Config,
        now: Duration,
    ) -> Result<Self, ConfigError> {
        config.check(device.mtu())?;
        let mut random = Random(config.seed);
        let hardware = match device.medium() {
            Medium::Ethernet => HardwareAddress::Ethernet(EthernetAddress(config.hardware)),
            Medium::Ip => HardwareAddress::Ip,
        };
        let mut of_interface = InterfaceConfig::new(hardware);
        of_interface.random_seed = random.next();
        let mut port = Port::new(device);
        let clock = Clock { haste: config.haste() };
        let mut interface = Interface::new(of_interface, &mut port, clock.at(now));
        interface.update_ip_addrs(|addresses| {
            for &(address, bits) in &config.addresses {
                // There is room: `check` has counted.
                let _ = addresses.push(IpCidr::new(address.into(), bits));
            }
        });
        for gateway in &config.gateways {
            // There is room for one of each version.
            let _ = match gateway {
                IpAddr::V4(at) => interface.routes_mut().add_default_ipv4_route(*at),
                IpAddr::V6(at) => interface.routes_mut().add_default_ipv6_route(*at),
            };
        }
        Ok(Self {
            interface,
            port,
            sockets: SocketSet::new(Vec::new()),
            entries: Vec::new(),
            wheel: Box::new(Wheel::new(tick(now))),
            config,
            clock,
            random,
            is_busy: true,
            taken: 0,
        })
    }

    /// Take what has come, send what is to be sent, and do what is due. True if a socket may have changed.
    pub fn poll(&mut self, now: Duration) -> bool {
        let at = self.clock.at(now);
        (self.port.now, self.port.was_full) = (now, false);
        let (mut has_changed, mut taken, mut given) = (false, 0, 0);
        while taken < BATCH && self.fetch() {
            let seen = self.interface.poll_ingress_single(at, &mut self.port, &mut self.sockets);
            has_changed |= matches!(seen, PollIngressSingleResult::SocketStateChanged);
            taken += 1;
        }
        while given < BATCH {
            match self.interface.poll_egress(at, &mut self.port, &mut self.sockets) {
                PollResult::None => break,
                PollResult::SocketStateChanged => has_changed = true,
            }
            given += 1;
        }
        self.port.device.flush();
        self.taken = taken;
        self.is_busy = taken == BATCH || given == BATCH;
        self.turn(now);
        has_changed
    }

    /// Take the next frame from the device. One that would open a connection between ends that have one
    /// is forgotten: the socket that has it sends again what it has to.
    fn fetch(&mut self) -> bool {
        let medium = self.port.device.medium();
        let Some(frame) = self.port.fetch() else { return false };
        let Some((to, from)) = opens(medium, frame) else { return true };
        let found = self.sockets.iter().find_map(|(handle, socket)| match socket {
            Socket::Tcp(socket)
                if socket.local_endpoint() == Some(to)
                    && socket.remote_endpoint() == Some(from) =>
            {
                Some((handle, socket.state()))
            }
            _ => None,
        });
        if let Some((handle, state)) = found {
            let is_orphan =
                |entry: &Entry| matches!(entry.kind, Some(Kind::Orphan(of)) if of == handle);
            match self.entries.iter().position(is_orphan) {
                // Nothing but stray packets was waited for, and nobody will miss it.
                Some(index) if state == tcp::State::TimeWait => self.drop_orphan(index),
                _ => self.port.forget(),
            }
        }
        true
    }

    /// Whether the last poll took frames from the device.
    #[must_use]
    pub const fn took_frames(&self) -> bool {
        self.taken > 0
    }

    /// When to poll next, if nothing comes until then.
    #[must_use]
    pub fn next_at(&self, now: Duration) -> Option<Duration> {
        if self.is_busy {
            return Some(now);
        }
        let own = self.wheel.next().map(Duration::from_micros);
        own.into_iter().chain(self.port.device.next_at()).min()
    }

    /// Say that a wait for the device is to follow; see [`Device::arm`].
    ///
    /// # Errors
    /// Nothing will ever come again.
    pub fn arm(&mut self) -> std::io::Result<bool> {
        self.port.device.arm()
    }

    /// What the device has done.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.port.device.counters()
    }

    /// Connections that this side has ended, and whose octets or end the other has not acknowledged yet.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        use tcp::State::{Closed, Closing, FinWait1, LastAck};
        let state = |handle| self.sockets.get::<tcp::Socket<'_>>(handle).state();
        let is_unfinished = |entry: &&Entry| match entry.kind {
            Some(Kind::Connection(handle)) => matches!(state(handle), FinWait1 | Closing | LastAck),
            // One that is closed has a reset to send.
            Some(Kind::Orphan(handle)) => {
                matches!(state(handle), FinWait1 | Closing | LastAck | Closed)
            }
            _ => false,
        };
        self.entries.iter().filter(is_unfinished).count()
    }

    /// Move the wheel to `now`: set the protocols' timer, and end what has taken too long.
    fn turn(&mut self, now: Duration) {
        match self.interface.poll_at(self.clock.at(now), &self.sockets) {
            Some(at) => {
                let at = self.clock.reaches(at);
                let at = if self.port.was_full { at.max(now + ROOM_RETRY) } else { at };
                self.wheel.set(PROTOCOLS, tick(at));
            }
            None => self.wheel.clear(PROTOCOLS),
        }
        let mut due = Vec::new();
        self.wheel.advance(tick(now), |item| due.push(item));
        for item in due {
            match item {
                // What it stands for is done by the next poll.
                PROTOCOLS => self.is_busy = true,
                item => self.drop_orphan(item - 1),
            }
        }
        for index in 0..self.entries.len() {
            match &self.entries[index].kind {
                Some(Kind::Orphan(_)) => self.bury(index),
                Some(Kind::Listener(_)) => self.listen_again(index),
                _ => {}
            }
        }
    }

    /// Drop a connection that nobody holds if it has ended.
    fn bury(&mut self, index: usize) {
        let Some(Kind::Orphan(handle)) = self.entries[index].kind else { return };
        let socket = self.sockets.get::<tcp::Socket<'_>>(handle);
        // After an abort it has a reset to send, which makes it forget its peer.
        if socket.state() == tcp::State::Closed && socket.remote_endpoint().is_none() {
            self.drop_orphan(index);
        }
    }

    fn drop_orphan(&mut self, index: usize) {
        if let Some(Kind::Orphan(handle)) = self.entries[index].kind {
            self.wheel.clear(index + 1);
            self.sockets.remove(handle);
            self.free(index);
        }
    }

    /// An entry for `kind`.
    fn name(&mut self, kind: Kind) -> Result<Id, Error> {
        let free = self.entries.iter().position(|entry| entry.kind.is_none());
        let index = match free {
            Some(index) => index,
            None if self.entries.len() < SOCKETS_MAX => {
                self.entries.push(Entry { generation: 0, kind: None });
                self.entries.len() - 1
            }
            None => self.resting().ok_or(Error::Full)?,
        };
        let entry = &mut self.entries[index];
        entry.kind = Some(kind);
        Ok(Id { index: index as u16, generation: entry.generation })
    }

    /// The place of a connection that both sides have ended, and that only waits for stray packets.
    fn resting(&mut self) -> Option<usize> {
        let index = self.entries.iter().position(|entry| match entry.kind {
            Some(Kind::Orphan(handle)) => {
                self.sockets.get::<tcp::Socket<'_>>(handle).state() == tcp::State::TimeWait
            }
            _ => false,
        })?;
        self.drop_orphan(index);
        Some(index)
    }

    fn free(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        entry.kind = None;
        entry.generation = entry.generation.wrapping_add(1);
    }

    fn kind(&self, id: Id) -> Result<&Kind, Error> {
        let entry = self.entries.get(usize::from(id.index));
        let entry = entry.filter(|entry| entry.generation == id.generation);
        entry.and_then(|entry| entry.kind.as_ref()).ok_or(Error::NoSuch)
    }

    /// Whether this host has such an address.
    fn can_have(&self, local: SocketAddr) -> bool {
        let is_own = |(address, _): &(IpAddr, u8)| *address == local.ip();
        local.ip().is_unspecified() || self.config.addresses.iter().any(is_own)
    }

    /// Ports of sockets of one kind that are in use.
    fn is_taken(&self, port: u16, of: Protocol) -> bool {
        self.entries.iter().any(|entry| match (&entry.kind, of) {
            (Some(Kind::Listener(listener)), Protocol::Tcp) => listener.at.port == port,
            (Some(Kind::Connection(handle) | Kind::Orphan(handle)), Protocol::Tcp) => {
                let socket = self.sockets.get::<tcp::Socket<'_>>(*handle);
                // One that came to a listener does not keep others from listening there.
                socket
                    .local_endpoint()
                    .is_some_and(|local| local.port == port && EPHEMERAL.contains(&port))
            }
            (Some(Kind::Datagrams(handle)), Protocol::Udp) => {
                self.sockets.get::<udp::Socket<'_>>(*handle).endpoint().port == port
            }
            _ => false,
        })
    }

    /// A port that is free.
    fn any_port(&mut self, of: Protocol) -> Result<u16, Error> {
        let (first, count) = (*EPHEMERAL.start(), EPHEMERAL.len() as u64);
        let start = self.random.below(count);
        (0..count)
            .map(|step| first + ((start + step) % count) as u16)
            .find(|port| !self.is_taken(*port, of))
            .ok_or(Error::PortTaken)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

/// Where a listener at `local` is: any address is none in particular.
fn listen_at(local: SocketAddr, port: u16) -> IpListenEndpoint {
    let addr = (!local.ip().is_unspecified()).then(|| local.ip().into());
    IpListenEndpoint { addr, port }
}
