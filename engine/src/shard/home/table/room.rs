//! Who may enter and who may speak, where a channel is a room. Its home decides, since it alone knows who is a member
//! by then. What was said of a room over the API counts before what its rule says, as long as that says that it is one.
//!
//! With several nodes each word about a room goes to all, with a version: the home goes by the latest that it has heard, whoever
//! has said it.

use std::collections::VecDeque;
use std::sync::Arc;

use rand::Rng as _;
use ringfeed_protocol::refused::Limit;
use ringfeed_protocol::{ChannelName, Refused};

use super::Homes;
use crate::access::{Barred, Entry, MadeRoom, Room, RoomChange};
use crate::config::Distribution;
use crate::ids::{SessionId, ShardId};
use crate::message::{
    Delivery, Order, RoomDenied, RoomReport, RoomRequest, RoomState, RoomVersion, RoomWord,
    SESSIONS_PER_ORDER, Speaker, ToUpstream,
};
use crate::names::Names;
use crate::shard::home::{Deliver, Home, Publisher};

/// So many rooms that have ended are remembered at least, as far as there may be more.
const ENDED_MIN: usize = 1024;

/// A room that was made over the API.
#[derive(Debug)]
pub(in crate::shard::home) struct Made {
    pub(super) room: MadeRoom,
    version: RoomVersion,
    /// Its last member here has left. Who never had any knows too little of those elsewhere to say that there are none.
    was_left: bool,
}

/// Rooms that have ended, so that nothing earlier makes them again. What is long ago is known to who tells homes of rooms.
#[derive(Debug)]
pub(super) struct Ended {
    by_name: Names<ChannelName, RoomVersion>,
    /// Some of them made again.
    order: VecDeque<(ChannelName, RoomVersion)>,
}

impl Ended {
    pub(super) fn new() -> Ended {
        Ended { by_name: Names::new(), order: VecDeque::new() }
    }

    fn add(&mut self, channel: ChannelName, version: RoomVersion, rooms_max: usize) {
        self.by_name.insert(channel.clone(), version);
        self.order.push_back((channel, version));
        if self.order.len() > rooms_max.max(ENDED_MIN)
            && let Some((channel, version)) = self.order.pop_front()
            && self.by_name.get(&channel) == Some(&version)
        {
            self.by_name.remove(&channel);
        }
    }
}

impl Home {
    /// Whether one more member may be, where the channel is no room.
    fn has_place(&self) -> Result<(), Refused> {
        let full =
            self.members_max > 0 && self.subscribers_everywhere() >= u64::from(self.members_max);
        let (channel, most) = (self.name.clone(), self.members_max);
        if full { Err(Refused::ChannelFull { channel, most }) } else { Ok(()) }
    }
}

impl Homes {
    fn home_of(&self, name: &str) -> Option<&Home> {
        self.by_name.get(name).and_then(|&index| self.homes.get(index))
    }

    /// What holds in a channel that is a room; `None` where it is none.
    fn room(&self, name: &ChannelName) -> Option<Result<&Arc<Room>, Refused>> {
        let rule = self.config.rule(name)?;
        let by_rule = rule.room_rules.as_ref()?;
        let made = self.home_of(name).and_then(|home| home.made.as_ref());
        let missing = rule.only_made && made.is_none();
        let channel = || name.clone();
        Some(if missing {
            Err(Refused::NoSuchRoom { channel: channel() })
        } else {
            Ok(made.map_or(by_rule, |made| &made.room.rules))
        })
    }

    /// Whether one more subscriber may be counted in.
    pub(super) fn may_enter(
        &self,
        name: &ChannelName,
        entry: Option<&Entry>,
    ) -> Result<(), Refused> {
        let home = self.home_of(name);
        // Where there is none any more, the settings have just changed.
        let Some((room, entry)) = self.room(name).zip(entry) else {
            return home.map_or(Ok(()), Home::has_place);
        };
        let room = room?;
        let entered = room.may_enter(entry, home.map_or(0, Home::subscribers_everywhere));
        entered.map_err(|barred| room.refusal(barred, name))
    }

    /// Whether whoever publishes may speak, where the channel is a room; whoever may is not asked again. What its session
    /// has asked before and is held back may change that: then it is found out behind that.
    pub(in crate::shard) fn may_speak(
        &self,
        name: &ChannelName,
        publisher: &mut Publisher,
    ) -> Result<(), Refused> {
        let Some(by) = &mut publisher.by else { return Ok(()) };
        let Some(speaker) = by.speaker.as_deref() else { return Ok(()) };
        let spoken = self.speaks(name, speaker);
        let (shard, session) = speaker.seat;
        let parked = self.home_of(name).and_then(|home| home.parked.as_ref());
        if spoken.is_err() && parked.is_some_and(|parked| parked.has_of(shard, session)) {
            return Ok(());
        }
        by.speaker = None;
        spoken
    }

    /// The same of a publication whose turn it is.
    pub(super) fn may_speak_now(
        &self,
        index: u32,
        publisher: &mut Publisher,
    ) -> Result<(), Refused> {
        let speaker = publisher.by.as_mut().and_then(|by| by.speaker.take());
        let home = self.homes.get(index).expect("an indexed home is there");
        speaker.map_or(Ok(()), |speaker| self.speaks(&home.name, &speaker))
    }

    fn speaks(&self, name: &ChannelName, speaker: &Speaker) -> Result<(), Refused> {
        let Some(room) = self.room(name) else { return Ok(()) };
        let room = room?;
        let members = self.home_of(name).and_then(|home| home.members.as_ref());
        let is_member = members.is_some_and(|members| members.has(speaker.seat));
        let spoken = room.may_speak(&speaker.guest, is_member);
        spoken.map_err(|barred| room.refusal(barred, name))
    }

    /// Whether a session may be shown what was said on a channel, and who is there: of a room its members are, whoever
    /// may subscribe.
    pub(in crate::shard) fn may_look(
        &self,
        name: &ChannelName,
        seat: (ShardId, SessionId),
    ) -> Result<(), Refused> {
        let Some(room) = self.room(name) else { return Ok(()) };
        let room = room?;
        let members = self.home_of(name).and_then(|home| home.members.as_ref());
        if members.is_some_and(|members| members.has(seat)) {
            return Ok(());
        }
        Err(room.refusal(Barred::MembersOnly, name))
    }

    /// Does what the API asks of a room. Returns also what other nodes are to be told.
    pub(in crate::shard) fn serve_room(
        &mut self,
        name: &ChannelName,
        what: RoomRequest,
        now_ms: u64,
        deliver: Deliver,
    ) -> Result<(RoomReport, Option<Box<RoomWord>>), RoomDenied> {
        let report = match what {
            RoomRequest::Show => return Ok((self.show_room(name)?, None)),
            RoomRequest::Make(change) => self.make_room(name, change, now_ms)?,
            RoomRequest::Change(change) => self.change_room(name, change)?,
            RoomRequest::End => self.end_room(name, deliver)?,
        };
        Ok((report, self.is_shared(name).then(|| Box::new(self.word_of(name)))))
    }

    /// Whether other nodes have the channel, too.
    fn is_shared(&self, name: &ChannelName) -> bool {
        self.config.distribution(name) != Distribution::Local
    }

    /// Of what counts of a room, or did when it ended; the first of all where nobody has said anything.
    fn version_of(&self, name: &ChannelName) -> RoomVersion {
        let made = self.home_of(name).and_then(|home| home.made.as_ref());
        let ended = || self.ended_rooms.by_name.get(name).copied();
        made.map(|made| made.version).or_else(ended).unwrap_or_default()
    }

    /// What counts of a room of which something was said.
    fn word_of(&self, name: &ChannelName) -> RoomWord {
        let made = self.home_of(name).and_then(|home| home.made.as_ref());
        let state = made.map_or(RoomState::Ended, |made| RoomState::Made(made.room.clone()));
        RoomWord { channel: name.clone(), version: self.version_of(name), state }
    }

    /// Of something that is said now.
    fn next_version(&mut self, known: RoomVersion) -> RoomVersion {
        RoomVersion {
            at_ms: self.clock.unix_ms().max(known.at_ms.saturating_add(1)),
            tie: self.rng.random(),
        }
    }

    fn show_room(&self, name: &ChannelName) -> Result<RoomReport, RoomDenied> {
        let rules = self.room(name).ok_or(RoomDenied::NoRooms)?;
        let rules = rules.map_err(|_| RoomDenied::NotMade)?.clone();
        let home = self.home_of(name);
        let made = home.and_then(|home| home.made.as_ref());
        let ends_when_empty = made.map(|made| made.room.ends_when_empty);
        let members = home.map_or(0, Home::subscribers_everywhere);
        Ok(RoomReport { rules, ends_when_empty, members })
    }

    fn make_room(
        &mut self,
        name: &ChannelName,
        change: RoomChange,
        now_ms: u64,
    ) -> Result<RoomReport, RoomDenied> {
        let rule = self.config.rule(name).and_then(|rule| rule.room_rules.clone());
        let room = MadeRoom { rules: rule.ok_or(RoomDenied::NoRooms)?, ends_when_empty: false };
        if self.closed {
            return Err(RoomDenied::Refused(Refused::Draining));
        }
        let is_new = self.home_of(name).is_none_or(|home| home.made.is_none());
        if is_new && self.rooms >= self.limits.own_rooms_max {
            let (limit, most) = (Limit::Rooms, self.limits.rooms_max);
            return Err(RoomDenied::Refused(Refused::LimitReached { limit, most }));
        }
        let index = self.open(name, now_ms).map_err(RoomDenied::Refused)?;
        let version = self.next_version(self.version_of(name));
        self.put_room(index, room.changed(change), version);
        self.show_room(name)
    }

    fn change_room(
        &mut self,
        name: &ChannelName,
        change: RoomChange,
    ) -> Result<RoomReport, RoomDenied> {
        self.room(name).ok_or(RoomDenied::NoRooms)?.map_err(|_| RoomDenied::NotMade)?;
        let index = self.by_name.get(name).copied().ok_or(RoomDenied::NotMade)?;
        let made = self.home_mut(index).made.as_ref().ok_or(RoomDenied::NotMade)?;
        let (room, version) = (made.room.changed(change), made.version);
        let version = self.next_version(version);
        self.put_room(index, room, version);
        self.show_room(name)
    }

    /// From now on this holds.
    fn put_room(&mut self, index: u32, room: MadeRoom, version: RoomVersion) {
        let home = self.homes.get_mut(index).expect("an indexed home is there");
        let was_left = home.made.as_ref().is_some_and(|made| made.was_left);
        self.rooms += usize::from(home.made.is_none());
        self.ended_rooms.by_name.remove(&home.name);
        home.made = Some(Box::new(Made { room, version, was_left }));
    }

    fn end_room(&mut self, name: &ChannelName, deliver: Deliver) -> Result<RoomReport, RoomDenied> {
        let home = self.home_of(name).ok_or(RoomDenied::NotMade)?;
        let made = home.made.as_ref().ok_or(RoomDenied::NotMade)?;
        let MadeRoom { rules, ends_when_empty } = made.room.clone();
        let (known, members) = (made.version, home.subscribers_everywhere());
        let version = self.next_version(known);
        self.end_made(name, version, deliver);
        Ok(RoomReport { rules, ends_when_empty: Some(ends_when_empty), members })
    }

    /// Ends a room that was made: its members here are told, by their shards, and are none any more once these have unsubscribed
    /// them.
    fn end_made(&mut self, name: &ChannelName, version: RoomVersion, deliver: Deliver) {
        let home = self.by_name.get(name).and_then(|&index| self.homes.get_mut(index));
        let Some(home) = home.filter(|home| home.made.is_some()) else { return };
        // What was said before is still theirs.
        home.seal(deliver);
        if let Some(members) = &home.members {
            let mut seats = members.iter().map(|(seat, _)| seat).peekable();
            while let Some(&(shard, _)) = seats.peek() {
                // In the order of their shards.
                let of_shard = |&(own, _): &(ShardId, SessionId)| own == shard;
                let sessions: Vec<SessionId> = std::iter::from_fn(|| seats.next_if(of_shard))
                    .map(|(_, own)| own)
                    .take(SESSIONS_PER_ORDER)
                    .collect();
                deliver(shard, Delivery::Order { sessions, order: Order::LeaveRoom(name.clone()) });
            }
        }
        home.made = None;
        self.rooms -= 1;
        self.remember_end(name, version);
    }

    fn remember_end(&mut self, name: &ChannelName, version: RoomVersion) {
        if self.is_shared(name) {
            self.ended_rooms.add(name.clone(), version, self.limits.own_rooms_max);
        }
    }

    /// A member here has left. A room that was made to end with its last member does with the last on any node.
    pub(super) fn end_if_empty(&mut self, index: u32) {
        let home = self.home_mut(index);
        let is_empty = home.lanes.is_empty();
        if let Some(made) = home.made.as_mut().filter(|_| is_empty) {
            made.was_left = true;
            self.end_if_left(index);
        }
    }

    /// The same where members may have left elsewhere.
    pub(super) fn end_if_left(&mut self, index: u32) {
        let Some(home) = self.homes.get(index) else { return };
        let ends = |made: &Made| made.room.ends_when_empty && made.was_left;
        let Some(made) = home.made.as_deref().filter(|made| ends(made)) else { return };
        if !home.lanes.is_empty() || home.subscribers_everywhere() > 0 {
            return;
        }
        let (channel, of) = (home.name.clone(), made.version);
        let is_shared = self.is_shared(&channel);
        if is_shared && (self.drains || self.closed) {
            // Its members come back elsewhere.
            return;
        }
        self.home_mut(index).made = None;
        self.rooms -= 1;
        if is_shared {
            // Right behind what it is about: what was said since and is not known here counts.
            let (at_ms, tie) = (of.at_ms.saturating_add(1), self.rng.random());
            let version = RoomVersion { at_ms, tie };
            self.remember_end(&channel, version);
            self.say_room(RoomWord { channel, version, state: RoomState::Empty });
        }
    }

    fn say_room(&mut self, word: RoomWord) {
        self.outgoing.push(ToUpstream::Room(Box::new(word)));
    }

    /// A room that was made is one of other nodes, too, from now on.
    pub(super) fn share_room(&mut self, index: u32) {
        let home = self.homes.get(index).filter(|home| home.made.is_some());
        let Some(home) = home.filter(|home| self.is_shared(&home.name)) else { return };
        self.say_room(self.word_of(&home.name));
    }

    /// Another node has said something of a room. There is room for what the bridge lets through.
    pub(in crate::shard) fn hear_room(&mut self, word: RoomWord, now_ms: u64, deliver: Deliver) {
        let RoomWord { channel, version, state } = word;
        if version <= self.version_of(&channel) {
            return;
        }
        let made = self.home_of(&channel).filter(|home| home.made.is_some());
        let has_members = made.is_some_and(|home| !home.lanes.is_empty());
        match state {
            RoomState::Made(room) => {
                let index = self.by_name.get(&channel).copied();
                let index = index.unwrap_or_else(|| self.open_new(&channel, now_ms));
                self.put_room(index, room, version);
            }
            RoomState::Empty if has_members => {
                // They have come before who has ended it could know.
                let version = self.next_version(version);
                let index = self.by_name.get(&channel).copied();
                let home = index.and_then(|index| self.homes.get_mut(index));
                let Some(made) = home.and_then(|home| home.made.as_mut()) else { return };
                made.version = version;
                self.say_room(self.word_of(&channel));
            }
            RoomState::Ended | RoomState::Empty if made.is_some() => {
                self.end_made(&channel, version, deliver);
            }
            RoomState::Ended | RoomState::Empty => self.remember_end(&channel, version),
        }
    }
}
