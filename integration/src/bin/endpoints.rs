//! `endpoints udp|tcp|once|async|split ADDRESS`: serves a port of its sandbox itself, until it is killed. Says where, then
//! answers: each datagram, and each line of a connection, by its own pid and the same text (`split`: all at once by 1,000,000 bytes). `bye` ends the
//! connection, `half` only this side's end of it, `big N` is answered by N bytes.

use std::io::{BufRead, Read, Write};
use std::net::Shutdown;

use netio::endpoint::{TcpListener, TcpStream, UdpEndpoint};

/// How much `split` gives.
const GIVEN: usize = 1_000_000;

fn main() -> std::process::ExitCode {
    if let Err(error) = run() {
        eprintln!("{error}");
        return std::process::ExitCode::FAILURE;
    }
    std::process::ExitCode::SUCCESS
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, kind, at] = &args[..] else {
        return Err("usage: endpoints udp|tcp|once|async|split ADDRESS".into());
    };
    if kind == "udp" {
        let endpoint = UdpEndpoint::bind(at)?;
        println!("{}", endpoint.local_addr()?);
        loop {
            let datagram = endpoint.recv()?;
            let answer = [format!("{} ", std::process::id()).as_bytes(), datagram.bytes()].concat();
            datagram.reply(&answer)?;
        }
    }
    let listener = TcpListener::bind(at)?;
    if kind == "once" {
        println!("{}", listener.local_addr());
        let (stream, _) = listener.accept()?;
        drop(listener);
        println!("no more");
        return Ok(serve(stream)?);
    }
    if kind == "async" || kind == "split" {
        let is_split = kind == "split";
        println!("{}", listener.local_addr());
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let tasks = tokio::task::LocalSet::new();
        return tasks.block_on(&runtime, async {
            loop {
                let (stream, _) = listener.accept_async().await?;
                tokio::task::spawn_local(async move {
                    let served =
                        if is_split { give(stream).await } else { serve_async(stream).await };
                    if let Err(error) = served {
                        eprintln!("{error}");
                    }
                });
            }
        });
    }
    println!("{}", listener.local_addr());
    loop {
        let (stream, _) = listener.accept()?;
        std::thread::spawn(move || {
            if let Err(error) = serve(stream) {
                eprintln!("{error}");
            }
        });
    }
}

/// Give much while another task waits for something to come, and looks all the time.
async fn give(stream: TcpStream) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut from, mut to) = tokio::io::split(stream);
    let reading = tokio::task::spawn_local(async move {
        let mut room = [0];
        let mut reading = std::pin::pin!(from.read(&mut room));
        std::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            reading.as_mut().poll(cx)
        })
        .await
    });
    to.write_all(&vec![b'g'; GIVEN]).await?;
    reading.await?.map(drop)
}

async fn serve_async(stream: TcpStream) -> std::io::Result<()> {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
    let mut stream = tokio::io::BufStream::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let answer = format!("{} {line}", std::process::id());
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
        if line == "bye\n" {
            return stream.shutdown().await;
        }
    }
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_end().split_once(' ').unwrap_or((line.trim_end(), "")) {
            ("bye", _) => return stream.write_all(b"bye\n"),
            ("half", _) => {
                stream.write_all(b"half\n")?;
                stream.shutdown(Shutdown::Write)?;
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest)?;
                let late = stream.write(b"late").map_err(|error| error.kind());
                println!("rest {}, {late:?}", rest.len());
            }
            ("big", count) => {
                let count = count.parse().unwrap_or(0);
                stream.write_all(&vec![b'b'; count])?;
            }
            _ => stream.write_all(format!("{} {line}", std::process::id()).as_bytes())?,
        }
    }
}
