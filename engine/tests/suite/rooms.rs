//! The deployment of `config/examples/rooms.toml`, with clients as its documentation shows them.

use super::common::tokens::{SECRET, token};
use super::common::{Client, TestServer};
use serde_json::{Value, json};

const ORIGIN: (&str, &str) = ("Origin", "https://app.example.org");

fn start() -> TestServer {
    let toml = include_str!("../../../config/examples/rooms.toml");
    // The example is for a machine that has the secrets; the API is on loopback here.
    let (before, after) = toml.split_once("[[api_keys]]").unwrap();
    let after = after.split_once("[limits]").unwrap().1;
    let toml = format!("{before}[limits]{after}");
    let toml = toml.replace("secret_env = \"JWT_SECRET\"", &format!("secret = {SECRET:?}"));
    TestServer::start(&toml, &[])
}

impl TestServer {
    /// A client behind its welcome.
    fn visitor(&self) -> Client {
        let mut client = Client::connect_with(self.public, "/", &[ORIGIN]);
        let welcome = client.receive();
        assert_eq!(welcome["type"], "welcome");
        assert!(welcome["connectionId"].as_u64().unwrap() > 0);
        client
    }

    /// One of a user.
    fn user(&self, user: &str) -> Client {
        let mut client = self.visitor();
        let token = token(user, 60, json!({"username":user,"roles":["member"]}));
        client.send(json!({"type":"auth","token":token}));
        // Others may come at the same time.
        while client.receive()["userId"] != user {}
        let success = client.receive();
        let shown = json!({"id":user,"username":user,"roles":["member"]});
        assert_eq!(success, json!({"type":"auth_success","user":shown}));
        client
    }

    /// Waits until so many connections have everybody's channel and the rooms that they have joined.
    fn wait_subscriptions(&self, count: u64) {
        self.wait_total("subscriptions", |n| n == count);
    }
}

/// Skips what is told of who is there.
fn next(client: &mut Client) -> Value {
    loop {
        let said = client.receive();
        if !["presence_update", "user_joined", "user_left"]
            .contains(&said["type"].as_str().unwrap())
        {
            return said;
        }
    }
}

#[test]
fn a_room_has_members_and_what_is_said_there_comes_to_all_of_them() {
    let server = start();
    let (mut ann, mut bob) = (server.user("ann"), server.visitor());
    for client in [&mut ann, &mut bob] {
        client.send(json!({"type":"join_room","room":"lounge"}));
        assert_eq!(next(client), json!({"type":"room_joined","room":"lounge"}));
    }
    ann.send(json!({"type":"join_room","room":"lounge"}));
    assert_eq!(next(&mut ann)["type"], "room_joined", "twice is once");
    ann.send(json!({"type":"broadcast","room":"lounge","message":{"text":"hi"}}));
    for client in [&mut ann, &mut bob] {
        let mut said = next(client);
        assert!(
            said.as_object_mut().unwrap().remove("timestamp").unwrap().as_u64()
                > Some(1_600_000_000)
        );
        assert_eq!(
            said,
            json!({"type":"room_message","room":"lounge","message":{"text":"hi"},"from":"ann"})
        );
    }
    bob.send(
        json!({"type":"broadcast","room":"lounge","message":"to others","exclude_sender":true}),
    );
    let said = next(&mut ann);
    assert_eq!((&said["message"], &said["from"]), (&json!("to others"), &Value::Null));
    let body = json!({"channel":"rooms.lounge","data":"from above"}).to_string();
    assert_eq!(server.http("POST", "/api/publish", &body).0, 200);
    for client in [&mut ann, &mut bob] {
        let said = next(client);
        assert_eq!((&said["message"], &said["from"]), (&json!("from above"), &json!("admin")));
    }
    bob.send(json!({"type":"leave_room","room":"lounge"}));
    assert_eq!(next(&mut bob), json!({"type":"room_left","room":"lounge"}));
    bob.send(json!({"type":"leave_room","room":"lounge"}));
    // Who is no member may speak, and is not told.
    bob.send(json!({"type":"broadcast","room":"lounge","message":1}));
    bob.send(json!({"type":"ping"}));
    assert_eq!(next(&mut bob)["type"], "pong");
    assert_eq!(next(&mut ann)["message"], 1);
}

#[test]
fn on_a_stage_only_moderators_speak() {
    let server = start();
    let mut ann = server.user("ann");
    let mut chair = server.visitor();
    let token = token("chair", 60, json!({"username":"chair","roles":["moderator"]}));
    chair.send(json!({"type":"auth","token":token}));
    while chair.receive()["type"] != "auth_success" {}
    for client in [&mut ann, &mut chair] {
        client.send(json!({"type":"join_room","room":"stage.a"}));
        assert_eq!(next(client)["type"], "room_joined");
    }
    ann.send(json!({"type":"broadcast","room":"stage.a","message":"hear me"}));
    let refused = json!({"type":"error","message":"Only moderators may speak in this room"});
    assert_eq!(next(&mut ann), refused);
    chair.send(json!({"type":"broadcast","room":"stage.a","message":"hear"}));
    assert_eq!(next(&mut ann)["from"], "chair");
    assert_eq!(next(&mut chair)["message"], "hear");
}

#[test]
fn private_messages_come_to_the_user_alone() {
    let server = start();
    let (mut ann, mut bob, mut out) = (server.user("ann"), server.user("bob"), server.visitor());
    ann.send(json!({"type":"private_message","to":"bob","message":"psst"}));
    assert_eq!(next(&mut ann), json!({"type":"message_sent","to":"bob"}));
    let said = next(&mut bob);
    assert_eq!(
        (&said["type"], &said["message"], &said["from"]),
        (&json!("private_message"), &json!("psst"), &json!("ann"))
    );
    out.send(json!({"type":"private_message","to":"carol","message":1}));
    assert_eq!(next(&mut out), json!({"type":"error","message":"User not online"}));
    // Over the API, too.
    let body = json!({"user":"ann","data":[1]}).to_string();
    let (status, answer) = server.http("POST", "/api/send", &body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(next(&mut ann)["message"], json!([1]));
}

#[test]
fn everybody_is_told_who_is_online() {
    let server = start();
    let mut out = server.visitor();
    server.wait_subscriptions(1);
    let mut ann = server.user("ann");
    let online = out.receive();
    assert_eq!(
        (&online["type"], &online["userId"], &online["status"]),
        (&json!("presence_update"), &json!("ann"), &json!("online"))
    );
    ann.send(json!({"type":"presence","status":"away"}));
    for client in [&mut ann, &mut out] {
        assert_eq!(client.receive()["status"], "away");
    }
    out.send(json!({"type":"presence","status":"busy"}));
    out.send(json!({"type":"auth","token":"nonsense"}));
    assert_eq!(out.receive(), json!({"type":"auth_failed","message":"Invalid token"}));
}

#[test]
fn too_many_messages_of_a_minute_are_refused_and_the_connection_stays() {
    let server = start();
    let mut client = server.visitor();
    for _ in 0..100 {
        assert_eq!(
            client.ask(json!({"type":"nonsense"}))["message"],
            "Unknown message type: nonsense"
        );
    }
    assert_eq!(client.ask(json!({"type":"nonsense"}))["message"], "Rate limit exceeded");
    assert_eq!(client.ask(json!({"type":"ping"}))["type"], "pong");
}

#[test]
fn members_are_told_who_joins_and_leaves_and_not_of_themselves() {
    let server = start();
    let (mut ann, mut bob) = (server.user("ann"), server.user("bob"));
    let join = json!({"type":"join_room","room":"lounge"});
    let seen = |client: &mut Client, kind: &str, user: Value| loop {
        let said = client.receive();
        match said["type"].as_str().unwrap() {
            "presence_update" => {}
            _ => return assert_eq!(said, json!({"type":kind,"room":"lounge","userId":user})),
        }
    };
    ann.send(join.clone());
    assert_eq!(next(&mut ann)["type"], "room_joined");
    bob.send(join.clone());
    assert_eq!(next(&mut bob)["type"], "room_joined");
    seen(&mut ann, "user_joined", json!("bob"));
    let mut out = server.visitor();
    out.send(join);
    seen(&mut ann, "user_joined", Value::Null);
    seen(&mut bob, "user_joined", Value::Null);
    bob.send(json!({"type":"leave_room","room":"lounge"}));
    assert_eq!(next(&mut bob)["type"], "room_left");
    seen(&mut ann, "user_left", json!("bob"));
    // Who has gone is offline.
    drop(bob);
    let offline = ann.receive();
    assert_eq!((&offline["userId"], &offline["status"]), (&json!("bob"), &json!("offline")));
    assert!(offline["timestamp"].as_u64() > Some(1_600_000_000));
}
