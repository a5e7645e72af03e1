//! The table of homes.

mod asked;
mod confirm;
mod follow;
mod history;
mod keyed;
mod parking;
mod presence;
mod redistribute;
mod rolls;
pub(super) mod room;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rand::Rng as _;
use rand::rngs::SmallRng;
use ringfeed_protocol::command::Payload;
use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::refused::Limit;
use ringfeed_protocol::{ChannelName, Lane, Offset, Position, Refused};
use smallvec::SmallVec;

use self::confirm::Asking;
use self::follow::{AWAY, Placed};
use self::history::ENCODED_ROOM;
use self::room::Ended;
use super::idempotency::Keys;
use super::kept::{Found, ReplayMemory};
use super::members::Members;
use super::news::NewsQueue;
use super::{Asker, Deliver, Home, HomeLane, Parked, Publisher};
use crate::access::Entry;
use crate::clock::Clock;
use crate::config::{Config, Distribution};
use crate::ids::{LaneId, SessionId, ShardId};
use crate::message::{
    Ack, Caller, ChannelPage, ChannelRow, Forward, Missing, Outgoing, Receipt, Replay, Request,
    Start, StoredPayload, ToUpstream,
};
use crate::names::Names;
use crate::slab::Slab;

/// A channel that nobody needs but that was published to stays for so long, so that a subscriber that
/// comes right back finds its position again.
const LINGER_MS: u64 = 10_000;
/// Channels looked at in one call of [`Homes::sweep`].
const SWEEP_CHANNELS: u32 = 4096;
/// Places looked at for one page of [`Homes::page`].
const PAGE_PLACES: u32 = 2048;
/// Part of a channel's window that may be appended in one turn, so that readers, and their word that
/// they are behind, come in between.
const WINDOW_PARTS_PER_TURN: u32 = 8;
/// All of it, also what only outboxes hold any more, may take this part: above it who comes back is told that not
/// everything could be recovered.
const REPLAY_PARTS: usize = 2;
/// One channel may take so small a part of the room for what is held back; above it, it is held back
/// no more.
const PARKED_PARTS: usize = 8;

/// Why something is not published behind what is asked about.
const TOO_MUCH_ASKED: Refused =
    Refused::Unavailable { detail: "too much waits for what the application says of this channel" };

/// What a shard's homes may hold.
#[derive(Debug, Clone, Copy)]
pub(in crate::shard) struct HomeLimits {
    /// Channels of the whole server: what a refusal names.
    pub(in crate::shard) channels_max: u64,
    /// Channels of this shard.
    pub(in crate::shard) own_channels_max: usize,
    /// Memory of all history.
    pub(in crate::shard) history_bytes_max: usize,
    /// Rooms made over the API, of the whole server and of this shard.
    pub(in crate::shard) rooms_max: u64,
    pub(in crate::shard) own_rooms_max: usize,
    /// Publications held back.
    pub(in crate::shard) parked_bytes_max: usize,
    /// Changes of which the application was not told.
    pub(in crate::shard) news_max: usize,
    /// Idempotency keys that are remembered.
    pub(in crate::shard) keys_max: usize,
}

/// See the module's description.
#[derive(Debug)]
pub(in crate::shard) struct Homes {
    clock: Clock,
    by_name: Names<ChannelName, u32>,
    homes: Slab<Home>,
    /// Rooms that were made over the API, and those that have ended.
    rooms: usize,
    ended_rooms: Ended,
    /// With something pending.
    dirty: Vec<u32>,
    /// Where subscribers are to be told of who comes and goes, and when; some of them gone.
    due: BTreeSet<(u64, u32)>,
    /// When publishers are to be told who has not confirmed what.
    confirm_due: BTreeSet<(u64, u32, u64)>,
    /// Who was asked to confirm that.
    unconfirmed: usize,
    /// The last number that was given to such a publication.
    wanted_number: u64,
    /// Publications of other nodes that are remembered since those wait for who has got them.
    wanted: usize,
    /// Confirmations that other nodes are to answer, by their tickets, and the last of these.
    confirming: BTreeMap<u64, Asking>,
    ticket: u64,
    /// More publishers are to be told than one turn tells.
    some_are_due: bool,
    /// What the application is to be told of users who come and go.
    pub(in crate::shard) news: NewsQueue,
    /// With something parked.
    waiting: VecDeque<u32>,
    parked_bytes: usize,
    /// What has come from where channels are numbered and waits for readers.
    incoming_bytes: usize,
    /// What is to be handed to the upstream.
    outgoing: Vec<ToUpstream>,
    /// What nodes of another system are to be told of.
    forwards: Vec<Forward>,
    /// Homes from this place on have to ask the upstream again.
    resume_from: Option<u32>,
    /// Homes from here on are still to be told that something is missing of what is published elsewhere.
    miss_from: Vec<(Missing, u32)>,
    /// Of homes from here on is to be looked whether somebody else numbers their channels by now.
    redistribute_from: Option<u32>,
    /// With something of which other nodes are to be told; some of them gone.
    rolls_dirty: Vec<u32>,
    /// With something that waits for what they say.
    rolls_waiting: BTreeSet<u32>,
    /// What waits for nothing more.
    released: Vec<Request>,
    /// Questions to the upstream so far.
    asks: u32,
    /// Of these, behind what somebody outside has not answered.
    awaiting_bytes: usize,
    history_bytes: usize,
    /// Channels of whose history something is encoded, longest ago first; some of them gone, or twice.
    encoded: VecDeque<u32>,
    /// When these are so many, those are sorted out.
    encoded_room: usize,
    encoded_bytes: usize,
    replay_memory: ReplayMemory,
    config: Arc<Config>,
    limits: HomeLimits,
    keys: Keys,
    /// Publications that were known again by their keys.
    duplicates: u64,
    sweep: u32,
    turn: u32,
    /// Some rules limit how often clients publish.
    some_are_limited: bool,
    /// Nothing is published any more.
    closed: bool,
    /// The server drains: nobody who reads slowly is waited for any more.
    drains: bool,
    rng: SmallRng,
}

/// What a subscribe asks of a home.
#[derive(Debug)]
pub(in crate::shard) struct Subscribe<'a> {
    pub(in crate::shard) name: &'a ChannelName,
    pub(in crate::shard) shard: ShardId,
    pub(in crate::shard) session: SessionId,
    pub(in crate::shard) who: Option<&'a Caller>,
    /// What it has to enter with, where the channel is a room.
    pub(in crate::shard) entry: Option<&'a Entry>,
    pub(in crate::shard) lane: Lane,
    pub(in crate::shard) to: LaneId,
    pub(in crate::shard) recover: Option<Position>,
    pub(in crate::shard) recovery_bytes_max: usize,
    /// What numbers the channel was asked for this one's sake where it stands.
    pub(in crate::shard) looked: bool,
}

/// What a new subscriber starts from.
#[derive(Debug)]
pub(in crate::shard) enum Subscribed {
    /// It is counted in.
    Start(Start),
    /// What it missed is more than one turn encodes: ask again in the next one.
    Later,
    /// It waits at the home for what numbers the channel, which was or was not asked for its sake: to be parked there.
    Upstream { looked: bool },
}

fn are_limited(config: &Config) -> bool {
    config.channels.iter().any(|rule| rule.messages_per_second_max > 0)
}

impl Homes {
    pub(in crate::shard) fn new(
        config: Arc<Config>,
        limits: HomeLimits,
        clock: Clock,
        mut rng: SmallRng,
    ) -> Homes {
        Homes {
            clock,
            by_name: Names::new(),
            homes: Slab::default(),
            rooms: 0,
            ended_rooms: Ended::new(),
            dirty: Vec::new(),
            due: BTreeSet::new(),
            confirm_due: BTreeSet::new(),
            unconfirmed: 0,
            wanted_number: rng.random(),
            wanted: 0,
            confirming: BTreeMap::new(),
            ticket: 0,
            some_are_due: false,
            news: NewsQueue::new(limits.news_max),
            waiting: VecDeque::new(),
            parked_bytes: 0,
            incoming_bytes: 0,
            outgoing: Vec::new(),
            forwards: Vec::new(),
            resume_from: None,
            rolls_dirty: Vec::new(),
            rolls_waiting: BTreeSet::new(),
            released: Vec::new(),
            miss_from: Vec::new(),
            redistribute_from: None,
            asks: 0,
            awaiting_bytes: 0,
            history_bytes: 0,
            encoded: VecDeque::new(),
            encoded_room: ENCODED_ROOM,
            encoded_bytes: 0,
            replay_memory: ReplayMemory::new(limits.history_bytes_max / REPLAY_PARTS),
            some_are_limited: are_limited(&config),
            config,
            limits,
            keys: Keys::new(limits.keys_max),
            duplicates: 0,
            sweep: 0,
            turn: 1,
            closed: false,
            drains: false,
            rng,
        }
    }

    /// Goes by another configuration from now on. Channels that are there keep the history, window and
    /// members they have, but for those that somebody else numbers from now on.
    pub(in crate::shard) fn reconfigure(&mut self, config: Arc<Config>, limits: HomeLimits) {
        self.some_are_limited = are_limited(&config);
        self.redistribute_from = config.has_upstream().then_some(0);
        (self.config, self.limits) = (config, limits);
        self.news.reconfigure(limits.news_max);
        self.keys.reconfigure(limits.keys_max);
    }

    pub(in crate::shard) fn count(&self) -> usize {
        self.by_name.len()
    }

    /// The home of a channel, made if there is none.
    fn open(&mut self, name: &ChannelName, now_ms: u64) -> Result<u32, Refused> {
        if let Some(&index) = self.by_name.get(name) {
            return Ok(index);
        }
        if self.by_name.len() >= self.limits.own_channels_max {
            let most = self.limits.channels_max;
            return Err(Refused::LimitReached { limit: Limit::Channels, most });
        }
        Ok(self.open_new(name, now_ms))
    }

    /// The home of a channel that has none.
    fn open_new(&mut self, name: &ChannelName, now_ms: u64) -> u32 {
        let rule = self.config.rule(name);
        let kept = self.kept_by(rule);
        let distribution = self.config.distribution_of(name, rule);
        let rolls = self.rolls_of(rule, distribution);
        let members = rule.filter(|rule| rule.knows_members()).map(|rule| {
            let interval_ms = rule.join_leave.then_some(u64::from(rule.presence_interval_ms));
            Box::new(Members::new(interval_ms, rule.presence_hook, rolls.is_some()))
        });
        let window = rule.map_or(u32::MAX, |rule| rule.window_bytes);
        let members_max = rule.map_or(0, |rule| rule.members_max);
        let follows = distribution == Distribution::Numbered;
        let following = follows.then(|| self.begin_to_follow(name, now_ms));
        let epoch = if follows { Epoch::default() } else { Epoch(self.rng.random()) };
        let (index, _) = self.homes.insert(Home {
            name: name.clone(),
            epoch,
            last_offset: Offset::NONE,
            kept,
            lanes: SmallVec::new(),
            excepted: None,
            members,
            rolls,
            members_max,
            rate: None,
            made: None,
            following,
            shares: distribution == Distribution::Bridged,
            forwards: self.config.is_forwarded(name),
            keys: 0,
            dirty: false,
            quiet_ms: now_ms,
            parked: None,
            turn: 0,
            turn_bytes: 0,
            turn_bytes_max: window / WINDOW_PARTS_PER_TURN,
        });
        self.by_name.insert(name.clone(), index);
        self.call_roll(index, now_ms);
        index
    }

    fn home_mut(&mut self, index: u32) -> &mut Home {
        self.homes.get_mut(index).expect("an indexed home is there")
    }

    /// The server drains: what is held back for those who read slowly goes on. Everybody would wait for it, to be told that
    /// they are to come back.
    pub(in crate::shard) fn drain(&mut self) {
        self.drains = true;
    }

    /// From now on publications are refused: the server drains.
    pub(in crate::shard) fn close(&mut self) {
        self.closed = true;
    }

    /// Publishes, now or, while readers who read are behind, later; answers then. Frames are handed out
    /// by [`Homes::seal_all`] at the end of the turn, or earlier when there are many.
    ///
    /// Returns whether it was published at once.
    pub(in crate::shard) fn publish(
        &mut self,
        name: &ChannelName,
        payload: Payload,
        publisher: Publisher,
        now: (Instant, u64),
        deliver: Deliver,
    ) -> bool {
        let open = if self.closed { Err(Refused::Draining) } else { self.open(name, now.1) };
        let index = match open {
            Ok(index) => index,
            Err(refused) => {
                publisher.asker.refuse(name, refused, deliver);
                return false;
            }
        };
        if let Err(refused) = self.take_rate(index, &publisher.asker, now.1) {
            self.refuse(name, publisher.asker, refused, deliver);
            return false;
        }
        if self.home_mut(index).following.is_some() {
            match publisher.asker {
                Asker::Shared => self.miss_shared(index, deliver),
                _ => self.publish_upstream(index, payload, publisher, deliver),
            }
            return false;
        }
        if self.is_held(index) {
            if !self.has_room_behind_asked(index) {
                self.refuse(name, publisher.asker, TOO_MUCH_ASKED, deliver);
                return false;
            }
            self.park(index, Parked::Publication(payload.into(), publisher));
            return false;
        }
        self.append(index, &payload, publisher, now, deliver)
    }

    /// Counts a publication of a client, if it is not one too many for the channel.
    fn take_rate(&mut self, index: u32, asker: &Asker, now_ms: u64) -> Result<(), Refused> {
        if !self.some_are_limited || matches!(asker, Asker::Batch(..) | Asker::Shared) {
            return Ok(());
        }
        let home = self.homes.get_mut(index).expect("an indexed home is there");
        let Home { rate, name, .. } = home;
        match self.config.rule(name).filter(|rule| rule.messages_per_second_max > 0) {
            Some(rule) => rate.get_or_insert_default().take(name, rule, now_ms),
            None => {
                *rate = None;
                Ok(())
            }
        }
    }

    /// Refuses a publication, behind what its session has published before.
    pub(in crate::shard) fn refuse(
        &mut self,
        name: &ChannelName,
        asker: Asker,
        refused: Refused,
        deliver: Deliver,
    ) {
        let index = self.by_name.get(name).copied().filter(|&index| {
            let parked = self.homes.get(index).and_then(|home| home.parked.as_ref());
            match &asker {
                Asker::Session(own) => parked.is_some_and(|p| p.has_of(own.shard, own.session)),
                _ => false,
            }
        });
        match index {
            Some(index) => self.park(index, Parked::Refused(refused, asker)),
            None => asker.refuse(name, refused, deliver),
        }
    }

    /// Publishes now. Returns whether that could be.
    fn append(
        &mut self,
        index: u32,
        payload: &Payload,
        Publisher { asker, mut by }: Publisher,
        (now, now_ms): (Instant, u64),
        deliver: Deliver,
    ) -> bool {
        let taken = self.take_key(index, asker, &by, now_ms, deliver);
        let Some((asker, key)) = taken else { return false };
        let awaited = self.await_confirmations(index, &mut by);
        let turn = self.turn;
        let home = self.homes.get_mut(index).expect("an indexed home is there");
        if home.turn != turn {
            (home.turn, home.turn_bytes) = (turn, 0);
        }
        let position = home.append(payload, by.as_deref(), now, now_ms, deliver);
        if !home.dirty {
            home.dirty = true;
            self.dirty.push(index);
        }
        // What others number has come from the node where it was published.
        let told = matches!(asker, Asker::Shared)
            || home.following.is_some()
            || by.as_ref().is_some_and(|by| by.relayed);
        if (home.shares || home.forwards) && !told {
            let (kind, bytes) = (payload.kind, Bytes::copy_from_slice(&payload.bytes));
            let (channel, payload) = (&home.name, StoredPayload { kind, bytes });
            if home.forwards {
                self.forwards.push(Forward { channel: channel.clone(), payload: payload.clone() });
            }
            if home.shares {
                let publication = Outgoing::new(payload, by.as_deref());
                self.outgoing.push(ToUpstream::Share { channel: channel.clone(), publication });
            }
        }
        let (wanted, meta) = by.map_or((None, None), |by| (by.wanted, by.meta));
        self.with_kept(index, |kept| kept.push(position.offset, payload, meta, now_ms));
        if let Some(hash) = key {
            self.remember_key(index, hash, position.offset, now_ms);
        }
        self.bound_history(index);
        if !matches!(asker, Asker::Nobody | Asker::Shared) {
            let home = self.home_mut(index);
            let (ack, subscribers) = (Ack::Accepted, home.subscribers());
            let position = Some(position);
            let receipt = Receipt { position, ack, subscribers, duplicate: false };
            asker.answer(&home.name, Ok(receipt), deliver);
        }
        if let Some(number) = awaited {
            self.is_published(index, number, position, now_ms);
        } else if let Some(wanted) = wanted {
            self.is_wanted(index, position.offset, wanted, now_ms);
        }
        true
    }

    /// What nodes of another system are to be told of.
    pub(in crate::shard) fn take_forwards(&mut self) -> std::vec::Drain<'_, Forward> {
        self.forwards.drain(..)
    }

    /// Hands out everything pending: the end of a turn.
    pub(in crate::shard) fn seal_all(&mut self, deliver: Deliver) {
        // In the order in which they were published to, and kept for the next turn: no turn allocates.
        for &index in &self.dirty {
            if let Some(home) = self.homes.get_mut(index) {
                home.dirty = false;
                home.seal(deliver);
            }
        }
        self.dirty.clear();
    }

    /// Counts a subscriber in and says where it starts. What was published before is handed out
    /// first, so that the answer stands in order among the chunks. `budget` is what may be encoded in
    /// this turn, in bytes.
    pub(in crate::shard) fn subscribe(
        &mut self,
        subscribe: Subscribe,
        (now, now_ms): (Instant, u64),
        budget: &mut usize,
        deliver: Deliver,
    ) -> Result<Subscribed, Refused> {
        let Subscribe { name, shard, session, who, entry, lane, to, .. } = subscribe;
        let Subscribe { recover, recovery_bytes_max, looked, .. } = subscribe;
        self.may_enter(name, entry)?;
        let index = self.open(name, now_ms)?;
        let recover = match self.place_upstream(index, recover, looked, now_ms)? {
            Placed::Here(recover) => recover,
            Placed::NotYet(looked) => return Ok(Subscribed::Upstream { looked }),
        };
        let home = self.home_mut(index);
        home.seal(deliver);
        let mut replay: Option<Option<Replay>> = None;
        if let Some(from) = recover {
            replay = Some(None);
            let known = from.epoch == home.epoch && from.offset <= home.last_offset;
            if known && from.offset == home.last_offset {
                replay = Some(Some(Replay::default()));
            } else if known {
                let last = home.last_offset;
                let found = self.with_kept(index, |kept| {
                    kept.forget(now_ms);
                    kept.replay(from.offset, last, lane, name, recovery_bytes_max, budget)
                });
                let is_gone = matches!(found, None | Some(Found::Gone));
                if is_gone && self.may_be_older(index, from.offset.next()) {
                    self.bound_encoded(index);
                    if self.is_away(index) {
                        // Later it may be recovered.
                        return Err(AWAY);
                    }
                    self.read_older(index, now_ms);
                    return Ok(Subscribed::Upstream { looked });
                }
                match found {
                    None | Some(Found::Gone) => {}
                    Some(Found::Unfinished) => {
                        self.bound_encoded(index);
                        return Ok(Subscribed::Later);
                    }
                    Some(Found::Frames(frames)) => replay = Some(Some(frames)),
                }
            }
        }
        self.bound_encoded(index);
        let home = self.home_mut(index);
        let naming = home.join(shard, session, who);
        self.members_changed(index, now_ms);
        self.tell_before(index, (now, now_ms), deliver);
        let home = self.home_mut(index);
        home.add_subscriber(lane, shard, to);
        Ok(Subscribed::Start(Start {
            position: home.position(),
            recovered: replay.as_ref().map(Option::is_some),
            replay: replay.flatten().unwrap_or_default(),
            subscribers: home.subscribers(),
            naming,
        }))
    }

    /// Counts a subscriber out.
    ///
    /// # Panics
    /// If it was not counted in.
    pub(in crate::shard) fn unsubscribe(
        &mut self,
        name: &str,
        (shard, session): (ShardId, SessionId),
        lane: Lane,
        now_ms: u64,
    ) {
        let index = *self.by_name.get(name).expect("a channel with subscribers is there");
        let home = self.home_mut(index);
        home.remove_subscriber(lane, shard);
        if let Some(members) = &mut home.members {
            members.leave((shard, session));
        }
        home.quiet_ms = now_ms;
        let fresh = home.last_offset == Offset::NONE;
        self.members_changed(index, now_ms);
        self.end_if_empty(index);
        // Nothing was ever said there: nobody can come back to it.
        if fresh {
            self.close_if_idle(index, u64::MAX);
        }
    }

    /// Readers who read are behind on a lane of a shard, or no more.
    pub(in crate::shard) fn press(&mut self, name: &str, shard: ShardId, lane: Lane, on: bool) {
        if let Some(&index) = self.by_name.get(name) {
            self.home_mut(index).press(lane, shard, on);
        }
    }

    /// Some of the channels, from a place in the table on.
    pub(in crate::shard) fn page(&self, from: u32) -> ChannelPage {
        let end = from.saturating_add(PAGE_PLACES).min(self.homes.slots());
        let homes = (from..end).filter_map(|slot| self.homes.get(slot));
        let known = homes.filter(|home| home.following.as_ref().is_none_or(|own| own.known));
        let rows = known.map(|home| ChannelRow {
            name: home.name.clone(),
            position: home.position(),
            subscribers: home.subscribers(),
            history: home.history(),
        });
        ChannelPage { rows: rows.collect(), next: (end < self.homes.slots()).then_some(end) }
    }

    /// Forgets aged history of some channels, and channels that nobody needs; over many calls, of all.
    pub(in crate::shard) fn sweep(&mut self, now_ms: u64) {
        self.forget_keys(now_ms);
        let slots = self.homes.slots();
        for _ in 0..SWEEP_CHANNELS.min(slots) {
            self.sweep = (self.sweep + 1) % slots;
            self.forget(self.sweep, now_ms);
            self.check_upstream(self.sweep, now_ms);
            self.close_if_idle(self.sweep, now_ms);
        }
    }

    fn forget(&mut self, index: u32, now_ms: u64) {
        self.forget_wanted(index, now_ms);
        self.with_kept(index, |kept| kept.forget(now_ms));
    }

    /// A channel with neither subscribers, history nor idempotency keys ends; the next life has a new epoch.
    fn close_if_idle(&mut self, index: u32, now_ms: u64) {
        let idle = self.homes.get(index).is_some_and(|home| {
            now_ms.saturating_sub(home.quiet_ms) >= LINGER_MS
                && home.lanes.is_empty()
                && match &home.following {
                    None => home.history() == 0,
                    Some(following) => !following.awaits,
                }
                && !home.waits()
                && home.members.as_ref().is_none_or(|members| members.confirmations.len() == 0)
                && home.rolls.as_ref().is_none_or(|own| !own.dirty && !own.is_waited_for())
                && home.made.is_none()
                && home.keys == 0
                && !home.dirty
                // Who comes back would find the burst as if nothing had been published.
                && home.rate.as_ref().is_none_or(|rate| rate.is_fresh(now_ms))
        });
        if idle && let Some(home) = self.homes.remove(index) {
            self.by_name.remove(&home.name);
            self.wanted -=
                home.members.as_ref().map_or(0, |members| members.confirmations.wanted_len());
            if home.rolls.is_some() {
                self.close_roll(home.name.clone(), home.following.is_some());
            }
            if home.following.is_some() {
                self.outgoing.push(ToUpstream::Unfollow { channel: home.name });
            }
            if let Some(kept) = home.kept {
                self.history_bytes -= kept.bytes();
                self.encoded_bytes -= kept.encoded_bytes();
            }
        }
    }

    /// Who is counted in: lanes and shards with where they want chunks, their numbers of subscribers, and
    /// whether these hold publications back.
    pub(in crate::shard) fn interests(
        &self,
    ) -> impl Iterator<Item = ((&ChannelName, Lane, ShardId), (LaneId, usize, bool))> {
        self.homes.iter().flat_map(|(_, home)| {
            home.lanes.iter().flat_map(|HomeLane { lane, interests, .. }| {
                interests.iter().map(|interest| {
                    let key = (&home.name, *lane, interest.shard);
                    (key, (interest.to, interest.subscribers as usize, interest.pressed))
                })
            })
        })
    }

    /// Panics if what is counted is not what is there.
    pub(in crate::shard) fn check(&self) {
        self.news.check();
        self.check_confirmations();
        self.check_keys();
        let homes = || self.homes.iter().map(|(_, home)| home);
        assert_eq!(homes().count(), self.by_name.len(), "each home has one name");
        let parked: usize = homes().map(Home::parked_bytes).sum();
        assert_eq!(parked, self.parked_bytes, "parked bytes");
        let awaiting: usize = homes().map(Home::awaiting_bytes).sum();
        assert_eq!(awaiting, self.awaiting_bytes, "parked bytes that await an answer");
        let kept = homes().filter_map(|home| home.kept.as_ref()).map(|kept| kept.bytes());
        assert_eq!(kept.sum::<usize>(), self.history_bytes, "history bytes");
        let encoded =
            homes().filter_map(|home| home.kept.as_ref()).map(|kept| kept.encoded_bytes());
        assert_eq!(encoded.sum::<usize>(), self.encoded_bytes, "encoded bytes");
        let following = || homes().filter_map(|home| home.following.as_ref());
        following().for_each(|following| following.check());
        let counted = following().map(|following| following.appendable_bytes());
        assert_eq!(counted.sum::<usize>(), self.incoming_bytes, "bytes that came from upstream");
        for home in homes() {
            home.parked.iter().for_each(|parked| parked.check());
            home.members.iter().for_each(|members| members.check(home.subscribers()));
            assert!(home.lanes.iter().all(|lane| !lane.interests.is_empty()), "{}", home.name);
            let interests = home.lanes.iter().flat_map(|lane| &lane.interests);
            assert!(interests.into_iter().all(|interest| interest.subscribers > 0));
        }
        assert_eq!(homes().filter(|home| home.made.is_some()).count(), self.rooms, "made rooms");
        let waiting = homes().filter(|home| home.waits()).count();
        assert_eq!(waiting, self.waiting.len(), "each home where something waits is listed once");
    }

    /// The newest position, for tests.
    #[cfg(test)]
    fn position(&self, name: &str) -> Option<Position> {
        Some(self.homes.get(*self.by_name.get(name)?)?.position())
    }
}

#[cfg(test)]
mod tests;
