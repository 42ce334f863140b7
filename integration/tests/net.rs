//! Handlers on the network: real clients, and what is left when a process of the way is killed.

#[path = "net/memcached.rs"]
mod memcached;
#[path = "net/robust.rs"]
mod robust;
#[path = "net/servers.rs"]
mod servers;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::{Ended, Sandbox, Scratch, built, compile, launcher, run};
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

fn is_gone(pid: u64) -> bool {
    kill(Pid::from_raw(pid as i32), None).is_err()
}

/// Kill a worker; back once it is gone, so that what comes now comes to nobody.
fn shoot_worker(pid: u64) {
    shoot(pid);
    until("it is gone", || is_gone(pid));
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
        shoot_worker(former);
        // Whoever connects or sends now finds the sockets as they were.
        assert_eq!(Lines::to(tcp).ask("again"), "again");
        assert_eq!(ask_udp(&socket, b"again"), b"again");
        clients.iter_mut().for_each(|client| assert_eq!(client.next(), ""));
        drop(clients);
        until("none of its connections is counted", || row(&sandbox, "tcp 9000")["open"] == 0);
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
    shoot_worker(former.expect("a worker"));
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
    until("the worker has ended", || is_gone(pid));
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
    let advice = ["echo.datagram", "udp 9000", "192.0.2.1", "--listen 9000=ADDRESS:PORT"];
    refused(&sandbox, "9000=192.0.2.1:0", &advice);
    // Nothing stays behind: it can be loaded.
    load(&sandbox, "libnet_echo.so", 9000);
    let taken = at(&sandbox, "udp 9000").to_string();
    refused(&other, &format!("9000={taken}"), &["echo.datagram", &taken, "in use", "ss -lntup"]);
    // Two places for one port: which of them would it be?
    let twice = ["--listen", "9000=127.0.0.1:0", "--listen", "9000=127.0.0.1:0"];
    let ended = launcher(&[&["ext", "load", &other.name, image], &twice[..]].concat());
    assert!(ended.status != 0 && ended.stderr.contains("already"), "{}", ended.stderr);
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
fn where_io_uring_is_refused_the_network_goes_by_epoll() {
    const IO_URING_SETUP: &str = "425";
    let refuse = compile("cc", "refuse", &[]);
    let name = format!("t{}-epoll", std::process::id());
    let up = [refuse.text(), IO_URING_SETUP, built("sbx-launcher").to_str().expect("UTF-8"), "up"]
        .map(str::to_owned);
    let argv: Vec<&str> = up.iter().map(String::as_str).chain([name.as_str()]).collect();
    let _ = said(&argv);
    let sandbox = Sandbox { name };
    load(&sandbox, "libnet_echo.so", 9000);
    let stream = TcpStream::connect(at(&sandbox, "tcp 9000")).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut lines = BufReader::new(stream);
    lines.get_mut().write_all(b"by epoll\n").expect("send");
    let mut line = String::new();
    lines.read_line(&mut line).expect("an answer");
    assert_eq!(line, "by epoll\n");
    let log = launcher(&["log", &sandbox.name]).stdout;
    assert!(log.contains("the network goes by epoll, since io_uring says"), "{log}");
}

/// Names of a process's threads, and the ticks that all of them have computed.
fn threads_and_ticks(pid: u64) -> (Vec<String>, u64) {
    let read = |file: String| std::fs::read_to_string(file).unwrap_or_default();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    let tasks: Vec<_> = tasks.flatten().map(|task| task.path().display().to_string()).collect();
    let names = tasks.iter().map(|task| read(format!("{task}/comm")).trim().to_owned());
    let stat = read(format!("/proc/{pid}/stat"));
    let words = stat.rsplit(')').next().unwrap_or("").split_whitespace();
    let ticks = words.skip(11).take(2).filter_map(|word| word.parse::<u64>().ok());
    (names.collect(), ticks.sum())
}

#[test]
fn the_worker_waits_as_it_is_told_to() {
    for how in ["sleep", "look", "sqpoll"] {
        let sandbox = Sandbox::up_with("waits", &["--network-waits", how]);
        load(&sandbox, "libnet_echo.so", 9000);
        let mut stream = Lines::to(at(&sandbox, "tcp 9000"));
        for line in ["one", "two"] {
            assert_eq!(stream.ask(line), line, "{how}");
        }
        assert_eq!(ask_udp(&udp(at(&sandbox, "udp 9000")), b"three"), b"three", "{how}");
        let pid = worker(&sandbox).expect("a worker");
        // What it looks for after an answer is over.
        sleep(Duration::from_millis(100));
        let (names, before) = threads_and_ticks(pid);
        sleep(Duration::from_millis(500));
        let took = threads_and_ticks(pid).1 - before;
        assert_eq!(how == "look", took > 5, "{how}: {took} ticks");
        let polls = names.iter().any(|name| name.starts_with("iou-sqp"));
        assert_eq!(how == "sqpoll", polls, "{how}: {names:?}");
        // Its successor waits in the same way.
        if how == "sqpoll" {
            shoot_worker(pid);
            until("another worker", || worker(&sandbox).is_some_and(|other| other != pid));
            let pid = worker(&sandbox).expect("a worker");
            until("it polls", || {
                threads_and_ticks(pid).0.iter().any(|it| it.starts_with("iou-sqp"))
            });
        }
    }
}

/// A ring would let its owner open files past every filter: participants have none, so that there is none
/// that another could write requests into.
#[test]
fn no_participant_has_a_ring() {
    let script = "import ctypes, os\n\
                  libc = ctypes.CDLL(None, use_errno=True)\n\
                  got = libc.syscall(425, 8, ctypes.create_string_buffer(120))\n\
                  print(got, os.strerror(ctypes.get_errno()))";
    let ended = launcher(&["run", "--", "/usr/bin/python3", "-c", script]);
    assert_eq!(ended.stdout, "-1 Function not implemented\n", "{}", ended.stderr);
    // Nor can it take the worker's, unless it may do anything anyway.
    if !nix::unistd::getuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let copies = ["sbx-launcher", "libnet_echo.so"].map(|name| {
        let copy = Scratch::new(name);
        std::fs::copy(built(name), &copy.0).expect("a copy");
        copy
    });
    let name = format!("t{}-ring", std::process::id());
    let as_nobody = |args: &[&str]| {
        let ended = run(Command::new(&copies[0].0).args(args).uid(65_534).gid(65_534));
        assert_eq!(ended.status, 0, "{args:?}: {}", ended.stderr);
        ended.stdout
    };
    let _ = as_nobody(&["up", &name]);
    let _ = as_nobody(&["ext", "load", &name, copies[1].text(), "--listen", "9000=127.0.0.1:0"]);
    let worker = || {
        let table: Value =
            serde_json::from_str(&as_nobody(&["net", &name, "--json"])).expect("JSON");
        table["worker"].as_u64()
    };
    until("there is a worker", || worker().is_some());
    let script = "import ctypes, os, sys\n\
                  libc = ctypes.CDLL(None, use_errno=True)\n\
                  pid = libc.syscall(434, int(sys.argv[1]), 0)\n\
                  fds = [libc.syscall(438, pid, n, 0) for n in range(3, 20)]\n\
                  print(pid >= 0, [fd for fd in fds if fd >= 0])";
    let worker = worker().map_or(String::new(), |pid| pid.to_string());
    let python = ["/usr/bin/python3", "-c", script, &worker];
    let said = as_nobody(&[&["run", "--sandbox", &name, "--"][..], &python].concat());
    let _ = as_nobody(&["down", &name]);
    assert_eq!(said, "True []\n");
}
