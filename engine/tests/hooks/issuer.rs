//! Keys of issuers.

use std::cell::RefCell;
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
        let shard = Shard::of(&config(&flags(&[])), &urls, take, Arc::new(SystemNames));
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
            let config = config(&flags(&[("attempt_timeout_ms", "300")]));
            let take = |_: &str, _: &[u8]| panic!("it took what is no answer");
            let shard = Shard::of(&config, &urls, take, Arc::new(SystemNames));
            issuer.until(|issuer| issuer.count() == 1).await;
            assert!(matches!(shard.asks(keys(&urls[0], "1")).await, Answer::Noted));
            assert!(issuer.count() == 1 && issuer.taken.get() < 1 << 26);
            assert_eq!(shard.count(Hook::Keys, Outcome::Answered), 0);
        });
    }
}
