//! What arrives, against what must arrive.

use std::sync::atomic::Ordering;

use anyhow::{Context as _, bail};
use ringfeed_protocol::frame::{Header, Opcode};
use serde_json::Value;

use super::{Fleet, Speech, State, Subscription, stream_place, subscribe_command};
use crate::expect::Found;
use crate::templates::{Stamp, find_stamp};

/// The longest frame that is believed; a longer one means that the stream is torn.
const FRAME_BYTES_MAX: u64 = 64 << 20;

/// How a message of `ringfeed.v1` begins; the channel's name follows.
const MESSAGE_OF_CHANNEL: &[u8] = b"{\"type\":\"message\",\"channel\":\"";

impl Fleet {
    pub(super) fn received(&mut self, at: usize, bytes: &[u8], now_ns: u64) -> anyhow::Result<()> {
        self.progress.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut rest = bytes;
        if matches!(self.conns[at].state, State::Shaking(_)) {
            let Some(left) = self.shaken(at, bytes)? else { return Ok(()) };
            rest = &bytes[bytes.len() - left..];
            self.opened(at);
            if rest.is_empty() {
                return Ok(());
            }
        }
        // What was published is known before it arrives.
        self.take_coming();
        let conn = &mut self.conns[at];
        if conn.stash.is_empty()
            && let [subscription] = &mut conn.subscriptions[..]
            && subscription.standing
            && let Some(stream) =
                &self.streams[stream_place(subscription.channel, conn.speech.lane())]
        {
            let first = subscription.cursor.next();
            let equal = stream.compare(&mut subscription.cursor, rest);
            let count = subscription.cursor.next() - first;
            if count > 0 {
                let counted =
                    subscription.cursor.next().saturating_sub(stream.counted_from().max(first));
                let from = subscription.cursor.next() - counted;
                self.latency.run(now_ns, counted, |i| stream.intended_ns(from + i));
                self.progress.delivered(subscription.channel, counted);
            }
            if equal == rest.len() {
                return Ok(());
            }
            // Not what was expected: look at it frame by frame, from the start of this one.
            rest = &rest[equal..];
            let begun = stream.rewind(&mut subscription.cursor);
            conn.stash.extend_from_slice(begun);
        }
        if !conn.stash.is_empty() {
            let mut stash = std::mem::take(&mut conn.stash);
            let taken = complete(&mut stash, rest)?;
            rest = &rest[taken..];
            if self.frames(at, &stash, now_ns)? > 0 {
                stash.clear();
            }
            self.conns[at].stash = stash;
        }
        let used = self.frames(at, rest, now_ns)?;
        self.conns[at].stash.extend_from_slice(&rest[used..]);
        Ok(())
    }

    /// Reads the answer to the handshake. Returns how many of the newest bytes lie behind it, `None`
    /// while it is not whole.
    fn shaken(&mut self, at: usize, bytes: &[u8]) -> anyhow::Result<Option<usize>> {
        let conn = &mut self.conns[at];
        conn.stash.extend_from_slice(bytes);
        let State::Shaking(handshake) = &conn.state else { return Ok(None) };
        let received = handshake.receive(&conn.stash).with_context(|| {
            format!("opening a WebSocket: {}", String::from_utf8_lossy(&conn.stash).trim())
        })?;
        let Some(len) = received else { return Ok(None) };
        let left = conn.stash.len() - len;
        conn.stash.clear();
        Ok(Some(left))
    }

    /// Handles whole frames; returns the bytes used.
    fn frames(&mut self, at: usize, bytes: &[u8], now_ns: u64) -> anyhow::Result<usize> {
        let mut used = 0;
        while let Some((header, header_len)) = Header::parse(&bytes[used..])? {
            if header.len > FRAME_BYTES_MAX {
                bail!("a frame of {} bytes arrived: the stream is torn", header.len);
            }
            let end = used + header_len + header.len as usize;
            let Some(frame) = bytes.get(used..end) else { break };
            self.frame(at, &header, frame, &frame[header_len..], now_ns)?;
            used = end;
        }
        Ok(used)
    }

    fn frame(
        &mut self,
        at: usize,
        header: &Header,
        frame: &[u8],
        payload: &[u8],
        now_ns: u64,
    ) -> anyhow::Result<()> {
        match header.opcode {
            Opcode::Ping => self.tell(at, Opcode::Pong, payload),
            Opcode::Pong => {}
            Opcode::Close => {
                let code = payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
                let number = self.plans[self.conns[at].plan as usize].number;
                let why = format!("connection {number} was closed: {code:?} {reason}");
                self.problem(|| why);
            }
            _ => self.message(at, frame, payload, now_ns)?,
        }
        Ok(())
    }

    fn message(
        &mut self,
        at: usize,
        frame: &[u8],
        payload: &[u8],
        now_ns: u64,
    ) -> anyhow::Result<()> {
        if self.conns[at].speech == Speech::Templates {
            self.stamped_bytes(at, payload, now_ns);
            return Ok(());
        }
        // The next message of one of its channels.
        let likely = match self.conns[at].subscriptions.len() {
            0 | 1 => 0,
            _ => self.meant_for(at, payload).unwrap_or(self.conns[at].last),
        };
        let conn = &mut self.conns[at];
        let count = conn.subscriptions.len();
        for i in 0..count {
            let place = (likely + i) % count;
            let subscription = &mut conn.subscriptions[place];
            let Some(stream) =
                &self.streams[stream_place(subscription.channel, conn.speech.lane())]
            else {
                continue;
            };
            let number = subscription.cursor.next();
            if !subscription.standing {
                continue;
            }
            let mut cursor = subscription.cursor;
            if stream.compare(&mut cursor, frame) == frame.len() && cursor.next() == number + 1 {
                subscription.cursor = cursor;
                conn.last = place;
                if number >= stream.counted_from() {
                    self.latency.run(now_ns, 1, |_| stream.intended_ns(number));
                    self.progress.delivered(subscription.channel, 1);
                }
                return Ok(());
            }
        }
        match conn.speech {
            Speech::Ringfeed => self.ringfeed_event(at, frame, payload),
            _ => self.raw_message(at, frame),
        }
    }

    fn ringfeed_event(&mut self, at: usize, frame: &[u8], payload: &[u8]) -> anyhow::Result<()> {
        let event: Value = serde_json::from_slice(payload).context("the server sent no JSON")?;
        let channel = event["channel"].as_str().unwrap_or_default();
        let place = self.places.get(channel).and_then(|&channel| self.place_of(at, channel));
        match (event["type"].as_str(), place) {
            (Some("subscribed"), Some(place)) => {
                let offset = event["offset"].as_u64().unwrap_or(0);
                // What was published before it stood is known.
                self.take_coming();
                let subscription = &mut self.conns[at].subscriptions[place];
                let lane = Speech::Ringfeed.lane();
                let stream = self.streams[stream_place(subscription.channel, lane)].as_mut();
                let Some(cursor) = stream.and_then(|stream| stream.starts_behind(offset)) else {
                    bail!("somebody else publishes to {channel}: choose another --prefix");
                };
                (subscription.cursor, subscription.from) = (cursor, cursor.next());
                self.stands(at, place);
            }
            (Some("unsubscribed"), Some(place)) => {
                self.retire(at, place);
                self.tally.resubscribed += 1;
                self.tell(at, Opcode::Text, subscribe_command(channel).as_bytes());
            }
            (Some("message"), Some(place)) => self.misplaced(at, place, frame),
            (Some("gap"), Some(_)) => {
                let (from, to) = (event["from"].as_u64(), event["to"].as_u64());
                if let (Some(from), Some(to)) = (from, to) {
                    self.tally.gaps_told += to + 1 - from;
                }
                self.problem(|| format!("the server left publications out: {event}"));
            }
            (Some("error"), _) => bail!("the server refuses: {event}"),
            (Some("drain"), _) => {}
            _ => bail!("the server sent something unexpected: {event}"),
        }
        Ok(())
    }

    fn raw_message(&mut self, at: usize, frame: &[u8]) -> anyhow::Result<()> {
        for place in 0..self.conns[at].subscriptions.len() {
            let conn = &mut self.conns[at];
            let subscription = &mut conn.subscriptions[place];
            let Some(stream) =
                &self.streams[stream_place(subscription.channel, conn.speech.lane())]
            else {
                continue;
            };
            // The first message shows that the subscription stands, and from where on.
            if !subscription.standing
                && matches!(
                    stream.find(&mut subscription.cursor, frame),
                    Found::Next | Found::Ahead(_)
                )
            {
                self.stands(at, place);
                return Ok(());
            }
        }
        // Without a channel name the one where it fits is the one it belongs to.
        for place in 0..self.conns[at].subscriptions.len() {
            if self.fits(at, place, frame) {
                self.misplaced(at, place, frame);
                return Ok(());
            }
        }
        self.misplaced(at, 0, frame);
        Ok(())
    }

    fn fits(&self, at: usize, place: usize, frame: &[u8]) -> bool {
        let conn = &self.conns[at];
        let subscription = &conn.subscriptions[place];
        let mut cursor = subscription.cursor;
        self.streams[stream_place(subscription.channel, conn.speech.lane())]
            .as_ref()
            .is_some_and(|stream| stream.find(&mut cursor, frame) != Found::Nowhere)
    }

    /// A message that is not the next one of its channel.
    fn misplaced(&mut self, at: usize, place: usize, frame: &[u8]) {
        let conn = &mut self.conns[at];
        let subscription = &mut conn.subscriptions[place];
        let Some(stream) = &self.streams[stream_place(subscription.channel, conn.speech.lane())]
        else {
            return;
        };
        let number = subscription.cursor.next();
        let found = stream.find(&mut subscription.cursor, frame);
        match found {
            Found::Next => {}
            Found::Ahead(missing) => {
                self.skipped += missing;
                self.progress.delivered(subscription.channel, 1);
            }
            // Late, if it was skipped before; which one it was is not kept.
            Found::Behind if self.skipped > 0 => self.tally.reordered += 1,
            Found::Behind => self.tally.duplicated += 1,
            Found::Nowhere => self.tally.corrupted += 1,
        }
        let name = self.channels[subscription.channel as usize].clone();
        let connection = self.plans[conn.plan as usize].number;
        self.problem(|| {
            let start = String::from_utf8_lossy(&frame[..frame.len().min(160)]).into_owned();
            format!(
                "connection {connection}, {name}: expected message {number}, got {found:?}: {start}"
            )
        });
    }

    /// Messages of a server that speaks templates: looks for stamps in whatever comes.
    fn stamped_bytes(&mut self, at: usize, payload: &[u8], now_ns: u64) {
        let mut carry = std::mem::take(&mut self.conns[at].carry);
        let carried = !carry.is_empty();
        if carried {
            carry.extend_from_slice(payload);
        }
        let bytes = if carried { &carry[..] } else { payload };
        let mut used = 0;
        loop {
            match find_stamp(&bytes[used..]) {
                Err(again) => {
                    used += again;
                    break;
                }
                Ok((start, Stamp::WarmUp { channel, round })) => {
                    self.warmed_up(at, channel, round);
                    used += start + 1;
                }
                Ok((start, Stamp::Message(number))) => {
                    used += start;
                    match self.stamped(at, number, &bytes[used..], now_ns) {
                        Some(len) => used += len,
                        None => break,
                    }
                }
            }
        }
        let rest = bytes[used..].to_vec();
        self.conns[at].carry = rest;
    }

    /// Where a connection's subscription to a channel is.
    fn place_of(&self, at: usize, channel: u32) -> Option<usize> {
        // In the order of the plan, which ascends.
        let own = &self.plans[self.conns[at].plan as usize].channels;
        own.binary_search(&channel).ok()
    }

    /// The subscription that a frame is most likely for: of the channel that it names, or of the one
    /// that the stamp of a made-up message says.
    fn meant_for(&self, at: usize, payload: &[u8]) -> Option<usize> {
        let channel = match self.conns[at].speech {
            Speech::Ringfeed => {
                let name = payload.strip_prefix(MESSAGE_OF_CHANNEL)?;
                let end = name.iter().position(|&byte| byte == b'"')?;
                *self.places.get(std::str::from_utf8(&name[..end]).ok()?)?
            }
            Speech::Raw | Speech::Templates => match find_stamp(payload) {
                Ok((0, Stamp::Message(number))) => (number % self.channels.len() as u64) as u32,
                _ => return None,
            },
        };
        self.place_of(at, channel)
    }

    /// A message that shows that a subscription stands, and from where on.
    fn warmed_up(&mut self, at: usize, channel: u32, round: u32) {
        let lane = Speech::Templates.lane();
        let Some(place) = self.place_of(at, channel) else { return };
        let Some(stream) = &self.streams[stream_place(channel, lane)] else { return };
        let subscription = &mut self.conns[at].subscriptions[place];
        if !subscription.standing {
            subscription.cursor = stream.cursor_at(u64::from(round));
            self.stands(at, place);
        }
    }

    /// A stamped message that begins these bytes. Returns its length, `None` if it is not whole.
    fn stamped(&mut self, at: usize, number: u64, bytes: &[u8], now_ns: u64) -> Option<usize> {
        let (channel, number) =
            ((number % self.channels.len() as u64) as u32, number / self.channels.len() as u64);
        let place = self.place_of(at, channel);
        let stream = self.streams[stream_place(channel, Speech::Templates.lane())].as_ref();
        let found = place.zip(stream).and_then(|(place, stream)| {
            let number = stream.counted_from() + number;
            Some((place, stream, number, stream.payload(number)?))
        });
        let Some((place, stream, number, expected)) = found else {
            self.tally.corrupted += 1;
            self.problem(|| format!("message {number} of channel {channel} was never due here"));
            return Some(1);
        };
        if !bytes.starts_with(expected) {
            if expected.starts_with(bytes) {
                return None;
            }
            self.tally.corrupted += 1;
            self.problem(|| {
                let start = String::from_utf8_lossy(&bytes[..bytes.len().min(160)]).into_owned();
                format!("message {number} of channel {channel} was changed: {start}")
            });
            return Some(1);
        }
        let subscription: &mut Subscription = &mut self.conns[at].subscriptions[place];
        let next = subscription.cursor.next().max(stream.counted_from());
        let len = expected.len();
        if number < next {
            if self.skipped > 0 {
                self.tally.reordered += 1
            } else {
                self.tally.duplicated += 1
            }
            self.problem(|| format!("channel {channel}: message {number} came again, or late"));
            return Some(len);
        }
        subscription.cursor = stream.cursor_at(number + 1);
        self.latency.run(now_ns, 1, |_| stream.intended_ns(number));
        self.progress.delivered(channel, 1);
        if number > next {
            self.skipped += number - next;
            self.problem(|| format!("channel {channel}: expected message {next}, got {number}"));
        }
        Some(len)
    }
}

/// Adds to the beginning of a frame what completes it, if it is there. Returns how many bytes that is.
fn complete(begun: &mut Vec<u8>, rest: &[u8]) -> anyhow::Result<usize> {
    for taken in 0..=rest.len() {
        if let Some((header, header_len)) = Header::parse(begun)? {
            if header.len > FRAME_BYTES_MAX {
                bail!("a frame of {} bytes arrived: the stream is torn", header.len);
            }
            let missing = (header_len + header.len as usize).saturating_sub(begun.len());
            let more = missing.min(rest.len() - taken);
            begun.extend_from_slice(&rest[taken..taken + more]);
            return Ok(taken + more);
        }
        // Headers are short.
        begun.extend(rest.get(taken));
    }
    Ok(rest.len())
}
