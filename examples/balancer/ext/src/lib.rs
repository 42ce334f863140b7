//! What an L4 balancer decides and remembers: which backend a client's flow goes to. It lies in the region,
//! so that it outlives the program that moves the frames, and anybody can look.

use ext_api::prelude::*;

pub mod flows;
mod memory;

/// The protocols that are balanced, as IP numbers them.
pub const TCP: u8 = 6;
/// See [`TCP`].
pub const UDP: u8 = 17;

/// The extension `balancer`.
#[extension(name = "balancer", heap = "48M", kill_safe)]
pub mod balancer {
    use std::net::Ipv4Addr;

    use ext_api::prelude::*;

    use crate::flows::{BACKENDS_MAX, Table};
    use crate::memory::Memory;

    /// What all processes share.
    #[derive(Debug)]
    pub struct State {
        address: Ipv4Addr,
        port: u16,
        table: Table,
        memory: Memory,
    }

    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, String> {
        let text = |error: ConfigError| error.to_string();
        let address = config.get("address", Ipv4Addr::new(10, 90, 0, 100)).map_err(text)?;
        let port = config.get("port", 7000).map_err(text)?;
        let list = config.get("backends", "10.90.0.11+10.90.0.12".to_owned()).map_err(text)?;
        let backends = list.split('+').map(str::parse).collect::<Result<Vec<Ipv4Addr>, _>>();
        let backends = backends.map_err(|error| format!("backends={list}: {error}"))?;
        if backends.len() > BACKENDS_MAX {
            return Err(format!("{} backends; at most {BACKENDS_MAX}", backends.len()));
        }
        Ok(State {
            address,
            port,
            table: Table::new(backends.into_iter()),
            memory: Memory::default(),
        })
    }

    /// Address of `len` octets that are the same memory in every process. There is one such block.
    #[handler]
    fn memory(state: &State, len: u64) -> Result<u64, String> {
        state.memory.block(usize::try_from(len).map_err(|error| error.to_string())?)
    }

    /// The address that clients use, and the port in the lowest 16 bits.
    #[handler]
    fn service(state: &State) -> u64 {
        u64::from(state.address.to_bits()) << 16 | u64::from(state.port)
    }

    /// The address of a backend; none if there are not so many.
    #[handler]
    fn backend(state: &State, index: u64) -> Option<u64> {
        let backend = state.table.backends.get(index as usize);
        backend.map(|backend| backend.address.to_bits().into())
    }

    /// Where a client's frame goes: the port that its flow has, and the backend in the lowest 8 bits. None
    /// if there is no backend for it.
    #[handler]
    fn steer(state: &State, client: u64, hardware: u64, len: u64) -> Option<u64> {
        let (port, backend) = state.table.steer(client, hardware, len, Cx::now_ns())?;
        Some(u64::from(port) << 8 | backend as u64)
    }

    /// Whose flow is at `port`: address, port and protocol.
    #[handler]
    fn back(state: &State, port: u64, backend: u64, len: u64) -> Option<u64> {
        state.table.back(port, backend, len, Cx::now_ns())
    }

    /// The hardware address of that client, or of the router to it.
    #[handler]
    fn hardware(state: &State, port: u64) -> u64 {
        state.table.hardware(port)
    }

    /// A backend refuses the flow at `port`. True: the client need not know.
    #[handler]
    fn refused(state: &State, port: u64, backend: u64) -> bool {
        state.table.refused(port, backend, Cx::now_ns())
    }

    /// A backend is there, or is not.
    #[handler]
    fn set_up(state: &State, backend: u64, is_up: bool) {
        state.table.set_up(backend, is_up);
    }

    /// The backends, and what was counted for them.
    #[handler]
    fn show(state: &State) -> String {
        state.table.show()
    }
}
