//! The load generator against a real engine: a clean run is believed, a lossy one is not.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod support;

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use support::{BENCH, Engine, assert_clean, engine_binary};

/// Refuses io_uring as container runtimes do.
const WITHOUT_IO_URING: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/without_io_uring.py");

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
        // Absent where it did not grow; never a figure below 0.
        let kernel = &report["kernel_bytes_per_connection"];
        assert!(kernel.is_null() || kernel.as_f64().is_some_and(|bytes| bytes > 0.0), "{report}");
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

/// A server that takes tokens, and the path of a file with one for each of these users.
fn engine_with_tokens(dir: &Path, users: &[&str], more: &[(&str, &str)]) -> (Engine, String) {
    let config = dir.join("config.toml");
    std::fs::write(&config, TOKENS).unwrap();
    let config = config.to_str().unwrap();
    let make = |user: &str, life: &str| {
        let output = Command::new(engine_binary())
            .args(["token", "make", "--config", config, "--user", user, "--expires", life])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let mut lines = String::new();
    for (n, user) in users.iter().enumerate() {
        let (life, later) = more.get(n).copied().unwrap_or(("1h", ""));
        let later =
            if later.is_empty() { String::new() } else { format!(" 0.2:{}", make(user, later)) };
        lines.push_str(&format!("{}{later}\n", make(user, life)));
    }
    let tokens = dir.join("tokens");
    std::fs::write(&tokens, lines).unwrap();
    let flags = ["--set", "server.shards=2"];
    (Engine::start_with(config, &flags), tokens.to_str().unwrap().to_owned())
}

const TOKENS: &str = r#"
[api]
keys = ["bench"]
[limits]
messages_per_second_max = 0
[[issuers]]
secret = "a secret of the test that is long enough"
leeway_s = 0
[[channels]]
pattern = "*"
subscribe = "users"
[[permissions]]
who = ["user:sender"]
channels = ["*"]
allow = ["send"]
"#;

#[test]
fn tokens_that_expire_end_their_connections_and_renewed_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let lives = [("1h", ""), ("3s", ""), ("3s", "1h"), ("1h", "3s")];
    let (engine, tokens) = engine_with_tokens(dir.path(), &["a", "b", "c", "d"], &lives);
    let endings = dir.path().join("endings");
    let flags = "--conns 4 --rate 50 --duration 5";
    let mut flags: Vec<&str> = flags.split(' ').chain(["--tokens", &tokens]).collect();
    let endings_flag = ["--endings", endings.to_str().unwrap()];
    let (output, report) = engine.loadgen(&[&flags[..], &endings_flag].concat());
    assert_clean(&output, &report, report["expected"].as_u64().unwrap());
    assert_eq!((&report["ended"], &report["renewed"]), (&2.into(), &2.into()), "{report}");
    let ended = std::fs::read_to_string(&endings).unwrap();
    let ended: Vec<serde_json::Value> =
        ended.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut numbers: Vec<_> = ended.iter().map(|ending| ending["connection"].as_u64()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [Some(1), Some(3)]);
    assert!(ended.iter().all(|ending| ending["code"] == 4005), "{ended:?}");
    // Where nobody was to be ended, the same is a failure.
    let (engine, tokens) = engine_with_tokens(dir.path(), &["a", "b"], &[("1h", ""), ("3s", "")]);
    flags = "--conns 2 --rate 50 --duration 5 --tokens".split(' ').chain([&*tokens]).collect();
    let (output, report) = engine.loadgen(&flags);
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert_eq!((&report["disconnected"], &report["ended"]), (&1.into(), &0.into()), "{report}");
}

#[test]
fn what_is_sent_to_users_is_verified_as_what_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let users = ["bench.c0", "bench.c1", "bench.c2", "bench.c0", "bench.c1", "bench.c2", "sender"];
    let (engine, tokens) = engine_with_tokens(dir.path(), &users, &[]);
    let all = std::fs::read_to_string(&tokens).unwrap();
    let sender = all.lines().last().unwrap();
    let flags = "--conns 6 --channels 3 --interest blocks --dialect raw --send --rate 300";
    let flags: Vec<&str> = flags.split(' ').collect();
    for publish in ["api", "ws"] {
        let more = ["--duration", "1", "--tokens", &tokens, "--publish", publish];
        let more = [&more[..], &["--publisher-token", sender]].concat();
        let (output, report) = engine.loadgen(&[&flags[..], &more].concat());
        // 300 messages, each to a user with two connections.
        assert_clean(&output, &report, 600);
        assert!(!report["arguments"].to_string().contains(sender), "{report}");
    }
}
