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
