//! Handlers on the network: real clients, and what is left when a process of the way is killed.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::{Ended, Random, Sandbox, Scratch, built, full, launcher, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// Load an image whose handlers are hooked to `port`, at a place that the kernel chooses.
fn load(sandbox: &Sandbox, image: &str, port: u16) {
    load_with(sandbox, image, port, "");
}

fn load_with(sandbox: &Sandbox, image: &str, port: u16, config: &str) {
    let listen = format!("{port}=127.0.0.1:0");
    let image = built(image);
    let image = image.to_str().expect("a UTF-8 path");
    let args = ["ext", "load", &sandbox.name, image, "--listen", &listen, "--config", config];
    let ended = launcher(&args);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
}

fn command(argv: &[&str]) -> Ended {
    run(Command::new(argv[0]).args(&argv[1..]))
}

/// What a command prints that ends well.
fn said(argv: &[&str]) -> String {
    let ended = command(argv);
    assert_eq!(ended.status, 0, "{argv:?}: {}{}", ended.stdout, ended.stderr);
    ended.stdout
}

/// A program that is killed with the value.
struct Program(Child);

impl Program {
    fn start(argv: &[&str]) -> Self {
        let mut command = Command::new(argv[0]);
        let silent = command.args(&argv[1..]).stdin(Stdio::null()).stderr(Stdio::null());
        Self(
            silent
                .stdout(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{argv:?}: {error}")),
        )
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port of this host that nobody listens to.
fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

/// The row of `net` for a port, such as "tcp 9000".
fn row(sandbox: &Sandbox, port: &str) -> Value {
    let table = sandbox.json(&["net"]);
    let rows = table["ports"].as_array().expect("rows");
    rows.iter().find(|row| row["port"] == port).unwrap_or_else(|| panic!("{table}")).clone()
}

fn at(sandbox: &Sandbox, port: &str) -> SocketAddr {
    row(sandbox, port)["at"].as_str().and_then(|at| at.parse().ok()).expect("an address")
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let late = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < late, "never: {what}");
        sleep(Duration::from_millis(3));
    }
}

fn shoot(pid: u64) {
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("it is there");
}

/// A connection that asks in lines.
struct Lines(BufReader<TcpStream>);

impl Lines {
    fn to(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        Self(BufReader::new(stream))
    }

    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).expect("sent");
    }

    /// The next line; empty when the connection has ended.
    fn next(&mut self) -> String {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => String::new(),
            got => {
                got.expect("a line, or an end");
                line
            }
        }
    }

    fn ask(&mut self, line: &str) -> String {
        self.send(&format!("{line}\n"));
        self.next().trim_end().to_owned()
    }
}

fn udp(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.connect(server).expect("an address");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    socket
}

/// The answer to a datagram, which is sent once.
fn ask_udp(socket: &UdpSocket, text: &[u8]) -> Vec<u8> {
    socket.send(text).expect("sent");
    let mut buffer = vec![0; 64 << 10];
    loop {
        match socket.recv(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            got => return buffer[..got.expect("an answer")].to_vec(),
        }
    }
}

fn worker(sandbox: &Sandbox) -> Option<u64> {
    sandbox.json(&["net"])["worker"].as_u64()
}

/// No buffer is anywhere but in its pool once nothing is under way.
fn all_buffers_come_back(sandbox: &Sandbox) {
    until("buffers_out is 0", || sandbox.json(&["net"])["buffers_out"] == 0);
}

#[test]
fn a_worker_that_is_killed_is_made_anew_and_its_ports_go_on() {
    let sandbox = Sandbox::up("net-worker");
    load(&sandbox, "libnet_echo.so", 9000);
    let [tcp, datagrams] = [at(&sandbox, "tcp 9000"), at(&sandbox, "udp 9000")];
    let socket = udp(datagrams);
    for _ in 0..3 {
        let mut clients: Vec<Lines> = (0..20).map(|_| Lines::to(tcp)).collect();
        clients.iter_mut().for_each(|client| assert_eq!(client.ask("hello"), "hello"));
        assert_eq!(ask_udp(&socket, b"hello"), b"hello");
        let former = worker(&sandbox).expect("a worker");
        shoot(former);
        // Whoever connects or sends now finds the sockets as they were.
        assert_eq!(Lines::to(tcp).ask("again"), "again");
        assert_eq!(ask_udp(&socket, b"again"), b"again");
        clients.iter_mut().for_each(|client| assert_eq!(client.next(), ""));
        until("another worker", || worker(&sandbox).is_some_and(|now| now != former));
    }
    assert_eq!([tcp, datagrams], [at(&sandbox, "tcp 9000"), at(&sandbox, "udp 9000")]);
    all_buffers_come_back(&sandbox);
}

#[test]
fn connections_outlive_the_supervisor() {
    let sandbox = Sandbox::up("net-keeper");
    load(&sandbox, "libnet_echo.so", 9000);
    let tcp = at(&sandbox, "tcp 9000");
    let mut client = Lines::to(tcp);
    assert_eq!(client.ask("hello"), "hello");
    let former = worker(&sandbox);
    for _ in 0..2 {
        let pid = |who: &str| sandbox.json(&["ps"])[who].as_u64();
        until("a keeper", || pid("keeper").is_some());
        let keeper = pid("keeper");
        shoot(pid("supervisor").expect("a supervisor"));
        assert_eq!(client.ask("on"), "on");
        until("the keeper has taken over", || pid("supervisor") == keeper);
        assert_eq!(client.ask("and on"), "and on");
        assert_eq!(Lines::to(tcp).ask("new"), "new");
        assert_eq!(worker(&sandbox), former, "the worker goes on");
    }
    // The new supervisor watches the worker as well.
    shoot(former.expect("a worker"));
    assert_eq!(Lines::to(tcp).ask("again"), "again");
    // And gives it orders.
    load(&sandbox, "libtouchy.so", 7300);
    assert_eq!(Lines::to(at(&sandbox, "tcp 7300")).ask("hi"), "1 hi");
}

#[test]
fn an_extension_that_is_unloaded_leaves_nothing_open() {
    let sandbox = Sandbox::up("net-unload");
    load(&sandbox, "libnet_echo.so", 9000);
    for _ in 0..3 {
        let [tcp, datagrams] = [at(&sandbox, "tcp 9000"), at(&sandbox, "udp 9000")];
        let mut client = Lines::to(tcp);
        assert_eq!(client.ask("hello"), "hello");
        let ended = launcher(&["ext", "unload", &sandbox.name, "echo"]);
        assert_eq!(ended.status, 0, "{}", ended.stderr);
        assert_eq!(client.next(), "");
        drop(client);
        until("the port is free", || TcpListener::bind(tcp).is_ok());
        until("the other port is free", || UdpSocket::bind(datagrams).is_ok());
        assert_eq!(sandbox.json(&["net"])["ports"], serde_json::json!([]));
        load(&sandbox, "libnet_echo.so", 9000);
    }
    all_buffers_come_back(&sandbox);
}

#[test]
fn an_upgrade_keeps_sockets_and_connections() {
    let sandbox = Sandbox::up("net-upgrade");
    load(&sandbox, "libtouchy.so", 7300);
    let [tcp, datagrams] = [at(&sandbox, "tcp 7300"), at(&sandbox, "udp 7300")];
    let mut client = Lines::to(tcp);
    assert_eq!(client.ask("hello"), "1 hello");
    for round in 0..3 {
        let image = built("libtouchy.so");
        let image = image.to_str().expect("a UTF-8 path");
        let ended = launcher(&["ext", "upgrade", &sandbox.name, image]);
        assert_eq!(ended.status, 0, "{}", ended.stderr);
        assert_eq!([at(&sandbox, "tcp 7300"), at(&sandbox, "udp 7300")], [tcp, datagrams]);
        let next = 2 + 3 * round;
        assert_eq!(client.ask("still"), format!("{next} still"));
        assert_eq!(Lines::to(tcp).ask("new"), format!("{} new", next + 1));
        let answer = format!("{} new\n", next + 2).into_bytes();
        assert_eq!(ask_udp(&udp(datagrams), b"new"), answer);
    }
}

#[test]
fn a_fault_costs_the_connection_that_it_was_in() {
    let sandbox = Sandbox::up("net-fault");
    load(&sandbox, "libtouchy.so", 7300);
    let [tcp, datagrams] = [at(&sandbox, "tcp 7300"), at(&sandbox, "udp 7300")];
    let former = worker(&sandbox);
    for fault in ["segv", "spin"] {
        let mut other = Lines::to(tcp);
        assert!(other.ask("hello").ends_with("hello"));
        let mut client = Lines::to(tcp);
        assert_eq!(client.ask(fault), "", "{fault}");
        // Who did no harm goes on, soon with an extension that has begun anew.
        until("it is restarted", || other.ask("hello") == "1 hello");
        assert_eq!(Lines::to(tcp).ask("new"), "2 new", "{fault}");
        let socket = udp(datagrams);
        socket.send(fault.as_bytes()).expect("sent");
        until("it is restarted again", || ask_again(&socket) == Some("1 ?".into()));
    }
    let count = || -> u64 {
        let answer = Lines::to(tcp).ask("hello");
        answer.split(' ').next().and_then(|count| count.parse().ok()).expect("a number")
    };
    let before = count();
    assert_eq!(Lines::to(tcp).ask("panic x"), "");
    assert_eq!(count(), before + 2, "a panic restarts nothing");
    assert_eq!(worker(&sandbox), former);
    let failed = |port| row(&sandbox, port)["failed"].as_u64();
    assert!(failed("tcp 7300") >= Some(3) && failed("udp 7300") >= Some(2));
    all_buffers_come_back(&sandbox);
}

#[test]
fn a_handler_without_end_does_not_outlive_its_sandbox() {
    let sandbox = Sandbox::up("net-down");
    load(&sandbox, "libtouchy.so", 7300);
    let pid = worker(&sandbox).expect("a worker");
    let mut client = Lines::to(at(&sandbox, "tcp 7300"));
    assert_eq!(client.ask("hello"), "1 hello");
    client.send("spin\n");
    drop(sandbox);
    until("the worker has ended", || kill(Pid::from_raw(pid as i32), None).is_err());
    assert_eq!(client.next(), "");
}

/// What a datagram is answered with, if it is soon.
fn ask_again(socket: &UdpSocket) -> Option<String> {
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a time limit");
    socket.send(b"?").expect("sent");
    let mut buffer = [0; 100];
    let got = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..got]).trim_end().to_owned())
}

#[test]
fn long_answers_take_no_heap_for_good() {
    let sandbox = Sandbox::up("net-long");
    load(&sandbox, "libtouchy.so", 7300);
    let tcp = at(&sandbox, "tcp 7300");
    // A heap of 8 MiB: nothing may be left of 100 answers of 1 MiB, which are written in pieces.
    let mut client = Lines::to(tcp);
    for _ in 0..100 {
        client.send("long 1000\n");
        let mut answer = vec![0; 1_000_000];
        client.0.read_exact(&mut answer).expect("an answer");
        assert!(answer.chunks(10).all(|piece| piece == b"123456789\n"));
    }
    assert_eq!(row(&sandbox, "tcp 7300")["failed"], 0);
    all_buffers_come_back(&sandbox);
}

#[test]
fn ports_that_cannot_be_had_are_refused() {
    let (sandbox, other) = (Sandbox::up("net-refused"), Sandbox::up("net-other"));
    let image = built("libnet_echo.so");
    let image = image.to_str().expect("a UTF-8 path");
    let refused = |sandbox: &Sandbox, listen: &str, why: &[&str]| {
        let ended = launcher(&["ext", "load", &sandbox.name, image, "--listen", listen]);
        assert_ne!(ended.status, 0, "{listen}");
        let text = ended.stdout + &ended.stderr;
        assert!(why.iter().all(|word| text.contains(word)), "{listen}: {text}");
    };
    refused(&sandbox, "9000", &["expected PORT=ADDRESS:PORT", "9000=0.0.0.0:53"]);
    refused(&sandbox, "x=127.0.0.1:0", &["expected PORT=ADDRESS:PORT"]);
    refused(&sandbox, "9000=localhost:0", &["expected PORT=ADDRESS:PORT"]);
    refused(&sandbox, "9001=127.0.0.1:0", &["--listen 9001=127.0.0.1:0", "no handler"]);
    refused(&sandbox, "9000=192.0.2.1:0", &["echo.datagram", "udp 9000", "192.0.2.1"]);
    // Nothing stays behind: it can be loaded.
    load(&sandbox, "libnet_echo.so", 9000);
    let taken = at(&sandbox, "udp 9000").to_string();
    refused(&other, &format!("9000={taken}"), &["echo.datagram", &taken, "in use"]);
    assert_eq!(other.json(&["net"])["ports"], serde_json::json!([]));
    load(&other, "libnet_echo.so", 9000);
    // A launch is told of it, too.
    let ended = launcher(&["run", "--ext", image, "--listen", "1=127.0.0.1:0", "--", "true"]);
    assert!(ended.status == 125 && ended.stderr.contains("no handler"), "{}", ended.stderr);
}

#[test]
fn several_extensions_of_a_launch_have_places_to_listen_at() {
    let [kv, memcached] = ["libkv_cache.so", "libmemcached.so"].map(built);
    let [kv, memcached] = [&kv, &memcached].map(|path| path.to_str().expect("a UTF-8 path"));
    let listen = "11211=127.0.0.1:0";
    let ended =
        launcher(&["run", "--ext", kv, "--ext", memcached, "--listen", listen, "--", "true"]);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
}

#[test]
fn dig_is_answered_from_a_zone() {
    let sandbox = Sandbox::up("net-dns");
    let zone = Scratch::new("zone");
    let long = format!("long.example 60 TXT {}\n", "x".repeat(250)).repeat(8);
    let lines = "example 300 SOA ns.example mail.example 1 7200 3600 86400 60\n\
        www.example 60 A 192.0.2.1\nwww.example 60 AAAA 2001:db8::1\n\
        alias.example 60 CNAME www.example\nexample 60 MX 10 mail.example\n\
        text.example 60 TXT \"one\" \"and two\"\n_sip._udp.example 60 SRV 1 2 5060 www.example\n";
    std::fs::write(&zone.0, lines.to_owned() + &long).expect("written");
    load_with(&sandbox, "libdns.so", 5300, &format!("zone={}", zone.text()));
    let dig = |protocol: &str, more: &[&str]| {
        let port = at(&sandbox, &format!("{protocol} 5300")).port().to_string();
        let mut argv = vec!["dig", "@127.0.0.1", "-p", &port, "+tries=1", "+time=10"];
        argv.extend(if protocol == "tcp" { &["+tcp"][..] } else { &["+ignore"] });
        argv.extend(more);
        said(&argv)
    };
    for protocol in ["udp", "tcp"] {
        let short = |name: &str, kind: &str| dig(protocol, &["+short", name, kind]);
        assert_eq!(short("www.example", "A"), "192.0.2.1\n");
        assert_eq!(short("WWW.example", "AAAA"), "2001:db8::1\n");
        assert_eq!(short("alias.example", "A"), "www.example.\n192.0.2.1\n");
        assert_eq!(short("example", "MX"), "10 mail.example.\n");
        assert_eq!(short("text.example", "TXT"), "\"one\" \"and two\"\n");
        assert_eq!(short("_sip._udp.example", "SRV"), "1 2 5060 www.example.\n");
        for (asked, status) in [
            (&["none.example"][..], "NXDOMAIN"),
            (&["www.example", "MX"], "NOERROR"),
            (&["elsewhere.test"], "REFUSED"),
            (&["-c", "CH", "www.example"], "REFUSED"),
            (&["+opcode=update", "www.example"], "NOTIMP"),
            (&["+edns=1", "+noednsneg", "www.example"], "BADVERS"),
            (&["+noedns", "www.example"], "NOERROR"),
        ] {
            let said = dig(protocol, asked);
            assert!(said.contains(&format!("status: {status}")), "{asked:?}: {said}");
            assert!(!said.contains("WARNING: Message"), "{said}");
        }
    }
    let cut = dig("udp", &["long.example", "TXT"]);
    assert!(cut.contains("flags: qr aa tc") && cut.contains("ANSWER: 0"), "{cut}");
    assert_eq!(dig("tcp", &["+short", "long.example", "TXT"]).lines().count(), 8);
    let two =
        dig("tcp", &["+keepopen", "+short", "www.example", "A", "+tcp", "alias.example", "A"]);
    assert_eq!(two.lines().count(), 3, "{two}");
    nonsense_is_survived(&sandbox, dig("udp", &["+short", "www.example"]));
}

/// Random datagrams and connections' bytes: none of them fails, and `answer` is still right.
fn nonsense_is_survived(sandbox: &Sandbox, answer: String) {
    let [tcp, datagrams] = [at(sandbox, "tcp 5300"), at(sandbox, "udp 5300")];
    let (mut random, socket) = (Random::new(53), udp(datagrams));
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\0\0\x01\0\x01";
    for round in 0..2000 {
        let mut bytes = query.to_vec();
        for _ in 0..random.below(6) {
            bytes[random.below(query.len() as u64) as usize] = random.next() as u8;
        }
        bytes.truncate(random.below(query.len() as u64 + 1) as usize);
        socket.send(&bytes).expect("sent");
        if round % 100 == 0 {
            let mut stream = TcpStream::connect(tcp).expect("it listens");
            // It may be cut before all is written.
            let _ = stream.write_all(&bytes);
        }
    }
    until("all are seen", || row(sandbox, "udp 5300")["received"].as_u64() > Some(2000));
    for port in ["tcp 5300", "udp 5300"] {
        assert_eq!(row(sandbox, port)["failed"], 0, "{port}");
    }
    assert_eq!(answer, "192.0.2.1\n");
    assert_eq!(ask_udp(&udp(datagrams), query).last_chunk(), Some(&[192, 0, 2, 1]));
    all_buffers_come_back(sandbox);
}

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
