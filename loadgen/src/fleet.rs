//! The subscribers of one thread: many connections on one wire, each a cursor into what it must
//! receive.

mod churn;
mod ending;
mod opening;
mod raw;
mod ringfeed;
mod showing;
mod stamped;
mod verify;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use crossbeam_channel::Receiver;
use ringfeed_protocol::Lane;
use ringfeed_protocol::frame::{Opcode, write_client};
use ringfeed_protocol::handshake::ClientHandshake;
use ringfeed_wire::{
    Event, Io, ShortSend, SocketId, SocketOwners, Wire, WireConfig, thread_cpu_split,
};

use crate::expect::{Cursor, Stream};
use crate::payloads::Payloads;
use crate::plans::{Plan, Speech};
use crate::recorder::Recorder;
use crate::report::{Close, Tally};
use crate::signals::{Batch, Control, Phase, Progress};
use crate::target::Target;
use crate::tokens::Ending;
use churn::Churn;
use ending::Closes;
use raw::Taken;
use showing::ToShow;
use stamped::Wrapping;

/// Longest wait for sockets before the phase is looked at again.
const LOOK_AROUND: Duration = Duration::from_millis(20);
/// How often streams are trimmed.
const TRIM_EVERY: Duration = Duration::from_millis(500);
/// Streams smaller than this, all together, are left alone.
const TRIM_BYTES: usize = 64 << 20;
/// What was published in this time is kept: a subscription that begins may begin there, although
/// all others are past it.
const KEEP: Duration = Duration::from_secs(10);
/// Sockets that may still be closing while those in their place open.
const SOCKETS_SPARE: u32 = 1000;
/// How long a connection may take to open.
const OPEN_PATIENCE: Duration = Duration::from_secs(60);

/// What a fleet found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) tally: Tally,
    /// Connections that ended early, by reason.
    pub(crate) closes: Vec<Close>,
    pub(crate) first_problem: Option<String>,
    /// What is no failure, and should be known.
    pub(crate) notes: Vec<String>,
    pub(crate) latency: Recorder,
    /// Connections that ended where that was meant.
    pub(crate) endings: Vec<Ending>,
    /// Cores that its thread used since publishing began.
    pub(crate) cores: f64,
}

/// What a thread has done since a moment.
#[derive(Debug)]
struct Effort {
    since: Instant,
    cpu_before: Duration,
}

impl Effort {
    fn begin() -> Effort {
        Effort { since: Instant::now(), cpu_before: thread_cpu_time() }
    }

    fn cores(&self) -> f64 {
        let used = thread_cpu_time().saturating_sub(self.cpu_before);
        used.as_secs_f64() / self.since.elapsed().as_secs_f64()
    }
}

fn thread_cpu_time() -> Duration {
    let (user, system) = thread_cpu_split();
    user + system
}

/// Where a subscription is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Asked for.
    Asked,
    /// Taken to stand without a sign; its first message shows from where on.
    Believed,
    /// It is known from where on it receives.
    Stands,
    /// The same, and its end is asked for.
    Ending,
}

#[derive(Debug)]
struct Subscription {
    channel: u32,
    cursor: Cursor,
    standing: Standing,
    /// The first message that it must get.
    from: u64,
}

impl Subscription {
    fn new(channel: u32) -> Subscription {
        Subscription { channel, cursor: Cursor::default(), standing: Standing::Asked, from: 0 }
    }

    /// Whether its cursor is known.
    fn receives(&self) -> bool {
        matches!(self.standing, Standing::Stands | Standing::Ending)
    }
}

#[derive(Debug)]
enum State {
    Connecting,
    Shaking(Box<ClientHandshake>),
    Open,
    /// The server's close frame has come.
    Closing,
    Gone,
}

#[derive(Debug)]
struct Conn {
    socket: SocketId,
    state: State,
    plan: u32,
    speech: Speech,
    /// Reads nothing more once it is subscribed, and is not counted.
    stalled: bool,
    subscriptions: Vec<Subscription>,
    /// The beginning of a frame that did not come whole.
    stash: Vec<u8>,
    /// Messages that later ones overtook, and that have not come since.
    skipped: u64,
    /// Changed messages for which no hole was seen yet.
    changed: u64,
    extra: Option<Box<Extra>>,
}

/// What few connections need.
#[derive(Debug, Default)]
struct Extra {
    /// A message that comes in fragments.
    fragments: Option<(Opcode, Vec<u8>)>,
    /// The beginning of a stamped message that did not come whole.
    carry: Vec<u8>,
    /// To which subscriptions the last messages were counted, where that was not certain.
    taken: VecDeque<Taken>,
}

impl Conn {
    fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    fn is_in_fragments(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.fragments.is_some())
    }
}

/// How a fleet goes about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) io: Io,
    /// Handshakes under way at once.
    pub(crate) pace: u32,
    /// Connections replaced, or subscriptions renewed, each second.
    pub(crate) churn_per_second: f64,
    /// Whether subscriptions that are not acknowledged are shown to stand by warm-up messages.
    pub(crate) warm_up: bool,
    /// Whether it is sent to users; nobody subscribes then.
    pub(crate) send: bool,
    /// Whether the server is to end connections.
    pub(crate) may_end: bool,
}

/// The fleet of one thread.
pub(crate) struct Fleet {
    wire: Box<dyn Wire>,
    target: Target,
    plans: Vec<Plan>,
    channels: Arc<Vec<String>>,
    /// The way back from a name.
    places: HashMap<Box<str>, u32>,
    coming: Receiver<Arc<Batch>>,
    control: Arc<Control>,
    progress: Arc<Progress>,
    conns: Vec<Conn>,
    owners: SocketOwners,
    /// By channel × lane; only those that somebody here is subscribed to.
    streams: Vec<Option<Stream>>,
    /// What was published to the raw lane; kept where a connection has several channels of it.
    payloads: Option<Payloads>,
    wrapping: Wrapping,
    latency: Recorder,
    /// Kept while it runs; what only the end shows is filled in by `findings`.
    tally: Tally,
    closes: Closes,
    endings: Vec<Ending>,
    to_show: ToShow,
    first_problem: Option<String>,
    opening: u32,
    /// Messages due to subscriptions that have ended.
    retired: u64,
    queued: VecDeque<u32>,
    sends: Vec<(SocketId, Bytes)>,
    last_trim: Instant,
    manner: Manner,
    churn: Churn,
}

fn stream_place(channel: u32, lane: Lane) -> usize {
    channel as usize * Lane::ALL.len() + usize::from(lane == Lane::RAW)
}

impl Fleet {
    pub(crate) fn new(
        target: Target,
        plans: Vec<Plan>,
        channels: Arc<Vec<String>>,
        coming: Receiver<Arc<Batch>>,
        control: Arc<Control>,
        progress: Arc<Progress>,
        manner: Manner,
    ) -> anyhow::Result<Fleet> {
        let wire = manner.io.open(WireConfig {
            sockets_max: u32::try_from(plans.len())? + SOCKETS_SPARE,
            submission_entries: 1024,
            receive_buffers: 256,
            receive_buffer_bytes: 64 * 1024,
            ..WireConfig::default()
        })?;
        let mut streams: Vec<Option<Stream>> =
            (0..channels.len() * Lane::ALL.len()).map(|_| None).collect();
        for plan in &plans {
            for &channel in &plan.channels {
                let lane = plan.speech.lane();
                streams[stream_place(channel, lane)]
                    .get_or_insert_with(|| Stream::new(lane, &channels[channel as usize]));
            }
        }
        let nameless = |plan: &Plan| plan.speech == Speech::Raw && plan.channels.len() > 1;
        let payloads = plans.iter().any(nameless).then(Payloads::default);
        let place = |(name, place): (&String, u32)| (name.as_str().into(), place);
        let places = channels.iter().zip(0..).map(place).collect();
        let churn = Churn::new(manner.churn_per_second);
        let subscriptions: usize = plans.iter().map(|plan| plan.channels.len()).sum();
        let owed = subscriptions as u64 + u64::from(!churn.is_over());
        progress.owed.store(owed, Ordering::Relaxed);
        Ok(Fleet {
            wire,
            target,
            queued: (0..u32::try_from(plans.len())?).collect(),
            plans,
            channels,
            places,
            coming,
            control,
            progress,
            conns: Vec::new(),
            owners: SocketOwners::default(),
            streams,
            payloads,
            wrapping: Wrapping::default(),
            latency: Recorder::default(),
            tally: Tally::default(),
            closes: Closes::default(),
            endings: Vec::new(),
            to_show: ToShow::default(),
            first_problem: None,
            opening: 0,
            retired: 0,
            sends: Vec::new(),
            last_trim: Instant::now(),
            churn,
            manner,
        })
    }

    /// Opens, subscribes, verifies until told to stop, closes.
    pub(crate) fn run(mut self) -> anyhow::Result<Findings> {
        let begun = Instant::now();
        let mut short = Vec::new();
        let mut bytes = Vec::new();
        let mut effort = None;
        while self.control.phase() != Phase::Stop {
            while self.opening < self.manner.pace.max(1) && !self.queued.is_empty() {
                self.open_next()?;
            }
            if !self.queued.is_empty() && begun.elapsed() > OPEN_PATIENCE * 10 {
                bail!("not all connections could be opened");
            }
            if self.control.has_begun() {
                effort.get_or_insert_with(Effort::begin);
            }
            self.come_and_go()?;
            self.show();
            let progressed = self.turn(&mut short, &mut bytes)?;
            if self.last_trim.elapsed() > TRIM_EVERY {
                self.trim();
            }
            if !progressed {
                self.wire.wait(LOOK_AROUND).context("waiting for sockets")?;
            }
        }
        self.take_coming();
        let mut findings = self.findings();
        findings.cores = effort.map_or(0.0, |effort| effort.cores());
        self.close_all(&mut short, &mut bytes)?;
        Ok(findings)
    }

    /// Sends what is queued and handles what came. Returns whether anything did.
    fn turn(&mut self, short: &mut Vec<ShortSend>, bytes: &mut Vec<u8>) -> anyhow::Result<bool> {
        let sends = std::mem::take(&mut self.sends);
        let mut sent = HashSet::new();
        for (socket, frame) in sends {
            // What is for a connection that has been replaced goes nowhere.
            if self.conn_of(socket).is_none() {
                continue;
            }
            // One send for each socket in a submission.
            if sent.insert(socket) {
                self.wire.send(socket, 0, &frame);
            } else {
                self.sends.push((socket, frame));
            }
        }
        self.wire.submit(short).context("handing sends to the kernel")?;
        if short.iter().any(|send| !send.broken) {
            bail!("the kernel did not take a command whole");
        }
        short.clear();
        // io_uring has received everything by now. What epoll says is there is read by `next_event`,
        // and there may be more of it each time.
        let mut now_ns = self.control.now_ns();
        let is_read_later = self.manner.io == Io::Epoll;
        self.latency.count_from(self.control.counts_from_ns.load(Ordering::Relaxed));
        let mut any = false;
        loop {
            enum What {
                Connected,
                Received,
                Closed(Option<std::io::Error>),
            }
            let (socket, what) = match self.wire.next_event() {
                None => break,
                Some(Event::Connected(socket)) => (socket, What::Connected),
                Some(Event::Received(socket, received)) => {
                    bytes.clear();
                    bytes.extend_from_slice(received);
                    if is_read_later {
                        now_ns = self.control.now_ns();
                    }
                    (socket, What::Received)
                }
                Some(Event::Closed(socket, error)) => (socket, What::Closed(error)),
                Some(Event::Writable(_)) => continue,
            };
            any = true;
            let Some(at) = self.conn_of(socket) else { continue };
            match what {
                What::Connected => self.shake(at),
                What::Received => self.received(at, bytes, now_ns)?,
                What::Closed(error) => self.closed(at, error)?,
            }
        }
        Ok(any || !self.sends.is_empty())
    }

    fn conn_of(&self, socket: SocketId) -> Option<usize> {
        let at = self.owners.get(socket)? as usize;
        self.conns.get(at).is_some_and(|conn| conn.socket == socket).then_some(at)
    }

    /// Queues a frame for a connection's server.
    fn tell(&mut self, at: usize, opcode: Opcode, payload: &[u8]) {
        let mut frame = Vec::new();
        write_client(&mut frame, opcode, payload, rand::random());
        self.sends.push((self.conns[at].socket, Bytes::from(frame)));
    }

    /// What a connection is called, and a subscription of it.
    fn number(&self, at: usize) -> u32 {
        self.plans[self.conns[at].plan as usize].number
    }

    fn problem(&mut self, what: impl FnOnce(&Fleet) -> String) {
        if self.first_problem.is_none() {
            self.first_problem = Some(what(self));
        }
    }

    /// The stream of a subscription.
    fn stream(&self, at: usize, place: usize) -> Option<&Stream> {
        let conn = &self.conns[at];
        let channel = conn.subscriptions.get(place)?.channel;
        self.streams.get(stream_place(channel, conn.speech.lane()))?.as_ref()
    }

    /// Where a connection's subscription to a channel is.
    fn place_of(&self, at: usize, channel: u32) -> Option<usize> {
        // In the order of the plan, which ascends.
        let own = &self.plans[self.conns[at].plan as usize].channels;
        own.binary_search(&channel).ok()
    }

    /// Takes note of what is about to be published.
    fn take_coming(&mut self) {
        while let Ok(batch) = self.coming.try_recv() {
            for item in &batch.items {
                let payload = batch.payload(item);
                for lane in Lane::ALL {
                    if let Some(stream) = &mut self.streams[stream_place(item.channel, lane)] {
                        stream.append(payload, item.intended_ns, item.counts);
                        if lane == Lane::RAW
                            && let Some(payloads) = &mut self.payloads
                        {
                            payloads.note(item.channel, payload);
                        }
                    }
                }
            }
        }
    }

    /// Forgets what every subscriber has received.
    fn trim(&mut self) {
        self.last_trim = Instant::now();
        self.take_coming();
        let held: usize = self.streams.iter().flatten().map(Stream::bytes_held).sum();
        if held < TRIM_BYTES {
            return;
        }
        let keep_ns = self.control.now_ns().saturating_sub(KEEP.as_nanos() as u64);
        let mut least: Vec<Option<Cursor>> = vec![None; self.streams.len()];
        let live = |conn: &&Conn| !conn.stalled && !matches!(conn.state, State::Gone);
        for conn in self.conns.iter().filter(live) {
            for subscription in conn.subscriptions.iter().filter(|s| s.receives()) {
                let place = &mut least[stream_place(subscription.channel, conn.speech.lane())];
                if place.is_none_or(|cursor| cursor.next() > subscription.cursor.next()) {
                    *place = Some(subscription.cursor);
                }
            }
        }
        for (place, (stream, least)) in self.streams.iter_mut().zip(least).enumerate() {
            let (Some(stream), Some(least)) = (stream, least) else { continue };
            let channel = (place / Lane::ALL.len()) as u32;
            let payloads = &mut self.payloads;
            stream.trim(least, keep_ns, |payload| {
                if place == stream_place(channel, Lane::RAW)
                    && let Some(payloads) = payloads
                {
                    payloads.forget(channel, payload);
                }
            });
        }
    }

    fn findings(&mut self) -> Findings {
        let unanswered = self.find_unanswered();
        let (mut expected, mut lost) = (self.retired, self.tally.lost);
        for conn in self.conns.iter().filter(|conn| !conn.stalled) {
            let mut missing = 0;
            for subscription in &conn.subscriptions {
                let place = stream_place(subscription.channel, conn.speech.lane());
                let Some(stream) = &self.streams[place] else { continue };
                if subscription.standing == Standing::Asked {
                    continue;
                }
                let end = stream.counted_from() + stream.counted();
                let from = subscription.from.clamp(stream.counted_from(), end);
                expected += end - from;
                missing += end - subscription.cursor.next().clamp(from, end);
            }
            lost += missing.saturating_sub(conn.changed);
        }
        Findings {
            tally: Tally {
                expected,
                delivered: self.progress.delivered.load(Ordering::Relaxed),
                lost,
                unanswered,
                ..self.tally
            },
            closes: self.closes.list(),
            first_problem: self.first_problem.clone(),
            notes: self.wrapping.notes(),
            endings: std::mem::take(&mut self.endings),
            latency: self.latency.clone(),
            cores: 0.0,
        }
    }

    /// Counts subscriptions that the server was asked for and that do not stand, where it has not
    /// ended the connection.
    fn find_unanswered(&mut self) -> u64 {
        let mut unanswered = 0;
        for at in 0..self.conns.len() {
            let conn = &self.conns[at];
            let what = match conn.state {
                State::Connecting | State::Shaking(_) => "it was never open",
                State::Open => "its subscription was never answered",
                State::Closing | State::Gone => continue,
            };
            let asked = |s: &&Subscription| s.standing == Standing::Asked;
            let count = conn.subscriptions.iter().filter(asked).count() as u64;
            if count > 0 {
                unanswered += count;
                self.problem(|fleet| format!("connection {}: {what}", fleet.number(at)));
            }
        }
        unanswered
    }
}
