//! What the server tells a client, whatever the dialect.

use crate::command::PayloadKind;
use crate::error::ErrorCode;
pub use crate::position::{Epoch, Offset, Position};
use crate::user_id::UserId;
use smol_str::SmolStr;

/// One publication as a dialect needs it.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    /// Its offset in the log.
    pub offset: Offset,
    /// How to understand the bytes.
    pub kind: PayloadKind,
    /// The payload.
    pub bytes: &'a [u8],
    /// Who published it and when, in channels that tell.
    pub meta: Option<&'a Meta>,
}

impl<'a> Publication<'a> {
    /// A payload that stands in no log.
    pub(crate) fn plain(kind: PayloadKind, bytes: &'a [u8]) -> Publication<'a> {
        Publication { offset: Offset::NONE, kind, bytes, meta: None }
    }
}

/// Who published something, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// The user; `None` for the application, and for who has not said who they are.
    pub user: Option<UserId>,
    /// The publisher's connection, as [`crate::dialect::Opening::number`]; 0 for the application.
    pub number: u32,
    /// Whether those who get it are asked to confirm it.
    pub confirm: bool,
}

/// Somebody who may be on a channel: a user, or a connection that is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Someone<'a> {
    /// With any number of connections.
    User(&'a UserId),
    /// As the HTTP API names it.
    Connection(&'a str),
}

/// Somebody who is on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Present<'a> {
    /// Who.
    pub who: Someone<'a>,
    /// JSON that others are shown of them.
    pub info: Option<&'a str>,
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
        /// Subscribers of the channel, on all connections, this one among them.
        subscribers: u64,
    },
    /// The reply to `unsubscribe`, or word that the subscription was ended here.
    Unsubscribed {
        /// Of the command.
        id: Option<&'a str>,
        /// The channel.
        channel: &'a str,
        /// Why, where the client has not asked for it.
        reason: Option<&'a str>,
    },
    /// Who the client is: the greeting of a connection that was authenticated, and the reply to `auth`.
    Connected {
        /// Of the command.
        id: Option<&'a str>,
        /// The connection, as the HTTP API names it.
        connection: &'a str,
        /// The user, unless nobody has said who that is.
        user: Option<&'a UserId>,
        /// What else is known of it: `role:NAME` and `claim:NAME=VALUE`.
        attributes: &'a [SmolStr],
        /// Milliseconds after which the connection is closed unless a newer token was shown.
        expires_in_ms: Option<u64>,
    },
    /// The reply to `send`.
    Sent {
        /// Of the command.
        id: Option<&'a str>,
        /// The user.
        user: &'a UserId,
        /// Connections of that user that it was handed to.
        connections: u32,
    },
    /// Something for this client alone, or for all connections of its user.
    Direct {
        /// The user who has sent it; `None` for the application.
        from: Option<&'a UserId>,
        /// How to understand the bytes.
        kind: PayloadKind,
        /// The payload.
        bytes: &'a [u8],
    },
    /// What the application says to a message that it was asked about.
    Reply {
        /// Of the message.
        id: Option<&'a str>,
        /// JSON.
        data: &'a str,
    },
    /// What a method that was called gives. Not [`Event::Reply`]: that is the application's to a message whose type it alone
    /// knows, may have no id, and is nothing that a dialect with calls of its own could take for the end of one.
    Result {
        /// Of the call.
        id: &'a str,
        /// JSON.
        data: &'a str,
    },
    /// The reply to `publish`: it is in the log of the channel, or will be.
    Published {
        /// Of the command.
        id: Option<&'a str>,
        /// The channel.
        channel: &'a str,
        /// Where it stands, once that is known.
        position: Option<Position>,
        /// How far it has come: `accepted`, `redis` where it is stored there, or `spooled` where it is kept on disk until it
        /// can be.
        ack: &'static str,
        /// Subscribers of the channel, on all connections.
        subscribers: u64,
        /// It was published before, by its key: that is where it stands.
        duplicate: bool,
    },
    /// The reply to `confirm`.
    Confirmed {
        /// Of the command.
        id: Option<&'a str>,
        /// The channel.
        channel: &'a str,
        /// The publication.
        offset: Offset,
        /// Whether it was waited for.
        in_time: bool,
    },
    /// Who has confirmed a publication of this client, and who has not in time.
    Receipts {
        /// The channel.
        channel: &'a str,
        /// The publication.
        position: Position,
        /// In the order in which they have.
        confirmed: Vec<Someone<'a>>,
        /// In order.
        missing: Vec<Someone<'a>>,
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
    /// The reply to `presence`.
    Presence {
        /// Of the command.
        id: Option<&'a str>,
        /// The channel.
        channel: &'a str,
        /// The life of the channel, in which versions count.
        epoch: Epoch,
        /// How often who is there has changed in it.
        version: u64,
        /// How many users and connections without a user are there.
        count: u64,
        /// How many connections they have.
        connections: u64,
        /// In order; `None` where only numbers are told.
        users: Option<Vec<Present<'a>>>,
        /// From where to ask on, where there are more.
        next: Option<&'a str>,
    },
    /// Somebody has left a channel.
    Leave {
        /// The channel.
        channel: &'a str,
        /// How often who is there had changed by then.
        version: u64,
        /// Who; nothing is shown of them.
        users: Vec<Present<'a>>,
        /// When it is told, in milliseconds since 1970.
        time_ms: u64,
    },
    /// Somebody has come to a channel, or is shown otherwise from now on.
    Join {
        /// The channel.
        channel: &'a str,
        /// As for those who left.
        version: u64,
        /// Who.
        users: Vec<Present<'a>>,
    },
    /// So many are on a channel after changes that are not told one by one.
    Count {
        /// The channel.
        channel: &'a str,
        /// As for those who left.
        version: u64,
        /// How many.
        count: u64,
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
    /// Publications `from..=to` were not delivered: this client read too slowly, or they are lost. In another epoch than
    /// before, the channel goes on in that life; `from` is `to` + 1 or both are 0 where nothing of it is missing.
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
