//! An HTTP responder whose TCP, IP and ARP are its own: the kernel only has a TAP interface.
//!
//! `user-tcp [INTERFACE [OUR-ADDRESS [KERNEL-ADDRESS [HANDLER]]]]`: the handler, of an extension of the sandbox,
//! is asked about each frame before the TCP/IP sees it.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::process::{Command, ExitCode};
use std::time::Duration;

use netio::device::Medium;
use netio::device::asked::{Asked, FrameHandler, Watch};
use netio::device::tap::Tap;
use netio::stack::{Config, Stack, TcpStream};

type Failed = Box<dyn std::error::Error>;

const NETWORK_BITS: u8 = 24;
/// A client that says nothing for so long is let go.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Longest line of a request.
const LINE_MAX: u64 = 8192;

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let args: Vec<String> = args.collect();
    let arg = |at: usize, default| args.get(at).map_or(default, String::as_str);
    let handler = args.get(3).map(String::as_str);
    match serve(arg(0, "user0"), arg(1, "10.99.0.2"), arg(2, "10.99.0.1"), handler) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("user-tcp: {why}");
            ExitCode::FAILURE
        }
    }
}

fn serve(interface: &str, ours: &str, kernel: &str, handler: Option<&str>) -> Result<(), Failed> {
    let address: Ipv4Addr =
        ours.parse().map_err(|_| format!("{ours}: expected an IPv4 address, as 10.99.0.2"))?;
    let tap = Tap::open(interface, Medium::Ethernet)?;
    let interface = tap.name().to_owned();
    ip(&["addr", "add", &format!("{kernel}/{NETWORK_BITS}"), "dev", &interface])?;
    ip(&["link", "set", &interface, "up"])?;
    let (stack, verdicts) = stack_at(tap, address, handler)?;
    let listener = stack.listen(80, 64)?;
    println!("curl http://{address}/    (or ping {address})");
    loop {
        let (stream, stack, verdicts) = (listener.accept()?, stack.clone(), verdicts.clone());
        std::thread::spawn(move || {
            let peer = stream.peer_addr();
            if let Err(why) = answer(stream, &stack, verdicts.as_ref()) {
                eprintln!("user-tcp: {peer}: {why}");
            }
        });
    }
}

/// A stack, and what its handler says if there is one.
fn stack_at(
    tap: Tap,
    address: Ipv4Addr,
    handler: Option<&str>,
) -> Result<(Stack, Option<Watch>), Failed> {
    let config = Config::new(address.into(), NETWORK_BITS);
    let Some(handler) = handler else { return Ok((Stack::new(tap, config)?, None)) };
    let device = Asked::by(tap, FrameHandler::find(handler)?);
    let verdicts = device.verdicts();
    Ok((Stack::new(device, config)?, Some(verdicts)))
}

fn ip(arguments: &[&str]) -> Result<(), Failed> {
    let status = Command::new("ip").args(arguments).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("ip {}: {status}", arguments.join(" ")).into())
    }
}

/// Answer the requests of a connection, one after the other.
fn answer(stream: TcpStream, stack: &Stack, verdicts: Option<&Watch>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(IDLE_MAX));
    stream.set_write_timeout(Some(IDLE_MAX));
    stream.set_nodelay(true)?;
    let (local, peer) = (stream.local_addr(), stream.peer_addr());
    let mut reader = BufReader::new(stream);
    loop {
        let Some(request) = line(&mut reader)? else { return Ok(()) };
        while line(&mut reader)?.is_some_and(|header| !header.is_empty()) {}
        let said = verdicts.map_or(String::new(), |verdicts| format!("{}\n", verdicts.now()));
        let body =
            format!("{request}\nfrom {peer} to {local}, which no kernel knows\n{stack}\n{said}");
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        reader.get_mut().write_all((head + &body).as_bytes())?;
    }
}

/// The next line, without its end; None if there is none.
fn line(from: &mut BufReader<TcpStream>) -> std::io::Result<Option<String>> {
    use std::io::Read;
    let mut line = String::new();
    let len = from.by_ref().take(LINE_MAX).read_line(&mut line)?;
    Ok((len > 0).then(|| line.trim_end().to_owned()))
}
