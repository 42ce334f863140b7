//! The shared structures when the heap is full: they say so, and nobody's bucket stays locked.
#![expect(unsafe_code, reason = "an allocator that can be told that it is full")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::null_mut;

use ext_api::shared::{AtomicWord, Map, MapError};

/// The system's heap, which is full for a thread that says so.
struct Heap;

thread_local! {
    static FULL: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: the system's blocks, or none.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if FULL.get() {
            return null_mut();
        }
        // SAFETY: by the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: by the caller's contract; all blocks are the system's.
        unsafe { System.dealloc(block, layout) };
    }
}

#[global_allocator]
static HEAP: Heap = Heap;

fn when_full<R>(work: impl FnOnce() -> R) -> R {
    FULL.set(true);
    let result = work();
    FULL.set(false);
    result
}

#[test]
fn a_full_heap_has_no_room_for_words_and_the_bucket_is_free_again() {
    let map = Map::new(1).expect("there is room");
    let add = |words: &[AtomicWord; 2]| words[0].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(map.words(b"early", add), Ok(0));
    assert_eq!(when_full(|| map.words(b"late", add)), Err(MapError::Full));
    assert_eq!(when_full(|| map.words(b"early", add)), Ok(1));
    assert_eq!(map.words(b"late", add), Ok(0));
    assert_eq!(map.stats().entries, 2);
}
