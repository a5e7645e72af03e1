//! Servers that speak what the command line says: made-up messages are recognised by their stamps,
//! whatever the server puts around them.

use ringfeed_protocol::frame::Opcode;

use super::{Fleet, Standing, stream_place};
use crate::plans::Speech;
use crate::report::shown;
use crate::templates::{Stamp, find_stamp, warm_up};

/// What a server puts around messages, learnt from the warm-up. Only where it is nothing can more
/// or fewer bytes be told from what it means to send.
#[derive(Debug, Default)]
pub(super) struct Wrapping {
    /// Warm-up messages that came alone in a WebSocket message, and others.
    alone: u64,
    wrapped: u64,
    /// What the first one came as; `None` once another came as something else.
    opcode: Option<Opcode>,
    mixed: bool,
    /// Messages without a stamp: greetings, acknowledgements, whatever.
    others: u64,
    first_other: Option<String>,
}

impl Wrapping {
    fn learn(&mut self, opcode: Opcode, alone: bool) {
        if alone {
            self.alone += 1;
        } else {
            self.wrapped += 1;
        }
        self.mixed |= *self.opcode.get_or_insert(opcode) != opcode;
    }

    /// Whether messages come as they were published.
    fn is_none(&self) -> bool {
        self.alone > 0 && self.wrapped == 0
    }

    fn fits(&self, opcode: Opcode) -> bool {
        self.mixed || self.opcode.is_none_or(|usual| usual == opcode)
    }

    fn other(&mut self, payload: &[u8]) {
        self.others += 1;
        self.first_other.get_or_insert_with(|| shown(payload));
    }

    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(first) = &self.first_other {
            notes
                .push(format!("messages that were not published: {}, first: {first}", self.others));
        }
        if self.wrapped > 0 {
            notes.push("the server wraps messages: bytes around them are not verified".to_owned());
        }
        if self.opcode == Some(Opcode::Binary) && !self.mixed {
            notes.push("the server sends everything in binary messages".to_owned());
        }
        notes
    }
}

/// What became of a stamped message.
enum Stamped {
    /// It is there, so long.
    Whole(usize),
    /// It has begun.
    Cut,
    /// It is not as it was published.
    Changed,
}

impl Fleet {
    /// A message of a server that speaks templates.
    pub(super) fn stamped_message(
        &mut self,
        at: usize,
        opcode: Opcode,
        payload: &[u8],
        now_ns: u64,
    ) {
        if !self.wrapping.is_none() {
            self.stamped_bytes(at, opcode, payload, now_ns);
            return;
        }
        let (start, len) = match find_stamp(payload) {
            Ok((start, Stamp::Message(number))) => {
                match self.stamped(at, number, &payload[start..], now_ns) {
                    Stamped::Whole(len) => (start, len),
                    Stamped::Cut => {
                        self.is_changed(at, number, payload);
                        return;
                    }
                    Stamped::Changed => return,
                }
            }
            Ok((start, Stamp::WarmUp { channel, round })) => {
                self.warmed_up(at, channel, round);
                (start, warm_up(channel, round).len())
            }
            Err(_) => return self.wrapping.other(payload),
        };
        let wrong = match () {
            () if start > 0 => "bytes came before a message",
            () if len < payload.len() => "bytes came behind a message",
            () if !self.wrapping.fits(opcode) => "a message came as another kind than others",
            () => return,
        };
        self.tally.corrupted += 1;
        self.problem(|fleet| {
            format!("connection {}: {wrong}: {}", fleet.number(at), shown(payload))
        });
    }

    /// Looks for stamps in whatever comes, over the bounds of messages.
    fn stamped_bytes(&mut self, at: usize, opcode: Opcode, payload: &[u8], now_ns: u64) {
        let mut carry = std::mem::take(&mut self.conns[at].extra().carry);
        let carried = !carry.is_empty();
        if carried {
            carry.extend_from_slice(payload);
        }
        let bytes = if carried { &carry[..] } else { payload };
        let mut used = 0;
        let mut stamps = 0;
        loop {
            match find_stamp(&bytes[used..]) {
                Err(again) => {
                    used += again;
                    break;
                }
                Ok((start, Stamp::WarmUp { channel, round })) => {
                    let alone = start == 0 && payload == warm_up(channel, round).as_bytes();
                    self.wrapping.learn(opcode, alone && !carried);
                    self.warmed_up(at, channel, round);
                    used += start + 1;
                }
                Ok((start, Stamp::Message(number))) => {
                    used += start;
                    match self.stamped(at, number, &bytes[used..], now_ns) {
                        Stamped::Whole(len) => used += len,
                        Stamped::Cut => break,
                        Stamped::Changed => used += 1,
                    }
                }
            }
            stamps += 1;
        }
        if stamps == 0 && used == payload.len() && !carried {
            self.wrapping.other(payload);
        }
        let rest = bytes[used..].to_vec();
        self.conns[at].extra().carry = rest;
    }

    /// A message that shows that a subscription stands, and from where on.
    fn warmed_up(&mut self, at: usize, channel: u32, round: u32) {
        let lane = Speech::Templates.lane();
        let Some(place) = self.place_of(at, channel) else { return };
        let Some(stream) = &self.streams[stream_place(channel, lane)] else { return };
        let subscription = &mut self.conns[at].subscriptions[place];
        if !subscription.receives() {
            subscription.cursor = stream.cursor_at(u64::from(round));
            self.begins(at, place);
        }
    }

    /// A stamped message that begins these bytes.
    fn stamped(&mut self, at: usize, stamp: u64, bytes: &[u8], now_ns: u64) -> Stamped {
        let channels = self.channels.len() as u64;
        let channel = (stamp % channels) as u32;
        let Some(place) = self.place_of(at, channel) else {
            self.unexpected(at, "a message of a channel that it has not", bytes);
            return Stamped::Changed;
        };
        let due = self.stream(at, place).and_then(|stream| {
            let number = stream.counted_from() + stamp / channels;
            Some((number, stream.payload(number)?, stream.cursor_at(number)))
        });
        let Some((number, expected, before)) = due else {
            self.changed(at);
            self.problem(|fleet| {
                format!("{}: this was never published: {}", fleet.whose(at, place), shown(bytes))
            });
            return Stamped::Changed;
        };
        let len = expected.len();
        if !bytes.starts_with(expected) {
            if expected.starts_with(bytes) {
                return Stamped::Cut;
            }
            self.is_changed(at, stamp, bytes);
            return Stamped::Changed;
        }
        let subscription = &mut self.conns[at].subscriptions[place];
        if subscription.standing == Standing::Believed {
            subscription.cursor = before;
            self.begins(at, place);
        }
        self.advance(at, place, number, bytes, now_ns);
        Stamped::Whole(len)
    }

    /// A message whose stamp is whole, but not the rest: it stands where the right one was due.
    fn is_changed(&mut self, at: usize, stamp: u64, bytes: &[u8]) {
        self.changed(at);
        self.problem(|fleet| {
            format!(
                "connection {}: message {stamp} was changed: {}",
                fleet.number(at),
                shown(bytes)
            )
        });
    }

    /// Message `number` of a channel is there.
    fn advance(&mut self, at: usize, place: usize, number: u64, bytes: &[u8], now_ns: u64) {
        let Some(stream) = self.stream(at, place) else { return };
        let next = self.conns[at].subscriptions[place].cursor.next().max(stream.counted_from());
        let behind = stream.cursor_at(number + 1);
        if number != next {
            self.problem(|fleet| {
                let whose = fleet.whose(at, place);
                format!("{whose}: expected message {next}, got {number}: {}", shown(bytes))
            });
        }
        if number < next {
            self.came_again(at);
            return;
        }
        if number > next {
            self.hole(at, place, next, number - next);
        }
        self.conns[at].subscriptions[place].cursor = behind;
        self.arrived(at, place, number, 1, now_ns);
    }
}
