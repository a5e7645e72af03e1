//! Confirmations: a publisher asks those who are on a channel to confirm what it publishes, and is told who has and who has
//! not in time.

use std::collections::BTreeSet;

use ringfeed_protocol::refused::Limit;
use ringfeed_protocol::{ChannelName, Offset, Refused};

use super::{Home, Homes};
use crate::message::{By, Confirm, Delivery, Someone};
use crate::shard::home::Deliver;
use crate::shard::home::confirmations::{OWN_WAITING_MAX, Receipts, WAITING_MAX};
use crate::shard::home::members::{Members, Seat};

/// Receivers that may be waited for on one shard, over all publications.
const RECEIVERS_MAX: usize = 1 << 18;
/// Why nobody is asked.
const TOO_MANY: &str = "too much waits to be confirmed";
/// Publishers are told of so many receivers in one turn, or of one publication's.
const RECEIVERS_PER_TURN: usize = 4096;

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
        let most = self.config.limits.confirm_receivers_max;
        if receivers(members, &confirm.who).nth(most as usize).is_some() {
            let (limit, most) = (Limit::Receivers, u64::from(most));
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

    /// Waits for those who are there to confirm what was just appended.
    pub(super) fn await_confirmations(
        &mut self,
        index: u32,
        offset: Offset,
        Confirm { publisher, who, within_ms }: Confirm,
        now_ms: u64,
        deliver: Deliver,
    ) {
        let Some(members) = &mut self.home_mut(index).members else { return };
        let receivers: BTreeSet<Someone> = receivers(members, &who).cloned().collect();
        let (count, due_ms) = (receivers.len(), now_ms + u64::from(within_ms));
        members.confirmations.wait(offset, publisher, due_ms, receivers);
        self.unconfirmed += count;
        if count == 0 {
            self.tell_receipts(index, offset, deliver);
        } else {
            self.confirm_due.insert((due_ms, index, offset));
        }
    }

    /// Somebody has got a publication. Returns whether that was waited for; only subscribers confirm.
    pub(in crate::shard) fn confirm(
        &mut self,
        channel: &ChannelName,
        seat: Seat,
        offset: Offset,
        deliver: Deliver,
    ) -> Result<bool, Refused> {
        let Some(&index) = self.by_name.get(channel) else {
            return Err(Refused::NotSubscribed { channel: channel.clone() });
        };
        let Some(members) = &mut self.home_mut(index).members else {
            return Err(Refused::NotConfirmed { channel: channel.clone() });
        };
        if !members.has(seat) {
            return Err(Refused::NotSubscribed { channel: channel.clone() });
        }
        let Some(who) = members.who(seat).cloned() else { return Ok(false) };
        let (in_time, ended_ms) = members.confirmations.confirm(offset, &who);
        if let Some(due_ms) = ended_ms {
            self.confirm_due.remove(&(due_ms, index, offset));
            self.tell_receipts(index, offset, deliver);
        }
        Ok(in_time)
    }

    /// Tells publishers who has not confirmed in time.
    pub(in crate::shard) fn tell_unconfirmed(&mut self, now_ms: u64, deliver: Deliver) {
        let before = self.unconfirmed;
        self.some_are_due = false;
        while let Some(&(due_ms, index, offset)) = self.confirm_due.first()
            && due_ms <= now_ms
        {
            self.some_are_due = before - self.unconfirmed > RECEIVERS_PER_TURN;
            if self.some_are_due {
                return;
            }
            self.confirm_due.pop_first();
            self.tell_receipts(index, offset, deliver);
        }
    }

    /// Another life of the channel begins: what is not confirmed by now never is.
    pub(super) fn end_confirmations(&mut self, index: u32, deliver: Deliver) {
        let members = self.homes.get(index).and_then(|home| home.members.as_ref());
        let due: Vec<_> =
            members.map(|members| members.confirmations.due().collect()).unwrap_or_default();
        for (due_ms, offset) in due {
            self.confirm_due.remove(&(due_ms, index, offset));
            self.tell_receipts(index, offset, deliver);
        }
    }

    fn tell_receipts(&mut self, index: u32, offset: Offset, deliver: Deliver) {
        let Some(Home { name, epoch, members: Some(members), .. }) = self.homes.get_mut(index)
        else {
            return;
        };
        let Some(receipts) = members.confirmations.end(offset) else { return };
        self.unconfirmed -= receipts.receivers();
        let Receipts { publisher: (shard, session), confirmed, missing, .. } = receipts;
        // Once it drains nothing more comes from here.
        if !self.closed {
            let position = ringfeed_protocol::Position { epoch: *epoch, offset };
            let (channel, missing) = (name.clone(), missing.into_iter().collect());
            deliver(shard, Delivery::Receipts { session, channel, position, confirmed, missing });
        }
    }

    /// Panics if what is waited for is not what is counted.
    pub(super) fn check_confirmations(&self) {
        let homes = self.homes.iter();
        let members = homes.filter_map(|(index, home)| Some((index, home.members.as_ref()?)));
        let (mut due, mut receivers) = (BTreeSet::new(), 0);
        for (index, members) in members {
            due.extend(members.confirmations.due().map(|(due, offset)| (due, index, offset)));
            receivers += members.confirmations.receivers();
        }
        assert_eq!(due, self.confirm_due, "each that waits has its time");
        assert_eq!(receivers, self.unconfirmed, "receivers that are waited for");
    }
}

/// Who is on a channel beside somebody, on this node: what others have is published there, and not confirmed here.
fn receivers<'a>(members: &'a Members, who: &'a Someone) -> impl Iterator<Item = &'a Someone> {
    members.present_here().filter(move |own| *own != who)
}
