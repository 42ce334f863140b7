//! From the text of a policy to rules.

use ext_api::calls::name_of;
use toml::Spanned;

use super::error::{PolicyError, Problem};
use super::rule::{Action, Condition, OPS, Rule, Width};
use super::text::{ConditionText, PolicyText, RuleText, ValueText};
use super::{ARMED, BASE, CONDITIONS_MAX, Policy, names};

/// A file while it is read: turns positions into lines.
struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset);
        1 + before.filter(|byte| **byte == b'\n').count()
    }

    fn error(&self, offset: usize, problem: Problem) -> PolicyError {
        PolicyError { file: self.file.to_owned(), line: self.line(offset), problem }
    }

    fn policy(&self) -> Result<Policy, PolicyError> {
        let parsed: PolicyText = toml::from_str(self.text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            self.error(offset, Problem::Syntax(error.message().to_owned()))
        })?;
        self.check(&parsed)
    }

    fn check(&self, parsed: &PolicyText) -> Result<Policy, PolicyError> {
        if *parsed.version.get_ref() != 1 {
            let problem = Problem::Version(*parsed.version.get_ref());
            return Err(self.error(parsed.version.span().start, problem));
        }
        let rules: Result<_, _> = parsed.syscall.iter().map(|rule| self.rule(rule)).collect();
        Ok(Policy { rules: rules? })
    }

    fn rule(&self, rule: &Spanned<RuleText>) -> Result<Rule, PolicyError> {
        let text = rule.get_ref();
        let mut calls = Vec::new();
        for name in text.names.get_ref() {
            let found = names::syscalls(name.get_ref()).ok_or_else(|| {
                let nearest = names::nearest_syscall(name.get_ref());
                let problem = Problem::UnknownSyscall { name: name.get_ref().clone(), nearest };
                self.error(name.span().start, problem)
            })?;
            calls.extend(found);
        }
        if calls.is_empty() {
            return Err(self.error(text.names.span().start, Problem::NoNames));
        }
        calls.sort_unstable();
        calls.dedup();
        if text.reason.get_ref().trim().is_empty() {
            return Err(self.error(text.reason.span().start, Problem::NoReason));
        }
        if text.when.len() > CONDITIONS_MAX {
            let problem = Problem::TooManyConditions(text.when.len());
            return Err(self.error(rule.span().start, problem));
        }
        let when: Result<_, _> =
            text.when.iter().map(|condition| self.condition(condition)).collect();
        let (action, handler) = self.action(&text.action)?;
        if action == Action::Upcall {
            if !text.when.is_empty() {
                return Err(self.error(rule.span().start, Problem::UpcallWithConditions));
            }
            let hookable = |number: u32| name_of(u64::from(number)).is_some();
            if let Some(call) = calls.iter().find(|call| !hookable(call.number)) {
                let problem = Problem::NotHookable(call.name.to_owned());
                return Err(self.error(text.names.span().start, problem));
            }
        }
        Ok(Rule {
            names: text.names.get_ref().iter().map(|name| name.get_ref().clone()).collect(),
            calls,
            action,
            handler,
            when: when?,
            reason: text.reason.get_ref().clone(),
            origin: format!("{}:{}", self.file, self.line(rule.span().start)),
        })
    }

    /// An action, and the handler that it names.
    fn action(&self, text: &Spanned<String>) -> Result<(Action, String), PolicyError> {
        let Some(handler) = text.get_ref().strip_prefix("upcall:") else {
            return Ok((self.plain_action(text)?, String::new()));
        };
        match handler.split_once('.') {
            Some((extension, name)) if !extension.is_empty() && !name.is_empty() => {
                Ok((Action::Upcall, handler.to_owned()))
            }
            _ => Err(self.error(text.span().start, Problem::NoHandler(handler.to_owned()))),
        }
    }

    fn plain_action(&self, text: &Spanned<String>) -> Result<Action, PolicyError> {
        let refuse = |problem| self.error(text.span().start, problem);
        let name = text.get_ref().as_str();
        match (name, name.strip_prefix("errno:")) {
            ("allow", _) => Ok(Action::Allow),
            ("log", _) => Ok(Action::Log),
            ("kill", _) => Ok(Action::Kill),
            (_, Some(errno)) => names::errno(errno).map(Action::Errno).ok_or_else(|| {
                let nearest = names::nearest_errno(errno);
                refuse(Problem::UnknownErrno { name: errno.to_owned(), nearest })
            }),
            _ => Err(refuse(Problem::UnknownAction(name.to_owned()))),
        }
    }

    fn condition(&self, text: &Spanned<ConditionText>) -> Result<Condition, PolicyError> {
        condition(text.get_ref()).map_err(|problem| self.error(text.span().start, problem))
    }
}

fn condition(text: &ConditionText) -> Result<Condition, Problem> {
    let arg = u8::try_from(text.arg).ok().filter(|arg| *arg < 6);
    let op = OPS.iter().find(|(name, _)| *name == text.op);
    let number = number(&text.value)?;
    let fits = i64::from(i32::MIN) <= number && number <= i64::from(u32::MAX);
    let width = match text.bits {
        Some(32) if !fits => return Err(Problem::TooWide(number)),
        Some(32) => Width::Word,
        Some(64) => Width::Whole,
        None if fits => Width::Word,
        None => Width::Whole,
        Some(bits) => return Err(Problem::NoSuchWidth(bits)),
    };
    let mask = if width == Width::Word { u64::from(u32::MAX) } else { u64::MAX };
    Ok(Condition {
        arg: arg.ok_or(Problem::NoSuchArg(text.arg))?,
        op: op.ok_or_else(|| Problem::UnknownOp(text.op.clone()))?.1,
        value: number.cast_unsigned() & mask,
        width,
    })
}

fn number(value: &ValueText) -> Result<i64, Problem> {
    match value {
        ValueText::Number(number) => Ok(*number),
        ValueText::Name(name) => {
            let known = names::constant(name).map(u64::cast_signed);
            known.ok_or_else(|| {
                let nearest = names::nearest_constant(name);
                Problem::UnknownConstant { name: name.clone(), nearest }
            })
        }
    }
}

/// Rules of the policy `text`; `file` is what errors call it.
pub(super) fn parse(text: &str, file: &str) -> Result<Policy, PolicyError> {
    Source { file, text }.policy()
}

/// The rules that every sandbox has. Their text was read when the launcher was built: that takes a
/// twentieth of a launch.
pub(super) fn base() -> Result<Policy, PolicyError> {
    let parsed = include!(concat!(env!("OUT_DIR"), "/base.rs"));
    Source { file: "base policy", text: BASE }.check(&parsed)
}

/// As [`base`], those that are added where system calls are hooked.
pub(super) fn armed() -> Result<Policy, PolicyError> {
    let parsed = include!(concat!(env!("OUT_DIR"), "/armed.rs"));
    Source { file: "armed.toml (built in)", text: ARMED }.check(&parsed)
}
