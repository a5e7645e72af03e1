//! Nodes that die, freeze and are cut off, and a registry that is away.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::process::NodeProcess;
use crate::common::{Client, PATIENCE, wait_until};
use crate::fleet::{figure, nodes, process, registry, start, wait_members, wait_ready};

/// A channel that this one of the nodes keeps, found by what it keeps more of once it is published to.
fn kept_by(nodes: &[NodeProcess], at: usize) -> String {
    (0..1000)
        .map(|n| format!("n.kept.{n}"))
        .find(|channel| {
            let before = figure(nodes[at].internal, "channels");
            assert_eq!(nodes[at].publish(channel, &json!(0)).0, 200);
            // The figure is there before the answer is.
            figure(nodes[at].internal, "channels") > before
        })
        .expect("one in three is")
}

/// Publishes until it is taken.
fn publish(node: &NodeProcess, channel: &str, data: &Value) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, answer) = node.publish(channel, data);
        if status == 200 {
            return answer;
        }
        assert_eq!(status, 503, "{answer}");
        assert!(Instant::now() < deadline, "{answer}");
    }
}

fn fleet(count: usize) -> (crate::process::Registry, Vec<NodeProcess>) {
    let registry = registry();
    let nodes: Vec<NodeProcess> =
        (0..count).map(|n| process(&registry, &format!("node-{n}"))).collect();
    nodes.iter().for_each(|node| wait_members(node.internal, count));
    (registry, nodes)
}

/// What a client was told, by epoch and offset.
#[derive(Default)]
struct Seen {
    epoch: Value,
    all: BTreeMap<(String, u64), Value>,
}

impl Seen {
    /// Reads until this comes.
    fn read_to(&mut self, client: &mut Client, last: &Value) {
        loop {
            let told = client.receive();
            match told["type"].as_str() {
                Some("message") => {
                    let at = (self.epoch.to_string(), told["offset"].as_u64().unwrap());
                    self.all.insert(at, told["data"].clone());
                    if told["data"] == *last {
                        return;
                    }
                }
                Some("gap") => self.epoch = told["epoch"].clone(),
                _ => {}
            }
        }
    }
}

#[test]
fn the_channels_of_a_node_that_dies_begin_another_life_and_their_subscribers_are_told() {
    let (_registry, mut nodes) = fleet(3);
    let lost = kept_by(&nodes, 0);
    let stays = kept_by(&nodes, 1);
    let mut reader = nodes[2].client();
    let before = reader.subscribe(&lost);
    let steady = reader.subscribe(&stays);
    nodes[0].kill();
    let published = publish(&nodes[1], &lost, &json!("after"));
    assert_ne!(published["epoch"], before["epoch"]);
    let gap = reader.receive();
    assert_eq!((&gap["type"], &gap["channel"]), (&json!("gap"), &json!(lost)), "{gap}");
    assert_eq!(gap["epoch"], published["epoch"], "{gap}");
    assert_eq!(reader.receive()["data"], "after");
    let published = publish(&nodes[1], &stays, &json!("as before"));
    assert_eq!(published["epoch"], steady["epoch"]);
    assert_eq!(reader.receive()["data"], "as before");
    for node in &nodes[1..] {
        wait_members(node.internal, 2);
    }
}

#[test]
fn a_node_that_freezes_keeps_nothing_as_it_goes_on_and_joins_again() {
    let (_registry, nodes) = fleet(3);
    let channel = kept_by(&nodes, 0);
    let (mut frozen, mut other) = (nodes[0].client(), nodes[1].client());
    let (mut seen, mut seen_there) = (Seen::default(), Seen::default());
    seen.epoch = frozen.subscribe(&channel)["epoch"].clone();
    seen_there.epoch = other.subscribe(&channel)["epoch"].clone();
    publish(&nodes[1], &channel, &json!("before"));
    nodes[0].signal("STOP");
    publish(&nodes[2], &channel, &json!("meanwhile"));
    seen_there.read_to(&mut other, &json!("meanwhile"));
    nodes[0].signal("CONT");
    // At once, before it can know.
    let _ = nodes[0].publish(&channel, &json!("from who was away"));
    for node in &nodes {
        wait_members(node.internal, 3);
    }
    publish(&nodes[0], &channel, &json!("together"));
    seen.read_to(&mut frozen, &json!("together"));
    seen_there.read_to(&mut other, &json!("together"));
    assert_eq!(seen.epoch, seen_there.epoch);
    for (at, data) in &seen.all {
        let there = seen_there.all.get(at);
        assert!(there.is_none_or(|there| there == data), "{at:?}: {data} and {there:?}");
    }
}

#[test]
fn without_the_registry_nodes_go_on_that_know_each_other_and_it_comes_back_with_what_it_had() {
    let mut registry = registry();
    let nodes = nodes(&registry, 3);
    let view = figure(nodes[0].internal, "view");
    registry.kill();
    let mut reader = nodes[2].client();
    let told = reader.subscribe("n.1");
    // Longer than the registry would wait for any of them.
    let until = Instant::now() + Duration::from_secs(4);
    let mut n = 0;
    while Instant::now() < until {
        n += 1;
        let published = nodes[n % 3].publish("n.1", json!(n));
        assert_eq!(published["epoch"], told["epoch"], "{published}");
        assert_eq!(reader.receive()["data"], n);
    }
    registry.launch();
    let fourth = start(&registry, "node-3");
    wait_members(fourth.internal, 4);
    for node in &nodes {
        wait_members(node.internal, 4);
    }
    assert!(figure(nodes[0].internal, "view") > view);
    let published = fourth.publish("n.2", json!("here, too"));
    assert_eq!(published["offset"], 1, "{published}");
}

#[test]
fn a_node_alone_without_the_registry_says_that_it_is_and_refuses_what_it_must_not_number() {
    let mut registry = registry();
    let mut nodes = nodes(&registry, 2);
    registry.kill();
    drop(nodes.pop());
    let node = &nodes[0];
    let look = || node.http("GET", "/ready", "");
    let told = wait_until("/ready", look, |(status, _)| *status == 503);
    assert!(told.1.contains("cut off from the other nodes"), "{told:?}");
    let body = json!({"channel": "n.1", "data": 1}).to_string();
    let (status, body) = node.http("POST", "/api/publish", &body);
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("cut off from the others"), "{body}");
    // What nobody numbers goes on.
    let mut reader = node.client();
    reader.subscribe("b.1");
    node.publish("b.1", json!("still"));
    assert_eq!(reader.receive()["data"], "still");
}

#[test]
fn nodes_are_started_again_one_after_the_other_and_everything_comes_once_in_the_same_life() {
    let (registry, mut nodes) = fleet(3);
    let channels: Vec<String> = (0..9).map(|n| format!("n.{n}")).collect();
    let mut reader = nodes[2].client();
    for channel in &channels {
        reader.subscribe(channel);
    }
    let mut number = 0;
    let mut publish_some = |to: &NodeProcess| {
        for channel in &channels {
            number += 1;
            publish(to, channel, &json!(number));
        }
    };
    for at in [0, 1] {
        publish_some(&nodes[2]);
        nodes[at].signal("TERM");
        publish_some(&nodes[2]);
        nodes[at].wait();
        publish_some(&nodes[2]);
        nodes[at] = process(&registry, &format!("node-{at}"));
        publish_some(&nodes[2]);
        nodes.iter().for_each(|node| wait_ready(node, 3));
        publish_some(&nodes[at]);
    }
    let mut newest: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for _ in 0..number {
        let told = reader.receive();
        assert_eq!(told["type"], "message", "nothing is missing: {told}");
        let channel = told["channel"].as_str().unwrap().to_owned();
        let (offset, data) = (told["offset"].as_u64().unwrap(), told["data"].as_u64().unwrap());
        let (before, earlier) = newest.insert(channel, (offset, data)).unwrap_or((0, 0));
        assert!(offset == before + 1 && data > earlier, "{told} behind {before}");
    }
}

#[test]
fn a_node_that_joins_goes_on_with_what_others_have_kept() {
    let registry = registry();
    let mut nodes = vec![process(&registry, "node-0")];
    wait_ready(&nodes[0], 1);
    let channels: Vec<String> = (0..12).map(|n| format!("n.{n}")).collect();
    let mut epochs = Vec::new();
    for channel in &channels {
        epochs.push(publish(&nodes[0], channel, &json!("one"))["epoch"].clone());
        publish(&nodes[0], channel, &json!("two"));
    }
    nodes.push(process(&registry, "node-1"));
    nodes.iter().for_each(|node| wait_ready(node, 2));
    assert!(figure(nodes[1].internal, "channels") > 0);
    for (channel, epoch) in channels.iter().zip(&epochs) {
        let again = publish(&nodes[1], channel, &json!("two"));
        assert_eq!((&again["offset"], &again["duplicate"]), (&json!(2), &json!(true)), "{again}");
        let third = publish(&nodes[1], channel, &json!("three"));
        assert_eq!((&third["offset"], &third["epoch"]), (&json!(3), epoch), "{third}");
        let mut client = nodes[1].client();
        let recover = json!({"epoch": epoch, "offset": 0});
        let told = client
            .ask(json!({"type": "subscribe", "id": 1, "channel": channel, "recover": recover}));
        assert_eq!(told["recovered"], true, "{told}");
        for data in ["one", "two", "three"] {
            assert_eq!(client.receive()["data"], data);
        }
    }
}
