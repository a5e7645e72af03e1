//! Homes that follow: their channels are numbered elsewhere.
//!
//! A home that follows is never more than a copy. What it appends is what it was told, in order of offset; where something
//! is missing, or another life of the channel begins, it asks, and says to its subscribers exactly what is lost.

use std::time::Instant;

use ringfeed_protocol::command::Payload;
use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::{ChannelName, Offset, Position, Refused};
use smallvec::SmallVec;

use super::{Homes, PARKED_PARTS};
use crate::config::Distribution;
use crate::message::{
    Ack, Delivery, Followed, FromUpstream, Keyed, Missing, Numbered, Outgoing, Receipt, Request,
    Stored, ToUpstream, shared_with,
};
use crate::shard::home::following::{Following, Older};
use crate::shard::home::kept::Kept;
use crate::shard::home::{Asker, Deliver, Home, Interest, Parked, Parking, Publisher};

/// Publications of one channel that are on their way to its upstream.
const UNDER_WAY_MAX: usize = 4096;
/// What the upstream has stored comes back within a moment; where it has not after so long, it is asked for.
const BEHIND_MS: u64 = 1000;
/// Where nothing is known to be missing the upstream is asked nevertheless, so often.
const CHECK_MS: u64 = 30_000;
/// Homes that are asked about in one turn when the way to the upstream is there again.
const RESUMED_PER_TURN: u32 = 4096;
/// Homes that are told in one turn that something is missing: on shards with no more they are before anything else is published
/// there.
const MISSED_PER_TURN: u32 = 65_536;

/// Why something is not known.
pub(super) const AWAY: Refused =
    Refused::Unavailable { detail: "what keeps this channel cannot be reached" };
/// Why something is not published.
const TOO_MUCH_UNDER_WAY: Refused =
    Refused::Unavailable { detail: "too much waits to be stored on this channel" };

/// See [`Homes::place_upstream`].
#[derive(Debug)]
pub(super) enum Placed {
    /// It can, and this is where it stands.
    Here(Option<Position>),
    /// The upstream has to be heard first; whether it was asked for this one's sake.
    NotYet(bool),
}

impl Home {
    /// Whether something waits at a home that can go on by itself.
    pub(super) fn waits(&self) -> bool {
        self.parked.is_some() || self.following.as_ref().is_some_and(|own| own.has_incoming())
    }

    /// Of a home that follows: whether nothing of what waits can go on now.
    pub(in crate::shard::home) fn is_stuck(&self, following: &Following, may_append: bool) -> bool {
        let appends = may_append && !following.awaits && following.has_incoming();
        let sends = self.parked.as_ref().is_some_and(|parked| parked.has_unsent(UNDER_WAY_MAX));
        !appends && !sends && !self.has_answer()
    }

    /// Of a home that follows: whether what is parked first is an answer, or a request that needs to wait for nothing more.
    fn has_answer(&self) -> bool {
        let (Some(following), Some(parked)) = (&self.following, &self.parked) else { return false };
        match parked.front() {
            Some(Parked::Stored(..) | Parked::Refused(..)) => true,
            Some(Parked::Request(_)) => !following.is_behind(self.last_offset),
            _ => false,
        }
    }
}

/// The position behind which an answer of the upstream goes on: where there is nothing in it, the last one.
fn behind_which(followed: &Followed) -> Position {
    let Followed { position, publications, .. } = followed;
    let first = publications.first().map(|first| first.offset);
    let offset = first.map_or(position.offset, |first| Offset(first.0.saturating_sub(1)));
    Position { offset, ..*position }
}

impl Homes {
    /// A home that follows begins to.
    pub(super) fn begin_to_follow(&mut self, name: &ChannelName, now_ms: u64) -> Box<Following> {
        let mut following = Box::<Following>::default();
        let ask = self.next_ask();
        following.ask(ask, now_ms);
        self.outgoing.push(ToUpstream::Follow { channel: name.clone(), since: None, ask });
        following
    }

    /// A number for one more question.
    fn next_ask(&mut self) -> u32 {
        self.asks = self.asks.wrapping_add(1);
        self.asks
    }

    /// Asks the upstream where the channel stands and what is missing here.
    pub(super) fn look_upstream(&mut self, index: u32, now_ms: u64) {
        self.ask_upstream(index, now_ms, |following, here| following.known.then_some(here));
    }

    /// Asks the upstream for the history that was there before the home.
    pub(super) fn read_older(&mut self, index: u32, now_ms: u64) {
        self.ask_upstream(index, now_ms, |following, Position { epoch, .. }| {
            let offset = match &mut following.older {
                Older::Reading(read) => read.last().map_or(Offset::NONE, |last| last.offset),
                older => {
                    *older = Older::Reading(Vec::new());
                    Offset::NONE
                }
            };
            Some(Position { epoch, offset })
        });
    }

    /// Asks the upstream what came behind a position, unless an answer of it is waited for.
    fn ask_upstream(
        &mut self,
        index: u32,
        now_ms: u64,
        since: impl FnOnce(&mut Following, Position) -> Option<Position>,
    ) {
        let ask = self.next_ask();
        let Some(home) = self.homes.get_mut(index) else { return };
        let (channel, here) = (home.name.clone(), home.position());
        let Some(following) = home.following.as_mut().filter(|own| !own.awaits) else { return };
        let since = since(following, here);
        following.ask(ask, now_ms);
        self.outgoing.push(ToUpstream::Follow { channel, since, ask });
        self.count_incoming(index);
    }

    /// Counts what has come to a home and can be appended: nothing more is taken where that is too much.
    fn count_incoming(&mut self, index: u32) {
        let Some(home) = self.homes.get_mut(index) else { return };
        let Some(following) = home.following.as_mut() else { return };
        let before = following.counted;
        following.counted = following.appendable_bytes();
        self.incoming_bytes = self.incoming_bytes - before + following.counted;
    }

    /// A request that needs to know more of a channel than there is here waits at its home until the upstream has said it.
    /// Comes back where nothing more is needed.
    pub(in crate::shard) fn hold_for_upstream(
        &mut self,
        request: Request,
        now_ms: u64,
    ) -> Option<Request> {
        let (Request::History { channel, .. } | Request::Presence { channel, .. }) = &request
        else {
            return Some(request);
        };
        let Ok(Some(index)) = self.open_followed(channel, now_ms) else { return Some(request) };
        let Some(following) = self.homes.get(index).and_then(|home| home.following.as_ref()) else {
            return Some(request);
        };
        if !following.known {
            if following.away {
                return Some(request);
            }
        } else if let Request::History { after, limit: 1.., .. } = &request
            && self.may_be_older(index, after.unwrap_or(Offset::NONE).next())
            // What is here is shown all the same.
            && !self.is_away(index)
        {
            self.read_older(index, now_ms);
        } else {
            return Some(request);
        }
        self.park_again(request);
        None
    }

    /// The home of a channel that is numbered elsewhere, made if there is none; `None` of all others.
    fn open_followed(&mut self, name: &ChannelName, now_ms: u64) -> Result<Option<u32>, Refused> {
        match self.by_name.get(name) {
            Some(&index) => Ok(Some(index)),
            None if self.config.distribution(name) == Distribution::Numbered => {
                self.open(name, now_ms).map(Some)
            }
            None => Ok(None),
        }
    }

    /// Whether history that is not here may be upstream.
    pub(super) fn may_be_older(&self, index: u32, than: Offset) -> bool {
        let Some(home) = self.homes.get(index) else { return false };
        let (Some(following), Some(kept)) = (&home.following, &home.kept) else { return false };
        let here = kept.first_offset().unwrap_or(home.last_offset.next());
        !matches!(following.older, Older::Read) && than < here
    }

    /// Whether the upstream of a channel cannot be reached.
    pub(super) fn is_away(&self, index: u32) -> bool {
        let following = self.homes.get(index).and_then(|home| home.following.as_ref());
        following.is_some_and(|following| following.away)
    }

    /// What waits to be handed to the upstream.
    pub(in crate::shard) fn take_outgoing(&mut self) -> std::vec::Drain<'_, ToUpstream> {
        self.outgoing.drain(..)
    }

    /// Publishes to a channel that is numbered elsewhere: it is on its way from now on, or waits for its place.
    pub(super) fn publish_upstream(
        &mut self,
        index: u32,
        payload: Payload,
        publisher: Publisher,
        deliver: Deliver,
    ) {
        let name = self.home_mut(index).name.clone();
        let most = self.limits.parked_bytes_max;
        let waits = self.homes.get(index).map_or(0, Home::parked_bytes);
        let by = publisher.by.as_ref();
        let refused = if by.is_some_and(|by| by.key.is_some())
            && let Err(none) = self.key_age_ms()
        {
            none
        } else if waits > most / PARKED_PARTS || self.awaiting_bytes > most / 2 {
            TOO_MUCH_UNDER_WAY
        } else {
            self.park(index, Parked::Publication(payload.into(), publisher));
            return self.send_upstream(index);
        };
        self.refuse(&name, publisher.asker, refused, deliver);
    }

    /// Hands publications that are next to the upstream.
    fn send_upstream(&mut self, index: u32) {
        while self.homes.get(index).is_some_and(|home| home.parked.is_some()) {
            let taken = self.with_parking(index, |parking| parking.take_unsent(UNDER_WAY_MAX));
            let Some((at, payload, mut publisher)) = taken else { return };
            // Behind what its session has asked before: now it is known whether it is a member.
            let may = self.may_speak_now(index, &mut publisher);
            let parked = match may.and_then(|()| self.may_be_confirmed(index, &publisher.by)) {
                Err(refused) => Parked::Refused(refused, publisher.asker),
                Ok(()) => {
                    let Publisher { asker, mut by } = publisher;
                    let wanted = self.await_confirmations(index, &mut by);
                    let home = self.home_mut(index);
                    let channel = home.name.clone();
                    let Some(following) = home.following.as_mut() else { return };
                    let ticket = following.ticket;
                    following.ticket += 1;
                    let bytes = payload.bytes.len();
                    let publication = Outgoing::new(payload, by.as_deref());
                    let keyed = by.as_ref().and_then(|by| by.key.as_deref());
                    let key = keyed.map(Keyed::digest);
                    self.outgoing.push(ToUpstream::Publish { channel, ticket, publication, key });
                    Parked::Sent(ticket, bytes, asker, wanted)
                }
            };
            self.with_parking(index, |parking| parking.put(at, parked));
        }
    }

    /// The upstream of a channel has said something.
    pub(in crate::shard) fn heard_upstream(
        &mut self,
        name: &ChannelName,
        what: FromUpstream,
        now_ms: u64,
        deliver: Deliver,
    ) {
        let what = match what {
            FromUpstream::Roll { from, roll } => return self.heard_roll(name, from, roll, now_ms),
            FromUpstream::Confirming { from, what } => {
                return self.heard_confirming(name, from, what, deliver);
            }
            other => other,
        };
        // Whom it was for may have gone.
        let Some(&index) = self.by_name.get(name) else { return };
        match what {
            FromUpstream::RollHeardBy(count) => return self.roll_asked(index, count, now_ms),
            FromUpstream::WhoHeardBy { number, count } => {
                return self.who_is_asked(index, number, count);
            }
            _ => {}
        }
        let home = self.home_mut(index);
        let waited = home.waits();
        let Some(following) = home.following.as_mut() else { return };
        match what {
            // Who says that can be asked, too.
            FromUpstream::Publications { .. } if following.away => self.resume_one(index, now_ms),
            FromUpstream::Publications { epoch, publications } => {
                publications.into_iter().for_each(|numbered| following.push(epoch, numbered));
            }
            FromUpstream::Stored { ticket, stored } => self.settle_stored(index, ticket, stored),
            FromUpstream::Interrupted => self.resume_one(index, now_ms),
            FromUpstream::NotRead { ask } if following.number != ask => {}
            FromUpstream::Away | FromUpstream::NotRead { .. } => {
                (following.awaits, following.away) = (false, true);
                following.forget_incoming();
            }
            FromUpstream::Followed { ask, followed } => {
                // What was asked before the way was interrupted is asked again; what could not be said may be said later.
                if following.number == ask && (following.awaits || following.away) {
                    self.take_followed(index, followed, now_ms, deliver);
                    self.call_roll(index, now_ms);
                }
            }
            // These were seen to above.
            FromUpstream::Roll { .. }
            | FromUpstream::RollHeardBy(_)
            | FromUpstream::WhoHeardBy { .. }
            | FromUpstream::Confirming { .. } => {}
        }
        self.count_incoming(index);
        self.list_waiting(index, waited);
    }

    /// What was published is stored, or is not to be.
    fn settle_stored(&mut self, index: u32, ticket: u64, stored: Result<Stored, Refused>) {
        let home = self.home_mut(index);
        if home.parked.is_none() {
            return;
        }
        if let Ok(Stored::At { position, duplicate }) = stored {
            if let Some(following) = home.following.as_mut()
                && position.epoch == home.epoch
            {
                following.upstream_at = following.upstream_at.max(position.offset);
            }
            self.duplicates += u64::from(duplicate);
        }
        self.with_parking(index, |parking| parking.stored(ticket, stored));
    }

    /// Goes by what the upstream has said of where the channel stands.
    fn take_followed(&mut self, index: u32, followed: Followed, now_ms: u64, deliver: Deliver) {
        let home = self.home_mut(index);
        let (epoch, last) = (home.epoch, home.last_offset);
        let Some(following) = home.following.as_mut() else { return };
        let position = followed.position;
        let gave_up = following.answered(position.epoch);
        following.lineage = SmallVec::from_slice(&followed.lineage);
        (following.upstream_at, following.read_to) = (position.offset, position.offset);
        following.behind_since_ms = None;
        if !following.known {
            following.known = true;
            (home.epoch, home.last_offset) = (position.epoch, position.offset);
            // Nobody has been told of another.
            return;
        }
        if position.epoch != epoch {
            let shared = shared_with(position.epoch, &followed.lineage, epoch);
            // Of a life that has just begun all may be here.
            let begins = if shared.is_none() { behind_which(&followed) } else { position };
            self.renew_life(index, (begins, shared, last), deliver);
        } else if matches!(following.older, Older::Reading(_)) {
            return self.take_older(index, followed.publications, position, now_ms);
        }
        self.take_missed(index, followed, deliver);
        if gave_up {
            self.look_upstream(index, now_ms);
        }
    }

    /// Another life of the channel has begun.
    fn renew_life(
        &mut self,
        index: u32,
        (position, shared, last): (Position, Option<Offset>, Offset),
        deliver: Deliver,
    ) {
        let epoch = position.epoch;
        self.end_confirmations(index);
        match shared.map(|shared| shared.min(last)) {
            Some(shared) => {
                if shared < last {
                    self.forget_history(index);
                }
                self.renew(index, Position { epoch, offset: shared }, shared.next(), deliver);
            }
            None => {
                self.forget_history(index);
                // The last of the life before may have come to nobody here: something is missing, also where nothing of the new one is.
                let lost = Offset::NONE.next().min(position.offset);
                self.renew(index, position, lost, deliver);
            }
        }
    }

    /// Takes what came behind where the home stands, with what is lost of it.
    fn take_missed(&mut self, index: u32, mut followed: Followed, deliver: Deliver) {
        let last = self.home_mut(index).last_offset;
        let new = followed.publications.partition_point(|numbered| numbered.offset <= last);
        followed.publications.drain(..new);
        // What is missing between is gone for good: also where nothing is kept.
        let begins = behind_which(&followed);
        if begins.offset > last {
            self.forget_history(index);
            self.renew(index, begins, last.next(), deliver);
        }
        if let Some(following) = self.home_mut(index).following.as_mut() {
            following.push_answer(begins.epoch, followed.publications);
        }
    }

    /// Takes some of the history that was there before the home.
    fn take_older(
        &mut self,
        index: u32,
        publications: Vec<Numbered>,
        position: Position,
        now_ms: u64,
    ) {
        let home = self.home_mut(index);
        let Some(following) = home.following.as_mut() else { return };
        let kept = home.kept.as_ref().and_then(|kept| kept.first_offset());
        let here = kept.unwrap_or(home.last_offset.next());
        let Older::Reading(mut read) = std::mem::take(&mut following.older) else { return };
        let more = publications.last().is_some_and(|last| last.offset.next() < here);
        for numbered in publications.into_iter().take_while(|numbered| numbered.offset < here) {
            if read.last().is_some_and(|last| last.offset.next() != numbered.offset) {
                // What is between was forgotten meanwhile.
                read.clear();
            }
            read.push(numbered);
        }
        if more && here <= position.offset.next() {
            following.older = Older::Reading(read);
            return self.read_older(index, now_ms);
        }
        following.older = Older::Read;
        if read.last().is_some_and(|last| last.offset.next() == here) {
            let most = u64::from(self.config.limits.confirm_ms_max);
            let new = read.iter().filter(|own| own.age_ms <= most);
            let wanted = new.filter_map(|own| Some((own.offset, own.publication.wanted?)));
            for (offset, wanted) in wanted.collect::<Vec<_>>() {
                self.remember_wanted(index, offset, wanted, now_ms);
            }
            self.with_kept(index, |kept| kept.prepend(read, now_ms));
            self.bound_history(index);
        }
    }

    /// What is kept does not lead up to what comes now.
    pub(super) fn forget_history(&mut self, index: u32) {
        self.with_kept(index, Kept::clear);
        if let Some(following) = self.home_mut(index).following.as_mut() {
            following.older = Older::Unread;
        }
    }

    /// The channel goes on behind another position; of its life, what is from `lost` up to there has not come.
    pub(super) fn renew(&mut self, index: u32, position: Position, lost: Offset, deliver: Deliver) {
        let home = self.home_mut(index);
        home.seal(deliver);
        (home.epoch, home.last_offset) = (position.epoch, position.offset);
        // Of a channel that nobody numbers for all no more is promised than that who can be told is.
        let ends = home.following.is_some();
        for &Interest { shard, to, .. } in home.lanes.iter().flat_map(|lane| &lane.interests) {
            deliver(shard, Delivery::Renewed { to, position, lost, ends });
        }
    }

    /// Goes on with a home that follows: appends what has come, answers who has published, and sends on. Returns how many
    /// were published, and whether a request is to be served now.
    pub(super) fn go_on_following(
        &mut self,
        index: u32,
        now: (Instant, u64),
        budget: &mut usize,
        deliver: Deliver,
    ) -> (u64, Option<Parked>) {
        let published = self.append_incoming(index, now, budget, deliver);
        let mut request = None;
        while self.homes.get(index).is_some_and(Home::has_answer) {
            match self.with_parking(index, Parking::pop_front) {
                Some(Parked::Stored(stored, asker, wanted)) => {
                    self.answer_stored(index, (stored, asker, wanted), now.1, deliver);
                }
                Some(Parked::Refused(refused, asker)) => {
                    asker.refuse(&self.home_mut(index).name, refused, deliver);
                }
                other => {
                    request = other;
                    break;
                }
            }
        }
        if request.is_none() {
            self.send_upstream(index);
        }
        (published, request)
    }

    /// Tells who has published what has become of it where the channel is, or was, numbered elsewhere.
    pub(super) fn answer_stored(
        &mut self,
        index: u32,
        (stored, asker, wanted): (Result<Stored, Refused>, Asker, Option<u64>),
        now_ms: u64,
        deliver: Deliver,
    ) {
        let at = stored.as_ref().ok().copied();
        let ack = if self.config.redis.is_used() { Ack::Redis } else { Ack::Accepted };
        let home = self.home_mut(index);
        let subscribers = home.subscribers();
        let receipt = |stored| match stored {
            Stored::At { position, duplicate } => {
                Receipt { position: Some(position), ack, subscribers, duplicate }
            }
            Stored::Spooled => {
                Receipt { position: None, ack: Ack::Spooled, subscribers, duplicate: false }
            }
        };
        asker.answer(&home.name, stored.map(receipt), deliver);
        if let Some(number) = wanted {
            self.is_stored(index, number, at, now_ms);
        }
    }

    fn append_incoming(
        &mut self,
        index: u32,
        now: (Instant, u64),
        budget: &mut usize,
        deliver: Deliver,
    ) -> u64 {
        let mut published = 0;
        while *budget > 0 {
            let (turn, most) = (self.turn, self.parked_max());
            let home = self.home_mut(index);
            if !home.may_append(turn, most) {
                break;
            }
            let (epoch, last) = (home.epoch, home.last_offset);
            let answered = |own: &&mut Box<Following>| own.known && !own.awaits && !own.away;
            let Some(following) = home.following.as_mut().filter(answered) else { break };
            let Some((of, offset)) = following.next() else {
                if last < following.read_to {
                    // One answer holds so much and no more.
                    self.look_upstream(index, now.1);
                }
                break;
            };
            if of != epoch || offset > last.next() {
                self.look_upstream(index, now.1);
                break;
            }
            let Some(Numbered { mut publication, age_ms, .. }) = following.pop() else { break };
            // It was asked for, too.
            if offset <= last {
                continue;
            }
            if age_ms > u64::from(self.config.limits.confirm_ms_max) {
                // Nobody waits for that any more.
                publication.wanted = None;
            }
            let (payload, by) = publication.into_parts();
            *budget = budget.saturating_sub(payload.bytes.len() + size_of::<Numbered>());
            let publisher = Publisher { asker: Asker::Nobody, by };
            published +=
                u64::from(self.append(index, &payload.borrowed(), publisher, now, deliver));
        }
        self.count_incoming(index);
        published
    }

    /// The way to the upstream was interrupted: every home asks again.
    pub(in crate::shard) fn resume(&mut self) {
        self.resume_from = Some(0);
    }

    /// Asks for some of them.
    pub(in crate::shard) fn resume_some(&mut self, now_ms: u64) {
        let Some(from) = self.resume_from else { return };
        let end = from.saturating_add(RESUMED_PER_TURN).min(self.homes.slots());
        for index in from..end {
            if self.homes.get_mut(index).is_none() {
                continue;
            }
            self.resume_one(index, now_ms);
        }
        self.resume_from = (end < self.homes.slots()).then_some(end);
    }

    fn resume_one(&mut self, index: u32, now_ms: u64) {
        self.roll_is_due(index, now_ms);
        let Some(following) = self.home_mut(index).following.as_mut() else { return };
        // Whatever was asked before is not answered any more; what is asked now will be, and is waited for.
        (following.awaits, following.away) = (false, false);
        if matches!(following.older, Older::Reading(_)) {
            following.older = Older::Unread;
        }
        self.look_upstream(index, now_ms);
    }

    /// Something is missing of what was published elsewhere on channels that are not numbered.
    pub(in crate::shard) fn miss(&mut self, what: Missing) {
        // One that is on its way goes on behind: were it begun anew again and again, the last homes would never be told.
        let mut on_its_way = false;
        self.miss_from.retain(|(own, from)| {
            *own != what || (*from > 0 && !std::mem::replace(&mut on_its_way, true))
        });
        self.miss_from.insert(0, (what, 0));
    }

    /// Tells some of those: whatever it is that is missing, an offset is taken for it that nothing ever stands at.
    pub(in crate::shard) fn miss_some(&mut self, deliver: Deliver) {
        let Some(&(what, from)) = self.miss_from.first() else { return };
        let end = from.saturating_add(MISSED_PER_TURN).min(self.homes.slots());
        for index in from..end {
            let misses = |home: &&Home| match what {
                Missing::Nodes => home.shares,
                Missing::Foreign => self.config.hears_foreign(&home.name),
            };
            let Some(home) = self.homes.get(index).filter(misses) else { continue };
            let missing = home.position().offset.next();
            let position = Position { epoch: home.epoch, offset: missing };
            self.forget_history(index);
            self.renew(index, position, missing, deliver);
        }
        self.miss_from.remove(0);
        if end < self.homes.slots() {
            self.miss_from.insert(0, (what, end));
        }
    }

    /// Looks whether a home that follows has missed something that nothing else would tell.
    pub(super) fn check_upstream(&mut self, index: u32, now_ms: u64) {
        let Some(home) = self.homes.get_mut(index) else { return };
        let last = home.last_offset;
        let Some(following) = home.following.as_mut().filter(|own| !own.awaits) else { return };
        let behind = following.known && following.upstream_at > last;
        let since_ms = *following.behind_since_ms.get_or_insert(now_ms);
        if !behind {
            following.behind_since_ms = None;
        }
        let asked_ms = following.asked_ms.max(since_ms);
        let late = behind && now_ms.saturating_sub(asked_ms) >= BEHIND_MS;
        if late || now_ms.saturating_sub(following.asked_ms) >= CHECK_MS {
            self.look_upstream(index, now_ms);
        }
    }

    /// Whether a subscriber can be told where it starts, and what its position is in the present life of the channel. `looked`
    /// says that the upstream was asked for its sake.
    pub(super) fn place_upstream(
        &mut self,
        index: u32,
        recover: Option<Position>,
        looked: bool,
        now_ms: u64,
    ) -> Result<Placed, Refused> {
        let Some(home) = self.homes.get(index) else { return Ok(Placed::Here(recover)) };
        let (last, Some(following)) = (home.last_offset, &home.following) else {
            return Ok(Placed::Here(recover));
        };
        let (known, away, awaits) = (following.known, following.away, following.awaits);
        if !known {
            return if away { Err(AWAY) } else { Ok(Placed::NotYet(false)) };
        }
        let Some(from) = recover else { return Ok(Placed::Here(None)) };
        match self.translate(index, from) {
            Some(here) if here.offset <= last => Ok(Placed::Here(Some(here))),
            // It may have seen more on another node, or the channel may live on elsewhere.
            _ if away => Err(AWAY),
            // What was asked before may be answered with less than it has seen.
            _ if awaits => Ok(Placed::NotYet(looked)),
            _ if !looked => {
                self.look_upstream(index, now_ms);
                Ok(Placed::NotYet(true))
            }
            _ => Ok(Placed::Here(recover)),
        }
    }

    /// What a position is in the present life of a channel, where it is one there.
    fn translate(&self, index: u32, from: Position) -> Option<Position> {
        let home = self.homes.get(index)?;
        let lineage: &[(Epoch, Offset)] =
            home.following.as_ref().map_or(&[], |following| &following.lineage);
        let shared = shared_with(home.epoch, lineage, from.epoch)?;
        (from.offset <= shared).then_some(Position { epoch: home.epoch, offset: from.offset })
    }
}
