//! Hosts at simulated lines, in simulated time, from seeds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::OnceLock;
use std::time::Duration;

use proptest::prelude::*;

use super::host::{BACKLOG_MAX, Host, Id, SOCKETS_MAX};
use super::{Config, Error};
use crate::device::memory::{Faults, Memory, Random, pair};
use crate::device::{Device, Medium, Tally};

const NOW: Duration = Duration::ZERO;
/// Longest that anything may take, in simulated time.
const PATIENCE: Duration = Duration::from_secs(3600);

fn v4(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 1, 2, last))
}

fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last))
}

fn config(last: u8, seed: u64) -> Config {
    Config {
        addresses: vec![(v4(last), 24), (v6(last.into()), 64)],
        hardware: [2, 0, 0, 0, 0, last],
        seed: seed ^ u64::from(last),
        buffer_len: 64 << 10,
        ..Config::new(v4(last), 24)
    }
}

/// Two hosts on a line.
struct World {
    hosts: [Host; 2],
    now: Duration,
}

impl World {
    fn new(medium: Medium, mtu: usize, faults: Faults, seed: u64) -> Self {
        let lines = pair(medium, mtu, faults, seed);
        let mut last = 0;
        let hosts = lines.map(|line| {
            last += 1;
            Host::new(Box::new(line), config(last, seed), NOW).expect("a host")
        });
        Self { hosts, now: NOW }
    }

    /// Poll both, and go on to when something is due; false if nothing ever is.
    fn step(&mut self) -> bool {
        let mut has_changed = false;
        for host in &mut self.hosts {
            has_changed |= host.poll(self.now);
        }
        if !has_changed {
            let due = self.hosts.iter().filter_map(|host| host.next_at(self.now)).min();
            let Some(due) = due else { return false };
            self.now = due.max(self.now + Duration::from_micros(1));
            assert!(self.now < PATIENCE, "nothing comes of it");
        }
        true
    }

    /// Go on until `attempt` has an answer.
    fn until<T>(&mut self, mut attempt: impl FnMut(&mut [Host; 2]) -> Result<T, Error>) -> T {
        loop {
            match attempt(&mut self.hosts) {
                Ok(answer) => return answer,
                Err(Error::Later) => assert!(self.step(), "nothing is due"),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A connection from the first to the second.
    fn connected(&mut self, to: IpAddr) -> [Id; 2] {
        let listener = self.hosts[1].listen(SocketAddr::new(to, 80), 4).expect("listens");
        let one = self.hosts[0].connect(SocketAddr::new(to, 80)).expect("begins");
        let ends = self.until(|hosts| hosts[0].connected(one));
        let (other, theirs) = self.until(|hosts| hosts[1].accept(listener));
        assert_eq!((ends.local, ends.remote), (theirs.remote, theirs.local));
        self.hosts[1].close(listener, self.now);
        [one, other]
    }
}

fn octets(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

/// Send `bytes` from the first host to the second, which answers by the same, backwards.
fn there_and_back(world: &mut World, ids: [Id; 2], bytes: &[u8]) {
    let (mut given, mut there, mut back) = (0, Vec::new(), Vec::new());
    let mut answer: Vec<u8> = Vec::new();
    let (mut returned, mut into, mut is_shut) = (0, vec![0; 20_000], [false; 2]);
    world.until(|[one, other]| {
        if given < bytes.len() {
            given += one.send(ids[0], &bytes[given..]).or_else(later_is_0).expect("sends");
        } else if !is_shut[0] {
            one.shut_down(ids[0]).expect("shuts");
            is_shut[0] = true;
        }
        match other.receive(ids[1], &mut into) {
            Ok(0) => {
                if answer.is_empty() {
                    answer.extend(there.iter().rev());
                }
                if returned < answer.len() {
                    let sent = other.send(ids[1], &answer[returned..]);
                    returned += sent.or_else(later_is_0).expect("sends");
                } else if !is_shut[1] {
                    other.shut_down(ids[1]).expect("shuts");
                    is_shut[1] = true;
                }
            }
            Ok(len) => there.extend_from_slice(&into[..len]),
            Err(error) => assert_eq!(error, Error::Later),
        }
        match one.receive(ids[0], &mut into) {
            Ok(0) => return Ok(()),
            Ok(len) => back.extend_from_slice(&into[..len]),
            Err(error) => assert_eq!(error, Error::Later),
        }
        Err(Error::Later)
    });
    assert!(there == bytes, "{} of {} octets", there.len(), bytes.len());
    assert!(back.iter().rev().eq(bytes), "{} of {} octets", back.len(), bytes.len());
}

fn later_is_0(error: Error) -> Result<usize, Error> {
    if error == Error::Later { Ok(0) } else { Err(error) }
}

const BAD_LINE: Faults =
    Faults { lost: 10, duplicated: 10, reordered: 50, delay: Duration::from_millis(5) };

#[test]
fn a_mebibyte_arrives_whole_over_a_bad_line() {
    for seed in 0..4 {
        let (medium, to) =
            if seed % 2 == 0 { (Medium::Ethernet, v4(2)) } else { (Medium::Ip, v6(2)) };
        let mut world = World::new(medium, 1500, BAD_LINE, seed);
        let ids = world.connected(to);
        there_and_back(&mut world, ids, &octets(seed, 1 << 20));
        let [one, other] = &world.hosts;
        println!("seed {seed}: {:?} simulated, {:?}", world.now, one.counters().sent);
        assert!(one.counters().sent.frames > other.counters().received.frames / 2);
    }
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let run = || {
        let mut world = World::new(Medium::Ethernet, 1500, BAD_LINE, 99);
        let ids = world.connected(v4(2));
        there_and_back(&mut world, ids, &octets(1, 100_000));
        (world.now, world.hosts[0].counters(), world.hosts[1].counters())
    };
    assert_eq!(run(), run());
}

#[test]
fn a_line_that_loses_a_fifth_is_got_over() {
    let faults = Faults { lost: 200, delay: Duration::from_millis(1), ..Faults::default() };
    let mut world = World::new(Medium::Ip, 1500, faults, 5);
    let ids = world.connected(v4(2));
    there_and_back(&mut world, ids, &octets(5, 30_000));
}

#[test]
fn connections_end_and_make_room() {
    let mut world = World::new(Medium::Ip, 1500, Faults::default(), 3);
    let listener = world.hosts[1].listen(SocketAddr::new(v4(2), 80), 8).expect("listens");
    for round in 0..SOCKETS_MAX + 200 {
        let one = world.hosts[0].connect(SocketAddr::new(v4(2), 80)).expect("begins");
        world.until(|hosts| hosts[0].connected(one));
        let (other, _) = world.until(|hosts| hosts[1].accept(listener));
        assert_eq!(world.hosts[1].send(other, b"hello"), Ok(5));
        let mut into = [0; 9];
        assert_eq!(world.until(|hosts| hosts[0].receive(one, &mut into)), 5);
        let now = world.now;
        world.hosts[round % 2].close([one, other][round % 2], now);
        world.until(|hosts| {
            match hosts[1 - round % 2].receive([other, one][round % 2], &mut into) {
                Ok(0) => Ok(()),
                other => other.and(Err(Error::Later)),
            }
        });
        world.hosts[1 - round % 2].close([other, one][round % 2], now);
        assert_eq!(world.hosts[0].receive(one, &mut into), Err(Error::NoSuch));
    }
    while world.hosts.iter().any(|host| host.unfinished() > 0) {
        assert!(world.step());
    }
}

#[test]
fn repeated_openings_do_no_harm() {
    let faults =
        Faults { lost: 50, duplicated: 200, reordered: 200, delay: Duration::from_millis(2) };
    for seed in 0..8 {
        let mut world = World::new(Medium::Ethernet, 1500, faults, seed);
        let listener = world.hosts[1].listen(SocketAddr::new(v4(2), 80), 3).expect("listens");
        for _ in 0..60 {
            let one = world.hosts[0].connect(SocketAddr::new(v4(2), 80)).expect("begins");
            world.until(|hosts| hosts[0].connected(one));
            let other = world.until(|hosts| hosts[1].accept(listener)).0;
            there_and_back(&mut world, [one, other], b"short");
            let now = world.now;
            world.hosts[0].close(one, now);
            world.hosts[1].close(other, now);
        }
    }
}

#[test]
fn limits_are_errors() {
    let mut world = World::new(Medium::Ip, 1500, Faults::default(), 3);
    let host = &mut world.hosts[0];
    let local = |port| SocketAddr::new(v4(1), port);
    assert_eq!(host.listen(SocketAddr::new(v4(9), 80), 1), Err(Error::Unaddressable));
    host.listen(local(80), BACKLOG_MAX + 1).expect("listens");
    assert_eq!(host.listen(local(80), 1), Err(Error::PortTaken));
    let socket = host.bind(local(0)).expect("binds");
    let port = host.bound_at(socket).expect("bound");
    assert_eq!(host.bind(local(port)), Err(Error::PortTaken));
    assert_eq!(host.send_to(socket, &[0; 1473], local(9)), Err(Error::TooLong));
    assert_eq!(host.accept(socket), Err(Error::NoSuch));
    let sockets = (2..SOCKETS_MAX).filter(|_| host.bind(local(0)).is_ok()).count();
    assert_eq!(sockets, SOCKETS_MAX - 2);
    assert_eq!(host.bind(local(0)), Err(Error::Full));
    assert_eq!(host.connect(local(1)), Err(Error::Full));
    host.close(socket, NOW);
    assert_eq!(host.bound_at(socket), Err(Error::NoSuch));
    assert!(host.bind(local(port)).is_ok());
}

#[test]
fn nobody_there_is_an_error() {
    let mut world = World::new(Medium::Ip, 1500, Faults::default(), 3);
    let one = world.hosts[0].connect(SocketAddr::new(v4(2), 81)).expect("begins");
    let refused = world.until(|hosts| match hosts[0].connected(one) {
        Err(Error::Later) => Err(Error::Later),
        other => Ok(other),
    });
    assert_eq!(refused, Err(Error::Refused));
    let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    assert_eq!(world.hosts[0].connect(SocketAddr::new(nowhere, 1)), Err(Error::Unaddressable));
    // A peer that is gone: the connection is given up.
    let ids = world.connected(v4(2));
    assert_eq!(world.hosts[0].send(ids[0], b"x"), Ok(1));
    let [one, _] = &mut world.hosts;
    let mut now = world.now;
    while one.receive(ids[0], &mut [0; 9]) == Err(Error::Later) {
        one.poll(now);
        now += Duration::from_secs(1);
        assert!(now < PATIENCE);
    }
    assert_eq!(one.receive(ids[0], &mut [0; 9]), Err(Error::Reset));
}

#[test]
fn datagrams_pass() {
    for (medium, address) in
        [(Medium::Ethernet, v4 as fn(u8) -> IpAddr), (Medium::Ip, |n| v6(n.into()))]
    {
        let mut world = World::new(medium, 1500, Faults::default(), 3);
        let [one, other] = [0, 1].map(|at| {
            let local = SocketAddr::new(address(at as u8 + 1), 9000);
            world.hosts[at].bind(local).expect("binds")
        });
        let mut into = [0; 100];
        for round in 0..100u8 {
            let to = SocketAddr::new(address(2), 9000);
            world.hosts[0].send_to(one, &[round; 101], to).expect("sends");
            let (len, from) = world.until(|hosts| hosts[1].receive_from(other, &mut into));
            assert_eq!(
                (&into[..len], from),
                (&[round; 100][..], SocketAddr::new(address(1), 9000))
            );
        }
    }
}

#[test]
fn configurations_that_cannot_be_are_refused() {
    use super::ConfigError;
    let with = |change: fn(&mut Config), mtu| {
        let [line, _] = pair(Medium::Ethernet, mtu, Faults::default(), 0);
        let mut config = config(1, 0);
        change(&mut config);
        Host::new(Box::new(line), config, NOW).err()
    };
    assert_eq!(with(|_| (), 1500), None);
    assert_eq!(with(|_| (), 500), Some(ConfigError::Mtu(500)));
    assert_eq!(with(|of| of.addresses.clear(), 1500), Some(ConfigError::Addresses(0)));
    assert_eq!(with(|of| of.addresses[0].1 = 33, 1500), Some(ConfigError::Address(v4(1), 33)));
    assert_eq!(with(|of| of.buffer_len = 1, 1500), Some(ConfigError::Buffer(1)));
    assert!(matches!(with(|of| of.hardware[0] = 1, 1500), Some(ConfigError::Hardware(_))));
    assert!(with(|of| of.gateways = vec![v4(3), v4(4)], 1500).is_some());
    let all = ConfigError::Address(IpAddr::V4(Ipv4Addr::BROADCAST), 24);
    assert!(all.to_string().contains("10.0.0.2/24"), "{all}");
}

/// A line whose other end is the test.
struct Wire {
    host: Host,
    line: Memory,
    listener: Id,
    now: Duration,
}

impl Wire {
    fn new(medium: Medium) -> Self {
        let [line, device] = pair(medium, 1500, Faults::default(), 0);
        let mut host = Host::new(Box::new(device), config(2, 0), NOW).expect("a host");
        let listener = host.listen(SocketAddr::new(v4(2), 80), 2).expect("listens");
        host.bind(SocketAddr::new(v4(2), 9000)).expect("binds");
        Self { host, line, listener, now: NOW }
    }

    /// Have the host look at a frame; what it answers.
    fn put(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.line.send(self.now, frame);
        self.now += Duration::from_millis(3);
        self.host.poll(self.now);
        if let Ok((id, _)) = self.host.accept(self.listener) {
            let _ = self.host.receive(id, &mut [0; 100]);
            self.host.close(id, self.now);
        }
        let (mut answers, mut into) = (Vec::new(), vec![0; 2000]);
        while let Some(len) = self.line.receive(self.now, &mut into) {
            answers.push(into[..len].to_vec());
        }
        answers
    }
}

/// Frames of a sound conversation: what mutations begin with.
fn conversation(medium: Medium) -> Vec<Vec<u8>> {
    let [line, device] = pair(medium, 1500, Faults::default(), 0);
    let mut capture = Vec::new();
    let mut client = Host::new(Box::new(device), config(1, 7), NOW).expect("a host");
    let (mut line, mut wire, mut now) = (line, Wire::new(medium), NOW);
    let socket = client.bind(SocketAddr::new(v4(1), 9)).expect("binds");
    client.send_to(socket, b"datagram", SocketAddr::new(v4(2), 9000)).expect("sends");
    let id = client.connect(SocketAddr::new(v4(2), 80)).expect("begins");
    let mut into = vec![0; 2000];
    for _ in 0..60 {
        now += Duration::from_millis(50);
        client.poll(now);
        let _ = client.send(id, b"some octets");
        while let Some(len) = line.receive(now, &mut into) {
            capture.push(into[..len].to_vec());
            for answer in wire.put(&into[..len]) {
                line.send(now, &answer);
            }
        }
    }
    assert!(capture.len() > 3, "{}", capture.len());
    capture
}

/// An echo request, so that ICMP is among what is mutated.
fn echo() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 32, 0, 1, 0, 0, 64, 1, 0, 0, 10, 1, 2, 1, 10, 1, 2, 2];
    packet.extend([8, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4]);
    let sum = |bytes: &[u8]| {
        let words = bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1]));
        let total = words.sum::<u32>();
        !(((total & 0xffff) + (total >> 16)) as u16)
    };
    let head = sum(&packet[..20]).to_be_bytes();
    packet[10..12].copy_from_slice(&head);
    let body = sum(&packet[20..]).to_be_bytes();
    packet[22..24].copy_from_slice(&body);
    packet
}

#[test]
fn echoes_are_answered() {
    let mut wire = Wire::new(Medium::Ip);
    let answers = wire.put(&echo());
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0][9], answers[0][20], &answers[0][28..]), (1, 0, &[1, 2, 3, 4][..]));
}

fn accounts(wire: &Wire, sent: Tally) -> Result<(), TestCaseError> {
    let (host, line) = (wire.host.counters(), wire.line.counters());
    prop_assert_eq!(sent.frames, host.received.frames + host.received.dropped.total());
    prop_assert_eq!(host.sent.frames, line.received.frames);
    prop_assert_eq!(sent.total(), line.sent.total());
    Ok(())
}

proptest! {
    #[test]
    fn random_frames_are_harmless(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..40),
    ) {
        for medium in [Medium::Ethernet, Medium::Ip] {
            let mut wire = Wire::new(medium);
            for frame in &frames {
                wire.put(frame);
            }
            accounts(&wire, wire.line.counters().sent)?;
        }
    }

    #[test]
    fn mutated_frames_are_harmless(
        changes in prop::collection::vec((any::<usize>(), any::<usize>(), any::<u8>(), 0..5u8), 1..60),
    ) {
        static SOUND: OnceLock<[Vec<Vec<u8>>; 2]> = OnceLock::new();
        let sound = SOUND.get_or_init(|| {
            let [ethernet, mut ip] = [Medium::Ethernet, Medium::Ip].map(conversation);
            ip.push(echo());
            [ethernet, ip]
        });
        for (medium, frames) in [Medium::Ethernet, Medium::Ip].into_iter().zip(sound) {
            let mut wire = Wire::new(medium);
            for (which, at, value, how) in &changes {
                let mut frame = frames[which % frames.len()].clone();
                let at = at % frame.len();
                match how {
                    0 => frame[at] = *value,
                    1 => frame[at] ^= 1 << (value % 8),
                    2 => frame.truncate(at),
                    3 => frame.extend(vec![*value; at]),
                    _ => {}
                }
                wire.put(&frame);
            }
            accounts(&wire, wire.line.counters().sent)?;
        }
    }
}
