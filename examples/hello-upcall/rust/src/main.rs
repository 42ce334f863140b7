//! Calls the hello extension through its typed client; `bench` times upcalls.

use std::hint::black_box;
use std::time::Instant;

use hello_upcall::hello;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = hello::Client::attach()?;
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "bench") {
        return bench(&client);
    }
    println!("{}", client.greet("rust")?);
    println!("total {}", client.add(1)?);
    Ok(())
}

/// Median of several rounds, each upcall against a plain call through a pointer.
fn bench(client: &hello::Client) -> Result<(), Box<dyn std::error::Error>> {
    const CALLS: u32 = 1_000_000;
    const ROUNDS: usize = 9;
    fn plain(n: u64) -> u64 {
        black_box(n) + 1
    }
    let pointer: fn(u64) -> u64 = black_box(plain);
    let sandbox = ext_api::client::Sandbox::current()?;
    let null = sandbox.find("hello.null")?;
    let mut reply = ext_api::abi::Reply::empty();
    let mut rounds: Vec<[f64; 4]> = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push([
            time(CALLS, |i| black_box(pointer(black_box(i)))),
            time(CALLS, |_| sandbox.call_null(null, &mut reply)),
            time(CALLS, |i| client.add(i & 1).unwrap_or(0)),
            time(CALLS, |_| u64::from(std::os::unix::process::parent_id())),
        ]);
    }
    for (index, name) in
        ["plain indirect call", "null upcall, raw gate", "typed add(u64)", "getppid"]
            .iter()
            .enumerate()
    {
        let mut column: Vec<f64> = rounds.iter().map(|round| round[index]).collect();
        column.sort_by(f64::total_cmp);
        let (median, min, max) = (column[ROUNDS / 2], column[0], column[ROUNDS - 1]);
        println!("{name:<24} {median:8.2} ns  (min {min:.2}, max {max:.2})");
    }
    Ok(())
}

fn time(calls: u32, mut call: impl FnMut(u64) -> u64) -> f64 {
    let start = Instant::now();
    for i in 0..u64::from(calls) {
        black_box(call(i));
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
}
