//! Who is on channels: what homes are asked about it, and told.

use std::time::Instant;

use ringfeed_protocol::{ChannelName, Event};

use super::Homes;
use crate::config::Presence;
use crate::ids::{SessionId, ShardId};
use crate::message::{Caller, Change, Naming, PresencePage, Present, Someone};
use crate::shard::home::notices::Notice;
use crate::shard::home::{Deliver, Home};

impl Home {
    /// Notes who was counted in, where that is kept.
    pub(super) fn join(
        &mut self,
        shard: ShardId,
        session: SessionId,
        caller: Option<&Caller>,
    ) -> Naming {
        let Some(members) = &mut self.members else { return Naming::Off };
        members.join((shard, session), caller);
        if members.knows((shard, session)) { Naming::Known } else { Naming::Wanted }
    }
}

impl Home {
    fn tell_notice(
        &mut self,
        notice: &Notice,
        (version, count): (u64, u64),
        (now, time_ms): (Instant, u64),
        deliver: Deliver,
    ) {
        let name = self.name.clone();
        let channel = name.as_str();
        match notice {
            Notice::Count => self.tell(&Event::Count { channel, version, count }, now, deliver),
            Notice::Names { left, came } => {
                if !left.is_empty() {
                    Present::show(left, |users| {
                        let leave = Event::Leave { channel, version, users, time_ms };
                        self.tell(&leave, now, deliver);
                    });
                }
                if !came.is_empty() {
                    Present::show(came, |users| {
                        self.tell(&Event::Join { channel, version, users }, now, deliver);
                    });
                }
            }
        }
    }
}

impl Homes {
    /// A member is, or has become, somebody.
    pub(in crate::shard) fn name_member(
        &mut self,
        channel: &ChannelName,
        shard: ShardId,
        session: SessionId,
        caller: &Caller,
        now_ms: u64,
    ) {
        let Some(&index) = self.by_name.get(channel) else { return };
        if let Some(members) = &mut self.home_mut(index).members {
            members.name((shard, session), caller);
            self.members_changed(index, now_ms);
        }
    }

    /// Sees to it that subscribers and application are told of who has come and gone, where they are to be.
    pub(super) fn members_changed(&mut self, index: u32, now_ms: u64) {
        self.roll_changed(index);
        let Some(Home { members: Some(members), name, epoch, .. }) = self.homes.get_mut(index)
        else {
            return;
        };
        if let Some(due_ms) = members.becomes_due(now_ms) {
            self.due.insert((due_ms, index));
        }
        for (user, joined, identity) in members.take_news() {
            let (channel, epoch) = (name.clone(), *epoch);
            self.news.add(Change { channel, epoch, user, joined, identity });
        }
    }

    /// Tells subscribers who has come and gone, where it is time to.
    pub(in crate::shard) fn tell_notices(
        &mut self,
        (now, now_ms): (Instant, u64),
        deliver: Deliver,
    ) {
        while let Some(&(due_ms, index)) = self.due.first().filter(|(due_ms, _)| *due_ms <= now_ms)
        {
            self.due.pop_first();
            self.tell_notice(index, due_ms, (now, now_ms), deliver);
        }
    }

    /// Tells subscribers of a channel who has come and gone, if that is to be at `due_ms`.
    fn tell_notice(
        &mut self,
        index: u32,
        due_ms: u64,
        (now, now_ms): (Instant, u64),
        deliver: Deliver,
    ) {
        // Once it drains nothing more comes from here.
        let Some(home) = self.homes.get_mut(index).filter(|_| !self.closed) else { return };
        let members = home.members.as_mut();
        let notice = members.and_then(|members| {
            let notice = members.take_notice(due_ms, now_ms)?;
            Some((notice, members.version(), members.count() as u64))
        });
        let Some((notice, version, count)) = notice else { return };
        home.tell_notice(&notice, (version, count), (now, self.clock.unix_ms()), deliver);
        if !home.dirty {
            home.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Tells those who are there of somebody who comes, before that is one of them: where there is no interval.
    pub(super) fn tell_before(&mut self, index: u32, now: (Instant, u64), deliver: Deliver) {
        let members = self.homes.get(index).and_then(|home| home.members.as_ref());
        if let Some(due_ms) = members.and_then(|members| members.is_due_at_once()) {
            self.due.remove(&(due_ms, index));
            self.tell_notice(index, due_ms, now, deliver);
            self.home_mut(index).seal(deliver);
        }
    }

    /// Who is on a channel, as many as are asked for, in pages; `None` for a channel that does not exist. Rooms show it
    /// to the application whatever their rule shows to clients (`of_room`). What was published before is handed out first, so that the answer stands in order among the chunks.
    pub(in crate::shard) fn presence(
        &mut self,
        channel: &ChannelName,
        after: Option<&Someone>,
        (limit, bytes_max): (u32, usize),
        of_room: bool,
        deliver: Deliver,
    ) -> Option<PresencePage> {
        let index = *self.by_name.get(channel)?;
        let rule = self.config.rule(channel);
        let shows =
            rule.is_some_and(|rule| rule.presence == Presence::Full || of_room && rule.room);
        let home = self.homes.get_mut(index)?;
        home.seal(deliver);
        home.members.iter_mut().for_each(|members| members.ask());
        let (position, subscribers) = (home.position(), home.subscribers_everywhere());
        let Some(members) = home.members.as_ref().filter(|_| shows) else {
            let (count, connections) = (subscribers, subscribers);
            let (version, present, more) = (0, None, false);
            return Some(PresencePage { position, version, count, connections, present, more });
        };
        let (present, more) = members.page(after, limit as usize, bytes_max);
        Some(PresencePage {
            position,
            version: members.version(),
            count: members.count() as u64,
            connections: members.connections() as u64 + subscribers - home.subscribers(),
            present: Some(present),
            more,
        })
    }

    /// Who is a member of what, where that is kept; `None` of whom it is not known yet who that is.
    pub(in crate::shard) fn members(
        &self,
    ) -> impl Iterator<Item = (&ChannelName, ShardId, SessionId, Option<&Someone>)> {
        self.homes.iter().flat_map(|(_, home)| {
            let members = home.members.iter().flat_map(|members| members.iter());
            members.map(|((shard, session), who)| (&home.name, shard, session, who))
        })
    }
}
