//! Redis stalls, dies, forgets and comes back older, while is published and read: nothing is lost that was acknowledged,
//! except where subscribers are told exactly what.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{Client, PATIENCE, TestServer, wait_until};
use crate::{RedisServer, node, wait_ready};

/// A life of a channel, and an offset in it.
type Place = (String, u64);

/// What a subscriber was told.
#[derive(Debug)]
enum Told {
    Message(Place, String),
    /// From here to there, in the life that goes on behind it.
    Gap(String, u64, u64),
}

/// Reads until it is told `end`; checks on the way that no offset is left out without a word.
fn read_until_end(mut client: Client, subscribed: &Value) -> Vec<Told> {
    let mut epoch = subscribed["epoch"].as_str().unwrap().to_owned();
    let mut offset = subscribed["offset"].as_u64().unwrap();
    let mut told = Vec::new();
    loop {
        let event = client.receive();
        match event["type"].as_str().unwrap() {
            "message" => {
                let (own, at) = (event["epoch"].as_str(), event["offset"].as_u64().unwrap());
                assert!(own.is_none_or(|own| own == epoch), "{event} behind {epoch}");
                assert_eq!(at, offset + 1, "{event} behind {epoch} {offset}");
                offset = at;
                let data = event["data"].as_str().unwrap();
                if data == "end" {
                    return told;
                }
                told.push(Told::Message((epoch.clone(), at), data.to_owned()));
            }
            "gap" => {
                let (from, to) = (event["from"].as_u64().unwrap(), event["to"].as_u64().unwrap());
                let own = event["epoch"].as_str().unwrap();
                if own == epoch {
                    assert!(from == offset + 1 && to >= from, "{event} behind {offset}");
                } else {
                    assert!(from <= to + 1, "{event}");
                    own.clone_into(&mut epoch);
                }
                offset = to;
                told.push(Told::Gap(epoch.clone(), from, to));
            }
            _ => panic!("{event}"),
        }
    }
}

/// Two nodes, readers and publishers of a channel on both, and what has come of it.
pub(crate) struct Load {
    channel: String,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    publishers: Vec<JoinHandle<Vec<(Place, String)>>>,
    readers: Vec<JoinHandle<Vec<Told>>>,
}

/// Waits until a count has grown by so much.
fn wait_more(count: &AtomicUsize, more: usize) {
    let before = count.load(Ordering::Relaxed);
    wait_until("count", || count.load(Ordering::Relaxed), |now| *now >= before + more);
}

/// What was acknowledged, what was refused, and what readers were told.
pub(crate) struct Outcome {
    acknowledged: Vec<(Place, String)>,
    refused: usize,
    told: Vec<Vec<Told>>,
}

impl Load {
    fn start(nodes: [&TestServer; 2]) -> Load {
        Load::on("n.1", nodes)
    }

    pub(crate) fn on(channel: &str, nodes: [&TestServer; 2]) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (acknowledged, refused) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let reader = |node: &TestServer| {
            let mut client = node.client();
            let subscribed = client.subscribe(channel);
            std::thread::spawn(move || read_until_end(client, &subscribed))
        };
        let readers = nodes.map(reader).into();
        let publisher = |(id, node): (usize, &TestServer)| {
            let (stop, total, refused) = (stop.clone(), acknowledged.clone(), refused.clone());
            let (mut client, channel) = (node.client(), channel.to_owned());
            std::thread::spawn(move || {
                let mut own = Vec::new();
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let data = format!("{id}-{n}");
                    let publish =
                        json!({"type": "publish", "id": n, "channel": channel, "data": data});
                    let reply = client.ask(publish);
                    if reply["type"] == "published" {
                        assert_eq!(reply["ack"], "redis", "{reply}");
                        let epoch = reply["epoch"].as_str().unwrap().to_owned();
                        own.push(((epoch, reply["offset"].as_u64().unwrap()), data));
                        total.fetch_add(1, Ordering::Relaxed);
                    } else {
                        assert_eq!(reply["code"], "busy", "{reply}");
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
                own
            })
        };
        let publishers = nodes.into_iter().cycle().take(4).enumerate().map(publisher).collect();
        Load { channel: channel.to_owned(), stop, acknowledged, refused, publishers, readers }
    }

    /// Waits until so many more were acknowledged.
    pub(crate) fn wait_more(&self, more: usize) {
        wait_more(&self.acknowledged, more);
    }

    pub(crate) fn end(self, node: &TestServer) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let publishers = self.publishers.into_iter();
        let acknowledged = publishers.flat_map(|publisher| publisher.join().unwrap()).collect();
        let refused = self.refused.load(Ordering::Relaxed);
        // Behind a gap the end may be what was lost.
        let deadline = Instant::now() + PATIENCE;
        while !self.readers.iter().all(JoinHandle::is_finished) {
            assert!(Instant::now() < deadline, "a reader is not told the end");
            let end = json!({"channel": self.channel, "data": "end"}).to_string();
            node.http("POST", "/api/publish", &end);
            std::thread::sleep(Duration::from_millis(20));
        }
        let told = self.readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        Outcome { acknowledged, refused, told }
    }
}

impl Outcome {
    /// No position ever means two things.
    pub(crate) fn check_places(&self) {
        let mut ever: HashMap<&Place, &str> = HashMap::new();
        let messages = self.told.iter().flatten().filter_map(|told| match told {
            Told::Message(place, data) => Some((place, data)),
            Told::Gap(..) => None,
        });
        let acknowledged = self.acknowledged.iter().map(|(place, data)| (place, data));
        for (place, data) in messages.chain(acknowledged) {
            let first = ever.entry(place).or_insert(data);
            assert_eq!(first, data, "{place:?}");
        }
    }

    /// Every reader got everything that was acknowledged, once.
    pub(crate) fn check_nothing_lost(&self) {
        self.check_places();
        for told in &self.told {
            let mut seen = HashSet::new();
            for told in told {
                match told {
                    Told::Message(_, data) => assert!(seen.insert(data), "{data} comes twice"),
                    Told::Gap(epoch, from, to) => assert!(from > to, "{epoch} {from} to {to}"),
                }
            }
            for (place, data) in &self.acknowledged {
                assert!(seen.contains(data), "{data} of {place:?} was acknowledged and is lost");
            }
        }
    }

    fn gaps(&self) -> usize {
        let told = self.told.iter().flatten();
        told.filter(|told| matches!(told, Told::Gap(_, from, to) if from <= to)).count()
    }
}

#[test]
fn while_redis_stands_still_nothing_is_acknowledged_and_then_nothing_is_lost() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    let load = Load::start([&a, &b]);
    load.wait_more(200);
    redis.signal("STOP");
    [&a, &b].into_iter().for_each(|node| wait_ready(node, "redis away"));
    // What was under way has been told by then.
    wait_more(&load.refused, 8);
    let count = load.acknowledged.load(Ordering::Relaxed);
    wait_more(&load.refused, 100);
    assert_eq!(load.acknowledged.load(Ordering::Relaxed), count);
    redis.signal("CONT");
    [&a, &b].into_iter().for_each(|node| wait_ready(node, "ready"));
    load.wait_more(200);
    load.end(&a).check_nothing_lost();
}

#[test]
fn a_redis_that_is_killed_and_had_written_everything_loses_nothing() {
    let mut redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    let load = Load::start([&a, &b]);
    for _ in 0..3 {
        load.wait_more(100);
        redis.kill();
        redis.spawn();
    }
    load.wait_more(100);
    load.end(&b).check_nothing_lost();
}

#[test]
fn a_redis_that_comes_back_older_never_tells_two_things_of_one_position() {
    let mut redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    let load = Load::start([&a, &b]);
    load.wait_more(100);
    redis.ask::<()>(&["SAVE"]);
    let old = redis.dump();
    load.wait_more(300);
    redis.kill();
    assert!(old.exists());
    redis.spawn();
    load.wait_more(300);
    let outcome = load.end(&a);
    outcome.check_places();
    // Both readers were further than Redis is now.
    assert!(outcome.gaps() == 0 || outcome.gaps() == 2, "{}", outcome.gaps());
    for told in &outcome.told {
        let lives: HashSet<_> = told
            .iter()
            .map(|told| match told {
                Told::Message((epoch, _), _) | Told::Gap(epoch, ..) => epoch,
            })
            .collect();
        assert_eq!(lives.len(), 2, "{lives:?}");
    }
}

#[test]
fn a_redis_that_forgets_everything_begins_another_life() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    let mut readers = [a.client(), b.client()];
    let first = readers.each_mut().map(|reader| reader.subscribe("n.1"));
    for n in 1..=5 {
        a.publish("n.1", json!(n));
        readers.iter_mut().for_each(|reader| assert_eq!(reader.receive()["data"], n));
    }
    redis.ask::<()>(&["FLUSHALL"]);
    let published = a.publish("n.1", json!("new"));
    assert_ne!(published["epoch"], first[0]["epoch"], "{published}");
    for reader in &mut readers {
        let gap = reader.receive();
        assert_eq!(gap["type"], "gap", "{gap}");
        assert_eq!(gap["epoch"], published["epoch"], "{gap}");
        // Nothing of the new life is missing, whenever it was heard of.
        assert_eq!((&gap["from"], &gap["to"]), (&json!(0), &json!(0)), "{gap}");
        let message = reader.receive();
        assert_eq!((&message["data"], &message["offset"]), (&json!("new"), &json!(1)));
    }
    // Who has the old position is not told that it is whole.
    for node in [&a, &b] {
        let reply = node.client().ask(json!({"type": "subscribe", "id": 1, "channel": "n.1",
            "recover": {"epoch": first[0]["epoch"], "offset": 3}}));
        assert_eq!(reply["recovered"], false, "{reply}");
        assert_eq!(reply["epoch"], published["epoch"], "{reply}");
    }
}

#[test]
fn forgetting_under_load_is_told() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    let load = Load::start([&a, &b]);
    for _ in 0..5 {
        load.wait_more(100);
        redis.ask::<()>(&["FLUSHALL"]);
    }
    load.wait_more(100);
    load.end(&a).check_places();
}

#[test]
fn a_subscription_that_is_cut_is_made_again_and_nothing_is_lost() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    let load = Load::start([&a, &b]);
    for _ in 0..5 {
        load.wait_more(50);
        redis.ask::<u32>(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    }
    load.wait_more(50);
    redis.ask::<u32>(&["CLIENT", "KILL", "TYPE", "normal"]);
    load.wait_more(50);
    load.end(&a).check_nothing_lost();
}

#[test]
fn what_is_missing_on_a_bridged_channel_is_told_before_what_comes_behind_it() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    let (mut reader, mut raw) = (b.client(), b.client_of("raw.v1"));
    reader.subscribe("b.1");
    raw.send(json!({"action": "subscribe", "channel": "b.1"}));
    let stop = Arc::new(AtomicBool::new(false));
    let (mut client, stopped) = (a.client(), stop.clone());
    let publisher = std::thread::spawn(move || {
        for n in 0.. {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            client.ask(json!({"type": "publish", "id": n, "channel": "b.1", "data": n}));
        }
    });
    let (mut next, mut holes, mut gaps, mut told) = (0, 0, 0, false);
    for read in 0_u32.. {
        if gaps == 3 {
            break;
        }
        if read.is_multiple_of(300) {
            // What is published until it is there again is missing, unless nothing is.
            redis.ask::<u32>(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
        let event = reader.receive();
        if event["type"] == "gap" {
            assert_eq!(event["from"], event["to"], "{event}");
            (told, gaps) = (true, gaps + 1);
            continue;
        }
        let n = event["data"].as_u64().unwrap_or_else(|| panic!("{event}"));
        if n != next && next > 0 {
            assert!(told, "{next} to {n} is missing without a word");
            holes += 1;
        }
        (told, next) = (false, n + 1);
    }
    stop.store(true, Ordering::Relaxed);
    publisher.join().unwrap();
    // Who cannot be told goes on.
    a.publish("b.1", json!("end"));
    while raw.message().into_text().unwrap().as_str() != "\"end\"" {}
    assert!(holes > 0);
}

#[test]
fn scripts_that_redis_has_forgotten_are_given_to_it_again() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    let load = Load::start([&a, &b]);
    for _ in 0..5 {
        load.wait_more(50);
        redis.ask::<()>(&["SCRIPT", "FLUSH"]);
    }
    load.wait_more(50);
    let outcome = load.end(&a);
    outcome.check_nothing_lost();
    assert_eq!((outcome.refused, outcome.gaps()), (0, 0));
}

#[test]
fn a_full_redis_refuses_publications_and_still_tells_what_it_has() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    let first = a.publish("n.1", json!(1));
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let mut client = b.client();
    let recover = json!({"epoch": first["epoch"], "offset": 0});
    let reply =
        client.ask(json!({"type": "subscribe", "id": 1, "channel": "n.1", "recover": recover}));
    assert_eq!(reply["recovered"], true, "{reply}");
    assert_eq!(client.receive()["data"], 1);
    let refused = client.ask(json!({"type": "publish", "id": 1, "channel": "n.1", "data": 2}));
    assert_eq!(refused["code"], "busy", "{refused}");
    redis.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(a.publish("n.1", json!(3))["offset"], 2);
    assert_eq!(client.receive()["data"], 3);
}

#[test]
fn what_was_published_when_a_node_ends_is_stored() {
    let redis = RedisServer::start(&[]);
    let (a, b) = (node(&redis, &[]), node(&redis, &[]));
    let mut reader = b.client();
    reader.subscribe("n.1");
    let mut writer = a.client();
    for n in 1..=200 {
        writer.send(json!({"type": "publish", "channel": "n.1", "data": n}));
    }
    // All of it has come to the node.
    assert_eq!(writer.ask(json!({"type": "ping", "id": 1}))["type"], "pong");
    a.drain();
    a.wait();
    for n in 1..=200 {
        assert_eq!(reader.receive()["data"], n);
    }
}
