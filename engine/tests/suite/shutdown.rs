//! The graceful drain.

use super::common::TestServer;
use serde_json::json;

#[test]
fn a_drain_tells_flushes_and_closes() {
    let server = TestServer::open(&["server.drain_spread_ms=700"]);
    let mut clients: Vec<_> = (0..20).map(|_| server.client()).collect();
    for client in &mut clients {
        client.subscribe("open.d");
    }
    let mut raw = server.client_of("raw.v1");
    server.publish("open.d", json!("last"));
    server.drain();
    let mut delays = std::collections::BTreeSet::new();
    for client in &mut clients {
        assert_eq!(client.receive()["data"], "last");
        let event = client.receive();
        assert_eq!(event["type"], "drain");
        let delay = event["reconnect_ms"].as_u64().unwrap();
        assert!(delay <= 700);
        delays.insert(delay);
        assert_eq!(client.closed().0, 1012);
    }
    assert!(delays.len() > 5, "the delays differ: {delays:?}");
    assert_eq!(raw.closed().0, 1012);
    assert_eq!(server.http("GET", "/ready", "").0, 503);
    // Its end does not wait for the drain's limit, once everybody has answered.
    for client in &mut clients {
        while client.socket.read().is_ok() {}
    }
    while raw.socket.read().is_ok() {}
    server.wait();
}

#[test]
fn who_is_sent_away_comes_back_evenly_over_the_time_for_it() {
    let server = TestServer::open(&["server.drain_spread_ms=999"]);
    let mut clients: Vec<_> = (0..100).map(|_| server.client()).collect();
    server.wait_total("connections", |n| n == 100);
    server.drain();
    let mut tenths = [0; 10];
    for client in &mut clients {
        let event = client.receive();
        tenths[event["reconnect_ms"].as_u64().unwrap() as usize / 100] += 1;
    }
    assert!(tenths.iter().all(|count| (8..=12).contains(count)), "{tenths:?}");
}

#[test]
fn peers_that_do_not_answer_do_not_hold_the_drain_for_ever() {
    let server = TestServer::open(&["server.close_timeout_ms=200"]);
    let _deaf: Vec<_> = (0..5).map(|_| server.client()).collect();
    server.wait_total("connections", |n| n == 5);
    server.drain();
    server.wait();
}
