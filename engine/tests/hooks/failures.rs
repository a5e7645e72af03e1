//! Applications that do wrong: whatever they do, a question has one answer, in its time, and it is no yes.

use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use ringfeed_engine::control::hooks::{Hook, Outcome, SystemNames};
use ringfeed_engine::message::{Answer, Question};
use tokio::net::TcpListener;

use super::application::{Application, Does};
use super::shard::*;

/// A name that leads wherever a test wants.
struct Leads(Vec<SocketAddr>);

impl Resolve for Leads {
    fn resolve(&self, _: Name) -> Resolving {
        let all: Addrs = Box::new(self.0.clone().into_iter());
        Box::pin(std::future::ready(Ok(all)))
    }
}

/// Where nobody listens.
async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[test]
fn an_application_that_is_down_is_unavailable() {
    run(async {
        let url = format!("http://{}/", nowhere().await);
        let shard = Shard::start(&[("connect_url", &url), ("publish_url", &url)]);
        assert_eq!(shard.unavailable(connect("", 1)).await, "the application could not be asked");
        shard.unavailable(publish("ann", "1")).await;
        // Nothing was sent, so that even a publication is tried again.
        assert_eq!(shard.count(Hook::Publish, Outcome::Unreachable), 3);
    });
}

#[test]
fn what_takes_too_long_ends() {
    for does in [Does::Hang, Does::Drip] {
        run(async {
            let application = Application::start(move |_, _| does.clone()).await;
            let url = application.url("/");
            let shard = Shard::start(&[
                ("connect_url", &url),
                ("message_url", &url),
                ("attempt_timeout_ms", "50"),
                ("timeout_ms", "2000"),
            ]);
            let numbers = [shard.ask(connect("", 1)), shard.ask(message("ann"))];
            for number in numbers {
                let answer = shard.answer(number).await;
                assert_eq!(unavailable(&answer), Some("the application did not answer in time"));
            }
            assert_eq!(shard.count(Hook::Connect, Outcome::Timeout), 3);
            assert_eq!(shard.count(Hook::Message, Outcome::Timeout), 1);
            let heard = application.heard.borrow();
            let ids = heard.iter().map(|heard| heard.json()).filter(|b| b["event"] == "connect");
            let ids: Vec<_> = ids.map(|body| body["id"].clone()).collect();
            assert!(ids.len() == 3 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        });
    }
}

#[test]
fn a_gigabyte_ends_at_the_limit() {
    run(async {
        let application = Application::start(|_, _| Does::Flood).await;
        let shard = Shard::start(&[("connect_url", &application.url("/"))]);
        assert_eq!(
            shard.unavailable(connect("", 1)).await,
            "the application answered something wrong"
        );
        assert_eq!(shard.count(Hook::Connect, Outcome::TooLarge), 1);
        application.until(|application| application.under_way.get() == 0).await;
        // What the kernel took in between is not ours.
        assert!(application.taken.get() < 1 << 26, "{}", application.taken.get());
        application.becomes(|_, _| {
            Does::Raw("HTTP/1.1 200 OK\r\ncontent-length: 9999999999\r\n\r\n".into())
        });
        shard.unavailable(connect("", 1)).await;
        assert_eq!(shard.count(Hook::Connect, Outcome::TooLarge), 2);
    });
}

#[test]
fn an_answer_may_be_as_long_as_the_limit() {
    run(async {
        let application =
            Application::start(|_, before| Does::ok(&format!("{{}}{}", " ".repeat(1022 + before))))
                .await;
        let shard =
            Shard::start(&[("connect_url", &application.url("/")), ("answer_bytes_max", "1024")]);
        assert!(matches!(shard.asks(connect("", 1)).await, Answer::Connect(Ok(_))));
        shard.unavailable(connect("", 1)).await;
    });
}

#[test]
fn redirects_are_not_followed() {
    run(async {
        let canary = Application::start(|_, _| Does::ok("{}")).await;
        let to = canary.url("/canary");
        let application = Application::start(move |_, before| {
            let status = [301, 302, 303, 307, 308][before % 5];
            Does::Raw(format!(
                "HTTP/1.1 {status} X\r\nlocation: {to}\r\ncontent-length: 2\r\n\r\n{{}}"
            ))
        })
        .await;
        let shard = Shard::start(&[("connect_url", &application.url("/"))]);
        for _ in 0..5 {
            shard.unavailable(connect("", 1)).await;
        }
        assert_eq!((application.count(), canary.connections.get()), (5, 0));
    });
}

#[test]
fn a_name_that_leads_to_a_private_address_is_not_asked() {
    run(async {
        let canary = Application::start(|_, _| Does::ok("{}")).await;
        let metadata = "169.254.169.254:80".parse().unwrap();
        let url = format!("http://app.example.org:{}/", canary.address.port());
        let keys = [("connect_url", &*url)];
        let names = Arc::new(Leads(vec![canary.address, metadata]));
        let shard = Shard::of(&config(&flags(&keys)), &[], |_, _| {}, names.clone());
        assert_eq!(shard.unavailable(connect("", 1)).await, "the application could not be asked");
        assert_eq!(shard.count(Hook::Connect, Outcome::Unreachable), 1);
        assert_eq!(canary.connections.get(), 0);
        let allowed = [("connect_url", &*url), ("allow_private_addresses", "true")];
        let names = Arc::new(Leads(vec![canary.address]));
        let shard = Shard::of(&config(&flags(&allowed)), &[], |_, _| {}, names);
        assert!(matches!(shard.asks(connect("", 1)).await, Answer::Connect(Ok(_))));
    });
}

#[test]
fn this_machine_is_asked_by_its_own_name_and_nobody_is_asked_for_that() {
    run(async {
        let application = Application::start(|_, _| Does::ok("{}")).await;
        let url = format!("http://localhost:{}/", application.address.port());
        let names = Arc::new(Leads(Vec::new()));
        let config = config(&flags(&[("connect_url", &url)]));
        let shard = Shard::of(&config, &[], |_, _| {}, names);
        assert!(matches!(shard.asks(connect("", 1)).await, Answer::Connect(Ok(_))));
    });
}

#[test]
fn a_length_that_is_not_that_of_the_body_is_no_answer() {
    run(async {
        let application = Application::start(|_, _| Does::ok("{}")).await;
        let url = application.url("/");
        let shard = Shard::start(&[("message_url", &url), ("breaker_failures", "100")]);
        for raw in [
            "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"reply\":1}",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{\"reply\":1}",
            "HTTP/1.1 200 OK\r\ncontent-length: 11\r\ncontent-length: 12\r\n\r\n{\"reply\":1}",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{\"reply\":1}",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{\"reply\":1}",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nb\r\n{\"reply\":1}",
            "{\"reply\":1}",
            "",
        ] {
            application.becomes(move |_, _| Does::Raw(raw.into()));
            shard.unavailable(message("ann")).await;
        }
        // None of them was sent twice: the messages had been.
        assert_eq!(application.count(), 8);
    });
}

#[test]
fn only_what_does_no_harm_twice_is_sent_twice() {
    run(async {
        let application = Application::start(|_, _| Does::Answer(503, String::new())).await;
        let url = application.url("/");
        let shard = Shard::start(&[
            ("connect_url", &url),
            ("subscribe_url", &url),
            ("publish_url", &url),
            ("message_url", &url),
        ]);
        for (question, times) in [
            (connect("", 1), 3),
            (subscribe("ann", "a"), 3),
            (publish("ann", "1"), 1),
            (message("ann"), 1),
        ] {
            let before = application.count();
            shard.unavailable(question).await;
            let heard: Vec<_> = application.heard.borrow()[before..].to_vec();
            let first = heard[0].json();
            assert_eq!(heard.len(), times, "{first}");
            assert!(heard.iter().all(|heard| heard.json() == first));
        }
    });
}

#[test]
fn a_hook_that_fails_is_asked_no_more_until_a_try_succeeds() {
    run(async {
        let application = Application::start(|_, _| Does::Answer(500, String::new())).await;
        let shard = Shard::start(&[
            ("message_url", &application.url("/")),
            ("breaker_failures", "3"),
            ("breaker_open_ms", "200"),
        ]);
        let breaker = || shard.figures(Hook::Message).breaker;
        for _ in 0..3 {
            assert_eq!(breaker(), 0);
            shard.unavailable(message("ann")).await;
        }
        assert_eq!(breaker(), 2);
        let heard = application.count();
        for number in (0..50).map(|i| shard.ask(message(&i.to_string()))).collect::<Vec<_>>() {
            assert!(unavailable(&shard.answer(number).await).is_some());
        }
        assert!(application.count() <= heard + 1);
        assert!(shard.count(Hook::Message, Outcome::Broken) >= 49);
        // One tries it, and as long as it does, no other.
        application.becomes(|_, _| Does::Later(204, String::new()));
        let heard = application.count();
        let mut number = 0;
        let trying = loop {
            number += 1;
            let asked = shard.ask(message(&number.to_string()));
            tokio::select! {
                biased;
                () = application.until(|application| application.count() > heard) => break asked,
                answer = shard.answer(asked) => assert!(unavailable(&answer).is_some()),
            }
        };
        assert_eq!(breaker(), 1);
        shard.unavailable(message("bob")).await;
        assert_eq!(application.count(), heard + 1);
        application.becomes(|_, _| Does::Answer(204, String::new()));
        application.go_on();
        assert!(matches!(shard.answer(trying).await, Answer::Message(Ok(None))));
        assert_eq!(breaker(), 0);
        assert!(matches!(shard.asks(message("bob")).await, Answer::Message(Ok(None))));
    });
}

#[test]
fn who_is_let_through_when_nobody_answers() {
    run(async {
        let url = format!("http://{}/", nowhere().await);
        let allow = |anonymous| {
            let mut flags = flags(&[
                ("connect_url", &url),
                ("subscribe_url", &url),
                ("publish_url", &url),
                ("message_url", &url),
                ("on_failure", "allow"),
                ("retries", "0"),
            ]);
            flags.push(format!("auth.anonymous={anonymous}"));
            Shard::of(&config(&flags), &[], |_, _| {}, Arc::new(SystemNames))
        };
        let shard = allow(false);
        shard.unavailable(connect("", 1)).await;
        let Answer::Connect(Ok(admitted)) = shard.asks(connect("ann", 1)).await else { panic!() };
        assert_eq!(admitted.identity.user.as_deref(), Some("ann"));
        assert!(matches!(shard.asks(subscribe("", "a")).await, Answer::Subscribe(Ok(_))));
        assert!(matches!(shard.asks(publish("", "1")).await, Answer::Publish(Ok(None))));
        shard.unavailable(message("ann")).await;
        let shard = allow(true);
        let Answer::Connect(Ok(admitted)) = shard.asks(connect("", 1)).await else { panic!() };
        assert_eq!(admitted.identity.user, None);
    });
}

/// With on_failure = "allow", and these keys.
fn allowing(url: &str, keys: &[(&str, &str)]) -> Shard {
    let own = [("subscribe_url", url), ("publish_url", url), ("on_failure", "allow")];
    Shard::start(&[&own[..], keys].concat())
}

#[test]
fn whatever_an_application_has_said_it_is_no_yes() {
    let raw = |text: &str| Does::Raw(text.into());
    let no = "{\"allow\":false}";
    for does in [
        Does::Answer(500, no.into()),
        Does::Answer(503, String::new()),
        Does::Answer(429, no.into()),
        Does::Answer(404, String::new()),
        raw("HTTP/1.1 403 Forbidden\r\ncontent-length: 50\r\n\r\n{\"mess"),
        raw(&format!("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{no}")),
        raw(&format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 15\r\n\r\n{no}")),
        raw(&format!("HTTP/1.1 403 X\r\nx: {}\r\n\r\n", "a".repeat(900_000))),
        raw("this is no HTTP at all\r\n\r\n"),
        raw("HTTP/1.1 2"),
        // Not a word, but the request had been sent: clients may know how to bring that about.
        raw(""),
        Does::Drip,
        Does::Flood,
    ] {
        run(async move {
            let application = Application::start(move |_, _| does.clone()).await;
            let times = [("attempt_timeout_ms", "300"), ("timeout_ms", "3000")];
            let keys = [&times[..], &[("breaker_failures", "1"), ("retries", "0")]].concat();
            let shard = allowing(&application.url("/"), &keys);
            // The second one of each finds the breaker open, or is asked again.
            for user in ["ann", "bob"] {
                shard.unavailable(subscribe(user, "a")).await;
                shard.unavailable(publish(user, "1")).await;
            }
        });
    }
}

#[test]
fn an_application_that_says_nothing_at_all_lets_pass_and_so_does_its_breaker() {
    run(async {
        let application = Application::start(|_, _| Does::Hang).await;
        let keys = [
            ("attempt_timeout_ms", "100"),
            ("breaker_failures", "1"),
            ("breaker_open_ms", "30000"),
            ("retries", "0"),
        ];
        let shard = allowing(&application.url("/"), &keys);
        for user in ["ann", "bob"] {
            assert!(matches!(shard.asks(subscribe(user, "a")).await, Answer::Subscribe(Ok(_))));
            assert!(matches!(shard.asks(publish(user, "1")).await, Answer::Publish(Ok(None))));
        }
        assert_eq!(shard.count(Hook::Subscribe, Outcome::Broken), 1);
    });
}

#[test]
fn what_was_said_once_does_not_become_silence_when_it_is_asked_again() {
    run(async {
        let application = Application::start(|_, before| match before {
            0 => Does::Answer(500, String::new()),
            _ => Does::Hang,
        })
        .await;
        let keys = [("attempt_timeout_ms", "200"), ("retries", "1")];
        let shard = allowing(&application.url("/"), &keys);
        shard.unavailable(subscribe("ann", "a")).await;
        assert_eq!(application.count(), 2);
    });
}

#[test]
fn who_has_used_up_the_time_by_waiting_neither_opens_the_breaker_nor_is_let_through() {
    run(async {
        let application = Application::start(|_, _| Does::Hang).await;
        let shard = Shard::start(&[
            ("subscribe_url", &application.url("/")),
            ("timeout_ms", "250"),
            ("attempt_timeout_ms", "200"),
            ("breaker_failures", "2"),
            ("retries", "0"),
            ("on_failure", "allow"),
        ]);
        let [first, second] = ["a", "b"].map(|name| shard.ask(subscribe("ann", name)));
        assert!(matches!(shard.answer(first).await, Answer::Subscribe(Ok(_))));
        assert!(unavailable(&shard.answer(second).await).is_some());
        assert_eq!(shard.count(Hook::Subscribe, Outcome::Timeout), 1);
        assert_eq!(shard.count(Hook::Subscribe, Outcome::Late), 1);
        assert_eq!(shard.figures(Hook::Subscribe).breaker, 0);
    });
}

#[test]
fn every_question_has_one_answer_whatever_happens() {
    run(async {
        let application = Application::start(|heard, before| {
            let lots = heard.body.bytes().map(usize::from).sum::<usize>() + before;
            match lots % 9 {
                0 => Does::Hang,
                1 => Does::Drip,
                2 => Does::Raw("HTTP/1.1 2".into()),
                3 => Does::Raw(String::new()),
                4 => Does::Answer(503, String::new()),
                5 => Does::ok("[]"),
                _ => Does::ok("{\"allow\":true,\"cache_s\":1}"),
            }
        })
        .await;
        let url = application.url("/");
        let mut shard = Shard::start(&[
            ("connect_url", &url),
            ("subscribe_url", &url),
            ("publish_url", &url),
            ("message_url", &url),
            ("disconnect_url", &url),
            ("attempt_timeout_ms", "20"),
            ("timeout_ms", "200"),
            ("waiting_max", "300"),
            ("concurrency_max", "8"),
            ("breaker_open_ms", "10"),
        ]);
        let mut numbers = Vec::new();
        for i in 0..3000u64 {
            let user = (i % 97).to_string();
            let question: Question = match i % 6 {
                0 => connect(&user, i),
                1 => subscribe(&user, &(i % 7).to_string()),
                2 => publish(&user, "1"),
                3 => message(&user),
                4 => disconnect(i),
                _ => keys("http://127.0.0.1/", "1"),
            };
            numbers.push(shard.ask(question));
            if i % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        for &number in &numbers[..2000] {
            shard.answer(number).await;
        }
        // The rest is answered all the same when no more comes.
        shard.close().await;
        let mut answered = shard.answered();
        answered.sort_unstable();
        assert_eq!(answered, numbers);
        assert!([Hook::Connect, Hook::Subscribe, Hook::Publish, Hook::Message].iter().all(
            |&hook| shard.figures(hook).waiting == 0 && shard.figures(hook).waiting_bytes == 0
        ));
    });
}

#[test]
fn whoever_is_dropped_owes_no_answer() {
    run(async {
        let application = Application::start(|_, _| Does::Hang).await;
        let mut shard = Shard::start(&[("connect_url", &application.url("/"))]);
        let numbers: Vec<_> = (0..100).map(|i| shard.ask(connect("", i))).collect();
        application.until(|application| application.count() > 0).await;
        let serving = shard.serving.take().unwrap();
        serving.abort();
        for number in numbers {
            assert!(unavailable(&shard.answer(number).await).is_some());
        }
    });
}
