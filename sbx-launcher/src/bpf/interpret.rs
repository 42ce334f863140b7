//! Runs a seccomp program as the kernel does: the same instructions, the same refusals.

use std::fmt;

use seccompiler::sock_filter;

use super::{ARCH_X86_64, code};

/// Words of scratch memory that a program has (`BPF_MEMWORDS`).
const SCRATCH_LEN: usize = 16;

/// A system call as a filter sees it: `struct seccomp_data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Number of the call.
    pub number: u32,
    /// `AUDIT_ARCH_*` of the calling instruction.
    pub arch: u32,
    /// Address behind the calling instruction.
    pub ip: u64,
    /// Arguments.
    pub args: [u64; 6],
}

impl Default for Call {
    fn default() -> Self {
        Self { number: 0, arch: ARCH_X86_64, ip: 0, args: [0; 6] }
    }
}

impl Call {
    /// The aligned word at `offset`, if there is one.
    fn word(&self, offset: u32) -> Option<u32> {
        let [low, high] = match offset & !7 {
            0 => [self.number, self.arch],
            8 => halves(self.ip),
            at => halves(*self.args.get(usize::try_from((at - 16) / 8).ok()?)?),
        };
        match offset % 8 {
            0 => Some(low),
            4 => Some(high),
            _ => None,
        }
    }
}

/// Low and high word.
pub(crate) const fn halves(value: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "the low word is what is asked for")]
    let low = value as u32;
    [low, (value >> 32) as u32]
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The action that it returned, with its data.
    pub action: u32,
    /// Instructions that it took, the return included.
    pub steps: usize,
    /// It looked at nothing but number and architecture: the kernel can remember the answer.
    pub cacheable: bool,
}

/// The kernel would refuse this program: its instruction `at` is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid {
    /// Index of the instruction; the program's length if it runs off its end.
    pub at: usize,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instruction {} of the filter is not one that seccomp has", self.at)
    }
}

impl std::error::Error for Invalid {}

#[derive(Default)]
struct Machine {
    a: u32,
    x: u32,
    scratch: [u32; SCRATCH_LEN],
    cacheable: bool,
}

/// What an instruction does to the way through the program.
enum Next {
    Skip(u32),
    Return(u32),
}

/// What `program` answers to `call`.
///
/// # Errors
/// It runs into an instruction that the kernel would not have accepted.
pub fn run(program: &[sock_filter], call: &Call) -> Result<Outcome, Invalid> {
    let mut machine = Machine { cacheable: true, ..Machine::default() };
    let mut at = 0;
    for steps in 1..=program.len() {
        let next = program.get(at).and_then(|instruction| machine.step(instruction, call));
        match next.ok_or(Invalid { at })? {
            Next::Return(action) => {
                return Ok(Outcome { action, steps, cacheable: machine.cacheable });
            }
            Next::Skip(count) => {
                at = at.saturating_add(1).saturating_add(count as usize);
            }
        }
    }
    Err(Invalid { at })
}

impl Machine {
    /// One instruction; `None` if there is no such.
    fn step(&mut self, op: &sock_filter, call: &Call) -> Option<Next> {
        let branch = |yes: bool| Next::Skip(u32::from(if yes { op.jt } else { op.jf }));
        match op.code {
            code::LOAD_FIELD => {
                self.a = call.word(op.k)?;
                self.cacheable &= op.k <= 4;
            }
            code::LOAD_VALUE => self.a = op.k,
            code::STORE => *self.scratch.get_mut(usize::try_from(op.k).ok()?)? = self.a,
            code::LOAD_X_SCRATCH => self.x = *self.scratch.get(usize::try_from(op.k).ok()?)?,
            code::SUBTRACT_X => self.a = self.a.wrapping_sub(self.x),
            code::AND => self.a &= op.k,
            code::TO_X => self.x = self.a,
            code::FROM_X => self.a = self.x,
            code::JUMP => return Some(Next::Skip(op.k)),
            code::IF_EQUAL => return Some(branch(self.a == op.k)),
            code::IF_EQUAL_X => return Some(branch(self.a == self.x)),
            code::IF_ABOVE => return Some(branch(self.a > op.k)),
            code::IF_ABOVE_X => return Some(branch(self.a > self.x)),
            code::IF_AT_LEAST => return Some(branch(self.a >= op.k)),
            code::IF_ANY_BIT => return Some(branch(self.a & op.k != 0)),
            code::RETURN => return Some(Next::Return(op.k)),
            _ => return None,
        }
        Some(Next::Skip(0))
    }
}

#[cfg(test)]
mod tests {
    use super::{Call, Invalid, run};
    use seccompiler::sock_filter;

    const fn op(code: u16, k: u32) -> sock_filter {
        sock_filter { code, jt: 0, jf: 0, k }
    }

    #[test]
    fn every_field_is_read_where_the_kernel_has_it() {
        let args = [0x0101_0000_0000_0010, 0x11, 0x12, 0x13, 0x14, 0x0505_0000_0000_0015];
        let call = Call { number: 1, arch: 2, ip: 0x0404_0000_0003, args };
        let field = |offset| run(&[op(0x20, offset), op(0x07, 0), op(0x15, 0), op(0x06, 0)], &call);
        assert!(field(0).unwrap().cacheable && field(4).unwrap().cacheable);
        assert!(!field(8).unwrap().cacheable && !field(60).unwrap().cacheable);
        let words = [(0, 1), (4, 2), (8, 3), (12, 0x0404), (16, 0x10), (20, 0x0101_0000)];
        for (offset, word) in words.into_iter().chain([(56, 0x15), (60, 0x0505_0000)]) {
            let equal = sock_filter { code: 0x15, jt: 0, jf: 1, k: word };
            let program = [op(0x20, offset), equal, op(0x06, 7), op(0x06, 8)];
            assert_eq!(run(&program, &call).unwrap().action, 7, "offset {offset}");
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_refused() {
        let call = Call::default();
        assert_eq!(run(&[], &call).unwrap_err(), Invalid { at: 0 });
        assert_eq!(run(&[op(0x20, 64)], &call).unwrap_err(), Invalid { at: 0 });
        assert_eq!(run(&[op(0x20, 2)], &call).unwrap_err(), Invalid { at: 0 });
        assert_eq!(run(&[op(0x02, 16)], &call).unwrap_err(), Invalid { at: 0 });
        assert_eq!(run(&[op(0x05, u32::MAX), op(0x06, 0)], &call).unwrap_err().at, 1 << 32);
        assert_eq!(run(&[op(0x00, 1)], &call).unwrap_err(), Invalid { at: 1 });
    }
}
