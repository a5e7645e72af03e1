//! Who may enter and who may speak, where a channel is a room. Its home decides, since it alone knows who is a member
//! by then. What was said of a room over the API counts before what its rule says, as long as that says that it is one.

use std::sync::Arc;

use ringfeed_protocol::refused::Limit;
use ringfeed_protocol::{ChannelName, Refused};

use super::Homes;
use crate::access::{Barred, Entry, MadeRoom, Room, RoomChange};
use crate::ids::{SessionId, ShardId};
use crate::message::{
    Delivery, Order, RoomDenied, RoomReport, RoomRequest, SESSIONS_PER_ORDER, Speaker,
};
use crate::shard::home::{Deliver, Home, Publisher};

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
            Ok(made.map_or(by_rule, |made| &made.rules))
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

    /// Does what the API asks of a room.
    pub(in crate::shard) fn serve_room(
        &mut self,
        name: &ChannelName,
        what: RoomRequest,
        now_ms: u64,
        deliver: Deliver,
    ) -> Result<RoomReport, RoomDenied> {
        match what {
            RoomRequest::Make(change) => self.make_room(name, change, now_ms),
            RoomRequest::Change(change) => self.change_room(name, change),
            RoomRequest::Show => self.show_room(name),
            RoomRequest::End => self.end_room(name, deliver),
        }
    }

    fn show_room(&self, name: &ChannelName) -> Result<RoomReport, RoomDenied> {
        let rules = self.room(name).ok_or(RoomDenied::NoRooms)?;
        let rules = rules.map_err(|_| RoomDenied::NotMade)?.clone();
        let home = self.home_of(name);
        let made = home.and_then(|home| home.made.as_ref());
        let ends_when_empty = made.map(|made| made.ends_when_empty);
        Ok(RoomReport { rules, ends_when_empty, members: home.map_or(0, Home::subscribers) })
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
        self.home_mut(index).made = Some(Box::new(room.changed(change)));
        self.rooms += usize::from(is_new);
        self.show_room(name)
    }

    fn change_room(
        &mut self,
        name: &ChannelName,
        change: RoomChange,
    ) -> Result<RoomReport, RoomDenied> {
        self.room(name).ok_or(RoomDenied::NoRooms)?.map_err(|_| RoomDenied::NotMade)?;
        let home = self.by_name.get(name).and_then(|&index| self.homes.get_mut(index));
        let made = home.and_then(|home| home.made.as_mut()).ok_or(RoomDenied::NotMade)?;
        **made = made.changed(change);
        self.show_room(name)
    }

    /// Ends a room: its members are told, by their shards, and are none any more once these have unsubscribed them.
    fn end_room(&mut self, name: &ChannelName, deliver: Deliver) -> Result<RoomReport, RoomDenied> {
        let home = self.by_name.get(name).and_then(|&index| self.homes.get_mut(index));
        let home = home.filter(|home| home.made.is_some()).ok_or(RoomDenied::NotMade)?;
        let members = home.subscribers();
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
        let Some(made) = home.made.take() else { return Err(RoomDenied::NotMade) };
        self.rooms -= 1;
        let MadeRoom { rules, ends_when_empty } = *made;
        Ok(RoomReport { rules, ends_when_empty: Some(ends_when_empty), members })
    }

    /// A room that was made to end with its last member does.
    pub(super) fn end_if_empty(&mut self, index: u32) {
        let home = self.home_mut(index);
        let ends = home.made.as_ref().is_some_and(|made| made.ends_when_empty);
        if ends && home.lanes.is_empty() {
            home.made = None;
            self.rooms -= 1;
        }
    }
}
