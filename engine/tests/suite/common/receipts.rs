//! Publications that those on three nodes are asked to confirm.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::process::NodeProcess;
use super::tokens::token;
use super::{Client, TestServer, wait_until};

/// `sn.*` is numbered and `sb.*` bridged.
pub const RULES: &str = r#"
[[channels]]
pattern = "sn.*"
publish = "anyone"
sender = true
confirm = true
presence = "full"
history_size = 100
[[channels]]
pattern = "sb.*"
publish = "anyone"
sender = true
confirm = true
presence = "full"
distribution = "bridged"
"#;

/// A connection of a user.
fn come(node: SocketAddr, user: &str) -> Client {
    let token = token(user, 600, json!({}));
    let mut client = Client::connect(node, &format!("/ws?token={token}"));
    assert_eq!(client.receive()["user"], user);
    client
}

/// The same on a channel.
fn come_to(node: SocketAddr, user: &str, channel: &str) -> Client {
    let mut client = come(node, user);
    client.subscribe(channel);
    client
}

/// Publishes; what is said of it.
fn publish(client: &mut Client, channel: &str, confirm_ms: u32, key: &str) -> Value {
    let reply = client.ask(json!({
        "type": "publish", "id": 1, "channel": channel, "data": key, "echo": false,
        "confirm_ms": confirm_ms, "idempotency_key": key,
    }));
    assert_eq!(reply["type"], "published", "{reply}");
    reply
}

/// Somebody gets what others are asked to confirm; where it stands there.
fn get(client: &mut Client) -> Value {
    let message = client.receive();
    assert_eq!((&message["confirm"], &message["from"]), (&json!(true), &json!("ann")), "{message}");
    message["offset"].clone()
}

fn confirm(client: &mut Client, channel: &str, offset: &Value) -> bool {
    let command = json!({"type": "confirm", "id": 2, "channel": channel, "offset": offset});
    let reply = client.ask(command);
    assert_eq!((&reply["type"], &reply["offset"]), (&json!("confirmed"), offset), "{reply}");
    reply["in_time"].as_bool().unwrap()
}

/// Who has confirmed and who has not, as the publisher is told next.
fn receipts(client: &mut Client, published: &Value) -> (Vec<String>, Vec<String>) {
    let told = client.receive();
    assert_eq!(told["type"], "receipts", "{told}");
    for key in ["channel", "epoch", "offset"] {
        assert_eq!(told[key], published[key], "{told} {published}");
    }
    let users = |key: &str| {
        let all = told[key].as_array().unwrap().iter();
        all.map(|own| own["user"].as_str().unwrap().to_owned()).collect()
    };
    (users("confirmed"), users("missing"))
}

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

/// All of it, on three nodes.
pub fn whoever_is_on_any_node_is_asked_once(nodes: &[TestServer]) {
    for (number, kind) in ["sn", "sb", "sn", "sb"].iter().enumerate() {
        let channel = &format!("{kind}.{number}");
        // Whoever was told to be subscribed is asked, however little other nodes have heard of it.
        let mut bob = come_to(nodes[1].public, "bob", channel);
        // Somebody on no channel of that node, which has it not yet, publishes there first.
        let mut ann = come(nodes[0].public, "ann");
        let published = publish(&mut ann, channel, 60_000, "first");
        let offset = get(&mut bob);
        assert!(confirm(&mut bob, channel, &offset));
        assert_eq!(receipts(&mut ann, &published), (names(&["bob"]), vec![]));

        let mut cleo = come_to(nodes[2].public, "cleo", channel);
        let mut bob_elsewhere = come_to(nodes[2].public, "bob", channel);
        let mut ann_elsewhere = come_to(nodes[1].public, "ann", channel);
        let mut dan = come_to(nodes[0].public, "dan", channel);
        let published = publish(&mut ann, channel, 60_000, "second");
        let mut others = [&mut bob, &mut bob_elsewhere, &mut cleo, &mut ann_elsewhere, &mut dan];
        let offsets: Vec<Value> = others.iter_mut().map(|own| get(own)).collect();
        for (place, (client, offset)) in others.iter_mut().zip(&offsets).enumerate() {
            // A user once, and nobody confirms to oneself.
            assert_eq!(confirm(client, channel, offset), [true, false, true, false, true][place]);
        }
        let told = receipts(&mut ann, &published);
        assert_eq!(told, (names(&["bob", "cleo", "dan"]), vec![]), "{channel}");
        assert!(!confirm(&mut cleo, channel, &offsets[2]), "it is over");

        // What comes again is told of as the first time, and not asked again.
        let again = publish(&mut ann, channel, 60_000, "second");
        assert_eq!((&again["duplicate"], &again["offset"]), (&json!(true), &published["offset"]));

        // Who does not confirm is missing, and so is who is lost.
        drop(bob_elsewhere);
        let published = publish(&mut ann, channel, 3000, "third");
        let offset = get(&mut cleo);
        get(&mut bob);
        drop(bob);
        assert!(confirm(&mut cleo, channel, &offset));
        let told = receipts(&mut ann, &published);
        assert_eq!(told, (names(&["cleo"]), names(&["bob", "dan"])), "{channel}");
        assert!(!confirm(&mut cleo, channel, &offset), "it is over");
    }
}

/// Somebody who is asked on one node recovers the publication on another one, and confirms it there.
pub fn who_recovers_on_another_node_confirms_there(nodes: &[TestServer]) {
    for number in 0..4 {
        let channel = &format!("sn.back.{number}");
        let mut ann = come_to(nodes[0].public, "ann", channel);
        let mut bob = come_to(nodes[1].public, "bob", channel);
        let published = publish(&mut ann, channel, 60_000, "x");
        let offset = get(&mut bob);
        drop(bob);
        // Here the channel was not known before, or it was, and has heard of it.
        let stays = (number % 2 == 1).then(|| come_to(nodes[2].public, "ann", channel));
        let mut bob = come(nodes[2].public, "bob");
        let recover = json!({"epoch": published["epoch"], "offset": offset.as_u64().unwrap() - 1});
        let command = json!({"type": "subscribe", "id": 3, "channel": channel, "recover": recover});
        let subscribed = bob.ask(command);
        assert_eq!(subscribed["recovered"], true, "{subscribed}");
        assert_eq!(get(&mut bob), offset);
        assert!(confirm(&mut bob, channel, &offset), "{number}");
        assert_eq!(receipts(&mut ann, &published), (names(&["bob"]), vec![]));
        drop(stays);
    }
}

/// Waits until a node shows so many on a channel.
fn wait_count(node: &TestServer, channel: &str, expected: u64) {
    let count = || node.get(&format!("/api/presence?channel={channel}"))["count"].clone();
    wait_until("presence", count, |count| *count == expected);
}

/// Who was on a node that is killed is missing.
pub fn who_is_killed_with_a_node_is_missing(node: &TestServer, mut dying: [NodeProcess; 2]) {
    for (kind, dying) in ["sn.lost", "sb.lost"].iter().zip(&mut dying) {
        let mut ann = come_to(node.public, "ann", kind);
        let (mut bob, mut cleo) =
            (come_to(dying.public, "bob", kind), come_to(node.public, "cleo", kind));
        wait_count(node, kind, 3);
        let published = publish(&mut ann, kind, 4000, "x");
        get(&mut bob);
        let offset = get(&mut cleo);
        dying.kill();
        assert!(confirm(&mut cleo, kind, &offset));
        assert_eq!(receipts(&mut ann, &published), (names(&["cleo"]), names(&["bob"])), "{kind}");
    }
}

/// More than may be asked, of whom the publisher's node, where at most two may be, has none.
pub fn whoever_is_on_any_node_counts(nodes: &[TestServer]) {
    let channel = "sn.many";
    let all: Vec<Client> = ["bob", "cleo", "dan"]
        .iter()
        .zip(nodes.iter().skip(1).cycle())
        .map(|(user, node)| come_to(node.public, user, channel))
        .collect();
    wait_count(&nodes[0], channel, 3);
    let mut ann = come(nodes[0].public, "ann");
    let refused = ann.ask(json!({
        "type": "publish", "id": 1, "channel": channel, "data": 1, "confirm_ms": 60_000,
    }));
    assert_eq!(refused["code"], "limit_reached", "{refused}");
    assert_eq!(refused["message"], "at most 2 receivers who are asked to confirm are allowed");
    let history = ann.ask(json!({"type": "history", "id": 3, "channel": channel}));
    assert_eq!(history["publications"], json!([]), "nothing was published");
    drop(all);
}
