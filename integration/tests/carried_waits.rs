//! Threads that wait for carried connections, what interrupts or changes that, and sockets that were shared before they
//! were connected, beside the same without.

use integration::carried::{carried, carrying, mostly_carried, outside, program, same_steps};
use integration::{compile, full};

#[test]
fn who_sleeps_is_woken_by_what_another_thread_asks_for() {
    let sandbox = carrying("rearm");
    let program = compile("cc", "rearm", &[]);
    let native = outside(&[program.text()]);
    assert_eq!((native.status, native.stdout.lines().count()), (0, 29), "{native:?}");
    assert_eq!(sandbox.run(&[program.text()]), native);
    assert!(carried(&sandbox).1 > 0);
}

#[test]
fn who_goes_to_sleep_while_something_is_written_gets_every_byte_once() {
    let sandbox = carrying("sleepers");
    let program = compile("cc", "sleepers", &["-pthread"]);
    for seed in 0..if full() { 100 } else { 6 } {
        let argv = [program.text(), &seed.to_string()];
        let native = outside(&argv);
        assert_eq!((native.status, native.stdout.matches(": all\n").count()), (0, 8), "{native:?}");
        assert_eq!(sandbox.run(&argv), native);
    }
    assert!(carried(&sandbox).1 > 10_000);
}

#[test]
fn a_signal_that_a_call_lets_through_interrupts_it_unless_something_is_there() {
    let sandbox = carrying("unblocked");
    let program = compile("cc", "unblocked", &[]);
    let native = outside(&[program.text()]);
    assert_eq!((native.status, native.stdout.lines().count()), (0, 30), "{native:?}");
    assert_eq!(native.stdout.matches("nothing: interrupted 200,").count(), 15, "{native:?}");
    assert_eq!(sandbox.run(&[program.text()]), native);
    assert!(carried(&sandbox).1 > 10_000);
}

#[test]
fn a_socket_that_was_shared_before_it_was_connected_is_the_kernels() {
    let sandbox = carrying("copied");
    let argv = ["/usr/bin/python3", &program("copied.py")];
    let native = outside(&argv);
    assert_eq!((native.status, native.stdout.matches("heard 0123456789").count()), (0, 8));
    assert_eq!(sandbox.run(&argv), native);
}

#[test]
fn what_is_in_several_epoll_instances_is_told_by_each() {
    let sandbox = carrying("instances");
    let steps = compile("cc", "instances", &[]);
    let (seeds, count) = if full() { (100, "5000") } else { (10, "1500") };
    same_steps(&sandbox, steps.text(), seeds, count, 3);
    assert!(carried(&sandbox).1 > 5_000);
}

#[test]
fn a_process_may_have_many_epoll_instances() {
    let sandbox = carrying("many-instances");
    let script = "
import select, socket
each = []
for _ in range(60):
    one, other = socket.socketpair()
    epoll = select.epoll()
    epoll.register(other, select.EPOLLIN)
    each.append((one, other, epoll))
for number in range(200):
    for one, other, epoll in each:
        one.send(b'%d' % number)
        assert epoll.poll(10) == [(other.fileno(), select.EPOLLIN)]
        assert other.recv(9) == b'%d' % number
print('all')
";
    let ended = sandbox.run(&["/usr/bin/python3", "-c", script]);
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "all\n"), "{ended:?}");
    mostly_carried(&sandbox, 20_000);
}

#[test]
fn what_is_closed_while_a_copy_lives_is_still_told() {
    let sandbox = carrying("closed");
    let argv = ["/usr/bin/python3", &program("closed.py")];
    let native = outside(&argv);
    assert_eq!((native.status, native.stdout.lines().count()), (0, 9), "{native:?}");
    assert_eq!(sandbox.run(&argv), native);
}

#[test]
fn a_child_of_vfork_hears_what_comes_to_a_socket_that_it_has_got() {
    let sandbox = carrying("spawned");
    let argv = ["/usr/bin/python3", &program("spawned.py")];
    let native = outside(&argv);
    assert_eq!((native.status, native.stdout.matches("heard 1000 0").count()), (0, 25));
    assert_eq!(sandbox.run(&argv), native);
}

#[test]
fn corners_of_what_calls_mean_are_those_of_the_kernel() {
    let sandbox = carrying("corners");
    let program = compile("cc", "corners", &["-pthread"]);
    let native = outside(&[program.text()]);
    assert_eq!((native.status, native.stderr.as_str()), (0, ""));
    assert_eq!(sandbox.run(&[program.text()]), native);
    assert!(carried(&sandbox).1 > 300);
}

#[test]
fn all_of_a_length_and_every_descriptor_come_while_the_sender_goes_on() {
    let sandbox = carrying("wholes");
    let script = program("wholes.py");
    for seed in 1..=if full() { 60 } else { 6 } {
        let ended = sandbox.run(&["/usr/bin/python3", &script, &seed.to_string()]);
        let all = "AF_UNIX False all\nAF_UNIX True all\nAF_INET False all\n";
        assert_eq!((ended.status, ended.stdout.as_str()), (0, all), "seed {seed}: {ended:?}");
    }
    assert!(carried(&sandbox).1 > 100_000);
}
