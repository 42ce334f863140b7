//! An extension that is asked about every system call, and fails as the program tells it to.
#![expect(unsafe_code, reason = "does on purpose what unsafe code does by mistake")]

use ext_api::prelude::*;

#[extension(name = "unsteady", kill_safe)]
#[expect(missing_docs, missing_debug_implementations, reason = "for tests only")]
pub mod unsteady {
    use ext_api::prelude::*;

    pub struct State {
        fail: u64,
    }

    /// `fail`: the number of a call whose first argument says how to fail.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, ConfigError> {
        Ok(State { fail: config.get("fail", u64::MAX)? })
    }

    #[on(syscall = "all")]
    fn asked(state: &State, call: &mut Call) -> Verdict {
        if call.number() == state.fail { fail(call.arg(0)) } else { Verdict::Pass }
    }

    fn fail(how: u64) -> Verdict {
        match how {
            9_000_000 => return Verdict::Answer(77),
            9_000_001 => {
                // SAFETY: none; nothing is there.
                unsafe { std::hint::black_box(16 as *const u64).read_volatile() };
            }
            9_000_002 => {
                deeper(1_000_000);
            }
            9_000_003 => {
                (0..20_000_000).fold(0, |sum: u64, one| std::hint::black_box(sum + one));
                return Verdict::Answer(78);
            }
            _ => {}
        }
        Verdict::Pass
    }

    fn deeper(depth: u64) -> u64 {
        let page = std::hint::black_box([depth; 64]);
        if depth == 0 { page[0] } else { deeper(depth - 1) + page[1] }
    }
}
