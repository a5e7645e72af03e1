//! The deployment of `config/examples/rooms.toml`, with clients as its documentation shows them.

use super::common::tokens::token;
use super::common::{Client, TestServer, example};
use serde_json::{Value, json};

const ORIGIN: (&str, &str) = ("Origin", "https://app.example.org");

fn start() -> TestServer {
    TestServer::start(&example(include_str!("../../../config/examples/rooms.toml")), &[])
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

#[test]
fn messages_that_come_together_are_a_batch_for_who_asks() {
    let server = start();
    let headers = [ORIGIN];
    let mut batched = Client::connect_with(server.public, "/any/path?batch=1", &headers);
    let mut plain = server.visitor();
    assert_eq!(batched.receive()["type"], "welcome");
    for client in [&mut batched, &mut plain] {
        client.send(json!({"type":"join_room","room":"my \"room\" 50%"}));
        let joined = json!({"type":"room_joined","room":"my \"room\" 50%"});
        assert_eq!(next(client), joined);
    }
    let channel = "rooms.my%20%22room%22%2050%25";
    let all: Vec<Value> = (0..5).map(|n| json!({"channel":channel,"data":n})).collect();
    let body = json!({"publications": all}).to_string();
    assert_eq!(server.http("POST", "/api/batch", &body).0, 200);
    let mut expected = Vec::new();
    for n in 0..5 {
        let said = next(&mut plain);
        assert_eq!((&said["room"], &said["message"]), (&json!("my \"room\" 50%"), &json!(n)));
        expected.push(said);
    }
    // One turn takes them all, or several do.
    let (mut told, mut frames) = (Vec::new(), 0);
    while told.len() < 5 {
        let said = next(&mut batched);
        frames += 1;
        match said["type"].as_str() {
            Some("batch") => {
                let messages = said["messages"].as_array().unwrap();
                assert!(messages.len() > 1, "one alone comes as itself: {said}");
                assert_eq!(said["timestamp"], messages[messages.len() - 1]["timestamp"]);
                told.extend(messages.iter().cloned());
            }
            _ => told.push(said),
        }
    }
    assert_eq!(told, expected);
    assert!(frames < 5, "a request is one turn's work");
    // What somebody is not sent leaves out nothing else, and one alone comes as ever.
    batched.send(
        json!({"type":"broadcast","room":"my \"room\" 50%","message":"mine","exclude_sender":true}),
    );
    assert_eq!(next(&mut plain)["message"], "mine");
    plain.send(json!({"type":"broadcast","room":"my \"room\" 50%","message":"yours"}));
    assert_eq!(next(&mut plain)["message"], "yours");
    let said = next(&mut batched);
    assert_eq!((&said["type"], &said["message"]), (&json!("room_message"), &json!("yours")));
    plain.send(json!({"type":"leave_room","room":"my \"room\" 50%"}));
    assert_eq!(next(&mut plain)["room"], "my \"room\" 50%");
}

/// A client of a user that is told the numbers of messages.
fn numbered(server: &TestServer, user: &str) -> Client {
    let mut client = Client::connect_with(server.public, "/?ids=1", &[ORIGIN]);
    let token = token(user, 60, json!({"username":user,"roles":["member"]}));
    client.send(json!({"type":"auth","token":token}));
    while client.receive()["type"] != "auth_success" {}
    client
}

#[test]
fn what_was_missed_comes_to_who_says_since_when() {
    let server = start();
    let mut ann = server.user("ann");
    let mut bob = numbered(&server, "bob");
    ann.send(json!({"type":"join_room","room":"lounge"}));
    assert_eq!(next(&mut ann), json!({"type":"room_joined","room":"lounge"}), "as ever");
    bob.send(json!({"type":"join_room","room":"lounge"}));
    let joined = next(&mut bob);
    assert_eq!((&joined["type"], &joined["messageId"]), (&json!("room_joined"), &json!(0)));
    ann.send(json!({"type":"broadcast","room":"lounge","message":"first"}));
    assert!(next(&mut ann).get("messageId").is_none(), "who has not asked is not told");
    assert_eq!(next(&mut bob)["messageId"], 1);
    drop(bob);
    for message in ["second", "third"] {
        ann.send(json!({"type":"broadcast","room":"lounge","message":message}));
        assert_eq!(next(&mut ann)["message"], message);
    }
    let mut bob = numbered(&server, "bob");
    let since = json!({"epoch": joined["epoch"], "messageId": 1});
    bob.send(json!({"type":"join_room","room":"lounge","since":since}));
    let again = next(&mut bob);
    assert_eq!((&again["recovered"], &again["messageId"]), (&json!(true), &json!(3)));
    for (number, message) in [(2, "second"), (3, "third")] {
        let said = next(&mut bob);
        assert_eq!((&said["messageId"], &said["message"]), (&json!(number), &json!(message)));
    }
    bob.send(json!({"type":"join_room","room":"x","since":7}));
    assert_eq!(next(&mut bob)["message"], "Invalid since: epoch and messageId required");
}

#[test]
fn who_has_got_a_message_is_told_its_sender() {
    let server = start();
    let (mut ann, mut bob) = (server.user("ann"), server.user("bob"));
    let mut nobody = server.visitor();
    for client in [&mut ann, &mut bob, &mut nobody] {
        client.send(json!({"type":"join_room","room":"lounge"}));
        assert_eq!(next(client)["type"], "room_joined");
    }
    let broadcast = json!({"type":"broadcast","room":"lounge","message":"dinner","confirm_ms":500});
    ann.send(broadcast);
    for client in [&mut ann, &mut bob, &mut nobody] {
        let said = next(client);
        assert_eq!((&said["message"], &said["confirm"]), (&json!("dinner"), &json!(true)));
        assert_eq!(said["messageId"], 1);
    }
    bob.send(json!({"type":"confirm","room":"lounge","messageId":1}));
    let mut told = next(&mut ann);
    assert!(told["missing"][0]["connection"].is_string(), "{told}");
    told.as_object_mut().unwrap().remove("timestamp").unwrap();
    told["missing"][0].as_object_mut().unwrap().remove("connection");
    let expected = json!({
        "type":"message_confirmed","room":"lounge","messageId":1,
        "confirmed":[{"userId":"bob"}],"missing":[{"userId":null}],
    });
    assert_eq!(told, expected);
    for (wrong, why) in [
        (json!({"type":"confirm","room":"lounge"}), "Room and message ID required"),
        (
            json!({"type":"broadcast","room":"lounge","message":1,"confirm_ms":"x"}),
            "Invalid confirm_ms",
        ),
    ] {
        ann.send(wrong);
        assert_eq!(next(&mut ann), json!({"type":"error","message":why}));
    }
}
