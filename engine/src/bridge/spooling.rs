//! Publications that wait on disk until Redis can be reached: which there are, and what is to be done with the disk next.
//!
//! While there are any of a channel, what is published on it waits behind them, so that it keeps its order. They are appended
//! under the numbers that they had: what Redis did append before its answer was lost it knows again.

use std::collections::{BTreeMap, HashMap, VecDeque};

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
    /// What was read last is not needed any more. Answered with [`SpoolDone::Forgotten`].
    Forget,
}

/// What was done.
#[derive(Debug)]
pub enum SpoolDone {
    /// So many, the first, are on the disk; the others are not.
    Written(usize),
    /// These are the oldest, none where there are none; `None` where they cannot be read.
    Read(Option<Vec<Spooled>>),
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
    /// It is being appended: of each channel what is left, the first of which is under way.
    Appending { left: HashMap<ChannelName, VecDeque<Append>>, read: Vec<ChannelName> },
    /// It is stored, and so many of these channels can go.
    Stored(Vec<ChannelName>),
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Spooling {
    /// Publications that are on the disk, or on their way there.
    waiting: BTreeMap<ChannelName, u32>,
    unwritten: Vec<(Spooled, Waiter)>,
    unwritten_bytes: usize,
    /// Of what is being written.
    writers: Vec<Waiter>,
    /// The disk has something to do.
    busy: bool,
    replay: Replay,
    /// So often was something read: answers of before mean nothing.
    round: u64,
    /// Redis has refused what has waited; since then, once that is known.
    refused: Option<Option<u64>>,
}

impl Spooling {
    /// Of what an earlier process has left.
    pub(super) fn new(waiting: BTreeMap<ChannelName, u32>) -> Spooling {
        Spooling {
            waiting,
            unwritten: Vec::new(),
            unwritten_bytes: 0,
            writers: Vec::new(),
            busy: false,
            replay: Replay::None,
            round: 0,
            refused: None,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.waiting.values().map(|&count| u64::from(count)).sum()
    }

    /// Bytes that are not given to the disk yet.
    pub(super) fn unwritten_bytes(&self) -> usize {
        self.unwritten_bytes
    }

    /// Whether nobody waits for the disk.
    pub(super) fn is_written(&self) -> bool {
        self.unwritten.is_empty() && self.writers.is_empty()
    }

    /// Whether what is published on a channel has to wait behind what is here.
    pub(super) fn has(&self, channel: &ChannelName) -> bool {
        self.waiting.contains_key(channel)
    }

    /// Whether Redis is there and does not store what is here.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// Takes a publication.
    pub(super) fn push(&mut self, spooled: Spooled, ticket: u64, why: Refused) {
        let channel = spooled.channel.clone();
        *self.waiting.entry(channel.clone()).or_default() += 1;
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
        } else if matches!(self.replay, Replay::Stored(_)) {
            SpoolOrder::Forget
        } else if up
            && matches!(self.replay, Replay::None)
            && !self.waiting.is_empty()
            && self.refused.is_none()
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

    /// Some was read. Returns what is to be appended first of each channel, and the round that it belongs to.
    pub(super) fn read(&mut self, records: Option<Vec<Spooled>>) -> (u64, Vec<Append>) {
        self.busy = false;
        if !matches!(self.replay, Replay::Reading) {
            return (self.round, Vec::new());
        }
        self.replay = Replay::None;
        let Some(records) = records else {
            self.refused = Some(None);
            return (self.round, Vec::new());
        };
        if records.is_empty() {
            // The rest could not be read, and was set aside.
            let unwritten = self.unwritten.iter().map(|(_, waiter)| waiter.channel.clone());
            let unwritten: Vec<ChannelName> = unwritten.collect();
            self.waiting.clear();
            for channel in unwritten {
                *self.waiting.entry(channel).or_default() += 1;
            }
        }
        self.round += 1;
        let read = records.iter().map(|record| record.channel.clone()).collect();
        let mut left: HashMap<ChannelName, VecDeque<Append>> = HashMap::new();
        let mut order = Vec::new();
        for Spooled { channel, instance, item } in records {
            let appends = left.entry(channel.clone()).or_insert_with(|| {
                order.push(channel.clone());
                VecDeque::new()
            });
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
        let first = order.iter().filter_map(|channel| left.get(channel)?.front().cloned());
        let first: Vec<Append> = first.collect();
        if !first.is_empty() {
            self.replay = Replay::Appending { left, read };
        }
        (self.round, first)
    }

    /// What was under way of a channel is stored. Returns what is next.
    pub(super) fn stored(&mut self, round: u64, channel: &ChannelName) -> Option<Append> {
        let Replay::Appending { left, read } = &mut self.replay else { return None };
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
        if left.is_empty() {
            self.replay = Replay::Stored(std::mem::take(read));
        }
        None
    }

    /// Redis does not store it. It stays where it is, and is tried again in a moment.
    pub(super) fn refused(&mut self, round: u64) {
        if round == self.round && matches!(self.replay, Replay::Appending { .. }) {
            (self.replay, self.refused) = (Replay::None, Some(None));
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
        let is_last = *count == 0;
        if is_last {
            self.waiting.remove(channel);
        }
        is_last
    }

    /// Redis cannot be reached any more: what was under way is read again.
    pub(super) fn lost(&mut self) {
        if !matches!(self.replay, Replay::Stored(_)) {
            self.replay = Replay::None;
        }
        self.refused = None;
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now_ms: u64) {
        match &mut self.refused {
            Some(Some(since)) if now_ms.saturating_sub(*since) >= REFUSED_PAUSE_MS => {
                self.refused = None;
            }
            Some(since @ None) => *since = Some(now_ms),
            _ => {}
        }
    }
}

fn bytes_of(append: &Append) -> usize {
    append.items.iter().map(|item| item.bytes.len()).sum()
}
