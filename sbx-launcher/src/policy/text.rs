//! What the file of a policy says, as it stands there. The build script reads the built-in ones so.

use serde::Deserialize;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyText {
    pub version: Spanned<i64>,
    #[serde(default)]
    pub syscall: Vec<Spanned<RuleText>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a rule, as [[syscall]] begins one")]
pub(super) struct RuleText {
    pub names: Spanned<Vec<Spanned<String>>>,
    pub action: Spanned<String>,
    pub reason: Spanned<String>,
    #[serde(default)]
    pub when: Vec<Spanned<ConditionText>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a condition, as in { arg = 0, op = \"==\", value = 1 }")]
pub(super) struct ConditionText {
    pub arg: i64,
    pub op: String,
    pub value: ValueText,
    pub bits: Option<i64>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`value` is a number or the name of a constant")]
pub(super) enum ValueText {
    Number(i64),
    Name(String),
}
