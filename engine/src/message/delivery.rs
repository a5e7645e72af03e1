//! Work for the shard of a subscriber, or of a command's sender.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ringfeed_protocol::command::{Payload, PayloadKind};
use ringfeed_protocol::event::Meta;
use ringfeed_protocol::{ChannelName, Lane, Offset, Position, Refused, UserId};

use super::presence::{PresencePage, Someone};
use super::request::{Ack, Request};
use crate::ids::{ConnectionId, LaneId, SessionId, ShardId};

/// A command of a session, to which an answer is owed.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The session's shard.
    pub shard: ShardId,
    /// The session.
    pub session: SessionId,
    /// JSON text of the command's id.
    pub id: Option<Box<str>>,
}

/// A payload that outlives the message it came in.
#[derive(Debug, Clone)]
pub struct StoredPayload {
    /// How to understand the bytes.
    pub kind: PayloadKind,
    /// The payload.
    pub bytes: Bytes,
}

impl StoredPayload {
    /// The same, borrowed.
    pub fn borrowed(&self) -> Payload<'_> {
        Payload { kind: self.kind, bytes: Cow::Borrowed(&self.bytes) }
    }
}

impl From<Payload<'_>> for StoredPayload {
    fn from(Payload { kind, bytes }: Payload) -> StoredPayload {
        StoredPayload { kind, bytes: Bytes::from(bytes.into_owned()) }
    }
}

/// A publication in a channel's history.
#[derive(Debug, Clone)]
pub struct StoredPublication {
    /// Its offset.
    pub offset: Offset,
    /// What was published.
    pub payload: StoredPayload,
    /// Who published it and when, in channels that tell.
    pub meta: Option<Box<Meta>>,
}

/// What a channel's history holds behind some offset.
#[derive(Debug)]
pub struct HistoryPage {
    /// The newest position.
    pub position: Position,
    /// In order of offset.
    pub publications: Vec<StoredPublication>,
}

/// One row of `GET /api/channels`.
#[derive(Debug)]
pub struct ChannelRow {
    /// The name.
    pub name: ChannelName,
    /// The newest position.
    pub position: Position,
    /// Subscribers on all shards.
    pub subscribers: u64,
    /// Publications kept.
    pub history: usize,
}

/// Some of a shard's channels.
#[derive(Debug)]
pub struct ChannelPage {
    /// In no order.
    pub rows: Vec<ChannelRow>,
    /// Where the next page begins; `None` behind the last.
    pub next: Option<u32>,
}

/// Where one frame of a chunk ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEnd {
    /// Bytes from the start of the chunk to the end of the frame.
    pub end: u32,
    /// Publications of the chunk that are complete there.
    pub publications: u32,
}

/// Where the frames of a chunk end. It stands beside the bytes, so that nobody has to parse them.
#[derive(Debug, Clone, Default)]
pub struct FrameIndex(Option<Arc<[FrameEnd]>>);

impl FrameIndex {
    /// Of a chunk whose frames end there, in order; the last one at the chunk's end.
    pub fn new(ends: &[FrameEnd]) -> FrameIndex {
        // Mostly a chunk is one frame, whose end is the chunk's.
        FrameIndex((ends.len() > 1).then(|| Arc::from(ends)))
    }

    /// Of chunks that follow each other, as one: of each its index, its length and its publications.
    pub fn joined<'a>(chunks: impl Iterator<Item = (&'a FrameIndex, usize, u32)>) -> FrameIndex {
        let (mut all, mut bytes, mut before) = (Vec::new(), 0, 0);
        for (index, len, count) in chunks {
            // Lengths of chunks are 32-bit numbers, and those of blocks of them.
            let alone = [FrameEnd { end: len as u32, publications: count }];
            let ends = index.0.as_deref().unwrap_or(&alone);
            all.extend(ends.iter().map(|frame| FrameEnd {
                end: bytes + frame.end,
                publications: before + frame.publications,
            }));
            (bytes, before) = (bytes + len as u32, before + count);
        }
        FrameIndex::new(&all)
    }

    /// Publications that are complete within the first `bytes` of a chunk that has `count` of them in
    /// `len` bytes.
    pub fn publications_within(&self, bytes: usize, len: usize, count: u32) -> u32 {
        let Some(ends) = &self.0 else { return if bytes >= len { count } else { 0 } };
        let whole = ends.partition_point(|frame| frame.end as usize <= bytes);
        whole.checked_sub(1).and_then(|last| ends.get(last)).map_or(0, |frame| frame.publications)
    }

    /// Where the frame ends in which byte `at` of a chunk of `len` bytes lies; `None` if a frame begins
    /// there.
    pub fn end_of_frame(&self, at: usize, len: usize) -> Option<usize> {
        let Some(ends) = &self.0 else { return (at > 0 && at < len).then_some(len) };
        let next = ends.partition_point(|frame| frame.end as usize <= at);
        let begins = next.checked_sub(1).and_then(|last| ends.get(last)).map_or(0, |f| f.end);
        ends.get(next).filter(|_| at > begins as usize).map(|frame| frame.end as usize)
    }

    /// What it takes in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |ends| size_of_val::<[FrameEnd]>(ends))
    }
}

/// New publications of a channel in one lane: whole frames.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The frames.
    pub bytes: Bytes,
    /// Where they end.
    pub frames: FrameIndex,
    /// Offset of the first publication.
    pub first_offset: Offset,
    /// How many.
    pub count: u32,
    /// When the first was published.
    pub at: Instant,
}

impl Chunk {
    /// Copies what several shards share: to count together who still needs it costs more.
    pub fn unshare(&mut self) {
        if !self.bytes.is_unique() {
            self.bytes = Bytes::copy_from_slice(&self.bytes);
            self.frames = FrameIndex(self.frames.0.as_deref().map(Arc::from));
        }
    }
}

/// A frame of a chunk that one connection is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skip {
    /// Which.
    pub connection: ConnectionId,
    /// Bytes from the start of the chunk to the start of the frame, …
    pub from: u32,
    /// … and to its end.
    pub to: u32,
}

/// Frames of what a subscriber missed, in order.
#[derive(Debug, Default)]
pub struct Replay {
    /// Of the history's memory, shared with everybody who misses them.
    pub shared: Vec<Bytes>,
    /// The newest, encoded for this subscriber alone.
    pub own: Bytes,
}

/// Whether the home of a channel keeps who has subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// It does not.
    Off,
    /// It does, and knows who this is.
    Known,
    /// It does, and was not told: by its shard's settings it does not.
    Wanted,
}

/// Where a subscription starts.
#[derive(Debug)]
pub struct Start {
    /// The live stream follows behind it.
    pub position: Position,
    /// The answer to `recover`.
    pub recovered: Option<bool>,
    /// What was missed, up to `position`.
    pub replay: Replay,
    /// Subscribers of the channel, on all shards.
    pub subscribers: u64,
    /// Whether the home is to know who this is.
    pub naming: Naming,
}

/// Work for the shard of a subscriber or of a command's sender.
#[derive(Debug)]
pub enum Delivery {
    /// New publications.
    Chunk {
        /// Where the shard wants them.
        to: LaneId,
        /// The publications.
        chunk: Chunk,
        /// What of it connections of the shard are not sent, in order.
        skips: Vec<Skip>,
    },
    /// Behind the chunks so far, a channel goes on in another life or behind a hole.
    Renewed {
        /// Where the shard wants its chunks.
        to: LaneId,
        /// What comes next is behind this.
        position: Position,
        /// In the life of that position, what is from here up to it has not come to those who are there; it begins
        /// behind `position` where nothing is missing.
        lost: Offset,
        /// Whether those end who have no words for what is missing.
        ends: bool,
    },
    /// A subscription stands.
    Subscribed {
        /// Who asked.
        origin: Origin,
        /// As given.
        attempt: u32,
        /// The channel.
        channel: ChannelName,
        /// The lane.
        lane: Lane,
        /// Where it starts.
        start: Start,
    },
    /// A publication is in the log.
    Published {
        /// Who asked.
        origin: Origin,
        /// The channel.
        channel: ChannelName,
        /// Where it stands.
        position: Option<Position>,
        /// How far it has come.
        ack: Ack,
        /// Subscribers of the channel, on all shards.
        subscribers: u64,
        /// It was published before, by its key.
        duplicate: bool,
    },
    /// A confirmation was noted.
    Confirmed {
        /// Who asked.
        origin: Origin,
        /// The channel.
        channel: ChannelName,
        /// The publication.
        offset: Offset,
        /// Whether it was waited for.
        in_time: bool,
    },
    /// Who has confirmed a publication, and who has not in time.
    Receipts {
        /// The publisher.
        session: SessionId,
        /// The channel.
        channel: ChannelName,
        /// The publication.
        position: Position,
        /// In the order in which they have.
        confirmed: Vec<Someone>,
        /// In order.
        missing: Vec<Someone>,
    },
    /// What was asked of the history.
    History {
        /// Who asked.
        origin: Origin,
        /// The channel.
        channel: ChannelName,
        /// The answer.
        page: Result<HistoryPage, Refused>,
    },
    /// Who is on a channel.
    Presence {
        /// Who asked.
        origin: Origin,
        /// The channel.
        channel: ChannelName,
        /// The answer.
        page: Result<Box<PresencePage>, Refused>,
    },
    /// A command was refused by the home.
    Refused {
        /// Who asked.
        origin: Origin,
        /// Of a subscribe: as given.
        attempt: Option<u32>,
        /// Why.
        refused: Refused,
    },
    /// An order for connections of a user.
    Order {
        /// Which.
        sessions: Vec<SessionId>,
        /// What.
        order: Order,
    },
    /// The application was asked about a publication of a connection, or need not be: what is asked about the connection
    /// next comes behind it.
    Asked(ConnectionId),
    /// The home of a user has counted a room, or not: what its session asks next comes behind the subscribe.
    Entering {
        /// The subscribe.
        subscribe: Box<Request>,
        /// Whether it may go on to the home of the room.
        counted: Result<(), Refused>,
    },
    /// To how many connections something was handed.
    Handed {
        /// Who asked.
        origin: Origin,
        /// Of whom.
        user: UserId,
        /// How many.
        connections: u32,
    },
    /// The sender drains and publishes nothing more: everything that it appended has come before this.
    Closed,
}

/// What a frame with something that is sent to a user takes in an outbox, besides what is sent.
const FRAME_BYTES: usize = 128;

/// Sessions that one order names: a shard looks at the time behind each, and a session takes some microseconds.
pub(crate) const SESSIONS_PER_ORDER: usize = 128;

/// What is to be done with a connection.
#[derive(Debug, Clone)]
pub enum Order {
    /// It is sent this.
    Send {
        /// The user who sends it; `None` for the application.
        from: Option<UserId>,
        /// What.
        payload: StoredPayload,
    },
    /// It is closed.
    Disconnect {
        /// With this code.
        code: u16,
        /// For this reason.
        reason: Box<str>,
    },
    /// Its subscription ends.
    Unsubscribe(ChannelName),
    /// Its subscription ends, since the room does.
    LeaveRoom(ChannelName),
    /// Its user has too many: it is closed.
    TooMany,
}

impl Order {
    /// Bytes that it holds while it waits.
    pub(crate) fn cost(&self) -> usize {
        match self {
            Order::Send { payload, .. } => payload.bytes.len(),
            Order::Disconnect { reason, .. } => reason.len(),
            Order::Unsubscribe(_) | Order::LeaveRoom(_) | Order::TooMany => 0,
        }
    }
}

impl Delivery {
    /// Bytes that it adds to outboxes because somebody sends them: about as many as are written there.
    pub(crate) fn sent_bytes(&self) -> usize {
        match self {
            Delivery::Order { sessions, order: Order::Send { payload, .. } } => {
                sessions.len().saturating_mul(payload.bytes.len() + FRAME_BYTES)
            }
            _ => 0,
        }
    }

    /// Bytes that it holds while it waits.
    pub(crate) fn cost(&self) -> usize {
        size_of::<Delivery>()
            + match self {
                Delivery::Chunk { chunk, skips, .. } => {
                    chunk.bytes.len() + chunk.frames.bytes() + size_of_val(&skips[..])
                }
                // What is shared belongs to the history.
                Delivery::Subscribed { start: Start { replay, .. }, .. } => {
                    size_of_val(&replay.shared[..]) + replay.own.len()
                }
                Delivery::History { page, .. } => {
                    page.iter().flat_map(|p| &p.publications).map(|p| p.payload.bytes.len()).sum()
                }
                Delivery::Presence { page, .. } => page.as_ref().map_or(0, |page| page.cost()),
                Delivery::Receipts { confirmed, missing, .. } => {
                    size_of_val(&confirmed[..]) + size_of_val(&missing[..])
                }
                Delivery::Entering { subscribe, .. } => subscribe.cost(),
                Delivery::Order { sessions, order } => size_of_val(&sessions[..]) + order.cost(),
                _ => 0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_knows_frames_and_publications_at_every_byte() {
        // Frames of 3, 1 and 4 bytes; the second completes no publication, the third two.
        let ends =
            [(3, 1), (4, 1), (8, 3)].map(|(end, publications)| FrameEnd { end, publications });
        let index = FrameIndex::new(&ends);
        let within: Vec<u32> = (0..=8).map(|at| index.publications_within(at, 8, 3)).collect();
        assert_eq!(within, [0, 0, 0, 1, 1, 1, 1, 1, 3]);
        let rest: Vec<_> = (0..=8).map(|at| index.end_of_frame(at, 8)).collect();
        let (a, c) = (Some(3), Some(8));
        assert_eq!(rest, [None, a, a, None, None, c, c, c, None]);
    }

    #[test]
    fn a_chunk_of_one_frame_needs_no_index() {
        let index = FrameIndex::new(&[FrameEnd { end: 5, publications: 2 }]);
        assert_eq!(index.bytes(), 0);
        assert_eq!(
            (index.publications_within(4, 5, 2), index.publications_within(5, 5, 2)),
            (0, 2)
        );
        let rest: Vec<_> = (0..=5).map(|at| index.end_of_frame(at, 5)).collect();
        assert_eq!(rest, [None, Some(5), Some(5), Some(5), Some(5), None]);
    }
}
