//! The registry's keys: where they are, on its own side and on the side of those who ask it. Never an argument, which everybody
//! on a machine can read.

use std::fmt;
use std::path::PathBuf;

use crate::callers::{Caller, Callers, KeyHash};
use crate::config::file;

/// The variable with the keys, with commas between them.
pub const KEY_VARIABLE: &str = "RINGFEED_REGISTRY_KEY";
/// Longest key, and longest file with keys, in bytes.
const KEY_BYTES_MAX: usize = 4096;
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Keys that hold at a time: more than one while they are being changed.
const KEYS_MAX: usize = 16;
/// Shortest key where others than this machine can try.
const OPEN_KEY_BYTES_MIN: usize = 16;

/// One key.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Box<str>);

impl Key {
    /// One that was looked at.
    pub(crate) fn of(key: &str) -> Key {
        Key(key.into())
    }

    /// As it is sent.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Keys that cannot be used. Says where they were looked for, and never what was found.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {why}")]
pub struct KeyError {
    place: String,
    why: String,
}

/// Where keys are.
#[derive(Debug, Clone, Default)]
pub struct KeySources {
    /// Files with a key on each line; empty lines and those that begin with `#` are none.
    pub files: Vec<PathBuf>,
    /// What [`KEY_VARIABLE`] holds, if no file is named.
    pub variable: Option<Key>,
}

impl KeySources {
    /// Files as they were named, or the environment of this process where none was.
    pub fn new(files: Vec<PathBuf>) -> Result<KeySources, KeyError> {
        let variable = match std::env::var(KEY_VARIABLE) {
            Ok(value) if files.is_empty() => Some(Key(value.into())),
            Err(std::env::VarError::NotUnicode(_)) if files.is_empty() => {
                return Err(error(KEY_VARIABLE, "what it holds is not UTF-8"));
            }
            _ => None,
        };
        Ok(KeySources { files, variable })
    }

    /// Reads them; there may be none. The first is the one that is sent by who asks.
    pub fn read(&self) -> Result<Vec<Key>, KeyError> {
        let mut keys = Vec::new();
        for path in &self.files {
            let place = path.display().to_string();
            let wrong = |why: &str| error(&place, why);
            match std::fs::metadata(path) {
                Ok(found) if !found.is_file() => return Err(wrong("it is not a file")),
                _ => {}
            }
            let text = file::read_text(path, FILE_BYTES_MAX).map_err(|e| wrong(&e.to_string()))?;
            let lines = text.lines().map(str::trim);
            let before = keys.len();
            for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
                keys.push(checked(line).map_err(wrong)?);
            }
            if keys.len() == before {
                return Err(wrong("there is no key in it"));
            }
        }
        for part in self.variable.iter().flat_map(|value| value.0.split(',')) {
            keys.push(checked(part.trim()).map_err(|why| error(KEY_VARIABLE, why))?);
        }
        if keys.len() > KEYS_MAX {
            return Err(error("the keys", "allowed are at most 16"));
        }
        Ok(keys)
    }

    /// Who may ask a registry: at least one, and where others than this machine can try, none that is short.
    pub(super) fn callers(&self, on_loopback: bool) -> Result<Callers, KeyError> {
        let keys = self.read()?;
        if keys.is_empty() {
            return Err(error(
                "a key is needed",
                "name a file that has it with --key-file, or set RINGFEED_REGISTRY_KEY; \
                 `openssl rand -hex 32` makes one",
            ));
        }
        if !on_loopback && keys.iter().any(|key| key.0.len() < OPEN_KEY_BYTES_MIN) {
            return Err(error("the keys", "beyond loopback a key needs at least 16 characters"));
        }
        let caller = |(number, key): (usize, &Key)| {
            (KeyHash::of(key.0.as_bytes()), Caller::of_everything(number.to_string()))
        };
        Ok(Callers::new(keys.iter().enumerate().map(caller).collect()))
    }
}

fn error(place: &str, why: &str) -> KeyError {
    KeyError { place: place.to_owned(), why: why.to_owned() }
}

fn checked(key: &str) -> Result<Key, &'static str> {
    if key.is_empty() {
        return Err("it is empty");
    }
    // As a header can carry it; a comma is between keys in the environment.
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b',';
    match key.len() <= KEY_BYTES_MAX && key.bytes().all(fits) {
        true => Ok(Key(key.into())),
        false => Err("allowed in a key are visible ASCII characters but commas, at most 4096"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let sources = KeySources { files: vec![file.path().into()], variable: None };
        let keys = sources.read().map_err(|e| e.to_string())?;
        assert!(!format!("{keys:?}").contains("key"), "{keys:?}");
        Ok(keys.iter().map(|key| key.expose().to_owned()).collect())
    }

    #[test]
    fn a_file_may_hold_several_keys_and_the_first_is_the_one_that_is_sent() {
        assert_eq!(read("a-key\n").unwrap(), ["a-key"]);
        assert_eq!(read("# new\r\nkey-2\r\n\n# old\nkey-1").unwrap(), ["key-2", "key-1"]);
        for bad in ["", "\n# key\n", "a key", "a,key", "k\u{e9}y", &"k".repeat(4097)] {
            let error = read(bad).unwrap_err();
            assert!(!error.contains("key\u{e9}") && !error.contains("a key,"), "{error}");
        }
        assert!(read(&"key\n".repeat(17)).is_err());
        let missing = KeySources { files: vec!["/no/such".into()], variable: None };
        assert!(missing.read().unwrap_err().to_string().starts_with("/no/such: "));
        let device = KeySources { files: vec!["/dev/zero".into()], variable: None };
        assert!(device.read().unwrap_err().to_string().contains("not a file"));
    }

    #[test]
    fn a_registry_has_a_key_and_beyond_loopback_no_short_one() {
        let sources = |key: &str| KeySources {
            files: Vec::new(),
            variable: (!key.is_empty()).then(|| Key(key.into())),
        };
        assert!(sources("").callers(true).unwrap_err().to_string().contains("--key-file"));
        assert!(sources("short").callers(true).is_ok());
        assert!(sources("short").callers(false).unwrap_err().to_string().contains("16"));
        let both = sources("0123456789abcdef,fedcba9876543210").callers(false).unwrap();
        assert!(both.find(b"fedcba9876543210").is_some() && both.find(b"short").is_none());
    }
}
