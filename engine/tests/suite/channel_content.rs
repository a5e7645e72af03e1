//! What channels take: how long a publication is, what JSON it is, and how often clients publish.

use std::io::Write as _;

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::common::{Client, TestServer};
use super::hooks::Application;

const SCHEMA: &str = r#"{"type":"object","required":["text"],"properties":{
    "text":{"type":"string","maxLength":5},"from":{"type":"string"}}}"#;

/// Channels that take little; the schema is read once, when the server starts.
fn rules(schema: &NamedTempFile) -> String {
    format!(
        r#"
[[channels]]
pattern = "short.*"
publish = "anyone"
message_bytes_max = 5
[[channels]]
pattern = "chat.*"
publish = "anyone"
message_bytes_max = 4000
schema = {:?}
[[channels]]
pattern = "slow.*"
publish = "anyone"
messages_per_second_max = 1
messages_burst = 1000
[[channels]]
pattern = "*"
publish = "anyone"
"#,
        schema.path()
    )
}

fn schema(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn publish(client: &mut Client, channel: &str, field: &str, value: Value) -> Value {
    client.ask(json!({"type":"publish","id":1,"channel":channel,field:value}))
}

fn assert_refused(reply: &Value, code: &str, message: &str) {
    assert_eq!(reply["code"], code, "{reply}");
    let told = reply["message"].as_str().unwrap();
    assert!(told.starts_with(message) && told.len() <= 210, "{reply}");
}

#[test]
fn what_is_too_long_for_a_channel_is_refused_and_the_connection_stays() {
    let server = TestServer::start(&rules(&schema(SCHEMA)), &[]);
    // Over both shards, as channels and connections are spread.
    for channel in ["short.a", "short.b", "short.c", "short.d"] {
        let (mut client, mut subscriber) = (server.client(), server.client());
        subscriber.subscribe(channel);
        let told = format!("{channel} takes at most 5 bytes; these are 6");
        for (field, long) in [("data", json!("1234")), ("text", json!("123456"))] {
            assert_refused(&publish(&mut client, channel, field, long), "message_too_long", &told);
        }
        let long = json!("MTIzNDU2");
        assert_refused(&publish(&mut client, channel, "base64", long), "message_too_long", &told);
        // Also who does not ask for an answer is told.
        let nameless = json!({"type":"publish","channel":channel,"data":123456});
        assert_refused(&client.ask(nameless), "message_too_long", &told);
        assert_eq!(publish(&mut client, channel, "data", json!(12345))["type"], "published");
        assert_eq!(subscriber.receive()["data"], 12345);
    }
    let (status, body) =
        server.http("POST", "/api/publish", r#"{"channel":"short.a","data":123456}"#);
    assert_eq!(status, 413, "{body}");
    assert!(body.contains("message_too_long"), "{body}");
}

#[test]
fn what_does_not_fit_the_schema_of_a_channel_is_refused_whoever_publishes_it() {
    let server = TestServer::start(&rules(&schema(SCHEMA)), &[]);
    for channel in ["chat.a", "chat.b", "chat.c", "chat.d"] {
        let (mut client, mut subscriber) = (server.client(), server.client());
        subscriber.subscribe(channel);
        let no = |why: &str| format!("{channel} does not take this: {why}");
        for (field, value, why) in [
            ("data", json!({"text":"123456"}), "/text: value is longer than 5 characters"),
            ("data", json!({}), "\"text\" is a required property"),
            ("data", json!([]), "value is not of type \"object\""),
            ("text", json!("{\"text\":\"\"}"), "it is not JSON"),
            ("base64", json!("e30="), "it is not JSON"),
        ] {
            let reply = publish(&mut client, channel, field, value);
            assert_refused(&reply, "invalid_message", &no(why));
        }
        let deep = format!("{{\"text\":\"\",\"x\":{}{}}}", "[".repeat(1500), "]".repeat(1500));
        for (hostile, why) in [
            (&*deep, "more than 32 arrays and objects are in one another"),
            (r#"{"text":"","text":"1"}"#, "a name stands there twice"),
            (r#"{"text":"","n":1e999}"#, "number out of range"),
        ] {
            client.send_text(&format!(
                "{{\"type\":\"publish\",\"id\":1,\"channel\":\"{channel}\",\"data\":{hostile}}}"
            ));
            assert_refused(&client.receive(), "invalid_message", &no(why));
        }
        let good = json!({"text":"äöüß!","from":"ann"});
        assert_eq!(publish(&mut client, channel, "data", good.clone())["type"], "published");
        assert_eq!(subscriber.receive()["data"], good, "and nothing before it");
    }
    let bad = r#"{"channel":"chat.a","data":{"text":7}}"#;
    let good = r#"{"channel":"chat.a","data":{"text":"7"}}"#;
    let (status, body) = server.http("POST", "/api/publish", bad);
    assert_eq!(status, 400, "{body}");
    assert!(body.contains("invalid_message") && body.contains("/text: value is not"), "{body}");
    let batch = format!("{{\"publications\":[{good},{bad},{good}]}}");
    let (status, body) = server.http("POST", "/api/batch", &batch);
    let results: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &results["results"][1]["error"]), (200, &json!("invalid_message")));
    let offset = |at: usize| results["results"][at]["offset"].as_u64().unwrap();
    assert_eq!(offset(2), offset(0) + 1, "{body}");
    let (_, body) = server.http("POST", "/api/ingest", &format!("{good}\n{bad}\n{good}\n"));
    let last: Value = serde_json::from_str(body.lines().last().unwrap()).unwrap();
    assert_eq!((&last["accepted"], &last["refused"]), (&json!(2), &json!(1)), "{body}");
    assert!(body.contains("invalid_message"), "{body}");
}

#[test]
fn clients_together_publish_no_more_often_than_a_channel_takes() {
    let server = TestServer::start(&rules(&schema(SCHEMA)), &[]);
    for channel in ["slow.a", "slow.b", "slow.c"] {
        let mut clients = [server.client(), server.client()];
        let mut refused = 0;
        // A burst so large that what comes back meanwhile makes no difference, however slow the machine is.
        for _ in 0..8 {
            for client in &mut clients {
                let command = json!({"type":"publish","id":1,"channel":channel,"data":1});
                (0..100).for_each(|_| client.send(command.clone()));
                for reply in (0..100).map(|_| client.receive()) {
                    if reply["type"] != "published" {
                        let told = format!("at most 1 messages a second are allowed on {channel}");
                        assert_refused(&reply, "rate_limited", &told);
                        refused += 1;
                    }
                }
            }
        }
        assert!((1..=600).contains(&refused), "{channel}: {refused}");
        server.publish(channel, json!("over the API"));
    }
    // Each channel for itself, and those without a limit have none.
    let mut client = server.client();
    assert_eq!(publish(&mut client, "slow.d", "data", json!(1))["type"], "published");
}

#[test]
fn what_the_application_has_published_instead_is_held_to_the_same() {
    let application = Application::start(|event| {
        let text = event["data"]["text"].as_str().unwrap();
        let data = if text == "bad" { json!({"text":"too long"}) } else { json!({"text":"hi"}) };
        (200, json!({"allow":true,"data":data}))
    });
    let hook = format!("[hooks]\npublish_url = \"http://{}/\"\n", application.address);
    let schema = schema(SCHEMA);
    let rules = rules(&schema).replace("publish = \"anyone\"", "publish = \"hook\"");
    let server = TestServer::start(&format!("{hook}{rules}"), &[]);
    for channel in ["chat.a", "chat.b", "chat.c"] {
        let mut client = server.client();
        client.subscribe(channel);
        let reply = publish(&mut client, channel, "data", json!({"text":"bad"}));
        let told = format!("{channel} does not take this: /text: value is longer than 5");
        assert_refused(&reply, "invalid_message", &told);
        client.send(json!({"type":"publish","channel":channel,"data":{"text":"good"}}));
        assert_eq!(client.receive()["data"], json!({"text":"hi"}));
        // It is not asked about what is refused anyway.
        let reply = publish(&mut client, channel, "data", json!({"text":"too long"}));
        assert_eq!(reply["code"], "invalid_message");
        assert_eq!(application.next().0["data"], json!({"text":"bad"}));
        assert_eq!(application.next().0["data"], json!({"text":"good"}));
    }
}

#[test]
fn clients_of_existing_systems_are_told_in_their_own_frames() {
    let schema = schema(r#"{"maxLength":5}"#);
    let rules = rules(&schema);
    let endpoints = "
[[endpoints]]
path = \"/rooms\"
dialect = \"rooms\"
choose = false
[[endpoints]]
path = \"/fluxus\"
dialect = \"fluxus\"
choose = false
";
    let server = TestServer::start(&format!("{endpoints}{rules}"), &[]);
    let why = "chat.a does not take this: value is longer than 5 characters";
    let mut rooms = Client::connect(server.public, "/rooms");
    assert_eq!(rooms.receive()["type"], "welcome");
    let long = json!({"type":"broadcast","room":"chat.a","message":"123456"});
    assert_eq!(rooms.ask(long), json!({"type":"error","message":why}));
    let mut fluxus = Client::connect(server.public, "/fluxus");
    let long = json!({"action":"publish","channel":"chat.a","data":"123456"});
    let told = fluxus.ask(long);
    assert_eq!((&told["type"], &told["message"]), (&json!("error"), &json!(why)), "{told}");
    let long = json!({"action":"publish","channel":"short.a","data":"123456"});
    let told = fluxus.ask(long);
    assert_eq!(told["message"], "short.a takes at most 5 bytes; these are 8", "{told}");
}
