//! Policies: what is read, what is refused, who decides.

use std::path::Path;

use super::{Action, Policy, check, show, show_file};

fn number(name: &str) -> u32 {
    super::syscalls::by_name(name).expect(name).number
}

fn refusal(text: &str) -> String {
    Policy::parse(text, "my.toml").expect_err(text).to_string()
}

fn rule(body: &str) -> String {
    format!("version = 1\n\n[[syscall]]\n{body}")
}

#[test]
fn the_base_policy_decides_what_it_should() {
    let base = Policy::base().unwrap();
    let action = |name, arg0| {
        let rule = base.decides(number(name), &[arg0, 0, 0, 0, 0, 0]);
        rule.map_or_else(|| "none".into(), |rule| rule.action.to_string())
    };
    assert_eq!(action("io_uring_setup", 0), "errno:ENOSYS");
    assert_eq!(action("userfaultfd", 0), "errno:EPERM");
    assert_eq!(action("modify_ldt", 0), "errno:EPERM");
    assert_eq!(action("process_madvise", 0), "errno:EPERM");
    assert_eq!(action("personality", 0x0040_0000), "errno:EPERM");
    assert_eq!(action("personality", 0xffff_0000_0040_0000), "errno:EPERM");
    assert_eq!(action("personality", 0xffff_ffff), "none");
    assert_eq!(action("personality", 0x0004_0000), "none");
    assert_eq!(action("arch_prctl", 0x4002), "errno:ENODEV");
    assert_eq!(action("arch_prctl", 0x1002), "none");
    assert_eq!(action("read", 0), "none");
    assert!(base.rules().iter().all(|rule| rule.reason.len() > 20));
}

#[test]
fn sets_conditions_and_constants_are_read() {
    let text = rule(
        "names = [\"ptrace\", \"@keyring\"]\naction = \"kill\"\nreason = \"r\"\nwhen = [\n\
         {arg = 1, op = \"==\", value = \"TIOCSTI\"},\n{arg = 2, op = \">\", value = -1, bits = 64}]",
    );
    let policy = Policy::parse(&text, "my.toml").unwrap();
    let rule = &policy.rules()[0];
    assert_eq!((rule.calls.len(), rule.action, &*rule.origin), (4, Action::Kill, "my.toml:3"));
    assert_eq!(rule.when[0].to_string(), "arg1 == 0x5412");
    assert_eq!(rule.when[1].value, u64::MAX);
}

#[test]
fn mistakes_are_named_with_their_line() {
    let ok = "names = [\"read\"]\naction = \"kill\"\nreason = \"r\"\n";
    let unknown_key = refusal(&rule(&format!("{ok}actoin = 1")));
    assert!(unknown_key.starts_with("my.toml:7: unknown field `actoin`"), "{unknown_key}");
    assert!(unknown_key.contains("`when`"), "{unknown_key}");
    let no_condition = refusal(&rule(&format!("{ok}when = [\"arg0 == 1\"]")));
    assert!(no_condition.starts_with("my.toml:7: "), "{no_condition}");
    assert!(no_condition.contains("{ arg = 0, op = \"==\", value = 1 }"), "{no_condition}");
    let with = |from: &str, to: &str| refusal(&rule(&ok.replace(from, to)));
    let call = with("\"read\"", "\"read\",\n \"raed\"");
    assert_eq!(call, "my.toml:5: no system call or set is called \"raed\"; is it \"read\"?");
    assert!(with("\"kill\"", "\"kil\"").starts_with("my.toml:5: no action is called"));
    assert!(
        with("kill", "errno:EPREM").ends_with("no error is called \"EPREM\"; is it \"EPERM\"?")
    );
    assert!(with("\"r\"", "\" \"").starts_with("my.toml:6: the rule has no reason"));
    assert!(with("\"read\"", "").starts_with("my.toml:4: the rule names no system call"));
    let when = |body: &str| refusal(&rule(&format!("{ok}when = [{{{body}}}]")));
    assert!(when("arg = 6, op = \"==\", value = 1").contains("no argument 6"));
    assert!(when("arg = 0, op = \"=\", value = 1").contains("\"==\" \"!=\""));
    assert!(when("arg = 0, op = \"==\", value = \"TIOSTI\"").contains("is it \"TIOCSTI\"?"));
    assert!(when("arg = 0, op = \"==\", value = 1, bits = 16").contains("32 or 64, not 16"));
    assert!(when("arg = 0, op = \"==\", value = 4294967296, bits = 32").contains("does not fit"));
    assert!(
        when("arg = 0, op = \"==\", value = 1.5").starts_with("my.toml:7: `value` is a number")
    );
    assert!(when("arg = 0, op = \"==\", valu = 1").starts_with("my.toml:7: unknown field `valu`"));
    assert!(refusal("version = 2").contains("version 2, this launcher knows version 1"));
    assert!(refusal("").contains("version"));
    assert!(refusal("version = 1\n[[syscall").starts_with("my.toml:2: "));
}

#[test]
fn a_later_policy_is_looked_at_first() {
    let allow = rule("names = [\"userfaultfd\"]\naction = \"allow\"\nreason = \"qemu needs it\"");
    let merged = Policy::base().unwrap().merge(Policy::parse(&allow, "my.toml").unwrap());
    let decides = |name| merged.decides(number(name), &[0; 6]).map(|rule| rule.action);
    assert_eq!(decides("userfaultfd"), Some(Action::Allow));
    assert!(matches!(decides("modify_ldt"), Some(Action::Errno(_))));
}

#[test]
fn check_and_show_read_files() {
    let path = std::env::temp_dir().join(format!("sbx-policy-{}.toml", std::process::id()));
    let first = rule("names = [\"@debug\"]\naction = \"kill\"\nreason = \"r\"\n");
    let rest = "[[syscall]]\nnames = [\"ptrace\"]\naction = \"log\"\nreason = \"r\"\n\
                [[syscall]]\nnames = [\"madvise\"]\naction = \"allow\"\nreason = \"r\"\n";
    std::fs::write(&path, first + rest).unwrap();
    let checked = check(&path).unwrap();
    let shown = show_file(Some(&path)).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(checked.contains("3 rules on 7 system calls"), "{checked}");
    assert!(checked.contains(".toml:7: never matches: the rule at "), "{checked}");
    assert!(checked.contains(".toml:11: a built-in rule on madvise stays in force"), "{checked}");
    assert!(shown.contains("@debug") && shown.contains("io_uring_setup"));
    let missing = check(Path::new("/nonexistent/policy.toml")).unwrap_err().to_string();
    assert!(missing.starts_with("/nonexistent/policy.toml: the policy cannot be read: "));
}

#[test]
fn the_table_names_every_rule_with_its_reason() {
    let base = Policy::base().unwrap();
    let shown = show(&base);
    for rule in base.rules() {
        assert!(shown.lines().any(|line| line.ends_with(&rule.reason)), "{}", rule.reason);
    }
    for rule in crate::filter::built_in::BUILT_IN {
        assert!(shown.lines().any(|line| line.ends_with(rule.reason)), "{}", rule.name);
    }
}

#[test]
fn what_the_build_script_read_is_what_the_files_say() {
    assert_eq!(Policy::base().unwrap(), Policy::parse(super::BASE, "base policy").unwrap());
    let armed = Policy::parse(super::ARMED, "armed.toml (built in)").unwrap();
    assert_eq!(Policy::default().for_hooked().unwrap(), armed);
    assert!(!armed.rules().is_empty());
}
