//! What `bench net` measures us beside: echo servers by every other way, each in a process of its own.
#![expect(unsafe_code, reason = "receives and sends many datagrams by one call")]

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::AtomicU32;

use ext_api::abi::{NET_REPLY_IN_PLACE, PacketBlock, Reply, Status};
use ext_api::pool::Holder;
use netio::buffers::Buffers;
use netio::engine::driver::Driver;
use netio::engine::uring::{Options, Uring};
use netio::engine::{Engine, Kind, Sandbox};
use netio::listen;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
    sockopt,
};

use super::super::load;
use super::engine;
use crate::clock::now_ns;

/// Bytes that a server receives at most at a time.
const LEN: usize = 32 << 10;
/// Datagrams by one call.
const BATCH: usize = 64;

/// Serve on `port` of this machine until killed.
pub(super) fn serve(what: &str, port: u16) -> io::Result<()> {
    match what {
        "tcp-threads" => threads(TcpListener::bind(("127.0.0.1", port))?, false),
        "tcp-looks" => threads(TcpListener::bind(("127.0.0.1", port))?, true),
        "tcp-close" => close(&TcpListener::bind(("127.0.0.1", port))?),
        "tcp-epoll" => epoll(TcpListener::bind(("127.0.0.1", port))?, echo),
        "tcp-io_uring" => uring(Kind::Tcp, listening(port)?, |_| Options::default()),
        "tcp-two-hops" => {
            let to = behind()?;
            epoll(TcpListener::bind(("127.0.0.1", port))?, move |stream, bytes| {
                to.send(bytes)?;
                let mut answer = [0; LEN];
                let len = to.recv(&mut answer)?;
                stream.write_all(&answer[..len])
            })
        }
        "udp-blocking" => one_by_one(&udp(port)?),
        "udp-mmsg" => many(&udp(port)?, false),
        "udp-segments" => many(&udp(port)?, true),
        "udp-together" => together(&udp(port)?),
        "udp-io_uring" => {
            let socket = listen::udp(([127, 0, 0, 1], port).into())?;
            uring(Kind::Udp, socket, |_| Options::default())
        }
        other if other.starts_with(engine::KIND) => engine::serve(other, listening(port)?),
        other => Err(io::Error::other(format!("no server is called {other}"))),
    }
}

fn udp(port: u16) -> io::Result<UdpSocket> {
    UdpSocket::bind(("127.0.0.1", port))
}

fn echo(stream: &mut &TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)
}

/// Accepts and closes.
fn close(listener: &TcpListener) -> io::Result<()> {
    loop {
        listener.accept()?;
    }
}

/// A thread for each connection, which sleeps until something comes, or `looks` all the time.
fn threads(listener: TcpListener, looks: bool) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(looks)?;
        std::thread::spawn(move || {
            let mut buffer = [0; LEN];
            while let Ok(len @ 1..) = load::read(&stream, &mut buffer) {
                if stream.write_all(&buffer[..len]).is_err() {
                    return;
                }
            }
        });
    }
}

/// One thread that waits for all.
fn epoll(
    listener: TcpListener,
    mut answer: impl FnMut(&mut &TcpStream, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, u64::MAX))?;
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut buffer = [0; LEN];
    let mut ready = [EpollEvent::empty(); 256];
    loop {
        let count = epoll.wait(&mut ready, EpollTimeout::NONE)?;
        for event in &ready[..count] {
            if event.data() == u64::MAX {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, streams.len() as u64))?;
                streams.push(Some(stream));
                continue;
            }
            let Some(slot) = streams.get_mut(event.data() as usize) else { continue };
            let Some(mut stream) = slot.as_ref() else { continue };
            let go_on = match stream.read(&mut buffer) {
                Ok(len @ 1..) => answer(&mut stream, &buffer[..len]).is_ok(),
                _ => false,
            };
            if !go_on {
                *slot = None;
            }
        }
    }
}

/// A second process, pinned to the other core's client, that answers by Unix sockets.
fn behind() -> io::Result<UnixDatagram> {
    let (ours, its) = UnixDatagram::pair()?;
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // Such a pair says nothing of the other end's end.
            // SAFETY: takes no pointer.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            drop(ours);
            super::super::pin::pin(0, super::CLIENT_CPU);
            let mut buffer = [0; LEN];
            while let Ok(len @ 1..) = its.recv(&mut buffer) {
                if its.send(&buffer[..len]).is_err() {
                    break;
                }
            }
            std::process::exit(0)
        }
        _ => Ok(ours),
    }
}

fn one_by_one(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; LEN];
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..len], from)?;
    }
}

/// Send answers of one length to one client as one that the kernel cuts up (UDP_SEGMENT). False: they are not.
fn send_segments(
    fd: i32,
    names: &[libc::sockaddr_in],
    parts: &mut [libc::iovec],
) -> io::Result<bool> {
    const LEN_MAX: usize = 60_000;
    let whole = parts.iter().map(|part| part.iov_len).sum::<usize>();
    let is_one = |it: &libc::sockaddr_in| {
        (it.sin_port, it.sin_addr.s_addr) == (names[0].sin_port, names[0].sin_addr.s_addr)
    };
    let same =
        parts.iter().all(|part| part.iov_len == parts[0].iov_len) && names.iter().all(is_one);
    if parts.len() < 2 || !same || whole > LEN_MAX {
        return Ok(false);
    }
    #[repr(C, align(8))]
    struct Segment(libc::cmsghdr, u16);
    let header = libc::cmsghdr {
        // SAFETY: takes a number only.
        cmsg_len: unsafe { libc::CMSG_LEN(2) } as usize,
        cmsg_level: libc::SOL_UDP,
        cmsg_type: libc::UDP_SEGMENT,
    };
    let mut segment = Segment(header, parts[0].iov_len as u16);
    // SAFETY: plain numbers and null pointers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = std::ptr::from_ref(&names[0]).cast_mut().cast();
    message.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
    (message.msg_iov, message.msg_iovlen) = (parts.as_mut_ptr(), parts.len());
    (message.msg_control, message.msg_controllen) =
        ((&raw mut segment).cast(), size_of::<Segment>());
    // SAFETY: parts, a name and a control message that stay.
    let sent = unsafe { libc::sendmsg(fd, &raw const message, 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(true) }
}

/// As many datagrams by one call as there are.
fn many(socket: &UdpSocket, in_segments: bool) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let mut buffers = vec![[0u8; 2048]; BATCH];
    // SAFETY: plain numbers and null pointers.
    let mut names: Vec<libc::sockaddr_in> = vec![unsafe { std::mem::zeroed() }; BATCH];
    let mut parts: Vec<libc::iovec> = buffers
        .iter_mut()
        .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
        .collect();
    // SAFETY: plain numbers and null pointers.
    let mut messages: Vec<libc::mmsghdr> = vec![unsafe { std::mem::zeroed() }; BATCH];
    for index in 0..BATCH {
        let header = &mut messages[index].msg_hdr;
        header.msg_name = (&raw mut names[index]).cast();
        header.msg_iov = &raw mut parts[index];
        header.msg_iovlen = 1;
    }
    loop {
        for (message, part) in messages.iter_mut().zip(&mut parts) {
            part.iov_len = 2048;
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
        }
        let at = messages.as_mut_ptr();
        let wait = libc::MSG_WAITFORONE;
        // SAFETY: as many messages, each with a buffer and room for an address.
        let got = unsafe { libc::recvmmsg(fd, at, BATCH as u32, wait, std::ptr::null_mut()) };
        let Ok(got) = usize::try_from(got) else { return Err(io::Error::last_os_error()) };
        for (message, part) in messages.iter().zip(&mut parts).take(got) {
            part.iov_len = message.msg_len as usize;
        }
        if in_segments && send_segments(fd, &names[..got], &mut parts[..got])? {
            continue;
        }
        // SAFETY: those that have been received, with their lengths and addresses.
        if unsafe { libc::sendmmsg(fd, at, got as u32, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
}

/// What comes together goes back together: one call for each, another for each.
fn together(socket: &UdpSocket) -> io::Result<()> {
    setsockopt(socket, sockopt::UdpGroSegment, &true)?;
    let fd = socket.as_raw_fd();
    let mut buffer = vec![0; 1 << 16];
    let mut room = nix::cmsg_space!(i32);
    loop {
        let mut parts = [io::IoSliceMut::new(&mut buffer)];
        let none = MsgFlags::empty();
        let got = recvmsg::<SockaddrIn>(fd, &mut parts, Some(&mut room), none)?;
        let each = got.cmsgs()?.find_map(|what| match what {
            ControlMessageOwned::UdpGroSegments(len) => u16::try_from(len).ok(),
            _ => None,
        });
        let (from, len) = (got.address, got.bytes);
        let answer = [io::IoSlice::new(&buffer[..len])];
        let each = each.as_ref().map(ControlMessage::UdpGsoSegments);
        sendmsg(fd, &answer, each.as_slice(), none, from.as_ref())?;
    }
}

/// Our engine without a region: the same io_uring, and handlers that are functions.
#[derive(Debug)]
struct Alone;

impl Sandbox for Alone {
    fn upcall(&mut self, _: u64, block: &mut PacketBlock, _: &mut Reply) -> u32 {
        (block.verdict, block.in_place) = (NET_REPLY_IN_PLACE, block.len);
        Status::Ok as u32
    }

    fn release(&mut self, _: *mut u8) {}

    fn spilled(&self, _: u64, _: usize) -> Option<*const u8> {
        None
    }

    fn post(&mut self, _: [u64; 3], _: u64) -> Status {
        Status::Gone
    }

    fn is_over(&self, _: Holder, _: u64) -> bool {
        true
    }

    fn wake(&mut self, _: &'static AtomicU32) {}

    fn now_ns(&self) -> u64 {
        now_ns()
    }
}

fn listening(port: u16) -> io::Result<OwnedFd> {
    listen::tcp(([127, 0, 0, 1], port).into())
}

/// Serve with the options that fit the buffers.
pub(super) fn uring(
    kind: Kind,
    fd: OwnedFd,
    options: impl FnOnce(&Buffers) -> Options,
) -> io::Result<()> {
    let buffers = Buffers::of_own(now_ns())?;
    let driver = Uring::with(options(&buffers))?;
    on(driver, buffers, kind, fd)
}

/// The engine over any driver.
pub(super) fn on<D: Driver>(
    driver: D,
    buffers: Buffers,
    kind: Kind,
    fd: OwnedFd,
) -> io::Result<()> {
    let mut engine = Engine::new(driver, Alone, buffers);
    engine.open(0, kind, 1, Some(fd))?;
    loop {
        engine.turn(None)?;
    }
}
