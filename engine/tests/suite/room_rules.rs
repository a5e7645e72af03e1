//! Rooms: who may enter them and who may speak there, wherever whoever asks is connected.

use std::fmt::Write as _;
use std::sync::Barrier;
use std::thread;

use serde_json::{Value, json};

use super::common::tokens::{ISSUER, now, signed, token};
use super::common::{Client, TestServer};

const RULES: &str = r#"
[[channels]]
pattern = "locked.*"
publish = "anyone"
room = true
password = "open sesame"
members_max = 3
[[channels]]
pattern = "private.*"
publish = "anyone"
room = true
public = false
speak = "anyone"
[[channels]]
pattern = "hall.*"
publish = "anyone"
room = true
moderated = true
[[channels]]
pattern = "club.*"
publish = "anyone"
room = true
sender = true
[[channels]]
pattern = "secret.*"
publish = "anyone"
room = true
password = "hush"
presence = "full"
history_size = 10
[[channels]]
pattern = "token.*"
subscribe = "token"
publish = "anyone"
room = true
public = false
[[channels]]
pattern = "*"
publish = "anyone"
[[permissions]]
who = ["role:mod"]
channels = ["*"]
allow = ["moderate"]
[[permissions]]
who = ["user:friend"]
channels = ["private.*"]
allow = ["subscribe"]
[[permissions]]
who = ["user:fallen"]
channels = ["*"]
deny = ["moderate"]
"#;

fn start() -> TestServer {
    TestServer::start(&format!("{RULES}{ISSUER}"), &["auth.anonymous=true", "server.shards=2"])
}

fn come(server: &TestServer, user: &str, roles: &[&str]) -> Client {
    let token = token(user, 600, json!({ "roles": roles }));
    let mut client = Client::connect(server.public, &format!("/ws?token={token}"));
    assert_eq!(client.receive()["user"], user);
    client
}

fn enter(client: &mut Client, channel: &str, password: Option<&str>) -> Value {
    let mut command = json!({"type": "subscribe", "id": 1, "channel": channel});
    if let Some(password) = password {
        command["password"] = password.into();
    }
    client.ask(command)
}

fn speak(client: &mut Client, channel: &str) -> Value {
    client.ask(json!({"type": "publish", "id": 2, "channel": channel, "data": 1, "echo": false}))
}

fn assert_refused(reply: &Value, code: &str, message: &str) {
    assert_eq!((&reply["code"], &reply["message"]), (&json!(code), &json!(message)), "{reply}");
}

#[test]
fn who_does_not_know_the_password_stays_outside_and_moderators_need_none() {
    let server = start();
    // Over both shards, as connections are spread.
    for room in ["locked.a", "locked.b", "locked.c"] {
        let (mut ann, mut guest) = (come(&server, "ann", &[]), server.client());
        let told = format!("{room} has a password, and this is not it");
        assert_refused(&enter(&mut ann, room, None), "wrong_password", &told);
        for password in ["open", "", "open sesame "] {
            assert_refused(&enter(&mut guest, room, Some(password)), "wrong_password", &told);
        }
        assert_eq!(enter(&mut ann, room, Some("open sesame"))["type"], "subscribed");
        assert_eq!(enter(&mut guest, room, Some("open sesame"))["type"], "subscribed");
        let mut moderator = come(&server, "bob", &["mod"]);
        assert_eq!(enter(&mut moderator, room, None)["type"], "subscribed");
        let mut other = come(&server, "cleo", &["mod"]);
        let full = format!("{room} has as many members as it may have, 3");
        assert_refused(&enter(&mut other, room, None), "channel_full", &full);
        // Who goes makes room, for one who knows the word.
        drop(moderator);
        let mut fallen = come(&server, "fallen", &["mod"]);
        assert_eq!(enter(&mut fallen, room, None)["code"], "wrong_password", "{room}");
    }
    // Bad ones are told as such, and where there is no room the word means nothing.
    let mut client = server.client();
    let bad = json!({"type": "subscribe", "id": 1, "channel": "locked.d", "password": 7});
    assert_refused(&client.ask(bad), "bad_command", "'password' must be a string");
    assert_eq!(enter(&mut client, "open", Some("x"))["type"], "subscribed");
}

#[test]
fn a_private_room_is_for_those_who_are_invited() {
    let server = start();
    for room in ["private.a", "private.b", "private.c"] {
        let mut ann = come(&server, "ann", &[]);
        assert_refused(
            &enter(&mut ann, room, None),
            "members_only",
            &format!("{room} is for its members"),
        );
        assert_eq!(enter(&mut come(&server, "friend", &[]), room, None)["type"], "subscribed");
        assert_eq!(enter(&mut come(&server, "bob", &["mod"]), room, None)["type"], "subscribed");
        assert_eq!(speak(&mut ann, room)["type"], "published", "anyone speaks there");
    }
    // Who has shown a token for the channel was invited by whoever gave it.
    let mut guest = server.client();
    let claims = json!({"channel": "token.a", "exp": now() + 600});
    let command =
        json!({"type": "subscribe", "id": 1, "channel": "token.a", "token": signed(&claims)});
    assert_eq!(guest.ask(command)["type"], "subscribed");
}

#[test]
fn in_a_moderated_room_only_moderators_speak_and_in_others_its_members() {
    let server = start();
    for (hall, club) in [("hall.a", "club.a"), ("hall.b", "club.b"), ("hall.c", "club.c")] {
        let (mut ann, mut guest) = (come(&server, "ann", &[]), server.client());
        let mut moderator = come(&server, "bob", &["mod"]);
        ann.subscribe(hall);
        for client in [&mut ann, &mut guest] {
            let told = format!("in {hall} only moderators speak");
            assert_refused(&speak(client, hall), "moderated", &told);
        }
        assert_eq!(speak(&mut moderator, hall)["type"], "published");
        assert_eq!(ann.receive()["data"], 1);
        // Who asks for no answer hears of a refusal, and of nothing else.
        ann.send(json!({"type": "publish", "channel": hall, "data": 2}));
        assert_eq!(ann.receive()["code"], "moderated");
        moderator.send(json!({"type": "publish", "channel": hall, "data": 3}));
        assert_eq!(ann.receive()["data"], 3);
        assert_eq!(moderator.ask(json!({"type": "ping", "id": 3}))["type"], "pong");
        server.publish(hall, json!("from above"));
        assert_eq!(ann.receive()["data"], "from above");

        let told = format!("{club} is for its members");
        assert_refused(&speak(&mut guest, club), "members_only", &told);
        // Commands count in their order, though nobody waits for answers.
        for command in ["subscribe", "publish", "unsubscribe", "publish"] {
            guest.send(json!({"type": command, "id": command, "channel": club, "data": 4}));
        }
        // What it said may come back, or it may have gone by then.
        let mut said = Vec::new();
        while said.len() < 4 {
            let reply = guest.receive();
            let word = reply["code"].as_str().or(reply["type"].as_str()).unwrap();
            if word != "message" {
                said.push(word.to_owned());
            }
        }
        said.sort_unstable();
        assert_eq!(said, ["members_only", "published", "subscribed", "unsubscribed"]);
        assert_eq!(speak(&mut moderator, club)["type"], "published", "in it or not");
    }
}

#[test]
fn who_comes_at_once_from_all_shards_is_never_more_than_may_be() {
    let server = start();
    let mut clients: Vec<Client> = (0..24).map(|_| server.client()).collect();
    let start = Barrier::new(clients.len());
    let replies: Vec<Value> = thread::scope(|scope| {
        let all: Vec<_> = clients
            .iter_mut()
            .enumerate()
            .map(|(i, client)| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    let password = if i % 2 == 0 { "open sesame" } else { "open" };
                    (i, enter(client, "locked.rush", Some(password)))
                })
            })
            .collect();
        all.into_iter()
            .map(|one| {
                let (i, reply) = one.join().unwrap();
                let wrong = reply["code"] == "wrong_password";
                assert_eq!(wrong, i % 2 == 1, "{i}: {reply}");
                reply
            })
            .collect()
    });
    let of = |word: &str| {
        let is = |reply: &&Value| reply["type"] == word || reply["code"] == word;
        replies.iter().filter(is).count()
    };
    let mut told = String::new();
    replies.iter().for_each(|reply| _ = write!(told, "{reply} "));
    assert_eq!((of("subscribed"), of("channel_full"), of("wrong_password")), (3, 9, 12), "{told}");
}

#[test]
fn dialects_without_answers_are_closed_with_the_reason() {
    let server = start();
    let mut raw = server.client_of("raw.v1");
    raw.send(json!({"action": "subscribe", "channel": "locked.raw", "password": "open sesame"}));
    server.wait_total("subscriptions", |n| n == 1);
    let mut other = server.client_of("raw.v1");
    other.send(json!({"action": "subscribe", "channel": "locked.raw"}));
    let (code, reason) = other.closed();
    assert_eq!(code, 4500);
    assert!(reason.starts_with("wrong_password: "), "{reason}");
}

#[test]
fn who_asks_again_before_the_answer_is_not_told_of_having_subscribed() {
    let server = start();
    let mut client = server.client();
    let enter = |id: u32, password: &str| json!({"type":"subscribe","id":id,"channel":"locked.twice","password":password});
    // The second one is looked at while the first has no answer.
    client.send(json!([enter(1, "wrong"), enter(2, "wrong"), enter(3, "open sesame")]));
    for id in [1, 2] {
        let answer = client.receive();
        assert_eq!((&answer["id"], &answer["code"]), (&json!(id), &json!("wrong_password")));
    }
    assert_eq!(client.receive()["type"], "subscribed");
}

#[test]
fn what_was_said_in_a_room_and_who_is_there_is_shown_to_its_members_alone() {
    let server = start();
    let (mut ann, mut eve) = (come(&server, "ann", &[]), come(&server, "eve", &[]));
    let look = |client: &mut Client, kind: &str| {
        client.ask(json!({"type": kind, "id": 3, "channel": "secret.1"}))
    };
    assert_eq!(look(&mut eve, "history")["code"], "members_only", "also where nobody ever was");
    assert_eq!(enter(&mut ann, "secret.1", Some("hush"))["type"], "subscribed");
    server.publish("secret.1", json!("the key is under the mat"));
    assert_eq!(ann.receive()["data"], "the key is under the mat");
    for kind in ["history", "presence"] {
        let refused = look(&mut eve, kind);
        assert_eq!(refused["code"], "members_only", "{refused}");
        assert_eq!(refused["message"], "secret.1 is for its members");
        assert_eq!(look(&mut ann, kind)["type"], kind);
    }
    // A wrong password between makes nobody a member, and who leaves is none.
    let wrong = json!({"type": "subscribe", "id": 1, "channel": "secret.1", "password": "x"});
    let history = json!({"type": "history", "id": 2, "channel": "secret.1"});
    eve.send(json!([wrong, history]));
    assert_eq!(eve.receive()["code"], "wrong_password");
    assert_eq!(eve.receive()["code"], "members_only");
    ann.send(json!([{"type": "unsubscribe", "id": 4, "channel": "secret.1"}, history]));
    assert_eq!(ann.receive()["type"], "unsubscribed");
    assert_eq!(ann.receive()["code"], "members_only");
    let (status, body) = server.http("GET", "/api/history?channel=secret.1", "");
    assert!(status == 200 && body.contains("under the mat"), "the application sees all: {body}");
}
