//! How errands and answers to them travel.
//!
//! ```text
//! errand:      version u8 = 1 | instance u64 | number u64 | body
//! answer:      version u8 = 1 | instance u64 | number u64 | reached u32 | flags u8 (1 behind, 2 no room) | (shard u16, connection u64, since u64) …
//! revocation:  kind u8 (0 token, 1 user) | length u8, id | before u64 | until u64
//! room:        kind u8 = 2 | length u8, channel | at_ms u64 | tie u64 | state u8 (0 made, 1 ended, 2 empty) | [like]
//! like:        members_max u32 | flags u8 (1 public, 2 moderated, 4 anyone speaks, 8 ends when empty) | length u8, hash of the password
//!              | count u16, (length u8, moderator) … | (length u8, who is invited) …
//! ```
//!
//! all numbers big-endian. An answer has the number of the errand, and the instance of who answers. The body of an errand:
//!
//! ```text
//! kind u8 | flags u8 | [length u8, user] | [shard u16, connection u64] | …
//! ```
//!
//! the lowest bits of `flags` say which brackets are there; behind them are, for kind 0 (send) `length u8, user` who sends it
//! (or 0), its form u8 (0 JSON, 1 text, 2 bytes) and what is sent, for 1 (disconnect) code u16 and reason, for 2 (unsubscribe)
//! the channel, for 3 (list) nothing, for 4 (keep) a revocation or a room. Bytes from Redis are from outside: what does not fit is refused.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use ringfeed_protocol::{ChannelName, UserId};
use smol_str::SmolStr;

use crate::access::{MadeRoom, Room};
use crate::bridge::item::{self, Reader, kind_from, kind_number, put_connection, put_text};
use crate::callers::KeyHash;
use crate::config::Speakers;
use crate::message::{
    Errand, ErrandId, Kept, Listed, Order, Outcome, Revocation, Revoked, RoomState, RoomVersion,
    RoomWord,
};

const VERSION: u8 = 1;
const HAS_USER: u8 = 1;
const HAS_CONNECTION: u8 = 1 << 1;
/// Longest reason of a close frame (RFC 6455 section 5.5).
const REASON_BYTES_MAX: usize = 123;
/// Of what is kept, about a room.
const ROOM: u8 = 2;
/// Milliseconds since 1970 that a node may say: others have to be able to say later ones.
const AT_MS_MAX: u64 = 1 << 53;
const PUBLIC: u8 = 1;
const MODERATED: u8 = 1 << 1;
const ANYONE: u8 = 1 << 2;
const ENDS: u8 = 1 << 3;

#[derive(Clone, Copy)]
enum Kind {
    Send,
    Disconnect,
    Unsubscribe,
    List,
    Keep,
}

/// Writes an errand; `None` for an order that no other node is given.
pub(in crate::bridge) fn encode_errand(
    ErrandId { instance, number }: ErrandId,
    errand: &Errand,
) -> Option<Bytes> {
    let mut out = BytesMut::with_capacity(64 + errand.cost());
    out.put_u8(VERSION);
    out.put_u64(instance);
    out.put_u64(number);
    let (user, connection, order) = match errand {
        Errand::User { user, connection, order } => (Some(user), *connection, Some(order)),
        Errand::Connection { connection, order } => (None, Some(*connection), Some(order)),
        Errand::List { user } => (Some(user), None, None),
        Errand::Keep(_) => (None, None, None),
    };
    let kind = match (errand, order) {
        (_, Some(Order::Send { .. })) => Kind::Send,
        (_, Some(Order::Disconnect { .. })) => Kind::Disconnect,
        (_, Some(Order::Unsubscribe(_))) => Kind::Unsubscribe,
        (_, Some(Order::LeaveRoom(_) | Order::TooMany)) => return None,
        (Errand::Keep(_), None) => Kind::Keep,
        (_, None) => Kind::List,
    };
    out.put_u8(kind as u8);
    let flags = if user.is_some() { HAS_USER } else { 0 };
    out.put_u8(flags | if connection.is_some() { HAS_CONNECTION } else { 0 });
    if let Some(user) = user {
        put_text(&mut out, user);
    }
    if let Some(connection) = connection {
        put_connection(&mut out, connection);
    }
    match order {
        Some(Order::Send { from, payload }) => {
            put_text(&mut out, from.as_deref().unwrap_or_default());
            out.put_u8(kind_number(payload.kind));
            out.put_slice(&payload.bytes);
        }
        Some(Order::Disconnect { code, reason }) => {
            out.put_u16(*code);
            out.put_slice(reason.as_bytes());
        }
        Some(Order::Unsubscribe(channel)) => out.put_slice(channel.as_bytes()),
        Some(Order::LeaveRoom(_) | Order::TooMany) | None => {}
    }
    if let Errand::Keep(kept) = errand {
        put_kept(&mut out, kept);
    }
    Some(out.freeze())
}

/// Reads an errand; `None` where it is none.
pub(in crate::bridge) fn decode_errand(bytes: &Bytes) -> Option<(ErrandId, Errand)> {
    let mut rest = Reader(bytes.clone());
    let (instance, number) = rest.counted()?;
    let (kind, flags) = (rest.u8()?, rest.u8()?);
    let user = if flags & HAS_USER != 0 { Some(rest.user()?) } else { None };
    let connection = if flags & HAS_CONNECTION != 0 { Some(rest.connection()?) } else { None };
    let order = match kind {
        kind if kind == Kind::Send as u8 => {
            let from = rest.text()?;
            let from = if from.is_empty() { None } else { Some(UserId::new(&from).ok()?) };
            let kind = kind_from(rest.u8()?)?;
            Some(Order::Send { from, payload: item::payload(kind, rest.0)? })
        }
        kind if kind == Kind::Disconnect as u8 => {
            let code = u16::try_from(rest.number(2)?).ok()?;
            let reason = std::str::from_utf8(&rest.0).ok()?;
            if !(4000..5000).contains(&code) || reason.len() > REASON_BYTES_MAX {
                return None;
            }
            Some(Order::Disconnect { code, reason: reason.into() })
        }
        kind if kind == Kind::Unsubscribe as u8 => {
            let channel = std::str::from_utf8(&rest.0).ok()?;
            Some(Order::Unsubscribe(ChannelName::new(channel).ok()?))
        }
        kind if kind == Kind::List as u8 && rest.0.is_empty() => None,
        kind if kind == Kind::Keep as u8 => {
            let none = user.is_none() && connection.is_none();
            let keep = Errand::Keep(decode_kept(&rest.0)?);
            return none.then_some((ErrandId { instance, number }, keep));
        }
        _ => return None,
    };
    let errand = match (user, connection, order) {
        (Some(user), connection, Some(order)) => Errand::User { user, connection, order },
        (None, Some(connection), Some(order)) => Errand::Connection { connection, order },
        (Some(user), None, None) => Errand::List { user },
        _ => return None,
    };
    Some((ErrandId { instance, number }, errand))
}

/// Writes what the process `instance` has to say to the `number`th errand of another one.
pub(in crate::bridge) fn encode_answer(instance: u64, number: u64, outcome: &Outcome) -> Bytes {
    let Outcome { reached, connections, behind, no_room } = outcome;
    let mut out = BytesMut::with_capacity(32 + 18 * connections.len());
    out.put_u8(VERSION);
    out.put_u64(instance);
    out.put_u64(number);
    out.put_u32(*reached);
    out.put_u8(u8::from(*behind) | u8::from(*no_room) << 1);
    for Listed { connection, since } in connections {
        put_connection(&mut out, *connection);
        out.put_u64(*since);
    }
    out.freeze()
}

/// Reads an answer: who says it, to which errand, and what.
pub(in crate::bridge) fn decode_answer(bytes: &Bytes) -> Option<(u64, u64, Outcome)> {
    let mut rest = Reader(bytes.clone());
    let (instance, number) = rest.counted()?;
    let (reached, flags) = (rest.u32()?, rest.u8()?);
    let (behind, no_room) = (flags & 1 != 0, flags & 2 != 0);
    let mut outcome = Outcome { reached, behind, no_room, ..Outcome::default() };
    while !rest.0.is_empty() {
        let connection = rest.connection()?;
        outcome.connections.push(Listed { connection, since: rest.u64()? });
    }
    Some((instance, number, outcome))
}

/// Writes what Redis is to keep: what it is about, in bytes that are the same each time, and what there is to it.
pub(in crate::bridge) fn encode_kept(kept: &Kept) -> (Bytes, Bytes) {
    let mut out = BytesMut::with_capacity(64);
    let about = put_kept(&mut out, kept);
    let about = out.split_to(about).freeze();
    (about, out.freeze())
}

/// Reads both together.
pub(in crate::bridge) fn decode_kept(bytes: &Bytes) -> Option<Kept> {
    let mut rest = Reader(bytes.clone());
    let (kind, id) = (rest.u8()?, rest.text()?);
    let kept = if kind == ROOM {
        Kept::Room(Box::new(room(&mut rest, &id)?))
    } else {
        let (before, until) = (rest.u64()?, rest.u64()?);
        let whom = match kind {
            0 if before == 0 && !id.is_empty() => Revoked::Token(SmolStr::new(&id)),
            1 => Revoked::User(UserId::new(&id).ok()?, before),
            _ => return None,
        };
        Kept::Revoked(Revocation { whom, until })
    };
    rest.0.is_empty().then_some(kept)
}

/// Returns how many bytes say what it is about.
fn put_kept(out: &mut BytesMut, kept: &Kept) -> usize {
    let start = out.len();
    let (kind, id): (u8, &str) = match kept {
        Kept::Revoked(Revocation { whom: Revoked::Token(token), .. }) => (0, token),
        Kept::Revoked(Revocation { whom: Revoked::User(user, _), .. }) => (1, user),
        Kept::Room(word) => (ROOM, &word.channel),
    };
    out.put_u8(kind);
    put_text(out, id);
    let about = out.len() - start;
    match kept {
        Kept::Revoked(Revocation { whom, until }) => {
            out.put_u64(if let Revoked::User(_, before) = whom { *before } else { 0 });
            out.put_u64(*until);
        }
        Kept::Room(word) => put_room(out, word),
    }
    about
}

fn put_room(out: &mut BytesMut, RoomWord { version, state, .. }: &RoomWord) {
    out.put_u64(version.at_ms);
    out.put_u64(version.tie);
    out.put_u8(match state {
        RoomState::Made(_) => 0,
        RoomState::Ended => 1,
        RoomState::Empty => 2,
    });
    let Some(MadeRoom { rules, ends_when_empty }) = state.made() else { return };
    let Room { members_max, public, moderated, speak, password, moderators, members } = &**rules;
    out.put_u32(*members_max);
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    out.put_u8(
        flag(*public, PUBLIC)
            | flag(*moderated, MODERATED)
            | flag(*speak == Speakers::Anyone, ANYONE)
            | flag(*ends_when_empty, ENDS),
    );
    let password = password.map(KeyHash::bytes);
    let password = password.as_ref().map_or(&[][..], |hash| hash);
    out.put_u8(password.len() as u8);
    out.put_slice(password);
    // The API takes far fewer.
    out.put_u16(u16::try_from(moderators.len()).unwrap_or(u16::MAX));
    moderators.iter().take(usize::from(u16::MAX)).chain(members).for_each(|own| put_text(out, own));
}

fn room(rest: &mut Reader, channel: &str) -> Option<RoomWord> {
    let channel = ChannelName::new(channel).ok()?;
    let version = RoomVersion { at_ms: rest.u64()?, tie: rest.u64()? };
    let state = match rest.u8()? {
        0 => RoomState::Made(like(rest)?),
        1 => RoomState::Ended,
        2 => RoomState::Empty,
        _ => return None,
    };
    (version.at_ms < AT_MS_MAX).then_some(RoomWord { channel, version, state })
}

fn like(rest: &mut Reader) -> Option<MadeRoom> {
    let (members_max, flags) = (rest.u32()?, rest.u8()?);
    let length = rest.u8()?;
    let password = rest.take(length.into())?;
    let password = match password.len() {
        0 => None,
        _ => Some(KeyHash::from_bytes(password[..].try_into().ok()?)),
    };
    let count = rest.number(2)?;
    let moderators = (0..count).map(|_| rest.user()).collect::<Option<_>>()?;
    let mut members = BTreeSet::new();
    while !rest.0.is_empty() {
        members.insert(rest.user()?);
    }
    let rules = Room {
        members_max,
        public: flags & PUBLIC != 0,
        moderated: flags & MODERATED != 0,
        speak: if flags & ANYONE != 0 { Speakers::Anyone } else { Speakers::Members },
        password,
        moderators,
        members,
    };
    Some(MadeRoom { rules: Arc::new(rules), ends_when_empty: flags & ENDS != 0 })
}

#[cfg(test)]
mod tests {
    use ringfeed_protocol::command::PayloadKind;

    use super::*;
    use crate::bridge::item::spoiled;
    use crate::ids::{ConnectionId, ShardId};
    use crate::message::StoredPayload;
    use crate::message::room_samples::made_room;

    const ID: ErrandId = ErrandId { instance: 7, number: 9 };

    fn errands() -> Vec<Errand> {
        let user = || UserId::new("ann").unwrap();
        let connection = ConnectionId { shard: ShardId(3), number: 5 };
        let payload = |kind, bytes: &'static str| StoredPayload { kind, bytes: bytes.into() };
        let send = |from: Option<UserId>, payload| Order::Send { from, payload };
        let of = |order| Errand::User { user: user(), connection: None, order };
        let kept = |revocation| Errand::Keep(Kept::Revoked(revocation));
        let room = |state| {
            let version = RoomVersion { at_ms: 9, tie: 8 };
            let word = RoomWord { channel: ChannelName::new("r.1").unwrap(), version, state };
            Errand::Keep(Kept::Room(Box::new(word)))
        };
        vec![
            of(send(None, payload(PayloadKind::Json, "{\"a\":1}"))),
            of(send(Some(user()), payload(PayloadKind::Text, ""))),
            of(send(Some(user()), payload(PayloadKind::Binary, "\u{1}"))),
            Errand::User {
                user: user(),
                connection: Some(connection),
                order: Order::Disconnect { code: 4500, reason: "go".into() },
            },
            Errand::Connection {
                connection,
                order: Order::Unsubscribe(ChannelName::new("a.b").unwrap()),
            },
            Errand::List { user: user() },
            kept(Revocation { whom: Revoked::Token("t".into()), until: u64::MAX }),
            kept(Revocation { whom: Revoked::User(user(), 5), until: 8 }),
            room(RoomState::Ended),
            room(RoomState::Empty),
            room(RoomState::Made(made_room(0))),
            room(RoomState::Made(MadeRoom { ends_when_empty: false, ..made_room(2) })),
        ]
    }

    #[test]
    fn what_is_written_is_read_and_nothing_shorter_or_else() {
        for errand in errands() {
            let bytes = encode_errand(ID, &errand).unwrap();
            let (id, read) = decode_errand(&bytes).unwrap();
            assert_eq!((id, format!("{read:?}")), (ID, format!("{errand:?}")));
            // Whatever comes is read or refused; what is read is written the same.
            for other in spoiled(&bytes) {
                if let Some((id, errand)) = decode_errand(&other) {
                    let again = encode_errand(id, &errand).unwrap();
                    assert!(decode_errand(&again).is_some(), "{errand:?}");
                }
            }
        }
        let ended = Errand::User {
            user: UserId::new("ann").unwrap(),
            connection: None,
            order: Order::TooMany,
        };
        assert_eq!(encode_errand(ID, &ended), None);
    }

    #[test]
    fn answers_are_read_as_they_were_written() {
        let connection = ConnectionId { shard: ShardId(3), number: 5 };
        let listed = Listed { connection, since: 1_700_000_000 };
        for connections in [vec![], vec![listed], vec![listed; 3]] {
            let outcome = Outcome { reached: 4, behind: true, no_room: false, connections };
            let bytes = encode_answer(7, 9, &outcome);
            assert_eq!(decode_answer(&bytes), Some((7, 9, outcome)));
            assert_eq!(decode_answer(&bytes.slice(..bytes.len() - 1)), None);
        }
    }
}
