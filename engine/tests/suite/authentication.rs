//! Who is let in, and for how long.

use std::net::TcpStream;

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::http::Response;

use super::common::tokens::{ISSUER, now, signed, token};
use super::common::{CHANNELS, Client, PATIENCE, TestServer};

fn start(more: &str, flags: &[&str]) -> TestServer {
    TestServer::start(&format!("{more}{CHANNELS}{ISSUER}"), flags)
}

/// Opens a WebSocket with further headers; or the refusal.
pub(super) fn open(
    server: &TestServer,
    target: &str,
    headers: &[(&'static str, String)],
) -> Result<Client, Box<Response<Option<Vec<u8>>>>> {
    let stream = TcpStream::connect(server.public).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!("ws://{}{target}", server.public).into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match tungstenite::client(request, stream) {
        Ok((socket, _)) => Ok(Client { socket }),
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(refusal))) => {
            Err(refusal)
        }
        Err(e) => panic!("{e}"),
    }
}

/// With a token in the query.
fn come(server: &TestServer, token: &str) -> Client {
    open(server, &format!("/ws?token={token}"), &[]).unwrap()
}

#[test]
fn a_token_is_taken_wherever_the_configuration_looks_for_it_and_nowhere_else() {
    let places = ["header", "query", "cookie", "subprotocol", "message"];
    let ann = token("ann", 60, json!({}));
    let come = |server: &TestServer, place: &str| match place {
        "header" => open(server, "/ws", &[("Authorization", format!("bearer {ann}"))]),
        "query" => open(server, &format!("/ws?x=1&token={ann}"), &[]),
        "cookie" => open(server, "/ws", &[("Cookie", format!("a=b; token={ann}; token=x"))]),
        "subprotocol" => {
            let offered = format!("bearer.{ann}, ringfeed.v1");
            open(server, "/ws", &[("Sec-WebSocket-Protocol", offered)])
        }
        "message" => open(server, "/ws", &[]).map(|mut client| {
            client.send(json!({"type": "auth", "token": ann}));
            client
        }),
        other => panic!("{other}"),
    };
    for looked_at in places {
        let server = start("", &[&format!("auth.token_from={looked_at}")]);
        for place in places {
            match come(&server, place) {
                Ok(mut client) if place == looked_at => {
                    let greeting = client.receive();
                    assert_eq!(
                        (&greeting["type"], &greeting["user"]),
                        (&json!("connected"), &json!("ann"))
                    );
                    let left = greeting["expires_in_ms"].as_u64().unwrap();
                    assert!((1..=60_000).contains(&left), "{greeting}");
                    client.subscribe("open.a");
                }
                // It has shown nothing, and is let say who it is.
                Ok(mut client) => {
                    assert_eq!(looked_at, "message", "{place}");
                    let reply =
                        client.ask(json!({"type": "subscribe", "id": 1, "channel": "open.a"}));
                    assert_eq!(
                        (&reply["code"], &reply["id"]),
                        (&json!("unauthenticated"), &json!(1))
                    );
                }
                Err(refusal) => {
                    assert_ne!(place, looked_at);
                    // A subprotocol that is no token there is one that nobody speaks.
                    let expected = if place == "subprotocol" { [401, 400] } else { [401, 401] };
                    assert!(expected.contains(&refusal.status().as_u16()), "{place}: {refusal:?}");
                }
            }
        }
    }
}

#[test]
fn who_is_not_believed_is_told_why_before_or_behind_the_upgrade() {
    let server = start("", &[]);
    let forged = format!("{}x", token("ann", 60, json!({})));
    let old = token("ann", 0, json!({}));
    for (token, why) in [(&forged, "token"), (&old, "expired")] {
        let refusal = open(&server, &format!("/ws?token={token}"), &[]).map(|_| ()).unwrap_err();
        assert_eq!(refusal.status(), 401);
        assert_eq!(refusal.headers()["WWW-Authenticate"], "Bearer");
        let text = String::from_utf8(refusal.into_body().unwrap()).unwrap();
        assert!(text.contains(why) && !text.contains(token.as_str()), "{text}");
        // The first thing it says is wrong: it is closed.
        let mut client = open(&server, "/ws", &[]).unwrap();
        client.send(json!({"type": "auth", "token": token}));
        let (code, reason) = client.closed();
        assert_eq!(code, 4503);
        assert!(reason.contains(why), "{reason}");
    }
    let server = start("", &["auth.refuse_after_upgrade=true"]);
    let (code, reason) = open(&server, &format!("/ws?token={old}"), &[]).unwrap().closed();
    assert_eq!((code, reason.contains("expired")), (4503, true), "{reason}");
    assert_eq!(server.total("tokens_refused"), 1);
}

#[test]
fn who_says_nothing_in_time_is_closed_and_strangers_are_let_in_where_it_says_so() {
    let server = start("", &["auth.timeout_ms=100"]);
    let (code, reason) = server.client().closed();
    assert_eq!((code, reason.as_str()), (4503, "no token was shown in time"));
    let server = start("", &["auth.anonymous=true"]);
    let mut client = server.client();
    client.subscribe("open.a");
    let who = client.ask(json!({"type": "auth", "id": 2}));
    assert_eq!((&who["type"], &who["user"]), (&json!("connected"), &Value::Null));
    assert_eq!(who["connection"].as_str().unwrap().len(), 20, "strangers have an id, too");
    // Later it says who it is, and stays that.
    let ann = token("ann", 60, json!({}));
    assert_eq!(client.ask(json!({"type": "auth", "token": ann}))["user"], "ann");
    let bob = token("bob", 60, json!({}));
    let refused = client.ask(json!({"type": "auth", "id": 3, "token": bob}));
    assert_eq!((&refused["code"], &refused["id"]), (&json!("unauthenticated"), &json!(3)));
    assert_eq!(client.ask(json!({"type": "auth"}))["user"], "ann");
}

#[test]
fn no_token_is_taken_in_a_message_where_messages_are_not_named() {
    let server = start("", &["auth.token_from=query", "auth.anonymous=true"]);
    let show = json!({"type": "auth", "id": 1, "token": token("ann", 60, json!({}))});
    let mut ann = come(&server, &token("ann", 60, json!({})));
    ann.receive();
    let mut stranger = server.client();
    for client in [&mut ann, &mut stranger] {
        let refused = client.ask(show.clone());
        assert_eq!(refused["code"], "unauthenticated", "{refused}");
        assert!(refused["message"].as_str().unwrap().contains("auth.token_from"), "{refused}");
    }
    let who = ann.ask(json!({"type": "auth", "id": 2}));
    assert_eq!(who["user"], "ann", "who she is she is told: {who}");
}

#[test]
fn what_expires_ends_and_who_has_shown_something_newer_stays() {
    let server = start("", &[]);
    let short = || token("ann", 2, json!({}));
    let (mut renews, mut does_not) = (come(&server, &short()), come(&server, &short()));
    let mut raw = open(&server, &format!("/ws?protocol=raw.v1&token={}", short()), &[]).unwrap();
    raw.send(json!({"action": "auth", "token": token("ann", 600, json!({}))}));
    raw.send(json!({"action": "subscribe", "channel": "open.a"}));
    for client in [&mut renews, &mut does_not] {
        client.receive();
        client.subscribe("open.a");
    }
    let newer = renews.ask(json!({"type": "auth", "token": token("ann", 600, json!({}))}));
    assert!(newer["expires_in_ms"].as_u64().unwrap() > 100_000, "{newer}");
    assert_eq!(does_not.closed().0, 4005);
    server.publish("open.a", json!("still here"));
    assert_eq!(renews.receive()["data"], "still here");
    assert_eq!(raw.message().into_text().unwrap(), "\"still here\"");
}

#[test]
fn a_token_names_channels_and_permissions() {
    let permissions = "[[permissions]]\nwho = [\"role:editor\", \"claim:plan=pro\"]\nchannels = [\"news.{user}.*\"]\n\
                       allow = [\"publish\"]\n[[permissions]]\nwho = [\"anyone\"]\nchannels = [\"secret.*\"]\n\
                       deny = [\"subscribe\"]\n";
    let server = start(permissions, &[]);
    let claims = json!({
        "channels": ["closed.a", "secret.a"],
        "roles": ["editor"],
        "permissions": {"allow": {"publish": ["own.*"]}},
    });
    let mut ann = come(&server, &token("ann", 60, claims));
    assert_eq!(ann.receive()["type"], "connected");
    let first = ann.receive();
    assert_eq!((&first["type"], &first["channel"]), (&json!("subscribed"), &json!("closed.a")));
    let second = ann.receive();
    assert_eq!(second["code"], "forbidden", "a denial beats what is allowed: {second}");
    let publish = |client: &mut Client, channel: &str| {
        let reply = client.ask(json!({"type": "publish", "id": 1, "channel": channel, "data": 1}));
        reply["type"].as_str().unwrap().to_owned()
    };
    assert_eq!(publish(&mut ann, "own.a"), "published");
    assert_eq!(publish(&mut ann, "news.ann.a"), "published");
    assert_eq!(publish(&mut ann, "news.bob.a"), "error");
    let mut bob = come(&server, &token("bob", 60, json!({"plan": "pro"})));
    bob.receive();
    assert_eq!(publish(&mut bob, "news.bob.a"), "published");
    assert_eq!(publish(&mut bob, "own.a"), "error");
}

#[test]
fn a_private_channel_needs_a_token_of_its_own_and_ends_with_it() {
    let rule =
        "[[channels]]\npattern = \"private.*\"\nsubscribe = \"token\"\npublish = \"anyone\"\n";
    let server = start(rule, &[]);
    let mut ann = come(&server, &token("ann", 60, json!({})));
    ann.receive();
    let subscribe = |channel: &str, token: Option<String>| json!({"type": "subscribe", "id": 1, "channel": channel, "token": token});
    let of =
        |user: &str, seconds: u64, channel: &str| token(user, seconds, json!({"channel": channel}));
    assert_eq!(ann.ask(subscribe("private.a", None))["code"], "forbidden");
    for wrong in
        [of("bob", 60, "private.a"), of("ann", 60, "private.b"), token("ann", 60, json!({}))]
    {
        let reply = ann.ask(subscribe("private.a", Some(wrong)));
        assert_eq!(reply["code"], "unauthenticated", "{reply}");
    }
    // What lets it into a channel does not let it in.
    assert!(open(&server, &format!("/ws?token={}", of("ann", 60, "private.a")), &[]).is_err());
    let history = json!({"type": "history", "id": 2, "channel": "private.a"});
    assert_eq!(ann.ask(history.clone())["code"], "forbidden");
    for (channel, seconds) in [("private.a", 2), ("private.b", 600)] {
        let reply = ann.ask(subscribe(channel, Some(of("ann", seconds, channel))));
        assert_eq!(reply["type"], "subscribed", "{reply}");
    }
    assert_eq!(ann.ask(history)["type"], "history", "who is subscribed may read it");
    let ended = ann.receive();
    assert_eq!((&ended["type"], &ended["channel"]), (&json!("unsubscribed"), &json!("private.a")));
    assert!(ended["reason"].is_string() && ended["id"].is_null(), "{ended}");
    for channel in ["private.a", "private.b"] {
        server.publish(channel, json!(channel));
    }
    assert_eq!(ann.receive()["channel"], "private.b");
}

#[test]
fn several_commands_in_one_message_are_answered_in_order() {
    let server = start("", &[]);
    let mut ann = open(&server, "/ws", &[]).unwrap();
    let token = signed(&json!({"sub": "ann", "exp": now() + 60}));
    ann.send(json!([
        {"type": "auth", "id": 1, "token": token},
        {"type": "subscribe", "id": 2, "channel": "open.a"},
        {"type": "unsubscribe", "id": 3, "channel": "open.a"},
        {"type": "subscribe", "id": 4, "channel": "open.a"},
        7,
        {"type": "publish", "id": 5, "channel": "open.a", "data": 1},
    ]));
    let mut seen = Vec::new();
    while seen.len() < 7 {
        let event = ann.receive();
        seen.push((event["type"].as_str().unwrap().to_owned(), event["id"].as_u64()));
    }
    // The message and the reply to its publication come in either order.
    seen[5..].sort();
    let expected = [
        ("connected", Some(1)),
        ("subscribed", Some(2)),
        ("unsubscribed", Some(3)),
        ("subscribed", Some(4)),
        ("error", None),
        ("message", None),
        ("published", Some(5)),
    ];
    assert_eq!(seen, expected.map(|(kind, id)| (kind.to_owned(), id)));
}
