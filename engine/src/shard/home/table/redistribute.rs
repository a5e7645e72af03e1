//! Channels that live while a rule begins to say that somebody else numbers them. Whatever they were before, they go on as the
//! rule says on every node; who reads them is told that another life begins.

use rand::Rng as _;
use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::{Offset, Position, Refused};

use super::Homes;
use crate::config::Distribution;
use crate::message::ToUpstream;
use crate::shard::home::{Deliver, Home};

/// Homes that are looked at in one turn: each by the rules, one after the other, of which there may be a thousand.
const LOOKED_AT_PER_TURN: u32 = 256;
/// Why it is not known what has become of a publication.
const OTHERWISE_NUMBERED: Refused = Refused::Unavailable {
    detail: "who numbers this channel has changed, and it is not known whether this was published",
};

impl Homes {
    /// Looks at some of the homes, after there was another configuration.
    pub(in crate::shard) fn redistribute_some(&mut self, now_ms: u64, deliver: Deliver) {
        let Some(from) = self.redistribute_from else { return };
        let end = from.saturating_add(LOOKED_AT_PER_TURN).min(self.homes.slots());
        for index in from..end {
            self.redistribute(index, now_ms, deliver);
        }
        self.redistribute_from = (end < self.homes.slots()).then_some(end);
    }

    fn redistribute(&mut self, index: u32, now_ms: u64, deliver: Deliver) {
        let Some(home) = self.homes.get(index) else { return };
        let distribution = self.config.distribution(&home.name);
        let (follows, shares) =
            (distribution == Distribution::Numbered, distribution == Distribution::Bridged);
        if (home.following.is_some(), home.shares) == (follows, shares) {
            return;
        }
        let followed = home.following.is_some();
        let was_shared = followed || home.shares;
        match (followed, follows) {
            (false, true) => self.number_elsewhere(index, now_ms),
            (true, false) => self.number_here(index, deliver),
            _ => {}
        }
        self.home_mut(index).shares = shares;
        if !was_shared {
            self.share_room(index);
        }
        self.share_roll_anew(index, (distribution, followed), now_ms);
        self.roll_is_due(index, now_ms);
    }

    /// A home begins to follow. Its subscribers are told as soon as it is known where the channel stands elsewhere, as when
    /// that has begun another life.
    fn number_elsewhere(&mut self, index: u32, now_ms: u64) {
        self.end_confirmations(index);
        let name = self.home_mut(index).name.clone();
        let mut following = self.begin_to_follow(&name, now_ms);
        (following.known, following.begins) = (true, true);
        // What was sent when it followed before may still be answered.
        following.ticket = u64::from(following.number) << 32;
        self.count_awaiting(index, |home| home.following = Some(following));
        self.keep_anew(index);
    }

    /// A home follows no more, and begins a life of its own.
    fn number_here(&mut self, index: u32, deliver: Deliver) {
        self.end_confirmations(index);
        let waited = self.home_mut(index).waits();
        let position = Position { epoch: Epoch(self.rng.random()), offset: Offset::NONE };
        // The last of the life before may have come to nobody here.
        self.renew(index, position, Offset::NONE, deliver);
        if self.home_mut(index).parked.is_some() {
            let ended = self.with_parking(index, |parking| parking.abandon(&OTHERWISE_NUMBERED));
            ended.into_iter().for_each(|number| drop(self.end_waiting(index, number)));
        }
        let mut counted = 0;
        self.count_awaiting(index, |home| {
            counted = home.following.take().map_or(0, |following| following.counted);
        });
        self.incoming_bytes -= counted;
        let channel = self.home_mut(index).name.clone();
        self.outgoing.push(ToUpstream::Unfollow { channel });
        self.keep_anew(index);
        self.list_waiting(index, waited);
    }

    /// Changes whether a home follows, by which what it holds back is counted.
    fn count_awaiting(&mut self, index: u32, change: impl FnOnce(&mut Home)) {
        let home = self.homes.get_mut(index).expect("an indexed home is there");
        let before = home.awaiting_bytes();
        change(home);
        self.awaiting_bytes = self.awaiting_bytes - before + home.awaiting_bytes();
    }

    /// A home keeps from now on what its rule says, and nothing of what it has.
    fn keep_anew(&mut self, index: u32) {
        self.forget_history(index);
        let Some(home) = self.homes.get(index) else { return };
        let kept = self.kept_by(self.config.rule(&home.name));
        self.home_mut(index).kept = kept;
    }

    /// Another node has published something by itself on a channel that is numbered for all here: it goes by another rule. It
    /// has no place here, so what can be said is that something is missing.
    pub(super) fn miss_shared(&mut self, index: u32, deliver: Deliver) {
        let home = self.home_mut(index);
        let position = home.position();
        // Whoever is about to be told that another life begins is told of this with it.
        if home.following.as_ref().is_some_and(|own| own.known && !own.begins) {
            self.renew(index, position, position.offset, deliver);
        }
    }
}
