//! Filters against a plain reading of their specification.

use std::ops::Range;

use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};
use proptest::sample::select;

use super::built_in::{BUILT_IN, Reach};
use super::{CLONE_VM, FilterError, FilterSpec, KILL, X32_FIRST, build_spec, errno, in_force};
use crate::bpf::interpret::{Call, run};
use crate::policy::{Action, Condition, Op, Policy, Width, syscalls};

const REGION: Range<u64> = 0x5540_1220_0000..0x5540_9220_0000;
const TEXT: Range<u64> = 0x5540_1420_0000..0x5540_1430_0000;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;

fn spec(policy: Policy) -> FilterSpec {
    FilterSpec {
        region: REGION,
        libos_text: TEXT,
        keep_signals: true,
        armed: super::Armed::default(),
        first_exec: 0,
        follow_exec: true,
        follow_fork: true,
        mseal: false,
        policy,
    }
}

fn base() -> FilterSpec {
    spec(Policy::base().unwrap())
}

fn policy(rules: &str) -> Policy {
    Policy::parse(&format!("version = 1\n{rules}"), "test.toml").unwrap()
}

fn number(name: &str) -> u32 {
    syscalls::by_name(name).expect(name).number
}

/// What the filter of `spec` should answer.
fn expected(spec: &FilterSpec, call: &Call) -> u32 {
    if call.arch != crate::bpf::ARCH_X86_64 {
        return KILL;
    }
    if call.number >= X32_FIRST {
        return errno(libc::ENOSYS);
    }
    let name = syscalls::name_of(call.number).unwrap_or_default();
    let mut built_in = BUILT_IN.iter().filter(|rule| in_force(rule, spec) && rule.name == name);
    if !TEXT.contains(&call.ip) && built_in.any(|rule| reaches(rule.reach, &call.args)) {
        return errno(libc::EPERM);
    }
    match spec.policy.decides(call.number, &call.args).map(|rule| rule.action) {
        Some(Action::Errno(error)) => errno(error as i32),
        Some(Action::Kill) => KILL,
        Some(Action::Log) => libc::SECCOMP_RET_LOG,
        Some(Action::Allow | Action::Upcall) | None => match name {
            "execve" | "execveat" if spec.follow_exec => NOTIFY,
            "fork" if spec.follow_fork => NOTIFY,
            "clone" if spec.follow_fork && call.args[0] & u64::from(CLONE_VM) == 0 => NOTIFY,
            "clone3" if spec.follow_fork => errno(libc::ENOSYS),
            "sigaltstack" if spec.keep_signals && !TEXT.contains(&call.ip) => NOTIFY,
            "rt_sigaction" if spec.keep_signals && !TEXT.contains(&call.ip) => {
                let ours = libos::signals::OURS.map(i32::unsigned_abs);
                if ours.contains(&(call.args[0] as u32)) { NOTIFY } else { ALLOW }
            }
            _ => ALLOW,
        },
    }
}

fn reaches(reach: Reach, args: &[u64; 6]) -> bool {
    let arg = |index: u8| args[usize::from(index)];
    let touches = |start: u8, len: u8| {
        let end = u128::from(arg(start)) + u128::from(arg(len));
        REGION.contains(&arg(start))
            || (arg(start) < REGION.start && end > u128::from(REGION.start))
    };
    match reach {
        Reach::Touches { start, len } => touches(start, len),
        Reach::TouchesWith { start, len, flags, bit } => {
            arg(flags) & u64::from(bit) != 0 && touches(start, len)
        }
        Reach::BelowEndWith { start, flags, bit } => {
            arg(flags) & u64::from(bit) != 0 && arg(start) < REGION.end
        }
    }
}

fn words() -> impl Strategy<Value = u64> {
    let near =
        (select(vec![REGION.start, REGION.end, REGION.end - REGION.start, 0, 1 << 32]), -2i64..3)
            .prop_map(|(edge, delta)| edge.wrapping_add_signed(delta));
    let flags = select(vec![
        0x10,
        0x32,
        0x4000,
        2,
        7,
        11,
        16,
        3,
        0x100,
        0x11,
        0x0040_0000,
        0xffff_ffff,
        0x4002,
    ]);
    prop_oneof![near, flags, any::<u64>()]
}

fn calls() -> impl Strategy<Value = Call> {
    let mut named: Vec<_> = BUILT_IN.iter().filter_map(|rule| rule.call()).collect();
    named.extend(
        ["clone", "clone3", "execve", "fork", "read", "personality", "arch_prctl", "ioctl"]
            .iter()
            .chain(&["rt_sigaction", "sigaltstack"])
            .filter_map(|name| syscalls::by_name(name)),
    );
    let named = named.into_iter().map(|call| call.number).collect::<Vec<_>>();
    let number = prop_oneof![8 => select(named), 1 => 0u32..500, 1 => any::<u32>()];
    let ip = prop_oneof![
        4 => any::<u64>(),
        1 => select(vec![TEXT.start - 1, TEXT.start, TEXT.end - 1, TEXT.end]),
    ];
    let arch = prop_oneof![9 => Just(crate::bpf::ARCH_X86_64), 1 => Just(0x4000_0003)];
    (number, arch, ip, proptest::array::uniform6(words()))
        .prop_map(|(number, arch, ip, args)| Call { number, arch, ip, args })
}

/// Rules on few calls, so that they meet.
fn policies() -> impl Strategy<Value = Policy> {
    let op = select(vec!["==", "!=", "<", "<=", ">", ">=", "has"]);
    let value =
        prop_oneof![select(vec![0i64, 2, 0x5413, 1 << 32]), any::<i64>(), 0..0xffff_ffffi64];
    let condition = (0..6u8, op, value)
        .prop_map(|(arg, op, value)| format!("{{arg = {arg}, op = {op:?}, value = {value}}}"));
    let names = select(vec!["madvise", "ioctl", "execve", "@keyring"]);
    let action = select(vec!["allow", "kill", "errno:EPERM", "errno:ENOSYS"]);
    let when = proptest::collection::vec(condition, 0..4);
    let rule = (names, action, when).prop_map(|(name, action, when)| {
        let when = when.join(", ");
        format!("[[syscall]]\nnames = [{name:?}]\naction = {action:?}\nreason = \"r\"\nwhen = [{when}]\n")
    });
    proptest::collection::vec(rule, 0..6).prop_map(|rules| policy(&rules.concat()))
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(1_000))]
    #[test]
    fn a_filter_does_what_its_specification_says(
        calls in proptest::collection::vec(calls(), 20),
        policy in policies(),
        [exec, fork, mseal, signals] in any::<[bool; 4]>(),
    ) {
        let policy = Policy::base().unwrap().merge(policy);
        let spec = FilterSpec {
            follow_exec: exec,
            follow_fork: fork,
            keep_signals: signals,
            armed: super::Armed::default(),
            mseal,
            ..spec(policy)
        };
        let program = build_spec(&spec).unwrap();
        for call in calls {
            let action = run(&program, &call).unwrap().action;
            prop_assert_eq!(action, expected(&spec, &call), "{:x?}", call);
        }
    }
}

#[test]
fn common_calls_are_cheap_and_remembered() {
    for mseal in [false, true] {
        let program = build_spec(&FilterSpec { mseal, ..base() }).unwrap();
        let outcome = |number| run(&program, &Call { number, ..Call::default() }).unwrap();
        let ruled: Vec<_> = calls_with_rules(&base());
        for call in syscalls::all().filter(|call| !ruled.contains(&call.number)) {
            let outcome = outcome(call.number);
            assert_eq!((outcome.action, outcome.cacheable), (ALLOW, true), "{}", call.name);
            assert!(outcome.steps <= 13, "{}: {}", call.name, outcome.steps);
        }
        for name in ["read", "write", "futex", "epoll_wait", "sendmsg"] {
            let outcome = outcome(number(name));
            assert!(outcome.cacheable && outcome.action == ALLOW, "{name}");
            assert!(outcome.steps <= 10, "{name}: {}", outcome.steps);
        }
    }
}

fn calls_with_rules(spec: &FilterSpec) -> Vec<u32> {
    let built_in = BUILT_IN.iter().filter_map(|rule| rule.call());
    let named = spec.policy.rules().iter().flat_map(|rule| rule.calls.clone());
    let followed = ["clone", "clone3", "execve", "execveat", "fork", "rt_sigaction", "sigaltstack"]
        .map(number);
    built_in.chain(named).map(|call| call.number).chain(followed).collect()
}

#[test]
fn what_cannot_be_built_is_refused() {
    let empty = FilterSpec { region: 8..8, ..base() };
    assert!(matches!(build_spec(&empty), Err(FilterError::EmptyRegion)));
    let rule = "[[syscall]]\nnames = [\"execve\"]\naction = \"log\"\nreason = \"r\"\n";
    let error = build_spec(&spec(policy(rule))).unwrap_err().to_string();
    assert!(error.starts_with("test.toml:2: execve cannot be logged"), "{error}");
    let unfollowed = FilterSpec { follow_exec: false, ..spec(policy(rule)) };
    let program = build_spec(&unfollowed).unwrap();
    let call = Call { number: number("execve"), ..Call::default() };
    assert_eq!(run(&program, &call).unwrap().action, libc::SECCOMP_RET_LOG);
    let long = "[[syscall]]\nnames = [\"ioctl\"]\naction = \"kill\"\nreason = \"r\"\n\
                when = [{arg = 1, op = \"==\", value = 1}]\n";
    let error = build_spec(&spec(policy(&long.repeat(600)))).unwrap_err();
    assert!(matches!(error, FilterError::Assemble(_)), "{error}");
}

#[test]
fn a_condition_of_32_bits_ignores_what_lies_above() {
    let condition = Condition { arg: 0, op: Op::Equal, value: 7, width: Width::Word };
    assert!(condition.holds(&[0xdead_0000_0007, 0, 0, 0, 0, 0]));
    let condition = Condition { width: Width::Whole, ..condition };
    assert!(!condition.holds(&[0xdead_0000_0007, 0, 0, 0, 0, 0]));
}
