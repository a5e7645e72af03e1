//! What the bridge asks of Redis, and what comes back.

use bytes::Bytes;
use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::{ChannelName, Offset, Position};

use crate::message::{Followed, Kept, KeyDigest};

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
    /// To pass something on to nodes. Answered with [`Reply::HeardBy`].
    Message(To, Bytes),
    /// To hand a publication of a channel that is not numbered to all nodes. Not answered.
    Share {
        /// The channel.
        channel: ChannelName,
        /// As [`super::item::encode_shared`] makes it.
        bytes: Bytes,
    },
    /// To keep something until it is over, and to pass it on to all nodes. Of two revocations of the same one that keeps what
    /// each says at most, of two words about a room the later. Answered with [`Reply::HeardBy`].
    Keep {
        /// What.
        kept: Kept,
        /// The errand that says it to the others.
        errand: Bytes,
    },
    /// To say what is kept, some at a time. Answered with [`Reply::Kept`].
    AllKept {
        /// From there: 0, or what the last answer has said.
        from: u64,
    },
}

/// For whom a message between nodes is.
#[derive(Debug, Clone)]
pub enum To {
    /// All, this one among them, that hear how much each has published.
    Beats,
    /// All, this one among them: something is to be done.
    Errands,
    /// One process.
    Process(u64),
    /// Those that follow this numbered channel, this one among them.
    Followers(ChannelName),
    /// All, this one among them: about this channel, which is not numbered.
    Sharers(ChannelName),
}

/// Appends publications to a channel, all of them or none, and publishes them to all nodes.
///
/// Redis keeps for each channel and instance the number of the last publication that it has appended, and where: a command
/// that it is given once more it does not do again, and says what it has said. Of one that only begins with what was
/// appended it does the rest; what it says of the places of the others means nothing.
#[derive(Debug, Clone)]
pub struct Append {
    /// The channel.
    pub channel: ChannelName,
    /// Who asks.
    pub instance: u64,
    /// The publications, at least one.
    pub items: Vec<Item>,
}

/// A publication that is to be appended.
#[derive(Debug, Clone)]
pub struct Item {
    /// By which Redis knows it again; numbers of an instance only grow.
    pub number: u64,
    /// As [`super::item::encode`] makes it.
    pub bytes: Bytes,
    /// Its idempotency key, if it has one: what was appended under it is not appended again as long as the key is remembered.
    pub key: Option<KeyDigest>,
}

/// Asks where a channel stands, and what came behind a position.
///
/// A channel that Redis does not know begins a life, with a new epoch. So does, behind the offset that it has, one that was
/// written in another life of Redis, or that had got further by `since` than it is: Redis may have lost what others have seen.
/// Of a life that continues none everything is told to who stands in another, if all of it is kept.
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
        /// Offset of the last publication; the others that were appended stand right before it.
        last: Offset,
        /// Those that were not, since they were before: their places among what was asked for, and where they stand.
        duplicates: Vec<(u32, Position)>,
    },
    /// To [`Command::Read`].
    Read(Followed),
    /// To [`Command::Message`] and [`Command::Keep`]: so many have heard it.
    HeardBy(usize),
    /// To [`Command::AllKept`]: some, and where to go on if there are more. All that are there from the first question to
    /// the last answer are told.
    Kept(Vec<Kept>, Option<u64>),
}

/// Why a command has no answer, although the connection is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// Redis refuses, for now: it is out of memory, or cannot write.
    Refused,
    /// It always will: the key is of another type, or there are no offsets left.
    Never,
    /// What it is about is moved from one server to another, for too long: neither does it now.
    Moving,
    /// Who is to do it could not be reached for too long, or has not answered: it may have been done.
    Unknown,
}
