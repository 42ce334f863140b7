//! `counts SECONDS`: counts in the ledger as fast as it can, and prints how many calls it made.
//! Ends with an error if one of them is refused or fails.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use ledger::ledger::Client;

fn main() -> ExitCode {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let (start, length) = (Instant::now(), Duration::from_secs(seconds));
    let counted = Client::attach().and_then(|client| {
        let (mut calls, mut last) = (0u64, 0);
        while start.elapsed() < length {
            for _ in 0..100 {
                let count = client.count()?;
                assert!(count > last, "{count} after {last}");
                last = count;
                calls += 1;
            }
            client.mutex_add()?;
        }
        Ok(calls)
    });
    match counted {
        Ok(calls) => {
            println!("{calls}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("counts: {error}");
            ExitCode::FAILURE
        }
    }
}
