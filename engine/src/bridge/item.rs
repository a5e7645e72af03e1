//! How publications travel through Redis, and stand in its streams.
//!
//! An *item* is a publication without its offset:
//!
//! ```text
//! version u8 = 1 | flags u8 | [time_ms u64, number u32, user length u8, user] | [shard u16, connection u64] | [instance u64, number u64] | payload
//! ```
//!
//! all numbers big-endian; the bits of `flags`, from the lowest: two for the kind of the payload (0 JSON, 1 text, 2 bytes),
//! whether the first bracket is there, whether it has a user, whether who gets it is asked to confirm it, whether the second
//! bracket is there (the connection that is not sent it), whether the third is (which process waits for that, and by which
//! number it knows it). A *message* on a numbered channel is what one command has appended:
//!
//! ```text
//! version u8 = 1 | epoch u64 | first offset u64 | (length u32 | item) …
//! ```
//!
//! and on one that is not numbered it is the same version, the instance of the node that publishes it, u64, how many it has published
//! on such channels with this one, u64, and an item; a *beat* is the same without an item. Bytes from Redis are from outside: what does not fit is refused.

use bytes::{BufMut, Bytes, BytesMut};
use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::event::{Epoch, Meta};
use ringfeed_protocol::{ChannelName, Offset, UserId};

use crate::ids::{ConnectionId, ShardId};
use crate::message::{Numbered, Outgoing, StoredPayload, Wanted};

const VERSION: u8 = 1;
const KIND: u8 = 0b11;
const HAS_META: u8 = 1 << 2;
const HAS_USER: u8 = 1 << 3;
const CONFIRM: u8 = 1 << 4;
const HAS_EXCEPT: u8 = 1 << 5;
const IS_WANTED: u8 = 1 << 6;
/// What stands before a payload at most.
const HEAD_BYTES_MAX: usize = 2 + 8 + 4 + 1 + 255 + 2 + 8 + 8 + 8;

/// Writes an item.
pub fn encode(publication: &Outgoing) -> Bytes {
    let mut out = BytesMut::with_capacity(HEAD_BYTES_MAX.min(32) + publication.payload.bytes.len());
    write(&mut out, publication);
    out.freeze()
}

/// Writes a message for a channel that is not numbered: the `number`th of its instance.
pub fn encode_shared(instance: u64, number: u64, publication: &Outgoing) -> Bytes {
    let mut out = BytesMut::with_capacity(48 + publication.payload.bytes.len());
    out.put_u8(VERSION);
    out.put_u64(instance);
    out.put_u64(number);
    write(&mut out, publication);
    out.freeze()
}

/// Writes that an instance has published so many messages for channels that are not numbered.
pub fn encode_beat(instance: u64, number: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + 8 + 8);
    out.put_u8(VERSION);
    out.put_u64(instance);
    out.put_u64(number);
    out.freeze()
}

/// Reads a beat: instance and number.
pub fn decode_beat(beat: &Bytes) -> Option<(u64, u64)> {
    let mut rest = Reader(beat.clone());
    let read = rest.counted()?;
    rest.0.is_empty().then_some(read)
}

fn write(out: &mut BytesMut, Outgoing { payload, meta, except, wanted }: &Outgoing) {
    let mut flags = kind_number(payload.kind);
    if let Some(meta) = meta {
        flags |= HAS_META;
        flags |= if meta.user.is_some() { HAS_USER } else { 0 };
        flags |= if meta.confirm { CONFIRM } else { 0 };
    }
    flags |= if except.is_some() { HAS_EXCEPT } else { 0 };
    flags |= if wanted.is_some() { IS_WANTED } else { 0 };
    out.put_u8(VERSION);
    out.put_u8(flags);
    if let Some(meta) = meta {
        out.put_u64(meta.time_ms);
        out.put_u32(meta.number);
        if let Some(user) = &meta.user {
            put_text(out, user);
        }
    }
    if let Some(connection) = except {
        put_connection(out, *connection);
    }
    if let Some(Wanted { instance, number }) = wanted {
        out.put_u64(*instance);
        out.put_u64(*number);
    }
    out.put_slice(&payload.bytes);
}

/// The number of a kind of payload, as all formats have it.
pub(super) fn kind_number(kind: PayloadKind) -> u8 {
    match kind {
        PayloadKind::Json => 0,
        PayloadKind::Text => 1,
        PayloadKind::Binary => 2,
    }
}

/// The kind with a number.
pub(super) fn kind_from(number: u8) -> Option<PayloadKind> {
    [PayloadKind::Json, PayloadKind::Text, PayloadKind::Binary].get(usize::from(number)).copied()
}

/// A payload, if it is what it says of itself: others go by that.
pub(super) fn payload(kind: PayloadKind, bytes: Bytes) -> Option<StoredPayload> {
    let holds = match kind {
        PayloadKind::Json => serde_json::from_slice::<&serde_json::value::RawValue>(&bytes).is_ok(),
        PayloadKind::Text => std::str::from_utf8(&bytes).is_ok(),
        PayloadKind::Binary => true,
    };
    holds.then_some(StoredPayload { kind, bytes })
}

/// Reads an item; `None` where it is none.
pub fn decode(item: &Bytes) -> Option<Outgoing> {
    let mut rest = Reader(item.clone());
    if rest.u8()? != VERSION {
        return None;
    }
    let flags = rest.u8()?;
    let kind = kind_from(flags & KIND)?;
    let meta = if flags & HAS_META != 0 {
        let (time_ms, number) = (rest.u64()?, rest.u32()?);
        let user = if flags & HAS_USER != 0 { Some(rest.user()?) } else { None };
        let confirm = flags & CONFIRM != 0;
        Some(Box::new(Meta { time_ms, user, number, confirm }))
    } else {
        None
    };
    let except = if flags & HAS_EXCEPT != 0 { Some(rest.connection()?) } else { None };
    let wanted = if flags & IS_WANTED != 0 {
        Some(Wanted { instance: rest.u64()?, number: rest.u64()? })
    } else {
        None
    };
    let payload = payload(kind, rest.0)?;
    Some(Outgoing { payload, meta, except, wanted })
}

/// Reads a message of a numbered channel.
pub fn decode_message(message: &Bytes) -> Option<(Epoch, Vec<Numbered>)> {
    let mut rest = Reader(message.clone());
    if rest.u8()? != VERSION {
        return None;
    }
    let (epoch, first) = (Epoch(rest.u64()?), Offset(rest.u64()?));
    let mut publications = Vec::new();
    for offset in first.onwards() {
        if rest.0.is_empty() {
            break;
        }
        let length = rest.u32()?;
        let item = rest.take(usize::try_from(length).ok()?)?;
        publications.push(Numbered { offset, age_ms: 0, publication: decode(&item)? });
    }
    Some((epoch, publications))
}

/// Reads a message of a channel that is not numbered: who has published it, under which number, and what.
pub fn decode_shared(message: &Bytes) -> Option<(u64, u64, Outgoing)> {
    let mut rest = Reader(message.clone());
    let (instance, number) = rest.counted()?;
    Some((instance, number, decode(&rest.0)?))
}

/// Writes a text behind its length: names of channels, and ids of users and of tokens, have at most 255 bytes.
pub(crate) fn put_text(out: &mut impl BufMut, text: &str) {
    out.put_u8(text.len() as u8);
    out.put_slice(text.as_bytes());
}

/// Writes which connection of a node.
pub(super) fn put_connection(out: &mut BytesMut, ConnectionId { shard, number }: ConnectionId) {
    out.put_u16(shard.0);
    out.put_u64(number);
}

/// Bytes that are read from the front.
pub(crate) struct Reader(pub(crate) Bytes);

impl Reader {
    pub(crate) fn take(&mut self, count: usize) -> Option<Bytes> {
        (count <= self.0.len()).then(|| self.0.split_to(count))
    }

    /// A process, and a number that it has given.
    pub(crate) fn counted(&mut self) -> Option<(u64, u64)> {
        (self.u8()? == VERSION).then_some(())?;
        Some((self.u64()?, self.u64()?))
    }

    /// A text behind its length.
    pub(crate) fn text(&mut self) -> Option<String> {
        let length = self.u8()?;
        String::from_utf8(self.take(length.into())?.into()).ok()
    }

    /// A channel, as a text is written.
    pub(crate) fn channel(&mut self) -> Option<ChannelName> {
        ChannelName::new(&self.text()?).ok()
    }

    /// A user, likewise.
    pub(super) fn user(&mut self) -> Option<UserId> {
        UserId::new(&self.text()?).ok()
    }

    /// Which connection of a node.
    pub(super) fn connection(&mut self) -> Option<ConnectionId> {
        let shard = ShardId(u16::try_from(self.number(2)?).ok()?);
        Some(ConnectionId { shard, number: self.u64()? })
    }

    pub(crate) fn number(&mut self, bytes: usize) -> Option<u64> {
        Some(self.take(bytes)?.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        u32::try_from(self.number(4)?).ok()
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.number(8)
    }
}

/// What may come instead of something that was written: each of its bytes changed, and all that is shorter.
#[cfg(test)]
pub(super) fn spoiled(bytes: &Bytes) -> impl Iterator<Item = Bytes> {
    let changed = |at: usize| {
        [0, 1, 2, 4, 7, 0xff].map(|changed| {
            let mut other = bytes.to_vec();
            other[at] = changed;
            Bytes::from(other)
        })
    };
    (0..bytes.len()).flat_map(move |at| changed(at).into_iter().chain([bytes.slice(..at)]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outgoing(user: Option<&str>, except: Option<u64>, kind: u8, bytes: &[u8]) -> Outgoing {
        let kind = [PayloadKind::Text, PayloadKind::Binary][usize::from(kind % 2)];
        let bytes = match kind {
            PayloadKind::Text => String::from_utf8_lossy(bytes).into_owned().into(),
            _ => Bytes::copy_from_slice(bytes),
        };
        let user = user.and_then(|user| UserId::new(user).ok());
        let meta = Some(Box::new(Meta { time_ms: 7, user, number: 9, confirm: false }));
        let except = except.map(|number| ConnectionId { shard: ShardId(3), number });
        let wanted = except.map(|own| Wanted { instance: !own.number, number: own.number });
        Outgoing { payload: StoredPayload { kind, bytes }, meta, except, wanted }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            user in "[a-zäö]{0,60}", except: Option<u64>, kind: u8, bytes: Vec<u8>, id: (u64, u64),
        ) {
            let before = outgoing(Some(&user), except, kind, &bytes);
            let after = decode(&encode(&before)).unwrap();
            prop_assert_eq!(format!("{before:?}"), format!("{after:?}"));
            let (of, number, shared) = decode_shared(&encode_shared(id.0, id.1, &before)).unwrap();
            prop_assert_eq!(((of, number), format!("{before:?}")), (id, format!("{shared:?}")));
            prop_assert_eq!(decode_beat(&encode_beat(id.0, id.1)), Some(id));
        }

        #[test]
        fn whatever_comes_is_read_or_refused(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let _ = (decode(&bytes), decode_message(&bytes), decode_shared(&bytes), decode_beat(&bytes));
        }
    }

    #[test]
    fn a_message_that_ends_early_is_refused() {
        let item = encode(&outgoing(None, Some(1), 1, b"payload"));
        let mut message = BytesMut::new();
        message.put_u8(VERSION);
        message.put_u64(5);
        message.put_u64(41);
        for _ in 0..3 {
            message.put_u32(item.len() as u32);
            message.put_slice(&item);
        }
        let message = message.freeze();
        let (epoch, publications) = decode_message(&message).unwrap();
        let offsets: Vec<u64> = publications.iter().map(|numbered| numbered.offset.0).collect();
        assert_eq!((epoch, offsets), (Epoch(5), vec![41, 42, 43]));
        let whole = |end: usize| (end - 17).is_multiple_of(item.len() + 4);
        for end in (0..message.len()).filter(|&end| end < 17 || !whole(end)) {
            assert!(decode_message(&message.slice(..end)).is_none(), "{end}");
        }
    }

    #[test]
    fn what_says_that_it_is_json_is() {
        let payload = StoredPayload { kind: PayloadKind::Json, bytes: Bytes::from_static(b"{") };
        let item = encode(&Outgoing { payload, meta: None, except: None, wanted: None });
        assert!(decode(&item).is_none());
    }
}
