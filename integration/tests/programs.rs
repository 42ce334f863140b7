//! Real programs, unmodified, in a sandbox: same output and status as without, and every one of
//! their processes a participant that has made an upcall.

use std::process::Command;

use integration::{Sandbox, run};

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
    with m.get_context('fork').Pool(3) as p: print(p.map(f, range(10)))
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
