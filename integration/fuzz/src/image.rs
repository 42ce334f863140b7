//! An ELF file of anybody's, as far as `ext load` reads it before anything runs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libos::image::{self, Imports};
use libos::layout::{LEN_DEFAULT, Place};
use libos::manifest;

/// Has everything.
struct Anything;

impl Imports for Anything {
    fn find(&self, _: &str) -> Option<u64> {
        Some(0x1000)
    }

    fn missing(&self) -> u64 {
        0x2000
    }
}

fuzz_target!(|bytes: &[u8]| {
    let place = Place::new(0x5540_0000_0000, LEN_DEFAULT).expect("a place");
    if let Ok(image) = image::place(bytes, 1, place, &Anything) {
        let _ = manifest::read(&image);
    }
});
