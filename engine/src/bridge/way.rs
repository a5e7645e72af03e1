//! What the bridge keeps of one channel.

use std::collections::VecDeque;

use bytes::Bytes;
use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::{Offset, Position};

/// Publications in one command …
const BATCH_ITEMS_MAX: usize = 128;
/// … and bytes of them, or one.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// A publication that waits: under which ticket its home knows it, and what.
type Waiting = (u64, Bytes);

/// Publications that are under way, or were when the connection was lost.
#[derive(Debug)]
struct Batch {
    /// Number of the first.
    first: u64,
    publications: Vec<Waiting>,
    /// It was sent, on a connection that is there.
    sent: bool,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// A home follows it.
    pub(super) followed: bool,
    /// Confirmations that are still to come, of how often it was subscribed to.
    confirmations: u32,
    /// It was subscribed to, on a connection that is there.
    subscribed: bool,
    /// Where homes want to know what is behind, once it is subscribed to, and how they know that question.
    pub(super) reads: Vec<(Option<Position>, u32)>,
    batch: Option<Batch>,
    queue: VecDeque<Waiting>,
}

impl Way {
    /// It is being subscribed to.
    pub(super) fn subscribe(&mut self) {
        self.subscribed = true;
        self.confirmations += 1;
    }

    /// That is confirmed.
    pub(super) fn subscribed(&mut self) {
        self.confirmations = self.confirmations.saturating_sub(1);
    }

    /// Whether it was subscribed to, confirmed or not.
    pub(super) fn subscribing(&self) -> bool {
        self.subscribed
    }

    /// Whether what is published comes.
    pub(super) fn is_subscribed(&self) -> bool {
        self.subscribed && self.confirmations == 0
    }

    /// No home follows it any more. Returns whether it has to be unsubscribed from.
    pub(super) fn unfollow(&mut self) -> bool {
        self.followed = false;
        self.reads.clear();
        std::mem::take(&mut self.subscribed)
    }

    /// Takes a publication into the queue.
    pub(super) fn push(&mut self, ticket: u64, item: Bytes) {
        self.queue.push_back((ticket, item));
    }

    /// What is to be appended now, with the number of the first; numbers are drawn from `next`.
    pub(super) fn next_batch(&mut self, next: &mut u64) -> Option<(u64, Vec<Bytes>)> {
        if self.batch.is_none() {
            let mut bytes = 0;
            let fits = |(_, item): &&Waiting| {
                bytes += item.len();
                bytes <= BATCH_BYTES_MAX
            };
            let count = self.queue.iter().take(BATCH_ITEMS_MAX).take_while(fits).count();
            let count = count.max(1).min(self.queue.len());
            let publications: Vec<Waiting> = self.queue.drain(..count).collect();
            if !publications.is_empty() {
                let first = *next;
                *next += publications.len() as u64;
                self.batch = Some(Batch { first, publications, sent: false });
            }
        }
        let batch = self.batch.as_mut().filter(|batch| !batch.sent)?;
        batch.sent = true;
        let items = batch.publications.iter().map(|(_, item)| item.clone());
        Some((batch.first, items.collect()))
    }

    /// What was under way is answered; returns the tickets.
    pub(super) fn appended(&mut self) -> Vec<u64> {
        let batch = self.batch.take();
        batch.into_iter().flat_map(|batch| batch.publications).map(|(ticket, _)| ticket).collect()
    }

    /// The connection is lost.
    pub(super) fn lost(&mut self) {
        (self.subscribed, self.confirmations) = (false, 0);
        if let Some(batch) = &mut self.batch {
            batch.sent = false;
        }
    }

    /// Nothing is waited for any more. Returns the tickets of what was under way, and of what was not.
    pub(super) fn give_up(
        &mut self,
    ) -> (impl Iterator<Item = u64> + use<>, impl Iterator<Item = u64> + use<>) {
        let queue = std::mem::take(&mut self.queue);
        (self.appended().into_iter(), queue.into_iter().map(|(ticket, _)| ticket))
    }

    /// Whether there is nothing to remember.
    pub(super) fn is_idle(&self) -> bool {
        !self.followed && self.batch.is_none() && self.queue.is_empty() && self.confirmations == 0
    }
}

/// Where publications stand of which the last stands there.
pub(super) fn positions(
    tickets: &[u64],
    epoch: Epoch,
    last: Offset,
) -> impl Iterator<Item = (u64, Position)> + '_ {
    let before = last.0.saturating_sub(tickets.len() as u64);
    (1..)
        .zip(tickets)
        .map(move |(place, &ticket)| (ticket, Position { epoch, offset: Offset(before + place) }))
}
