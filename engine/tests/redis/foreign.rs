//! Other programs publish and listen in the same Redis.

use std::collections::HashMap;
use std::sync::mpsc;

use serde_json::{Value, json};
use tungstenite::Message;

use crate::common::{Client, PATIENCE, TestServer, wait_until};
use crate::{RedisServer, metric, wait_ready};

/// `live.*` is what others call `realtime:*`, and so on; `in.*` only comes in and `out.*` only goes out.
const CONFIG: &str = r#"
[api]
body_bytes_max = 1048576
[[endpoints]]
path = "/ws"
[[endpoints]]
path = "/cadsock"
dialect = "cadsock"
choose = false
channel_prefix = "live."
[[endpoints]]
path = "/fluxus"
dialect = "fluxus"
choose = false
channel_prefix = "fluxus."
[[endpoints]]
path = "/wss"
dialect = "portico"
choose = false
channel_prefix = "portico."
[[channels]]
pattern = "live.kept"
publish = "anyone"
history_size = 100
[[channels]]
pattern = "live.checked"
message_bytes_max = 10
[[channels]]
pattern = "*"
publish = "anyone"
[[redis_channels]]
name = "realtime:*"
channel = "live.*"
direction = "both"
[[redis_channels]]
name = "ws-default.*"
channel = "fluxus.*"
format = "fluxus"
direction = "both"
[[redis_channels]]
name = "notifications"
channel = "portico.*"
format = "portico"
[[redis_channels]]
name = "session_messages"
channel = "portico.*"
format = "portico"
[[redis_channels]]
name = "room_messages"
channel = "portico.*"
format = "portico"
[[redis_channels]]
name = "listened"
channel = "in.1"
[[redis_channels]]
name = "told:*"
channel = "out.*"
direction = "out"
"#;

/// A node, once it has found Redis.
fn node(redis: &RedisServer) -> TestServer {
    node_with(redis, &[])
}

fn node_with(redis: &RedisServer, flags: &[&str]) -> TestServer {
    let url = format!("redis.url={}", redis.url());
    let node = TestServer::start(CONFIG, &[&[url.as_str()], flags].concat());
    wait_ready(&node, "ready");
    node
}

/// What another program hears: channels of Redis, and what was published there.
struct Listener(mpsc::Receiver<(String, String)>);

impl Listener {
    /// From now on, until Redis ends.
    fn start(redis: &RedisServer, patterns: &[&str]) -> Listener {
        let mut connection = redis.try_connection().unwrap();
        let patterns: Vec<String> = patterns.iter().map(|&own| own.to_owned()).collect();
        let (heard, messages) = mpsc::channel();
        let (subscribed, there) = mpsc::channel();
        std::thread::spawn(move || {
            let mut pubsub = connection.as_pubsub();
            pubsub.psubscribe(&patterns).unwrap();
            subscribed.send(()).unwrap();
            while let Ok(message) = pubsub.get_message() {
                let payload = String::from_utf8(message.get_payload_bytes().to_vec()).unwrap();
                if heard.send((message.get_channel_name().to_owned(), payload)).is_err() {
                    return;
                }
            }
        });
        there.recv_timeout(PATIENCE).unwrap();
        Listener(messages)
    }

    fn receive(&self) -> (String, String) {
        self.0.recv_timeout(PATIENCE).unwrap()
    }
}

fn text(message: Message) -> String {
    match message {
        Message::Text(text) => text.to_string(),
        other => panic!("expected text, got {other:?}"),
    }
}

fn fluxus(node: &TestServer, channel: &str) -> Client {
    let mut client = Client::connect(node.public, "/fluxus");
    let said = client.ask(json!({"action":"subscribe","channel":channel}));
    assert_eq!(said["message"], format!("Suscrito al canal: {channel}"), "{said}");
    client
}

/// What comes next on a channel, behind gaps that are told before; how many those are.
fn behind_gaps(reader: &mut Client) -> (usize, Value) {
    for gaps in 0.. {
        let mut event = reader.receive();
        if event["type"] == "message" {
            return (gaps, event["data"].take());
        }
        assert_eq!(event["type"], "gap", "{event}");
    }
    unreachable!("it ends with a message")
}

/// A client of PorticoEstate's with a session, behind its greeting.
fn portico(node: &TestServer, session: &str) -> Client {
    let cookie = format!("PHPSESSID={session}");
    let mut client = Client::connect_with(node.public, "/wss", &[("Cookie", &cookie)]);
    for greeting in ["room_joined", "connection_success"] {
        assert_eq!(client.receive()["type"], greeting);
    }
    client
}

#[test]
fn payloads_of_others_come_as_they_are_in_every_dialect() {
    let redis = RedisServer::start(&[]);
    let a = node(&redis);
    let mut reader = a.client();
    reader.subscribe("live.news");
    let mut raw = a.client_of("raw.v1");
    raw.send(json!({"action":"subscribe","channel":"live.news"}));
    let mut cadsock = Client::connect(a.public, "/cadsock");
    let said = cadsock.ask(json!({"action":"subscribe","channel":"news"}));
    assert_eq!(said, json!({"type":"subscribed","channel":"news"}));
    // raw.v1 says nothing to a subscribe.
    let subscribers = || a.get("/api/channels")["channels"].clone();
    wait_until("subscribers", subscribers, |own| own[0]["subscribers"] == 3);
    let payload = r#"{"n": 1.50, "deep":[null]}"#;
    assert_eq!(redis.ask::<u32>(&["PUBLISH", "realtime:news", payload]), 1);
    assert_eq!(reader.receive()["data"], json!({"n": 1.50, "deep": [null]}));
    assert_eq!(text(raw.message()), payload);
    let said = text(cadsock.message());
    assert_eq!(
        said,
        format!("{{\"type\":\"message\",\"channel\":\"news\",\"payload\":{payload}}}")
    );
    assert_eq!(redis.ask::<u32>(&["PUBLISH", "realtime:news", "Hello"]), 1);
    assert_eq!(reader.receive()["data"], "Hello");
    assert_eq!(text(raw.message()), "Hello");
    assert_eq!(metric(&a, "ringfeed_redis_foreign_in_total"), 2.0);
}

#[test]
fn frames_of_fluxus_come_and_go() {
    let redis = RedisServer::start(&[]);
    let a = node(&redis);
    let others = Listener::start(&redis, &["ws-default.*"]);
    let (mut client, mut reader) = (fluxus(&a, "my news"), a.client());
    reader.subscribe("fluxus.my%20news");
    let frame = r#"{"type":"message","channel":"my news","data":{"message":"hi"},"_metadata":{"timestamp":1767000000,"publisher":3,"origin_server":"host1:4242"}}"#;
    redis.ask::<u32>(&["PUBLISH", "ws-default.my news", frame]);
    let said = client.receive();
    assert_eq!(
        (&said["type"], &said["channel"], &said["data"]),
        (&json!("message"), &json!("my news"), &json!({"message":"hi"}))
    );
    assert_eq!(reader.receive()["data"], json!({"message":"hi"}));
    assert_eq!(others.receive(), ("ws-default.my news".into(), frame.into()));
    // A client of ringfeed's publishes, and other servers of Fluxus are told.
    client.send(json!({"action":"publish","channel":"my news","data":"text"}));
    let (name, payload) = others.receive();
    let mut told: Value = serde_json::from_str(&payload).unwrap();
    let meta = told["_metadata"].take();
    assert_eq!(name, "ws-default.my news");
    assert_eq!(told, json!({"type":"message","channel":"my news","data":"text","_metadata":null}));
    assert!(meta["timestamp"].as_u64().unwrap() > 1_700_000_000, "{meta}");
    assert!(meta["origin_server"].as_str().unwrap().contains(':'), "{meta}");
    assert_eq!(meta["publisher"], 0, "{meta}");
    assert_eq!(reader.receive()["data"], "text");
}

#[test]
fn what_portico_publishes_comes_to_whom_it_is_for() {
    let redis = RedisServer::start(&[]);
    let a = node(&redis);
    let (mut one, mut other) = (portico(&a, "one"), portico(&a, "other"));
    one.send(json!({"type":"subscribe","entityType":"resource","entityId":42}));
    for told in ["room_joined", "subscription_confirmation"] {
        assert_eq!(one.receive()["type"], told);
    }
    let publish = |name: &str, payload: Value| {
        assert_eq!(redis.ask::<u32>(&["PUBLISH", name, &payload.to_string()]), 1);
    };
    publish(
        "session_messages",
        json!({"type":"session_targeted","sessionId":"one","data":{"type":"x"}}),
    );
    assert_eq!(one.receive(), json!({"type":"x","roomId":"session_one"}));
    publish(
        "notifications",
        json!({"target":"entity","entityType":"resource","entityId":42,"type":"changed"}),
    );
    assert_eq!(one.receive()["roomId"], "entity_resource_42");
    let message = json!({"type":"room_message","roomId":"entity_resource_42","action":"updated"});
    publish("room_messages", message.clone());
    assert_eq!(one.receive(), message);
    // To all: the first that the other one hears.
    publish("notifications", json!({"type":"notification","message":"Closed"}));
    for client in [&mut one, &mut other] {
        let told = client.receive();
        assert_eq!((&told["message"], &told["source"]), (&json!("Closed"), &json!("redis")));
        assert!(told["received_at"].as_str().unwrap().contains('T'), "{told}");
    }
}

#[test]
fn each_publication_comes_once_to_every_subscriber_of_two_nodes_and_a_foreign_one() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis), node(&redis));
    for (channel, name, shared) in
        [("live.1", "realtime:1", "1"), ("fluxus.1", "ws-default.1", "7")]
    {
        let others = Listener::start(&redis, &[name]);
        let mut readers = [a.client(), b.client(), a.client(), b.client()];
        readers.iter_mut().for_each(|reader| drop(reader.subscribe(channel)));
        let framed = |data: &str| match channel {
            "live.1" => data.to_owned(),
            _ => format!("{{\"data\":{data}}}"),
        };
        // Many are alike, whoever publishes them.
        let payloads = |by: &'static str| {
            (0..60).map(move |n| if n % 2 == 0 { shared.into() } else { format!("\"{by} {n}\"") })
        };
        std::thread::scope(|scope| {
            for (by, node) in [("a", &a), ("b", &b)] {
                scope.spawn(move || {
                    let mut client = node.client();
                    for data in payloads(by) {
                        let data: Value = serde_json::from_str(&data).unwrap();
                        let reply = client
                            .ask(json!({"type":"publish","id":1,"channel":channel,"data":data}));
                        assert_eq!(reply["type"], "published", "{reply}");
                    }
                });
            }
            scope.spawn(|| {
                for data in payloads("other") {
                    assert!(redis.ask::<u32>(&["PUBLISH", name, &framed(&data)]) >= 3);
                }
            });
        });
        // What nodes have still to give to Redis is behind what was acknowledged: the last word is said once that has come.
        let mut expected: HashMap<String, usize> = HashMap::new();
        ["a", "b", "other"].into_iter().flat_map(payloads).for_each(|data| {
            *expected.entry(data).or_default() += 1;
        });
        let total: usize = expected.values().sum();
        let mut came: HashMap<String, usize> = HashMap::new();
        for _ in 0..total {
            let (_, payload) = others.receive();
            let payload = match channel {
                "live.1" => payload,
                _ => serde_json::from_str::<Value>(&payload).unwrap()["data"].to_string(),
            };
            *came.entry(payload).or_default() += 1;
        }
        assert_eq!(came, expected);
        redis.ask::<u32>(&["PUBLISH", name, &framed("\"end\"")]);
        assert!(others.receive().1.contains("end"));
        for reader in &mut readers {
            let mut came: HashMap<String, usize> = HashMap::new();
            loop {
                let message = reader.receive();
                assert_eq!(message["type"], "message", "{message}");
                if message["data"] == "end" {
                    break;
                }
                *came.entry(message["data"].to_string()).or_default() += 1;
            }
            assert_eq!(came, expected, "{channel}");
        }
    }
    for node in [&a, &b] {
        assert_eq!(metric(node, "ringfeed_redis_foreign_refused_total"), 0.0);
        // 60 of the other program's and one more, on either channel; as many were published here and told to it.
        assert_eq!(metric(node, "ringfeed_redis_foreign_in_total"), 122.0);
        assert_eq!(metric(node, "ringfeed_redis_foreign_out_total"), 120.0);
    }
}

#[test]
fn one_way_is_one_way() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis), node(&redis));
    let others = Listener::start(&redis, &["told:*", "listened"]);
    let mut readers = [a.client(), b.client()];
    for reader in &mut readers {
        reader.subscribe("in.1");
        reader.subscribe("out.1");
    }
    // What only comes in is told to the other node alone, and what only goes out is not heard.
    a.publish("in.1", json!("own"));
    readers.iter_mut().for_each(|reader| assert_eq!(reader.receive()["data"], "own"));
    redis.ask::<u32>(&["PUBLISH", "listened", "[1]"]);
    readers.iter_mut().for_each(|reader| assert_eq!(reader.receive()["data"], json!([1])));
    assert_eq!(others.receive(), ("listened".into(), "[1]".into()));
    assert_eq!(redis.ask::<u32>(&["PUBLISH", "told:1", "unheard"]), 1);
    assert_eq!(others.receive(), ("told:1".into(), "unheard".into()));
    b.publish("out.1", json!({"b": 2}));
    assert_eq!(others.receive(), ("told:1".into(), "{\"b\":2}".into()));
    readers.iter_mut().for_each(|reader| assert_eq!(reader.receive()["data"], json!({"b": 2})));
}

#[test]
fn what_cannot_be_published_is_counted_and_nothing_else_comes_of_it() {
    let redis = RedisServer::start(&[]);
    let a = node(&redis);
    let mut reader = a.client();
    for channel in ["live.news", "live.checked", "fluxus.news", "portico.all"] {
        reader.subscribe(channel);
    }
    let (long, huge) = ("x".repeat(300), "x".repeat(4 << 20));
    let wrong = [
        ("realtime:", "no name"),
        (&*format!("realtime:{long}"), "too long a name"),
        ("realtime:news", &huge),
        ("realtime:checked", "\"more than ten bytes\""),
        ("ws-default.news", "{\"type\":\"message\",\"channel\":\"news\",\"data\":"),
        ("ws-default.news", "[]"),
        ("ws-default.news", "{\"type\":\"message\",\"channel\":\"news\"}"),
        ("ws-default.news", ""),
        ("notifications", "Hello"),
        ("notifications", "{\"target\":\"session\",\"message\":\"for somebody\"}"),
        ("session_messages", "{\"type\":\"update_partial_applications\",\"sessionId\":\"x\"}"),
        ("room_messages", "{\"roomId\":null}"),
    ];
    for (name, payload) in wrong {
        assert_eq!(redis.ask::<u32>(&["PUBLISH", name, payload]), 1, "{name}");
    }
    let refused = || metric(&a, "ringfeed_redis_foreign_refused_total");
    wait_until("refused", refused, |refused| *refused == wrong.len() as f64);
    for (name, payload, channel) in [
        ("realtime:news", "1", "live.news"),
        ("realtime:checked", "1", "live.checked"),
        ("ws-default.news", "{\"data\":1}", "fluxus.news"),
        ("notifications", "{}", "portico.all"),
    ] {
        redis.ask::<u32>(&["PUBLISH", name, payload]);
        assert_eq!(reader.receive()["channel"], channel);
    }
    assert_eq!(metric(&a, "ringfeed_redis_connects_total"), 1.0);
    assert_eq!(metric(&a, "ringfeed_redis_messages_dropped_total"), 0.0);
}

#[test]
fn redis_begins_again_and_others_are_heard_and_told_as_before() {
    let mut redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis), node(&redis));
    let mut readers = [a.client(), b.client()];
    readers.iter_mut().for_each(|reader| drop(reader.subscribe("live.1")));
    // The other node is told of what was published while Redis was away, if it was back by then.
    let next = |reader: &mut Client| match behind_gaps(reader).1 {
        data if data == "meanwhile" => behind_gaps(reader).1,
        data => data,
    };
    for round in 0..3 {
        redis.ask::<u32>(&["PUBLISH", "realtime:1", "\"in\""]);
        readers.iter_mut().for_each(|reader| assert_eq!(next(reader), "in"));
        let others = Listener::start(&redis, &["realtime:*"]);
        a.publish("live.1", json!(round));
        // What was published while Redis was away may come as late as this, and only once.
        let mut told = others.receive();
        if told.1 == "\"meanwhile\"" {
            told = others.receive();
        }
        assert_eq!(told, ("realtime:1".into(), round.to_string()));
        readers.iter_mut().for_each(|reader| assert_eq!(next(reader), round));
        redis.kill();
        for node in [&a, &b] {
            wait_ready(node, "redis away");
        }
        // Goes out once Redis is there.
        a.publish("live.1", json!("meanwhile"));
        assert_eq!(readers[0].receive()["data"], "meanwhile", "here nothing waits for Redis");
        redis.spawn();
        for node in [&a, &b] {
            wait_ready(node, "ready");
        }
        redis.ask::<u32>(&["PUBLISH", "realtime:1", "\"back\""]);
        // Others may have published something, too; what it has had does not come again.
        assert_eq!(behind_gaps(&mut readers[0]), (1, json!("back")));
        assert_eq!(next(&mut readers[1]), "back");
    }
}

#[test]
fn what_a_lost_connection_has_still_done_does_not_come_back() {
    let redis = RedisServer::start(&[]);
    let flags = ["redis.timeout_ms=300", "redis.ping_interval_ms=100"];
    let (a, b) = (node_with(&redis, &flags), node_with(&redis, &flags));
    let mut readers = [a.client(), b.client()];
    readers.iter_mut().for_each(|reader| drop(reader.subscribe("live.1")));
    for n in 0..20 {
        a.publish("live.1", json!(n));
    }
    for reader in &mut readers {
        (0..20).for_each(|n| assert_eq!(reader.receive()["data"], n));
    }
    // Given to Redis, which does it when it goes on: on connections that nobody holds any more.
    redis.signal("STOP");
    for n in 20..40 {
        a.publish("live.1", json!(n));
    }
    for node in [&a, &b] {
        wait_ready(node, "redis away");
    }
    redis.signal("CONT");
    for node in [&a, &b] {
        wait_ready(node, "ready");
    }
    let others = Listener::start(&redis, &["realtime:*"]);
    a.publish("live.1", json!("last"));
    while others.receive().1 != "\"last\"" {}
    redis.ask::<u32>(&["PUBLISH", "realtime:1", "\"end\""]);
    let [on_a, on_b] = readers.map(|mut reader| {
        let mut came = Vec::new();
        while came.last().is_none_or(|data| data != "end") {
            came.push(behind_gaps(&mut reader).1);
        }
        came
    });
    let mut expected: Vec<Value> = (20..40).map(Value::from).collect();
    expected.extend(["last", "end"].map(Value::from));
    assert_eq!(on_a, expected);
    // The other node may not have heard all, and none of it twice.
    let times = |data| on_b.iter().filter(|own| *own == data).count();
    assert!(on_b.iter().all(|data| expected.contains(data) && times(data) == 1), "{on_b:?}");
}

#[test]
fn a_mapped_channel_with_history_keeps_one_on_each_node() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis), node(&redis));
    let wait_history = |expected: &[&str]| {
        for node in [&a, &b] {
            // It may not have heard of the channel yet.
            let read = || {
                let (_, page) = node.http("GET", "/api/history?channel=live.kept&limit=10", "");
                serde_json::from_str::<Value>(&page).unwrap()
            };
            let page = wait_until("history", read, |page| page["offset"] == expected.len());
            let publications = page["publications"].as_array().unwrap().iter();
            let data: Vec<&Value> = publications.map(|own| &own["data"]).collect();
            assert_eq!(data, expected, "{page}");
        }
    };
    let published = a.publish("live.kept", json!("own"));
    assert_eq!(published["ack"], "accepted", "{published}");
    wait_history(&["own"]);
    redis.ask::<u32>(&["PUBLISH", "realtime:kept", "\"theirs\""]);
    wait_history(&["own", "theirs"]);
}

#[test]
fn a_user_of_redis_needs_the_channels_of_others_too() {
    let redis = RedisServer::start(&[]);
    let rules = [
        "ACL",
        "SETUSER",
        "node",
        "on",
        ">open-sesame",
        "~ringfeed:*",
        "&ringfeed:*",
        "&ringfeed:b:*",
        "+@all",
    ];
    let others = [
        "&realtime:*",
        "&ws-default.*",
        "&notifications",
        "&session_messages",
        "&room_messages",
        "&listened",
    ];
    redis.ask::<()>(&rules);
    let url = format!("redis.url={}?user=node&pass=open-sesame", redis.url());
    let a = TestServer::start(CONFIG, &[&url]);
    wait_ready(&a, "redis away");
    redis.ask::<()>(&[&rules[..], &others].concat());
    wait_ready(&a, "ready");
    let mut reader = a.client();
    reader.subscribe("live.1");
    redis.ask::<u32>(&["PUBLISH", "realtime:1", "1"]);
    assert_eq!(reader.receive()["data"], 1);
}
