//! Which handlers are asked about what programs do: by their own hooks, and by policies.
#![expect(unsafe_code, reason = "writes the tables through the supervisor's alias")]

use std::sync::atomic::Ordering;

use ext_api::calls::SET_WORDS;
use libos::layout::{CALLS_OFFSET, HOOKS_OFFSET};
use libos::manifest::Hook;
use libos::signals::{CallTable, HookTable, MUST_DECIDE, is_looked_at};

use super::{Sandbox, SandboxError};
use crate::filter::Armed;
use crate::policy::syscalls::name_of;

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
        match self.find(handler) {
            None => return wrong("is not loaded: load its extension first (--ext)"),
            Some((_, signature)) if !signature.starts_with("(call: call)") => {
                return wrong("is no handler for system calls: #[on(syscall = \"\")] makes it one");
            }
            Some(_) => {}
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
            let has = |set: [u64; 8]| set[number / 64] >> (number % 64) & 1 == 1;
            let hooks = self.hooked(|hook| match hook {
                Hook::Calls { set, after } => after == when && has(set),
                _ => false,
            });
            let asked = self.by_policy.iter().filter(|(_, set)| !when && has(*set));
            let must = asked.filter_map(|(name, _)| Some(self.find(name)?.0 | MUST_DECIDE));
            let handles: Vec<u64> = must.chain(hooks.map(|(_, handler)| handler.handle)).collect();
            if handles.len() > row.len() {
                let (most, name) = (row.len(), name_of(number as u32).unwrap_or("?"));
                let text = format!("sbx: of the handlers hooked to {name} only {most} are asked\n");
                self.common().log().append(text.as_bytes());
            }
            let handles = handles.into_iter().chain(std::iter::repeat(0));
            row.iter().zip(handles).for_each(|(to, handle)| to.store(handle, Ordering::Release));
        }
        for (number, only) in table.only.iter().enumerate() {
            only.store(self.only_asked(table, number).unwrap_or(0), Ordering::Release);
        }
        self.hooked(|hook| matches!(hook, Hook::Calls { after: false, .. }))
            .for_each(|(_, handler)| self.publish_bare(handler.row));
    }

    /// The one handler to be asked about call `number`, if nothing else is to be done with it.
    fn only_asked(&self, table: &CallTable, number: usize) -> Option<u64> {
        let [first, second, after] =
            [&table.before[number][0], &table.before[number][1], &table.after[number][0]]
                .map(|handle| handle.load(Ordering::Relaxed));
        let carried = libos::sockets::CALLS[number / 64] >> (number % 64) & 1 == 1;
        let is_only = second == 0 && after == 0 && first & MUST_DECIDE == 0;
        let looked_at = is_looked_at(number) || self.carries_sockets && carried;
        (first != 0 && is_only && !looked_at).then_some(first)
    }
}
