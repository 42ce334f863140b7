//! A device whose frames a handler is asked about before anybody else sees them.
//!
//! ```text
//!   host ◄── passed ── Asked ◄────── frame ── device
//!                        │                      ▲
//!                     handler ── answered ──────┘
//!                        └────── dropped, refused, failed
//! ```
//!
//! The handler is a closure of the program's, or an extension's, which all programs of the sandbox share: it runs
//! as an upcall of the thread that takes the frame, on the frame where it lies. What it passes, changed or not,
//! goes on to who asked the device; an answer goes out by the device, with the next [`Device::flush`]. Frames
//! that are sent it is not asked about.
//!
//! A handler that cannot be asked (its extension restarts, or was unloaded), or that fails, passes nothing: what
//! it might have kept from the host is lost as on a bad line.
//!
//! ```
//! use netio::device::asked::{Asked, Packet, Verdict};
//! use netio::device::memory::{Faults, pair};
//! use netio::device::Medium;
//! use netio::stack::{Config, Stack};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let [line, _other] = pair(Medium::Ethernet, 1500, Faults::default(), 0);
//! // Without the protocols that are not asked for: IPv4 and ARP only.
//! let device = Asked::new(line, |frame: &mut Packet<'_>| match frame.bytes().get(12..14) {
//!     Some([8, 0] | [8, 6]) => Verdict::Pass,
//!     _ => Verdict::Drop,
//! });
//! let verdicts = device.verdicts();
//! let stack = Stack::new(device, Config::new([10, 0, 0, 1].into(), 24))?;
//! println!("{stack}; of these: {}", verdicts.now());
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ext_api::net::show_to;
pub use ext_api::net::{FrameHandler, Packet, Said, Verdict};

use super::{Device, ETHERNET_LEN, PACKET_MAX, passed_on};

/// Frames that one call keeps from its caller; then that one has its turn.
const KEPT_MAX: usize = 64;

/// What became of the frames that a device has given. Their sum is what its counters have as received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Went on to who asked the device.
    pub passed: u64,
    /// Were answered; the device's counters say whether the answer was sent.
    pub answered: u64,
    /// Were dropped by the handler.
    pub dropped: u64,
    /// Were dropped, since the handler asked for what only the sandbox's worker does: to forward, or to hand on.
    pub refused: u64,
    /// Were dropped, since the handler could not be asked, or failed.
    pub failed: u64,
}

impl Verdicts {
    /// All frames.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.passed + self.answered + self.dropped + self.refused + self.failed
    }
}

impl fmt::Display for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, answered, dropped, refused, failed } = self;
        write!(
            f,
            "{passed} passed, {answered} answered, {dropped} dropped, {refused} refused, {failed} failed"
        )
    }
}

#[derive(Debug, Default)]
struct Counts {
    passed: AtomicU64,
    answered: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    fn add(&self, said: Option<Said>) {
        let count = match said {
            Some(Said::Pass) => &self.passed,
            Some(Said::Reply | Said::ReplyInPlace(_)) => &self.answered,
            Some(Said::Drop) => &self.dropped,
            Some(Said::Elsewhere) => &self.refused,
            None => &self.failed,
        };
        // The device's alone to write.
        count.store(count.load(Relaxed) + 1, Relaxed);
    }
}

/// Knows the verdicts of a device that somebody else has by now.
#[derive(Debug, Clone)]
pub struct Watch(Arc<Counts>);

impl Watch {
    /// The verdicts so far.
    #[must_use]
    pub fn now(&self) -> Verdicts {
        let counts = &*self.0;
        Verdicts {
            passed: counts.passed.load(Relaxed),
            answered: counts.answered.load(Relaxed),
            dropped: counts.dropped.load(Relaxed),
            refused: counts.refused.load(Relaxed),
            failed: counts.failed.load(Relaxed),
        }
    }
}

/// Says what becomes of a frame; None if nobody can.
type Ask = dyn FnMut(&mut [u8], &mut Vec<u8>) -> Option<Said> + Send;

/// A device with a handler before it. Its counters are those of the device inside.
pub struct Asked<D> {
    device: D,
    ask: Box<Ask>,
    answer: Vec<u8>,
    counts: Arc<Counts>,
}

impl<D: fmt::Debug> fmt::Debug for Asked<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, counts, .. } = self;
        f.debug_struct("Asked")
            .field("device", device)
            .field("counts", counts)
            .finish_non_exhaustive()
    }
}

impl<D: Device> Asked<D> {
    /// `device`, each of whose frames a closure is asked about. If a [`crate::stack::Stack`] is made of it, the
    /// closure must not use that one's sockets. An answer has [`PACKET_MAX`] octets behind its header at most:
    /// to write more is a panic.
    pub fn new(
        device: D,
        mut handler: impl FnMut(&mut Packet<'_>) -> Verdict + Send + 'static,
    ) -> Self {
        Self::with(
            device,
            Box::new(move |frame, answer| Some(show_to(&mut handler, frame, answer))),
        )
    }

    /// `device`, each of whose frames an extension's handler is asked about.
    pub fn by(device: D, mut handler: FrameHandler) -> Self {
        Self::with(device, Box::new(move |frame, answer| handler.show(frame, answer).ok()))
    }

    fn with(device: D, ask: Box<Ask>) -> Self {
        let answer = Vec::with_capacity(ETHERNET_LEN + PACKET_MAX);
        Self { device, ask, answer, counts: Arc::default() }
    }

    /// What the handler has said, and says from now on.
    #[must_use]
    pub fn verdicts(&self) -> Watch {
        Watch(Arc::clone(&self.counts))
    }

    /// Ask about a frame and do what the handler says; true if it passes the frame.
    fn passes(&mut self, now: Duration, frame: &mut [u8]) -> bool {
        let said = (self.ask)(frame, &mut self.answer);
        self.counts.add(said);
        match said {
            Some(Said::Reply) => self.device.send(now, &self.answer),
            Some(Said::ReplyInPlace(len)) => self.device.send(now, &frame[..len]),
            _ => {}
        }
        said == Some(Said::Pass)
    }
}

impl<D: Device> Device for Asked<D> {
    passed_on!(self => self.device);

    fn finishes(&self) -> bool {
        self.device.finishes()
    }

    /// None if there is none now, or after many that the handler kept: a wait ends at once then.
    fn receive(&mut self, now: Duration, into: &mut [u8]) -> Option<usize> {
        for _ in 0..KEPT_MAX {
            let len = self.device.receive(now, into)?;
            if self.passes(now, &mut into[..len]) {
                return Some(len);
            }
        }
        None
    }

    fn send(&mut self, now: Duration, frame: &[u8]) {
        self.device.send(now, frame);
    }

    fn send_unfinished(&mut self, now: Duration, frame: &mut [u8], segment_len: u16) {
        self.device.send_unfinished(now, frame, segment_len);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::super::Medium;
    use super::super::memory::{Faults, Memory, pair};
    use super::*;

    const NOW: Duration = Duration::ZERO;

    /// Does what the first octet of a frame says.
    fn obey(frame: &mut Packet<'_>) -> Verdict {
        match frame.bytes()[0] % 6 {
            0 => Verdict::Pass,
            1 => frame.reply(b"answer"),
            2 => {
                frame.bytes_mut().reverse();
                frame.reply_in_place(4)
            }
            3 => Verdict::Forward(([10, 0, 0, 1], 7).into()),
            // Longer than the device sends.
            4 => frame.reply(&[7; 2000]),
            _ => Verdict::Drop,
        }
    }

    fn all(device: &mut dyn Device) -> Vec<Vec<u8>> {
        let mut into = [0; 1600];
        std::iter::from_fn(|| device.receive(NOW, &mut into).map(|len| into[..len].to_vec()))
            .collect()
    }

    /// What comes of such frames: those passed, and those that come back.
    fn after(frames: &[[u8; 5]]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>, Asked<Memory>) {
        let [mut line, inside] = pair(Medium::Ip, 1500, Faults::default(), 1);
        let mut device = Asked::new(inside, obey);
        frames.iter().for_each(|frame| line.send(NOW, frame));
        let mut passed = Vec::new();
        while device.next_at().is_some() {
            passed.extend(all(&mut device));
        }
        device.flush();
        (passed, all(&mut line), device)
    }

    proptest! {
        #[test]
        fn every_frame_has_one_fate(frames: Vec<[u8; 5]>) {
            let (passed, back, device) = after(&frames);
            let with = |kind: u8| frames.iter().filter(move |frame| frame[0] % 6 == kind);
            prop_assert_eq!(passed, with(0).map(|frame| frame.to_vec()).collect::<Vec<_>>());
            let answer = |frame: &[u8; 5]| match frame[0] % 6 {
                1 => Some(b"answer".to_vec()),
                2 => Some(vec![frame[4], frame[3], frame[2], frame[1]]),
                _ => None,
            };
            prop_assert_eq!(back, frames.iter().filter_map(answer).collect::<Vec<_>>());
            let count = |kind| with(kind).count() as u64;
            let (verdicts, counters) = (device.verdicts().now(), device.counters());
            prop_assert_eq!(verdicts, Verdicts {
                passed: count(0),
                answered: count(1) + count(2) + count(4),
                dropped: count(5),
                refused: count(3),
                failed: 0,
            });
            prop_assert_eq!(verdicts.total(), counters.received.frames);
            prop_assert_eq!(verdicts.answered, counters.sent.total());
            prop_assert_eq!(counters.sent.dropped.too_long, count(4));
        }
    }

    #[test]
    fn a_flood_that_is_dropped_leaves_its_caller_a_turn() {
        let [mut line, inside] = pair(Medium::Ip, 1500, Faults::default(), 1);
        let mut device = Asked::new(inside, |_: &mut Packet<'_>| Verdict::Drop);
        (0..KEPT_MAX + 1).for_each(|_| line.send(NOW, b"flood"));
        assert_eq!(device.receive(NOW, &mut [0; 64]), None);
        assert_eq!(device.verdicts().now().dropped, KEPT_MAX as u64);
        assert!(device.next_at().is_some(), "there is one more");
        assert_eq!(device.receive(NOW, &mut [0; 64]), None);
        assert!(device.next_at().is_none());
    }

    #[test]
    fn who_cannot_be_asked_passes_nothing() {
        let [mut line, inside] = pair(Medium::Ip, 1500, Faults::default(), 1);
        let answers = Mutex::new(vec![None, Some(Said::Pass)]);
        let ask = move |_: &mut [u8], _: &mut Vec<u8>| answers.lock().expect("alone").remove(0);
        let mut device = Asked::with(inside, Box::new(ask));
        line.send(NOW, b"lost");
        line.send(NOW, b"seen");
        assert_eq!(all(&mut device), [b"seen"]);
        let verdicts = device.verdicts().now();
        assert_eq!((verdicts.failed, verdicts.passed, verdicts.total()), (1, 1, 2));
    }
}
