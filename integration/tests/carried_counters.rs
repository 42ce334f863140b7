//! Eventfds of unmodified programs through the region, beside the same without.

use integration::carried::{
    Running, carrying, mostly_carried, number, outside, program, same_steps, sockets, wait_for,
    wait_for_none,
};
use integration::{Scratch, compile, full};

#[test]
fn random_steps_come_to_the_same() {
    let sandbox = carrying("counter-steps");
    let steps = compile("cc", "counters", &[]);
    let (seeds, count) = if full() { (200, "20000") } else { (20, "5000") };
    same_steps(&sandbox, steps.text(), seeds, count, 1);
    assert!(number(&sockets(&sandbox), "eventfds") > 20 * seeds, "{}", sockets(&sandbox));
    assert!(number(&sockets(&sandbox), "carried_bytes") > 10_000, "{}", sockets(&sandbox));
    wait_for_none(&sandbox);
}

#[test]
fn python_uses_eventfds_in_every_way() {
    let sandbox = carrying("eventfds");
    let folder = Scratch::new("eventfds-stranger");
    let socket = folder.text();
    let _stranger = Running::start(None, &["/usr/bin/python3", &program("stranger.py"), socket]);
    wait_for(&["test", "-S", socket]);
    let argv = ["/usr/bin/python3", &program("eventfds.py"), socket];
    let native = outside(&argv);
    assert_eq!((native.status, native.stderr.as_str()), (0, ""));
    assert_eq!(sandbox.run(&argv), native);
    mostly_carried(&sandbox, 10_000);
    // The same with a handler on every call.
    sandbox.load(&integration::built("libthrough.so"));
    assert_eq!(sandbox.run(&argv), native);
    wait_for_none(&sandbox);
}

#[test]
fn threads_of_node_tell_each_other_through_the_region() {
    let sandbox = carrying("node-threads");
    let argv = ["/usr/bin/node", &program("workers.js")];
    let native = outside(&argv);
    assert_eq!((native.status, native.stderr.as_str()), (0, ""));
    assert_eq!(sandbox.run(&argv), native);
    assert!(number(&sockets(&sandbox), "eventfds") > 2, "{}", sockets(&sandbox));
    mostly_carried(&sandbox, 10_000);
}

#[test]
fn many_event_loops_wake_each_other() {
    let sandbox = carrying("wakers");
    let wakers = compile("cc", "wakers", &[]);
    let (node, python) = (program("wakers.js"), program("wakers.py"));
    let (times, hops) = if full() { (50, "100000") } else { (3, "20000") };
    for argv in [
        &[wakers.text(), hops][..],
        &["/usr/bin/node", node.as_str()],
        &["/usr/bin/python3", python.as_str()],
    ] {
        let native = outside(argv);
        assert_eq!((native.status, native.stderr.as_str()), (0, ""));
        for _ in 0..times {
            assert_eq!(sandbox.run(argv), native);
        }
    }
    assert!(number(&sockets(&sandbox), "eventfds") > 30, "{}", sockets(&sandbox));
    mostly_carried(&sandbox, 100_000);
}

#[test]
fn whoever_is_killed_nothing_is_lost_or_counted_twice() {
    let sandbox = carrying("killed-counters");
    let counting = compile("cc", "counting", &[]);
    for seed in 1..=if full() { 1000 } else { 60 } {
        let ended = sandbox.run(&[counting.text(), &seed.to_string()]);
        assert_eq!((ended.status, ended.stdout.as_str()), (0, "all\n"), "{seed}: {ended:?}");
    }
    assert!(number(&sockets(&sandbox), "carried_bytes") > 100_000, "{}", sockets(&sandbox));
    wait_for_none(&sandbox);
}

#[test]
fn handlers_write_to_the_counter_that_they_interrupt() {
    let sandbox = carrying("counter-handlers");
    let counting = compile("cc", "counting", &[]);
    for _ in 0..5 {
        let ended = sandbox.run(&[counting.text()]);
        assert_eq!((ended.status, ended.stdout.as_str()), (0, "all\n"), "{ended:?}");
    }
}

#[test]
fn an_idle_counter_costs_nothing_and_is_shown() {
    let sandbox = carrying("idle-counter");
    let script = "
import os, select, threading, time
one, two = os.eventfd(0), os.eventfd(0)
for _ in range(100):
    os.eventfd_write(one, 1); os.eventfd_read(one); os.eventfd_write(two, 1); os.eventfd_read(two)
threading.Thread(target=os.eventfd_read, args=(two,), daemon=True).start()
epoll = select.epoll()
epoll.register(one, select.EPOLLIN)
before = time.process_time()
epoll.poll(2)
print('idle' if time.process_time() - before < 0.02 else time.process_time() - before, flush=True)
time.sleep(1)
os._exit(0)
";
    let argv = ["/usr/bin/python3", "-u", "-c", script];
    let (ended, shown) = std::thread::scope(|scope| {
        let running = scope.spawn(|| sandbox.run(&argv));
        std::thread::sleep(std::time::Duration::from_secs(1));
        let shown = sockets(&sandbox);
        (running.join().expect("it runs"), shown)
    });
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "idle\n"), "{ended:?}");
    let rows = shown["connections"].as_array().expect("rows");
    let mine = rows.iter().filter(|row| {
        let is_named = row["name"].as_str().is_some_and(|name| name.starts_with("eventfd "));
        is_named && number(&row["sent"], "carried") >= 800
    });
    assert_eq!(mine.count(), 2, "{shown}");
}

#[test]
fn what_takes_the_place_of_a_counter_gets_nothing_of_it() {
    let sandbox = carrying("counter-replaced");
    let script = "
import os, tempfile
with tempfile.TemporaryFile() as file:
    for close in lambda at: os.dup2(file.fileno(), at), lambda at: os.closerange(at, at + 1):
        at = os.eventfd(0)
        os.eventfd_write(at, 5)
        os.eventfd_write(at, 6)
        close(at)
        print(os.fstat(file.fileno()).st_size)
    at = os.eventfd(7)
    try:
        os.dup2(99, at)
    except OSError as error:
        print(error.errno, os.eventfd_read(at))
";
    let argv = ["/usr/bin/python3", "-c", script];
    let native = outside(&argv);
    assert_eq!((native.status, native.stdout.as_str()), (0, "0\n0\n9 7\n"), "{native:?}");
    assert_eq!(sandbox.run(&argv), native);
}
