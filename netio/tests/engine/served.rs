//! An engine in a thread of its own, what it calls, and who talks to it.

use std::alloc::{Layout, alloc_zeroed};
use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ext_api::abi::{NET_REPLY_IN_PLACE, PacketBlock, Reply, Status};
use ext_api::limits::BUFFERS_MAX;
use ext_api::pool::{Holder, POOL_LEN, Pool};
use netio::buffers::Buffers;
use netio::engine::driver::Driver;
use netio::engine::epoll::Epoll;
use netio::engine::uring::{Options, Uring};
use netio::engine::{Engine, Kind, Sandbox};
use netio::listen;

pub(super) type Handler = Box<dyn FnMut(&mut PacketBlock, &mut Reply) -> Status + Send>;

/// Handlers by number, and what was posted.
pub(super) struct Here {
    handlers: HashMap<u64, Handler>,
    posted: Box<dyn FnMut(u64) -> Status + Send>,
    is_dead: Arc<AtomicBool>,
    began: Instant,
}

impl Here {
    /// Without handlers.
    pub(super) fn empty() -> Self {
        Self {
            handlers: HashMap::new(),
            posted: Box::new(|_| Status::Full),
            is_dead: Arc::default(),
            began: Instant::now(),
        }
    }
}

impl std::fmt::Debug for Here {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Here")
    }
}

impl Sandbox for Here {
    fn upcall(&mut self, handler: u64, block: &mut PacketBlock, reply: &mut Reply) -> u32 {
        self.handlers.get_mut(&handler).map_or(Status::Stale, |it| it(block, reply)) as u32
    }

    fn release(&mut self, spill: *mut u8) {
        if !spill.is_null() {
            // SAFETY: `spill` was made from such a box by `spill_of`.
            drop(unsafe { Box::from_raw(spill.cast::<[u8; SPILL_LEN]>()) });
        }
    }

    fn spilled(&self, _: u64, _: usize) -> Option<*const u8> {
        None
    }

    fn post(&mut self, _: [u64; 3], word: u64) -> Status {
        (self.posted)(word)
    }

    fn is_over(&self, _: Holder, _: u64) -> bool {
        self.is_dead.load(Relaxed)
    }

    fn wake(&mut self, _: &'static std::sync::atomic::AtomicU32) {}

    fn now_ns(&self) -> u64 {
        1 + self.began.elapsed().as_nanos() as u64
    }
}

pub(super) const SPILL_LEN: usize = 300_000;

pub(super) fn pool() -> &'static Pool {
    let layout = Layout::from_size_align(POOL_LEN, 4096).expect("a layout");
    // SAFETY: not empty.
    let pool = unsafe { alloc_zeroed(layout) };
    assert!(!pool.is_null(), "no memory");
    // SAFETY: zeros are a pool, and nobody frees it.
    unsafe { &*pool.cast::<Pool>() }
}

pub(super) fn bytes_in(block: &PacketBlock) -> Vec<u8> {
    // SAFETY: the engine says that as many bytes lie there.
    unsafe { std::slice::from_raw_parts(block.data, block.len) }.to_vec()
}

pub(super) fn write(reply: &mut Reply, bytes: &[u8]) {
    assert!(reply.len + bytes.len() <= reply.cap);
    let to = reply.buf.wrapping_add(reply.len);
    // SAFETY: room for as many (asserted).
    unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    reply.len += bytes.len();
}

/// An engine in a thread of its own.
pub(super) struct Served {
    pub(super) pool: &'static Pool,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) is_dead: Arc<AtomicBool>,
    pub(super) connections: Arc<AtomicU64>,
    pub(super) thread: Option<JoinHandle<usize>>,
}

impl Served {
    /// Serve one port by handlers 1 and 2, the latter for what the first passes.
    pub(super) fn start(
        way: &str,
        kind: Kind,
        fd: std::os::fd::OwnedFd,
        handlers: Vec<Handler>,
    ) -> Self {
        Self::with(way, kind, fd, handlers, |_| Box::new(|_| Status::Full))
    }

    pub(super) fn with(
        way: &str,
        kind: Kind,
        fd: std::os::fd::OwnedFd,
        handlers: Vec<Handler>,
        posted: impl FnOnce(&'static Pool) -> Box<dyn FnMut(u64) -> Status + Send>,
    ) -> Self {
        let pool = pool();
        let (stop, is_dead) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let here = Here {
            handlers: (1..).zip(handlers).collect(),
            posted: posted(pool),
            is_dead: is_dead.clone(),
            began: Instant::now(),
        };
        let connections = Arc::new(AtomicU64::new(0));
        let (way, told) = (way.to_owned(), (stop.clone(), connections.clone()));
        let thread = std::thread::spawn(move || {
            if way == "epoll" {
                return serve(Epoll::new().expect("epoll"), here, pool, kind, fd, &told);
            }
            let has = |option| way.strip_prefix("io_uring, ") == Some(option);
            let pool_at = std::ptr::from_ref(pool).addr();
            let options = Options {
                sqpoll: has("sqpoll"),
                zero_copy_from: (has("zero copy") || has("registered")).then_some(0),
                registered: has("registered").then_some([pool_at, POOL_LEN]),
                files: has("files"),
                bundles: has("bundles"),
                incremental: has("incremental") && kind == Kind::Tcp,
            };
            serve(Uring::with(options).expect("io_uring"), here, pool, kind, fd, &told)
        });
        Self { pool, stop, is_dead, connections, thread: Some(thread) }
    }

    /// Have a process serve the port itself.
    pub(super) fn seated(way: &str, kind: Kind, fd: std::os::fd::OwnedFd) -> Self {
        Self::start(way, kind, fd, Vec::new())
    }

    /// Stop it; every buffer must be back.
    pub(super) fn end(self) {
        assert_eq!(self.stop_now(), 0, "buffers are missing");
    }

    /// Stop it; how many buffers are missing.
    pub(super) fn stop_now(mut self) -> usize {
        self.stop.store(true, Relaxed);
        self.thread.take().expect("a thread").join().expect("no panic")
    }

    pub(super) fn tally(&self, which: impl Fn(&ext_api::pool::Tally) -> &AtomicU64) -> u64 {
        which(&self.pool.tallies[0]).load(Relaxed)
    }
}

/// Serve until told to stop; how many buffers are missing then.
pub(super) fn serve<D: Driver>(
    driver: D,
    here: Here,
    pool: &'static Pool,
    kind: Kind,
    fd: std::os::fd::OwnedFd,
    (stop, connections): &(Arc<AtomicBool>, Arc<AtomicU64>),
) -> usize {
    // SAFETY: the test's own pool.
    let buffers = unsafe { Buffers::own(pool, 1) };
    let is_seated = here.handlers.is_empty();
    let mut engine = Engine::new(driver, here, buffers);
    engine.open(0, kind, u64::from(!is_seated), Some(fd)).expect("a free port");
    if is_seated {
        engine.sit(0, 0);
    }
    if kind == Kind::Udp {
        engine.open(1, Kind::AnyUdp, 2, None).expect("a free port");
    }
    while !stop.load(Relaxed) {
        engine.turn(Some(Duration::from_millis(5))).expect("a turn");
        connections.store(engine.connections() as u64, Relaxed);
    }
    engine.close(0);
    let late = Instant::now() + Duration::from_secs(5);
    while engine.is_open(0) && Instant::now() < late {
        engine.turn(Some(Duration::from_millis(1))).expect("a turn");
    }
    let left = (engine.connections(), BUFFERS_MAX - engine.idle_buffers());
    // What it waits for is in there.
    assert!(!engine.is_open(0), "the port is not given back: {left:?}\n{engine:?}");
    BUFFERS_MAX - engine.idle_buffers()
}

/// With those that leave no room behind what has come.
pub(super) fn ways_in_place() -> Vec<&'static str> {
    let mut ways = ways();
    ways.extend(Uring::new().is_ok().then_some("io_uring, incremental"));
    ways
}

pub(super) fn ways() -> Vec<&'static str> {
    match Uring::new() {
        Ok(_) => vec![
            "io_uring",
            "io_uring, zero copy",
            "io_uring, registered",
            "io_uring, files",
            "io_uring, bundles",
            "io_uring, sqpoll",
            "epoll",
        ],
        Err(error) => {
            println!("io_uring skipped: {error}");
            vec!["epoll"]
        }
    }
}

pub(super) fn local() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

pub(super) fn udp_port() -> (std::os::fd::OwnedFd, SocketAddr) {
    let fd = listen::udp(local()).expect("a port");
    let address = netio::address::Address::of_socket(std::os::fd::AsRawFd::as_raw_fd(&fd), false);
    (fd, address.net().socket().expect("an address"))
}

pub(super) fn tcp_port() -> (std::os::fd::OwnedFd, SocketAddr) {
    let fd = listen::tcp(local()).expect("a port");
    let address = netio::address::Address::of_socket(std::os::fd::AsRawFd::as_raw_fd(&fd), false);
    (fd, address.net().socket().expect("an address"))
}

pub(super) fn client(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(local()).expect("a socket");
    socket.connect(server).expect("connect");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    socket
}

/// The end of another test's ring may interrupt a wait in this process.
pub(super) fn receive(client: &UdpSocket, buffer: &mut [u8]) -> usize {
    loop {
        match client.recv(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            got => return got.expect("an answer"),
        }
    }
}

pub(super) fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    stream
}

pub(super) fn echo() -> Handler {
    Box::new(|block, _| {
        (block.verdict, block.in_place) = (NET_REPLY_IN_PLACE, block.len);
        Status::Ok
    })
}
