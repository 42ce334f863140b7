//! Our own TCP/IP beside the kernel's: each test has namespaces of its own, the kernel's stack in one, ours
//! at a device of each kind.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use integration::{Ended, PATIENCE, Scratch, built, full, run};
use serde_json::Value;

/// How the helper says that this machine has no such device.
const UNAVAILABLE: i32 = 77;
const DEVICES: [&str; 4] = ["tap", "tun", "packet", "xdp"];
const KERNEL: [&str; 2] = ["10.77.0.1", "fd77::1"];
const OURS: [&str; 2] = ["10.77.0.2", "fd77::2"];

/// A namespace with the kernel's stack, and one with the other end of a line to it.
struct Net {
    kernel: String,
    ours: String,
    device: &'static str,
}

fn ip(arguments: &str) -> Ended {
    run(Command::new("ip").args(arguments.split(' ')))
}

fn must(arguments: &str) {
    let ended = ip(arguments);
    assert_eq!(ended.status, 0, "ip {arguments}: {}", ended.stderr);
}

impl Net {
    /// Namespaces for a device; None, and why, if there can be none.
    fn new(device: &'static str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::getuid().is_root() {
            println!("skipped: only root can make network namespaces");
            return None;
        }
        let id = format!("sbx-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let made = ip(&format!("netns add {id}k"));
        if made.status != 0 {
            println!("skipped: no network namespaces: {}", made.stderr.trim());
            return None;
        }
        // From here on they go with the value.
        let net = Self { kernel: format!("{id}k"), ours: format!("{id}o"), device };
        must(&format!("netns add {}", net.ours));
        let line = match device {
            "tap" | "tun" => {
                let made = ip(&format!("-n {} tuntap add dev line mode {device}", net.kernel));
                if made.status != 0 {
                    println!("skipped: no {device}: {}", made.stderr.trim());
                    return None;
                }
                "line"
            }
            _ => {
                // One queue: an XDP socket has the frames of one.
                let queues = "numrxqueues 1 numtxqueues 1";
                let peer = format!("type veth peer name mine {queues} netns {}", net.ours);
                must(&format!("-n {} link add line {queues} {peer}", net.kernel));
                must(&format!("-n {} link set mine addrgenmode none", net.ours));
                must(&format!("-n {} link set mine up", net.ours));
                "line"
            }
        };
        must(&format!("-n {} link set lo up", net.kernel));
        must(&format!("-n {} addr add {}/24 dev {line}", net.kernel, KERNEL[0]));
        must(&format!("-n {} addr add {}/64 dev {line} nodad", net.kernel, KERNEL[1]));
        must(&format!("-n {} link set {line} up", net.kernel));
        Some(net)
    }

    /// A program beside the kernel's stack.
    fn beside(&self, argv: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.kernel]).args(argv);
        command
    }

    fn kernel(&self, argv: &[&str]) -> Ended {
        run(&mut self.beside(argv))
    }

    /// The helper at the device.
    fn helper(&self, options: &[&str], command: &[&str]) -> Command {
        let (namespace, interface) = match self.device {
            "tap" | "tun" => (&self.kernel, "line"),
            _ => (&self.ours, "mine"),
        };
        let address = format!("{}/24,{}/64", OURS[0], OURS[1]);
        let mut helper = Command::new("ip");
        helper.args(["netns", "exec", namespace]).arg(built("net-stack"));
        helper.args([self.device, interface, &address]).args(options).args(command);
        helper
    }

    /// A line carries nothing for a while after somebody is at its other end, longer on a busy machine.
    fn wait_for_line(&self, helper: &Running) {
        let until = Instant::now() + PATIENCE;
        while self.kernel(&["ping", "-c", "1", "-W", "1", OURS[0]]).status != 0 {
            assert!(Instant::now() < until, "{}: nobody answers: {}", self.device, helper.said());
        }
    }

    /// The helper, once it is ready; None, and why, if the machine has no such device.
    fn serving(&self, options: &[&str], command: &[&str]) -> Option<Running> {
        let log = Scratch::new("net-stack");
        let to = File::create(&log.0).expect("a file");
        let mut helper = self.helper(options, command);
        let mut child =
            helper.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(to).spawn().expect("ip");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        let mut running = Running { child, log };
        // It says so, or ends.
        BufReader::new(stdout).read_line(&mut line).expect("readable");
        if line == "ready\n" {
            self.wait_for_line(&running);
            return Some(running);
        }
        let status = running.child.wait().expect("ends").code();
        let said = running.said();
        assert_eq!(status, Some(UNAVAILABLE), "{said}");
        println!("skipped: {}", said.trim());
        None
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in [&self.kernel, &self.ours] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// A program that is killed with the value.
struct Running {
    child: Child,
    log: Scratch,
}

impl Running {
    /// What it has said on standard error.
    fn said(&self) -> String {
        fs::read_to_string(&self.log.0).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file of `len` random octets, and its SHA-256.
fn random_file(len: usize) -> (Scratch, String) {
    let file = Scratch::new("random");
    let to = File::create(&file.0).expect("a file");
    let status =
        Command::new("head").args(["-c", &len.to_string(), "/dev/urandom"]).stdout(to).status();
    assert!(status.is_ok_and(|status| status.success()));
    let sum = sum_of(&file);
    (file, sum)
}

fn sum_of(file: &Scratch) -> String {
    let ended = run(Command::new("sha256sum").arg(&file.0));
    ended.stdout.split(' ').next().expect("a sum").to_owned()
}

fn url(host: &str, path: &str) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    format!("http://{host}:8080{path}")
}

/// Python's server of a folder, on the kernel's side.
fn kernel_server(net: &Net, folder: &str) -> Running {
    let log = Scratch::new("http.server");
    let argv = ["/usr/bin/python3", "-m", "http.server", "8080", "--bind", "::", "-d", folder];
    let child = net.beside(&argv).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let server = Running { child: child.expect("ip"), log };
    let until = Instant::now() + PATIENCE;
    while net.kernel(&["curl", "-sf", "-o", "/dev/null", "http://127.0.0.1:8080/"]).status != 0 {
        assert!(Instant::now() < until, "python's server does not come up");
        std::thread::sleep(Duration::from_millis(50));
    }
    server
}

#[test]
fn pings_are_answered() {
    for device in DEVICES {
        let Some(net) = Net::new(device) else { continue };
        for reads in ["io_uring", "calls"] {
            let Some(helper) = net.serving(&["--reads", reads], &["echo", "9"]) else { continue };
            for address in OURS {
                // Who has no neighbours yet does not answer before it has asked who they are.
                let _ = net.kernel(&["ping", "-c", "1", "-W", "1", address]);
                let ended = net.kernel(&["ping", "-c", "20", "-i", "0.01", "-W", "5", address]);
                assert_eq!(ended.status, 0, "{device}: {}", ended.stdout);
                assert!(ended.stdout.contains("20 received"), "{}", ended.stdout);
                // In several pieces' worth of octets, but one packet.
                let large = ["ping", "-c", "3", "-i", "0.01", "-s", "1400", "-W", "5", address];
                assert_eq!(net.kernel(&large).status, 0, "{device}");
            }
            println!("{device}: {}", helper.said().trim());
        }
    }
}

#[test]
fn curl_fetches_and_sends() {
    let (file, _) = random_file(300_000);
    for device in DEVICES {
        let Some(net) = Net::new(device) else { continue };
        let Some(helper) = net.serving(&[], &["serve", "8080", file.text()]) else { continue };
        for address in OURS {
            let to = Scratch::new("fetched");
            let fetched = net.kernel(&["curl", "-sf", "-o", to.text(), &url(address, "/")]);
            assert_eq!(fetched.status, 0, "{device}: {} {}", fetched.stderr, helper.said());
            assert_eq!(fs::read(&to.0).ok(), fs::read(&file.0).ok(), "{device}");
            // Several connections at once.
            let many = url(address, "/bytes/[1000-1019]");
            let ended = net.kernel(&["curl", "-sf", "-Z", &many]);
            let octets: usize = (1000..1020).sum();
            assert_eq!((ended.status, ended.stdout.len()), (0, octets), "{device}");
            let sent = net.kernel(&["curl", "-sf", "-T", file.text(), &url(address, "/put")]);
            assert_eq!(sent.stdout, "300000 bytes\n", "{device}: {}", sent.stderr);
        }
        let refused = net.kernel(&["curl", "-s", "http://10.77.0.2:81/"]);
        assert_eq!(refused.status, 7, "{device}: {}", refused.stderr);
        drop(helper);
        if device == "xdp" {
            let link = ip(&format!("-n {} link show mine", net.ours));
            assert!(!link.stdout.contains("xdp"), "{}", link.stdout);
        }
    }
}

#[test]
fn iperf3_measures_it() {
    for device in DEVICES {
        let Some(net) = Net::new(device) else { continue };
        let Some(helper) = net.serving(&[], &["iperf3", "5201"]) else { continue };
        let time = if full() { "10" } else { "1" };
        for (address, more) in [(OURS[0], &[][..]), (OURS[1], &["-R"]), (OURS[0], &["-P", "3"])] {
            let argv = ["iperf3", "-J", "-t", time, "-c", address];
            let ended = net.kernel(&[&argv[..], more].concat());
            let report: Value = serde_json::from_str(&ended.stdout).expect("iperf3 prints JSON");
            let said = || format!("{device} {more:?}: {report} {}", helper.said());
            assert!(ended.status == 0 && report["error"].is_null(), "{}", said());
            let ends = ["sum_sent", "sum_received"].map(|end| report["end"][end]["bytes"].as_f64());
            let [Some(sent), Some(received)] = ends else { panic!("{}", said()) };
            // What a write has not finished is not counted as sent yet.
            assert!(received > 1e6 && received <= sent + 1e6, "{}", said());
            println!(
                "{device} {more:?}: {:.2} Gbit/s",
                received * 8e-9 / time.parse::<f64>().unwrap_or(1.0)
            );
        }
    }
}

#[test]
fn our_client_fetches_from_the_kernel() {
    let (file, sum) = random_file(1 << 20);
    let folder = file.0.parent().expect("a folder").to_str().expect("text");
    let name = file.0.file_name().expect("a name").to_str().expect("text");
    for device in DEVICES {
        let Some(net) = Net::new(device) else { continue };
        let _server = kernel_server(&net, folder);
        for address in ["10.77.0.1:8080", "[fd77::1]:8080"] {
            let to = Scratch::new("got");
            let mut helper = net.helper(&[], &["get", address, &format!("/{name}")]);
            let ended = helper.stdout(File::create(&to.0).expect("a file")).output().expect("ip");
            if ended.status.code() == Some(UNAVAILABLE) {
                println!("skipped: {}", String::from_utf8_lossy(&ended.stderr).trim());
                continue;
            }
            assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
            assert_eq!(sum_of(&to), sum, "{device}");
        }
    }
}

#[test]
fn octets_one_by_one_and_datagrams() {
    let server = "import socket\nserver = socket.create_server(('10.77.0.1', 8080))\n\
                  peer, _ = server.accept()\ngot = b''\n\
                  while piece := peer.recv(100): got += piece\npeer.sendall(got.upper())\n";
    let client = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                  s.settimeout(20)\ns.connect(('10.77.0.2', 9))\n\
                  for n in range(1, 1400, 13):\n  s.send(b'x' * n)\n  assert s.recv(2000) == b'x' * n\n\
                  print('same')";
    for device in DEVICES {
        let Some(net) = Net::new(device) else { continue };
        let Some(helper) = net.serving(&[], &["echo", "9"]) else { continue };
        let ended = net.kernel(&["/usr/bin/python3", "-c", client]);
        assert_eq!(ended.stdout, "same\n", "{device}: {} {}", ended.stderr, helper.said());
        drop(helper);
        let child = net.beside(&["/usr/bin/python3", "-c", server]).spawn().expect("ip");
        let _server = Running { child, log: Scratch::new("server") };
        let until = Instant::now() + PATIENCE;
        while !net.kernel(&["ss", "-Hlnt"]).stdout.contains(":8080") {
            assert!(Instant::now() < until, "python does not listen");
            std::thread::sleep(Duration::from_millis(30));
        }
        let ended = run(&mut net.helper(&[], &["trickle", "10.77.0.1:8080"]));
        assert_eq!(ended.stdout, "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "{device}: {}", ended.stderr);
    }
}

/// Have the kernel lose a hundredth of what it sends, if it can; else our device loses as many, either way.
fn losing(net: &Net) -> [&'static str; 4] {
    let netem = ["tc", "qdisc", "add", "dev", "line", "root", "netem", "loss", "1%"];
    let by_kernel = net.kernel(&netem).status == 0;
    println!("loss by {}", if by_kernel { "netem" } else { "our own device" });
    // Without selective acknowledgements most losses are noticed by a timer.
    ["--lose", if by_kernel { "0" } else { "10" }, "--retransmit-ms", "20"]
}

#[test]
fn a_transfer_on_a_bad_line_arrives_whole() {
    let (file, sum) = random_file(if full() { 1 << 30 } else { 64 << 20 });
    let folder = file.0.parent().expect("a folder").to_str().expect("text");
    let name = file.0.file_name().expect("a name").to_str().expect("text");
    for device in if full() { &DEVICES[..] } else { &["tap", "packet", "xdp"] } {
        let Some(net) = Net::new(device) else { continue };
        let lose = losing(&net);
        if let Some(helper) = net.serving(&lose, &["serve", "8080", file.text()]) {
            let to = Scratch::new("fetched");
            let rate = "%{speed_download} B/s";
            let argv = ["curl", "-sSf", "-w", rate, "-o", to.text(), &url(OURS[0], "/")];
            let ended = net.kernel(&argv);
            assert_eq!(ended.status, 0, "{device}: {} {}", ended.stderr, helper.said());
            assert_eq!(sum_of(&to), sum, "{device}");
            println!("{device}, ours to the kernel: {}", ended.stdout);
        }
        let _server = kernel_server(&net, folder);
        let script = "ip netns exec \"$1\" \"$2\" \"$3\" \"$4\" 10.77.0.2/24 --lose \"$5\" get \
                      10.77.0.1:8080 \"/$6\" | sha256sum";
        let (namespace, interface) = match *device {
            "tap" | "tun" => (&net.kernel, "line"),
            _ => (&net.ours, "mine"),
        };
        let helper = built("net-stack");
        let mut got = Command::new("bash");
        got.args(["-o", "pipefail", "-c", script, "sh", namespace]).arg(helper);
        let ended = run(got.args([device, interface, lose[1], name]));
        if ended.status == UNAVAILABLE {
            println!("skipped: {}", ended.stderr.trim());
            continue;
        }
        assert_eq!(
            ended.stdout.split(' ').next(),
            Some(sum.as_str()),
            "{device}: {}",
            ended.stderr
        );
        println!("{device}, the kernel to ours: {}", ended.stderr.trim());
    }
}

#[test]
fn tshark_reads_what_was_recorded() {
    for device in ["tap", "tun"] {
        let Some(net) = Net::new(device) else { continue };
        let pcap = Scratch::new("recorded.pcap");
        let (file, _) = random_file(5000);
        let options = ["--pcap", pcap.text()];
        let Some(helper) = net.serving(&options, &["serve", "8080", file.text()]) else { continue };
        let fetched = net.kernel(&["curl", "-sf", "-o", "/dev/null", &url(OURS[0], "/seen")]);
        assert_eq!(fetched.status, 0, "{}", helper.said());
        drop(helper);
        let read = |filter: &str, field: &str| {
            let argv = ["-r", pcap.text(), "-Y", filter, "-T", "fields", "-e", field];
            run(Command::new("tshark").args(argv))
        };
        let request = read("http.request", "http.request.uri");
        assert_eq!((request.status, request.stdout.as_str()), (0, "/seen\n"), "{}", request.stderr);
        let handshakes = read("tcp.flags.syn == 1", "ip.src");
        assert_eq!(handshakes.stdout, "10.77.0.1\n10.77.0.2\n");
        assert_eq!(read("http.response", "http.content_length").stdout, "5000\n");
        assert_eq!(read("_ws.malformed", "frame.number").stdout, "");
    }
}

#[test]
fn the_example_answers() {
    let Some(net) = Net::new("tap") else { return };
    let program = built("user-tcp");
    let argv = [program.to_str().expect("text"), "user7", OURS[0], KERNEL[0]];
    must(&format!("-n {} link del line", net.kernel));
    let child = net.beside(&argv).stdout(Stdio::null()).spawn().expect("ip");
    let _example = Running { child, log: Scratch::new("user-tcp") };
    let until = Instant::now() + PATIENCE;
    let said = loop {
        let ended = net.kernel(&["curl", "-sf", "-m", "5", "http://10.77.0.2/hello"]);
        if ended.status == 0 {
            break ended.stdout;
        }
        assert!(Instant::now() < until, "it does not come up");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(said.starts_with("GET /hello HTTP/1.1\nfrom 10.77.0.1:"), "{said}");
    assert_eq!(net.kernel(&["ping", "-c", "1", OURS[0]]).status, 0);
}

#[test]
fn a_closure_sees_frames_before_the_host() {
    let (file, _) = random_file(300_000);
    for device in ["tap", "packet", "xdp"] {
        let Some(net) = Net::new(device) else { continue };
        let command = ["serve", "8080", file.text()];
        let Some(helper) = net.serving(&["--guard", "8080"], &command) else { continue };
        // Who answers where the ping lies leaves its time to live as it was: the host would not.
        let pings = ["ping", "-c", "20", "-i", "0.01", "-W", "5", "-t", "7", OURS[0]];
        let ended = net.kernel(&pings);
        assert!(ended.stdout.contains("20 received"), "{device}: {}", ended.stdout);
        assert_eq!(ended.stdout.matches("ttl=7 ").count(), 20, "{device}: {}", ended.stdout);
        let to = Scratch::new("fetched");
        let fetched = net.kernel(&["curl", "-sf", "-o", to.text(), &url(OURS[0], "/")]);
        assert_eq!(fetched.status, 0, "{device}: {} {}", fetched.stderr, helper.said());
        assert_eq!(fs::read(&to.0).ok(), fs::read(&file.0).ok(), "{device}");
        // Nobody says that nobody listens there.
        let lost = net.kernel(&["curl", "-s", "-m", "1", "http://10.77.0.2:81/"]);
        assert_eq!(lost.status, CURL_TIMEOUT, "{device}: {}", lost.stderr);
        // What it does not know of goes on as ever.
        assert_eq!(net.kernel(&["ping", "-c", "3", "-i", "0.01", OURS[1]]).status, 0, "{device}");
    }
}

/// How curl says that nothing came in time.
const CURL_TIMEOUT: i32 = 28;

/// A sandbox beside the kernel's stack, whose extension `guard` sees the frames of the program `user-tcp` first.
struct Guarded {
    net: Net,
    sandbox: String,
    program: Option<Running>,
}

impl Guarded {
    fn new() -> Option<Self> {
        let net = Net::new("tap")?;
        // The program makes its own, on which the kernel says nothing by itself.
        must(&format!("-n {} link del line", net.kernel));
        let quiet = net.kernel(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
        assert_eq!(quiet.status, 0, "{}", quiet.stderr);
        let sandbox = format!("guarded-{}", std::process::id());
        let mut guarded = Self { net, sandbox, program: None };
        guarded.launcher(&["up", &guarded.sandbox]);
        guarded.load();
        let log = Scratch::new("user-tcp");
        let mut command = guarded.user_tcp("user7", "guard.frame");
        command.stdout(Stdio::null()).stderr(File::create(&log.0).expect("a file"));
        guarded.program = Some(Running { child: command.spawn().expect("ip"), log });
        // Once it answers.
        guarded.page();
        Some(guarded)
    }

    /// The program in the sandbox, whose frames a handler is to see.
    fn user_tcp(&self, interface: &str, handler: &str) -> Command {
        let [launcher, program] = ["sbx-launcher", "user-tcp"].map(built);
        let [launcher, program] = [&launcher, &program].map(|path| path.to_str().expect("text"));
        let argv = [launcher, "run", "--sandbox", &self.sandbox, "--", program];
        self.net.beside(&[&argv[..], &[interface, OURS[0], KERNEL[0], handler]].concat())
    }

    fn launcher(&self, args: &[&str]) -> String {
        let launcher = built("sbx-launcher");
        let argv = [&[launcher.to_str().expect("text")], args].concat();
        let ended = self.net.kernel(&argv);
        assert_eq!(ended.status, 0, "{args:?}: {}", ended.stderr);
        ended.stdout
    }

    fn load(&self) {
        let image = built("libguard.so");
        let config = format!("address={},port=80", OURS[0]);
        let image = image.to_str().expect("text");
        self.launcher(&["ext", "load", &self.sandbox, image, "--config", &config]);
    }

    /// What a handler of the extension says.
    fn count(&self, handler: &str) -> u64 {
        let said = self.launcher(&["call", &self.sandbox, handler]);
        said.trim().parse().unwrap_or_else(|_| panic!("{handler}: {said}"))
    }

    fn fetch(&self) -> Ended {
        self.net.kernel(&["curl", "-sf", "-m", "5", "http://10.77.0.2/hello"])
    }

    /// The program's page, once there is one: frames that came, and the verdicts on them.
    fn page(&self) -> (u64, [u64; 5]) {
        let until = Instant::now() + PATIENCE;
        let page = loop {
            let ended = self.fetch();
            if ended.status == 0 {
                break ended.stdout;
            }
            let said = || self.program.as_ref().map(Running::said);
            assert!(Instant::now() < until, "it does not answer: {:?}", said());
            std::thread::sleep(Duration::from_millis(50));
        };
        let numbers = |line: usize| -> Vec<u64> {
            let line = page.lines().nth(line).unwrap_or_else(|| panic!("{page}"));
            line.split(|of: char| !of.is_ascii_digit()).filter_map(|it| it.parse().ok()).collect()
        };
        (numbers(2)[0], numbers(3).try_into().unwrap_or_else(|_| panic!("{page}")))
    }

    /// Frames that the kernel has sent to the program.
    fn sent(&self) -> u64 {
        let shown = self.net.kernel(&["ip", "-j", "-s", "link", "show", "user7"]);
        let link: Value = serde_json::from_str(&shown.stdout).expect("JSON");
        link[0]["stats64"]["tx"]["packets"].as_u64().unwrap_or_else(|| panic!("{link}"))
    }

    /// A page that has every frame, and the verdicts in it.
    fn accounted(&self) -> [u64; 5] {
        let before = self.sent();
        let (received, verdicts) = self.page();
        println!("{received} frames; passed, answered, dropped, refused, failed: {verdicts:?}");
        assert_eq!(verdicts.iter().sum::<u64>(), received);
        assert!((before..=self.sent()).contains(&received), "{before} {received}");
        verdicts
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(Running { child, .. }) = &mut self.program {
            // The launcher hands that on to the program, which would outlive it otherwise.
            let pid = nix::unistd::Pid::from_raw(child.id() as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _ = child.wait();
        }
        let launcher = built("sbx-launcher");
        let argv = [launcher.to_str().expect("text"), "down", &self.sandbox];
        let _ = self.net.beside(&argv).status();
    }
}

#[test]
fn an_extension_sees_frames_before_the_host() {
    let Some(guarded) = Guarded::new() else { return };
    let [passed, ..] = guarded.accounted();
    assert!(passed > 0);
    let ping = |options: &[&str]| {
        let argv = [&["ping", "-i", "0.01", "-W", "5"], options, &[OURS[0]]].concat();
        let ended = guarded.net.kernel(&argv);
        assert_eq!(ended.status, 0, "{}{}", ended.stdout, ended.stderr);
    };
    ping(&["-c", "20"]);
    // Contents, too: ping compares them.
    ping(&["-c", "5", "-s", "1400", "-p", "5a"]);
    let lost = guarded.net.kernel(&["curl", "-s", "-m", "1", "http://10.77.0.2:81/"]);
    assert_eq!(lost.status, CURL_TIMEOUT, "{}", lost.stderr);
    let [_, answered, dropped, refused, failed] = guarded.accounted();
    assert_eq!((answered, guarded.count("guard.pings")), (25, 25));
    assert!(dropped >= 1, "nothing was dropped");
    assert_eq!((dropped, refused, failed), (guarded.count("guard.refused"), 0, 0));
}

#[test]
fn a_handler_that_is_gone_lets_nothing_through() {
    let Some(guarded) = Guarded::new() else { return };
    guarded.accounted();
    guarded.launcher(&["ext", "unload", &guarded.sandbox, "guard"]);
    let lost = guarded.net.kernel(&["curl", "-s", "-m", "1", "http://10.77.0.2/"]);
    assert_eq!(lost.status, CURL_TIMEOUT, "{}", lost.stderr);
    guarded.load();
    let [_, _, _, _, failed] = guarded.accounted();
    assert!(failed > 0, "what came meanwhile is counted");
    assert_eq!(guarded.count("guard.refused"), 0);
    // Another kind of handler, which would take a frame for numbers, and none.
    for (handler, why) in [("guard.pings", "BadArgs"), ("guard.none", "no handler guard.none")] {
        let ended = run(&mut guarded.user_tcp("user8", handler));
        assert!(ended.status == 1 && ended.stderr.contains(why), "{}", ended.stderr);
    }
}

#[test]
fn two_processes_speak_over_shared_memory() {
    let (file, sum) = random_file(if full() { 1 << 30 } else { 64 << 20 });
    let (memory, log) = (Scratch::new("ring"), Scratch::new("log"));
    let helper = |side: &str, address: &str, command: &[&str]| {
        let mut helper = Command::new(built("net-stack"));
        helper.args([side, memory.text(), address]).args(command);
        helper
    };
    let to = File::create(&log.0).expect("a file");
    let mut serve = helper("second", "10.78.0.2/24", &["serve", "80", file.text()]);
    let child = serve.stdout(Stdio::null()).stderr(to).spawn().expect("starts");
    let server = Running { child, log };
    // One that comes before the server listens is refused, or heard later.
    let until = Instant::now() + PATIENCE;
    let fetch = || {
        let to = Scratch::new("got");
        let mut get = helper("first", "10.78.0.1/24", &["get", "10.78.0.2:80", "/"]);
        let ended = get.stdout(File::create(&to.0).expect("a file")).output().expect("starts");
        ended.status.success().then(|| (to, String::from_utf8_lossy(&ended.stderr).into_owned()))
    };
    for _ in 0..3 {
        let (to, said) = loop {
            if let Some(fetched) = fetch() {
                break fetched;
            }
            assert!(Instant::now() < until, "{}", server.said());
        };
        assert_eq!(sum_of(&to), sum);
        println!("{}", said.trim());
    }
}
