//! How nodes tell one another who is on channels.
//!
//! ```text
//! version u8 = 0x81 | instance u64 | flags u8 | subscribers u32 | length u8, channel | entry …
//! entry: kind u8 (0 user, 1 connection) | length u8, user  or  shard u16, connection u64 | flags u8 | [length u32, info]
//! ```
//!
//! all numbers big-endian; the bits of the first flags, from the lowest: it is whole, it goes on in another one, it asks, it is the first, the channel is there at all; of those
//! of an entry: they are there, they were nowhere else, there is info. These messages come on the same channels of Redis as a
//! channel's publications, or as answers to errands, and are told apart by their version. Bytes from Redis are from outside:
//! what does not fit is refused.

use bytes::{BufMut as _, Bytes, BytesMut};
use ringfeed_protocol::ChannelName;

use super::item::{Reader, put_connection, put_text};
use crate::message::{Roll, RollEntry, Someone};

const VERSION: u8 = 0x81;
const WHOLE: u8 = 1;
const MORE: u8 = 1 << 1;
const ASKS: u8 = 1 << 2;
const FIRST: u8 = 1 << 3;
const HAS_IT: u8 = 1 << 4;
const IS_THERE: u8 = 1;
const LAST: u8 = 1 << 1;
const HAS_INFO: u8 = 1 << 2;

/// Whether a message is one of these.
pub(super) fn is_roll(bytes: &[u8]) -> bool {
    bytes.first() == Some(&VERSION)
}

/// Writes one.
pub(super) fn encode(instance: u64, channel: &ChannelName, roll: &Roll) -> Bytes {
    let Roll { whole, first, more, asks, has_it, subscribers, entries } = roll;
    let mut out = BytesMut::with_capacity(64 + channel.len() + roll.cost());
    out.put_u8(VERSION);
    out.put_u64(instance);
    let flag = |is: bool, bit: u8| if is { bit } else { 0 };
    let place = flag(*first, FIRST) | flag(*more, MORE) | flag(*has_it, HAS_IT);
    out.put_u8(flag(*whole, WHOLE) | place | flag(*asks, ASKS));
    out.put_u32(*subscribers);
    put_text(&mut out, channel);
    for RollEntry { who, is_there, last, info } in entries {
        put_someone(&mut out, who);
        let has_info = flag(info.is_some(), HAS_INFO);
        out.put_u8(flag(*is_there, IS_THERE) | flag(*last, LAST) | has_info);
        if let Some(info) = info {
            out.put_u32(info.len() as u32);
            out.put_slice(info.as_bytes());
        }
    }
    out.freeze()
}

/// Writes who somebody is.
pub(super) fn put_someone(out: &mut BytesMut, who: &Someone) {
    match who {
        Someone::User(user) => {
            out.put_u8(0);
            put_text(out, user);
        }
        Someone::Connection(connection) => {
            out.put_u8(1);
            put_connection(out, *connection);
        }
    }
}

/// Reads it.
pub(super) fn someone(rest: &mut Reader) -> Option<Someone> {
    Some(match rest.u8()? {
        0 => Someone::User(rest.user()?),
        1 => Someone::Connection(rest.connection()?),
        _ => return None,
    })
}

/// Reads one: who says it, of which channel, and what. `None` where it is none.
pub(super) fn decode(bytes: &Bytes) -> Option<(u64, ChannelName, Roll)> {
    let mut rest = Reader(bytes.clone());
    if rest.u8()? != VERSION {
        return None;
    }
    let (instance, flags, subscribers) = (rest.u64()?, rest.u8()?, rest.u32()?);
    let channel = rest.channel()?;
    let mut entries = Vec::new();
    while !rest.0.is_empty() {
        entries.push(entry(&mut rest)?);
    }
    let is = |bit: u8| flags & bit != 0;
    let (whole, first, more) = (is(WHOLE), is(FIRST), is(MORE));
    let (asks, has_it) = (is(ASKS), is(HAS_IT));
    Some((instance, channel, Roll { whole, first, more, asks, has_it, subscribers, entries }))
}

fn entry(rest: &mut Reader) -> Option<RollEntry> {
    let who = someone(rest)?;
    let flags = rest.u8()?;
    let is = |bit: u8| flags & bit != 0;
    let info = if is(HAS_INFO) {
        let length = usize::try_from(rest.u32()?).ok()?;
        let info = rest.take(length)?;
        // It is written as it is into what clients are told.
        let json: &serde_json::value::RawValue = serde_json::from_slice(&info).ok()?;
        Some(json.get().into())
    } else {
        None
    };
    Some(RollEntry { who, is_there: is(IS_THERE), last: is(LAST), info })
}

#[cfg(test)]
mod tests {
    use ringfeed_protocol::UserId;

    use super::*;
    use crate::bridge::item::spoiled;
    use crate::ids::{ConnectionId, ShardId};

    #[test]
    fn what_is_written_is_read_and_whatever_comes_is_read_or_refused() {
        let channel = ChannelName::new("room.1").unwrap();
        let connection = ConnectionId { shard: ShardId(2), number: 7 };
        let entry = |who, is_there, last, info: Option<&str>| {
            let info = info.map(Box::from);
            RollEntry { who, is_there, last, info }
        };
        let entries = vec![
            entry(Someone::User(UserId::new("ann").unwrap()), true, false, Some("{\"n\":1}")),
            entry(Someone::Connection(connection), false, true, None),
            entry(Someone::User(UserId::new("bob").unwrap()), true, false, None),
        ];
        let (whole, first, more, asks, has_it) = (true, true, false, true, true);
        let roll = Roll { whole, first, more, asks, has_it, subscribers: 4, entries };
        let bytes = encode(9, &channel, &roll);
        assert!(is_roll(&bytes));
        assert_eq!(decode(&bytes), Some((9, channel, roll)));
        for other in spoiled(&bytes) {
            if let Some((instance, channel, roll)) = decode(&other) {
                let again = encode(instance, &channel, &roll);
                assert_eq!(decode(&again), Some((instance, channel, roll)));
            }
        }
    }
}
