//! Messages that `ringfeed publish` leaves in Redis where no API answers, and what nodes make of them.

use std::net::TcpListener;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::common::process::{self, NodeProcess};
use crate::common::{Client, TestServer, http, wait_until};
use crate::spool::history;
use crate::{CHANNELS, RedisServer, metric, node, node_of_alone, wait_ready};

const EVERY: &str = "drop.interval_ms=10";
const QUEUE: &str = "ringfeed:{drop}:q";
const REJECTED: &str = "ringfeed:{drop}:r";

/// `ringfeed publish` with these arguments on top, while no server answers.
fn publish(redis: &RedisServer, args: &[&str]) -> Output {
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    command().args(["--api", &nowhere, "--redis", &redis.url()]).args(args).output().unwrap()
}

/// The same without any of these.
pub(crate) fn command() -> Command {
    let mut command = process::command(env!("CARGO_BIN_EXE_ringfeed"));
    command.arg("publish");
    command
}

/// What it said of a message that was taken.
fn told(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn outcome(node: &TestServer, outcome: &str) -> u64 {
    metric(node, &format!("ringfeed_redis_drop_messages_total{{outcome=\"{outcome}\"}}")) as u64
}

fn wait_empty(redis: &RedisServer) {
    wait_until("the queue", || redis.ask::<u64>(&["XLEN", QUEUE]), |left| *left == 0);
}

/// The data of the next publications on all channels of a client.
fn next(client: &mut Client, count: usize) -> Vec<Value> {
    let message = |_| {
        let message = client.receive();
        assert_eq!(message["type"], "message", "{message}");
        message["data"].clone()
    };
    (0..count).map(message).collect()
}

#[test]
fn what_no_api_takes_comes_over_redis_once_and_in_order_on_every_node() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[EVERY]), node(&redis, &[EVERY]));
    let mut readers = [a.client(), b.client()];
    for reader in &mut readers {
        reader.subscribe("n.1");
    }
    for n in 0..20 {
        let told = told(&publish(&redis, &["n.1", &n.to_string()]));
        assert_eq!((&told["ack"], &told["channel"]), (&json!("queued"), &json!("n.1")), "{told}");
        assert!(told["idempotency_key"].is_string() && told["id"].is_string(), "{told}");
    }
    // The variable does as the flag.
    let left = command()
        .env("RINGFEED_REDIS_URL", redis.url())
        .args(["--api", "127.0.0.1:1", "--text", "n.1", "[20]"])
        .output();
    assert_eq!(told(&left.unwrap())["ack"], "queued");
    let expected: Vec<Value> = (0..20).map(Value::from).chain([json!("[20]")]).collect();
    for reader in &mut readers {
        assert_eq!(next(reader, 21), expected);
    }
    wait_empty(&redis);
    // One has all its messages of a bridged channel from the other.
    for reader in &mut readers {
        reader.subscribe("b.1");
    }
    for n in 0..5 {
        told(&publish(&redis, &["b.1", &n.to_string()]));
    }
    for reader in &mut readers {
        assert_eq!(next(reader, 5), [0, 1, 2, 3, 4].map(Value::from));
    }
    wait_empty(&redis);
    let both = |what| outcome(&a, what) + outcome(&b, what);
    assert_eq!((both("published"), both("rejected")), (26, 0));
}

#[test]
fn a_message_that_the_api_had_taken_comes_once() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &["drop.redis=false"]), node(&redis, &[EVERY]));
    let mut reader = a.client();
    reader.subscribe("n.1");
    let api = a.internal.to_string();
    let both = ["--api", &api, "--redis", &redis.url(), "--key", "k", "n.1", "1"];
    let first = command().args(both).output().unwrap();
    assert_eq!(told(&first)["ack"], "redis");
    assert_eq!(redis.ask::<u64>(&["EXISTS", QUEUE]), 0, "with an API nothing is left");
    // As where the answer was lost.
    assert_eq!(told(&publish(&redis, &["--key", "k", "n.1", "1"]))["ack"], "queued");
    assert_eq!(told(&publish(&redis, &["n.1", "2"]))["ack"], "queued");
    assert_eq!(next(&mut reader, 2), [json!(1), json!(2)]);
    wait_empty(&redis);
    let duplicates = || metric(&b, "ringfeed_redis_drop_duplicates_total");
    wait_until("duplicates", duplicates, |count| *count == 1.0);
    assert_eq!(outcome(&a, "published"), 0, "drop.redis is false");
}

#[test]
fn what_says_nothing_is_set_aside_with_the_reason_and_the_others_go_on() {
    let redis = RedisServer::start(&[]);
    let long = json!({"channel": "n.1", "text": "x".repeat(2000)}).to_string();
    let entries = [
        ("message", r#"{"channel":"n.1","data":"#, "EOF"),
        ("message", r#"{"channel":"n.1","data":1,"datum":2}"#, "datum"),
        ("message", r#"{"channel":"a b","data":1}"#, "white space"),
        ("message", r#"{"channel":"local.1","data":1}"#, "of each node by itself"),
        ("message", r#"{"channel":"unknown","data":1}"#, "no rule is about it"),
        ("message", &long, "allowed are 1024 (api.body_bytes_max)"),
        ("other", "1", "no field \"message\""),
    ];
    for (field, value, _) in &entries {
        redis.ask::<String>(&["XADD", QUEUE, "*", field, value]);
    }
    let good = r#"{"channel":"n.1","data":"good"}"#;
    redis.ask::<String>(&["XADD", QUEUE, "*", "other", "1", "message", good]);
    let a = node(&redis, &[EVERY, "api.body_bytes_max=1024"]);
    wait_empty(&redis);
    let page = a.get("/api/history?channel=n.1");
    assert_eq!(page["publications"][0]["data"], "good", "{page}");
    let rejected: Vec<(String, Vec<String>)> = redis.ask(&["XRANGE", REJECTED, "-", "+"]);
    assert_eq!(rejected.len(), entries.len(), "{rejected:?}");
    for ((_, fields), (field, value, part)) in rejected.iter().zip(&entries) {
        assert!(fields[3].contains(part), "{part}: {fields:?}");
        assert_eq!(fields.get(5).is_some_and(|own| own == value), *field == "message");
    }
    assert_eq!(outcome(&a, "rejected"), 7);
    drop(a);
    // Only so many are kept, and what goes is counted.
    redis.ask::<String>(&["XADD", QUEUE, "*", "message", "{}"]);
    let a = node(&redis, &[EVERY, "drop.rejected_max=2"]);
    wait_empty(&redis);
    assert_eq!((redis.ask::<u64>(&["XLEN", REJECTED]), outcome(&a, "forgotten")), (2, 6));
    assert!(redis.ask::<i64>(&["PTTL", REJECTED]) > 0, "it is forgotten in the end");
    // Whatever has that name: the node serves, and says so.
    redis.ask::<u64>(&["DEL", QUEUE]);
    redis.ask::<u64>(&["SADD", QUEUE, "x"]);
    wait_until("failed", || metric(&a, "ringfeed_redis_drop_failed"), |failed| *failed == 1.0);
    assert_eq!(publish(&redis, &["n.1", "1"]).status.code(), Some(1));
    redis.ask::<u64>(&["DEL", QUEUE]);
    told(&publish(&redis, &["n.1", "1"]));
    wait_until("published", || outcome(&a, "published"), |count| *count == 1);
    wait_until("failed", || metric(&a, "ringfeed_redis_drop_failed"), |failed| *failed == 0.0);
}

#[test]
fn with_everything_down_and_up_again_every_message_comes_once() {
    let mut redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let spool = tempfile::tempdir().unwrap();
    let drop = spool.path().to_str().unwrap();
    let files = || std::fs::read_dir(drop).unwrap().count();
    let leave = |redis: &RedisServer, n: usize, ack: &str| {
        let left = told(&publish(redis, &["--drop", drop, "n.1", &n.to_string()]));
        assert_eq!(left["ack"], ack, "{left}");
    };
    // Redis goes, with what it has taken; and comes again.
    (0..10).for_each(|n| leave(&redis, n, "queued"));
    redis.kill();
    (10..20).for_each(|n| leave(&redis, n, "spooled"));
    assert_eq!(files(), 10);
    redis.spawn();
    (20..30).for_each(|n| leave(&redis, n, "queued"));
    redis.kill();
    // So do the nodes, before Redis does.
    let flag = format!("drop.dir={drop}");
    let a = node_of_alone(CHANNELS, &redis.url(), &[EVERY, &flag, "redis.patience_ms=50"]);
    let b = node_of_alone(CHANNELS, &redis.url(), &[EVERY, "redis.patience_ms=50"]);
    wait_ready(&b, "redis away");
    (30..35).for_each(|n| leave(&redis, n, "spooled"));
    redis.spawn();
    wait_ready(&b, "ready");
    for node in [&a, &b] {
        let mut all = wait_until("history", || history(node, "n.1"), |all| all.len() >= 35);
        // Those of each way are in order.
        let of = |all: &[u64], range: [std::ops::Range<u64>; 2]| -> Vec<u64> {
            all.iter().copied().filter(|n| range.iter().any(|own| own.contains(n))).collect()
        };
        assert!(of(&all, [0..10, 20..30]).is_sorted(), "{all:?}");
        assert!(of(&all, [10..20, 30..35]).is_sorted(), "{all:?}");
        all.sort_unstable();
        assert!(all.iter().copied().eq(0..35), "each once: {all:?}");
    }
    wait_empty(&redis);
    wait_until("files", files, |left| *left == 0);
}

#[test]
fn after_a_kill_another_node_goes_on_where_it_was() {
    const MESSAGES: usize = 3000;
    let redis = RedisServer::start(&[]);
    let b = node(&redis, &["drop.redis=false"]);
    let mut reader = b.client();
    reader.subscribe("n.1");
    let mut connection = redis.try_connection().unwrap();
    let mut leave = |numbers: std::ops::Range<usize>| {
        let mut pipeline = redis::pipe();
        for n in numbers {
            let key = n.to_string();
            let message = json!({"channel": "n.1", "data": n, "idempotency_key": key}).to_string();
            pipeline.cmd("XADD").arg(QUEUE).arg("*").arg("message").arg(message).ignore();
        }
        pipeline.query::<()>(&mut connection).unwrap();
    };
    leave(0..MESSAGES / 2);
    let start = || {
        let url = format!("[redis]\nurl = \"{}\"\n", redis.url());
        let sets = [EVERY, "api.timeout_ms=1000"].map(str::to_owned);
        NodeProcess::start(&format!("{url}{CHANNELS}"), &sets)
    };
    let (mut a, mut c) = (start(), start());
    let mut came = next(&mut reader, 200);
    // Whichever of them takes; the other one goes on.
    let publishes = |node: &NodeProcess| {
        let (_, metrics) = http(node.internal, "GET", "/metrics", "", "");
        !metrics.contains("ringfeed_redis_drop_messages_total{outcome=\"published\"} 0")
    };
    if publishes(&a) {
        a.kill();
    } else {
        c.kill();
    }
    // However far it had got, something is left of which it had said that it takes it.
    leave(MESSAGES / 2..MESSAGES);
    came.extend(next(&mut reader, MESSAGES - 200));
    assert!(came.iter().eq((0..MESSAGES).map(Value::from).collect::<Vec<_>>().iter()), "{came:?}");
    wait_empty(&redis);
    told(&publish(&redis, &["n.1", "-1"]));
    assert_eq!(next(&mut reader, 1), [json!(-1)], "nothing came twice");
}

#[test]
fn what_is_not_taken_at_present_waits_in_order_and_is_in_nobodys_way() {
    let redis = RedisServer::start(&[]);
    // One channel, and one more that the shard may have.
    let a = node(&redis, &[EVERY, "server.shards=1", "limits.channels_max=1"]);
    for name in ["n.1", "n.2"] {
        assert_eq!(a.publish(name, json!(0))["ack"], "redis");
    }
    // More than are taken at once.
    for n in 0..100 {
        let message = json!({"channel": "n.3", "data": n}).to_string();
        redis.ask::<String>(&["XADD", QUEUE, "*", "message", &message]);
    }
    told(&publish(&redis, &["n.2", "1"]));
    wait_until("n.2", || history(&a, "n.2"), |all| *all == [0, 1]);
    wait_until("kept", || metric(&a, "ringfeed_redis_drop_kept_total"), |kept| *kept > 0.0);
    // What comes for others is no reason to look at it again each time.
    for n in 2..52 {
        redis.ask::<String>(&[
            "XADD",
            QUEUE,
            "*",
            "message",
            &json!({"channel": "n.2", "data": n}).to_string(),
        ]);
        wait_until("n.2", || history(&a, "n.2").len(), |count| *count == n + 1);
    }
    let kept = metric(&a, "ringfeed_redis_drop_kept_total");
    assert!(kept < 30.0, "{kept}");
    assert_eq!(redis.ask::<u64>(&["XLEN", QUEUE]), 100);
    let b = node(&redis, &[EVERY]);
    wait_empty(&redis);
    let read = || b.http("GET", "/api/history?channel=n.3&limit=1000", "").1;
    wait_until("n.3", read, |page| page.contains("\"offset\":100"));
    assert!(history(&b, "n.3").into_iter().eq(0..100));
}

#[test]
fn a_queue_that_is_full_takes_no_more_and_the_next_way_does() {
    let redis = RedisServer::start(&[]);
    let fill = "for i = 1, 100000 do redis.call('XADD', KEYS[1], '*', 'message', '{}') end";
    redis.ask::<()>(&["EVAL", fill, "1", QUEUE]);
    let full = publish(&redis, &["n.1", "1"]);
    let said = String::from_utf8_lossy(&full.stderr).into_owned();
    assert_eq!(full.status.code(), Some(1), "{said}");
    assert!(said.contains("100000 messages wait there") && said.contains("no server"), "{said}");
    let dir = tempfile::tempdir().unwrap();
    let next = publish(&redis, &["--drop", dir.path().to_str().unwrap(), "n.1", "1"]);
    assert_eq!(told(&next)["ack"], "spooled");
    assert_eq!(redis.ask::<u64>(&["XLEN", QUEUE]), 100_000);
    let password = command().args(["--redis", "redis://:hush@localhost", "n.1", "1"]).output();
    let said = String::from_utf8_lossy(&password.unwrap().stderr).into_owned();
    assert!(said.contains("RINGFEED_REDIS_URL") && !said.contains("hush"), "{said}");
    let bad = command().env("RINGFEED_REDIS_URL", "http://hush").args(["n.1", "1"]).output();
    let said = String::from_utf8_lossy(&bad.unwrap().stderr).into_owned();
    assert!(said.contains("it is no URL of Redis") && !said.contains("hush"), "{said}");
    let bad = command().args(["--redis-prefix", "a b", "n.1", "1"]).output().unwrap();
    assert_eq!(bad.status.code(), Some(2));
}
