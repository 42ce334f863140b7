//! Pipes of unmodified programs through the region, beside the same without. What each call comes to is compared
//! by the random steps of `sockets.rs`.

use std::fs;

use integration::carried::{
    Running, UNTIL_KILLED, carrying, mostly_carried, number, outside, program, sockets, wait_for,
    wait_for_none,
};
use integration::{Scratch, built, compile, full};

#[test]
fn a_shells_pipelines_come_to_the_same() {
    let sandbox = carrying("pipelines");
    let script = program("pipelines.sh");
    let folders = [Scratch::new("pipelines-native"), Scratch::new("pipelines-carried")];
    let [native, carried_so] = folders.each_ref().map(|folder| {
        fs::create_dir(&folder.0).expect("made");
        ["/bin/bash", &script, folder.text()]
    });
    let native = outside(&native);
    assert_eq!((native.status, native.stderr.as_str()), (0, ""));
    assert_eq!(sandbox.run(&carried_so), native);
    mostly_carried(&sandbox, 1_000_000);
    assert!(number(&sockets(&sandbox), "pipes") > 100, "{}", sockets(&sandbox));
    wait_for_none(&sandbox);
}

#[test]
fn python_uses_pipes_in_every_way() {
    let sandbox = carrying("pipes");
    let folder = Scratch::new("pipes-stranger");
    let socket = folder.text();
    let _stranger = Running::start(None, &["/usr/bin/python3", &program("stranger.py"), socket]);
    wait_for(&["test", "-S", socket]);
    let argv = ["/usr/bin/python3", &program("pipes.py"), socket];
    let native = outside(&argv);
    assert_eq!((native.status, native.stderr.as_str()), (0, ""));
    assert_eq!(sandbox.run(&argv), native);
    mostly_carried(&sandbox, 1_000_000);
    // The same with a handler on every call.
    sandbox.load(&built("libthrough.so"));
    assert_eq!(sandbox.run(&argv), native);
}

/// A child writes at one end, or reads, until it is killed; what the parent reads and writes goes by two pipes.
const CHILD: &str = "
import os, random, signal, sys, time
random.seed(int(sys.argv[1]))
forth, back = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    os.close(forth[0]); os.close(back[1])
    while True:
        os.write(forth[1], random.randbytes(random.randrange(1, 60000)))
        os.read(back[0], random.randrange(1, 5000))
os.close(forth[1]); os.close(back[0])
class One:
    recv = staticmethod(lambda most: os.read(forth[0], most))
    send = staticmethod(lambda piece: os.write(back[1], piece))
one = One
";

#[test]
fn a_side_of_a_pipe_that_is_killed_leaves_an_end_and_no_row() {
    let sandbox = carrying("killed-pipes");
    let script = format!("{CHILD}{UNTIL_KILLED}");
    let rounds = if full() { 200 } else { 20 };
    for seed in 0..rounds {
        let ended = sandbox.run(&["/usr/bin/python3", "-c", &script, &seed.to_string()]);
        assert_eq!((ended.status, ended.stdout.as_str()), (0, "an end\n"), "{ended:?}");
    }
    wait_for_none(&sandbox);
    assert_eq!(number(&sockets(&sandbox), "pipes"), 2 * rounds);
}

#[test]
fn of_several_writers_that_are_killed_the_others_lose_nothing() {
    let sandbox = carrying("killed-writers");
    let script = "
import os, random, signal, struct, sys, time
random.seed(int(sys.argv[1]))
reader, writer = os.pipe()
def write(which):
    for number in range(3000):
        os.write(writer, struct.pack('<BBHI', which, 0, 200, number) * 25)
    os._exit(0)
children = []
for which in range(3):
    child = os.fork()
    if child == 0:
        write(which)
    children.append(child)
os.close(writer)
end, last, got = time.monotonic() + random.random() * 0.02, [-1] * 3, 0
while True:
    if children and time.monotonic() > end:
        os.kill(children[0], signal.SIGKILL)
    piece = b''
    while len(piece) % 200 or not piece:
        more = os.read(reader, 200 * random.randrange(1, 100) - len(piece) % 200)
        if not more:
            break
        piece += more
    if not piece:
        break
    assert len(piece) % 200 == 0
    for at in range(0, len(piece), 200):
        which, _, size, number = struct.unpack_from('<BBHI', piece, at)
        assert size == 200 and piece[at:at + 200] == piece[at:at + 8] * 25 and number == last[which] + 1
        last[which] = number
assert last[1:] == [2999, 2999]
print('all')
";
    for seed in 0..if full() { 100 } else { 15 } {
        let ended = sandbox.run(&["/usr/bin/python3", "-c", script, &seed.to_string()]);
        assert_eq!((ended.status, ended.stdout.as_str()), (0, "all\n"), "{ended:?}");
    }
}

#[test]
fn handlers_write_to_the_pipe_that_they_interrupt_and_broken_ones_say_so_once() {
    let sandbox = carrying("self-pipe");
    let program = compile("cc", "self_pipe", &["-pthread"]);
    let native = outside(&[program.text()]);
    assert_eq!(native.stdout, "handlers': all, others: all\nbroken: 200\n", "{native:?}");
    for _ in 0..5 {
        assert_eq!(sandbox.run(&[program.text()]), native);
    }
}

#[test]
fn an_idle_pipe_costs_nothing() {
    let sandbox = carrying("idle-pipe");
    let script = "
import os, select, threading, time
one, two = os.pipe(), os.pipe()
for _ in range(100):
    os.write(one[1], b'x'); os.read(one[0], 1); os.write(two[1], b'y'); os.read(two[0], 1)
threading.Thread(target=os.read, args=(two[0], 1), daemon=True).start()
epoll = select.epoll()
epoll.register(one[0], select.EPOLLIN)
before = time.process_time()
epoll.poll(2)
print('idle' if time.process_time() - before < 0.02 else time.process_time() - before)
os._exit(0)
";
    let ended = sandbox.run(&["/usr/bin/python3", "-u", "-c", script]);
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "idle\n"), "{ended:?}");
}
