//! Builds the image of slot 0 and leaves its path for `zones` to include: one file to install.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("..");
    let target = PathBuf::from(env::var_os("OUT_DIR").unwrap()).join("libos");
    for source in ["libos/image", "libos/src", "ext-api/src/abi.rs", "ext-api/src/limits.rs"] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let status = Command::new(env::var_os("CARGO").unwrap())
        .args(["build", "--release", "--locked", "--manifest-path"])
        .arg(root.join("libos/image/Cargo.toml"))
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
    assert!(status.success(), "the libos image does not build");
    let image = target.join("release/libsbx_libos.so");
    println!("cargo::rustc-env=SBX_LIBOS_IMAGE={}", image.display());
}
