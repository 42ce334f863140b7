//! The examples print what their READMEs say, and the commands what their help says.

use std::path::{Path, PathBuf};
use std::process::Command;

use integration::{built, launcher, run};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The indented blocks of a README: commands, and after the word `prints` what they print.
fn follow(example: &str) {
    follow_in(&[], example);
}

/// The same with a network of its own, in which every port is free.
fn follow_alone(example: &str) {
    follow_in(&["unshare", "--net", "--map-root-user"], example);
}

fn follow_in(place: &[&str], example: &str) {
    let readme = std::fs::read_to_string(root().join("examples").join(example).join("README.md"))
        .expect("every example has a README");
    let (before, after) = readme.split_once("\nprints\n").expect("it says what it prints");
    let block = |text: &str| -> String {
        text.lines()
            .filter_map(|line| line.strip_prefix("    "))
            .map(|l| l.to_owned() + "\n")
            .collect()
    };
    let commands = block(before).replace("cargo build --release\n", "");
    let expected = block(after.split("\n\n").nth(1).unwrap_or(after));
    let expected = if expected.is_empty() { block(after) } else { expected };
    // The release build may lie elsewhere than the README thinks.
    let bin = built("sbx-launcher").parent().expect("a folder").display().to_string();
    let commands = commands.replace("target/release", &bin);
    let up = if place.is_empty() { "" } else { "ip link set lo up\n" };
    let commands = format!("{up}{commands}");
    let argv = [place, &["sh", "-ec", &commands]].concat();
    let ended = run(Command::new(argv[0]).args(&argv[1..]).current_dir(root()));
    assert_eq!((ended.status, ended.stdout.as_str()), (0, expected.as_str()), "{}", ended.stderr);
}

#[test]
fn those_that_print_the_same_always() {
    for example in ["hello-upcall", "faults", "redirect", "pager"] {
        follow(example);
    }
}

#[test]
fn kv_cache() {
    follow("kv-cache");
}

#[test]
fn the_limit_of_a_cache_holds_for_entries_of_any_size() {
    let script = "
import json, sbx
box = sbx.current()
put, large = box.handler('kv.put'), bytes(7 << 20)
stats = lambda: json.loads(box.call('kv.stats'))
for key in range(80000): put(b'%016d' % key, bytes(80), 0)
try: put(b'large', large, 0)
except sbx.Failed as error: print(error)
put(b'large', large, 0)
print(len(box.call('kv.get', b'large')), stats()['bytes'] <= 8 << 20)
# A few entries in a table that has room for many.
put(b'other', large, 0)
print(stats()['bytes'] <= 8 << 20)
";
    let mut command = Command::new(built("sbx-launcher"));
    command.args(["run", "--config", "limit=8M", "--ext"]).arg(built("libkv_cache.so"));
    command.args(["--", "/usr/bin/python3", "-c", script]);
    command.env("PYTHONPATH", root().join("ext-api/python"));
    let ended = run(&mut command);
    let said = "65536 entries made no room for 7340048 bytes; put it again\n7340032 True\nTrue\n";
    assert_eq!(ended.stdout, said, "{}", ended.stderr);
}

#[test]
fn rate_limit() {
    follow("rate-limit");
    for (config, named) in
        [("keys=0", "keys=0: "), ("burst=0", "burst=0: "), ("rate=4294967296", "rate=4294967296: ")]
    {
        let image = built("librate_limit.so");
        let image = image.to_str().expect("a UTF-8 path");
        let refused = launcher(&["run", "--ext", image, "--config", config, "--", "/bin/true"]);
        assert!(refused.status == 125 && refused.stderr.contains(named), "{}", refused.stderr);
    }
}

#[test]
fn balancer() {
    if !nix::unistd::getuid().is_root() {
        return println!("skipped: only root can make network namespaces");
    }
    let name = format!("sbx-{}-try", std::process::id());
    let made = run(Command::new("ip").args(["netns", "add", &name]));
    if made.status != 0 {
        return println!("skipped: no network namespaces: {}", made.stderr.trim());
    }
    let _ = run(Command::new("ip").args(["netns", "del", &name]));
    follow("balancer");
}

#[test]
fn servers_on_the_network() {
    for example in ["net-echo", "dns", "memcached", "http-static", "forward", "hand-over"] {
        follow_alone(example);
    }
}

fn goals_and_rows(bench: &str) -> (Vec<Value>, Vec<Value>) {
    let ended = launcher(&["bench", bench, "--quick", "--json"]);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!(report["bench"], bench);
    let list = |key: &str| report[key].as_array().cloned().unwrap_or_default();
    (list("goals"), list("rows"))
}

#[test]
fn benchmarks_measure_every_goal() {
    for (bench, rows_min, goals) in [
        ("upcall", 17, 4),
        ("launch", 8, 5),
        ("kv", 11, 4),
        ("faults", 9, 7),
        ("events", 15, 9),
        ("delay", 32, 4),
        ("service", 2, 1),
        ("interpose", 15, 11),
        // Without memcached, PostgreSQL, node and iperf3, where these are missing.
        ("sockets", 70, 34),
        // Without forwarders, a veth pair and memcached itself, where these are missing.
        ("net", 83, 22),
        // Beside each other only.
        ("engine", 162, 0),
    ] {
        let (found, rows) = goals_and_rows(bench);
        assert!(rows.len() >= rows_min, "{bench}: {} rows", rows.len());
        assert_eq!(found.len(), goals, "{bench}");
        for goal in found {
            // A facility that is missing here is said.
            let why = goal["reason"].as_str();
            assert!(goal["met"].is_boolean() || why.is_some(), "{goal}");
            why.iter().for_each(|why| println!("{bench}: not measured: {why}"));
        }
        for row in rows {
            let ordered = row["min"].as_f64() <= row["median"].as_f64()
                && row["median"].as_f64() <= row["max"].as_f64();
            assert!(ordered && row["median"].as_f64() >= Some(0.0), "{row}");
        }
    }
}

#[test]
fn compressed_files_are_mapped() {
    let scratch = ["original", "packed"].map(integration::Scratch::new);
    let [original, packed] = scratch.each_ref().map(integration::Scratch::text);
    let mut random = integration::Random::new(7);
    let text: String = (0..300_000).map(|_| format!("word {}\n", random.below(900))).collect();
    std::fs::write(original, &text).expect("a scratch file");
    let caller = built("pager-caller");
    let caller = caller.to_str().expect("a UTF-8 path");
    let ended = run(Command::new(caller).args(["pack", original, packed]));
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    let image = built("libpager.so");
    let inside = |argv: &[&str]| {
        let mut command = Command::new(built("sbx-launcher"));
        run(command.arg("run").arg("--ext").arg(&image).arg("--").args(argv))
    };
    let ended = inside(&[caller, "check", packed, original]);
    let said = "a system call on an unfilled page: Bad address (os error 14)\nthreads: true\n\
                a child: true\nwhole: true\nunmapped: true\n";
    // It ends by reading where nothing is any more: that fault is its own.
    assert_eq!((ended.stdout.as_str(), ended.status), (said, 128 + 11), "{}", ended.stderr);
    assert!(inside(&[caller, "cat", packed]).stdout == text);
    let words = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/pager/python/words.py");
    let ended = inside(&["/usr/bin/python3", words, packed]);
    assert_eq!(ended.stdout, format!("{} bytes, 300000 lines\n", text.len()), "{}", ended.stderr);
    // Damaged, or none at all.
    std::fs::write(packed, "SBXpack1 and no more").expect("a scratch file");
    let ended = inside(&[caller, "cat", packed]);
    assert!(ended.status == 1 && ended.stderr.contains("it is cut off"), "{}", ended.stderr);
    let ended = inside(&[caller, "cat", original]);
    assert!(ended.status == 1 && ended.stderr.contains("no packed file"), "{}", ended.stderr);
}

#[test]
fn a_path_of_a_compressed_file_may_lead_elsewhere_and_what_is_mapped_is_for_reading() {
    let folder = integration::Scratch::new("pager-paths");
    let caller = built("pager-caller");
    for name in ["A", "B"] {
        std::fs::create_dir_all(folder.0.join(name)).expect("a scratch folder");
        let [original, packed] = ["x", "packed"].map(|file| folder.0.join(name).join(file));
        std::fs::write(&original, name.repeat(100_000)).expect("a scratch file");
        let ended = run(Command::new(&caller).arg("pack").args([original, packed]));
        assert_eq!(ended.status, 0, "{}", ended.stderr);
    }
    let script = "
import ctypes, os, sbx, sys
box = sbx.current()
def view(path):
    at = box.call('pager.map', path)
    return (ctypes.c_char * box.call('pager.len', at)).from_address(at)
os.chdir(sys.argv[1] + '/A')
first = view('packed')
os.chdir('../B')
print(first[0], view('packed')[0])
os.replace('packed', '../A/packed')
print(view('../A/packed')[99999], first[99999])
# To where a block is filled, and to where none is.
for at in (0, 70000):
    child = os.fork()
    if not child:
        first[at] = b'x'
        os._exit(0)
    print(os.waitpid(child, 0)[1])
os.mkfifo('fifo')
try: view('fifo')
except sbx.Failed as error: print(error)
";
    let mut command = Command::new(built("sbx-launcher"));
    command.arg("run").arg("--ext").arg(built("libpager.so"));
    command.args(["--", "/usr/bin/python3", "-c", script, folder.text()]);
    command.env("PYTHONPATH", root().join("ext-api/python"));
    let ended = run(&mut command);
    let said = "b'A' b'B'\nb'B' b'A'\n11\n11\nfifo: it is no file\n";
    assert_eq!(ended.stdout, said, "{}", ended.stderr);
}

#[test]
fn processes_of_the_cpu_manager_that_end_are_forgotten() {
    let script = "
import os, sbx, time
box = sbx.current()
def child(first=lambda: None):
    pid = os.fork()
    if not pid:
        first()
        while True: time.sleep(1)
    return pid
def end(pid):
    os.kill(pid, 9)
    os.waitpid(pid, 0)
def until(done):
    since = time.time()
    while not done() and time.time() - since < 10: time.sleep(0.01)
    return done()
def has_nice(value):
    return until(lambda: os.getpriority(os.PRIO_PROCESS, other) == value)
def add_late_task():
    box.call('manager.add_task', 0, 100000000, 50000000)
    began = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 50000000
    return child(lambda: box.call('manager.progress', 0, began, 0))
def add(pid):
    try: box.call('manager.add_other', pid)
    except sbx.Failed: return False
    return True
other = child()
add(other)
box.call('manager.manage_in_context', True)
task = add_late_task()
print(has_nice(19))
end(task)
print(has_nice(0))
task = add_late_task()
print(has_nice(19))
box.call('manager.forget')
print(has_nice(0))
for pid in (task, other): end(pid)
for _ in range(100):
    other = child()
    if not until(lambda: add(other)): print('no room')
    end(other)
";
    let mut command = Command::new(built("sbx-launcher"));
    command.arg("run").arg("--ext").arg(built("libcpu_manager.so"));
    command.args(["--", "/usr/bin/python3", "-c", script]);
    command.env("PYTHONPATH", root().join("ext-api/python"));
    let ended = run(&mut command);
    assert_eq!(ended.stdout, "True\n".repeat(4), "{}", ended.stderr);
}

#[test]
fn a_benchmark_is_drawn() {
    let picture = integration::Scratch::new("plot.svg");
    let ended = launcher(&["bench", "upcall", "--quick", "--plot", picture.text()]);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains("null upcall, full gate"));
    let svg = std::fs::read_to_string(&picture.0).expect("a file");
    assert!(svg.starts_with("<svg") && svg.contains("getppid"));
    let ended = launcher(&["bench", "upcall", "--quick", "--plot", "/no/such/folder/x.svg"]);
    assert!(ended.status == 125 && ended.stderr.contains("/no/such/folder/x.svg"));
    let ended = launcher(&["bench", "nonsense"]);
    assert!(ended.status == 125 && ended.stderr.contains("there are upcall, kv, launch"));
}

#[test]
fn the_doctor_and_the_policy_commands() {
    let report: Value =
        serde_json::from_str(&launcher(&["doctor", "--json"]).stdout).expect("JSON");
    assert!(report["features"].as_array().is_some_and(|features| features.len() > 10));
    assert!(launcher(&["doctor"]).stdout.contains("mseal"));
    let shown = launcher(&["policy", "show"]).stdout;
    assert!(shown.contains("madvise") && shown.contains("io_uring_setup"), "{shown}");
    let file = integration::Scratch::new("policy.toml");
    std::fs::write(
        &file.0,
        "version = 1\n[[syscall]]\nnames = [\"mkdirr\"]\naction = \"kill\"\nreason = \"r\"\n",
    )
    .expect("it can be written");
    let ended = launcher(&["policy", "check", file.text()]);
    assert!(ended.status == 125 && ended.stderr.contains("mkdirr"), "{}", ended.stderr);
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in [
        &["run"][..],
        &["up"],
        &["down"],
        &["ls"],
        &["ext", "load"],
        &["ext", "unload"],
        &["ext", "ls"],
        &["call"],
        &["ps"],
        &["bench"],
        &["doctor"],
        &["policy", "check"],
        &["policy", "show"],
        &["demo"],
        &["log"],
    ] {
        let args: Vec<&str> = command.iter().copied().chain(["--help"]).collect();
        let ended = launcher(&args);
        assert!(ended.status == 0 && ended.stdout.contains("Example: sbx-launcher"), "{command:?}");
    }
}
