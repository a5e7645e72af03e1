//! The keeper of channels: what is asked of it, what waits until it keeps them, and lives that come from other keepers and go to
//! them ([`super::transfer`] says how).

use bytes::Bytes;
use ringfeed_protocol::ChannelName;

use super::frame::{Answer, Asked, Frame, Topic};
use super::placing::Placing;
use super::store::Kept;
use super::transfer::{Tally, Transfer};
use super::{Mesh, Said, channel_of};
use crate::registry::views::Instance;

/// Something that was asked about one channel.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) from: Instance,
    number: u64,
    pub(super) asked: Asked,
    pub(super) at_ms: u64,
}

impl Mesh {
    /// A node asks something of this one as the keeper of a channel.
    pub(super) fn asked(&mut self, from: Instance, number: u64, asked: Asked) {
        self.asked_at(from, number, asked, self.now_ms);
    }

    fn asked_at(&mut self, from: Instance, number: u64, asked: Asked, at_ms: u64) {
        // All of one channel waits, or none, so it keeps its order.
        let asked = match asked {
            Asked::Follow(channels) => {
                let (now, later): (Vec<_>, Vec<_>) =
                    channels.into_iter().partition(|channel| self.may_keep(channel));
                for channel in later {
                    let asked = Asked::Follow(vec![channel.clone()]);
                    self.held.entry(channel).or_default().push(Held { from, number, asked, at_ms });
                }
                Asked::Follow(now)
            }
            asked => match channel_of(&asked).filter(|channel| !self.may_keep(channel)).cloned() {
                None => asked,
                Some(channel) => {
                    let held = Held { from, number, asked, at_ms };
                    return self.held.entry(channel).or_default().push(held);
                }
            },
        };
        let full = self.store.channels() >= self.own.channels_max;
        let refused = channel_of(&asked).is_some_and(|own| full && !self.store.has(own));
        let (now_ms, rules) = (self.now_ms, &self.own.rules);
        let answer = match asked {
            Asked::Unfollow(channel) => return self.store.unfollow(&channel, from, now_ms),
            Asked::Follow(channels) => {
                for channel in channels {
                    if !full || self.store.has(&channel) {
                        self.store.follow(&channel, from, now_ms);
                    }
                }
                return;
            }
            _ if refused => Answer::Refused,
            Asked::Append(append) => {
                let keep = rules(&append.channel);
                let (appended, message) =
                    self.store.append(&append, (keep, self.own.bytes_max), now_ms);
                if let Some(message) = message {
                    self.tell_followers(&append.channel, &message);
                }
                Answer::Appended(appended)
            }
            Asked::Read(read) => {
                // Who asks follows, also where there was no room for that before.
                self.store.follow(&read.channel, from, now_ms);
                let keep = rules(&read.channel);
                Answer::Stands(self.store.read(&read, keep, now_ms))
            }
            Asked::PassOn(channel, bytes) => {
                let count = self.tell_followers(&channel, &bytes);
                Answer::HeardBy(u32::try_from(count).unwrap_or(u32::MAX))
            }
        };
        if from == self.own.instance {
            self.answered(number, answer);
        } else {
            self.send(from, Frame::Answer(number, answer));
        }
    }

    fn tell_followers(&mut self, channel: &ChannelName, bytes: &Bytes) -> usize {
        let followers = self.store.followers(channel);
        for follower in &followers {
            let topic = Topic::Numbered(channel.clone());
            if *follower == self.own.instance {
                self.said.push_back(Said::Told(topic, bytes.clone()));
            } else {
                self.send(*follower, Frame::Told(topic, bytes.clone()));
            }
        }
        followers.len()
    }

    /// Whether a channel is kept here already, or can be from now on.
    fn may_keep(&self, channel: &ChannelName) -> bool {
        // One whose keeper is known waits for that one alone.
        let is_owed = || match &self.before {
            Some(before) => {
                before.keeper(channel).is_some_and(|keeper| self.transfers.is_owing(keeper))
            }
            None => self.awaits_lives(),
        };
        self.up && (self.store.has(channel) || self.begins() && !is_owed())
    }

    /// Whether it begins lives of channels by now that it has not kept before, and that nobody hands over.
    fn begins(&self) -> bool {
        self.begins_ms.is_some_and(|at| at <= self.now_ms)
    }

    pub(super) fn hold_only(&mut self, stays: impl Fn(&Held) -> bool) {
        self.held.retain(|_, held| {
            held.retain(&stays);
            !held.is_empty()
        });
    }

    /// Does what has waited until this node keeps the channel, as far as it does by now.
    pub(super) fn serve_held(&mut self) {
        let keeps = (self.up, self.begins(), self.transfers.count_owing());
        if keeps != std::mem::replace(&mut self.kept, keeps) && self.up {
            let held = std::mem::take(&mut self.held).into_values().flatten();
            held.for_each(|held| self.serve(held));
        }
    }

    fn serve(&mut self, Held { from, number, asked, at_ms }: Held) {
        self.asked_at(from, number, asked, at_ms);
    }

    /// Takes out of the store what is not to be kept here by another view; of that, what others are to be given.
    pub(super) fn part_with_lives(
        &mut self,
        next: &Placing,
        in_line: bool,
    ) -> Vec<(Instance, ChannelName, Kept)> {
        self.take_over();
        let own = self.own.instance;
        let was_kept = |channel: &str| in_line && self.placing.keeper(channel) == Some(own);
        let stays = |channel: &ChannelName| was_kept(channel) && next.keeper(channel) == Some(own);
        let gone = self.store.keep_only(stays).into_iter();
        let gone = gone.filter(|(channel, _)| was_kept(channel));
        gone.filter_map(|(channel, kept)| Some((next.keeper(&channel)?, channel, kept))).collect()
    }

    /// Gives other keepers what is theirs by now, those of whom this says that they have room for more.
    pub fn give_lives(&mut self, has_room: impl Fn(Instance) -> bool) {
        let (number, peers) = (self.view.number, &self.peers);
        let can_be_told = |own| peers.get(&own).is_some_and(|peer| peer.agrees) && has_room(own);
        let at_once = self.own.handed_bytes;
        for (to, transfer) in self.transfers.take(can_be_told, at_once, self.now_ms) {
            self.frames.push((to, Frame::Transfer(number, transfer)));
        }
    }

    pub(super) fn heard_transfer(&mut self, from: Instance, transfer: Transfer) {
        let now_ms = self.now_ms;
        match transfer {
            Transfer::History(channel, entries) => {
                let bytes_max = self.own.bytes_max;
                self.transfers.heard_history(from, channel, entries, bytes_max, now_ms);
            }
            Transfer::Life(channel, life) => {
                self.transfers.heard_life(from, channel, life, now_ms);
            }
            Transfer::End => {
                self.transfers.heard_end(from);
                self.take_over();
                let taken = Frame::Transfer(self.view.number, Transfer::Taken);
                self.send(from, taken);
                self.review();
            }
            Transfer::Taken => self.transfers.heard_taken(from, now_ms),
        }
    }

    /// Goes on with the channels that other keepers have handed over.
    pub(super) fn take_over(&mut self) {
        let arrived = self.transfers.take_arrived();
        let channels: Vec<ChannelName> = arrived.iter().map(|(own, _)| own.clone()).collect();
        for (channel, kept) in arrived {
            let full = self.store.channels() >= self.own.channels_max;
            let is_kept = self.is_keeper(&channel) && !full && {
                let keep = (self.own.rules)(&channel);
                self.store.take_over(channel, kept, (keep, self.own.bytes_max), self.now_ms)
            };
            self.transfers.tally.taken += u64::from(is_kept);
            self.transfers.tally.lost += u64::from(!is_kept);
        }
        if self.up {
            for channel in channels {
                let held = self.held.remove(&channel).unwrap_or_default();
                held.into_iter().for_each(|held| self.serve(held));
            }
        }
    }

    /// Whether others that can be reached are still to be handed something.
    pub fn owes_lives(&self) -> bool {
        self.transfers.untold().any(|to| self.agrees(to))
    }

    /// Whether this node waits for what others hand over to it.
    pub fn awaits_lives(&self) -> bool {
        self.transfers.count_owing() > 0
    }

    /// Whether channels are on their way from this node: the next view had better wait. Of those on their way to it who gives them
    /// says so, and lives.
    pub fn is_moving(&self) -> bool {
        !self.transfers.is_confirmed()
    }

    /// Whether the node can go and nothing that it has kept is lost with it that another one could keep: they have said that they
    /// have it.
    pub fn is_relieved(&self) -> bool {
        let own = self.own.instance;
        let keeps = self.placing.has(own);
        let other = self.view.members.iter().any(|other| other.instance != own && !other.leaving);
        !other || !keeps && self.transfers.is_confirmed()
    }

    /// How many channels have changed their keeper.
    pub fn tally(&self) -> Tally {
        self.transfers.tally
    }

    /// When a channel was handed over last, by this node's clock.
    pub fn moved_ms(&self) -> u64 {
        self.transfers.moved_ms()
    }
}
