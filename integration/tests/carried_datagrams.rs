//! Datagrams of unmodified programs through the region, beside the same without.

use std::io::{BufRead, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use integration::carried::{Running, carrying, number, outside, program, same_steps, sockets};
use integration::{Sandbox, Scratch, built, compile, full, run, talk_with};
use serde_json::Value;

/// What has come by rings, and what by the kernel though its receiver was awake, in bytes.
fn carried(sandbox: &Sandbox) -> (u64, u64) {
    let table = &sockets(sandbox)["datagrams"];
    let awake = number(table, "kernel_bytes") - number(table, "asleep_bytes");
    (number(table, "carried_bytes"), awake)
}

/// At least 95 in a hundred of the bytes whose receiver did not sleep went through the region, and these were more than
/// `fewest`.
fn mostly_carried(sandbox: &Sandbox, fewest: u64) {
    let (bytes, awake) = carried(sandbox);
    let share = bytes as f64 / (bytes + awake).max(1) as f64;
    eprintln!("{share:.3} of what was for receivers that were awake, {bytes} bytes");
    assert!(share > 0.95 && bytes > fewest, "{}", sockets(sandbox));
}

/// No datagram socket is left, a little after all have been closed.
fn wait_for_none(sandbox: &Sandbox) {
    let is_none = || {
        let table = sockets(sandbox);
        table["datagrams"]["sockets"].as_array().is_some_and(Vec::is_empty)
    };
    let until = std::time::Instant::now() + Duration::from_secs(8);
    while !is_none() {
        assert!(std::time::Instant::now() < until, "{}", sockets(sandbox));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn random_steps_come_to_the_same() {
    let sandbox = carrying("datagram-steps");
    let steps = compile("cc", "steps_datagrams", &[]);
    let (seeds, count) = if full() { (300, "20000") } else { (25, "5000") };
    same_steps(&sandbox, steps.text(), seeds, count, 3);
    assert!(carried(&sandbox).0 > 1_000_000, "{}", sockets(&sandbox));
    wait_for_none(&sandbox);
}

#[test]
fn python_uses_datagrams_in_every_way() {
    let sandbox = carrying("datagrams");
    let argv = ["/usr/bin/python3", &program("datagrams.py")];
    let native = outside(&argv);
    assert_eq!((native.status, native.stderr.as_str()), (0, ""));
    assert_eq!(sandbox.run(&argv), native);
    mostly_carried(&sandbox, 1_000_000);
    // The same with a handler on every call.
    sandbox.load(&built("libthrough.so"));
    assert_eq!(sandbox.run(&argv), native);
    wait_for_none(&sandbox);
}

#[test]
fn python_uses_named_unix_datagrams_in_every_way() {
    let sandbox = carrying("local-datagrams");
    let argv = ["/usr/bin/python3", &program("local_datagrams.py")];
    let native = outside(&argv);
    assert_eq!((native.status, native.stderr.as_str()), (0, ""));
    assert_eq!(sandbox.run(&argv), native);
    assert!(carried(&sandbox).0 > 1_000_000, "{}", sockets(&sandbox));
    wait_for_none(&sandbox);
}

/// A path is looked at each time, as the kernel does.
#[test]
fn what_is_sent_to_a_path_comes_to_who_is_there_now() {
    let (sandbox, at) = (carrying("path-datagrams"), Scratch::new("path"));
    let script = "
import os, socket, sys
at = sys.argv[1]
def made(*at):
    one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    list(map(one.bind, at))
    one.settimeout(10)
    return one
server, client = made(at), made()
for number in range(100):
    client.sendto(b'%d' % number, at)
    assert server.recv(9) == b'%d' % number
os.unlink(at)
print('gone', flush=True)
input()
for number in range(100):
    client.sendto(b'%d' % number, at)
    server.setblocking(False)
    try:
        print('heard', server.recv(9))
    except BlockingIOError:
        input()
print('apart')
";
    let args = ["run", "--sandbox", &sandbox.name, "--", "/usr/bin/python3", "-c", script];
    let mut command = Command::new(built("sbx-launcher"));
    let (mut child, lines) = talk_with(command.args(args).arg(at.text()));
    let (mut lines, mut input) = (lines.lines(), child.stdin.take().expect("piped"));
    assert_eq!(lines.next().transpose().expect("a line").as_deref(), Some("gone"));
    assert!(carried(&sandbox).0 > 100, "{}", sockets(&sandbox));
    let stranger = UnixDatagram::bind(at.text()).expect("a socket there");
    stranger.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
    writeln!(input).expect("it reads");
    for number in 0..100 {
        let mut got = [0; 9];
        let len = stranger.recv(&mut got).expect("a datagram");
        assert_eq!(String::from_utf8_lossy(&got[..len]), number.to_string());
        writeln!(input).expect("it reads");
    }
    assert_eq!(lines.next().transpose().expect("a line").as_deref(), Some("apart"));
    assert!(child.wait().expect("its end").success());
}

#[test]
fn go_answers_itself() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/udp");
    let binary = Scratch::new("udp");
    let built = run(Command::new("go")
        .args(["build", "-o", binary.text(), "."])
        .current_dir(folder)
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", std::env::temp_dir().join("sbx-go-cache"))
        .env("GOFLAGS", "-mod=mod"));
    assert_eq!(built.status, 0, "{}", built.stderr);
    let sandbox = carrying("go-datagrams");
    let native = outside(&[binary.text()]);
    assert_eq!((native.status, native.stdout.as_str()), (0, "as sent\n"), "{}", native.stderr);
    assert_eq!(sandbox.run(&[binary.text()]), native);
    mostly_carried(&sandbox, 10_000_000);
}

#[test]
fn iperf3_measures_udp_and_strangers_do_as_well() {
    let sandbox = carrying("iperf3-datagrams");
    let _server =
        Running::start(Some(&sandbox), &["iperf3", "-s", "-B", "127.0.0.1", "-p", "7481"]);
    let client = ["iperf3", "-c", "127.0.0.1", "-p", "7481", "-u", "-t", "1", "-J"];
    integration::carried::wait_for(&[&client[..], &["-b", "1M"]].concat());
    let measured = |stdout: &str, more: &[&str]| {
        let report: Value = serde_json::from_str(stdout).expect("iperf3 prints JSON");
        let packets = report["end"]["sum"]["packets"].as_f64();
        assert!(packets > Some(1000.0), "{more:?}: {report}");
        let of_order = report["end"]["streams"][0]["udp"]["out_of_order"].as_f64();
        assert_eq!(of_order, Some(0.0), "{more:?}: {report}");
    };
    for more in [&["-b", "0"][..], &["-b", "0", "-R"], &["-b", "200M", "-l", "1000"]] {
        measured(&sandbox.run(&[&client[..], more].concat()).stdout, more);
        measured(&outside(&[&client[..], more].concat()).stdout, more);
    }
    mostly_carried(&sandbox, 1_000_000);
}

#[test]
fn senders_and_receivers_that_are_killed_cost_others_nothing() {
    let sandbox = carrying("killed-datagrams");
    let script = "
import os, random, signal, socket, sys, time
random.seed(int(sys.argv[1]))
family = getattr(socket, sys.argv[2])
def made():
    one = socket.socket(family, socket.SOCK_DGRAM)
    # Of AF_UNIX, an abstract name that the kernel chooses.
    one.bind('' if family == socket.AF_UNIX else ('127.0.0.1', 0))
    return one
def ask(rounds):
    one = made()
    one.settimeout(10)
    one.connect(server.getsockname())
    number = 0
    while number < rounds:
        text = b'%d.' % number * random.randrange(1, 900)
        one.send(text)
        got = one.recv(9000)
        assert got == text, (number, got[:20], text[:20])
        number += 1
    os._exit(0)
def forked(act, *args):
    child = os.fork()
    if child == 0:
        try:
            act(*args)
        finally:
            os._exit(3)
    return child
def answer():
    while True:
        answer_one()
def answer_one():
    text, sender = server.recvfrom(9000)
    try:
        server.sendto(text, sender)
    except ConnectionRefusedError:
        pass
server = made()
helper = forked(answer)
busy = [forked(ask, 1 << 40) for _ in range(3)]
good = [forked(ask, 1500) for _ in range(2)]
for child in busy:
    time.sleep(random.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
for child in good:
    assert os.waitpid(child, 0)[1] == 0
# Of two that receive, the one that is left goes on; of none, whoever asks is told.
os.kill(helper, signal.SIGKILL)
os.waitpid(helper, 0)
good = forked(ask, 300)
server.settimeout(0.05)
while (ended := os.waitpid(good, os.WNOHANG))[0] == 0:
    # What killed senders have left may come first.
    try:
        answer_one()
    except TimeoutError:
        pass
assert ended[1] == 0
server.settimeout(None)
one = made()
one.connect(server.getsockname())
for _ in range(9):
    one.send(b'x')
    server.recv(9)
server.close()
try:
    for _ in range(100):
        one.send(b'x')
    print('not told')
except ConnectionRefusedError:
    print('all')
";
    for seed in 0..if full() { 200 } else { 20 } {
        let family = if seed % 2 == 0 { "AF_INET" } else { "AF_UNIX" };
        let ended = sandbox.run(&["/usr/bin/python3", "-c", script, &seed.to_string(), family]);
        assert_eq!((ended.status, ended.stdout.as_str()), (0, "all\n"), "{family} {ended:?}");
    }
    wait_for_none(&sandbox);
}

#[test]
fn whoever_is_told_more_than_datagrams_or_shares_a_port_has_them_from_the_kernel() {
    let sandbox = carrying("kernels-datagrams");
    let script = "
import socket
def made(*options):
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in options:
        one.setsockopt(*option, 1)
    one.bind(('127.0.0.1', 0))
    one.settimeout(10)
    return one
IP_PKTINFO, SO_TIMESTAMP = 8, 29
for options in ((socket.SOL_SOCKET, socket.SO_REUSEPORT),), ((socket.IPPROTO_IP, IP_PKTINFO),), \\
        ((socket.SOL_SOCKET, SO_TIMESTAMP),), ((socket.SOL_SOCKET, socket.SO_REUSEADDR),):
    server, client = made(*options), made()
    for number in range(100):
        client.sendto(b'%d' % number, server.getsockname())
        text, told, _, sender = server.recvmsg(99, 99)
        assert text == b'%d' % number and sender == client.getsockname()
    print(options[0][1], len(told))
# Of two with the same port the kernel says which one hears.
one = made((socket.SOL_SOCKET, socket.SO_REUSEADDR))
other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
other.bind(one.getsockname())
other.settimeout(10)
client = made()
client.sendto(b'x', one.getsockname())
print(other.recv(9))
";
    let argv = ["/usr/bin/python3", "-c", script];
    let native = outside(&argv);
    assert_eq!((native.status, native.stderr.as_str()), (0, ""));
    assert_eq!(sandbox.run(&argv), native);
    assert_eq!(carried(&sandbox).0, 0, "{}", sockets(&sandbox));
}

#[test]
fn participants_of_other_network_namespaces_hear_their_own_only() {
    let sandbox = carrying("spaces-datagrams");
    let script = "
import ctypes, os, socket
CLONE_NEWNET = 0x40000000
def made(port):
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(('127.0.0.1', port))
    one.settimeout(10)
    return one
here = made(7482)
assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
os.system('ip link set lo up')
there, client = made(7482), made(0)
for number in range(200):
    client.sendto(b'%d' % number, ('127.0.0.1', 7482))
    assert there.recv(9) == b'%d' % number
here.setblocking(False)
try:
    print('heard', here.recv(9))
except BlockingIOError:
    print('apart')
";
    let ended = sandbox.run(&["/usr/bin/python3", "-c", script]);
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "apart\n"), "{ended:?}");
    assert!(carried(&sandbox).0 > 100, "{}", sockets(&sandbox));
}
