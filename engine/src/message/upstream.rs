//! What a home and its *upstream* tell each other: what numbers the publications of a channel where that is not the home
//! itself. Redis does, or the channel's home on another node.
//!
//! A home *follows*: it asks where the channel stands, is told what is published from then on, and asks again wherever
//! offsets have a hole, another epoch comes, or the way to the upstream was interrupted. So it needs no promise that
//! nothing is lost on the way, only that what it asks is answered with what is true.

use std::sync::Arc;

use ringfeed_protocol::event::{Epoch, Meta};
use ringfeed_protocol::{ChannelName, Offset, Position, Refused};
use tokio::sync::Notify;

use super::delivery::StoredPayload;
use super::errand::{Errand, ErrandId, Outcome};
use super::mailbox::{Batch, Intake, NotTaken, Outlet, queue};
use super::presence::{Confirming, Roll};
use super::request::{By, KeyDigest, Sender, Wanted};
use super::room::RoomWord;
use crate::ids::{ConnectionId, ShardId};

/// Work for what connects the shards with the upstream.
#[derive(Debug)]
pub enum ToUpstream {
    /// From now on a channel's publications are wanted, and what came behind a position. Answered with
    /// [`FromUpstream::Followed`]; what is published behind that answer is told with [`FromUpstream::Publications`].
    Follow {
        /// The channel.
        channel: ChannelName,
        /// Where the home stands; `None` where it knows of nothing.
        since: Option<Position>,
        /// Comes back with the answer.
        ask: u32,
    },
    /// They are wanted no more.
    Unfollow {
        /// The channel.
        channel: ChannelName,
    },
    /// Something is to be published. Answered with [`FromUpstream::Stored`]. Publications to one channel keep their order.
    Publish {
        /// The channel.
        channel: ChannelName,
        /// Comes back with the answer.
        ticket: u64,
        /// What.
        publication: Outgoing,
        /// Its idempotency key, if it has one.
        key: Option<KeyDigest>,
    },
    /// Something was published here that other nodes are to publish, too: nobody numbers it for all. Not answered.
    Share {
        /// The channel.
        channel: ChannelName,
        /// What.
        publication: Outgoing,
    },
    /// Who is on a channel here, for the nodes that have it, or for one. Where it asks, it is answered with
    /// [`FromUpstream::RollHeardBy`]. Not kept while they cannot be reached.
    Roll {
        /// The channel.
        channel: ChannelName,
        /// Whether it is numbered elsewhere: only those are told who follow it.
        numbered: bool,
        /// The process for which it is; `None` for all.
        to: Option<u64>,
        /// What.
        roll: Roll,
    },
    /// Something of who has got a publication, for the nodes that have its channel, or for one. Where it asks all, it is answered with
    /// [`FromUpstream::WhoHeardBy`]. Not kept while they cannot be reached.
    Confirming {
        /// The channel.
        channel: ChannelName,
        /// Whether it is numbered elsewhere: only those are told who follow it.
        numbered: bool,
        /// The process for which it is; `None` for all.
        to: Option<u64>,
        /// What.
        what: Confirming,
    },
    /// All other nodes are to do something. Answered with `NodesRequest::Gathered`.
    Errand {
        /// The shard that asks.
        from: ShardId,
        /// Comes back with the answer.
        ticket: u64,
        /// What.
        errand: Errand,
    },
    /// What counts of a room from now on: it has ended with its last member, or goes on nevertheless. Not answered.
    Room(Box<RoomWord>),
    /// What has come here of the errand of another node.
    Outcome {
        /// Of which.
        of: ErrandId,
        /// What.
        outcome: Outcome,
    },
}

impl ToUpstream {
    /// Bytes that it holds while it waits.
    pub(crate) fn cost(&self) -> usize {
        let payload = match self {
            ToUpstream::Publish { publication, .. } | ToUpstream::Share { publication, .. } => {
                publication.payload.bytes.len()
            }
            ToUpstream::Errand { errand, .. } => errand.cost(),
            ToUpstream::Roll { roll, .. } => roll.cost(),
            ToUpstream::Room(word) => word.bytes(),
            ToUpstream::Confirming { what, .. } => what.cost(),
            ToUpstream::Outcome { outcome, .. } => size_of_val(&outcome.connections[..]),
            ToUpstream::Follow { .. } | ToUpstream::Unfollow { .. } => 0,
        };
        payload + size_of::<ToUpstream>()
    }
}

/// A publication on its way to who numbers it.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// What.
    pub payload: StoredPayload,
    /// Who publishes it and when, in channels that tell.
    pub meta: Option<Box<Meta>>,
    /// The connection that is not sent it.
    pub except: Option<ConnectionId>,
    /// Where it is waited for who has got it.
    pub wanted: Option<Wanted>,
}

impl Outgoing {
    /// Of a publication and who publishes it.
    pub(crate) fn new(payload: StoredPayload, by: Option<&Sender>) -> Outgoing {
        let meta = by.and_then(|by| by.meta.clone());
        let (except, wanted) = by.map_or((None, None), |by| (by.except, by.wanted));
        Outgoing { payload, meta, except, wanted }
    }

    /// The publication, and who publishes it.
    pub(crate) fn into_parts(self) -> (StoredPayload, By) {
        let Outgoing { payload, meta, except, wanted } = self;
        let says = meta.is_some() || except.is_some() || wanted.is_some();
        (payload, says.then(|| Box::new(Sender { meta, except, wanted, ..Sender::default() })))
    }
}

/// A publication that has its offset.
#[derive(Debug, Clone)]
pub struct Numbered {
    /// The offset.
    pub offset: Offset,
    /// For how long it has been there, in milliseconds.
    pub age_ms: u64,
    /// What, and by whom.
    pub publication: Outgoing,
}

/// What the upstream tells the home of a channel.
#[derive(Debug)]
pub enum FromUpstream {
    /// To [`ToUpstream::Follow`].
    Followed {
        /// As given.
        ask: u32,
        /// Where the channel stands.
        followed: Followed,
    },
    /// The upstream cannot be reached: nothing that was asked is answered.
    Away,
    /// To [`ToUpstream::Follow`]: it cannot be said.
    NotRead {
        /// As given.
        ask: u32,
    },
    /// Something may have been published that was not told, and what was asked may not be answered: the home asks again.
    Interrupted,
    /// New publications, in order.
    Publications {
        /// Of this life of the channel.
        epoch: Epoch,
        /// Which.
        publications: Vec<Numbered>,
    },
    /// To [`ToUpstream::Publish`].
    Stored {
        /// Of which.
        ticket: u64,
        /// What has become of it, or why it was not published.
        stored: Result<Stored, Refused>,
    },
    /// Another process says who is on the channel there.
    Roll {
        /// Which.
        from: u64,
        /// What.
        roll: Roll,
    },
    /// So many others were asked who is there.
    RollHeardBy(usize),
    /// So many others were asked who was there when a publication came.
    WhoHeardBy {
        /// Which.
        number: u64,
        /// How many.
        count: usize,
    },
    /// Another process says something of who has got a publication.
    Confirming {
        /// Which.
        from: u64,
        /// What.
        what: Confirming,
    },
}

/// What has become of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It has its offset.
    At {
        /// Where it stands.
        position: Position,
        /// It did before, published with the same idempotency key.
        duplicate: bool,
    },
    /// It is kept on disk until the upstream can be reached.
    Spooled,
}

impl FromUpstream {
    /// Bytes that it holds while it waits.
    pub(crate) fn cost(&self) -> usize {
        let publications = match self {
            FromUpstream::Followed { followed, .. } => &followed.publications[..],
            FromUpstream::Publications { publications, .. } => publications,
            FromUpstream::Roll { roll, .. } => return size_of::<FromUpstream>() + roll.cost(),
            FromUpstream::Confirming { what, .. } => {
                return size_of::<FromUpstream>() + what.cost();
            }
            FromUpstream::Away
            | FromUpstream::NotRead { .. }
            | FromUpstream::Interrupted
            | FromUpstream::Stored { .. }
            | FromUpstream::WhoHeardBy { .. }
            | FromUpstream::RollHeardBy(_) => &[],
        };
        let payloads = publications.iter().map(|p| p.publication.payload.bytes.len());
        size_of::<FromUpstream>() + size_of_val(publications) + payloads.sum::<usize>()
    }
}

/// Where a channel stands upstream.
#[derive(Debug, Default)]
pub struct Followed {
    /// The newest position.
    pub position: Position,
    /// Earlier lives of the channel of which this one is the continuation: of each the offset up to which what was
    /// published in it stands in this one, too, under the same offset.
    pub lineage: Vec<(Epoch, Offset)>,
    /// What came behind the position that was asked about, or where that is no position of this life, behind what
    /// it has in common with it; the oldest first, without holes, as much as fits one answer. Where it does not begin
    /// right there, what is between is gone. Where they have nothing in common, this is all of this life or nothing.
    pub publications: Vec<Numbered>,
}

impl Followed {
    /// The offset up to which a position's life and this one are the same; `None` where they have nothing in common.
    pub fn shared_with(&self, epoch: Epoch) -> Option<Offset> {
        shared_with(self.position.epoch, &self.lineage, epoch)
    }
}

/// See [`Followed::shared_with`]; of this life itself all is shared.
pub(crate) fn shared_with(own: Epoch, lineage: &[(Epoch, Offset)], epoch: Epoch) -> Option<Offset> {
    if epoch == own {
        return Some(Offset(u64::MAX));
    }
    lineage.iter().find(|(of, _)| *of == epoch).map(|&(_, to)| to)
}

/// The ways from all shards to their upstream: one bounded queue each.
#[derive(Debug)]
pub struct Upstream {
    ways: Vec<(Outlet<ToUpstream>, Intake<ToUpstream>)>,
    news: Arc<Notify>,
}

impl Upstream {
    /// For so many shards, with room for so many batches each.
    pub(crate) fn new(shards: u16, batches: usize) -> Upstream {
        let ways = (0..shards).map(|_| queue(batches)).collect();
        Upstream { ways, news: Arc::default() }
    }

    /// Hands over what a shard has.
    pub(crate) fn send(
        &self,
        from: ShardId,
        batch: Batch<ToUpstream>,
    ) -> Result<(), NotTaken<Batch<ToUpstream>>> {
        let Some((outlet, _)) = self.ways.get(from.index()) else {
            return Err(NotTaken::Gone(batch));
        };
        outlet.send(batch)?;
        self.news.notify_one();
        Ok(())
    }

    /// The next batch of a shard, if there is one; for the one who connects them.
    pub fn take(&self, from: ShardId) -> Option<Vec<ToUpstream>> {
        self.ways.get(from.index())?.1.take()
    }

    /// Notified when there is something to take.
    pub fn news(&self) -> Arc<Notify> {
        self.news.clone()
    }
}
