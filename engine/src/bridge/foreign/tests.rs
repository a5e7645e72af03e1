use proptest::prelude::*;
use ringfeed_protocol::command::PayloadKind;

use super::*;
use crate::config::Sources;
use crate::message::StoredPayload;

const NOW_MS: u64 = 1_747_050_860_007;

/// With these entries, a name, a channel and the rest each; channels whose names begin with `n.` are about nobody.
fn config(entries: &[(&str, &str, &str)]) -> Config {
    let mut file = String::from(
        "[server]\nnode_id = \"node\"\n[redis]\nurl = \"redis://localhost\"\n[api]\nbody_bytes_max = 2000\n\
         [[channels]]\npattern = \"told.*\"\nsender = true\n[[channels]]\npattern = \"short\"\nmessage_bytes_max = 5\n",
    );
    for first in ["m", "f", "p", "r", "s", "v"] {
        file += &format!("[[channels]]\npattern = \"{first}*\"\n");
    }
    for (name, channel, more) in entries {
        file += &format!("[[redis_channels]]\nname = {name:?}\nchannel = {channel:?}\n{more}\n");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, file).unwrap();
    let sources = Sources { file: Some(&path), ..Sources::default() };
    Config::load(&sources).unwrap()
}

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

/// What a node tells others of a publication.
fn shared(instance: u64, kind: PayloadKind, bytes: &[u8]) -> Bytes {
    let payload = StoredPayload { kind, bytes: Bytes::copy_from_slice(bytes) };
    item::encode_shared(instance, 1, &Outgoing { payload, meta: None, except: None, wanted: None })
}

/// What comes of something that was published in Redis: channel, kind and payload, a copy, or a refusal.
fn heard(foreign: &mut Foreign, config: &Config, name: &str, payload: &[u8]) -> String {
    let payload = Bytes::copy_from_slice(payload);
    match foreign.heard(name.as_bytes(), &payload, config, NOW_MS) {
        Some(Ok(Heard::Post(post))) => {
            let Post { channel, payload, .. } = *post;
            let text = String::from_utf8_lossy(&payload.bytes);
            format!("{channel} {:?} {text}", payload.kind)
        }
        Some(Ok(Heard::Copy)) => "copy".into(),
        Some(Err(why)) => format!("refused: {why}"),
        None => "nobody's".into(),
    }
}

#[test]
fn payloads_pass_as_they_are_and_say_what_they_are() {
    let config = config(&[("realtime:*", "m:*", ""), ("notifications", "fixed", "")]);
    let mut foreign = Foreign::new(&config, 1);
    for (name, payload, expected) in [
        ("realtime:a", &b"{\"b\": [1.50]}\n"[..], "m:a Json {\"b\": [1.50]}\n"),
        ("realtime:a", b"Hello", "m:a Text Hello"),
        ("realtime:a", b"", "m:a Text "),
        ("realtime:a", b"\"\\ud800\"", "m:a Text \"\\ud800\""),
        ("realtime:a", b"\xff", "m:a Binary \u{fffd}"),
        ("realtime:a b:50%*", b"1", "m:a%20b:50%25%2A Json 1"),
        ("notifications", b"{}", "fixed Json {}"),
        ("notifications2", b"{}", "nobody's"),
        ("realtime", b"{}", "nobody's"),
    ] {
        assert_eq!(heard(&mut foreign, &config, name, payload), expected);
    }
    assert!(foreign.heard(b"realtime:\xff", &Bytes::new(), &config, 0).is_none());
}

#[test]
fn what_cannot_be_published_is_refused_with_the_reason() {
    let config = config(&[
        ("realtime:*", "*", ""),
        ("ws.*", "f.*", "format = \"fluxus\""),
        ("notifications", "p.*", "format = \"portico\""),
    ]);
    let mut foreign = Foreign::new(&config, 1);
    let long = "x".repeat(300);
    for (name, payload, why) in [
        ("realtime:", "1", "nothing stands for the *"),
        ("realtime:nobody", "1", "no rule of [[channels]] is about nobody"),
        (&*format!("realtime:{long}"), "1", "channel name has 300 bytes"),
        (
            "realtime:mine",
            &*long.repeat(7),
            "it has 2100 bytes; allowed are 2000 (api.body_bytes_max)",
        ),
        ("realtime:short", "123456", "takes at most 5 bytes"),
        ("ws.news", "Hello", "it is no JSON object"),
        ("ws.", "{\"data\":1}", "nothing stands for the *"),
        ("notifications", "{\"target\":\"session\"}", "its 'sessionId' is missing"),
    ] {
        let said = heard(&mut foreign, &config, name, payload.as_bytes());
        assert!(said.starts_with("refused: ") && said.contains(why), "{name}: {said}");
    }
}

#[test]
fn frames_of_others_are_taken_out_of_their_envelopes() {
    let config = config(&[
        ("ws.*", "told.*", "format = \"fluxus\""),
        ("notifications", "p.*", "format = \"portico\""),
        ("session_messages", "p.*", "format = \"portico\""),
    ]);
    let mut foreign = Foreign::new(&config, 1);
    let frame = r#"{"type":"message","channel":"a b","data":{"m":1},"_metadata":{"timestamp":1767000000,"publisher":3,"origin_server":"h:1"}}"#;
    let payload = Bytes::from_static(frame.as_bytes());
    let Some(Ok(Heard::Post(post))) = foreign.heard(b"ws.other", &payload, &config, NOW_MS) else {
        panic!("it is a message");
    };
    // What the frame says counts, as in the original.
    assert_eq!((&*post.channel, &post.payload.bytes[..]), ("told.a%20b", &b"{\"m\":1}"[..]));
    let meta = post.by.unwrap().meta.unwrap();
    assert_eq!((meta.time_ms, meta.number, meta.user), (1_767_000_000_000, 3, None));
    let Some(Ok(Heard::Post(post))) =
        foreign.heard(b"ws.other", &Bytes::from_static(b"{\"data\":1}"), &config, NOW_MS)
    else {
        panic!("it is a message");
    };
    assert_eq!((&*post.channel, post.by.unwrap().meta.unwrap().time_ms), ("told.other", NOW_MS));
    assert_eq!(
        heard(&mut foreign, &config, "notifications", br#"{"message":"m"}"#),
        "p.all Json {\"message\":\"m\",\"source\":\"redis\",\"received_at\":\"2025-05-12T11:54:20+00:00\"}"
    );
    let targeted = br#"{"type":"session_targeted","sessionId":"a b","data":{"x":1}}"#;
    assert_eq!(
        heard(&mut foreign, &config, "session_messages", targeted),
        "p.session_a%20b Json {\"x\":1,\"roomId\":\"session_a b\"}"
    );
}

#[test]
fn redis_is_asked_for_what_comes_in_and_nothing_in_a_name_is_a_wildcard() {
    let config = config(&[
        ("in:*", "m.*", ""),
        ("o[u]t", "out", "direction = \"out\""),
        ("both?", "p", "direction = \"both\""),
        ("s[a-z]\\*:x?", "r.*", "direction = \"both\""),
    ]);
    let expected = Subscriptions {
        names: vec!["both?".into()],
        patterns: vec!["in:*".into(), "s\\[a-z\\]\\\\*:x\\?".into()],
    };
    assert_eq!(Foreign::new(&config, 1).subscriptions(), expected);
}

#[test]
fn copies_are_what_other_programs_know() {
    let config = config(&[
        ("realtime:*", "m.*", "direction = \"both\""),
        ("ws.*", "m.*", "format = \"fluxus\"\ndirection = \"out\""),
        ("in:*", "p.*", ""),
    ]);
    let foreign = Foreign::new(&config, 0xabc);
    let copies = |name: &str, kind, bytes: &[u8]| {
        let copies = foreign.copies(&channel(name), &shared(0xabc, kind, bytes), NOW_MS);
        let shown = |Copy { name, payload }| (name, String::from_utf8(payload.to_vec()).unwrap());
        copies.into_iter().map(shown).collect::<Vec<_>>()
    };
    let frame = r#"{"type":"message","channel":"a b","data":{"n":1},"_metadata":{"timestamp":1747050860,"publisher":0,"origin_server":"node:0000000000000abc"}}"#;
    let expected =
        [("realtime:a b".into(), "{\"n\":1}".into()), ("ws.a b".to_owned(), frame.to_owned())];
    assert_eq!(copies("m.a%20b", PayloadKind::Json, b"{\"n\":1}"), expected);
    assert_eq!(copies("m.x", PayloadKind::Text, b"Hello")[0].1, "Hello");
    assert!(copies("p.x", PayloadKind::Json, b"1").is_empty(), "it comes in alone");
}

#[test]
fn a_frame_of_this_process_is_never_taken_for_anothers() {
    let config = config(&[("ws.*", "f.*", "format = \"fluxus\"\ndirection = \"both\"")]);
    let mut foreign = Foreign::new(&config, 0xabc);
    let own = foreign.copies(&channel("f.x"), &shared(0xabc, PayloadKind::Json, b"1"), NOW_MS);
    // Given to a connection that is gone, and done nevertheless.
    foreign.lost();
    assert_eq!(heard(&mut foreign, &config, "ws.x", &own[0].payload), "copy");
    let mut other = Foreign::new(&config, 0xdef);
    assert_eq!(heard(&mut other, &config, "ws.x", &own[0].payload), "f.x Json 1");
}

/// What is done in Redis, in order.
#[derive(Debug, Clone)]
enum Done {
    /// A node publishes on a channel of ringfeed's, and its copies go out.
    Node(u64, u8, u8),
    /// Another program publishes on a channel of Redis.
    Other(u8, u8),
}

fn done() -> impl Strategy<Value = Vec<Done>> {
    // Few channels and payloads, so that many are alike.
    let node = (0..3u64, 0..3u8, 0..3u8).prop_map(|(node, on, what)| Done::Node(node, on, what));
    let other = (0..3u8, 0..3u8).prop_map(|(on, what)| Done::Other(on, what));
    proptest::collection::vec(prop_oneof![node, other], 0..40)
}

proptest! {
    #[test]
    fn every_publication_comes_once_on_every_node(done in done()) {
        let config = config(&[
            ("realtime:*", "m.*", "direction = \"both\""),
            ("ws.*", "f.*", "format = \"fluxus\"\ndirection = \"both\""),
            ("copy:*", "m.*", "direction = \"out\""),
        ]);
        const CHANNELS: [(&str, &str); 3] = [("m.1", "realtime:1"), ("m.2", "realtime:2"), ("f.1", "ws.1")];
        const PAYLOADS: [&str; 3] = ["1", "{\"data\":1}", "{\"data\":{\"data\":2}}"];
        let mut nodes: Vec<Foreign> = (0..3).map(|node| Foreign::new(&config, node)).collect();
        // What is heard on one of ringfeed's channels by each node, and what was published for it.
        let mut came = vec![Vec::new(); 3];
        let mut expected = vec![Vec::new(); 3];
        let mut hears = |nodes: &mut Vec<Foreign>, name: &str, payload: &[u8], time: u64| {
            for (node, came) in nodes.iter_mut().zip(&mut came) {
                let payload = Bytes::copy_from_slice(payload);
                match node.heard(name.as_bytes(), &payload, &config, time) {
                    Some(Ok(Heard::Post(post))) => came.push((post.channel, post.payload.bytes)),
                    Some(Ok(Heard::Copy)) | None => {}
                    Some(Err(why)) => panic!("{name}: {why}"),
                }
            }
        };
        for (time, done) in (0..).zip(done) {
            match done {
                Done::Node(by, on, what) => {
                    let (on, what) = (CHANNELS[usize::from(on)].0, PAYLOADS[usize::from(what)]);
                    let told = shared(by, PayloadKind::Json, what.as_bytes());
                    let copies = nodes[by as usize].copies(&channel(on), &told, time);
                    nodes.iter_mut().for_each(|node| node.shared(&channel(on), &told));
                    for Copy { name, payload } in copies {
                        hears(&mut nodes, &name, &payload, time);
                    }
                }
                Done::Other(on, what) => {
                    let ((on, name), what) = (CHANNELS[usize::from(on)], PAYLOADS[usize::from(what)]);
                    // The first of them is no frame, and a payload of the others.
                    let data = if on.starts_with("f.") {
                        let (what, data) = [("{\"data\":1}", "1"), ("{\"data\":1}", "1"),
                            ("{\"data\":{\"data\":2}}", "{\"data\":2}")]
                            [PAYLOADS.iter().position(|own| *own == what).unwrap()];
                        hears(&mut nodes, name, what.as_bytes(), time);
                        data
                    } else {
                        hears(&mut nodes, name, what.as_bytes(), time);
                        what
                    };
                    let own = (channel(on), Bytes::from_static(data.as_bytes()));
                    expected.iter_mut().for_each(|all| all.push(own.clone()));
                }
            }
        }
        prop_assert_eq!(came, expected);
        prop_assert!(nodes.iter().all(|node| node.echoes.is_empty()));
    }

    #[test]
    fn whatever_comes_is_translated_or_refused(
        name in "(realtime:|ws\\.|notifications|session_messages|room_messages|x).{0,5}",
        payload in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..64),
            "\\{\"(type|data|channel|target|roomId|sessionId|_metadata)\":(\"session_targeted\"|\"session\"|\\{\\}|[0-9]|null)(,\"(type|data|sessionId|roomId)\":(\"x\"|\\{\"a\":1\\}|7))?\\}".prop_map(String::into_bytes),
        ],
    ) {
        let config = config(&[
            ("realtime:*", "*", "direction = \"both\""),
            ("ws.*", "f.*", "format = \"fluxus\"\ndirection = \"both\""),
            ("notifications", "p.*", "format = \"portico\""),
            ("session_messages", "p.*", "format = \"portico\""),
            ("room_messages", "p.*", "format = \"portico\""),
        ]);
        let mut foreign = Foreign::new(&config, 1);
        let payload = Bytes::from(payload);
        if let Some(Ok(Heard::Post(post))) = foreign.heard(name.as_bytes(), &payload, &config, 7) {
            // What it is said to be it is: others go by that.
            let stored = Outgoing { payload: post.payload, meta: None, except: None, wanted: None };
            prop_assert!(item::decode(&item::encode(&stored)).is_some(), "{:?}", stored);
        }
        // What nodes tell each other is from outside, too.
        foreign.shared(&channel("f.x"), &payload);
        let _ = foreign.copies(&channel("m"), &payload, 7);
    }
}
