//! A front that receives, and other processes that answer: a packet is handed over by name and read
//! where the kernel has put it, so that no byte is copied on the way.

use ext_api::prelude::*;

/// The extension `hand`.
#[extension(name = "hand", heap = "2M", kill_safe)]
pub mod hand {
    use ext_api::net::{Held, Packet, Stream, Verdict};
    use ext_api::prelude::{CallError, Config, Cx, To};
    use ext_api::shared::Counter;

    /// What all processes share.
    #[derive(Debug)]
    pub struct State {
        answered: Counter,
    }

    #[init]
    fn init(_cx: &Cx, _config: Config) -> Result<State, CallError> {
        Ok(State { answered: Counter::new() })
    }

    /// Whoever waits first is to answer.
    fn to_any() -> Verdict {
        Cx::find("hand.answer").map_or(Verdict::Drop, |answer| Verdict::Hand(To::any(), answer))
    }

    #[on(udp = 9100)]
    fn datagram(_state: &State, _packet: &mut Packet<'_>) -> Verdict {
        to_any()
    }

    /// Only whole lines are handed over: half a one stays here until more has come.
    #[on(tcp = 9100)]
    fn stream(_state: &State, stream: &mut Stream<'_>) -> Verdict {
        if stream.bytes().contains(&b'\n') { to_any() } else { Verdict::Pass }
    }

    /// Runs in the process that waited: answers each line with who it is and the line.
    #[handler]
    fn answer(state: &State, packet: u64) -> Result<(), CallError> {
        let mut held = Held::take(packet)?;
        let is_line = held.bytes().contains(&b'\n');
        let end = held.bytes().iter().rposition(|byte| *byte == b'\n');
        let used = end.map_or(held.bytes().len(), |end| end + 1);
        let text = held.bytes()[..used].to_vec();
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            held.write(format!("{} ", Cx::pid()).as_bytes());
            held.write(line);
            held.write(if is_line { b"\n" } else { b"" });
        }
        held.consume(used);
        state.answered.add(1);
        Ok(())
    }

    /// How many packets and pieces were answered.
    #[handler]
    fn answered(state: &State) -> u64 {
        state.answered.sum()
    }
}
