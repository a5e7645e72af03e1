//! Who stalls is closed in its time with the code that says why; the shard sleeps meanwhile, and
//! nothing is left of it.

use std::io::{Read as _, Write as _};

use serde_json::json;

use super::common::hostile::*;
use super::common::{Client, TestServer};

/// A server on which only one thing is timed.
fn server(timeout: &str) -> TestServer {
    let off = ["heartbeat.interval_ms=0", "limits.outbox_timeout_ms=600000"];
    let more = ["limits.message_timeout_ms=600000", "server.close_timeout_ms=600000"];
    let flags = [SMALL_SOCKETS, off[0], off[1], more[0], more[1], timeout];
    TestServer::start(CHANNELS, &flags)
}

/// It sleeps until the connection is closed; who reads then is told the code.
fn closed_with(server: &TestServer, mut client: Client, reason: &str, code: u16) {
    assert_asleep(server);
    wait_closes(server, reason, 1);
    assert_eq!(client.closed().0, code);
    drop(client);
    assert_nothing_left(server);
}

/// A client that asks, and does not read the answers.
fn asks_and_does_not_read(server: &TestServer) -> Client {
    fill(server, "kept.a", 200, 2000);
    let mut client = narrow_client(server, "ringfeed.v1");
    let ask = json!({"type": "history", "id": 1, "channel": "kept.a"}).to_string();
    send_unread(&mut client, &frame(0x81, ask.as_bytes()), 20);
    server.wait_total("outbox_bytes", |n| n > 0);
    client
}

#[test]
fn unread_replies_are_closed_with_4002() {
    let server = server("limits.outbox_timeout_ms=2500");
    let client = asks_and_does_not_read(&server);
    closed_with(&server, client, "slow", 4002);
}

#[test]
fn an_unread_replay_is_closed_with_4002() {
    let server = server("limits.outbox_timeout_ms=2500");
    fill(&server, "kept.a", 1000, 2000);
    let mut client = narrow_client(&server, "ringfeed.v1");
    client.send(recover(&server, "kept.a", 1));
    server.wait_total("outbox_bytes", |n| n > 0);
    closed_with(&server, client, "slow", 4002);
}

#[test]
fn an_unread_channel_meets_the_heartbeat_and_is_closed_with_4001() {
    let toml = CHANNELS;
    let flags = [SMALL_SOCKETS, "heartbeat.interval_ms=1500", "heartbeat.timeout_ms=1500"];
    let server = TestServer::start(toml, &flags);
    let mut client = narrow_client(&server, "ringfeed.v1");
    client.subscribe("plain");
    fill(&server, "plain", 1000, 2000);
    closed_with(&server, client, "no_heartbeat", 4001);
}

#[test]
fn unfinished_messages_are_closed_with_4003() {
    let whole = frame(0x81, &[b'x'; 30_000]);
    // A fragment of a message whose last never comes, and a frame that stops in the middle.
    for begun in [&frame(0x01, &[b'x'; 30_000])[..], &whole[..20_000], &whole[..1]] {
        let server = server("limits.message_timeout_ms=2500");
        let mut client = server.client();
        client.socket.get_mut().write_all(begun).unwrap();
        if begun.len() > 1 {
            server.wait_total("partial_message_bytes", |n| n > 10_000);
        }
        closed_with(&server, client, "message_timeout", 4003);
    }
}

#[test]
fn a_message_in_small_pieces_is_timed_from_its_first_byte() {
    let server = server("limits.message_timeout_ms=1000");
    let mut client = server.client();
    let stream = client.socket.get_mut();
    stream.write_all(&frame(0x01, b"x")).unwrap();
    // It goes on as fast as it is taken, and never ends: being busy is no excuse.
    let mut sent = 0u32;
    while closes(&server, "message_timeout") == 0 {
        if stream.write_all(&frame(0x00, b"x")).is_err() {
            break;
        }
        sent += 1;
        assert!(sent < 60_000, "fragments without an end are not ended");
    }
    wait_closes(&server, "message_timeout", 1);
}

#[test]
fn an_unfinished_head_is_answered_with_408() {
    let server = server("server.handshake_timeout_ms=2500");
    let mut stream = narrow_stream(server.public);
    stream.write_all(b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgr").unwrap();
    server.wait_total("handshakes", |n| n == 1);
    assert_asleep(&server);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_nothing_left(&server);
}

#[test]
fn a_close_frame_that_is_never_answered_is_waited_for_no_longer_than_said() {
    let server = server("server.close_timeout_ms=2500");
    let mut client = server.client_of("raw.v1");
    client.send_text(r#"{"action":"fly"}"#);
    wait_closes(&server, "refused", 1);
    assert_asleep(&server);
    // It is still there, and does not answer the close frame, which has come.
    assert_nothing_left(&server);
    assert_eq!(client.closed().0, 4500);
}

#[test]
fn a_client_that_closes_and_does_not_read_what_waits_for_it_is_cut() {
    let server = server("server.close_timeout_ms=2500");
    let mut client = asks_and_does_not_read(&server);
    let _ = client.socket.get_mut().write(&frame(0x88, &1000u16.to_be_bytes()));
    assert_asleep(&server);
    // Its close frame lies behind commands that are not read while it does not read; it leaves.
    drop(client);
    assert_nothing_left(&server);
}

#[test]
fn who_was_told_4002_and_goes_on_not_reading_is_cut() {
    let flags = ["limits.outbox_timeout_ms=2500", "server.close_timeout_ms=500"];
    let server = TestServer::start(CHANNELS, &[SMALL_SOCKETS, flags[0], flags[1]]);
    let client = asks_and_does_not_read(&server);
    assert_asleep(&server);
    wait_closes(&server, "slow", 1);
    assert_nothing_left(&server);
    drop(client);
}

#[test]
fn a_silent_peer_with_a_full_outbox_does_not_live_for_ever() {
    let flags = ["heartbeat.interval_ms=200", "heartbeat.timeout_ms=200"];
    let more = ["limits.outbox_timeout_ms=2500", "server.close_timeout_ms=500"];
    let all = [SMALL_SOCKETS, flags[0], flags[1], more[0], more[1]];
    let server = TestServer::start(CHANNELS, &all);
    let client = asks_and_does_not_read(&server);
    assert_asleep(&server);
    assert_nothing_left(&server);
    assert_eq!(closes(&server, "slow") + closes(&server, "no_heartbeat"), 1);
    drop(client);
}

#[test]
fn an_error_repeats_little_of_what_was_wrong() {
    let server = server("limits.outbox_timeout_ms=2500");
    let mut client = narrow_client(&server, "ringfeed.v1");
    let control = format!("\"{}\"", "\u{7f}".repeat(60_000));
    send_unread(&mut client, &frame(0x81, control.as_bytes()), 8);
    for _ in 0..client_errors(&server) {
        let error = client.receive();
        assert_eq!(error["type"], "error");
        assert!(error.to_string().len() < 2000, "{error}");
    }
    assert_asleep(&server);
}

/// How many commands were refused, once there was one.
fn client_errors(server: &TestServer) -> u64 {
    server.wait_total("errors_told", |n| n > 0)
}
