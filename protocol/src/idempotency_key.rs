//! Idempotency keys: by which a publication that is sent twice is known again.

use std::fmt;

use smol_str::SmolStr;

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 128;

/// A valid key: 1 to 128 printable ASCII characters, space among them. Publishers choose it, a random one for each
/// message, and keep it for as long as they may send that message again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(SmolStr);

/// Why a key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdempotencyKeyError {
    /// Empty.
    #[error(
        "'idempotency_key' is empty; allowed are 1 to {KEY_BYTES_MAX} printable ASCII characters"
    )]
    Empty,
    /// Too long.
    #[error(
        "'idempotency_key' has {0} bytes; allowed are 1 to {KEY_BYTES_MAX} printable ASCII characters"
    )]
    TooLong(usize),
    /// A character that keys may not hold.
    #[error(
        "'idempotency_key' holds {0:?}; allowed are 1 to {KEY_BYTES_MAX} printable ASCII characters"
    )]
    BadCharacter(char),
}

impl IdempotencyKey {
    /// Checks and takes a key.
    pub fn new(key: &str) -> Result<IdempotencyKey, IdempotencyKeyError> {
        if key.is_empty() {
            return Err(IdempotencyKeyError::Empty);
        }
        if key.len() > KEY_BYTES_MAX {
            return Err(IdempotencyKeyError::TooLong(key.len()));
        }
        match key.chars().find(|c| !matches!(c, ' '..='~')) {
            Some(c) => Err(IdempotencyKeyError::BadCharacter(c)),
            None => Ok(IdempotencyKey(SmolStr::new(key))),
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_publishers_use_is_a_key_and_each_rule_refuses_with_its_own_error() {
        for key in ["1", "0b2f8a9e-4c55-4ef4-9d5b-6f1f8a3c7d21", "order 17 / paid", "~"] {
            assert_eq!(IdempotencyKey::new(key).map(|key| key.to_string()), Ok(key.into()));
        }
        assert!(IdempotencyKey::new(&"k".repeat(KEY_BYTES_MAX)).is_ok());
        assert_eq!(IdempotencyKey::new(""), Err(IdempotencyKeyError::Empty));
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        assert_eq!(IdempotencyKey::new(&long), Err(IdempotencyKeyError::TooLong(129)));
        for c in ['\n', '\0', '\u{7f}', 'é'] {
            let refused = IdempotencyKey::new(&format!("a{c}b")).unwrap_err();
            assert_eq!(refused, IdempotencyKeyError::BadCharacter(c));
            assert!(refused.to_string().contains("allowed are 1 to 128 printable ASCII"));
        }
    }
}
