//! Where a publication stands: the life of its channel's log, and its number there.

use std::fmt;
use std::ops::Add;
use std::str::FromStr;

/// A place in a channel's log. Offsets are dense within an epoch: the first publication has offset
/// 1. A new life of the log has a new random epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The life of the log.
    pub epoch: Epoch,
    /// The last publication seen.
    pub offset: Offset,
}

/// The number of a publication in its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(pub u64);

impl Offset {
    /// Before the first publication.
    pub const NONE: Offset = Offset(0);

    /// The one behind it. No channel has 2^64 publications; what a client says may.
    pub fn next(self) -> Offset {
        Offset(self.0.saturating_add(1))
    }

    /// This one and all behind it.
    pub fn onwards(self) -> impl Iterator<Item = Offset> {
        (self.0..).map(Offset)
    }

    /// Publications behind `earlier` up to this one; 0 where it is not earlier.
    pub fn since(self, earlier: Offset) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Add<u64> for Offset {
    type Output = Offset;
    fn add(self, publications: u64) -> Offset {
        Offset(self.0 + publications)
    }
}

/// A random name for one life of a log, written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
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
