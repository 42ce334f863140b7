//! Asks the shared limiter until it says no.

use rate_limit::limit;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let limits = limit::Client::attach()?;
    let mut allowed = 0;
    while limits.allow(b"rust", 1)? {
        allowed += 1;
    }
    println!("rust: {allowed} allowed at once, {} left", limits.peek(b"rust")?);
    Ok(())
}
