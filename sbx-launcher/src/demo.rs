//! `sbx-launcher demo`: a python3 script, a C program, a static C program and a linked Rust
//! program share one extension, each unmodified by us and each in its own process.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::policy::Policy;
use crate::run;
use crate::sandbox::terms::Terms;

const SCRIPT: &str = r#"
echo
echo "one extension, one copy of its code and state; every line is a process of its own:"
printf '%-22s %s\n' program "what it got from the extension"
for turn in 1 2; do
    printf '%-22s ' "python3"
    python3 "$SBX_DEMO/python/hello.py" || echo "(no python3 here)"
    for kind in dynamic static; do
        printf '%-22s ' "C, $kind"
        if [ -x "$SBX_DEMO_TMP/hello-$kind" ]; then "$SBX_DEMO_TMP/hello-$kind"; else echo "(no C compiler here)"; fi
    done
    printf '%-22s ' "Rust, linked"
    "$SBX_DEMO_BIN/hello-caller" | paste -sd' '
done
echo
echo "what an upcall costs in this process, in one run:"
"$SBX_DEMO_BIN/hello-caller" bench
"#;

/// Run the demonstration; its exit status.
///
/// # Errors
/// The example is not built, or the sandbox cannot be made.
pub fn run() -> Result<i32, Box<dyn std::error::Error>> {
    let bin = std::env::current_exe()?.parent().map(PathBuf::from).ok_or("no folder")?;
    let image = bin.join("libhello_upcall.so");
    if !image.is_file() || !bin.join("hello-caller").is_file() {
        return Err("the demo's example is not built: run `cargo build --release` first".into());
    }
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hello-upcall");
    let scratch = std::env::temp_dir().join(format!("sbx-demo-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    for (kind, flags) in [("dynamic", &[][..]), ("static", &["-static"][..])] {
        // A machine without a C compiler shows the other programs.
        let _ = std::process::Command::new("cc")
            .args(flags)
            .arg("-O2")
            .arg("-I")
            .arg(example.join("../../ext-api/c"))
            .arg("-o")
            .arg(scratch.join(format!("hello-{kind}")))
            .arg(example.join("c/hello.c"))
            .status();
    }
    let argv = ["/usr/bin/env", "sh", "-c"].map(OsString::from).to_vec();
    let variables = [("SBX_DEMO", &example), ("SBX_DEMO_TMP", &scratch), ("SBX_DEMO_BIN", &bin)];
    let exports: String =
        variables.iter().map(|(key, path)| format!("{key}='{}'\n", path.display())).collect();
    let argv = argv.into_iter().chain([OsString::from(exports + SCRIPT)]).collect();
    let status = run::in_own_sandbox(
        run::Command {
            argv,
            extensions: vec![image],
            terms: Terms::default(),
            policy: Policy::base()?,
            sockets: false,
            len: libos::layout::LEN_DEFAULT,
        },
        |_| (),
    );
    let _ = std::fs::remove_dir_all(&scratch);
    status
}
