//! Servers that are not ringfeed, each with something wrong: all of it is found and counted right,
//! and nothing that is right is called wrong.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod support;

use std::process::Output;

use serde_json::{Value, json};
use support::foreign::{Fault, Greeting, Habits, WARM_UP, no_greeting, right, serve, serve_with};
use support::loadgen;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::{Bytes, Message};

const LINES: [&str; 4] =
    ["--subscribe-frame", "SUB {channel}", "--publish-frame", "PUB {channel} {payload}"];
const RINGFEED: [&str; 2] = ["--publish", "ws"];
const WORK: [&str; 12] = [
    "--conns",
    "4",
    "--channels",
    "2",
    "--interest",
    "blocks",
    "--rate",
    "400",
    "--duration",
    "0.5",
    "--grace",
    "1",
];
/// 4 connections on one of 2 channels each: 2 subscribers for each of 200 messages.
const EXPECTED: u64 = 400;

fn text(text: &str) -> Message {
    Message::text(text)
}

fn run(fault: Fault, greeting: Greeting, how: &[&str]) -> (Output, Value) {
    loadgen(&serve(fault, greeting), &[how, &WORK].concat())
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Exit status, and all figures that are not 0 of those that must be.
fn found(output: &Output, report: &Value) -> (Option<i32>, Value) {
    let mut found = json!({});
    for key in [
        "lost",
        "duplicated",
        "reordered",
        "corrupted",
        "unexpected",
        "false_gaps",
        "disconnected",
        "unanswered",
    ] {
        if report[key].as_u64() != Some(0) {
            found[key] = report[key].clone();
        }
    }
    (output.status.code(), found)
}

/// Each subscriber gets 100 messages; the one numbered 20 is the one that is wrong.
#[test]
fn whatever_a_server_does_to_a_message_is_found_and_counted_once() {
    let cases: [(&str, Fault, Value); 11] = [
        (
            "bytes before",
            |_, n, _, t| vec![text(&if n == 20 { format!(" {t}") } else { t.into() })],
            json!({"corrupted": 4}),
        ),
        (
            "bytes behind",
            |_, n, _, t| vec![text(&if n == 20 { format!("{t}!") } else { t.into() })],
            json!({"corrupted": 4}),
        ),
        (
            "binary",
            |_, n, _, t| vec![if n == 20 { Message::binary(t.to_owned()) } else { text(t) }],
            json!({"corrupted": 4}),
        ),
        (
            "changed",
            |_, n, _, t| vec![text(&if n == 20 { t.replace("xx\"", "xy\"") } else { t.into() })],
            json!({"corrupted": 4}),
        ),
        (
            "cut",
            |_, n, _, t| vec![text(if n == 20 { &t[..t.len() - 9] } else { t })],
            json!({"corrupted": 4}),
        ),
        ("dropped", |_, n, _, t| if n == 20 { vec![] } else { vec![text(t)] }, json!({"lost": 4})),
        (
            "the tail dropped",
            |_, n, _, t| if (98..1000).contains(&n) { vec![] } else { vec![text(t)] },
            json!({"lost": 8}),
        ),
        (
            "doubled",
            |_, n, _, t| if n == 20 { vec![text(t), text(t)] } else { vec![text(t)] },
            json!({"duplicated": 4}),
        ),
        (
            "replaced by nothing",
            |_, n, _, t| vec![text(if n == 20 { "" } else { t })],
            json!({"lost": 4}),
        ),
        (
            "another channel's",
            |_, n, _, t| {
                // The stamp is the number, times two channels, plus the channel.
                let other = t.replace("{\"n\":40", "{\"n\":41");
                if n == 20 && other != t { vec![text(t), text(&other)] } else { vec![text(t)] }
            },
            json!({"unexpected": 2}),
        ),
        (
            "torn",
            |_, n, _, t| {
                if n == 99 {
                    vec![Message::Frame(Frame::message(
                        Bytes::copy_from_slice(t.as_bytes()),
                        OpCode::Data(Data::Reserved(5)),
                        true,
                    ))]
                } else {
                    vec![text(t)]
                }
            },
            json!({"lost": 4, "disconnected": 4}),
        ),
    ];
    for (name, fault, wrong) in cases {
        let (output, report) = run(fault, no_greeting, &LINES);
        let (code, found) = found(&output, &report);
        assert_eq!((code, &found), (Some(1), &wrong), "{name}: {}", words(&output));
        assert_eq!(report["passed"], false, "{name}");
        for debug in ["Ahead(", "Behind", "Nowhere", "Some("] {
            assert!(!words(&output).contains(debug), "{name}: {}", words(&output));
        }
    }
}

#[test]
fn what_a_server_may_do_is_no_finding() {
    let wrapped: Fault = |_, n, channel, t| {
        vec![text(&format!("{{\"topic\":\"{channel}\",\"seq\":{n},\"message\":{t}}}"))]
    };
    let in_fragments: Fault = |_, _, _, t| {
        let (a, b) = t.as_bytes().split_at(t.len() / 2);
        let part = |bytes: &[u8], opcode, fin| {
            let bytes = Bytes::copy_from_slice(bytes);
            Message::Frame(Frame::message(bytes, OpCode::Data(opcode), fin))
        };
        vec![part(a, Data::Text, false), part(b, Data::Continue, true)]
    };
    let cases: [(Fault, &[&str]); 4] =
        [(right, &LINES), (wrapped, &LINES), (in_fragments, &LINES), (in_fragments, &RINGFEED)];
    for (fault, how) in cases {
        let (output, report) = run(fault, no_greeting, how);
        assert_eq!(found(&output, &report), (Some(0), json!({})), "{}", words(&output));
        assert_eq!(report["delivered"], EXPECTED);
    }
}

#[test]
fn messages_that_were_not_published_are_told() {
    let greeting: Greeting = |_| vec![text("welcome")];
    let (output, report) = run(right, greeting, &LINES);
    assert_eq!(found(&output, &report), (Some(0), json!({})), "{}", words(&output));
    let extra: Fault =
        |_, n, _, t| if n == 7 { vec![text("hello"), text(t)] } else { vec![text(t)] };
    let (output, report) = run(extra, no_greeting, &LINES);
    assert_eq!(found(&output, &report), (Some(0), json!({})), "{}", words(&output));
    assert!(words(&output).contains("not published: 4, first: hello"), "{}", words(&output));
}

fn close(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code: code.into(), reason: reason.into() }))
}

#[test]
fn closes_by_the_server_are_counted_by_code_and_reason() {
    let bye: Fault = |who, n, _, t| match (who, n) {
        (0 | 1, 60) => vec![close(1001, "bye")],
        (2, 70) => vec![close(4002, "replies are not read")],
        (0 | 1, 61..1000) | (2, 71..1000) => vec![],
        _ => vec![text(t)],
    };
    for how in [&LINES[..], &RINGFEED] {
        let (output, report) = run(bye, no_greeting, how);
        let (code, _) = found(&output, &report);
        assert_eq!((code, &report["disconnected"]), (Some(1), &json!(3)), "{}", words(&output));
        let line = "disconnected 3: 1001 bye (2), 4002 replies are not read (1)";
        assert!(words(&output).contains(line), "{}", words(&output));
        let closes = json!([
            {"code": 1001, "reason": "bye", "count": 2},
            {"code": 4002, "reason": "replies are not read", "count": 1},
        ]);
        assert_eq!(report["closes"], closes);
        assert_eq!(report["lost"], 40 + 40 + 30);
    }
}

#[test]
fn a_close_while_it_is_subscribed_is_told_with_its_reason() {
    let full: Greeting = |_| vec![close(4500, "limit_reached: at most 128 channels")];
    let (output, _) = run(right, full, &LINES);
    assert_eq!(output.status.code(), Some(2), "{}", words(&output));
    let why = "while it subscribed: 4500 limit_reached: at most 128 channels";
    assert!(words(&output).contains(why), "{}", words(&output));
}

#[test]
fn a_close_does_not_hold_back_a_run_without_a_rate() {
    let bye: Fault = |who, n, _, t| match (who, n) {
        (0, 10) => vec![close(1001, "bye")],
        (0, n) if n > 10 && n != WARM_UP => vec![],
        _ => vec![text(t)],
    };
    let work =
        ["--conns", "4", "--rate", "0", "--duration", "1", "--size", "20000", "--grace", "3"];
    let (output, report) = loadgen(&serve(bye, no_greeting), &[&LINES[..], &work].concat());
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    assert!(report["publishing_seconds"].as_f64().unwrap() < 2.5, "{report}");
    // More than what may be under way to the connections that are left.
    assert!(report["published"].as_u64().unwrap() > 100, "{report}");
}

fn gap(channel: &str, from: u64, to: u64) -> Value {
    let epoch = "00c0ffee00c0ffee";
    json!({"type": "gap", "channel": channel, "epoch": epoch, "from": from, "to": to})
}

#[test]
fn gaps_are_believed_only_where_they_are_true() {
    // Offsets count from 1: message n has n + 1.
    let cases: [(Fault, Value, u64); 5] = [
        (
            |_, n, c, t| match n {
                // In another life offsets are others, or none of it is missing.
                20 => {
                    let mut other = gap(c, 0, 0);
                    other["epoch"] = json!("00c0ffee00c0ffef");
                    vec![text(&other.to_string())]
                }
                _ => vec![text(t)],
            },
            json!({"lost": 4}),
            0,
        ),
        (
            |_, n, c, t| match n {
                20 => vec![],
                21 => vec![text(&gap(c, 21, 22).to_string())],
                _ => vec![text(t)],
            },
            json!({"lost": 8}),
            8,
        ),
        (
            |_, n, c, t| match n {
                20 => vec![text(&gap(c, 15, 17).to_string()), text(t)],
                _ => vec![text(t)],
            },
            json!({"false_gaps": 4}),
            0,
        ),
        (
            |_, n, c, t| match n {
                // The first is true: nothing was published between the two.
                20 => vec![
                    text(&gap(c, 21, 20).to_string()),
                    text(&gap(c, 20, 19).to_string()),
                    text(t),
                ],
                _ => vec![text(t)],
            },
            json!({"false_gaps": 4}),
            0,
        ),
        (
            |_, n, c, t| match n {
                20 => vec![text(&gap(c, 21, 21).to_string()), text(t)],
                _ => vec![text(t)],
            },
            json!({"reordered": 4}),
            4,
        ),
    ];
    for (fault, wrong, told) in cases {
        let (output, report) = run(fault, no_greeting, &RINGFEED);
        assert_eq!(found(&output, &report), (Some(1), wrong), "{}", words(&output));
        assert_eq!(report["gaps_told"], told, "{}", words(&output));
    }
}

#[test]
fn what_ringfeed_must_not_send_is_reported_and_ends_nothing() {
    let cases: [(Fault, Value); 5] = [
        (
            |_, n, c, t| match n {
                20 => {
                    vec![text(t), text(&json!({"type": "unsubscribed", "channel": c}).to_string())]
                }
                _ => vec![text(t)],
            },
            json!({"unexpected": 4}),
        ),
        (
            |_, n, _, t| match n {
                20 => vec![text(t), text(&t.replace("bench.c", "bench.d"))],
                _ => vec![text(t)],
            },
            json!({"unexpected": 4}),
        ),
        (
            |_, n, _, t| match n {
                20 => vec![text(t), text("{\"type\":\"error\",\"code\":\"rate_limited\"}")],
                _ => vec![text(t)],
            },
            json!({"unexpected": 4}),
        ),
        (
            |_, n, _, t| match n {
                20 => vec![Message::binary(t.to_owned())],
                _ => vec![text(t)],
            },
            json!({"corrupted": 4}),
        ),
        (
            |_, n, _, t| match n {
                20 => vec![text(&t.replace("xx\"", "xy\""))],
                _ => vec![text(t)],
            },
            json!({"corrupted": 4}),
        ),
    ];
    for (fault, wrong) in cases {
        let (output, report) = run(fault, no_greeting, &RINGFEED);
        assert_eq!(found(&output, &report), (Some(1), wrong), "{}", words(&output));
    }
}

/// A channel in which `B` comes twice, and a clone of it.
const RECORDING: [&str; 4] = ["B", "x", "B", "y"];

fn payload(data: &str) -> String {
    format!("{{\"stream\":\"s\",\"data\":\"{data}\"}}")
}

/// The whole of both channels, in the how manieth of all 70 orders that keep that of each.
fn in_order(order: u64) -> Vec<Message> {
    let picks = (0..256u32).filter(|picks| picks.count_ones() == 4);
    let picks = picks.cycle().nth(order as usize).unwrap();
    let (mut one, mut other) = (RECORDING.iter(), RECORDING.iter());
    let of = |bit: u32| if picks >> bit & 1 == 1 { one.next() } else { other.next() };
    (0..8).map(of).map(|data| text(&payload(data.unwrap()))).collect()
}

fn replay_cloned(fault: Fault) -> (Output, Value) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("recording");
    let line = |(i, data): (usize, &&str)| format!("{i} {}\n", payload(data));
    let lines: String = RECORDING.iter().enumerate().map(line).collect();
    std::fs::write(&file, lines).unwrap();
    let flags = "--clone 2 --subscriptions 0 --dialect raw --publish ws --conns 70 --grace 1";
    let flags: Vec<&str> = flags.split(' ').chain(["--file", file.to_str().unwrap()]).collect();
    loadgen(&serve(fault, no_greeting), &[&["replay"][..], &flags].concat())
}

#[test]
fn equal_payloads_on_two_channels_of_a_connection_are_right_in_every_order() {
    let (output, report) = replay_cloned(|who, n, _, t| match n {
        WARM_UP => vec![text(t)],
        7 => in_order(who),
        _ => vec![],
    });
    assert_eq!(found(&output, &report), (Some(0), json!({})), "{}", words(&output));
    assert_eq!(report["delivered"], 8 * 70);
}

#[test]
fn a_loss_among_equal_payloads_on_two_channels_is_found() {
    let (output, report) = replay_cloned(|who, n, _, t| match n {
        WARM_UP => vec![text(t)],
        7 => in_order(who).split_off(1),
        _ => vec![],
    });
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    assert!(report["lost"].as_u64().unwrap() >= 70, "{}", words(&output));
    assert_eq!(report["corrupted"], 0, "{}", words(&output));
}

#[test]
fn without_a_warm_up_nothing_but_the_messages_is_published() {
    let no_warm_up: Fault = |_, n, _, t| vec![text(if n == WARM_UP { "a warm-up" } else { t })];
    for how in [&LINES[..], &["--publish", "ws", "--dialect", "raw"]] {
        let how = [how, &["--no-warm-up"]].concat();
        let (output, report) = run(no_warm_up, no_greeting, &how);
        assert_eq!(found(&output, &report), (Some(0), json!({})), "{}", words(&output));
        assert_eq!(report["delivered"], EXPECTED);
    }
}

#[test]
fn churn_leaves_alone_what_comes_or_goes_already() {
    let work = "--conns 5 --channels 4 --subscriptions 2 --rate 50 --duration 2 --churn 500";
    let work: Vec<&str> = work.split(' ').chain(RINGFEED).collect();
    let (output, report) = loadgen(&serve(right, no_greeting), &work);
    assert_eq!(found(&output, &report), (Some(0), json!({})), "{}", words(&output));
    for key in ["replaced", "resubscribed"] {
        assert!(report[key].as_u64().unwrap() > 5, "{key}: {report}");
    }
}

/// All at once, so that most of it is under way when publishing ends: only then are answers to it
/// still to come.
#[test]
fn what_is_published_last_reaches_a_server_that_answers() {
    let work = "--conns 4 --channels 2 --interest blocks --rate 400 --burst 200 --duration 0.5 \
                --size 20000";
    let work: Vec<&str> = work.split_whitespace().collect();
    let (output, report) = loadgen(&serve(right, no_greeting), &[&LINES[..], &work].concat());
    assert_eq!(found(&output, &report), (Some(0), json!({})), "{}", words(&output));
    assert_eq!(report["delivered"], EXPECTED);
}

/// A run with churn fails for what was not answered, and for nothing else.
fn fails_unanswered(habits: Habits, why: &str) {
    let churn = ["--churn", "50"];
    let (output, report) = loadgen(&serve_with(habits), &[&RINGFEED[..], &WORK, &churn].concat());
    let (code, found) = found(&output, &report);
    assert_eq!(code, Some(1), "{}", words(&output));
    assert_eq!(found, json!({"unanswered": report["unanswered"]}), "{}", words(&output));
    assert!(words(&output).contains(why), "{}", words(&output));
}

#[test]
fn renewed_subscriptions_that_are_not_answered_are_failures() {
    let habits = Habits { renews: false, ..Habits::good() };
    fails_unanswered(habits, "its subscription was never answered");
}

#[test]
fn replaced_connections_that_never_open_are_failures() {
    // One more publishes.
    let habits = Habits { connections_max: 5, ..Habits::good() };
    fails_unanswered(habits, "it was never open");
}

#[test]
fn a_run_that_gives_up_publishing_has_failed() {
    let habits = Habits { withholds_from: 3, ..Habits::good() };
    let work = "--conns 2 --rate 0 --duration 600 --size 20000 --grace 1";
    let work: Vec<&str> = work.split(' ').collect();
    let (output, report) = loadgen(&serve_with(habits), &[&LINES[..], &work].concat());
    assert_eq!(found(&output, &report), (Some(1), json!({})), "{}", words(&output));
    assert_eq!(report["passed"], false);
    let verdict = report["verdict"].as_str().unwrap();
    assert!(verdict.contains("nothing was delivered for 1 seconds"), "{verdict}");
}

#[test]
fn churn_goes_on_where_threads_have_no_connections() {
    let work = "--conns 2 --threads 4 --rate 200 --duration 1 --churn 100";
    let work: Vec<&str> = work.split(' ').chain(RINGFEED).collect();
    let (output, report) = loadgen(&serve(right, no_greeting), &work);
    assert_eq!(found(&output, &report), (Some(0), json!({})), "{}", words(&output));
    assert!(report["replaced"].as_u64().unwrap() > 5, "{report}");
}
