//! What the bridge keeps of one channel.

use std::collections::VecDeque;

use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::{Offset, Position};

use super::command::Item;
use crate::message::Stored;

/// Publications in one command …
pub(super) const BATCH_ITEMS_MAX: usize = 128;
/// … and bytes of them, or one.
pub(super) const BATCH_BYTES_MAX: usize = 256 * 1024;

/// A publication that waits: under which ticket its home knows it, and what.
pub(super) type Waiting = (u64, Item);

/// Publications that are under way, or were when the connection was lost.
#[derive(Debug)]
struct Batch {
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
    /// The last of these numbers.
    pub(super) asked: u32,
    batch: Option<Batch>,
    queue: VecDeque<Waiting>,
    /// Since when the queue waits for something else.
    blocked_since_ms: Option<u64>,
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
    pub(super) fn push(&mut self, ticket: u64, item: Item) {
        self.queue.push_back((ticket, item));
    }

    /// What is to be appended now.
    pub(super) fn next_batch(&mut self) -> Option<Vec<Item>> {
        if self.batch.is_none() {
            let mut bytes = 0;
            let fits = |(_, item): &&Waiting| {
                bytes += item.bytes.len();
                bytes <= BATCH_BYTES_MAX
            };
            let count = self.queue.iter().take(BATCH_ITEMS_MAX).take_while(fits).count();
            let count = count.max(1).min(self.queue.len());
            let publications: Vec<Waiting> = self.queue.drain(..count).collect();
            if !publications.is_empty() {
                self.batch = Some(Batch { publications, sent: false });
            }
        }
        let batch = self.batch.as_mut().filter(|batch| !batch.sent)?;
        batch.sent = true;
        Some(batch.publications.iter().map(|(_, item)| item.clone()).collect())
    }

    /// What was under way is answered; returns the tickets.
    pub(super) fn appended(&mut self) -> Vec<u64> {
        self.take_batch().map(|(ticket, _)| ticket).collect()
    }

    /// What was under way is over; returns it.
    pub(super) fn take_batch(&mut self) -> impl Iterator<Item = Waiting> + use<> {
        self.batch.take().into_iter().flat_map(|batch| batch.publications)
    }

    /// The connection is lost.
    pub(super) fn lost(&mut self) {
        (self.subscribed, self.confirmations) = (false, 0);
        if let Some(batch) = &mut self.batch {
            batch.sent = false;
        }
    }

    /// Nothing is waited for any more. Returns what was under way, and what was not.
    pub(super) fn give_up(&mut self) -> (impl Iterator<Item = Waiting> + use<>, VecDeque<Waiting>) {
        (self.take_batch(), self.take_queue())
    }

    /// Whether what is queued waits for something else for too long, which it does at this time if it does.
    pub(super) fn is_late(&mut self, blocked_ms: Option<u64>, patience_ms: u64) -> bool {
        let Some(now_ms) = blocked_ms.filter(|_| !self.queue.is_empty()) else {
            self.blocked_since_ms = None;
            return false;
        };
        let since_ms = *self.blocked_since_ms.get_or_insert(now_ms);
        now_ms.saturating_sub(since_ms) >= patience_ms
    }

    /// Takes what is not under way.
    pub(super) fn take_queue(&mut self) -> VecDeque<Waiting> {
        std::mem::take(&mut self.queue)
    }

    /// Whether there is nothing to remember.
    pub(super) fn is_idle(&self) -> bool {
        !self.followed && self.batch.is_none() && self.queue.is_empty() && self.confirmations == 0
    }
}

/// What has become of publications of which those that are new end there, and the others, by their places, in order, stand
/// elsewhere.
pub(super) fn outcomes(
    tickets: Vec<u64>,
    epoch: Epoch,
    last: Offset,
    duplicates: Vec<(u32, Position)>,
) -> impl Iterator<Item = (u64, Stored)> {
    let new = tickets.len().saturating_sub(duplicates.len()) as u64;
    let mut offset = Offset(last.0.saturating_sub(new));
    let mut duplicates = duplicates.into_iter().peekable();
    (0..).zip(tickets).map(move |(place, ticket)| {
        if let Some((_, position)) = duplicates.next_if(|(of, _)| *of == place) {
            return (ticket, Stored::At { position, duplicate: true });
        }
        offset = offset.next();
        (ticket, Stored::At { position: Position { epoch, offset }, duplicate: false })
    })
}
