//! Serves the files below a folder over HTTP/1.1.

use ext_api::prelude::*;

pub mod answer;
pub mod files;
pub mod request;

/// The extension `http`.
#[extension(name = "http", heap = "256M", budget = "2s")]
pub mod http {
    use std::path::Path;

    use ext_api::net::{Stream, Verdict};
    use ext_api::prelude::{Config, Cx};
    use ext_api::shared::Counter;

    use crate::answer::{self, Answer};
    use crate::files::Files;
    use crate::request::{self, Parsed};

    /// After so many bytes of answers the rest of the requests waits until these are on their way.
    const WRITTEN_MAX: usize = 1 << 20;

    /// The files, and how many were asked for.
    #[derive(Debug)]
    pub struct State {
        files: Files,
        requests: Counter,
    }

    /// `root`: the folder; `cache`: bytes of files that are kept; `largest`: of one that is served.
    #[init]
    fn init(_cx: &Cx, config: Config) -> Result<State, String> {
        let root = config.get("root", String::new()).map_err(|error| error.to_string())?;
        let cache = config.bytes("cache", 64 << 20).map_err(|error| error.to_string())?;
        let largest = config.bytes("largest", 16 << 20).map_err(|error| error.to_string())?;
        let path = Path::new(&root);
        if !path.is_absolute() || !path.is_dir() {
            return Err(format!("root={root}: expected the full path of a folder"));
        }
        Ok(State { files: Files::new(path, cache, largest), requests: Counter::new() })
    }

    /// One request after the other, as many as have come whole.
    #[on(tcp = 8080)]
    fn stream(state: &State, stream: &mut Stream<'_>) -> Verdict {
        let mut written = 0;
        while written < WRITTEN_MAX && !stream.bytes().is_empty() {
            let (answer, used) = match request::parse(stream.bytes()) {
                Parsed::Partial => break,
                Parsed::Refused(code) => (Answer::refusal(code), stream.bytes().len()),
                Parsed::Whole(request) => (answer::to(&request, &state.files), request.len),
            };
            state.requests.add(1);
            stream.consume(used);
            stream.write(answer.head.as_bytes());
            stream.write(answer.body());
            written += answer.head.len() + answer.body().len();
            if answer.closes {
                stream.close();
                break;
            }
        }
        Verdict::Reply
    }

    /// Requests so far, files that are kept, and their bytes.
    #[handler]
    fn counts(state: &State) -> String {
        let [files, bytes] = state.files.kept();
        format!("{} requests, {files} files of {bytes} bytes kept", state.requests.sum())
    }
}
