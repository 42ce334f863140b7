//! A snapshot file. A good head makes a sandbox; nothing of the file runs.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use sbx_launcher::sandbox::Sandbox;

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("sbx-fuzz-{}", std::process::id()));
    fs::write(&path, bytes).expect("a scratch file");
    let _ = Sandbox::restore("fuzz", &path);
    let _ = fs::remove_file(&path);
});
