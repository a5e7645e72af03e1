//! The channels homed on this shard: the only writer of each. A home gives publications their
//! offsets, keeps the history, encodes each publication once per lane somebody is on, and says
//! which shards get it. It holds publications back while readers who read are behind.

mod answer;
mod confirmations;
mod following;
mod idempotency;
mod joining;
mod kept;
mod members;
mod news;
mod notices;
mod parked;
mod rolls;
mod table;

use std::time::Instant;

use bytes::Bytes;
use ringfeed_protocol::command::Payload;
use ringfeed_protocol::event::{Epoch, Publication};
use ringfeed_protocol::{ChannelName, Event, Lane, Offset, Position};
use smallvec::SmallVec;

use crate::ids::{ConnectionId, LaneId, ShardId};
use crate::message::{Chunk, Delivery, FrameEnd, FrameIndex, Sender, Skip};
use crate::shard::rate::ChannelRate;
pub(super) use answer::{Asker, Batch, Publisher};
use following::Following;
pub(crate) use idempotency::KEY_BYTES;
use joining::Joining;
use kept::Kept;
use members::Members;
use parked::{Parked, Parking};
use rolls::Rolls;
use table::room::Made;
pub(super) use table::{HomeLimits, Homes, Subscribe, Subscribed};

/// What a dialect puts around a payload, at most, besides the channel's name.
const ENVELOPE_BYTES: usize = 96;
/// A chunk is closed at this size, so that one send can hold several of them.
const CHUNK_BYTES_MAX: usize = 32 * 1024;
/// What a chunk may take in memory beyond its length: such a part of it, …
const WASTE_PARTS: usize = 8;
/// … and so many bytes.
const WASTE_BYTES: usize = 64;

/// Subscribers of one shard on one lane.
#[derive(Debug)]
struct Interest {
    shard: ShardId,
    /// Where it wants chunks: its newest lane, of those that it has asked for.
    to: LaneId,
    subscribers: u32,
    /// Some of them read and are behind.
    pressed: bool,
}

/// Frames of this turn that have not been handed out yet.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    ends: SmallVec<[FrameEnd; 2]>,
    first_offset: Offset,
    at: Option<Instant>,
    /// What will be a frame behind them, in lanes whose frames hold several publications.
    joining: Option<Box<Joining>>,
}

impl Pending {
    /// A frame was written, with so many publications that end with it; the first that is in it or comes behind it is
    /// `first`. Returns the bytes so far.
    fn end_frame(&mut self, first: Offset, publications: u32, now: Instant) -> usize {
        if self.ends.is_empty() {
            self.first_offset = first;
            self.at = Some(now);
        }
        let before = self.ends.last().map_or(0, |last| last.publications);
        let end = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.ends.push(FrameEnd { end, publications: before + publications });
        self.bytes.len()
    }

    /// Which of its frames connections of a shard are not sent.
    fn skips(&self, excepted: &[(Offset, ConnectionId)], shard: ShardId) -> Vec<Skip> {
        let here = |&&(offset, connection): &&(Offset, ConnectionId)| {
            // What came while nobody was on the lane is not in it.
            connection.shard == shard && offset >= self.first_offset
        };
        let skips = excepted.iter().filter(here).filter_map(|&(offset, connection)| {
            // What somebody is not sent has a frame of its own.
            let before = offset.since(self.first_offset);
            let place = self.ends.partition_point(|frame| u64::from(frame.publications) <= before);
            let to = self.ends.get(place)?.end;
            let from = place.checked_sub(1).and_then(|before| self.ends.get(before));
            Some(Skip { connection, from: from.map_or(0, |before| before.end), to })
        });
        skips.collect()
    }
}

/// One lane of a channel, while somebody is on it.
#[derive(Debug)]
struct HomeLane {
    lane: Lane,
    interests: SmallVec<[Interest; 1]>,
    pending: Pending,
}

/// Publications that one connection is not sent.
type Excepted = SmallVec<[(Offset, ConnectionId); 1]>;

#[derive(Debug)]
struct Home {
    name: ChannelName,
    epoch: Epoch,
    last_offset: Offset,
    kept: Option<Box<Kept>>,
    lanes: SmallVec<[HomeLane; 1]>,
    /// Of what is pending: what somebody is not sent, in order. Most channels never have any.
    excepted: Option<Box<Excepted>>,
    /// Who is there, where the rule wants that known.
    members: Option<Box<Members>>,
    /// Who is there on other nodes, where they share the channel and its rule wants that known.
    rolls: Option<Box<Rolls>>,
    /// Subscriptions that there may be; 0 is no limit.
    members_max: u32,
    /// How often clients may publish, where that is limited.
    rate: Option<Box<ChannelRate>>,
    /// What was said of it over the API, where it is a room: as long as that counts, it is there.
    made: Option<Box<Made>>,
    /// Where its publications are numbered elsewhere: what there is of them that is not here yet.
    following: Option<Box<Following>>,
    /// What is published here is published by other nodes, too, each with offsets of its own.
    shares: bool,
    /// It is told to nodes of another system, which have the channel, too.
    forwards: bool,
    /// Idempotency keys that are remembered of it: as long as there are any, it is there.
    keys: u32,
    /// Something is pending.
    dirty: bool,
    /// Since when it has had neither subscribers nor publications.
    quiet_ms: u64,
    parked: Option<Box<Parking>>,
    /// The turn in which something was appended last, and how many bytes in it. Turns are counted round and round.
    turn: u32,
    turn_bytes: u32,
    /// So many may be appended in one turn.
    turn_bytes_max: u32,
}

/// Where deliveries go.
pub(super) type Deliver<'a> = &'a mut dyn FnMut(ShardId, Delivery);

impl Home {
    /// Whether publications are to be held back for readers who read.
    fn is_pressed(&self) -> bool {
        self.lanes.iter().any(|lane| lane.interests.iter().any(|interest| interest.pressed))
    }

    /// Whether nothing may be appended now: enough was in this turn, or readers who read are behind and
    /// not more than `parked_max` bytes are held back for them.
    fn is_held(&self, turn: u32, parked_max: usize) -> bool {
        if let Some(following) = &self.following {
            return self.is_stuck(following, self.may_append(turn, parked_max));
        }
        if self.parked.as_ref().is_some_and(|parked| parked.awaits_answer()) {
            return true;
        }
        !self.may_append(turn, parked_max)
    }

    /// Whether readers can take more: not enough was appended in this turn, and those who read are not behind, or more than
    /// `parked_max` bytes are held back for them.
    fn may_append(&self, turn: u32, parked_max: usize) -> bool {
        let enough = self.turn == turn && self.turn_bytes > self.turn_bytes_max;
        let incoming = self.following.as_ref().map_or(0, |following| following.bytes());
        let waits = self.parked_bytes() + incoming;
        !(enough && !self.lanes.is_empty() || self.is_pressed() && waits <= parked_max)
    }

    /// What is held back, in bytes.
    fn parked_bytes(&self) -> usize {
        self.parked.as_ref().map_or(0, |parked| parked.bytes())
    }

    /// What of it somebody outside has to answer first.
    fn awaiting_bytes(&self) -> usize {
        let follows = self.following.is_some();
        self.parked.as_ref().map_or(0, |parked| parked.awaiting_bytes(follows))
    }

    fn subscribers(&self) -> u64 {
        let interests = self.lanes.iter().flat_map(|lane| &lane.interests);
        interests.map(|interest| u64::from(interest.subscribers)).sum()
    }

    fn history(&self) -> usize {
        self.kept.as_ref().map_or(0, |kept| kept.len())
    }

    fn position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.last_offset }
    }

    /// Gives a publication its offset and encodes it for everybody who is there.
    fn append(
        &mut self,
        payload: &Payload,
        by: Option<&Sender>,
        now: Instant,
        now_ms: u64,
        deliver: Deliver,
    ) -> Position {
        self.last_offset = self.last_offset.next();
        self.quiet_ms = now_ms;
        let bytes = u32::try_from(payload.bytes.len() + ENVELOPE_BYTES).unwrap_or(u32::MAX);
        self.turn_bytes = self.turn_bytes.saturating_add(bytes);
        let offset = self.last_offset;
        let meta = by.and_then(|by| by.meta.as_deref());
        let publication = Publication { offset, kind: payload.kind, bytes: &payload.bytes, meta };
        let except = by.and_then(|by| by.except).filter(|_| !self.lanes.is_empty());
        if let Some(connection) = except {
            self.excepted.get_or_insert_default().push((offset, connection));
        }
        let mut longest = 0;
        for lane in &mut self.lanes {
            longest = longest.max(lane.append(&self.name, &publication, except.is_some(), now));
        }
        if longest >= CHUNK_BYTES_MAX {
            self.seal(deliver);
        }
        self.position()
    }

    /// Tells everybody who is there something that is no publication, behind what was published before.
    fn tell(&mut self, notice: &Event, now: Instant, deliver: Deliver) {
        let next = self.last_offset.next();
        let mut longest = 0;
        for HomeLane { lane, pending, .. } in &mut self.lanes {
            pending.end_joining(*lane);
            let before = pending.bytes.len();
            lane.write_notice(&mut pending.bytes, notice);
            if pending.bytes.len() > before {
                longest = longest.max(pending.end_frame(next, 0, now));
            }
        }
        if longest >= CHUNK_BYTES_MAX {
            self.seal(deliver);
        }
    }

    /// Hands out everything pending.
    fn seal(&mut self, deliver: Deliver) {
        let excepted = self.excepted.take();
        let excepted = excepted.as_deref().map_or(&[][..], |excepted| excepted);
        for HomeLane { lane, interests, pending } in &mut self.lanes {
            pending.end_joining(*lane);
            let Some(at) = pending.at.take() else { continue };
            let bytes = std::mem::take(&mut pending.bytes);
            let wasted = bytes.capacity() - bytes.len();
            let bytes = if wasted > bytes.len() / WASTE_PARTS + WASTE_BYTES {
                // Readers who lag keep it for a while. An allocator may not take back a part of what it gave.
                Bytes::copy_from_slice(&bytes)
            } else {
                Bytes::from(bytes)
            };
            let count = pending.ends.last().map_or(0, |last| last.publications);
            let (frames, first_offset) = (FrameIndex::new(&pending.ends), pending.first_offset);
            let chunk = Chunk { bytes, frames, first_offset, count, at };
            // The last one, mostly the only one, is given what the others share.
            if let Some((last, others)) = interests.split_last() {
                for &Interest { shard, to, .. } in others {
                    let (chunk, skips) = (chunk.clone(), pending.skips(excepted, shard));
                    deliver(shard, Delivery::Chunk { to, chunk, skips });
                }
                let skips = pending.skips(excepted, last.shard);
                deliver(last.shard, Delivery::Chunk { to: last.to, chunk, skips });
            }
            pending.ends = SmallVec::new();
        }
    }

    /// Counts a subscriber in. What was published before must have been sealed.
    fn add_subscriber(&mut self, lane: Lane, shard: ShardId, to: LaneId) {
        let at = self.lanes.iter().position(|own| own.lane == lane).unwrap_or_else(|| {
            let (interests, pending) = (SmallVec::new(), Pending::default());
            self.lanes.push(HomeLane { lane, interests, pending });
            self.lanes.len() - 1
        });
        let interests = &mut self.lanes[at].interests;
        match interests.iter_mut().find(|interest| interest.shard == shard) {
            Some(interest) => {
                interest.subscribers += 1;
                // Behind a publication of its own a subscribe may have waited for longer than its lane was there.
                if to.is_newer(interest.to) {
                    interest.to = to;
                }
            }
            None => interests.push(Interest { shard, to, subscribers: 1, pressed: false }),
        }
    }

    /// Counts a subscriber out.
    ///
    /// # Panics
    /// If it was not counted in: shards unsubscribe only what was answered as subscribed.
    fn remove_subscriber(&mut self, lane: Lane, shard: ShardId) {
        let at = self.lanes.iter().position(|own| own.lane == lane);
        let own = at.and_then(|at| self.lanes.get_mut(at)).expect("the lane has subscribers");
        let interest = own.interests.iter().position(|interest| interest.shard == shard);
        let interest = interest.expect("the shard has subscribers");
        own.interests[interest].subscribers -= 1;
        if own.interests[interest].subscribers == 0 {
            own.interests.swap_remove(interest);
        }
        if own.interests.is_empty() {
            // Nobody is left to send what is pending to; the next subscriber starts behind it.
            self.lanes.swap_remove(at.expect("it was found"));
        }
    }

    fn press(&mut self, lane: Lane, shard: ShardId, on: bool) {
        let own = self.lanes.iter_mut().find(|own| own.lane == lane);
        let interest = own.and_then(|own| own.interests.iter_mut().find(|i| i.shard == shard));
        // Who has left in the meantime presses no more.
        if let Some(interest) = interest {
            interest.pressed = on;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_found_behind_and_before_frames_that_are_no_publication() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        // A notice, publication 7, a notice, publications 8 and 9, a notice: ten bytes each.
        for (first, publications) in [(7, 0), (7, 1), (8, 0), (8, 1), (9, 1), (10, 0)] {
            pending.bytes.extend_from_slice(&[0; 10]);
            pending.end_frame(Offset(first), publications, now);
        }
        assert_eq!(pending.first_offset, Offset(7));
        let connection = ConnectionId { shard: ShardId(1), number: 5 };
        let all = [6, 7, 8, 9, 10].map(|offset| (Offset(offset), connection));
        let skips = pending.skips(&all, ShardId(1));
        let parts: Vec<_> = skips.iter().map(|skip| (skip.from, skip.to)).collect();
        assert_eq!(parts, [(10, 20), (30, 40), (40, 50)]);
        assert!(pending.skips(&all, ShardId(0)).is_empty());
    }
}
