//! What is sent again with its idempotency key is published once.

use serde_json::{Value, json};

use super::common::TestServer;

fn publish(server: &TestServer, body: &Value) -> (u16, Value) {
    let (status, answer) = server.http("POST", "/api/publish", &body.to_string());
    (status, serde_json::from_str(&answer).unwrap())
}

#[test]
fn a_publication_that_is_sent_again_is_answered_as_the_first_time_and_comes_once() {
    let server = TestServer::open(&["server.shards=2"]);
    let mut subscriber = server.client();
    subscriber.subscribe("orders");
    let body = json!({"channel": "orders", "data": 17, "idempotency_key": "a 1/~"});
    let (status, first) = publish(&server, &body);
    assert_eq!((status, first.get("duplicate")), (200, None), "{first}");
    let mut expected = first.clone();
    expected["duplicate"] = json!(true);
    assert_eq!(publish(&server, &body), (200, expected.clone()));
    // In a batch and in a stream, too: each says what it was.
    let new = json!({"channel": "orders", "data": 18, "idempotency_key": "2"});
    let batch = json!({"publications": [body, new, new]}).to_string();
    let (_, answer) = server.http("POST", "/api/batch", &batch);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results[0], expected);
    assert_eq!((&results[1]["offset"], results[1].get("duplicate")), (&json!(2), None));
    assert_eq!((&results[2]["offset"], &results[2]["duplicate"]), (&json!(2), &json!(true)));
    let (_, answer) = server.http("POST", "/api/ingest", &format!("{body}\n{new}\n"));
    let last: Value = serde_json::from_str(answer.trim_end().lines().last().unwrap()).unwrap();
    assert_eq!((&last["accepted"], &last["duplicates"]), (&json!(2), &json!(2)), "{last}");
    publish(&server, &json!({"channel": "orders", "data": "last"}));
    let data: Vec<Value> = (0..3).map(|_| subscriber.receive()["data"].take()).collect();
    assert_eq!(data, [json!(17), json!(18), json!("last")]);
}

#[test]
fn a_client_that_comes_back_sends_again_what_it_does_not_know_to_be_published() {
    let server = TestServer::open(&["server.shards=2"]);
    let command = json!({"type": "publish", "id": 1, "channel": "open.chat", "text": "hello", "idempotency_key": "k"});
    let said = [(); 2].map(|()| {
        let mut client = server.client();
        client.ask(command.clone())
    });
    assert_eq!((&said[0]["offset"], said[0].get("duplicate")), (&json!(1), None));
    assert_eq!((&said[1]["offset"], &said[1]["duplicate"]), (&json!(1), &json!(true)));
    assert_eq!(said[0]["epoch"], said[1]["epoch"]);
    // The application's keys are its own.
    let (_, other) =
        publish(&server, &json!({"channel": "open.chat", "text": "x", "idempotency_key": "k"}));
    assert_eq!((&other["offset"], other.get("duplicate")), (&json!(2), None));
}

#[test]
fn what_is_no_key_is_refused_with_what_is_allowed() {
    let server = TestServer::open(&[]);
    let mut client = server.client();
    let long = "k".repeat(129);
    for (key, part) in [
        (json!(""), "is empty"),
        (json!(long), "has 129 bytes"),
        (json!("ké"), "holds 'é'"),
        (json!("a\nb"), "holds '\\n'"),
    ] {
        let body = json!({"channel": "a", "data": 1, "idempotency_key": key});
        let (status, answer) = publish(&server, &body);
        assert_eq!((status, &answer["error"]), (400, &json!("bad_command")), "{answer}");
        client.send(
            json!({"type": "publish", "id": 1, "channel": "a", "data": 1, "idempotency_key": key}),
        );
        let refused = client.receive();
        assert_eq!(refused["code"], "bad_command", "{refused}");
        for message in [&answer["message"], &refused["message"]] {
            let message = message.as_str().unwrap();
            assert!(message.contains(part), "{message}");
            assert!(message.contains("allowed are 1 to 128 printable ASCII"), "{message}");
        }
    }
    client
        .send(json!({"type": "publish", "id": 1, "channel": "a", "data": 1, "idempotency_key": 7}));
    assert_eq!(client.receive()["message"], "'idempotency_key' must be a string");
    let off = TestServer::open(&["limits.idempotency_ms=0"]);
    let (status, answer) =
        publish(&off, &json!({"channel": "a", "data": 1, "idempotency_key": "k"}));
    assert_eq!(status, 400);
    assert!(answer["message"].as_str().unwrap().contains("limits.idempotency_ms is 0"), "{answer}");
}
