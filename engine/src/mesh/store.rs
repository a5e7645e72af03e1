//! What the keeper of a channel keeps of it: it gives publications their offsets, remembers them as long as the channel's rule
//! says, and knows which nodes follow. It does for the other nodes what Redis would ([`crate::bridge::Command`]).
//!
//! All of it is gone with the process: what begins then is another life of the channel, with another epoch. Where another node
//! becomes the keeper while this one lives, it is handed over ([`super::transfer`]).

use std::collections::{HashMap, VecDeque};

use bytes::{BufMut as _, Bytes, BytesMut};
use foldhash::fast::RandomState;
use indexmap::IndexMap;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::{ChannelName, Offset, Position};
use smallvec::SmallVec;

use crate::bridge::{Append, Keep, Read};
use crate::message::KeyDigest;
use crate::registry::views::Instance;

/// Publications in one answer …
const ENTRIES_MAX: usize = 512;
/// … and bytes of them, or one.
const BYTES_MAX: usize = 256 * 1024;
/// What a node has appended last is remembered for so long: much longer than a command is given again.
const DONE_MS: u64 = 3_600_000;
/// Idempotency keys that a channel remembers.
const KEYS_MAX: usize = 65_536;
/// Channels that are looked through in one look for what is over.
const SWEPT_AT_ONCE: usize = 4096;

/// A publication in the history.
#[derive(Debug, Clone)]
struct Entry {
    at_ms: u64,
    bytes: Bytes,
}

/// What a node has appended last.
#[derive(Debug, Clone)]
struct Done {
    by: u64,
    number: u64,
    at_ms: u64,
    answer: Appended,
}

/// What has come of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The life of the channel.
    pub epoch: Epoch,
    /// Offset of the last publication.
    pub last: Offset,
    /// Those that were there before: their places among what was asked for, and where they stand.
    pub duplicates: Vec<(u32, Position)>,
}

/// Where a channel stands, and what came behind a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stands {
    /// The newest position.
    pub position: Position,
    /// Offset, age in milliseconds and item of what came behind, without holes.
    pub entries: Vec<(Offset, u64, Bytes)>,
}

/// A channel that is kept.
#[derive(Debug)]
pub(super) struct Kept {
    epoch: Epoch,
    offset: u64,
    /// The newest, up to `offset`, without holes.
    history: VecDeque<Entry>,
    bytes: usize,
    done: SmallVec<[Done; 1]>,
    keyed: Option<Box<Keyed>>,
    followers: SmallVec<[Instance; 4]>,
    used_ms: u64,
}

/// What is handed over of a channel, behind its history. Ages are in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// Which life of the channel it is, …
    pub epoch: Epoch,
    /// … and its last offset.
    pub offset: Offset,
    /// Of processes, what they have appended last, and the age of that.
    pub done: Vec<(u64, u64, u64, Appended)>,
    /// Idempotency keys, where they stand, and their age, the oldest first.
    pub keys: Vec<(KeyDigest, Position, u64)>,
}

impl Life {
    /// What it takes, nearly.
    pub(super) fn bytes(&self) -> usize {
        self.keys.len() * size_of::<(KeyDigest, Position, u64)>()
            + self.done.len() * size_of::<(u64, u64, u64, Appended)>()
    }
}

/// Where publications with idempotency keys stand, and in which order these are forgotten.
#[derive(Debug, Default)]
struct Keyed {
    places: HashMap<KeyDigest, Position>,
    order: VecDeque<(u64, KeyDigest)>,
}

impl Keyed {
    fn forget(&mut self, now_ms: u64, keys_ms: u32) {
        while let Some((at_ms, key)) = self.order.front()
            && (self.places.len() > KEYS_MAX || at_ms + u64::from(keys_ms) <= now_ms)
        {
            self.places.remove(key);
            self.order.pop_front();
        }
    }
}

/// What was done to a channel, for who watches.
#[derive(Debug, Clone)]
pub enum Event {
    /// A life begins.
    Began(ChannelName, Epoch),
    /// A publication was appended.
    Appended(ChannelName, Position, Bytes),
    /// What is before this offset is not remembered any more.
    KeptFrom(ChannelName, u64),
    /// A life goes on behind this, which another node has kept; what is remembered begins with this offset.
    TakenOver(ChannelName, Position, u64),
}

/// See the module's description.
#[derive(Debug)]
pub struct Store {
    /// Where epochs come from.
    dice: StdRng,
    /// Whatever looks through all of them does so in an order that a run repeats.
    channels: IndexMap<ChannelName, Kept, RandomState>,
    bytes: usize,
    /// So many of them, from the first one on, are still to be looked through for what is over.
    unswept: usize,
    swept_ms: u64,
    /// What has happened, where somebody watches.
    events: Option<Vec<Event>>,
}

impl Store {
    /// An empty one; the seed is another one in each process.
    pub(super) fn new(seed: u64) -> Store {
        Store {
            dice: StdRng::seed_from_u64(seed),
            channels: IndexMap::default(),
            bytes: 0,
            unswept: 0,
            swept_ms: 0,
            events: None,
        }
    }

    /// Remembers what is done from now on, for [`Store::take_events`].
    pub fn watch(&mut self) {
        self.events = Some(Vec::new());
    }

    /// What was done since the last time.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn event(&mut self, event: impl FnOnce() -> Event) {
        if let Some(events) = &mut self.events {
            events.push(event());
        }
    }

    /// Channels that are kept.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Bytes of publications in their histories.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a channel is kept already.
    pub fn has(&self, channel: &ChannelName) -> bool {
        self.channels.contains_key(channel)
    }

    /// Gives away all channels but those of which this says so, and forgets who follows.
    pub(super) fn keep_only(
        &mut self,
        keeps: impl Fn(&ChannelName) -> bool,
    ) -> Vec<(ChannelName, Kept)> {
        self.channels.values_mut().for_each(|kept| kept.followers.clear());
        let others: Vec<_> = self.channels.extract_if(.., |name, _| !keeps(name)).collect();
        self.bytes -= others.iter().map(|(_, kept)| kept.bytes).sum::<usize>();
        others
    }

    /// Goes on with a channel that another node has kept, unless it is kept here, and says whether it does; of all channels together
    /// so many bytes are remembered at most.
    pub(super) fn take_over(
        &mut self,
        channel: ChannelName,
        mut kept: Kept,
        (keep, bytes_max): (Keep, usize),
        now_ms: u64,
    ) -> bool {
        if self.has(&channel) {
            return false;
        }
        kept.trim(keep, now_ms);
        kept.shed((self.bytes + kept.bytes).saturating_sub(bytes_max));
        let from = kept.first();
        let position = Position { epoch: kept.epoch, offset: Offset(kept.offset) };
        self.event(|| Event::TakenOver(channel.clone(), position, from));
        self.bytes += kept.bytes;
        self.channels.insert(channel, kept);
        true
    }

    /// A node follows a channel.
    pub fn follow(&mut self, channel: &ChannelName, who: Instance, now_ms: u64) {
        let kept = self.open(channel, now_ms);
        if !kept.followers.contains(&who) {
            kept.followers.push(who);
        }
    }

    /// It does so no more.
    pub fn unfollow(&mut self, channel: &ChannelName, who: Instance, now_ms: u64) {
        if let Some(kept) = self.channels.get_mut(channel)
            && kept.followers.contains(&who)
        {
            kept.followers.retain(|own| *own != who);
            // It is remembered for as long from now on as if it had been published to.
            kept.used_ms = now_ms;
        }
    }

    /// A node follows nothing any more.
    pub fn forget_follower(&mut self, who: Instance) {
        self.channels.values_mut().for_each(|kept| kept.followers.retain(|own| *own != who));
    }

    /// The nodes that follow a channel.
    pub fn followers(&self, channel: &ChannelName) -> SmallVec<[Instance; 4]> {
        self.channels.get(channel).map(|kept| kept.followers.clone()).unwrap_or_default()
    }

    fn open(&mut self, channel: &ChannelName, now_ms: u64) -> &mut Kept {
        if !self.channels.contains_key(channel) {
            let epoch = Epoch(self.dice.random());
            self.event(|| Event::Began(channel.clone(), epoch));
            let kept = Kept {
                epoch,
                offset: 0,
                history: VecDeque::new(),
                bytes: 0,
                done: SmallVec::new(),
                keyed: None,
                followers: SmallVec::new(),
                used_ms: now_ms,
            };
            self.channels.insert(channel.clone(), kept);
        }
        let kept = self.channels.get_mut(channel).expect("it was put there");
        kept.used_ms = now_ms;
        kept
    }

    /// Appends what was not appended before; of all channels together so many bytes are remembered at most. Gives what has come of it, and the message for those who follow, if there is
    /// anything new.
    pub fn append(
        &mut self,
        append: &Append,
        (keep, bytes_max): (Keep, usize),
        now_ms: u64,
    ) -> (Appended, Option<Bytes>) {
        let Append { channel, instance, items } = append;
        let newest = items.last().map_or(0, |item| item.number);
        let (watched, all_bytes) = (self.events.is_some(), self.bytes);
        let mut events = Vec::new();
        let kept = self.open(channel, now_ms);
        let done = kept.done.iter().find(|done| done.by == *instance);
        let after = match done {
            Some(done) if done.number >= newest => return (done.answer.clone(), None),
            done => done.map(|done| done.number),
        };
        let mut duplicates = Vec::new();
        let bytes = items.iter().map(|item| 4 + item.bytes.len()).sum::<usize>();
        let mut message = BytesMut::with_capacity(1 + 8 + 8 + bytes);
        message.put_u8(1);
        message.put_u64(kept.epoch.0);
        message.put_u64(kept.offset + 1);
        let (before, mut added) = (kept.offset, 0);
        for (place, item) in (0..).zip(items) {
            if after.is_some_and(|after| item.number <= after) {
                continue;
            }
            let keyed = kept.keyed.as_ref();
            if let Some(known) = item.key.and_then(|key| keyed?.places.get(&key)) {
                duplicates.push((place, *known));
                continue;
            }
            kept.offset += 1;
            let position = Position { epoch: kept.epoch, offset: Offset(kept.offset) };
            if let Some(key) = item.key {
                let keyed = kept.keyed.get_or_insert_default();
                keyed.places.insert(key, position);
                keyed.order.push_back((now_ms, key));
            }
            message.put_u32(u32::try_from(item.bytes.len()).unwrap_or(u32::MAX));
            message.put_slice(&item.bytes);
            if watched {
                events.push(Event::Appended(channel.clone(), position, item.bytes.clone()));
            }
            if keep.size > 0 {
                added += item.bytes.len();
                // What it came with, much of it other channels', is not to stay for its sake.
                let bytes = Bytes::copy_from_slice(&item.bytes);
                kept.history.push_back(Entry { at_ms: now_ms, bytes });
            }
        }
        kept.bytes += added;
        let mut freed = kept.trim(keep, now_ms);
        // Who publishes gives up its own.
        freed += kept.shed((all_bytes + added - freed).saturating_sub(bytes_max));
        if let Some(keyed) = &mut kept.keyed {
            keyed.forget(now_ms, keep.keys_ms);
        }
        if watched {
            events.push(Event::KeptFrom(channel.clone(), kept.first()));
        }
        let is_any = kept.offset > before;
        let answer = Appended { epoch: kept.epoch, last: Offset(kept.offset), duplicates };
        let done = Done { by: *instance, number: newest, at_ms: now_ms, answer: answer.clone() };
        match kept.done.iter_mut().find(|own| own.by == *instance) {
            Some(own) => *own = done,
            None => kept.done.push(done),
        }
        self.bytes = self.bytes + added - freed;
        if let Some(all) = &mut self.events {
            all.extend(events);
        }
        (answer, is_any.then(|| message.freeze()))
    }

    /// Says where a channel stands.
    pub fn read(&mut self, Read { channel, since }: &Read, keep: Keep, now_ms: u64) -> Stands {
        let kept = self.open(channel, now_ms);
        let freed = kept.trim(keep, now_ms);
        let position = Position { epoch: kept.epoch, offset: Offset(kept.offset) };
        let first = kept.first();
        let mut entries = Vec::new();
        // Whoever knows another life is told all of this one, if that is there from its beginning on.
        let behind = since.and_then(|since| match since.epoch == kept.epoch {
            true => Some(since.offset.next().0),
            false => (first == 1).then_some(1),
        });
        if let Some(behind) = behind {
            let from = behind.max(first);
            let skipped = usize::try_from(from - first).unwrap_or(usize::MAX);
            let told = told_at_once(kept.history.iter().skip(skipped));
            for (offset, entry) in (from..).zip(kept.history.iter().skip(skipped).take(told)) {
                let age_ms = now_ms.saturating_sub(entry.at_ms);
                entries.push((Offset(offset), age_ms, entry.bytes.clone()));
            }
        }
        self.bytes -= freed;
        Stands { position, entries }
    }

    /// Forgets some of what is over; `keep` says by which rule a channel is kept, `follows` of nobody that it is to be forgotten.
    pub fn sweep(&mut self, keep: impl Fn(&str) -> Keep, now_ms: u64) {
        if self.unswept == 0 {
            if now_ms.saturating_sub(self.swept_ms) < 60_000 {
                return;
            }
            self.swept_ms = now_ms;
            self.unswept = self.channels.len();
        }
        let from = self.unswept.saturating_sub(SWEPT_AT_ONCE);
        // From the last one on: what takes the place of one that is forgotten has been looked at.
        for at in (from..std::mem::replace(&mut self.unswept, from)).rev() {
            let Some((name, kept)) = self.channels.get_index_mut(at) else { continue };
            let keep = keep(name);
            self.bytes -= kept.trim(keep, now_ms);
            kept.done.retain(|done| now_ms.saturating_sub(done.at_ms) < DONE_MS);
            if let Some(keyed) = &mut kept.keyed {
                keyed.forget(now_ms, keep.keys_ms);
            }
            let keys = kept.keyed.as_ref().is_some_and(|keyed| !keyed.places.is_empty());
            let idle = now_ms.saturating_sub(kept.used_ms) >= keep.idle_ms;
            // Of one to which nothing was ever published there is nothing to remember.
            let idle = idle || kept.offset == 0;
            if idle && kept.followers.is_empty() && kept.done.is_empty() && !keys {
                self.bytes -= kept.bytes;
                self.channels.swap_remove_index(at);
            }
        }
    }
}

impl Kept {
    /// Gives away some of the oldest publications, with their ages; nothing where there are none.
    pub(super) fn take_oldest(&mut self, now_ms: u64) -> Option<Vec<(u64, Bytes)>> {
        let oldest = self.history.drain(..told_at_once(self.history.iter()));
        let oldest = oldest.map(|entry| (now_ms.saturating_sub(entry.at_ms), entry.bytes));
        Some(oldest.collect()).filter(|oldest: &Vec<_>| !oldest.is_empty())
    }

    /// What is to be known beside its history.
    pub(super) fn into_life(self, now_ms: u64) -> Life {
        let age_ms = |at_ms: u64| now_ms.saturating_sub(at_ms);
        let done = self.done.into_iter();
        let done = done.map(|own| (own.by, own.number, age_ms(own.at_ms), own.answer)).collect();
        let Keyed { places, order } = self.keyed.map(|keyed| *keyed).unwrap_or_default();
        let keys = order.into_iter();
        let keys = keys.filter_map(|(at, key)| Some((key, *places.get(&key)?, age_ms(at))));
        Life { epoch: self.epoch, offset: Offset(self.offset), done, keys: keys.collect() }
    }

    /// A channel that another node has kept, whose newest publications these are; nothing where there are more of them than there
    /// ever were.
    pub(super) fn of(life: Life, history: VecDeque<(u64, Bytes)>, now_ms: u64) -> Option<Kept> {
        let Life { epoch, offset: Offset(offset), done, keys } = life;
        // What comes next counts up from there.
        if history.len() as u64 > offset || offset > u64::MAX / 2 {
            return None;
        }
        let at_ms = |age_ms: u64| now_ms.saturating_sub(age_ms);
        let done = done.into_iter();
        let done =
            done.map(|(by, number, age, answer)| Done { by, number, at_ms: at_ms(age), answer });
        let keyed = (!keys.is_empty()).then(|| {
            let places = keys.iter().map(|(key, place, _)| (*key, *place)).collect();
            let order = keys.iter().map(|(key, _, age_ms)| (at_ms(*age_ms), *key)).collect();
            Box::new(Keyed { places, order })
        });
        let bytes = history.iter().map(|(_, bytes)| bytes.len()).sum();
        let history = history.into_iter();
        // What it came with, much of it other channels', is not to stay for its sake.
        let history = history.map(|(age_ms, bytes)| Entry {
            at_ms: at_ms(age_ms),
            bytes: Bytes::copy_from_slice(&bytes),
        });
        Some(Kept {
            epoch,
            offset,
            history: history.collect(),
            bytes,
            done: done.collect(),
            keyed,
            followers: SmallVec::new(),
            used_ms: now_ms,
        })
    }

    /// Offset of the oldest publication that is remembered; of the next one, where none is.
    fn first(&self) -> u64 {
        self.offset + 1 - self.history.len() as u64
    }

    /// Forgets the oldest publications until so many bytes are free, or there are none left; returns the bytes.
    fn shed(&mut self, bytes: usize) -> usize {
        let mut freed = 0;
        while freed < bytes
            && let Some(oldest) = self.history.pop_front()
        {
            freed += oldest.bytes.len();
        }
        self.bytes -= freed;
        freed
    }

    /// Forgets what is more than the rule says; returns the bytes.
    fn trim(&mut self, keep: Keep, now_ms: u64) -> usize {
        let mut freed = 0;
        while let Some(oldest) = self.history.front() {
            let old = keep.age_ms > 0 && oldest.at_ms + u64::from(keep.age_ms) <= now_ms;
            let many = self.history.len() > keep.size as usize;
            let large = keep.bytes > 0 && (self.bytes - freed) as u64 > keep.bytes;
            if !old && !many && !large {
                break;
            }
            freed += oldest.bytes.len();
            self.history.pop_front();
        }
        self.bytes -= freed;
        freed
    }
}

/// How many of these, the first one in any case, are told in one message.
fn told_at_once<'a>(entries: impl Iterator<Item = &'a Entry>) -> usize {
    let mut bytes = 0;
    let fits = |(count, entry): &(usize, &Entry)| {
        bytes += entry.bytes.len();
        *count == 0 || bytes <= BYTES_MAX
    };
    entries.take(ENTRIES_MAX).enumerate().take_while(fits).count()
}
