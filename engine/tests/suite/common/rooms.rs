//! Rooms that are made over the HTTP API of nodes, in this process or in processes of their own.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Client, http, wait_until};

/// Rooms `r.*` are numbered and keep a history, `q.*` are bridged; there are none but those that were made.
pub const RULES: &str = r#"
[[channels]]
pattern = "r.*"
publish = "anyone"
history_size = 100
room = true
only_made = true
[[channels]]
pattern = "q.*"
publish = "anyone"
distribution = "bridged"
room = true
only_made = true
"#;

fn ask(internal: SocketAddr, method: &str, target: &str, body: &str) -> (u16, Value) {
    let (status, answer) = http(internal, method, target, "", body);
    (status, serde_json::from_str(&answer).unwrap_or(Value::String(answer)))
}

pub fn try_make(internal: SocketAddr, body: &Value) -> (u16, Value) {
    ask(internal, "POST", "/api/rooms", &body.to_string())
}

/// Makes one, which all nodes know by then.
pub fn make(internal: SocketAddr, body: Value) -> Value {
    let (status, answer) = try_make(internal, &body);
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

pub fn change(internal: SocketAddr, body: Value) -> Value {
    let (status, answer) = ask(internal, "PATCH", "/api/rooms", &body.to_string());
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

pub fn end(internal: SocketAddr, room: &str) -> (u16, Value) {
    ask(internal, "DELETE", &format!("/api/rooms?channel={room}"), "")
}

pub fn about(internal: SocketAddr, room: &str) -> (u16, Value) {
    ask(internal, "GET", &format!("/api/rooms?channel={room}"), "")
}

/// Waits until a node says that there is a room, or that there is none.
pub fn wait_room(internal: SocketAddr, room: &str, is_there: bool) -> Value {
    let status = if is_there { 200 } else { 404 };
    wait_until(room, || about(internal, room), |(told, _)| *told == status).1
}

/// Waits until a node counts so many members.
pub fn wait_members(internal: SocketAddr, room: &str, count: u64) {
    wait_until("members", || about(internal, room).1["members"].clone(), |seen| *seen == count);
}

/// What comes of it: `subscribed`, or the code of a refusal.
pub fn enter(client: &mut Client, room: &str, password: Option<&str>) -> String {
    let mut command = json!({"type": "subscribe", "id": 1, "channel": room});
    if let Some(password) = password {
        command["password"] = password.into();
    }
    let reply = client.ask(command);
    reply["code"].as_str().or(reply["type"].as_str()).unwrap().to_owned()
}

/// A member is told that its room has ended, and before perhaps that it has missed something.
pub fn assert_ended(client: &mut Client, room: &str) {
    let mut told = client.receive();
    while told["type"] == "gap" {
        told = client.receive();
    }
    assert_eq!((&told["type"], &told["channel"]), (&json!("unsubscribed"), &json!(room)), "{told}");
    assert_eq!(told["reason"], "the room has ended");
}

/// A room that is made, entered, changed and ended, each on another one of three nodes.
pub fn lives_on_all(nodes: [SocketAddr; 3], come: impl Fn(usize) -> Client) {
    let [a, b, c] = nodes;
    for room in ["r.1", "q.1"] {
        let mut clients = [0, 1, 2].map(&come);
        assert_eq!(enter(&mut clients[1], room, None), "no_such_room");
        make(
            a,
            json!({"channel": room, "password": "hush", "members_max": 2,
            "moderators": ["ann"], "invited": ["bob", "eve"]}),
        );
        let [on_a, on_b, on_c] = &mut clients;
        // At once: whoever made it was told that all know it.
        assert_eq!(enter(on_b, room, None), "wrong_password");
        assert_eq!(enter(on_b, room, Some("hush")), "subscribed");
        for node in nodes {
            wait_members(node, room, 1);
        }
        assert_eq!(enter(on_a, room, Some("hush")), "subscribed");
        for node in nodes {
            wait_members(node, room, 2);
        }
        assert_eq!(enter(on_c, room, Some("hush")), "channel_full");
        let changed = change(b, json!({"channel": room, "members_max": 3, "password": ""}));
        assert_eq!((&changed["members"], &changed["password"]), (&json!(2), &json!(false)));
        for node in nodes {
            assert_eq!(about(node, room), (200, changed.clone()));
        }
        assert_eq!(enter(on_c, room, None), "subscribed");
        for node in nodes {
            wait_members(node, room, 3);
        }
        let (status, ended) = end(c, room);
        assert_eq!((status, &ended["members"]), (200, &json!(3)), "{ended}");
        for client in &mut clients {
            assert_ended(client, room);
            assert_eq!(enter(client, room, None), "no_such_room");
        }
        for node in nodes {
            assert_eq!((about(node, room).0, end(node, room).0), (404, 404));
        }
        // Made anew where it was not made before.
        assert_eq!(make(c, json!({"channel": room}))["invited"], json!([]));
        assert_eq!(enter(&mut clients[0], room, None), "subscribed");
        assert_eq!(end(b, room).0, 200);
        assert_ended(&mut clients[0], room);
    }
}

/// A room ends with its last member on any node, and not with the last on one.
pub fn ends_with_its_last_member(nodes: [SocketAddr; 3], come: impl Fn(usize) -> Client) {
    for room in ["r.2", "q.2"] {
        let [mut on_a, mut on_b, mut on_c] = [0, 1, 2].map(&come);
        make(nodes[2], json!({"channel": room, "ends_when_empty": true}));
        for client in [&mut on_a, &mut on_b] {
            assert_eq!(enter(client, room, None), "subscribed");
        }
        for node in nodes {
            wait_members(node, room, 2);
        }
        on_a.ask(json!({"type": "unsubscribe", "id": 2, "channel": room}));
        for node in nodes {
            wait_members(node, room, 1);
        }
        assert_eq!(enter(&mut on_c, room, None), "subscribed");
        for node in nodes {
            wait_members(node, room, 2);
        }
        drop(on_c);
        on_b.ask(json!({"type": "unsubscribe", "id": 2, "channel": room}));
        for node in nodes {
            wait_room(node, room, false);
        }
        // It is another one that is made then.
        make(nodes[0], json!({"channel": room}));
        for client in [&mut on_a, &mut on_b] {
            assert_eq!(enter(client, room, None), "subscribed");
        }
        assert_eq!(end(nodes[1], room).0, 200);
    }
}
