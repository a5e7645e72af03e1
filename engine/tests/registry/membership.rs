//! What a node has of a registry: it is announced, hears of others, and keeps what it knows while the registry is away.

use std::sync::Arc;
use std::time::Duration;

use ringfeed_engine::registry::api::{Announcement, NodeList, NodeState};
use ringfeed_engine::registry::client::Client;
use ringfeed_engine::registry::keys::KeySources;
use ringfeed_engine::registry::membership::{Membership, Standing};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;

use super::process::{PATIENCE, Registry};

const HEARTBEAT: Duration = Duration::from_millis(50);

fn client(registry: &Registry) -> Client {
    let keys = KeySources { files: vec![registry.path("key")], variable: None }.read().unwrap();
    Client::new(&registry.url(), keys.first(), Duration::from_secs(5)).unwrap()
}

fn join(registry: &Registry, id: &str, epoch: &str) -> Membership {
    let node = Announcement {
        id: id.parse().unwrap(),
        url: format!("http://{id}:9800").parse().unwrap(),
        peer: Some(format!("{id}:9802").parse().unwrap()),
        weight: Default::default(),
        state: NodeState::Active,
        epoch: epoch.parse().unwrap(),
    };
    Membership::start(client(registry), node, HEARTBEAT)
}

async fn wait<T: Clone + std::fmt::Debug>(
    seen: &mut watch::Receiver<T>,
    what: impl FnMut(&T) -> bool,
) -> T {
    let reached = timeout(PATIENCE, seen.wait_for(what)).await;
    match reached {
        Ok(found) => found.unwrap().clone(),
        Err(_) => panic!("it stays so for too long"),
    }
}

fn ids(list: &Arc<NodeList>) -> Vec<&str> {
    list.nodes.iter().map(|node| node.id.as_str()).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn nodes_hear_of_each_other_and_of_channels_as_they_come_and_go() {
    let registry = Registry::start(&["--node-timeout-ms", "1000"]);
    runtime().block_on(async {
        let (a, b) = (join(&registry, "a", "1"), join(&registry, "b", "1"));
        let mut nodes = a.nodes();
        wait(&mut nodes, |list| ids(list) == ["a", "b"]).await;
        b.set_state(NodeState::Draining);
        wait(&mut nodes, |list| list.nodes.iter().any(|node| node.state == NodeState::Draining))
            .await;
        a.set_metrics(serde_json::value::to_raw_value(&json!({"sessions": 3})).unwrap());
        let mut channels = a.channels();
        let channel = json!({"name": "news", "allowed_nodes": ["a"], "rule": {"history_size": 1}})
            .to_string();
        let (registry, channel) = (&registry, &channel);
        std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(registry.ask("PUT", "/v1/channels", channel).0, 200));
        });
        let list = wait(&mut channels, |list| !list.channels.is_empty()).await;
        assert_eq!(list.channels[0].name, "news");
        assert!(b.channels().borrow().channels.is_empty());
        b.leave().await;
        wait(&mut nodes, |list| ids(list) == ["a"]).await;
        a.leave().await;
    });
    assert_eq!(registry.ask("GET", "/v1/nodes?all=true", "").1["nodes"], json!([]));
}

#[test]
fn while_the_registry_is_away_what_was_known_stays_and_a_forgotten_node_is_announced_again() {
    let mut registry = Registry::start(&["--node-timeout-ms", "2000"]);
    runtime().block_on(async {
        let (a, b) = (join(&registry, "a", "1"), join(&registry, "b", "1"));
        let (mut nodes, mut standing) = (a.nodes(), a.standing());
        wait(&mut nodes, |list| ids(list) == ["a", "b"]).await;
        registry.kill();
        wait(&mut standing, |standing| matches!(standing, Standing::Away(_))).await;
        assert_eq!(ids(&nodes.borrow().clone()), ["a", "b"]);
        // It comes back without its file: nobody is known to it.
        for name in ["registry.db", "registry.db-wal", "registry.db-shm"] {
            let _ = std::fs::remove_file(registry.path(name));
        }
        registry.launch();
        let mut shrunk = false;
        let mut watched = nodes.clone();
        let settled = wait(&mut watched, |list| {
            shrunk |= list.nodes.len() < 2;
            list.settled
        });
        wait(&mut standing, |standing| *standing == Standing::Member).await;
        let list = settled.await;
        assert!(!shrunk && ids(&list) == ["a", "b"], "{list:?}");
        drop(b);
        wait(&mut nodes, |list| ids(list) == ["a"]).await;
        a.leave().await;
    });
}

#[test]
fn two_processes_of_one_id_do_not_fight() {
    let registry = Registry::start(&[]);
    runtime().block_on(async {
        let first = join(&registry, "a", "1");
        wait(&mut first.standing(), |standing| *standing == Standing::Member).await;
        let second = join(&registry, "a", "2");
        wait(&mut first.standing(), |standing| *standing == Standing::Replaced).await;
        wait(&mut second.standing(), |standing| *standing == Standing::Member).await;
        let epoch = |list: &Arc<NodeList>| list.nodes.first().map(|node| node.epoch.to_string());
        wait(&mut first.nodes(), |list| epoch(list).as_deref() == Some("2")).await;
        second.leave().await;
        wait(&mut first.standing(), |standing| *standing == Standing::Member).await;
        wait(&mut first.nodes(), |list| epoch(list).as_deref() == Some("1")).await;
        first.leave().await;
    });
}

#[test]
fn a_wrong_key_is_no_end_of_trying() {
    let registry = Registry::start(&[]);
    runtime().block_on(async {
        std::fs::write(registry.path("key"), "another-key-than-the-right-one").unwrap();
        let node = join(&registry, "a", "1");
        let away =
            wait(&mut node.standing(), |standing| matches!(standing, Standing::Away(_))).await;
        assert!(format!("{away:?}").contains("401"), "{away:?}");
        assert!(!format!("{away:?} {node:?}").contains("another-key"));
        registry.signal("HUP");
        wait(&mut node.standing(), |standing| *standing == Standing::Member).await;
    });
}
