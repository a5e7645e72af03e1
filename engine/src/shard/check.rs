//! The shard's invariants, checked by code.

use std::collections::{HashMap, HashSet};

use ringfeed_protocol::{ChannelName, Lane};
use ringfeed_wire::Wire;

use super::Shard;
use super::feed::{FOLLOWS, GAPPED, LaneState, List, Subscriber};
use super::session::{BLOCKED, CURSORS, GAPS, MULTI, QUEUED};
use crate::ids::{LaneId, SessionId, ShardId};
use crate::message::Someone;

/// A shard with more subscriptions than this is not checked in each turn.
#[cfg(debug_assertions)]
const SMALL: u64 = 2000;
/// Then it is checked in one turn of so many.
#[cfg(debug_assertions)]
const SELDOM: u64 = 256;

impl<W: Wire> Shard<W> {
    /// Checks a small shard after each turn, a large one now and then.
    #[cfg(debug_assertions)]
    pub(super) fn check_sometimes(&self) {
        let small = self.subscription_count + self.sessions.len() as u64 <= SMALL;
        if small || self.counters.turns.read().is_multiple_of(SELDOM) {
            self.check();
        }
    }

    /// Looks at everything the shard takes for granted between turns.
    ///
    /// # Panics
    /// If any of it does not hold: then the shard's own code is wrong.
    pub fn check(&self) {
        self.sessions.check();
        self.homes.check();
        self.users.check();
        self.fanout.check(&self.feeds);
        self.check_sessions();
        let held: usize = self.feeds.lanes().map(|(_, lane)| lane.log.bytes_held()).sum();
        assert_eq!(held, self.feeds.log_bytes(), "log bytes");
        assert_eq!(self.feeds.users(), self.subscription_count, "uses of channels");
        for (id, lane) in self.feeds.lanes() {
            self.check_lane(id, lane);
        }
    }

    /// What sessions say of their channels is so.
    fn check_sessions(&self) {
        let (mut subscriptions, mut partial) = (0, 0);
        for slot in self.sessions.slots() {
            let Some(session) = self.sessions.get(slot) else { continue };
            partial += session.partial_bytes;
            subscriptions += session.subscriptions.len() as u64;
            if session.calls > 0 {
                let calls = self.local.asks.calls_of(self.sessions.id(slot));
                assert_eq!(usize::from(session.calls), calls, "{slot:?} calls");
            }
            let waits = session.deferred.is_some() || session.commands.is_some();
            let released = || self.released.iter().any(|id| id.slot == slot);
            assert!(!waits || !session.holds.is_empty() || released(), "{slot:?} is not answered");
            for own in &session.subscriptions {
                let Some(index) = own.index else { continue };
                let lane = self.feeds.lane(own.lane);
                let subscriber = lane.list(self.sessions.list(slot)).get(index as usize);
                assert!(
                    subscriber.is_some_and(|subscriber| subscriber.session == slot),
                    "{slot:?} is where it says in {}",
                    lane.name
                );
            }
        }
        assert_eq!(subscriptions, self.subscription_count, "subscriptions");
        assert_eq!(partial, self.partial_bytes, "unfinished messages");
    }

    fn check_lane(&self, id: LaneId, lane: &LaneState) {
        let end = lane.log.end();
        for list in [List::Walked, List::Served] {
            for &Subscriber { sent, session } in lane.list(list) {
                let name = &lane.name;
                assert_eq!(self.sessions.list(session), list, "{session:?} in {name}");
                let has = |flag| self.sessions.has(session, flag);
                match sent {
                    FOLLOWS => assert!(has(MULTI) && !has(CURSORS), "{session:?} follows {name}"),
                    GAPPED => {
                        assert!(lane.gaps.contains_key(&session) && has(GAPS), "gap in {name}");
                        assert!(has(BLOCKED) || self.sessions.has(session, QUEUED));
                    }
                    position => {
                        assert!(position >= lane.log.base() && position <= end, "{name}");
                        assert!(list == List::Walked || has(CURSORS), "{session:?} in {name}");
                        let looked_at = position == end
                            || has(BLOCKED)
                            || self.sessions.has(session, QUEUED)
                            || list == List::Walked && lane.dirty;
                        assert!(looked_at, "nobody looks at {session:?} in {name}");
                    }
                }
            }
        }
        let cursors = lane.subscribers().filter_map(|s| Some((s.session, s.cursor()?)));
        lane.skips.check(lane.log.base(), cursors);
        let told = lane.subscribers().filter(|s| s.sent == GAPPED).count();
        assert_eq!(lane.gaps.len(), told, "gaps of {}", lane.name);
        if lane.followed > 0 {
            assert!(
                lane.followed_from >= lane.log.base(),
                "{}: what is followed is kept",
                lane.name
            );
        }
        assert!(self.feeds.find(&lane.name, lane.lane) == Some(id), "{}", lane.name);
    }
}

/// Where a shard has a lane, how many subscribers are on it, and whether they hold its publications back.
type Interests<'a> = HashMap<(&'a ChannelName, Lane, ShardId), (LaneId, usize, bool)>;

/// Who is on which channel, of those whose homes know.
type Names<'a> = HashMap<(&'a ChannelName, ShardId, SessionId), Option<Someone>>;

impl<W: Wire> Shard<W> {
    /// Who has asked the home of which channel to be a subscriber, and has no answer yet.
    fn asking(&self) -> impl Iterator<Item = (&ChannelName, ShardId, SessionId)> {
        self.sessions.slots().flat_map(move |slot| {
            let subscriptions =
                self.sessions.get(slot).into_iter().flat_map(|own| &own.subscriptions);
            let open = subscriptions.filter(|own| own.index.is_none());
            open.map(move |own| (&self.feeds.lane(own.lane).name, self.id, self.sessions.id(slot)))
        })
    }

    /// Who is on which channel, of those whose homes are to know.
    fn named(&self) -> impl Iterator<Item = ((&ChannelName, ShardId, SessionId), Option<Someone>)> {
        let lanes = self.feeds.lanes().filter(|(_, lane)| lane.named);
        lanes.flat_map(move |(_, lane)| {
            lane.subscribers().map(move |subscriber| {
                let slot = subscriber.session;
                let who = Someone::of(&self.caller(slot));
                ((&lane.name, self.id, self.sessions.id(slot)), Some(who))
            })
        })
    }
}

/// Looks at what shards take for granted of each other once nothing is under way between them.
///
/// # Panics
/// If homes count others than those who are there.
pub fn check_together<'a, W: Wire + 'a>(shards: impl Iterator<Item = &'a Shard<W>>) {
    let (mut counted, mut there) = (Interests::new(), Interests::new());
    let (mut known, mut joined) = (HashSet::new(), HashSet::new());
    let (mut members, mut named) = (Names::new(), Names::new());
    let (mut seats, mut asking) = (Vec::new(), HashSet::new());
    for shard in shards {
        let outboxes = &shard.shared.shards.end(shard.id).outboxes;
        assert_eq!(outboxes.coming(), 0, "all that was handed over was taken");
        assert_eq!(outboxes.bytes(), shard.sessions.outbox_bytes(), "homes see what waits");
        known.extend(shard.users.iter().map(|(user, own)| (user, own.shard, own.session)));
        joined.extend(shard.joined().map(|(user, session)| (user, shard.id, session)));
        seats.extend(shard.users.seats());
        asking.extend(shard.asking());
        counted.extend(shard.homes.interests());
        let all = shard.homes.members();
        members.extend(all.map(|(name, at, session, who)| ((name, at, session), who.cloned())));
        named.extend(shard.named());
        let lanes = shard.feeds.lanes().filter(|(_, lane)| lane.has_subscribers());
        there.extend(lanes.map(|(id, lane)| {
            let count = lane.subscribers().count();
            ((&lane.name, lane.lane, shard.id), (id, count, lane.pressed))
        }));
    }
    assert_eq!(known, joined, "homes of users know who is there");
    assert_eq!(counted, there, "homes count who is there, and know who is behind");
    // Behind publications that are looked at a subscribe may wait for as long as the application likes.
    let may_sit = |seat| members.contains_key(seat) || asking.contains(seat);
    assert!(
        seats.iter().all(may_sit),
        "who is counted in a room for its user is there, or is to be"
    );
    assert_eq!(members, named, "homes know who is on their channels");
}
