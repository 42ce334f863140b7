//! The one seccomp filter of a launched command: exec and fork notifications, the region's
//! mappings, the base policy.
//!
//! seccompiler compiles the named rules; the rest is assembled with [`crate::bpf`], since no
//! library expresses an overlap of address ranges or a notification.
#![expect(unsafe_code, reason = "installs the filter")]

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, sock_filter};
use serde::Deserialize;

use crate::bpf::{ARCH_X86_64, Assembler, Field, Label, Test};

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

/// The program for a sandbox whose shared part is `region`.
///
/// # Errors
/// The base policy is broken.
pub fn build(region: &Range<usize>) -> Result<BpfProgram, FilterError> {
    const X32_BIT: u32 = 0x4000_0000;
    let policy = base_policy(BASE_POLICY)?;
    let mut program = Assembler::new();
    let actions = [ALLOW, NOTIFY, KILL, ERRNO | libc::EPERM as u32, ERRNO | libc::ENOSYS as u32];
    let ends = actions.map(|_| program.label());
    let [_, notify, kill, _, enosys] = ends;
    let [native, named, above, madvise, clone, personality] = [(); 6].map(|()| program.label());
    program.load(Field::Arch);
    program.branch(Test::Equal(ARCH_X86_64), native, kill);
    program.bind(native);
    program.load(Field::Number);
    let cases = [
        (libc::SYS_madvise, madvise),
        (libc::SYS_clone, clone),
        (libc::SYS_fork, notify),
        (libc::SYS_execve, notify),
        (libc::SYS_personality, personality),
        (libc::SYS_execveat, notify),
        // Programs that find no io_uring fall back; it would bypass this filter.
        (libc::SYS_io_uring_setup, enosys),
    ];
    // Most calls have no rule of ours and go on to the policy's.
    program.dispatch(&cases.map(|(number, label)| (number as u32, label)), named, above);
    program.bind(above);
    program.branch(Test::AtLeast(X32_BIT), enosys, named);
    program.bind(named);
    program.embed(&policy, |_| None);
    rules_on_arguments(&mut program, ends, [madvise, clone, personality], region);
    for (label, action) in ends.into_iter().zip(actions) {
        program.bind(label);
        program.ret(action);
    }
    program.finish().map_err(|error| FilterError::Policy(error.to_string()))
}

/// The calls whose arguments decide.
fn rules_on_arguments(
    program: &mut Assembler,
    [allow, notify, _, eperm, _]: [Label; 5],
    [madvise, clone, personality]: [Label; 3],
    region: &Range<usize>,
) {
    let region = region.start as u64..region.end as u64;
    program.bind(madvise);
    program.branch_touches([Field::Arg(0), Field::Arg(1)], &region, eperm, allow);
    program.bind(clone);
    program.load(Field::Arg(0));
    program.branch(Test::AnyBit(libc::CLONE_VM as u32), allow, notify);
    program.bind(personality);
    let other = program.label();
    program.load(Field::Arg(0));
    program.branch(Test::Equal(u32::MAX), allow, other);
    program.bind(other);
    program.branch(Test::AnyBit(libc::READ_IMPLIES_EXEC as u32), eperm, allow);
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
    use super::{ALLOW, ERRNO, KILL, NOTIFY, base_policy, build};
    use crate::bpf::interpret::{Call, run};
    use proptest::prelude::{prop_assert_eq, proptest};

    const EPERM: u32 = ERRNO | 1;
    const ENOSYS: u32 = ERRNO | 38;
    const START: u64 = 0x5540_1220_0000;
    const END: u64 = 0x5540_9220_0000;

    fn answer(number: i64, args: [u64; 6]) -> u32 {
        let program = build(&(START as usize..END as usize)).unwrap();
        run(&program, &Call { number: number as u32, args, ..Call::default() }).unwrap().action
    }

    proptest! {
        #[test]
        fn madvise_is_refused_where_it_touches_the_region(
            len in 1u64..(4 << 30), delta in -8192i64..8192, edge in 0..4usize,
        ) {
            let at = [START, END, START - len, END - len][edge].wrapping_add_signed(delta);
            let overlaps = at < END && at + len > START;
            let expected = if overlaps { EPERM } else { ALLOW };
            prop_assert_eq!(answer(libc::SYS_madvise, [at, len, 4, 0, 0, 0]), expected);
        }
    }

    #[test]
    fn numbers_go_where_they_should() {
        let none = [0; 6];
        let first = |word| [word, 0, 0, 0, 0, 0];
        assert_eq!(answer(libc::SYS_read, none), ALLOW);
        assert_eq!(answer(libc::SYS_execve, none), NOTIFY);
        assert_eq!(answer(libc::SYS_execveat, none), NOTIFY);
        assert_eq!(answer(libc::SYS_fork, none), NOTIFY);
        assert_eq!(answer(libc::SYS_clone, first(17)), NOTIFY);
        assert_eq!(answer(libc::SYS_clone, first(0x100)), ALLOW);
        assert_eq!(answer(libc::SYS_io_uring_setup, none), ENOSYS);
        assert_eq!(answer(libc::SYS_userfaultfd, none), EPERM);
        assert_eq!(answer(libc::SYS_process_madvise, none), EPERM);
        assert_eq!(answer(libc::SYS_modify_ldt, none), EPERM);
        assert_eq!(answer(libc::SYS_personality, first(0x0004_0000)), ALLOW);
        assert_eq!(answer(libc::SYS_personality, first(0x0040_0000)), EPERM);
        assert_eq!(answer(libc::SYS_personality, first(0xffff_ffff)), ALLOW);
        assert_eq!(answer(0x4000_0001, none), ENOSYS);
        let program = build(&(START as usize..END as usize)).unwrap();
        let foreign = Call { arch: 0x4000_0003, number: 1, ..Call::default() };
        assert_eq!(run(&program, &foreign).unwrap().action, KILL);
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
