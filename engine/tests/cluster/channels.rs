//! Rules of channels that the registry holds, and nodes fetch.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::common::{Client, http, wait_until};
use crate::fleet::{figure, nodes, process, registry, start, toml, wait_members};
use crate::process::{KEY, Registry};

/// Puts an entry into the list; the version that it has then.
fn put(registry: &Registry, entry: &Value) -> u64 {
    let (status, told) = registry.ask("PUT", "/v1/channels", &entry.to_string());
    assert_eq!(status, 200, "{told}");
    told["version"].as_u64().unwrap()
}

/// Waits until nodes go by a list of this version, with so many rules.
fn wait_rules(nodes: &[SocketAddr], version: u64, count: u64) {
    for &node in nodes {
        let look = || ["rules_version", "rules", "rules_set_aside"].map(|name| figure(node, name));
        wait_until("rules", look, |seen| *seen == [version, count, 0]);
    }
}

/// What comes until somebody says that the channel goes on in another life; its epoch.
fn renewed(client: &mut Client) -> Value {
    let gap = client.receive();
    assert_eq!((&gap["type"], &gap["channel"]), (&json!("gap"), &json!("b.live")), "{gap}");
    gap["epoch"].clone()
}

#[test]
fn a_rule_holds_on_all_nodes_while_they_run_and_is_changed_and_removed() {
    let registry = registry();
    let nodes = nodes(&registry, 2);
    let all: Vec<SocketAddr> = nodes.iter().map(|node| node.internal).collect();
    let mut readers: Vec<Client> = nodes.iter().map(|node| node.client()).collect();
    let before: Vec<Value> =
        readers.iter_mut().map(|own| own.subscribe("b.live")["epoch"].clone()).collect();
    assert_ne!(before[0], before[1], "each node has a life of its own");
    // A name alone, as other systems keep them, says nothing; a rule for another node neither.
    put(&registry, &json!({"name": "b.live"}));
    put(&registry, &json!({"name": "n.*", "allowed_nodes": ["node-7"], "rule": {}}));
    let rule = json!({"publish": "anyone", "history_size": 10});
    let version = put(&registry, &json!({"name": "b.live", "rule": rule}));
    wait_rules(&all, version, 1);
    // Who is there is told that somebody numbers the channel for all, and goes on.
    let epochs: Vec<Value> = readers.iter_mut().map(renewed).collect();
    assert_eq!(epochs[0], epochs[1]);
    for n in 1..=4 {
        let published = nodes[n % 2].publish("b.live", json!(n));
        let expected = (&epochs[0], &json!(n));
        assert_eq!((&published["epoch"], &published["offset"]), expected, "{published}");
        readers.iter_mut().for_each(|own| assert_eq!(own.receive()["data"], n));
    }
    for node in &nodes {
        let page = node.get("/api/history?channel=b.live");
        assert_eq!(page["publications"].as_array().unwrap().len(), 4, "{page}");
    }
    let rule = json!({"subscribe": "nobody", "history_size": 10});
    let version = put(&registry, &json!({"name": "b.live", "rule": rule}));
    wait_rules(&all, version, 1);
    readers.iter_mut().for_each(|own| assert_eq!(own.receive()["type"], "unsubscribed"));
    let (_, told) = registry.ask("DELETE", "/v1/channels?name=b.live", "");
    wait_rules(&all, told["version"].as_u64().unwrap(), 0);
    // It is bridged again: what one node publishes comes to the other, with offsets of that.
    readers.iter_mut().for_each(|own| drop(own.subscribe("b.live")));
    nodes[0].publish("b.live", json!("again"));
    for own in &mut readers {
        // Whoever had subscribed before its shard looked at the channel is told of another life first.
        let told = std::iter::repeat_with(|| own.receive()).find(|told| told["type"] != "gap");
        assert_eq!(told.unwrap()["data"], "again");
    }
}

#[test]
fn whoever_reads_a_channel_is_told_that_it_is_numbered_for_all_no_more() {
    let registry = registry();
    let nodes = nodes(&registry, 2);
    let all: Vec<SocketAddr> = nodes.iter().map(|node| node.internal).collect();
    let rule = json!({"publish": "anyone", "history_size": 10});
    let version = put(&registry, &json!({"name": "b.live", "rule": rule}));
    wait_rules(&all, version, 1);
    let mut readers: Vec<Client> = nodes.iter().map(|node| node.client()).collect();
    let told: Vec<Value> = readers.iter_mut().map(|own| own.subscribe("b.live")).collect();
    assert_eq!(told[0]["epoch"], told[1]["epoch"]);
    nodes[0].publish("b.live", json!(1));
    readers.iter_mut().for_each(|own| assert_eq!(own.receive()["data"], 1));
    let version = put(&registry, &json!({"name": "b.live", "rule": {"publish": "anyone"}}));
    wait_rules(&all, version, 1);
    let epochs: Vec<Value> = readers.iter_mut().map(renewed).collect();
    assert_ne!(epochs[0], epochs[1]);
    for (node, epoch) in nodes.iter().zip(&epochs) {
        let published = node.publish("b.live", json!(2));
        assert_eq!(&published["epoch"], epoch, "{published}");
        readers.iter_mut().for_each(|own| assert_eq!(own.receive()["data"], 2));
    }
}

#[test]
fn wrong_rules_are_refused_by_the_registry_or_set_aside_by_nodes() {
    let registry = registry();
    let nodes = nodes(&registry, 1);
    let node = &nodes[0];
    let entry = |rule: Value| json!({"name": "b.live", "rule": rule});
    let wrong = entry(json!({"history_size": -1})).to_string();
    let (status, told) = registry.ask("PUT", "/v1/channels", &wrong);
    let message = told["message"].as_str().unwrap();
    assert!(status == 400 && message.contains("history_size = -1: allowed are 0 to"), "{told}");
    let version = put(&registry, &entry(json!({"history_size": 10})));
    wait_rules(&[node.internal], version, 1);
    // Nor where a rule goes with no other one that is there.
    let beside = json!({"name": "b.l*", "rule": {}});
    let version = put(&registry, &beside);
    let (status, told) =
        registry.ask("PUT", "/v1/channels", r#"{"name":"b.l**","rule":{"history_size":1}}"#);
    assert!(status == 400 && told.to_string().contains("would never be reached"), "{told}");
    wait_rules(&[node.internal], version, 2);
    registry.ask("DELETE", "/v1/channels?name=b.l*", "");
    let version = put(&registry, &entry(json!({"history_size": 11})));
    wait_rules(&[node.internal], version, 1);
    // Nothing is wrong with it by itself, but this node has nobody to tell.
    put(&registry, &entry(json!({"presence": "full", "presence_hook": true})));
    let look =
        || ["rules_set_aside", "rules_refused_total"].map(|name| figure(node.internal, name));
    wait_until("set aside", look, |seen| *seen == [1, 1]);
    let held = ["rules_version", "rules"].map(|name| figure(node.internal, name));
    assert_eq!(held, [version, 1]);
    node.publish("b.live", json!(1));
    let page = node.get("/api/history?channel=b.live");
    assert_eq!(page["publications"].as_array().unwrap().len(), 1, "{page}");
    let version = put(&registry, &entry(json!({"history_size": 0})));
    wait_rules(&[node.internal], version, 1);
    assert_eq!(figure(node.internal, "rules_refused_total"), 1);
}

#[test]
fn rules_stay_while_the_registry_is_away_and_where_it_has_lost_them() {
    let mut registry = registry();
    let nodes = nodes(&registry, 2);
    let all: Vec<SocketAddr> = nodes.iter().map(|node| node.internal).collect();
    let rule = json!({"publish": "anyone", "history_size": 10});
    let version = put(&registry, &json!({"name": "b.live", "rule": rule}));
    wait_rules(&all, version, 1);
    // Who starts now has them before it serves anybody.
    let third = start(&registry, "node-2");
    wait_rules(&[third.internal], version, 1);
    registry.kill();
    // Who starts while nobody can say them has its own, and fetches them later.
    let fourth = start(&registry, "node-3");
    assert_eq!(figure(fourth.internal, "rules"), 0);
    registry.launch();
    wait_rules(&[all[0], all[1], third.internal, fourth.internal], version, 1);
    registry.kill();
    for name in ["registry.db", "registry.db-wal", "registry.db-shm"] {
        let _ = std::fs::remove_file(registry.path(name));
    }
    registry.launch();
    // It knows all of them again, and none has taken its empty list.
    let list = registry.wait("/v1/nodes", |list| list["nodes"].as_array().unwrap().len() == 4);
    let beats = |list: &Value| -> Vec<u64> {
        let nodes = list["nodes"].as_array().unwrap();
        nodes.iter().map(|node| node["last_seen_ms"].as_u64().unwrap()).collect()
    };
    let then = beats(&list);
    registry.wait("/v1/nodes", |now| {
        now["nodes"].as_array().unwrap().len() == 4
            && beats(now).iter().zip(&then).all(|(now, then)| now > then)
    });
    wait_rules(&all, version, 1);
    let version = put(&registry, &json!({"name": "b.other", "rule": {}}));
    wait_rules(&all, version, 1);
    assert_eq!(nodes[0].publish("b.live", json!(1))["offset"], 1);
}

#[test]
fn what_is_read_again_of_a_nodes_own_file_keeps_the_rules_of_the_registry() {
    let registry = registry();
    let node = process(&registry, "node-0");
    wait_members(node.internal, 1);
    let version = put(&registry, &json!({"name": "m.*", "rule": {"history_size": 10}}));
    wait_rules(&[node.internal], version, 1);
    let reloads = |outcome: &str| {
        let (_, text) = http(node.internal, "GET", "/metrics", "", "");
        let line = format!("ringfeed_reloads_total{{outcome=\"{outcome}\"}} ");
        let count = text.lines().find_map(|own| own.strip_prefix(&line).map(str::to_owned));
        count.unwrap().parse::<f64>().unwrap() as u64
    };
    let kept = |channel: &str| {
        let (status, _) = node.publish(channel, &json!(channel));
        assert_eq!(status, 200, "{channel}");
        let target = format!("/api/history?channel={channel}");
        let (_, page) = http(node.internal, "GET", &target, "", "");
        let page: Value = serde_json::from_str(&page).unwrap();
        page["publications"].as_array().map_or(0, Vec::len)
    };
    let more = "[[channels]]\npattern = \"o.*\"\nhistory_size = 5\n";
    node.reload(&format!("{}{more}", toml(KEY, "")));
    wait_until("reloads", || reloads("taken"), |count| *count == 1);
    assert_eq!((kept("m.1"), kept("o.1"), figure(node.internal, "rules")), (1, 1, 1));
    node.reload(&toml(KEY, "").replace("[cluster]", "[cluster]\nchannels = false"));
    wait_until("reloads", || reloads("taken"), |count| *count == 2);
    assert_eq!(figure(node.internal, "rules"), 0);
    node.reload(&toml(KEY, ""));
    wait_until("reloads", || reloads("taken"), |count| *count == 3);
    assert_eq!((kept("m.2"), figure(node.internal, "rules")), (1, 1));
}
