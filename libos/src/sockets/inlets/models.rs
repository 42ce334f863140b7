//! What senders, receivers and those who free rows of inlets may do to each other.
#![expect(unsafe_code, reason = "a ring that loom watches")]

use super::{Inlet, SENDERS};
use crate::sockets::Direction;
use crate::sync::AtomicU32;
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use loom::sync::Arc;

/// An inlet, its ring, and how much the kernel has.
#[derive(Default)]
struct Model {
    inlet: Inlet,
    directions: [Direction; 1],
    kernel: AtomicU32,
}

impl Model {
    fn ring(&self) -> &Direction {
        &self.directions[SENDERS]
    }
}

#[test]
fn loom_nothing_overtakes_what_its_sender_had_go_by_the_kernel() {
    loom::model(|| {
        let model = Arc::new(Model::default());
        let other = model.clone();
        let sender = loom::thread::spawn(move || {
            other.kernel.store(1, SeqCst);
            let number = other.inlet.number();
            if other.inlet.is_emptied(number) {
                other.ring().publish(1, || false);
            }
        });
        let sent = model.inlet.sent.load(SeqCst);
        if model.kernel.load(SeqCst) == 0 {
            model.inlet.found_empty(sent);
        }
        sender.join().expect("no panic");
        // It has not been received.
        assert!(!model.ring().has_bytes());
    });
}

#[test]
fn loom_a_sender_uses_the_ring_once_its_last_one_has_been_received() {
    loom::model(|| {
        let model = Arc::new(Model::default());
        let other = model.clone();
        let sender = loom::thread::spawn(move || {
            other.kernel.store(1, SeqCst);
            let number = other.inlet.number();
            other.inlet.is_emptied(number).then(|| other.ring().publish(1, || false))
        });
        let sent = model.inlet.sent.load(SeqCst);
        let received = model.kernel.swap(0, SeqCst) == 1;
        model.inlet.found_empty(sent);
        if model.ring().has_bytes() {
            assert!(received);
        }
        sender.join().expect("no panic");
    });
}

/// By who has the turn: by the ring, or by the kernel. True if by the ring.
fn send(model: &Model) -> bool {
    let ring = model.ring();
    let is_parked = || ring.waiting.parked.load(Relaxed) != 0;
    let tail = ring.tail.load(Acquire);
    if !is_parked() && !ring.publish(tail + 1, is_parked) {
        return true;
    }
    let taken_back = ring.tail.load(Acquire) == tail || ring.take(tail, 1);
    if taken_back {
        model.kernel.fetch_add(1, AcqRel);
    }
    !taken_back
}

#[test]
fn loom_no_receiver_sleeps_while_there_is_something_in_the_ring() {
    loom::model(|| {
        let model = Arc::new(Model::default());
        let other = model.clone();
        let sender = loom::thread::spawn(move || send(&other));
        let sleeps = model.ring().park();
        let by_ring = sender.join().expect("no panic");
        // Asleep, it is woken by the kernel; otherwise it looks at the ring.
        assert!(!sleeps || !by_ring);
        assert_eq!(model.ring().has_bytes(), by_ring);
        assert_eq!(model.kernel.load(Acquire) == 1, !by_ring);
    });
}

#[test]
fn loom_two_senders_never_write_at_the_same_place_and_a_dead_one_is_followed_by_one() {
    loom::model(|| {
        let model = Arc::new(Model::default());
        let byte = Arc::new(loom::cell::UnsafeCell::new(0));
        // Whoever had the turn has been killed.
        model.inlet.turn.store(99, Relaxed);
        let write = |own: u64, model: &Model, byte: &loom::cell::UnsafeCell<u64>| {
            let inlet = &model.inlet;
            if inlet.take_turn(own).is_err() && inlet.pass_turn(99, own).is_err() {
                return false;
            }
            // SAFETY: loom fails if it is not.
            byte.with_mut(|byte| unsafe { *byte = own });
            inlet.pass_turn(own, 0).is_ok()
        };
        let (other, others) = (model.clone(), byte.clone());
        let second = loom::thread::spawn(move || write(2, &other, &others));
        let first = write(1, &model, &byte);
        assert!(first || second.join().expect("no panic"));
    });
}

#[test]
fn loom_nothing_is_put_into_a_row_that_has_become_free() {
    loom::model(|| {
        let model = Arc::new(Model::default());
        let byte = Arc::new(loom::cell::UnsafeCell::new(0));
        let stamp = model.inlet.stamp.load(Acquire);
        let (other, written) = (model.clone(), byte.clone());
        let sender = loom::thread::spawn(move || {
            let _ = other.inlet.take_turn(1);
            if other.inlet.is_still(stamp) {
                // SAFETY: loom fails if it is not.
                written.with_mut(|byte| unsafe { *byte = 1 });
            }
            let _ = other.inlet.pass_turn(1, 0);
        });
        model.inlet.stamp.fetch_add(2, SeqCst);
        loom::sync::atomic::fence(SeqCst);
        if model.inlet.turn.load(SeqCst) == 0 {
            // SAFETY: as above: the row is another's.
            byte.with_mut(|byte| unsafe { *byte = 2 });
        }
        sender.join().expect("no panic");
    });
}

/// By who has the turn, behind one that is unread: by the kernel if somebody sleeps. As [`send`], where that cannot be
/// taken out again.
fn send_behind(model: &Model, published: impl FnOnce()) {
    let ring = model.ring();
    let tail = ring.tail.load(Acquire);
    let is_asleep = ring.publish(tail + 1, || {
        published();
        ring.waiting.parked.load(Relaxed) != 0
    });
    let is_taken = || ring.filled().0 > tail;
    if is_asleep && (ring.take(tail, 1) || model.inlet.make_void(tail, is_taken)) {
        model.kernel.fetch_add(1, AcqRel);
    }
}

/// Receive what is in the ring: how many are not for the kernel to deliver.
fn receive(model: &Model) -> u32 {
    let mut received = 0;
    while let (position, 1..) = model.ring().filled() {
        if model.ring().take(position, 1) && !model.inlet.is_void(position) {
            received += 1;
        }
    }
    received
}

#[test]
fn loom_who_sleeps_for_edges_and_leaves_one_unread_is_woken_by_the_next() {
    loom::model(|| {
        let model = Arc::new(Model::default());
        let marked = Arc::new(AtomicU32::new(0));
        model.ring().publish(1, || false);
        let (other, mark) = (model.clone(), marked.clone());
        let sender = loom::thread::spawn(move || {
            send_behind(&other, || {
                mark.fetch_add(1, AcqRel);
                loom::sync::atomic::fence(SeqCst);
            });
        });
        model.ring().waiting.parked.fetch_add(1, AcqRel);
        loom::sync::atomic::fence(SeqCst);
        let sleeps = marked.load(Acquire) == 0;
        sender.join().expect("no panic");
        assert!(!sleeps || model.kernel.load(Acquire) == 1);
        assert_eq!(receive(&model) + model.kernel.load(Acquire), 2);
    });
}

#[test]
fn loom_what_becomes_void_as_it_is_received_comes_once() {
    loom::model(|| {
        let model = Arc::new(Model::default());
        model.ring().publish(1, || false);
        model.ring().waiting.parked.store(1, Relaxed);
        let other = model.clone();
        let sender = loom::thread::spawn(move || send_behind(&other, || ()));
        let received = receive(&model);
        sender.join().expect("no panic");
        assert_eq!(received + receive(&model) + model.kernel.load(Acquire), 2);
    });
}
