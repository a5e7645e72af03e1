//! What describes the HTTP API, for programs (`/api/openapi.json`) and for people (`docs/API.md`),
//! agrees with what it does.

use std::collections::BTreeSet;

use super::common::{TestServer, http};
use serde_json::Value;

const API_MD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/API.md");

fn document() -> Value {
    serde_json::to_value(ringfeed_engine::control::openapi()).unwrap()
}

/// Every `(path, method, operation)`.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            all.push((path.clone(), method.clone(), operation.clone()));
        }
    }
    all
}

fn each_ref(value: &Value, see: &mut impl FnMut(&str)) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(to)) = fields.get("$ref") {
                see(to);
            }
            fields.values().for_each(|v| each_ref(v, see));
        }
        Value::Array(items) => items.iter().for_each(|v| each_ref(v, see)),
        _ => {}
    }
}

#[test]
fn the_openapi_document_is_valid() {
    let document = document();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    assert!(document["servers"][0]["url"].is_string(), "{}", document["servers"]);
    each_ref(&document, &mut |to| {
        let pointer = to.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{to} leads nowhere");
    });
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let name = format!("{method} {path}");
        assert!(["get", "post", "patch", "delete"].contains(&method.as_str()), "{name}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{name}");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.contains_key("200"), "{name}");
        for (status, response) in responses {
            let known = status == "default"
                || (status.len() == 3 && status.ends_with("XX"))
                || status.parse::<u16>().is_ok_and(|s| (100..600).contains(&s));
            assert!(known, "{name}: {status}");
            assert!(response["description"].is_string(), "{name} {status}");
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let of = format!("{name}: {parameter}");
            assert!(parameter["schema"].is_object(), "{of}");
            match parameter["in"].as_str().unwrap() {
                "query" => {}
                "path" => {
                    let placed = format!("{{{}}}", parameter["name"].as_str().unwrap());
                    assert!(path.contains(&placed) && parameter["required"] == true, "{of}");
                }
                other => panic!("{of}: {other}"),
            }
        }
        let guarded = path.starts_with("/api/");
        let secured = operation["security"].as_array().is_some_and(|s| !s.is_empty());
        assert!(secured || !guarded || path == "/api/openapi.json", "{name}");
    }
    let schemes = document["components"]["securitySchemes"].as_object().unwrap();
    assert_eq!(schemes["bearer"]["scheme"], "bearer");
    assert_eq!(schemes["key"]["in"], "header");
    let required: BTreeSet<_> = operations(&document)
        .iter()
        .flat_map(|(path, _, o)| {
            let all = o["parameters"].as_array().cloned().unwrap_or_default();
            let needed = all.into_iter().filter(|p| p["required"] == true);
            needed.map(|p| format!("{path} {}", p["name"].as_str().unwrap())).collect::<Vec<_>>()
        })
        .collect();
    let needed = [
        "/api/connections user",
        "/api/history channel",
        "/api/presence channel",
        "/api/rooms channel",
    ]
    .map(str::to_owned);
    assert_eq!(required, BTreeSet::from(needed));
}

/// One example of the page: a curl command, and the answer it shows.
struct Example {
    command: String,
    status: u16,
    answer: String,
}

fn examples() -> Vec<Example> {
    let page = std::fs::read_to_string(API_MD).unwrap();
    let mut all = Vec::new();
    let mut rest = page.as_str();
    while let Some((_, behind)) = rest.split_once("```sh example\n") {
        let (command, behind) = behind.split_once("```\n").unwrap();
        let (_, behind) = behind.split_once("```json ").unwrap();
        let (status, behind) = behind.split_once('\n').unwrap();
        let (answer, behind) = behind.split_once("```\n").unwrap();
        all.push(Example {
            command: command.trim().to_owned(),
            status: status.parse().unwrap(),
            answer: answer.trim().to_owned(),
        });
        rest = behind;
    }
    all
}

/// Words of a shell command with single quotes.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for (i, part) in command.split('\'').enumerate() {
        if i % 2 == 1 {
            words.last_mut().unwrap().push_str(part);
            continue;
        }
        for (n, word) in part.split(char::is_whitespace).enumerate() {
            if n > 0 && !words.last().unwrap().is_empty() {
                words.push(String::new());
            }
            words.last_mut().unwrap().push_str(word);
        }
    }
    words
}

/// The same fields with values of the same types; values differ from run to run.
fn same_shape(shown: &Value, got: &Value) -> bool {
    match (shown, got) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same_shape(v, w)))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(v, w)| same_shape(v, w))
        }
        (Value::Number(_), Value::Number(_))
        | (Value::String(_), Value::String(_))
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Null, Value::Null) => true,
        _ => false,
    }
}

#[test]
fn the_examples_of_the_page_are_answered_as_it_says() {
    let server = TestServer::start(
        "[[channels]]\npattern = \"news\"\nhistory_size = 100\npresence = \"full\"\n[[channels]]\npattern = \"club.*\"\nroom = true\n[[channels]]\npattern = \"*\"\n",
        &["server.shards=1", "api.keys=KEY"],
    );
    let examples = examples();
    assert!(examples.len() > 8);
    for Example { command, status, answer } in examples {
        let mut words = words(&command).into_iter();
        assert_eq!(words.next().as_deref(), Some("curl"), "{command}");
        let (mut headers, mut body, mut target) = (String::new(), None, String::new());
        let mut method = None;
        while let Some(word) = words.next() {
            match word.as_str() {
                "-H" => headers.push_str(&format!("{}\r\n", words.next().unwrap())),
                "-X" => method = words.next(),
                "-d" | "--data-binary" => body = words.next(),
                url => target = url.strip_prefix("http://127.0.0.1:9801").unwrap().to_owned(),
            }
        }
        let implied = if body.is_some() { "POST" } else { "GET" };
        let method = method.as_deref().unwrap_or(implied);
        let body = body.unwrap_or_default();
        let (got_status, got) = http(server.internal, method, &target, &headers, &body);
        assert_eq!(got_status, status, "{command}\n{got}");
        let parse = |text: &str| -> Vec<Value> {
            serde_json::Deserializer::from_str(text).into_iter().map(Result::unwrap).collect()
        };
        let (shown, got) = (parse(&answer), parse(&got));
        assert!(
            shown.len() == got.len() && shown.iter().zip(&got).all(|(a, b)| same_shape(a, b)),
            "{command}\nshown: {shown:?}\ngot:   {got:?}"
        );
    }
}

#[test]
fn the_page_has_every_route_and_every_error() {
    let page = std::fs::read_to_string(API_MD).unwrap();
    for (path, method, operation) in operations(&document()) {
        let title = format!("`{} {path}`", method.to_uppercase());
        assert!(page.contains(&title), "{title} is not on the page");
        let row = page.lines().find(|line| line.starts_with('|') && line.contains(&title)).unwrap();
        let ways = operation["security"].as_array().cloned().unwrap_or_default();
        for scope in ways.iter().flat_map(|way| way.as_object().unwrap().values()) {
            let [scope] = &scope.as_array().unwrap()[..] else { panic!("{title}: {scope}") };
            let scope = format!("| `{}` |", scope.as_str().unwrap());
            assert!(row.ends_with(&scope), "{title} needs {scope}, and the page says {row}");
        }
    }
    for word in ringfeed_engine::control::error_words() {
        assert!(page.contains(&format!("| `{word}` |")), "{word} is not on the page");
    }
}
