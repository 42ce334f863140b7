//! Devices: whatever takes and gives raw frames without blocking.
//!
//! ```text
//!               ┌── memory   a pair in one process, with loss and delay from a seed
//!   Device ◄────┼── ring     a pair over shared memory: two processes of a sandbox
//!               ├── tap      TUN and TAP: the other side is this host's kernel
//!               ├── packet   AF_PACKET: an interface of the kernel's, beside the kernel
//!               └── xdp      AF_XDP: an interface's queue, before the kernel
//! ```
//!
//! A frame is copied once on its way in, from memory that somebody else may write to the caller's, and
//! looked at only there. Between a device and who uses it a handler can be asked about each frame ([`asked`]).
//! Every frame that is handed over, either way, is counted once: as one that went through, or as one that was
//! dropped, by cause. Time is an argument: a duration since a moment of the caller's choice.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

pub mod asked;
#[cfg(test)]
pub(crate) mod conformance;
pub(crate) mod descriptor;
mod frame_reader;
pub(crate) mod interface;
pub mod lossy;
pub mod memory;
pub mod packet;
pub mod ring;
pub mod tap;
pub mod virtio;
pub(crate) mod waiting;
pub mod xdp;

/// Octets of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// Longest IP packet, which is also the longest that a kernel hands over in one piece.
pub const PACKET_MAX: usize = 65_535;

/// What a frame begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// An Ethernet header; neighbours are found by ARP and neighbour discovery.
    Ethernet,
    /// An IP header.
    Ip,
}

impl Medium {
    /// Octets before the IP header.
    #[must_use]
    pub const fn header_len(self) -> usize {
        match self {
            Self::Ethernet => ETHERNET_LEN,
            Self::Ip => 0,
        }
    }
}

/// Which checksums of IP and above are worth something on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// They are made and verified.
    Full,
    /// They are made; those that come are not verified, since whoever sends leaves them to hardware that
    /// is not there.
    SendOnly,
    /// Neither: the frames never leave the memory of this machine.
    None,
}

/// Why frames were not handed on, and how many each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops {
    /// Longer than the device, or the caller's memory, takes.
    pub too_long: u64,
    /// There was no room for them.
    pub no_room: u64,
    /// Their surroundings made no sense: a length or an index that cannot be.
    pub malformed: u64,
    /// The kernel refused them.
    pub refused: u64,
}

impl Drops {
    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.too_long + self.no_room + self.malformed + self.refused
    }
}

/// What went one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames that were handed on.
    pub frames: u64,
    /// Their octets.
    pub bytes: u64,
    /// Frames that were not.
    pub dropped: Drops,
}

impl Tally {
    pub(crate) const fn add(&mut self, len: usize) {
        self.frames += 1;
        self.bytes += len as u64;
    }

    /// Frames that were handed over: those handed on and those dropped.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.frames + self.dropped.total()
    }
}

/// What a device has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Of frames that came.
    pub received: Tally,
    /// Of frames that [`Device::send`] was called with.
    pub sent: Tally,
}

/// Takes and gives raw frames.
pub trait Device: Send {
    /// What a frame begins with.
    fn medium(&self) -> Medium;

    /// Longest IP packet that can be sent.
    fn mtu(&self) -> usize;

    /// Longest frame that may come: more than a sent one where the kernel hands over several in one.
    fn frame_max(&self) -> usize {
        self.mtu() + self.medium().header_len()
    }

    /// Which checksums are worth something.
    fn checksums(&self) -> Checksums {
        Checksums::Full
    }

    /// The next frame, copied to the front of `into`; its length. None if there is none now. One that
    /// does not fit is dropped.
    fn receive(&mut self, now: Duration, into: &mut [u8]) -> Option<usize>;

    /// False if the next frame would be dropped for want of room; there may be some later.
    fn has_room(&mut self) -> bool {
        true
    }

    /// Send a frame, or drop it: the counters say which.
    fn send(&mut self, now: Duration, frame: &[u8]);

    /// Whether [`Device::send_unfinished`] is understood.
    fn finishes(&self) -> bool {
        false
    }

    /// Send a frame whose checksum of TCP has not been made, and which stands for several with
    /// `segment_len` octets of data each if it has more than that. May write to `frame`. Only where
    /// [`Device::finishes`] is true.
    fn send_unfinished(&mut self, now: Duration, frame: &mut [u8], segment_len: u16) {
        let _ = segment_len;
        self.send(now, frame);
    }

    /// See to it that what was sent goes out: called once after a number of frames.
    fn flush(&mut self) {}

    /// What has been done so far.
    fn counters(&self) -> Counters;

    /// The time at which something may come by itself, or it is to be armed again: simulated devices know one, and
    /// an interface that is down.
    fn next_at(&self) -> Option<Duration> {
        None
    }

    /// Say that a wait is to follow. False if there is something to do already.
    ///
    /// # Errors
    /// Nothing will ever come again: the interface has gone.
    fn arm(&mut self) -> io::Result<bool>;

    /// Waits, while others may use the device.
    fn waiter(&self) -> Arc<dyn Waiter>;

    /// Sleep until there may be something to do, or `limit` is over.
    ///
    /// # Errors
    /// Nothing will ever come again.
    fn wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        if self.arm()? { self.waiter().wait(limit) } else { Ok(()) }
    }
}

/// Waits for a device.
pub trait Waiter: Send + Sync + fmt::Debug {
    /// Sleep until there may be something to do, somebody calls [`Waiter::wake`], or `limit` is over.
    /// May return early.
    ///
    /// # Errors
    /// The kernel refused to wait.
    fn wait(&self, limit: Option<Duration>) -> io::Result<()>;

    /// End the wait of now, or the next.
    fn wake(&self);
}

/// Methods of a device that has another one inside, which are that one's.
macro_rules! passed_on {
    ($self:ident => $inside:expr) => {
        fn medium(&$self) -> $crate::device::Medium {
            $inside.medium()
        }
        fn mtu(&$self) -> usize {
            $inside.mtu()
        }
        fn frame_max(&$self) -> usize {
            $inside.frame_max()
        }
        fn checksums(&$self) -> $crate::device::Checksums {
            $inside.checksums()
        }
        fn has_room(&mut $self) -> bool {
            $inside.has_room()
        }
        fn flush(&mut $self) {
            $inside.flush();
        }
        fn counters(&$self) -> $crate::device::Counters {
            $inside.counters()
        }
        fn next_at(&$self) -> Option<std::time::Duration> {
            $inside.next_at()
        }
        fn arm(&mut $self) -> std::io::Result<bool> {
            $inside.arm()
        }
        fn waiter(&$self) -> std::sync::Arc<dyn $crate::device::Waiter> {
            $inside.waiter()
        }
    };
}
pub(crate) use passed_on;

impl<D: Device + ?Sized> Device for Box<D> {
    passed_on!(self => (**self));

    fn finishes(&self) -> bool {
        (**self).finishes()
    }

    fn receive(&mut self, now: Duration, into: &mut [u8]) -> Option<usize> {
        (**self).receive(now, into)
    }

    fn send(&mut self, now: Duration, frame: &[u8]) {
        (**self).send(now, frame);
    }

    fn send_unfinished(&mut self, now: Duration, frame: &mut [u8], segment_len: u16) {
        (**self).send_unfinished(now, frame, segment_len);
    }
}

/// Longest that a device is waited for which another program has.
const BUSY_LIMIT: Duration = Duration::from_secs(1);
/// How often it is asked for.
const BUSY_STEP: Duration = Duration::from_millis(5);

/// Do `attempt` until the device is free: the kernel gives one back a little after the descriptor of the one
/// who had it has gone.
pub(crate) fn once_free<T>(
    mut attempt: impl FnMut() -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    let start = std::time::Instant::now();
    loop {
        match attempt() {
            Err(error)
                if error.source.raw_os_error() == Some(libc::EBUSY)
                    && start.elapsed() < BUSY_LIMIT =>
            {
                std::thread::sleep(BUSY_STEP);
            }
            result => return result,
        }
    }
}

/// What was being done when a device could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Opening `/dev/net/tun`.
    TunFile,
    /// Making or joining a TUN or TAP interface.
    TunInterface,
    /// Making a socket of the family.
    Socket,
    /// Asking for an interface by its name.
    Find,
    /// Setting an option of the socket.
    Option,
    /// Binding the socket to the interface.
    Bind,
    /// Handing over the memory that frames lie in.
    Memory,
    /// Loading the program that sends frames to the socket.
    Program,
    /// Attaching that program to the interface.
    Attach,
    /// Making the descriptor that ends waits.
    Bell,
}

/// A device that could not be opened.
#[derive(Debug)]
pub struct OpenError {
    /// What was being done.
    pub step: Step,
    /// Of which interface.
    pub interface: String,
    /// What the kernel said.
    pub source: io::Error,
}

impl OpenError {
    pub(crate) fn last(step: Step, interface: &str) -> Self {
        Self::new(step, interface, io::Error::last_os_error())
    }

    pub(crate) fn new(step: Step, interface: &str, source: io::Error) -> Self {
        Self { step, interface: interface.to_owned(), source }
    }

    /// Whether this machine, or this user, cannot have such a device at all.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        const LACKING: [i32; 7] = [
            libc::EPERM,
            libc::EACCES,
            libc::ENOENT,
            libc::ENXIO,
            libc::EAFNOSUPPORT,
            libc::EOPNOTSUPP,
            libc::ENOSYS,
        ];
        self.source.raw_os_error().is_some_and(|code| LACKING.contains(&code))
    }

    fn advice(&self) -> &'static str {
        match (self.source.raw_os_error(), self.step) {
            (Some(libc::EPERM | libc::EACCES), _) => {
                "be root, or have CAP_NET_ADMIN and CAP_NET_RAW"
            }
            (Some(libc::ENOENT | libc::ENXIO), Step::TunFile) => "load the kernel's module tun",
            (Some(libc::EBUSY), Step::TunInterface) => "another program has it: name another one",
            (Some(libc::EBUSY), Step::Attach | Step::Bind) => {
                "another program has this queue: end it, or name another queue"
            }
            (Some(libc::EINVAL), Step::TunInterface) => {
                "a name has 1 to 15 letters, no / or :, and is not that of another kind of interface"
            }
            (Some(libc::ENAMETOOLONG), _) => "a name has 15 letters at most",
            (Some(libc::ENODEV), _) => "see `ip link` for the names of interfaces",
            (Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::ENOSYS), _) => {
                "this kernel, or this interface, cannot do it: use another kind of device"
            }
            _ => "see what the kernel said",
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.step {
            Step::TunFile => "opening /dev/net/tun",
            Step::TunInterface => "making the interface",
            Step::Socket => "making the socket",
            Step::Find => "looking up the interface",
            Step::Option => "setting an option of the socket",
            Step::Bind => "binding to the interface",
            Step::Memory => "handing over the memory of frames",
            Step::Program => "loading the XDP program",
            Step::Attach => "attaching the XDP program",
            Step::Bell => "making an eventfd",
        };
        write!(f, "{}: {what}: {} ({})", self.interface, self.source, self.advice())
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
