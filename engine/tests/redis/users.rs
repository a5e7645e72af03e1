//! Users with connections to several nodes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::tokens::{ISSUER, token};
use crate::common::{Client, TestServer, wait_until};
use crate::{CHANNELS, RedisServer, node_of, node_of_alone, wait_ready};

fn toml() -> String {
    let permissions =
        "[[permissions]]\nwho = [\"users\"]\nchannels = [\"*\"]\nallow = [\"send\"]\n";
    format!("{permissions}{CHANNELS}{ISSUER}")
}

fn node(redis: &RedisServer) -> TestServer {
    node_of(&toml(), redis, &[])
}

/// A connection of a user, and its id.
pub(crate) fn come(node: &TestServer, user: &str, claims: Value) -> (Client, String) {
    let target = format!("/ws?token={}", token(user, 600, claims));
    let mut client = Client::connect(node.public, &target);
    let greeting = client.receive();
    assert_eq!(greeting["user"], user, "{greeting}");
    (client, greeting["connection"].as_str().unwrap().to_owned())
}

pub(crate) fn post(node: &TestServer, path: &str, body: &Value) -> (u16, Value) {
    let (status, answer) = node.http("POST", path, &body.to_string());
    (status, serde_json::from_str(&answer).unwrap())
}

fn reached(node: &TestServer, path: &str, body: Value) -> u64 {
    let (status, answer) = post(node, path, &body);
    assert_eq!(status, 200, "{path} {body}: {answer}");
    answer["connections"].as_u64().unwrap()
}

/// The connections of a user, once there are so many.
fn connections(node: &TestServer, user: &str, count: usize) -> Vec<String> {
    let look = || node.get(&format!("/api/connections?user={user}"))["connections"].clone();
    let listed = wait_until("connections", look, |list| list.as_array().unwrap().len() == count);
    let listed = listed.as_array().unwrap().clone();
    listed.iter().map(|own| own["connection"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_is_sent_to_a_user_reaches_all_nodes_and_each_connection_once() {
    let redis = RedisServer::start(&[]);
    let nodes = [node(&redis), node(&redis), node(&redis)];
    let mut anns: Vec<(Client, String)> =
        (0..6).map(|at| come(&nodes[at % 3], "ann", json!({}))).collect();
    let (mut bob, _) = come(&nodes[1], "bob", json!({}));
    for node in &nodes {
        let mut listed = connections(node, "ann", 6);
        let mut expected: Vec<String> = anns.iter().map(|(_, id)| id.clone()).collect();
        listed.sort();
        expected.sort();
        assert_eq!(listed, expected);
    }
    assert_eq!(reached(&nodes[0], "/api/send", json!({"user": "ann", "data": {"n": 1}})), 6);
    assert_eq!(reached(&nodes[0], "/api/send", json!({"user": "eve", "data": 1})), 0);
    let sent = bob.ask(json!({"type": "send", "id": 1, "user": "ann", "text": "hi"}));
    assert_eq!(sent, json!({"type": "sent", "id": 1, "user": "ann", "connections": 6}));
    // One connection, which is on another node, by itself and as hers.
    let one = anns[1].1.clone();
    assert_eq!(reached(&nodes[0], "/api/send", json!({"connection": one, "base64": "AAE="})), 1);
    let hers = json!({"connection": one, "user": "ann", "data": "x"});
    assert_eq!(reached(&nodes[2], "/api/send", hers), 1);
    let not_his = json!({"connection": one, "user": "bob", "data": "x"});
    assert_eq!(reached(&nodes[2], "/api/send", not_his), 0);
    for number in 0..100 {
        assert_eq!(reached(&nodes[0], "/api/send", json!({"user": "ann", "data": number})), 6);
    }
    for (at, (ann, _)) in anns.iter_mut().enumerate() {
        assert_eq!(ann.receive(), json!({"type": "direct", "data": {"n": 1}}));
        assert_eq!(ann.receive(), json!({"type": "direct", "from": "bob", "data": "hi"}));
        if at == 1 {
            let bytes = json!({"type": "direct", "data": "AAE=", "encoding": "base64"});
            assert_eq!(ann.receive(), bytes);
            assert_eq!(ann.receive()["data"], "x");
        }
        for number in 0..100 {
            assert_eq!(ann.receive(), json!({"type": "direct", "data": number}), "in order");
        }
        assert_eq!(ann.ask(json!({"type": "ping", "id": 2}))["id"], 2, "and nothing else");
    }
    assert_eq!(bob.ask(json!({"type": "ping", "id": 2}))["id"], 2, "nothing came to him");
}

#[test]
fn connections_end_and_subscriptions_end_on_all_nodes() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis), node(&redis));
    let (mut here, _) = come(&a, "ann", json!({}));
    let (mut there, id) = come(&b, "ann", json!({}));
    let (mut other, _) = come(&b, "ann", json!({}));
    for client in [&mut here, &mut there, &mut other] {
        client.subscribe("n.1");
    }
    connections(&a, "ann", 3);
    assert_eq!(reached(&a, "/api/unsubscribe", json!({"user": "ann", "channel": "n.1"})), 3);
    for client in [&mut here, &mut there, &mut other] {
        let ended = client.receive();
        assert_eq!((&ended["type"], &ended["channel"]), (&json!("unsubscribed"), &json!("n.1")));
    }
    let one = json!({"connection": id, "code": 4600, "reason": "by name"});
    assert_eq!(reached(&a, "/api/disconnect", one), 1);
    assert_eq!(there.closed(), (4600, "by name".into()));
    connections(&a, "ann", 2);
    assert_eq!(reached(&b, "/api/disconnect", json!({"user": "ann"})), 2);
    assert_eq!((here.closed().0, other.closed().0), (4502, 4502));
    connections(&a, "ann", 0);
}

#[test]
fn who_is_revoked_on_one_node_is_on_all_also_on_those_that_come_later() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis), node(&redis));
    let stolen = json!({"jti": "t1"});
    let (mut thief, _) = come(&b, "ann", stolen.clone());
    let (mut ann, _) = come(&b, "ann", json!({"jti": "t2"}));
    let (status, answer) = post(&a, "/api/revoke", &json!({"token": "t1"}));
    assert_eq!((status, &answer), (200, &json!({"revoked": 1})));
    assert_eq!(thief.closed().0, 4504);
    assert_eq!(ann.ask(json!({"type": "ping", "id": 1}))["id"], 1);
    // Some are over by the time somebody asks, and a user's newest word counts.
    for (whom, until) in [("t3", 1), ("t4", 2)] {
        assert_eq!(post(&b, "/api/revoke", &json!({"token": whom, "until": until})).0, 200);
    }
    assert_eq!(post(&b, "/api/revoke", &json!({"user": "ann"})).0, 200);
    assert_eq!(ann.closed().0, 4504);
    // As many as are told in several answers.
    for number in 0..1200 {
        let revoked = json!({"token": format!("many{number}")});
        assert_eq!(post(&a, "/api/revoke", &revoked).0, 200);
    }
    let kept: usize = redis.ask(&["HLEN", "ringfeed:{revoked}:h"]);
    assert_eq!(kept, 1202, "what was over has gone");
    let c = node(&redis);
    let refused = || {
        ["many0", "many600", "many1199", "t1"].iter().all(|id| {
            let target = format!("/ws?token={}", token("eve", 600, json!({"jti": id})));
            Client::connect(c.public, &target).message().is_close()
        })
    };
    wait_until("a new node knows", refused, |&refused| refused);
    let target = format!("/ws?token={}", token("ann", 600, json!({})));
    assert_eq!(Client::connect(c.public, &target).closed().0, 4504);
}

#[test]
fn what_is_revoked_outlasts_a_redis_that_was_away_or_has_lost_it() {
    let mut redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis), node(&redis));
    let (mut thief, _) = come(&b, "ann", json!({"jti": "t2"}));
    assert_eq!(post(&a, "/api/revoke", &json!({"token": "t1"})).0, 200);
    // This one comes back with nothing.
    redis.kill();
    wait_ready(&a, "redis away");
    let (status, answer) = post(&a, "/api/revoke", &json!({"token": "t2"}));
    assert_eq!(status, 503, "{answer}");
    redis.spawn();
    assert_eq!(thief.closed().0, 4504, "whoever was told 503 may leave it at that");
    let c = node(&redis);
    let refused = || {
        ["t1", "t2"].iter().all(|id| {
            let target = format!("/ws?token={}", token("eve", 600, json!({"jti": id})));
            Client::connect(c.public, &target).message().is_close()
        })
    };
    wait_until("a new node knows", refused, |&refused| refused);
}

#[test]
fn nothing_is_said_to_be_done_on_nodes_that_cannot_be_asked() {
    let mut redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis), node(&redis));
    let (mut here, _) = come(&a, "ann", json!({}));
    let (mut there, _) = come(&b, "ann", json!({}));
    connections(&a, "ann", 2);
    redis.kill();
    wait_ready(&a, "redis away");
    wait_ready(&b, "redis away");
    let (status, answer) = post(&a, "/api/send", &json!({"user": "ann", "data": 1}));
    assert_eq!(status, 503, "{answer}");
    assert!(answer.to_string().contains("only this node could be asked"), "{answer}");
    assert_eq!(here.receive()["data"], 1, "what this node can do it does");
    let refused = here.ask(json!({"type": "send", "id": 1, "user": "ann", "data": 2}));
    // It is one of the connections of its user, and the answer comes behind.
    assert_eq!(refused["data"], 2, "{refused}");
    let refused = here.receive();
    assert_eq!((&refused["type"], &refused["code"]), (&json!("error"), &json!("busy")));
    assert_eq!(post(&a, "/api/revoke", &json!({"token": "t"})).0, 503);
    redis.spawn();
    for node in [&a, &b] {
        wait_ready(node, "ready");
    }
    let send =
        || post(&a, "/api/send", &json!({"user": "ann", "data": 3})).1["connections"].clone();
    wait_until("both", send, |count| *count == 2);
    assert_eq!(there.receive()["data"], 3, "what was not done is not done later");
}

/// What is said to be one more process, under this number: a beat of it, as the bridge writes it.
fn beat(redis: &RedisServer, instance: u64) {
    let mut bytes = vec![1];
    bytes.extend(instance.to_be_bytes());
    bytes.extend(0u64.to_be_bytes());
    let mut connection = redis.try_connection().unwrap();
    redis::cmd("PUBLISH").arg("ringfeed:beats").arg(bytes).exec(&mut connection).unwrap();
}

#[test]
fn a_node_that_does_not_answer_is_told_and_somebody_who_only_listens_is_none() {
    let redis = RedisServer::start(&[]);
    let a = node(&redis);
    let b = node(&redis);
    come(&b, "ann", json!({}));
    let mut stranger = redis.try_connection().unwrap();
    let mut listener = stranger.as_pubsub();
    listener.psubscribe("*").unwrap();
    let began = Instant::now();
    assert_eq!(reached(&a, "/api/send", json!({"user": "eve", "data": 1})), 0);
    assert!(began.elapsed() >= Duration::from_secs(1), "it might have been a node");
    beat(&redis, 5);
    let (status, answer) = post(&a, "/api/send", &json!({"user": "eve", "data": 1}));
    assert_eq!(status, 503, "{answer}");
    assert!(answer.to_string().contains("not all nodes have answered in time"), "{answer}");
    drop(listener);
    drop(stranger);
    let again = || post(&a, "/api/send", &json!({"user": "eve", "data": 1})).0;
    wait_until("without it", again, |&status| status == 200);
}

#[test]
fn a_node_alone_that_does_not_find_redis_does_what_it_can() {
    let redis = RedisServer::start(&[]);
    let url = redis.url();
    drop(redis);
    let alone = node_of_alone(&toml(), &url, &[]);
    let (mut ann, _) = come(&alone, "ann", json!({}));
    let (status, answer) = post(&alone, "/api/disconnect", &json!({"user": "ann"}));
    assert_eq!(status, 503, "{answer}");
    assert_eq!(ann.closed().0, 4502);
}
