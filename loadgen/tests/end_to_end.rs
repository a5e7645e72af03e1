//! The load generator against a real engine: a clean run is believed, a lossy one is not.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const BENCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/bench.toml");

/// Refuses io_uring as container runtimes do.
const WITHOUT_IO_URING: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/without_io_uring.py");

struct Engine {
    child: Child,
    url: String,
    api: String,
    /// What it logged until it was ready.
    log: String,
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
        Engine::launch(Command::new(engine_binary()), config, flags)
    }

    fn launch(mut command: Command, config: &str, flags: &[&str]) -> Engine {
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
            "--interest",
            "blocks",
        ]);
        // 60 connections × 3 of 6 channels = 30 on each: 600 messages × 30.
        assert_clean(&output, &report, 18_000);
        assert!(report["server"]["cpu_system_ns_per_delivery"].is_number());
    }
}

#[test]
fn any_interest_is_verified_in_every_dialect_and_drawn_again_from_the_same_seed() {
    let engine = Engine::start(&["--set", "server.shards=2"]);
    let flags = "--conns 40 --channels 50 --subscriptions 7 --rate 1000 --duration 1 --interest";
    let templates = [
        "--subscribe-frame",
        r#"{"type":"subscribe","channel":"{channel}"}"#,
        "--publish-frame",
        r#"{"type":"publish","channel":"{channel}","data":{payload}}"#,
    ];
    for interest in ["random", "popular", "blocks"] {
        let mut all_expected = Vec::new();
        for speech in [&["--dialect", "ringfeed"][..], &["--dialect", "raw"], &templates] {
            let flags: Vec<&str> = flags.split(' ').chain([interest]).collect();
            let (output, report) = engine.loadgen(&[&flags, speech].concat());
            let expected = report["expected"].as_u64().unwrap_or(0);
            assert!(expected > 1000, "{report}");
            assert_clean(&output, &report, expected);
            all_expected.push(expected);
        }
        assert!(all_expected.iter().all(|&n| n == all_expected[0]), "{all_expected:?}");
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
    let (output, report) = engine.loadgen(&[
        "replay",
        "--file",
        file,
        "--speed",
        "0",
        "--clone",
        "2",
        "--conns",
        "80",
        "--interest",
        "blocks",
    ]);
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

#[test]
fn without_io_uring_both_sides_go_on_over_epoll_and_say_why_once() {
    let mut command = Command::new(WITHOUT_IO_URING);
    command.arg(engine_binary());
    let engine = Engine::launch(command, BENCH, &["--set", "server.shards=2"]);
    assert_eq!(engine.log.matches("Serving with epoll instead").count(), 1, "{}", engine.log);
    assert!(engine.log.contains("seccomp"), "{}", engine.log);
    let flags = ["--conns", "40", "--rate", "500", "--duration", "1", "--dialect", "both"];
    let (output, report) = engine.loadgen(&flags);
    assert_clean(&output, &report, 20_000);
    let output = Command::new(WITHOUT_IO_URING)
        .args([env!("CARGO_BIN_EXE_loadgen"), "--quiet", "--url", &engine.url])
        .args(["--api", &engine.api])
        .args(flags)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("going on with epoll"), "{output:?}");
}

#[test]
fn connections_and_subscriptions_come_and_go_under_load() {
    let engine = Engine::start(&["--set", "server.shards=2"]);
    let (output, report) = engine.loadgen(&[
        "--conns",
        "200",
        "--channels",
        "10",
        "--subscriptions",
        "3",
        "--rate",
        "1000",
        "--duration",
        "2",
        "--churn",
        "300",
    ]);
    let expected = report["expected"].as_u64().unwrap_or(0);
    assert_clean(&output, &report, expected);
    for key in ["replaced", "resubscribed"] {
        assert!(report[key].as_u64().unwrap() > 10, "{key}: {report}");
    }
    assert_eq!(report["server_memory"]["returned"], true, "{report}");
}

#[test]
fn stalled_connections_are_not_waited_for_and_harm_nobody() {
    let engine = Engine::start(&[]);
    let (output, report) = engine.loadgen(&[
        "--conns",
        "50",
        "--stalled",
        "10",
        "--rate",
        "2000",
        "--size",
        "4000",
        "--duration",
        "1",
        "--publish",
        "ws",
    ]);
    assert_clean(&output, &report, 80_000);
    assert_eq!(report["stalled"], 10);
}

#[test]
fn a_storm_and_an_idle_crowd_are_reported() {
    let engine = Engine::start(&[]);
    for scenario in [&["storm"][..], &["idle", "--duration", "0.5"]] {
        let (output, report) = engine.loadgen(&[scenario, &["--conns", "500"]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(report["published"], 0);
        assert!(report["kernel_bytes_per_connection"].is_number());
        assert_eq!(report["server_memory"]["returned"], true, "{report}");
    }
}

#[test]
fn a_server_is_spoken_to_by_templates_and_stamps_are_recognised() {
    let engine = Engine::start(&[]);
    let (output, report) = engine.loadgen(&[
        "--conns",
        "40",
        "--channels",
        "8",
        "--subscriptions",
        "4",
        "--interest",
        "blocks",
        "--rate",
        "800",
        "--duration",
        "1",
        "--subscribe-frame",
        r#"{"type":"subscribe","channel":"{channel}"}"#,
        "--publish-frame",
        r#"{"type":"publish","channel":"{channel}","data":{payload}}"#,
        "--server-pid",
        &engine.child.id().to_string(),
    ]);
    // 40 connections on 4 of 8 channels: 20 on each.
    assert_clean(&output, &report, 16_000);
    assert!(report["server"]["resident_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn limits_of_the_machine_are_named_before_the_start() {
    let nobody = "ws://127.0.0.1:9/ws";
    let run = |flags: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(["--quiet", "--url", nobody])
            .args(flags)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let ports = run(&["--conns", "70000", "--from", "127.0.0.1"]);
    assert!(ports.contains("sysctl -w net.ipv4.ip_local_port_range"), "{ports}");
    let files = run(&["--conns", "2000000000", "--io", "epoll"]);
    assert!(files.contains("ulimit -n 2000000064"), "{files}");
    let memory = run(&["--conns", "60000000"]);
    assert!(memory.contains("MiB are available"), "{memory}");
}
