//! The launcher as a client, in the sandbox or outside, like any other program: it knows of no region.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::super::load;

/// Bytes of a value that is asked for.
const VALUE_LEN: usize = 100;

/// Ask the server at `port` for `time`; requests per second, and how many.
pub(super) fn ask(what: &str, port: u16, time: Duration) -> io::Result<(f64, f64)> {
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    match what {
        "memcached-1" => memcached(at, 1, time),
        "memcached-50" => memcached(at, 50, time),
        "byte" => load::tcp(at, 1, 1, time).map(|all| (all.rate, all.count)),
        "byte-looks" => looks(at, time),
        "byte-asleep" => asleep(at, time),
        "connect" => connect(at, time),
        other => Err(io::Error::other(format!("nothing is called {other}"))),
    }
}

fn memcached(at: SocketAddr, clients: usize, time: Duration) -> io::Result<(f64, f64)> {
    let mut stream = TcpStream::connect(at)?;
    write!(stream, "set key 0 0 {VALUE_LEN}\r\n{}\r\n", "x".repeat(VALUE_LEN))?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    if &answer != b"STORED\r\n" {
        return Err(io::Error::other("memcached does not store"));
    }
    load::asking(at, clients, b"get key\r\n", time).map(|all| (all.rate, all.count))
}

/// One byte there and back after the other, without ever sleeping.
fn looks(at: SocketAddr, time: Duration) -> io::Result<(f64, f64)> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let (began, mut count) = (Instant::now(), 0.0);
    while began.elapsed() < time {
        stream.write_all(b"x")?;
        if load::read(&stream, &mut [0])? != 1 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        count += 1.0;
    }
    Ok((count / began.elapsed().as_secs_f64(), count))
}

/// One byte there and back now and then: the other side sleeps each time, and so does this one. Per second of waiting.
fn asleep(at: SocketAddr, time: Duration) -> io::Result<(f64, f64)> {
    const PAUSE: Duration = Duration::from_micros(300);
    let mut stream = TcpStream::connect(at)?;
    stream.set_nodelay(true)?;
    let (began, mut waited, mut count) = (Instant::now(), Duration::ZERO, 0.0);
    while began.elapsed() < time {
        std::thread::sleep(PAUSE);
        let asked = Instant::now();
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        waited += asked.elapsed();
        count += 1.0;
    }
    Ok((count / waited.as_secs_f64(), count))
}

/// Connect, wait for the end that the other side makes at once, and close.
fn connect(at: SocketAddr, time: Duration) -> io::Result<(f64, f64)> {
    let (began, mut count) = (Instant::now(), 0.0);
    while began.elapsed() < time {
        let mut stream = TcpStream::connect(at)?;
        if stream.read(&mut [0])? != 0 {
            return Err(io::Error::other("bytes from a server that has none"));
        }
        count += 1.0;
    }
    Ok((count / began.elapsed().as_secs_f64(), count))
}
