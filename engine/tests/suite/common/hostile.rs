//! Clients that mean harm, or are broken, and what is to be left of them: nothing.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};
use tungstenite::Message;
use tungstenite::client::IntoClientRequest;

use super::{Client, PATIENCE, TestServer, http, wait_until};

/// Channels `kept.*` keep everything; anybody may publish everywhere.
pub(crate) const CHANNELS: &str = r#"
[[channels]]
pattern = "kept.*"
publish = "anyone"
history_size = 100000
[[channels]]
pattern = "cut.*"
lag_policy = "disconnect"
publish = "anyone"
[[channels]]
pattern = "*"
publish = "anyone"
"#;

/// Sockets that hold little, so that a reader that stops is soon seen to.
pub(crate) const SMALL_SOCKETS: &str = "server.send_buffer_bytes=8192";

/// A connection whose side of the socket holds little, with a head that is complete or not.
pub(crate) fn narrow_stream(to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A client whose side of the socket holds little.
pub(crate) fn narrow_client(server: &TestServer, dialect: &str) -> Client {
    let to = server.public;
    let request = format!("ws://{to}/ws?protocol={dialect}").into_client_request().unwrap();
    let (socket, _) = tungstenite::client(request, narrow_stream(to)).unwrap();
    Client { socket }
}

/// A masked frame, whose mask is all zeros. `first`: opcode and FIN.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..126), _) => frame.push(0x80 | length),
        (_, Ok(length)) => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
        _ => panic!("no test needs longer ones"),
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// Publishes `count` payloads of `bytes` in batches.
pub(crate) fn fill(server: &TestServer, channel: &str, count: usize, bytes: usize) {
    let pad = "x".repeat(bytes);
    for start in (0..count).step_by(100) {
        let publications: Vec<Value> = (start..(start + 100).min(count))
            .map(|i| json!({"channel": channel, "data": [i + 1, pad]}))
            .collect();
        let body = json!({"publications": publications}).to_string();
        let (status, answer) = http(server.internal, "POST", "/api/batch", "", &body);
        assert_eq!(status, 200, "{answer}");
    }
}

/// Epoch of a channel.
pub(crate) fn epoch(server: &TestServer, channel: &str) -> String {
    let page = server.get(&format!("/api/history?channel={channel}&limit=1"));
    page["epoch"].as_str().unwrap().to_owned()
}

/// A command that subscribes from the beginning.
pub(crate) fn recover(server: &TestServer, channel: &str, id: usize) -> Value {
    let from = json!({"epoch": epoch(server, channel), "offset": 0});
    json!({"type": "subscribe", "id": id, "channel": channel, "recover": from})
}

/// How many connections were ended for a reason.
pub(crate) fn closes(server: &TestServer, reason: &str) -> u64 {
    server.get("/api/stats")["closes"][reason].as_u64().unwrap()
}

/// Waits until so many connections were ended for a reason.
pub(crate) fn wait_closes(server: &TestServer, reason: &str, count: u64) {
    let closes = || server.get("/api/stats")["closes"].clone();
    wait_until(&format!("closes (to be {count} {reason})"), closes, |closes| {
        closes[reason] == count
    });
}

/// Turns of a shard that has nothing to do are those of its ticks, 10 a second, and some that a tick causes.
/// One that spins takes thousands.
const TURNS_PER_SECOND_MAX: f64 = 100.0;

/// While somebody stalls every shard only ticks. Seconds are the server's own, however slow it all is.
pub(crate) fn assert_asleep(server: &TestServer) {
    let look = || -> (f64, Vec<u64>) {
        let stats = server.get("/api/stats");
        let shards = stats["by_shard"].as_array().unwrap();
        let turns = shards.iter().map(|shard| shard["turns"].as_u64().unwrap()).collect();
        (stats["uptime_seconds"].as_f64().unwrap(), turns)
    };
    let grown = |(then, before): &(f64, Vec<u64>), (now, turns): &(f64, Vec<u64>)| {
        let turns: Vec<_> = turns.iter().zip(before).map(|(now, then)| now - then).collect();
        (now - then, turns)
    };
    // What began the stall is over before the first look counts.
    let begun = look();
    let settled = |now: &_| grown(&begun, now).1.iter().all(|&turns| turns >= 2);
    let before = wait_until("shards that tick", look, settled);
    let after = wait_until("uptime", look, |now| now.0 - before.0 >= 1.0);
    let (seconds, turns) = grown(&before, &after);
    let most = seconds * TURNS_PER_SECOND_MAX;
    assert!(
        turns.iter().all(|&turns| (turns as f64) < most),
        "a shard does not sleep: {turns:?} turns in {seconds} s"
    );
}

/// Nothing is left of anybody.
pub(crate) fn assert_nothing_left(server: &TestServer) {
    for name in [
        "connections",
        "sockets",
        "handshakes",
        "subscriptions",
        "outbox_bytes",
        "partial_message_bytes",
        "log_bytes",
        "retained_bytes",
    ] {
        server.wait_total(name, |n| n == 0);
    }
}

/// Sends without being read: as much as the sockets take, at most `count` times.
pub(crate) fn send_unread(client: &mut Client, bytes: &[u8], count: usize) {
    let stream = client.socket.get_mut();
    stream.set_nonblocking(true).unwrap();
    for _ in 0..count {
        // A frame cut short by a full socket is the end of what is sent.
        if !matches!(stream.write(bytes), Ok(n) if n == bytes.len()) {
            break;
        }
    }
    stream.set_nonblocking(false).unwrap();
}

/// What a reader got of some channels, each from offset 1: every offset once, delivered or told.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The next offset of each channel.
    pub(crate) next: std::collections::BTreeMap<String, u64>,
    /// Publications told as missed.
    pub(crate) missed: u64,
}

impl Seen {
    /// Takes an event. `false` if it is neither a message nor a gap.
    pub(crate) fn take(&mut self, event: &Value) -> bool {
        let (from, to) = match event["type"].as_str() {
            Some("message") => (&event["offset"], &event["offset"]),
            Some("gap") => (&event["from"], &event["to"]),
            _ => return false,
        };
        let (from, to) = (from.as_u64().unwrap(), to.as_u64().unwrap());
        let channel = event["channel"].as_str().unwrap();
        let next = self.next.entry(channel.to_owned()).or_insert(1);
        assert_eq!(from, *next, "{channel}: nothing is left out or twice");
        assert!(to >= from);
        if event["type"] == "gap" {
            self.missed += to + 1 - from;
        }
        *next = to + 1;
        true
    }
}

/// Reads until every channel has come to this offset.
pub(crate) fn read_to(client: &mut Client, channels: &[&str], last: u64) -> Seen {
    let mut seen = Seen::default();
    let done = |seen: &Seen| {
        channels.iter().all(|&channel| seen.next.get(channel).is_some_and(|&next| next > last))
    };
    while !done(&seen) {
        let event = match client.message() {
            Message::Text(text) => serde_json::from_str::<Value>(&text).unwrap(),
            other => panic!("closed before the end: {other:?}"),
        };
        seen.take(&event);
    }
    seen
}
