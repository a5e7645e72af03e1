//! Nodes of a test, in its process or each in one of its own, and their registry.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::common::{Client, PATIENCE, TestServer, http, wait_until};
use crate::process::{KEY, Registry, command};

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

pub(crate) fn toml(key: &str) -> String {
    let cluster = format!("[cluster]\nkey = \"{key}\"\nlisten = \"127.0.0.1:0\"\n");
    format!("{cluster}{CHANNELS}")
}

/// A registry that takes a node for gone after two seconds.
pub(crate) fn registry() -> Registry {
    Registry::start(&["--node-timeout-ms", "2000"])
}

/// A node in the process of the test.
pub(crate) fn start(registry: &Registry, id: &str) -> TestServer {
    start_with(registry, id, "")
}

fn start_with(registry: &Registry, id: &str, more: &str) -> TestServer {
    let place = format!("cluster.registry={}", registry.url());
    let toml = format!("{}{more}", toml(KEY));
    TestServer::start(&toml, &[&place, &format!("server.node_id={id}")])
}

/// So many nodes, once they go by one view.
pub(crate) fn nodes(registry: &Registry, count: usize) -> Vec<TestServer> {
    nodes_with(registry, count, "")
}

/// The same with more TOML.
pub(crate) fn nodes_with(registry: &Registry, count: usize, more: &str) -> Vec<TestServer> {
    let start = |n| start_with(registry, &format!("node-{n}"), more);
    let nodes: Vec<TestServer> = (0..count).map(start).collect();
    for node in &nodes {
        wait_members(node.internal, count);
    }
    nodes
}

/// A figure of a node.
pub(crate) fn figure(internal: SocketAddr, name: &str) -> u64 {
    let (_, text) = http(internal, "GET", "/metrics", "", "");
    let prefix = format!("ringfeed_cluster_{name}");
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {prefix} in {text}")).parse::<f64>().unwrap() as u64
}

/// Waits until a node goes by a view of so many, is linked with all others, and can do what it is asked.
pub(crate) fn wait_members(internal: SocketAddr, count: usize) {
    let look = || ["members", "links", "up"].map(|name| figure(internal, name));
    let all = [count as u64, count as u64 - 1, 1];
    wait_until("members, links, up", look, |seen| *seen == all);
}

/// A node in a process of its own.
pub(crate) struct Process {
    child: Child,
    pub(crate) public: SocketAddr,
    pub(crate) internal: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Process {
    pub(crate) fn start(registry: &Registry, id: &str) -> Process {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.toml");
        std::fs::write(&file, toml(KEY)).unwrap();
        let ports = [(); 2]
            .map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
        let [public, internal] = ports;
        let mut command: Command = command();
        command.arg("serve").arg("--config").arg(&file);
        for set in [
            format!("server.listen={public}"),
            format!("api.listen={internal}"),
            format!("cluster.registry={}", registry.url()),
            format!("server.node_id={id}"),
            "server.pin=false".into(),
            "server.shards=1".into(),
            "server.drain_spread_ms=100".into(),
            "server.drain_timeout_ms=1000".into(),
            "limits.messages_per_second_max=0".into(),
        ] {
            command.arg("--set").arg(set);
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(internal).is_err() {
            assert!(Instant::now() < deadline, "the node does not listen");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Process { child, public, internal, _dir: dir }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.public, "/ws?protocol=ringfeed.v1")
    }

    /// Publishes over the API, the same data once however often this is called: the status, and what is answered.
    pub(crate) fn publish(&self, channel: &str, data: Value) -> (u16, Value) {
        let body = json!({"channel": channel, "data": data, "idempotency_key": data.to_string()});
        let body = body.to_string();
        let (status, body) = http(self.internal, "POST", "/api/publish", "", &body);
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").arg(format!("-{name}")).arg(id).status().unwrap().success());
    }

    /// Waits until it has ended, and has done so well.
    pub(crate) fn wait(&mut self) {
        assert!(self.child.wait().unwrap().success());
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
