//! `/api/publish` and `/api/batch`, and `/api/channels` and `/api/history` behind them.

use super::common::{TestServer, http};
use serde_json::{Value, json};

/// Status and error of a publish.
fn refused(server: &TestServer, body: &str) -> (u16, String, String) {
    let (status, answer) = server.http("POST", "/api/publish", body);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    (status, text("error"), text("message"))
}

#[test]
fn a_publication_is_an_object_with_the_right_fields() {
    let server = TestServer::open(&[]);
    for (body, code, part) in [
        (r#"["a",1]"#, "bad_json", "'{'"),
        ("", "bad_json", "'{'"),
        ("\"a\"", "bad_json", "'{'"),
        ("{\"channel\"", "bad_json", "EOF"),
        ("{}", "bad_command", "channel"),
        (r#"{"channel":7,"data":1}"#, "bad_command", "string"),
        (r#"{"channel":"a","datum":1}"#, "bad_command", "datum"),
        (r#"{"channel":"a","data":1,"text":"b"}"#, "bad_command", "exactly one"),
        (r#"{"channel":"a b","data":1}"#, "bad_channel", ""),
        (r#"{"channel":"a","base64":"?"}"#, "bad_command", "base64"),
    ] {
        let (status, error, message) = refused(&server, body);
        assert_eq!((status, error.as_str()), (400, code), "{body}: {message}");
        assert!(message.contains(part), "{body}: {message}");
        assert!(!message.contains("struct ") && !message.contains("PublishBody"), "{message}");
    }
    for body in ["[]", "7", r#"{"publications":[]}x"#] {
        let (status, answer) = server.http("POST", "/api/batch", body);
        assert_eq!(status, 400, "{answer}");
        assert!(answer.contains("bad_json") && !answer.contains("BatchBody"), "{answer}");
    }
    for body in ["{}", r#"{"publications":7}"#, r#"{"publications":[],"more":1}"#] {
        let (status, answer) = server.http("POST", "/api/batch", body);
        assert_eq!(status, 400, "{answer}");
        assert!(answer.contains("bad_command") && !answer.contains("BatchBody"), "{answer}");
    }
}

#[test]
fn half_of_a_surrogate_pair_is_refused() {
    let server = TestServer::open(&[]);
    for data in [
        r#""\ud800""#,
        r#""\uDFFF""#,
        r#""\ud83dx""#,
        r#""\ud83d\n""#,
        r#""\ud83d\u0041""#,
        r#""\ude00\ud83d""#,
        r#"{"\ud800":1}"#,
        r#"[1,{"a":["\\\ud800"]}]"#,
    ] {
        let (status, error, message) =
            refused(&server, &format!(r#"{{"channel":"a","data":{data}}}"#));
        assert_eq!((status, error.as_str()), (400, "bad_json"), "{data}");
        assert!(message.contains("half a character"), "{data}: {message}");
    }
    for data in [r#""\ud83d\ude00""#, r#""\\ud800""#, r#""\u0041\\""#, r#"{"\ud83d\ude00":"\""}"#] {
        let body = format!(r#"{{"channel":"a","data":{data}}}"#);
        assert_eq!(server.http("POST", "/api/publish", &body).0, 200, "{data}");
    }
}

#[test]
fn bodies_in_an_encoding_are_refused() {
    let server = TestServer::open(&[]);
    let good = r#"{"channel":"a","data":1}"#;
    for (target, encoding, expected) in [
        ("/api/publish", "gzip", 415),
        ("/api/batch", "br", 415),
        ("/api/ingest", "gzip", 415),
        ("/api/publish", "identity", 200),
        ("/api/ingest", "Identity", 200),
    ] {
        let header = format!("Content-Encoding: {encoding}\r\n");
        let (status, answer) = http(server.internal, "POST", target, &header, good);
        assert_eq!(status, expected, "{target} {encoding}: {answer}");
        assert!(expected == 200 || answer.contains("unsupported_encoding"), "{answer}");
    }
}

#[test]
fn an_error_does_not_give_back_what_was_sent() {
    let server = TestServer::open(&[]);
    let long = "\u{7f}\u{1b}".replace('\u{1b}', "\\u001b").repeat(100_000);
    for body in [
        format!(r#"{{"channel":"{long}","data":1}}"#),
        format!(r#"{{"channel":"a","{long}":1}}"#),
        format!(r#"{{"channel":{{"{long}":1}}}}"#),
    ] {
        let (status, answer) = server.http("POST", "/api/publish", &body);
        assert_eq!(status, 400);
        assert!(answer.len() < 500, "{} bytes: {}", answer.len(), &answer[..300]);
        let message = serde_json::from_str::<Value>(&answer).unwrap()["message"].clone();
        assert!(!message.as_str().unwrap().contains(char::is_control), "{message}");
    }
}

#[test]
fn a_batch_of_refused_entries_has_a_small_answer() {
    let server = TestServer::open(&[]);
    let entry = format!(r#"{{"channel":"{}","data":1}}"#, "a ".repeat(10));
    let entries = vec![entry.as_str(); 50_000];
    let body = format!(r#"{{"publications":[{}]}}"#, entries.join(","));
    let (status, answer) = server.http("POST", "/api/batch", &body);
    assert_eq!(status, 200);
    assert!(answer.len() < body.len(), "{} bytes for {}", answer.len(), body.len());
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 50_000);
    assert!(results[0]["message"].is_string());
    assert!(results.iter().all(|r| r["error"] == "bad_channel"));

    let body = format!(r#"{{"publications":[{}]}}"#, vec!["{}"; 1_000_000].join(","));
    let (status, answer) = server.http("POST", "/api/batch", &body);
    assert_eq!(status, 413, "{}", &answer[..200]);
    assert!(answer.contains("65536"), "{answer}");
}

#[test]
fn one_broken_entry_does_not_refuse_a_batch() {
    let server = TestServer::open(&[]);
    let body = r#"{"publications":[{"channel":"b","data":1},["b",2],{"channel":"b"},7,
                   {"channel":"b","data":"\ud800"},{"channel":"b","data":3}]}"#;
    let (status, answer) = server.http("POST", "/api/batch", body);
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let got: Vec<_> = answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["error"].as_str().map_or(r["offset"].clone(), |e| json!(e)))
        .collect();
    let expected = json!([1, "bad_json", "bad_command", "bad_json", "bad_json", 2]);
    assert_eq!(Value::from(got), expected);
}

#[test]
fn a_batch_of_many_pieces_keeps_the_order_of_each_channel() {
    let server = TestServer::open(&["server.shards=3", "limits.history_reply_max=100000"]);
    let filler = "x".repeat(150);
    let entries: Vec<_> = (0..20_000)
        .map(|i| {
            json!({"channel": format!("open.{}", i % 7), "data": {"i": i, "f": filler}}).to_string()
        })
        .collect();
    let body = format!(r#"{{"publications":[{}]}}"#, entries.join(","));
    let (status, answer) = server.http("POST", "/api/batch", &body);
    assert_eq!(status, 200);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    for (i, result) in answer["results"].as_array().unwrap().iter().enumerate() {
        assert_eq!(result["channel"], format!("open.{}", i % 7));
        assert_eq!(result["offset"], i / 7 + 1);
    }
    let page = server.get("/api/history?channel=open.3");
    for (n, publication) in page["publications"].as_array().unwrap().iter().enumerate() {
        assert_eq!(publication["data"]["i"], n * 7 + 3);
    }
}

#[test]
fn channels_are_listed_in_pages() {
    let server = TestServer::open(&["server.shards=3"]);
    for i in 0..250 {
        server.publish(&format!("open.{i:03}"), json!(1));
    }
    server.publish("other", json!(1));
    let (mut after, mut seen) = (String::new(), Vec::new());
    loop {
        let page = server.get(&format!("/api/channels?prefix=open.&limit=100{after}"));
        assert_eq!(page["total"], 250);
        let names: Vec<_> =
            page["channels"].as_array().unwrap().iter().map(|c| c["channel"].clone()).collect();
        let Some(last) = names.last() else { break };
        after = format!("&after={}", last.as_str().unwrap());
        seen.extend(names);
    }
    let expected: Vec<_> = (0..250).map(|i| json!(format!("open.{i:03}"))).collect();
    assert_eq!(seen, expected);
    for (query, part) in [
        ("limit=0", "1 to 10000"),
        ("limit=10001", "1 to 10000"),
        ("limit=x", "limit"),
        ("nothing=1", "nothing"),
    ] {
        let (status, answer) = server.http("GET", &format!("/api/channels?{query}"), "");
        assert_eq!(status, 400, "{answer}");
        assert!(answer.contains(part), "{query}: {answer}");
    }
}
