//! Ports that linked programs serve themselves.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use integration::{Sandbox, built, launcher};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

/// A program in a sandbox that serves a port.
struct Serves {
    child: Child,
    from: BufReader<ChildStdout>,
    at: SocketAddr,
}

impl Serves {
    fn start(sandbox: &Sandbox, kind: &str, at: &str) -> Self {
        let mut child = Command::new(built("sbx-launcher"))
            .args(["run", "--sandbox", &sandbox.name, "--"])
            .arg(built("endpoints"))
            .args([kind, at])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut from = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        from.read_line(&mut line).expect("where it serves");
        Self { child, from, at: line.trim().parse().expect("an address") }
    }
}

impl Drop for Serves {
    fn drop(&mut self) {
        // The program is the launcher's child.
        let pid = self.child.id();
        let children = format!("/proc/{pid}/task/{pid}/children");
        for child in std::fs::read_to_string(children).unwrap_or_default().split_whitespace() {
            let _ = Command::new("kill").args(["-9", child]).status();
        }
        let _ = self.child.wait();
    }
}

fn net(sandbox: &Sandbox) -> Value {
    let said = launcher(&["net", &sandbox.name, "--json"]);
    serde_json::from_str(&said.stdout).expect("JSON")
}

/// Wait until the sandbox's network is so.
fn until(sandbox: &Sandbox, what: &str, is: impl Fn(&Value) -> bool) {
    let late = Instant::now() + PATIENCE;
    while !is(&net(sandbox)) {
        assert!(Instant::now() < late, "not {what}: {}", net(sandbox));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn connect(at: SocketAddr) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(at).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    BufReader::new(stream)
}

fn ask(stream: &mut BufReader<TcpStream>, text: &str) -> String {
    stream.get_mut().write_all(format!("{text}\n").as_bytes()).expect("send");
    let mut line = String::new();
    stream.read_line(&mut line).expect("an answer");
    line.trim_end().to_owned()
}

fn no_buffer_is_out(table: &Value) -> bool {
    table["buffers_out"] == 0
}

#[test]
fn two_processes_share_a_udp_port_and_one_goes_on_alone() {
    let sandbox = Sandbox::up("end-udp");
    let one = Serves::start(&sandbox, "udp", "127.0.0.1:0");
    let mut two = Serves::start(&sandbox, "udp", &one.at.to_string());
    assert_eq!(one.at, two.at);
    until(&sandbox, "served by two", |table| {
        table["ports"][0]["handler"].as_str().is_some_and(|it| it.split(' ').count() == 3)
    });
    let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    client.connect(one.at).expect("connect");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let ask = |text: &str| {
        client.send(text.as_bytes()).expect("send");
        let mut buffer = [0; 100];
        let got = client.recv(&mut buffer).expect("an answer");
        let answer = String::from_utf8_lossy(&buffer[..got]).into_owned();
        let (pid, said) = answer.split_once(' ').expect("a pid");
        assert_eq!(said, text);
        pid.to_owned()
    };
    let mut pids: Vec<String> = (0..20).map(|index| ask(&format!("number {index}"))).collect();
    pids.sort();
    pids.dedup();
    assert_eq!(pids.len(), 2, "{pids:?}");
    let _ = ask("");
    // What it has when it is killed is lost, and nothing else.
    let its = net(&sandbox)["ports"][0]["handler"].as_str().map(str::to_owned).expect("pids");
    let pid = its.split(' ').next_back().expect("a pid").to_owned();
    let killed = Command::new("kill").args(["-9", &pid]).status().expect("kill runs");
    assert!(killed.success());
    let _ = two.child.wait();
    until(&sandbox, "served by one", |table| {
        table["ports"][0]["handler"].as_str().is_some_and(|it| it.split(' ').count() == 2)
    });
    let pids: Vec<String> = (0..20).map(|index| ask(&format!("later {index}"))).collect();
    assert!(pids.iter().all(|one| *one == pids[0] && *one != pid), "{pids:?}");
    until(&sandbox, "without a buffer out", no_buffer_is_out);
    drop(one);
    until(&sandbox, "given back", |table| table["ports"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn connections_are_read_in_place_and_end_as_they_should() {
    let sandbox = Sandbox::up("end-tcp");
    let mut serves = Serves::start(&sandbox, "tcp", "127.0.0.1:0");
    let mut stream = connect(serves.at);
    let first = ask(&mut stream, "hello");
    assert!(first.ends_with(" hello"), "{first}");
    for index in 0..200 {
        let said = ask(&mut stream, &format!("line {index}"));
        assert!(said.ends_with(&format!(" line {index}")), "{said}");
    }
    // Larger than a buffer, in both directions.
    stream.get_mut().write_all(b"big 3000000\n").expect("send");
    let mut big = vec![0; 3_000_000];
    stream.read_exact(&mut big).expect("all of it");
    assert!(big.iter().all(|byte| *byte == b'b'));
    let long = "x".repeat(100_000);
    let said = ask(&mut stream, &long);
    assert!(said.ends_with(&long) && said.len() < long.len() + 20);
    assert_eq!(ask(&mut stream, "bye"), "bye");
    assert_eq!(stream.read_line(&mut String::new()).expect("an end"), 0);
    // Half of it.
    let mut stream = connect(serves.at);
    assert_eq!(ask(&mut stream, "half"), "half");
    assert_eq!(stream.read_line(&mut String::new()).expect("its end"), 0);
    stream.get_mut().write_all(&[b'r'; 70_000]).expect("send");
    stream.get_mut().shutdown(Shutdown::Write).expect("shutdown");
    let mut line = String::new();
    serves.from.read_line(&mut line).expect("it says so");
    // What is written behind the end is an error, and does the rest no harm.
    assert_eq!(line, "rest 70000, Err(BrokenPipe)\n");
    drop(stream);
    // Many at once; those that wait keep no buffer.
    let mut streams: Vec<_> = (0..200).map(|_| connect(serves.at)).collect();
    for stream in &mut streams {
        assert!(ask(stream, "one of many").ends_with(" one of many"));
    }
    until(&sandbox, "without a buffer out", no_buffer_is_out);
    until(&sandbox, "open 200 times", |table| table["ports"][0]["open"] == 200);
    // Whoever served them is killed: they end, and the port is given back.
    let pid = net(&sandbox)["ports"][0]["handler"].as_str().map(|it| it[4..].to_owned());
    let killed = Command::new("kill").args(["-9", &pid.expect("a pid")]).status();
    assert!(killed.expect("kill runs").success());
    for stream in &mut streams {
        let end = stream.read_line(&mut String::new());
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    until(&sandbox, "given back", |table| table["ports"].as_array().is_some_and(Vec::is_empty));
    until(&sandbox, "without a buffer out", no_buffer_is_out);
}

#[test]
fn a_port_goes_on_with_the_next_worker() {
    let sandbox = Sandbox::up("end-worker");
    for kind in ["tcp", "async"] {
        let serves = Serves::start(&sandbox, kind, "127.0.0.1:0");
        for round in 0..3 {
            let mut stream = connect(serves.at);
            let said = ask(&mut stream, &format!("round {round}"));
            assert!(said.ends_with(&format!(" round {round}")), "{said}");
            let worker = net(&sandbox)["worker"].as_u64().expect("a worker");
            let killed = Command::new("kill").args(["-9", &worker.to_string()]).status();
            let killed = killed.expect("kill runs");
            assert!(killed.success());
            let end = stream.read_line(&mut String::new());
            assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
            until(&sandbox, "served again", |table| {
                table["worker"].as_u64().is_some_and(|pid| pid != worker)
            });
        }
        assert!(ask(&mut connect(serves.at), "after").ends_with(" after"));
    }
}

#[test]
fn tasks_are_served_at_the_same_time() {
    let sandbox = Sandbox::up("end-async");
    let serves = Serves::start(&sandbox, "async", "127.0.0.1:0");
    let mut streams: Vec<_> = (0..50).map(|_| connect(serves.at)).collect();
    for round in 0..20 {
        for stream in &mut streams {
            stream.get_mut().write_all(format!("round {round}\n").as_bytes()).expect("send");
        }
        for stream in &mut streams {
            let mut line = String::new();
            stream.read_line(&mut line).expect("an answer");
            assert!(line.ends_with(&format!(" round {round}\n")), "{line}");
        }
    }
    let long = "y".repeat(100_000);
    assert!(ask(&mut streams[0], &long).ends_with(&long));
    for stream in &mut streams {
        assert!(ask(stream, "bye").ends_with(" bye"));
        assert_eq!(stream.read_line(&mut String::new()).expect("an end"), 0);
    }
    until(&sandbox, "without a buffer out", no_buffer_is_out);
}

#[test]
fn a_task_is_given_room_to_write_while_another_waits_to_read() {
    let sandbox = Sandbox::up("end-split");
    let serves = Serves::start(&sandbox, "split", "127.0.0.1:0");
    for _ in 0..5 {
        connect(serves.at).read_exact(&mut vec![0; 1_000_000]).expect("all of it");
    }
    until(&sandbox, "without a buffer out", no_buffer_is_out);
}

#[test]
fn a_listener_that_is_dropped_leaves_the_next_connections_to_others() {
    let sandbox = Sandbox::up("end-shut");
    let mut once = Serves::start(&sandbox, "once", "127.0.0.1:0");
    let mut kept = connect(once.at);
    let own = ask(&mut kept, "mine");
    let mut line = String::new();
    once.from.read_line(&mut line).expect("it says so");
    assert_eq!(line, "no more\n");
    // Nobody serves the next one: it ends.
    let end = connect(once.at).read_line(&mut line);
    assert!(matches!(end, Ok(0)) || end.is_err_and(|it| it.kind() == ErrorKind::ConnectionReset));
    let others = Serves::start(&sandbox, "tcp", &once.at.to_string());
    // The worker hears of it soon.
    until(&sandbox, "served by another", |_| {
        let mut stream = connect(others.at);
        let mut line = String::new();
        let sent = stream.get_mut().write_all(b"first\n");
        sent.and_then(|()| stream.read_line(&mut line)).is_ok_and(|len| len > 0)
    });
    for _ in 0..10 {
        let said = ask(&mut connect(others.at), "mine");
        assert!(said.ends_with(" mine") && said != own, "{said}");
    }
    assert_eq!(ask(&mut kept, "mine"), own);
}

#[test]
fn who_is_not_in_a_named_sandbox_is_told_so() {
    let said = integration::run(Command::new(built("endpoints")).args(["udp", "127.0.0.1:0"]));
    assert!(said.status != 0 && said.stderr.contains("sbx-launcher run"), "{said:?}");
    let endpoints = built("endpoints");
    let endpoints = endpoints.to_string_lossy();
    let said = launcher(&["run", "--", &endpoints, "udp", "127.0.0.1:0"]);
    assert!(said.status != 0 && said.stderr.contains("sbx-launcher up"), "{said:?}");
}
