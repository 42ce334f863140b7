//! Another version of an extension takes its place, with its state.

use std::process::{Child, Command, Stdio};

use integration::{Sandbox, built, full, launcher};

fn path(name: &str) -> String {
    built(name).to_str().expect("a UTF-8 path").to_owned()
}

fn counter(sandbox: &Sandbox, seconds: u64) -> Child {
    Command::new(built("sbx-launcher"))
        .args(["run", "--sandbox", &sandbox.name, "--", &path("counts"), &seconds.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the launcher is built")
}

#[test]
fn no_call_is_lost_while_versions_change() {
    let seconds = if full() { 40 } else { 6 };
    let sandbox = Sandbox::up("upgrade");
    sandbox.load(&built("libledger.so"));
    let counters = [counter(&sandbox, seconds), counter(&sandbox, seconds)];
    let (mut upgrades, start) = (0, std::time::Instant::now());
    while start.elapsed().as_secs() + 1 < seconds {
        let ended = launcher(&["ext", "upgrade", &sandbox.name, &path("libledger.so")]);
        assert_eq!(ended.status, 0, "after {upgrades}: {}", ended.stderr);
        upgrades += 1;
    }
    let calls: u64 = counters
        .map(|child| {
            let ended = child.wait_with_output().expect("it ends");
            let said = String::from_utf8_lossy(&ended.stdout).into_owned();
            let error = String::from_utf8_lossy(&ended.stderr);
            said.trim().parse::<u64>().unwrap_or_else(|_| panic!("{error}"))
        })
        .iter()
        .sum();
    println!("{upgrades} upgrades during {calls} calls");
    assert!(upgrades >= if full() { 1_000 } else { 100 }, "only {upgrades} upgrades");
    // Every call was counted once, by one version or another.
    assert_eq!(sandbox.call(&["ledger.count"]).stdout, format!("{}\n", calls + 1));
    assert_eq!(sandbox.json(&["ps"])["uses"][2]["used"], 2);
}

#[test]
fn what_cannot_be_upgraded_stays() {
    let sandbox = Sandbox::up("stays");
    sandbox.load(&built("libledger.so"));
    assert_eq!(sandbox.call(&["ledger.count"]).stdout, "1\n");
    let upgrade = |file: &str, config: &[&str]| {
        launcher(&[&["ext", "upgrade", &sandbox.name, file], config].concat()).stderr
    };
    let ledger = path("libledger.so");
    let refused = upgrade(&ledger, &["--config", "refuse=true"]);
    assert!(refused.contains("as it was told"), "{refused}");
    let unknown = upgrade(&path("libhello_upcall.so"), &[]);
    assert!(unknown.contains("no extension named hello"), "{unknown}");
    sandbox.load_hello();
    let without = upgrade(&path("libhello_upcall.so"), &[]);
    assert!(without.contains("has no #[save]"), "{without}");
    assert!(upgrade("/etc/passwd", &[]).contains("not a usable ELF image"));
    assert_eq!(sandbox.call(&["ledger.count"]).stdout, "2\n");
    // An upcall that does not end keeps the old version.
    let mut holder = Command::new(built("sbx-launcher"))
        .args(["call", &sandbox.name, "ledger.hold", "2500"])
        .stdout(Stdio::null())
        .spawn()
        .expect("the launcher is built");
    std::thread::sleep(std::time::Duration::from_millis(300));
    let held = upgrade(&ledger, &[]);
    assert!(held.contains("does not end"), "{held}");
    assert_eq!(sandbox.call(&["ledger.count"]).stdout, "3\n");
    assert!(holder.wait().expect("it was started").success());
    assert_eq!(upgrade(&ledger, &[]), "");
    assert_eq!(sandbox.call(&["ledger.count"]).stdout, "4\n");
}
