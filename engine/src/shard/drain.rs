//! Going away. First the homes publish nothing more, and say so behind everything they appended; once every
//! home has, clients are told to come back later and are closed, each when it has been sent everything.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::Rng as _;
use ringfeed_protocol::Event;
use ringfeed_wire::Wire;

use super::session::{BLOCKED, CLOSING, QUEUED};
use super::{Shard, route};
use crate::counters::CloseReason;
use crate::ids::{SessionId, SessionSlot};
use crate::message::Delivery;

/// From one who is sent away to the next: of 2^32, the golden ratio. Multiples of it leave no part of the whole out and come to none
/// too often, however many they are; drawn at random, some moments would have twice as many as others.
const AWAY_STEP: u32 = 0x9E37_79B9;

/// What a drain keeps between turns.
#[derive(Debug, Default)]
pub(super) struct Draining {
    /// Who was not told yet.
    left: VecDeque<SessionId>,
    deadline: Option<Instant>,
    /// So many at the end of these were looked at since something has happened, and wait.
    waited: usize,
    /// Nothing is published here any more, and the other shards know.
    closed: bool,
    /// Other shards on which nothing is published any more.
    others_closed: u16,
}

impl<W: Wire> Shard<W> {
    /// Stops accepting and begins to send the clients away.
    pub(super) fn begin_drain(&mut self) {
        if self.draining {
            return;
        }
        self.draining = true;
        self.local.stop_accepting();
        self.homes.drain();
        let timeout = Duration::from_millis(self.config.server.drain_timeout_ms.into());
        self.drain.deadline = Some(self.clock.now() + timeout);
        // Each process begins elsewhere.
        let first = self.rng.random_range(1..=u32::MAX);
        let _ = self.shared.away.compare_exchange(0, first, Ordering::Relaxed, Ordering::Relaxed);
        self.drain.left = self.sessions.slots().map(|slot| self.sessions.id(slot)).collect();
    }

    /// Has the homes publish nothing more, once nothing is held back there, and tells the other shards:
    /// behind everything that was appended.
    fn close_homes(&mut self) {
        if self.drain.closed || self.homes.has_parked() {
            return;
        }
        self.drain.closed = true;
        self.homes.close();
        let Shard { id, own, links, shared, .. } = self;
        let mut deliver = route(*id, own, links);
        for other in shared.shards.ids().filter(|other| other != id) {
            deliver(other, Delivery::Closed);
        }
    }

    /// Another shard publishes nothing more.
    pub(super) fn another_closed(&mut self) {
        self.drain.others_closed += 1;
    }

    /// Whether everything has come that was ever published: nobody is sent away before.
    fn all_closed(&self) -> bool {
        self.drain.closed && self.drain.others_closed + 1 >= self.shared.shards.count()
    }

    /// Whether there is somebody to look at who may have everything.
    pub(super) fn has_to_drain(&self) -> bool {
        self.all_closed() && self.drain.waited < self.drain.left.len()
    }

    /// Tells clients that have everything to come back later, and closes them. After the flush of a turn.
    pub(super) fn drain_some(&mut self) {
        self.close_homes();
        // There may be no tick any more.
        self.homes.tell_rolls(self.work_ms);
        if !self.all_closed() || !self.own.is_empty() {
            return;
        }
        if self.drain.waited >= self.drain.left.len() {
            // Something has happened, or a tick: perhaps to one of them.
            self.drain.waited = 0;
        }
        for _ in 0..self.limits.events {
            if self.drain.waited >= self.drain.left.len() {
                break;
            }
            let Some(id) = self.drain.left.pop_front() else { break };
            match self.sessions.current(id) {
                Some(slot) if self.sessions.has(slot, CLOSING) => {}
                Some(slot) if self.has_everything(slot) => self.send_away(slot),
                Some(_) => {
                    self.drain.left.push_back(id);
                    self.drain.waited += 1;
                }
                None => {}
            }
        }
    }

    /// Whether a session was sent everything there is for it, and every answer.
    fn has_everything(&self, slot: SessionSlot) -> bool {
        if self.sessions.has(slot, BLOCKED | QUEUED) {
            return false;
        }
        let Some(session) = self.sessions.get(slot) else { return true };
        if session.owed > 0 || session.deferred.is_some() {
            return false;
        }
        let list = self.sessions.list(slot);
        // A walk over a lane goes on over several turns.
        session.subscriptions.iter().all(|own| {
            let state = self.feeds.lane(own.lane);
            let subscriber = own.index.and_then(|index| state.list(list).get(index as usize));
            let cursor = subscriber.and_then(|subscriber| subscriber.cursor());
            cursor.is_none_or(|cursor| cursor >= state.log.end())
        })
    }

    fn send_away(&mut self, slot: SessionSlot) {
        let place = self.shared.away.fetch_add(AWAY_STEP, Ordering::Relaxed);
        let spread_ms = u64::from(self.config.server.drain_spread_ms) + 1;
        // Below the spread and one, so it fits.
        let reconnect_ms = ((u64::from(place) * spread_ms) >> 32) as u32;
        self.reply(slot, &Event::Drain { reconnect_ms });
        self.close_session(slot, CloseReason::ServiceRestart, "the server is restarting");
    }

    /// Whether a drain is over: everybody has left and nothing is under way to other shards, or the time
    /// for it is up.
    pub fn is_drained(&self) -> bool {
        let over = self.drain.deadline.is_some_and(|deadline| self.clock.now() >= deadline);
        let left = self.sessions.len() > 0
            || !self.all_closed()
            || self.links.waiting()
            || !self.inbox.is_empty()
            || !self.farewells.is_empty()
            || !self.waiting.is_empty();
        self.draining && (!left || over)
    }
}
