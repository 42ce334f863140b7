//! TCP, UDP and IP in the program itself, over a [`Device`]: what the sockets of `std` are over the kernel.
//!
//! ```text
//!   TcpListener  TcpStream  UdpSocket       block, like those of std
//!        └───────────┼──────────┘
//!                  Stack                    one lock; who waits, waits for all
//!                    │
//!                  Host                     decides; takes the time as an argument
//!                    │
//!                  Device
//! ```
//!
//! A stack has no thread: whoever waits in a call does its work meanwhile. The first of several leads,
//! that is, waits for the device; the others wait for the first. A program that goes about something else
//! for long, and whose peers are not to notice, has [`Stack::drive`] make a thread that always waits.
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::SocketAddr;
//!
//! use netio::device::Medium;
//! use netio::device::memory::{Faults, pair};
//! use netio::stack::{Config, Stack};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let [one, other] = pair(Medium::Ethernet, 1500, Faults::default(), 0);
//! let client = Stack::new(one, Config::new([10, 0, 0, 1].into(), 24))?;
//! let server = Stack::new(other, Config::new([10, 0, 0, 2].into(), 24))?;
//! let listener = server.listen(7, 4)?;
//! let _driver = server.drive()?;
//! let mut stream = client.connect(SocketAddr::from(([10, 0, 0, 2], 7)))?;
//! listener.accept()?.write_all(b"hello")?;
//! let mut got = String::new();
//! stream.read_to_string(&mut got)?;
//! assert_eq!(got, "hello");
//! # Ok(())
//! # }
//! ```
//!
//! What is not here: fragments of IP, selective acknowledgements that are sent, DHCP, DNS, multicast.
//!
//! The time at which to wake up is one wheel's ([`libos::wheel`], in [`host::Host`]): the protocols' own
//! timers are one item of it, since smoltcp tells only the next of them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use self::config::{ADDRESSES_MAX, Config, ConfigError, Congestion};
pub use self::error::Error;
use self::host::Host;
pub use self::tcp::{TcpListener, TcpStream};
pub use self::udp::UdpSocket;
use crate::device::{Counters, Device, Waiter};

#[cfg(test)]
mod blocking;
mod config;
mod error;
pub mod host;
mod opening;
mod port;
#[cfg(test)]
mod simulation;
mod tcp;
mod udp;

/// A host of this program's, with its sockets. Clones are of the same.
#[derive(Debug, Clone)]
pub struct Stack(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something has changed, or there is nobody who leads.
    changed: Condvar,
    waiter: Arc<dyn Waiter>,
    start: Instant,
    spin: Duration,
    give_up_after: Duration,
}

#[derive(Debug)]
struct State {
    host: Host,
    /// When the one who waits for the device will wake up by itself, if somebody does.
    leader: Option<Option<Duration>>,
    followers: u32,
    /// The device has gone.
    fault: Option<(io::ErrorKind, String)>,
}

impl Stack {
    /// A host at `device`.
    ///
    /// # Errors
    /// There can be no such host.
    pub fn new(device: impl Device + 'static, config: Config) -> Result<Self, ConfigError> {
        let (spin, give_up_after) = (config.spin, config.give_up_after);
        let waiter = device.waiter();
        let host = Host::new(Box::new(device), config, Duration::ZERO)?;
        let state = State { host, leader: None, followers: 0, fault: None };
        Ok(Self(Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            waiter,
            start: Instant::now(),
            spin,
            give_up_after,
        })))
    }

    /// Listen for connections at `local`, of which `backlog` may wait; see [`Host::listen`].
    ///
    /// # Errors
    /// The port is taken, the address is not this host's, or there are too many sockets.
    pub fn listen_at(&self, local: SocketAddr, backlog: usize) -> io::Result<TcpListener> {
        TcpListener::new(&self.0, local, backlog)
    }

    /// Listen for connections at a port of every address.
    ///
    /// # Errors
    /// The port is taken, or there are too many sockets.
    pub fn listen(&self, port: u16, backlog: usize) -> io::Result<TcpListener> {
        self.listen_at(SocketAddr::from(([0, 0, 0, 0], port)), backlog)
    }

    /// Connect; gives up as the configuration says.
    ///
    /// # Errors
    /// The other host refuses or does not answer, or there are too many sockets.
    pub fn connect(&self, remote: SocketAddr) -> io::Result<TcpStream> {
        self.connect_timeout(remote, self.0.give_up_after)
    }

    /// Connect within a time.
    ///
    /// # Errors
    /// The other host refuses or has not answered by then, or there are too many sockets.
    pub fn connect_timeout(&self, remote: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        TcpStream::connect(&self.0, remote, limit)
    }

    /// A UDP socket at `local`; port 0 stands for any that is free.
    ///
    /// # Errors
    /// The port is taken, the address is not this host's, or there are too many sockets.
    pub fn bind(&self, local: SocketAddr) -> io::Result<UdpSocket> {
        UdpSocket::new(&self.0, local)
    }

    /// What the device has done.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.lock().host.counters()
    }

    /// Wait until the other sides of connections that were dropped or shut down have acknowledged all of
    /// it; false if that takes longer than `limit`. A program that ends before sends nothing more.
    ///
    /// # Errors
    /// The device has gone.
    pub fn finish(&self, limit: Duration) -> io::Result<bool> {
        let ended = self.0.block(Some(limit), |host, _| match host.unfinished() {
            0 => Ok(()),
            _ => Err(Error::Later),
        });
        match ended {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(false),
            ended => ended.map(|()| true),
        }
    }

    /// Have a thread do the stack's work until the value goes: pings are answered, and connections kept,
    /// whatever the program does. It mostly leads, so that others hear of frames from it, a little later.
    ///
    /// # Errors
    /// There can be no more threads.
    pub fn drive(&self) -> io::Result<Driver> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (stack, ends) = (Self(Arc::clone(&self.0)), Arc::clone(&is_over));
        let thread = std::thread::Builder::new().name("netio-stack".into()).spawn(move || {
            // It ends when it is told to, or with the device; whoever uses that is told.
            let _ = stack.0.block(None, |_, _| match ends.load(Ordering::Relaxed) {
                true => Ok(()),
                false => Err(Error::Later),
            });
        })?;
        Ok(Driver { shared: Arc::clone(&self.0), is_over, thread: Some(thread) })
    }
}

/// A thread that does a stack's work, for as long as this lives.
#[derive(Debug)]
pub struct Driver {
    shared: Arc<Shared>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let state = self.shared.lock();
        self.shared.changed.notify_all();
        if state.leader.is_some() {
            self.shared.waiter.wake();
        }
        drop(state);
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, that was said.
            let _ = thread.join();
        }
    }
}

impl State {
    fn check(&self) -> io::Result<()> {
        match &self.fault {
            Some((kind, why)) => Err(io::Error::new(*kind, why.clone())),
            None => Ok(()),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Do something that does not wait, and send what comes of it.
    fn once<T>(&self, act: impl FnOnce(&mut Host, Duration) -> T) -> T {
        let mut state = self.lock();
        let result = act(&mut state.host, self.now());
        self.settle(&mut state);
        result
    }

    /// Try until the answer is another than [`Error::Later`], doing the stack's work meanwhile.
    fn block<T>(
        &self,
        limit: Option<Duration>,
        mut attempt: impl FnMut(&mut Host, Duration) -> Result<T, Error>,
    ) -> io::Result<T> {
        let deadline = limit.map(|limit| self.now() + limit);
        let (mut spin_until, mut is_late) = (None, false);
        let mut state = self.lock();
        loop {
            state.check()?;
            let now = self.now();
            match attempt(&mut state.host, now) {
                Err(Error::Later) => {}
                result => {
                    self.settle(&mut state);
                    return Ok(result?);
                }
            }
            let has_changed = self.poll(&mut state, now);
            if deadline.is_some_and(|deadline| deadline <= now) && (is_late || !has_changed) {
                self.tell(&state);
                return Err(io::ErrorKind::TimedOut.into());
            }
            if has_changed {
                self.tell(&state);
                spin_until = None;
                is_late = deadline.is_some_and(|deadline| deadline <= now);
                continue;
            }
            let may_spin = now < *spin_until.get_or_insert(now + self.spin);
            state = if may_spin { self.pause(state) } else { self.sleep(state, deadline) };
        }
    }

    /// Let others have the lock for a moment.
    fn pause<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        drop(state);
        std::hint::spin_loop();
        self.lock()
    }

    /// Lead or follow, until there may be something new.
    fn sleep<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        let now = self.now();
        if state.leader.is_some() {
            state.followers += 1;
            let limit = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_sub(now));
            let woken = self.changed.wait_timeout(state, limit);
            let (mut state, _) = woken.unwrap_or_else(PoisonError::into_inner);
            state.followers -= 1;
            return state;
        }
        let wake_at = state.host.next_at(now).into_iter().chain(deadline).min();
        if wake_at.is_some_and(|at| at <= now) {
            return state;
        }
        let may_wait = state.host.arm();
        if let Ok(true) = may_wait {
            state.leader = Some(wake_at);
            drop(state);
            let waited = self.waiter.wait(wake_at.map(|at| at - now));
            state = self.lock();
            state.leader = None;
            state.note(waited);
        } else {
            state.note(may_wait.map(drop));
        }
        state
    }

    /// Send what an action has left to be sent, and see that everybody else goes on.
    fn settle(&self, state: &mut State) {
        self.poll(state, self.now());
        self.tell(state);
    }

    /// Poll the host; true if a socket may have changed. Who waits for the device is woken if what he waits
    /// for may have been taken from it here, or if something is due before he would wake up.
    fn poll(&self, state: &mut State, now: Duration) -> bool {
        let has_changed = state.host.poll(now);
        if let Some(wake_at) = state.leader {
            let due = state.host.next_at(now);
            let is_early = due.is_some_and(|due| wake_at.is_none_or(|at| due < at));
            if state.host.took_frames() || is_early {
                self.waiter.wake();
            }
        }
        has_changed
    }

    /// Have followers look again: at what has changed, or whether one of them is to lead.
    fn tell(&self, state: &State) {
        if state.followers > 0 {
            self.changed.notify_all();
        }
    }
}

impl State {
    fn note(&mut self, waited: io::Result<()>) {
        if let Err(error) = waited {
            self.fault = Some((error.kind(), format!("the device has gone: {error}")));
        }
    }
}

/// How a time limit lies in an atomic word: nanoseconds, or this for none.
const NO_LIMIT: u64 = u64::MAX;

/// A time limit that can be set while others wait.
#[derive(Debug)]
struct Limit(std::sync::atomic::AtomicU64);

impl Limit {
    const fn none() -> Self {
        Self(std::sync::atomic::AtomicU64::new(NO_LIMIT))
    }

    fn set(&self, limit: Option<Duration>) {
        let word =
            limit.map_or(NO_LIMIT, |limit| u64::try_from(limit.as_nanos()).unwrap_or(NO_LIMIT));
        self.0.store(word, Ordering::Relaxed);
    }

    fn get(&self) -> Option<Duration> {
        let word = self.0.load(Ordering::Relaxed);
        (word != NO_LIMIT).then(|| Duration::from_nanos(word))
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counters { received, sent } = self.counters();
        write!(
            f,
            "received {} frames, {} bytes, {} dropped; sent {} frames, {} bytes, {} dropped",
            received.frames,
            received.bytes,
            received.dropped.total(),
            sent.frames,
            sent.bytes,
            sent.dropped.total()
        )
    }
}
