//! Policies: which system calls a participant is refused, and why.
//!
//! A policy is a TOML file. Rules are looked at in the order of the file, and the first that
//! matches a call decides; a call that no rule matches goes on. A policy that is merged in later
//! is looked at first, so that an operator can lift a rule of the base policy by an `allow`.
//!
//! ```toml
//! version = 1
//!
//! [[syscall]]
//! names = ["ptrace", "@keyring"]          # system calls, and sets of them
//! action = "errno:EPERM"                  # or "kill", "log", "allow"
//! reason = "this service debugs nobody"   # shown to whoever asks why
//!
//! [[syscall]]
//! names = ["ioctl"]
//! action = "errno:EPERM"
//! when = [{ arg = 1, op = "==", value = "TIOCSTI" }]
//! reason = "types into the terminal of whoever started this"
//! ```
//!
//! A condition compares 32 bits when its value fits them (the kernel reads that much of an `int`,
//! and a caller may put anything above), else 64; `bits = 64` asks for all of an argument.

use std::fs;
use std::io::Read;
use std::path::Path;

use ext_api::calls::SET_WORDS;

use crate::filter::built_in;

mod error;
mod names;
mod parse;
mod rule;
mod show;
pub mod syscalls;
mod text;

pub use error::{PolicyError, Problem};
pub use rule::{Action, Condition, Op, Rule, Width};
pub use show::show;
pub(crate) use show::table;

/// Conditions of one rule: two on each argument.
pub const CONDITIONS_MAX: usize = 12;

/// Longest policy that is read, in bytes: larger ones do not fit a filter by far.
const FILE_LEN_MAX: u64 = 1 << 20;

const BASE: &str = include_str!("../policies/base.toml");
const ARMED: &str = include_str!("../policies/armed.toml");

/// Rules, in the order in which they are looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
}

impl Policy {
    /// Reads a policy. `file_name` is what errors and origins call it.
    ///
    /// # Errors
    /// The first thing in it that is wrong, with its line.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, PolicyError> {
        parse::parse(text, file_name)
    }

    /// Reads a policy from a file.
    ///
    /// # Errors
    /// As [`Policy::parse`], and what the kernel says when the file is opened or read.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let file = path.display().to_string();
        let unreadable = |error| PolicyError {
            file: file.clone(),
            line: 0,
            problem: Problem::Unreadable(error),
        };
        let text = read_limited(path).map_err(unreadable)?;
        Self::parse(&text, &file)
    }

    /// The rules that every sandbox has.
    ///
    /// # Errors
    /// None in a launcher that passed its tests: the text is part of it.
    pub fn base() -> Result<Self, PolicyError> {
        parse::base()
    }

    /// What a sandbox goes by: the base policy, with `file` merged in.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn in_force(file: Option<&Path>) -> Result<Self, PolicyError> {
        let base = Self::base()?;
        match file {
            Some(path) => Ok(base.merge(Self::read(path)?)),
            None => Ok(base),
        }
    }

    /// The calls that handlers decide, by handler: a bit per number.
    pub fn upcalls(&self) -> impl Iterator<Item = (&str, [u64; SET_WORDS])> {
        let asking = self.rules.iter().filter(|rule| rule.action == Action::Upcall);
        asking.map(|rule| {
            let mut set = [0; SET_WORDS];
            rule.calls.iter().for_each(|call| {
                set[call.number as usize / 64] |= 1 << (call.number % 64);
            });
            (rule.handler.as_str(), set)
        })
    }

    /// This policy for a sandbox where system calls are hooked.
    ///
    /// # Errors
    /// The built-in text is damaged.
    pub fn for_hooked(self) -> Result<Self, PolicyError> {
        Ok(self.merge(parse::armed()?))
    }

    /// This policy with `later` looked at first.
    #[must_use]
    pub fn merge(self, later: Self) -> Self {
        let mut rules = later.rules;
        rules.extend(self.rules);
        Self { rules }
    }

    /// The rules, in the order in which they are looked at.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule that decides a call, if one does.
    #[must_use]
    pub fn decides(&self, number: u32, args: &[u64; 6]) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.matches(number, args))
    }

    /// Rules none of whose calls ever reach them, each with an earlier one that decides first.
    fn shadowed(&self) -> impl Iterator<Item = (&Rule, &Rule)> {
        self.rules.iter().enumerate().filter_map(|(index, rule)| {
            let mut deciders = rule.calls.iter().map(|call| {
                self.rules[..index].iter().find(|r| r.when.is_empty() && r.calls.contains(call))
            });
            let first = deciders.next()??;
            deciders.all(|decider| decider.is_some()).then_some((rule, first))
        })
    }
}

fn read_limited(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    // What has no length, as a pipe, may have no end either.
    let len = fs::File::open(path)?.take(FILE_LEN_MAX + 1).read_to_string(&mut text)?;
    if len as u64 > FILE_LEN_MAX {
        let text = format!("a policy has at most {FILE_LEN_MAX} bytes");
        return Err(std::io::Error::other(text));
    }
    Ok(text)
}

/// `policy check FILE`: what the file amounts to, and which of its rules can never match.
///
/// # Errors
/// What is wrong with the file.
pub fn check(path: &Path) -> Result<String, PolicyError> {
    let policy = Policy::read(path)?;
    let mut calls: Vec<_> = policy.rules.iter().flat_map(|rule| &rule.calls).collect();
    calls.sort_unstable();
    calls.dedup();
    let (rules, calls) = (policy.rules.len(), calls.len());
    let mut text = format!("{}: {rules} rules on {calls} system calls\n", path.display());
    for (rule, first) in policy.shadowed() {
        let (at, first) = (&rule.origin, &first.origin);
        text += &format!("{at}: never matches: the rule at {first} decides these calls first\n");
    }
    for rule in policy.rules.iter().filter(|rule| rule.action == Action::Allow) {
        for name in rule.calls.iter().map(|call| call.name).filter(|name| built_in::guards(name)) {
            text += &format!("{}: a built-in rule on {name} stays in force\n", rule.origin);
        }
    }
    Ok(text)
}

/// `policy show [FILE]`: every rule in force, with `file` merged into the base policy.
///
/// # Errors
/// What is wrong with the file.
pub fn show_file(file: Option<&Path>) -> Result<String, PolicyError> {
    Ok(show(&Policy::in_force(file)?))
}

#[cfg(test)]
mod tests;
