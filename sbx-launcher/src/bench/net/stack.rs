//! TCP in the program over rings in memory, and frames by AF_XDP, beside the kernel's own ways.
//!
//! The ring lies in memory that two processes share at one address, as the region would be; each has one
//! side, a stack of its own, and a core. AF_XDP and the kernel's UDP socket receive what one and the same
//! sender sends over a veth pair, whose ends are in namespaces of their own.
#![expect(
    unsafe_code,
    reason = "shares memory with children, and receives many datagrams by one call"
)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use netio::device::ring::{Ring, Side};
use netio::stack::{Config, Congestion, Stack};

use super::super::events::Child;
use super::super::pin::{pin, unpin};
use super::super::{BenchError, Report};
use super::{CLIENT_CPU, Rows, SERVER_CPU, doing};
use flood::{Flood, Receiver};

mod flood;

/// Octets of a ring each way: fits the second-level cache, both together.
const CAPACITY: usize = 256 << 10;
/// Octets of one write.
const PIECES: [usize; 3] = [16 << 10, 64 << 10, 256 << 10];
const PIECE_MAX: usize = 256 << 10;
const PORT: u16 = 7;
/// Longest that anything waits.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a connection begins with: what it is for.
const ECHO: u8 = b'e';
const SINK: u8 = b's';

/// Both ways to speak TCP, each with a server.
pub(super) struct Ways {
    ring: Stack,
    _ring_server: Child,
    kernel: SocketAddr,
    _kernel_server: Child,
    flood: Result<Flood, String>,
}

/// Memory that children share with us, at this address, until we end.
fn shared(len: usize) -> io::Result<*mut u8> {
    let (prot, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: new memory.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
    if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(memory.cast()) }
}

/// A counter that children share with us.
fn shared_counter() -> io::Result<&'static AtomicU64> {
    let memory = shared(size_of::<AtomicU64>())?;
    // SAFETY: aligned to a page, zero, and never given back.
    Ok(unsafe { &*memory.cast() })
}

fn address(side: Side) -> SocketAddr {
    let last = if side == Side::First { 1 } else { 2 };
    SocketAddr::from(([10, 78, 0, last], PORT))
}

/// A host at one side of the ring that looks all the time while it waits.
fn host(memory: *mut u8, side: Side) -> io::Result<Stack> {
    // SAFETY: zeros, or the ring; never given back. Each side is in one process.
    let ring = unsafe { Ring::new(memory, Ring::memory_len(CAPACITY), side) };
    let config = Config {
        congestion: Congestion::Unlimited,
        spin: Duration::from_micros(200),
        buffer_len: 1 << 20,
        ..Config::new(address(side).ip(), 24)
    };
    Stack::new(ring.map_err(io::Error::other)?, config).map_err(io::Error::other)
}

/// Serve connections over the ring, one after the other, until killed.
fn serve_ring(stack: &Stack) -> io::Result<()> {
    let listener = stack.listen(PORT, 8)?;
    loop {
        let mut stream = listener.accept()?;
        // One that has ended badly is the other side's to tell of.
        let _ = stream.set_nodelay(true).and_then(|()| serve(&mut stream));
    }
}

impl Ways {
    pub(super) fn start() -> io::Result<Self> {
        let memory = shared(Ring::memory_len(CAPACITY))?;
        let ring_server = Child::start(Some(SERVER_CPU), || {
            // What went wrong is seen by the other side, which waits in vain.
            let _ = host(memory, Side::Second).and_then(|stack| serve_ring(&stack));
        })?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let kernel = listener.local_addr()?;
        let kernel_server = Child::start(Some(SERVER_CPU), || {
            for stream in listener.incoming().flatten() {
                let _ = stream.set_nodelay(true).and_then(|()| serve(&mut &stream));
            }
        })?;
        let ring = host(memory, Side::First)?;
        Ok(Self {
            ring,
            _ring_server: ring_server,
            kernel,
            _kernel_server: kernel_server,
            flood: Flood::start(),
        })
    }

    fn over_ring<T>(
        &self,
        act: impl FnOnce(&mut netio::stack::TcpStream) -> io::Result<T>,
    ) -> Result<T, BenchError> {
        pin(0, CLIENT_CPU);
        let done =
            self.ring.connect_timeout(address(Side::Second), PATIENCE).and_then(|mut stream| {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE));
                stream.set_write_timeout(Some(PATIENCE));
                let result = act(&mut stream);
                drop(stream);
                self.ring.finish(PATIENCE)?;
                result
            });
        unpin();
        done.map_err(doing)
    }

    fn over_kernel<T>(
        &self,
        act: impl FnOnce(&mut TcpStream) -> io::Result<T>,
    ) -> Result<T, BenchError> {
        pin(0, CLIENT_CPU);
        let done = TcpStream::connect(self.kernel).and_then(|mut stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            act(&mut stream)
        });
        unpin();
        done.map_err(doing)
    }

    /// The rows of all of it.
    pub(super) fn rows<'a>(&'a self, rows: &mut Rows<'a>, time: Duration) {
        let bulk = move || self.over_ring(|it| fill(it, time, PIECE_MAX, shut));
        rows.push(("TCP bulk, rings".into(), "GB/s", Box::new(bulk)));
        for piece in PIECES {
            let bulk = move || {
                self.over_kernel(|it| fill(it, time, piece, |it| it.shutdown(Shutdown::Write)))
            };
            rows.push((kernel_row(piece), "GB/s", Box::new(bulk)));
        }
        let trips = move || self.over_ring(|it| round_trips(it, time));
        rows.push(("TCP round trip, rings".into(), "us", Box::new(trips)));
        let trips = move || self.over_kernel(|it| round_trips(it, time));
        rows.push(("TCP round trip, kernel".into(), "us", Box::new(trips)));
        let Ok(flood) = &self.flood else { return };
        for (name, receiver) in RECEIVERS {
            let rate = move || flood.rate(receiver, time).map_err(doing);
            rows.push((name.into(), "1/s", Box::new(rate)));
        }
    }

    /// What they are to reach.
    pub(super) fn goals(&self, report: &mut Report) {
        let kernel = PIECES.map(kernel_row);
        let rows = ["TCP bulk, rings", &kernel[0], &kernel[1], &kernel[2]];
        let best = |[ours, a, b, c]: [f64; 4]| ours / a.max(b).max(c);
        report.goal("TCP bulk: rings / best of kernel", rows, best, (">=", 1.8));
        let itself = |[us]: [f64; 1]| us;
        report.goal("TCP round trip, rings, us", ["TCP round trip, rings"], itself, ("<=", 3.0));
        let best = |[ours, a, b]: [f64; 3]| ours / a.max(b);
        let rows = RECEIVERS.map(|(name, _)| name);
        report.goal("datagrams on veth: AF_XDP / best of kernel", rows, best, (">=", 1.3));
        if let Err(why) = &self.flood {
            report.explain("veth", why);
        }
    }
}

const RECEIVERS: [(&str, Receiver); 3] = [
    ("datagrams on veth, AF_XDP", Receiver::Xdp),
    ("datagrams on veth, UDP socket that waits", Receiver::UdpWaiting),
    ("datagrams on veth, UDP socket that looks", Receiver::UdpLooking),
];

fn kernel_row(piece: usize) -> String {
    format!("TCP bulk, kernel, {} KiB writes", piece >> 10)
}

fn shut(stream: &mut netio::stack::TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)
}

/// Do what a connection is for until its end.
fn serve(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_MAX];
    stream.read_exact(&mut buffer[..1])?;
    let echoes = buffer[0] == ECHO;
    loop {
        match stream.read(&mut buffer)? {
            // That all has come.
            0 => return stream.write_all(&[SINK]),
            len if echoes => stream.write_all(&buffer[..len])?,
            _ => {}
        }
    }
}

/// Gigabytes per second that arrive, from the first to the last.
fn fill<S: Read + Write>(
    stream: &mut S,
    time: Duration,
    piece: usize,
    end: impl FnOnce(&mut S) -> io::Result<()>,
) -> io::Result<f64> {
    let (piece, mut sent) = (vec![7; piece], 0);
    stream.write_all(&[SINK])?;
    let began = Instant::now();
    while began.elapsed() < time {
        stream.write_all(&piece)?;
        sent += piece.len();
    }
    end(stream)?;
    stream.read_exact(&mut [0])?;
    Ok(sent as f64 / began.elapsed().as_secs_f64() / 1e9)
}

/// Microseconds for an octet there and back.
fn round_trips(stream: &mut (impl Read + Write), time: Duration) -> io::Result<f64> {
    stream.write_all(&[ECHO])?;
    let (began, mut count) = (Instant::now(), 0.0);
    while began.elapsed() < time {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        count += 1.0;
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / count)
}

/// How far a counter comes in a second.
fn rate_of(counter: &AtomicU64, time: Duration) -> f64 {
    let (began, before) = (Instant::now(), counter.load(Relaxed));
    std::thread::sleep(time);
    (counter.load(Relaxed) - before) as f64 / began.elapsed().as_secs_f64()
}
