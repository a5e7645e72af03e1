//! The queues into which messages are put, and waking the shard that reads them.

use std::fs::File;
use std::hash::{Hash as _, Hasher as _};
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use siphasher::sip::SipHasher13;

use super::delivery::Delivery;
use super::question::{Answer, QUESTIONS_MAX};
use super::request::Request;
use crate::ids::{ShardId, Ticket};

/// Batches in each queue.
pub const QUEUE_BATCHES: usize = 256;
/// Bytes in each queue, beyond which nothing more is put in: so it holds these and one batch more.
pub(crate) const QUEUE_BYTES_MAX: usize = 16 << 20;

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

/// Messages that travel together, and the bytes they hold.
pub(crate) type Batch<T> = (usize, Vec<T>);

/// The sending end of a queue that is bounded in batches and in bytes.
#[derive(Debug)]
pub(crate) struct Outlet<T> {
    batches: Sender<Batch<T>>,
    bytes: Arc<AtomicUsize>,
}

/// Why something was not taken; it comes back.
#[derive(Debug)]
pub enum NotTaken<T> {
    /// The queue is full.
    Full(T),
    /// Nobody reads it any more.
    Gone(T),
}

impl<T> Outlet<T> {
    /// Queues a batch.
    pub(crate) fn send(&self, batch: Batch<T>) -> Result<(), NotTaken<Batch<T>>> {
        let bytes = batch.0;
        if self.bytes.load(Ordering::Relaxed) >= QUEUE_BYTES_MAX {
            return Err(NotTaken::Full(batch));
        }
        // Before it is there, or the reader might take away what was not added yet.
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.batches.try_send(batch).map_err(|e| {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            match e {
                TrySendError::Full(batch) => NotTaken::Full(batch),
                TrySendError::Disconnected(batch) => NotTaken::Gone(batch),
            }
        })
    }
}

/// The receiving end.
#[derive(Debug)]
pub(crate) struct Intake<T> {
    batches: Receiver<Batch<T>>,
    bytes: Arc<AtomicUsize>,
}

impl<T> Intake<T> {
    /// The next batch, if there is one.
    pub(crate) fn take(&self) -> Option<Vec<T>> {
        let (bytes, batch) = self.batches.try_recv().ok()?;
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Some(batch)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }
}

/// What waits for connections of one shard alone, as homes of users see it: what is in its outboxes, and what was
/// handed over and is not in them yet. On a line of its own: it changes often, and what is beside it is read often.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Outboxes {
    held: AtomicUsize,
    coming: AtomicUsize,
}

impl Outboxes {
    /// Bytes, of both.
    pub(crate) fn bytes(&self) -> usize {
        self.held.load(Ordering::Relaxed).saturating_add(self.coming.load(Ordering::Relaxed))
    }

    /// Bytes that were handed over and are not there yet.
    pub(crate) fn coming(&self) -> usize {
        self.coming.load(Ordering::Relaxed)
    }

    /// A home hands so many over.
    pub(crate) fn come(&self, bytes: usize) {
        self.coming.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Their shard has taken so many.
    pub(crate) fn taken(&self, bytes: usize) {
        self.coming.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Their shard has so many in its outboxes.
    pub(crate) fn hold(&self, bytes: usize) {
        if self.held.load(Ordering::Relaxed) != bytes {
            self.held.store(bytes, Ordering::Relaxed);
        }
    }
}

pub(super) fn queue<T>(batches: usize) -> (Outlet<T>, Intake<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(batches);
    let bytes = Arc::new(AtomicUsize::new(0));
    (Outlet { batches: sender, bytes: bytes.clone() }, Intake { batches: receiver, bytes })
}

/// The sending ends of one shard.
#[derive(Debug)]
pub struct ShardEnd {
    pub(crate) requests: Outlet<Request>,
    pub(crate) deliveries: Outlet<Delivery>,
    /// Requests of the control thread have a queue of their own: other shards cannot fill it.
    pub(crate) control: Outlet<Request>,
    /// Answers of the control thread: there is room for one to each question that may be under way.
    pub(crate) answers: Outlet<(Ticket, Answer)>,
    pub(crate) waker: Waker,
    pub(crate) outboxes: Outboxes,
}

/// The receiving ends of one shard.
#[derive(Debug)]
pub struct Inbox {
    /// Work for this shard's channels.
    pub(crate) requests: Intake<Request>,
    /// Work for this shard's sessions.
    pub(crate) deliveries: Intake<Delivery>,
    /// Work from the control thread.
    pub(crate) control: Intake<Request>,
    /// What the control thread says to this shard's questions.
    pub(crate) answers: Intake<(Ticket, Answer)>,
}

impl Inbox {
    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
            && self.deliveries.is_empty()
            && self.control.is_empty()
            && self.answers.is_empty()
    }
}

/// The queues of one shard, of so many batches each: [`QUEUE_BATCHES`], fewer in simulations.
pub fn queues(waker: Waker, batches: usize) -> (ShardEnd, Inbox) {
    let (requests, request_intake) = queue(batches);
    let (deliveries, delivery_intake) = queue(batches);
    let (control, control_intake) = queue(batches);
    let (answers, answer_intake) = queue(QUESTIONS_MAX);
    let inbox = Inbox {
        requests: request_intake,
        deliveries: delivery_intake,
        control: control_intake,
        answers: answer_intake,
    };
    (
        ShardEnd { requests, deliveries, control, answers, waker, outboxes: Outboxes::default() },
        inbox,
    )
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
    pub fn count(&self) -> u16 {
        u16::try_from(self.shards.len()).expect("the configuration allows 256 shards")
    }

    /// All shards.
    pub fn ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.count()).map(ShardId)
    }

    /// The home shard of a channel.
    pub fn home(&self, channel: &str) -> ShardId {
        let mut hasher = self.hasher;
        channel.hash(&mut hasher);
        let shard = hasher.finish() % u64::from(self.count());
        ShardId(u16::try_from(shard).expect("below the count of shards"))
    }

    /// Hands a shard a request of the control thread.
    pub fn request(&self, to: ShardId, request: Request) -> Result<(), NotTaken<Request>> {
        let back = |mut batch: Vec<Request>| batch.pop().expect("the batch holds the request");
        self.requests(to, vec![request]).map_err(|e| match e {
            NotTaken::Full(batch) => NotTaken::Full(back(batch)),
            NotTaken::Gone(batch) => NotTaken::Gone(back(batch)),
        })
    }

    /// Hands a shard several, in order; all of them or none.
    pub fn requests(&self, to: ShardId, batch: Vec<Request>) -> Result<(), NotTaken<Vec<Request>>> {
        let end = self.end(to);
        let cost = batch.iter().map(Request::cost).sum();
        end.control.send((cost, batch)).map_err(|e| match e {
            NotTaken::Full((_, batch)) => NotTaken::Full(batch),
            NotTaken::Gone((_, batch)) => NotTaken::Gone(batch),
        })?;
        end.waker.wake();
        Ok(())
    }

    /// Hands a shard what the control thread says to one of its questions.
    pub fn answer(
        &self,
        to: ShardId,
        ticket: Ticket,
        answer: Answer,
    ) -> Result<(), NotTaken<Answer>> {
        let end = self.end(to);
        let back = |(_, mut batch): Batch<(Ticket, Answer)>| {
            batch.pop().expect("the batch holds the answer").1
        };
        end.answers.send((answer.cost(), vec![(ticket, answer)])).map_err(|e| match e {
            NotTaken::Full(batch) => NotTaken::Full(back(batch)),
            NotTaken::Gone(batch) => NotTaken::Gone(back(batch)),
        })?;
        end.waker.wake();
        Ok(())
    }

    /// Wakes a shard.
    pub fn waker(&self, shard: ShardId) -> &Waker {
        &self.end(shard).waker
    }

    pub(crate) fn end(&self, shard: ShardId) -> &ShardEnd {
        &self.shards[shard.index()]
    }
}
