//! The one seccomp filter of a launched command: exec and fork notifications, the region's
//! mappings, the base policy.
//!
//! seccompiler compiles the named rules; the head of the program is assembled here, since no
//! library expresses an overlap of address ranges or a notification.
#![expect(unsafe_code, reason = "installs the filter")]

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, sock_filter};
use serde::Deserialize;

const BASE_POLICY: &str = include_str!("../policies/base.toml");

/// Why a filter could not be made.
#[derive(Debug)]
pub enum FilterError {
    /// The policy's text is wrong.
    Policy(String),
    /// The kernel refused the filter.
    Kernel(io::Error),
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(what) => write!(f, "policy: {what}"),
            Self::Kernel(error) => write!(f, "installing the seccomp filter: {error}"),
        }
    }
}

impl std::error::Error for FilterError {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    version: u32,
    syscall: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    name: String,
    reason: String,
}

/// Calls that a policy may name.
const NAMES: &[(&str, i64)] = &[
    ("process_madvise", libc::SYS_process_madvise),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("modify_ldt", libc::SYS_modify_ldt),
    ("ptrace", libc::SYS_ptrace),
    ("bpf", libc::SYS_bpf),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("kexec_load", libc::SYS_kexec_load),
    ("init_module", libc::SYS_init_module),
    ("mount", libc::SYS_mount),
];

const ALLOW: u32 = 0x7fff_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const KILL: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_NOT_LESS: u16 = 0x35;
const JUMP_BITS: u16 = 0x45;
const RETURN: u16 = 0x06;

const NUMBER: u32 = 0;
const ARCH: u32 = 4;

const fn op(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Offset of the low word of argument `index`.
const fn low(index: u32) -> u32 {
    16 + index * 8
}

/// The program for a sandbox whose shared part is `region`.
///
/// # Errors
/// The base policy is broken.
pub fn build(region: &Range<usize>) -> Result<BpfProgram, FilterError> {
    let mut program = head(region);
    program.extend(base_policy(BASE_POLICY)?);
    Ok(program)
}

fn head(region: &Range<usize>) -> Vec<sock_filter> {
    const X86_64: u32 = 0xc000_003e;
    const X32_BIT: u32 = 0x4000_0000;
    let mut program = vec![
        op(LOAD, ARCH),
        jump(JUMP_EQUAL, X86_64, 1, 0),
        op(RETURN, KILL),
        op(LOAD, NUMBER),
        jump(JUMP_NOT_LESS, X32_BIT, 0, 1),
        op(RETURN, ERRNO | libc::ENOSYS as u32),
    ];
    let mut on = |number: i64, body: Vec<sock_filter>| {
        program.push(jump(JUMP_EQUAL, number as u32, 0, body.len() as u8));
        program.extend(body);
    };
    for number in [libc::SYS_execve, libc::SYS_execveat, libc::SYS_fork] {
        on(number, vec![op(RETURN, NOTIFY)]);
    }
    on(
        libc::SYS_clone,
        vec![
            op(LOAD, low(0)),
            jump(JUMP_BITS, libc::CLONE_VM as u32, 1, 0),
            op(RETURN, NOTIFY),
            op(RETURN, ALLOW),
        ],
    );
    // Programs that find no io_uring fall back; it would bypass this filter.
    on(libc::SYS_io_uring_setup, vec![op(RETURN, ERRNO | libc::ENOSYS as u32)]);
    on(
        libc::SYS_personality,
        vec![
            op(LOAD, low(0)),
            jump(JUMP_EQUAL, u32::MAX, 2, 0),
            jump(JUMP_BITS, libc::READ_IMPLIES_EXEC as u32, 0, 1),
            op(RETURN, ERRNO | libc::EPERM as u32),
            op(RETURN, ALLOW),
        ],
    );
    on(libc::SYS_madvise, overlap(region));
    program
}

/// EPERM if `[arg 0, arg 0 + arg 1)` overlaps `region`, else allow.
///
/// Classic BPF has 32-bit words: the sum carries by hand, and 64-bit comparisons look at the high
/// words first. A range that wraps around the address space counts as an overlap.
fn overlap(region: &Range<usize>) -> Vec<sock_filter> {
    const STORE: u16 = 0x02;
    const LOAD_SCRATCH: u16 = 0x60;
    const TO_X: u16 = 0x07;
    const ADD_X: u16 = 0x0c;
    const JUMP_GREATER_X: u16 = 0x2d;
    let (start, end) = (region.start as u64, region.end as u64);
    let [start_high, start_low] = [(start >> 32) as u32, start as u32];
    let [end_high, end_low] = [(end >> 32) as u32, end as u32];
    vec![
        // scratch 0, 1: low and high word of the end of the caller's range.
        op(LOAD, low(1)),
        op(TO_X, 0),
        op(LOAD, low(0)),
        op(ADD_X, 0),
        op(STORE, 0),
        // Carry: the low word of the length is greater than the sum.
        op(0x87, 0),                   // A = X: the length's low word
        op(0x61, 0),                   // X = scratch 0
        jump(JUMP_GREATER_X, 0, 0, 2), // length > sum: carry
        op(0x00, 1),                   // A = 1
        op(JUMP, 1),
        op(0x00, 0), // A = 0
        op(TO_X, 0),
        op(LOAD, low(0) + 4),
        op(ADD_X, 0),
        op(TO_X, 0),
        op(LOAD, low(1) + 4),
        op(ADD_X, 0),
        op(STORE, 1),
        // Wrapped: an address of a process has no bit above 47, so neither has a true sum.
        jump(JUMP_GREATER, 0xffff, 10, 0),
        // caller's start >= end of the region: no overlap.
        op(LOAD, low(0) + 4),
        jump(JUMP_GREATER, end_high, 9, 0),
        jump(JUMP_EQUAL, end_high, 0, 2),
        op(LOAD, low(0)),
        jump(JUMP_NOT_LESS, end_low, 6, 0),
        // caller's end <= start of the region: no overlap.
        op(LOAD_SCRATCH, 1),
        jump(JUMP_GREATER, start_high, 3, 0),
        jump(JUMP_EQUAL, start_high, 0, 3),
        op(LOAD_SCRATCH, 0),
        jump(JUMP_GREATER, start_low, 0, 1),
        op(RETURN, ERRNO | libc::EPERM as u32),
        op(RETURN, ALLOW),
    ]
}

/// The named rules, compiled: EPERM for each.
fn base_policy(text: &str) -> Result<BpfProgram, FilterError> {
    let policy: Policy =
        toml::from_str(text).map_err(|error| FilterError::Policy(error.to_string()))?;
    if policy.version != 1 {
        return Err(FilterError::Policy(format!(
            "version {}: this launcher knows 1",
            policy.version
        )));
    }
    let mut rules = BTreeMap::new();
    for rule in policy.syscall {
        let known = NAMES.iter().find(|(name, _)| *name == rule.name);
        let (_, number) = known
            .ok_or_else(|| FilterError::Policy(format!("unknown system call {:?}", rule.name)))?;
        if rule.reason.is_empty() {
            return Err(FilterError::Policy(format!("{} has no reason", rule.name)));
        }
        rules.insert(*number, Vec::new());
    }
    SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        TargetArch::x86_64,
    )
    .and_then(TryInto::try_into)
    .map_err(|error| FilterError::Policy(error.to_string()))
}

/// Give up new privileges and install `program`; the descriptor that its notifications come from.
///
/// # Errors
/// The kernel's. EBUSY: another listener (a sandbox around this one) is there already.
pub fn install(program: &[sock_filter]) -> io::Result<OwnedFd> {
    const SET_MODE_FILTER: usize = 1;
    const NEW_LISTENER: usize = 1 << 3;
    const WAIT_KILLABLE_RECV: usize = 1 << 5;
    // SAFETY: takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let program =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut().cast() };
    for flags in [NEW_LISTENER | WAIT_KILLABLE_RECV, NEW_LISTENER] {
        // SAFETY: the program outlives the call, and its instructions are laid out as the kernel's.
        let fd =
            unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) };
        if fd >= 0 {
            // SAFETY: the kernel just made it for us.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
    Err(io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::{base_policy, build, overlap};
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use seccompiler::sock_filter;

    /// Runs a program as the kernel does, on number, architecture and arguments.
    fn run(program: &[sock_filter], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let load = |k: u32| match k {
            0 => number,
            4 => arch,
            _ => {
                let arg = args[((k - 16) / 8) as usize];
                if (k - 16).is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
        };
        let (mut a, mut x, mut scratch, mut at) = (0u32, 0u32, [0u32; 16], 0usize);
        loop {
            let op = &program[at];
            at += 1;
            let branch = |yes: bool| usize::from(if yes { op.jt } else { op.jf });
            match op.code {
                0x20 => a = load(op.k),
                0x00 => a = op.k,
                0x02 => scratch[op.k as usize] = a,
                0x60 => a = scratch[op.k as usize],
                0x61 => x = scratch[op.k as usize],
                0x07 => x = a,
                0x87 => a = x,
                0x04 => a = a.wrapping_add(op.k),
                0x0c => a = a.wrapping_add(x),
                0x05 => at += op.k as usize,
                0x15 => at += branch(a == op.k),
                0x25 => at += branch(a > op.k),
                0x2d => at += branch(a > x),
                0x35 => at += branch(a >= op.k),
                0x45 => at += branch(a & op.k != 0),
                0x06 => return op.k,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    const X86_64: u32 = 0xc000_003e;
    const ALLOW: u32 = super::ALLOW;
    const EPERM: u32 = super::ERRNO | 1;

    const START: u64 = 0x5540_1220_0000;
    const END: u64 = 0x5540_9220_0000;

    fn expected(addr: u64, len: u64) -> u32 {
        let end = u128::from(addr) + u128::from(len);
        let wraps = end >> 48 != 0;
        let overlaps = addr < END && end > u128::from(START);
        if wraps || overlaps { EPERM } else { ALLOW }
    }

    proptest! {
        #[test]
        fn overlap_agrees_with_arithmetic(
            near in any::<bool>(), addr in any::<u64>(), len in any::<u64>(),
            delta in -8192i64..8192, edge in 0..4usize,
        ) {
            let program = overlap(&(START as usize..END as usize));
            let (addr, len) = if near {
                let len = len % (4 << 30);
                let at = [START, END, START.wrapping_sub(len), END.wrapping_sub(len)][edge];
                (at.wrapping_add_signed(delta), len)
            } else {
                (addr >> 17, len >> 17)
            };
            let got = run(&program, X86_64, 28, [addr, len, 0, 0, 0, 0]);
            prop_assert_eq!(got, expected(addr, len), "{:#x} + {:#x}", addr, len);
        }
    }

    #[test]
    fn numbers_go_where_they_should() {
        let program = build(&(START as usize..END as usize)).unwrap();
        let run = |number: i64, args| run(&program, X86_64, number as u32, args);
        let none = [0; 6];
        assert_eq!(run(libc::SYS_read, none), ALLOW);
        assert_eq!(run(libc::SYS_execve, none), super::NOTIFY);
        assert_eq!(run(libc::SYS_fork, none), super::NOTIFY);
        assert_eq!(run(libc::SYS_clone, [17, 0, 0, 0, 0, 0]), super::NOTIFY);
        assert_eq!(run(libc::SYS_clone, [0x100, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(run(libc::SYS_io_uring_setup, none), super::ERRNO | 38);
        assert_eq!(run(libc::SYS_userfaultfd, none), EPERM);
        assert_eq!(run(libc::SYS_process_madvise, none), EPERM);
        assert_eq!(run(libc::SYS_modify_ldt, none), EPERM);
        assert_eq!(run(libc::SYS_personality, [0x0400_0000, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(run(libc::SYS_personality, [0x0040_0000, 0, 0, 0, 0, 0]), EPERM);
        assert_eq!(run(libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(run(0x4000_0001, none), super::ERRNO | 38);
        assert_eq!(super::tests::run(&program, 0x4000_0003, 1, none), super::KILL);
    }

    #[test]
    fn a_wrong_policy_is_refused_by_name() {
        let refused = |text: &str| base_policy(text).unwrap_err().to_string();
        assert!(refused("version = 2\nsyscall = []").contains("version 2"));
        let unknown = "version = 1\n[[syscall]]\nname = \"nosuch\"\nreason = \"x\"";
        assert!(refused(unknown).contains("nosuch"));
        assert!(refused("version = 1\nsyscall = []\nextra = 1").contains("extra"));
    }
}
