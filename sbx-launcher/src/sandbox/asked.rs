//! Which handlers are asked about what programs do, and in which order: by their own hooks, and by policies.
#![expect(unsafe_code, reason = "writes the tables through the supervisor's alias")]

use std::rc::Rc;
use std::sync::atomic::Ordering;

use ext_api::calls::SET_WORDS;
use ext_api::limits::CLAMPS_MAX;
use libos::clamps::{ClampTable, NARROWED, TEE, clamp_word, handle_of};
use libos::layout::{CALLS_OFFSET, CLAMPS_OFFSET, HOOKS_OFFSET};
use libos::manifest::{self, Hook};
use libos::signals::{CallTable, HookTable, MUST_DECIDE, is_looked_at};

use super::extensions::Loaded;
use super::ports::free_number;
use super::terms::Terms;
use super::{Sandbox, SandboxError};
use crate::filter::Armed;
use crate::policy::syscalls::name_of;

/// A handler that is asked about a call.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// `extension.handler`.
    pub handler: &'a str,
    /// On what terms; none if a policy asks.
    pub terms: Option<&'a Terms>,
    /// As libos finds it in the call table.
    pub word: u64,
}

impl Sandbox {
    /// Signals and system calls that handlers are hooked to.
    #[must_use]
    pub fn armed(&self) -> Armed {
        let mut armed = Armed::default();
        for (hook, _) in self.hooked(|_| true) {
            match hook {
                Hook::Signal { number } => armed.signals |= 1 << number,
                Hook::Calls { set, .. } => {
                    armed.calls.iter_mut().zip(set).for_each(|(word, asked)| *word |= asked);
                }
                _ => {}
            }
        }
        let for_sockets = self.carries_sockets.then_some(libos::sockets::CALLS);
        let by_policy = self.by_policy.iter().map(|(_, set)| *set);
        for set in by_policy.chain(for_sockets) {
            armed.calls.iter_mut().zip(set).for_each(|(word, asked)| *word |= asked);
        }
        armed
    }

    /// A policy has a handler decide the calls of `set`, in every program of the sandbox that is started
    /// from now on.
    ///
    /// # Errors
    /// There is no such handler, or it is for something else.
    pub fn hook_by_policy(
        &mut self,
        handler: &str,
        set: [u64; SET_WORDS],
    ) -> Result<(), SandboxError> {
        let wrong = |why: &str| Err(SandboxError::Refused(format!("policy: {handler} {why}")));
        let of = handler.split_once('.').map(|(name, _)| name);
        match self.find(handler) {
            None if self.loaded.iter().any(|known| Some(&known.name[..]) == of) => {
                return wrong("is no handler of that extension, which is loaded (see ext ls)");
            }
            None => return wrong("is not loaded: load its extension first (--ext, or ext load)"),
            Some((_, signature)) if !signature.starts_with("(call: call)") => {
                return wrong("is no handler for system calls: #[on(syscall = \"\")] makes it one");
            }
            Some(_) => {}
        }
        let known = self.loaded.iter().find(|known| Some(&known.name[..]) == of);
        if known.is_some_and(|known| known.terms.is_narrowed()) {
            return wrong("has to decide, so its extension cannot have --clamp or --tee");
        }
        let new = (handler.to_owned(), set);
        if !self.by_policy.contains(&new) {
            self.by_policy.push(new);
            self.changed();
        }
        Ok(())
    }

    /// Does a policy ask a handler of this extension?
    pub(crate) fn is_asked_by_policy(&self, extension: &str) -> bool {
        let of = |handler: &str| handler.split_once('.').map(|(name, _)| name.to_owned());
        self.by_policy.iter().any(|(handler, _)| of(handler).as_deref() == Some(extension))
    }

    /// Have the hook table say what is loaded now.
    pub fn publish_hooks(&mut self) {
        if self.hooks_of == Some(self.changes) {
            return;
        }
        // A table that was never written says that nothing is hooked; to write that takes its memory.
        if self.hooks_of.is_none() && self.armed() == Armed::default() {
            return;
        }
        self.hooks_of = Some(self.changes);
        let at = self.zones.control.alias().wrapping_add(HOOKS_OFFSET).cast::<HookTable>();
        // SAFETY: the control zone has room for it there; all atomics.
        let table = unsafe { &*at };
        for (number, row) in (0..).zip(&table.signals) {
            let hooks = self.hooked(|hook| hook == Hook::Signal { number });
            let handles = hooks.map(|(_, handler)| handler.handle).chain(std::iter::repeat(0));
            row.iter().zip(handles).for_each(|(to, handle)| to.store(handle, Ordering::Release));
        }
        let at = self.zones.control.alias().wrapping_add(CALLS_OFFSET).cast::<CallTable>();
        // SAFETY: as above.
        let table = unsafe { &*at };
        // Nobody takes the short way while the rows change.
        table.only.iter().for_each(|only| only.store(0, Ordering::Release));
        let rows = [(false, &table.before), (true, &table.after)];
        let rows = rows.into_iter().flat_map(|(when, rows)| {
            rows.iter().enumerate().map(move |(number, row)| (when, number, row))
        });
        for (when, number, row) in rows {
            let asked = self.row_of(number, when);
            if asked.len() > row.len() {
                let (most, name) = (row.len(), name_of(number as u32).unwrap_or("?"));
                let text = format!("sbx: of the handlers hooked to {name} only {most} are asked\n");
                self.common().log().append(text.as_bytes());
            }
            let words = asked.into_iter().chain(std::iter::repeat(0));
            row.iter().zip(words).for_each(|(to, word)| to.store(word, Ordering::Release));
        }
        for (number, only) in table.only.iter().enumerate() {
            only.store(self.only_asked(table, number).unwrap_or(0), Ordering::Release);
        }
        self.hooked(|hook| matches!(hook, Hook::Calls { after: false, .. }))
            .for_each(|(_, handler)| self.publish_bare(handler.row));
    }

    /// Who is asked about call `number`, in order: tees, policies, the others; more of them than libos asks, if
    /// there are.
    #[must_use]
    pub fn asked(&self, number: usize, after: bool) -> Vec<Asked<'_>> {
        let has = |set: [u64; SET_WORDS]| set[number / 64] >> (number % 64) & 1 == 1;
        let is_asked = |terms: &Terms, hook: Hook| match terms.within(hook) {
            Hook::Calls { set, after: when } => when == after && has(set),
            _ => false,
        };
        let handlers = self.loaded.iter().flat_map(|known| {
            let asked = known.handlers.iter().filter(|one| is_asked(&known.terms, one.hook));
            asked.map(move |one| (known, &one.name[..], self.handle_of(one.row)))
        });
        let hooked = handlers.map(|(known, handler, handle)| {
            let word = handle | narrowing(known);
            Asked { handler, terms: Some(&known.terms), word }
        });
        let by_policy = self.by_policy.iter().filter(|(_, set)| !after && has(*set));
        let by_policy = by_policy.filter_map(|(handler, _)| {
            Some(Asked { handler, terms: None, word: self.find(handler)?.0 | MUST_DECIDE })
        });
        let (mut asked, others): (Vec<_>, Vec<_>) = hooked.partition(|one| one.word & TEE != 0);
        asked.extend(by_policy.chain(others));
        asked
    }

    /// The same as a row of the table has it: those of policies, then tees, then the others.
    fn row_of(&self, number: usize, after: bool) -> Vec<u64> {
        let asked = self.asked(number, after);
        let is_narrowed = asked.iter().any(|one| one.terms.is_some_and(Terms::is_narrowed));
        let mut words: Vec<u64> = asked.iter().map(|one| one.word).collect();
        words.sort_by_key(|word| word & MUST_DECIDE == 0);
        if is_narrowed {
            words[0] |= NARROWED;
        }
        words
    }

    /// The number of a clamp for an extension that is to be loaded on these terms, if they need one: written, and
    /// not to be changed from now on.
    pub(super) fn clamp(
        &mut self,
        extension: &manifest::Extension,
        terms: &Terms,
    ) -> Result<Option<Rc<usize>>, SandboxError> {
        let hooks = extension.handlers.iter().map(|one| one.hook);
        terms.check_hooks(&extension.name, hooks).map_err(SandboxError::Refused)?;
        if terms.clamps.is_empty() {
            return Ok(None);
        }
        let number = free_number(&mut self.clamp_numbers, CLAMPS_MAX, 0).ok_or_else(|| {
            SandboxError::Refused(format!("{CLAMPS_MAX} extensions are clamped already"))
        })?;
        let at = self.zones.control.alias().wrapping_add(CLAMPS_OFFSET).cast::<ClampTable>();
        // SAFETY: the control zone has room for it there; all atomics.
        let clamp = unsafe { &(&(*at).clamps)[*number] };
        terms.write(clamp).map_err(SandboxError::Refused)?;
        Ok(Some(number))
    }

    /// The tables may say what another supervisor was about to write.
    pub(super) fn forget_published(&mut self) {
        if self.hooks_of.is_some() {
            self.changed();
        }
    }

    /// The one handler to be asked about call `number`, if nothing else is to be done with it.
    fn only_asked(&self, table: &CallTable, number: usize) -> Option<u64> {
        let [first, second, after] =
            [&table.before[number][0], &table.before[number][1], &table.after[number][0]]
                .map(|handle| handle.load(Ordering::Relaxed));
        let carried = libos::sockets::CALLS[number / 64] >> (number % 64) & 1 == 1;
        let is_only = second == 0 && after == 0 && first == handle_of(first);
        let looked_at = is_looked_at(number) || self.carries_sockets && carried;
        (first != 0 && is_only && !looked_at).then_some(first)
    }
}

/// What the word of a handler says besides its handle.
fn narrowing(known: &Loaded) -> u64 {
    let tee = if known.terms.is_tee() { TEE } else { 0 };
    tee | known.clamp.as_ref().map_or(0, |number| clamp_word(**number))
}
