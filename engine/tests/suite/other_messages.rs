//! Messages of types that the dialect does not know: a method of an application, or the application as a whole, may.

use serde_json::{Value, json};

use super::common::{CHANNELS, Client, TestServer};
use super::hooks::Application;

/// One that knows votes and free times.
fn application() -> Application {
    Application::start(|event| match event["method"].as_str() {
        Some("vote") if event["params"]["for"] == "nobody" => {
            (422, json!({"message": "for whom?"}))
        }
        Some("vote") => (200, json!({"votes": 17})),
        Some("typed") => (200, json!({"type": "own", "as_it": "is"})),
        Some("silent") => (204, Value::Null),
        _ => (500, Value::Null),
    })
}

fn configured(app: &Application, dialect: &str) -> TestServer {
    let entry = |name: &str, types: &str| {
        let url = format!("http://{}/", app.address);
        format!(
            "[[rpc_methods]]\nname = {name:?}\nurl = {url:?}\nallow = [\"anyone\"]\ntypes = {types}\n"
        )
    };
    let toml = format!(
        "[[endpoints]]\npath = \"/app\"\ndialect = {dialect:?}\n{}{}{}{}[[rpc_methods]]\nname = \"unmarked\"\n\
         url = \"http://{}/\"\nallow = [\"anyone\"]\n[[channels]]\npattern = \"all\"\npublish = \"anyone\"\n{CHANNELS}",
        entry("vote", "[\"vote\", \"get_votes\"]"),
        entry("typed", "[\"typed\"]"),
        entry("silent", "[\"silent\"]"),
        entry("failing", "[\"failing\"]"),
        app.address
    );
    TestServer::start(&toml, &["hooks.retries=0"])
}

#[test]
fn a_message_of_its_type_calls_a_method_and_other_types_are_unknown() {
    let app = application();
    let server = configured(&app, "ringfeed.v1");
    let mut client = Client::connect(server.public, "/app");
    let vote = json!({"type":"vote","id":1,"for":[3]});
    assert_eq!(client.ask(vote.clone()), json!({"type":"reply","id":1,"data":{"votes":17}}));
    let (event, _) = app.next();
    assert_eq!((&event["method"], &event["params"]), (&json!("vote"), &vote));
    // Without an id there is a reply, too, unless it is nothing.
    client.send(json!({"type":"silent"}));
    let reply = client.ask(json!({"type":"vote"}));
    assert_eq!(reply, json!({"type":"reply","data":{"votes":17}}));
    assert_eq!(client.ask(json!({"type":"silent","id":2}))["data"], Value::Null);
    for (kind, code) in [
        ("failing", "unavailable"),
        // Only what is marked is called so, whatever its name.
        ("unmarked", "unknown_command"),
        ("fly", "unknown_command"),
    ] {
        let error = client.ask(json!({"type":kind,"id":3}));
        assert_eq!((&error["id"], &error["code"]), (&json!(3), &json!(code)), "{kind}");
    }
    let error = client.ask(json!({"type":"vote","id":4,"for":"nobody"}));
    assert_eq!((&error["code"], &error["message"]), (&json!("bad_params"), &json!("for whom?")));
}

#[test]
fn portico_answers_as_to_its_own_requests_and_relays_what_nobody_knows() {
    let app = application();
    let server = configured(&app, "portico");
    let connect = |cookie| Client::connect_with(server.public, "/app", &[("Cookie", cookie)]);
    let mut ann = connect("PHPSESSID=ann");
    (0..2).for_each(|_| drop(ann.receive()));
    let mut bob = Client::connect(server.public, "/app");
    server.wait_total("subscriptions", |count| count == 3);
    // A client cannot say whose session it is.
    let told = ann.ask(json!({"type":"get_votes","sessionId":"bob"}));
    assert_eq!((&told["type"], &told["data"]), (&json!("votes_response"), &json!({"votes":17})));
    assert!(told["timestamp"].is_string());
    let params = app.next().0["params"].clone();
    assert_eq!(params, json!({"type":"get_votes","sessionId":"ann","sessionType":"standard"}));
    bob.ask(json!({"type":"vote"}));
    assert_eq!(app.next().0["params"]["sessionId"], Value::Null);
    assert_eq!(ann.ask(json!({"type":"typed"})), json!({"type":"own","as_it":"is"}));
    let failed = ann.ask(json!({"type":"failing"}));
    assert_eq!(
        (&failed["type"], &failed["data"]["error"], &failed["data"]["code"]),
        (&json!("failing_response"), &json!(true), &json!("UNAVAILABLE"))
    );
    ann.send(json!({"type":"silent"}));
    ann.send(json!({"type":"area_update","n":1}));
    let relayed = bob.receive();
    assert_eq!((&relayed["type"], &relayed["n"]), (&json!("area_update"), &json!(1)));
    assert_eq!(ann.ask(json!({"type":"ping"}))["type"], "pong", "it was not sent to its sender");
}

#[test]
fn rooms_and_fluxus_are_sent_what_the_application_says() {
    let app = application();
    let rooms = configured(&app, "rooms");
    let mut client = Client::connect(rooms.public, "/app");
    assert_eq!(client.receive()["type"], "welcome");
    assert_eq!(client.ask(json!({"type":"typed"})), json!({"type":"own","as_it":"is"}));
    client.send(json!({"type":"silent"}));
    assert_eq!(client.ask(json!({"type":"fly"}))["message"], "Unknown message type: fly");
    let error = client.ask(json!({"type":"vote","for":"nobody"}));
    assert_eq!(error, json!({"type":"error","message":"for whom?"}));

    let fluxus = configured(&app, "fluxus");
    let mut client = Client::connect(fluxus.public, "/app");
    assert_eq!(client.ask(json!({"action":"typed"})), json!({"type":"own","as_it":"is"}));
    client.send(json!({"action":"silent"}));
    for (action, words) in [
        (json!({"action":"vote","for":"nobody"}), "for whom?"),
        (json!({"action":"fly"}), "El mensaje no puede procesarse no processor for fly"),
    ] {
        let error = client.ask(action);
        assert_eq!((&error["type"], &error["message"]), (&json!("error"), &json!(words)));
    }
}
