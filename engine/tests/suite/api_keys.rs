//! Keys of the HTTP API that may not do everything, and how often they may.

use super::common::{TestServer, http};
use serde_json::{Value, json};

const KEYS: &str = r#"
[[channels]]
pattern = "*"
history_size = 100

[[api_keys]]
name = "ticker"
key = "ticker-key"
scopes = ["publish"]
channels = ["quotes.*", "news"]

[[api_keys]]
name = "reader"
# of "reader-key"
key_sha256 = "SHA256"
scopes = ["history", "channels"]
channels = ["quotes.*"]

[[api_keys]]
name = "watcher"
key = "watcher-key"
scopes = ["stats", "metrics"]
channels = ["none"]

[[api_keys]]
name = "root"
key = "root-key"
scopes = ["all"]
"#;

fn start(flags: &[&str]) -> TestServer {
    use sha2::{Digest as _, Sha256};
    let hash = Sha256::digest(b"reader-key").into_iter().map(|byte| format!("{byte:02x}"));
    let flags = [&["api.keys=listed-key"][..], flags].concat();
    TestServer::start(&KEYS.replace("SHA256", &hash.collect::<String>()), &flags)
}

/// Status and body, with this key.
fn ask(server: &TestServer, key: &str, method: &str, target: &str, body: &str) -> (u16, String) {
    let headers = format!("Authorization: Bearer {key}\r\n");
    http(server.internal, method, target, &headers, body)
}

fn publication(channel: &str) -> String {
    json!({"channel": channel, "data": 1}).to_string()
}

fn lines(body: &str) -> Vec<Value> {
    serde_json::Deserializer::from_str(body).into_iter().map(Result::unwrap).collect()
}

#[test]
fn every_route_asks_for_its_scope() {
    // Beyond loopback figures need a key, too, and keys have 16 characters: on loopback both are seen to elsewhere.
    let server = start(&[]);
    let one = publication("quotes.a");
    let batch = format!("{{\"publications\":[{one}]}}");
    for (method, target, body, allowed) in [
        ("POST", "/api/publish", one.as_str(), "ticker"),
        ("POST", "/api/batch", batch.as_str(), "ticker"),
        ("POST", "/api/ingest", one.as_str(), "ticker"),
        ("GET", "/api/channels", "", "reader"),
        ("GET", "/api/history?channel=quotes.a", "", "reader"),
        ("GET", "/api/stats", "", "watcher"),
    ] {
        for name in ["ticker", "reader", "watcher", "root", "listed"] {
            let (status, answer) = ask(&server, &format!("{name}-key"), method, target, body);
            let may = name == allowed || name == "root" || name == "listed";
            assert_eq!(status, if may { 200 } else { 403 }, "{name} {target}: {answer}");
            assert_eq!(answer.contains("\"forbidden\""), !may, "{answer}");
        }
        // Fewer over all routes than one address may try at once.
        for wrong in ["", "ticker-key2", "Ticker-key", "SHA256"] {
            let (status, answer) = ask(&server, wrong, method, target, body);
            assert_eq!((status, answer.contains("unauthorized")), (401, true), "{wrong} {target}");
        }
    }
    let (_, answer) = ask(&server, "ticker-key", "GET", "/api/stats", "");
    assert!(answer.contains("the key ticker does not have the scope stats"), "{answer}");
    assert!(!answer.contains("ticker-key"));
}

#[test]
fn beyond_loopback_figures_ask_for_a_scope_and_the_description_for_any_key() {
    let keys = "[[channels]]\npattern = \"*\"\n\
        [[api_keys]]\nname = \"watcher\"\nkey = \"0123456789-watcher\"\nscopes = [\"metrics\"]\n\
        [[api_keys]]\nname = \"ticker\"\nkey = \"0123456789-ticker\"\nscopes = [\"publish\"]\n";
    let server = TestServer::start(keys, &["api.listen=0.0.0.0:0"]);
    for (key, metrics, description) in
        [("0123456789-watcher", 200, 200), ("0123456789-ticker", 403, 200), ("wrong", 401, 401)]
    {
        assert_eq!(ask(&server, key, "GET", "/metrics", "").0, metrics, "{key}");
        assert_eq!(ask(&server, key, "GET", "/api/openapi.json", "").0, description, "{key}");
    }
    let (_, text) = ask(&server, "0123456789-watcher", "GET", "/metrics", "");
    assert!(text.contains("ringfeed_api_key_requests_total{key=\"ticker\"} 2"), "{text}");
    assert!(!text.contains("0123456789"), "{text}");
}

#[test]
fn on_loopback_figures_are_for_any_program_also_with_a_key_for_other_things() {
    let server = start(&[]);
    for key in ["ticker-key", "watcher-key", "wrong"] {
        assert_eq!(ask(&server, key, "GET", "/metrics", "").0, 200, "{key}");
    }
}

#[test]
fn a_key_is_for_its_channels() {
    let server = start(&[]);
    for (channel, expected) in
        [("quotes.a", 200), ("news", 200), ("newsletter", 403), ("quotes", 403)]
    {
        let (status, answer) =
            ask(&server, "ticker-key", "POST", "/api/publish", &publication(channel));
        assert_eq!(status, expected, "{channel}: {answer}");
    }
    // In a batch and a stream, entry by entry.
    let entries = ["quotes.b", "secret", "quotes.b"].map(publication);
    let batch = format!("{{\"publications\":[{}]}}", entries.join(","));
    let (status, answer) = ask(&server, "ticker-key", "POST", "/api/batch", &batch);
    let results = lines(&answer)[0]["results"].clone();
    assert_eq!((status, &results[1]["error"]), (200, &json!("forbidden")), "{answer}");
    assert_eq!((&results[0]["offset"], &results[2]["offset"]), (&json!(1), &json!(2)), "{answer}");
    let (status, answer) = ask(&server, "ticker-key", "POST", "/api/ingest", &entries.join("\n"));
    let acks = lines(&answer);
    let errors: Vec<&Value> = acks.iter().filter_map(|ack| ack["errors"].get(0)).collect();
    assert_eq!((status, &acks.last().unwrap()["accepted"]), (200, &json!(2)), "{answer}");
    assert_eq!(
        (&errors[0]["line"], &errors[0]["error"]),
        (&json!(2), &json!("forbidden")),
        "{answer}"
    );
    let (status, answer) =
        ask(&server, "ticker-key", "POST", "/api/ingest", &publication("secret"));
    assert_eq!((status, answer.contains("\"forbidden\"")), (403, true), "{answer}");
    // What others publish elsewhere is not for everybody to see.
    assert_eq!(ask(&server, "root-key", "POST", "/api/publish", &publication("secret")).0, 200);
    let (status, answer) = ask(&server, "reader-key", "GET", "/api/history?channel=secret", "");
    assert_eq!((status, answer.contains("\"forbidden\"")), (403, true), "{answer}");
    let listed = |key: &str| {
        let (_, answer) = ask(&server, key, "GET", "/api/channels", "");
        let reply = lines(&answer).remove(0);
        let names = reply["channels"].as_array().unwrap().iter();
        let names: Vec<String> = names.map(|row| row["channel"].as_str().unwrap().into()).collect();
        (names, reply["total"].as_u64().unwrap())
    };
    assert_eq!(listed("reader-key"), (vec!["quotes.a".into(), "quotes.b".into()], 2));
    assert_eq!(listed("root-key").1, 4);
}

#[test]
fn a_key_that_asks_too_often_is_answered_429_and_the_others_are_not() {
    let server = start(&["api.requests_per_second_max=1", "api.requests_burst=20"]);
    let stats = |key: &str| {
        let headers = format!("X-API-Key: {key}\r\n");
        http(server.internal, "GET", "/api/stats", &headers, "")
    };
    let mut served = 0;
    let refused = loop {
        let (status, answer) = stats("watcher-key");
        if status != 200 {
            break (status, answer);
        }
        served += 1;
    };
    assert!(served >= 20, "the burst is {served}");
    assert_eq!((refused.0, refused.1.contains("\"rate_limited\"")), (429, true), "{}", refused.1);
    // One stream of many lines is one request.
    let body = format!("{}\n", publication("quotes.a")).repeat(1000);
    let (status, answer) = ask(&server, "root-key", "POST", "/api/ingest", &body);
    assert_eq!((status, &lines(&answer).last().unwrap()["accepted"]), (200, &json!(1000)));
    assert!((0..15).all(|_| stats("root-key").0 == 200));
    assert_eq!(stats("wrong").0, 401);
    let health = |_| server.http("GET", "/health", "").0 == 200;
    assert!((0..50).all(health), "what balancers ask has no limit");
}

#[test]
fn without_keys_requests_are_counted_by_address() {
    let server = TestServer::open(&["api.requests_per_second_max=1", "api.requests_burst=5"]);
    let mut stream = loop {
        let stream = super::api_port::connect(&server);
        std::io::Write::write_all(
            &mut &stream,
            b"GET /api/channels HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
        let answer = super::api_port::rest(&stream);
        if !answer.starts_with("HTTP/1.1 200") {
            break answer;
        }
    };
    stream.make_ascii_lowercase();
    assert!(stream.starts_with("http/1.1 429") && stream.contains("retry-after: 1"), "{stream}");
    let from = std::net::Ipv4Addr::new(127, 0, 0, 2);
    let mut other = super::slow_handshakes::connect(from, server.internal);
    std::io::Write::write_all(&mut other, b"GET /api/stats HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    assert_eq!(super::slow_handshakes::status(&mut other), "HTTP/1.1 200");
}
