//! Publications held against what channels take: what is accepted is JSON of bounded depth, and a refusal is short and
//! printable, whatever came.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfeed_engine::content::{Content, Schema};
use ringfeed_protocol::ChannelName;
use ringfeed_protocol::command::PayloadKind;

const SCHEMAS: [&str; 4] = [
    "true",
    r#"{"type":"object","required":["a"],"additionalProperties":{"type":["string","null"],"maxLength":3},
        "properties":{"a":{"pattern":"^(a|aa)+$"},"b":{"uniqueItems":true,"items":{"multipleOf":0.01}}}}"#,
    r##"{"anyOf":[{"type":"number"},{"type":"array","items":{"$ref":"#"}},
        {"type":"object","additionalProperties":{"$ref":"#"},"propertyNames":{"format":"uri"}}]}"##,
    r#"{"oneOf":[{"format":"date-time"},{"format":"email"},{"format":"regex"},{"format":"hostname"}],
        "contains":{"const":1},"unevaluatedItems":false,"prefixItems":[{"enum":[1,[],"x"]}]}"#,
];

thread_local! {
    static CONTENTS: Vec<Content> = SCHEMAS
        .iter()
        .map(|text| Content { bytes_max: 65_536, schema: Some(Schema::parse(text).expect("a schema")) })
        .collect();
}

fuzz_target!(|bytes: &[u8]| {
    let channel = ChannelName::new("a").expect("a name");
    CONTENTS.with(|contents| {
        for content in contents {
            match content.check(&channel, PayloadKind::Json, bytes) {
                Ok(()) => {
                    serde_json::from_slice::<serde_json::Value>(bytes).expect("JSON");
                    assert!(bytes.len() <= 65_536);
                }
                Err(refused) => {
                    let text = refused.to_string();
                    assert!(text.len() < 400, "{} bytes: {text}", text.len());
                    assert!(!text.chars().any(char::is_control), "{text:?}");
                }
            }
            content.check(&channel, PayloadKind::Text, bytes).expect_err("no JSON");
        }
    });
});
