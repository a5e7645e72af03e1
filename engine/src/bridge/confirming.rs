//! How nodes tell one another who has got a publication.
//!
//! ```text
//! version u8 = 0x82 | instance u64 | length u8, channel | kind u8 | …
//! kind 0 (it has come here):  number u64 | last u8 | somebody …
//! kind 1 (somebody has it):   number u64 | is there a ticket u8 | ticket u64 | somebody
//! kind 2 (answer to that):    ticket u64 | in time u8
//! kind 3 (who was there?):    number u64 | 0 u8
//! somebody: kind u8 (0 user, 1 connection) | length u8, user  or  shard u16, connection u64
//! ```
//!
//! all numbers big-endian. The last one comes on the same channels of Redis as a channel's publications, the others are for one
//! process and come where answers to errands do; they are told apart by their version.
//! Bytes from Redis are from outside: what does not fit is refused.

use bytes::{BufMut as _, Bytes, BytesMut};
use ringfeed_protocol::ChannelName;

use super::item::{Reader, put_text};
use super::rolls::{put_someone, someone};
use crate::message::Confirming;

const VERSION: u8 = 0x82;
const CAME: u8 = 0;
const CONFIRM: u8 = 1;
const CONFIRMED: u8 = 2;
const WHO: u8 = 3;

/// Whether a message is one of these.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    bytes.first() == Some(&VERSION)
}

/// Writes one.
pub(super) fn encode(instance: u64, channel: &ChannelName, what: &Confirming) -> Bytes {
    let mut out = BytesMut::with_capacity(64 + channel.len() + what.cost());
    out.put_u8(VERSION);
    out.put_u64(instance);
    put_text(&mut out, channel);
    match what {
        Confirming::Came { number, who, last } => {
            out.put_u8(CAME);
            out.put_u64(*number);
            out.put_u8((*last).into());
            who.iter().for_each(|who| put_someone(&mut out, who));
        }
        Confirming::Confirm { number, who, ticket } => {
            out.put_u8(CONFIRM);
            out.put_u64(*number);
            out.put_u8(ticket.is_some().into());
            out.put_u64(ticket.unwrap_or_default());
            put_someone(&mut out, who);
        }
        Confirming::Confirmed { ticket, in_time } => {
            out.put_u8(CONFIRMED);
            out.put_u64(*ticket);
            out.put_u8((*in_time).into());
        }
        Confirming::Who { number } => {
            out.put_u8(WHO);
            out.put_u64(*number);
            out.put_u8(0);
        }
    }
    out.freeze()
}

/// Reads one: who says it, of which channel, and what. `None` where it is none.
pub(super) fn decode(bytes: &Bytes) -> Option<(u64, ChannelName, Confirming)> {
    let mut rest = Reader(bytes.clone());
    if rest.u8()? != VERSION {
        return None;
    }
    let (instance, channel) = (rest.u64()?, rest.channel()?);
    let (kind, number, flag) = (rest.u8()?, rest.u64()?, rest.u8()? != 0);
    let what = match kind {
        CAME => {
            let mut who = Vec::new();
            while !rest.0.is_empty() {
                who.push(someone(&mut rest)?);
            }
            Confirming::Came { number, who, last: flag }
        }
        CONFIRM => {
            let ticket = Some(rest.u64()?).filter(|_| flag);
            Confirming::Confirm { number, who: someone(&mut rest)?, ticket }
        }
        CONFIRMED => Confirming::Confirmed { ticket: number, in_time: flag },
        WHO if !flag => Confirming::Who { number },
        _ => return None,
    };
    rest.0.is_empty().then_some((instance, channel, what))
}

#[cfg(test)]
mod tests {
    use ringfeed_protocol::UserId;

    use super::*;
    use crate::bridge::item::spoiled;
    use crate::ids::{ConnectionId, ShardId};
    use crate::message::Someone;

    #[test]
    fn what_is_written_is_read_and_whatever_comes_is_read_or_refused() {
        let channel = ChannelName::new("sure.1").unwrap();
        let ann = || Someone::User(UserId::new("ann").unwrap());
        let stranger = Someone::Connection(ConnectionId { shard: ShardId(2), number: 7 });
        let (number, ticket) = (1 << 40, u64::MAX);
        for what in [
            Confirming::Came { number, who: vec![ann(), stranger.clone()], last: true },
            Confirming::Came { number, who: vec![], last: false },
            Confirming::Confirm { number, who: ann(), ticket: Some(ticket) },
            Confirming::Confirm { number, who: stranger, ticket: None },
            Confirming::Confirmed { ticket, in_time: true },
            Confirming::Confirmed { ticket, in_time: false },
            Confirming::Who { number },
        ] {
            let bytes = encode(9, &channel, &what);
            assert!(is_one(&bytes));
            assert_eq!(decode(&bytes), Some((9, channel.clone(), what)));
            for other in spoiled(&bytes) {
                if let Some((instance, channel, what)) = decode(&other) {
                    let again = encode(instance, &channel, &what);
                    assert_eq!(decode(&again), Some((instance, channel, what)));
                }
            }
        }
    }
}
