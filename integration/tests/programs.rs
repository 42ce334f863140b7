//! Real programs, unmodified, in a sandbox: same output and status as without, and every one of
//! their processes a participant that has made an upcall. They work for seconds, too.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use integration::{Ended, Sandbox, Scratch, built, run};

/// Run `argv` natively and in a sandbox; the number of participants.
fn same(test: &str, argv: &[&str]) -> usize {
    let native = run(Command::new(argv[0]).args(&argv[1..]));
    assert_eq!(native.status, 0, "natively: {}", native.stderr);
    let sandbox = Sandbox::up(test);
    let inside = sandbox.run(argv);
    assert_eq!(
        (inside.status, &inside.stdout),
        (native.status, &native.stdout),
        "{}",
        inside.stderr
    );
    let participants = sandbox.participants();
    for row in &participants {
        assert!(row["upcalls"].as_u64().unwrap_or(0) >= 1, "{row}");
        assert_ne!(row["how"], "joining", "{row}");
    }
    participants.len()
}

#[test]
fn bash_pipelines_and_subshells() {
    let script = "for i in 1 2 3; do /bin/echo $i; done | sort -r | (read x; echo $x; cat) | tr 1 a; \
                  (true; echo sub); sleep 0.01 & wait; /usr/bin/env echo $((2+3))";
    let count = same("bash", &["bash", "-c", script]);
    assert!(count >= 9, "{count} participants");
}

#[test]
fn python_with_subprocess_and_multiprocessing() {
    let script = "
import multiprocessing as m, subprocess as s
def f(x): return x * x
if __name__ == '__main__':
    print(s.run(['/bin/echo', 'sub'], capture_output=True).stdout)
    all = m.get_context('fork').Barrier(3)  # lest one be ended before it has begun
    with m.get_context('fork').Pool(3, all.wait) as p: print(p.map(f, range(10)))
    print(s.check_output('echo shell; exit 0', shell=True))
";
    let count = same("python", &["/usr/bin/python3", "-c", script]);
    assert!(count >= 6, "{count} participants");
}

#[test]
fn git_in_a_real_repository() {
    let script = "set -e; d=$(mktemp -d); cd $d; git init -q .; \
        for i in 1 2 3 4 5; do echo $i > f$i; git add f$i; \
        GIT_AUTHOR_DATE=2020-01-01T00:00:00Z GIT_COMMITTER_DATE=2020-01-01T00:00:00Z \
        git -c user.name=a -c user.email=a@b commit -qm $i; done; \
        git log --oneline; git gc -q; git fsck; git clone -q . c; git -C c status -s; rm -rf $d";
    assert!(same("git", &["bash", "-c", script]) > 20);
}

#[test]
fn node_with_a_child() {
    let script = "const c=require('child_process'); \
        console.log(c.execFileSync('/bin/echo',['child']).toString().trim()); \
        let s=0; for(let i=0;i<1e6;i++) s+=i; console.log(s);";
    assert!(same("node", &["/usr/bin/node", "-e", script]) >= 2);
}

#[test]
fn redis_with_a_background_save() {
    let script = "set -e; d=$(mktemp -d); cd $d; \
        redis-server --port 0 --unixsocket $d/s --daemonize no --save '' --dir $d >log 2>&1 & \
        p=$!; for i in $(seq 100); do redis-cli -s $d/s ping >/dev/null 2>&1 && break; sleep 0.05; done; \
        redis-cli -s $d/s set k v; redis-cli -s $d/s get k; redis-cli -s $d/s debug populate 10000; \
        redis-cli -s $d/s bgsave; \
        for i in $(seq 100); do redis-cli -s $d/s info persistence | grep -q bgsave_in_progress:0 && break; sleep 0.05; done; \
        test -s $d/dump.rdb && echo saved; redis-cli -s $d/s shutdown nosave; wait $p; rm -rf $d";
    assert!(same("redis", &["bash", "-c", script]) >= 8);
}

#[test]
fn nginx_with_workers_and_curl() {
    let script = "set -e; d=$(mktemp -d); cd $d; echo page > index.html; chmod -R a+rx $d; \
        printf 'worker_processes 2; error_log %s/e; pid %s/p; events {} http { access_log off; \
        client_body_temp_path %s/1; proxy_temp_path %s/2; fastcgi_temp_path %s/3; \
        uwsgi_temp_path %s/4; scgi_temp_path %s/5; \
        server { listen unix:%s/s; root %s; } }' $d $d $d $d $d $d $d $d $d > c; \
        nginx -c $d/c; for i in $(seq 20); do curl -s --unix-socket $d/s http://x/index.html; done; \
        kill $(cat $d/p); sleep 0.3; rm -rf $d";
    assert!(same("nginx", &["bash", "-c", script]) >= 20);
}

#[test]
fn static_programs_and_threads() {
    let script = "set -e; d=$(mktemp -d); cd $d; printf '%s' \
        '#include <pthread.h>\n#include <stdio.h>\nstatic void *f(void *x) { return x; }\n\
        int main(void) { for (int i = 0; i < 2000; i++) { pthread_t t; \
        pthread_create(&t, 0, f, 0); pthread_join(t, 0); } puts(\"done\"); }\n' \
        | sed 's/\\\\n/\\n/g' > a.c; gcc -O1 -pthread a.c -o dyn; gcc -O1 -pthread -static a.c -o sta; \
        ./dyn; ./sta; gcc -fsanitize=address a.c -pthread -o asan; ./asan; rm -rf $d";
    assert!(same("static", &["bash", "-c", script]) >= 5);
}

/// What works, by the names of `programs/work/work.sh`, and the least number of processes that it has.
const WORKING: [(&str, usize); 11] = [
    ("python", 5),
    ("bash", 8),
    ("node", 3),
    ("java", 3),
    ("redis", 10),
    ("nginx", 10),
    ("curl", 6),
    ("git", 20),
    ("go", 1),
    ("musl", 3),
    ("asan", 3),
];

/// A folder with the launcher and everything that works, which any user may read.
fn workshop() -> Scratch {
    let folder = Scratch::new("work");
    let to = |name: &str| folder.0.join(name);
    std::fs::create_dir(&folder.0).expect("a scratch folder");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/work");
    for entry in std::fs::read_dir(&from).expect("the programs are there") {
        let path = entry.expect("a name").path();
        std::fs::copy(&path, folder.0.join(path.file_name().expect("a name"))).expect("a copy");
    }
    std::fs::copy(built("sbx-launcher"), to("sbx-launcher")).expect("a copy");
    let c = "musl-gcc -O1 -pthread -static work.c -o work-musl && \
             gcc -O1 -fsanitize=address -pthread work.c -o work-asan && go build -o work-go . && \
             javac Work.java && \
             chmod -R a+rX .";
    let cache = std::env::temp_dir().join("sbx-go-cache");
    let made = run(Command::new("sh")
        .args(["-c", c])
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", cache)
        .current_dir(&folder.0));
    assert_eq!(made.status, 0, "{}", made.stderr);
    folder
}

/// A command, run by nobody if that is what `prefix` makes of it.
fn by(prefix: &[&str], argv: &[&str]) -> Ended {
    let all = [prefix, argv].concat();
    run(Command::new(all[0]).args(&all[1..]))
}

/// Have a program work in a sandbox of its own: the output is that of hardly any work without, and every
/// process takes part.
fn works(folder: &Scratch, prefix: &[&str], (program, processes): (&str, usize), seconds: u64) {
    let work = folder.0.join("work.sh");
    let work = ["/bin/bash", work.to_str().expect("a UTF-8 path"), program];
    let launcher = folder.0.join("sbx-launcher");
    let launcher = launcher.to_str().expect("a UTF-8 path");
    let native = by(prefix, &[&work[..], &["0"]].concat());
    assert_eq!(native.status, 0, "{program} natively: {}", native.stderr);
    let name = format!("t{}-{program}{}", std::process::id(), prefix.len());
    assert_eq!(by(prefix, &[launcher, "up", &name]).status, 0);
    let (time, began) = (seconds.to_string(), Instant::now());
    let inside = [&[launcher, "run", "--sandbox", &name, "--"], &work[..], &[&time]].concat();
    let inside = by(prefix, &inside);
    let elapsed = began.elapsed();
    let listed = by(prefix, &[launcher, "ps", &name, "--json"]);
    let down = by(prefix, &[launcher, "down", &name]);
    let found = (inside.status, &inside.stdout);
    assert_eq!(found, (0, &native.stdout), "{program}: {}", inside.stderr);
    assert!(elapsed >= Duration::from_secs(seconds), "{program} worked for {elapsed:?}");
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let rows = listed["participants"].as_array().expect("a list");
    for row in rows {
        assert!(row["upcalls"].as_u64() >= Some(1), "{program}: {row}");
        assert_ne!(row["how"], "joining", "{program}: {row}");
    }
    assert!(rows.len() >= processes, "{program}: {} processes", rows.len());
    assert_eq!(down.status, 0, "{}", down.stderr);
}

/// Each program of the list, two at a time.
fn all_work(prefix: &[&str], seconds: u64) {
    let folder = workshop();
    let left = Mutex::new(WORKING.to_vec());
    let next = || left.lock().expect("nobody panicked with it").pop();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(row) = next() {
                    works(&folder, prefix, row, seconds);
                }
            });
        }
    });
}

#[test]
fn each_program_works_for_seconds() {
    all_work(&[], 5);
}

#[test]
fn each_program_works_for_an_unprivileged_user() {
    // As root this becomes nobody; anybody else is unprivileged already.
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    if nix::unistd::getuid().is_root() {
        all_work(&nobody, 1);
    } else {
        println!("skipped: each_program_works_for_seconds has done it");
    }
}
