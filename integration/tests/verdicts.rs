//! Verdicts on system calls hold, whatever a program gives them, and whatever it does meanwhile.

use integration::{Ended, Sandbox, built, compile, launcher};

/// Load an extension with a configuration.
fn load(sandbox: &Sandbox, image: &str, config: &str) -> Ended {
    let image = built(image);
    let image = image.to_str().expect("a UTF-8 path");
    launcher(&["ext", "load", &sandbox.name, image, "--config", config])
}

#[test]
fn a_path_that_is_not_there_when_it_is_looked_at_is_not_there_for_the_kernel_either() {
    let program = compile("gcc", "nowhere", &[]);
    let sandbox = Sandbox::up("nowhere");
    assert_eq!(load(&sandbox, "libaudit.so", "deny=/etc/hostname").status, 0);
    assert_eq!(load(&sandbox, "libtrace.so", "print=open:openat:write:execve").status, 0);
    let ended = sandbox.run(&[program.text(), "/etc/hostname"]);
    assert_eq!(ended.stdout, "0 opened, 0 wrong\n", "{}", ended.stderr);
    // Nor has a handler failed.
    let log = launcher(&["log", &sandbox.name]).stdout;
    assert!(!log.contains("fault"), "{log}");
    let ended = sandbox.run(&[program.text(), "/etc/services"]);
    let opened = ended.stdout.strip_suffix(" opened, 0 wrong\n").map(str::parse::<u64>);
    assert!(opened.is_some_and(|opened| opened.is_ok_and(|n| n >= 50_000)), "{}", ended.stdout);
}
