//! HTTP on the port of the WebSockets: what endpoints serve beside them, and what that bears.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::api_port::{read_to, rest};
use super::common::{Client, PATIENCE, TestServer, http, wait_until};

const KEY: &str = "0123456789abcdef";

/// Both forms of routes, on endpoints with prefixes of their own.
fn start(flags: &[&str]) -> TestServer {
    let toml = format!(
        r#"
        [server]
        node_id = "node-7"
        [[endpoints]]
        path = "/ws"
        http = "wsnode"
        [[endpoints]]
        path = "/app/ws"
        dialect = "raw.v1"
        channel_prefix = "app."
        http = "cadsock"
        [[api_keys]]
        name = "all"
        key = "{KEY}"
        scopes = ["all"]
        [[api_keys]]
        name = "news-only"
        key = "news-only-key-16"
        scopes = ["publish"]
        channels = ["news", "app.news"]
        [[api_keys]]
        name = "reader"
        key = "reader-key-16-ch"
        scopes = ["history"]
        "#
    );
    TestServer::start(&toml, flags)
}

fn connect(server: &TestServer) -> TcpStream {
    let stream = TcpStream::connect(server.public).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads one answer, whose length its head says.
fn answer(mut stream: &TcpStream) -> String {
    let head = read_to(stream, "\r\n\r\n");
    let lower = head.to_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

fn broadcast(server: &TestServer, body: &Value) -> (u16, Value) {
    let (status, answer) = http(server.public, "POST", "/broadcast", "", &body.to_string());
    (status, serde_json::from_str(&answer).unwrap_or(Value::String(answer)))
}

/// A figure of this port.
fn figure(server: &TestServer, name: &str) -> u64 {
    let key = format!("X-API-Key: {KEY}\r\n");
    let (status, stats) = http(server.internal, "GET", "/api/stats", &key, "");
    assert_eq!(status, 200, "{stats}");
    serde_json::from_str::<Value>(&stats).unwrap()["http"][name].as_u64().unwrap()
}

#[test]
fn a_broadcast_reaches_the_subscribers_of_all_shards() {
    let server = start(&[]);
    let mut clients: Vec<Client> = (0..8).map(|_| server.client()).collect();
    clients.iter_mut().for_each(|client| drop(client.subscribe("news")));
    let body =
        json!({"channel": "news", "message": {"a": [1, "x"]}, "apiKey": KEY, "origin": "n2"});
    let told = json!({"success": true, "nodeId": "node-7", "delivered": 8, "total": 8});
    assert_eq!(broadcast(&server, &body), (200, told));
    for client in &mut clients {
        assert_eq!(client.receive()["data"], json!({"a": [1, "x"]}));
    }
    let body = json!({"channel": "nobody", "message": "x", "apiKey": KEY});
    let told = json!({"success": true, "nodeId": "node-7", "subscribers": 0,
        "message": "No subscribers for this channel"});
    assert_eq!(broadcast(&server, &body), (200, told));
}

#[test]
fn broadcasts_that_are_refused_are_told_in_the_words_of_wsnode() {
    let server = start(&[]);
    for body in [
        json!({"channel": "news", "message": 1}),
        json!({"channel": "news", "message": 1, "apiKey": "wrong"}),
        json!({"channel": "news", "message": 1, "apiKey": 7}),
        json!({"channel": "other", "message": 1, "apiKey": "news-only-key-16"}),
        json!({"channel": "news", "message": 1, "apiKey": "reader-key-16-ch"}),
        json!({}),
    ] {
        assert_eq!(broadcast(&server, &body), (401, json!({"error": "Unauthorized"})), "{body}");
    }
    let needed = json!({"error": "Channel and message are required"});
    for message in [json!(""), json!(0), json!(false), json!(null)] {
        let body = json!({"channel": "news", "message": message, "apiKey": KEY});
        assert_eq!(broadcast(&server, &body), (400, needed.clone()), "{body}");
    }
    for body in
        [json!({"message": 1, "apiKey": KEY}), json!({"channel": "", "message": 1, "apiKey": KEY})]
    {
        assert_eq!(broadcast(&server, &body), (400, needed.clone()), "{body}");
    }
    let (status, told) =
        broadcast(&server, &json!({"channel": "a b", "message": 1, "apiKey": KEY}));
    assert!(status == 400 && told["error"].is_string(), "{told}");
    let large = json!({"channel": "news", "message": "x".repeat(103_000), "apiKey": KEY});
    assert_eq!(broadcast(&server, &large).0, 413);
    let fits = json!({"channel": "news", "message": "x".repeat(102_000), "apiKey": KEY});
    assert_eq!(broadcast(&server, &fits).0, 200);
    for body in ["", "[]", "{", "x"] {
        let (status, told) = http(server.public, "POST", "/broadcast", "", body);
        assert!(status == 400 && told.contains("\"error\""), "{body}: {told}");
    }
    assert_eq!(http(server.public, "GET", "/broadcast", "", "").0, 405);
}

#[test]
fn whoever_tries_many_keys_is_told_to_wait_and_a_right_one_is_served() {
    let server = start(&[]);
    let wrong = json!({"channel": "news", "message": 1, "apiKey": "wrong"});
    let limited = || broadcast(&server, &wrong).0 == 429;
    assert!((0..1000).any(|_| limited()), "nobody counts wrong keys");
    let right = json!({"channel": "news", "message": 1, "apiKey": KEY});
    assert_eq!(broadcast(&server, &right).0, 200);
}

#[test]
fn metrics_of_wsnode_hold_what_was_done() {
    let server = start(&[]);
    let mut client = server.client();
    client.subscribe("news");
    for _ in 0..3 {
        let body = json!({"channel": "news", "message": [1], "apiKey": KEY});
        assert_eq!(broadcast(&server, &body).0, 200);
    }
    let look = || -> Value {
        let (status, told) = http(server.public, "GET", "/health", "", "");
        assert_eq!(status, 200);
        serde_json::from_str(&told).unwrap()
    };
    // Gauges are told with each tick.
    let told = wait_until("clients", look, |told| told["metrics"]["clients"]["total"] == 1);
    assert_eq!(told["nodeId"], "node-7");
    assert!(told["uptime"].is_f64() && told["timestamp"].as_str().unwrap().ends_with('Z'));
    let metrics = &told["metrics"];
    assert_eq!(metrics["broadcasts"], json!({"total": 3, "lastMinute": 3, "bytesSent": 9}));
    let news = &metrics["channels"]["news"];
    assert_eq!((&news["broadcasts"], &news["subscribers"]), (&json!(3), &json!(1)), "{news}");
    assert!(metrics["system"]["memory"]["rss"].as_u64().unwrap() > 1 << 20, "{metrics}");
    assert_eq!(metrics["system"]["load"].as_array().unwrap().len(), 3, "{metrics}");
    assert_eq!(metrics["network"], json!({"connectedNodes": []}));
    for (key, status) in
        [("", 401), ("X-API-Key: wrong\r\n", 401), ("X-API-Key: news-only-key-16\r\n", 401)]
    {
        let (refused, told) = http(server.public, "GET", "/metrics", key, "");
        assert_eq!((refused, &*told), (status, "{\"error\":\"Unauthorized\"}"));
    }
    let key = format!("X-API-Key: {KEY}\r\n");
    let (status, told) = http(server.public, "GET", "/metrics", &key, "");
    assert!(status == 200 && told.contains("\"broadcasts\":"), "{told}");
}

#[test]
fn the_form_of_cadsock_is_taken_and_refused_in_its_words() {
    let server = start(&[]);
    let mut client = Client::connect(server.public, "/app/ws");
    client.send(json!({"action": "subscribe", "channel": "news"}));
    let key = format!("X-API-Key: {KEY}\r\n");
    let subscribed = || http(server.internal, "GET", "/api/channels", &key, "").1;
    wait_until("channels", subscribed, |told| told.contains("\"subscribers\":1"));
    let send = |method: &str, headers: &str, body: &str| {
        let headers =
            format!("Content-Type: application/x-www-form-urlencoded; charset=utf-8\r\n{headers}");
        http(server.public, method, "/app/internal/broadcast", &headers, body)
    };
    let secret = &*format!("X-Broadcast-Secret: {KEY}\r\n");
    let good = "channel=news&message=%7B%22a%22%3A+%22b+%2B%22%7D";
    assert_eq!(send("POST", secret, good), (202, String::new()));
    assert_eq!(client.message().into_text().unwrap().as_str(), r#"{"a": "b +"}"#);
    let words = |status: u16, text: &str| (status, format!("{text}\n"));
    for headers in ["", "X-Broadcast-Secret: wrong\r\n", "X-Broadcast-Secret: reader-key-16-ch\r\n"]
    {
        assert_eq!(send("POST", headers, good), words(403, "Forbidden"));
        assert_eq!(send("GET", headers, ""), words(403, "Forbidden"));
    }
    assert_eq!(send("GET", secret, ""), words(405, "Method Not Allowed"));
    for body in
        ["", "channel=news", "message=1", "channel=&message=1", "channel=news&message=", "%"]
    {
        assert_eq!(send("POST", secret, body), words(400, "Missing channel or message"), "{body}");
    }
    let other = send("POST", "X-Broadcast-Secret: news-only-key-16\r\n", "channel=b&message=1");
    assert_eq!(other, words(403, "Forbidden"));
    // No JSON, which is nothing to clients of raw.v1.
    assert_eq!(send("POST", secret, "channel=news&message=hello"), (202, String::new()));
    assert_eq!(
        send("POST", "X-Broadcast-Secret: news-only-key-16\r\n", "channel=news&message=2").0,
        202
    );
    for text in ["hello", "2"] {
        assert_eq!(client.message().into_text().unwrap().as_str(), text);
    }
}

#[test]
fn a_connection_goes_on_with_requests_and_not_with_a_websocket() {
    let server = start(&[]);
    let mut stream = connect(&server);
    // Two at once, and the body of the first in pieces.
    let body = json!({"channel": "a", "message": 1, "apiKey": KEY}).to_string();
    let (first, second) = body.split_at(10);
    write!(
        stream,
        "POST /broadcast HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{first}",
        body.len()
    )
    .unwrap();
    stream.write_all(second.as_bytes()).unwrap();
    stream
        .write_all(
            b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /nothing HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .unwrap();
    assert!(answer(&stream).starts_with("HTTP/1.1 200 "));
    assert!(answer(&stream).contains("\"connectedNodes\":[]"));
    assert!(answer(&stream).starts_with("HTTP/1.1 404 "));
    let upgrade = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(upgrade.as_bytes()).unwrap();
    let answer = rest(&stream);
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("connection: close"),
        "{answer}"
    );
    server.client().subscribe("a");
}

#[test]
fn a_client_of_http_1_0_is_answered() {
    let server = start(&[]);
    let mut stream = connect(&server);
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").unwrap();
    let answer = rest(&stream);
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.contains("\"nodeId\""), "{answer}");
    // Elsewhere it is not.
    let mut stream = connect(&server);
    stream.write_all(b"GET /ws HTTP/1.0\r\n\r\n").unwrap();
    assert!(rest(&stream).starts_with("HTTP/1.1 505 "));
}

#[test]
fn thousands_of_connections_shut_nobody_out() {
    let server = start(&["api.connections_max=16", "api.idle_timeout_ms=600000"]);
    let body = json!({"channel": "a", "message": 1, "apiKey": KEY});
    let mut held = Vec::new();
    for i in 0..2000 {
        let mut stream = connect(&server);
        let begun: &[u8] = match i % 3 {
            // Served, and kept.
            0 => b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n",
            // Served, and half of the next one.
            1 => b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nPOST /broadcast HTTP/1.1\r\nHos",
            // More than one that nobody reads the answers of.
            _ => b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n",
        };
        stream.write_all(begun).unwrap();
        held.push(stream);
        if i % 400 == 399 {
            // It may be told to come back once, with so many in front of it.
            wait_until("a broadcast", || broadcast(&server, &body).0, |&status| status == 200);
        }
    }
    assert_eq!(server.client().subscribe("a")["type"], "subscribed");
    assert!(figure(&server, "connections") <= 16);
    assert!(figure(&server, "connections_pushed_out") > 1000);
}

#[test]
fn where_all_have_a_request_the_next_one_is_told_to_come_back() {
    let flags =
        ["api.connections_max=4", "api.body_timeout_ms=600000", "api.body_idle_timeout_ms=600000"];
    let server = start(&flags);
    let held: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = connect(&server);
            let head = b"POST /broadcast HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n";
            stream.write_all(head).unwrap();
            read_to(&stream, "100 Continue\r\n\r\n");
            stream
        })
        .collect();
    let (status, told) = http(server.public, "GET", "/health", "", "");
    assert!(status == 503 && told.contains("api.connections_max"), "{told}");
    assert_eq!(figure(&server, "connections_refused"), 1);
    // The API has room of its own.
    let key = format!("X-API-Key: {KEY}\r\n");
    assert_eq!(http(server.internal, "GET", "/api/channels", &key, "").0, 200);
    drop(held);
    wait_until("connections", || figure(&server, "connections"), |&n| n == 0);
    assert_eq!(http(server.public, "GET", "/health", "", "").0, 200);
}

#[test]
fn slow_and_endless_bodies_end() {
    let server = start(&["api.body_idle_timeout_ms=200", "api.idle_timeout_ms=1000"]);
    let mut slow = connect(&server);
    slow.write_all(b"POST /broadcast HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{").unwrap();
    assert!(rest(&slow).starts_with("HTTP/1.1 408 "));
    let mut endless = connect(&server);
    endless
        .write_all(b"POST /broadcast HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 16, " ".repeat(1 << 16));
    while endless.write_all(chunk.as_bytes()).is_ok() {
        let mut said = [0; 13];
        endless.set_read_timeout(Some(std::time::Duration::from_millis(1))).unwrap();
        if endless.read_exact(&mut said).is_ok() {
            assert_eq!(&said, b"HTTP/1.1 413 ");
            break;
        }
    }
    // A head that does not end, on a connection that was handed over.
    let mut half = connect(&server);
    half.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /hea").unwrap();
    assert!(rest(&half).starts_with("HTTP/1.1 200 "));
}

#[test]
fn connections_that_were_handed_over_count_for_their_address() {
    let server = start(&["server.connections_per_address_max=2"]);
    let ask = |stream: &mut TcpStream| {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        answer(stream);
    };
    let mut held = [connect(&server), connect(&server)];
    held.iter_mut().for_each(ask);
    let (status, told) = http(server.public, "GET", "/health", "", "");
    assert_eq!(status, 503, "{told}");
    drop(held);
    let again = || http(server.public, "GET", "/health", "", "").0;
    wait_until("the door", again, |&status| status == 200);
}

#[test]
fn a_drain_ends_connections_behind_their_answers() {
    let server = start(&[]);
    let mut idle = connect(&server);
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    answer(&idle);
    let mut busy = connect(&server);
    busy.write_all(
        b"POST /broadcast HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
    )
    .unwrap();
    read_to(&busy, "100 Continue\r\n\r\n");
    server.drain();
    assert_eq!(rest(&idle), "");
    busy.write_all(b"{}").unwrap();
    let answer = rest(&busy);
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    server.wait();
}
