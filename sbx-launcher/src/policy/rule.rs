//! One rule of a policy, checked.

use std::fmt;

use nix::errno::Errno;

use super::syscalls::Syscall;

/// What happens to a call that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It goes on, past every later rule for it.
    Allow,
    /// It goes on, and the kernel writes an audit record.
    Log,
    /// It fails with this error.
    Errno(Errno),
    /// The process ends with SIGSYS.
    Kill,
    /// A handler of an extension decides: see [`Rule::handler`].
    Upcall,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Log => f.write_str("log"),
            Self::Errno(errno) => write!(f, "errno:{errno:?}"),
            Self::Kill => f.write_str("kill"),
            Self::Upcall => f.write_str("upcall"),
        }
    }
}

/// How a condition compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`, unsigned
    Below,
    /// `<=`, unsigned
    AtMost,
    /// `>`, unsigned
    Above,
    /// `>=`, unsigned
    AtLeast,
    /// `has`: every bit of the value is set
    Has,
}

/// Each operator as a policy writes it.
pub(super) const OPS: [(&str, Op); 7] = [
    ("==", Op::Equal),
    ("!=", Op::NotEqual),
    ("<", Op::Below),
    ("<=", Op::AtMost),
    (">", Op::Above),
    (">=", Op::AtLeast),
    ("has", Op::Has),
];

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OPS.iter().find(|(_, op)| op == self).map_or("", |(text, _)| text);
        f.write_str(text)
    }
}

/// How much of an argument a condition looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// The low 32 bits: what the kernel reads of an `int`. A caller may put anything above them.
    Word,
    /// All 64 bits.
    Whole,
}

/// One comparison of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub arg: u8,
    /// How it is compared.
    pub op: Op,
    /// With what. With [`Width::Word`], the high half is 0.
    pub value: u64,
    /// How much of it.
    pub width: Width,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arg{} {} {:#x}", self.arg, self.op, self.value)
    }
}

impl Condition {
    /// Whether it holds for a call with these arguments.
    #[must_use]
    pub fn holds(&self, args: &[u64; 6]) -> bool {
        let arg = args[usize::from(self.arg)];
        let arg = if self.width == Width::Word { arg & 0xffff_ffff } else { arg };
        match self.op {
            Op::Equal => arg == self.value,
            Op::NotEqual => arg != self.value,
            Op::Below => arg < self.value,
            Op::AtMost => arg <= self.value,
            Op::Above => arg > self.value,
            Op::AtLeast => arg >= self.value,
            Op::Has => arg & self.value == self.value,
        }
    }
}

/// What happens to some system calls, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Names as written: calls and sets.
    pub names: Vec<String>,
    /// The calls that they stand for.
    pub calls: Vec<Syscall>,
    /// What happens to them.
    pub action: Action,
    /// `extension.handler`, for an upcall.
    pub handler: String,
    /// All must hold for the rule to match; none: it matches every such call.
    pub when: Vec<Condition>,
    /// For the person who asks why.
    pub reason: String,
    /// `FILE:LINE` of the rule.
    pub origin: String,
}

impl Rule {
    /// Whether this rule decides `number` called with `args`.
    #[must_use]
    pub fn matches(&self, number: u32, args: &[u64; 6]) -> bool {
        self.calls.iter().any(|call| call.number == number)
            && self.when.iter().all(|condition| condition.holds(args))
    }
}
