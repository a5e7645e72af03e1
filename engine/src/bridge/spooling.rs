//! Publications that wait on disk until Redis can be reached: which there are, and what is to be done with the disk next.
//!
//! While there are any of a channel, what is published on it waits behind them, so that it keeps its order. They are appended
//! under the numbers that they had: what Redis did append before its answer was lost it knows again.

use std::collections::{BTreeMap, VecDeque};

use ringfeed_protocol::{ChannelName, Refused};

use super::command::{Append, Item};
use super::way::{BATCH_BYTES_MAX, BATCH_ITEMS_MAX};

/// When Redis has refused to store what has waited it is asked again after so long.
const REFUSED_PAUSE_MS: u64 = 5000;

/// A publication on disk.
#[derive(Debug, Clone)]
pub struct Spooled {
    /// The channel.
    pub channel: ChannelName,
    /// The process that it was published at.
    pub instance: u64,
    /// What.
    pub item: Item,
}

/// What is to be done with the disk; one at a time.
#[derive(Debug)]
pub enum SpoolOrder {
    /// To write publications behind those that are there. Answered with [`SpoolDone::Written`].
    Write(Vec<Spooled>),
    /// To read some of the oldest. Answered with [`SpoolDone::Read`].
    Read,
    /// To keep these where somebody may look at them, and where they are not read again: Redis never takes them. Answered with
    /// [`SpoolDone::SetAside`].
    SetAside(Vec<Spooled>),
    /// What was read last is not needed any more. Answered with [`SpoolDone::Forgotten`].
    Forget,
}

/// What was done.
#[derive(Debug)]
pub enum SpoolDone {
    /// So many, the first, are on the disk; the others are not.
    Written(usize),
    /// These are the oldest; none where there are none that can be read.
    Read(Vec<Spooled>),
    /// They are, or it was said that they cannot be.
    SetAside,
    /// They are gone.
    Forgotten,
}

/// One that is to be on the disk, and who waits for that.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) channel: ChannelName,
    pub(super) ticket: u64,
    /// What it is told where there is no room.
    pub(super) why: Refused,
}

/// How far what was read from the disk is.
#[derive(Debug, Default)]
enum Replay {
    #[default]
    None,
    /// It is being read.
    Reading,
    /// It is being appended: of each channel what is left, the first of which is under way. What is stored once stays so:
    /// nothing is read again as long as this process lives.
    Appending { left: BTreeMap<ChannelName, VecDeque<Append>>, read: Vec<ChannelName> },
    /// It is stored, and can go from the disk: of each publication the channel.
    Stored(Vec<ChannelName>),
}

/// Whether Redis takes what has waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Yes,
    /// Not now, as it has just said.
    No,
    /// Nor since then.
    NotSince(u64),
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Spooling {
    /// Publications that are on the disk, or on their way there.
    waiting: BTreeMap<ChannelName, u32>,
    /// All of them.
    count: u64,
    unwritten: Vec<(Spooled, Waiter)>,
    unwritten_bytes: usize,
    /// Of what is being written.
    writers: Vec<Waiter>,
    /// The disk has something to do.
    busy: bool,
    replay: Replay,
    /// What Redis never takes.
    aside: Vec<Spooled>,
    /// So often was something asked of Redis anew: answers of before mean nothing.
    round: u64,
    taken: Taken,
}

impl Spooling {
    /// Of what an earlier process has left.
    pub(super) fn new(waiting: BTreeMap<ChannelName, u32>) -> Spooling {
        Spooling {
            count: waiting.values().map(|&count| u64::from(count)).sum(),
            waiting,
            unwritten: Vec::new(),
            unwritten_bytes: 0,
            writers: Vec::new(),
            busy: false,
            replay: Replay::None,
            aside: Vec::new(),
            round: 0,
            taken: Taken::Yes,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.count
    }

    /// Bytes that are not given to the disk yet.
    pub(super) fn unwritten_bytes(&self) -> usize {
        self.unwritten_bytes
    }

    /// Whether what is published on a channel has to wait behind what is here.
    pub(super) fn has(&self, channel: &ChannelName) -> bool {
        self.waiting.contains_key(channel)
    }

    /// Whether Redis is there and does not store what is here.
    pub(super) fn is_refused(&self) -> bool {
        self.taken != Taken::Yes
    }

    /// Takes a publication.
    pub(super) fn push(&mut self, spooled: Spooled, ticket: u64, why: Refused) {
        let channel = spooled.channel.clone();
        *self.waiting.entry(channel.clone()).or_default() += 1;
        self.count += 1;
        self.unwritten_bytes += spooled.item.bytes.len() + size_of::<(Spooled, Waiter)>();
        self.unwritten.push((spooled, Waiter { channel, ticket, why }));
    }

    /// What the disk is to do now; `up` says whether Redis is there.
    pub(super) fn next_order(&mut self, up: bool) -> Option<SpoolOrder> {
        if self.busy {
            return None;
        }
        let order = if !self.unwritten.is_empty() {
            self.unwritten_bytes = 0;
            let (records, writers) = std::mem::take(&mut self.unwritten).into_iter().unzip();
            self.writers = writers;
            SpoolOrder::Write(records)
        } else if !self.aside.is_empty() {
            SpoolOrder::SetAside(std::mem::take(&mut self.aside))
        } else if matches!(self.replay, Replay::Stored(_)) {
            SpoolOrder::Forget
        } else if up
            && matches!(self.replay, Replay::None)
            && !self.waiting.is_empty()
            && self.taken == Taken::Yes
        {
            self.replay = Replay::Reading;
            SpoolOrder::Read
        } else {
            return None;
        };
        self.busy = true;
        Some(order)
    }

    /// So many, the first, are written. Returns who has waited for that, and whether theirs is.
    pub(super) fn written(&mut self, count: usize) -> Vec<(Waiter, bool)> {
        self.busy = false;
        let mut waiters = Vec::new();
        for (place, waiter) in std::mem::take(&mut self.writers).into_iter().enumerate() {
            if place >= count {
                self.forget(&waiter.channel);
            }
            waiters.push((waiter, place < count));
        }
        waiters
    }

    /// Some was read. Returns whether that is nothing, so that nothing is there.
    pub(super) fn read(&mut self, records: Vec<Spooled>) -> bool {
        self.busy = false;
        if !matches!(self.replay, Replay::Reading) {
            return false;
        }
        self.replay = Replay::None;
        if records.is_empty() {
            // The rest could not be read, and was set aside.
            self.waiting.clear();
            for (Spooled { channel, .. }, _) in &self.unwritten {
                *self.waiting.entry(channel.clone()).or_default() += 1;
            }
            self.count = self.unwritten.len() as u64;
            return true;
        }
        let read = records.iter().map(|record| record.channel.clone()).collect();
        let mut left: BTreeMap<ChannelName, VecDeque<Append>> = BTreeMap::new();
        for Spooled { channel, instance, item } in records {
            let appends = left.entry(channel.clone()).or_default();
            match appends.back_mut() {
                Some(last)
                    if last.instance == instance
                        && last.items.len() < BATCH_ITEMS_MAX
                        && bytes_of(last) + item.bytes.len() <= BATCH_BYTES_MAX =>
                {
                    last.items.push(item);
                }
                _ => appends.push_back(Append { channel, instance, items: vec![item] }),
            }
        }
        self.replay = Replay::Appending { left, read };
        false
    }

    /// What Redis is to be asked anew: of each channel what is next, and the round that it belongs to.
    pub(super) fn begin_round(&mut self) -> (u64, Vec<Append>) {
        self.round += 1;
        let Replay::Appending { left, .. } = &self.replay else { return (self.round, Vec::new()) };
        (self.round, left.values().filter_map(|appends| appends.front().cloned()).collect())
    }

    /// What was under way of a channel is stored. Returns what is next.
    pub(super) fn stored(&mut self, round: u64, channel: &ChannelName) -> Option<Append> {
        let Replay::Appending { left, .. } = &mut self.replay else { return None };
        if round != self.round {
            return None;
        }
        if let Some(appends) = left.get_mut(channel) {
            appends.pop_front();
            if let Some(next) = appends.front() {
                return Some(next.clone());
            }
            left.remove(channel);
        }
        self.settle();
        None
    }

    /// Redis does not store it. It stays where it is, and is tried again in a moment.
    pub(super) fn refused(&mut self, round: u64) {
        if round == self.round && matches!(self.replay, Replay::Appending { .. }) {
            // All that is under way is asked for again.
            self.round += 1;
            self.taken = Taken::No;
        }
    }

    /// Redis never stores what a channel has: it goes out of the way of the others.
    pub(super) fn set_aside(&mut self, round: u64, channel: &ChannelName) {
        let Replay::Appending { left, .. } = &mut self.replay else { return };
        if round != self.round {
            return;
        }
        for Append { channel, instance, items } in left.remove(channel).into_iter().flatten() {
            let spooled = |item| Spooled { channel: channel.clone(), instance, item };
            self.aside.extend(items.into_iter().map(spooled));
        }
    }

    /// What was to be set aside is.
    pub(super) fn is_aside(&mut self) {
        self.busy = false;
        self.settle();
    }

    /// All that was read may be stored.
    fn settle(&mut self) {
        if let Replay::Appending { left, read } = &mut self.replay
            && left.is_empty()
            && self.aside.is_empty()
        {
            self.replay = Replay::Stored(std::mem::take(read));
        }
    }

    /// What was stored is gone from the disk. Returns the channels of which nothing is left there.
    pub(super) fn forgotten(&mut self) -> Vec<ChannelName> {
        self.busy = false;
        let Replay::Stored(stored) = std::mem::take(&mut self.replay) else { return Vec::new() };
        let mut gone = Vec::new();
        for channel in stored {
            if self.forget(&channel) {
                gone.push(channel);
            }
        }
        gone
    }

    /// One of a channel less. Returns whether it was the last.
    fn forget(&mut self, channel: &ChannelName) -> bool {
        let Some(count) = self.waiting.get_mut(channel) else { return false };
        *count -= 1;
        self.count -= 1;
        let is_last = *count == 0;
        if is_last {
            self.waiting.remove(channel);
        }
        is_last
    }

    /// Redis cannot be reached any more: what was under way is asked for again when it can.
    pub(super) fn lost(&mut self) {
        if matches!(self.replay, Replay::Reading) {
            self.replay = Replay::None;
        }
        self.taken = Taken::Yes;
    }

    /// Time has passed. Returns whether what Redis did not take is to be tried again.
    pub(super) fn tick(&mut self, now_ms: u64) -> bool {
        match self.taken {
            Taken::Yes => {}
            Taken::No => self.taken = Taken::NotSince(now_ms),
            Taken::NotSince(since) if now_ms.saturating_sub(since) >= REFUSED_PAUSE_MS => {
                self.taken = Taken::Yes;
                return true;
            }
            Taken::NotSince(_) => {}
        }
        false
    }
}

fn bytes_of(append: &Append) -> usize {
    append.items.iter().map(|item| item.bytes.len()).sum()
}
