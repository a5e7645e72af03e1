//! The subscribers of one thread: many connections on one wire, each a cursor into what it must
//! receive.

mod verify;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use crossbeam_channel::Receiver;
use rand::Rng as _;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use ringfeed_protocol::frame::{Opcode, write_client};
use ringfeed_protocol::handshake::ClientHandshake;
use ringfeed_protocol::{Dialect, Lane};
use ringfeed_wire::{Event, Io, ShortSend, SocketId, SocketOwners, Wire, WireConfig};

use crate::expect::{Cursor, Stream};
use crate::publisher::Batch;
use crate::recorder::Recorder;
use crate::report::Tally;
use crate::run::{Control, Phase};
use crate::target::Target;

/// Longest wait for sockets before the phase is looked at again.
const LOOK_AROUND: Duration = Duration::from_millis(20);
/// How often streams are trimmed.
const TRIM_EVERY: Duration = Duration::from_millis(500);
/// Streams smaller than this, all together, are left alone.
const TRIM_BYTES: usize = 64 << 20;
/// Sockets that may still be closing while those in their place open.
const SOCKETS_SPARE: u32 = 1000;
/// How long a connection may take to open.
const OPEN_PATIENCE: Duration = Duration::from_secs(60);

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    Ringfeed,
    Raw,
    /// What the command line says; see [`crate::templates`].
    Templates,
}

impl Speech {
    /// What its frames look like. Of templates it is a guess: messages in text frames of their own.
    /// What looks different is recognised by its stamps, at a higher cost.
    pub(crate) fn lane(self) -> Lane {
        match self {
            Speech::Ringfeed => Lane::RINGFEED,
            Speech::Raw | Speech::Templates => Lane::RAW,
        }
    }

    fn dialect(self) -> Option<Dialect> {
        match self {
            Speech::Ringfeed => Some(Dialect::Ringfeed),
            Speech::Raw => Some(Dialect::Raw),
            Speech::Templates => None,
        }
    }
}

/// One connection that a fleet is to open.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) speech: Speech,
    /// Places in the list of channels, ascending.
    pub(crate) channels: Vec<u32>,
    /// Number over all threads.
    pub(crate) number: u32,
    /// Reads nothing more once its subscriptions stand.
    pub(crate) stalled: bool,
}

/// What a fleet counts while it runs, for all to see.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) opened: AtomicU64,
    /// Subscriptions that are known to stand.
    pub(crate) standing: AtomicU64,
    pub(crate) delivered: AtomicU64,
    /// By channel.
    pub(crate) delivered_of: Vec<AtomicU64>,
    pub(crate) bytes: AtomicU64,
}

impl Progress {
    pub(crate) fn new(channels: usize) -> Progress {
        Progress {
            opened: AtomicU64::new(0),
            standing: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            delivered_of: (0..channels).map(|_| AtomicU64::new(0)).collect(),
            bytes: AtomicU64::new(0),
        }
    }

    fn delivered(&self, channel: u32, count: u64) {
        self.delivered.fetch_add(count, Ordering::Relaxed);
        self.delivered_of[channel as usize].fetch_add(count, Ordering::Relaxed);
    }
}

/// What a fleet found.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) tally: Tally,
    pub(crate) first_problem: Option<String>,
    pub(crate) latency: Recorder,
}

#[derive(Debug)]
struct Subscription {
    channel: u32,
    cursor: Cursor,
    standing: bool,
    /// The first message that it must get.
    from: u64,
}

impl Subscription {
    fn new(channel: u32) -> Subscription {
        Subscription { channel, cursor: Cursor::default(), standing: false, from: 0 }
    }
}

#[derive(Debug)]
enum State {
    Connecting,
    Shaking(Box<ClientHandshake>),
    Open,
    Gone,
}

#[derive(Debug)]
struct Conn {
    socket: SocketId,
    state: State,
    plan: u32,
    speech: Speech,
    subscriptions: Vec<Subscription>,
    /// Where the last message belonged.
    last: usize,
    /// The beginning of a frame that did not come whole.
    stash: Vec<u8>,
    /// The beginning of a stamped message that did not come whole.
    carry: Vec<u8>,
}

/// Connections and subscriptions that come and go.
#[derive(Debug)]
struct Churn {
    per_second: f64,
    began: Option<Instant>,
    done: u64,
    random: SmallRng,
}

/// How a fleet goes about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) io: Io,
    /// Handshakes under way at once.
    pub(crate) pace: u32,
    /// Connections replaced, or subscriptions renewed, each second.
    pub(crate) churn_per_second: f64,
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
    latency: Recorder,
    /// Kept while it runs; what only the end shows is filled in by `findings`.
    tally: Tally,
    /// Messages that a later one overtook.
    skipped: u64,
    first_problem: Option<String>,
    opening: u32,
    /// Messages due to subscriptions that have ended.
    retired: u64,
    queued: VecDeque<u32>,
    sends: Vec<(SocketId, Bytes)>,
    last_trim: Instant,
    pace: u32,
    churn: Churn,
}

fn subscribe_command(channel: &str) -> String {
    format!("{{\"type\":\"subscribe\",\"id\":1,\"channel\":\"{channel}\"}}")
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
        let place = |(place, name): (usize, &String)| (name.as_str().into(), place as u32);
        let places = channels.iter().enumerate().map(place).collect();
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
            latency: Recorder::new(),
            tally: Tally::default(),
            skipped: 0,
            first_problem: None,
            opening: 0,
            retired: 0,
            sends: Vec::new(),
            last_trim: Instant::now(),
            pace: manner.pace.max(1),
            churn: Churn {
                per_second: manner.churn_per_second,
                began: None,
                done: 0,
                random: SmallRng::from_os_rng(),
            },
        })
    }

    /// Opens, subscribes, verifies until told to stop, closes.
    pub(crate) fn run(mut self) -> anyhow::Result<Findings> {
        let begun = Instant::now();
        let mut short = Vec::new();
        let mut bytes = Vec::new();
        while self.control.phase() != Phase::Stop {
            while self.opening < self.pace && !self.queued.is_empty() {
                self.open_next()?;
            }
            if !self.queued.is_empty() && begun.elapsed() > OPEN_PATIENCE * 10 {
                bail!("not all connections could be opened");
            }
            self.come_and_go()?;
            let progressed = self.turn(&mut short, &mut bytes)?;
            if self.last_trim.elapsed() > TRIM_EVERY {
                self.trim();
            }
            if !progressed {
                self.wire.wait(LOOK_AROUND).context("waiting for sockets")?;
            }
        }
        self.take_coming();
        let findings = self.findings();
        self.close_all(&mut short, &mut bytes)?;
        Ok(findings)
    }

    /// Sends what is queued and handles what came. Returns whether anything did.
    fn turn(&mut self, short: &mut Vec<ShortSend>, bytes: &mut Vec<u8>) -> anyhow::Result<bool> {
        let sends = std::mem::take(&mut self.sends);
        let mut sent = HashSet::new();
        for (socket, frame) in sends {
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
        let now_ns = self.control.now_ns();
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

    fn open_next(&mut self) -> anyhow::Result<()> {
        let Some(plan) = self.queued.pop_front() else { return Ok(()) };
        let Plan { speech, channels, .. } = &self.plans[plan as usize];
        let speech = *speech;
        let subscriptions = channels.iter().map(|&channel| Subscription::new(channel)).collect();
        let socket = self.connect(plan)?;
        let at = self.conns.len() as u32;
        self.conns.push(Conn {
            socket,
            state: State::Connecting,
            plan,
            speech,
            subscriptions,
            last: 0,
            stash: Vec::new(),
            carry: Vec::new(),
        });
        self.owners.set(socket, at);
        Ok(())
    }

    fn connect(&mut self, plan: u32) -> anyhow::Result<SocketId> {
        let number = self.plans[plan as usize].number;
        let from = match self.target.from.len() as u32 {
            0 => None,
            count => Some(self.target.from[(number % count) as usize]),
        };
        self.opening += 1;
        self.wire.connect(self.target.address, from).context("opening a connection")
    }

    /// Replaces connections and subscriptions at the rate that was asked for, while it is published.
    fn come_and_go(&mut self) -> anyhow::Result<()> {
        if self.churn.per_second <= 0.0 || !self.control.is_publishing() {
            return Ok(());
        }
        let began = *self.churn.began.get_or_insert_with(Instant::now);
        let due = (began.elapsed().as_secs_f64() * self.churn.per_second) as u64;
        while self.churn.done < due {
            self.churn.done += 1;
            let at = self.churn.random.random_range(0..self.conns.len());
            let conn = &self.conns[at];
            let open = matches!(conn.state, State::Open);
            if !open || !conn.subscriptions.iter().all(|s| s.standing) {
                continue;
            }
            if self.churn.random.random() {
                self.replace(at)?;
            } else {
                let channel = &self.channels[conn.subscriptions[0].channel as usize];
                let command =
                    format!("{{\"type\":\"unsubscribe\",\"id\":2,\"channel\":\"{channel}\"}}");
                self.tell(at, Opcode::Text, command.as_bytes());
            }
        }
        Ok(())
    }

    /// Queues a frame for a connection's server.
    fn tell(&mut self, at: usize, opcode: Opcode, payload: &[u8]) {
        let mut frame = Vec::new();
        write_client(&mut frame, opcode, payload, rand::random());
        self.sends.push((self.conns[at].socket, Bytes::from(frame)));
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
        self.owners.set(socket, at as u32);
        Ok(())
    }

    /// Ends a subscription: what it was to get until now is what it got.
    fn retire(&mut self, at: usize, place: usize) {
        let conn = &mut self.conns[at];
        let lane = conn.speech.lane();
        let subscription = &mut conn.subscriptions[place];
        let counted_from = self.streams[stream_place(subscription.channel, lane)]
            .as_ref()
            .map_or(0, Stream::counted_from);
        let from = subscription.from.max(counted_from);
        self.retired += subscription.cursor.next().saturating_sub(from);
        *subscription = Subscription::new(subscription.channel);
        self.progress.standing.fetch_sub(1, Ordering::Relaxed);
    }

    fn conn_of(&self, socket: SocketId) -> Option<usize> {
        let at = self.owners.get(socket)? as usize;
        self.conns.get(at).is_some_and(|conn| conn.socket == socket).then_some(at)
    }

    fn shake(&mut self, at: usize) {
        let conn = &mut self.conns[at];
        let path = match conn.speech.dialect() {
            Some(dialect) => self.target.path_for(dialect.name()),
            None => {
                let own = conn.subscriptions.iter().map(|s| &*self.channels[s.channel as usize]);
                self.target.path.replace("{channels}", &own.collect::<Vec<_>>().join(","))
            }
        };
        let handshake = ClientHandshake::new(&self.target.host, &path, None, rand::random());
        self.sends.push((conn.socket, Bytes::copy_from_slice(handshake.request())));
        conn.state = State::Shaking(Box::new(handshake));
    }

    fn closed(&mut self, at: usize, error: Option<std::io::Error>) -> anyhow::Result<()> {
        let conn = &mut self.conns[at];
        let before = std::mem::replace(&mut conn.state, State::Gone);
        self.wire.close(conn.socket);
        match before {
            State::Gone => {}
            State::Open => {
                self.tally.disconnected += 1;
                let number = self.plans[conn.plan as usize].number;
                let why = error.map_or("by the server".into(), |e| e.to_string());
                self.problem(|| format!("connection {number} ended: {why}"));
            }
            _ => {
                let why = error.map_or("closed by the server".into(), |e| e.to_string());
                bail!("a connection to {} could not be opened: {why}", self.target.address);
            }
        }
        Ok(())
    }

    fn problem(&mut self, what: impl FnOnce() -> String) {
        if self.first_problem.is_none() {
            self.first_problem = Some(what());
        }
    }

    fn opened(&mut self, at: usize) {
        let conn = &mut self.conns[at];
        conn.state = State::Open;
        self.opening -= 1;
        self.progress.opened.fetch_add(1, Ordering::Relaxed);
        let mut frames = Vec::new();
        let mut text = |text: &[u8]| write_client(&mut frames, Opcode::Text, text, rand::random());
        let own = conn.subscriptions.iter().map(|s| &*self.channels[s.channel as usize]);
        match conn.speech {
            Speech::Ringfeed => own.for_each(|channel| text(subscribe_command(channel).as_bytes())),
            Speech::Raw => own.for_each(|channel| {
                let command = format!("{{\"action\":\"subscribe\",\"channel\":\"{channel}\"}}");
                text(command.as_bytes());
            }),
            Speech::Templates => {
                self.target.templates.subscribing(own).for_each(|frame| text(&frame));
            }
        }
        if !frames.is_empty() {
            self.sends.push((conn.socket, Bytes::from(frames)));
        }
    }

    /// A subscription stands: from here on every message counts.
    fn stands(&mut self, at: usize, place: usize) {
        let conn = &mut self.conns[at];
        if std::mem::replace(&mut conn.subscriptions[place].standing, true) {
            return;
        }
        self.progress.standing.fetch_add(1, Ordering::Relaxed);
        let plan = &self.plans[conn.plan as usize];
        if plan.stalled && conn.subscriptions.iter().all(|s| s.standing) {
            self.wire.receive(conn.socket, false);
        }
    }

    /// Takes note of what is about to be published.
    fn take_coming(&mut self) {
        while let Ok(batch) = self.coming.try_recv() {
            for item in &batch.items {
                for lane in Lane::ALL {
                    if let Some(stream) = &mut self.streams[stream_place(item.channel, lane)] {
                        stream.append(batch.payload(item), item.intended_ns, item.counts);
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
        let mut least: Vec<Option<Cursor>> = vec![None; self.streams.len()];
        for conn in self.conns.iter().filter(|conn| !matches!(conn.state, State::Gone)) {
            for subscription in &conn.subscriptions {
                let place = &mut least[stream_place(subscription.channel, conn.speech.lane())];
                if place.is_none_or(|cursor| cursor.next() > subscription.cursor.next()) {
                    *place = Some(subscription.cursor);
                }
            }
        }
        for (stream, least) in self.streams.iter_mut().zip(least) {
            if let (Some(stream), Some(least)) = (stream, least) {
                stream.trim(least);
            }
        }
    }

    fn findings(&self) -> Findings {
        let (mut expected, mut missing) = (self.retired, 0);
        for conn in self.conns.iter().filter(|conn| !self.plans[conn.plan as usize].stalled) {
            for subscription in conn.subscriptions.iter().filter(|s| s.standing) {
                let place = stream_place(subscription.channel, conn.speech.lane());
                let Some(stream) = &self.streams[place] else { continue };
                let end = stream.counted_from() + stream.counted();
                let from = subscription.from.clamp(stream.counted_from(), end);
                expected += end - from;
                missing += end - subscription.cursor.next().clamp(from, end);
            }
        }
        Findings {
            tally: Tally {
                expected,
                delivered: self.progress.delivered.load(Ordering::Relaxed),
                lost: (missing + self.skipped).saturating_sub(self.tally.reordered),
                ..self.tally
            },
            first_problem: self.first_problem.clone(),
            latency: self.latency.clone(),
        }
    }

    fn close_all(&mut self, short: &mut Vec<ShortSend>, bytes: &mut Vec<u8>) -> anyhow::Result<()> {
        for conn in &mut self.conns {
            conn.state = State::Gone;
            self.wire.close(conn.socket);
        }
        let deadline = Instant::now() + OPEN_PATIENCE;
        while self.wire.usage().sockets > 0 && Instant::now() < deadline {
            if !self.turn(short, bytes)? {
                self.wire.wait(LOOK_AROUND).context("waiting for sockets")?;
            }
        }
        Ok(())
    }
}
