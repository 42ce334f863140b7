//! One sender of datagrams on a veth pair, as fast as it can, and who receives them at the other end.
#![expect(
    unsafe_code,
    reason = "sends and receives many datagrams by one call, and lends memory to AF_XDP"
)]

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use netio::device::Device;
use netio::device::xdp::{CHUNK_LEN, Config, Xdp};
use nix::sched::{CloneFlags, setns};

use super::super::super::events::Child;
use super::super::{CLIENT_CPU, SERVER_CPU, left};
use super::{PATIENCE, rate_of, shared, shared_counter};

/// Octets of a datagram.
const LEN: usize = 64;
/// Datagrams by one call.
const BATCH: usize = 64;
const TO: &str = "10.79.0.2:9";
const HARDWARE: &str = "02:00:00:79:00:02";
/// Memory for frames: 2,048 each way.
const MEMORY_LEN: usize = 4096 * CHUNK_LEN;
/// What a socket may have waiting.
const RECEIVE_LEN: libc::c_int = 4 << 20;

/// Who receives.
#[derive(Debug, Clone, Copy)]
pub(super) enum Receiver {
    /// AF_XDP: whole frames. It looks all the time.
    Xdp,
    /// A UDP socket, many datagrams by one call, which waits for the first.
    UdpWaiting,
    /// The same, which looks all the time.
    UdpLooking,
}

/// Two namespaces and the veth pair between them, which go with the value.
pub(super) struct Flood {
    sends: String,
    receives: String,
    memory: *mut u8,
    received: &'static AtomicU64,
}

fn ip(arguments: &str) -> Result<(), String> {
    let ended = Command::new("ip").args(arguments.split(' ')).output();
    let ended = ended.map_err(|error| format!("ip does not run here: {error}"))?;
    if ended.status.success() {
        return Ok(());
    }
    Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&ended.stderr).trim()))
}

/// Have the interface hand over what has come in a moment together, whoever receives it.
fn gather(namespace: &str) -> Result<(), String> {
    const SETTINGS: [(&str, u32); 2] =
        [("napi_defer_hard_irqs", 2), ("gro_flush_timeout", 200_000)];
    for (name, value) in SETTINGS {
        let write = format!("echo {value} > /sys/class/net/line/{name}");
        // A namespace has a /sys of its own for as long as this command runs.
        let argv = ["netns", "exec", namespace, "sh", "-c", &write];
        let ended = Command::new("ip").args(argv).output().map_err(|error| error.to_string())?;
        if !ended.status.success() {
            return Err(format!("{write}: {}", String::from_utf8_lossy(&ended.stderr).trim()));
        }
    }
    Ok(())
}

impl Flood {
    /// The reason if this machine has no such thing, or we may not.
    pub(super) fn start() -> Result<Self, String> {
        if !nix::unistd::getuid().is_root() {
            return Err("only root can make network namespaces".into());
        }
        let text = |error: io::Error| error.to_string();
        let id = std::process::id();
        let flood = Self {
            sends: format!("{}-{id}{}", left::NAMESPACE, left::ENDS[0]),
            receives: format!("{}-{id}{}", left::NAMESPACE, left::ENDS[1]),
            memory: shared(MEMORY_LEN).map_err(text)?,
            received: shared_counter().map_err(text)?,
        };
        let (sends, receives) = (&flood.sends, &flood.receives);
        ip(&format!("netns add {sends}"))?;
        ip(&format!("netns add {receives}"))?;
        let queues = "numrxqueues 1 numtxqueues 1";
        let peer = format!("type veth peer name line {queues} netns {receives}");
        ip(&format!("-n {sends} link add line {queues} {peer}"))?;
        ip(&format!("-n {receives} link set line address {HARDWARE}"))?;
        ip(&format!("-n {sends} addr add 10.79.0.1/24 dev line"))?;
        ip(&format!("-n {receives} addr add 10.79.0.2/24 dev line"))?;
        ip(&format!("-n {sends} link set line up"))?;
        ip(&format!("-n {receives} link set line up"))?;
        gather(receives)?;
        // Nobody answers for the address where the kernel sees no frames.
        ip(&format!("-n {sends} neigh add 10.79.0.2 lladdr {HARDWARE} dev line"))?;
        match flood.rate(Receiver::Xdp, Duration::from_millis(1)) {
            Ok(_) => Ok(flood),
            Err(error) => Err(format!("no AF_XDP on a veth pair here: {error}")),
        }
    }

    /// Datagrams per second that `receiver` gets.
    pub(super) fn rate(&self, receiver: Receiver, time: Duration) -> io::Result<f64> {
        self.received.store(0, Relaxed);
        let _receiver = Child::start(Some(SERVER_CPU), || {
            let error = enter(&self.receives).and_then(|()| match receiver {
                Receiver::Xdp => self.receive_frames(),
                Receiver::UdpWaiting => self.receive_datagrams(libc::MSG_WAITFORONE),
                Receiver::UdpLooking => self.receive_datagrams(libc::MSG_DONTWAIT),
            });
            eprintln!("receiving on a veth pair: {error:?}");
        })?;
        let _sender = Child::start(Some(CLIENT_CPU), || {
            let _ = enter(&self.sends).and_then(|()| send());
        })?;
        let begun = Instant::now();
        // Some more than the first, so that both are at work.
        while self.received.load(Relaxed) < 1000 {
            if begun.elapsed() > PATIENCE / 4 {
                return Err(io::Error::other("nothing arrives"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(rate_of(self.received, time))
    }

    fn receive_frames(&self) -> io::Result<()> {
        // SAFETY: never given back; one receiver at a time.
        let device = unsafe { Xdp::open("line", self.memory, MEMORY_LEN, Config::default()) };
        let mut device = device.map_err(io::Error::other)?;
        let mut frame = vec![0; device.frame_max()];
        loop {
            let mut count = 0;
            while device.receive(Duration::ZERO, &mut frame).is_some() {
                count += 1;
                if count == BATCH as u64 {
                    break;
                }
            }
            self.received.fetch_add(count, Relaxed);
            if count == 0 {
                std::hint::spin_loop();
            }
        }
    }

    fn receive_datagrams(&self, flags: libc::c_int) -> io::Result<()> {
        let socket = UdpSocket::bind(TO)?;
        let room = RECEIVE_LEN;
        let (at, len) = ((&raw const room).cast(), size_of_val(&room));
        let (level, option) = (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE);
        // SAFETY: an integer and its length. Without it the socket has less room.
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, at, len as u32) };
        let mut buffers = vec![[0; 2048]; BATCH];
        let (_parts, mut messages) = messages(&mut buffers);
        loop {
            let (fd, at, none) = (socket.as_raw_fd(), messages.as_mut_ptr(), std::ptr::null_mut());
            // SAFETY: as many messages, each with a buffer.
            let got = unsafe { libc::recvmmsg(fd, at, BATCH as u32, flags, none) };
            match u64::try_from(got) {
                Ok(got) => _ = self.received.fetch_add(got, Relaxed),
                Err(_) if would_block() => std::hint::spin_loop(),
                Err(_) => return Err(io::Error::last_os_error()),
            }
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        for namespace in [&self.sends, &self.receives] {
            let _ = ip(&format!("netns del {namespace}"));
        }
    }
}

fn would_block() -> bool {
    io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
}

fn enter(namespace: &str) -> io::Result<()> {
    let file = File::open(format!("/run/netns/{namespace}"))?;
    setns(file, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// Send until killed.
fn send() -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(TO)?;
    let mut buffers = vec![[b'x'; LEN]; BATCH];
    let (_parts, mut messages) = messages(&mut buffers);
    loop {
        let (fd, at) = (socket.as_raw_fd(), messages.as_mut_ptr());
        // SAFETY: as many messages, each with its octets. Those that there is no room for are lost.
        unsafe { libc::sendmmsg(fd, at, BATCH as u32, 0) };
    }
}

/// A message for each buffer, and what they point to.
fn messages<const N: usize>(buffers: &mut [[u8; N]]) -> (Vec<libc::iovec>, Vec<libc::mmsghdr>) {
    let part =
        |buffer: &mut [u8; N]| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: N };
    let mut parts: Vec<libc::iovec> = buffers.iter_mut().map(part).collect();
    let message = |part: &mut libc::iovec| {
        // SAFETY: plain numbers and null pointers.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (part, 1);
        message
    };
    let messages = parts.iter_mut().map(message).collect();
    (parts, messages)
}
