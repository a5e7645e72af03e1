//! Who reads loses nothing and is not closed, however large a burst or a message is.

use std::io::Read as _;
use std::net::Shutdown;
use std::thread::JoinHandle;

use serde_json::{Value, json};
use tungstenite::Message;

use super::common::hostile::{Seen, closes};
use super::common::{Client, TestServer, wait_until};

const CHANNELS: [&str; 4] = ["b0", "b1", "b2", "b3"];

const PUBLISHED_BY_ANYONE: &str = "[[channels]]\npattern = \"*\"\npublish = \"anyone\"\n";

struct Case {
    readers: usize,
    channels: usize,
    dialect: &'static str,
    shards: &'static str,
}

/// Every sort of reader, over one shard and two.
const CASES: [Case; 6] = [
    Case { readers: 1, channels: 1, dialect: "ringfeed.v1", shards: "1" },
    Case { readers: 6, channels: 1, dialect: "ringfeed.v1", shards: "2" },
    Case { readers: 3, channels: 4, dialect: "ringfeed.v1", shards: "1" },
    Case { readers: 3, channels: 4, dialect: "ringfeed.v1", shards: "2" },
    Case { readers: 1, channels: 1, dialect: "raw.v1", shards: "1" },
    Case { readers: 4, channels: 1, dialect: "raw.v1", shards: "2" },
];

/// Reads every publication of each channel; `data` is `[number within the channel, …]`.
fn reads_all(mut client: Client, raw: bool, channels: usize, each: u64) -> JoinHandle<Client> {
    std::thread::spawn(move || {
        let mut seen = Seen::default();
        for number in 1..=each * channels as u64 {
            let Message::Text(text) = client.message() else { panic!("closed before the end") };
            let event: Value = serde_json::from_str(&text).unwrap();
            if raw {
                assert_eq!(event[0], number);
            } else {
                assert!(seen.take(&event), "{event}");
                assert_eq!(seen.missed, 0, "who reads misses nothing");
                assert_eq!(event["data"][0], event["offset"]);
            }
        }
        client
    })
}

/// Runs all cases: `publish` gets each publication's channel and number, `each` to a channel.
fn all_arrives(each: u64, publish: impl Fn(&TestServer, &[(&'static str, u64)])) {
    for case in CASES {
        let shards = format!("server.shards={}", case.shards);
        let server =
            TestServer::start(PUBLISHED_BY_ANYONE, &[&shards, "limits.messages_per_second_max=0"]);
        let raw = case.dialect == "raw.v1";
        let readers: Vec<_> = (0..case.readers)
            .map(|_| {
                let mut client = server.client_of(case.dialect);
                for channel in &CHANNELS[..case.channels] {
                    if raw {
                        client.send(json!({"action": "subscribe", "channel": channel}));
                    } else {
                        client.subscribe(channel);
                    }
                }
                client
            })
            .collect();
        let subscriptions = (case.readers * case.channels) as u64;
        // With the answer of the home, which raw readers are not told.
        server.wait_total("subscriptions", |n| n == subscriptions);
        for channel in &CHANNELS[..case.channels] {
            settle(&server, channel, case.readers);
        }
        let readers: Vec<_> =
            readers.into_iter().map(|client| reads_all(client, raw, case.channels, each)).collect();
        let publications: Vec<_> = (1..=each)
            .flat_map(|i| CHANNELS[..case.channels].iter().map(move |&channel| (channel, i)))
            .collect();
        publish(&server, &publications);
        let readers: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        assert_eq!(server.total("gaps"), 0);
        assert_eq!((closes(&server, "slow"), closes(&server, "lagged")), (0, 0));
        server.wait_total("connections", |n| n == case.readers as u64);
        drop(readers);
    }
}

/// Waits until a channel's home knows of its subscribers.
fn settle(server: &TestServer, channel: &str, readers: usize) {
    let list = || server.get(&format!("/api/channels?prefix={channel}"));
    wait_until("the channels", list, |list| {
        let channels = list["channels"].as_array().unwrap();
        channels.iter().any(|c| c["subscribers"].as_u64() == Some(readers as u64))
    });
}

fn line(&(channel, i): &(&str, u64), pad: &str) -> Value {
    json!({"channel": channel, "data": [i, pad]})
}

/// Each of these is larger than the window, 1 MiB.
#[test]
fn a_batch_larger_than_the_window_reaches_all_who_read() {
    let pad = "z".repeat(900);
    for bytes in [1_500_000, 3_900_000] {
        all_arrives(bytes / 4 / 1000, |server, publications| {
            // Where there is one channel, that is a quarter: as many batches follow at once.
            let publications: Vec<_> = publications.iter().map(|p| line(p, &pad)).collect();
            let body = json!({"publications": publications}).to_string();
            let (status, answer) = server.http("POST", "/api/batch", &body);
            assert_eq!(status, 200, "{answer}");
        });
    }
}

#[test]
fn ingest_at_once_reaches_all_who_read() {
    let pad = "z".repeat(1900);
    all_arrives(1500, |server, publications| {
        let lines: String = publications.iter().map(|p| line(p, &pad).to_string() + "\n").collect();
        let (status, answer) = server.http("POST", "/api/ingest", &lines);
        assert_eq!(status, 200, "{answer}");
        assert!(!answer.contains("error"), "{answer}");
    });
}

#[test]
fn messages_larger_than_the_window_and_every_buffer_reach_all_who_read() {
    let pad = "z".repeat(2_000_000);
    all_arrives(4, |server, publications| {
        for publication in publications {
            let body = line(publication, &pad).to_string();
            let (status, answer) = server.http("POST", "/api/publish", &body);
            assert_eq!(status, 200, "{answer}");
        }
    });
}

#[test]
fn what_a_publisher_has_said_before_it_leaves_reaches_all_who_read() {
    let pad = "z".repeat(900);
    all_arrives(4000, |server, publications| {
        let mut publisher = server.client();
        for publication in publications {
            let mut command = line(publication, &pad);
            command["type"] = "publish".into();
            publisher.send(command);
        }
        // Its socket stays until the server has ended it: a reset would throw away what is under way.
        publisher.socket.get_mut().shutdown(Shutdown::Write).unwrap();
        let end = publisher.socket.get_mut().read(&mut [0; 64]).unwrap();
        assert_eq!(end, 0, "nothing is answered");
    });
}
