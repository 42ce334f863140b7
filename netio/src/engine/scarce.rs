//! Buffers, when there are few: how much each connection may keep, who waits, and who is cut.
//!
//! While half of the buffers are there, a connection may have as much under way as keeps its sides busy. From
//! then on, or once its port has half of its share out, it may have just so much that it goes on, and receives
//! piece by piece. A connection that sends on what it receives, or has not sent its answers, waits before the last
//! buffers are gone, until some have come back: slow readers slow down their own senders, and nobody is cut for
//! it. Cut is who keeps what nobody waits for, as half of a request, when nothing else is left; and whoever reads
//! nothing at all while others wait.

use ext_api::limits::NARROW_BUFFERS;

use super::driver::{Driver, Source};
use super::streams::{Connection, Life};
use super::{Engine, SHARE, Sandbox, add};
use crate::listen;

/// Buffers of which there are few: half of them. Wide ones are not for connections.
const FEW: usize = NARROW_BUFFERS / 2;
/// Buffers that are left to hear with; when there are fewer, somebody is cut.
const RESERVE: usize = 64;
/// How long a reader may take nothing of what is being sent to it; and how long while others wait for it.
const SLOW_NS: u64 = 60_000_000_000;
const PRESSED_NS: u64 = 2_000_000_000;
/// How long a connection that we have ended may still send, before it is cut.
pub(super) const LINGER_NS: u64 = 2_000_000_000;
/// As how many bytes the end of a connection counts.
const END_LEN: usize = 1;
/// Pieces of one connection that wait to be shown; then no more are received.
pub(super) const PIECES_MAX: usize = 8;

/// How much one connection may have now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Pieces that wait to be shown; then no more are received.
    pub(super) pieces: usize,
    /// It is received again when there are fewer.
    pub(super) pieces_resume: usize,
    /// Answers that wait to be sent; more are not asked for.
    pub(super) outputs: usize,
    /// There are few buffers.
    pub(super) is_few: bool,
    /// There are no more than are needed to hear with.
    pub(super) has_reserve_only: bool,
}

impl<D: Driver, S: Sandbox> Engine<D, S> {
    fn spare(&self) -> usize {
        self.buffers.free() + self.driver.lent()
    }

    pub(super) fn has_few_buffers(&self) -> bool {
        self.spare() < FEW
    }

    /// How much connection `index` may have now.
    pub(super) fn limits_of(&self, index: u32) -> Limits {
        self.limits(self.connections.get(index as usize).map_or(u32::MAX, |known| known.port))
    }

    /// How much each connection of a port may have now.
    pub(super) fn limits(&self, port: u32) -> Limits {
        let port = self.ports.get(port as usize).and_then(Option::as_ref);
        let out = port.map_or(0, |port| port.out);
        let spare = self.spare();
        let is_few = spare < FEW || out >= SHARE / 2;
        let has_reserve_only = spare < 2 * RESERVE;
        Limits {
            // A handler may need a second one to use the first.
            pieces: if is_few { 2 } else { PIECES_MAX },
            pieces_resume: if is_few { 2 } else { PIECES_MAX / 2 },
            outputs: match (has_reserve_only, is_few) {
                (true, _) => 1,
                (_, true) => 2,
                _ => 2 * PIECES_MAX,
            },
            is_few,
            has_reserve_only,
        }
    }

    /// It receives when there is a buffer for it.
    pub(super) fn starve(&mut self, index: u32) {
        if let Some(known) = self.connections.get_mut(index as usize)
            && !std::mem::replace(&mut known.is_starved, true)
        {
            self.starved.push(Source::Stream(index));
        }
    }

    /// Cut somebody if too few buffers are left.
    pub(super) fn keep_a_reserve(&mut self) {
        if self.spare() < RESERVE {
            self.is_pressed = true;
            self.cut_the_fullest();
        }
    }

    /// Do others have the buffers that it would be heard with?
    pub(super) fn is_kept_waiting(&self, source: Source) -> bool {
        let Source::Stream(index) = source else { return !self.needs_wide(source) };
        let known = self.connections.get(index as usize);
        known.is_some_and(|known| known.life == Life::Open && !self.waits_for_a_reader(known))
    }

    /// Does what has come of it wait for the reader of what came before?
    pub(super) fn waits_for_a_reader(&self, known: &Connection) -> bool {
        let partner = known.partner.and_then(|it| self.connections.get(it as usize));
        partner.map_or(known.is_sending, |partner| partner.is_sending)
    }

    /// Whoever keeps most buffers, unread or unused, is cut; of equals the one that has sent nothing for the
    /// longest time. What has come just now, or waits for its port's share, could not be shown: it is not kept.
    fn cut_the_fullest(&mut self) {
        let keeps = |one: &Connection| {
            // It does until it is tried again, though there may be room meanwhile.
            !one.waits_for_share && (one.pieces.len() > 1 || one.last_piece != self.pieces_seen)
        };
        let all = self.connections.iter();
        let all = all.filter(|(_, one)| keeps(one) && !self.waits_for_a_reader(one));
        let held = |(index, one): (usize, &Connection)| {
            (one.pieces.len(), u64::MAX - one.last_piece, index as u32)
        };
        let Some((1.., _, index)) = all.map(held).max() else { return };
        add(&self.tally(self.connections[index as usize].port).dropped, 1);
        self.cut(index);
    }

    /// Cut those that linger for too long, and those whose other side does not read.
    pub(super) fn expire_connections(&mut self, now_ns: u64) {
        let most = if std::mem::take(&mut self.is_pressed) { PRESSED_NS } else { SLOW_NS };
        let late = |(index, one): (usize, &mut Connection)| match one.life {
            Life::Lingering(until) if until < now_ns => {
                has_lingered(one, now_ns).then_some(index as u32)
            }
            Life::Open | Life::Closing if one.is_sending => {
                (unread_ns(one, now_ns) > most).then_some(index as u32)
            }
            _ => None,
        };
        let late: Vec<u32> = self.connections.iter_mut().filter_map(late).collect();
        late.into_iter().for_each(|index| self.cut(index));
    }
}

/// Has a connection that we have ended lingered for long enough? Not while the other side still reads what was
/// sent to it: a reset would take that away.
fn has_lingered(known: &mut Connection, now_ns: u64) -> bool {
    let unsent = listen::unacknowledged(&known.fd);
    let is_read = unsent > END_LEN && unread_ns(known, now_ns) <= SLOW_NS;
    if is_read {
        known.life = Life::Lingering(now_ns + LINGER_NS);
    }
    !is_read
}

/// For how long the other side has taken nothing of what is being sent.
fn unread_ns(known: &mut Connection, now_ns: u64) -> u64 {
    // A long answer is sent by one call, which says nothing until it is through.
    let acknowledged = listen::acknowledged(&known.fd);
    if std::mem::replace(&mut known.acknowledged, acknowledged) != acknowledged {
        known.progress_ns = now_ns;
    }
    now_ns.saturating_sub(known.progress_ns)
}
