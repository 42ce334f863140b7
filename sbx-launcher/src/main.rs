//! The command `sbx-launcher`: see [`sbx_launcher::start`].
#![cfg_attr(all(not(test), target_env = "gnu"), no_main)]

/// What the C library calls; its arguments are those that `std::env` knows already.
#[cfg(all(not(test), target_env = "gnu"))]
#[expect(unsafe_code, reason = "a symbol of this name takes the place of Rust's own start")]
#[unsafe(no_mangle)]
extern "C" fn main() -> std::ffi::c_int {
    sbx_launcher::start::begin();
    std::process::exit(sbx_launcher::start::main())
}

#[cfg(not(all(not(test), target_env = "gnu")))]
fn main() {
    std::process::exit(sbx_launcher::start::main());
}
