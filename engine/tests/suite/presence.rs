//! Who is on a channel: members, who is told of them, and how many there may be.

use std::collections::{BTreeSet, VecDeque};
use std::thread;

use serde_json::{Value, json};

use super::common::hostile::{SMALL_SOCKETS, narrow_client};
use super::common::tokens::{ISSUER, token};
use super::common::{Client, TestServer, wait_until};

const RULES: &str = r#"
[[channels]]
pattern = "full.*"
publish = "anyone"
presence = "full"
[[channels]]
pattern = "told.*"
publish = "anyone"
presence = "full"
join_leave = true
presence_interval_ms = 1
[[channels]]
pattern = "old.*"
presence = "full"
join_leave = true
presence_interval_ms = 1
window_age_ms = 300
[[channels]]
pattern = "slow.*"
presence = "full"
join_leave = true
presence_interval_ms = 100
[[channels]]
pattern = "count.*"
presence = "count"
members_max = 3
[[channels]]
pattern = "*"
"#;

fn start(flags: &[&str]) -> TestServer {
    let mut all = vec!["auth.anonymous=true"];
    all.extend(flags);
    TestServer::start(&format!("{RULES}{ISSUER}"), &all)
}

/// A connection of a user with something that others are shown.
fn come(server: &TestServer, user: &str, info: Value) -> Client {
    let more = if info.is_null() { json!({}) } else { json!({ "info": info }) };
    let mut client =
        Client::connect(server.public, &format!("/ws?token={}", token(user, 600, more)));
    assert_eq!(client.receive()["user"], user);
    client
}

fn who_is_there(client: &mut Client, channel: &str) -> Value {
    let reply = client.ask(json!({"type": "presence", "id": 9, "channel": channel}));
    assert_eq!(reply["type"], "presence", "{reply}");
    reply
}

/// Who is on a channel by the API, once there are so many connections.
fn wait_members(server: &TestServer, channel: &str, connections: u64) -> Value {
    let target = format!("/api/presence?channel={channel}");
    let look = || {
        let (status, body) = server.http("GET", &target, "");
        assert!(status == 200 || status == 404, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()
    };
    wait_until("members", look, |page| page["connections"].as_u64() == Some(connections))
}

#[test]
fn users_are_there_once_with_all_their_connections_and_strangers_each_for_itself() {
    let server = start(&[]);
    let mut anns: Vec<Client> =
        (0..5).map(|i| come(&server, "ann", json!({ "n": i / 4 }))).collect();
    anns.iter_mut().for_each(|ann| _ = ann.subscribe("full.a"));
    let mut bob = come(&server, "user:ann", Value::Null);
    bob.subscribe("full.a");
    let mut stranger = server.client();
    stranger.subscribe("full.a");
    let reply = who_is_there(&mut stranger, "full.a");
    assert_eq!((&reply["count"], &reply["connections"]), (&json!(3), &json!(7)), "{reply}");
    let users = reply["users"].as_array().unwrap();
    assert_eq!(users[0], json!({"user": "ann", "info": {"n": 1}}), "what came last is shown");
    assert_eq!(users[1], json!({"user": "user:ann"}));
    let connection = users[2]["connection"].as_str().unwrap().to_owned();
    assert_eq!(connection.len(), 20);
    // By the API the same, in pages.
    let (mut after, mut paged) = (String::new(), Vec::new());
    loop {
        let page = server.get(&format!("/api/presence?channel=full.a&limit=1{after}"));
        assert_eq!((&page["version"], &page["epoch"]), (&reply["version"], &reply["epoch"]));
        paged.extend(page["users"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(&paged, users);
    // Whose last connection has gone is there no more.
    drop(anns.split_off(1));
    wait_members(&server, "full.a", 3);
    assert_eq!(who_is_there(&mut bob, "full.a")["count"], 3);
    let left = anns[0].ask(json!({"type": "unsubscribe", "id": 2, "channel": "full.a"}));
    assert_eq!(left["type"], "unsubscribed");
    let now = wait_members(&server, "full.a", 2);
    assert_eq!(now["users"], json!([{"user": "user:ann"}, {"connection": connection}]));
    assert_eq!(now["version"].as_u64(), Some(5), "three came, one was shown otherwise, one left");
}

#[test]
fn who_becomes_somebody_is_there_as_that() {
    let server = start(&[]);
    let mut client = server.client();
    client.subscribe("told.a");
    assert_eq!(client.receive()["type"], "join", "itself");
    let shown = json!({"type": "auth", "id": 2, "token": token("ann", 600, json!({"info": 7}))});
    assert_eq!(client.ask(shown)["user"], "ann");
    let (left, came) = (client.receive(), client.receive());
    assert_eq!((&left["type"], &came["type"]), (&json!("leave"), &json!("join")));
    assert_eq!(came["users"], json!([{"user": "ann", "info": 7}]));
    assert_eq!(left["version"], came["version"]);
    let reply = who_is_there(&mut client, "told.a");
    assert_eq!(reply["users"], came["users"]);
    assert_eq!(reply["version"], came["version"]);
}

#[test]
fn who_comes_and_goes_is_told_in_order_with_messages() {
    let server = start(&[]);
    let mut seer = come(&server, "seer", Value::Null);
    let mut raw = server.client_of("raw.v1");
    raw.send(json!({"action": "subscribe", "channel": "told.b"}));
    let position = seer.subscribe("told.b");
    // The other may have been there before it.
    let mut version = 0;
    let mut there = BTreeSet::new();
    while there.len() < 2 {
        let event = seer.receive();
        assert_eq!(event["type"], "join", "{event}");
        assert!(event["version"].as_u64().unwrap() > version);
        version = event["version"].as_u64().unwrap();
        there.extend(event["users"].as_array().unwrap().iter().map(Value::to_string));
        if version == 2 && there.len() < 2 {
            let reply = who_is_there(&mut seer, "told.b");
            there.extend(reply["users"].as_array().unwrap().iter().map(Value::to_string));
        }
    }
    for round in 1..=5u64 {
        let mut guest = come(&server, "guest", Value::Null);
        let start = guest.subscribe("told.b");
        assert_eq!(
            start["offset"].as_u64().unwrap(),
            position["offset"].as_u64().unwrap() + round - 1
        );
        let own = guest.receive();
        assert_eq!(own["users"], json!([{"user": "guest"}]));
        let publish = json!({"type": "publish", "id": 3, "channel": "told.b", "data": round});
        guest.send(publish);
        drop(guest);
        let came = seer.receive();
        assert_eq!((&came["type"], &came["users"]), (&json!("join"), &json!([{"user": "guest"}])));
        let message = seer.receive();
        assert_eq!((&message["type"], &message["data"]), (&json!("message"), &json!(round)));
        let left = seer.receive();
        assert_eq!((&left["type"], &left["users"]), (&json!("leave"), &json!([{"user": "guest"}])));
        assert!(left["version"].as_u64() > came["version"].as_u64());
        // Only what is published.
        assert_eq!(raw.message().into_text().unwrap().as_str(), round.to_string());
    }
}

#[test]
fn many_who_come_at_once_are_told_as_a_number_and_the_list_follows() {
    let server = start(&["server.shards=2"]);
    let mut seer = come(&server, "seer", Value::Null);
    seer.subscribe("slow.a");
    let mut guests: Vec<Client> =
        (0..150).map(|i| come(&server, &format!("guest{i:03}"), Value::Null)).collect();
    thread::scope(|scope| {
        for guests in guests.chunks_mut(50) {
            scope.spawn(|| {
                for guest in guests.iter_mut() {
                    guest.send(json!({"type": "subscribe", "channel": "slow.a"}));
                }
            });
        }
    });
    let all = wait_members(&server, "slow.a", 151);
    // Followed by the rules of the page.
    let (mut list, mut version, mut kept) = (BTreeSet::new(), 0, VecDeque::new());
    while list.len() < 151 {
        let event = kept.pop_front().unwrap_or_else(|| seer.receive());
        let names = |event: &Value| -> Vec<String> {
            event["users"].as_array().unwrap().iter().map(Value::to_string).collect()
        };
        if event["version"].as_u64().unwrap() <= version {
            continue;
        }
        if event["type"] == "presence" {
            seer.send(json!({"type": "presence", "id": 1, "channel": "slow.a"}));
            let reply = loop {
                let reply = seer.receive();
                if reply["id"] == 1 {
                    break reply;
                }
                kept.push_back(reply);
            };
            list = names(&reply).into_iter().collect();
            version = reply["version"].as_u64().unwrap();
        } else {
            assert_eq!(event["type"], "join", "{event}");
            assert!(event["users"].as_array().unwrap().len() <= 100);
            list.extend(names(&event));
        }
    }
    let shown: BTreeSet<String> =
        all["users"].as_array().unwrap().iter().map(Value::to_string).collect();
    assert_eq!(list, shown);
}

#[test]
fn no_more_members_are_let_in_than_may_be() {
    let server = start(&[]);
    let mut clients: Vec<Client> = (0..20).map(|_| server.client()).collect();
    for client in &mut clients {
        client.send(json!({"type": "subscribe", "id": 1, "channel": "count.a"}));
    }
    let replies: Vec<Value> = clients.iter_mut().map(Client::receive).collect();
    let of = |kind: &str| replies.iter().filter(|reply| reply["type"] == kind).count();
    assert_eq!((of("subscribed"), of("error")), (3, 17), "{replies:?}");
    let full = replies.iter().find(|reply| reply["type"] == "error").unwrap();
    assert_eq!(full["code"], "channel_full", "{full}");
    assert_eq!(full["message"], "count.a has as many members as it may have, 3");
    let mut raw = server.client_of("raw.v1");
    raw.send(json!({"action": "subscribe", "channel": "count.a"}));
    let (code, reason) = raw.closed();
    assert_eq!(code, 4500);
    assert!(reason.starts_with("channel_full: "), "{reason}");
    let reply = who_is_there(&mut clients[0], "count.a");
    assert_eq!((&reply["count"], &reply["connections"]), (&json!(3), &json!(3)));
    assert!(reply.get("users").is_none(), "{reply}");
    // One that goes makes room.
    let place = replies.iter().position(|reply| reply["type"] == "subscribed").unwrap();
    drop(clients.swap_remove(place));
    wait_members(&server, "count.a", 2);
    server.client().subscribe("count.a");
}

#[test]
fn who_may_not_see_who_is_there_is_told_so() {
    let server = start(&[]);
    let mut client = server.client();
    client.subscribe("other");
    let refused = client.ask(json!({"type": "presence", "id": 1, "channel": "other"}));
    assert_eq!(refused["message"], "who is on other may be seen by nobody");
    let nobody = client.ask(json!({"type": "presence", "id": 2, "channel": "full.none"}));
    assert_eq!(nobody["code"], "bad_channel");
    let bad = json!({"type": "presence", "id": 3, "channel": "full.a", "after": "ann"});
    assert_eq!(client.ask(bad)["code"], "bad_command");
    for (target, status) in [
        ("/api/presence?channel=other", 400),
        ("/api/presence?channel=full.none", 404),
        ("/api/presence?channel=full.none&after=ann", 400),
        ("/api/presence", 400),
    ] {
        assert_eq!(server.http("GET", target, "").0, status, "{target}");
    }
}

#[test]
fn who_has_missed_nothing_but_who_came_is_told_of_an_empty_gap() {
    let server = start(&[SMALL_SOCKETS]);
    let mut stalled = narrow_client(&server, "ringfeed.v1");
    stalled.subscribe("old.a");
    let own = stalled.receive();
    assert_eq!(own["type"], "join");
    // Its socket holds a part of this, and it gets the rest.
    server.publish("old.a", json!("x".repeat(1 << 20)));
    server.wait_total("short_sends", |n| n >= 1);
    let guests: Vec<Client> = (0..5)
        .map(|i| {
            let mut guest = come(&server, &format!("guest{i}"), Value::Null);
            guest.subscribe("old.a");
            guest
        })
        .collect();
    let gone = |bytes: u64| bytes == 0;
    server.wait_total("log_bytes", gone);
    assert_eq!(stalled.receive()["offset"], 1);
    let gap = stalled.receive();
    assert_eq!((&gap["type"], &gap["from"], &gap["to"]), (&json!("gap"), &json!(2), &json!(1)));
    let reply = who_is_there(&mut stalled, "old.a");
    assert_eq!(reply["count"], 6);
    drop(guests);
    // From here on it is told again.
    let mut left = 0;
    while left < 5 {
        let event = stalled.receive();
        assert_eq!(event["type"], "leave", "{event}");
        assert!(event["version"].as_u64() > reply["version"].as_u64());
        left += event["users"].as_array().unwrap().len();
    }
}
