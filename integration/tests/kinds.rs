//! Kinds of carried sockets other than streams that are made by `connect`: pairs, and sockets with records.

use integration::carried::{UNTIL_KILLED, carrying, number, sockets, wait_for_none};
use integration::{Sandbox, compile, full, run};
use serde_json::Value;

const PYTHON: &str = "/usr/bin/python3";

/// The connection that both sides know of. Programs that start others have pipes as well.
fn the_carried(table: &Value) -> &Value {
    let is_pipe = |row: &&Value| row["name"].as_str().is_some_and(|name| name.starts_with("pipe"));
    let carried = |row: &&Value| row["state"] == "carried" && !is_pipe(row);
    let found = table["connections"].as_array().and_then(|rows| rows.iter().find(carried));
    found.unwrap_or_else(|| panic!("{table}"))
}

/// What a Python program prints that has no errors.
fn python(sandbox: &Sandbox, script: &str, args: &[&str]) -> String {
    let argv = [&[PYTHON, "-c", script], args].concat();
    let ended = sandbox.run(&argv);
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""), "{}", ended.stdout);
    ended.stdout
}

#[test]
fn a_pair_is_carried_from_its_beginning() {
    let sandbox = carrying("pair");
    let script = "
import os, socket, subprocess, sys
one, two = socket.socketpair()
for i in range(1000):
    one.sendall(b'x' * (i + 1))
    assert len(two.recv(2000)) == i + 1
    two.sendall(b'y'); one.recv(1)
print(subprocess.run([sys.argv[1], 'ps', '--sockets', '--json', sys.argv[2]],
      capture_output=True, text=True).stdout)
";
    let launcher = integration::built("sbx-launcher");
    let said = python(&sandbox, script, &[launcher.to_str().expect("UTF-8"), &sandbox.name]);
    let table: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
    let row = the_carried(&table);
    assert!(row["name"].as_str().is_some_and(|name| name.starts_with("unix pair ")), "{row}");
    assert!(number(&row["sent"], "carried") > 490_000, "{row}");
    assert_eq!(number(&row["sent"], "by_kernel"), 0, "{row}");
    wait_for_none(&sandbox);
}

#[test]
fn what_was_written_before_both_ends_were_closed_a_child_still_reads() {
    let sandbox = carrying("late");
    let script = "
import hashlib, os, random, socket, subprocess, sys
random.seed(1)
for round in range(int(sys.argv[1])):
    one, two = socket.socketpair()
    sent = random.randbytes(random.randrange(1, 150000))
    one.setblocking(False)
    assert one.send(sent) == len(sent)
    if round % 2:
        child = subprocess.Popen(['/usr/bin/md5sum'], stdin=two, stdout=subprocess.PIPE, close_fds=False)
        one.close(); two.close()
        got = child.communicate()[0].split()[0].decode()
    else:
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            one.close()
            os.dup2(two.fileno(), 0); os.dup2(into, 1)
            os.execv('/usr/bin/md5sum', ['md5sum'])
        one.close(); two.close(); os.close(into)
        got = os.read(out, 100).split()[0].decode()
        os.close(out)
        os.waitpid(child, 0)
    assert got == hashlib.md5(sent).hexdigest(), (round, len(sent), got)
print('as sent')
";
    let rounds = if full() { "1000" } else { "100" };
    assert_eq!(python(&sandbox, script, &[rounds]), "as sent\n");
    assert!(number(&sockets(&sandbox), "carried_bytes") > 1_000_000);
    wait_for_none(&sandbox);
}

#[test]
fn a_killed_end_of_a_pair_is_an_end_and_leaves_no_row() {
    let sandbox = carrying("killed-pair");
    let script = "
import os, random, signal, socket, sys, time
random.seed(int(sys.argv[1]))
one, two = socket.socketpair()
child = os.fork()
if child == 0:
    one.close()
    while True:
        two.sendall(random.randbytes(random.randrange(1, 60000)))
        two.recv(random.randrange(1, 5000))
two.close()
";
    let script = format!("{script}{UNTIL_KILLED}");
    let rounds = if full() { 200 } else { 20 };
    for seed in 0..rounds {
        assert_eq!(python(&sandbox, &script, &[&seed.to_string()]), "an end\n");
    }
    wait_for_none(&sandbox);
    assert_eq!(number(&sockets(&sandbox), "carried"), rounds);
}

#[test]
fn records_come_once_whole_and_in_order() {
    let sandbox = carrying("records");
    let records = compile("cc", "records", &[]);
    let seeds = if full() { 100 } else { 5 };
    for kind in ["seqpacket", "datagram"] {
        for seed in 0..seeds {
            let ended = sandbox.run(&[records.text(), kind, &seed.to_string(), "20000"]);
            let said = (ended.status, ended.stdout.as_str(), ended.stderr.as_str());
            assert_eq!(said, (0, "each once\n", ""), "{kind} {seed}");
        }
    }
    let table = sockets(&sandbox);
    // Both channels, and what passes between them, have been used.
    let (ring, kernel) = (number(&table, "carried_bytes"), number(&table, "kernel_bytes"));
    assert!(ring > 10_000_000 && kernel > 1_000_000, "{table}");
    wait_for_none(&sandbox);
}

#[test]
fn records_and_options_are_what_the_kernel_makes_of_them() {
    let sandbox = carrying("records-py");
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/records.py");
    let argv = [PYTHON, path.to_str().expect("UTF-8")];
    let native = run(std::process::Command::new(argv[0]).arg(argv[1]));
    assert_eq!((native.status, native.stderr.as_str()), (0, ""), "{}", native.stdout);
    assert_eq!(sandbox.run(&argv), native);
    let table = sockets(&sandbox);
    assert!(number(&table, "carried_bytes") > 3_000, "{table}");
    wait_for_none(&sandbox);
}

#[test]
fn a_killed_end_with_records_leaves_the_rest_and_no_row() {
    let sandbox = carrying("killed-records");
    let script = "
import os, random, signal, socket, sys, time
kind = {'seqpacket': socket.SOCK_SEQPACKET, 'datagram': socket.SOCK_DGRAM}[sys.argv[1]]
random.seed(int(sys.argv[2]))
one, two = socket.socketpair(socket.AF_UNIX, kind)
child = os.fork()
if child == 0:
    one.close()
    count = 0
    while True:
        two.send(count.to_bytes(4, 'little') + bytes(random.randrange(0, 3000)))
        count += 1
        try:
            while True: two.recv(5000, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
two.close()
killed, end, expected, last = False, time.monotonic() + random.random() * 0.05, 0, time.monotonic()
one.settimeout(1)
try:
    while piece := one.recv(random.randrange(10, 5000)):
        assert int.from_bytes(piece[:4], 'little') == expected, (piece[:4], expected)
        expected += 1
        one.send(piece)
        if not killed and time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed = True
except (ConnectionError, TimeoutError):
    pass
except OSError as error:
    assert error.errno == 107, error
assert killed and expected
print('an end')
";
    let rounds = if full() { 100 } else { 10 };
    for kind in ["seqpacket", "datagram"] {
        for seed in 0..rounds {
            assert_eq!(python(&sandbox, script, &[kind, &seed.to_string()]), "an end\n");
        }
    }
    wait_for_none(&sandbox);
    assert_eq!(number(&sockets(&sandbox), "carried"), 2 * rounds);
}

#[test]
fn a_program_that_is_executed_with_an_end_talks_by_rings_both_ways() {
    let sandbox = carrying("executed");
    let script = "
import socket, subprocess, sys
echo = '''
import socket
one = socket.socket(fileno=0)
while piece := one.recv(70000):
    one.sendall(piece)
'''
launcher, name = sys.argv[1:]
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    one, two = socket.socketpair(socket.AF_UNIX, kind)
    child = subprocess.Popen([sys.executable, '-c', echo], stdin=two)
    two.close()
    for i in range(2000):
        one.send(bytes(100))
        assert one.recv(1000) == bytes(100)
    said = subprocess.run([launcher, 'ps', '--sockets', '--json', name], capture_output=True, text=True)
    print(said.stdout)
    one.close()
    assert child.wait() == 0
";
    let launcher = integration::built("sbx-launcher");
    let said = python(&sandbox, script, &[launcher.to_str().expect("UTF-8"), &sandbox.name]);
    for table in serde_json::Deserializer::from_str(&said).into_iter::<Value>() {
        let table = table.expect("JSON");
        let row = the_carried(&table);
        for way in ["sent", "received"] {
            // Until the program has begun, and whenever one of them sleeps, it is the kernel's.
            assert!(number(&row[way], "carried") > 20_000, "{row}");
        }
    }
    wait_for_none(&sandbox);
}
