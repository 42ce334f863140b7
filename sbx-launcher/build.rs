//! Builds the image of slot 0 and the extension of `trace`, for the launcher to include: one file to
//! install.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("..");
    for source in ["libos/image", "libos/src", "ext-api", "examples/trace/ext"] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let images = [
        ("SBX_LIBOS_IMAGE", "libos/image/Cargo.toml", "libsbx_libos.so"),
        ("SBX_TRACE_IMAGE", "examples/trace/ext/Cargo.toml", "libtrace.so"),
    ];
    for (variable, manifest, file) in images {
        println!("cargo::rustc-env={variable}={}", build(&root.join(manifest), file).display());
    }
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
        // Clippy and the like are for the crate that they were asked for.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CLIPPY_ARGS")
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "{} does not build", manifest.display());
    target.join("release").join(file)
}
