//! What nodes of DistributedWebSocket post to each other: a broadcast, with the `origin` that says that no node is to post it on.

use crate::command::PayloadKind;
use crate::dialect::object::quoted;
use crate::dialect::raw;

/// Whose a broadcast is that goes to other nodes.
#[derive(Debug, Clone, Copy)]
pub struct By<'a> {
    /// The key that all nodes have.
    pub key: &'a str,
    /// The node that it was published on.
    pub origin: &'a str,
    /// What that node has in common with those that are told of it otherwise. The original does not look at it.
    pub links: Option<&'a str>,
}

/// Writes what is to be posted; `None` where nodes would refuse the message: they take what JavaScript takes for false for none.
pub fn write(channel: &str, (kind, bytes): (PayloadKind, &[u8]), by: By) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(bytes.len() + 2);
    raw::write_json(&mut message, kind, bytes);
    if !std::str::from_utf8(&message).is_ok_and(is_truthy) {
        return None;
    }
    let (channel, key, origin) = (quoted(channel), quoted(by.key), quoted(by.origin));
    let mut body = format!("{{\"channel\":{channel},\"message\":").into_bytes();
    body.append(&mut message);
    body.extend_from_slice(format!(",\"apiKey\":{key},\"origin\":{origin}").as_bytes());
    if let Some(links) = by.links {
        body.extend_from_slice(format!(",\"links\":{}", quoted(links)).as_bytes());
    }
    body.push(b'}');
    Some(body)
}

/// Whether JavaScript takes a JSON value for true.
pub fn is_truthy(json: &str) -> bool {
    match json {
        "null" | "false" | "\"\"" => false,
        json => json.parse::<f64>() != Ok(0.0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const BY: By = By { key: "k\"", origin: "node-1", links: None };

    #[test]
    fn what_is_true_is_what_javascript_takes_for_true() {
        for json in ["null", "false", "\"\"", "0", "-0", "0.0", "0e7", "0.00"] {
            assert!(!is_truthy(json), "{json}");
            assert_eq!(write("c", (PayloadKind::Json, json.as_bytes()), BY), None, "{json}");
        }
        for json in ["true", "1", "-1", "\"0\"", "\" \"", "[]", "{}", "0.1", "1e-9"] {
            assert!(is_truthy(json), "{json}");
        }
    }

    #[test]
    fn text_and_bytes_are_strings() {
        let written = |kind, bytes: &[u8], by| {
            serde_json::from_slice::<Value>(&write("a \"b", (kind, bytes), by).unwrap()).unwrap()
        };
        assert_eq!(
            written(PayloadKind::Text, b"x\n", BY),
            json!({"channel":"a \"b","message":"x\n","apiKey":"k\"","origin":"node-1"})
        );
        let by = By { links: Some("cluster"), ..BY };
        let binary = written(PayloadKind::Binary, &[0xff], by);
        assert_eq!((&binary["message"], &binary["links"]), (&json!("/w=="), &json!("cluster")));
    }

    proptest! {
        #[test]
        fn any_json_is_handed_on_as_it_stands(texts: Vec<String>, number: i64) {
            let value = json!({"a": texts, "b": number, "c": null});
            let body = write("c", (PayloadKind::Json, value.to_string().as_bytes()), BY).unwrap();
            let read: Value = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(&read["message"], &value);
        }
    }
}
