//! The subscribers of one thread: many connections on one wire, each a cursor into what it must
//! receive.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use crossbeam_channel::Receiver;
use ringfeed_protocol::frame::{Header, Opcode, write_client};
use ringfeed_protocol::handshake::ClientHandshake;
use ringfeed_protocol::{Dialect, Lane};
use ringfeed_wire::{Event, ShortSend, SocketId, SocketOwners, UringWire, Wire, WireConfig};
use serde_json::Value;

use crate::expect::{Cursor, Found, Stream};
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
/// The longest frame that is believed; a longer one means that the stream is torn.
const FRAME_BYTES_MAX: u64 = 64 << 20;
/// How long a connection may take to open.
const OPEN_PATIENCE: Duration = Duration::from_secs(60);

/// One connection that a fleet is to open.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) dialect: Dialect,
    pub(crate) lane: Lane,
    /// Places in the list of channels.
    pub(crate) channels: Vec<u32>,
    /// Number over all threads.
    pub(crate) number: u32,
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
    dialect: Dialect,
    lane: Lane,
    subscriptions: Vec<Subscription>,
    /// Where the last message belonged.
    last: usize,
    /// The beginning of a frame that did not come whole.
    stash: Vec<u8>,
}

/// The fleet of one thread.
pub(crate) struct Fleet {
    wire: UringWire,
    target: Target,
    plans: Vec<Plan>,
    channels: Arc<Vec<String>>,
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
    queued: VecDeque<u32>,
    sends: Vec<(SocketId, Bytes)>,
    last_trim: Instant,
}

fn stream_place(channel: u32, lane: Lane) -> usize {
    channel as usize * Lane::COUNT + lane.index()
}

impl Fleet {
    pub(crate) fn new(
        target: Target,
        plans: Vec<Plan>,
        channels: Arc<Vec<String>>,
        coming: Receiver<Arc<Batch>>,
        control: Arc<Control>,
        progress: Arc<Progress>,
    ) -> anyhow::Result<Fleet> {
        let wire = UringWire::new(WireConfig {
            sockets_max: u32::try_from(plans.len())?.max(1),
            submission_entries: 1024,
            receive_buffers: 256,
            receive_buffer_bytes: 64 * 1024,
            ..WireConfig::default()
        })?;
        let mut streams: Vec<Option<Stream>> =
            (0..channels.len() * Lane::COUNT).map(|_| None).collect();
        for plan in &plans {
            for &channel in &plan.channels {
                streams[stream_place(channel, plan.lane)]
                    .get_or_insert_with(|| Stream::new(plan.lane, &channels[channel as usize]));
            }
        }
        Ok(Fleet {
            wire,
            target,
            queued: (0..u32::try_from(plans.len())?).collect(),
            plans,
            channels,
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
            sends: Vec::new(),
            last_trim: Instant::now(),
        })
    }

    /// Opens, subscribes, verifies until told to stop, closes.
    pub(crate) fn run(mut self, pace: u32) -> anyhow::Result<Findings> {
        let begun = Instant::now();
        let mut short = Vec::new();
        let mut bytes = Vec::new();
        while self.control.phase() != Phase::Stop {
            while self.opening < pace.max(1) && !self.queued.is_empty() {
                self.open_next()?;
            }
            if !self.queued.is_empty() && begun.elapsed() > OPEN_PATIENCE * 10 {
                bail!("not all connections could be opened");
            }
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
        let mut sent = std::collections::HashSet::new();
        for (socket, frame) in sends {
            // One send for each socket in a submission.
            if sent.insert(socket) {
                self.wire.send(socket, 0, &frame);
            } else {
                self.sends.push((socket, frame));
            }
        }
        self.wire.submit(short).context("submitting to io_uring")?;
        if short.iter().any(|send| !send.broken) {
            bail!("the kernel did not take a command whole");
        }
        short.clear();
        let now_ns = self.control.now_ns();
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
        let Plan { dialect, lane, channels, number } = &self.plans[plan as usize];
        let from = match self.target.from.len() as u32 {
            0 => None,
            count => Some(self.target.from[(number % count) as usize]),
        };
        let socket = self.wire.connect(self.target.address, from)?;
        let subscriptions = channels
            .iter()
            .map(|&channel| Subscription { channel, cursor: Cursor::default(), standing: false })
            .collect();
        let at = self.conns.len() as u32;
        self.conns.push(Conn {
            socket,
            state: State::Connecting,
            plan,
            dialect: *dialect,
            lane: *lane,
            subscriptions,
            last: 0,
            stash: Vec::new(),
        });
        self.owners.set(socket, at);
        self.opening += 1;
        Ok(())
    }

    fn conn_of(&self, socket: SocketId) -> Option<usize> {
        let at = self.owners.get(socket)? as usize;
        self.conns.get(at).is_some_and(|conn| conn.socket == socket).then_some(at)
    }

    fn shake(&mut self, at: usize) {
        let conn = &mut self.conns[at];
        let path = self.target.path_for(conn.dialect.name());
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

    fn received(&mut self, at: usize, bytes: &[u8], now_ns: u64) -> anyhow::Result<()> {
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
            && let Some(stream) = &self.streams[stream_place(subscription.channel, conn.lane)]
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
        if conn.stash.is_empty() {
            let used = self.frames(at, rest, now_ns)?;
            self.conns[at].stash.extend_from_slice(&rest[used..]);
        } else {
            let mut stash = std::mem::take(&mut conn.stash);
            stash.extend_from_slice(rest);
            let used = self.frames(at, &stash, now_ns)?;
            stash.drain(..used);
            self.conns[at].stash = stash;
        }
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
            Opcode::Ping => {
                let mut pong = Vec::new();
                write_client(&mut pong, Opcode::Pong, payload, [0; 4]);
                self.sends.push((self.conns[at].socket, Bytes::from(pong)));
            }
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
        let conn = &mut self.conns[at];
        // The next message of one of its channels, most likely of the one before.
        let count = conn.subscriptions.len();
        for i in 0..count {
            let place = (conn.last + i) % count;
            let subscription = &mut conn.subscriptions[place];
            let Some(stream) = &self.streams[stream_place(subscription.channel, conn.lane)] else {
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
        match conn.dialect {
            Dialect::Ringfeed => self.ringfeed_event(at, frame, payload),
            _ => self.raw_message(at, frame),
        }
    }

    fn ringfeed_event(&mut self, at: usize, frame: &[u8], payload: &[u8]) -> anyhow::Result<()> {
        let event: Value = serde_json::from_slice(payload).context("the server sent no JSON")?;
        let conn = &mut self.conns[at];
        let channel = event["channel"].as_str().unwrap_or_default();
        let channels = &self.channels;
        let own = |s: &Subscription| channels[s.channel as usize] == channel;
        let place = conn.subscriptions.iter().position(own);
        match (event["type"].as_str(), place) {
            (Some("subscribed"), Some(place)) => {
                let offset = event["offset"].as_u64().unwrap_or(0);
                let subscription = &mut conn.subscriptions[place];
                let stream = self.streams[stream_place(subscription.channel, conn.lane)].as_mut();
                if !stream.is_some_and(|stream| stream.starts_behind(offset)) {
                    bail!("somebody else publishes to {channel}: choose another --prefix");
                }
                if !std::mem::replace(&mut subscription.standing, true) {
                    self.progress.standing.fetch_add(1, Ordering::Relaxed);
                }
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
        let conn = &mut self.conns[at];
        for subscription in conn.subscriptions.iter_mut().filter(|s| !s.standing) {
            let Some(stream) = &self.streams[stream_place(subscription.channel, conn.lane)] else {
                continue;
            };
            // The first message shows that the subscription stands, and from where on.
            if matches!(stream.find(&mut subscription.cursor, frame), Found::Next | Found::Ahead(_))
            {
                subscription.standing = true;
                self.progress.standing.fetch_add(1, Ordering::Relaxed);
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
        self.streams[stream_place(subscription.channel, conn.lane)]
            .as_ref()
            .is_some_and(|stream| stream.find(&mut cursor, frame) != Found::Nowhere)
    }

    /// A message that is not the next one of its channel.
    fn misplaced(&mut self, at: usize, place: usize, frame: &[u8]) {
        let conn = &mut self.conns[at];
        let subscription = &mut conn.subscriptions[place];
        let Some(stream) = &self.streams[stream_place(subscription.channel, conn.lane)] else {
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

    fn opened(&mut self, at: usize) {
        let conn = &mut self.conns[at];
        conn.state = State::Open;
        self.opening -= 1;
        self.progress.opened.fetch_add(1, Ordering::Relaxed);
        let mut frames = Vec::new();
        for subscription in &conn.subscriptions {
            let channel = &self.channels[subscription.channel as usize];
            let command = match conn.dialect {
                Dialect::Ringfeed => {
                    format!("{{\"type\":\"subscribe\",\"id\":1,\"channel\":\"{channel}\"}}")
                }
                _ => format!("{{\"action\":\"subscribe\",\"channel\":\"{channel}\"}}"),
            };
            write_client(&mut frames, Opcode::Text, command.as_bytes(), rand::random());
        }
        self.sends.push((conn.socket, Bytes::from(frames)));
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
                let place = &mut least[stream_place(subscription.channel, conn.lane)];
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
        let (mut expected, mut missing) = (0, 0);
        for conn in &self.conns {
            for subscription in &conn.subscriptions {
                let place = stream_place(subscription.channel, conn.lane);
                let Some(stream) = &self.streams[place] else { continue };
                expected += stream.counted();
                let end = stream.counted_from() + stream.counted();
                missing += end - subscription.cursor.next().clamp(stream.counted_from(), end);
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
