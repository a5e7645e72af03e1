//! Going away: clients are told to come back later, and closed once they have everything.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::Rng as _;
use ringfeed_protocol::Event;
use ringfeed_wire::Wire;

use super::session::{BLOCKED, CLOSING, QUEUED};
use super::{Shard, route};
use crate::counters::CloseReason;
use crate::ids::{SessionId, ShardId};
use crate::message::Delivery;

/// Connections told of a drain in one turn.
const DRAINS_PER_TURN_MAX: usize = 256;

/// What a drain keeps between turns.
#[derive(Debug, Default)]
pub(super) struct Draining {
    /// Who was not told yet.
    left: VecDeque<SessionId>,
    deadline: Option<Instant>,
    /// So many in a row still have something to get.
    waited: usize,
    /// The other shards know.
    told: bool,
    /// Other shards that have begun to drain.
    others: u16,
}

impl<W: Wire> Shard<W> {
    /// Stops accepting and begins to send the clients away.
    pub(super) fn begin_drain(&mut self) {
        if self.draining {
            return;
        }
        self.draining = true;
        self.local.stop_accepting();
        let timeout = Duration::from_millis(self.config.server.drain_timeout_ms.into());
        self.drain.deadline = Some(self.clock.now() + timeout);
        self.drain.left = self.sessions.slots().map(|slot| self.sessions.id(slot)).collect();
    }

    /// Tells the others, once what was appended until now is under way to them.
    fn tell_others(&mut self) {
        if std::mem::replace(&mut self.drain.told, true) {
            return;
        }
        let Shard { id, own, links, shared, .. } = self;
        let mut deliver = route(*id, own, links);
        for other in (0..shared.shards.count()).map(ShardId).filter(|other| other != id) {
            deliver(other, Delivery::Draining);
        }
    }

    /// Another shard has begun to drain.
    pub(super) fn another_drains(&mut self) {
        self.drain.others += 1;
    }

    /// Whether everything has come that any shard acknowledged before it began to drain: nobody is
    /// closed before.
    fn all_drain(&self) -> bool {
        self.drain.others + 1 >= self.shared.shards.count()
    }

    /// Whether there is somebody who can be told at once.
    pub(super) fn has_to_drain(&self) -> bool {
        self.all_drain() && self.drain.waited < self.drain.left.len()
    }

    /// Tells some clients to come back later, and closes them once everything was sent to them. After
    /// the flush of a turn: what this turn appended is before it.
    pub(super) fn drain_some(&mut self) {
        self.tell_others();
        if !self.all_drain() {
            return;
        }
        let spread = self.config.server.drain_spread_ms;
        // Those who wait are looked at again when something has happened, and that is a turn.
        self.drain.waited = 0;
        for _ in 0..self.drain.left.len().min(DRAINS_PER_TURN_MAX) {
            let Some(id) = self.drain.left.pop_front() else { break };
            let Some(slot) = self.sessions.current(id) else { continue };
            if self.sessions.has(slot, CLOSING) {
                continue;
            }
            if self.sessions.has(slot, BLOCKED | QUEUED) {
                self.drain.left.push_back(id);
                self.drain.waited += 1;
                continue;
            }
            let reconnect_ms = self.rng.random_range(0..=spread);
            self.reply(slot, &Event::Drain { reconnect_ms });
            self.close_session(slot, CloseReason::ServiceRestart, "the server is restarting");
        }
    }

    /// Whether a drain is over: everybody has left and nothing is under way to other shards, or the time
    /// for it is up.
    pub fn is_drained(&self) -> bool {
        let over = self.drain.deadline.is_some_and(|deadline| self.clock.now() >= deadline);
        let left = self.sessions.len() > 0
            || self.links.waiting()
            || !self.inbox.is_empty()
            || !self.waiting.is_empty()
            || self.homes.has_parked();
        self.draining && (!left || over)
    }
}
