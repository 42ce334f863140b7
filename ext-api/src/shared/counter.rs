//! A counter that many processes add to without meeting.

use crate::runtime::{Here, stripe};
use crate::sync::{AtomicU64, Ordering};

const STRIPES: usize = 16;

/// One cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Stripe(AtomicU64);

/// A sum of 64 bits, striped over cache lines.
#[derive(Debug)]
pub struct Counter([Stripe; STRIPES]);

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}

impl Counter {
    /// Zero.
    #[must_use]
    pub fn new() -> Self {
        Self(std::array::from_fn(|_| Stripe(AtomicU64::new(0))))
    }

    /// Add `n`; wraps.
    pub fn add(&self, n: u64) {
        self.0[stripe(&Here, STRIPES)].0.fetch_add(n, Ordering::Relaxed);
    }

    /// Take `n` away; wraps.
    pub fn subtract(&self, n: u64) {
        self.add(n.wrapping_neg());
    }

    /// The sum. What is added meanwhile may be in it or not.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, stripe| sum.wrapping_add(stripe.0.load(Ordering::Relaxed)))
    }
}
