//! Who is on channels that several nodes serve.

use serde_json::{Value, json};

use crate::common::tokens::{ISSUER, token};
use crate::common::{Client, TestServer, wait_until};
use crate::{RedisServer, node_of, wait_ready};

/// `pn.*` is numbered and `pb.*` bridged, with names and notices; of `cn.*` and `cb.*` numbers are shown.
const RULES: &str = r#"
[[channels]]
pattern = "pn.*"
history_size = 10
presence = "full"
join_leave = true
presence_interval_ms = 0
members_max = 4
[[channels]]
pattern = "pb.*"
distribution = "bridged"
presence = "full"
join_leave = true
presence_interval_ms = 0
members_max = 4
[[channels]]
pattern = "cn.*"
history_size = 10
presence = "count"
[[channels]]
pattern = "cb.*"
distribution = "bridged"
presence = "count"
"#;

fn node(redis: &RedisServer) -> TestServer {
    node_of(&format!("{RULES}{ISSUER}"), redis, &[])
}

fn come(node: &TestServer, user: &str, info: Value) -> Client {
    let target = format!("/ws?token={}", token(user, 600, json!({"info": info})));
    let mut client = Client::connect(node.public, &target);
    let greeting = client.receive();
    assert_eq!(greeting["user"], user, "{greeting}");
    client
}

/// Users and connections of a channel, as a node shows them.
fn presence(node: &TestServer, channel: &str) -> (Vec<String>, u64, u64) {
    let page = node.get(&format!("/api/presence?channel={channel}"));
    let users = page["users"].as_array().into_iter().flatten();
    let users = users.map(|own| own["user"].as_str().unwrap().to_owned()).collect();
    (users, page["count"].as_u64().unwrap(), page["connections"].as_u64().unwrap())
}

fn wait_presence(nodes: &[TestServer], channel: &str, users: &[&str], connections: u64) {
    let expected =
        (users.iter().map(|own| (*own).to_owned()).collect(), users.len() as u64, connections);
    for node in nodes {
        wait_until(channel, || presence(node, channel), |page| *page == expected);
    }
}

/// The next event of a kind.
fn hear(client: &mut Client, kind: &str) -> Value {
    let event = client.receive();
    assert_eq!(event["type"], kind, "{event}");
    event
}

#[test]
fn all_nodes_show_who_is_on_any_of_them_and_a_user_comes_and_goes_once() {
    let redis = RedisServer::start(&[]);
    let nodes = [node(&redis), node(&redis), node(&redis)];
    for channel in ["pn.1", "pb.1"] {
        let mut ann = come(&nodes[0], "ann", json!(1));
        ann.subscribe(channel);
        // Also the node that nobody is connected to shows it, as soon as it is asked.
        assert_eq!(presence(&nodes[2], channel), (vec!["ann".to_owned()], 1, 1));
        let mut bob = come(&nodes[1], "bob", json!(2));
        bob.subscribe(channel);
        let joined = hear(&mut ann, "join");
        assert_eq!(joined["users"], json!([{"user": "bob", "info": 2}]), "{joined}");
        wait_presence(&nodes, channel, &["ann", "bob"], 2);
        // She was there before him: he is not told that she comes.
        let page = bob.ask(json!({"type": "presence", "id": 1, "channel": channel}));
        assert_eq!(page["count"], 2, "{page}");
        assert_eq!(page["users"], json!([{"user": "ann", "info": 1}, {"user": "bob", "info": 2}]));
        // A second connection, to another node: nobody has come.
        let mut twin = come(&nodes[1], "ann", json!(1));
        twin.subscribe(channel);
        wait_presence(&nodes, channel, &["ann", "bob"], 3);
        drop(twin);
        wait_presence(&nodes, channel, &["ann", "bob"], 2);
        drop(bob);
        let left = hear(&mut ann, "leave");
        assert_eq!(left["users"], json!([{"user": "bob"}]), "{left}");
        wait_presence(&nodes, channel, &["ann"], 1);
        // As many as may be are on all nodes together.
        let mut more: Vec<Client> =
            ["a", "b", "c"].map(|user| come(&nodes[1], user, json!(0))).into();
        more.iter_mut().for_each(|client| drop(client.subscribe(channel)));
        wait_presence(&nodes, channel, &["a", "ann", "b", "c"], 4);
        let mut fifth = come(&nodes[2], "d", json!(0));
        let refused = fifth.ask(json!({"type": "subscribe", "id": 1, "channel": channel}));
        assert_eq!(refused["code"], "channel_full", "{refused}");
    }
    for channel in ["cn.1", "cb.1"] {
        let mut all: Vec<Client> = (0..5).map(|at| come(&nodes[at % 2], "ann", json!(0))).collect();
        all.iter_mut().for_each(|client| drop(client.subscribe(channel)));
        for node in &nodes {
            wait_until(channel, || presence(node, channel), |page| *page == (vec![], 5, 5));
        }
        all.truncate(2);
        for node in &nodes {
            wait_until(channel, || presence(node, channel), |page| *page == (vec![], 2, 2));
        }
    }
}

#[test]
fn more_than_one_message_holds_is_shown_whole() {
    let redis = RedisServer::start(&[]);
    let a = node_of(&format!("{}{ISSUER}", RULES.replace("members_max = 4", "")), &redis, &[]);
    let mut all: Vec<Client> = (0..600)
        .map(|number| come(&a, &format!("user{number:03}"), json!("x".repeat(200))))
        .collect();
    all.iter_mut().for_each(|client| client.send(json!({"type": "subscribe", "channel": "pb.1"})));
    let count = |node: &TestServer| presence(node, "pb.1");
    wait_until("all", || count(&a), |page| page.2 == 600);
    let b = node_of(&format!("{}{ISSUER}", RULES.replace("members_max = 4", "")), &redis, &[]);
    assert_eq!(count(&b), count(&a));
    all.truncate(3);
    wait_until("few", || count(&b), |page| page.2 == 3);
}

#[test]
fn who_is_there_is_right_again_after_redis_was_away() {
    let mut redis = RedisServer::start(&[]);
    let mut nodes = vec![node(&redis), node(&redis)];
    for channel in ["pn.1", "pb.1", "cn.1"] {
        come_and_stay(&nodes, channel);
    }
    let mut ann = come(&nodes[0], "ann", json!(1));
    let mut bob = come(&nodes[1], "bob", json!(1));
    for channel in ["pn.1", "pb.1"] {
        ann.subscribe(channel);
        bob.subscribe(channel);
        hear(&mut ann, "join");
        wait_presence(&nodes, channel, &["ann", "bob"], 2);
    }
    redis.kill();
    for node in &nodes {
        wait_ready(node, "redis away");
    }
    drop(bob);
    let mut cleo = come(&nodes[1], "cleo", json!(1));
    cleo.subscribe("pb.1");
    redis.spawn();
    for node in &nodes {
        wait_ready(node, "ready");
    }
    wait_presence(&nodes, "pb.1", &["ann", "cleo"], 2);
    wait_presence(&nodes, "pn.1", &["ann"], 1);
    // A node that ends has nobody any more.
    let last = nodes.pop().unwrap();
    drop(last);
    wait_presence(&nodes, "pb.1", &["ann"], 1);
}

/// Somebody who has come and gone: the home stays for a while.
fn come_and_stay(nodes: &[TestServer], channel: &str) {
    come(&nodes[0], "eve", json!(1)).subscribe(channel);
}
