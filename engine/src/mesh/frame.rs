//! What nodes say to one another over their links.
//!
//! ```text
//! length u32 | kind u8 | body
//! ```
//!
//! All numbers are big-endian; the length is that of kind and body. Names of channels stand behind their length, u8, other bytes
//! behind theirs, u32. Who is linked has shown the key; what does not fit is refused nevertheless, and ends the link.

use bytes::{BufMut as _, Bytes, BytesMut};
use ringfeed_protocol::event::Epoch;
use ringfeed_protocol::{ChannelName, Offset, Position};

use super::store::{Appended, Life, Stands};
use super::transfer::Transfer;
use crate::bridge::item::{Reader, put_text};
use crate::bridge::{Append, Item, Read};
use crate::message::KeyDigest;
use crate::registry::views::View;

/// Longest frame in bytes, its length not among them: a batch of publications and what stands around it, with room.
pub const FRAME_BYTES_MAX: usize = 32 << 20;

/// See the module's description.
#[derive(Debug, Clone)]
pub enum Frame {
    /// Says that the node lives, and by which view it goes. What it says behind that, it says as a member of that view.
    Alive(Alive),
    /// A view that the other one does not know yet.
    View(Box<View>),
    /// Something for the keeper of a channel; with the number under which it is answered, if it is.
    Ask(u64, Asked),
    /// The answer.
    Answer(u64, Answer),
    /// A message.
    Told(Topic, Bytes),
    /// For the next keeper of channels by this view, from the one before.
    Transfer(u64, Transfer),
}

/// See [`Frame::Alive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alive {
    /// The view.
    pub view: u64,
    /// When this was said, by the clock of who says it, in milliseconds.
    pub at_ms: u64,
    /// What the other one has said last of that, 0 if nothing.
    pub heard_ms: u64,
}

/// See [`Frame::Ask`].
#[derive(Debug, Clone)]
pub enum Asked {
    /// To be told what is published on these channels. Not answered.
    Follow(Vec<ChannelName>),
    /// To be told so no more. Not answered.
    Unfollow(ChannelName),
    /// To append publications.
    Append(Append),
    /// To say where a channel stands.
    Read(Read),
    /// To pass a message on to all who follow a channel.
    PassOn(ChannelName, Bytes),
}

impl Asked {
    /// Bytes of publications in it.
    pub fn bytes(&self) -> usize {
        match self {
            Asked::Append(append) => append.items.iter().map(|item| item.bytes.len()).sum(),
            Asked::PassOn(_, bytes) => bytes.len(),
            Asked::Follow(_) | Asked::Unfollow(_) | Asked::Read(_) => 0,
        }
    }
}

/// See [`Frame::Answer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To [`Asked::Append`].
    Appended(Appended),
    /// To [`Asked::Read`].
    Stands(Stands),
    /// To [`Asked::PassOn`]: so many were passed it.
    HeardBy(u32),
    /// There is no room for another channel.
    Refused,
}

/// What a message is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topic {
    /// A numbered channel: what was published on it, or who is there.
    Numbered(ChannelName),
    /// One that is not.
    Shared(ChannelName),
    /// How much was published by the node.
    Beat,
    /// Something that all nodes are to do.
    Errand,
    /// What has come of that, or who is on a channel, for this node alone.
    Answer,
}

const ALIVE: u8 = 1;
const VIEW: u8 = 2;
const FOLLOW: u8 = 10;
const UNFOLLOW: u8 = 11;
const APPEND: u8 = 12;
const READ: u8 = 13;
const PASS_ON: u8 = 14;
const APPENDED: u8 = 20;
const STANDS: u8 = 21;
const HEARD_BY: u8 = 22;
const REFUSED: u8 = 23;
const NUMBERED: u8 = 30;
const SHARED: u8 = 31;
const BEAT: u8 = 32;
const ERRAND: u8 = 33;
const ANSWER: u8 = 34;
const HISTORY: u8 = 40;
const LIFE: u8 = 41;
const END: u8 = 42;
const TAKEN: u8 = 43;

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

fn put_position(out: &mut BytesMut, Position { epoch, offset }: Position) {
    out.put_u64(epoch.0);
    out.put_u64(offset.0);
}

impl Frame {
    /// Writes it behind what is there.
    pub fn write(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u32(0);
        match self {
            Frame::Alive(Alive { view, at_ms, heard_ms }) => {
                out.put_u8(ALIVE);
                [view, at_ms, heard_ms].into_iter().for_each(|number| out.put_u64(*number));
            }
            Frame::View(view) => {
                out.put_u8(VIEW);
                // It has nothing that JSON cannot hold.
                out.put_slice(&serde_json::to_vec(view).unwrap_or_default());
            }
            Frame::Ask(number, asked) => write_asked(out, *number, asked),
            Frame::Answer(number, answer) => write_answer(out, *number, answer),
            Frame::Transfer(view, transfer) => write_transfer(out, *view, transfer),
            Frame::Told(topic, bytes) => {
                let (kind, name) = match topic {
                    Topic::Numbered(name) => (NUMBERED, Some(name)),
                    Topic::Shared(name) => (SHARED, Some(name)),
                    Topic::Beat => (BEAT, None),
                    Topic::Errand => (ERRAND, None),
                    Topic::Answer => (ANSWER, None),
                };
                out.put_u8(kind);
                if let Some(name) = name {
                    put_text(out, name);
                }
                out.put_slice(bytes);
            }
        }
        let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }

    /// Reads kind and body.
    pub fn read(bytes: Bytes) -> Option<Frame> {
        let mut rest = Reader(bytes);
        let frame = match rest.u8()? {
            ALIVE => {
                Frame::Alive(Alive { view: rest.u64()?, at_ms: rest.u64()?, heard_ms: rest.u64()? })
            }
            VIEW => {
                let view = serde_json::from_slice(&std::mem::take(&mut rest.0)).ok()?;
                Frame::View(Box::new(view))
            }
            kind @ FOLLOW..=PASS_ON => Frame::Ask(rest.u64()?, read_asked(kind, &mut rest)?),
            kind @ APPENDED..=REFUSED => Frame::Answer(rest.u64()?, read_answer(kind, &mut rest)?),
            kind @ HISTORY..=TAKEN => Frame::Transfer(rest.u64()?, read_transfer(kind, &mut rest)?),
            kind => {
                let topic = match kind {
                    NUMBERED => Topic::Numbered(rest.channel()?),
                    SHARED => Topic::Shared(rest.channel()?),
                    BEAT => Topic::Beat,
                    ERRAND => Topic::Errand,
                    ANSWER => Topic::Answer,
                    _ => return None,
                };
                Frame::Told(topic, std::mem::take(&mut rest.0))
            }
        };
        rest.0.is_empty().then_some(frame)
    }
}

fn write_asked(out: &mut BytesMut, number: u64, asked: &Asked) {
    out.put_u8(match asked {
        Asked::Follow(_) => FOLLOW,
        Asked::Unfollow(_) => UNFOLLOW,
        Asked::Append(_) => APPEND,
        Asked::Read(_) => READ,
        Asked::PassOn(..) => PASS_ON,
    });
    out.put_u64(number);
    match asked {
        Asked::Follow(names) => names.iter().for_each(|name| put_text(out, name)),
        Asked::Unfollow(name) => put_text(out, name),
        Asked::Append(Append { channel, instance, items }) => {
            put_text(out, channel);
            out.put_u64(*instance);
            for Item { number, bytes, key } in items {
                out.put_u64(*number);
                out.put_u8(key.is_some().into());
                if let Some(KeyDigest(digest)) = key {
                    out.put_slice(digest);
                }
                put_bytes(out, bytes);
            }
        }
        Asked::Read(Read { channel, since }) => {
            put_text(out, channel);
            out.put_u8(since.is_some().into());
            put_position(out, since.unwrap_or_default());
        }
        Asked::PassOn(name, bytes) => {
            put_text(out, name);
            out.put_slice(bytes);
        }
    }
}

fn read_asked(kind: u8, rest: &mut Reader) -> Option<Asked> {
    Some(match kind {
        FOLLOW => {
            let mut names = Vec::new();
            while !rest.0.is_empty() {
                names.push(rest.channel()?);
            }
            Asked::Follow(names)
        }
        UNFOLLOW => Asked::Unfollow(rest.channel()?),
        APPEND => {
            let (channel, instance) = (rest.channel()?, rest.u64()?);
            let mut items: Vec<Item> = Vec::new();
            while !rest.0.is_empty() {
                let number = rest.u64()?;
                let key = match rest.u8()? {
                    0 => None,
                    1 => Some(digest(rest)?),
                    _ => return None,
                };
                // Numbers of an instance only grow.
                if items.last().is_some_and(|last| last.number >= number) {
                    return None;
                }
                items.push(Item { number, bytes: bytes(rest)?, key });
            }
            if items.is_empty() {
                return None;
            }
            Asked::Append(Append { channel, instance, items })
        }
        READ => {
            let (channel, has_since) = (rest.channel()?, rest.u8()?);
            let since = position(rest)?;
            Asked::Read(Read { channel, since: (has_since == 1).then_some(since) })
        }
        PASS_ON => Asked::PassOn(rest.channel()?, std::mem::take(&mut rest.0)),
        _ => return None,
    })
}

fn write_answer(out: &mut BytesMut, number: u64, answer: &Answer) {
    out.put_u8(match answer {
        Answer::Appended(_) => APPENDED,
        Answer::Stands(_) => STANDS,
        Answer::HeardBy(_) => HEARD_BY,
        Answer::Refused => REFUSED,
    });
    out.put_u64(number);
    match answer {
        Answer::Appended(appended) => put_appended(out, appended),
        Answer::Stands(Stands { position, entries }) => {
            put_position(out, *position);
            for (offset, age_ms, item) in entries {
                out.put_u64(offset.0);
                out.put_u64(*age_ms);
                put_bytes(out, item);
            }
        }
        Answer::HeardBy(count) => out.put_u32(*count),
        Answer::Refused => {}
    }
}

fn read_answer(kind: u8, rest: &mut Reader) -> Option<Answer> {
    Some(match kind {
        APPENDED => Answer::Appended(appended(rest)?),
        STANDS => {
            let position = position(rest)?;
            let mut entries = Vec::new();
            while !rest.0.is_empty() {
                entries.push((Offset(rest.u64()?), rest.u64()?, bytes(rest)?));
            }
            Answer::Stands(Stands { position, entries })
        }
        HEARD_BY => Answer::HeardBy(rest.u32()?),
        REFUSED => Answer::Refused,
        _ => return None,
    })
}

/// To be followed by nothing, or to stand behind its length.
fn put_appended(out: &mut BytesMut, Appended { epoch, last, duplicates }: &Appended) {
    put_position(out, Position { epoch: *epoch, offset: *last });
    for (place, stands) in duplicates {
        out.put_u32(*place);
        put_position(out, *stands);
    }
}

fn appended(rest: &mut Reader) -> Option<Appended> {
    let Position { epoch, offset: last } = position(rest)?;
    let mut duplicates = Vec::new();
    while !rest.0.is_empty() {
        duplicates.push((rest.u32()?, position(rest)?));
    }
    Some(Appended { epoch, last, duplicates })
}

fn write_transfer(out: &mut BytesMut, view: u64, transfer: &Transfer) {
    out.put_u8(match transfer {
        Transfer::History(..) => HISTORY,
        Transfer::Life(..) => LIFE,
        Transfer::End => END,
        Transfer::Taken => TAKEN,
    });
    out.put_u64(view);
    match transfer {
        Transfer::History(channel, entries) => {
            put_text(out, channel);
            for (age_ms, item) in entries {
                out.put_u64(*age_ms);
                put_bytes(out, item);
            }
        }
        Transfer::Life(channel, Life { epoch, offset, done, keys }) => {
            put_text(out, channel);
            put_position(out, Position { epoch: *epoch, offset: *offset });
            out.put_u32(u32::try_from(done.len()).unwrap_or(u32::MAX));
            for (by, number, age_ms, answer) in done {
                [by, number, age_ms].into_iter().for_each(|number| out.put_u64(*number));
                let mut bytes = BytesMut::new();
                put_appended(&mut bytes, answer);
                put_bytes(out, &bytes);
            }
            for (KeyDigest(digest), place, age_ms) in keys {
                out.put_slice(digest);
                put_position(out, *place);
                out.put_u64(*age_ms);
            }
        }
        Transfer::End | Transfer::Taken => {}
    }
}

fn read_transfer(kind: u8, rest: &mut Reader) -> Option<Transfer> {
    Some(match kind {
        HISTORY => {
            let channel = rest.channel()?;
            let mut entries = Vec::new();
            while !rest.0.is_empty() {
                entries.push((rest.u64()?, bytes(rest)?));
            }
            Transfer::History(channel, entries)
        }
        LIFE => {
            let channel = rest.channel()?;
            let Position { epoch, offset } = position(rest)?;
            let mut done = Vec::new();
            for _ in 0..rest.u32()? {
                let (by, number, age_ms) = (rest.u64()?, rest.u64()?, rest.u64()?);
                done.push((by, number, age_ms, appended(&mut Reader(bytes(rest)?))?));
            }
            let mut keys = Vec::new();
            while !rest.0.is_empty() {
                keys.push((digest(rest)?, position(rest)?, rest.u64()?));
            }
            Transfer::Life(channel, Life { epoch, offset, done, keys })
        }
        END => Transfer::End,
        TAKEN => Transfer::Taken,
        _ => return None,
    })
}

fn digest(rest: &mut Reader) -> Option<KeyDigest> {
    Some(KeyDigest(rest.take(16)?[..].try_into().ok()?))
}

fn bytes(rest: &mut Reader) -> Option<Bytes> {
    let length = rest.u32()?;
    rest.take(usize::try_from(length).ok()?)
}

fn position(rest: &mut Reader) -> Option<Position> {
    Some(Position { epoch: Epoch(rest.u64()?), offset: Offset(rest.u64()?) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(frame: &Frame) -> Bytes {
        let mut out = BytesMut::new();
        frame.write(&mut out);
        let mut rest = Reader(out.freeze());
        assert_eq!(rest.u32().unwrap() as usize, rest.0.len());
        rest.0
    }

    fn examples() -> Vec<Frame> {
        let name = || ChannelName::new("a.b").unwrap();
        let at = |offset| Position { epoch: Epoch(7), offset: Offset(offset) };
        let item = |number, key| Item { number, bytes: Bytes::from_static(b"item"), key };
        let items = vec![item(1, None), item(5, Some(KeyDigest([3; 16])))];
        let view = View { number: 2, previous: 1, ..View::default() };
        let entries = vec![(Offset(1), 5, Bytes::from_static(b"x"))];
        let answers = [
            Answer::Appended(Appended {
                epoch: Epoch(1),
                last: Offset(9),
                duplicates: vec![(1, at(3))],
            }),
            Answer::Stands(Stands { position: at(1), entries }),
            Answer::HeardBy(3),
            Answer::Refused,
        ];
        let asked = [
            Asked::Follow(vec![name(), name()]),
            Asked::Unfollow(name()),
            Asked::Append(Append { channel: name(), instance: 4, items }),
            Asked::Read(Read { channel: name(), since: Some(at(3)) }),
            Asked::Read(Read { channel: name(), since: None }),
            Asked::PassOn(name(), Bytes::from_static(b"roll")),
        ];
        let topics = [
            Topic::Numbered(name()),
            Topic::Shared(name()),
            Topic::Beat,
            Topic::Errand,
            Topic::Answer,
        ];
        let answer =
            Appended { epoch: Epoch(1), last: Offset(9), duplicates: vec![(1, at(3)), (4, at(5))] };
        let done = vec![(1, 2, 3, answer.clone()), (4, 5, 6, answer)];
        let keys = vec![(KeyDigest([3; 16]), at(3), 7)];
        let life = Life { epoch: Epoch(7), offset: Offset(9), done, keys };
        let history = vec![(5, Bytes::from_static(b"x")), (4, Bytes::from_static(b""))];
        let transfers = [
            Transfer::History(name(), history),
            Transfer::Life(name(), life),
            Transfer::End,
            Transfer::Taken,
        ];
        let alive = Frame::Alive(Alive { view: 1, at_ms: 2, heard_ms: 3 });
        let mut all = vec![alive, Frame::View(Box::new(view))];
        all.extend(asked.into_iter().map(|asked| Frame::Ask(8, asked)));
        all.extend(answers.into_iter().map(|answer| Frame::Answer(8, answer)));
        all.extend(transfers.into_iter().map(|transfer| Frame::Transfer(8, transfer)));
        all.extend(topics.into_iter().map(|topic| Frame::Told(topic, Bytes::from_static(b"m"))));
        all
    }

    #[test]
    fn what_is_written_is_read_and_what_ends_early_is_refused_or_less() {
        for frame in examples() {
            let bytes = written(&frame);
            let read = Frame::read(bytes.clone()).unwrap();
            assert_eq!(format!("{frame:?}"), format!("{read:?}"));
            for end in 0..bytes.len() {
                let part = Frame::read(bytes.slice(..end)).map(|frame| written(&frame));
                assert!(part.is_none_or(|part| part == bytes.slice(..end)), "{frame:?} to {end}");
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(kind in 0u8..50, body: Vec<u8>) {
            let _ = Frame::read([vec![kind], body].concat().into());
        }
    }
}
