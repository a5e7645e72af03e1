//! The deployment of `config/examples/portico.toml`, with clients that do what its published ones do.

use super::common::{Client, TestServer, example, wait_until};
use super::hooks::Application;
use serde_json::{Value, json};
use tungstenite::Message;

fn start() -> TestServer {
    start_with("http://127.0.0.1:1/", &[])
}

/// With an application there.
fn start_with(application: &str, flags: &[&str]) -> TestServer {
    let toml = example(include_str!("../../../config/examples/portico.toml"));
    let url = "https://portico.example.org/ringfeed/partial-applications";
    let toml = toml.replace(url, application);
    TestServer::start(&toml, flags)
}

impl TestServer {
    /// A client with these cookies, behind its greeting.
    fn portico(&self, cookies: Option<&str>) -> Client {
        let origin = ("Origin", "https://portico.example.org");
        let headers: Vec<_> = cookies.map(|cookies| ("Cookie", cookies)).into_iter().collect();
        Client::connect_with(self.public, "/wss", &[&[origin], &headers[..]].concat())
    }

    /// The same, once its answer to a ping shows that it is there.
    fn portico_there(&self, cookies: Option<&str>, greeting: usize) -> Client {
        let mut client = self.portico(cookies);
        (0..greeting).for_each(|_| drop(client.receive()));
        assert_eq!(client.ask(json!({"type":"ping","id":"p1"}))["reply_to"], "p1");
        client
    }
}

/// Without what depends on the time.
fn receive(client: &mut Client) -> Value {
    let mut said = client.receive();
    let time = said.as_object_mut().unwrap().remove("timestamp");
    assert!(time.is_some_and(|time| time.as_str().unwrap().contains('T')), "{said}");
    said
}

#[test]
fn a_cookie_is_a_session_and_its_room() {
    let server = start();
    let mut client = server.portico(Some("PHPSESSID=abcdefghij"));
    let joined = receive(&mut client);
    let expected = json!({"type":"room_joined","roomId":"session_abcdefghij","roomType":"session",
        "message":"Joined room","roomSize":1});
    assert_eq!(joined, expected);
    let success = receive(&mut client);
    assert_eq!(success["message"], "Successfully connected to WebSocket server");
    let room = json!([{"id":"session_abcdefghij","size":1,"type":"session"}]);
    assert_eq!((&success["type"], &success["rooms"]), (&json!("connection_success"), &room));
    // A second window of the same session.
    let mut second = server.portico(Some("PHPSESSID=abcdefghij"));
    assert_eq!(receive(&mut second)["roomSize"], 2);
    receive(&mut second);
    second.send(json!({"type":"session_message","note":1}));
    let relayed = receive(&mut client);
    let context = json!({"hasSession":true,"sessionType":"standard"});
    let expected = json!({"type":"room_message","roomId":"session_abcdefghij","note":1,"sessionContext":context});
    assert_eq!(relayed, expected);
    server.publish(
        "portico.session_abcdefghij",
        json!({"type":"server_message","action":"deleted","message_ids":[1]}),
    );
    for window in [&mut client, &mut second] {
        assert_eq!(window.receive()["action"], "deleted");
    }
    // Other cookies, and none.
    let mut stranger = server.portico(Some("theme=dark"));
    assert_eq!(receive(&mut stranger)["code"], "NO_SESSION");
    let mut silent = server.portico(None);
    assert_eq!(silent.ask(json!({"type":"ping"}))["type"], "pong");
}

#[test]
fn a_session_may_change() {
    let server = start();
    let mut client = server.portico_there(None, 0);
    for wrong in [json!({"type":"update_session","sessionId":""}), json!({"type":"update_session"})]
    {
        assert_eq!(client.ask(wrong)["code"], "INVALID_SESSION_ID");
    }
    let mut update = |id: &str, action: &str, text: &str| {
        client.send(json!({"type":"update_session","sessionId":id}));
        if action != "none" {
            assert_eq!(receive(&mut client)["roomId"], format!("session_{id}"));
        }
        let confirmed = receive(&mut client);
        let seen = ["action", "message", "sessionId"].map(|name| confirmed[name].clone());
        assert_eq!(seen, [json!(action), json!(text), json!("12345678...")]);
        assert_eq!(confirmed["wasRequired"], false);
    };
    update("12345678a", "set", "Session ID set");
    update("12345678a", "none", "Session ID is unchanged");
    update("12345678b", "updated", "Session ID updated");
    server.publish("portico.session_12345678a", json!({"type":"server_message","n":1}));
    server.publish("portico.session_12345678b", json!({"type":"server_message","n":2}));
    assert_eq!(client.receive()["n"], 2, "the old room was left");
}

#[test]
fn an_entity_has_a_room_for_its_members() {
    let server = start();
    let mut ann = server.portico_there(Some("bookingfrontendsession=ann"), 2);
    let mut bob = server.portico_there(None, 0);
    let subscribe = json!({"type":"subscribe","entityType":"resource","entityId":42});
    let room = "entity_resource_42";
    let say = |n: u64| json!({"type":"room_message","roomId":room,"action":"presence","n":n,"timestamp":"t"});
    assert_eq!(ann.ask(say(0))["code"], "ROOM_ACCESS_DENIED");
    for (size, client) in [(1, &mut ann), (2, &mut bob)] {
        // What follows a subscribe need not wait for its answer.
        client.send(subscribe.clone());
        client.send(say(size));
        let joined = receive(client);
        assert_eq!((&joined["roomId"], &joined["roomSize"]), (&json!(room), &json!(size)));
        let confirmed = receive(client);
        let expected = json!({"type":"subscription_confirmation","entityType":"resource","entityId":42,"status":"subscribed"});
        assert_eq!(confirmed, expected);
    }
    let expected =
        json!({"type":"room_message","roomId":room,"action":"presence","n":2,"timestamp":"t"});
    assert_eq!(ann.receive(), expected, "as it came, and not to its sender");
    // An event may come from who is no member.
    let mut out = server.portico_there(None, 0);
    out.send(json!({"type":"entity_event","entityType":"resource","entityId":42,"eventType":"changed","data":{}}));
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.receive()["eventType"], "changed");
    }
    ann.send(json!({"type":"unsubscribe","entityType":"resource","entityId":42}));
    assert_eq!(receive(&mut ann)["status"], "unsubscribed");
    assert_eq!(ann.ask(say(3))["code"], "ROOM_ACCESS_DENIED");
    // All of everybody, a session's, an entity's.
    server.wait_total("subscriptions", |count| count == 3 + 1 + 1);
}

#[test]
fn a_chat_goes_to_all_others_and_a_notification_to_everybody() {
    let server = start();
    let mut ann = server.portico_there(Some("sessionphpgwsessid=ann"), 2);
    let mut bob = server.portico_there(None, 0);
    server.wait_total("subscriptions", |count| count == 2 + 1);
    ann.send(json!({"type":"chat","message":"hi","extra":[1]}));
    let chat = receive(&mut bob);
    let context = json!({"hasSession":true,"sessionType":"admin"});
    assert_eq!(chat, json!({"type":"chat","message":"hi","extra":[1],"sessionContext":context}));
    bob.send(json!({"type":"notification","message":"Alert!","priority":"high"}));
    for client in [&mut ann, &mut bob] {
        let seen = receive(client);
        assert_eq!(seen, json!({"type":"notification","message":"Alert!","priority":"high"}));
    }
    // A type that nobody knows goes to all others; what is none goes to nobody.
    ann.send(json!({"type":"area_update","x":1}));
    assert_eq!(bob.receive()["type"], "area_update");
    for wrong in ["nonsense", "[1]", r#"{"type":"reconnect_required"}"#] {
        ann.send_text(wrong);
        assert_eq!(ann.receive()["type"], "error", "{wrong}");
    }
    ann.socket.send(Message::binary(vec![1, 2, 3])).unwrap();
    assert_eq!(ann.receive()["code"], "INVALID_MESSAGE");
    bob.send_text("ping");
    assert_eq!(bob.message(), Message::text("pong"), "and nothing came between");
    bob.send(json!({"type":"update_user_info","userId":"77"}));
    assert_eq!(receive(&mut bob)["userId"], 77);
}

#[test]
fn the_application_is_asked_for_what_a_session_has_begun() {
    let known =
        json!({"error":false,"status":"ok","applications":[{"id":7,"name":"Hall"}],"count":1});
    let says = known.clone();
    let app = Application::start(move |event| match event["params"]["sessionId"].as_str() {
        Some("ann") => (200, says.clone()),
        _ => (500, Value::Null),
    });
    let server = start_with(&format!("http://{}/", app.address), &["hooks.retries=0"]);
    let mut ann = server.portico_there(Some("PHPSESSID=ann"), 2);
    let ask = json!({"type":"get_partial_applications"});
    ann.send(ask.clone());
    let told = receive(&mut ann);
    assert_eq!(told, json!({"type":"partial_applications_response","data":known}));
    let (event, _) = app.next();
    assert_eq!(event["params"], json!({"sessionId":"ann","sessionType":"standard"}));
    // Nobody's session, and an application that fails.
    let mut stranger = server.portico_there(None, 0);
    assert_eq!(stranger.ask(ask.clone())["data"]["message"], "No session found");
    let mut bob = server.portico_there(Some("PHPSESSID=bob"), 2);
    let failed = bob.ask(ask);
    assert_eq!(
        (&failed["data"]["error"], &failed["data"]["status"]),
        (&json!(true), &json!("error"))
    );
}

#[test]
fn an_entity_may_have_any_name() {
    let server = start();
    let mut ann = server.portico_there(None, 0);
    ann.send(json!({"type":"subscribe","entityType":"hall","entityId":"A \"1\"*"}));
    let room = "entity_hall_A \"1\"*";
    let joined = receive(&mut ann);
    assert_eq!((&joined["roomId"], &joined["entityId"]), (&json!(room), &json!("A \"1\"*")));
    assert_eq!(receive(&mut ann)["status"], "subscribed");
    server.publish(
        "portico.entity_hall_A%20%221%22%2A",
        json!({"type":"room_message","roomId":room}),
    );
    assert_eq!(ann.receive()["roomId"], room);
}

#[test]
fn files_that_stood_in_for_redis_reach_all_or_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let flag = format!("drop.portico_dir={}", dir.path().to_str().unwrap());
    let server = start_with("http://127.0.0.1:1/", &[&flag, "drop.interval_ms=10"]);
    let mut one = server.portico_there(Some("PHPSESSID=abc"), 2);
    let mut other = server.portico_there(Some("PHPSESSID=xyz"), 2);
    // As PHP writes them: under their own names, not at once.
    let file = |name: &str| dir.path().join(name);
    std::fs::write(file("websocket_session_abc_1716200000.5.json"), "{\"type\":").unwrap();
    std::fs::write(file("websocket_running"), "1").unwrap();
    let to_all = json!({"type": "notification", "message": "closed on Monday"});
    let name = file("websocket_notification_1716200000.1234.json");
    std::fs::write(name, to_all.to_string()).unwrap();
    for client in [&mut one, &mut other] {
        assert_eq!(client.receive(), to_all);
    }
    let to_one = json!({"type": "refresh_bookinguser", "sessionId": "abc", "n": 1.5});
    std::fs::write(file("websocket_session_abc_1716200000.5.json"), to_one.to_string()).unwrap();
    let mut expected = to_one;
    expected["roomId"] = json!("session_abc");
    assert_eq!(one.receive(), expected);
    // Nobody is there: it is dropped.
    std::fs::write(file("websocket_session_nobody_1716200001.json"), "{}").unwrap();
    wait_until("files", || std::fs::read_dir(dir.path()).unwrap().count(), |&files| files == 1);
    std::fs::write(file("websocket_notification_1716200002.json"), "{\"type\":\"last\"}").unwrap();
    assert_eq!(other.receive()["type"], "last");
}
