//! Sends connections and datagrams on to other servers: what comes back goes to who has asked.

use ext_api::prelude::*;

/// The extension `forward`.
#[extension(name = "forward", heap = "2M", kill_safe)]
pub mod forward {
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicU64, Ordering};

    use ext_api::net::{Packet, Stream, Verdict};
    use ext_api::prelude::{Config, Cx};
    use ext_api::shared::Counter;

    /// Where to, and how often.
    #[derive(Debug)]
    pub struct State {
        targets: Vec<Target>,
        by_client: bool,
        turn: AtomicU64,
    }

    #[derive(Debug)]
    struct Target {
        at: SocketAddr,
        connections: Counter,
        datagrams: Counter,
    }

    impl State {
        /// The target of the next one; of one client always the same, if so configured.
        fn choose(&self, client: Option<SocketAddr>) -> &Target {
            let number = if self.by_client {
                let mut hasher = DefaultHasher::new();
                client.map(|client| client.ip()).hash(&mut hasher);
                hasher.finish()
            } else {
                self.turn.fetch_add(1, Ordering::Relaxed)
            };
            &self.targets[number as usize % self.targets.len()]
        }
    }

    /// `to`: addresses, joined by `+`; `by`: `turn`, one after the other, or `client`, by its address.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, String> {
        let to = config.get("to", String::new()).map_err(|error| error.to_string())?;
        let by = config.get("by", "turn".to_owned()).map_err(|error| error.to_string())?;
        let by_client = match by.as_str() {
            "turn" => false,
            "client" => true,
            other => return Err(format!("by={other}: expected turn or client")),
        };
        let target = |text: &str| {
            let at = text.parse().map_err(|_| {
                format!("to={text}: expected ADDRESS:PORT, several joined by +, as in 127.0.0.1:80")
            })?;
            Ok(Target { at, connections: Counter::new(), datagrams: Counter::new() })
        };
        let targets = to.split('+').map(target).collect::<Result<_, String>>()?;
        Ok(State { targets, by_client, turn: AtomicU64::new(0) })
    }

    #[on(tcp = 8000)]
    fn connection(state: &State, stream: &mut Stream<'_>) -> Verdict {
        let target = state.choose(stream.from());
        target.connections.add(1);
        Verdict::Forward(target.at)
    }

    #[on(udp = 8000)]
    fn datagram(state: &State, packet: &mut Packet<'_>) -> Verdict {
        let target = state.choose(packet.from());
        target.datagrams.add(1);
        Verdict::Forward(target.at)
    }

    /// What went where: a line for each target.
    #[handler]
    fn counts(state: &State) -> String {
        let line = |target: &Target| {
            let (connections, datagrams) = (target.connections.sum(), target.datagrams.sum());
            format!("{}: {connections} connections, {datagrams} datagrams", target.at)
        };
        state.targets.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}
