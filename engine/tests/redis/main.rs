//! Several nodes and the Redis between them.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod cluster;
mod dying;
mod faults;
mod foreign;
mod masters;
mod nodes;
mod presence;
mod queue;
mod receipts;
mod rolling;
mod rooms;
mod server;
mod spool;
mod users;
#[path = "../suite"]
mod suite {
    pub(crate) mod common;
}

pub(crate) use suite::common;

use common::process::NodeProcess;
use common::{TestServer, wait_readiness, wait_until};
use server::RedisServer;

/// `server.io`
const IO: &str = "auto";

/// Channels `n.*` and `u.*` are numbered, and the first keep a history; `b.*` are bridged; anybody may publish.
const CHANNELS: &str = r#"
[[channels]]
pattern = "n.*"
publish = "anyone"
history_size = 100000
history_age_ms = 0
sender = true
[[channels]]
pattern = "u.*"
publish = "anyone"
distribution = "numbered"
[[channels]]
pattern = "b.*"
publish = "anyone"
sender = true
[[channels]]
pattern = "local.*"
distribution = "local"
"#;

/// A node, once it has found Redis.
fn node(redis: &RedisServer, flags: &[&str]) -> TestServer {
    node_of(CHANNELS, redis, flags)
}

/// A node that may not find it.
fn node_alone(redis: &RedisServer, flags: &[&str]) -> TestServer {
    node_of_alone(CHANNELS, &redis.url(), flags)
}

/// A node with this TOML, once it has found Redis.
fn node_of(toml: &str, redis: &RedisServer, flags: &[&str]) -> TestServer {
    let node = node_of_alone(toml, &redis.url(), flags);
    wait_ready(&node, "ready");
    node
}

/// A node with this TOML that may not find Redis there.
fn node_of_alone(toml: &str, url: &str, flags: &[&str]) -> TestServer {
    let url = format!("redis.url={url}");
    let mut all = vec![url.as_str()];
    all.extend(flags);
    TestServer::start(toml, &all)
}

/// A node with this TOML in a process of its own, once it has found Redis.
fn process_of(toml: &str, redis: &RedisServer, sets: &[String]) -> NodeProcess {
    let toml = format!("[redis]\nurl = \"{}\"\n{toml}", redis.url());
    let node = NodeProcess::start(&toml, sets);
    wait_readiness(node.internal);
    node
}

fn metric(node: &TestServer, name: &str) -> f64 {
    common::metric(node.internal, name)
}

/// Waits until a node says this of itself.
fn wait_ready(node: &TestServer, status: &str) {
    let expected = format!("{{\"status\":\"{status}\"}}");
    wait_until("/ready", || node.http("GET", "/ready", "").1, |body| *body == expected);
}
