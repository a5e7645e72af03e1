//! Two nodes serve the same channels.

use std::cell::RefCell;

use ringfeed_engine::bridge::queue;
use serde_json::{Value, json};

use crate::common::{Client, TestServer, wait_until};
use crate::{RedisServer, metric, node, node_alone, wait_ready};

fn publish(client: &mut Client, channel: &str, data: &Value) -> Value {
    let reply = client.ask(json!({"type": "publish", "id": "p", "channel": channel, "data": data}));
    assert_eq!(reply["type"], "published", "{reply}");
    reply
}

#[test]
fn what_is_published_on_one_node_comes_on_the_other_at_the_same_position() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    let mut reader = b.client();
    let subscribed = reader.subscribe("n.1");
    assert_eq!(subscribed["offset"], 0, "{subscribed}");
    let mut own_reader = a.client();
    assert_eq!(own_reader.subscribe("n.1")["epoch"], subscribed["epoch"]);
    let mut writer = a.client();
    for offset in 1..=20 {
        let published = publish(&mut writer, "n.1", &json!({"n": offset}));
        assert_eq!(published["ack"], "redis", "{published}");
        assert_eq!(published["offset"], offset, "{published}");
        assert_eq!(published["epoch"], subscribed["epoch"], "{published}");
        for reader in [&mut reader, &mut own_reader] {
            let message = reader.receive();
            assert_eq!(message["offset"], offset, "{message}");
            assert_eq!(message["data"], json!({"n": offset}), "{message}");
            assert!(message["time"].as_u64().unwrap() > 0, "{message}");
        }
    }
    // And the other way, over HTTP.
    let published = b.publish("n.1", json!("back"));
    assert_eq!((&published["ack"], &published["offset"]), (&json!("redis"), &json!(21)));
    assert_eq!(own_reader.receive()["data"], "back");
    assert_eq!(reader.receive()["data"], "back");
    for node in [&a, &b] {
        assert_eq!(metric(node, "ringfeed_redis_up"), 1.0);
        assert_eq!(metric(node, "ringfeed_redis_connects_total"), 1.0);
        assert!(metric(node, "ringfeed_redis_messages_in_total") >= 21.0);
        assert_eq!(metric(node, "ringfeed_redis_messages_dropped_total"), 0.0);
    }
    assert_eq!(metric(&a, "ringfeed_redis_publications_out_total"), 20.0);
}

#[test]
fn a_client_recovers_on_another_node_and_reads_the_same_history_there() {
    let redis = RedisServer::start(&[]);
    let a = node(&redis, &[]);
    let mut client = a.client();
    let first = client.subscribe("n.1");
    for n in 1..=10 {
        a.publish("n.1", json!(n));
    }
    for n in 1..=4 {
        assert_eq!(client.receive()["data"], n);
    }
    drop(client);
    // It begins later, and knows nothing of the channel.
    let b = node(&redis, &[]);
    let mut client = b.client();
    let reply = client.ask(json!({"type": "subscribe", "id": 1, "channel": "n.1",
        "recover": {"epoch": first["epoch"], "offset": 4}}));
    assert_eq!(reply["recovered"], true, "{reply}");
    for n in 5..=10 {
        let message = client.receive();
        assert_eq!((&message["data"], &message["offset"]), (&json!(n), &json!(n)), "{message}");
    }
    b.publish("n.1", json!(11));
    assert_eq!(client.receive()["data"], 11);
    for node in [&a, &b] {
        // The other node hears of it in its own time.
        let read = || node.get("/api/history?channel=n.1&limit=100");
        let page = wait_until("history", read, |page| page["offset"] == 11);
        let data: Vec<_> = { page["publications"].as_array().unwrap().iter() }
            .map(|publication| (publication["offset"].clone(), publication["data"].clone()))
            .collect();
        assert_eq!(data, (1..=11).map(|n| (json!(n), json!(n))).collect::<Vec<_>>(), "{page}");
        assert_eq!(page["epoch"], first["epoch"], "{page}");
    }
}

#[test]
fn a_long_history_is_read_piece_by_piece() {
    let redis = RedisServer::start(&[]);
    let a = node(&redis, &[]);
    let entries: Vec<Value> = (1..=5000).map(|n| json!({"channel": "n.1", "data": n})).collect();
    for part in entries.chunks(500) {
        let body = json!({"publications": part}).to_string();
        let (status, answer) = a.http("POST", "/api/batch", &body);
        assert_eq!(status, 200, "{answer}");
        assert!(!answer.contains("error"), "{answer}");
    }
    let epoch = a.client().subscribe("n.1")["epoch"].clone();
    let b = node(&redis, &[]);
    let mut client = b.client();
    let reply = client.ask(json!({"type": "subscribe", "id": 1, "channel": "n.1",
        "recover": {"epoch": epoch, "offset": 10}}));
    assert_eq!(reply["recovered"], true, "{reply}");
    for n in 11..=5000 {
        assert_eq!(client.receive()["offset"], n);
    }
}

#[test]
fn many_publishers_on_both_nodes_and_one_order() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    let mut readers = [a.client(), b.client()];
    readers.iter_mut().for_each(|reader| drop(reader.subscribe("n.1")));
    let (publishers, each) = (8, 250);
    let mut threads = Vec::new();
    for publisher in 0..publishers {
        let mut client = if publisher % 2 == 0 { a.client() } else { b.client() };
        threads.push(std::thread::spawn(move || {
            for n in 0..each {
                let data = json!([publisher, n]);
                client.send(json!({"type": "publish", "id": n, "channel": "n.1", "data": data}));
            }
            let receipts = (0..each).map(|n| {
                let reply = client.receive();
                assert_eq!((&reply["type"], &reply["id"]), (&json!("published"), &json!(n)));
                (reply["offset"].as_u64().unwrap(), json!([publisher, n]))
            });
            receipts.collect::<Vec<_>>()
        }));
    }
    let mut expected: Vec<_> = threads.into_iter().flat_map(|own| own.join().unwrap()).collect();
    // Each publisher's are in the order in which it has sent them.
    for publisher in 0..publishers {
        let own = expected.iter().filter(|(_, data)| data[0] == publisher);
        let own: Vec<u64> = own.map(|(offset, _)| *offset).collect();
        assert!(own.is_sorted() && own.len() == each, "{own:?}");
    }
    expected.sort_by_key(|(offset, _)| *offset);
    let total = publishers * each;
    assert_eq!(expected.len(), total);
    for reader in &mut readers {
        for (offset, data) in &expected {
            let message = reader.receive();
            assert_eq!((&message["offset"], &message["data"]), (&json!(offset), data), "{message}");
        }
    }
}

#[test]
fn who_wants_no_echo_gets_none_and_all_others_do() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    for channel in ["n.1", "b.1"] {
        let (mut writer, mut own, mut other) = (a.client(), a.client(), b.client());
        for client in [&mut writer, &mut own, &mut other] {
            client.subscribe(channel);
        }
        let quiet =
            json!({"type": "publish", "id": 2, "channel": channel, "data": "quiet", "echo": false});
        assert_eq!(writer.ask(quiet)["type"], "published");
        for client in [&mut own, &mut other] {
            assert_eq!(client.receive()["data"], "quiet", "{channel}");
        }
        a.publish(channel, json!("loud"));
        for client in [&mut writer, &mut own, &mut other] {
            assert_eq!(client.receive()["data"], "loud", "{channel}");
        }
    }
}

#[test]
fn bridged_channels_come_once_and_local_ones_stay() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    let mut readers = [a.client(), b.client()];
    for reader in &mut readers {
        reader.subscribe("b.1");
        reader.subscribe("local.1");
    }
    let mut writer = a.client();
    for n in 0..100 {
        let reply = publish(&mut writer, "b.1", &json!(n));
        assert_eq!(reply["ack"], "accepted", "{reply}");
    }
    b.publish("local.1", json!("here"));
    a.publish("local.1", json!("there"));
    b.publish("b.1", json!("end"));
    let [on_a, on_b] = readers.map(|mut reader| {
        let (mut bridged, mut local) = (Vec::new(), Vec::new());
        // What comes behind the last would be one that comes twice.
        while bridged.len() < 101 || local.is_empty() {
            let message = reader.receive();
            let own = if message["channel"] == "b.1" { &mut bridged } else { &mut local };
            own.push(message["data"].clone());
        }
        assert_eq!(reader.ask(json!({"type": "ping", "id": 9}))["type"], "pong");
        (bridged, local)
    });
    let mut expected: Vec<Value> = (0..100).map(Value::from).collect();
    expected.push(json!("end"));
    for (bridged, _) in [&on_a, &on_b] {
        let own: Vec<Value> = bridged.iter().filter(|data| data.is_number()).cloned().collect();
        assert_eq!(own, expected[..100]);
        assert!(bridged.contains(&json!("end")), "{bridged:?}");
    }
    assert_eq!((on_a.1, on_b.1), (vec![json!("there")], vec![json!("here")]));
}

#[test]
fn names_and_payloads_of_every_kind_go_through() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    for name in ["n.{}", "n.}{", "n.ö:{c:x}", "b.{x}", "b.[a-z]?"] {
        let mut reader = b.client();
        reader.subscribe(name);
        let mut writer = a.client();
        let large = "x".repeat(40_000);
        for (key, value) in [
            ("data", json!({"a": [1, null]})),
            ("text", json!("plain")),
            ("base64", json!("AAEC")),
            ("text", json!(large)),
        ] {
            let reply =
                writer.ask(json!({"type": "publish", "id": 1, "channel": name, key: value}));
            assert_eq!(reply["type"], "published", "{reply}");
            let message = reader.receive();
            assert_eq!(
                (&message["channel"], &message["data"]),
                (&json!(name), &value),
                "{message}"
            );
            assert_eq!(message["encoding"] == "base64", key == "base64", "{message}");
        }
    }
}

#[test]
fn databases_and_prefixes_keep_nodes_apart() {
    let redis = RedisServer::start(&[]);
    let url = format!("redis.url={}?db=2", redis.url());
    let nodes = [node(&redis, &[]), node(&redis, &["redis.prefix=other"]), node(&redis, &[&url])];
    let mut readers: Vec<Client> = nodes.iter().map(TestServer::client).collect();
    for reader in &mut readers {
        reader.subscribe("n.1");
        reader.subscribe("b.1");
    }
    for (n, node) in nodes.iter().enumerate() {
        assert_eq!(node.publish("n.1", json!(n))["offset"], 1);
        node.publish("b.1", json!(n));
    }
    for (n, reader) in readers.iter_mut().enumerate() {
        for _ in 0..2 {
            assert_eq!(reader.receive()["data"], n);
        }
        assert_eq!(reader.ask(json!({"type": "ping", "id": 9}))["type"], "pong");
    }
}

#[test]
fn a_channel_that_nobody_follows_is_heard_no_more() {
    let redis = RedisServer::start(&[]);
    let a = node(&redis, &[]);
    let channels = || redis.ask::<Vec<String>>(&["PUBSUB", "CHANNELS", "ringfeed:{c:*"]);
    let mut client = a.client();
    client.subscribe("u.1");
    assert_eq!(channels(), ["ringfeed:{c:u.1}"]);
    drop(client);
    wait_until("channels", channels, Vec::is_empty);
    let mut client = a.client();
    client.subscribe("u.1");
    a.publish("u.1", json!(1));
    assert_eq!(client.receive()["data"], 1);
}

#[test]
fn what_others_say_in_redis_is_dropped_and_counted() {
    let redis = RedisServer::start(&[]);
    let a = node(&redis, &[]);
    let mut reader = a.client();
    reader.subscribe("n.1");
    reader.subscribe("b.1");
    for (channel, message) in [
        ("ringfeed:{c:n.1}", "nothing"),
        ("ringfeed:{c:n.1}", ""),
        ("ringfeed:b:b.1", "\u{1}too short"),
        ("ringfeed:b:", "no name"),
        ("ringfeed:b:a\nb", "no name either"),
    ] {
        assert!(redis.ask::<u32>(&["PUBLISH", channel, message]) > 0, "{channel}");
    }
    let dropped = || metric(&a, "ringfeed_redis_messages_dropped_total");
    wait_until("dropped", dropped, |dropped| *dropped == 5.0);
    for channel in ["n.1", "b.1"] {
        a.publish(channel, json!("sane"));
        assert_eq!(reader.receive()["data"], "sane");
    }
}

#[test]
fn a_node_waits_for_a_redis_that_comes_later_and_says_so() {
    let mut redis = RedisServer::start(&[]);
    redis.kill();
    let a = node_alone(&redis, &["redis.patience_ms=100"]);
    wait_ready(&a, "redis away");
    assert_eq!(a.http("GET", "/ready", "").0, 503);
    assert_eq!(metric(&a, "ringfeed_redis_up"), 0.0);
    // What needs no Redis goes on, and what does is refused.
    let mut client = a.client();
    client.subscribe("b.1");
    client.subscribe("local.1");
    a.publish("local.1", json!(1));
    assert_eq!(client.receive()["data"], 1);
    a.publish("b.1", json!(2));
    assert_eq!(client.receive()["data"], 2);
    let refused = client.ask(json!({"type": "publish", "id": 1, "channel": "n.1", "data": 3}));
    assert_eq!(refused["code"], "busy", "{refused}");
    let refused = client.ask(json!({"type": "subscribe", "id": 1, "channel": "n.1"}));
    assert_eq!(refused["code"], "busy", "{refused}");
    redis.spawn();
    wait_ready(&a, "ready");
    // What others may have published before it did not hear.
    let gap = client.receive();
    assert_eq!((&gap["type"], &gap["channel"]), (&json!("gap"), &json!("b.1")), "{gap}");
    let subscribe = json!({"type": "subscribe", "id": 1, "channel": "n.1"});
    let client = RefCell::new(client);
    let ask = || client.borrow_mut().ask(subscribe.clone())["type"].clone();
    wait_until("the shard knows it, too", ask, |kind| *kind == "subscribed");
    a.publish("n.1", json!(4));
    assert_eq!(client.borrow_mut().receive()["data"], 4);
}

#[test]
fn a_wrong_password_is_not_believed_and_a_right_one_never_shown() {
    let redis = RedisServer::start(&["--requirepass", "open-sesame"]);
    let url = |password: &str| format!("redis.url={}?pass={password}", redis.url());
    let wrong = node_alone(&redis, &[&url("close-sesame")]);
    let right = node_alone(&redis, &[&url("open-sesame")]);
    wait_ready(&right, "ready");
    right.publish("n.1", json!(1));
    wait_ready(&wrong, "redis away");
    for node in [&wrong, &right] {
        for path in ["/metrics", "/api/stats", "/ready"] {
            assert!(!node.http("GET", path, "").1.contains("sesame"), "{path}");
        }
    }
}

/// How the line begins that says what a node may.
pub(crate) const RIGHTS: &str = "* **Rights**: ";

/// What is written as code on the line that begins so.
fn documented(begins: &str) -> impl Iterator<Item = &'static str> {
    let document = include_str!("../../../docs/OPERATIONS.md");
    let rights = document.lines().find_map(|line| line.strip_prefix(begins)).unwrap();
    rights.split('`').skip(1).step_by(2)
}

/// Makes a user `node` with the commands that these lines name, and what else it is to have.
pub(crate) fn set_user(redis: &RedisServer, lines: &[&str], more: &[&str]) {
    let commands = lines.iter().flat_map(|begins| documented(begins));
    let commands = commands.filter(|own| !own.contains('*'));
    let commands: Vec<String> =
        commands.map(|own| format!("+{}", own.replace(' ', "|").to_lowercase())).collect();
    let mut rules = vec!["ACL", "SETUSER", "node", "on", ">open-sesame"];
    rules.extend(["~ringfeed:*", "&ringfeed:*", "&ringfeed:b:*", "-@all"]);
    rules.extend(more);
    rules.extend(commands.iter().map(String::as_str));
    redis.ask::<()>(&rules);
}

#[test]
fn a_user_with_the_rights_that_are_documented_has_enough() {
    let redis = RedisServer::start(&[]);
    let patterns: Vec<&str> = documented(RIGHTS).filter(|own| own.contains('*')).collect();
    assert_eq!(patterns, ["PREFIX:*", "PREFIX:*", "PREFIX:b:*", "PREFIX/N:*", "PREFIX/N:b:*"]);
    set_user(&redis, &[RIGHTS], &["&ringfeed/1:*", "&ringfeed/1:b:*"]);
    for database in [0, 1] {
        let url = format!("redis.url={}?user=node&pass=open-sesame&db={database}", redis.url());
        let flags = [url.as_str(), "drop.interval_ms=10"];
        let (a, b) = (node(&redis, &flags), node(&redis, &flags));
        for channel in ["n.1", "b.1", "u.1"] {
            let mut reader = b.client();
            reader.subscribe(channel);
            for n in 0..10 {
                a.publish(channel, json!(n));
                assert_eq!(reader.receive()["data"], n);
            }
        }
        let mut connection = redis.try_connection().unwrap();
        redis::cmd("SELECT").arg(database).exec(&mut connection).unwrap();
        let mut reader = b.client();
        reader.subscribe("n.2");
        for message in ["{}", r#"{"channel":"n.2","data":"left"}"#] {
            queue::leave(&mut connection, "ringfeed", message).unwrap();
        }
        assert_eq!(reader.receive()["data"], "left");
        for node in [&a, &b] {
            assert_eq!(metric(node, "ringfeed_redis_commands_refused_total"), 0.0);
            assert_eq!(metric(node, "ringfeed_redis_drop_failed"), 0.0);
        }
    }
}
