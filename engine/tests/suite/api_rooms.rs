//! Rooms that are made, changed and ended over the HTTP API, wherever their members are connected.

use serde_json::{Value, json};

use super::common::rooms::enter;
use super::common::tokens::{ISSUER, token};
use super::common::{Client, TestServer, http};

const RULES: &str = r#"
[[channels]]
pattern = "room.*"
publish = "anyone"
room = true
[[channels]]
pattern = "made.*"
publish = "anyone"
room = true
members_max = 9
only_made = true
[[channels]]
pattern = "*"
publish = "anyone"
"#;

/// So that some are homed where their members are, and others are not.
const SUFFIXES: [&str; 4] = ["a", "b", "c", "d"];

fn start(flags: &[&str]) -> TestServer {
    let flags = [flags, &["auth.anonymous=true", "server.shards=2"]].concat();
    TestServer::start(&format!("{RULES}{ISSUER}"), &flags)
}

impl TestServer {
    fn room(&self, method: &str, body: &Value) -> (u16, Value) {
        let (status, answer) = self.http(method, "/api/rooms", &body.to_string());
        (status, serde_json::from_str(&answer).unwrap())
    }

    fn make(&self, body: Value) -> Value {
        let (status, answer) = self.room("POST", &body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    fn change(&self, body: Value) -> Value {
        let (status, answer) = self.room("PATCH", &body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    fn ends(&self, room: &str) -> (u16, Value) {
        let (status, answer) = self.http("DELETE", &format!("/api/rooms?channel={room}"), "");
        (status, serde_json::from_str(&answer).unwrap())
    }

    fn about(&self, room: &str) -> (u16, Value) {
        let (status, answer) = self.http("GET", &format!("/api/rooms?channel={room}"), "");
        (status, serde_json::from_str(&answer).unwrap())
    }
}

fn come(server: &TestServer, user: &str) -> Client {
    let token = token(user, 600, json!({}));
    let mut client = Client::connect(server.public, &format!("/ws?token={token}"));
    assert_eq!(client.receive()["user"], user);
    client
}

fn speak(client: &mut Client, room: &str) -> String {
    let command = json!({"type": "publish", "id": 2, "channel": room, "data": 1, "echo": false});
    outcome(&client.ask(command))
}

fn outcome(reply: &Value) -> String {
    reply["code"].as_str().or(reply["type"].as_str()).unwrap().to_owned()
}

#[test]
fn a_room_is_made_changed_shown_and_ended() {
    let server = start(&[]);
    for suffix in SUFFIXES {
        let room = format!("made.{suffix}");
        let (mut ann, mut bob) = (come(&server, "ann"), come(&server, "bob"));
        let mut chair = come(&server, "chair");
        assert_eq!(enter(&mut ann, &room, None), "no_such_room");
        assert_eq!(speak(&mut ann, &room), "no_such_room");
        assert_eq!(server.about(&room).0, 404);
        let body = json!({"channel": room, "password": "open sesame", "members_max": 2,
            "public": false, "invited": ["bob", "ann", "bob"], "moderators": ["chair"]});
        let made = server.make(body.clone());
        let shown = json!({"channel": room, "made": true, "members": 0, "members_max": 2,
            "public": false, "moderated": false, "speak": "members", "password": true,
            "moderators": ["chair"], "invited": ["ann", "bob"], "ends_when_empty": false});
        assert_eq!(made, shown);
        assert_eq!(server.make(body), shown, "again does no harm");
        assert_eq!(server.about(&room), (200, shown));
        assert_eq!(enter(&mut come(&server, "eve"), &room, Some("open sesame")), "members_only");
        assert_eq!(enter(&mut server.client(), &room, Some("open sesame")), "members_only");
        assert_eq!(enter(&mut ann, &room, Some("sesame")), "wrong_password");
        assert_eq!(enter(&mut ann, &room, Some("open sesame")), "subscribed");
        assert_eq!(enter(&mut chair, &room, None), "subscribed");
        assert_eq!(enter(&mut bob, &room, Some("open sesame")), "channel_full");
        assert_eq!(speak(&mut ann, &room), "published");
        // What is changed holds at once, and throws nobody out.
        let changed = server.change(json!({"channel": room, "moderated": true, "members_max": 1,
            "invited": []}));
        assert_eq!((&changed["members"], &changed["members_max"]), (&json!(2), &json!(1)));
        assert_eq!((&changed["password"], &changed["public"]), (&json!(true), &json!(false)));
        assert_eq!(chair.receive()["data"], 1);
        assert_eq!(speak(&mut ann, &room), "moderated");
        assert_eq!(speak(&mut chair, &room), "published");
        assert_eq!(ann.receive()["data"], 1);
        assert_eq!(enter(&mut bob, &room, Some("open sesame")), "members_only");
        // Made anew it is what its rule says but for what is said now.
        let anew = server.make(json!({"channel": room, "password": ""}));
        assert_eq!((&anew["members_max"], &anew["public"]), (&json!(9), &json!(true)));
        assert_eq!((&anew["password"], &anew["moderators"]), (&json!(false), &json!([])));
        assert_eq!(enter(&mut bob, &room, None), "subscribed");
        // Its members are told when it ends.
        let (status, ended) = server.ends(&room);
        assert_eq!((status, &ended["members"]), (200, &json!(3)));
        for client in [&mut ann, &mut chair, &mut bob] {
            let told = client.receive();
            assert_eq!((&told["type"], &told["channel"]), (&json!("unsubscribed"), &json!(room)));
            assert_eq!(told["reason"], "the room has ended");
            assert_eq!(enter(client, &room, None), "no_such_room");
        }
        assert_eq!(server.ends(&room).0, 404);
        let (status, none) = server.room("PATCH", &json!({"channel": room}));
        assert_eq!((status, &none["error"]), (404, &json!("not_found")), "{none}");
    }
    server.wait_total("subscriptions", |count| count == 0);
}

#[test]
fn a_room_by_its_rule_is_one_before_and_after() {
    let server = start(&[]);
    for suffix in SUFFIXES {
        let room = format!("room.{suffix}");
        let (mut ann, mut bob) = (come(&server, "ann"), come(&server, "bob"));
        let (status, shown) = server.about(&room);
        assert_eq!((status, &shown["made"], &shown["members"]), (200, &json!(false), &json!(0)));
        assert_eq!(enter(&mut ann, &room, None), "subscribed");
        assert_eq!(server.about(&room).1["members"], 1);
        assert_eq!(server.ends(&room).0, 404, "nobody has made it");
        server.make(json!({"channel": room, "password": "hush", "speak": "anyone"}));
        assert_eq!(enter(&mut bob, &room, None), "wrong_password");
        assert_eq!(speak(&mut bob, &room), "published", "anyone speaks there");
        assert_eq!(ann.receive()["data"], 1, "who is in stays in");
        assert_eq!(server.ends(&room).0, 200);
        assert_eq!(ann.receive()["reason"], "the room has ended");
        for client in [&mut ann, &mut bob] {
            assert_eq!(enter(client, &room, None), "subscribed", "its rule lets them in");
        }
    }
}

#[test]
fn a_room_ends_with_its_last_member_where_that_was_asked_for() {
    let server = start(&["limits.rooms_max=2"]);
    for suffix in SUFFIXES {
        let room = format!("made.{suffix}");
        let mut ann = come(&server, "ann");
        let made = server.make(json!({"channel": room, "ends_when_empty": true}));
        assert_eq!(made["ends_when_empty"], true);
        assert_eq!(enter(&mut ann, &room, None), "subscribed");
        let mut bob = come(&server, "bob");
        assert_eq!(enter(&mut bob, &room, None), "subscribed");
        drop(bob);
        server.wait_total("subscriptions", |count| count == 1);
        assert_eq!(server.about(&room).1["made"], true);
        ann.ask(json!({"type": "unsubscribe", "id": 3, "channel": room}));
        // It is decided in the order of her commands.
        assert_eq!(enter(&mut ann, &room, None), "no_such_room");
        assert_eq!(server.about(&room).0, 404);
        // One that is to stay does; a room before its first member has no last one.
        server.make(json!({"channel": room, "ends_when_empty": true}));
        server.change(json!({"channel": room, "ends_when_empty": false}));
        assert_eq!(enter(&mut ann, &room, None), "subscribed");
        ann.ask(json!({"type": "unsubscribe", "id": 3, "channel": room}));
        assert_eq!(enter(&mut ann, &room, None), "subscribed");
        assert_eq!(server.ends(&room).0, 200);
    }
}

#[test]
fn there_are_only_so_many_rooms() {
    let server = start(&["limits.rooms_max=3"]);
    let mut made = Vec::new();
    let full = loop {
        let room = format!("room.{}", made.len());
        let (status, answer) = server.room("POST", &json!({"channel": room}));
        if status != 200 {
            break (status, answer);
        }
        made.push(room);
        assert!(made.len() < 10, "no end");
    };
    assert_eq!((full.0, &full.1["error"]), (503, &json!("limit_reached")));
    assert_eq!(full.1["message"], "at most 3 rooms made over the HTTP API are allowed");
    for room in &made {
        // Making one again takes no place of another.
        server.make(json!({"channel": room, "moderated": true}));
        assert_eq!(server.ends(room).0, 200);
        assert_eq!(server.about(room).1["made"], false);
    }
    server.make(json!({"channel": format!("room.{}", made.len())}));
}

#[test]
fn what_is_wrong_with_a_room_is_said() {
    let server = start(&[]);
    let long = "p".repeat(257);
    let many: Vec<String> = (0..1001).map(|n| format!("u{n}")).collect();
    let blank = json!({"channel": "room.x", "moderators": ["ann", ""]});
    for (body, error, says) in [
        (json!({"channel": "open"}), "bad_request", "the rule of channel open has room = false"),
        (json!({"channel": "a b"}), "bad_channel", "channel name holds ' '"),
        (json!({"members_max": 1}), "bad_command", "missing field `channel`"),
        (json!({"channel": "room.x", "member_max": 1}), "bad_command", "unknown field"),
        (json!({"channel": "room.x", "speak": "hush"}), "bad_command", "unknown variant"),
        (
            json!({"channel": "room.x", "members_max": 2_147_483_648_u32}),
            "bad_request",
            "allowed are 0 to",
        ),
        (json!({"channel": "room.x", "password": long}), "bad_request", "has 257 bytes"),
        (json!({"channel": "room.x", "invited": many}), "bad_request", "at most 1000"),
        (blank, "bad_request", "moderators: user id is empty"),
    ] {
        let (status, answer) = server.room("POST", &body);
        assert_eq!((status, &answer["error"]), (400, &json!(error)), "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(says), "{answer}");
    }
    assert_eq!(server.about("open").0, 400);
    assert_eq!(server.http("DELETE", "/api/rooms", "").0, 400);
    assert_eq!(server.http("PUT", "/api/rooms", "{}").0, 405);
}

#[test]
fn a_key_makes_rooms_only_in_its_channels() {
    let keys = "[[api_keys]]\nname = \"a\"\nkey = \"KEY\"\nscopes = [\"rooms\"]\nchannels = [\"room.*\"]\n[[api_keys]]\nname = \"b\"\nkey = \"OTHER\"\nscopes = [\"publish\"]\n";
    let server = TestServer::start(&format!("{RULES}{keys}"), &["server.shards=1"]);
    let ask = |key: &str, room: &str| {
        let header = format!("Authorization: Bearer {key}\r\n");
        let body = json!({"channel": room}).to_string();
        http(server.internal, "POST", "/api/rooms", &header, &body).0
    };
    assert_eq!((ask("KEY", "room.x"), ask("KEY", "made.x")), (200, 403));
    assert_eq!((ask("OTHER", "room.x"), ask("NONE", "room.x")), (403, 401));
}

#[test]
fn the_application_is_told_who_is_in_a_room_whatever_clients_are_shown() {
    let server = start(&[]);
    let mut ann = come(&server, "ann");
    assert_eq!(enter(&mut ann, "room.x", None), "subscribed");
    let (status, answer) = server.http("GET", "/api/presence?channel=room.x", "");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["count"]), (200, &json!(1)));
    assert_eq!(answer["users"], json!([{"user": "ann"}]));
    let asked = ann.ask(json!({"type": "presence", "id": 4, "channel": "room.x"}));
    assert_eq!(outcome(&asked), "forbidden");
}

#[test]
fn dialects_without_such_events_are_closed_when_a_room_ends() {
    let server = start(&[]);
    server.make(json!({"channel": "made.x"}));
    let mut raw = server.client_of("raw.v1");
    raw.send(json!({"action": "subscribe", "channel": "made.x"}));
    server.wait_total("subscriptions", |count| count == 1);
    server.ends("made.x");
    let (code, reason) = raw.closed();
    assert_eq!((code, reason.as_str()), (4500, "made.x: the room has ended"));
}

#[test]
fn a_user_is_in_only_so_many_rooms_over_all_connections() {
    let server = start(&["limits.rooms_per_user_max=2"]);
    let (mut one, mut two) = (come(&server, "ann"), come(&server, "ann"));
    let mut other = come(&server, "bob");
    assert_eq!(enter(&mut one, "room.a", None), "subscribed");
    assert_eq!(enter(&mut two, "room.b", None), "subscribed");
    assert_eq!(enter(&mut two, "room.a", None), "subscribed", "she is there already");
    for client in [&mut one, &mut two] {
        let refused = client.ask(json!({"type": "subscribe", "id": 1, "channel": "room.c"}));
        assert_eq!(refused["code"], "limit_reached");
        assert_eq!(refused["message"], "at most 2 rooms for each user are allowed");
        assert_eq!(enter(client, "open", None), "subscribed", "that is no room");
    }
    assert_eq!(enter(&mut other, "room.c", None), "subscribed");
    // What is refused takes no place, and commands keep their order.
    server.make(json!({"channel": "room.locked", "password": "hush"}));
    one.ask(json!({"type": "unsubscribe", "id": 3, "channel": "room.a"}));
    two.ask(json!({"type": "unsubscribe", "id": 3, "channel": "room.a"}));
    assert_eq!(enter(&mut one, "room.locked", None), "wrong_password");
    for (id, kind) in [(7, "subscribe"), (8, "publish")] {
        one.send(json!({"type": kind, "id": id, "channel": "room.d", "data": 1, "echo": false}));
    }
    assert_eq!(outcome(&one.receive()), "subscribed");
    assert_eq!(outcome(&one.receive()), "published", "it is a member by then");
    assert_eq!(enter(&mut two, "room.c", None), "limit_reached");
    // Who goes leaves the rooms that it was in.
    drop(one);
    server.wait_total("subscriptions", |count| count == 3);
    server.wait_seen_to();
    assert_eq!(enter(&mut two, "room.c", None), "subscribed");
    // Who is nobody's is not counted.
    let mut guest = server.client();
    for room in ["room.a", "room.b", "room.c"] {
        assert_eq!(enter(&mut guest, room, None), "subscribed");
    }
}
