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
use nix::sys::resource::UsageWho;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{pipe2, read, write};

use super::pin::{cpu_seconds, pin, time};
use super::{BenchError, datagrams};

/// A kind of pair, which the region carries, and what is measured of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    by: &'static str,
    count: u64,
}

/// Round trips per second by each kind of pair, and what goes through a pipe.
pub(super) fn all(scale: u64) -> impl Iterator<Item = Kind> {
    const KINDS: [(&str, &str); 8] = [
        ("socketpair, stream, round trips", "stream"),
        ("socketpair, seqpacket, round trips", "seqpacket"),
        ("socketpair, datagram, round trips", "datagram"),
        ("pipe, round trips", "pipe"),
        ("eventfd, round trips", "eventfd"),
        ("UDP, 64 bytes, round trips", datagrams::UDP),
        ("AF_UNIX datagrams with names, round trips", datagrams::NAMED),
        ("pipe, writes of 16 KiB", THROUGH),
    ];
    KINDS.into_iter().map(move |(name, by)| {
        let unit = if by == THROUGH { "GB/s" } else { "1/s" };
        Kind { name, unit, by, count: 200_000 / scale }
    })
}

/// In place of a kind: many bytes through a pipe.
const THROUGH: &str = "through";
const ASKING_CPU: usize = 0;
const ANSWERING_CPU: usize = 1;
/// Bytes that are sent at a time, but of a counter, which has eight.
const LEN: usize = 64;
/// Bytes of a write, where it is how many go through that counts.
const PIECE_LEN: usize = 16 << 10;

/// What runs for [`Kind::rate`]: the one that asks by a kind of pair, and says the rate and the CPU seconds of both, or
/// the one that answers. None if `by` is neither.
pub(super) fn by(by: &str, count: u64) -> Option<io::Result<(f64, f64)>> {
    if let Some(answer) = [("echo", answer as fn() -> io::Result<()>), ("sink", take_all)]
        .into_iter()
        .find_map(|(name, answer)| (name == by).then_some(answer))
    {
        // It has nothing to say.
        let status = answer().map_or(1, |()| 0);
        std::process::exit(status);
    }
    let kind = by.strip_prefix("pair-")?;
    let asked = if kind == THROUGH { through(count) } else { ask(kind, count) };
    // The other side has ended.
    let seconds = || cpu_seconds(UsageWho::RUSAGE_SELF) + cpu_seconds(UsageWho::RUSAGE_CHILDREN);
    Some(asked.map(|rate| (rate, seconds())))
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
        datagrams::UDP | datagrams::NAMED => {
            let make = if kind == datagrams::UDP { datagrams::udp } else { datagrams::named };
            let [one, two] = make()?;
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
    put(before(count))?;
    let mut result = Ok(());
    let ns = time(1, || result = put(count));
    result?;
    drop(into);
    read(from.as_fd(), &mut [0; 1])?;
    Ok((count * PIECE_LEN as u64) as f64 / ns)
}

/// How often before it is timed: until the other has begun, and both have got used to it.
const fn before(count: u64) -> u64 {
    count / 10 + 100
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
    (0..before(count)).try_for_each(|_| trip())?;
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

impl Kind {
    /// Its rate by the kernel or in a sandbox, and CPU seconds of both sides per million.
    pub(super) fn rate(
        &self,
        launcher: &Path,
        within: Option<&str>,
    ) -> Result<(f64, f64), BenchError> {
        let doing = |error| BenchError::Io("asking by a pair", error);
        let mut command = Command::new(launcher);
        if let Some(sandbox) = within {
            command.args(["run", "--sandbox", sandbox, "--"]).arg(launcher);
        }
        let by = format!("pair-{}", self.by);
        command.args(["bench-inside", &self.count.to_string(), "--by", &by]);
        let output = command.stdin(Stdio::null()).output().map_err(doing)?;
        let said = String::from_utf8_lossy(&output.stdout);
        let figure = |at| said.split_whitespace().nth(at)?.parse::<f64>().ok();
        let (Some(rate), Some(seconds)) = (figure(0), figure(1)) else {
            let error = String::from_utf8_lossy(&output.stderr);
            return Err(BenchError::Inside(format!("{}: {said}{error}", self.by)));
        };
        Ok((rate, seconds * 1e6 / (self.count + before(self.count)) as f64))
    }
}
