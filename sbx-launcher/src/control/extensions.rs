//! What is loaded, and who is asked about which system calls, in which order: `ext ls`.

use std::sync::atomic::Ordering::Relaxed;

use ext_api::calls::HOOKABLE_CALLS;
use libos::manifest::Hook;
use libos::signals::HOOKS_MAX;
use serde_json::{Value, json};

use crate::sandbox::Sandbox;
use crate::sandbox::asked::Asked;
use crate::sandbox::extensions::Life;
use crate::sandbox::terms::Terms;
use crate::supervisor::Supervisor;

/// What `ext ls` prints.
pub(super) fn list(supervisor: &Supervisor) -> Value {
    let sandbox = &supervisor.sandbox;
    let rows: Vec<Value> = sandbox
        .loaded
        .iter()
        .map(|ext| {
            let handlers: Vec<Value> = ext
                .handlers
                .iter()
                .map(|handler| {
                    let signature = sandbox.find(&handler.name).map(|(_, signature)| signature);
                    let hook = handler.hook.to_string();
                    let hook = (handler.hook != Hook::None).then_some(hook);
                    json!({ "name": handler.name, "signature": signature, "runs": hook })
                })
                .collect();
            let slot = ext.room.map(|room| room.slot);
            let faults = slot.map(|slot| sandbox.common().trouble(slot).faults.load(Relaxed));
            let heap = ext.room.map(|room| room.arena);
            let used = heap.and_then(|(offset, _)| sandbox.heap_used(offset));
            json!({ "name": ext.name, "file": ext.file, "slot": slot, "missing": ext.missing,
                    "heap": heap.map(|(_, len)| len), "heap_used": used,
                    "state": match ext.life {
                        Life::Live => "live",
                        Life::Restarting => "restarting",
                        Life::Upgrading => "upgrading",
                        Life::Quarantined(_) => "quarantined",
                    },
                    "clamps": ext.terms.clamps, "tee": ext.terms.is_tee(),
                    "restarts": ext.restarts, "faults_in_slot": faults, "handlers": handlers })
        })
        .collect();
    json!({ "extensions": rows, "asked": order(sandbox) })
}

/// Who is asked about system calls: those with the same order together.
fn order(sandbox: &Sandbox) -> Vec<Value> {
    let mut groups: Vec<(bool, Vec<Asked<'_>>, Vec<&str>)> = Vec::new();
    let calls = HOOKABLE_CALLS.iter().map(|(name, number, _)| (*name, *number as usize));
    for (name, number, after) in
        [false, true].into_iter().flat_map(|after| calls.clone().map(move |(a, b)| (a, b, after)))
    {
        let asked = sandbox.asked(number, after);
        let words = |asked: &[Asked<'_>]| asked.iter().map(|one| one.word).collect::<Vec<_>>();
        let same = groups
            .iter_mut()
            .find(|(when, known, _)| *when == after && words(known) == words(&asked));
        match same {
            _ if asked.is_empty() => {}
            Some((.., names)) => names.push(name),
            None => groups.push((after, asked, vec![name])),
        }
    }
    let group = |(after, asked, calls): &(bool, Vec<Asked<'_>>, Vec<&str>)| {
        let order: Vec<Value> =
            asked.iter().enumerate().map(|(at, one)| handler(at, one)).collect();
        json!({ "when": if *after { "after" } else { "before" }, "calls": calls, "order": order })
    };
    groups.iter().map(group).collect()
}

/// One that is asked, or would be if there were fewer before it.
fn handler(at: usize, asked: &Asked<'_>) -> Value {
    json!({ "handler": asked.handler, "by_policy": asked.terms.is_none(),
            "tee": asked.terms.is_some_and(Terms::is_tee),
            "clamps": asked.terms.map_or(&[][..], |terms| &terms.clamps[..]),
            "too_many": at >= HOOKS_MAX })
}
