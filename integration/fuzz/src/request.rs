//! What arrives at the control socket, and arguments as typed for a handler.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sbx_launcher::control::{self, Request};

fuzz_target!(|text: &str| {
    let _ = serde_json::from_str::<Request>(text);
    let (signature, args) = text.split_once('\n').unwrap_or((text, ""));
    let args: Vec<String> = args.lines().map(str::to_owned).collect();
    let _ = control::words(signature, &args);
});
