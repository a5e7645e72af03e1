//! What one shard has under way to all others.

use std::collections::VecDeque;

use super::delivery::Delivery;
use super::mailbox::{Batch, NotTaken, Shards};
use super::request::Request;
use super::upstream::{ToUpstream, Upstream};
use crate::ids::ShardId;

/// A batch is closed at so many items …
const BATCH_ITEMS_MAX: usize = 512;
/// … or so many bytes.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Batches on their way to one other shard.
#[derive(Debug)]
struct Batches<T> {
    open: Vec<T>,
    open_bytes: usize,
    closed: VecDeque<Batch<T>>,
    closed_bytes: usize,
}

/// What became of a flush.
#[derive(Debug, Default, Clone, Copy)]
struct Flushed {
    sent: bool,
    gone: bool,
}

impl<T> Batches<T> {
    fn new() -> Self {
        Batches { open: Vec::new(), open_bytes: 0, closed: VecDeque::new(), closed_bytes: 0 }
    }

    fn push(&mut self, item: T, bytes: usize) {
        self.open.push(item);
        self.open_bytes += bytes;
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

    /// Sends what fits.
    fn flush(&mut self, send: impl Fn(Batch<T>) -> Result<(), NotTaken<Batch<T>>>) -> Flushed {
        self.close();
        let mut flushed = Flushed::default();
        while let Some(batch) = self.closed.pop_front() {
            let bytes = batch.0;
            match send(batch) {
                Ok(()) => {
                    self.closed_bytes -= bytes;
                    flushed.sent = true;
                }
                Err(NotTaken::Full(batch)) => {
                    self.closed.push_front(batch);
                    break;
                }
                Err(NotTaken::Gone(batch)) => {
                    self.closed.push_front(batch);
                    flushed.gone = true;
                    break;
                }
            }
        }
        flushed
    }

    fn is_empty(&self) -> bool {
        self.open.is_empty() && self.closed.is_empty()
    }
}

/// Work under way from one shard to all others; owned by the sender.
#[derive(Debug)]
pub(crate) struct Links {
    requests: Vec<Batches<Request>>,
    deliveries: Vec<Batches<Delivery>>,
    upstream: Batches<ToUpstream>,
    bytes_max: usize,
}

impl Links {
    pub(crate) fn new(shards: u16, bytes_max: u32) -> Links {
        Links {
            requests: (0..shards).map(|_| Batches::new()).collect(),
            deliveries: (0..shards).map(|_| Batches::new()).collect(),
            upstream: Batches::new(),
            bytes_max: bytes_max as usize,
        }
    }

    pub(crate) fn request(&mut self, to: ShardId, request: Request) {
        let cost = request.cost();
        self.requests[to.index()].push(request, cost);
    }

    pub(crate) fn deliver(&mut self, to: ShardId, delivery: Delivery) {
        let cost = delivery.cost();
        self.deliveries[to.index()].push(delivery, cost);
    }

    pub(crate) fn upstream(&mut self, what: ToUpstream) {
        let cost = what.cost();
        self.upstream.push(what, cost);
    }

    /// Sends what fits and wakes whom it was sent to; `own` is whose links these are.
    pub(crate) fn flush(&mut self, own: ShardId, shards: &Shards, upstream: &Upstream) {
        if !self.upstream.is_empty() {
            self.upstream.flush(|batch| upstream.send(own, batch));
        }
        for id in shards.ids() {
            let (requests, deliveries) =
                (&mut self.requests[id.index()], &mut self.deliveries[id.index()]);
            if requests.is_empty() && deliveries.is_empty() {
                continue;
            }
            let end = shards.end(id);
            let (a, b) = (
                requests.flush(|batch| end.requests.send(batch)),
                deliveries.flush(|batch| end.deliveries.send(batch)),
            );
            if a.sent || b.sent {
                end.waker.wake();
            }
            if a.gone || b.gone {
                // Shards end when they have drained, and with the process when one fails: nobody is
                // left there whom it could reach.
                (*requests, *deliveries) = (Batches::new(), Batches::new());
            }
        }
    }

    /// Whether something could not be handed over yet.
    pub(crate) fn waiting(&self) -> bool {
        !self.upstream.is_empty()
            || self.requests.iter().any(|batches| !batches.is_empty())
            || self.deliveries.iter().any(|batches| !batches.is_empty())
    }

    /// Whether so many deliveries wait that no requests may be taken.
    pub(crate) fn deliveries_full(&self) -> bool {
        self.deliveries.iter().any(|batches| batches.closed_bytes > self.bytes_max)
    }

    /// Whether so much waits that publishers must be slowed down.
    pub(crate) fn full(&self) -> bool {
        self.deliveries_full()
            || self.upstream.closed_bytes > self.bytes_max
            || self.requests.iter().any(|batches| batches.closed_bytes > self.bytes_max)
    }
}
