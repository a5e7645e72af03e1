//! The deployments whose clients only subscribe: `config/examples/wsnode.toml`, and `config/examples/frankenphp.toml` with the
//! envelope of its second version.

use super::common::{Client, TestServer, http};
use serde_json::{Value, json};

const KEY: &str = "a-key-that-is-long-enough-for-this";

/// The example, with its key here.
fn start_wsnode() -> TestServer {
    let toml = include_str!("../../../config/examples/wsnode.toml");
    let key = format!("key = {KEY:?}");
    let toml = toml.replace("key_file = \"/etc/ringfeed/broadcast-key\"", &key);
    TestServer::start(&toml, &["server.node_id=node-1"])
}

fn broadcast(server: &TestServer, body: &Value) -> (u16, Value) {
    let (status, answer) = http(
        server.public,
        "POST",
        "/broadcast",
        "Content-Type: application/json\r\n",
        &body.to_string(),
    );
    (status, serde_json::from_str(&answer).unwrap())
}

#[test]
fn a_nodes_clients_subscribe_and_are_broadcast_to() {
    let server = start_wsnode();
    let mut client = Client::connect(server.public, "/");
    let connected = client.receive();
    assert_eq!((&connected["type"], &connected["nodeId"]), (&json!("connected"), &json!("node-1")));
    let id = connected["clientId"].as_str().unwrap();
    assert_eq!((id.len(), &id[14..15]), (36, "4"));
    // What is no subscribe is ignored.
    for ignored in ["nonsense", "{}", r#"{"type":"publish","channel":"news","message":1}"#] {
        client.send_text(ignored);
    }
    client.send(json!({"type":"subscribe","channel":"other"}));
    assert_eq!(client.receive(), json!({"type":"error","message":"Invalid channel"}));
    for _ in 0..2 {
        let subscribed = client.ask(json!({"type":"subscribe","channel":"news"}));
        assert_eq!(
            (&subscribed["type"], &subscribed["channel"]),
            (&json!("subscribed"), &json!("news"))
        );
        assert!(subscribed["timestamp"].as_str().unwrap().ends_with('Z'));
    }
    let message = json!({"title":"x","n":[1,null]});
    let (status, told) =
        broadcast(&server, &json!({"channel":"news","message":message,"apiKey":KEY}));
    assert_eq!(
        (status, &told),
        (200, &json!({"success":true,"nodeId":"node-1","delivered":1,"total":1}))
    );
    let mut seen = client.receive();
    let time = seen["timestamp"].take();
    assert!(time.as_str().unwrap().starts_with("20"), "{time}");
    assert_eq!(
        seen,
        json!({"type":"broadcast","channel":"news","message":message,"timestamp":null,"nodeId":"node-1"})
    );
    let (status, told) =
        broadcast(&server, &json!({"channel":"prices.a","message":1,"apiKey":KEY}));
    assert_eq!((status, &told["message"]), (200, &json!("No subscribers for this channel")));
    assert_eq!(broadcast(&server, &json!({"channel":"news","message":1,"apiKey":"x"})).0, 401);
    assert_eq!(broadcast(&server, &json!({"channel":"news","message":0,"apiKey":KEY})).0, 400);
    let metrics = http(server.public, "GET", "/metrics", &format!("X-API-Key: {KEY}\r\n"), "");
    let metrics: Value = serde_json::from_str(&metrics.1).unwrap();
    assert_eq!(metrics["metrics"]["broadcasts"]["total"], 2);
}

#[test]
fn an_envelope_is_around_what_is_broadcast_by_form() {
    let toml = format!(
        "[auth]\nanonymous = true\n[[api_keys]]\nname = \"app\"\nkey = {KEY:?}\nscopes = [\"publish\"]\nchannels = [\"*\"]\n\
         [[endpoints]]\npath = \"/ws\"\ndialect = \"cadsock\"\nchoose = false\nchannel_prefix = \"php.\"\nhttp = \"cadsock\"\n\
         [[channels]]\npattern = \"php.*\"\n"
    );
    let server = TestServer::start(&toml, &[]);
    let mut client = Client::connect(server.public, "/ws");
    for (text, expected) in [
        (r#"{"action":"subscribe","channel":"c"}"#, json!({"type":"subscribed","channel":"c"})),
        (r#"{"action":"subscribe","channel":"c"}"#, json!({"type":"subscribed","channel":"c"})),
        ("nonsense", json!({"type":"error","error":"invalid JSON message"})),
        (r#"{"action":"subscribe"}"#, json!({"type":"error","error":"channel must be specified"})),
        (
            r#"{"action":"fly","channel":"c"}"#,
            json!({"type":"error","error":"unknown action: fly"}),
        ),
    ] {
        client.send_text(text);
        assert_eq!(client.receive(), expected, "{text}");
    }
    let post = |body: &str| {
        let headers = format!(
            "X-Broadcast-Secret: {KEY}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        );
        http(server.public, "POST", "/internal/broadcast", &headers, body).0
    };
    assert_eq!(post("channel=c&message=%7B%22a%22%3A1%7D"), 202);
    assert_eq!(client.receive(), json!({"type":"message","channel":"c","payload":{"a":1}}));
    // What is no JSON is taken and dropped.
    assert_eq!(
        (post("channel=c&message=nonsense"), post("channel=c&message=%22text%22")),
        (202, 202)
    );
    assert_eq!(client.receive()["payload"], "text");
    client.send_text(r#"{"action":"unsubscribe","channel":"c"}"#);
    assert_eq!(client.receive(), json!({"type":"unsubscribed","channel":"c"}));
}
