//! Clients call methods: of the engine, of a database, of an application; and nothing waits for a call.

use crossbeam_channel::bounded;
use serde_json::{Value, json};

use super::common::tokens::{ISSUER, token};
use super::common::{CHANNELS, Client, PATIENCE, TestServer};
use super::hooks::Application;

fn call(client: &mut Client, id: u64, method: &str, params: Value) {
    client.send(json!({"type": "rpc", "id": id, "method": method, "params": params}));
}

/// The result of the call by this id, which comes next.
#[track_caller]
fn result(client: &mut Client, id: u64) -> Value {
    let reply = client.receive();
    assert_eq!((&reply["type"], &reply["id"]), (&json!("result"), &json!(id)), "{reply}");
    reply["data"].clone()
}

/// The code of the error that the call by this id ends with, which comes next.
#[track_caller]
fn refusal(client: &mut Client, id: u64) -> String {
    let reply = client.receive();
    assert_eq!((&reply["type"], &reply["id"]), (&json!("error"), &json!(id)), "{reply}");
    reply["code"].as_str().unwrap().to_owned()
}

#[test]
fn the_engine_has_methods_of_its_own_where_it_is_told_to_and_for_whom_it_is_told() {
    let off = TestServer::open(&[]);
    let mut client = off.client();
    call(&mut client, 1, "ping", json!({}));
    assert_eq!(refusal(&mut client, 1), "unknown_method");
    let toml =
        format!("[rpc]\nbuiltin = true\nallow_channels_list = [\"anyone\"]\n{ISSUER}{CHANNELS}");
    let server = TestServer::start(&toml, &["auth.anonymous=true"]);
    server.publish("open.a", json!(1));
    let mut stranger = server.client();
    for (id, method, params, code) in [
        (1, "server.stats", json!({}), "forbidden"),
        (2, "server.Stats", json!({}), "unknown_method"),
        (3, "ping", json!({"a": 1}), "bad_params"),
    ] {
        call(&mut stranger, id, method, params);
        assert_eq!(refusal(&mut stranger, id), code, "{method}");
    }
    call(&mut stranger, 4, "client.info", json!({}));
    assert_eq!(result(&mut stranger, 4)["user"], Value::Null);
    call(&mut stranger, 5, "channels.list", json!({}));
    let listed = result(&mut stranger, 5);
    assert_eq!(
        (&listed["total"], &listed["channels"][0]["channel"]),
        (&json!(1), &json!("open.a"))
    );
    let admin = token("ann", 600, json!({"roles": ["admin"]}));
    let mut admin = Client::connect(server.public, &format!("/ws?token={admin}"));
    let connection = admin.receive()["connection"].clone();
    call(&mut admin, 1, "client.info", json!({}));
    let info = result(&mut admin, 1);
    assert_eq!((&info["user"], &info["roles"]), (&json!("ann"), &json!(["admin"])));
    assert_eq!(info["connection"], connection);
    call(&mut admin, 2, "server.stats", json!({}));
    assert_eq!(result(&mut admin, 2)["shards"], 2);
    call(&mut admin, 3, "ping", json!({}));
    assert_eq!(result(&mut admin, 3)["message"], "pong");
    let metrics = server.http("GET", "/metrics", "").1;
    for line in [
        "ringfeed_rpc_calls_total{kind=\"builtin\",outcome=\"answered\"} 5",
        "ringfeed_rpc_calls_total{kind=\"builtin\",outcome=\"bad_params\"} 1",
        "ringfeed_rpc_calls_total{kind=\"none\",outcome=\"forbidden\"} 1",
        "ringfeed_rpc_calls_under_way{kind=\"builtin\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in:\n{metrics}");
    }
}

#[test]
fn statements_in_files_are_called_with_typed_parameters() {
    let dir = tempfile::tempdir().unwrap();
    let statements = r#"
        [[statement]]
        name = "products.add"
        description = "Adds a product"
        database = "shop"
        sql = "INSERT INTO products VALUES (:name, :price)"
        params = [{ name = "name", type = "text", required = true }, { name = "price", type = "float", min = 0 }]
        write = true
        allow = ["anyone"]
        [[statement]]
        name = "products.make"
        description = "Makes the table"
        database = "shop"
        sql = "CREATE TABLE products (name TEXT, price REAL)"
        write = true
        allow = ["anyone"]
        [[statement]]
        name = "products.find"
        description = "Products by a part of their name"
        database = "shop"
        sql = "SELECT name, price FROM products WHERE name LIKE '%' || :part || '%' ORDER BY name"
        params = [{ name = "part", type = "text", default = "" }]
        allow = ["anyone"]
    "#;
    std::fs::write(dir.path().join("shop.toml"), statements).unwrap();
    let toml = format!(
        "[rpc]\ndir = {:?}\n[[databases]]\nname = \"shop\"\nurl = \"sqlite:{}\"\n{CHANNELS}",
        dir.path().to_str().unwrap(),
        dir.path().join("shop.db").display()
    );
    let server = TestServer::start(&toml, &[]);
    let mut client = server.client();
    call(&mut client, 1, "products.make", json!({}));
    assert_eq!(result(&mut client, 1), json!({"affected": 0}));
    for (id, name, price) in [
        (2, "cup", json!(4.5)),
        (3, "'; DROP TABLE products; --", json!(1)),
        (4, "pan", Value::Null),
    ] {
        call(&mut client, id, "products.add", json!({"name": name, "price": price}));
        assert_eq!(result(&mut client, id), json!({"affected": 1}));
    }
    call(&mut client, 5, "products.find", json!({"part": "cu"}));
    assert_eq!(result(&mut client, 5), json!([{"name": "cup", "price": 4.5}]));
    client.send(json!({"type": "rpc", "id": 6, "method": "products.find"}));
    assert_eq!(result(&mut client, 6).as_array().unwrap().len(), 3);
    for (id, params) in
        [(7, json!({"price": 1})), (8, json!({"name": 7})), (9, json!({"name": "a", "price": -1}))]
    {
        call(&mut client, id, "products.add", params);
        assert_eq!(refusal(&mut client, id), "bad_params");
    }
}

#[test]
fn calls_hold_nothing_and_are_answered_in_any_order() {
    let (go, wait) = bounded::<()>(0);
    let app = Application::start(move |event| {
        if event["method"] == "app.slow" {
            let _ = wait.recv_timeout(PATIENCE);
        }
        (200, json!({"of": event["method"], "params": event["params"]}))
    });
    let toml = format!(
        "[[rpc_methods]]\nname = \"app.*\"\nurl = \"http://{}/rpc\"\ntimeout_ms = 60000\nallow = [\"anyone\"]\n\
         {CHANNELS}",
        app.address
    );
    let flags = [
        "limits.rpc_calls_per_connection_max=2",
        "rpc.timeout_ms_max=60000",
        "hooks.timeout_ms=60000",
    ];
    let server = TestServer::start(&toml, &flags);
    let mut client = server.client();
    call(&mut client, 1, "app.slow", json!({"a": [1, null]}));
    let (event, _) = app.next();
    assert_eq!((&event["event"], &event["method"]), (&json!("rpc"), &json!("app.slow")));
    assert_eq!((&event["user"], &event["roles"]), (&Value::Null, &json!([])));
    client.subscribe("open.a");
    assert_eq!(client.ask(json!({"type": "ping", "id": 2}))["type"], "pong");
    call(&mut client, 3, "app.quick", Value::Null);
    assert_eq!(result(&mut client, 3), json!({"of": "app.quick", "params": null}));
    call(&mut client, 4, "app.slow", json!({}));
    call(&mut client, 5, "app.quick", json!({}));
    assert_eq!(refusal(&mut client, 5), "limit_reached");
    go.send_timeout((), PATIENCE).unwrap();
    go.send_timeout((), PATIENCE).unwrap();
    let mut ids = [client.receive()["id"].clone(), client.receive()["id"].clone()];
    ids.sort_by_key(Value::as_u64);
    assert_eq!(ids, [json!(1), json!(4)]);
    call(&mut client, 6, "app.quick", json!({}));
    result(&mut client, 6);
    // Whose caller has gone is nobody's, and nobody's place.
    let mut gone = server.client();
    call(&mut gone, 1, "app.slow", json!({}));
    call(&mut gone, 2, "app.slow", json!({}));
    server.wait_total("questions", |questions| questions == 2);
    drop(gone);
    server.wait_total("connections", |connections| connections == 1);
    go.send_timeout((), PATIENCE).unwrap();
    go.send_timeout((), PATIENCE).unwrap();
    server.wait_total("questions", |questions| questions == 0);
    assert_eq!(client.ask(json!({"type": "ping", "id": 7}))["type"], "pong");
}

#[test]
fn an_application_that_does_not_behave_is_a_typed_error() {
    let (go, wait) = bounded::<()>(0);
    let app = Application::start(move |event| match event["method"].as_str() {
        Some("app.says_no") => (403, json!({"message": "not you"})),
        Some("app.bad") => (422, json!({"message": "no such product"})),
        Some("app.moved") => (302, Value::Null),
        Some("app.much") => (200, json!("x".repeat(3000))),
        Some("app.fails") => (500, Value::Null),
        Some("app.nothing") => (204, Value::Null),
        _ => {
            let _ = wait.recv_timeout(PATIENCE);
            (200, Value::Null)
        }
    });
    let entry = |name: &str, url: &str| {
        format!("[[rpc_methods]]\nname = {name:?}\nurl = {url:?}\nallow = [\"anyone\"]\n")
    };
    let (alive, nobody) = (format!("http://{}/", app.address), "http://127.0.0.1:1/");
    let toml = [entry("app.*", &alive), entry("app.down", nobody), CHANNELS.into()].concat();
    let flags = ["rpc.answer_bytes_max=1024", "hooks.breaker_failures=100", "hooks.retries=0"];
    let server = TestServer::start(&toml, &flags);
    let mut client = server.client();
    for (id, method, code) in [
        (1, "app.says_no", "forbidden"),
        (2, "app.bad", "bad_params"),
        (3, "app.moved", "failed"),
        (4, "app.much", "failed"),
        (5, "app.fails", "unavailable"),
        (6, "app.down", "unavailable"),
    ] {
        call(&mut client, id, method, json!({}));
        assert_eq!(refusal(&mut client, id), code, "{method}");
    }
    client.send(json!({"type": "rpc", "id": 7, "method": "app.hangs", "timeout_ms": 50}));
    assert_eq!(refusal(&mut client, 7), "timed_out");
    go.send_timeout((), PATIENCE).unwrap();
    call(&mut client, 8, "app.nothing", json!({}));
    assert_eq!(result(&mut client, 8), Value::Null);
}
