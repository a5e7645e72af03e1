//! Where a publication stands: the life of its channel's log, and its number there.

use std::fmt;
use std::str::FromStr;

/// A place in a channel's log. Offsets are dense within an epoch: the first publication has offset
/// 1. A new life of the log has a new random epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The life of the log.
    pub epoch: Epoch,
    /// The last publication seen; 0 before the first.
    pub offset: u64,
}

/// A random name for one life of a log, written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Epoch {
    type Err = ();
    fn from_str(text: &str) -> Result<Epoch, ()> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(());
        }
        u64::from_str_radix(text, 16).map(Epoch).map_err(|_| ())
    }
}
