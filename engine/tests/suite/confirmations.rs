//! Publishers who ask those on a channel to confirm, and are told who has.

use serde_json::{Value, json};

use super::common::tokens::{ISSUER, token};
use super::common::{Client, TestServer};

const RULES: &str = r#"
[[channels]]
pattern = "sure.*"
publish = "anyone"
sender = true
confirm = true
history_size = 10
[[channels]]
pattern = "*"
publish = "anyone"
sender = true
"#;

fn start(flags: &[&str]) -> TestServer {
    let mut all = vec!["auth.anonymous=true"];
    all.extend(flags);
    TestServer::start(&format!("{RULES}{ISSUER}"), &all)
}

/// A connection of a user on a channel.
fn come(server: &TestServer, user: &str, channel: &str) -> Client {
    let token = token(user, 600, json!({}));
    let mut client = Client::connect(server.public, &format!("/ws?token={token}"));
    assert_eq!(client.receive()["user"], user);
    client.subscribe(channel);
    client
}

/// Publishes and returns the offset.
fn publish(client: &mut Client, channel: &str, confirm_ms: u32) -> u64 {
    let reply = client.ask(json!({
        "type": "publish", "id": 1, "channel": channel, "data": "x", "echo": false, "confirm_ms": confirm_ms,
    }));
    assert_eq!(reply["type"], "published", "{reply}");
    reply["offset"].as_u64().unwrap()
}

fn confirm(client: &mut Client, channel: &str, offset: u64) -> Value {
    client.ask(json!({"type": "confirm", "id": 2, "channel": channel, "offset": offset}))
}

#[test]
fn who_has_confirmed_is_told_when_all_have() {
    let server = start(&[]);
    let mut ann = come(&server, "ann", "sure.a");
    let mut other_ann = come(&server, "ann", "sure.a");
    let (mut bob, mut other_bob) = (come(&server, "bob", "sure.a"), come(&server, "bob", "sure.a"));
    let mut stranger = server.client();
    let epoch = stranger.subscribe("sure.a")["epoch"].clone();
    let offset = publish(&mut ann, "sure.a", 60_000);
    for client in [&mut other_ann, &mut bob, &mut other_bob, &mut stranger] {
        let message = client.receive();
        assert_eq!((&message["confirm"], &message["from"]), (&json!(true), &json!("ann")));
        assert_eq!(message["offset"], offset);
    }
    // What has come of another life is none of this one, …
    let mut command = json!({"type": "confirm", "id": 2, "channel": "sure.a", "offset": offset});
    command["epoch"] = json!("00c0ffee00c0ffee");
    assert_eq!(bob.ask(command.clone())["in_time"], false);
    // … whatever is to be an epoch says so, …
    command["epoch"] = json!("00c0ffee");
    assert_eq!(bob.ask(command)["code"], "bad_command");
    // … and who says nothing of it means the one that there is.
    let reply = confirm(&mut bob, "sure.a", offset);
    let told = json!({"type": "confirmed", "id": 2, "channel": "sure.a", "offset": offset, "in_time": true});
    assert_eq!(reply, told);
    // Once for a user, and nobody confirms to oneself.
    for client in [&mut other_bob, &mut other_ann] {
        assert_eq!(confirm(client, "sure.a", offset)["in_time"], false);
    }
    stranger
        .send(json!({"type": "confirm", "channel": "sure.a", "epoch": epoch, "offset": offset}));
    let receipts = ann.receive();
    assert_eq!(receipts["type"], "receipts", "{receipts}");
    assert_eq!((&receipts["channel"], &receipts["offset"]), (&json!("sure.a"), &json!(offset)));
    assert_eq!(receipts["confirmed"][0], json!({"user": "bob"}));
    assert!(receipts["confirmed"][1]["connection"].is_string(), "{receipts}");
    assert_eq!(receipts["missing"], json!([]));
    assert_eq!(confirm(&mut stranger, "sure.a", offset)["in_time"], false, "it is over");
}

#[test]
fn who_has_not_in_time_is_told_and_who_comes_back_may_still_confirm() {
    let server = start(&["limits.confirm_ms_max=700"]);
    let mut ann = come(&server, "ann", "sure.a");
    let bob = come(&server, "bob", "sure.a");
    let mut cleo = come(&server, "cleo", "sure.a");
    // As long as the server lets it.
    let offset = publish(&mut ann, "sure.a", 3_600_000);
    drop(bob);
    assert_eq!(confirm_received(&mut cleo, offset)["in_time"], true);
    let receipts = ann.receive();
    assert_eq!(receipts["confirmed"], json!([{"user": "cleo"}]), "{receipts}");
    assert_eq!(receipts["missing"], json!([{"user": "bob"}]));

    let server = start(&[]);
    let (mut ann, mut bob) = (come(&server, "ann", "sure.a"), come(&server, "bob", "sure.a"));
    let subscribed = bob.ask(json!({"type": "history", "id": 5, "channel": "sure.a"}));
    drop(bob);
    server.wait_total("connections", |count| count == 1);
    let mut nobody = come(&server, "bob", "other");
    let offset = publish(&mut ann, "sure.a", 60_000);
    assert_eq!(ann.receive()["missing"], json!([]), "nobody is there to be asked");
    let recover = json!({"epoch": subscribed["epoch"], "offset": subscribed["offset"]});
    let reply =
        nobody.ask(json!({"type": "subscribe", "id": 6, "channel": "sure.a", "recover": recover}));
    assert_eq!(reply["recovered"], true, "{reply}");
    assert_eq!(nobody.receive()["confirm"], true, "it shows what was asked of others");
    assert_eq!(confirm(&mut nobody, "sure.a", offset)["in_time"], false);
    // Now it is asked, goes, comes back by another connection, and confirms what it has recovered.
    let offset = publish(&mut ann, "sure.a", 60_000);
    drop(nobody);
    let mut back = come(&server, "bob", "other");
    let recover = json!({"epoch": subscribed["epoch"], "offset": offset - 1});
    let reply =
        back.ask(json!({"type": "subscribe", "id": 6, "channel": "sure.a", "recover": recover}));
    assert_eq!(reply["recovered"], true, "{reply}");
    assert_eq!(confirm_received(&mut back, offset)["in_time"], true);
    assert_eq!(ann.receive()["confirmed"], json!([{"user": "bob"}]));
}

/// Confirms what comes next.
fn confirm_received(client: &mut Client, offset: u64) -> Value {
    let message = client.receive();
    assert_eq!((&message["offset"], &message["confirm"]), (&json!(offset), &json!(true)));
    confirm(client, "sure.a", offset)
}

#[test]
fn what_cannot_be_confirmed_is_refused_and_not_published() {
    let server = start(&["limits.confirm_receivers_max=2"]);
    let mut ann = come(&server, "ann", "sure.a");
    let ask = |client: &mut Client, channel: &str| {
        let command = json!({
            "type": "publish", "id": 1, "channel": channel, "data": 1, "echo": false, "confirm_ms": 60_000,
        });
        client.ask(command)
    };
    let refused = ask(&mut ann, "plain");
    assert_eq!(refused["code"], "forbidden", "{refused}");
    assert_eq!(refused["message"], "plain is not a channel whose receivers are asked to confirm");
    let mut others: Vec<Client> =
        ["bob", "cleo", "dan"].iter().map(|user| come(&server, user, "sure.a")).collect();
    let refused = ask(&mut ann, "sure.a");
    assert_eq!(refused["code"], "limit_reached", "{refused}");
    assert_eq!(refused["message"], "at most 2 receivers who are asked to confirm are allowed");
    let history = ann.ask(json!({"type": "history", "id": 3, "channel": "sure.a"}));
    assert_eq!(history["publications"], json!([]), "nothing was published");
    // Who is not on the channel confirms nothing.
    others.truncate(1);
    let command = json!({"type": "unsubscribe", "id": 4, "channel": "sure.a"});
    assert_eq!(others[0].ask(command)["type"], "unsubscribed");
    assert_eq!(confirm(&mut others[0], "sure.a", 1)["code"], "not_subscribed");
    assert_eq!(confirm(&mut others[0], "nowhere", 1)["code"], "not_subscribed");
    others[0].subscribe("sure.a");
    server.wait_total("connections", |count| count == 2);
    for i in 0..8 {
        assert_eq!(ask(&mut ann, "sure.a")["type"], "published", "{i}");
    }
    let refused = ask(&mut ann, "sure.a");
    assert_eq!(
        refused["message"],
        "at most 8 publications of one connection to a channel that are not confirmed yet are allowed"
    );
}
