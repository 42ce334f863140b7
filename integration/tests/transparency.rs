//! Programs' own tests and workloads under a handler that lets every call through, beside the same without.

use std::fmt::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use integration::{Ended, Sandbox, Scratch, built, full, run};

/// A Java program without its ending.
const MACHINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/Machine");

/// How far two runs of the same are compared.
#[derive(Clone, Copy)]
enum Compared {
    /// All that is printed.
    Output,
    /// What became of each of a suite's tests.
    Tests,
    /// The status: the rest is never twice the same.
    Status,
}

/// One program.
struct Row {
    name: String,
    /// For a shell, in an empty folder of its own.
    script: String,
    compared: Compared,
}

/// What is compared of one run.
fn essence(ended: &Ended, compared: Compared) -> Vec<String> {
    let mut lines = vec![format!("status {}", ended.status)];
    match compared {
        Compared::Status => {}
        Compared::Output => lines.extend(ended.stdout.lines().map(str::to_owned)),
        Compared::Tests => {
            let text = format!("{}\n{}", ended.stdout, ended.stderr);
            let verdict = |line: &&str| line.contains(" ... ") && line.contains(" (test");
            let mut tests: Vec<String> = text.lines().filter(verdict).map(named).collect();
            tests.sort();
            lines.extend(tests);
        }
    }
    lines
}

/// A test's name and verdict, without what it says in between.
fn named(line: &str) -> String {
    let (name, verdict) = line.split_once(" ... ").unwrap_or((line, ""));
    let verdict = verdict.split_whitespace().last().unwrap_or("");
    let verdict = if verdict.ends_with("ok") { "ok" } else { verdict };
    format!("{name}: {verdict}")
}

/// A suite of CPython's own tests, without those of its tests that are not twice the same.
fn python(suite: &str, without: &[&str]) -> Row {
    let ignore: String = without.iter().fold(String::new(), |mut text, name| {
        let _ = write!(text, " -i '{name}'");
        text
    });
    let script = format!("/usr/bin/python3 -m test -v{ignore} {suite} 2>&1");
    Row { name: format!("python3 -m test {suite}"), script, compared: Compared::Tests }
}

fn row(name: &str, compared: Compared, script: &str) -> Row {
    Row { name: name.to_owned(), script: script.to_owned(), compared }
}

const COREUTILS: &str = "cp -a /usr/share/doc . && find doc -type f | sort | head -500 | xargs sha256sum
du -s --apparent-size doc; tar cf doc.tar doc && tar tf doc.tar | sort | md5sum
mv doc other; ln -s other doc; ls -lR doc/ | wc -l; chmod -R go-w other
sort -R /etc/services | sort | md5sum; seq 100000 | split -l 1000 - part; cat part* | md5sum
rm -r other; ls | wc -l; dd if=/dev/zero bs=4k count=1000 2>/dev/null | tee copy | wc -c; cmp copy copy
stat -c '%s %a' copy; truncate -s 5 copy; od -c copy; df . > /dev/null; timeout 0.1 sleep 5; echo $?";

const SQLITE: &str = "sqlite3 a.db 'PRAGMA journal_mode=WAL; CREATE TABLE t(k INTEGER PRIMARY KEY, v TEXT);'
for p in 1 2 3 4; do (for i in $(seq 25); do sqlite3 -cmd '.timeout 20000' a.db \
    \"BEGIN IMMEDIATE; INSERT INTO t(v) SELECT hex(zeroblob(100)) FROM generate_series(1,20); COMMIT;\"; done) & done
wait; sqlite3 a.db 'SELECT count(*), sum(length(v)) FROM t; PRAGMA integrity_check; PRAGMA wal_checkpoint;'
sqlite3 a.db 'CREATE INDEX i ON t(v, k); DELETE FROM t WHERE k % 3 = 0; VACUUM; SELECT count(*), max(k) FROM t;'
sqlite3 a.db .dump | md5sum";

const REDIS: &str = "redis-server --port 0 --unixsocket $PWD/s --save '' --dir $PWD > /dev/null &
until [ -S s ]; do sleep 0.01; done; c='redis-cli -s s'
redis-benchmark -s s -n 20000 -c 20 -P 4 -q -t set,get,incr,lpush,sadd,hset,zadd > /dev/null; echo $?
$c flushall; for i in $(seq 200); do echo \"SET k$i $i\"; echo \"LPUSH l $i\"; done | $c > /dev/null
$c eval 'local s = 0; for i = 1, 200 do s = s + redis.call(\"get\", \"k\" .. i) end; return s' 0
$c llen l; $c save; $c config set appendonly yes; $c bgrewriteaof > /dev/null
printf 'MULTI\\nINCR n\\nINCR n\\nEXEC\\n' | $c; $c debug digest; $c bgsave > /dev/null; sleep 0.5
$c lastsave > /dev/null; $c shutdown nosave; wait; ls -d dump.rdb; redis-check-rdb dump.rdb | tail -1 | cut -c1-40";

const NGINX: &str = "mkdir www; seq 3000 > www/a.txt; cat > n.conf <<END
worker_processes 2; error_log $PWD/e.log; pid $PWD/pid; daemon on;
events { worker_connections 256; }
http { access_log off; client_body_temp_path $PWD/b; proxy_temp_path $PWD/p; fastcgi_temp_path $PWD/f;
uwsgi_temp_path $PWD/u; scgi_temp_path $PWD/c;
server { listen unix:$PWD/s; location / { root $PWD/www; }
location /deep/ { proxy_pass http://unix:$PWD/s:/; } } }
END
nginx -c $PWD/n.conf; until [ -f pid ]; do sleep 0.01; done
for i in $(seq 20); do curl -s --unix-socket s http://x/a.txt | md5sum; curl -s --unix-socket s http://x/deep/a.txt | md5sum
[ $i = 10 ] && nginx -c $PWD/n.conf -s reload; done
curl -s -o /dev/null -w '%{http_code}' --unix-socket s http://x/none; curl -s -r 5-9 --unix-socket s http://x/a.txt
nginx -c $PWD/n.conf -s quit; while [ -f pid ]; do sleep 0.01; done; grep -c emerg e.log";

const WRK: &str = "mkdir www; seq 3000 > www/a.txt; cat > n.conf <<END
worker_processes 2; error_log $PWD/e.log; pid $PWD/pid; daemon on;
events { worker_connections 256; }
http { access_log off; client_body_temp_path $PWD/b; proxy_temp_path $PWD/p; fastcgi_temp_path $PWD/f;
uwsgi_temp_path $PWD/u; scgi_temp_path $PWD/c;
server { listen 127.0.0.1:18517; location / { root $PWD/www; } } }
END
nginx -c $PWD/n.conf; until [ -f pid ]; do sleep 0.01; done
(sleep 0.7; nginx -c $PWD/n.conf -s reload) &
wrk -t 2 -c 20 -d 2 http://127.0.0.1:18517/a.txt > out; grep -c Requests/sec out; grep -E 'Non-2xx|connect [1-9]' out
nginx -c $PWD/n.conf -s quit; while [ -f pid ]; do sleep 0.01; done; grep -c emerg e.log";

const GIT: &str = "export HOME=$PWD GIT_AUTHOR_DATE='1 Jan 2026' GIT_COMMITTER_DATE='1 Jan 2026'
git config --global user.email a@b; git config --global user.name a; git config --global init.defaultBranch main
git init -q one; cd one; for i in $(seq 40); do seq $i 500 > f$((i % 7)); git add .; git commit -qm $i; done
git log --format=%H | md5sum; git branch b HEAD~20; git merge -q b; git rebase -q HEAD~5; git status --short
cd ..; git clone -q --no-local one two; cd two; git gc -q --aggressive; git fsck --full; git rev-list --all | wc -l
git diff HEAD~10 --stat | tail -1; git bisect start -q HEAD HEAD~30; git bisect run true | tail -1 | cut -c1-20
git stash list; git archive HEAD | md5sum";

const MAKE: &str = "for i in $(seq 12); do echo \"int f$i(int a) { return a * $i; }\" > f$i.c; done
{ for i in $(seq 12); do echo \"int f$i(int);\"; done; echo '#include <stdio.h>'; echo 'int main(void) { int s = 0;'
for i in $(seq 12); do echo \"s += f$i($i);\"; done; echo 'printf(\"%d\\n\", s); return 0; }'; } > main.c
printf 'p: $(patsubst %%.c,%%.o,$(wildcard *.c))\\n\\tgcc -o $@ $^\\n%%.o: %%.c\\n\\tgcc -O2 -c -o $@ $<\\n' > Makefile
make -j2 | sort; ./p; make; gcc -static -O2 -o q *.c && ./q; objdump -d f1.o | tail -4";

const NODE: &str = "cat > a.js <<'END'
const { Worker, isMainThread, parentPort } = require('worker_threads');
const fs = require('fs'), cp = require('child_process'), http = require('http'), crypto = require('crypto');
if (!isMainThread) { parentPort.postMessage(fs.readFileSync('/etc/services').length); return; }
let done = 0; const say = (...a) => console.log(...a);
for (let i = 0; i < 4; i++) new Worker(__filename).on('message', n => { if (++done == 4) say('workers', n); });
cp.exec('echo child; exit 3', (e, out) => say(e.code, out.trim()));
const server = http.createServer((q, r) => r.end(q.url.repeat(100))).listen(0, () => {
  let left = 50;
  for (let i = 0; i < 50; i++) http.get({ port: server.address().port, path: '/' + i }, r => {
    let n = 0; r.on('data', d => n += d.length).on('end', () => { if (--left == 0) { say('http'); server.close(); } });
  });
});
crypto.pbkdf2('a', 'b', 1000, 16, 'sha256', (e, k) => say(k.toString('hex')));
fs.promises.readdir('/usr/bin').then(l => say(l.length));
process.on('SIGUSR2', () => say('signal')); process.kill(process.pid, 'SIGUSR2');
END
/usr/bin/node a.js | sort";

const SHELL: &str = "for i in $(seq 100); do (exit $((i % 5))); echo $?; done | sort | uniq -c
trap 'echo usr1' USR1; for i in 1 2 3; do kill -USR1 $$; done; mkfifo p; (seq 1000 > p) & sum=0
while read n; do sum=$((sum + n)); done < p; echo $sum; wait; coproc { tr a-z A-Z; }; echo hi >&${COPROC[1]}
exec {w}>&${COPROC[1]}-; exec {w}>&-; cat <&${COPROC[0]}; ulimit -n 100; ulimit -n; (ulimit -v 1000000; echo ok)
exec 5<>/dev/null; echo x >&5; set -o pipefail; false | true; echo $?; timeout -s KILL 0.1 sleep 9; echo $?";

/// Each collector maps, protects and signals in ways of its own.
const JAVA: &str = "javac -d . MACHINE.java
for gc in SerialGC ParallelGC G1GC ZGC; do WORD=word java -Xmx64m -XX:+Use$gc Machine; echo $?; rm -r machine; done
java -Xint -version 2>&1 | head -1";

fn rows() -> Vec<Row> {
    use Compared::{Output, Status};
    let mut rows = vec![
        row("coreutils", Output, COREUTILS),
        row("bash", Output, SHELL),
        row("sqlite3, four processes", Output, SQLITE),
        row("redis", Output, REDIS),
        row("nginx, proxied and reloaded", Output, NGINX),
        row("nginx under wrk, reloaded", Output, WRK),
        row("git", Output, GIT),
        row("make -j2 with gcc", Output, MAKE),
        row("node with workers", Output, NODE),
        row("java with each collector", Output, &JAVA.replace("MACHINE", MACHINE)),
        row("curl, nobody there", Status, "curl -s http://127.0.0.1:1; exit $?"),
        python("test_os", &[]),
        python("test_posix", &[]),
        python("test_fcntl", &[]),
        python("test_mmap", &[]),
        python("test_select", &[]),
        python("test_pathlib", &[]),
        python("test_tempfile", &[]),
    ];
    if full() {
        // Some wait for so long that two runs do not order them the same.
        let random = ["test_stress_modifying_handlers", "test_setitimer_tiny"];
        rows.extend(
            ["test_subprocess", "test_threading", "test_faulthandler", "test_fork1", "test_pty"]
                .map(|suite| python(suite, &[])),
        );
        rows.extend(
            [
                "test_selectors",
                "test_epoll",
                "test_poll",
                "test_shutil",
                "-u network test_socketserver",
            ]
            .map(|suite| python(suite, &[])),
        );
        rows.push(python("test_signal", &random));
        // The machine may have AF_VSOCK without anybody who answers.
        rows.push(python("test_socket", &["*VSOCK*"]));
        rows.push(python("test_asyncio", &[]));
        // At its end the resource tracker says something now and then.
        let says = ["test_shared_memory_cleaned_after_process_termination"];
        rows.push(python("test_multiprocessing_fork", &says));
    }
    rows
}

/// One run in an empty folder, whose name is the same in both.
fn once(row: &Row, sandbox: Option<&Sandbox>) -> (Ended, Duration) {
    let folder = Scratch::new("transparency");
    std::fs::create_dir(&folder.0).expect("a scratch folder");
    let script = format!("cd {}; {}", folder.text(), row.script);
    let argv =
        ["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "/bin/bash", "-c", &script];
    let began = Instant::now();
    let ended = match sandbox {
        None => run(Command::new(argv[0]).args(&argv[1..])),
        Some(sandbox) => sandbox.run(&argv),
    };
    (ended, began.elapsed())
}

#[test]
fn programs_do_the_same_under_a_handler_on_every_call() {
    let mut table = String::from("\n   without      under  program\n");
    let mut wrong = String::new();
    for row in rows() {
        let sandbox = Sandbox::up("transparency");
        sandbox.load(&built("libthrough.so"));
        let (outside, without) = once(&row, None);
        let (inside, under) = once(&row, Some(&sandbox));
        let all = sandbox.call(&["through.count", "512"]).stdout;
        let calls: u64 = all.trim().parse().expect("a number");
        let (expected, found) = (essence(&outside, row.compared), essence(&inside, row.compared));
        let seconds = |time: Duration| time.as_secs_f64();
        let _ = writeln!(
            table,
            "{:>8.1} s {:>8.1} s  {}: {} lines alike, {calls} calls",
            seconds(without),
            seconds(under),
            row.name,
            expected.len()
        );
        let only = |these: &[String], those: &[String]| -> Vec<String> {
            these.iter().filter(|line| !those.contains(line)).cloned().collect()
        };
        if expected != found {
            let (without, under) = (only(&expected, &found), only(&found, &expected));
            let _ = writeln!(wrong, "{}:\nwithout: {without:#?}\nunder: {under:#?}", row.name);
            let said = inside.stderr.lines().take(5).collect::<Vec<_>>().join("\n");
            let _ = writeln!(wrong, "{said}");
        }
        if calls == 0 || matches!(row.compared, Compared::Tests) && expected.len() < 3 {
            let _ = writeln!(wrong, "{}: nothing was compared: {expected:?}", row.name);
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{table}\n{wrong}");
}
