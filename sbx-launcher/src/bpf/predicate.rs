//! Questions about 64-bit fields, asked in 32-bit words.

use std::ops::Range;

use super::interpret::halves;
use super::{Assembler, Field, Label, Test, code};

/// Scratch word of the low half of a difference.
const DIFFERENCE: u32 = 0;

impl Assembler {
    /// Go to `yes` if the 64-bit `field` is `bound` or greater, to `no` if not.
    pub fn branch_at_least(&mut self, field: Field, bound: u64, yes: Label, no: Label) {
        let [low, high] = halves(bound);
        let (not_above, equal) = (self.label(), self.label());
        self.plain(code::LOAD_FIELD, field.high());
        self.branch(Test::Above(high), yes, not_above);
        self.bind(not_above);
        self.branch(Test::Equal(high), equal, no);
        self.bind(equal);
        self.load(field);
        self.branch(Test::AtLeast(low), yes, no);
    }

    /// Go to `yes` if the 64-bit `field` lies in `range`, to `no` if not.
    pub fn branch_within(&mut self, field: Field, range: &Range<u64>, yes: Label, no: Label) {
        let above = self.label();
        self.branch_at_least(field, range.start, above, no);
        self.bind(above);
        self.branch_at_least(field, range.end, no, yes);
    }

    /// Go to `yes` if `[start, start + len)` has a byte in common with `range`, to `no` if not.
    /// A range that wraps around the address space and begins below `range` counts as common;
    /// so does one without bytes that begins inside (`mremap` gives length 0 a meaning).
    ///
    /// The sum could carry out of 64 bits. With `start < range.start` it is the same to ask
    /// whether `len > range.start - start`, and that difference cannot borrow.
    pub fn branch_touches(
        &mut self,
        [start, len]: [Field; 2],
        range: &Range<u64>,
        yes: Label,
        no: Label,
    ) {
        let (before_end, below) = (self.label(), self.label());
        self.branch_at_least(start, range.end, no, before_end);
        self.bind(before_end);
        self.branch_at_least(start, range.start, yes, below);
        self.bind(below);
        self.subtract_from(range.start, start);
        let (not_above, equal) = (self.label(), self.label());
        self.plain(code::TO_X, 0);
        self.plain(code::LOAD_FIELD, len.high());
        self.branch(Test::AboveX, yes, not_above);
        self.bind(not_above);
        self.branch(Test::EqualX, equal, no);
        self.bind(equal);
        self.plain(code::LOAD_X_SCRATCH, DIFFERENCE);
        self.load(len);
        self.branch(Test::AboveX, yes, no);
    }

    /// `value - field`, which is positive: the low word to scratch, the high to the accumulator.
    fn subtract_from(&mut self, value: u64, field: Field) {
        let [low, high] = halves(value);
        let (borrow, no_borrow, end) = (self.label(), self.label(), self.label());
        self.load(field);
        self.plain(code::TO_X, 0);
        self.plain(code::LOAD_VALUE, low);
        self.plain(code::SUBTRACT_X, 0);
        self.plain(code::STORE, DIFFERENCE);
        self.plain(code::FROM_X, 0);
        self.branch(Test::Above(low), borrow, no_borrow);
        for (label, high) in [(borrow, high.wrapping_sub(1)), (no_borrow, high)] {
            self.bind(label);
            self.plain(code::LOAD_FIELD, field.high());
            self.plain(code::TO_X, 0);
            self.plain(code::LOAD_VALUE, high);
            self.plain(code::SUBTRACT_X, 0);
            self.jump(end);
        }
        self.bind(end);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};

    use crate::bpf::interpret::{Call, run};
    use crate::bpf::{Assembler, Field, Label};

    const START: Field = Field::Arg(1);
    const LEN: Field = Field::Arg(4);

    /// Values around which 64-bit arithmetic on halves goes wrong, and near `extra`.
    fn edgy(extra: Vec<u64>) -> impl Strategy<Value = u64> {
        let mut edges = vec![0, 1 << 31, 1 << 32, 1 << 47, 1 << 63, u64::MAX];
        edges.extend(extra);
        let near = (proptest::sample::select(edges), -3i64..=3)
            .prop_map(|(edge, delta)| edge.wrapping_add_signed(delta));
        let mixed = (any::<u32>(), proptest::sample::select(vec![0, 1, u32::MAX, 0x5540]))
            .prop_map(|(low, high)| u64::from(high) << 32 | u64::from(low));
        prop_oneof![3 => near, 1 => any::<u64>(), 1 => mixed]
    }

    fn range() -> impl Strategy<Value = Range<u64>> {
        let usual = Just(0x5540_1220_0000..0x5540_9220_0000);
        let any = (edgy(vec![]), edgy(vec![])).prop_map(|(a, b)| a.min(b)..a.max(b));
        prop_oneof![usual, any].prop_filter("not empty", |range| !range.is_empty())
    }

    /// A range, and a start and length at its edges or anywhere.
    fn range_and_pair() -> impl Strategy<Value = (Range<u64>, u64, u64)> {
        range().prop_flat_map(|range| {
            let start = edgy(vec![range.start, range.end, range.start.wrapping_neg()]);
            (Just(range), start).prop_flat_map(|(range, start)| {
                let reach = [range.start, range.end, 0].map(|end| end.wrapping_sub(start));
                (Just(range), Just(start), edgy(reach.to_vec()))
            })
        })
    }

    fn answer(call: &Call, ask: impl Fn(&mut Assembler, Label, Label)) -> bool {
        let mut asm = Assembler::new();
        let (yes, no) = (asm.label(), asm.label());
        ask(&mut asm, yes, no);
        asm.bind(yes);
        asm.ret(1);
        asm.bind(no);
        asm.ret(0);
        let program = asm.finish().expect("forward jumps only");
        run(&program, call).expect("a valid program").action == 1
    }

    fn call(start: u64, len: u64) -> Call {
        Call { args: [!start, start, !len, !0, len, 0], ..Call::default() }
    }

    /// The same question in wide arithmetic.
    fn touches(range: &Range<u64>, start: u64, len: u64) -> bool {
        let end = u128::from(start) + u128::from(len);
        range.contains(&start) || (start < range.start && end > u128::from(range.start))
    }

    proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(20_000))]
        #[test]
        fn touching_agrees_with_wide_arithmetic((range, start, len) in range_and_pair()) {
            let got = answer(&call(start, len), |asm, yes, no| {
                asm.branch_touches([START, LEN], &range, yes, no);
            });
            prop_assert_eq!(got, touches(&range, start, len));
        }

        #[test]
        fn comparing_agrees((range, value, _) in range_and_pair()) {
            let call = Call { ip: value, ..Call::default() };
            let at_least = answer(&call, |asm, yes, no| {
                asm.branch_at_least(Field::Ip, range.start, yes, no);
            });
            prop_assert_eq!(at_least, value >= range.start);
            let within = answer(&call, |asm, yes, no| {
                asm.branch_within(Field::Ip, &range, yes, no);
            });
            prop_assert_eq!(within, range.contains(&value));
        }
    }

    #[test]
    fn the_edges_of_a_region() {
        let range = 0x5540_1220_0000..0x5540_9220_0000u64;
        let ask = |start, len| {
            answer(&call(start, len), |asm, yes, no| {
                asm.branch_touches([START, LEN], &range, yes, no);
            })
        };
        let size = range.end - range.start;
        assert!(ask(range.start, size) && ask(range.start, 1) && ask(range.end - 1, 1));
        assert!(ask(0, range.start + 1) && ask(range.start - 1, 2));
        assert!(ask(range.start, 0), "an address inside counts without a length");
        assert!(ask(0x1000, u64::MAX), "a wrapped range counts");
        assert!(!ask(0, range.start) && !ask(range.end, u64::MAX) && !ask(range.start - 1, 1));
        assert!(!ask(range.start - 1, 0) && !ask(0, 0));
    }
}
