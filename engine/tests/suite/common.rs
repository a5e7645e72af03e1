//! A server of its own for each test, and clients for it.
#![allow(dead_code, unreachable_pub)] // each test file uses a part of it

pub mod hostile;
pub mod process;
pub mod receipts;
pub mod rolling;
pub mod rooms;
pub mod tokens;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringfeed_engine::config::{Config, Sources};
use ringfeed_engine::server::{self, Server};
use ringfeed_engine::settings::Settings;
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

/// How long a test waits for what must come. Never a measure of how fast it has to come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running server, drained when dropped.
pub struct TestServer {
    server: Option<Server>,
    pub public: SocketAddr,
    pub internal: SocketAddr,
}

/// Channels `open.*` may be published to by anybody and keep 10,000 publications.
pub const CHANNELS: &str = r#"
[[channels]]
pattern = "open.*"
publish = "anyone"
history_size = 10000
[[channels]]
pattern = "closed.*"
subscribe = "nobody"
[[channels]]
pattern = "*"
"#;

/// An example configuration for a machine that has none of its files: without keys of the API, which is on loopback here, and
/// with its other secrets in it.
pub fn example(toml: &str) -> String {
    let secret = format!("secret = {:?}", tokens::SECRET);
    let mut kept = String::new();
    let mut skipping = false;
    for line in toml.lines() {
        if line.starts_with('[') {
            skipping = line == "[[api_keys]]";
        }
        let line = match line {
            "secret_env = \"JWT_SECRET\"" => &secret,
            line if line.starts_with("secret_file = ") => &secret,
            line => line,
        };
        if !skipping {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

impl TestServer {
    /// With this TOML, and these flags on top.
    pub fn start(toml: &str, flags: &[&str]) -> TestServer {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("test.toml");
        std::fs::write(&file, toml).unwrap();
        let mut all: Vec<String> = vec![
            "server.listen=127.0.0.1:0".into(),
            "api.listen=127.0.0.1:0".into(),
            "server.pin=false".into(),
            "server.shards=2".into(),
            format!("server.io={}", crate::IO),
            "server.drain_timeout_ms=2000".into(),
            "limits.messages_per_second_max=0".into(),
        ];
        all.extend(flags.iter().map(|&flag| flag.to_owned()));
        let sources = Sources { file: Some(&file), environment: Vec::new(), flags: all };
        let server =
            server::start(Settings::new(Config::load(&sources).unwrap()).unwrap(), None).unwrap();
        let (public, internal) = (server.public, server.internal);
        TestServer { server: Some(server), public, internal }
    }

    /// With [`CHANNELS`].
    pub fn open(flags: &[&str]) -> TestServer {
        TestServer::start(CHANNELS, flags)
    }

    pub fn client(&self) -> Client {
        self.client_of("ringfeed.v1")
    }

    pub fn client_of(&self, dialect: &str) -> Client {
        Client::connect(self.public, &format!("/ws?protocol={dialect}"))
    }

    /// Status and body of a request to the internal port.
    pub fn http(&self, method: &str, target: &str, body: &str) -> (u16, String) {
        http(self.internal, method, target, "", body)
    }

    pub fn get(&self, target: &str) -> Value {
        let (status, body) = self.http("GET", target, "");
        assert_eq!(status, 200, "{target}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub fn publish(&self, channel: &str, data: Value) -> Value {
        let body = json!({"channel": channel, "data": data}).to_string();
        let (status, body) = self.http("POST", "/api/publish", &body);
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// One of the totals in `/api/stats`.
    pub fn total(&self, name: &str) -> u64 {
        self.get("/api/stats")["totals"][name].as_u64().unwrap_or_else(|| panic!("no {name}"))
    }

    /// Waits until a total satisfies a condition.
    pub fn wait_total(&self, name: &str, what: impl Fn(u64) -> bool) -> u64 {
        wait_until(name, || self.total(name), |&total| what(total))
    }

    /// Waits until every shard has seen to what was acknowledged, and has told its gauges since.
    pub fn wait_seen_to(&self) {
        let told = || -> Vec<u64> {
            let stats = self.get("/api/stats");
            let shards = stats["by_shard"].as_array().unwrap();
            shards.iter().map(|shard| shard["ticks"].as_u64().unwrap()).collect()
        };
        let before = told();
        // One may have come before all was seen to.
        let later =
            |now: &Vec<u64>| now.iter().zip(&before).all(|(now, &before)| *now >= before + 2);
        wait_until("ticks", told, later);
    }

    pub fn drain(&self) {
        self.server.as_ref().unwrap().drain();
    }

    pub fn wait(mut self) {
        self.server.take().unwrap().wait().unwrap();
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.drain();
            let ended = server.wait();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

/// Tells other threads of a test that it ends, also where it fails.
pub struct SetWhenDropped<'a>(pub &'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Looks until a condition is satisfied; what it saw then.
pub fn wait_until<T: std::fmt::Debug>(
    name: &str,
    look: impl Fn() -> T,
    what: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look();
        if what(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "{name} stays at {seen:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the node with this internal port can do what it is asked.
pub fn wait_readiness(internal: SocketAddr) {
    wait_until("/ready", || http(internal, "GET", "/ready", "", "").0, |status| *status == 200);
}

/// What the node with this internal port says of a figure.
pub fn metric(internal: SocketAddr, name: &str) -> f64 {
    let (_, text) = http(internal, "GET", "/metrics", "", "");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// A port that no connection gets by itself once it is free again, before somebody listens there.
pub fn free_port() -> TcpListener {
    let bind = || TcpListener::bind(("127.0.0.1", rand::random_range(10_000..30_000))).ok();
    std::iter::repeat_with(bind).flatten().next().unwrap()
}

/// One HTTP request over a connection of its own.
pub fn http(
    to: SocketAddr,
    method: &str,
    target: &str,
    headers: &str,
    body: &str,
) -> (u16, String) {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\
         Connection: close\r\n{headers}\r\n{body}"
    )
    .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") {
        dechunk(body)
    } else {
        body.to_owned()
    };
    (status, body)
}

fn dechunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        out.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    out
}

/// A WebSocket client made of tungstenite: independent of ringfeed's own protocol code.
pub struct Client {
    pub socket: WebSocket<TcpStream>,
}

impl Client {
    pub fn connect(to: SocketAddr, target: &str) -> Client {
        Client::connect_with(to, target, &[])
    }

    /// With further header fields.
    pub fn connect_with(to: SocketAddr, target: &str, headers: &[(&'static str, &str)]) -> Client {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut request = format!("ws://{to}{target}").into_client_request().unwrap();
        for &(name, value) in headers {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let (socket, _) = tungstenite::client(request, stream).unwrap();
        Client { socket }
    }

    pub fn send(&mut self, command: Value) {
        self.send_text(&command.to_string());
    }

    pub fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    /// The next data message.
    pub fn message(&mut self) -> Message {
        loop {
            match self.socket.read() {
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(message) => return message,
                // A socket with a timeout is not restarted by the kernel after a signal.
                Err(tungstenite::Error::Io(e)) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => panic!("nothing was received: {e}"),
            }
        }
    }

    /// The next message as JSON.
    pub fn receive(&mut self) -> Value {
        match self.message() {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("expected text, got {other:?}"),
        }
    }

    pub fn ask(&mut self, command: Value) -> Value {
        self.send(command);
        self.receive()
    }

    pub fn subscribe(&mut self, channel: &str) -> Value {
        let reply = self.ask(json!({"type": "subscribe", "id": 1, "channel": channel}));
        assert_eq!(reply["type"], "subscribed", "{reply}");
        reply
    }

    /// Reads up to the close frame; its code and reason.
    pub fn closed(&mut self) -> (u16, String) {
        loop {
            match self.socket.read() {
                Ok(Message::Close(Some(frame))) => {
                    return (CloseCode::into(frame.code), frame.reason.to_string());
                }
                Ok(_) => {}
                other => panic!("expected a close frame, got {other:?}"),
            }
        }
    }
}
