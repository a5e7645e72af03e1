//! A reader that stalls costs nobody else anything, meets its policy and is told what it missed.

use super::common::hostile::{SMALL_SOCKETS, assert_asleep, narrow_client, read_to};
use super::common::{Client, TestServer};
use serde_json::{Value, json};

const WINDOW: &str = r#"
[[channels]]
pattern = "gap.*"
window_bytes = 1048576
window_age_ms = 600000
[[channels]]
pattern = "cut.*"
lag_policy = "disconnect"
window_bytes = 1048576
window_age_ms = 600000
[[channels]]
pattern = "old.*"
window_bytes = 1073741824
window_age_ms = 300
[[channels]]
pattern = "*"
"#;

fn server(flags: &[&str]) -> TestServer {
    let all = [&[SMALL_SOCKETS, "heartbeat.interval_ms=0"], flags].concat();
    TestServer::start(WINDOW, &all)
}

/// Publishes more than socket buffers and window hold, in batches, while `healthy` reads along.
fn flood(server: &TestServer, channel: &str, healthy: &mut Client, from: u64, count: u64) {
    let pad = "x".repeat(2000);
    for start in (0..count).step_by(20) {
        let publications: Vec<Value> = (start..(start + 20).min(count))
            .map(|i| json!({"channel": channel, "data": {"i": from + i, "pad": pad}}))
            .collect();
        let body = json!({"publications": publications}).to_string();
        assert_eq!(server.http("POST", "/api/batch", &body).0, 200);
        for i in start..(start + 20).min(count) {
            let message = healthy.receive();
            assert_eq!(message["offset"], from + i, "the healthy reader gets every one");
            assert_eq!(message["data"]["i"], from + i);
        }
    }
}

#[test]
fn a_stalled_reader_is_told_exactly_what_it_missed() {
    let server = server(&[]);
    let mut healthy = server.client();
    healthy.subscribe("gap.a");
    let mut stalled = server.client();
    stalled.subscribe("gap.a");
    flood(&server, "gap.a", &mut healthy, 1, 6000);
    assert!(server.total("log_bytes") < 2 << 20, "the window bounds what is kept");
    // It reads again: runs of messages and the gaps between them, without a hole. (There may be
    // several: its socket takes a little more now and then, even while nobody reads.)
    let (mut next, mut missed, mut gaps) = (1, 0, 0);
    while next <= 6000 {
        let event = stalled.receive();
        if event["type"] == "gap" {
            assert_eq!((&event["channel"], &event["from"]), (&json!("gap.a"), &json!(next)));
            let to = event["to"].as_u64().unwrap();
            assert!(to >= next && to <= 6000, "{event}");
            missed += to + 1 - next;
            gaps += 1;
            next = to + 1;
        } else {
            assert_eq!(event["offset"], next);
            next += 1;
        }
    }
    assert!(gaps > 0);
    server.publish("gap.a", json!("after"));
    assert_eq!(stalled.receive()["offset"], 6001);
    assert_eq!((server.total("gaps"), server.total("gap_publications")), (gaps, missed));
}

#[test]
fn many_that_fall_at_once_are_all_closed_and_nobody_else() {
    let server = server(&[]);
    let mut healthy = server.client();
    healthy.subscribe("cut.m");
    let mut stalled: Vec<_> = (0..10).map(|_| server.client()).collect();
    for client in &mut stalled {
        client.subscribe("cut.m");
    }
    let mut later = server.client();
    later.subscribe("other");
    flood(&server, "cut.m", &mut healthy, 1, 6000);
    server.wait_total("lag_disconnects", |n| n == 10);
    server.wait_total("sockets", |n| n == 2);
    server.publish("cut.m", json!("on"));
    assert_eq!(healthy.receive()["offset"], 6001);
    server.publish("other", json!("on"));
    assert_eq!(later.receive()["offset"], 1);
}

#[test]
fn raw_readers_cannot_be_told_and_are_closed_instead() {
    let server = server(&[]);
    let mut healthy = server.client();
    healthy.subscribe("gap.r");
    let mut stalled = server.client_of("raw.v1");
    stalled.send_text(r#"{"action":"subscribe","channel":"gap.r"}"#);
    server.wait_total("subscriptions", |n| n == 2);
    flood(&server, "gap.r", &mut healthy, 1, 6000);
    server.wait_total("lag_disconnects", |n| n == 1);
}

#[test]
fn what_is_too_old_is_a_gap_even_within_the_window() {
    // One shard writes all gauges at once, so that one of them says how old another is.
    let server = server(&["server.shards=1"]);
    let mut healthy = server.client();
    healthy.subscribe("old.a");
    let mut stalled = server.client();
    stalled.subscribe("old.a");
    flood(&server, "old.a", &mut healthy, 1, 4000);
    // Looked at behind the flood, the log is short only because the reader has fallen.
    let mut later = server.client();
    later.subscribe("other");
    server.wait_total("subscriptions", |n| n == 3);
    server.wait_total("log_bytes", |n| n < 1 << 20);
    assert!(read_to(&mut stalled, &["old.a"], 4000).missed > 0);
}

#[test]
fn unsubscribing_a_stalled_channel_completes_the_frame_that_is_half_sent() {
    let server = server(&[]);
    let mut healthy = server.client();
    healthy.subscribe("old.b");
    let mut stalled = server.client();
    stalled.subscribe("old.b");
    stalled.subscribe("other");
    flood(&server, "old.b", &mut healthy, 1, 1000);
    stalled.send(json!({"type":"unsubscribe","id":"u","channel":"old.b"}));
    let mut event = stalled.receive();
    // Every message up to the reply is whole and in order: a torn frame would not parse.
    let mut next = 1;
    while event["type"] == "message" {
        assert_eq!(event["offset"], next);
        next += 1;
        event = stalled.receive();
    }
    while event["type"] == "gap" {
        event = stalled.receive();
    }
    assert_eq!(event, json!({"type":"unsubscribed","id":"u","channel":"old.b"}));
    server.publish("other", json!(1));
    assert_eq!(stalled.receive()["channel"], "other");
}

#[test]
fn replies_that_nobody_reads_stop_the_reading_not_the_server() {
    let flags = ["limits.outbox_bytes_max=65536", "limits.outbox_timeout_ms=600000"];
    let server = TestServer::open(&[SMALL_SOCKETS, "heartbeat.interval_ms=0", flags[0], flags[1]]);
    for _ in 0..20 {
        server.publish("open.h", json!("x".repeat(2000)));
    }
    let mut greedy = narrow_client(&server, "ringfeed.v1");
    // The questions fit into the sockets, of which only the answers are too much.
    for id in 0..500 {
        greedy.send(json!({"type":"history","id":id,"channel":"open.h"}));
    }
    server.wait_total("outbox_bytes", |n| n > 0);
    // It has nothing to do while most questions wait: they are not read.
    assert_asleep(&server);
    assert!(server.total("messages_in") < 250);
    assert_eq!(server.total("connections"), 1);
    let mut other = server.client();
    other.subscribe("open.x");
    server.publish("open.x", json!(1));
    assert_eq!(other.receive()["offset"], 1);
    // Once it reads, every question has its answer.
    for id in 0..500 {
        assert_eq!(greedy.receive()["id"], id);
    }
    assert_eq!(greedy.ask(json!({"type":"ping","id":"end"}))["type"], "pong");
}
