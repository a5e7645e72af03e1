//! What Redis does in one piece: for a channel that it numbers two scripts, and one for what all nodes are to know; what is given to them
//! and what they say.
//!
//! A channel has a key of its own for each instance that appends to it, which lives for an hour behind what it appended last:
//! much longer than a command whose answer was lost waits until it is sent again.

use bytes::Bytes;
use rand::random;
use redis::{Cmd, FromRedisValue, Pipeline, Value};
use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::{Offset, Position};

use super::names::Names;
use super::{Append, Read, Reply};
use super::{errands, item};
use crate::config::Config;
use crate::message::{Followed, Kept, Numbered};

/// Publications in one answer …
const ENTRIES_MAX: usize = 512;
/// … and bytes of them, or one.
const BYTES_MAX: usize = 256 * 1024;

const PLACE: &str = include_str!("script/place.lua");
const APPEND: &str = include_str!("script/append.lua");
const READ: &str = include_str!("script/read.lua");
const KEEP: &str = include_str!("script/keep.lua");
/// Of what it keeps for all nodes, so much is asked for at once, about.
const KEPT_AT_ONCE: usize = 1000;

/// For so long Redis knows that a room has ended, in seconds; nodes that still know it then give it back.
const ENDED_S: u32 = 3600;

/// What they say of a channel that has used up its offsets.
pub(super) const NO_OFFSETS: &str = "the channel has no offsets left";

/// The scripts, as a server knows them.
#[derive(Debug, Clone)]
pub(super) struct Scripts {
    append: String,
    read: String,
    keep: String,
}

/// What is kept of a channel by who numbers it, as its rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Publications.
    pub size: u32,
    /// Bytes of them, which Redis does not count; 0 is no limit.
    pub bytes: u64,
    /// For how long, in milliseconds; 0 is no limit.
    pub age_ms: u32,
    /// How long the channel is remembered to which nothing is published, in milliseconds.
    pub idle_ms: u64,
    /// How long idempotency keys are remembered, in milliseconds.
    pub keys_ms: u32,
}

impl Keep {
    /// By the rule of a channel.
    pub fn of(config: &Config, channel: &str) -> Keep {
        let rule = config.rule(channel);
        let (size, age_ms) = rule.map_or((0, 0), |rule| (rule.history_size, rule.history_age_ms));
        let bytes = rule.map_or(0, |rule| rule.history_bytes);
        let by_nodes = config.cluster.is_used();
        let idle_s = if by_nodes { config.cluster.idle_s } else { config.redis.idle_s };
        let idle_ms = u64::from(idle_s) * 1000;
        // No publication has a key where that is 0.
        Keep { size, bytes, age_ms, idle_ms, keys_ms: config.limits.idempotency_ms.max(1) }
    }
}

impl Scripts {
    /// What a server is asked so that it knows them.
    pub(super) fn load() -> Pipeline {
        let mut pipeline = Pipeline::new();
        // Where Redis is full it says so at once, and not in the middle. Where a channel stands it says nevertheless.
        for (flags, body) in [("", APPEND), (" flags=allow-oom", READ)] {
            let text = format!("#!lua{flags}\n{PLACE}\n{body}");
            pipeline.cmd("SCRIPT").arg("LOAD").arg(text);
        }
        // It takes next to nothing, and somebody is kept out.
        pipeline.cmd("SCRIPT").arg("LOAD").arg(format!("#!lua flags=allow-oom\n{KEEP}"));
        pipeline
    }

    /// From its answer.
    pub(super) fn loaded([append, read, keep]: [String; 3]) -> Scripts {
        Scripts { append, read, keep }
    }

    /// The command that appends; `publish` is PUBLISH, or SPUBLISH in a cluster, or nothing: then what is to be published comes
    /// with the answer ([`take_message`]).
    pub(super) fn append(
        &self,
        names: &Names,
        keep: Keep,
        publish: &'static str,
        append: &Append,
    ) -> Cmd {
        let Append { channel, instance, items } = append;
        let mut keys = names.keys(channel).to_vec();
        keys.push(names.appended(channel, *instance));
        keys.extend(items.iter().filter_map(|item| Some(names.keyed(channel, item.key?))));
        let keyed: Vec<u8> = items.iter().map(|item| u8::from(item.key.is_some())).collect();
        let mut cmd = self.call(&self.append, &keys);
        let numbers: Vec<u8> = items.iter().flat_map(|item| item.number.to_be_bytes()).collect();
        cmd.arg(numbers)
            .arg(&random::<[u8; 8]>()[..])
            .arg(keep.size)
            .arg(keep.age_ms)
            .arg(keep.idle_ms)
            .arg(names.numbered(channel))
            .arg(publish)
            .arg(keep.keys_ms)
            .arg(keyed);
        for item in items {
            cmd.arg(&item.bytes[..]);
        }
        cmd
    }

    /// The command that says where a channel stands.
    pub(super) fn read(&self, names: &Names, keep: Keep, read: &Read) -> Cmd {
        let mut cmd = self.call(&self.read, &names.keys(&read.channel));
        let position = read.since.unwrap_or_default();
        let epoch = read.since.map(|since| since.epoch.0.to_be_bytes());
        cmd.arg(&random::<[u8; 8]>()[..])
            .arg(epoch.as_ref().map_or(&[][..], |epoch| epoch))
            .arg(position.offset.0)
            .arg(keep.age_ms)
            .arg(keep.idle_ms)
            .arg(ENTRIES_MAX)
            .arg(BYTES_MAX);
        cmd
    }

    /// The command that keeps something and tells all nodes.
    pub(super) fn keep(&self, names: &Names, kept: &Kept, errand: &Bytes) -> Cmd {
        let (about, what) = errands::encode_kept(kept);
        let mut cmd = self.call(&self.keep, &names.kept());
        cmd.arg(&about[..]).arg(&what[..]).arg(names.errands()).arg(&errand[..]);
        cmd.arg(ENDED_S);
        cmd
    }

    fn call(&self, script: &str, keys: &[String]) -> Cmd {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(script).arg(keys.len()).arg(keys);
        cmd
    }
}

/// The command that says what is kept for all nodes, from a place on.
pub(super) fn all_kept(names: &Names, from: u64) -> Cmd {
    let [kept, _] = names.kept();
    let mut cmd = redis::cmd("HSCAN");
    cmd.arg(kept).arg(from).arg("COUNT").arg(KEPT_AT_ONCE);
    cmd
}

fn kept_reply(answer: Value) -> Option<Reply> {
    type Found = Vec<(Vec<u8>, Vec<u8>)>;
    let (next, found): (String, Found) = FromRedisValue::from_redis_value(answer).ok()?;
    let next = Some(next.parse::<u64>().ok()?).filter(|next| *next != 0);
    // What makes no sense revokes nobody.
    let found = found
        .into_iter()
        .filter_map(|(about, what)| errands::decode_kept(&Bytes::from([about, what].concat())));
    Some(Reply::Kept(found.collect(), next))
}

/// What is to be published of what was appended, where the script does not publish it itself.
pub(super) fn take_message(answer: &mut Value) -> Option<Bytes> {
    let Value::Array(answer) = answer else { return None };
    let has_it = answer.len() == 4 && matches!(answer.last(), Some(Value::BulkString(_)));
    answer.pop_if(|_| has_it).and_then(bytes)
}

/// What a command has said; `None` where that makes no sense.
pub(super) fn reply(answer: Value) -> Option<Reply> {
    let mut answer = match answer {
        Value::Int(count) => return usize::try_from(count).ok().map(Reply::HeardBy),
        Value::Array(answer) => answer,
        _ => return None,
    };
    if answer.len() == 2 {
        return kept_reply(Value::Array(answer));
    }
    let found = if answer.len() == 4 { answer.pop() } else { None };
    let [epoch, offset, more] = <[Value; 3]>::try_from(answer).ok()?;
    let (epoch, offset) = (Epoch(packed(&bytes(epoch)?)?), number(&offset)?);
    let more = bytes(more)?;
    match found {
        None => {
            let places = more.chunks(4 + 16).map(|entry| {
                let (place, stands) = entry.split_at_checked(4)?;
                Some((u32::from_be_bytes(place.try_into().ok()?), position(stands)?))
            });
            let duplicates = places.collect::<Option<_>>()?;
            Some(Reply::Appended { epoch, last: offset, duplicates })
        }
        Some(Value::Array(found)) => {
            let lives = more.chunks(16).map(position);
            let lives = lives.map(|own| own.map(|Position { epoch, offset }| (epoch, offset)));
            let (position, lineage) = (Position { epoch, offset }, lives.collect::<Option<_>>()?);
            Some(Reply::Read(Followed { position, lineage, publications: publications(found)? }))
        }
        Some(_) => None,
    }
}

/// Epoch and offset, packed.
fn position(bytes: &[u8]) -> Option<Position> {
    let (epoch, offset) = bytes.split_at_checked(8)?;
    Some(Position { epoch: Epoch(packed(epoch)?), offset: Offset(packed(offset)?) })
}

/// Offset, age and what was published, of one after the other. What is no publication of ours counts as gone.
fn publications(found: Vec<Value>) -> Option<Vec<Numbered>> {
    let mut found = found.into_iter();
    let mut publications = Vec::new();
    while let (Some(offset), Some(age), Some(item)) = (found.next(), found.next(), found.next()) {
        let (offset, age_ms) = (number(&offset)?, number(&age)?.0);
        match item::decode(&bytes(item)?) {
            Some(publication) => publications.push(Numbered { offset, age_ms, publication }),
            None if publications.is_empty() => {}
            None => break,
        }
    }
    Some(publications)
}

fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        _ => None,
    }
}

fn number(value: &Value) -> Option<Offset> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok().map(Offset),
        _ => None,
    }
}

fn packed(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests;
