//! The configuration that an extension is loaded with: `key=value`, separated by commas or lines.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

/// A key whose value does not fit, or that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// Keys and values. Every key must be asked for: one that is left over was misspelt.
///
/// A copy shares what has been asked for.
#[derive(Debug, Default, Clone)]
pub struct Config {
    values: Rc<BTreeMap<String, String>>,
    asked: Rc<RefCell<Vec<String>>>,
}

impl Config {
    /// Read `key=value` pairs.
    ///
    /// # Errors
    /// A piece without `=`, or a key given twice.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut values = BTreeMap::new();
        for piece in text.split([',', '\n']).map(str::trim).filter(|piece| !piece.is_empty()) {
            let (key, value) = piece.split_once('=').ok_or_else(|| {
                ConfigError(format!("configuration {piece:?}: expected key=value"))
            })?;
            if values.insert(key.trim().to_owned(), value.trim().to_owned()).is_some() {
                return Err(ConfigError(format!("configuration key {key:?} is given twice")));
            }
        }
        Ok(Self { values: Rc::new(values), asked: Rc::default() })
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.asked.borrow_mut().push(key.to_owned());
        self.values.get(key).map(String::as_str)
    }

    /// The value of `key`, or `default`.
    ///
    /// # Errors
    /// The text is not a `T`.
    pub fn get<T: FromStr>(&self, key: &str, default: T) -> Result<T, ConfigError> {
        let Some(text) = self.text(key) else { return Ok(default) };
        text.parse().map_err(|_| {
            ConfigError(format!("{key}={text}: expected a {}", std::any::type_name::<T>()))
        })
    }

    /// A number of bytes, such as `64M`.
    ///
    /// # Errors
    /// The text is not a number with an optional K, M or G.
    pub fn bytes(&self, key: &str, default: usize) -> Result<usize, ConfigError> {
        let Some(text) = self.text(key) else { return Ok(default) };
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K') => (&text[..text.len() - 1], 10),
            Some(b'M') => (&text[..text.len() - 1], 20),
            Some(b'G') => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        let number = digits.parse::<usize>().ok();
        number.and_then(|number| number.checked_mul(1 << shift)).ok_or_else(|| {
            ConfigError(format!("{key}={text}: expected a number of bytes, such as 64M"))
        })
    }

    /// A time, such as `200ms`, `2s` or `5m`.
    ///
    /// # Errors
    /// The text is not a number with such a unit.
    pub fn duration(&self, key: &str, default: Duration) -> Result<Duration, ConfigError> {
        let Some(text) = self.text(key) else { return Ok(default) };
        let units = [("ms", 1), ("s", 1_000), ("m", 60_000)];
        let scaled = units.iter().find_map(|&(unit, ms)| {
            let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
            number.checked_mul(ms).map(Duration::from_millis)
        });
        scaled.ok_or_else(|| {
            ConfigError(format!("{key}={text}: expected a time, such as 200ms, 2s or 5m"))
        })
    }

    /// # Errors
    /// A key is left over that nobody asked for. `#[extension]` asks this after `init`.
    pub fn finish(&self) -> Result<(), ConfigError> {
        let asked = self.asked.borrow();
        match self.values.keys().find(|key| !asked.contains(key)) {
            None => Ok(()),
            Some(key) => Err(ConfigError(format!(
                "unknown configuration key {key:?}; known keys: {}",
                if asked.is_empty() { "none".into() } else { asked.join(", ") }
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Config;

    #[test]
    fn values_are_typed_and_unknown_keys_named() {
        let config = Config::parse("limit=64M, rate=5\nname=x").unwrap();
        assert_eq!(config.bytes("limit", 0), Ok(64 << 20));
        assert_eq!(config.get("rate", 1u64), Ok(5));
        assert_eq!(config.get("other", 7u64), Ok(7));
        let times = Config::parse("a=200ms,b=2s,c=5m,d=7").unwrap();
        let ms = |key| times.duration(key, Duration::ZERO).map(|time| time.as_millis());
        assert_eq!([ms("a"), ms("b"), ms("c"), ms("e")], [Ok(200), Ok(2_000), Ok(300_000), Ok(0)]);
        assert!(ms("d").unwrap_err().to_string().contains("d=7: expected a time"));
        let left = config.finish().unwrap_err().to_string();
        assert!(left.contains("\"name\"") && left.contains("limit, rate, other"), "{left}");
        assert!(config.get("name", 0u64).unwrap_err().to_string().contains("name=x"));
    }

    #[test]
    fn malformed_text_is_refused() {
        assert!(Config::parse("novalue").is_err());
        assert!(Config::parse("a=1,a=2").is_err());
        assert!(Config::parse("a=99999999999G").unwrap().bytes("a", 0).is_err());
    }
}
