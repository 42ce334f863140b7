//! What commands do, on entries that are anywhere.

use std::hash::{DefaultHasher, Hasher};
use std::io::Write;

use ext_api::shared::Counter;

use crate::marks::{Mark, Marks};
use crate::protocol::{Command, How, Set, VALUE_LEN_MAX};

/// Entries, as kv-cache has them.
pub trait Entries {
    /// The value of `key` into `into`; false if there is none.
    ///
    /// # Errors
    /// Why they cannot be had.
    fn get(&self, key: &[u8], into: &mut Vec<u8>) -> Result<bool, String>;
    /// Keep a value, for as long as there is room if `ttl_ms` is 0.
    ///
    /// # Errors
    /// Why not.
    fn put(&self, key: &[u8], value: &[u8], ttl_ms: u64) -> Result<(), String>;
    /// Forget one; true if it was there.
    ///
    /// # Errors
    /// Why not.
    fn delete(&self, key: &[u8]) -> Result<bool, String>;
    /// Forget all.
    ///
    /// # Errors
    /// Why not.
    fn clear(&self) -> Result<(), String>;
    /// Figures, as JSON.
    ///
    /// # Errors
    /// Why there are none.
    fn stats(&self) -> Result<String, String>;
    /// Monotonic time.
    fn now_ns(&self) -> u64;
    /// Time of day, in seconds.
    fn unix_s(&self) -> i64;
}

/// What was asked for, since the extension was loaded.
#[derive(Debug, Default)]
pub struct Counts {
    gets: Counter,
    hits: Counter,
    sets: Counter,
}

/// Whose protocol it is: clients ask, and libmemcached takes a 0 in front for no version at all.
const VERSION: &str = "1.6.0";
/// Times up to this are seconds from now; later ones are times of day. The protocol's.
const RELATIVE_S_MAX: i64 = 60 * 60 * 24 * 30;

/// Entries, and what is known of them.
#[derive(Debug, Clone, Copy)]
pub struct Session<'a, E> {
    /// The entries.
    pub entries: &'a E,
    /// What they do not say of themselves.
    pub marks: &'a Marks,
    /// Counted here.
    pub counts: &'a Counts,
}

/// Three numbers of at most 20 digits, blanks and a line's end.
const LINE_END_LEN: usize = 72;

/// What stands behind the key of an entry: written into `to`, since to allocate takes longer.
fn line_end(to: &mut [u8; LINE_END_LEN], flags: u32, len: usize, number: Option<u64>) -> &[u8] {
    let mut left = &mut to[..];
    // There is room for all of it.
    let _ = write!(left, " {flags} {len}");
    let _ = number.map(|number| write!(left, " {number}"));
    let _ = left.write_all(b"\r\n");
    let written = LINE_END_LEN - left.len();
    &to[..written]
}

/// An entry that was found.
struct Found {
    value: Vec<u8>,
    mark: Mark,
}

impl<E: Entries> Session<'_, E> {
    /// Do what a line says; what `write` gets is the answer. Values that follow a line are
    /// [stored](Self::store).
    pub fn run(&self, command: &Command<'_>, write: &mut impl FnMut(&[u8])) {
        let (outcome, noreply) = match command {
            Command::Get { keys, numbers } => (self.get(keys, *numbers, write), false),
            Command::Count { key, by, up, noreply } => (self.count(key, *by, *up), *noreply),
            Command::Delete { key, noreply } => (self.delete(key), *noreply),
            Command::Touch { key, exptime, noreply } => (self.touch(key, *exptime), *noreply),
            Command::Flush { delay, noreply } => (self.flush(*delay), *noreply),
            Command::Verbosity { noreply } => (Ok("OK\r\n".into()), *noreply),
            Command::Version => (Ok(version()), false),
            Command::Stats => (self.stats(), false),
            Command::Store { .. } | Command::Quit => (Ok(String::new()), true),
        };
        if !noreply {
            write(outcome.unwrap_or_else(|error| failed(&error)).as_bytes());
        }
    }

    fn get(
        &self,
        keys: &[&[u8]],
        numbers: bool,
        write: &mut impl FnMut(&[u8]),
    ) -> Result<String, String> {
        let mut value = Vec::with_capacity(512);
        for key in keys {
            self.counts.gets.add(1);
            if !self.entries.get(key, &mut value)? {
                continue;
            }
            self.counts.hits.add(1);
            let mark = self.marks.get(key, self.entries.now_ns());
            write(b"VALUE ");
            write(key);
            let number = numbers.then(|| number_of(&value));
            let mut line = [0; LINE_END_LEN];
            write(line_end(&mut line, mark.flags, value.len(), number));
            write(&value);
            write(b"\r\n");
        }
        write(b"END\r\n");
        Ok(String::new())
    }

    /// Store `value`, which ends with a line's end that is not stored: the answer.
    #[must_use = "the answer is to be sent"]
    pub fn store(&self, set: &Set<'_>, value: &[u8]) -> String {
        self.counts.sets.add(1);
        let answer = match value.strip_suffix(b"\r\n") {
            None => "CLIENT_ERROR bad data chunk\r\n".to_owned(),
            Some(value) => self.try_store(set, value).unwrap_or_else(|error| failed(&error)),
        };
        if set.noreply { String::new() } else { answer }
    }

    fn try_store(&self, set: &Set<'_>, value: &[u8]) -> Result<String, String> {
        let found = if set.how == How::Set { None } else { self.find(set.key)? };
        let not_stored = Ok("NOT_STORED\r\n".to_owned());
        match (set.how, found) {
            (How::Add, Some(_)) | (How::Replace | How::Append | How::Prepend, None) => {
                return not_stored;
            }
            (How::Cas(_), None) => return Ok("NOT_FOUND\r\n".to_owned()),
            (How::Cas(number), Some(found)) if number_of(&found.value) != number => {
                return Ok("EXISTS\r\n".to_owned());
            }
            (How::Append | How::Prepend, Some(found))
                if found.value.len() + value.len() > VALUE_LEN_MAX =>
            {
                return not_stored;
            }
            (How::Append, Some(found)) => {
                self.put(set.key, &[&found.value, value].concat(), found.mark)?;
            }
            (How::Prepend, Some(found)) => {
                self.put(set.key, &[value, &found.value].concat(), found.mark)?;
            }
            _ => {
                let expires_ns = self.expires_ns(set.exptime);
                self.put(set.key, value, Mark { flags: set.flags, expires_ns })?;
            }
        }
        Ok("STORED\r\n".to_owned())
    }

    /// A value that is too long: the one that there is goes as well, since it is not what was wanted.
    #[must_use = "the answer is to be sent"]
    pub fn refuse_long(&self, set: &Set<'_>) -> &'static str {
        if set.how == How::Set {
            // The client hears of the longer trouble.
            let _ = self.delete(set.key);
        }
        "SERVER_ERROR object too large for cache\r\n"
    }

    fn find(&self, key: &[u8]) -> Result<Option<Found>, String> {
        let mut value = Vec::new();
        let found = self.entries.get(key, &mut value)?;
        let mark = self.marks.get(key, self.entries.now_ns());
        Ok(found.then_some(Found { value, mark }))
    }

    fn put(&self, key: &[u8], value: &[u8], mark: Mark) -> Result<(), String> {
        let left_ms = match mark.expires_ns {
            0 => 0,
            at => match at.saturating_sub(self.entries.now_ns()) / 1_000_000 {
                0 => return self.delete(key).map(drop),
                ms => ms,
            },
        };
        self.entries.put(key, value, left_ms)?;
        self.marks.set(key, mark);
        Ok(())
    }

    /// When an entry goes: 0 if it does not, and at once for a time that is past.
    fn expires_ns(&self, exptime: i64) -> u64 {
        let seconds = match exptime {
            0 => return 0,
            past if past < 0 => return 1,
            relative if relative <= RELATIVE_S_MAX => relative,
            day => (day - self.entries.unix_s()).max(0),
        };
        let ns = u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000_000);
        self.entries.now_ns().saturating_add(ns).max(1)
    }

    /// As memcached does it: what gets shorter is filled up with spaces.
    fn count(&self, key: &[u8], by: u64, up: bool) -> Result<String, String> {
        let Some(Found { value, mark }) = self.find(key)? else {
            return Ok("NOT_FOUND\r\n".into());
        };
        let Some(number) = number_in(&value) else {
            let text = "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n";
            return Ok(text.into());
        };
        let number = if up { number.wrapping_add(by) } else { number.saturating_sub(by) };
        let text = format!("{number:<0$}", value.len());
        self.put(key, text.as_bytes(), mark)?;
        Ok(format!("{number}\r\n"))
    }

    fn delete(&self, key: &[u8]) -> Result<String, String> {
        // What has expired still takes room, but is not there.
        let was_there = self.entries.get(key, &mut Vec::new())?;
        let deleted = self.entries.delete(key)? && was_there;
        self.marks.set(key, Mark::default());
        Ok(if deleted { "DELETED\r\n" } else { "NOT_FOUND\r\n" }.into())
    }

    fn touch(&self, key: &[u8], exptime: i64) -> Result<String, String> {
        let Some(Found { value, mark }) = self.find(key)? else {
            return Ok("NOT_FOUND\r\n".into());
        };
        let expires_ns = self.expires_ns(exptime);
        self.put(key, &value, Mark { expires_ns, ..mark })?;
        Ok("TOUCHED\r\n".into())
    }

    fn flush(&self, delay: i64) -> Result<String, String> {
        if delay > 0 {
            return Err("flush_all is done at once or not at all: leave out the delay".into());
        }
        self.entries.clear()?;
        self.marks.clear();
        Ok("OK\r\n".into())
    }

    fn stats(&self) -> Result<String, String> {
        let stats = self.entries.stats()?;
        let of_kv = |name: &str| {
            let behind = stats.split_once(&format!("\"{name}\":")).map_or("0", |(_, it)| it);
            let end = behind.find(|it: char| !it.is_ascii_digit()).unwrap_or(behind.len());
            behind[..end].to_owned()
        };
        let Counts { gets, hits, sets } = self.counts;
        let (gets, hits, sets) = (gets.sum(), hits.sum(), sets.sum());
        let lines = [
            ("pid", std::process::id().to_string()),
            ("time", self.entries.unix_s().to_string()),
            ("version", VERSION.to_owned()),
            ("curr_items", of_kv("entries")),
            ("bytes", of_kv("bytes")),
            ("limit_maxbytes", of_kv("limit")),
            ("evictions", of_kv("evictions")),
            ("cmd_get", gets.to_string()),
            ("cmd_set", sets.to_string()),
            ("get_hits", hits.to_string()),
            ("get_misses", gets.saturating_sub(hits).to_string()),
        ];
        let lines = lines.map(|(name, value)| format!("STAT {name} {value}\r\n"));
        Ok(lines.concat() + "END\r\n")
    }
}

fn failed(error: &str) -> String {
    let line = error.replace(['\r', '\n'], " ");
    format!("SERVER_ERROR {line}\r\n")
}

fn version() -> String {
    format!("VERSION {VERSION}\r\n")
}

/// What `gets` says and `cas` compares: a value's own, since kv-cache does not count its changes.
fn number_of(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(value);
    hasher.finish()
}

/// The number that a value begins with, up to the first space.
fn number_in(value: &[u8]) -> Option<u64> {
    let text = value.trim_ascii_start();
    let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    std::str::from_utf8(&text[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use super::{Counts, Entries, Session};
    use crate::marks::Marks;
    use crate::protocol::{Command, parse};

    /// A value, and when it goes.
    type Timed = (Vec<u8>, u64);

    /// Entries of this process, at a time of its own.
    #[derive(Debug, Default)]
    struct Here {
        all: RefCell<HashMap<Vec<u8>, Timed>>,
        now_ns: RefCell<u64>,
    }

    impl Entries for Here {
        fn get(&self, key: &[u8], into: &mut Vec<u8>) -> Result<bool, String> {
            into.clear();
            let all = self.all.borrow();
            let found = all.get(key).filter(|(_, at)| *at == 0 || *at > self.now_ns());
            into.extend(found.map_or(&[][..], |(value, _)| value));
            Ok(found.is_some())
        }

        fn put(&self, key: &[u8], value: &[u8], ttl_ms: u64) -> Result<(), String> {
            let at = if ttl_ms == 0 { 0 } else { self.now_ns() + ttl_ms * 1_000_000 };
            self.all.borrow_mut().insert(key.to_vec(), (value.to_vec(), at));
            Ok(())
        }

        fn delete(&self, key: &[u8]) -> Result<bool, String> {
            Ok(self.all.borrow_mut().remove(key).is_some())
        }

        fn clear(&self) -> Result<(), String> {
            self.all.borrow_mut().clear();
            Ok(())
        }

        fn stats(&self) -> Result<String, String> {
            Ok(format!("{{\"entries\":{},\"bytes\":7}}", self.all.borrow().len()))
        }

        fn now_ns(&self) -> u64 {
            1 + *self.now_ns.borrow()
        }

        fn unix_s(&self) -> i64 {
            1_000_000_000
        }
    }

    /// Lines, values among them, and what they are answered with.
    fn talk(here: &Here, marks: &Marks, lines: &[&str]) -> String {
        let counts = Counts::default();
        let session = Session { entries: here, marks, counts: &counts };
        let (mut said, mut lines) = (String::new(), lines.iter());
        while let Some(line) = lines.next() {
            match parse(line.as_bytes()) {
                Ok(Command::Store { set, .. }) => {
                    let value = format!("{}\r\n", lines.next().expect("a value"));
                    said += &session.store(&set, value.as_bytes());
                }
                Ok(command) => session.run(&command, &mut |bytes| {
                    said += &String::from_utf8_lossy(bytes);
                }),
                Err(error) => said += error.text(),
            }
        }
        said.replace("\r\n", "|")
    }

    #[test]
    fn commands_do_what_memcached_does() {
        let (here, marks) = (Here::default(), Marks::new().expect("room"));
        let talk = |lines: &[&str]| talk(&here, &marks, lines);
        assert_eq!(
            talk(&["set a 5 0 2", "10", "get a b a"]),
            "STORED|VALUE a 5 2|10|VALUE a 5 2|10|END|"
        );
        assert_eq!(talk(&["decr a 1", "get a", "incr a 5"]), "9|VALUE a 5 2|9 |END|14|");
        assert_eq!(talk(&["add a 0 0 1", "x", "replace b 0 0 1", "x"]), "NOT_STORED|NOT_STORED|");
        assert_eq!(talk(&["append a 0 0 1", "0", "prepend a 0 0 1", "1"]), "STORED|STORED|");
        assert_eq!(
            talk(&["get a", "delete a", "delete a"]),
            "VALUE a 5 4|1140|END|DELETED|NOT_FOUND|"
        );
        assert_eq!(talk(&["set a 0 0 1", "x", "incr a 1", "incr b 1"]).matches('|').count(), 3);
        assert_eq!(talk(&["set a 0 0 1 noreply", "y", "gets a"]).split(' ').count(), 5);
        assert_eq!(talk(&["cas a 0 0 1 1", "z", "cas b 0 0 1 1", "z"]), "EXISTS|NOT_FOUND|");
        assert!(talk(&["stats"]).contains("STAT curr_items 1|STAT bytes 7|"));
        assert_eq!(talk(&["flush_all", "get a"]), "OK|END|");
    }

    #[test]
    fn a_value_that_was_read_can_be_compared_and_set() {
        let (here, marks) = (Here::default(), Marks::new().expect("room"));
        let said = talk(&here, &marks, &["set a 0 0 1", "x", "gets a"]);
        let number = said.split(['|', ' ']).nth(5).expect("a number").to_owned();
        let cas = format!("cas a 0 0 1 {number}");
        assert_eq!(talk(&here, &marks, &[&cas, "y", &cas, "z"]), "STORED|EXISTS|");
    }

    #[test]
    fn entries_go_when_their_time_comes() {
        let (here, marks) = (Here::default(), Marks::new().expect("room"));
        let talk = |lines: &[&str]| talk(&here, &marks, lines);
        let later = |seconds: u64| *here.now_ns.borrow_mut() += seconds * 1_000_000_000;
        talk(&["set past 0 -1 1", "x", "set soon 0 5 1", "7", "set day 0 1000000009 1", "x"]);
        assert_eq!(talk(&["get past"]), "END|");
        later(4);
        assert_eq!(talk(&["incr soon 1", "touch day 100"]), "8|TOUCHED|");
        later(2);
        assert_eq!(talk(&["get soon day", "delete soon"]), "VALUE day 0 1|x|END|NOT_FOUND|");
        later(100);
        assert_eq!(talk(&["get day"]), "END|");
    }
}
