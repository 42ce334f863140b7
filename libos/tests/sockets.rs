//! Positions in the rings of a direction, and rows of the table, beside plain models of both.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

use libos::sockets::{
    Direction, LARGE_RING, PROBES, SMALL_RING, WATCHED_MAX, WATCHERS_MAX, first_row, watch_word,
    watched,
};
use proptest::prelude::*;

/// The memory of a direction's rings.
struct Rings {
    small: Vec<u8>,
    large: Vec<u8>,
}

impl Rings {
    /// Each piece of `len` bytes from `position`.
    fn each(&mut self, of: &Direction, position: u64, len: usize, mut act: impl FnMut(&mut [u8])) {
        let mut done = 0;
        while done < len {
            let piece = of.piece(position + done as u64, len - done);
            assert!(piece.len > 0);
            let ring = if piece.in_large { &mut self.large } else { &mut self.small };
            act(&mut ring[piece.offset..piece.offset + piece.len]);
            done += piece.len;
        }
    }
}

proptest! {
    #[test]
    fn bytes_come_out_in_the_order_in_which_they_went_in(
        steps in prop::collection::vec((any::<bool>(), 1usize..20_000), 1..200),
        larger_at in 0usize..200,
    ) {
        let direction = Direction::default();
        let mut rings = Rings { small: vec![0; SMALL_RING], large: vec![0; LARGE_RING] };
        let mut model = VecDeque::new();
        let mut next = 0u8;
        for (step, (writes, len)) in steps.into_iter().enumerate() {
            if step == larger_at {
                direction.large_from.store(direction.tail.load(Relaxed), Relaxed);
                direction.large.store(1, Relaxed);
            }
            if writes {
                let (tail, room) = direction.room_for(len);
                let (same, in_all) = direction.room();
                // What is remembered is enough, or all that there is.
                prop_assert!(tail == same && room <= in_all && (room >= len || room == in_all));
                let len = len.min(room);
                rings.each(&direction, tail, len, |piece| {
                    for byte in piece {
                        *byte = next;
                        model.push_back(next);
                        next = next.wrapping_mul(5).wrapping_add(17);
                    }
                });
                direction.publish(tail + len as u64, || false);
            } else {
                let (head, filled) = direction.filled();
                prop_assert_eq!(filled, model.len());
                let len = len.min(filled);
                let mut out = Vec::new();
                rings.each(&direction, head, len, |piece| out.extend_from_slice(piece));
                prop_assert!(direction.take(head, len));
                prop_assert_eq!(out, model.drain(..len).collect::<Vec<u8>>());
            }
        }
    }

    #[test]
    fn what_others_write_into_positions_leads_nowhere_else(
        tail in any::<u64>(), head in any::<u64>(), from in any::<u64>(), large in any::<u32>(), len in 1usize..1 << 30,
    ) {
        let direction = Direction::default();
        direction.tail.store(tail, Relaxed);
        direction.reading.head.store(head, Relaxed);
        direction.large_from.store(from, Relaxed);
        direction.large.store(large, Relaxed);
        prop_assert!(direction.filled().1 <= LARGE_RING);
        prop_assert!(direction.room().1 <= LARGE_RING);
        let piece = direction.piece(head, len);
        let ring = if piece.in_large { LARGE_RING } else { SMALL_RING };
        prop_assert!(piece.offset + piece.len <= ring && piece.len <= len);
    }

    #[test]
    fn a_place_is_what_it_was_made_of(watcher in 0..WATCHERS_MAX, socket in 0..WATCHED_MAX) {
        prop_assert_eq!(watched(watch_word(watcher, socket)), Some((watcher, socket)));
    }
}

#[test]
fn names_of_connections_are_spread() {
    // 10,000 connections of one client host to one port: how many find no row of their own?
    let mut taken = vec![false; libos::sockets::CONNECTIONS_MAX];
    let mut lost = 0;
    for port in 0..10_000u64 {
        let name = [(32_768 + port) << 16 | 6379, 0, 0xffff_7f00_0001, 0, 0xffff_7f00_0001];
        let row = (0..PROBES)
            .map(|probe| (first_row(&name) + probe) % taken.len())
            .find(|&row| !taken[row]);
        match row {
            Some(row) => taken[row] = true,
            None => lost += 1,
        }
    }
    assert!(lost < 100, "{lost}");
}
