//! Telling other nodes who is on channels here, and hearing who is there.

use ringfeed_protocol::ChannelName;

use super::Homes;
use crate::config::{ChannelRule, Distribution, Presence};
use crate::message::{Request, Roll, RollEntry, ToUpstream};
use crate::shard::home::Home;
use crate::shard::home::rolls::Rolls;

/// Entries in one message …
const ENTRIES_MAX: usize = 512;
/// … and bytes of them, or one.
const BYTES_MAX: usize = 64 * 1024;

/// Entries in as many messages as they need; one at least.
fn parts(entries: Vec<RollEntry>) -> Vec<Vec<RollEntry>> {
    let (mut parts, mut bytes) = (vec![Vec::new()], 0);
    for entry in entries {
        let cost = entry.cost();
        let is_full = |part: &Vec<RollEntry>| {
            part.len() >= ENTRIES_MAX || !part.is_empty() && bytes + cost > BYTES_MAX
        };
        if parts.last().is_none_or(is_full) {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += cost;
        if let Some(part) = parts.last_mut() {
            part.push(entry);
        }
    }
    parts
}

/// What is to be said in several messages.
fn rolls(entries: Vec<RollEntry>, (whole, asks): (bool, bool), subscribers: u32) -> Vec<Roll> {
    let parts = parts(entries);
    let last = parts.len() - 1;
    let rolls = parts.into_iter().enumerate().map(|(place, entries)| Roll {
        whole,
        first: place == 0,
        more: place < last,
        asks: asks && place == last,
        has_it: true,
        subscribers,
        entries,
    });
    rolls.collect()
}

impl Home {
    /// Subscriptions on all nodes, as far as that is known.
    pub(super) fn subscribers_everywhere(&self) -> u64 {
        self.subscribers() + self.rolls.as_ref().map_or(0, |rolls| rolls.subscribers())
    }
}

impl Homes {
    /// What a new home has to know of other nodes; `None` where there are none, or nobody has to know who is there.
    pub(super) fn rolls_of(
        &self,
        rule: Option<&ChannelRule>,
        distribution: Distribution,
    ) -> Option<Box<Rolls>> {
        let shows =
            rule.is_some_and(|rule| rule.presence != Presence::Off || rule.room || rule.confirm);
        let is_shared = self.config.has_upstream() && distribution != Distribution::Local;
        (shows && is_shared).then(|| Box::new(Rolls::new()))
    }

    fn say(&mut self, index: u32, to: Option<u64>, all: Vec<Roll>) {
        let Some(home) = self.homes.get(index) else { return };
        let numbered = home.following.is_some();
        for roll in all {
            let channel = home.name.clone();
            self.outgoing.push(ToUpstream::Roll { channel, numbered, to, roll });
        }
    }

    /// Says to all other nodes who is there, and asks them, where that is to be and they can be heard.
    pub(super) fn call_roll(&mut self, index: u32, now_ms: u64) {
        let Some(home) = self.homes.get_mut(index) else { return };
        let is_heard = home.following.as_ref().is_none_or(|own| own.known && !own.awaits);
        let subscribers = u32::try_from(home.subscribers()).unwrap_or(u32::MAX);
        let Some(rolls) = home.rolls.as_mut().filter(|own| own.due && is_heard) else { return };
        rolls.ask(now_ms);
        rolls.told = Some(subscribers);
        let members = home.members.as_mut();
        let here = members.map(|members| {
            members.take_moved();
            members.all_here()
        });
        self.say(index, None, self::rolls(here.unwrap_or_default(), (true, true), subscribers));
    }

    /// The channel is numbered by somebody else than before (`followed` says that it was for all nodes): it begins to be told to
    /// others who is there, or ends to be.
    pub(super) fn share_roll_anew(
        &mut self,
        index: u32,
        (distribution, followed): (Distribution, bool),
        now_ms: u64,
    ) {
        let Some(home) = self.homes.get(index) else { return };
        let name = home.name.clone();
        let shared = self.rolls_of(self.config.rule(&name), distribution);
        let home = self.home_mut(index);
        let Some(before) = home.rolls.take_if(|_| distribution == Distribution::Local) else {
            if home.rolls.is_none() {
                home.rolls = shared;
                let is_shared = home.rolls.is_some();
                home.members.iter_mut().for_each(|members| members.share(is_shared));
            }
            return;
        };
        let (others, waiting) = before.end();
        if let Some(members) = &mut home.members {
            members.share(false);
            others.iter().for_each(|&instance| members.forget_node(instance, false));
        }
        self.rolls_waiting.remove(&index);
        self.released.extend(waiting);
        self.close_roll(name, followed);
        self.members_changed(index, now_ms);
    }

    /// The way to other nodes was interrupted.
    pub(super) fn roll_is_due(&mut self, index: u32, now_ms: u64) {
        let Some(home) = self.homes.get_mut(index) else { return };
        let Some(rolls) = home.rolls.as_mut() else { return };
        rolls.due = true;
        // One that follows hears the others once it has heard where its channel stands.
        if home.following.is_none() {
            self.call_roll(index, now_ms);
        }
    }

    /// Other nodes are to be told in a moment of what has changed.
    pub(super) fn roll_changed(&mut self, index: u32) {
        let rolls = self.homes.get_mut(index).and_then(|home| home.rolls.as_mut());
        if let Some(rolls) = rolls.filter(|rolls| !rolls.dirty) {
            rolls.dirty = true;
            self.rolls_dirty.push(index);
        }
    }

    /// Tells other nodes what has changed, and goes on with what has waited for them for too long.
    pub(in crate::shard) fn tell_rolls(&mut self, now_ms: u64) {
        for index in std::mem::take(&mut self.rolls_dirty) {
            let Some(home) = self.homes.get_mut(index) else { continue };
            let subscribers = u32::try_from(home.subscribers()).unwrap_or(u32::MAX);
            let Some(rolls) = home.rolls.as_mut().filter(|own| own.dirty) else { continue };
            rolls.dirty = false;
            let entries = home.members.as_mut().map(|members| members.take_moved());
            let entries = entries.unwrap_or_default();
            if rolls.due {
                // All of it will be said.
                continue;
            }
            if !entries.is_empty() || rolls.told != Some(subscribers) {
                rolls.told = Some(subscribers);
                self.say(index, None, self::rolls(entries, (false, false), subscribers));
            }
        }
        for index in std::mem::take(&mut self.rolls_waiting) {
            self.release_waiting(index, now_ms);
        }
    }

    /// Lets go on what waits no longer for other nodes.
    fn release_waiting(&mut self, index: u32, now_ms: u64) {
        let Some(rolls) = self.homes.get_mut(index).and_then(|home| home.rolls.as_mut()) else {
            return;
        };
        self.released.extend(rolls.take_waiting(now_ms));
        if rolls.is_waited_for() {
            self.rolls_waiting.insert(index);
        } else {
            self.rolls_waiting.remove(&index);
        }
    }

    /// Requests that go on.
    pub(in crate::shard) fn take_released(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.released)
    }

    /// A question for who is there waits until other nodes have said it, if they have not yet. Comes back where it need not.
    pub(in crate::shard) fn hold_for_rolls(
        &mut self,
        request: Request,
        now_ms: u64,
    ) -> Option<Request> {
        let Request::Presence { channel, .. } = &request else { return Some(request) };
        let rule = self.config.rule(channel);
        if self.rolls_of(rule, self.config.distribution_of(channel, rule)).is_none() {
            return Some(request);
        }
        let Ok(index) = self.open(channel, now_ms) else { return Some(request) };
        let Some(rolls) = self.homes.get_mut(index).and_then(|home| home.rolls.as_mut()) else {
            return Some(request);
        };
        if rolls.is_known(now_ms) {
            return Some(request);
        }
        rolls.wait(request, now_ms);
        self.rolls_waiting.insert(index);
        None
    }

    /// So many other nodes were asked.
    pub(super) fn roll_asked(&mut self, index: u32, count: usize, now_ms: u64) {
        if let Some(rolls) = self.home_mut(index).rolls.as_mut() {
            rolls.asked(count);
            self.release_waiting(index, now_ms);
            self.ask_doubted(index);
        }
    }

    fn ask_doubted(&mut self, index: u32) {
        let rolls = self.home_mut(index).rolls.as_mut();
        for instance in rolls.map(|own| own.take_doubted()).unwrap_or_default() {
            self.call_roll_of(index, instance);
        }
    }

    /// Another node says who is there, and may ask the same. It may be about a channel that is not here.
    pub(super) fn heard_roll(&mut self, channel: &ChannelName, from: u64, roll: Roll, now_ms: u64) {
        let index = self.by_name.get(channel).copied();
        if roll.asks {
            self.answer_roll(channel, index, from);
        }
        let Some(index) = index else { return };
        let home = self.home_mut(index);
        let Some(rolls) = home.rolls.as_mut() else { return };
        let quiet = !rolls.is_known(now_ms);
        let has_it = roll.has_it;
        if let Some(said) = rolls.heard(from, roll)
            && let Some(members) = &mut home.members
        {
            members.take_said(from, said, quiet);
        }
        if !has_it {
            self.has_left(index, from);
        }
        self.members_changed(index, now_ms);
        self.ask_doubted(index);
        self.end_if_left(index);
        self.release_waiting(index, now_ms);
    }

    /// Says to another node who is there, if the channel is.
    fn answer_roll(&mut self, channel: &ChannelName, index: Option<u32>, to: u64) {
        // Only who tells of what changes afterwards says what there is.
        let home = index.and_then(|index| self.homes.get_mut(index));
        let answer = home.and_then(|home| {
            let subscribers = u32::try_from(home.subscribers()).unwrap_or(u32::MAX);
            let rolls = home.rolls.as_mut()?;
            rolls.told = rolls.told.filter(|told| *told == subscribers);
            let here = home.members.as_ref().map(|members| members.all_here());
            Some(self::rolls(here.unwrap_or_default(), (true, false), subscribers))
        });
        for roll in answer.unwrap_or_else(|| vec![Roll::not_there()]) {
            let (channel, to) = (channel.clone(), Some(to));
            self.outgoing.push(ToUpstream::Roll { channel, numbered: false, to, roll });
        }
    }

    /// A home with a roll closes: others need not reckon with it.
    pub(super) fn close_roll(&mut self, channel: ChannelName, numbered: bool) {
        let roll = Roll::not_there();
        self.outgoing.push(ToUpstream::Roll { channel, numbered, to: None, roll });
    }

    /// A process that was taken for gone is there: each says to the other who is there.
    pub(in crate::shard) fn node_is_back(&mut self, instance: u64) {
        for index in 0..self.homes.slots() {
            self.call_roll_of(index, instance);
        }
    }

    /// Says to one other node who is there, and asks it the same, where there are any.
    fn call_roll_of(&mut self, index: u32, instance: u64) {
        let Some(home) = self.homes.get_mut(index) else { return };
        let subscribers = u32::try_from(home.subscribers()).unwrap_or(u32::MAX);
        let Some(rolls) = &mut home.rolls else { return };
        rolls.told = rolls.told.filter(|told| *told == subscribers);
        let here = home.members.as_ref().map(|members| members.all_here());
        let said = self::rolls(here.unwrap_or_default(), (true, true), subscribers);
        self.say(index, Some(instance), said);
    }

    /// A process is not there any more; `own` is what this one is called.
    pub(in crate::shard) fn node_is_gone(&mut self, instance: u64, own: u64, now_ms: u64) {
        for index in 0..self.homes.slots() {
            let Some(home) = self.homes.get_mut(index) else { continue };
            let Some(rolls) = home.rolls.as_mut() else { continue };
            let Some(tells) = rolls.gone(instance, own) else { continue };
            if let Some(members) = &mut home.members {
                members.forget_node(instance, tells);
                self.is_silent(index, instance);
                self.members_changed(index, now_ms);
            }
            self.end_if_left(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ConnectionId, ShardId};
    use crate::message::Someone;

    #[test]
    fn what_is_much_goes_in_several_messages_of_which_the_last_one_asks() {
        let entries = |count: u64, info: usize| {
            let entries = (0..count).map(|number| {
                let who = Someone::Connection(ConnectionId { shard: ShardId(0), number });
                let info = (info > 0).then(|| "1".repeat(info).into_boxed_str());
                RollEntry { who, is_there: true, last: false, info }
            });
            entries.collect::<Vec<_>>()
        };
        for (count, info, messages) in [(0, 0, 1), (1, 1 << 20, 1), (1300, 0, 3), (8, 40_000, 8)] {
            let all = entries(count, info);
            let said = rolls(all.clone(), (true, true), 5);
            assert_eq!(said.len(), messages, "{count} {info}");
            let flags = said.iter().map(|own| (own.first, own.more, own.asks));
            let expected = (1..=messages).map(|n| (n == 1, n < messages, n == messages));
            assert!(flags.eq(expected));
            assert_eq!(said.into_iter().flat_map(|own| own.entries).collect::<Vec<_>>(), all);
        }
    }
}
