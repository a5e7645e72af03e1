//! Many recover at once, or one recovers many channels at once: all of it arrives, and who reads is not
//! taken for one who does not.

use serde_json::Value;
use tungstenite::Message;

use super::common::hostile::*;
use super::common::{Client, TestServer};

/// Reads until so many subscribes are answered and each channel is at `last`.
fn reads_all(client: &mut Client, subscribes: usize, last: u64) {
    let (mut seen, mut answered) = (Seen::default(), 0);
    let done = |seen: &Seen| {
        seen.next.len() == subscribes && seen.next.values().all(|&next| next == last + 1)
    };
    while answered < subscribes || !done(&seen) {
        let event: Value = match client.message() {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("closed before the end: {other:?}"),
        };
        if seen.take(&event) {
            continue;
        }
        assert_eq!((&event["type"], &event["recovered"]), (&"subscribed".into(), &true.into()));
        assert_eq!(event["offset"], last);
        answered += 1;
    }
    assert_eq!(seen.missed, 0, "what is kept is no gap");
}

#[test]
fn many_clients_recover_at_once() {
    let server = TestServer::start(CHANNELS, &[]);
    fill(&server, "kept.a", 200, 1000);
    let command = recover(&server, "kept.a", 1);
    let mut clients: Vec<_> = (0..128).map(|_| server.client()).collect();
    clients.iter_mut().for_each(|client| client.send(command.clone()));
    clients.iter_mut().for_each(|client| reads_all(client, 1, 200));
    assert_eq!((server.total("recovered"), closes(&server, "slow")), (128, 0));
    // The same bytes go to all: what waits of them is nobody's own.
    drop(clients);
    assert_nothing_left(&server);
}

/// Commands one behind the other, on channels of all shards: the answers come after all were taken.
fn one_client_recovers(channels: usize, count: usize, bytes: usize) {
    let server = TestServer::start(CHANNELS, &[]);
    let names: Vec<_> = (0..channels).map(|c| format!("kept.{c}")).collect();
    names.iter().for_each(|name| fill(&server, name, count, bytes));
    let commands: Vec<_> =
        names.iter().enumerate().map(|(id, name)| recover(&server, name, id)).collect();
    let mut client = server.client();
    commands.into_iter().for_each(|command| client.send(command));
    reads_all(&mut client, channels, count as u64);
    assert_eq!(server.total("recovered"), channels as u64);
    assert_eq!(closes(&server, "slow"), 0);
    server.wait_total("connections", |n| n == 1);
}

#[test]
fn one_client_recovers_a_hundred_channels_at_once() {
    one_client_recovers(100, 30, 1000);
}

#[test]
fn one_client_recovers_channels_that_each_fill_an_outbox() {
    // 1 MiB is what replies may wait with; a replay is no reply.
    one_client_recovers(4, 800, 1000);
    one_client_recovers(2, 1750, 2000);
}

#[test]
fn recoveries_that_nobody_reads_hold_no_copies_and_end() {
    let server = TestServer::start(
        CHANNELS,
        &[SMALL_SOCKETS, "limits.outbox_timeout_ms=4000", "server.close_timeout_ms=500"],
    );
    fill(&server, "kept.a", 2000, 1000);
    let command = recover(&server, "kept.a", 1);
    let mut clients: Vec<_> = (0..60).map(|_| narrow_client(&server, "ringfeed.v1")).collect();
    clients.iter_mut().for_each(|client| client.send(command.clone()));
    // 2 MB each, were it theirs.
    server.wait_total("outbox_bytes", |n| n > 0);
    let held = server.total("outbox_bytes");
    assert!(held < 60 * 40_000, "{held} bytes are held for 60 replays");
    assert_asleep(&server);
    wait_closes(&server, "slow", 60);
    assert_nothing_left(&server);
}

#[test]
fn a_replay_behind_a_close_is_not_sent() {
    let server = TestServer::start(
        CHANNELS,
        &[SMALL_SOCKETS, "limits.outbox_timeout_ms=2000", "server.close_timeout_ms=600000"],
    );
    let names = ["kept.a", "kept.b", "kept.c"];
    names.iter().for_each(|name| fill(&server, name, 1500, 2000));
    let mut client = narrow_client(&server, "ringfeed.v1");
    for (id, name) in names.iter().enumerate() {
        client.send(recover(&server, name, id));
    }
    wait_closes(&server, "slow", 1);
    // What was not begun is given up; the close frame is the last thing that comes.
    assert_eq!(client.closed().0, 4002);
    assert!(matches!(client.socket.read(), Err(tungstenite::Error::ConnectionClosed)));
}
