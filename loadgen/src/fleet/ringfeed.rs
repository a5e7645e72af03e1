//! `ringfeed.v1`: messages name their channel, subscriptions are acknowledged, gaps are told.

use anyhow::bail;
use ringfeed_protocol::frame::Opcode;
use serde_json::Value;

use super::opening::subscribe_command;
use super::{Fleet, Standing, stream_place};
use crate::plans::Speech;
use crate::report::shown;

/// How a message begins; the channel's name follows.
const MESSAGE_OF_CHANNEL: &[u8] = b"{\"type\":\"message\",\"channel\":\"";

impl Fleet {
    /// The subscription whose channel a message names.
    pub(super) fn named(&self, at: usize, payload: &[u8]) -> Option<usize> {
        let name = payload.strip_prefix(MESSAGE_OF_CHANNEL)?;
        let end = name.iter().position(|&byte| byte == b'"')?;
        let channel = self.places.get(std::str::from_utf8(&name[..end]).ok()?)?;
        self.place_of(at, *channel)
    }

    /// Whatever is not the next message.
    pub(super) fn ringfeed_event(
        &mut self,
        at: usize,
        frame: &[u8],
        payload: &[u8],
        now_ns: u64,
    ) -> anyhow::Result<()> {
        let Ok(event) = serde_json::from_slice::<Value>(payload) else {
            self.changed(at);
            self.problem(|fleet| {
                format!("connection {}: this is no JSON: {}", fleet.number(at), shown(payload))
            });
            return Ok(());
        };
        let channel = event["channel"].as_str().unwrap_or_default();
        let place = self.places.get(channel).and_then(|&channel| self.place_of(at, channel));
        let receives = place.filter(|&place| self.conns[at].subscriptions[place].receives());
        match (event["type"].as_str(), place, receives) {
            (Some("subscribed"), Some(place), None) => self.subscribed(at, place, &event)?,
            (Some("unsubscribed"), Some(place), _) if self.is_ending(at, place) => {
                self.retire(at, place);
                self.tally.resubscribed += 1;
                self.tell(at, Opcode::Text, subscribe_command(channel).as_bytes());
            }
            (Some("message"), _, Some(place)) => self.misplaced(at, place, frame, now_ns),
            (Some("message"), _, None) => {
                self.unexpected(at, "a message of a channel that it has not", payload);
            }
            (Some("gap"), _, Some(place)) => self.gap(at, place, &event),
            (Some("error"), ..) if !self.control.has_begun() => {
                bail!("the server refuses: {event}");
            }
            (Some("error"), ..) => self.unexpected(at, "the server refuses", payload),
            // Who it is: it has shown something.
            (Some("connected"), ..) if event["id"] == 3 => self.tally.renewed += 1,
            (Some("connected"), ..) if event["id"].is_null() => {}
            (Some("drain"), ..) => {}
            // Who comes and goes is nothing that was published.
            (Some("join" | "leave" | "presence"), ..) => {}
            _ => self.unexpected(at, "this was not expected", payload),
        }
        Ok(())
    }

    fn is_ending(&self, at: usize, place: usize) -> bool {
        self.conns[at].subscriptions[place].standing == Standing::Ending
    }

    fn subscribed(&mut self, at: usize, place: usize, event: &Value) -> anyhow::Result<()> {
        // What was published before it stood is known.
        self.take_coming();
        let subscription = &mut self.conns[at].subscriptions[place];
        let lane = Speech::Ringfeed.lane();
        let stream = self.streams[stream_place(subscription.channel, lane)].as_mut();
        let offset = event["offset"].as_u64();
        let cursor = stream.zip(offset).and_then(|(stream, offset)| {
            stream.lives(event["epoch"].as_str()?);
            stream.starts_behind(offset)
        });
        let Some(cursor) = cursor else {
            bail!(
                "the subscription stands at another offset than what was published: somebody else \
                 publishes to the channel (choose another --prefix), or it began anew: {event}"
            );
        };
        subscription.cursor = cursor;
        self.begins(at, place);
        Ok(())
    }

    /// Publications that the server says it left out: true if they begin with the next one, and if
    /// what follows is the one behind them.
    fn gap(&mut self, at: usize, place: usize, event: &Value) {
        let Some(stream) = self.stream(at, place) else { return };
        let next = self.conns[at].subscriptions[place].cursor.next();
        let behind = event["to"].as_u64().and_then(|to| to.checked_add(1));
        if behind == Some(stream.offset_of(next)) && event["from"].as_u64() == behind {
            // Nothing that was published was left out, but word of who comes and goes.
            return;
        }
        let is_other_life = event["epoch"].as_str().is_some_and(|epoch| !stream.is_of(epoch));
        let number = |key: &str| stream.number_of(event[key].as_u64()?);
        let told = number("from").zip(number("to"));
        match told.filter(|&(from, to)| from == next && (from..stream.end()).contains(&to)) {
            Some((from, to)) => {
                let cursor = stream.cursor_at(to + 1);
                self.hole(at, place, from, to + 1 - from);
                self.conns[at].subscriptions[place].cursor = cursor;
                self.tally.gaps_told += to + 1 - from;
                self.problem(|_| format!("the server left publications out: {event}"));
            }
            // Which messages its offsets are nobody knows here; those that do not come are missing in the end.
            None if is_other_life => {
                self.problem(|_| format!("the channel goes on in another life: {event}"));
            }
            None => {
                let offset = stream.offset_of(next);
                self.tally.false_gaps += 1;
                self.problem(|fleet| {
                    let whose = fleet.whose(at, place);
                    format!(
                        "{whose}: a gap is told that is none, the next offset is {offset}: {event}"
                    )
                });
            }
        }
    }
}
