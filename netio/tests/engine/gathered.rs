//! Datagrams that come together (UDP_GRO): each is asked about by itself, and each has its own fate.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ext_api::abi::{
    NET_DROP, NET_FORWARD, NET_HAND, NET_REPLY, NET_REPLY_IN_PLACE, NetAddress, PacketBlock, Reply,
    Status,
};
use ext_api::pool::Pool;
use netio::engine::Kind;

use super::served::*;

/// Have the kernel cut up what is sent, every `len` bytes.
fn send_in_parts(socket: &UdpSocket, len: libc::c_int) {
    let (at, size) = ((&raw const len).cast(), size_of_val(&len) as u32);
    // SAFETY: an integer and its length.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, at, size) };
    assert_eq!(done, 0, "the kernel does not cut up");
}

/// Parts that each begin with what is to become of them; the last is shorter.
fn parts(fates: &[u8], len: usize) -> Vec<Vec<u8>> {
    let part = |(at, fate): (usize, &u8)| {
        let mut part = vec![at as u8; if at + 1 == fates.len() { len / 2 } else { len }];
        part[0] = *fate;
        part
    };
    fates.iter().enumerate().map(part).collect()
}

/// What `client` gets, in any order.
fn answers(client: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let mut buffer = [0; 4096];
    let mut got: Vec<_> = (0..count)
        .map(|_| {
            let len = receive(client, &mut buffer);
            buffer[..len].to_vec()
        })
        .collect();
    got.sort();
    got
}

/// Where each packet lay, and how long it was.
type Seen = Arc<Mutex<Vec<(usize, usize)>>>;

/// Does with each what its first byte says.
fn as_told(seen: Seen, upstream: NetAddress) -> Handler {
    Box::new(move |block: &mut PacketBlock, reply: &mut Reply| {
        seen.lock().expect("no panic").push((block.data.addr(), block.len));
        let bytes = bytes_in(block);
        match bytes.first() {
            Some(b'e') => (block.verdict, block.in_place) = (NET_REPLY_IN_PLACE, block.len),
            Some(b'f') => (block.verdict, block.next) = (NET_FORWARD, upstream),
            Some(b'h') => block.verdict = NET_HAND,
            Some(b'x') => return Status::Panicked,
            Some(b's') => {
                // Behind all but the last lie others' bytes.
                let mut spill = Box::new([b's'; SPILL_LEN]);
                spill[1..3].copy_from_slice(&bytes[1..3]);
                (reply.spill, reply.len) = (Box::into_raw(spill).cast(), 3);
                block.verdict = NET_REPLY;
            }
            _ => block.verdict = NET_DROP,
        }
        Status::Ok
    })
}

#[test]
fn each_of_those_that_come_together_has_its_own_fate() {
    const FATES: &[u8] = b"efhsdxeeefhsdxee";
    const LEN: usize = 100;
    for way in ways() {
        let upstream = UdpSocket::bind(local()).expect("a socket");
        upstream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let to = NetAddress::of(upstream.local_addr().expect("an address"));
        let (fd, server) = udp_port();
        let seen = Seen::default();
        let post = |pool: &'static Pool| {
            let _ = std::ptr::from_ref(pool).expose_provenance();
            super::other_process(pool, u64::MAX)
        };
        let handlers = vec![as_told(seen.clone(), to)];
        let served = Served::with(way, Kind::Udp, fd, handlers, post);
        let client = client(server);
        // Once it receives, they come together.
        client.send(b"early").expect("send");
        assert_eq!(answers(&client, 1), [b"early"], "{way}");
        send_in_parts(&client, LEN as libc::c_int);
        let parts = parts(FATES, LEN);
        client.send(&parts.concat()).expect("send");

        let sent_on: Vec<_> = (0..2)
            .map(|_| {
                let mut buffer = [0; 4096];
                let (len, from) = upstream.recv_from(&mut buffer).expect("sent on");
                upstream.send_to(b"from upstream", from).expect("send");
                buffer[..len].to_vec()
            })
            .collect();
        let of = |fate: u8| parts.iter().filter(move |part| part[0] == fate).cloned();
        assert!(of(b'f').eq(sent_on), "{way}");
        let reversed = of(b'h').map(|part| part.into_iter().rev().collect());
        let spilled = of(b's').map(|part| vec![b's', part[1], part[2]]);
        let upstream = std::iter::repeat_n(b"from upstream".to_vec(), 2);
        let mut wanted: Vec<_> = of(b'e').chain(reversed).chain(spilled).chain(upstream).collect();
        wanted.sort();
        assert!(answers(&client, wanted.len()) == wanted, "{way}");

        let seen = seen.lock().expect("no panic").split_off(1);
        let lens = parts.iter().map(Vec::len);
        assert!(seen.iter().map(|(_, len)| *len).eq(lens), "{way}: {seen:?}");
        let is_next = |pair: &[(usize, usize)]| pair[0].0 + pair[0].1 == pair[1].0;
        assert!(seen.windows(2).all(is_next), "{way}: they did not come together");
        let count = 1 + FATES.len() as u64;
        // What upstream says comes by the port, too.
        assert_eq!(served.tally(|it| &it.received), count + 2, "{way}");
        let bytes = b"early".len() + parts.concat().len() + 2 * b"from upstream".len();
        assert_eq!(served.tally(|it| &it.bytes_in), bytes as u64, "{way}");
        assert_eq!(served.tally(|it| &it.upcalls), count, "{way}");
        assert_eq!(served.tally(|it| &it.replied), 1 + wanted.len() as u64, "{way}");
        let tally = &served.pool.tallies[0];
        let twice = [&tally.forwarded, &tally.handed, &tally.dropped, &tally.failed];
        assert_eq!(twice.map(|count| count.load(Relaxed)), [2; 4], "{way}");
        served.end();
    }
}

#[test]
fn as_many_as_can_come_together_lose_none() {
    for way in ways() {
        let (fd, server) = udp_port();
        let served = Served::start(way, Kind::Udp, fd, vec![echo_datagrams()]);
        let client = client(server);
        // The longest that can be sent so, and one byte more than is cut evenly.
        for (len, whole) in [
            (1023, 64 * 1023),
            (1400, 46 * 1400),
            (1472, 44 * 1472),
            (64, 64 * 64),
            (9, 64),
            (64, 1),
        ] {
            send_in_parts(&client, len);
            let bytes: Vec<u8> = (0..whole).map(|at| ((at * 7) >> 3) as u8).collect();
            client.send(&bytes).expect("send");
            let mut wanted: Vec<_> = bytes.chunks(len as usize).map(<[u8]>::to_vec).collect();
            wanted.sort();
            assert!(answers(&client, wanted.len()) == wanted, "{way}: {whole} by {len}");
        }
        assert_eq!(served.tally(|it| &it.too_long), 0, "{way}");
        served.end();
    }
}

#[test]
fn what_the_kernel_does_not_cut_up_goes_one_by_one() {
    const NO_CHECK: libc::c_int = 11;
    for way in ways() {
        let (fd, server) = udp_port();
        let same = fd.try_clone().expect("a copy");
        let served = Served::start(way, Kind::Udp, fd, vec![echo_datagrams()]);
        let client = client(server);
        // Once it receives, they come together.
        client.send(b"early").expect("send");
        assert_eq!(answers(&client, 1), [b"early"], "{way}");
        // Without sums the kernel cuts nothing up.
        let (on, size) = (1, size_of::<libc::c_int>() as u32);
        let (socket, at) = (libc::SOL_SOCKET, (&raw const on).cast());
        // SAFETY: an integer and its length.
        let done = unsafe { libc::setsockopt(same.as_raw_fd(), socket, NO_CHECK, at, size) };
        assert_eq!(done, 0);
        for seed in 0..20 {
            send_in_parts(&client, 100);
            let bytes: Vec<u8> = (0..3_050).map(|at| ((at * 7 + seed) >> 3) as u8).collect();
            client.send(&bytes).expect("send");
            let mut wanted: Vec<_> = bytes.chunks(100).map(<[u8]>::to_vec).collect();
            wanted.sort();
            assert!(answers(&client, wanted.len()) == wanted, "{way}: {seed}");
        }
        let late = Instant::now() + Duration::from_secs(10);
        while served.tally(|it| &it.bytes_out) != 5 + 20 * 3_050 {
            assert!(Instant::now() < late, "{way}: more or less has been sent");
            std::thread::yield_now();
        }
        assert_eq!(served.tally(|it| &it.unsent), 0, "{way}");
        served.end();
    }
}

fn echo_datagrams() -> Handler {
    Box::new(|block, _| {
        (block.verdict, block.in_place) = (NET_REPLY_IN_PLACE, block.len);
        Status::Ok
    })
}

#[test]
fn who_holds_one_of_many_for_long_keeps_nobody_from_being_served() {
    for way in ways() {
        let (fd, server) = udp_port();
        let post = |_: &'static Pool| -> Box<dyn FnMut(u64) -> Status + Send> {
            // Taken by nobody.
            Box::new(|_| Status::Ok)
        };
        let seen = Seen::default();
        let nowhere = NetAddress::default();
        let served = Served::with(way, Kind::Udp, fd, vec![as_told(seen, nowhere)], post);
        let client = client(server);
        // More than there are wide buffers, each by itself, and one more of many.
        for _ in 0..400 {
            client.send(b"h").expect("send");
        }
        send_in_parts(&client, 10);
        let parts = parts(b"hhhe", 10);
        client.send(&parts.concat()).expect("send");
        assert_eq!(answers(&client, 1), parts[3..], "{way}");
        assert_eq!(served.tally(|it| &it.handed), 403, "{way}");
        let late = Instant::now() + Duration::from_secs(10);
        while served.tally(|it| &it.buffers) != 403 {
            assert!(Instant::now() < late, "{way}: the answer's is not back");
            std::thread::yield_now();
        }
        // What nobody has taken comes back, all of it.
        assert_eq!(served.stop_now(), 403, "{way}");
    }
}
