//! Serves the entries of kv-cache by memcached's text protocol: what one side stores, the other finds.

use ext_api::prelude::*;

pub mod marks;
mod partial;
pub mod protocol;
pub mod session;
mod store;

/// The extension `memcached`.
#[extension(name = "memcached", heap = "128M", budget = "2s")]
pub mod memcached {
    use ext_api::net::{Stream, Verdict};
    use ext_api::prelude::{Config, Cx};

    use crate::marks::Marks;
    use crate::partial::{Partial, Partials, Word};
    use crate::protocol::{self, Command, LINE_LEN_MAX, VALUE_LEN_MAX};
    use crate::session::{Counts, Session};
    use crate::store::Store;

    /// After so many bytes of answers the rest of the commands waits until these are on their way.
    const WRITTEN_MAX: usize = 1 << 20;

    /// What all connections share.
    #[derive(Debug)]
    pub struct State {
        store: Store,
        marks: Marks,
        partials: Partials,
        counts: Counts,
    }

    #[init]
    fn init(_cx: &Cx, _config: Config) -> Result<State, String> {
        Ok(State {
            store: Store::default(),
            marks: Marks::new()?,
            partials: Partials::new(Cx::now_ns()),
            counts: Counts::default(),
        })
    }

    /// Pieces end anywhere: a line that is not whole stays, a value is put aside until it is.
    #[on(tcp = 11211)]
    fn stream(state: &State, stream: &mut Stream<'_>) -> Verdict {
        let mut turn = Turn::default();
        while turn.written < WRITTEN_MAX && go_on(state, stream, &mut turn) {}
        if stream.has_ended()
            && let Word::Partial(name) = Word::of(stream.word())
        {
            drop(state.partials.take(name));
        }
        Verdict::Reply
    }

    /// What the steps of one upcall have in common.
    #[derive(Default)]
    struct Turn {
        line: Vec<u8>,
        /// Bytes of answers.
        written: usize,
    }

    /// One step; false if there is nothing to do before more comes.
    fn go_on(state: &State, stream: &mut Stream<'_>, turn: &mut Turn) -> bool {
        if stream.bytes().is_empty() {
            return false;
        }
        match Word::of(stream.word()) {
            Word::Line => next_line(state, stream, turn),
            Word::Swallow(left) => {
                let len = left.min(stream.bytes().len());
                stream.consume(len);
                stream.set_word(Word::Swallow(left - len).to_raw());
                true
            }
            Word::Partial(name) => fill(state, stream, name),
        }
    }

    fn next_line(state: &State, stream: &mut Stream<'_>, turn: &mut Turn) -> bool {
        let Turn { line, written } = turn;
        let bytes = stream.bytes();
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
            if bytes.len() > LINE_LEN_MAX {
                stream.write(b"CLIENT_ERROR line too long\r\n");
                stream.close();
            }
            return false;
        };
        line.clear();
        line.extend(bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]));
        stream.consume(end + 1);
        match protocol::parse(line) {
            Ok(Command::Quit) => {
                stream.close();
                return false;
            }
            Ok(Command::Store { set, len }) => store(state, stream, Partial::new(&set, len), len),
            Ok(command) => session(state).run(&command, &mut |bytes| {
                *written += bytes.len();
                stream.write(bytes);
            }),
            Err(error) => stream.write(error.text().as_bytes()),
        }
        true
    }

    fn session(state: &State) -> Session<'_, Store> {
        Session { entries: &state.store, marks: &state.marks, counts: &state.counts }
    }

    /// The value follows, and a line's end. Most are here already: they are stored from where they lie.
    fn store(state: &State, stream: &mut Stream<'_>, partial: Partial, len: usize) {
        if len > VALUE_LEN_MAX {
            let mut answer = session(state).refuse_long(&partial.set());
            if partial.set().noreply {
                answer = "";
            }
            stream.write(answer.as_bytes());
            return stream.set_word(Word::Swallow(len + 2).to_raw());
        }
        if let Some(value) = stream.bytes().get(..len + 2) {
            let answer = session(state).store(&partial.set(), value);
            stream.consume(len + 2);
            return stream.write(answer.as_bytes());
        }
        let name = state.partials.put(partial);
        match name {
            Some(name) => stream.set_word(Word::Partial(name).to_raw()),
            None => {
                stream.write(b"SERVER_ERROR out of memory storing object\r\n");
                stream.set_word(Word::Swallow(len + 2).to_raw());
            }
        }
    }

    /// More of a value has come.
    fn fill(state: &State, stream: &mut Stream<'_>, name: u64) -> bool {
        let Some(mut partial) = state.partials.take(name) else {
            // Others were begun since, and there was no room for all.
            stream.write(b"SERVER_ERROR out of memory storing object\r\n");
            stream.close();
            return false;
        };
        let taken = partial.fill(stream.bytes());
        stream.consume(taken);
        if partial.is_whole() {
            let answer = session(state).store(&partial.set(), partial.value());
            stream.write(answer.as_bytes());
            stream.set_word(Word::Line.to_raw());
        } else {
            state.partials.put_back(name, partial);
        }
        true
    }
}
