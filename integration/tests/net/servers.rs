//! The examples that serve the network, asked by the programs that everybody has.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration::{Random, Sandbox, Scratch, built};

use super::{
    Lines, PATIENCE, Program, all_buffers_come_back, ask_udp, at, free_port, load, load_with, row,
    said, shoot, udp, until,
};

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

/// A folder of files, and their server.
fn site(test: &str) -> (Sandbox, Scratch, String) {
    let folder = Scratch::new("site");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.0.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, bytes).expect("written");
    };
    let mut random = Random::new(8080);
    let mut bytes = |len: usize| -> Vec<u8> { (0..len).map(|_| random.next() as u8).collect() };
    write("index.html", b"<p>hello</p>\n");
    write("sub/index.html", b"below\n");
    write("with space.txt", b"text\n");
    write("empty", b"");
    write(".secret", b"not to be seen");
    for (name, len) in [("small", 999), ("mid", 40_000), ("big", 3_000_000)] {
        write(name, &bytes(len));
    }
    let sandbox = Sandbox::up(test);
    load_with(&sandbox, "libhttp_static.so", 8080, &format!("root={}", folder.text()));
    let url = format!("http://{}", at(&sandbox, "tcp 8080"));
    (sandbox, folder, url)
}

/// The status and the fields of an answer.
fn head(more: &[&str]) -> String {
    said(
        &[&["curl", "-s", "-m", "30", "-o", "/dev/null", "-D", "-", "--path-as-is"], more].concat(),
    )
}

#[test]
fn curl_gets_files() {
    let (sandbox, folder, url) = site("net-http");
    let to = Scratch::new("got");
    for name in ["index.html", "with%20space.txt", "empty", "small", "mid", "big", "sub/", ""] {
        said(&["curl", "-s", "-m", "30", "-o", to.text(), &format!("{url}/{name}?x#y")]);
        let file = match name {
            "sub/" | "" => format!("{name}index.html"),
            name => name.replace("%20", " "),
        };
        let wanted = std::fs::read(folder.0.join(&file)).expect("a file");
        assert!(std::fs::read(&to.0).expect("what came") == wanted, "{name}");
        let shown = head(&["-I", &format!("{url}/{name}")]);
        assert!(shown.starts_with("HTTP/1.1 200 OK\r\n"), "{shown}");
        assert!(shown.contains(&format!("Content-Length: {}\r\n", wanted.len())), "{shown}");
    }
    for (path, more, status) in [
        ("/none", &[][..], "404"),
        ("/.secret", &[], "404"),
        ("/../../../../etc/passwd", &[], "404"),
        ("/%2e%2e/%2e%2e/etc/passwd", &[], "404"),
        ("/sub", &[], "301"),
        ("/", &["-X", "PUT", "-d", "x"], "405"),
        ("/", &["-H", "Host: a", "-H", "Bad Name: x"], "400"),
        ("/", &["-X", "GET", "-d", "x=1"], "200"),
        ("/", &["-X", "GET", "-H", "Content-Length: 99999"], "413"),
        ("/", &["-H", "Transfer-Encoding: chunked"], "501"),
        ("/big", &["-r", "5000000-"], "416"),
    ] {
        let asked = format!("{url}{path}");
        let shown = head(&[&[asked.as_str()][..], more].concat());
        assert!(shown.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {more:?}: {shown}");
    }
    let big = std::fs::read(folder.0.join("big")).expect("a file");
    for (range, wanted) in
        [("0-0", 0..1), ("100-199", 100..200), ("2999990-", 2_999_990..3_000_000)]
    {
        let shown = head(&["-r", range, &format!("{url}/big")]);
        assert!(shown.starts_with("HTTP/1.1 206 "), "{shown}");
        said(&["curl", "-s", "-m", "30", "-r", range, "-o", to.text(), &format!("{url}/big")]);
        assert!(std::fs::read(&to.0).expect("what came") == big[wanted], "{range}");
    }
    conditions_are_kept(&folder, &url);
    many_at_once_get_their_own(&folder, &url);
    assert_eq!(row(&sandbox, "tcp 8080")["failed"], 0);
    all_buffers_come_back(&sandbox);
}

/// What has not changed is not sent again; what has is.
fn conditions_are_kept(folder: &Scratch, url: &str) {
    let file = format!("{url}/small");
    let shown = head(&[&file]);
    let tag = shown.lines().find_map(|line| line.strip_prefix("ETag: ")).expect("a tag");
    let condition = format!("If-None-Match: {tag}");
    assert!(head(&["-H", &condition, &file]).starts_with("HTTP/1.1 304 "));
    let if_range = format!("If-Range: {tag}");
    assert!(head(&["-H", &if_range, "-r", "0-1", &file]).starts_with("HTTP/1.1 206 "));
    std::fs::write(folder.0.join("small"), "another").expect("written");
    assert!(head(&["-H", &condition, &file]).starts_with("HTTP/1.1 200 "));
    assert!(head(&["-H", &if_range, "-r", "0-1", &file]).starts_with("HTTP/1.1 200 "));
    assert_eq!(said(&["curl", "-s", "-m", "30", &file]), "another");
}

/// By curl in parallel, by wrk, and by one that asks for all before it reads.
fn many_at_once_get_their_own(folder: &Scratch, url: &str) {
    let to = Scratch::new("parallel");
    std::fs::create_dir(&to.0).expect("made");
    let numbered = format!("{}/#1-#2", to.text());
    let files = format!("{url}/{{big,mid}}?[1-20]");
    said(&["curl", "-sZ", "--parallel-max", "20", "-m", "50", "-o", &numbered, &files]);
    for (name, number) in ["big", "mid"].iter().flat_map(|name| (1..=20).map(move |n| (name, n))) {
        let got = std::fs::read(to.0.join(format!("{name}-{number}"))).expect("it came");
        let wanted = std::fs::read(folder.0.join(name)).expect("a file");
        assert!(got == wanted, "{name} {number}: {} bytes", got.len());
    }
    for name in ["", "mid", "big"] {
        let shown = said(&["wrk", "-d", "1", "-c", "30", "-t", "1", &format!("{url}/{name}")]);
        assert!(!shown.contains("Socket errors") && !shown.contains("Non-2xx"), "{shown}");
    }
    let server = url.strip_prefix("http://").expect("a URL");
    let mut stream = TcpStream::connect(server).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let request = "GET /mid HTTP/1.1\r\nHost: h\r\n\r\n";
    stream.write_all(request.repeat(500).as_bytes()).expect("sent");
    stream.shutdown(Shutdown::Write).expect("ended");
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("answers");
    let wanted = std::fs::read(folder.0.join("mid")).expect("a file");
    let answer_len = got.len() / 500;
    assert_eq!(got.len(), answer_len * 500);
    assert!(got.chunks(answer_len).all(|answer| answer.ends_with(&wanted)));
}

#[test]
fn connections_and_datagrams_are_forwarded() {
    let sandbox = Sandbox::up("net-forward");
    load(&sandbox, "libnet_echo.so", 9000);
    let [echo, datagrams] = [at(&sandbox, "tcp 9000"), at(&sandbox, "udp 9000")];
    let folder = Scratch::new("forwarded");
    std::fs::create_dir(&folder.0).expect("made");
    let mut random = Random::new(8000);
    let bytes: Vec<u8> = (0..5_000_000).map(|_| random.next() as u8).collect();
    std::fs::write(folder.0.join("file"), &bytes).expect("written");
    let upstream = free_port();
    let port = upstream.port().to_string();
    let server = ["/usr/bin/python3", "-m", "http.server", &port, "--bind", "127.0.0.1"];
    let _server = Program::start(&[&server[..], &["--directory", folder.text()]].concat());
    until("the server listens", || TcpStream::connect(upstream).is_ok());

    let forward = |test: &str, config: &str| {
        let sandbox = Sandbox::up(test);
        load_with(&sandbox, "libforward.so", 8000, config);
        let places = ["tcp 8000", "udp 8000"].map(|port| at(&sandbox, port));
        (sandbox, places)
    };
    let (one, [tcp, _]) = forward("net-forward-1", &format!("to={upstream}"));
    let to = Scratch::new("through");
    for _ in 0..3 {
        let url = format!("http://{tcp}/file");
        said(&["curl", "-s", "-m", "50", "-o", to.text(), &url]);
        assert_eq!(said(&["sha256sum", to.text()])[..64], sha256(&folder.0.join("file")));
    }
    all_buffers_come_back(&one);

    let (other, [_, through]) = forward("net-forward-2", &format!("to={datagrams}"));
    let clients: Vec<_> = (0..20).map(|_| udp(through)).collect();
    for (number, client) in clients.iter().enumerate().cycle().take(200) {
        let text = format!("from {number}");
        assert_eq!(ask_udp(client, text.as_bytes()), text.as_bytes());
    }
    assert!(other.call(&["forward.counts"]).stdout.contains("200 datagrams"));
    one_that_is_down_costs_its_turns_only(echo);
}

fn sha256(path: &Path) -> String {
    said(&["sha256sum", path.to_str().expect("a UTF-8 path")])[..64].to_owned()
}

/// In turn to a server that is there and to one that is not.
fn one_that_is_down_costs_its_turns_only(up: SocketAddr) {
    let sandbox = Sandbox::up("net-forward-3");
    let down = free_port();
    load_with(&sandbox, "libforward.so", 8000, &format!("to={down}+{up}"));
    let through = at(&sandbox, "tcp 8000");
    for round in 0..10 {
        let mut client = Lines::to(through);
        if round % 2 == 0 {
            assert_eq!(client.next(), "", "{round}");
        } else {
            assert_eq!(client.ask("hello"), "hello", "{round}");
        }
    }
    let counts = sandbox.call(&["forward.counts"]).stdout;
    assert!(counts.contains(&format!("{up}: 5 connections")), "{counts}");
    // It comes up: its turns are served.
    let listener = TcpListener::bind(down).expect("nobody has taken the port");
    let mut client = Lines::to(through);
    let (mut server, _) = listener.accept().expect("a connection");
    server.write_all(b"here I am\n").expect("sent");
    assert_eq!(client.next(), "here I am\n");
    // A server that ends ends its client.
    drop(server);
    assert_eq!(client.next(), "");
    drop(client);
    until("all are over", || row(&sandbox, "tcp 8000")["open"] == 0);
    all_buffers_come_back(&sandbox);
}

/// A process of the sandbox that answers what it is handed: it, and its pid.
fn answering(sandbox: &Sandbox, argv: &[&str]) -> (Program, u64) {
    let launcher = built("sbx-launcher");
    let mut command = Command::new(launcher);
    command.args(["run", "--sandbox", &sandbox.name, "--"]).args(argv);
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = quiet.spawn().expect("the launcher is built");
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    stdout.read_line(&mut line).expect("a line");
    let pid = line.split(' ').next().and_then(|pid| pid.parse().ok());
    (Program(child), pid.unwrap_or_else(|| panic!("{argv:?}: {line}")))
}

#[test]
fn other_processes_answer_and_one_that_is_killed_takes_one_request_with_it() {
    let sandbox = Sandbox::up("net-hand");
    load(&sandbox, "libhand_over.so", 9100);
    let [tcp, datagrams] = [at(&sandbox, "tcp 9100"), at(&sandbox, "udp 9100")];
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hand-over/python/worker.py");
    let (_python, python) = answering(&sandbox, &["/usr/bin/python3", script]);
    let hand_worker = built("hand-worker");
    let rust = ["the first", "the second"]
        .map(|_| answering(&sandbox, &[hand_worker.to_str().expect("a UTF-8 path")]));
    let mut alive = vec![python, rust[0].1, rust[1].1];
    let pid_in = |answer: &str| -> Option<u64> { answer.split(' ').next()?.parse().ok() };
    let socket = udp(datagrams);
    for round in 0..2 {
        let mut seen = std::collections::HashSet::new();
        let began = Instant::now();
        let victim = alive.remove(round % alive.len());
        let mut client = Lines::to(tcp);
        let (mut lost, mut count, mut is_shot) = (0, 0, false);
        while count < 3000 || (!is_shot && began.elapsed() < PATIENCE) {
            count += 1;
            let answer = client.ask("hello");
            match pid_in(&answer) {
                Some(pid) => {
                    assert!(answer.ends_with(" hello") && (alive.contains(&pid) || pid == victim));
                    seen.insert(pid);
                }
                None => {
                    lost += 1;
                    client = Lines::to(tcp);
                }
            }
            if count == 1000 {
                shoot(victim);
                is_shot = true;
            }
        }
        assert!(lost <= 1 && !seen.is_empty(), "{lost} of {count} were lost; {seen:?}");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
        let answer = String::from_utf8(ask_udp(&socket, b"a datagram")).expect("text");
        let pid = pid_in(&answer).expect("a pid");
        assert!(answer.ends_with(" a datagram") && alive.contains(&pid), "{answer}");
        all_buffers_come_back(&sandbox);
    }
    parts_of_lines_wait(tcp);
    // Nobody is left: what is sent is lost in the end, and no buffer with it.
    alive.into_iter().for_each(shoot);
    until("they are gone", || {
        let rows = sandbox.participants();
        !rows.iter().any(|row| row["state"] == "live" && row["how"] != "worker")
    });
    socket.send(b"to nobody").expect("sent");
    until("it is given up", || row(&sandbox, "udp 9100")["lost"].as_u64() > Some(0));
    all_buffers_come_back(&sandbox);
}

/// Lines that come in parts are answered whole.
fn parts_of_lines_wait(tcp: SocketAddr) {
    let mut client = Lines::to(tcp);
    for part in ["he", "ll", "o\nand", " more\n"] {
        client.send(part);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(client.next().ends_with(" hello\n"));
    assert!(client.next().ends_with(" and more\n"));
}
