//! The one seccomp filter of a launched command: the built-in rules on the region's mappings, the
//! policy's, and the notifications by which execs and forks are followed.
//!
//! ```text
//!  architecture? ── not x86-64 ──► kill (int 0x80 would reach every call under another number)
//!  jump tree over the numbers that have rules ── none ──► allow
//!      per number:  built-in rules ──► policy's rules in order ──► notify or allow
//! ```
//!
//! A number without rules leaves after at most a dozen instructions that look at nothing but number
//! and architecture, so that the kernel finds it always allowed and stops running the program for
//! it. Unconditional rules are one return; those with conditions are compiled by seccompiler, each
//! to a program of its own whose mismatch goes on to the next rule.
//!
//! Not seen by a filter, and not claimed: what a call's pointers point at.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use libos::layout::Place;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use crate::bpf::{ARCH_X86_64, AssembleError, Assembler, Field, Label, Test};
use crate::policy::{Action, Condition, Op, Policy, PolicyError, Rule, Width, syscalls};
use built_in::{BUILT_IN, BuiltIn};

pub mod built_in;
mod install;

pub use install::{InstallError, install, install_without_listener};

/// Numbers from here on are those of the x32 ABI: the same calls, past rules on their numbers.
const X32_FIRST: u32 = 0x4000_0000;

/// Distinct actions of the programs that seccompiler makes, to be replaced by jumps.
const NO_MATCH: SeccompAction = SeccompAction::Trace(1);
const ALLOWED: SeccompAction = SeccompAction::Trace(2);

/// Why a filter could not be made.
#[derive(Debug)]
pub enum FilterError {
    /// The region to protect has no bytes.
    EmptyRegion,
    /// A policy's file is wrong.
    Policy(PolicyError),
    /// The rule at `origin` logs a call that has to be followed; the kernel does one or the other.
    LogsFollowed {
        /// Where the rule stands.
        origin: String,
        /// The call.
        name: &'static str,
    },
    /// seccompiler refused the conditions of the rule at `origin`.
    Conditions {
        /// Where the rule stands.
        origin: String,
        /// Its words.
        error: seccompiler::BackendError,
    },
    /// The program is too long: the policy has too many rules.
    Assemble(AssembleError),
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyRegion => f.write_str("the region that the filter should protect is empty"),
            Self::Policy(error) => error.fmt(f),
            Self::LogsFollowed { origin, name } => write!(
                f,
                "{origin}: {name} cannot be logged, since children would not be followed into the \
                 sandbox; allow it or refuse it"
            ),
            Self::Conditions { origin, error } => write!(f, "{origin}: {error}"),
            Self::Assemble(error) => write!(f, "{error}; use fewer rules"),
        }
    }
}

impl std::error::Error for FilterError {}

impl From<AssembleError> for FilterError {
    fn from(error: AssembleError) -> Self {
        Self::Assemble(error)
    }
}

/// What extensions are hooked to, in a command and all that it starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Armed {
    /// Bit per signal.
    pub signals: u64,
    /// Bit per system call.
    pub calls: [u64; 8],
}

impl Armed {
    /// Signals that a program's libos handles besides its own.
    #[must_use]
    pub fn at_join(self) -> u64 {
        let for_calls = u64::from(self.calls != [0; 8]) << libos::signals::SIGSYS;
        self.signals | for_calls
    }

    /// Numbers of the calls that are trapped: those that are hooked, those by which SIGSYS could be
    /// blocked, and the one that sets filters as [`PR_SET_SECCOMP`] does.
    fn trapped(self) -> impl Iterator<Item = u32> {
        const LIBOS: [i64; 8] = [
            libc::SYS_seccomp,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigsuspend,
            libc::SYS_pselect6,
            libc::SYS_ppoll,
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_pwait2,
        ];
        let any = self.calls != [0; 8];
        let hooked =
            (0..512u32).filter(move |at| self.calls[*at as usize / 64] >> (at % 64) & 1 == 1);
        hooked.chain(LIBOS.into_iter().filter(move |_| any).map(|number| number as u32))
    }
}

/// What a filter is made for.
#[derive(Debug, Clone)]
pub struct FilterSpec {
    /// The shared part of the region: what calls on address ranges must not touch.
    pub region: Range<u64>,
    /// libos's code: a call made from there may touch the region. Empty: no exception. Programs
    /// may jump there, so this separates accidents from intent, not friend from foe.
    pub libos_text: Range<u64>,
    /// rt_sigaction of the signals that libos handles, and sigaltstack, are notified unless libos
    /// makes the call.
    pub keep_signals: bool,
    /// Signals and system calls that are hooked besides.
    pub armed: Armed,
    /// What the launcher has in the fourth argument of the execve that begins the command: it is made
    /// before there is a libos to ask. 0 if there is no such call.
    pub first_exec: u32,
    /// execve and execveat are notified.
    pub follow_exec: bool,
    /// fork, and clone without `CLONE_VM`, are notified; clone3, whose flags no filter sees,
    /// fails with ENOSYS, on which C libraries fall back to clone.
    pub follow_fork: bool,
    /// The kernel seals mappings: rules that only repeat what sealing does are left out.
    pub mseal: bool,
    /// The named rules.
    pub policy: Policy,
}

/// The program for a sandbox whose shared part is `region`: `policy`, execs and forks followed, as
/// much left to mseal as this kernel can do, the signals of `armed` hooked.
///
/// # Errors
/// See [`FilterError`].
pub fn build(
    region: &Range<usize>,
    armed: Armed,
    first_exec: u32,
    policy: Policy,
) -> Result<BpfProgram, FilterError> {
    let text = Place { base: region.start, len: region.len() }.code_half(0);
    build_spec(&FilterSpec {
        region: region.start as u64..region.end as u64,
        libos_text: text.start as u64..text.end as u64,
        keep_signals: true,
        armed,
        first_exec,
        follow_exec: true,
        follow_fork: true,
        mseal: crate::doctor::has_mseal(),
        policy,
    })
}

/// As [`build`], for a command whose execs and forks nobody follows.
///
/// # Errors
/// See [`FilterError`].
pub fn build_unfollowed(region: &Range<usize>, policy: Policy) -> Result<BpfProgram, FilterError> {
    let text = Place { base: region.start, len: region.len() }.code_half(0);
    build_spec(&FilterSpec {
        region: region.start as u64..region.end as u64,
        libos_text: text.start as u64..text.end as u64,
        keep_signals: false,
        armed: Armed::default(),
        first_exec: 0,
        follow_exec: false,
        follow_fork: false,
        mseal: crate::doctor::has_mseal(),
        policy,
    })
}

/// The program for `spec`.
///
/// # Errors
/// See [`FilterError`].
pub fn build_spec(spec: &FilterSpec) -> Result<BpfProgram, FilterError> {
    if spec.region.is_empty() {
        return Err(FilterError::EmptyRegion);
    }
    Builder::new(spec).build()
}

/// What is done with a call that no rule refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follow {
    Always,
    WithoutSharedMemory,
    Hide,
    Signals,
}

struct Builder<'a> {
    spec: &'a FilterSpec,
    /// The built-in rules that are in force, with the numbers of their calls.
    built_in: Vec<(u32, &'static BuiltIn)>,
    asm: Assembler,
    /// One return per action, at the end of the program.
    returns: BTreeMap<u32, Label>,
}

impl<'a> Builder<'a> {
    fn new(spec: &'a FilterSpec) -> Self {
        let built_in = BUILT_IN.iter().filter(|rule| in_force(rule, spec));
        let built_in = built_in.filter_map(|rule| Some((rule.call()?.number, rule))).collect();
        Self { spec, built_in, asm: Assembler::new(), returns: BTreeMap::new() }
    }

    fn build(mut self) -> Result<Vec<sock_filter>, FilterError> {
        let numbers = self.numbers();
        let cases: Vec<_> = numbers.iter().map(|number| (*number, self.asm.label())).collect();
        self.head(&cases);
        for (number, label) in cases {
            self.asm.bind(label);
            self.call(number)?;
        }
        for (action, label) in std::mem::take(&mut self.returns) {
            self.asm.bind(label);
            self.asm.ret(action);
        }
        Ok(self.asm.finish()?)
    }

    /// Numbers that have rules.
    fn numbers(&self) -> BTreeSet<u32> {
        let named = self.spec.policy.rules().iter().flat_map(|rule| &rule.calls);
        let built_in = self.built_in.iter().map(|(number, _)| *number);
        let ruled = built_in.chain(named.map(|call| call.number));
        let all = syscalls::all().map(|call| call.number);
        let followed = all.filter(|number| self.follow(*number).is_some());
        ruled.chain(followed).chain(self.spec.armed.trapped()).collect()
    }

    fn follow(&self, number: u32) -> Option<Follow> {
        let (exec, fork) = (self.spec.follow_exec, self.spec.follow_fork);
        match i64::from(number) {
            libc::SYS_execve | libc::SYS_execveat if exec => Some(Follow::Always),
            libc::SYS_fork if fork => Some(Follow::Always),
            libc::SYS_clone if fork => Some(Follow::WithoutSharedMemory),
            libc::SYS_clone3 if fork => Some(Follow::Hide),
            libc::SYS_rt_sigaction | libc::SYS_sigaltstack if self.spec.keep_signals => {
                Some(Follow::Signals)
            }
            _ => None,
        }
    }

    /// The label of a return with `action`.
    fn returning(&mut self, action: u32) -> Label {
        let asm = &mut self.asm;
        *self.returns.entry(action).or_insert_with(|| asm.label())
    }

    fn head(&mut self, cases: &[(u32, Label)]) {
        // A return of its own, near the tree: the commonest calls take no longer jump.
        let (allow, kill) = (self.asm.label(), self.returning(KILL));
        let enosys = self.returning(errno(libc::ENOSYS));
        let (native, above) = (self.asm.label(), self.asm.label());
        self.asm.load(Field::Arch);
        self.asm.branch(Test::Equal(ARCH_X86_64), native, kill);
        self.asm.bind(native);
        self.asm.load(Field::Number);
        self.asm.dispatch(cases, allow, above);
        self.asm.bind(above);
        self.asm.branch(Test::AtLeast(X32_FIRST), enosys, allow);
        self.asm.bind(allow);
        self.asm.ret(libc::SECCOMP_RET_ALLOW);
    }

    /// All rules on call `number`.
    fn call(&mut self, number: u32) -> Result<(), FilterError> {
        let (allowed, spec) = (self.asm.label(), self.spec);
        if spec.armed.trapped().any(|trapped| trapped == number) {
            let (trap, from_libos) = (self.returning(libc::SECCOMP_RET_TRAP), self.asm.label());
            if i64::from(number) == libc::SYS_execve && spec.first_exec != 0 {
                let other = self.asm.label();
                self.asm.load(Field::Arg(3));
                self.asm.branch(Test::Equal(spec.first_exec), from_libos, other);
                self.asm.bind(other);
            }
            self.asm.branch_within(Field::Ip, &spec.libos_text, from_libos, trap);
            self.asm.bind(from_libos);
        }
        if i64::from(number) == libc::SYS_prctl && spec.armed.calls != [0; 8] {
            self.prctl();
        }
        for at in 0..self.built_in.len() {
            let (of, rule) = self.built_in[at];
            if of == number {
                self.built_in(rule);
            }
        }
        for rule in spec.policy.rules() {
            if rule.calls.iter().any(|call| call.number == number) {
                self.named(rule, number, allowed)?;
                if rule.when.is_empty() {
                    // What follows it for this number is never reached.
                    break;
                }
            }
        }
        self.asm.bind(allowed);
        self.allowed(number);
        Ok(())
    }

    /// Of the many things that prctl does libos has to know of one.
    fn prctl(&mut self) {
        let (trap, other) = (self.returning(libc::SECCOMP_RET_TRAP), self.asm.label());
        let sets_filter = self.asm.label();
        self.asm.load(Field::Arg(0));
        self.asm.branch(Test::Equal(PR_SET_SECCOMP), sets_filter, other);
        self.asm.bind(sets_filter);
        self.asm.branch_within(Field::Ip, &self.spec.libos_text, other, trap);
        self.asm.bind(other);
    }

    /// EPERM for a call that reaches for the region from anywhere but libos.
    fn built_in(&mut self, rule: &BuiltIn) {
        let denied = self.returning(errno(libc::EPERM));
        let (hit, miss) = (self.asm.label(), self.asm.label());
        rule.branch(&mut self.asm, &self.spec.region, hit, miss);
        self.asm.bind(hit);
        if self.spec.libos_text.is_empty() {
            self.asm.jump(denied);
        } else {
            self.asm.branch_within(Field::Ip, &self.spec.libos_text, miss, denied);
        }
        self.asm.bind(miss);
    }

    /// One rule of the policy, for one of its calls.
    fn named(&mut self, rule: &Rule, number: u32, allowed: Label) -> Result<(), FilterError> {
        if rule.action == Action::Log && self.follow(number).is_some() {
            let name = syscalls::name_of(number).unwrap_or_default();
            return Err(FilterError::LogsFollowed { origin: rule.origin.clone(), name });
        }
        if rule.when.is_empty() {
            let to = match rule.action {
                // It comes this way when the handler has let it.
                Action::Allow | Action::Upcall => allowed,
                action => self.returning(compiled(action).into()),
            };
            self.asm.jump(to);
            return Ok(());
        }
        let program = conditional(rule, number)
            .map_err(|error| FilterError::Conditions { origin: rule.origin.clone(), error })?;
        let next = self.asm.label();
        self.asm.embed(&program, |action| match action {
            _ if action == u32::from(NO_MATCH) => Some(next),
            _ if action == u32::from(ALLOWED) => Some(allowed),
            _ => None,
        });
        self.asm.bind(next);
        Ok(())
    }

    /// What happens to a call that no rule refused.
    fn allowed(&mut self, number: u32) {
        let allow = self.returning(libc::SECCOMP_RET_ALLOW);
        let notify = self.returning(libc::SECCOMP_RET_USER_NOTIF);
        match self.follow(number) {
            None => self.asm.jump(allow),
            Some(Follow::Always) => self.asm.jump(notify),
            Some(Follow::Hide) => {
                let enosys = self.returning(errno(libc::ENOSYS));
                self.asm.jump(enosys);
            }
            Some(Follow::Signals) => self.signals(number),
            Some(Follow::WithoutSharedMemory) => {
                self.asm.load(Field::Arg(0));
                self.asm.branch(Test::AnyBit(CLONE_VM), allow, notify);
            }
        }
    }
}

impl Builder<'_> {
    /// Calls about the signals that libos handles, unless libos makes them.
    fn signals(&mut self, number: u32) {
        let allow = self.returning(libc::SECCOMP_RET_ALLOW);
        let notify = self.returning(libc::SECCOMP_RET_USER_NOTIF);
        let theirs = self.asm.label();
        self.asm.branch_within(Field::Ip, &self.spec.libos_text, allow, theirs);
        self.asm.bind(theirs);
        if i64::from(number) == libc::SYS_sigaltstack {
            self.asm.jump(notify);
            return;
        }
        self.asm.load(Field::Arg(0));
        let armed = libos::signals::in_mask(self.spec.armed.signals);
        let handled: BTreeSet<i32> = libos::signals::OURS.into_iter().chain(armed).collect();
        for signal in handled {
            let next = self.asm.label();
            self.asm.branch(Test::Equal(signal.unsigned_abs()), notify, next);
            self.asm.bind(next);
        }
        self.asm.jump(allow);
    }
}

const fn in_force(rule: &BuiltIn, spec: &FilterSpec) -> bool {
    !(rule.sealed && spec.mseal)
}

const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

const PR_SET_SECCOMP: u32 = libc::PR_SET_SECCOMP as u32;

const CLONE_VM: u32 = libc::CLONE_VM as u32;

/// The action that fails a call with `errno`.
#[expect(clippy::cast_sign_loss, reason = "errors are positive")]
const fn errno(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

/// The action of a rule, as seccompiler has it.
#[expect(clippy::cast_sign_loss, reason = "errors are positive")]
const fn compiled(action: Action) -> SeccompAction {
    match action {
        Action::Allow | Action::Upcall => ALLOWED,
        Action::Log => SeccompAction::Log,
        Action::Kill => SeccompAction::KillProcess,
        Action::Errno(errno) => SeccompAction::Errno(errno as i32 as u32),
    }
}

/// A whole program for one rule with conditions, on one call.
fn conditional(rule: &Rule, number: u32) -> Result<BpfProgram, seccompiler::BackendError> {
    let conditions: Result<_, _> = rule.when.iter().map(condition).collect();
    let rules = BTreeMap::from([(i64::from(number), vec![SeccompRule::new(conditions?)?])]);
    SeccompFilter::new(rules, NO_MATCH, compiled(rule.action), TargetArch::x86_64)?.try_into()
}

fn condition(condition: &Condition) -> Result<SeccompCondition, seccompiler::BackendError> {
    let width = match condition.width {
        Width::Word => SeccompCmpArgLen::Dword,
        Width::Whole => SeccompCmpArgLen::Qword,
    };
    let op = match condition.op {
        Op::Equal => SeccompCmpOp::Eq,
        Op::NotEqual => SeccompCmpOp::Ne,
        Op::Below => SeccompCmpOp::Lt,
        Op::AtMost => SeccompCmpOp::Le,
        Op::Above => SeccompCmpOp::Gt,
        Op::AtLeast => SeccompCmpOp::Ge,
        Op::Has => SeccompCmpOp::MaskedEq(condition.value),
    };
    SeccompCondition::new(condition.arg, width, op, condition.value)
}

#[cfg(test)]
mod tests;
