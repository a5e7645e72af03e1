//! What nodes do for one another while nothing fails.

use serde_json::{Value, json};

use crate::common::tokens::{ISSUER, token};
use crate::common::{Client, TestServer, wait_until};
use crate::fleet::{figure, nodes, nodes_with, registry};

#[test]
fn what_is_published_on_any_node_comes_on_all_at_the_same_position() {
    let registry = registry();
    let nodes = nodes(&registry, 3);
    // Some of them are kept by each node.
    let channels: Vec<String> = (0..12).map(|n| format!("n.{n}")).collect();
    let mut readers: Vec<Client> = nodes.iter().map(TestServer::client).collect();
    let mut epochs = Vec::new();
    for channel in &channels {
        let told: Vec<Value> = readers.iter_mut().map(|own| own.subscribe(channel)).collect();
        assert!(told.iter().all(|own| own["epoch"] == told[0]["epoch"]), "{told:?}");
        epochs.push(told[0]["epoch"].clone());
    }
    for offset in 1..=5 {
        for (channel, epoch) in channels.iter().zip(&epochs) {
            let published = nodes[offset % 3].publish(channel, json!(offset));
            let expected = (&json!(offset), epoch, &json!("accepted"));
            assert_eq!((&published["offset"], &published["epoch"], &published["ack"]), expected);
            for reader in &mut readers {
                let message = reader.receive();
                assert_eq!(message["channel"], **channel, "{message}");
                assert_eq!(
                    (&message["offset"], &message["data"]),
                    (&json!(offset), &json!(offset))
                );
            }
        }
    }
    let kept: Vec<u64> = nodes.iter().map(|node| figure(node.internal, "channels")).collect();
    assert!(kept.iter().all(|kept| *kept > 0) && kept.iter().sum::<u64>() == 12, "{kept:?}");
}

#[test]
fn a_client_recovers_on_another_node_and_reads_the_same_history_there() {
    let registry = registry();
    let nodes = nodes(&registry, 2);
    for channel in ["n.a", "n.b", "n.c", "n.d"] {
        let mut first = nodes[0].client();
        let at = first.subscribe(channel);
        for n in 1..=3 {
            nodes[n % 2].publish(channel, json!(n));
        }
        drop(first);
        let mut second = nodes[1].client();
        let recover = json!({"epoch": at["epoch"], "offset": at["offset"]});
        let told = second
            .ask(json!({"type": "subscribe", "id": 1, "channel": channel, "recover": recover}));
        assert_eq!(told["recovered"], true, "{told}");
        for n in 1..=3 {
            assert_eq!(second.receive()["data"], n);
        }
        let page = |node: &TestServer| node.get(&format!("/api/history?channel={channel}"));
        let data = |page: &Value| -> Vec<Value> {
            let all = page["publications"].as_array().unwrap();
            all.iter().map(|one| one["data"].clone()).collect()
        };
        let both = [page(&nodes[0]), page(&nodes[1])];
        assert_eq!(data(&both[0]), [1, 2, 3]);
        assert_eq!(data(&both[0]), data(&both[1]));
    }
}

#[test]
fn many_publishers_and_one_order() {
    let registry = registry();
    let nodes = nodes(&registry, 3);
    let mut readers: Vec<Client> = nodes.iter().map(TestServer::client).collect();
    readers.iter_mut().for_each(|reader| drop(reader.subscribe("n.1")));
    let (publishers, each) = (6, 200);
    std::thread::scope(|scope| {
        for publisher in 0..publishers {
            let mut client = nodes[publisher % 3].client();
            scope.spawn(move || {
                for n in 0..each {
                    let data = json!([publisher, n]);
                    client
                        .send(json!({"type": "publish", "id": n, "channel": "n.1", "data": data}));
                }
                for n in 0..each {
                    let reply = client.receive();
                    assert_eq!((&reply["type"], &reply["id"]), (&json!("published"), &json!(n)));
                }
            });
        }
    });
    let mut seen: Vec<Vec<Value>> = Vec::new();
    for reader in &mut readers {
        let messages = (1..=publishers * each).map(|offset| {
            let message = reader.receive();
            assert_eq!(message["offset"], offset, "{message}");
            message["data"].clone()
        });
        seen.push(messages.collect());
    }
    assert!(seen.iter().all(|own| *own == seen[0]));
    for publisher in 0..publishers {
        let own: Vec<_> = seen[0].iter().filter(|data| data[0] == publisher).collect();
        let expected: Vec<Value> = (0..each).map(|n| json!([publisher, n])).collect();
        assert!(own.into_iter().eq(&expected));
    }
}

#[test]
fn bridged_channels_come_once_and_keys_are_known_on_all_nodes() {
    let registry = registry();
    let nodes = nodes(&registry, 3);
    let mut readers: Vec<Client> = nodes.iter().map(TestServer::client).collect();
    readers.iter_mut().for_each(|reader| drop(reader.subscribe("b.1")));
    for n in 0..30 {
        nodes[n % 3].publish("b.1", json!(n));
        readers.iter_mut().for_each(|reader| assert_eq!(reader.receive()["data"], n));
    }
    let body = json!({"channel": "n.1", "data": 1, "idempotency_key": "once"}).to_string();
    let answers: Vec<Value> = nodes
        .iter()
        .map(|node| {
            let (status, body) = node.http("POST", "/api/publish", &body);
            assert_eq!(status, 200, "{body}");
            serde_json::from_str(&body).unwrap()
        })
        .collect();
    assert!(answers.iter().all(|own| own["offset"] == 1), "{answers:?}");
    let duplicates = answers.iter().filter(|own| own["duplicate"] == true).count();
    assert_eq!(duplicates, 2, "{answers:?}");
}

/// A connection of a user.
fn come(node: &TestServer, user: &str) -> Client {
    let target = format!("/ws?token={}", token(user, 600, json!({})));
    let mut client = Client::connect(node.public, &target);
    assert_eq!(client.receive()["user"], user);
    client
}

#[test]
fn users_are_reached_shown_and_revoked_on_all_nodes() {
    let registry = registry();
    let nodes = nodes_with(&registry, 3, ISSUER);
    let mut anns: Vec<Client> = nodes.iter().map(|node| come(node, "ann")).collect();
    let mut bob = come(&nodes[2], "bob");
    for channel in ["n.room", "b.room"] {
        anns.iter_mut().for_each(|ann| drop(ann.subscribe(channel)));
        bob.subscribe(channel);
        for node in &nodes {
            let look = || node.get(&format!("/api/presence?channel={channel}"));
            wait_until("presence", look, |page| {
                page["connections"] == 4
                    && page["users"].as_array().is_some_and(|all| all.len() == 2)
            });
        }
    }
    let post = |node: &TestServer, path: &str, body: Value| {
        let (status, body) = node.http("POST", path, &body.to_string());
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str::<Value>(&body).unwrap()
    };
    let sent = post(&nodes[1], "/api/send", json!({"user": "ann", "data": "hello"}));
    assert_eq!(sent["connections"], 3, "{sent}");
    anns.iter_mut().for_each(|ann| assert_eq!(ann.receive()["data"], "hello"));
    post(&nodes[0], "/api/revoke", json!({"user": "ann"}));
    for mut ann in anns {
        assert_eq!(ann.closed().0, 4504);
    }
    // Bob is still there, on a node of which nobody has gone.
    let look = || nodes[0].get("/api/presence?channel=n.room")["connections"].clone();
    wait_until("presence", look, |count| *count == 1);
}
