//! Nodes with Redis that are stopped and started again one after the other, under load.

use crate::common::rolling::{FEW, FULL_LOAD, Scene, restart_each};
use crate::{CHANNELS, RedisServer, process_of};

fn restart(scene: Scene) {
    let redis = RedisServer::start(&[]);
    let start = || process_of(CHANNELS, &redis, &scene.sets());
    let nodes = (0..3).map(|_| start()).collect();
    let outcome = restart_each(scene, nodes, |_| start());
    outcome.check_nothing_missed(scene, 3);
}

#[test]
fn nodes_are_started_again_one_after_the_other_and_nothing_is_missed() {
    restart(FEW);
}

/// Says what docs/BENCHMARKS.md has of it: `cargo test -p ringfeed-engine --test redis rolling_restart -- --ignored --nocapture`.
#[test]
#[ignore = "it takes half a minute and all cores"]
fn rolling_restart_at_full_load() {
    restart(FULL_LOAD);
}
