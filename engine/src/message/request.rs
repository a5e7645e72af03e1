//! Work for the home shard of a channel, and where its answer goes.

use ringfeed_protocol::event::{Epoch, Meta};
use ringfeed_protocol::{ChannelName, IdempotencyKey, Lane, Offset, Position, Refused, UserId};
use sha2::{Digest as _, Sha256};
use smol_str::SmolStr;
use tokio::sync::oneshot;

use super::delivery::{ChannelPage, HistoryPage, Order, Origin, StoredPayload};
use super::errand::{Errand, ErrandId, Gathered, Listed};
use super::presence::{PresencePage, Someone};
use super::question::Caller;
use super::room::{RoomReply, RoomRequest};
use super::upstream::FromUpstream;
use crate::access::{Entry, Guest};
use crate::ids::{ConnectionId, LaneId, SessionId, ShardId};

/// Where an answer goes.
#[derive(Debug)]
pub enum Reply<T> {
    /// To a session, as a delivery.
    Session(Origin),
    /// To the control thread. One that has gone away does not undo what was done.
    Control(oneshot::Sender<T>),
}

/// Who has published something, where that matters; in a box, since mostly it does not.
pub type By = Option<Box<Sender>>;

/// Where something was published that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// On other nodes.
    Nodes,
    /// By other programs: they do not count.
    Foreign,
}

/// See [`By`].
#[derive(Debug, Clone, Default)]
pub struct Sender {
    /// The connection that is not sent it.
    pub except: Option<ConnectionId>,
    /// What subscribers are told of it.
    pub meta: Option<Box<Meta>>,
    /// Who speaks, where the channel is a room; `None` once it is known that they may.
    pub speaker: Option<Box<Speaker>>,
    /// Who wants those who get it to confirm it.
    pub confirm: Option<Box<Confirm>>,
    /// Where on other nodes, or here, that is waited for.
    pub wanted: Option<Wanted>,
    /// By which it is known again where it is sent twice.
    pub key: Option<Box<Keyed>>,
    /// A node of another system has told all nodes of it: this one tells nobody.
    pub relayed: bool,
}

/// An idempotency key and whose it is: nobody's publications are taken for those of somebody else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Keyed {
    /// Whose.
    pub of: KeyOf,
    /// The key.
    pub key: IdempotencyKey,
}

impl Keyed {
    /// What stands for it where it is remembered outside of the process: the same on every node, in every life of it.
    pub(crate) fn digest(&self) -> KeyDigest {
        let mut hash = Sha256::new();
        let (kind, of) = match &self.of {
            KeyOf::Application => (0, ""),
            KeyOf::User(user) => (1, &**user),
            KeyOf::Strangers => (2, ""),
        };
        hash.update([kind]);
        // Ids have at most 255 bytes.
        hash.update([of.len() as u8]);
        hash.update(of);
        hash.update(self.key.as_str());
        let mut digest = KeyDigest([0; 16]);
        digest.0.copy_from_slice(&hash.finalize()[..16]);
        digest
    }
}

/// A hash of an idempotency key and of whose it is: of 128 bits of a SHA-256, so that nobody finds two that share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyDigest(pub [u8; 16]);

/// Whose keys are told apart from those of others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyOf {
    /// Whoever may publish over the HTTP API.
    Application,
    /// A user, on all connections.
    User(UserId),
    /// Connections without a user, all of them: one that comes back is another connection.
    Strangers,
}

/// What the key of a publication takes in memory, in bytes.
pub(crate) fn key_bytes(by: &By) -> usize {
    let key = by.as_ref().and_then(|by| by.key.as_ref());
    key.map_or(0, |keyed| size_of::<Keyed>() + keyed.key.as_str().len())
}

/// Who wants to know who has got a publication.
#[derive(Debug, Clone)]
pub struct Confirm {
    /// Where that is told.
    pub publisher: (ShardId, SessionId),
    /// Who it is: nobody confirms to oneself.
    pub who: Someone,
    /// How long the others have.
    pub within_ms: u32,
}

/// What names a publication that is to be confirmed on all nodes, whatever offset it has there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The process where it is waited for; 0 until that has said which one it is.
    pub instance: u64,
    /// By which the channel's home there knows it; no two homes have the same.
    pub number: u64,
}

/// Who speaks in a room, as its home has to know it.
#[derive(Debug, Clone)]
pub struct Speaker {
    /// Whose subscription would make it a member.
    pub seat: (ShardId, SessionId),
    /// Who it is.
    pub guest: Guest,
}

/// A publication that comes from the control thread.
#[derive(Debug, Clone)]
pub struct Post {
    /// The channel.
    pub channel: ChannelName,
    /// What.
    pub payload: StoredPayload,
    /// Who publishes it.
    pub by: By,
}

/// How far a publication has come that is acknowledged: never further than it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// It is in the log of the channel's home.
    Accepted,
    /// It is stored in Redis.
    Redis,
    /// It is on this node's disk, and is stored in Redis once that can be reached: it has no offset yet.
    Spooled,
}

impl Ack {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Ack::Accepted => "accepted",
            Ack::Redis => "redis",
            Ack::Spooled => "spooled",
        }
    }
}

/// A publication that is in the log, or will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Where it stands; `None` as long as that is not known, with [`Ack::Spooled`].
    pub position: Option<Position>,
    /// How far it has come.
    pub ack: Ack,
    /// Subscribers of the channel at present, on all shards.
    pub subscribers: u64,
    /// It was published before, by its key: that is where it stands.
    pub duplicate: bool,
}

/// What came of a publication.
pub type Published = Result<Receipt, Refused>;

/// How many connections an order was handed to.
pub type Reached = Result<u32, Refused>;

/// Work for the home shard of a channel.
#[derive(Debug)]
pub enum Request {
    /// A session wants a channel. Answered with `Delivery::Subscribed` or `Delivery::Refused`.
    Subscribe {
        /// Who asks.
        origin: Origin,
        /// Comes back with the answer.
        attempt: u32,
        /// The channel.
        channel: ChannelName,
        /// How it is to be encoded.
        lane: Lane,
        /// Where the asking shard wants it.
        to: LaneId,
        /// The last position seen.
        recover: Option<Position>,
        /// Who it is, where the channel's rule wants that known.
        who: Option<Box<Caller>>,
        /// What it has to enter with, where the channel is a room.
        entry: Option<Box<Entry>>,
        /// What numbers the channel was asked for this one's sake where it stands.
        looked: bool,
    },
    /// A subscriber that was answered with `Delivery::Subscribed` is one no more. Not answered.
    Unsubscribe {
        /// Its shard.
        shard: ShardId,
        /// Who it was.
        session: SessionId,
        /// The channel.
        channel: ChannelName,
        /// On this lane.
        lane: Lane,
    },
    /// A subscriber of a channel whose home knows who is there is, or has become, somebody. Not answered.
    Member {
        /// Its shard.
        shard: ShardId,
        /// The subscriber.
        session: SessionId,
        /// The channel.
        channel: ChannelName,
        /// Who it is.
        who: Box<Caller>,
    },
    /// A publication by a session; answered with `Delivery::Published` or `Delivery::Refused` if there
    /// is an origin.
    Publish {
        /// Who wants an answer.
        origin: Option<Origin>,
        /// The channel.
        channel: ChannelName,
        /// What.
        payload: StoredPayload,
        /// Who publishes it.
        by: By,
        /// Whom the application is to be asked about before it is published; `None` where it need not be.
        ask: Option<Box<Caller>>,
    },
    /// A publication has come to a subscriber; answered with `Delivery::Confirmed` or `Delivery::Refused` if there is an
    /// origin.
    Confirm {
        /// Its shard.
        shard: ShardId,
        /// The subscriber.
        session: SessionId,
        /// Who wants an answer.
        origin: Option<Origin>,
        /// The channel.
        channel: ChannelName,
        /// The life that the subscriber knows, where it says so.
        epoch: Option<Epoch>,
        /// The publication.
        offset: Offset,
    },
    /// Publications from the control thread, answered all at once.
    PublishBatch {
        /// Each with its place in the caller's list.
        items: Vec<(u32, Post)>,
        /// Where the answers go.
        reply: oneshot::Sender<Vec<(u32, Published)>>,
    },
    /// Read a channel's history; a session is answered with `Delivery::History`. `None` if the channel
    /// does not exist.
    History {
        /// The channel.
        channel: ChannelName,
        /// Behind this offset.
        after: Option<Offset>,
        /// At most so many.
        limit: u32,
        /// Who asks.
        reply: Reply<Option<HistoryPage>>,
    },
    /// See who is on a channel; a session is answered with `Delivery::Presence`. `None` if the channel does not exist.
    Presence {
        /// The channel.
        channel: ChannelName,
        /// Name those behind this one.
        after: Option<Box<Someone>>,
        /// Name at most so many.
        limit: u32,
        /// Who asks.
        reply: Reply<Option<PresencePage>>,
    },
    /// Something about a room, from the control thread.
    Room {
        /// The channel.
        channel: ChannelName,
        /// What.
        what: Box<RoomRequest>,
        /// Where the answer goes.
        reply: RoomReply,
    },
    /// A page of the channels homed here, for the control thread.
    ListChannels {
        /// Place in the table where the page begins; 0 is its start.
        from: u32,
        /// Where the answer goes.
        reply: oneshot::Sender<ChannelPage>,
    },
    /// Readers of this shard who read are behind on a lane, or no more: publications of the channel
    /// are to be held back meanwhile. Not answered.
    Pressure {
        /// The readers' shard.
        shard: ShardId,
        /// The channel.
        channel: ChannelName,
        /// The lane.
        lane: Lane,
        /// Whether they are behind.
        on: bool,
    },
    /// Something for the home of a user.
    User {
        /// The user.
        user: UserId,
        /// What.
        what: Box<UserRequest>,
    },
    /// An order for one connection of this shard; answered with how many it reached, 0 or 1, or refused.
    Connection {
        /// Which.
        connection: ConnectionId,
        /// What.
        order: Box<Order>,
        /// Where the answer goes.
        reply: oneshot::Sender<Reached>,
    },
    /// Whoever is what this says is let in no more, and who is there has to go.
    Revoke(Revocation),
    /// What numbers a channel says something.
    Upstream {
        /// The channel.
        channel: ChannelName,
        /// What.
        what: Box<FromUpstream>,
    },
    /// The way to what numbers channels was interrupted, and is there again.
    Resume,
    /// What nodes ask of one another.
    Nodes(NodesRequest),
    /// Another process that was taken for gone is there.
    NodeBack(u64),
    /// Another process is not there any more: nobody is on any channel there.
    NodeGone {
        /// Which.
        instance: u64,
        /// This one.
        own: u64,
    },
    /// Something is missing, or may be, that was published elsewhere on channels that are not numbered.
    Missed(Missing),
    /// Publications of other nodes, which nobody numbers for all. Not answered.
    Shared(Vec<Post>),
    /// There are new settings.
    Reconfigure,
    /// Stop accepting, tell the clients, flush, close.
    Drain,
}

/// What nodes ask of one another.
#[derive(Debug)]
pub enum NodesRequest {
    /// Another one asks something of this one. Answered with `ToUpstream::Outcome`.
    Errand {
        /// Which.
        id: ErrandId,
        /// What.
        errand: Box<Errand>,
    },
    /// Something is to be asked of all others, from the control thread.
    Ask {
        /// What.
        errand: Box<Errand>,
        /// Where the answer goes.
        reply: oneshot::Sender<Gathered>,
    },
    /// To `ToUpstream::Errand`.
    Gathered {
        /// Of which.
        ticket: u64,
        /// What has come of it.
        gathered: Gathered,
    },
}

impl NodesRequest {
    fn cost(&self) -> usize {
        match self {
            NodesRequest::Errand { errand, .. } | NodesRequest::Ask { errand, .. } => errand.cost(),
            NodesRequest::Gathered { gathered, .. } => {
                gathered.as_ref().map_or(0, |outcome| size_of_val(&outcome.connections[..]))
            }
        }
    }
}

/// Work for the home of a user.
#[derive(Debug)]
pub enum UserRequest {
    /// A connection of the user is there. Answered with `Order::TooMany` where there are too many.
    Join(UserConnection),
    /// It is there no more.
    Leave {
        /// Its shard.
        shard: ShardId,
        /// Its session.
        session: SessionId,
    },
    /// A connection of the user wants to enter a room. Answered with `Delivery::Entering`.
    Enter {
        /// Its subscribe.
        subscribe: Box<Request>,
    },
    /// It is there no more, or was not let in.
    LeaveRoom {
        /// Its shard.
        shard: ShardId,
        /// Its session.
        session: SessionId,
        /// The room.
        channel: ChannelName,
    },
    /// An order for all connections, or for one.
    Order {
        /// Which one; `None` for all.
        connection: Option<ConnectionId>,
        /// What.
        order: Order,
        /// Answered with how many connections it was handed to; `Order::Send` may be refused, as a whole.
        reply: Reply<Reached>,
    },
    /// Which connections there are.
    List {
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Vec<Listed>, Refused>>,
    },
}

/// A connection of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserConnection {
    /// Its shard.
    pub shard: ShardId,
    /// Its session.
    pub session: SessionId,
    /// Its name outside.
    pub connection: ConnectionId,
    /// Seconds since 1970 in which it was authenticated.
    pub since: u64,
}

/// Who is let in no more, until a time in seconds since 1970 when no token of theirs is good any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Who.
    pub whom: Revoked,
    /// Until when.
    pub until: u64,
}

/// See [`Revocation`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Revoked {
    /// Who has come with the token that has this id.
    Token(SmolStr),
    /// The user, as vouched for up to this time in seconds since 1970.
    User(UserId, u64),
}

impl Request {
    /// The channel or the user whose home it is for; `None` if it is for a certain shard.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Request::User { user, .. } => Some(user),
            other => other.channel().map(ChannelName::as_str),
        }
    }

    /// The channel whose home it is for.
    pub(crate) fn channel(&self) -> Option<&ChannelName> {
        match self {
            Request::Subscribe { channel, .. }
            | Request::Unsubscribe { channel, .. }
            | Request::Member { channel, .. }
            | Request::Presence { channel, .. }
            | Request::Publish { channel, .. }
            | Request::Confirm { channel, .. }
            | Request::Pressure { channel, .. }
            | Request::Room { channel, .. }
            | Request::Upstream { channel, .. }
            | Request::History { channel, .. } => Some(channel),
            Request::PublishBatch { .. }
            | Request::ListChannels { .. }
            | Request::User { .. }
            | Request::Connection { .. }
            | Request::Revoke(_)
            | Request::Nodes(_)
            | Request::NodeBack(_)
            | Request::NodeGone { .. }
            | Request::Resume
            | Request::Missed(_)
            | Request::Shared(_)
            | Request::Reconfigure
            | Request::Drain => None,
        }
    }

    /// The session that it comes from, where it stays behind what that has asked before: commands that have an answer
    /// but do not publish, and who the session is.
    pub(crate) fn session(&self) -> Option<(ShardId, SessionId)> {
        match self {
            Request::Subscribe { origin, .. }
            | Request::History { reply: Reply::Session(origin), .. }
            | Request::Presence { reply: Reply::Session(origin), .. } => {
                Some((origin.shard, origin.session))
            }
            Request::Member { shard, session, .. } | Request::Confirm { shard, session, .. } => {
                Some((*shard, *session))
            }
            _ => None,
        }
    }

    /// Bytes that it holds while it waits.
    pub(crate) fn cost(&self) -> usize {
        let payloads = match self {
            Request::Publish { payload, by, .. } => payload.bytes.len() + key_bytes(by),
            // Who it is is the session's.
            Request::Subscribe { who, entry, .. } => {
                who.as_ref().map_or(0, |_| size_of::<Caller>())
                    + entry.as_ref().map_or(0, |_| size_of::<Entry>())
            }
            Request::Member { .. } => size_of::<Caller>(),
            Request::Presence { after: Some(_), .. } => size_of::<Someone>(),
            Request::PublishBatch { items, .. } => {
                let cost =
                    |(_, post): &(u32, Post)| post.payload.bytes.len() + 64 + key_bytes(&post.by);
                items.iter().map(cost).sum()
            }
            Request::Shared(posts) => {
                posts.iter().map(|post| post.payload.bytes.len() + size_of::<Post>()).sum()
            }
            Request::Upstream { what, .. } => what.cost(),
            Request::Nodes(what) => what.cost(),
            Request::User { what, .. } => {
                let more = match &**what {
                    UserRequest::Order { order, .. } => order.cost(),
                    UserRequest::Enter { subscribe } => subscribe.cost(),
                    _ => 0,
                };
                size_of::<UserRequest>() + more
            }
            _ => 0,
        };
        payloads + size_of::<Request>()
    }
}
