//! The jump tree over system-call numbers.

use super::{Assembler, Label, Test};

/// As many numbers are compared one after the other at a leaf of the tree: halving two saves
/// nothing.
const LEAF_LEN: usize = 2;

impl Assembler {
    /// With a system call's number in the accumulator, go to its label in `cases` (sorted). A
    /// number that is not listed goes to `otherwise`, or to `above` if it is greater than all; a
    /// few below the greatest go to `above` too, so what lies there must look at the number again.
    pub fn dispatch(&mut self, cases: &[(u32, Label)], otherwise: Label, above: Label) {
        if cases.len() > LEAF_LEN {
            let (low, high) = cases.split_at(cases.len() / 2);
            let (left, right) = (self.label(), self.label());
            self.branch(Test::AtLeast(high[0].0), right, left);
            self.bind(left);
            self.dispatch(low, otherwise, otherwise);
            self.bind(right);
            self.dispatch(high, otherwise, above);
            return;
        }
        for (index, (number, label)) in cases.iter().enumerate() {
            let next = self.label();
            let rest = if index + 1 == cases.len() { above } else { next };
            self.branch(Test::Equal(*number), *label, rest);
            self.bind(next);
        }
        if cases.is_empty() {
            self.jump(above);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use crate::bpf::interpret::{Call, run};
    use crate::bpf::{Assembler, Field};

    const OTHERWISE: u32 = 0xffff_0000;
    const ABOVE: u32 = 0xffff_0001;

    proptest! {
        #[test]
        fn every_number_finds_its_label(
            numbers in proptest::collection::btree_set(0u32..500, 0..60usize),
            probe in 0u32..600,
        ) {
            let (action, steps) = dispatched(&numbers, probe);
            if numbers.contains(&probe) {
                prop_assert_eq!(action, probe);
            } else if numbers.last().is_none_or(|last| probe > *last) {
                prop_assert_eq!(action, ABOVE);
            } else {
                prop_assert!(action == OTHERWISE || action == ABOVE);
            }
            prop_assert!(steps <= 10, "{} steps", steps);
        }
    }

    fn dispatched(numbers: &BTreeSet<u32>, probe: u32) -> (u32, usize) {
        let mut asm = Assembler::new();
        let cases: Vec<_> = numbers.iter().map(|number| (*number, asm.label())).collect();
        let (otherwise, above) = (asm.label(), asm.label());
        asm.load(Field::Number);
        asm.dispatch(&cases, otherwise, above);
        for (number, label) in &cases {
            asm.bind(*label);
            asm.ret(*number);
        }
        asm.bind(otherwise);
        asm.ret(OTHERWISE);
        asm.bind(above);
        asm.ret(ABOVE);
        let program = asm.finish().expect("forward jumps only");
        let call = Call { number: probe, ..Call::default() };
        let outcome = run(&program, &call).expect("a valid program");
        (outcome.action, outcome.steps)
    }
}
