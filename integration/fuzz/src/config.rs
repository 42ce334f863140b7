//! Texts that users type: an extension's configuration, names of system calls, addresses of sockets, clamps.
#![no_main]

use std::time::Duration;

use ext_api::calls::{self, Address};
use ext_api::config::Config;
use libfuzzer_sys::fuzz_target;
use sbx_launcher::sandbox::terms::Clamp;

fuzz_target!(|bytes: &[u8]| {
    let _ = Address::read(bytes).map(|address| address.to_string());
    let text = String::from_utf8_lossy(bytes);
    let _ = calls::find(&text);
    let _ = text.parse::<Clamp>().map(|clamp| clamp.to_string());
    if let Ok(config) = Config::parse(&text) {
        let _ = (config.get("a", 0u64), config.bytes("b", 1), config.duration("c", Duration::ZERO));
        let _ = config.finish();
    }
});
