//! What nodes say to one another beside publications: what they ask of all, what all are to know, who is on channels, and that
//! they live.

use std::collections::btree_map::Entry;
use std::time::Instant;

use bytes::Bytes;
use ringfeed_protocol::ChannelName;

use super::command::{Command, To};
use super::errands::{self, Asker};
use super::{
    Alive, BEATS_FIRST, Bridge, HEARD_MAX, LOOK_MS, Numbering, SILENT_BEATS, Told, UnderWay,
    confirming, item, rolls, whom,
};
use crate::message::{
    Errand, ErrandId, FromUpstream, Kept, Missing, Outcome, Revocation, Roll, RoomWord, Shards,
    ToUpstream,
};
use crate::revoked::Added;
use crate::rooms::Heard;

/// The number of what is said that nobody has asked for, and wants to hear nothing of: what Redis is given back, and what a node is
/// told that is met.
pub(super) const RESTORED: u64 = u64::MAX;
/// So much of each is given back, each time that Redis is looked into …
const RESTORED_AT_ONCE: usize = 1000;
/// … and if that was not all, it is looked into again so soon.
const RESTORED_EVERY_MS: u64 = 1000;

/// Channels that have ended while Redis is away, of which others are told later.
pub(super) const UNSAID_MAX: usize = 1 << 20;

/// That a channel is not here any more, of which nobody has been told yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unsaid {
    numbered: bool,
    /// By this command they are about to be.
    pub(super) command: Option<u64>,
}

impl Bridge {
    /// Says that a channel is not here any more, as soon as that can be heard: what is there would be said anew, this by nobody.
    pub(super) fn leave(&mut self, channel: ChannelName, numbered: bool) {
        let command = self.is_up().then(|| {
            let bytes = rolls::encode(self.instance, &channel, &Roll::not_there());
            let command = self.send(whom(&channel, numbered, None), bytes);
            self.under_way.insert(command, UnderWay::Left(channel.clone()));
            command
        });
        if self.unsaid.len() < UNSAID_MAX || self.unsaid.contains_key(&channel) {
            self.unsaid.insert(channel, Unsaid { numbered, command });
        }
    }

    /// That a channel is not here was said by this command, or has to be said again.
    pub(super) fn has_left(&mut self, channel: ChannelName, command: u64, again: bool) {
        let Entry::Occupied(mut own) = self.unsaid.entry(channel) else { return };
        if own.get().command != Some(command) {
            // It was said once more since.
        } else if again {
            own.get_mut().command = None;
        } else {
            own.remove();
        }
    }

    /// Says what could not be said when it was to be.
    pub(super) fn say_unsaid(&mut self) {
        let unsaid = self.unsaid.iter().filter(|(_, own)| own.command.is_none());
        let unsaid: Vec<_> = unsaid.map(|(channel, own)| (channel.clone(), own.numbered)).collect();
        unsaid.into_iter().for_each(|(channel, numbered)| self.leave(channel, numbered));
    }

    /// Asks something of all other nodes.
    pub(super) fn ask_nodes(&mut self, asker: Asker, errand: Errand) {
        if let Errand::Keep(Kept::Room(word)) = &errand {
            self.rooms.say(word);
        }
        if !self.is_up() {
            return self.errands.refuse(asker);
        }
        let Some(number) = self.errands.ask(asker, self.now_ms) else {
            if let Errand::Keep(_) = errand {
                self.pass_on(RESTORED, errand);
            }
            return;
        };
        match self.pass_on(number, errand) {
            Some(command) => drop(self.under_way.insert(command, UnderWay::Errand(number))),
            // Nothing that other nodes are asked.
            None => self.errands.heard_by(number, 0),
        }
    }

    /// What tells another node what all are to know, of which it says nothing.
    pub(crate) fn errands_of_kept(instance: u64, kept: Vec<Kept>) -> impl Iterator<Item = Bytes> {
        let id = ErrandId { instance, number: RESTORED };
        let errands = kept.into_iter().map(Errand::Keep);
        errands.filter_map(move |errand| errands::encode_errand(id, &errand))
    }

    fn pass_on(&mut self, number: u64, errand: Errand) -> Option<u64> {
        let id = ErrandId { instance: self.instance, number };
        let bytes = errands::encode_errand(id, &errand)?;
        Some(self.command(match errand {
            Errand::Keep(kept) => Command::Keep { kept, errand: bytes },
            _ => Command::Message(To::Errands, bytes),
        }))
    }

    /// Another node asks something of this one, or this one has. Whether it is what ringfeed says.
    pub fn errand(&mut self, bytes: &Bytes, shards: &Shards) -> bool {
        let Some((id, errand)) = errands::decode_errand(bytes) else { return false };
        if id.instance == self.instance {
            return true;
        }
        let to = match &errand {
            Errand::User { user, .. } | Errand::List { user } => shards.home(user),
            Errand::Connection { connection, .. } if connection.shard.0 < shards.count() => {
                connection.shard
            }
            Errand::Keep(Kept::Room(word)) => {
                let heard = self.rooms.hear(word);
                self.pass_on_if(heard == Heard::News, &errand);
                let no_room = heard == Heard::NoRoom;
                if no_room {
                    self.has_no_room();
                    let outcome = Outcome { no_room, ..Outcome::default() };
                    self.wanted(ToUpstream::Outcome { of: id, outcome });
                }
                // Who asks hears of it from the home of the room, behind all that it was told before.
                if no_room || heard == Heard::Known && id.number == RESTORED {
                    return true;
                }
                shards.home(&word.channel)
            }
            Errand::Connection { .. } | Errand::Keep(Kept::Revoked(_)) => {
                let mut outcome = Outcome::default();
                if let Errand::Keep(Kept::Revoked(revocation)) = &errand {
                    let added = self.revoked.add(revocation);
                    outcome.no_room = added.is_none();
                    self.pass_on_if(added.is_some_and(|added| added.is_news), &errand);
                    self.revoked_elsewhere(revocation.clone(), added);
                }
                // Nobody here has it; or all shards have it from now on.
                self.wanted(ToUpstream::Outcome { of: id, outcome });
                return true;
            }
        };
        self.told.push(Told::Errand(to, id, Box::new(errand)));
        true
    }

    /// Without a broker not everybody may be linked with everybody, and who was first to know may be gone: what is news is passed
    /// on.
    fn pass_on_if(&mut self, is_news: bool, errand: &Errand) {
        if is_news && self.by == Numbering::Nodes {
            self.pass_on(RESTORED, errand.clone());
        }
    }

    /// Another node says what has come there of something that this one has asked. Whether it is what ringfeed says.
    pub fn errand_answered(&mut self, bytes: &Bytes) -> bool {
        if let Some(is_known) = self.said_beside(bytes) {
            return is_known;
        }
        let Some((instance, number, outcome)) = errands::decode_answer(bytes) else { return false };
        self.errands.answered(number, instance, outcome);
        true
    }

    /// Another process says something.
    pub(super) fn note_alive(&mut self, instance: u64) {
        if self.alive.len() >= HEARD_MAX && !self.alive.contains_key(&instance) {
            self.alive.retain(|_, own| !own.gone);
            if self.alive.len() >= HEARD_MAX {
                return;
            }
        }
        let now = Alive { at_beat: self.beats, gone: false };
        if self.alive.insert(instance, now).is_some_and(|own| own.gone) {
            // It may not know that it was taken for gone, and says nothing of what it has said before.
            self.told.push(Told::Back(instance));
        }
    }

    /// Another process can be reached: neither knows what it was not told of the other.
    pub fn met(&mut self, instance: u64) {
        self.beat();
        self.told.push(Told::Back(instance));
    }

    /// This process hears itself: what others say comes the same way, so whoever is there would have been heard, too.
    fn own_beat(&mut self) {
        self.beats += 1;
        if self.beats - self.beats_before < BEATS_FIRST {
            return;
        }
        for (instance, own) in &mut self.alive {
            let since = own.at_beat.max(self.beats_before);
            if !own.gone && self.beats - since >= SILENT_BEATS {
                own.gone = true;
                self.told.push(Told::Gone(*instance, self.instance));
            }
        }
    }

    /// So many publications of another process should have been heard, the last `now` of them just now.
    pub(super) fn heard_of(&mut self, instance: u64, number: u64, now: u64) {
        if instance == self.instance {
            return;
        }
        if self.heard.len() >= HEARD_MAX && !self.heard.contains_key(&instance) {
            // Whoever is still there is taken for new.
            self.heard.clear();
        }
        self.note_alive(instance);
        let known = self.heard.get(&instance).copied();
        // One that was in Redis before this one begins where it is; whom this one meets itself may have said something before.
        let begins = self.was_lost || self.by == Numbering::Nodes;
        let from = known.or(begins.then_some(0));
        let missed = from.is_some_and(|from| number.saturating_sub(now) > from);
        self.heard.insert(instance, known.map_or(number, |known| known.max(number)));
        if missed && !self.told.iter().any(|told| matches!(told, Told::Missed(Missing::Nodes))) {
            self.told.push(Told::Missed(Missing::Nodes));
        }
    }

    /// Says to all nodes what they should have heard of this one; from time to time, or they would not know that the last of
    /// it is missing.
    pub fn beat(&mut self) {
        if self.is_up() {
            self.send(To::Beats, item::encode_beat(self.instance, self.shares));
        }
    }

    /// Another node, or this one, says what should have been heard of it. Whether that is what ringfeed says.
    pub fn beat_heard(&mut self, bytes: &Bytes) -> bool {
        let Some((instance, number)) = item::decode_beat(bytes) else { return false };
        if instance == self.instance {
            self.own_beat();
        }
        self.heard_of(instance, number, 0);
        true
    }

    /// What another process says of a channel beside its publications: who is on it there, and who has got one. It comes where
    /// these do, or to this process alone. Whether it is what ringfeed says; `None` of all else.
    pub(super) fn said_beside(&mut self, bytes: &Bytes) -> Option<bool> {
        let said = if rolls::is_roll(bytes) {
            rolls::decode(bytes)
                .map(|(from, of, roll)| (from, of, FromUpstream::Roll { from, roll }))
        } else if confirming::is_one(bytes) {
            let said = confirming::decode(bytes);
            said.map(|(from, of, what)| (from, of, FromUpstream::Confirming { from, what }))
        } else {
            return None;
        };
        let Some((from, channel, what)) = said else { return Some(false) };
        if from != self.instance {
            self.note_alive(from);
            self.told.push(Told::Home(channel, what));
        }
        Some(true)
    }

    /// Asks what all nodes are to know: what was said while this node was away, and what Redis has lost, is found by that.
    pub(super) fn look_at_kept(&mut self) {
        self.looks += 1;
        self.look_ms = None;
        self.read_kept(0);
    }

    pub(super) fn read_kept(&mut self, from: u64) {
        let number = self.command(Command::AllKept { from });
        self.under_way.insert(number, UnderWay::Kept);
    }

    /// Redis keeps this.
    pub(super) fn found(&mut self, kept: Kept) {
        match kept {
            Kept::Revoked(revocation) => {
                let added = self.revoked.add_kept(&revocation, self.looks);
                self.revoked_elsewhere(revocation, added);
            }
            Kept::Room(word) => match self.rooms.hear_kept(&word, self.looks) {
                Heard::News => self.told.push(Told::Room(word)),
                Heard::Known => {}
                Heard::NoRoom => self.has_no_room(),
            },
        }
    }

    /// Another node has revoked somebody.
    fn revoked_elsewhere(&mut self, revocation: Revocation, added: Option<Added>) {
        match added {
            Some(Added { is_news: true, .. }) => {
                self.revoked.mark_told(&revocation);
                self.told.push(Told::Revoked(revocation));
            }
            Some(_) => {}
            None => self.has_no_room(),
        }
    }

    fn has_no_room(&mut self) {
        if let Some(times) = self.not_kept.count(Instant::now()) {
            tracing::error!(
                times,
                "another node has revoked somebody or made a room, and this one has no room for more (limits.revocations_max, limits.rooms_max)"
            );
        }
    }

    /// A home has something to say of its room, and waits for nobody to know it.
    pub(super) fn say_room(&mut self, word: Box<RoomWord>) {
        self.rooms.say(&word);
        if self.is_up() {
            self.pass_on(RESTORED, Errand::Keep(Kept::Room(word)));
        }
    }

    /// What Redis does not know, since it was away then or has lost it, it is told once more.
    pub(super) fn restore(&mut self) {
        let (revoked, rooms) = (self.revoked.not_kept(self.looks), self.rooms.not_kept(self.looks));
        let is_all = revoked.len().max(rooms.len()) <= RESTORED_AT_ONCE;
        let wait_ms = if is_all { LOOK_MS } else { RESTORED_EVERY_MS };
        self.look_ms = Some(self.now_ms + wait_ms);
        let revoked = revoked.into_iter().map(Kept::Revoked).take(RESTORED_AT_ONCE);
        let rooms = rooms.into_iter().map(|word| Kept::Room(Box::new(word)));
        for kept in revoked.chain(rooms.take(RESTORED_AT_ONCE)) {
            self.pass_on(RESTORED, Errand::Keep(kept));
        }
    }
}
