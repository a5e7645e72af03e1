//! Channels are made by anybody who names one: what is left of them is nothing.

use serde_json::{Value, json};

use super::common::TestServer;
use super::common::hostile::*;

#[test]
fn names_made_and_left_are_forgotten() {
    let server = TestServer::start(CHANNELS, &[]);
    for start in (0..20_000).step_by(5000) {
        let publications: Vec<Value> =
            (start..start + 5000).map(|i| json!({"channel": format!("n{i}"), "data": 1})).collect();
        let body = json!({"publications": publications}).to_string();
        assert_eq!(server.http("POST", "/api/batch", &body).0, 200);
    }
    server.wait_total("channels", |n| n > 0);
    server.wait_total("channels", |n| n == 0);
    assert_eq!(server.publish("n1", json!(1))["offset"], 1, "another life of the channel");
}

#[test]
fn clients_that_come_and_go_do_not_use_up_the_names() {
    let server = TestServer::start(CHANNELS, &["limits.channels_max=500"]);
    let mut greedy: Vec<_> = (0..10).map(|_| server.client()).collect();
    for (number, client) in greedy.iter_mut().enumerate() {
        for i in 0..200 {
            let channel = format!("n{number}.{i}");
            client.send(json!({"type": "subscribe", "id": 1, "channel": channel}));
            client.send(json!({"type": "unsubscribe", "id": 2, "channel": channel}));
        }
    }
    for client in &mut greedy {
        for _ in 0..400 {
            let reply = client.receive();
            assert_ne!(reply["code"], "limit_reached", "{reply}");
        }
    }
    server.client().subscribe("honest");
}
