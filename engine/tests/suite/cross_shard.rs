//! Publishers and subscribers on different shards, with everything coming and going.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::common::{TestServer, wait_until};
use serde_json::json;

/// Churns subscriptions and connections against a steady stream on many channels, which hash to all
/// shards, for some seconds (`RINGFEED_CHURN_SECONDS` makes it minutes). Every stream a subscriber
/// sees must be dense; afterwards everything must be back where it began.
#[test]
fn churn_over_all_shards_loses_nothing_and_leaks_nothing() {
    let seconds = std::env::var("RINGFEED_CHURN_SECONDS").ok().and_then(|s| s.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(5));
    let server = TestServer::open(&["server.shards=3"]);
    // Descriptors are counted once every shard has its rings and has served somebody.
    let first: Vec<_> = (0..30).map(|_| server.client()).collect();
    server.wait_total("connections", |n| n == 30);
    drop(first);
    server.wait_total("sockets", |n| n == 0);
    let files_before = server.get("/api/stats")["open_files"].as_u64().unwrap();
    // Subscribers end first: they wait for what publishers send.
    let stop = Arc::new(AtomicBool::new(false));
    let stop_publishing = Arc::new(AtomicBool::new(false));

    // Publishers over WebSocket, each the only one of its four channels.
    let publishers: Vec<_> = (0..3)
        .map(|p| {
            let (mut client, stop) = (server.client(), stop_publishing.clone());
            std::thread::spawn(move || {
                let mut sent = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    for c in 0..4 {
                        let channel = format!("open.{p}.{c}");
                        client.send(json!({"type":"publish","channel":channel,"data":sent}));
                    }
                    sent += 1;
                    if sent.is_multiple_of(50) {
                        // One acknowledged now and then: no more is under way than that.
                        let reply = client.ask(
                            json!({"type":"publish","id":sent,"channel":format!("open.ack{p}"),"data":0}),
                        );
                        assert_eq!(reply["id"], sent);
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                sent
            })
        })
        .collect();

    let subscribers: Vec<_> = (0..6u64)
        .map(|s| {
            let (address, stop) = (server.public, stop.clone());
            std::thread::spawn(move || {
                let (mut round, mut messages) = (s, 0u64);
                while !stop.load(Ordering::Relaxed) {
                    let mut client = super::common::Client::connect(address, "/ws");
                    let channels: Vec<String> = (0..4)
                        .map(|i| format!("open.{}.{}", (round + i) % 3, (round / 3 + i) % 4))
                        .collect();
                    let mut next = std::collections::HashMap::new();
                    for channel in &channels {
                        client.send(json!({"type":"subscribe","id":1,"channel":channel}));
                    }
                    let (mut left, mut gone) = (200 + round % 100, None::<String>);
                    while left > 0 {
                        let event = client.receive();
                        let channel = event["channel"].as_str().unwrap_or_default().to_owned();
                        match event["type"].as_str().unwrap() {
                            "subscribed" => {
                                next.insert(channel, event["offset"].as_u64().unwrap() + 1);
                            }
                            "message" => {
                                assert_ne!(gone.as_ref(), Some(&channel), "after its unsubscribe");
                                let next = next.get_mut(&channel).expect("subscribed before");
                                assert_eq!(event["offset"], *next, "{channel}");
                                *next += 1;
                                messages += 1;
                                left -= 1;
                                if left == 100 {
                                    client.send(json!(
                                        {"type":"unsubscribe","id":2,"channel":channels[0]}
                                    ));
                                }
                            }
                            "unsubscribed" => gone = Some(channel),
                            other => panic!("{other}: {event}"),
                        }
                    }
                    // Some say goodbye, some vanish with messages in flight.
                    if round % 2 == 0 {
                        let _ = client.socket.close(None);
                        while client.socket.read().is_ok() {}
                    }
                    round += 1;
                }
                messages
            })
        })
        .collect();

    while Instant::now() < end && publishers.iter().all(|p| !p.is_finished()) {
        std::thread::sleep(Duration::from_millis(100));
    }
    stop.store(true, Ordering::Relaxed);
    let received: u64 = subscribers.into_iter().map(|s| s.join().unwrap()).sum();
    stop_publishing.store(true, Ordering::Relaxed);
    let published: u64 = publishers.into_iter().map(|p| p.join().unwrap()).sum();
    println!("{published} rounds published, {received} messages checked");
    assert!(published > 0 && received > 1000);
    for gauge in ["connections", "subscriptions", "sockets", "log_bytes"] {
        server.wait_total(gauge, |n| n == 0);
    }
    assert_eq!(server.total("protocol_errors"), 0);
    let files = || server.get("/api/stats")["open_files"].as_u64().unwrap();
    let name = format!("open_files ({files_before} before)");
    wait_until(&name, files, |&now| now <= files_before);
}
