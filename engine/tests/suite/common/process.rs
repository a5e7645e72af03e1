//! Nodes in processes of their own, which can be killed and stopped.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Client, PATIENCE, http};

/// This program, for which nothing is set that is set for the tests themselves.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RINGFEED_") {
            command.env_remove(name);
        }
    }
    command
}

/// Killed when dropped.
pub struct NodeProcess {
    child: Child,
    pub public: SocketAddr,
    pub internal: SocketAddr,
    dir: tempfile::TempDir,
}

impl NodeProcess {
    /// With this TOML and these settings, once it listens.
    pub fn start(toml: &str, sets: &[String]) -> NodeProcess {
        let ports = [(); 2]
            .map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
        NodeProcess::start_at(ports, &[], toml, sets)
    }

    /// The same with its public and its internal port, by a program that executes it with these arguments in front of it.
    pub fn start_at(
        [public, internal]: [SocketAddr; 2],
        wrapped: &[String],
        toml: &str,
        sets: &[String],
    ) -> NodeProcess {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.toml");
        std::fs::write(&file, toml).unwrap();
        let mut words = wrapped.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_ringfeed")]);
        let mut command = command(words.next().unwrap());
        command.args(words);
        command.arg("serve").arg("--config").arg(&file);
        let own = [
            format!("server.listen={public}"),
            format!("api.listen={internal}"),
            "server.pin=false".into(),
            "server.shards=1".into(),
            "server.drain_spread_ms=100".into(),
            "server.drain_timeout_ms=1000".into(),
            "limits.messages_per_second_max=0".into(),
        ];
        for set in own.iter().chain(sets) {
            command.arg("--set").arg(set);
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(internal).is_err() {
            assert!(Instant::now() < deadline, "the node does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        NodeProcess { child, public, internal, dir }
    }

    pub fn client(&self) -> Client {
        Client::connect(self.public, "/ws?protocol=ringfeed.v1")
    }

    /// Publishes over the API, the same data once however often this is called: the status, and what is answered.
    pub fn publish(&self, channel: &str, data: &Value) -> (u16, Value) {
        let body = json!({"channel": channel, "data": data, "idempotency_key": data.to_string()});
        let (status, body) = http(self.internal, "POST", "/api/publish", "", &body.to_string());
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    /// Gives it another file, and has it read that.
    pub fn reload(&self, toml: &str) {
        std::fs::write(self.dir.path().join("node.toml"), toml).unwrap();
        self.signal("HUP");
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").arg(format!("-{name}")).arg(id).status().unwrap().success());
    }

    /// Waits until it has ended, and has done so well.
    pub fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the node does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(self.child.wait().unwrap().success());
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
