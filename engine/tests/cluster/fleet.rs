//! Nodes of a test, in its process or each in one of its own, and their registry.

use std::net::SocketAddr;

use crate::common::process::NodeProcess;
use crate::common::{TestServer, metric, wait_readiness, wait_until};
use crate::process::{KEY, Registry};

/// Channels `n.*` are numbered and keep a history; `b.*` are bridged; anybody may publish.
pub(crate) const CHANNELS: &str = r#"
[[channels]]
pattern = "n.*"
publish = "anyone"
history_size = 100000
history_age_ms = 0
sender = true
presence = "full"
[[channels]]
pattern = "b.*"
publish = "anyone"
presence = "full"
"#;

/// `tls` are more keys of `[cluster]`.
pub(crate) fn toml(key: &str, tls: &str) -> String {
    let cluster = format!("[cluster]\nkey = \"{key}\"\nlisten = \"127.0.0.1:0\"\n");
    format!("{cluster}{tls}{CHANNELS}")
}

/// A registry that takes a node for gone after two seconds.
pub(crate) fn registry() -> Registry {
    Registry::start(&["--node-timeout-ms", "2000"])
}

/// A node in the process of the test.
pub(crate) fn start(registry: &Registry, id: &str) -> TestServer {
    start_with(registry, id, "", "")
}

/// The same with more keys of `[cluster]`, and more TOML.
pub(crate) fn start_with(registry: &Registry, id: &str, tls: &str, more: &str) -> TestServer {
    let place = format!("cluster.registry={}", registry.url());
    let toml = format!("{}{more}", toml(KEY, tls));
    TestServer::start(&toml, &[&place, &format!("server.node_id={id}")])
}

/// So many nodes, once they go by one view.
pub(crate) fn nodes(registry: &Registry, count: usize) -> Vec<TestServer> {
    nodes_with(registry, count, "")
}

/// The same with more TOML.
pub(crate) fn nodes_with(registry: &Registry, count: usize, more: &str) -> Vec<TestServer> {
    let start = |n| start_with(registry, &format!("node-{n}"), "", more);
    let nodes: Vec<TestServer> = (0..count).map(start).collect();
    for node in &nodes {
        wait_members(node.internal, count);
    }
    nodes
}

/// A figure of a node.
pub(crate) fn figure(internal: SocketAddr, name: &str) -> u64 {
    metric(internal, &format!("ringfeed_cluster_{name}")) as u64
}

/// Waits until a node goes by a view of so many, is linked with all others, and can do what it is asked.
pub(crate) fn wait_members(internal: SocketAddr, count: usize) {
    let look = || ["members", "links", "up"].map(|name| figure(internal, name));
    let all = [count as u64, count as u64 - 1, 1];
    wait_until("members, links, up", look, |seen| *seen == all);
}

/// The same, and until it has what others have kept for it.
pub(crate) fn wait_ready(node: &NodeProcess, count: usize) {
    wait_members(node.internal, count);
    wait_readiness(node.internal);
}

/// A node in a process of its own.
pub(crate) fn process(registry: &Registry, id: &str) -> NodeProcess {
    process_with(registry, id, "")
}

/// The same with more TOML.
pub(crate) fn process_with(registry: &Registry, id: &str, more: &str) -> NodeProcess {
    let place = [format!("cluster.registry={}", registry.url()), format!("server.node_id={id}")];
    NodeProcess::start(&format!("{}{more}", toml(KEY, "")), &place)
}
