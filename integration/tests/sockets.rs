//! Local sockets of unmodified programs through the region, beside the same without.

use std::fs;
use std::path::Path;
use std::process::Command;

use integration::carried::{
    Running, UNTIL_KILLED, carried, carrying, mostly_carried, number, outside, program, same_steps,
    sockets, wait_for, wait_for_none,
};
use integration::{Scratch, built, compile, full, run};
use serde_json::Value;

#[test]
fn random_steps_come_to_the_same() {
    let sandbox = carrying("steps");
    let steps = compile("cc", "steps", &[]);
    let (seeds, count) = if full() { (200, "20000") } else { (20, "5000") };
    same_steps(&sandbox, steps.text(), seeds, count, 3);
    let (_, bytes) = carried(&sandbox);
    assert!(bytes > 1_000_000, "{bytes}");
}

#[test]
fn python_talks_to_itself_in_every_way() {
    let sandbox = carrying("talk");
    let talk = program("talk.py");
    let argv = ["/usr/bin/python3", &talk];
    let native = outside(&argv);
    assert_eq!((native.status, native.stderr.as_str()), (0, ""));
    assert_eq!(sandbox.run(&argv), native);
    let (share, _) = carried(&sandbox);
    assert!(share > 0.95, "{share}");
    // The same with a handler on every call.
    sandbox.load(&built("libthrough.so"));
    assert_eq!(sandbox.run(&argv), native);
}

#[test]
fn redis_answers_through_the_region() {
    let sandbox = carrying("redis");
    let folder = Scratch::new("redis-carried");
    fs::create_dir(&folder.0).expect("made");
    let path = folder.text();
    let [port, replica] = ["7471", "7472"];
    let server = |port: &str, more: &[&str]| {
        let socket = format!("{path}/{port}.sock");
        let own = ["redis-server", "--port", port, "--dir", path, "--unixsocket", &socket];
        let argv: Vec<&str> =
            own.iter().chain(&["--save", "", "--dbfilename", port]).chain(more).copied().collect();
        Running::start(Some(&sandbox), &argv)
    };
    let _server = server(port, &[]);
    wait_for(&["redis-cli", "-p", port, "ping"]);
    let script = "redis-cli -p 7471 set a 1; redis-cli -p 7471 incr a; \
        printf 'multi\\nincr a\\nincr a\\nexec\\n' | redis-cli -p 7471; \
        redis-cli -p 7471 eval 'return {KEYS[1], redis.call(\"get\", KEYS[1])}' 1 a; \
        head -c 300000 /dev/zero | tr '\\0' x | redis-cli -p 7471 -x set large; \
        redis-cli -p 7471 get large | md5sum; redis-cli -p 7471 bgsave; sleep 0.5; \
        redis-cli -p 7471 lastsave | wc -c; redis-cli -p 7471 subscribe news > /dev/null & p=$!; \
        sleep 0.3; redis-cli -p 7471 publish news hello; kill $p; \
        redis-cli -p 7471 get missing; redis-cli -p 7471 nonsense";
    // From outside it is a server like any other.
    let argv = ["/bin/bash", "-c", script];
    let native = outside(&argv);
    assert!(native.stdout.contains("OK\n2\n"), "{native:?}");
    wait_for(&["redis-cli", "-p", port, "flushall"]);
    assert_eq!(sandbox.run(&argv), native);
    let _replica = server(replica, &["--replicaof", "127.0.0.1 7471"]);
    wait_for(&["redis-cli", "-p", replica, "ping"]);
    let argv = [
        "redis-benchmark",
        "-p",
        port,
        "-q",
        "-n",
        "20000",
        "-t",
        "set,get,lpush,mset",
        "-r",
        "1000",
    ];
    assert_eq!(sandbox.run(&argv).status, 0);
    let socket = format!("{path}/{port}.sock");
    let argv = ["redis-benchmark", "-s", &socket, "-q", "-n", "20000", "-t", "get,set", "-P", "16"];
    assert_eq!(sandbox.run(&argv).status, 0);
    let sum = |port: &str| outside(&["redis-cli", "-p", port, "debug", "digest"]).stdout;
    wait_for(&[
        "/bin/bash",
        "-c",
        "[ \"$(redis-cli -p 7471 dbsize)\" = \"$(redis-cli -p 7472 dbsize)\" ]",
    ]);
    assert_eq!(sum(port), sum(replica));
    mostly_carried(&sandbox, 1_000_000);
}

const NGINX: &str = "
worker_processes 2; daemon off; pid FOLDER/pid; error_log FOLDER/error;
events { worker_connections 512; }
http {
  access_log off; sendfile on; tcp_nopush on; client_body_temp_path FOLDER/body; proxy_temp_path FOLDER/proxy;
  fastcgi_temp_path FOLDER/f; uwsgi_temp_path FOLDER/u; scgi_temp_path FOLDER/s; client_max_body_size 100m;
  upstream named { server unix:FOLDER/sock; }
  server { listen 127.0.0.1:7473; listen unix:FOLDER/sock; root FOLDER;
    location /reply { return 200 ok; }
    location /again/ { proxy_pass http://named/; }
    location /python/ { proxy_pass http://127.0.0.1:7474/; }
    location /stranger/ { proxy_pass http://127.0.0.1:7475/; }
  }
}";

#[test]
fn nginx_serves_through_the_region() {
    let sandbox = carrying("nginx");
    let folder = Scratch::new("nginx-carried");
    fs::create_dir(&folder.0).expect("made");
    let path = folder.text();
    fs::write(format!("{path}/conf"), NGINX.replace("FOLDER", path)).expect("written");
    let large: Vec<u8> =
        (0..20_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(format!("{path}/large"), &large).expect("written");
    fs::write(format!("{path}/small"), "a small file\n").expect("written");
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    let conf = format!("{path}/conf");
    let _nginx = Running::start(Some(&sandbox), &["nginx", "-c", &conf, "-p", path]);
    let _python = Running::start(
        Some(&sandbox),
        &["/usr/bin/python3", "-m", "http.server", "-b", "127.0.0.1", "-d", path, "7474"],
    );
    let _stranger = Running::start(
        None,
        &["/usr/bin/python3", "-m", "http.server", "-b", "127.0.0.1", "-d", path, "7475"],
    );
    for port in ["7473", "7474", "7475"] {
        wait_for(&["curl", "-sf", &format!("http://127.0.0.1:{port}/small")]);
    }
    let script = format!(
        "u=http://127.0.0.1:7473; for p in large small reply again/large again/reply python/large python/small \
         stranger/large stranger/small missing; do echo $p; curl -s -m 20 $u/$p | md5sum; done; \
         curl -s --unix-socket {path}/sock http://x/large | md5sum; \
         for i in 1 2 3 4 5 6 7 8; do curl -s $u/large | md5sum & done; wait; \
         curl -s -Z -m 30 -o {path}/one $u/large -o {path}/two $u/large 2>/dev/null; cat {path}/one | md5sum; \
         curl -s -m 20 -o /dev/null -w '%{{http_code}} %{{num_connects}}\\n' $u/small $u/reply; \
         curl -s -m 20 -o /dev/null -w '%{{http_code}}\\n' --data-binary @{path}/large $u/reply"
    );
    let argv = ["/bin/bash", "-c", &script];
    // Who is not in the sandbox notices nothing.
    let native = outside(&argv);
    assert!(native.stdout.contains("200 0\n"), "{native:?}");
    assert_eq!(sandbox.run(&argv), native);
    let pid = fs::read_to_string(format!("{path}/pid")).expect("nginx runs");
    assert_eq!(outside(&["kill", "-HUP", pid.trim()]).status, 0);
    let argv = ["wrk", "-t1", "-c20", "-d1", "http://127.0.0.1:7473/small"];
    let ended = sandbox.run(&argv);
    assert!(ended.status == 0 && !ended.stdout.contains("Non-2xx"), "{ended:?}");
    assert_eq!(sandbox.run(&["/bin/bash", "-c", &script]), native);
    mostly_carried(&sandbox, 100_000_000);
}

const HAPROXY: &str = "
defaults
  mode http
  timeout connect 5s
  timeout client 20s
  timeout server 20s
frontend all
  bind 127.0.0.1:7476
  default_backend one
backend one
  server one 127.0.0.1:7477
";

#[test]
fn haproxy_memcached_and_iperf3_work_as_ever() {
    let sandbox = carrying("others");
    let folder = Scratch::new("others-carried");
    fs::create_dir(&folder.0).expect("made");
    let path = folder.text();
    let conf = format!("{path}/conf");
    fs::write(&conf, HAPROXY).expect("written");
    let large: Vec<u8> =
        (0..20_000_000u32).map(|at| (at.wrapping_mul(40_503) >> 7) as u8).collect();
    fs::write(format!("{path}/large"), &large).expect("written");
    let web = ["/usr/bin/python3", "-m", "http.server", "-b", "127.0.0.1", "-d", path, "7477"];
    let _web = Running::start(Some(&sandbox), &web);
    let _haproxy = Running::start(Some(&sandbox), &["haproxy", "-f", &conf]);
    let memcached = ["memcached", "-u", "nobody", "-l", "127.0.0.1", "-p", "7478", "-t", "4"];
    let _memcached = Running::start(Some(&sandbox), &memcached);
    let iperf3 = ["iperf3", "-s", "-B", "127.0.0.1", "-p", "7479"];
    let _iperf3 = Running::start(Some(&sandbox), &iperf3);
    wait_for(&["curl", "-sf", "-o", "/dev/null", "http://127.0.0.1:7476/conf"]);
    let script = format!(
        "for i in 1 2 3; do curl -s -m 20 http://127.0.0.1:7476/large | md5sum; done; md5sum < {path}/large; \
         for i in $(seq 20); do curl -s -m 20 http://127.0.0.1:7476/conf | md5sum; done"
    );
    let argv = ["/bin/bash", "-c", &script];
    let native = outside(&argv);
    assert_eq!(sandbox.run(&argv), native);
    mostly_carried(&sandbox, 10_000_000);
    let script = "
import socket, threading
def ask(which):
    one = socket.create_connection(('127.0.0.1', 7478))
    file = one.makefile('rwb')
    for i in range(500):
        value = bytes([which]) * (i * 97 % 20000)
        file.write(b'set k%d-%d 0 0 %d\\r\\n%s\\r\\n' % (which, i, len(value), value))
        file.flush()
        assert file.readline() == b'STORED\\r\\n'
        file.write(b'get k%d-%d\\r\\n' % (which, i))
        file.flush()
        assert file.readline().split()[-1] == b'%d' % len(value)
        assert file.read(len(value) + 2) == value + b'\\r\\n' and file.readline() == b'END\\r\\n'
threads = [threading.Thread(target=ask, args=(which,)) for which in range(1, 9)]
[one.start() for one in threads]; [one.join() for one in threads]
print('as stored')
";
    let ended = sandbox.run(&["/usr/bin/python3", "-c", script]);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("as stored\n", ""));
    mostly_carried(&sandbox, 40_000_000);
    for more in [&["-R"][..], &["-P", "3"], &[]] {
        let fixed = ["iperf3", "-c", "127.0.0.1", "-p", "7479", "-t", "1", "-J"];
        let ended = sandbox.run(&[&fixed[..], more].concat());
        let report: Value = serde_json::from_str(&ended.stdout).expect("iperf3 prints JSON");
        let bytes = &report["end"]["sum_received"]["bytes"];
        assert!(ended.status == 0 && bytes.as_f64() > Some(1e7), "{more:?}: {report}");
    }
    mostly_carried(&sandbox, 100_000_000);
}

#[test]
fn node_and_go_serve_themselves() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/web");
    let binary = Scratch::new("web");
    let web = binary.text();
    let built = run(Command::new("go")
        .args(["build", "-o", web, "."])
        .current_dir(folder)
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", std::env::temp_dir().join("sbx-go-cache"))
        .env("GOFLAGS", "-mod=mod"));
    assert_eq!(built.status, 0, "{}", built.stderr);
    let node = program("web.js");
    for argv in [vec!["/usr/bin/node", node.as_str()], vec![web]] {
        let native = outside(&argv);
        assert_eq!((native.status, native.stdout.as_str()), (0, "as sent\n"), "{}", native.stderr);
        let sandbox = carrying("runtimes");
        assert_eq!(sandbox.run(&argv), native);
        mostly_carried(&sandbox, 10_000_000);
    }
}

#[test]
fn a_side_that_is_killed_leaves_an_end_and_no_row() {
    let sandbox = carrying("killed");
    let script = "
import os, random, signal, socket, sys, time
random.seed(int(sys.argv[1]))
server = socket.socket()
server.bind(('127.0.0.1', 0))
server.listen()
child = os.fork()
if child == 0:
    one = socket.create_connection(server.getsockname())
    server.close()
    while True:
        one.sendall(random.randbytes(random.randrange(1, 60000)))
        one.recv(random.randrange(1, 5000))
one, _ = server.accept()
";
    let script = format!("{script}{UNTIL_KILLED}");
    let rounds = if full() { 200 } else { 20 };
    for seed in 0..rounds {
        let ended = sandbox.run(&["/usr/bin/python3", "-c", &script, &seed.to_string()]);
        assert_eq!((ended.status, ended.stdout.as_str()), (0, "an end\n"), "{ended:?}");
    }
    wait_for_none(&sandbox);
    assert_eq!(number(&sockets(&sandbox), "carried"), rounds);
}

#[test]
fn handlers_on_a_small_stack_of_their_own_may_send() {
    let sandbox = carrying("handlers");
    // Both at once, one on top of the other, on the stack that faulthandler has allocated.
    let script = "
import signal, socket
both = signal.SIGUSR1, signal.SIGUSR2
one, two = socket.socketpair()
two.setblocking(False)
signal.set_wakeup_fd(two.fileno())
for each in both:
    signal.signal(each, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, both)
for each in both:
    signal.raise_signal(each)
signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
print(sorted(one.recv(3)))
";
    for _ in 0..3 {
        let python = ["/usr/bin/python3", "-X", "faulthandler", "-I", "-c", script];
        let ended = sandbox.run(&python);
        assert_eq!((ended.status, ended.stdout.as_str()), (0, "[10, 12]\n"), "{ended:?}");
    }
}

#[test]
fn while_one_that_sends_or_receives_is_stopped_others_go_on() {
    let sandbox = carrying("stopped");
    let program = compile("cc", "stopped", &[]);
    let rounds = if full() { "500" } else { "60" };
    let writers = ["pipe", "stream", "seqpacket"].map(|kind| (kind, "writers"));
    let readers = ["stream", "seqpacket", "datagram"].map(|kind| (kind, "readers"));
    for (kind, who) in writers.into_iter().chain(readers) {
        let told = format!("{kind}: 0 wait, 0\n");
        let run = || sandbox.run(&[program.text(), kind, rounds, who]);
        let mut ended = run();
        // A reader that is stopped while it takes a bell away keeps the others waiting (README): seen in one of 25 runs.
        for _ in 0..if who == "readers" { 2 } else { 0 } {
            if ended.stdout != told {
                eprintln!("once more, after {ended:?}");
                ended = run();
            }
        }
        assert_eq!((ended.status, ended.stdout.as_str()), (0, told.as_str()), "{who}: {ended:?}");
    }
}

#[test]
fn lines_that_several_write_to_one_stream_stay_whole() {
    let sandbox = carrying("together");
    let program = compile("cc", "together", &[]);
    for seed in 1..=if full() { 100 } else { 8 } {
        let ended = sandbox.run(&[program.text(), &seed.to_string(), "1000"]);
        assert_eq!((ended.status, ended.stdout.as_str()), (0, "all\n"), "seed {seed}: {ended:?}");
    }
    assert!(carried(&sandbox).1 > 1_000);
}

#[test]
fn a_stranger_that_is_handed_a_socket_reads_all() {
    let sandbox = carrying("handed");
    let folder = Scratch::new("handed-stranger");
    let socket = folder.text();
    let _stranger = Running::start(None, &["/usr/bin/python3", &program("stranger.py"), socket]);
    wait_for(&["test", "-S", socket]);
    let argv = ["/usr/bin/python3", &program("handed.py"), socket];
    let native = outside(&argv);
    assert_eq!((native.status, native.stdout.lines().count()), (0, 12), "{native:?}");
    assert_eq!(sandbox.run(&argv), native);
    assert!(carried(&sandbox).1 > 1_000);
}

#[test]
fn an_idle_pair_costs_nothing() {
    let sandbox = carrying("idle");
    let script = "
import os, resource, select, socket, threading, time
server = socket.socket()
server.bind(('127.0.0.1', 0))
server.listen()
one = socket.create_connection(server.getsockname())
two, _ = server.accept()
for _ in range(100):
    one.send(b'x'); two.recv(1); two.send(b'y'); one.recv(1)
threading.Thread(target=two.recv, args=(1,), daemon=True).start()
epoll = select.epoll()
epoll.register(one, select.EPOLLIN)
before = time.process_time()
epoll.poll(2)
print('idle' if time.process_time() - before < 0.02 else time.process_time() - before)
";
    let ended = sandbox.run(&["/usr/bin/python3", "-c", script]);
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "idle\n"), "{ended:?}");
}

#[test]
fn a_region_that_is_too_small_for_the_rings_is_refused() {
    let ended = integration::launcher(&["run", "--size", "600", "--sockets", "--", "/bin/true"]);
    assert_eq!(ended.status, 125);
    assert!(ended.stderr.contains("give a larger --size"), "{}", ended.stderr);
}
