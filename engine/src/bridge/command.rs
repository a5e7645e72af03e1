//! What the bridge asks of Redis, and what comes back.

use bytes::Bytes;
use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::{ChannelName, Offset, Position};

use crate::message::Followed;

/// Something to be asked of Redis. Commands are done in the order in which they were given.
#[derive(Debug, Clone)]
pub enum Command {
    /// To hear what is published on these numbered channels. Redis confirms each ([`super::Bridge::subscribed`]); there is no
    /// other answer.
    Subscribe(Vec<ChannelName>),
    /// To hear it no more. Not answered.
    Unsubscribe(ChannelName),
    /// To append publications to a channel. Answered with [`Reply::Appended`].
    Append(Append),
    /// To say where a channel stands. Answered with [`Reply::Read`].
    Read(Read),
    /// To hand a publication of a channel that is not numbered to all nodes. Not answered.
    Share {
        /// The channel.
        channel: ChannelName,
        /// As [`super::item::encode_shared`] makes it.
        bytes: Bytes,
    },
}

/// Appends publications to a channel, all of them or none, and publishes them to all nodes.
///
/// Redis keeps for each channel and instance the number of the last publication that it has appended, and where: what it is
/// asked to append once more it has not, and says where it stands.
#[derive(Debug, Clone)]
pub struct Append {
    /// The channel.
    pub channel: ChannelName,
    /// Who asks.
    pub instance: u64,
    /// Number of the first publication; the others follow it. Numbers of an instance only grow.
    pub first: u64,
    /// The publications, as [`super::item::encode`] makes them.
    pub items: Vec<Bytes>,
}

/// Asks where a channel stands, and what came behind a position.
///
/// A channel that Redis does not know begins a life, with a new epoch. So does, behind the offset that it has, one that was
/// written in another life of Redis, or that had got further by `since` than it is: Redis may have lost what others have seen.
#[derive(Debug, Clone)]
pub struct Read {
    /// The channel.
    pub channel: ChannelName,
    /// Where the home stands; `None` where it wants nothing but the newest position.
    pub since: Option<Position>,
}

/// What Redis answers.
#[derive(Debug)]
pub enum Reply {
    /// To [`Command::Append`].
    Appended {
        /// The life of the channel.
        epoch: Epoch,
        /// Offset of the last publication; the others stand right before it.
        last: Offset,
    },
    /// To [`Command::Read`].
    Read(Followed),
}

/// Why a command has no answer, although the connection is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// Redis refuses: it is out of memory, or the key is of another type.
    Refused,
}
