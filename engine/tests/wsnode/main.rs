//! Nodes of ringfeed beside nodes of DistributedWebSocket, for which a stand-in takes part: [`old`].
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod old;
#[path = "../registry/process.rs"]
#[allow(dead_code)] // a part of it is used
mod process;
#[path = "../redis/server.rs"]
#[allow(dead_code)]
mod server;
#[path = "../suite"]
mod suite {
    pub(crate) mod common;
}

pub(crate) use suite::common;

use std::net::{SocketAddr, TcpListener};

use common::{Client, TestServer, http, wait_readiness, wait_until};
use crossbeam_channel::bounded;
use old::{HttpServer, OldNode, post};
use process::{KEY, Registry};
use serde_json::{Value, json};
use server::RedisServer;

/// `server.io`
const IO: &str = "auto";

/// A node beside old ones.
fn toml(more: &str) -> String {
    format!(
        r#"
[auth]
anonymous = true
[[api_keys]]
name = "nodes"
key = {KEY:?}
scopes = ["publish", "metrics"]
channels = ["node.*"]
[[endpoints]]
path = "/"
dialect = "wsnode"
choose = false
channel_prefix = "node."
http = "wsnode"
[[endpoints]]
path = "/ws"
[[channels]]
pattern = "node.*"
publish = "anyone"
history_size = 100
sender = true
[wsnode]
key = {KEY:?}
interval_ms = 100
{more}"#
    )
}

fn figure(node: &TestServer, name: &str) -> u64 {
    let key = format!("X-API-Key: {KEY}\r\n");
    let (_, text) = http(node.internal, "GET", "/metrics", &key, "");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse::<f64>().unwrap() as u64
}

fn outcome(node: &TestServer, outcome: &str) -> u64 {
    figure(node, &format!("ringfeed_wsnode_forwards_total{{outcome=\"{outcome}\"}}"))
}

/// A client of either kind of node.
fn subscriber(to: SocketAddr, channel: &str) -> Client {
    let mut client = Client::connect(to, "/");
    assert_eq!(client.receive()["type"], "connected");
    let subscribed = client.ask(json!({"type": "subscribe", "channel": channel}));
    assert_eq!(subscribed["type"], "subscribed", "{subscribed}");
    client
}

fn message(client: &mut Client) -> Value {
    let mut told = client.receive();
    assert_eq!(told["type"], "broadcast", "{told}");
    told["message"].take()
}

fn broadcast(to: SocketAddr, channel: &str, message: &Value) {
    let body = json!({"channel": channel, "message": message, "apiKey": KEY});
    let (status, answer) = post(to, &body);
    assert_eq!((status, &answer["success"]), (200, &json!(true)), "{answer}");
}

/// Whatever is published, at whichever of all nodes, comes to each subscriber of each of them, once.
fn check(new: &[TestServer], old: &[OldNode]) {
    let channel = "news of \"today\"";
    let name = "node.news%20of%20%22today%22";
    let others = (new.len() + old.len() - 1) as u64;
    for node in new {
        let known = || figure(node, "ringfeed_wsnode_nodes");
        wait_until("nodes known to a new one", known, |&known| known == others);
    }
    for node in old {
        wait_until("nodes known to an old one", || node.known() as u64, |&known| known == others);
    }
    let all: Vec<SocketAddr> =
        new.iter().map(|node| node.public).chain(old.iter().map(OldNode::address)).collect();
    let mut clients: Vec<Client> = all.iter().map(|&to| subscriber(to, channel)).collect();
    let mut published = Vec::new();
    let mut next = || {
        let n = published.len();
        let value =
            json!({"n": n, "any": ["\u{1F41F} \"\\\n", 1.5e-7, null, {"a": [true, -0.25]}]});
        published.push(value.clone());
        value
    };
    for _ in 0..5 {
        all.iter().for_each(|&to| broadcast(to, channel, &next()));
        for node in new {
            let key = format!("X-API-Key: {KEY}\r\n");
            let body = json!({"channel": name, "data": next()}).to_string();
            assert_eq!(http(node.internal, "POST", "/api/publish", &key, &body).0, 200);
            let mut client = node.client();
            let publish = json!({"type": "publish", "id": 1, "channel": name, "data": next()});
            assert_eq!(client.ask(publish)["type"], "published");
        }
    }
    for client in &mut clients {
        let mut seen: Vec<Value> = published.iter().map(|_| message(client)).collect();
        let number = |value: &Value| value["n"].as_u64().unwrap();
        seen.sort_by_key(number);
        let numbers: Vec<u64> = seen.iter().map(number).collect();
        assert_eq!(numbers, (0..published.len() as u64).collect::<Vec<_>>());
        assert_eq!(seen, published);
    }
    // What came a second time would be in front of these on its way.
    all.iter().for_each(|&to| broadcast(to, channel, &json!("end")));
    for client in &mut clients {
        all.iter().for_each(|_| assert_eq!(message(client), "end"));
    }
    for node in new {
        assert_eq!(["refused", "failed", "lost", "unfit"].map(|of| outcome(node, of)), [0; 4]);
    }
}

/// An address that nobody else is given for a while.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A node that is announced to a registry.
fn announced(registry: &Registry, id: &str, more: &str) -> TestServer {
    let listen = free_address();
    let place = format!("registry = {:?}\nurl = \"http://{listen}\"\n{more}", registry.url());
    let flags = [format!("server.listen={listen}"), format!("server.node_id={id}")];
    TestServer::start(&toml(&place), &flags.each_ref().map(|flag| &**flag))
}

fn old_nodes(registry: &Registry) -> Vec<OldNode> {
    ["old-0", "old-1"].map(|id| OldNode::start(id, KEY, Some(registry.address))).into()
}

#[test]
fn nodes_that_share_nothing_hear_each_broadcast_once() {
    let registry = Registry::start(&[]);
    let new = ["new-0", "new-1"].map(|id| announced(&registry, id, ""));
    check(&new, &old_nodes(&registry));
    let health = http(new[0].public, "GET", "/health", "", "").1;
    let health: Value = serde_json::from_str(&health).unwrap();
    let mut ids: Vec<&str> = health["metrics"]["network"]["connectedNodes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, ["new-1", "old-0", "old-1"]);
}

#[test]
fn nodes_with_a_redis_hear_each_broadcast_once() {
    let (registry, redis) = (Registry::start(&[]), RedisServer::start(&[]));
    let more = format!("[redis]\nurl = {:?}\n", redis.url());
    let new = ["new-0", "new-1"].map(|id| announced(&registry, id, &more));
    new.iter().for_each(|node| wait_readiness(node.internal));
    check(&new, &old_nodes(&registry));
}

#[test]
fn nodes_of_a_cluster_hear_each_broadcast_once() {
    let registry = Registry::start(&[]);
    let url = registry.url();
    let cluster = format!(
        "registry = {url:?}\n[cluster]\nregistry = {url:?}\nkey = {KEY:?}\nlisten = \"127.0.0.1:0\"\n"
    );
    let start = |id| TestServer::start(&toml(&cluster), &[&format!("server.node_id={id}")]);
    let new = ["new-0", "new-1"].map(start);
    for node in &new {
        let look =
            || ["members", "links", "up"].map(|of| figure(node, &format!("ringfeed_cluster_{of}")));
        wait_until("members, links, up", look, |seen| *seen == [2, 1, 1]);
    }
    check(&new, &old_nodes(&registry));
}

#[test]
fn a_node_that_is_down_for_a_moment_hears_what_waited_and_holds_nobody_up() {
    let (up, down) = (OldNode::start("up", KEY, None), free_address());
    let nodes = format!("nodes = [\"http://{}\", \"http://{down}/\"]\n", up.address());
    let node = TestServer::start(&toml(&nodes), &[]);
    let (mut near, mut far) = (subscriber(node.public, "c"), subscriber(up.address(), "c"));
    for n in 1..=3 {
        broadcast(node.public, "c", &json!(n));
        assert_eq!((message(&mut near), message(&mut far)), (json!(n), json!(n)));
    }
    let waits = || figure(&node, "ringfeed_wsnode_waiting_bytes");
    wait_until("bytes that wait for one", waits, |&bytes| bytes > 0);
    let down = OldNode::start_at(TcpListener::bind(down).unwrap(), "down", KEY, None);
    wait_until("posts to who was down", || down.forwards(), |&posts| posts == 3);
    wait_until("posts that were taken", || outcome(&node, "sent"), |&sent| sent == 6);
    // Once more it is gone, with its connections.
    drop(down);
    broadcast(node.public, "c", &json!("later"));
    assert_eq!((message(&mut near), message(&mut far)), (json!("later"), json!("later")));
}

#[test]
fn whoever_has_another_key_is_told_and_heard_nothing() {
    let other = OldNode::start("old", "another-key-than-that", None);
    let node =
        TestServer::start(&toml(&format!("nodes = [\"http://{}\"]\n", other.address())), &[]);
    let (mut near, mut far) = (subscriber(node.public, "c"), subscriber(other.address(), "c"));
    broadcast(node.public, "c", &json!(1));
    assert_eq!(message(&mut near), 1);
    wait_until("refused posts", || outcome(&node, "refused"), |&refused| refused == 1);
    for body in [
        json!({"channel": "c", "message": 2, "apiKey": "another-key-than-that", "origin": "old"}),
        json!({"channel": "c", "message": 2, "origin": "old"}),
    ] {
        assert_eq!(post(node.public, &body), (401, json!({"error": "Unauthorized"})));
    }
    let own =
        json!({"channel": "c", "message": 3, "apiKey": "another-key-than-that", "origin": "x"});
    assert_eq!(post(other.address(), &own).0, 200);
    broadcast(node.public, "c", &json!(4));
    assert_eq!((message(&mut near), message(&mut far)), (json!(4), json!(3)));
}

#[test]
fn what_has_an_origin_goes_no_further_and_what_no_node_takes_is_counted() {
    let other = OldNode::start("old", KEY, None);
    let flags = ["server.node_id=new"];
    let nodes = format!("nodes = [\"http://{}\"]\n", other.address());
    let node = TestServer::start(&toml(&nodes), &flags);
    let mut near = subscriber(node.public, "c");
    let from = |origin: &str| {
        let message = json!({"of": origin});
        let body = json!({"channel": "c", "message": message, "apiKey": KEY, "origin": origin});
        post(node.public, &body).1
    };
    // An origin that JavaScript takes for none is none.
    for origin in ["old", ""] {
        assert_eq!(from(origin)["success"], true);
    }
    // Its own post comes back to it.
    assert_eq!(from("new")["linked"], true);
    let key = format!("X-API-Key: {KEY}\r\n");
    let publish = |data: Value| {
        let body = json!({"channel": "node.c", "data": data}).to_string();
        assert_eq!(http(node.internal, "POST", "/api/publish", &key, &body).0, 200);
    };
    publish(json!(0));
    publish(json!("x".repeat(100 * 1024)));
    publish(json!("last"));
    wait_until("posts that were taken", || outcome(&node, "sent"), |&sent| sent == 2);
    assert_eq!((outcome(&node, "unfit"), other.forwards()), (2, 2));
    for origin in ["old", ""] {
        assert_eq!(message(&mut near), json!({"of": origin}));
    }
    assert_eq!(message(&mut near), 0);
    assert_eq!(message(&mut near).as_str().unwrap().len(), 100 * 1024);
    assert_eq!(message(&mut near), "last");
}

#[test]
fn a_registry_of_the_other_version_is_told_too() {
    let (told, tells) = bounded(1000);
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    // It knows nobody until somebody has come by `POST /nodes`.
    let registry = HttpServer::start(registry, move |request, _| {
        let _ = told.try_send((request.method.clone(), request.path.clone(), request.body.clone()));
        Some(match (&*request.method, &*request.path) {
            ("POST", "/nodes") => (200, json!({})),
            ("GET", "/nodes") => (
                200,
                json!([
                    {"id": "a node", "url": "http://127.0.0.1:9", "status": "active", "last_seen": 1, "created_at": 1},
                    {"id": "new", "url": "http://127.0.0.1:8", "status": "active"},
                    {"id": "gone", "url": "http://127.0.0.1:7", "status": "inactive"},
                    {"id": "bad", "url": "file:///etc/passwd", "status": "active"},
                ]),
            ),
            _ => (404, json!({})),
        })
    });
    let place =
        format!("registry = \"http://{}/\"\nurl = \"http://10.0.0.1:8080\"\n", registry.address);
    let node = TestServer::start(&toml(&place), &["server.node_id=new"]);
    wait_until("nodes", || figure(&node, "ringfeed_wsnode_nodes"), |&nodes| nodes == 1);
    let announced = json!({"id": "new", "url": "http://10.0.0.1:8080"}).to_string();
    let with_status = json!({"id": "new", "url": "http://10.0.0.1:8080", "status": "active"});
    let expected = [
        ("POST", "/announce", with_status.to_string()),
        ("POST", "/nodes/new/heartbeat", "{}".into()),
        ("POST", "/nodes", announced),
        ("GET", "/nodes", String::new()),
    ];
    for (method, path, body) in expected {
        assert_eq!(tells.recv().unwrap(), (method.to_owned(), path.to_owned(), body));
    }
}
