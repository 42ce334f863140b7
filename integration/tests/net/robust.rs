//! What others do wrong, and what goes on all the same.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::{Sandbox, built, launcher};

use super::{Program, all_buffers_come_back, ask_udp, at, free_port, load, row, shoot, udp, until};

#[test]
fn datagrams_that_nobody_answers_keep_no_other_port_from_being_served() {
    let sandbox = Sandbox::up("net-nobody");
    load(&sandbox, "libnet_echo.so", 9000);
    load(&sandbox, "libhand_over.so", 9100);
    let (jobs, echo) = (udp(at(&sandbox, "udp 9100")), udp(at(&sandbox, "udp 9000")));
    let ask_for_more = || (0..100).for_each(|_| drop(jobs.send(b"job")));
    // More than wait in the pool of events, and then more than there are buffers.
    until("the pool is full", || {
        ask_for_more();
        let seen = row(&sandbox, "udp 9100");
        let count = |what: &str| seen[what].as_u64().expect("a count");
        count("received") > count("handed") && count("lost") > 0
    });
    for _ in 0..20 {
        ask_for_more();
        sleep(Duration::from_millis(10));
    }
    assert_eq!(ask_udp(&echo, b"hello"), b"hello");
    assert_eq!(launcher(&["ext", "unload", &sandbox.name, "hand"]).status, 0);
    all_buffers_come_back(&sandbox);
}

fn ask(server: std::net::SocketAddr) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(server).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"hello").ok()?;
    let mut got = vec![0; 5];
    stream.read_exact(&mut got).ok()?;
    Some(got)
}

#[test]
fn a_participant_that_serves_follows_an_extension_that_is_loaded_again() {
    let sandbox = Sandbox::up("net-serve-again");
    load(&sandbox, "libnet_echo.so", 9000);
    let (place, own) = (free_port(), built("sbx-launcher"));
    let (text, own) = (place.to_string(), own.to_string_lossy().into_owned());
    let run = [&own, "run", "--sandbox", &sandbox.name, "--", &own];
    let mut program = Program::start(&[&run[..], &["serve", "9000", "--at", &text]].concat());
    let mut line = String::new();
    let said = program.0.stdout.take().expect("a pipe");
    BufReader::new(said).read_line(&mut line).expect("it says what it serves");
    assert_eq!(line, format!("echo.stream serves {text}\n"));
    assert_eq!(ask(place).as_deref(), Some(&b"hello"[..]));
    for _ in 0..2 {
        assert_eq!(launcher(&["ext", "unload", &sandbox.name, "echo"]).status, 0);
        assert_eq!(ask(place), None);
        load(&sandbox, "libnet_echo.so", 9000);
        until("it serves the one that is there", || ask(place).is_some());
    }
    // Where it cannot listen it says so.
    let taken = [&run[..], &["serve", "9000", "--at", &text]].concat();
    let ended = super::command(&taken);
    let [what, advice] = [format!("listening at {text}: "), "--at ADDRESS:PORT".to_owned()];
    assert!(ended.stderr.contains(&what) && ended.stderr.contains(&advice), "{}", ended.stderr);
    // The launcher ends its program.
    let pid = nix::unistd::Pid::from_raw(program.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it is there");
    program.0.wait().expect("its end");
}

/// Processes in whose command line this is.
fn processes_with(text: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").expect("a folder").flatten();
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(text)).collect()
}

#[test]
fn a_benchmark_that_is_killed_leaves_nothing_behind() {
    if !nix::unistd::getuid().is_root() {
        println!("skipped: only root can make network namespaces");
        return;
    }
    // Its servers' ports are fixed: in a namespace of its own nobody else has them.
    let own = built("sbx-launcher").to_string_lossy().into_owned();
    let script = format!("ip link set lo up && exec {own} bench net --quick --rounds 1");
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut bench = Program(command.stderr(Stdio::null()).spawn().expect("unshare"));
    let pid = bench.0.id();
    let namespaces = ["s", "r"].map(|end| format!("/run/netns/sbx-bench-{pid}{end}"));
    let has_sandbox = |kind: &str| launcher(&["ls"]).stdout.contains(&format!("{kind}-{pid}"));
    let late = Instant::now() + Duration::from_secs(60);
    while !(has_sandbox("bench-memcached") && Path::new(&namespaces[1]).exists()) {
        let ended = bench.0.try_wait().expect("a child");
        assert!(ended.is_none() && Instant::now() < late, "it does not begin: {ended:?}");
        sleep(Duration::from_millis(50));
    }
    shoot(pid.into());
    bench.0.wait().expect("its end");
    until("its sandboxes go", || !has_sandbox("bench-net") && !has_sandbox("bench-memcached"));
    until("its namespaces go", || !namespaces.iter().any(|path| Path::new(path).exists()));
    until("its programs go", || {
        let kinds = ["bench-net", "bench-memcached"].map(|kind| format!("{kind}-{pid}"));
        kinds.iter().all(|kind| processes_with(kind).is_empty())
    });
    let folder = std::env::temp_dir().join(format!("bench-net-{pid}"));
    until("its folder goes", || !folder.exists());
}
