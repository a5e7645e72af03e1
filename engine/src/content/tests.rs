use super::*;

fn schema(text: &str) -> Content {
    Content { bytes_max: CHECKED_BYTES_MAX, schema: Some(Schema::parse(text).unwrap()) }
}

fn told(content: &Content, json: &str) -> Result<(), String> {
    told_bytes(content, PayloadKind::Json, json.as_bytes())
}

fn told_bytes(content: &Content, kind: PayloadKind, bytes: &[u8]) -> Result<(), String> {
    let channel = ChannelName::new("chat").unwrap();
    content.check(&channel, kind, bytes).map_err(|refused| {
        let text = refused.to_string();
        assert!(text.len() <= 210 && !text.chars().any(char::is_control), "{text}");
        text
    })
}

#[test]
fn what_is_too_long_is_refused_whatever_it_is() {
    let content = Content { bytes_max: 5, schema: None };
    for kind in [PayloadKind::Json, PayloadKind::Text, PayloadKind::Binary] {
        assert_eq!(told_bytes(&content, kind, b"12345"), Ok(()));
        let wrong = told_bytes(&content, kind, b"123456");
        assert_eq!(wrong.unwrap_err(), "chat takes at most 5 bytes; these are 6");
    }
    let unlimited = Content { bytes_max: 0, schema: None };
    assert_eq!(told_bytes(&unlimited, PayloadKind::Binary, &[0; 100_000]), Ok(()));
}

#[test]
fn what_does_not_fit_is_told_with_its_place_and_not_repeated() {
    let content = schema(
        r#"{"type":"object","required":["text"],"additionalProperties":false,"properties":{
            "text":{"type":"string","maxLength":5,"pattern":"^[a-zä]*$"},
            "tags":{"type":"array","items":{"enum":["a","b"]},"uniqueItems":true},
            "at":{"format":"date-time"},"n":{"multipleOf":0.01,"maximum":9}}}"#,
    );
    for good in [
        r#"{"text":"hällo"}"#,
        r#"{"text":"","tags":["b","a"],"n":8.25}"#,
        r#"{"text":"\u0061","at":"2026-01-02T03:04:05Z"}"#,
    ] {
        assert_eq!(told(&content, good), Ok(()), "{good}");
    }
    for (bad, why) in [
        ("[]", "value is not of type \"object\""),
        ("{}", "\"text\" is a required property"),
        (r#"{"text":"hushed"}"#, "/text: value is longer than 5 characters"),
        (r#"{"text":"HUSH"}"#, "/text: value does not match \"^[a-zä]*$\""),
        (r#"{"text":"","tags":["a","hush"]}"#, "/tags/1: value is not one of "),
        (r#"{"text":"","at":"hush"}"#, "/at: value is not a \"date-time\""),
        (r#"{"text":"","n":1e300}"#, "/n: value is greater than the maximum of 9"),
        (r#"{"text":"","hush\u001b":1}"#, "additional properties are not allowed"),
    ] {
        let wrong = told(&content, bad).unwrap_err();
        let begins = format!("chat does not take this: {why}");
        assert!(wrong.to_lowercase().starts_with(&begins.to_lowercase()), "{wrong}");
        assert!(!wrong.contains("hushed") && !wrong.contains("HUSH"), "{wrong}");
    }
    for kind in [PayloadKind::Text, PayloadKind::Binary] {
        let wrong = told_bytes(&content, kind, br#"{"text":""}"#).unwrap_err();
        assert_eq!(wrong, "chat does not take this: it is not JSON ('data')");
    }
}

#[test]
fn documents_that_readers_could_disagree_about_are_refused() {
    let anything = schema("true");
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let deep = document::DEPTH_MAX as usize;
    assert_eq!(told(&anything, &nested(deep)), Ok(()));
    assert_eq!(told(&anything, "18446744073709551615"), Ok(()));
    for (bad, why) in [
        (&*nested(deep + 1), "more than 32 arrays and objects are in one another at line 1"),
        (&nested(30_000), "more than 32 arrays and objects are in one another at line 1"),
        (&"{\"a\":".repeat(10_000), "more than 32 arrays and objects"),
        (r#"{"a":1,"\u0061":2}"#, "a name stands there twice at line 1"),
        (r#"[{"a":{"b":1,"c":{},"b":1}}]"#, "a name stands there twice at line 1"),
        ("1e999", "number out of range"),
        ("1 2", "trailing characters"),
        ("", "EOF while parsing"),
        ("\"\\ud800\"", "unexpected end of hex escape"),
    ] {
        let wrong = told(&anything, bad).unwrap_err();
        assert!(wrong.contains(why), "{wrong}");
    }
    assert!(told_bytes(&anything, PayloadKind::Json, b"\"\xff\"").is_err(), "not UTF-8");
}

#[test]
fn schemas_that_are_wrong_or_lead_outside_are_refused_with_the_place() {
    for (text, why) in [
        ("{", "it is not JSON: EOF"),
        ("[]", "is not "),
        (r#"{"properties":{"a":{"type":"strin"}}}"#, "/properties/a/type: \"strin\" is not"),
        (r#"{"maxLength":-1}"#, "/maxLength: -1 is less than the minimum of 0"),
        (r#"{"$ref":"https://example.org/a.json"}"#, "https://example.org/a.json"),
        (r#"{"$ref":"file:///etc/passwd"}"#, "file:///etc/passwd"),
        (r#"{"$ref":"other.json"}"#, "other.json"),
        (r#"{"$schema":"https://example.org/mine"}"#, "https://example.org/mine"),
        (r##"{"$ref":"#/$defs/none"}"##, "/$defs/none"),
        (r#"{"pattern":"(?=a)b"}"#, "/pattern: "),
        (r#"{"pattern":"(a)\\1"}"#, "/pattern: "),
        (r#"{"pattern":"("}"#, "/pattern: "),
        (r#"{"pattern":"((a{100}){100}){100}"}"#, "/pattern: "),
        (r#"{"format":"date-tiem"}"#, "date-tiem"),
    ] {
        let wrong = Schema::parse(text).unwrap_err();
        assert!(wrong.contains(why) && wrong.len() <= 210, "{text}: {wrong}");
    }
}

/// A schema whose definitions lead from one to the next, and the last one to what is in an array.
fn row(count: usize, last: &str) -> String {
    let link = |i| format!(r##""{i}":{{"anyOf":[false,{{"$ref":"#/$defs/{}"}}]}}"##, i + 1);
    let links: Vec<String> = (0..count).map(link).collect();
    let links = links.join(",");
    format!(r##"{{"$ref":"#/$defs/0","$defs":{{{links},"{count}":{{"items":{last}}}}}}}"##)
}

#[test]
fn schemas_of_many_references_in_a_row_fit_a_stack() {
    let deep = format!("{}1{}", "[".repeat(32), "]".repeat(32));
    // What a file has room for.
    let content = schema(&row(1300, r#"{"type":"array"}"#));
    assert!(told(&content, &deep).is_ok() && told(&content, "[1]").is_err());
    let content = schema(&row(168, r##"{"$ref":"#"}"##));
    assert_eq!(told(&content, &deep), Ok(()));
    let wrong = Schema::parse(&row(200, r##"{"$ref":"#"}"##)).unwrap_err();
    assert_eq!(wrong, "it refers to itself and has 604 objects and arrays; allowed are 512 then");
}

/// Patterns that take exponential time where they are tried one way after the other.
#[test]
fn patterns_take_no_longer_for_texts_that_nearly_fit() {
    for pattern in ["^(a+)+$", "^(a|a)*$", "^(a|aa)+$", "^(.*a){12}$", "(x+x+)+y"] {
        let content = schema(&format!("{{\"pattern\":{pattern:?}}}"));
        let near = format!("\"{}!\"", if pattern.contains('x') { "x" } else { "a" }.repeat(60_000));
        assert!(told(&content, &near).is_err(), "{pattern}");
    }
}

/// Each level could be looked at twice as often as the one around it.
#[test]
fn schemas_that_refer_to_themselves_take_no_longer_for_what_is_deep() {
    let twice = r##"{"anyOf":[
        {"type":"object","properties":{"a":{"$ref":"#"}},"required":["b"]},
        {"type":"object","properties":{"a":{"$ref":"#"}},"required":["c"]},
        {"type":"array","items":{"$ref":"#"},"maxItems":0}]}"##;
    let content = schema(twice);
    let document = format!("{}1{}", "{\"a\":".repeat(31), "}".repeat(31));
    let wrong = told(&content, &document).unwrap_err();
    assert_eq!(wrong, "chat does not take this: it does not fit the schema of the channel");
    for recursive in [
        r##"{"$defs":{"a":{"items":{"$ref":"#/$defs/b"}},"b":{"not":{"$ref":"#/$defs/a"}}},"$ref":"#/$defs/a"}"##,
        r##"{"$defs":{"a":{"$anchor":"n","items":{"$ref":"#n"}}},"$ref":"#n"}"##,
        r##"{"items":{"$dynamicRef":"#"}}"##,
    ] {
        let Err(wrong) =
            told(&schema(recursive), "[[[[1]]]]").map(|()| told(&schema(recursive), "1"))
        else {
            continue;
        };
        assert!(wrong.ends_with("it does not fit the schema of the channel"), "{wrong}");
    }
    let shared = r##"{"$defs":{"a":{"type":"string"}},"properties":{"x":{"$ref":"#/$defs/a"},"y":{"$ref":"#/$defs/a"}}}"##;
    let wrong = told(&schema(shared), r#"{"x":"","y":1}"#).unwrap_err();
    assert!(wrong.contains("/y: value is not of type"), "one that is used twice is none: {wrong}");
}

#[test]
fn long_documents_come_to_an_end_whatever_they_are_held_against() {
    let long = |item: &str| {
        let items = vec![item; CHECKED_BYTES_MAX as usize / (item.len() + 1) - 1];
        format!("[{}]", items.join(","))
    };
    let documents = [
        long("1"),
        long("{}"),
        long("1e308"),
        long("5e-324"),
        long("[[[[1]]]]"),
        long("\"ä\""),
        format!("\"{}\"", "(".repeat(65_000)),
        format!("\"{}\"", "[a-".repeat(20_000)),
        format!("\"{}\"", "(?:a{9}".repeat(9_000)),
        format!("{{\"{}\":1}}", "k".repeat(65_000)),
    ];
    for text in [
        r#"{"uniqueItems":true}"#,
        r#"{"items":{"multipleOf":0.0001}}"#,
        r#"{"items":{"anyOf":[{"type":"string"},{"anyOf":[{"type":"null"},{"minLength":3,"type":"string"}]}]}}"#,
        r#"{"contains":{"const":"none"}}"#,
        r#"{"format":"regex","type":"string"}"#,
        r#"{"format":"uri","type":"string"}"#,
        r#"{"format":"email","type":"string"}"#,
        r#"{"format":"hostname","type":"string"}"#,
        r#"{"unevaluatedItems":{"type":"string"},"prefixItems":[true]}"#,
        r#"{"propertyNames":{"maxLength":3},"patternProperties":{"^(k+)+$":{"type":"null"}}}"#,
        r#"{"oneOf":[{"items":{"type":"number"}},{"items":{"type":"object"}},{"items":true}]}"#,
    ] {
        let content = schema(text);
        for document in &documents {
            let _ = told(&content, document);
        }
    }
}

/// Why none of many branches fits is as long as all of them together, at each place of a document.
#[test]
fn what_fits_none_of_many_branches_is_refused_without_a_reason() {
    let document = format!("[{}]", vec!["{}"; 19_000].join(","));
    let inner =
        |i| (0..30).map(|j| format!(r#"{{"const":"{i}-{j}"}}"#)).collect::<Vec<_>>().join(",");
    let outer =
        (0..30).map(|i| format!(r#"{{"type":"array","items":{{"anyOf":[{}]}}}}"#, inner(i)));
    let many = format!(r#"{{"anyOf":[{}]}}"#, outer.collect::<Vec<_>>().join(","));
    let required = (0..200).map(|i| format!(r#"{{"type":"object","required":["k{i}"]}}"#));
    let one = format!(r#"{{"oneOf":[{}]}}"#, required.collect::<Vec<_>>().join(","));
    for text in [&*many, &*one, r#"{"not":{"type":"array"}}"#, r#"{"contains":{"type":"string"}}"#]
    {
        let wrong = told(&schema(text), &document).unwrap_err();
        assert_eq!(wrong, "chat does not take this: it does not fit the schema of the channel");
    }
}

#[test]
fn schemas_whose_references_multiply_are_refused() {
    let twice = |levels: u32| {
        let level = |i: u32| {
            let before = i - 1;
            format!(
                r##""a{i}":{{"anyOf":[{{"$ref":"#/$defs/a{before}"}},{{"$ref":"#/$defs/a{before}"}}]}}"##
            )
        };
        let levels_of: Vec<_> = (1..=levels).map(level).collect();
        format!(
            r##"{{"$defs":{{"a0":{{"type":"string"}},{}}},"$ref":"#/$defs/a{levels}"}}"##,
            levels_of.join(",")
        )
    };
    let wrong = Schema::parse(&twice(24)).unwrap_err();
    assert_eq!(wrong, "with what its references lead to it has more than 4096 objects and arrays");
    assert!(told(&schema(&twice(5)), "1").is_err() && told(&schema(&twice(5)), "\"a\"").is_ok());
}
