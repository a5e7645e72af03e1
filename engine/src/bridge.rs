//! The bridge: what connects the shards of this node with Redis, which numbers channels for all nodes.
//!
//! It is sans-IO. Shards hand it what they want, whoever holds the connections tells it what Redis has said
//! ([`Bridge::answered`], [`Bridge::subscribed`], [`Bridge::message`]) and when they come and go; it says what to ask of
//! Redis ([`Bridge::take_commands`]) and what to tell the shards ([`Bridge::take_told`]). So the simulator drives the very same code
//! against a Redis that stalls, dies and comes back older.
//!
//! Of one channel there is one command under way at a time that appends, so that publications keep their order whatever
//! becomes of it: one whose answer never came is sent again as it was, under the number by which Redis knows it.

pub mod command;
mod connection;
mod figures;
mod handover;
mod incoming;
pub mod item;
mod names;
mod script;
mod thread;
mod way;

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use ringfeed_protocol::{ChannelName, Refused};

use crate::ids::ShardId;
use crate::message::{FromUpstream, Post, Request, ToUpstream};
pub use command::{Append, Command, Failed, Read, Reply};
pub use figures::Figures;
pub use thread::BridgeThread;
use way::Way;

/// Publications to other nodes, of channels that are not numbered, may wait in so many bytes while Redis is away; the
/// oldest are given up.
const SHARED_BYTES_MAX: usize = 8 << 20;

/// Why something was not published.
const AWAY: Refused =
    Refused::Unavailable { detail: "Redis cannot be reached, and this channel is numbered there" };
/// Why it is not known whether it was.
const UNKNOWN: Refused = Refused::Unavailable {
    detail: "Redis cannot be reached, and it is not known whether this was published",
};
/// Why Redis has not published it.
const NOT_STORED: Refused = Refused::Unavailable { detail: "Redis does not store this" };

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
    /// And the number by which its home knows it.
    Read(ChannelName, u32),
}

/// See the module's description.
#[derive(Debug)]
pub struct Bridge {
    state: State,
    patience_ms: u64,
    /// Who this is to Redis: of all processes that ever were, this one.
    instance: u64,
    /// In an order that a simulation repeats.
    ways: BTreeMap<ChannelName, Way>,
    under_way: HashMap<u64, UnderWay>,
    next_command: u64,
    next_item: u64,
    commands: VecDeque<(u64, Command)>,
    told: Vec<Told>,
    /// What other nodes are to publish, too, and waits for Redis.
    shared: VecDeque<(ChannelName, Bytes)>,
    shared_bytes: usize,
    /// Of those so many were given up.
    shared_lost: u64,
}

/// What shards are to be told.
#[derive(Debug)]
pub enum Told {
    /// The home of the request's channel.
    Home(ChannelName, FromUpstream),
    /// The home of a channel that is not numbered: what another node has published.
    Shared(Post),
    /// All shards.
    Resume,
}

impl Told {
    /// As requests are handed over; [`Told::Resume`] is for all, and the others for the home of a channel.
    pub fn into_request(
        self,
        home: impl FnOnce(&ChannelName) -> ShardId,
    ) -> (Option<ShardId>, Request) {
        match self {
            Told::Home(channel, what) => {
                let home = home(&channel);
                (Some(home), Request::Upstream { channel, what: Box::new(what) })
            }
            Told::Shared(post) => (Some(home(&post.channel)), Request::Shared(vec![post])),
            Told::Resume => (None, Request::Resume),
        }
    }
}

impl Bridge {
    /// A bridge that is not connected yet. `instance` is drawn at random; what needs Redis waits for it `patience_ms`.
    pub fn new(instance: u64, patience_ms: u64, now_ms: u64) -> Bridge {
        Bridge {
            state: State::Down { since_ms: now_ms, given_up: false },
            patience_ms,
            instance,
            ways: BTreeMap::new(),
            under_way: HashMap::new(),
            next_command: 0,
            next_item: 0,
            commands: VecDeque::new(),
            told: Vec::new(),
            shared: VecDeque::new(),
            shared_bytes: 0,
            shared_lost: 0,
        }
    }

    /// What Redis is to be asked, in order, each with the number under which it is answered.
    pub fn take_commands(&mut self) -> impl Iterator<Item = (u64, Command)> + '_ {
        self.commands.drain(..)
    }

    /// What the shards are to be told, in order.
    pub fn take_told(&mut self) -> Vec<Told> {
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
                way.reads.push((since, ask));
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
            ToUpstream::Publish { channel, ticket, publication } => {
                if self.has_given_up() {
                    let stored = FromUpstream::Stored { ticket, stored: Err(AWAY) };
                    return self.told.push(Told::Home(channel, stored));
                }
                let item = item::encode(&publication);
                self.ways.entry(channel.clone()).or_default().push(ticket, item);
                self.append(&channel);
            }
            ToUpstream::Share { channel, publication } => {
                let shared = item::encode_shared(self.instance, &publication);
                self.shared_bytes += shared.len();
                self.shared.push_back((channel, shared));
                self.share();
            }
        }
    }

    /// Redis can be reached, on connections that know nothing of what was asked before.
    pub fn connected(&mut self) {
        self.state = State::Up;
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
        // Homes ask again, each from where it stands.
        self.told.push(Told::Resume);
        let queued: Vec<ChannelName> = self.ways.keys().cloned().collect();
        queued.iter().for_each(|channel| self.append(channel));
        self.share();
    }

    /// Redis cannot be reached any more: nothing that was asked is answered.
    pub fn lost(&mut self, now_ms: u64) {
        if self.is_up() {
            self.state = State::Down { since_ms: now_ms, given_up: false };
        }
        self.under_way.clear();
        self.commands.clear();
        self.ways.values_mut().for_each(Way::lost);
        self.ways.retain(|_, way| !way.is_idle());
    }

    /// Time has passed: what has waited too long for Redis is told so.
    pub fn tick(&mut self, now_ms: u64) {
        let State::Down { since_ms, given_up: false } = self.state else { return };
        if now_ms.saturating_sub(since_ms) < self.patience_ms {
            return;
        }
        self.state = State::Down { since_ms, given_up: true };
        for (channel, way) in &mut self.ways {
            if way.followed {
                way.reads.clear();
                self.told.push(Told::Home(channel.clone(), FromUpstream::Away));
            }
            let (sent, queued) = way.give_up();
            let refused = sent.map(|ticket| (ticket, UNKNOWN));
            let refused: Vec<_> = refused.chain(queued.map(|ticket| (ticket, AWAY))).collect();
            for (ticket, why) in refused {
                let stored = FromUpstream::Stored { ticket, stored: Err(why) };
                self.told.push(Told::Home(channel.clone(), stored));
            }
        }
        self.ways.retain(|_, way| !way.is_idle());
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

    /// Something was published on a numbered channel. Whether it is what ringfeed publishes.
    pub fn message(&mut self, channel: ChannelName, bytes: &Bytes) -> bool {
        let Some((epoch, publications)) = item::decode_message(bytes) else { return false };
        let news = FromUpstream::Publications { epoch, publications };
        self.told.push(Told::Home(channel, news));
        true
    }

    /// Another node has published something on a channel that is not numbered, or this one has. Whether it is what ringfeed
    /// publishes.
    pub fn shared(&mut self, channel: ChannelName, bytes: &Bytes) -> bool {
        let Some((instance, publication)) = item::decode_shared(bytes) else { return false };
        if instance == self.instance {
            return true;
        }
        let (payload, by) = publication.into_parts();
        self.told.push(Told::Shared(Post { channel, payload, by }));
        true
    }

    /// The answer to a command.
    pub fn answered(&mut self, command: u64, reply: Result<Reply, Failed>) {
        // What was lost with its connection is not waited for any more.
        match (self.under_way.remove(&command), reply) {
            (Some(UnderWay::Append(channel)), Ok(Reply::Appended { epoch, last })) => {
                let tickets = self.ways.get_mut(&channel).map(Way::appended).unwrap_or_default();
                for (ticket, position) in way::positions(&tickets, epoch, last) {
                    let stored = FromUpstream::Stored { ticket, stored: Ok(position) };
                    self.told.push(Told::Home(channel.clone(), stored));
                }
                self.append(&channel);
            }
            (Some(UnderWay::Append(channel)), Err(Failed::Refused)) => {
                let tickets = self.ways.get_mut(&channel).map(Way::appended).unwrap_or_default();
                for ticket in tickets {
                    let stored = FromUpstream::Stored { ticket, stored: Err(NOT_STORED) };
                    self.told.push(Told::Home(channel.clone(), stored));
                }
                self.append(&channel);
            }
            (Some(UnderWay::Read(channel, ask)), Ok(Reply::Read(followed))) => {
                self.told.push(Told::Home(channel, FromUpstream::Followed { ask, followed }));
            }
            (Some(UnderWay::Read(channel, _)), Err(Failed::Refused)) => {
                self.told.push(Told::Home(channel, FromUpstream::Away));
            }
            (Some(UnderWay::Append(channel)), Ok(Reply::Read(_)))
            | (Some(UnderWay::Read(channel, _)), Ok(Reply::Appended { .. })) => {
                tracing::error!(%channel, "Redis has answered something else than was asked");
            }
            (None, _) => {}
        }
    }

    fn has_given_up(&self) -> bool {
        matches!(self.state, State::Down { given_up: true, .. })
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
            self.under_way.insert(number, UnderWay::Read(channel.clone(), ask));
        }
    }

    /// Sends what waits to be appended to a channel, if nothing of it is under way.
    fn append(&mut self, channel: &ChannelName) {
        if !self.is_up() {
            return;
        }
        let Some(way) = self.ways.get_mut(channel) else { return };
        let Some((first, items)) = way.next_batch(&mut self.next_item) else {
            if way.is_idle() {
                self.ways.remove(channel);
            }
            return;
        };
        let instance = self.instance;
        let append = Append { channel: channel.clone(), instance, first, items };
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
mod tests {
    use super::*;

    #[test]
    fn who_follows_no_more_before_it_is_confirmed_leaves_nothing_behind() {
        let mut bridge = Bridge::new(1, 1000, 0);
        bridge.connected();
        let channel = ChannelName::new("a").unwrap();
        let follow = || ToUpstream::Follow { channel: channel.clone(), since: None, ask: 1 };
        bridge.wanted(follow());
        bridge.wanted(ToUpstream::Unfollow { channel: channel.clone() });
        bridge.subscribed(&channel);
        assert!(bridge.ways.is_empty(), "{:?}", bridge.ways);
        // Followed again in between, it is asked about once both are confirmed.
        for what in [follow(), ToUpstream::Unfollow { channel: channel.clone() }, follow()] {
            bridge.wanted(what);
        }
        let reads = |bridge: &mut Bridge| {
            bridge.take_commands().filter(|(_, own)| matches!(own, Command::Read(_))).count()
        };
        bridge.subscribed(&channel);
        assert_eq!(reads(&mut bridge), 0);
        bridge.subscribed(&channel);
        assert_eq!(reads(&mut bridge), 1);
    }
}
