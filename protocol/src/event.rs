//! What the server tells a client, whatever the dialect.

use std::fmt;
use std::str::FromStr;

use crate::command::PayloadKind;
use crate::error::ErrorCode;

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

/// One publication as a dialect needs it.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    /// Its offset in the log.
    pub offset: u64,
    /// How to understand the bytes.
    pub kind: PayloadKind,
    /// The payload.
    pub bytes: &'a [u8],
}

/// An event for one client. `id` is the JSON text of the command's id.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// The reply to `subscribe`; the live stream follows behind `position`.
    Subscribed {
        /// Of the command.
        id: Option<&'a str>,
        /// The channel.
        channel: &'a str,
        /// Where the live stream starts, after what is replayed.
        position: Position,
        /// For a subscribe with `recover`: whether everything since then follows.
        recovered: Option<bool>,
    },
    /// The reply to `unsubscribe`.
    Unsubscribed {
        /// Of the command.
        id: Option<&'a str>,
        /// The channel.
        channel: &'a str,
    },
    /// The reply to `publish`: it is in the home shard's log.
    Published {
        /// Of the command.
        id: Option<&'a str>,
        /// The channel.
        channel: &'a str,
        /// Where it stands.
        position: Position,
    },
    /// The reply to `history`.
    History {
        /// Of the command.
        id: Option<&'a str>,
        /// The channel.
        channel: &'a str,
        /// The newest position.
        position: Position,
        /// In order of offset.
        publications: Vec<Publication<'a>>,
    },
    /// The reply to `ping`.
    Pong {
        /// Of the command.
        id: Option<&'a str>,
    },
    /// A refused command.
    Error {
        /// Of the command.
        id: Option<&'a str>,
        /// The typed reason.
        code: ErrorCode,
        /// For a person.
        message: &'a str,
    },
    /// Publications `from..=to` were not delivered, because this client read too slowly.
    Gap {
        /// The channel.
        channel: &'a str,
        /// The life of the log.
        epoch: Epoch,
        /// First offset missed.
        from: u64,
        /// Last offset missed.
        to: u64,
    },
    /// The server is going away; come back after so long.
    Drain {
        /// Differs per client, so that they do not come back all at once.
        reconnect_ms: u32,
    },
}
