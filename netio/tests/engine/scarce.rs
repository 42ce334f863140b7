//! Buffers are few: who has to wait, and who must not.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ext_api::abi::{NET_CLOSE, NET_FORWARD, NetAddress, PacketBlock, Reply, Status};
use ext_api::pool::{Ask, BY_PROCESS, Holder, Name, Outcome, Piece, Pool};
use netio::engine::Kind;

use super::served::*;

const PATIENCE: Duration = Duration::from_secs(25);
/// The engine by either way to the kernel; those that io_uring has besides differ in nothing here.
const WAYS: [&str; 2] = ["io_uring", "epoll"];

fn chosen() -> impl Iterator<Item = &'static str> {
    WAYS.into_iter().filter(|way| ways().contains(way))
}

/// Have the kernel keep little of what is not read, or not sent: `option` says which.
fn keep_little(socket: &impl AsRawFd, option: libc::c_int) {
    let len: libc::c_int = 8192;
    let (at, size) = ((&raw const len).cast(), size_of_val(&len) as u32);
    // SAFETY: an integer and its length.
    unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, at, size) };
}

fn narrow(server: SocketAddr) -> TcpStream {
    let stream = connect(server);
    keep_little(&stream, libc::SO_RCVBUF);
    stream.set_nodelay(true).expect("nodelay");
    stream.set_nonblocking(true).expect("no waiting");
    stream
}

#[test]
fn what_no_process_has_room_for_is_given_up_and_is_out_until_then() {
    for way in chosen() {
        let (fd, server) = udp_port();
        let hands: Handler = Box::new(|block, _| {
            block.verdict = ext_api::abi::NET_HAND;
            Status::Ok
        });
        let served = Served::with(way, Kind::Udp, fd, vec![hands], |_| Box::new(|_| Status::Full));
        let client = client(server);
        let late = Instant::now() + PATIENCE;
        while served.tally(|it| &it.buffers) < 512 {
            assert!(Instant::now() < late, "{way}: the share is never out");
            (0..100).for_each(|_| drop(client.send(b"job")));
            std::thread::sleep(Duration::from_millis(3));
        }
        let out = served.tally(|it| &it.buffers);
        assert!(out < 700, "{way}: {out} are out");
        while served.tally(|it| &it.lost) < 512 {
            assert!(Instant::now() < late, "{way}: they wait for ever");
            std::thread::sleep(Duration::from_millis(10));
        }
        served.end();
    }
}

/// An upstream that sends everybody `len` bytes.
fn sends_all(len: usize) -> SocketAddr {
    let upstream = TcpListener::bind(local()).expect("a port");
    let at = upstream.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in upstream.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.write_all(&vec![b'd'; len]);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read(&mut [0]);
            });
        }
    });
    at
}

#[test]
fn readers_that_are_slow_get_all_that_is_sent_on_to_them() {
    const LEN: usize = 1 << 20;
    for way in chosen() {
        let to = NetAddress::of(sends_all(LEN));
        let forward = move |block: &mut PacketBlock, _: &mut Reply| {
            (block.verdict, block.next) = (NET_FORWARD, to);
            Status::Ok
        };
        let (fd, server) = tcp_port();
        let served = Served::start(way, Kind::Tcp, fd, vec![Box::new(forward)]);
        let mut readers: Vec<(TcpStream, usize)> = (0..100).map(|_| (narrow(server), 0)).collect();
        let (mut buffer, mut whole) = (vec![0; 20_000], 0);
        let late = Instant::now() + 2 * PATIENCE;
        while !readers.is_empty() {
            assert!(Instant::now() < late, "{way}: {} are not through", readers.len());
            std::thread::sleep(Duration::from_millis(2));
            readers.retain_mut(|(stream, got)| match stream.read(&mut buffer) {
                Ok(0) => {
                    assert_eq!(*got, LEN, "{way}");
                    whole += 1;
                    false
                }
                Ok(len) => {
                    *got += len;
                    true
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{way}: after {got} bytes");
                    true
                }
            });
        }
        assert_eq!((whole, served.tally(|it| &it.dropped)), (100, 0), "{way}");
        served.end();
    }
}

#[test]
fn who_reads_nothing_has_nobody_else_cut() {
    for way in chosen() {
        let (fd, server) = tcp_port();
        // Else all of it lies in the kernel, which drops what comes when all connections of the machine have a lot.
        [libc::SO_RCVBUF, libc::SO_SNDBUF].iter().for_each(|option| keep_little(&fd, *option));
        let served = Served::start(way, Kind::Tcp, fd, vec![echo()]);
        let readers: Vec<TcpStream> = (0..250).map(|_| narrow(server)).collect();
        readers.iter().for_each(|reader| keep_little(reader, libc::SO_SNDBUF));
        let chunk = vec![b'x'; 16 << 10];
        let mut most = 0;
        for round in 0..400 {
            most = most.max(served.tally(|it| &it.buffers));
            let sent = readers.iter().filter_map(|mut reader| reader.write(&chunk).ok()).count();
            if sent == 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
            if round % 20 == 0 {
                let mut other = connect(server);
                other.write_all(b"hello").expect("send");
                let mut answer = [0; 5];
                other.read_exact(&mut answer).unwrap_or_else(|error| panic!("{way}: {error}"));
            }
        }
        assert!(most >= 256, "{way}: there are enough for all, {most} of 512 are out");
        assert_eq!(served.tally(|it| &it.dropped), 0, "{way}");
        drop(readers);
        served.end();
    }
}

#[test]
fn who_reads_nothing_does_not_keep_others_waiting_for_long() {
    for way in chosen() {
        let (fd, server) = tcp_port();
        // Connections have it from the socket that they came by.
        keep_little(&fd, libc::SO_SNDBUF);
        let long: Handler = Box::new(|block, reply| {
            if block.len > 0 {
                let spill = Box::new([b's'; SPILL_LEN]);
                (reply.spill, reply.len) = (Box::into_raw(spill).cast(), SPILL_LEN);
                block.used = block.len;
            }
            Status::Ok
        });
        let served = Served::start(way, Kind::Tcp, fd, vec![long]);
        let readers: Vec<TcpStream> = (0..300).map(|_| narrow(server)).collect();
        let late = Instant::now() + PATIENCE;
        while served.tally(|it| &it.buffers) < 512 {
            assert!(Instant::now() < late, "{way}: the share is never out");
            readers.iter().for_each(|mut reader| drop(reader.write(b"more")));
            std::thread::sleep(Duration::from_millis(3));
        }
        let mut stream = connect(server);
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(b"go").expect("send");
        let mut got = vec![0; SPILL_LEN];
        stream.read_exact(&mut got).unwrap_or_else(|error| panic!("{way}: {error}"));
        drop((stream, readers));
        served.end();
    }
}

#[test]
fn the_end_of_an_answer_waits_for_its_reader() {
    for way in chosen() {
        let (fd, server) = tcp_port();
        let last: Handler = Box::new(|block, reply| {
            if block.len > 0 {
                let spill = Box::new([b's'; SPILL_LEN]);
                (reply.spill, reply.len) = (Box::into_raw(spill).cast(), SPILL_LEN);
                (block.used, block.flags) = (block.len, block.flags | NET_CLOSE);
            }
            Status::Ok
        });
        let served = Served::start(way, Kind::Tcp, fd, vec![last]);
        let mut stream = narrow(server);
        stream.write_all(b"go").expect("send");
        // The kernel has all of it soon, and the engine has nothing more to do with it.
        std::thread::sleep(Duration::from_secs(5));
        stream.set_nonblocking(false).expect("waiting");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap_or_else(|error| panic!("{way}: {error}"));
        assert_eq!(got.len(), SPILL_LEN, "{way}");
        drop(stream);
        served.end();
    }
}

const SEATED: Holder = Holder::of_peer(1 << 32 | 4);

/// A process that serves the engine's port 0 itself, from seat 0, and keeps what it gets.
struct Keeps {
    pool: &'static Pool,
    at: u32,
    kept: Vec<(Name, Piece)>,
}

impl Keeps {
    fn new(served: &Served) -> Self {
        let _ = std::ptr::from_ref(served.pool).expose_provenance();
        Self { pool: served.pool, at: 0, kept: Vec::new() }
    }

    /// Take what there is until `is_enough` of what is kept.
    fn take_until(&mut self, what: &str, is_enough: impl Fn(&[(Name, Piece)]) -> bool) {
        let late = Instant::now() + PATIENCE;
        while !is_enough(&self.kept) {
            assert!(Instant::now() < late, "never: {what}; {} are kept", self.kept.len());
            self.take();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn take(&mut self) {
        while let Some((item, next)) = self.pool.seats[0].item(self.at) {
            self.at = next;
            let name = Name::from_raw(item.packet);
            let is_reset = item.connection.is(Piece::RESET);
            if !is_reset && self.pool.buffers[name.index].take(name.turn, SEATED, BY_PROCESS) {
                self.kept.push((name, item.connection));
            }
        }
    }

    fn ask(&self, ask: Ask, connection: u32) {
        self.pool.seats[0].ask(ask, connection);
        let _ = self.pool.done.ring();
    }

    /// Have done with all connections; their other sides are gone.
    fn end(&mut self, way: &str, served: &Served) {
        let mut numbers: Vec<u32> = self.kept.iter().map(|(_, it)| it.connection()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        self.give_all_back();
        numbers.into_iter().for_each(|connection| self.ask(Ask::Close, connection));
        let late = Instant::now() + PATIENCE;
        while served.connections.load(Relaxed) != 0 {
            assert!(Instant::now() < late, "{way}: connections stay");
            self.take();
            self.give_all_back();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn give_all_back(&mut self) {
        for (name, _) in self.kept.drain(..) {
            assert!(self.pool.buffers[name.index].finish(name.turn, SEATED, Outcome::default()));
            let _ = self.pool.done.push(&self.pool.buffers, name.index);
        }
    }
}

fn bytes_of_it(kept: &[(Name, Piece)]) -> usize {
    let others = Piece::BEGIN | Piece::END | Piece::ROOM;
    kept.iter().filter(|(_, piece)| !piece.is(others)).count()
}

#[test]
fn a_process_gets_room_to_write_whatever_it_has_not_read() {
    for way in chosen() {
        let (fd, server) = tcp_port();
        let served = Served::seated(way, Kind::Tcp, fd);
        let mut process = Keeps::new(&served);
        let mut stream = connect(server);
        stream.set_nodelay(true).expect("nodelay");
        for _ in 0..20 {
            stream.write_all(b"more").expect("send");
            std::thread::sleep(Duration::from_millis(2));
        }
        process.take_until("as much as one connection may have", |it| bytes_of_it(it) >= 7);
        std::thread::sleep(Duration::from_millis(20));
        let connection = process.kept[0].1.connection();
        process.ask(Ask::Room, connection);
        let is_room = |(_, piece): &(Name, Piece)| piece.is(Piece::ROOM);
        process.take_until("room", |it| it.iter().any(is_room));
        drop(stream);
        process.end(way, &served);
        served.end();
    }
}

#[test]
fn a_connection_is_read_whatever_others_have_that_is_not() {
    for way in chosen() {
        let (fd, server) = tcp_port();
        let served = Served::seated(way, Kind::Tcp, fd);
        let mut process = Keeps::new(&served);
        let mut streams: Vec<TcpStream> = (0..60).map(|_| narrow(server)).collect();
        for _ in 0..40 {
            streams.iter_mut().for_each(|stream| drop(stream.write(&[b'u'; 1000])));
            std::thread::sleep(Duration::from_millis(2));
        }
        let begins = |it: &[(Name, Piece)]| it.iter().filter(|(_, it)| it.is(Piece::BEGIN)).count();
        process.take_until("all are begun", |it| begins(it) == 60);
        assert_eq!(served.tally(|it| &it.dropped), 0, "{way}");
        let last = process.kept.iter().rfind(|(_, piece)| piece.is(Piece::BEGIN)).expect("one").1;
        // It reads of this one only: each piece comes when the one before has been given back.
        for _ in 0..3 {
            let is_its = |(_, piece): &(Name, Piece)| piece.connection() == last.connection();
            let (its, others) = process.kept.drain(..).partition(is_its);
            let mut reading = Keeps { pool: process.pool, at: process.at, kept: its };
            process.kept = others;
            reading.give_all_back();
            reading.take_until("more of it", |it| bytes_of_it(it) > 0);
            process.at = reading.at;
            process.kept.append(&mut reading.kept);
        }
        streams.clear();
        process.end(way, &served);
        served.end();
    }
}
