//! Links the image: no libc, no start files, the compiler's own unwinder inside.

fn main() {
    for arg in ["-nostdlib", "-nostartfiles", "-Wl,-Bsymbolic", "-Wl,--no-undefined"] {
        println!("cargo::rustc-link-arg={arg}");
    }
    println!("cargo::rustc-link-arg=-l:libgcc_eh.a");
    println!("cargo::rerun-if-changed=build.rs");
}
