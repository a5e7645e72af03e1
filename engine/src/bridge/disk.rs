//! What the bridge has to do with the disk, where there is one for what waits too long for Redis: [`super::spooling`] says what is
//! to be done there.

use std::collections::BTreeMap;

use ringfeed_protocol::{ChannelName, Refused};

use super::command::{Append, Command, Item};
use super::spooling::{SpoolDone, SpoolOrder, Spooled, Spooling, Waiter};
use super::way::Way;
use super::{Bridge, UnderWay, unavailable};
use crate::message::Stored;

impl Bridge {
    /// There is a disk for what waits too long, with so many publications of these channels already.
    pub fn use_spool(&mut self, waiting: BTreeMap<ChannelName, u32>) {
        self.spooling = Some(Spooling::new(waiting));
    }

    /// What the disk is to do; [`Bridge::spool_done`] is to be told before there is more.
    pub fn take_spool_order(&mut self) -> Option<SpoolOrder> {
        let up = self.is_up();
        self.spooling.as_mut()?.next_order(up)
    }

    /// Publications on disk, or on their way there.
    pub fn spooled(&self) -> u64 {
        self.spooling.as_ref().map_or(0, Spooling::len)
    }

    /// Bytes of publications that wait for the disk.
    pub fn unwritten_bytes(&self) -> usize {
        self.spooling.as_ref().map_or(0, Spooling::unwritten_bytes)
    }

    /// Keeps a publication on disk; where there is none, it is refused.
    pub(super) fn spool(
        &mut self,
        channel: &ChannelName,
        (ticket, item): (u64, Item),
        why: Refused,
    ) {
        match &mut self.spooling {
            Some(spooling) => {
                let (channel, instance) = (channel.clone(), self.instance);
                spooling.push(Spooled { channel, instance, item }, ticket, why);
            }
            None => self.tell_stored(channel.clone(), ticket, Err(why)),
        }
    }

    /// The disk has done what it was to do.
    pub fn spool_done(&mut self, done: SpoolDone) {
        let Some(spooling) = &mut self.spooling else { return };
        match done {
            SpoolDone::Written(count) => {
                for (Waiter { channel, ticket, why }, is_written) in spooling.written(count) {
                    let stored = if is_written { Ok(Stored::Spooled) } else { Err(why) };
                    if !is_written {
                        // Perhaps nothing of it is there any more.
                        self.append(&channel);
                    }
                    self.tell_stored(channel, ticket, stored);
                }
            }
            SpoolDone::Read(records) => {
                if spooling.read(records) {
                    // There is nothing that others wait behind.
                    let waiting: Vec<ChannelName> = self.ways.keys().cloned().collect();
                    waiting.iter().for_each(|channel| self.append(channel));
                }
                self.replay_all();
            }
            SpoolDone::SetAside => spooling.is_aside(),
            SpoolDone::Forgotten => {
                for channel in spooling.forgotten() {
                    self.append(&channel);
                }
            }
        }
    }

    /// Gives Redis what was read from the disk and is not stored yet.
    pub(super) fn replay_all(&mut self) {
        if !self.is_up() {
            return;
        }
        let Some(spooling) = &mut self.spooling else { return };
        let (round, appends) = spooling.begin_round();
        appends.into_iter().for_each(|append| self.replay(round, append));
    }

    pub(super) fn replay(&mut self, round: u64, append: Append) {
        let channel = append.channel.clone();
        let number = self.command(Command::Append(append));
        self.under_way.insert(number, UnderWay::Replay(channel, round));
    }

    /// Whether a channel has publications on disk that Redis, which is there, does not store.
    pub(super) fn is_refused(&self, channel: &ChannelName) -> bool {
        let spooling = self.spooling.as_ref();
        spooling.is_some_and(|spooling| spooling.is_refused() && spooling.has(channel))
    }

    /// What waits behind what Redis does not store waits on disk, too.
    pub(super) fn spool_what_is_refused(&mut self) {
        let refused: Vec<ChannelName> =
            self.ways.keys().filter(|channel| self.is_refused(channel)).cloned().collect();
        for channel in refused {
            let queue = self.ways.get_mut(&channel).map(Way::take_queue).unwrap_or_default();
            queue.into_iter().for_each(|waiting| {
                self.spool(&channel, waiting, unavailable(self.whys().not_stored))
            });
        }
    }

    /// What has waited behind the spool for too long goes into it.
    pub(super) fn spool_what_is_late(&mut self, now_ms: u64) {
        let Some(spooling) = self.spooling.as_ref().filter(|own| own.len() > 0) else { return };
        let patience_ms = self.patience_ms;
        let late = self.ways.iter_mut().filter_map(|(channel, way)| {
            let blocked = spooling.has(channel).then_some(now_ms);
            way.is_late(blocked, patience_ms).then(|| (channel.clone(), way.take_queue()))
        });
        for (channel, queue) in late.collect::<Vec<_>>() {
            queue
                .into_iter()
                .for_each(|waiting| self.spool(&channel, waiting, unavailable(self.whys().behind)));
        }
    }
}
