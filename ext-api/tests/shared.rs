//! The shared structures against plain ones, and between threads.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Barrier};
use std::thread;

use ext_api::shared::{Counter, Full, LockError, Map, MapError, Mutex, Queue, RwLock};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Insert(Vec<u8>, Vec<u8>),
    Remove(Vec<u8>),
    Get(Vec<u8>),
    Evict,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || vec(0u8..4, 0..4);
    let step = prop_oneof![
        4 => (key(), vec(any::<u8>(), 0..300)).prop_map(|(key, value)| Step::Insert(key, value)),
        1 => key().prop_map(Step::Remove),
        4 => key().prop_map(Step::Get),
        1 => Just(Step::Evict),
    ];
    vec(step, 0..200)
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(300))]
    /// One bucket at first, so that most entries lie in overflow buckets.
    #[test]
    fn a_map_is_a_map(steps in steps(), expected in 1usize..40) {
        let map = Map::new(expected).unwrap();
        let mut model: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        for step in steps {
            match step {
                Step::Insert(key, value) => {
                    let replaced = map.insert(&key, &value, 0).unwrap();
                    prop_assert_eq!(replaced, model.insert(key, value).is_some());
                }
                Step::Remove(key) => {
                    prop_assert_eq!(map.remove(&key).unwrap(), model.remove(&key).is_some());
                }
                Step::Get(key) => {
                    let got = map.get(&key, || 0, <[u8]>::to_vec).unwrap();
                    prop_assert_eq!(got.as_ref(), model.get(&key));
                }
                Step::Evict => {
                    let bytes = map.evict(4).unwrap();
                    prop_assert_eq!(bytes > 0, !model.is_empty());
                    model.retain(|key, _| map.get(key, || 0, |_| ()).unwrap().is_some());
                }
            }
            prop_assert_eq!(map.stats().entries, model.len() as u64);
            let bytes: u64 = model.iter().map(|(key, value)| Map::entry_len(key, value)).sum();
            prop_assert_eq!(map.stats().bytes, bytes);
        }
        map.clear().unwrap();
        prop_assert_eq!((map.stats().entries, map.stats().bytes), (0, 0));
    }

    #[test]
    fn a_queue_is_a_queue(pushes in vec(any::<Option<u64>>(), 0..300), capacity in 1usize..20) {
        let queue = Queue::new(capacity);
        let mut model = VecDeque::new();
        for push in pushes {
            match push {
                Some(item) if model.len() == capacity => {
                    prop_assert_eq!(queue.push(item).unwrap(), Err(Full(item)));
                }
                Some(item) => {
                    model.push_back(item);
                    prop_assert_eq!(queue.push(item).unwrap(), Ok(()));
                }
                None => prop_assert_eq!(queue.pop().unwrap(), model.pop_front()),
            }
            prop_assert_eq!(queue.len(), model.len());
        }
    }
}

#[test]
fn what_belongs_together_is_queued_whole_and_taken_as_far_as_is_wanted() {
    let queue = Queue::new(5);
    assert!(queue.push_all(&[1, 2, 3]).unwrap());
    assert!(!queue.push_all(&[4, 5, 6]).unwrap());
    assert!(queue.push_all(&[4, 5]).unwrap());
    let mut taken = Vec::new();
    let mut until = |last| {
        queue.pop_while(|item| {
            taken.push(item);
            item != last
        })
    };
    assert_eq!((until(2).unwrap(), until(9).unwrap(), until(9).unwrap()), (2, 3, 0));
    assert_eq!(taken, [1, 2, 3, 4, 5]);
    assert!(queue.push_all(&[6, 7, 8, 9, 10]).unwrap());
    assert_eq!(queue.pop_many(0, |_| ()).unwrap(), 0);
    assert_eq!(queue.pop_many(2, |_| ()).unwrap(), 2);
    assert_eq!((queue.len(), queue.pop().unwrap()), (3, Some(8)));
}

#[test]
fn an_entry_expires_and_the_oldest_is_evicted() {
    let map = Map::new(100).unwrap();
    map.insert(b"short", b"1", 10).unwrap();
    assert_eq!(map.get(b"short", || 9, |_| ()), Ok(Some(())));
    assert_eq!(map.get(b"short", || 10, |_| ()), Ok(None));
    map.clear().unwrap();
    map.insert(b"old", b"value", 0).unwrap();
    for index in 0..20u64 {
        map.insert(&index.to_le_bytes(), b"value", 0).unwrap();
    }
    // Used again, so that it is no longer the oldest.
    map.insert(b"first", b"value", 0).unwrap();
    map.get(&0u64.to_le_bytes(), || 0, |_| ()).unwrap();
    assert!(map.evict(usize::MAX).unwrap() > 0);
    assert_eq!(map.get(b"old", || 0, |_| ()), Ok(None));
    assert!(map.get(&0u64.to_le_bytes(), || 0, |_| ()).unwrap().is_some());
    assert_eq!(map.stats().entries, 21);
}

#[test]
fn something_is_evicted_for_as_long_as_there_is_something() {
    // A few entries in many buckets.
    let map = Map::new(1 << 20).unwrap();
    for key in 0..3u64 {
        map.insert(&key.to_le_bytes(), b"value", 0).unwrap();
    }
    let evicted = [(); 3].map(|()| map.evict(4).unwrap() > 0);
    assert_eq!((evicted, map.evict(4)), ([true; 3], Ok(0)));
    // Two that want the same ones.
    const EACH: u64 = if cfg!(miri) { 20 } else { 5_000 };
    let map = Map::new(8).unwrap();
    for key in 0..2 * EACH {
        map.insert(&key.to_le_bytes(), b"value", 0).unwrap();
    }
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..EACH).for_each(|_| assert!(map.evict(4).unwrap() > 0)));
        }
    });
    assert_eq!((map.stats().entries, map.evict(4)), (0, Ok(0)));
}

#[test]
fn words_are_kept_and_begin_at_zero() {
    let map = Map::new(10).unwrap();
    use std::sync::atomic::Ordering::Relaxed;
    for len in 0..20 {
        let key = vec![7; len];
        let add = |words: &[ext_api::shared::AtomicWord; 2]| words[1].fetch_add(3, Relaxed);
        assert_eq!(map.words(&key, add), Ok(0));
        assert_eq!(map.words(&key, add), Ok(3));
    }
}

#[test]
fn threads_lose_nothing() {
    let shared = Arc::new((Mutex::new(0u64), RwLock::new(0u64), Counter::new(), Queue::new(8)));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..2_000u64 {
                    *shared.0.lock().unwrap() += 1;
                    *shared.1.write().unwrap() += 1;
                    assert!(*shared.1.read().unwrap() > 0);
                    shared.2.add(2);
                    while shared.3.push(round).unwrap().is_err() {
                        shared.3.pop().unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(*shared.0.lock().unwrap(), 8_000);
    assert_eq!(*shared.1.read().unwrap(), 8_000);
    assert_eq!(shared.2.sum(), 16_000);
}

#[test]
fn a_panic_breaks_a_lock_until_it_is_recovered() {
    let mutex = Arc::new(Mutex::new(1));
    let rwlock = Arc::new(RwLock::new(1));
    let (ours, theirs) = (mutex.clone(), rwlock.clone());
    let panicked = thread::spawn(move || {
        let _held = (ours.lock().unwrap(), theirs.write().unwrap());
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    assert!(matches!(mutex.lock(), Err(LockError::Broken { .. })));
    assert!(matches!(rwlock.read(), Err(LockError::Broken { .. })));
    assert!(matches!(rwlock.write(), Err(LockError::Broken { .. })));
    mutex.recover(|value| *value = 5).unwrap();
    rwlock.recover(|value| *value = 6).unwrap();
    assert_eq!((*mutex.lock().unwrap(), *rwlock.read().unwrap()), (5, 6));
}

#[test]
fn a_wait_is_bounded() {
    let mutex = Mutex::new(());
    let _held = mutex.lock().unwrap();
    thread::scope(|scope| {
        let other = scope.spawn(|| mutex.lock_within(1_000_000).map(|_| ()));
        assert!(matches!(other.join().unwrap(), Err(LockError::TimedOut { .. })));
    });
}

#[test]
fn what_is_too_large_is_refused() {
    assert!(matches!(Map::new(usize::MAX), Err(MapError::Full)));
}

#[test]
fn a_map_is_cleared_but_for_the_bucket_that_cannot_be_had() {
    let map = Map::new(1000).unwrap();
    for index in 0..1000u64 {
        map.insert(&index.to_le_bytes(), b"value", 0).unwrap();
    }
    let (held, cleared) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            map.get(&0u64.to_le_bytes(), || 0, |_| (held.wait(), cleared.wait())).unwrap();
        });
        held.wait();
        assert!(matches!(map.clear(), Err(LockError::TimedOut { .. })));
        cleared.wait();
    });
    // 512 buckets: no single one has so many.
    assert!((1..20).contains(&map.stats().entries), "{:?}", map.stats());
    assert!(map.get(&0u64.to_le_bytes(), || 0, |_| ()).unwrap().is_some());
    map.clear().unwrap();
    assert_eq!(map.stats().entries, 0);
}
