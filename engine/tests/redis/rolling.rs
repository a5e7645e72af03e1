//! Nodes with Redis that are stopped and started again one after the other, under load.

use std::time::Duration;

use crate::common::rolling::{Scene, restart_each};
use crate::{CHANNELS, RedisServer, process_of};

fn restart(scene: Scene) {
    let redis = RedisServer::start(&[]);
    let start = || {
        let sets = [
            format!("server.drain_spread_ms={}", scene.spread.as_millis()),
            "server.drain_timeout_ms=10000".into(),
            "server.shards=2".into(),
        ];
        process_of(CHANNELS, &redis, &sets)
    };
    let nodes = (0..3).map(|_| start()).collect();
    let outcome = restart_each(scene, nodes, |_| start());
    println!("{}", outcome.summary(scene.spread));
    assert_eq!((outcome.missed, outcome.twice), (0, 0));
    assert_eq!((outcome.gaps, outcome.unrecovered, outcome.cut), (0, 0, 0));
    assert_eq!((outcome.acknowledged, outcome.returns.len()), (outcome.sent, 3));
}

#[test]
fn nodes_are_started_again_one_after_the_other_and_nothing_is_missed() {
    restart(Scene {
        subscribers: 60,
        channels: 20,
        publishers: 3,
        rate: 500.0,
        spread: Duration::from_millis(500),
        quiet: Duration::from_millis(100),
    });
}

/// Says what docs/BENCHMARKS.md has of it: `cargo test -p ringfeed-engine --test redis rolling_restart -- --ignored --nocapture`.
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
