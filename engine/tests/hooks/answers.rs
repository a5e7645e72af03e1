//! What the application is sent, and what its answers mean.

use hmac::{Hmac, Mac as _};
use ringfeed_engine::control::hooks::{Hook, Outcome};
use ringfeed_engine::message::{Answer, Denied};
use serde_json::json;
use sha2::Sha256;

use super::application::{Application, Does};
use super::shard::*;

#[test]
fn a_connection_is_admitted_as_the_application_says() {
    run(async {
        let application = Application::start(|_, _| {
            Does::ok(
                r#"{"user":"ann","roles":["admin"],"permissions":{"allow":{"subscribe":["a.*"]},
                    "deny":{}},"channels":["a.1"],"expires_at":99,"info":{"n": 1},"else":true}"#,
            )
        })
        .await;
        let shard = Shard::start(&[("connect_url", &application.url("/c?key=1"))]);
        let Answer::Connect(Ok(admitted)) = shard.asks(connect("", 7)).await else { panic!() };
        let identity = &admitted.identity;
        assert_eq!(identity.user.as_deref(), Some("ann"));
        assert_eq!(*identity.attributes, ["role:admin"]);
        assert_eq!(identity.grants.as_ref().unwrap().allow[0].pattern, "a.*");
        assert_eq!(identity.info.as_deref(), Some("{\"n\": 1}"));
        assert!(identity.expires_at == Some(99) && identity.issued_at > 1_600_000_000);
        assert_eq!(admitted.channels, [channel("a.1")]);

        let heard = application.last();
        assert!(heard.head.starts_with("POST /c?key=1 HTTP/1.1\r\n"), "{}", heard.head);
        assert_eq!(heard.field("cookie"), Some("a=1; sid=canary-cookie"));
        assert_eq!(heard.field("x-forwarded-for"), Some("203.0.113.7"));
        assert_eq!(heard.field("accept-encoding"), None);
        let body = heard.json();
        let headers = json!({"cookie": "a=1; sid=canary-cookie", "user-agent": "test"});
        assert_eq!((&body["event"], &body["headers"]), (&json!("connect"), &headers));
        assert_eq!((&body["path"], &body["query"]), (&json!("/ws"), &json!("token=canary-query")));
        assert_eq!(body["connection"], "00030000000000000007");
    });
}

#[test]
fn every_request_is_signed() {
    run(async {
        let application = Application::start(|_, _| Does::ok("{}")).await;
        let shard = Shard::start(&[("connect_url", &application.url("/"))]);
        shard.asks(connect("", 1)).await;
        let heard = application.last();
        let signed = format!("{}.{}", heard.field("x-ringfeed-timestamp").unwrap(), heard.body);
        let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
        mac.update(signed.as_bytes());
        let hex: String =
            mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(heard.field("x-ringfeed-signature"), Some(&*format!("v1={hex}")));
    });
}

#[test]
fn a_no_is_a_no_with_what_is_to_be_said() {
    run(async {
        let application = Application::start(|_, _| Does::ok("{}")).await;
        let url = application.url("/");
        let shard = Shard::start(&[("connect_url", &url), ("subscribe_url", &url)]);
        let long = "x".repeat(300);
        for (status, body, text) in [
            (401, "{\"message\":\"who are you\"}", "who are you"),
            (403, " not you\r\n", "not you"),
            (403, "", ""),
            (401, "{\"message\":1}", ""),
            (403, "<html>no</html>", ""),
            (403, &long, ""),
        ] {
            let body = body.to_owned();
            application.becomes(move |_, _| Does::Answer(status, body.clone()));
            let Answer::Connect(Err(Denied::Refused { status: told, text: said })) =
                shard.asks(connect("", 1)).await
            else {
                panic!("{status}")
            };
            assert_eq!((told, said.to_string()), (status, text.into()));
        }
        application.becomes(|_, _| Does::ok("{\"allow\":false,\"message\":\"full\"}"));
        let Answer::Subscribe(Err(Denied::Refused { status: 403, text })) =
            shard.asks(subscribe("ann", "a")).await
        else {
            panic!()
        };
        assert_eq!(text.to_string(), "full");
        assert_eq!(shard.count(Hook::Connect, Outcome::Refused), 6);
    });
}

#[test]
fn publications_and_messages_are_answered_with_what_the_application_says() {
    run(async {
        let application = Application::start(|_, _| Does::ok("{\"allow\":true}")).await;
        let url = application.url("/");
        let shard = Shard::start(&[("publish_url", &url), ("message_url", &url)]);
        let publishes = || shard.asks(publish("ann", "{\"n\":1}"));
        assert!(matches!(publishes().await, Answer::Publish(Ok(None))));
        assert_eq!(application.last().json()["data"], json!({"n": 1}));
        for (body, expected) in [
            ("{\"allow\":true,\"data\":{\"n\":2}}", "{\"n\":2}"),
            ("{\"allow\":true,\"data\":null}", "null"),
            ("{\"allow\":true,\"text\":\"two\"}", "two"),
            ("{\"allow\":true,\"base64\":\"dHdv\"}", "two"),
        ] {
            application.becomes(move |_, _| Does::ok(body));
            let Answer::Publish(Ok(Some(payload))) = publishes().await else { panic!("{body}") };
            assert_eq!(payload.bytes, expected);
        }
        for (does, expected) in [
            (Does::ok("{\"reply\":{\"n\": 1}}"), Some("{\"n\": 1}")),
            (Does::ok("{\"reply\":null}"), Some("null")),
            (Does::ok("{}"), None),
            (Does::Answer(204, String::new()), None),
        ] {
            let does_so = does.clone();
            application.becomes(move |_, _| does_so.clone());
            let answer = shard.asks(message("ann")).await;
            let Answer::Message(Ok(reply)) = answer else { panic!("{does:?}: {answer:?}") };
            assert_eq!(reply.as_deref(), expected);
        }
        assert_eq!(application.last().json()["message"]["for"], 1);
    });
}

#[test]
fn what_is_no_answer_is_never_a_yes() {
    run(async {
        let application = Application::start(|_, _| Does::ok("{}")).await;
        let url = application.url("/");
        let names = ["connect_url", "subscribe_url", "publish_url", "message_url"];
        let mut keys: Vec<_> = names.iter().map(|name| (*name, &*url)).collect();
        // Whoever answers wrong is not let through where it is let through that nobody answers.
        keys.extend([("on_failure", "allow"), ("retries", "0")]);
        let shard = Shard::start(&keys);
        for body in [
            "",
            "x",
            "[]",
            "[\"ann\"]",
            "null",
            "true",
            "{",
            "{\"user\":7}",
            "{\"user\":\"\"}",
            "{\"user\":[\"a\"]}",
            "{\"roles\":\"admin\"}",
            "{\"roles\":[1]}",
            "{\"roles\":[\"\"]}",
            "{\"permissions\":[]}",
            "{\"permissions\":{\"denny\":{}}}",
            "{\"permissions\":{\"deny\":{\"subscrib\":[\"*\"]}}}",
            "{\"permissions\":{\"deny\":[[\"*\"]]}}",
            "{\"permissions\":{\"allow\":{\"publish\":[\"a b\"]}}}",
            "{\"channels\":[\"a b\"]}",
            "{\"expires_at\":-1}",
            "{\"expires_at\":1.5}",
            "{\"expires_at\":\"1\"}",
            "{\"info\":\"\\ud800\"}",
            "{\"user\":\"a\",\"user\":\"b\"}",
            "{} {}",
            "\u{feff}{}",
        ] {
            application.becomes(move |_, _| Does::ok(body));
            let why = shard.unavailable(connect("ann", 1)).await;
            assert_eq!(why, "the application answered something wrong", "{body}");
        }
        for body in
            ["", "[]", "[true]", "{}", "{\"allow\":1}", "{\"allow\":\"true\"}", "{\"allow\":null}"]
        {
            application.becomes(move |_, _| Does::ok(body));
            shard.unavailable(subscribe("ann", "a")).await;
            shard.unavailable(publish("ann", "1")).await;
        }
        for body in
            ["{\"allow\":true,\"data\":1,\"text\":\"\"}", "{\"allow\":true,\"base64\":\"?\"}"]
        {
            application.becomes(move |_, _| Does::ok(body));
            shard.unavailable(publish("ann", "1")).await;
        }
        for status in [201, 204, 206, 300, 301, 302, 307, 308, 400, 402, 404, 418] {
            application.becomes(move |_, _| Does::Answer(status, String::new()));
            shard.unavailable(connect("ann", 1)).await;
            shard.unavailable(publish("ann", "1")).await;
        }
        // Whatever clients bring it to answer, it is still asked.
        assert_eq!(shard.figures(Hook::Connect).breaker, 0);
    });
}

#[test]
fn what_a_token_says_stays_where_the_application_does_not_say_otherwise() {
    run(async {
        let application = Application::start(|_, _| Does::ok("{\"expires_at\":100}")).await;
        let shard = Shard::start(&[("connect_url", &application.url("/"))]);
        let Answer::Connect(Ok(admitted)) = shard.asks(connect("ann", 1)).await else { panic!() };
        assert_eq!(admitted.identity.user.as_deref(), Some("ann"));
        assert_eq!(application.last().json()["user"], "ann");
        assert_eq!(admitted.identity.expires_at, Some(100));
    });
}

#[test]
fn answers_are_remembered_for_as_long_as_they_say() {
    run(async {
        let application =
            Application::start(|_, _| Does::ok("{\"allow\":true,\"cache_s\":3600}")).await;
        let url = application.url("/");
        let shard = Shard::start(&[("subscribe_url", &url), ("publish_url", &url)]);
        for (user, name) in [("ann", "a"), ("ann", "a"), ("ann", "b"), ("bob", "a"), ("ann", "a")] {
            let answer = shard.asks(subscribe(user, name)).await;
            assert!(matches!(answer, Answer::Subscribe(Ok(_))));
        }
        assert_eq!(application.count(), 3);
        assert_eq!(shard.count(Hook::Subscribe, Outcome::Cached), 2);
        // Another operation is another question.
        for _ in 0..2 {
            shard.asks(publish("ann", "1")).await;
        }
        assert_eq!(application.count(), 4);
        application.becomes(|_, _| Does::ok("{\"allow\":true,\"cache_s\":9,\"data\":2}"));
        for _ in 0..2 {
            let answer = shard.asks(publish("bob", "1")).await;
            assert!(matches!(answer, Answer::Publish(Ok(Some(_)))));
        }
        assert_eq!(application.count(), 6, "what is rewritten is not remembered");
        application.becomes(|_, _| Does::ok("{\"allow\":true,\"cache_s\":9,\"expires_at\":1}"));
        for _ in 0..2 {
            shard.asks(subscribe("eve", "a")).await;
        }
        assert_eq!(application.count(), 8, "what has expired is not remembered");
    });
}
