//! What was broadcast over HTTP since this process began.

use dashmap::DashMap;
use serde_json::{Value, json};

use ringfeed_protocol::date::iso_millis;

use crate::clock::Clock;
use crate::counters::Count;

/// Channels that are remembered; of more, the one that was broadcast to longest ago is forgotten.
const CHANNELS_MAX: usize = 1000;

/// Written by the control thread alone.
#[derive(Debug, Default)]
pub(in super::super) struct Tally {
    total: Count,
    bytes: Count,
    last_minute: LastMinute,
    /// By the name that the client used.
    channels: DashMap<String, Channel>,
}

#[derive(Debug, Default)]
struct Channel {
    broadcasts: u64,
    bytes: u64,
    last_unix_ms: u64,
    subscribers: u64,
}

impl Tally {
    /// Something was broadcast to so many subscribers.
    pub(super) fn broadcast(&self, channel: &str, message_bytes: u64, subscribers: u64) {
        let (now_ms, bytes) = (Clock::Machine.unix_ms(), message_bytes * subscribers);
        self.total.add(1);
        self.bytes.add(bytes);
        self.last_minute.add(now_ms / 1000);
        if self.channels.len() >= CHANNELS_MAX && !self.channels.contains_key(channel) {
            let oldest = self.channels.iter().min_by_key(|entry| entry.last_unix_ms);
            let oldest = oldest.map(|entry| entry.key().clone());
            oldest.map(|oldest| self.channels.remove(&oldest));
        }
        let mut entry = self.channels.entry(channel.to_owned()).or_default();
        entry.broadcasts += 1;
        entry.bytes += bytes;
        entry.last_unix_ms = now_ms;
        entry.subscribers = subscribers;
    }

    pub(super) fn broadcasts(&self) -> Value {
        json!({
            "total": self.total.read(),
            "lastMinute": self.last_minute.read(Clock::Machine.unix_s()),
            "bytesSent": self.bytes.read(),
        })
    }

    pub(super) fn channels(&self) -> Value {
        let channel = |channel: &Channel| {
            json!({
                "broadcasts": channel.broadcasts,
                "bytesSent": channel.bytes,
                "lastBroadcast": iso_millis(channel.last_unix_ms),
                "subscribers": channel.subscribers,
            })
        };
        let each = self.channels.iter().map(|entry| (entry.key().clone(), channel(&entry)));
        Value::Object(each.collect())
    }
}

const MINUTE_S: usize = 60;

/// How often something was done in the last minute, by the second.
#[derive(Debug)]
struct LastMinute([(Count, Count); MINUTE_S]);

impl Default for LastMinute {
    fn default() -> LastMinute {
        LastMinute(std::array::from_fn(|_| Default::default()))
    }
}

impl LastMinute {
    fn add(&self, now_s: u64) {
        let Some((second, count)) = self.0.get((now_s % MINUTE_S as u64) as usize) else { return };
        if second.read() != now_s {
            second.set(now_s);
            count.set(0);
        }
        count.add(1);
    }

    fn read(&self, now_s: u64) -> u64 {
        let minute = now_s.saturating_sub(MINUTE_S as u64 - 1)..=now_s;
        let recent = |second: &Count| minute.contains(&second.read());
        self.0.iter().filter(|(second, _)| recent(second)).map(|(_, count)| count.read()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minute_forgets_what_is_older() {
        let minute = LastMinute::default();
        minute.add(1000);
        minute.add(1000);
        minute.add(1030);
        assert_eq!((minute.read(1030), minute.read(1059), minute.read(1060)), (3, 3, 1));
        minute.add(1060);
        assert_eq!((minute.read(1060), minute.read(1200)), (2, 0));
    }

    #[test]
    fn as_many_channels_are_remembered_as_there_is_room_for() {
        let tally = Tally::default();
        for channel in 0..=CHANNELS_MAX {
            tally.broadcast(&channel.to_string(), 10, 2);
        }
        assert_eq!(tally.channels.len(), CHANNELS_MAX);
        let told = tally.channels();
        let last = &told[CHANNELS_MAX.to_string()];
        assert_eq!((&last["bytesSent"], &last["subscribers"]), (&json!(20), &json!(2)));
        assert_eq!(tally.broadcasts()["total"], CHANNELS_MAX + 1);
    }
}
