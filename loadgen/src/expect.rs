//! What subscribers must receive: for each channel and lane the very bytes of its stream, and for
//! each subscriber a cursor into them. Verification is comparing runs of bytes, not parsing
//! messages; only what does not match is parsed.

use std::collections::VecDeque;

use ringfeed_protocol::command::PayloadKind;
use ringfeed_protocol::event::Publication;
use ringfeed_protocol::frame::Header;
use ringfeed_protocol::{Lane, Offset};

/// The stream of one channel in one lane.
#[derive(Debug)]
pub(crate) struct Stream {
    lane: Lane,
    channel: String,
    /// Offset of the first message in this stream, as the server counts; set once it is known.
    first_offset: Option<u64>,
    /// The life in which it has that; once it is known.
    epoch: Option<Box<str>>,
    bytes: Vec<u8>,
    /// Position of `bytes[0]`.
    base: u64,
    /// Where each message ends and when it was meant to be sent.
    messages: VecDeque<Message>,
    /// Number of `messages[0]`.
    first: u64,
    /// The first message that counts; those before it only showed that a subscription stands.
    counted_from: u64,
}

#[derive(Debug, Clone, Copy)]
struct Message {
    end: u64,
    intended_ns: u64,
}

/// A subscriber's place in a stream.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cursor {
    position: u64,
    /// Number of the message under way.
    next: u64,
}

/// How a whole frame relates to a cursor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is the next one.
    Next,
    /// It comes later: so many before it are missing.
    Ahead(u64),
    /// It was there before.
    Behind,
    /// It is nowhere in the stream.
    Nowhere,
}

impl Stream {
    pub(crate) fn new(lane: Lane, channel: &str) -> Stream {
        Stream {
            lane,
            channel: channel.to_owned(),
            first_offset: None,
            epoch: None,
            bytes: Vec::new(),
            base: 0,
            messages: VecDeque::new(),
            first: 0,
            counted_from: 0,
        }
    }

    /// A subscription begins in this life.
    pub(crate) fn lives(&mut self, epoch: &str) {
        self.epoch.get_or_insert_with(|| epoch.into());
    }

    /// Whether offsets of this life are those of messages here.
    pub(crate) fn is_of(&self, epoch: &str) -> bool {
        self.epoch.as_deref().is_none_or(|own| own == epoch)
    }

    /// The channel stood at this offset when a subscription began: where that one starts. `None` if
    /// it contradicts what is known: somebody else publishes to the channel.
    pub(crate) fn starts_behind(&mut self, offset: u64) -> Option<Cursor> {
        let first = *self.first_offset.get_or_insert(offset + 1);
        let number = (offset + 1).checked_sub(first)?;
        (self.first..=self.end()).contains(&number).then(|| self.cursor_at(number))
    }

    /// Number of the message after the last.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.messages.len() as u64
    }

    /// Before a message that is known, or behind the last.
    pub(crate) fn cursor_at(&self, number: u64) -> Cursor {
        Cursor { position: self.start_of(number), next: number }
    }

    /// Where a message begins, if it is known.
    fn start_of(&self, number: u64) -> u64 {
        let before = number.checked_sub(1).and_then(|before| self.message(before));
        before.map_or(self.base, |message| message.end)
    }

    /// A message as it is sent, if it is still known.
    pub(crate) fn frame(&self, number: u64) -> Option<&[u8]> {
        let len = self.message(number)?.end - self.start_of(number);
        self.behind(self.start_of(number)).get(..usize::try_from(len).ok()?)
    }

    /// What was published as a message, without the frame around it.
    pub(crate) fn payload(&self, number: u64) -> Option<&[u8]> {
        payload_of(self.frame(number)?)
    }

    /// The message that the server gave this offset.
    pub(crate) fn number_of(&self, offset: u64) -> Option<u64> {
        offset.checked_sub(self.first_offset?)
    }

    /// The offset that the server gives a message.
    pub(crate) fn offset_of(&self, number: u64) -> u64 {
        self.first_offset.unwrap_or(1) + number
    }

    /// A cursor one message earlier, if that one is still known.
    pub(crate) fn back(&self, cursor: Cursor) -> Option<Cursor> {
        let number = cursor.next.checked_sub(1)?;
        self.message(number)?;
        Some(self.cursor_at(number))
    }

    /// Whether a frame is the next one; if so, the cursor moves behind it.
    pub(crate) fn takes(&self, cursor: &mut Cursor, frame: &[u8]) -> bool {
        let start = self.start_of(cursor.next);
        let next = self.message(cursor.next);
        let fits = next.is_some_and(|message| message.end - start == frame.len() as u64)
            && self.behind(start).starts_with(frame);
        if fits {
            *cursor = Cursor { position: start + frame.len() as u64, next: cursor.next + 1 };
        }
        fits
    }

    /// Appends what is about to be published.
    pub(crate) fn append(&mut self, payload: &[u8], intended_ns: u64, counts: bool) {
        let number = self.first + self.messages.len() as u64;
        let offset = *self.first_offset.get_or_insert(1) + number;
        let offset = Offset(offset);
        let publication =
            Publication { offset, kind: PayloadKind::Json, bytes: payload, meta: None };
        self.lane.write_publication(&mut self.bytes, &self.channel, &publication);
        let end = self.base + self.bytes.len() as u64;
        self.messages.push_back(Message { end, intended_ns });
        if !counts {
            self.counted_from = number + 1;
        }
    }

    /// Messages that every subscriber must get.
    pub(crate) fn counted(&self) -> u64 {
        self.first + self.messages.len() as u64 - self.counted_from
    }

    pub(crate) fn counted_from(&self) -> u64 {
        self.counted_from
    }

    /// What comes behind a position.
    fn behind(&self, position: u64) -> &[u8] {
        let at = position.checked_sub(self.base).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.bytes.get(at..)).unwrap_or_default()
    }

    fn message(&self, number: u64) -> Option<&Message> {
        self.messages.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// When a message was meant to be sent.
    pub(crate) fn intended_ns(&self, number: u64) -> u64 {
        self.message(number).map_or(0, |message| message.intended_ns)
    }

    /// Forgets what lies before the least cursor, unless it was sent after `keep_ns`; says the
    /// payloads that go.
    pub(crate) fn trim(&mut self, least: Cursor, keep_ns: u64, mut forgotten: impl FnMut(&[u8])) {
        let old = self.messages.partition_point(|message| message.intended_ns < keep_ns) as u64;
        let least = least.next.min(self.first + old);
        let start = self.start_of(least);
        let cut = usize::try_from(start - self.base).unwrap_or(0);
        // Moving what is left costs more than it frees unless much goes.
        if cut > self.bytes.len() / 2 {
            (self.first..least).filter_map(|number| self.payload(number)).for_each(&mut forgotten);
            self.bytes.drain(..cut);
            self.base = start;
            while self.first < least && self.messages.pop_front().is_some() {
                self.first += 1;
            }
        }
    }

    pub(crate) fn bytes_held(&self) -> usize {
        self.bytes.capacity()
    }

    /// How a whole frame relates to the cursor; moves the cursor behind it unless it is an old one.
    pub(crate) fn find(&self, cursor: &mut Cursor, frame: &[u8]) -> Found {
        if self.takes(cursor, frame) {
            return Found::Next;
        }
        let is = |number: u64| (self.frame(number) == Some(frame)).then_some(number);
        if let Some(number) = (cursor.next..self.end()).find_map(is) {
            let missing = number - cursor.next;
            cursor.next = number + 1;
            cursor.position = self.message(number).map_or(cursor.position, |m| m.end);
            return Found::Ahead(missing);
        }
        match (self.first..cursor.next).find_map(is) {
            Some(_) => Found::Behind,
            None => Found::Nowhere,
        }
    }

    /// Compares a run of bytes with what the cursor expects. Returns how many bytes are as they
    /// should be; the cursor has moved behind them.
    pub(crate) fn compare(&self, cursor: &mut Cursor, run: &[u8]) -> usize {
        let expected = self.behind(cursor.position);
        let len = run.len().min(expected.len());
        let equal = if run[..len] == expected[..len] {
            len
        } else {
            run.iter().zip(expected).take_while(|(a, b)| a == b).count()
        };
        cursor.position += equal as u64;
        while self.message(cursor.next).is_some_and(|message| message.end <= cursor.position) {
            cursor.next += 1;
        }
        equal
    }

    /// Goes back to the start of the frame under way and returns the bytes of it that were taken.
    pub(crate) fn rewind(&self, cursor: &mut Cursor) -> &[u8] {
        let start = self.start_of(cursor.next);
        let taken = (cursor.position - start) as usize;
        cursor.position = start;
        &self.behind(start)[..taken]
    }
}

/// What a frame carries; `None` of what is no frame.
pub(crate) fn payload_of(frame: &[u8]) -> Option<&[u8]> {
    let (_, header) = Header::parse(frame).ok()??;
    frame.get(header..)
}

impl Cursor {
    /// The number of the next message.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfeed_protocol::frame::{Opcode, write_server};

    fn stream(count: u64) -> (Stream, Vec<Vec<u8>>) {
        let mut stream = Stream::new(Lane::RAW, "c");
        let mut frames = Vec::new();
        for i in 0..count {
            let payload = format!("{{\"n\":{i}}}");
            stream.append(payload.as_bytes(), i, true);
            let mut frame = Vec::new();
            write_server(&mut frame, Opcode::Text, payload.as_bytes());
            frames.push(frame);
        }
        (stream, frames)
    }

    #[test]
    fn runs_are_compared_across_any_cut() {
        let (stream, frames) = stream(50);
        let all = frames.concat();
        for step in 1..40 {
            let mut cursor = Cursor::default();
            for run in all.chunks(step) {
                assert_eq!(stream.compare(&mut cursor, run), run.len());
            }
            assert_eq!(cursor.next(), 50);
        }
    }

    #[test]
    fn a_loss_a_double_and_a_stranger_are_told_apart() {
        let (stream, frames) = stream(10);
        let mut cursor = Cursor::default();
        assert_eq!(stream.find(&mut cursor, &frames[0]), Found::Next);
        assert_eq!(stream.find(&mut cursor, &frames[3]), Found::Ahead(2));
        assert_eq!(stream.find(&mut cursor, &frames[1]), Found::Behind);
        assert_eq!(stream.find(&mut cursor, b"\x81\x01x"), Found::Nowhere);
        assert_eq!(stream.find(&mut cursor, &frames[4]), Found::Next);
    }

    #[test]
    fn a_mismatch_inside_a_frame_is_rewound_to_its_start() {
        let (stream, frames) = stream(3);
        let mut cursor = Cursor::default();
        let run = [&frames[0][..], &frames[1][..4]].concat();
        assert_eq!(stream.compare(&mut cursor, &run), run.len());
        assert_eq!(stream.rewind(&mut cursor), &frames[1][..4]);
        assert_eq!(stream.find(&mut cursor, &frames[1]), Found::Next);
    }

    #[test]
    fn trimming_keeps_every_cursor_valid() {
        let (mut stream, frames) = stream(100);
        let mut slow = Cursor::default();
        stream.compare(&mut slow, &frames[..80].concat());
        stream.trim(slow, u64::MAX, |_| {});
        assert_eq!(stream.first, 80);
        assert_eq!(stream.find(&mut slow, &frames[80]), Found::Next);
        assert_eq!(stream.find(&mut slow, &frames[85]), Found::Ahead(4));
        assert_eq!(stream.counted(), 100);
    }
}
