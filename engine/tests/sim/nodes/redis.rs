//! What a Redis does for the nodes, as `bridge::command` says it, and what may become of it: it stalls, restarts with
//! what it had, with less, or with nothing.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use bytes::{BufMut as _, Bytes, BytesMut};
use ringfeed_engine::bridge::item;
use ringfeed_engine::bridge::{Append, Command, Failed, Item, Read, Reply, To};
use ringfeed_engine::message::{Followed, Kept as KeptForAll, KeyDigest, Numbered};
use ringfeed_protocol::{ChannelName, Epoch, Offset, Position};

use super::super::dice::Dice;
use super::truth::Truth;

/// Earlier lives of a channel that are remembered.
const LINEAGE_MAX: usize = 16;
/// Entries in one answer.
const ENTRIES_MAX: usize = 8;
/// Of what is kept for all nodes, in one answer.
const KEPT_MAX: usize = 3;

/// A channel as Redis has it.
#[derive(Debug, Clone)]
struct Kept {
    epoch: Epoch,
    offset: u64,
    /// In which life of Redis it was written last.
    life: u64,
    lineage: Vec<(Epoch, Offset)>,
    stream: BTreeMap<u64, Bytes>,
    /// Of each instance: the number of its last publication, and what it was answered.
    instances: HashMap<u64, (u64, Answer)>,
    /// Where publications with idempotency keys stand.
    keyed: HashMap<KeyDigest, Position>,
}

/// Epoch, offset of the last publication, and those that were there before.
type Answer = (Epoch, Offset, Vec<(u32, Position)>);

/// What reaches a node over its subscription.
#[derive(Debug)]
pub(super) enum Heard {
    Subscribed(ChannelName),
    Message(ChannelName, Bytes),
    Shared(ChannelName, Bytes),
    Beat(Bytes),
    Errand(Bytes),
    Answer(Bytes),
    /// On a channel, as what is published there.
    Roll(ChannelName, Bytes),
}

/// The process that said this, as it is written there: version, process, number.
pub(super) fn instance(said: &[u8]) -> Option<&[u8]> {
    said.get(1..9)
}

/// The connections of one node.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    /// Of its process.
    instance: u64,
    pub(super) connected: bool,
    /// On their way to Redis: what is asked of it, and subscriptions.
    pub(super) asked: VecDeque<(u64, Command)>,
    pub(super) subscribes: VecDeque<Command>,
    /// On their way back.
    pub(super) answers: VecDeque<(u64, Result<Reply, Failed>)>,
    pub(super) heard: VecDeque<Heard>,
    subscribed: HashSet<ChannelName>,
}

impl Pipe {
    /// Of a process that is not connected yet.
    pub(super) fn new(instance: u64) -> Pipe {
        Pipe { instance, ..Pipe::default() }
    }

    /// Takes what the bridge wants of Redis.
    pub(super) fn take(&mut self, commands: impl Iterator<Item = (u64, Command)>) {
        for (number, command) in commands {
            match command {
                Command::Subscribe(_) | Command::Unsubscribe(_) => {
                    self.subscribes.push_back(command);
                }
                command => self.asked.push_back((number, command)),
            }
        }
    }

    /// Everything under way is lost.
    pub(super) fn cut(&mut self) {
        *self = Pipe::new(self.instance);
    }
}

/// Passes a message on to those for whom it is; returns how many hear it.
fn pass_on(pipes: &mut [&mut Pipe], to: &To, bytes: &Bytes) -> usize {
    let mut count = 0;
    for pipe in pipes.iter_mut().filter(|pipe| pipe.connected) {
        let bytes = bytes.clone();
        let heard = match to {
            To::Beats => Heard::Beat(bytes),
            To::Errands => Heard::Errand(bytes),
            To::Process(instance) if *instance == pipe.instance => Heard::Answer(bytes),
            To::Followers(channel) if pipe.subscribed.contains(channel) => {
                Heard::Roll(channel.clone(), bytes)
            }
            To::Sharers(channel) => Heard::Roll(channel.clone(), bytes),
            To::Process(_) | To::Followers(_) => continue,
        };
        pipe.heard.push_back(heard);
        count += 1;
    }
    count
}

/// See the module's description.
pub(super) struct Redis {
    channels: HashMap<ChannelName, Kept>,
    life: u64,
    snapshot: HashMap<ChannelName, Kept>,
    history_size: usize,
    /// What all nodes are to know: of each room one word.
    for_all: Vec<KeptForAll>,
    for_all_snapshot: Vec<KeptForAll>,
    /// It takes nothing for so many commands.
    full: u32,
    dice: Dice,
}

impl Redis {
    pub(super) fn new(history_size: usize, dice: Dice) -> Redis {
        let (channels, snapshot) = (HashMap::new(), HashMap::new());
        let (for_all, for_all_snapshot) = (Vec::new(), Vec::new());
        let (life, full) = (0, 0);
        Redis { channels, life, snapshot, history_size, for_all, for_all_snapshot, full, dice }
    }

    /// What it would come back with as a copy that is older.
    pub(super) fn save(&mut self) {
        self.snapshot = self.channels.clone();
        self.for_all_snapshot = self.for_all.clone();
    }

    /// It ends, and another one takes its place: with what it had, with what the copy has, or with nothing.
    pub(super) fn restart(&mut self, keeps: Keeps) {
        self.life += 1;
        match keeps {
            Keeps::All => {}
            Keeps::Copy => {
                self.channels = self.snapshot.clone();
                self.for_all = self.for_all_snapshot.clone();
            }
            Keeps::Nothing => self.flush(),
        }
    }

    /// Everything in it is deleted.
    pub(super) fn flush(&mut self) {
        self.channels.clear();
        self.for_all.clear();
    }

    /// It is full, or not any more.
    pub(super) fn fill(&mut self, commands: u32) {
        self.full = commands;
    }

    /// Does the next command of a node.
    pub(super) fn serve(&mut self, node: usize, pipes: &mut [&mut Pipe], truth: &mut Truth) {
        let Some((number, command)) = pipes[node].asked.pop_front() else { return };
        match command {
            Command::Append(_) if self.full > 0 => {
                self.full -= 1;
                pipes[node].answers.push_back((number, Err(Failed::Refused)));
            }
            Command::Append(append) => {
                let ((epoch, last, duplicates), message) = self.append(&append, truth);
                if let Some(message) = message {
                    let listening =
                        pipes.iter_mut().filter(|pipe| pipe.subscribed.contains(&append.channel));
                    for pipe in listening {
                        let heard = Heard::Message(append.channel.clone(), message.clone());
                        pipe.heard.push_back(heard);
                    }
                }
                let appended = Reply::Appended { epoch, last, duplicates };
                pipes[node].answers.push_back((number, Ok(appended)));
            }
            Command::Read(read) => {
                let followed = self.read(&read, truth);
                pipes[node].answers.push_back((number, Ok(Reply::Read(followed))));
            }
            Command::Message(to, bytes) => {
                let heard = pass_on(pipes, &to, &bytes);
                pipes[node].answers.push_back((number, Ok(Reply::HeardBy(heard))));
            }
            Command::Share { channel, bytes } => {
                for pipe in pipes.iter_mut().filter(|pipe| pipe.connected) {
                    pipe.heard.push_back(Heard::Shared(channel.clone(), bytes.clone()));
                }
            }
            Command::Keep { kept, errand } => {
                self.keep(kept);
                let heard = pass_on(pipes, &To::Errands, &errand);
                pipes[node].answers.push_back((number, Ok(Reply::HeardBy(heard))));
            }
            Command::AllKept { from } => {
                let all = self.for_all.iter().skip(from as usize);
                let found: Vec<KeptForAll> = all.take(KEPT_MAX).cloned().collect();
                let next = from + KEPT_MAX as u64;
                let next = Some(next).filter(|next| (*next as usize) < self.for_all.len());
                pipes[node].answers.push_back((number, Ok(Reply::Kept(found, next))));
            }
            Command::Subscribe(_) | Command::Unsubscribe(_) => unreachable!("these go another way"),
        }
    }

    /// Of a room the later word counts, in its place.
    fn keep(&mut self, kept: KeptForAll) {
        let KeptForAll::Room(word) = &kept else { return self.for_all.push(kept) };
        let about = |own: &&mut KeptForAll| match own {
            KeptForAll::Room(own) => own.channel == word.channel,
            KeptForAll::Revoked(_) => false,
        };
        match self.for_all.iter_mut().find(about) {
            Some(KeptForAll::Room(own)) if own.version >= word.version => {}
            Some(own) => *own = kept,
            None => self.for_all.push(kept),
        }
    }

    /// Does the next of what a node says on its subscription.
    pub(super) fn subscribe(&mut self, pipe: &mut Pipe) {
        match pipe.subscribes.pop_front() {
            Some(Command::Subscribe(channels)) => {
                for channel in channels {
                    pipe.subscribed.insert(channel.clone());
                    pipe.heard.push_back(Heard::Subscribed(channel));
                }
            }
            Some(Command::Unsubscribe(channel)) => drop(pipe.subscribed.remove(&channel)),
            _ => {}
        }
    }

    /// The channel, in the life that it has by now.
    fn open(&mut self, name: &ChannelName, seen: Option<Position>, truth: &mut Truth) -> &mut Kept {
        let (fresh, life) = (Epoch(self.dice.number()), self.life);
        let kept = self.channels.entry(name.clone()).or_insert_with(|| {
            truth.begin(name, fresh.0, None);
            let (lineage, stream) = (Vec::new(), BTreeMap::new());
            let (instances, keyed) = (HashMap::new(), HashMap::new());
            Kept { epoch: fresh, offset: 0, life, lineage, stream, instances, keyed }
        });
        let ahead =
            seen.is_some_and(|seen| seen.epoch == kept.epoch && seen.offset.0 > kept.offset);
        if kept.life != life || ahead {
            // It may have lost what others have seen.
            kept.lineage.insert(0, (kept.epoch, Offset(kept.offset)));
            kept.lineage.truncate(LINEAGE_MAX);
            truth.begin(name, fresh.0, Some((kept.epoch.0, kept.offset)));
            (kept.epoch, kept.life) = (fresh, life);
        }
        kept
    }

    fn append(&mut self, append: &Append, truth: &mut Truth) -> (Answer, Option<Bytes>) {
        let Append { channel, instance, items } = append;
        let most = self.history_size;
        let newest = items.last().expect("there is something to append").number;
        let kept = self.open(channel, None, truth);
        let done = kept.instances.get(instance);
        let after = match done {
            Some((number, answer)) if *number >= newest => return (answer.clone(), None),
            done => done.map(|(number, _)| *number),
        };
        let mut duplicates = Vec::new();
        let mut message = BytesMut::new();
        message.put_u8(1);
        message.put_u64(kept.epoch.0);
        message.put_u64(kept.offset + 1);
        for (place, Item { number, bytes: item, key }) in (0..).zip(items) {
            if after.is_some_and(|after| *number <= after) {
                continue;
            }
            if let Some(known) = key.and_then(|key| kept.keyed.get(&key)) {
                duplicates.push((place, *known));
                continue;
            }
            kept.offset += 1;
            if let Some(key) = key {
                let position = Position { epoch: kept.epoch, offset: Offset(kept.offset) };
                kept.keyed.insert(*key, position);
            }
            truth.append(channel, kept.epoch.0, kept.offset, item);
            message.put_u32(item.len() as u32);
            message.put_slice(item);
            kept.stream.insert(kept.offset, item.clone());
            while kept.stream.len() > most {
                kept.stream.pop_first();
            }
        }
        truth.keep_from(channel, kept.stream.keys().next().map_or(kept.offset + 1, |first| *first));
        let is_any = message.len() > 1 + 8 + 8;
        let answer = (kept.epoch, Offset(kept.offset), duplicates);
        kept.instances.insert(*instance, (newest, answer.clone()));
        (answer, is_any.then(|| message.freeze()))
    }

    fn read(&mut self, Read { channel, since }: &Read, truth: &mut Truth) -> Followed {
        let kept = self.open(channel, *since, truth);
        let position = Position { epoch: kept.epoch, offset: Offset(kept.offset) };
        let lineage = kept.lineage.clone();
        let mut followed = Followed { position, lineage, publications: Vec::new() };
        let all = kept.lineage.is_empty() && kept.stream.contains_key(&1);
        let behind = since.and_then(|since| match followed.shared_with(since.epoch) {
            Some(shared) => Some(since.offset.min(shared).0),
            None => all.then_some(0),
        });
        if let Some(behind) = behind {
            let entries = kept.stream.range(behind + 1..).take(ENTRIES_MAX);
            followed.publications = entries
                .map(|(&offset, item)| {
                    let publication = item::decode(item).expect("what was encoded");
                    Numbered { offset: Offset(offset), age_ms: 0, publication }
                })
                .collect();
        }
        followed
    }
}

/// What a restart keeps.
#[derive(Debug, Clone, Copy)]
pub(super) enum Keeps {
    All,
    Copy,
    Nothing,
}
