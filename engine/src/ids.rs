//! Numbers that name things, each of its own type, so that none is taken for another.

use std::fmt;
use std::ops::{Add, Sub};

/// Number of a shard, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

impl ShardId {
    /// For tables with one entry a shard.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Place of a session in its shard's table; somebody else's after the session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionSlot(pub u32);

impl SessionSlot {
    /// For tables with one entry a slot.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A connection of one shard; stale after it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    /// Place in the shard's table.
    pub slot: SessionSlot,
    /// Never the same for two sessions in one place.
    pub generation: u32,
}

/// A connection as it is named outside: never the same for two connections, of this process or another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    /// Its shard.
    pub shard: ShardId,
    /// Counts the shard's connections, from a number drawn at its start.
    pub number: u64,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}{:016x}", self.shard.0, self.number)
    }
}

/// What came as the id of a connection is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a connection id has 20 hexadecimal digits")]
pub struct BadConnectionId;

impl std::str::FromStr for ConnectionId {
    type Err = BadConnectionId;
    fn from_str(text: &str) -> Result<ConnectionId, BadConnectionId> {
        let digits = text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (shard, number) = text.split_at_checked(4).filter(|_| digits).ok_or(BadConnectionId)?;
        let shard = ShardId(u16::from_str_radix(shard, 16).map_err(|_| BadConnectionId)?);
        let number = u64::from_str_radix(number, 16).map_err(|_| BadConnectionId)?;
        Ok(ConnectionId { shard, number })
    }
}

/// A question of one shard; stale after its answer, or its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Place in the shard's table.
    pub slot: u32,
    /// Never the same for two questions in one place.
    pub generation: u32,
}

/// A lane of a channel on one shard; stale after its last user has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LaneId {
    /// Place in the shard's table.
    pub slot: u32,
    /// Counts the lanes of the shard.
    pub generation: u32,
}

impl LaneId {
    /// Whether the lane was made after the other, of the same shard. They are of one time: not so many are made
    /// in between that the count comes round.
    pub fn is_newer(self, other: LaneId) -> bool {
        let later = self.generation.wrapping_sub(other.generation);
        (1..1 << 31).contains(&later)
    }
}

/// A place in a log: bytes since the log began. Never goes back, and a `u64` does not overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition(pub u64);

impl LogPosition {
    /// Where a log begins.
    pub const START: LogPosition = LogPosition(0);
}

impl Add<usize> for LogPosition {
    type Output = LogPosition;
    fn add(self, bytes: usize) -> LogPosition {
        LogPosition(self.0 + bytes as u64)
    }
}

impl Sub for LogPosition {
    type Output = usize;
    /// Bytes from `earlier` to here; 0 if it is not earlier.
    fn sub(self, earlier: LogPosition) -> usize {
        // What lies between two positions of one log is in memory.
        self.0.saturating_sub(earlier.0) as usize
    }
}
