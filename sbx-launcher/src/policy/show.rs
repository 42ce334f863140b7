//! A policy as a table that people read.

use super::Policy;
use super::rule::{Action, Rule};
use crate::filter::built_in::{BUILT_IN, STRUCTURE};

/// Every rule of `policy` in the order in which they are looked at, after those that are part of
/// every filter.
#[must_use]
pub fn show(policy: &Policy) -> String {
    let mut rows = vec![["SYSTEM CALL", "WHEN", "ACTION", "FROM", "REASON"].map(str::to_owned)];
    rows.extend(STRUCTURE.iter().map(|[calls, when, action, reason]| {
        [calls, when, action, &"built in", reason].map(|cell| (*cell).to_owned())
    }));
    rows.extend(BUILT_IN.iter().map(|rule| {
        let when = rule.when();
        [rule.name, &when, "errno:EPERM", "built in", rule.reason].map(str::to_owned)
    }));
    rows.extend(policy.rules().iter().map(row));
    table(&rows)
}

fn row(rule: &Rule) -> [String; 5] {
    let when: Vec<_> = rule.when.iter().map(ToString::to_string).collect();
    let when = if when.is_empty() { "always".to_owned() } else { when.join(" and ") };
    let action = match rule.action {
        Action::Upcall => format!("upcall:{}", rule.handler),
        other => other.to_string(),
    };
    [rule.names.join(" "), when, action, rule.origin.clone(), rule.reason.clone()]
}

/// Columns as wide as their widest cell, two spaces between; the last is as wide as it is.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}
