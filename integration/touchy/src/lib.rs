//! An extension on the network that does what it is told, failing included.
#![expect(unsafe_code, reason = "does on purpose what unsafe code does by mistake")]

use ext_api::prelude::*;

#[extension(name = "touchy", heap = "8M", budget = "100ms")]
#[expect(missing_docs, missing_debug_implementations, reason = "for tests only")]
pub mod touchy {
    use std::sync::atomic::{AtomicU64, Ordering};

    use ext_api::net::{Packet, Stream, Verdict};
    use ext_api::prelude::{Config, Cx, Saved};

    /// What tells a restarted extension from one that goes on.
    pub struct State {
        lines: AtomicU64,
    }

    #[init]
    fn init(_cx: &Cx, _config: Config) -> Result<State, String> {
        Ok(State { lines: AtomicU64::new(0) })
    }

    #[save(version = 1)]
    fn save(state: &State) -> Vec<u8> {
        state.lines.load(Ordering::Relaxed).to_le_bytes().to_vec()
    }

    #[upgrade]
    fn upgrade(_cx: &Cx, _config: Config, old: Saved<'_>) -> Result<State, String> {
        let lines = old.bytes.try_into().map_err(|_| "eight bytes were expected")?;
        Ok(State { lines: AtomicU64::new(u64::from_le_bytes(lines)) })
    }

    /// What a line is answered with; "long 5" with five times a thousand bytes, in pieces of ten.
    fn obey(state: &State, line: &str, mut write: impl FnMut(&[u8])) {
        let count = state.lines.fetch_add(1, Ordering::Relaxed) + 1;
        match line.split_once(' ').unwrap_or((line, "")) {
            // SAFETY: none; nothing is there.
            ("segv", _) => unsafe { std::ptr::without_provenance_mut::<u64>(8).write_volatile(1) },
            ("panic", text) => panic!("{text}"),
            ("spin", _) => loop {
                std::hint::spin_loop();
            },
            ("long", count) => {
                let pieces = count.parse::<usize>().unwrap_or(0) * 100;
                (0..pieces).for_each(|_| write(b"123456789\n"));
            }
            _ => write(format!("{count} {line}\n").as_bytes()),
        }
    }

    #[on(tcp = 7300)]
    fn stream(state: &State, stream: &mut Stream<'_>) -> Verdict {
        while let Some(end) = stream.bytes().iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&stream.bytes()[..end]).into_owned();
            stream.consume(end + 1);
            obey(state, &line, |bytes| stream.write(bytes));
        }
        Verdict::Reply
    }

    #[on(udp = 7300)]
    fn datagram(state: &State, packet: &mut Packet<'_>) -> Verdict {
        let line = String::from_utf8_lossy(packet.bytes()).into_owned();
        obey(state, &line, |bytes| packet.write(bytes));
        Verdict::Reply
    }
}
