//! Events by every route: delivered once, in order, refused when there is no room or nobody.

use integration::{Sandbox, built, launcher};

fn route(which: &str) -> Sandbox {
    let sandbox = Sandbox::up(&format!("events-{which}"));
    sandbox.load_hello();
    sandbox.load(&built("libledger.so"));
    let program = built("events");
    let ended = sandbox.run(&[program.to_str().expect("a UTF-8 path"), which]);
    assert_eq!(ended.status, 0, "{}{}", ended.stdout, ended.stderr);
    println!("{}", ended.stdout.trim());
    sandbox
}

#[test]
fn a_waiting_process_gets_every_event_in_order() {
    route("waiting");
}

#[test]
fn a_process_that_makes_upcalls_gets_them_on_its_way_out() {
    route("leaving");
}

#[test]
fn a_handler_posts_to_the_process_that_it_runs_in() {
    route("oneself");
}

#[test]
fn an_urgent_event_interrupts_a_program() {
    route("urgent");
}

#[test]
fn a_full_mailbox_refuses_and_loses_nothing() {
    route("full");
}

#[test]
fn what_is_for_nobody_is_refused_and_what_was_not_read_is_reported() {
    let sandbox = route("gone");
    let log = launcher(&["log", &sandbox.name]).stdout;
    assert!(log.contains("ended before 3 events reached it"), "{log}");
}

#[test]
fn killed_posters_leave_a_mailbox_that_works() {
    route("killed");
}

#[test]
fn everybody_can_be_told() {
    route("all");
}

#[test]
fn whoever_is_idle_takes_work() {
    route("any");
}
