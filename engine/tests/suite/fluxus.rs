//! The deployment of `config/examples/fluxus.toml`, with clients that do what its published ones do.

use std::io::{ErrorKind, Read as _};

use super::common::tokens::token;
use super::common::{Client, TestServer, example, http};
use serde_json::{Value, json};

fn start() -> TestServer {
    TestServer::start(&example(include_str!("../../../config/examples/fluxus.toml")), &[])
}

impl TestServer {
    /// A guest: nobody says anything when it connects.
    fn guest(&self) -> Client {
        Client::connect_with(self.public, "/", &[("Origin", "https://app.example.org")])
    }

    fn member(&self, user: &str, roles: &[&str]) -> Client {
        let mut client = self.guest();
        let token = token(user, 60, json!({"roles":roles}));
        let answer = client.ask(json!({"action":"authenticate","token":token}));
        assert_eq!((&answer["type"], &answer["success"]), (&json!("auth_response"), &json!(true)));
        assert_eq!(answer["data"]["roles"][0], "ws:user");
        client
    }
}

/// The text of a `success` or an `error`.
fn told(client: &mut Client, command: Value) -> (String, String) {
    let answer = client.ask(command);
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    assert!(text("id").starts_with("Fxs::"), "{answer}");
    (text("type"), text("message"))
}

fn success(text: &str) -> (String, String) {
    ("success".into(), text.into())
}

fn error(text: &str) -> (String, String) {
    ("error".into(), text.into())
}

#[test]
fn guests_subscribe_and_publish() {
    let server = start();
    let (mut one, mut other) = (server.guest(), server.guest());
    for client in [&mut one, &mut other] {
        let subscribe = json!({"action":"subscribe","channel":"news"});
        assert_eq!(told(client, subscribe.clone()), success("Suscrito al canal: news"));
        assert_eq!(told(client, subscribe), success("Suscrito al canal: news"));
    }
    one.send(json!({"action":"publish","channel":"news","data":{"message":"hi"}}));
    let mut seen = other.receive();
    let meta = seen["_metadata"].take();
    assert_eq!(
        seen,
        json!({"type":"message","channel":"news","data":{"message":"hi"},"_metadata":null})
    );
    assert!(
        meta["timestamp"].as_u64() > Some(1_600_000_000) && meta["publisher"].as_u64() > Some(0)
    );
    // Its publisher gets it, too, beside the answer.
    let both = [one.receive(), one.receive()];
    let answer = both.iter().find(|said| said["type"] == "success").unwrap();
    assert_eq!(answer["message"], "Mensaje publicado en: news (local: 2 clientes)");
    assert!(both.iter().any(|said| said["data"]["message"] == "hi"));
    for (data, expected) in
        [(json!("text"), json!("text")), (json!(7), json!("7")), (json!([1]), json!([1]))]
    {
        one.send(json!({"action":"publish","channel":"news","data":data}));
        assert_eq!(other.receive()["data"], expected);
        drop((one.receive(), one.receive()));
    }
    assert_eq!(
        told(&mut other, json!({"action":"unsubscribe","channel":"news"})),
        success("Desuscrito del canal: news")
    );
    // What everybody has from the beginning.
    server.publish("fluxus.general", json!("to all"));
    assert_eq!(one.receive()["channel"], "general");
    assert_eq!(other.receive()["data"], "to all");
}

#[test]
fn what_is_wrong_is_told_in_its_words() {
    let server = start();
    let mut guest = server.guest();
    for (text, words) in [
        ("nonsense", "El mensaje no puede procesarse no action"),
        ("{}", "El mensaje no puede procesarse no action"),
        (r#"{"action":"fly"}"#, "El mensaje no puede procesarse no processor for fly"),
        (
            r#"{"action":"file_chunk","file_id":"x"}"#,
            "El mensaje no puede procesarse no processor for file_chunk",
        ),
        (r#"{"action":"subscribe"}"#, "Nombre de canal requerido"),
        (r#"{"action":"publish","data":1}"#, "Nombre de canal requerido"),
        (
            r#"{"action":"subscribe","channel":"private.a"}"#,
            "Channel is only for authenticated users",
        ),
        (
            r#"{"action":"publish","channel":"private.a","data":"x"}"#,
            "Channel is only for authenticated users",
        ),
    ] {
        guest.send_text(text);
        assert_eq!(guest.receive()["message"], words, "{text}");
    }
    let file = guest.ask(json!({"action":"send_file","request_id":"r1","channel":"a","file":{}}));
    assert_eq!(
        (&file["type"], &file["request_id"], &file["success"]),
        (&json!("file_response"), &json!("r1"), &json!(false))
    );
    let refused = guest.ask(json!({"action":"authenticate","token":"nonsense"}));
    assert_eq!((&refused["type"], &refused["success"]), (&json!("auth_response"), &json!(false)));

    let mut ann = server.member("ann", &[]);
    assert_eq!(
        told(&mut ann, json!({"action":"subscribe","channel":"private.a"})),
        success("Suscrito al canal: private.a")
    );
    assert_eq!(
        told(&mut ann, json!({"action":"subscribe","channel":"admin.a"})),
        error("User does not have required role")
    );
    let mut admin = server.member("eve", &["ws:admin"]);
    assert_eq!(
        told(&mut admin, json!({"action":"subscribe","channel":"admin.a"})),
        success("Suscrito al canal: admin.a")
    );
}

#[test]
fn a_call_is_accepted_before_it_has_a_result() {
    let server = start();
    let mut guest = server.guest();
    let mut call = |method: &str| {
        guest.send(json!({"action":"rpc","id":"m1-x","method":method,"params":{},"timeout":30}));
        let accepted = guest.receive();
        assert_eq!((&accepted["status"], &accepted["id"]), (&json!("accepted"), &json!("m1-x")));
        let answer = guest.receive();
        assert_eq!((&answer["type"], &answer["id"]), (&json!("rpc_response"), &json!("m1-x")));
        answer
    };
    let pong = call("ping");
    assert_eq!((&pong["status"], &pong["result"]["message"]), (&json!("success"), &json!("pong")));
    let unknown = call("nothing.of.the.kind");
    assert_eq!(
        unknown["error"],
        json!({"code":503,"message":"Servicio no disponible temporalmente"})
    );
    assert_eq!(call("server.stats")["error"]["code"], 401);
    assert_eq!(call("")["error"], json!({"code":500,"message":"Method not specified"}));
    let mut ann = server.member("ann", &[]);
    ann.send(json!({"action":"rpc","id":"m2","method":"server.stats","params":{}}));
    assert_eq!(ann.receive()["status"], "accepted");
    assert_eq!(ann.receive()["error"]["code"], 403);
}

#[test]
fn channels_and_methods_are_listed_without_the_prefix() {
    let server = start();
    let mut admin = server.member("eve", &["ws:admin"]);
    assert_eq!(
        told(&mut admin, json!({"action":"subscribe","channel":"my news"})),
        success("Suscrito al canal: my news")
    );
    server.publish("elsewhere", json!(1));
    server.publish("fluxus.my%20news", json!("hi"));
    assert_eq!(admin.receive()["channel"], "my news");
    let listed = admin.ask(json!({"action":"list_channels"}));
    assert_eq!(listed["type"], "channel_list");
    let expected = json!([{"name":"general","subscribers":1},{"name":"my news","subscribers":1}]);
    assert_eq!(listed["channels"], expected);
    admin.send(json!({"action":"rpc","id":"m1","method":"channels.list","params":{}}));
    assert_eq!(admin.receive()["status"], "accepted");
    let result = admin.receive()["result"].take();
    assert_eq!(
        (&result["total"], &result["channels"][1]["channel"]),
        (&json!(2), &json!("my news"))
    );
    let mut guest = server.guest();
    assert_eq!(told(&mut guest, json!({"action":"list_channels"})), error("No autenticado"));
    let methods = guest.ask(json!({"action":"list_rpc_methods"}));
    assert_eq!(methods["type"], "rpc_methods_list");
    let all = methods["methods"].as_array().unwrap();
    assert_eq!(methods["total"], all.len());
    let stats = all.iter().find(|method| method["name"] == "server.stats").unwrap();
    assert_eq!(
        (&stats["requires_auth"], &stats["allowed_roles"]),
        (&json!(true), &json!(["ws:admin"]))
    );
}

#[test]
fn who_finds_a_channel_full_is_told_of_it_by_the_name_that_it_knows() {
    let toml = "[auth]\nanonymous = true\n[[endpoints]]\npath = \"/\"\ndialect = \"fluxus\"\nchannel_prefix = \"hidden.\"\n\
                [[channels]]\npattern = \"*\"\nmembers_max = 1\n";
    let server = TestServer::start(toml, &[]);
    let (mut one, mut other) = (server.guest(), server.guest());
    let subscribe = json!({"action":"subscribe","channel":"small"});
    assert_eq!(told(&mut one, subscribe.clone()).0, "success");
    let full = "small has as many members as it may have, 1";
    assert_eq!(told(&mut other, subscribe), error(full));
}

#[test]
fn pages_are_told_which_methods_there_are() {
    let server = start();
    let get =
        |path: &str| http(server.public, "GET", path, "Origin: https://app.example.org\r\n", "");
    let (status, body) = get("/api/rpc-methods?x=1");
    assert_eq!(status, 200, "{body}");
    let listed: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(listed["type"], "rpc");
    let methods = listed["methods"].as_array().unwrap();
    let ping = methods.iter().find(|method| method["method"] == "ping").unwrap();
    assert!(ping["allow_guest"] == true && ping["description"].is_string());
    let (status, script) = get("/api/rpc");
    assert!(
        status == 200
            && script.contains("window.VecturaRPC")
            && script.contains("\"server.stats\"")
    );
    let health: Value = serde_json::from_str(&get("/health").1).unwrap();
    assert_eq!((&health["status"], health["workers"].as_u64()), (&json!("ok"), Some(2)));
    // Channels are named to who has a key alone.
    assert_eq!(get("/stats").0, 401);
}

#[test]
fn a_restart_cuts_the_connection_so_that_its_clients_come_back() {
    let server = start();
    let mut guest = server.guest();
    assert_eq!(told(&mut guest, json!({"action":"subscribe","channel":"a"})).0, "success");
    server.drain();
    let stream = guest.socket.get_mut();
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest);
    assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    assert!(rest.is_empty(), "no close frame: {rest:?}");
    server.wait();
}
