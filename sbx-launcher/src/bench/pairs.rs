//! Round trips between two processes that have a pair of something: sockets, pipes, counters; and what goes
//! through a pipe.
//!
//! The one that asks is on one core. It starts itself again on the other, with the pair's other end for input
//! and output, to send back whatever comes, or to say when all has come.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::fcntl::OFlag;
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{pipe2, read, write};

use super::pin::{pin, time};
use super::{BenchError, Measure, datagrams};

/// Kinds of pairs, all of which the region carries.
pub(super) const KINDS: [&str; 5] = ["stream", "seqpacket", "datagram", "pipe", "eventfd"];
const SOCKETS: usize = 3;
const ASKING_CPU: usize = 0;
const ANSWERING_CPU: usize = 1;
/// Bytes that are sent at a time, but of a counter, which has eight.
const LEN: usize = 64;
/// Bytes of a write, where it is how many go through that counts.
const PIECE_LEN: usize = 16 << 10;

/// What runs for [`rows`]: the one that asks by a kind of pair, and says round trips per second, or the one
/// that answers. None if `by` is neither.
pub(super) fn by(by: &str, count: u64) -> Option<io::Result<f64>> {
    if let Some(answer) = [("echo", answer as fn() -> io::Result<()>), ("sink", take_all)]
        .into_iter()
        .find_map(|(name, answer)| (name == by).then_some(answer))
    {
        // It has nothing to say.
        let status = answer().map_or(1, |()| 0);
        std::process::exit(status);
    }
    if by == "pair-through" {
        return Some(through(count));
    }
    let kind = by.strip_prefix("pair-")?;
    (KINDS.contains(&kind) || kind == datagrams::UDP).then(|| ask(kind, count))
}

/// What the asking side reads from and writes to, and the other.
struct Pair {
    own: [OwnedFd; 2],
    other: [OwnedFd; 2],
}

fn pair(kind: &str) -> io::Result<Pair> {
    let socket_type = match kind {
        "seqpacket" => SockType::SeqPacket,
        "datagram" => SockType::Datagram,
        _ => SockType::Stream,
    };
    Ok(match kind {
        "pipe" => {
            let ends = || pipe2(OFlag::O_CLOEXEC);
            let ((from, back), (to, into)) = (ends()?, ends()?);
            Pair { own: [from, into], other: [to, back] }
        }
        "eventfd" => {
            let (one, two): (OwnedFd, OwnedFd) = (EventFd::new()?.into(), EventFd::new()?.into());
            let copies = [two.try_clone()?, one.try_clone()?];
            Pair { own: [one, two], other: copies }
        }
        datagrams::UDP => {
            let [one, two] = datagrams::pair()?;
            let (own, other) = (one.try_clone()?, two.try_clone()?);
            Pair { own: [one, own], other: [two, other] }
        }
        _ => {
            let flags = SockFlag::SOCK_CLOEXEC;
            let (one, two) = socketpair(AddressFamily::Unix, socket_type, None, flags)?;
            let (own, other) = (one.try_clone()?, two.try_clone()?);
            Pair { own: [one, own], other: [two, other] }
        }
    })
}

/// The process that answers, which ends with the value.
struct Answering(Child);

impl Drop for Answering {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Start the other side.
fn start(by: &str, [to, back]: [OwnedFd; 2]) -> io::Result<Answering> {
    let mut answering = Command::new(std::env::current_exe()?);
    answering.args(["bench-inside", "0", "--by", by]);
    let answering = answering.stdin(Stdio::from(to)).stdout(Stdio::from(back)).spawn()?;
    pin(0, ASKING_CPU);
    Ok(Answering(answering))
}

/// Bytes per second through a pipe, in so many writes.
fn through(count: u64) -> io::Result<f64> {
    let Pair { own: [from, into], other } = pair("pipe")?;
    let _taking = start("sink", other)?;
    let piece = [1u8; PIECE_LEN];
    let put = |count: u64| (0..count).try_for_each(|_| write(into.as_fd(), &piece).map(|_| ()));
    put(count / 10)?;
    let mut result = Ok(());
    let ns = time(1, || result = put(count));
    result?;
    drop(into);
    read(from.as_fd(), &mut [0; 1])?;
    Ok((count * PIECE_LEN as u64) as f64 * 1e9 / ns)
}

fn take_all() -> io::Result<()> {
    pin(0, ANSWERING_CPU);
    let mut bytes = vec![0u8; PIECE_LEN];
    while read(io::stdin().as_fd(), &mut bytes)? != 0 {}
    write(io::stdout().as_fd(), b"x")?;
    Ok(())
}

fn ask(kind: &str, count: u64) -> io::Result<f64> {
    let Pair { own: [from, into], other } = pair(kind)?;
    let _answering = start("echo", other)?;
    let mut bytes = [0u8; LEN];
    let len = if kind == "eventfd" { 8 } else { LEN };
    bytes[0] = 1;
    let mut trip = || -> io::Result<()> {
        write(into.as_fd(), &bytes[..len])?;
        let got = read(from.as_fd(), &mut bytes[..len])?;
        if got == len { Ok(()) } else { Err(io::Error::other("less came back than was sent")) }
    };
    // Until the other has begun, and both have got used to it.
    (0..count / 10 + 100).try_for_each(|_| trip())?;
    let mut result = Ok(());
    let ns = time(count, || result = (0..count).try_for_each(|_| trip()));
    result.map(|()| 1e9 / ns)
}

fn answer() -> io::Result<()> {
    pin(0, ANSWERING_CPU);
    // Not by the library's own buffers.
    let (from, into) = (io::stdin(), io::stdout());
    let mut bytes = [0u8; LEN];
    loop {
        let got = read(from.as_fd(), &mut bytes)?;
        if got == 0 {
            return Ok(());
        }
        write(into.as_fd(), &bytes[..got])?;
    }
}

/// Round trips per second by each kind, by the kernel's and, of those that are carried, in `sandbox`.
pub(super) fn rows<'a>(launcher: &'a Path, sandbox: &'a str, scale: u64) -> Vec<Measure<'a>> {
    let mut rows: Vec<Measure<'a>> = Vec::new();
    for (index, kind) in KINDS.into_iter().enumerate() {
        let what = if index < SOCKETS { "socketpair, " } else { "" };
        for within in [None, Some(sandbox)] {
            let way = if within.is_some() { "region" } else { "kernel" };
            let name = format!("{what}{kind}, round trips, {way}");
            let rate = move || rate(launcher, within, kind, 200_000 / scale);
            rows.push((name, "1/s", Box::new(rate)));
        }
    }
    for (within, way) in [(None, "kernel"), (Some(sandbox), "region")] {
        let name = format!("pipe, writes of 16 KiB, {way}");
        let rate =
            move || rate(launcher, within, "through", 200_000 / scale).map(|rate| rate / 1e9);
        rows.push((name, "GB/s", Box::new(rate)));
    }
    rows
}

pub(super) fn rate(
    launcher: &Path,
    within: Option<&str>,
    kind: &str,
    count: u64,
) -> Result<f64, BenchError> {
    let doing = |error| BenchError::Io("asking by a pair", error);
    let mut command = Command::new(launcher);
    if let Some(sandbox) = within {
        command.args(["run", "--sandbox", sandbox, "--"]).arg(launcher);
    }
    command.args(["bench-inside", &count.to_string(), "--by", &format!("pair-{kind}")]);
    let output = command.stdin(Stdio::null()).output().map_err(doing)?;
    let said = String::from_utf8_lossy(&output.stdout);
    said.trim().parse().map_err(|_| {
        BenchError::Inside(format!("{kind}: {said}{}", String::from_utf8_lossy(&output.stderr)))
    })
}
