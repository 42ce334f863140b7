//! What every device keeps to, as a test that each implementation passes.

use std::time::{Duration, Instant};

use super::{Device, Medium};

/// Longest that a frame may take to come.
const PATIENCE: Duration = Duration::from_secs(10);
/// For experiments: no kernel answers it.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// For experiments as well.
const PROTOCOL: u8 = 253;

/// A frame that can be told from others, `len` octets long.
fn frame(medium: Medium, number: u32, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at as u32 * 31 + number) as u8).collect();
    if medium == Medium::Ethernet {
        frame[..6].fill(0xff);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        frame[12..14].copy_from_slice(&ETHERTYPE);
        // Nothing comes of it where the kernel looks at it.
    } else {
        let len = (len as u16).to_be_bytes();
        frame[..12].copy_from_slice(&[0x45, 0, len[0], len[1], 0, 0, 0, 0, 1, PROTOCOL, 0, 0]);
        frame[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    }
    frame
}

/// Whether it is one of ours: a kernel may speak on its own.
fn is_ours(medium: Medium, frame: &[u8]) -> bool {
    match medium {
        Medium::Ethernet => frame.get(12..14) == Some(&ETHERTYPE),
        Medium::Ip => frame.first() == Some(&0x45) && frame.get(9) == Some(&PROTOCOL),
    }
}

/// The next frame of ours at `device`.
fn next(device: &mut dyn Device, start: Instant) -> Vec<u8> {
    let mut into = vec![0; device.frame_max()];
    loop {
        if let Some(len) = device.receive(start.elapsed(), &mut into) {
            if is_ours(device.medium(), &into[..len]) {
                return into[..len].to_vec();
            }
            continue;
        }
        assert!(start.elapsed() < PATIENCE, "no frame: {:?}", device.counters());
        device.flush();
        let due = device.next_at().map(|at| at.saturating_sub(start.elapsed()));
        device.wait(due.or(Some(Duration::from_millis(50)))).expect("waits");
    }
}

fn passes(from: &mut dyn Device, to: &mut dyn Device) {
    let (start, medium) = (Instant::now(), from.medium());
    let shortest = medium.header_len() + 46;
    let longest = from.mtu().min(to.mtu()) + medium.header_len();
    let mut lens: Vec<usize> = (shortest..longest).step_by(97).chain([longest]).collect();
    lens.truncate(400);
    lens.push(longest);
    for round in 0..3 {
        for (number, len) in (round * 1000..).zip(&lens) {
            let sent = frame(medium, number, *len);
            let before = from.counters().sent;
            assert!(from.has_room());
            from.send(start.elapsed(), &sent);
            from.flush();
            let after = from.counters().sent;
            assert_eq!(
                (after.frames, after.bytes),
                (before.frames + 1, before.bytes + *len as u64)
            );
            assert_eq!(next(to, start), sent);
        }
    }
}

fn batches(from: &mut dyn Device, to: &mut dyn Device) {
    let (start, medium) = (Instant::now(), from.medium());
    for round in 0..20 {
        let frames: Vec<Vec<u8>> =
            (0..24).map(|number| frame(medium, round + number, 300)).collect();
        for frame in &frames {
            from.send(start.elapsed(), frame);
        }
        from.flush();
        for frame in frames {
            assert_eq!(next(to, start), frame);
        }
    }
}

fn refuses(from: &mut dyn Device, to: &mut dyn Device) {
    let (start, medium) = (Instant::now(), from.medium());
    let longest = from.mtu() + medium.header_len();
    let before = from.counters().sent;
    from.send(start.elapsed(), &frame(medium, 0, longest + 1));
    let after = from.counters().sent;
    assert_eq!(after.dropped.too_long, before.dropped.too_long + 1);
    assert_eq!(after.total(), before.total() + 1);
    // One that does not fit into the caller's memory is dropped, and the next one comes.
    let before = to.counters().received.dropped.too_long;
    from.send(start.elapsed(), &frame(medium, 1, 400));
    from.flush();
    while to.counters().received.dropped.too_long == before {
        assert!(start.elapsed() < PATIENCE);
        assert_eq!(to.receive(start.elapsed(), &mut [0; 59]), None);
    }
    from.send(start.elapsed(), &frame(medium, 2, 200));
    from.flush();
    assert_eq!(next(to, start), frame(medium, 2, 200));
}

fn waits(device: &mut dyn Device) {
    let mut into = vec![0; device.frame_max()];
    while device.receive(Duration::ZERO, &mut into).is_some() {}
    device.wait(Some(Duration::from_millis(1))).expect("a limit ends it");
    let waiter = device.waiter();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            waiter.wake();
        });
        device.wait(Some(PATIENCE)).expect("a wake ends it");
    });
}

/// The suite, over two ends of one line.
pub(crate) fn conforms(one: &mut dyn Device, other: &mut dyn Device) {
    assert_eq!(one.medium(), other.medium());
    passes(one, other);
    passes(other, one);
    batches(one, other);
    batches(other, one);
    refuses(one, other);
    refuses(other, one);
    waits(one);
    waits(other);
}

pub(crate) mod tests {
    #![expect(unsafe_code, reason = "makes namespaces, and memory for AF_XDP")]

    use std::process::Command;

    use super::super::asked::{Asked, Packet as Frame, Verdict};
    use super::super::lossy::Lossy;
    use super::super::memory::{Faults, pair};
    use super::super::packet::Packet;
    use super::super::ring::tests::Shared;
    use super::super::tap::{Reads, Tap};
    use super::super::xdp::{Config, Xdp};
    use super::super::{OpenError, Step};
    use super::*;
    use crate::pcap::Capture;

    #[test]
    fn memory() {
        for medium in [Medium::Ethernet, Medium::Ip] {
            let [mut one, mut other] = pair(medium, 1500, Faults::default(), 1);
            conforms(&mut one, &mut other);
        }
        let [one, other] = pair(Medium::Ethernet, 1500, Faults::default(), 1);
        let mut record = Vec::new();
        let mut one = Capture::new(one, &mut record, Duration::ZERO).expect("a vector");
        conforms(&mut one, &mut Lossy::new(other, 0, 1));
        let [mut one, other] = pair(Medium::Ethernet, 1500, Faults::default(), 1);
        conforms(&mut one, &mut Asked::new(other, |_: &mut Frame<'_>| Verdict::Pass));
        let slow = Faults { delay: Duration::from_micros(50), ..Faults::default() };
        let [mut one, mut other] = pair(Medium::Ip, 9000, slow, 1);
        passes(&mut one, &mut other);
    }

    #[test]
    fn ring() {
        let mut memory = Shared::new(1 << 18);
        let [mut one, mut other] = memory.sides();
        assert_eq!(one.mtu(), super::super::ring::MTU);
        conforms(&mut one, &mut other);
    }

    /// Run `test` on a thread in a network namespace of its own, which goes with the thread. False, and
    /// why, if there can be none.
    pub(crate) fn apart(test: impl FnOnce() + Send) -> bool {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: concerns this thread alone.
                if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
                    let error = std::io::Error::last_os_error();
                    println!("skipped: no network namespace of one's own: {error}");
                    return false;
                }
                // Interfaces are to be silent by themselves. A kernel without IPv6 is.
                let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
                test();
                true
            });
            thread.join().expect("passes")
        })
    }

    pub(crate) fn ip(arguments: &str) {
        let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2");
        assert!(status.success(), "ip {arguments}");
    }

    /// The device, unless this machine cannot have it.
    pub(crate) fn available<T>(device: Result<T, OpenError>) -> Option<T> {
        match device {
            Err(error) if error.is_unavailable() => {
                println!("skipped: {error}");
                None
            }
            device => Some(device.expect("opens")),
        }
    }

    #[test]
    fn tap_and_packet() {
        for (medium, reads) in [
            (Medium::Ethernet, Reads::IoUring),
            (Medium::Ethernet, Reads::Calls),
            (Medium::Ip, Reads::IoUring),
        ] {
            apart(|| {
                let Some(mut tap) = available(Tap::open_with("line%d", medium, reads)) else {
                    return;
                };
                ip(&format!("link set {} up", tap.name()));
                let packet = Packet::open_with(tap.name(), reads);
                let Some(mut packet) = available(packet) else { return };
                assert_eq!(packet.reads(), tap.reads());
                println!("{medium:?} read by {:?}", tap.reads());
                conforms(&mut tap, &mut packet);
            });
        }
    }

    /// Memory for the chunks of an XDP socket, from its first page on, and how long they are.
    fn chunks() -> (Vec<u8>, usize) {
        let len = 256 * super::super::xdp::CHUNK_LEN;
        (vec![0; len + 4096], len)
    }

    fn first_page(memory: &mut [u8]) -> *mut u8 {
        let start = memory.as_mut_ptr();
        start.wrapping_add(start.align_offset(4096))
    }

    #[test]
    fn xdp_and_packet() {
        apart(|| {
            ip("link add one type veth peer name other");
            ip("link set one up");
            ip("link set other up");
            let (mut memory, len) = chunks();
            let start = first_page(&mut memory);
            // SAFETY: the memory lives for longer than the device.
            let xdp = unsafe { Xdp::open("one", start, len, Config::default()) };
            let Some(mut xdp) = available(xdp) else { return };
            let Some(mut packet) = available(Packet::open("other")) else { return };
            println!("native: {}", xdp.is_native());
            conforms(&mut xdp, &mut packet);
            // SAFETY: refused before it is looked at.
            let short = unsafe { Xdp::open("one", start, 4096, Config::default()) };
            assert_eq!(short.err().map(|error| error.step), Some(Step::Memory));
        });
    }

    /// Take what comes until the device says that nothing will.
    fn until_gone(device: &mut dyn Device) {
        let (start, mut into) = (Instant::now(), vec![0; device.frame_max()]);
        while device.wait(Some(Duration::from_millis(20))).is_ok() {
            while device.receive(Duration::ZERO, &mut into).is_some() {}
            assert!(start.elapsed() < PATIENCE, "nobody says that it has gone");
        }
        assert!(device.wait(Some(Duration::ZERO)).is_err(), "it says so once only");
    }

    #[test]
    fn an_interface_that_goes_is_told_of() {
        for reads in [Reads::IoUring, Reads::Calls] {
            apart(|| {
                let tap = Tap::open_with("gone%d", Medium::Ethernet, reads);
                let Some(mut tap) = available(tap) else { return };
                ip(&format!("link set {} up", tap.name()));
                ip(&format!("link del {}", tap.name()));
                until_gone(&mut tap);
            });
            apart(|| {
                ip("link add one type veth peer name other");
                ip("link set one up");
                let Some(mut packet) = available(Packet::open_with("one", reads)) else { return };
                // Down for a while is not gone.
                ip("link set one down");
                let mut into = vec![0; packet.frame_max()];
                for _ in 0..5 {
                    while packet.receive(Duration::ZERO, &mut into).is_some() {}
                    packet.wait(Some(Duration::from_millis(5))).expect("it is there");
                }
                ip("link set one up");
                ip("link del one");
                until_gone(&mut packet);
            });
        }
    }

    #[test]
    fn an_interface_that_goes_is_told_of_to_who_has_its_queue() {
        apart(|| {
            ip("link add one type veth peer name other");
            ip("link set one up");
            let (mut memory, len) = chunks();
            let start = first_page(&mut memory);
            // SAFETY: the memory lives for longer than the device.
            let xdp = unsafe { Xdp::open("one", start, len, Config::default()) };
            let Some(mut xdp) = available(xdp) else { return };
            ip("link del one");
            until_gone(&mut xdp);
        });
    }

    #[test]
    fn errors_say_what_to_do() {
        let error = Packet::open("none-such").expect_err("there is no such interface");
        assert_eq!(error.step, Step::Find);
        assert!(error.to_string().contains("`ip link`"), "{error}");
        let error = Packet::open("a-name-longer-than-any").expect_err("nor such a name");
        assert!(error.to_string().contains("15 letters"), "{error}");
    }
}
