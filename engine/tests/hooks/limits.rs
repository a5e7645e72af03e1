//! Order, bounds, and what is told of ends.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::Arc;

use ringfeed_engine::control::hooks::{Hook, Outcome, SystemNames};
use ringfeed_engine::message::Answer;

use super::application::{Application, Does};
use super::shard::*;

#[test]
fn questions_about_one_user_wait_for_each_other_and_for_nobody_else() {
    run(async {
        let application = Application::start(|heard, _| match heard.json()["user"].as_str() {
            Some("ann") => Does::Later(200, "{\"allow\":true}".into()),
            _ => Does::ok("{\"allow\":true}"),
        })
        .await;
        let shard = Shard::start(&[
            ("subscribe_url", &application.url("/")),
            ("timeout_ms", "600000"),
            ("attempt_timeout_ms", "600000"),
        ]);
        let ann = ["1", "2", "3"].map(|name| shard.ask(subscribe("ann", name)));
        for name in ["1", "2", "3"] {
            let heard = || {
                let heard = application.heard.borrow();
                let of_ann = heard.iter().map(|heard| heard.json()).filter(|b| b["user"] == "ann");
                of_ann.map(|body| body["channel"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
            };
            application.until(|_| heard().last().is_some_and(|last| last == name)).await;
            // Somebody else's passes meanwhile, and hers do not.
            shard.asks(subscribe("bob", name)).await;
            assert_eq!(heard().last().unwrap(), name);
            application.go_on();
        }
        for number in ann {
            shard.answer(number).await;
        }
        let order: Vec<_> = shard.answered().into_iter().filter(|n| ann.contains(n)).collect();
        assert_eq!(order, ann);
    });
}

#[test]
fn a_slow_hook_keeps_no_other_waiting_and_has_so_many_requests() {
    run(async {
        let slow = Application::start(|_, _| Does::Later(204, String::new())).await;
        let fast = Application::start(|_, _| Does::ok("{\"allow\":true}")).await;
        let shard = Shard::start(&[
            ("message_url", &slow.url("/")),
            ("subscribe_url", &fast.url("/")),
            ("concurrency_max", "3"),
            ("timeout_ms", "600000"),
            ("attempt_timeout_ms", "600000"),
        ]);
        let numbers: Vec<_> = (0..10).map(|i| shard.ask(message(&i.to_string()))).collect();
        slow.until(|slow| slow.under_way.get() == 3).await;
        for i in 0..20 {
            let answer = shard.asks(subscribe(&format!("another {i}"), "a")).await;
            assert!(matches!(answer, Answer::Subscribe(Ok(_))));
        }
        assert_eq!((slow.count(), shard.figures(Hook::Message).waiting), (3, 7));
        slow.becomes(|_, _| Does::Answer(204, String::new()));
        slow.go_on();
        for number in numbers {
            assert!(matches!(shard.answer(number).await, Answer::Message(Ok(None))));
        }
        assert_eq!((slow.most.get(), shard.figures(Hook::Message).waiting), (3, 0));
    });
}

#[test]
fn more_than_may_wait_are_answered_at_once() {
    run(async {
        let application = Application::start(|_, _| Does::Hang).await;
        let url = application.url("/");
        let shard = Shard::start(&[
            ("message_url", &url),
            ("publish_url", &url),
            ("concurrency_max", "1"),
            ("waiting_max", "5"),
            ("waiting_bytes_max", "65536"),
            ("timeout_ms", "600000"),
            ("attempt_timeout_ms", "600000"),
        ]);
        let first = shard.ask(message("first"));
        application.until(|application| application.count() == 1).await;
        let waiting: Vec<_> = (0..5).map(|i| shard.ask(message(&i.to_string()))).collect();
        let why = shard.unavailable(message("late")).await;
        assert_eq!(why, "too many questions wait for the application");
        assert_eq!(shard.count(Hook::Message, Outcome::Busy), 1);
        assert!(!shard.answered().iter().any(|n| waiting.contains(n) || *n == first));
        // So are more bytes than may.
        let large = format!("\"{}\"", "x".repeat(40_000));
        let held = [(); 2].map(|()| shard.ask(publish("ann", &large)));
        assert!(unavailable(&shard.answer(held[1]).await).is_some());
    });
}

#[test]
fn who_asks_a_lot_leaves_room_for_others() {
    run(async {
        let application = Application::start(|heard, _| match heard.json()["user"].as_str() {
            Some("ann") => Does::Hang,
            _ => Does::ok("{\"allow\":true}"),
        })
        .await;
        let url = application.url("/");
        let shard = Shard::start(&[
            ("subscribe_url", &url),
            ("publish_url", &url),
            ("waiting_max", "320"),
            ("timeout_ms", "600000"),
            ("attempt_timeout_ms", "600000"),
        ]);
        // A sixteenth, whichever hooks they are for.
        let of_ann = (0..2000).map(|i| match i % 2 {
            0 => shard.ask(subscribe("ann", &i.to_string())),
            _ => shard.ask(publish("ann", "1")),
        });
        let of_ann: Vec<_> = of_ann.collect();
        assert!(matches!(shard.asks(subscribe("bob", "a")).await, Answer::Subscribe(Ok(_))));
        let (bob, refused) = shard.answered().split_last().map(|(l, r)| (*l, r.to_vec())).unwrap();
        assert_eq!((bob, &refused[..]), (2000, &of_ann[20..]));
        for number in refused {
            let answer = shard.answer(number).await;
            assert_eq!(unavailable(&answer), Some("too many questions wait for the application"));
        }
    });
}

#[test]
fn ends_are_told_when_what_was_asked_before_is_answered_and_again_until_they_are_heard() {
    run(async {
        let application = Application::start(|heard, _| match heard.json()["event"].as_str() {
            Some("disconnect") => Does::Answer(500, String::new()),
            _ => Does::Later(204, String::new()),
        })
        .await;
        let url = application.url("/");
        let mut shard = Shard::start(&[("message_url", &url), ("disconnect_url", &url)]);
        let before = shard.ask(message(""));
        application.until(|application| application.count() == 1).await;
        // The same connection's: message() is of connection 1.
        assert!(matches!(shard.asks(disconnect(1)).await, Answer::Noted));
        shard.asks(keys("http://127.0.0.1/", "")).await;
        assert_eq!(application.count(), 1);
        application.go_on();
        shard.answer(before).await;
        application.until(|application| application.count() == 2).await;
        application.becomes(|_, _| Does::Answer(204, String::new()));
        application.until(|application| application.count() == 3).await;
        let heard: Vec<_> = application.heard.borrow()[1..].iter().map(|h| h.json()).collect();
        assert_eq!(heard[0], heard[1]);
        assert_eq!((&heard[0]["code"], &heard[0]["reason"]), (&1000.into(), &"bye".into()));
        shard.close().await;
        assert_eq!(shard.count(Hook::Disconnect, Outcome::Dropped), 0);
    });
}

#[test]
fn ends_that_cannot_be_told_are_dropped_and_counted() {
    run(async {
        let application = Application::start(|_, _| Does::Hang).await;
        let mut shard = Shard::start(&[
            ("disconnect_url", &application.url("/")),
            ("waiting_max", "10"),
            ("attempt_timeout_ms", "50"),
            ("timeout_ms", "2000"),
        ]);
        for number in (0..30).map(|i| shard.ask(disconnect(i))).collect::<Vec<_>>() {
            assert!(matches!(shard.answer(number).await, Answer::Noted));
        }
        assert_eq!(shard.count(Hook::Disconnect, Outcome::Dropped), 20);
        shard.close().await;
        assert_eq!(shard.count(Hook::Disconnect, Outcome::Dropped), 30);
    });
}

#[test]
fn another_configuration_counts_from_the_next_question_on() {
    run(async {
        let said = "{\"allow\":true,\"cache_s\":60}";
        let one = Application::start(move |_, _| Does::ok(said)).await;
        let other = Application::start(move |_, _| Does::ok(said)).await;
        let shard = Shard::start(&[("subscribe_url", &one.url("/"))]);
        shard.asks(subscribe("ann", "a")).await;
        let moved = config(&flags(&[("subscribe_url", &other.url("/"))]));
        shard.hooks.reconfigure(&moved, &[]).unwrap();
        shard.asks(subscribe("ann", "a")).await;
        assert_eq!((one.count(), other.count()), (1, 1));
        // What was wrong changes nothing.
        shard.hooks.reconfigure(&moved, &["http://10.0.0.1/".into()]).unwrap_err();
        shard.asks(subscribe("ann", "b")).await;
        assert_eq!(other.count(), 2);
        shard.hooks.reconfigure(&config(&flags(&[])), &[]).unwrap();
        shard.unavailable(subscribe("ann", "a")).await;
    });
}

/// What was logged.
#[derive(Clone, Default)]
struct Logged(Arc<dashmap::DashMap<usize, Vec<u8>>>);

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.insert(self.0.len(), bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_secret_is_shown_or_logged() {
    let logged = Logged::default();
    let writer = logged.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let shown = Rc::new(RefCell::new(String::new()));
    let own = shown.clone();
    run(async move {
        let application = Application::start(|_, before| match before {
            0 => Does::ok("{\"user\":\"canary-answer\",\"expires_at\":\"canary-value\"}"),
            1 => Does::Raw("canary-raw".into()),
            _ => Does::Answer(500, "canary-body".into()),
        })
        .await;
        let url = application.url("/?key=canary-url");
        let flags = flags(&[("connect_url", &url), ("retries", "0")]);
        let names = Arc::new(SystemNames);
        let mut shard = Shard::of(&config(&flags), &[], |_, _| {}, names);
        for _ in 0..3 {
            let question = connect("", 1);
            *own.borrow_mut() += &format!("{question:?}");
            let answer = shard.asks(question).await;
            *own.borrow_mut() += &format!("{answer:?}");
        }
        *own.borrow_mut() += &format!("{:?} {:?}", shard.hooks, config(&flags));
        assert_eq!(application.count(), 3);
        shard.close().await;
    });
    let lines: Vec<u8> = logged.0.iter().flat_map(|line| line.value().clone()).collect();
    let text = format!("{}{}", shown.borrow(), String::from_utf8_lossy(&lines));
    assert!(text.contains("a hook has failed"), "{text}");
    assert!(!text.contains("canary"), "{text}");
}
