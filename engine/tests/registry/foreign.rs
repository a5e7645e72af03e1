//! The routes of other systems' registries, as their nodes and tools ask and read.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use serde_json::{Value, json};

use super::process::{PATIENCE, Registry};

#[test]
fn nodes_of_the_registry_in_php_are_served() {
    let registry = Registry::start(&["--node-timeout-ms", "100"]);
    let announced = json!({"id": "node-1", "url": "http://localhost:8081", "status": "active"});
    let (status, told) = registry.ask("POST", "/announce", &announced.to_string());
    assert_eq!((status, told), (200, json!({"success": true})));
    for missing in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"id":"a","url":"http://a:1"}"#,
        r#"{"id":"","url":"http://a:1","status":"active"}"#,
    ] {
        let (status, told) = registry.ask("POST", "/announce", missing);
        assert_eq!((status, told), (400, json!({"error": "Missing required fields"})), "{missing}");
    }
    let evil = json!({"id": "a", "url": "http://a:1\n  server x 1.2.3.4:5", "status": "active"});
    let (status, told) = registry.ask("POST", "/announce", &evil.to_string());
    assert!(status == 400 && told["error"].as_str().unwrap().starts_with("the URL"), "{told}");
    let other = json!({"id": "node-2", "url": "http://localhost:8082", "status": "maintenance"});
    assert_eq!(registry.ask("POST", "/announce", &other.to_string()).0, 200);
    // Heard of within five minutes, however short our own nodes' time is.
    let own = json!({"id": "own", "url": "http://own:1", "epoch": "1"}).to_string();
    assert_eq!(registry.ask("POST", "/v1/nodes", &own).0, 200);
    let gone =
        |list: &Value| list["nodes"].as_array().unwrap().iter().all(|node| node["id"] != "own");
    registry.wait("/v1/nodes", gone);
    let (_, nodes) = registry.ask("GET", "/nodes", "");
    let nodes = nodes.as_array().unwrap();
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    let node = nodes[0].as_object().unwrap();
    let fields: Vec<&String> = node.keys().collect();
    assert_eq!(fields, ["created_at", "id", "last_seen", "status", "url"]);
    assert_eq!(
        (&node["id"], &node["url"], &node["status"]),
        (&json!("node-1"), &json!("http://localhost:8081"), &json!("active"))
    );
    let seen = node["last_seen"].as_str().unwrap();
    assert!(seen.len() == 19 && &seen[10..11] == " ", "{seen}");

    for (name, allowed) in [
        ("everywhere", json!("*")),
        ("listed", json!(["node-1", "node-3"])),
        ("written", json!("node-3, node-1")),
        ("elsewhere", json!("node-10")),
    ] {
        let body = json!({"name": name, "allowed_nodes": allowed}).to_string();
        assert_eq!(
            registry.ask("POST", "/channels", &body),
            (200, json!({"success": true})),
            "{name}"
        );
    }
    for missing in
        ["{}", r#"{"name":"a"}"#, r#"{"allowed_nodes":"*"}"#, r#"{"name":"a","allowed_nodes":""}"#]
    {
        let (status, told) = registry.ask("POST", "/channels", missing);
        assert_eq!((status, told), (400, json!({"error": "Missing required fields"})), "{missing}");
    }
    let (_, names) = registry.ask("GET", "/channels/node-1", "");
    assert_eq!(names, json!(["everywhere", "listed", "written"]));
    assert_eq!(registry.ask("GET", "/channels/node-10", "").1, json!(["elsewhere", "everywhere"]));

    let metrics = json!({"nodeId": "node-1", "metrics": {"clients": {"total": 3}}}).to_string();
    assert_eq!(registry.ask("POST", "/metrics/node-1", &metrics), (200, json!({"success": true})));
    assert_eq!(
        registry.ask("POST", "/metrics/never-announced", "{}"),
        (200, json!({"success": true}))
    );
    let (_, list) = registry.ask("GET", "/v1/nodes?metrics=true", "");
    assert_eq!(list["nodes"][0]["metrics"]["metrics"]["clients"]["total"], 3, "{list}");
}

#[test]
fn clients_of_the_registry_in_node_js_are_served() {
    let registry = Registry::start(&[]);
    let node = json!({"id": "n1", "url": "http://localhost:8081"});
    assert_eq!(registry.ask("POST", "/nodes", &node.to_string()), (200, node));
    for (body, wrong) in
        [("{}", 2), ("", 2), (r#"{"id":"a"}"#, 1), (r#"{"id":"a b","url":"http://a:1"}"#, 1)]
    {
        let (status, told) = registry.ask("POST", "/nodes", body);
        assert_eq!(status, 400, "{told}");
        let errors = told["errors"].as_array().unwrap();
        assert_eq!(errors.len(), wrong, "{told}");
        assert!(errors.iter().all(|error| error["msg"].is_string() && error["path"].is_string()));
    }
    assert_eq!(registry.ask("POST", "/nodes/n1/heartbeat", ""), (200, json!({"status": "ok"})));
    assert_eq!(registry.ask("POST", "/nodes/n2/heartbeat", "{}").0, 404);
    let (_, nodes) = registry.ask("GET", "/nodes", "");
    assert_eq!((&nodes[0]["id"], &nodes[0]["status"]), (&json!("n1"), &json!("active")), "{nodes}");
    assert!(nodes[0]["created_at"].is_string() && nodes[0]["last_seen"].is_string());
    let row = json!({"id": "n1-news", "nodeId": "n1", "name": "news"});
    let add = |body: Value| registry.ask("POST", "/channels", &body.to_string());
    assert_eq!(add(json!({"nodeId": "n1", "name": "news"})), (200, row.clone()));
    assert_eq!(add(json!({"nodeId": "n2", "name": "news"})).0, 200);
    assert_eq!(add(json!({"nodeId": "n2", "name": "gold"})).0, 200);
    assert_eq!(registry.ask("GET", "/nodes/n1/channels", ""), (200, json!([row])));
    assert_eq!(registry.ask("GET", "/channels/n2", "").1, json!(["gold", "news"]));
    for bad in [
        json!({"nodeId": "n1"}),
        json!({"nodeId": "", "name": "a"}),
        json!({"nodeId": "a b", "name": "a"}),
    ] {
        let (status, told) = add(bad);
        assert!(status == 400 && told["errors"][0]["msg"].is_string(), "{told}");
    }
}

/// A node that answers every request with this, as long as the test runs; its URL.
fn node(answer: String) -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (told, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer, told) = (stream.unwrap(), answer.clone(), told.clone());
            std::thread::spawn(move || {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read_exact(&mut byte).is_err() {
                        return;
                    }
                    head.extend_from_slice(&byte);
                }
                let _ = told.send(String::from_utf8_lossy(&head).into_owned());
                let _ = stream.write_all(answer.as_bytes());
                if answer.is_empty() {
                    std::thread::sleep(PATIENCE);
                }
            });
        }
    });
    (url, asked)
}

fn ok(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

#[test]
fn figures_of_all_nodes_are_collected_whatever_some_of_them_do() {
    let registry = Registry::start(&[]);
    let good = json!({"nodeId": "good", "metrics": {"clients": {"total": 5},
        "channels": {"news": {"subscribers": 4}}}});
    let (target, never) = node(ok("{}"));
    let (good_url, asked) = node(ok(&good.to_string()));
    let huge = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{{\"x\":\"{}\"}}",
        "x".repeat(600 * 1024)
    );
    let redirect =
        format!("HTTP/1.1 302 Found\r\nLocation: {target}/metrics\r\nContent-Length: 0\r\n\r\n");
    for (id, url) in [
        ("good", good_url),
        ("huge", node(huge).0),
        ("hangs", node(String::new()).0),
        ("redirects", node(redirect).0),
        ("lies", node(ok("[1,2]")).0),
        ("refuses", node("HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n".into()).0),
        ("gone", "http://127.0.0.1:1".to_owned()),
    ] {
        let body = json!({"id": id, "url": url, "epoch": "1"}).to_string();
        assert_eq!(registry.ask("POST", "/v1/nodes", &body).0, 200);
    }
    let (status, told) = registry.ask("GET", "/cluster/metrics", "");
    assert_eq!((status, &told["totalNodes"]), (200, &json!(7)), "{told}");
    assert_eq!(told["nodes"]["good"], good);
    let channels = json!({"news": {"totalSubscribers": 4, "nodesServing": 1}});
    assert_eq!(told["summary"], json!({"totalClients": 5, "channels": channels}));
    for (id, why) in [
        ("huge", "too long"),
        ("hangs", "in time"),
        ("redirects", "302"),
        ("lies", "no JSON object"),
        ("refuses", "401"),
        ("gone", "no connection"),
    ] {
        let said = &told["nodes"][id];
        assert_eq!(said["status"], "error", "{id}: {said}");
        assert!(said["error"].as_str().unwrap().contains(why), "{id}: {said}");
    }
    let head = asked.recv_timeout(PATIENCE).unwrap().to_lowercase();
    assert!(head.starts_with("get /metrics http/1.1") && head.contains("x-api-key: "), "{head}");
    assert!(never.try_recv().is_err(), "redirects are not followed");
}
