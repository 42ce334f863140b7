//! Looks at the frames of programs that have a TCP/IP of their own, before that does: answers pings where they
//! lie, and drops connections to ports that are not open to all. All programs of the sandbox share its counts.

use ext_api::prelude::*;

pub mod frame;

/// The extension `guard`.
#[extension(name = "guard", heap = "2M", kill_safe)]
pub mod guard {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use ext_api::net::{Packet, Verdict};
    use ext_api::prelude::*;

    use super::frame::{self, Frame};

    /// What all programs share.
    #[derive(Debug)]
    pub struct State {
        address: Ipv4Addr,
        port: u16,
        pings: AtomicU64,
        refused: AtomicU64,
    }

    /// `address`: whose pings it answers. `port`: the only one of TCP that is open.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, ConfigError> {
        Ok(State {
            address: config.get("address", Ipv4Addr::new(10, 99, 0, 2))?,
            port: config.get("port", 80)?,
            pings: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// A frame has come to a program.
    #[on(packet = "*")]
    fn frame(state: &State, packet: &mut Packet<'_>) -> Verdict {
        match frame::read(packet.bytes()) {
            Frame::Ping { to } if to == state.address => {
                state.pings.fetch_add(1, Relaxed);
                frame::answer_ping(packet.bytes_mut());
                packet.reply_in_place(packet.bytes().len())
            }
            Frame::Opening { port } if port != state.port => {
                state.refused.fetch_add(1, Relaxed);
                Verdict::Drop
            }
            _ => Verdict::Pass,
        }
    }

    /// How many pings it has answered.
    #[handler]
    fn pings(state: &State) -> u64 {
        state.pings.load(Relaxed)
    }

    /// How many segments that would open a connection it has dropped.
    #[handler]
    fn refused(state: &State) -> u64 {
        state.refused.load(Relaxed)
    }
}
