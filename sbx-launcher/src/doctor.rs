//! What this machine can do for a sandbox: each feature is tried, not guessed from a version.
//!
//! Trying changes nothing that outlasts the probe: what needs a process (ptrace, a notification)
//! is tried in a forked child.

use serde::Serialize;

mod calls;
mod children;
mod machine;
mod uring;

pub use calls::has_mseal;

use crate::policy::table as columns;

/// What `guard` is beyond `coop`, and `strict` beyond that.
const GUARD: [&str; 3] = [
    "data that can be written inside of upcalls only",
    "a Landlock scope per participant",
    "no tracing between participants",
];
const STRICT: [&str; 3] = [
    "data that participants cannot write at all",
    "no memory that was writable becomes code",
    "extensions in Wasm",
];

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// One entry per feature.
    pub features: Vec<Feature>,
    /// One entry per hardening level.
    pub levels: Vec<Level>,
}

/// One feature of this machine.
#[derive(Debug, Serialize)]
pub struct Feature {
    /// What it is called.
    pub name: &'static str,
    /// It works, for this user, now.
    pub present: bool,
    /// What was seen.
    pub seen: String,
    /// What a sandbox does without it.
    pub without: &'static str,
    /// How to get it.
    pub advice: &'static str,
}

/// Whether a hardening level can be enforced here.
#[derive(Debug, Serialize)]
pub struct Level {
    /// `coop`, `guard` or `strict`.
    pub name: &'static str,
    /// It can.
    pub enforceable: bool,
    /// What is in the way.
    pub missing: Vec<String>,
}

/// What one trial came to.
#[derive(Debug)]
struct Found {
    present: bool,
    seen: String,
}

impl Found {
    fn new(present: bool, seen: impl Into<String>) -> Self {
        Self { present, seen: seen.into() }
    }

    /// Present if the call succeeded; else its error is what was seen.
    fn from_result<T>(result: &std::io::Result<T>) -> Self {
        match result {
            Ok(_) => Self::new(true, "works"),
            Err(error) => Self::new(false, error.to_string()),
        }
    }
}

/// A feature that can be asked for.
struct Question {
    name: &'static str,
    ask: fn() -> Found,
    /// `coop` cannot do without it.
    required: bool,
    without: &'static str,
    advice: &'static str,
}

const fn required(
    name: &'static str,
    ask: fn() -> Found,
    without: &'static str,
    advice: &'static str,
) -> Question {
    Question { name, ask, required: true, without, advice }
}

const fn useful(
    name: &'static str,
    ask: fn() -> Found,
    without: &'static str,
    advice: &'static str,
) -> Question {
    Question { name, ask, required: false, without, advice }
}

const QUESTIONS: [Question; 20] = [
    required("kernel", machine::kernel, "nothing works", "Linux 5.9 or later, on x86-64"),
    useful(
        "mseal",
        calls::mseal,
        "the filter alone protects the region's mappings, at some cost per mapping call",
        "Linux 6.10 or later",
    ),
    useful(
        "Landlock",
        calls::landlock,
        "participants cannot be kept from each other's memory (level guard)",
        "Linux 6.12 or later for scopes; boot with landlock among lsm=",
    ),
    required(
        "seccomp notifications",
        calls::user_notif,
        "execs and forks cannot be followed: no program starts",
        "Linux 5.5 or later with CONFIG_SECCOMP_FILTER",
    ),
    required(
        "descriptors by notification",
        children::addfd,
        "a new program cannot be given the region: no program starts",
        "Linux 5.9 or later; not inside another sandbox or seccomp listener",
    ),
    useful(
        "killable notifications",
        calls::wait_killable,
        "a signal during an exec makes the supervisor start over with it",
        "Linux 5.19 or later",
    ),
    required(
        "ptrace",
        children::ptrace,
        "programs join by a preloaded library only: none that are static, and no hooks on their calls",
        "sysctl kernel.yama.ptrace_scope=1; in a container, a seccomp profile that allows ptrace",
    ),
    useful(
        "Yama scope",
        machine::yama,
        "at 2 only a privileged launcher may trace, at 3 nobody",
        "sysctl kernel.yama.ptrace_scope=1",
    ),
    required(
        "sealed memory files",
        calls::seals,
        "code and dispatch tables could be changed by a participant",
        "Linux 5.1 or later with CONFIG_MEMFD_CREATE",
    ),
    useful(
        "huge tmpfs",
        calls::huge_tmpfs,
        "the data zone is an ordinary memory file: slower to populate and to reach at random",
        "run the launcher as root, or leave it: collapse is tried instead",
    ),
    useful(
        "collapse",
        calls::collapse,
        "without huge pages, random access to the data zone is slower",
        "Linux 6.1 or later with transparent huge pages",
    ),
    useful(
        "global membarrier",
        calls::membarrier,
        "the gate publishes by an exchange: a fraction of a nanosecond per upcall",
        "Linux 4.16 or later",
    ),
    useful(
        "mapping queries",
        calls::procmap_query,
        "mappings are found by reading text: slower exec following",
        "Linux 6.11 or later",
    ),
    required(
        "pidfd",
        calls::pidfd,
        "the deaths of participants cannot be noticed safely",
        "Linux 5.3 or later",
    ),
    required(
        "rdfsbase",
        calls::fsgsbase,
        "the gate cannot find its thread without a system call",
        "Linux 5.9 or later on a processor with FSGSBASE; do not boot with nofsgsbase",
    ),
    useful(
        "protection keys",
        calls::protection_keys,
        "the data zone cannot be read-only outside of upcalls (level guard)",
        "a processor with PKU (most servers since 2017), and a hypervisor that passes it on",
    ),
    useful(
        "userfaultfd",
        calls::userfaultfd,
        "nothing: participants are refused it",
        "no need to do anything",
    ),
    useful(
        "syscall user dispatch",
        calls::user_dispatch,
        "system calls are discovered by the filter's trap alone",
        "Linux 5.11 or later",
    ),
    required(
        "address range",
        machine::address_range,
        "the region cannot lie at one address in every process",
        "raise or lift the limit on address space (ulimit -v unlimited)",
    ),
    useful(
        "memory limits",
        machine::memory_limits,
        "loading an extension fails when its arena does not fit the limit",
        "raise ulimit -v, or memory.max of the control group that is named",
    ),
];

/// Tries everything. Forks, and takes some milliseconds.
#[must_use]
pub fn probe() -> Report {
    let mut missing = Vec::new();
    let mut features = Vec::new();
    for question in &QUESTIONS {
        let Found { present, seen } = (question.ask)();
        if question.required && !present {
            missing.push(format!("{}: {}", question.name, question.advice));
        }
        let Question { name, without, advice, .. } = *question;
        features.push(Feature { name, present, seen, without, advice });
    }
    features.extend(uring::features());
    Report { features, levels: levels(missing) }
}

fn levels(missing_for_coop: Vec<String>) -> Vec<Level> {
    let level =
        |name, missing: Vec<String>| Level { name, enforceable: missing.is_empty(), missing };
    let beyond = |level: &[String], more: &[&str]| -> Vec<String> {
        let more = more.iter().map(|what| format!("{what}: not in this version"));
        level.iter().cloned().chain(more).collect()
    };
    let guard = beyond(&missing_for_coop, &GUARD);
    let strict = beyond(&guard, &STRICT);
    vec![level("coop", missing_for_coop), level("guard", guard), level("strict", strict)]
}

/// What is in the way of a hardening level here; nothing if it can be enforced. Tries everything.
#[must_use]
pub fn missing_for(level: &str) -> Vec<String> {
    let found = probe().levels.into_iter().find(|known| known.name == level);
    found.map_or_else(|| vec![format!("no level is called {level}")], |known| known.missing)
}

/// The report for people: what is there, then what is missing and what to do about it.
#[must_use]
pub fn table(report: &Report) -> String {
    let mut rows = vec![["FEATURE", "HERE", "SEEN"].map(str::to_owned)];
    rows.extend(report.features.iter().map(|feature| {
        let present = if feature.present { "yes" } else { "no" };
        [feature.name.to_owned(), present.to_owned(), feature.seen.clone()]
    }));
    let mut text = columns(&rows);
    for feature in report.features.iter().filter(|feature| !feature.present) {
        let Feature { name, without, advice, .. } = feature;
        text += &format!("\nno {name}: {without}\n    to have it: {advice}\n");
    }
    text.push('\n');
    for level in &report.levels {
        let verdict =
            if level.enforceable { "enforceable".to_owned() } else { level.missing.join("; ") };
        text += &format!("level {}: {verdict}\n", level.name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{levels, probe, table};

    #[test]
    fn every_feature_says_what_was_seen_and_what_to_do() {
        let report = probe();
        let shown = table(&report);
        for feature in &report.features {
            assert!(!feature.seen.is_empty(), "{}", feature.name);
            assert!(shown.contains(feature.name) && shown.contains(&feature.seen), "{shown}");
            assert_eq!(shown.contains(&format!("\nno {}: ", feature.name)), !feature.present);
        }
        let mut names: Vec<_> = report.features.iter().map(|feature| feature.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(shown.contains("a Landlock scope per participant: not in this version"), "{shown}");
    }

    #[test]
    fn a_level_is_enforceable_when_nothing_is_missing() {
        let all = levels(vec![]);
        assert!(all[0].enforceable && !all[1].enforceable && !all[2].enforceable);
        assert!(all[2].missing.len() > all[1].missing.len());
        let without = levels(vec!["ptrace: allow it".to_owned()]);
        assert!(without.iter().all(|level| !level.enforceable));
    }

    #[test]
    fn json_has_the_same_features() {
        let report = probe();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["features"].as_array().unwrap().len(), report.features.len());
        assert_eq!(json["levels"][0]["name"], "coop");
    }
}
