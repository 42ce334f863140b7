//! A host of our own stack at a device, for the tests.
//!
//! `net-stack DEVICE INTERFACE ADDRESS/BITS[,ADDRESS/BITS] [OPTION VALUE]... COMMAND`
//!
//! Devices: `tap`, `tun`, `packet`, `xdp`; `first` and `second`, the sides of a ring in the file INTERFACE,
//! which is made if there is none. Options: `--pcap FILE`, `--lose N` (of 1000 frames),
//! `--reads calls`, `--queue N`, `--guard PORT` (before the host sees a frame: pings are answered, connections to
//! other ports dropped). Commands: `serve PORT FILE` (HTTP: the file, `/bytes/N`, and PUT, which
//! counts), `get ADDRESS:PORT PATH` (to standard output), `echo PORT` (UDP, whatever comes), `iperf3 PORT`
//! (a server of its protocol), and `trickle ADDRESS:PORT`, which connects and sends an octet at a time.
//! `net-stack ring` prints figures of two hosts at a ring.
#![expect(unsafe_code, reason = "gives memory to devices")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guard::frame::{Frame, answer_ping, read};
use netio::device::asked::{self, Asked, Verdict};
use netio::device::lossy::Lossy;
use netio::device::packet::Packet;
use netio::device::ring::{Ring, Side};
use netio::device::tap::{Reads, Tap};
use netio::device::xdp::{self, Xdp};
use netio::device::{Checksums, Device, Medium, OpenError};
use netio::pcap::Capture;
use netio::stack::{Config, Congestion, Stack, TcpStream};

type Failed = Box<dyn std::error::Error>;

/// What a machine cannot do at all ends with this, so that a test can say so.
const UNAVAILABLE: u8 = 77;
/// Longest that anything waits.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["ring"] => figures(),
        [device, interface, address, ref rest @ ..] => at(device, interface, address, rest),
        _ => Err("usage: net-stack DEVICE INTERFACE ADDRESS/BITS [OPTION VALUE]... COMMAND".into()),
    };
    let Err(why) = result else { return ExitCode::SUCCESS };
    eprintln!("net-stack: {why}");
    match why.downcast_ref::<OpenError>() {
        Some(error) if error.is_unavailable() => ExitCode::from(UNAVAILABLE),
        _ => ExitCode::FAILURE,
    }
}

#[derive(Debug, Default)]
struct Options {
    pcap: Option<String>,
    lose: u32,
    queue: u32,
    retransmit_ms: Option<u64>,
    by_calls: bool,
    guard: Option<u16>,
}

fn at(device: &str, interface: &str, address: &str, rest: &[&str]) -> Result<(), Failed> {
    let (mut options, mut rest) = (Options::default(), rest);
    while let [name, value, others @ ..] = rest
        && name.starts_with("--")
    {
        match *name {
            "--pcap" => options.pcap = Some((*value).to_owned()),
            "--lose" => options.lose = value.parse()?,
            "--queue" => options.queue = value.parse()?,
            "--retransmit-ms" => options.retransmit_ms = Some(value.parse()?),
            "--guard" => options.guard = Some(value.parse()?),
            "--reads" => options.by_calls = *value == "calls",
            _ => return Err(format!("{name}: no such option").into()),
        }
        rest = others;
    }
    let mut addresses = Vec::new();
    for address in address.split(',') {
        let (address, bits) = address.split_once('/').ok_or("ADDRESS/BITS")?;
        addresses.push((address.parse()?, bits.parse()?));
    }
    let &(first, bits) = addresses.first().ok_or("no address")?;
    let mut config = Config { addresses, ..Config::new(first, bits) };
    if ["first", "second"].contains(&device) {
        (config.spin, config.congestion) = (Duration::from_micros(50), Congestion::Unlimited);
    }
    if let Some(millis) = options.retransmit_ms {
        config.retransmit_after = Duration::from_millis(millis);
    }
    let stack = Stack::new(wrapped(open(device, interface, &options)?, &options)?, config)?;
    let result = command(&stack, rest);
    eprintln!("{stack}");
    result
}

fn open(kind: &str, interface: &str, options: &Options) -> Result<Box<dyn Device>, Failed> {
    let reads = if options.by_calls { Reads::Calls } else { Reads::IoUring };
    let device: Box<dyn Device> = match kind {
        "tap" | "tun" => {
            let medium = if kind == "tap" { Medium::Ethernet } else { Medium::Ip };
            let tap = Tap::open_with(interface, medium, reads)?;
            eprintln!("read by {:?}", tap.reads());
            Box::new(tap)
        }
        "packet" => {
            let packet = Packet::open_with(interface, reads)?;
            eprintln!("read by {:?}", packet.reads());
            Box::new(packet)
        }
        "xdp" => {
            let len = 4096 * xdp::CHUNK_LEN;
            let start = memory(len);
            // The other end of a veth leaves checksums to hardware.
            let config = xdp::Config { queue: options.queue, checksums: Checksums::SendOnly };
            // SAFETY: never given back.
            let xdp = unsafe { Xdp::open(interface, start, len, config) }?;
            eprintln!("by the driver: {}", xdp.is_native());
            Box::new(xdp)
        }
        "first" | "second" => {
            let side = if kind == "first" { Side::First } else { Side::Second };
            let len = Ring::memory_len(SHARED_CAPACITY);
            // SAFETY: mapped until the program ends.
            let ring = unsafe { Ring::new(shared(interface, len)?, len, side) }?;
            Box::new(ring)
        }
        _ => return Err(format!("{kind}: no such device").into()),
    };
    Ok(device)
}

fn wrapped(device: Box<dyn Device>, options: &Options) -> Result<Box<dyn Device>, Failed> {
    let device: Box<dyn Device> = match options.lose {
        0 => device,
        lose => Box::new(Lossy::new(device, lose, 1)),
    };
    let device: Box<dyn Device> = match options.guard {
        None => device,
        Some(open) => Box::new(Asked::new(device, move |frame| guard(frame, open))),
    };
    let Some(path) = &options.pcap else { return Ok(device) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    // Not buffered: the program is killed.
    Ok(Box::new(Capture::new(device, File::create(path)?, now)?))
}

/// What the extension of this name says as well.
fn guard(frame: &mut asked::Packet<'_>, open: u16) -> Verdict {
    match read(frame.bytes()) {
        Frame::Ping { .. } => {
            answer_ping(frame.bytes_mut());
            frame.reply_in_place(frame.bytes().len())
        }
        Frame::Opening { port } if port != open => Verdict::Drop,
        _ => Verdict::Pass,
    }
}

/// A file as memory that other programs have as well.
fn shared(path: &str, len: usize) -> Result<*mut u8, Failed> {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap};
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    file.set_len(len as u64)?;
    let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let len = NonZeroUsize::new(len).ok_or("empty")?;
    // SAFETY: a new mapping, wherever there is room.
    let start = unsafe { mmap(None, len, rights, MapFlags::MAP_SHARED, &file, 0) }?;
    Ok(start.as_ptr().cast())
}

/// Zeroed memory, aligned to a page, that is never given back.
fn memory(len: usize) -> *mut u8 {
    let memory = vec![0u8; len + 4096].leak().as_mut_ptr();
    memory.wrapping_add(memory.align_offset(4096))
}

fn command(stack: &Stack, command: &[&str]) -> Result<(), Failed> {
    match command {
        ["serve", port, file] => serve(stack, port.parse()?, std::fs::read(file)?),
        ["get", address, path] => get(stack, address.parse()?, path),
        ["echo", port] => echo(stack, port.parse()?),
        ["iperf3", port] => iperf3(stack, port.parse()?),
        ["trickle", address] => trickle(stack, address.parse()?),
        _ => Err(format!("{command:?}: no such command").into()),
    }
}

fn serve(stack: &Stack, port: u16, file: Vec<u8>) -> Result<(), Failed> {
    let listener = stack.listen(port, 32)?;
    println!("ready");
    let file: Arc<[u8]> = file.into();
    loop {
        let (stream, file) = (listener.accept()?, Arc::clone(&file));
        std::thread::spawn(move || {
            if let Err(why) = answer(stream, &file) {
                eprintln!("net-stack: {why}");
            }
        });
    }
}

fn answer(stream: TcpStream, file: &[u8]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE));
    stream.set_write_timeout(Some(PATIENCE));
    let mut reader = BufReader::with_capacity(256 << 10, stream);
    loop {
        let (mut first, mut line, mut len) = (String::new(), String::new(), 0);
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        while reader.read_line(&mut line)? > 2 {
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                len = value.trim().parse().unwrap_or(0);
            }
            if lower.starts_with("expect: 100") {
                reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            line.clear();
        }
        let start = Instant::now();
        let got = std::io::copy(&mut (&mut reader).take(len), &mut std::io::sink())?;
        if first.starts_with("PUT") {
            eprintln!("{} took {:?}", got, start.elapsed());
            reply(reader.get_mut(), format!("{got} bytes\n").as_bytes())?;
            continue;
        }
        let path = first.split(' ').nth(1).unwrap_or("/");
        match path.strip_prefix("/bytes/").and_then(|len| len.parse().ok()) {
            Some(len) => reply(reader.get_mut(), &vec![b'x'; len])?,
            None => reply(reader.get_mut(), file)?,
        }
        if first.contains("HTTP/1.0") {
            return Ok(());
        }
    }
}

fn reply(to: &mut TcpStream, body: &[u8]) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    to.write_all(head.as_bytes())?;
    to.write_all(body)
}

fn get(stack: &Stack, address: SocketAddr, path: &str) -> Result<(), Failed> {
    let mut stream = stack.connect_timeout(address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE));
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut reader = BufReader::with_capacity(256 << 10, stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let start = Instant::now();
    let len = std::io::copy(&mut reader, &mut std::io::stdout().lock())?;
    eprintln!("{len} took {:?}", start.elapsed());
    drop(reader);
    stack.finish(PATIENCE)?;
    Ok(())
}

fn echo(stack: &Stack, port: u16) -> Result<(), Failed> {
    let socket = stack.bind(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port))?;
    println!("ready");
    let mut into = [0; 2000];
    loop {
        let (len, from) = socket.recv_from(&mut into)?;
        socket.send_to(&into[..len], from)?;
    }
}

fn iperf3(stack: &Stack, port: u16) -> Result<(), Failed> {
    let listener = stack.listen(port, 32)?;
    println!("ready");
    let accept = || {
        let stream = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE));
        stream.set_write_timeout(Some(PATIENCE));
        Ok::<_, std::io::Error>(stream)
    };
    loop {
        match integration::iperf3::serve(accept) {
            Ok(bytes) => eprintln!("{bytes} bytes"),
            Err(why) => eprintln!("net-stack: {why}"),
        }
    }
}

fn trickle(stack: &Stack, address: SocketAddr) -> Result<(), Failed> {
    let mut stream = stack.connect_timeout(address, PATIENCE)?;
    stream.set_nodelay(true)?;
    for letter in b'a'..=b'z' {
        stream.write_all(&[letter])?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.set_read_timeout(Some(PATIENCE));
    std::io::copy(&mut stream, &mut std::io::stdout().lock())?;
    drop(stream);
    stack.finish(PATIENCE)?;
    Ok(())
}

/// Octets each way of a ring that programs share.
const SHARED_CAPACITY: usize = 1 << 20;

/// Of 256 KiB.
const PIECES: u32 = 10_000;

/// Two hosts at a ring: throughput, and round trips while both look all the time.
fn figures() -> Result<(), Failed> {
    for (what, capacity) in
        [("64 KiB", 64 << 10), ("256 KiB", 256 << 10), ("1 MiB", 1 << 20), ("4 MiB", 4 << 20)]
    {
        let len = Ring::memory_len(capacity);
        let start = memory(len);
        let address = |last| SocketAddr::from(([10, 0, 0, last], 7));
        let stack = |side, last| -> Result<Stack, Failed> {
            // SAFETY: never given back.
            let ring = unsafe { Ring::new(start, len, side) }?;
            let config = Config {
                congestion: Congestion::Unlimited,
                spin: Duration::from_micros(100),
                buffer_len: 1 << 20,
                ..Config::new(address(last).ip(), 24)
            };
            Ok(Stack::new(ring, config)?)
        };
        let (one, other) = (stack(Side::First, 1)?, stack(Side::Second, 2)?);
        let listener = other.listen(7, 1)?;
        let (rate, trips) = std::thread::scope(|scope| -> Result<_, Failed> {
            let server = scope.spawn(move || -> std::io::Result<f64> {
                let mut stream = listener.accept()?;
                stream.set_nodelay(true)?;
                let mut into = vec![0; 256 << 10];
                for _ in 0..100_000 {
                    stream.read_exact(&mut into[..1])?;
                    stream.write_all(&into[..1])?;
                }
                let (start, mut all) = (Instant::now(), 0u64);
                loop {
                    match stream.read(&mut into)? {
                        0 => return Ok(all as f64 / start.elapsed().as_secs_f64() / 1e9),
                        len => all += len as u64,
                    }
                }
            });
            let mut stream = one.connect(address(2))?;
            stream.set_nodelay(true)?;
            let begun = Instant::now();
            for _ in 0..100_000 {
                stream.write_all(b"x")?;
                stream.read_exact(&mut [0])?;
            }
            let trips = begun.elapsed().as_secs_f64() * 10.0;
            let piece = vec![7; 256 << 10];
            for _ in 0..PIECES {
                stream.write_all(&piece)?;
            }
            stream.shutdown(std::net::Shutdown::Write)?;
            one.finish(PATIENCE)?;
            Ok((server.join().map_err(|_| "panicked")??, trips))
        })?;
        println!("{what}: {rate:.2} GB/s, {trips:.2} us for an octet there and back");
    }
    Ok(())
}
