//! Confirmations: a publisher asks those who are on a channel to confirm what it publishes, and is told who has and who has
//! not in time. Where other nodes have the channel, its home waits for those who are there, too: each node says who they are when
//! the publication comes to it, and then who of them has it.

use std::collections::{BTreeMap, BTreeSet};

use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::refused::Limit;
use ringfeed_protocol::{ChannelName, Offset, Position, Refused};

use super::{Home, Homes};
use crate::message::{By, Confirming, Delivery, Origin, Someone, Stored, ToUpstream, Wanted};
use crate::shard::home::Deliver;
use crate::shard::home::confirmations::{
    self, HERE, OWN_WAITING_MAX, Receipts, WAITING_MAX, Waiting,
};
use crate::shard::home::members::{Members, Seat};

/// Receivers that may be waited for on one shard, over all publications; and so many publications of other nodes are remembered.
const RECEIVERS_MAX: usize = 1 << 18;
/// Why nobody is asked.
const TOO_MANY: &str = "too much waits to be confirmed";
/// Publishers are told of so many receivers in one turn, or of one publication's.
const RECEIVERS_PER_TURN: usize = 4096;
/// So many are named in one message to another node.
const NAMED_MAX: usize = 512;
/// Confirmations whose answer another node has to give; one more is refused.
const CONFIRMING_MAX: usize = 65_536;
/// How long it has for that, in milliseconds.
const PATIENCE_MS: u64 = 2000;
/// What another node waits for is remembered for so much longer than it may take.
const REMEMBERED_MS: u64 = 10_000;

/// A confirmation that another node has to answer.
#[derive(Debug)]
pub(super) struct Asking {
    origin: Origin,
    channel: ChannelName,
    offset: Offset,
    /// When it is over.
    due_ms: u64,
}

/// Where it is known whether a confirmation was waited for.
#[derive(Debug)]
enum Confirmed {
    Here(bool),
    /// There, and who has confirmed.
    Elsewhere(Wanted, Someone),
}

impl Homes {
    /// Whether those who are there may be asked to confirm a publication, where its publisher wants that.
    pub(super) fn may_be_confirmed(&self, index: u32, by: &By) -> Result<(), Refused> {
        let Some(confirm) = by.as_ref().and_then(|by| by.confirm.as_ref()) else { return Ok(()) };
        let home = self.homes.get(index).expect("an indexed home is there");
        let rule = self.config.rule(&home.name).filter(|rule| rule.confirm);
        // A channel that is older than its rule does not know who is there.
        let members = home.members.as_ref().filter(|_| rule.is_some());
        let Some(members) = members else {
            return Err(Refused::NotConfirmed { channel: home.name.clone() });
        };
        let most = self.config.limits.confirm_receivers_max as usize;
        if members.present().filter(|who| **who != confirm.who).nth(most).is_some() {
            let (limit, most) = (Limit::Receivers, most as u64);
            return Err(Refused::LimitReached { limit, most });
        }
        if members.confirmations.len_of(confirm.publisher) >= OWN_WAITING_MAX {
            let (limit, most) = (Limit::Unconfirmed, OWN_WAITING_MAX as u64);
            return Err(Refused::LimitReached { limit, most });
        }
        if members.confirmations.len() >= WAITING_MAX || self.unconfirmed > RECEIVERS_MAX {
            return Err(Refused::Unavailable { detail: TOO_MANY });
        }
        Ok(())
    }

    /// Waits for those who are there to confirm what is about to be published, where its publisher wants that. Returns the number
    /// by which it is waited for; what is published carries it from then on.
    pub(super) fn await_confirmations(&mut self, index: u32, by: &mut By) -> Option<u64> {
        let by = by.as_mut()?;
        let confirm = *by.confirm.take()?;
        self.wanted_number = self.wanted_number.wrapping_add(1);
        let number = self.wanted_number;
        let home = self.homes.get_mut(index)?;
        let shared = home.shares || home.following.is_some();
        let mut there = home.there_by_node();
        for who in there.values_mut() {
            who.remove(&confirm.who);
        }
        let waiting = Waiting::new(confirm, there, shared);
        self.unconfirmed += waiting.receivers();
        home.members.as_mut()?.confirmations.wait(number, waiting);
        by.wanted = Some(Wanted { instance: HERE, number });
        Some(number)
    }

    /// What is waited for was published by this home.
    pub(super) fn is_published(
        &mut self,
        index: u32,
        number: u64,
        position: Position,
        now_ms: u64,
    ) {
        self.with_waiting(index, number, |waiting| {
            waiting.silent(HERE);
            waiting.published(position, now_ms);
        });
        if self.home_mut(index).shares {
            self.ask_who(index, number);
        }
    }

    /// Asks other nodes who was there when it came to them.
    fn ask_who(&mut self, index: u32, number: u64) {
        let home = self.home_mut(index);
        let (channel, numbered) = (home.name.clone(), home.following.is_some());
        let what = Confirming::Who { number };
        self.outgoing.push(ToUpstream::Confirming { channel, numbered, to: None, what });
    }

    /// So many were asked.
    pub(super) fn who_is_asked(&mut self, index: u32, number: u64, count: usize) {
        self.with_waiting(index, number, |waiting| waiting.asked(count));
    }

    /// The publisher was told what has become of a publication that is numbered elsewhere.
    pub(super) fn is_stored(
        &mut self,
        index: u32,
        number: u64,
        stored: Option<Stored>,
        now_ms: u64,
    ) {
        // What was published before, under its key, is its first publisher's; of what waits on a disk nobody knows where it will stand.
        let Some(Stored::At { position, duplicate: false }) = stored else {
            return drop(self.end_waiting(index, number));
        };
        let here = self.home_mut(index).position();
        let has_passed = here.epoch != position.epoch || here.offset >= position.offset;
        self.with_waiting(index, number, |waiting| {
            if has_passed && waiting.awaits_here() {
                // It never came here.
                waiting.silent(HERE);
            }
            waiting.published(position, now_ms);
        });
        self.ask_who(index, number);
    }

    /// A publication has come of which its own home wants to know who has it: this one, or that on another node.
    pub(super) fn is_wanted(&mut self, index: u32, offset: Offset, wanted: Wanted, now_ms: u64) {
        let most = confirmations::RECEIVERS_MAX;
        let Some(home) = self.homes.get(index) else { return };
        let position = Position { epoch: home.epoch, offset };
        let here = home.members.iter().flat_map(|members| members.present_here());
        let here: Vec<Someone> = here.take(most).cloned().collect();
        if self.waits_for(index, wanted.number) {
            self.with_waiting(index, wanted.number, |waiting| {
                waiting.stands(position);
                waiting.came(HERE, here, true, most);
            });
            return;
        }
        // Whom it is not remembered for is not asked.
        let who = if self.remember_wanted(index, offset, wanted, now_ms) { here } else { vec![] };
        let Wanted { instance: to, number } = wanted;
        let channel = self.home_mut(index).name.clone();
        let parts = who.len().div_ceil(NAMED_MAX).max(1);
        let mut who = who.into_iter();
        for part in 1..=parts {
            let who = who.by_ref().take(NAMED_MAX).collect();
            let what = Confirming::Came { number, who, last: part == parts };
            self.tell_process(channel.clone(), to, what);
        }
    }

    /// Remembers where a publication of another node is waited for. Returns whether there is room for that.
    pub(super) fn remember_wanted(
        &mut self,
        index: u32,
        offset: Offset,
        wanted: Wanted,
        now_ms: u64,
    ) -> bool {
        if self.wanted >= RECEIVERS_MAX || self.waits_for(index, wanted.number) {
            return false;
        }
        let until_ms = now_ms + u64::from(self.config.limits.confirm_ms_max) + REMEMBERED_MS;
        self.with_wanted(index, |members| members.confirmations.want(offset, wanted, until_ms))
    }

    /// Forgets what other nodes wait for no more; with [`u64::MAX`] all of it: offsets mean something else from now on.
    pub(super) fn forget_wanted(&mut self, index: u32, now_ms: u64) {
        self.with_wanted(index, |members| members.confirmations.forget_wanted(now_ms));
    }

    /// Changes what is remembered of other nodes, and keeps count of it. Returns whether it could be.
    fn with_wanted(&mut self, index: u32, change: impl FnOnce(&mut Members)) -> bool {
        let members = self.homes.get_mut(index).and_then(|home| home.members.as_mut());
        let Some(members) = members else { return false };
        let before = members.confirmations.wanted_len();
        change(members);
        self.wanted = self.wanted - before + members.confirmations.wanted_len();
        true
    }

    fn waits_for(&mut self, index: u32, number: u64) -> bool {
        let members = self.homes.get_mut(index).and_then(|home| home.members.as_mut());
        members.is_some_and(|members| members.confirmations.get_mut(number).is_some())
    }

    /// Changes what is waited for, keeps count of it, and sees to it that its publisher is told in this turn where that was all.
    fn with_waiting<T>(
        &mut self,
        index: u32,
        number: u64,
        change: impl FnOnce(&mut Waiting) -> T,
    ) -> Option<T> {
        let members = self.homes.get_mut(index)?.members.as_mut()?;
        let waiting = members.confirmations.get_mut(number)?;
        let (receivers, due) = (waiting.receivers(), waiting.due());
        let changed = change(waiting);
        self.unconfirmed = self.unconfirmed - receivers + waiting.receivers();
        if due != waiting.due() {
            if let Some(due_ms) = due {
                self.confirm_due.remove(&(due_ms, index, number));
            }
            self.confirm_due.extend(waiting.due().map(|due_ms| (due_ms, index, number)));
        }
        Some(changed)
    }

    fn with_each_waiting(&mut self, index: u32, change: impl Fn(&mut Waiting)) {
        let members = self.homes.get(index).and_then(|home| home.members.as_ref());
        let numbers = members.map(|members| members.confirmations.numbers()).unwrap_or_default();
        for number in numbers {
            self.with_waiting(index, number, &change);
        }
    }

    /// Another process says no more of who was there as something came to it.
    pub(super) fn is_silent(&mut self, index: u32, from: u64) {
        self.with_each_waiting(index, |waiting| waiting.silent(from));
    }

    /// Another process has the channel no more.
    pub(super) fn has_left(&mut self, index: u32, from: u64) {
        self.with_each_waiting(index, |waiting| waiting.left(from));
    }

    /// Somebody has got a publication, of this life of the channel where one is said. Where they want to know, they are told whether that
    /// was waited for: at once, or when another node has said it.
    pub(in crate::shard) fn confirm(
        &mut self,
        (seat, origin): (Seat, Option<Origin>),
        channel: ChannelName,
        (epoch, offset): (Option<Epoch>, Offset),
        now_ms: u64,
        deliver: Deliver,
    ) {
        let is_full = origin.is_some() && self.confirming.len() >= CONFIRMING_MAX;
        let told = match self.confirm_here(&channel, seat, (epoch, offset)) {
            Ok(Confirmed::Here(in_time)) => Ok(in_time),
            Ok(Confirmed::Elsewhere(..)) if is_full => {
                Err(Refused::Unavailable { detail: TOO_MANY })
            }
            Ok(Confirmed::Elsewhere(wanted, who)) => {
                return self.confirm_elsewhere((channel, offset), (wanted, who), origin, now_ms);
            }
            Err(refused) => Err(refused),
        };
        let Some(origin) = origin else { return };
        let answer = match told {
            Ok(in_time) => Delivery::Confirmed { origin, channel, offset, in_time },
            Err(refused) => Delivery::Refused { origin, attempt: None, refused },
        };
        deliver(seat.0, answer);
    }

    /// Returns whether it was waited for here, or who has to say that; only subscribers confirm.
    fn confirm_here(
        &mut self,
        channel: &ChannelName,
        seat: Seat,
        (epoch, offset): (Option<Epoch>, Offset),
    ) -> Result<Confirmed, Refused> {
        let Some(&index) = self.by_name.get(channel) else {
            return Err(Refused::NotSubscribed { channel: channel.clone() });
        };
        let home = self.home_mut(index);
        let position = Position { epoch: home.epoch, offset };
        let Some(members) = &mut home.members else {
            return Err(Refused::NotConfirmed { channel: channel.clone() });
        };
        if !members.has(seat) {
            return Err(Refused::NotSubscribed { channel: channel.clone() });
        }
        let is_over = epoch.is_some_and(|epoch| epoch != position.epoch);
        let who = members.who(seat).filter(|_| !is_over);
        let Some(who) = who.cloned() else { return Ok(Confirmed::Here(false)) };
        if let Some(number) = members.confirmations.at(position) {
            let in_time = self.with_waiting(index, number, |waiting| waiting.confirm(&who));
            return Ok(Confirmed::Here(in_time == Some(true)));
        }
        Ok(match members.confirmations.wanted_at(offset) {
            Some(wanted) => Confirmed::Elsewhere(wanted, who),
            None => Confirmed::Here(false),
        })
    }

    /// Tells another node that somebody has got a publication, and who is answered once that has said whether it waits for it.
    fn confirm_elsewhere(
        &mut self,
        (channel, offset): (ChannelName, Offset),
        (Wanted { instance: to, number }, who): (Wanted, Someone),
        origin: Option<Origin>,
        now_ms: u64,
    ) {
        let ticket = origin.map(|origin| {
            self.ticket += 1;
            let (channel, due_ms) = (channel.clone(), now_ms + PATIENCE_MS);
            self.confirming.insert(self.ticket, Asking { origin, channel, offset, due_ms });
            self.ticket
        });
        self.tell_process(channel, to, Confirming::Confirm { number, who, ticket });
    }

    fn tell_process(&mut self, channel: ChannelName, to: u64, what: Confirming) {
        let (numbered, to) = (false, Some(to));
        self.outgoing.push(ToUpstream::Confirming { channel, numbered, to, what });
    }

    /// Another process says something of who has got a publication.
    pub(super) fn heard_confirming(
        &mut self,
        channel: &ChannelName,
        from: u64,
        what: Confirming,
        deliver: Deliver,
    ) {
        let index = self.by_name.get(channel).copied();
        match what {
            Confirming::Who { number } => {
                // Who has it says so when the publication comes.
                if index.is_none() {
                    let what = Confirming::Came { number, who: Vec::new(), last: true };
                    self.tell_process(channel.clone(), from, what);
                }
            }
            Confirming::Came { number, who, last } => {
                // How many there are was looked at before it was published, as far as that was known.
                let is_full = self.unconfirmed > RECEIVERS_MAX;
                let most = if is_full { 0 } else { confirmations::RECEIVERS_MAX };
                if let Some(index) = index {
                    self.with_waiting(index, number, |own| own.came(from, who, last, most));
                }
            }
            Confirming::Confirm { number, who, ticket } => {
                let confirmed =
                    index.and_then(|index| self.with_waiting(index, number, |o| o.confirm(&who)));
                if let Some(ticket) = ticket {
                    let in_time = confirmed == Some(true);
                    let what = Confirming::Confirmed { ticket, in_time };
                    self.tell_process(channel.clone(), from, what);
                }
            }
            Confirming::Confirmed { ticket, in_time } => {
                self.answer_confirming(ticket, in_time, deliver);
            }
        }
    }

    fn answer_confirming(&mut self, ticket: u64, in_time: bool, deliver: Deliver) {
        if let Some(Asking { origin, channel, offset, .. }) = self.confirming.remove(&ticket) {
            let shard = origin.shard;
            deliver(shard, Delivery::Confirmed { origin, channel, offset, in_time });
        }
    }

    /// Tells publishers who has not confirmed in time, and those who have confirmed what no other node says a word of.
    pub(in crate::shard) fn tell_unconfirmed(&mut self, now_ms: u64, deliver: Deliver) {
        while let Some((&ticket, own)) = self.confirming.first_key_value()
            && own.due_ms <= now_ms
        {
            self.answer_confirming(ticket, false, deliver);
        }
        let before = self.unconfirmed;
        self.some_are_due = false;
        while let Some(&(due_ms, index, number)) = self.confirm_due.first()
            && due_ms <= now_ms
        {
            self.some_are_due = before - self.unconfirmed > RECEIVERS_PER_TURN;
            if self.some_are_due {
                return;
            }
            if self.with_waiting(index, number, |own| own.goes_on(now_ms)) != Some(true) {
                self.tell_receipts(index, number, deliver);
            }
        }
    }

    /// Another life of the channel begins: what is not confirmed by now never is.
    pub(super) fn end_confirmations(&mut self, index: u32) {
        self.with_each_waiting(index, Waiting::end);
        self.forget_wanted(index, u64::MAX);
    }

    /// Waits no more.
    pub(super) fn end_waiting(&mut self, index: u32, number: u64) -> Option<Receipts> {
        let members = self.homes.get_mut(index)?.members.as_mut()?;
        let waiting = members.confirmations.get_mut(number)?;
        self.unconfirmed -= waiting.receivers();
        if let Some(due_ms) = waiting.due() {
            self.confirm_due.remove(&(due_ms, index, number));
        }
        members.confirmations.end(number)
    }

    fn tell_receipts(&mut self, index: u32, number: u64, deliver: Deliver) {
        let Some(receipts) = self.end_waiting(index, number) else { return };
        let Receipts { publisher: (shard, session), position, confirmed, missing } = receipts;
        // Once it drains nothing more comes from here.
        if let Some(position) = position.filter(|_| !self.closed) {
            let Some(Home { name, .. }) = self.homes.get(index) else { return };
            let (channel, missing) = (name.clone(), missing.into_iter().collect());
            deliver(shard, Delivery::Receipts { session, channel, position, confirmed, missing });
        }
    }

    /// Panics if what is waited for is not what is counted.
    pub(super) fn check_confirmations(&self) {
        let homes = self.homes.iter();
        let members = homes.filter_map(|(index, home)| Some((index, home.members.as_ref()?)));
        let (mut due, mut receivers, mut wanted) = (BTreeSet::new(), 0, 0);
        for (index, members) in members {
            due.extend(members.confirmations.due().map(|(due, number)| (due, index, number)));
            receivers += members.confirmations.receivers();
            wanted += members.confirmations.wanted_len();
        }
        assert_eq!(due, self.confirm_due, "each that waits has its time");
        assert_eq!(receivers, self.unconfirmed, "receivers that are waited for");
        assert_eq!(wanted, self.wanted, "publications that other nodes wait for");
    }
}

impl Home {
    /// Who is there, by node, as far as that is known: on this one, and on all others that have the channel.
    fn there_by_node(&self) -> BTreeMap<u64, BTreeSet<Someone>> {
        let mut there = BTreeMap::new();
        let others = self.rolls.iter().flat_map(|rolls| rolls.others());
        there.extend(others.map(|other| (other, BTreeSet::new())));
        let members = self.members.iter().flat_map(|members| members.by_node(HERE));
        for (node, who) in members {
            there.entry(node).or_default().insert(who.clone());
        }
        there.entry(HERE).or_default();
        there
    }
}
