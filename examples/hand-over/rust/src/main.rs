//! A process that answers what it is handed, until it is ended.

use std::time::Duration;

use ext_api::client::Sandbox;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sandbox = Sandbox::current()?;
    println!("{} waits", std::process::id());
    loop {
        let _ = sandbox.wait(Duration::from_secs(1));
    }
}
