//! Subscribe with recovery: never a gap, never a duplicate, and no claim that is not true.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::common::TestServer;
use serde_json::{Value, json};

#[test]
fn a_thousand_recoveries_under_load_have_neither_gap_nor_duplicate() {
    let rounds = 1000;
    let server = TestServer::open(&[]);
    let stop = Arc::new(AtomicBool::new(false));
    let (done, internal) = (stop.clone(), server.internal);
    // About 10,000 publications a second, in small batches, to two channels.
    let publisher = std::thread::spawn(move || {
        let mut count = 0u64;
        let start = std::time::Instant::now();
        while !done.load(Ordering::Relaxed) {
            let batch: Vec<Value> = (0..50)
                .map(|i| json!({"channel": format!("open.{}", i % 2), "data": count + i}))
                .collect();
            let body = json!({"publications": batch}).to_string();
            assert_eq!(super::common::http(internal, "POST", "/api/batch", "", &body).0, 200);
            count += 50;
            let due = std::time::Duration::from_micros(count * 100);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
        count
    });
    server.wait_total("publications", |n| n > 100);
    let (mut recovered, mut seen) = (0, [(String::new(), 0u64), (String::new(), 0)]);
    let mut client = server.client();
    for round in 0..rounds {
        let which = round % 2;
        let channel = format!("open.{which}");
        let (epoch, offset) = &mut seen[which];
        if round % 10 == 9 {
            client = server.client();
        }
        let mut command = json!({"type":"subscribe","id":round,"channel":channel});
        if *offset > 0 {
            command["recover"] = json!({"epoch": epoch, "offset": offset});
        }
        let reply = client.ask(command);
        assert_eq!(reply["type"], "subscribed", "{reply}");
        if *offset > 0 && reply["recovered"] == true {
            recovered += 1;
        } else {
            // Too far back, or the first time: it starts at the newest.
            *offset = reply["offset"].as_u64().unwrap();
        }
        *epoch = reply["epoch"].as_str().unwrap().to_owned();
        for _ in 0..20 {
            let event = client.receive();
            assert_eq!(event["offset"], *offset + 1, "round {round}: {event}");
            *offset += 1;
        }
        client.send(json!({"type":"unsubscribe","id":"u","channel":channel}));
        loop {
            let event = client.receive();
            if event["type"] == "unsubscribed" {
                break;
            }
            assert_eq!(event["offset"], *offset + 1, "round {round}: {event}");
            *offset += 1;
        }
    }
    stop.store(true, Ordering::Relaxed);
    publisher.join().unwrap();
    assert!(recovered >= rounds - 10, "only {recovered} of {rounds} recovered");
    assert_eq!(server.total("recovered"), recovered as u64);
}

#[test]
fn what_is_gone_is_not_recovered() {
    let server = TestServer::open(&[]);
    let epoch = server.publish("open.a", json!(1))["epoch"].as_str().unwrap().to_owned();
    for i in 2..=10 {
        server.publish("open.a", json!(i));
    }
    let recover = |epoch: &str, offset: u64| {
        let mut client = server.client();
        let reply = client.ask(json!({
            "type":"subscribe","id":1,"channel":"open.a","recover":{"epoch":epoch,"offset":offset}
        }));
        assert_eq!(
            (&reply["type"], &reply["offset"]),
            (&json!("subscribed"), &json!(10)),
            "{reply}"
        );
        reply["recovered"].as_bool().unwrap()
    };
    assert!(recover(&epoch, 0) && recover(&epoch, 5) && recover(&epoch, 10));
    assert!(!recover(&epoch, 11), "an offset that was never given");
    assert!(!recover("0123456789abcdef", 5), "another life of the log");
    // A channel without history recovers a reader that missed nothing, and no other.
    let mut client = server.client();
    let first = client.subscribe("plain");
    server.publish("plain", json!(1));
    client.receive();
    let mut late = server.client();
    let ask = |offset: u64| {
        json!({"type":"subscribe","id":1,"channel":"plain",
               "recover":{"epoch":first["epoch"],"offset":offset}})
    };
    assert_eq!(late.ask(ask(0))["recovered"], false);
    let mut current = server.client();
    assert_eq!(current.ask(ask(1))["recovered"], true);
}
