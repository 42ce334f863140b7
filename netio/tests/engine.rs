//! The engine on real sockets, by both ways to the kernel, with handlers that are functions here.
#![expect(unsafe_code, reason = "makes a pool, and reads what handlers are given")]

use std::alloc::{Layout, alloc_zeroed};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ext_api::abi::{
    NET_CLOSE, NET_CUT, NET_DROP, NET_ENDED, NET_FORWARD, NET_HAND, NET_REPLY, NET_REPLY_IN_PLACE,
    NetAddress, PacketBlock, Reply, Status,
};
use ext_api::limits::BUFFERS_MAX;
use ext_api::pool::{Ask, BY_PROCESS, Holder, Name, Outcome, POOL_LEN, Piece, Pool, bytes_of};
use netio::buffers::Buffers;
use netio::engine::driver::Driver;
use netio::engine::epoll::Epoll;
use netio::engine::uring::Uring;
use netio::engine::{Engine, Kind, Sandbox};
use netio::listen;

type Handler = Box<dyn FnMut(&mut PacketBlock, &mut Reply) -> Status + Send>;

/// Handlers by number, and what was posted.
struct Here {
    handlers: HashMap<u64, Handler>,
    posted: Box<dyn FnMut(u64) -> Status + Send>,
    is_dead: Arc<AtomicBool>,
    began: Instant,
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

const SPILL_LEN: usize = 300_000;

fn pool() -> &'static Pool {
    let layout = Layout::from_size_align(POOL_LEN, 4096).expect("a layout");
    // SAFETY: not empty.
    let pool = unsafe { alloc_zeroed(layout) };
    assert!(!pool.is_null(), "no memory");
    // SAFETY: zeros are a pool, and nobody frees it.
    unsafe { &*pool.cast::<Pool>() }
}

fn bytes_in(block: &PacketBlock) -> Vec<u8> {
    // SAFETY: the engine says that as many bytes lie there.
    unsafe { std::slice::from_raw_parts(block.data, block.len) }.to_vec()
}

fn write(reply: &mut Reply, bytes: &[u8]) {
    assert!(reply.len + bytes.len() <= reply.cap);
    let to = reply.buf.wrapping_add(reply.len);
    // SAFETY: room for as many (asserted).
    unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    reply.len += bytes.len();
}

/// An engine in a thread of its own.
struct Served {
    pool: &'static Pool,
    stop: Arc<AtomicBool>,
    is_dead: Arc<AtomicBool>,
    connections: Arc<AtomicU64>,
    thread: Option<JoinHandle<usize>>,
}

impl Served {
    /// Serve one port by handlers 1 and 2, the latter for what the first passes.
    fn start(way: &str, kind: Kind, fd: std::os::fd::OwnedFd, handlers: Vec<Handler>) -> Self {
        Self::with(way, kind, fd, handlers, |_| Box::new(|_| Status::Full))
    }

    fn with(
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
                serve(Epoll::new().expect("epoll"), here, pool, kind, fd, &told)
            } else {
                serve(Uring::new().expect("io_uring"), here, pool, kind, fd, &told)
            }
        });
        Self { pool, stop, is_dead, connections, thread: Some(thread) }
    }

    /// Have a process serve the port itself.
    fn seated(way: &str, kind: Kind, fd: std::os::fd::OwnedFd) -> Self {
        Self::start(way, kind, fd, Vec::new())
    }

    /// Stop it; every buffer must be back.
    fn end(self) {
        assert_eq!(self.stop_now(), 0, "buffers are missing");
    }

    /// Stop it; how many buffers are missing.
    fn stop_now(mut self) -> usize {
        self.stop.store(true, Relaxed);
        self.thread.take().expect("a thread").join().expect("no panic")
    }

    fn tally(&self, which: impl Fn(&ext_api::pool::Tally) -> &AtomicU64) -> u64 {
        which(&self.pool.tallies[0]).load(Relaxed)
    }
}

/// Serve until told to stop; how many buffers are missing then.
fn serve<D: Driver>(
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
    assert!(!engine.is_open(0), "the port is not given back");
    BUFFERS_MAX - engine.idle_buffers()
}

fn ways() -> Vec<&'static str> {
    match Uring::new() {
        Ok(_) => vec!["io_uring", "epoll"],
        Err(error) => {
            println!("io_uring skipped: {error}");
            vec!["epoll"]
        }
    }
}

fn local() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

fn udp_port() -> (std::os::fd::OwnedFd, SocketAddr) {
    let fd = listen::udp(local()).expect("a port");
    let address = netio::address::Address::of_socket(std::os::fd::AsRawFd::as_raw_fd(&fd), false);
    (fd, address.net().socket().expect("an address"))
}

fn tcp_port() -> (std::os::fd::OwnedFd, SocketAddr) {
    let fd = listen::tcp(local()).expect("a port");
    let address = netio::address::Address::of_socket(std::os::fd::AsRawFd::as_raw_fd(&fd), false);
    (fd, address.net().socket().expect("an address"))
}

fn client(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(local()).expect("a socket");
    socket.connect(server).expect("connect");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    socket
}

/// The end of another test's ring may interrupt a wait in this process.
fn receive(client: &UdpSocket, buffer: &mut [u8]) -> usize {
    loop {
        match client.recv(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            got => return got.expect("an answer"),
        }
    }
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    stream
}

fn echo() -> Handler {
    Box::new(|block, _| {
        (block.verdict, block.in_place) = (NET_REPLY_IN_PLACE, block.len);
        Status::Ok
    })
}

#[test]
fn datagrams_are_answered_in_place_and_by_writing() {
    for way in ways() {
        let (fd, server) = udp_port();
        let shout: Handler = Box::new(|block, reply| {
            write(reply, &bytes_in(block).to_ascii_uppercase());
            block.verdict = NET_REPLY;
            Status::Ok
        });
        let served = Served::start(way, Kind::Udp, fd, vec![shout]);
        let client = client(server);
        let mut buffer = [0; 40_000];
        for len in [0, 1, 64, 1472, 16_000] {
            client.send(&vec![b'a'; len]).expect("send");
            let got = receive(&client, &mut buffer);
            assert_eq!(&buffer[..got], vec![b'A'; len], "{way}");
        }
        // Longer than a buffer: counted, and nothing comes back.
        client.send(&vec![b'a'; 33_000]).expect("send");
        client.send(b"x").expect("send");
        let got = receive(&client, &mut buffer);
        assert_eq!(&buffer[..got], b"X", "{way}");
        assert_eq!(served.tally(|it| &it.too_long), 1, "{way}");
        assert_eq!(served.tally(|it| &it.received), 7, "{way}");
        served.end();
    }
}

#[test]
fn what_one_handler_passes_the_next_is_asked_about() {
    for way in ways() {
        let (fd, server) = udp_port();
        let only_a: Handler = Box::new(|block, _| {
            if bytes_in(block) == b"a" {
                (block.verdict, block.in_place) = (NET_REPLY_IN_PLACE, 1);
            }
            Status::Ok
        });
        let others: Handler = Box::new(|block, reply| {
            write(reply, b"other");
            block.verdict = if bytes_in(block) == b"drop" { NET_DROP } else { NET_REPLY };
            Status::Ok
        });
        let served = Served::start(way, Kind::Udp, fd, vec![only_a, others]);
        let client = client(server);
        let mut buffer = [0; 16];
        for (sent, answer) in [(&b"a"[..], &b"a"[..]), (b"b", b"other")] {
            client.send(sent).expect("send");
            let got = receive(&client, &mut buffer);
            assert_eq!(&buffer[..got], answer, "{way}");
        }
        client.send(b"drop").expect("send");
        client.send(b"a").expect("send");
        let got = receive(&client, &mut buffer);
        assert_eq!(&buffer[..got], b"a", "{way}");
        assert_eq!(served.tally(|it| &it.dropped), 1, "{way}");
        served.end();
    }
}

#[test]
fn a_connection_gets_back_what_it_sends() {
    for way in ways() {
        let (fd, server) = tcp_port();
        let served = Served::start(way, Kind::Tcp, fd, vec![echo()]);
        let stream = connect(server);
        let mut writer = stream.try_clone().expect("a clone");
        let sender = std::thread::spawn(move || {
            let bytes: Vec<u8> = (0..3_000_000u32).map(|at| ((at * 7) >> 3) as u8).collect();
            for chunk in bytes.chunks(70_001) {
                writer.write_all(chunk).expect("send");
            }
            writer.shutdown(Shutdown::Write).expect("shutdown");
            bytes
        });
        let mut got = Vec::new();
        (&stream).read_to_end(&mut got).expect("an end");
        assert!(sender.join().expect("no panic") == got, "{way}: other bytes came back");
        drop(stream);
        served.end();
    }
}

/// Lines, answered once they are whole.
fn lines() -> Handler {
    Box::new(|block, reply| {
        let bytes = bytes_in(block);
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in bytes[..whole].split_inclusive(|byte| *byte == b'\n') {
            write(reply, format!("{} ", line.len() - 1).as_bytes());
            block.word += 1;
            if line == b"quit\n" {
                write(reply, format!("after {}", block.word).as_bytes());
                block.flags |= NET_CLOSE;
            }
        }
        block.used = whole;
        Status::Ok
    })
}

#[test]
fn pieces_are_joined_until_the_handler_can_use_them() {
    for way in ways() {
        let (fd, server) = tcp_port();
        let served = Served::start(way, Kind::Tcp, fd, vec![lines()]);
        let mut stream = connect(server);
        stream.set_nodelay(true).expect("nodelay");
        for part in ["ab", "c\nde", "f", "g\n", &"x".repeat(9000), "\n12\n345\nqu", "it\n"] {
            stream.write_all(part.as_bytes()).expect("send");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut got = String::new();
        stream.read_to_string(&mut got).expect("an end");
        assert_eq!(got, "3 4 9000 2 3 4 after 6", "{way}");
        // What no handler uses up ends the connection, and nothing else.
        let mut endless = connect(server);
        let _ = endless.write_all(&vec![b'y'; 100_000]);
        let mut end = [0; 1];
        assert!(!matches!(endless.read(&mut end), Ok(1..)), "{way}");
        let mut stream = connect(server);
        stream.write_all(b"quit\n").expect("send");
        let mut got = String::new();
        stream.read_to_string(&mut got).expect("an end");
        assert_eq!(got, "4 after 1", "{way}");
        assert_eq!(served.tally(|it| &it.too_long), 1, "{way}");
        served.end();
    }
}

#[test]
fn an_answer_of_any_length_is_sent_and_given_back() {
    for way in ways() {
        let (fd, server) = tcp_port();
        let spills: Handler = Box::new(|block, reply| {
            if block.len > 0 {
                let spill = Box::new([b's'; SPILL_LEN]);
                (reply.spill, reply.len) = (Box::into_raw(spill).cast(), SPILL_LEN);
                (block.used, block.flags) = (block.len, block.flags | NET_CLOSE);
            }
            Status::Ok
        });
        let served = Served::start(way, Kind::Tcp, fd, vec![spills]);
        let mut stream = connect(server);
        stream.write_all(b"go").expect("send");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).expect("an end");
        assert_eq!(got.len(), SPILL_LEN, "{way}");
        assert!(got.iter().all(|byte| *byte == b's'));
        served.end();
    }
}

#[test]
fn a_reader_that_is_slow_holds_the_sender_back() {
    for way in ways() {
        let (fd, server) = tcp_port();
        let served = Served::start(way, Kind::Tcp, fd, vec![echo()]);
        let stream = connect(server);
        stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        let chunk = vec![7; 1 << 16];
        let mut sent = 0;
        while let Ok(count) = (&stream).write(&chunk) {
            sent += count;
            assert!(sent < 256 << 20, "{way}: nothing holds it back");
        }
        assert!(served.tally(|it| &it.paused) > 0, "{way}");
        // Others are served meanwhile.
        let mut other = connect(server);
        other.write_all(b"hello").expect("send");
        let mut answer = [0; 5];
        other.read_exact(&mut answer).expect("an answer");
        let mut left = sent;
        let mut buffer = vec![0; 1 << 16];
        while left > 0 {
            let got = (&stream).read(&mut buffer).expect("what was sent");
            assert!(got > 0, "{way}: {left} bytes are missing");
            left -= got;
        }
        drop((stream, other));
        served.end();
    }
}

#[test]
fn datagrams_and_connections_are_sent_on_and_back() {
    for way in ways() {
        let upstream = UdpSocket::bind(local()).expect("a socket");
        let to = NetAddress::of(upstream.local_addr().expect("an address"));
        upstream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let forward = move |block: &mut PacketBlock, _: &mut Reply| {
            (block.verdict, block.next) = (NET_FORWARD, to);
            Status::Ok
        };
        let (fd, server) = udp_port();
        let served = Served::start(way, Kind::Udp, fd, vec![Box::new(forward)]);
        let clients = [client(server), client(server)];
        for (client, text) in clients.iter().zip([b"one", b"two"]) {
            client.send(text).expect("send");
            let mut buffer = [0; 16];
            let (got, from) = upstream.recv_from(&mut buffer).expect("sent on");
            buffer[..got].reverse();
            upstream.send_to(&buffer[..got], from).expect("send");
        }
        for (client, text) in clients.iter().zip([b"eno", b"owt"]) {
            let mut buffer = [0; 16];
            let got = receive(client, &mut buffer);
            assert_eq!(&buffer[..got], text, "{way}");
        }
        assert_eq!(served.tally(|it| &it.forwarded), 2, "{way}");
        served.end();

        let upstream = TcpListener::bind(local()).expect("a port");
        let to = NetAddress::of(upstream.local_addr().expect("an address"));
        let forward = move |block: &mut PacketBlock, _: &mut Reply| {
            (block.verdict, block.next) = (NET_FORWARD, to);
            Status::Ok
        };
        let (fd, server) = tcp_port();
        let served = Served::start(way, Kind::Tcp, fd, vec![Box::new(forward)]);
        let other = std::thread::spawn(move || {
            let (mut stream, _) = upstream.accept().expect("a connection");
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).expect("an end");
            stream.write_all(&bytes).expect("send");
            bytes.len()
        });
        let mut stream = connect(server);
        let bytes: Vec<u8> = (0..2_000_000u32).map(|at| (at >> 2) as u8).collect();
        stream.write_all(&bytes).expect("send");
        stream.shutdown(Shutdown::Write).expect("shutdown");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).expect("an end");
        assert!(got == bytes, "{way}: other bytes came back");
        assert_eq!(other.join().expect("no panic"), bytes.len(), "{way}");
        // Nobody is there any more.
        let mut refused = connect(server);
        let mut end = [0; 1];
        assert!(!matches!(refused.read(&mut end), Ok(1..)), "{way}");
        served.end();
    }
}

/// Answers what it is handed as another process would, or does not.
fn other_process(pool: &'static Pool, die_at: u64) -> Box<dyn FnMut(u64) -> Status + Send> {
    let who = Holder::of_peer(1 << 32 | 3);
    let mut count = 0;
    Box::new(move |word| {
        let name = Name::from_raw(word);
        let buffer = &pool.buffers[name.index];
        count += 1;
        assert!(buffer.take(name.turn, who, count));
        if count == die_at {
            return Status::Ok;
        }
        let [start, len] = buffer.extent();
        let at = bytes_of(std::ptr::from_ref(pool).addr(), name.index) + start;
        let at = std::ptr::with_exposed_provenance_mut::<u8>(at);
        // SAFETY: the buffer is this process's now.
        let bytes = unsafe { std::slice::from_raw_parts(at, len) };
        let answer: Vec<u8> = bytes.iter().rev().copied().collect();
        // SAFETY: there is room behind it.
        unsafe { at.wrapping_add(len).copy_from_nonoverlapping(answer.as_ptr(), len) };
        let outcome = Outcome { used: len as u16, answer: len as u32, ..Outcome::default() };
        assert!(buffer.finish(name.turn, who, outcome));
        let _ = pool.done.push(&pool.buffers, name.index);
        Status::Ok
    })
}

fn hands() -> Handler {
    Box::new(|block, _| {
        if block.len > 0 || block.flags & NET_ENDED == 0 {
            block.verdict = if block.len > 0 { NET_HAND } else { 0 };
        }
        Status::Ok
    })
}

#[test]
fn another_process_answers_and_its_death_costs_one_answer() {
    for way in ways() {
        let _ = std::ptr::from_ref(pool()).expose_provenance();
        let (fd, server) = udp_port();
        let post = |pool: &'static Pool| {
            let _ = std::ptr::from_ref(pool).expose_provenance();
            other_process(pool, 3)
        };
        let served = Served::with(way, Kind::Udp, fd, vec![hands()], post);
        let client = client(server);
        let mut buffer = [0; 16];
        for text in [b"abc", b"def"] {
            client.send(text).expect("send");
            let got = receive(&client, &mut buffer);
            assert!(buffer[..got].iter().rev().eq(text), "{way}");
        }
        client.send(b"lost").expect("send");
        while served.tally(|it| &it.handed) < 3 {
            std::thread::yield_now();
        }
        served.is_dead.store(true, Relaxed);
        while served.tally(|it| &it.lost) < 1 {
            std::thread::yield_now();
        }
        served.is_dead.store(false, Relaxed);
        client.send(b"xyz").expect("send");
        let got = receive(&client, &mut buffer);
        assert_eq!(&buffer[..got], b"zyx", "{way}");
        served.end();

        let (fd, server) = tcp_port();
        let served = Served::with(way, Kind::Tcp, fd, vec![hands()], post);
        for (text, answer) in [("abc", "cba"), ("def", "fed"), ("lost", ""), ("xyz", "zyx")] {
            let mut stream = connect(server);
            stream.write_all(text.as_bytes()).expect("send");
            if text == "lost" {
                while served.tally(|it| &it.handed) < 3 {
                    std::thread::yield_now();
                }
                served.is_dead.store(true, Relaxed);
            }
            let mut got = vec![0; answer.len().max(1)];
            let read = stream.read_exact(&mut got);
            served.is_dead.store(false, Relaxed);
            assert_eq!(read.is_ok(), !answer.is_empty(), "{way}");
            assert!(answer.is_empty() || got == answer.as_bytes(), "{way}");
        }
        served.end();
    }
}

#[test]
fn many_connections_at_once_each_get_their_own() {
    for way in ways() {
        let (fd, server) = tcp_port();
        let served = Served::start(way, Kind::Tcp, fd, vec![echo()]);
        let mut streams: Vec<TcpStream> = (0..300).map(|_| connect(server)).collect();
        for round in 0..3 {
            for (index, stream) in streams.iter_mut().enumerate() {
                stream.write_all(format!("{round}:{index:4}").as_bytes()).expect("send");
            }
            for (index, stream) in streams.iter_mut().enumerate() {
                let mut got = [0; 6];
                stream.read_exact(&mut got).expect("an answer");
                assert_eq!(got, format!("{round}:{index:4}").as_bytes(), "{way}");
            }
        }
        assert_eq!(served.tally(|it| &it.open), 300, "{way}");
        drop(streams);
        let late = Instant::now() + Duration::from_secs(10);
        while served.tally(|it| &it.open) != 0 {
            assert!(Instant::now() < late, "{way}: connections stay open");
            std::thread::yield_now();
        }
        served.end();
    }
}

/// Another process that answers whole lines, and leaves what is none yet.
fn answers_lines(pool: &'static Pool) -> Box<dyn FnMut(u64) -> Status + Send> {
    let _ = std::ptr::from_ref(pool).expose_provenance();
    let who = Holder::of_peer(1 << 32 | 3);
    Box::new(move |word| {
        let name = Name::from_raw(word);
        let buffer = &pool.buffers[name.index];
        assert!(buffer.take(name.turn, who, 1));
        let [start, len] = buffer.extent();
        let at = bytes_of(std::ptr::from_ref(pool).addr(), name.index) + start;
        let at = std::ptr::with_exposed_provenance_mut::<u8>(at);
        // SAFETY: the buffer is this process's now.
        let bytes = unsafe { std::slice::from_raw_parts(at, len) };
        let used = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        // SAFETY: there is room behind it.
        unsafe { at.wrapping_add(len).copy_from_nonoverlapping(at, used) };
        let outcome = Outcome { used: used as u16, answer: used as u32, ..Outcome::default() };
        assert!(buffer.finish(name.turn, who, outcome));
        let _ = pool.done.push(&pool.buffers, name.index);
        Status::Ok
    })
}

#[test]
fn what_another_process_leaves_is_given_out_again_with_more_only() {
    for way in ways() {
        let (fd, server) = tcp_port();
        let served = Served::with(way, Kind::Tcp, fd, vec![hands()], answers_lines);
        let mut stream = connect(server);
        stream.write_all(b"ab").expect("send");
        while served.tally(|it| &it.handed) < 1 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(served.tally(|it| &it.handed), 1, "{way}");
        stream.write_all(b"c\nde").expect("send");
        let mut got = [0; 4];
        stream.read_exact(&mut got).expect("an answer");
        assert_eq!(&got, b"abc\n", "{way}");
        stream.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(stream.read(&mut got).expect("an end"), 0, "{way}");
        served.end();
    }
}

#[test]
fn joined_connections_are_forgotten_whichever_side_ends_first() {
    for way in ways() {
        let upstream = TcpListener::bind(local()).expect("a port");
        let to = NetAddress::of(upstream.local_addr().expect("an address"));
        let forward = move |block: &mut PacketBlock, _: &mut Reply| {
            (block.verdict, block.next) = (NET_FORWARD, to);
            Status::Ok
        };
        let (fd, server) = tcp_port();
        let served = Served::start(way, Kind::Tcp, fd, vec![Box::new(forward)]);
        for is_client_first in [true, false, true, false] {
            let client = connect(server);
            let (other, _) = upstream.accept().expect("a connection");
            let (mut first, mut last) =
                if is_client_first { (client, other) } else { (other, client) };
            first.write_all(b"the last words").expect("send");
            first.shutdown(Shutdown::Write).expect("shutdown");
            let mut got = Vec::new();
            last.read_to_end(&mut got).expect("an end");
            assert_eq!(got, b"the last words", "{way}");
            last.write_all(b"yes").expect("send");
            drop(last);
            got.clear();
            first.read_to_end(&mut got).expect("an end");
            assert_eq!(got, b"yes", "{way}");
        }
        let late = Instant::now() + Duration::from_secs(10);
        while served.connections.load(Relaxed) != 0 {
            assert!(Instant::now() < late, "{way}: connections stay");
            std::thread::yield_now();
        }
        assert_eq!(served.tally(|it| &it.open), 0, "{way}");
        served.end();
    }
}

#[test]
fn a_handler_hears_of_each_end_once() {
    for way in ways() {
        let (fd, server) = tcp_port();
        let ends = Arc::new([const { AtomicU64::new(0) }; 3]);
        let count = ends.clone();
        let handler: Handler = Box::new(move |block, _| {
            let kind = match block.flags {
                flags if flags & NET_CUT != 0 => 2,
                flags if flags & NET_ENDED != 0 => 1,
                _ => 0,
            };
            if kind != 0 {
                count[kind].fetch_add(1, Relaxed);
            }
            block.used = block.len;
            if bytes_in(block) == b"cut" {
                block.verdict = NET_DROP;
            }
            Status::Ok
        });
        let served = Served::start(way, Kind::Tcp, fd, vec![handler]);
        for _ in 0..5 {
            drop(connect(server));
            let mut stream = connect(server);
            stream.write_all(b"cut").expect("send");
            let mut end = [0; 1];
            assert!(!matches!(stream.read(&mut end), Ok(1..)), "{way}");
        }
        let late = Instant::now() + Duration::from_secs(10);
        while served.tally(|it| &it.open) != 0 {
            assert!(Instant::now() < late, "{way}: connections stay open");
            std::thread::yield_now();
        }
        served.end();
        assert_eq!([1, 2].map(|kind| ends[kind].load(Relaxed)), [5, 5], "{way}");
    }
}

/// A process that serves the engine's port 0 itself, from seat 0.
struct Process {
    pool: &'static Pool,
    at: u32,
}

const SEATED: Holder = Holder::of_peer(1 << 32 | 4);

impl Process {
    /// The next item of a connection, if it has a packet.
    fn next(&mut self) -> (Name, Piece) {
        let late = Instant::now() + Duration::from_secs(10);
        loop {
            match self.pool.seats[0].item(self.at) {
                Some(item) => {
                    self.at += 1;
                    if !item.connection.is(Piece::RESET) {
                        let name = Name::from_raw(item.packet);
                        let buffer = &self.pool.buffers[name.index];
                        assert!(buffer.take(name.turn, SEATED, BY_PROCESS));
                        return (name, item.connection);
                    }
                }
                None => assert!(Instant::now() < late, "nothing comes"),
            }
            std::thread::yield_now();
        }
    }

    /// The next item that holds bytes of a connection; what else comes is given back.
    fn next_bytes(&mut self) -> (Name, Piece) {
        loop {
            let (name, piece) = self.next();
            if !piece.is(Piece::BEGIN | Piece::END | Piece::ROOM) {
                return (name, piece);
            }
            self.give_back(name, b"");
        }
    }

    fn give_back(&self, name: Name, answer: &[u8]) {
        let buffer = &self.pool.buffers[name.index];
        let [start, len] = buffer.extent();
        let at = bytes_of(std::ptr::from_ref(self.pool).expose_provenance(), name.index);
        let at = std::ptr::with_exposed_provenance_mut::<u8>(at + start + len);
        // SAFETY: room behind the packet of a buffer that this process has.
        unsafe { at.copy_from_nonoverlapping(answer.as_ptr(), answer.len()) };
        let outcome = Outcome { answer: answer.len() as u32, ..Outcome::default() };
        assert!(buffer.finish(name.turn, SEATED, outcome));
        let _ = self.pool.done.push(&self.pool.buffers, name.index);
    }

    fn leave(&self, piece: Piece) {
        self.pool.seats[0].ask(Ask::Close, piece.connection());
        let _ = self.pool.done.ring();
    }
}

#[test]
fn no_connection_gets_what_was_meant_for_one_that_has_gone() {
    for way in ways() {
        let (fd, server) = tcp_port();
        let served = Served::seated(way, Kind::Tcp, fd);
        let mut process = Process { pool: served.pool, at: 0 };
        let mut first = connect(server);
        first.write_all(b"first").expect("send");
        let (held, its) = process.next_bytes();
        // It is cut while the process has a piece of it.
        listen_reset(first);
        let mut others: Vec<TcpStream> = (0..5).map(|_| connect(server)).collect();
        for other in &mut others {
            other.write_all(b"other").expect("send");
        }
        let mut seen = Vec::new();
        for _ in 0..others.len() {
            let (name, piece) = process.next_bytes();
            assert_ne!(piece.connection(), its.connection(), "{way}: its number is another's");
            seen.push((name, piece));
        }
        process.give_back(held, b"meant for the first");
        process.leave(its);
        for (name, _) in &seen {
            process.give_back(*name, b"meant for others");
        }
        for other in &mut others {
            let mut answer = [0; 16];
            other.read_exact(&mut answer).expect("an answer");
            assert_eq!(&answer, b"meant for others", "{way}");
        }
        seen.iter().for_each(|(_, piece)| process.leave(*piece));
        drop(others);
        let late = Instant::now() + Duration::from_secs(10);
        while served.tally(|it| &it.open) != 0 {
            assert!(Instant::now() < late, "{way}: connections stay");
            // Ends are told, and given back.
            while let Some(item) = process.pool.seats[0].item(process.at) {
                process.at += 1;
                let name = Name::from_raw(item.packet);
                if process.pool.buffers[name.index].take(name.turn, SEATED, BY_PROCESS) {
                    process.give_back(name, b"");
                }
            }
            std::thread::yield_now();
        }
        served.end();
    }
}

/// Have the other side see a reset.
fn listen_reset(stream: TcpStream) {
    let fd = std::os::fd::OwnedFd::from(stream);
    listen::reset_on_close(&fd);
}

#[test]
fn many_that_send_half_a_request_do_not_keep_others_from_being_served() {
    for way in ways() {
        let (fd, server) = tcp_port();
        let served = Served::start(way, Kind::Tcp, fd, vec![lines()]);
        let mut halves: Vec<TcpStream> = Vec::new();
        for _ in 0..1500 {
            let mut half = connect(server);
            half.write_all(b"half").expect("send");
            halves.push(half);
        }
        let mut stream = connect(server);
        stream.write_all(b"quit\n").expect("send");
        let mut got = String::new();
        stream.read_to_string(&mut got).expect("an end");
        assert_eq!(got, "4 after 1", "{way}");
        assert!(served.tally(|it| &it.dropped) > 0, "{way}: nobody was cut");
        drop(halves);
        served.end();
    }
}

#[test]
fn a_port_is_given_back_although_a_process_keeps_a_packet_of_it() {
    for way in ways() {
        let (fd, server) = udp_port();
        let served = Served::seated(way, Kind::Udp, fd);
        let mut process = Process { pool: served.pool, at: 0 };
        let client = client(server);
        client.send(b"kept").expect("send");
        let (name, _) = process.next();
        let missing = served.stop_now();
        assert_eq!(missing, 1, "{way}: the one that is kept");
        let buffer = &process.pool.buffers[name.index];
        assert!(buffer.finish(name.turn, SEATED, Outcome::default()));
    }
}
