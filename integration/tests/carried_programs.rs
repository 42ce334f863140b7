//! Large programs in a sandbox that carries their connections, beside the same without: a cluster, a database,
//! CPython's own tests, and very many connections.

use std::fs;
use std::process::Command;

use integration::carried::{
    Running, carried, carrying, mostly_carried, number, outside, program, sockets, wait_for,
};
use integration::{Ended, Sandbox, Scratch, full, run};

/// An empty folder.
fn folder(name: &str) -> Scratch {
    let folder = Scratch::new(name);
    fs::create_dir(&folder.0).expect("a scratch folder");
    folder
}

/// Run a script of the shell's in the sandbox.
fn inside(sandbox: &Sandbox, script: &str) -> Ended {
    sandbox.run(&["/bin/bash", "-c", script])
}

const CLUSTER: [&str; 3] = ["7501", "7502", "7503"];

#[test]
fn a_cluster_of_three_redis_servers_holds_keys_of_all_slots() {
    let sandbox = carrying("cluster");
    let folder = folder("cluster");
    let servers = CLUSTER.map(|port| {
        let (own, conf) = (["redis-server", "--port", port], format!("{port}.conf"));
        let memory = ["--dir", folder.text(), "--save", "", "--dbfilename", port];
        let cluster = ["--cluster-enabled", "yes", "--cluster-config-file", &conf];
        Running::start(Some(&sandbox), &[&own[..], &memory, &cluster].concat())
    });
    for port in CLUSTER {
        wait_for(&["redis-cli", "-p", port, "ping"]);
    }
    let nodes = CLUSTER.map(|port| format!("127.0.0.1:{port}"));
    let create = ["redis-cli", "--cluster", "create", &nodes[0], &nodes[1], &nodes[2]];
    let created = sandbox.run(&[&create[..], &["--cluster-yes"]].concat());
    assert!(created.stdout.contains("All 16384 slots covered"), "{created:?}");
    wait_for(&["/bin/bash", "-c", "redis-cli -p 7502 cluster info | grep -q state:ok"]);
    // Without -c a key of another node's is an error: with it, the client goes there.
    let script = "for i in $(seq 3000); do echo \"set key:$i value$i\"; done \
        | redis-cli -c -p 7501 | grep -v '^->' | sort | uniq -c; \
        for i in $(seq 3000); do echo \"get key:$i\"; done | redis-cli -c -p 7503 | grep -v '^->' | md5sum; \
        redis-cli -p 7501 get key:1; redis-cli -p 7502 get key:1; redis-cli -p 7503 get key:1; \
        for p in 7501 7502 7503; do redis-cli -p $p dbsize; done; redis-cli -c -p 7502 cluster countkeysinslot 9189; \
        redis-cli -c -p 7501 eval 'return redis.call(\"get\", KEYS[1])' 1 key:77";
    let carried_so = inside(&sandbox, script);
    assert!(carried_so.stdout.contains("3000 OK"), "{carried_so:?}");
    assert_eq!(carried_so, outside(&["/bin/bash", "-c", script]));
    let bench = ["redis-benchmark", "--cluster", "-p", CLUSTER[0], "-t", "set,get", "-r", "100000"];
    assert_eq!(sandbox.run(&[&bench[..], &["-n", "50000", "-q"]].concat()).status, 0);
    // What a node says of others it has from its own connections to them.
    let check = ["redis-cli", "--cluster", "check", &nodes[1]];
    let checked = sandbox.run(&check);
    assert!(checked.stdout.contains("All nodes agree about slots"), "{checked:?}");
    mostly_carried(&sandbox, 2_000_000);
    drop(servers);
}

/// What PostgreSQL has of its programs, of whatever version.
fn postgres_programs() -> String {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("the package postgresql");
    let all = versions.map(|entry| entry.expect("a folder").path().join("bin"));
    let newest = all.filter(|path| path.join("initdb").is_file()).max().expect("a server");
    newest.to_str().expect("a UTF-8 path").to_owned()
}

const PSQL: &str = "
p=\"psql -X -q -U postgres -h HOST -p 7504 postgres\"
$p -c 'set client_min_messages = warning' -c 'drop table if exists t' -c 'create table t as select i, md5(i::text) as m from generate_series(1, 50000) i' 2>&1
$p -At -c 'select count(*), max(m), sum(i) from t'; $p -c '\\copy t to stdout' | md5sum
$p -c '\\copy t to stdout' | sed 's/^/9/' | $p -c '\\copy t from stdin'; $p -At -c 'select count(*) from t'
$p -At -c 'select repeat(m, 20000) from t order by i limit 5' | md5sum
$p -c 'select nonsense' 2>&1; echo $?; $p -v ON_ERROR_STOP=1 -c 'select 1/0' 2>&1; echo $?
$p -At -c 'listen a' -c \"notify a, 'b'\" -c 'select 1' | sed 's/PID .*//'
for i in 1 2 3 4; do $p -At -c \"update t set i = i + 4 where i % 4 = $i % 4\" & done; wait
$p -At -c 'select sum(i) from t'
";

#[test]
fn postgres_answers_psql_and_pgbench() {
    let sandbox = carrying("postgres");
    let folder = folder("postgres");
    let (programs, path) = (postgres_programs(), folder.text());
    // It refuses to run as root.
    let is_root = nix::unistd::geteuid().is_root();
    let as_other = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"];
    let as_other = if is_root { &as_other[..] } else { &[] };
    if is_root {
        assert_eq!(outside(&["chown", "postgres", path]).status, 0);
    }
    let (data, initdb) = (format!("{path}/data"), format!("{programs}/initdb"));
    let make = [&initdb, "-D", &data, "-A", "trust", "-U", "postgres", "--no-sync"];
    let made = outside(&[as_other, &make].concat());
    assert_eq!(made.status, 0, "{made:?}");
    let server = format!("{programs}/postgres");
    let server =
        [&server, "-D", &data, "-p", "7504", "-k", path, "-h", "127.0.0.1", "-c", "fsync=off"];
    let _server = Running::start(Some(&sandbox), &[as_other, &server].concat());
    wait_for(&["pg_isready", "-q", "-h", "127.0.0.1", "-p", "7504"]);
    let pgbench = |host: &str, more: &[&str]| {
        let own = ["pgbench", "-n", "-U", "postgres", "-h", host, "-p", "7504"];
        sandbox.run(&[&own[..], more, &["postgres"]].concat())
    };
    assert_eq!(pgbench("127.0.0.1", &["-i", "-q"]).status, 0);
    for host in ["127.0.0.1", path] {
        let script = PSQL.replace("HOST", host);
        // Who is not in the sandbox notices nothing.
        let native = outside(&["/bin/bash", "-c", &script]);
        assert!(native.stdout.contains("100000\n"), "{native:?}");
        assert_eq!(inside(&sandbox, &script), native);
        for (clients, kind) in [("1", "-S"), ("8", "-S"), ("4", "--builtin=tpcb-like")] {
            let count = if kind == "-S" { "2000" } else { "50" };
            let ended = pgbench(host, &["-c", clients, "-t", count, kind, "-M", "prepared"]);
            let all = clients.parse::<u32>().unwrap_or(0) * count.parse::<u32>().unwrap_or(0);
            let done = format!("actually processed: {all}/{all}\n");
            assert!(ended.status == 0 && ended.stdout.contains(&done), "{ended:?}");
            assert!(ended.stdout.contains("failed transactions: 0 "), "{ended:?}");
        }
    }
    mostly_carried(&sandbox, 2_000_000);
}

/// Suites of CPython's own, with what chooses some of their tests, and the fewest that there are.
fn suites() -> Vec<(Vec<&'static str>, usize)> {
    // The machine may have AF_VSOCK without anybody who answers.
    const NO_VSOCK: [&str; 2] = ["-i", "*VSOCK*"];
    let chosen = |suite, these: &[&'static str]| {
        let choice = these.iter().flat_map(|these| ["-m", *these]);
        choice.chain(NO_VSOCK).chain([suite]).collect::<Vec<_>>()
    };
    let some =
        ["*Sendfile*", "*UDP*", "*BasicTCP*", "*NonBlock*", "*FileObject*", "*CreateConnection*"];
    let managers = [
        "*WithManagerTestQueue*",
        "*WithManagerTestContainers*",
        "*SyncManagerTypes*",
        "*TestRemoteManager*",
        "*ManagerRestart*",
        "*MyManager*",
    ];
    let mut suites = vec![
        (vec!["test_socketserver"], 20),
        (vec!["test_httpservers"], 60),
        (chosen("test_socket", &some), 120),
        (
            chosen(
                "test_asyncio",
                &["*test_streams*", "*test_sendfile*", "*test_server*", "*Datagram*"],
            ),
            120,
        ),
        (
            chosen(
                "test_ssl",
                &[
                    "*test_connect*",
                    "*test_bio*",
                    "*test_ciphers*",
                    "*test_get_server*",
                    "*test_alpn*",
                ],
            ),
            15,
        ),
        (chosen("test_multiprocessing_fork", &managers), 30),
    ];
    if full() {
        let whole = [
            "test_socket",
            "test_selectors",
            "test_asyncio",
            "test_ssl",
            "test_multiprocessing_fork",
        ];
        suites.extend(whole.map(|suite| (chosen(suite, &[]), 100)));
        suites.push((chosen("test_multiprocessing_spawn", &managers), 30));
        suites.extend(
            ["test_epoll", "test_poll", "test_ftplib", "test_smtplib"]
                .map(|suite| (vec![suite], 5)),
        );
    }
    suites
}

/// Run one in an empty folder.
fn python(sandbox: Option<&Sandbox>, suite: &[&str]) -> Ended {
    let folder = folder("suite");
    let script =
        format!("cd {}; exec /usr/bin/python3 {} \"$@\"", folder.text(), program("tests.py"));
    let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    let argv =
        [&["/usr/bin/env", "-i", path, "/bin/bash", "-c", &script, "bash"][..], suite].concat();
    match sandbox {
        None => run(Command::new(argv[0]).args(&argv[1..])),
        Some(sandbox) => sandbox.run(&argv),
    }
}

#[test]
fn cpythons_own_tests_come_to_the_same() {
    let mut all_bytes = 0;
    for (suite, fewest) in suites() {
        let sandbox = carrying("suites");
        let native = python(None, &suite);
        let mut found = python(Some(&sandbox), &suite);
        // Some wait for times that a busy machine does not keep.
        for _ in 0..2 {
            if found.stdout != native.stdout {
                eprintln!("{suite:?}, once: {}", found.stderr);
                found = python(Some(&sandbox), &suite);
            }
        }
        let count = native.stdout.lines().count();
        assert!(count > fewest, "{suite:?}: {count} lines; {}", native.stderr);
        assert_eq!(found.stdout, native.stdout, "{suite:?}: {}", found.stderr);
        if number(&sockets(&sandbox), "carried_bytes") > 1_000_000 {
            let (share, bytes) = carried(&sandbox);
            eprintln!("{suite:?}: {share:.3} of what was for readers that looked, {bytes} bytes");
            assert!(share > 0.95, "{suite:?}: {share} of {bytes}");
            all_bytes += bytes;
        }
    }
    assert!(all_bytes > 5_000_000, "{all_bytes}");
}

#[test]
fn ten_thousand_connections_are_open_at_once() {
    let sandbox = carrying("many");
    let ended = sandbox.run(&["/usr/bin/python3", &program("many.py"), "10000"]);
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "10000 open at once\n"), "{ended:?}");
    // Some rows are not free where the connection's name leads to.
    let table = sockets(&sandbox);
    assert!(number(&table, "carried") > 9900, "{table}");
    mostly_carried(&sandbox, 40_000_000);
}
