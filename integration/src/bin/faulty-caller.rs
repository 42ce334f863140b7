//! Makes upcalls that fail, as the tests ask.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use ext_api::abi::Status;
use ext_api::error::CallError;
use faulty::faulty::Client;

const PATIENCE: Duration = Duration::from_secs(30);

/// Calls a handler that fails and says what came back.
type Fault = fn(&Client) -> String;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let client = match Client::attach() {
        Ok(client) => client,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match args.first().map(String::as_str) {
        Some("every") => every(&client),
        Some("spin") => println!("{}", name(client.spin())),
        Some("blocked-spin") => {
            integration::block_all_signals();
            println!("{}", name(client.spin()));
        }
        Some("sleep") => println!("{}", name(client.sleep(60_000))),
        Some("work") => work(&client, 200),
        Some("file") => file(&client),
        Some("read") => match client.read() {
            Ok(len) => println!("child: {len}"),
            Err(error) => println!("child: {error}"),
        },
        Some("count") => println!("{:?}", client.count()),
        Some("lock") => {
            println!("{}", name(client.abort_locked()));
            println!("{}", name(until_restarted(|| client.lock())));
        }
        _ => {
            eprintln!("every | spin | blocked-spin | sleep | work | count | lock | file | read");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn name<T>(result: Result<T, CallError>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(CallError::Refused(status) | CallError::Fault(status, _)) => format!("{status:?}"),
        Err(other) => other.to_string(),
    }
}

/// The first result that is not about a restart.
fn until_restarted<T>(mut call: impl FnMut() -> Result<T, CallError>) -> Result<T, CallError> {
    let start = Instant::now();
    loop {
        match call() {
            Err(CallError::Refused(Status::Restarting | Status::Quarantined))
                if start.elapsed() < PATIENCE =>
            {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// Every fault in one process, which goes on after each.
fn every(client: &Client) {
    let faults: [(&str, Fault); 9] = [
        ("read", |c| name(until_restarted(|| c.read_at(16)))),
        ("write", |c| name(until_restarted(|| c.write_at(16)))),
        ("jump", |c| name(until_restarted(|| c.jump_to(0)))),
        ("overflow", |c| name(until_restarted(|| c.overflow(1_000_000)))),
        ("illegal", |c| name(until_restarted(|| c.illegal()))),
        ("trap", |c| name(until_restarted(|| c.trap()))),
        ("divide", |c| name(until_restarted(|| c.divide(0)))),
        ("abort", |c| name(until_restarted(|| c.abort()))),
        ("panic", |c| name(until_restarted(|| c.panic("on purpose")))),
    ];
    for (what, fault) in faults {
        println!("{what}: {}", fault(client));
    }
    println!("then: {}", name(until_restarted(|| client.divide(5))));
}

/// A file that this process opened, read by it and by another.
fn file(client: &Client) {
    let path = "/proc/self/comm";
    println!("{:?}", client.open(path).and_then(|()| client.read()));
    let child = std::env::current_exe()
        .and_then(|program| std::process::Command::new(program).arg("read").status());
    assert!(child.is_ok_and(|status| status.success()), "the child fails");
}

/// Innocent upcalls, each well within its budget.
fn work(client: &Client, rounds: u32) {
    let failed = (0..rounds).filter(|_| client.work(20_000_000).is_err()).count();
    println!("{failed} failed");
}
