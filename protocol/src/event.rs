//! What the server tells a client, whatever the dialect.

use crate::command::PayloadKind;
use crate::error::ErrorCode;
pub use crate::position::{Epoch, Offset, Position};

/// One publication as a dialect needs it.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    /// Its offset in the log.
    pub offset: Offset,
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
        from: Offset,
        /// Last offset missed.
        to: Offset,
    },
    /// The server is going away; come back after so long.
    Drain {
        /// Differs per client, so that they do not come back all at once.
        reconnect_ms: u32,
    },
}
