//! What other programs publish in Redis and want to hear, by `[[redis_channels]]`.
//!
//! Sans-IO: told what has come from Redis and what this node has given to it, it says what is to be published here and what
//! there. It numbers nothing and keeps nothing of any channel.
//!
//! Nodes tell each other of a publication as of every one on a bridged channel, with all that belongs to it; right behind
//! that, over the same connection, the node that it was published on gives a **copy** to Redis, in the form that other
//! programs know. Where nodes listen there, too, each of them hears the copy behind what it is a copy of, and takes no
//! notice ([`echoes`]): so a publication comes to every subscriber once, to those of other programs also, and nobody has
//! to mark it, which payloads that are handed on as they are have no room for.

mod echoes;
mod form;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use ringfeed_protocol::event::Meta;
use ringfeed_protocol::foreign::ForeignError;
use ringfeed_protocol::{ChannelName, Refused, any_name};

use super::item;
use crate::config::{Config, RedisChannel};
use crate::message::{Outgoing, Post, Sender};
use echoes::Echoes;
use form::Read;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Foreign {
    entries: Vec<RedisChannel>,
    /// Who this process is to other programs: no other one ever is.
    origin: String,
    echoes: Echoes,
}

/// What Redis is to be asked to publish for other programs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Copy {
    /// The channel of Redis.
    pub(super) name: String,
    /// What.
    pub(super) payload: Bytes,
}

/// What is listened to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Subscriptions {
    /// Channels of Redis.
    pub(super) names: Vec<String>,
    /// Patterns of such, as Redis reads them.
    pub(super) patterns: Vec<String>,
}

/// What has come on another program's channel.
#[derive(Debug)]
pub(super) enum Heard {
    /// This is to be published here, and handed to no other node: each hears it by itself.
    Post(Box<Post>),
    /// A copy of what was published on a node of ringfeed, and is known.
    Copy,
}

/// Why something is not published here.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotTaken {
    #[error("it has {bytes} bytes; allowed are {most} (api.body_bytes_max)")]
    TooLong { bytes: usize, most: u32 },
    #[error("{0}")]
    Unread(#[from] ForeignError),
    #[error("{0}")]
    Name(Refused),
    #[error("nothing stands for the * in redis_channels.name")]
    NoName,
    #[error("no rule of [[channels]] is about {0}")]
    NoRule(ChannelName),
    #[error("{0}")]
    Content(Refused),
}

impl Foreign {
    /// By a configuration, for a process.
    pub(super) fn new(config: &Config, instance: u64) -> Foreign {
        Foreign {
            entries: config.redis_channels.clone(),
            origin: format!("{}:{instance:016x}", config.server.node_id),
            echoes: Echoes::default(),
        }
    }

    /// What Redis is asked for. What comes before it has confirmed that, and what nodes tell each other, is to be let go: a copy that is
    /// heard without what it is a copy of would be taken for another program's, and one that is not heard be waited for.
    pub(super) fn subscriptions(&self) -> Subscriptions {
        let mut subscriptions = Subscriptions::default();
        for RedisChannel { name, .. } in self.entries.iter().filter(|entry| entry.comes_in()) {
            match name.split_once('*') {
                None => subscriptions.names.push(name.clone()),
                Some((head, tail)) => {
                    subscriptions.patterns.push(format!("{}*{}", literal(head), literal(tail)));
                }
            }
        }
        subscriptions
    }

    /// Whether other programs are listened to.
    pub(super) fn listens(&self) -> bool {
        self.entries.iter().any(RedisChannel::comes_in)
    }

    /// What other programs are to be told of a publication that this node hands to the others in these bytes.
    pub(super) fn copies(&self, channel: &ChannelName, shared: &Bytes, now_ms: u64) -> Vec<Copy> {
        if !self.entries.iter().any(|entry| entry.goes_out() && entry.has(channel)) {
            return Vec::new();
        }
        let publication = item::decode_shared(shared).map(|(_, _, publication)| publication);
        let publication = publication.iter();
        publication
            .flat_map(|own| self.copies_of(channel, own, now_ms))
            .map(|(_, own)| own)
            .collect()
    }

    fn copies_of(
        &self,
        channel: &ChannelName,
        publication: &Outgoing,
        now_ms: u64,
    ) -> impl Iterator<Item = (&RedisChannel, Copy)> {
        let entries = self.entries.iter().filter(|entry| entry.goes_out());
        entries.filter_map(move |entry| {
            let text = any_name::decode(entry.of_channel(channel)?);
            let name = entry.name.replacen('*', &text, 1);
            let payload = form::write(entry.format, &text, publication, now_ms, &self.origin)?;
            Some((entry, Copy { name, payload }))
        })
    }

    /// A node, this one or another, has told the others of a publication in these bytes: its copies follow.
    pub(super) fn shared(&mut self, channel: &ChannelName, shared: &Bytes) {
        let is_heard = |entry: &RedisChannel| entry.comes_in() && entry.goes_out();
        if !self.entries.iter().any(|entry| is_heard(entry) && entry.has(channel)) {
            return;
        }
        let Some((instance, _, publication)) = item::decode_shared(shared) else { return };
        // When it was is no part of what it is known by.
        let copies = self.copies_of(channel, &publication, 0);
        let copies = copies.filter(|(entry, _)| is_heard(entry));
        let known: Vec<u64> = copies
            .filter_map(|(entry, Copy { name, payload })| {
                let read = form::read(entry, &payload, 0).ok()?;
                Some(self.echoes.digest(&name, read.bytes()))
            })
            .collect();
        self.echoes.expect(instance, known);
    }

    /// Something was published on a channel of Redis. `None` where it is none of other programs'.
    pub(super) fn heard(
        &mut self,
        name: &[u8],
        payload: &Bytes,
        config: &Config,
        now_ms: u64,
    ) -> Option<Result<Heard, NotTaken>> {
        let name = std::str::from_utf8(name).ok()?;
        let at = self
            .entries
            .iter()
            .position(|entry| entry.comes_in() && entry.of_redis(name).is_some())?;
        Some(self.take(at, name, payload, config, now_ms))
    }

    fn take(
        &mut self,
        at: usize,
        name: &str,
        payload: &Bytes,
        config: &Config,
        now_ms: u64,
    ) -> Result<Heard, NotTaken> {
        let Foreign { entries, origin, echoes } = self;
        let Some((entry, text)) =
            entries.get(at).and_then(|entry| Some((entry, entry.of_redis(name)?)))
        else {
            return Err(NotTaken::NoName);
        };
        let most = config.api.body_bytes_max;
        // Also of a copy: it is not to be waited for.
        let read = form::read(entry, payload, now_ms)?;
        if entry.goes_out() && echoes.take(name, read.bytes()) {
            return Ok(Heard::Copy);
        }
        if read.origin().is_some_and(|by| by == origin) {
            // Of another connection's time: this node's subscribers have had it.
            return Ok(Heard::Copy);
        }
        if payload.len() > most as usize {
            return Err(NotTaken::TooLong { bytes: payload.len(), most });
        }
        let channel = match read.channel(text) {
            text if text.is_empty() && entry.channel.contains('*') => return Err(NotTaken::NoName),
            text => entry.channel.replacen('*', &any_name::encode(text), 1),
        };
        let channel = ChannelName::new(&channel).map_err(|e| NotTaken::Name(Refused::from(e)))?;
        let Some(rule) = config.rule(&channel) else { return Err(NotTaken::NoRule(channel)) };
        let Read { payload, time_ms, number, .. } = read;
        let checked = rule.check_content(&channel, payload.kind, &payload.bytes);
        checked.map_err(NotTaken::Content)?;
        let by = rule.sender.then(|| {
            let time_ms = time_ms.unwrap_or(now_ms);
            let meta = Meta { time_ms, user: None, number, confirm: false };
            Box::new(Sender { meta: Some(Box::new(meta)), ..Sender::default() })
        });
        Ok(Heard::Post(Box::new(Post { channel, payload, by })))
    }

    /// Redis cannot be reached any more: what was on its way never comes.
    pub(super) fn lost(&mut self) {
        self.echoes.clear();
    }
}

impl RedisChannel {
    fn has(&self, channel: &ChannelName) -> bool {
        self.of_channel(channel).is_some()
    }
}

/// A part of a pattern that is to mean nothing but itself to Redis.
fn literal(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if "?[]^\\".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}
