//! Paths that begin with one prefix lead to another, for programs that know nothing of it.

use ext_api::prelude::*;

/// The extension `redirect`.
#[extension(name = "redirect", kill_safe)]
pub mod redirect {
    use ext_api::prelude::*;

    const ENAMETOOLONG: i32 = 36;

    /// What all processes share.
    #[derive(Debug)]
    pub struct State {
        from: Vec<u8>,
        to: Vec<u8>,
    }

    /// `from` and `to`: both absolute.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, String> {
        let text = |error: ConfigError| error.to_string();
        let from = config.get("from", String::new()).map_err(text)?;
        let to = config.get("to", String::new()).map_err(text)?;
        if !from.starts_with('/') || !to.starts_with('/') {
            return Err("say from=/one/folder,to=/another".into());
        }
        Ok(State { from: from.into_bytes(), to: to.into_bytes() })
    }

    /// A program is about to use a path.
    #[on(syscall = "@file")]
    fn used(state: &State, call: &mut Call) -> Verdict {
        for at in call.paths() {
            let Some(path) = call.path(at) else { return Verdict::Refuse(ENAMETOOLONG) };
            let Some(rest) = path.strip_prefix(&state.from[..]) else { continue };
            if rest.is_empty() || rest[0] == b'/' {
                let elsewhere = [&state.to[..], rest].concat();
                if !call.set_path(at, &elsewhere) {
                    return Verdict::Refuse(ENAMETOOLONG);
                }
            }
        }
        Verdict::Pass
    }
}
