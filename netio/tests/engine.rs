//! The engine on real sockets, by both ways to the kernel, with handlers that are functions here.
#![expect(unsafe_code, reason = "makes a pool, and reads what handlers are given")]
#[path = "engine/gathered.rs"]
mod gathered;
#[path = "engine/scarce.rs"]
mod scarce;
#[path = "engine/served.rs"]
mod served;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ext_api::abi::{
    NET_CLOSE, NET_CUT, NET_DROP, NET_ENDED, NET_FORWARD, NET_HAND, NET_REPLY, NET_REPLY_IN_PLACE,
    NetAddress, PacketBlock, Reply, Status,
};
use ext_api::pool::{Ask, BY_PROCESS, Holder, Name, Outcome, Piece, Pool, bytes_of};
use netio::buffers::Buffers;
use netio::engine::driver::Driver;
use netio::engine::epoll::Epoll;
use netio::engine::uring::Uring;
use netio::engine::{Engine, Kind};
use netio::listen;

use served::*;

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
    for way in ways_in_place() {
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
    for way in ways_in_place() {
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
    for way in ways_in_place() {
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
    for way in ways_in_place() {
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
    for way in ways_in_place() {
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
                Some((item, next)) => {
                    self.at = next;
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
            while let Some((item, next)) = process.pool.seats[0].item(process.at) {
                process.at = next;
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
    let fd = OwnedFd::from(stream);
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
        // It may have been served before the buffers ran out.
        let late = Instant::now() + Duration::from_secs(10);
        while served.tally(|it| &it.dropped) == 0 {
            assert!(Instant::now() < late, "{way}: nobody was cut");
            std::thread::yield_now();
        }
        drop(halves);
        served.end();
    }
}

#[test]
fn a_process_that_does_not_look_while_worker_after_worker_dies_gets_what_the_last_one_has() {
    const WORKERS: u8 = 12;
    const EACH: u8 = 250;
    for way in ["io_uring", "epoll"].into_iter().filter(|way| ways().contains(way)) {
        let pool = pool();
        let (fd, server) = udp_port();
        let client = client(server);
        for worker in 0..WORKERS {
            (0..EACH).for_each(|at| drop(client.send(&[worker, at])));
            let fd = fd.try_clone().expect("a copy");
            if way == "epoll" {
                give_and_die(Epoll::new().expect("epoll"), pool, fd, EACH);
            } else {
                give_and_die(Uring::new().expect("io_uring"), pool, fd, EACH);
            }
        }
        let mut process = Process { pool, at: 0 };
        let (item, _) = pool.seats[0].item(0).expect("the last worker's first word");
        assert!(item.connection.is(Piece::RESET), "{way}");
        for at in 0..EACH {
            let (name, _) = process.next();
            let buffer = bytes_of(std::ptr::from_ref(pool).expose_provenance(), name.index);
            let buffer = std::ptr::with_exposed_provenance::<[u8; 2]>(
                buffer + pool.buffers[name.index].extent()[0],
            );
            // SAFETY: two bytes of a buffer that this process has.
            assert_eq!(unsafe { *buffer }, [WORKERS - 1, at], "{way}");
        }
        assert!(pool.seats[0].item(process.at).is_none(), "{way}");
    }
}

/// A worker that gives seat 0 so many datagrams and is killed.
fn give_and_die<D: Driver>(driver: D, pool: &'static Pool, fd: OwnedFd, count: u8) {
    // SAFETY: the test's own pool, whose former owner is gone.
    let buffers = unsafe { Buffers::own(pool, 1) };
    let mut engine = Engine::new(driver, Here::empty(), buffers);
    engine.open(0, Kind::Udp, 0, Some(fd)).expect("a free port");
    engine.sit(0, 0);
    let (handed, late) = (&pool.tallies[0].handed, Instant::now() + Duration::from_secs(10));
    let before = handed.load(Relaxed);
    while handed.load(Relaxed) < before + u64::from(count) {
        engine.turn(Some(Duration::from_millis(5))).expect("a turn");
        assert!(Instant::now() < late, "they do not come");
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
