//! What the tests of the load generator share: a real engine, and a run against a server.
#![allow(dead_code, unreachable_pub, missing_docs)] // each test file uses a part of it

pub mod foreign;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

pub const BENCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/bench.toml");

pub struct Engine {
    pub child: Child,
    pub url: String,
    pub api: String,
    /// What it logged until it was ready.
    pub log: String,
}

/// The engine's binary: where the tests were told, or beside this one, built if it is older than
/// its sources. Cargo is asked only then: every test is a process of its own in some runners.
pub fn engine_binary() -> PathBuf {
    if let Ok(dir) = std::env::var("RINGFEED_BIN_DIR") {
        return Path::new(&dir).join("ringfeed");
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_loadgen")).with_file_name("ringfeed");
    if !is_newer_than_sources(&binary) {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "ringfeed-engine", "--bin", "ringfeed"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(built.unwrap().success());
        // Cargo leaves it as it was where only the time of a source is newer.
        let file = std::fs::File::options().append(true).open(&binary);
        let _ = file.and_then(|file| file.set_modified(std::time::SystemTime::now()));
    }
    binary
}

fn is_newer_than_sources(binary: &Path) -> bool {
    let changed = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    let Some(built) = changed(binary) else { return false };
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut paths = vec![root.join("Cargo.lock"), root.join("Cargo.toml")];
    paths.extend(["engine", "wire", "protocol", "config"].map(|name| root.join(name)));
    while let Some(path) = paths.pop() {
        if path.file_name().is_some_and(|name| name == "tests") {
            continue;
        }
        if let Ok(entries) = path.read_dir() {
            paths.extend(entries.flatten().map(|entry| entry.path()));
        } else if changed(&path).is_none_or(|changed| changed > built) {
            return false;
        }
    }
    true
}

impl Engine {
    pub fn start(flags: &[&str]) -> Engine {
        Engine::start_with(BENCH, flags)
    }

    pub fn start_with(config: &str, flags: &[&str]) -> Engine {
        Engine::launch(Command::new(engine_binary()), config, flags)
    }

    pub fn launch(mut command: Command, config: &str, flags: &[&str]) -> Engine {
        let mut child = command
            .args(["serve", "--config", config, "--port", "0"])
            .args(["--set", "api.listen=127.0.0.1:0", "--set", "server.pin=false"])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let (mut url, mut api, mut log) = (String::new(), String::new(), String::new());
        while api.is_empty() {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "the engine ended: {log}");
            log.push_str(&line);
            if let Some((_, address)) = line.trim().split_once("clients connect to ") {
                url = address.to_owned();
            }
            if let Some((_, address)) = line.trim().split_once("metrics at ") {
                api = address.to_owned();
            }
        }
        Engine { child, url, api, log }
    }

    /// What it says of itself.
    pub fn stats(&self) -> Value {
        let mut stream = TcpStream::connect(self.api.trim_start_matches("http://")).unwrap();
        let request = "GET /api/stats HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\
                       Authorization: Bearer bench\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    pub fn loadgen(&self, args: &[&str]) -> (Output, Value) {
        loadgen(&self.url, &[&["--api", &self.api], args].concat())
    }
}

/// Runs the load generator against a server; its output, and its report if it wrote one.
pub fn loadgen(url: &str, args: &[&str]) -> (Output, Value) {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    // Options belong to the subcommand, if there is one.
    let scenarios = ["replay", "demo", "storm", "idle"];
    let (scenario, rest): (Vec<&str>, Vec<&str>) =
        args.iter().partition(|argument| scenarios.contains(argument));
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(scenario)
        .args(["--quiet", "--url", url, "--json"])
        .arg(&json)
        .args(rest)
        .output()
        .unwrap();
    let report = std::fs::read(&json).map_or(Value::Null, |r| serde_json::from_slice(&r).unwrap());
    (output, report)
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

pub fn assert_clean(output: &Output, report: &Value, expected: u64) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for (key, value) in [
        ("expected", expected),
        ("delivered", expected),
        ("lost", 0),
        ("duplicated", 0),
        ("reordered", 0),
        ("corrupted", 0),
    ] {
        assert_eq!(report[key], value, "{key}: {report}");
    }
    assert!(report["latency_us"]["p99"].as_f64().unwrap() > 0.0);
    assert!(report["opening_seconds"].as_f64().unwrap() > 0.0);
}
