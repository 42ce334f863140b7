//! The client's side of `bench net` and `bench sockets`: so many connections or datagrams under way, each
//! answered before the next is sent.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{setsockopt, sockopt};

/// What came of a load.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures {
    /// Answers per second.
    pub(super) rate: f64,
    /// How many.
    pub(super) count: f64,
    /// How long each took, in microseconds, sorted; those of one connection only.
    pub(super) took_us: Vec<f64>,
}

impl Figures {
    /// The time that this share of the answers took at most.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let last = self.took_us.len().saturating_sub(1);
        self.took_us.get((last as f64 * share) as usize).copied().unwrap_or(f64::NAN)
    }
}

/// Send `len` bytes over each of `count` connections and wait for as many back, for `time`.
pub(super) fn tcp(
    server: SocketAddr,
    count: usize,
    len: usize,
    time: Duration,
) -> io::Result<Figures> {
    asking(server, count, &line(len), time)
}

/// The same with a request of one's own, whose answer ends with the end of a line.
pub(super) fn asking(
    server: SocketAddr,
    count: usize,
    request: &[u8],
    time: Duration,
) -> io::Result<Figures> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        streams.push(stream);
    }
    // What is set up at the first request is not counted.
    for stream in &mut streams {
        exchange(stream, request, &mut [0; 4096])?;
    }
    if let [stream] = &mut streams[..] {
        one_by_one(stream, request, time)
    } else {
        all_at_once(&streams, request, time)
    }
}

/// What is sent: a line, since some servers answer whole ones.
fn line(len: usize) -> Vec<u8> {
    let mut bytes = vec![b'x'; len];
    bytes.last_mut().into_iter().for_each(|last| *last = b'\n');
    bytes
}

/// Send a line and wait for the end of the one that answers it.
fn exchange(stream: &mut TcpStream, bytes: &[u8], answer: &mut [u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    loop {
        match stream.read(answer)? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            len if answer[len - 1] == b'\n' => return Ok(()),
            _ => {}
        }
    }
}

fn one_by_one(stream: &mut TcpStream, bytes: &[u8], time: Duration) -> io::Result<Figures> {
    let mut answer = vec![0; bytes.len() + 4096];
    let (began, mut took_us) = (Instant::now(), Vec::new());
    let mut last = began;
    while last.duration_since(began) < time {
        exchange(stream, bytes, &mut answer)?;
        let now = Instant::now();
        took_us.push(now.duration_since(last).as_nanos() as f64 / 1e3);
        last = now;
    }
    let count = took_us.len() as f64;
    took_us.sort_by(f64::total_cmp);
    Ok(Figures { rate: count / began.elapsed().as_secs_f64(), count, took_us })
}

fn all_at_once(streams: &[TcpStream], bytes: &[u8], time: Duration) -> io::Result<Figures> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (index, mut stream) in streams.iter().enumerate() {
        epoll.add(stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        stream.write_all(bytes)?;
    }
    let mut buffer = vec![0; bytes.len().max(64 << 10)];
    let mut ready = [EpollEvent::empty(); 256];
    let (began, mut count) = (Instant::now(), 0.0);
    while began.elapsed() < time {
        let woken = epoll.wait(&mut ready, EpollTimeout::from(5000u16))?;
        if woken == 0 {
            return Err(io::Error::other("no answer for 5 s"));
        }
        for event in &ready[..woken] {
            let index = event.data() as usize;
            let mut stream = &streams[index];
            match stream.read(&mut buffer)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                got if buffer[got - 1] == b'\n' => {
                    count += 1.0;
                    stream.write_all(bytes)?;
                }
                _ => {}
            }
        }
    }
    Ok(Figures { rate: count / began.elapsed().as_secs_f64(), count, took_us: Vec::new() })
}

/// Keep `window` datagrams of `len` bytes under way for `time`.
pub(super) fn udp(
    server: SocketAddr,
    window: usize,
    len: usize,
    time: Duration,
) -> io::Result<Figures> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server)?;
    one_by_one_each(&socket, window, len, time)
}

/// The same, half of the window by one call that the kernel cuts up, and answers that have come together by one
/// (UDP_SEGMENT, UDP_GRO), as QUIC does.
pub(super) fn udp_together(
    server: SocketAddr,
    window: usize,
    len: usize,
    time: Duration,
) -> io::Result<Figures> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server)?;
    setsockopt(&socket, sockopt::UdpGsoSegment, &(len as i32))?;
    setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
    let bytes = vec![b'x'; len * window];
    ask_each(&socket, len, time, |under_way| {
        if under_way > window / 2 {
            return Ok(under_way);
        }
        socket.send(&bytes[under_way * len..])?;
        Ok(window)
    })
}

fn one_by_one_each(
    socket: &UdpSocket,
    window: usize,
    len: usize,
    time: Duration,
) -> io::Result<Figures> {
    let bytes = vec![b'x'; len];
    ask_each(socket, len, time, |under_way| {
        for _ in under_way..window {
            socket.send(&bytes)?;
        }
        Ok(window)
    })
}

/// Count the answers of `len` bytes, which may come together, to what `top_up` sends: it is told how many are under way, and
/// says how many are then.
fn ask_each(
    socket: &UdpSocket,
    len: usize,
    time: Duration,
    mut top_up: impl FnMut(usize) -> io::Result<usize>,
) -> io::Result<Figures> {
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut answers = vec![0; 64 << 10];
    let (mut began, mut count, mut under_way, mut lost) = (Instant::now(), 0, 0, 0);
    let mut warm = false;
    while !warm || began.elapsed() < time {
        under_way = top_up(under_way)?;
        match socket.recv(&mut answers) {
            Ok(got) if got != 0 && got.is_multiple_of(len) => {
                (count, under_way) = (count + got / len, under_way.saturating_sub(got / len));
                if !warm {
                    (warm, began, count) = (true, Instant::now(), 0);
                }
            }
            Ok(_) => return Err(io::Error::other("another answer came back")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                (under_way, lost) = (0, lost + 1);
                if lost > 50 {
                    return Err(io::Error::other("no answer for 5 s"));
                }
            }
            Err(error) => return Err(error),
        }
    }
    let count = count as f64;
    Ok(Figures { rate: count / began.elapsed().as_secs_f64(), count, took_us: Vec::new() })
}

/// Read from a stream, which waits by itself or is looked at until there is something.
pub(super) fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => core::hint::spin_loop(),
            read => return read,
        }
    }
}
