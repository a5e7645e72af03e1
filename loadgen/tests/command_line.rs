//! What is said before, about and after a run.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::foreign::{no_greeting, right, serve};
use support::{Engine, assert_clean, loadgen};

const NOBODY: &str = "ws://127.0.0.1:9/ws";
/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn help(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen")).args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_stands_in_groups_and_offers_what_means_something() {
    for flag in ["-h", "--help"] {
        let text = help(&[flag]);
        assert!(!text.starts_with(char::is_whitespace), "{text}");
        assert!(text.starts_with("Opens connections, publishes, and verifies"), "{text}");
        let group = |name: &str| {
            let begin =
                text.find(&format!("\n{name}:\n")).unwrap_or_else(|| panic!("{name}: {text}"));
            let rest = &text[begin + 1..];
            let end = rest.find("\n\n").filter(|_| flag == "-h").unwrap_or(rest.len());
            rest[..end].to_owned()
        };
        assert!(group("Messages").contains("--rate"), "{text}");
        assert!(group("Traffic").contains("--interest"), "{text}");
        assert!(group("Connections").contains("--conns"), "{text}");
        assert!(!group("Other servers than ringfeed").contains("--rate"), "{text}");
        assert!(text.contains("[default: both for replay, else ringfeed]"), "{text}");
    }
    for scenario in ["storm", "idle"] {
        let text = help(&[scenario, "-h"]);
        for flag in ["--churn", "--stalled", "--publish ", "--interest", "--settle"] {
            assert!(!text.contains(flag), "{scenario} {flag}: {text}");
        }
    }
    let text = help(&["replay", "--help"]);
    for part in ["\"stream\"", "nanoseconds", "--max-pause"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(help(&["completions", shell]).contains("--subscriptions"), "{shell}");
    }
}

#[test]
fn what_is_missing_is_named_before_anything_is_opened() {
    let unwritable = "/does/not/exist/report.json";
    let cases: [(&[&str], &str); 5] = [
        (&["--subscribe-frame", "SUB {channel}"], "--publish-frame is missing"),
        (&["--publish-hello", "HELLO"], "--publish-hello means nothing without --publish-frame"),
        (&["--json", unwritable], "--json /does/not/exist/report.json: No such file"),
        (&["--duration=-1"], "0 to 1000000000"),
        (&["--url", "wss://localhost/"], "loadgen speaks no TLS"),
    ];
    for (flags, why) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(["--quiet", "--conns", "1"])
            .args(if flags[0] == "--url" { vec![] } else { vec!["--url", NOBODY] })
            .args(flags)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {output:?}");
        assert!(said(&output).contains(why), "{flags:?}: {}", said(&output));
    }
}

#[test]
fn what_does_not_come_about_is_named() {
    // It answers nobody's subscription.
    let deaf = serve(|_, _, _, _| vec![], no_greeting);
    let (output, _) = loadgen(
        &deaf,
        &[
            "--conns",
            "3",
            "--channels",
            "2",
            "--subscriptions",
            "0",
            "--grace",
            "0.5",
            "--subscribe-frame",
            "SUB {channel}",
            "--publish-frame",
            "PUB {channel} {payload}",
        ],
    );
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(said(&output).contains("only 0 of 6 subscriptions stood"), "{}", said(&output));
}

#[test]
fn the_report_says_what_was_run_and_how_it_went() {
    let engine = Engine::start(&[]);
    let flags = ["--conns", "5", "--duration", "0.5", "--interest", "popular", "--seed", "7"];
    let (output, report) = engine.loadgen(&flags);
    assert_clean(&output, &report, 250);
    assert_eq!(report["passed"], true);
    let verdict = "every subscriber got every message, once, in order and unchanged";
    assert_eq!(report["verdict"], verdict);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["interest"], "popular");
    assert_eq!(report["seed"], 7);
    assert_eq!(report["interrupted"], false);
    assert_eq!(report["closes"], Value::Array(vec![]));
    let arguments = report["arguments"].as_array().unwrap();
    assert!(arguments.iter().any(|argument| argument == "popular"), "{arguments:?}");
    let started = report["started_at"].as_str().unwrap();
    assert!(started.ends_with('Z') && started.len() == 20, "{started}");
}

#[test]
fn figures_of_the_server_are_those_of_the_run_and_not_below_0() {
    let engine = Engine::start(&[]);
    // The first run has the longest turn, and leaves memory that the second one finds.
    engine.loadgen(&["--conns", "500", "--rate", "20000", "--burst", "4000", "--duration", "1"]);
    let (output, report) = engine.loadgen(&["--conns", "2", "--duration", "0.5"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains(" -") && !text.contains("(-"), "{text}");
    let of_run = report["server"]["turn_max_is_of_run"].as_bool().unwrap();
    assert_eq!(text.contains("no turn was longer than"), !of_run, "{text}");
}

#[test]
fn an_interrupted_run_says_so() {
    let engine = Engine::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let mut child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["--url", &engine.url, "--api", &engine.api, "--conns", "5", "--duration", "600"])
        .args(["--dialect", "raw", "--json"])
        .arg(&json)
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It says that warm-up messages are published once all are connected; the handler stands by
    // then.
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("warmup") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0);
    }
    // More than the warm-up.
    let deadline = Instant::now() + PATIENCE;
    while engine.stats()["totals"]["publications"].as_u64().unwrap() < 30 {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it publishes nothing");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
    );
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["interrupted"], true, "{text}");
    let verdict = report["verdict"].as_str().unwrap();
    assert!(
        verdict.starts_with("INTERRUPTED: ") && verdict.contains("of 60000 messages"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(i32::from(report["passed"] != true)), "{text}");
}

/// Answers to a request for figures with none, and to publications with nothing behind the head.
fn take(mut stream: TcpStream, taken: &SyncSender<()>) {
    let (mut request, mut bytes) = (Vec::new(), [0; 4096]);
    let mut read_until = |stream: &mut TcpStream, end: &[u8]| {
        while !request.ends_with(end) {
            let count = stream.read(&mut bytes).unwrap();
            assert!(count > 0);
            request.extend_from_slice(&bytes[..count]);
        }
        request.starts_with(b"POST")
    };
    if read_until(&mut stream, b"\r\n\r\n") {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        read_until(&mut stream, b"\r\n0\r\n\r\n");
        taken.send(()).unwrap();
        let _ = stream.read(&mut [0]);
    }
}

/// An HTTP API that takes publications and acknowledges none; says so when it has taken all.
fn silent_api() -> (String, Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (taken, all) = sync_channel(1);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let taken = taken.clone();
            std::thread::spawn(move || take(stream.unwrap(), &taken));
        }
    });
    (address, all)
}

#[test]
fn an_interrupt_ends_a_run_whose_server_acknowledges_nothing() {
    let (api, all_taken) = silent_api();
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["--quiet", "--url", &serve(right, no_greeting), "--api", &api])
        .args(["--conns", "2", "--rate", "50", "--duration", "0.2", "--grace", "0.5", "--json"])
        .arg(&json)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    all_taken.recv().unwrap();
    assert!(
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
    );
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let verdict = report["verdict"].as_str().unwrap();
    assert!(verdict.starts_with("INTERRUPTED: "), "{verdict}");
    assert!(verdict.contains("acknowledged 0 of 10 publications and then nothing"), "{verdict}");
}

#[test]
fn the_sample_recording_is_in_order() {
    let engine = Engine::start(&["--set", "server.shards=2"]);
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../recordings/sample_20260101.gz");
    let flags = ["--conns", "30", "--subscriptions", "0", "--speed", "0", "--clone", "2"];
    let flags = [&["replay", "--file", sample][..], &flags].concat();
    let (output, report) = engine.loadgen(&flags);
    assert_clean(&output, &report, 2167 * 2 * 30);
    assert_eq!(report["channels"], 18);
    assert!(!said(&output).contains("warning"), "{}", said(&output));
    assert!(
        said(&output).contains("4334 messages of 1 min 0 s on 18 channels"),
        "{}",
        said(&output)
    );
    let (output, report) = loadgen(
        &serve(right, no_greeting),
        &[
            "replay",
            "--file",
            sample,
            "--speed",
            "0",
            "--conns",
            "4",
            "--publish",
            "ws",
            "--interest",
            "blocks",
            "--dialect",
            "ringfeed",
            "--seconds",
            "5",
        ],
    );
    assert_eq!(report["passed"], true, "{output:?}");
}

#[test]
fn long_waits_are_told() {
    let engine = Engine::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("two_days");
    let days = 48 * 3_600_000_000_000u64;
    let text =
        format!("1 {{\"stream\":\"a\"}}\n2 {{\"stream\":\"a\"}}\n{days} {{\"stream\":\"a\"}}\n");
    std::fs::write(&file, text).unwrap();
    let flags = ["--conns", "2", "--max-pause", "0.2", "--file", file.to_str().unwrap()];
    let (output, report) = engine.loadgen(&[&["replay"][..], &flags].concat());
    assert_clean(&output, &report, 6);
    let told = "a pause of 2 days 0 h behind message 2 is shortened to 0.2 s";
    assert!(said(&output).contains(told), "{}", said(&output));
    assert!(said(&output).contains("3 messages of 2 days 0 h on 1 channels, published in 0.2 s"));
}
