//! Nodes without a broker that are stopped and started again one after the other, under load.

use crate::common::process::NodeProcess;
use crate::common::rolling::{FEW, FULL_LOAD, Scene, restart_each};
use crate::fleet::{registry, toml, wait_members, wait_ready};
use crate::process::KEY;

fn restart(scene: Scene) {
    let registry = registry();
    let start = |at: usize| {
        let place =
            [format!("cluster.registry={}", registry.url()), format!("server.node_id=node-{at}")];
        NodeProcess::start(&toml(KEY, ""), &[&place[..], &scene.sets()].concat())
    };
    let nodes: Vec<NodeProcess> = (0..3).map(start).collect();
    nodes.iter().for_each(|node| wait_members(node.internal, 3));
    let outcome = restart_each(scene, nodes, |at| {
        let node = start(at);
        wait_ready(&node, 3);
        node
    });
    outcome.check_nothing_missed(scene, 3);
}

#[test]
fn nodes_are_started_again_one_after_the_other_and_nobody_misses_anything() {
    restart(FEW);
}

/// Says what docs/BENCHMARKS.md has of it: `cargo test -p ringfeed-engine --test cluster rolling_restart -- --ignored --nocapture`.
#[test]
#[ignore = "it takes half a minute and all cores"]
fn rolling_restart_at_full_load() {
    restart(FULL_LOAD);
}
