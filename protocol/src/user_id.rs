//! User ids: what is allowed, checked once where one enters.

use std::fmt;

use smol_str::SmolStr;

/// Longest id in bytes.
pub const USER_ID_BYTES_MAX: usize = 255;

/// Who somebody is, as the application that vouches for them names them: 1 to 255 bytes of UTF-8 without control
/// characters. Up to 23 bytes stand in the value itself.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(SmolStr);

/// Why an id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserIdError {
    /// Empty.
    #[error("user id is empty; allowed are 1 to {USER_ID_BYTES_MAX} bytes")]
    Empty,
    /// Too long.
    #[error("user id has {0} bytes; allowed are 1 to {USER_ID_BYTES_MAX}")]
    TooLong(usize),
    /// A control character.
    #[error("user id holds {0:?}; control characters are not allowed")]
    BadCharacter(char),
}

impl UserId {
    /// Checks and takes an id.
    pub fn new(id: &str) -> Result<UserId, UserIdError> {
        if id.is_empty() {
            return Err(UserIdError::Empty);
        }
        if id.len() > USER_ID_BYTES_MAX {
            return Err(UserIdError::TooLong(id.len()));
        }
        match id.chars().find(|c| c.is_control()) {
            Some(c) => Err(UserIdError::BadCharacter(c)),
            None => Ok(UserId(SmolStr::new(id))),
        }
    }
}

impl std::ops::Deref for UserId {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for UserId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_real_systems_are_allowed_and_control_characters_are_not() {
        for id in ["42", "auth0|5f7c8ec7c33c6c004bbafe82", "ann@example.org", "Änne B.", "*"] {
            assert_eq!(&*UserId::new(id).unwrap(), id);
        }
        assert_eq!(UserId::new(""), Err(UserIdError::Empty));
        assert_eq!(UserId::new(&"x".repeat(256)), Err(UserIdError::TooLong(256)));
        assert_eq!(UserId::new("a\nb"), Err(UserIdError::BadCharacter('\n')));
    }
}
