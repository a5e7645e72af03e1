//! What the application does with users and connections.

use std::time::Instant;

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;

use super::common::hostile::{SMALL_SOCKETS, narrow_stream};
use super::common::tokens::{ISSUER, now, token};
use super::common::{CHANNELS, Client, PATIENCE, TestServer, wait_until};

fn start(flags: &[&str]) -> TestServer {
    let permissions =
        "[[permissions]]\nwho = [\"role:support\"]\nchannels = [\"*\"]\nallow = [\"send\"]\n";
    TestServer::start(&format!("{permissions}{CHANNELS}{ISSUER}"), flags)
}

/// A connection of a user, and its id.
fn come(server: &TestServer, user: &str, claims: Value) -> (Client, String) {
    let target = format!("/ws?token={}", token(user, 600, claims));
    let mut client = Client::connect(server.public, &target);
    let greeting = client.receive();
    assert_eq!(greeting["user"], user, "{greeting}");
    (client, greeting["connection"].as_str().unwrap().to_owned())
}

fn post(server: &TestServer, path: &str, body: Value) -> Value {
    let (status, answer) = server.http("POST", path, &body.to_string());
    assert_eq!(status, 200, "{path} {body}: {answer}");
    serde_json::from_str(&answer).unwrap()
}

/// How many connections a user has, once it is so many.
fn wait_connections(server: &TestServer, user: &str, count: usize) -> Vec<Value> {
    let look = || server.get(&format!("/api/connections?user={user}"))["connections"].clone();
    let listed = wait_until("connections", look, |list| list.as_array().unwrap().len() == count);
    listed.as_array().unwrap().clone()
}

#[test]
fn all_connections_of_a_user_are_sent_to_and_nobody_else() {
    let server = start(&[]);
    let mut anns: Vec<(Client, String)> = (0..8).map(|_| come(&server, "ann", json!({}))).collect();
    let (mut bob, _) = come(&server, "bob", json!({"roles": ["support"]}));
    let listed = wait_connections(&server, "ann", 8);
    let shards: Vec<u64> = listed.iter().map(|own| own["shard"].as_u64().unwrap()).collect();
    assert!(shards.iter().all(|&shard| shard < 2), "{shards:?}");
    let mut ids: Vec<&str> = listed.iter().map(|own| own["connection"].as_str().unwrap()).collect();
    let mut greeted: Vec<&str> = anns.iter().map(|(_, id)| id.as_str()).collect();
    ids.sort();
    greeted.sort();
    assert_eq!(ids, greeted);
    let sent = post(&server, "/api/send", json!({"user": "ann", "data": {"n": 1}}));
    assert_eq!(sent["connections"], 8);
    assert_eq!(post(&server, "/api/send", json!({"user": "eve", "text": "x"}))["connections"], 0);
    // And over a socket, by whom a permission lets.
    let reply = bob.ask(json!({"type": "send", "id": 1, "user": "ann", "text": "hi"}));
    assert_eq!(reply, json!({"type": "sent", "id": 1, "user": "ann", "connections": 8}));
    let only = anns[3].1.clone();
    let one = json!({"connection": only, "user": "ann", "base64": "AAE="});
    assert_eq!(post(&server, "/api/send", one)["connections"], 1);
    let not_his = json!({"connection": only, "user": "bob", "data": 1});
    assert_eq!(post(&server, "/api/send", not_his)["connections"], 0);
    for (at, (ann, _)) in anns.iter_mut().enumerate() {
        assert_eq!(ann.receive(), json!({"type": "direct", "data": {"n": 1}}));
        assert_eq!(ann.receive(), json!({"type": "direct", "from": "bob", "data": "hi"}));
        if at == 3 {
            let bytes = json!({"type": "direct", "data": "AAE=", "encoding": "base64"});
            assert_eq!(ann.receive(), bytes);
        }
        let refused = ann.ask(json!({"type": "send", "id": 9, "user": "bob", "data": 1}));
        assert_eq!((&refused["type"], &refused["code"]), (&json!("error"), &json!("forbidden")));
    }
    assert_eq!(bob.ask(json!({"type": "ping", "id": 2}))["id"], 2, "nothing else came to him");
}

#[test]
fn a_raw_connection_gets_what_is_sent_as_it_is() {
    let server = start(&[]);
    let target = format!("/ws?protocol=raw.v1&token={}", token("ann", 600, json!({})));
    let mut ann = Client::connect(server.public, &target);
    wait_connections(&server, "ann", 1);
    post(&server, "/api/send", json!({"user": "ann", "data": {"a": [1, 2]}}));
    assert_eq!(
        ann.message().into_text().unwrap(),
        r#"{"a": [1, 2]}"#.replace(": ", ":").replace(", ", ",")
    );
}

#[test]
fn a_user_is_disconnected_or_unsubscribed_and_others_are_not() {
    let server = start(&[]);
    let (mut first, first_id) = come(&server, "ann", json!({}));
    let (mut second, _) = come(&server, "ann", json!({}));
    let (mut bob, bob_id) = come(&server, "bob", json!({}));
    for client in [&mut first, &mut second, &mut bob] {
        client.subscribe("open.a");
        client.subscribe("open.b");
    }
    wait_connections(&server, "ann", 2);
    let ended = post(&server, "/api/unsubscribe", json!({"user": "ann", "channel": "open.a"}));
    assert_eq!(ended["connections"], 2);
    for client in [&mut first, &mut second] {
        let event = client.receive();
        assert_eq!((&event["type"], &event["channel"]), (&json!("unsubscribed"), &json!("open.a")));
    }
    server.publish("open.a", json!(1));
    server.publish("open.b", json!(2));
    assert_eq!(first.receive()["channel"], "open.b");
    assert_eq!(
        (bob.receive()["data"].clone(), bob.receive()["data"].clone()),
        (json!(1), json!(2))
    );
    let one = json!({"connection": first_id, "code": 4321, "reason": "off you go"});
    assert_eq!(post(&server, "/api/disconnect", one.clone())["connections"], 1);
    assert_eq!(first.closed(), (4321, "off you go".into()));
    wait_connections(&server, "ann", 1);
    assert_eq!(post(&server, "/api/disconnect", one)["connections"], 0);
    assert_eq!(post(&server, "/api/disconnect", json!({"user": "ann"}))["connections"], 1);
    assert_eq!(second.receive()["channel"], "open.b");
    assert_eq!(second.closed().0, 4502);
    wait_connections(&server, "ann", 0);
    assert_eq!(bob.ask(json!({"type": "auth"}))["connection"], bob_id.as_str());
}

#[test]
fn what_is_revoked_ends_and_is_not_believed_again() {
    let server = start(&[]);
    let stolen = token("ann", 600, json!({"jti": "t1"}));
    let target = format!("/ws?token={stolen}");
    let mut thief = Client::connect(server.public, &target);
    thief.receive();
    let (mut ann, _) = come(&server, "ann", json!({"jti": "t2"}));
    let (mut bob, _) = come(&server, "bob", json!({"jti": "t3"}));
    assert_eq!(post(&server, "/api/revoke", json!({"token": "t1"}))["revoked"], 1);
    assert_eq!(thief.closed().0, 4504);
    assert_eq!(Client::connect(server.public, &target).closed().0, 4504);
    assert_eq!(ann.ask(json!({"type": "ping", "id": 1}))["id"], 1);
    assert_eq!(post(&server, "/api/revoke", json!({"user": "ann"}))["revoked"], 2);
    assert_eq!(ann.closed().0, 4504);
    // Who shows it beside something better keeps that.
    let refused = bob.ask(json!({"type": "auth", "id": 1, "token": stolen}));
    assert_eq!((&refused["type"], &refused["code"]), (&json!("error"), &json!("unauthenticated")));
    // What she is vouched for afterwards counts again.
    let again = || {
        let target = format!("/ws?token={}", token("ann", 600, json!({"iat": now()})));
        let mut client = Client::connect(server.public, &target);
        client.message().is_text()
    };
    wait_until("a newer token", again, |&taken| taken);
}

#[test]
fn a_channels_token_is_revoked_like_any_other() {
    let rule = "[[channels]]\npattern = \"private.*\"\nsubscribe = \"token\"\n";
    // Whose clock is ahead is believed, and so newer than what is revoked.
    let issuer = ISSUER.replace("leeway_s = 0", "leeway_s = 30");
    let server = TestServer::start(&format!("{rule}{CHANNELS}{issuer}"), &["server.shards=2"]);
    let subscribe = |client: &mut Client, channel: &str, shown: &str| {
        client.ask(json!({"type": "subscribe", "id": 1, "channel": channel, "token": shown}))
    };
    let of = |channel: &str, id: &str, issued_at: u64| {
        let claims = json!({"channel": channel, "jti": id, "iat": issued_at});
        token("ann", 600, claims)
    };
    let ended = |client: &mut Client, channel: &str| {
        let ended = client.receive();
        assert_eq!((&ended["type"], &ended["channel"]), (&json!("unsubscribed"), &json!(channel)));
    };
    let refused = |client: &mut Client, channel: &str, shown: &str| {
        let refused = subscribe(client, channel, shown);
        assert_eq!(refused["code"], "unauthenticated", "{refused}");
        assert!(refused["message"].as_str().unwrap().contains("revoked"), "{refused}");
    };
    // She comes with something newer than what is revoked, and has channels by what is older.
    let (older, newer) = (now() - 10, now() + 20);
    let (mut ann, _) = come(&server, "ann", json!({"iat": newer, "jti": "own"}));
    let (mut twin, _) = come(&server, "ann", json!({"iat": newer}));
    let (a, b) = (of("private.a", "ta", older), of("private.b", "tb", older));
    let c = of("private.c", "tc", newer);
    for (channel, shown) in [("private.a", &a), ("private.b", &b), ("private.c", &c)] {
        assert_eq!(subscribe(&mut ann, channel, shown)["type"], "subscribed");
    }
    assert_eq!(post(&server, "/api/revoke", json!({"token": "ta"}))["revoked"], 1);
    ended(&mut ann, "private.a");
    refused(&mut ann, "private.a", &a);
    refused(&mut twin, "private.a", &a);
    assert_eq!(post(&server, "/api/revoke", json!({"user": "ann"}))["revoked"], 2);
    ended(&mut ann, "private.b");
    refused(&mut ann, "private.b", &b);
    server.publish("private.c", json!("hers"));
    assert_eq!(ann.receive()["data"], "hers");
}

#[test]
fn a_token_that_does_not_say_how_old_it_is_stays_revoked() {
    let server = start(&[]);
    let timeless = token("ann", 600, json!({}));
    let target = format!("/ws?token={timeless}");
    let mut ann = Client::connect(server.public, &target);
    ann.receive();
    post(&server, "/api/revoke", json!({"user": "ann"}));
    assert_eq!(ann.closed().0, 4504);
    // Time goes on, and what is newer counts; it does not.
    let newer = || {
        let target = format!("/ws?token={}", token("ann", 600, json!({"iat": now()})));
        Client::connect(server.public, &target).message().is_text()
    };
    wait_until("a newer token", newer, |&taken| taken);
    assert_eq!(Client::connect(server.public, &target).closed().0, 4504);
}

#[test]
fn a_user_has_so_many_connections_and_no_more() {
    let server = start(&["limits.connections_per_user_max=2"]);
    let (first, _) = come(&server, "ann", json!({}));
    let (mut second, _) = come(&server, "ann", json!({}));
    wait_connections(&server, "ann", 2);
    let (mut third, _) = come(&server, "ann", json!({}));
    assert_eq!(third.closed().0, 4505);
    let (_bob, _) = come(&server, "bob", json!({}));
    drop(first);
    wait_connections(&server, "ann", 1);
    let (mut fourth, _) = come(&server, "ann", json!({}));
    wait_connections(&server, "ann", 2);
    for client in [&mut second, &mut fourth] {
        assert_eq!(client.ask(json!({"type": "ping", "id": 1}))["id"], 1);
    }
}

#[test]
fn what_the_application_asks_wrongly_is_named() {
    let server = start(&[]);
    for (path, body, part) in [
        ("/api/send", json!({"data": 1}), "'user' or 'connection' is needed"),
        ("/api/send", json!({"user": "", "data": 1}), "user id is empty"),
        ("/api/send", json!({"user": "ann"}), "exactly one of 'data', 'text' and 'base64'"),
        ("/api/send", json!({"connection": "x", "data": 1}), "20 hexadecimal digits"),
        ("/api/disconnect", json!({"user": "ann", "code": 1000}), "allowed are 4000 to 4999"),
        ("/api/disconnect", json!({"user": "ann", "reason": "x".repeat(124)}), "at most 123"),
        ("/api/unsubscribe", json!({"user": "ann", "channel": "a b"}), "white space"),
        ("/api/revoke", json!({"user": "ann", "token": "t"}), "exactly one of 'user' and 'token'"),
        ("/api/revoke", json!({"token": ""}), "1 to 255 bytes"),
        ("/api/revoke", json!({"user": "a", "users": 1}), "unknown field"),
    ] {
        let (status, answer) = server.http("POST", path, &body.to_string());
        assert!(status == 400 && answer.contains(part), "{path} {body}: {status} {answer}");
    }
    let gone = json!({"connection": "ffff0000000000000001", "data": 1});
    assert_eq!(post(&server, "/api/send", gone)["connections"], 0);
}

/// What may wait for all connections of a shard in these tests, at half of which no more is sent.
const ROOM: u64 = 131_072;

/// A server with little room for what is sent, on so many shards.
fn start_small(shards: u64) -> TestServer {
    start(&[
        &format!("server.shards={shards}"),
        &format!("limits.outboxes_bytes_max={}", shards * ROOM),
        "limits.outbox_bytes_max=131072",
        "limits.message_bytes_max=32768",
        "limits.outbox_timeout_ms=600000",
        "heartbeat.interval_ms=0",
        SMALL_SOCKETS,
    ])
}

/// A connection of a user whose socket holds little.
fn come_narrow(server: &TestServer, user: &str) -> Client {
    let to = server.public;
    let request = format!("ws://{to}/ws?token={}", token(user, 600, json!({})));
    let request = request.into_client_request().unwrap();
    let (socket, _) = tungstenite::client(request, narrow_stream(to)).unwrap();
    let mut client = Client { socket };
    assert_eq!(client.receive()["user"], user);
    client
}

fn numbered(user: &str, number: u64) -> Value {
    json!({"user": user, "data": {"n": number, "pad": "x".repeat(500)}})
}

/// Sends by number until something is refused; which one it is.
fn send_until_refused(server: &TestServer, user: &str, from: u64) -> u64 {
    for number in from..from + 10_000 {
        let body = numbered(user, number).to_string();
        let (status, answer) = server.http("POST", "/api/send", &body);
        if status != 200 {
            assert!(status == 503 && answer.contains("\"busy\""), "{status} {answer}");
            return number;
        }
    }
    panic!("whoever sends to {user} is never told to wait");
}

/// Sends it until it is taken, and says so.
fn send_until_taken(server: &TestServer, body: &Value) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, answer) = server.http("POST", "/api/send", &body.to_string());
        if status == 200 {
            return serde_json::from_str(&answer).unwrap();
        }
        assert_eq!(status, 503, "{answer}");
        assert!(Instant::now() < deadline, "it is never taken: {answer}");
    }
}

#[test]
fn who_sends_more_than_is_read_waits_and_all_get_what_was_taken() {
    let server = start_small(2);
    let mut anns: Vec<Client> = (0..24).map(|_| come_narrow(&server, "ann")).collect();
    let (mut bob, _) = come(&server, "bob", json!({"roles": ["support"]}));
    wait_connections(&server, "ann", 24);
    // Sockets take a little more now and then, even while nobody reads.
    let mut refused = 0;
    let asked = loop {
        refused = send_until_refused(&server, "ann", refused);
        assert!(server.total("outbox_bytes") < 2 * ROOM);
        server.wait_seen_to();
        let mut send = numbered("ann", refused);
        (send["type"], send["id"]) = (json!("send"), json!(1));
        let asked = bob.ask(send);
        if asked["type"] == "error" {
            break asked;
        }
        assert_eq!(asked["connections"], 24, "all of them or none");
        refused += 1;
    };
    assert_eq!((&asked["id"], &asked["code"]), (&json!(1), &json!("busy")), "{asked}");
    // What takes no memory is not refused.
    let ended = json!({"user": "ann", "channel": "open.a"});
    assert_eq!(post(&server, "/api/unsubscribe", ended)["connections"], 24);
    // They read; who sends goes on as fast as they do.
    let count = refused + 500;
    std::thread::scope(|scope| {
        for ann in &mut anns {
            scope.spawn(|| {
                for number in 0..count {
                    assert_eq!(ann.receive()["data"]["n"], number);
                }
            });
        }
        for number in refused..count {
            let sent = send_until_taken(&server, &numbered("ann", number));
            assert_eq!(sent["connections"], 24, "all of them or none");
            assert!(server.total("outbox_bytes") < 2 * ROOM);
        }
    });
    for ann in &mut anns {
        assert_eq!(ann.ask(json!({"type": "ping", "id": 1}))["id"], 1, "and nothing else");
    }
    assert_eq!(server.total("closes"), 0);
}

#[test]
fn who_does_not_read_does_not_keep_others_from_being_sent_to() {
    let server = start_small(1);
    let (mut bob, _) = come(&server, "bob", json!({}));
    let mut eve = come_narrow(&server, "eve");
    wait_connections(&server, "eve", 1);
    // Her socket takes nothing, and what waits for her is what there is room for.
    let closed = || {
        let body = numbered("eve", 0).to_string();
        let sent = || server.http("POST", "/api/send", &body).0;
        let _ = (0..100).take_while(|_| sent() == 200).count();
        server.total("closes")
    };
    wait_until("closes", closed, |&closes| closes == 1);
    assert_eq!(send_until_taken(&server, &numbered("bob", 7))["connections"], 1);
    assert_eq!(bob.receive()["data"]["n"], 7);
    assert_eq!(eve.closed().0, 4002);
}

#[test]
fn what_is_larger_than_all_the_room_there_is_is_sent_all_the_same() {
    let server = start_small(1);
    let mut anns: Vec<Client> = (0..20).map(|_| come_narrow(&server, "ann")).collect();
    wait_connections(&server, "ann", 20);
    let large = json!({"user": "ann", "text": "x".repeat(30_000)});
    for _ in 0..3 {
        let taken = std::thread::scope(|scope| {
            let taken = scope.spawn(|| send_until_taken(&server, &large));
            for ann in &mut anns {
                assert_eq!(ann.receive()["data"].as_str().map(str::len), Some(30_000));
            }
            taken.join().unwrap()
        });
        assert_eq!(taken["connections"], 20);
    }
    assert_eq!(server.total("closes"), 0);
}
