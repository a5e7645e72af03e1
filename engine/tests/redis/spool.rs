//! Publications that wait on disk while Redis is away: each comes once, in order, whatever becomes of the nodes meanwhile.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::common::{TestServer, http, wait_readiness, wait_until};
use crate::{CHANNELS, RedisServer, metric, node, node_alone, wait_ready};

/// What is kept through a restart of Redis.
const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

fn spool(dir: &Path) -> String {
    format!("redis.spool_dir={}", dir.join("spool").display())
}

/// Publishes over the API of a node; returns the status and what it says.
fn publish(api: SocketAddr, data: u64, key: Option<&str>) -> (u16, Value) {
    let body = json!({"channel": "n.1", "data": data, "idempotency_key": key});
    let (status, body) = http(api, "POST", "/api/publish", "", &body.to_string());
    (status, serde_json::from_str(&body).unwrap())
}

/// What is in the history of a channel.
pub(crate) fn history(node: &TestServer, channel: &str) -> Vec<u64> {
    let page = node.get(&format!("/api/history?channel={channel}&limit=1000"));
    let publications = page["publications"].as_array().unwrap();
    publications.iter().map(|own| own["data"].as_u64().unwrap()).collect()
}

fn wait_history(node: &TestServer, expected: std::ops::Range<u64>) {
    let expected: Vec<u64> = expected.collect();
    wait_until("history", || history(node, "n.1"), |now| *now == expected);
}

/// A node as a process of its own, which can be killed.
struct Process {
    child: Child,
    api: SocketAddr,
}

impl Process {
    fn start(redis: &RedisServer, dir: &Path) -> Process {
        let config = dir.join("test.toml");
        std::fs::write(&config, CHANNELS).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfeed"));
        command.args(["serve", "--port", "0", "--config", config.to_str().unwrap()]);
        command.env("RINGFEED_REDIS__URL", redis.url());
        let spool = spool(dir);
        for flag in [
            "api.listen=127.0.0.1:0",
            "server.pin=false",
            "server.shards=2",
            "redis.patience_ms=50",
            &spool,
        ] {
            command.args(["--set", flag]);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let api = loop {
            let mut line = String::new();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended: {said}");
            said += &line;
            if let Some((_, address)) = line.trim().split_once("metrics at http://") {
                break address.parse().unwrap();
            }
        };
        // Closed, it would end what is said there.
        std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(drop));
        Process { child, api }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_waits_for_redis_outlives_the_node_and_comes_once_and_in_order() {
    let mut redis = RedisServer::start(DURABLE);
    let dir = tempfile::tempdir().unwrap();
    let b = node(&redis, &["redis.patience_ms=50"]);
    let mut subscriber = b.client();
    subscriber.subscribe("n.1");
    let a = Process::start(&redis, dir.path());
    wait_readiness(a.api);
    let (status, first) = publish(a.api, 0, None);
    assert_eq!((status, &first["ack"]), (200, &json!("redis")));
    // Redis may end before it has said so to the other node.
    assert_eq!(subscriber.receive()["data"], 0);
    redis.kill();
    wait_ready(&b, "redis away");
    for data in 1..50 {
        // Each is sent twice, as by somebody who has not heard.
        for _ in 0..2 {
            let (status, reply) = publish(a.api, data, Some(&data.to_string()));
            assert_eq!((status, &reply["ack"]), (202, &json!("spooled")), "{reply}");
            assert_eq!((reply.get("offset"), reply.get("epoch")), (None, None), "{reply}");
        }
    }
    // Where nothing is kept on disk, nothing is said to be.
    assert_eq!(publish(b.internal, 99, None).0, 503);
    drop(a);
    // Its next process finds them, and keeps what comes behind them.
    let a = Process::start(&redis, dir.path());
    let (status, reply) =
        wait_until("spooled", || publish(a.api, 50, Some("50")), |reply| reply.0 == 202);
    assert_eq!((status, &reply["ack"]), (202, &json!("spooled")));
    drop(a);
    redis.spawn();
    let a = Process::start(&redis, dir.path());
    // Another life of Redis, in which nothing is missing.
    let gap = subscriber.receive();
    assert_eq!((&gap["type"], &gap["from"], &gap["to"]), (&json!("gap"), &json!(2), &json!(1)));
    for n in 1..=50 {
        let message = subscriber.receive();
        assert_eq!((&message["type"], &message["data"]), (&json!("message"), &json!(n)));
        assert_eq!(message["offset"], n + 1, "{message}");
    }
    wait_history(&b, 0..51);
    let (status, reply) = publish(a.api, 50, Some("50"));
    assert_eq!((status, &reply["duplicate"]), (200, &json!(true)), "{reply}");
    // Nothing is left.
    drop(a);
    let left = std::fs::read_dir(dir.path().join("spool")).unwrap().count();
    assert_eq!(left, 1, "but the lock");
}

#[test]
fn what_a_node_that_ends_has_not_stored_waits_on_disk_for_the_next() {
    let mut redis = RedisServer::start(DURABLE);
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(dir.path());
    let a = node(&redis, &[&spool, "redis.patience_ms=600000", "server.shards=1"]);
    redis.kill();
    wait_ready(&a, "redis away");
    let mut client = a.client();
    for n in 0..10 {
        client.send(json!({"type": "publish", "channel": "n.1", "data": n}));
    }
    // Who is answered behind them: they have come to the shard, which is their home.
    client.ask(json!({"type": "ping", "id": 1}));
    a.drain();
    a.wait();
    let b = node_alone(&redis, &[&spool]);
    wait_until("spool", || metric(&b, "ringfeed_redis_spool_publications"), |left| *left == 10.0);
    redis.spawn();
    wait_history(&b, 0..10);
    wait_until("spool", || metric(&b, "ringfeed_redis_spool_publications"), |left| *left == 0.0);
}

#[test]
fn a_spool_that_is_full_refuses_and_one_that_is_in_use_is_not_shared() {
    let mut redis = RedisServer::start(DURABLE);
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(dir.path());
    let a = node(&redis, &[&spool, "redis.patience_ms=0", "redis.spool_bytes_max=1048576"]);
    redis.kill();
    wait_ready(&a, "redis away");
    let large = "x".repeat(60_000);
    let mut taken = 0;
    let last = loop {
        let body = json!({"channel": "u.1", "data": large}).to_string();
        let (status, body) = a.http("POST", "/api/publish", &body);
        if status != 202 {
            break (status, body);
        }
        taken += 1;
    };
    assert_eq!((taken, last.0), (1_048_576 / 60_100, 503), "{}", last.1);
    // What is shorter still has room; and what was taken comes.
    assert_eq!(publish(a.internal, 0, None).0, 202);
    redis.spawn();
    wait_history(&a, 0..1);
    assert_eq!(metric(&a, "ringfeed_redis_spooled_total") as u64, taken + 1);
    wait_until("spool", || metric(&a, "ringfeed_redis_spool_bytes"), |left| *left == 0.0);

    let mut second = Command::new(env!("CARGO_BIN_EXE_ringfeed"));
    second.env("RINGFEED_REDIS__URL", redis.url());
    second.args(["serve", "--port", "0", "--set", "api.listen=127.0.0.1:0"]);
    let ended = second.args(["--set", &spool]).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("redis.spool_dir") && said.contains("another process uses it"), "{said}");
}

#[test]
fn while_redis_is_full_what_has_waited_stays_and_what_comes_waits_behind_it() {
    let mut redis = RedisServer::start(DURABLE);
    let dir = tempfile::tempdir().unwrap();
    let a = node(&redis, &[&spool(dir.path()), "redis.patience_ms=0"]);
    redis.kill();
    wait_ready(&a, "redis away");
    assert_eq!(publish(a.internal, 0, None).0, 202);
    redis.spawn_with(&["--maxmemory", "1"]);
    wait_ready(&a, "ready");
    // It waits for what is before it, and when Redis does not take that it is kept behind it.
    for data in 1..5 {
        assert_eq!(publish(a.internal, data, None).0, 202);
    }
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    wait_history(&a, 0..5);
}

#[test]
fn a_channel_that_redis_never_takes_is_set_aside_and_stops_no_other() {
    let mut redis = RedisServer::start(DURABLE);
    let dir = tempfile::tempdir().unwrap();
    let a = node(&redis, &[&spool(dir.path()), "redis.patience_ms=0"]);
    redis.ask::<()>(&["SADD", "ringfeed:{c:n.2}:m", "x"]);
    redis.kill();
    wait_ready(&a, "redis away");
    for data in 0..10 {
        assert_eq!(publish(a.internal, data, None).0, 202);
        let body = json!({"channel": "n.2", "data": data}).to_string();
        assert_eq!(a.http("POST", "/api/publish", &body).0, 202);
    }
    redis.spawn();
    wait_history(&a, 0..10);
    wait_until("spool", || metric(&a, "ringfeed_redis_spool_publications"), |left| *left == 0.0);
    let files = std::fs::read_dir(dir.path().join("spool")).unwrap();
    let names: Vec<_> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.len() == 2 && names.iter().any(|name| name.ends_with(".refused")), "{names:?}");
}

#[test]
fn keys_count_on_all_nodes() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &["limits.idempotency_ms=60000"]));
    let (_, first) = publish(a.internal, 1, Some("k"));
    assert_eq!((&first["ack"], first.get("duplicate")), (&json!("redis"), None), "{first}");
    let (status, second) = publish(b.internal, 2, Some("k"));
    assert_eq!((status, &second["duplicate"]), (200, &json!(true)), "{second}");
    assert_eq!((&first["epoch"], &first["offset"]), (&second["epoch"], &second["offset"]));
    // Another channel's, and a client's of its own, is another.
    let body = json!({"channel": "n.2", "data": 1, "idempotency_key": "k"}).to_string();
    let (_, other) = b.http("POST", "/api/publish", &body);
    assert!(!other.contains("duplicate"), "{other}");
    let command = json!({"type": "publish", "id": 1, "channel": "n.1", "data": 3,
        "idempotency_key": "k"});
    let third = b.client().ask(command.clone());
    assert_eq!((&third["offset"], third.get("duplicate")), (&json!(2), None), "{third}");
    let fourth = a.client().ask(command);
    assert_eq!((&fourth["offset"], &fourth["duplicate"]), (&json!(2), &json!(true)), "{fourth}");
    assert_eq!(history(&a, "n.1"), [1, 3]);
}
