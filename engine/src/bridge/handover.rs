//! What shards are to be told, until they take it.

use std::collections::VecDeque;

use super::Told;
use crate::ids::ShardId;
use crate::message::{NotTaken, Request, Shards};

/// Requests in one batch …
const BATCH_REQUESTS_MAX: usize = 1024;
/// … and bytes of them, or one request.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Where so many bytes wait, nothing more is taken from Redis.
const BYTES_MAX: usize = 16 << 20;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Handover {
    shards: Vec<VecDeque<(usize, Request)>>,
    bytes: usize,
}

impl Handover {
    /// For so many shards.
    pub(crate) fn new(shards: u16) -> Handover {
        Handover { shards: (0..shards).map(|_| VecDeque::new()).collect(), bytes: 0 }
    }

    /// Takes what is to be told.
    pub(crate) fn push(&mut self, told: Told, shards: &Shards) {
        told.hand_over(shards, |to, request| self.put(to, request));
    }

    fn put(&mut self, to: ShardId, request: Request) {
        let Some(queue) = self.shards.get_mut(to.index()) else { return };
        let cost = request.cost();
        self.bytes += cost;
        match (queue.back_mut(), request) {
            (Some((sum, Request::Shared(posts))), Request::Shared(more))
                if *sum < BATCH_BYTES_MAX =>
            {
                *sum += cost;
                posts.extend(more);
            }
            (_, request) => queue.push_back((cost, request)),
        }
    }

    /// Hands over what the shards take now. Who has ended is told nothing any more.
    pub(crate) fn flush(&mut self, shards: &Shards) {
        for (to, queue) in shards.ids().zip(&mut self.shards) {
            while !queue.is_empty() {
                let (mut count, mut bytes) = (0, 0);
                while let Some((cost, _)) = queue.get(count)
                    && count < BATCH_REQUESTS_MAX
                    && (count == 0 || bytes + cost <= BATCH_BYTES_MAX)
                {
                    (count, bytes) = (count + 1, bytes + cost);
                }
                let (costs, batch): (Vec<usize>, Vec<Request>) = queue.drain(..count).unzip();
                if let Err(NotTaken::Full(batch)) = shards.requests(to, batch) {
                    costs.into_iter().zip(batch).rev().for_each(|back| queue.push_front(back));
                    break;
                }
                self.bytes -= bytes;
            }
        }
    }

    /// Whether something waits.
    pub(crate) fn is_waiting(&self) -> bool {
        self.bytes > 0
    }

    /// Whether so much waits that nothing more is to be taken from Redis.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes > BYTES_MAX
    }
}
