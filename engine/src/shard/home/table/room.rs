//! Who may enter and who may speak, where a channel is a room. Its home decides, since it alone knows who is a member
//! by then.

use ringfeed_protocol::{ChannelName, Refused};

use super::Homes;
use crate::access::Entry;
use crate::message::Speaker;
use crate::shard::home::Publisher;

impl Homes {
    /// Whether one more subscriber may be counted in.
    pub(super) fn may_enter(&self, index: u32, entry: Option<&Entry>) -> Result<(), Refused> {
        let home = self.homes.get(index).expect("an indexed home is there");
        let Some(entry) = entry else { return home.has_place() };
        let room = self.config.rule(&home.name).and_then(|rule| rule.room_rules.as_ref());
        // It is none any more: the settings have just changed.
        let Some(room) = room else { return home.has_place() };
        let entered = room.may_enter(entry, home.subscribers());
        entered.map_err(|barred| room.refusal(barred, &home.name))
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
        let home = self.by_name.get(name).and_then(|&index| self.homes.get(index));
        let parked = home.and_then(|home| home.parked.as_ref());
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
        let room = self.config.rule(name).and_then(|rule| rule.room_rules.as_ref());
        let Some(room) = room else { return Ok(()) };
        let home = self.by_name.get(name).and_then(|&index| self.homes.get(index));
        let members = home.and_then(|home| home.members.as_ref());
        let is_member = members.is_some_and(|members| members.has(speaker.seat));
        let spoken = room.may_speak(&speaker.guest, is_member);
        spoken.map_err(|barred| room.refusal(barred, name))
    }
}
