//! The channels that sessions of this shard are subscribed to: one log and one list of subscribers
//! for each lane of each.

pub mod log;

use std::collections::HashMap;

use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::{ChannelName, Lane, Position};

use crate::config::LagPolicy;
use crate::message::ChannelKey;
use crate::shard::feed::log::Log;

/// A lane of a channel on this shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LaneId(pub(super) u32);

/// A subscriber at this position waits to be told of a gap and to be put at the end.
pub(super) const GAPPED: u64 = u64::MAX;

/// One subscriber of a lane: a cursor and nothing else.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subscriber {
    /// Everything before this position was sent, or is being sent in the current submission.
    pub(super) sent: u64,
    pub(super) session: u32,
}

/// What a reader meets that falls behind, copied from the channel's rule.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) policy: LagPolicy,
    pub(super) bytes: u64,
    pub(super) age_ms: u64,
}

/// One lane of one channel.
#[derive(Debug)]
pub(super) struct LaneState {
    pub(super) channel: u32,
    pub(super) lane: Lane,
    pub(super) name: ChannelName,
    pub(super) epoch: Epoch,
    pub(super) window: Window,
    pub(super) log: Log,
    pub(super) subscribers: Vec<Subscriber>,
    /// First offset missed by subscribers that are `GAPPED`, by session slot.
    pub(super) gaps: HashMap<u32, u64>,
    /// On the list of lanes with something to send.
    pub(super) dirty: bool,
    /// How far the current walk over the subscribers has come.
    pub(super) walk: u32,
    /// Another walk is needed after this one.
    pub(super) again: bool,
    /// The least position of a subscriber that could be sent to, in this walk and in the last.
    pub(super) walk_floor: u64,
    pub(super) floor: u64,
    /// Some subscriber could not be sent to in the last walk.
    pub(super) lagging: bool,
    /// On the list of lanes to be looked at with each tick.
    pub(super) lag_listed: bool,
}

#[derive(Debug)]
struct Channel {
    name: ChannelName,
    key: Option<ChannelKey>,
    lanes: [Option<LaneId>; Lane::COUNT],
    /// Subscriptions, including those the home has not answered yet.
    users: u32,
}

/// The table of subscribed channels.
#[derive(Debug)]
pub(super) struct Subscriptions {
    by_name: HashMap<ChannelName, u32>,
    by_key: HashMap<ChannelKey, u32, foldhash::fast::RandomState>,
    channels: Vec<Option<Channel>>,
    free_channels: Vec<u32>,
    lanes: Vec<Option<LaneState>>,
    free_lanes: Vec<u32>,
}

fn insert<T>(table: &mut Vec<Option<T>>, free: &mut Vec<u32>, value: T) -> u32 {
    match free.pop() {
        Some(index) => {
            table[index as usize] = Some(value);
            index
        }
        None => {
            table.push(Some(value));
            u32::try_from(table.len() - 1).expect("channels_max is below 2^30")
        }
    }
}

impl Subscriptions {
    pub(super) fn new() -> Subscriptions {
        Subscriptions {
            by_name: HashMap::new(),
            by_key: HashMap::default(),
            channels: Vec::new(),
            free_channels: Vec::new(),
            lanes: Vec::new(),
            free_lanes: Vec::new(),
        }
    }

    /// The lane of a channel, made if there is none. Each call is one use, to be given back by
    /// [`Subscriptions::release`].
    pub(super) fn acquire(&mut self, name: &ChannelName, lane: Lane, window: Window) -> LaneId {
        let index = match self.by_name.get(name) {
            Some(&index) => index,
            None => {
                let channel =
                    Channel { name: name.clone(), key: None, lanes: [None; Lane::COUNT], users: 0 };
                let index = insert(&mut self.channels, &mut self.free_channels, channel);
                self.by_name.insert(name.clone(), index);
                index
            }
        };
        let channel = self.channels[index as usize].as_mut().expect("an indexed channel is there");
        channel.users += 1;
        if let Some(id) = channel.lanes[lane.index()] {
            return id;
        }
        let state = LaneState {
            channel: index,
            lane,
            name: name.clone(),
            epoch: Epoch(0),
            window,
            log: Log::new(0),
            subscribers: Vec::new(),
            gaps: HashMap::new(),
            dirty: false,
            walk: 0,
            again: false,
            walk_floor: u64::MAX,
            floor: 0,
            lagging: false,
            lag_listed: false,
        };
        let id = LaneId(insert(&mut self.lanes, &mut self.free_lanes, state));
        channel.lanes[lane.index()] = Some(id);
        id
    }

    /// Gives one use back. The channel and its logs end with their last use.
    pub(super) fn release(&mut self, id: LaneId) {
        let index = self.lane(id).channel;
        let channel = self.channels[index as usize].as_mut().expect("a lane has its channel");
        channel.users -= 1;
        if channel.users > 0 {
            return;
        }
        for lane in channel.lanes.into_iter().flatten() {
            self.lanes[lane.0 as usize] = None;
            self.free_lanes.push(lane.0);
        }
        if let Some(channel) = self.channels[index as usize].take() {
            self.by_name.remove(&channel.name);
            if let Some(key) = channel.key {
                self.by_key.remove(&key);
            }
        }
        self.free_channels.push(index);
    }

    /// The lane on which a session finds the channel, if anybody here uses it.
    pub(super) fn find(&self, name: &str, lane: Lane) -> Option<LaneId> {
        let index = *self.by_name.get(name)?;
        self.channels[index as usize].as_ref()?.lanes[lane.index()]
    }

    /// Adds a subscriber that starts behind `position`, which is where the log stands: the home's
    /// answer is in order among its chunks. Returns its place.
    pub(super) fn attach(
        &mut self,
        id: LaneId,
        key: ChannelKey,
        session: u32,
        position: Position,
    ) -> u32 {
        self.set_key(id, key);
        let lane = self.lane_mut(id);
        if lane.subscribers.is_empty() {
            // What came while nobody was here was not kept.
            lane.log = Log::new(position.offset);
            lane.epoch = position.epoch;
            (lane.walk, lane.floor, lane.again) = (0, 0, false);
        }
        assert_eq!(lane.log.last_offset(), position.offset, "answers are in order among chunks");
        let index = u32::try_from(lane.subscribers.len()).expect("sessions have 32-bit slots");
        lane.subscribers.push(Subscriber { sent: lane.log.end(), session });
        index
    }

    /// The home has answered: chunks of this life come under this key.
    fn set_key(&mut self, id: LaneId, key: ChannelKey) {
        let index = self.lane(id).channel;
        let channel = self.channels[index as usize].as_mut().expect("a lane has its channel");
        if channel.key != Some(key) {
            if let Some(old) = channel.key.replace(key) {
                self.by_key.remove(&old);
            }
            self.by_key.insert(key, index);
        }
    }

    /// The lane that a chunk belongs to; `None` when nobody here uses it any more.
    pub(super) fn find_key(&self, key: ChannelKey, lane: Lane) -> Option<LaneId> {
        let index = *self.by_key.get(&key)?;
        self.channels[index as usize].as_ref()?.lanes[lane.index()]
    }

    pub(super) fn lane(&self, id: LaneId) -> &LaneState {
        self.lanes[id.0 as usize].as_ref().expect("a lane in use is there")
    }

    pub(super) fn lane_mut(&mut self, id: LaneId) -> &mut LaneState {
        self.lanes[id.0 as usize].as_mut().expect("a lane in use is there")
    }

    /// As [`Subscriptions::try_lane_mut`].
    pub(super) fn try_lane(&self, id: LaneId) -> Option<&LaneState> {
        self.lanes.get(id.0 as usize)?.as_ref()
    }

    /// The lane, if it is still in use: for lists that are cleaned up later.
    pub(super) fn try_lane_mut(&mut self, id: LaneId) -> Option<&mut LaneState> {
        self.lanes.get_mut(id.0 as usize)?.as_mut()
    }

    pub(super) fn bytes_held(&self) -> u64 {
        self.lanes.iter().flatten().map(|lane| lane.log.bytes_held()).sum()
    }
}
