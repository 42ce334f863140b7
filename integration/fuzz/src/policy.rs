//! A policy file: what is read is shown, and asked about every call.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sbx_launcher::policy::Policy;

fuzz_target!(|text: &str| {
    if let Ok(policy) = Policy::parse(text, "fuzz.toml") {
        for number in 0..512 {
            let _ = policy.decides(number, &[u64::from(number); 6]);
        }
        let _ = policy.upcalls().count();
    }
});
