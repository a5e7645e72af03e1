//! The routes under `/v1`.

use serde_json::{Value, json};

use super::process::{KEY, PATIENCE, Registry, ringfeed, text};

fn node(id: &str, epoch: &str) -> String {
    json!({"id": id, "url": format!("http://{id}:9800"), "epoch": epoch}).to_string()
}

fn ids(list: &Value) -> Vec<&str> {
    list["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap()).collect()
}

#[test]
fn nodes_come_live_and_go() {
    let registry = Registry::start(&[]);
    let (status, told) = registry.ask("POST", "/v1/nodes", &node("a", "1"));
    assert_eq!((status, &told["replaced"]), (200, &json!(false)), "{told}");
    assert_eq!(told["node_timeout_ms"], 6_000);
    let (_, again) = registry.ask("POST", "/v1/nodes", &node("a", "1"));
    assert_eq!(again, told, "announcing the same changes nothing");
    let (_, replaced) = registry.ask("POST", "/v1/nodes", &node("a", "2"));
    assert_eq!(replaced["replaced"], true, "{replaced}");
    assert!(replaced["nodes_version"].as_u64() > told["nodes_version"].as_u64());
    let (status, old) = registry.ask("POST", "/v1/nodes/a/heartbeat", r#"{"epoch":"1"}"#);
    assert_eq!((status, &old["error"]), (409, &json!("replaced")), "{old}");
    let beat = r#"{"epoch":"2","state":"draining","metrics":{"clients":7}}"#;
    let (status, heard) = registry.ask("POST", "/v1/nodes/a/heartbeat", beat);
    assert_eq!(status, 200, "{heard}");
    let (_, list) = registry.ask("GET", "/v1/nodes?metrics=true", "");
    let seen = &list["nodes"][0];
    assert_eq!(list["version"], heard["nodes_version"]);
    assert_eq!((&seen["state"], &seen["metrics"]), (&json!("draining"), &json!({"clients": 7})));
    assert_eq!(
        (&seen["epoch"], &seen["weight"], &seen["live"]),
        (&json!("2"), &json!(100), &json!(true))
    );
    let known = format!("/v1/nodes?known={}", list["version"]);
    assert_eq!(registry.ask("GET", &known, "").0, 304);
    let tag = format!("X-API-Key: {KEY}\r\nIf-None-Match: \"{}\"\r\n", list["version"]);
    assert_eq!(registry.ask_with("GET", "/v1/nodes", &tag, "").0, 304);
    let (_, other) = registry.ask("DELETE", "/v1/nodes/a?epoch=1", "");
    assert_eq!(other["left"], false, "one that was replaced does not take its successor with it");
    let (_, left) = registry.ask("DELETE", "/v1/nodes/a?epoch=2", "");
    assert_eq!(left["left"], true);
    let (status, gone) = registry.ask("POST", "/v1/nodes/a/heartbeat", "");
    assert_eq!((status, &gone["error"]), (404, &json!("not_found")), "{gone}");
    assert_eq!(ids(&registry.ask("GET", &known, "").1), Vec::<&str>::new());
}

#[test]
fn who_is_silent_is_listed_only_if_all_are_asked_for() {
    let registry = Registry::start(&["--node-timeout-ms", "100"]);
    let (_, told) = registry.ask("POST", "/v1/nodes", &node("a", "1"));
    let list = registry.wait("/v1/nodes", |list| ids(list).is_empty());
    assert!(list["version"].as_u64() > told["nodes_version"].as_u64(), "the version tells of it");
    let (_, all) = registry.ask("GET", "/v1/nodes?all=true", "");
    assert_eq!((ids(&all), &all["nodes"][0]["live"]), (vec!["a"], &json!(false)), "{all}");
    assert_eq!(registry.ask("POST", "/v1/nodes/a/heartbeat", "{}").0, 200);
}

#[test]
fn channels_have_a_version_that_goes_up() {
    let registry = Registry::start(&["--channels-max", "2"]);
    let put = |body: Value| registry.ask("PUT", "/v1/channels", &body.to_string());
    let rule = json!({"publish": "anyone", "history_size": 100});
    let (status, first) =
        put(json!({"name": "prices.*", "allowed_nodes": ["eu-*", "us-1"], "rule": rule}));
    assert_eq!((status, &first["changed"]), (200, &json!(true)), "{first}");
    let (_, second) = put(json!({"name": "news"}));
    assert!(second["version"].as_u64() > first["version"].as_u64());
    let (_, same) = put(json!({"name": "news", "allowed_nodes": ["*"]}));
    assert_eq!(same, json!({"changed": false, "version": second["version"]}));
    let (status, full) = put(json!({"name": "third"}));
    assert_eq!((status, &full["error"]), (503, &json!("limit_reached")), "{full}");
    let of = |node: &str| {
        let (_, list) = registry.ask("GET", &format!("/v1/channels?node={node}"), "");
        let channels = list["channels"].as_array().unwrap().clone();
        channels
            .into_iter()
            .map(|entry| entry["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (of("eu-7"), of("us-1"), of("us-10")),
        (
            vec!["news".into(), "prices.*".into()],
            vec!["news".into(), "prices.*".into()],
            vec!["news".to_owned()],
        )
    );
    let (_, list) = registry.ask("GET", "/v1/channels", "");
    assert_eq!((&list["channels"][1]["rule"], &list["version"]), (&rule, &second["version"]));
    assert_eq!(registry.ask("GET", &format!("/v1/channels?known={}", list["version"]), "").0, 304);
    let (_, removed) = registry.ask("DELETE", "/v1/channels?name=prices.*", "");
    assert_eq!(removed["changed"], true);
    let (_, nothing) = registry.ask("DELETE", "/v1/channels?name=prices.*", "");
    assert_eq!(nothing["changed"], false);
}

#[test]
fn many_announce_at_once_and_none_is_lost() {
    let registry = Registry::start(&["--nodes-max", "50"]);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..60)
            .map(|n| {
                let registry = &registry;
                scope.spawn(move || {
                    registry.ask("POST", "/v1/nodes", &node(&format!("n{n}"), "1")).0
                })
            })
            .collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|&&status| status == 200).count(), 50, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|&&status| status == 503).count(), 10, "{statuses:?}");
    let (_, list) = registry.ask("GET", "/v1/nodes", "");
    assert_eq!(ids(&list).len(), 50);
    let told: Vec<Value> = std::thread::scope(|scope| {
        let ask = || registry.ask("POST", "/v1/nodes", &node(ids(&list)[0], "2")).1;
        let asked: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let replaced = told.iter().filter(|told| told["replaced"] == true).count();
    assert_eq!(replaced, 1, "only the first of them replaces: {told:?}");
}

#[test]
fn whoever_runs_it_can_look_with_the_command_line() {
    let registry = Registry::start(&[]);
    registry.ask("POST", "/v1/nodes", &node("eu-1", "1"));
    let key = registry.path("key");
    let ask =
        ["--registry", &registry.url(), "--key-file", key.to_str().unwrap()].map(str::to_owned);
    let run = |args: &[&str]| {
        let ask = ask.iter().map(String::as_str);
        let all: Vec<&str> =
            ["registry"].into_iter().chain(args.iter().copied()).chain(ask).collect();
        let output = ringfeed(&all);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    assert!(run(&["nodes"]).contains("http://eu-1:9800"));
    let rule = registry.path("rule.toml");
    std::fs::write(&rule, "publish = \"anyone\"\n").unwrap();
    let rule = rule.to_str().unwrap();
    assert!(
        run(&["channels", "set", "news", "--nodes", "eu-1,us-*", "--rule-file", rule])
            .starts_with("changed")
    );
    assert!(run(&["channels", "list"]).contains("eu-1,us-*  {\"publish\":\"anyone\"}"));
    let list: Value =
        serde_json::from_str(&run(&["channels", "list", "--json", "--node", "us-2"])).unwrap();
    assert_eq!(list["channels"][0]["name"], "news");
    assert!(run(&["channels", "remove", "news"]).starts_with("changed"));
    let mut wrong = super::process::command();
    wrong.args(["registry", "nodes", "--registry", &registry.url()]);
    let output = wrong.env("RINGFEED_REGISTRY_KEY", "wrong-key-of-somebody").output().unwrap();
    assert!(!output.status.success());
    let said = text(&output.stderr);
    assert!(said.contains("401") && !said.contains("wrong-key"), "{said}");
}

#[test]
fn it_ends_when_it_is_told_to_and_what_is_under_way_is_answered() {
    let mut registry = Registry::start(&[]);
    registry.ask("POST", "/v1/nodes", &node("a", "1"));
    let address = registry.address;
    let mut half = std::net::TcpStream::connect(address).unwrap();
    use std::io::{Read as _, Write as _};
    half.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = node("b", "1");
    let length = body.len();
    write!(
        half,
        "POST /v1/nodes HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\nContent-Length: {length}\r\n\
        Expect: 100-continue\r\n\r\n"
    )
    .unwrap();
    half.read_exact(&mut [0; 12]).unwrap();
    registry.signal("TERM");
    registry.wait_line("the registry ends");
    half.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    half.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("HTTP/1.1 200"), "{answer}");
    assert!(registry.terminate());
}
