//! A counter that many processes add to without meeting.

use crate::arch::add_own;
use crate::runtime::{CONTEXT_INDEX, Here, World};
use crate::sync::{AtomicU64, Ordering};

const STRIPES: usize = 32;

/// One cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Stripe {
    /// The context that has `own`, or 0.
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
                let stripe = &self.0[context as usize % STRIPES];
                if stripe.claimed.load(Ordering::Relaxed) == context || stripe.claim(context) {
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
    /// Make the stripe this context's if it is nobody's, or belonged to a former life of the same
    /// context: a context lives again only when whoever had it can never run again.
    #[cold]
    fn claim(&self, context: u64) -> bool {
        let seen = self.claimed.load(Ordering::Relaxed);
        let vacant = seen == 0 || (seen ^ context) & CONTEXT_INDEX == 0;
        vacant
            && self
                .claimed
                .compare_exchange(seen, context, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}
