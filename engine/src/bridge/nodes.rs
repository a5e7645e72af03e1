//! What nodes say to one another beside publications: what they ask of all, who is revoked, who is on channels, and that they
//! live.

use std::time::Instant;

use bytes::Bytes;

use super::command::{Command, To};
use super::errands::{self, Asker};
use super::{
    Alive, BEATS_FIRST, Bridge, HEARD_MAX, Numbering, SILENT_BEATS, Told, UnderWay, item, rolls,
};
use crate::message::{
    Errand, ErrandId, FromUpstream, Missing, Outcome, Revocation, Shards, ToUpstream,
};
use crate::revoked::Added;

/// The number of revocations that Redis is given back.
const RESTORED: u64 = u64::MAX;
/// So many are, each time that Redis is looked into.
const RESTORED_AT_ONCE: usize = 1000;

impl Bridge {
    /// Asks something of all other nodes.
    pub(super) fn ask_nodes(&mut self, asker: Asker, errand: Errand) {
        if !self.is_up() {
            return self.errands.refuse(asker);
        }
        let Some(number) = self.errands.ask(asker, self.now_ms) else { return };
        match self.pass_on(number, errand) {
            Some(command) => drop(self.under_way.insert(command, UnderWay::Errand(number))),
            // Nothing that other nodes are asked.
            None => self.errands.heard_by(number, 0),
        }
    }

    /// What tells another node who is revoked, of which it says nothing.
    pub(crate) fn revocation_errands(
        instance: u64,
        revocations: Vec<Revocation>,
    ) -> impl Iterator<Item = Bytes> {
        let id = ErrandId { instance, number: RESTORED };
        let errands = revocations.into_iter().map(Errand::Revoke);
        errands.filter_map(move |errand| errands::encode_errand(id, &errand))
    }

    fn pass_on(&mut self, number: u64, errand: Errand) -> Option<u64> {
        let id = ErrandId { instance: self.instance, number };
        let bytes = errands::encode_errand(id, &errand)?;
        Some(self.command(match errand {
            Errand::Revoke(revocation) => Command::Revoke { revocation, errand: bytes },
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
            Errand::Connection { .. } | Errand::Revoke(_) => {
                let mut outcome = Outcome::default();
                if let Errand::Revoke(revocation) = errand {
                    let added = self.revoked.add(&revocation);
                    outcome.no_room = added.is_none();
                    if self.by == Numbering::Nodes && added.is_some_and(|added| added.is_news) {
                        // Not everybody may be linked with everybody, and who was first to know may be gone.
                        self.pass_on(RESTORED, Errand::Revoke(revocation.clone()));
                    }
                    self.revoked_elsewhere(revocation, added);
                }
                // Nobody here has it; or all shards have it from now on. Of what is only given back nobody wants to hear.
                if id.number != RESTORED {
                    self.wanted(ToUpstream::Outcome { of: id, outcome });
                }
                return true;
            }
        };
        self.told.push(Told::Errand(to, id, Box::new(errand)));
        true
    }

    /// Another node says what has come there of something that this one has asked. Whether it is what ringfeed says.
    pub fn errand_answered(&mut self, bytes: &Bytes) -> bool {
        if rolls::is_roll(bytes) {
            return self.roll(bytes);
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

    /// Another process says who is on a channel there.
    pub(super) fn roll(&mut self, bytes: &Bytes) -> bool {
        let Some((from, channel, roll)) = rolls::decode(bytes) else { return false };
        if from != self.instance {
            self.note_alive(from);
            self.told.push(Told::Home(channel, FromUpstream::Roll { from, roll }));
        }
        true
    }

    /// Asks who is revoked: what was said while this node was away, and what Redis has lost, is found by that.
    pub(super) fn look_at_revocations(&mut self) {
        self.looks += 1;
        self.looked_ms = None;
        self.read_revocations(0);
    }

    pub(super) fn read_revocations(&mut self, from: u64) {
        let number = self.command(Command::Revocations { from });
        self.under_way.insert(number, UnderWay::Revocations);
    }

    /// Another node has revoked somebody.
    pub(super) fn revoked_elsewhere(&mut self, revocation: Revocation, added: Option<Added>) {
        match added {
            Some(Added { is_news: true, .. }) => {
                self.revoked.mark_told(&revocation);
                self.told.push(Told::Revoked(revocation));
            }
            Some(_) => {}
            None => {
                if let Some(times) = self.revoked_lost.count(Instant::now()) {
                    tracing::error!(
                        times,
                        "another node has revoked somebody, and this one has no room for more (limits.revocations_max)"
                    );
                }
            }
        }
    }

    /// Whoever is revoked and Redis does not know of, since it was away then or has lost it, it is told of once more.
    pub(super) fn restore_revocations(&mut self) {
        self.looked_ms = Some(self.now_ms);
        let missing = self.revoked.not_kept(self.looks);
        for revocation in missing.into_iter().take(RESTORED_AT_ONCE) {
            self.pass_on(RESTORED, Errand::Revoke(revocation));
        }
    }
}
