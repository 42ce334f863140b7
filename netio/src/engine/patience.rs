//! How long to look for news before sleeping: to be woken on another core takes longer than most answers
//! are away. Looking is worth while as long as something usually comes in that time; if not, it stops until
//! sleeps have been that short again. Who has a core to give for it can have it looked all the time.

/// Longest look: less than two wake-ups take.
const LOOK_NS: u64 = 40_000;
/// Sleeps in a row that would have been looked through.
const SHORT_SLEEPS: u32 = 8;
/// Looks in a row for nothing.
const VAIN_LOOKS: u32 = 3;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Patience {
    looks: bool,
    /// It never sleeps.
    pub(super) is_endless: bool,
    in_a_row: u32,
}

impl Patience {
    /// How long to look now.
    pub(super) const fn look_ns(&self) -> u64 {
        if self.is_endless || self.looks { LOOK_NS } else { 0 }
    }

    /// A look has ended, with news or without.
    pub(super) const fn looked(&mut self, found: bool) {
        self.in_a_row = if found { 0 } else { self.in_a_row + 1 };
        if self.in_a_row >= VAIN_LOOKS {
            (self.looks, self.in_a_row) = (false, 0);
        }
    }

    /// A sleep without a look before it has ended after so long.
    pub(super) const fn slept(&mut self, ns: u64) {
        if self.looks {
            return;
        }
        self.in_a_row = if ns < LOOK_NS { self.in_a_row + 1 } else { 0 };
        if self.in_a_row >= SHORT_SLEEPS {
            (self.looks, self.in_a_row) = (true, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LOOK_NS, Patience};

    #[test]
    fn looking_begins_when_it_would_pay_and_ends_when_it_does_not() {
        let mut patience = Patience::default();
        for _ in 0..100 {
            patience.slept(LOOK_NS * 2);
            assert_eq!(patience.look_ns(), 0);
        }
        for _ in 0..8 {
            assert_eq!(patience.look_ns(), 0);
            patience.slept(1000);
        }
        assert_eq!(patience.look_ns(), LOOK_NS);
        for found in [true, false, false, true, false, false] {
            patience.looked(found);
            assert_eq!(patience.look_ns(), LOOK_NS);
        }
        patience.looked(false);
        assert_eq!(patience.look_ns(), 0);
    }
}
