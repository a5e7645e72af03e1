//! Who may ask, and what is no question.

use std::process::Stdio;

use serde_json::{Value, json};

use super::process::{KEY, Registry, command, text};

/// Every route but `/health`, with the text of a refusal where other systems know one.
const ROUTES: [(&str, &str, Option<&str>); 21] = [
    ("POST", "/v1/nodes", None),
    ("GET", "/v1/nodes", None),
    ("DELETE", "/v1/nodes/a", None),
    ("POST", "/v1/nodes/a/heartbeat", None),
    ("GET", "/v1/channels", None),
    ("PUT", "/v1/channels", None),
    ("DELETE", "/v1/channels?name=a", None),
    ("POST", "/v1/backup", None),
    ("GET", "/openapi.json", None),
    ("GET", "/no/such", None),
    ("GET", "/metrics", Some("Unauthorized")),
    ("GET", "/nodes", Some("Unauthorized")),
    ("POST", "/announce", Some("Unauthorized")),
    ("GET", "/channels/a", Some("Unauthorized")),
    ("POST", "/channels", Some("Unauthorized")),
    ("POST", "/metrics/a", Some("Unauthorized")),
    ("GET", "/cluster/metrics", Some("Unauthorized")),
    ("POST", "/nodes", Some("Invalid API key")),
    ("POST", "/nodes/a/heartbeat", Some("Invalid API key")),
    ("GET", "/nodes/a/channels", Some("Invalid API key")),
    ("DELETE", "/nodes/a", Some("Invalid API key")),
];

#[test]
fn nothing_but_health_is_answered_without_a_key() {
    let registry = Registry::start(&[]);
    let (status, health) = registry.ask_with("GET", "/health", "", "");
    let health: Value = serde_json::from_str(&health).unwrap();
    assert_eq!((status, &health["status"]), (200, &json!("healthy")));
    assert!(health["timestamp"].as_str().unwrap().ends_with('Z'));
    for (method, target, told) in ROUTES {
        for headers in ["", "X-API-Key: \r\n", "Authorization: Basic abc\r\n"] {
            let (status, body) = registry.ask_with(method, target, headers, "");
            let said: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(status, 401, "{method} {target} {headers}: {body}");
            match told {
                Some(text) => assert_eq!(said, json!({"error": text}), "{method} {target}"),
                None => assert_eq!(said["error"], "unauthorized", "{method} {target}"),
            }
        }
        let right = format!("Authorization: Bearer {KEY}\r\n");
        let (status, body) = registry.ask_with(method, target, &right, "");
        assert!(status != 401 && status != 0, "{method} {target}: {status} {body}");
    }
}

#[test]
fn who_tries_many_keys_is_told_to_wait_and_the_right_key_is_served_all_the_same() {
    let registry = Registry::start(&[]);
    let try_one = |n: u32| {
        let wrong = format!("X-API-Key: wrong-{n}\r\n");
        let (status, body) = registry.ask_with("GET", "/v1/nodes", &wrong, "");
        assert!(!body.contains("wrong-"), "{body}");
        status
    };
    let statuses: Vec<u16> = (0..500).map(try_one).collect();
    assert!(statuses.starts_with(&[401; 20]) && statuses.contains(&429), "{statuses:?}");
    assert_eq!(registry.ask("GET", "/v1/nodes", "").0, 200);
}

#[test]
fn keys_change_without_a_restart() {
    let registry = Registry::start(&[]);
    let with = |key: &str| {
        let header = format!("X-API-Key: {key}\r\n");
        registry.ask_with("GET", "/v1/nodes", &header, "").0
    };
    std::fs::write(registry.path("key"), format!("new-key-of-the-registry\n{KEY}\n")).unwrap();
    registry.signal("HUP");
    registry.wait_line("the keys were read again");
    assert_eq!((with("new-key-of-the-registry"), with(KEY)), (200, 200));
    std::fs::write(registry.path("key"), "new-key-of-the-registry\n").unwrap();
    registry.signal("HUP");
    registry.wait_line("the keys were read again");
    assert_eq!((with("new-key-of-the-registry"), with(KEY)), (200, 401));
    std::fs::write(registry.path("key"), "").unwrap();
    registry.signal("HUP");
    let line = registry.wait_line("the keys stay as they were");
    assert!(line.contains("there is no key in it"), "{line}");
    assert_eq!(with("new-key-of-the-registry"), 200);
}

#[test]
fn it_does_not_start_without_a_key_nor_beyond_loopback_with_a_short_one() {
    let dir = tempfile::tempdir().unwrap();
    let run = |listen: &str, key: &str| {
        let mut command = command();
        command
            .args(["registry", "serve", "--listen", listen, "--db"])
            .arg(dir.path().join("r.db"));
        if !key.is_empty() {
            command.env("RINGFEED_REGISTRY_KEY", key);
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
        let said = run(listen, "");
        assert!(said.contains("--key-file") && said.contains("RINGFEED_REGISTRY_KEY"), "{said}");
    }
    let said = run("0.0.0.0:0", "short");
    assert!(said.contains("at least 16 characters") && !said.contains("short"), "{said}");
    assert!(run("127.0.0.1:0", "a key").contains("visible ASCII"));
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "no file was made");
}

#[test]
fn what_is_wrong_with_a_body_is_said_and_nothing_is_changed() {
    let registry = Registry::start(&[]);
    let long = format!("{{\"id\":\"{}\"}}", "x".repeat(300 * 1024));
    let node = |field: &str, value: Value| {
        let mut node = json!({"id": "a", "url": "http://a:1", "epoch": "1"});
        node[field] = value;
        node.to_string()
    };
    let metrics = json!({"metrics": {"x": "y".repeat(70_000)}}).to_string();
    for (method, target, body, status, told) in [
        ("POST", "/v1/nodes", "", 400, "EOF"),
        ("POST", "/v1/nodes", "{", 400, "EOF"),
        ("POST", "/v1/nodes", "[]", 400, "not what is taken here"),
        ("POST", "/v1/nodes", "{}", 400, "missing field `id`"),
        ("POST", "/v1/nodes", &node("id", json!("a b")), 400, "1 to 64 of"),
        ("POST", "/v1/nodes", &node("id", json!("a\nserver x")), 400, "1 to 64 of"),
        ("POST", "/v1/nodes", &node("url", json!("a:1")), 400, "the URL"),
        ("POST", "/v1/nodes", &node("url", json!("http://a:1\n")), 400, "the URL"),
        ("POST", "/v1/nodes", &node("peer", json!("a")), 400, "HOST:PORT"),
        ("POST", "/v1/nodes", &node("weight", json!(0)), 400, "1 to 256"),
        ("POST", "/v1/nodes", &node("weight", json!(257)), 400, "1 to 256"),
        ("POST", "/v1/nodes", &node("state", json!("up")), 400, "`active` or `draining`"),
        ("POST", "/v1/nodes", &node("more", json!(1)), 400, "unknown field `more`"),
        ("POST", "/v1/nodes", &long, 413, "262144 bytes"),
        ("POST", "/v1/nodes/a%20b/heartbeat", "{}", 400, "1 to 64 of"),
        ("POST", "/v1/nodes/a/heartbeat", "{\"metrics\":[]}", 400, "no object"),
        ("POST", "/v1/nodes/a/heartbeat", &metrics, 413, "65536"),
        ("PUT", "/v1/channels", "{\"name\":\"\"}", 400, "1 to 255 bytes"),
        ("PUT", "/v1/channels", "{\"name\":\"a\\nb\"}", 400, "control characters"),
        ("PUT", "/v1/channels", "{\"name\":\"a\",\"allowed_nodes\":[]}", 400, "1 to 256"),
        ("PUT", "/v1/channels", "{\"name\":\"a\",\"allowed_nodes\":[\"a b\"]}", 400, "the id"),
        ("PUT", "/v1/channels", "{\"name\":\"a\",\"rule\":7}", 400, "expected a map"),
        ("DELETE", "/v1/channels", "", 400, "missing field `name`"),
        ("GET", "/v1/nodes?some=true", "", 400, "unknown field `some`"),
        ("GET", "/v1/nodes?known=x", "", 400, "invalid digit"),
        ("POST", "/v1/backup", "", 409, "--backup-dir"),
        ("PATCH", "/v1/nodes", "", 405, "/openapi.json"),
        ("GET", "/v1/no", "", 404, "/openapi.json"),
    ] {
        let (got, said) = registry.ask(method, target, body);
        assert_eq!(got, status, "{method} {target}: {said}");
        let message = said["message"].as_str().unwrap_or_else(|| panic!("{target}: {said}"));
        assert!(message.contains(told), "{method} {target} {body:.80}: {message}");
        assert!(message.len() <= 200 && !message.contains('\n'), "{message}");
    }
    let (_, nodes) = registry.ask("GET", "/v1/nodes?all=true", "");
    let (_, channels) = registry.ask("GET", "/v1/channels", "");
    assert_eq!((&nodes["nodes"], &channels["channels"]), (&json!([]), &json!([])));
}

#[test]
fn connections_beyond_those_allowed_are_told_to_come_back() {
    use std::io::{Read as _, Write as _};
    let registry = Registry::start(&["--connections-max", "2"]);
    let asks = || {
        let mut stream = std::net::TcpStream::connect(registry.address).unwrap();
        stream.set_read_timeout(Some(super::process::PATIENCE)).unwrap();
        // The rest of the body is still to come.
        let head =
            "POST /v1/nodes HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue";
        write!(stream, "{head}\r\nX-API-Key: {}\r\n\r\n", super::process::KEY).unwrap();
        let mut told = [0; 12];
        stream.read_exact(&mut told).unwrap();
        (stream, String::from_utf8_lossy(&told).into_owned())
    };
    let held = [asks(), asks()];
    assert!(held.iter().all(|(_, told)| told == "HTTP/1.1 100"), "{held:?}");
    let mut answer = String::new();
    let mut third = std::net::TcpStream::connect(registry.address).unwrap();
    third.set_read_timeout(Some(super::process::PATIENCE)).unwrap();
    let _ = third.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("}\n"), "{answer}");
    drop(held);
    registry.wait("/v1/nodes", |list| list["nodes"].is_array());
    let (_, figures) = registry.ask("GET", "/metrics", "");
    let figures = figures.as_str().unwrap().to_owned();
    assert!(figures.contains("ringfeed_registry_connections_refused_total"), "{figures}");
    assert!(figures.contains("ringfeed_registry_nodes{live=\"true\"} 0"), "{figures}");
}

#[test]
fn who_says_nothing_keeps_nobody_away_who_has_a_key() {
    let registry = Registry::start(&["--connections-max", "4"]);
    let silent: Vec<_> =
        (0..20).map(|_| std::net::TcpStream::connect(registry.address).unwrap()).collect();
    for _ in 0..10 {
        let (status, told) = registry.ask("GET", "/v1/nodes", "");
        assert_eq!(status, 200, "{told}");
    }
    drop(silent);
}

#[test]
fn the_description_has_every_route_and_leads_nowhere_that_is_not() {
    let registry = Registry::start(&[]);
    let (status, document) = registry.ask("GET", "/openapi.json", "");
    assert_eq!(status, 200);
    for (method, target, told) in ROUTES {
        let path = target.split('?').next().unwrap().replace("/a", "/{id}");
        if told.is_none() && path.starts_with("/v1") {
            let operation = &document["paths"][&path][method.to_lowercase()];
            assert!(operation["operationId"].is_string(), "{method} {path}");
            assert!(
                operation["security"].as_array().is_some_and(|needs| !needs.is_empty()),
                "{path}"
            );
        }
    }
    let printed = super::process::ringfeed(&["registry", "openapi"]);
    assert_eq!(serde_json::from_slice::<Value>(&printed.stdout).unwrap(), document);
}
