//! The bridge: what connects the shards of this node with Redis, which numbers channels for all nodes.
//!
//! It is sans-IO. Shards hand it what they want, whoever holds the connections tells it what Redis has said
//! ([`Bridge::answered`], [`Bridge::subscribed`], [`Bridge::message`]) and when they come and go; it says what to ask of
//! Redis ([`Bridge::take_commands`]) and what to tell the shards ([`Bridge::take_told`]). So the simulator drives the very same code
//! against a Redis that stalls, dies and comes back older.
//!
//! Of one channel there is one command under way at a time that appends, so that publications keep their order whatever
//! becomes of it: one whose answer never came is sent again as it was, under the number by which Redis knows it. What has
//! waited too long is kept on disk, if there is one for that (`spooling`).

pub mod command;
mod confirming;
mod connection;
mod disk;
mod errands;
mod figures;
mod foreign;
mod handover;
mod incoming;
pub mod item;
mod names;
mod nodes;
pub mod queue;
mod rolls;
mod script;
mod slots;
mod spool;
mod spooling;
mod thread;
mod told;
mod way;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use ringfeed_protocol::{ChannelName, Position, Refused};

use crate::message::{
    Confirming, ErrandId, FromUpstream, Missing, Outgoing, Post, Stored, ToUpstream,
};
use crate::revoked::RevokedTable;
use crate::rooms::RoomTable;
use crate::seldom::Seldom;
pub use command::{Append, Command, Failed, Item, Read, Reply, To};
use errands::Errands;
pub use figures::Figures;
pub(crate) use handover::Handover;
use nodes::{RESTORED, Unsaid};
pub use script::Keep;
use spooling::Spooling;
pub use spooling::{SpoolDone, SpoolOrder, Spooled};
pub use thread::BridgeThread;
pub use told::Told;
use way::Way;

/// Publications to other nodes, of channels that are not numbered, may wait in so many bytes while Redis is away; the
/// oldest are given up.
const SHARED_BYTES_MAX: usize = 8 << 20;

/// How often Redis is asked what it keeps for all nodes: who is revoked, and which rooms were made.
const LOOK_MS: u64 = 20_000;

/// Other processes that are remembered.
const HEARD_MAX: usize = 4096;

/// Who says nothing while so many beats of this process are heard is not there any more …
const SILENT_BEATS: u64 = 4;
/// … but not before so many were heard since it was connected: others may be connected later.
const BEATS_FIRST: u64 = 10;

/// Why something is not published, or is not known to be.
#[derive(Debug)]
struct Whys {
    away: &'static str,
    unknown: &'static str,
    not_stored: &'static str,
    behind: &'static str,
}

const BY_REDIS: Whys = Whys {
    away: "Redis cannot be reached, and this channel is numbered there",
    unknown: "Redis cannot be reached, and it is not known whether this was published",
    not_stored: "Redis does not store this",
    behind: "what waits on disk for Redis has to go before this, and there is no room for more",
};
const BY_NODES: Whys = Whys {
    away: "this node is cut off from the others, and this channel is numbered among them",
    unknown: "the node that keeps this channel does not answer, and it is not known whether this was published",
    not_stored: "the node that keeps this channel has no room for another one",
    behind: "what waits on disk has to go before this, and there is no room for more",
};

/// The same, of a cluster of Redis.
const MOVING: &str = "what keeps this channel in Redis is being moved to another server";

/// As an answer.
fn unavailable(detail: &'static str) -> Refused {
    Refused::Unavailable { detail }
}

/// One process, or all that have a channel.
fn whom(channel: &ChannelName, numbered: bool, to: Option<u64>) -> To {
    match to {
        Some(instance) => To::Process(instance),
        None if numbered => To::Followers(channel.clone()),
        None => To::Sharers(channel.clone()),
    }
}

/// How the bridge stands with Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    /// Since then, in milliseconds of the caller's clock.
    Down {
        since_ms: u64,
        given_up: bool,
    },
}

/// A command that awaits its answer.
#[derive(Debug)]
enum UnderWay {
    Append(ChannelName),
    /// Of what has waited on disk, with the round that it is of.
    Replay(ChannelName, u64),
    /// From where, and the number by which its home knows it.
    Read(ChannelName, Option<Position>, u32),
    /// The number of what all nodes are asked, or of what Redis is to keep and tell them.
    Errand(u64),
    Kept,
    /// Where it is asked who is there.
    Roll(ChannelName),
    /// Which channel is not here any more.
    Left(ChannelName),
    /// Where it is asked who was, when a publication came, and its number.
    Who(ChannelName, u64),
}

/// Another process.
#[derive(Debug, Clone, Copy)]
struct Alive {
    /// So many beats of this process had been heard when it was heard of last.
    at_beat: u64,
    /// That is so long ago that it counts as gone.
    gone: bool,
}

/// What numbers channels for all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbering {
    /// Redis.
    Redis,
    /// The nodes themselves ([`crate::mesh`]).
    Nodes,
}

/// The process that has a bridge.
#[derive(Debug)]
pub struct Process {
    /// Drawn at random.
    pub instance: u64,
    /// What numbers channels for all nodes.
    pub by: Numbering,
    /// How long what needs that waits for it.
    pub patience_ms: u64,
    /// Whom it has revoked, and others have.
    pub revoked: Arc<RevokedTable>,
    /// Rooms that were made over the API, here and elsewhere.
    pub rooms: Arc<RoomTable>,
}

/// See the module's description.
#[derive(Debug)]
pub struct Bridge {
    by: Numbering,
    state: State,
    patience_ms: u64,
    now_ms: u64,
    /// Who this is to Redis: of all processes that ever were, this one.
    instance: u64,
    /// In an order that a simulation repeats.
    ways: BTreeMap<ChannelName, Way>,
    under_way: HashMap<u64, UnderWay>,
    next_command: u64,
    next_item: u64,
    commands: VecDeque<(u64, Command)>,
    told: Vec<Told>,
    /// Where there is a disk for what has to wait for Redis.
    spooling: Option<Spooling>,
    /// What other nodes are to publish, too, and waits for Redis.
    shared: VecDeque<(ChannelName, Bytes)>,
    shared_bytes: usize,
    /// So many publications ever were for other nodes, …
    shares: u64,
    /// … and of so many of each other process something was heard.
    heard: HashMap<u64, u64>,
    /// Other processes that say anything at all.
    alive: BTreeMap<u64, Alive>,
    /// Of this process, all that were heard, and those before the connection that there is.
    beats: u64,
    beats_before: u64,
    errands: Errands,
    revoked: Arc<RevokedTable>,
    rooms: Arc<RoomTable>,
    /// There is no room for more of either.
    not_kept: Seldom,
    /// Channels that have ended here, of which nobody is known to have been told.
    unsaid: BTreeMap<ChannelName, Unsaid>,
    /// Redis was looked into so often for those whom it keeps, …
    looks: u64,
    /// … the next time then; `None` while that goes on.
    look_ms: Option<u64>,
    /// Redis could be reached before, …
    was_up: bool,
    /// … and then could not.
    was_lost: bool,
    /// Of those so many were given up.
    shared_lost: u64,
}

impl Bridge {
    /// A bridge that is not connected yet.
    pub fn new(process: Process, now_ms: u64) -> Bridge {
        let Process { instance, by, patience_ms, revoked, rooms } = process;
        Bridge {
            by,
            state: State::Down { since_ms: now_ms, given_up: false },
            patience_ms,
            now_ms,
            instance,
            ways: BTreeMap::new(),
            under_way: HashMap::new(),
            next_command: 0,
            next_item: 0,
            commands: VecDeque::new(),
            told: Vec::new(),
            spooling: None,
            shared: VecDeque::new(),
            shared_bytes: 0,
            shares: 0,
            heard: HashMap::new(),
            alive: BTreeMap::new(),
            beats: 0,
            beats_before: 0,
            errands: Errands::default(),
            revoked,
            rooms,
            not_kept: Seldom::default(),
            unsaid: BTreeMap::new(),
            looks: 0,
            look_ms: None,
            was_up: false,
            was_lost: false,
            shared_lost: 0,
        }
    }

    fn whys(&self) -> &'static Whys {
        match self.by {
            Numbering::Redis => &BY_REDIS,
            Numbering::Nodes => &BY_NODES,
        }
    }

    /// What Redis is to be asked, in order, each with the number under which it is answered.
    pub fn take_commands(&mut self) -> impl Iterator<Item = (u64, Command)> + '_ {
        self.commands.drain(..)
    }

    /// What the shards are to be told, in order.
    pub fn take_told(&mut self) -> Vec<Told> {
        let gathered = self.errands.take_done().into_iter();
        self.told.extend(gathered.map(|(asker, gathered)| Told::Gathered(asker, gathered)));
        std::mem::take(&mut self.told)
    }

    /// Whether Redis is there.
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Publications to other nodes that were given up because Redis was away for too long.
    pub fn shared_lost(&self) -> u64 {
        self.shared_lost
    }

    /// A shard wants something.
    pub fn wanted(&mut self, what: ToUpstream) {
        match what {
            ToUpstream::Follow { channel, since, ask } => {
                if self.has_given_up() {
                    self.told.push(Told::Home(channel.clone(), FromUpstream::Away));
                    // Once Redis is there it is followed nevertheless.
                    self.ways.entry(channel).or_default().followed = true;
                    return;
                }
                let up = self.is_up();
                let way = self.ways.entry(channel.clone()).or_default();
                // A home goes by the answer to its last question alone.
                way.asked = ask;
                way.reads = vec![(since, ask)];
                if !way.followed || !way.subscribing() {
                    way.followed = true;
                    if up {
                        way.subscribe();
                        self.command(Command::Subscribe(vec![channel]));
                        return;
                    }
                }
                self.read(&channel);
            }
            ToUpstream::Unfollow { channel } => {
                let up = self.is_up();
                let Some(way) = self.ways.get_mut(&channel) else { return };
                let subscribing = way.unfollow();
                if way.is_idle() {
                    self.ways.remove(&channel);
                }
                if up && subscribing {
                    self.command(Command::Unsubscribe(channel));
                }
            }
            ToUpstream::Publish { channel, ticket, mut publication, key } => {
                self.sign(&mut publication);
                let number = self.next_item;
                self.next_item += 1;
                let item = Item { number, bytes: item::encode(&publication), key };
                if self.has_given_up() {
                    return self.spool(&channel, (ticket, item), unavailable(self.whys().away));
                }
                if self.is_refused(&channel) {
                    return self.spool(
                        &channel,
                        (ticket, item),
                        unavailable(self.whys().not_stored),
                    );
                }
                self.ways.entry(channel.clone()).or_default().push(ticket, item);
                self.append(&channel);
            }
            ToUpstream::Share { channel, mut publication } => {
                self.sign(&mut publication);
                self.shares += 1;
                let shared = item::encode_shared(self.instance, self.shares, &publication);
                self.shared_bytes += shared.len();
                self.shared.push_back((channel, shared));
                self.share();
            }
            ToUpstream::Roll { channel, numbered, to: None, roll } if !roll.has_it => {
                self.leave(channel, numbered);
            }
            ToUpstream::Roll { channel, numbered, to, roll } => {
                if to.is_none() {
                    self.unsaid.remove(&channel);
                }
                if self.is_up() {
                    let bytes = rolls::encode(self.instance, &channel, &roll);
                    let command = self.send(whom(&channel, numbered, to), bytes);
                    if roll.asks && to.is_none() {
                        self.under_way.insert(command, UnderWay::Roll(channel));
                    }
                }
            }
            ToUpstream::Confirming { channel, to, what, .. } if to == Some(self.instance) => {
                let from = self.instance;
                self.told.push(Told::Home(channel, FromUpstream::Confirming { from, what }));
            }
            ToUpstream::Confirming { channel, numbered, to, what } => {
                if self.is_up() {
                    let bytes = confirming::encode(self.instance, &channel, &what);
                    let command = self.send(whom(&channel, numbered, to), bytes);
                    if let Confirming::Who { number } = what {
                        self.under_way.insert(command, UnderWay::Who(channel, number));
                    }
                }
            }
            ToUpstream::Errand { from, ticket, errand } => self.ask_nodes((from, ticket), errand),
            ToUpstream::Room(word) => self.say_room(word),
            ToUpstream::Outcome { of: ErrandId { instance, number }, outcome } => {
                if self.is_up() && number != RESTORED {
                    let bytes = errands::encode_answer(self.instance, number, &outcome);
                    self.send(To::Process(instance), bytes);
                }
            }
        }
    }

    /// Says that it is here where it is waited for who has got a publication.
    fn sign(&self, publication: &mut Outgoing) {
        if let Some(wanted) = &mut publication.wanted {
            wanted.instance = self.instance;
        }
    }

    /// Redis can be reached, on connections that know nothing of what was asked before.
    pub fn connected(&mut self) {
        self.state = State::Up;
        self.beats_before = self.beats;
        let mut followed = Vec::new();
        for (channel, way) in &mut self.ways {
            if way.followed {
                way.subscribe();
                followed.push(channel.clone());
            }
        }
        if !followed.is_empty() {
            self.command(Command::Subscribe(followed));
        }
        self.say_unsaid();
        // Homes ask again, each from where it stands.
        self.told.push(Told::Resume);
        self.look_at_kept();
        let queued: Vec<ChannelName> = self.ways.keys().cloned().collect();
        queued.iter().for_each(|channel| self.append(channel));
        self.replay_all();
        if !std::mem::replace(&mut self.was_up, true) {
            // Whatever others have published before, nobody here has heard it.
            self.told.push(Told::Missed(Missing::Nodes));
        }
        // The others are to know this process before it shares anything. What it has said on an earlier connection may have
        // been lost with that, and with it what it had shared.
        self.send(To::Beats, item::encode_beat(self.instance, 0));
        self.share();
        self.beat();
    }

    /// Redis cannot be reached any more: nothing that was asked is answered.
    pub fn lost(&mut self, now_ms: u64) {
        if self.is_up() {
            self.state = State::Down { since_ms: now_ms, given_up: false };
            self.was_lost = true;
        }
        self.under_way.clear();
        self.unsaid.values_mut().for_each(|own| own.command = None);
        self.errands.lost();
        self.commands.clear();
        self.ways.values_mut().for_each(Way::lost);
        self.ways.retain(|_, way| !way.is_idle());
        if let Some(spooling) = &mut self.spooling {
            spooling.lost();
        }
    }

    /// Time has passed: what has waited too long for Redis is told so.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        let alive = self.alive.iter().filter(|(_, own)| !own.gone).map(|(instance, _)| *instance);
        self.errands.tick(now_ms, || alive.clone().collect());
        if self.spooling.as_mut().is_some_and(|spooling| spooling.tick(now_ms)) {
            self.replay_all();
        }
        if self.is_up() {
            self.say_unsaid();
            self.spool_what_is_late(now_ms);
            if self.look_ms.is_some_and(|at_ms| now_ms >= at_ms) {
                self.look_at_kept();
            }
        }
        let State::Down { since_ms, given_up: false } = self.state else { return };
        if now_ms.saturating_sub(since_ms) >= self.patience_ms {
            self.give_up(now_ms);
        }
    }

    /// Redis is not waited for any more, until it is there: what has waited is kept on disk, or refused.
    pub fn give_up(&mut self, now_ms: u64) {
        self.state = State::Down { since_ms: now_ms, given_up: true };
        for (channel, mut way) in std::mem::take(&mut self.ways) {
            if way.followed {
                way.reads.clear();
                self.told.push(Told::Home(channel.clone(), FromUpstream::Away));
            }
            let (sent, queued) = way.give_up();
            sent.for_each(|waiting| {
                self.spool(&channel, waiting, unavailable(self.whys().unknown))
            });
            queued
                .into_iter()
                .for_each(|waiting| self.spool(&channel, waiting, unavailable(self.whys().away)));
            if !way.is_idle() {
                self.ways.insert(channel, way);
            }
        }
    }

    fn tell_stored(&mut self, channel: ChannelName, ticket: u64, stored: Result<Stored, Refused>) {
        self.told.push(Told::Home(channel, FromUpstream::Stored { ticket, stored }));
    }

    /// Redis confirms that the node has subscribed to a channel.
    pub fn subscribed(&mut self, channel: &ChannelName) {
        let Some(way) = self.ways.get_mut(channel) else { return };
        way.subscribed();
        if way.is_idle() {
            // Nobody has followed any more since it was asked for.
            self.ways.remove(channel);
        } else {
            self.read(channel);
        }
    }

    /// Something may be missing of a channel that the node has subscribed to: its home asks.
    pub fn interrupted(&mut self, channel: &ChannelName) {
        if self.ways.get(channel).is_some_and(|way| way.followed) {
            self.told.push(Told::Home(channel.clone(), FromUpstream::Interrupted));
        }
    }

    /// Something was published on a numbered channel. Whether it is what ringfeed publishes.
    pub fn message(&mut self, channel: ChannelName, bytes: &Bytes) -> bool {
        if let Some(is_known) = self.said_beside(bytes) {
            return is_known;
        }
        let Some((epoch, publications)) = item::decode_message(bytes) else { return false };
        let news = FromUpstream::Publications { epoch, publications };
        self.told.push(Told::Home(channel, news));
        true
    }

    /// Another node has published something on a channel that is not numbered, or this one has. Whether it is what ringfeed
    /// publishes.
    pub fn shared(&mut self, channel: ChannelName, bytes: &Bytes) -> bool {
        if let Some(is_known) = self.said_beside(bytes) {
            return is_known;
        }
        let Some((instance, number, publication)) = item::decode_shared(bytes) else {
            return false;
        };
        if instance == self.instance {
            return true;
        }
        self.heard_of(instance, number, 1);
        let (payload, by) = publication.into_parts();
        self.told.push(Told::Shared(Post { channel, payload, by }));
        true
    }

    /// Another program has published something, of which each node hears by itself.
    pub fn foreign(&mut self, post: Post) {
        self.told.push(Told::Shared(post));
    }

    /// What other programs have published while Redis was away was not heard, and nobody says whether there was any.
    pub fn foreign_missed(&mut self) {
        self.told.push(Told::Missed(Missing::Foreign));
    }

    /// The answer to a command.
    pub fn answered(&mut self, command: u64, reply: Result<Reply, Failed>) {
        // What was lost with its connection is not waited for any more.
        match (self.under_way.remove(&command), reply) {
            (Some(UnderWay::Append(channel)), Ok(Reply::Appended { epoch, last, duplicates })) => {
                let tickets = self.ways.get_mut(&channel).map(Way::appended).unwrap_or_default();
                for (ticket, stored) in way::outcomes(tickets, epoch, last, duplicates) {
                    self.tell_stored(channel.clone(), ticket, Ok(stored));
                }
                self.append(&channel);
            }
            (Some(UnderWay::Append(channel)), Err(failed)) => {
                let way = self.ways.get_mut(&channel);
                for waiting in way.map(Way::take_batch).into_iter().flatten() {
                    let why = match failed {
                        // It may be taken later.
                        Failed::Moving => {
                            self.spool(&channel, waiting, unavailable(MOVING));
                            continue;
                        }
                        Failed::Refused | Failed::Never => self.whys().not_stored,
                        Failed::Unknown => self.whys().unknown,
                    };
                    self.tell_stored(channel.clone(), waiting.0, Err(unavailable(why)));
                }
                self.append(&channel);
            }
            (Some(UnderWay::Replay(channel, round)), Ok(Reply::Appended { .. })) => {
                let next = self.spooling.as_mut().and_then(|own| own.stored(round, &channel));
                if let Some(append) = next {
                    self.replay(round, append);
                }
            }
            (
                Some(UnderWay::Replay(_, round)),
                Err(Failed::Refused | Failed::Moving | Failed::Unknown),
            ) => {
                if let Some(spooling) = &mut self.spooling {
                    spooling.refused(round);
                }
                self.spool_what_is_refused();
            }
            (Some(UnderWay::Replay(channel, round)), Err(Failed::Never)) => {
                tracing::error!(
                    %channel,
                    "Redis never stores what waits of this channel on disk: it is set aside there"
                );
                if let Some(spooling) = &mut self.spooling {
                    spooling.set_aside(round, &channel);
                }
            }
            (Some(UnderWay::Read(channel, _, ask)), Ok(Reply::Read(followed))) => {
                self.told.push(Told::Home(channel, FromUpstream::Followed { ask, followed }));
            }
            (Some(UnderWay::Read(channel, since, ask)), Err(failed)) => {
                self.told.push(Told::Home(channel.clone(), FromUpstream::NotRead { ask }));
                if matches!(failed, Failed::Moving | Failed::Unknown)
                    && let Some(way) = self.ways.get_mut(&channel).filter(|way| way.asked == ask)
                {
                    // Who has waited for it is told so; it is said once it can be.
                    way.reads.push((since, ask));
                    self.read(&channel);
                }
            }
            (Some(UnderWay::Errand(number)), Ok(Reply::HeardBy(count))) => {
                self.errands.heard_by(number, count.saturating_sub(1));
            }
            (Some(UnderWay::Errand(number)), Err(_)) => self.errands.not_heard(number),
            (Some(UnderWay::Roll(channel)), Ok(Reply::HeardBy(count))) => {
                let heard = FromUpstream::RollHeardBy(count.saturating_sub(1));
                self.told.push(Told::Home(channel, heard));
            }
            (Some(UnderWay::Left(channel)), reply) => {
                let again = matches!(reply, Err(Failed::Unknown | Failed::Moving));
                self.has_left(channel, command, again);
            }
            (Some(UnderWay::Who(channel, number)), Ok(Reply::HeardBy(count))) => {
                let count = count.saturating_sub(1);
                self.told.push(Told::Home(channel, FromUpstream::WhoHeardBy { number, count }));
            }
            // Its home does not wait for it for long.
            (Some(UnderWay::Who(..)), Err(_)) => {}
            (Some(UnderWay::Roll(channel)), Err(_)) => {
                self.told.push(Told::Home(channel, FromUpstream::RollHeardBy(0)));
            }
            (Some(UnderWay::Kept), Ok(Reply::Kept(found, next))) => {
                found.into_iter().for_each(|kept| self.found(kept));
                match next {
                    Some(from) => self.read_kept(from),
                    None => self.restore(),
                }
            }
            (Some(UnderWay::Kept), Err(_)) => {
                self.look_ms = Some(self.now_ms + LOOK_MS);
                tracing::error!(
                    "Redis does not say what it keeps: whom other nodes have revoked and which rooms they have made before is not known here"
                );
            }
            (Some(other), Ok(_)) => {
                tracing::error!("Redis has answered something else than was asked: {other:?}");
            }
            (None, _) => {}
        }
    }

    fn has_given_up(&self) -> bool {
        matches!(self.state, State::Down { given_up: true, .. })
    }

    fn send(&mut self, to: To, bytes: Bytes) -> u64 {
        self.command(Command::Message(to, bytes))
    }

    fn command(&mut self, command: Command) -> u64 {
        let number = self.next_command;
        self.next_command += 1;
        self.commands.push_back((number, command));
        number
    }

    /// Asks where a channel stands, once what is published from then on is heard.
    fn read(&mut self, channel: &ChannelName) {
        if !self.is_up() {
            return;
        }
        let Some(way) = self.ways.get_mut(channel).filter(|way| way.is_subscribed()) else {
            return;
        };
        for (since, ask) in std::mem::take(&mut way.reads) {
            let read = Read { channel: channel.clone(), since };
            let number = self.command(Command::Read(read));
            self.under_way.insert(number, UnderWay::Read(channel.clone(), since, ask));
        }
    }

    /// Sends what waits to be appended to a channel, if nothing of it is under way.
    fn append(&mut self, channel: &ChannelName) {
        if !self.is_up() || self.spooling.as_ref().is_some_and(|own| own.has(channel)) {
            return;
        }
        let Some(way) = self.ways.get_mut(channel) else { return };
        let Some(items) = way.next_batch() else {
            if way.is_idle() {
                self.ways.remove(channel);
            }
            return;
        };
        let instance = self.instance;
        let append = Append { channel: channel.clone(), instance, items };
        let number = self.command(Command::Append(append));
        self.under_way.insert(number, UnderWay::Append(channel.clone()));
    }

    /// Sends what other nodes are to publish; what is too much while Redis is away is given up.
    fn share(&mut self) {
        if self.is_up() {
            self.shared_bytes = 0;
            while let Some((channel, bytes)) = self.shared.pop_front() {
                self.command(Command::Share { channel, bytes });
            }
        }
        while self.shared_bytes > SHARED_BYTES_MAX
            && let Some((_, bytes)) = self.shared.pop_front()
        {
            self.shared_bytes -= bytes.len();
            self.shared_lost += 1;
        }
    }
}

#[cfg(test)]
mod tests;
