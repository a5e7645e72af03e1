//! Keys of issuers: fetched from the configuration's URLs and from no other, however often somebody shows a token with a
//! key that nobody knows.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, Request, Url};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::client::Client;
use super::failure::Failure;
use super::figures::{Figures, Hook, Outcome};
use crate::access::token::JWKS_BYTES_MAX;
use crate::control::figures::LogLimit;

/// How long a key that an issuer does not have is not asked for again.
const UNKNOWN_FOR: Duration = Duration::from_secs(30);
/// Between two fetches of one URL, whatever is asked.
const PAUSE: Duration = Duration::from_secs(5);
/// Who waits for the end of the pause, at each issuer: strangers may be among them.
const WAITING_MAX: u32 = 1024;
/// How old keys become, and up to a tenth more.
const REFRESH: Duration = Duration::from_secs(600);
/// The same where they could not be fetched.
const REFRESH_AFTER_FAILURE: Duration = Duration::from_secs(30);
/// Keys of one issuer that are remembered as unknown.
const UNKNOWN_MAX: usize = 1024;
const LOG_EVERY: Duration = Duration::from_secs(1);

/// What takes an issuer's keys: the URL as the configuration has it, and the body that came from there.
pub(super) type TakeKeys = Box<dyn Fn(&str, &[u8])>;

/// All issuers.
pub(super) struct Keys {
    sources: RefCell<BTreeMap<Box<str>, Rc<Source>>>,
    take: TakeKeys,
    /// The sources have changed.
    changed: Notify,
    /// Keys are chosen by whoever sends tokens, and long ones are not kept.
    hasher: RandomState,
    log: LogLimit,
    figures: Arc<Figures>,
    timeout: Cell<Duration>,
    client: RefCell<Client>,
}

/// One issuer.
#[derive(Debug)]
struct Source {
    url: Url,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    /// When it was asked last, or is to be.
    asked: Option<Instant>,
    /// When it is to be asked without a reason.
    refresh: Instant,
    /// Becomes true with new keys. It may wait for the end of the pause.
    under_way: Option<watch::Receiver<bool>>,
    /// So many have waited for it.
    waiting: u32,
    /// Keys that it did not have, by their hashes.
    unknown: super::cache::Cache<u64, Instant>,
}

/// What to do about a key that is missing.
enum Step {
    /// Nothing: it was asked for a moment ago.
    Nothing,
    /// Wait for the request that is under way.
    Wait(watch::Receiver<bool>),
    /// Ask, not before this.
    Fetch(watch::Sender<bool>, Instant),
}

impl Source {
    fn new(url: Url, now: Instant) -> Source {
        let unknown = super::cache::Cache::new(UNKNOWN_MAX);
        let state = State { asked: None, refresh: now, under_way: None, waiting: 0, unknown };
        Source { url, state: RefCell::new(state) }
    }

    /// What is to be done for somebody who has so much time.
    fn step(&self, key: u64, now: Instant, time: Duration) -> Step {
        let mut state = self.state.borrow_mut();
        if state.unknown.find(&key, |&until| now < until).is_some() {
            return Step::Nothing;
        }
        // Its sender is gone where the request was given up.
        state.under_way = state.under_way.take().filter(|own| own.has_changed().is_ok());
        if let Some(under_way) = state.under_way.clone() {
            let pause = state.asked.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
            if pause > time || !pause.is_zero() && state.waiting >= WAITING_MAX {
                return Step::Nothing;
            }
            state.waiting += 1;
            return Step::Wait(under_way);
        }
        let begins = state.asked.map_or(now, |asked| now.max(asked + PAUSE));
        if begins - now > time {
            return Step::Nothing;
        }
        let (sender, receiver) = watch::channel(false);
        (state.under_way, state.waiting) = (Some(receiver), 0);
        state.asked = Some(begins);
        Step::Fetch(sender, begins)
    }

    /// A request has ended.
    fn done(&self, success: bool, now: Instant) {
        let mut state = self.state.borrow_mut();
        state.under_way = None;
        let pause = if success { REFRESH } else { REFRESH_AFTER_FAILURE };
        state.refresh = now + pause.mul_f64(1.0 + rand::random::<f64>() / 10.0);
    }

    /// There are new keys, and for whomever this one was asked, it is not looked for again soon.
    fn remember(&self, key: u64, now: Instant) {
        self.state.borrow_mut().unknown.insert(key, now + UNKNOWN_FOR);
    }
}

impl Keys {
    pub(super) fn new(figures: Arc<Figures>, client: Client, take: TakeKeys) -> Keys {
        Keys {
            sources: RefCell::default(),
            take,
            changed: Notify::new(),
            hasher: RandomState::new(),
            log: LogLimit::new(),
            figures,
            timeout: Cell::new(Duration::ZERO),
            client: RefCell::new(client),
        }
    }

    /// Asks these issuers from now on. What is known of those that were asked before stays.
    pub(super) fn configure(&self, urls: Vec<(Box<str>, Url)>, client: Client, timeout: Duration) {
        let mut sources = self.sources.borrow_mut();
        let now = Instant::now();
        let each = urls.into_iter().map(|(name, url)| {
            let source = sources.remove(&name).unwrap_or_else(|| Rc::new(Source::new(url, now)));
            (name, source)
        });
        let new = each.collect();
        *sources = new;
        self.client.replace(client);
        self.timeout.set(timeout);
        self.changed.notify_one();
    }

    /// The key `kid` of the issuer at `url` is missing. Returns when its keys were asked for, or at once where that cannot
    /// begin within `time`.
    pub(super) async fn miss(&self, url: &str, kid: &str, time: Duration) {
        let source = self.sources.borrow().get_key_value(url).map(|(n, s)| (n.clone(), s.clone()));
        let Some((name, source)) = source else { return };
        let key = self.hasher.hash_one(kid);
        let success = match source.step(key, Instant::now(), time) {
            Step::Nothing => {
                self.figures.of(Hook::Keys).count(Outcome::Cached);
                return;
            }
            Step::Wait(mut under_way) => under_way.changed().await.is_ok() && *under_way.borrow(),
            Step::Fetch(sender, begins) => {
                sleep_until(begins).await;
                // The configuration may have another one by now.
                let current = self.sources.borrow().get(&name).cloned();
                let is_current = current.is_some_and(|current| Rc::ptr_eq(&current, &source));
                is_current && self.fetch(&name, &source, sender).await
            }
        };
        if success {
            source.remember(key, Instant::now());
        }
    }

    /// Keeps the keys of all issuers fresh; does not return.
    pub(super) async fn keep_fresh(&self) {
        loop {
            let sources: Vec<(Box<str>, Rc<Source>)> =
                self.sources.borrow().iter().map(|(n, s)| (n.clone(), s.clone())).collect();
            let now = Instant::now();
            let due = sources.iter().filter(|(_, source)| source.state.borrow().refresh <= now);
            join_all(due.map(|(name, source)| self.refresh(name, source))).await;
            let next = sources.iter().map(|(_, source)| source.state.borrow().refresh).min();
            tokio::select! {
                () = sleep_until(next.unwrap_or(now + REFRESH)) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    async fn refresh(&self, name: &str, source: &Source) {
        let (sender, receiver) = watch::channel(false);
        {
            let mut state = source.state.borrow_mut();
            if state.under_way.is_some() {
                state.refresh = Instant::now() + PAUSE;
                return;
            }
            (state.under_way, state.asked) = (Some(receiver), Some(Instant::now()));
            state.waiting = 0;
        }
        self.fetch(name, source, sender).await;
    }

    async fn fetch(&self, name: &str, source: &Source, done: watch::Sender<bool>) -> bool {
        let began = Instant::now();
        let client = self.client.borrow().clone();
        let request = Request::new(Method::GET, source.url.clone());
        let reply = client.send(request, JWKS_BYTES_MAX, self.timeout.get()).await;
        let body = reply.and_then(|reply| match reply.status {
            200 => Ok(reply.body),
            status => Err(Failure::Status(status)),
        });
        let outcome = body.as_ref().map_or_else(Failure::outcome, |_| Outcome::Answered);
        self.figures.of(Hook::Keys).requested(outcome, began.elapsed());
        source.done(body.is_ok(), Instant::now());
        match &body {
            Ok(body) => (self.take)(name, body),
            Err(failure) => {
                if let Some(kept_back) = self.log.due(LOG_EVERY) {
                    let issuer = source.url.host_str().unwrap_or_default();
                    tracing::warn!(
                        issuer,
                        kept_back,
                        "an issuer's keys were not fetched: {failure}"
                    );
                }
            }
        }
        done.send_replace(body.is_ok());
        body.is_ok()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("issuers", &self.sources.borrow().len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_asked_for_seldom() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let source = Source::new("http://127.0.0.1/".parse().unwrap(), start);
        let asks = |key, now| match source.step(key, now, Duration::ZERO) {
            Step::Fetch(sender, _) => {
                source.done(true, now);
                source.remember(key, now);
                drop(sender);
                true
            }
            _ => false,
        };
        assert!(asks(1, at(0.0)));
        // A thousand others a moment later, and the same for half a minute.
        assert!((2..1000).all(|key| !asks(key, at(4.9))));
        assert!(!asks(1, at(5.1)) && !asks(1, at(29.9)));
        assert!(asks(2, at(5.1)));
        assert!(!asks(2, at(35.0)));
        assert!(asks(1, at(30.1)));
    }

    #[test]
    fn one_request_is_under_way_at_a_time_and_one_that_was_given_up_is_none() {
        let now = Instant::now();
        let source = Source::new("http://127.0.0.1/".parse().unwrap(), now);
        let step = |now| source.step(2, now, Duration::ZERO);
        let Step::Fetch(sender, _) = step(now) else { panic!("it is not asked") };
        assert!(matches!(step(now), Step::Wait(_)));
        drop(sender);
        assert!(matches!(step(now), Step::Nothing));
        assert!(matches!(step(now + PAUSE), Step::Fetch(..)));
    }

    #[test]
    fn who_has_the_time_waits_for_the_end_of_the_pause_and_so_many_do() {
        let now = Instant::now();
        let source = Source::new("http://127.0.0.1/".parse().unwrap(), now);
        let step = |key, time| source.step(key, now, time);
        let Step::Fetch(sender, begins) = step(0, PAUSE) else { panic!("it is not asked") };
        assert_eq!(begins, now);
        source.done(true, now);
        drop(sender);
        assert!(matches!(step(1, PAUSE / 2), Step::Nothing));
        let Step::Fetch(_sender, begins) = step(1, PAUSE) else { panic!("it is not asked") };
        assert_eq!(begins, now + PAUSE);
        assert!(matches!(step(2, PAUSE / 2), Step::Nothing));
        let waits = |key| matches!(step(key, PAUSE), Step::Wait(_));
        assert!((0..u64::from(WAITING_MAX)).all(|key| waits(2 + key)));
        assert!(!waits(1 << 20));
        // Once it is under way, all do.
        assert!(matches!(source.step(1 << 20, now + PAUSE, PAUSE), Step::Wait(_)));
    }
}
