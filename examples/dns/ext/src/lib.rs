//! Answers DNS queries from a zone, over UDP and TCP.

use ext_api::prelude::*;

pub mod message;
pub mod zone;

/// The extension `dns`.
#[extension(name = "dns", heap = "16M", kill_safe)]
pub mod dns {
    use ext_api::net::{Packet, Stream, Verdict};
    use ext_api::prelude::{Config, Cx};
    use ext_api::shared::Counter;

    use crate::message::{self, Transport};
    use crate::zone::Zone;

    /// Longest query that is looked at over TCP: a name, a question and options are far shorter.
    const QUERY_LEN_MAX: usize = 4096;

    /// The zone, and what was asked of it.
    #[derive(Debug)]
    pub struct State {
        zone: Zone,
        answered: Counter,
        dropped: Counter,
    }

    /// `zone`: a file of lines "name ttl type value"; `records`: the same lines, separated by `;`.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, String> {
        let text = |key| config.get(key, String::new()).map_err(|error| error.to_string());
        let (file, records) = (text("zone")?, text("records")?);
        let mut zone = Zone::default();
        if !file.is_empty() {
            let lines = std::fs::read_to_string(&file).map_err(|error| {
                format!("zone={file}: {error}; expected the full path of a file")
            })?;
            zone.add_lines(&lines).map_err(|error| format!("{file}, {error}"))?;
        }
        zone.add_lines(&records.replace(';', "\n")).map_err(|error| format!("records, {error}"))?;
        if zone.is_empty() {
            return Err("no records: give zone=FILE, or records=NAME TTL TYPE VALUE".into());
        }
        Ok(State { zone, answered: Counter::new(), dropped: Counter::new() })
    }

    impl State {
        fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
            let answer = message::answer(query, &self.zone, transport);
            if answer.is_some() { &self.answered } else { &self.dropped }.add(1);
            answer
        }
    }

    #[on(udp = 5300)]
    fn datagram(state: &State, packet: &mut Packet<'_>) -> Verdict {
        match state.answer(packet.bytes(), Transport::Udp) {
            Some(answer) => packet.reply(&answer),
            None => Verdict::Drop,
        }
    }

    /// Each query and each answer follows its length, two bytes.
    #[on(tcp = 5300)]
    fn stream(state: &State, stream: &mut Stream<'_>) -> Verdict {
        while let Some((head, rest)) = stream.bytes().split_first_chunk() {
            let len = usize::from(u16::from_be_bytes(*head));
            if len > QUERY_LEN_MAX {
                return Verdict::Drop;
            }
            let Some(query) = rest.get(..len) else { break };
            let Some(answer) = state.answer(query, Transport::Tcp) else { return Verdict::Drop };
            stream.consume(2 + len);
            stream.write(&(answer.len() as u16).to_be_bytes());
            stream.write(&answer);
        }
        Verdict::Reply
    }

    /// Queries that were answered, and those that were dropped because they are none.
    #[handler]
    fn counts(state: &State) -> String {
        format!("{} answered, {} dropped", state.answered.sum(), state.dropped.sum())
    }
}
