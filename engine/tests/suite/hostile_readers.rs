//! Readers that fall behind in every way: nobody else notices, each is told exactly, and what they
//! hold is bounded.

use serde_json::{Value, json};
use tungstenite::Message;

use super::common::hostile::*;
use super::common::{Client, TestServer, wait_until};

/// Old publications are missed soon; nothing else is timed.
const IMPATIENT: &str = r#"
[[channels]]
pattern = "kept.*"
publish = "anyone"
history_size = 100000
[[channels]]
pattern = "cut.*"
lag_policy = "disconnect"
window_bytes = 262144
[[channels]]
pattern = "*"
publish = "anyone"
window_age_ms = 300
"#;

fn server(flags: &[&str]) -> TestServer {
    let mut all = vec![SMALL_SOCKETS, "heartbeat.interval_ms=0", "limits.outbox_timeout_ms=600000"];
    all.extend(flags);
    TestServer::start(IMPATIENT, &all)
}

/// The server answers, and a client that reads gets what is published.
fn assert_serves(server: &TestServer) {
    let mut healthy = server.client();
    healthy.subscribe("healthy");
    let offset = server.publish("healthy", json!(1))["offset"].clone();
    assert_eq!(healthy.receive()["offset"], offset);
}

/// Subscribers of the channel `c` whose sockets hold little.
fn narrow_readers(server: &TestServer, count: usize) -> Vec<Client> {
    let mut clients: Vec<_> = (0..count).map(|_| narrow_client(server, "ringfeed.v1")).collect();
    for client in &mut clients {
        client.subscribe("c");
    }
    clients
}

/// The same, in the middle of the first of six frames of 900 KB.
fn readers_of_long_frames(server: &TestServer, count: usize) -> Vec<Client> {
    let clients = narrow_readers(server, count);
    let pad = json!("m".repeat(900_000));
    for _ in 0..6 {
        server.publish("c", pad.clone());
    }
    clients
}

#[test]
fn gaps_behind_a_replay_larger_than_an_outbox() {
    for shards in ["server.shards=1", "server.shards=2"] {
        let server = server(&[shards]);
        fill(&server, "kept.a", 1500, 1000);
        let mut client = narrow_client(&server, "ringfeed.v1");
        client.subscribe("a");
        client.subscribe("b");
        client.send(recover(&server, "kept.a", 3));
        server.wait_total("outbox_bytes", |n| n > 0);
        for name in ["a", "b"] {
            fill(&server, name, 1000, 1000);
        }
        // What was missed is not held: both are gaps, behind the replay.
        server.wait_seen_to();
        server.wait_total("log_bytes", |n| n <= 2 * 256 * 1024);
        let mut seen = Seen::default();
        let last = |name: &str| if name == "kept.a" { 1500 } else { 1000 };
        while seen.next.len() < 3 || seen.next.iter().any(|(name, &next)| next <= last(name)) {
            seen.take(&client.receive());
        }
        assert!(seen.missed > 0);
        assert_serves(&server);
    }
}

#[test]
fn gaps_on_several_channels_with_messages_larger_than_an_outbox() {
    let pad = "m".repeat(1_200_000);
    for shards in ["server.shards=1", "server.shards=2"] {
        let server = server(&[shards]);
        let names = ["a", "b", "c"];
        let mut clients: Vec<_> = (0..3).map(|_| narrow_client(&server, "ringfeed.v1")).collect();
        for client in &mut clients {
            names.iter().for_each(|name| drop(client.subscribe(name)));
        }
        for _ in 0..3 {
            names.iter().for_each(|name| drop(server.publish(name, json!(pad))));
        }
        // The newest of each at most: all others have met the policy.
        server.wait_seen_to();
        server.wait_total("log_bytes", |n| n < 6 * 1_300_000);
        for client in &mut clients {
            read_to(client, &names, 3);
        }
        assert!(server.total("gaps") > 0);
        assert_serves(&server);
    }
}

#[test]
fn a_client_that_leaves_what_it_has_fallen_behind_on() {
    let server = server(&[]);
    fill(&server, "kept.a", 1500, 1000);
    for _ in 0..5 {
        let mut client = narrow_client(&server, "ringfeed.v1");
        for name in ["a", "b", "c"] {
            client.subscribe(name);
        }
        client.send(recover(&server, "kept.a", 3));
        for name in ["a", "b", "c"] {
            fill(&server, name, 100, 4000);
        }
        for name in ["b", "kept.a", "a"] {
            client.send(json!({"type": "unsubscribe", "channel": name}));
        }
        assert_serves(&server);
        drop(client);
    }
    assert_nothing_left(&server);
}

#[test]
fn many_that_fall_in_the_middle_of_a_frame_hold_no_copies() {
    let server = server(&["limits.retained_bytes_max=16777216"]);
    let mut clients = narrow_readers(&server, 300);
    fill(&server, "c", 400, 16_000);
    server.wait_seen_to();
    server.wait_total("log_bytes", |n| n <= 2 * 256 * 1024);
    let (retained, outboxes) = (server.total("retained_bytes"), server.total("outbox_bytes"));
    assert!(retained <= 16 << 20, "{retained}");
    assert!(outboxes < 300 * 2048, "{outboxes}");
    // They read again: whole frames, and every offset once.
    server.publish("c", json!("last"));
    for client in clients.iter_mut().take(20) {
        assert!(read_to(client, &["c"], 401).missed > 0);
    }
    drop(clients);
    assert_nothing_left(&server);
}

#[test]
fn frames_of_nearly_a_megabyte_that_are_half_sent_are_held_once() {
    let server = server(&["limits.retained_bytes_max=8388608"]);
    let clients = readers_of_long_frames(&server, 100);
    server.wait_seen_to();
    server.wait_total("log_bytes", |n| n < 2 * 1_000_000);
    let (retained, outboxes) = (server.total("retained_bytes"), server.total("outbox_bytes"));
    assert!(retained > 0 && retained <= 8 << 20, "{retained}");
    assert!(outboxes < 100 * 2048, "{outboxes}");
    drop(clients);
    assert_nothing_left(&server);
}

#[test]
fn a_budget_of_half_sent_frames_that_is_used_up_costs_those_who_hold_it() {
    // Less than one frame: whoever falls in the middle of a long frame is cut.
    let server = server(&["limits.retained_bytes_max=65536"]);
    let clients = readers_of_long_frames(&server, 20);
    server.wait_total("connections", |n| n == 0);
    assert_eq!(closes(&server, "slow"), 20);
    assert_serves(&server);
    drop(clients);
    assert_nothing_left(&server);
}

/// Reads whole messages up to the close: how many, and the offset that the reason names.
fn closed_from(client: &mut Client) -> (u64, u64) {
    let mut received = 0;
    loop {
        match client.socket.read().unwrap() {
            Message::Close(Some(frame)) => {
                assert_eq!(u16::from(frame.code), 4000);
                let (_, rest) = frame.reason.split_once("from offset ").expect(&frame.reason);
                let offset: String = rest.chars().take_while(char::is_ascii_digit).collect();
                return (received, offset.parse().unwrap());
            }
            Message::Text(text) => {
                // Whole and in order: both dialects carry the number.
                let event: Value = serde_json::from_str(&text).unwrap();
                if event["type"] == "subscribed" {
                    continue;
                }
                let data = if event.is_array() { &event } else { &event["data"] };
                received += 1;
                assert_eq!(data[0], received);
            }
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_reason_of_4000_names_the_first_offset_that_is_missing() {
    // Of sizes at which the window's edge falls between frames, and within one of every length.
    for dialect in ["ringfeed.v1", "raw.v1"] {
        let server = server(&["server.close_timeout_ms=600000"]);
        for bytes in [100, 1000, 3000, 20_000, 90_000] {
            let channel = format!("cut.{bytes}");
            let mut client = narrow_client(&server, dialect);
            client.send(json!({"action": "subscribe", "channel": channel}));
            server.wait_total("subscriptions", |n| n == 1);
            let cut = server.total("lag_disconnects");
            // Until it has fallen: its sockets hold little, but how much is the kernel's.
            let (mut published, batch) = (0, 50_000 / bytes + 1);
            let pad = "x".repeat(bytes);
            while server.total("lag_disconnects") == cut {
                let publications: Vec<Value> = (0..batch)
                    .map(|i| json!({"channel": channel, "data": [published + i + 1, pad]}))
                    .collect();
                let body = json!({"publications": publications}).to_string();
                assert_eq!(server.http("POST", "/api/batch", &body).0, 200);
                published += batch;
            }
            let (received, missing) = closed_from(&mut client);
            assert_eq!(missing, received + 1, "{dialect}, {bytes} bytes");
            drop(client);
            server.wait_total("connections", |n| n == 0);
        }
    }
}

#[test]
fn who_reads_slowly_gets_the_close_behind_all_that_waits_for_it() {
    let server = server(&["server.close_timeout_ms=3000"]);
    fill(&server, "kept.a", 600, 1000);
    let mut client = narrow_client(&server, "ringfeed.v1");
    client.send(recover(&server, "kept.a", 1));
    server.wait_total("outbox_bytes", |n| n > 0);
    client.socket.close(None).unwrap();
    // Read in small steps, each well within the time for the closing handshake, all of it not.
    let uptime = || server.get("/api/stats")["uptime_seconds"].as_f64().unwrap();
    let began = uptime();
    let (mut messages, mut closed) = (0, false);
    loop {
        match client.socket.read() {
            Ok(Message::Text(_)) => messages += 1,
            Ok(Message::Close(_)) => closed = true,
            Ok(_) => {}
            Err(tungstenite::Error::ConnectionClosed) => break,
            Err(e) => panic!("cut after {messages} of 601 messages: {e}"),
        }
        if messages % 5 == 0 {
            let due = began + f64::from(messages) * 0.006;
            wait_until("uptime", uptime, |&now| now >= due);
        }
    }
    assert_eq!((messages, closed), (601, true));
    assert_nothing_left(&server);
}
