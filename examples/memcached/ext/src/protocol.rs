//! Lines of the protocol, as commands.

/// Longest line that is waited for.
pub const LINE_LEN_MAX: usize = 16 << 10;
/// Longest value.
pub const VALUE_LEN_MAX: usize = 1 << 20;
/// Longest key: the protocol's.
pub const KEY_LEN_MAX: usize = 250;

/// What a value is stored for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// In any case.
    Set,
    /// If there is none.
    Add,
    /// If there is one.
    Replace,
    /// Behind the one that there is.
    Append,
    /// Before it.
    Prepend,
    /// If it is the one that had this number.
    Cas(u64),
}

/// What is to be done with a value that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set<'a> {
    /// When.
    pub how: How,
    /// Whose value.
    pub key: &'a [u8],
    /// The client's own.
    pub flags: u32,
    /// When it goes.
    pub exptime: i64,
    /// No answer is wanted.
    pub noreply: bool,
}

/// A line.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// `get`, and `gets`, which wants numbers too.
    Get {
        /// At least one.
        keys: Vec<&'a [u8]>,
        /// As `gets`.
        numbers: bool,
    },
    /// A value of this length and a line's end follow.
    Store {
        /// What to do with it.
        set: Set<'a>,
        /// Its length.
        len: usize,
    },
    /// `incr` and `decr`.
    Count {
        /// Whose value.
        key: &'a [u8],
        /// By how much.
        by: u64,
        /// Upwards.
        up: bool,
        /// No answer is wanted.
        noreply: bool,
    },
    /// `delete`.
    Delete {
        /// Whose value.
        key: &'a [u8],
        /// No answer is wanted.
        noreply: bool,
    },
    /// `touch`.
    Touch {
        /// Whose value.
        key: &'a [u8],
        /// When it goes now.
        exptime: i64,
        /// No answer is wanted.
        noreply: bool,
    },
    /// `flush_all`.
    Flush {
        /// Seconds until then.
        delay: i64,
        /// No answer is wanted.
        noreply: bool,
    },
    /// `verbosity`, which does nothing.
    Verbosity {
        /// No answer is wanted.
        noreply: bool,
    },
    /// `version`.
    Version,
    /// `stats`.
    Stats,
    /// `quit`.
    Quit,
}

/// A line that is no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineError {
    /// There is none of this name, or not with as many words.
    Unknown,
    /// A word is none that fits.
    Format,
    /// Of `incr` and `decr`.
    Delta,
    /// Of `touch` and `flush_all`.
    Exptime,
    /// Of `delete`.
    Delete,
    /// It wanted no answer.
    Silent,
}

impl LineError {
    /// What the client is told.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Unknown => "ERROR\r\n",
            Self::Format => "CLIENT_ERROR bad command line format\r\n",
            Self::Delta => "CLIENT_ERROR invalid numeric delta argument\r\n",
            Self::Exptime => "CLIENT_ERROR invalid exptime argument\r\n",
            Self::Delete => {
                "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"
            }
            Self::Silent => "",
        }
    }
}

/// Read a line without its end.
///
/// # Errors
/// It is no command.
pub fn parse(line: &[u8]) -> Result<Command<'_>, LineError> {
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let name = words.next().ok_or(LineError::Unknown)?;
    let mut args: Vec<&[u8]> = words.collect();
    if matches!(name, b"get" | b"gets") {
        let keys: Result<Vec<&[u8]>, _> = args.into_iter().map(key_of).collect();
        let keys = keys?;
        let numbers = name == b"gets";
        return if keys.is_empty() {
            Err(LineError::Unknown)
        } else {
            Ok(Command::Get { keys, numbers })
        };
    }
    let noreply = args.last() == Some(&&b"noreply"[..]);
    if noreply {
        args.pop();
    }
    let command = with_args(name, &args, noreply);
    // Who wants no answer gets none, unless there is no such command.
    command.map_err(|error| match error {
        LineError::Unknown => error,
        _ if noreply => LineError::Silent,
        _ => error,
    })
}

fn with_args<'a>(name: &[u8], args: &[&'a [u8]], noreply: bool) -> Result<Command<'a>, LineError> {
    let delay_of = |word: &[u8]| number(word).ok_or(LineError::Exptime);
    Ok(match (name, args) {
        (b"set" | b"add" | b"replace" | b"append" | b"prepend", [key, flags, exptime, len]) => {
            let how = match name {
                b"set" => How::Set,
                b"add" => How::Add,
                b"replace" => How::Replace,
                b"append" => How::Append,
                _ => How::Prepend,
            };
            store(how, [key, flags, exptime, len], noreply)?
        }
        (b"cas", [key, flags, exptime, len, unique]) => {
            let unique = number(unique).ok_or(LineError::Format)?;
            store(How::Cas(unique), [key, flags, exptime, len], noreply)?
        }
        (b"incr" | b"decr", [key, by]) => {
            let by = number(by).ok_or(LineError::Delta);
            Command::Count { key: key_of(key)?, by: by?, up: name == b"incr", noreply }
        }
        (b"delete", [key]) | (b"delete", [key, b"0"]) => {
            Command::Delete { key: key_of(key)?, noreply }
        }
        (b"delete", [_, _]) => return Err(LineError::Delete),
        (b"touch", [key, exptime]) => {
            let key = key_of(key)?;
            let exptime = number(exptime).ok_or(LineError::Exptime)?;
            Command::Touch { key, exptime, noreply }
        }
        (b"flush_all", []) => Command::Flush { delay: 0, noreply },
        (b"flush_all", [delay]) => Command::Flush { delay: delay_of(delay)?, noreply },
        (b"verbosity", [_]) => Command::Verbosity { noreply },
        (b"verbosity", []) if noreply => return Err(LineError::Silent),
        // Whatever follows.
        (b"version", _) => Command::Version,
        (b"stats", []) if !noreply => Command::Stats,
        (b"quit", []) => Command::Quit,
        _ => return Err(LineError::Unknown),
    })
}

fn store<'a>(
    how: How,
    [key, flags, exptime, len]: [&'a [u8]; 4],
    noreply: bool,
) -> Result<Command<'a>, LineError> {
    let key = key_of(key)?;
    let flags = number(flags).ok_or(LineError::Format)?;
    let exptime = number::<i32>(exptime).ok_or(LineError::Format)?.into();
    let len = number::<i32>(len).ok_or(LineError::Format)?;
    let len = usize::try_from(len).map_err(|_| LineError::Format)?;
    Ok(Command::Store { set: Set { how, key, flags, exptime, noreply }, len })
}

fn key_of(word: &[u8]) -> Result<&[u8], LineError> {
    if word.len() > KEY_LEN_MAX { Err(LineError::Format) } else { Ok(word) }
}

fn number<T: std::str::FromStr>(word: &[u8]) -> Option<T> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Command, How, LineError, Set, parse};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use proptest::{collection, sample};

    #[test]
    fn lines_are_commands() {
        let set = Set { how: How::Set, key: b"a", flags: 5, exptime: -1, noreply: true };
        assert_eq!(parse(b"set a 5 -1  3 noreply"), Ok(Command::Store { set, len: 3 }));
        let keys = vec![&b"a"[..], b"noreply"];
        assert_eq!(parse(b"gets a noreply"), Ok(Command::Get { keys, numbers: true }));
        assert_eq!(parse(b"flush_all"), Ok(Command::Flush { delay: 0, noreply: false }));
        let cas = parse(b"cas a 0 0 1 77");
        assert!(matches!(cas, Ok(Command::Store { set: Set { how: How::Cas(77), .. }, .. })));
    }

    #[test]
    fn other_lines_are_answered_with_why() {
        let long = [b"get ", vec![b'k'; 251].as_slice()].concat();
        for (line, error) in [
            (&b""[..], LineError::Unknown),
            (b"get", LineError::Unknown),
            (b"set a 0 0", LineError::Unknown),
            (b"set a 0 0 -1", LineError::Format),
            (b"set a -1 0 1", LineError::Format),
            (b"set a 0 0 x noreply", LineError::Silent),
            (b"incr a x", LineError::Delta),
            (b"touch a x", LineError::Exptime),
            (b"delete a 5", LineError::Delete),
            (b"nonsense noreply", LineError::Unknown),
            (&long, LineError::Format),
        ] {
            assert_eq!(parse(line), Err(error), "{}", line.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_line_is_a_command_or_is_not(line in collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&line);
        }

        #[test]
        fn lines_of_the_right_words_in_any_order_are_read(
            words in collection::vec(sample::select(vec![
                "get", "set", "cas", "incr", "k", "0", "1", "-1", "99999999999999999999", "noreply",
            ]), 1..8),
        ) {
            if let Ok(Command::Store { set, len }) = parse(words.join(" ").as_bytes()) {
                prop_assert!(len <= 1);
                prop_assert_eq!(set.noreply, words.last() == Some(&"noreply"));
            }
        }
    }
}
