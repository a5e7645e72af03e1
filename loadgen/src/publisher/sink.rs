//! Where messages go: a long request of the HTTP API, or a connection to a WebSocket or TCP server.

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ringfeed_protocol::frame::{Opcode, write_client};
use ringfeed_protocol::handshake::ClientHandshake;
use ringfeed_protocol::{Connection, Incoming, Role};

use crate::signals::{Batch, Control};
use crate::target::{Target, parse, with_parameter};
use crate::templates::{Templates, fill};

/// How long to wait for a server that does not take or acknowledge anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// Connections to the HTTP API that send to users.
const SENDERS: usize = 8;
/// How a server begins to say that it has handed something to a user's connections.
const SENT: &str = "{\"type\":\"sent\"";
/// What is in the refusal of a message for which there is no room at present; nobody gets it.
const BUSY: &str = "\"busy\"";
/// How a server begins to say who a connection is.
const CONNECTED: &str = "{\"type\":\"connected\"";
/// How long to wait for what a server that takes no more has said.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(super) enum Sink {
    /// One long ingest request, acknowledged as it goes.
    Api { stream: TcpStream, acks: Arc<Acks>, reader: JoinHandle<anyhow::Result<()>> },
    /// A request for each message to a user. Those for one user go over one connection, so that they
    /// stay in order; on each connection requests do not wait for answers.
    SendApi { streams: Vec<TcpStream>, acks: Arc<Acks> },
    /// Commands over a WebSocket that publish, or send to users.
    Ws { stream: TcpStream, send: bool, errors: Arc<Acks>, reader: JoinHandle<anyhow::Result<()>> },
    /// What the command line says, in WebSocket frames or as it is. What the server answers is read
    /// to its end by a thread, and not looked at.
    Templates { stream: TcpStream, framed: bool, templates: Templates },
}

/// What the server has said so far.
#[derive(Debug, Default)]
pub(super) struct Acks {
    accepted: AtomicU64,
    refused: AtomicU64,
    /// Messages to users for which there was no room.
    busy: AtomicU64,
    /// Of the API.
    key: String,
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
            self.hear_out(reader, || LAST_WORDS);
            self.check()?;
        }
        written
    }

    /// Waits until the server has said all, or has said nothing for too long.
    fn hear_out(&self, reader: &JoinHandle<anyhow::Result<()>>, patience: impl Fn() -> Duration) {
        let mut heard = (0, Instant::now());
        while !reader.is_finished() && heard.1.elapsed() < patience() {
            let said = self.accepted.load(Ordering::Relaxed) + self.refused.load(Ordering::Relaxed);
            if said != heard.0 {
                heard = (said, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Acks {
    /// Waits until so many messages are answered, or the server has said nothing for too long.
    fn hear_all(&self, published: u64, patience: impl Fn() -> Duration) -> anyhow::Result<()> {
        let mut heard = (0, Instant::now());
        while heard.0 < published && heard.1.elapsed() < patience() {
            self.check()?;
            std::thread::sleep(Duration::from_millis(1));
            let answered = self.answered();
            if answered != heard.0 {
                heard = (answered, Instant::now());
            }
        }
        self.check()
    }

    /// Messages to users that were refused because there was no room for them.
    pub(super) fn busy(&self) -> u64 {
        self.busy.load(Ordering::Relaxed)
    }

    /// Messages of which the server has said what became of them.
    fn answered(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed) + self.busy.load(Ordering::Relaxed)
    }
}

impl Sink {
    /// Hands over messages to these channels.
    pub(super) fn send(&mut self, channels: &[String], batch: &Batch) -> anyhow::Result<()> {
        let mut buffer = Vec::new();
        match self {
            Sink::Api { stream, acks, reader } => {
                acks.check()?;
                let mut lines = Vec::with_capacity(batch.text.len() * 2);
                for item in &batch.items {
                    lines.extend_from_slice(b"{\"channel\":\"");
                    lines.extend_from_slice(channels[item.channel as usize].as_bytes());
                    lines.extend_from_slice(b"\",\"data\":");
                    lines.extend_from_slice(batch.payload(item));
                    lines.extend_from_slice(b"}\n");
                }
                write!(buffer, "{:x}\r\n", lines.len())?;
                buffer.extend_from_slice(&lines);
                buffer.extend_from_slice(b"\r\n");
                let written = stream.write_all(&buffer);
                acks.explain(written.context("publishing over the HTTP API"), reader)
            }
            Sink::SendApi { streams, acks, .. } => {
                acks.check()?;
                let mut buffers = vec![Vec::new(); streams.len()];
                for item in &batch.items {
                    let user = &channels[item.channel as usize];
                    let payload = batch.payload(item);
                    let buffer = &mut buffers[item.channel as usize % streams.len()];
                    let length = r#"{"user":"","data":}"#.len() + user.len() + payload.len();
                    write!(
                        buffer,
                        "POST /api/send HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
                         Content-Length: {length}\r\n\r\n{{\"user\":\"{user}\",\"data\":",
                        acks.key
                    )?;
                    buffer.extend_from_slice(payload);
                    buffer.push(b'}');
                }
                for (stream, buffer) in streams.iter_mut().zip(&buffers) {
                    if let Err(e) = stream.write_all(buffer) {
                        std::thread::sleep(LAST_WORDS);
                        acks.check()?;
                        return Err(e).context("sending over the HTTP API");
                    }
                }
                Ok(())
            }
            Sink::Ws { stream, send, errors, reader } => {
                errors.check()?;
                let begin: &[u8] = match send {
                    true => b"{\"type\":\"send\",\"user\":\"",
                    false => b"{\"type\":\"publish\",\"channel\":\"",
                };
                let mut command = Vec::new();
                for item in &batch.items {
                    command.clear();
                    command.extend_from_slice(begin);
                    command.extend_from_slice(channels[item.channel as usize].as_bytes());
                    command.extend_from_slice(b"\",\"data\":");
                    command.extend_from_slice(batch.payload(item));
                    // What is sent is acknowledged, then.
                    command.extend_from_slice(if *send { b",\"id\":1}" } else { b"}" });
                    write_client(&mut buffer, Opcode::Text, &command, rand::random());
                }
                let written = stream.write_all(&buffer);
                errors.explain(written.context("publishing over a WebSocket"), reader)
            }
            Sink::Templates { stream, framed, templates } => {
                for item in &batch.items {
                    let channel = &channels[item.channel as usize];
                    let text = templates.publishing(channel, batch.payload(item))?;
                    if *framed {
                        write_client(&mut buffer, Opcode::Text, &text, rand::random());
                    } else {
                        buffer.extend_from_slice(&text);
                    }
                }
                stream.write_all(&buffer).context("publishing")
            }
        }
    }

    /// What the server says of messages to users.
    pub(super) fn answers(&self) -> Arc<Acks> {
        match self {
            Sink::SendApi { acks, .. } | Sink::Ws { errors: acks, .. } => acks.clone(),
            _ => Arc::default(),
        }
    }

    /// Ends the request and checks that everything was accepted. Returns why that is not known,
    /// where the server does not say it.
    ///
    /// Of a WebSocket only our half is ended, and what the server says is read on: the kernel
    /// answers what comes to a closed half with a reset, and forgets what was not sent yet.
    pub(super) fn finish(
        self,
        published: u64,
        control: &Control,
    ) -> anyhow::Result<Option<String>> {
        let patience = || if control.stopped() { LAST_WORDS } else { PATIENCE };
        match self {
            Sink::Api { mut stream, acks, reader } => {
                stream.write_all(b"0\r\n\r\n").context("ending the ingest request")?;
                acks.hear_out(&reader, patience);
                let is_all = reader.is_finished();
                acks.check()?;
                let accepted = acks.accepted.load(Ordering::Relaxed);
                let told =
                    format!("the server acknowledged {accepted} of {published} publications");
                if !is_all {
                    return Ok(Some(format!("{told} and then nothing more")));
                }
                match reader.join() {
                    Ok(result) => result?,
                    Err(_) => bail!("the thread that reads acknowledgements panicked"),
                }
                if accepted != published {
                    bail!("{told}");
                }
                Ok(None)
            }
            Sink::SendApi { streams, acks, .. } => {
                acks.hear_all(published, patience)?;
                let answered = acks.answered();
                for stream in streams {
                    stream.shutdown(Shutdown::Both)?;
                }
                Ok((answered < published)
                    .then(|| format!("the server answered {answered} of {published} requests")))
            }
            Sink::Ws { stream, send, errors, reader } => {
                if send {
                    // Who hears the end of a connection answers no more.
                    errors.hear_all(published, patience)?;
                }
                stream.shutdown(Shutdown::Write)?;
                errors.hear_out(&reader, patience);
                errors.check()?;
                let answered = errors.answered();
                Ok((send && answered < published)
                    .then(|| format!("the server answered {answered} of {published} messages")))
            }
            // Nothing that it says is of interest, and not every server ends its half.
            Sink::Templates { stream, .. } => {
                stream.shutdown(Shutdown::Write)?;
                Ok(None)
            }
        }
    }

    pub(super) fn api(target: &Target) -> anyhow::Result<Sink> {
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

    /// Sends to users.
    pub(super) fn send_api(target: &Target) -> anyhow::Result<Sink> {
        let api = target.api;
        let acks = Arc::new(Acks { key: target.api_key.clone(), ..Acks::default() });
        let mut streams = Vec::new();
        for _ in 0..SENDERS {
            let stream = connect(api)
                .with_context(|| format!("no HTTP API answers at {api}; --api says where it is"))?;
            let (shared, input) = (acks.clone(), stream.try_clone()?);
            std::thread::spawn(move || {
                if let Err(e) = read_answers(input, &shared) {
                    shared.refuse(1, format!("{e:#}"));
                }
            });
            streams.push(stream);
        }
        Ok(Sink::SendApi { streams, acks })
    }

    pub(super) fn templates(target: &Target) -> anyhow::Result<Sink> {
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
        std::thread::spawn(move || {
            let mut bytes = vec![0; 1 << 16];
            while input.read(&mut bytes).is_ok_and(|count| count > 0) {}
        });
        Ok(Sink::Templates { stream, framed, templates })
    }

    pub(super) fn ws(target: &Target, token: &str, send: bool) -> anyhow::Result<Sink> {
        let path = with_parameter(target.path_for("ringfeed.v1"), "token", token);
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
                        Some(Incoming::Text(text)) if text.starts_with(SENT) => {
                            shared.accepted.fetch_add(1, Ordering::Relaxed);
                        }
                        // Who it is.
                        Some(Incoming::Text(text)) if text.starts_with(CONNECTED) => {}
                        Some(Incoming::Text(text)) if send && text.contains(BUSY) => {
                            shared.busy.fetch_add(1, Ordering::Relaxed);
                        }
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
        Ok(Sink::Ws { stream, send, errors, reader })
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

/// Reads answers of one line of JSON each until the connection ends.
fn read_answers(stream: TcpStream, acks: &Acks) -> anyhow::Result<()> {
    let mut input = BufReader::new(stream);
    let (mut line, mut body) = (String::new(), Vec::new());
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let is_good = line.starts_with("HTTP/1.1 200");
        let mut told = line.trim().to_owned();
        let mut length = 0;
        while line != "\r\n" {
            line.clear();
            if input.read_line(&mut line)? == 0 {
                bail!("the HTTP API's answer broke off");
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().context("the HTTP API's answer")?;
            }
        }
        body.resize(length, 0);
        input.read_exact(&mut body)?;
        if told.contains(" 503 ") && String::from_utf8_lossy(&body).contains(BUSY) {
            acks.busy.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        if !is_good {
            told.push_str(": ");
            told.push_str(&String::from_utf8_lossy(&body));
            bail!("the HTTP API answers: {told}");
        }
        acks.accepted.fetch_add(1, Ordering::Relaxed);
    }
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
