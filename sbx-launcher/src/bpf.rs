//! A small assembler for the classic BPF that seccomp filters are written in.
//!
//! A program is a list of instructions whose jumps name labels. Every jump goes forward, as the
//! kernel demands, so a program always ends. A conditional jump has one byte for each of its two
//! distances; where one is too short, [`Assembler::finish`] puts an unconditional jump, which has
//! 32 bits, behind it.
//!
//! The words are 32 bits wide. Comparisons of 64-bit fields and overlaps of address ranges are
//! built of them in [`predicate`]; [`interpret`] runs a program as the kernel does.

use std::fmt;

use seccompiler::sock_filter;

pub mod interpret;
pub mod predicate;
mod tree;

/// Longest program that the kernel takes, in instructions.
pub const PROGRAM_LEN_MAX: usize = 4096;

/// `AUDIT_ARCH_X86_64`: what [`Field::Arch`] holds for a 64-bit system call.
pub const ARCH_X86_64: u32 = 0xc000_003e;

/// Instruction codes of `linux/bpf_common.h`: class, size or operation, and source in one.
pub(crate) mod code {
    pub(crate) const LOAD_FIELD: u16 = 0x20;
    pub(crate) const LOAD_VALUE: u16 = 0x00;
    pub(crate) const STORE: u16 = 0x02;
    pub(crate) const LOAD_X_SCRATCH: u16 = 0x61;
    pub(crate) const SUBTRACT_X: u16 = 0x1c;
    pub(crate) const AND: u16 = 0x54;
    pub(crate) const JUMP: u16 = 0x05;
    pub(crate) const IF_EQUAL: u16 = 0x15;
    pub(crate) const IF_EQUAL_X: u16 = 0x1d;
    pub(crate) const IF_ABOVE: u16 = 0x25;
    pub(crate) const IF_ABOVE_X: u16 = 0x2d;
    pub(crate) const IF_AT_LEAST: u16 = 0x35;
    pub(crate) const IF_ANY_BIT: u16 = 0x45;
    pub(crate) const RETURN: u16 = 0x06;
    pub(crate) const TO_X: u16 = 0x07;
    pub(crate) const FROM_X: u16 = 0x87;
}

/// A place in a program that jumps may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// A field of `struct seccomp_data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Number of the system call; one word.
    Number,
    /// Architecture of the calling instruction; one word.
    Arch,
    /// Address behind the calling instruction.
    Ip,
    /// Argument 0 to 5.
    Arg(u8),
}

impl Field {
    /// Offset of the low word.
    pub(crate) const fn low(self) -> u32 {
        match self {
            Self::Number => 0,
            Self::Arch => 4,
            Self::Ip => 8,
            Self::Arg(index) => 16 + 8 * index as u32,
        }
    }

    /// Offset of the high word.
    pub(crate) const fn high(self) -> u32 {
        self.low() + 4
    }
}

/// What a conditional jump asks of the accumulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// It equals the value.
    Equal(u32),
    /// It is greater than the value, unsigned.
    Above(u32),
    /// It is the value or greater, unsigned.
    AtLeast(u32),
    /// It has one of the value's bits.
    AnyBit(u32),
    /// It equals the index register.
    EqualX,
    /// It is greater than the index register, unsigned.
    AboveX,
}

impl Test {
    const fn encode(self) -> (u16, u32) {
        match self {
            Self::Equal(k) => (code::IF_EQUAL, k),
            Self::Above(k) => (code::IF_ABOVE, k),
            Self::AtLeast(k) => (code::IF_AT_LEAST, k),
            Self::AnyBit(k) => (code::IF_ANY_BIT, k),
            Self::EqualX => (code::IF_EQUAL_X, 0),
            Self::AboveX => (code::IF_ABOVE_X, 0),
        }
    }
}

/// Why a program could not be assembled. All but `TooLong` are bugs of the code that wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssembleError {
    /// A jump goes to a label that lies nowhere.
    Unbound(Label),
    /// A jump goes to itself or to what lies before it.
    Backward(Label),
    /// More than [`PROGRAM_LEN_MAX`] instructions: this many.
    TooLong(usize),
}

impl fmt::Display for AssembleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unbound(Label(id)) => write!(f, "label {id} of the filter lies nowhere"),
            Self::Backward(Label(id)) => write!(f, "a jump of the filter goes back to label {id}"),
            Self::TooLong(len) => {
                write!(f, "the filter has {len} instructions, the kernel takes {PROGRAM_LEN_MAX}")
            }
        }
    }
}

impl std::error::Error for AssembleError {}

/// One instruction before its jumps are known.
#[derive(Debug)]
enum Op {
    Plain(sock_filter),
    Jump(Label),
    Branch { test: Test, then: Label, otherwise: Label },
}

/// A program in the making.
#[derive(Debug, Default)]
pub struct Assembler {
    ops: Vec<Op>,
    /// Label to index in `ops`.
    bound: Vec<Option<usize>>,
}

impl Assembler {
    /// An empty program.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A new label, which lies nowhere yet.
    pub fn label(&mut self) -> Label {
        self.bound.push(None);
        Label(self.bound.len() - 1)
    }

    /// `label` lies here.
    pub fn bind(&mut self, label: Label) {
        self.bound[label.0] = Some(self.ops.len());
    }

    /// Accumulator = low word of `field`.
    pub fn load(&mut self, field: Field) {
        self.plain(code::LOAD_FIELD, field.low());
    }

    /// End with the kernel's action `action`.
    pub fn ret(&mut self, action: u32) {
        self.plain(code::RETURN, action);
    }

    /// Go on at `label`.
    pub fn jump(&mut self, label: Label) {
        self.ops.push(Op::Jump(label));
    }

    /// Go on at `then` if `test` holds for the accumulator, at `otherwise` if not.
    pub fn branch(&mut self, test: Test, then: Label, otherwise: Label) {
        self.ops.push(Op::Branch { test, then, otherwise });
    }

    /// Put a whole finished program here. Where it would return with an action that `redirect`
    /// has a label for, it goes on at that label instead.
    pub fn embed(&mut self, program: &[sock_filter], redirect: impl Fn(u32) -> Option<Label>) {
        // A return and a jump are one instruction each, so the program's own distances hold.
        self.ops.extend(program.iter().map(|instruction| {
            let action = (instruction.code == code::RETURN).then_some(instruction.k);
            match action.and_then(&redirect) {
                Some(label) => Op::Jump(label),
                None => Op::Plain(instruction.clone()),
            }
        }));
    }

    pub(crate) fn plain(&mut self, code: u16, k: u32) {
        self.ops.push(Op::Plain(sock_filter { code, jt: 0, jf: 0, k }));
    }

    /// The program with every jump resolved.
    ///
    /// # Errors
    /// See [`AssembleError`].
    pub fn finish(&self) -> Result<Vec<sock_filter>, AssembleError> {
        let mut far = vec![Far::default(); self.ops.len()];
        // Each round marks at least one side as far or is the last: marking brings no ends closer.
        let at = loop {
            let at = positions(&far);
            if !self.mark_far(&mut far, &at)? {
                break at;
            }
        };
        let len = at[self.ops.len()];
        if len > PROGRAM_LEN_MAX {
            return Err(AssembleError::TooLong(len));
        }
        let mut program = Vec::with_capacity(len);
        for (op, far) in self.ops.iter().zip(far) {
            self.encode(op, far, &at, &mut program)?;
        }
        Ok(program)
    }

    /// Mark the sides of branches that one byte cannot span, with instructions lying where `at`
    /// says; whether there were any that are not marked yet.
    fn mark_far(&self, far: &mut [Far], at: &[usize]) -> Result<bool, AssembleError> {
        let mut changed = false;
        for (index, op) in self.ops.iter().enumerate() {
            let Op::Branch { then, otherwise, .. } = *op else { continue };
            let from = at[index] + 1;
            for (side, label) in [then, otherwise].into_iter().enumerate() {
                let is_far = self.distance(label, from, at)? > u32::from(u8::MAX);
                changed |= is_far && !far[index].0[side];
                far[index].0[side] |= is_far;
            }
        }
        Ok(changed)
    }

    /// Instructions between `from` and `label`.
    fn distance(&self, label: Label, from: usize, at: &[usize]) -> Result<u32, AssembleError> {
        let to = at[self.bound[label.0].ok_or(AssembleError::Unbound(label))?];
        let distance = to.checked_sub(from).ok_or(AssembleError::Backward(label))?;
        u32::try_from(distance).map_err(|_| AssembleError::TooLong(to))
    }

    fn encode(
        &self,
        op: &Op,
        far: Far,
        at: &[usize],
        program: &mut Vec<sock_filter>,
    ) -> Result<(), AssembleError> {
        let next = program.len() + 1;
        let jump = |k| sock_filter { code: code::JUMP, jt: 0, jf: 0, k };
        match op {
            Op::Plain(instruction) => program.push(instruction.clone()),
            Op::Jump(label) => program.push(jump(self.distance(*label, next, at)?)),
            Op::Branch { test, then, otherwise } => {
                let (code, k) = test.encode();
                program.push(sock_filter { code, jt: 0, jf: 0, k });
                let [jt, jf] = [
                    self.side(*then, far.0[0], next, at, program)?,
                    self.side(*otherwise, far.0[1], next, at, program)?,
                ];
                let branch = &mut program[next - 1];
                (branch.jt, branch.jf) = (jt, jf);
            }
        }
        Ok(())
    }

    /// One side of the branch that lies before `next`: how far it jumps, if need be to a jump of
    /// its own that is put here.
    fn side(
        &self,
        label: Label,
        far: bool,
        next: usize,
        at: &[usize],
        program: &mut Vec<sock_filter>,
    ) -> Result<u8, AssembleError> {
        let mut distance = self.distance(label, next, at)?;
        if far {
            let here = program.len();
            let k = self.distance(label, here + 1, at)?;
            program.push(sock_filter { code: code::JUMP, jt: 0, jf: 0, k });
            distance = u32::from(here != next);
        }
        u8::try_from(distance).map_err(|_| AssembleError::TooLong(program.len()))
    }
}

/// Which sides of a branch (then, otherwise) need an unconditional jump of their own.
#[derive(Debug, Clone, Copy, Default)]
struct Far([bool; 2]);

/// Where each instruction lies, and behind the last one the length of the program.
fn positions(far: &[Far]) -> Vec<usize> {
    let mut at = Vec::with_capacity(far.len() + 1);
    let mut here = 0;
    for Far([then, otherwise]) in far {
        at.push(here);
        here += 1 + usize::from(*then) + usize::from(*otherwise);
    }
    at.push(here);
    at
}

#[cfg(test)]
mod tests {
    use super::interpret::{Call, run};
    use super::{AssembleError, Assembler, Field, PROGRAM_LEN_MAX, Test};

    /// Returns 1 for system call 7 and 2 for others, with `gap` dead instructions between.
    fn with_gap(gap: usize) -> Assembler {
        let mut asm = Assembler::new();
        let (yes, no) = (asm.label(), asm.label());
        asm.load(Field::Number);
        asm.branch(Test::Equal(7), yes, no);
        for _ in 0..gap {
            asm.ret(99);
        }
        asm.bind(no);
        asm.ret(2);
        asm.bind(yes);
        asm.ret(1);
        asm
    }

    #[test]
    fn jumps_of_every_length_land() {
        for gap in [0, 1, 253, 254, 255, 256, 257, 1000] {
            let program = with_gap(gap).finish().unwrap();
            let action =
                |number| run(&program, &Call { number, ..Call::default() }).unwrap().action;
            assert_eq!((action(7), action(8)), (1, 2), "gap {gap}");
            assert_eq!(program.len(), gap + if gap < 255 { 4 } else { 6 }, "gap {gap}");
        }
    }

    #[test]
    fn what_cannot_be_assembled_is_refused() {
        let mut asm = Assembler::new();
        let label = asm.label();
        asm.jump(label);
        assert_eq!(asm.finish().unwrap_err(), AssembleError::Unbound(label));
        let mut asm = Assembler::new();
        let label = asm.label();
        asm.bind(label);
        asm.jump(label);
        assert_eq!(asm.finish().unwrap_err(), AssembleError::Backward(label));
        let len = with_gap(PROGRAM_LEN_MAX).finish().unwrap_err();
        assert_eq!(len, AssembleError::TooLong(PROGRAM_LEN_MAX + 6));
    }

    #[test]
    fn an_embedded_program_goes_on_where_it_is_told() {
        let inner = with_gap(300).finish().unwrap();
        let mut asm = Assembler::new();
        let after = asm.label();
        asm.embed(&inner, |action| (action == 2).then_some(after));
        asm.bind(after);
        asm.ret(5);
        let program = asm.finish().unwrap();
        let action = |number| run(&program, &Call { number, ..Call::default() }).unwrap().action;
        assert_eq!((action(7), action(8)), (1, 5));
    }
}
