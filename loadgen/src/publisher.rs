//! The publishing thread: takes a feed, tells the fleet what is coming, then publishes it.

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use crossbeam_channel::Sender;
use ringfeed_protocol::frame::{Opcode, write_client};
use ringfeed_protocol::handshake::ClientHandshake;
use ringfeed_protocol::{Connection, Incoming, Role};

use crate::args::PublishArg;
use crate::feed::Feed;
use crate::signals::{Batch, Control, Progress};
use crate::target::{Target, parse};
use crate::templates::{self, Templates, fill};

/// How long to wait for a server that does not take or acknowledge anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long to wait for what a server that takes no more has said.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// In an unpaced run: bytes published and not yet received at most, for each connection, on average
/// over all, and for each subscription, on average over those of one channel.
/// A server's window for slow readers must be a good deal larger, or the run measures its lag
/// policy.
const UNDELIVERED_BYTES_MAX: u64 = 128 * 1024;

/// What became of a run's publications.
#[derive(Debug, Default, Clone)]
pub(crate) struct Published {
    pub(crate) messages: u64,
    /// By place in the list of channels.
    pub(crate) by_channel: Vec<u64>,
    pub(crate) seconds: f64,
    /// How far publishing fell behind its schedule at worst.
    pub(crate) late_max_ns: u64,
    /// Why it was ended before the end of the feed.
    pub(crate) gave_up: Option<String>,
}

/// A connection that publishes.
pub(crate) struct Publisher {
    sink: Sink,
    channels: Vec<String>,
    fleet: Vec<Sender<Arc<Batch>>>,
    control: Arc<Control>,
    audience: Audience,
    buffer: Vec<u8>,
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

enum Sink {
    /// One long ingest request, acknowledged as it goes.
    Api { stream: TcpStream, acks: Arc<Acks>, reader: JoinHandle<anyhow::Result<()>> },
    /// Publish commands over a WebSocket.
    Ws { stream: TcpStream, errors: Arc<Acks>, reader: JoinHandle<anyhow::Result<()>> },
    /// What the command line says, in WebSocket frames or as it is. What the server answers is read
    /// and not looked at.
    Templates { stream: TcpStream, framed: bool, templates: Templates, reader: JoinHandle<()> },
}

/// What the server has said so far.
#[derive(Debug, Default)]
struct Acks {
    accepted: AtomicU64,
    refused: AtomicU64,
    #[allow(clippy::disallowed_types)] // written once, by a thread that has failed
    first_error: std::sync::Mutex<Option<String>>,
}

impl Acks {
    fn refuse(&self, count: u64, error: String) {
        self.refused.fetch_add(count, Ordering::Relaxed);
        if let Ok(mut first) = self.first_error.lock() {
            first.get_or_insert(error);
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        if self.refused.load(Ordering::Relaxed) > 0 {
            let error = self.first_error.lock().ok().and_then(|e| e.clone()).unwrap_or_default();
            bail!("the server refuses to publish: {error}");
        }
        Ok(())
    }
}

impl Acks {
    /// What the server said last explains better than the kernel why it takes no more.
    fn explain(
        &self,
        written: anyhow::Result<()>,
        reader: &JoinHandle<anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        if written.is_err() {
            let deadline = Instant::now() + LAST_WORDS;
            while !reader.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.check()?;
        }
        written
    }
}

impl Publisher {
    pub(crate) fn connect(
        target: &Target,
        how: PublishArg,
        channels: Vec<String>,
        fleet: Vec<Sender<Arc<Batch>>>,
        control: Arc<Control>,
        audience: Audience,
    ) -> anyhow::Result<Publisher> {
        let sink = match how {
            _ if target.templates.publish_frame.is_some() => Sink::templates(target)?,
            PublishArg::Api => Sink::api(target)?,
            PublishArg::Ws => Sink::ws(target)?,
        };
        Ok(Publisher { sink, channels, fleet, control, audience, buffer: Vec::new() })
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
                    let why =
                        format!("publishing ended: nothing was delivered for {seconds} seconds");
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
        self.buffer.clear();
        match &mut self.sink {
            Sink::Api { stream, acks, reader } => {
                acks.check()?;
                let mut lines = Vec::with_capacity(batch.text.len() * 2);
                for item in &batch.items {
                    lines.extend_from_slice(b"{\"channel\":\"");
                    lines.extend_from_slice(self.channels[item.channel as usize].as_bytes());
                    lines.extend_from_slice(b"\",\"data\":");
                    lines.extend_from_slice(batch.payload(item));
                    lines.extend_from_slice(b"}\n");
                }
                write!(self.buffer, "{:x}\r\n", lines.len())?;
                self.buffer.extend_from_slice(&lines);
                self.buffer.extend_from_slice(b"\r\n");
                let written = stream.write_all(&self.buffer);
                acks.explain(written.context("publishing over the HTTP API"), reader)
            }
            Sink::Ws { stream, errors, reader } => {
                errors.check()?;
                let mut command = Vec::new();
                for item in &batch.items {
                    command.clear();
                    command.extend_from_slice(b"{\"type\":\"publish\",\"channel\":\"");
                    command.extend_from_slice(self.channels[item.channel as usize].as_bytes());
                    command.extend_from_slice(b"\",\"data\":");
                    command.extend_from_slice(batch.payload(item));
                    command.push(b'}');
                    write_client(&mut self.buffer, Opcode::Text, &command, rand::random());
                }
                let written = stream.write_all(&self.buffer);
                errors.explain(written.context("publishing over a WebSocket"), reader)
            }
            Sink::Templates { stream, framed, templates, .. } => {
                for item in &batch.items {
                    let channel = &self.channels[item.channel as usize];
                    let text = templates.publishing(channel, batch.payload(item))?;
                    if *framed {
                        write_client(&mut self.buffer, Opcode::Text, &text, rand::random());
                    } else {
                        self.buffer.extend_from_slice(&text);
                    }
                }
                stream.write_all(&self.buffer).context("publishing")
            }
        }
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
        let each = (UNDELIVERED_BYTES_MAX / message_bytes.max(1)).max(1);
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

    /// Ends the request and checks that everything was accepted.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        match self.sink {
            Sink::Api { mut stream, acks, reader } => {
                stream.write_all(b"0\r\n\r\n").context("ending the ingest request")?;
                match reader.join() {
                    Ok(result) => result?,
                    Err(_) => bail!("the thread that reads acknowledgements panicked"),
                }
                acks.check()?;
                let accepted = acks.accepted.load(Ordering::Relaxed);
                let sent = self.control.published.load(Ordering::Relaxed);
                if accepted != sent {
                    bail!("the server acknowledged {accepted} of {sent} publications");
                }
                Ok(())
            }
            Sink::Ws { stream, errors, reader } => {
                stream.shutdown(std::net::Shutdown::Both)?;
                let _ = reader.join();
                errors.check()
            }
            Sink::Templates { stream, reader, .. } => {
                stream.shutdown(std::net::Shutdown::Both)?;
                let _ = reader.join();
                Ok(())
            }
        }
    }
}

impl Sink {
    fn api(target: &Target) -> anyhow::Result<Sink> {
        let api = target.api;
        let mut stream = TcpStream::connect(api)
            .with_context(|| format!("no HTTP API answers at {api}; --api says where it is"))?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "POST /api/ingest HTTP/1.1\r\nHost: {api}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n",
            target.api_key
        )?;
        let acks = Arc::new(Acks::default());
        let (shared, input) = (acks.clone(), stream.try_clone()?);
        let reader = std::thread::spawn(move || {
            let read = read_acks(input, &shared);
            if let Err(e) = &read {
                shared.refuse(1, format!("{e:#}"));
            }
            read
        });
        Ok(Sink::Api { stream, acks, reader })
    }

    fn templates(target: &Target) -> anyhow::Result<Sink> {
        let templates = target.templates.clone();
        let (mut stream, framed) = match templates.publish_address()? {
            Some(address) => (connect(address)?, false),
            None => {
                let (host, path, address) = match &templates.publish_url {
                    Some(url) => parse("--publish-url", url)?,
                    None => (target.host.clone(), target.path.clone(), target.address),
                };
                (upgrade(address, &host, &path)?, true)
            }
        };
        if let Some(hello) = &templates.publish_hello {
            let mut text = fill(hello, "", b"");
            if framed {
                let mut frame = Vec::new();
                write_client(&mut frame, Opcode::Text, &text, rand::random());
                text = frame;
            }
            stream.write_all(&text)?;
        }
        let mut input = stream.try_clone()?;
        let reader = std::thread::spawn(move || {
            let mut bytes = vec![0; 1 << 16];
            while input.read(&mut bytes).is_ok_and(|count| count > 0) {}
        });
        Ok(Sink::Templates { stream, framed, templates, reader })
    }

    fn ws(target: &Target) -> anyhow::Result<Sink> {
        let path = target.path_for("ringfeed.v1");
        let stream = upgrade(target.address, &target.host, &path)?;
        let errors = Arc::new(Acks::default());
        let (shared, mut input) = (errors.clone(), stream.try_clone()?);
        let reader = std::thread::spawn(move || {
            let mut connection = Connection::new(Role::Client, 1 << 20);
            let mut bytes = vec![0; 4096];
            loop {
                let count = input.read(&mut bytes)?;
                if count == 0 {
                    return Ok(());
                }
                let mut at = 0;
                while at < count {
                    let (used, incoming) = connection.receive(&mut bytes[at..count])?;
                    at += used;
                    match incoming {
                        Some(Incoming::Text(text)) => shared.refuse(1, text.to_owned()),
                        Some(Incoming::Close(code)) => {
                            let code = code.map_or(String::new(), |code| format!(": {}", code.0));
                            shared.refuse(1, format!("the connection was closed{code}"));
                        }
                        Some(Incoming::Ping(_)) => {
                            let mut pong = Vec::new();
                            write_client(&mut pong, Opcode::Pong, b"", [0; 4]);
                            input.write_all(&pong)?;
                        }
                        _ => {}
                    }
                }
                connection.settle();
            }
        });
        Ok(Sink::Ws { stream, errors, reader })
    }
}

/// A connection that waits no longer than [`PATIENCE`] for the server to take something.
fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream =
        TcpStream::connect(address).with_context(|| format!("no server answers at {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// An open WebSocket.
fn upgrade(address: SocketAddr, host: &str, path: &str) -> anyhow::Result<TcpStream> {
    let mut stream = connect(address)?;
    let handshake = ClientHandshake::new(host, path, None, rand::random());
    stream.write_all(handshake.request())?;
    let mut head = Vec::new();
    let mut byte = [0];
    while handshake.receive(&head)?.is_none() {
        stream.read_exact(&mut byte).context("the server's handshake")?;
        head.push(byte[0]);
    }
    Ok(stream)
}

/// Reads the answer of an ingest request: chunks of JSON lines.
fn read_acks(stream: TcpStream, acks: &Acks) -> anyhow::Result<()> {
    #[derive(serde::Deserialize)]
    struct Ack {
        #[serde(default)]
        accepted: u64,
        #[serde(default)]
        refused: u64,
        #[serde(default)]
        errors: Vec<serde_json::Value>,
        error: Option<String>,
        message: Option<String>,
    }
    let mut input = BufReader::new(stream);
    let mut line = String::new();
    input.read_line(&mut line)?;
    if !line.starts_with("HTTP/1.1 200") {
        bail!("the HTTP API answers: {}", line.trim());
    }
    while line != "\r\n" {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            bail!("the HTTP API's answer broke off");
        }
    }
    let mut pending = Vec::new();
    loop {
        line.clear();
        input.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16).context("the answer is not chunked")?;
        if size == 0 {
            return Ok(());
        }
        let mut chunk = vec![0; size + 2];
        input.read_exact(&mut chunk)?;
        pending.extend_from_slice(&chunk[..size]);
        while let Some(end) = pending.iter().position(|&b| b == b'\n') {
            let ack: Ack = serde_json::from_slice(&pending[..end])?;
            pending.drain(..=end);
            if let Some(error) = ack.error {
                bail!("{error}: {}", ack.message.unwrap_or_default());
            }
            acks.accepted.store(ack.accepted, Ordering::Relaxed);
            if ack.refused > 0 {
                let first = ack.errors.first().map(ToString::to_string).unwrap_or_default();
                acks.refuse(ack.refused, first);
            }
        }
    }
}
