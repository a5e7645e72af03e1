//! The publishing thread: takes a feed, tells the fleet what is coming, then publishes it.

mod sink;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::args::{PublishArg, Traffic};
use crate::feed::Feed;
use crate::signals::{Batch, Control, Progress};
use crate::target::Target;
use crate::templates;
use sink::Sink;

/// In an unpaced run: bytes published and not yet received at most, for each connection, on average
/// over all, and for each subscription, on average over those of one channel.
/// A server's window for slow readers must be a good deal larger, or the run measures its lag
/// policy.
const UNDELIVERED_BYTES_MAX: u64 = 128 * 1024;
/// The same where it is sent to users. That waits in memory that the server has for each connection
/// and, less of it, for all; who has up to 16 KiB of it is left alone.
const UNDELIVERED_SENT_BYTES_MAX: u64 = 12 * 1024;

/// What became of a run's publications.
#[derive(Debug, Default, Clone)]
pub(crate) struct Published {
    pub(crate) messages: u64,
    /// Of these, messages to users that the server had no room for.
    pub(crate) refused: u64,
    /// By place in the list of channels.
    pub(crate) by_channel: Vec<u64>,
    pub(crate) seconds: f64,
    /// How far publishing fell behind its schedule at worst.
    pub(crate) late_max_ns: u64,
    /// Why it was ended before the end of the feed, or is not known to have come to its end.
    pub(crate) gave_up: Option<String>,
}

/// A connection that publishes.
pub(crate) struct Publisher {
    sink: Sink,
    channels: Vec<String>,
    fleet: Vec<Sender<Arc<Batch>>>,
    control: Arc<Control>,
    audience: Audience,
    undelivered_bytes_max: u64,
}

/// Who receives what is published.
pub(crate) struct Audience {
    pub(crate) fleets: Vec<Arc<Progress>>,
    /// Seconds without any progress after which nothing more is expected.
    pub(crate) grace: f64,
}

impl Audience {
    /// Subscriptions of a channel that read, and the messages of what is measured that they are
    /// done with.
    fn of_channel(&self, channel: usize) -> (u64, u64) {
        let add = |(live, settled): (u64, u64), (l, s): (u64, u64)| {
            (live.wrapping_add(l), settled.wrapping_add(s))
        };
        self.fleets.iter().map(|fleet| fleet.of_channel(channel)).fold((0, 0), add)
    }

    /// Connections that are open.
    fn connections(&self) -> u64 {
        self.fleets.iter().map(|fleet| fleet.opened.load(Ordering::Relaxed)).sum()
    }

    /// Messages of a channel that its readers are still to get, and how many of these there are.
    pub(crate) fn due(&self, channel: usize, published: u64) -> (u64, u64) {
        let (live, settled) = self.of_channel(channel);
        // The two are not read at one moment; a difference below 0 is none.
        let due = published.wrapping_mul(live).wrapping_sub(settled);
        (if due > u64::MAX / 2 { 0 } else { due }, live)
    }

    /// The same over all channels.
    pub(crate) fn due_in_all(&self, by_channel: &[u64]) -> u64 {
        let each = by_channel.iter().enumerate();
        each.map(|(channel, &published)| self.due(channel, published).0).sum()
    }
}

impl Publisher {
    pub(crate) fn connect(
        target: &Target,
        traffic: &Traffic,
        channels: Vec<String>,
        fleet: Vec<Sender<Arc<Batch>>>,
        control: Arc<Control>,
        audience: Audience,
    ) -> anyhow::Result<Publisher> {
        let token = traffic.publisher_token.as_deref().unwrap_or_default();
        let sink = match traffic.publish {
            _ if target.templates.publish_frame.is_some() => Sink::templates(target)?,
            PublishArg::Api if traffic.send => Sink::send_api(target)?,
            PublishArg::Api => Sink::api(target)?,
            PublishArg::Ws => Sink::ws(target, token, traffic.send)?,
        };
        let undelivered_bytes_max = match traffic.send {
            true => UNDELIVERED_SENT_BYTES_MAX,
            false => UNDELIVERED_BYTES_MAX,
        };
        Ok(Publisher { sink, channels, fleet, control, audience, undelivered_bytes_max })
    }

    /// Publishes one message to each of some channels that does not count, to show where
    /// subscriptions stand.
    pub(crate) fn warm_up(&mut self, channels: &[u32], round: u32) -> anyhow::Result<()> {
        let mut batch = Batch::default();
        let now = self.control.now_ns();
        for &channel in channels {
            let payload = templates::warm_up(channel, round);
            batch.push(channel, now, false, payload.as_bytes());
        }
        self.publish(batch)
    }

    /// Publishes a feed to its end, or until the run is stopped.
    pub(crate) fn run(
        &mut self,
        feed: &mut dyn Feed,
        until_ns: Option<u64>,
    ) -> anyhow::Result<Published> {
        let by_channel = vec![0; self.channels.len()];
        let mut published = Published { by_channel, ..Published::default() };
        let start = self.control.now_ns();
        let paced = feed.is_paced();
        let mut payload = Vec::new();
        let mut held: Option<(u32, u64)> = None;
        let mut bytes = 0;
        loop {
            let mut batch = Batch::default();
            let now = self.control.now_ns();
            let mut wait_until = None;
            while !batch.is_full() {
                let next = match held.take() {
                    Some(next) => Some(next),
                    None => {
                        payload.clear();
                        feed.next(&mut payload)
                    }
                };
                let Some((channel, due_ns)) = next else { break };
                let due = if paced { start + due_ns } else { now };
                if due > now {
                    held = next;
                    wait_until = Some(due);
                    break;
                }
                published.late_max_ns = published.late_max_ns.max(now - due);
                batch.push(channel, due, true, &payload);
            }
            let over = until_ns.is_some_and(|until| now - start >= until);
            if self.control.stopped() || over {
                break;
            }
            if batch.items.is_empty() {
                let Some(due) = wait_until else { break };
                self.control.next_due_ns.store(due, Ordering::Relaxed);
                let wait = Duration::from_nanos(due.saturating_sub(self.control.now_ns()));
                // Short sleeps: a stop is noticed, and a late timer is not late by much.
                std::thread::sleep(wait.min(Duration::from_millis(50)));
                continue;
            }
            published.messages += batch.items.len() as u64;
            bytes += batch.text.len() as u64;
            for item in &batch.items {
                published.by_channel[item.channel as usize] += 1;
            }
            let last: Vec<u32> = batch.items.iter().map(|item| item.channel).collect();
            self.publish(batch)?;
            if !paced {
                let message_bytes = bytes / published.messages;
                if !self.wait_for_readers(&published, &last, message_bytes) {
                    let seconds = self.audience.grace;
                    let why = format!("nothing was delivered for {seconds} seconds");
                    published.gave_up = Some(why);
                    break;
                }
            }
        }
        published.seconds = (self.control.now_ns() - start) as f64 / 1e9;
        Ok(published)
    }

    fn publish(&mut self, batch: Batch) -> anyhow::Result<()> {
        let batch = Arc::new(batch);
        // First the fleet: whoever receives a message must know what to expect.
        for fleet in &self.fleet {
            let _ = fleet.send(batch.clone());
        }
        self.control.published.fetch_add(batch.items.len() as u64, Ordering::Relaxed);
        self.sink.send(&self.channels, &batch)
    }

    /// Bounds what is under way in an unpaced run: as fast as server and readers go, not faster.
    /// `false` if they do not go on.
    fn wait_for_readers(
        &self,
        published: &Published,
        channels: &[u32],
        message_bytes: u64,
    ) -> bool {
        let audience = &self.audience;
        let each = (self.undelivered_bytes_max / message_bytes.max(1)).max(1);
        let behind = |&channel: &u32| {
            let channel = channel as usize;
            let (due, live) = audience.due(channel, published.by_channel[channel]);
            due > live * each
        };
        let mut seen = (u64::MAX, Instant::now());
        loop {
            let due = audience.due_in_all(&published.by_channel);
            let wait = due > audience.connections() * each || channels.iter().any(behind);
            if !wait || self.control.stopped() {
                return true;
            }
            if due != seen.0 {
                seen = (due, Instant::now());
            }
            if seen.1.elapsed().as_secs_f64() > audience.grace {
                return false;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Ends the request and checks that everything was accepted. Returns why that is not known,
    /// where the server does not say it, and how many messages to users it had no room for.
    pub(crate) fn finish(self) -> anyhow::Result<(Option<String>, u64)> {
        let answers = self.sink.answers();
        let published = self.control.published.load(Ordering::Relaxed);
        let unfinished = self.sink.finish(published, &self.control)?;
        Ok((unfinished, answers.busy()))
    }
}
