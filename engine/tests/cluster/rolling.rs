//! Nodes without a broker that are stopped and started again one after the other, under load.

use std::time::Duration;

use crate::common::process::NodeProcess;
use crate::common::rolling::{Scene, restart_each};
use crate::fleet::{registry, toml, wait_members, wait_ready};
use crate::process::KEY;

fn restart(scene: Scene) {
    let registry = registry();
    let start = |at: usize| {
        let sets = [
            format!("cluster.registry={}", registry.url()),
            format!("server.node_id=node-{at}"),
            format!("server.drain_spread_ms={}", scene.spread.as_millis()),
            "server.drain_timeout_ms=10000".into(),
            "server.shards=2".into(),
        ];
        NodeProcess::start(&toml(KEY, ""), &sets)
    };
    let nodes: Vec<NodeProcess> = (0..3).map(start).collect();
    nodes.iter().for_each(|node| wait_members(node.internal, 3));
    let outcome = restart_each(scene, nodes, |at| {
        let node = start(at);
        wait_ready(&node, 3);
        node
    });
    println!("{}", outcome.summary(scene.spread));
    assert_eq!((outcome.missed, outcome.twice, outcome.cut), (0, 0, 0));
    assert_eq!((outcome.gaps, outcome.unrecovered), (0, 0));
    assert_eq!((outcome.acknowledged, outcome.returns.len()), (outcome.sent, 3));
}

#[test]
fn nodes_are_started_again_one_after_the_other_and_nobody_misses_anything() {
    restart(Scene {
        subscribers: 60,
        channels: 20,
        publishers: 3,
        rate: 500.0,
        spread: Duration::from_millis(500),
        quiet: Duration::from_millis(100),
    });
}

/// Says what docs/BENCHMARKS.md has of it: `cargo test -p ringfeed-engine --test cluster rolling_restart -- --ignored --nocapture`.
#[test]
#[ignore = "it takes half a minute and all cores"]
fn rolling_restart_at_full_load() {
    restart(Scene {
        subscribers: 900,
        channels: 300,
        publishers: 6,
        rate: 5000.0,
        spread: Duration::from_secs(5),
        quiet: Duration::from_secs(2),
    });
}
