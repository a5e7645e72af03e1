//! What crosses between shards, and between the control thread and the shards.
//!
//! Every shard has two bounded queues of batches. *Requests* (subscribe, publish, …) are work for a
//! channel's home and may cause *deliveries*; deliveries (chunks, replies) are work for the shard
//! of a subscriber and cause nothing further across shards. A shard that cannot get rid of its
//! deliveries stops taking requests, but never the other way round, so two shards cannot wait for
//! each other. Nothing is dropped: what does not fit waits in the sender's `Links`, and publishers
//! are slowed down there.

use std::collections::VecDeque;
use std::fs::File;
use std::hash::{Hash as _, Hasher as _};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::{ChannelName, ErrorCode, Lane, Position};
use siphasher::sip::SipHasher13;
use tokio::sync::oneshot;

use crate::shard::session::SessionId;

/// Batches in each queue. With [`BATCH_BYTES_MAX`] it bounds a queue to 64 MiB of payload.
pub const QUEUE_BATCHES: usize = 256;
/// A batch is closed at so many items …
const BATCH_ITEMS_MAX: usize = 512;
/// … or so many bytes of payload.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Number of a shard, from 0.
pub type ShardId = u16;

/// A payload that outlives the message it came in.
#[derive(Debug, Clone)]
pub struct StoredPayload {
    /// How to understand the bytes.
    pub kind: PayloadKind,
    /// The payload.
    pub bytes: Bytes,
}

/// A publication in a channel's history.
#[derive(Debug, Clone)]
pub struct StoredPublication {
    /// Its offset.
    pub offset: u64,
    /// What was published.
    pub payload: StoredPayload,
}

/// The life of a channel at its home, unique in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChannelKey(pub u64);

/// Where a reply goes: a command of a session.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The session's shard.
    pub shard: ShardId,
    /// The session.
    pub session: SessionId,
    /// JSON text of the command's id.
    pub id: Option<Box<str>>,
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

/// What came of a publication through the API.
pub type Published = Result<Position, (ErrorCode, String)>;

/// Work for the home shard of a channel.
pub enum Request {
    /// A session wants a channel. Answered with `Delivery::Subscribed` or `Refused`.
    Subscribe {
        /// Who asks.
        origin: Origin,
        /// Comes back with the answer.
        attempt: u32,
        /// The channel.
        channel: ChannelName,
        /// How it is to be encoded.
        lane: Lane,
        /// The last position seen.
        recover: Option<Position>,
    },
    /// One subscriber less. Not answered.
    Unsubscribe {
        /// Of this shard.
        shard: ShardId,
        /// The channel.
        channel: ChannelName,
        /// On this lane.
        lane: Lane,
    },
    /// Publish; answered with `Delivery::Published` if there is an origin.
    Publish {
        /// Who wants an answer.
        origin: Option<Origin>,
        /// The channel.
        channel: ChannelName,
        /// What.
        payload: StoredPayload,
    },
    /// Read a channel's history; answered with `Delivery::History`.
    History {
        /// Who asks.
        origin: Origin,
        /// The channel.
        channel: ChannelName,
        /// Behind this offset.
        after: Option<u64>,
        /// At most so many.
        limit: u32,
    },
    /// Publications from the control thread, answered all at once.
    PublishBatch {
        /// `(place in the caller's list, channel, payload)`.
        items: Vec<(u32, ChannelName, StoredPayload)>,
        /// Where the answers go.
        reply: oneshot::Sender<Vec<(u32, Published)>>,
    },
    /// History for the control thread; `None` if the channel does not exist.
    ReadHistory {
        /// The channel.
        channel: ChannelName,
        /// Behind this offset.
        after: Option<u64>,
        /// At most so many.
        limit: u32,
        /// Where the answer goes.
        reply: oneshot::Sender<Option<HistoryPage>>,
    },
    /// The channels homed here, for the control thread.
    ListChannels {
        /// Where the answer goes.
        reply: oneshot::Sender<Vec<ChannelRow>>,
    },
    /// Stop accepting, tell the clients, flush, close.
    Drain,
}

/// Work for the shard of a subscriber or of a command's sender.
#[derive(Debug)]
pub enum Delivery {
    /// New publications of a channel in one lane.
    Chunk {
        /// The channel.
        key: ChannelKey,
        /// The lane.
        lane: Lane,
        /// Offset of the first.
        first_offset: u64,
        /// How many.
        count: u32,
        /// Whole frames.
        bytes: Bytes,
    },
    /// A subscription stands. The live stream follows behind `position`.
    Subscribed {
        /// Who asked.
        origin: Origin,
        /// As given.
        attempt: u32,
        /// The channel.
        channel: ChannelName,
        /// Its life.
        key: ChannelKey,
        /// The lane.
        lane: Lane,
        /// Where the live stream starts.
        position: Position,
        /// The answer to `recover`.
        recovered: Option<bool>,
        /// Frames of what was missed, up to `position`.
        replay: Bytes,
    },
    /// A publication is in the log.
    Published {
        /// Who asked.
        origin: Origin,
        /// The channel.
        channel: ChannelName,
        /// Where it stands.
        position: Position,
    },
    /// What was asked of the history.
    History {
        /// Who asked.
        origin: Origin,
        /// The channel.
        channel: ChannelName,
        /// The answer; `None` where there is no such channel.
        page: Option<HistoryPage>,
    },
    /// A command was refused by the home.
    Refused {
        /// Who asked.
        origin: Origin,
        /// Of a subscribe: as given.
        attempt: Option<u32>,
        /// Why.
        code: ErrorCode,
        /// For a person.
        message: String,
    },
}

impl Request {
    fn cost(&self) -> usize {
        match self {
            Request::Publish { payload, .. } => payload.bytes.len() + size_of::<Request>(),
            Request::PublishBatch { items, .. } => {
                items.iter().map(|(_, _, payload)| payload.bytes.len() + 64).sum()
            }
            _ => size_of::<Request>(),
        }
    }
}

impl Delivery {
    fn cost(&self) -> usize {
        size_of::<Delivery>()
            + match self {
                Delivery::Chunk { bytes, .. } => bytes.len(),
                Delivery::Subscribed { replay, .. } => replay.len(),
                Delivery::History { page, .. } => {
                    page.iter().flat_map(|p| &p.publications).map(|p| p.payload.bytes.len()).sum()
                }
                _ => 0,
            }
    }
}

/// Wakes a shard that sleeps; costs nothing while it is awake.
#[derive(Debug)]
pub struct Waker {
    sleeping: AtomicBool,
    event_fd: File,
}

impl Waker {
    /// `event_fd` is a duplicate of the one that the shard waits for.
    pub fn new(event_fd: File) -> Waker {
        Waker { sleeping: AtomicBool::new(false), event_fd }
    }

    /// Wakes the shard if it sleeps. Call it after something was queued.
    pub fn wake(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // An eventfd write fails only when its counter is full, and then it is readable.
            let _ = (&self.event_fd).write(&1u64.to_ne_bytes());
        }
    }

    /// The shard is about to sleep, or is awake. After `true` it must look at its queues again.
    pub fn set_sleeping(&self, sleeping: bool) {
        self.sleeping.store(sleeping, Ordering::SeqCst);
    }
}

/// The sending ends of one shard.
#[derive(Debug)]
pub struct ShardEnd {
    requests: Sender<Vec<Request>>,
    deliveries: Sender<Vec<Delivery>>,
    waker: Waker,
}

/// The receiving ends of one shard.
#[derive(Debug)]
pub struct Inbox {
    /// Work for this shard's channels.
    pub requests: Receiver<Vec<Request>>,
    /// Work for this shard's sessions.
    pub deliveries: Receiver<Vec<Delivery>>,
}

/// The queues of one shard, of so many batches each: [`QUEUE_BATCHES`], fewer in simulations.
pub fn queues(waker: Waker, batches: usize) -> (ShardEnd, Inbox) {
    let (requests, request_ends) = crossbeam_channel::bounded(batches);
    let (deliveries, delivery_ends) = crossbeam_channel::bounded(batches);
    let inbox = Inbox { requests: request_ends, deliveries: delivery_ends };
    (ShardEnd { requests, deliveries, waker }, inbox)
}

/// The sending ends of all shards, and which of them is a channel's home.
#[derive(Debug)]
pub struct Shards {
    shards: Vec<ShardEnd>,
    // A keyed hash: the names come from outside.
    hasher: SipHasher13,
}

impl Shards {
    /// `shards` in order of shard. `key` is secret: whoever knows it could give one shard all channels.
    pub fn new(shards: Vec<ShardEnd>, key: [u64; 2]) -> Shards {
        let [k0, k1] = key;
        Shards { shards, hasher: SipHasher13::new_with_keys(k0, k1) }
    }

    /// How many shards there are.
    pub fn count(&self) -> ShardId {
        ShardId::try_from(self.shards.len()).expect("the configuration allows 256 shards")
    }

    /// The home shard of a channel.
    pub fn home(&self, channel: &str) -> ShardId {
        let mut hasher = self.hasher;
        channel.hash(&mut hasher);
        // Below the count of shards, which fits.
        (hasher.finish() % u64::from(self.count())) as ShardId
    }

    /// Hands a shard a request; gives it back when the shard's queue is full.
    pub fn request(&self, to: ShardId, request: Request) -> Result<(), Request> {
        let end = &self.shards[usize::from(to)];
        match end.requests.try_send(vec![request]) {
            Ok(()) => {
                end.waker.wake();
                Ok(())
            }
            Err(TrySendError::Full(mut batch) | TrySendError::Disconnected(mut batch)) => {
                Err(batch.pop().expect("the batch holds the request"))
            }
        }
    }

    /// Wakes a shard.
    pub fn waker(&self, shard: ShardId) -> &Waker {
        &self.shards[usize::from(shard)].waker
    }
}

/// Batches on their way to one other shard.
#[derive(Debug)]
struct Batches<T> {
    open: Vec<T>,
    open_bytes: usize,
    closed: VecDeque<(usize, Vec<T>)>,
    closed_bytes: usize,
}

impl<T> Batches<T> {
    fn new() -> Self {
        Batches { open: Vec::new(), open_bytes: 0, closed: VecDeque::new(), closed_bytes: 0 }
    }

    fn push(&mut self, item: T, cost: usize) {
        self.open.push(item);
        self.open_bytes += cost;
        if self.open.len() >= BATCH_ITEMS_MAX || self.open_bytes >= BATCH_BYTES_MAX {
            self.close();
        }
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            let bytes = std::mem::take(&mut self.open_bytes);
            self.closed_bytes += bytes;
            self.closed.push_back((bytes, std::mem::take(&mut self.open)));
        }
    }

    /// Sends what fits; returns whether anything was sent.
    fn flush(&mut self, to: &Sender<Vec<T>>) -> bool {
        self.close();
        let mut sent = false;
        while let Some((bytes, batch)) = self.closed.pop_front() {
            match to.try_send(batch) {
                Ok(()) => {
                    self.closed_bytes -= bytes;
                    sent = true;
                }
                // A shard that is gone has ended with the process.
                Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => {
                    self.closed.push_front((bytes, batch));
                    break;
                }
            }
        }
        sent
    }
}

/// What one shard has under way to all others; owned by the sender.
#[derive(Debug)]
pub(crate) struct Links {
    requests: Vec<Batches<Request>>,
    deliveries: Vec<Batches<Delivery>>,
    bytes_max: usize,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

impl Links {
    pub(crate) fn new(shards: ShardId, bytes_max: u32) -> Links {
        Links {
            requests: (0..shards).map(|_| Batches::new()).collect(),
            deliveries: (0..shards).map(|_| Batches::new()).collect(),
            bytes_max: bytes_max as usize,
        }
    }

    pub(crate) fn request(&mut self, to: ShardId, request: Request) {
        let cost = request.cost();
        self.requests[usize::from(to)].push(request, cost);
    }

    pub(crate) fn deliver(&mut self, to: ShardId, delivery: Delivery) {
        let cost = delivery.cost();
        self.deliveries[usize::from(to)].push(delivery, cost);
    }

    /// Sends what fits and wakes whom it was sent to.
    pub(crate) fn flush(&mut self, shards: &Shards) {
        for (i, end) in shards.shards.iter().enumerate() {
            let requests = self.requests[i].flush(&end.requests);
            let deliveries = self.deliveries[i].flush(&end.deliveries);
            if requests || deliveries {
                end.waker.wake();
            }
        }
    }

    /// Whether something could not be handed over yet.
    pub(crate) fn waiting(&self) -> bool {
        self.requests.iter().any(|lane| !lane.closed.is_empty())
            || self.deliveries.iter().any(|lane| !lane.closed.is_empty())
    }

    /// Whether so many deliveries wait that no requests may be taken.
    pub(crate) fn deliveries_full(&self) -> bool {
        self.deliveries.iter().any(|lane| lane.closed_bytes > self.bytes_max)
    }

    /// Whether so much waits that publishers must be slowed down.
    pub(crate) fn full(&self) -> bool {
        self.deliveries_full()
            || self.requests.iter().any(|lane| lane.closed_bytes > self.bytes_max)
    }
}
