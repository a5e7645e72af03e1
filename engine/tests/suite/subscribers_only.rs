//! The deployments whose clients only subscribe: `config/examples/wsnode.toml`, and `config/examples/frankenphp.toml`, also with
//! the envelope of its second version.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};

use super::common::{Client, TestServer, http, wait_until};
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
        "[auth]\nanonymous = true\n[[api_keys]]\nname = \"app\"\nkey = {KEY:?}\nscopes = [\"publish\", \"metrics\"]\nchannels = [\"*\"]\n\
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
    let key = format!("X-API-Key: {KEY}\r\n");
    let metrics = http(server.internal, "GET", "/metrics", &key, "").1;
    assert!(metrics.contains("ringfeed_http_broadcasts_dropped_total 1.0\n"), "{metrics}");
    client.send_text(r#"{"action":"unsubscribe","channel":"c"}"#);
    assert_eq!(client.receive(), json!({"type":"unsubscribed","channel":"c"}));
}

#[test]
fn without_an_envelope_text_is_broadcast_as_it_is() {
    let toml = format!(
        "[auth]\nanonymous = true\n[[api_keys]]\nname = \"app\"\nkey = {KEY:?}\nscopes = [\"publish\", \"channels\"]\nchannels = [\"*\"]\n\
         [[endpoints]]\npath = \"/ws\"\ndialect = \"raw.v1\"\nhttp = \"cadsock\"\n[[channels]]\npattern = \"*\"\nhistory_size = 10\n"
    );
    let server = TestServer::start(&toml, &[]);
    let post = |message: &str| {
        let headers = format!(
            "X-Broadcast-Secret: {KEY}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        );
        let body = format!("channel=c&message={message}");
        assert_eq!(http(server.public, "POST", "/internal/broadcast", &headers, &body).0, 202);
    };
    let mut client = Client::connect(server.public, "/ws?protocol=ringfeed.v1");
    client.subscribe("c");
    let mut raw = Client::connect(server.public, "/ws");
    raw.send_text(r#"{"action":"subscribe","channel":"c"}"#);
    let key = format!("X-API-Key: {KEY}\r\n");
    let channels = || http(server.internal, "GET", "/api/channels", &key, "").1;
    wait_until("channels", channels, |listed| listed.contains("\"subscribers\":2"));
    for message in ["nonsense", "%7B%22a%22%3A1%7D", "%7B%22a%22"] {
        post(message);
    }
    let told: Vec<Value> = (0..3).map(|_| client.receive()["data"].clone()).collect();
    assert_eq!(told, [json!("nonsense"), json!({"a": 1}), json!("{\"a\"")]);
    for text in ["nonsense", "{\"a\":1}", "{\"a\""] {
        assert_eq!(raw.message(), tungstenite::Message::text(text));
    }
}

#[test]
fn pages_of_the_same_host_may_connect_and_others_not() {
    let server = TestServer::open(&["server.origins=same-host"]);
    let host = server.public.to_string();
    drop(Client::connect_with(server.public, "/ws", &[("Origin", &format!("http://{host}"))]));
    let upgrade = format!(
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://{host}\r\n"
    );
    // Asked for by another name.
    assert_eq!(http(server.public, "GET", "/ws", &upgrade, "").0, 403);
}

#[test]
fn any_path_is_an_endpoints_that_is_not_anothers() {
    let toml = "[auth]\nanonymous = true\n[[endpoints]]\npath = \"*\"\ndialect = \"wsnode\"\nhttp = \"fluxus\"\n\
                [[endpoints]]\npath = \"/ws\"\n";
    let server = TestServer::start(toml, &[]);
    for path in ["/", "/any/where?x=1", "/ws/"] {
        let greeting = Client::connect(server.public, path).receive();
        assert_eq!(greeting["type"], "connected", "{path}");
    }
    let mut own = Client::connect(server.public, "/ws");
    assert_eq!(own.ask(json!({"type":"ping","id":1}))["type"], "pong");
    // What is no upgrade is as ever.
    assert_eq!(http(server.public, "GET", "/any/where", "", "").0, 404);
    assert_eq!(http(server.public, "GET", "/health", "", "").0, 200);
    assert_eq!(http(server.public, "GET", "/api/rpc-methods", "", "").0, 200);
}

/// A page that says who connects, as `auth.php` does: by the one cookie that it is shown.
fn auth_page() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
            let get = head.first().is_some_and(|line| line.starts_with("GET /auth.php "));
            let cookie = head.iter().find_map(|line| line.strip_prefix("cookie: "));
            let (status, body) = match cookie.filter(|_| get) {
                Some("AUTH_TOKEN=ann") => (200, "{\"id\":\"ann\"}"),
                Some("AUTH_TOKEN=number") => (200, "{\"id\":7}"),
                _ => (401, ""),
            };
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            let _ = (&stream).write_all(answer.as_bytes());
        }
    });
    address
}

fn start_frankenphp(page: &str) -> TestServer {
    let toml = include_str!("../../../config/examples/frankenphp.toml");
    let key = format!("key = {KEY:?}");
    let toml = toml.replace("key_file = \"/etc/ringfeed/broadcast-key\"", &key);
    let toml = toml.replace("http://127.0.0.1:8080/auth.php", page);
    // The test is no proxy.
    let toml = toml.replace("proxies = [\"127.0.0.1/32\"]", "");
    let toml = toml.replace("forwarded_header = \"x-forwarded-for\"", "");
    TestServer::start(&toml, &["hooks.retries=0", "hooks.allow_private_addresses=true"])
}

#[test]
fn a_login_page_says_who_connects_and_what_is_published_arrives_verbatim() {
    let server = start_frankenphp(&format!("http://{}/auth.php", auth_page()));
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: https://shop.example.org\r\n";
    let ask = |cookie: &str| {
        let (status, text) = http(server.public, "GET", "/ws", &format!("{upgrade}{cookie}"), "");
        (status, text.trim().to_owned())
    };
    assert_eq!(ask(""), (401, "Unauthorized".into()));
    assert_eq!(ask("Cookie: AUTH_TOKEN=bob\r\n"), (401, "Unauthorized".into()));
    assert_eq!(ask("Cookie: AUTH_TOKEN=number\r\n"), (500, "Invalid auth response".into()));
    let headers =
        [("Origin", "https://shop.example.org"), ("Cookie", "theme=dark; AUTH_TOKEN=ann")];
    let mut ann = Client::connect_with(server.public, "/ws", &headers);
    ann.send_text(r#"{"action":"subscribe","channel":"c"}"#);
    let key = format!("Authorization: Bearer {KEY}\r\n");
    let channels = || http(server.internal, "GET", "/api/channels", &key, "").1;
    wait_until("channels", channels, |listed| listed.contains("\"subscribers\":1"));
    let publish =
        |body: Value| http(server.internal, "POST", "/api/publish", &key, &body.to_string()).0;
    assert_eq!(publish(json!({"channel":"c","text":"not JSON, {"})), 200);
    assert_eq!(ann.message(), tungstenite::Message::text("not JSON, {"));
    // To the user, on all of its connections.
    let send = json!({"user":"ann","text":"for ann"}).to_string();
    assert_eq!(http(server.internal, "POST", "/api/send", &key, &send).0, 200);
    assert_eq!(ann.message(), tungstenite::Message::text("for ann"));
    ann.send_text(&"x".repeat(513));
    assert_eq!(ann.closed().0, 1009);
    let down = start_frankenphp("http://127.0.0.1:1/auth.php");
    assert_eq!(http(down.public, "GET", "/ws", upgrade, "").0, 502);
}
