//! Records in a ring, and what others may write in place of their headers.

use libos::sockets::Direction;
use libos::sockets::records::{HEADER, RECORD_MAX, record_len};
use libos::sockets::{LARGE_RING, SMALL_RING};
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_header_lies_in_one_piece_wherever_a_record_begins(
        lens in prop::collection::vec(0..RECORD_MAX, 1..100), larger_at in 0usize..100,
    ) {
        use std::sync::atomic::Ordering::Relaxed;
        let direction = Direction::default();
        for (step, len) in lens.into_iter().enumerate() {
            let (tail, room) = direction.room();
            if step == larger_at || record_len(len) > direction.ring_len(tail) {
                if direction.large.load(Relaxed) == 0 {
                    direction.large_from.store(tail, Relaxed);
                    direction.large.store(1, Relaxed);
                }
                continue;
            }
            if record_len(len) > room {
                let (head, filled) = direction.filled();
                prop_assert!(direction.take(head, filled));
                continue;
            }
            prop_assert_eq!(direction.piece(tail, HEADER).len, HEADER);
            direction.publish(tail + record_len(len) as u64, || false);
            prop_assert!(direction.filled().1 <= LARGE_RING + SMALL_RING);
        }
    }

    #[test]
    fn a_record_is_never_longer_than_what_is_there(header in any::<u64>(), filled in 0usize..=LARGE_RING) {
        let lens = [header, header % (2 * RECORD_MAX as u64)];
        for len in lens.into_iter().filter_map(|header| Direction::checked_len(header, filled)) {
            prop_assert!(len <= RECORD_MAX && HEADER + len <= filled && record_len(len) <= filled);
        }
    }
}
