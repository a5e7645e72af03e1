//! The channels homed on this shard: the only writer of each. A home gives publications their
//! offsets, keeps the history, encodes each publication once per lane somebody is on, and says
//! which shards get it.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use rand::Rng as _;
use rand::rngs::SmallRng;
use ringfeed_protocol::event::{Epoch, Publication};
use ringfeed_protocol::{ChannelName, ErrorCode, Lane, Position};

use crate::config::ChannelRule;
use crate::message::{
    ChannelKey, ChannelRow, Delivery, HistoryPage, ShardId, StoredPayload, StoredPublication,
};

/// What a dialect puts around a payload, at most, besides the channel's name.
const ENVELOPE_BYTES: usize = 96;
/// A chunk is closed at this size, so that one send can hold several of them.
const CHUNK_BYTES_MAX: usize = 32 * 1024;

/// A channel that nobody needs stays for so long, so that a subscriber that comes right back finds
/// its position again.
const LINGER_MS: u64 = 10_000;

/// How many subscribers one shard has on each lane of a channel.
#[derive(Debug)]
struct Interest {
    shard: ShardId,
    subscribers: [u32; Lane::COUNT],
}

/// Frames of this turn that have not been handed out yet, in one lane.
#[derive(Debug, Default)]
struct Staged {
    bytes: Vec<u8>,
    first_offset: u64,
    count: u32,
}

#[derive(Debug)]
struct Home {
    name: ChannelName,
    key: ChannelKey,
    epoch: Epoch,
    last_offset: u64,
    history: VecDeque<(u64, StoredPublication)>,
    history_size: usize,
    history_age_ms: u64,
    interests: Vec<Interest>,
    /// Subscribers on each lane over all shards: a lane is encoded only while there are any.
    subscribers: [u32; Lane::COUNT],
    staged: [Staged; Lane::COUNT],
    dirty: bool,
    /// Since when it has had neither subscribers nor publications.
    quiet_ms: u64,
}

/// The table of homes.
#[derive(Debug)]
pub(super) struct Homes {
    by_name: HashMap<ChannelName, u32>,
    homes: Vec<Option<Home>>,
    free: Vec<u32>,
    dirty: Vec<u32>,
    next_key: u64,
    channels_max: usize,
    sweep: usize,
    rng: SmallRng,
}

/// What a new subscriber starts from.
pub(super) struct Start {
    pub(super) key: ChannelKey,
    pub(super) position: Position,
    pub(super) recovered: Option<bool>,
    pub(super) replay: Bytes,
}

/// Where deliveries go.
pub(super) type Deliver<'a> = &'a mut dyn FnMut(ShardId, Delivery);

impl Homes {
    pub(super) fn new(shard: ShardId, channels_max: usize, rng: SmallRng) -> Homes {
        Homes {
            by_name: HashMap::new(),
            homes: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            next_key: u64::from(shard) << 48,
            channels_max,
            sweep: 0,
            rng,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.by_name.len()
    }

    /// The home of a channel, made if there is none.
    fn open(
        &mut self,
        name: &ChannelName,
        rule: Option<&ChannelRule>,
        now_ms: u64,
    ) -> Result<u32, (ErrorCode, String)> {
        if let Some(&index) = self.by_name.get(name) {
            return Ok(index);
        }
        if self.by_name.len() >= self.channels_max {
            let message = format!("this server keeps at most {} channels", self.channels_max);
            return Err((ErrorCode::LimitReached, message));
        }
        self.next_key += 1;
        let home = Home {
            name: name.clone(),
            key: ChannelKey(self.next_key),
            epoch: Epoch(self.rng.random()),
            last_offset: 0,
            history: VecDeque::new(),
            history_size: rule.map_or(0, |rule| rule.history_size as usize),
            history_age_ms: rule.map_or(0, |rule| rule.history_age_ms.into()),
            interests: Vec::new(),
            subscribers: [0; Lane::COUNT],
            staged: Default::default(),
            dirty: false,
            quiet_ms: now_ms,
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.homes[index as usize] = Some(home);
                index
            }
            None => {
                self.homes.push(Some(home));
                u32::try_from(self.homes.len() - 1).expect("channels_max is below 2^30")
            }
        };
        self.by_name.insert(name.clone(), index);
        Ok(index)
    }

    fn home(&mut self, index: u32) -> &mut Home {
        self.homes[index as usize].as_mut().expect("an indexed home is there")
    }

    /// Appends a publication and returns where it stands. Frames are handed out by
    /// [`Homes::seal_all`] at the end of the turn, or earlier when there are many.
    pub(super) fn publish(
        &mut self,
        name: &ChannelName,
        rule: Option<&ChannelRule>,
        payload: &StoredPayload,
        now_ms: u64,
        deliver: Deliver,
    ) -> Result<Position, (ErrorCode, String)> {
        let index = self.open(name, rule, now_ms)?;
        let home = self.home(index);
        home.last_offset += 1;
        home.quiet_ms = now_ms;
        let offset = home.last_offset;
        let publication = Publication { offset, kind: payload.kind, bytes: &payload.bytes };
        let mut staged_max = 0;
        for lane in Lane::ALL {
            if home.subscribers[lane.index()] > 0 {
                let staged = &mut home.staged[lane.index()];
                if staged.count == 0 {
                    staged.first_offset = offset;
                    staged.bytes.reserve(home.name.len() + payload.bytes.len() + ENVELOPE_BYTES);
                }
                staged.count += 1;
                lane.write_publication(&mut staged.bytes, &home.name, &publication);
                staged_max = staged_max.max(staged.bytes.len());
            }
        }
        if home.history_size > 0 {
            let payload = payload.clone();
            home.history.push_back((now_ms, StoredPublication { offset, payload }));
            home.forget(now_ms);
        }
        let position = Position { epoch: home.epoch, offset };
        if staged_max >= CHUNK_BYTES_MAX {
            home.seal(deliver);
        } else if !home.dirty {
            home.dirty = true;
            self.dirty.push(index);
        }
        Ok(position)
    }

    /// Hands out everything staged: the end of a turn.
    pub(super) fn seal_all(&mut self, deliver: Deliver) {
        for index in self.dirty.drain(..) {
            if let Some(home) = &mut self.homes[index as usize] {
                home.dirty = false;
                home.seal(deliver);
            }
        }
    }

    /// Counts a subscriber in and says where it starts. What was published before is handed out
    /// first, so that the answer stands in order among the chunks.
    #[allow(clippy::too_many_arguments)] // one call site; a struct would only rename the fields
    pub(super) fn subscribe(
        &mut self,
        name: &ChannelName,
        rule: Option<&ChannelRule>,
        shard: ShardId,
        lane: Lane,
        recover: Option<Position>,
        recovery_bytes_max: usize,
        now_ms: u64,
        deliver: Deliver,
    ) -> Result<Start, (ErrorCode, String)> {
        let index = self.open(name, rule, now_ms)?;
        let home = self.home(index);
        home.seal(deliver);
        home.forget(now_ms);
        home.subscribers[lane.index()] += 1;
        let interest = match home.interests.iter_mut().position(|i| i.shard == shard) {
            Some(at) => &mut home.interests[at],
            None => {
                home.interests.push(Interest { shard, subscribers: [0; Lane::COUNT] });
                home.interests.last_mut().expect("just pushed")
            }
        };
        interest.subscribers[lane.index()] += 1;
        let replay = recover.map(|from| home.replay(from, lane, recovery_bytes_max));
        Ok(Start {
            key: home.key,
            position: Position { epoch: home.epoch, offset: home.last_offset },
            recovered: replay.as_ref().map(|replay| replay.is_some()),
            replay: replay.flatten().unwrap_or_default(),
        })
    }

    /// Counts a subscriber out.
    pub(super) fn unsubscribe(&mut self, name: &str, shard: ShardId, lane: Lane, now_ms: u64) {
        let Some(&index) = self.by_name.get(name) else { return };
        let home = self.home(index);
        let Some(at) = home.interests.iter().position(|i| i.shard == shard) else { return };
        let interest = &mut home.interests[at];
        if interest.subscribers[lane.index()] == 0 {
            return;
        }
        interest.subscribers[lane.index()] -= 1;
        home.subscribers[lane.index()] -= 1;
        if interest.subscribers.iter().all(|&n| n == 0) {
            home.interests.swap_remove(at);
        }
        if home.subscribers[lane.index()] == 0 {
            // Nobody is left to send it to; the next subscriber starts a new run.
            home.staged[lane.index()] = Staged::default();
        }
        home.quiet_ms = now_ms;
    }

    /// A page of history, at least one publication if there is any, else up to `limit` of them and
    /// `bytes_max` of payload; `None` for a channel that does not exist.
    pub(super) fn history(
        &mut self,
        name: &str,
        after: Option<u64>,
        limit: u32,
        bytes_max: usize,
        now_ms: u64,
    ) -> Option<HistoryPage> {
        let index = *self.by_name.get(name)?;
        let home = self.home(index);
        home.forget(now_ms);
        let after = after.unwrap_or(0);
        let start = home.history.partition_point(|(_, p)| p.offset <= after);
        let mut bytes = 0;
        let page = home.history.iter().skip(start).take(limit as usize).take_while(|(_, p)| {
            let first = bytes == 0;
            bytes += p.payload.bytes.len();
            first || bytes <= bytes_max
        });
        Some(HistoryPage {
            position: Position { epoch: home.epoch, offset: home.last_offset },
            publications: page.map(|(_, publication)| publication.clone()).collect(),
        })
    }

    pub(super) fn rows(&self) -> Vec<ChannelRow> {
        let homes = self.homes.iter().flatten();
        homes
            .map(|home| ChannelRow {
                name: home.name.clone(),
                position: Position { epoch: home.epoch, offset: home.last_offset },
                subscribers: home.subscribers.iter().map(|&n| u64::from(n)).sum(),
                history: home.history.len(),
            })
            .collect()
    }

    /// Forgets aged history of some channels; over many calls, of all.
    pub(super) fn sweep(&mut self, now_ms: u64) {
        const PER_CALL: usize = 10_000;
        for _ in 0..PER_CALL.min(self.homes.len()) {
            self.sweep = (self.sweep + 1) % self.homes.len();
            if let Some(home) = &mut self.homes[self.sweep] {
                home.forget(now_ms);
                let index = u32::try_from(self.sweep).expect("channels_max is below 2^30");
                self.close_if_idle(index, now_ms);
            }
        }
    }

    /// A channel with neither subscribers nor history ends; the next life has a new epoch.
    fn close_if_idle(&mut self, index: u32, now_ms: u64) {
        let idle = self.homes[index as usize].as_ref().is_some_and(|home| {
            let quiet = now_ms.saturating_sub(home.quiet_ms) >= LINGER_MS;
            quiet && home.interests.is_empty() && home.history.is_empty() && !home.dirty
        });
        if idle && let Some(home) = self.homes[index as usize].take() {
            self.by_name.remove(&home.name);
            self.free.push(index);
        }
    }

    /// The newest position, for tests.
    #[cfg(test)]
    fn position(&self, name: &str) -> Option<Position> {
        let home = self.homes[*self.by_name.get(name)? as usize].as_ref();
        home.map(|home| Position { epoch: home.epoch, offset: home.last_offset })
    }
}

impl Home {
    fn seal(&mut self, deliver: Deliver) {
        for lane in Lane::ALL {
            let staged = &mut self.staged[lane.index()];
            if staged.count == 0 {
                continue;
            }
            let Staged { bytes, first_offset, count } = std::mem::take(staged);
            let (key, mut bytes) = (self.key, Bytes::from(bytes));
            let interested = |interest: &&Interest| interest.subscribers[lane.index()] > 0;
            let mut interests = self.interests.iter().filter(interested).peekable();
            while let Some(interest) = interests.next() {
                // The last one, mostly the only one, is given what the others share.
                let bytes = match interests.peek() {
                    Some(_) => bytes.clone(),
                    None => std::mem::take(&mut bytes),
                };
                let chunk = Delivery::Chunk { key, lane, first_offset, count, bytes };
                deliver(interest.shard, chunk);
            }
        }
    }

    fn forget(&mut self, now_ms: u64) {
        let oldest = match self.history_age_ms {
            0 => 0,
            age => now_ms.saturating_sub(age),
        };
        while self.history.len() > self.history_size
            || self.history.front().is_some_and(|(at_ms, _)| *at_ms < oldest)
        {
            self.history.pop_front();
        }
    }

    /// Frames of everything behind `from`; `None` if any of it is gone or too much.
    fn replay(&self, from: Position, lane: Lane, bytes_max: usize) -> Option<Bytes> {
        if from.epoch != self.epoch || from.offset > self.last_offset {
            return None;
        }
        let missed = self.last_offset - from.offset;
        let kept = self.history.len() as u64;
        let start = usize::try_from(kept.checked_sub(missed)?).ok()?;
        let mut frames = Vec::new();
        for (_, StoredPublication { offset, payload }) in self.history.iter().skip(start) {
            let publication =
                Publication { offset: *offset, kind: payload.kind, bytes: &payload.bytes };
            lane.write_publication(&mut frames, &self.name, &publication);
            if frames.len() > bytes_max {
                return None;
            }
        }
        Some(Bytes::from(frames))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};
    use ringfeed_protocol::command::PayloadKind;
    use ringfeed_protocol::frame::server_frame_ends;

    fn payload(text: &'static str) -> StoredPayload {
        StoredPayload { kind: PayloadKind::Json, bytes: Bytes::from_static(text.as_bytes()) }
    }

    struct Bench {
        homes: Homes,
        rule: ChannelRule,
        delivered: Vec<(ShardId, Delivery)>,
    }

    impl Bench {
        fn new(history_size: u32) -> Bench {
            let mut rule = Config::load(&Sources::default()).unwrap().channels.remove(0);
            (rule.history_size, rule.history_age_ms) = (history_size, 1000);
            Bench {
                homes: Homes::new(0, 3, rand::SeedableRng::seed_from_u64(1)),
                rule,
                delivered: Vec::new(),
            }
        }

        fn publish(&mut self, name: &str, now_ms: u64) -> Position {
            let delivered = &mut self.delivered;
            let name = ChannelName::new(name).unwrap();
            self.homes
                .publish(&name, Some(&self.rule), &payload("1"), now_ms, &mut |shard, delivery| {
                    delivered.push((shard, delivery));
                })
                .unwrap()
        }

        fn subscribe(
            &mut self,
            shard: ShardId,
            recover: Option<Position>,
            now_ms: u64,
        ) -> Result<Start, (ErrorCode, String)> {
            let delivered = &mut self.delivered;
            let name = ChannelName::new("c").unwrap();
            self.homes.subscribe(
                &name,
                Some(&self.rule),
                shard,
                Lane::Raw,
                recover,
                1 << 20,
                now_ms,
                &mut |shard, delivery| delivered.push((shard, delivery)),
            )
        }
    }

    #[test]
    fn a_subscriber_starts_behind_what_was_staged_before_it() {
        let mut bench = Bench::new(0);
        bench.subscribe(1, None, 0).unwrap();
        bench.publish("c", 0);
        bench.publish("c", 0);
        assert!(bench.delivered.is_empty(), "staged until the end of the turn");
        let start = bench.subscribe(2, None, 0).unwrap();
        assert_eq!(start.position.offset, 2);
        // The chunk went to shard 1 before the answer to shard 2 was made, and to nobody else.
        match &bench.delivered[..] {
            [(1, Delivery::Chunk { first_offset: 1, count: 2, bytes, .. })] => {
                assert_eq!(server_frame_ends(bytes).count(), 2);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn recovery_replays_exactly_what_was_missed_or_says_it_cannot() {
        let mut bench = Bench::new(3);
        let at: Vec<Position> = (0..5).map(|_| bench.publish("c", 0)).collect();
        let start = bench.subscribe(1, Some(at[1]), 0).unwrap();
        assert_eq!(start.recovered, Some(true));
        assert_eq!(server_frame_ends(&start.replay).count(), 3);
        let nothing_missed = bench.subscribe(1, Some(at[4]), 0).unwrap();
        assert_eq!((nothing_missed.recovered, nothing_missed.replay.len()), (Some(true), 0));
        let too_old = bench.subscribe(1, Some(at[0]), 0).unwrap();
        assert_eq!((too_old.recovered, too_old.replay.len()), (Some(false), 0));
        let other_epoch = Position { epoch: Epoch(at[1].epoch.0 ^ 1), ..at[1] };
        assert_eq!(bench.subscribe(1, Some(other_epoch), 0).unwrap().recovered, Some(false));
        let ahead = Position { offset: 9, ..at[4] };
        assert_eq!(bench.subscribe(1, Some(ahead), 0).unwrap().recovered, Some(false));
        let aged = bench.subscribe(1, Some(at[3]), 2000).unwrap();
        assert_eq!(aged.recovered, Some(false), "history is older than its age");
    }

    #[test]
    fn a_channel_nobody_needs_lingers_ends_and_comes_back_with_a_new_epoch() {
        let mut bench = Bench::new(0);
        let first = bench.subscribe(1, None, 0).unwrap().position;
        bench.homes.unsubscribe("c", 1, Lane::Raw, 5000);
        bench.homes.sweep(5000 + LINGER_MS - 1);
        assert_eq!(bench.homes.position("c"), Some(first));
        bench.homes.sweep(5000 + LINGER_MS);
        assert_eq!(bench.homes.position("c"), None);
        let second = bench.subscribe(1, Some(first), 0).unwrap();
        assert_eq!(second.recovered, Some(false));
        assert_ne!(second.position.epoch, first.epoch);
    }

    #[test]
    fn the_limit_on_channels_is_an_error_not_a_loss() {
        let mut bench = Bench::new(10);
        ["a", "b", "d"].iter().for_each(|name| assert_eq!(bench.publish(name, 0).offset, 1));
        bench.homes.seal_all(&mut |_, _| {});
        let error = bench.subscribe(0, None, 0).map(|_| ()).unwrap_err();
        assert_eq!(error.0, ErrorCode::LimitReached);
        bench.homes.sweep(20_000);
        assert!(bench.subscribe(0, None, 20_000).is_ok(), "aged channels make room");
    }
}
