//! Connections and subscriptions that come and go while it is published.

use std::sync::atomic::Ordering;
use std::time::Instant;

use rand::Rng as _;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use ringfeed_protocol::frame::Opcode;

use super::{Fleet, Standing, State, Stream, Subscription, stream_place};

#[derive(Debug)]
pub(super) struct Churn {
    per_second: f64,
    began: Option<Instant>,
    is_over: bool,
    done: u64,
    random: SmallRng,
}

impl Churn {
    pub(super) fn new(per_second: f64) -> Churn {
        let random = SmallRng::from_os_rng();
        Churn { per_second, began: None, is_over: per_second <= 0.0, done: 0, random }
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }
}

impl Fleet {
    /// Replaces connections and subscriptions at the rate that was asked for, while it is
    /// published.
    pub(super) fn come_and_go(&mut self) -> anyhow::Result<()> {
        let has_begun = self.control.has_begun();
        if self.churn.is_over || !self.control.is_publishing() {
            if has_begun && !self.churn.is_over {
                self.churn.is_over = true;
                self.progress.owed.fetch_sub(1, Ordering::Relaxed);
            }
            return Ok(());
        }
        let began = *self.churn.began.get_or_insert_with(Instant::now);
        let due = (began.elapsed().as_secs_f64() * self.churn.per_second) as u64;
        while self.churn.done < due {
            self.churn.done += 1;
            let at = self.churn.random.random_range(0..self.conns.len());
            let conn = &self.conns[at];
            let settled = conn.subscriptions.iter().all(|s| s.standing == Standing::Stands);
            // Who comes or goes already is left alone, and who does not read would not be answered.
            if !matches!(conn.state, State::Open) || !settled || conn.stalled {
                continue;
            }
            if self.churn.random.random() {
                self.replace(at)?;
            } else {
                let place = self.churn.random.random_range(0..conn.subscriptions.len());
                self.end_subscription(at, place);
            }
        }
        Ok(())
    }

    fn end_subscription(&mut self, at: usize, place: usize) {
        let subscription = &mut self.conns[at].subscriptions[place];
        subscription.standing = Standing::Ending;
        let channel = &self.channels[subscription.channel as usize];
        let command = format!("{{\"type\":\"unsubscribe\",\"id\":2,\"channel\":\"{channel}\"}}");
        self.tell(at, Opcode::Text, command.as_bytes());
    }

    /// Ends a connection and opens another in its place.
    fn replace(&mut self, at: usize) -> anyhow::Result<()> {
        for place in 0..self.conns[at].subscriptions.len() {
            self.retire(at, place);
        }
        self.progress.opened.fetch_sub(1, Ordering::Relaxed);
        self.tally.replaced += 1;
        self.wire.close(self.conns[at].socket);
        let socket = self.connect(self.conns[at].plan)?;
        let conn = &mut self.conns[at];
        (conn.socket, conn.state) = (socket, State::Connecting);
        conn.stash.clear();
        conn.extra = None;
        self.owners.set(socket, at as u32);
        Ok(())
    }

    /// Ends a subscription: what it was to get until now is what it got.
    pub(super) fn retire(&mut self, at: usize, place: usize) {
        self.leave(at, place);
        self.had_all(at, place);
        self.progress.standing.fetch_sub(1, Ordering::Relaxed);
        self.progress.owed.fetch_add(1, Ordering::Relaxed);
    }

    /// A subscription that stood was to get what it got, and is as it was before it was asked for.
    pub(super) fn had_all(&mut self, at: usize, place: usize) {
        let conn = &mut self.conns[at];
        let lane = conn.speech.lane();
        let subscription = &mut conn.subscriptions[place];
        let stream = self.streams[stream_place(subscription.channel, lane)].as_ref();
        let from = subscription.from.max(stream.map_or(0, Stream::counted_from));
        self.retired += subscription.cursor.next().saturating_sub(from);
        *subscription = Subscription::new(subscription.channel);
    }
}
