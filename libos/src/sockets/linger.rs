//! Connections whose ends nobody is known to have.
//!
//! A child of fork has what its parent had, but is known by name only when it has joined, some 0.3 ms later.
//! A parent that has closed both ends by then, as after sending what the child is to read, must not take
//! away what is in the rings. So a row that still has something unread lingers, and a child that comes finds it.

use super::{ACCEPTED, Connection, Sockets, TAKEN};
use crate::sync::Ordering;

/// How long. A child has to get a core, and the supervisor's attention.
const LINGER_NS: u64 = 2_000_000_000;

impl Connection {
    /// Is there something that only a process that knows of the row can read?
    #[must_use]
    pub fn has_unread(&self) -> bool {
        self.directions.iter().any(|way| way.has_bytes() || way.bells() != 0)
    }

    /// Can nobody come by either end any more?
    fn is_over(&self) -> bool {
        // A descriptor that is under way still needs it. If nobody ever receives that, the row is lost.
        let is_lost = |side: &super::Side| {
            side.gone.load(Ordering::Acquire) != 0
                && !side.is_held()
                && side.passed.load(Ordering::Acquire) == 0
        };
        // Of a counter there is one end, and whoever sends to a datagram socket has none of its row.
        let is_one = self.is_counter() || self.is_inlet();
        let first = if is_one { super::pipes::READER } else { 0 };
        self.sides[first..].iter().all(is_lost)
    }
}

impl Sockets {
    /// Free the row, if nobody has either end.
    pub(super) fn free_if_over(&self, row: usize) {
        let connection = &self.connections[row];
        // Of the life that is looked at: the row may have been freed, and be another's, before we come to it.
        let life = connection.generation.load(Ordering::Acquire);
        if connection.state.load(Ordering::Acquire) < ACCEPTED || !connection.is_over() {
            return;
        }
        if !self.close_inlet(row) {
            return;
        }
        // Several may come here at once: one of them frees it.
        let (next, order) = (life.wrapping_add(1), Ordering::AcqRel);
        if connection.generation.compare_exchange(life, next, order, Ordering::Relaxed).is_ok() {
            connection.state.store(TAKEN, Ordering::Release);
            self.free(row);
        }
    }

    /// As `free_if_over`, by who had the turn of an inlet when that ended.
    pub fn free_inlet(&self, row: usize) {
        let connection = &self.connections[row];
        if connection.is_inlet() && !connection.has_unread() {
            self.free_if_over(row);
        }
    }

    /// Free what has lingered for long enough.
    pub fn reap(&self, now_ns: u64) {
        for row in self.rows() {
            let ended_ns = self.connections[row].ended_ns.load(Ordering::Acquire);
            if ended_ns != 0 && now_ns.saturating_sub(ended_ns) > LINGER_NS {
                self.free_if_over(row);
            }
        }
    }

    /// Nobody is to find the row, which has not been offered.
    pub fn give_up(&self, row: usize) {
        let state = &self.connections[row].state;
        if state.load(Ordering::Acquire) == TAKEN {
            self.free(row);
        }
    }
}
