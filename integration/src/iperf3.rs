//! A server of iperf3's protocol over any streams, so that iperf3 can measure a stack that it knows nothing of.
//!
//! ```text
//!  control: cookie ──► parameters ──► streams are made ──► running ──► end ──► results both ways ──► done
//!  each stream: cookie, then bytes, from the client or, in reverse, from here
//! ```
//!
//! TCP in either direction, with any number of streams; not both directions at once.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

const COOKIE_LEN: usize = 37;
/// Longest text of parameters or results that is read.
const TEXT_LEN_MAX: usize = 1 << 20;
const STREAMS_MAX: u64 = 128;
const PIECE_LEN: usize = 128 << 10;

/// States, as one octet on the control connection.
const TEST_START: u8 = 1;
const TEST_RUNNING: u8 = 2;
const TEST_END: u8 = 4;
const PARAM_EXCHANGE: u8 = 9;
const CREATE_STREAMS: u8 = 10;
const EXCHANGE_RESULTS: u8 = 13;
const DISPLAY_RESULTS: u8 = 14;

/// Serve one test of the client that comes next; bytes that went through the streams.
///
/// # Errors
/// Those of the connections; `InvalidData` for what is not the protocol, or not served.
pub fn serve<S: Read + Write + Send>(mut accept: impl FnMut() -> io::Result<S>) -> io::Result<u64> {
    let mut control = accept()?;
    let cookie = cookie_of(&mut control)?;
    control.write_all(&[PARAM_EXCHANGE])?;
    let test = read_text(&mut control)?;
    let count = test["parallel"].as_u64().unwrap_or(1);
    let is_served = test["tcp"] == true && test["bidirectional"] != true && count <= STREAMS_MAX;
    if !is_served {
        return Err(invalid("a test that is not served"));
    }
    let is_reverse = test["reverse"] == true;
    control.write_all(&[CREATE_STREAMS])?;
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = accept()?;
        if cookie_of(&mut stream)? != cookie {
            return Err(invalid("a stream of another test"));
        }
        streams.push((stream, Arc::new(AtomicU64::new(0))));
    }
    control.write_all(&[TEST_START, TEST_RUNNING])?;
    let (began, is_over) = (Instant::now(), AtomicBool::new(false));
    thread::scope(|scope| {
        let counts: Vec<_> = streams.iter().map(|(_, count)| Arc::clone(count)).collect();
        for (stream, count) in streams {
            let is_over = &is_over;
            scope.spawn(move || {
                // The client closes its streams as it likes.
                let _ =
                    if is_reverse { pour(stream, &count, is_over) } else { drain(stream, &count) };
            });
        }
        let ended = expect(&mut control, TEST_END);
        is_over.store(true, Ordering::Relaxed);
        ended?;
        let bytes: Vec<u64> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        exchange_results(&mut control, &bytes, began.elapsed().as_secs_f64())?;
        Ok(bytes.iter().sum())
    })
}

fn exchange_results(control: &mut (impl Read + Write), bytes: &[u64], took: f64) -> io::Result<()> {
    control.write_all(&[EXCHANGE_RESULTS])?;
    let theirs = read_text(control)?;
    let none = Vec::new();
    let ids = theirs["streams"].as_array().unwrap_or(&none).iter().map(|stream| &stream["id"]);
    let of = |(id, bytes): (&Value, &u64)| {
        json!({
            "id": id, "bytes": bytes, "retransmits": 0, "jitter": 0, "errors": 0, "packets": 0,
            "start_time": 0, "end_time": took,
        })
    };
    let streams: Vec<Value> = ids.zip(bytes).map(of).collect();
    let ours = json!({
        "cpu_util_total": 0, "cpu_util_user": 0, "cpu_util_system": 0, "sender_has_retransmits": 0,
        "streams": streams,
    });
    let text = ours.to_string();
    control.write_all(&(text.len() as u32).to_be_bytes())?;
    control.write_all(text.as_bytes())?;
    control.write_all(&[DISPLAY_RESULTS])?;
    // It says that it is done, or just closes.
    let _ = control.read(&mut [0])?;
    Ok(())
}

fn cookie_of(from: &mut impl Read) -> io::Result<[u8; COOKIE_LEN]> {
    let mut cookie = [0; COOKIE_LEN];
    from.read_exact(&mut cookie)?;
    Ok(cookie)
}

fn read_text(from: &mut impl Read) -> io::Result<Value> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len) as usize;
    if len > TEXT_LEN_MAX {
        return Err(invalid("a text that is too long"));
    }
    let mut text = vec![0; len];
    from.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn expect(from: &mut impl Read, state: u8) -> io::Result<()> {
    let mut got = [0];
    from.read_exact(&mut got)?;
    if got == [state] { Ok(()) } else { Err(invalid("another state than the next one")) }
}

fn drain(mut from: impl Read, count: &AtomicU64) -> io::Result<()> {
    let mut into = vec![0; PIECE_LEN];
    loop {
        match from.read(&mut into)? {
            0 => return Ok(()),
            len => count.fetch_add(len as u64, Ordering::Relaxed),
        };
    }
}

fn pour(mut to: impl Write, count: &AtomicU64, is_over: &AtomicBool) -> io::Result<()> {
    let piece = vec![7; PIECE_LEN];
    while !is_over.load(Ordering::Relaxed) {
        count.fetch_add(to.write(&piece)? as u64, Ordering::Relaxed);
    }
    Ok(())
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
