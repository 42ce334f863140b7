//! The image loader against files that are not what they seem: an error, never a panic.

use integration::{built, compile};
use libos::image::{self, ImageError, Imports};
use libos::layout::{LEN_DEFAULT, Place};
use libos::manifest;
use proptest::prelude::{ProptestConfig, any, proptest};
use std::sync::atomic::{AtomicU64, Ordering};

struct Anything;

impl Imports for Anything {
    fn find(&self, name: &str) -> Option<u64> {
        name.starts_with('m').then_some(0x5540_0200_0000)
    }
    fn missing(&self) -> u64 {
        0x5540_0200_1000
    }
}

fn load(file: &[u8]) -> Result<manifest::Extension, ImageError> {
    let place = Place::new(ext_base(), LEN_DEFAULT).expect("a legal place");
    let image = image::place(file, 1, place, &Anything)?;
    manifest::read(&image)
}

const fn ext_base() -> usize {
    0x5540_0000_0000
}

fn hello() -> Vec<u8> {
    std::fs::read(built("libhello_upcall.so")).expect("the example is built")
}

#[test]
fn the_real_image_loads() {
    let extension = load(&hello()).expect("the example is an image");
    assert_eq!(extension.name, "hello");
    assert!(extension.handlers.iter().any(|handler| handler.name == "hello.add"));
}

#[test]
fn a_handler_that_only_counts_is_bare_and_one_that_reads_a_path_is_not() {
    let file = std::fs::read(built("libthrough.so")).expect("it is built");
    let place = Place::new(ext_base(), LEN_DEFAULT).expect("a legal place");
    let image = image::place(&file, 1, place, &Anything).expect("it is an image");
    let extension = manifest::read(&image).expect("it is an extension");
    let is_bare = |name: &str| {
        let handler = extension.handlers.iter().find(|handler| handler.name == name);
        let sealed =
            |at: u64| image.bytes_at(at, usize::try_from(image.boundary.checked_sub(at)?).ok()?);
        libos::bare::is_bare(handler.expect("it is there").code, sealed)
    };
    assert!(is_bare("through.seen"));
    assert!(!is_bare("through.judge") && !is_bare("through.own_calls"));
}

#[test]
fn truncated_images_are_refused() {
    let file = hello();
    for len in (0..file.len()).step_by(997) {
        assert!(load(&file[..len]).is_err(), "{len} bytes of it");
    }
}

#[test]
fn other_machines_and_kinds_are_named() {
    let mut file = hello();
    file[18] = 0xb7;
    assert!(load(&file).unwrap_err().to_string().contains("not x86-64"));
    let mut file = hello();
    file[16] = 2;
    assert!(load(&file).unwrap_err().to_string().contains("not a shared object"));
}

#[test]
fn what_the_region_does_not_have_is_refused_by_name() {
    let freestanding = ["-shared", "-fPIC", "-nostdlib", "-ffreestanding", "-fno-stack-protector"];
    for (asks_for, named) in [
        ("-DINITIAL_EXEC", "initial-exec"),
        ("-DIFUNC", "IFUNC"),
        ("-DABI_VERSION=99", "ABI version 99"),
        ("-DNO_MANIFEST", "is this an extension?"),
        ("-DDATA_AS_CODE", "not code"),
        ("-DHUGE_HEAP", "a heap of"),
    ] {
        let flags = [&freestanding[..], &[asks_for, "-Wno-unused"]].concat();
        let image = compile("cc", "hostile", &flags);
        let file = std::fs::read(&image.0).expect("it was compiled");
        let refusal = load(&file).expect_err(asks_for).to_string();
        assert!(refusal.contains(named), "{asks_for}: {refusal}");
    }
    let image = compile("cc", "hostile", &freestanding);
    let extension = load(&std::fs::read(&image.0).expect("it was compiled")).expect("it is sound");
    assert_eq!(extension.name, "hostile");
}

#[test]
fn mutated_images_never_panic() {
    static PASSED_HEADER: AtomicU64 = AtomicU64::new(0);
    const CASES: u32 = 10_000;
    let original = hello();
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..Default::default() };
    proptest!(config, |(changes in proptest::collection::vec(
        (any::<u32>(), any::<u8>(), 0..4u8), 1..8))| {
        let mut file = original.clone();
        for (at, byte, where_) in changes {
            // Headers and tables decide most; favour them over code.
            let span = match where_ {
                0 => 0x400,
                1 => 0x8000,
                _ => file.len(),
            };
            let at = (at as usize % span).max(6) % file.len();
            file[at] = byte;
        }
        let result = load(&file);
        if !matches!(&result, Err(ImageError::Malformed(why)) if why.contains("header")) {
            PASSED_HEADER.fetch_add(1, Ordering::Relaxed);
        }
    });
    let passed = PASSED_HEADER.load(Ordering::Relaxed);
    assert!(passed * 3 >= u64::from(CASES), "only {passed} passed the header checks");
}
