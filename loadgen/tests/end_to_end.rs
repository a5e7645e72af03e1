//! The load generator against a real engine: a clean run is believed, a lossy one is not.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const BENCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/bench.toml");

struct Engine {
    child: Child,
    url: String,
    api: String,
}

/// The engine's binary: where the tests were told, or beside this one, built if need be.
fn engine_binary() -> PathBuf {
    if let Ok(dir) = std::env::var("RINGFEED_BIN_DIR") {
        return Path::new(&dir).join("ringfeed");
    }
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "ringfeed-engine", "--bin", "ringfeed"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.unwrap().success());
    Path::new(env!("CARGO_BIN_EXE_loadgen")).with_file_name("ringfeed")
}

impl Engine {
    fn start(flags: &[&str]) -> Engine {
        Engine::start_with(BENCH, flags)
    }

    fn start_with(config: &str, flags: &[&str]) -> Engine {
        let mut child = Command::new(engine_binary())
            .args(["serve", "--config", config, "--port", "0"])
            .args(["--set", "api.listen=127.0.0.1:0", "--set", "server.pin=false"])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let (mut url, mut api) = (String::new(), String::new());
        while api.is_empty() {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "the engine ended");
            if let Some((_, address)) = line.trim().split_once("clients connect to ") {
                url = address.to_owned();
            }
            if let Some((_, address)) = line.trim().split_once("metrics at ") {
                api = address.to_owned();
            }
        }
        Engine { child, url, api }
    }

    fn loadgen(&self, args: &[&str]) -> (Output, Value) {
        let dir = tempfile::tempdir().unwrap();
        let json = dir.path().join("report.json");
        // Options belong to the subcommand, if there is one.
        let (scenario, rest) = match args.first() {
            Some(&first) if !first.starts_with('-') => (Some(first), &args[1..]),
            _ => (None, args),
        };
        let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(scenario)
            .args(["--quiet", "--url", &self.url, "--api", &self.api, "--json"])
            .arg(&json)
            .args(rest)
            .output()
            .unwrap();
        let report =
            std::fs::read(&json).map_or(Value::Null, |r| serde_json::from_slice(&r).unwrap());
        (output, report)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

fn assert_clean(output: &Output, report: &Value, expected: u64) {
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

#[test]
fn a_constant_rate_in_both_dialects_over_both_ways_of_publishing() {
    let engine = Engine::start(&["--set", "server.shards=2"]);
    for publish in ["api", "ws"] {
        let (output, report) = engine.loadgen(&[
            "--conns",
            "60",
            "--channels",
            "6",
            "--subscriptions",
            "3",
            "--dialect",
            "both",
            "--rate",
            "600",
            "--duration",
            "1",
            "--publish",
            publish,
            "--threads",
            "2",
        ]);
        // 60 connections × 3 of 6 channels = 30 on each: 600 messages × 30.
        assert_clean(&output, &report, 18_000);
        assert!(report["server"]["cpu_system_ns_per_delivery"].is_number());
    }
}

#[test]
fn a_recording_is_replayed_byte_for_byte_as_fast_as_it_goes() {
    let engine = Engine::start(&["--set", "server.shards=2"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("made_up_20240101.gz");
    let out = std::fs::File::create(&file).unwrap();
    let mut gz = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
    for i in 0..5000u64 {
        let pad = "é\\u00e9 ".repeat((i % 17) as usize);
        let stream = ["abc@trade", "abc@depth"][(i % 2) as usize];
        writeln!(gz, "{} {{\"stream\":\"{stream}\",\"data\":[{i},\"{pad}\"]}}", i * 1_000_000)
            .unwrap();
    }
    gz.finish().unwrap();
    let file = file.to_str().unwrap();
    let (output, report) = engine
        .loadgen(&["replay", "--file", file, "--speed", "0", "--clone", "2", "--conns", "80"]);
    // Two streams, two clones, two dialects: 80 connections are 20 on each channel.
    assert_clean(&output, &report, 5000 * 2 * 20);
    assert_eq!(report["channels"], 4);
    let (output, report) =
        engine.loadgen(&["replay", "--file", file, "--speed", "5", "--conns", "8"]);
    assert_clean(&output, &report, 5000 * 4);
}

#[test]
fn a_run_in_which_the_server_leaves_something_out_ends_with_1() {
    // Readers with tiny windows and socket buffers, far too much published at once.
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("lossy.toml");
    std::fs::write(
        &config,
        "[[channels]]\npattern = \"*\"\nwindow_bytes = 4096\nwindow_age_ms = 100\n",
    )
    .unwrap();
    let flags = ["--set", "server.send_buffer_bytes=4608"];
    let engine = Engine::start_with(config.to_str().unwrap(), &flags);
    let (output, report) = engine.loadgen(&[
        "--conns",
        "300",
        "--rate",
        "40000",
        "--burst",
        "4000",
        "--size",
        "4000",
        "--duration",
        "1",
        "--grace",
        "2",
    ]);
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert!(report["lost"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["lost"], report["gaps_told"], "every loss was told: {report}");
    assert!(report["first_problem"].as_str().unwrap().contains("gap"));
}

#[test]
fn what_cannot_be_run_ends_with_2_and_a_reason() {
    let engine = Engine::start(&[]);
    let (output, _) = engine.loadgen(&["replay", "--file", "/does/not/exist"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/does/not/exist"));
    let (output, _) = engine.loadgen(&["--api-key", "wrong", "--conns", "2", "--duration", "1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("401"), "{output:?}");
    let nobody = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["--quiet", "--url", "ws://127.0.0.1:9/ws", "--conns", "1"])
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("could not be opened"), "{nobody:?}");
}
