//! The common path, in both dialects, over WebSocket and HTTP.

use super::common::TestServer;
use super::common::tokens::{ISSUER, token};
use serde_json::json;
use tungstenite::Message;

#[test]
fn a_publication_reaches_every_subscriber_in_its_dialect() {
    let server = TestServer::open(&[]);
    let mut plain = server.client();
    let first = plain.subscribe("open.a");
    assert_eq!(first["offset"], 0);
    let mut raw = server.client_of("raw.v1");
    raw.send_text(r#"{"action":"subscribe","channel":"open.a"}"#);
    server.wait_total("subscriptions", |n| n == 2);

    let mut publisher = server.client();
    let reply = publisher.ask(json!({"type":"publish","id":"p","channel":"open.a","data":{"x":1}}));
    assert_eq!(reply["type"], "published");
    assert_eq!(reply["ack"], "accepted");
    assert_eq!((&reply["id"], &reply["offset"]), (&json!("p"), &json!(1)));
    assert_eq!(reply["epoch"], first["epoch"]);
    let event = plain.receive();
    let expected = json!({"type":"message","channel":"open.a","offset":1,"data":{"x":1}});
    assert_eq!(event, expected);
    assert_eq!(raw.message(), Message::text(r#"{"x":1}"#));

    publisher.send(json!({"type":"publish","channel":"open.a","text":"not json"}));
    publisher.send(json!({"type":"publish","channel":"open.a","base64":"AAEC"}));
    assert_eq!(plain.receive()["data"], "not json");
    let binary = plain.receive();
    assert_eq!((&binary["data"], &binary["encoding"]), (&json!("AAEC"), &json!("base64")));
    assert_eq!(raw.message(), Message::text("not json"));
    assert_eq!(raw.message(), Message::binary(vec![0, 1, 2]));
}

#[test]
fn who_wants_no_echo_is_sent_everything_but_its_own() {
    let server = TestServer::open(&["server.shards=2"]);
    // One subscription, several, and nobody who is excepted.
    let (mut one, mut many, mut other) = (server.client(), server.client(), server.client());
    for client in [&mut one, &mut many, &mut other] {
        client.subscribe("open.room");
    }
    many.subscribe("open.side");
    let connection = |client: &mut super::common::Client| {
        let connected = client.ask(json!({"type":"auth","id":0}));
        connected["connection"].as_str().unwrap().to_owned()
    };
    let id_of_one = connection(&mut one);
    let post = |data: u64| {
        let body = json!({"channel":"open.room","data":data,"except":id_of_one}).to_string();
        assert_eq!(server.http("POST", "/api/publish", &body).0, 200);
    };
    let mut seen = 0;
    for _ in 0..20 {
        let said = |data: u64, echo: bool| json!({"type":"publish","id":data,"channel":"open.room","data":data,"echo":echo});
        one.send(said(1, false));
        assert_eq!(one.receive()["type"], "published");
        assert_eq!(many.receive()["data"], 1);
        many.send(said(2, false));
        assert_eq!(many.receive()["type"], "published");
        post(3);
        other.send(json!({"type":"publish","channel":"open.room","data":4,"echo":true}));
        let read = |client: &mut super::common::Client, expected: &[u64]| {
            for &data in expected {
                let message = client.receive();
                assert_eq!(
                    (&message["data"], &message["offset"]),
                    (&json!(data), &json!(seen + data))
                );
            }
        };
        read(&mut other, &[1, 2, 3, 4]);
        // Before what it was not sent there was something, so that it does not stand at the end.
        read(&mut one, &[2, 4]);
        read(&mut many, &[3, 4]);
        seen += 4;
    }
    let (status, body) =
        server.http("POST", "/api/publish", r#"{"channel":"a","data":1,"except":"x"}"#);
    assert_eq!(status, 400);
    assert!(body.contains("'except': a connection id has 20 hexadecimal digits"), "{body}");
}

#[test]
fn unsubscribing_ends_delivery_and_every_command_has_one_reply() {
    let server = TestServer::open(&[]);
    let mut client = server.client();
    client.subscribe("open.a");
    client.subscribe("open.b");
    let reply = client.ask(json!({"type":"unsubscribe","id":2,"channel":"open.a"}));
    assert_eq!(reply, json!({"type":"unsubscribed","id":2,"channel":"open.a"}));
    server.publish("open.a", json!(1));
    server.publish("open.b", json!(2));
    assert_eq!(client.receive()["channel"], "open.b");
    assert_eq!(client.ask(json!({"type":"ping","id":3})), json!({"type":"pong","id":3}));
    for (command, code) in [
        (json!({"type":"subscribe","id":4,"channel":"open.b"}), "already_subscribed"),
        (json!({"type":"unsubscribe","id":4,"channel":"open.a"}), "not_subscribed"),
        (json!({"type":"subscribe","id":4,"channel":"closed.x"}), "forbidden"),
        (json!({"type":"publish","id":4,"channel":"other","data":1}), "forbidden"),
        (json!({"type":"subscribe","id":4,"channel":"a b"}), "bad_channel"),
        (json!({"type":"history","id":4,"channel":"open.never"}), "bad_channel"),
        (json!({"type":"dance","id":4}), "unknown_command"),
        (json!({"action":"subscribe","id":4}), "bad_command"),
    ] {
        let reply = client.ask(command.clone());
        assert_eq!((&reply["type"], &reply["code"]), (&json!("error"), &json!(code)), "{command}");
        assert_eq!(reply["id"], 4);
    }
    client.send_text("{broken");
    assert_eq!(client.receive()["code"], "bad_json");
}

#[test]
fn history_is_read_over_both_ways() {
    let server = TestServer::open(&[]);
    for i in 1..=5 {
        server.publish("open.h", json!({"i": i}));
    }
    let mut client = server.client();
    let page = client.ask(json!({"type":"history","id":1,"channel":"open.h","after":2,"limit":2}));
    assert_eq!(page["type"], "history");
    assert_eq!(page["offset"], 5);
    let expected = json!([{"offset":3,"data":{"i":3}},{"offset":4,"data":{"i":4}}]);
    assert_eq!(page["publications"], expected);
    let page = server.get("/api/history?channel=open.h&after=2&limit=2");
    assert_eq!(page["publications"], expected);
}

#[test]
fn the_http_api_answers_every_case() {
    let server = TestServer::open(&["api.keys=secret,other", "api.body_bytes_max=2000"]);
    let auth = "Authorization: Bearer other\r\n";
    let call = |method: &str, target: &str, headers: &str, body: &str| {
        super::common::http(server.internal, method, target, headers, body)
    };
    assert_eq!(call("POST", "/api/publish", "", "{}").0, 401);
    assert_eq!(call("POST", "/api/publish", "Authorization: Bearer secre\r\n", "{}").0, 401);
    let good = r#"{"channel":"any","data":1}"#;
    assert_eq!(call("POST", "/api/publish", "X-API-Key: secret\r\n", good).0, 200);
    assert_eq!(call("POST", "/api/publish", auth, good).0, 200);
    for (body, status) in [
        ("{", 400),
        (r#"{"channel":"a b","data":1}"#, 400),
        (r#"{"channel":"a"}"#, 400),
        (r#"{"channel":"a","data":1,"datum":2}"#, 400),
        (&format!(r#"{{"channel":"a","data":"{}"}}"#, "x".repeat(3000)), 413),
    ] {
        let (got, answer) = call("POST", "/api/publish", auth, body);
        assert_eq!(got, status, "{answer}");
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["error"].is_string() && answer["message"].is_string(), "{answer}");
    }
    let batch = r#"{"publications":[{"channel":"b","data":1},{"channel":"","data":1},
                    {"channel":"b","text":"two"}]}"#;
    let (status, answer) = call("POST", "/api/batch", auth, batch);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(status, 200);
    assert_eq!(answer["results"][0]["offset"], 1);
    assert_eq!(answer["results"][1]["error"], "bad_channel");
    assert_eq!(answer["results"][2]["offset"], 2);
    let lines = "{\"channel\":\"i\",\"data\":1}\n\nnonsense\n{\"channel\":\"i\",\"data\":2}";
    let (status, acks) = call("POST", "/api/ingest", auth, lines);
    assert_eq!(status, 200);
    let last: serde_json::Value = serde_json::from_str(acks.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["lines"], &last["accepted"], &last["refused"]),
        (&json!(4), &json!(2), &json!(1))
    );
    assert!(acks.contains("\"line\":3"), "{acks}");

    let (_, rows) = call("GET", "/api/channels?prefix=b", auth, "");
    let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
    assert_eq!((&rows["total"], &rows["channels"][0]["offset"]), (&json!(1), &json!(2)));
    assert_eq!(call("GET", "/api/history?channel=none", auth, "").0, 404);
    assert_eq!(call("GET", "/api/history", auth, "").0, 400);
    assert_eq!(call("GET", "/api/stats", auth, "").0, 200);
    assert_eq!(call("GET", "/nothing", auth, "").0, 404);
    assert_eq!(call("DELETE", "/api/publish", auth, "").0, 405);
    assert_eq!(call("GET", "/health", "", "").0, 200);
    assert_eq!(call("GET", "/ready", "", "").0, 200);
    let (status, metrics) = call("GET", "/metrics", auth, "");
    assert_eq!(status, 200);
    assert!(metrics.contains("ringfeed_publications_total{shard=\"1\"} "), "{metrics}");
    let (_, document) = call("GET", "/api/openapi.json", "", "");
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    for path in ["publish", "batch", "ingest", "channels", "history", "stats"] {
        assert!(document["paths"][format!("/api/{path}")].is_object(), "{path}");
    }
}

#[test]
fn without_keys_browsers_are_refused() {
    let server = TestServer::open(&[]);
    let origin = "Origin: http://evil.example\r\n";
    let body = r#"{"channel":"a","data":1}"#;
    let (status, _) = super::common::http(server.internal, "POST", "/api/publish", origin, body);
    assert_eq!(status, 403);
}

#[test]
fn a_channel_that_tells_says_who_has_published_and_when_live_and_kept() {
    let channels =
        "[[channels]]\npattern = \"*\"\npublish = \"anyone\"\nhistory_size = 10\nsender = true";
    let server = TestServer::start(&format!("{ISSUER}{channels}"), &["auth.anonymous=true"]);
    let mut reader = server.client();
    reader.subscribe("room");
    let mut ann = server.client();
    let token = token("ann", 60, json!({}));
    assert_eq!(ann.ask(json!({"type":"auth","id":1,"token":token}))["user"], "ann");
    let published = ann.ask(json!({"type":"publish","id":2,"channel":"room","data":1}));
    assert_eq!(published["offset"], 1);
    let seen = reader.receive();
    assert_eq!((&seen["from"], &seen["data"]), (&json!("ann"), &json!(1)));
    let time = seen["time"].as_u64().unwrap();
    assert!(time > 1_600_000_000_000);
    let body = json!({"channel":"room","data":2}).to_string();
    assert_eq!(server.http("POST", "/api/publish", &body).0, 200);
    let seen = reader.receive();
    assert!(seen.get("from").is_none() && seen["time"].as_u64().unwrap() >= time, "{seen}");
    let kept = reader.ask(json!({"type":"history","id":3,"channel":"room"}));
    let kept = kept["publications"].as_array().unwrap();
    assert_eq!((&kept[0]["from"], &kept[0]["time"]), (&json!("ann"), &json!(time)));
    assert_eq!((kept[1].get("from"), &kept[1]["time"]), (None, &seen["time"]));
    let recover = json!({"epoch":published["epoch"],"offset":0});
    let mut late = server.client();
    let back = late.ask(json!({"type":"subscribe","id":1,"channel":"room","recover":recover}));
    assert_eq!(back["recovered"], true);
    assert_eq!(late.receive()["from"], "ann");
    assert_eq!(late.receive()["time"], seen["time"]);
}
