//! Builds the image of slot 0, places it, and builds the extension of `trace` and the library that is
//! preloaded where tracing is refused, for the launcher to include: one file to install. Reads the built-in
//! policies. Links the launcher statically where the C library can be.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use ext_api::limits::{BASE_MIN, HUGE_PAGE_LEN};
use libos::image::{self, NoImports};
use libos::layout::{LEN_MIN, Place};
use text::{ConditionText, PolicyText, RuleText, ValueText};
use toml::Spanned;

#[path = "src/policy/text.rs"]
mod text;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("..");
    for source in
        ["libos/image", "libos/src", "ext-api", "examples/trace/ext", "sbx-launcher/preload"]
    {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let images = [
        ("SBX_LIBOS_IMAGE", "libos/image/Cargo.toml", "libsbx_libos.so"),
        ("SBX_TRACE_IMAGE", "examples/trace/ext/Cargo.toml", "libtrace.so"),
        ("SBX_PRELOAD_IMAGE", "sbx-launcher/preload/Cargo.toml", "libsbx_preload.so"),
    ];
    let [libos, ..] = images.map(|(variable, manifest, file)| {
        let image = build(&root.join(manifest), file);
        println!("cargo::rustc-env={variable}={}", image.display());
        image
    });
    place_libos(&std::fs::read(libos).unwrap());
    for name in ["base", "armed"] {
        read_policy(name);
    }
    link_statically();
}

/// Place libos in slot 0 of a region at the lowest base, and find the words that depend on the base.
fn place_libos(file: &[u8]) {
    let at = |base| {
        let place = Place::new(base, LEN_MIN).unwrap();
        image::place(file, 0, place, &NoImports).unwrap_or_else(|error| panic!("libos: {error}"))
    };
    let (image, moved) = (at(BASE_MIN), at(BASE_MIN + HUGE_PAGE_LEN));
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let mut again = image.bytes.clone();
    let mut addresses = Vec::new();
    for at in (0..again.len() - 7).step_by(8) {
        if word(&again, at) != word(&moved.bytes, at) {
            let value = word(&again, at) + HUGE_PAGE_LEN as u64;
            again[at..at + 8].copy_from_slice(&value.to_le_bytes());
            addresses.push(at);
        }
    }
    assert!(again == moved.bytes, "libos depends on its base by more than whole addresses");
    let folder = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    let bytes = folder.join("slot_zero.bytes");
    std::fs::write(&bytes, &image.bytes).unwrap();
    let text = format!(
        "Placed {{ base: {BASE_MIN}, bias: {}, start: {}, boundary: {}, text: {:?}, eh_frame_hdr: {}, \
         tls: {:?}, bytes: include_bytes!({bytes:?}), addresses: &{addresses:?}, symbols: &{:?} }}",
        image.bias,
        image.start,
        image.boundary,
        image.text,
        image.eh_frame_hdr,
        image.tls,
        image.exports
    );
    std::fs::write(folder.join("slot_zero.rs"), text).unwrap();
}

/// Make the text of a built-in policy an expression: what it says, and where.
fn read_policy(name: &str) {
    let file = format!("policies/{name}.toml");
    println!("cargo::rerun-if-changed={file}");
    let text = std::fs::read_to_string(&file).unwrap();
    let parsed: PolicyText = toml::from_str(&text).unwrap_or_else(|e| panic!("{file}: {e}"));
    let rules = parsed.syscall.iter().map(|rule| at(rule, rule_text));
    let version = at(&parsed.version, i64::to_string);
    let text = format!("PolicyText {{ version: {version}, syscall: {} }}", list(rules));
    let folder = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    std::fs::write(folder.join(format!("{name}.rs")), text).unwrap();
}

fn rule_text(rule: &RuleText) -> String {
    let names = at(&rule.names, |names| list(names.iter().map(|name| at(name, owned))));
    let (action, reason) = (at(&rule.action, owned), at(&rule.reason, owned));
    let when = list(rule.when.iter().map(|condition| at(condition, condition_text)));
    format!("RuleText {{ names: {names}, action: {action}, reason: {reason}, when: {when} }}")
}

fn condition_text(condition: &ConditionText) -> String {
    let ConditionText { arg, op, value, bits } = condition;
    let op = owned(op);
    let value = match value {
        ValueText::Number(number) => format!("Number({number})"),
        ValueText::Name(name) => format!("Name({})", owned(name)),
    };
    format!("ConditionText {{ arg: {arg}, op: {op}, value: ValueText::{value}, bits: {bits:?} }}")
}

fn at<T>(it: &Spanned<T>, value: impl Fn(&T) -> String) -> String {
    format!("Spanned::new({:?}, {})", it.span(), value(it.get_ref()))
}

fn owned(text: &String) -> String {
    format!("{text:?}.to_owned()")
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("vec![{}]", items.collect::<Vec<_>>().join(", "))
}

/// Have the launcher need no shared library: a quarter of a launch was the loading of three of them.
///
/// rustc asks for shared ones by name, and its own switch for this (`crt-static`) would hold for
/// extensions and macros as well. So these names lead to the archives, for the launcher alone. Without
/// archives, as on systems that keep them in a package of their own, it is linked as usual.
fn link_statically() {
    let libc = ["c", "m", "rt", "pthread", "util", "dl"];
    let mut names: Vec<_> = libc.map(|name| (name, format!("lib{name}.a"))).into();
    names.push(("gcc_s", "libgcc_eh.a".to_owned()));
    let found: Option<Vec<_>> =
        names.into_iter().map(|(name, file)| Some((name, archive(&file)?))).collect();
    let Some(found) = found.filter(|_| env::var_os("CARGO_CFG_TARGET_ENV").unwrap() == "gnu")
    else {
        return;
    };
    let folder = PathBuf::from(env::var_os("OUT_DIR").unwrap()).join("archives");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, archive) in found {
        let script = format!("INPUT({})\n", archive.display());
        std::fs::write(folder.join(format!("lib{name}.a")), script).unwrap();
    }
    println!("cargo::rustc-link-arg-bins=-L{}", folder.display());
    println!("cargo::rustc-link-arg-bins=-static-pie");
}

/// Where the C compiler, which is the linker, has an archive.
fn archive(name: &str) -> Option<PathBuf> {
    let output = Command::new("cc").arg(format!("-print-file-name={name}")).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.is_absolute().then(|| path.canonicalize().ok()).flatten()
}

/// Build an image; its file.
fn build(manifest: &Path, file: &str) -> PathBuf {
    let target = PathBuf::from(env::var_os("OUT_DIR").unwrap()).join("images");
    let status = Command::new(env::var_os("CARGO").unwrap())
        .args(["build", "--release", "--locked", "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        // The launcher carries them: nobody debugs from there.
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        // Clippy and the like are for the crate that they were asked for.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CLIPPY_ARGS")
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "{} does not build", manifest.display());
    target.join("release").join(file)
}
