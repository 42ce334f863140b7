//! On what terms an extension is loaded: what the operator says beside its file. They stay with it over
//! restarts, upgrades, snapshots and supervisors.
//!
//! *Clamps* narrow what its handlers are asked about, of the system calls that they are hooked to; as a *tee*
//! it is asked and changes nothing. libos carries both out ([`libos::clamps`]).

use std::fmt;
use std::str::FromStr;

use ext_api::calls::{HOOKABLE_CALLS, SET_WORDS};
use ext_api::limits::{CLAMP_DESCRIPTORS_MAX, CLAMP_PATHS_LEN, CLAMP_PROCESSES_MAX};
use libos::clamps::process_name;
use libos::manifest::{Hook, check_name};
use serde::{Deserialize, Serialize};

use super::ports::Listen;

/// What an operator says of an extension.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Its configuration.
    pub config: String,
    /// Where its ports are listened to, if not where they say.
    pub listen: Vec<Listen>,
    /// What its handlers are asked about.
    pub clamps: Vec<Clamp>,
    /// Those that may change nothing, by name; of an empty name all.
    pub tees: Vec<String>,
}

/// What the handlers of an extension are asked about: `[EXTENSION:]KIND=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Clamp {
    /// Of which extension; of all that are loaded together if it is not said.
    extension: Option<String>,
    only: Only,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Only {
    /// Paths at and below an absolute one.
    Path(String),
    /// The first and the last of each range.
    Descriptors(Vec<[u32; 2]>),
    /// Of processes that were executed under this name.
    Name(String),
    Pid(u32),
}

/// The pieces of a configuration, `[EXTENSION:]key=value`: for which extension if that is said, and the rest.
fn pieces(config: &str) -> impl Iterator<Item = (Option<&str>, &str)> {
    config.split([',', '\n']).map(|piece| {
        let key = piece.split_once('=').map_or("", |(key, _)| key);
        match key.split_once(':').map(|(name, _)| name.trim()) {
            Some(name) => (Some(name), piece.split_once(':').map_or("", |(_, rest)| rest)),
            None => (None, piece),
        }
    })
}

/// What of a configuration is for the extension `name`.
fn config_of(config: &str, name: &str) -> String {
    let is_for = |of: Option<&str>| of.is_none_or(|of| of == name);
    let own: Vec<&str> =
        pieces(config).filter(|(of, _)| is_for(*of)).map(|(_, piece)| piece).collect();
    own.join(",")
}

impl Terms {
    /// Those of them that are for the extension `name`.
    #[must_use]
    pub fn of(&self, name: &str) -> Self {
        let is_for = |clamp: &&Clamp| clamp.extension.as_deref().is_none_or(|one| one == name);
        let alone = |clamp: &Clamp| Clamp { extension: None, only: clamp.only.clone() };
        let tees = self.tees.iter().filter(|tee| tee.is_empty() || *tee == name);
        Self {
            config: config_of(&self.config, name),
            listen: self.listen.clone(),
            clamps: self.clamps.iter().filter(is_for).map(alone).collect(),
            tees: tees.map(|_| String::new()).take(1).collect(),
        }
    }

    /// Is each of those that name an extension for one of `names`?
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_names<'a>(
        &self,
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<(), String> {
        let is_none = |name: &str| !names.clone().any(|known| known == name);
        let clamps = self
            .clamps
            .iter()
            .filter_map(|clamp| Some((clamp.extension.as_deref()?, format!("--clamp {clamp}"))));
        let tees = self.tees.iter().filter(|tee| !tee.is_empty());
        let keys = pieces(&self.config).filter_map(|(name, piece)| {
            name.map(|name| (name, format!("--config {name}:{piece}")))
        });
        let tees = tees.map(|tee| (&tee[..], format!("--tee={tee}")));
        let mut all = clamps.chain(tees).chain(keys);
        if self.is_narrowed() && names.clone().next().is_none() {
            return Err(
                "--clamp and --tee are about what this command loads, which is nothing: add \
                        --ext FILE"
                    .into(),
            );
        }
        all.find(|(name, _)| is_none(name)).map_or(Ok(()), |(name, typed)| {
            let known: Vec<&str> = names.clone().collect();
            let known = known.join(", ");
            Err(format!(
                "{typed}: no extension named {name} is loaded by this command ({known} is)"
            ))
        })
    }

    /// May it change nothing?
    #[must_use]
    pub fn is_tee(&self) -> bool {
        !self.tees.is_empty()
    }

    /// Is it a tee, or clamped?
    #[must_use]
    pub fn is_narrowed(&self) -> bool {
        self.is_tee() || !self.clamps.is_empty()
    }

    /// The options that say so, as typed.
    fn options(&self) -> String {
        let clamps = self.clamps.iter().map(|clamp| format!("--clamp {clamp}"));
        let all: Vec<String> = clamps.chain(self.is_tee().then(|| "--tee".to_owned())).collect();
        all.join(" ")
    }

    /// Is there something to be narrowed in the extension `name`, whose handlers run by these hooks?
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn check_hooks(
        &self,
        name: &str,
        hooks: impl Iterator<Item = Hook> + Clone,
    ) -> Result<(), String> {
        let asks = |hook: Hook| matches!(hook, Hook::Calls { set, .. } if set != [0; SET_WORDS]);
        let options = self.options();
        if options.is_empty() || hooks.clone().any(|hook| asks(self.within(hook))) {
            return self.fit();
        }
        if hooks.clone().any(asks) {
            return Err(format!(
                "{options}: {name} would never be asked: of the calls that it is hooked to there is none for \
                 which these clamps could hold (path= needs one with a path, fd= one on a descriptor)"
            ));
        }
        Err(format!(
            "{options}: {name} hooks no system calls, so there is nothing to narrow: load it without, \
             or say which extension is meant (--clamp EXTENSION:KIND=VALUE, --tee=EXTENSION)"
        ))
    }

    /// Is there room for the clamps?
    fn fit(&self) -> Result<(), String> {
        let full = Box::<libos::clamps::Clamp>::default();
        self.write(&full)
    }

    /// Write the clamps to where libos looks.
    pub(super) fn write(&self, to: &libos::clamps::Clamp) -> Result<(), String> {
        to.clear();
        let one = |clamp: &Clamp| match &clamp.only {
            Only::Path(path) => to.add_path(path.as_bytes()),
            Only::Descriptors(all) => {
                all.iter().all(|&[first, last]| to.add_descriptors(first, last))
            }
            Only::Name(name) => to.add_name(process_name(name.as_bytes())),
            Only::Pid(pid) => to.add_pid(*pid),
        };
        self.clamps.iter().find(|clamp| !one(clamp)).map_or(Ok(()), |clamp| {
            Err(format!(
                "--clamp {clamp}: that is one too many: an extension's clamps hold {CLAMP_PATHS_LEN} bytes \
                 of paths, {CLAMP_DESCRIPTORS_MAX} ranges of descriptors, {CLAMP_PROCESSES_MAX} names of \
                 processes and {CLAMP_PROCESSES_MAX} pids"
            ))
        })
    }

    /// Of a hook on system calls, those that its clamps can hold for.
    #[must_use]
    pub fn within(&self, hook: Hook) -> Hook {
        let Hook::Calls { mut set, after } = hook else { return hook };
        let kinds =
            [(Only::is_path as fn(&Only) -> bool, WITH_PATH), (Only::is_fd, WITH_DESCRIPTOR)];
        for (is_kind, those) in kinds {
            if self.clamps.iter().any(|clamp| is_kind(&clamp.only)) {
                set.iter_mut().zip(those).for_each(|(word, those)| *word &= those);
            }
        }
        Hook::Calls { set, after }
    }
}

const WITH_PATH: [u64; SET_WORDS] = calls_with(b'p');
const WITH_DESCRIPTOR: [u64; SET_WORDS] = calls_with(b'd');

/// The calls with an argument of this kind.
const fn calls_with(letter: u8) -> [u64; SET_WORDS] {
    let (mut set, mut at) = ([0; SET_WORDS], 0);
    while at < HOOKABLE_CALLS.len() {
        let (_, number, args) = HOOKABLE_CALLS[at];
        let (args, mut arg) = (args.as_bytes(), 0);
        while arg < args.len() {
            if args[arg] == letter {
                set[number as usize / 64] |= 1 << (number % 64);
            }
            arg += 1;
        }
        at += 1;
    }
    set
}

impl Only {
    const fn is_path(&self) -> bool {
        matches!(self, Self::Path(_))
    }

    const fn is_fd(&self) -> bool {
        matches!(self, Self::Descriptors(_))
    }
}

impl FromStr for Clamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("{text:?}: {what}");
        let (left, value) = text.split_once('=').ok_or_else(|| wrong(EXPECTED))?;
        let (extension, kind) = match left.rsplit_once(':') {
            Some((extension, kind)) => (Some(extension), kind),
            None => (None, left),
        };
        if let Some(Err(error)) = extension.map(check_name) {
            return Err(wrong(&format!("before the colon is the name of an extension: {error}")));
        }
        let only = match kind {
            "path" => path(value),
            "fd" => descriptors(value),
            "process" => process(value),
            _ => Err(format!("there is no kind {kind:?}; {EXPECTED}")),
        };
        let only = only.map_err(|what| wrong(&what))?;
        Ok(Self { extension: extension.map(str::to_owned), only })
    }
}

/// What a clamp looks like.
const EXPECTED: &str = "expected [EXTENSION:]path=FOLDER, fd=FIRST-LAST or process=NAME, as in \
                        path=/srv/www, fd=0-2 or process=nginx";

/// An absolute path without parts that mean nothing.
fn path(value: &str) -> Result<Only, String> {
    let parts: Vec<&str> = value.split('/').filter(|it| !it.is_empty() && *it != ".").collect();
    if !value.starts_with('/') {
        return Err("the path has to begin with /, as in path=/srv/www".into());
    }
    if parts.contains(&"..") || value.contains('\0') {
        return Err("the path has to say where it leads: write it without .. and zeros".into());
    }
    Ok(Only::Path(format!("/{}", parts.join("/"))))
}

/// One, or from one to another, several with commas.
fn descriptors(value: &str) -> Result<Only, String> {
    let number = |text: &str| {
        let number = text.parse::<u32>().ok().filter(|number| *number <= i32::MAX as u32);
        number.ok_or_else(|| {
            format!("{text:?} is no descriptor; expected fd=FIRST-LAST, as in fd=0-2 or fd=0,7")
        })
    };
    let range = |text: &str| -> Result<[u32; 2], String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (number(first)?, number(last)?);
        let is_one = first <= last;
        is_one
            .then_some([first, last])
            .ok_or_else(|| format!("{first}-{last} ends before it begins; write fd={last}-{first}"))
    };
    value.split(',').map(range).collect::<Result<_, _>>().map(Only::Descriptors)
}

/// A pid, or a name without a folder.
fn process(value: &str) -> Result<Only, String> {
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        let pid = value.parse::<u32>().ok().filter(|pid| *pid != 0 && *pid <= i32::MAX as u32);
        return pid.map(Only::Pid).ok_or_else(|| format!("{value} is no pid"));
    }
    if value.is_empty() || value.contains(['/', '\0']) {
        return Err("expected a pid, or the name of a program without its folder, as in \
                    process=nginx"
            .into());
    }
    Ok(Only::Name(value.to_owned()))
}

impl fmt::Display for Clamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(extension) = &self.extension {
            write!(f, "{extension}:")?;
        }
        match &self.only {
            Only::Path(path) => write!(f, "path={path}"),
            Only::Name(name) => write!(f, "process={name}"),
            Only::Pid(pid) => write!(f, "process={pid}"),
            Only::Descriptors(ranges) => {
                let one = |[first, last]: &[u32; 2]| match last - first {
                    0 => first.to_string(),
                    _ => format!("{first}-{last}"),
                };
                let ranges: Vec<String> = ranges.iter().map(one).collect();
                write!(f, "fd={}", ranges.join(","))
            }
        }
    }
}

impl TryFrom<String> for Clamp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Clamp> for String {
    fn from(clamp: Clamp) -> Self {
        clamp.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::{Clamp, Terms, config_of};
    use ext_api::calls::set;
    use libos::manifest::Hook;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<String, String> {
        text.parse::<Clamp>().map(|clamp| clamp.to_string())
    }

    fn clamped(texts: &[&str]) -> Terms {
        let clamps = texts.iter().map(|text| text.parse().expect("a clamp"));
        Terms { clamps: clamps.collect(), ..Terms::default() }
    }

    #[test]
    fn a_key_may_be_of_one_extension() {
        let config = "all=1, redirect:from=/a,redirect:to=/b:c,audit:deny=x,rules=write:~1:EIO";
        assert_eq!(config_of(config, "redirect"), "all=1,from=/a,to=/b:c,rules=write:~1:EIO");
        assert_eq!(config_of(config, "audit"), "all=1,deny=x,rules=write:~1:EIO");
        assert_eq!(config_of("", "audit"), "");
        let terms = Terms { config: config.into(), ..Terms::default() };
        assert_eq!(terms.check_names(["audit", "redirect"].into_iter()), Ok(()));
        let error = terms.check_names(["audit"].into_iter()).expect_err("no redirect");
        assert!(error.starts_with("--config redirect:from=/a: no extension named"), "{error}");
    }

    #[test]
    fn clamps_are_read_as_they_are_written() {
        for (text, read) in [
            ("path=/srv/www", "path=/srv/www"),
            ("path=//srv/./www/", "path=/srv/www"),
            ("path=/", "path=/"),
            ("path=/a=b:c,d", "path=/a=b:c,d"),
            ("fd=0-2", "fd=0-2"),
            ("fd=7,0-2,3-3", "fd=7,0-2,3"),
            ("process=nginx", "process=nginx"),
            ("process=0042", "process=42"),
            ("audit:path=/etc", "audit:path=/etc"),
        ] {
            assert_eq!(parsed(text).as_deref(), Ok(read));
        }
    }

    #[test]
    fn what_is_wrong_with_a_clamp_is_said() {
        for (text, why) in [
            ("", "expected [EXTENSION:]path="),
            ("/srv", "expected [EXTENSION:]path="),
            ("pth=/srv", "there is no kind \"pth\""),
            ("path=srv", "has to begin with /"),
            ("path=", "has to begin with /"),
            ("path=/srv/../etc", "without .."),
            ("fd=", "\"\" is no descriptor"),
            ("fd=-1", "\"\" is no descriptor"),
            ("fd=2-0", "write fd=0-2"),
            ("fd=0,x", "\"x\" is no descriptor"),
            ("fd=99999999999", "is no descriptor"),
            ("process=", "expected a pid"),
            ("process=/usr/sbin/nginx", "without its folder"),
            ("process=0", "0 is no pid"),
            ("a b:fd=1", "name of an extension"),
        ] {
            let error = parsed(text).expect_err(text);
            assert!(error.contains(why) && error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn of_several_extensions_each_gets_its_own() {
        let all = ["path=/srv", "audit:fd=1", "faults:process=a"];
        let terms = Terms { tees: vec!["audit".into()], ..clamped(&all) };
        let shown = |name: &str| terms.of(name).options();
        assert_eq!(shown("audit"), "--clamp path=/srv --clamp fd=1 --tee");
        assert_eq!(shown("faults"), "--clamp path=/srv --clamp process=a");
        assert_eq!(shown("other"), "--clamp path=/srv");
        assert_eq!(terms.check_names(["audit", "faults"].into_iter()), Ok(()));
        let error = terms.check_names(["audit"].into_iter()).expect_err("no faults");
        assert!(error.contains("--clamp faults:process=a: no extension named faults"), "{error}");
    }

    #[test]
    fn hooks_are_narrowed_to_calls_that_can_be_within() {
        let hook = Hook::Calls { set: set("openat read getpid"), after: false };
        let within = |clamps: &[&str]| clamped(clamps).within(hook);
        let of = |names: &str| Hook::Calls {
            set: ext_api::calls::find(names).expect("calls"),
            after: false,
        };
        assert_eq!(within(&["process=a"]), hook);
        assert_eq!(within(&["path=/"]), of("openat"));
        assert_eq!(within(&["fd=1"]), of("openat read"));
        assert_eq!(within(&["fd=1", "path=/srv"]), of("openat"));
        let check = |hook, clamps: &[&str]| clamped(clamps).check_hooks("x", [hook].into_iter());
        assert_eq!(check(hook, &["fd=1"]), Ok(()));
        let error = check(of("getpid"), &["path=/"]).expect_err("none has a path");
        assert!(error.contains("--clamp path=/: x would never be asked"), "{error}");
        let error = check(Hook::Start, &["path=/"]).expect_err("no calls");
        assert!(error.contains("x hooks no system calls"), "{error}");
        let many: Vec<String> = (1..18).map(|pid| format!("process={pid}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let error = check(hook, &many).expect_err("too many");
        assert!(error.contains("--clamp process=17: that is one too many"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_shown_reads_the_same(text in ".{0,40}", kind in 0..4) {
            let kind = ["", "path=/", "fd=", "x:process="][kind as usize];
            let text = format!("{kind}{text}");
            if let Ok(clamp) = text.parse::<Clamp>() {
                let again = clamp.to_string().parse::<Clamp>();
                prop_assert_eq!(again, Ok(clamp));
            }
        }

        #[test]
        fn clamps_are_sent_as_text(first in 0u32..1000, more in 0u32..1000) {
            let clamp: Clamp = format!("fd={first}-{}", first + more).parse().expect("a clamp");
            let sent = serde_json::to_string(&clamp).expect("a text");
            prop_assert_eq!(serde_json::from_str::<Clamp>(&sent).expect("the same"), clamp);
        }
    }
}
