//! A counter that many processes add to without meeting.

use crate::arch::add_own;
use crate::runtime::{Here, World};
use crate::sync::{AtomicU64, Ordering};

const STRIPES: usize = 32;

/// One cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Stripe {
    /// Number of the context that has `own`, plus one, or 0.
    claimed: AtomicU64,
    /// What that context has added, without a locked instruction.
    own: AtomicU64,
    /// What all others have added.
    shared: AtomicU64,
}

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
        let zero = || AtomicU64::new(0);
        Self(std::array::from_fn(|_| Stripe { claimed: zero(), own: zero(), shared: zero() }))
    }

    /// Add `n`; wraps.
    #[inline]
    pub fn add(&self, n: u64) {
        match Here.context() {
            Some(context) => {
                let stripe = &self.0[context % STRIPES];
                let name = context as u64 + 1;
                if stripe.claimed.load(Ordering::Relaxed) == name || stripe.claim(name) {
                    add_own(&stripe.own, n);
                } else {
                    stripe.shared.fetch_add(n, Ordering::Relaxed);
                }
            }
            None => {
                let stripe = &self.0[Here.owner() as usize % STRIPES];
                stripe.shared.fetch_add(n, Ordering::Relaxed);
            }
        }
    }

    /// Take `n` away; wraps.
    pub fn subtract(&self, n: u64) {
        self.add(n.wrapping_neg());
    }

    /// The sum. What is added meanwhile may be in it or not.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, stripe| {
            let (own, shared) = (&stripe.own, &stripe.shared);
            sum.wrapping_add(own.load(Ordering::Relaxed))
                .wrapping_add(shared.load(Ordering::Relaxed))
        })
    }
}

impl Stripe {
    /// Make the stripe this context's if it is nobody's.
    #[cold]
    fn claim(&self, name: u64) -> bool {
        let nobody = 0;
        self.claimed.compare_exchange(nobody, name, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}
