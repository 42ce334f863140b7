//! Rules that are part of every filter and that no policy lifts: what protects the region's
//! mappings, where a call's arguments are an address range.
//!
//! mseal protects the mappings themselves where the kernel has it (from Linux 6.10). It leaves
//! the pages behind them alone, so the rules on advice and placement are needed in any case.
//!
//! `MAP_FIXED_NOREPLACE` needs no rule: it replaces nothing, and it is how the region is mapped
//! after an exec.

use std::ops::Range;

use crate::bpf::{Assembler, Field, Label, Test};
use crate::policy::syscalls::{self, Syscall};

/// When a call reaches for the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The range from argument `start`, as long as argument `len` says, touches it.
    Touches {
        /// Argument with the address.
        start: u8,
        /// Argument with the length.
        len: u8,
    },
    /// The same, but only with a bit set in another argument.
    TouchesWith {
        /// Argument with the address.
        start: u8,
        /// Argument with the length.
        len: u8,
        /// Argument with the flags.
        flags: u8,
        /// The bit.
        bit: u32,
    },
    /// With a bit set in another argument, the address lies below the region's end: how much
    /// follows it is not among the arguments.
    BelowEndWith {
        /// Argument with the address.
        start: u8,
        /// Argument with the flags.
        flags: u8,
        /// The bit.
        bit: u32,
    },
}

/// One built-in rule: a call that reaches for the region fails with EPERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltIn {
    /// Name of the call.
    pub name: &'static str,
    /// When.
    pub reach: Reach,
    /// A sealed mapping does not need it.
    pub sealed: bool,
    /// What would happen without it.
    pub reason: &'static str,
}

const ADDRESS_AND_LEN: Reach = Reach::Touches { start: 0, len: 1 };

#[expect(clippy::cast_sign_loss, reason = "flags are bits")]
const fn flagged(start: u8, len: u8, flags: u8, bit: i32) -> Reach {
    Reach::TouchesWith { start, len, flags, bit: bit as u32 }
}

const fn always(name: &'static str, reach: Reach, reason: &'static str) -> BuiltIn {
    BuiltIn { name, reach, sealed: false, reason }
}

const fn unsealed(name: &'static str, reach: Reach, reason: &'static str) -> BuiltIn {
    BuiltIn { name, reach, sealed: true, reason }
}

/// `SHM_REMAP` of `shmat`.
const SHM_REMAP: u32 = 0x4000;

/// The built-in rules.
pub const BUILT_IN: &[BuiltIn] = &[
    always("madvise", ADDRESS_AND_LEN, "MADV_REMOVE would zero shared pages for everybody"),
    always("mbind", ADDRESS_AND_LEN, "would move or misplace the shared pages of everybody"),
    always(
        "set_mempolicy_home_node",
        ADDRESS_AND_LEN,
        "would misplace the shared pages of everybody",
    ),
    unsealed("munmap", ADDRESS_AND_LEN, "would leave a hole where upcalls jump to"),
    unsealed("mprotect", ADDRESS_AND_LEN, "would make code writable or data unreachable"),
    unsealed("pkey_mprotect", ADDRESS_AND_LEN, "would make code writable or data unreachable"),
    unsealed("mremap", ADDRESS_AND_LEN, "would move a part of the region away, or alias it"),
    unsealed("mremap", flagged(4, 2, 3, libc::MREMAP_FIXED), "would put memory over the region"),
    unsealed("mmap", flagged(0, 1, 3, libc::MAP_FIXED), "would put memory over the region"),
    unsealed("remap_file_pages", ADDRESS_AND_LEN, "would exchange pages of the region"),
    unsealed(
        "shmat",
        Reach::BelowEndWith { start: 1, flags: 2, bit: SHM_REMAP },
        "would put memory over the region",
    ),
];

/// What a filter decides besides, for people: calls, when, action, reason.
pub const STRUCTURE: [[&str; 4]; 5] = [
    [
        "all",
        "by another architecture's instruction",
        "kill",
        "int 0x80 reaches the same calls under other numbers",
    ],
    [
        "all",
        "number from 0x40000000",
        "errno:ENOSYS",
        "x32 reaches the same calls under other numbers",
    ],
    ["execve execveat", "not refused", "follow", "the new program becomes a participant"],
    ["fork clone", "memory is not shared", "follow", "the child becomes a participant"],
    [
        "clone3",
        "always",
        "errno:ENOSYS",
        "no filter sees its flags; C libraries fall back to clone",
    ],
];

/// Whether a built-in rule looks at the call named `name`.
#[must_use]
pub fn guards(name: &str) -> bool {
    BUILT_IN.iter().any(|rule| rule.name == name)
}

impl BuiltIn {
    /// The system call.
    #[must_use]
    pub fn call(&self) -> Option<Syscall> {
        syscalls::by_name(self.name)
    }

    /// Condition, for people.
    #[must_use]
    pub fn when(&self) -> String {
        let when = match self.reach {
            Reach::Touches { start, len } => format!("[arg{start}, +arg{len}) touches the region"),
            Reach::TouchesWith { start, len, flags, bit } => {
                format!("[arg{start}, +arg{len}) touches the region and arg{flags} has {bit:#x}")
            }
            Reach::BelowEndWith { start, flags, bit } => {
                format!("arg{start} is below the region's end and arg{flags} has {bit:#x}")
            }
        };
        if self.sealed { when + ", without mseal" } else { when }
    }

    /// Go to `hit` if a call reaches for `region`, to `miss` if not.
    pub(super) fn branch(&self, asm: &mut Assembler, region: &Range<u64>, hit: Label, miss: Label) {
        match self.reach {
            Reach::Touches { start, len } => {
                asm.branch_touches([Field::Arg(start), Field::Arg(len)], region, hit, miss);
            }
            Reach::TouchesWith { start, len, flags, bit } => {
                branch_bit(asm, flags, bit, miss);
                asm.branch_touches([Field::Arg(start), Field::Arg(len)], region, hit, miss);
            }
            Reach::BelowEndWith { start, flags, bit } => {
                branch_bit(asm, flags, bit, miss);
                asm.branch_at_least(Field::Arg(start), region.end, miss, hit);
            }
        }
    }
}

/// Go on here if argument `flags` has `bit`, to `miss` if not.
fn branch_bit(asm: &mut Assembler, flags: u8, bit: u32, miss: Label) {
    let set = asm.label();
    asm.load(Field::Arg(flags));
    asm.branch(Test::AnyBit(bit), set, miss);
    asm.bind(set);
}

#[cfg(test)]
mod tests {
    use super::BUILT_IN;

    #[test]
    fn every_rule_is_on_a_call_that_exists() {
        for rule in BUILT_IN {
            assert!(rule.call().is_some(), "{}", rule.name);
        }
    }
}
