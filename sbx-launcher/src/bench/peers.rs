//! redis and memcached, and a client that is as simple as ours for both.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::pin::{pin, time};

/// What a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Redis,
    Memcached,
}

/// A server on a Unix socket, and a connection to it.
#[derive(Debug)]
pub(super) struct Server {
    kind: Kind,
    child: Child,
    scratch: PathBuf,
    to: UnixStream,
    from: BufReader<UnixStream>,
}

impl Server {
    /// Start one and wait for its socket.
    pub(super) fn start(kind: Kind) -> io::Result<Self> {
        let scratch =
            std::env::temp_dir().join(format!("sbx-bench-{kind:?}-{}", std::process::id()));
        std::fs::create_dir_all(&scratch)?;
        let socket = scratch.join("socket");
        let mut command = match kind {
            Kind::Redis => redis(&socket),
            Kind::Memcached => memcached(&socket),
        };
        let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = silent.current_dir(&scratch).spawn()?;
        let start = Instant::now();
        let to = loop {
            match UnixStream::connect(&socket) {
                Ok(to) => break to,
                Err(error) if start.elapsed() > Duration::from_secs(10) => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        to.set_read_timeout(Some(Duration::from_secs(10)))?;
        let from = BufReader::with_capacity(1 << 16, to.try_clone()?);
        Ok(Self { kind, child, scratch, to, from })
    }

    /// Keep the server on one CPU.
    pub(super) fn pin(&self, cpu: usize) {
        let tasks = format!("/proc/{}/task", self.child.id());
        for task in std::fs::read_dir(tasks).into_iter().flatten().flatten() {
            if let Ok(tid) = task.file_name().to_string_lossy().parse() {
                pin(tid, cpu);
            }
        }
    }

    /// Store `count` keys.
    pub(super) fn fill(&mut self, count: u64) -> io::Result<()> {
        const BATCH: u64 = 500;
        for first in (0..count).step_by(BATCH as usize) {
            let keys: Vec<u64> = (first..count.min(first + BATCH)).collect();
            let mut text = Vec::new();
            keys.iter().for_each(|&key| self.set_request(key, &mut text));
            self.to.write_all(&text)?;
            self.answers(keys.len(), true)?;
        }
        Ok(())
    }

    /// Operations per second: random GETs or SETs, `batch` at a time, `count` in all.
    pub(super) fn rate(
        &mut self,
        set: bool,
        batch: usize,
        count: u64,
        keys: u64,
    ) -> io::Result<f64> {
        let mut random = super::kv::Random::new();
        let mut text = Vec::new();
        let mut result = Ok(0);
        let ns = time(count, || {
            for _ in 0..count / batch as u64 {
                text.clear();
                for _ in 0..batch {
                    let key = random.next() % keys;
                    if set {
                        self.set_request(key, &mut text);
                    } else {
                        self.get_request(key, &mut text);
                    }
                }
                result = self.to.write_all(&text).and_then(|()| self.answers(batch, set));
                if result.is_err() {
                    break;
                }
            }
        });
        result.map(|_| 1e9 / ns)
    }

    fn get_request(&self, key: u64, text: &mut Vec<u8>) {
        let _ = match self.kind {
            Kind::Redis => write!(text, "*2\r\n$3\r\nGET\r\n$16\r\n{key:016}\r\n"),
            Kind::Memcached => write!(text, "get {key:016}\r\n"),
        };
    }

    fn set_request(&self, key: u64, text: &mut Vec<u8>) {
        let value = super::kv::value_of(key);
        let len = value.len();
        let _ = match self.kind {
            Kind::Redis => write!(text, "*3\r\n$3\r\nSET\r\n$16\r\n{key:016}\r\n${len}\r\n"),
            Kind::Memcached => write!(text, "set {key:016} 0 0 {len}\r\n"),
        };
        text.extend_from_slice(&value);
        text.extend_from_slice(b"\r\n");
    }

    /// Read `count` answers; a checksum of the values.
    fn answers(&mut self, count: usize, set: bool) -> io::Result<u64> {
        let bad = || io::Error::other("an answer that is none");
        let mut sum = 0u64;
        for _ in 0..count {
            let line = self.line()?;
            if set {
                if !line.starts_with(b"+OK") && !line.starts_with(b"STORED") {
                    return Err(bad());
                }
                continue;
            }
            let len = line.rsplit(|&byte| byte == b' ' || byte == b'$').next();
            let len = len.and_then(|len| std::str::from_utf8(len).ok()?.trim().parse().ok());
            let mut value = vec![0; len.filter(|&len: &usize| len < 1 << 20).ok_or_else(bad)? + 2];
            self.from.read_exact(&mut value)?;
            sum = sum.wrapping_add(super::kv::checksum(&value[..value.len() - 2]));
            if self.kind == Kind::Memcached && self.line()? != b"END\r\n" {
                return Err(bad());
            }
        }
        Ok(sum)
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        use std::io::BufRead;
        let mut line = Vec::new();
        self.from.read_until(b'\n', &mut line)?;
        Ok(line)
    }
}

fn redis(socket: &Path) -> Command {
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(socket);
    command
}

fn memcached(socket: &Path) -> Command {
    let mut command = Command::new("memcached");
    command.args(["-u", "root", "-m", "1024", "-t", "1", "-a", "0777", "-s"]).arg(socket);
    command
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}
