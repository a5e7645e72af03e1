//! A cluster of Redis instead of one: each of its masters numbers some of the channels.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::common::tokens::{ISSUER, token};
use crate::common::{Client, PATIENCE, TestServer, free_port, wait_until};
use crate::faults::Load;
use crate::masters::RedisCluster;
use crate::nodes::{RIGHTS, set_user};
use crate::{CHANNELS, RedisServer, metric, node_of_alone, queue, users, wait_ready};

const MASTERS: usize = 3;

/// `pn.*` is numbered, `pb.*` is bridged; both say who is there.
const PRESENCE: &str = r#"
[[channels]]
pattern = "pn.*"
history_size = 10
presence = "full"
[[channels]]
pattern = "pb.*"
distribution = "bridged"
presence = "full"
"#;

/// A node, once it has found the cluster at this URL.
fn node_at(url: &str) -> TestServer {
    node_with(CHANNELS, url)
}

/// The same with this TOML.
fn node_with(toml: &str, url: &str) -> TestServer {
    let node = node_of_alone(toml, url, &["redis.cluster=true"]);
    wait_ready(&node, "ready");
    node
}

fn nodes(cluster: &RedisCluster) -> [TestServer; 2] {
    [(); 2].map(|()| node_at(&cluster.url(0)))
}

fn connects(node: &TestServer) -> f64 {
    metric(node, "ringfeed_redis_connects_total")
}

/// Waits until a node has connected again.
fn wait_connected(node: &TestServer, before: f64) {
    wait_until("connects", || connects(node), |now| *now > before);
}

fn post(node: &TestServer, path: &str, body: &Value) -> Value {
    let (status, answer) = users::post(node, path, body);
    assert_eq!(status, 200, "{path} {body}: {answer}");
    answer
}

/// A connection of a user.
fn come(node: &TestServer, user: &str, claims: Value) -> Client {
    users::come(node, user, claims).0
}

/// A user of each server with the rights that are documented.
fn set_user_of_all(cluster: &RedisCluster) {
    let lines = [RIGHTS, "* **Rights in a cluster**: "];
    cluster.servers.iter().for_each(|server| set_user(server, &lines, &[]));
}

#[test]
fn channels_of_all_masters_have_one_order_and_one_history_on_all_nodes() {
    let cluster = RedisCluster::start(MASTERS, 0, &[]);
    set_user_of_all(&cluster);
    let url = cluster.url(1).replace("redis://", "redis://node:open-sesame@");
    let (a, b) = (node_at(&url), node_at(&url));
    for at in 0..MASTERS {
        let channel = cluster.channel_of(at, "n.");
        let mut reader = b.client();
        let first = reader.subscribe(&channel);
        let body =
            |n: u64| json!({"channel": channel, "data": n, "idempotency_key": n.to_string()});
        for n in 1..=20 {
            let (here, there) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
            let published = post(here, "/api/publish", &body(n));
            assert_eq!((&published["ack"], &published["offset"]), (&json!("redis"), &json!(n)));
            assert_eq!(published["epoch"], first["epoch"], "{published}");
            let again = post(there, "/api/publish", &body(n));
            assert_eq!((&again["duplicate"], &again["offset"]), (&json!(true), &json!(n)));
            let message = reader.receive();
            assert_eq!((&message["offset"], &message["data"]), (&json!(n), &json!(n)), "{message}");
        }
        drop(reader);
        let mut back = a.client();
        let recover = json!({"epoch": first["epoch"], "offset": 5});
        let reply =
            back.ask(json!({"type": "subscribe", "id": 1, "channel": channel, "recover": recover}));
        assert_eq!(reply["recovered"], true, "{reply}");
        for n in 6..=20 {
            assert_eq!(back.receive()["offset"], n);
        }
        let page = a.get(&format!("/api/history?channel={channel}&limit=100"));
        assert_eq!(page["publications"].as_array().unwrap().len(), 20, "{page}");
        // It is where it belongs, and nowhere else.
        let name = format!("ringfeed:{{c:{channel}}}");
        let heard = cluster.servers.iter().map(|own| {
            let of = own.ask::<Vec<String>>(&["PUBSUB", "SHARDCHANNELS", "ringfeed:{c:*"]);
            of.contains(&name)
        });
        assert!(heard.enumerate().all(|(server, heard)| heard == (server == at)), "{channel}");
    }
    // One that is followed no more is heard no more.
    let channel = cluster.channel_of(1, "u.");
    let heard = || {
        let words = ["PUBSUB", "SHARDNUMSUB", &format!("ringfeed:{{c:{channel}}}")];
        cluster.servers[1].ask::<(String, u32)>(&words).1
    };
    for _ in 0..3 {
        let mut client = a.client();
        client.subscribe(&channel);
        assert_eq!(heard(), 1);
        drop(client);
        wait_until("nobody", heard, |count| *count == 0);
    }
    for node in [&a, &b] {
        assert_eq!(metric(node, "ringfeed_redis_commands_refused_total"), 0.0);
        assert_eq!(connects(node), 1.0);
    }
}

#[test]
fn many_channels_are_subscribed_to_and_after_a_cut_again() {
    let cluster = RedisCluster::start(MASTERS, 0, &[]);
    let [a, b] = nodes(&cluster);
    let channels: Vec<String> = (0..1000).map(|n| format!("n.{n}")).collect();
    let mut readers: Vec<(Client, &[String])> =
        channels.chunks(125).map(|own| (b.client(), own)).collect();
    for (reader, channels) in &mut readers {
        channels.iter().for_each(|channel| drop(reader.subscribe(channel)));
    }
    let mut hears_all = |data: u64| {
        for (reader, channels) in &mut readers {
            let entries: Vec<Value> =
                channels.iter().map(|own| json!({"channel": own, "data": data})).collect();
            let answer = post(&a, "/api/batch", &json!({"publications": entries}));
            assert!(!answer.to_string().contains("error"), "{answer}");
            let heard = channels.iter().map(|_| {
                let message = reader.receive();
                assert_eq!(message["data"], data, "{message}");
                message["channel"].as_str().unwrap().to_owned()
            });
            let mut heard: Vec<String> = heard.collect();
            let mut expected = channels.to_vec();
            heard.sort();
            expected.sort();
            assert_eq!(heard, expected);
        }
    };
    hears_all(1);
    for (at, server) in cluster.servers.iter().enumerate() {
        let before = connects(&b);
        assert!(server.ask::<u32>(&["CLIENT", "KILL", "TYPE", "pubsub"]) > 0);
        wait_connected(&b, before);
        wait_ready(&a, "ready");
        hears_all(2 + at as u64);
    }
}

#[test]
fn what_is_no_channels_comes_to_all_nodes_and_is_counted() {
    let cluster = RedisCluster::start(MASTERS, 0, &[]);
    let toml = format!("{PRESENCE}{CHANNELS}{ISSUER}");
    let nodes = [0, 1, 2].map(|at| node_with(&toml, &cluster.url(at)));
    let [a, b, c] = &nodes;
    let mut readers = [b, c].map(|node| come(node, "bob", json!({})));
    readers.iter_mut().for_each(|reader| drop(reader.subscribe("b.1")));
    for n in 0..50 {
        a.publish("b.1", json!(n));
    }
    for reader in &mut readers {
        (0..50).for_each(|n| assert_eq!(reader.receive()["data"], n));
    }
    let mut anns = [a, b, c].map(|node| come(node, "ann", json!({"jti": node.public.to_string()})));
    // It is known how many have heard it, and each has answered.
    assert_eq!(post(a, "/api/send", &json!({"user": "ann", "data": 1}))["connections"], 3);
    assert_eq!(post(b, "/api/send", &json!({"user": "eve", "data": 1}))["connections"], 0);
    anns.iter_mut().for_each(|ann| assert_eq!(ann.receive()["data"], 1));
    let numbered = (0..MASTERS).map(|at| cluster.channel_of(at, "pn."));
    for channel in numbered.chain(["pb.1".into()]) {
        anns[1].subscribe(&channel);
        let mut bob = come(c, "bob", json!({}));
        bob.subscribe(&channel);
        for node in &nodes {
            let look = || node.get(&format!("/api/presence?channel={channel}"))["count"].clone();
            wait_until("presence", look, |count| *count == 2);
        }
        drop(bob);
        for node in &nodes {
            let look = || node.get(&format!("/api/presence?channel={channel}"))["count"].clone();
            wait_until("presence", look, |count| *count == 1);
        }
    }
    let token_id = b.public.to_string();
    assert_eq!(post(a, "/api/revoke", &json!({"token": token_id}))["revoked"], 1);
    assert_eq!(anns[1].closed().0, 4504);
    // One that comes later knows it, too.
    let late = node_with(&toml, &cluster.url(0));
    let target = format!("/ws?token={}", token("ann", 600, json!({"jti": token_id})));
    let refused = || Client::connect(late.public, &target).message().is_close();
    wait_until("a new node knows", refused, |&refused| refused);
    assert_eq!(post(c, "/api/disconnect", &json!({"user": "ann"}))["connections"], 2);
    assert_eq!((anns[0].closed().0, anns[2].closed().0), (4502, 4502));
}

#[test]
fn other_programs_may_be_connected_to_any_server() {
    let cluster = RedisCluster::start(MASTERS, 0, &[]);
    let toml = "[[channels]]\npattern = \"*\"\npublish = \"anyone\"\nsubscribe = \"anyone\"\n\
                [[redis_channels]]\nname = \"live:*\"\nchannel = \"live.*\"\ndirection = \"both\"\n";
    let nodes = [0, 1].map(|at| node_with(toml, &cluster.url(at)));
    let mut readers = nodes.each_ref().map(TestServer::client);
    readers.iter_mut().for_each(|reader| drop(reader.subscribe("live.x")));
    let mut connections: Vec<redis::Connection> =
        cluster.servers.iter().map(|server| server.try_connection().unwrap()).collect();
    let mut others: Vec<redis::PubSub<'_>> =
        connections.iter_mut().map(redis::Connection::as_pubsub).collect();
    others.iter_mut().for_each(|other| other.subscribe("live:x").unwrap());
    for (n, server) in cluster.servers.iter().enumerate() {
        server.ask::<u32>(&["PUBLISH", "live:x", &n.to_string()]);
        readers.iter_mut().for_each(|reader| assert_eq!(reader.receive()["data"], n));
    }
    nodes[0].publish("live.x", json!("out"));
    readers.iter_mut().for_each(|reader| assert_eq!(reader.receive()["data"], "out"));
    for other in &mut others {
        let heard = (0..4).map(|_| other.get_message().unwrap().get_payload::<String>().unwrap());
        // What comes from several servers has no order.
        let mut heard: Vec<String> = heard.collect();
        heard.sort();
        assert_eq!(heard, ["\"out\"", "0", "1", "2"]);
    }
}

#[test]
fn masters_that_are_killed_and_had_written_everything_lose_nothing() {
    let options = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut cluster = RedisCluster::start(MASTERS, 0, &options);
    let [a, b] = nodes(&cluster);
    let loads = [0, 1, 2].map(|at| Load::on(&cluster.channel_of(at, "n."), [&a, &b]));
    // The first is the one that nodes were told of.
    for at in [0, 2] {
        loads.iter().for_each(|load| load.wait_more(50));
        cluster.servers[at].kill();
        [&a, &b].into_iter().for_each(|node| wait_ready(node, "redis away"));
        cluster.servers[at].spawn();
        [&a, &b].into_iter().for_each(|node| wait_ready(node, "ready"));
    }
    for load in loads {
        load.wait_more(50);
        load.end(&a).check_nothing_lost();
    }
}

#[test]
fn a_master_that_stands_still_is_found_and_nothing_is_lost() {
    let cluster = RedisCluster::start(MASTERS, 0, &["--cluster-require-full-coverage", "no"]);
    let [a, b] = nodes(&cluster);
    let loads = [0, 1].map(|at| Load::on(&cluster.channel_of(at, "n."), [&a, &b]));
    loads.iter().for_each(|load| load.wait_more(50));
    // Nobody asks anything of it.
    cluster.servers[2].signal("STOP");
    [&a, &b].into_iter().for_each(|node| wait_ready(node, "redis away"));
    cluster.servers[2].signal("CONT");
    [&a, &b].into_iter().for_each(|node| wait_ready(node, "ready"));
    for load in loads {
        load.wait_more(50);
        load.end(&b).check_nothing_lost();
    }
}

#[test]
fn a_cluster_that_takes_no_keys_any_more_is_away_also_where_nothing_is_published() {
    let cluster = RedisCluster::start(MASTERS, 0, &[]);
    let [a, b] = nodes(&cluster);
    let mut reader = b.client();
    let channel = cluster.channel_of(1, "n.");
    reader.subscribe(&channel);
    // It still publishes what it is told to.
    let slot = (cluster.slot(&channel) + 1).to_string();
    cluster.servers[1].ask::<()>(&["CLUSTER", "DELSLOTS", &slot]);
    [&a, &b].into_iter().for_each(|node| wait_ready(node, "redis away"));
    cluster.servers[1].ask::<()>(&["CLUSTER", "ADDSLOTS", &slot]);
    [&a, &b].into_iter().for_each(|node| wait_ready(node, "ready"));
    a.publish(&channel, json!(1));
    assert_eq!(reader.receive()["data"], 1);
}

#[test]
fn a_replica_that_is_promoted_goes_on_and_no_position_means_two_things() {
    let mut cluster = RedisCluster::start(MASTERS, MASTERS, &[]);
    let [a, b] = nodes(&cluster);
    let loads = [0, 1, 2].map(|at| Load::on(&cluster.channel_of(at, "n."), [&a, &b]));
    loads.iter().for_each(|load| load.wait_more(50));
    // The one that nodes were told of, and where they meet may be another.
    let before = [&a, &b].map(connects);
    cluster.servers[0].kill();
    [&a, &b].into_iter().zip(before).for_each(|(node, before)| wait_connected(node, before));
    [&a, &b].into_iter().for_each(|node| wait_ready(node, "ready"));
    // What programs leave is found, too.
    let mut client = a.client();
    client.subscribe("n.left");
    leave_in(&cluster, 1, "n.left", "1");
    while client.receive()["data"] != 1 {}
    loads.iter().for_each(|load| load.wait_more(50));
    // It comes back as a copy of its copy.
    cluster.servers[0].spawn();
    cluster.wait_joined();
    loads.iter().for_each(|load| load.wait_more(50));
    for load in loads {
        load.end(&a).check_places();
    }
}

#[test]
fn who_only_listens_follows_a_master_that_gives_its_place_away() {
    let cluster = RedisCluster::start(MASTERS, MASTERS, &[]);
    let [a, b] = nodes(&cluster);
    let channels = [0, 1, 2].map(|at| cluster.channel_of(at, "n."));
    let mut reader = b.client();
    for channel in &channels {
        reader.subscribe(channel);
    }
    for at in 0..MASTERS {
        let before = connects(&b);
        cluster.servers[MASTERS + at].ask::<()>(&["CLUSTER", "FAILOVER"]);
        // Nothing is published that would tell it.
        wait_connected(&b, before);
        wait_ready(&a, "ready");
        for (n, channel) in channels.iter().enumerate() {
            let body = json!({"channel": channel, "data": n, "idempotency_key": format!("{at}")});
            let publish = || a.http("POST", "/api/publish", &body.to_string());
            wait_until("published", publish, |(status, _)| *status == 200);
            loop {
                let event = reader.receive();
                if event["type"] == "message" {
                    assert_eq!(event["data"], n, "{event}");
                    break;
                }
                // A life that goes on.
                let is_empty = event["from"].as_u64() > event["to"].as_u64();
                assert!(event["type"] == "gap" && is_empty, "{event}");
            }
        }
    }
}

#[test]
fn slots_that_are_moved_while_is_published_take_everything_with_them() {
    let cluster = RedisCluster::start(MASTERS, 0, &[]);
    let [a, b] = nodes(&cluster);
    let channels = [0, 1].map(|at| cluster.channel_of(at, "n."));
    let loads = channels.each_ref().map(|channel| Load::on(channel, [&a, &b]));
    let slot = cluster.slot(&channels[0]);
    // Nobody publishes on this one, so that no command tells it.
    let c = node_at(&cluster.url(2));
    let mut reader = c.client();
    reader.subscribe(&channels[0]);
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        loads.iter().for_each(|load| load.wait_more(50));
        let before = connects(&c);
        cluster.open_slot(slot, from, to);
        cluster.move_keys(slot, from, to);
        cluster.give_slot(slot, from, to);
        let words = ["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()];
        let moved = || cluster.servers[to].ask::<usize>(&words);
        assert!(moved() > 0);
        wait_connected(&c, before);
    }
    for load in loads {
        load.wait_more(50);
        load.end(&a).check_nothing_lost();
    }
}

#[test]
fn a_channel_whose_slot_is_open_is_followed_to_where_its_keys_are() {
    let cluster = RedisCluster::start(MASTERS, 0, &[]);
    set_user_of_all(&cluster);
    let url = cluster.url(0).replace("redis://", "redis://node:open-sesame@");
    let [a, b, c] = [(); 3].map(|()| node_at(&url));
    let channels = [0, 1, 2].map(|at| cluster.channel_of(at, "n."));
    let loads = channels.each_ref().map(|channel| Load::on(channel, [&a, &b]));
    loads.iter().for_each(|load| load.wait_more(50));
    let slot = cluster.slot(&channels[0]);
    cluster.open_slot(slot, 0, 1);
    loads.iter().for_each(|load| load.wait_more(50));
    cluster.move_keys(slot, 0, 1);
    loads.iter().for_each(|load| load.wait_more(50));
    // One that has never asked there, and only listens, hears what is stored elsewhere.
    let mut reader = c.client();
    let first = reader.subscribe(&channels[0])["offset"].as_u64().unwrap();
    for offset in first + 1..first + 100 {
        let message = reader.receive();
        assert_eq!((&message["type"], &message["offset"]), (&json!("message"), &json!(offset)));
    }
    let page = c.get(&format!("/api/history?channel={}&limit=100", channels[0]));
    assert_eq!(page["publications"].as_array().unwrap().len(), 100, "{page}");
    for node in [&a, &b, &c] {
        assert_eq!(connects(node), 1.0);
        assert_eq!(metric(node, "ringfeed_redis_commands_refused_total"), 0.0);
    }
    cluster.give_slot(slot, 0, 1);
    wait_connected(&c, 1.0);
    for load in loads {
        load.wait_more(50);
        load.end(&a).check_nothing_lost();
    }
}

#[test]
fn a_slot_that_stays_open_holds_up_its_own_channels_alone() {
    let cluster = RedisCluster::start(MASTERS, 0, &[]);
    let dir = tempfile::tempdir().unwrap();
    let spool = format!("redis.spool_dir={}", dir.path().join("spool").display());
    let flags = ["redis.cluster=true", "redis.patience_ms=300"];
    let spooling = ["redis.cluster=true", "redis.patience_ms=300", &spool];
    let a = node_of_alone(CHANNELS, &cluster.url(0), &flags);
    let b = node_of_alone(CHANNELS, &cluster.url(0), &spooling);
    [&a, &b].into_iter().for_each(|node| wait_ready(node, "ready"));
    let loads = [0, 1, 2].map(|at| Load::on(&cluster.channel_of(at, "n."), [&a, &b]));
    // Of a new channel there is a key here and none there, so that no master takes all that a command needs; the other slots are those
    // by which nodes know that this master is there.
    let channel = cluster.channel_of(0, "u.");
    let mut reader = b.client();
    reader.subscribe(&channel);
    let heard = cluster.servers[0].ask::<Vec<String>>(&["PUBSUB", "SHARDCHANNELS", "*:ping:*"]);
    assert_eq!(heard.len(), 2, "{heard:?}");
    let slot_of =
        |name: &String| cluster.servers[0].ask::<usize>(&["CLUSTER", "KEYSLOT", name.as_str()]);
    let mut slots: Vec<usize> = heard.iter().map(slot_of).collect();
    slots.push(cluster.slot(&channel));
    slots.dedup();
    slots.iter().for_each(|&slot| cluster.open_slot(slot, 0, 1));
    let publish = |node: &TestServer, data: u64| {
        let body = json!({"channel": channel, "data": data, "idempotency_key": data.to_string()});
        let (status, answer) = node.http("POST", "/api/publish", &body.to_string());
        (status, serde_json::from_str::<Value>(&answer).unwrap())
    };
    let (status, answer) = publish(&a, 0);
    assert_eq!(status, 503, "{answer}");
    assert!(answer.to_string().contains("is being moved"), "{answer}");
    for data in 1..=3 {
        let (status, answer) = publish(&b, data);
        assert_eq!((status, &answer["ack"]), (202, &json!("spooled")), "{answer}");
    }
    // Nobody else is held up, and who looks for Redis finds it.
    let pings = || {
        let report = cluster.servers[0].ask::<String>(&["INFO", "errorstats"]);
        let mut counts =
            report.lines().filter_map(|line| line.strip_prefix("errorstat_ASK:count="));
        counts.next().map_or(0, |count| count.trim().parse::<u64>().unwrap())
    };
    let before = pings();
    wait_until("pings", pings, |now| *now >= before + 4);
    loads.iter().for_each(|load| load.wait_more(50));
    let late = node_at(&cluster.url(2));
    [&a, &b, &late].into_iter().for_each(|node| assert_eq!(connects(node), 1.0));
    slots.iter().for_each(|&slot| cluster.close_slot(slot, 0, 1));
    for data in 1..=3 {
        assert_eq!(reader.receive()["data"], data);
    }
    assert_eq!(publish(&a, 4).0, 200);
    assert_eq!(reader.receive()["data"], 4);
    [&a, &b].into_iter().for_each(|node| assert_eq!(connects(node), 1.0));
    for load in loads {
        load.end(&a).check_nothing_lost();
    }
}

/// What a node with this Redis writes about `redis.cluster`.
fn complains(url: &str, cluster: bool) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfeed"));
    command.arg("serve").env("RINGFEED_REDIS__URL", url);
    for set in ["server.listen=127.0.0.1:0", "api.listen=127.0.0.1:0", "server.shards=1"] {
        command.args(["--set", set]);
    }
    command.args(["--set", &format!("redis.cluster={cluster}"), "--set", "server.pin=false"]);
    let mut node = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(node.stderr.take().unwrap()).lines();
    let (says, said) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = lines.map_while(Result::ok);
        let _ = says.send(lines.find(|line| line.contains("redis.cluster is ")));
    });
    let line = said.recv_timeout(PATIENCE);
    node.kill().unwrap();
    node.wait().unwrap();
    line.unwrap().unwrap()
}

#[test]
fn a_cluster_that_is_none_and_one_that_nobody_said_is_one_are_refused_with_what_to_do() {
    let port = free_port().local_addr().unwrap().port().to_string();
    let single = RedisServer::start(&["--port", &port]);
    let line = complains(&format!("redis://127.0.0.1:{port}"), true);
    assert!(line.contains("redis.cluster is true: set it to false, or"), "{line}");
    drop(single);
    let cluster = RedisCluster::start(1, 0, &[]);
    let line = complains(&cluster.url(0), false);
    assert!(line.contains("redis.cluster is false: set it to true, or"), "{line}");
    // One master is a cluster, too; of one that lacks slots it is said what is missing.
    node_at(&cluster.url(0)).publish("n.1", json!(1));
}

/// Leaves a message in the cluster, by one of its servers.
fn leave_in(cluster: &RedisCluster, at: usize, channel: &str, data: &str) {
    let nowhere = free_port().local_addr().unwrap().to_string();
    let mut publish = queue::command();
    publish.args(["--api", &nowhere, "--redis", &cluster.url(at), channel, data]);
    let left = publish.output().unwrap();
    assert!(left.status.success(), "{}", String::from_utf8_lossy(&left.stderr));
}

#[test]
fn what_programs_leave_in_a_cluster_is_taken_from_whichever_master_has_it() {
    let cluster = RedisCluster::start(MASTERS, 0, &[]);
    let node = node_at(&cluster.url(0));
    let mut client = node.client();
    client.subscribe("n.1");
    // Two of the three do not have the queue themselves.
    for at in 0..MASTERS {
        leave_in(&cluster, at, "n.1", &at.to_string());
        let message = client.receive();
        assert_eq!((&message["type"], &message["data"]), (&json!("message"), &json!(at)));
    }
}
