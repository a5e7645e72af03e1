//! One hook: how many requests it has under way, whether it is asked at all, and how often.

use std::rc::Rc;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Body, Method, Request, Url};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use super::answers::Verdict;
use super::breaker::Breaker;
use super::client::{Client, Reply};
use super::event::Event;
use super::failure::Failure;
use super::figures::{Figures, Hook, HookFigures, Outcome};
use super::sign::{SIGNATURE, Signer, TIMESTAMP};
use super::usual::Usual;
use super::waiting::Waiting;
use crate::clock::Clock;
use crate::config;
use crate::control::figures::LogLimit;

/// Before the first retry, without what chance adds.
const BACKOFF: Duration = Duration::from_millis(50);
/// Between two lines about one hook.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Where one hook is asked.
pub(super) struct Endpoint {
    hook: Hook,
    url: Url,
    client: Client,
    signer: Option<Signer>,
    retries: u32,
    attempt_timeout: Duration,
    answer_bytes_max: usize,
    permits: Rc<Semaphore>,
    concurrency_max: u32,
    breaker: Rc<Breaker>,
    usual: Usual,
    log: Rc<LogLimit>,
    figures: std::sync::Arc<Figures>,
}

impl Endpoint {
    /// `before` is the same hook before the configuration changed: what it knows of the application stays.
    pub(super) fn new(
        hook: Hook,
        url: Url,
        config: &config::Hooks,
        client: &Client,
        figures: &std::sync::Arc<Figures>,
        before: Option<&Endpoint>,
    ) -> Endpoint {
        let before = before.filter(|before| before.url == url);
        let (failures, open) =
            (config.breaker_failures, Duration::from_millis(config.breaker_open_ms.into()));
        let breaker = before.filter(|before| before.breaker.has(failures, open));
        let permits = before.filter(|before| before.concurrency_max == config.concurrency_max);
        Endpoint {
            hook,
            url,
            client: client.clone(),
            signer: Signer::new(&config.secret),
            retries: config.retries,
            attempt_timeout: Duration::from_millis(config.attempt_timeout_ms.into()),
            answer_bytes_max: usize::try_from(config.answer_bytes_max).unwrap_or(usize::MAX),
            permits: permits.map_or_else(
                || Rc::new(Semaphore::new(usize::try_from(config.concurrency_max).unwrap_or(1))),
                |before| before.permits.clone(),
            ),
            concurrency_max: config.concurrency_max,
            breaker: breaker
                .map_or_else(|| Breaker::new(failures, open), |before| before.breaker.clone()),
            usual: Usual::default(),
            log: before.map_or_else(|| Rc::new(LogLimit::new()), |before| before.log.clone()),
            figures: figures.clone(),
        }
    }

    /// Whether this is where it asks.
    pub(super) fn is_at(&self, url: &Url) -> bool {
        self.url == *url
    }

    fn figures(&self) -> &HookFigures {
        self.figures.of(self.hook)
    }

    /// Whether the same question asked twice does no more than asked once, as its id shows that it is the same.
    fn is_idempotent(&self) -> bool {
        use Hook::{Connect, Disconnect, Presence, Subscribe};
        matches!(self.hook, Connect | Subscribe | Disconnect | Presence)
    }

    /// Asks, and asks again where that is safe, until `deadline`.
    pub(super) async fn ask<T>(
        &self,
        event: &Event,
        waiting: Waiting,
        deadline: Instant,
        read: impl Fn(&Reply) -> Result<Verdict<T>, Failure>,
    ) -> Result<Verdict<T>, Failure> {
        let mut waiting = Some(waiting);
        let mut backoff = BACKOFF;
        let mut earlier = None;
        for retries_left in (0..=self.retries).rev() {
            let failure = match self.attempt(event, &mut waiting, deadline, &read).await {
                Ok(verdict) => return Ok(verdict),
                Err(failure) => failure,
            };
            let pause = backoff.mul_f64(1.0 + rand::random::<f64>());
            backoff *= 2;
            let again = retries_left > 0
                && failure.may_retry(self.is_idempotent())
                && Instant::now() + pause < deadline
                && self.breaker.lets_through(Instant::now());
            // That there was no time for a retry says less than why one was needed; and what was answered once does not
            // become silence because nothing was heard when it was asked again.
            let said = |earlier: &Failure| failure == Failure::Late || !earlier.may_allow();
            let failure = earlier.filter(said).unwrap_or(failure);
            if !again {
                return Err(failure);
            }
            earlier = Some(failure);
            sleep(pause).await;
        }
        Err(Failure::Late)
    }

    /// Asks once, when there is room. What waits does so no more once it is sent.
    pub(super) async fn attempt<T>(
        &self,
        event: &Event,
        waiting: &mut Option<Waiting>,
        deadline: Instant,
        read: impl Fn(&Reply) -> Result<Verdict<T>, Failure>,
    ) -> Result<Verdict<T>, Failure> {
        // Also before it waits: there is no use in it.
        if !self.breaker.lets_through(Instant::now()) {
            return Err(self.open());
        }
        let permit = timeout_at(deadline, self.permits.acquire()).await;
        let _permit = permit.map_err(|_| Failure::Late)?.map_err(|_| Failure::Late)?;
        let began = Instant::now();
        // What would be dropped before it is answered is work for nothing, and there are others who could be asked about.
        if !self.usual.fits(deadline.saturating_duration_since(began)) {
            return Err(Failure::Late);
        }
        let pass = self.breaker.pass(began).ok_or_else(|| self.open())?;
        self.figures().breaker.set(self.breaker.level());
        waiting.take();
        let timeout = self.attempt_timeout.min(deadline.saturating_duration_since(began));
        let sent = self.client.send(self.request(event), self.answer_bytes_max, timeout).await;
        // Somebody who has waited nearly all the time says nothing about the application by it.
        let hurried = timeout < self.attempt_timeout / 2;
        let sent = match sent {
            Err(Failure::Timeout | Failure::Slow) if hurried => Err(Failure::Late),
            sent => sent,
        };
        let result = sent.and_then(|reply| read(&reply));
        let outcome = match &result {
            Ok(Verdict { answer: Ok(_), .. }) => Outcome::Answered,
            Ok(Verdict { answer: Err(_), .. }) => Outcome::Refused,
            Err(failure) => failure.outcome(),
        };
        match &result {
            // Counted with those for which no request was sent.
            Err(Failure::Late) => pass.withdraw(),
            result => {
                self.figures().requested(outcome, began.elapsed());
                if result.is_ok() {
                    self.usual.learn(began.elapsed());
                }
                match result {
                    Err(failure) if failure.opens_breaker() => pass.failed(failure.may_allow()),
                    _ => pass.succeeded(),
                }
            }
        }
        self.figures().breaker.set(self.breaker.level());
        if let Err(failure) = &result {
            self.complain(failure);
        }
        result
    }

    fn open(&self) -> Failure {
        Failure::BreakerOpen { may_allow: self.breaker.may_allow() }
    }

    fn request(&self, event: &Event) -> Request {
        let method = if event.body.is_some() { Method::POST } else { Method::GET };
        let mut request = Request::new(method, self.url.clone());
        let headers = request.headers_mut();
        headers.clone_from(&event.headers);
        if event.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let body = event.body.clone().unwrap_or_default();
        let timestamp = Clock::Machine.unix_s();
        headers.insert(TIMESTAMP, HeaderValue::from(timestamp));
        if let Some(signer) = &self.signer
            && let Ok(signature) = HeaderValue::from_str(&signer.sign(timestamp, &body))
        {
            headers.insert(SIGNATURE, signature);
        }
        *request.body_mut() = event.body.clone().map(Body::from);
        request
    }

    /// Tells the operator.
    pub(super) fn complain(&self, failure: &Failure) {
        let Some(kept_back) = self.log.due(LOG_EVERY) else { return };
        let (hook, open) = (self.hook.label(), self.breaker.level() == 2);
        tracing::warn!(hook, kept_back, open, "a hook has failed: {failure}");
    }
}

impl std::fmt::Debug for Endpoint {
    /// Without the URL, which may hold a key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("hook", &self.hook).finish_non_exhaustive()
    }
}
