//! Keys of issuers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use ringfeed_engine::control::hooks::{Hook, Outcome, SystemNames};
use ringfeed_engine::message::Answer;

use super::application::{Application, Does};
use super::shard::*;

#[test]
fn a_thousand_unknown_keys_are_one_request_and_only_issuers_are_asked() {
    run(async {
        let issuer = Application::start(|_, _| Does::ok("{\"keys\":[]}")).await;
        let canary = Application::start(|_, _| Does::ok("{\"keys\":[]}")).await;
        let taken = Rc::new(RefCell::new(Vec::new()));
        let own = taken.clone();
        let take =
            move |url: &str, body: &[u8]| own.borrow_mut().push((url.to_owned(), body.len()));
        let urls = [issuer.url("/keys")];
        // Too little to wait for the next request.
        let times = [("timeout_ms", "1000"), ("attempt_timeout_ms", "1000")];
        let shard = Shard::of(&config(&flags(&times)), &urls, take, Arc::new(SystemNames));
        let ask = |kid: u32| shard.ask(keys(&urls[0], &kid.to_string()));
        for number in (0..1000).map(ask).collect::<Vec<_>>() {
            assert!(matches!(shard.answer(number).await, Answer::Noted));
        }
        for number in (0..1000).map(ask).collect::<Vec<_>>() {
            shard.answer(number).await;
        }
        for url in [canary.url("/keys"), issuer.url("/other")] {
            shard.asks(keys(&url, "1")).await;
        }
        assert!((1..=2).contains(&issuer.count()), "{}", issuer.count());
        assert_eq!((canary.connections.get(), taken.borrow().len()), (0, issuer.count()));
        assert!(taken.borrow().iter().all(|(url, bytes)| *url == urls[0] && *bytes == 11));
        assert!(issuer.last().field("x-ringfeed-signature").is_none());
    });
}

#[test]
fn a_new_key_is_waited_for_where_the_issuer_was_asked_a_moment_ago() {
    run(async {
        let issuer = Application::start(|_, _| Does::ok("{\"keys\":[]}")).await;
        let taken = Rc::new(Cell::new(0));
        let own = taken.clone();
        let take = move |_: &str, _: &[u8]| own.set(own.get() + 1);
        let urls = [issuer.url("/keys")];
        let config = config(&flags(&[("timeout_ms", "60000")]));
        let mut shard = Shard::of(&config, &urls, take, Arc::new(SystemNames));
        while taken.get() == 0 {
            tokio::task::yield_now().await;
        }
        // All of them with one request, once the pause is over.
        let asked: Vec<_> = (0..100).map(|i| shard.ask(keys(&urls[0], &i.to_string()))).collect();
        for number in asked {
            assert!(matches!(shard.answer(number).await, Answer::Noted));
            assert_eq!((issuer.count(), taken.get()), (2, 2));
        }
        // Those that it did not have are not waited for, and a shutdown waits for nobody.
        let again = shard.asks(keys(&urls[0], "1"));
        assert!(matches!(again.await, Answer::Noted) && issuer.count() == 2);
        let late = shard.ask(keys(&urls[0], "another"));
        shard.close().await;
        assert!(matches!(shard.answer(late).await, Answer::Noted) && issuer.count() == 2);
    });
}

#[test]
fn a_new_key_is_not_waited_for_where_a_question_has_less_time() {
    run(async {
        let issuer = Application::start(|_, _| Does::ok("{\"keys\":[]}")).await;
        let urls = [issuer.url("/keys")];
        let config = config(&flags(&[("timeout_ms", "1000"), ("attempt_timeout_ms", "500")]));
        let shard = Shard::of(&config, &urls, |_, _| {}, Arc::new(SystemNames));
        issuer.until(|issuer| issuer.count() == 1).await;
        assert!(matches!(shard.asks(keys(&urls[0], "1")).await, Answer::Noted));
        assert_eq!(issuer.count(), 1);
    });
}

#[test]
fn an_issuer_that_does_wrong_changes_no_keys() {
    for does in [
        Does::Answer(500, "{}".into()),
        Does::Answer(301, "{}".into()),
        Does::Flood,
        Does::Drip,
        Does::Raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}".into()),
    ] {
        run(async move {
            let issuer = Application::start(move |_, _| does.clone()).await;
            let urls = [issuer.url("/keys")];
            let config = config(&flags(&[("attempt_timeout_ms", "300"), ("timeout_ms", "1000")]));
            let take = |_: &str, _: &[u8]| panic!("it took what is no answer");
            let shard = Shard::of(&config, &urls, take, Arc::new(SystemNames));
            issuer.until(|issuer| issuer.count() == 1).await;
            assert!(matches!(shard.asks(keys(&urls[0], "1")).await, Answer::Noted));
            assert!(issuer.count() == 1 && issuer.taken.get() < 1 << 26);
            assert_eq!(shard.count(Hook::Keys, Outcome::Answered), 0);
        });
    }
}
