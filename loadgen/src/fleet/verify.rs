//! What arrives, against what must arrive: from bytes to messages, and what is said of those that
//! are not what was expected.

use std::sync::atomic::Ordering;

use ringfeed_protocol::frame::{Header, Opcode, write_server};

use super::{Fleet, State, stream_place};
use crate::expect::Found;
use crate::plans::Speech;
use crate::report::shown;

/// The longest message that is believed; a longer one means that the stream is torn.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// What is wrong with what a connection sent, so that nothing behind it can be understood.
type Torn = String;

impl Fleet {
    pub(super) fn received(&mut self, at: usize, bytes: &[u8], now_ns: u64) -> anyhow::Result<()> {
        self.progress.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut rest = bytes;
        match self.conns[at].state {
            State::Shaking(_) => {
                let left = match self.shaken(at, bytes) {
                    Err(e) if self.control.has_begun() => {
                        self.opening -= 1;
                        self.wire.close(self.conns[at].socket);
                        return self.ended(at, None, &format!("{e:#}"));
                    }
                    left => left?,
                };
                let Some(left) = left else { return Ok(()) };
                rest = &bytes[bytes.len() - left..];
                self.opened(at);
            }
            State::Gone => return Ok(()),
            _ => {}
        }
        if rest.is_empty() {
            return Ok(());
        }
        // What was published is known before it arrives.
        self.take_coming();
        rest = &rest[self.compare(at, rest, now_ns)..];
        if rest.is_empty() {
            return Ok(());
        }
        if !self.conns[at].stash.is_empty() {
            let mut stash = std::mem::take(&mut self.conns[at].stash);
            match complete(&mut stash, rest) {
                Ok(taken) => rest = &rest[taken..],
                Err(why) => return self.torn(at, &why),
            }
            if self.frames(at, &stash, now_ns)? > 0 {
                stash.clear();
            }
            self.conns[at].stash = stash;
        }
        let used = self.frames(at, rest, now_ns)?;
        if !matches!(self.conns[at].state, State::Gone) {
            self.conns[at].stash.extend_from_slice(&rest[used..]);
        }
        Ok(())
    }

    /// Compares a run of bytes as a whole with what the only subscription of a connection expects:
    /// what nearly everything is. Returns the bytes that are done with.
    fn compare(&mut self, at: usize, run: &[u8], now_ns: u64) -> usize {
        let conn = &mut self.conns[at];
        let plain = conn.stash.is_empty() && !conn.is_in_fragments();
        let [subscription] = &mut conn.subscriptions[..] else { return 0 };
        if !plain || !subscription.receives() || matches!(conn.state, State::Closing) {
            return 0;
        }
        let place = stream_place(subscription.channel, conn.speech.lane());
        let Some(stream) = &self.streams[place] else { return 0 };
        let first = subscription.cursor.next();
        let equal = stream.compare(&mut subscription.cursor, run);
        if equal < run.len() {
            // Not what was expected: it is looked at frame by frame, from the start of this one.
            conn.stash.extend_from_slice(stream.rewind(&mut subscription.cursor));
        }
        let count = subscription.cursor.next() - first;
        self.arrived(at, 0, first, count, now_ns);
        equal
    }

    /// Counts messages that arrived as they were due; the cursor is behind them.
    pub(super) fn arrived(&mut self, at: usize, place: usize, first: u64, count: u64, now_ns: u64) {
        let conn = &self.conns[at];
        let channel = conn.subscriptions[place].channel;
        let Some(stream) = &self.streams[stream_place(channel, conn.speech.lane())] else { return };
        let from = first.max(stream.counted_from());
        let count = (first + count).saturating_sub(from);
        if count > 0 && !conn.stalled {
            self.latency.run(now_ns, count, |i| stream.intended_ns(from + i));
            self.progress.delivered.fetch_add(count, Ordering::Relaxed);
            self.progress.settle(channel, count);
        }
    }

    /// Handles whole frames; returns the bytes used.
    fn frames(&mut self, at: usize, bytes: &[u8], now_ns: u64) -> anyhow::Result<usize> {
        let mut used = 0;
        while !matches!(self.conns[at].state, State::Gone) {
            let (header, header_len) = match parse(&bytes[used..]) {
                Ok(Some(parsed)) => parsed,
                Ok(None) => return Ok(used),
                Err(why) => {
                    self.torn(at, &why)?;
                    break;
                }
            };
            let end = used + header_len + header.len as usize;
            let Some(frame) = bytes.get(used..end) else { return Ok(used) };
            used = end;
            let payload = &frame[header_len..];
            match header.opcode {
                Opcode::Pong => {}
                Opcode::Ping | Opcode::Close if matches!(self.conns[at].state, State::Closing) => {}
                Opcode::Ping => self.tell(at, Opcode::Pong, payload),
                Opcode::Close => self.close_came(at, payload)?,
                opcode if header.fin && opcode != Opcode::Continuation => {
                    if self.conns[at].is_in_fragments() {
                        self.torn(at, "a message began inside a fragmented one")?;
                        break;
                    }
                    self.message(at, opcode, frame, payload, now_ns)?;
                }
                opcode => self.fragment(at, opcode, header.fin, payload, now_ns)?,
            }
        }
        Ok(bytes.len())
    }

    /// A part of a message.
    fn fragment(
        &mut self,
        at: usize,
        opcode: Opcode,
        fin: bool,
        payload: &[u8],
        now_ns: u64,
    ) -> anyhow::Result<()> {
        let fragments = &mut self.conns[at].extra().fragments;
        match (opcode, fragments) {
            (Opcode::Continuation, Some((_, whole)))
                if whole.len() + payload.len() <= MESSAGE_BYTES_MAX =>
            {
                whole.extend_from_slice(payload);
            }
            (Opcode::Text | Opcode::Binary, none @ None) => {
                *none = Some((opcode, payload.to_vec()));
            }
            _ => return self.torn(at, "fragments that belong to no message, or to too long a one"),
        }
        if fin && let Some((opcode, payload)) = self.conns[at].extra().fragments.take() {
            let mut frame = Vec::new();
            write_server(&mut frame, opcode, &payload);
            self.message(at, opcode, &frame, &payload, now_ns)?;
        }
        Ok(())
    }

    /// A whole message; `frame` is it in one frame.
    fn message(
        &mut self,
        at: usize,
        opcode: Opcode,
        frame: &[u8],
        payload: &[u8],
        now_ns: u64,
    ) -> anyhow::Result<()> {
        if matches!(self.conns[at].state, State::Closing) {
            self.unexpected(at, "a message behind the close frame", payload);
            return Ok(());
        }
        if self.conns[at].speech == Speech::Templates {
            self.stamped_message(at, opcode, payload, now_ns);
            return Ok(());
        }
        if self.is_due(at, frame, payload, now_ns) {
            return Ok(());
        }
        if opcode == Opcode::Binary {
            let mut text = Vec::new();
            write_server(&mut text, Opcode::Text, payload);
            if self.is_due(at, &text, payload, now_ns) {
                self.tally.corrupted += 1;
                self.problem(|fleet| {
                    let number = fleet.number(at);
                    format!("connection {number}: text came as binary: {}", shown(payload))
                });
                return Ok(());
            }
        }
        match self.conns[at].speech {
            Speech::Ringfeed => self.ringfeed_event(at, frame, payload, now_ns)?,
            _ => self.raw_misfit(at, frame, payload, now_ns),
        }
        Ok(())
    }

    /// Whether a message is the next one of a subscription; if so it is counted.
    fn is_due(&mut self, at: usize, frame: &[u8], payload: &[u8], now_ns: u64) -> bool {
        let conn = &self.conns[at];
        match conn.speech {
            Speech::Raw if conn.subscriptions.len() > 1 => {
                self.raw_is_due(at, frame, payload, now_ns)
            }
            Speech::Ringfeed if conn.subscriptions.len() > 1 => {
                self.named(at, payload).is_some_and(|place| self.takes(at, place, frame, now_ns))
            }
            _ => self.takes(at, 0, frame, now_ns),
        }
    }

    /// Whether a frame is the next one of a subscription; if so it is counted.
    pub(super) fn takes(&mut self, at: usize, place: usize, frame: &[u8], now_ns: u64) -> bool {
        let conn = &mut self.conns[at];
        let Some(subscription) = conn.subscriptions.get_mut(place) else { return false };
        let stream = &self.streams[stream_place(subscription.channel, conn.speech.lane())];
        let first = subscription.cursor.next();
        let takes = subscription.receives()
            && stream.as_ref().is_some_and(|s| s.takes(&mut subscription.cursor, frame));
        if takes {
            self.arrived(at, place, first, 1, now_ns);
        }
        takes
    }

    /// A message that is not the next one of the subscription that it belongs to.
    pub(super) fn misplaced(&mut self, at: usize, place: usize, frame: &[u8], now_ns: u64) {
        let conn = &mut self.conns[at];
        let subscription = &mut conn.subscriptions[place];
        let Some(stream) = &self.streams[stream_place(subscription.channel, conn.speech.lane())]
        else {
            return;
        };
        let first = subscription.cursor.next();
        let what = match stream.find(&mut subscription.cursor, frame) {
            Found::Next => {
                self.arrived(at, place, first, 1, now_ns);
                return;
            }
            Found::Ahead(missing) => {
                self.hole(at, place, first, missing);
                self.arrived(at, place, first + missing, 1, now_ns);
                format!("got message {}, {missing} are missing", first + missing)
            }
            Found::Behind => {
                self.came_again(at);
                "got one from before".to_owned()
            }
            Found::Nowhere => {
                self.changed(at);
                "got what was never published".to_owned()
            }
        };
        let payload = crate::expect::payload_of(frame).unwrap_or_default();
        self.problem(|fleet| {
            let whose = fleet.whose(at, place);
            format!("{whose}: expected message {first}, {what}: {}", shown(payload))
        });
    }

    /// A connection and a channel of it, for a person.
    pub(super) fn whose(&self, at: usize, place: usize) -> String {
        let channel = self.conns[at].subscriptions[place].channel as usize;
        format!("connection {}, {}", self.number(at), self.channels[channel])
    }

    /// So many messages from `first` on are passed over. Changed ones that came account for some.
    pub(super) fn hole(&mut self, at: usize, place: usize, first: u64, missing: u64) {
        let counted_from = self.stream(at, place).map_or(0, |stream| stream.counted_from());
        let counted = (first + missing).saturating_sub(first.max(counted_from));
        self.settle(at, place, counted);
        let conn = &mut self.conns[at];
        let changed = conn.changed.min(counted);
        conn.changed -= changed;
        conn.skipped += counted - changed;
        self.tally.lost += counted - changed;
    }

    /// A message of a place that was passed already: late, if one was skipped; which one it was is
    /// not kept.
    pub(super) fn came_again(&mut self, at: usize) {
        let conn = &mut self.conns[at];
        if conn.skipped > 0 {
            conn.skipped -= 1;
            self.tally.lost -= 1;
            self.tally.reordered += 1;
        } else {
            self.tally.duplicated += 1;
        }
    }

    /// A message that was never published. Where one is found to be missing later it is this one.
    pub(super) fn changed(&mut self, at: usize) {
        self.tally.corrupted += 1;
        self.conns[at].changed += 1;
    }

    /// Something that this connection was not to get at all.
    pub(super) fn unexpected(&mut self, at: usize, what: &str, payload: &[u8]) {
        self.tally.unexpected += 1;
        self.problem(|fleet| {
            format!("connection {}: {what}: {}", fleet.number(at), shown(payload))
        });
    }
}

/// The header at the start of some bytes, and its length, once it is there.
fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, Torn> {
    match Header::parse(bytes) {
        Ok(Some((header, _))) if header.len > MESSAGE_BYTES_MAX as u64 => {
            Err(format!("a frame of {} bytes", header.len))
        }
        Ok(Some((header, _))) if header.mask.is_some() => Err("a masked frame".to_owned()),
        Ok(parsed) => Ok(parsed),
        Err(e) => Err(e.to_string()),
    }
}

/// Adds to the beginning of a frame what completes it, if it is there. Returns how many bytes that
/// is.
fn complete(begun: &mut Vec<u8>, rest: &[u8]) -> Result<usize, Torn> {
    for taken in 0..=rest.len() {
        if let Some((header, header_len)) = parse(begun)? {
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
