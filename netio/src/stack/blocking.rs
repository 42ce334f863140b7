//! Stacks in real time: threads that wait in calls.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::thread;
use std::time::Duration;

use super::{Config, Congestion, Stack};
use crate::device::Medium;
use crate::device::conformance::tests::{apart, available, ip};
use crate::device::lossy::Lossy;
use crate::device::memory::{Faults, pair};
use crate::device::packet::{Packet, Reads};
use crate::device::ring::tests::Shared;

/// Longest that any wait may take.
const PATIENCE: Duration = Duration::from_secs(60);

const fn at(last: u8, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 8, last)), port)
}

fn config(last: u8) -> Config {
    Config { congestion: Congestion::Unlimited, ..Config::new(at(last, 0).ip(), 24) }
}

fn on_a_line(faults: Faults) -> [Stack; 2] {
    let [one, other] = pair(Medium::Ethernet, 1500, faults, 42);
    [(one, 1), (other, 2)].map(|(line, last)| Stack::new(line, config(last)).expect("a stack"))
}

/// Two stacks at a ring, whose memory is never given back.
fn on_a_ring(spin: Duration) -> [Stack; 2] {
    let memory = Box::leak(Box::new(Shared::new(1 << 19)));
    let [one, other] = memory.sides();
    [(one, 1), (other, 2)]
        .map(|(ring, last)| Stack::new(ring, Config { spin, ..config(last) }).expect("a stack"))
}

/// Give back whatever comes, on every connection, by a thread each, until `connections` have ended.
fn echo(stack: &Stack, connections: usize) {
    let listener = stack.listen(7, 16).expect("listens");
    listener.set_timeout(Some(PATIENCE));
    thread::scope(|scope| {
        for _ in 0..connections {
            let mut stream = listener.accept().expect("comes");
            stream.set_read_timeout(Some(PATIENCE));
            scope.spawn(move || {
                let mut into = vec![0; 10_000];
                loop {
                    match stream.read(&mut into).expect("reads") {
                        0 => break,
                        len => stream.write_all(&into[..len]).expect("writes"),
                    }
                }
            });
        }
    });
    assert!(stack.finish(PATIENCE).expect("no fault"));
}

fn speak(stack: &Stack, seed: u8) {
    let stream = stack.connect_timeout(at(2, 7), PATIENCE).expect("connects");
    stream.set_read_timeout(Some(PATIENCE));
    stream.set_write_timeout(Some(PATIENCE));
    let sent: Vec<u8> = (0..200_000u32).map(|at| (at as u8).wrapping_mul(seed)).collect();
    let mut back = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(&sent).expect("writes");
            stream.shutdown(Shutdown::Write).expect("shuts");
        });
        (&stream).read_to_end(&mut back).expect("reads");
    });
    assert!(back == sent);
}

#[test]
fn many_threads_speak_at_once() {
    let bad =
        Faults { lost: 5, reordered: 5, delay: Duration::from_micros(100), ..Faults::default() };
    let worlds = [
        on_a_line(Faults::default()),
        on_a_line(bad),
        on_a_ring(Duration::ZERO),
        on_a_ring(Duration::from_micros(50)),
    ];
    for [one, other] in worlds {
        many_speak(&one, &other);
    }
}

#[test]
fn many_threads_speak_over_packet_sockets() {
    apart(|| {
        ip("link add one type veth peer name other");
        ip("link set one up");
        ip("link set other up");
        for reads in [Reads::IoUring, Reads::Calls] {
            let stack = |name, last| {
                let device = available(Packet::open_with(name, reads))?;
                Some(Stack::new(device, config(last)).expect("a stack"))
            };
            let (Some(one), Some(other)) = (stack("one", 1), stack("other", 2)) else { return };
            many_speak(&one, &other);
        }
    });
}

fn many_speak(one: &Stack, other: &Stack) {
    thread::scope(|scope| {
        scope.spawn(|| echo(other, 12));
        let _driver = one.drive().expect("a thread");
        for seed in 0..12 {
            scope.spawn(move || speak(one, seed));
        }
    });
    println!("{one}\n{other}");
}

#[test]
fn waits_end_when_their_time_is_over() {
    let [one, other] = on_a_ring(Duration::ZERO);
    let short = Some(Duration::from_millis(10));
    let listener = other.listen(7, 1).expect("listens");
    listener.set_timeout(short);
    assert_eq!(listener.accept().err().map(|e| e.kind()), Some(ErrorKind::TimedOut));
    let nobody = one.connect_timeout(at(9, 7), Duration::from_millis(10));
    assert_eq!(nobody.err().map(|e| e.kind()), Some(ErrorKind::TimedOut));
    let socket = one.bind(at(1, 0)).expect("binds");
    socket.set_timeout(short);
    let kind = socket.recv_from(&mut [0; 9]).err().map(|e| e.kind());
    assert_eq!(kind, Some(ErrorKind::TimedOut));
    // From now on it does its part whatever its owner does.
    let driver = other.drive().expect("a thread");
    let mut stream = one.connect_timeout(at(2, 7), PATIENCE).expect("connects");
    stream.set_read_timeout(short);
    assert_eq!(stream.read(&mut [0; 9]).err().map(|e| e.kind()), Some(ErrorKind::TimedOut));
    stream.set_write_timeout(short);
    let full = stream.write_all(&vec![0; 4 << 20]);
    assert_eq!(full.err().map(|e| e.kind()), Some(ErrorKind::TimedOut));
    assert_eq!(one.connect(at(2, 8)).err().map(|e| e.kind()), Some(ErrorKind::ConnectionRefused));
    drop(driver);
}

#[test]
fn a_shutdown_ends_a_read_that_waits() {
    let [one, other] = on_a_line(Faults::default());
    let _drivers = [&one, &other].map(|stack| stack.drive().expect("a thread"));
    let listener = other.listen(7, 1).expect("listens");
    listener.set_timeout(Some(PATIENCE));
    let stream = one.connect_timeout(at(2, 7), PATIENCE).expect("connects");
    let accepted = listener.accept().expect("comes");
    for stream in [&stream, &accepted] {
        stream.set_read_timeout(Some(PATIENCE));
        stream.set_write_timeout(Some(PATIENCE));
    }
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!((&stream).read(&mut [0; 9]).expect("ends"), 0));
        thread::sleep(Duration::from_millis(20));
        stream.shutdown(Shutdown::Both).expect("shuts");
    });
    assert_eq!((&accepted).read(&mut [0; 9]).expect("ends"), 0);
    (&accepted).write_all(b"late").expect("writes");
    accepted.wait_acknowledged().expect("acknowledged");
    drop(accepted);
    assert_eq!((&stream).write(b"x").err().map(|e| e.kind()), Some(ErrorKind::BrokenPipe));
}

#[test]
fn datagrams_pass_both_ways() {
    let [one, other] = on_a_ring(Duration::ZERO);
    let _driver = other.drive().expect("a thread");
    let [here, there] =
        [one.bind(at(1, 5)), other.bind(at(2, 6))].map(|socket| socket.expect("binds"));
    for socket in [&here, &there] {
        socket.set_timeout(Some(PATIENCE));
    }
    let long = vec![3; 60_000];
    here.send_to(&long, at(2, 6)).expect("sends");
    let mut into = vec![0; 65_000];
    let (len, from) = there.recv_from(&mut into).expect("comes");
    assert_eq!((&into[..len], from), (&long[..], at(1, 5)));
    there.send_to(b"yes", from).expect("sends");
    assert_eq!(here.recv_from(&mut into).expect("comes"), (3, at(2, 6)));
}

#[test]
fn a_lossy_device_loses_and_tcp_gets_over_it() {
    let [one, other] = pair(Medium::Ip, 1500, Faults::default(), 0);
    let one = Stack::new(Lossy::new(one, 20, 7), config(1)).expect("a stack");
    let other = Stack::new(other, config(2)).expect("a stack");
    thread::scope(|scope| {
        scope.spawn(|| echo(&other, 1));
        speak(&one, 3);
    });
}
