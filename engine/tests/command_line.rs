//! The `ringfeed` binary as an operator meets it.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

fn ringfeed(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringfeed")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A server on free ports, and the addresses it logged: public, internal.
fn serve(extra: &[&str]) -> (Child, String, String, BufReader<std::process::ChildStderr>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringfeed"))
        .args(["serve", "--port", "0", "--set", "api.listen=127.0.0.1:0"])
        .args(["--set", "server.shards=1", "--set", "server.pin=false"])
        .args(extra)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let (mut public, mut internal) = (String::new(), String::new());
    while internal.is_empty() {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "the server ended: {line}");
        if let Some((_, address)) = line.trim().split_once("connect to ws://") {
            public = address.trim_end_matches("/ws").to_owned();
        }
        if let Some((_, address)) = line.trim().split_once("metrics at http://") {
            internal = address.to_owned();
        }
    }
    (child, public, internal, log)
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status();
    assert!(status.unwrap().success());
}

#[test]
fn the_printed_defaults_are_a_valid_configuration() {
    let defaults = ringfeed(&["default-config"]);
    assert!(defaults.status.success());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, &defaults.stdout).unwrap();
    let checked = ringfeed(&["check-config", "--config", file.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
}

#[test]
fn a_bad_configuration_is_refused_before_any_port_is_opened() {
    let wrong = ["serve", "--set", "server.shards=x", "--set", "nothing.at=all"];
    let refused = ringfeed(&wrong);
    assert_eq!(refused.status.code(), Some(1));
    let errors = text(&refused.stderr);
    assert!(errors.contains("2 problem(s)"), "{errors}");
    assert!(errors.contains("server.shards=x: allowed is a whole number"), "{errors}");
    assert!(errors.contains("no such key; known are"), "{errors}");
    let missing = ringfeed(&["check-config", "--config", "/does/not/exist"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/does/not/exist"));
}

#[test]
fn publish_reaches_a_running_server_and_sigterm_ends_it_with_0() {
    let (mut child, _, internal, _log) = serve(&["--set", "api.keys=k"]);
    let publish = |args: &[&str]| {
        let mut all = vec!["publish", "--api", &internal];
        all.extend(args);
        ringfeed(&all)
    };
    let refused = publish(&["news", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("401"), "{}", text(&refused.stderr));
    let published = publish(&["--api-key", "k", "news", "{\"a\":1}"]);
    assert!(published.status.success(), "{}", text(&published.stderr));
    assert!(text(&published.stdout).contains("\"ack\":\"accepted\""));
    let bad = publish(&["--api-key", "k", "a b", "plain text"]);
    assert!(text(&bad.stderr).contains("bad_channel"), "{}", text(&bad.stderr));
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let gone = publish(&["--api-key", "k", "news", "1"]);
    assert!(text(&gone.stderr).contains("no server answers"), "{}", text(&gone.stderr));
}

#[test]
fn a_second_signal_ends_a_drain_at_once() {
    // A peer that never answers would hold the drain for a minute.
    let flags =
        ["--set", "server.close_timeout_ms=60000", "--set", "server.drain_timeout_ms=60000"];
    let (mut child, public, _, mut log) = serve(&flags);
    let mut deaf = std::net::TcpStream::connect(&public).unwrap();
    let handshake =
        ringfeed_protocol::handshake::ClientHandshake::new(&public, "/ws", None, [1; 16]);
    std::io::Write::write_all(&mut deaf, handshake.request()).unwrap();
    std::io::Read::read_exact(&mut deaf, &mut [0; 12]).unwrap();
    signal(&child, "TERM");
    let mut line = String::new();
    while !line.contains("draining") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0);
    }
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn signals_that_ask_for_nothing_end_nothing() {
    let (mut child, _, internal, mut log) = serve(&[]);
    for (name, said) in [
        ("HUP", "SIGHUP: reload is not supported"),
        ("USR1", "SIGUSR1 is ignored"),
        ("USR2", "SIGUSR2 is ignored"),
        ("ALRM", "SIGALRM is ignored"),
    ] {
        signal(&child, name);
        let mut line = String::new();
        while !line.contains(said) {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "SIG{name} ended the server");
        }
    }
    let published = ringfeed(&["publish", "--api", &internal, "news", "1"]);
    assert!(published.status.success(), "{}", text(&published.stderr));
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn requests_are_logged_with_vv_and_keys_never() {
    let (mut child, _, internal, mut log) = serve(&["-vv", "--set", "api.keys=hush-hush"]);
    let publish =
        |key: &str| ringfeed(&["publish", "--api", &internal, "--api-key", key, "n", "1"]);
    assert!(!publish("hush-wrong").status.success());
    assert!(publish("hush-hush").status.success());
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut lines = String::new();
    std::io::Read::read_to_string(&mut log, &mut lines).unwrap();
    for part in [
        "POST /api/publish from 127.0.0.1: no key that fits",
        "API: POST /api/publish 401",
        "API: POST /api/publish 200",
    ] {
        assert!(lines.contains(part), "{part:?} is not in:\n{lines}");
    }
    assert!(!lines.contains("hush"), "{lines}");
}

#[test]
fn a_server_whose_log_goes_nowhere_still_drains() {
    let (mut child, _, _, log) = serve(&[]);
    drop(log);
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Refuses io_uring as container runtimes do.
const WITHOUT_IO_URING: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/without_io_uring.py");

#[test]
fn a_kernel_that_refuses_io_uring_is_named_as_the_reason() {
    let output = Command::new(WITHOUT_IO_URING)
        .args([env!("CARGO_BIN_EXE_ringfeed"), "serve", "--port", "0"])
        .args(["--set", "api.listen=127.0.0.1:0", "--set", "server.io=io_uring"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let errors = text(&output.stderr);
    assert!(errors.contains("io_uring is not usable here: io_uring_setup"), "{errors}");
    assert!(errors.contains("seccomp"), "{errors}");
}

#[test]
fn the_tuned_configurations_are_valid() {
    for cores in [2, 8, 32, 64] {
        let file = format!("{}/../config/cores-{cores}.toml", env!("CARGO_MANIFEST_DIR"));
        let checked = ringfeed(&["check-config", "--config", &file]);
        assert!(checked.status.success(), "{cores}: {}", text(&checked.stderr));
    }
}

#[test]
fn every_command_has_help_and_unknown_ones_are_refused() {
    for command in ["serve", "check-config", "default-config", "publish", "version", "completions"]
    {
        let help = ringfeed(&[command, "--help"]);
        assert!(help.status.success() && text(&help.stdout).contains("Usage:"), "{command}");
    }
    assert_eq!(ringfeed(&["dance"]).status.code(), Some(2));
    assert!(text(&ringfeed(&["version"]).stdout).contains("everything needed is there"));
    assert!(text(&ringfeed(&["openapi"]).stdout).contains("/api/publish"));
}
