//! Which program touches which file, as JSON lines in the sandbox's log; and a folder that nobody may.

use ext_api::prelude::*;

/// The extension `audit`.
#[extension(name = "audit", kill_safe)]
pub mod audit {
    use std::fmt::Write;

    use ext_api::prelude::*;
    use ext_api::shared::Counter;

    const EACCES: i32 = 13;
    const ENAMETOOLONG: i32 = 36;

    /// What all processes share.
    #[derive(Debug)]
    pub struct State {
        deny: Option<Vec<u8>>,
        seen: Counter,
        denied: Counter,
    }

    /// `deny`: what begins like this is refused.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, ConfigError> {
        let deny = config.get("deny", String::new())?.into_bytes();
        let deny = Some(deny).filter(|deny| !deny.is_empty());
        Ok(State { deny, seen: Counter::new(), denied: Counter::new() })
    }

    /// A program is about to open, execute or change what a path leads to.
    #[on(
        syscall = "open openat openat2 creat unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat \
                   mkdir mkdirat rmdir mknod mknodat truncate chmod fchmodat fchmodat2 chown lchown fchownat \
                   utime utimes futimesat utimensat setxattr lsetxattr removexattr lremovexattr execve execveat"
    )]
    fn touched(state: &State, call: &mut Call) -> Verdict {
        let (mut denied, mut lines) = (false, Vec::new());
        for at in call.paths() {
            let name = call.name();
            let Some(path) = call.path(at) else { return Verdict::Refuse(ENAMETOOLONG) };
            denied |= state.deny.as_ref().is_some_and(|deny| path.starts_with(deny));
            let mut line = format!("{{\"pid\":{},\"call\":\"{name}\",\"path\":", Cx::pid());
            quoted(&mut line, path);
            lines.push(line);
        }
        for line in lines {
            println!("{line},\"refused\":{denied}}}");
        }
        state.seen.add(1);
        state.denied.add(u64::from(denied));
        if denied { Verdict::Refuse(EACCES) } else { Verdict::Pass }
    }

    /// Bytes as a text of JSON: those that are no ASCII as the characters with their numbers.
    fn quoted(line: &mut String, bytes: &[u8]) {
        line.push('"');
        for byte in bytes {
            let _ = match byte {
                b'"' | b'\\' => write!(line, "\\{}", char::from(*byte)),
                b' '..=b'~' => write!(line, "{}", char::from(*byte)),
                other => write!(line, "\\u{other:04x}"),
            };
        }
        line.push('"');
    }

    /// A program is about to reach somebody.
    #[on(syscall = "connect")]
    fn reached(state: &State, call: &mut Call) -> Verdict {
        if let Some(address) = call.address() {
            let mut line = format!("{{\"pid\":{},\"call\":\"connect\",\"to\":", Cx::pid());
            quoted(&mut line, address.to_string().as_bytes());
            println!("{line}}}");
            state.seen.add(1);
        }
        Verdict::Pass
    }

    /// Calls so far: 0 all, 1 those that were refused.
    #[handler]
    fn calls(state: &State, which: u64) -> u64 {
        if which == 0 { state.seen.sum() } else { state.denied.sum() }
    }
}
