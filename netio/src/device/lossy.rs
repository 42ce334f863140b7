//! A device that loses some of its frames, from a seed: what a bad line does to a real one.

use std::time::Duration;

use super::memory::{OUT_OF, Random};
use super::{Device, passed_on};

/// A device that loses frames, each of those that a line would carry for itself: they are finished here. Its
/// counters are those of the device inside.
#[derive(Debug)]
pub struct Lossy<D> {
    device: D,
    lost_of: u32,
    random: Random,
    lost: u64,
}

impl<D: Device> Lossy<D> {
    /// `device`, but `lost_of` in [`OUT_OF`] frames are lost, either way.
    pub const fn new(device: D, lost_of: u32, seed: u64) -> Self {
        Self { device, lost_of, random: Random(seed), lost: 0 }
    }

    /// How many frames were lost so far.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    fn loses(&mut self) -> bool {
        let loses = self.random.below(OUT_OF.into()) < self.lost_of.into();
        self.lost += u64::from(loses);
        loses
    }
}

impl<D: Device> Device for Lossy<D> {
    passed_on!(self => self.device);

    fn receive(&mut self, now: Duration, into: &mut [u8]) -> Option<usize> {
        loop {
            let len = self.device.receive(now, into)?;
            if !self.loses() {
                return Some(len);
            }
        }
    }

    fn send(&mut self, now: Duration, frame: &[u8]) {
        if !self.loses() {
            self.device.send(now, frame);
        }
    }
}
