//! The arena against a model, and under threads.
#![expect(unsafe_code, reason = "the tests hand raw memory to the allocator")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;

use libos::arena::{Arena, BadFree, CHUNK_LEN};
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

const LEN: usize = 4 << 20;

struct Memory(*mut u8);

impl Memory {
    fn new() -> (Self, Arena) {
        // SAFETY: the layout has a length.
        let base = unsafe { alloc_zeroed(Self::layout()) };
        assert!(!base.is_null());
        // SAFETY: zeroed, ours, and freed after the arena's last use.
        let arena = unsafe { Arena::format(base, LEN) }.expect("the memory is large enough");
        (Self(base), arena)
    }

    fn layout() -> Layout {
        Layout::from_size_align(LEN, CHUNK_LEN).expect("a valid layout")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout.
        unsafe { dealloc(self.0, Self::layout()) };
    }
}

#[derive(Debug, Clone)]
enum Step {
    Alloc { len: usize, align: usize },
    Free(usize),
    Realloc(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![1..200usize, 200..20_000usize, 60_000..400_000usize];
    let align = prop_oneof![Just(1), Just(16), Just(64), Just(4096), Just(65536)];
    let step = prop_oneof![
        3 => (len.clone(), align).prop_map(|(len, align)| Step::Alloc { len, align }),
        2 => any::<usize>().prop_map(Step::Free),
        1 => (any::<usize>(), len).prop_map(|(which, len)| Step::Realloc(which, len)),
    ];
    proptest::collection::vec(step, 1..300)
}

fn fill(block: *mut u8, len: usize, with: u8) {
    // SAFETY: the arena handed out `len` bytes.
    unsafe { block.write_bytes(with, len) };
}

fn holds(block: *const u8, len: usize, with: u8) -> bool {
    // SAFETY: the block is live and was filled.
    unsafe { std::slice::from_raw_parts(block, len) }.iter().all(|&byte| byte == with)
}

proptest! {
    #[test]
    fn blocks_are_aligned_disjoint_and_keep_their_bytes(steps in steps()) {
        let (_memory, arena) = Memory::new();
        let mut live: BTreeMap<usize, (usize, u8)> = BTreeMap::new();
        let mut mark = 0u8;
        for step in steps {
            mark = mark.wrapping_add(1);
            match step {
                Step::Alloc { len, align } => {
                    let Some(block) = arena.alloc(len, align, 3) else { continue };
                    let address = block.as_ptr() as usize;
                    prop_assert_eq!(address % align, 0);
                    let before = live.range(..address).next_back();
                    prop_assert!(before.is_none_or(|(at, (len, _))| at + len <= address));
                    let after = live.range(address..).next();
                    prop_assert!(after.is_none_or(|(at, _)| address + len <= *at));
                    fill(block.as_ptr(), len, mark);
                    live.insert(address, (len, mark));
                }
                Step::Free(which) => {
                    let Some(&address) = live.keys().nth(which % live.len().max(1)) else {
                        continue;
                    };
                    let (len, with) = live.remove(&address).unwrap();
                    prop_assert!(holds(address as *const u8, len, with));
                    // SAFETY: live until now.
                    prop_assert_eq!(unsafe { arena.free(address as *mut u8) }, Ok(()));
                    // SAFETY: not a block any more; the arena must say so.
                    let again = unsafe { arena.free(address as *mut u8) };
                    prop_assert!(again.is_err());
                }
                Step::Realloc(which, len) => {
                    let Some(&address) = live.keys().nth(which % live.len().max(1)) else {
                        continue;
                    };
                    // SAFETY: live.
                    let moved = unsafe { arena.realloc(address as *mut u8, len, 1) };
                    let Some(moved) = moved else { continue };
                    let (old, with) = live.remove(&address).unwrap();
                    prop_assert!(holds(moved.as_ptr(), old.min(len), with));
                    fill(moved.as_ptr(), len, mark);
                    live.insert(moved.as_ptr() as usize, (len, mark));
                }
            }
        }
        for address in live.into_keys() {
            // SAFETY: live.
            prop_assert_eq!(unsafe { arena.free(address as *mut u8) }, Ok(()));
        }
        prop_assert_eq!(arena.used(), 0);
        // Everything came back: the largest run fits again.
        prop_assert!(arena.alloc(arena.capacity(), 1, 0).is_some());
    }
}

#[test]
fn a_full_arena_says_so_and_recovers() {
    let (_memory, arena) = Memory::new();
    let mut blocks = Vec::new();
    while let Some(block) = arena.alloc(1000, 16, 0) {
        blocks.push(block);
    }
    assert!(blocks.len() > 3000, "{}", blocks.len());
    assert!(arena.alloc(1000, 16, 5).is_none());
    for block in blocks {
        // SAFETY: live.
        assert_eq!(unsafe { arena.free(block.as_ptr()) }, Ok(()));
    }
    assert!(arena.alloc(1 << 20, 16, 0).is_some());
}

#[test]
fn wild_pointers_are_refused() {
    let (_memory, arena) = Memory::new();
    let block = arena.alloc(100, 16, 0).unwrap().as_ptr();
    for wild in [block.wrapping_add(1), block.wrapping_add(LEN), std::ptr::null_mut()] {
        // SAFETY: not a block; the arena must say so.
        assert_eq!(unsafe { arena.free(wild) }, Err(BadFree::NotABlock));
    }
    let run = arena.alloc(300_000, 16, 0).unwrap().as_ptr();
    // SAFETY: inside of a run, so not a block.
    assert_eq!(unsafe { arena.free(run.wrapping_add(CHUNK_LEN)) }, Err(BadFree::NotABlock));
}

#[test]
fn what_is_given_back_is_taken_again() {
    let (_memory, arena) = Memory::new();
    let mut seen = std::collections::BTreeSet::new();
    // Several lengths at a time, each alone in its chunk: the memory that they use does not grow.
    for _ in 0..1000 {
        let blocks = [24, 500, 5000].map(|len| arena.alloc(len, 16, 0).unwrap().as_ptr());
        for block in blocks {
            seen.insert(block.addr() / CHUNK_LEN);
            // SAFETY: just allocated.
            unsafe { arena.free(block) }.unwrap();
        }
    }
    assert!(seen.len() <= 6, "{} chunks", seen.len());
}

#[test]
fn threads_never_share_a_block() {
    let (_memory, arena) = Memory::new();
    let base = arena.alloc(16, 16, 0).unwrap().as_ptr() as usize;
    // SAFETY: just allocated.
    unsafe { arena.free(base as *mut u8) }.unwrap();
    let arena_address = _memory.0 as usize;
    std::thread::scope(|scope| {
        for lane in 0..4usize {
            scope.spawn(move || {
                // SAFETY: formatted above; the memory outlives the scope.
                let arena = unsafe { Arena::at(arena_address as *mut u8) }.unwrap();
                let mut live = Vec::new();
                for round in 0..20_000usize {
                    let len = 16 + (round * 37 + lane * 11) % 3000;
                    if let Some(block) = arena.alloc(len, 16, lane) {
                        fill(block.as_ptr(), len, lane as u8);
                        live.push((block.as_ptr() as usize, len));
                    }
                    if live.len() > 50 {
                        let (block, len) = live.swap_remove(round % live.len());
                        assert!(holds(block as *const u8, len, lane as u8));
                        // SAFETY: live.
                        unsafe { arena.free(block as *mut u8) }.unwrap();
                    }
                }
                for (block, _) in live {
                    // SAFETY: live.
                    unsafe { arena.free(block as *mut u8) }.unwrap();
                }
            });
        }
    });
    assert_eq!(arena.used(), 0);
}

#[test]
fn a_block_shrinks_also_when_the_arena_is_full() {
    let (_memory, arena) = Memory::new();
    let len = arena.capacity() / 2;
    let block = arena.alloc(len, 16, 0).expect("nothing is in use").as_ptr();
    while arena.alloc(CHUNK_LEN, 16, 0).is_some() {}
    assert_eq!(arena.alloc(1, 1, 0), None);
    fill(block, 100, 7);
    // SAFETY: taken above.
    let shrunk = unsafe { arena.realloc(block, 100, 0) }.expect("it has the bytes already");
    assert!(holds(shrunk.as_ptr(), 100, 7));
    // SAFETY: as above.
    assert_eq!(unsafe { arena.realloc(shrunk.as_ptr(), len + 1, 0) }, None);
    // SAFETY: as above.
    assert_eq!(unsafe { arena.free(shrunk.as_ptr()) }, Ok(()));
}
