//! Threads that wait for carried connections, and what interrupts or changes that, beside the same without.

use integration::carried::{carried, carrying, outside};
use integration::compile;

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
fn a_signal_that_a_call_lets_through_interrupts_it_unless_something_is_there() {
    let sandbox = carrying("unblocked");
    let program = compile("cc", "unblocked", &[]);
    let native = outside(&[program.text()]);
    assert_eq!((native.status, native.stdout.lines().count()), (0, 30), "{native:?}");
    assert_eq!(native.stdout.matches("nothing: interrupted 200,").count(), 15, "{native:?}");
    assert_eq!(sandbox.run(&[program.text()]), native);
    assert!(carried(&sandbox).1 > 10_000);
}
