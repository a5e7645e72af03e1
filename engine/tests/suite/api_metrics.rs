//! `/metrics` and `/api/stats`.

use super::common::TestServer;
use serde_json::json;

#[test]
fn figures_are_told_by_shard_and_by_reason() {
    let server = TestServer::open(&["server.shards=2"]);
    for i in 0..20 {
        server.publish(&format!("open.{i}"), json!(1));
    }
    let (status, text) = server.http("GET", "/metrics", "");
    assert_eq!(status, 200);
    let value = |series: &str| -> f64 {
        let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
    };
    let by_shard = [0, 1].map(|s| value(&format!("ringfeed_publications_total{{shard=\"{s}\"}}")));
    assert_eq!(by_shard.iter().sum::<f64>(), 20.0);
    for series in [
        r#"ringfeed_closes_total{shard="0",reason="slow",code="4002"}"#,
        r#"ringfeed_closes_total{shard="1",reason="peer_gone",code=""}"#,
        r#"ringfeed_refused_total{shard="0",reason="busy_handshakes"}"#,
        r#"ringfeed_gaps_total{shard="0"}"#,
        r#"ringfeed_lag_disconnects_total{shard="0"}"#,
        r#"ringfeed_turn_max_us{shard="0"}"#,
        r#"ringfeed_turn_seconds_bucket{le="0.001024",shard="0"}"#,
        r#"ringfeed_delivery_seconds_bucket{le="+Inf",shard="1"}"#,
        r#"ringfeed_delivery_seconds_sum{shard="1"}"#,
        "ringfeed_api_connections",
        r#"ringfeed_api_requests_total{status="200"}"#,
        "process_open_fds",
        "process_max_fds",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
    ] {
        value(series);
    }
    assert!(value(r#"ringfeed_turn_seconds_count{shard="0"}"#) > 0.0);
    assert!(value("process_start_time_seconds") > 1.7e9);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(value(&format!("ringfeed_build_info{{version=\"{version}\"}}")), 1.0);
    assert!(text.ends_with("# EOF\n"), "OpenMetrics ends so");
    let buckets = text.lines().filter(|line| {
        line.starts_with("ringfeed_turn_seconds_bucket{") && line.contains("shard=\"0\"")
    });
    let counts: Vec<f64> =
        buckets.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(counts.is_sorted(), "buckets are cumulative: {counts:?}");
}

#[test]
fn stats_have_totals_and_each_shard() {
    let server = TestServer::open(&["server.shards=2"]);
    for i in 0..20 {
        server.publish(&format!("open.{i}"), json!(1));
    }
    let stats = server.get("/api/stats");
    let shards = stats["by_shard"].as_array().unwrap();
    assert_eq!(shards.len(), 2);
    let of = |shard: usize| shards[shard]["publications"].as_u64().unwrap();
    assert_eq!((of(0) + of(1), &stats["totals"]["publications"]), (20, &json!(20)));
    assert_eq!(shards[1]["shard"], 1);
    assert!(stats["closes"]["slow"].is_u64() && stats["refused"]["timeout"].is_u64(), "{stats}");
    assert!(stats["turn_us"]["p99"].is_u64() && stats["delivery_us"]["count"].is_u64(), "{stats}");
    assert!(stats["api"]["connections"].as_u64().unwrap() >= 1);
    let longest = (0..2).map(|s| shards[s]["turn_max_us"].as_u64().unwrap()).max().unwrap();
    assert_eq!(stats["totals"]["turn_max_us"], longest, "of maxima the largest");
}
