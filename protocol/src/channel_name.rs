//! Channel names: what is allowed, checked once where a name enters.

use std::fmt;

use smol_str::SmolStr;

/// Longest name in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// A valid channel name: 1 to 255 bytes of UTF-8 without white space, control characters, `"`,
/// `\` and `*`. Such a name needs no escaping in JSON, and `*` stays free for patterns. Up to 23 bytes stand in
/// the value itself: to look a name up, or to take it from a command, no other memory is touched.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(SmolStr);

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChannelNameError {
    /// Empty.
    #[error("channel name is empty; allowed are 1 to {NAME_BYTES_MAX} bytes")]
    Empty,
    /// Too long.
    #[error("channel name has {0} bytes; allowed are 1 to {NAME_BYTES_MAX}")]
    TooLong(usize),
    /// A character that names may not hold.
    #[error(
        "channel name holds {0:?}; white space, control characters, '\"', '\\' and '*' are not allowed"
    )]
    BadCharacter(char),
}

/// Whether a name may hold a character.
pub(crate) fn is_allowed(c: char) -> bool {
    !(c.is_whitespace() || c.is_control() || matches!(c, '"' | '\\' | '*'))
}

/// Checks a name without taking memory for it.
pub fn check(name: &str) -> Result<(), ChannelNameError> {
    if name.is_empty() {
        return Err(ChannelNameError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(ChannelNameError::TooLong(name.len()));
    }
    match name.chars().find(|&c| !is_allowed(c)) {
        Some(c) => Err(ChannelNameError::BadCharacter(c)),
        None => Ok(()),
    }
}

impl ChannelName {
    /// Checks and takes a name.
    pub fn new(name: &str) -> Result<ChannelName, ChannelNameError> {
        check(name)?;
        Ok(ChannelName(SmolStr::new(name)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::ops::Deref for ChannelName {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_real_streams_are_allowed() {
        for name in ["btcusdt@trade", "bench.btcusd_perp@depth@0ms", "räume/1", "a"] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn each_rule_refuses_with_its_own_error() {
        assert_eq!(check(""), Err(ChannelNameError::Empty));
        assert_eq!(check(&"x".repeat(256)), Err(ChannelNameError::TooLong(256)));
        for c in [' ', '\n', '"', '\\', '*', '\u{7f}', '\u{a0}'] {
            assert_eq!(check(&format!("a{c}b")), Err(ChannelNameError::BadCharacter(c)));
        }
    }
}
