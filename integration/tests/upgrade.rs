//! Another version of an extension takes its place, with its state.

use std::io::BufRead;
use std::process::{Child, Command, Stdio};

use integration::{Sandbox, Scratch, built, full, launcher, talk_with};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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
    assert!(upgrades >= if full() { 1_000 } else { 25 }, "only {upgrades} upgrades");
    // Every call was counted once, by one version or another.
    assert_eq!(sandbox.call(&["ledger.count"]).stdout, format!("{}\n", calls + 1));
    assert_eq!(sandbox.json(&["ps"])["uses"][2]["used"], 2);
}

#[test]
fn who_is_inside_an_extension_that_is_unloaded_is_told() {
    let sandbox = Sandbox::up("inside");
    sandbox.load(&built("libledger.so"));
    let call = ["call", &sandbox.name, "ledger.hold", "20000"];
    let mut inside = Command::new(built("sbx-launcher"));
    let inside = inside.args(call).stderr(Stdio::piped()).spawn().expect("the launcher is built");
    let of = |ps: &serde_json::Value| ps["uses"][1]["used"].as_u64().unwrap_or(0);
    while of(&sandbox.json(&["ps"])) == 0 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(launcher(&["ext", "unload", &sandbox.name, "ledger"]).status, 0);
    let ended = inside.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains("was unloaded"), "{said}");
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

#[test]
fn a_snapshot_waits_for_no_upcall_of_a_process_that_has_been_killed() {
    let file = Scratch::new("snapshot-killed");
    let sandbox = Sandbox::up("snapshot-killed");
    sandbox.load(&built("libledger.so"));
    let script = "import os, sbx\nbox = sbx.current()\nprint(os.getpid(), flush=True)\n\
                  box.call('ledger.linger', 4500000)";
    let mut command = Command::new(built("sbx-launcher"));
    command.args(["run", "--sandbox", &sandbox.name, "--", "/usr/bin/python3", "-c", script]);
    command.env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/../ext-api/python"));
    let (mut inside, mut lines) = talk_with(&mut command);
    let mut line = String::new();
    lines.read_line(&mut line).expect("it writes");
    let pid = Pid::from_raw(line.trim().parse().expect("its pid"));
    let moment = std::time::Duration::from_millis(200);
    std::thread::sleep(moment);
    let ended = std::thread::scope(|scope| {
        let snapshot = scope.spawn(|| launcher(&["snapshot", &sandbox.name, file.text()]));
        std::thread::sleep(moment);
        kill(pid, Signal::SIGKILL).expect("it is there");
        snapshot.join().expect("no panic")
    });
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
    let _ = inside.wait();
}

#[test]
fn state_survives_its_sandbox() {
    let file = Scratch::new("snapshot");
    let sandbox = Sandbox::up("snapshot");
    sandbox.load(&built("libledger.so"));
    sandbox.load(&built("libkv_cache.so"));
    assert_eq!(sandbox.call(&["ledger.fill", "100000"]).stdout, "100000\n");
    assert_eq!(sandbox.call(&["ledger.count"]).stdout, "1\n");
    assert_eq!(sandbox.call(&["kv.put", "name", "value", "0"]).status, 0);
    let ended = launcher(&["snapshot", &sandbox.name, file.text()]);
    assert_eq!(
        (ended.status, ended.stdout.as_str()),
        (0, "wrote 2 extensions\n"),
        "{}",
        ended.stderr
    );
    // The sandbox that it was taken from goes on.
    assert_eq!(sandbox.call(&["ledger.count"]).stdout, "2\n");
    let name = sandbox.name.clone();
    drop(sandbox);
    let up = |file: &str| launcher(&["up", &name, "--restore", file]);
    // Damaged anywhere, cut short, or no snapshot at all.
    let whole = std::fs::read(&file.0).expect("it was written");
    let damaged = Scratch::new("damaged");
    for at in [9, 60, whole.len() / 2, whole.len() - 4] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&damaged.0, bytes).expect("a scratch file");
        let ended = up(damaged.text());
        assert!(
            ended.status == 125 && ended.stderr.contains("cannot be restored"),
            "{at}: {ended:?}"
        );
    }
    std::fs::write(&damaged.0, &whole[..whole.len() - 100]).expect("a scratch file");
    assert!(up(damaged.text()).stderr.contains("cut short"));
    assert!(up("/etc/passwd").stderr.contains("cannot be restored"));
    let ended = up(file.text());
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    let sandbox = Sandbox { name };
    assert_eq!(sandbox.call(&["ledger.kept"]).stdout, "10000016\n");
    assert_eq!(sandbox.call(&["ledger.count"]).stdout, "2\n");
    assert_eq!(sandbox.call(&["kv.get", "name"]).stdout, "value\n");
    assert_eq!(sandbox.call(&["ledger.fill", "100010"]).stdout, "100010\n");
}
