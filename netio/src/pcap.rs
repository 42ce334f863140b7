//! Frames as a file that tcpdump and tshark read: the classic format, with nanoseconds.
//!
//! A header of 24 octets, then for each frame one of 16 (seconds, nanoseconds, octets here, octets in all)
//! and the frame.

use std::io::{self, Write};
use std::time::Duration;

use crate::device::{Device, Medium, passed_on};

/// Says that the times are in nanoseconds; its order of octets is the file's.
const MAGIC: u32 = 0xa1b2_3c4d;
const VERSION: [u16; 2] = [2, 4];
/// Nothing is cut: as much as a reader expects at most.
const SNAP_LEN: u32 = 262_144;
const LINK_ETHERNET: u32 = 1;
/// The first four bits say which IP it is.
const LINK_RAW: u32 = 101;

/// Writes such a file.
#[derive(Debug)]
pub struct Pcap<W> {
    to: W,
}

impl<W: Write> Pcap<W> {
    /// Begin a file of frames of this medium.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(mut to: W, medium: Medium) -> io::Result<Self> {
        let link = match medium {
            Medium::Ethernet => LINK_ETHERNET,
            Medium::Ip => LINK_RAW,
        };
        to.write_all(&MAGIC.to_le_bytes())?;
        for part in VERSION {
            to.write_all(&part.to_le_bytes())?;
        }
        for word in [0, 0, SNAP_LEN, link] {
            to.write_all(&u32::to_le_bytes(word))?;
        }
        Ok(Self { to })
    }

    /// Add a frame.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, at: Duration, frame: &[u8]) -> io::Result<()> {
        let len = u32::try_from(frame.len()).map_err(io::Error::other)?;
        for word in [at.as_secs() as u32, at.subsec_nanos(), len, len] {
            self.to.write_all(&word.to_le_bytes())?;
        }
        self.to.write_all(frame)
    }

    /// See to it that all of it is written.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A device all of whose frames are recorded, those that it drops as well. Checksums that are left to the
/// device are not in the record.
#[derive(Debug)]
pub struct Capture<D, W: Write> {
    device: D,
    file: Pcap<W>,
    /// The time of day at the moment that `now` counts from.
    epoch: Duration,
    error: Option<io::Error>,
}

impl<D: Device, W: Write + Send> Capture<D, W> {
    /// `device`, recorded to `to`. Times in the file are `epoch` and the device's own.
    ///
    /// # Errors
    /// The file cannot be begun.
    pub fn new(device: D, to: W, epoch: Duration) -> io::Result<Self> {
        let file = Pcap::new(to, device.medium())?;
        Ok(Self { device, file, epoch, error: None })
    }

    /// The device inside.
    pub const fn inside(&self) -> &D {
        &self.device
    }

    /// Why the record ends before the frames do, if it does.
    pub const fn error(&self) -> Option<&io::Error> {
        self.error.as_ref()
    }

    /// A record that cannot be written must not stop the traffic.
    fn record(&mut self, now: Duration, frame: &[u8]) {
        if self.error.is_none() {
            self.error = self.file.add(self.epoch + now, frame).err();
        }
    }
}

impl<D: Device, W: Write + Send> Device for Capture<D, W> {
    passed_on!(self => self.device);

    fn finishes(&self) -> bool {
        self.device.finishes()
    }

    fn receive(&mut self, now: Duration, into: &mut [u8]) -> Option<usize> {
        let len = self.device.receive(now, into)?;
        self.record(now, &into[..len]);
        Some(len)
    }

    fn send(&mut self, now: Duration, frame: &[u8]) {
        self.record(now, frame);
        self.device.send(now, frame);
    }

    fn send_unfinished(&mut self, now: Duration, frame: &mut [u8], segment_len: u16) {
        self.record(now, frame);
        self.device.send_unfinished(now, frame, segment_len);
    }
}

impl<D, W: Write> Drop for Capture<D, W> {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.file.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::{Faults, pair};

    #[test]
    fn a_record_has_every_frame() {
        let [mut one, other] = pair(Medium::Ip, 1500, Faults::default(), 0);
        let mut file = Vec::new();
        let mut capture = Capture::new(other, &mut file, Duration::from_secs(7)).expect("a vector");
        one.send(Duration::ZERO, b"in");
        let mut into = [0; 64];
        assert_eq!(capture.receive(Duration::from_nanos(5), &mut into), Some(2));
        capture.send(Duration::from_secs(1), b"out");
        assert!(capture.error().is_none());
        drop(capture);
        assert_eq!(file[..4], [0x4d, 0x3c, 0xb2, 0xa1]);
        assert_eq!((file[20], file.len()), (101, 24 + 16 + 2 + 16 + 3));
        assert_eq!(file[24..42], *b"\x07\0\0\0\x05\0\0\0\x02\0\0\0\x02\0\0\0in");
        assert_eq!(file[42..], *b"\x08\0\0\0\0\0\0\0\x03\0\0\0\x03\0\0\0out");
    }
}
