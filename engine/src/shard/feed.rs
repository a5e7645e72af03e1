//! The channels that sessions of this shard are subscribed to: one log and its subscribers for each
//! lane of each.

pub mod log;
pub mod retained;
mod skips;

use std::collections::HashMap;
use std::time::Instant;

use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::{ChannelName, Lane, Offset, Position};
use smallvec::SmallVec;

use crate::config::LagPolicy;
use crate::ids::{LaneId, LogPosition, SessionSlot};
use crate::message::Chunk;
use crate::names::Names;
use crate::slab::Slab;
use log::Log;
use retained::Retained;
use skips::Skips;

/// A subscriber at this position waits to be told of a gap and to be put at the end.
pub(super) const GAPPED: LogPosition = LogPosition(u64::MAX);
/// A subscriber without a cursor: what it was not sent stands in its session's list of chunks.
pub(super) const FOLLOWS: LogPosition = LogPosition(u64::MAX - 1);

/// One subscriber of a lane: a cursor and nothing else.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subscriber {
    /// Everything before this position was sent, or is being sent in the current submission; or
    /// [`GAPPED`], or [`FOLLOWS`].
    pub(super) sent: LogPosition,
    pub(super) session: SessionSlot,
}

impl Subscriber {
    /// The position, where there is one.
    pub(super) fn cursor(&self) -> Option<LogPosition> {
        (self.sent < FOLLOWS).then_some(self.sent)
    }
}

/// Which of a lane's two lists a subscriber is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    /// Sessions with one subscription, served lane by lane.
    Walked,
    /// Sessions that have had several, served one by one.
    Served,
}

/// What a reader meets that falls behind, copied from the channel's rule.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) policy: LagPolicy,
    pub(super) bytes: usize,
    pub(super) age_ms: u64,
}

/// For how long a lane's readers may still hold its publications back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    left_ms: u64,
    at_ms: u64,
}

impl Patience {
    /// Readers who read are waited for so long, …
    const FULL_MS: u64 = 2000;
    /// … and after that one millisecond in so many.
    const REFILL_MS: u64 = 10;

    fn new() -> Patience {
        Patience { left_ms: Patience::FULL_MS, at_ms: 0 }
    }

    /// Books the time since the last look, during which the lane was or was not waited for.
    pub(super) fn pass(&mut self, now_ms: u64, waited: bool) {
        let passed = now_ms.saturating_sub(self.at_ms);
        if waited {
            self.left_ms = self.left_ms.saturating_sub(passed);
            self.at_ms = now_ms;
        } else {
            self.left_ms = (self.left_ms + passed / Patience::REFILL_MS).min(Patience::FULL_MS);
            // What does not make a whole millisecond yet is not forgotten.
            self.at_ms = now_ms - passed % Patience::REFILL_MS;
        }
    }

    pub(super) fn is_left(self) -> bool {
        self.left_ms > 0
    }
}

/// One lane of one channel.
#[derive(Debug)]
pub(super) struct LaneState {
    channel: u32,
    pub(super) lane: Lane,
    pub(super) name: ChannelName,
    pub(super) epoch: Epoch,
    /// Its home knows who is there.
    pub(super) named: bool,
    pub(super) window: Window,
    pub(super) log: Log,
    pub(super) walked: Vec<Subscriber>,
    pub(super) served: Vec<Subscriber>,
    /// First offset missed by subscribers that are `GAPPED`.
    pub(super) gaps: HashMap<SessionSlot, Offset>,
    /// Where the channel went on in another life or behind a hole, and from which offset on something is missing there. Those
    /// before the log's beginning mean nothing.
    renewals: SmallVec<[(LogPosition, Offset); 1]>,
    pub(super) skips: Skips,
    /// On the list of lanes with something to walk for.
    pub(super) dirty: bool,
    /// How far the current walk over `walked` has come.
    pub(super) walk: u32,
    /// Another walk is needed after this one.
    pub(super) again: bool,
    /// Chunks that stand in lists of sessions that follow, …
    pub(super) followed: u32,
    /// … which all lie behind this.
    pub(super) followed_from: LogPosition,
    /// On the list of lanes to be looked at after the flush.
    pub(super) touched: bool,
    /// Where the last look found the log's end.
    pub(super) reviewed_to: LogPosition,
    /// When the newest publication was published.
    pub(super) newest_at: Option<Instant>,
    /// On the list of lanes to be looked at with each tick.
    pub(super) lagging: bool,
    /// The home was told to hold publications back.
    pub(super) pressed: bool,
    pub(super) patience: Patience,
    /// At the last tick readers who read had something waiting that is too old.
    pub(super) waits_for_old: bool,
}

impl LaneState {
    pub(super) fn list(&self, list: List) -> &Vec<Subscriber> {
        match list {
            List::Walked => &self.walked,
            List::Served => &self.served,
        }
    }

    pub(super) fn list_mut(&mut self, list: List) -> &mut Vec<Subscriber> {
        match list {
            List::Walked => &mut self.walked,
            List::Served => &mut self.served,
        }
    }

    pub(super) fn subscriber_mut(&mut self, list: List, index: u32) -> Option<&mut Subscriber> {
        self.list_mut(list).get_mut(index as usize)
    }

    pub(super) fn subscribers(&self) -> impl Iterator<Item = &Subscriber> {
        self.walked.iter().chain(&self.served)
    }

    /// Where the chunks begin that stand in lists of sessions that follow; the log's end where none do.
    fn listed_from(&self) -> LogPosition {
        if self.followed > 0 { self.followed_from } else { self.log.end() }
    }

    /// The first offset that who goes no further than `position` has not, in the present life of the channel.
    pub(super) fn first_missed(&self, position: LogPosition) -> Offset {
        let behind = self.renewals.iter().filter(|(at, _)| *at >= position);
        let missed = self.log.next_offset(position);
        behind.map(|&(_, lost)| lost).min().map_or(missed, |lost| missed.min(lost))
    }

    pub(super) fn has_subscribers(&self) -> bool {
        !self.walked.is_empty() || !self.served.is_empty()
    }
}

#[derive(Debug)]
struct Channel {
    name: ChannelName,
    lanes: SmallVec<[(Lane, LaneId); 1]>,
    /// Subscriptions, including those the home has not answered yet.
    users: u32,
}

/// The table of subscribed channels.
#[derive(Debug)]
pub(super) struct Feeds {
    by_name: Names<ChannelName, u32>,
    channels: Slab<Channel>,
    lanes: Slab<LaneState>,
    /// Of all logs.
    log_bytes: usize,
    retained: Retained,
}

impl Feeds {
    pub(super) fn new() -> Feeds {
        Feeds {
            by_name: Names::new(),
            channels: Slab::default(),
            lanes: Slab::default(),
            log_bytes: 0,
            retained: Retained::default(),
        }
    }

    /// The lane of a channel, made if there is none. Each call is one use, to be given back by
    /// [`Feeds::release`].
    pub(super) fn acquire(&mut self, name: &ChannelName, lane: Lane, window: Window) -> LaneId {
        let index = match self.by_name.get(name) {
            Some(&index) => index,
            None => {
                let channel = Channel { name: name.clone(), lanes: SmallVec::new(), users: 0 };
                let (index, _) = self.channels.insert(channel);
                self.by_name.insert(name.clone(), index);
                index
            }
        };
        let channel = self.channels.get_mut(index).expect("an indexed channel is there");
        channel.users += 1;
        if let Some(&(_, id)) = channel.lanes.iter().find(|(own, _)| *own == lane) {
            return id;
        }
        let (slot, generation) = self.lanes.insert(LaneState {
            channel: index,
            lane,
            name: name.clone(),
            epoch: Epoch(0),
            named: false,
            window,
            log: Log::new(Offset::NONE),
            walked: Vec::new(),
            served: Vec::new(),
            gaps: HashMap::new(),
            renewals: SmallVec::new(),
            skips: Skips::default(),
            dirty: false,
            walk: 0,
            again: false,
            followed: 0,
            followed_from: LogPosition::START,
            touched: false,
            reviewed_to: LogPosition::START,
            newest_at: None,
            lagging: false,
            pressed: false,
            patience: Patience::new(),
            waits_for_old: false,
        });
        let id = LaneId { slot, generation };
        channel.lanes.push((lane, id));
        id
    }

    /// Gives one use back. The channel and its logs end with their last use.
    pub(super) fn release(&mut self, id: LaneId) {
        let index = self.lane(id).channel;
        let channel = self.channels.get_mut(index).expect("a lane has its channel");
        channel.users -= 1;
        if channel.users > 0 {
            return;
        }
        let Some(channel) = self.channels.remove(index) else { return };
        for (_, lane) in channel.lanes {
            if let Some(mut lane) = self.lanes.remove(lane.slot) {
                self.log_bytes -= lane.log.bytes_held();
                lane.log.clear(lane.listed_from(), &mut self.retained);
            }
        }
        self.by_name.remove(&channel.name);
    }

    /// The lane on which a session finds the channel, if anybody here uses it.
    pub(super) fn find(&self, name: &str, lane: Lane) -> Option<LaneId> {
        let channel = self.channels.get(*self.by_name.get(name)?)?;
        channel.lanes.iter().find(|(own, _)| *own == lane).map(|&(_, id)| id)
    }

    /// Adds a subscriber that starts behind `position`, which is where the log stands: the home's
    /// answer is in order among its chunks. Returns its place in the list.
    pub(super) fn attach(
        &mut self,
        id: LaneId,
        position: Position,
        list: List,
        session: SessionSlot,
    ) -> u32 {
        let Feeds { lanes, retained, log_bytes, .. } = self;
        let lane = lanes.get_mut(id.slot).expect("a lane in use is there");
        if !lane.has_subscribers() {
            // What came while nobody was here was not kept.
            *log_bytes -= lane.log.bytes_held();
            lane.log.restart(position.offset, lane.listed_from(), retained);
            lane.skips.forget(lane.log.base());
            lane.epoch = position.epoch;
            (lane.walk, lane.again) = (0, false);
            lane.followed_from = lane.log.end();
        }
        assert_eq!(lane.log.last_offset(), position.offset, "answers are in order among chunks");
        let sent = lane.log.end();
        let list_of = lane.list_mut(list);
        let index = u32::try_from(list_of.len()).expect("sessions have 32-bit slots");
        list_of.push(Subscriber { sent, session });
        index
    }

    /// Where nobody is subscribed any more nothing is kept, and nobody is waited for. Returns whether the
    /// home has to be told so.
    pub(super) fn clear_if_unused(&mut self, id: LaneId) -> bool {
        let Some(lane) = self.lanes.get_mut(id.slot).filter(|lane| !lane.has_subscribers()) else {
            return false;
        };
        self.log_bytes -= lane.log.bytes_held();
        let last_offset = lane.log.last_offset();
        lane.log.restart(last_offset, lane.listed_from(), &mut self.retained);
        lane.skips.forget(lane.log.base());
        lane.followed_from = lane.log.end();
        lane.patience = Patience::new();
        std::mem::take(&mut lane.pressed)
    }

    /// Appends a chunk to a lane's log. Returns where it starts.
    pub(super) fn append(&mut self, id: LaneId, chunk: Chunk, now_ms: u64) -> LogPosition {
        let lane = self.lane_mut(id);
        assert_eq!(chunk.first_offset, lane.log.last_offset().next(), "offsets are dense");
        let held = lane.log.bytes_held();
        lane.newest_at = Some(chunk.at);
        let start = lane.log.append(chunk, now_ms);
        let grown = lane.log.bytes_held() - held;
        self.log_bytes += grown;
        start
    }

    /// What comes next is behind another position, perhaps of another life; in that, what is from `lost` on up to it has
    /// not come here.
    pub(super) fn renew(&mut self, id: LaneId, position: Position, lost: Offset) {
        let lane = self.lane_mut(id);
        lane.epoch = position.epoch;
        lane.log.renew(position.offset);
        let base = lane.log.base();
        lane.renewals.retain(|(at, _)| *at >= base);
        lane.renewals.push((lane.log.end(), lost));
        // Who is told of a gap is told of this with it.
        lane.gaps.values_mut().for_each(|missed| *missed = (*missed).min(lost));
    }

    /// A reader is not sent a part of what was appended last, which begins at or behind where it stands.
    pub(super) fn skip(
        &mut self,
        id: LaneId,
        (list, index): (List, u32),
        from: LogPosition,
        to: LogPosition,
    ) {
        let lane = self.lane_mut(id);
        let Some(subscriber) = lane.subscriber_mut(list, index) else { return };
        let session = subscriber.session;
        match subscriber.cursor() {
            // Who has everything before it is past it at once.
            Some(position) if position == from => subscriber.sent = to,
            Some(_) => lane.skips.add(session, from, to),
            // It is told of a gap, and goes on behind it.
            None => {}
        }
    }

    /// Drops what lies before `keep_from` from a lane's log, in whole chunks, and puts together what stays.
    pub(super) fn trim(&mut self, id: LaneId, keep_from: LogPosition) {
        let Feeds { lanes, retained, log_bytes, .. } = self;
        let Some(lane) = lanes.get_mut(id.slot) else { return };
        let held = lane.log.bytes_held();
        lane.log.trim(keep_from, lane.listed_from(), retained);
        lane.skips.forget(lane.log.base());
        *log_bytes = *log_bytes - held + lane.log.bytes_held();
    }

    /// Forgets log memory that nobody holds any more; with each tick.
    pub(super) fn sweep_retained(&mut self) {
        self.retained.sweep();
    }

    /// Bytes of log memory that only half-sent frames still held at the last sweep, and what came since.
    pub(super) fn retained_bytes(&self) -> usize {
        self.retained.bytes()
    }

    /// A lane that somebody uses.
    ///
    /// # Panics
    /// If nobody uses it: for ids that are held by a use.
    pub(super) fn lane(&self, id: LaneId) -> &LaneState {
        self.try_lane(id).expect("a lane in use is there")
    }

    /// As [`Feeds::lane`].
    pub(super) fn lane_mut(&mut self, id: LaneId) -> &mut LaneState {
        self.try_lane_mut(id).expect("a lane in use is there")
    }

    /// The lane, if it is still in use: for lists that are cleaned up later.
    pub(super) fn try_lane(&self, id: LaneId) -> Option<&LaneState> {
        (self.lanes.generation(id.slot)? == id.generation).then(|| self.lanes.get(id.slot))?
    }

    /// As [`Feeds::try_lane`].
    pub(super) fn try_lane_mut(&mut self, id: LaneId) -> Option<&mut LaneState> {
        (self.lanes.generation(id.slot)? == id.generation).then(|| self.lanes.get_mut(id.slot))?
    }

    /// Bytes in all logs.
    pub(super) fn log_bytes(&self) -> usize {
        self.log_bytes
    }

    /// All lanes, for checks.
    pub(super) fn lanes(&self) -> impl Iterator<Item = (LaneId, &LaneState)> {
        self.lanes.iter().map(|(slot, lane)| {
            let generation = self.lanes.generation(slot).unwrap_or_default();
            (LaneId { slot, generation }, lane)
        })
    }

    /// Uses of all channels, for checks.
    pub(super) fn users(&self) -> u64 {
        self.channels.iter().map(|(_, channel)| u64::from(channel.users)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_spent_by_waiting_and_comes_back_a_tenth_as_fast() {
        let mut patience = Patience::new();
        patience.pass(1000, false);
        patience.pass(2500, true);
        assert!(patience.is_left());
        patience.pass(3000, true);
        assert!(!patience.is_left());
        (3001..3010).for_each(|now| patience.pass(now, false));
        assert!(!patience.is_left(), "nine milliseconds are not one");
        patience.pass(3010, false);
        assert!(patience.is_left());
        patience.pass(1 << 40, false);
        assert_eq!(patience.left_ms, Patience::FULL_MS);
    }

    #[test]
    fn a_lane_that_was_given_away_again_is_another_one() {
        let name = ChannelName::new("c").unwrap();
        let window = Window { policy: LagPolicy::Gap, bytes: 1 << 20, age_ms: 1000 };
        let mut feeds = Feeds::new();
        let first = feeds.acquire(&name, Lane::RAW, window);
        feeds.release(first);
        let second = feeds.acquire(&name, Lane::RAW, window);
        assert_eq!(first.slot, second.slot);
        assert!(feeds.try_lane(first).is_none() && feeds.try_lane(second).is_some());
    }
}
