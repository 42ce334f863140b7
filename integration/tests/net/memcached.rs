//! memcached's protocol: its clients, and a real memcached beside.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use integration::carried::{carried, carrying};
use integration::{Random, Sandbox, Scratch, built, full};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{
    PATIENCE, Program, all_buffers_come_back, at, command, free_port, load, row, said, until,
};

/// A sandbox that serves kv-cache's entries, and where.
fn memcached(test: &str) -> (Sandbox, SocketAddr) {
    let sandbox = Sandbox::up(test);
    sandbox.load(&built("libkv_cache.so"));
    load(&sandbox, "libmemcached.so", 11211);
    let at = at(&sandbox, "tcp 11211");
    (sandbox, at)
}

#[test]
fn memcached_clients_find_what_participants_store() {
    let (sandbox, server) = memcached("net-memcached");
    let servers = format!("--servers={server}");
    assert_eq!(sandbox.call(&["kv.put", "ours", "from kv", "0"]).status, 0);
    assert_eq!(said(&["memccat", &servers, "ours"]).trim_end(), "from kv");
    let folder = Scratch::new("memcached");
    std::fs::create_dir(&folder.0).expect("made");
    for (name, len) in [("theirs", 7), ("long", 1 << 20), ("empty", 0)] {
        let mut random = Random::new(len);
        let bytes: Vec<u8> = (0..len).map(|_| b'a' + random.below(26) as u8).collect();
        let path = folder.0.join(name);
        std::fs::write(&path, &bytes).expect("written");
        said(&["memccp", &servers, path.to_str().expect("a UTF-8 path")]);
        let got = said(&["memccat", &servers, name]);
        assert!(got.trim_end().as_bytes() == bytes, "{name}: {} bytes", got.len());
        let direct = sandbox.call(&["kv.get", name]).stdout;
        assert!(direct.trim_end().as_bytes() == bytes, "{name}: {} bytes", direct.len());
    }
    said(&["memcrm", &servers, "theirs"]);
    assert_ne!(command(&["memcexist", &servers, "theirs"]).status, 0);
    assert!(said(&["memcstat", &servers]).contains("curr_items: 3"));
    let host = ["-h", "127.0.0.1", "-p", &server.port().to_string()].map(str::to_owned);
    let capable = said(&["memccapable", "-a", &host[0], &host[1], &host[2], &host[3]]);
    assert!(capable.contains("All tests passed"), "{capable}");
    let load = ["--concurrency=8", "--execute-number=500", "--test=set"];
    said(&[&["memcslap", &servers][..], &load].concat());
    said(&["memcflush", &servers]);
    assert_eq!(sandbox.call(&["kv.len"]).stdout.trim_end(), "0");
    assert_eq!(row(&sandbox, "tcp 11211")["failed"], 0);
    all_buffers_come_back(&sandbox);
}

/// A command in a sandbox that is told to end with the value: killing its launcher would leave it.
struct Ended(Program);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.0.wait();
    }
}

#[test]
fn memcached_clients_in_the_sandbox_are_served_through_the_region() {
    let sandbox = carrying("net-near");
    sandbox.load(&built("libkv_cache.so"));
    load(&sandbox, "libmemcached.so", 11211);
    let at = free_port().to_string();
    let launcher = built("sbx-launcher");
    let launcher = launcher.to_str().expect("a UTF-8 path");
    let serve = [launcher, "serve", "11211", "--at", &at];
    let outside = command(&serve);
    assert!(outside.status != 0 && outside.stderr.contains("run --sandbox"), "{outside:?}");
    let nobody = sandbox.run(&[launcher, "serve", "11212", "--at", &at]);
    assert!(nobody.status != 0 && nobody.stderr.contains("tcp 11212"), "{nobody:?}");
    let run = [launcher, "run", "--sandbox", &sandbox.name, "--"];
    let _server = Ended(Program::start(&[&run[..], &serve].concat()));
    until("it listens", || TcpStream::connect(&at).is_ok());
    let servers = format!("--servers={at}");
    let folder = Scratch::new("near");
    std::fs::create_dir(&folder.0).expect("made");
    let path = folder.0.join("long").to_str().expect("a UTF-8 path").to_owned();
    let mut random = Random::new(1);
    let bytes: Vec<u8> = (0..1 << 16).map(|_| b'a' + random.below(26) as u8).collect();
    std::fs::write(&path, &bytes).expect("written");
    assert_eq!(sandbox.run(&["memccp", &servers, &path]).status, 0);
    let got = sandbox.run(&["memccat", &servers, "long"]);
    assert!(got.stdout.trim_end().as_bytes() == bytes, "{} bytes", got.stdout.len());
    let load = ["--concurrency=4", "--execute-number=500", "--test=set"];
    assert_eq!(sandbox.run(&[&["memcslap", &servers][..], &load].concat()).status, 0);
    // From outside it is reached as well, by the kernel.
    assert!(said(&["memccat", &servers, "long"]).trim_end().as_bytes() == bytes);
    let (share, bytes) = carried(&sandbox);
    assert!(share > 0.95 && bytes > 2_000_000, "{share} of {bytes}");
}

#[test]
fn memcached_does_not_know_the_difference() {
    let (sandbox, ours) = memcached("net-difference");
    let theirs = free_port();
    let port = theirs.port().to_string();
    // One thread: others that look at an entry keep memcached from counting in place.
    let alone = ["-t", "1", "-o", "no_lru_maintainer,no_lru_crawler,no_slab_reassign"];
    let place = ["memcached", "-u", "nobody", "-l", "127.0.0.1", "-p", &port];
    let _real = Program::start(&[&place[..], &alone].concat());
    until("memcached listens", || TcpStream::connect(theirs).is_ok());
    let mut random = Random::new(11211);
    for round in 0..if full() { 20_000 } else { 1000 } {
        // What memcached counts it fills up with spaces only if it is not being sent: so it comes first.
        let mut bytes = random_count(&mut random);
        (0..random.below(12)).for_each(|_| bytes.extend(random_command(&mut random)));
        bytes.extend(b"quit\r\n");
        let answers = [ours, theirs].map(|server| exchange(server, &bytes));
        let [one, other] = answers.each_ref().map(|answer| answer.escape_ascii().to_string());
        assert!(one == other, "{round}: {one}\n{other}\nfor {}", bytes.escape_ascii());
    }
    assert_eq!(row(&sandbox, "tcp 11211")["failed"], 0);
}

/// Send all, and read to the end.
fn exchange(server: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let stream = TcpStream::connect(server).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    std::thread::scope(|scope| {
        scope.spawn(|| (&stream).write_all(bytes).expect("sent"));
        let mut got = Vec::new();
        let end = (&stream).read_to_end(&mut got);
        let last = got[got.len().saturating_sub(100)..].escape_ascii().to_string();
        assert!(end.is_ok(), "{server} ends with {last}: {end:?}");
        got
    })
}

fn pick(random: &mut Random, from: &[&str]) -> String {
    from[random.below(from.len() as u64) as usize].to_owned()
}

fn random_count(random: &mut Random) -> Vec<u8> {
    let mut pick = |from: &[&str]| pick(random, from);
    let (name, key) = (pick(&["incr", "decr"]), pick(&["a", "b", "c", "d", "e", "f"]));
    let by =
        pick(&["0", "1", "5", "99", "18446744073709551615", "18446744073709551616", "-1", "x"]);
    format!("{name} {key} {by}{}\r\n", pick(&["", "", " noreply"])).into_bytes()
}

fn random_command(random: &mut Random) -> Vec<u8> {
    let mut pick = |from: &[&str]| pick(random, from);
    let long = ["x".repeat(250), "y".repeat(251)];
    let keys = ["a", "b", "c", "d", "e", "f", "a", "b", "c", "d", "e", "f", &long[0], &long[1]];
    let (key, noreply) = (pick(&keys), pick(&["", "", "", " noreply"]));
    let numbers =
        ["0", "1", "5", "99", "18446744073709551615", "18446744073709551616", "-1", "x", "7 "];
    let number = pick(&numbers);
    let which = pick(&["get", "get", "store", "store", "store", "other"]);
    match which.as_str() {
        // memcached forgets what it has not sent yet when it is asked for a key that is too long.
        "get" if key.len() > 250 => b"gets\r\n".to_vec(),
        "get" => format!("get {key} {}\r\n", pick(&keys[..13])).into_bytes(),
        "store" => {
            let name = pick(&["set", "set", "set", "add", "replace", "append", "prepend"]);
            let flags = pick(&["0", "0", "0", "7", "4294967295", "x"]);
            let exptime = pick(&["0", "0", "0", "0", "1000", "-1", "x"]);
            let long = ["z".repeat(3000), "z".repeat(50_000)];
            let values = ["", "text", "a\r\nget b", "10", "100", " 8", &long[0], &long[1], &number];
            let value = pick(&values);
            // A value that is taken for a line is too long for one; each server has its own limit.
            let is_long = value.len() > 1000;
            let number = |text: String| if is_long && text == "x" { "0".to_owned() } else { text };
            let (flags, exptime) = (number(flags), number(exptime));
            let key = if is_long && key.len() > 250 { "a".to_owned() } else { key };
            let end = pick(&["\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "xx"]);
            let is_read = flags != "x" && exptime != "x" && key.len() <= 250;
            let end = if is_read { end } else { "\r\n".to_owned() };
            let len = value.len();
            format!("{name} {key} {flags} {exptime} {len}{noreply}\r\n{value}{end}").into_bytes()
        }
        _ => {
            let others = [
                format!("delete {key}{noreply}"),
                format!("delete {key} 0"),
                format!("delete {key} 5"),
                format!("touch {key} 1000{noreply}"),
                format!("touch {key} {}", number.trim_end()),
                format!("set {key} 0 0"),
                format!("set {key} 0 0 -1"),
                "verbosity 1".to_owned(),
                "nonsense".to_owned(),
                "get".to_owned(),
                String::new(),
            ];
            format!("{}\r\n", pick(&others.each_ref().map(String::as_str))).into_bytes()
        }
    }
}
